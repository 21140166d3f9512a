"""What a training's phases are: where each begins, and what a step of it does.

A phase has a section in the config, `config.phases.NAME`, and is of a kind,
which is mostly the name: a file each in this folder, or a plugin's. They follow
in the order of `config.phase_order`.

All of them are built and checked before the first step of the first: a mistake
in settings of phase two is found in seconds, not after a million steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from esrgan_jax import augment
from esrgan_jax.models import registry
from esrgan_jax.steps import distill as distill_lib
from esrgan_jax.steps.state import init_generator
from esrgan_jax.training.errors import ConfigError
from esrgan_jax.training.phases import distill as _distill  # noqa: F401
from esrgan_jax.training.phases import gan as _gan  # noqa: F401
from esrgan_jax.training.phases import psnr as _psnr  # noqa: F401
from esrgan_jax.training.phases.kinds import (
  AUGMENTATION,
  PUBLISHED,
  Kind,
  Phase,
  augmentation,
  find_kind,
  kinds,
  make_optimizer,
  make_phase,
  make_regression,
  order,
  register_kind,
  starts,
  taught_by,
  title,
  unregister_kind,
  variables,
)

__all__ = [
  "AUGMENTATION",
  "PUBLISHED",
  "Kind",
  "Phase",
  "augmentation",
  "find_kind",
  "kinds",
  "make_optimizer",
  "make_phase",
  "make_phases",
  "make_regression",
  "order",
  "register_kind",
  "starts",
  "taught_by",
  "title",
  "unregister_kind",
  "variables",
]


def make_phases(run: Any) -> list[Phase]:
  """Builds the phases that a config asks for, in order, and checks each.

  Args:
    run: The run, as `training.run.make_run` returns it. Weights of the
      perceptual loss are read, or fetched.

  Returns:
    The phases of `order(run.config)`.

  Raises:
    ConfigError: If a phase could not do a single step.
    FileNotFoundError: If weights of the perceptual loss are not there.
    ValueError: If they are not what they should be.
  """
  names = order(run.config)
  _check_patch(run)
  for name in names:
    _check(run, name)
  phases = [_make(run, name, run.generator) for name in names]
  if taught_by(run.config) and taught_by(run.config).targets == "step":
    phases = [_taught(run, phase) for phase in phases]
  if run.config.init_discriminator and not any(p.load for p in phases):
    raise ConfigError(
      f"config.init_discriminator is {run.config.init_discriminator!r}, but no"
      f" phase of {', '.join(names)} trains a discriminator: leave it out, or"
      " add one to config.phase_order, such as gan"
    )
  return phases


def _make(run: Any, name: str, generator: nn.Module) -> Phase:
  kind = find_kind(run.config.phases[name].kind)
  phase = kind.make(run, name, generator)
  if not isinstance(phase, Phase):
    raise ConfigError(
      f"config.phases.{name}: `make` of the kind {kind.name!r} returns"
      f" {type(phase).__name__}, not a Phase; see phases.make_phase"
    )
  return phase


def _taught(run: Any, phase: Phase) -> Phase:
  """The phase whose step has the teacher make HR of LR."""
  teacher = run.teacher.model
  side = run.config.patch_size // run.config.scale
  if side % (multiple := registry.size_multiple(teacher.net)):
    raise ConfigError(
      f"config.patch_size is {run.config.patch_size}: LR patches of {side}"
      f" pixels, but the teacher takes multiples of {multiple}; choose a"
      f" multiple of {multiple * run.config.scale}, or targets=ahead"
    )

  def step(state, batch, *, teacher_variables, **arrays):
    batch = distill_lib.taught(
      batch, teacher=teacher.net, variables=teacher_variables
    )
    return phase.step(state, batch, **arrays)

  variables = {"params": teacher.params, **teacher.collections}
  arrays = {**phase.arrays, "teacher_variables": variables}
  return dataclasses.replace(phase, step=step, arrays=arrays)


def _check_patch(run: Any) -> None:
  """Whether the generator takes patches of that size, in color."""
  config, multiple = run.config, registry.size_multiple(run.generator)
  channels = registry.channels(run.generator)
  if channels != (3, 3):
    raise ConfigError(
      "config.generator: num_in_ch and num_out_ch are {} and {}, but images of"
      " files are RGB: leave both at 3; esrgan_jax.steps trains on arrays of"
      " other channels".format(*channels)
    )
  side = config.patch_size // config.scale
  if side % multiple:
    step = multiple * config.scale
    near = max(round(config.patch_size / step), 1) * step
    raise ConfigError(
      f"config.patch_size is {config.patch_size}: LR patches of {side} pixels,"
      f" but {config.generator.architecture} takes multiples of {multiple}; it"
      f" must be a multiple of {step}, such as {near}"
    )


def _check(run: Any, name: str) -> None:
  """Traces a phase's beginning, and its first step: shapes only."""
  config = run.config
  sizes = {"lr": config.patch_size // config.scale, "hr": config.patch_size}
  batch = {
    name: jax.ShapeDtypeStruct((config.batch_size, n, n, 3), jnp.float32)
    for name, n in sizes.items()
  }
  # The generator takes most of the time and depends on nothing but itself: the
  # step is traced around another one.
  stand_in = _Repeat(config.scale)
  first = jax.eval_shape(stand_in.init, jax.random.key(0), batch["lr"])
  try:
    phase = _make(run, name, run.generator)
    around = _make(run, name, stand_in)
    state = phase.abstract_state(None)

    def step(state, batch, arrays):
      key, chosen = jax.random.key(0), augmentation(config, name)
      batch = augment.transform(key, batch, **chosen)
      if taught_by(config):
        batch = {**batch, "truth": batch["hr"]}  # As a teacher leaves it.
      return around.step(state, batch, **arrays)

    jax.eval_shape(step, around.abstract_state(first), batch, around.arrays)
  except ConfigError:
    raise
  except ValueError as error:
    _check_generator(run)
    reason = " ".join(str(error).split())
    raise ConfigError(
      f"phase {name} cannot be trained with patches of"
      f" {config.patch_size} pixels (config.patch_size), in batches of"
      f" {config.batch_size} (config.batch_size), at scale {config.scale}:"
      f" {reason}"
    ) from error
  if phase.load:
    phase.load(state)


def _check_generator(run: Any) -> None:
  """Whether it is the generator that cannot be, whatever the patches."""
  try:
    jax.eval_shape(lambda: init_generator(jax.random.key(0), run.generator))
  except ValueError as error:
    reason = " ".join(str(error).split())
    raise ConfigError(f"config.generator: {reason}") from error


class _Repeat(nn.Module):
  """A generator that repeats pixels, in a brightness that can be learnt."""

  scale: int

  @nn.compact
  def __call__(self, lr: jax.Array) -> jax.Array:
    gain = self.param("gain", nn.initializers.ones, ())
    return gain * lr.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
