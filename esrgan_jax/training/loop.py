"""The training program: both phases, evaluation, the interpolated model.

`train(config, workdir)` does, or goes on with, all of it. What a workdir holds:

| path                         | what                                        |
| ---------------------------- | ------------------------------------------- |
| `config.json`                | the whole config                            |
| `psnr/`, `gan/`              | a phase's `checkpoints/` and metrics        |
| `samples/*.png`              | fixed crops of validation images            |
| `models/*.safetensors`       | averaged generators, and one in between     |
| `evaluation.json`            | a row an image and model, and means         |
| `interpolation.json`         | the same over alpha, with perceptual        |
|                              | distance                                    |
| `report.html`                | all of this, to look at                     |

Every process of a run calls `train`; the first one writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from etils import epath

from esrgan_jax import compilation
from esrgan_jax.data import pipeline as pipeline_lib
from esrgan_jax.models.discriminators import VGGStyleDiscriminator
from esrgan_jax.training import (
  checkpoint,
  finish,
  initialization,
  metric_log,
  steps,
)
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import mesh as mesh_lib
from esrgan_jax.training import optimizer as optimizer_lib
from esrgan_jax.training import progress as progress_lib
from esrgan_jax.training import run as run_lib
from esrgan_jax.training import state as state_lib
from esrgan_jax.training import workdir as workdir_lib

__all__ = ["StoppedError", "TrainingError", "train"]


class TrainingError(RuntimeError):
  """Training that cannot go on; the message says why and what to try."""


class StoppedError(Exception):
  """A signal ended training early; all is saved, the same command goes on."""


def train(
  config: Mapping[str, Any],
  workdir: str | os.PathLike[str],
  *,
  console: rich.console.Console | None = None,
) -> epath.Path:
  """Trains ESRGAN in two phases, or goes on where a run of this workdir ended.

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
    TrainingError: If updates keep failing.
    StoppedError: If SIGTERM or SIGINT came; a checkpoint was written.
  """
  run = run_lib.make_run(config, workdir, console=console)
  run_lib.claim_workdir(run)
  _ = run.eval_source  # A wrong folder is found now, not after hours.
  with _Signals() as signals:
    run.say(
      f"{jax.device_count()} {jax.default_backend()} device(s) in"
      f" {jax.process_count()} process(es), compute"
      f" {np.dtype(run.generator.dtype).name}, workdir {run.workdir}"
    )
    if run.config.init_from:
      psnr_params = _read_init(run)
    else:
      psnr_params = _run_psnr(run, signals)
    finish.export(run, "psnr", psnr_params, 0.0)
    gan_params = None
    if run.config.phases.gan.num_train_steps:
      gan_params = _run_gan(run, psnr_params, signals)
      finish.export(run, "gan", gan_params, 1.0)
  return finish.finish(run, psnr_params, gan_params)


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


def _read_init(run):
  """The generator's parameters that `config.init_from` names."""
  name = run.config.init_from
  found = workdir_lib.find_model(
    name, phases=workdir_lib.PHASES, scale=run.config.scale
  ).weights
  config, params = found.config, found.params
  wanted = {**run.config.generator, "scale": run.config.scale}
  different = {k: config[k] for k in wanted if config.get(k) != wanted[k]}
  if different:
    flags = " ".join(
      f"--config.{'' if k == 'scale' else 'generator.'}{k}={v}"
      for k, v in different.items()
    )
    raise config_lib.ConfigError(
      f"config.init_from is {name!r}, a network of another shape; add {flags}"
    )
  expected = jax.eval_shape(
    lambda: run.generator.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  )["params"]
  shapes = jax.tree.map(lambda x: x.shape, (expected, dict(params)))
  if shapes[0] != shapes[1]:
    raise config_lib.ConfigError(
      f"config.init_from is {name!r}, whose layers are not those of"
      f" RRDBNet(scale={run.config.scale})"
    )
  run.say(f"phase one is skipped: the generator is {name}")
  return jax.tree.map(lambda x: np.asarray(x, np.float32), dict(params))


def _run_psnr(run, signals):
  """Phase one; returns the averaged generator."""
  config, phase = run.config, run.config.phases.psnr
  optimizer = _make_optimizer(config, phase, phase.learning_rate)

  def create(key):
    params = None
    if config.initialization == "bilinear":
      init = run.generator.init(key, jnp.zeros((1, 8, 8, 3)))["params"]
      params = initialization.start_bilinear(init)
    return state_lib.create_psnr_state(
      key, run.generator, optimizer, params=params
    )

  step = functools.partial(
    steps.psnr_step,
    generator=run.generator,
    optimizer=optimizer,
    pixel_loss=phase.pixel_loss,
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
  )
  return _run_phase(run, "psnr", create, step, signals)


def _run_gan(run, params, signals):
  """Phase two; returns the averaged generator."""
  config, phase = run.config, run.config.phases.gan
  optimizer = _make_optimizer(config, phase, phase.learning_rate)
  d_optimizer = _make_optimizer(config, phase, phase.d_learning_rate)
  discriminator = VGGStyleDiscriminator(
    **config.discriminator,
    input_size=config.patch_size,
    dtype=run.dtype,
  )
  params = jax.device_put(params, mesh_lib.replicated(run.mesh))

  def create(key, params):
    return state_lib.create_gan_state(
      key, run.generator, discriminator, optimizer, d_optimizer, params=params
    )

  options = {
    name: phase[name]
    for name in (
      "pixel_loss",
      "pixel_weight",
      "perceptual_weight",
      "adversarial",
      "adversarial_weight",
      "detach_means",
      "halve",
      "penalty_weight",
    )
  }
  step = functools.partial(
    steps.gan_step,
    generator=run.generator,
    discriminator=discriminator,
    optimizer=optimizer,
    d_optimizer=d_optimizer,
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
    seed=config.seed,
    **options,
  )
  arrays = {}
  if phase.perceptual_weight:
    arrays["perceptual"] = run.perceptual()
  return _run_phase(
    run,
    "gan",
    functools.partial(create, params=params),
    step,
    signals,
    before={"psnr": run_lib.on_host(params)},
    **arrays,
  )


def _make_optimizer(config, phase, learning_rate):
  schedule = phase.schedule.to_dict()
  try:
    return optimizer_lib.make_optimizer(
      learning_rate,
      schedule=schedule,
      b1=phase.b1,
      b2=phase.b2,
      clip_norm=config.clip_norm or None,
    )
  except TypeError as error:  # An option that the schedule does not have.
    raise config_lib.ConfigError(f"schedule {schedule}: {error}") from error


def _run_phase(run, name, create, step, signals, *, before=None, **arrays):
  """Trains from the newest checkpoint on to the last step of a phase."""
  config, total = run.config, run.config.phases[name].num_train_steps
  seed = config.seed + workdir_lib.PHASES.index(name)
  whole = mesh_lib.replicated(run.mesh)
  folder = run.workdir / name
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      checkpoint.Checkpoints(folder / checkpoint.FOLDER, keep=config.keep)
    )
    create = functools.partial(create, jax.random.key(seed))
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
      jax.eval_shape(create),
    )
    restored = checkpoints.restore(like)
    if restored and restored.step >= total:
      run.say(f"{name}: finished before, at step {restored.step}")
      return restored.state.ema_params
    pipeline = stack.enter_context(
      pipeline_lib.make_pipeline(
        config.data,
        scale=config.scale,
        batch_size=config.batch_size,
        patch_size=config.patch_size,
        seed=seed,
        mesh=run.mesh,
      )
    )
    if restored:
      state, start = restored.state, restored.step
      run.say(f"{name}: going on from step {start} of {total}")
    else:
      options = compilation.compiler_options(run.platform, once=True)
      create = jax.jit(create, out_shardings=whole, compiler_options=options)
      state, start = create(), 0
      run.say(f"{name}: {total} steps")

    run.say(f"{name}: trains on {pipeline.report}")
    log = stack.enter_context(metric_log.MetricLog(folder, start))
    progress = stack.enter_context(
      progress_lib.Progress(name, total, start, run.console)
    )
    phase = _Phase(
      run=run,
      name=name,
      total=total,
      pipeline=pipeline,
      step=_compile_step(run, step, pipeline, state, start, seed, arrays),
      checkpoints=checkpoints,
      log=log,
      progress=progress,
      signals=signals,
      before=before or {},
      like=like,
    )
    return phase.train(state, start)


def _compile_step(run, step, pipeline, state, start, seed, arrays):
  """The step on raw batches, its random numbers those of seed and step."""

  def run_step(state, raw, **arrays):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    return step(state, pipeline.preprocess(key, raw), **arrays)

  raw = pipeline.batch(start)
  jitted = mesh_lib.jit_step(
    run_step,
    run.mesh,
    batch_shardings=jax.tree.map(lambda x: x.sharding, raw),
    compiler_options=compilation.compiler_options(run.platform),
    **arrays,
  )
  compiled = jitted.compile(state, raw)
  checkpoint.wait_for_all()
  return compiled


@dataclasses.dataclass
class _Phase:
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
  like: Any
  rescued: bool = False

  def train(self, state, start):
    config = self.run.config
    self._reset_clock(start)
    self._warm = self._skipping = False
    done, running = start, None
    while done < self.total:
      raw = self.pipeline.batch(done)
      self._waited += self.pipeline.wait_seconds
      with jax.transfer_guard("disallow"):
        state, metrics = self.step(state, raw)
      done += 1
      if running is not None:
        rescue = self._look_at(*running)
        if rescue:
          state, done, running = *rescue, None
          continue
      running = done, metrics
      if not self._warm:  # Compilation is no training time.
        jax.block_until_ready(metrics)
        self._reset_clock(done)
        self._warm = True

      last = done == self.total
      stop = self._must_stop(done)
      evaluate = self.run.eval_source is not None and (
        last or done % config.eval_every_steps == 0
      )
      save = last or stop or done % config.checkpoint_every_steps == 0
      if not (evaluate or save):
        continue
      rescue = self._look_at(*running, always=True)
      running = None
      if rescue:
        state, done = rescue
        continue
      began = time.perf_counter()
      means = self._evaluate(done, state) if evaluate and not stop else None
      # What keeps failing should not replace what worked.
      if last or stop or (save and not self._skipping):
        self.log.flush()
        self.checkpoints.save(done, state, config=self.run.plain, metrics=means)
      checkpoint.wait_for_all()
      self._paused += time.perf_counter() - began
      if stop:
        self.checkpoints.wait()
        raise StoppedError(
          f"stopped by {stop} at step {done} of phase {self.name}; saved. The"
          " same command goes on from there"
        )
    self.checkpoints.wait()
    return state.ema_params

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
      self._add_speed(done, figures)
      self.log.write(done, figures)
      self.progress.show(done, figures)
    if figures["skipped_in_a_row"] < config.max_skipped_in_a_row:
      return None
    return self._rescue(done, figures)

  def _rescue(self, done, figures):
    """Goes back to the last good checkpoint, once."""
    row = int(figures["skipped_in_a_row"])
    failing = (
      f"phase {self.name}: the last {row} updates up to step {done} were not"
      " finite and have been skipped"
    )
    advice = (
      "lower the learning rate, set config.clip_norm, or choose"
      " config.dtype='float32'"
    )
    if self.rescued:
      raise TrainingError(
        f"{failing}, again after going back to a checkpoint; {advice}"
      )
    restored = self.checkpoints.restore(self.like)
    if restored is None:
      raise TrainingError(
        f"{failing}, and there is no checkpoint to go back to; {advice}"
      )
    self.rescued = True
    self.progress.say(f"{failing}; going back to step {restored.step}")
    self.log.rewind(restored.step)
    self._reset_clock(restored.step)
    return restored.state, restored.step

  def _must_stop(self, done):
    """The signal's name, if this is the step to stop at."""
    if jax.process_count() > 1:
      reached = self.checkpoints.reached_preemption(done)
      return "SIGTERM" if reached else ""
    return self.signals.received

  def _evaluate(self, done, state):
    params = run_lib.on_host(state.ema_params)
    means = self.run.evaluator(params).means
    self.log.write(done, {f"eval/{k}": v for k, v in means.items()})
    self.progress.say(
      f"{self.name} {done}/{self.total}  PSNR {means['psnr_y']:.2f} dB  SSIM"
      f" {means['ssim_y']:.4f}"
    )
    models = {**self.before, self.name: params}
    self.run.write_samples(f"{self.name}_{done:07d}", models)
    return means

  def _reset_clock(self, done):
    self._since, self._counted = time.perf_counter(), done
    self._waited = self._paused = 0.0

  def _add_speed(self, done, figures):
    """Adds speed and memory since the last time."""
    seconds = time.perf_counter() - self._since - self._paused
    if done > self._counted:
      count = (done - self._counted) * self.run.config.batch_size
      figures["images_per_second"] = count / seconds
      figures["data_wait_share"] = min(self._waited / seconds, 1.0)
    stats = self.run.mesh.local_devices[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
      figures["device_memory_gb"] = stats["peak_bytes_in_use"] / 1e9
    else:  # A CPU's memory is the process's.
      unit = 1 if sys.platform == "darwin" else 1024
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
      figures["host_memory_gb"] = peak / 1e9
    self._reset_clock(done)
