"""Against a discriminator, from a generator that was trained: phase two."""

from __future__ import annotations

import collections
import functools
from typing import Any

import flax.linen as nn

from esrgan_jax import losses
from esrgan_jax.models import registry
from esrgan_jax.steps import gan, shared, state
from esrgan_jax.training.phases import kinds

# Keys that are arguments of the step, besides the adversarial loss's options.
_OPTIONS = (
  "pixel_loss",
  "pixel_weight",
  "perceptual_weight",
  "adversarial",
  "adversarial_weight",
  "l1_gt_usm",
  "percep_gt_usm",
  "gan_gt_usm",
)


def _make(run: Any, name: str, generator: nn.Module) -> kinds.Phase:
  config, settings = run.config, run.config.phases[name]
  adam = kinds.make_optimizer(config, name, settings.learning_rate)
  d_adam = kinds.make_optimizer(config, name, settings.d_learning_rate)
  discriminator = registry.make_discriminator(
    **config.discriminator, input_size=config.patch_size, dtype=run.dtype
  )

  def create(key, variables):
    params, others = state.split(variables)
    return state.create_gan_state(
      key,
      generator,
      discriminator,
      adam,
      d_adam,
      params=params,
      collections=others,
    )

  def load(begun):
    found = run.begin_discriminator(
      {"params": begun.d_params, "batch_stats": begun.d_batch_stats}
    )
    return begun.replace(
      d_params=found["params"], d_batch_stats=found.get("batch_stats", {})
    )

  adversarial = losses.find_adversarial_loss(settings.adversarial)
  step = functools.partial(
    gan.gan_step,
    generator=generator,
    discriminator=discriminator,
    optimizer=adam,
    d_optimizer=d_adam,
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
    seed=config.seed,
    **{key: settings[key] for key in (*_OPTIONS, *adversarial.options)},
  )
  arrays = {}
  if settings.perceptual_weight:
    arrays["perceptual"] = run.perceptual()
  load = load if config.init_discriminator else None
  return kinds.make_phase(run, name, create, step, arrays, load=load)


def _check(settings, config):
  """Why the adversarial loss does not go with the discriminator, if so."""
  adversarial = losses.find_adversarial_loss(settings.adversarial)
  if adversarial.penalty and config.discriminator.get("norm") == "batch":
    return (
      f"adversarial is {settings.adversarial!r}, whose penalty needs images"
      " that don't see each other through BatchNorm; add"
      " --config.discriminator.norm=layer, instance or none"
    )
  return ""


kinds.register_kind(
  kinds.Kind(
    "gan",
    "GAN",
    # The authors' training files and BasicSR's, `options/train/ESRGAN/*.yml`;
    # and the options of all adversarial losses, those of plugins too.
    defaults=collections.ChainMap(
      {
        "num_train_steps": 400_000,
        "learning_rate": 1e-4,
        "d_learning_rate": 1e-4,
        "schedule": {
          "name": "milestones",
          "milestones": (50_000, 100_000, 200_000, 300_000),
        },
        "b1": 0.9,
        "b2": 0.999,
        "pixel_loss": "l1",
        "pixel_weight": 1e-2,
        "perceptual_weight": 1.0,
        "adversarial": "relativistic",
        "adversarial_weight": 5e-3,
        # Whether HR is sharpened (USM) where SR is compared with it: Real-
        # ESRGAN's True, True and False.
        "l1_gt_usm": False,
        "percep_gt_usm": False,
        "gan_gt_usm": False,
      },
      losses.ADVERSARIAL_OPTIONS,
    ),
    make=_make,
    choices={
      "pixel_loss": shared.PIXEL_LOSSES,
      "adversarial": losses.ADVERSARIAL_LOSSES,
    },
    positive=("learning_rate", "d_learning_rate"),
    check=_check,
    needs_start=True,
    offset=1,
  )
)
