"""Memory layouts: the one place in the core that uses an experimental API.

On a TPU, an array's last two axes, in the order of memory, are padded to tiles
of 8 x 128. Nothing here changes a value; where the API is missing, all that is
lost is speed.
"""

import jax

try:
  from jax.experimental import layout as _layout
except ImportError:  # It may move.
  _layout = None

_TILE = (8, 128)


def keep_last_axis_minor(x: jax.Array) -> jax.Array:
  """Returns `x`, laid out in memory with its last axis densest, as written.

  The compiler is free to choose another layout, and for the kernels of the
  dense blocks a TPU's compiler chooses one in which it estimates convolutions
  of 64 to 192 channels to take 1.4 times as long (docs/tpu.md).

  Args:
    x: Any array.

  Returns:
    The same values.

  >>> keep_last_axis_minor(jax.numpy.ones((2, 3))).shape
  (2, 3)
  """
  return _constrain(x, tuple(range(x.ndim)))


def keep_compact(x: jax.Array) -> jax.Array:
  """Returns `x`, its last two axes in the order that needs less padding.

  That is how a TPU keeps a program's arguments, such as parameters. Of a kernel
  of 160 -> 32 channels, the other order takes 2.5 times the space, and as much
  time to update it.

  Args:
    x: Any array.

  Returns:
    The same values.

  >>> keep_compact(jax.numpy.ones((3, 3, 160, 32))).shape
  (3, 3, 160, 32)
  """
  if x.ndim < 2:
    return x
  order = list(range(x.ndim))
  rows, columns = x.shape[-2:]
  if _count_tiles(columns, rows) < _count_tiles(rows, columns):
    order[-2:] = reversed(order[-2:])
  return _constrain(x, tuple(order))


def _count_tiles(rows: int, columns: int) -> int:
  return -(-rows // _TILE[0]) * -(-columns // _TILE[1])


def _constrain(x: jax.Array, major_to_minor: tuple[int, ...]) -> jax.Array:
  if _layout is None or not hasattr(_layout, "with_layout_constraint"):
    return x
  order = _layout.Layout(major_to_minor=major_to_minor)
  return _layout.with_layout_constraint(x, order)
