"""TIFF, which tifffile reads and writes; EXIF in it is Pillow's business."""

from __future__ import annotations

import io
import itertools
import math
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as PilImage
from PIL import JpegImagePlugin

from esrgan_jax.images import metadata as meta
from esrgan_jax.images.assembly import (
  assemble,
  check_size,
  check_webp,
  from_pillow,
  refuse_frames,
  split_alpha,
)
from esrgan_jax.images.pixels import Image, ImageError, samples_of

# Uncompressed bytes from which on a file is a BigTIFF. Classic ones end at
# 4 GiB, and what does not compress may grow a little.
CLASSIC_BYTES = 2**32 - 2**26

_TILE = 256
# Raw, CCITT, LZW, JPEG, deflate, PackBits, LZMA, zstd, WebP.
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000, 50001}
# Photometric -> channels: white is 0, black is 0, RGB, palette, CMYK, YCbCr,
# Lab; and those that go through Pillow.
_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
_MODES = {5: "CMYK", 6: "YCbCr", 8: "LAB"}
# Of a TIFF's own directory, what EXIF has there too: words about the picture.
_ASCII_TAGS = {269, 270, 271, 272, 305, 306, 315, 316, 33432}
_SHORT_TAGS, _BYTE_TAGS = {18246, 18249}, set(range(40091, 40096))
_WORDS = _ASCII_TAGS | _SHORT_TAGS | _BYTE_TAGS


def read_tiff(data: bytes, max_pixels: int) -> Image:
  """Reads a TIFF of one page, or raises nearly anything."""
  import tifffile

  with tifffile.TiffFile(io.BytesIO(data)) as tiff:
    # Previews (1) and masks (4) are no pages.
    pages = itertools.islice(iter(tiff.pages), 1000)
    pages = [page for page in pages if not page.subfiletype & 5]
    if not pages:
      raise ValueError("no picture in it")
    refuse_frames(len(pages), "pages")
    (page,) = pages
    _check_page(page, data, max_pixels)
    # [planes, layers, H, W, samples]; one thread, for whose log see `_hushed`.
    array = page.asarray(squeeze=False, maxworkers=1)[:, 0]
    array = np.concatenate(array, axis=2)
    pixels, alpha, profile = _from_page(page, array)
    value = page.tags.valueof
    factor = {2: 1, 3: 2.54}.get(value(296, 2), 0)
    exif = meta.load_tiff_exif(
      data, page.offset, order=tiff.byteorder, big=tiff.is_bigtiff
    )
    return assemble(
      pixels,
      alpha,
      exif,
      turn if (turn := value(274, 1)) in range(1, 9) else 1,
      format="TIFF",
      icc_profile=profile,
      xmp=value(700),
      # Divided where errors are expected, as the denominator may be 0.
      dpi=(factor * v[0] / v[1] for v in (value(282), value(283))),
      exif_tags=_WORDS | {meta.EXIF_IFD, meta.GPS_IFD},
    )


def _check_page(page: Any, data: bytes, max_pixels: int) -> None:
  """Refuses what cannot be decoded faithfully, or within bounds."""
  width, height = page.imagewidth, page.imagelength
  samples, bits, kind = (
    page.samplesperpixel,
    page.bitspersample,
    page.sampleformat,
  )
  check_size(width, height, max_pixels)
  if kind not in (None, 1) or bits not in (1, 2, 4, 8, 16):
    what = {2: "signed", 3: "floating-point"}.get(kind, "odd")
    raise ImageError(
      f"has {what} samples of {bits} bits, whose white point is not defined;"
      " save it as 8-bit or 16-bit integers"
    )
  photometric = page.photometric
  jpeg = page.compression == 7
  if (
    photometric not in _CHANNELS
    or page.compression not in _COMPRESSIONS
    or (bits == 16 and photometric not in (0, 1, 2))
    or (bits < 8 and photometric not in (0, 1, 3))
    or (page.is_subsampled and not jpeg)
  ):
    raise ImageError(
      f"{bits}-bit samples of photometric {int(photometric)}, compression"
      f" {int(page.compression)} are not read; save it as 8-bit or 16-bit RGB"
      " with LZW or no compression"
    )
  if not _CHANNELS[photometric] <= samples <= 32 or page.imagedepth != 1:
    raise ValueError(f"{samples} samples a pixel, {page.imagedepth} layers")
  check_size(width, height * max(1, samples // 4), max_pixels)
  if page.is_tiled and (
    page.tilewidth > width + 4096
    or page.tilelength > height + 4096
    or page.tiledepth != 1
  ):
    raise ValueError(f"tiles of {page.tilewidth} x {page.tilelength} pixels")
  # What is missing would be left out, or come as zeros.
  parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
  if len(parts) != math.prod(page.chunked):
    raise ValueError(f"{len(parts)} of {math.prod(page.chunked)} parts")
  if any(at <= 0 or n <= 0 or at + n > len(data) for at, n in parts):
    raise ValueError("pixel data beyond the end")
  # These decoders go by the size in their own header.
  area = math.prod(page.chunks[:2]) + 2**16
  for at, count in parts if jpeg or page.compression == 50001 else ():
    part = data[at : at + count]
    if jpeg:
      with JpegImagePlugin.JpegImageFile(io.BytesIO(part)) as picture:
        check_size(*picture.size, area)
    else:
      check_webp(part, area)


def _from_page(
  page: Any, array: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
  """Returns pixels, alpha and profile of decoded samples [H, W, samples]."""
  photometric, bits = page.photometric, page.bitspersample
  channels = _CHANNELS[photometric]
  extras = page.tags.valueof(338, (2,))[:1]
  alpha = None
  # A channel of no stated meaning is not transparency.
  if array.shape[2] > channels and extras in ((1,), (2,)):
    alpha = np.ascontiguousarray(array[..., channels])
  pixels, profile = array[..., :channels], page.iccprofile
  if photometric == 3:
    palette = (page.colormap >> 8).astype(np.uint8).T
    return palette[pixels[..., 0]], alpha, profile
  if photometric in _MODES and (photometric, page.compression) != (6, 7):
    mode, size = _MODES[photometric], (page.imagewidth, page.imagelength)
    picture = PilImage.frombytes(mode, size, pixels.tobytes(), "raw", mode)
    picture.info["icc_profile"] = profile
    pixels, _, profile = from_pillow(picture)
    return pixels, alpha, profile
  if bits < 8:
    pixels = pixels.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
  pixels, _ = split_alpha(pixels)
  if photometric == 0:
    pixels = np.invert(pixels)
  if alpha is not None and extras == (1,):
    # Premultiplied. Rounded to nearest; float64 is exact enough for 16 bits.
    ratio = pixels / np.maximum(alpha, 1)[..., None]
    top = np.iinfo(pixels.dtype).max
    pixels = np.rint(np.minimum(ratio, 1) * top).astype(pixels.dtype)
  return pixels, alpha, profile


def write_tiff(file: BinaryIO, image: Image) -> None:
  """Writes a TIFF of deflated tiles; `file` must be readable, too."""
  import tifffile

  H, W, C = image.pixels.shape
  samples = C + (image.alpha is not None)
  info = image.metadata
  big = H * W * samples * image.pixels.itemsize > CLASSIC_BYTES
  # The byte order of EXIF, for makers' notes; Pillow has no BigTIFF of "MM".
  order = ">" if (info.exif or b"")[:2] == b"MM" and not big else "<"

  def tiles() -> Iterator[np.ndarray]:
    for top, left in itertools.product(range(0, H, _TILE), range(0, W, _TILE)):
      yield samples_of(
        image, slice(top, top + _TILE), slice(left, left + _TILE)
      ).astype(image.pixels.dtype.newbyteorder(order))

  tree = meta.exif_tree(meta.load_exif(info.exif))
  tags: list[tuple] = []
  for tag, value in tree.items():
    if tag in _SHORT_TAGS and isinstance(value, int):
      tags.append((tag, 3, 1, value, True))
    elif tag in _WORDS and isinstance(value, bytes):
      kind = 2 if tag in _ASCII_TAGS else 1
      tags.append((tag, kind, len(value), value, True))
    elif tag in (meta.EXIF_IFD, meta.GPS_IFD):
      # tifffile refuses pointers to directories that it has not made. So this
      # keeps the place of one, and is filled in below.
      tags.append((tag - 1, 16 if big else 4, 1, 0, True))
  if info.xmp is not None:
    tags.append((700, 1, len(info.xmp), info.xmp, True))
  with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as tiff:
    tiff.write(
      tiles(),
      shape=(H, W, samples) if samples > 1 else (H, W),
      dtype=image.pixels.dtype,
      tile=(_TILE, _TILE),
      photometric="minisblack" if C == 1 else "rgb",
      planarconfig="contig" if samples > 1 else None,
      extrasamples=["unassalpha"] if samples > C else None,
      compression="zlib",
      compressionargs={"level": 4},  # 6: 1 % less, in twice the time.
      predictor=True,
      iccprofile=info.icc_profile,
      resolution=info.dpi,
      resolutionunit=None if info.dpi is None else "inch",
      software=False,
      metadata=None,
      extratags=tags,
    )
  file.seek(0)
  with tifffile.TiffFile(file) as tiff:
    places = tiff.pages[0].tags
    for group in {meta.EXIF_IFD, meta.GPS_IFD} & tree.keys():
      below = tree[group]
      if big:
        below.pop(meta.INTEROP_IFD, None)  # Pillow's pointer has 32 bits.
      at = file.seek(0, 2)
      at += file.write(bytes(at % 2))
      options = {"order": order, "big": big, "group": group}
      file.write(meta.pack_directory(below, at, **options))
      file.seek(places[group - 1].offset)
      file.write(struct.pack(order + "H", group))
      file.seek(places[group - 1].valueoffset)
      file.write(struct.pack(order + ("Q" if big else "I"), at))
