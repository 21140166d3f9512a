"""Image files of folders and patterns: HR alone, HR and LR, or LR alone."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from esrgan_jax import images, text
from esrgan_jax.data.sources.base import (
  DataError,
  Pair,
  Problem,
  Source,
  matched,
)
from esrgan_jax.data.sources.shrunk import Shrunk, to_rgb8
from esrgan_jax.images import patterns
from esrgan_jax.images.folders import list_images

__all__ = ["ImageFolder", "LrFolder", "PairFolder"]


def read_rgb(path: pathlib.Path, name: str, max_pixels: int) -> np.ndarray:
  """Reads uint8 RGB: grey repeated, 16 bits rounded, alpha dropped."""
  try:
    image = images.read_image(path, max_pixels=max_pixels)
  except images.ImageError as error:
    # A name within its source says more than the whole path.
    reason = str(error).removeprefix(f"{text.printable(path, limit=4096)}: ")
    raise DataError(f"{text.printable(name)}: {reason}") from error
  return to_rgb8(image)


class _Listed(NamedTuple):
  """The images of a folder or a pattern, or one; files are below the folder."""

  folder: pathlib.Path
  files: list[pathlib.Path]
  problems: list[Problem]
  key: Callable[[pathlib.Path], str] | None = None

  def by_name(self) -> dict[str, list[pathlib.Path]]:
    """Returns the files by their paths below the folder, without suffix."""
    return _grouped(self.files, lambda file: file.with_suffix("").as_posix())

  def by_wildcards(self) -> dict[str, list[pathlib.Path]]:
    """Returns them by what a pattern's wildcards stand for.

    A folder's by name; a file that was named has no wildcards.
    """
    return _grouped(self.files, self.key) if self.key else self.by_name()


def _grouped(files, key):
  groups: dict[str, list[pathlib.Path]] = {}
  for file in files:
    groups.setdefault(key(file), []).append(file)
  return groups


def _list_images(place: str | os.PathLike) -> _Listed:
  """Lists image files below a folder, or of a pattern, sorted; or a file."""
  key, folder = None, pathlib.Path(place)
  if folder.is_file():
    file = pathlib.Path(folder.name)
    return _Listed(folder.parent, [file], [], key=lambda file: "")
  if patterns.is_pattern(place):
    pattern = os.fspath(place)
    folder = patterns.fixed_part(pattern)
    listing = patterns.match_images(pattern)
    if not listing.files:
      others = sum(listing.left_out.values())
      but = f", but {others} of other kinds" if others else ""
      raise DataError(
        f"{pattern}: no image matches this pattern{but}; ** stands for any"
        " number of folders"
      )

    def key(file):
      return patterns.wildcards(pattern, folder / file)

  else:
    if not folder.is_dir():
      what = "not a folder" if folder.exists() else "no such folder"
      raise DataError(
        f"{folder}: {what}; give the folder that holds the images, or a pattern"
        " such as 'photos/*.png'"
      )
    try:
      listing = list_images(folder, recursive=True)
    except OSError as error:
      raise DataError(f"{folder}: {text.explain(error)}") from error
    if not listing.files:
      raise DataError(
        f"{folder}: no image in it; it should hold files that end in"
        f" {' '.join(sorted(images.INPUT_SUFFIXES))}"
      )
  problems = [
    Problem(str(error.filename), error.strerror or type(error).__name__)
    for error in listing.problems
  ]
  files = [file.relative_to(folder) for file in listing.files]
  return _Listed(folder, files, problems, key)


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


class ImageFolder(Shrunk):
  """HR images of a folder, subfolders included, or of a pattern; or one.

  LR is made from them, see `Shrunk`. Palettes, grey, 16 bits and transparency
  become 8-bit RGB (`to_rgb8`).

  Args:
    folder: The folder, a file, or a pattern such as `"photos/20*/**/*.png"`.
      What names something that is there is no pattern.
    scale: HR pixels per LR pixel.
    border: `"mirror"` or `"clamp"`, see `imresize_uint8`.
    max_pixels: Larger images are refused, see `images.read_image`.

  Raises:
    DataError: If the folder does not exist or holds no image, or none matches.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   black = images.Image(np.zeros((9, 8, 3), np.uint8))
  ...   _ = images.write_image(pathlib.Path(folder) / "black.png", black)
  ...   source = ImageFolder(folder, scale=4)
  ...   [image.shape for image in source[0]]
  ...   ImageFolder(f"{folder}/*.png", scale=4).names
  [(2, 2, 3), (8, 8, 3)]
  ['black.png']
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    scale: int,
    border: str = "mirror",
    max_pixels: int = images.MAX_PIXELS,
  ):
    self.title = os.fspath(folder)
    listed = _list_images(folder)
    self.problems = listed.problems
    self._set(listed.folder, listed.files, scale, border, max_pixels)

  def _set(self, folder, files, scale, border, max_pixels):
    self.scale, self.border = scale, border
    self.names = [file.as_posix() for file in files]
    self._folder, self._files = folder, files
    self._max_pixels = max_pixels

  def read_hr(self, index: int) -> np.ndarray:
    """As `Shrunk.read_hr`."""
    path, name = self._folder / self._files[index], self.names[index]
    return read_rgb(path, name, self._max_pixels)

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of names, sizes and times of files."""
    kind = f"folder x{self.scale} {self.border}"
    return _fingerprint_files(kind, [self._folder / f for f in self._files])


class PairFolder(Source):
  """HR images and LR images, of folders or patterns, matched by name.

  `art/0001.png` belongs to `art/0001.png` (any image suffix) or, as DIV2K
  names its files, `art/0001x4.png`: below the folders, or the parts of the
  patterns that have no wildcard. Where no name matches, those belong together
  whose wildcards stand for the same: `Set5/*_HR.png` and `Set5/*_LR.png`, or
  two files. What has no partner, or two, is listed in `problems` and left out.

  Args:
    hr_folder: The folder of HR images, subfolders included; a pattern; a file.
    lr_folder: Of LR images, likewise.
    scale: HR pixels per LR pixel.
    max_pixels: Larger images are refused, see `images.read_image`.

  Raises:
    DataError: If a folder does not exist or holds no image, no image matches
      a pattern, or none has a partner.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   hr, lr = pathlib.Path(folder, "hr"), pathlib.Path(folder, "lr")
  ...   for path, size in ((hr / "1.png", 8), (lr / "1x4.png", 2)):
  ...     path.parent.mkdir()
  ...     black = images.Image(np.zeros((size, size, 3), np.uint8))
  ...     _ = images.write_image(path, black)
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
    max_pixels: int = images.MAX_PIXELS,
  ):
    self.scale = scale
    self.title = os.fspath(hr_folder)
    self.lr_origin = os.fspath(lr_folder)
    self._max_pixels = max_pixels
    hr_found, lr_found = map(_list_images, (hr_folder, lr_folder))
    self._folders = hr_found.folder, lr_found.folder
    hr_of, lr_of = hr_found.by_name(), lr_found.by_name()
    said = "no LR image {0}.* or {0}x{1}.* in {2}"
    if not any(_partners(stem, lr_of, scale) for stem in hr_of):
      hr_of, lr_of = hr_found.by_wildcards(), lr_found.by_wildcards()
      said = "no image of {2} has {0} or {0}x{1} for the wildcards"
    problems, self._pairs = [*hr_found.problems, *lr_found.problems], []
    claimed = set()
    for stem, hr in hr_of.items():
      names = _partners(stem, lr_of, scale)
      claimed.update(names)
      lr = [file for name in names for file in lr_of[name]]
      if not lr:
        reason = said.format(text.printable(stem), scale, lr_folder)
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
        f" names are {text.printable(hr_found.files[0])} and"
        f" {text.printable(lr_found.files[0])}; name LR as HR, or with"
        f" x{scale} after it, or give patterns whose wildcards stand for the"
        " same"
      )
    self.problems = problems
    self.names = [hr.as_posix() for _, hr in self._pairs]

  def __getitem__(self, index: int) -> Pair:
    lr, hr = self._pairs[index]
    hr_folder, lr_folder = self._folders
    name = self.names[index]
    lr, hr = (
      read_rgb(path, name, self._max_pixels)
      for path in (lr_folder / lr, hr_folder / hr)
    )
    return matched(lr, hr, self.scale, name)

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of names, sizes and times of files."""
    hr_folder, lr_folder = self._folders
    files = [hr_folder / hr for _, hr in self._pairs]
    files += [lr_folder / lr for lr, _ in self._pairs]
    return _fingerprint_files(f"pairs x{self.scale}", files)


class LrFolder(Source):
  """LR images of a folder, subfolders included, or of a pattern; or one.

  There is no HR: they are for a teacher to upscale (`data.teaching`), which any
  photo is good for, at its full size. HR of a pair is black, and takes no
  memory.

  Args:
    folder: The folder, a file, or a pattern, as of `ImageFolder`.
    scale: HR pixels per LR pixel.
    max_pixels: Larger images are refused, see `images.read_image`.

  Raises:
    DataError: If the folder does not exist or holds no image, or none matches.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   black = images.Image(np.zeros((9, 8, 3), np.uint8))
  ...   _ = images.write_image(pathlib.Path(folder) / "black.png", black)
  ...   source = LrFolder(folder, scale=4)
  ...   [image.shape for image in source[0]], source.has_hr
  ([(9, 8, 3), (36, 32, 3)], False)
  """

  lr_origin = "the photos themselves"
  has_hr = False

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    scale: int,
    max_pixels: int = images.MAX_PIXELS,
  ):
    self.scale = scale
    self.title = os.fspath(folder)
    listed = _list_images(folder)
    self.problems = listed.problems
    self.names = [file.as_posix() for file in listed.files]
    self._files = [listed.folder / file for file in listed.files]
    self._max_pixels = max_pixels

  def read_lr(self, index: int) -> np.ndarray:
    """As `Source.read_lr`."""
    return read_rgb(self._files[index], self.names[index], self._max_pixels)

  def __getitem__(self, index: int) -> Pair:
    lr = self.read_lr(index)
    h, w, channels = lr.shape
    size = (self.scale * h, self.scale * w, channels)
    return Pair(lr, np.broadcast_to(np.uint8(0), size))

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of names, sizes and times of files."""
    return _fingerprint_files(f"lr x{self.scale}", self._files)


def _partners(stem, lr_of, scale):
  """Returns the names of LR images that an HR image of this name may have."""
  return [name for name in (stem, f"{stem}x{scale}") if name in lr_of]
