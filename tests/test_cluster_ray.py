"""`upscale --engine ray`, as users run it, on real clusters of this machine."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax.weights import files
from tests.test_upscaler import make_model
from tests.training_runs import ROOT

pytestmark = [
  pytest.mark.runtimes,
  # Ray's own, in the process that starts a cluster.
  pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
  ),
]

LIMIT = 240  # Seconds; a hang is a failure, not a slow test.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  model = make_model(num_feat=4, num_grow_ch=2)
  path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
  config = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
  files.write_weights(path, jax.device_get(model.params), config)
  return path


def environ(**more):
  kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
  kept |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
  return kept | more


def start(weights, *words, cwd, **more):
  words = ["upscale", *map(str, words), "--model", str(weights)]
  return subprocess.Popen(
    [sys.executable, "-m", "esrgan_jax", *words, "--engine", "ray"],
    env=environ(**more),
    cwd=cwd,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*words, **options):
  process = start(*words, **options)
  out, err = process.communicate(timeout=LIMIT)
  return process.returncode, out, err


def run_plain(weights, *words, cwd):
  command = [sys.executable, "-m", "esrgan_jax", "upscale", *map(str, words)]
  command += ["--model", str(weights), "--quiet"]
  subprocess.run(command, env=environ(), cwd=cwd, check=True)


@contextlib.contextmanager
def nodes(*environs):
  """A cluster: a head that has no CPU, and a node of one for each."""
  with (
    tempfile.TemporaryDirectory(
      dir="/tmp", ignore_cleanup_errors=True
    ) as folder,
    pytest.MonkeyPatch.context() as patch,
  ):
    for name, value in environ(RAY_TMPDIR=folder).items():
      patch.setenv(name, value)
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
      options = {"include_dashboard": False}
      cluster.add_node(num_cpus=0, **options)
      yield (
        cluster,
        [cluster.add_node(num_cpus=1, env_vars=each) for each in environs],
      )
    finally:
      cluster.shutdown()


def save_images(folder, count, *, size=(24, 20)):
  folder.mkdir()
  random = np.random.default_rng(0)
  for n in range(count):
    pixels = random.integers(0, 256, (*size, 3), np.uint8)
    PilImage.fromarray(pixels).save(folder / f"{n:02}.png")


def rows_of(file):
  import pyarrow.parquet as pq

  return {
    row["input"].rpartition("/")[2]: row
    for row in pq.read_table(file).to_pylist()
  }


def same_pixels(one, other):
  a, b = (np.asarray(PilImage.open(path), np.int16) for path in (one, other))
  return a.shape == b.shape and abs(a - b).max() <= 1


def read_until(process, pattern):
  """Reads what a process says until a line matches."""
  said = []
  for line in process.stdout:
    said.append(line)
    if re.search(pattern, line):
      return said
  raise AssertionError(f"{''.join(said)}\n{process.stderr.read()}")


def test_sixty_images_on_two_nodes_of_which_one_is_lost(weights, tmp_path):
  """All are done, but for one that is poison; the next run does nothing."""
  save_images(tmp_path / "in", 60)
  poison = tmp_path / "in/31.png"
  poison.write_bytes(poison.read_bytes()[:300])
  words = weights, "in", "-o", "out"
  with nodes({}, {}) as (cluster, (_, lost)):
    options = "--ray-address", cluster.address, "--ray-workers", "2:2"
    process = start(*words, *options, cwd=tmp_path)
    said = read_until(process, r"out/\d\d\.png  80 x 96")
    cluster.remove_node(lost, allow_graceful=False)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1, err
    said = "".join(said) + out
    assert err.count("\n") == 1
    assert err.startswith(f"error: {poison}: ")
    # Nothing of Ray's own between ours.
    assert all(
      re.match(r"note: |out/\d\d\.png  80 x 96, |59 images, ", line)
      for line in said.splitlines()
    ), said
    rows = rows_of(tmp_path / "out/manifest.parquet")
    assert len(rows) == 60
    assert [name for name, row in rows.items() if row["error"]] == ["31.png"]
    for name, row in rows.items():
      if name == "31.png":
        continue
      assert (row["result"], row["width"], row["height"]) == (name, 80, 96)
      assert row["bytes"] == (tmp_path / "out" / name).stat().st_size
      assert row["seconds"] >= 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
      "manifest.parquet",
      *(name for name in rows if name != "31.png"),
    }

    # Again: what is done stays; what is another, or gone, is done.
    (tmp_path / "out/00.png").unlink()
    (tmp_path / "out/01.png").write_bytes(b"cut sh")
    save = PilImage.new("RGB", (9, 7), "red").save
    save(tmp_path / "in/02.png")
    save(poison)
    before = (tmp_path / "out/03.png").stat()
    status, out, err = run(*words, *options[:2], cwd=tmp_path)
    assert (status, err) == (0, "")
    assert re.search(r"4 images, .*; 56 done before\n$", out), out
    assert (tmp_path / "out/03.png").stat() == before

  alone = tmp_path / "alone"
  run_plain(weights, "in", "-o", alone, cwd=tmp_path)
  for name in rows:
    assert same_pixels(tmp_path / "out" / name, alone / name), name


PICKY = """
import os

with open(os.environ["LOADED"], "a") as file:
  file.write(os.environ.get("DEVICE", "none") + "\\n")
if os.environ.get("DEVICE") == "broken":
  raise RuntimeError("its device is lost")
"""


def test_unequal_nodes_of_which_one_cannot_load_the_model(weights, tmp_path):
  """The large one has one worker; no image is given to the other."""
  save_images(tmp_path / "in", 6)
  (tmp_path / "picky.py").write_text(PICKY)
  more = {"LOADED": str(tmp_path / "loaded")}
  words = "in", "-o", "out", "--plugin", "picky.py"
  with nodes(more | {"DEVICE": "broken"}) as (cluster, _):
    cluster.add_node(num_cpus=4, env_vars=more | {"DEVICE": "whole"})
    words = *words, "--ray-address", cluster.address
    status, out, err = run(weights, *words, cwd=tmp_path, **more)
  assert (status, err) == (0, ""), out
  assert re.search(r"\n6 images, ", out), out
  assert out.count(" did not come up: its device is lost\n") == 1
  loaded = (tmp_path / "loaded").read_text().split()
  assert loaded.count("none") == loaded.count("whole") == 1
  assert 1 <= loaded.count("broken") <= 3


KILLER = """
import os
from esrgan_jax import images

read = images.read_image

def read_or_die(path, **options):
  if os.path.basename(path) == "2.png":
    os.kill(os.getpid(), 9)
  return read(path, **options)

images.read_image = read_or_die
"""


@pytest.mark.slow
def test_an_image_that_kills_workers_is_found_out(weights, tmp_path):
  """On a cluster of its own, which listens to nobody and leaves nothing."""
  import psutil

  save_images(tmp_path / "in", 5, size=(9, 7))
  for path in (tmp_path / "in").iterdir():
    path.rename(path.with_name(path.name[1:]))
  (tmp_path / "killer.py").write_text(KILLER)
  (tmp_path / "t").mkdir()
  process = start(
    weights,
    "in",
    "-o",
    "out",
    "--plugin",
    "killer.py",
    cwd=tmp_path,
    TMPDIR=str(tmp_path / "t"),
  )
  said = read_until(process, "a worker on .* ended")
  started = psutil.Process(process.pid).children(recursive=True)
  assert {"raylet", "gcs_server"} <= {each.name() for each in started}
  listening = {
    each.laddr.ip
    for one in started
    for each in one.net_connections("tcp")
    if each.status == psutil.CONN_LISTEN
  }
  assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
  out, err = process.communicate(timeout=LIMIT)
  said = "".join(said) + out
  assert process.returncode == 1
  assert re.fullmatch(
    r"error: /.*/in/2\.png: 3 workers ended while they were at it, .*\n", err
  )
  assert said.count(" ended (") == 3
  assert re.search(r"\n4 images, .*; 1 failed\n$", said), said
  rows = rows_of(tmp_path / "out/manifest.parquet")
  assert {name for name, row in rows.items() if row["result"]} == {
    f"{n}.png" for n in (0, 1, 3, 4)
  }
  assert not any((tmp_path / "t").iterdir())
  _, left = psutil.wait_procs(started, timeout=20)
  assert not left


@contextlib.contextmanager
def bucket():
  """A server of S3's kind in this process; what clients need to reach it."""
  import boto3
  from moto.server import ThreadedMotoServer

  server = ThreadedMotoServer(port=0, verbose=False)
  server.start()
  try:
    _, port = server.get_host_and_port()
    more = {
      "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
      "AWS_ACCESS_KEY_ID": "anybody",
      "AWS_SECRET_ACCESS_KEY": "anything",
      "AWS_EC2_METADATA_DISABLED": "true",
    }
    client = boto3.client(
      "s3",
      endpoint_url=more["AWS_ENDPOINT_URL"],
      region_name="us-east-1",
      aws_access_key_id="anybody",
      aws_secret_access_key="anything",
    )
    client.create_bucket(Bucket="photos")
    yield client, more
  finally:
    server.stop()


@contextlib.contextmanager
def tiny_disk(folder):
  """A disk of 16 KB; where none may be mounted, the test is left out."""
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("no disk may be mounted here")
  try:
    yield str(folder)
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_bucket_and_a_node_whose_disk_is_full(weights, tmp_path):
  save_images(tmp_path / "in", 12, size=(40, 40))
  with bucket() as (client, more), tiny_disk(tmp_path / "tiny") as tiny:
    for path in sorted((tmp_path / "in").iterdir()):
      client.upload_file(str(path), "photos", f"in/deep/{path.name}")
    client.put_object(Bucket="photos", Key="in/poison.png", Body=b"\x89PNG")
    client.put_object(Bucket="photos", Key="in/.hidden.png", Body=b"")
    words = "s3://photos/in", "--recursive", "-o", "s3://photos/out"
    with nodes(more | {"TMPDIR": tiny}, more) as (cluster, _):
      words = *words, "--ray-address", cluster.address
      status, out, err = run(weights, *words, cwd=tmp_path, **more)
      assert status == 1
      assert re.fullmatch(r"error: s3://photos/in/poison\.png: .*\n", err), err
      assert re.search("gets no more images: .*No space left on device", out)
      assert re.search(r"\n12 images, .*; 1 failed\n$", out)
      found = client.list_objects_v2(Bucket="photos", Prefix="out/")
      # Arrow leaves a mark where it has deleted a folder.
      assert {each["Key"] for each in found["Contents"]} - {"out/"} == {
        "out/manifest.parquet",
        *(f"out/deep/{n:02}.png" for n in range(12)),
      }
      client.delete_object(Bucket="photos", Key="in/poison.png")
      client.delete_object(Bucket="photos", Key="out/deep/03.png")
      status, out, err = run(weights, *words, cwd=tmp_path, **more)
      assert (status, err) == (0, "")
      assert re.search(r"1 image, .*; 11 done before\n$", out), out
    client.download_file("photos", "out/manifest.parquet", str(tmp_path / "m"))
    client.download_file("photos", "out/deep/03.png", str(tmp_path / "3.png"))
  rows = rows_of(tmp_path / "m")
  assert {row["result"] for row in rows.values()} == {
    None,
    *(f"deep/{n:02}.png" for n in range(12)),
  }
  run_plain(weights, "in/03.png", "-o", "alone.png", cwd=tmp_path)
  assert same_pixels(tmp_path / "alone.png", tmp_path / "3.png")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("number", "status"), [("SIGKILL", -9), ("SIGINT", 130), ("SIGTERM", 143)]
)
def test_a_driver_that_is_ended_is_taken_over(
  weights, tmp_path, number, status
):
  """Its results are there, and no manifest that tells of all of them."""
  import psutil
  import ray  # noqa: F401 (For its psutil.)

  save_images(tmp_path / "in", 24)
  scratch = tmp_path / "t"
  scratch.mkdir()
  process = start(weights, "in", "-o", "out", cwd=tmp_path, TMPDIR=str(scratch))
  read_until(process, r"out/\d\d\.png")
  begun = psutil.Process(process.pid).children(recursive=True)
  process.send_signal(getattr(signal, number))
  process.communicate()
  assert process.returncode == status
  assert len(begun) > 2
  if number != "SIGKILL":
    dead = psutil.STATUS_ZOMBIE  # That nobody has asked for yet.
    there = [each for each in begun if each.is_running()]
    assert [each for each in there if each.status() != dead] == []
    assert not [*scratch.glob(".esrgan_jax.*.part")]
  made = {path.name for path in (tmp_path / "out").glob("*.png")}
  status, out, err = run(weights, "in", "-o", "out", cwd=tmp_path)
  assert (status, err) == (0, "")
  done = int(re.search(r"; (\d+) done before\n$", out)[1])
  assert 1 <= len(made) <= done < 24
  assert len(rows_of(tmp_path / "out/manifest.parquet")) == 24
  assert not [*(tmp_path / "out").glob(".*")]


def test_the_kubernetes_manifest_keeps_its_schema():
  """kubectl refuses what the operator's schema does not know."""
  import jsonschema
  import yaml

  schema = json.loads((ROOT / "tests/goldens/rayjob_schema.json").read_text())
  (job,) = yaml.safe_load_all((ROOT / "launch/ray_job.yaml").read_text())
  validator = jsonschema.Draft202012Validator(schema)
  assert [error.message for error in validator.iter_errors(job)] == []
  cluster = job["spec"]["rayClusterSpec"]
  assert cluster["authOptions"]["mode"] == "token"
  (group,) = cluster["workerGroupSpecs"]
  assert f"--ray-workers 1:{group['maxReplicas']}" in job["spec"]["entrypoint"]
  for wrong in ({"replica": 1}, {"replicas": "one"}, {"groupName": None}):
    group |= wrong
    assert [*validator.iter_errors(job)]
    group |= {"groupName": "gpu", "replicas": 1}
    group.pop("replica", None)


STANDS_IN = """#!/usr/bin/env bash
while [[ ${1-} == --* ]]; do shift; done
exec "$@"
"""


@pytest.mark.slow
def test_the_slurm_script_runs_the_command_on_a_cluster(weights, tmp_path):
  """SLURM's commands are stand-ins, for a job of one node; Ray is not."""
  save_images(tmp_path / "in", 3)
  (tmp_path / "bin").mkdir()
  for name, text in {
    "srun": STANDS_IN,
    "scontrol": "#!/usr/bin/env bash\necho localhost\n",
    "hostname": "#!/usr/bin/env bash\necho 127.0.0.1\n",
  }.items():
    (tmp_path / "bin" / name).write_text(text)
    (tmp_path / "bin" / name).chmod(0o755)
  path = [tmp_path / "bin", pathlib.Path(sys.executable).parent]
  path.append(os.environ["PATH"])
  with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
    done = subprocess.run(
      [
        "bash",
        ROOT / "launch/ray_slurm.sbatch",
        "in",
        "-o",
        "out",
        "-m",
        weights,
      ],
      env=environ(
        PATH=os.pathsep.join(map(str, path)),
        RAY_TMPDIR=scratch,
        SLURM_JOB_ID="77",
        SLURM_JOB_NUM_NODES="1",
        SLURM_JOB_NODELIST="localhost",
        SLURM_CPUS_PER_TASK="2",
      ),
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=LIMIT,
      check=False,
    )
  assert done.returncode == 0, done.stdout + done.stderr
  assert re.search(r"\n3 images, .* on 1 machine\n", done.stdout), done.stdout
  assert len(rows_of(tmp_path / "out/manifest.parquet")) == 3
