"""How an image is cut into windows of one size that together cover it.

A network's output near the edge of a window differs from what the whole image
would have given there, unless that edge is the image's own. So windows overlap
by a halo on each side, and each contributes its inner part alone. They lie
wholly inside the image: its borders are treated as the network treats them.
"""

from __future__ import annotations

import dataclasses
import itertools

# Leaves at most half a level of 255 against no tiling at all: x4plus on photos,
# `benchmarks/halo.py`, figures in docs/tiling.md.
DEFAULT_HALO = 80


@dataclasses.dataclass(frozen=True)
class Span:
  """A window along one axis, and the part of it that is kept; in pixels.

  Attributes:
    start: First pixel of the window.
    stop: One past its last pixel inside the image.
    keep_start: First pixel that this window contributes.
    keep_stop: One past the last pixel that it contributes.
  """

  start: int
  stop: int
  keep_start: int
  keep_stop: int


def _bucket(length: int) -> int:
  """Rounds up, so that images of similar size share one compiled program."""
  step = 16 if length <= 64 else 32 if length <= 256 else 64
  return -(-length // step) * step


def cut(
  length: int,
  *,
  tile: int,
  halo: int,
  multiple: int = 1,
  rounded: bool = True,
) -> tuple[int, tuple[Span, ...]]:
  """Cuts one axis of an image into windows of one size.

  Args:
    length: Pixels along the axis, >= 1 and a multiple of `multiple`.
    tile: Pixels that a window contributes at most, >= 1; 0 means one window.
    halo: Least distance in pixels from a contributed pixel to the edge of its
      window, unless that edge is the image's, >= 0.
    multiple: Windows start, and are as long as, a multiple of this.
    rounded: Whether the one window of a small image may be larger than it, so
      that images of similar size share a program.

  Returns:
    The windows' common size in pixels, and the windows in order.

  Raises:
    ValueError: If an argument is out of its range.

  >>> size, spans = cut(300, tile=128, halo=16)
  >>> size
  128
  >>> [(s.start, s.stop, s.keep_start, s.keep_stop) for s in spans]
  [(0, 128, 0, 107), (86, 214, 107, 193), (172, 300, 193, 300)]
  """
  if length < 1 or multiple < 1 or length % multiple:
    raise ValueError(
      f"length {length} must be a positive multiple of {multiple}"
    )
  if tile < 0 or halo < 0:
    raise ValueError(f"tile {tile} and halo {halo} must not be negative")

  def up(value: int) -> int:
    return -(-value // multiple) * multiple

  tile, halo = up(tile), up(halo)
  window = tile + 2 * halo
  if tile == 0 or length <= window:
    size = up(_bucket(length)) if rounded else length
    if tile and rounded:
      size = min(size, max(window, length))
    return size, (Span(0, length, 0, length),)
  largest = window
  count = -(-(length - largest) // (largest - 2 * halo)) + 1
  while True:
    # As many windows do with smaller ones, which compute less of it twice.
    window = -(-(length + 2 * halo * (count - 1)) // count)
    window = min(largest, up(_bucket(window)))
    last = (length - window) // multiple
    starts = [last * i // (count - 1) * multiple for i in range(count)]
    steps = (b - a for a, b in itertools.pairwise(starts))
    if max(steps) <= window - 2 * halo:
      break
    count += 1  # Rounding to `multiple` left a gap.
  edges = [
    (a + window + b) // 2 // multiple * multiple
    for a, b in itertools.pairwise(starts)
  ]
  edges = [0, *edges, length]
  spans = (
    Span(start, start + window, *edge)
    for start, edge in zip(starts, itertools.pairwise(edges), strict=True)
  )
  return window, tuple(spans)
