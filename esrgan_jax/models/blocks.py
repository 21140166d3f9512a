"""Deprecated, until 0.3: modules that RRDBNet is not made of.

It keeps its blocks stacked; `esrgan_jax.models.reference` has their functions.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from esrgan_jax.models.rrdb import conv_params
from esrgan_jax.ops.dense_block import add_fifth, dense_block, group_convs

Array = jax.Array
Dtype = Any


class ResidualDenseBlock(nn.Module):
  """Five densely connected 3x3 convolutions and a scaled skip.

  Attributes:
    num_grow_ch: Channels that each of the first four convolutions adds.
    dtype: Compute dtype; parameters are float32.
  """

  num_grow_ch: int = 32
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> Array:
    """Maps `[N, H, W, C]` to the same shape; `valid` is `[N, H, W, 1]`."""
    feat, grow = x.shape[-1], self.num_grow_ch
    convs = [
      conv_params(feat + i * grow, out, self.dtype, name=f"conv{i + 1}")()
      for i, out in enumerate((grow, grow, grow, grow, feat))
    ]
    return dense_block(x, group_convs(convs), valid)


class RRDB(nn.Module):
  """Residual in Residual Dense Block: three dense blocks and a scaled skip.

  Attributes:
    num_grow_ch: Growth channels of the dense blocks.
    dtype: Compute dtype.
  """

  num_grow_ch: int = 32
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> Array:
    """Maps `[N, H, W, C]` to the same shape; `valid` is `[N, H, W, 1]`."""
    out = x
    for name in ("rdb1", "rdb2", "rdb3"):
      block = ResidualDenseBlock(self.num_grow_ch, self.dtype, name=name)
      out = block(out, valid)
    return add_fifth(x, out)
