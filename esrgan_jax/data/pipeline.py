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

import difflib
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from esrgan_jax import augment as augment_lib
from esrgan_jax import distributed
from esrgan_jax.data import agreement
from esrgan_jax.data import cache as cache_lib
from esrgan_jax.data.batches import Crops, Placement, gather_of, parts_of
from esrgan_jax.data.prefetch import Pipeline
from esrgan_jax.data.resident import Resident, place_on_devices
from esrgan_jax.data.sources import (
  DataError,
  Source,
  Subset,
  open_source,
  prepare,
  require_hr,
)
from esrgan_jax.data.sources.shrunk import UNMADE
from esrgan_jax.data.streaming import Stream, require_grain

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
  "prepare": True,  # Prepare DIV2K, not tfds:NAME, where that was not done.
  "on_problem": "skip",  # Or "stop", when an image cannot be used.
  "border": "mirror",  # How LR is made from HR: see resize.imresize_uint8.
  "augment": True,  # Flips and quarter turns.
  "num_threads": 0,  # For decoding; 0 for one a CPU.
  "prefetch": 2,  # Batches made ahead.
}

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
    batches: Crops | Stream | Resident,
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
      raise ValueError(f"seed is {seed}; it must be 0 or more")
    return Pipeline(self._batches.from_seed(seed), prefetch=self._prefetch)


def open_data(
  config: Mapping[str, Any],
  *,
  scale: int,
  batch_size: int,
  patch_size: int,
  mesh: Mesh | None = None,
  progress: Callable[[int, int], None] | None = None,
  teach: Callable[[Source], Source] | None = None,
  needs_hr: bool = True,
  unmade: bool = False,
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
    teach: Makes of the source one whose HR is a teacher's; see `data.teaching`.
    needs_hr: Whether LR alone will not do, where there is no `teach`.
    unmade: Of HR images alone, no LR is made, which takes time: its place has
      every `scale`-th pixel, for steps that make LR of HR.

  Returns:
    The data.

  Raises:
    ValueError: If a size does not divide, or a key or a value is unknown.
    DataError: If a source cannot be opened, has LR alone, no image is usable,
      or any is not and `on_problem` is `"stop"`.

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
      f" {patch_size - patch_size % scale or scale}"
    )
  parts, part = parts_of(mesh)
  devices = sum(map(len, parts))
  if batch_size < 1 or batch_size % devices:
    raise ValueError(
      f"batch_size {batch_size} is not a multiple of the {devices} devices of"
      " the data axis"
    )
  if options["cache"] == "stream":
    require_grain()
  gather = gather_of(mesh)
  source, listed = _open(
    "sources",
    options,
    scale,
    gather,
    needs_hr=needs_hr,
    teach=teach,
    unmade=unmade,
  )
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
    images = place_on_devices(agreed, found.pairs, scale, mesh, parts)
    batches = Resident(images, agreed.sizes, batch_size, size, mesh)
  else:
    place = Placement(mesh, batch_size, scale, size)
    if options["cache"] == "stream":
      usable = Subset(source, agreed.usable)
      batches = Stream(usable, place, threads, options["on_problem"])
    else:
      pairs = [found.pairs[i] for i in agreed.usable]
      workers = threads if options["cache"] == "memmap" else 1
      batches = Crops(pairs, place, workers)

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
  needs_hr: bool = True,
  unmade: bool = False,
) -> tuple[Source | None, agreement.Report]:
  """Opens the validation images and looks at each, so that none is a surprise.

  With several processes, all of them must call this.

  Args:
    config: `config.data`, a dict or a ConfigDict; keys of `DEFAULTS`.
    scale: HR pixels per LR pixel.
    smallest: HR pixels a side that an image must have at least.
    progress: Called with images done and images in all.
    needs_hr: Whether LR alone will not do.
    unmade: As of `open_data`.

  Returns:
    The usable images, the same in all processes, and what was found. None
    where the config names none.

  Raises:
    ValueError: If a key or a value is unknown.
    DataError: If it cannot be opened, has LR alone, no image is usable, or any
      is not and `on_problem` is `"stop"`.

  >>> source, report = open_evaluation({}, scale=4, smallest=400)
  >>> source.names, str(report.problems[0])
  (['coffee.png', 'rocket.jpg'], 'chelsea.png: HR is 300x448, smaller than...')
  """
  options = _options(config)
  if not options["eval"]:
    return None, agreement.Report(0, 0)
  gather = distributed.gather
  source, listed = _open(
    "eval", options, scale, gather, needs_hr=needs_hr, unmade=unmade
  )
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
        f"data.{key} is {options[key]!r}; choose one of {' '.join(choices)}"
      )
  return options


def _open(key, options, scale, gather, *, needs_hr, teach=None, unmade=False):
  """Opens the sources of a key, the same in all processes."""
  border = UNMADE if unmade else options["border"]
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
  source, listed = agreement.agree_on_names(
    lambda: open_source(
      options[key], scale=scale, data_dir=data_dir, border=border
    ),
    gather,
  )
  if teach:
    source = teach(source)
  if needs_hr:
    require_hr(source, f"data.{key}")
  return source, listed


def _judge(report, options):
  """Stops or goes on, as configured."""
  if report.problems and options["on_problem"] == "stop":
    raise DataError(
      f"some images cannot be used: {report}\nRepair or remove them, or choose"
      ' data.on_problem="skip"'
    )
  if not report.images:
    raise DataError(f"no image can be used: {report}")
