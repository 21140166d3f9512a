"""The image files that a pattern stands for, and what its wildcards do."""

from __future__ import annotations

import collections
import fnmatch
import glob
import os
import pathlib
import re
from collections.abc import Callable, Sequence

from esrgan_jax.images.folders import NO_FILES, Listing, list_images
from esrgan_jax.images.pixels import is_image_suffix

__all__ = ["fixed_part", "is_pattern", "match_images", "wildcards"]


def is_pattern(text: str | os.PathLike[str]) -> bool:
  """Tells whether a text is a pattern: what names something there is none.

  >>> is_pattern("photos/*.png"), is_pattern("photos")
  (True, False)
  """
  return glob.has_magic(os.fspath(text)) and not os.path.lexists(text)


def match_images(
  pattern: str,
  *,
  keep: Callable[[pathlib.Path], bool] = is_image_suffix,
) -> Listing:
  """Lists the images that a pattern stands for; none is opened.

  Nothing hidden is meant, unless the pattern says so. `**` stands for any
  number of folders; links are followed as by `list_images`.

  Args:
    pattern: `*`, `?`, `[...]` and `**`, as a shell has them.
    keep: Tells whether a file is an image. Where the pattern spells out a
      suffix, all that match are.

  Returns:
    The listing; its `left_out` is of what matched and is no image.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   for name in ("b.png", "a.jpg", "notes.txt"):
  ...     pathlib.Path(folder, name).touch()
  ...   found = match_images(f"{folder}/*")
  ...   [file.name for file in found.files], dict(found.left_out)
  (['a.jpg', 'b.png'], {'.txt': 1})
  """
  paths, problems = _matching(pattern)
  suffix = pathlib.PurePath(pattern).suffix
  asked_for = suffix and not glob.has_magic(suffix)
  files, left_out = [], collections.Counter()
  for path in paths:
    if path.is_dir():
      left_out["folders"] += 1
    elif not path.is_file():
      left_out[NO_FILES] += 1
    elif asked_for or keep(path):
      files.append(path)
    else:
      left_out[path.suffix.lower()] += 1
  return Listing(tuple(sorted(files)), left_out, tuple(problems))


def _matching(pattern: str) -> tuple[list[pathlib.Path], list[OSError]]:
  """Returns what matches, whatever it is, and what could not be looked into."""
  parts = pathlib.PurePath(pattern).parts
  if "**" not in parts:
    return [pathlib.Path(each) for each in glob.glob(pattern)], []
  start = parts.index("**")
  base, rest = os.path.join(*parts[:start], ""), parts[start:]
  paths, problems = [], []
  for folder in glob.glob(base) if glob.has_magic(base) else [base]:
    if not os.path.isdir(folder or "."):
      continue
    # Not by `glob`, which walks in circles where links lead back.
    listing = list_images(folder or ".", recursive=True, keep=lambda _: True)
    problems += listing.problems
    paths += [
      each
      for each in listing.files
      if _matches(rest, each.relative_to(folder or ".").parts)
    ]
  return paths, problems


def _matches(pattern: Sequence[str], names: Sequence[str]) -> bool:
  """Tells whether a path's parts are those of a pattern."""
  if not pattern:
    return not names
  if pattern[0] == "**":
    return any(
      _matches(pattern[1:], names[skipped:])
      for skipped in range(len(names) + 1)
    )
  return bool(names) and (
    fnmatch.fnmatch(names[0], pattern[0]) and _matches(pattern[1:], names[1:])
  )


def fixed_part(pattern: str) -> pathlib.Path:
  """Returns the folder below which everything is that a pattern stands for.

  >>> fixed_part("photos/20*/**/*.png").as_posix()
  'photos'
  """
  parts = pathlib.Path(pattern).parts
  first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
  return pathlib.Path(*parts[:first])


def wildcards(pattern: str, path: pathlib.PurePath) -> str:
  """Returns what a pattern's wildcards stand for, with slashes between.

  Args:
    pattern: The pattern.
    path: A file that it stands for. Its suffix does not count.

  Returns:
    The parts of the path; the path itself, without its suffix, where the
    pattern's wildcards are in its suffix.

  >>> wildcards("DIV2K/*_HR.png", pathlib.Path("DIV2K/0801_HR.png"))
  '0801'
  >>> wildcards("set?/**/*_LR.*", pathlib.Path("set5/a/b/1_LR.png"))
  '5/a/b/1'
  """
  stem = path.with_suffix("").as_posix()
  pure = pathlib.PurePath(pattern)
  # The last wildcard of `HR/*` stands for a name with its suffix.
  text = pure.with_suffix("").as_posix() if pure.suffix else pure.as_posix()
  found = re.fullmatch(_WILDCARD.sub(_group, text), stem)
  if not found:
    return stem
  return "/".join(filter(None, (each.strip("/") for each in found.groups())))


# A wildcard, or what stands for itself.
_WILDCARD = re.compile(r"(?<![^/])\*\*(?:/|$)|\*|\?|\[!?\]?[^]/]*\]|.")


def _group(wildcard: re.Match[str]) -> str:
  text = wildcard[0]
  if text.startswith("**"):
    return "((?:[^/]+/)*)" if text.endswith("/") else "(.+)"
  if text == "*":
    return "([^/]*)"
  # That it is one of those in brackets is known of a file that matches.
  is_one = text == "?" or len(text) > 1
  return "([^/])" if is_one else re.escape(text)
