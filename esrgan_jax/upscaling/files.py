"""Upscales image files into image files, one bad one among them or not."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from esrgan_jax import images
from esrgan_jax.upscaling import photo
from esrgan_jax.upscaling.result_size import ResultSize
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = ["Done", "Job", "Settings", "upscale_files"]


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
    quality: See `images.write_image`.
    max_pixels: See `images.read_image`.
    overwrite: Whether existing results are replaced.
  """

  size: ResultSize = dataclasses.field(default_factory=ResultSize)
  tile: int | str = "auto"
  exact: bool = False
  halo: int | None = None
  quality: int = 95
  max_pixels: int = images.MAX_PIXELS
  overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
  """Facts of a result that was written.

  Attributes:
    width: Of the result.
    height: Likewise.
    seconds: What it took.
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
  """Upscales files one after the other; none stops the others.

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
  for job in jobs:
    began = time.perf_counter()
    try:
      width, height, notes = _upscale_file(model, job, settings, progress)
    except Exception as error:  # The other images are not to blame.
      yield job, error
    else:
      seconds = time.perf_counter() - began
      yield (
        job,
        Done(width=width, height=height, seconds=seconds, notes=notes),
      )


def _upscale_file(model, job, settings, progress):
  picture = images.read_image(job.source, max_pixels=settings.max_pixels)
  shape = picture.pixels.shape
  height, width = settings.size.of(shape, model_scale=model.scale)
  images.check_fits(  # Before the work, not after it.
    job.target,
    (height, width, shape[2]),
    transparent=picture.alpha is not None and not _is_opaque(picture.alpha),
  )
  job.target.parent.mkdir(parents=True, exist_ok=True)
  notes = [*picture.notes]
  result = photo.upscale_photo(
    model,
    picture,
    size=(height, width),
    tile=settings.tile,
    exact=settings.exact,
    halo=settings.halo,
    folder=job.target.parent,
    progress=progress and (lambda *counts: progress(job, *counts)),
    notify=notes.append,
  )
  notes += images.write_image(
    job.target,
    result,
    quality=settings.quality,
    overwrite=settings.overwrite,
  )
  return width, height, tuple(notes)


def _is_opaque(alpha):
  return int(alpha.min()) == np.iinfo(alpha.dtype).max
