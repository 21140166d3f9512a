"""Convolutions whose gradients are fast on every platform.

XLA's CPU compiler (jaxlib 0.10 to 0.12) runs convolutions well, but not all of
those that differentiation makes of them: a kernel's gradient is compiled to a
naive loop where it stands inside a loop, and is slow elsewhere; the gradient of
a strided convolution's input is slow. On CPU these are written as the matrix
product, and as the convolution without stride, that they are; and 3x3
convolutions of many channels take half of the multiplications
(`esrgan_jax.ops.winograd`). The figures are in `docs/generator.md`.
Reverse-mode differentiation only, of any order.

Arrays are NHWC and HWIO.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esrgan_jax.ops import axes, winograd
from esrgan_jax.ops.platforms import by_platform
from esrgan_jax.ops.precision import at_least_float32

Array = jax.Array
Dtype = Any

# What decides between forms on a CPU; `docs/generator.md` has the times.
# A kernel of so many inputs times outputs takes as long to transpose as to use,
_WIDE_KERNEL = 256 * 256
_WIDE_KERNEL_PIXELS = 64  # except on images so small that nothing takes long.
# From here on, a product for each tap beats one of all taps, copied together.
_MIN_CHANNELS_APART = 16
_MIN_PIXELS_APART = 256


def convolve(
  x: Array,
  kernel: Array,
  *,
  stride: int = 1,
  pad: int | tuple[int, int] = 1,
  out_dtype: Dtype | None = None,
) -> Array:
  """A convolution, differentiated as JAX does.

  Args:
    x: `[N, H, W, C]`.
    kernel: `[K, K, C, F]`.
    stride: Step of the window, in pixels.
    pad: Zeros on each side; or above and below, and left and right.
    out_dtype: Dtype of the result; None for that of `x`.

  Returns:
    `[N, (H + 2 * pad - K) // stride + 1, ..., F]`.

  >>> convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))).shape
  (1, 4, 4, 5)
  """
  rows, columns = (pad, pad) if isinstance(pad, int) else pad
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((rows, rows), (columns, columns)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    preferred_element_type=out_dtype or x.dtype,
  )


def convolve_on_cpu(
  x: Array, kernel: Array, *, stride: int = 1, pad: int = 1
) -> Array:
  """`convolve`, in the form that is fastest on a CPU.

  >>> convolve_on_cpu(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))).shape
  (1, 4, 4, 5)
  """
  if _has_winograd(x, kernel, stride, pad):
    return winograd.convolve(x, kernel)
  return convolve(x, kernel, stride=stride, pad=pad)


def _has_winograd(
  x: Any, kernel: Any, stride: int, pad: int, out_dtype: Dtype | None = None
) -> bool:
  plain = (stride, pad, out_dtype or x.dtype) == (1, 1, x.dtype)
  return plain and winograd.pays(x, kernel)


def _convolve(
  x: Array, kernel: Array, stride: int, pad: int, out_dtype: Dtype | None
) -> Array:
  run = functools.partial(convolve, stride=stride, pad=pad, out_dtype=out_dtype)
  if not _has_winograd(x, kernel, stride, pad, out_dtype):
    return run(x, kernel)
  return by_platform(x, kernel, cpu=winograd.convolve, default=run)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv(
  x: Array,
  kernel: Array,
  stride: int = 1,
  pad: int = 1,
  out_dtype: Dtype | None = None,
) -> Array:
  """`convolve`, fast on every platform, and so are its gradients.

  Args:
    x: `[N, H, W, C]`.
    kernel: `[K, K, C, F]`.
    stride: Step of the window, in pixels.
    pad: Zeros on each side, less than K.
    out_dtype: Dtype of the result; None for that of `x`.

  Returns:
    As `convolve`.

  >>> kernel = jnp.ones((4, 4, 2, 5))
  >>> jax.grad(lambda x: conv(x, kernel, 2).sum())(jnp.ones((1, 8, 8, 2))).shape
  (1, 8, 8, 2)
  """
  return _convolve(x, kernel, stride, pad, out_dtype)


def _conv_fwd(
  x: Array, kernel: Array, stride: int, pad: int, out_dtype: Dtype | None
) -> tuple[Array, tuple[Array, Array]]:
  return _convolve(x, kernel, stride, pad, out_dtype), (x, kernel)


def _conv_bwd(
  stride: int,
  pad: int,
  out_dtype: Dtype | None,
  residuals: tuple[Array, Array],
  dy: Array,
) -> tuple[Array, Array]:
  del out_dtype
  x, kernel = residuals
  window = {"stride": stride, "pad": pad}
  dy = dy.astype(x.dtype)
  by_transposition = functools.partial(
    input_gradient_by_transposition, shape=x.shape, **window
  )
  if stride == 1:
    dx = _input_gradient(dy, kernel, pad)
  elif (stride, pad, kernel.shape[0]) == (2, 1, 4) and _is_even(x):
    dx = _double(dy, kernel)
  else:
    dx = by_transposition(dy, kernel)
  side = kernel.shape[0]
  d_kernel = by_platform(
    x,
    dy,
    cpu=functools.partial(kernel_gradient_on_cpu, side=side, **window),
    default=functools.partial(kernel_gradient_by_conv, side=side, **window),
  )
  return dx, d_kernel


conv.defvjp(_conv_fwd, _conv_bwd)


def _input_gradient(dy: Array, kernel: Array, pad: int) -> Array:
  """That of a convolution of stride 1, as a convolution."""

  def run(dy, kernel):
    return conv(dy, transpose(kernel), 1, kernel.shape[0] - 1 - pad)

  n, h, w, _ = dy.shape
  fits = (kernel.shape[0], pad, dy.dtype) == (3, 1, jnp.float32)
  if fits and _is_wide(kernel) and n * h * w >= _WIDE_KERNEL_PIXELS:
    return by_platform(dy, kernel, cpu=winograd.input_gradient, default=run)
  return run(dy, kernel)


def _is_wide(kernel: Array) -> bool:
  return kernel.shape[2] * kernel.shape[3] >= _WIDE_KERNEL


@jax.custom_vjp
def conv_doubling(x: Array, kernel: Array) -> Array:
  """The transposed convolution of 4x4 kernels at stride 2, padding 1.

  Args:
    x: `[N, H, W, C]`.
    kernel: `[4, 4, F, C]`, that of the convolution that it transposes.

  Returns:
    `[N, 2 * H, 2 * W, F]`.

  >>> conv_doubling(jnp.ones((1, 3, 3, 2)), jnp.ones((4, 4, 5, 2))).shape
  (1, 6, 6, 5)
  """
  return _double(x, kernel)


def _double(x: Array, kernel: Array) -> Array:
  n, h, w, _ = x.shape
  shape = (n, 2 * h, 2 * w, kernel.shape[-2])
  return by_platform(
    x,
    kernel,
    cpu=input_gradient_by_parity,
    default=functools.partial(
      input_gradient_by_transposition, shape=shape, stride=2, pad=1
    ),
  )


def _conv_doubling_fwd(
  x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
  return _double(x, kernel), (x, kernel)


def _conv_doubling_bwd(
  residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, kernel = residuals
  window = {"side": 4, "stride": 2, "pad": 1}
  d_kernel = by_platform(
    dy,
    x,
    cpu=functools.partial(kernel_gradient_by_dot, **window),
    default=functools.partial(kernel_gradient_by_conv, **window),
  )
  return convolve(dy, kernel, stride=2), d_kernel


conv_doubling.defvjp(_conv_doubling_fwd, _conv_doubling_bwd)


def _is_even(x: Array) -> bool:
  return x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0


def transpose(kernel: Array) -> Array:
  """The kernel that a convolution's input gradient is a convolution with.

  >>> transpose(jnp.ones((3, 3, 2, 5))).shape
  (3, 3, 5, 2)
  """
  return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def kernel_gradient_by_conv(
  x: Array,
  dy: Array,
  *,
  side: int = 3,
  stride: int = 1,
  pad: int | tuple[int, int] = 1,
) -> Array:
  """A kernel's gradient as XLA forms it.

  Args:
    x: `[N, H, W, C]`, what was convolved.
    dy: `[N, h, w, F]`, the gradient of the result.
    side: K, the kernel's side.
    stride: Step of the window, in pixels.
    pad: As for `convolve`.

  Returns:
    `[K, K, C, F]`.

  >>> x, dy = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 4, 4, 5))
  >>> kernel_gradient_by_conv(x, dy).shape
  (3, 3, 2, 5)
  """
  x, dy = axes.vary_alike((x, dy))
  shape = (side, side, x.shape[-1], dy.shape[-1])
  transposed = jax.linear_transpose(
    lambda kernel: convolve(x, kernel, stride=stride, pad=pad),
    axes.abstract(shape, x),
  )
  return transposed(dy)[0]


def kernel_gradient_by_dot(
  x: Array, dy: Array, *, side: int = 3, stride: int = 1, pad: int = 1
) -> Array:
  """A kernel's gradient as matrix products; see `kernel_gradient_by_conv`.

  >>> x, dy = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 4, 4, 5))
  >>> kernel_gradient_by_dot(x, dy).shape
  (3, 3, 2, 5)
  """
  (n, h, w, out), c = dy.shape, x.shape[-1]
  if stride == 1 and out < c:  # The taps of the narrower one are less to copy.
    swapped = kernel_gradient_by_dot(dy, x, side=side, pad=side - 1 - pad)
    return transpose(swapped)
  x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  rows, columns = (h - 1) * stride + 1, (w - 1) * stride + 1
  taps = [
    x[:, i : i + rows : stride, j : j + columns : stride].reshape(-1, c)
    for i in range(side)
    for j in range(side)
  ]
  dy = dy.reshape(-1, out)
  if c >= _MIN_CHANNELS_APART and n * h * w >= _MIN_PIXELS_APART:
    gradient = jnp.concatenate([tap.T @ dy for tap in taps])
  else:
    gradient = jnp.concatenate(taps, axis=-1).T @ dy
  return gradient.reshape(side, side, c, out)


def kernel_gradient_on_cpu(
  x: Array, dy: Array, *, side: int = 3, stride: int = 1, pad: int = 1
) -> Array:
  """A kernel's gradient in the form that is fastest on a CPU.

  >>> x, dy = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 4, 4, 5))
  >>> kernel_gradient_on_cpu(x, dy).shape
  (3, 3, 2, 5)
  """
  shape = (side, side, x.shape[-1], dy.shape[-1])
  if _has_winograd(x, jax.ShapeDtypeStruct(shape, x.dtype), stride, pad):
    return winograd.kernel_gradient(x, dy)
  return kernel_gradient_by_dot(x, dy, side=side, stride=stride, pad=pad)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
  """Adds a bias to each pixel; its gradient is fast on every platform.

  Args:
    x: `[N, H, W, C]`.
    bias: `[C]`.

  Returns:
    As `x`.

  >>> add_bias(jnp.zeros((1, 1, 2, 2)), jnp.array([1.0, 2.0])).tolist()
  [[[[1.0, 2.0], [1.0, 2.0]]]]
  """
  return x + bias.reshape(1, 1, 1, -1)


def _add_bias_fwd(x: Array, bias: Array) -> tuple[Array, None]:
  return add_bias(x, bias), None


def _add_bias_bwd(residuals: None, dy: Array) -> tuple[Array, Array]:
  del residuals
  return dy, sum_pixels(dy)


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)


def sum_pixels(x: Array) -> Array:
  """Sums `[N, H, W, C]` over all but C, as a bias's gradient does.

  On a CPU as a product: XLA's own sum runs in one thread, and where what is
  summed is computed for it, without its vector unit.

  >>> sum_pixels(jnp.ones((1, 2, 3, 2))).tolist()
  [6.0, 6.0]
  """
  return by_platform(
    x, cpu=_sum_by_dot, default=functools.partial(jnp.sum, axis=(0, 1, 2))
  )


def _sum_by_dot(x: Array) -> Array:
  n, h, w, c = x.shape
  wide = at_least_float32(x.dtype)
  # In two steps, for less rounding than of one sum of all.
  rows = jnp.matmul(
    jnp.ones((1, n * h), x.dtype),
    x.reshape(n * h, w * c),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=wide,
  )
  return rows.reshape(w, c).sum(0).astype(x.dtype)


def input_gradient_by_transposition(
  dy: Array, kernel: Array, *, shape: tuple[int, ...], stride: int, pad: int
) -> Array:
  """An input's gradient as XLA forms it: dy with zeros between its pixels."""
  transposed = jax.linear_transpose(
    lambda x: convolve(x, kernel, stride=stride, pad=pad),
    axes.abstract(shape, dy),
  )
  return transposed(dy)[0]


def input_gradient_by_parity(dy: Array, kernel: Array) -> Array:
  """The same for 4x4 kernels at stride 2, without the zeros.

  Each pixel is under 2x2 of the kernel's 4x4 weights: which ones, depends on
  whether its row and column are even.

  Args:
    dy: `[N, h, w, F]`.
    kernel: `[4, 4, C, F]`.

  Returns:
    `[N, 2 * h, 2 * w, C]`.

  >>> dy, kernel = jnp.ones((1, 2, 2, 5)), jnp.ones((4, 4, 3, 5))
  >>> input_gradient_by_parity(dy, kernel)[0, 1, 1].tolist()
  [20.0, 20.0, 20.0]
  """
  n, h, w, f = dy.shape
  c = kernel.shape[2]
  if not _is_wide(kernel):
    return interleave(convolve(dy, corners_of_doubled(kernel)))
  # As products that read a wide kernel as it lies, instead of transposing it.
  parts = _by_parity(kernel).transpose(1, 3, 4, 0, 2, 5).reshape(4 * c, 4 * f)
  dy = jnp.pad(dy, ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = [dy[:, i : h + 1 + i, j : w + 1 + j] for i, j in np.ndindex(2, 2)]
  taps = jnp.concatenate(taps, axis=-1).reshape(-1, 4 * f)
  return interleave((taps @ parts.T).reshape(n, h + 1, w + 1, 4 * c))


def corners_of_doubled(kernel: Array) -> Array:
  """The kernel that sees 2x2 pixels, for `interleave` to weave the results.

  Args:
    kernel: `[4, 4, C, F]`, as for `input_gradient_by_parity`.

  Returns:
    `[2, 2, F, 4 * C]`.

  >>> corners_of_doubled(jnp.ones((4, 4, 3, 5))).shape
  (2, 2, 5, 12)
  """
  c, f = kernel.shape[2:]
  return _by_parity(kernel).transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, f, 4 * c)


def _by_parity(kernel: Array) -> Array:
  # Row 2j is under rows 3 and 1 of windows j - 1 and j, row 2j + 1 under rows 2
  # and 0 of windows j and j + 1; columns likewise.
  return kernel[::-1, ::-1].reshape(2, 2, 2, 2, *kernel.shape[2:])


def interleave(y: Array) -> Array:
  """Weaves what a 2x2 window sees into an image of twice the size.

  Args:
    y: `[N, h + 1, w + 1, 4 * C]`: at each corner between the pixels of an image
      of h x w with one pixel of border, four values. The first is meant for the
      even row and column to the lower right of the corner, the second for the
      odd column to its left, the other two for the rows above.

  Returns:
    `[N, 2 * h, 2 * w, C]`.

  >>> interleave(jnp.arange(16.0).reshape(1, 2, 2, 4))[0, ..., 0].tolist()
  [[0.0, 5.0], [10.0, 15.0]]
  """
  n, h, w = y.shape[0], y.shape[1] - 1, y.shape[2] - 1
  y = y.reshape(n, h + 1, w + 1, 2, 2, -1)
  y = jnp.stack([y[:, i : i + h, :, i] for i in range(2)], axis=2)
  y = jnp.stack([y[:, :, :, i : i + w, i] for i in range(2)], axis=4)
  return y.reshape(n, 2 * h, 2 * w, -1)
