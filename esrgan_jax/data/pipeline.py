"""Feeds training steps: batches that depend on the step's number alone.

`Pipeline.batch(step)` gives a global batch, sharded over the mesh's `"data"`
axis, and `Pipeline.preprocess(key, batch)`, which belongs inside the jitted
step, makes float pairs of it. Either is a pure function of the seed, the step
and (except with `"device"`) this process's part of the images; threads change
nothing, and resuming needs no state.

Images are drawn uniformly, as BasicSR does, whatever their size and whichever
source they are from; places uniformly within an image. Host caches shuffle
anew each epoch, the device cache draws with replacement.

Each process reads a part of the images, every n-th of them, and fills its
own rows of the batch.
"""

from __future__ import annotations

import collections
import concurrent.futures
import difflib
import functools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from esrgan_jax.data import augment as augment_lib
from esrgan_jax.data import cache as cache_lib
from esrgan_jax.data import prepare as prepare_lib
from esrgan_jax.data.sources import DataError, Source, open_source

__all__ = ["CACHES", "DEFAULTS", "Pipeline", "make_pipeline", "make_source"]

CACHES = ("ram", "memmap", "device", "stream")

# Every key of `config.data`, with its default.
DEFAULTS = {
  "sources": ("sample_photos",),  # See `sources.open_source`.
  "eval": "sample_photos:held_out",  # Likewise; "" for none.
  "cache": "ram",  # Where decoded images live, one of CACHES.
  "cache_dir": "",  # Of "memmap" and "stream"; "": storage.cache_dir().
  "data_dir": "",  # TFDS's folder; "" for ~/tensorflow_datasets.
  "manual_dir": "",  # Folder of DIV2K's zips, if not to be downloaded.
  "prepare": True,  # Prepare DIV2K where that has not been done.
  "on_problem": "skip",  # Or "stop", when an image cannot be used.
  "border": "mirror",  # How LR is made from HR: see resize.imresize_uint8.
  "augment": True,  # Flips and quarter turns.
  "num_threads": 0,  # For decoding; 0 for one a CPU.
  "prefetch": 2,  # Batches made ahead.
}

_log = logging.getLogger(__name__)


class Pipeline:
  """Batches by number, made ahead in a thread; see `make_pipeline`.

  Attributes:
    preprocess: Pure function of a PRNG key and a batch, to be called inside
      the jitted step with a key of that step: crops if the images are in
      device memory, flips and turns, and returns `{"lr", "hr"}`, float32 in
      [0, 1].
    report: What the first pass over this process's part found.
    wait_seconds: How long the last call of `batch` blocked.

  >>> pipeline = Pipeline(lambda step: step * 10, lambda key, raw: raw)
  >>> [pipeline.batch(step) for step in (0, 1, 7)]
  [0, 10, 70]
  >>> pipeline.close()
  """

  def __init__(
    self,
    produce: Callable[[int], Any],
    preprocess: Callable[[Array, Any], dict[str, Array]],
    *,
    report: cache_lib.Report | None = None,
    prefetch: int = 2,
  ):
    self.preprocess = preprocess
    self.report = report or cache_lib.Report(0, 0)
    self.wait_seconds = 0.0
    self._produce = produce
    self._prefetch = prefetch
    self._ahead: _Ahead | None = None
    self._stop = lambda: None

  def batch(self, step: int) -> Any:
    """Returns the batch of a step; cheapest in rising order.

    Args:
      step: Number of the step, from 0; any order is possible.

    Returns:
      A pytree of arrays for `preprocess`; do not donate it.

    Raises:
      ValueError: If `step` is negative.
      Exception: Whatever went wrong in the thread that makes batches.
    """
    if step < 0:
      raise ValueError(f"step is {step}; steps count from 0.")
    begin = time.perf_counter()
    if self._ahead is None or self._ahead.next_step != step:
      self._stop()
      self._ahead = _Ahead(self._produce, step, self._prefetch)
      # A daemon that still talks to JAX when Python ends brings it down: the
      # finalizer also runs at exit.
      self._stop = weakref.finalize(self, self._ahead.stop)
    try:
      return self._ahead.take()
    except BaseException:
      self.close()
      raise
    finally:
      self.wait_seconds = time.perf_counter() - begin

  def close(self) -> None:
    """Ends the thread; `batch` would start it again."""
    self._stop()
    self._ahead = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


class _Ahead:
  """One run of the thread: makes batches from a step on, `depth` ahead."""

  def __init__(self, produce, step, depth):
    self.next_step = step
    self._made = collections.deque()
    self._depth = max(depth, 1)
    self._changed = threading.Condition()
    self._stopped = False
    self._thread = threading.Thread(
      target=self._run, args=(produce, step), name="esrgan-data", daemon=True
    )
    self._thread.start()

  def _run(self, produce, step):
    while not self._stopped:
      try:
        made = produce(step), None
      except BaseException as error:
        made = None, error
      with self._changed:
        self._made.append(made)
        self._changed.notify_all()
        if made[1] is not None:
          return
        self._changed.wait_for(
          lambda: self._stopped or len(self._made) < self._depth
        )
      step += 1

  def take(self):
    with self._changed:
      self._changed.wait_for(lambda: self._made)
      batch, error = self._made.popleft()
      self._changed.notify_all()
    if error is not None:
      raise error
    self.next_step += 1
    return batch

  def stop(self):
    with self._changed:
      self._stopped = True
      self._made.clear()
      self._changed.notify_all()
    # The collector may finalize a pipeline in any thread, this one included.
    if threading.current_thread() is not self._thread:
      self._thread.join()


def make_source(
  config: Mapping[str, Any], *, scale: int, evaluation: bool = False
) -> Source | None:
  """Opens the sources that a config names, preparing DIV2K if need be.

  Args:
    config: `config.data`, a dict or a ConfigDict; keys of `DEFAULTS`.
    scale: HR pixels per LR pixel.
    evaluation: Open `eval` instead of `sources`.

  Returns:
    The source; None where evaluation names none.

  Raises:
    ValueError: If a key is unknown.
    DataError: If a source cannot be opened.

  >>> make_source({}, scale=4, evaluation=True).names[0]
  'chelsea.png'
  """
  options = _options(config)
  specs = options["eval" if evaluation else "sources"]
  if evaluation and not specs:
    return None
  if isinstance(specs, str) or hasattr(specs, "keys"):
    specs = [specs]
  data_dir = options["data_dir"] or None
  if options["prepare"]:
    for name in sorted({_div2k_config(spec) for spec in specs} - {None}):
      try:
        prepare_lib.prepare_div2k(
          data_dir,
          config=name,
          manual_dir=options["manual_dir"] or None,
          process_index=jax.process_index(),
          report=_log.info,
        )
      except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise DataError(str(error)) from error
  return open_source(
    list(specs), scale=scale, data_dir=data_dir, border=options["border"]
  )


def make_pipeline(
  config: Mapping[str, Any],
  *,
  scale: int,
  batch_size: int,
  patch_size: int,
  seed: int,
  mesh: Mesh | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Pipeline:
  """Opens the sources, decodes their images and returns what feeds the steps.

  `config["cache"]` says where decoded images live. `"ram"`: in memory.
  `"memmap"`: in a file of `cache_dir`, made once. `"device"`: in device
  memory, sharded over the data axis; crops are cut inside the step, and the
  batch does not depend on the number of devices or processes. `"stream"`:
  nowhere; Grain reads and decodes all the time, for what is larger than any
  memory.

  Args:
    config: `config.data`, a dict or a ConfigDict; keys of `DEFAULTS`.
    scale: HR pixels per LR pixel.
    batch_size: Patches in the global batch.
    patch_size: HR pixels a side, a multiple of `scale`.
    seed: Of the order of images and the places of crops, >= 0.
    mesh: Mesh with a `"data"` axis; None for the default device.
    progress: Called with images done and images in all, while decoding.

  Returns:
    The pipeline; close it, or use it in `with`.

  Raises:
    ValueError: If a size does not divide, or a key or a value is unknown.
    DataError: If a source cannot be opened, no image is usable, or any is
      not and `on_problem` is `"stop"`.

  >>> sizes = dict(scale=4, batch_size=2, patch_size=64)
  >>> with make_pipeline({}, seed=0, **sizes) as pipeline:
  ...   batch = pipeline.preprocess(jax.random.key(0), pipeline.batch(0))
  >>> batch["lr"].shape, batch["hr"].shape, pipeline.report.images
  ((2, 16, 16, 3), (2, 64, 64, 3), 6)
  """
  options = _options(config)
  if patch_size % scale:
    raise ValueError(
      f"patch_size {patch_size} is not a multiple of scale {scale}; choose"
      f" {patch_size - patch_size % scale or scale}."
    )
  if seed < 0:
    raise ValueError(f"seed is {seed}; it must be 0 or more.")
  coordinates, part, parts, devices = _part(mesh)
  if batch_size < 1 or batch_size % devices:
    raise ValueError(
      f"batch_size {batch_size} is not a multiple of the {devices} devices of"
      " the data axis."
    )
  size = patch_size // scale
  source = make_source(options, scale=scale)
  if options["cache"] == "device":
    indices = range(part, len(source), parts)
  else:  # With fewer images than processes, some read the same one.
    indices = range(part % len(source), len(source), parts)

  threads = options["num_threads"] or os.cpu_count() or 1
  reading = {"size": size, "threads": threads, "progress": progress}
  kept = {"cache_dir": options["cache_dir"] or None}
  read = {
    "ram": cache_lib.in_ram,
    "device": cache_lib.in_ram,
    "memmap": functools.partial(cache_lib.mapped, **kept),
    "stream": functools.partial(cache_lib.survey, **kept),
  }[options["cache"]]
  found, report = read(source, indices, **reading)
  report = _judge(report, source, part, parts, options)

  rows = batch_size // parts
  if options["cache"] == "device":
    images = _place_on_devices(found, len(source), scale, mesh, coordinates)
    preprocess = functools.partial(
      _preprocess_resident,
      sample=functools.partial(
        augment_lib.sample,
        batch_size=batch_size,
        patch_size=patch_size,
        scale=scale,
        mesh=mesh,
      ),
      augment=options["augment"],
    )
    produce: Callable = lambda step: images  # noqa: E731
  else:
    preprocess = functools.partial(_preprocess, augment=options["augment"])
    if options["cache"] == "stream":
      local = _Stream(source, found, rows, size, seed, part, threads)
    else:
      workers = threads if options["cache"] == "memmap" else 1
      pairs = list(found.values())
      local = _Crops(pairs, rows, size, scale, seed, part, workers)

    def produce(step):
      return _global_batch(local(step), mesh, batch_size)

  return Pipeline(
    produce, preprocess, report=report, prefetch=options["prefetch"]
  )


def _options(config):
  """Fills in defaults; unknown keys and values are errors."""
  given = {key: config[key] for key in config}
  for key in given.keys() - DEFAULTS.keys():
    near = difflib.get_close_matches(key, DEFAULTS, n=1, cutoff=0)
    raise ValueError(f"data has no option {key!r}; did you mean {near[0]!r}?")
  options = DEFAULTS | given
  for key, choices in (("cache", CACHES), ("on_problem", ("skip", "stop"))):
    if options[key] not in choices:
      raise ValueError(
        f"data.{key} is {options[key]!r}; choose one of {' '.join(choices)}."
      )
  return options


def _div2k_config(spec):
  """Returns TFDS's configuration that a source names, if it is DIV2K."""
  if isinstance(spec, str) and spec.startswith("div2k/"):
    return spec.removeprefix("div2k/").partition(":")[0]
  return None


def _part(mesh):
  """Returns this process's data coordinates, its part, parts and devices."""
  if mesh is None:
    return (0,), 0, 1, 1
  if "data" not in mesh.axis_names:
    raise ValueError(f"The mesh has axes {mesh.axis_names}, but no 'data'.")
  axis = mesh.axis_names.index("data")
  by_process: dict[int, set[int]] = {}
  for position, device in np.ndenumerate(mesh.devices):
    by_process.setdefault(device.process_index, set()).add(position[axis])
  mine = by_process.get(jax.process_index())
  if mine is None:
    raise ValueError(
      f"Process {jax.process_index()} has no device in the mesh."
    )
  # Processes that share their data coordinates (a second axis runs across
  # them) must make the same rows.
  parts = sorted({tuple(sorted(c)) for c in by_process.values()})
  devices = mesh.shape["data"]
  if sum(map(len, parts)) != devices or len({*map(len, parts)}) != 1:
    raise ValueError(
      "The mesh's data axis is spread unevenly over the processes; give each"
      " process as many of its coordinates."
    )
  mine = tuple(sorted(mine))
  return mine, parts.index(mine), len(parts), devices


def _judge(report, source, part, parts, options):
  """Adds the listing's problems; stops or goes on as configured."""
  listed = tuple(source.problems) if part == 0 else ()
  problems = listed + report.problems
  report = cache_lib.Report(report.images, report.pixels, problems)
  if problems and options["on_problem"] == "stop":
    raise DataError(
      f"some images cannot be used: {report}\nRepair or remove them, or choose"
      ' data.on_problem="skip".'
    )
  if not report.images and not (options["cache"] == "device" and parts > 1):
    raise DataError(f"no image can be used: {report}")
  _log.log(logging.WARNING if problems else logging.INFO, "data: %s", report)
  return report


class _Crops:
  """Crops of decoded images, as a function of the step."""

  def __init__(self, pairs, batch_size, size, scale, seed, part, workers):
    self._pairs = pairs
    self._batch_size, self._size, self._scale = batch_size, size, scale
    self._seed = (seed, part)
    self._order = functools.lru_cache(maxsize=4)(self._shuffled)
    # Threads wait side by side for pages of a file that are not in memory.
    self._map = map
    if workers > 1:
      self._map = concurrent.futures.ThreadPoolExecutor(workers).map

  def __call__(self, step):
    count, size, k = len(self._pairs), self._size, self._scale
    slots = range(step * self._batch_size, (step + 1) * self._batch_size)
    chosen = [self._order(slot // count)[slot % count] for slot in slots]
    places = np.random.default_rng([1, *self._seed, step]).random(
      (len(slots), 2)
    )
    lr = np.empty((len(slots), size, size, 3), np.uint8)
    hr = np.empty((len(slots), k * size, k * size, 3), np.uint8)

    def cut(slot):
      pair = self._pairs[chosen[slot]]
      room = np.subtract(pair.lr.shape[:2], size - 1)
      y, x = (places[slot] * room).astype(int)
      lr[slot] = pair.lr[y : y + size, x : x + size]
      hr[slot] = pair.hr[k * y : k * (y + size), k * x : k * (x + size)]

    collections.deque(self._map(cut, range(len(slots))), maxlen=0)
    return {"lr": lr, "hr": hr}

  def _shuffled(self, epoch):
    generator = np.random.default_rng([0, *self._seed, epoch])
    return generator.permutation(len(self._pairs))


class _Stream:
  """Crops read by Grain from a source, as a function of the step."""

  def __init__(self, source, indices, batch_size, size, seed, part, threads):
    try:
      import grain
    except ImportError as error:
      raise DataError(
        f'data.cache="stream" needs grain ({error}); pip install grain, or'
        ' choose "memmap"'
      ) from error

    class Crop(grain.transforms.RandomMap):
      """Reads a random crop of the image of a number."""

      def random_map(self, element, rng):
        place = rng.random(2)
        return source.crop(element, (place[0], place[1]), size)

    number = np.random.SeedSequence([seed, part]).generate_state(1)[0]
    dataset = grain.MapDataset.source(indices).seed(int(number))
    self._dataset = dataset.shuffle().repeat(None).random_map(Crop())
    self._options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=max(2 * batch_size, threads)
    )
    self._batch_size = batch_size
    self._iterator, self._next_step = None, None

  def __call__(self, step):
    if self._next_step != step:
      self._iterator = iter(self._dataset.to_iter_dataset(self._options))
      self._iterator.set_state({"next_index": step * self._batch_size})
    self._next_step = None  # Until all have been read.
    pairs = [next(self._iterator) for _ in range(self._batch_size)]
    self._next_step = step + 1
    lr, hr = (np.stack(images) for images in zip(*pairs, strict=True))
    return {"lr": lr, "hr": hr}


def _global_batch(local, mesh, batch_size):
  """Makes global arrays of this process's rows."""
  if mesh is None:
    return jax.tree.map(jnp.asarray, local)
  sharding = NamedSharding(mesh, P("data"))
  return {
    name: jax.make_array_from_process_local_data(
      sharding, rows, (batch_size, *rows.shape[1:])
    )
    for name, rows in local.items()
  }


def _preprocess(key, batch, *, augment):
  if augment:
    batch = augment_lib.augment(key, batch)
  return augment_lib.to_float(batch)


def _preprocess_resident(key, images, *, sample, augment):
  draw, turn = jax.random.split(key)
  return _preprocess(turn, sample(draw, images), augment=augment)


def _place_on_devices(pairs, count, scale, mesh, coordinates):
  """Packs this process's pairs for its devices; returns global arrays."""
  devices = 1 if mesh is None else mesh.shape["data"]
  # The largest first, each to the device with the fewest rows so far.
  held = {coordinate: [] for coordinate in coordinates}
  heights = dict.fromkeys(coordinates, 0)
  for index in sorted(pairs, key=lambda i: -min(pairs[i].lr.shape[:2])):
    least = min(heights, key=lambda c: (heights[c], c))
    h, w, _ = pairs[index].lr.shape
    held[least].append((index, heights[least], min(h, w), max(h, w), h > w))
    heights[least] += min(h, w)

  # What the others hold decides the common shape, and goes into the table.
  # A part has at most this many images, and a device no more than its part.
  most = max(1, math.ceil(count * len(coordinates) / devices))
  tables = np.full((len(coordinates), most, 5), -1, np.int32)
  for table, coordinate in zip(tables, coordinates, strict=True):
    if held[coordinate]:
      table[: len(held[coordinate])] = held[coordinate]
  if mesh is not None:
    sharded = jax.make_array_from_process_local_data(
      NamedSharding(mesh, P("data")), tables, (devices, most, 5)
    )
    replicate = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
    tables = np.asarray(replicate(sharded))
  where, _ = np.nonzero(tables[..., 0] >= 0)
  entries = tables[tables[..., 0] >= 0]
  if not len(entries):
    raise DataError("no image can be used: every process reports why")
  rows = int(np.bincount(where, entries[:, 2]).max())
  width = int(entries[:, 3].max())
  # By number, so that a draw means the same image on any set of devices.
  order = np.argsort(entries[:, 0])
  table = np.concatenate([where[:, None], entries[:, 1:]], axis=1)[order]
  table = table.astype(np.int32)

  needed = rows * width * 3 * (1 + scale**2)
  limit = _memory_limit(mesh)
  if limit and needed > 0.8 * limit:
    raise DataError(
      f"the images take {needed / 1e9:.1f} GB on each device, of"
      f' {limit / 1e9:.1f} GB; choose data.cache="ram" or "memmap"'
    )

  def packed(which, k):
    def shard(coordinate):
      chosen = [
        np.swapaxes(pairs[entry[0]][which], 0, 1)
        if entry[4]
        else pairs[entry[0]][which]
        for entry in held[coordinate]
      ]
      return augment_lib.pack(chosen, rows=k * rows, width=k * width)

    if mesh is None:
      return jnp.asarray(shard(0))
    return jax.make_array_from_callback(
      (devices * k * rows, k * width * 3),
      NamedSharding(mesh, P("data")),
      lambda index: shard((index[0].start or 0) // (k * rows)),
    )

  lr, hr = packed(0, 1), packed(1, scale)
  if mesh is None:
    return augment_lib.Resident(lr, hr, jnp.asarray(table))
  placed = jax.make_array_from_callback(
    table.shape, NamedSharding(mesh, P()), lambda index: table[index]
  )
  return augment_lib.Resident(lr, hr, placed)


def _memory_limit(mesh):
  """Returns bytes of a device's memory, None where it does not say."""
  device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
  try:
    return (device.memory_stats() or {}).get("bytes_limit")
  except (RuntimeError, NotImplementedError):
    return None
