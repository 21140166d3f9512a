"""The training program: all phases, evaluation, the interpolated model.

`train(config, workdir)` does, or goes on with, all of it. What a workdir holds:

| path                         | what                                        |
| ---------------------------- | ------------------------------------------- |
| `config.json`                | the whole config                            |
| `perceptual.json`            | which features the perceptual loss compares |
| `psnr/`, `gan/`, ...         | a phase's `checkpoints/` and metrics        |
| `samples/*.png`              | fixed crops of validation images            |
| `models/*.safetensors`       | averaged generators, and one in between     |
| `evaluation.json`            | a row an image and model, and means         |
| `interpolation.json`         | the same over alpha, with perceptual        |
|                              | distance                                    |
| `curves/*.svg`, `*.png`      | each chart of the report                    |
| `film/PHASE/*.png`           | the frames of the film                      |
| `profile/PHASE/`             | a trace, if `config.profile` asks for one   |
| `film.webp`                  | a picture as it was upscaled in the course  |
|                              | of the training                             |
| `report.html`                | all of this, to look at                     |
| `earlier/1/`, ...            | a workdir each: what was trained again      |
| `.lock`                      | who trains here                             |

Every process of a run calls `train`; the first one writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import rich.console
from clu import parameter_overview
from etils import epath

from esrgan_jax import augment, compilation
from esrgan_jax.data import pipeline as pipeline_lib
from esrgan_jax.distributed import wait_for_all
from esrgan_jax.evaluation import measures
from esrgan_jax.report import metric_log
from esrgan_jax.steps import state as state_lib
from esrgan_jax.training import (
  checkpoint,
  claim,
  filming,
  finish,
  lineage,
  speed,
  start,
)
from esrgan_jax.training import mesh as mesh_lib
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training import progress as progress_lib
from esrgan_jax.training import run as run_lib

__all__ = ["IncompleteError", "StoppedError", "TrainingError", "train"]

# What tells that training has gone off, and not into a bad patch. Images are
# from 0 to 1, so that black ones are off by less than 1. A network may begin
# farther off than that; it has diverged if it was far nearer before.
_BLACK_PIXEL_LOSS, _ABSURD_PIXEL_LOSS, _ABSURD_RISE = 1.0, 10.0, 10.0
# Decibels under the phase's best: healthy GAN training loses two or three.
_ABSURD_FALL, _GOOD_FALL = 10.0, 3.0
# It is the average that is measured, which stays good for a while: the last
# checkpoint of those that look good may not be.
_MAX_RESCUES = 2


class TrainingError(RuntimeError):
  """Training that cannot go on; the message says why and what to try."""


class IncompleteError(RuntimeError):
  """Training that is done, but not all around it; the message lists what."""


class StoppedError(Exception):
  """A signal ended training early; all is saved, the same command goes on.

  Attributes:
    signal: The signal's number.
  """

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.signal = number


def train(
  config: Mapping[str, Any],
  workdir: str | os.PathLike[str],
  *,
  console: rich.console.Console | None = None,
) -> epath.Path:
  """Trains ESRGAN, mostly in two phases, or goes on where a run here ended.

  Args:
    config: See `esrgan_jax.training.config`; what it lacks is as published.
    workdir: Folder for all results; may be in a bucket.
    console: Where to tell of the progress; None for standard output.

  Returns:
    Path of the report.

  Raises:
    ValueError: If config, data or weights cannot be used, or the workdir is
      another config's.
    FileNotFoundError: If weights that are asked for are not there.
    LockError: If another run has the workdir.
    CheckpointError: If what is there cannot be gone on from.
    SaveError: If a checkpoint cannot be written.
    TrainingError: If updates keep failing.
    IncompleteError: If all models are there, but an evaluation, a sample
      picture or the report failed.
    StoppedError: If SIGTERM or SIGINT came; a checkpoint was written.
  """
  run = run_lib.make_run(config, workdir, console=console)
  with claim.claim_workdir(run):
    # What cannot work is found now, not after hours: cheap things first.
    run.check_folders()
    begun = start.read(run) if run.config.init_from else None
    variables = begun and begun.variables
    phases = phases_lib.make_phases(run)
    _ = run.eval_source
    film = filming.open_film(run)
    for phase in phases:
      with _open_checkpoints(run, phase) as checkpoints:
        checkpoints.check(
          phase.abstract_state(variables), changes=run.config.allow_changes
        )
    lineage.foresee(run)
    run.write_config()
    with _Signals() as signals:
      return _train(run, phases, begun, signals, film)


def _train(run, phases, begun, signals, film):
  """All phases, and what comes after; `begun` is what to start from."""
  run.say(
    f"{jax.device_count()} {jax.default_backend()} device(s) in"
    f" {jax.process_count()} process(es), compute"
    f" {np.dtype(run.dtype).name}, workdir {run.workdir}"
  )
  models, variables, origin = [], None, None
  if begun:
    variables = begun.variables
    origin = lineage.origin(run, variables["params"])
    # What one phase alone has been begun from is the other end.
    if begun.is_whole and len(phases) == 1:
      start_model = finish.Model(
        run.start_key, variables, alpha=0.0, title=run.start_name
      )
      models.append((start_model, None))
  count = len(models) + len(phases)
  for phase in phases:
    # Before a model is written over one that a later phase was begun from.
    if origin and lineage.settle(run, phase.name, origin):
      unwritten = models
    else:
      unwritten = models[-1:]
    for model, begun_from in unwritten:
      finish.export(run, model, origin=begun_from)
    before = {}
    if models:
      before = {models[-1][0].name: run_lib.on_host(variables)}
    variables, begun_from = _run_phase(
      run, phase, variables, signals, origin, before, film
    )
    ends = {0: 0.0, count - 1: 1.0} if count > 1 else {0: 0.0}
    model = finish.Model(phase.name, variables, ends.get(len(models)))
    models.append((model, begun_from))
    params = run_lib.on_host(variables["params"])
    origin = lineage.origin(run, params, phase.name)
  for model, begun_from in models[-1:]:
    finish.export(run, model, origin=begun_from)
  if film:
    film.write()
  report = finish.finish(
    run,
    [model for model, _ in models],
    perceptual=any("perceptual" in phase.arrays for phase in phases),
  )
  if run.failures:
    listed = "".join(f"\n  {line}" for line in run.failures)
    raise IncompleteError(
      f"the training is done and saved, but not all went well:{listed}\nThe"
      " same command tries again what is missing"
    )
  return report


class _Signals:
  """Whether this process was asked to stop: by SIGTERM, or once by SIGINT.

  Only in a process on its own, and in its main thread. Of several processes,
  JAX hears SIGTERM and has all of them stop at the same step.
  """

  def __init__(self):
    self.received = ""
    self._before = {}

  def __enter__(self):
    main = threading.current_thread() is threading.main_thread()
    if main and jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number, _):
    self.received = signal.Signals(number).name
    # A second one works as ever.
    signal.signal(number, self._before[number])


def _open_checkpoints(run, phase, origin=None):
  return checkpoint.Checkpoints(
    run.workdir / phase.name,
    config=run.plain,
    keep=run.config.keep,
    best=run.config.eval.best,
    origin=origin,
  )


def _run_phase(run, phase, variables, signals, origin, before, film):
  """Trains from the newest checkpoint on to the last step of a phase.

  Returns the averaged generator, and what the phase was begun from; `variables`
  are the generator's to begin with, of which `origin` tells. `before` has the
  model before by name, for pictures; `film` may be None.
  """
  config, name, total = run.config, phase.name, phase.total
  whole = mesh_lib.replicated(run.mesh)
  folder = run.workdir / name
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(_open_checkpoints(run, phase, origin))
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
      phase.abstract_state(variables),
    )

    def begin():
      options = compilation.compiler_options(run.platform, once=True)
      create = jax.jit(
        phase.create, out_shardings=whole, compiler_options=options
      )
      given = jax.device_put(variables, whole)
      state = create(jax.random.key(phase.seed), given)
      if phase.load:
        # The step consumes it: nothing may share its memory.
        state = jax.device_put(phase.load(state), whole, may_alias=False)
      return state

    restored = checkpoints.restore(
      like, begin=begin if config.allow_changes else None
    )
    if restored and restored.step >= total:
      run.say(f"{name}: finished before, at step {restored.step}")
      finished = state_lib.averaged(restored.state)
      if film:
        film.end(name, restored.step, finished)
      return finished, checkpoints.origin
    pipeline = stack.enter_context(run.data.pipeline(phase.seed))
    if restored:
      state, start = restored.state, restored.step
      run.say(f"{name}: going on from step {start} of {total}")
      if restored.note:
        run.say(f"{name}: {restored.note}")
        checkpoints.save(start, state, metrics=restored.metrics)
    else:
      state, start = begin(), 0
      trained = {"g": like.params, "d": getattr(like, "d_params", {})}
      count = parameter_overview.count_parameters(trained)
      run.say(f"{name}: {total} steps, {count:,} parameters")

    run.say(f"{name}: trains on {run.data.report.summary}")
    if run.degrading:
      size = run.degrading.crop_size
      run.say(f"{name}: LR is degraded in the step, of crops of {size} pixels")
    augmentation = phases_lib.augmentation(config, name)
    if told := _shares(augmentation):
      run.say(f"{name}: augmentation: {told}")
    if film:
      film.begin(name, start)
    rated = bool(restored and restored.metrics)
    log = stack.enter_context(
      metric_log.MetricLog(folder, start, measured=rated)
    )
    progress = stack.enter_context(
      progress_lib.Progress(name, total, start, run.console)
    )
    trace = stack.enter_context(
      speed.Trace(
        run.workdir / "profile" / name,
        first=start + config.profile.after_steps + 1,
        count=config.profile.num_steps,
      )
    )
    loop = _Loop(
      run=run,
      name=name,
      total=total,
      pipeline=pipeline,
      step=_compile_step(run, phase, state, augmentation),
      checkpoints=checkpoints,
      log=log,
      progress=progress,
      signals=signals,
      before=before,
      film=film,
      trace=trace,
      like=like,
    )
    finished = loop.train(state, start, rated=rated)
    if film:
      film.end(name, total, finished)
    return finished, checkpoints.origin


def _shares(augmentation):
  """Which operations are on, and how often; nothing where none is."""
  found = augmentation["operations"]
  told = ", ".join(
    f"{name} {found[name]['probability']:g}"
    for name in augment.OPERATIONS
    if found[name]["probability"]
  )
  return f"one of {told}" if told and augmentation["one_of"] else told


def _compile_step(run, phase, state, augmentation):
  """The step on raw batches, its random numbers those of seed and step."""

  def run_step(state, raw, **arrays):
    key = jax.random.fold_in(jax.random.key(phase.seed), state.step)
    batch = run.data.preprocess(key, raw)
    if run.degrading:
      batch = run.degrading.pairs(key, batch["hr"], run.mesh)
    batch = augment.transform(key, batch, **augmentation)
    return phase.step(state, batch, **arrays)

  raw = run.data.abstract_batch
  jitted = mesh_lib.jit_step(
    run_step,
    run.mesh,
    batch_shardings=jax.tree.map(lambda x: x.sharding, raw),
    compiler_options=compilation.compiler_options(run.platform),
    **phase.arrays,
  )
  compiled = jitted.compile(state, raw)
  wait_for_all()
  return compiled


def _is_absurd(loss, least):
  """Whether a pixel loss says that training has diverged, by the least before.

  >>> _is_absurd(1.5, 0.02), _is_absurd(1.5, 0.9), _is_absurd(11.0, np.inf)
  (True, False, True)
  """
  limit = max(_BLACK_PIXEL_LOSS, _ABSURD_RISE * least)
  return loss > min(limit, _ABSURD_PIXEL_LOSS)


def _last_good(scores, done):
  """The newest step before one whose PSNR is not far below the best's."""
  scores = {step: score for step, score in scores.items() if step < done}
  rated = {step: x for step, x in scores.items() if x is not None}
  if not rated:  # Nothing is known against any.
    return max(scores, default=None)
  best = max(rated.values())
  return max(step for step, x in rated.items() if x > best - _GOOD_FALL)


@dataclasses.dataclass
class _Loop:
  """One phase's loop. Metrics are fetched when the next step is under way."""

  run: run_lib.Run
  name: str
  total: int
  pipeline: pipeline_lib.Pipeline
  step: Callable[[Any, Any], tuple[Any, Any]]
  checkpoints: checkpoint.Checkpoints
  log: Any
  progress: progress_lib.Progress
  signals: _Signals
  before: dict[str, Any]
  film: filming.Film | None
  trace: speed.Trace
  like: Any
  went_back_to: list[int] = dataclasses.field(default_factory=list)
  least_pixel_loss: float = np.inf

  def train(self, state, start, *, rated):
    config = self.run.config
    self._reset_clock(start)
    self._warm = self._skipping = False
    done, running = start, None
    if not start and self._films(0):
      self.film.take(self.name, 0, state_lib.averaged(state))
    # Where a run ended between saving and evaluating.
    if start and not rated and self._evaluates(start):
      problem = self._evaluate(start, state, saved=True)
      if problem:
        state, done = self._rescue(start, problem)
    while done < self.total:
      self.run.lock.check()
      raw = self.pipeline.batch(done)
      self._waited += self.pipeline.wait_seconds
      self.trace.before(done + 1)
      with (
        jax.profiler.StepTraceAnnotation(self.name, step_num=done + 1),
        jax.transfer_guard("disallow"),
      ):
        state, metrics = self.step(state, raw)
      done += 1
      if self.trace.after(done, metrics):
        self.progress.say(f"{self.name}: traced {self.trace}")
      if running is not None:
        rescue = self._look_at(*running)
        if rescue:
          state, done, running = *rescue, None
          continue
      running = done, metrics
      if not self._warm:  # The first call's loading is no training time.
        self._reset_clock(done)
        self._warm = True

      last = done == self.total
      stop = self._must_stop(done)
      evaluate = self._evaluates(done) and not stop
      save = last or stop or done % config.checkpoint_every_steps == 0
      films = self._films(done)
      if not (evaluate or save or films):
        continue
      rescue = self._look_at(*running, always=True)
      running = None
      if rescue:
        state, done = rescue
        continue
      began = time.perf_counter()
      # What keeps failing should not replace what worked.
      save = last or stop or (save and not self._skipping)
      # Before it can be gone on from here.
      if films:
        self.film.take(self.name, done, state_lib.averaged(state))
      # Before evaluating, which may fail or take long.
      if save:
        self.log.flush()
        self.checkpoints.save(done, state)
      problem = ""
      if evaluate:
        problem = self._evaluate(done, state, saved=save)
      wait_for_all()
      if problem:
        state, done = self._rescue(done, problem)
        continue
      self._paused += time.perf_counter() - began
      if stop:
        self.checkpoints.wait()
        raise StoppedError(
          f"stopped by {stop} at step {done} of phase {self.name}; saved. The"
          " same command goes on from there",
          signal.Signals[stop],
        )
    self.checkpoints.wait()
    return state_lib.averaged(state)

  def _look_at(self, done, metrics, *, always=False):
    """Logs a step's metrics if it is time; returns a rescued state and step.

    Waits for that step, which keeps the host at most a step ahead.
    """
    config = self.run.config
    jax.block_until_ready(metrics)
    self.progress.advance(done)
    due = done % config.log_every_steps == 0 or done in (1, self.total)
    if not (due or always):
      return None
    figures = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self._skipping = figures["skipped_in_a_row"] > 0
    if due:
      self.checkpoints.look()
      self._add_speed(done, figures)
      self.log.write(done, figures)
      self.progress.show(done, figures)
    row = int(figures["skipped_in_a_row"])
    pixel = figures.get("g/pixel", 0.0)
    if row >= config.max_skipped_in_a_row:
      return self._rescue(
        done,
        f"the last {row} updates up to step {done} were not finite and have"
        " been skipped",
      )
    if not row and _is_absurd(pixel, self.least_pixel_loss):
      return self._rescue(
        done,
        f"the pixel loss of step {done} is {pixel:.3g}, of images from 0 to 1",
      )
    if not row:
      self.least_pixel_loss = min(self.least_pixel_loss, pixel)
    return None

  def _rescue(self, done, problem):
    """Goes back to the last good checkpoint, then to the one before, then ends.

    Returns:
      State and step.
    """
    config, settings = self.run.config, self.run.config.phases[self.name]
    failing = f"phase {self.name} has diverged: {problem}"
    rates = {
      key: settings[key]
      for key in ("learning_rate", "d_learning_rate")
      if key in settings
    }
    advice = []
    if rates:
      names = f"config.phases.{self.name}.{' and '.join(rates)}"
      values = ", ".join(f"{value:g}" for value in rates.values())
      advice.append(f"lower {names} ({values})")
    if not config.clip_norm:
      advice.append("set config.clip_norm")
    if np.dtype(self.run.dtype) != np.float32:
      advice.append("choose config.dtype='float32'")
    advice = ", or ".join(advice) or "change its settings"
    tried = [f"step {step}" for step in self.went_back_to]
    if len(tried) == _MAX_RESCUES:
      raise TrainingError(
        f"{failing}, again after going back to {' and '.join(tried)}; {advice}"
      )
    good = _last_good(
      self.checkpoints.scores(), min([done, *self.went_back_to])
    )
    if good is None:
      raise TrainingError(
        f"{failing}, and there is no good checkpoint to go back to; {advice}"
      )
    self.checkpoints.leave(good)
    restored = self.checkpoints.restore(self.like)
    self.went_back_to.append(good)
    self.progress.say(f"{failing}; going back to step {restored.step}")
    self.log.rewind(restored.step)
    if self.film:
      self.film.begin(self.name, restored.step)
    self._reset_clock(restored.step)
    return restored.state, restored.step

  def _must_stop(self, done):
    """The signal's name, if this is the step to stop at."""
    if jax.process_count() > 1:
      reached = self.checkpoints.reached_preemption(done)
      return "SIGTERM" if reached else ""
    return self.signals.received

  def _films(self, done):
    """Whether the film has a frame of a step."""
    return bool(self.film) and self.film.due(self.name, done)

  def _evaluates(self, done):
    """Whether the model of a step is evaluated."""
    every = self.run.config.eval_every_steps
    due = done == self.total or done % every == 0
    return self.run.eval_source is not None and due

  def _evaluate(self, done, state, *, saved):
    """Measures the model; returns what tells that training has diverged.

    A failure of another kind is told, and ends nothing.
    """
    what = f"evaluation at step {done} of phase {self.name}"
    variables, means = run_lib.on_host(state_lib.averaged(state)), None
    with self.run.tolerating(what):
      try:
        means = self.run.evaluator(*state_lib.split(variables)).means
      except FloatingPointError as error:
        return f"at step {done}, {error}"
    if means is None:
      return ""
    with self.run.tolerating(f"what is shown of {what}"):
      self._show(done, variables, means)
    score = means["psnr_y"]
    before = [x for x in self.checkpoints.scores().values() if x is not None]
    if before and score < max(before) - _ABSURD_FALL:
      return f"PSNR has fallen from {max(before):.2f} to {score:.2f} dB"
    if saved:
      self.checkpoints.rate(done, means)
    return ""

  def _show(self, done, variables, means):
    self.log.write(done, {f"eval/{k}": v for k, v in means.items()})
    shown = [
      f"{measure.heading} {measure.show(value)} {measure.unit}".rstrip()
      for measure, value in zip(
        map(measures.looks_of, means), means.values(), strict=True
      )
    ]
    self.progress.say("  ".join([f"{self.name} {done}/{self.total}", *shown]))
    models = {**self.before, self.name: variables}
    picture = self.run.write_samples(f"{self.name}_{done:07d}", models)
    if picture:
      self.log.write_picture(done, "samples", picture)

  def _reset_clock(self, done):
    self._since, self._counted = time.perf_counter(), done
    self._waited = self._paused = 0.0

  def _add_speed(self, done, figures):
    """Adds speed and memory since the last time."""
    seconds = time.perf_counter() - self._since - self._paused
    if done > self._counted:
      rate = (done - self._counted) / seconds
      figures["steps_per_second"] = rate
      figures["images_per_second"] = rate * self.run.config.batch_size
      peak = speed.peak_flops(jax.devices()[0].device_kind)
      if peak:
        possible = peak * self.run.mesh.size
        figures["peak_share"] = rate * self.step.flops / possible
      figures["data_wait_share"] = min(self._waited / seconds, 1.0)
    stats = self.run.mesh.local_devices[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
      figures["device_memory_gb"] = stats["peak_bytes_in_use"] / 1e9
    else:  # A CPU's memory is the process's.
      unit = 1 if sys.platform == "darwin" else 1024
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
      figures["host_memory_gb"] = peak / 1e9
    self._reset_clock(done)
