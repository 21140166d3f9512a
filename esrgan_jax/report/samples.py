"""Sample pictures: fixed crops of validation images, side by side.

Images are uint8 `[H, W, 3]`, RGB.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw

from esrgan_jax.data.sources import Pair

_GAP = 4  # Pixels between crops.
_HEADER = 18  # Pixels above them, for the names of columns.


def choose_crops(
  pairs: Sequence[Pair], *, size: int, scale: int, count: int
) -> list[Pair]:
  """Cuts the richest square out of each of the first images.

  Args:
    pairs: Images; smaller ones than `size` are passed over.
    size: HR pixels a side, a multiple of `scale`.
    scale: HR pixels per LR pixel.
    count: How many crops at most, one an image.

  Returns:
    Crops; the same ones each time.

  Raises:
    ValueError: If `size` is not a multiple of `scale`.

  >>> lr, hr = np.zeros((6, 8, 3), np.uint8), np.zeros((24, 32, 3), np.uint8)
  >>> lr[0, 7] = 255
  >>> crops = choose_crops([Pair(lr, hr)], size=8, scale=4, count=2)
  >>> len(crops), crops[0].lr[0, 1].tolist()
  (1, [255, 255, 255])
  """
  if size % scale:
    raise ValueError(
      f"size is {size}; it must be a multiple of the scale, {scale}"
    )
  side, crops = size // scale, []
  for pair in pairs:
    if len(crops) == count:
      break
    if min(pair.lr.shape[:2]) < side:
      continue
    top, left = richest(pair.lr, (side, side))
    crops.append(cut(pair, (left, top, side, side), scale=scale))
  return crops


def cut(pair: Pair, box: tuple[int, int, int, int], *, scale: int) -> Pair:
  """Cuts the same place out of LR and HR.

  Args:
    pair: An image.
    box: Left, top, width and height, LR pixels.
    scale: HR pixels per LR pixel.

  >>> lr, hr = np.zeros((6, 8, 3), np.uint8), np.zeros((24, 32, 3), np.uint8)
  >>> [part.shape for part in cut(Pair(lr, hr), (5, 0, 3, 4), scale=4)]
  [(4, 3, 3), (16, 12, 3)]
  """
  left, top, width, height = box
  lr = pair.lr[top : top + height, left : left + width]
  left, top, width, height = (scale * n for n in box)
  return Pair(lr, pair.hr[top : top + height, left : left + width])


def richest(lr: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
  """Finds the place with the most change between neighbours.

  Args:
    lr: uint8 `[h, w, 3]`.
    size: Height and width of the place, not larger than the image.

  Returns:
    Its top and left.

  >>> lr = np.zeros((6, 8, 3), np.uint8)
  >>> lr[5, 7] = 255
  >>> richest(lr, (2, 3))
  (4, 5)
  """
  height, width = size
  grey = lr.astype(np.float64).sum(axis=-1)
  energy = np.zeros_like(grey)
  energy[:, 1:] += np.abs(np.diff(grey, axis=1))
  energy[1:] += np.abs(np.diff(grey, axis=0))
  sums = np.pad(energy.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
  places = (
    sums[height:, width:]
    - sums[:-height, width:]
    - sums[height:, :-width]
    + sums[:-height, :-width]
  )
  top, left = np.unravel_index(np.argmax(places), places.shape)
  return int(top), int(left)


def grid(columns: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
  """Sets crops into a table: a column a method, a row an image.

  Args:
    columns: Names, and crops of one size, as many in each.

  Returns:
    The picture.

  >>> crops = [np.zeros((32, 32, 3), np.uint8)]
  >>> grid({"LR": crops, "HR": crops}).shape
  (54, 68, 3)
  """
  rows = len(next(iter(columns.values())))
  height, width, _ = next(iter(columns.values()))[0].shape
  picture = np.full(
    (
      _HEADER + rows * (height + _GAP),
      len(columns) * (width + _GAP) - _GAP,
      3,
    ),
    255,
    np.uint8,
  )
  for column, crops in enumerate(columns.values()):
    left = column * (width + _GAP)
    for row, crop in enumerate(crops):
      top = _HEADER + row * (height + _GAP)
      picture[top : top + height, left : left + width] = crop
  image = PIL.Image.fromarray(picture)
  draw = PIL.ImageDraw.Draw(image)
  for column, name in enumerate(columns):
    draw.text((column * (width + _GAP) + 2, 3), name, fill=(0, 0, 0))
  return np.asarray(image)


def png(picture: np.ndarray) -> bytes:
  """Returns a picture as a PNG file's content.

  >>> png(np.zeros((2, 2, 3), np.uint8))[1:4]
  b'PNG'
  """
  buffer = io.BytesIO()
  PIL.Image.fromarray(picture).save(buffer, "png")
  return buffer.getvalue()
