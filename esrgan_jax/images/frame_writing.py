"""Writing pages and animations: complete under their name, or not at all."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO

import numpy as np

from esrgan_jax import storage
from esrgan_jax.images.encoders.apng import write_apng
from esrgan_jax.images.encoders.gif import write_gif
from esrgan_jax.images.encoders.tiff import write_pages
from esrgan_jax.images.encoders.webp import write_webp
from esrgan_jax.images.pixels import (
  ANIMATION_SUFFIXES,
  OUTPUT_SUFFIXES,
  Image,
  ImageError,
)
from esrgan_jax.images.writing import (
  FORMATS,
  can_be_lossless,
  fit,
  rounding_notes,
)
from esrgan_jax.text import printable

_PAGE_SUFFIXES = [s for s, name in OUTPUT_SUFFIXES.items() if name == "TIFF"]


def write_frames(
  path: str | os.PathLike,
  images: Iterable[Image],
  *,
  durations: Sequence[float | Fraction] | None,
  loop: int | None = 0,
  count: int | None = None,
  quality: int = 95,
  lossless: bool = False,
  overwrite: bool = False,
) -> tuple[str, ...]:
  """Writes an animation, or pages; the suffix of `path` chooses the format.

  Frames are taken one by one, and two of them are held at a time. Of an
  animation, what does not change from one frame to the next is not stored
  again. PNG keeps 16 bits and every pixel, WebP has 8, GIF 256 colours a frame
  and pixels that are transparent or not. Durations are exact in PNG, but for
  odd fractions, and rounded so that their sum stays right in WebP
  (milliseconds) and GIF (hundredths of a second). Metadata are the first
  frame's. TIFF has pages, each of a size, a depth and metadata of its own.

  Args:
    path: File to write: .gif, .webp, .png or .apng; or .tif or .tiff for pages.
    images: Frames of one size and kind, or pages.
    durations: How long each frame is seen, in milliseconds; as many as there
      are frames. None: pages.
    loop: How often an animation is played; 0 or None: for ever.
    count: How many pages there are, where it is known. Those that would exceed
      4 GB then have 64-bit offsets (BigTIFF).
    quality: 1 to 100, for lossy WebP.
    lossless: Write WebP without loss, and no GIF.
    overwrite: As for `write_image`.

  Returns:
    Sentences on what the format could not hold, one line each.

  Raises:
    ImageError: If `path` does not fit what is written (see
      `check_frames_fit`), frames differ in size or kind, or writing fails. What
      `images` raises itself passes.
    ValueError: If a number is out of its range, or there are more or fewer
      frames than durations.

  >>> import tempfile
  >>> from esrgan_jax.images.frames import read_frames
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "blink.webp")
  ...   frames = (Image(np.full((4, 4, 3), v, np.uint8)) for v in (0, 255))
  ...   _ = write_frames(file, frames, durations=[500, 250])
  ...   [int(duration) for duration in read_frames(file).durations]
  [500, 250]
  """
  path = pathlib.Path(path)
  if not 1 <= quality <= 100:
    raise ValueError(f"quality is {quality}, not in 1 to 100")
  exact = None
  if durations is not None:
    exact, count = _exact(durations), len(durations)
  loop = loop or 0
  if loop < 0:
    raise ValueError(f"loop is {loop}, not 0 or more")
  check_frames_fit(
    path, animated=exact is not None, count=count, lossless=lossless
  )
  source = _Source(images, count, frames=exact is not None)
  try:
    fitted = source.fitted(_format_of(path))
    with storage.written_aside(path, overwrite=overwrite) as file:
      if exact is None:
        _write_pages(file, fitted, count)
      else:
        _write_animation(
          file, _format_of(path), fitted, exact, loop, quality, lossless
        )
    return tuple(source.notes)
  except (ImageError, OSError) as error:
    if source.error is not None:
      raise source.error from None
    if isinstance(error, ImageError):
      raise ImageError(f"{printable(path)}: {error}") from error.__cause__
    raise ImageError(str(error)) from error


def check_frames_fit(
  path: str | os.PathLike,
  *,
  animated: bool,
  count: int | None = None,
  size: tuple[int, int] | None = None,
  lossless: bool = False,
) -> None:
  """Raises an error if a format cannot hold frames or pages.

  Args:
    path: File that is to be written; its suffix chooses the format.
    animated: Whether they are frames, which have a duration each; else pages.
    count: How many there are, for the message.
    size: Width and height of one; None: not known yet.
    lossless: Whether every sample is to be kept.

  Raises:
    ImageError: If the suffix is unknown, or of a format of single pictures, or
      of animations where pages are to be written or the other way round, or
      ends before this size, or has no lossless form.

  >>> check_frames_fit("all.jpg", animated=True, count=9)
  Traceback (most recent call last):
  ...
  esrgan_jax.images.pixels.ImageError: all.jpg: JPEG holds one picture, not ...
  """
  name = printable(path)
  suffix = pathlib.PurePath(path).suffix.lower()
  what = "frames" if animated else "pages"
  fitting = ANIMATION_SUFFIXES if animated else _PAGE_SUFFIXES
  choice = f"choose one of {' '.join(fitting)}, or one file a {what[:-1]}"
  if suffix not in fitting:
    if suffix in _PAGE_SUFFIXES:
      reason = "TIFF has no durations, and these are frames of an animation"
    elif suffix in ANIMATION_SUFFIXES:
      reason = f"{ANIMATION_SUFFIXES[suffix]} holds frames with durations, and"
      reason += " these are pages"
    elif suffix in OUTPUT_SUFFIXES:
      number = "" if count is None else f" {count}"
      reason = (
        f"{OUTPUT_SUFFIXES[suffix]} holds one picture, not{number} {what}"
      )
    else:
      reason = f"suffix '{printable(suffix)}' is not one that can be written"
    raise ImageError(f"{name}: {reason}; {choice}")
  format_ = _format_of(path)
  if lossless and not can_be_lossless(path):
    others = " ".join(s for s in fitting if can_be_lossless(f"a{s}"))
    raise ImageError(
      f"{name}: {format_} has no lossless form; choose one of {others}"
    )
  limit = FORMATS[format_].side
  if size is not None and max(size) > limit:
    raise ImageError(
      f"{name}: {size[0]} x {size[1]} pixels do not fit {format_}, which ends"
      f" at {limit} a side; choose .png, or one file a {what[:-1]}"
    )


def _format_of(path: str | os.PathLike) -> str:
  suffix = pathlib.PurePath(path).suffix.lower()
  return ANIMATION_SUFFIXES.get(suffix) or OUTPUT_SUFFIXES[suffix]


def _exact(durations: Sequence[float | Fraction]) -> list[Fraction]:
  """Returns durations that have no rounding to come."""
  if not durations:
    raise ValueError("durations are empty; give one a frame")
  for number, duration in enumerate(durations, 1):
    if not 0 <= duration < float("inf"):
      raise ValueError(
        f"durations are {duration} for frame {number}, not 0 or more"
      )
  return [Fraction(duration) for duration in durations]


class _Source:
  """Frames as they come, checked; what they raise, and what is left out."""

  def __init__(self, images: Iterable[Image], count: int | None, frames: bool):
    self.error: BaseException | None = None
    self.notes: dict[str, None] = {}  # In order, each once.
    self._images = images
    self._count = count if frames else None
    self._alike = frames

  def fitted(self, format_: str) -> Iterator[Image]:
    """Yields what the format can hold of each."""
    first = None
    number = 0
    for number, image in enumerate(self._given(), 1):
      if self._count is not None and number > self._count:
        raise ValueError(f"more frames than the {self._count} durations")
      rounded = rounding_notes(image, format_)
      image, notes = fit(image, format_)
      self.notes |= dict.fromkeys(notes + rounded)
      if self._alike:
        image = _like(first, image, number)
        first = first or _Kind.of(image)
      H, W, _ = image.pixels.shape
      if max(H, W) > (limit := FORMATS[format_].side):
        raise ImageError(
          f"{W} x {H} pixels do not fit {format_}, which ends at {limit} a side"
        )
      yield image
    if number < (self._count or 1):
      raise ValueError(f"{number} frames, and {self._count or 1} are needed")

  def _given(self) -> Iterator[Image]:
    try:
      yield from self._images
    except Exception as error:
      self.error = error
      raise


@dataclasses.dataclass(frozen=True)
class _Kind:
  """What all frames of an animation have in common."""

  shape: tuple[int, ...]
  dtype: np.dtype
  alpha: bool

  @classmethod
  def of(cls, image: Image) -> _Kind:
    """Returns that of an image."""
    return cls(image.pixels.shape, image.pixels.dtype, image.alpha is not None)

  def __str__(self) -> str:
    H, W, C = self.shape
    return f"{W} x {H} pixels of {C} {self.dtype}"


def _like(first: _Kind | None, image: Image, number: int) -> Image:
  """Returns an image with transparency if the first has it, or without."""
  this = _Kind.of(image)
  if first is None or this == first:
    return image
  if (this.shape, this.dtype) != (first.shape, first.dtype):
    raise ImageError(
      f"frame {number} has {this}, and the first {first}; frames of an"
      " animation are alike"
    )
  top = np.iinfo(this.dtype).max
  if first.alpha:
    alpha = np.full(this.shape[:2], top, this.dtype)
    return dataclasses.replace(image, alpha=alpha)
  if int(image.alpha.min()) < top:
    raise ImageError(
      f"frame {number} has transparency, and the first has none; give the first"
      " an alpha, too"
    )
  return dataclasses.replace(image, alpha=None)


def _write_animation(
  file: BinaryIO,
  format_: str,
  images: Iterator[Image],
  durations: list[Fraction],
  loop: int,
  quality: int,
  lossless: bool,
) -> None:
  if format_ == "PNG":
    write_apng(file, images, durations, loop)
  elif format_ == "GIF":
    write_gif(file, images, durations, loop)
  else:
    write_webp(
      file, images, durations, loop, quality=quality, lossless=lossless
    )


def _write_pages(
  file: BinaryIO, images: Iterator[Image], count: int | None
) -> None:
  try:
    write_pages(file, images, count=count)
  except ValueError as error:
    if file.tell() < 2**31:
      raise
    raise ImageError(
      f"{error}; give `count`, or write one file a page"
    ) from error
