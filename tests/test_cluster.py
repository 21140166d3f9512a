"""What a worker does, and what OUT tells of it afterwards; no Ray needed."""

import concurrent.futures
import dataclasses
import errno
import itertools
import json
import os
import pathlib
import pickle
import resource
import sys
import threading
import types

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import __main__, storage
from esrgan_jax.cluster import driver, engine, manifest, places, worker
from esrgan_jax.upscaling import files, names
from tests.test_upscaler import make_model


@pytest.fixture(scope="module")
def model():
  return make_model(num_feat=4, num_grow_ch=2)


@pytest.fixture
def here(tmp_path, monkeypatch):
  """Images of several kinds; one of them is cut short."""
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  random = np.random.default_rng(0)
  folder = tmp_path / "images"
  (folder / "deep").mkdir(parents=True)
  for name, size in (("a.png", (13, 9)), ("deep/b.jpg", (24, 16))):
    pixels = random.integers(0, 256, (*size, 3), np.uint8)
    PilImage.fromarray(pixels).save(folder / name)
  frames = [PilImage.new("RGB", (12, 10), (90 * n, 0, 99)) for n in range(3)]
  frames[0].save(
    folder / "c.gif", save_all=True, append_images=frames[1:], duration=50
  )
  whole = (folder / "deep/b.jpg").read_bytes()
  (folder / "poison.jpg").write_bytes(whole[: len(whole) // 2])
  return tmp_path


def job_of(here, **changes):
  naming = names.Naming(model="tiny", model_scale=4)
  changes = {"model_digest": "0", "naming": naming} | changes
  settings = files.Settings(record="esrgan_jax, tiny")
  return worker.Job(
    run="run", out=str(here / "out"), settings=settings, **changes
  )


def images_of(here, **changes):
  found = engine.find_sources(
    [str(here / "images")], recursive=True, out=str(here / "out")
  )
  assert not found.problems
  return [
    worker.Image(n, each.address, each.below, each.size, **changes)
    for n, each in enumerate(found.found)
  ]


def run(job, images, model):
  """Replies by the names of images."""
  replies = worker.Worker(job, pickle.dumps(model)).run(images)
  return {
    images[reply.number].address.rpartition("/")[2]: reply for reply in replies
  }


def test_a_worker_makes_what_the_command_makes(here, model, monkeypatch):
  job = job_of(here)
  replies = run(job, images_of(here), model)
  states = {name: reply.state for name, reply in replies.items()}
  made = dict.fromkeys(("a.png", "b.jpg", "c.gif"), "made")
  assert states == made | {"poison.jpg": "failed"}
  poison = replies["poison.jpg"].row
  assert poison.error.startswith(str(here / "images/poison.jpg"))
  assert poison.result is None
  assert replies["c.gif"].row.frames == 3
  assert replies["b.jpg"].row.result == "deep/b.jpg"

  alone = here / "alone"
  jobs = [
    files.Job(here / "images" / name, alone / name, frames=frames)
    for name, frames in (("a.png", 1), ("deep/b.jpg", 1), ("c.gif", 3))
  ]
  for _, outcome in files.upscale_files(model, jobs, job.settings):
    assert isinstance(outcome, files.Done)
  assert places.sizes_below(str(alone)).keys() == {
    name
    for name in places.sizes_below(job.out)
    if not name.startswith(manifest.ASIDE)
  }
  for each in jobs:
    result = here / "out" / each.target.relative_to(alone)
    assert result.read_bytes() == each.target.read_bytes()


def test_what_is_done_is_done_again_if_anything_is_another(here, model):
  images = images_of(here)[:1]
  first = run(job_of(here), images, model)["a.png"].row

  def again(job, path=None, **changes):
    image = dataclasses.replace(images[0], known=first.digest, **changes)
    return run(job, [image], model)["a.png"].state

  assert again(job_of(here)) == "same"
  before = (here / "out/a.png").read_bytes()
  for job in (
    job_of(here, model_digest="1"),
    job_of(here, naming=names.Naming(suffix="", format=None, alpha=0.5)),
  ):
    # It is there, and nobody has said whose it is.
    assert again(job) == "failed"
    assert (here / "out/a.png").read_bytes() == before
    assert again(job, own=("a.png",)) == "made"
  assert again(job_of(here, skip_existing=True, model_digest="1")) == "left"
  quality = dataclasses.replace(job_of(here).settings, quality=9)
  changed = dataclasses.replace(job_of(here), settings=quality)
  assert again(changed, own=("a.png",)) == "made"
  silent = dataclasses.replace(job_of(here).settings, max_pixels=10**9)
  assert again(dataclasses.replace(job_of(here), settings=silent)) == "same"
  PilImage.new("RGB", (9, 9)).save(here / "images/a.png")
  assert again(job_of(here), own=("a.png",)) == "made"


def test_an_image_that_another_worker_had_or_has(here, model):
  """What that made of it, or makes of it now, is in nobody's way."""
  job = job_of(here)
  image = images_of(here)[0]
  again = dataclasses.replace(image, again=True)
  out = here / "out/a.png"
  # It had done everything, and ended before it said so.
  assert run(job, [image], model)["a.png"].state == "made"
  before = out.read_bytes()
  for changes in {}, {"skip_existing": True}:
    each = dataclasses.replace(job, **changes)
    assert run(each, [again], model)["a.png"].state == "made"
  # A file without a row of this run is somebody's.
  other = dataclasses.replace(job, run="other")
  assert run(other, [again], model)["a.png"].state == "failed"
  assert out.read_bytes() == before


def test_two_workers_at_the_same_image(here, model, monkeypatch):
  """One was given up, and is not dead: it ends no earlier than the other."""
  job = job_of(here)
  image = images_of(here)[0]
  images = image, dataclasses.replace(image, again=True)
  out = here / "out/a.png"
  publish, both = places.publish, threading.Barrier(2, timeout=60)

  def publish_together(*args, **options):
    both.wait()
    publish(*args, **options)

  monkeypatch.setattr(places, "publish", publish_together)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = pool.map(lambda each: run(job, [each], model)["a.png"], images)
    given_up, other = found
  assert other.state == "made"
  # Nobody listens to this one.
  assert given_up.state in ("made", "failed")
  row = manifest.from_json(
    places.read(manifest.row_file(job.out, job.run, image.number))
  )
  assert row.bytes == other.row.bytes == out.stat().st_size
  assert {*places.sizes_below(job.out)} == {
    "a.png",
    manifest.row_file("", job.run, image.number).lstrip("/"),
  }


def test_rows_of_a_worker_that_said_nothing_are_taken_over(here, model):
  """They are there before the results; what has no result is not believed."""
  job = job_of(here)
  images = images_of(here)
  replies = run(job, images, model)
  out = here / "out"
  (out / "c.gif").unlink()
  torn = out / manifest.run_folder("", job.run)[1:] / "rows/99.json"
  torn.write_bytes(b'{"input": "a')
  rows = {}
  left = manifest.take_over(job.out, rows, places.sizes_below(job.out))
  assert left == [manifest.run_folder(job.out, job.run)]
  assert [*rows.values()] == [replies["a.png"].row, replies["b.jpg"].row]
  manifest.write(job.out, rows.values())
  assert manifest.read(job.out) == rows
  import pyarrow.parquet as pq

  table = pq.read_table(out / manifest.NAME)
  assert {"input", "result", "bytes", "seconds", "error"} <= {
    *table.column_names
  }


class _Killed(BaseException):
  """As an interrupt, a signal, the end of a process."""


def command(here, model, monkeypatch, job=None, stop=None, of="images"):
  """States by the names of images, by a command with a worker of this process.

  Args:
    of: What is upscaled.
    stop: Raised after its first word, when it has done all of it.
  """

  def in_process(images, job, model, workers, *, notify):
    replies = list(worker.Worker(job, model).run(images))
    if stop:
      yield replies[0]
      raise stop
    yield from replies

  monkeypatch.setattr(driver, "upscale", in_process)
  job = job or job_of(here)
  found = engine.find_sources([str(here / of)], recursive=True, out=job.out)
  return {
    source.address.rpartition("/")[2]: reply.state
    for source, reply in engine.upscale(
      found.found, model, job, driver.Workers(), notify=print
    )
  }


@pytest.mark.parametrize(
  "stop", [_Killed(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_what_was_done_and_not_heard_of_is_done(here, model, monkeypatch, stop):
  """A command that is ended, or whose manifest finds no room."""
  write, full = manifest.write, isinstance(stop, OSError)

  def write_or_not(out, rows):
    if full and pathlib.Path(out, "a.png").exists():
      raise stop
    write(out, rows)

  monkeypatch.setattr(manifest, "write", write_or_not)
  with pytest.raises(type(stop)):
    command(here, model, monkeypatch, stop=None if full else stop)
  made = places.sizes_below(str(here / "out"))
  assert {"a.png", "deep/b.jpg", "c.gif"} <= {*made}
  monkeypatch.setattr(manifest, "write", write)
  states = command(here, model, monkeypatch)
  done = dict.fromkeys(("a.png", "b.jpg", "c.gif"), "same")
  assert states == done | {"poison.jpg": "failed"}
  assert not [*(here / "out").glob(".*")]


def test_one_command_at_a_time_writes_to_a_folder(here, model, monkeypatch):
  job = job_of(here)
  live = here / "out" / manifest.run_folder("", "other")[1:] / "rows"
  with places.claimed(job.out):
    live.mkdir(parents=True)
    (live / "0.json").write_text("{}")
    with pytest.raises(
      OSError, match="out: another command writes there; wait"
    ):
      command(here, model, monkeypatch)
    assert (live / "0.json").exists()
  assert command(here, model, monkeypatch)["a.png"] == "made"
  assert not [*(here / "out").glob(".*")]


def test_a_result_of_several_files_among_others(here, model, monkeypatch):
  """Those of another format, and what a desktop leaves."""
  for path in (here / "images").rglob("*.*"):
    if path.name != "c.gif":
      path.unlink()
  jobs = [
    job_of(here, naming=names.Naming(model="t", model_scale=4, format=suffix))
    for suffix in ("bmp", "jpg")
  ]
  assert command(here, model, monkeypatch, jobs[0]) == {"c.gif": "made"}
  assert command(here, model, monkeypatch, jobs[1]) == {"c.gif": "made"}
  (here / "out/c/.DS_Store").write_bytes(b"of a desktop")
  (row,) = manifest.read(jobs[1].out).values()
  assert (row.result, row.files) == ("c", 3)
  there = places.sizes_of(jobs[1].out, "c")
  assert len(there) == 7
  assert manifest.Contents(there).has_result_of(row)
  assert command(here, model, monkeypatch, jobs[1]) == {"c.gif": "same"}
  for path in (here / "out/c").glob("*.jpg"):
    path.unlink()
  (here / "out/c/.DS_Store").unlink()
  (here / "out/c/c_0003.bmp").unlink()
  assert command(here, model, monkeypatch, jobs[1]) == {"c.gif": "made"}

  # Killed when some of them have their names.
  for path in (here / "out").rglob("*.*"):
    if path.is_file():
      path.unlink()
  publish, count = places.publish, itertools.count()

  def publish_two(*args, **options):
    if next(count) == 2:
      raise _Killed
    publish(*args, **options)

  with monkeypatch.context() as patch:
    patch.setattr(places, "publish", publish_two)
    with pytest.raises(_Killed):
      command(here, model, patch, jobs[0])
  assert len([*(here / "out/c").iterdir()]) == 2
  assert command(here, model, monkeypatch, jobs[0]) == {"c.gif": "made"}
  assert len([*(here / "out/c").iterdir()]) == 3

  # And not killed.
  count = itertools.count()

  def publish_one(*args, **options):
    if next(count) == 1:
      raise ValueError("no more")
    publish(*args, **options)

  for path in (here / "out").rglob("*.*"):
    if path.is_file():
      path.unlink()
  with monkeypatch.context() as patch:
    patch.setattr(places, "publish", publish_one)
    assert command(here, model, patch, jobs[0]) == {"c.gif": "failed"}
  (row,) = manifest.read(jobs[0].out).values()
  assert (row.result, row.earlier) == (None, "c")
  assert command(here, model, monkeypatch, jobs[0]) == {"c.gif": "made"}


def test_a_result_as_large_as_the_one_before_it(here, model, monkeypatch):
  """BMP: killed between its row and its name, it is not taken for done."""
  for path in (here / "images").rglob("*.*"):
    if path.name != "a.png":
      path.unlink()
  naming = names.Naming(model="t", model_scale=4, format="bmp")
  job, out = job_of(here, naming=naming), here / "out/a.bmp"
  assert command(here, model, monkeypatch, job) == {"a.png": "made"}
  before = out.read_bytes()
  other = make_model(1, num_feat=4, num_grow_ch=2)

  def publish(*_, **__):
    raise _Killed

  with monkeypatch.context() as patch:
    patch.setattr(places, "publish", publish)
    with pytest.raises(_Killed):
      command(here, other, patch, job)
  ((folder, number),) = [
    (path.parent.parent.name, int(path.stem))
    for path in (here / "out").glob(".*/rows/*")
  ]
  run = folder.removeprefix(manifest.ASIDE)
  assert manifest.is_aside(job.out, run, number, "a.bmp")
  assert not manifest.is_aside(job.out, run, number + 1, "a.bmp")
  assert out.read_bytes() == before
  assert command(here, other, monkeypatch, job) == {"a.png": "made"}
  assert len(out.read_bytes()) == len(before)
  assert out.read_bytes() != before


@pytest.mark.runtimes
def test_a_zarr_is_replaced_whole(here, model, monkeypatch):
  import zarr

  for path in (here / "images").rglob("*.*"):
    if path.name != "a.png":
      path.unlink()
  naming = names.Naming(model="t", model_scale=4, format="zarr")
  job = job_of(here, naming=naming)
  assert command(here, model, monkeypatch, job) == {"a.png": "made"}
  result = here / "out/a.zarr"
  assert zarr.open_array(result, mode="r")[...].any()
  assert command(here, model, monkeypatch, job) == {"a.png": "same"}
  PilImage.new("RGB", (9, 13)).save(here / "images/a.png")
  black = jax.tree.map(np.zeros_like, model.params)
  black = type(model)(model.net, black, name="black")
  # What is all zero has no file.
  assert command(here, black, monkeypatch, job) == {"a.png": "made"}
  assert not zarr.open_array(result, mode="r")[...].any()
  # That of somebody stays, whatever is asked for.
  manifest.write(job.out, [])
  (result / "mine").touch()
  asked = dataclasses.replace(job, overwrite=True)
  assert command(here, model, monkeypatch, asked) == {"a.png": "failed"}
  assert (result / "mine").exists()


@pytest.mark.runtimes
def test_a_zarr_is_an_image(here, model, monkeypatch):
  import zarr

  pixels = np.random.default_rng(0).integers(0, 256, (13, 9, 3), np.uint8)
  source = here / "a.zarr"
  array = zarr.create_array(
    source, shape=pixels.shape, dtype="uint8", chunks=(8, 8, 3)
  )
  array[...] = pixels
  job = job_of(here, naming=names.Naming(model="t", model_scale=4))
  words = here, model, monkeypatch, job
  assert command(*words, of="a.zarr") == {"a.zarr": "made"}
  (row,) = manifest.read(job.out).values()
  result = zarr.open_array(here / "out" / row.result, mode="r")
  assert result.shape == (52, 36, 3)
  assert result[...].any()
  assert command(*words, of="a.zarr") == {"a.zarr": "same"}
  array[12, 8] = 255 - pixels[12, 8]
  assert command(*words, of="a.zarr") == {"a.zarr": "made"}


def test_what_a_disk_keeps_from_others_is_asked_anew(tmp_path, monkeypatch):
  """NFS may tell what it knew of a file, until that is opened."""
  path = tmp_path / "a.png"
  path.write_bytes(b"before")
  stat, stale = os.stat, os.stat(path)
  path.write_bytes(b"of another machine")

  def stat_of_before(name, **options):
    return stale if str(name) == str(path) else stat(name, **options)

  monkeypatch.setattr(os, "stat", stat_of_before)
  assert places.size_of(str(path)) == 18
  assert places.sizes_of(str(tmp_path), "a.png") == {"a.png": 18}
  assert places.sizes_of(str(tmp_path.parent), tmp_path.name) == {
    f"{tmp_path.name}/a.png": 18
  }


def test_errors_of_devices_are_of_the_machine(here, model, monkeypatch):
  error = jax.errors.JaxRuntimeError("INTERNAL: the device is lost")

  def broken(model, jobs, settings):
    for job in jobs:
      yield job, error

  monkeypatch.setattr(files, "upscale_files", broken)
  replies = run(job_of(here), images_of(here)[:1], model)
  assert replies["a.png"].state == "trouble"


class _Ray:
  """Stands in for Ray: its machines' workers run here, and answer at once.

  Args:
    cpus: Of each machine, by name.
    broken: Machines on which no model is loaded.
  """

  def __init__(self, cpus, broken=()):
    self._cpus, self._free, self._broken = cpus, dict(cpus), broken
    self.started = []
    self.here = self.never = object()
    self.exceptions = types.SimpleNamespace(
      **{
        name: type(name, (Exception,), {})
        for name in (
          "RayError",
          "ActorUnavailableError",
          "ActorUnschedulableError",
        )
      }
    )

  def nodes(self):
    return [
      {"NodeID": name, "Alive": True, "Resources": {"CPU": count}}
      for name, count in self._cpus.items()
    ]

  def get_runtime_context(self):
    return types.SimpleNamespace(get_node_id=lambda: self.here)

  def put(self, value):
    return value

  get = put

  def remote(self, cls):
    return types.SimpleNamespace(
      options=lambda **options: types.SimpleNamespace(
        remote=lambda *args: _Actor(self, cls, args, options)
      )
    )

  def wait(self, references, num_returns, timeout):
    ready = [each for each in references if each is not self.never]
    return ready[:num_returns], references

  def kill(self, actor):
    self._free[actor.node] += actor.cpus
    actor.cpus = 0

  def place(self, num_cpus, strategy):
    wanted = getattr(strategy, "node_id", None)
    for name, free in self._free.items():
      if free >= num_cpus and wanted in (None, name):
        self._free[name] -= num_cpus
        self.started.append((name, num_cpus))
        return name
    return None

  def is_broken(self):
    return self.here in self._broken


class _Actor:
  """A worker of such a machine."""

  def __init__(self, ray, cls, args, options):
    self.cpus = options["num_cpus"]
    self.node = ray.place(self.cpus, options.get("scheduling_strategy"))
    self._ray, self._actor = ray, cls(*args)
    self.hello = types.SimpleNamespace(remote=self._hello)
    self.run = types.SimpleNamespace(
      options=lambda **_: types.SimpleNamespace(remote=self._run)
    )

  def _hello(self):
    if self.node is None:
      return self._ray.never  # It waits for room.
    self._ray.here = self.node
    return self._actor.hello()

  def _run(self, images):
    self._ray.here = self.node
    return iter([*self._actor.run(images)])


@pytest.fixture
def ray_of(monkeypatch):
  """Has a cluster of such machines in place of Ray."""

  def make(cpus, broken=()):
    ray = _Ray(cpus, broken)
    strategies = types.SimpleNamespace(
      NodeAffinitySchedulingStrategy=lambda node, soft: types.SimpleNamespace(
        node_id=node
      )
    )
    for name, module in {
      "ray": ray,
      "ray.util": types.SimpleNamespace(scheduling_strategies=strategies),
    }.items():
      monkeypatch.setitem(sys.modules, name, module)
    load = worker.Worker._load

    def load_or_not(self):
      if ray.is_broken():
        raise RuntimeError("no device here")
      return load(self)

    monkeypatch.setattr(worker.Worker, "_load", load_or_not)
    return ray

  return make


def on_cluster(here, model, most=None):
  """Replies' states by the names of images, and what was told."""
  told, images = [], images_of(here)
  replies = driver.upscale(
    images,
    job_of(here),
    pickle.dumps(model),
    driver.Workers(most=most),
    notify=told.append,
  )
  return {
    images[reply.number].address.rpartition("/")[2]: reply.state
    for reply in replies
  }, told


ALL = dict.fromkeys(("a.png", "b.jpg", "c.gif"), "made") | {
  "poison.jpg": "failed"
}


@pytest.mark.parametrize("most", [None, 1])
def test_a_machine_that_cannot_load_the_model_gets_no_images(
  here, model, ray_of, most
):
  ray = ray_of({"good": 2, "bad": 4}, broken={"bad"})
  states, told = on_cluster(here, model, most)
  assert states == ALL
  assert len(told) == 1
  assert told[0].endswith("did not come up: no device here")
  assert 1 <= ray.started.count(("bad", 4)) <= 3


def test_a_model_that_no_machine_loads_ends_the_command(here, model, ray_of):
  ray = ray_of({"one": 2, "other": 2}, broken={"one", "other"})
  with pytest.raises(RuntimeError, match="no worker comes up: no device here"):
    on_cluster(here, model)
  assert len(ray.started) == 6
  assert not [*(here / "out").rglob("*.json")]


def test_one_worker_a_machine_however_many_cpus_it_has(here, model, ray_of):
  ray = ray_of({"large": 64, "small": 2, "none": 0})
  states, told = on_cluster(here, model)
  assert (states, told) == (ALL, [])
  assert sorted(ray.started) == [("large", 64), ("small", 2)]


def test_a_file_that_is_no_manifest_is_named_and_kept(here):
  out = here / "out"
  out.mkdir()
  assert manifest.read(str(out)) == {}
  (out / manifest.NAME).write_text("mine")
  with pytest.raises(ValueError, match="no manifest of this program"):
    manifest.read(str(out))
  with pytest.raises(ValueError, match="no row"):
    manifest.from_json(json.dumps({"input": 3}).encode())
  with pytest.raises(ValueError, match="Expecting"):
    manifest.from_json(b"")


def test_a_full_disk_is_trouble_of_the_machine_and_leaves_nothing(here, model):
  job = job_of(here)
  [image] = images_of(here)[:1]
  limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
  try:
    reply = run(job, [image], model)["a.png"]
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
  assert (reply.state, reply.full) == ("trouble", True), reply.row.error
  assert "large" in reply.row.error
  assert not any(places.sizes_below(job.out))
  gone = dataclasses.replace(image, address=str(here / "images/gone.png"))
  reply = run(job, [gone], model)["gone.png"]
  assert (reply.state, reply.full) == ("trouble", False)


def test_moving_a_file_replaces_nothing_unasked(tmp_path):
  for name in ("new", "old"):
    (tmp_path / name).write_text(name)
  with pytest.raises(FileExistsError, match="exists already"):
    places.publish(tmp_path / "new", str(tmp_path / "old"), overwrite=False)
  assert (tmp_path / "old").read_text() == "old"
  storage.publish(tmp_path / "new", tmp_path / "old", overwrite=True)
  assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["a.png", "--ray-workers", "2"], "--ray-workers goes with --engine ray"),
    (["s3://bucket/a.png", "-o", "out"], "takes --engine ray"),
    (["a.png", "--engine", "ray"], "needs -o OUT"),
    (["-", "--engine", "ray", "-o", "out"], "no pipes"),
    (["a.png", "--engine", "ray", "-o", "b.png"], "b.png is a file's name"),
    (["here", "--engine", "ray", "-o", "here"], "is OUT as well"),
  ],
)
def test_what_does_not_go_together(
  words, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "here").mkdir()
  assert __main__.main(["upscale", *words]) == 2
  captured = capsys.readouterr()
  assert message in captured.err
  assert captured.err.count("\n") == 1


def test_without_ray_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "ray", None)
  words = ["upscale", "a.png", "--engine", "ray", "-o", str(tmp_path)]
  assert __main__.main(words) == 1
  (line,) = capsys.readouterr().err.splitlines()
  expected = (
    "error: --engine ray takes ray, which is not installed: pip install "
  )
  assert line.startswith(expected)
  assert "pyarrow" in line
