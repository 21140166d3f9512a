"""The last layers of a network in strips of rows that stay in a CPU's cache.

At the resolution of the result activations are the largest of the network, and
what a CPU does with them waits for memory. The last upsampling and the two
convolutions after it have a fifth of the arithmetic of a network of six blocks,
and took a third of its time. Here a strip goes through all three before the
next begins; the rows that two strips share are computed twice. The figures are
in `docs/generator.md`.

Arrays are NHWC and HWIO; `valid` is 1 inside of an image and 0 outside, or
None.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esrgan_jax.ops import winograd
from esrgan_jax.ops.convolution import convolve, corners_of_doubled, interleave
from esrgan_jax.ops.dense_block import channels, leaky_relu
from esrgan_jax.ops.pixels import repeat_pixels

Array = jax.Array

# Pixels of a strip before the upsampling, all images of the batch together, and
# fewest rows: of those, four more are computed.
_STRIP_PIXELS = 2**13
_MIN_ROWS = 8
# With fewer strips, there is as good as nothing to gain.
_MIN_STRIPS = 3
# Outputs from which on a convolution is faster as one than as its taps' sum.
_MANY_OUTPUTS = 16


def count_rows(shape: tuple[Any, ...]) -> int | None:
  """How many rows each strip of an image has.

  Args:
    shape: `[N, H, W, C]` before the upsampling; dimensions of an exported
      program may be symbols.

  Returns:
    Rows, at least 8, such that all strips have about as many; None where the
    image is too small to be cut, or of a size that is not known yet.

  >>> count_rows((1, 256, 256, 64)), count_rows((1, 20, 20, 64))
  (32, None)
  """
  n, h, w, _ = shape
  if not all(isinstance(size, int) for size in (n, h, w)) or not n * h * w:
    return None
  count = -(-h // max(_STRIP_PIXELS // (n * w), _MIN_ROWS))
  return -(-h // count) if count >= _MIN_STRIPS else None


def upsample_last(
  feat: Array,
  valid: Array | None,
  up: tuple[Array, Array],
  conv_hr: tuple[Array, Array],
  conv_last: tuple[Array, Array],
  *,
  factor: int,
  rows: int,
) -> Array:
  """Upsamples, and runs the last two convolutions.

  Args:
    feat: `[N, H, W, C]`.
    valid: `[N, H, W, 1]`, or None.
    up: Kernel and bias of the convolution after nearest upsampling; for a
      factor of 2 the kernel that does both, of `[4, 4, F, C]`.
    conv_hr: Kernel and bias of the next one.
    conv_last: Kernel and bias of the last one.
    factor: Of the upsampling.
    rows: Of a strip, before it.

  Returns:
    float32 `[N, factor * H, factor * W, F]`.
  """
  n, h, w, _ = feat.shape
  count = -(-h // rows)
  # Rows that a strip sees above and below: two of the result for what follows,
  # and one that the upsampling sees.
  halo = 2 if factor == 2 else 1
  after = count * rows - h + halo
  feat = jnp.pad(feat, ((0, 0), (halo, after), (0, 0), (0, 0)))
  if valid is not None:
    valid = jnp.pad(valid, ((0, 0), (halo, after), (0, 0), (0, 0)))

  def strip(i: Array) -> Array:
    cut = functools.partial(
      lax.dynamic_slice_in_dim,
      start_index=i * rows,
      slice_size=rows + 2 * halo,
      axis=1,
    )
    kernel, bias = up
    if factor == 2:
      sr = _double(cut(feat), kernel)
    else:
      sr = _convolve(repeat_pixels(cut(feat), factor), kernel)
    # Beyond the image, what the next convolution sees is zero.
    if valid is None:
      row = lax.broadcasted_iota(jnp.int32, (1, sr.shape[1], 1, 1), 1)
      row += factor * i * rows - 2
      inside = ((row >= 0) & (row < factor * h)).astype(sr.dtype)
    else:
      inside = repeat_pixels(cut(valid), factor)
      beyond = (inside.shape[1] - sr.shape[1]) // 2
      inside = inside[:, beyond : beyond + sr.shape[1]]
    sr = leaky_relu(sr + channels(bias)) * inside
    kernel, bias = conv_hr
    sr = leaky_relu(_convolve(sr, kernel) + channels(bias)) * inside[:, 1:-1]
    kernel, bias = conv_last
    sr = _convolve(sr, kernel, jnp.float32)
    return sr + channels(bias).astype(jnp.float32)

  strips = lax.map(strip, jnp.arange(count, dtype=jnp.int32))
  sr = strips.swapaxes(0, 1)
  sr = sr.reshape(n, count * factor * rows, factor * w, -1)
  return sr[:, : factor * h]


def _double(x: Array, kernel: Array) -> Array:
  """`conv_doubling` without the rows that see outside: 2 * (H - 2) of them."""
  corners = convolve(x, corners_of_doubled(kernel), pad=(0, 1))
  return interleave(corners)


def _convolve(x: Array, kernel: Array, out_dtype: Any = None) -> Array:
  """A 3x3 convolution without the rows that see outside: H - 2 of them."""
  if kernel.shape[-1] < _MANY_OUTPUTS:
    return _sum_taps(x, kernel, out_dtype or x.dtype)
  if out_dtype in (None, x.dtype) and winograd.pays(x, kernel):
    return winograd.convolve(x, kernel, pad_rows=0)
  return convolve(x, kernel, pad=(0, 1), out_dtype=out_dtype)


def _sum_taps(x: Array, kernel: Array, dtype: Any) -> Array:
  """The same for few outputs: a product for all nine taps, shifted and added.

  A matrix product to three columns leaves most of each register empty.
  """
  n, h, w, c = x.shape
  f = kernel.shape[-1]
  taps = jnp.matmul(
    x,
    kernel.transpose(2, 0, 1, 3).reshape(c, 9 * f),
    preferred_element_type=dtype,
  )
  taps = jnp.pad(taps, ((0, 0), (0, 0), (1, 1), (0, 0)))
  taps = taps.reshape(n, h, w + 2, 3, 3, f)
  return sum(
    taps[:, i : i + h - 2, j : j + w, i, j] for i, j in np.ndindex(3, 3)
  )
