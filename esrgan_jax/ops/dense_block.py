"""The dense block of ESRGAN, with a gradient of its own.

A convolution of a concatenation is a sum of convolutions, one a source. So the
block's input goes through one convolution to all five layers at once, 64 -> 192
channels, and each layer's output through one to all later layers. The
arithmetic is the same, the concatenations are gone, and the convolutions are
wide. The gradient is the mirror of it, and needs the block's input and what the
four narrow layers give: 64 and 128 channels, where differentiation would keep
hundreds.

There are two forms, `padded` for TPUs and `exact` for the rest; equal to
rounding. `docs/generator.md` and `docs/tpu.md` have the figures.

Arrays are NHWC and HWIO.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from esrgan_jax.ops import rows
from esrgan_jax.ops.convolution import (
  convolve,
  convolve_on_cpu,
  kernel_gradient_by_conv,
  kernel_gradient_on_cpu,
  sum_pixels,
  transpose,
)
from esrgan_jax.ops.platforms import by_platform

Array = jax.Array

_NEGATIVE_SLOPE = 0.2  # ESRGAN, section 3.1; BasicSR `rrdbnet_arch.py`.
_RESIDUAL_SCALE = 0.2  # Paper: beta = 0.2, in each dense block and each RRDB.

Convs = Sequence[tuple[Array, Array]]


class GroupedConvs(NamedTuple):
  """A dense block's convolutions, each kernel from one source to all targets.

  Layers 1 to n grow the block by G channels each; layer n + 1 has F outputs.
  Leading axes are allowed, for blocks that are stacked.

  Attributes:
    first: `[3, 3, C, n * G + F]`, from the block's input to all layers.
    inner: n - 1 kernels `[3, 3, G, n * G]`, from layer i to layers 1 to n; zero
      up to layer i itself.
    last: `[3, 3, n * G, F]`, from layers 1 to n to the last one.
    bias: `[n * G + F]`.
  """

  first: Array
  inner: tuple[Array, ...]
  last: Array
  bias: Array


def group_convs(convs: Convs) -> GroupedConvs:
  """Regroups a dense block's convolutions by source.

  Args:
    convs: Kernel `[..., 3, 3, C_i, G_i]` and bias `[..., G_i]` of two or more
      convolutions, where C_{i+1} = C_i + G_i and all G_i but the last agree.

  Returns:
    The same weights for `dense_block`.

  >>> convs = [(jnp.ones((3, 3, 8 + 4 * i, g)), jnp.zeros(g))
  ...          for i, g in enumerate((4, 4, 4, 4, 8))]
  >>> jax.tree.map(jnp.shape, group_convs(convs)).first
  (3, 3, 8, 24)
  """
  *growing, (kernel, _) = convs
  grow = growing[0][0].shape[-1]
  feat = growing[0][0].shape[-2]
  inner = []
  for i in range(len(growing) - 1):
    source = slice(feat + i * grow, feat + (i + 1) * grow)
    parts = [k[..., source, :] for k, _ in growing[i + 1 :]]
    before = [(0, 0)] * (kernel.ndim - 1) + [((i + 1) * grow, 0)]
    inner.append(jnp.pad(jnp.concatenate(parts, axis=-1), before))
  return GroupedConvs(
    first=jnp.concatenate([k[..., :feat, :] for k, _ in convs], axis=-1),
    inner=tuple(inner),
    last=kernel[..., feat:, :],
    bias=jnp.concatenate([b for _, b in convs], axis=-1),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def dense_block(
  x: Array,
  convs: GroupedConvs,
  valid: Array | None = None,
  strips: rows.Strips = rows.WHOLE,
) -> Array:
  """Runs densely connected convolutions, and adds a fifth of the result to x.

  Convolution i sees the concatenation of `x` and the leaky-rectified outputs of
  all convolutions before it. Reverse-mode differentiation only.

  Args:
    x: `[N, H, W, F]`.
    convs: From `group_convs`.
    valid: `[N, H, W, 1]`, 1 inside the image and 0 outside, or None.
    strips: Of what images, if `x` and `valid` are from `rows.split`; for TPUs.

  Returns:
    `[N, H, W, F]`.

  Source: the dense block of ESRGAN, figure 4, with `conv(concat(a, b), k)`
  written as `conv(a, k_a) + conv(b, k_b)`.

  >>> convs = [(jnp.ones((3, 3, 2 + i, g)), jnp.zeros(g))
  ...          for i, g in enumerate((1, 1, 2))]
  >>> dense_block(jnp.ones((1, 4, 4, 2)), group_convs(convs)).shape
  (1, 4, 4, 2)
  """
  return _dense_block_fwd(x, convs, valid, strips)[0]


def _dense_block_fwd(
  x: Array,
  convs: GroupedConvs,
  valid: Array | None,
  strips: rows.Strips,
) -> tuple[Array, tuple]:
  if strips.num > 1:
    out, grown = forward_padded(x, convs, valid, strips=strips)
  else:
    out, grown = by_platform(
      x,
      convs,
      valid,
      cpu=functools.partial(forward_exact, convolve=convolve_on_cpu),
      tpu=forward_padded,
      default=forward_exact,
    )
  return out, (x, grown, convs, valid)


def _dense_block_bwd(
  strips: rows.Strips, residuals: tuple, d_out: Array
) -> tuple[Array, GroupedConvs, Array | None]:
  if strips.num > 1:
    d_x, d_convs = backward_padded(*residuals, d_out, strips=strips)
  else:
    d_x, d_convs = by_platform(
      *residuals,
      d_out,
      cpu=functools.partial(
        backward_exact,
        convolve=convolve_on_cpu,
        correlate=kernel_gradient_on_cpu,
      ),
      tpu=backward_padded,
      default=backward_exact,
    )
  valid = residuals[-1]
  return d_x, d_convs, None if valid is None else jnp.zeros_like(valid)


dense_block.defvjp(_dense_block_fwd, _dense_block_bwd)


def forward_exact(
  x: Array,
  convs: GroupedConvs,
  valid: Array | None,
  *,
  convolve: Callable[[Array, Array], Array] = convolve,
) -> tuple[Array, Array]:
  """The block without a product that isn't needed.

  Args:
    x: `[N, H, W, F]`.
    convs: From `group_convs`.
    valid: `[N, H, W, 1]` or None.
    convolve: Maps an image and a kernel to their convolution.

  Returns:
    What `dense_block` does, and what layers 1 to n give before the rectifier,
    `[N, H, W, n * G]`, for the backward pass.
  """
  num, grow = _widths(convs)
  # On CPU, two convolutions to 128 and 64 channels are faster than one.
  grown, last = (
    convolve(x, kernel) + channels(bias)
    for kernel, bias in (
      (convs.first[..., :num], convs.bias[:num]),
      (convs.first[..., num:], convs.bias[num:]),
    )
  )
  sums = jnp.split(grown, num // grow, axis=-1)
  for i in range(len(sums)):
    start, stop = i * grow, (i + 1) * grow
    kernel = convs.last[..., start:stop, :]
    if i < len(convs.inner):
      later = convs.inner[i][..., stop:]
      kernel = jnp.concatenate([later, kernel], axis=-1)
    more = convolve(mask(leaky_relu(sums[i]), valid), kernel)
    last += more[..., num - stop :]
    for j in range(i + 1, len(sums)):
      sums[j] += more[..., j * grow - stop : (j + 1) * grow - stop]
  return add_fifth(x, mask(last, valid)), jnp.concatenate(sums, axis=-1)


def backward_exact(
  x: Array,
  grown: Array,
  convs: GroupedConvs,
  valid: Array | None,
  d_out: Array,
  *,
  convolve: Callable[[Array, Array], Array] = convolve,
  correlate: Callable[[Array, Array], Array] = kernel_gradient_by_conv,
) -> tuple[Array, GroupedConvs]:
  """The mirror of `forward_exact`: from the last layer to the first.

  Args:
    x: `[N, H, W, F]`.
    grown: The second result of `forward_exact`.
    convs: From `group_convs`.
    valid: `[N, H, W, 1]` or None.
    d_out: `[N, H, W, F]`, the gradient of the first result.
    convolve: Maps an image and a kernel to their convolution.
    correlate: Maps an image and the gradient of its convolution to the
      kernel's gradient.

  Returns:
    The gradients of `x` and `convs`.
  """
  num, grow = _widths(convs)
  d_last = mask(d_out, valid) * _fifth(x)
  # This begins as the gradient of the rectified layers.
  d_grown = convolve(d_last, transpose(convs.last))
  d_x = convolve(d_last, transpose(convs.first[..., num:]))
  parts = jnp.split(grown, num // grow, axis=-1)
  d_parts = jnp.split(d_grown, num // grow, axis=-1)
  for i in reversed(range(len(parts))):
    d_parts[i] *= _slope(parts[i], valid)
    if i:
      more = convolve(d_parts[i], transpose(_inner_to(convs, i)))
      for j in range(i):
        d_parts[j] += more[..., j * grow : (j + 1) * grow]
  d_grown = jnp.concatenate(d_parts, axis=-1)
  d_x += convolve(d_grown, transpose(convs.first[..., :num]))

  d_all = jnp.concatenate([d_grown, d_last], axis=-1)
  d_inner, d_final = [], []
  for i, part in enumerate(parts):
    stop = (i + 1) * grow
    layer = mask(leaky_relu(part), valid)
    products = correlate(layer, d_all[..., stop:])
    before = ((0, 0), (0, 0), (0, 0), (stop, 0))
    d_inner.append(jnp.pad(products[..., : num - stop], before))
    d_final.append(products[..., num - stop :])
  return d_out + d_x, GroupedConvs(
    first=correlate(x, d_all),
    inner=tuple(d_inner[: len(convs.inner)]),
    last=jnp.concatenate(d_final, axis=-2),
    bias=sum_pixels(d_all),
  )


def forward_padded(
  x: Array,
  convs: GroupedConvs,
  valid: Array | None,
  *,
  strips: rows.Strips = rows.WHOLE,
) -> tuple[Array, Array]:
  """The block for a matrix unit of 128 lanes; see `forward_exact`.

  The inner convolutions write all n * G channels, zeros up to their own layer:
  the zeros cost the unit nothing, and an addition that starts in the middle of
  its lanes would cost as much as a convolution.
  """
  num, grow = _widths(convs)
  convolve = functools.partial(rows.convolve, strips=strips)
  out = convolve(x, convs.first) + channels(convs.bias)
  grown, last = out[..., :num], out[..., num:]
  for i, kernel in enumerate(convs.inner):
    layer = grown[..., i * grow : (i + 1) * grow]
    grown += convolve(mask(leaky_relu(layer), valid), kernel)
  last += convolve(mask(leaky_relu(grown), valid), convs.last)
  return add_fifth(x, mask(last, valid)), grown


def backward_padded(
  x: Array,
  grown: Array,
  convs: GroupedConvs,
  valid: Array | None,
  d_out: Array,
  *,
  strips: rows.Strips = rows.WHOLE,
) -> tuple[Array, GroupedConvs]:
  """The mirror of `forward_padded`; see `backward_exact`."""
  num, grow = _widths(convs)
  convolve = functools.partial(rows.convolve, strips=strips)
  correlate = functools.partial(rows.kernel_gradient, strips=strips)
  d_last = mask(d_out, valid) * _fifth(x)
  # One convolution back from the last layer, to the layers and to the input.
  kernel = jnp.concatenate([convs.last, convs.first[..., num:]], axis=-2)
  back = convolve(d_last, transpose(kernel))
  d_grown, d_x = back[..., :num], back[..., num:]
  for i in reversed(range(1, len(convs.inner) + 1)):
    layer = slice(i * grow, (i + 1) * grow)
    d_layer = d_grown[..., layer] * _slope(grown[..., layer], valid)
    after = ((0, 0), (0, 0), (0, num - i * grow), (0, 0))
    kernel = jnp.pad(_inner_to(convs, i), after)
    d_grown += convolve(d_layer, transpose(kernel))
  d_grown *= _slope(grown, valid)
  d_x += convolve(d_grown, transpose(convs.first[..., :num]))

  # All products of the layers at once: those of no weight are thrown away.
  layers = mask(leaky_relu(grown), valid)
  products = correlate(layers, d_grown)
  d_first = [correlate(x, d_grown), correlate(x, d_last)]
  return d_out + d_x, GroupedConvs(
    first=jnp.concatenate(d_first, axis=-1),
    inner=tuple(
      products[..., i * grow : (i + 1) * grow, :]
      for i in range(len(convs.inner))
    ),
    last=correlate(layers, d_last),
    bias=jnp.concatenate(
      [_sum_pixels_on_tpu(d_grown), _sum_pixels_on_tpu(d_last)]
    ),
  )


def leaky_relu(x: Array) -> Array:
  """The rectifier of the paper: a slope of 0.2 below zero."""
  return jnp.maximum(x, x * jnp.asarray(_NEGATIVE_SLOPE, x.dtype))


def add_fifth(x: Array, residual: Array) -> Array:
  """Residual scaling: x and a fifth of what a block adds to it."""
  return x + residual * _fifth(x)


def channels(bias: Array) -> Array:
  """Shapes a bias `[C]` to be added to `[N, H, W, C]`."""
  return bias.reshape(1, 1, 1, -1)


def mask(x: Array, valid: Array | None) -> Array:
  """Sets `x` to zero outside the image, where there is a mask."""
  return x if valid is None else x * valid


def _slope(x: Array, valid: Array | None) -> Array:
  """The derivative of the masked rectifier."""
  return mask(jnp.where(x > 0, 1.0, _NEGATIVE_SLOPE).astype(x.dtype), valid)


def _inner_to(convs: GroupedConvs, i: int) -> Array:
  """The kernel from layers 1 to i to layer i + 1: `[3, 3, i * G, G]`."""
  _, grow = _widths(convs)
  kernels = [k[..., i * grow : (i + 1) * grow] for k in convs.inner[:i]]
  return jnp.concatenate(kernels, axis=-2)


def _widths(convs: GroupedConvs) -> tuple[int, int]:
  """Channels of layers 1 to n together, and of one of them."""
  num = convs.last.shape[-2]
  return num, num // (len(convs.inner) + 1)


def _fifth(x: Array) -> Array:
  return jnp.asarray(_RESIDUAL_SCALE, x.dtype)


def _sum_pixels_on_tpu(x: Array) -> Array:
  """`sum_pixels` as a convolution's kernel gradient.

  To a TPU that is a tenth of the vector unit's work; a matrix product with the
  first three axes made one would copy `x` into another layout first.
  """
  ones = jnp.ones((*x.shape[:-1], 8), x.dtype)  # Rows a register has anyway.
  gradient = kernel_gradient_by_conv(ones, x, side=1, pad=0)
  return gradient[0, 0, 0]
