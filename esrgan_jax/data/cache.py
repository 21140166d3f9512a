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
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from esrgan_jax import storage
from esrgan_jax.data.sources import DataError, Pair, Problem, Source

__all__ = [
  "Found",
  "decode",
  "in_ram",
  "look_at",
  "mapped",
  "survey",
]

_VERSION = 2  # Of the files that `mapped` and `survey` write.
Progress = Callable[[int, int], None]


@dataclasses.dataclass
class Found:
  """What a first pass over images of a source has found, by their numbers.

  Attributes:
    sizes: `(h, w)` of LR of those that can be read.
    problems: Why the others cannot.
    pairs: The decoded images; none where only sizes were looked at.
  """

  sizes: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
  problems: dict[int, str] = dataclasses.field(default_factory=dict)
  pairs: dict[int, Pair] = dataclasses.field(default_factory=dict)


def decode(
  source: Source,
  indices: Sequence[int],
  *,
  threads: int,
  progress: Progress | None = None,
  read: Callable[[int], Any] | None = None,
) -> Iterator[tuple[int, Any]]:
  """Reads pairs in threads, in order, a few ahead and no more.

  Args:
    source: Where from.
    indices: Which, in this order.
    threads: How many threads; the result does not depend on it.
    progress: Called after each with how many are done, and how many there are.
    read: What to do with an index; None for `source[index]`.

  Yields:
    `(index, pair)`, or `(index, problem)` where it cannot be read.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> [(i, pair.lr.shape) for i, pair in decode(photos, [0, 2], threads=2)]
  [(0, (75, 112, 3)), (2, (106, 160, 3))]
  """
  read = read or source.__getitem__

  def attempt(index):
    try:
      return read(index)
    except DataError as error:
      return Problem.of(source.names[index], error)

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    pending: collections.deque = collections.deque()
    done = 0
    try:
      for index in [*indices, *[None] * threads]:
        if index is not None:
          pending.append((index, pool.submit(attempt, index)))
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
  threads: int,
  progress: Progress | None = None,
) -> Found:
  """Decodes images into memory.

  Args:
    source: Where from.
    indices: Which of its images.
    threads: How many threads.
    progress: See `decode`.

  Returns:
    The pairs, and what is wrong with those that cannot be read.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> found = in_ram(SamplePhotos("held_out", scale=4), [0, 2], threads=2)
  >>> found.sizes, found.pairs[0].hr.shape
  ({0: (75, 112), 2: (106, 160)}, (300, 448, 3))
  """
  found = Found()
  for index, read in decode(
    source, indices, threads=threads, progress=progress
  ):
    if isinstance(read, Problem):
      found.problems[index] = read.reason
    else:
      found.pairs[index], found.sizes[index] = read, read.lr.shape[:2]
  return found


def look_at(
  source: Source,
  indices: Sequence[int],
  *,
  threads: int,
  progress: Progress | None = None,
) -> Found:
  """Reads every image once and keeps none, only its size.

  Args:
    source: Where from.
    indices: Which of its images.
    threads: How many threads.
    progress: See `decode`.

  Returns:
    Sizes, and what is wrong with those that cannot be read.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> look_at(SamplePhotos("held_out", scale=4), [0, 2], threads=2).sizes
  {0: (75, 112), 2: (106, 160)}
  """
  found = Found()
  for index, read in decode(
    source, indices, threads=threads, progress=progress, read=source.lr_size
  ):
    if isinstance(read, Problem):
      found.problems[index] = read.reason
    else:
      found.sizes[index] = read
  return found


def mapped(
  source: Source,
  indices: Sequence[int],
  *,
  threads: int,
  cache_dir: str | os.PathLike | None = None,
  progress: Progress | None = None,
) -> Found:
  """Decodes images into a file, once, and maps that into memory.

  The file's name is a hash of the source's files and the indices, so that a
  changed source is decoded anew, as is one of which images can be read by now
  that could not be. It is written aside and renamed when it is whole: one that
  is killed leaves nothing that could be taken for a cache. Of several processes
  that share the folder one decodes, and the others wait for it.

  Args:
    source: Where from.
    indices: Which of its images.
    threads: How many threads.
    cache_dir: Folder for caches; None for `storage.cache_dir()`.
    progress: See `decode`; not called where the file exists.

  Returns:
    The pairs, read-only, and what is wrong with those that cannot be read.

  Raises:
    DataError: If the cache cannot be written.

  >>> import tempfile
  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   found = mapped(photos, [0], threads=2, cache_dir=folder)
  ...   found.pairs[0].hr.shape
  (300, 448, 3)
  """
  path = _place(cache_dir, "images", source, indices)
  with _alone(path, lambda: progress and progress(0, len(indices))):
    found = _open_mapped(path)
    if found is None or _is_outdated(found, source, threads):
      shutil.rmtree(path, ignore_errors=True)
      with _written_aside(path) as aside:
        _write_mapped(aside, source, indices, threads, progress)
      found = _open_mapped(path)
  if found is None:
    raise DataError(f"{path}: damaged as soon as written; check the disk")
  return found


def survey(
  source: Source,
  indices: Sequence[int],
  *,
  threads: int,
  cache_dir: str | os.PathLike | None = None,
  progress: Progress | None = None,
) -> Found:
  """As `look_at`, and keeps the result, under a hash as that of `mapped`.

  Where it cannot be kept, it is found anew each time.

  Args:
    source: Where from.
    indices: Which of its images.
    threads: How many threads.
    cache_dir: Folder for caches; None for `storage.cache_dir()`.
    progress: See `decode`; not called where the result is known.

  Returns:
    Sizes, and what is wrong with those that cannot be read.

  >>> import tempfile
  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   survey(photos, [2], threads=2, cache_dir=folder).sizes
  {2: (106, 160)}
  """
  path = _place(cache_dir, "survey", source, indices)
  index = _read_index(path)
  if index is not None:
    found = Found({i: (h, w) for i, h, w in index["images"]}, _problems(index))
    if not _is_outdated(found, source, threads):
      return found
  found = look_at(source, indices, threads=threads, progress=progress)
  index = {
    "version": _VERSION,
    "images": [[i, *size] for i, size in found.sizes.items()],
    "problems": list(found.problems.items()),
  }
  shutil.rmtree(path, ignore_errors=True)
  with contextlib.suppress(DataError), _written_aside(path) as aside:
    (aside / "index.json").write_text(json.dumps(index))
  return found


def _is_outdated(found, source, threads):
  """Returns whether an image can be read that could not be before.

  A server that did not answer, or a permission that was missing, leaves no
  trace in the file's size and time.
  """
  again = look_at(source, list(found.problems), threads=threads)
  return bool(again.sizes)


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
def _alone(path, waiting):
  """Has the processes that share a folder pass one after the other.

  Where there are no locks, all go on at once: what they write is the same.
  """
  lock, name = None, path.with_name(f"{path.name}.lock")
  try:
    import fcntl  # Windows has none.

    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    lock = os.open(name, flags, 0o600)
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      waiting()
      fcntl.flock(lock, fcntl.LOCK_EX)
  except (OSError, ImportError):
    pass  # Writing will tell what is wrong with the folder.
  try:
    yield
  finally:
    if lock is not None:
      # Who waits for it finds all done, so that it may be alone no longer.
      with contextlib.suppress(OSError):
        os.unlink(name)
      os.close(lock)


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
  file = path / "index.json"
  try:
    index = json.loads(file.read_text()) if file.is_file() else {}
  except (OSError, ValueError):
    return None
  known = isinstance(index, dict) and index.get("version") == _VERSION
  return index if known else None


def _problems(index):
  return dict(index["problems"])


def _write_mapped(aside, source, indices, threads, progress):
  index = {"version": _VERSION, "images": [], "problems": [], "bytes": 0}
  with open(aside / "images.bin", "wb") as file:
    for i, read in decode(source, indices, threads=threads, progress=progress):
      if isinstance(read, Problem):
        index["problems"].append([i, read.reason])
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
  """Maps a cache; None if it is not intact."""
  index = _read_index(path)
  try:
    if index is None or os.path.getsize(path / "images.bin") != index["bytes"]:
      return None
  except OSError:
    return None
  found = Found(problems=_problems(index))
  if not index["bytes"]:  # An empty file cannot be mapped.
    return found
  data = np.memmap(path / "images.bin", np.uint8, mode="r")
  for i, start, h, w, H, W in index["images"]:
    middle, end = start + h * w * 3, start + h * w * 3 + H * W * 3
    found.sizes[i] = (h, w)
    found.pairs[i] = Pair(
      np.asarray(data[start:middle]).reshape(h, w, 3),
      np.asarray(data[middle:end]).reshape(H, W, 3),
    )
  return found
