"""A plugin for tests: a generator with BatchNorm, and a kind of phase."""

import functools

import flax.linen as nn

from esrgan_jax.models import registry
from esrgan_jax.steps import psnr, state
from esrgan_jax.training import phases


class Normalized(nn.Module):
  """Repeats pixels, and adds what two convolutions and BatchNorm make."""

  scale: int = 4
  width: int = 4

  @nn.compact
  def __call__(self, lr, *, train=False):
    x = nn.Conv(self.width, (3, 3), name="first")(lr)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(
      x
    )
    x = nn.Conv(3, (3, 3), name="last")(nn.relu(x))
    x = 0.1 * x + lr
    return x.repeat(self.scale, axis=-3).repeat(self.scale, axis=-2)


def _make(run, name, generator):
  config, settings = run.config, run.config.phases[name]
  adam = phases.make_optimizer(config, name, settings.learning_rate)

  def create(key, variables):
    variables = variables or phases.variables(config, generator, key)
    params, collections = state.split(variables)
    return state.create_psnr_state(
      key, generator, adam, params=params, collections=collections
    )

  step = functools.partial(
    psnr.psnr_step,
    generator=generator,
    optimizer=adam,
    pixel_loss="charbonnier",
    ema_decay=config.ema_decay,
  )
  return phases.make_phase(run, name, create, step)


registry.register_generator("Normalized", Normalized)
phases.register_kind(
  phases.Kind(
    "soft",
    "Soft L1",
    {
      "num_train_steps": 3,
      "learning_rate": 1e-3,
      "schedule": {"name": "constant"},
      "b1": 0.9,
      "b2": 0.999,
    },
    _make,
  )
)
