"""Parameters for tests, without compiling what draws them.

JAX compiles a program for every shape that it draws, for seconds in all. Tests
that need just any parameters take NumPy's; those of the initialisation itself
have it compiled once, and hardly optimized, as the training program does.
"""

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax import compilation


def random_params(net, image, *, seed=0):
  """Parameters of a generator for images like `image`, distributed as its own.

  Kernels are a tenth of He's normal, biases zero.
  """
  shapes = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == "bias":
      return np.zeros(leaf.shape, np.float32)
    scale = 0.1 * np.sqrt(2 / np.prod(leaf.shape[-4:-1]))
    return random.normal(0, scale, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def init(module, key, *args, **static):
  """The module's own initialisation, as one program."""
  run = jax.jit(
    lambda key, *args: module.init(key, *args, **static),
    compiler_options=compilation.compiler_options(once=True),
  )
  return run(key, *map(jnp.asarray, args))
