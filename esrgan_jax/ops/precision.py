"""Which dtype sums and differences are computed in.

`jnp.promote_types` would say the same, but for programs that have JAX refuse
all implicit promotion (`jax_numpy_dtype_promotion="strict"`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def at_least_float32(*dtypes: Any) -> Any:
  """Returns float64 where any of some floating-point dtypes is, else float32.

  Half precision cannot hold a mean over an image.

  Args:
    *dtypes: Of the operands.

  >>> at_least_float32(jnp.bfloat16, jnp.float32)
  dtype('float32')
  """
  wide = any(jnp.finfo(jnp.dtype(dtype)).bits > 32 for dtype in dtypes)
  return jnp.dtype(jnp.float64 if wide else jnp.float32)


def products_in_bfloat16() -> bool:
  """Returns whether products may be of bfloat16, and summed in float32.

  As JAX is told, by `jax.default_matmul_precision`: on other platforms it makes
  matrix products and convolutions so itself.

  >>> with jax.default_matmul_precision("bfloat16"):
  ...   products_in_bfloat16()
  True
  >>> products_in_bfloat16()
  False
  """
  return jax.config.jax_default_matmul_precision == "bfloat16"
