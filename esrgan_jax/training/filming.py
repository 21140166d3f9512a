"""The training film: when a frame of it is taken, and which belong to it.

A frame is a function of the model at its step, and is written before that
step's checkpoint; where a phase begins or goes on, the frames of steps that are
trained again are removed. So a run that was stopped, and goes on, has the same
film. Frames of another picture, or at other steps than `config.film` has now,
stay where they are and are left out: to change one's mind loses nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import typing
from typing import Any

import jax
import numpy as np

from esrgan_jax import distributed
from esrgan_jax.data import sources
from esrgan_jax.evaluation import evaluator, measures
from esrgan_jax.evaluation.compared import Compared
from esrgan_jax.models import registry
from esrgan_jax.report import film as film_lib
from esrgan_jax.report import samples
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training.errors import ConfigError

if typing.TYPE_CHECKING:
  from esrgan_jax.training import run as run_lib

__all__ = ["Film", "open_film"]


@dataclasses.dataclass(frozen=True)
class Film:
  """The film of a run; in processes but the first, only when it is taken.

  Attributes:
    run: The run.
    picture: What is upscaled; None in processes but the first.
  """

  run: run_lib.Run
  picture: sources.Pair | None

  def due(self, phase: str, step: int) -> bool:
    """Returns whether a step has a frame; the same in all processes."""
    return step in self._due[phase]

  def begin(self, phase: str, step: int) -> None:
    """Removes the frames of steps that are trained again.

    Args:
      phase: The phase that begins, or goes on.
      step: The last that it has been trained to, whose frame stays.
    """
    if self.picture is None:
      return
    with self.run.tolerating(f"removing old frames of the film of {phase}"):
      for each in film_lib.frames(self._folder(phase)):
        if each.step > step:
          each.path.unlink()

  def take(self, phase: str, step: int, variables: Any) -> None:
    """Writes a step's frame.

    Args:
      phase: The phase.
      step: Its step.
      variables: Of the averaged generator.
    """
    if self.picture is None:
      return
    with self.run.tolerating(f"the film's frame of {phase} at step {step}"):
      (sr,) = self.run.upscale_on_one_device(variables, self.picture.lr[None])
      title = phases_lib.title(self.run.config, phase)
      caption = (
        f"{title} phase, step {step:,}",
        f"PSNR Y {self._psnr(sr):.2f} dB (bicubic {self._bicubic:.2f})",
      )
      content = film_lib.frame(sr, caption, self._identity)
      self.run.write(f"{film_lib.FOLDER}/{phase}/{step:07d}.png", content)

  def end(self, phase: str, step: int, variables: Any) -> None:
    """Sees to it that a finished phase has its last frame, and none after it.

    Args:
      phase: The phase.
      step: Its last step.
      variables: Of its averaged generator.
    """
    self.begin(phase, step)
    if self.picture is None:
      return
    last = None
    with self.run.tolerating(f"the film's frames of {phase}"):
      *_, last = (None, *self._there(phase))
    if last is None or last.step != step:
      self.take(phase, step, variables)

  def frames(self, phase: str) -> list[film_lib.Frame]:
    """Returns a phase's frames that are in the film, in their order.

    Args:
      phase: The phase.
    """
    there = self._there(phase)
    # A finished phase may have been trained longer than it would be now.
    due = self._steps(phase, at_least=there[-1].step) if there else ()
    return [each for each in there if each.step in due]

  def write(self) -> None:
    """Writes the film of all phases, where there is a frame."""
    if self.picture is None:
      return
    with self.run.tolerating("the film"):
      found = [each for name in self.run.order for each in self.frames(name)]
      if found:
        settings = self.run.config.film
        content = film_lib.encode(
          found, seconds=settings.seconds, quality=settings.quality
        )
        self.run.write(film_lib.NAME, content)

  def _folder(self, phase):
    return self.run.workdir / film_lib.FOLDER / phase

  def _there(self, phase):
    """A phase's frames of this picture, at whatever step."""
    return [
      each
      for each in film_lib.frames(self._folder(phase))
      if each.belongs(self._identity, self._size)
    ]

  @functools.cached_property
  def _due(self) -> dict[str, frozenset[int]]:
    """The steps of each phase that have a frame."""
    return {name: frozenset(self._steps(name)) for name in self.run.order}

  def _steps(self, phase, *, at_least=0):
    config = self.run.config
    found = film_lib.steps(
      max(config.phases[phase].num_train_steps, at_least),
      first=config.film.first_step,
      growth=config.film.growth,
    )
    # What a later phase begins with is the last frame of the one before.
    return [*found, 0] if phase == self.run.order[0] else found

  @functools.cached_property
  def _identity(self) -> str:
    return film_lib.identity(self.picture, self.run.config.eval.crop_border)

  @property
  def _size(self) -> tuple[int, int]:
    height, width, _ = self.picture.hr.shape
    return width, height

  def _psnr(self, sr: np.ndarray) -> float:
    """By the evaluation's program, which is compiled anyway."""
    border = self.run.config.eval.crop_border
    compared = Compared(sr, self.picture.hr, crop_border=border)
    return measures.find("psnr_y").function(compared)

  @functools.cached_property
  def _bicubic(self) -> float:
    scale = self.run.config.scale
    return self._psnr(evaluator.bicubic(self.picture.lr, scale=scale))


def open_film(run: run_lib.Run) -> Film | None:
  """Finds the picture of a run's film; every process must call it.

  Args:
    run: The run.

  Returns:
    The film; None where `config.film` is off, or no picture is named and there
    is no validation image that would do.

  Raises:
    ConfigError: If the picture or its crop cannot be had.
  """
  if not run.config.film.enabled:
    return None
  picture, problem = None, ""
  source = run.eval_source
  if jax.process_index() == 0:
    try:
      picture = _open(run, source)
    except (ConfigError, sources.DataError) as error:
      problem = str(error)
  view = json.dumps([picture is not None, problem])
  has, problem = json.loads(distributed.gather(view)[0])
  if problem:
    raise ConfigError(problem)
  return Film(run, picture) if has else None


def _open(run, source):
  """The crop that is filmed; None if nothing is asked for that is not there."""
  settings, scale = run.config.film, run.config.scale
  if not settings.picture:
    pairs = sources.readable(source, run.skip) if source is not None else ()
    for _, pair in pairs:
      try:
        return _crop(run, pair, "the first validation image")
      except ConfigError:
        if settings.crop:
          raise
        # Nobody asked for this one: the next may be larger.
    return None
  named = settings.picture
  where = f"config.film.picture, {named!r},"
  if source is not None and named in source.names:
    pair = source[list(source.names).index(named)]
  elif os.path.isfile(path := os.path.expanduser(named)):
    border = run.config.data.border
    try:
      found = sources.ImageFolder(path, scale=scale, border=border)
      pair = (run.degrading.source(found) if run.degrading else found)[0]
    except sources.DataError as error:
      raise ConfigError(f"config.film.picture: {error}") from error
  else:
    raise ConfigError(
      f"{where} is no file, and no validation image is called so; name one, or"
      " leave it out for the first of them"
    )
  return _crop(run, pair, where)


def _crop(run, pair, where):
  settings, scale = run.config.film, run.config.scale
  height, width, _ = pair.hr.shape
  least = evaluator.smallest_side(run.config.eval.crop_border)
  # What the network can take, in LR and in HR pixels.
  multiple = registry.size_multiple(run.generator)
  whole = scale * multiple
  if settings.crop:
    left, top, across, down = settings.crop
    if across % whole or down % whole:
      raise ConfigError(
        f"config.film.crop is {tuple(settings.crop)}; the network needs a width"
        f" and height that are multiples of {whole}"
      )
    if left + across > width or top + down > height:
      raise ConfigError(
        f"config.film.crop is {tuple(settings.crop)}; {where} has"
        f" {width} x {height} pixels"
      )
    box = tuple(n // scale for n in settings.crop)
  else:
    side = max(settings.size // whole, -(-least // whole))
    size = tuple(multiple * min(side, n // whole) for n in (height, width))
    top, left = samples.richest(pair.lr, size) if min(size) else (0, 0)
    box = (left, top, *reversed(size))
  *_, across, down = (scale * n for n in box)
  if min(across, down) < least:
    raise ConfigError(
      f"{where} is too small for config.film: {across} x {down} pixels, and"
      f" PSNR needs {least} a side; choose another picture or crop, or"
      " config.film.enabled=false"
    )
  return samples.cut(pair, box, scale=scale)
