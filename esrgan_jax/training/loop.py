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
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from esrgan_jax import compilation
from esrgan_jax.data import pipeline as pipeline_lib
from esrgan_jax.data import sources
from esrgan_jax.interpolate import interpolate_params
from esrgan_jax.models.discriminators import VGGStyleDiscriminator
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.training import (
  checkpoint,
  evaluator,
  initialization,
  metric_log,
  report,
  samples,
  steps,
)
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import mesh as mesh_lib
from esrgan_jax.training import optimizer as optimizer_lib
from esrgan_jax.training import perceptual as perceptual_lib
from esrgan_jax.training import progress as progress_lib
from esrgan_jax.training import state as state_lib
from esrgan_jax.training import workdir as workdir_lib
from esrgan_jax.weights import files

__all__ = ["StoppedError", "TrainingError", "train"]

_log = logging.getLogger(__name__)
_PHASES = ("psnr", "gan")
_BICUBIC = "bicubic"


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
  config = config_lib.complete(config)
  first = jax.process_index() == 0
  console = console or progress_lib.make_console()
  run = _Run(
    config=config,
    plain=config_lib.plain(config),
    workdir=checkpoint.absolute(workdir),
    mesh=_make_mesh(config),
    console=console if first else None,
  )
  _claim_workdir(run)
  with _Signals() as signals:
    run.say(
      f"{jax.device_count()} {jax.default_backend()} device(s) in"
      f" {jax.process_count()} process(es), compute"
      f" {np.dtype(run.generator.dtype).name}, workdir {run.workdir}"
    )
    if config.init_from:
      psnr_params = _read_init(run)
    else:
      psnr_params = _run_psnr(run, signals)
    _export(run, "psnr", psnr_params, 0.0)
    gan_params = None
    if config.phases.gan.num_train_steps:
      gan_params = _run_gan(run, psnr_params, signals)
      _export(run, "gan", gan_params, 1.0)
  return _finish(run, psnr_params, gan_params)


@dataclasses.dataclass(frozen=True)
class _Run:
  """What all parts of a run share."""

  config: Any
  plain: dict[str, Any]
  workdir: epath.Path
  mesh: Mesh
  console: rich.console.Console | None

  @functools.cached_property
  def platform(self) -> str:
    return self.mesh.local_devices[0].platform

  @functools.cached_property
  def dtype(self) -> Any:
    return compilation.compute_dtype(self.config.dtype, self.platform)

  @functools.cached_property
  def generator(self) -> RRDBNet:
    return RRDBNet(
      **self.config.generator,
      scale=self.config.scale,
      dtype=self.dtype,
      remat=self.config.remat,
    )

  @functools.cached_property
  def eval_source(self) -> sources.Source | None:
    """Validation images."""
    return pipeline_lib.make_source(
      self.config.data, scale=self.config.scale, evaluation=True
    )

  @functools.cached_property
  def evaluator(self) -> evaluator.Evaluator:
    """Measures the generator while it trains."""
    return self.make_evaluator(limit=self.config.eval.max_images)

  def make_evaluator(self, *, limit: int = 0, distances: Any = None) -> Any:
    """Measures on this process's devices; 0 for all images."""
    source = self.eval_source
    return evaluator.Evaluator(
      self.generator,
      _First(source, limit) if limit else source,
      crop_border=self.config.eval.crop_border,
      distances=distances,
      devices=self.mesh.local_devices,
    )

  @functools.cached_property
  def crops(self) -> list[sources.Pair]:
    """Crops for sample pictures."""
    settings, scale = self.config.eval, self.config.scale
    pairs = (self.eval_source[i] for i in range(len(self.eval_source)))
    return samples.choose_crops(
      pairs,
      size=settings.sample_size // scale * scale,
      scale=scale,
      count=settings.num_samples,
    )

  @functools.cached_property
  def upscale_crops(self) -> Callable[[Any, np.ndarray], np.ndarray]:
    """Upscales sample crops, uint8, on one device."""
    device = self.mesh.local_devices[0]

    def run(params, lr):
      sr = self.generator.apply(
        {"params": params}, lr.astype(jnp.float32) / 255
      )
      return jnp.round(jnp.clip(sr, 0, 1) * 255).astype(jnp.uint8)

    jitted = jax.jit(
      run, compiler_options=compilation.compiler_options(self.platform)
    )
    return lambda params, lr: np.asarray(
      jitted(*jax.device_put((params, lr), device))
    )

  @functools.cached_property
  def vgg(self) -> perceptual_lib.PerceptualWeights:
    weights = perceptual_lib.load_vgg19(
      self.config.perceptual.weights, seed=self.config.seed
    )
    self.say(f"perceptual loss: {weights.description}")
    return weights

  def say(self, message: str) -> None:
    if self.console:
      self.console.print(message)

  def write(self, name: str, content: str | bytes) -> None:
    """Writes a file of the workdir, aside first; only in the first process."""
    if jax.process_index():
      return
    path = self.workdir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    if isinstance(content, str):
      content = content.encode()
    aside.write_bytes(content)
    aside.replace(path)


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


def _make_mesh(config):
  mesh = mesh_lib.make_mesh(config.mesh.num_devices or None)
  mesh_lib.local_batch_size(
    mesh, batch_size=config.batch_size, accumulate=config.accumulate
  )
  return mesh


def _claim_workdir(run):
  """Writes the config; refuses one that differs from that of what is there."""
  problem = ""
  if jax.process_index() == 0:
    path = run.workdir / "config.json"
    begun = any((run.workdir / p / checkpoint.FOLDER).exists() for p in _PHASES)
    if begun and path.exists():
      changes = config_lib.difference(json.loads(path.read_text()), run.plain)
      if changes:
        listed = "".join(f"\n  {line}" for line in changes)
        if run.config.allow_changes:
          run.say(f"going on with another config than before:{listed}")
        else:
          problem = (
            f"{run.workdir} was begun with another config:{listed}\nTo go on"
            " with the new one, add --config.allow_changes=true; or choose"
            " another workdir"
          )
    if not problem:
      run.write("config.json", json.dumps(run.plain, indent=2) + "\n")
  # All processes end together, or none does.
  failed = _everywhere(np.array(bool(problem)))
  if problem:
    raise config_lib.ConfigError(problem)
  if failed.any():
    raise config_lib.ConfigError(f"{run.workdir} was begun with another config")


def _read_init(run):
  """The generator's parameters that `config.init_from` names."""
  name = run.config.init_from
  found = workdir_lib.find_model(
    name, phases=_PHASES, scale=run.config.scale
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
    arrays["perceptual"] = _perceptual(run)
  return _run_phase(
    run,
    "gan",
    functools.partial(create, params=params),
    step,
    signals,
    before={"psnr": _on_host(params)},
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


def _perceptual(run):
  layers = run.config.perceptual.layers.to_dict()
  return steps.vgg_perceptual(
    run.vgg.params,
    layer_weights=layers,
    criterion=run.config.perceptual.criterion,
    dtype=run.dtype,
  )


def _run_phase(run, name, create, step, signals, *, before=None, **arrays):
  """Trains from the newest checkpoint on to the last step of a phase."""
  config, total = run.config, run.config.phases[name].num_train_steps
  seed = config.seed + _PHASES.index(name)
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
    if restored:
      state, start = restored.state, restored.step
      run.say(f"{name}: going on from step {start} of {total}")
    else:
      state, start = jax.jit(create, out_shardings=whole)(), 0
      run.say(f"{name}: {total} steps")

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

  run: _Run
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
    params = _on_host(state.ema_params)
    means = self.run.evaluator(params).means
    self.log.write(done, {f"eval/{k}": v for k, v in means.items()})
    self.progress.say(
      f"{self.name} {done}/{self.total}  PSNR {means['psnr_y']:.2f} dB  SSIM"
      f" {means['ssim_y']:.4f}"
    )
    models = {**self.before, self.name: params}
    _write_samples(self.run, f"{self.name}_{done:07d}", models)
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


def _everywhere(value):
  """Stacks a value of every process."""
  if jax.process_count() == 1:
    return value[None]
  checkpoint.wait_for_all()
  return np.asarray(multihost_utils.process_allgather(value))


def _on_host(params):
  """Replicated parameters as NumPy arrays, on one process or several."""
  return jax.tree.map(np.asarray, params)


class _First(sources.Source):
  """The first images of a source."""

  def __init__(self, source: sources.Source, count: int):
    self.scale, self.names = source.scale, source.names[:count]
    self._source = source

  def __getitem__(self, index: int) -> sources.Pair:
    return self._source[index]

  def fingerprint(self) -> str:
    """As `Source.fingerprint`."""
    return f"{len(self)} of {self._source.fingerprint()}"


_TITLES = {"psnr": "PSNR model", "gan": "GAN model"}


def _write_samples(run, name, models):
  """Writes a picture of crops: LR, the models, HR."""
  if jax.process_index() or not run.crops:
    return
  lr = np.stack([crop.lr for crop in run.crops])
  columns = {
    "LR, bicubic": [
      evaluator.bicubic(crop.lr, scale=run.config.scale) for crop in run.crops
    ]
  }
  for model, params in models.items():
    columns[_TITLES.get(model, model)] = run.upscale_crops(params, lr)
  columns["HR"] = [crop.hr for crop in run.crops]
  run.write(f"samples/{name}.png", samples.png(samples.grid(columns)))


def _finish(run, psnr_params, gan_params):
  """Exports and evaluates the models; returns the report's path."""
  config = run.config
  models = {"psnr": (psnr_params, 0.0)}
  if gan_params is not None:
    psnr_params, gan_params = _on_host(psnr_params), _on_host(gan_params)
    mix = functools.partial(interpolate_params, psnr_params, gan_params)
    models["gan"] = (gan_params, 1.0)
    mixed = f"interpolated_{config.export_alpha:g}"
    models[mixed] = mix(alpha=config.export_alpha), config.export_alpha
    _export(run, mixed, *models[mixed])
  if run.eval_source is None:
    return _report(run)

  distances = {}
  if gan_params is not None and config.phases.gan.perceptual_weight:
    distances["perceptual"] = _perceptual(run)
  measure = run.make_evaluator(distances=distances)
  found = {
    alpha: measure(params, model=name)
    for name, (params, alpha) in models.items()
  }
  evaluations = [measure.bicubic(), *found.values()]
  if jax.process_index() == 0:
    evaluator.write_evaluations(run.workdir / "evaluation.json", evaluations)
  _write_samples(run, "final", {k: v[0] for k, v in models.items()})
  if gan_params is not None:
    for alpha in config.interpolation_alphas:
      if alpha not in found:
        found[alpha] = measure(mix(alpha=alpha), model=f"alpha {alpha:g}")
    rows = [
      {"alpha": alpha, **found[alpha].to_json()["means"]}
      for alpha in sorted(found)
    ]
    run.write("interpolation.json", json.dumps({"rows": rows}, indent=1) + "\n")
  _show_table(run, evaluations)
  return _report(run)


def _export(run, name, params, alpha):
  """Writes a model for this package, chaiNNer, ComfyUI and spandrel."""
  if jax.process_index():
    return
  with tempfile.TemporaryDirectory() as folder:
    path = files.write_weights(
      os.path.join(folder, "model.safetensors"),
      _on_host(params),
      {**run.config.generator, "scale": run.config.scale},
      metadata={
        "alpha": f"{alpha:g}",
        "phase": name,
        "trained_by": "esrgan_jax",
      },
    )
    run.write(f"models/{name}.safetensors", path.read_bytes())


def _show_table(run, evaluations):
  """Prints the means."""
  if not run.console:
    return
  table = rich.table.Table(box=None, pad_edge=False)
  table.add_column("model")
  labels = {
    "psnr_y": ("PSNR Y", ".2f"),
    "ssim_y": ("SSIM Y", ".4f"),
    "psnr_rgb": ("PSNR RGB", ".2f"),
    "ssim_rgb": ("SSIM RGB", ".4f"),
    "perceptual": ("perceptual", ".4f"),
  }
  keys = [k for k in evaluations[0].means if k in labels]
  for key in keys:
    table.add_column(labels[key][0], justify="right")
  for each in evaluations:
    cells = [f"{each.means[key]:{labels[key][1]}}" for key in keys]
    table.add_row(each.model, *cells)
  run.console.print(table)
  run.say(evaluations[0].protocol)


def _report(run):
  """Has the first process write the report; the others wait for it."""
  path = run.workdir / "report.html"
  if jax.process_index() == 0:
    report.write_report(run.workdir)
    run.say(f"report: {path}")
  _everywhere(np.zeros(()))
  return path
