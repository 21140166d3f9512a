"""Image files to arrays and back, losing nothing that the format can hold.

A file becomes an `Image`: colour, transparency and metadata apart, 8 or 16
bits or floats as the file has it. That is decided by the file's header, never
by the values met. Grey stays grey; palettes, CMYK, Lab and YCbCr become RGB;
EXIF orientation is applied.

Files are taken for what strangers wrote: their structure is read here
(`decoders/`), within bounds of `limits.py`, before `imagecodecs` gets the
pixels, of which all must be there. Damaged and hostile ones give an
`ImageError`. Pillow writes what has 8 bits, and knows about colour profiles;
`tifffile` writes TIFF. imagecodecs and tifffile are imported when they are
needed, not before.

PNG and TIFF are written piece by piece, so that an output that lives in a
`numpy.memmap` is never copied whole.
"""

from esrgan_jax.images.channels import read_channels
from esrgan_jax.images.flattening import flatten, parse_colour
from esrgan_jax.images.frame_writing import check_frames_fit, write_frames
from esrgan_jax.images.frames import Frames, count_frames, read_frames
from esrgan_jax.images.heads import check_head
from esrgan_jax.images.large import read_storage
from esrgan_jax.images.pixels import (
  ANIMATION_SUFFIXES,
  INPUT_SUFFIXES,
  MAX_PIXELS,
  OUTPUT_SUFFIXES,
  Image,
  ImageError,
  Metadata,
  bleed_colour,
  from_float,
  is_image_suffix,
  opaque,
  to_float,
)
from esrgan_jax.images.reading import decode_image, read_image
from esrgan_jax.images.sizes import read_size
from esrgan_jax.images.upright import read_upright_size
from esrgan_jax.images.writing import can_be_lossless, check_fits, write_image
from esrgan_jax.images.zarr_arrays import is_zarr

__all__ = [
  "ANIMATION_SUFFIXES",
  "INPUT_SUFFIXES",
  "MAX_PIXELS",
  "OUTPUT_SUFFIXES",
  "Frames",
  "Image",
  "ImageError",
  "Metadata",
  "bleed_colour",
  "can_be_lossless",
  "check_fits",
  "check_frames_fit",
  "check_head",
  "count_frames",
  "decode_image",
  "flatten",
  "from_float",
  "is_image_suffix",
  "is_zarr",
  "opaque",
  "parse_colour",
  "read_channels",
  "read_frames",
  "read_image",
  "read_size",
  "read_storage",
  "read_upright_size",
  "to_float",
  "write_frames",
  "write_image",
]
