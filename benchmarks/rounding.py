"""How far the network's fast form is from its plain one, on this device.

  python -m benchmarks.rounding [--num_block 4] [--size 48 40]

The same random parameters and two images, in both forms; the plain one, which
adds and convolves as the paper writes it, in float32 and exact products. The
table has relative differences (norms) of the result, and of that parameter's
gradient whose difference is the largest.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from esrgan_jax.models.rrdb import RRDBNet

# Of float32, an accelerator's default is less: TF32, or bfloat16.
ROWS = (("float32", "highest"), ("float32", "default"), ("bfloat16", "default"))


def draw_params(net):
  """Kernels that keep a signal's size, and biases of a tenth of it."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))[
    "params"
  ]
  random = np.random.default_rng(0)

  def draw(path, leaf):
    fan_in = np.prod(leaf.shape[-4:-1])
    scale = 0.1 if path[-1].key == "bias" else 1 / np.sqrt(fan_in)
    return random.normal(0, scale, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def run(net, params, images, direction):
  """Returns the result and the gradients of its part along a direction."""

  def project(params):
    result = net.apply({"params": params}, images)
    return jnp.vdot(result.astype(jnp.float32), direction), result

  (_, result), gradients = jax.jit(jax.value_and_grad(project, has_aux=True))(
    params
  )
  return jax.device_get((result, gradients))


def difference(actual, expected):
  """Of norms, relative.

  >>> difference(np.array([3.0, 5.0]), np.array([3.0, 4.0]))
  0.2
  """
  actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
  return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--num_block", type=int, default=4)
  parser.add_argument(
    "--size", type=int, nargs=2, default=[48, 40], metavar=("H", "W")
  )
  args = parser.parse_args()
  height, width = args.size
  fields = {"num_block": args.num_block}
  params = draw_params(RRDBNet(**fields))
  random = np.random.default_rng(1)
  images = random.random((2, height, width, 3)).astype(np.float32)
  direction = random.normal(size=(2, 4 * height, 4 * width, 3))
  direction = direction.astype(np.float32)
  print(machine.versions("jax", "jaxlib", "flax"))
  print(machine.describe())
  print(jax.devices()[0].device_kind)
  print("| compute | products | result | worst gradient |")
  print("| --- | --- | --- | --- |")
  with jax.default_matmul_precision("highest"):
    plain = RRDBNet(**fields, form="plain")
    expected, slopes = run(plain, params, images, direction)
  for dtype, products in ROWS:
    with jax.default_matmul_precision(products):
      net = RRDBNet(**fields, dtype=dtype)
      result, gradients = run(net, params, images, direction)
    worst = max(map(difference, *map(jax.tree.leaves, (gradients, slopes))))
    error = difference(result, expected)
    print(f"| {dtype} | {products} | {error:.1e} | {worst:.1e} |", flush=True)


if __name__ == "__main__":
  main()
