"""3x3 convolutions with half of the multiplications, for CPUs.

Winograd's minimal filtering F(4, 3), along the rows of the image: four
neighbouring outputs of a filter of three taps need six products, not twelve.
With a 3x3 kernel, each of the six is a convolution of 3x1 on an image of a
quarter of the width. What it costs is sums before and after, so it pays where
channels are many and arithmetic is the bound: on a CPU, in float32. In two
dimensions, F(4x4, 3x3) would need a quarter of the products, but the sums then
cost more than the products, and rounding errors grow three times as large.

All of it can be differentiated, but is meant for the convolutions of
`esrgan_jax.ops.convolution`, whose gradients have this form too.

Within `jax.default_matmul_precision("bfloat16")` the products of `convolve` are
of bfloat16, which some processors multiply faster; the sums before, in and
after them stay in float32.

Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
Networks" (arXiv:1509.09308), section 4.3, with its matrices A, B and G for
F(4x4, 3x3), in one dimension.

Arrays are NHWC and HWIO.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from esrgan_jax.ops.precision import products_in_bfloat16

Array = jax.Array

_TILE = 4  # Outputs at a time: neighbours in a row.
# With fewer channels or pixels than this, the sums outweigh the products; with
# fewer products, what is saved is less than what compiling costs.
_MIN_CHANNELS = 16
_MIN_PIXELS = 192
_MIN_PRODUCTS = 2**25
# Pixels of a strip where products are of bfloat16, all images of a batch
# together, and fewest rows: two more are seen.
_STRIP_PIXELS = 2**13
_MIN_ROWS = 8


def pays(x: jax.ShapeDtypeStruct, kernel: jax.ShapeDtypeStruct) -> bool:
  """Whether a convolution is faster in this form, on a CPU.

  Args:
    x: Shape and dtype of the image, `[N, H, W, C]`; arrays have them too.
    kernel: Shape and dtype of the kernel, `[K, K, C, F]`.

  Returns:
    True for 3x3 kernels of 16 or more channels in float32, unless there is
    little to compute, or a width of a few pixels leaves much of the last tile
    empty.

  >>> pays(jnp.ones((1, 32, 32, 64)), jnp.ones((3, 3, 64, 64)))
  True
  """
  n, h, w, _ = x.shape
  side, _, in_ch, out_ch = kernel.shape
  return (
    side == 3
    and x.dtype == kernel.dtype == jnp.float32
    and min(in_ch, out_ch) >= _MIN_CHANNELS
    and n * h * w >= _MIN_PIXELS
    and n * h * w * side**2 * in_ch * out_ch >= _MIN_PRODUCTS
    and _count_tiles(w) * _TILE <= 1.25 * w
  )


def convolve(x: Array, kernel: Array, *, pad_rows: int = 1) -> Array:
  """The 3x3 convolution of stride 1 and padding 1.

  Args:
    x: `[N, H, W, C]`.
    kernel: `[3, 3, C, F]`.
    pad_rows: Zeros above and below the image.

  Returns:
    `[N, H + 2 * pad_rows - 2, W, F]`, within some 3e-6 of its largest value of
    what plain float32 sums give; with products in bfloat16, within some 1e-2.

  >>> y = convolve(jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 2, 1)))
  >>> [round(value, 3) for value in y[0, 1, :, 0].tolist()]
  [12.0, 18.0, 12.0]
  """
  if products_in_bfloat16():
    return _convolve_in_strips(x, kernel, pad_rows)
  return _convolve(x, kernel, pad_rows, _multiply)


def _convolve_in_strips(x: Array, kernel: Array, pad_rows: int) -> Array:
  """With products in bfloat16: those of a large image would wait for memory."""
  n, h, w, _ = x.shape
  h += 2 * pad_rows - 2
  count = -(-h // max(_STRIP_PIXELS // (n * w), _MIN_ROWS))
  if count == 1:
    return _convolve(x, kernel, pad_rows, _multiply_halves)
  rows = -(-h // count)
  below = pad_rows + count * rows - h
  x = jnp.pad(x, ((0, 0), (pad_rows, below), (0, 0), (0, 0)))

  def strip(i: Array) -> Array:
    part = lax.dynamic_slice_in_dim(x, i * rows, rows + 2, axis=1)
    return _convolve(part, kernel, 0, _multiply_halves)

  strips = lax.map(strip, jnp.arange(count, dtype=jnp.int32))
  y = strips.swapaxes(0, 1).reshape(n, count * rows, w, -1)
  return y[:, :h]


def _convolve(
  x: Array,
  kernel: Array,
  pad_rows: int,
  multiply: Callable[[Array, Array, int], Array],
) -> Array:
  parts = [
    multiply(part, filters, pad_rows)
    for part, filters in zip(
      _split_input(x), _split_kernel(kernel), strict=True
    )
  ]
  return _join_output(parts)[:, :, : x.shape[2]]


def _multiply(part: Array, filters: Array, pad_rows: int) -> Array:
  """The convolution of 3x1: `[N, H, T, C]` becomes `[N, h, T, F]`."""
  return lax.conv_general_dilated(
    part,
    filters,
    window_strides=(1, 1),
    padding=((pad_rows, pad_rows), (0, 0)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _multiply_halves(part: Array, filters: Array, pad_rows: int) -> Array:
  """The same with products of bfloat16, as one of matrices.

  XLA's convolutions of bfloat16 are no faster than those of float32 on a CPU;
  its matrix products are.
  """
  taps = _taps_of_halves(pad_rows, part)
  n, h, w, depth = taps.shape
  products = jnp.matmul(
    taps.reshape(-1, depth),
    filters.astype(jnp.bfloat16).reshape(depth, -1),
    preferred_element_type=jnp.float32,
  )
  return products.reshape(n, h, w, -1)


def _taps(pad_rows: int, x: Array) -> Array:
  """What the kernel's rows see: `[N, H, T, C]` becomes `[N, h, T, 3 * C]`."""
  x = jnp.pad(x, ((0, 0), (pad_rows, pad_rows), (0, 0), (0, 0)))
  h = x.shape[1] - 2
  return jnp.concatenate([x[:, i : i + h] for i in range(3)], axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _taps_of_halves(pad_rows: int, x: Array) -> Array:
  """The same of float32 in bfloat16.

  What XLA copies in bfloat16 on a CPU, it takes to float32 and back; integers
  are copied as they are.
  """
  bits = lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
  return lax.bitcast_convert_type(_taps(pad_rows, bits), jnp.bfloat16)


@_taps_of_halves.defjvp
def _taps_of_halves_jvp(
  pad_rows: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
  (x,), (dx,) = primals, tangents
  return _taps_of_halves(pad_rows, x), _taps(pad_rows, dx.astype(jnp.bfloat16))


def input_gradient(dy: Array, kernel: Array) -> Array:
  """The gradient of `convolve` with respect to its input.

  It equals `convolve` of `dy` with the transposed kernel. This form reads the
  kernel as it lies: where channels are many and pixels are few, transposing it
  would take longer than the products do.

  Args:
    dy: `[N, H, W, F]`, the gradient of the result.
    kernel: `[3, 3, C, F]`.

  Returns:
    `[N, H, W, C]`.

  >>> dy, kernel = jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 4, 2))
  >>> dx = input_gradient(dy, kernel)
  >>> [round(value, 3) for value in dx[0, 1, :, 0].tolist()]
  [12.0, 18.0, 12.0]
  """
  n, h, w, f = dy.shape
  c = kernel.shape[2]
  rows = jnp.pad(dy, ((0, 0), (1, 1), (0, 0), (0, 0)))
  parts = []
  for part, filters in zip(
    _split_input(rows), _split_kernel(kernel[::-1, ::-1]), strict=True
  ):
    taps = jnp.concatenate([part[:, i : i + h] for i in range(3)], axis=-1)
    filters = filters.transpose(2, 0, 1, 3).reshape(c, 3 * f)
    products = taps.reshape(-1, 3 * f) @ filters.T
    parts.append(products.reshape(n, h, -1, c))
  return _join_output(parts)[:, :, :w]


def kernel_gradient(x: Array, dy: Array) -> Array:
  """The gradient of `convolve` with respect to its kernel.

  Args:
    x: `[N, H, W, C]`, what was convolved.
    dy: `[N, H, W, F]`, the gradient of the result.

  Returns:
    `[3, 3, C, F]`.

  >>> x, dy = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 4, 4, 5))
  >>> round(float(kernel_gradient(x, dy)[1, 1, 0, 0]), 3)
  16.0
  """
  h, c, f = x.shape[1], x.shape[-1], dy.shape[-1]
  rows = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
  products = []
  for part, d_part in zip(
    _split_input(rows), _split_output_gradient(dy), strict=True
  ):
    taps = [part[:, i : i + h].reshape(-1, c) for i in range(3)]
    d_part = d_part.reshape(-1, f)
    products.append(jnp.stack([tap.T @ d_part for tap in taps]))
  return _join_kernel_gradient(products)


def _count_tiles(width: int) -> int:
  return -(-width // _TILE)


def _split_input(x: Array) -> list[Array]:
  """Multiplies by B^T each six pixels of a row that four outputs see.

  Args:
    x: `[N, H, W, C]`.

  Returns:
    Six arrays `[N, H, ceil(W / 4), C]`.
  """
  n, h, w, c = x.shape
  tiles = _count_tiles(w)
  right = (tiles + 1) * _TILE - w - 1
  x = jnp.pad(x, ((0, 0), (0, 0), (1, right), (0, 0)))
  x = x.reshape(n, h, tiles + 1, _TILE, c)
  d0, d1, d2, d3 = (x[:, :, :tiles, i] for i in range(_TILE))
  d4, d5 = (x[:, :, 1:, i] for i in range(2))
  even, odd = d4 - 4 * d2, d3 - 4 * d1
  even2, odd2 = d4 - d2, 2 * (d3 - d1)
  return [
    4 * d0 - 5 * d2 + d4,
    even + odd,
    even - odd,
    even2 + odd2,
    even2 - odd2,
    4 * d1 - 5 * d3 + d5,
  ]


def _split_kernel(kernel: Array) -> list[Array]:
  """Multiplies the rows of `[3, 3, C, F]` by G: six of `[3, 1, C, F]`."""
  g0, g1, g2 = (kernel[:, i : i + 1] for i in range(3))
  near, far = g0 + g2, g0 + 4 * g2
  return [
    g0 * (1 / 4),
    (near + g1) * (-1 / 6),
    (near - g1) * (-1 / 6),
    (far + 2 * g1) * (1 / 24),
    (far - 2 * g1) * (1 / 24),
    g2,
  ]


def _join_output(parts: list[Array]) -> Array:
  """Multiplies by A^T: six `[N, H, T, F]` become `[N, H, 4 * T, F]`."""
  n, h, tiles, f = parts[0].shape
  m0, m1, m2, m3, m4, m5 = parts
  near, near_odd = m1 + m2, m1 - m2
  far, far_odd = m3 + m4, m3 - m4
  y = [
    m0 + near + far,
    near_odd + 2 * far_odd,
    near + 4 * far,
    near_odd + 8 * far_odd + m5,
  ]
  return jnp.stack(y, axis=3).reshape(n, h, tiles * _TILE, f)


def _split_output_gradient(dy: Array) -> list[Array]:
  """The transpose of `_join_output`: multiplies by A."""
  n, h, w, f = dy.shape
  tiles = _count_tiles(w)
  dy = jnp.pad(dy, ((0, 0), (0, 0), (0, tiles * _TILE - w), (0, 0)))
  dy = dy.reshape(n, h, tiles, _TILE, f)
  y0, y1, y2, y3 = (dy[:, :, :, i] for i in range(_TILE))
  even, odd = y0 + y2, y1 + y3
  even2, odd2 = y0 + 4 * y2, 2 * y1 + 8 * y3
  return [y0, even + odd, even - odd, even2 + odd2, even2 - odd2, y3]


def _join_kernel_gradient(parts: list[Array]) -> Array:
  """The transpose of `_split_kernel`: six `[3, C, F]`, by G^T."""
  p0, p1, p2, p3, p4, p5 = parts
  near, near_odd = (p1 + p2) * (-1 / 6), (p1 - p2) * (-1 / 6)
  far, far_odd = (p3 + p4) * (1 / 24), (p3 - p4) * (1 / 24)
  g = [p0 * (1 / 4) + near + far, near_odd + 2 * far_odd, near + 4 * far + p5]
  return jnp.stack(g, axis=1)
