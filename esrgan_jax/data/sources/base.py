"""What a source of images is, and what is made of several."""

from __future__ import annotations

import abc
import bisect
import collections
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from esrgan_jax import text

__all__ = [
  "DataError",
  "Pair",
  "Problem",
  "Source",
  "SourceList",
  "Subset",
  "corner",
  "matched",
  "readable",
  "require_hr",
]


class DataError(ValueError):
  """Training data that cannot be used; the message names it and the remedy."""


class Pair(NamedTuple):
  """LR and HR of one image, uint8 `[h, w, 3]` and `[scale*h, scale*w, 3]`."""

  lr: np.ndarray
  hr: np.ndarray


class Problem(NamedTuple):
  """Name of an image, and the reason why it is left out.

  >>> print(Problem("a.png", "cut short"))
  a.png: cut short
  """

  name: str
  reason: str

  def __str__(self) -> str:
    return f"{text.printable(self.name)}: {self.reason}"

  @classmethod
  def of(cls, name: str, error: DataError) -> Problem:
    """Makes one of an error that begins with the image's name, or does not."""
    return cls(name, str(error).removeprefix(f"{text.printable(name)}: "))


class Source(abc.ABC):
  """A sequence of named pairs.

  Attributes:
    scale: HR pixels per LR pixel.
    title: What it is, for reports.
    names: One name an image, for reports; unique within a source.
    lr_origin: Where LR comes from, for reports.
    problems: What was wrong with the listing itself, such as an HR image
      without its LR image; these images are not among `names`.
    has_hr: False where there is none, as of photos that a teacher is to upscale
      (`data.teaching`); HR of its pairs is black then.
    margin: LR pixels at each edge of the images that its pairs are without.
  """

  scale: int
  title: str = ""
  lr_origin: str = ""
  names: Sequence[str]
  problems: Sequence[Problem] = ()
  has_hr: bool = True
  margin: int = 0

  def __len__(self) -> int:
    return len(self.names)

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Pair:
    """Reads a pair. Raises `DataError` if it cannot be used."""

  @abc.abstractmethod
  def fingerprint(self) -> str:
    """Returns a text that changes when names, files or the making of LR do."""

  def lr_size(self, index: int) -> tuple[int, int]:
    """Reads a pair for its LR size, `(h, w)`. Raises as reading it does."""
    h, w, _ = self[index].lr.shape
    return h, w

  def read_lr(self, index: int) -> np.ndarray:
    """Reads LR alone. Raises as reading a pair does."""
    return self[index].lr

  def crop(self, index: int, place: tuple[float, float], size: int) -> Pair:
    """Reads an LR-aligned crop without keeping the rest.

    Args:
      index: Which pair.
      place: Fractions in [0, 1) of the way down and to the right.
      size: LR pixels a side.

    Returns:
      The crop, `size` by `size` LR pixels.

    Raises:
      DataError: If the pair cannot be used or is smaller than `size`.
    """
    lr, hr = self[index]
    k = self.scale
    top, left = corner(lr.shape, place, size, self.names[index])
    return Pair(
      lr[top : top + size, left : left + size],
      hr[k * top : k * (top + size), k * left : k * (left + size)],
    )


def corner(
  shape: tuple[int, ...], place: tuple[float, float], size: int, name: str
) -> tuple[int, int]:
  """Returns where a crop begins.

  Args:
    shape: `(h, w, ...)` of the LR image.
    place: Fractions in [0, 1) of the way down and to the right.
    size: LR pixels a side of the crop.
    name: The image's name, for the error.

  Returns:
    `(top, left)`, LR pixels.

  Raises:
    DataError: If the image is smaller than the crop.

  >>> corner((10, 20), (0.0, 0.99), 8, "photo.png")
  (0, 12)
  """
  room = (shape[0] - size + 1, shape[1] - size + 1)
  if min(room) < 1:
    raise DataError(
      f"{text.printable(name)}: LR is {shape[0]}x{shape[1]}, smaller than a"
      f" patch of {size}x{size}"
    )
  return int(place[0] * room[0]), int(place[1] * room[1])


def matched(lr: np.ndarray, hr: np.ndarray, scale: int, name: str) -> Pair:
  """Cuts a pair to whole LR pixels.

  Args:
    lr: uint8 `[h, w, 3]`.
    hr: uint8 `[H, W, 3]`.
    scale: HR pixels per LR pixel.
    name: The image's name, for the error.

  Returns:
    The pair.

  Raises:
    DataError: If the sizes do not belong together.

  >>> hr = np.zeros((9, 8, 3), np.uint8)
  >>> [image.shape for image in matched(hr[:3, :2], hr, 4, "photo.png")]
  [(2, 2, 3), (8, 8, 3)]
  """
  down, across = (n // scale for n in hr.shape[:2])
  # imresize rounds sizes up, others crop HR first: both put LR pixel i over
  # HR pixels scale*i onwards.
  whole = (down, across)
  rounded_up = tuple(-(-n // scale) for n in hr.shape[:2])
  if lr.shape[:2] not in (whole, rounded_up) or min(whole) < 1:
    raise DataError(
      f"{text.printable(name)}: LR is {lr.shape[0]}x{lr.shape[1]} and HR"
      f" {hr.shape[0]}x{hr.shape[1]}, not {scale} times as large"
    )
  return Pair(lr[:down, :across], hr[: scale * down, : scale * across])


class SourceList(Source):
  """Several sources, one after the other.

  A name that several of them have is given its source's title.

  Args:
    sources: At least one, all of one scale.

  Raises:
    DataError: If there is none, or the scales differ.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> len(SourceList([photos, photos]))
  6
  """

  def __init__(self, sources: Sequence[Source]):
    if not sources:
      raise DataError("no source of images; name at least one in data.sources")
    scales = sorted({source.scale for source in sources})
    if len(scales) > 1:
      raise DataError(f"sources of different scales {scales}; use one")
    self.scale = scales[0]
    self.title = ", ".join(source.title for source in sources)
    origins = dict.fromkeys(source.lr_origin for source in sources)
    self.lr_origin = ", ".join(filter(None, origins))
    counts = collections.Counter(n for source in sources for n in source.names)
    self.names = [
      name if counts[name] == 1 else f"{source.title}/{name}"
      for source in sources
      for name in source.names
    ]
    self.problems = [p for source in sources for p in source.problems]
    self.has_hr = all(source.has_hr for source in sources)
    self._sources = list(sources)
    self._ends = np.cumsum([len(source) for source in sources]).tolist()

  def __getitem__(self, index: int) -> Pair:
    source, index = self._find(index)
    return source[index]

  def lr_size(self, index: int) -> tuple[int, int]:
    """As `Source.lr_size`."""
    source, index = self._find(index)
    return source.lr_size(index)

  def read_lr(self, index: int) -> np.ndarray:
    """As `Source.read_lr`."""
    source, index = self._find(index)
    return source.read_lr(index)

  def crop(self, index: int, place: tuple[float, float], size: int) -> Pair:
    """As `Source.crop`."""
    source, index = self._find(index)
    return source.crop(index, place, size)

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of all of them."""
    prints = "\n".join(source.fingerprint() for source in self._sources)
    return hashlib.sha256(prints.encode()).hexdigest()

  def _find(self, index):
    if not 0 <= index < len(self):
      raise IndexError(f"image {index} of {len(self)}")
    which = bisect.bisect_right(self._ends, index)
    start = self._ends[which - 1] if which else 0
    return self._sources[which], index - start


class Subset(Source):
  """Some of a source's images.

  Args:
    source: The source.
    indices: Which of its images, in this order.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = Subset(SamplePhotos("held_out", scale=4), [2, 0])
  >>> photos.names, photos[1].lr.shape
  (['rocket.jpg', 'chelsea.png'], (75, 112, 3))
  """

  def __init__(self, source: Source, indices: Sequence[int]):
    self.scale, self.title = source.scale, source.title
    self.lr_origin, self.has_hr = source.lr_origin, source.has_hr
    self.names = [source.names[i] for i in indices]
    self.problems = source.problems
    self._source, self._indices = source, list(indices)

  def __getitem__(self, index: int) -> Pair:
    return self._source[self._indices[index]]

  def lr_size(self, index: int) -> tuple[int, int]:
    """As `Source.lr_size`."""
    return self._source.lr_size(self._indices[index])

  def read_lr(self, index: int) -> np.ndarray:
    """As `Source.read_lr`."""
    return self._source.read_lr(self._indices[index])

  def crop(self, index: int, place: tuple[float, float], size: int) -> Pair:
    """As `Source.crop`."""
    return self._source.crop(self._indices[index], place, size)

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of the whole source, and which these are."""
    content = f"{self._source.fingerprint()} {self._indices}"
    return hashlib.sha256(content.encode()).hexdigest()


def readable(
  source: Source,
  skip: Callable[[Problem], None] | None,
  indices: Iterable[int] | None = None,
) -> Iterator[tuple[int, Pair]]:
  """Reads pairs, and passes over what cannot be read.

  Args:
    source: The source.
    skip: Told of each that cannot be read; None raises the error instead.
    indices: Which; None for all.

  Yields:
    Indices and pairs.

  Raises:
    DataError: If a pair cannot be read, and `skip` is None.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> [index for index, _ in readable(photos, print, [2, 0])]
  [2, 0]
  """
  for index in range(len(source)) if indices is None else indices:
    try:
      pair = source[index]
    except DataError as error:
      if skip is None:
        raise
      skip(Problem.of(source.names[index], error))
    else:
      yield index, pair


def require_hr(source: Source, what: str) -> None:
  """Raises where there is LR alone.

  Args:
    source: The source.
    what: What it was opened as, for the error.

  Raises:
    DataError: If it has no HR.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> require_hr(SamplePhotos("held_out", scale=4), "data.eval")
  """
  if not source.has_hr:
    raise DataError(
      f"{what} is {source.title}: LR alone, and HR is needed: give pairs,"
      " HR::LR, or HR alone; or have a teacher upscale it, by a phase of the"
      " kind distill (docs/student.md)"
    )
