"""The generator alone, by its distance to the pixels of HR: phase one."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn

from esrgan_jax.steps import psnr, shared, state
from esrgan_jax.training.phases import kinds


def _make(run: Any, name: str, generator: nn.Module) -> kinds.Phase:
  config, settings = run.config, run.config.phases[name]
  adam = kinds.make_optimizer(config, name, settings.learning_rate)

  def create(key, variables):
    if variables is None:
      variables = kinds.variables(config, generator, key)
    params, collections = state.split(variables)
    return state.create_psnr_state(
      key, generator, adam, params=params, collections=collections
    )

  step = functools.partial(
    psnr.psnr_step,
    generator=generator,
    optimizer=adam,
    pixel_loss=settings.pixel_loss,
    gt_usm=settings.gt_usm,
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
    seed=config.seed,
  )
  return kinds.make_phase(run, name, create, step)


kinds.register_kind(
  kinds.Kind(
    "psnr",
    "PSNR",
    # The authors' training files and BasicSR's, `options/train/ESRGAN/*.yml`.
    defaults={
      "num_train_steps": 1_000_000,
      "learning_rate": 2e-4,
      "schedule": {
        "name": "milestones",
        "milestones": (200_000, 400_000, 600_000, 800_000),
      },
      "b1": 0.9,
      "b2": 0.999,
      "pixel_loss": "l1",
      "gt_usm": False,  # Whether HR is sharpened (USM): Real-ESRNet's True.
    },
    make=_make,
    choices={"pixel_loss": shared.PIXEL_LOSSES},
    positive=("learning_rate",),
    offset=0,
  )
)
