"""RRDBNet's arithmetic in its fast forms, of parameters that are gathered.

`esrgan_jax.models.reference` is the same as the papers draw it. Arrays are
NHWC and HWIO; `valid` is 1 inside of an image and 0 outside, or None.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esrgan_jax.ops import packing, rows
from esrgan_jax.ops.convolution import add_bias, conv, conv_doubling
from esrgan_jax.ops.dense_block import (
  Convs,
  add_fifth,
  dense_block,
  group_convs,
  leaky_relu,
  mask,
)
from esrgan_jax.ops.layout import keep_last_axis_minor
from esrgan_jax.ops.masks import one_batch
from esrgan_jax.ops.pixels import pixel_unshuffle, repeat_pixels
from esrgan_jax.ops.platforms import by_platform
from esrgan_jax.ops.strips import count_rows, upsample_last

Array = jax.Array

# Row r of a transposed convolution's kernel from the rows of one that is slid
# over the image doubled by repetition: output row 2j sees row j through rows 1
# and 2, and row j - 1 through row 0; row 2j + 1 likewise.
_DOUBLED = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])


def _double_kernel(kernel: Array) -> Array:
  """The kernel `[4, 4, F, C]` of nearest upsampling by 2 and a convolution.

  An output pixel's nine taps fall on four pixels of the image: weights that
  fall on the same one are added first, less than half of the arithmetic is
  left, and the repeated image is never made.

  Args:
    kernel: `[3, 3, C, F]`, that of the convolution.
  """
  rows = jnp.asarray(_DOUBLED, jnp.float32)
  kernel = kernel.astype(jnp.float32)
  return jnp.einsum("ar,bs,rsio->aboi", rows, rows, kernel)


def run_blocks(
  x: Array,
  blocks: Sequence[Convs],
  valid: Array | None = None,
  *,
  unroll: int = 1,
  remat: bool = False,
) -> Array:
  """Runs stacked RRDBs one after another.

  Args:
    x: `[N, H, W, F]`.
    blocks: Of each of the dense blocks that make up an RRDB, the convolutions:
      kernels `[L, 3, 3, C_i, G_i]` and biases `[L, G_i]` of L RRDBs.
    valid: `[N, H, W, 1]`, 1 inside the image and 0 outside, or None.
    unroll: RRDBs per iteration of the loop.
    remat: Recompute each RRDB in the backward pass.

  Returns:
    `[N, H, W, F]`.

  >>> convs = [(jnp.ones((4, 3, 3, 2 + i, g)), jnp.zeros((4, g)))
  ...          for i, g in enumerate((1, 1, 2))]
  >>> run_blocks(jnp.ones((1, 4, 4, 2)), [convs] * 3).shape
  (1, 4, 4, 2)
  """
  scan = functools.partial(_scan_blocks, unroll=unroll, remat=remat)
  # On a TPU, regrouping in each iteration costs a fifth of the forward pass. On
  # a CPU, the regrouped copy of all weights costs a tenth, on small images.
  strips = rows.strips_here(x.shape)
  return by_platform(
    x,
    list(blocks),
    valid,
    tpu=functools.partial(scan, regroup_first=True, strips=strips),
    default=functools.partial(scan, regroup_first=False),
  )


def _scan_blocks(
  x: Array,
  blocks: list[Convs],
  valid: Array | None,
  *,
  unroll: int,
  remat: bool,
  regroup_first: bool,
  strips: rows.Strips = rows.WHOLE,
) -> Array:
  def rrdb(x, block):
    out = x
    for convs in block:
      convs = convs if regroup_first else group_convs(convs)
      out = dense_block(out, convs, valid, strips)
    return add_fifth(x, out), None

  if remat:
    rrdb = jax.checkpoint(rrdb, prevent_cse=False)
  if regroup_first:
    blocks = [
      jax.tree.map(keep_last_axis_minor, group_convs(convs)) for convs in blocks
    ]
  if strips.num == 1:
    return lax.scan(rrdb, x, blocks, unroll=unroll)[0]
  valid = rows.split_mask(valid, x, strips)
  out = lax.scan(rrdb, rows.split(x, strips), blocks, unroll=unroll)[0]
  return rows.join(out, strips, x.shape[1])


def features(
  x: Array,
  valid: Array | None,
  conv_first: tuple[Array, Array],
  blocks: Sequence[Convs],
  conv_body: tuple[Array, Array],
  *,
  unshuffle: int,
  unroll: int,
  remat: bool,
) -> Array:
  """The network up to its first upsampling; see `RRDBNet.features`."""
  if unshuffle > 1:
    x = pixel_unshuffle(x, factor=unshuffle)
  x, valid, batch = one_batch(x, valid)
  kernel, bias = conv_first
  feat = mask(add_bias(conv(mask(x, valid), kernel), bias), valid)
  out = run_blocks(feat, blocks, valid, unroll=unroll, remat=remat)
  kernel, bias = conv_body
  feat += mask(add_bias(conv(out, kernel), bias), valid)
  return feat.reshape(*batch, *feat.shape[1:])


def reconstruct(
  feat: Array,
  valid: Array | None,
  *convs: Any,
  factors: tuple[int, ...],
) -> Array:
  """The network from there on, on any platform; see `RRDBNet.reconstruct`."""
  feat, valid, batch = one_batch(feat, valid)
  sr = _upsample(factors, feat, valid, *convs)
  return sr.reshape(*batch, *sr.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _upsample(
  factors: tuple[int, ...], feat: Array, valid: Array | None, *convs: Any
) -> Array:
  """`upsample` in the form that is fastest where nothing is differentiated.

  A loop over strips would add the gradient of each to one of the whole image.
  """
  return _choose_upsample(factors, strips=True)(feat, valid, *convs)


def _upsample_fwd(
  factors: tuple[int, ...], feat: Array, valid: Array | None, *convs: Any
) -> tuple[Array, Any]:
  return jax.vjp(_choose_upsample(factors), feat, valid, *convs)


def _upsample_bwd(factors: tuple[int, ...], vjp: Any, d_sr: Array) -> Any:
  del factors
  return vjp(d_sr)


_upsample.defvjp(_upsample_fwd, _upsample_bwd)


def _choose_upsample(
  factors: tuple[int, ...], *, strips: bool = False
) -> Callable[..., Array]:
  run = functools.partial(upsample, factors=factors)
  if not factors:
    return run
  choices = {}
  if strips:
    choices["cpu"] = functools.partial(run, strips=True)
  if factors[-1:] == (2,):
    choices["tpu"] = functools.partial(run, packed=True)
  return functools.partial(by_platform, default=run, **choices)


def upsample(
  feat: Array,
  valid: Array | None,
  ups: Convs,
  conv_hr: tuple[Array, Array],
  conv_last: tuple[Array, Array],
  *,
  factors: tuple[int, ...],
  packed: bool = False,
  strips: bool = False,
) -> Array:
  """Upsampling and the last two convolutions.

  What happens at the resolution of the result, with the largest activations of
  the network, happens in pairs of pixels with `packed`, for TPUs, and in strips
  of a large image with `strips`, for CPUs.
  """
  for i, (factor, (kernel, bias)) in enumerate(zip(factors, ups, strict=True)):
    is_last = i + 1 == len(factors)
    packs = packed and is_last
    if factor == 2:
      kernel = _double_kernel(kernel).astype(feat.dtype)
    height = count_rows(feat.shape) if strips and is_last else None
    if height is not None:
      return upsample_last(
        feat,
        valid,
        (kernel, bias),
        conv_hr,
        conv_last,
        factor=factor,
        rows=height,
      )
    if factor == 2:
      double = packing.conv_doubling if packs else conv_doubling
      feat = double(feat, kernel)
    else:
      feat = conv(repeat_pixels(feat, factor), kernel)
    if valid is not None:
      valid = repeat_pixels(valid, factor)
    if packs:
      bias = packing.pack_channels(bias)
      valid = packing.pack_mask(valid, feat.shape[-1] // 2)
    feat = mask(leaky_relu(add_bias(feat, bias)), valid)
  convolve = packing.convolve if packed else conv
  pair = packing.pack_channels if packed else lambda bias: bias
  kernel, bias = conv_hr
  feat = add_bias(convolve(feat, kernel), pair(bias))
  feat = mask(leaky_relu(feat), valid)
  kernel, bias = conv_last
  sr = convolve(feat, kernel, out_dtype=jnp.float32)
  sr = add_bias(sr, pair(bias).astype(jnp.float32))
  return packing.unpack(sr) if packed else sr
