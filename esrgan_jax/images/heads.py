"""Whether a picture can be read, as far as its headers tell."""

from __future__ import annotations

import mmap
import os
import pathlib
from collections.abc import Callable
from typing import Any

from esrgan_jax.images.decoders import (
  bmp,
  exr,
  heif,
  jp2,
  jpeg,
  jxl,
  pnm,
  qoi,
  tga,
  tiff,
)
from esrgan_jax.images.frames import FINDERS
from esrgan_jax.images.pixels import MAX_PIXELS
from esrgan_jax.images.reading import explained, opened

__all__ = ["check_head"]


def check_head(
  path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> None:
  """Raises if what a file says of its pictures shows that they are not read.

  No pixels are decoded, and not all of a large file is looked at: it is for
  plans. A file that is cut short is found, in most formats; pixels that are
  damaged are not.

  Args:
    path: The file.
    max_pixels: As of `read_image`.

  Raises:
    ImageError: As `read_image` does, or `read_frames`.

  >>> import tempfile
  >>> import numpy as np
  >>> from esrgan_jax import images
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = pathlib.Path(folder, "grey.png")
  ...   grey = images.Image(np.zeros((2, 3, 1), np.uint8))
  ...   _ = images.write_image(file, grey)
  ...   check_head(file)
  ...   _ = file.write_bytes(file.read_bytes()[:-20])
  ...   try:
  ...     check_head(file)
  ...   except images.ImageError as error:
  ...     print(str(error).partition(": ")[2])
  damaged or cut short (no end mark); save it again from its source
  """
  path = pathlib.Path(path)
  with explained(path), opened(path) as (reader, file, _):
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = _LOOKS[reader](data, max_pixels)
  if isinstance(found, tiff.Pages):
    for number, offset in enumerate(found.offsets, 1):
      page = f"page {number}" if len(found.offsets) > 1 else ""
      with explained(path, page):
        found.look(offset)


# By the reader of one picture. None of them keeps what it has found.
_LOOKS: dict[Callable[..., Any], Callable[..., Any]] = {
  **FINDERS,
  bmp.read_bmp: bmp.look,
  exr.read_exr: exr.look,
  heif.read_heif: heif.look,
  jp2.read_jp2: jp2.look,
  jpeg.read_jpeg: jpeg.look,
  jxl.read_jxl: jxl.look,
  pnm.read_pnm: pnm.look,
  qoi.read_qoi: qoi.look,
  tga.read_tga: tga.look,
  tiff.read_tiff: tiff.find_pages,
}
