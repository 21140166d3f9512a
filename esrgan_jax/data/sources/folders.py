"""Folders of images: HR alone, or HR and LR."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from esrgan_jax import images, text
from esrgan_jax.data.sources.base import (
  DataError,
  Pair,
  Problem,
  Source,
  corner,
  matched,
)
from esrgan_jax.images.folders import list_images
from esrgan_jax.resize import imresize_uint8

__all__ = ["ImageFile", "ImageFolder", "PairFolder"]


def _read_rgb(path: pathlib.Path, name: str, max_pixels: int) -> np.ndarray:
  """Reads uint8 RGB: grey repeated, 16 bits rounded, alpha dropped."""
  try:
    image = images.read_image(path, max_pixels=max_pixels)
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


def _list_images(
  folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[Problem]]:
  """Lists image files below a folder, sorted, as relative paths."""
  if not folder.is_dir():
    what = "not a folder" if folder.exists() else "no such folder"
    raise DataError(f"{folder}: {what}; give the folder that holds the images")
  try:
    listing = list_images(folder, recursive=True)
  except OSError as error:
    raise DataError(f"{folder}: {text.explain(error)}") from error
  found = listing.files
  if not found:
    raise DataError(
      f"{folder}: no image in it; it should hold files that end in"
      f" {' '.join(sorted(images.INPUT_SUFFIXES))}"
    )
  problems = [
    Problem(str(error.filename), error.strerror or type(error).__name__)
    for error in listing.problems
  ]
  return [file.relative_to(folder) for file in found], problems


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
    max_pixels: Larger images are refused, see `images.read_image`.

  Raises:
    DataError: If the folder does not exist or holds no image.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   black = images.Image(np.zeros((9, 8, 3), np.uint8))
  ...   _ = images.write_image(pathlib.Path(folder) / "black.png", black)
  ...   source = ImageFolder(folder, scale=4)
  ...   [image.shape for image in source[0]]
  [(2, 2, 3), (8, 8, 3)]
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
    folder = pathlib.Path(folder)
    files, self.problems = _list_images(folder)
    self._set(folder, files, scale, border, max_pixels)

  def _set(self, folder, files, scale, border, max_pixels):
    self.scale = scale
    self.lr_origin = f"made by bicubic imresize ({border})"
    self.names = [file.as_posix() for file in files]
    self._folder, self._files = folder, files
    self._border, self._max_pixels = border, max_pixels

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
    hr = _read_rgb(self._folder / self._files[index], name, self._max_pixels)
    H, W = (n - n % self.scale for n in hr.shape[:2])
    if min(H, W) < self.scale:
      raise DataError(
        f"{text.printable(name)}: {hr.shape[0]}x{hr.shape[1]} is smaller than"
        f" one LR pixel at scale {self.scale}"
      )
    return hr[:H, :W]

  def _make_lr(self, hr):
    return imresize_uint8(hr, scale=1 / self.scale, border=self._border)


class ImageFile(ImageFolder):
  """One HR image; LR is made from it.

  Args:
    path: The file.
    scale: HR pixels per LR pixel.
    border: As of `ImageFolder`.
    max_pixels: Likewise.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   black = images.Image(np.zeros((9, 8, 3), np.uint8))
  ...   path = pathlib.Path(folder) / "black.png"
  ...   _ = images.write_image(path, black)
  ...   source = ImageFile(path, scale=4)
  ...   source.names, [image.shape for image in source[0]]
  (['black.png'], [(2, 2, 3), (8, 8, 3)])
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    scale: int,
    border: str = "mirror",
    max_pixels: int = images.MAX_PIXELS,
  ):
    self.title, path = os.fspath(path), pathlib.Path(path)
    file = pathlib.Path(path.name)
    self._set(path.parent, [file], scale, border, max_pixels)


class PairFolder(Source):
  """A folder of HR images and one of LR images, matched by name.

  `art/0001.png` belongs to `art/0001.png` (any image suffix) or, as DIV2K
  names its files, `art/0001x4.png`. What has no partner, or two, is listed in
  `problems` and left out.

  Args:
    hr_folder: The folder of HR images, subfolders included.
    lr_folder: The folder of LR images.
    scale: HR pixels per LR pixel.
    max_pixels: Larger images are refused, see `images.read_image`.

  Raises:
    DataError: If a folder does not exist or holds no image, or nothing
      matches.

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
    self._folders = pathlib.Path(hr_folder), pathlib.Path(lr_folder)
    hr_files, hr_problems = _list_images(self._folders[0])
    lr_files, lr_problems = _list_images(self._folders[1])
    hr_of, lr_of = _by_stem(hr_files), _by_stem(lr_files)
    problems, self._pairs = [*hr_problems, *lr_problems], []
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
    lr, hr = (
      _read_rgb(path, name, self._max_pixels)
      for path in (lr_folder / lr, hr_folder / hr)
    )
    return matched(lr, hr, self.scale, name)

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
