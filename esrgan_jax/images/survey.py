"""A picture of which windows are read, and what only all of them tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from esrgan_jax.images import light
from esrgan_jax.images.pixels import Metadata

# Bytes of a band of rows that is looked at beforehand.
_BAND = 2**25


class Window(NamedTuple):
  """A part of a picture; see `Image` for the fields."""

  pixels: np.ndarray
  alpha: np.ndarray | None
  extra: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Survey:
  """What only all pixels of a picture tell.

  Attributes:
    alpha: That of every pixel, where it is one; None: it varies, or there is
      none.
    levels: Of floats, what `Metadata` has of `linear`, `gain` and `white`.
  """

  alpha: float | None = None
  levels: dict[str, float] | None = None


class Large(Protocol):
  """A picture of which windows are read.

  Attributes:
    shape: `[H, W, C]` of the pixels, upright.
    dtype: Of all samples.
    has_alpha: Whether there is transparency.
    further: How many samples there are beyond colour and transparency.
    metadata: As of `Image`.
    notes: Likewise.
    levels: Whether the file has smaller copies of it, and how they are kept:
      "parts" (SubIFDs of a TIFF, a Zarr's arrays) or "pages"; else None.
  """

  shape: tuple[int, int, int]
  dtype: np.dtype
  has_alpha: bool
  further: int
  metadata: Metadata
  notes: tuple[str, ...]
  levels: str | None

  def survey(self, known: Survey | None = None) -> Survey:
    """Looks at all pixels, where need be; before any window is read.

    Args:
      known: What an earlier survey of the same file has found.
    """

  def expect(self, height: int) -> None:
    """Tells how high windows will be that go along the rows."""

  def read(self, rows: slice, columns: slice) -> Window:
    """Returns a window, within the picture."""


def look_at(
  read: Callable[[slice], Window],
  shape: tuple[int, int, int],
  dtype: np.dtype,
  *,
  part: int,
  linear: bool,
) -> Survey:
  """Looks at all pixels, by bands of whole rows.

  Args:
    read: Returns rows, floats not divided by anything.
    shape: `[H, W, C]` of the pixels, as they are stored.
    dtype: Of the pixels.
    part: Rows that are decoded at once.
    linear: Whether floats were linear light.
  """
  H, W, C = shape
  floats = dtype == np.float32
  step = max(1, _BAND // (W * (C + 1) * dtype.itemsize * part)) * part
  least = most = None
  every, values, at = light.sampling(H * W * C), [], 0
  for top in range(0, H, step):
    window = read(slice(top, min(top + step, H)))
    if window.alpha is not None:
      low, high = window.alpha.min(), window.alpha.max()
      least = low if least is None else min(least, low)
      most = high if most is None else max(most, high)
    if floats:
      flat = window.pixels.reshape(-1)
      values.append(flat[-at % every :: every].copy())
      at += flat.size
  alpha = least.item() if least is not None and least == most else None
  levels = None
  if floats:
    levels = light.levels_of(np.concatenate(values), linear=linear)
  return Survey(alpha, levels)
