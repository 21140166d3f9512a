"""How images are cut for a network, and what a device does with the pieces.

An image is cut into pieces that overlap by a halo; a piece lies in a window,
alone or beside pieces of other images; windows of one shape share a program.
Where the pieces are small or odd, the network is told by a mask which pixels
are image. All that is asked of it is what `models.registry` tells of it.
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
from esrgan_jax.ops import platforms

# BT.601 luma: how the three channels of a grey image's result become one.
_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Shape:
  """Windows of one size; all that a compiled program depends on.

  What a window contributes leaves the device in strips: the last layers need
  memory for one strip at a time. Sizes are in LR pixels.

  Attributes:
    height: Of a window.
    width: Of a window.
    strip_height: Of a strip.
    strip_width: Of a strip.
    num_strips: Strips below each other that a window contributes.
    multiple: All sizes are multiples of it: the network's `size_multiple`.
    masked: Whether there may be pixels that are no image.
    gap: Pixels between pieces of several images, so that none sees another;
      None where a window holds one.
    per_device: Windows that a device sees at a time.
  """

  height: int
  width: int
  strip_height: int
  strip_width: int
  num_strips: int
  multiple: int = 1
  masked: bool = False
  gap: int | None = None
  per_device: int = 1

  @property
  def area(self) -> int:
    """Pixels of a window."""
    return self.height * self.width

  @property
  def strip(self) -> tuple[int, int]:
    """Height and width of a strip in feature pixels."""
    return (
      self.strip_height // self.multiple,
      self.strip_width // self.multiple,
    )

  def corners(self, top: int = 0, left: int = 0) -> np.ndarray:
    """Returns where in a window each strip begins: int32 `[strips, 2]`.

    Args:
      top: The first row that the window contributes.
      left: The first column.
    """
    rows = top + self.strip_height * np.arange(self.num_strips)
    corners = np.stack([rows, np.full_like(rows, left)], axis=-1)
    # A last strip that would end outside of the window begins earlier.
    limit = (self.height - self.strip_height, self.width - self.strip_width)
    return np.minimum(corners, limit).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of an image that is computed at once: its rows and columns."""

  rows: tiling.Span
  columns: tiling.Span

  @property
  def height(self) -> int:
    """In pixels."""
    return self.rows.stop - self.rows.start

  @property
  def width(self) -> int:
    """In pixels."""
    return self.columns.stop - self.columns.start


@dataclasses.dataclass(frozen=True)
class Plan:
  """An image's pieces, and the shape of windows with one of them each.

  It depends on the image alone: how images share windows changes no result.

  Attributes:
    shape: Of windows that hold one piece.
    pieces: Together they contribute every pixel of the image once.
  """

  shape: Shape
  pieces: tuple[Piece, ...]

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
    masked = (
      height > rows[0].stop - rows[0].start
      or width > columns[0].stop - columns[0].start
    )
    return cls(
      make_shape(
        net,
        (height, width),
        (keep_height, keep_width),
        strip_size,
        masked=masked,
      ),
      tuple(Piece(row, column) for row in rows for column in columns),
    )


def make_shape(
  net: registry.Generator,
  size: tuple[int, int],
  kept: tuple[int, int],
  strip_size: int,
  **options: Any,
) -> Shape:
  """Makes the shape of windows, of which so much is kept.

  Args:
    net: The network.
    size: Height and width of a window.
    kept: The most rows and columns that a window contributes.
    strip_size: About how many features a strip has; it is one strip where the
      network has no halves.
    **options: Further fields of the shape.

  Returns:
    The shape.
  """
  multiple = registry.size_multiple(net)
  height, width = kept
  count = 1
  if registry.has_halves(net):
    row_size = width * net.scale**2 * net.num_feat
    count = max(1, height * row_size // strip_size)
  strip_height = -(-height // count)
  strip_height = -(-strip_height // multiple) * multiple
  return Shape(
    *size, strip_height, width, -(-height // strip_height), multiple, **options
  )


def place(
  out: np.ndarray,
  strips: np.ndarray,
  corners: np.ndarray,
  piece: Piece,
  at: tuple[int, int],
  scale: int,
) -> None:
  """Copies what a piece contributes into its image's result.

  Args:
    out: The result, `[H * scale, W * scale, C]`; it ends earlier than the
      pieces where the image was padded.
    strips: Of the piece's window, `[S, h, w, C]`.
    corners: `[S, 2]`, where each begins, in LR pixels of the window.
    piece: Which part of the image it is.
    at: Where in the window the piece's first row and column lie.
    scale: Of the network.
  """
  for strip, corner in zip(strips, corners, strict=True):
    target, source = [], []
    for axis, span in enumerate((piece.rows, piece.columns)):
      start = (span.start + int(corner[axis]) - at[axis]) * scale
      low = max(start, span.keep_start * scale)
      stop = min(
        start + strip.shape[axis], span.keep_stop * scale, out.shape[axis]
      )
      target.append(slice(low, stop))
      source.append(slice(low - start, stop - start))
    if all(part.stop > part.start for part in target):
      out[tuple(target)] = strip[tuple(source)]


def upscale_tiles(
  net: registry.Generator,
  variables: Mapping[str, Any],
  tiles: jax.Array,
  corners: jax.Array,
  valid: jax.Array | None = None,
  grey: jax.Array | None = None,
  *,
  size: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
  """Upscales strips of tiles as they come from, and go to, the host.

  Strips and their corners are in feature pixels: LR pixels over the network's
  `size_multiple`. On a CPU a network of bfloat16 multiplies in that, and
  computes all else in float32.

  Args:
    net: The network.
    variables: Its parameters, `{"params": ...}`, and what else it has.
    tiles: `[N, H, W, C]` of the network's channels: uint8, uint16, or float in
      [0, 1].
    corners: int32 `[N, S, 2]`, the first row and column of each strip.
    valid: bool `[N, H, W, 1]`, which pixels are image; a tile may have several,
      a pixel apart. Each is treated as if it ended there. None means all, the
      only choice where the network takes no mask.
    grey: bool `[N]`, the tiles whose three channels are equal and are to stay
      so; None means none.
    size: Height and width of a strip.

  Returns:
    `[N, S, height, width, C]`, upscaled, of the dtype of `tiles` if that is an
    integer, else float32; and `[N]`, whether the network's result was finite.
  """
  if _multiplies_alone(net):
    with jax.default_matmul_precision("bfloat16"):
      return upscale_tiles(
        net.clone(dtype=jnp.float32),
        variables,
        tiles,
        corners,
        valid,
        grey,
        size=size,
      )
  quantised = jnp.issubdtype(tiles.dtype, jnp.integer)
  levels = jnp.iinfo(tiles.dtype).max if quantised else 1
  lr = tiles.astype(jnp.float32) / levels
  upscale = _in_halves if registry.has_halves(net) else _at_once
  strip = upscale(net, variables, lr, valid, size)

  def finish(corner: jax.Array) -> tuple[jax.Array, jax.Array]:
    sr = strip(corner)
    finite = jnp.isfinite(sr).all(axis=(1, 2, 3))
    if grey is not None:
      luma = jnp.asarray(_LUMA, sr.dtype).reshape(1, 1, 1, 3)
      luma = (sr * luma).sum(axis=-1, keepdims=True)
      sr = jnp.where(grey.reshape(-1, 1, 1, 1), luma, sr)
    if quantised:
      sr = jnp.round(jnp.clip(sr, 0, 1) * levels).astype(tiles.dtype)
    return sr, finite

  sr, finite = jax.lax.map(finish, corners.swapaxes(0, 1))
  return sr.swapaxes(0, 1), finite.all(axis=0)


def _multiplies_alone(net: Any) -> bool:
  """Whether nothing but a network's products is faster in its dtype."""
  dtype = getattr(net, "dtype", None)
  if dtype is None or not hasattr(net, "clone"):
    return False
  return jnp.dtype(dtype) == jnp.bfloat16 and platforms.known() == "cpu"


# Of the corners of a strip of each tile, `[N, 2]`: the strips.
_Strip = Callable[[jax.Array], jax.Array]


def _in_halves(
  net: Any,
  variables: Mapping[str, Any],
  lr: jax.Array,
  valid: jax.Array | None,
  size: tuple[int, int],
) -> _Strip:
  """Computes the features of all, and of a strip no more than is asked for."""
  multiple = registry.size_multiple(net)
  if valid is not None:
    valid = valid[:, ::multiple, ::multiple]
  masked = () if valid is None else (valid,)
  feat = net.apply(variables, lr, *masked, method="features")
  margin = net.reconstruct_radius
  limits = np.array(feat.shape[1:3])
  crop = tuple(int(v) for v in np.minimum(limits, np.array(size) + 2 * margin))
  up = net.scale * multiple

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
  valid: jax.Array | None,
  size: tuple[int, int],
) -> _Strip:
  """Computes all at the result's resolution, and cuts strips out of it."""
  up = net.scale * registry.size_multiple(net)
  sr = registry.infer(net, variables, lr, valid)
  return lambda corner: _cut(sr, corner * up, [v * up for v in size])


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
  several = len(plan.pieces) > 1
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
