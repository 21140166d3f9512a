"""What a degradation draws from: ranges and probabilities, by BasicSR's names.

Those that end in 2 are of the second of the two degradations. Defaults are
those of Real-ESRGAN's `options/train_realesrgan_x4plus.yml`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Sequence
from typing import Any

# What a kernel may be called, with whether its two axes differ, and its family.
KERNELS: dict[str, tuple[bool, str]] = {
  "iso": (False, "gaussian"),
  "aniso": (True, "gaussian"),
  "generalized_iso": (False, "generalized"),
  "generalized_aniso": (True, "generalized"),
  "plateau_iso": (False, "plateau"),
  "plateau_aniso": (True, "plateau"),
}
SMALLEST_KERNEL = 7  # Pixels a side, of those that are drawn.

_LARGEST_KERNEL = 99  # A slip of the pen is larger.

# The least and the most that each number of a range may be.
_LIMITS = {
  "resize_range": (0.01, 8.0),
  "noise_range": (0.0, 255.0),
  "poisson_scale_range": (0.0, 100.0),
  "jpeg_range": (1.0, 100.0),
  "blur_sigma": (0.01, 100.0),
  "betag_range": (0.01, 100.0),
  "betap_range": (0.01, 100.0),
}
# Ranges on either side of 1, each of which is drawn from by itself.
_AROUND_ONE = ("resize_range", "betag_range", "betap_range")


@dataclasses.dataclass(frozen=True)
class Degradation:
  """All that a second-order degradation draws from; hashable, so static.

  A config's section is one: `Degradation(**section)`. Its lists become tuples.
  A range is the least and the most.

  Attributes:
    resize_prob: Weights of a random size larger, smaller, and the same.
    resize_range: Factors of the size: from the least to 1 where it is smaller,
      from 1 to the most where it is larger.
    gaussian_noise_prob: Of Gaussian noise; otherwise there is Poisson noise.
    noise_range: Standard deviation of the Gaussian, in levels of 255.
    poisson_scale_range: Factor of the Poisson noise.
    gray_noise_prob: Of noise that is the same in red, green and blue.
    jpeg_range: JPEG's quality.
    second_blur_prob: Of the second degradation's blur.
    blur_kernel_size: Pixels a side of the largest kernel; sides are odd, from
      7 up to it.
    kernel_list: Kinds of kernels, of `KERNELS`.
    kernel_prob: Their weights.
    sinc_prob: Of a sinc filter instead.
    blur_sigma: Standard deviation of a kernel along an axis, in pixels.
    betag_range: Shape of generalised Gaussians: 1 is a Gaussian.
    betap_range: Shape of plateaus.
    final_sinc_prob: Of a sinc filter at the end.
    resize_prob2: As `resize_prob`, about the size of the result.
    resize_range2: As `resize_range`.
    gaussian_noise_prob2: As `gaussian_noise_prob`.
    noise_range2: As `noise_range`.
    poisson_scale_range2: As `poisson_scale_range`.
    gray_noise_prob2: As `gray_noise_prob`.
    jpeg_range2: As `jpeg_range`.
    blur_kernel_size2: As `blur_kernel_size`.
    kernel_list2: As `kernel_list`.
    kernel_prob2: As `kernel_prob`.
    sinc_prob2: As `sinc_prob`.
    blur_sigma2: As `blur_sigma`.
    betag_range2: As `betag_range`.
    betap_range2: As `betap_range`.

  Raises:
    ValueError: If a value is none of those that it may be.

  Source: Real-ESRGAN (arXiv:2107.10833), section 3, and its repository's
  `options/train_realesrgan_x4plus.yml`.

  >>> Degradation(noise_range=[1, 5]).noise_range
  (1, 5)
  >>> Degradation(jpeg_range=(95, 30))
  Traceback (most recent call last):
  ...
  ValueError: jpeg_range is (95, 30); it must be the least and the most, from...
  """

  resize_prob: Sequence[float] = (0.2, 0.7, 0.1)
  resize_range: Sequence[float] = (0.15, 1.5)
  gaussian_noise_prob: float = 0.5
  noise_range: Sequence[float] = (1.0, 30.0)
  poisson_scale_range: Sequence[float] = (0.05, 3.0)
  gray_noise_prob: float = 0.4
  jpeg_range: Sequence[float] = (30.0, 95.0)

  second_blur_prob: float = 0.8
  resize_prob2: Sequence[float] = (0.3, 0.4, 0.3)
  resize_range2: Sequence[float] = (0.3, 1.2)
  gaussian_noise_prob2: float = 0.5
  noise_range2: Sequence[float] = (1.0, 25.0)
  poisson_scale_range2: Sequence[float] = (0.05, 2.5)
  gray_noise_prob2: float = 0.4
  jpeg_range2: Sequence[float] = (30.0, 95.0)

  blur_kernel_size: int = 21
  kernel_list: Sequence[str] = tuple(KERNELS)
  kernel_prob: Sequence[float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
  sinc_prob: float = 0.1
  blur_sigma: Sequence[float] = (0.2, 3.0)
  betag_range: Sequence[float] = (0.5, 4.0)
  betap_range: Sequence[float] = (1.0, 2.0)

  blur_kernel_size2: int = 21
  kernel_list2: Sequence[str] = tuple(KERNELS)
  kernel_prob2: Sequence[float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
  sinc_prob2: float = 0.1
  blur_sigma2: Sequence[float] = (0.2, 1.5)
  betag_range2: Sequence[float] = (0.5, 4.0)
  betap_range2: Sequence[float] = (1.0, 2.0)

  final_sinc_prob: float = 0.8

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, list):
        value = tuple(value)
        object.__setattr__(self, field.name, value)
      if problem := _problem_of(field.name, value):
        raise ValueError(f"{field.name} is {value!r}; {problem}")
    for order in ("", "2"):
      names, weights = f"kernel_list{order}", f"kernel_prob{order}"
      counts = len(getattr(self, names)), len(getattr(self, weights))
      if counts[0] != counts[1]:
        raise ValueError(
          f"{weights} has {counts[1]} weights, and {names} {counts[0]} kernels;"
          " there must be as many"
        )


def _problem_of(name: str, value: Any) -> str:
  """Why an option cannot be that; nothing if it can."""
  kind = name.removesuffix("2")
  if kind == "kernel_list":
    return _problem_of_kernels(value)
  if kind in ("kernel_prob", "resize_prob"):
    return _problem_of_weights(value, 3 if kind == "resize_prob" else None)
  if kind == "blur_kernel_size":
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and SMALLEST_KERNEL <= value <= _LARGEST_KERNEL and value % 2:
      return ""
    return f"it must be odd, from {SMALLEST_KERNEL} to {_LARGEST_KERNEL}"
  if kind in _LIMITS:
    return _problem_of_range(kind, value)
  if _is_number(value) and 0 <= value <= 1:
    return ""
  return "it must be a probability, from 0 to 1"


def _problem_of_kernels(value):
  if not isinstance(value, tuple) or not value:
    return f"it must be kernels' names, of {', '.join(KERNELS)}"
  for name in value:
    if name not in KERNELS:
      near = difflib.get_close_matches(str(name), KERNELS, n=1, cutoff=0)
      return f"there is no kernel {name!r}; did you mean {near[0]!r}?"
  return ""


def _problem_of_weights(value, count):
  wanted = f"{count} weights, of up, down and keep" if count else "weights"
  fits = isinstance(value, tuple) and len(value) == (count or len(value))
  fits = fits and all(_is_number(each) and each >= 0 for each in value)
  if fits and sum(value) > 0:
    return ""
  return f"it must be {wanted}, 0 or more, and not all 0"


def _problem_of_range(kind, value):
  low, high = _LIMITS[kind]
  wanted = f"the least and the most, from {low:g} to {high:g}"
  if kind in _AROUND_ONE:
    wanted += ", with 1 between them"
  fits = isinstance(value, tuple) and len(value) == 2
  fits = fits and all(map(_is_number, value))
  fits = fits and low <= value[0] <= value[1] <= high
  if fits and kind in _AROUND_ONE:
    fits = value[0] <= 1 <= value[1]
  return "" if fits else f"it must be {wanted}"


def _is_number(value):
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return False
  return math.isfinite(value)
