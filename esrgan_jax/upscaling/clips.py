"""Upscales clips: their frames as a stream, in segments that outlive a process.

One thread decodes ahead, one encodes what is ready, while devices compute; no
more than some frames wait on either side. What has been encoded lies beside the
result that is to be, segment by segment, until there is all of it
(`video.Folder`): who begins again goes on from there.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator

from esrgan_jax import __version__, images, video
from esrgan_jax.text import printable
from esrgan_jax.upscaling import photo
from esrgan_jax.upscaling.files import Done, Job, Settings, check_result_size
from esrgan_jax.upscaling.identity import digest_of_file, digest_of_model
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = ["check_clip", "upscale_clips"]

# Frames that wait between one step and the next: decoded ones, and results.
_WAITING = 4
# Of a clip that doesn't tell how many frames it has.
_GUESSED = 1000
_MOST_SIZES = 4096


def check_clip(
  job: Job, *, settings: Settings, scale: int
) -> tuple[video.Clip, video.Encoding, tuple[str, ...]]:
  """Raises if a clip's result cannot be made, as far as headers tell.

  Args:
    job: The clip and its result.
    settings: What is wanted of it.
    scale: The model's.

  Returns:
    What the clip is, how its result is encoded, and sentences on what is not as
    one would expect.

  Raises:
    video.VideoError: If the clip is damaged, or the result cannot hold it.
    ValueError: If the result would be too large.
    OSError: If the clip cannot be opened.
  """
  clip = video.read_clip(job.source, max_pixels=settings.max_pixels)
  size = settings.size.of(clip.size[::-1], model_scale=scale)
  check_result_size(job.source, size, max_pixels=settings.max_pixels)
  size = size if clip.is_turned else size[::-1]
  with video.naming(job.source):
    encoding = video.choose_encoding(
      clip,
      job.target.suffix,
      size,
      codec=settings.codec,
      quality=settings.quality,
      lossless=settings.lossless,
    )
  notes = video.check_fits(
    job.source, clip, job.target, encoding, max_pixels=settings.max_pixels
  )
  return clip, encoding, (*clip.notes, *encoding.notes, *notes)


def upscale_clips(
  model: Upscaler,
  jobs: Iterable[Job],
  settings: Settings,
  *,
  progress: Callable[[Job, int, int], None] | None = None,
) -> Iterator[tuple[Job, Done | Exception]]:
  """Upscales clips into clips; a bad one does not stop the others.

  Frames go through the model as pictures do in `photo.upscale_photos`, and a
  result has their times. All else that a clip has is copied. A process that was
  ended goes on from what it has finished, if clip, model and settings are the
  same.

  Args:
    model: Upscales the frames.
    jobs: What to make of what; folders of targets are made.
    settings: What is wanted of all of them.
    progress: Called with a job, and its number of frames done and in all.

  Yields:
    Each job in order, with the facts of its result, or the exception for which
    there is none.
  """
  for job in jobs:
    began = time.perf_counter()
    try:
      done = _upscale(model, job, settings, progress, began)
    except Exception as error:  # The others are not to blame.
      done = error
    yield job, done


def _upscale(model, job, settings, progress, began) -> Done:
  clip, encoding, notes = check_clip(job, settings=settings, scale=model.scale)
  job.target.parent.mkdir(parents=True, exist_ok=True)
  digest = _digest(model, job, settings, encoding)
  size = encoding.height, encoding.width
  said: list[str] = list(notes)
  with video.Folder(job.target, digest, encoding) as folder:
    finished = len(folder.finished())
    if finished:
      said.append(f"goes on after frame {finished}, from {folder.path.name}")
    counted = _Counted(job, max(clip.count, finished), finished, progress)
    said += [
      f"{printable(other.name)} is of another model, clip or setting; remove it"
      " if that is not gone on with"
      for other in folder.others()
    ]
    frames = video.read_frames(
      job.source, clip, skip=finished, max_pixels=settings.max_pixels
    )
    _encode(model, frames, folder.writer(), counted, size, settings, said, clip)
    if not counted.done:
      raise video.VideoError(f"{printable(job.source)}: no frames in it")
    if counted.damaged:
      said.append(
        f"{counted.damaged} of its frames are damaged, and were upscaled as"
        " they are decoded"
      )
    if counted.lost:
      said.append(
        f"{counted.lost} of its frames could not be decoded, and are left out"
      )
    video.join(
      job.source,
      clip,
      job.target,
      encoding,
      folder.segments(),
      record=settings.record,
      overwrite=settings.overwrite,
      max_pixels=settings.max_pixels,
    )
    folder.remove()
  width, height = encoding.shown_size(clip)
  return Done(
    width=width,
    height=height,
    pixels=width * height * counted.done,
    seconds=time.perf_counter() - began,
    frames=counted.done,
    notes=tuple(dict.fromkeys(said)),
  )


class _Counted:
  """Counts frames, and tells of them."""

  def __init__(self, job, total, done, progress):
    self.job, self._total, self._progress = job, total, progress
    self.done = done
    self.damaged = self.lost = 0
    self._tell()

  def add(self) -> None:
    """Counts one more."""
    self.done += 1
    self._tell()

  def _tell(self):
    if self._progress:
      self._progress(self.job, self.done, max(self._total, self.done))


def _encode(model, frames, writer, counted, size, settings, said, clip):
  """Upscales frames, and writes them."""
  stamps: collections.deque[tuple[int, int]] = collections.deque()
  ahead = _Ahead(frames)

  def tasks() -> Iterator[photo.Task | Exception]:
    # Whatever is raised here would be by the network's frames before it.
    for frame in ahead:
      if isinstance(frame, Exception):
        stamps.append((0, 0))
        yield frame
        return
      counted.damaged += frame.is_damaged
      counted.lost += frame.lost
      stamps.append((frame.time, frame.duration))
      picture = images.Image(frame.pixels)
      yield photo.Task(picture, size=size, folder=counted.job.target.parent)

  def write(ready: photo.Ready, stamp: tuple[int, int]) -> None:
    writer.add(ready.result().pixels, *stamp)
    counted.add()

  count = min(clip.count or _GUESSED, _MOST_SIZES)
  with (
    contextlib.ExitStack() as stack,
    concurrent.futures.ThreadPoolExecutor(1, "esrgan-encode") as thread,
  ):
    stack.callback(ahead.close)
    stack.callback(writer.abandon)
    waiting: collections.deque = collections.deque()
    try:
      for ready in photo.upscale_photos(
        model,
        tasks(),
        sizes=[(clip.height, clip.width)] * count,
        tile=settings.tile,
        exact=settings.exact,
        halo=settings.halo,
        seamless=settings.seamless,
        consistent=settings.consistent,
        notify=said.append,
      ):
        waiting.append(thread.submit(write, ready, stamps.popleft()))
        while len(waiting) > _WAITING:
          waiting.popleft().result()
      for future in waiting:
        future.result()
      thread.submit(writer.end).result()
    except BaseException:
      thread.shutdown(cancel_futures=True)
      raise


class _Ahead:
  """Decodes some frames ahead, in a thread; an error comes in its place."""

  def __init__(self, frames: Iterator[video.Frame]):
    self._frames = frames
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "esrgan-decode")
    self._waiting = collections.deque(
      self._thread.submit(next, frames, None) for _ in range(_WAITING)
    )

  def __iter__(self) -> Iterator[video.Frame | Exception]:
    while True:
      try:
        frame = self._waiting.popleft().result()
      except Exception as error:
        yield error
        return
      if frame is None:
        return
      self._waiting.append(self._thread.submit(next, self._frames, None))
      yield frame

  def close(self) -> None:
    """Ends the thread, with what it is at."""
    self._thread.shutdown(cancel_futures=True)
    self._frames.close()


def _digest(
  model: Upscaler, job: Job, settings: Settings, encoding: video.Encoding
) -> str:
  """Of all that the frames of a result depend on."""
  said = (
    __version__,
    digest_of_file(job.source),
    digest_of_model(model),
    encoding,
    settings.tile,
    settings.exact,
    settings.halo,
    settings.seamless,
    settings.consistent,
  )
  return hashlib.sha256("\n".join(map(str, said)).encode()).hexdigest()
