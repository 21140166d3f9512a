"""RRDBNet, the generator of ESRGAN and Real-ESRGAN.

Images are float `[..., H, W, C]` in [0, 1], RGB. Activations are NHWC.

Two decisions shape this file; `docs/generator.md` has the figures.

*The dense block is source-grouped.* A convolution of a concatenation is a sum
of convolutions, one a source. So as soon as a source is ready, one convolution
applies every weight that any later layer has for it: 64 -> 192 channels for the
block's input where the textbook form runs five convolutions of 32 outputs. The
arithmetic is the same, the concatenations are gone, and the matrix unit sees
wide outputs. Parameters stay stored per convolution, under BasicSR's names.

*The blocks are stacked.* The parameters of all RRDBs share one subtree, `body`,
with a leading axis of length `num_block`: 34 arrays instead of 702. One tree
runs both as a loop (`unroll=1`: compile time does not grow with depth) and
unrolled.
"""

from __future__ import annotations

import fractions
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Dtype = Any

_NEGATIVE_SLOPE = 0.2  # ESRGAN, section 3.1; BasicSR `rrdbnet_arch.py`.
_RESIDUAL_SCALE = 0.2  # Paper: beta = 0.2, in each dense block and each RRDB.

# Kaiming normal (fan in, gain sqrt(2)) times 0.1: "smaller initialization" in
# the paper, `initialize_weights(scale=0.1)` in the authors' code.
_kernel_init = nn.initializers.variance_scaling(
  2.0 * 0.1**2, "fan_in", "normal"
)


def _convolve(x: Array, kernel: Array, out_dtype: Dtype) -> Array:
  """A 3x3 convolution, NHWC and HWIO, zero-padded to the size of `x`."""
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    preferred_element_type=out_dtype,
  )


def _kernel_gradient_by_conv(x: Array, dy: Array) -> Array:
  kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], dy.shape[-1]), x.dtype)
  transpose = jax.linear_transpose(
    lambda kernel: _convolve(x, kernel, x.dtype), kernel
  )
  return transpose(dy)[0]


def _kernel_gradient_by_dot(x: Array, dy: Array) -> Array:
  n, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = [x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
  columns = jnp.concatenate(taps, axis=-1).reshape(n * h * w, 9 * c)
  dy = dy.reshape(n * h * w, -1)
  return (columns.T @ dy).reshape(3, 3, c, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, out_dtype: Dtype) -> Array:
  """`_convolve` with a gradient that is fast on every platform.

  Inside a loop, XLA's CPU compiler (jaxlib 0.10 to 0.12) runs the transposed
  convolution that forms the kernel's gradient as a naive loop, twenty times
  slower than the matrix product that it is: `docs/generator.md`.
  """
  return _convolve(x, kernel, out_dtype)


def _conv_fwd(
  x: Array, kernel: Array, out_dtype: Dtype
) -> tuple[Array, tuple[Array, Array]]:
  return _convolve(x, kernel, out_dtype), (x, kernel)


def _conv_bwd(
  out_dtype: Dtype, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  del out_dtype
  x, kernel = residuals
  dy = dy.astype(x.dtype)
  flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = _convolve(dy, flipped, x.dtype)
  d_kernel = lax.platform_dependent(
    x, dy, cpu=_kernel_gradient_by_dot, default=_kernel_gradient_by_conv
  )
  return dx, d_kernel


_conv.defvjp(_conv_fwd, _conv_bwd)


def _leaky_relu(x: Array) -> Array:
  return jnp.maximum(x, x * jnp.asarray(_NEGATIVE_SLOPE, x.dtype))


def _channels(bias: Array) -> Array:
  return bias.reshape(1, 1, 1, -1)


def _mask(x: Array, valid: Array | None) -> Array:
  return x if valid is None else x * valid


def _nearest(x: Array, factor: int) -> Array:
  """Nearest-neighbour upsampling as a broadcast: no gather, forward or back."""
  n, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, factor, w, factor, c))
  return x.reshape(n, h * factor, w * factor, c)


def pixel_unshuffle(image: Array, *, factor: int) -> Array:
  """Moves each `factor` x `factor` block of pixels into channels.

  Args:
    image: `[..., H, W, C]`, with H and W multiples of `factor`.
    factor: Side of a block in pixels, >= 1.

  Returns:
    `[..., H / factor, W / factor, C * factor**2]`, channels in the order of
    PyTorch's `pixel_unshuffle`: `c * factor**2 + row * factor + column`.

  Raises:
    ValueError: If H or W is not a multiple of `factor`.

  >>> pixel_unshuffle(jnp.arange(8.0).reshape(2, 4, 1), factor=2).tolist()
  [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
  """
  *batch, h, w, c = image.shape
  if h % factor or w % factor:
    raise ValueError(
      f"height {h} and width {w} must be multiples of {factor}: pad the image"
      " (esrgan_jax.Upscaler does this by itself)"
    )
  n = len(batch)
  x = image.reshape(*batch, h // factor, factor, w // factor, factor, c)
  x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
  return x.reshape(*batch, h // factor, w // factor, c * factor**2)


class _Conv(nn.Module):
  """Holds one 3x3 convolution's parameters, cast to the compute dtype."""

  in_ch: int
  out_ch: int
  dtype: Dtype

  @nn.compact
  def __call__(self) -> tuple[Array, Array]:
    shape = (3, 3, self.in_ch, self.out_ch)
    kernel = self.param("kernel", _kernel_init, shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
    return kernel.astype(self.dtype), bias.astype(self.dtype)


def dense_convs(
  x: Array, convs: Sequence[tuple[Array, Array]], valid: Array | None = None
) -> Array:
  """Runs densely connected convolutions, grouped by source.

  Convolution i sees the concatenation of `x` and the leaky-rectified outputs of
  all convolutions before it; the last one's output is returned as it is.

  Args:
    x: `[N, H, W, C]`.
    convs: Kernel `[3, 3, C_i, G_i]` and bias `[G_i]` of each convolution, where
      C_1 = C and C_{i+1} = C_i + G_i.
    valid: `[N, H, W, 1]`, 1 inside the image and 0 outside, or None.

  Returns:
    `[N, H, W, G_last]`.

  Source: the dense block of ESRGAN, figure 4, with `conv(concat(a, b), k)`
  written as `conv(a, k_a) + conv(b, k_b)`.

  >>> x = jnp.ones((1, 4, 4, 2))
  >>> convs = [(jnp.ones((3, 3, 2, 1)), jnp.zeros(1)),
  ...          (jnp.ones((3, 3, 3, 2)), jnp.zeros(2))]
  >>> dense_convs(x, convs).shape
  (1, 4, 4, 2)
  """
  sums: list[Array] = []
  source, start = x, 0
  for i in range(len(convs)):
    stop = start + source.shape[-1]
    later = convs[i:]
    kernel = jnp.concatenate([k[:, :, start:stop] for k, _ in later], axis=-1)
    out = _conv(source, kernel, source.dtype)
    ends = itertools.accumulate((k.shape[-1] for k, _ in later), initial=0)
    parts = [out[..., a:b] for a, b in itertools.pairwise(ends)]
    if sums:
      sums = [s + p for s, p in zip(sums[1:], parts, strict=True)]
    else:
      sums = [p + _channels(b) for p, (_, b) in zip(parts, later, strict=True)]
    source, start = _mask(_leaky_relu(sums[0]), valid), stop
  return sums[0]


class ResidualDenseBlock(nn.Module):
  """Five densely connected 3x3 convolutions and a scaled skip.

  Source: ESRGAN, section 3.1; BasicSR `rrdbnet_arch.py::ResidualDenseBlock`.

  Attributes:
    num_grow_ch: Channels that each of the first four convolutions adds.
    dtype: Compute dtype; parameters are float32.
  """

  num_grow_ch: int = 32
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, valid: Array | None = None) -> Array:
    """Maps `[N, H, W, C]` to the same shape; `valid` is `[N, H, W, 1]`."""
    num_feat = x.shape[-1]
    convs = [
      _Conv(
        num_feat + i * self.num_grow_ch,
        self.num_grow_ch if i < 4 else num_feat,
        self.dtype,
        name=f"conv{i + 1}",
      )()
      for i in range(5)
    ]
    out = _mask(dense_convs(x, convs, valid), valid)
    return x + out * jnp.asarray(_RESIDUAL_SCALE, x.dtype)


class RRDB(nn.Module):
  """Residual in Residual Dense Block: three dense blocks and a scaled skip.

  Source: ESRGAN, section 3.1; BasicSR `rrdbnet_arch.py::RRDB`.

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
    for i in range(3):
      block = ResidualDenseBlock(
        self.num_grow_ch, self.dtype, name=f"rdb{i + 1}"
      )
      out = block(out, valid)
    return x + out * jnp.asarray(_RESIDUAL_SCALE, x.dtype)


class RRDBNet(nn.Module):
  """The RRDB generator of ESRGAN, at scale 1, 2, 3, 4 or 8.

  `apply({"params": params}, lr)` and the tree of `params` are the contract with
  users: float32, plain nested dicts, BasicSR's names, HWIO kernels, and every
  array below `body` stacked over the `num_block` blocks.

  Source: ESRGAN (arXiv:1809.00219), section 3.1; BasicSR `rrdbnet_arch.py`; the
  plain x2 and x8 of the authors' first code, `architecture.py::RRDBNet`.

  Attributes:
    num_in_ch: Channels of the input.
    num_out_ch: Channels of the output.
    num_feat: Channels between the blocks.
    num_block: Number of RRDBs, >= 1.
    num_grow_ch: Channels that each convolution of a dense block adds.
    scale: Output size over input size: 1, 2, 3, 4 or 8.
    unshuffle: Side in pixels of the blocks that are moved into channels in
      front of the network, which then upsamples by `scale * unshuffle`. None
      means BasicSR's choice: 4 at scale 1, 2 at scale 2, else 1. The older
      plain networks of scale 1 and 2 have 1.
    dtype: Compute dtype, e.g. bfloat16. Parameters and the result are float32.
    unroll: Blocks per iteration of the loop over blocks. More can save time a
      step and costs compile time; the parameters are the same.
    remat: Recompute each block in the backward pass instead of storing its
      activations.

  >>> import jax, jax.numpy as jnp
  >>> net = RRDBNet(num_feat=8, num_block=2, num_grow_ch=4, scale=4)
  >>> params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  >>> net.apply({"params": params}, jnp.zeros((6, 5, 3))).shape
  (24, 20, 3)
  >>> params["body"]["rdb1"]["conv1"]["kernel"].shape
  (2, 3, 3, 8, 4)
  """

  num_in_ch: int = 3
  num_out_ch: int = 3
  num_feat: int = 64
  num_block: int = 23
  num_grow_ch: int = 32
  scale: int = 4
  unshuffle: int | None = None
  dtype: Dtype = jnp.float32
  unroll: int = 1
  remat: bool = False

  @property
  def unshuffle_factor(self) -> int:
    """The side of an unshuffled block in pixels; it divides H and W."""
    if self.unshuffle is None:
      return {1: 4, 2: 2}.get(self.scale, 1)
    return self.unshuffle

  @property
  def upsampling(self) -> tuple[int, ...]:
    """The factor of each nearest-neighbour upsampling, e.g. (2, 2).

    Raises:
      ValueError: If no stack of x2 upsamplings, or one x3, reaches the scale.
    """
    total = self.scale * self.unshuffle_factor
    if total == 3:
      return (3,)
    if total < 1 or total & (total - 1):
      raise ValueError(
        f"scale {self.scale} with unshuffle {self.unshuffle_factor} upsamples"
        f" by {total}; RRDBNet can upsample by 3 or a power of two: choose"
        " scale 1, 2, 3, 4 or 8"
      )
    return (2,) * int(math.log2(total))

  @property
  def receptive_radius(self) -> int:
    """How far from a pixel the network looks, in LR pixels, rounded up.

    An output pixel depends on no LR pixel farther than this from the one that
    it lies in: 349 with 23 blocks at scale 4, 94 with 6.

    >>> [RRDBNet(num_block=n).receptive_radius for n in (23, 6)]
    [349, 94]
    """
    # A 3x3 convolution reaches one pixel, at the resolution where it runs.
    reach = 1 + 15 * self.num_block + 1 + self._reconstruct_reach()
    # The far end of an unshuffled block may lie up to a block farther away.
    return math.ceil(reach * self.unshuffle_factor) + self.unshuffle_factor - 1

  @property
  def reconstruct_radius(self) -> int:
    """How far `reconstruct` looks, in pixels of its input, rounded up."""
    return math.ceil(self._reconstruct_reach())

  def _reconstruct_reach(self) -> fractions.Fraction:
    reach, resolution = fractions.Fraction(0), 1
    for factor in self.upsampling:
      resolution *= factor
      reach += fractions.Fraction(1, resolution)
    return reach + fractions.Fraction(2, resolution)

  def setup(self) -> None:
    """Names the layers as BasicSR does."""

    def conv(in_ch: int, out_ch: int) -> _Conv:
      return _Conv(in_ch, out_ch, self.dtype)

    if self.num_block < 1:
      raise ValueError(f"num_block is {self.num_block}; it must be at least 1")
    block = nn.remat(RRDB, prevent_cse=False) if self.remat else RRDB
    in_ch = self.num_in_ch * self.unshuffle_factor**2
    self.conv_first = conv(in_ch, self.num_feat)
    self.body = block(self.num_grow_ch, self.dtype)
    self.conv_body = conv(self.num_feat, self.num_feat)
    for i in range(len(self.upsampling)):
      setattr(self, f"conv_up{i + 1}", conv(self.num_feat, self.num_feat))
    self.conv_hr = conv(self.num_feat, self.num_feat)
    self.conv_last = conv(self.num_feat, self.num_out_ch)

  def __call__(self, lr: Array, valid: Array | None = None) -> Array:
    """Super-resolves images.

    Args:
      lr: `[..., H, W, num_in_ch]` in [0, 1], H and W multiples of
        `unshuffle_factor`.
      valid: `[..., H, W, 1]`, 1 inside the image and 0 outside of it. Each
        convolution then sees zeros outside, as it does beyond the border of
        `lr`: the result inside equals that of the image alone, whatever size
        it was padded to. None means that all of `lr` is image.

    Returns:
      float32 `[..., H * scale, W * scale, num_out_ch]`, not clipped to [0, 1].

    Raises:
      ValueError: If the rank, the channels or the size of `lr` don't fit.
    """
    if valid is not None:
      valid = jnp.broadcast_to(valid, (*lr.shape[:-1], 1))
      valid = pixel_unshuffle(valid, factor=self.unshuffle_factor)
      valid = valid.max(axis=-1, keepdims=True)
    return self.reconstruct(self.features(lr, valid), valid)

  def features(self, lr: Array, valid: Array | None = None) -> Array:
    """Runs the network up to its first upsampling.

    Nearly all of the receptive field is spent here, and little of the memory:
    a tile's halo can be cut off before `reconstruct`.

    Args:
      lr: `[..., H, W, num_in_ch]` in [0, 1], H and W multiples of
        `unshuffle_factor`.
      valid: As for `__call__`, but at the resolution of the result.

    Returns:
      `[..., h, w, num_feat]` of the compute dtype, h = H / unshuffle_factor.

    Raises:
      ValueError: If the rank, the channels or the size of `lr` don't fit.

    >>> import jax, jax.numpy as jnp
    >>> net = RRDBNet(num_feat=8, num_block=1, num_grow_ch=4)
    >>> lr = jnp.zeros((6, 5, 3))
    >>> variables = net.init(jax.random.key(0), lr)
    >>> feat = net.apply(variables, lr, method="features")
    >>> net.apply(variables, feat, method="reconstruct").shape
    (24, 20, 3)
    """
    if lr.ndim < 3 or lr.shape[-1] != self.num_in_ch:
      raise ValueError(
        f"lr has shape {lr.shape}; expected [..., H, W, {self.num_in_ch}]"
      )
    x = lr.astype(self.dtype)
    if self.unshuffle_factor > 1:
      x = pixel_unshuffle(x, factor=self.unshuffle_factor)
    x, valid, batch = self._flatten(x, valid)
    feat = _mask(self._apply_conv("conv_first", _mask(x, valid)), valid)
    body = nn.scan(
      lambda block, x, valid: (block(x, valid), None),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.num_block,
      unroll=min(self.unroll, self.num_block),
    )
    out, _ = body(self.body, feat, valid)
    feat += _mask(self._apply_conv("conv_body", out), valid)
    return feat.reshape(*batch, *feat.shape[1:])

  def reconstruct(self, feat: Array, valid: Array | None = None) -> Array:
    """Runs the network from its first upsampling on.

    Args:
      feat: `[..., h, w, num_feat]`, what `features` returns or a part of it.
      valid: `[..., h, w, 1]`, as for `__call__`.

    Returns:
      float32 `[..., h * u, w * u, num_out_ch]`, u = scale * unshuffle_factor.
    """
    feat, valid, batch = self._flatten(feat.astype(self.dtype), valid)
    for i, factor in enumerate(self.upsampling):
      feat = _nearest(feat, factor)
      if valid is not None:
        valid = _nearest(valid, factor)
      feat = self._apply_conv(f"conv_up{i + 1}", feat)
      feat = _mask(_leaky_relu(feat), valid)
    feat = _mask(_leaky_relu(self._apply_conv("conv_hr", feat)), valid)
    sr = self._apply_conv("conv_last", feat, jnp.float32)
    return sr.reshape(*batch, *sr.shape[1:])

  def _flatten(
    self, x: Array, valid: Array | None
  ) -> tuple[Array, Array | None, list[int]]:
    """Makes one batch axis of all; returns the axes that it stands for."""
    *batch, h, w, c = x.shape
    if valid is not None:
      valid = jnp.broadcast_to(valid, (*batch, h, w, 1)).reshape(-1, h, w, 1)
      valid = valid.astype(self.dtype)
    return x.reshape(-1, h, w, c), valid, batch

  def _apply_conv(
    self, name: str, x: Array, out_dtype: Dtype | None = None
  ) -> Array:
    kernel, bias = getattr(self, name)()
    y = _conv(x, kernel, out_dtype or self.dtype)
    return y + _channels(bias).astype(y.dtype)
