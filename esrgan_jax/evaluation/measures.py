"""What can be measured on an upscaled image: a table.

Evaluation, its command, the log and the report of training read `MEASURES`, and
know none by name but `psnr_y`, by which training sees that it diverges, and
LPIPS, where it is there. Another measure is a function and a line in the table;
`register_measure` adds one from elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from esrgan_jax.errors import UsageError
from esrgan_jax.evaluation import learned
from esrgan_jax.evaluation.compared import Compared
from esrgan_jax.text import printable

__all__ = [
  "DEFAULT",
  "MEASURES",
  "Measure",
  "choose",
  "compile_measures",
  "find",
  "looks_of",
  "measure",
  "present",
  "register_measure",
]


@dataclasses.dataclass(frozen=True)
class Measure:
  """One thing that can be measured on a result.

  Attributes:
    name: In configs, JSON and logs.
    heading: Of a column.
    digits: Behind the point, where it is shown.
    better: "higher" or "lower".
    needs_reference: Whether it compares with the ground truth.
    on: "whole": all pixels but the border that is cut off; "patch": the
      central 256x256 pixels.
    function: On the whole, of a `Compared`, returns a number. On a patch, of
      float32 `[1, H, W, 3]` sr and hr in [0, 1] (sr alone without reference),
      returns a scalar; it is jitted. None where only training has what it
      needs.
    unit: Of its values, if any.
    curve: Whether a report draws it over steps.
    prepare: Raises an OSError or a ValueError of a line, where what it needs is
      not on this machine; called before anything is measured.
    protocol: What is to be said of how it was measured, if anything.
  """

  name: str
  heading: str
  digits: int = 4
  better: str = "higher"
  needs_reference: bool = True
  on: str = "whole"
  function: Callable[..., Any] | None = None
  unit: str = ""
  curve: bool = True
  prepare: Callable[[], None] | None = None
  protocol: str = ""

  @property
  def title(self) -> str:
    """Heading and unit.

    >>> find("psnr_y").title
    'PSNR Y, dB'
    """
    return f"{self.heading}, {self.unit}" if self.unit else self.heading

  def show(self, value: float | None) -> str:
    """Returns a value as tables have it; None is not finite.

    >>> find("psnr_y").show(28.4266)
    '28.43'
    """
    return "∞" if value is None else f"{value:.{self.digits}f}"


def _decibels(error: float) -> float:
  return -10 * math.log10(error) if error > 0 else math.inf


# In the order of tables' columns.
MEASURES: dict[str, Measure] = {
  each.name: each
  for each in (
    Measure(
      "psnr_y",
      "PSNR Y",
      digits=2,
      unit="dB",
      function=lambda compared: _decibels(compared.errors[3]),
    ),
    Measure(
      "ssim_y",
      "SSIM Y",
      function=lambda compared: compared.similarities[3],
    ),
    Measure(
      "psnr_rgb",
      "PSNR RGB",
      digits=2,
      unit="dB",
      function=lambda compared: _decibels(compared.errors[:3].mean()),
      curve=False,
    ),
    Measure(
      "ssim_rgb",
      "SSIM RGB",
      function=lambda compared: compared.similarities[:3].mean(),
      curve=False,
    ),
    *(
      Measure(
        name,
        heading,
        better="lower",
        function=learned.distance(name),
        prepare=functools.partial(learned.prepare, name),
        protocol=f"{heading}: {how}, whole images",
      )
      for name, heading, how in (
        ("lpips", "LPIPS", "0.1, AlexNet"),
        ("lpips_vgg", "LPIPS VGG", "0.1, VGG16"),
        ("dists", "DISTS", "VGG16"),
      )
    ),
    Measure(
      "niqe",
      "NIQE",
      digits=3,
      better="lower",
      needs_reference=False,
      function=learned.naturalness_of,
      prepare=functools.partial(learned.prepare, "niqe"),
    ),
    # Training adds the function: the perceptual loss that it trains with.
    Measure(
      "perceptual",
      "Perceptual distance",
      better="lower",
      on="patch",
      curve=False,
    ),
  )
}

# What is measured where nothing else is asked for.
DEFAULT = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")


def register_measure(measure: Measure) -> None:
  """Adds a measure to the table; its column comes last.

  Args:
    measure: With a function.

  Raises:
    ValueError: If another measure has the name, or a field has no meaning.

  >>> def darker(compared):
  ...   return compared.hr.mean() - compared.sr.mean()
  >>> register_measure(Measure("darker", "Darker", digits=1, function=darker))
  >>> black = np.zeros((20, 20, 3), np.uint8)
  >>> measure(black, black + np.uint8(9), crop_border=0, measures=["darker"])
  {'darker': 9.0}
  >>> del MEASURES["darker"]
  """
  problem = ""
  if MEASURES.get(measure.name, measure) != measure:
    problem = "another measure has this name"
  elif not measure.name.isidentifier():
    problem = "its name must be one of Python's, such as lpips"
  elif measure.better not in ("higher", "lower"):
    problem = f"better is {measure.better!r}; it must be 'higher' or 'lower'"
  elif measure.on not in ("whole", "patch"):
    problem = f"on is {measure.on!r}; it must be 'whole' or 'patch'"
  elif measure.function is None:
    problem = "it needs a function"
  if problem:
    raise ValueError(f"measure {measure.name!r}: {problem}")
  MEASURES[measure.name] = measure


def find(name: str) -> Measure:
  """Returns the measure of that name.

  Raises:
    ValueError: If there is none; with the nearest name.

  >>> find("ssim_y").better
  'higher'
  >>> find("psnr")
  Traceback (most recent call last):
  ...
  esrgan_jax.errors.UsageError: no measure 'psnr'; did you mean psnr_y? There...
  """
  if name in MEASURES:
    return MEASURES[name]
  near = difflib.get_close_matches(str(name), MEASURES, n=1)
  lead = f"did you mean {near[0]}? There" if near else "there"
  raise UsageError(
    f"no measure {name!r}; {lead} are {', '.join(MEASURES)}. One of your"
    " own is registered by a plugin (CONTRIBUTING.md)"
  )


def choose(names: Iterable[str]) -> tuple[Measure, ...]:
  """Returns measures that can be taken anywhere.

  Args:
    names: Of measures, each once.

  Returns:
    The measures, in this order.

  Raises:
    ValueError: If there is no such measure, it is named twice, only training
      can take it, what it needs is not here, or none is named.

  >>> [each.heading for each in choose(["psnr_rgb", "psnr_y"])]
  ['PSNR RGB', 'PSNR Y']
  """
  found = tuple(map(find, names))
  if not found:
    raise UsageError(f"no measure is named; name some of {', '.join(MEASURES)}")
  for each in found:
    if each.function is None:
      raise UsageError(
        f"{each.name} needs the weights of training's loss: training measures"
        " it by itself, and nothing else can"
      )
    if found.count(each) > 1:
      raise UsageError(f"measure {each.name} is named twice")
    if each.prepare:
      try:
        each.prepare()
      except (OSError, ValueError) as error:
        raise ValueError(str(error)) from error
  return found


def present(*names: str) -> list[Measure]:
  """Returns those of some measures whose parameters are on this machine.

  Args:
    *names: Of measures.

  >>> [each.name for each in present("psnr_y")]
  ['psnr_y']
  """
  found = []
  for each in map(find, names):
    with contextlib.suppress(OSError, ValueError):
      if each.prepare:
        each.prepare()
      found.append(each)
  return found


def looks_of(name: str) -> Measure:
  """Returns how a measure is shown, whether it is known here or not.

  A report may have been measured with somebody's plugin and be written without.

  >>> looks_of("psnr_y").heading, looks_of("fid").heading
  ('PSNR Y', 'fid')
  """
  # Neither is better: nothing is known of it.
  return MEASURES.get(name) or Measure(name, name, better="")


def compile_measures(
  measures: Sequence[Measure] | None = None,
  *,
  failed: Callable[[str, ValueError], None] | None = None,
) -> Callable[[Compared], dict[str, float]]:
  """Returns what takes measures on one image after the other.

  Args:
    measures: Which, each with a function; None means `DEFAULT`.
    failed: Told of each measure, by name, that fails on an image, which then
      has no value of it. None raises the error instead: a ValueError that names
      the measure.

  Returns:
    A function of a `Compared` to values by name.
  """
  chosen = choose(DEFAULT) if measures is None else tuple(measures)
  functions = {
    each.name: _on_patch(each) if each.on == "patch" else each.function
    for each in chosen
  }

  def take(compared: Compared) -> dict[str, float]:
    values = {}
    for name, function in functions.items():
      try:
        values[name] = _take(name, function, compared)
      except ValueError as error:
        if failed is None:
          raise
        failed(name, error)
    return values

  return take


def _take(name, function, compared):
  """A measure's number; what goes wrong is told with its name."""
  try:
    value = function(compared)
  except Exception as error:
    # One is the model's fault, and ends its evaluation: what is not finite.
    not_finite = isinstance(error, FloatingPointError)
    raise (FloatingPointError if not_finite else ValueError)(
      f"measure {name!r} fails: {type(error).__name__}: {printable(error)}"
    ) from error
  try:
    if np.ndim(value) == 0 and not isinstance(value, str | bytes):
      return float(value)
  except (TypeError, ValueError):
    pass
  what = printable(repr(value), limit=80)
  raise ValueError(f"measure {name!r} returns {what}; it must be one number")


def _on_patch(measure):
  run = jax.jit(measure.function)
  count = 2 if measure.needs_reference else 1
  return lambda compared: run(*compared.patch[:count])


def measure(
  sr: np.ndarray,
  hr: np.ndarray,
  *,
  crop_border: int,
  measures: Iterable[str] = DEFAULT,
) -> dict[str, float]:
  """Measures an 8-bit image: PSNR in decibels and SSIM, on Y and on RGB.

  Args:
    sr: Super-resolved image, uint8 `[H, W, 3]`.
    hr: Ground truth, likewise.
    crop_border: Pixels removed from each side before measuring, >= 0; papers
      remove `scale` pixels.
    measures: Names of what to measure.

  Returns:
    Values by name, `psnr_y`, `ssim_y`, `psnr_rgb` and `ssim_rgb` where nothing
    else is asked for; PSNR of equal images is `inf`.

  Raises:
    ValueError: If there is no such measure, the images are not uint8, differ
      in shape, or fewer than 11x11 pixels are left.

  Source: `esrgan_jax.metrics.psnr` and `ssim`, to rounding.

  >>> hr = np.zeros((30, 20, 3), np.uint8)
  >>> values = measure(hr + np.uint8(51), hr, crop_border=4)
  >>> list(values), round(values["psnr_rgb"], 3)
  (['psnr_y', 'ssim_y', 'psnr_rgb', 'ssim_rgb'], 13.979)
  """
  take = compile_measures(choose(measures))
  return take(Compared(sr, hr, crop_border=crop_border))
