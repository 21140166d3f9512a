"""What all parts of a training run share: config, workdir, devices, images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from etils import epath
from jax.sharding import Mesh

from esrgan_jax import compilation, storage, text
from esrgan_jax import console as console_lib
from esrgan_jax.data import agreement, sources, teaching
from esrgan_jax.data import pipeline as pipeline_lib
from esrgan_jax.evaluation import evaluator
from esrgan_jax.evaluation import measures as measures_lib
from esrgan_jax.models import registry
from esrgan_jax.report import samples
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import degrading as degrading_lib
from esrgan_jax.training import lock as lock_lib
from esrgan_jax.training import mesh as mesh_lib
from esrgan_jax.training import perceptual as perceptual_lib
from esrgan_jax.training import perceptual_note
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training import progress as progress_lib
from esrgan_jax.upscaling import upscaler
from esrgan_jax.weights import discriminators, fields, find, partial
from esrgan_jax.weights.dialects.protocol import UntoldScaleError

__all__ = ["Run", "make_run", "on_host"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
  """One call of `loop.train`. What takes time is made when it is asked for.

  Attributes:
    config: The complete config.
    plain: The same, as JSON holds it.
    workdir: Where results go.
    mesh: The devices.
    console: Where to tell of the progress; None in all processes but one.
    lock: Keeps other runs out of the workdir.
    failures: What went wrong besides the training, a line each.
  """

  config: Any
  plain: dict[str, Any]
  workdir: epath.Path
  mesh: Mesh
  console: rich.console.Console | None
  lock: lock_lib.WorkdirLock
  failures: list[str] = dataclasses.field(default_factory=list)

  @functools.cached_property
  def platform(self) -> str:
    """Of the devices: cpu, gpu, tpu."""
    return self.mesh.local_devices[0].platform

  @functools.cached_property
  def dtype(self) -> Any:
    """What networks compute in."""
    return compilation.compute_dtype(self.config.dtype, self.platform)

  @functools.cached_property
  def generator(self) -> Any:
    """The network, without parameters."""
    try:
      generator = registry.make_generator(
        **self.network, dtype=self.dtype, remat=self.config.remat
      )
    except ValueError as error:
      raise config_lib.ConfigError(f"config.generator: {error}") from error
    if self.platform == "cpu" and jax.process_count() > 1:
      # XLA runs the sums over devices that are in a loop beside those after it,
      # in another order in each process: gloo mistakes one for the other.
      generator = registry.without_loops(generator)
    return generator

  @functools.cached_property
  def eval_source(self) -> sources.Source | None:
    """Validation images that can be used; every process must ask for them."""
    border = self.config.eval.crop_border
    degrades = (
      bool(self.degrading)
      and not (degrading_lib.has_pairs(self.config.data.eval)[0])
    )
    with progress_lib.counting("validation images", self.console) as progress:
      source, report = pipeline_lib.open_evaluation(
        self.config.data,
        scale=self.config.scale,
        smallest=evaluator.smallest_side(border),
        progress=progress,
        needs_hr=not self.teacher,
        unmade=degrades,
      )
    self._tell("validation images", report)
    if source is not None and self.teacher:
      source = self._teach("validation images")(source)
    if source is None or not degrades:
      return source
    seed = self.degrading.eval_seed
    self.say(f"validation images: LR is degraded, with seed {seed}")
    return self.degrading.source(source)

  @functools.cached_property
  def teacher(self) -> teaching.Teacher | None:
    """The model whose results take the place of HR, if a phase has one."""
    section = phases_lib.taught_by(self.config)
    if section is None:
      return None
    options = {"dtype": self.dtype, "devices": self.mesh.local_devices}
    try:
      try:
        model = upscaler.load(section.teacher, **options)
      except UntoldScaleError:
        scale = self.config.scale
        model = upscaler.load(section.teacher, scale=scale, **options)
      find.check_scale(model.name, {"scale": model.scale}, self.config.scale)
    except ValueError as error:
      raise config_lib.ConfigError(
        f"the teacher {section.teacher!r}: {error}"
      ) from error
    if registry.channels(model.net) != (3, 3):
      raise config_lib.ConfigError(
        f"the teacher {section.teacher!r} is no network of RGB images"
      )
    for note in model.notes:
      self.say(f"{model.name}: {note}")
    return teaching.Teacher(model, self.config.data.cache_dir or None)

  def _teach(
    self, what: str, margin: int = 0
  ) -> Callable[[sources.Source], sources.Source]:
    """What has the teacher upscale a source, and shows how far it is."""

    def teach(source):
      title = f"{what}: {self.teacher.model.name}'s results"
      with progress_lib.counting(title, self.console) as progress:
        return self.teacher.teach(
          source,
          first=jax.process_index() * len(source) // jax.process_count(),
          margin=margin,
          progress=progress,
        )

    return teach

  @functools.cached_property
  def data(self) -> pipeline_lib.Data:
    """Training images, decoded once; every process must ask for them."""
    section = phases_lib.taught_by(self.config)
    teach = None
    if section is not None and section.targets == "ahead":
      teach = self._teach("training images", section.margin)
    phases = (self.config.phases[n] for n in phases_lib.order(self.config))
    truth = any(phase.get("truth_weight") for phase in phases)
    size = self.config.patch_size
    if self.degrading:
      size = self.degrading.crop_size
    with progress_lib.counting("training images", self.console) as progress:
      data = pipeline_lib.open_data(
        self.config.data,
        scale=self.config.scale,
        batch_size=self.config.batch_size,
        patch_size=size,
        mesh=self.mesh,
        progress=progress,
        teach=teach,
        needs_hr=section is None or truth,
        unmade=bool(self.degrading),
      )
    self._tell("training images", data.report)
    return data

  @functools.cached_property
  def degrading(self) -> degrading_lib.Degrading | None:
    """How LR is made of HR inside the step; None where it is not."""
    return degrading_lib.of(self.config)

  def check_folders(self) -> None:
    """Raises if photos that are named are not there, before all that is slow.

    Of several processes each has folders of its own: `data` compares them.
    """
    if jax.process_count() > 1:
      return
    for key in ("sources", "eval"):
      try:
        if spec := self.config.data[key]:
          sources.check_folders(spec, scale=self.config.scale)
      except sources.DataError as error:
        raise sources.DataError(f"data.{key}: {error}") from error

  def drop_data(self) -> None:
    """Gives back the memory, perhaps of devices, of the training images."""
    self.__dict__.pop("data", None)

  @functools.cached_property
  def evaluator(self) -> evaluator.Evaluator:
    """Measures the generator while it trains."""
    return self.make_evaluator(limit=self.config.eval.max_images)

  def make_evaluator(
    self,
    *,
    limit: int = 0,
    measures: Sequence[measures_lib.Measure] = (),
  ) -> evaluator.Evaluator:
    """Measures on this process's devices.

    Args:
      limit: How many images at most; 0 is all.
      measures: What to measure besides `config.eval.measures`, `config.eval
        .best`, by which checkpoints are chosen, and PSNR on Y.
    """
    settings = self.config.eval
    names = dict.fromkeys(["psnr_y", settings.best, *settings.measures])
    source = self.eval_source
    return evaluator.Evaluator(
      self.generator,
      sources.Subset(source, range(len(source))[:limit]) if limit else source,
      crop_border=settings.crop_border,
      measures=[*measures_lib.choose(names), *measures],
      failed=self._do_without,
      skip=None if self.config.data.on_problem == "stop" else self.skip,
      devices=self.mesh.local_devices,
    )

  @functools.cached_property
  def network(self) -> dict[str, Any]:
    """The network, as weight files and `registry.make_generator` have it."""
    # As it is read again from files: a list of the user's is a tuple.
    return fields.checked(
      {**self.plain["generator"], "scale": self.config.scale}
    )

  @functools.cached_property
  def order(self) -> tuple[str, ...]:
    """The phases' names, as they follow each other."""
    return phases_lib.order(self.config)

  @property
  def start_name(self) -> str:
    """What the first phase starts from, if from weights; else nothing."""
    parts = pathlib.PurePath(self.config.init_from).parts
    return text.printable("/".join(parts[-2:]))

  @property
  def start_key(self) -> str:
    """What that is called among the models of this workdir."""
    # Where it takes the place of phase one, all that read workdirs look there.
    return "start" if self.config.phase_order else phases_lib.PUBLISHED[0]

  def perceptual(self) -> Any:
    """The perceptual distance that the config names."""
    return perceptual_lib.distance(
      self.config.perceptual.network,
      self._perceptual.params,
      layer_weights=self.config.perceptual.layers.to_dict(),
      criterion=self.config.perceptual.criterion,
      dtype=self.dtype,
    )

  def begin_discriminator(self, variables: Any) -> Any:
    """Returns the discriminator that `config.init_discriminator` names.

    Args:
      variables: Those that a discriminator would begin with, abstract or not:
        the same are returned where none is named.

    Raises:
      ConfigError: If it is another network, or one of another shape.
      ValueError: If there is none.
    """
    name = self.config.init_discriminator
    if not name:
      return variables
    begun = self._discriminator
    architecture = begun.config.get("architecture")
    if architecture not in (None, self.config.discriminator.architecture):
      raise config_lib.ConfigError(
        f"config.init_discriminator is {name!r}, of {architecture}, another"
        f" network: add --config.discriminator.architecture={architecture}"
      )
    found, report = partial.fit(begun.variables, variables)
    if report.left and not (self.config.init_partial and report.taken):
      raise config_lib.ConfigError(
        f"config.init_discriminator is {name!r}, a discriminator of another"
        f" shape: {report}. Set config.discriminator and config.patch_size as"
        " there; or config.init_partial, which takes what fits"
      )
    if name not in self._told:
      self._told.add(name)
      self.say(f"the discriminator starts from {text.printable(name)}")
      for note in begun.notes:
        self.say(f"the discriminator: {note}")
    return found

  @functools.cached_property
  def _discriminator(self) -> discriminators.Discriminator:
    return find.find_discriminator(self.config.init_discriminator)

  @contextlib.contextmanager
  def tolerating(self, what: str) -> Iterator[None]:
    """Has a failure in here be told and listed, and not end the training.

    Args:
      what: What is done in here, for the message.
    """
    try:
      yield
    except Exception as error:
      reason = " ".join(str(error).split())[:500] or type(error).__name__
      self.failures.append(f"{what}: {reason}")
      traceback = bool(os.environ.get("ESRGAN_JAX_TRACEBACK"))
      _log.error("%s failed: %s", what, reason, exc_info=traceback)

  def say(self, message: str) -> None:
    """Prints a line; only in the first process."""
    if self.console:
      self.console.print(console_lib.lines(message))

  def write_config(self) -> None:
    """Writes the config, once nothing speaks against it any more.

    And which features the perceptual loss compares, if a phase has one.
    """
    self.write("config.json", json.dumps(self.plain, indent=2) + "\n")
    weights = self.__dict__.get("_perceptual")
    if weights:
      perceptual_note.note(self, weights)

  def write(self, name: str, content: str | bytes) -> None:
    """Writes a file of the workdir; only in the first process."""
    if jax.process_index():
      return
    path = self.workdir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_whole(path, content, overwrite=True)

  def write_samples(self, name: str, models: Mapping[str, Any]) -> bytes:
    """Writes a picture of crops: LR, models' variables by name, HR.

    Returns:
      The PNG file's content; nothing where there are no crops, it failed, and
      in all processes but the first.
    """
    if jax.process_index():
      return b""
    with self.tolerating(f"the sample picture {name}"):
      return self._write_samples(name, models) if self._crops else b""
    return b""

  def _write_samples(self, name, models):
    lr = np.stack([crop.lr for crop in self._crops])
    columns = {
      "LR, bicubic": [
        evaluator.bicubic(image, scale=self.config.scale) for image in lr
      ]
    }
    titles = {
      phase: f"{phases_lib.title(self.config, phase)} model"
      for phase in self.order
    }
    if self.start_name:
      titles[self.start_key] = self.start_name
    for model, variables in models.items():
      title = text.printable(titles.get(model, model), limit=24)
      columns[title] = self.upscale_on_one_device(variables, lr)
    target = self.teacher.model.name if self.teacher else "HR"
    target = text.printable(target, limit=24)
    columns[target] = [crop.hr for crop in self._crops]
    picture = samples.png(samples.grid(columns))
    self.write(f"samples/{name}.png", picture)
    return picture

  def _tell(self, what: str, report: agreement.Report) -> None:
    """Names images that are left out, each once."""
    new = tuple(p for p in report.problems if p not in self._told)
    self._told.update(new)
    if new:
      self.say(f"{what}: {dataclasses.replace(report, problems=new)}")

  def skip(self, problem: sources.Problem) -> None:
    """Names a validation image that cannot be read any more, once.

    Args:
      problem: Which, and why.
    """
    if problem.name not in self._told:
      self._told.add(problem.name)
      _log.warning("%s: evaluation goes on without it", problem)

  def _do_without(self, measure: str, error: ValueError) -> None:
    """Tells of a measure that fails, once, and goes on without it."""
    if ("measure", measure) not in self._told:
      self._told.add(("measure", measure))
      self.failures.append(str(error))
      _log.error("%s: evaluation goes on without it", error)

  @functools.cached_property
  def _told(self) -> set[Any]:
    """Problems that have been told of."""
    return set()

  @functools.cached_property
  def _crops(self) -> list[sources.Pair]:
    """Crops for sample pictures."""
    settings, scale = self.config.eval, self.config.scale
    pairs = (pair for _, pair in sources.readable(self.eval_source, self.skip))
    size = max(settings.sample_size // scale, 1) * scale
    crops = samples.choose_crops(
      pairs, size=size, scale=scale, count=settings.num_samples
    )
    if settings.num_samples and not crops:
      self.say(
        f"no sample pictures: no validation image is {size} pixels a side;"
        " lower config.eval.sample_size"
      )
    return crops

  @functools.cached_property
  def upscale_on_one_device(
    self,
  ) -> Callable[[Any, np.ndarray], np.ndarray]:
    """`(variables, lr) -> sr` of small pictures, uint8 `[N, H, W, 3]`."""
    device = self.mesh.local_devices[0]

    def run(variables, lr):
      image = lr.astype(jnp.float32) / 255
      sr = registry.infer(self.generator, variables, image)
      return jnp.round(jnp.clip(sr, 0, 1) * 255).astype(jnp.uint8)

    jitted = jax.jit(
      run, compiler_options=compilation.compiler_options(self.platform)
    )
    return lambda variables, lr: np.asarray(
      jitted(*jax.device_put((on_host(variables), lr), device))
    )

  @functools.cached_property
  def _perceptual(self) -> perceptual_lib.PerceptualWeights:
    settings = self.config.perceptual
    try:
      weights = perceptual_lib.load(
        settings.network, settings.weights, seed=self.config.seed
      )
    except Exception as error:
      perceptual_note.check(self, error)  # Others wait to compare theirs.
      raise
    perceptual_note.check(self, weights)
    self.say(f"perceptual loss: {weights.description}")
    return weights


def make_run(
  config: Mapping[str, Any],
  path: str | os.PathLike[str],
  *,
  console: rich.console.Console | None = None,
) -> Run:
  """Checks a config and gathers what a run of it needs.

  Args:
    config: See `esrgan_jax.training.config`; what it lacks is as published.
    path: The workdir.
    console: Where to tell of the progress; None for standard output.

  Returns:
    The run; nothing has been written.

  Raises:
    ValueError: If the config cannot be used, on this machine or at all.

  >>> make_run({"batch_size": 8}, "/tmp/run").config.patch_size
  128
  """
  config = config_lib.complete(config)
  number = config.mesh.num_devices
  try:
    mesh = mesh_lib.make_mesh(number or None)
  except ValueError as error:
    raise config_lib.ConfigError(
      f"config.mesh.num_devices is {number}; it must be 1 to"
      f" {jax.device_count()}, the devices here, or 0 for all of them (which"
      " several processes need)"
    ) from error
  try:
    mesh_lib.local_batch_size(
      mesh, batch_size=config.batch_size, accumulate=config.accumulate
    )
  except ValueError as error:
    raise config_lib.ConfigError(f"config.batch_size: {error}") from error
  console = console or console_lib.make_console()
  return Run(
    config=config,
    plain=config_lib.plain(config),
    workdir=storage.absolute(path),
    mesh=mesh,
    console=None if jax.process_index() else console,
    lock=lock_lib.WorkdirLock(path),
  )


def on_host(variables: Any) -> Any:
  """Replicated arrays as NumPy's, on one process or several."""
  return jax.tree.map(np.asarray, variables)
