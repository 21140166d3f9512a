"""SRVGGNetCompact's arithmetic, of parameters that are gathered.

All of it happens at the resolution of the image: even the nearest-neighbour
skip is added before pixels are shuffled, to the channels that a pixel becomes.
On a TPU, neighbouring pixels share a position (`esrgan_jax.ops.packing`): with
64 channels, they fill its lanes; and few images are strips of rows
(`esrgan_jax.ops.rows`).

Arrays are NHWC and HWIO; `valid` is 1 inside of an image and 0 outside, or
None.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from esrgan_jax.ops import packing, rows
from esrgan_jax.ops.convolution import add_bias, conv, convolve, sum_pixels
from esrgan_jax.ops.dense_block import channels, mask
from esrgan_jax.ops.masks import one_batch
from esrgan_jax.ops.pixels import pixel_shuffle, reduce_cubically
from esrgan_jax.ops.platforms import by_platform

Array = jax.Array

# Kernel, bias and, of a PReLU behind, slopes; stacked for the body.
Layer = tuple[Array, Array, Array | None]
Conv = tuple[Array, Array]

# Of all images together: of fewer, strips are faster without pairs.
_MIN_PIXELS_IN_PAIRS = 2**14


def features(
  x: Array,
  valid: Array | None,
  first: Layer,
  body: Layer,
  *,
  leak: float,
  unroll: int,
  remat: bool,
  is_plain: bool,
) -> Array:
  """All but the last convolution; see `SRVGGNetCompact.features`.

  Args:
    x: `[..., H, W, C]` of the compute dtype.
    valid: `[..., H, W, 1]`, or None.
    first: The first layer.
    body: The layers behind, stacked.
    leak: The slope where there are no slopes of a PReLU.
    unroll: Layers per iteration of the loop.
    remat: Recompute each layer in the backward pass.
    is_plain: Use JAX's own convolution, on all platforms.

  Returns:
    `[..., H, W, F]`, 0 outside.
  """
  x, valid, batch = one_batch(x, valid)
  x = mask(x, valid)
  height = x.shape[1]

  def run(x, valid, first, body, *, packed=False, strips=rows.WHOLE):
    convolve_ = convolve if is_plain else conv
    if strips.num > 1:
      valid = rows.split_mask(valid, x, strips)
      x = rows.split(x, strips)
      convolve_ = functools.partial(rows.convolve, strips=strips)
    if packed:
      x, valid, first, body = _packed(x, valid, first, body)
    feat = _layers(
      x,
      valid,
      first,
      body,
      leak=leak,
      unroll=unroll,
      remat=remat,
      convolve=convolve_,
      is_plain=is_plain,
    )
    feat = packing.unpack(feat) if packed else feat
    return rows.join(feat, strips, height) if strips.num > 1 else feat

  run = run if is_plain else _choose(run, x)
  feat = run(x, valid, first, body)
  return feat.reshape(*batch, *feat.shape[1:])


def reconstruct(
  feat: Array,
  image: Array,
  valid: Array | None,
  last: Conv,
  *,
  shuffle: int,
  scale: int,
  is_plain: bool,
) -> Array:
  """The last convolution and the skip; see `SRVGGNetCompact.reconstruct`.

  Args:
    feat: `[..., H, W, F]` of the compute dtype, 0 outside.
    image: `[..., H, W, C]`, float32 or more: what is added.
    valid: `[..., H, W, 1]`, or None.
    last: Kernel and bias of the last convolution.
    shuffle: Side of the block that a pixel becomes.
    scale: Side of what becomes of that.
    is_plain: As of `features`.

  Returns:
    `[..., H * scale, W * scale, C]` of the dtype of `image`.
  """
  image, valid, batch = one_batch(image, valid)
  feat, _, _ = one_batch(feat, None)
  run = functools.partial(_last, is_plain=is_plain, dtype=image.dtype)
  # Of strips, pairs take longer here.
  run = run if is_plain else _choose(run, feat, pairs_of_strips=False)
  sr = run(feat, last)
  # Channels of a colour lie together.
  sr += jnp.repeat(image, shuffle**2, axis=-1)
  sr = pixel_shuffle(sr, shuffle)
  sr = reduce_cubically(sr, block=shuffle, size=scale, valid=valid)
  return sr.reshape(*batch, *sr.shape[1:])


def _choose(
  run: Callable[..., Array], x: Array, *, pairs_of_strips: bool = True
) -> Callable[..., Array]:
  # On a TPU, what a v5e's compiler estimates least for; docs/tpu.md.
  strips = rows.strips_here(x.shape)
  if strips.num > 1:
    large = math.prod(x.shape[:3]) >= _MIN_PIXELS_IN_PAIRS
    packed = pairs_of_strips and large and packing.can_pack(x)
  else:
    # Of a batch, as of a training, pairs take 0.6 to 0.9 of the cycles; of a
    # single image, which is split otherwise, 1.6 times.
    packed = x.shape[0] != 1 and packing.can_pack(x)
  if not packed and strips.num == 1:
    return run
  on_tpu = functools.partial(run, packed=packed, strips=strips)
  return functools.partial(by_platform, default=run, tpu=on_tpu)


def _packed(
  x: Array, valid: Array | None, first: Layer, body: Layer
) -> tuple[Array, Array | None, Layer, Layer]:
  """The same for pairs of pixels."""
  valid = packing.pack_mask(valid, first[0].shape[-1])

  def pack(kernel: Array, bias: Array, slopes: Array | None) -> Layer:
    if slopes is not None:
      slopes = packing.pack_channels(slopes)
    return packing.pack_kernel(kernel), packing.pack_channels(bias), slopes

  # Once for all layers, not in each turn of the loop.
  return packing.pack(x), valid, pack(*first), jax.vmap(pack)(*body)


def _layers(
  x: Array,
  valid: Array | None,
  first: Layer,
  body: Layer,
  *,
  leak: float,
  unroll: int,
  remat: bool,
  convolve: Callable[[Array, Array], Array],
  is_plain: bool,
) -> Array:
  def layer(x: Array, params: Layer) -> Array:
    kernel, bias, slopes = params
    y = convolve(x, kernel)
    y = y + channels(bias) if is_plain else add_bias(y, bias)
    return mask(_activate(y, slopes, leak, is_plain=is_plain), valid)

  def step(x: Array, params: Layer) -> tuple[Array, None]:
    return layer(x, params), None

  if remat:
    step = jax.checkpoint(step, prevent_cse=False)
  return lax.scan(step, layer(x, first), body, unroll=unroll)[0]


def _activate(
  x: Array, slopes: Array | None, leak: float, *, is_plain: bool
) -> Array:
  if slopes is not None:
    return (_prelu if is_plain else prelu)(x, slopes)
  return jnp.where(x > 0, x, leak * x) if leak else jax.nn.relu(x)


def _prelu(x: Array, slopes: Array) -> Array:
  return jnp.where(x > 0, x, channels(slopes) * x)


@jax.custom_vjp
def prelu(x: Array, slopes: Array) -> Array:
  """The rectifier whose slopes below zero are learnt, with a fast gradient.

  Args:
    x: `[N, H, W, C]`.
    slopes: `[C]`.

  Returns:
    As `x`.

  Source: He et al. (arXiv:1502.01852), equation 1.

  >>> prelu(jnp.array([[[[-2.0, 3.0]]]]), jnp.array([0.5, 0.5])).tolist()
  [[[[-1.0, 3.0]]]]
  """
  return _prelu(x, slopes)


def _prelu_fwd(x: Array, slopes: Array) -> tuple[Array, tuple[Array, Array]]:
  return _prelu(x, slopes), (x, slopes)


def _prelu_bwd(
  residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, slopes = residuals
  d_x = jnp.where(x > 0, dy, channels(slopes) * dy)
  return d_x, sum_pixels(jnp.where(x > 0, 0, x * dy))


prelu.defvjp(_prelu_fwd, _prelu_bwd)


def _last(
  feat: Array,
  last: Conv,
  *,
  is_plain: bool,
  dtype: Any,
  packed: bool = False,
  strips: rows.Strips = rows.WHOLE,
) -> Array:
  kernel, bias = last
  height = feat.shape[1]
  if packed:
    feat, kernel = packing.pack(feat), packing.pack_kernel(kernel)
    bias = packing.pack_channels(bias)
  if is_plain:
    sr = convolve(feat, kernel, out_dtype=dtype)
  elif strips.num > 1:
    feat = rows.split(feat, strips)
    sr = rows.convolve(feat, kernel, strips, out_dtype=dtype)
  else:
    sr = conv(feat, kernel, 1, 1, dtype)
  bias = bias.astype(dtype)
  sr = sr + channels(bias) if is_plain else add_bias(sr, bias)
  sr = packing.unpack(sr) if packed else sr
  return rows.join(sr, strips, height) if strips.num > 1 else sr
