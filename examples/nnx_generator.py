"""Trains an NNX generator against an NNX discriminator, in both phases.

    python examples/nnx_generator.py

The generator has BatchNorm and dropout, as a `FromFunction`: `nnx.split` and
`nnx.merge` make a pure function of it. The discriminator has parameters alone:
`nnx.bridge.ToLinen` makes a Linen module of it. What is trained is an NNX
network in the end, with everything that NNX can do with one.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import esrgan_jax
from esrgan_jax import steps

SCALE = 2


class Generator(nnx.Module):
  """A small SRGAN: convolutions with BatchNorm, then sub-pixel upsampling."""

  def __init__(self, width: int = 16, *, rngs: nnx.Rngs):
    self.first = nnx.Conv(3, width, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(width, momentum=0.8, rngs=rngs)
    self.dropout = nnx.Dropout(0.1)
    self.last = nnx.Conv(
      width,
      3 * SCALE**2,
      (3, 3),
      kernel_init=nnx.initializers.zeros,  # It begins as repeated pixels.
      rngs=rngs,
    )

  def __call__(
    self, lr: jax.Array, *, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Returns images of twice the size."""
    features = nnx.relu(self.norm(self.first(lr)))
    change = self.last(self.dropout(features, rngs=rngs))
    batch, height, width, _ = lr.shape
    blocks = change.reshape(batch, height, width, SCALE, SCALE, 3)
    change = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(
      batch, height * SCALE, width * SCALE, 3
    )
    return change + lr.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


class Discriminator(nnx.Module):
  """Strided convolutions, and a mean."""

  def __init__(self, width: int = 16, *, rngs: nnx.Rngs):
    self.conv1 = nnx.Conv(3, width, (4, 4), strides=2, rngs=rngs)
    self.conv2 = nnx.Conv(width, width, (4, 4), strides=2, rngs=rngs)
    self.head = nnx.Linear(width, 1, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns one logit an image."""
    features = nnx.leaky_relu(self.conv1(images), 0.2)
    features = nnx.leaky_relu(self.conv2(features), 0.2)
    return self.head(features.mean((1, 2)))[:, 0]


def as_function(
  network: nnx.Module, **fields: int
) -> tuple[steps.FromFunction, nnx.GraphDef]:
  """Returns an NNX network as the steps take it, and its definition."""
  definition, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)

  def apply(variables, images, *, train, key):
    # A copy: NNX mutates no array of another trace, and gradients are one.
    states = variables["params"], variables["batch_stats"]
    found = nnx.merge(definition, *states, copy=True)
    if train:
      found.train()
    else:
      found.eval()
    rngs = None if key is None else nnx.Rngs(dropout=key)
    result = found(images, rngs=rngs)
    return result, {"batch_stats": nnx.state(found, nnx.BatchStat)}

  def begin(key, images):
    del key, images  # The network has been made with random numbers.
    return {"params": params, "batch_stats": stats}

  return steps.FromFunction(
    apply, begin, takes_train=True, **fields
  ), definition


def batches(size: int = 16, num: int = 8) -> Iterator[dict[str, jax.Array]]:
  """Yields images of soft random colors; yours come from files."""
  rng = np.random.default_rng(0)
  while True:
    coarse = rng.random((num, size // 4, size // 4, 3), np.float32)
    hr = esrgan_jax.imresize(jnp.asarray(coarse), scale=4)
    yield {"hr": hr, "lr": esrgan_jax.imresize(hr, scale=1 / SCALE)}


def train(psnr_steps: int = 200, gan_steps: int = 100) -> nnx.Module:
  """Trains in both phases, and returns the averaged network."""
  generator, definition = as_function(Generator(rngs=nnx.Rngs(0)), scale=SCALE)
  discriminator = nnx.bridge.ToLinen(Discriminator)
  adam = optax.inject_hyperparams(optax.adam)(
    learning_rate=optax.cosine_decay_schedule(2e-3, psnr_steps)
  )
  data = batches()

  create = functools.partial(
    steps.create_psnr_state, generator=generator, optimizer=adam
  )
  state = jax.jit(create)(jax.random.key(0))
  step = functools.partial(
    steps.psnr_step, generator=generator, optimizer=adam, ema_decay=0.9
  )
  jitted = jax.jit(step, donate_argnums=0)
  for number in range(psnr_steps):
    state, metrics = jitted(state, next(data))
    if number % 50 == 0 or number == psnr_steps - 1:
      rate = metrics["g/learning_rate"]
      print(f"psnr {number}: {metrics['g/loss']:.4f}, at a rate of {rate:.1e}")

  params, collections = steps.split(steps.averaged(state))
  adam = optax.adam(1e-4)
  state = steps.create_gan_state(
    jax.random.key(1),
    generator,
    discriminator,
    adam,
    adam,
    params=params,
    collections=collections,
  )
  step = functools.partial(
    steps.gan_step,
    generator=generator,
    discriminator=discriminator,
    optimizer=adam,
    d_optimizer=adam,
    pixel_weight=1.0,
    ema_decay=0.9,
  )
  jitted = jax.jit(step, donate_argnums=0)
  for number in range(gan_steps):
    state, metrics = jitted(state, next(data))
    if number % 50 == 0 or number == gan_steps - 1:
      print(
        f"gan {number}: {metrics['g/pixel']:.4f}, D {metrics['d/loss']:.4f}"
      )

  variables = steps.averaged(state)
  network = nnx.merge(definition, variables["params"], variables["batch_stats"])
  network.eval()
  return network


if __name__ == "__main__":
  trained = train()
  batch = next(batches())
  psnr = esrgan_jax.psnr(
    trained(batch["lr"]), batch["hr"], crop_border=SCALE, y_channel=False
  )
  print(f"PSNR {psnr.mean():.2f} dB")
