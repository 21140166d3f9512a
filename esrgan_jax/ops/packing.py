"""Pairs of neighbouring pixels in the channels, for a TPU's 128 lanes.

A TPU's registers and matrix unit are 128 wide and more. Where images are large
and channels are 64 or 3, half of all lanes lie empty, and three quarters of the
matrix unit. With two neighbours of a row side by side, `[N, H, W / 2, 2 * C]`,
which is how they lie in memory anyway, all lanes are in use. A convolution of
such an image is one again, with a kernel in which half of the weights are zero;
the same products in half the time. `docs/tpu.md` has the figures.

Arrays are NHWC and HWIO.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esrgan_jax.ops import axes

Array = jax.Array
Dtype = Any

PIXELS = 2  # Neighbours that share a position.


def can_pack(x: Array) -> bool:
  """Whether `[N, H, W, C]` consists of pairs.

  >>> can_pack(jnp.zeros((1, 3, 5, 2)))
  False
  """
  return x.shape[2] % PIXELS == 0


def pack(x: Array) -> Array:
  """Puts two neighbours of a row side by side.

  Args:
    x: `[N, H, W, C]`, W even.

  Returns:
    `[N, H, W / 2, 2 * C]`.

  >>> pack(jnp.arange(8).reshape(1, 1, 4, 2))[0, 0].tolist()
  [[0, 1, 2, 3], [4, 5, 6, 7]]
  """
  n, h, w, c = x.shape
  return x.reshape(n, h, w // PIXELS, PIXELS * c)


def unpack(x: Array) -> Array:
  """Undoes `pack`.

  >>> unpack(jnp.zeros((1, 3, 2, 8))).shape
  (1, 3, 4, 4)
  """
  n, h, w, c = x.shape
  return x.reshape(n, h, w * PIXELS, c // PIXELS)


def pack_channels(x: Array) -> Array:
  """Repeats what each channel has, such as a bias, for both pixels: `[2 * C]`.

  >>> pack_channels(jnp.arange(3)).tolist()
  [0, 1, 2, 0, 1, 2]
  """
  return jnp.concatenate([x] * PIXELS)


def pack_mask(valid: Array | None, channels: int) -> Array | None:
  """Packs a mask `[N, H, W, 1]` for images of that many channels, if any.

  >>> pack_mask(jnp.array([1, 0, 1, 1]).reshape(1, 1, 4, 1), 2)[0, 0].tolist()
  [[1, 1, 0, 0], [1, 1, 1, 1]]
  """
  if valid is None:
    return None
  return pack(jnp.broadcast_to(valid, (*valid.shape[:-1], channels)))


def pack_kernel(kernel: Array) -> Array:
  """Returns the 3x3 kernel that does to pairs what another does to pixels.

  With it, a convolution of stride 1 and padding 1 is one of packed images: for
  kernels that are used several times, or by what knows of no pairs.

  Args:
    kernel: `[3, 3, C, F]`.

  Returns:
    `[3, 3, 2 * C, 2 * F]`.

  >>> pack_kernel(jnp.ones((3, 3, 4, 5))).shape
  (3, 3, 8, 10)
  """
  return _pack_kernel(kernel, 1, 1, PIXELS)[0]


def convolve(
  x: Array,
  kernel: Array,
  *,
  stride: int = 1,
  pad: int = 1,
  packs: bool = True,
  out_dtype: Dtype | None = None,
) -> Array:
  """A convolution of a packed image.

  Args:
    x: `[N, H, W / 2, 2 * C]`.
    kernel: `[K, K, C, F]`, that of the image itself.
    stride: Step of the window, in pixels.
    pad: Zeros on each side, such that the size is a `stride`-th afterwards.
    packs: Whether the result is packed; if not, the stride must be 2.
    out_dtype: Dtype of the result; None for that of `x`.

  Returns:
    `[N, H / stride, W / stride / 2, 2 * F]`, or without `packs`
    `[N, H / 2, W / 2, F]`.

  >>> x, kernel = jnp.ones((1, 4, 2, 6)), jnp.ones((3, 3, 3, 5))
  >>> convolve(x, kernel).shape
  (1, 4, 2, 10)
  """
  kernel, step, before, after = _pack_kernel(
    kernel, stride, pad, PIXELS if packs else 1
  )
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, step),
    padding=((pad, pad), (before, after)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    preferred_element_type=out_dtype or x.dtype,
  )


@jax.custom_vjp
def conv_doubling(x: Array, kernel: Array) -> Array:
  """`esrgan_jax.ops.convolution.conv_doubling` with a packed result.

  Args:
    x: `[N, H, W, C]`.
    kernel: `[4, 4, F, C]`, that of the convolution that it transposes.

  Returns:
    `[N, 2 * H, W, 2 * F]`.

  >>> conv_doubling(jnp.ones((1, 3, 3, 2)), jnp.ones((4, 4, 5, 2))).shape
  (1, 6, 3, 10)
  """
  n, h, w, _ = x.shape
  shape = (n, 2 * h, w, PIXELS * kernel.shape[-2])
  transposed = jax.linear_transpose(
    lambda y: convolve(y, kernel, stride=2, packs=False),
    axes.abstract(shape, x),
  )
  return transposed(x)[0]


def _conv_doubling_fwd(
  x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
  return conv_doubling(x, kernel), (x, kernel)


def _conv_doubling_bwd(
  residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  # XLA's own gradient of the kernel would reverse the image.
  x, kernel = residuals
  dx, vjp = jax.vjp(
    lambda kernel: convolve(dy, kernel, stride=2, packs=False), kernel
  )
  return dx, vjp(x)[0]


conv_doubling.defvjp(_conv_doubling_fwd, _conv_doubling_bwd)


def max_pool(x: Array) -> Array:
  """2x2 maxima of a packed image; an odd last row is dropped.

  Args:
    x: `[N, H, W / 2, 2 * C]`.

  Returns:
    `[N, H // 2, W / 2, C]`.

  >>> max_pool(jnp.arange(8.0).reshape(1, 2, 2, 2))[0, :, :, 0].tolist()
  [[5.0, 7.0]]
  """
  rows = (1, 2, 1, 1)
  x = lax.reduce_window(x, -jnp.inf, lax.max, rows, rows, "VALID")
  first, second = jnp.split(x, PIXELS, axis=-1)
  # Not `maximum`, whose gradient shares between equal values, at some cost.
  return jnp.where(first >= second, first, second)


def _pack_kernel(
  kernel: Array, stride: int, pad: int, pixels_out: int
) -> tuple[Array, int, int, int]:
  """The kernel, step and padding, in pairs, along the rows."""
  # Output pixel q of a position sees, by tap k, pixel stride * q + k - pad,
  # counted from the first one of the position that corresponds to it.
  taps = kernel.shape[1]
  seen = stride * np.arange(pixels_out)[:, None] + np.arange(taps) - pad
  position, pixel = seen // PIXELS, seen % PIXELS
  before, after = -position.min(), position.max()
  one_hot = np.zeros((taps, before + after + 1, PIXELS, pixels_out), np.float32)
  for q, k in np.ndindex(seen.shape):
    one_hot[k, position[q, k] + before, pixel[q, k], q] = 1
  packed = jnp.einsum(
    "hkcf,kgpq->hgpcqf",
    kernel,
    one_hot.astype(kernel.dtype),
    precision=lax.Precision.HIGHEST,
  )
  rows, positions, _, c, _, f = packed.shape
  packed = packed.reshape(rows, positions, PIXELS * c, pixels_out * f)
  return packed, stride * pixels_out // PIXELS, int(before), int(after)
