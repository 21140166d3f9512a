"""What a worker does, and what OUT tells of it afterwards; no Ray needed."""

import concurrent.futures
import dataclasses
import json
import pickle
import resource
import sys
import threading

import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import __main__, storage
from esrgan_jax.cluster import engine, manifest, places, worker
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
  assert __main__.main(["upscale", *words]) == 1
  captured = capsys.readouterr()
  assert message in captured.err
  assert captured.err.count("\n") == 1


def test_without_ray_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "ray", None)
  words = ["upscale", "a.png", "--engine", "ray", "-o", str(tmp_path)]
  assert __main__.main(words) == 1
  assert capsys.readouterr().err == (
    "error: --engine ray takes ray, which is not installed: pip install"
    " 'esrgan-jax[ray]'\n"
  )
