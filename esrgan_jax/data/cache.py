"""Decodes images once: into RAM, or into a file that is memory-mapped.

Decoding a 2K PNG takes a hundred times as long as a training step on an
accelerator. So every image is decoded once, in threads, and what is wrong
with any is found then, before the first step.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from esrgan_jax import storage
from esrgan_jax.data.sources import DataError, Pair, Problem, Source

__all__ = [
  "Report",
  "decode",
  "in_ram",
  "mapped",
  "survey",
]

_VERSION = 1  # Of the files that `mapped` and `survey` write.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Report:
  """What the first pass over a source has found.

  Attributes:
    images: How many pairs are used.
    pixels: HR pixels of these, in all.
    problems: The images that are left out, and why.

  >>> print(Report(2, 5_000_000, (Problem("a.png", "cut short"),)))
  2 images, 5.0 megapixels; 1 left out:
    a.png: cut short
  """

  images: int
  pixels: int
  problems: tuple[Problem, ...] = ()

  def __str__(self) -> str:
    text = f"{self.images} images, {self.pixels / 1e6:.1f} megapixels"
    if not self.problems:
      return text
    shown = [f"  {p.name}: {p.reason}" for p in self.problems[:20]]
    if len(self.problems) > 20:
      shown.append(f"  and {len(self.problems) - 20} more")
    return "\n".join([f"{text}; {len(self.problems)} left out:", *shown])


def decode(
  source: Source,
  indices: Sequence[int],
  *,
  threads: int,
  progress: Progress | None = None,
) -> Iterator[tuple[int, Pair | Problem]]:
  """Reads pairs in threads, in order, a few ahead and no more.

  Args:
    source: Where from.
    indices: Which, in this order.
    threads: How many threads; the result does not depend on it.
    progress: Called after each with how many are done, and how many there are.

  Yields:
    `(index, pair)`, or `(index, problem)` where it cannot be read.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> [(i, pair.lr.shape) for i, pair in decode(photos, [0, 2], threads=2)]
  [(0, (75, 112, 3)), (2, (106, 160, 3))]
  """

  def read(index):
    try:
      return source[index]
    except DataError as error:
      name = source.names[index]
      return Problem(name, str(error).removeprefix(f"{name}: "))

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    pending: collections.deque = collections.deque()
    done = 0
    try:
      for index in [*indices, *[None] * threads]:
        if index is not None:
          pending.append((index, pool.submit(read, index)))
        if pending and (index is None or len(pending) > threads):
          first, future = pending.popleft()
          yield first, future.result()
          done += 1
          if progress:
            progress(done, len(indices))
    finally:
      pool.shutdown(cancel_futures=True)


def in_ram(
  source: Source,
  indices: Sequence[int],
  *,
  size: int,
  threads: int,
  progress: Progress | None = None,
) -> tuple[dict[int, Pair], Report]:
  """Decodes images into memory.

  Args:
    source: Where from.
    indices: Which of its images.
    size: LR pixels a side that an image must have at least.
    threads: How many threads.
    progress: See `decode`.

  Returns:
    The usable pairs by their index, and the report.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> pairs, report = in_ram(photos, [0, 2], size=100, threads=2)
  >>> list(pairs), report.problems[0].name
  ([2], 'chelsea.png')
  """
  pairs, problems = {}, []
  for index, read in decode(
    source, indices, threads=threads, progress=progress
  ):
    if isinstance(read, Problem):
      problems.append(read)
    else:
      pairs[index] = read
  return _usable(source, pairs, problems, size)


def mapped(
  source: Source,
  indices: Sequence[int],
  *,
  size: int,
  threads: int,
  cache_dir: str | os.PathLike | None = None,
  progress: Progress | None = None,
) -> tuple[dict[int, Pair], Report]:
  """Decodes images into a file, once, and maps that into memory.

  The file's name is a hash of the source's files and the indices, so that a
  changed source is decoded anew. It is written aside and renamed when it is
  whole: several processes may do so at once, and one that is killed leaves
  nothing that could be taken for a cache.

  Args:
    source: Where from.
    indices: Which of its images.
    size: LR pixels a side that an image must have at least.
    threads: How many threads.
    cache_dir: Folder for caches; None for `storage.cache_dir()`.
    progress: See `decode`; not called where the file exists.

  Returns:
    The usable pairs by their index, read-only, and the report.

  Raises:
    DataError: If the cache cannot be written.

  >>> import tempfile
  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   options = dict(size=8, threads=2, cache_dir=folder)
  ...   pairs, report = mapped(photos, [0], **options)
  ...   pairs[0].hr.shape
  (300, 448, 3)
  """
  path = _place(cache_dir, "images", source, indices)
  loaded = _open_mapped(path)
  if loaded is None:
    with _written_aside(path) as aside:
      _write_mapped(aside, source, indices, threads, progress)
    loaded = _open_mapped(path)
    if loaded is None:
      raise DataError(f"{path}: damaged as soon as written; check the disk")
  return _usable(source, *loaded, size)


def survey(
  source: Source,
  indices: Sequence[int],
  *,
  size: int,
  threads: int,
  cache_dir: str | os.PathLike | None = None,
  progress: Progress | None = None,
) -> tuple[list[int], Report]:
  """Reads every image once and keeps none, only what is wrong with which.

  The result is kept in `cache_dir`, under a hash as that of `mapped`.

  Args:
    source: Where from.
    indices: Which of its images.
    size: LR pixels a side that an image must have at least.
    threads: How many threads.
    cache_dir: Folder for caches; None for `storage.cache_dir()`.
    progress: See `decode`; not called where the result is known.

  Returns:
    The indices of usable images, and the report.

  Raises:
    DataError: If the result cannot be written.

  >>> import tempfile
  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   options = dict(size=100, threads=2, cache_dir=folder)
  ...   indices, report = survey(photos, [0, 1, 2], **options)
  >>> indices, report.images
  ([1, 2], 2)
  """
  path = _place(cache_dir, "survey", source, indices)
  index = _read_index(path)
  if index is None:
    index = {"version": _VERSION, "images": [], "problems": []}
    for i, read in decode(source, indices, threads=threads, progress=progress):
      if isinstance(read, Problem):
        index["problems"].append(read)
      else:
        index["images"].append([i, *read.lr.shape[:2], *read.hr.shape[:2]])
    with _written_aside(path) as aside:
      (aside / "index.json").write_text(json.dumps(index))
  shapes = {
    i: Pair(_Shaped((h, w, 3)), _Shaped((H, W, 3)))
    for i, h, w, H, W in index["images"]
  }
  problems = [Problem(*p) for p in index["problems"]]
  usable, report = _usable(source, shapes, problems, size)
  return list(usable), report


class _Shaped(collections.namedtuple("_Shaped", ["shape"])):
  """Stands for an image of which only the shape is known."""


def _usable(source, pairs, problems, size):
  """Leaves out what is too small; returns pairs and report."""
  usable, problems = {}, list(problems)
  for index, pair in pairs.items():
    h, w, _ = pair.lr.shape
    if min(h, w) < size:
      k = source.scale
      reason = f"HR is {k * h}x{k * w}, smaller than a patch of {k * size}"
      problems.append(Problem(source.names[index], reason))
    else:
      usable[index] = pair
  shapes = [pair.hr.shape for pair in usable.values()]
  pixels = sum(H * W for H, W, _ in shapes)
  return usable, Report(len(usable), pixels, tuple(problems))


def _place(cache_dir, kind, source, indices):
  """Returns the path of a cache."""
  if "://" in str(cache_dir):
    raise DataError(
      f"{cache_dir}: caches are mapped into memory, which a bucket cannot be;"
      " name a local folder as data.cache_dir"
    )
  folder = pathlib.Path(cache_dir or storage.cache_dir()).expanduser()
  text = f"{_VERSION} {kind} {source.fingerprint()} {list(indices)}"
  digest = hashlib.sha256(text.encode()).hexdigest()
  return folder / f"{kind}-{digest[:32]}"


@contextlib.contextmanager
def _written_aside(path):
  """Yields a folder that takes the name `path` at the end, if all went well."""
  try:
    with storage.folder_written_aside(path, is_whole=_intact) as aside:
      yield aside
  except OSError as error:
    reason = error.strerror or str(error)
    raise DataError(
      f"{path.parent}: the cache cannot be written: {reason}; name another"
      ' folder as data.cache_dir, or choose data.cache="ram"'
    ) from error


def _intact(path):
  index = _read_index(path)
  if index is None:
    return False
  return "bytes" not in index or _open_mapped(path) is not None


def _read_index(path):
  """Returns what a cache says of itself, None if there is none of use."""
  try:
    index = json.loads((path / "index.json").read_text())
  except (OSError, ValueError):
    return None
  return index if index.get("version") == _VERSION else None


def _write_mapped(aside, source, indices, threads, progress):
  index = {"version": _VERSION, "images": [], "problems": [], "bytes": 0}
  with open(aside / "images.bin", "wb") as file:
    for i, read in decode(source, indices, threads=threads, progress=progress):
      if isinstance(read, Problem):
        index["problems"].append(read)
        continue
      shapes = [image.shape[:2] for image in read]
      index["images"].append([i, file.tell(), *shapes[0], *shapes[1]])
      for image in read:
        file.write(np.ascontiguousarray(image))
    index["bytes"] = file.tell()
    file.flush()
    os.fsync(file.fileno())
  (aside / "index.json").write_text(json.dumps(index))


def _open_mapped(path):
  """Returns the pairs by index and the problems; None if not intact."""
  index = _read_index(path)
  try:
    if index is None or os.path.getsize(path / "images.bin") != index["bytes"]:
      return None
  except OSError:
    return None
  problems = [Problem(*p) for p in index["problems"]]
  if not index["bytes"]:  # An empty file cannot be mapped.
    return {}, problems
  data = np.memmap(path / "images.bin", np.uint8, mode="r")
  pairs = {}
  for i, start, h, w, H, W in index["images"]:
    middle, end = start + h * w * 3, start + h * w * 3 + H * W * 3
    pairs[i] = Pair(
      np.asarray(data[start:middle]).reshape(h, w, 3),
      np.asarray(data[middle:end]).reshape(H, W, 3),
    )
  return pairs, problems
