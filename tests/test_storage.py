"""Writing: whole or not at all, on a disk and in a bucket."""

import importlib.util
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading

import pytest

from esrgan_jax import storage
from tests.training_runs import ROOT, environment, tiny_config, write_config

as_root = pytest.mark.skipif(
  not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root"
)


@pytest.mark.parametrize(
  ("platform", "environment", "expected"),
  [
    ("linux", {"ESRGAN_JAX_CACHE": "/a/b"}, "/a/b"),
    ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/esrgan_jax"),
    ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/u/.cache/esrgan_jax"),
    ("linux", {}, "/home/u/.cache/esrgan_jax"),
    ("darwin", {}, "/home/u/Library/Caches/esrgan_jax"),
    ("win32", {"LOCALAPPDATA": "/l"}, "/l/esrgan_jax"),
  ],
)
def test_cache_dir(monkeypatch, platform, environment, expected):
  for key in ("ESRGAN_JAX_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
    monkeypatch.delenv(key, raising=False)
  for key, value in environment.items():
    monkeypatch.setenv(key, value)
  monkeypatch.setattr(sys, "platform", platform)
  monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path("/home/u"))
  assert storage.cache_dir() == pathlib.Path(expected)


def _write(path, content=b"new", *, overwrite=True, meanwhile=lambda: None):
  with storage.written_aside(path, overwrite=overwrite) as file:
    file.write(content)
    meanwhile()


@pytest.fixture
def nodes(tmp_path):
  """Names at which there is everything but a file."""
  (tmp_path / "folder").mkdir()
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
  (tmp_path / "circle").symlink_to(tmp_path / "circle")
  (tmp_path / "to_null").symlink_to(os.devnull)
  (tmp_path / "file").write_bytes(b"precious")
  (tmp_path / "same_file").hardlink_to(tmp_path / "file")
  # A socket's address is short: by a relative path.
  with pytest.MonkeyPatch.context() as patch, socket.socket(1) as server:
    patch.chdir(tmp_path)
    server.bind("socket")
  return tmp_path


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("folder", "is not a file but a folder"),
    ("pipe", "is not a file but a pipe"),
    ("socket", "is not a file but a socket"),
    ("to_null", "is not a file but a device"),
    ("dangling", "is a link to .*nowhere, where there is nothing"),
    ("circle", "cannot be written: Too many levels of symbolic links"),
    ("none/a", "no folder .*none; create it first"),
    ("file/a", "cannot be written: Not a directory"),
    ("x" * 256, "cannot be written: File name too long"),
    ("same_file", "would replace an input"),
  ],
)
def test_what_cannot_be_written_is_told_before_the_work(nodes, name, message):
  before = sorted(os.listdir(nodes))
  path, inputs = nodes / name, storage.file_ids([nodes / "file"])
  with pytest.raises(OSError, match=message):
    storage.check_output(path, overwrite=True, inputs=inputs)
  if name != "same_file":
    with pytest.raises(OSError, match=message):
      _write(path)
  assert sorted(os.listdir(nodes)) == before
  assert (nodes / "file").read_bytes() == b"precious"


def test_folders_that_will_be_made(nodes):
  storage.check_output(nodes / "a/b/c", overwrite=False, make_folder=True)
  for name in ("file/b/c", "dangling/b/c"):
    with pytest.raises(OSError, match="cannot be written"):
      storage.check_output(nodes / name, overwrite=False, make_folder=True)


def test_a_folder_that_may_not_be_written_to():
  folder = "/proc/self"  # Even root makes no file here.
  if not os.path.isdir(folder) or os.access(folder, os.W_OK):
    pytest.skip("no folder is closed to everybody")
  with pytest.raises(storage.WriteError, match=r"no file may be made in /proc"):
    storage.check_output(f"{folder}/a", overwrite=False)


def test_a_new_file_gets_the_usual_permissions(tmp_path):
  before = os.umask(0o027)
  try:
    _write(tmp_path / "a", overwrite=False)
  finally:
    os.umask(before)
  assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o666])
def test_what_replaces_a_file_is_open_to_no_more_people(tmp_path, mode):
  path = tmp_path / "a"
  path.write_bytes(b"old")
  path.chmod(mode)
  with storage.written_aside(path, overwrite=True) as file:
    file.write(b"new")
    (aside,) = set(tmp_path.iterdir()) - {path}
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
  assert stat.S_IMODE(path.stat().st_mode) == mode
  assert path.read_bytes() == b"new"
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("length", [1, 9, 16, 22, 30, 33, 255])
def test_the_name_aside_is_hidden_and_fits_where_the_files_does(
  tmp_path, length
):
  path = tmp_path / ("é" * (length // 2) + "a" * (length % 2))
  with storage.written_aside(path, overwrite=False):
    (aside,) = os.listdir(tmp_path)
    assert aside.startswith(".")
    assert len(os.fsencode(aside)) <= max(length, 9)
  assert os.listdir(tmp_path) == [path.name]


def test_what_a_thread_is_writing_is_gone_at_the_end(tmp_path):
  code = """
import os, sys, threading
from esrgan_jax import storage

def write():
  with storage.written_aside(sys.argv[1] + "/a", overwrite=False):
    started.set()
    threading.Event().wait()

started = threading.Event()
threading.Thread(target=write, daemon=True).start()
started.wait()
if not os.fork():
  sys.exit()  # The other process goes on writing.
os.wait()
print(len(os.listdir(sys.argv[1])))
"""
  done = subprocess.run(
    [sys.executable, "-c", code, tmp_path], capture_output=True, check=True
  )
  assert done.stdout == b"1\n"
  assert os.listdir(tmp_path) == []


@as_root
def test_what_replaces_a_file_keeps_its_owner_where_that_is_allowed():
  # Where another user comes by, wherever this run's own files are.
  with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    os.chmod(folder, 0o777)
    path = pathlib.Path(folder, "a")
    path.write_bytes(b"old")
    os.chown(path, 12, 34)
    path.chmod(0o664)
    _write(path)
    owned = path.stat()
    assert (owned.st_uid, owned.st_gid) == (12, 34)
    assert stat.S_IMODE(owned.st_mode) == 0o664
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(56)
    os.seteuid(78)
    try:
      _write(path)
    finally:
      os.seteuid(0)
      os.setegid(0)
      os.setgroups(groups)
    owned = path.stat()
    assert (owned.st_uid, owned.st_gid) == (78, 56)
    # Another group than that which could write to it.
    assert stat.S_IMODE(owned.st_mode) == 0o644


def test_a_link_stays_and_leads_to_what_is_new(tmp_path):
  (tmp_path / "deep").mkdir()
  target, link = tmp_path / "deep" / "a", tmp_path / "link"
  target.write_bytes(b"old")
  link.symlink_to("deep/a")
  with pytest.raises(FileExistsError):
    _write(link, overwrite=False)
  assert target.read_bytes() == b"old"
  _write(link)
  assert link.is_symlink()
  assert not target.is_symlink()
  assert target.read_bytes() == b"new"
  assert os.listdir(tmp_path / "deep") == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, links):
  if not links:  # As on exFAT.
    monkeypatch.delattr(os, "link")
  a, b = (tmp_path / name for name in "ab")
  for path, meanwhile in (
    (a, lambda: a.write_bytes(b"precious")),
    (b, lambda: b.symlink_to(tmp_path / "nowhere")),
  ):
    with pytest.raises(FileExistsError, match="exists already"):
      _write(path, overwrite=False, meanwhile=meanwhile)
  assert a.read_bytes() == b"precious"
  assert sorted(os.listdir(tmp_path)) == ["a", "b"]
  _write(tmp_path / "c", overwrite=False)
  assert (tmp_path / "c").read_bytes() == b"new"


@pytest.mark.parametrize("there", [True, False])
def test_an_interrupt_leaves_what_was_there(tmp_path, there):
  path = tmp_path / "a"
  if there:
    path.write_bytes(b"old")
  # A job in the background of a script is born deaf to it.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt):
      _write(path, meanwhile=lambda: signal.raise_signal(signal.SIGINT))
  finally:
    signal.signal(signal.SIGINT, before)
  assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"] * there


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, full_disk, there):
  path = tmp_path / "a"
  if there:
    path.write_bytes(b"old")
  with (
    full_disk(),
    pytest.raises(storage.WriteError, match=r"a cannot be written: File too"),
  ):
    _write(path, bytes(10**6))
  assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"] * there


def test_an_error_about_another_file_is_left_as_it_is(tmp_path):
  with pytest.raises(FileNotFoundError, match="other"):
    _write(tmp_path / "a", meanwhile=(tmp_path / "other").read_bytes)
  assert not list(tmp_path.iterdir())


def test_the_longest_name_can_be_written(tmp_path):
  path = tmp_path / ("x" * 255)
  _write(path)
  assert list(tmp_path.iterdir()) == [path]


def test_threads_write_one_file(tmp_path):
  threads = [
    threading.Thread(target=_write, args=(tmp_path / "a", bytes([i]) * 10**5))
    for i in range(8)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(set((tmp_path / "a").read_bytes())) == 1
  assert os.listdir(tmp_path) == ["a"]


def _run(arguments, timeout=240):
  """Runs Python; epath reaches buckets by fsspec, not by TensorFlow."""
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=environment(EPATH_USE_TF="0"),
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


_PARTS = """
import io
import numpy as np
import rich.console
from etils import epath
from esrgan_jax import storage
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.evaluation import evaluator
from esrgan_jax.report import curves, film, metric_log, page as report
from esrgan_jax.training import claim, finish, run as run_lib
from esrgan_jax.weights import find
from esrgan_jax.weights.workdir import phases
from tests.bucket_stand_in import Bucket

sizes = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2}
console = rich.console.Console(file=io.StringIO())
config = {"generator": sizes, "data": {"sources": "sample_photos", "eval": ""},
          "mesh": {"num_devices": 1}}
run = run_lib.make_run(config, "gs://bucket/a/run", console=console)
for _ in range(2):  # The second time, there is something.
  with claim.claim_workdir(run):
    run.write_config()

# Metrics: nothing is lost that was flushed, resuming drops what comes after.
with metric_log.MetricLog(run.workdir / "psnr", tensorboard=False) as log:
  log.write(1, {"g/loss": 0.5})
  log.flush()
  assert len(metric_log.read_metrics("gs://bucket/a/run/psnr")) == 1
  log.write(2, {"g/loss": 0.25})
  log.write(3, {"g/loss": 0.125})
with metric_log.MetricLog(run.workdir / "psnr", 2, tensorboard=False) as log:
  log.write(3, {"g/loss": 0.1})
found = metric_log.read_metrics("gs://bucket/a/run/psnr")
assert [line["g/loss"] for line in found] == [0.5, 0.25, 0.1], found

# A model, found again as people ask for it.
import jax
params = jax.jit(run.generator.init)(jax.random.key(0), np.zeros((1, 8, 8, 3)))
finish.export(run, finish.Model("psnr", params, 0.0))
for name in ("gs://bucket/a/run", "gs://bucket/a/run/models/psnr.safetensors"):
  model = find.find_model(name)
  jax.tree.map(np.testing.assert_array_equal, model.weights.params,
               dict(params["params"]))
  assert str(model.path).startswith("gs://bucket/a/run/models/"), model.path
assert phases(epath.Path("gs://bucket/a/run")) == ("psnr",)
assert phases(epath.Path("gs://bucket/a")) == ()
try:
  find.find_model("gs://bucket/a/run/config.json")
except ValueError as error:
  assert str(error).startswith("gs://bucket/a/run/config.json"), error
else:
  raise AssertionError("a JSON file is no model")

# The results.
score = evaluator.Score("a.png", {"psnr_y": 30.0, "ssim_y": 0.9})
path = "gs://bucket/a/run/evaluation.json"
evaluator.write_evaluations(path, [evaluator.Evaluation("m", 4, 4, (score,))])
assert evaluator.read_evaluations(path)[0]["means"]["psnr_y"] == 30.0
page = report.write_report("gs://bucket/a/run").read_text()
assert "<h1>run</h1>" in page and "a.png" in page and "Generator loss" in page
found = [path.name for path in curves.write_curves("gs://bucket/a/run")]
assert found == [f"psnr_generator_loss.{suffix}" for suffix in ("svg", "png")]
assert all((run.workdir / "curves" / name).exists() for name in found)

# Frames of a film: written, found, and removed.
picture = np.zeros((20, 24, 3), np.uint8)
name = "film/psnr/0000002.png"
run.write(name, film.frame(picture, ("PSNR, step 2", "20 dB"), "ab"))
(frame,) = film.frames(run.workdir / "film/psnr")
assert frame.step == 2 and frame.belongs("ab", (24, 20))
assert film.is_film(film.encode([frame], seconds=0.1, quality=80))
frame.path.unlink()
assert film.frames(run.workdir / "film/psnr") == []

# Moving what Orbax finds damaged.
old = run.workdir / "psnr/checkpoints/7"
(old / "ema").mkdir(parents=True)
(old / "ema/part").write_bytes(b"12")
(old / "mark").write_bytes(b"")
storage.move_folder(old, run.workdir / "psnr/damaged_checkpoints/7")
print("\\n".join(sorted(Bucket.objects)))
"""


@pytest.mark.slow
def test_parts_of_a_workdir_in_a_bucket(tmp_path):
  pytest.importorskip("fsspec")
  done = _run(["-c", _PARTS])
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == [
    f"bucket/a/run/{name}"
    for name in (
      "config.json",
      "curves/psnr_generator_loss.png",
      "curves/psnr_generator_loss.svg",
      "evaluation.json",
      "models/psnr.safetensors",
      "psnr/damaged_checkpoints/7/ema/part",
      "psnr/damaged_checkpoints/7/mark",
      "psnr/metrics.jsonl",
      "report.html",
    )
  ]


_CHECKPOINTS = """
import sys
import jax
import numpy as np
import orbax.checkpoint as ocp
import esrgan_jax
from esrgan_jax import __main__
from tests.bucket_stand_in import Bucket

model = "realesrgan-x4plus-anime"
command = ["interpolate", model, model, "-o", "gs://bucket/a/mixed"]
assert __main__.main(command) == 0
found = esrgan_jax.load_checkpoint("gs://bucket/a/mixed")
assert (found.config["num_block"], found.notes) == (6, ())
assert __main__.main(command) == 1  # It is there.

# By plain Orbax, and cut.
with ocp.StandardCheckpointer() as orbax:
  orbax.save("gs://bucket/tree", found.params)
again = esrgan_jax.load("gs://bucket/tree")
jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
assert "without digests" in again.notes[0]
assert __main__.main(["convert", "gs://bucket/tree", sys.argv[1]]) == 0
Bucket.put("bucket/tree/manifest.ocdbt", b"cut")
command = ["convert", "gs://bucket/tree", sys.argv[1], "--overwrite"]
assert __main__.main(command) == 1
"""


@pytest.mark.slow
def test_checkpoints_in_a_bucket(tmp_path):
  pytest.importorskip("fsspec")
  done = _run(["-c", _CHECKPOINTS, str(tmp_path / "a.safetensors")])
  assert done.returncode == 0, done.stderr
  lines = done.stderr.splitlines()
  exists, damaged = (line for line in lines if line.startswith("error: "))
  assert exists.startswith("error: gs://bucket/a/mixed exists already; a check")
  assert damaged.startswith("error: gs://bucket/tree is damaged: ")


_TRAINING = """
import sys
from tests.bucket_stand_in import Bucket
from esrgan_jax import main
from esrgan_jax.report import metric_log
from esrgan_jax.weights import find

flags = [sys.argv[1], "--workdir=gs://bucket/run",
         "--config.phases.gan.num_train_steps=0"]
assert main.main(flags) == 0
for step in 2, 4:
  mark = f"bucket/run/psnr/checkpoints/{step}/commit_success.txt"
  assert mark in Bucket.objects, sorted(Bucket.objects)
assert "bucket/run/.lock" not in Bucket.objects

# The newest is damaged and an older one is not: it goes on from there.
for name in list(Bucket.objects):
  if "/4/ema/d/" in name or "/4/ema/ocdbt.process_0/d/" in name:
    content = bytearray(Bucket.objects[name])
    content[len(content) // 2] ^= 255
    Bucket.put(name, bytes(content))
flags += ["--config.phases.psnr.num_train_steps=6"]
assert main.main([*flags, "--config.allow_changes=true"]) == 0
lines = metric_log.read_metrics("gs://bucket/run/psnr")
assert [e["step"] for e in lines if "g/loss" in e] == [1, 2, 4, 6], lines
assert any("damaged_checkpoints/4/" in name for name in Bucket.objects)
found = find.find_model("gs://bucket/run/psnr/checkpoints")
assert found.weights.config["num_feat"] == 4
assert "bucket/run/report.html" in Bucket.objects
print("done")
"""


@pytest.mark.release
def test_training_in_a_bucket(tmp_path):
  pytest.importorskip("fsspec")
  config = tiny_config(tmp_path)
  config["phases"]["psnr"]["num_train_steps"] = 4
  config["checkpoint_every_steps"] = config["eval_every_steps"] = 2
  config = write_config(tmp_path / "config.py", config)
  done = _run(["-c", _TRAINING, f"--config={config}"])
  assert done.returncode == 0, done.stderr
  assert "psnr: going on from step 2 of 6" in done.stdout
  assert done.stdout.endswith("done\n")
  assert "gs://bucket/run/psnr/checkpoints/4 is damaged: " in done.stderr


@pytest.mark.skipif(
  importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed"
)
def test_a_bucket_without_its_package(tmp_path):
  config = write_config(tmp_path / "config.py", tiny_config(tmp_path))
  arguments = [f"--config={config}", "--workdir=gs://bucket/run"]
  done = _run(["-m", "esrgan_jax.main", *arguments])
  assert done.returncode == 1, done.stderr
  assert done.stderr.startswith("error: gs://bucket/run needs a package: ")
  assert "pip install gcsfs" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert not os.path.exists(ROOT / "gs:")
