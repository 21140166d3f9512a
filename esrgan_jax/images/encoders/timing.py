"""Durations in the units of a format."""

from __future__ import annotations

import fractions
from collections.abc import Iterable, Iterator
from fractions import Fraction


def ticks(
  durations: Iterable[fractions.Fraction], unit: int, most: int
) -> Iterator[int]:
  """Yields durations in whole units, each frame ending as near as can be.

  Args:
    durations: In milliseconds, at least 0.
    unit: In milliseconds.
    most: The longest; longer ones are cut.

  >>> list(ticks([Fraction(25)] * 4, 10, 99))
  [2, 3, 2, 3]
  """
  late = Fraction(0)  # What was shown too long, so far.
  for duration in durations:
    wanted = duration - late
    # What was seen stays to be seen.
    count = max(round(wanted / unit), int(duration > 0))
    late = count * unit - wanted
    yield min(count, most)


def as_ratio(duration: fractions.Fraction) -> tuple[int, int]:
  """Returns a duration in seconds, as two numbers of 16 bits.

  Args:
    duration: In milliseconds, at least 0.

  >>> as_ratio(Fraction(1000, 24)), as_ratio(Fraction(10**9))
  ((1, 24), (65535, 1))
  """
  seconds = min(duration / 1000, Fraction(65_535))
  # Both must fit, so a long one leaves less for the denominator.
  seconds = seconds.limit_denominator(65_535 // max(1, -(-seconds // 1)))
  return seconds.numerator, seconds.denominator
