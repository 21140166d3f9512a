"""Network interpolation: between a PSNR-trained model and a GAN-trained one."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

_SHOWN = 5  # Paths an error names before it only counts.


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
    ValueError: If the trees differ in structure, shapes or dtypes, if a leaf
      is not floating-point, or if `alpha` is not a finite scalar.

  Source: ESRGAN (arXiv:1809.00219), equation 4; xinntao/ESRGAN
  `net_interp.py`.

  >>> params_a, params_b = {"bias": jnp.zeros(2)}, {"bias": jnp.ones(2)}
  >>> interpolate_params(params_a, params_b, alpha=0.75)["bias"].tolist()
  [0.75, 0.75]
  >>> mix = lambda alpha: interpolate_params(params_a, params_b, alpha=alpha)
  >>> jax.vmap(mix)(jnp.array([0.0, 0.5, 1.0]))["bias"].shape
  (3, 2)
  """
  if jnp.ndim(alpha) != 0:
    raise ValueError(
      f"alpha must be a scalar, got shape {jnp.shape(alpha)}: use jax.vmap "
      "over alpha for several models"
    )
  if isinstance(alpha, int | float) and not math.isfinite(alpha):
    raise ValueError(f"alpha must be finite, got {alpha}")
  _check_alike(params_a, params_b)

  def mix(a, b):
    a, b = jnp.asarray(a), jnp.asarray(b)
    wide = jnp.promote_types(a.dtype, jnp.float32)
    weight = jnp.asarray(alpha, wide)
    mixed = (1 - weight) * a.astype(wide) + weight * b.astype(wide)
    # 0 * b would turn -0.0 of `a` into 0.0, and an inf of `b` into nan.
    mixed = jnp.where(weight == 1, b, mixed.astype(a.dtype))
    return jnp.where(weight == 0, a, mixed)

  return jax.tree.map(mix, params_a, params_b)


def _check_alike(params_a, params_b):
  """Raises if two trees differ, naming the first paths that do."""
  leaves_a, leaves_b = _describe(params_a), _describe(params_b)
  problems = [
    f"{path}: only in params_{side}"
    for side, here, there in (
      ("a", leaves_a, leaves_b),
      ("b", leaves_b, leaves_a),
    )
    for path in here
    if path not in there
  ]
  for path, leaf_a in leaves_a.items():
    leaf_b = leaves_b.get(path, leaf_a)
    if leaf_a != leaf_b:
      problems.append(f"{path}: {_show(leaf_a)} and {_show(leaf_b)}")
    elif not jnp.issubdtype(leaf_a[1], jnp.floating):
      problems.append(f"{path}: {_show(leaf_a)} is not floating-point")
  if not problems and (
    jax.tree.structure(params_a) != jax.tree.structure(params_b)
  ):
    problems.append("containers of different types hold the same leaves")
  if problems:
    shown = "; ".join(problems[:_SHOWN])
    more = len(problems) - _SHOWN
    raise ValueError(
      "params_a and params_b must be float trees of one architecture: "
      f"{shown}{f'; and {more} more' if more > 0 else ''}"
    )


def _describe(params):
  """Path -> (shape, dtype) of every leaf."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      jnp.shape(leaf),
      jnp.result_type(leaf),
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def _show(leaf):
  """`float32[3, 3]`."""
  shape, dtype = leaf
  return f"{dtype}{list(shape)}"
