"""Image files to arrays and back, losing nothing that the format can hold.

A file becomes an `Image`: colour, transparency and metadata apart, 8 or 16
bits as the file has it. 16 bits are decided by the file's header, never by the
values met. Grey stays grey; palettes, CMYK, Lab and YCbCr become RGB; EXIF
orientation is applied. Damaged and hostile files give an `ImageError`.

Pillow reads and writes what has 8 bits, and EXIF. It reads 16-bit RGB as 8-bit
without a word, so that `imagecodecs` decodes 16-bit PNG, and `tifffile` reads
and writes TIFF; both are imported when such a file is met, not before.

PNG and TIFF are written piece by piece, so that an output that lives in a
`numpy.memmap` is never copied whole.
"""

from esrgan_jax.images.pixels import (
  INPUT_SUFFIXES,
  MAX_PIXELS,
  OUTPUT_SUFFIXES,
  Image,
  ImageError,
  Metadata,
  bleed_colour,
  from_float,
  is_image_suffix,
  to_float,
)
from esrgan_jax.images.reading import read_image
from esrgan_jax.images.writing import check_fits, write_image

__all__ = [
  "INPUT_SUFFIXES",
  "MAX_PIXELS",
  "OUTPUT_SUFFIXES",
  "Image",
  "ImageError",
  "Metadata",
  "bleed_colour",
  "check_fits",
  "from_float",
  "is_image_suffix",
  "read_image",
  "to_float",
  "write_image",
]
