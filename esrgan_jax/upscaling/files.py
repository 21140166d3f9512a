"""Upscales image files into image files, one bad one among them or not.

Threads read ahead and write what is ready, while devices compute.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import pathlib
import queue
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from esrgan_jax import images, storage
from esrgan_jax.text import printable
from esrgan_jax.upscaling import memory, photo, pieces
from esrgan_jax.upscaling.result_size import ResultSize
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = ["Done", "Job", "Settings", "check_result_size", "upscale_files"]

# Of results: what x4 makes of the largest image, or more where that is allowed.
_MOST_RESULT_PIXELS = 2**32
_MOST_RESULT_FACTOR = 16


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
    frames: How many pictures the image has, if they are frames or pages.
    each: Suffix of the results if each frame gets a file of its own: `target`
      is their folder then. Else None.
    sizes: Width and height of each picture, if they differ; `size` is that of
      the first. Else empty.
    pieces: Whether it is read, upscaled and written in pieces (`pieces.py`).
    whole: Why it is not, of one that outgrows the memory it should have; else
      empty.
    is_clip: Whether it is a clip, which `clips.upscale_clips` does; `frames`
      are as many as it says, at least one.
  """

  source: pathlib.Path
  target: pathlib.Path
  size: tuple[int, int] | None = None
  frames: int = 1
  each: str | None = None
  sizes: tuple[tuple[int, int], ...] = ()
  pieces: bool = False
  whole: str = ""
  is_clip: bool = False

  @property
  def pixels(self) -> int:
    """Of the image, by its header; 0 if unknown."""
    width, height = self.size or (0, 0)
    return width * height

  @property
  def work(self) -> int:
    """Pixels by which it counts beside others: a clip's, of all its frames."""
    return self.pixels * (self.frames if self.is_clip else 1)

  @property
  def targets(self) -> list[pathlib.Path]:
    """The files that there will be."""
    if not self.each:
      return [self.target]
    digits = max(4, len(str(self.frames)))
    return [
      self.target / f"{self.source.stem}_{number:0{digits}}{self.each}"
      for number in range(1, self.frames + 1)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is wanted of all files alike.

  Attributes:
    size: The size of results.
    tile: See `Upscaler.upscale`, as for `exact` and `halo`.
    exact: Likewise.
    halo: Likewise.
    seamless: See `photo.upscale_photo`.
    consistent: Likewise.
    quality: See `images.write_image`; of clips, `video.choose_encoding`.
    lossless: Likewise.
    codec: Of clips, see `video.choose_encoding`.
    background: A colour to put behind what is transparent, where a format has
      no transparency; None: that is an error.
    record: A line on how results were made, for their metadata.
    max_pixels: See `images.read_image`, and `check_result_size`.
    overwrite: Whether existing results are replaced.
    pieces: One of `pieces.MODES`: "auto" has jobs in pieces that are to be, if
      the model takes such.
  """

  size: ResultSize = dataclasses.field(default_factory=ResultSize)
  tile: int | str = "auto"
  exact: bool = False
  halo: int | None = None
  seamless: str | None = None
  consistent: bool = False
  quality: int = 95
  lossless: bool = False
  codec: str = "auto"
  background: str | None = None
  record: str | None = None
  max_pixels: int = images.MAX_PIXELS
  overwrite: bool = False
  pieces: str = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
  """Facts of a result that was written.

  Attributes:
    width: Of the result; of several pictures, of the first.
    height: Likewise.
    pixels: Of all of them.
    seconds: What it took after the one before it.
    frames: How many there are of them.
    varied: Whether they are of several sizes.
    notes: Sentences on what is not as one would expect.
  """

  width: int
  height: int
  pixels: int
  seconds: float
  frames: int = 1
  varied: bool = False
  notes: tuple[str, ...] = ()


def check_result_size(
  path: str | os.PathLike[str],
  size: tuple[int, int],
  *,
  max_pixels: int = images.MAX_PIXELS,
) -> None:
  """Raises if a result would be larger than anybody can want.

  Args:
    path: The image, for the message.
    size: Height and width of the result.
    max_pixels: Most pixels of an image: results may have 16 times as many, and
      2**32 anyhow.

  Raises:
    ValueError: If it has more.

  >>> check_result_size("a.png", (133333, 200000))
  Traceback (most recent call last):
  ...
  ValueError: a.png: its result would be 200000 x 133333 pixels, more than ...
  """
  height, width = size
  most = max(_MOST_RESULT_PIXELS, _MOST_RESULT_FACTOR * max_pixels)
  if width * height > most:
    needed = -(-width * height // _MOST_RESULT_FACTOR)
    raise ValueError(
      f"{printable(path)}: its result would be {width} x {height} pixels, more"
      f" than {most}; choose a smaller one, or give --max-pixels {needed}"
      f" (max_pixels={needed})"
    )


def _check_room(model, path, picture, size):
  """Raises if a large result has no room where it is computed."""
  height, width, channels = picture.pixels.shape
  needed = size[0] * size[1] * channels * picture.pixels.itemsize
  if needed <= photo.MEMMAP_BYTES:
    return
  if size != (height * model.scale, width * model.scale):
    # Pillow resizes in memory, at 4 bytes a pixel, and hands out copies.
    resizing = 4 * size[0] * size[1] + 2 * needed
    free = memory.free_host_memory()
    if free is not None and resizing > free:
      raise ValueError(
        f"{printable(path)}: resizing to {size[1]} x {size[0]} pixels needs"
        f" {resizing / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free;"
        f" choose a smaller result, or the model's own size (x{model.scale})"
      )
  free = storage.free_bytes(path.parent)
  if needed > free:
    raise OSError(
      f"{path} needs {needed / 1e9:.1f} GB of the disk before it is compressed,"
      f" and {free / 1e9:.1f} GB are free; make room, or choose"
      " another disk"
    )


def upscale_files(
  model: Upscaler,
  jobs: Iterable[Job],
  settings: Settings,
  *,
  progress: Callable[[Job, int, int], None] | None = None,
  tell: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Job, Done | Exception]]:
  """Upscales files as `Upscaler.stream` does images; none stops the others.

  Args:
    model: Upscales the pixels.
    jobs: What to make of what. No two may have one target, and folders of
      targets are made.
    settings: What is wanted of all of them.
    progress: Called with a job, and its number of tiles done and in all.
    tell: Called with sentences on what goes on in pieces, at once.

  Yields:
    Each job in order, with the facts of its result, or the exception for which
    there is none.

  >>> import tempfile
  >>> import numpy as np
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
  written = _Written()

  def in_pieces(job: Job) -> bool:
    return job.pieces and (settings.pieces == "always" or pieces.takes(model))

  for alone, group in itertools.groupby(jobs, key=in_pieces):
    if not alone:
      yield from _together(model, list(group), settings, progress, written)
      continue
    for job in group:
      yield job, _in_pieces(model, job, settings, progress, written, tell)


def _in_pieces(
  model: Upscaler,
  job: Job,
  settings: Settings,
  progress: Callable[[Job, int, int], None] | None,
  written: _Written,
  tell: Callable[[str], None],
) -> Done | Exception:
  began = time.perf_counter()
  try:
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with written.adding(job.target):
      (height, width), notes = pieces.upscale(
        model,
        job.source,
        job.target,
        size=settings.size,
        tile=settings.tile,
        exact=settings.exact,
        halo=settings.halo,
        record=settings.record,
        max_pixels=settings.max_pixels,
        overwrite=settings.overwrite,
        progress=progress and (lambda *counts: progress(job, *counts)),
        tell=tell,
      )
  except Exception as error:  # The other images are not to blame.
    return error
  return Done(
    width=width,
    height=height,
    pixels=width * height,
    seconds=time.perf_counter() - began,
    notes=notes,
  )


def _together(
  model: Upscaler,
  jobs: Sequence[Job],
  settings: Settings,
  progress: Callable[[Job, int, int], None] | None,
  written: _Written,
) -> Iterator[tuple[Job, Done | Exception]]:
  """Upscales those that are held in memory."""
  notes: list[str] = []
  with contextlib.ExitStack() as stack:
    readers, writers = (
      stack.enter_context(_threads(name)) for name in ("read", "write")
    )
    parts: collections.deque[_Part] = collections.deque()
    readies = photo.upscale_photos(
      model,
      _read_ahead(readers, model, jobs, settings, progress, parts),
      sizes=[job.size[::-1] for job in jobs if job.size],
      tile=settings.tile,
      exact=settings.exact,
      halo=settings.halo,
      seamless=settings.seamless,
      consistent=settings.consistent,
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

    sequence = None
    for ready in readies:
      part = parts.popleft()
      if part.number == 0:
        if part.frames is None:
          future = writers.submit(_write, part.job, ready, settings, written)
        else:
          sequence = _Sequence(part.job, part.frames, settings, written)
          stack.callback(sequence.end)
          future = writers.submit(sequence.write)
      if sequence:
        sequence.put(ready)
      if not part.is_last:
        continue
      if sequence:
        sequence.end()
        sequence = None
      writing.append((part.job, future, tuple(dict.fromkeys(notes))))
      notes.clear()
      waiting += _result_pixels(part.job, model)
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


@dataclasses.dataclass(frozen=True)
class _Part:
  """What a task is of its job: the one picture, or one of several."""

  job: Job
  number: int = 0
  frames: images.Frames | None = None
  is_last: bool = True


def _read_ahead(
  readers: concurrent.futures.Executor,
  model: Upscaler,
  jobs: Iterable[Job],
  settings: Settings,
  progress: Callable[[Job, int, int], None] | None,
  parts: collections.deque[_Part],
) -> Iterator[photo.Task | Exception]:
  """Yields what there is to do, in order, while threads read further."""
  reading: collections.deque = collections.deque()
  pixels = 0
  remaining = iter(jobs)

  def read(job: Job) -> photo.Task | images.Frames:
    if job.frames > 1:
      return _open(model, job, settings)
    picture = images.read_image(job.source, max_pixels=settings.max_pixels)
    report = progress and (lambda *counts: progress(job, *counts))
    return _task(model, job, picture, settings, report)

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
    if not isinstance(task, images.Frames):
      parts.append(_Part(job))
      yield task
      continue
    frames, last = task, len(task) - 1
    tasks = _frame_tasks(model, job, frames, settings, progress)
    future = readers.submit(next, tasks)
    for number in range(last + 1):
      try:
        task = future.result()
      except Exception as error:
        parts.append(_Part(job, number, frames))
        yield error
        break
      if number < last:
        future = readers.submit(next, tasks)
      parts.append(_Part(job, number, frames, is_last=number == last))
      yield task


def _open(model, job, settings):
  frames = images.read_frames(job.source, max_pixels=settings.max_pixels)
  width, height = max(frames.sizes)
  size = settings.size.of((height, width), model_scale=model.scale)
  if not job.each:
    images.check_frames_fit(
      job.target,
      animated=frames.durations is not None,
      count=len(frames),
      size=size[::-1],
      lossless=settings.lossless,
    )
  elif len(frames) != job.frames:
    raise images.ImageError(
      f"{printable(job.source)}: {len(frames)} {frames.kind}s, and there were"
      f" {job.frames} a while ago; try again"
    )
  return frames


def _frame_tasks(model, job, frames, settings, progress):
  count = len(frames)
  for number, picture in enumerate(frames):
    report = progress and (
      lambda done, total, number=number: progress(
        job, number * total + done, total * count
      )
    )
    yield _task(model, job, picture, settings, report)


def _task(model, job, picture, settings, progress):
  shape = picture.pixels.shape
  height, width = settings.size.of(shape, model_scale=model.scale)
  target = job.targets[0]
  check_result_size(job.source, (height, width), max_pixels=settings.max_pixels)
  _check_room(model, target, picture, (height, width))
  if settings.background and not _holds_alpha(target):
    picture = images.flatten(picture, settings.background)
  if job.frames == 1 or job.each:
    images.check_fits(  # Before the work, not after it.
      target,
      (height, width, shape[2]),
      transparent=picture.alpha is not None and not _is_opaque(picture.alpha),
      lossless=settings.lossless,
    )
  if settings.record:
    metadata = dataclasses.replace(picture.metadata, record=settings.record)
    picture = dataclasses.replace(picture, metadata=metadata)
  target.parent.mkdir(parents=True, exist_ok=True)
  return photo.Task(
    picture, size=(height, width), folder=target.parent, progress=progress
  )


def _holds_alpha(path):
  try:
    images.check_fits(path, (1, 1, 3), transparent=True)
  except images.ImageError:
    return path.suffix.lower() in images.ANIMATION_SUFFIXES
  return True


def _write(job, ready, settings, written):
  result = ready.result()
  notes = _write_image(job.target, result, settings, written)
  height, width = result.pixels.shape[:2]
  return Done(
    width=width,
    height=height,
    pixels=width * height,
    seconds=0.0,
    notes=(*result.notes, *notes),
  )


class _Written:
  """Knows which results there are by now."""

  def __init__(self):
    self._ids: set[tuple[int, int]] = set()
    self._own = threading.Lock()
    self._locks: dict[str, threading.Lock] = {}

  @contextlib.contextmanager
  def adding(self, target: pathlib.Path) -> Iterator[None]:
    """Has one thread at a time write what may be one file.

    Raises:
      FileExistsError: If it is a result by now, under another name.
    """
    # Some systems take `A` and `a` for one name.
    name = unicodedata.normalize("NFC", os.path.realpath(target)).casefold()
    with self._own:
      lock = self._locks.setdefault(name, threading.Lock())
    with lock:
      if storage.file_ids([target]) & self._ids:
        raise FileExistsError(
          f"{target} is the result of another image, for whose name this system"
          " takes it; give them names that differ in more than capitals"
        )
      yield
      with self._own:
        self._ids.update(storage.file_ids([target]))


def _write_image(target, image, settings, written):
  with written.adding(target):
    return images.write_image(
      target,
      image,
      quality=settings.quality,
      lossless=settings.lossless,
      overwrite=settings.overwrite,
    )


# Results of frames that wait to be written.
_MOST_FRAMES = 2


class _Sequence:
  """Frames on their way into their file or files."""

  def __init__(
    self,
    job: Job,
    frames: images.Frames,
    settings: Settings,
    written: _Written,
  ):
    self._job, self._frames = job, frames
    self._settings, self._written = settings, written
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    self._room = threading.Semaphore(_MOST_FRAMES)
    self._notes: dict[str, None] = {}  # In order, each once.
    self._sizes: list[tuple[int, int]] = []

  def put(self, ready: photo.Ready) -> None:
    """Takes the next frame; waits until there is room for it."""
    self._room.acquire()
    self._queue.put(ready)

  def end(self) -> None:
    """Tells that there are no more."""
    self._queue.put(None)

  def write(self) -> Done:
    """Writes what comes; in a thread."""
    results = self._results()
    try:
      if self._job.each:
        for target, image in zip(self._job.targets, results, strict=True):
          self._note(_write_image(target, image, self._settings, self._written))
      else:
        self._write_one(results)
    finally:
      results.close()
      while self._queue.get() is not None:  # After an error.
        self._room.release()
    height, width = self._sizes[0]
    return Done(
      width=width,
      height=height,
      pixels=sum(height * width for height, width in self._sizes),
      seconds=0.0,
      frames=len(self._sizes),
      varied=len(set(self._sizes)) > 1,
      notes=tuple(self._notes),
    )

  def _write_one(self, results):
    with self._written.adding(self._job.target):
      notes = images.write_frames(
        self._job.target,
        results,
        durations=self._frames.durations,
        loop=self._frames.loop,
        count=len(self._frames),
        quality=self._settings.quality,
        lossless=self._settings.lossless,
        overwrite=self._settings.overwrite,
      )
    self._note(notes)

  def _results(self):
    while (ready := self._queue.get()) is not None:
      try:
        image = ready.result()
        del ready  # It may be large.
      finally:
        self._room.release()
      self._note(image.notes)
      self._sizes.append(image.pixels.shape[:2])
      yield image
    self._queue.put(None)  # For whoever waits for the end.

  def _note(self, notes):
    self._notes |= dict.fromkeys(notes)


def _is_opaque(alpha):
  return bool(alpha.min() >= images.opaque(alpha.dtype))
