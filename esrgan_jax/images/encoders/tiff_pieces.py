"""BigTIFF that grows by rows of tiles: written in pieces, and gone on with.

Tiles are packed as they come, and lie in the file as they will stay; where each
begins stands in a second file until the end, when the directories are written
behind the tiles. So a process that was killed has lost what it had not marked,
and nothing else. Smaller copies, each half the size of the one before it, are
made of the tiles in the file.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import fractions
import math
import os
import pathlib
import struct
from collections.abc import Callable, Sequence

import numpy as np

from esrgan_jax.images import geotiff, light
from esrgan_jax.images import metadata as meta
from esrgan_jax.images.directories import (
  EXIF,
  GPS,
  Layout,
  Tree,
  Value,
  pack_tree,
  swapped,
)
from esrgan_jax.images.encoders.tiff import linear_profile
from esrgan_jax.images.pixels import Metadata

__all__ = ["TiffPieces", "halved", "tile_of"]

_HEAD = 16  # Bytes before the first tile.
_LEAST_TILE, _MOST_TILE = 256, 4096
# Tiles of a picture; readers have limits, as ours.
_MOST_TILES = 2**16
_LEVEL = 4  # Of deflate: 6 takes twice as long for 1 %.
_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class _Grid:
  """A copy of the picture, by its size and that of a tile."""

  height: int
  width: int
  tile: int

  @property
  def down(self) -> int:
    """Rows of tiles."""
    return -(-self.height // self.tile)

  @property
  def across(self) -> int:
    """Tiles in a row."""
    return -(-self.width // self.tile)


def tile_of(height: int, width: int) -> int:
  """Returns the side of a tile for a picture: larger ones for huge ones.

  >>> tile_of(32_000, 32_000), tile_of(200_000, 200_000)
  (256, 1024)
  """
  tile = _LEAST_TILE
  while tile < _MOST_TILE and height * width > _MOST_TILES * tile**2:
    tile *= 2
  return tile


class TiffPieces:
  """A TIFF of one page on its way.

  Args:
    folder: Where its files lie; there may be those of another process, up to
      a mark.
    metadata: Fit for the result.
    size: Height and width of the result.
    channels: Of colour, 1 or 3.
    kinds: Of the samples after them, as of `extra_samples`.
    dtype: Of the pixels: uint8, uint16 or float32.
    levels: How smaller copies are kept: "parts", "pages", or None: none.
    mark: What `mark` had returned.

  Attributes:
    band: Rows that `append` takes at a time; the last time there may be fewer.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    metadata: Metadata,
    size: tuple[int, int],
    channels: int,
    kinds: Sequence[int],
    dtype: np.dtype,
    levels: str | None = None,
    mark: dict[str, int] | None = None,
  ):
    self._metadata, self._channels, self._kinds = metadata, channels, (*kinds,)
    self._levels = levels
    exif = meta.load_exif(metadata.exif)
    self._layout = Layout(meta.bigtiff_order(exif), big=True)
    self._said = exif.tree
    if exif.order != self._layout.order:
      self._said = swapped(exif.tree, exif.order)
    self._kind = np.dtype(dtype)
    if dtype == np.float32 and metadata.bits == 16:
      self._kind = np.dtype(np.float16)
    self.band = tile_of(*size)
    self._grids = [_Grid(*size, self.band)]
    while levels and max(size) > self.band:
      size = (-(-size[0] // 2), -(-size[1] // 2))
      self._grids.append(_Grid(*size, self.band))
    mark = mark or {"bytes": 0, "tiles": 0}
    self.path = folder / "result.tif"
    self._data = _open(self.path, mark["bytes"])
    self._index = _open(folder / "tiles", 16 * mark["tiles"])
    self._at, self._done = max(mark["bytes"], _HEAD), mark["tiles"]
    self._pool = concurrent.futures.ThreadPoolExecutor(
      _THREADS, "esrgan-deflate"
    )
    if not mark["bytes"]:
      head = struct.pack(self._layout.order + "HHHQ", 43, 8, 0, 0)
      order = b"II" if self._layout.order == "<" else b"MM"
      _write(self._data, order + head, 0)

  def close(self) -> None:
    """Closes the files, which stay."""
    self._pool.shutdown(cancel_futures=True)
    for file in (self._data, self._index):
      os.close(file)

  def mark(self) -> dict[str, int]:
    """Returns how far it is; that much outlives whatever comes."""
    for file in (self._data, self._index):
      os.fsync(file)
    return {"bytes": self._at, "tiles": self._done}

  @property
  def rows(self) -> int:
    """Rows of the picture that have been appended."""
    first = self._grids[0]
    whole = min(self._done // first.across, first.down)
    return min(whole * self.band, first.height)

  def append(self, samples: np.ndarray) -> None:
    """Takes the next rows.

    Args:
      samples: `[rows, W, samples]` of the pixels' dtype, alpha and further ones
        where `kinds` has them.
    """
    if samples.dtype == np.float32:
      samples, info, C = np.array(samples), self._metadata, self._channels
      samples[..., :C] = light.to_file(
        samples[..., :C], info, linear=info.linear
      )
      samples = light.as_kind(samples, self._kind)
    self._put(samples, self._grids[0])

  def reduce(self, tell: Callable[[int, int], None]) -> None:
    """Makes the smaller copies.

    Args:
      tell: Called after each row of tiles with how many tiles there are, and
        will be.
    """
    total = sum(grid.down * grid.across for grid in self._grids)
    first = 0
    for before, grid in zip(self._grids, self._grids[1:], strict=False):
      begin = first + before.down * before.across
      for row in range(grid.down):
        if self._done > begin + row * grid.across:
          continue  # There already.
        rows = [
          self._row(before, first + place * before.across)
          for place in (2 * row, 2 * row + 1)
          if place < before.down
        ]
        height = min(2 * grid.tile, before.height - 2 * row * grid.tile)
        whole = np.concatenate(rows)[:height, : before.width]
        self._put(halved(whole), grid)
        tell(self._done, total)
      first = begin

  def finish(self) -> pathlib.Path:
    """Writes the directories; returns the file, which is whole then."""
    firsts = np.cumsum([0, *(g.down * g.across for g in self._grids)]).tolist()
    entries = np.frombuffer(
      os.pread(self._index, 16 * firsts[-1], 0), "<u8"
    ).reshape(-1, 2)
    trees = [
      self._tree(grid, entries[first : first + grid.down * grid.across], at > 0)
      for at, (grid, first) in enumerate(
        zip(self._grids, firsts[:-1], strict=True)
      )
    ]
    main, *smaller = trees
    order = self._layout.order
    if self._levels == "parts" and smaller:
      offsets = [self._directory(tree) for tree in smaller]
      main[330] = Value(18, struct.pack(f"{order}{len(offsets)}Q", *offsets))
      smaller = []
    link = 8
    for tree in (main, *smaller):
      at = self._directory(tree)
      _write(self._data, struct.pack(order + "Q", at), link)
      # Behind the tags there is room for the next one's place.
      link = at + 8 + 20 * len(tree)
    os.ftruncate(self._data, self._at)
    os.fsync(self._data)
    return self.path

  def _directory(self, tree: Tree) -> int:
    """Writes a directory behind all else; returns where."""
    self._at += self._at % 2
    at = self._at
    packed = pack_tree(tree, at, self._layout)
    _write(self._data, packed, at)
    self._at += len(packed)
    return at

  def _put(self, samples: np.ndarray, grid: _Grid) -> None:
    """Packs a row of tiles, and writes it."""
    if samples.ndim == 2:
      samples = samples[..., None]
    packed = self._pool.map(
      lambda left: self._packed(samples[:, left : left + grid.tile], grid.tile),
      range(0, grid.width, grid.tile),
    )
    entries = bytearray()
    for tile in packed:
      _write(self._data, tile, self._at)
      entries += struct.pack("<QQ", self._at, len(tile))
      self._at += len(tile)
    _write(self._index, bytes(entries), 16 * self._done)
    self._done += grid.across

  def _packed(self, samples: np.ndarray, side: int) -> bytes:
    import imagecodecs

    missing = [(0, side - n) for n in samples.shape[:2]]
    tile = np.pad(samples, [*missing, (0, 0)], mode="edge")
    if self._kind.kind == "f":
      # Its bytes are in one order, whatever the file's.
      tile = imagecodecs.floatpred_encode(
        tile.astype(self._kind.newbyteorder(">")), axis=1
      )
    else:
      tile = imagecodecs.delta_encode(np.ascontiguousarray(tile), axis=1)
      tile = tile.astype(self._kind.newbyteorder(self._layout.order))
    return imagecodecs.deflate_encode(tile.tobytes(), level=_LEVEL)

  def _row(self, grid: _Grid, first: int) -> np.ndarray:
    """Reads a row of tiles back."""
    import imagecodecs

    entries = os.pread(self._index, 16 * grid.across, 16 * first)
    kind, samples = self._kind, self._channels + len(self._kinds)
    shape = (grid.tile, grid.tile, samples)
    size = math.prod(shape) * kind.itemsize

    def unpacked(at: int, count: int) -> np.ndarray:
      packed = os.pread(self._data, count, at)
      raw = imagecodecs.deflate_decode(packed, out=size)
      if kind.kind == "f":
        tile = np.frombuffer(raw, kind.newbyteorder(">")).reshape(shape)
        return imagecodecs.floatpred_decode(tile, axis=1).astype(kind)
      order = self._layout.order
      tile = np.frombuffer(raw, kind.newbyteorder(order)).reshape(shape)
      return imagecodecs.delta_decode(tile.astype(kind), axis=1)

    places = struct.iter_unpack("<QQ", entries)
    tiles = self._pool.map(lambda place: unpacked(*place), places)
    return np.concatenate(list(tiles), axis=1)

  def _tree(self, grid: _Grid, entries: np.ndarray, is_smaller: bool) -> Tree:
    """Returns the tags of a page."""
    order, kind = self._layout.order, self._kind
    samples = self._channels + len(self._kinds)

    def shorts(*values: int) -> Value:
      return Value(3, struct.pack(f"{order}{len(values)}H", *values))

    def long(value: int) -> Value:
      return Value(4, struct.pack(order + "I", value))

    tree: Tree = {
      254: long(int(is_smaller)),
      256: long(grid.width),
      257: long(grid.height),
      258: shorts(*(8 * kind.itemsize,) * samples),
      259: shorts(8),
      262: shorts(1 if self._channels == 1 else 2),
      277: shorts(samples),
      284: shorts(1),
      317: shorts(3 if kind.kind == "f" else 2),
      322: long(grid.tile),
      323: long(grid.tile),
      324: Value(16, entries[:, 0].astype(f"{order}u8").tobytes()),
      325: Value(4, entries[:, 1].astype(f"{order}u4").tobytes()),
      339: shorts(*(3 if kind.kind == "f" else 1,) * samples),
    }
    if self._kinds:
      tree[338] = shorts(*self._kinds)
    info = self._metadata
    profile = info.icc_profile
    if info.linear:
      profile = linear_profile(info, self._channels)
    if profile is not None:
      tree[34675] = Value(7, profile)
    return tree if is_smaller else {**tree, **self._words()}

  def _words(self) -> Tree:
    """Returns the tags that tell of the picture."""
    order, info = self._layout.order, self._metadata
    tree: Tree = {}
    for tag, value in self._said.items():
      if tag in meta.WORDS:
        kind = 2 if tag in meta.ASCII_WORDS else value.kind
        tree[tag] = Value(kind, value.raw)
      elif tag in (EXIF, GPS) and value:
        tree[tag] = value
    for tag, values in (info.geotiff or {}).items():
      kind = geotiff.KINDS[tag]
      if kind == 2:
        tree[tag] = Value(2, values)
        continue
      form = "d" if kind == 12 else "H"
      raw = struct.pack(f"{order}{len(values)}{form}", *values)
      tree[tag] = Value(kind, raw)
    if info.xmp is not None:
      tree[700] = Value(1, info.xmp)
    if info.dpi is not None:
      for tag, number in zip((282, 283), info.dpi, strict=True):
        tree[tag] = meta.make_rational(fractions.Fraction(number), order)
      tree[296] = Value(3, struct.pack(order + "H", 2))
    return tree


def halved(samples: np.ndarray) -> np.ndarray:
  """Returns means of 2 x 2 pixels; an odd row or column is its own pair."""
  H, W = samples.shape[:2]
  samples = np.pad(samples, [(0, H % 2), (0, W % 2), (0, 0)], mode="edge")
  wide = np.float32 if samples.dtype.kind == "f" else np.uint32
  four = [
    samples[top::2, left::2].astype(wide) for top in (0, 1) for left in (0, 1)
  ]
  total = four[0] + four[1] + four[2] + four[3]
  if wide == np.uint32:
    return ((total + 2) // 4).astype(samples.dtype)
  return (total / 4).astype(samples.dtype)


def _open(path: pathlib.Path, size: int) -> int:
  """Opens a file to go on with at a size; what lies beyond is lost."""
  flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
  file = os.open(path, flags, 0o666)
  if os.fstat(file).st_size < size:
    os.close(file)
    raise OSError(f"{path} is shorter than it was; remove {path.parent}")
  os.ftruncate(file, size)
  return file


def _write(file: int, data: bytes, at: int) -> None:
  """Writes all of some bytes at a place."""
  view = memoryview(data)
  while view:
    count = os.pwrite(file, view, at)
    view, at = view[count:], at + count
