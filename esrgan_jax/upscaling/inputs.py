"""Finds the images and clips that a user means: files, folders, patterns."""

from __future__ import annotations

import collections
import dataclasses
import glob
import importlib.util
import os
import pathlib
from collections.abc import Iterable, Sequence

from esrgan_jax import extras, images, video
from esrgan_jax.images.folders import HIDDEN, NO_FILES, SUBFOLDERS, list_images
from esrgan_jax.images.patterns import match_images
from esrgan_jax.text import explain, printable

__all__ = ["Input", "Inputs", "find_inputs"]


@dataclasses.dataclass(frozen=True)
class Input:
  """An image that is meant.

  Attributes:
    path: The file.
    below: Its folder, below the one that was named: `.` for the files of that,
      and for what was named itself.
    named: Whether it was named itself, and not found.
  """

  path: pathlib.Path
  below: pathlib.PurePath = dataclasses.field(default_factory=pathlib.PurePath)
  named: bool = True


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What was found.

  Attributes:
    found: The images in the order in which they were named, each file once.
    notes: Sentences on what was left out, and why.
    problems: What cannot be meant, or not be read, a line each.
  """

  found: tuple[Input, ...]
  notes: tuple[str, ...] = ()
  problems: tuple[str, ...] = ()


def find_inputs(
  texts: Iterable[str],
  *,
  recursive: bool = False,
  results: str | os.PathLike[str] | None = None,
) -> Inputs:
  """Finds the files that texts stand for.

  A file that is named is meant, whatever it is. Of a folder, and of what a
  pattern matches, images are meant, and clips where they can be read, by their
  suffixes, and nothing hidden. In a
  pattern, `**` stands for any number of folders. A text that names something
  that is there is no pattern.

  Args:
    texts: Files, folders and patterns.
    recursive: Whether a folder's subfolders are meant as well.
    results: The folder for results; where it lies in a folder that is looked
      into, it is not.

  Returns:
    What was found. A text that stands for nothing is one of its problems.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   for name in ("a.png", "b.PNG", "c.txt"):
  ...     pathlib.Path(folder, name).touch()
  ...   inputs = find_inputs([f"{folder}/b.PNG", folder, f"{folder}/no.png"])
  ...   [each.path.name for each in inputs.found]
  ...   [note.removeprefix(folder) for note in inputs.notes]
  ...   [problem.removeprefix(folder) for problem in inputs.problems]
  ['b.PNG', 'a.png']
  [': left out 1 .txt', '/b.PNG is an input already; left out']
  ['/no.png: no such file']
  """
  found, notes, problems = [], [], []
  seen: dict[tuple[int, int], pathlib.Path] = {}
  again = []
  for text in texts:
    try:
      inside = _meant(text, recursive, results, notes, problems)
    except (OSError, ValueError) as error:
      problems.append(explain(error))
      continue
    for each in inside:
      try:
        status = os.stat(each.path)
      except OSError as error:
        problems.append(explain(error))
        continue
      first = seen.setdefault((status.st_dev, status.st_ino), each.path)
      if first is each.path:
        found.append(each)
      else:
        again.append((each.path, first))
  return Inputs(tuple(found), (*notes, *_said_again(again)), tuple(problems))


def _said_again(again: Sequence[tuple[pathlib.Path, pathlib.Path]]):
  for path, first in again[:1]:
    other = "" if path == first else f", as {printable(first)}"
    more = len(again) - 1
    rest = f", and {more} more likewise" if more else ""
    yield f"{printable(path)} is an input already{other}; left out{rest}"


def _meant(text, recursive, results, notes, problems) -> list[Input]:
  """Returns what one text stands for, at least one file."""
  if not text:
    raise ValueError("'': no such file; . is the current folder")
  path = pathlib.Path(text)
  if images.is_zarr(path):
    return [Input(path)]
  if path.is_dir():
    closed = _closed(path, results)
    listing = list_images(
      path, recursive=recursive, keep=_is_readable, closed=closed
    )
    problems += map(explain, listing.problems)
    left_out = _listed(listing.left_out)
    if not listing.files:
      if listing.problems:
        return []
      found = f", but {left_out}" if left_out else ""
      raise ValueError(f"{text}: no image in this folder{found}")
    if left_out:
      notes.append(f"{printable(text)}: left out {left_out}")
    return [
      Input(file, file.parent.relative_to(path), named=False)
      for file in listing.files
    ]
  if path.is_file():
    return [Input(path)]
  if os.path.lexists(path):
    if path.exists():
      raise ValueError(f"{text}: not a file; name an image, or a folder")
    raise ValueError(
      f"{text}: a link to {os.readlink(path)}, which is not there"
    )
  if glob.has_magic(text):
    found = _matching(text, notes, problems)
    if not found:
      raise ValueError(f"{text}: nothing matches")
    return found
  raise ValueError(f"{text}: no such file")


def _closed(folder, results):
  if results is None or not os.path.isdir(results):
    return ()
  if os.path.samefile(folder, results):
    return ()
  return (os.path.realpath(results),)


def _matching(text, notes, problems) -> list[Input]:
  """Returns the images that a pattern stands for."""
  listing = match_images(text, keep=_is_readable)
  problems += map(explain, listing.problems)
  if listing.left_out:
    notes.append(f"{printable(text)}: left out {_listed(listing.left_out)}")
  return [Input(file, named=False) for file in listing.files]


# Suffix -> the module that reads such files, and the extra that brings it.
_READ_BY = {
  **dict.fromkeys((".heic", ".heif", ".hif"), ("pi_heif", "heif")),
  **dict.fromkeys(video.INPUT_SUFFIXES, ("av", "video")),
}


def _is_readable(path: str | pathlib.Path) -> bool:
  """Tells whether a suffix is one of an image or clip that is read here."""
  if not (images.is_image_suffix(path) or video.is_clip_suffix(path)):
    return False
  module, _ = _READ_BY.get(pathlib.PurePath(path).suffix.lower(), (None, None))
  return module is None or importlib.util.find_spec(module) is not None


_MOST_KINDS = 6


def _listed(left_out: collections.Counter[str]) -> str:
  """Returns how many of what were left out, on one line."""
  kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
  shown = [
    f"{count} {_kind(kind, count)}" for kind, count in kinds[:_MOST_KINDS]
  ]
  if others := sum(count for _, count in kinds[_MOST_KINDS:]):
    shown.append(f"{others} others")
  return ", ".join(shown)


def _kind(kind: str, count: int) -> str:
  words = {
    SUBFOLDERS: "subfolders (--recursive takes them)",
    NO_FILES: NO_FILES,
    HIDDEN: "hidden",
    "": "without a suffix",
  }
  said = words.get(kind, printable(kind, limit=20))
  if kind in _READ_BY:
    said += f" ({extras.pip_install(_READ_BY[kind][1])} to read them)"
  if count == 1:
    said = said.replace("folders", "folder").replace("them", "it")
    said = said.replace("links or devices", "link or device")
  return said
