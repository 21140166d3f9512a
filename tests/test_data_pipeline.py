import gc
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from PIL import Image as PilImage

from esrgan_jax.data import draws, resident, sources
from esrgan_jax.data import pipeline as pipeline_lib
from esrgan_jax.data.sources import DataError

_SIZES = {"scale": 4, "batch_size": 8, "patch_size": 32}


@pytest.fixture
def pairs(tmp_path):
  """Six pairs whose pixels say where they are: LR row, LR column, image.

  The third channel of HR also counts the HR pixels within one of LR.
  """
  shapes = [(20, 30), (30, 20), (8, 8), (16, 17), (25, 25), (9, 40)]
  for number, (h, w) in enumerate(shapes):
    y, x = np.mgrid[: 4 * h, : 4 * w]
    inside = 4 * (y % 4) + x % 4
    hr = np.stack([y // 4, x // 4, 16 * number + inside], axis=-1)
    lr = hr[::4, ::4]
    for kind, array in (("hr", hr), ("lr", lr)):
      path = tmp_path / kind / f"{number}.png"
      path.parent.mkdir(exist_ok=True)
      PilImage.fromarray(array.astype(np.uint8)).save(path)
  return f"{tmp_path / 'hr'}::{tmp_path / 'lr'}"


def _open(pairs, tmp_path, *, mesh=None, sizes=None, **config):
  config = {"sources": (pairs,), "cache_dir": str(tmp_path / "c")} | config
  return pipeline_lib.open_data(config, mesh=mesh, **(_SIZES | (sizes or {})))


def _mesh(count):
  return Mesh(
    np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,)
  )


def _step(data):
  return jax.jit(
    lambda seed, step, raw: data.preprocess(
      jax.random.fold_in(jax.random.key(seed), step), raw
    )
  )


def _batches(data, steps, seed=7):
  """Preprocessed batches as they would be trained on, in 8-bit levels."""
  step_fn, out = _step(data), []
  with data.pipeline(seed) as pipeline:
    for step in steps:
      batch = step_fn(0, step, pipeline.batch(step))
      out.append({k: np.rint(np.asarray(v) * 255) for k, v in batch.items()})
  return out


def _assert_equal(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def _check_aligned(batch):
  """Proves that LR and HR show the same place, turned alike."""
  lr, hr = batch["lr"], batch["hr"]
  assert lr.shape[1:] == (8, 8, 3)
  assert hr.shape[1:] == (32, 32, 3)
  wide = lr.repeat(4, 1).repeat(4, 2)
  np.testing.assert_array_equal(hr[..., :2], wide[..., :2])
  np.testing.assert_array_equal(hr[..., 2] // 16, wide[..., 2] // 16)
  # Within each LR pixel, the corner of count 0 is where rows and columns of
  # LR begin to count.
  for image, small in zip(hr, lr, strict=True):
    cell = image[:4, :4, 2] % 16
    corner = np.unravel_index(np.argmin(cell), (4, 4))
    place = small[..., 0] + small[..., 1]
    start = np.unravel_index(np.argmin(place), place.shape)
    assert corner == (start[0] // 7 * 3, start[1] // 7 * 3)


@pytest.mark.parametrize("cache", pipeline_lib.CACHES)
def test_pairs_stay_aligned_and_all_is_seen(cache, pairs, tmp_path):
  data = _open(pairs, tmp_path, cache=cache, sizes={"batch_size": 48})
  assert data.report.images == 6
  assert data.report.problems == ()
  batches = _batches(data, range(4))
  for batch in batches:
    _check_aligned(batch)
  lr = np.concatenate([batch["lr"] for batch in batches])
  images = lr[:, 0, 0, 2] // 16
  assert (np.bincount(images.astype(int), minlength=6) == 32).all()
  # Image 0 is 20 x 30 and patches are 8: rows up to 19, columns up to 29.
  first = lr[images == 0]
  assert first[..., 0].max() >= 18
  assert first[..., 1].max() >= 25
  assert first[..., :2].min() == 0
  orientations = {
    (
      np.sign(i[1, 0] - i[0, 0]) @ [2, 1, 0],
      np.sign(i[0, 1] - i[0, 0]) @ [2, 1, 0],
    )
    for i in lr
  }
  assert len(orientations) == 8


def test_batches_are_those_of_the_draws(pairs, tmp_path):
  """Whichever the cache, the devices, the threads, and where it begins."""
  expected = []
  source = sources.open_source(pairs, scale=4)
  for step in range(5):
    drawn = draws.draw(7, step, batch_size=8, count=6)
    crops = [
      source.crop(image, place, 8)
      for image, place in zip(drawn.images, drawn.places, strict=True)
    ]
    lr, hr = map(np.stack, zip(*crops, strict=True))
    expected.append({"hr": hr, "lr": lr})
  for cache in pipeline_lib.CACHES:
    options = {"cache": cache, "augment": False}
    data = _open(pairs, tmp_path, num_threads=1, prefetch=1, **options)
    _assert_equal(_batches(data, range(5)), expected)
    _assert_equal(_batches(data, [3, 0]), [expected[i] for i in (3, 0)])
    other = _batches(data, [0], seed=8)[0]
    assert (other["lr"] != expected[0]["lr"]).any()
    mesh = _mesh(8)
    data = _open(
      pairs, tmp_path, mesh=mesh, num_threads=5, prefetch=4, **options
    )
    _assert_equal(_batches(data, range(2, 5)), expected[2:])


@pytest.mark.parametrize("cache", ["ram", "memmap", "device"])
def test_images_are_decoded_once_for_all_phases(pairs, tmp_path, cache):
  counts = []
  progress = {"progress": lambda *count: counts.append(count)}
  data = _open(pairs, tmp_path, cache=cache, sizes=progress)
  assert counts == [(i + 1, 6) for i in range(6)]
  expected = _batches(data, [0], seed=1)
  for kind in ("hr", "lr"):
    shutil.rmtree(tmp_path / kind)
  _assert_equal(_batches(data, [0], seed=1), expected)
  other = _batches(data, [0], seed=2)
  assert (other[0]["hr"] != expected[0]["hr"]).any()
  assert len(counts) == 6


@pytest.mark.parametrize("cache", pipeline_lib.CACHES)
def test_eight_devices_turn_the_batch_as_one_does(cache, pairs, tmp_path):
  batches = []
  for mesh in (None, _mesh(1), _mesh(8)):
    data = _open(pairs, tmp_path, cache=cache, mesh=mesh)
    batches += _batches(data, [2])
    with data.pipeline(0) as pipeline:
      raw = pipeline.batch(0)
    abstract = data.abstract_batch
    assert jax.tree.structure(raw) == jax.tree.structure(abstract)
    for array, shape in zip(
      *map(jax.tree.leaves, (raw, abstract)), strict=True
    ):
      assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
      assert mesh is None or array.sharding == shape.sharding
  batch = _step(data)(0, 0, raw)
  assert len(batch["hr"].sharding.device_set) == 8
  assert batch["hr"].addressable_shards[0].data.shape == (1, 32, 32, 3)
  for got in batches[1:]:
    _assert_equal(got, batches[0])


def test_a_second_mesh_axis_gets_copies(pairs, tmp_path):
  mesh = Mesh(
    np.array(jax.devices()).reshape(4, 2),
    ("data", "model"),
    axis_types=(AxisType.Auto,) * 2,
  )
  plain = _batches(_open(pairs, tmp_path), [1])
  for cache in ("ram", "device"):
    data = _open(pairs, tmp_path, cache=cache, mesh=mesh)
    _assert_equal(_batches(data, [1]), plain)


def test_phases_share_what_is_decoded(pairs, tmp_path):
  data = _open(pairs, tmp_path)
  shutil.rmtree(pairs.split("::")[0])
  first, second = (_batches(data, [0], seed=seed)[0] for seed in (0, 1))
  assert (first["lr"] != second["lr"]).any()


def test_problems_are_skipped_or_stop(pairs, tmp_path):
  hr = pathlib.Path(pairs.split("::")[0])
  (hr / "4.png").write_bytes(b"garbage")
  (hr / "9.png").write_bytes((hr / "1.png").read_bytes())
  batches = []
  for cache in pipeline_lib.CACHES:
    options = {"cache": cache, "sizes": {"patch_size": 36}}
    data = _open(pairs, tmp_path, **options)
    assert data.report.images == 4
    names = [problem.name for problem in data.report.problems]
    assert names == ["9.png", "2.png", "4.png"]
    batches += _batches(data, [1])
    with pytest.raises(DataError, match=r"(?s)9\.png.*2\.png.*4\.png"):
      _open(pairs, tmp_path, on_problem="stop", **options)
    with pytest.raises(DataError, match="no image can be used"):
      _open(pairs, tmp_path, cache=cache, sizes={"patch_size": 400})
  for got in batches[1:]:
    _assert_equal(got, batches[0])


@pytest.mark.parametrize("damage", ["vanished", "shrunk"])
def test_a_stream_goes_on_without_what_vanishes(
  damage, pairs, tmp_path, caplog
):
  options = {"cache": "stream", "augment": False, "num_threads": 2}
  data = _open(pairs, tmp_path, **options)
  whole = _batches(data, range(3))
  hr, lr = map(pathlib.Path, pairs.split("::"))
  if damage == "vanished":
    (hr / "3.png").unlink()
  else:
    for folder, side in ((hr, 16), (lr, 4)):
      PilImage.new("RGB", (side, side)).save(folder / "3.png")
  source = sources.open_source(pairs, scale=4)
  less = _batches(data, range(3))
  for step, (got, before) in enumerate(zip(less, whole, strict=True)):
    drawn = draws.draw(7, step, batch_size=8, count=6)
    for row, (image, place) in enumerate(zip(*drawn, strict=True)):
      expected = {k: v[row] for k, v in before.items()}
      if image == 3:  # The next one takes its place.
        crop = source.crop(source.names.index("4.png"), place, 8)
        expected = crop._asdict()
      _assert_equal({k: v[row] for k, v in got.items()}, expected)
  assert [r.message.partition(":")[0] for r in caplog.records] == ["3.png"]
  with data.pipeline(7) as pipeline:
    shutil.rmtree(lr)
    with pytest.raises(DataError, match="6 images in a row cannot be read"):
      pipeline.batch(0)


def test_a_stream_stops_where_it_should(pairs, tmp_path):
  options = {"cache": "stream", "on_problem": "stop"}
  data = _open(pairs, tmp_path, **options)
  pathlib.Path(pairs.split("::")[0], "3.png").unlink()
  with (
    data.pipeline(7) as pipeline,
    pytest.raises(DataError, match=r"^3\.png: no such file.*on_problem"),
  ):
    list(map(pipeline.batch, range(2)))


def test_several_sources_are_drawn_by_image(pairs, tmp_path):
  folder = tmp_path / "white"
  folder.mkdir()
  for name in "ab":
    PilImage.new("RGB", (40, 40), "white").save(folder / f"{name}.png")
  sizes = {"batch_size": 16}
  data = _open(pairs, tmp_path, sources=f"{pairs},{folder}", sizes=sizes)
  assert data.report.images == 8
  (batch,) = _batches(data, [0])
  assert (batch["hr"] == 255).all(axis=(1, 2, 3)).sum() == 4


def test_validation_images_are_looked_at_first(pairs, tmp_path):
  hr = pathlib.Path(pairs.split("::")[0])
  (hr / "1.png").write_bytes(b"garbage")
  options = {"scale": 4, "smallest": 40}
  config = {"eval": f"sample_photos:held_out,{hr}"}
  calls = []
  source, report = pipeline_lib.open_evaluation(
    config, progress=lambda *call: calls.append(call), **options
  )
  assert len(calls) == 9
  assert source.names[2:] == ["rocket.jpg", "0.png", "3.png", "4.png"]
  assert [problem.name for problem in report.problems] == [
    "1.png",
    "2.png",
    "5.png",
  ]
  assert "smaller than the 40x40 that evaluation needs" in str(report)
  with pytest.raises(DataError, match=r"(?s)1\.png.*5\.png.*on_problem"):
    pipeline_lib.open_evaluation(config | {"on_problem": "stop"}, **options)
  with pytest.raises(DataError, match="no image can be used"):
    pipeline_lib.open_evaluation(config, scale=4, smallest=4000)
  assert pipeline_lib.open_evaluation({"eval": ""}, **options)[0] is None


def test_images_too_large_for_a_device_are_refused(
  pairs, tmp_path, monkeypatch
):
  monkeypatch.setattr(resident, "_memory_limit", lambda mesh: 1000)
  with pytest.raises(DataError, match=r'data\.cache="ram"'):
    _open(pairs, tmp_path, cache="device")


def test_waiting_is_measured_and_ends_with_prefetching():
  gate = threading.Event()

  def produce(step):
    if step == 0:
      time.sleep(0.05)
    elif step == 1:
      gate.set()
    return step

  with pipeline_lib.Pipeline(produce) as it:
    assert it.batch(0) == 0
    assert it.wait_seconds >= 0.05
    # Step 1 is made without being asked for.
    assert gate.wait(timeout=60)
    assert it.batch(1) == 1


def test_errors_of_the_thread_surface_at_their_step():
  failing = [True]

  def produce(step):
    if step == 2 and failing[0]:
      raise DataError("the disk is gone")
    return step

  with pipeline_lib.Pipeline(produce, prefetch=4) as it:
    assert [it.batch(0), it.batch(1)] == [0, 1]
    with pytest.raises(DataError, match="disk is gone"):
      it.batch(2)
    failing[0] = False
    assert [it.batch(2), it.batch(3)] == [2, 3]
    with pytest.raises(ValueError, match="step is -1"):
      it.batch(-1)


def test_threads_end_with_their_pipeline():
  def count():
    return sum(t.name == "esrgan-data" for t in threading.enumerate())

  before = count()
  it = pipeline_lib.Pipeline(lambda step: step)
  it.batch(0)
  it.batch(10)  # Elsewhere: the first thread has given way to another.
  assert count() == before + 1
  del it
  gc.collect()
  assert count() == before


@pytest.mark.parametrize(
  ("config", "sizes", "message"),
  [
    ({"chache": "ram"}, {}, "did you mean 'cache'"),
    ({"cache": "disk"}, {}, "ram memmap device stream"),
    ({"on_problem": "panic"}, {}, "skip stop"),
    ({}, {"patch_size": 30}, "choose 28"),
    ({}, {"batch_size": 0}, "batch_size 0"),
    ({"sources": ()}, {}, "at least one"),
    ({"sources": "div2k/bicubic_x3", "prepare": False}, {}, "scale 3, not 4"),
  ],
)
def test_bad_options_are_errors(config, sizes, message, tmp_path):
  if "div2k" in str(config):
    pytest.importorskip("tensorflow_datasets")
  with pytest.raises(ValueError, match=message):
    _open("sample_photos", tmp_path, sizes=sizes, **config)


def test_meshes_that_do_not_fit_are_errors(pairs, tmp_path):
  with pytest.raises(ValueError, match="no 'data'"):
    _open(pairs, tmp_path, mesh=Mesh(np.array(jax.devices()), ("batch",)))
  with pytest.raises(ValueError, match="8 devices"):
    _open(pairs, tmp_path, mesh=_mesh(8), sizes={"batch_size": 12})


def test_a_config_dict_is_a_config(pairs):
  ml_collections = pytest.importorskip("ml_collections")
  config = ml_collections.ConfigDict(pipeline_lib.DEFAULTS)
  config.sources = (pairs,)
  data = pipeline_lib.open_data(config, **_SIZES)
  assert data.report.images == 6
  with pytest.raises(ValueError, match="seed is -1"):
    data.pipeline(-1)
  source, _ = pipeline_lib.open_evaluation(config, scale=4, smallest=16)
  assert len(source) == 3


_WORKER = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, Mesh
port, rank, folders, cache_dir = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank),
                           initialization_timeout=60)
from esrgan_jax.data import pipeline
mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
out = {}
for cache in pipeline.CACHES:
  config = dict(sources=(folders,), cache=cache, cache_dir=cache_dir)
  data = pipeline.open_data(config, scale=4, batch_size=12, patch_size=32,
                            mesh=mesh)
  step = jax.jit(lambda raw: data.preprocess(jax.random.key(0), raw))
  rows = {}
  with data.pipeline(7) as batches:
    for shard in step(batches.batch(3))["lr"].addressable_shards:
      rows[shard.index[0].start] = np.rint(
        np.asarray(shard.data) * 255).astype(int).tolist()
  out[cache] = [str(data.report), rows]
print(json.dumps(out), flush=True)
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_fill_their_rows_of_one_batch(pairs, tmp_path):
  """Also where one of them cannot read what the other can."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  hr, lr = map(pathlib.Path, pairs.split("::"))
  copy = tmp_path / "copy"
  shutil.copytree(hr, copy)
  (hr / "3.png").write_bytes(b"garbage")
  (copy / "1.png").unlink()

  def start(rank, spec):
    return subprocess.Popen(
      [
        sys.executable,
        "-c",
        _WORKER,
        str(port),
        str(rank),
        spec,
        tmp_path / "c",
      ],
      cwd=pathlib.Path(__file__).parent.parent,
      env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
      stdout=subprocess.PIPE,
      text=True,
    )

  started = [start(0, pairs), start(1, f"{copy}::{lr}")]
  try:
    texts = [process.communicate(timeout=240)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  found = [json.loads(text.splitlines()[-1]) for text in texts]
  (copy / "3.png").unlink()
  alone = f"{copy}::{lr}"
  for cache in pipeline_lib.CACHES:
    data = _open(alone, tmp_path, cache=cache, sizes={"batch_size": 12})
    with data.pipeline(7) as pipeline:
      batch = data.preprocess(jax.random.key(0), pipeline.batch(3))
    expected = np.rint(np.asarray(batch["lr"]) * 255).reshape(4, 3, 8, 8, 3)
    (report, rows), (other_report, other_rows) = (f[cache] for f in found)
    assert report == other_report
    assert report.count("1.png") == report.count("3.png") == 1
    rows |= other_rows
    got = [rows[key] for key in sorted(rows, key=int)]
    np.testing.assert_array_equal(got, expected)
