"""How results were made, as their metadata tell whoever finds them."""

from __future__ import annotations

from collections.abc import Iterable

from esrgan_jax import __version__
from esrgan_jax.text import printable
from esrgan_jax.upscaling.result_size import ResultSize
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = ["describe"]


def describe(
  model: Upscaler,
  *,
  mixed: Iterable[str] = (),
  size: ResultSize | None = None,
  **settings: object,
) -> str:
  """Returns a line on how results are made.

  Args:
    model: What upscales.
    mixed: How it was mixed, such as `alpha=0.8`.
    size: Of results.
    **settings: Further ones; those that are as usual are left out.

  >>> from esrgan_jax.upscaling.upscaler import load
  >>> model = load("realesrgan-x4plus-anime")
  >>> describe(model, tile="auto", exact=True).partition(", ")[2]
  'realesrgan-x4plus-anime x4, exact=True'
  """
  said = [f"esrgan_jax {__version__}", f"{model.name} x{model.scale}", *mixed]
  rules = vars(size or ResultSize())
  said += [f"{k}={v}" for k, v in rules.items() if v is not None]
  for name, value in settings.items():
    if value not in (None, False, "auto"):
      said.append(f"{name}={value}")
  return printable(", ".join(said))
