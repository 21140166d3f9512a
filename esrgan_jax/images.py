"""Image files to arrays and back, losing nothing that the format can hold.

A file becomes an `Image`: colour, transparency and metadata apart, 8 or 16
bits as the file has it. 16 bits are decided by the file's header, never by the
values met. Grey stays grey; palettes, CMYK, Lab and YCbCr become RGB; EXIF
orientation is applied. Damaged and hostile files give an `ImageError`.

Pillow is the only codec library, because it is one we need anyway: it reads
16-bit RGB as 8-bit without a word, so that for those files this module undoes
the container (PNG chunks, TIFF directories) and borrows Pillow's inflate, LZW
and unfiltering alone, through public calls. `imagecodecs` (26 MB) and OpenCV
(61 MB) would do the same at many times the size of the whole program.

PNG and TIFF are written here, band by band and in threads, so that an output
that lives in a `numpy.memmap` is never copied whole.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import math
import os
import pathlib
import re
import secrets
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import (
  BmpImagePlugin,
  GifImagePlugin,
  ImageCms,
  JpegImagePlugin,
  PngImagePlugin,
  TiffImagePlugin,
  WebPImagePlugin,
)
from PIL import Image as PilImage

__all__ = [
  "INPUT_SUFFIXES",
  "MAX_PIXELS",
  "OUTPUT_SUFFIXES",
  "Image",
  "ImageError",
  "Metadata",
  "bleed_colour",
  "from_float",
  "is_image_suffix",
  "read_image",
  "to_float",
  "write_image",
]

# Every phone and medium-format camera of today stays below (200 megapixels),
# and so does a 16384 x 16384 picture; decoded, it is at most 2 GiB.
MAX_PIXELS = 2**28

# Suffix -> format, for writing.
OUTPUT_SUFFIXES = {
  ".png": "PNG",
  ".jpg": "JPEG",
  ".jpeg": "JPEG",
  ".webp": "WEBP",
  ".tif": "TIFF",
  ".tiff": "TIFF",
  ".bmp": "BMP",
}
# For choosing files in a folder: `read_image` itself goes by the content.
INPUT_SUFFIXES = frozenset(OUTPUT_SUFFIXES) | {".apng", ".gif", ".jfif"}

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BAND_BYTES = 2**21  # Uncompressed bytes a thread compresses at a time.
_CLASSIC_TIFF_END = 2**32 - 1  # Offsets beyond need BigTIFF.


class ImageError(ValueError):
  """An image file that cannot be read or written; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
  """What a file says about its picture, apart from the pixels.

  Attributes:
    format: Format of the file it came from: "PNG", "JPEG", "WEBP", "TIFF",
      "BMP", "GIF"; empty for an image that was never a file.
    icc_profile: ICC colour profile of the pixels; None means sRGB by custom.
    exif: EXIF block (a TIFF structure, without the "Exif" prefix), its
      orientation reset and its thumbnail removed.
    xmp: XMP packet, UTF-8.
    dpi: Horizontal and vertical pixels an inch.

  >>> Metadata(dpi=(300.0, 300.0)).icc_profile is None
  True
  """

  format: str = ""
  icc_profile: bytes | None = dataclasses.field(default=None, repr=False)
  exif: bytes | None = dataclasses.field(default=None, repr=False)
  xmp: bytes | None = dataclasses.field(default=None, repr=False)
  dpi: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
  """A picture as its file has it: integers, upright, alpha apart.

  Attributes:
    pixels: uint8 or uint16 `[H, W, C]`, C = 1 (grey) or 3 (RGB); colour is
      not multiplied by alpha.
    alpha: None, or `[H, W]` of the same dtype; 0 is transparent.
    metadata: Profile, EXIF and the like.

  Raises:
    ValueError: If shapes or dtypes are not those above, or an axis is empty.

  >>> Image(np.zeros((2, 4, 3), np.uint8)).pixels.shape
  (2, 4, 3)
  """

  pixels: np.ndarray
  alpha: np.ndarray | None = None
  metadata: Metadata = dataclasses.field(default_factory=Metadata)

  def __post_init__(self):
    shape, dtype = self.pixels.shape, self.pixels.dtype
    if dtype not in (np.uint8, np.uint16):
      raise ValueError(
        f"pixels are {dtype}, not uint8 or uint16; convert with from_float"
      )
    if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
      raise ValueError(f"pixels are {list(shape)}, not [H, W, 1] or [H, W, 3]")
    if self.alpha is not None and (
      self.alpha.shape != shape[:2] or self.alpha.dtype != dtype
    ):
      raise ValueError(
        f"alpha is {self.alpha.dtype} {list(self.alpha.shape)}, and the pixels"
        f" need {dtype} {list(shape[:2])}"
      )


def is_image_suffix(path: str | os.PathLike) -> bool:
  """Tells whether a file's suffix is one of an image that can be read.

  Args:
    path: Path or name; the file need not exist, capitals do not matter.

  Returns:
    True if the suffix is in `INPUT_SUFFIXES`.

  >>> is_image_suffix("IMG_0001.JPG"), is_image_suffix("notes.txt")
  (True, False)
  """
  return pathlib.PurePath(path).suffix.lower() in INPUT_SUFFIXES


# Floats and alpha: pure functions.


def to_float(pixels: np.ndarray) -> np.ndarray:
  """Returns integer pixels as floats in [0, 1].

  Args:
    pixels: uint8 or uint16, any shape.

  Returns:
    float32 of the same shape: `pixels` / 255, or / 65535.

  Raises:
    ValueError: If `pixels` are of another dtype.

  >>> [float(v) for v in to_float(np.array([0, 51, 255], np.uint8)).round(3)]
  [0.0, 0.20000000298023224, 1.0]
  """
  if pixels.dtype not in (np.uint8, np.uint16):
    raise ValueError(f"pixels are {pixels.dtype}, not uint8 or uint16")
  return pixels / np.float32(np.iinfo(pixels.dtype).max)


def from_float(array: np.ndarray, dtype: Any) -> np.ndarray:
  """Returns floats in [0, 1] as integer pixels, clipped and rounded.

  The inverse of `to_float`, exact for every uint8 and uint16 value.

  Args:
    array: Floats, any shape; what lies outside [0, 1] is clipped.
    dtype: `np.uint8` or `np.uint16`.

  Returns:
    Integers of the same shape, rounded to the nearest, halves to even.

  Raises:
    ValueError: If `dtype` is another one, or `array` holds a NaN.

  >>> from_float(np.array([-1, 0.5, 2]), np.uint8).tolist()
  [0, 128, 255]
  """
  dtype = np.dtype(dtype)
  if dtype not in (np.uint8, np.uint16):
    raise ValueError(f"dtype is {dtype}, not uint8 or uint16")
  scaled = np.clip(np.asarray(array, np.float32), 0, 1)
  if np.isnan(scaled).any():
    raise ValueError(
      f"{int(np.isnan(scaled).sum())} of {scaled.size} values are NaN; the"
      " model's weights or its input are broken"
    )
  return np.rint(scaled * np.float32(np.iinfo(dtype).max)).astype(dtype)


def bleed_colour(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """Fills the colour of transparent pixels from the nearest visible ones.

  Editors leave black or white where alpha is 0. Nobody sees it until a network
  with a wide receptive field draws it into the visible edge.

  Args:
    pixels: uint8 or uint16 `[H, W, C]`.
    alpha: `[H, W]`, >= 0; pixels above 0 are visible.

  Returns:
    A copy of `pixels`, bit-identical where `alpha` > 0. Elsewhere it is the
    alpha-weighted mean of the visible neighbours, at the finest level of a
    pyramid that has any. Where nothing is transparent, or all, just a copy.

  Raises:
    ValueError: If the first two axes of `pixels` are not those of `alpha`.

  Source: the push-pull pyramid of Gortler et al., "The Lumigraph" (1996),
  section 3.4.

  >>> row = np.array([[[9], [0], [0]]], np.uint8)
  >>> bleed_colour(row, np.array([[255, 0, 0]], np.uint8))[0, :, 0].tolist()
  [9, 9, 9]
  """
  if pixels.shape[:2] != alpha.shape:
    raise ValueError(
      f"alpha is {list(alpha.shape)} and pixels are {list(pixels.shape)};"
      " height and width must agree"
    )
  filled = pixels.copy()
  if alpha.any():
    _push_pull(filled, alpha)
  return filled


def _push_pull(colour: np.ndarray, weight: np.ndarray) -> None:
  """Fills `colour` [H, W, C] in place where `weight` [H, W] is 0."""
  known = weight > 0
  if known.all():
    return
  coarse_colour, coarse_weight = _halve(colour, weight)
  _push_pull(coarse_colour, coarse_weight)
  # One ring of true neighbours a level: without it, a pixel next to a visible
  # one, but across a block's border, would take its colour from far away.
  padded = np.pad(known, 1)
  rows = padded[:-2] | padded[1:-1] | padded[2:]
  near = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
  y, x = np.nonzero(near & ~known)
  total = np.zeros((len(y), colour.shape[2]), np.float32)
  mass = np.zeros((len(y), 1), np.float32)
  for dy in (-1, 0, 1):
    for dx in (-1, 0, 1):
      ny = np.clip(y + dy, 0, known.shape[0] - 1)
      nx = np.clip(x + dx, 0, known.shape[1] - 1)
      # Clipping repeats border pixels; an unknown one weighs nothing.
      w = weight[ny, nx, None].astype(np.float32)
      total += w * colour[ny, nx]
      mass += w
  ring = total / mass
  whole = colour.dtype.kind == "u"
  for rows in _bands(colour):
    # Parents of this band's rows; a band may start on an odd row.
    parents = coarse_colour[rows.start // 2 : (rows.stop + 1) // 2]
    if whole:
      parents = np.rint(parents)
    far = parents.astype(colour.dtype).repeat(2, axis=0).repeat(2, axis=1)
    far = far[rows.start % 2 :][: rows.stop - rows.start, : colour.shape[1]]
    np.copyto(colour[rows], far, where=~near[rows, :, None])
  colour[y, x] = np.rint(ring) if whole else ring


def _halve(
  colour: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns weighted means and mean weights of 2 x 2 blocks, float32."""
  H, W, C = colour.shape
  out_colour = np.empty(((H + 1) // 2, (W + 1) // 2, C), np.float32)
  out_weight = np.empty(out_colour.shape[:2], np.float32)
  step = max(2, _BAND_BYTES // (W * C) // 2 * 2)
  for top in range(0, H, step):
    w = weight[top : top + step].astype(np.float32)
    c = colour[top : top + step] * w[..., None]
    pad = ((0, w.shape[0] % 2), (0, W % 2))
    w, c = np.pad(w, pad), np.pad(c, (*pad, (0, 0)))
    w = w[0::2] + w[1::2]
    w = w[:, 0::2] + w[:, 1::2]
    c = c[0::2] + c[1::2]
    c = c[:, 0::2] + c[:, 1::2]
    rows = slice(top // 2, top // 2 + w.shape[0])
    out_weight[rows] = w / 4
    out_colour[rows] = c / np.where(w > 0, w, 1)[..., None]
  return out_colour, out_weight


# Reading.


def read_image(
  path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> Image:
  """Reads a PNG, JPEG, WebP, TIFF, BMP or one-frame GIF file.

  The format is told by the content, not by the suffix. CMYK and Lab become
  sRGB of 8 bits (CMYK by its own ICC profile where it has one); the profile
  is dropped then, as it does not describe the result.

  Args:
    path: The file.
    max_pixels: Most pixels (height x width) to accept. It is checked against
      the header, before anything of that size is allocated. Pillow's
      own limit, 179 million, stands as well for WebP, GIF and unusual TIFFs.

  Returns:
    The picture, upright.

  Raises:
    ImageError: If there is no such file, or it is empty, cut short, damaged,
      not an image, of several frames or pages, of floating-point or other
      unusual samples, or larger than `max_pixels`.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "grey.png")
  ...   write_image(file, Image(np.full((2, 3, 1), 40_000, np.uint16)))
  ...   image = read_image(file)
  >>> image.pixels.shape, image.pixels.dtype.name, image.metadata.format
  ((2, 3, 1), 'uint16', 'PNG')
  """
  path = pathlib.Path(path)
  try:
    data = _read_file(path, max_pixels)
    # Pillow warns of damaged metadata and large pictures: the first does not
    # matter to the pixels, the second has its own check here.
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      return _decode(data, max_pixels)
  except ImageError as error:
    raise ImageError(f"{path}: {error}") from error.__cause__
  except PilImage.DecompressionBombError as error:
    # Some plugins ask a global limit themselves; it is not ours to change.
    raise ImageError(
      f"{path}: {str(error).split(',')[0]} (Pillow's own limit); raise"
      " PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
    ) from error
  except MemoryError:
    raise ImageError(
      f"{path}: not enough memory to decode it; use a smaller picture"
    ) from None
  except Exception as error:
    # Decoders fed with damaged files raise nearly anything: OSError,
    # SyntaxError, struct.error, IndexError, TypeError, zlib.error ...
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ImageError(
      f"{path}: damaged or cut short ({reason}); save it again from its source"
    ) from error


def _read_file(path: pathlib.Path, max_pixels: int) -> bytes:
  try:
    if not path.exists():
      raise ImageError("no such file; check the name")
    if not path.is_file():
      raise ImageError("not a file; name an image file")
    size = path.stat().st_size
    if size == 0:
      raise ImageError("the file is empty (0 bytes); copy it again")
    # Even 16-bit RGBA without compression stays below 16 bytes a pixel.
    limit = 16 * max_pixels + 2**26
    if size > limit:
      raise ImageError(
        f"the file has {size} bytes, and no image of max_pixels={max_pixels}"
        f" has more than {limit}; raise max_pixels if you trust the file"
      )
    return path.read_bytes()
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise ImageError(f"cannot be read: {reason}") from error


def _decode(data: bytes, max_pixels: int) -> Image:
  """Sends the bytes of a file to the reader of its format."""
  if data.startswith(_PNG_SIGNATURE):
    return _read_png(data, max_pixels)
  if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
    return _read_tiff(data, max_pixels)
  if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
    _check_webp(data, max_pixels)
    return _read_pillow(WebPImagePlugin.WebPImageFile, data, max_pixels)
  if data.startswith(b"\xff\xd8\xff"):
    # Also the first picture of an MPO, which is the photo itself.
    return _read_pillow(JpegImagePlugin.JpegImageFile, data, max_pixels)
  if data.startswith((b"GIF87a", b"GIF89a")):
    return _read_pillow(GifImagePlugin.GifImageFile, data, max_pixels)
  if data.startswith(b"BM"):
    return _read_pillow(BmpImagePlugin.BmpImageFile, data, max_pixels)
  if data[4:8] == b"ftyp":
    raise ImageError("a HEIC, AVIF or video file; convert it to PNG or JPEG")
  raise ImageError(
    "not an image of a known format; PNG, JPEG, WebP, TIFF, BMP and GIF are"
    " read"
  )


def _check_size(width: int, height: int, max_pixels: int) -> None:
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


def _refuse_frames(count: int, what: str) -> None:
  if count > 1:
    raise ImageError(
      f"holds {count} {what}, and only single pictures are read; save the"
      f" {what} as PNG files first"
    )


def _check_webp(data: bytes, max_pixels: int) -> None:
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
  _check_size(width, height, max_pixels)


def _read_pillow(
  plugin: Callable[[BinaryIO], Any], data: bytes, max_pixels: int
) -> Image:
  """Reads what Pillow reads without loss, of a format already told."""
  # A plugin's class, not `Image.open`: that one has limits of its own, which
  # are global state.
  with plugin(io.BytesIO(data)) as picture:
    _check_size(*picture.size, max_pixels)
    _refuse_frames(getattr(picture, "n_frames", 1), "frames")
    picture.load()
    pixels, alpha, profile = _from_pillow(picture)
    info = picture.info
    exif, orientation = info.get("exif"), 1
    if picture.format != "TIFF":  # Pillow turns TIFF files by itself.
      orientation = _orientation(exif)
    return _assemble(
      pixels,
      alpha,
      orientation=orientation,
      format="JPEG" if picture.format == "MPO" else picture.format,
      icc_profile=profile,
      exif=exif,
      xmp=info.get("xmp"),
      dpi=info.get("dpi"),
    )


def _from_pillow(
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
  elif mode in ("La", "RGBa"):
    picture = picture.convert(mode.upper())
  elif mode in ("RGBX", "YCbCr", "HSV"):
    picture = picture.convert("RGB")
  if picture.mode not in ("L", "LA", "RGB", "RGBA"):
    raise ImageError(
      f"samples of Pillow's mode {picture.mode} are not read; save it as 8-bit"
      " or 16-bit grey or RGB"
    )
  array = np.asarray(picture)
  if array.ndim == 2:
    array = array[..., None]
  pixels, alpha = _split_alpha(array)
  return pixels, alpha, profile


def _to_srgb(picture: PilImage.Image, profile: bytes | None) -> PilImage.Image:
  """Converts CMYK or Lab to sRGB, by the profile where it is a sound one."""
  source = None
  if picture.mode == "LAB":
    source = ImageCms.createProfile("LAB")
  elif _profile_space(profile) == b"CMYK":
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


def _split_alpha(array: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
  """Splits [H, W, 1..4] into contiguous colour and alpha."""
  if array.shape[2] in (1, 3):
    return np.ascontiguousarray(array), None
  return (
    np.ascontiguousarray(array[..., :-1]),
    np.ascontiguousarray(array[..., -1]),
  )


def _assemble(
  pixels: np.ndarray,
  alpha: np.ndarray | None,
  *,
  orientation: int,
  format: str,  # noqa: A002 - the name of the field.
  icc_profile: Any,
  exif: Any,
  xmp: Any,
  dpi: Any,
) -> Image:
  """Turns the picture upright and tidies its metadata."""
  pixels = _upright(pixels, orientation)
  alpha = None if alpha is None else _upright(alpha, orientation)
  dpi = _tidy_dpi(dpi)
  if dpi is not None and orientation >= 5:
    dpi = dpi[::-1]
  if _profile_space(icc_profile) != _SPACE_OF_CHANNELS[pixels.shape[2]]:
    icc_profile = None
  metadata = Metadata(
    format=format,
    icc_profile=icc_profile,
    exif=_tidy_exif(exif, pixels.shape[1], pixels.shape[0]),
    xmp=_tidy_xmp(xmp),
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


_SPACE_OF_CHANNELS = {1: b"GRAY", 3: b"RGB "}


def _profile_space(profile: Any) -> bytes | None:
  """Returns an ICC profile's colour space, or None if it is not a profile."""
  if not isinstance(profile, bytes) or len(profile) < 132:
    return None
  size = int.from_bytes(profile[:4], "big")
  if profile[36:40] != b"acsp" or not 132 <= size <= len(profile):
    return None
  return profile[16:20]


def _tidy_dpi(dpi: Any) -> tuple[float, float] | None:
  try:
    x, y = (float(v) for v in dpi)
  except (TypeError, ValueError, ZeroDivisionError):
    return None
  # The range that each format's fields can hold.
  return (x, y) if 1 <= x <= 65_535 and 1 <= y <= 65_535 else None


def _tidy_xmp(xmp: Any) -> bytes | None:
  """Returns the packet with its orientation reset, as the pixels are turned."""
  if isinstance(xmp, str):
    xmp = xmp.encode()
  if not isinstance(xmp, bytes) or not xmp:
    return None
  return re.sub(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))[2-8]", rb"\g<1>1", xmp)


# PNG.


def _read_png(data: bytes, max_pixels: int) -> Image:
  """Reads a PNG; Pillow decodes the pixels, but 16 bits only in halves."""
  chunks: dict[bytes, memoryview] = {}
  stream = []
  for kind, body, checked in _png_chunks(data):
    if kind == b"IDAT":
      if not checked:
        raise ValueError("wrong checksum of pixel data")
      stream.append(body)
    else:
      chunks.setdefault(kind, body)
  if len(chunks.get(b"IHDR", b"")) != 13:
    raise ValueError("no header")
  width, height, depth, colour, _, _, interlace = struct.unpack(
    ">IIBBBBB", chunks[b"IHDR"]
  )
  _check_size(width, height, max_pixels)
  if len(chunks.get(b"acTL", b"")) >= 4:
    _refuse_frames(int.from_bytes(chunks[b"acTL"][:4], "big"), "frames")

  with PngImagePlugin.PngImageFile(io.BytesIO(data)) as picture:
    if depth == 16:
      info = picture.info
      array = _inflate_png16(
        b"".join(stream), width, height, colour, int(interlace == 1)
      )
      pixels, alpha = _split_alpha(array)
      profile = info.get("icc_profile")
    else:
      picture.load()
      info = picture.info
      if picture.mode != "P":
        # Pillow compares scaled samples with an unscaled key.
        info.pop("transparency", None)
      pixels, alpha, profile = _from_pillow(picture)
  if b"tRNS" in chunks and colour in (0, 2) and depth in (1, 2, 4, 8, 16):
    alpha = _alpha_of_key(pixels, chunks[b"tRNS"], depth)
  exif = bytes(chunks[b"eXIf"]) if b"eXIf" in chunks else info.get("exif")
  return _assemble(
    pixels,
    alpha,
    orientation=_orientation(exif),
    format="PNG",
    icc_profile=profile,
    exif=exif,
    xmp=info.get("xmp"),
    dpi=info.get("dpi"),
  )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
  """Yields each chunk's type, body, and whether its checksum is right."""
  view = memoryview(data)
  position = len(_PNG_SIGNATURE)
  while True:
    length, kind = struct.unpack_from(">I4s", data, position)
    end = position + 8 + length
    (checksum,) = struct.unpack_from(">I", data, end)
    body = view[position + 8 : end]
    yield kind, body, zlib.crc32(view[position + 4 : end]) == checksum
    if kind == b"IEND":
      return
    position = end + 4


def _inflate_png16(
  stream: bytes, width: int, height: int, colour: int, interlace: int
) -> np.ndarray:
  """Returns the 16-bit samples [H, W, C] of a PNG's zlib stream."""

  def unpack(mode, raw_mode):
    decoded = PilImage.frombytes(
      mode, (width, height), stream, "zip", raw_mode, interlace
    )
    return np.asarray(decoded)

  if colour in (0, 4):
    # Pixels of 2 and 4 bytes pass as 8-bit ones of as many channels.
    mode = {0: "LA", 4: "RGBA"}[colour]
    return unpack(mode, mode).view(">u2").astype(np.uint16)
  mode = {2: "RGB", 6: "RGBA"}[colour]
  # Pillow keeps the high byte of each sample. Read as little-endian, it is the
  # low one.
  samples = unpack(mode, mode + ";16B").astype(np.uint16)
  samples <<= 8
  samples |= unpack(mode, mode + ";16L")
  return samples


def _alpha_of_key(
  pixels: np.ndarray, key: memoryview, depth: int
) -> np.ndarray:
  """Returns alpha where a PNG makes one colour transparent."""
  channels = pixels.shape[2]
  top = np.iinfo(pixels.dtype).max
  values = np.array(struct.unpack_from(f">{channels}H", key))
  values = (values & (2**depth - 1)) * top // (2**depth - 1)
  opaque = (pixels != values.astype(pixels.dtype)).any(axis=2)
  return np.where(opaque, top, 0).astype(pixels.dtype)


# TIFF directories, which are also EXIF's.

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8}
_TYPE_BYTES |= {11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INT_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8"}
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 34665, 34853, 40965
_SUB_IFDS = (_EXIF_IFD, _GPS_IFD, _INTEROP_IFD)
_ORIENTATION = 274
# Of a TIFF's own directory, what EXIF has there too: words about the picture.
_DESCRIPTIVE = frozenset(
  {269, 270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432}
  | set(range(40091, 40096))
)


@dataclasses.dataclass(frozen=True)
class _Field:
  """One entry of a directory: its value as raw bytes, and where it stands."""

  kind: int
  count: int
  value: bytes
  at: int = dataclasses.field(default=0, compare=False)

  def ints(self, order: str) -> tuple[int, ...]:
    """Returns the value as integers; none if it is not made of them."""
    if self.kind not in _INT_TYPES:
      return ()
    return tuple(
      np.frombuffer(self.value, order + _INT_TYPES[self.kind]).tolist()
    )


_Ifd = dict[int, Any]  # Tag -> _Field, or -> _Ifd for a sub-directory.


def _tiff_header(data: bytes) -> tuple[str, bool, int]:
  """Returns byte order, whether it is a BigTIFF, and the first offset."""
  order = {b"II": "<", b"MM": ">"}[bytes(data[:2])]
  (magic,) = struct.unpack_from(order + "H", data, 2)
  if magic == 43:
    return order, True, struct.unpack_from(order + "Q", data, 8)[0]
  if magic != 42:
    raise ValueError("no TIFF header")
  return order, False, struct.unpack_from(order + "I", data, 4)[0]


def _read_ifd(
  data: bytes, offset: int, order: str, big: bool
) -> tuple[dict[int, _Field], int]:
  """Returns the fields that lie inside `data`, and the next offset."""
  head, entry, room = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
  entry, pointer = order + entry, order + ("Q" if big else "I")
  (count,) = struct.unpack_from(order + head, data, offset)
  if count > 4096:
    raise ValueError("a directory of absurd length")
  position = offset + struct.calcsize(order + head)
  fields = {}
  for _ in range(count):
    tag, kind, number, inline = struct.unpack_from(entry, data, position)
    length = _TYPE_BYTES.get(kind, 0) * number
    if length <= room:
      value = inline[:length]
    else:
      (start,) = struct.unpack(pointer, inline)
      value = bytes(data[start : start + length])
    if length and len(value) == length:
      fields[tag] = _Field(kind, number, value, position)
    position += struct.calcsize(entry)
  (following,) = struct.unpack_from(pointer, data, position)
  return fields, following


def _read_tree(
  data: bytes, offset: int, order: str, big: bool, depth: int = 0
) -> _Ifd:
  """Reads a directory with those below it: EXIF, GPS, interoperability."""
  tree: _Ifd = dict(_read_ifd(data, offset, order, big)[0])
  for tag in _SUB_IFDS:
    if tag not in tree:
      continue
    pointer = tree.pop(tag).ints(order)
    # Depth ends directories that point back at themselves.
    if len(pointer) == 1 and depth < 2:
      with contextlib.suppress(struct.error, ValueError):
        tree[tag] = _read_tree(data, pointer[0], order, big, depth + 1)
  return tree


def _pack_tree(
  tree: _Ifd, offset: int, order: str, *, big: bool = False
) -> tuple[bytes, int]:
  """Returns the bytes of a tree to stand at `offset`, and the root's offset."""
  head, entry, room = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
  pointer = order + ("Q" if big else "I")
  blob = b""
  fields = {}
  for tag, value in sorted(tree.items()):
    if isinstance(value, dict):
      below, at = _pack_tree(value, offset + len(blob), order, big=big)
      blob += below
      value = _Field(16 if big else 4, 1, struct.pack(pointer, at))
    fields[tag] = value
  root = offset + len(blob)
  size = struct.calcsize(order + head + pointer[1:])
  data_at = root + size + len(fields) * struct.calcsize(order + entry)
  entries, values = b"", b""
  for tag, field in fields.items():
    inline = field.value
    if len(inline) > room:
      inline = struct.pack(pointer, data_at + len(values))
      values += field.value + b"\0" * (len(field.value) % 2)
    entries += struct.pack(
      order + entry, tag, field.kind, field.count, inline.ljust(room, b"\0")
    )
  count = struct.pack(order + head, len(fields))
  end = struct.pack(pointer, 0)
  blob += count + entries + end + values
  return blob + b"\0" * (len(blob) % 2), root


def _orientation(exif: Any) -> int:
  """Returns the EXIF orientation, 1 where there is none or nonsense."""
  try:
    block = exif.removeprefix(b"Exif\0\0")
    order, big, first = _tiff_header(block)
    (value,) = _read_ifd(block, first, order, big)[0][_ORIENTATION].ints(order)
  except (AttributeError, KeyError, ValueError, struct.error):
    return 1
  return value if 1 <= value <= 8 else 1


def _tidy_exif(exif: Any, width: int, height: int) -> bytes | None:
  """Returns the block for an upright picture of this size; None if unsound.

  It is patched in place, because makers' notes hold offsets of their own.
  """
  if not isinstance(exif, bytes):
    return None
  block = bytearray(exif.removeprefix(b"Exif\0\0"))
  try:
    order, big, first = _tiff_header(block)
    if big:
      return None
    fields, following = _read_ifd(block, first, order, big)
    if following:
      end = first + 2 + 12 * struct.unpack_from(order + "H", block, first)[0]
      struct.pack_into(order + "I", block, end, 0)
      block = _cut_thumbnail(block, following, order)
    if _ORIENTATION in fields:
      at = fields[_ORIENTATION].at
      struct.pack_into(order + "HIHH", block, at + 2, 3, 1, 1, 0)
    sizes = [(fields, 256, width), (fields, 257, height)]
    pointer = fields.get(_EXIF_IFD)
    if pointer is not None and len(pointer.ints(order)) == 1:
      with contextlib.suppress(struct.error, ValueError):
        below, _ = _read_ifd(block, pointer.ints(order)[0], order, big)
        sizes += [(below, 40962, width), (below, 40963, height)]
    for where, tag, value in sizes:
      if tag in where:
        at = where[tag].at
        struct.pack_into(order + "HII", block, at + 2, 4, 1, value)
  except (KeyError, ValueError, struct.error):
    return None
  return bytes(block)


def _cut_thumbnail(block: bytearray, offset: int, order: str) -> bytearray:
  """Removes an old thumbnail's bytes if they are the end of the block."""
  with contextlib.suppress(KeyError, ValueError, struct.error):
    fields, _ = _read_ifd(block, offset, order, False)
    (start,) = fields[513].ints(order)
    (length,) = fields[514].ints(order)
    first = struct.unpack_from(order + "I", block, 4)[0]
    if len(block) - 8 <= start + length <= len(block):
      shorter = block[:start]
      tree = _read_tree(block, first, order, False)
      if _read_tree(shorter, first, order, False) == tree:
        return shorter
  return block


# TIFF.

# Compressions that give back plain bytes, whatever the samples mean.
_PLAIN_COMPRESSIONS = {1, 5, 8, 32773, 32946, 34925, 50000}


def _read_tiff(data: bytes, max_pixels: int) -> Image:
  """Reads a TIFF: plain grey and RGB(A) here, the rest as Pillow does."""
  order, big, offset = _tiff_header(data)
  page_offset, page = _only_page(data, offset, order, big)

  def ints(tag, *default):
    return page[tag].ints(order) if tag in page else default

  if not (ints(256) and ints(257)):
    raise ValueError("no size in its header")
  width, height = ints(256)[0], ints(257)[0]
  _check_size(width, height, max_pixels)
  bits, kinds = set(ints(258, 1)), set(ints(339, 1))
  photometric = ints(262, 0)[0]
  compression = ints(259, 1)[0]
  if kinds != {1} or not bits <= {1, 2, 4, 8, 16}:
    what = "floating-point" if 3 in kinds else "signed" if 2 in kinds else "odd"
    raise ImageError(
      f"has {what} samples of {'/'.join(map(str, sorted(bits)))} bits, whose"
      " white point is not defined; save it as 8-bit or 16-bit integers"
    )
  tree = _read_tree(data, page_offset, order, big)
  exif = _exif_of_tiff(tree, order)
  if (
    photometric in (0, 1, 2)
    and bits in ({8}, {16})
    and compression in _PLAIN_COMPRESSIONS
  ):
    pixels, alpha = _read_plain_tiff(data, page, order, max_pixels)
    profile = page[34675].value if 34675 in page else None
    turn = (ints(_ORIENTATION, 1) or (1,))[0]
    dpi = _dpi_of_tiff(page, order)
  elif bits == {16} and photometric != 5:
    raise ImageError(
      f"16-bit samples of photometric {photometric}, compression {compression}"
      " are not read; save it as 16-bit RGB with LZW or no compression"
    )
  else:
    # Pillow shall see this page alone, were it not the first of the file.
    single = _with_directory(data, page, order, big)
    with TiffImagePlugin.TiffImageFile(io.BytesIO(single)) as picture:
      picture.load()  # Which turns it upright as well.
      pixels, alpha, profile = _from_pillow(picture)
      dpi, turn = picture.info.get("dpi"), 1
  return _assemble(
    pixels,
    alpha,
    orientation=turn if 1 <= turn <= 8 else 1,
    format="TIFF",
    icc_profile=profile,
    exif=exif,
    xmp=page[700].value if 700 in page else None,
    dpi=dpi,
  )


def _only_page(
  data: bytes, offset: int, order: str, big: bool
) -> tuple[int, dict[int, _Field]]:
  """Returns the one full picture's directory; previews and masks are none."""
  pages, seen = [], set()
  while offset and offset not in seen and len(seen) < 4096:
    seen.add(offset)
    try:
      fields, following = _read_ifd(data, offset, order, big)
    except (struct.error, ValueError):
      if pages:
        break
      raise
    kind = fields[254].ints(order) if 254 in fields else (0,)
    old = fields[255].ints(order) if 255 in fields else (1,)
    if not (kind and kind[0] & 5) and old != (2,):
      pages.append((offset, fields))
    offset = following
  if not pages:
    raise ValueError("no picture in it")
  _refuse_frames(len(pages), "pages")
  return pages[0]


def _with_directory(
  data: bytes, fields: dict[int, _Field], order: str, big: bool
) -> bytes:
  """Returns the TIFF file with `fields` as its first and only directory."""
  padding = b"\0" * (len(data) % 2)
  blob, root = _pack_tree(fields, len(data) + len(padding), order, big=big)
  mark = {"<": b"II", ">": b"MM"}[order]
  if big:
    head = mark + struct.pack(order + "HHHQ", 43, 8, 0, root)
  else:
    head = mark + struct.pack(order + "HI", 42, root)
  return b"".join((head, memoryview(data)[len(head) :], padding, blob))


def _read_plain_tiff(
  data: bytes,
  page: dict[int, _Field],
  order: str,
  max_pixels: int,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns pixels and alpha of 8- or 16-bit grey or RGB."""

  def number(tag, default):
    values = page[tag].ints(order) if tag in page else (default,)
    if not values:
      raise ValueError(f"tag {tag} holds no number")
    return values[0]

  width, height, bits = number(256, 0), number(257, 0), number(258, 1)
  photometric, samples = number(262, 0), number(277, 1)
  predictor = number(317, 1)
  planar = number(284, 1) == 2 and samples > 1
  channels = 3 if photometric == 2 else 1
  if not channels <= samples <= 32 or predictor not in (1, 2):
    raise ValueError(f"{samples} samples a pixel, predictor {predictor}")
  _check_size(width, height * max(1, samples // 4), max_pixels)
  tiled = 322 in page
  across, down = width, min(number(278, height), height)
  if tiled:
    across, down = number(322, 0), number(323, 0)
  # libtiff demands multiples of 16 of tiles, and allocates one whole.
  if across < 1 or down < 1 or across > width + 4096 or down > height + 4096:
    raise ValueError(f"parts of {across} x {down} pixels")
  parts = math.ceil(width / across) * math.ceil(height / down)
  offsets_tag, counts_tag = (324, 325) if tiled else (273, 279)
  offsets = page[offsets_tag].ints(order)
  counts = page[counts_tag].ints(order) if counts_tag in page else ()
  if not counts and parts == 1 and len(offsets) == 1:
    counts = (max(0, len(data) - offsets[0]),)  # Some old writers left it out.
  planes = samples if planar else 1
  if len(offsets) != parts * planes or len(counts) != parts * planes:
    raise ValueError(f"{len(offsets)} of {parts * planes} parts")
  if any(a + n > len(data) for a, n in zip(offsets, counts, strict=True)):
    raise ValueError("pixel data beyond the end")
  unit = bits // 8 * (1 if planar else samples)

  wanted = [channels] if samples > channels else []
  extras = page[338].ints(order) if 338 in page else (2,)
  if wanted and extras[:1] not in ((1,), (2,)):
    wanted = []  # A channel of no stated meaning is not transparency.
  wanted = [*range(channels), *wanted]
  array = np.empty((height, width, len(wanted)), f"u{bits // 8}")
  per_row = math.ceil(width / across)
  # Part by part, within Pillow's limit on pixels: these are many times wider.
  step = max(1, 2**26 // (down * width * unit))
  for plane in wanted if planar else [0]:
    for first in range(0, parts // per_row, step):
      start = plane * parts + first * per_row
      stop = min(start + step * per_row, (plane + 1) * parts)
      rows = slice(first * down, min((first + step) * down, height))
      raw = _inflate_parts(
        [data[offsets[i] : offsets[i] + counts[i]] for i in range(start, stop)],
        (rows.stop - rows.start, width * unit),
        (down, across * unit),
        tiled=tiled,
        compression=number(259, 1),
        fill_order=number(266, 1),
      )
      raw = raw.view(f"{order}u{bits // 8}")
      raw = raw.reshape(len(raw), width, -1).astype(array.dtype)
      if predictor == 2:
        for left in range(0, width, across):
          block = raw[:, left : left + across]
          np.cumsum(block, axis=1, dtype=block.dtype, out=block)
      if planar:
        array[rows, :, wanted.index(plane)] = raw[..., 0]
      else:
        array[rows] = raw[..., : len(wanted)]
  pixels, alpha = _split_alpha(array)
  if photometric == 0:
    np.invert(pixels, out=pixels)
  if alpha is not None and extras[:1] == (1,):
    # Premultiplied. Rounded to nearest; float64 is exact enough for 16 bits.
    ratio = pixels / np.maximum(alpha, 1)[..., None]
    top = np.iinfo(pixels.dtype).max
    pixels = np.rint(np.minimum(ratio, 1) * top).astype(pixels.dtype)
  return pixels, alpha


def _inflate_parts(
  parts: list[bytes],
  shape: tuple[int, int],
  part_shape: tuple[int, int],
  *,
  tiled: bool,
  compression: int,
  fill_order: int,
) -> np.ndarray:
  """Returns the plain bytes `[rows, row bytes]` of strips or tiles.

  Except for the easy ones, they are shown to Pillow as an 8-bit grey picture
  as wide as a row has bytes: so libtiff undoes the compression, nothing else.
  """
  H, W = shape
  if not tiled and fill_order == 1 and compression in (1, 8, 32946):
    plain = bytearray()
    for part in parts:
      size = min(part_shape[0] * W, H * W - len(plain))
      if compression != 1:
        part = zlib.decompressobj().decompress(part, size)
      if len(part) < size:
        raise ValueError("a strip ends early")
      plain += part[:size]
    return np.frombuffer(plain, np.uint8).reshape(shape)

  def long(*values):
    return _Field(4, len(values), struct.pack(f"<{len(values)}I", *values))

  lengths = [len(part) for part in parts]
  offsets = list(itertools.accumulate(lengths[:-1], initial=8))
  fields = {
    256: long(W),
    257: long(H),
    258: long(8),
    259: long(compression),
    262: long(1),
    266: long(fill_order),
    277: long(1),
    324 if tiled else 273: long(*offsets),
    325 if tiled else 279: long(*lengths),
  }
  if tiled:
    fields |= {322: long(part_shape[1]), 323: long(part_shape[0])}
  else:
    fields[278] = long(part_shape[0])
  disguise = _with_directory(b"".join([bytes(8), *parts]), fields, "<", False)
  with TiffImagePlugin.TiffImageFile(io.BytesIO(disguise)) as picture:
    return np.asarray(picture)


def _exif_of_tiff(tree: _Ifd, order: str) -> bytes | None:
  """Returns an EXIF block of what a TIFF's directory says of its picture."""

  def classic(ifd):
    return {
      tag: classic(value) if isinstance(value, dict) else value
      for tag, value in ifd.items()
      if isinstance(value, dict) or value.kind <= 12
    }

  kept = {t: v for t, v in tree.items() if t in _DESCRIPTIVE | set(_SUB_IFDS)}
  if not kept:
    return None
  blob, root = _pack_tree(classic(kept), 8, order)
  mark = {"<": b"II", ">": b"MM"}[order]
  return mark + struct.pack(order + "HI", 42, root) + blob


def _dpi_of_tiff(
  page: dict[int, _Field], order: str
) -> tuple[float, float] | None:
  unit = page[296].ints(order) if 296 in page else (2,)
  factor = {(2,): 1.0, (3,): 2.54}.get(unit)
  values = []
  for tag in (282, 283):
    if factor is None or tag not in page or len(page[tag].value) != 8:
      return None
    over, under = struct.unpack(order + "II", page[tag].value)
    values.append(factor * over / under if under else 0.0)
  return values[0], values[1]


# Writing.


def write_image(
  path: str | os.PathLike,
  image: Image,
  *,
  quality: int = 95,
  lossless: bool = False,
  overwrite: bool = False,
) -> None:
  """Writes an image; the suffix of `path` chooses the format.

  The file is written aside, in the same folder, and appears under its name
  only when it is complete. ICC profile, EXIF, XMP and resolution go along
  where the format holds them. PNG and TIFF are lossless, with deflate at a
  speed and size that suit photographs (see `_deflate`); JPEG is 4:4:4. 16 bits
  become 8, rounded, where the format has no more: JPEG, WebP, BMP. An EXIF or
  XMP block over JPEG's 64 KB is left out there.

  Args:
    path: File to write; its suffix is one of `OUTPUT_SUFFIXES`.
    image: What to write; it may live in a `numpy.memmap`.
    quality: 1 to 100, for JPEG and lossy WebP.
    lossless: Write WebP without loss; the other formats ignore it.
    overwrite: Replace a file of that name. Without it, an existing file is
      never touched, even if it appears while this one is being written.

  Raises:
    ImageError: If the suffix is unknown, the file exists, `image` does not
      fit the format (transparency in JPEG or BMP, or too many pixels), or
      writing fails.
    ValueError: If `quality` is not in 1 to 100.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "black.jpg")
  ...   write_image(file, Image(np.zeros((8, 8, 3), np.uint8)))
  ...   read_image(file).pixels.max()
  np.uint8(0)
  """
  path = pathlib.Path(path)
  if not 1 <= quality <= 100:
    raise ValueError(f"quality is {quality}, not in 1 to 100")
  try:
    format_ = OUTPUT_SUFFIXES.get(path.suffix.lower())
    if format_ is None:
      raise ImageError(
        f"suffix {path.suffix!r} is not one that can be written; choose one of"
        f" {' '.join(OUTPUT_SUFFIXES)}"
      )
    if not overwrite and os.path.lexists(path):
      raise _exists()
    image = _fit(image, format_)
    with _written_aside(path, overwrite) as file:
      if format_ == "PNG":
        _write_png(file, image)
      elif format_ == "TIFF":
        _write_tiff(file, image)
      else:
        _write_pillow(file, image, format_, quality, lossless)
  except ImageError as error:
    raise ImageError(f"{path}: {error}") from error.__cause__
  except OSError as error:
    reason = error.strerror or " ".join(str(error).split())
    raise ImageError(f"{path}: cannot be written: {reason}") from error


def _exists() -> ImageError:
  return ImageError("exists already; choose another name, or overwrite=True")


@contextlib.contextmanager
def _written_aside(path: pathlib.Path, overwrite: bool) -> Iterator[BinaryIO]:
  """Yields a file that takes the name `path` at the end, if all went well."""
  name = f".{path.stem[:64]}.{secrets.token_hex(6)}.part{path.suffix}"
  aside = path.with_name(name)
  # O_EXCL by way of "x", and the permissions that the umask says: `tempfile`
  # would make the result unreadable for others.
  with open(aside, "xb") as file:
    try:
      yield file
      file.close()
      if overwrite:
        os.replace(aside, path)
      else:
        _publish(aside, path)
    except BaseException:  # An interrupt, too, leaves nothing behind.
      file.close()
      aside.unlink(missing_ok=True)
      raise


def _publish(aside: pathlib.Path, path: pathlib.Path) -> None:
  """Renames, failing if `path` exists by now."""
  try:
    os.link(aside, path)
  except FileExistsError:
    raise _exists() from None
  except (OSError, NotImplementedError, AttributeError):
    # No hard links here (exFAT, some network drives): reserve the name first.
    try:
      open(path, "xb").close()
    except FileExistsError:
      raise _exists() from None
    try:
      os.replace(aside, path)
    except BaseException:
      path.unlink(missing_ok=True)
      raise
  else:
    aside.unlink()


_LARGEST_SIDE = {"PNG": 2**31 - 1, "TIFF": 2**32 - 1}
# libjpeg's JPEG_MAX_DIMENSION, and WebP's 14 bits.
_LARGEST_SIDE |= {"JPEG": 65_500, "WEBP": 16_383, "BMP": 2**31 - 1}


def _fit(image: Image, format_: str) -> Image:
  """Returns what the format can hold of an image, or says why it cannot."""
  H, W, C = image.pixels.shape
  limit = _LARGEST_SIDE[format_]
  if max(H, W) > limit:
    raise ImageError(
      f"{W} x {H} pixels do not fit {format_}, which ends at {limit} a side;"
      " choose .png"
    )
  if format_ == "BMP" and H * (W * C + 3) + 2048 >= 2**32:
    raise ImageError(f"{W} x {H} pixels exceed BMP's 4 GB; choose .png")
  alpha = image.alpha
  if alpha is not None and format_ in ("JPEG", "BMP"):
    if int(alpha.min()) < np.iinfo(alpha.dtype).max:
      raise ImageError(
        f"{format_} cannot hold transparency; choose .png, .webp or .tif"
      )
    alpha = None
  pixels = image.pixels
  if format_ in ("JPEG", "WEBP", "BMP"):
    pixels = _to_uint8(pixels)
    alpha = None if alpha is None else _to_uint8(alpha)
  metadata = image.metadata
  space = _SPACE_OF_CHANNELS[3 if format_ == "WEBP" else C]
  if _profile_space(metadata.icc_profile) != space:
    metadata = dataclasses.replace(metadata, icc_profile=None)
  metadata = dataclasses.replace(
    metadata,
    exif=_tidy_exif(metadata.exif, W, H),
    xmp=_tidy_xmp(metadata.xmp),
    dpi=_tidy_dpi(metadata.dpi),
  )
  return Image(pixels, alpha, metadata)


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
  """Returns 16 bits as 8: x / 257 to the nearest; 257 is odd, so no ties."""
  if pixels.dtype == np.uint8:
    return pixels
  out = np.empty(pixels.shape, np.uint8)
  for rows in _bands(pixels):
    out[rows] = (pixels[rows].astype(np.uint32) + 128) // 257
  return out


def _write_pillow(
  file: BinaryIO, image: Image, format_: str, quality: int, lossless: bool
) -> None:
  """Writes JPEG, WebP or BMP."""
  meta = image.metadata
  options: dict[str, Any] = {"icc_profile": meta.icc_profile, "xmp": meta.xmp}
  if meta.exif is not None:
    options["exif"] = b"Exif\0\0" + meta.exif
  if meta.dpi is not None:
    options["dpi"] = meta.dpi
  if format_ == "JPEG":
    options |= {"quality": quality, "subsampling": 0}
    # What one APP1 segment holds, less the identifier of each.
    if len(options.get("exif", b"")) > 65_533:
      del options["exif"]
    if len(meta.xmp or b"") > 65_504:
      del options["xmp"]
  elif format_ == "WEBP":
    options |= {"quality": quality, "lossless": lossless, "exact": lossless}
  options = {key: value for key, value in options.items() if value is not None}

  pixels = image.pixels
  H, W, C = pixels.shape
  if image.alpha is not None:
    pixels = np.concatenate(
      [*[pixels] * (3 // C), image.alpha[..., None]], axis=2
    )
  mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
  picture = PilImage.frombuffer(
    mode, (W, H), np.ascontiguousarray(pixels), "raw", mode, 0, 1
  )
  if format_ == "WEBP" and mode == "L":
    picture = picture.convert("RGB")
  try:
    picture.save(file, format=format_, **options)
  except ValueError as error:
    reason = " ".join(str(error).split())
    raise ImageError(f"{format_} refuses it: {reason}; choose .png") from error


def _bands(pixels: np.ndarray, samples: int = 0) -> list[slice]:
  """Cuts the rows into bands of about `_BAND_BYTES`."""
  H, W, C = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
  step = max(1, _BAND_BYTES // (W * (samples or C) * pixels.itemsize))
  return [slice(top, min(top + step, H)) for top in range(0, H, step)]


def _rows(image: Image, rows: slice) -> np.ndarray:
  """Returns a band as [rows, W, samples], alpha last."""
  band = np.asarray(image.pixels[rows])
  if image.alpha is None:
    return band
  return np.concatenate([band, image.alpha[rows][..., None]], axis=2)


def _in_order(function: Callable, items: Iterable) -> Iterator:
  """Maps in threads, in order, a few items ahead and no more."""
  workers = min(os.cpu_count() or 1, 8)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    pending: collections.deque = collections.deque()
    try:
      for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > workers:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      pool.shutdown(cancel_futures=True)


def _deflate(data: bytes, *, wbits: int, flush: int) -> bytes:
  """Compresses prediction errors.

  Those of photographs are noise to a string matcher: run lengths and Huffman
  codes alone (Z_RLE) are ten times as fast as level 6 and no larger. Drawings
  do repeat themselves. So a sixteenth of the data is tried both ways.
  """

  def compress(part, level, strategy, end):
    packer = zlib.compressobj(level, zlib.DEFLATED, wbits, 9, strategy)
    return packer.compress(part) + packer.flush(end)

  middle = len(data) // 2
  probe = data[middle : middle + max(len(data) // 16, 2**15)]
  runs = compress(probe, 1, zlib.Z_RLE, zlib.Z_FINISH)
  strings = compress(probe, 6, zlib.Z_DEFAULT_STRATEGY, zlib.Z_FINISH)
  if len(strings) < 0.9 * len(runs):
    return compress(data, 6, zlib.Z_DEFAULT_STRATEGY, flush)
  return compress(data, 1, zlib.Z_RLE, flush)


def _write_png(file: BinaryIO, image: Image) -> None:
  """Writes a PNG, one IDAT chunk a band."""
  H, W, C = image.pixels.shape
  samples = C + (image.alpha is not None)
  size = image.pixels.itemsize
  meta = image.metadata

  def chunk(kind, body):
    checksum = zlib.crc32(body, zlib.crc32(kind))
    file.write(struct.pack(">I", len(body)) + kind)
    file.write(body)
    file.write(struct.pack(">I", checksum))

  colour = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
  file.write(_PNG_SIGNATURE)
  chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 8 * size, colour, 0, 0, 0))
  if meta.icc_profile is not None:
    chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(meta.icc_profile))
  if meta.dpi is not None:
    metre = (round(v / 0.0254) for v in meta.dpi)
    chunk(b"pHYs", struct.pack(">IIB", *metre, 1))
  if meta.exif is not None:
    chunk(b"eXIf", meta.exif)
  if meta.xmp is not None:
    chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + meta.xmp)

  def pack(rows):
    # The row above belongs to the prediction, the band starts below it.
    top = max(rows.start - 1, 0)
    band = _rows(image, slice(top, rows.stop))
    band = band.astype(band.dtype.newbyteorder(">"), copy=False)
    band = np.ascontiguousarray(band).view(np.uint8).reshape(len(band), -1)
    if rows.start == 0:
      band = np.concatenate([np.zeros_like(band[:1]), band])
    filtered = _filter_png(band, samples * size)
    flush = zlib.Z_FINISH if rows.stop == H else zlib.Z_SYNC_FLUSH
    return _deflate(filtered, wbits=-15, flush=flush), filtered

  checksum = zlib.adler32(b"")
  for rows, (packed, filtered) in zip(
    bands := _bands(image.pixels, samples), _in_order(pack, bands), strict=True
  ):
    checksum = zlib.adler32(filtered, checksum)
    head = b"\x78\x01" if rows.start == 0 else b""
    tail = struct.pack(">I", checksum) if rows.stop == H else b""
    chunk(b"IDAT", head + packed + tail)
  chunk(b"IEND", b"")


def _filter_png(band: np.ndarray, distance: int) -> bytes:
  """Filters all rows but the first, each by the best of Sub, Up, Average."""
  raw, up = band[1:], band[:-1]
  left = np.zeros_like(raw)
  left[:, distance:] = raw[:, :-distance]
  # (a + b) >> 1 without leaving eight bits.
  mean = (left & up) + ((left ^ up) >> 1)
  candidates = (raw - left, raw - up, raw - mean)
  costs = [
    np.minimum(c, np.uint8(0) - c).sum(axis=1, dtype=np.int64)
    for c in candidates
  ]
  best = np.argmin(costs, axis=0)
  out = np.empty((raw.shape[0], raw.shape[1] + 1), np.uint8)
  out[:, 0] = best + 1  # PNG's numbers: 1 Sub, 2 Up, 3 Average.
  for number, candidate in enumerate(candidates):
    out[best == number, 1:] = candidate[best == number]
  return out.tobytes()


def _write_tiff(file: BinaryIO, image: Image) -> None:
  """Writes a TIFF: deflated strips, then the directory; Big only if needed."""
  H, W, C = image.pixels.shape
  samples = C + (image.alpha is not None)
  meta = image.metadata
  # EXIF's values are copied as they are, so the file takes their byte order.
  order = ">" if (meta.exif or b"")[:2] == b"MM" else "<"
  native = order == {"little": "<", "big": ">"}[sys.byteorder]
  bands = _bands(image.pixels, samples)

  def pack(rows):
    band = _rows(image, rows)
    errors = band.copy()
    errors[:, 1:] -= band[:, :-1]
    data = (errors if native else errors.byteswap()).tobytes()
    return _deflate(data, wbits=15, flush=zlib.Z_FINISH)

  position = 16  # Room for either header.
  file.write(b"\0" * position)
  offsets, counts = [], []
  for packed in _in_order(pack, bands):
    file.write(packed)
    offsets.append(position)
    counts.append(len(packed))
    position += len(packed)
  padding = position % 2
  file.write(b"\0" * padding)
  position += padding

  tree = _tree_of_exif(meta.exif)
  kept = {t: v for t, v in tree.items() if t in _DESCRIPTIVE | set(_SUB_IFDS)}
  blobs = sum(len(b) for b in (meta.exif, meta.icc_profile, meta.xmp) if b)
  big = position + 16 * len(bands) + 2 * blobs + 4096 > _CLASSIC_TIFF_END

  def numbers(kind, *values):
    code = {3: "H", 4: "I", 5: "I", 16: "Q"}[kind]
    packed = struct.pack(f"{order}{len(values)}{code}", *values)
    return _Field(kind, len(values) // (2 if kind == 5 else 1), packed)

  long = 16 if big else 4
  fields = kept | {
    256: numbers(4, W),
    257: numbers(4, H),
    258: numbers(3, *[8 * image.pixels.itemsize] * samples),
    259: numbers(3, 8),
    262: numbers(3, 1 if C == 1 else 2),
    273: numbers(long, *offsets),
    277: numbers(3, samples),
    278: numbers(4, bands[0].stop),
    279: numbers(long, *counts),
    284: numbers(3, 1),
    317: numbers(3, 2),
  }
  if meta.dpi is not None:
    for tag, value in zip((282, 283), meta.dpi, strict=True):
      fields[tag] = numbers(5, round(value * 10_000), 10_000)
    fields[296] = numbers(3, 2)
  if samples > C:
    fields[338] = numbers(3, 2)
  if meta.xmp is not None:
    fields[700] = _Field(1, len(meta.xmp), meta.xmp)
  if meta.icc_profile is not None:
    fields[34675] = _Field(7, len(meta.icc_profile), meta.icc_profile)
  blob, root = _pack_tree(fields, position, order, big=big)
  file.write(blob)
  file.seek(0)
  file.write(b"II" if order == "<" else b"MM")
  if big:
    file.write(struct.pack(order + "HHHQ", 43, 8, 0, root))
  else:
    file.write(struct.pack(order + "HI", 42, root))


def _tree_of_exif(exif: bytes | None) -> _Ifd:
  try:
    order, big, first = _tiff_header(exif or b"")
    return _read_tree(exif or b"", first, order, big)
  except (KeyError, ValueError, struct.error):
    return {}
