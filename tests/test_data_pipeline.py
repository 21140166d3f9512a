import gc
import json
import os
import pathlib
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

from esrgan_jax.data import pipeline as pipeline_lib
from esrgan_jax.data.sources import DataError

_SIZES = {"scale": 4, "batch_size": 8, "patch_size": 32, "seed": 7}
_HOST = ("ram", "memmap", "stream")


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


def _make(pairs, tmp_path, *, mesh=None, sizes=None, **config):
  config = {"sources": (pairs,), "cache_dir": str(tmp_path / "c")} | config
  return pipeline_lib.make_pipeline(
    config, mesh=mesh, **(_SIZES | (sizes or {}))
  )


def _mesh(count):
  return Mesh(
    np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,)
  )


def _step(pipeline):
  return jax.jit(
    lambda seed, step, raw: pipeline.preprocess(
      jax.random.fold_in(jax.random.key(seed), step), raw
    )
  )


def _batches(pipeline, steps):
  """Preprocessed batches as they would be trained on, in 8-bit levels."""
  step_fn = _step(pipeline)
  out = []
  for step in steps:
    batch = step_fn(0, step, pipeline.batch(step))
    out.append({k: np.rint(np.asarray(v) * 255) for k, v in batch.items()})
  return out


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
  with _make(pairs, tmp_path, cache=cache, sizes={"batch_size": 48}) as it:
    assert it.report.images == 6
    assert it.report.problems == ()
    batches = _batches(it, range(4))
  for batch in batches:
    _check_aligned(batch)
  lr = np.concatenate([batch["lr"] for batch in batches])
  images = lr[:, 0, 0, 2] // 16
  counts = np.bincount(images.astype(int), minlength=6)
  if cache == "device":  # With replacement: 192 draws of 1/6, four sigma.
    np.testing.assert_allclose(counts, 32, atol=21)
  else:
    assert (counts == 32).all()
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


@pytest.mark.parametrize("cache", _HOST)
def test_batches_depend_on_seed_and_step_alone(cache, pairs, tmp_path):
  options = {"cache": cache, "augment": False}
  with _make(pairs, tmp_path, num_threads=1, prefetch=1, **options) as it:
    first = _batches(it, range(5))
    again = _batches(it, [3, 0, 4])
  with _make(pairs, tmp_path, num_threads=5, prefetch=4, **options) as it:
    resumed = _batches(it, range(2, 5))
  with _make(pairs, tmp_path, sizes={"seed": 8}, **options) as it:
    (other,) = _batches(it, [0])
  for got, expected in zip(
    again + resumed, [first[i] for i in (3, 0, 4, 2, 3, 4)], strict=True
  ):
    jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert (other["lr"] != first[0]["lr"]).any()
  assert (first[1]["lr"] != first[0]["lr"]).any()


def test_ram_and_memmap_give_the_same_batches(pairs, tmp_path):
  with (
    _make(pairs, tmp_path, cache="ram") as ram,
    _make(pairs, tmp_path, cache="memmap") as memmap,
  ):
    for got, expected in zip(
      _batches(memmap, range(3)), _batches(ram, range(3)), strict=True
    ):
      jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("cache", pipeline_lib.CACHES)
def test_eight_devices_get_the_batch_of_one(cache, pairs, tmp_path):
  batches = []
  for mesh in (None, _mesh(1), _mesh(8)):
    with _make(pairs, tmp_path, cache=cache, mesh=mesh) as it:
      batches.append(_batches(it, [2])[0])
      batch = _step(it)(0, 0, it.batch(0))
  assert len(batch["hr"].sharding.device_set) == 8
  assert batch["hr"].addressable_shards[0].data.shape == (1, 32, 32, 3)
  for got in batches[1:]:
    jax.tree.map(np.testing.assert_array_equal, got, batches[0])


def test_a_second_mesh_axis_gets_copies(pairs, tmp_path):
  mesh = Mesh(
    np.array(jax.devices()).reshape(4, 2),
    ("data", "model"),
    axis_types=(AxisType.Auto,) * 2,
  )
  for cache in ("ram", "device"):
    with (
      _make(pairs, tmp_path, cache=cache, mesh=mesh) as it,
      _make(pairs, tmp_path, cache=cache) as plain,
    ):
      jax.tree.map(
        np.testing.assert_array_equal,
        _batches(it, [1])[0],
        _batches(plain, [1])[0],
      )


def test_without_augmentation_images_are_upright(pairs, tmp_path):
  for cache in pipeline_lib.CACHES:
    with _make(pairs, tmp_path, cache=cache, augment=False) as it:
      for batch in _batches(it, range(2)):
        steps = batch["lr"] - batch["lr"][:, :1, :1]
        np.testing.assert_array_equal(
          steps[..., 0], np.tile(np.arange(8)[:, None], (8, 1, 8))
        )


def test_problems_are_skipped_or_stop(pairs, tmp_path):
  hr = pathlib.Path(pairs.split("::")[0])
  (hr / "4.png").write_bytes(b"garbage")
  (hr / "9.png").write_bytes((hr / "1.png").read_bytes())
  for cache in pipeline_lib.CACHES:
    options = {"cache": cache, "sizes": {"patch_size": 36}}
    with _make(pairs, tmp_path, **options) as it:
      assert it.report.images == 4
      names = [problem.name for problem in it.report.problems]
      assert sorted(names) == ["2.png", "4.png", "9.png"]
      it.batch(0)
    with pytest.raises(DataError, match=r"(?s)9\.png.*4\.png.*2\.png"):
      _make(pairs, tmp_path, on_problem="stop", **options)
    with pytest.raises(DataError, match="no image can be used"):
      _make(pairs, tmp_path, cache=cache, sizes={"patch_size": 400})


def test_several_sources_are_drawn_by_image(pairs, tmp_path):
  folder = tmp_path / "white"
  folder.mkdir()
  for name in "ab":
    PilImage.new("RGB", (40, 40), "white").save(folder / f"{name}.png")
  sizes = {"batch_size": 16}
  with _make(pairs, tmp_path, sources=[pairs, str(folder)], sizes=sizes) as it:
    (batch,) = _batches(it, [0])
  assert it.report.images == 8
  assert (batch["hr"] == 255).all(axis=(1, 2, 3)).sum() == 4


def test_images_too_large_for_a_device_are_refused(
  pairs, tmp_path, monkeypatch
):
  monkeypatch.setattr(pipeline_lib, "_memory_limit", lambda mesh: 1000)
  with pytest.raises(DataError, match=r'data\.cache="ram"'):
    _make(pairs, tmp_path, cache="device")


def test_waiting_is_measured_and_ends_with_prefetching():
  gate = threading.Event()

  def produce(step):
    if step == 0:
      time.sleep(0.05)
    elif step == 1:
      gate.set()
    return step

  with pipeline_lib.Pipeline(produce, None) as it:
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

  with pipeline_lib.Pipeline(produce, None, prefetch=4) as it:
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
  it = pipeline_lib.Pipeline(lambda step: step, None)
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
    ({}, {"seed": -1}, "seed is -1"),
    ({}, {"batch_size": 0}, "batch_size 0"),
    ({"sources": ()}, {}, "at least one"),
    ({"sources": "div2k/bicubic_x3", "prepare": False}, {}, "scale 3, not 4"),
  ],
)
def test_bad_options_are_errors(config, sizes, message, tmp_path):
  if "div2k" in str(config):
    pytest.importorskip("tensorflow_datasets")
  with pytest.raises(ValueError, match=message):
    _make("sample_photos", tmp_path, sizes=sizes, **config)


def test_meshes_that_do_not_fit_are_errors(pairs, tmp_path):
  with pytest.raises(ValueError, match="no 'data'"):
    _make(pairs, tmp_path, mesh=Mesh(np.array(jax.devices()), ("batch",)))
  with pytest.raises(ValueError, match="8 devices"):
    _make(pairs, tmp_path, mesh=_mesh(8), sizes={"batch_size": 12})


def test_a_config_dict_is_a_config(pairs, tmp_path):
  ml_collections = pytest.importorskip("ml_collections")
  config = ml_collections.ConfigDict(pipeline_lib.DEFAULTS)
  config.sources = (pairs,)
  with pipeline_lib.make_pipeline(config, **_SIZES) as it:
    assert it.report.images == 6
  source = pipeline_lib.make_source(config, scale=4, evaluation=True)
  assert len(source) == 3
  config.eval = ""
  assert pipeline_lib.make_source(config, scale=4, evaluation=True) is None


_WORKER = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, Mesh
port, rank, folders, cache_dir = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
if port != "0":
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank),
                             initialization_timeout=60)
else:
  jax.config.update("jax_num_cpu_devices", 4)
from esrgan_jax.data import pipeline
mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
out = {}
for cache in ("ram", "memmap", "device"):
  config = dict(sources=(folders,), cache=cache, cache_dir=cache_dir)
  with pipeline.make_pipeline(config, scale=4, batch_size=12, patch_size=32,
                              seed=7, mesh=mesh) as it:
    step = jax.jit(lambda raw: it.preprocess(jax.random.key(0), raw))
    rows = {}
    for shard in step(it.batch(3))["lr"].addressable_shards:
      rows[shard.index[0].start] = np.rint(
        np.asarray(shard.data) * 255).astype(int).tolist()
    out[cache] = [it.report.images, rows]
print(json.dumps(out), flush=True)
if port != "0":
  jax.distributed.shutdown()
"""


def test_two_processes_read_their_parts_and_fill_their_rows(pairs, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]

  def start(port, rank):
    command = [sys.executable, "-c", _WORKER, str(port), str(rank), pairs]
    return subprocess.Popen(
      [*command, str(tmp_path / "c")],
      cwd=pathlib.Path(__file__).parent.parent,
      env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
      stdout=subprocess.PIPE,
      text=True,
    )

  started = [start(port, 0), start(port, 1), start(0, 0)]
  try:
    texts = [process.communicate(timeout=240)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  first, second, alone = (json.loads(t.splitlines()[-1]) for t in texts)
  for cache in ("ram", "memmap", "device"):
    parts = [r[cache] for r in (first, second)]
    assert [part[0] for part in parts] == [3, 3]
    rows = parts[0][1] | parts[1][1]
    assert sorted(map(int, rows)) == [0, 3, 6, 9]
    if cache == "device":  # Drawn from all images: the same as in one process.
      assert rows == alone[cache][1]
      continue
    for part, (_, mine) in enumerate(parts):
      lr = np.concatenate([np.array(v) for v in mine.values()])
      drawn = np.bincount(lr[:, 0, 0, 2] // 16, minlength=6)
      assert (drawn == [2 * (i % 2 == part) for i in range(6)]).all()
