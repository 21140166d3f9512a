"""What a config's value names: a source, or several."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esrgan_jax import images
from esrgan_jax.data.sources import div2k, tfds_images
from esrgan_jax.data.sources.base import DataError, Source, SourceList
from esrgan_jax.data.sources.div2k import Div2k
from esrgan_jax.data.sources.folders import ImageFolder, LrFolder, PairFolder
from esrgan_jax.data.sources.sample_photos import SamplePhotos
from esrgan_jax.images import patterns

__all__ = ["check_folders", "open_source", "prepare", "split_spec"]


def split_spec(spec: Any) -> list[Any]:
  """Returns the sources that a config's value names, each by itself.

  Args:
    spec: As of `open_source`. A text with commas names several, unless there
      is a folder, or a pair of folders, of just that name, or it is a pattern
      that matches.

  Returns:
    The specs, none of them a list.

  Raises:
    DataError: If it is of no type that names sources.

  >>> split_spec("sample_photos, sample_photos:held_out")
  ['sample_photos', 'sample_photos:held_out']
  """
  if isinstance(spec, str):
    places = map(os.path.expanduser, spec.removeprefix("::").split("::"))
    if "," not in spec or all(map(_is_there, places)):
      return [spec]
    return [part.strip() for part in spec.split(",") if part.strip()]
  if isinstance(spec, os.PathLike) or hasattr(spec, "keys"):
    return [spec]
  if isinstance(spec, Sequence):
    return [part for one in spec for part in split_spec(one)]
  raise DataError(
    f"a source is {spec!r}; name a folder or a data set, or several in a list"
  )


def _is_there(place):
  if patterns.is_pattern(place):
    return bool(patterns.match_images(place).files)
  return os.path.isdir(place)


def open_source(
  spec: str | os.PathLike | Mapping[str, str] | Sequence,
  *,
  scale: int,
  data_dir: str | os.PathLike | None = None,
  border: str = "mirror",
  max_pixels: int = images.MAX_PIXELS,
) -> Source:
  """Opens what a config names.

  Args:
    spec: `"sample_photos"` or `"sample_photos:held_out"`;
      `"div2k/bicubic_x4"` or `"div2k/bicubic_x4:validation"`, any of TFDS's
      configurations and splits; `"tfds:NAME"` or `"tfds:NAME:SPLIT"`, any of
      its image data sets (`open_tfds`); a folder of HR images, or a pattern,
      such as `"photos/**/*.png"`; a pair of folders or patterns, `{"hr": HR,
      "lr": LR}` or `"HR::LR"`; LR alone, for a teacher to upscale
      (`data.teaching`), `{"lr": LR}` or `"::LR"`; or several of these, in a
      list or with commas between them. A folder that is named like one of the
      others: put `./` before it. A folder with a comma in its name is taken for
      one if it exists.
    scale: HR pixels per LR pixel.
    data_dir: TFDS's folder; None for its own default.
    border: How LR is made from HR alone, see `imresize_uint8`.
    max_pixels: Larger image files are refused, see `images.read_image`.

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
      found.append(
        _open(part, scale, data_dir, border=border, max_pixels=max_pixels)
      )
    except DataError as error:
      if not isinstance(spec, str) or spec == part:
        raise
      raise DataError(
        f"{error} (a part of {spec!r}: commas divide, as there is no such"
        " folder)"
      ) from error
  return found[0] if len(found) == 1 else SourceList(found)


def check_folders(spec: Any, *, scale: int) -> None:
  """Raises if files that a config names are not there; reads none of them.

  Args:
    spec: As of `open_source`; data sets of TFDS in it are left alone.
    scale: HR pixels per LR pixel.

  Raises:
    DataError: If a folder is not there, or has no images or no pairs.

  >>> check_folders("div2k/bicubic_x4,/nowhere/at/all", scale=4)
  Traceback (most recent call last):
  ...
  esrgan_jax.data.sources.base.DataError: /nowhere/at/all: no such folder; ...
  """
  for part in split_spec(spec):
    if not (div2k.read_name(part) or tfds_images.read_name(part)):
      open_source(part, scale=scale)


def prepare(
  spec: Any,
  *,
  data_dir: str | os.PathLike | None = None,
  manual_dir: str | os.PathLike | None = None,
  process_index: int = 0,
  report: Callable[[str], None] | None = None,
) -> None:
  """Prepares DIV2K, if a config names it, and that has not been done.

  Nothing else is fetched unasked: `python -m esrgan_jax.data.prepare` does it.

  Args:
    spec: As of `open_source`.
    data_dir: TFDS's folder, for DIV2K.
    manual_dir: Folder of DIV2K's zips, if they are not to be downloaded.
    process_index: Number of this process among those that prepare together:
      the first does, the others wait.
    report: Called with a line now and then.

  Raises:
    DataError: If it cannot be prepared.

  >>> prepare("sample_photos")
  """
  named = filter(None, map(div2k.read_name, split_spec(spec)))
  for config in sorted({name.config for name in named}):
    try:
      div2k.prepare_div2k(
        data_dir,
        config=config,
        manual_dir=manual_dir,
        process_index=process_index,
        report=report,
      )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
      raise DataError(str(error)) from error


def _open(spec, scale, data_dir, **options):
  """Opens a single source; `options` are of those that make LR of HR."""
  if isinstance(spec, os.PathLike):
    return ImageFolder(spec, scale=scale, **options)
  if isinstance(spec, str):
    if match := re.fullmatch(r"sample_photos(?::(.*))?", spec):
      return SamplePhotos(match[1] or "train", scale=scale, **options)
    if found := div2k.read_name(spec):
      return Div2k(
        found.split,
        scale=scale,
        config=found.config,
        data_dir=data_dir,
        max_pixels=options["max_pixels"],
      )
    if named := tfds_images.read_name(spec):
      return tfds_images.open_tfds(
        *named, scale=scale, data_dir=data_dir, **options
      )
    if "::" not in spec:
      return ImageFolder(_folder(spec), scale=scale, **options)
    hr, lr = spec.split("::", 1)
    spec = {"hr": hr, "lr": lr} if hr else {"lr": lr}
  limit = {"max_pixels": options["max_pixels"]}
  if set(spec.keys()) == {"lr"}:
    return LrFolder(_folder(spec["lr"]), scale=scale, **limit)
  if set(spec.keys()) != {"hr", "lr"}:
    raise DataError(
      f"a pair of folders has the keys hr and lr, LR alone has lr, got"
      f" {sorted(spec.keys())}"
    )
  return PairFolder(
    _folder(spec["hr"]), _folder(spec["lr"]), scale=scale, **limit
  )


def _folder(name):
  """Returns a folder's path; whether there is such a folder, others tell."""
  if not isinstance(name, str | os.PathLike) or not os.fspath(name):
    raise DataError(f"a folder of images is {name!r}; give its path")
  if os.fspath(name).startswith("tfds:"):
    raise DataError(
      f"{name}: a data set brings its own LR, or none; name it by itself, not"
      " in a pair"
    )
  if "://" in os.fspath(name):
    raise DataError(
      f"{name}: images are read from local folders; copy them from there"
      " first, or mount the bucket"
    )
  return os.path.expanduser(name)
