"""From what a decoder finds to an `Image`: colour spaces, turning, metadata."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImage

from esrgan_jax.images import metadata as meta
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.pixels import Image, ImageError, Metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What a decoder found in a file, nothing of it checked but the pixels.

  Attributes:
    format: As in `Metadata`.
    pixels: uint8 or uint16 `[H, W, 1 or 3]`, as they are stored.
    alpha: None or `[H, W]`.
    icc_profile: Colour profile, of whatever space.
    exif: EXIF tags.
    orientation: As in EXIF; None: what `exif` says.
    xmp: XMP packet.
    dpi: Pixels an inch, None where unknown.
  """

  format: str
  pixels: np.ndarray
  alpha: np.ndarray | None = None
  icc_profile: bytes | None = None
  exif: meta.Exif = dataclasses.field(
    default_factory=lambda: meta.load_exif(None)
  )
  orientation: int | None = None
  xmp: bytes | None = None
  dpi: Sequence[float | None] | None = None


def refuse_frames(count: int, what: str) -> None:
  """Refuses a file of several pictures."""
  if count > 1:
    raise ImageError(
      f"holds {count} {what}, and only single pictures are read; save the"
      f" {what} as PNG files first"
    )


def to_rgb(mode: str, samples: np.ndarray, profile: bytes | None) -> np.ndarray:
  """Converts samples `[H, W, 3 or 4]` of 8 bits to sRGB, by Pillow.

  Args:
    mode: "CMYK", "YCbCr" or "LAB".
    samples: Of that colour space.
    profile: Of CMYK; where it is sound, it says how.

  Returns:
    uint8 `[H, W, 3]`.
  """
  from PIL import ImageCms  # Seldom needed.

  size = samples.shape[1::-1]
  picture = PilImage.frombuffer(
    mode, size, np.ascontiguousarray(samples), "raw", mode, 0, 1
  )
  source = None
  if mode == "LAB":
    source = ImageCms.createProfile("LAB")
  elif mode == "CMYK" and meta.profile_space(profile) == b"CMYK":
    source = io.BytesIO(profile)
  if source is not None:
    try:
      picture = ImageCms.profileToProfile(
        picture,
        ImageCms.ImageCmsProfile(source),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
      )
    except (ImageCms.PyCMSError, OSError):
      if mode == "LAB":
        raise
  return np.asarray(picture.convert("RGB"))


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


def assemble(found: Found) -> Image:
  """Turns the picture upright and tidies its metadata."""
  orientation = found.orientation or meta.orientation_of(found.exif)
  pixels = _upright(found.pixels, orientation)
  alpha = found.alpha
  alpha = None if alpha is None else _upright(alpha, orientation)
  H, W, C = pixels.shape
  dpi = meta.tidy_dpi(found.dpi)
  if dpi is not None and orientation >= 5:
    dpi = dpi[::-1]
  profile = found.icc_profile
  if (
    meta.profile_space(profile) != meta.SPACE_OF_CHANNELS[C]
    or len(profile) > MAX_METADATA
  ):
    profile = None
  metadata = Metadata(
    format=found.format,
    icc_profile=profile,
    exif=meta.tidy_exif(found.exif, W, H),
    xmp=meta.tidy_xmp(found.xmp),
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
