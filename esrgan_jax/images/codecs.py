"""Codecs of imagecodecs that not every build of it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from esrgan_jax.images.pixels import ImageError

_NAMES = {"avif": "AVIF", "jpegxl": "JPEG XL", "jpeg2k": "JPEG 2000"}


class Codec(NamedTuple):
  """A decoder and an encoder."""

  decode: Callable
  encode: Callable


def codec(name: str) -> Codec:
  """Returns a codec of imagecodecs.

  Args:
    name: "avif", "jpegxl" or "jpeg2k".

  Raises:
    ImageError: If this build of imagecodecs lacks it.
  """
  import imagecodecs

  if not getattr(imagecodecs, name.upper()).available:
    raise ImageError(
      f"{_NAMES[name]} is not in this imagecodecs, {imagecodecs.__version__};"
      " pip install --upgrade imagecodecs"
    )
  return Codec(
    getattr(imagecodecs, f"{name}_decode"),
    getattr(imagecodecs, f"{name}_encode"),
  )
