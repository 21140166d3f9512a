"""Files of several pictures: pages, and the frames of animations."""

from __future__ import annotations

import dataclasses
import fractions
import mmap
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from esrgan_jax.images import directories
from esrgan_jax.images.animation import Animation
from esrgan_jax.images.assembly import assemble
from esrgan_jax.images.decoders.gif import read_gif, read_gif_frames
from esrgan_jax.images.decoders.png import read_png, read_png_frames
from esrgan_jax.images.decoders.tiff import Pages, read_tiff, read_tiff_pages
from esrgan_jax.images.decoders.webp import read_webp, read_webp_frames
from esrgan_jax.images.pixels import MAX_PIXELS, Image, ImageError
from esrgan_jax.images.reading import explained, opened, read_single
from esrgan_jax.images.sizes import size_of

# Files above this size are not read into memory, but looked at where they lie.
_MAPPED_BYTES = 2**28
# Of a directory of TIFF, a hundred times as long as most; and before a PNG's
# pixels.
_DIRECTORY = 2**14
_MOST_CHUNKS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
  """The pictures of a file in their order, decoded one by one.

  Iterating reads them, from the first; `len` counts them. Frames of animations
  are whole pictures, as they are seen: what a frame leaves as it was is in it.
  All of them have transparency, or none has.

  Attributes:
    sizes: Width and height of each, as they are stored, before EXIF turns them.
    durations: How long each is seen, in milliseconds, exactly; None if they are
      pages, or one picture.
    loop: How often they are played; 0: for ever; None as for `durations`.
  """

  sizes: tuple[tuple[int, int], ...]
  durations: tuple[fractions.Fraction, ...] | None
  loop: int | None
  _path: pathlib.Path = dataclasses.field(repr=False)
  _play: Callable[[], Iterator[Image]] = dataclasses.field(repr=False)

  @property
  def kind(self) -> str:
    """What its pictures are called: "page" or "frame"."""
    return "page" if self.durations is None else "frame"

  def __len__(self) -> int:
    return len(self.sizes)

  def __iter__(self) -> Iterator[Image]:
    images = None
    for number in range(1, len(self) + 1):
      what = f"{self.kind} {number}" if len(self) > 1 else ""
      with explained(self._path, what):
        images = images or self._play()
        image = next(images)
      yield image
      del image  # It may be large, and the next one is to come.


def read_frames(
  path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> Frames:
  """Reads a file of pages (TIFF) or frames (GIF, WebP, PNG), or one picture.

  What the file says of its frames is checked here, their pixels when they are
  read. Previews and masks of a TIFF are no pages, and a PNG's picture for
  programs that know no animations is no frame.

  Args:
    path: The file. It may be read while the frames are: it must stay as it is.
    max_pixels: Most pixels of one picture, as for `read_image`. Of animations,
      all frames together are held against the bytes that are there, too.

  Returns:
    The pictures, read as they are asked for.

  Raises:
    ImageError: As for `read_image`; of a single frame or page, when that is
      read.

  >>> import tempfile
  >>> from PIL import Image as PilImage
  >>> black, white = (PilImage.new("L", (3, 2), grey) for grey in (0, 255))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "blink.gif")
  ...   black.save(file, save_all=True, append_images=[white], duration=40)
  ...   frames = read_frames(file)
  ...   [image.pixels.max().item() for image in frames]
  [0, 255]
  >>> len(frames), frames.sizes[0], *map(str, frames.durations), frames.loop
  (2, (3, 2), '40', '40', 1)
  """
  path = pathlib.Path(path)
  with explained(path):
    with opened(path) as (reader, file, length):
      several = None
      if reader in FINDERS and not _is_plain(file):
        several = FINDERS[reader](_content(file, length), max_pixels)
      if several is None:
        file.seek(0)
        size = size_of(file) or (0, 0)
    if isinstance(several, Animation):
      size = several.width, several.height
      return Frames(
        (size,) * len(several.patches),
        tuple(patch.duration for patch in several.patches),
        several.loop,
        path,
        lambda: map(assemble, several.play()),
      )
    if isinstance(several, Pages):
      return Frames(
        tuple(several.sizes),
        None,
        None,
        path,
        lambda: map(assemble, several.play()),
      )
    return Frames(
      (size,), None, None, path, lambda: iter([read_single(path, max_pixels)])
    )


def count_frames(path: str | os.PathLike) -> int | None:
  """Tells how many frames or pages a file has, without a promise.

  No pixels are read, and little is checked: this is for estimates.

  Args:
    path: The file.

  Returns:
    Their number, 1 of a single picture; None if the file is none that can be
    read.

  >>> import tempfile
  >>> import numpy as np
  >>> from esrgan_jax import images
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "grey.webp")
  ...   _ = images.write_image(file, Image(np.zeros((2, 3, 1), np.uint8)))
  ...   count_frames(file)
  1
  """
  path = pathlib.Path(path)
  try:
    with explained(path), opened(path) as (reader, file, length):
      if reader is read_tiff:
        return _count_pages(file, length)
    return len(read_frames(path, max_pixels=2**62))
  except ImageError:
    return None


def _count_pages(file: BinaryIO, length: int) -> int:
  """Counts a TIFF's pages, reading nothing but its directories."""
  layout, offset = directories.layout_of(file.read(16))
  seen: set[int] = set()
  count = 0
  left = 2 * length  # More, if they overlap, is not counted.
  while offset and offset not in seen and left > 0:
    seen.add(offset)
    file.seek(offset)
    # As if the directory, whose short values are in it, were all of the file.
    data = bytes(8) + file.read(_DIRECTORY)
    try:
      places, offset = directories.read_directory(data, 8, layout)
    except ValueError:
      break
    left -= directories.end_of(data, 8, layout) - 8
    kind = directories.value_of(data, places.get(254))
    count += not sum(directories.integers(kind, layout.order)[:1]) & 5
  return max(count, 1)


def _is_plain(file: BinaryIO) -> bool:
  """Tells a PNG or WebP of one picture, without reading the whole of it."""
  file.seek(0)
  head = file.read(16)
  if head[8:12] == b"WEBP":
    return head[12:] != b"VP8X"
  if not head.startswith(b"\x89PNG\r\n\x1a\n"):
    return False
  file.seek(8)
  for _ in range(_MOST_CHUNKS):
    head = file.read(8)
    if head[4:] in (b"IDAT", b"acTL") or len(head) < 8:
      return head[4:] == b"IDAT"
    file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
  return False


def _content(file: BinaryIO, length: int) -> bytes | mmap.mmap:
  """Returns all of a file, in memory or where it lies."""
  if length <= _MAPPED_BYTES:
    file.seek(0)
    return file.read()
  return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


# Of formats that may have several pictures, by the reader of one.
FINDERS = {
  read_gif: read_gif_frames,
  read_png: read_png_frames,
  read_tiff: read_tiff_pages,
  read_webp: read_webp_frames,
}
