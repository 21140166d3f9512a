"""What is made of what: nothing twice, nothing that would lose something."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from esrgan_jax import images, storage, video
from esrgan_jax.text import explain, printable
from esrgan_jax.upscaling import consistency, pieces
from esrgan_jax.upscaling.files import Job, check_result_size
from esrgan_jax.upscaling.inputs import Input
from esrgan_jax.upscaling.names import SUFFIXES, Naming
from esrgan_jax.upscaling.result_size import ResultSize

__all__ = ["Plan", "make_plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be done.

  Attributes:
    jobs: In the order of the images; no two have one target.
    existing: Results that are there, and are left alone.
    earlier: Images that are results of others among them.
    large: Images that are as large as their results would be.
    problems: Why some images have no job, a line each.
  """

  jobs: tuple[Job, ...]
  existing: tuple[pathlib.Path, ...]
  earlier: tuple[pathlib.Path, ...]
  large: tuple[pathlib.Path, ...]
  problems: tuple[str, ...]


def make_plan(
  inputs: Iterable[Input],
  naming: Naming,
  *,
  overwrite: bool = False,
  skip_existing: bool = False,
  only_smaller: bool = False,
  consistent: bool = False,
  seamless: str | None = None,
  in_pieces: str = "auto",
  max_pixels: int = images.MAX_PIXELS,
  others: Iterable[str | os.PathLike[str]] = (),
) -> Plan:
  """Plans what to make of images; none stops the others.

  A folder has images and their results the next time. An image that was found
  there is taken for a result of another one, of its folder or one above, if it
  has the name of one, now or with another scale, and the size; or if its name
  begins with that of the other, and its metadata say that this program made it,
  and not the other. One that was named itself is only taken for a result beside
  its image, where such are wanted, or for one that is wanted now.

  Args:
    inputs: The images.
    naming: What their results are called.
    overwrite: Whether results that are there are made again. An image is never
      replaced.
    skip_existing: Whether results that are there are left alone; else they are
      problems.
    only_smaller: Whether images are left alone whose header tells that they are
      no smaller than their results would be.
    consistent: Whether results are to be; those that are smaller than their
      images, as headers tell, are problems.
    seamless: See `files.Settings`.
    in_pieces: One of `pieces.MODES`: whether images are read, upscaled and
      written in pieces; "auto": those that outgrow memory, and TIFFs with
      smaller copies, which the result has then, too, where that can be.
    max_pixels: See `files.Settings`; for what bounds results, and clips.
    others: Files that must not be replaced either.

  Returns:
    The plan.

  >>> import tempfile
  >>> import numpy as np
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   paths = [pathlib.Path(folder, name) for name in ("a.png", "a_x2.png")]
  ...   for path, side in zip(paths, (4, 8), strict=True):
  ...     grey = images.Image(np.zeros((side, side, 1), np.uint8))
  ...     _ = images.write_image(path, grey)
  ...   plan = make_plan(map(Input, paths), Naming())
  ...   [job.target.name for job in plan.jobs], plan.earlier == (paths[1],)
  (['a_x4.png'], True)
  """
  inputs = list(inputs)
  clips = {
    each.path: _look_at_clip(each.path, max_pixels)
    for each in inputs
    if video.is_clip(each.path)
  }
  sizes = {
    each.path: _size(clips[each.path])
    if each.path in clips
    else images.read_upright_size(each.path)
    for each in inputs
  }
  wanted, problems, large = [], [], []
  for each in inputs:
    size = sizes[each.path]
    if only_smaller and size and _is_large(size, naming):
      large.append(each.path)
      continue
    try:
      clip = clips.get(each.path)
      if isinstance(clip, Exception):
        raise clip
      job = _job(each, size, clip, naming, max_pixels, consistent=consistent)
      if not clip:
        job = _with_pieces(
          job,
          naming,
          in_pieces,
          max_pixels,
          seamless=seamless,
          consistent=consistent,
        )
      wanted.append(job)
    except (ValueError, OSError) as error:
      problems.append(explain(error))
  earlier = _earlier(inputs, wanted, sizes, naming)
  kept = storage.file_ids([*(p for p in sizes if p not in earlier), *others])
  sources, jobs, existing, colliding = {}, [], [], []
  for job in wanted:
    source, target = job.source, job.target
    if source in earlier:
      continue
    key = _key(target)
    if (other := sources.setdefault(key, source)) is not source:
      colliding.append((job, other))
      continue
    try:
      there = _is_there(job, kept, overwrite, skip_existing)
    except OSError as error:
      problems.append(f"{printable(source)}: {explain(error)}")
    else:
      if there:
        existing.append(target)
      else:
        jobs.append(job)
  if colliding:
    kept = [each for each in inputs if each.path not in earlier]
    way_out = _way_out(kept, wanted, sizes, naming)
    problems += [
      f"{printable(job.source)}: its result {printable(job.target)} is that of"
      f" {printable(other)} as well; {way_out}"
      for job, other in colliding
    ]
  return Plan(
    tuple(jobs),
    tuple(existing),
    tuple(job.source for job in wanted if job.source in earlier),
    tuple(large),
    tuple(problems),
  )


def _look_at_clip(path, max_pixels) -> video.Clip | Exception:
  """Returns what a clip is, or why it cannot be upscaled."""
  try:
    return video.read_clip(path, max_pixels=max_pixels)
  except (ValueError, OSError) as error:
    return error


def _size(clip):
  return None if isinstance(clip, Exception) else clip.size


def _job(image, size, clip, naming, max_pixels, *, consistent):
  if clip:
    count, kind, sizes = max(clip.count, 1), "clip", ()
  else:
    count, kind, sizes = _frames(image.path)
  try:
    target = naming.target(image, size, kind=kind)
  except ValueError:
    if size is None:  # A damaged file is to blame, not the name.
      images.read_frames(image.path, max_pixels=2**62)
    raise
  if size:
    wanted = naming.size.of(size[::-1], model_scale=naming.model_scale)
    check_result_size(image.path, wanted, max_pixels=max_pixels)
    if consistent:
      try:
        consistency.check_size(wanted, size[::-1])
      except ValueError as error:
        raise ValueError(f"{printable(image.path)}: {error}") from error
  each = naming.each(image, kind)
  known = SUFFIXES[None if each else kind]
  suffix = each or target.suffix
  if suffix.lower() not in known:
    shown = printable(suffix)
    if clip:
      reason = f"{shown} files hold no clip;"
    elif kind:
      reason = f"{shown} files hold no {count} {kind}s; give a folder, or"
    else:
      reason = f"cannot write {shown} files of one picture;"
    raise ValueError(
      f"{printable(image.path)}: {reason} choose one of {', '.join(known)}"
    )
  return Job(image.path, target, size, count, each, sizes, is_clip=bool(clip))


def _with_pieces(job, naming, mode, max_pixels, *, seamless, consistent):
  """Returns a job that knows whether it is done in pieces."""
  if images.is_zarr(job.source) or job.target.suffix.lower() == ".zarr":
    if mode == "never":
      raise ValueError(
        f"{printable(job.source)}: Zarr is read and written in pieces alone;"
        " leave out --pieces never"
      )
    mode = "always"
  if mode == "never" or (job.size is None and mode == "auto"):
    return job
  width, height = job.size or (1, 1)
  scale = naming.model_scale
  wanted = naming.size.of((height, width), model_scale=scale)
  reason = pieces.why_not(
    job.target,
    several=job.frames > 1,
    seamless=seamless,
    consistent=consistent,
  )
  if mode == "always":
    if reason:
      raise ValueError(f"{printable(job.source)}: {reason}")
    return dataclasses.replace(job, pieces=True)
  a_pixel, levels = images.read_storage(job.source, max_pixels=max_pixels)
  result = max(wanted[0] * wanted[1], width * height * scale**2)
  large = pieces.outgrows(width * height * a_pixel, result * a_pixel)
  if job.frames > 1 or not (large or levels):
    return job
  if reason:
    return dataclasses.replace(job, whole=reason if large else "")
  return dataclasses.replace(job, pieces=True)


def _frames(path):
  """Returns how many pictures a file has, their kind, and sizes if several."""
  if (images.count_frames(path) or 1) > 1:
    with contextlib.suppress(images.ImageError):  # Told when it is read.
      frames = images.read_frames(path, max_pixels=2**62)
      if len(frames) > 1:
        sizes = frames.sizes if len(set(frames.sizes)) > 1 else ()
        return len(frames), frames.kind, sizes
  return 1, None, ()


def _is_there(job, kept, overwrite, skip_existing):
  """Tells whether a result is there; raises if it cannot be made."""
  if job.target.suffix.lower() == ".zarr" and job.target.is_dir():
    if skip_existing:
      return True
    raise FileExistsError(
      f"{job.target} exists already, and no folder is replaced; choose another"
      " name, or remove it"
    )
  for target in job.targets:
    storage.check_output(
      target,
      overwrite=overwrite or skip_existing,
      inputs=kept,
      make_folder=True,
    )
  if not skip_existing:
    return False
  there = [target.is_file() for target in job.targets]
  if any(there) and not all(there):
    raise FileExistsError(
      f"{job.target} has some of its {job.frames} files; remove it, or give"
      " --overwrite (in Python, overwrite=True)"
    )
  return all(there)


def _is_large(size, naming):
  wanted = naming.size.of(size[::-1], model_scale=naming.model_scale)
  return wanted[0] <= size[1] and wanted[1] <= size[0]


def _way_out(inputs, jobs, sizes, naming):
  """Returns advice by which no two results have one name."""
  several = {job.source for job in jobs if job.frames > 1 and not job.is_clip}
  clips = {job.source for job in jobs if job.is_clip}
  for template in naming.wider():
    wider = dataclasses.replace(naming, template=template)
    with contextlib.suppress(ValueError):
      taken = [
        wider.target(
          each,
          sizes[each.path],
          kind=_frames(each.path)[1]
          if each.path in several
          else "clip"
          if each.path in clips
          else None,
        )
        for each in inputs
      ]
      if len({str(each).casefold() for each in taken}) == len(taken):
        return f"--name '{template}' tells them apart"
  return "give one of them another name, or upscale it by itself"


def _earlier(
  inputs: Sequence[Input],
  jobs: Sequence[Job],
  sizes: Mapping[pathlib.Path, tuple[int, int] | None],
  naming: Naming,
) -> frozenset[pathlib.Path]:
  """Returns the images that are results of others."""
  if naming.file:
    return frozenset()
  result_of, stems = {}, {}
  for job in jobs:
    for target in job.targets:
      result_of.setdefault(_absolute(target), []).append(job.source)
  for each in inputs:
    own = stems.setdefault(_absolute(each.path).parent, {})
    own.setdefault(each.path.stem, []).append(each.path)
  above = functools.cache(lambda folder: _above(folder, stems))
  has_record = functools.cache(_has_record)

  def is_result(image):
    path, absolute = image.path, _absolute(image.path)
    folders = above(absolute.parent)
    if image.named:
      folders = [] if naming.folder else [absolute.parent]
    origins = [(each, naming.size) for each in result_of.get(absolute, ())]
    name, separator, label = path.stem.rpartition("_")
    if separator and name and (rule := ResultSize.of_label(label)):
      origins += [
        (each, rule)
        for folder in folders
        for each in stems[folder].get(name, ())
      ]
    scale = naming.model_scale
    if any(
      origin != path and _may_be(sizes[path], sizes[origin], size, scale)
      for origin, size in origins
    ):
      return True
    origins = (
      origin
      for folder in folders
      for start in _starts(path.stem)
      for origin in stems[folder].get(start, ())
      if origin != path
    )
    return any(
      has_record(path) and not has_record(origin) for origin in origins
    )

  return frozenset(each.path for each in inputs if is_result(each))


def _above(folder, known):
  """Returns those of known folders for whose images one may have results.

  It may lie in them, or its tree be that of one that lies in it.
  """
  parts = folder.parts
  wholes = (
    pathlib.Path(*parts[:start], *parts[end:])
    for start in range(1, len(parts) + 1)
    for end in range(start, len(parts) + 1)
  )
  return [whole for whole in dict.fromkeys(wholes) if whole in known]


def _starts(stem):
  """Yields what an image may be called whose result is called so."""
  for end in range(1, len(stem)):
    # What is made of `1` is not called `10`.
    if not (stem[end - 1].isdigit() and stem[end].isdigit()):
      yield stem[:end]
  yield stem


def _may_be(size, before, rule, model_scale):
  """Tells whether a size is that of a result; if one is unknown, it may be."""
  if not size or not before:
    return True
  return rule.of(before[::-1], model_scale=model_scale) == size[::-1]


def _has_record(path):
  """Tells whether a file says near its ends that this program made it."""
  with contextlib.suppress(OSError), open(path, "rb") as file:
    ends = file.read(_END)
    file.seek(max(os.fstat(file.fileno()).st_size - _END, 0))
    return b"esrgan_jax " in ends + file.read(_END)
  return False


_END = 2**16


def _absolute(path):
  return pathlib.Path(os.path.abspath(path))


def _key(target):
  """Returns what names of one file have in common, where there is one."""
  path = _absolute(target)
  with contextlib.suppress(OSError):
    status = os.stat(path)
    # Some systems take `A` and `a` for one name.
    name = unicodedata.normalize("NFC", path.name).casefold()
    return status.st_dev, status.st_ino, name
  return path
