"""Upscales image files into image files, one bad one among them or not.

Threads read ahead and write what is ready, while devices compute.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from esrgan_jax import images
from esrgan_jax.upscaling import photo
from esrgan_jax.upscaling.result_size import ResultSize
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = ["Done", "Job", "Settings", "upscale_files"]


# Pixels of images that are read ahead, and of results that wait to be written;
# one of each may be larger.
_READ_AHEAD = 2**22
_WRITE_BEHIND = 2**26
_MOST_READ_AHEAD = 64
_THREADS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Job:
  """A file to be made of another.

  Attributes:
    source: The image.
    target: Where its result goes; the suffix chooses the format.
    size: Width and height that the image's header claims; None if unknown.
  """

  source: pathlib.Path
  target: pathlib.Path
  size: tuple[int, int] | None = None

  @property
  def pixels(self) -> int:
    """Of the image, by its header; 0 if unknown."""
    width, height = self.size or (0, 0)
    return width * height


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is wanted of all files alike.

  Attributes:
    size: The size of results.
    tile: See `Upscaler.upscale`, as for `exact` and `halo`.
    exact: Likewise.
    halo: Likewise.
    seamless: See `photo.upscale_photo`.
    quality: See `images.write_image`.
    max_pixels: See `images.read_image`.
    overwrite: Whether existing results are replaced.
  """

  size: ResultSize = dataclasses.field(default_factory=ResultSize)
  tile: int | str = "auto"
  exact: bool = False
  halo: int | None = None
  seamless: str | None = None
  quality: int = 95
  max_pixels: int = images.MAX_PIXELS
  overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
  """Facts of a result that was written.

  Attributes:
    width: Of the result.
    height: Likewise.
    seconds: What it took after the one before it.
    notes: Sentences on what is not as one would expect.
  """

  width: int
  height: int
  seconds: float
  notes: tuple[str, ...] = ()


def upscale_files(
  model: Upscaler,
  jobs: Iterable[Job],
  settings: Settings,
  *,
  progress: Callable[[Job, int, int], None] | None = None,
) -> Iterator[tuple[Job, Done | Exception]]:
  """Upscales files as `Upscaler.stream` does images; none stops the others.

  Args:
    model: Upscales the pixels.
    jobs: What to make of what. No two may have one target, and folders of
      targets are made.
    settings: What is wanted of all of them.
    progress: Called with a job, and its number of tiles done and in all.

  Yields:
    Each job in order, with the facts of its result, or the exception for which
    there is none.

  >>> import tempfile
  >>> from esrgan_jax.upscaling.upscaler import load
  >>> model = load("realesrgan-x4plus-anime")
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   small, large, absent = (pathlib.Path(folder, n + ".png") for n in "abc")
  ...   black = images.Image(np.zeros((6, 8, 3), np.uint8))
  ...   _ = images.write_image(small, black)
  ...   jobs = [Job(absent, large), Job(small, large)]
  ...   for job, outcome in upscale_files(model, jobs, Settings()):
  ...     job.source.name, isinstance(outcome, Done), large.exists()
  ('c.png', False, False)
  ('a.png', True, True)
  """
  jobs = list(jobs)
  notes: list[str] = []
  with contextlib.ExitStack() as stack:
    readers, writers = (
      stack.enter_context(_threads(name)) for name in ("read", "write")
    )
    readies = photo.upscale_photos(
      model,
      _read_ahead(readers, model, jobs, settings, progress),
      sizes=[job.size[::-1] for job in jobs if job.size],
      tile=settings.tile,
      exact=settings.exact,
      halo=settings.halo,
      seamless=settings.seamless,
      notify=notes.append,
    )
    writing: collections.deque = collections.deque()
    began = time.perf_counter()
    waiting = 0

    def outcome() -> tuple[Job, Done | Exception]:
      nonlocal began, waiting
      job, future, noted = writing.popleft()
      try:
        done = future.result()
      except Exception as error:  # The other images are not to blame.
        done = error
      else:
        now = time.perf_counter()
        done = dataclasses.replace(
          done, seconds=now - began, notes=(*noted, *done.notes)
        )
        began = now
      waiting -= _result_pixels(job, model)
      return job, done

    for job, ready in zip(jobs, readies, strict=True):
      future = writers.submit(_write, job, ready, settings)
      writing.append((job, future, tuple(notes)))
      notes.clear()
      waiting += _result_pixels(job, model)
      # A large one is written while the next is computed.
      while writing and (
        writing[0][1].done() or (len(writing) > 1 and waiting > _WRITE_BEHIND)
      ):
        yield outcome()
    while writing:
      yield outcome()


@contextlib.contextmanager
def _threads(name: str) -> Iterator[concurrent.futures.ThreadPoolExecutor]:
  """Threads that end with what they are at, whatever ends the rest."""
  pool = concurrent.futures.ThreadPoolExecutor(_THREADS, f"esrgan-{name}")
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def _result_pixels(job: Job, model: Upscaler) -> int:
  return job.pixels * model.scale**2


def _read_ahead(
  readers: concurrent.futures.Executor,
  model: Upscaler,
  jobs: Iterable[Job],
  settings: Settings,
  progress: Callable[[Job, int, int], None] | None,
) -> Iterator[photo.Task | Exception]:
  """Yields what there is to do, in order, while threads read further."""
  reading: collections.deque = collections.deque()
  pixels = 0
  remaining = iter(jobs)

  def read(job: Job) -> photo.Task:
    return _read(model, job, settings, progress)

  while True:
    while not reading or (
      pixels < _READ_AHEAD and len(reading) < _MOST_READ_AHEAD
    ):
      job = next(remaining, None)
      if job is None:
        break
      reading.append((job, readers.submit(read, job)))
      pixels += job.pixels
    if not reading:
      return
    job, future = reading.popleft()
    pixels -= job.pixels
    try:
      task = future.result()
    except Exception as error:
      task = error
    yield task


def _read(model, job, settings, progress):
  picture = images.read_image(job.source, max_pixels=settings.max_pixels)
  shape = picture.pixels.shape
  height, width = settings.size.of(shape, model_scale=model.scale)
  images.check_fits(  # Before the work, not after it.
    job.target,
    (height, width, shape[2]),
    transparent=picture.alpha is not None and not _is_opaque(picture.alpha),
  )
  job.target.parent.mkdir(parents=True, exist_ok=True)
  return photo.Task(
    picture,
    size=(height, width),
    folder=job.target.parent,
    progress=progress and (lambda *counts: progress(job, *counts)),
  )


def _write(job, ready, settings):
  result = ready.result()
  notes = images.write_image(
    job.target,
    result,
    quality=settings.quality,
    overwrite=settings.overwrite,
  )
  height, width = result.pixels.shape[:2]
  notes = (*result.notes, *notes)
  return Done(width=width, height=height, seconds=0.0, notes=notes)


def _is_opaque(alpha):
  return int(alpha.min()) == np.iinfo(alpha.dtype).max
