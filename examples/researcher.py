"""A network of one's own, trained by this library on eight devices.

EDSR in plain Flax, on photos that come with scikit-image, in both phases of
ESRGAN: first the pixels' error, then that with a discriminator. The same pure
steps run in four ways, and losses and parameters come out the same:

- on one device, by `jax.jit`;
- by `jax.jit` on a mesh, whose axes are Explicit unless one says otherwise:
  the batch is put on the mesh, nothing else changes;
- by `jax.shard_map`, and by `jax.pmap`: each device has its part of the batch,
  and the step is told the name of the axis.

  python -m examples.researcher [--steps 4] [--features 32] [--blocks 4]

It prints how far losses are from one device's, as a part of them, and how far
parameters are, beside how far training has moved them.
"""

import argparse
import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import skimage.data
from jax.sharding import NamedSharding, PartitionSpec

import esrgan_jax
from esrgan_jax import steps

DEVICES, BATCH, SIDE = 8, 16, 32
WHOLE, SPLIT = PartitionSpec(), PartitionSpec("data")


def shuffle(x):
  """Moves channels into blocks of two by two pixels."""
  n, h, w, c = x.shape
  x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
  # An axis at a time: both at once is more than an Explicit mesh can follow.
  return x.reshape(n, 2 * h, w, 2, c // 4).reshape(n, 2 * h, 2 * w, c // 4)


class EDSR(nn.Module):
  """Lim et al. (arXiv:1707.02921), at scale 4."""

  features: int
  blocks: int
  scale: int = 4

  @nn.compact
  def __call__(self, lr):
    def conv(x, features=self.features):
      return nn.Conv(features, (3, 3))(x)

    first = x = conv(lr)
    for _ in range(self.blocks):
      x += conv(nn.relu(conv(x)))
    x = first + conv(x)
    for _ in range(2):
      x = shuffle(conv(x, 4 * self.features))
    return conv(x, 3)


def patches(num_batches):
  """Random patches of photos, and small ones by MATLAB's bicubic."""
  photos = [skimage.data.astronaut(), skimage.data.chelsea()]
  random = np.random.default_rng(0)

  def patch():
    photo = photos[random.integers(len(photos))]
    top, left = random.integers(np.array(photo.shape[:2]) - SIDE)
    return photo[top : top + SIDE, left : left + SIDE] / np.float32(255)

  for _ in range(num_batches):
    hr = np.stack([patch() for _ in range(BATCH)])
    lr = esrgan_jax.imresize(hr, scale=1 / 4)
    yield {"lr": np.asarray(lr), "hr": hr}


def on_one_device(step):
  return jax.jit(step)


def on_a_mesh(step):
  mesh = jax.make_mesh((DEVICES,), ("data",))
  step = jax.jit(step)

  def run(state, batch):
    state = jax.device_put(state, NamedSharding(mesh, WHOLE))
    return step(state, jax.device_put(batch, NamedSharding(mesh, SPLIT)))

  return run


def by_shard_map(step):
  mesh = jax.make_mesh((DEVICES,), ("data",))
  step = functools.partial(step, axis_name="data")
  step = jax.jit(
    jax.shard_map(step, mesh=mesh, in_specs=(WHOLE, SPLIT), out_specs=WHOLE)
  )
  return lambda state, batch: step(
    state, jax.device_put(batch, NamedSharding(mesh, SPLIT))
  )


def by_pmap(step):
  step = functools.partial(step, axis_name="data")
  step = jax.pmap(step, "data", in_axes=(None, 0), out_axes=None)

  def part(x):
    return x.reshape(DEVICES, -1, *x.shape[1:])

  return lambda state, batch: step(state, jax.tree.map(part, batch))


WAYS = {
  "one device": on_one_device,
  "Explicit mesh": on_a_mesh,
  "shard_map": by_shard_map,
  "pmap": by_pmap,
}


def train(step, state, batches):
  """The state, and the metrics of every step."""
  metrics = []
  for batch in batches:
    state, last = step(state, batch)
    metrics.append(jax.device_get(last))
  return jax.device_get(state), metrics


def largest(trees, others):
  """The largest difference of any two numbers."""
  apart = jax.tree.map(lambda x, y: np.abs(x - y).max(), trees, others)
  return max(jax.tree.leaves(apart))


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=4)
  parser.add_argument("--features", type=int, default=32)
  parser.add_argument("--blocks", type=int, default=4)
  args = parser.parse_args(argv)

  generator = EDSR(args.features, args.blocks)
  discriminator = esrgan_jax.VGGStyleDiscriminator(16, input_size=SIDE)
  # Any of optax's. Adam would make full steps of a gradient that is nothing but
  # rounding: that of D's last bias, which a relativistic loss does not see.
  sgd = optax.sgd(1e-3, momentum=0.9)
  vgg = jax.jit(esrgan_jax.init_vgg19)(jax.random.key(1))
  one = {"generator": generator, "optimizer": sgd}
  both = {**one, "discriminator": discriminator, "d_optimizer": sgd}
  phase_one = functools.partial(steps.psnr_step, **one)
  phase_two = functools.partial(
    steps.gan_step,
    **both,
    perceptual=steps.vgg_perceptual(vgg, layer_weights={"conv2_2": 1.0}),
  )
  batches = list(patches(args.steps))
  key = jax.random.key(0)
  begin = jax.jit(functools.partial(steps.create_psnr_state, **one))(key)
  begin_gan = jax.jit(functools.partial(steps.create_gan_state, **both))

  found = {}
  for name, way in WAYS.items():
    first, metrics = train(way(phase_one), begin, batches)
    middle = begin_gan(key, params=first.params)
    last, more = train(way(phase_two), middle, batches)
    losses = [m["g/loss"] for m in metrics]
    losses += [m[player] for m in more for player in ("g/loss", "d/loss")]
    found[name] = np.array(losses), (last.params, last.d_params)
    expected = found["one device"]
    way_gone = largest(found[name][1], (begin.params, middle.d_params))
    print(
      f"{name:14} L1 {metrics[-1]['g/loss']:.6f}   G {losses[-2]:.6f}"
      f"   D {losses[-1]:.6f}   losses within"
      f" {np.abs(losses / expected[0] - 1).max():.0e}, parameters within"
      f" {largest(found[name][1], expected[1]):.0e} of {way_gone:.0e}"
    )
  return found


if __name__ == "__main__":
  jax.config.update("jax_num_cpu_devices", DEVICES)
  main()
