"""RRDBNet as the papers draw it, to read, and for what fast forms cannot do.

Functions of the parameters that `RRDBNet` has, `RRDBNet(form="plain")` among
their users. Each convolution of a dense block sees the concatenation of all
before it, pixels are repeated and then convolved, and all of it is JAX's own:
so it has derivatives of either mode, float64, symbolic sizes, and a jaxpr that
other interpreters understand. Tests hold the fast form equal to it.

All is computed in the image's dtype. Images are `[..., H, W, C]`, kernels HWIO;
`valid` is 1 inside of an image and 0 outside, `[..., H, W, 1]`, or None.

Source: ESRGAN (arXiv:1809.00219), figures 3 and 4; BasicSR `rrdbnet_arch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from esrgan_jax.ops.pixels import pixel_unshuffle, repeat_pixels
from esrgan_jax.ops.precision import at_least_float32

Array = jax.Array
Params = Mapping[str, Any]

_NEGATIVE_SLOPE = 0.2  # BasicSR `rrdbnet_arch.py`.
_RESIDUAL_SCALE = 0.2  # Paper: beta = 0.2, in each dense block and each RRDB.


def features(
  params: Params,
  lr: Array,
  valid: Array | None = None,
  *,
  unshuffle: int = 1,
  unroll: int = 1,
  remat: bool = False,
) -> Array:
  """Runs the network up to its first upsampling.

  Args:
    params: Of an `RRDBNet`; what is below `body`, stacked.
    lr: `[..., H, W, num_in_ch]`, H and W multiples of `unshuffle`.
    valid: `[..., H / unshuffle, W / unshuffle, 1]`, or None.
    unshuffle: Side of the blocks of pixels that become channels.
    unroll: RRDBs per iteration of the loop over them.
    remat: Recompute each RRDB in the backward pass.

  Returns:
    `[..., H / unshuffle, W / unshuffle, num_feat]`.

  >>> def conv(inputs, outputs, *stack):
  ...   shape = (*stack, 3, 3, inputs, outputs)
  ...   return {"kernel": jnp.ones(shape), "bias": jnp.zeros((*stack, outputs))}
  >>> rdb = {f"conv{i + 1}": conv(4 + 2 * i, 4 if i == 4 else 2, 7)
  ...        for i in range(5)}
  >>> params = {"conv_first": conv(3, 4), "conv_body": conv(4, 4),
  ...           "body": {"rdb1": rdb, "rdb2": rdb, "rdb3": rdb}}
  >>> features(params, jnp.ones((8, 9, 3))).shape
  (8, 9, 4)
  """
  x = pixel_unshuffle(lr, factor=unshuffle)
  shallow = _mask(_conv(params["conv_first"], _mask(x, valid)), valid)

  def run(x, block):
    return rrdb(block, x, valid), None

  if remat:
    run = jax.checkpoint(run, prevent_cse=False)
  deep, _ = lax.scan(run, shallow, params["body"], unroll=unroll)
  return shallow + _mask(_conv(params["conv_body"], deep), valid)


def rrdb(params: Params, x: Array, valid: Array | None = None) -> Array:
  """Residual in Residual Dense Block: three dense blocks and a scaled skip."""
  out = x
  for name in ("rdb1", "rdb2", "rdb3"):
    out = dense_block(params[name], out, valid)
  return x + _RESIDUAL_SCALE * out


def dense_block(params: Params, x: Array, valid: Array | None = None) -> Array:
  """Densely connected convolutions, five in the paper, and a scaled skip.

  Args:
    params: `conv1`, `conv2` and so on, each with `kernel` and `bias`.
    x: `[..., H, W, F]`.
    valid: `[..., H, W, 1]`, or None.

  Returns:
    `[..., H, W, F]`.

  >>> params = {
  ...   f"conv{i}": {"kernel": jnp.ones((3, 3, i + 1, g)), "bias": jnp.ones(g)}
  ...   for i, g in enumerate((1, 1, 2), 1)
  ... }
  >>> dense_block(params, jnp.ones((4, 4, 2))).shape
  (4, 4, 2)
  """
  sources = [x]
  for i in range(1, len(params)):
    y = _conv(params[f"conv{i}"], jnp.concatenate(sources, axis=-1))
    sources.append(_mask(_leaky_relu(y), valid))
  y = _conv(params[f"conv{len(params)}"], jnp.concatenate(sources, axis=-1))
  return x + _RESIDUAL_SCALE * _mask(y, valid)


def reconstruct(
  params: Params,
  feat: Array,
  valid: Array | None = None,
  *,
  factors: Sequence[int] = (2, 2),
) -> Array:
  """Runs the network from its first upsampling on.

  Args:
    params: Of an `RRDBNet`.
    feat: `[..., h, w, num_feat]`, from `features`.
    valid: `[..., h, w, 1]`, or None.
    factors: Of each upsampling.

  Returns:
    `[..., h * u, w * u, num_out_ch]`, u the product of all factors; float32 at
    least.

  >>> conv = {"kernel": jnp.ones((3, 3, 4, 4)), "bias": jnp.zeros(4)}
  >>> params = dict.fromkeys(("conv_up1", "conv_hr", "conv_last"), conv)
  >>> reconstruct(params, jnp.ones((8, 9, 4)), factors=(3,)).shape
  (24, 27, 4)
  """
  for i, factor in enumerate(factors, 1):
    feat = repeat_pixels(feat, factor)
    valid = None if valid is None else repeat_pixels(valid, factor)
    feat = _mask(_leaky_relu(_conv(params[f"conv_up{i}"], feat)), valid)
  feat = _mask(_leaky_relu(_conv(params["conv_hr"], feat)), valid)
  dtype = at_least_float32(feat.dtype)
  return _conv(params["conv_last"], feat, dtype)


def _conv(params: Params, x: Array, dtype: Any = None) -> Array:
  """A 3x3 convolution that pads zeros, and a bias."""
  y = lax.conv_general_dilated(
    x.reshape(-1, *x.shape[-3:]),
    params["kernel"].astype(x.dtype),
    window_strides=(1, 1),
    padding=((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    preferred_element_type=dtype,
  )
  bias = params["bias"].astype(x.dtype).astype(y.dtype)
  y += bias.reshape(1, 1, 1, -1)
  return y.reshape(*x.shape[:-1], y.shape[-1])


def _leaky_relu(x: Array) -> Array:
  return jnp.where(x > 0, x, _NEGATIVE_SLOPE * x)


def _mask(x: Array, valid: Array | None) -> Array:
  if valid is None:
    return x
  return x * jnp.broadcast_to(valid, (*x.shape[:-1], 1)).astype(x.dtype)
