"""What the networks share: a convolution's parameters, without the arithmetic.

A network takes a layer's kernel and bias from here, and hands them to the form
of the convolution that is fast (`esrgan_jax.ops`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class ConvParams(nn.Module):
  """A convolution's kernel and bias, cast to the compute dtype.

  Attributes:
    in_ch: Channels of the image.
    out_ch: Channels of the result.
    kernel_init: Draws the kernel.
    bias_init: Draws the bias; None for a convolution without one.
    dtype: Compute dtype; the parameters are float32.
    side: Of the kernel.
    stack: Leading axes, of convolutions that are stacked.

  >>> layer = ConvParams(3, 8, nn.initializers.he_normal())
  >>> layer.init(jax.random.key(0))["params"]["kernel"].shape
  (3, 3, 3, 8)
  """

  in_ch: int
  out_ch: int
  kernel_init: nn.initializers.Initializer
  bias_init: nn.initializers.Initializer | None = nn.initializers.zeros
  dtype: Any = jnp.float32
  side: int = 3
  stack: tuple[int, ...] = ()

  @nn.compact
  def __call__(self) -> tuple[Array, Array | None]:
    """Returns the kernel, HWIO, and the bias, or None."""
    shape = (*self.stack, self.side, self.side, self.in_ch, self.out_ch)
    kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
    kernel = kernel.astype(self.dtype)
    if self.bias_init is None:
      return kernel, None
    shape = (*self.stack, self.out_ch)
    bias = self.param("bias", self.bias_init, shape, jnp.float32)
    return kernel, bias.astype(self.dtype)
