"""What animations store of a frame: the part that is not as it was before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from esrgan_jax.images.pixels import Image, bands


def cut(
  images: Iterable[Image], *, step: int = 1
) -> Iterator[tuple[Image, int, int]]:
  """Cuts out of each image what differs from the one before.

  Two of them are held at a time.

  Args:
    images: Of one shape; they have all transparency, or none.
    step: What a part's left and top are multiples of.

  Yields:
    The first image whole, and of the others the smallest part, at least one
    pixel; and how many columns and rows lie before it.
  """
  before = None
  for image in images:
    if before is None:
      yield image, 0, 0
    else:
      rows, columns = _box(before, image)
      top, left = (part.start // step * step for part in (rows, columns))
      place = slice(top, rows.stop), slice(left, columns.stop)
      alpha = None if image.alpha is None else image.alpha[place]
      part = dataclasses.replace(
        image, pixels=image.pixels[place], alpha=alpha, extra=None
      )
      yield part, left, top
    before = image


def _box(before: Image, after: Image) -> tuple[slice, slice]:
  """Returns the rows and columns with all that differs."""
  H, W, _ = after.pixels.shape
  down, across = np.zeros(H, bool), np.zeros(W, bool)
  for rows in bands(after.pixels):
    differs = (before.pixels[rows] != after.pixels[rows]).any(axis=2)
    if after.alpha is not None:
      differs |= before.alpha[rows] != after.alpha[rows]
    down[rows] = differs.any(axis=1)
    across |= differs.any(axis=0)
  if not down.any():
    return slice(0, 1), slice(0, 1)
  ends = ((np.argmax(v), len(v) - np.argmax(v[::-1])) for v in (down, across))
  rows, columns = (slice(int(start), int(stop)) for start, stop in ends)
  return rows, columns
