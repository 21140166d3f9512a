"""From what a decoder gives to an `Image`: checks, colour spaces, turning."""

from __future__ import annotations

import io
import struct
from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image as PilImage

from esrgan_jax.images import metadata as meta
from esrgan_jax.images.pixels import Image, ImageError, Metadata


def check_size(width: int, height: int, max_pixels: int) -> None:
  """Refuses a picture by what its header says of its size."""
  if width <= 0 or height <= 0:
    raise ImageError(
      f"damaged: its header says {width} x {height} pixels; save it again from"
      " its source"
    )
  if width * height > max_pixels:
    raise ImageError(
      f"{width} x {height} pixels are more than max_pixels={max_pixels}; raise"
      " max_pixels if you trust the file"
    )


def check_webp(data: bytes, max_pixels: int) -> None:
  """Checks a WebP's size: its decoder allocates the canvas on opening."""
  kind = data[12:16]
  if kind == b"VP8X":
    width = 1 + int.from_bytes(data[24:27], "little")
    height = 1 + int.from_bytes(data[27:30], "little")
  elif kind == b"VP8L":
    bits = int.from_bytes(data[21:25], "little")
    width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
  else:
    width, height = (v & 0x3FFF for v in struct.unpack_from("<HH", data, 26))
  check_size(width, height, max_pixels)


def refuse_frames(count: int, what: str) -> None:
  """Refuses a file of several pictures."""
  if count > 1:
    raise ImageError(
      f"holds {count} {what}, and only single pictures are read; save the"
      f" {what} as PNG files first"
    )


def from_pillow(
  picture: PilImage.Image,
) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
  """Returns pixels, alpha and profile of a loaded picture of 8 bits."""
  profile = picture.info.get("icc_profile")
  mode = picture.mode
  if mode in ("CMYK", "LAB"):
    picture, profile = _to_srgb(picture, profile), None
  elif mode == "1":
    picture = picture.convert("L")
  elif mode in ("P", "PA"):
    picture = picture.convert(
      "RGBA" if picture.has_transparency_data else "RGB"
    )
  elif mode == "YCbCr":
    picture = picture.convert("RGB")
  if picture.mode not in ("L", "LA", "RGB", "RGBA"):
    raise ImageError(
      f"samples of Pillow's mode {picture.mode} are not read; save it as 8-bit"
      " or 16-bit grey or RGB"
    )
  return *split_alpha(np.asarray(picture)), profile


def _to_srgb(picture: PilImage.Image, profile: bytes | None) -> PilImage.Image:
  """Converts CMYK or Lab to sRGB, by the profile where it is a sound one."""
  from PIL import ImageCms  # Seldom needed.

  source = None
  if picture.mode == "LAB":
    source = ImageCms.createProfile("LAB")
  elif meta.profile_space(profile) == b"CMYK":
    source = io.BytesIO(profile)
  if source is not None:
    try:
      return ImageCms.profileToProfile(
        picture,
        ImageCms.ImageCmsProfile(source),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
      )
    except (ImageCms.PyCMSError, OSError):
      if picture.mode == "LAB":
        raise
  return picture.convert("RGB")


def split_alpha(array: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
  """Splits colour and alpha."""
  if array.ndim == 2:
    array = array[..., None]
  if array.shape[2] in (1, 3):
    return np.ascontiguousarray(array), None
  return (
    np.ascontiguousarray(array[..., :-1]),
    np.ascontiguousarray(array[..., -1]),
  )


def assemble(
  pixels: np.ndarray,
  alpha: np.ndarray | None,
  exif: PilImage.Exif,
  orientation: int,
  *,
  format: str,  # noqa: A002 - the name of the field.
  icc_profile: Any,
  xmp: Any,
  dpi: Any,
  exif_tags: Collection[int] | None = None,
) -> Image:
  """Turns the picture upright and tidies its metadata."""
  pixels = _upright(pixels, orientation)
  alpha = None if alpha is None else _upright(alpha, orientation)
  H, W, C = pixels.shape
  dpi = meta.tidy_dpi(dpi)
  if dpi is not None and orientation >= 5:
    dpi = dpi[::-1]
  if meta.profile_space(icc_profile) != meta.SPACE_OF_CHANNELS[C]:
    icc_profile = None
  metadata = Metadata(
    format=format,
    icc_profile=icc_profile,
    exif=meta.tidy_exif(exif, W, H, only=exif_tags),
    xmp=meta.tidy_xmp(xmp),
    dpi=dpi,
  )
  return Image(pixels, alpha, metadata)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
  """Undoes an EXIF orientation, 1 to 8, on [H, W, ...]."""
  if orientation in (5, 6, 7, 8):
    array = array.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    array = array[::-1]
  if orientation in (2, 3, 6, 7):
    array = array[:, ::-1]
  return np.ascontiguousarray(array)
