"""Feeds training steps: batches that depend on seed, step and row alone.

`open_data` decodes the images of a run, once; `Data.pipeline(seed)` gives a
phase its batches. `Pipeline.batch(step)` is a global batch, sharded over the
mesh's `"data"` axis, and `Data.preprocess(key, batch)`, which belongs inside
the jitted step, makes float pairs of it.

**What a row shows** is drawn by `data.draws` from the seed, the step and the
row's index in the global batch. It is the same whichever the cache and however
many devices and processes; so is the batch, to the last bit. Images are drawn
uniformly, whatever their size and whichever source they are from, each once an
epoch; places uniformly within an image. Nothing is kept from step to step: to
resume is to ask for another step.

**Flips and turns** are drawn inside the step from its key and the row.

**Which images** there are to draw from, all processes agree on before the first
step (`data.agreement`): what one of them cannot use, none does. Every process
can reach every image then: see `open_data`. With `"stream"`, an image may cease
to be readable afterwards. The next one in order that can be read takes its
place, where the row's place falls in it; so a row depends on what can be read
as well.
"""

from __future__ import annotations

import collections
import concurrent.futures
import difflib
import functools
import itertools
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from esrgan_jax import augment as augment_lib
from esrgan_jax import distributed
from esrgan_jax.data import agreement
from esrgan_jax.data import cache as cache_lib
from esrgan_jax.data.draws import draw
from esrgan_jax.data.sources import (
  DataError,
  Pair,
  Problem,
  Source,
  Subset,
  corner,
  open_source,
  prepare,
)

__all__ = [
  "CACHES",
  "DEFAULTS",
  "Data",
  "Pipeline",
  "open_data",
  "open_evaluation",
]

CACHES = ("ram", "memmap", "device", "stream")

# Every key of `config.data`, with its default.
DEFAULTS = {
  "sources": ("sample_photos",),  # Or "A,B": see `sources.open_source`.
  "eval": "sample_photos:held_out",  # Likewise; "" for none.
  "cache": "ram",  # Where decoded images live, one of CACHES: `open_data`.
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

# So many images in a row that cannot be read are no problem of theirs.
_MOST_UNREADABLE = 100

_log = logging.getLogger(__name__)


class Data:
  """The images of a run, and how batches are made of them; see `open_data`.

  Attributes:
    preprocess: Pure function of a PRNG key and a batch, to be called inside
      the jitted step with a key of that step: crops if the images are in
      device memory, flips and turns, and returns `{"lr", "hr"}`, float32 in
      [0, 1].
    abstract_batch: A batch's shapes, types and, on a mesh, shardings, as
      `jax.ShapeDtypeStruct`s: what a step is compiled for.
    report: What the first pass over the images found, the same in all
      processes.
  """

  def __init__(
    self,
    batches: _Crops | _Stream | _Resident,
    preprocess: Callable[[Array, Any], dict[str, Array]],
    report: agreement.Report,
    prefetch: int,
  ):
    self.preprocess = preprocess
    self.abstract_batch = batches.abstract_batch
    self.report = report
    self._batches = batches
    self._prefetch = prefetch

  def pipeline(self, seed: int) -> Pipeline:
    """Returns a phase's batches.

    Args:
      seed: Of the draws, >= 0.

    Raises:
      ValueError: If `seed` is negative.
    """
    if seed < 0:
      raise ValueError(f"seed is {seed}; it must be 0 or more.")
    return Pipeline(self._batches.from_seed(seed), prefetch=self._prefetch)


class Pipeline:
  """Batches by number, made ahead in a thread.

  Attributes:
    wait_seconds: How long the last call of `batch` blocked.

  >>> with Pipeline(lambda step: step * 10) as pipeline:
  ...   [pipeline.batch(step) for step in (0, 1, 7)]
  [0, 10, 70]
  """

  def __init__(self, produce: Callable[[int], Any], *, prefetch: int = 2):
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
      A pytree of arrays for `Data.preprocess`; do not donate it.

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


def open_data(
  config: Mapping[str, Any],
  *,
  scale: int,
  batch_size: int,
  patch_size: int,
  mesh: Mesh | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Data:
  """Opens the sources and decodes their images, once a run.

  `config["cache"]` says where decoded images live:

  - `"ram"`: in memory, all of them in every process: a host needs room for
    them once a process. DIV2K takes 7 GB.
  - `"memmap"`: in a file of `cache_dir`, made by one process, mapped by all
    that share the folder. The choice for several processes on one host.
  - `"device"`: in device memory, sharded over the data axis, each process
    decoding its part; crops are cut inside the step.
  - `"stream"`: nowhere; Grain reads and decodes all the time, for what is
    larger than any memory. A process reads what its rows show.

  With several processes in the mesh, all of them must call this.

  Args:
    config: `config.data`, a dict or a ConfigDict; keys of `DEFAULTS`.
    scale: HR pixels per LR pixel.
    batch_size: Patches in the global batch.
    patch_size: HR pixels a side, a multiple of `scale`.
    mesh: Mesh with a `"data"` axis; None for the default device.
    progress: Called with images done and images in all, while decoding.

  Returns:
    The data.

  Raises:
    ValueError: If a size does not divide, or a key or a value is unknown.
    DataError: If a source cannot be opened, no image is usable, or any is
      not and `on_problem` is `"stop"`.

  >>> data = open_data({}, scale=4, batch_size=2, patch_size=64)
  >>> with data.pipeline(seed=0) as pipeline:
  ...   batch = data.preprocess(jax.random.key(0), pipeline.batch(0))
  >>> batch["lr"].shape, batch["hr"].shape, data.report.images
  ((2, 16, 16, 3), (2, 64, 64, 3), 6)
  """
  options = _options(config)
  if patch_size % scale:
    raise ValueError(
      f"patch_size {patch_size} is not a multiple of scale {scale}; choose"
      f" {patch_size - patch_size % scale or scale}."
    )
  parts, part = _parts(mesh)
  devices = sum(map(len, parts))
  if batch_size < 1 or batch_size % devices:
    raise ValueError(
      f"batch_size {batch_size} is not a multiple of the {devices} devices of"
      " the data axis."
    )
  if options["cache"] == "stream":
    _require_grain()
  gather = _gather(mesh)
  source, listed = _open("sources", options, scale, gather)
  threads = options["num_threads"] or os.cpu_count() or 1
  kept = {"cache_dir": options["cache_dir"] or None}
  read = {
    "ram": cache_lib.in_ram,
    "device": cache_lib.in_ram,
    "memmap": functools.partial(cache_lib.mapped, **kept),
    "stream": functools.partial(cache_lib.survey, **kept),
  }[options["cache"]]
  split = options["cache"] in ("device", "stream")
  first, step = (part, len(parts)) if split else (0, 1)
  share = range(first, len(source), step)
  size = patch_size // scale
  found, agreed = agreement.agree_on_images(
    source,
    lambda: read(source, share, threads=threads, progress=progress),
    gather,
    smallest=size,
    need="a patch of {}",
    listed=listed,
  )
  _judge(agreed.report, options)

  if options["cache"] == "device":
    images = _place_on_devices(agreed, found.pairs, scale, mesh, parts)
    batches = _Resident(images, agreed.sizes, batch_size, size, mesh)
  else:
    place = _Placement(mesh, batch_size, scale, size)
    if options["cache"] == "stream":
      usable = Subset(source, agreed.usable)
      batches = _Stream(usable, place, threads, options["on_problem"])
    else:
      pairs = [found.pairs[i] for i in agreed.usable]
      workers = threads if options["cache"] == "memmap" else 1
      batches = _Crops(pairs, place, workers)

  def preprocess(key, batch):
    if options["cache"] == "device":
      sizes = {"patch_size": patch_size, "scale": scale}
      batch = augment_lib.cut(**batch, **sizes, mesh=mesh)
    if options["augment"]:
      batch = augment_lib.augment(key, batch)
    return augment_lib.to_float(batch)

  return Data(batches, preprocess, agreed.report, options["prefetch"])


def open_evaluation(
  config: Mapping[str, Any],
  *,
  scale: int,
  smallest: int,
  progress: Callable[[int, int], None] | None = None,
) -> tuple[Source | None, agreement.Report]:
  """Opens the validation images and looks at each, so that none is a surprise.

  With several processes, all of them must call this.

  Args:
    config: `config.data`, a dict or a ConfigDict; keys of `DEFAULTS`.
    scale: HR pixels per LR pixel.
    smallest: HR pixels a side that an image must have at least.
    progress: Called with images done and images in all.

  Returns:
    The usable images, the same in all processes, and what was found. None
    where the config names none.

  Raises:
    ValueError: If a key or a value is unknown.
    DataError: If it cannot be opened, no image is usable, or any is not and
      `on_problem` is `"stop"`.

  >>> source, report = open_evaluation({}, scale=4, smallest=400)
  >>> source.names, str(report.problems[0])
  (['coffee.png', 'rocket.jpg'], 'chelsea.png: HR is 300x448, smaller than...')
  """
  options = _options(config)
  if not options["eval"]:
    return None, agreement.Report(0, 0)
  source, listed = _open("eval", options, scale, distributed.gather)
  share = range(jax.process_index(), len(source), jax.process_count())
  threads = options["num_threads"] or os.cpu_count() or 1
  _, agreed = agreement.agree_on_images(
    source,
    lambda: cache_lib.look_at(
      source, share, threads=threads, progress=progress
    ),
    distributed.gather,
    smallest=-(-smallest // scale),
    need="the {} that evaluation needs",
    listed=listed,
  )
  _judge(agreed.report, options)
  return Subset(source, agreed.usable), agreed.report


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


def _open(key, options, scale, gather):
  """Opens the sources of a key, the same in all processes."""
  data_dir = options["data_dir"] or None
  if options["prepare"]:
    # Who fails in here ends at once, and the others with it: they may wait.
    prepare(
      options[key],
      data_dir=data_dir,
      manual_dir=options["manual_dir"] or None,
      process_index=jax.process_index(),
      report=_log.info,
    )
  return agreement.agree_on_names(
    lambda: open_source(
      options[key], scale=scale, data_dir=data_dir, border=options["border"]
    ),
    gather,
  )


def _parts(mesh):
  """Returns each process's coordinates on the data axis, and which is ours.

  Processes that have the same ones (a second axis runs across them) are one
  part: they make the same rows.
  """
  if mesh is None:
    return [(0,)], 0
  if "data" not in mesh.axis_names:
    raise ValueError(f"The mesh has axes {mesh.axis_names}, but no 'data'.")
  axis = mesh.axis_names.index("data")
  by_process: dict[int, set[int]] = {}
  for position, device in np.ndenumerate(mesh.devices):
    by_process.setdefault(device.process_index, set()).add(position[axis])
  missing = set(range(jax.process_count())) - by_process.keys()
  if (missing and len(by_process) > 1) or jax.process_index() in missing:
    raise ValueError(f"Processes {sorted(missing)} have no device in the mesh.")
  parts = sorted({tuple(sorted(c)) for c in by_process.values()})
  if sum(map(len, parts)) != mesh.shape["data"]:
    raise ValueError(
      "Processes share some coordinates of the mesh's data axis and not others;"
      " give each its own, or the same to several."
    )
  return parts, parts.index(tuple(sorted(by_process[jax.process_index()])))


def _gather(mesh):
  """Returns how processes of a mesh exchange texts: not at all, if alone."""
  if mesh is None or len({d.process_index for d in mesh.devices.flat}) == 1:
    return lambda text: [text]
  return distributed.gather


def _judge(report, options):
  """Stops or goes on, as configured."""
  if report.problems and options["on_problem"] == "stop":
    raise DataError(
      f"some images cannot be used: {report}\nRepair or remove them, or choose"
      ' data.on_problem="skip".'
    )
  if not report.images:
    raise DataError(f"no image can be used: {report}")


class _Placement:
  """Makes global arrays of the rows that this process has."""

  def __init__(self, mesh, batch_size, scale, size):
    self.batch_size, self.scale, self.size = batch_size, scale, size
    self._sharding = None
    slices = [slice(None)]
    if mesh is not None:
      self._sharding = NamedSharding(mesh, P("data"))
      indices = self._sharding.addressable_devices_indices_map((batch_size,))
      slices = [index[0] for index in indices.values()]
    rows = (range(*part.indices(batch_size)) for part in slices)
    # Of the global batch, in rising order; devices may share them.
    self.rows = sorted(set(itertools.chain(*rows)))

  @property
  def abstract_batch(self):
    return {
      name: jax.ShapeDtypeStruct(
        (self.batch_size, side, side, 3), np.uint8, sharding=self._sharding
      )
      for name, side in (("lr", self.size), ("hr", self.scale * self.size))
    }

  def empty(self):
    """Returns arrays for the rows of this process, to be filled and `put`."""
    return {
      name: np.empty((len(self.rows), *struct.shape[1:]), np.uint8)
      for name, struct in self.abstract_batch.items()
    }

  def put(self, local):
    """Puts this process's rows on its devices; returns the global batch."""
    if self._sharding is None:
      return jax.tree.map(jnp.asarray, local)
    # The rows of a device follow each other in either batch.
    position = {row: i for i, row in enumerate(self.rows)}

    def put(rows):
      def shard(index):
        start, stop, _ = index[0].indices(self.batch_size)
        return rows[position[start] :][: stop - start]

      shape = (self.batch_size, *rows.shape[1:])
      return jax.make_array_from_callback(shape, self._sharding, shard)

    return jax.tree.map(put, local)


class _Crops:
  """Batches of crops of decoded images."""

  def __init__(self, pairs: Sequence[Pair], place: _Placement, workers: int):
    self.abstract_batch = place.abstract_batch
    self._pairs, self._place = pairs, place
    # Threads wait side by side for pages of a file that are not in memory.
    self._map = map
    if workers > 1:
      self._map = concurrent.futures.ThreadPoolExecutor(workers).map

  def from_seed(self, seed):
    return functools.partial(self._batch, seed)

  def _batch(self, seed, step):
    place, size, k = self._place, self._place.size, self._place.scale
    drawn = draw(
      seed, step, batch_size=place.batch_size, count=len(self._pairs)
    )
    local = place.empty()

    def cut(i, row):
      lr, hr = self._pairs[drawn.images[row]]
      y, x = corner(lr.shape, drawn.places[row], size, "")
      local["lr"][i] = lr[y : y + size, x : x + size]
      local["hr"][i] = hr[k * y : k * (y + size), k * x : k * (x + size)]

    done = self._map(cut, itertools.count(), place.rows)
    collections.deque(done, maxlen=0)
    return place.put(local)


class _Stream:
  """Batches of crops that Grain reads from a source."""

  def __init__(
    self, source: Source, place: _Placement, threads: int, on_problem: str
  ):
    self.abstract_batch = place.abstract_batch
    self._source, self._place, self._threads = source, place, threads
    self._stops = on_problem == "stop"
    self._told, self._telling = set(), threading.Lock()
    # Grain asks for single rows, of several batches at a time.
    self._draw = functools.lru_cache(maxsize=64)(draw)

  def from_seed(self, seed):
    count = len(self._place.rows)
    iterator, expected = None, None

    def batch(step):
      nonlocal iterator, expected
      if expected != step:
        iterator = self._read_from(seed, step * count)
      expected = None  # Until all have been read.
      local = self._place.empty()
      for i in range(count):
        local["lr"][i], local["hr"][i] = next(iterator)
      expected = step + 1
      return self._place.put(local)

    return batch

  def _read_from(self, seed, number):
    """Returns an iterator over this process's rows, from one of them on."""
    import grain

    options = grain.ReadOptions(
      num_threads=self._threads,
      prefetch_buffer_size=max(2 * len(self._place.rows), self._threads),
    )
    dataset = grain.MapDataset.range(sys.maxsize).map(
      functools.partial(self._read, seed)
    )
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": number})
    return iterator

  def _read(self, seed, number):
    """Reads the crop of a row, of the next image where it cannot be read."""
    step, row = divmod(number, len(self._place.rows))
    row, count = self._place.rows[row], len(self._source)
    drawn = self._draw(
      seed, step, batch_size=self._place.batch_size, count=count
    )
    place = tuple(drawn.places[row])
    for more in range(min(count, _MOST_UNREADABLE)):
      index = (int(drawn.images[row]) + more) % count
      try:
        return self._source.crop(index, place, self._place.size)
      except DataError as error:
        problem = Problem.of(self._source.names[index], error)
        if self._stops:
          raise DataError(
            f"{problem}. It could be read before: restore it, or choose"
            ' data.on_problem="skip"'
          ) from error
        self._tell(problem)
    raise DataError(
      f"{more + 1} images in a row cannot be read any more, the last one"
      f" {problem}; is their disk still there?"
    )

  def _tell(self, problem):
    with self._telling:
      new = problem.name not in self._told
      self._told.add(problem.name)
    if new:
      _log.warning("%s: the next image takes its place from now on", problem)


def _require_grain():
  try:
    import grain  # noqa: F401
  except ImportError as error:
    raise DataError(
      f'data.cache="stream" needs grain ({error}); pip install grain, or choose'
      ' "memmap"'
    ) from error


class _Resident:
  """Batches of draws, of images in device memory."""

  def __init__(
    self,
    images: augment_lib.Resident,
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    size: int,
    mesh: Mesh | None,
  ):
    self._images, self._sizes = images, np.array(sizes)
    self._batch_size, self._size, self._mesh = batch_size, size, mesh
    self.abstract_batch = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=None if mesh is None else x.sharding
      ),
      self._batch(0, 0),
    )

  def from_seed(self, seed):
    return functools.partial(self._batch, seed)

  def _batch(self, seed, step):
    drawn = draw(
      seed, step, batch_size=self._batch_size, count=len(self._sizes)
    )
    room = self._sizes[drawn.images] - self._size + 1
    corners = (drawn.places * room).astype(np.int32)
    return {
      "images": self._images,
      "index": _replicate(drawn.images.astype(np.int32), self._mesh),
      "corners": _replicate(corners, self._mesh),
    }


def _replicate(array, mesh):
  if mesh is None:
    return jnp.asarray(array)
  # `device_put` would have all processes compare what they have.
  return jax.make_array_from_callback(
    array.shape, NamedSharding(mesh, P()), lambda index: array[index]
  )


def _place_on_devices(agreed, pairs, scale, mesh, parts):
  """Packs each process's share of the images for its devices."""
  devices = sum(map(len, parts))
  # The largest first, each to the device with the fewest rows so far. Everyone
  # finds the same places for the images of all.
  held: dict[int, list[int]] = {c: [] for c in range(devices)}
  heights = [0] * devices
  table = np.empty((len(agreed.usable), 5), np.int32)
  for number in sorted(
    range(len(agreed.usable)), key=lambda n: -min(agreed.sizes[n])
  ):
    mine = parts[agreed.usable[number] % len(parts)]
    least = min(mine, key=lambda c: (heights[c], c))
    h, w = agreed.sizes[number]
    table[number] = (least, heights[least], min(h, w), max(h, w), h > w)
    held[least].append(number)
    heights[least] += min(h, w)
  rows, width = max(heights), int(table[:, 3].max())

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
        np.swapaxes(pairs[agreed.usable[number]][which], 0, 1)
        if table[number, 4]
        else pairs[agreed.usable[number]][which]
        for number in held[coordinate]
      ]
      return augment_lib.pack(chosen, rows=k * rows, width=k * width)

    if mesh is None:
      return jnp.asarray(shard(0))
    return jax.make_array_from_callback(
      (devices * k * rows, k * width * 3),
      NamedSharding(mesh, P("data")),
      lambda index: shard((index[0].start or 0) // (k * rows)),
    )

  return augment_lib.Resident(
    packed(0, 1), packed(1, scale), _replicate(table, mesh)
  )


def _memory_limit(mesh):
  """Returns bytes of a device's memory, None where it does not say."""
  device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
  try:
    return (device.memory_stats() or {}).get("bytes_limit")
  except (RuntimeError, NotImplementedError):
    return None
