"""From what a decoder finds to an `Image`: colour spaces, turning, metadata."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image as PilImage

from esrgan_jax.images import geotiff, light, profiles, xmp
from esrgan_jax.images import metadata as meta
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.pixels import Image, ImageError, Metadata, bands


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What a decoder found in a file, nothing of it checked but the pixels.

  Attributes:
    format: As in `Metadata`.
    pixels: uint8, uint16 or float32 `[H, W, 1 or 3]`, as they are stored.
    alpha: None or `[H, W]`.
    extra: None or `[H, W, E]`.
    extra_samples: As in `Metadata`.
    icc_profile: Colour profile, of whatever space.
    exif: EXIF tags.
    orientation: As in EXIF; None: what `exif` says.
    xmp: XMP packet.
    dpi: Pixels an inch, None where unknown.
    bits: As in `Metadata`.
    linear: Of floats, whether they are linear light whatever the rest says.
    premultiplied: Of floats, whether alpha is in them.
    png_chunks: As in `Metadata`.
    geotiff: Likewise.
    notes: Sentences on what is left out, as in `Image`.
  """

  format: str
  pixels: np.ndarray
  alpha: np.ndarray | None = None
  extra: np.ndarray | None = None
  extra_samples: tuple[int, ...] | None = None
  icc_profile: bytes | None = None
  exif: meta.Exif = dataclasses.field(
    default_factory=lambda: meta.load_exif(None)
  )
  orientation: int | None = None
  xmp: bytes | None = None
  dpi: Sequence[float | None] | None = None
  bits: int | None = None
  linear: bool = False
  premultiplied: bool = False
  png_chunks: tuple[tuple[bytes, bytes], ...] = ()
  geotiff: geotiff.Tags | None = None
  notes: tuple[str, ...] = ()


def refuse_frames(count: int, what: str) -> None:
  """Refuses a file of several pictures."""
  if count > 1:
    raise ImageError(
      f"holds {count} {what}, and one picture is wanted; images.read_frames"
      f" reads them one by one"
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
  convert = _conversion(mode, profile)
  pixels = np.empty((*samples.shape[:2], 3), np.uint8)
  for rows in bands(samples):
    part = np.ascontiguousarray(samples[rows])
    picture = PilImage.frombuffer(
      mode, part.shape[1::-1], part, "raw", mode, 0, 1
    )
    pixels[rows] = np.asarray(convert(picture))
  return pixels


def _conversion(
  mode: str, profile: bytes | None
) -> Callable[[PilImage.Image], PilImage.Image]:
  """Returns a function to RGB, by the profile if there is a sound one."""
  from PIL import ImageCms  # Seldom needed.

  source = None
  if mode == "LAB":
    source = ImageCms.createProfile("LAB")
  elif mode == "CMYK" and meta.profile_space(profile) == b"CMYK":
    source = io.BytesIO(profile)
  if source is not None:
    try:
      transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(source),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
      )
    except (ImageCms.PyCMSError, OSError):
      if mode == "LAB":
        raise
    else:
      return lambda picture: ImageCms.applyTransform(picture, transform)
  return lambda picture: picture.convert("RGB")


def from_palette(palette: np.ndarray, indices: np.ndarray) -> np.ndarray:
  """Returns `palette[indices]`, of `[N, C]` and integers `[H, W]`."""
  pixels = np.empty((*indices.shape, palette.shape[1]), palette.dtype)
  # NumPy makes eight bytes of each index.
  for rows in bands(pixels):
    pixels[rows] = np.take(palette, indices[rows], axis=0)
  return pixels


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
  levels: dict[str, float] = {}
  if found.pixels.dtype == np.float32:
    found, levels = _as_shown(found)
  orientation = found.orientation or meta.orientation_of(found.exif)
  pixels = upright(found.pixels, orientation)
  alpha, extra = (
    None if array is None else upright(array, orientation)
    for array in (found.alpha, found.extra)
  )
  H, W, C = pixels.shape
  metadata, notes = tidy_metadata(found, (W, H), C)
  metadata = dataclasses.replace(metadata, **levels)
  return Image(pixels, alpha, metadata, extra, notes)


def tidy_metadata(
  found: Found, size: tuple[int, int], channels: int
) -> tuple[Metadata, tuple[str, ...]]:
  """Returns what a file says of its upright picture, and what is left out.

  Args:
    found: In the file; its pixels do not matter.
    size: Width and height of the picture, upright.
    channels: Of its colour.
  """
  orientation = found.orientation or meta.orientation_of(found.exif)
  dpi = meta.tidy_dpi(found.dpi)
  if dpi is not None and orientation >= 5:
    dpi = dpi[::-1]
  notes = [*found.notes]
  profile, exif, places = found.icc_profile, found.exif, found.geotiff
  if profile is not None and (
    meta.profile_space(profile) != meta.SPACE_OF_CHANNELS[channels]
    or len(profile) > MAX_METADATA
  ):
    notes.append("its colour profile is not one of its pixels, and left out")
    profile = None
  if exif.damaged:
    notes.append("its EXIF is damaged, and left out")
  exif = meta.tidy_exif(exif, size, size, orientation=orientation)
  packet = xmp.fit(found.xmp, size, size)
  notes += packet.notes
  if places and orientation != 1:
    notes.append("its place on the map is left out, as its pixels are turned")
    places = None
  metadata = Metadata(
    format=found.format,
    icc_profile=profile,
    exif=meta.pack_exif(exif),
    xmp=packet.packet,
    dpi=dpi,
    bits=found.bits,
    size=size,
    extra_samples=found.extra_samples,
    png_chunks=found.png_chunks,
    geotiff=places or None,
  )
  return metadata, tuple(notes)


def _as_shown(found: Found) -> tuple[Found, dict[str, float]]:
  """Makes a display's values of floats; returns what was done as well."""
  for samples in (found.pixels, found.alpha, found.extra):
    if samples is not None:
      light.check_finite(samples)
  linear = is_linear(found)
  pixels, levels = light.from_file(straight(found), linear=linear)
  return as_displayed(found, pixels, linear=linear), levels


def is_linear(found: Found) -> bool:
  """Tells whether floats are linear light."""
  linear = found.linear or profiles.is_linear(found.icc_profile)
  return linear or meta.gamma_of(found.exif) == 1


def straight(found: Found) -> np.ndarray:
  """Returns floats that are not multiplied by alpha."""
  pixels = found.pixels
  if found.premultiplied and found.alpha is not None:
    pixels = np.divide(
      pixels,
      found.alpha[..., None],
      out=pixels.copy(),
      where=found.alpha[..., None] > 0,
    )
    light.check_finite(pixels)
  return pixels


def as_displayed(found: Found, pixels: np.ndarray, *, linear: bool) -> Found:
  """Returns what was found with a display's values, and their profile."""
  profile = found.icc_profile
  if linear and profile is not None:
    profile = profiles.with_curves(profile, linear=False)
  return dataclasses.replace(found, pixels=pixels, icc_profile=profile)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
  """Undoes an EXIF orientation, 1 to 8, on [H, W, ...]."""
  if orientation in (5, 6, 7, 8):
    array = array.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    array = array[::-1]
  if orientation in (2, 3, 6, 7):
    array = array[:, ::-1]
  return np.ascontiguousarray(array)
