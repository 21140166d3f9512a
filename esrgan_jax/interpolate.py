"""Network interpolation: between a PSNR-trained model and a GAN-trained one."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from esrgan_jax import checks
from esrgan_jax.ops.precision import at_least_float32


def interpolate_params(
  params_a: Any, params_b: Any, *, alpha: float | Array
) -> Any:
  """Returns `(1 - alpha) * params_a + alpha * params_b`, leaf by leaf.

  By convention `params_a` is the PSNR model and `params_b` the GAN model. The
  endpoints are exact, bit by bit. Both must descend from one another (the GAN
  phase starts from the PSNR model): unrelated models do not interpolate.

  Args:
    params_a: Parameters at `alpha` 0, any pytree of float arrays.
    params_b: Parameters at `alpha` 1, the same structure, shapes and dtypes.
    alpha: Scalar, traced or not. [0, 1] interpolates; outside it extrapolates,
      which is allowed and soon leaves the range where images look natural.
      For several values at once, `jax.vmap` over `alpha`.

  Returns:
    A pytree like `params_a`, computed in float32 or wider.

  Raises:
    TypeError: If `alpha` is no real number.
    ValueError: If the trees differ in structure, shapes or dtypes, if a leaf
      is not floating-point, or if `alpha` is not a scalar, or is known and not
      finite.

  Source: ESRGAN (arXiv:1809.00219), equation 4; xinntao/ESRGAN
  `net_interp.py`.

  >>> params_a, params_b = {"bias": jnp.zeros(2)}, {"bias": jnp.ones(2)}
  >>> interpolate_params(params_a, params_b, alpha=0.75)["bias"].tolist()
  [0.75, 0.75]
  >>> mix = lambda alpha: interpolate_params(params_a, params_b, alpha=alpha)
  >>> jax.vmap(mix)(jnp.array([0.0, 0.5, 1.0]))["bias"].shape
  (3, 2)
  """
  checks.check_finite_scalar(
    alpha, "alpha", "use jax.vmap over alpha for several models"
  )
  checks.check_alike(params_a, params_b)

  def mix(a, b):
    a, b = jnp.asarray(a), jnp.asarray(b)
    wide = at_least_float32(a.dtype)
    weight = jnp.asarray(alpha, wide)
    mixed = (1 - weight) * a.astype(wide) + weight * b.astype(wide)
    # 0 * b would turn -0.0 of `a` into 0.0, and an inf of `b` into nan.
    mixed = jnp.where(weight == 1, b, mixed.astype(a.dtype))
    return jnp.where(weight == 0, a, mixed)

  return jax.tree.map(mix, params_a, params_b)
