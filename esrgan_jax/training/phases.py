"""What a training's phases are: where each begins, and what a step of it does.

All of them are built and checked before the first step of the first: a mistake
in settings of phase two is found in seconds, not after a million steps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from esrgan_jax.models import initialization
from esrgan_jax.models.discriminators import VGGStyleDiscriminator
from esrgan_jax.steps import gan, optimizer, psnr, state
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import run as run_lib
from esrgan_jax.weights import find as workdir

__all__ = ["Phase", "make_phases"]

# Keys of `config.phases.gan` that are arguments of the step.
_GAN_OPTIONS = (
  "pixel_loss",
  "pixel_weight",
  "perceptual_weight",
  "adversarial",
  "adversarial_weight",
  "detach_means",
  "halve",
  "penalty_weight",
)


@dataclasses.dataclass(frozen=True)
class Phase:
  """One phase.

  Attributes:
    name: Its section of `config.phases`, and its folder in a workdir.
    total: Its last step.
    seed: Of its first parameters, its batches and its random numbers.
    create: `(key, params) -> state`, the state before its first step; `params`
      are those of the generator to start from, or None.
    step: `(state, batch, **arrays) -> (state, metrics)` of float images.
    arrays: Arguments of `step` that stay the same: put on the devices once.
  """

  name: str
  total: int
  seed: int
  create: Callable[[jax.Array, Any], Any]
  step: Callable[..., tuple[Any, dict[str, jax.Array]]]
  arrays: Mapping[str, Any]

  def abstract_state(self, params: Any) -> Any:
    """Returns the shapes of its state.

    Args:
      params: As of `create`; abstract arrays will do.
    """
    return jax.eval_shape(self.create, jax.random.key(self.seed), params)


def make_phases(run: run_lib.Run) -> list[Phase]:
  """Builds the phases that a config asks for, in order, and checks each.

  Args:
    run: The run. Weights of the perceptual loss are read, or fetched.

  Returns:
    Phase one, unless `config.init_from` takes its place, and phase two, unless
    it has no steps.

  Raises:
    ConfigError: If a phase could not do a single step.
    FileNotFoundError: If weights of the perceptual loss are not there.
    ValueError: If they are not what they should be.
  """
  config = run.config
  makers = []
  if not config.init_from:
    makers.append(_make_psnr)
  if config.phases.gan.num_train_steps:
    makers.append(_make_gan)
  for make in makers:
    _check(run, make)
  return [make(run, run.generator) for make in makers]


def _make_psnr(run: run_lib.Run, generator: nn.Module) -> Phase:
  """Phase one: the generator alone, by its distance to the pixels of HR."""
  config, settings = run.config, run.config.phases.psnr
  adam = _make_optimizer(config, "psnr", settings.learning_rate)

  def create(key, params):
    if params is None and config.initialization == "bilinear":
      init = generator.init(key, jnp.zeros((1, 8, 8, 3)))["params"]
      params = initialization.start_bilinear(init)
    return state.create_psnr_state(key, generator, adam, params=params)

  step = functools.partial(
    psnr.psnr_step,
    generator=generator,
    optimizer=adam,
    pixel_loss=settings.pixel_loss,
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
  )
  return _make_phase(run, "psnr", create, step)


def _make_gan(run: run_lib.Run, generator: nn.Module) -> Phase:
  """Phase two: against a discriminator, from phase one's generator."""
  config, settings = run.config, run.config.phases.gan
  adam = _make_optimizer(config, "gan", settings.learning_rate)
  d_adam = _make_optimizer(config, "gan", settings.d_learning_rate)
  discriminator = VGGStyleDiscriminator(
    **config.discriminator, input_size=config.patch_size, dtype=run.dtype
  )

  def create(key, params):
    return state.create_gan_state(
      key, generator, discriminator, adam, d_adam, params=params
    )

  step = functools.partial(
    gan.gan_step,
    generator=generator,
    discriminator=discriminator,
    optimizer=adam,
    d_optimizer=d_adam,
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
    seed=config.seed,
    **{name: settings[name] for name in _GAN_OPTIONS},
  )
  arrays = {}
  if settings.perceptual_weight:
    arrays["perceptual"] = run.perceptual()
  return _make_phase(run, "gan", create, step, arrays)


def _make_phase(
  run: run_lib.Run,
  name: str,
  create: Callable[..., Any],
  step: Callable[..., Any],
  arrays: Mapping[str, Any] | None = None,
) -> Phase:
  return Phase(
    name=name,
    total=run.config.phases[name].num_train_steps,
    seed=run.config.seed + workdir.PHASES.index(name),
    create=create,
    step=step,
    arrays=arrays or {},
  )


def _make_optimizer(
  config: Any, name: str, learning_rate: float
) -> optimizer.Optimizer:
  settings = config.phases[name]
  try:
    return optimizer.make_optimizer(
      learning_rate,
      schedule=settings.schedule.to_dict(),
      b1=settings.b1,
      b2=settings.b2,
      clip_norm=config.clip_norm or None,
    )
  # A TypeError is an option that the schedule does not have.
  except (TypeError, ValueError) as error:
    raise config_lib.ConfigError(f"config.phases.{name}: {error}") from error


def _check(run: run_lib.Run, make: Callable[..., Phase]) -> None:
  """Traces a phase's beginning, and its first step: shapes only."""
  config = run.config
  sizes = {"lr": config.patch_size // config.scale, "hr": config.patch_size}
  batch = {
    name: jax.ShapeDtypeStruct((config.batch_size, n, n, 3), jnp.float32)
    for name, n in sizes.items()
  }
  # The generator takes most of the time and depends on nothing but itself: the
  # step is traced around another one.
  phase, stand_in = make(run, run.generator), _Repeat(config.scale)
  around = make(run, stand_in)
  params = jax.eval_shape(stand_in.init, jax.random.key(0), batch["lr"])
  try:
    phase.abstract_state(None)
    jax.eval_shape(
      around.step,
      around.abstract_state(params["params"]),
      batch,
      **around.arrays,
    )
  except ValueError as error:
    reason = " ".join(str(error).split())
    raise config_lib.ConfigError(
      f"phase {phase.name} cannot be trained with patches of"
      f" {config.patch_size} pixels (config.patch_size), in batches of"
      f" {config.batch_size} (config.batch_size), at scale {config.scale}:"
      f" {reason}"
    ) from error


class _Repeat(nn.Module):
  """A generator that repeats pixels, in a brightness that can be learnt."""

  scale: int

  @nn.compact
  def __call__(self, lr: jax.Array) -> jax.Array:
    gain = self.param("gain", nn.initializers.ones, ())
    return gain * lr.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
