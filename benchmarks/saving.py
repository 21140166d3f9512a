"""What saving costs the loop: a state of full size, its digest, and the wait.

  python -m benchmarks.saving [--repeat 3]

Makes the state of the GAN phase as published (RRDBNet 64/23/32, the VGG-style
discriminator, Adam's moments and the average: 0.43 GB), with any numbers, and
saves it a few times into a temporary folder. Printed are medians of seconds:
that the digest takes, that `Checkpoints.save` holds the loop up, and until all
is written.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np

from esrgan_jax.models import registry
from esrgan_jax.steps import optimizer as optimizer_lib
from esrgan_jax.steps import state as state_lib
from esrgan_jax.training import checkpoint, mesh
from esrgan_jax.weights.formats import stored_arrays as stored


def make_state(fields, d_fields):
  """A GAN state on the devices, of any numbers."""
  adam = optimizer_lib.make_optimizer(1e-4)
  shapes = jax.eval_shape(
    lambda: state_lib.create_gan_state(
      jax.random.key(0),
      registry.make_generator(**fields),
      registry.make_discriminator(input_size=128, **d_fields),
      adam,
      adam,
    )
  )
  random = np.random.default_rng(0)

  def draw(leaf):
    if leaf.dtype == np.float32:
      return random.standard_normal(leaf.shape, np.float32)
    return np.zeros(leaf.shape, leaf.dtype)

  state = jax.tree.map(draw, shapes)
  return jax.device_put(state, mesh.replicated(mesh.make_mesh(1)))


def measure(state, repeat):
  """Seconds of each part, a list a repetition."""
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    config = {"generator": {}, "scale": 4}
    with checkpoint.Checkpoints(folder, config=config, keep=1) as checkpoints:
      for step in range(1, repeat + 2):
        begun = time.perf_counter()
        stored.digest(stored.flatten(state))
        digested = time.perf_counter()
        checkpoints.save(step, state)
        saved = time.perf_counter()
        checkpoints.wait()
        written = time.perf_counter()
        if step > 1:  # The first opens Orbax.
          rows.append((digested - begun, saved - digested, written - digested))
  return rows


def main():
  """Prints a line a part."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--repeat", type=int, default=3, help="how often")
  parser.add_argument(
    "--tiny", action="store_true", help="try it: a small state, no figures"
  )
  args = parser.parse_args()
  fields, d_fields = {"num_feat": 64, "num_block": 23}, {"num_feat": 64}
  if args.tiny:
    fields, d_fields = {"num_feat": 4, "num_block": 1}, {"num_feat": 2}
  state = make_state(fields, d_fields)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  print(f"state: {size / 1e9:.2f} GB, {jax.default_backend()}")
  names = ("digest of all", "save returns after", "written after")
  for name, values in zip(
    names, zip(*measure(state, args.repeat), strict=True), strict=True
  ):
    low, high = min(values), max(values)
    middle = statistics.median(values)
    print(f"{name}: {middle:.2f} s ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
  main()
