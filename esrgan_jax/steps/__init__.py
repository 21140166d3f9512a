"""The training steps and what they need: state, optimiser. Pure.

`from esrgan_jax import steps` has all of it. A phase is a state and a step of
it, to be put under `jax.jit` with what stays the same:

>>> import functools, flax.linen as nn, jax, jax.numpy as jnp, optax
>>> from esrgan_jax import steps
>>> net = nn.Conv(3, (3, 3))  # Or RRDBNet(), or any module of images to images.
>>> adam = optax.adam(2e-4)  # Or steps.make_optimizer, with the schedules.
>>> create = functools.partial(
...   steps.create_psnr_state, generator=net, optimizer=adam)
>>> state = jax.jit(create)(jax.random.key(0))
>>> step = jax.jit(functools.partial(
...   steps.psnr_step, generator=net, optimizer=adam), donate_argnums=0)
>>> batch = {"lr": jnp.ones((2, 8, 8, 3)), "hr": jnp.ones((2, 8, 8, 3))}
>>> state, metrics = step(state, batch)
>>> sorted(metrics)
['g/grad_norm', 'g/loss', 'g/pixel', 'skipped', 'skipped_in_a_row']
>>> variables = steps.averaged(state)  # For net.apply, or another phase.

Networks are Linen modules, or functions in a `FromFunction`; optimizers are
optax's. Guard (an update that is not finite changes nothing), average (`ema_`)
and microbatches (`accumulate`) are the steps' own.
"""

from esrgan_jax.models.functions import FromFunction
from esrgan_jax.steps.distill import (
  distill_gradients,
  distill_step,
  taught,
)
from esrgan_jax.steps.gan import gan_gradients, gan_step, vgg_perceptual
from esrgan_jax.steps.optimizer import (
  constant_schedule,
  cosine_restart_schedule,
  make_optimizer,
  milestone_schedule,
)
from esrgan_jax.steps.psnr import psnr_gradients, psnr_step
from esrgan_jax.steps.state import (
  GanState,
  PsnrState,
  averaged,
  create_gan_state,
  create_psnr_state,
  init_discriminator,
  init_generator,
  split,
)

__all__ = [
  "FromFunction",
  "GanState",
  "PsnrState",
  "averaged",
  "constant_schedule",
  "cosine_restart_schedule",
  "create_gan_state",
  "create_psnr_state",
  "distill_gradients",
  "distill_step",
  "gan_gradients",
  "gan_step",
  "init_discriminator",
  "init_generator",
  "make_optimizer",
  "milestone_schedule",
  "psnr_gradients",
  "psnr_step",
  "split",
  "taught",
  "vgg_perceptual",
]
