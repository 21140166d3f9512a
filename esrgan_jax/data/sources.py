"""Where pairs of images come from: folders, DIV2K, sample photos.

A `Source` is a sequence of named (LR, HR) pairs, uint8 RGB. Reading one may
raise `DataError`, which names the image and says what is wrong with it.
`open_source` makes a source from the plain value that a config holds.
"""

from __future__ import annotations

import abc
import bisect
import collections
import hashlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from esrgan_jax import images, text
from esrgan_jax.data import prepare as prepare_lib
from esrgan_jax.resize import imresize_uint8

__all__ = [
  "HELD_OUT_PHOTOS",
  "TRAINING_PHOTOS",
  "DataError",
  "Div2k",
  "ImageFolder",
  "Pair",
  "PairFolder",
  "Problem",
  "SamplePhotos",
  "Source",
  "SourceList",
  "Subset",
  "corner",
  "open_source",
  "readable",
  "split_spec",
]

# Inside scikit-image's wheel: no other of its photos, they would be fetched.
# The two views of the motorcycle stay together, or the test would be known.
TRAINING_PHOTOS = (
  "astronaut.png",
  "hubble_deep_field.jpg",
  "ihc.png",
  "motorcycle_left.png",
  "motorcycle_right.png",
  "retina.jpg",
)
HELD_OUT_PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg")


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
    problems: What was wrong with the listing itself, such as an HR image
      without its LR image; these images are not among `names`.
  """

  scale: int
  title: str = ""
  names: Sequence[str]
  problems: Sequence[Problem] = ()

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


def _read_rgb(path: pathlib.Path, name: str) -> np.ndarray:
  """Reads uint8 RGB: grey repeated, 16 bits rounded, alpha dropped."""
  try:
    image = images.read_image(path)
  except images.ImageError as error:
    # A name within its source says more than the whole path.
    reason = str(error).removeprefix(f"{text.printable(path, limit=4096)}: ")
    raise DataError(f"{text.printable(name)}: {reason}") from error
  pixels = image.pixels
  if image.alpha is not None:
    pixels = images.bleed_colour(pixels, image.alpha)
  if pixels.dtype != np.uint8:
    pixels = images.from_float(images.to_float(pixels), np.uint8)
  if pixels.shape[2] == 1:
    pixels = np.repeat(pixels, 3, axis=2)
  return np.ascontiguousarray(pixels)


def _matched(lr: np.ndarray, hr: np.ndarray, scale: int, name: str) -> Pair:
  """Cuts a pair to whole LR pixels, or says that the sizes do not belong."""
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


def _list_images(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists image files below a folder, sorted, as relative paths."""
  if not folder.is_dir():
    what = "not a folder" if folder.exists() else "no such folder"
    raise DataError(f"{folder}: {what}; give the folder that holds the images")
  found = []
  for parent, folders, files in os.walk(folder, followlinks=True):
    folders[:] = sorted(f for f in folders if not f.startswith("."))
    found += [
      (pathlib.Path(parent) / file).relative_to(folder)
      for file in files
      if not file.startswith(".") and images.is_image_suffix(file)
    ]
  if not found:
    raise DataError(
      f"{folder}: no image in it; it should hold files that end in"
      f" {' '.join(sorted(images.INPUT_SUFFIXES))}"
    )
  return sorted(found)


def _fingerprint_files(kind: str, files: Sequence[pathlib.Path]) -> str:
  """Hashes names, sizes and times of files."""
  digest = hashlib.sha256(kind.encode())
  for file in files:
    digest.update(b"\n" + os.fsencode(file))
    try:
      stat = file.stat()
    except OSError:
      continue  # Gone by now: reading it will tell.
    digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
  return digest.hexdigest()


class ImageFolder(Source):
  """A folder of HR images, subfolders included; LR is made from them.

  HR is cropped at the right and bottom to a multiple of `scale`; LR is
  MATLAB's bicubic of it, by `esrgan_jax.resize.imresize_uint8`. Palettes,
  grey, 16 bits and transparency become 8-bit RGB (colour under transparency
  stays; where nothing is seen, it is filled in from what is).

  Args:
    folder: The folder.
    scale: HR pixels per LR pixel.
    border: `"mirror"` or `"clamp"`, see `imresize_uint8`.

  Raises:
    DataError: If the folder does not exist or holds no image.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   black = images.Image(np.zeros((9, 8, 3), np.uint8))
  ...   images.write_image(pathlib.Path(folder) / "black.png", black)
  ...   source = ImageFolder(folder, scale=4)
  ...   [image.shape for image in source[0]]
  [(2, 2, 3), (8, 8, 3)]
  """

  def __init__(
    self, folder: str | os.PathLike, *, scale: int, border: str = "mirror"
  ):
    self.scale = scale
    self.title = os.fspath(folder)
    self._border = border
    self._folder = pathlib.Path(folder)
    self._files = _list_images(self._folder)
    self.names = [file.as_posix() for file in self._files]

  def __getitem__(self, index: int) -> Pair:
    hr = self._read_hr(index)
    return Pair(self._make_lr(hr), hr)

  def lr_size(self, index: int) -> tuple[int, int]:
    """As `Source.lr_size`; makes no LR."""
    H, W, _ = self._read_hr(index).shape
    return H // self.scale, W // self.scale

  def crop(self, index: int, place: tuple[float, float], size: int) -> Pair:
    """As `Source.crop`; shrinks no more of HR than the crop's LR depends on."""
    hr = self._read_hr(index)
    k = self.scale
    whole = (hr.shape[0] // k, hr.shape[1] // k)
    starts = corner(whole, place, size, self.names[index])
    # A cubic kernel reaches two LR pixels beyond its own: with four around,
    # the crop's LR equals the whole image's to the last bit.
    begins = [max(start - 4, 0) for start in starts]
    ends = [
      min(start + size + 4, n) for start, n in zip(starts, whole, strict=True)
    ]
    rows, columns = (
      slice(k * b, k * e) for b, e in zip(begins, ends, strict=True)
    )
    hr = hr[rows, columns]
    top, left = (s - b for s, b in zip(starts, begins, strict=True))
    return Pair(
      self._make_lr(hr)[top : top + size, left : left + size],
      hr[k * top : k * (top + size), k * left : k * (left + size)],
    )

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of names, sizes and times of files."""
    kind = f"folder x{self.scale} {self._border}"
    return _fingerprint_files(kind, [self._folder / f for f in self._files])

  def _read_hr(self, index):
    name = self.names[index]
    hr = _read_rgb(self._folder / self._files[index], name)
    H, W = (n - n % self.scale for n in hr.shape[:2])
    if min(H, W) < self.scale:
      raise DataError(
        f"{text.printable(name)}: {hr.shape[0]}x{hr.shape[1]} is smaller than"
        f" one LR pixel at scale {self.scale}"
      )
    return hr[:H, :W]

  def _make_lr(self, hr):
    return imresize_uint8(hr, scale=1 / self.scale, border=self._border)


class SamplePhotos(ImageFolder):
  """The photos in scikit-image's wheel: enough to see training work.

  Nothing is downloaded, and scikit-image itself is not imported.

  Args:
    split: `"train"` (`TRAINING_PHOTOS`) or `"held_out"` (`HELD_OUT_PHOTOS`).
    scale: HR pixels per LR pixel.
    border: `"mirror"` or `"clamp"`, see `imresize_uint8`.

  Raises:
    DataError: If scikit-image is not installed, or `split` is unknown.

  >>> SamplePhotos("held_out", scale=4).names
  ['chelsea.png', 'coffee.png', 'rocket.jpg']
  """

  def __init__(self, split: str, *, scale: int, border: str = "mirror"):
    splits = {"train": TRAINING_PHOTOS, "held_out": HELD_OUT_PHOTOS}
    if split not in splits:
      raise DataError(
        f"sample photos have no split {split!r}; choose one of"
        f" {' '.join(splits)}"
      )
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
      raise DataError(
        "the sample photos come with scikit-image, which is not installed;"
        " pip install scikit-image, or give a folder of images"
      )
    self.scale = scale
    self.title = f"sample_photos:{split}"
    self._border = border
    self._folder = pathlib.Path(spec.submodule_search_locations[0]) / "data"
    self._files = [pathlib.Path(name) for name in splits[split]]
    missing = [f.name for f in self._files if not (self._folder / f).is_file()]
    if missing:
      raise DataError(
        f"scikit-image is installed without {' '.join(missing)}; reinstall it,"
        " or give a folder of images"
      )
    self.names = list(splits[split])


class PairFolder(Source):
  """A folder of HR images and one of LR images, matched by name.

  `art/0001.png` belongs to `art/0001.png` (any image suffix) or, as DIV2K
  names its files, `art/0001x4.png`. What has no partner, or two, is listed in
  `problems` and left out.

  Args:
    hr_folder: The folder of HR images, subfolders included.
    lr_folder: The folder of LR images.
    scale: HR pixels per LR pixel.

  Raises:
    DataError: If a folder does not exist or holds no image, or nothing
      matches.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   hr, lr = pathlib.Path(folder, "hr"), pathlib.Path(folder, "lr")
  ...   for path, size in ((hr / "1.png", 8), (lr / "1x4.png", 2)):
  ...     path.parent.mkdir()
  ...     black = images.Image(np.zeros((size, size, 3), np.uint8))
  ...     images.write_image(path, black)
  ...   source = PairFolder(hr, lr, scale=4)
  ...   source.names, source[0].lr.shape
  (['1.png'], (2, 2, 3))
  """

  def __init__(
    self,
    hr_folder: str | os.PathLike,
    lr_folder: str | os.PathLike,
    *,
    scale: int,
  ):
    self.scale = scale
    self.title = os.fspath(hr_folder)
    self._folders = pathlib.Path(hr_folder), pathlib.Path(lr_folder)
    hr_files, lr_files = (_list_images(f) for f in self._folders)
    hr_of, lr_of = _by_stem(hr_files), _by_stem(lr_files)
    problems, self._pairs = [], []
    claimed = set()
    for stem, hr in hr_of.items():
      names = [n for n in (stem, f"{stem}x{scale}") if n in lr_of]
      claimed.update(names)
      lr = [file for name in names for file in lr_of[name]]
      if not lr:
        shown = text.printable(stem)
        reason = f"no LR image {shown}.* or {shown}x{scale}.* in {lr_folder}"
      elif len(hr) > 1 or len(lr) > 1:
        found = (" ".join(map(text.printable, files)) for files in (hr, lr))
        reason = "ambiguous: HR {}, LR {}; leave one of each".format(*found)
      else:
        self._pairs.append((lr[0], hr[0]))
        continue
      problems.append(Problem(hr[0].as_posix(), reason))
    problems += [
      Problem(files[0].as_posix(), f"no HR image in {hr_folder}")
      for stem, files in lr_of.items()
      if stem not in claimed
    ]
    if not self._pairs:
      raise DataError(
        f"no image of {hr_folder} has its LR image in {lr_folder}: the first"
        f" names are {text.printable(hr_files[0])} and"
        f" {text.printable(lr_files[0])}; name LR as HR, or with x{scale} after"
        " it"
      )
    self.problems = problems
    self.names = [hr.as_posix() for _, hr in self._pairs]

  def __getitem__(self, index: int) -> Pair:
    lr, hr = self._pairs[index]
    hr_folder, lr_folder = self._folders
    name = self.names[index]
    read = _read_rgb(lr_folder / lr, name), _read_rgb(hr_folder / hr, name)
    return _matched(*read, self.scale, name)

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of names, sizes and times of files."""
    hr_folder, lr_folder = self._folders
    files = [hr_folder / hr for _, hr in self._pairs]
    files += [lr_folder / lr for lr, _ in self._pairs]
    return _fingerprint_files(f"pairs x{self.scale}", files)


def _by_stem(files):
  """Groups relative paths by themselves without suffix."""
  groups = {}
  for file in files:
    groups.setdefault(file.with_suffix("").as_posix(), []).append(file)
  return groups


class Div2k(Source):
  """DIV2K through TensorFlow Datasets, without TensorFlow.

  Reads what `esrgan_jax.data.prepare.prepare_div2k` wrote, by
  `tfds.data_source` from ArrayRecord files. TFDS keeps no file names, so that
  images are named by their place.

  Args:
    split: `"train"` or `"validation"`; slices such as `"train[:10]"` too.
    scale: HR pixels per LR pixel, that of `config`.
    config: TFDS's configuration, such as `"bicubic_x4"` or `"unknown_x4"`.
    data_dir: TFDS's folder; None for its own default.

  Raises:
    DataError: If tensorflow-datasets is missing, the data set is not
      prepared or not as ArrayRecord, or `scale` is not the configuration's.

  >>> Div2k("train", scale=2, config="bicubic_x4")
  Traceback (most recent call last):
  ...
  esrgan_jax.data.sources.DataError: div2k/bicubic_x4 is of scale 4, not 2
  """

  def __init__(
    self,
    split: str,
    *,
    scale: int,
    config: str = "bicubic_x4",
    data_dir: str | os.PathLike | None = None,
  ):
    if not config.endswith(f"_x{scale}"):
      raise DataError(
        f"div2k/{config} is of scale {config.rpartition('_x')[2]}, not {scale}"
      )
    try:
      builder = prepare_lib.div2k_builder(data_dir, config=config)
    except (ImportError, ValueError) as error:
      raise DataError(str(error)) from error
    if not builder.is_prepared():
      raise DataError(
        f"div2k/{config} is not prepared in {builder.data_path}; run python -m"
        f" esrgan_jax.data.prepare --config {config} --data_dir"
        f" {data_dir or '~/tensorflow_datasets'} (--manual_dir with the"
        " official zips where there is no network)"
      )
    try:
      self._data = builder.as_data_source(split=split)
    except NotImplementedError as error:
      raise DataError(
        f"{builder.data_path} was prepared as {builder.info.file_format.value},"
        " which has no random access; prepare it again as array_record, in"
        " another data_dir"
      ) from error
    except ValueError as error:
      raise DataError(f"div2k/{config}: {error}") from error
    self.scale = scale
    self._path = builder.data_path  # An epath: it may be in a bucket.
    self.title = f"div2k/{config}:{split}"
    self.names = [f"{self.title} #{i}" for i in range(len(self._data))]

  def __getitem__(self, index: int) -> Pair:
    name = self.names[index]
    try:
      example = self._data[index]
    except Exception as error:
      # array_record, protobuf and Pillow, each with errors of its own.
      reason = text.printable(" ".join(str(error).split()))
      reason = reason or type(error).__name__
      raise DataError(f"{name}: cannot be read: {reason}") from error
    lr, hr = np.asarray(example["lr"]), np.asarray(example["hr"])
    return _matched(lr, hr, self.scale, name)

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of the data set's files."""
    digest = hashlib.sha256(self.title.encode())
    for file in sorted(self._path.iterdir()):
      stat = file.stat()
      digest.update(f"\n{file}\0{stat.length}\0{stat.mtime}".encode())
    return digest.hexdigest()


class SourceList(Source):
  """Several sources, one after the other.

  A name that several of them have is given its source's title.

  Args:
    sources: At least one, all of one scale.

  Raises:
    DataError: If there is none, or the scales differ.

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
    counts = collections.Counter(n for source in sources for n in source.names)
    self.names = [
      name if counts[name] == 1 else f"{source.title}/{name}"
      for source in sources
      for name in source.names
    ]
    self.problems = [p for source in sources for p in source.problems]
    self._sources = list(sources)
    self._ends = np.cumsum([len(source) for source in sources]).tolist()

  def __getitem__(self, index: int) -> Pair:
    source, index = self._find(index)
    return source[index]

  def lr_size(self, index: int) -> tuple[int, int]:
    """As `Source.lr_size`."""
    source, index = self._find(index)
    return source.lr_size(index)

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

  >>> photos = Subset(SamplePhotos("held_out", scale=4), [2, 0])
  >>> photos.names, photos[1].lr.shape
  (['rocket.jpg', 'chelsea.png'], (75, 112, 3))
  """

  def __init__(self, source: Source, indices: Sequence[int]):
    self.scale, self.title = source.scale, source.title
    self.names = [source.names[i] for i in indices]
    self.problems = source.problems
    self._source, self._indices = source, list(indices)

  def __getitem__(self, index: int) -> Pair:
    return self._source[self._indices[index]]

  def lr_size(self, index: int) -> tuple[int, int]:
    """As `Source.lr_size`."""
    return self._source.lr_size(self._indices[index])

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


def split_spec(spec: Any) -> list[Any]:
  """Returns the sources that a config's value names, each by itself.

  Args:
    spec: As of `open_source`. A text with commas names several, unless there
      is a folder, or a pair of folders, of just that name.

  Returns:
    The specs, none of them a list.

  Raises:
    DataError: If it is of no type that names sources.

  >>> split_spec("sample_photos, sample_photos:held_out")
  ['sample_photos', 'sample_photos:held_out']
  """
  if isinstance(spec, str):
    folders = map(os.path.expanduser, spec.split("::"))
    if "," not in spec or all(map(os.path.isdir, folders)):
      return [spec]
    return [part.strip() for part in spec.split(",") if part.strip()]
  if isinstance(spec, os.PathLike) or hasattr(spec, "keys"):
    return [spec]
  if isinstance(spec, Sequence):
    return [part for one in spec for part in split_spec(one)]
  raise DataError(
    f"a source is {spec!r}; name a folder or a data set, or several in a list"
  )


def open_source(
  spec: str | os.PathLike | Mapping[str, str] | Sequence,
  *,
  scale: int,
  data_dir: str | os.PathLike | None = None,
  border: str = "mirror",
) -> Source:
  """Opens what a config names.

  Args:
    spec: `"sample_photos"` or `"sample_photos:held_out"`;
      `"div2k/bicubic_x4"` or `"div2k/bicubic_x4:validation"`, any of TFDS's
      configurations and splits; a folder of HR images; a pair of folders,
      `{"hr": HR, "lr": LR}` or `"HR::LR"`; or several of these, in a list or
      with commas between them. A folder that is named like one of the others:
      put `./` before it. A folder with a comma in its name is taken for one if
      it exists.
    scale: HR pixels per LR pixel.
    data_dir: TFDS's folder, for DIV2K.
    border: How LR is made from folders of HR, see `imresize_uint8`.

  Returns:
    The source; of several, one after the other.

  Raises:
    DataError: If it cannot be opened; the message says why.

  >>> open_source("sample_photos,sample_photos:held_out", scale=4).names[-1]
  'rocket.jpg'
  """
  parts = split_spec(spec)
  if spec == "":
    raise DataError("a source is an empty text; name a folder or a data set")
  found = []
  for part in parts:
    try:
      found.append(_open(part, scale, data_dir, border))
    except DataError as error:
      if not isinstance(spec, str) or spec == part:
        raise
      raise DataError(
        f"{error} (a part of {spec!r}: commas divide, as there is no such"
        " folder)"
      ) from error
  return found[0] if len(found) == 1 else SourceList(found)


def _open(spec, scale, data_dir, border):
  """Opens a single source."""
  if isinstance(spec, os.PathLike):
    return ImageFolder(spec, scale=scale, border=border)
  if isinstance(spec, str):
    if match := re.fullmatch(r"sample_photos(?::(.*))?", spec):
      return SamplePhotos(match[1] or "train", scale=scale, border=border)
    if match := re.fullmatch(r"div2k/([^:/]*)(?::(.*))?", spec):
      split = match[2] or "train"
      return Div2k(split, scale=scale, config=match[1], data_dir=data_dir)
    if "::" not in spec:
      return ImageFolder(_folder(spec), scale=scale, border=border)
    spec = dict(zip(("hr", "lr"), spec.split("::", 1), strict=True))
  if set(spec.keys()) != {"hr", "lr"}:
    raise DataError(
      f"a pair of folders has the keys hr and lr, got {sorted(spec.keys())}"
    )
  return PairFolder(_folder(spec["hr"]), _folder(spec["lr"]), scale=scale)


def _folder(name):
  """Returns a folder's path; whether there is such a folder, others tell."""
  if not isinstance(name, str | os.PathLike) or not os.fspath(name):
    raise DataError(f"a folder of images is {name!r}; give its path")
  if "://" in os.fspath(name):
    raise DataError(
      f"{name}: images are read from local folders; copy them from there"
      " first, or mount the bucket"
    )
  return os.path.expanduser(name)
