"""RRDBNet, the generator of ESRGAN and Real-ESRGAN.

Images are float `[..., H, W, C]` in [0, 1], RGB. Activations are NHWC.

The parameters of all RRDBs share one subtree, `body`, with a leading axis of
length `num_block`: 34 arrays instead of 702. One tree runs both as a loop
(`unroll=1`: compile time does not grow with depth) and unrolled. They are
stored per convolution, under BasicSR's names; the arithmetic is in
`esrgan_jax.ops.rrdb`. `docs/generator.md` has the figures.
"""

from __future__ import annotations

import fractions
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from esrgan_jax import checks
from esrgan_jax.models import reference
from esrgan_jax.models.parameters import ConvParams
from esrgan_jax.ops import axes, rrdb
from esrgan_jax.ops.dense_block import Convs
from esrgan_jax.ops.pixels import pixel_unshuffle

Array = jax.Array
Dtype = Any

FORMS = ("fast", "plain")


def conv_params(
  in_ch: int,
  out_ch: int,
  dtype: Dtype,
  stack: tuple[int, ...] = (),
  name: str | None = None,
) -> ConvParams:
  """Returns a 3x3 convolution's parameters, which begin small: a module.

  Args:
    in_ch: Channels of the image.
    out_ch: Channels of the result.
    dtype: Compute dtype.
    stack: Leading axes, of convolutions that are stacked.
    name: Of the module, where it is made in a compact method.

  >>> conv_params(4, 8, jnp.bfloat16).init_with_output(jax.random.key(0))[0][1]
  Array([0, 0, 0, 0, 0, 0, 0, 0], dtype=bfloat16)
  """
  # Kaiming normal (fan in, gain sqrt(2)) times 0.1: "smaller initialization" in
  # the paper, `initialize_weights(scale=0.1)` in the authors' code.
  init = nn.initializers.variance_scaling(
    2.0 * 0.1**2, "fan_in", "normal", batch_axis=tuple(range(len(stack)))
  )
  return ConvParams(in_ch, out_ch, init, dtype=dtype, stack=stack, name=name)


class _StackedDenseBlocks(nn.Module):
  """The parameters of `num_block` dense blocks."""

  num_block: int
  num_feat: int
  num_grow_ch: int
  dtype: Dtype

  @nn.compact
  def __call__(self) -> Convs:
    return [
      conv_params(
        self.num_feat + i * self.num_grow_ch,
        self.num_grow_ch if i < 4 else self.num_feat,
        self.dtype,
        (self.num_block,),
        name=f"conv{i + 1}",
      )()
      for i in range(5)
    ]


class _StackedRRDBs(nn.Module):
  """The parameters of `num_block` RRDBs."""

  num_block: int
  num_feat: int
  num_grow_ch: int
  dtype: Dtype

  def setup(self) -> None:
    fields = (self.num_block, self.num_feat, self.num_grow_ch, self.dtype)
    self.rdb1 = _StackedDenseBlocks(*fields)
    self.rdb2 = _StackedDenseBlocks(*fields)
    self.rdb3 = _StackedDenseBlocks(*fields)

  def __call__(self) -> list[Convs]:
    return [self.rdb1(), self.rdb2(), self.rdb3()]


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
    dtype: Compute dtype, e.g. bfloat16. Parameters are drawn in float32, and
      the result is float32; float64 where it is computed in that (with
      `JAX_ENABLE_X64`), which the plain form does, whatever `form` says.
    unroll: Blocks per iteration of the loop over blocks. More can save time a
      step and costs compile time; the parameters are the same.
    remat: Recompute each block in the backward pass instead of storing its
      activations.
    form: How it computes; the parameters are the same. `"fast"` groups, packs
      and chooses by platform, for reverse-mode differentiation of images of
      known size in 16 or 32 bits. `"plain"` is `models/reference.py`, for
      derivatives in forward mode, float64, symbolic sizes, and interpreters
      of its jaxpr.

  Raises:
    ValueError: If no stack of upsamplings reaches `scale`, a size is below 1,
      `form` is unknown, or `dtype` is no floating-point type.

  >>> import jax, jax.numpy as jnp
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, scale=4)
  >>> lr = jnp.zeros((1, 8, 8, 3))
  >>> params = net.init(jax.random.key(0), lr)["params"]
  >>> net.apply({"params": params}, lr).shape
  (1, 32, 32, 3)
  >>> params["body"]["rdb1"]["conv1"]["kernel"].shape
  (1, 3, 3, 4, 2)
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
  form: str = "fast"

  def __post_init__(self) -> None:
    """Raises ValueError if a field is unfit, before anything is computed."""
    super().__post_init__()
    sizes = ("num_in_ch", "num_out_ch", "num_feat", "num_block", "num_grow_ch")
    checks.check_sizes(self, *sizes, "scale", "unroll")
    if self.unshuffle is not None:
      checks.check_sizes(self, "unshuffle")
    if self.form not in FORMS:
      raise ValueError(
        f"form is {self.form!r}; choose one of {', '.join(FORMS)}"
      )
    checks.check_compute_dtype(self.dtype)
    checks.check_flags(remat=self.remat)
    _ = self.upsampling

  @property
  def _is_plain(self) -> bool:
    # What is fast sums in float32, and on some platforms in no other dtype.
    return self.form == "plain" or jnp.dtype(self.dtype) == jnp.float64

  @property
  def unshuffle_factor(self) -> int:
    """The side of an unshuffled block in pixels; it divides H and W."""
    if self.unshuffle is None:
      return {1: 4, 2: 2}.get(self.scale, 1)
    return self.unshuffle

  @property
  def size_multiple(self) -> int:
    """What H and W must be multiples of."""
    return self.unshuffle_factor

  @property
  def mask_gap(self) -> int:
    """Pixels between two images under one mask: no kernel is wider than 3."""
    return self.unshuffle_factor

  def without_loops(self) -> RRDBNet:
    """Returns the same network, its blocks one after another in the program.

    >>> RRDBNet(num_block=6).without_loops().unroll
    6
    """
    return self.clone(unroll=self.num_block)

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

    def conv(in_ch: int, out_ch: int) -> ConvParams:
      return conv_params(in_ch, out_ch, self.dtype)

    in_ch = self.num_in_ch * self.unshuffle_factor**2
    self.conv_first = conv(in_ch, self.num_feat)
    self.body = _StackedRRDBs(
      self.num_block, self.num_feat, self.num_grow_ch, self.dtype
    )
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
      TypeError: If `lr` is no float array.
      ValueError: If the rank, the channels or the size of `lr` don't fit, or
        the parameters are those of a network with more layers.
    """
    lr = checks.check_images(lr, "lr", channels=self.num_in_ch)
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
      TypeError: As for `__call__`.
      ValueError: As for `__call__`.

    >>> import jax, jax.numpy as jnp
    >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> variables = net.init(jax.random.key(0), lr)
    >>> feat = net.apply(variables, lr, method="features")
    >>> net.apply(variables, feat, method="reconstruct").shape
    (1, 32, 32, 3)
    """
    lr = checks.check_images(lr, "lr", channels=self.num_in_ch)
    self._check_layers()
    x = lr.astype(self.dtype)
    if self._is_plain:
      params = self._tree("conv_first", "body", "conv_body")
      run = functools.partial(
        reference.features,
        unshuffle=self.unshuffle_factor,
        unroll=min(self.unroll, self.num_block),
        remat=self.remat,
      )
      return axes.anywhere(lambda x, v, p: run(p, x, v), x, valid, params)
    run = functools.partial(
      rrdb.features,
      unshuffle=self.unshuffle_factor,
      unroll=min(self.unroll, self.num_block),
      remat=self.remat,
    )
    return axes.anywhere(
      run, x, valid, self.conv_first(), self.body(), self.conv_body()
    )

  def reconstruct(self, feat: Array, valid: Array | None = None) -> Array:
    """Runs the network from its first upsampling on.

    Args:
      feat: `[..., h, w, num_feat]`, what `features` returns or a part of it.
      valid: `[..., h, w, 1]`, as for `__call__`.

    Returns:
      float32 `[..., h * u, w * u, num_out_ch]`, u = scale * unshuffle_factor.

    Raises:
      TypeError: If `feat` is no float array.
      ValueError: If its shape doesn't fit, or as for `__call__`.
    """
    feat = checks.check_floats(feat, "feat")
    if feat.ndim < 3 or feat.shape[-1] != self.num_feat:
      raise ValueError(
        f"feat must be [..., h, w, {self.num_feat}], as of `features`, got"
        f" {feat.shape}"
      )
    self._check_layers()
    factors = self.upsampling
    names = [f"conv_up{i + 1}" for i in range(len(factors))]
    feat = feat.astype(self.dtype)
    if self._is_plain:
      params = self._tree(*names, "conv_hr", "conv_last")
      run = functools.partial(reference.reconstruct, factors=factors)
      return axes.anywhere(lambda x, v, p: run(p, x, v), feat, valid, params)
    ups = [getattr(self, name)() for name in names]
    run = functools.partial(rrdb.reconstruct, factors=factors)
    return axes.anywhere(
      run, feat, valid, ups, self.conv_hr(), self.conv_last()
    )

  def _check_layers(self) -> None:
    """Raises if upsamplings of a larger network would be left out."""
    known = [f"conv_up{i + 1}" for i in range(len(self.upsampling))]
    given = self.variables.get("params", {})
    ignored = sorted({n for n in given if n.startswith("conv_up")} - {*known})
    if ignored:
      raise ValueError(
        f"params have {', '.join(ignored)}, which a network of scale"
        f" {self.scale} and unshuffle {self.unshuffle_factor} has not: they are"
        " of one that upsamples more; choose its scale"
      )

  def _tree(self, *names: str) -> Mapping[str, Any]:
    """The parameters, as they are."""
    for name in names:
      getattr(self, name)()  # Draws them, or checks their shapes.
    return self.variables["params"]
