"""The training film: one picture as it was upscaled, step after step.

Each frame is a PNG file in `film/PHASE/STEP.png` of a workdir, its caption
drawn, and says in a text chunk of which film it is. Put one behind the other
they are `film.webp`, an animation.
"""

from __future__ import annotations

import hashlib
import io
import math
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin
from etils import epath

from esrgan_jax import images, storage
from esrgan_jax.data.sources import Pair
from esrgan_jax.text import printable

__all__ = [
  "FOLDER",
  "NAME",
  "Frame",
  "encode",
  "frame",
  "frames",
  "identity",
  "is_film",
  "steps",
]

FOLDER, NAME = "film", "film.webp"  # In a workdir.

_KEY = "esrgan_jax film"  # Of the text chunk.
_LETTERS = 13  # Pixels; of a caption's two lines.
_CAPTION = 40  # Pixels above the picture.
_NARROWEST = 220  # Pixels that a caption needs.
_INK, _PAPER = (0, 0, 0), (255, 255, 255)
_LAST = 8  # How many times as long the last frame is seen.
_NUMBER = re.compile(r"[0-9]{7,15}")


def steps(total: int, *, first: int, growth: float) -> list[int]:
  """Returns the steps of a phase that have a frame.

  Args:
    total: The phase's last step, which has one.
    first: The first that has one, >= 1.
    growth: How many times as far each is as the one before, > 1; steps that
      follow each other, where that is less than one on.

  >>> steps(100, first=10, growth=2.0)
  [10, 20, 40, 80, 100]
  >>> steps(5, first=1, growth=1.25)
  [1, 2, 3, 4, 5]
  """
  found, step = [], first
  while step < total:
    found.append(step)
    step = max(step + 1, math.ceil(step * growth))
  return [*found, total]


def identity(pair: Pair, crop_border: int) -> str:
  """Returns what tells this film's frames from those of another picture.

  Args:
    pair: The picture.
    crop_border: Of the measure in the captions.

  >>> pair = Pair(np.zeros((2, 2, 3), np.uint8), np.zeros((8, 8, 3), np.uint8))
  >>> len(identity(pair, 4)), identity(pair, 4) == identity(pair, 0)
  (64, False)
  """
  digest = hashlib.sha256(f"{_CAPTION} {crop_border}".encode())
  for image in pair:
    digest.update(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
  return digest.hexdigest()


def frame(picture: np.ndarray, caption: Sequence[str], film: str) -> bytes:
  """Returns a frame as a PNG file's content.

  Args:
    picture: uint8 `[H, W, 3]`.
    caption: Its two lines.
    film: Of which film it is, as of `identity`.

  >>> content = frame(np.zeros((8, 8, 3), np.uint8), ("PSNR", "28 dB"), "ab")
  >>> PIL.Image.open(io.BytesIO(content)).size
  (220, 48)
  """
  height, width, _ = picture.shape
  size = _size(width, height)
  whole = PIL.Image.new("RGB", size, _PAPER)
  whole.paste(PIL.Image.fromarray(picture), ((size[0] - width) // 2, _CAPTION))
  draw = PIL.ImageDraw.Draw(whole)
  font = PIL.ImageFont.load_default(_LETTERS)
  for number, line in enumerate(caption):
    words = printable(line, limit=60)
    draw.text((4, 15 + 18 * number), words, _INK, font, anchor="ls")
  info = PIL.PngImagePlugin.PngInfo()
  info.add_text(_KEY, film)
  buffer = io.BytesIO()
  whole.save(buffer, "png", pnginfo=info)
  return buffer.getvalue()


def _size(width, height):
  return max(width, _NARROWEST), height + _CAPTION


class Frame:
  """A file of a phase's frames.

  Attributes:
    path: The file.
    step: Its step.
  """

  def __init__(self, path: epath.Path):
    self.path, self.step = path, int(path.stem)

  def belongs(self, film: str, size: tuple[int, int]) -> bool:
    """Returns whether it is of a film, and whole.

    Args:
      film: As of `identity`.
      size: Width and height of its picture.
    """
    try:
      with PIL.Image.open(
        io.BytesIO(self.path.read_bytes()), formats=("PNG",)
      ) as found:
        if found.size != _size(*size):  # Before anything is unpacked.
          return False
        return found.info.get(_KEY) == film and found.load() is not None
    # Pillow's for what is damaged, or larger than any frame.
    except (
      OSError,
      ValueError,
      SyntaxError,
      PIL.Image.DecompressionBombError,
    ):
      return False

  def pixels(self) -> np.ndarray:
    """Returns what is seen, uint8 `[H, W, 3]`."""
    data = io.BytesIO(self.path.read_bytes())
    with PIL.Image.open(data, formats=("PNG",)) as found:
      return np.asarray(found.convert("RGB"))


def frames(folder: epath.Path) -> list[Frame]:
  """Returns a phase's frames, in the order of their steps.

  Args:
    folder: `film/PHASE` of a workdir; it may not be there.

  >>> frames(epath.Path("/nowhere"))
  []
  """
  if not folder.is_dir():
    return []
  found = [
    Frame(path)
    for path in folder.iterdir()
    if path.suffix == ".png" and _NUMBER.fullmatch(path.stem)
  ]
  return sorted(found, key=lambda each: each.step)


def encode(found: Collection[Frame], *, seconds: float, quality: int) -> bytes:
  """Returns frames, one behind the other, as a WebP file's content.

  Args:
    found: Frames of one film.
    seconds: How long each is seen; the last one is eight times as long.
    quality: 1 to 100, WebP's.

  Raises:
    ImageError: If WebP cannot hold them.
  """
  durations = [1000 * seconds] * len(found)
  durations[-1] *= _LAST
  with storage.temporary_folder() as folder:
    path = pathlib.Path(folder, NAME)
    images.write_frames(
      path, _pictures(found), durations=durations, quality=quality
    )
    return path.read_bytes()


def _pictures(found: Collection[Frame]) -> Iterator[images.Image]:
  for each in found:
    yield images.Image(each.pixels())


def is_film(data: bytes) -> bool:
  """Returns whether a file is an animated WebP, by its first bytes.

  >>> is_film(b"RIFF")
  False
  """
  # A flag of VP8X, the first chunk.
  return (
    data[:4] == b"RIFF"
    and data[8:16] == b"WEBPVP8X"
    and len(data) > 20
    and bool(data[20] & 2)
  )
