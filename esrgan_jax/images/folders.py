"""The image files of a folder, whatever links and strangers have put there."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Mapping

from esrgan_jax.images.pixels import is_image_suffix

__all__ = ["Listing", "list_images"]

HIDDEN, SUBFOLDERS, NO_FILES = "hidden", "subfolders", "links or devices"


@dataclasses.dataclass(frozen=True)
class Listing:
  """What is in a folder.

  Attributes:
    files: The images, sorted, each with the folder's path before it.
    left_out: How many of what else, by suffix; subfolders that were not looked
      into, hidden images, and what is no file, by a word.
    problems: Why folders below it could not be read.
  """

  files: tuple[pathlib.Path, ...]
  left_out: Mapping[str, int]
  problems: tuple[OSError, ...]


def list_images(
  folder: str | os.PathLike[str],
  *,
  recursive: bool,
  keep: Callable[[str], bool] = is_image_suffix,
  closed: Collection[str] = (),
) -> Listing:
  """Lists the images of a folder by their names; none is opened.

  Hidden files and folders are left alone: they are what systems and programs
  keep for themselves, such as the `._NAME` of a Mac's discs and files that are
  being written. Links are followed, and a folder is looked into once: by its
  own name where that is below here.

  Args:
    folder: The folder.
    recursive: Whether to look into its subfolders.
    keep: Tells by its name whether a file is one.
    closed: Folders not to look into, by their real paths.

  Returns:
    The listing. Several names of one file are several files.

  Raises:
    OSError: If the folder itself cannot be read.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   for name in ("b.png", "a.jpg", "._a.jpg", "notes.txt"):
  ...     pathlib.Path(folder, name).touch()
  ...   os.symlink(".", os.path.join(folder, "loop"))
  ...   found = list_images(folder, recursive=True)
  ...   [file.name for file in found.files], sorted(found.left_out)
  (['a.jpg', 'b.png'], ['.txt', 'hidden'])
  """
  files, problems = [], []
  left_out = collections.Counter()
  seen = set(closed)
  own, linked = [pathlib.Path(folder)], collections.deque()
  while own or linked:
    here = own.pop() if own else linked.popleft()
    real = os.path.realpath(here)
    if real in seen:
      continue
    seen.add(real)
    try:
      with os.scandir(here) as entries:
        entries = sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
      if here == pathlib.Path(folder):
        raise
      problems.append(error)
      continue
    for entry in entries:
      kind = _kind_of(entry)
      if entry.name.startswith("."):
        if kind == "file" and keep(entry.name):
          left_out[HIDDEN] += 1
      elif kind == "folder":
        if not recursive:
          here_too = os.path.realpath(entry.path) not in seen
          left_out[SUBFOLDERS] += here_too
        elif entry.is_symlink():
          linked.append(here / entry.name)
        else:
          own.append(here / entry.name)
      elif not keep(entry.name):
        left_out[pathlib.PurePath(entry.name).suffix.lower()] += 1
      elif kind == "file":
        files.append(here / entry.name)
      else:
        left_out[NO_FILES] += 1
  return Listing(tuple(sorted(files)), +left_out, tuple(problems))


def _kind_of(entry):
  try:
    if entry.is_dir():
      return "folder"
    return "file" if entry.is_file() else ""
  except OSError:  # A link that leads to itself, or where nobody may look.
    return ""
