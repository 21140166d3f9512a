"""Measures upscaled images by the protocol of published tables.

Results are rounded to 8 bits, `crop_border` pixels are cut off each side, and
each image is measured by what `evaluation.measures` has: PSNR and SSIM, on
BT.601 luma as well as on RGB, where nothing else is asked for. Means are over
images.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from esrgan_jax import distributed
from esrgan_jax.data.sources import DataError, Problem, Source, readable
from esrgan_jax.evaluation import measures as measures_lib
from esrgan_jax.evaluation.compared import WINDOW, Compared
from esrgan_jax.evaluation.measures import Measure
from esrgan_jax.evaluation.scores import (
  Evaluation,
  Patches,
  Score,
  read_evaluations,
  write_evaluations,
)
from esrgan_jax.models import registry
from esrgan_jax.resize import imresize_uint8
from esrgan_jax.text import printable
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = [
  "Evaluation",
  "Evaluator",
  "NamedPair",
  "Patches",
  "Score",
  "bicubic",
  "cut",
  "evaluate_pairs",
  "named_pairs",
  "read_evaluations",
  "smallest_side",
  "write_evaluations",
]

Upscale = Callable[[np.ndarray], np.ndarray]


class NamedPair(NamedTuple):
  """An image: its name, and uint8 LR `[h, w, 3]` and HR `[H, W, 3]`."""

  name: str
  lr: np.ndarray
  hr: np.ndarray


def bicubic(lr: np.ndarray, *, scale: int) -> np.ndarray:
  """Upscales by MATLAB's bicubic `imresize`, the baseline of every table.

  Args:
    lr: uint8 `[h, w, 3]`.
    scale: Size of the result over that of `lr`.

  Returns:
    uint8 `[scale * h, scale * w, 3]`.

  Source: the bicubic rows of super-resolution papers; on the usual LR images
  of Set5 (x4) it gives 28.43 dB and 0.811.

  >>> bicubic(np.full((2, 3, 3), 7, np.uint8), scale=4).shape
  (8, 12, 3)
  """
  return imresize_uint8(lr, scale=scale)


def smallest_side(crop_border: int) -> int:
  """Returns how many pixels a side an HR image needs to be measured.

  Args:
    crop_border: HR pixels removed from each side before measuring.

  Returns:
    What SSIM's window needs besides, and VGG19's four poolings.

  >>> smallest_side(0), smallest_side(4)
  (16, 19)
  """
  return max(WINDOW + 2 * crop_border, 16)


def named_pairs(
  source: Source, *, first: int = 0, step: int = 1
) -> Iterator[NamedPair]:
  """Reads the pairs of a source, or every `step`th from `first` on.

  Args:
    source: Where the pairs are.
    first: Index of the first pair.
    step: Distance to the next.

  Yields:
    The pairs, with their names.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> [pair.name for pair in named_pairs(photos, first=1, step=2)]
  ['coffee.png']
  """
  for index in range(first, len(source), step):
    yield NamedPair(source.names[index], *source[index])


def cut(
  pair: NamedPair, patches: Patches, *, scale: int
) -> Iterator[NamedPair]:
  """Cuts an image into patches, row by row; what is left over is not one.

  Args:
    pair: The image.
    patches: HR pixels a side, and from one patch to the next; multiples of
      `scale`.
    scale: HR pixels per LR pixel.

  Yields:
    The patches, named with their place: HR pixels from the top and left. None
    of an image that is smaller than a patch.

  Raises:
    ValueError: If the patches are no multiples of `scale`.

  Source: captain-pool/GSOC's `E2_ESRGAN/evaluate_psnr.py`, whose patches have
  512 HR pixels a side and begin every 160.

  >>> hr = np.zeros((32, 50, 3), np.uint8)
  >>> pair = NamedPair("a.png", hr[::4, ::4][:, :12], hr[:, :48])
  >>> [patch.name for patch in cut(pair, Patches(24, 16), scale=4)]
  ['a.png 0,0', 'a.png 0,16']
  """
  size, step = patches
  if size % scale or step % scale or min(patches) < 1:
    raise ValueError(
      f"patches of {size} every {step} pixels are no multiples of scale {scale}"
    )
  height, width, _ = pair.hr.shape
  side = size // scale
  for top in range(0, height - size + 1, step):
    for left in range(0, width - size + 1, step):
      y, x = top // scale, left // scale
      yield NamedPair(
        f"{pair.name} {top},{left}",
        pair.lr[y : y + side, x : x + side],
        pair.hr[top : top + size, left : left + size],
      )


def evaluate_pairs(
  upscale: Upscale | Upscaler,
  pairs: Iterable[NamedPair | tuple[str, np.ndarray, np.ndarray]],
  *,
  scale: int,
  crop_border: int | None = None,
  model: str = "",
  measures: Sequence[Measure] | None = None,
  notify: Callable[[Score], None] | None = None,
  patches: Patches | None = None,
) -> Evaluation:
  """Upscales every LR image and compares it with its HR image.

  Args:
    upscale: Takes uint8 `[h, w, 3]` to uint8 `[scale * h, scale * w, 3]`, or
      an `Upscaler`.
    pairs: Name, LR and HR of each image; uint8.
    scale: HR pixels per LR pixel.
    crop_border: HR pixels removed from each side; None means `scale`, and 0
      of patches.
    model: What `upscale` is, for tables.
    measures: What to measure; None means PSNR and SSIM, on Y and on RGB.
    notify: Called with each score once it is there.
    patches: What to `cut` the images into: each patch is upscaled and measured
      as an image is. None for whole images.

  Returns:
    Scores of all images, or patches.

  Raises:
    ValueError: If there are no images, or patches, or one cannot be measured;
      names it.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = list(named_pairs(SamplePhotos("held_out", scale=4)))
  >>> result = evaluate_pairs(
  ...   lambda lr: bicubic(lr, scale=4), photos[:1], scale=4, model="bicubic"
  ... )
  >>> result.scores[0].name, round(result.means["psnr_y"], 2)
  ('chelsea.png', 31.47)
  """
  run = upscale.upscale if isinstance(upscale, Upscaler) else upscale
  if crop_border is None:
    crop_border = 0 if patches else scale
  take = measures_lib.compile_measures(measures)
  named = itertools.starmap(NamedPair, pairs)
  if patches:
    cuts = (cut(pair, patches, scale=scale) for pair in named)
    named = itertools.chain.from_iterable(cuts)
  scores = []
  for pair in named:
    scores.append(_score(run, pair, crop_border, take))
    if notify:
      notify(scores[-1])
  if not scores:
    what = "image"
    if patches:
      what = f"image of at least {patches.size}x{patches.size} pixels"
    raise ValueError(f"there is no {what} to evaluate on")
  return Evaluation(model, scale, crop_border, tuple(scores), patches)


def _score(
  upscale: Upscale,
  pair: NamedPair,
  crop_border: int,
  take: Callable[[Compared], dict[str, float]],
) -> Score:
  """Upscales an image, and measures the result."""
  try:
    sr = np.asarray(upscale(pair.lr))
    compared = Compared(sr, pair.hr, crop_border=crop_border)
    return Score(pair.name, take(compared))
  except (ValueError, FloatingPointError) as error:
    raise type(error)(f"{printable(pair.name)}: {error}") from error


class Evaluator:
  """Measures a network on fixed images, time and again during training.

  Parameters change, compiled programs stay. With several processes each
  measures its share of the images and all return the same result; all must
  call it then.

  Args:
    net: The network.
    source: The images; read anew for each evaluation, so that none stays in
      memory.
    crop_border: HR pixels removed from each side; None means the scale.
    measures: See `evaluate_pairs`.
    failed: Told of each measure, by name, that fails on an image of this
      process's; no image has a value of it then. None raises the error instead.
    skip: Told of each image that cannot be read, each time; it has no score
      then. None raises the error instead.
    tile: See `Upscaler.upscale`.
    devices: Devices of this process to run on; None means all of its own.

  Raises:
    ValueError: If the network's scale is not that of the images, or there are
      none.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> evaluator = Evaluator(net, SamplePhotos("held_out", scale=4))
  >>> evaluator.names
  ('chelsea.png', 'coffee.png', 'rocket.jpg')
  """

  def __init__(
    self,
    net: registry.Generator,
    source: Source,
    *,
    crop_border: int | None = None,
    measures: Sequence[Measure] | None = None,
    failed: Callable[[str, ValueError], None] | None = None,
    skip: Callable[[Problem], None] | None = None,
    tile: int | str = "auto",
    devices: Sequence[jax.Device] | None = None,
  ):
    if net.scale != source.scale:
      raise ValueError(
        f"the network is x{net.scale}, the images are x{source.scale}"
      )
    if not len(source):
      raise ValueError("there is no image to evaluate on")
    self.names = tuple(source.names)
    self._source = source
    self._crop_border = net.scale if crop_border is None else crop_border
    self._take = measures_lib.compile_measures(measures, failed=failed)
    self._skip = skip
    self._tile = tile
    self._net, self._devices = net, devices
    # The last model, for its programs; without its arrays, which take memory.
    self._last: Upscaler | None = None

  def __call__(
    self,
    params: Mapping[str, Any],
    collections: Mapping[str, Any] | None = None,
    *,
    model: str = "",
  ) -> Evaluation:
    """Measures one set of parameters.

    Args:
      params: The network's parameters, on the host or replicated over devices
        of any processes.
      collections: What the network has besides, likewise.
      model: What they are, for tables.

    Returns:
      Scores of all images, in the source's order.
    """
    variables = (params, dict(collections or {}))
    variables = jax.tree.map(_local, variables)
    if self._last is None:
      upscaler = Upscaler(self._net, *variables, devices=self._devices)
    else:
      upscaler = self._last.with_params(*variables)
    self._last = jax.tree.map(lambda leaf: 0.0, upscaler)
    upscale = functools.partial(upscaler.upscale, tile=self._tile)
    return self.measure(upscale, model=model)

  def bicubic(self) -> Evaluation:
    """Measures bicubic upscaling, the baseline, on the same images."""
    scale = self._source.scale
    return self.measure(lambda lr: bicubic(lr, scale=scale), model="bicubic")

  def measure(self, upscale: Upscale, *, model: str) -> Evaluation:
    """Measures anything that upscales, on the same images.

    Args:
      upscale: See `evaluate_pairs`.
      model: What it is, for tables.

    Returns:
      Scores of all images that can be read, in the source's order; the same in
      all processes.

    Raises:
      DataError: If an image cannot be read and none is to be skipped, or none
        can be read.
      FloatingPointError: If a result is not finite, in any process.
      Exception: What else went wrong; in the other processes, a RuntimeError.
    """
    share = range(jax.process_index(), len(self.names), jax.process_count())
    mine, failed = {}, None
    try:
      for index, pair in readable(self._source, self._skip, share):
        named = NamedPair(self.names[index], *pair)
        score = _score(upscale, named, self._crop_border, self._take)
        mine[index] = score.values
    except Exception as error:  # Raised below, when no process waits.
      failed = error
    view = {
      "scores": list(mine.items()),
      "failed": failed and (str(failed) or type(failed).__name__),
      "diverged": isinstance(failed, FloatingPointError),
    }
    views = list(map(json.loads, distributed.gather(json.dumps(view))))
    if failed:
      raise failed
    for process, view in enumerate(views):
      if view["failed"]:
        kind = FloatingPointError if view["diverged"] else RuntimeError
        raise kind(f"process {process}: {view['failed']}")
    values = dict(itertools.chain.from_iterable(v["scores"] for v in views))
    if not values:
      raise DataError("there is no image left to evaluate on")
    taken = set.intersection(*map(set, values.values()))
    scores = tuple(
      Score(self.names[i], {k: v for k, v in found.items() if k in taken})
      for i, found in sorted(values.items())
    )
    return Evaluation(model, self._source.scale, self._crop_border, scores)


def _local(leaf: Any) -> Any:
  """Returns this process's copy of an array that all of them hold."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return leaf.addressable_data(0)
  return leaf
