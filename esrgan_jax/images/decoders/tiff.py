"""TIFF: its directories and parts are read here, each part by its codec."""

from __future__ import annotations

import collections
import dataclasses
import math
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from esrgan_jax.images import directories, geotiff, limits
from esrgan_jax.images.assembly import (
  Found,
  from_palette,
  refuse_frames,
  to_rgb,
)
from esrgan_jax.images.decoders import fax, jpeg, webp
from esrgan_jax.images.directories import EXIF, GPS, Layout, Place
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.metadata import WORDS, Exif, dpi_of, orientation_of
from esrgan_jax.images.notes import listed
from esrgan_jax.images.pixels import ImageError, bands

_MOST_GEOTIFF = 2**20
_DESCRIPTION = 270
# Tags above 32,767 that are heeded, or tell only how the pixels are stored.
_KNOWN = {*WORDS, *geotiff.KINDS, EXIF, GPS, 32997, 32998, 34675, 50674}
# What others hold, and those below that are not of the storage either.
_OTHERS = {
  301: "301 (TransferFunction)",
  318: "318 (WhitePoint)",
  319: "319 (PrimaryChromaticities)",
  33723: "33723 (IPTC)",
  34377: "34377 (Photoshop)",
  37724: "37724 (Photoshop's layers)",
  50838: "50838 (ImageJ)",
  50839: "50839 (ImageJ)",
}
_MOST_SAMPLES = 32
# Of a tag of the structure but those with a number a part.
_MOST_VALUES = 64
_RAW, _LZW, _JPEG, _WEBP = 1, 5, 7, 50001
_FAX = {2, 3, 4}
# Deflate by two numbers, PackBits, LZMA, zstd; and the name of their decoders.
_CODECS = {_LZW: "lzw", 8: "deflate", 32946: "deflate", 32773: "packbits"}
_CODECS |= {34925: "lzma", 50000: "zstd"}
# Most bytes out of one; LZW: 4096 by 12 bits. The others have no such bound.
_RATIOS = {_RAW: 1, _LZW: 2731, 8: limits.DEFLATE_RATIO, 32773: 64}
_RATIOS |= {32946: limits.DEFLATE_RATIO}
_COMPRESSIONS = {_RAW, *_FAX, *_CODECS, _JPEG, _WEBP}
# Photometric -> channels: white is 0, black is 0, RGB, palette, CMYK, YCbCr,
# Lab; and those that become RGB.
_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
_MODES = {5: "CMYK", 6: "YCbCr", 8: "LAB"}


@dataclasses.dataclass(frozen=True)
class _Page:
  """The structure of a page; sizes in pixels."""

  width: int
  height: int
  samples: int
  bits: int
  floats: bool
  compression: int
  photometric: int
  extra: tuple[int, ...]
  planes: int
  part_width: int
  part_height: int
  tiled: bool
  predictor: int
  reversed: bool  # Bits of a byte.
  fax_options: int
  tables: bytes | None
  palette: tuple[int, ...]
  offsets: tuple[int, ...]
  counts: tuple[int, ...]

  @property
  def depth(self) -> int:
    """Samples of a pixel in one part."""
    return self.samples // self.planes

  @property
  def further(self) -> tuple[int, ...]:
    """What the samples after the colours are, as in ExtraSamples.

    0 is anything, 1 transparency that colours are multiplied by, 2 such that
    they are not.
    """
    count = self.samples - _CHANNELS[self.photometric]
    if not self.extra and count == 1:
      return (2,)  # Of old programs, which don't say.
    stated = (kind if kind in (1, 2) else 0 for kind in self.extra)
    return (*stated, *(0,) * count)[:count]

  @property
  def alpha(self) -> int | None:
    """The place of transparency among `further`; of several, the first."""
    kinds = self.further
    return next((i for i, kind in enumerate(kinds) if kind in (1, 2)), None)

  @property
  def premultiplied(self) -> bool:
    """Whether colours are multiplied by alpha."""
    return self.alpha is not None and self.further[self.alpha] == 1

  @property
  def grid(self) -> tuple[int, int]:
    """Parts down and across."""
    return (
      -(-self.height // self.part_height),
      -(-self.width // self.part_width),
    )

  def row_bytes(self) -> int:
    """Bytes of a part's row, unpacked."""
    return (self.part_width * self.depth * self.bits + 7) // 8

  def parts(self) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yields plane, top, left, rows, offset and bytes of each part."""
    down, across = self.grid
    for number, (at, size) in enumerate(
      zip(self.offsets, self.counts, strict=True)
    ):
      plane, place = divmod(number, down * across)
      row, column = divmod(place, across)
      top, rows = row * self.part_height, self.part_height
      if not self.tiled:
        rows = min(rows, self.height - top)
      yield plane, top, column * self.part_width, rows, at, size


def read_tiff(data: bytes, max_pixels: int) -> Found:
  """Reads a TIFF of one page."""
  pages = find_pages(data, max_pixels)
  refuse_frames(len(pages.offsets), "pages")
  (found,) = pages.play()
  return found


def read_tiff_pages(data: bytes | mmap.mmap, max_pixels: int) -> Pages | None:
  """Finds the pages of a TIFF; None if it is one."""
  pages = find_pages(data, max_pixels)
  return pages if len(pages.offsets) > 1 else None


@dataclasses.dataclass(frozen=True)
class Pages:
  """Pages as a file has them, not decoded.

  Attributes:
    data: The file.
    layout: Of its numbers.
    offsets: Where the directory of each page lies.
    sizes: Width and height of each.
    masked: Offsets of those that a mask of their size follows.
    broken: Whether what follows the last one is no directory.
    max_pixels: The most of one page.
  """

  data: bytes | mmap.mmap
  layout: Layout
  offsets: list[int]
  sizes: list[tuple[int, int]]
  masked: set[int]
  broken: bool
  max_pixels: int

  def look(self, offset: int) -> tuple[dict[int, Place], _Page]:
    """Reads the directory of a page; raises if it is none that is read."""
    where = self.data, offset, self.layout
    places, _ = directories.read_directory(*where)
    size = len(self.data)
    try:
      page = _read_page(self.data, places, self.layout, self.max_pixels)
      _check_page(page, size, self.max_pixels)
    except ImageError:
      # What is unusual about it may be what is missing.
      if directories.end_of(*where) > size or directories.lost_tags(*where):
        raise ValueError("tags that say what it is are missing") from None
      raise
    return places, page

  def play(self) -> Iterator[Found]:
    """Yields the pages, one by one."""
    left = 2 * len(self.data)
    for offset in self.offsets:
      places, page = self.look(offset)
      # A few bytes would else be any number of pages.
      left -= sum(page.counts)
      if left < 0:
        raise ValueError("pages that overlap")
      found = _read_at(
        self.data, offset, places, page, self.layout, self.max_pixels
      )
      notes = (*found.notes, *self.notes(offset))
      yield dataclasses.replace(found, notes=notes)
      del found

  def notes(self, offset: int) -> Iterator[str]:
    """Yields what is left out around a page."""
    if offset in self.masked:
      yield "its mask of what is transparent is left out"
    if self.broken and offset == self.offsets[-1]:
      yield "what follows it in the file is damaged, and left out"


def _read_at(
  data: bytes | mmap.mmap,
  offset: int,
  places: dict[int, Place],
  page: _Page,
  layout: Layout,
  max_pixels: int,
) -> Found:
  """Reads a page, whose directory has been read."""
  samples = _decode(page, data, layout.order, max_pixels)
  return _found(data, offset, places, page, layout, samples)


def _found(
  data: bytes | mmap.mmap,
  offset: int,
  places: dict[int, Place],
  page: _Page,
  layout: Layout,
  samples: np.ndarray,
) -> Found:
  """Returns what is in a page, of which those are the samples."""

  def bytes_of(tag: int) -> bytes | None:
    value = directories.value_of(data, places.get(tag))
    return None if value is None else value.raw

  pixels, profile = _colours(page, samples, bytes_of(34675))
  alpha, extra = _further(page, samples)
  kinds = None
  if extra is not None:  # Colours are not multiplied by alpha any more.
    kinds = tuple(
      2 if i == page.alpha else kind for i, kind in enumerate(page.further)
    )
  try:
    tree = directories.read_tree(
      data, offset, layout, most=MAX_METADATA, only={*WORDS, EXIF, GPS}
    )
    damaged = False
  except ValueError:
    tree, damaged = {}, True
  notes = ["its floats of 64 bits became 32"] if page.bits == 64 else []
  notes += _without_sizes(tree)
  if others := [_OTHERS.get(tag, str(tag)) for tag in places if _is_other(tag)]:
    notes.append(f"its tags {listed(others)} are left out")
  if lost := directories.lost_tags(data, offset, layout):
    notes.append(
      f"its tags {listed(lost)} are left out: their values lie beyond the end"
    )
  turned = {
    tag: directories.value_of(data, places[tag])
    for tag in (274, 282, 283, 296)
    if tag in places and places[tag].size <= 8
  }
  here = Exif(turned, layout.order)
  return Found(
    format="TIFF",
    pixels=pixels,
    alpha=alpha,
    extra=extra,
    extra_samples=kinds,
    icc_profile=profile,
    exif=Exif(tree, layout.order, damaged),
    orientation=orientation_of(here),
    xmp=bytes_of(700),
    dpi=dpi_of(here),
    bits=16 if page.floats and page.bits == 16 else None,
    premultiplied=page.floats and page.premultiplied,
    geotiff=_places(page, data, places, layout.order, notes),
    notes=tuple(notes),
  )


def _without_sizes(tree: directories.Tree) -> list[str]:
  """Removes a description that a program wrote of the old pixels, for itself.

  Returns:
    What is told of it: nothing, if it held no more than their shape.
  """
  description = tree.get(_DESCRIPTION)
  text = b"" if description is None else description.raw[:4096]
  is_shape = text.startswith(b'{"shape":')
  if not is_shape and not text.startswith(b"ImageJ=") and b"<OME " not in text:
    return []
  del tree[_DESCRIPTION]
  return [] if is_shape else ["its description by ImageJ or OME is left out"]


def _is_other(tag: int) -> bool:
  """Tells a tag that says more than how the pixels are stored."""
  return tag in _OTHERS or (tag >= 2**15 and tag not in _KNOWN)


def _places(
  page: _Page,
  data: bytes,
  places: dict[int, Place],
  order: str,
  notes: list[str],
) -> geotiff.Tags | None:
  """Returns GeoTIFF's tags; adds to the notes what is left out of them."""
  values = {
    tag: directories.value_of(data, places[tag])
    for tag in geotiff.KINDS
    if tag in places and places[tag].size <= _MOST_GEOTIFF
  }
  tags = geotiff.read(values, order)
  if tags is None:
    notes.append("its GeoTIFF tags are damaged, and left out")
    return None
  # Only as they are stored.
  same = (
    page.photometric in (1, 2) and page.bits >= 8 and not page.premultiplied
  )
  if geotiff.NO_DATA in tags and not same:
    notes.append("its no-data value is left out, as its pixels are converted")
    return {k: v for k, v in tags.items() if k != geotiff.NO_DATA}
  return tags


def find_pages(data: bytes | mmap.mmap, max_pixels: int) -> Pages:
  """Finds all pages; previews and masks are none."""
  layout, offset = directories.layout_of(data)
  pages: dict[int, tuple[int, int]] = {}
  seen, masked, size, broken, last = set(), set(), 0, False, 0
  while offset and offset not in seen:
    seen.add(offset)
    limits.check_pieces(len(seen), "directories")
    try:
      places, following = directories.read_directory(data, offset, layout)
    except ValueError:
      if not pages:
        raise
      broken = True
      break
    end = directories.end_of(data, offset, layout)
    size += end - offset
    if size > 2 * len(data) + 2**16:
      raise ValueError("directories that overlap")
    broken = end > len(data)
    kind, width, height = (
      directories.integers(
        directories.value_of(data, places.get(tag)), layout.order
      )[:1]
      for tag in (254, 256, 257)
    )
    sides = sum(width), sum(height)
    if not sum(kind) & 5:
      pages[offset], last = sides, offset
    elif sum(kind) == 4 and sides == pages.get(last):
      masked.add(last)
    offset = following
  if not pages:
    raise ValueError("no picture in it")
  return Pages(
    data, layout, list(pages), list(pages.values()), masked, broken, max_pixels
  )


def _read_page(
  data: bytes, places: dict[int, Place], layout: Layout, max_pixels: int
) -> _Page:
  """Reads the structure of a page."""

  def numbers(tag: int, most: int = _MOST_VALUES) -> tuple[int, ...]:
    place = places.get(tag)
    if place is not None and place.count > most:
      raise ValueError(f"{place.count} values of tag {tag}")
    value = directories.value_of(data, place)
    return directories.integers(value, layout.order)

  def one(tag: int, default: int) -> int:
    return (numbers(tag) or (default,))[0]

  width, height = one(256, 0), one(257, 0)
  limits.check_size(width, height, max_pixels)
  samples, planar = one(277, 1), one(284, 1)
  bits = set(numbers(258)[: max(samples, 1)] or (1,))
  kinds = set(numbers(339)[: max(samples, 1)] or (1,))
  floats = kinds == {3} and not bits - {16, 32, 64}
  usual = kinds == {1} and not bits - {1, 2, 4, 8, 16}
  if len(bits) > 1 or not (floats or usual):
    what = {(2,): "signed", (3,): "floating-point"}.get((*kinds,), "odd")
    raise ImageError(
      f"has {what} samples of {'/'.join(map(str, sorted(bits)))} bits, whose"
      " white point is not defined; save it as 8-bit or 16-bit integers"
    )
  tiled = 322 in places
  if tiled:
    size = one(322, 0), one(323, 0)
  else:
    size = width, min(one(278, height), height)
  if min(size) < 1 or size[0] > width + 4096 or size[1] > height + 4096:
    raise ValueError(f"parts of {size[0]} x {size[1]} pixels")
  if one(32997, 1) != 1 or one(32998, 1) != 1:
    raise ValueError("more than one layer")
  subsampled = one(262, 0) == 6 and (numbers(530) or (1, 1)) != (1, 1)
  if subsampled and one(259, 1) != _JPEG:
    raise ImageError(
      "subsampled colours without JPEG are not read; save it as RGB"
    )
  offsets = numbers(324 if tiled else 273, limits.MAX_PIECES)
  counts = numbers(325 if tiled else 279, limits.MAX_PIECES)
  tables = directories.value_of(data, places.get(347))
  page = _Page(
    width=width,
    height=height,
    samples=samples,
    bits=bits.pop(),
    floats=floats,
    compression=one(259, 1),
    photometric=one(262, 0),
    extra=numbers(338),
    planes=samples if planar == 2 else 1,
    part_width=size[0],
    part_height=size[1],
    tiled=tiled,
    predictor=one(317, 1),
    reversed=one(266, 1) == 2,
    fax_options=one(292, 0),
    tables=tables.raw
    if tables is not None and len(tables.raw) < 2**16
    else None,
    palette=numbers(320, 3 * 2**16),
    offsets=offsets,
    counts=counts,
  )
  if not counts and page.compression == _RAW:
    # Some old programs leave them out.
    parts = dataclasses.replace(page, counts=offsets).parts()
    counts = tuple(rows * page.row_bytes() for *_, rows, _, _ in parts)
    page = dataclasses.replace(page, counts=counts)
  return page


def _check_page(page: _Page, size: int, max_pixels: int) -> None:
  """Refuses what cannot be decoded faithfully, or within bounds."""
  photometric, compression, bits = page.photometric, page.compression, page.bits
  if (
    photometric not in _CHANNELS
    or compression not in _COMPRESSIONS
    or (bits >= 16 and photometric not in (0, 1, 2, 3))
    or (page.floats and (photometric not in (1, 2) or compression in _FAX))
    or (bits < 8 and photometric not in (0, 1, 3))
    or (bits != 8 and compression in (_JPEG, _WEBP))
    or ((bits, page.samples) != (1, 1) and compression in _FAX)
  ):
    raise ImageError(
      f"{bits}-bit samples of photometric {photometric}, compression"
      f" {compression} are not read; save it as 8-bit or 16-bit RGB with LZW or"
      " no compression"
    )
  if not _CHANNELS[photometric] <= page.samples:
    raise ValueError(f"{page.samples} samples a pixel")
  if page.predictor not in (1, 3 if page.floats else 2) or (
    page.predictor == 2 and bits < 8
  ):
    raise ValueError(f"predictor {page.predictor} for {bits} bits")
  room = max(1, page.samples // 4, page.samples * bits // 64)
  limits.check_size(page.width, page.height * room, max_pixels)
  # What is missing would be left out.
  expected = page.planes * math.prod(page.grid)
  if not len(page.offsets) == len(page.counts) == expected:
    raise ValueError(
      f"{min(len(page.offsets), len(page.counts))} of {expected} parts"
    )
  unpacked = page.row_bytes() * page.part_height
  ratio = _RATIOS.get(compression)
  for *_, rows, at, count in page.parts():
    if at <= 0 or count <= 0 or at + count > size:
      raise ValueError("pixel data beyond the end")
    if count > 2 * unpacked + 2**16:
      raise ValueError(f"a part of {count} bytes")
    if ratio is not None:
      needed = -(-rows * page.row_bytes() // ratio)
      limits.check_bits(page.part_width, rows, 8 * needed, count)
  found = sum(page.counts)
  if found > 2 * size:
    raise ValueError("parts that overlap")
  if ratio is None and compression not in (_JPEG, *_FAX):
    limits.check_claim(
      page.width, page.height, found, max_pixels, ratio=limits.DENSE_RATIO
    )
  if page.samples > _MOST_SAMPLES:
    raise ImageError(
      f"{page.samples} samples a pixel are more than {_MOST_SAMPLES}; save some"
      " of the bands as a file of their own"
    )


def _decode(
  page: _Page, data: bytes, order: str, max_pixels: int
) -> np.ndarray:
  """Decodes all parts; returns `[H, W, samples]`."""
  view = memoryview(data)
  kind = _kind_decoded(page)
  samples = np.zeros((page.height, page.width, page.samples), kind)
  decode = _decoder(page, order, max_pixels)
  for plane, top, left, rows, at, count in page.parts():
    pixels = decode(view[at : at + count], rows)
    channels = slice(plane, plane + 1) if page.planes > 1 else slice(None)
    target = samples[top : top + rows, left : left + page.part_width, channels]
    height, width, depth = target.shape
    # Some programs cut JPEG where the page ends, and others don't.
    if not (
      height <= pixels.shape[0]
      and width <= pixels.shape[1]
      and page.depth == pixels.shape[2]
    ):
      raise ValueError(f"a part of {list(pixels.shape)}")
    target[...] = pixels[:height, :width, :depth]
  return samples


# Bytes of decoded parts that are kept for the next window, and at which parts
# without compression are cut; and the most of one part, which is decoded whole.
_KEPT, _CUT = 2**27, 2**22
_MOST_OF_PART = 2**30


class Windows:
  """A page of which windows are decoded, as they are wanted.

  Only one thread at a time may read.

  Args:
    file: The file, which must stay open.
    max_pixels: See `images.read_image`.

  Attributes:
    shape: Height, width and samples, as they are stored.
    levels: How its smaller copies are kept: "pages" or "parts" of the page,
      None where there are none.
    head: What the file says, with some pixels that say nothing.

  Raises:
    ImageError: If it has several pages, or is not one that is read, or what
      must be decoded at once is too large.
  """

  def __init__(self, file: BinaryIO, max_pixels: int):
    self._descriptor, self._max_pixels = file.fileno(), max_pixels
    with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as data:
      pages = find_pages(data, max_pixels)
      refuse_frames(len(pages.offsets), "pages")
      (offset,) = pages.offsets
      places, page = pages.look(offset)
      self._order = pages.layout.order
      few = np.zeros((1, 1, page.samples), _kind_decoded(page))
      head = _found(data, offset, places, page, pages.layout, few)
      notes = (*head.notes, *pages.notes(offset))
      self.head = dataclasses.replace(head, notes=notes)
      profile = directories.value_of(data, places.get(34675))
      self._profile = None if profile is None else profile.raw
      self.levels = _levels(data, page, places, pages)
    self._page = page = _recut(page)
    self.shape = page.height, page.width, page.samples
    self._decode = _decoder(page, self._order, max_pixels)
    self._kept: collections.OrderedDict[int, np.ndarray] = (
      collections.OrderedDict()
    )
    self._held, self._most = 0, _KEPT
    size = np.dtype(_kind_decoded(page)).itemsize
    part = page.part_height * page.part_width * page.depth * size
    if part > _MOST_OF_PART:
      what = "tiles" if page.tiled else "strips"
      raise ImageError(
        f"its {what} are of {page.part_width} x {page.part_height} pixels,"
        f" {part / 1e9:.1f} GB each, which must be decoded at once; save it"
        " with tiles, of 512 x 512 pixels say"
      )

  @property
  def part_height(self) -> int:
    """Rows of a part."""
    return self._page.part_height

  def expect(self, height: int) -> None:
    """Tells how high windows will be that go along the rows."""
    page = self._page
    if not page.tiled:
      rows = height + 2 * page.part_height
      size = np.dtype(_kind_decoded(page)).itemsize
      self._most = max(_KEPT, rows * page.width * page.samples * size)

  def read(
    self, rows: slice, columns: slice
  ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Returns pixels, alpha and further samples of a window, as stored.

    Args:
      rows: Within the page.
      columns: Likewise.
    """
    page = self._page
    down, across = page.grid
    height, width = rows.stop - rows.start, columns.stop - columns.start
    samples = np.zeros((height, width, page.samples), _kind_decoded(page))
    for plane in range(page.planes):
      channels = slice(plane, plane + 1) if page.planes > 1 else slice(None)
      for row in range(
        rows.start // page.part_height, -(-rows.stop // page.part_height)
      ):
        for column in range(
          columns.start // page.part_width, -(-columns.stop // page.part_width)
        ):
          number = (plane * down + row) * across + column
          part = self._part(number, row)
          _paste(
            samples[..., channels],
            part,
            row * page.part_height - rows.start,
            column * page.part_width - columns.start,
          )
    pixels, _ = _colours(page, samples, self._profile)
    return pixels, *_further(page, samples)

  def _part(self, number: int, row: int) -> np.ndarray:
    """Decodes a part, or returns one that is kept."""
    if number in self._kept:
      self._kept.move_to_end(number)
      return self._kept[number]
    page = self._page
    at, count = page.offsets[number], page.counts[number]
    rows = page.part_height
    if not page.tiled:
      rows = min(rows, page.height - row * page.part_height)
    raw = os.pread(self._descriptor, count, at)
    if len(raw) < count:
      raise ValueError("pixel data beyond the end")
    part = self._decode(memoryview(raw), rows)
    width = min(
      page.part_width, page.width - number % page.grid[1] * page.part_width
    )
    needed = min(rows, page.height - row * page.part_height)
    if not (
      needed <= part.shape[0]
      and width <= part.shape[1]
      and page.depth == part.shape[2]
    ):
      raise ValueError(f"a part of {list(part.shape)}")
    self._kept[number] = part
    self._held += part.nbytes
    while self._held > self._most and len(self._kept) > 1:
      _, oldest = self._kept.popitem(last=False)
      self._held -= oldest.nbytes
    return part


def _paste(target: np.ndarray, part: np.ndarray, top: int, left: int) -> None:
  """Copies what of a part lies in a window, whose corner is (0, 0)."""
  up, west = max(top, 0), max(left, 0)
  down = min(top + part.shape[0], target.shape[0])
  east = min(left + part.shape[1], target.shape[1])
  if down > up and east > west:
    target[up:down, west:east] = part[
      up - top : down - top, west - left : east - left
    ]


def _recut(page: _Page) -> _Page:
  """Cuts large strips that are not compressed into smaller ones."""
  rows = max(1, _CUT // page.row_bytes())
  if page.tiled or page.compression != _RAW or page.part_height <= rows:
    return page
  down, _ = page.grid
  if down > 1:
    # All have one height but the last: one that divides it.
    rows = max(n for n in range(1, rows + 1) if page.part_height % n == 0)
  offsets, counts = [], []
  for _, _, _, height, at, _ in page.parts():
    for top in range(0, height, rows):
      offsets.append(at + top * page.row_bytes())
      counts.append(min(rows, height - top) * page.row_bytes())
  return dataclasses.replace(
    page, part_height=rows, offsets=tuple(offsets), counts=tuple(counts)
  )


def _levels(
  data: mmap.mmap, page: _Page, places: dict[int, Place], pages: Pages
) -> str | None:
  """Tells whether a page has smaller copies, and where."""
  size = page.width, page.height
  below = directories.value_of(data, places.get(330))
  offsets = directories.integers(below, pages.layout.order)
  if any(_is_smaller(data, at, size, pages.layout) for at in offsets[:64]):
    return "parts"
  _, following = directories.read_directory(
    data, pages.offsets[0], pages.layout
  )
  for _ in range(64):
    if not following:
      break
    if _is_smaller(data, following, size, pages.layout):
      return "pages"
    try:
      _, following = directories.read_directory(data, following, pages.layout)
    except ValueError:
      break
  return None


def _is_smaller(
  data: mmap.mmap, offset: int, size: tuple[int, int], layout: Layout
) -> bool:
  """Tells whether a directory is of a picture's copy of half its size."""
  try:
    places, _ = directories.read_directory(data, offset, layout)
  except ValueError:
    return False
  kind, width, height = (
    sum(
      directories.integers(
        directories.value_of(data, places.get(tag)), layout.order
      )[:1]
    )
    for tag in (254, 256, 257)
  )
  # A preview has any size.
  return kind & 5 == 1 and all(
    side // 2 <= smaller <= -(-side // 2)
    for side, smaller in zip(size, (width, height), strict=True)
  )


def _kind_decoded(page: _Page) -> Any:
  """Returns the kind of the samples as they are decoded."""
  return np.float32 if page.floats else _kind(page)


def _kind(page: _Page) -> np.dtype:
  """Returns the kind of the samples as they are stored."""
  size = max(page.bits // 8, 1)
  return np.dtype(f"{'f' if page.floats else 'u'}{size}")


def _decoder(
  page: _Page, order: str, max_pixels: int
) -> Callable[[memoryview, int], np.ndarray]:
  """Returns a function of a part and its rows, which gives `[h, w, depth]`."""
  import imagecodecs

  width, depth, bits = page.part_width, page.depth, page.bits
  kind = _kind(page)
  codec = _CODECS.get(page.compression)
  unpack = getattr(imagecodecs, f"{codec}_decode") if codec else None
  spaces = _jpeg_spaces(page)

  def from_jpeg(part: memoryview, rows: int) -> np.ndarray:
    stream, frame, notes = jpeg.inspect(part, max_pixels)
    if frame.width > width or frame.height > page.part_height:
      raise ValueError(f"a part of {frame.width} x {frame.height} pixels")
    own, out = spaces
    samples = jpeg.decode(
      stream,
      frame,
      tables=page.tables,
      colorspace=None if notes.is_jfif else own,
      outcolorspace=out,
    )
    return samples if samples.ndim == 3 else samples[..., None]

  def from_webp(part: memoryview, rows: int) -> np.ndarray:
    return webp.decode(
      part, width * page.part_height, max_pixels, alpha=depth == 4
    )

  def from_fax(part: memoryview, rows: int) -> np.ndarray:
    pixels = fax.decode(
      straight(part), rows, width, page.compression, page.fax_options
    )
    return pixels[..., None]

  def from_bytes(part: memoryview, rows: int) -> np.ndarray:
    part, size = straight(part), rows * page.row_bytes()
    raw = part[:size] if unpack is None else unpack(part, out=size)
    if len(raw) < size:
      raise ValueError(f"a part of {len(raw)} bytes, not {size}")
    if page.predictor == 3:
      # Its bytes are in one order, whatever the file's.
      array = np.frombuffer(raw, kind.newbyteorder(">"))
      array = array.reshape(rows, width, depth)
      return imagecodecs.floatpred_decode(array, axis=1).astype(kind)
    if bits < 8:
      array = imagecodecs.packints_decode(raw, "B", bits, runlen=width * depth)
    else:
      array = np.frombuffer(raw, kind.newbyteorder(order)).astype(
        kind, copy=page.predictor == 2
      )
    array = array.reshape(rows, width, depth)
    if page.predictor == 2:
      imagecodecs.delta_decode(array, axis=1, out=array)
    return array

  def straight(part: memoryview) -> memoryview:
    return imagecodecs.bitorder_decode(bytes(part)) if page.reversed else part

  if page.compression in _FAX:
    return from_fax
  return {_JPEG: from_jpeg, _WEBP: from_webp}.get(page.compression, from_bytes)


def _jpeg_spaces(page: _Page) -> tuple[str | None, str | None]:
  """Returns colour spaces: of a stream that says none, and of its samples."""
  if page.planes > 1:
    return None, "GRAYSCALE"
  if page.extra:
    return None, None
  # Without JFIF, RGB is stored as such; so some microscopes do.
  own = "RGB" if page.photometric == 2 else None
  return own, {2: "RGB", 5: "CMYK", 6: "RGB"}.get(page.photometric)


def _colours(
  page: _Page, samples: np.ndarray, profile: bytes | None
) -> tuple[np.ndarray, bytes | None]:
  """Returns pixels and their profile of samples `[H, W, samples]`."""
  photometric = page.photometric
  pixels = samples[..., : _CHANNELS[photometric]]
  if photometric == 3:
    return from_palette(_palette(page), pixels[..., 0]), profile
  # JPEG's own decoder makes RGB of YCbCr.
  if photometric in _MODES and (photometric, page.compression) != (6, _JPEG):
    return to_rgb(_MODES[photometric], pixels, profile), None
  pixels = np.ascontiguousarray(_widened(page, pixels))
  if photometric == 0:
    pixels = np.invert(pixels)
  if page.premultiplied and not page.floats:
    alpha = samples[..., page.alpha - len(page.further)]
    pixels = _unmultiplied(pixels, _widened(page, alpha))
  return pixels, profile


def _further(
  page: _Page, samples: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Returns alpha, and samples that are neither that nor colour."""
  count, place = len(page.further), page.alpha
  if not count:
    return None, None
  rest = _widened(page, samples[..., -count:])
  if place is None:
    return None, np.ascontiguousarray(rest)
  others = [i for i in range(count) if i != place]
  extra = np.ascontiguousarray(rest[..., others]) if others else None
  return np.ascontiguousarray(rest[..., place]), extra


def _widened(page: _Page, samples: np.ndarray) -> np.ndarray:
  """Returns samples of less than 8 bits as 8 bits."""
  if page.bits >= 8:
    return samples
  return samples * np.uint8(255 // (2**page.bits - 1))


def _palette(page: _Page) -> np.ndarray:
  """Returns colours `[N, 3]`; of 16 bits, if the indices have as many.

  The format has 16 bits a value. Some programs write 8, which libtiff tells by
  there being no larger one.
  """
  if len(page.palette) != 3 << page.bits:
    raise ValueError(f"a palette of {len(page.palette)} values")
  colours = np.array(page.palette, np.uint16).reshape(3, -1).T
  few = colours.max() < 256
  if page.bits == 16:
    return colours * np.uint16(257) if few else colours
  return (colours if few else colours >> 8).astype(np.uint8)


def _unmultiplied(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """Divides by alpha, rounded to nearest; float64 is exact enough."""
  top = np.iinfo(pixels.dtype).max
  divided = np.empty_like(pixels)
  for rows in bands(pixels):
    ratio = pixels[rows] / np.maximum(alpha[rows], 1)[..., None]
    divided[rows] = np.rint(np.minimum(ratio, 1) * top)
  return divided
