"""How an image is cut for a network, and what a device does with the pieces.

All that is asked of the network is what `models.registry` tells of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax import tiling
from esrgan_jax.models import registry

# BT.601 luma: how the three channels of a grey image's result become one.
_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Windows of one size that cover an image; sizes in LR pixels.

  What a window contributes leaves the device in strips: the last layers need
  memory for one strip at a time. It is one strip where the network has no
  halves.

  Attributes:
    height: Of a window.
    width: Of a window.
    rows: Windows along the image's height.
    columns: Windows along its width.
    strip_height: Of a strip.
    strip_width: Of a strip, the widest part that a window contributes.
    multiple: All of these are multiples of it: the network's `size_multiple`.
  """

  height: int
  width: int
  rows: tuple[tiling.Span, ...]
  columns: tuple[tiling.Span, ...]
  strip_height: int
  strip_width: int
  multiple: int

  @classmethod
  def make(
    cls,
    shape: tuple[int, ...],
    net: registry.Generator,
    tile: int,
    halo: int,
    strip_size: int,
  ) -> Plan:
    """Covers an image of `shape`; a strip has about `strip_size` features."""
    multiple = registry.size_multiple(net)
    (height, rows), (width, columns) = (
      tiling.cut(
        length,
        tile=tile,
        halo=halo,
        multiple=multiple,
        # What cannot be masked would be seen by the network.
        rounded=registry.takes_mask(net),
      )
      for length in shape[:2]
    )
    keep_height = max(span.keep_stop - span.keep_start for span in rows)
    keep_width = max(span.keep_stop - span.keep_start for span in columns)
    count = 1
    if registry.has_halves(net):
      row_size = keep_width * net.scale**2 * net.num_feat
      count = max(1, keep_height * row_size // strip_size)
    strip_height = -(-keep_height // count)
    strip_height = -(-strip_height // multiple) * multiple
    return cls(height, width, rows, columns, strip_height, keep_width, multiple)

  @property
  def shape(self) -> tuple[int, ...]:
    """All that a compiled program depends on."""
    return (self.height, self.width, self.num_strips, *self.strip)

  @property
  def strip(self) -> tuple[int, int]:
    """Height and width of a strip in feature pixels."""
    return (
      self.strip_height // self.multiple,
      self.strip_width // self.multiple,
    )

  @property
  def num_strips(self) -> int:
    """Strips that a window contributes."""
    keep = max(span.keep_stop - span.keep_start for span in self.rows)
    return -(-keep // self.strip_height)

  @property
  def masked(self) -> bool:
    """Whether a window is larger than the image."""
    return (
      self.height > self.rows[0].stop - self.rows[0].start
      or self.width > self.columns[0].stop - self.columns[0].start
    )

  def corners(self, rows: tiling.Span, columns: tiling.Span) -> np.ndarray:
    """Returns where in its window each strip begins: int32 `[strips, 2]`."""
    first = rows.keep_start - rows.start
    top = first + self.strip_height * np.arange(self.num_strips)
    left = columns.keep_start - columns.start
    corners = np.stack([top, np.full_like(top, left)], axis=-1)
    # A last strip that would end outside of the window begins earlier.
    limit = (self.height - self.strip_height, self.width - self.strip_width)
    return np.minimum(corners, limit).astype(np.int32)

  def place(
    self,
    out: np.ndarray,
    strips: np.ndarray,
    window: tuple[tiling.Span, tiling.Span],
    scale: int,
  ) -> None:
    """Copies what a window contributes into the result."""
    for strip, corner in zip(strips, self.corners(*window), strict=True):
      target, source = [], []
      for axis, span in enumerate(window):
        # The result ends before the plan where the image was padded.
        start = (span.start + int(corner[axis])) * scale
        low = max(start, span.keep_start * scale)
        stop = min(
          start + strip.shape[axis], span.keep_stop * scale, out.shape[axis]
        )
        target.append(slice(low, stop))
        source.append(slice(low - start, stop - start))
      if all(piece.stop > piece.start for piece in target):
        out[tuple(target)] = strip[tuple(source)]


def upscale_tiles(
  net: registry.Generator,
  variables: Mapping[str, Any],
  tiles: jax.Array,
  corners: jax.Array,
  inside: jax.Array | None = None,
  *,
  size: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
  """Upscales strips of tiles as they come from, and go to, the host.

  Strips and their corners are in feature pixels: LR pixels over the network's
  `size_multiple`.

  Args:
    net: The network, from 3 to 3 channels.
    variables: Its parameters, `{"params": ...}`, and what else it has.
    tiles: `[N, H, W, C]`, C = 3 (RGB) or 1 (grey); uint8, uint16, or float in
      [0, 1].
    corners: int32 `[N, S, 2]`, the first row and column of each strip.
    inside: int32 `[N, 2]`, LR rows and columns of each tile that are image;
      what lies beyond is treated as outside of it. None means all, the only
      choice where the network takes no mask.
    size: Height and width of a strip.

  Returns:
    `[N, S, height, width, C]`, upscaled, of the dtype of `tiles` if that is an
    integer, else float32; and `[N]`, whether the network's result was finite.
  """
  quantised = jnp.issubdtype(tiles.dtype, jnp.integer)
  levels = jnp.iinfo(tiles.dtype).max if quantised else 1
  lr = tiles.astype(jnp.float32) / levels
  lr = jnp.broadcast_to(lr, (*lr.shape[:-1], 3))
  upscale = _in_halves if registry.has_halves(net) else _at_once
  strip = upscale(net, variables, lr, inside, size)

  def finish(corner: jax.Array) -> tuple[jax.Array, jax.Array]:
    sr = strip(corner)
    finite = jnp.isfinite(sr).all(axis=(1, 2, 3))
    if tiles.shape[-1] == 1:
      luma = jnp.asarray(_LUMA, sr.dtype).reshape(1, 1, 1, 3)
      sr = (sr * luma).sum(axis=-1, keepdims=True)
    if quantised:
      sr = jnp.round(jnp.clip(sr, 0, 1) * levels).astype(tiles.dtype)
    return sr, finite

  sr, finite = jax.lax.map(finish, corners.swapaxes(0, 1))
  return sr.swapaxes(0, 1), finite.all(axis=0)


# Of the corners of a strip of each tile, `[N, 2]`: the strips.
_Strip = Callable[[jax.Array], jax.Array]


def _in_halves(
  net: Any,
  variables: Mapping[str, Any],
  lr: jax.Array,
  inside: jax.Array | None,
  size: tuple[int, int],
) -> _Strip:
  """Computes the features of all, and of a strip no more than is asked for."""
  valid = _mask(lr.shape, inside, registry.size_multiple(net))
  masked = () if valid is None else (valid,)
  feat = net.apply(variables, lr, *masked, method="features")
  margin = net.reconstruct_radius
  limits = np.array(feat.shape[1:3])
  crop = tuple(int(v) for v in np.minimum(limits, np.array(size) + 2 * margin))
  up = net.scale * registry.size_multiple(net)

  def strip(corner: jax.Array) -> jax.Array:
    last = jnp.asarray(limits - crop, jnp.int32).reshape(1, 2)
    start = jnp.clip(corner - margin, 0, last)
    part = () if valid is None else (_cut(valid, start, crop),)
    sr = net.apply(
      variables, _cut(feat, start, crop), *part, method="reconstruct"
    )
    return _cut(sr, (corner - start) * up, [v * up for v in size])

  return strip


def _at_once(
  net: Any,
  variables: Mapping[str, Any],
  lr: jax.Array,
  inside: jax.Array | None,
  size: tuple[int, int],
) -> _Strip:
  """Computes all at the result's resolution, and cuts strips out of it."""
  up = net.scale * registry.size_multiple(net)
  sr = registry.infer(net, variables, lr, _mask(lr.shape, inside, 1))
  return lambda corner: _cut(sr, corner * up, [v * up for v in size])


def _mask(
  shape: Sequence[int], inside: jax.Array | None, factor: int
) -> jax.Array | None:
  """Returns `[N, H / factor, W / factor, 1]`, whether a pixel is image."""
  if inside is None:
    return None
  rows, columns = (
    jnp.arange(size // factor, dtype=inside.dtype) for size in shape[1:3]
  )
  rows, columns = rows.reshape(1, -1, 1, 1), columns.reshape(1, 1, -1, 1)
  limit = (inside // factor).reshape(-1, 2, 1, 1, 1)
  return (rows < limit[:, 0]) & (columns < limit[:, 1])


def _cut(x: jax.Array, corner: jax.Array, size: Sequence[int]) -> jax.Array:
  """Cuts one piece out of each of a batch."""
  zero = jnp.zeros((), corner.dtype)
  pieces = [
    jax.lax.dynamic_slice(image, (*at, zero), (*size, x.shape[-1]))
    for image, at in zip(x, corner, strict=True)
  ]
  return jnp.stack(pieces)


def choose_halo(
  net: registry.Generator, halo: int | None = None, *, exact: bool = False
) -> int:
  """Returns how far tiles of a network overlap, in LR pixels.

  Args:
    net: The network.
    halo: What was asked for; None means a width whose error is not seen.
    exact: As far as the network looks, whatever else was asked for, where it
      tells.

  Returns:
    LR pixels around what a tile contributes.

  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> net = RRDBNet(num_block=6)
  >>> choose_halo(net), choose_halo(net, 20), choose_halo(net, exact=True)
  (80, 20, 94)
  """
  radius = registry.receptive_radius(net)
  if exact and radius is not None:
    return radius
  if halo is not None:
    return halo
  default = tiling.DEFAULT_HALO
  return default if radius is None else min(default, radius)


def check_exact(net: registry.Generator, plan: Plan, *, whole: bool) -> None:
  """Raises if a plan's tiles cannot be exact; one that is all always is.

  Args:
    net: The network.
    plan: Of the image.
    whole: Whether it was to be one tile, for which memory does not suffice.

  Raises:
    ValueError: If there are several tiles, and the network does not tell how
      far it looks.
  """
  several = len(plan.rows) * len(plan.columns) > 1
  if not several or registry.receptive_radius(net) is not None:
    return
  remedy = "do not tile (tile 0)"
  if whole:
    remedy = "free memory, for the whole image does not fit"
  raise ValueError(
    f"tiles cannot be exact: {type(net).__name__} does not tell how far it"
    f" looks (receptive_radius); {remedy}, or do without exact tiles, with a"
    f" wide halo (default {tiling.DEFAULT_HALO})"
  )


def pad_to_multiple(pixels: np.ndarray, multiple: int) -> np.ndarray:
  """Mirrors the last rows and columns, as Real-ESRGAN's `mod_pad` does.

  >>> pad_to_multiple(np.zeros((5, 4, 3)), 2).shape
  (6, 4, 3)
  """
  for axis in (0, 1):
    missing = -pixels.shape[axis] % multiple
    if missing:
      pad = [(0, 0)] * 3
      pad[axis] = (0, missing)
      mode = "reflect" if pixels.shape[axis] > missing else "edge"
      pixels = np.pad(pixels, pad, mode=mode)
  return pixels
