"""Memory layouts: the one place in the core that uses an experimental API."""

import jax

try:
  from jax.experimental import layout as _layout
except ImportError:  # It may move; all that is lost then is speed, on a TPU.
  _layout = None


def keep_last_axis_minor(x: jax.Array) -> jax.Array:
  """Returns `x`, laid out in memory with its last axis densest, as written.

  The compiler is free to choose another layout, and for the kernels of the
  dense blocks a TPU's compiler chooses one in which it estimates convolutions
  of 64 to 192 channels to take 1.4 times as long (docs/generator.md).

  Args:
    x: Any array.

  Returns:
    The same values.

  >>> keep_last_axis_minor(jax.numpy.ones((2, 3))).shape
  (2, 3)
  """
  if _layout is None or not hasattr(_layout, "with_layout_constraint"):
    return x
  order = _layout.Layout(major_to_minor=tuple(range(x.ndim)))
  return _layout.with_layout_constraint(x, order)
