"""Wraps pictures around: textures that tile, panoramas that close.

What lies beyond an edge of such a picture is its opposite edge. So it is
continued by wrapping, as far as a network or a filter looks, and the result is
cut back to where the picture ends: its edges then meet as if there were none.
Upscaling what was rolled is the same as rolling what was upscaled, to rounding
if the border is as wide as the network looks, by whole blocks of pixels if it
moves such into channels (`registry.size_multiple`).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from esrgan_jax import tiling
from esrgan_jax.models import registry
from esrgan_jax.upscaling import tiles

__all__ = ["DIRECTIONS", "Border", "border_of_network", "widen_for_resize"]

# Which edges meet. A panorama of 360 degrees closes from left to right; above
# and below it are poles, where nothing comes back.
DIRECTIONS = ("both", "horizontal", "vertical")

_LANCZOS_RADIUS = 3  # Of Pillow's filter, in the coarser pixels.


@dataclasses.dataclass(frozen=True)
class Border:
  """What a picture is continued by, in its pixels: before and after.

  Attributes:
    rows: Above and below it.
    columns: At its left and right.

  >>> border = Border(rows=(0, 0), columns=(3, 1))
  >>> wide = border.add(np.array([[1, 2]]))
  >>> wide.tolist()
  [[2, 1, 2, 1, 2, 1]]
  >>> border.take_off(wide.repeat(2, 0).repeat(2, 1), 2).tolist()
  [[1, 1, 2, 2], [1, 1, 2, 2]]
  """

  rows: tuple[int, int]
  columns: tuple[int, int]

  @classmethod
  def around(
    cls,
    shape: tuple[int, ...],
    direction: str,
    margin: int | tuple[int, int],
    *,
    multiple: int = 1,
  ) -> Border:
    """Returns a border of a picture.

    Args:
      shape: Of the picture, height and width first.
      direction: Which of its edges meet, one of `DIRECTIONS`.
      margin: Pixels on each side, for both axes or for each.
      multiple: What stands before the picture is a multiple of it, so that
        blocks of pixels lie as they do without a border, and so is the whole.

    Raises:
      ValueError: If there is no such direction.

    >>> Border.around((5, 6, 3), "horizontal", 3, multiple=2)
    Border(rows=(0, 0), columns=(4, 4))
    """
    check_direction(direction)
    margins = (margin, margin) if isinstance(margin, int) else margin
    sides = []
    for axis, name in enumerate(("vertical", "horizontal")):
      before = after = 0
      if direction in ("both", name):
        before = -(-margins[axis] // multiple) * multiple
        after = before + -shape[axis] % multiple
      sides.append((before, after))
    return cls(*sides)

  def add(self, plane: np.ndarray) -> np.ndarray:
    """Returns a picture with its border, around it as often as it takes.

    Args:
      plane: `[H, W, ...]`.
    """
    for axis, (before, after) in enumerate((self.rows, self.columns)):
      length = plane.shape[axis]
      if before or after:
        places = np.arange(-before, length + after) % length
        plane = np.take(plane, places, axis=axis)
    return plane

  def size_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns height and width of a picture with its border."""
    return shape[0] + sum(self.rows), shape[1] + sum(self.columns)

  def twice(self) -> Border:
    """Returns a border twice as wide.

    >>> Border(rows=(0, 0), columns=(3, 1)).twice()
    Border(rows=(0, 0), columns=(6, 2))
    """
    return Border(
      *((2 * before, 2 * after) for before, after in (self.rows, self.columns))
    )

  def take_off(self, result: np.ndarray, scale: int = 1) -> np.ndarray:
    """Returns a view of what was made of a picture, without its border.

    Args:
      result: `[H, W, ...]`, of the picture with its border.
      scale: Pixels of the result for one of the picture.
    """
    inner = (
      slice(before * scale, result.shape[axis] - after * scale)
      for axis, (before, after) in enumerate((self.rows, self.columns))
    )
    return result[tuple(inner)]


def check_direction(direction: str) -> None:
  """Raises a ValueError that says what there is, unless edges meet like this.

  >>> check_direction("around")
  Traceback (most recent call last):
  ...
  ValueError: seamless is 'around'; choose one of both, horizontal, vertical
  """
  if direction not in DIRECTIONS:
    raise ValueError(
      f"seamless is {direction!r}; choose one of {', '.join(DIRECTIONS)}"
    )


def border_of_network(
  net: registry.Generator,
  shape: tuple[int, ...],
  direction: str | None,
  *,
  exact: bool = False,
  halo: int | None = None,
) -> Border:
  """Returns the border that a network takes to see no edge.

  Args:
    net: The network.
    shape: Of the picture, height and width first.
    direction: Which of its edges meet, one of `DIRECTIONS`; None for none.
    exact: As far as the network looks; otherwise as tiles overlap, with an
      error at the edges as between tiles (docs/tiling.md).
    halo: As of tiles.

  Returns:
    In pixels of the picture.

  Raises:
    ValueError: If there is no such direction, or it is to be exact and the
      network does not tell how far it looks.

  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> border_of_network(RRDBNet(num_block=6), (64, 50), "both")
  Border(rows=(80, 80), columns=(80, 80))
  >>> border_of_network(RRDBNet(scale=2), (8, 5), "horizontal", exact=True)
  Border(rows=(0, 0), columns=(698, 699))
  """
  if direction is None:
    return Border((0, 0), (0, 0))
  check_direction(direction)
  if exact and registry.receptive_radius(net) is None:
    raise ValueError(
      f"edges cannot meet exactly: {type(net).__name__} does not tell how far"
      " it looks (receptive_radius); do without exact, with a wide halo"
      f" (default {tiling.DEFAULT_HALO})"
    )
  margin = tiles.choose_halo(net, halo, exact=exact)
  multiple = registry.size_multiple(net)
  return Border.around(shape, direction, margin, multiple=multiple)


def widen_for_resize(
  pixels: np.ndarray, size: tuple[int, int], direction: str | None
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
  """Returns a picture with what Pillow's filters see of it beyond its edges.

  Args:
    pixels: `[H, W, C]`.
    size: Height and width that it is resized to.
    direction: Which of its edges meet, one of `DIRECTIONS`; None for none.

  Returns:
    The picture with a border, and its place in there, the `box` of Pillow's
    `resize`: left, top, right, bottom.

  Raises:
    ValueError: If there is no such direction.

  >>> wide, box = widen_for_resize(np.zeros((40, 40, 3)), (20, 80), "both")
  >>> wide.shape, box
  ((54, 48, 3), (4, 7, 44, 47))
  """
  H, W = pixels.shape[:2]
  if direction is None:
    return pixels, (0, 0, W, H)
  margins = tuple(
    math.ceil(_LANCZOS_RADIUS * max(1.0, before / after)) + 1
    for before, after in zip((H, W), size, strict=True)
  )
  border = Border.around((H, W), direction, margins)
  top, left = border.rows[0], border.columns[0]
  return border.add(pixels), (left, top, left + W, top + H)
