"""Animations: what each frame changes of the canvas, and what is seen then."""

from __future__ import annotations

import dataclasses
import fractions
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from esrgan_jax.images import limits
from esrgan_jax.images.assembly import Found
from esrgan_jax.images.pixels import bands

# What becomes of a frame's place after it was seen.
KEEP, CLEAR, RESTORE = range(3)


class Patch(NamedTuple):
  """What one frame draws, and where.

  Attributes:
    left: Columns before it on the canvas.
    top: Rows above it.
    width: Of what it draws.
    height: Likewise.
    duration: How long it is seen, in milliseconds.
    dispose: `KEEP`, `CLEAR` or `RESTORE`.
    opaque: Whether it has no transparency.
    blend: Whether it lies over what was there, or takes its place.
    data: Its pixels, as its decoder wants them.
  """

  left: int
  top: int
  width: int
  height: int
  duration: fractions.Fraction
  dispose: int
  opaque: bool
  blend: bool
  data: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Animation:
  """Frames as a file has them, not decoded.

  Attributes:
    format: As in `Metadata`.
    width: Of the canvas.
    height: Likewise.
    loop: How often it is played; 0: for ever.
    patches: The frames.
    decode: Returns a patch's samples, `[height, width, C + 1]`, alpha last.
    found: What a `Found` has besides the picture.
    notes: What is said with the last frame.
  """

  format: str
  width: int
  height: int
  loop: int
  patches: list[Patch]
  decode: Callable[[Patch], np.ndarray]
  found: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def check(self, length: int, max_pixels: int) -> None:
    """Refuses what its file's bytes do not make believable."""
    limits.check_size(self.width, self.height, max_pixels)
    limits.check_frames(
      len(self.patches), self.width, self.height, length, max_pixels
    )
    for number, patch in enumerate(self.patches, 1):
      if (
        not 0 < patch.width <= self.width - patch.left
        or not 0 < patch.height <= self.height - patch.top
      ):
        raise ValueError(
          f"frame {number}: {patch.width} x {patch.height} pixels at"
          f" {patch.left}, {patch.top} of {self.width} x {self.height}"
        )

  @property
  def opaque(self) -> bool:
    """Whether transparency can be seen in no frame."""
    first, *others = self.patches
    return (
      (first.width, first.height) == (self.width, self.height)
      and first.opaque
      and first.dispose == KEEP
      and all(patch.opaque or patch.blend for patch in others)
      and all(patch.dispose != CLEAR for patch in self.patches[:-1])
    )

  def play(self) -> Iterator[Found]:
    """Yields what is seen, frame by frame."""
    canvas, opaque = None, self.opaque
    for patch in self.patches:
      samples = self.decode(patch)
      if samples.shape[:2] != (patch.height, patch.width):
        raise ValueError("a frame of two sizes")
      if canvas is None:
        shape = self.height, self.width, samples.shape[2]
        canvas = np.zeros(shape, samples.dtype)
      rows = slice(patch.top, patch.top + patch.height)
      place = canvas[rows, patch.left : patch.left + patch.width]
      before = place.copy() if patch.dispose == RESTORE else None
      if patch.blend:
        _lay_over(place, samples)
      else:
        place[...] = samples
      del samples
      pixels, alpha = canvas[..., :-1].copy(), None
      if not opaque:
        alpha = canvas[..., -1].copy()
      found = Found(
        format=self.format, pixels=pixels, alpha=alpha, **self.found
      )
      if self.notes and patch is self.patches[-1]:
        found = dataclasses.replace(found, notes=found.notes + self.notes)
      yield found
      del found, pixels, alpha
      if patch.dispose == CLEAR:
        place[...] = 0
      elif before is not None:
        place[...] = before


def _lay_over(below: np.ndarray, above: np.ndarray) -> None:
  """Lays samples over others, in place; colour is not multiplied by alpha."""
  top = np.iinfo(above.dtype).max
  for rows in bands(above):
    under, over = below[rows], above[rows]
    alpha = over[..., -1]
    alone = (alpha == top) | (under[..., -1] == 0)
    under[alone] = over[alone]
    partly = (alpha > 0) & ~alone
    if partly.any():
      a, b = over[partly].astype(np.float64), under[partly].astype(np.float64)
      share = a[:, -1:] * top
      rest = (top - a[:, -1:]) * b[:, -1:]
      colour = (a[:, :-1] * share + b[:, :-1] * rest) / (share + rest)
      under[partly] = np.rint(np.hstack([colour, (share + rest) / top]))
