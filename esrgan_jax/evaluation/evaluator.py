"""Measures upscaled images by the protocol of published tables.

Results are rounded to 8 bits, `crop_border` pixels are cut off each side, and
PSNR and SSIM are taken on BT.601 luma (`psnr_y`, `ssim_y`) as well as on RGB
(`psnr_rgb`, `ssim_rgb`). Means are over images.

Images are measured block by block, so that a few programs do for images of all
sizes; sums of blocks are kept in float64.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from esrgan_jax import distributed, metrics, storage
from esrgan_jax.data.sources import DataError, Problem, Source, readable
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.resize import imresize_uint8
from esrgan_jax.text import printable
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = [
  "MEASURES",
  "Evaluation",
  "Evaluator",
  "NamedPair",
  "Score",
  "bicubic",
  "evaluate_pairs",
  "measure",
  "named_pairs",
  "read_evaluations",
  "smallest_side",
  "write_evaluations",
]

MEASURES = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")

Upscale = Callable[[np.ndarray], np.ndarray]
# Of float32 `[1, H, W, 3]` images sr and hr in [0, 1]; jitted here.
Distance = Callable[[jax.Array, jax.Array], jax.Array]

_BLOCKS = (64, 128, 256)  # The smallest that holds an image, or the largest.
_OVERLAP = 10  # SSIM's windows are 11x11.
# Distances, such as VGG's, are taken on the centre: one program for all
# images that are larger, at a bounded cost.
_DISTANCE_PATCH = 256


class NamedPair(NamedTuple):
  """An image: its name, and uint8 LR `[h, w, 3]` and HR `[H, W, 3]`."""

  name: str
  lr: np.ndarray
  hr: np.ndarray


class Score(NamedTuple):
  """What was measured on one image: values by name, `MEASURES` and others."""

  name: str
  values: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A model's scores on a set of images.

  Attributes:
    model: What it was, for tables.
    scale: HR pixels per LR pixel.
    crop_border: HR pixels that were cut off each side.
    scores: One an image.

  >>> scores = (Score("a", {"psnr_y": 30.0}), Score("b", {"psnr_y": 31.0}))
  >>> Evaluation("net", 4, 4, scores).means
  {'psnr_y': 30.5}
  """

  model: str
  scale: int
  crop_border: int
  scores: tuple[Score, ...]

  @property
  def means(self) -> dict[str, float]:
    """Mean over images of each value."""
    names = self.scores[0].values if self.scores else ()
    return {
      name: statistics.fmean(score.values[name] for score in self.scores)
      for name in names
    }

  @property
  def protocol(self) -> str:
    """How it was measured, in a sentence."""
    return (
      f"x{self.scale}; results rounded to 8 bits; {self.crop_border} pixels cut"
      " off each side; Y: BT.601 luma, 16 to 235 of 255; SSIM: 11x11 Gaussian"
      " window; means over images"
    )

  def to_json(self) -> dict[str, Any]:
    """Returns plain values for a JSON file; None for what is not finite."""
    return {
      "model": self.model,
      "scale": self.scale,
      "crop_border": self.crop_border,
      "protocol": self.protocol,
      "means": _plain(self.means),
      "images": [{"name": s.name, **_plain(s.values)} for s in self.scores],
    }


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
  return {k: v if math.isfinite(v) else None for k, v in values.items()}


def write_evaluations(
  path: str | os.PathLike[str],
  evaluations: Sequence[Evaluation],
  *,
  overwrite: bool = True,
) -> None:
  """Writes evaluations to a JSON file, in whole or not at all.

  Args:
    path: The file. `gs://` works as well.
    evaluations: Several models on the same images, mostly.
    overwrite: Whether to replace a file of that name.

  Raises:
    OSError: As `storage.write_whole`.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = os.path.join(folder, "evaluation.json")
  ...   scores = (Score("a", {"psnr_y": math.inf}),)
  ...   write_evaluations(path, [Evaluation("perfect", 4, 4, scores)])
  ...   read_evaluations(path)[0]["means"]
  {'psnr_y': None}
  """
  path = epath.Path(path)
  content = {"evaluations": [each.to_json() for each in evaluations]}
  text = json.dumps(content, indent=1, allow_nan=False) + "\n"
  storage.write_whole(path, text, overwrite=overwrite)


def read_evaluations(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads what `write_evaluations` wrote, as `Evaluation.to_json` gives it.

  Args:
    path: The file.

  Returns:
    A dict an evaluation.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is no such file; names it.
  """
  try:
    return list(json.loads(epath.Path(path).read_text())["evaluations"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} holds no evaluations: {error!r}") from error


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
  return max(_OVERLAP + 1 + 2 * crop_border, 16)


def measure(
  sr: np.ndarray, hr: np.ndarray, *, crop_border: int
) -> dict[str, float]:
  """Returns PSNR in decibels and SSIM of an 8-bit image, on Y and on RGB.

  Args:
    sr: Super-resolved image, uint8 `[H, W, 3]`.
    hr: Ground truth, likewise.
    crop_border: Pixels removed from each side before measuring, >= 0; papers
      remove `scale` pixels.

  Returns:
    `psnr_y`, `ssim_y`, `psnr_rgb` and `ssim_rgb`; PSNR of equal images is
    `inf`.

  Raises:
    ValueError: If the images are not uint8, differ in shape, or fewer than
      11x11 pixels are left.

  Source: `esrgan_jax.metrics.psnr` and `ssim`, to rounding.

  >>> hr = np.zeros((30, 20, 3), np.uint8)
  >>> values = measure(hr + np.uint8(51), hr, crop_border=4)
  >>> list(values), round(values["psnr_rgb"], 3)
  (['psnr_y', 'ssim_y', 'psnr_rgb', 'ssim_rgb'], 13.979)
  """
  for name, image in (("sr", sr), ("hr", hr)):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
      raise ValueError(
        f"{name} must be uint8 [H, W, 3], got {image.dtype} {image.shape}"
      )
  if sr.shape != hr.shape:
    raise ValueError(
      f"the result is {sr.shape[0]}x{sr.shape[1]}, the ground truth"
      f" {hr.shape[0]}x{hr.shape[1]}"
    )
  if crop_border < 0:
    raise ValueError(f"crop_border must be >= 0, got {crop_border}")
  height, width = (n - 2 * crop_border for n in hr.shape[:2])
  if min(height, width) <= _OVERLAP:
    raise ValueError(
      f"crop_border {crop_border} leaves {max(height, 0)}x{max(width, 0)} of"
      f" {hr.shape[0]}x{hr.shape[1]} pixels; at least 11x11 are needed"
    )
  inner = (
    slice(crop_border, crop_border + height),
    slice(crop_border, crop_border + width),
  )
  sr, hr = sr[inner], hr[inner]
  total = np.zeros((2, 4))
  length = min(max(height, width), _BLOCKS[-1])
  side = next(side for side in _BLOCKS if side >= length)
  corners = itertools.product(range(0, height, side), range(0, width, side))
  for top, left in corners:
    size = side + _OVERLAP
    block = np.zeros((2, size, size, 3), np.uint8)
    for i, image in enumerate((sr, hr)):
      part = image[top : top + size, left : left + size]
      block[i, : part.shape[0], : part.shape[1]] = part
    inside = np.array([height - top, width - left], np.int32)
    total += np.asarray(_block_sums(block, inside), np.float64)
  errors = total[0] / (height * width)
  similar = 1 - total[1] / ((height - _OVERLAP) * (width - _OVERLAP))
  return {
    "psnr_y": _decibels(errors[3]),
    "ssim_y": float(similar[3]),
    "psnr_rgb": _decibels(errors[:3].mean()),
    "ssim_rgb": float(similar[:3].mean()),
  }


def _decibels(error: float) -> float:
  return -10 * math.log10(error) if error > 0 else math.inf


@jax.jit
def _block_sums(block: jax.Array, inside: jax.Array) -> jax.Array:
  """Sums squared errors, and what SSIM lacks of 1, over a block's own pixels.

  `block` is sr and hr, `inside` the rows and columns that the image has left
  from the block's corner. Returns `[2, 4]`: R, G, B, Y.
  """
  side = block.shape[1] - _OVERLAP
  rgb = block.astype(jnp.float32) / 255
  sr, hr = jnp.concatenate([rgb, metrics.rgb_to_y(rgb)], axis=-1)

  def own(values: jax.Array, limit: jax.Array) -> jax.Array:
    # Beyond the block's own pixels begins the next block, or nothing.
    values = values[:side, :side]
    rows = jnp.arange(side).reshape(-1, 1, 1) < limit[0]
    columns = jnp.arange(side).reshape(1, -1, 1) < limit[1]
    return jnp.where(rows & columns, values, 0).sum(axis=0).sum(axis=0)

  errors = own(jnp.square(sr - hr), inside)
  lacking = own(1 - metrics.ssim_map(sr, hr), inside - _OVERLAP)
  return jnp.stack([errors, lacking])


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


def evaluate_pairs(
  upscale: Upscale | Upscaler,
  pairs: Iterable[NamedPair | tuple[str, np.ndarray, np.ndarray]],
  *,
  scale: int,
  crop_border: int | None = None,
  model: str = "",
  distances: Mapping[str, Distance] | None = None,
  notify: Callable[[Score], None] | None = None,
) -> Evaluation:
  """Upscales every LR image and compares it with its HR image.

  Args:
    upscale: Takes uint8 `[h, w, 3]` to uint8 `[scale * h, scale * w, 3]`, or
      an `Upscaler`.
    pairs: Name, LR and HR of each image; uint8.
    scale: HR pixels per LR pixel.
    crop_border: HR pixels removed from each side; None means `scale`.
    model: What `upscale` is, for tables.
    distances: Further measures by name: functions of float32 `[1, H, W, 3]`
      sr and hr, such as a perceptual loss, taken on the central 256x256
      pixels of the rounded result.
    notify: Called with each score once it is there.

  Returns:
    Scores of all images.

  Raises:
    ValueError: If there are no images, or one cannot be measured; names it.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = list(named_pairs(SamplePhotos("held_out", scale=4)))
  >>> result = evaluate_pairs(
  ...   lambda lr: bicubic(lr, scale=4), photos[:1], scale=4, model="bicubic"
  ... )
  >>> result.scores[0].name, round(result.means["psnr_y"], 2)
  ('chelsea.png', 31.47)
  """
  run = upscale.upscale if isinstance(upscale, Upscaler) else upscale
  crop_border = scale if crop_border is None else crop_border
  compiled = {name: jax.jit(each) for name, each in (distances or {}).items()}
  scores = []
  for pair in pairs:
    scores.append(_score(run, NamedPair(*pair), crop_border, compiled))
    if notify:
      notify(scores[-1])
  if not scores:
    raise ValueError("there is no image to evaluate on")
  return Evaluation(model, scale, crop_border, tuple(scores))


def _score(
  upscale: Upscale,
  pair: NamedPair,
  crop_border: int,
  distances: Mapping[str, Distance],
) -> Score:
  """Upscales an image, and measures the result."""
  try:
    sr = np.asarray(upscale(pair.lr))
    values = measure(sr, pair.hr, crop_border=crop_border)
  except (ValueError, FloatingPointError) as error:
    raise type(error)(f"{printable(pair.name)}: {error}") from error
  if distances:
    patches = [_centre(image) for image in (sr, pair.hr)]
    values |= {k: float(each(*patches)) for k, each in distances.items()}
  return Score(pair.name, values)


def _centre(image: np.ndarray) -> np.ndarray:
  """Returns the middle of a uint8 image, as float32 `[1, H, W, 3]`."""
  for axis in (0, 1):
    size = min(image.shape[axis], _DISTANCE_PATCH)
    start = (image.shape[axis] - size) // 2
    image = np.take(image, range(start, start + size), axis=axis)
  return image[None].astype(np.float32) / np.float32(255)


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
    distances: See `evaluate_pairs`.
    skip: Told of each image that cannot be read, each time; it has no score
      then. None raises the error instead.
    tile: See `Upscaler.upscale`.
    devices: Devices of this process to run on; None means all of its own.

  Raises:
    ValueError: If the network's scale is not that of the images, or there are
      none.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> evaluator = Evaluator(net, SamplePhotos("held_out", scale=4))
  >>> evaluator.names
  ('chelsea.png', 'coffee.png', 'rocket.jpg')
  """

  def __init__(
    self,
    net: RRDBNet,
    source: Source,
    *,
    crop_border: int | None = None,
    distances: Mapping[str, Distance] | None = None,
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
    self._distances = {
      name: jax.jit(each) for name, each in (distances or {}).items()
    }
    self._skip = skip
    self._tile = tile
    self._model = Upscaler(net, {}, devices=devices)

  def __call__(
    self, params: Mapping[str, Any], *, model: str = ""
  ) -> Evaluation:
    """Measures one set of parameters.

    Args:
      params: The network's parameters, on the host or replicated over devices
        of any processes.
      model: What they are, for tables.

    Returns:
      Scores of all images, in the source's order.
    """
    upscaler = self._model.with_params(jax.tree.map(_local, params))
    return self.measure(
      lambda lr: upscaler.upscale(lr, tile=self._tile), model=model
    )

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
        score = _score(upscale, named, self._crop_border, self._distances)
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
    scores = tuple(Score(self.names[i], values[i]) for i in sorted(values))
    return Evaluation(model, self._source.scale, self._crop_border, scores)


def _local(leaf: Any) -> Any:
  """Returns this process's copy of an array that all of them hold."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return leaf.addressable_data(0)
  return leaf
