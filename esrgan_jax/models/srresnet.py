"""SRResNet, the generator of SRGAN, and BasicSR's MSRResNet.

Images are float `[..., H, W, C]` in [0, 1], RGB. Activations are NHWC.

The parameters of all residual blocks share one subtree, `body`, with a leading
axis of length `num_block`, as RRDBNet's do.
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
from esrgan_jax.models.initialization import bilinear_phases
from esrgan_jax.models.parameters import ConvParams
from esrgan_jax.ops import axes
from esrgan_jax.ops.convolution import conv, convolve
from esrgan_jax.ops.pixels import (
  enlarge_linearly,
  pixel_shuffle,
  repeat_pixels,
)
from esrgan_jax.ops.precision import at_least_float32

Array = jax.Array
Dtype = Any

VARIANTS = ("srgan", "msrresnet")
NORMS = ("batch", "none")
SLOPES = ("one", "channel")
OUTPUTS = ("linear", "tanh")
FORMS = ("fast", "plain")

_MSRRESNET_SLOPE = 0.1  # BasicSR `srresnet_arch.py`; no slope within a block.


class _Slope(nn.Module):
  """PReLU: where it is negative, `x` times a slope that is learnt."""

  num: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = nn.initializers.constant(0.25)  # PyTorch's.
    slope = self.param("slope", init, (self.num,), jnp.float32)
    slope = slope.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.where(x > 0, x, slope * x)


class _Block(nn.Module):
  """Two convolutions and a skip around them."""

  num_feat: int
  num_slopes: int  # 0 for ReLU.
  has_norm: bool
  dtype: Dtype
  is_plain: bool

  def setup(self) -> None:
    make = functools.partial(
      _conv_params, self.num_feat, self.num_feat, self.dtype, self.has_norm
    )
    self.conv1 = make(has_bias=not self.has_norm)
    self.conv2 = make(has_bias=not self.has_norm)
    if self.has_norm:
      self.bn1, self.bn2 = _batch_norm(self.dtype), _batch_norm(self.dtype)
    if self.num_slopes:
      self.act = _Slope(self.num_slopes)

  def __call__(self, x: Array, valid: Array | None, train: bool) -> Array:
    y = _convolve(x, self.conv1(), self.is_plain)
    if self.has_norm:
      y = _normalize(self.bn1, y, valid, train)
    y = _mask(self.act(y) if self.num_slopes else nn.relu(y), valid)
    y = _convolve(y, self.conv2(), self.is_plain)
    if self.has_norm:
      y = _normalize(self.bn2, y, valid, train)
    return x + _mask(y, valid)


class SRResNet(nn.Module):
  """The residual generator of SRGAN, at scale 2, 3, 4 or 8.

  `apply({"params": params, "batch_stats": batch_stats}, lr)` and the two trees
  are the contract with users: float32, plain nested dicts, HWIO kernels, and
  every array below `body` stacked over the `num_block` blocks.

  With BatchNorm it has running statistics, which `train=False` uses, and a
  training has to keep (`mutable=["batch_stats"]`). The running variance
  averages the biased variance of a batch, PyTorch's the unbiased one: a factor
  of (n - 1) / n with n = B * H * W, 1 - 1e-4 for 16 images of 24 pixels.

  Source: SRGAN (arXiv:1609.04802), figure 4; BasicSR `srresnet_arch.py` for
  `MSRResNet`.

  Attributes:
    num_in_ch: Channels of the input.
    num_out_ch: Channels of the output.
    num_feat: Channels between the blocks.
    num_block: Number of residual blocks, >= 1.
    scale: Output size over input size: 2, 3, 4 or 8.
    variant: `"srgan"`, the paper's: 9x9 convolutions at both ends, PReLU, a
      skip around all blocks. `"msrresnet"`, BasicSR's: 3x3 convolutions, ReLU
      within blocks and leaky ReLU outside of them, no skip around the blocks,
      and the result is added to the bilinearly enlarged image.
    norm: `"batch"`, as published, or `"none"`; None means the variant's own:
      `"msrresnet"` has no BatchNorm, and can't have it.
    slopes: Of each PReLU: `"one"`, PyTorch's default, or one a `"channel"`.
    output: `"linear"`, or `"tanh"`, (tanh + 1) / 2 of it, as trainings with
      HR images in [-1, 1] have it.
    centered: Whether it is given 2 * lr - 1, as trainings with LR images in
      [-1, 1] have it: beyond the border is grey then, not black. Only with
      `"tanh"`.
    dtype: Compute dtype, e.g. bfloat16. Parameters, BatchNorm and the result
      are float32; float64 where it is computed in that.
    unroll: Blocks per iteration of the loop over blocks; the parameters are the
      same.
    remat: Recompute each block in the backward pass instead of storing its
      activations.
    form: How it computes; the parameters are the same. `"fast"` chooses by
      platform and size, for reverse-mode differentiation. `"plain"` is JAX's
      own convolution, for derivatives in forward mode, float64 and symbolic
      sizes.

  Raises:
    ValueError: If the scale is none of these, a size is below 1, a choice is
      unknown or the variant does not have it, or `dtype` is no floating-point
      type.

  >>> import jax, jax.numpy as jnp
  >>> net = SRResNet(num_feat=4, num_block=2)
  >>> lr = jnp.zeros((1, 8, 8, 3))
  >>> variables = jax.jit(net.init)(jax.random.key(0), lr)
  >>> net.apply(variables, lr).shape
  (1, 32, 32, 3)
  >>> variables["params"]["body"]["conv1"]["kernel"].shape
  (2, 3, 3, 4, 4)
  >>> variables["batch_stats"]["body"]["bn1"]["mean"].shape
  (2, 4)
  """

  num_in_ch: int = 3
  num_out_ch: int = 3
  num_feat: int = 64
  num_block: int = 16
  scale: int = 4
  variant: str = "srgan"
  norm: str | None = None
  slopes: str = "one"
  output: str = "linear"
  centered: bool = False
  dtype: Dtype = jnp.float32
  unroll: int = 1
  remat: bool = False
  form: str = "fast"

  def __post_init__(self) -> None:
    """Raises ValueError if a field is unfit, before anything is computed."""
    super().__post_init__()
    sizes = ("num_in_ch", "num_out_ch", "num_feat", "num_block")
    checks.check_sizes(self, *sizes, "scale", "unroll")
    for name, choices in (
      ("variant", VARIANTS),
      ("norm", (None, *NORMS)),
      ("slopes", SLOPES),
      ("output", OUTPUTS),
      ("form", FORMS),
    ):
      if (value := getattr(self, name)) not in choices:
        raise ValueError(
          f"{name} is {value!r}; choose one of"
          f" {', '.join(filter(None, choices))}"
        )
    if self.variant == "msrresnet":
      if self.norm == "batch":
        raise ValueError(
          "norm is 'batch', but variant 'msrresnet' has no BatchNorm: choose"
          " norm 'none', or variant 'srgan'"
        )
      if self.output != "linear":
        raise ValueError(
          f"output is {self.output!r}, but variant 'msrresnet' adds its result"
          " to the enlarged image: choose output 'linear', or variant 'srgan'"
        )
      if (self.num_in_ch, self.num_out_ch) != (self.num_out_ch,) * 2:
        raise ValueError(
          f"num_in_ch is {self.num_in_ch} and num_out_ch {self.num_out_ch}, but"
          " variant 'msrresnet' adds its result to the enlarged image: choose"
          " equal numbers, or variant 'srgan'"
        )
    checks.check_compute_dtype(self.dtype)
    checks.check_flags(remat=self.remat, centered=self.centered)
    if self.centered and self.output != "tanh":
      raise ValueError(
        f"centered is for images in [-1, 1], and output {self.output!r} is not:"
        " choose output 'tanh'"
      )
    _ = self.upsampling

  @property
  def has_norm(self) -> bool:
    """Whether it has BatchNorm, and with it running statistics."""
    if self.norm is None:
      return self.variant == "srgan"
    return self.norm == "batch"

  @property
  def takes_train(self) -> bool:
    """Whether it has a mode to be trained in: with BatchNorm."""
    return self.has_norm

  @property
  def upsampling(self) -> tuple[int, ...]:
    """The factor of each pixel shuffle, e.g. (2, 2).

    Raises:
      ValueError: If no stack of x2 shuffles, or one x3, reaches the scale.
    """
    if self.scale == 3:
      return (3,)
    if self.scale not in (2, 4, 8):
      raise ValueError(
        f"scale is {self.scale}; SRResNet shuffles pixels by 3 or a power of"
        " two: choose scale 2, 3, 4 or 8"
      )
    return (2,) * int(math.log2(self.scale))

  @property
  def mask_gap(self) -> int:
    """Pixels between two images under one mask: half a kernel's width."""
    return self._side // 2

  @property
  def _side(self) -> int:
    """Of the kernels at both ends."""
    return 9 if self._is_srgan else 3

  @property
  def _is_srgan(self) -> bool:
    return self.variant == "srgan"

  @property
  def _is_plain(self) -> bool:
    # What is fast sums in float32, and on some platforms in no other dtype.
    return self.form == "plain" or jnp.dtype(self.dtype) == jnp.float64

  def without_loops(self) -> SRResNet:
    """Returns the same network, its blocks one after another in the program.

    >>> SRResNet(num_block=6).without_loops().unroll
    6
    """
    return self.clone(unroll=self.num_block)

  @property
  def receptive_radius(self) -> int:
    """How far from a pixel the network looks, in LR pixels, rounded up.

    >>> [SRResNet(variant=v).receptive_radius for v in VARIANTS]
    [40, 35]
    """
    reach = self._side // 2 + 2 * self.num_block
    if self._is_srgan:
      reach += 1  # `conv_body`.
    return math.ceil(reach + self._reconstruct_reach())

  @property
  def reconstruct_radius(self) -> int:
    """How far `reconstruct` looks, in pixels of its input, rounded up."""
    return math.ceil(self._reconstruct_reach())

  def _reconstruct_reach(self) -> fractions.Fraction:
    # A convolution comes before the shuffle that enlarges its result.
    reach, resolution = fractions.Fraction(0), 1
    for factor in self.upsampling:
      reach += fractions.Fraction(1, resolution)
      resolution *= factor
    # One of 9x9, or two of 3x3.
    return reach + fractions.Fraction(4 if self._is_srgan else 2, resolution)

  def setup(self) -> None:
    """Names the layers as RRDBNet's are, where it has them."""
    feat, has_norm = self.num_feat, self.has_norm
    side = self._side
    num_slopes = 0
    if self._is_srgan:
      num_slopes = feat if self.slopes == "channel" else 1

    def make(in_ch: int, out_ch: int, **options: Any) -> ConvParams:
      return _conv_params(in_ch, out_ch, self.dtype, has_norm, **options)

    self.conv_first = make(self.num_in_ch, feat, side=side)
    self.body = _Block(feat, num_slopes, has_norm, self.dtype, self._is_plain)
    if num_slopes:
      self.act_first = _Slope(num_slopes)
      self.conv_body = make(feat, feat, has_bias=not has_norm)
      if has_norm:
        self.bn_body = _batch_norm(self.dtype)
    for i, factor in enumerate(self.upsampling, 1):
      setattr(self, f"conv_up{i}", make(feat, feat * factor**2))
      if num_slopes:
        setattr(self, f"act_up{i}", _Slope(num_slopes))
    if not num_slopes:
      self.conv_hr = make(feat, feat)
    self.conv_last = make(feat, self.num_out_ch, side=side)

  def __call__(
    self, lr: Array, valid: Array | None = None, *, train: bool = False
  ) -> Array:
    """Super-resolves images.

    Args:
      lr: `[..., H, W, num_in_ch]` in [0, 1].
      valid: `[..., H, W, 1]`, 1 inside the image and 0 outside of it. Each
        convolution then sees zeros outside, as it does beyond the border of
        `lr`: the result inside equals that of the image alone, whatever size
        it was padded to. None means that all of `lr` is image.
      train: Normalise with this batch's statistics, and update the running
        ones where `batch_stats` is mutable; otherwise use the running ones.

    Returns:
      float32 `[..., H * scale, W * scale, num_out_ch]`, not clipped to [0, 1].

    Raises:
      TypeError: If `lr` is no float array, or `train` no bool.
      ValueError: If the rank or the channels of `lr` don't fit, or the
        parameters are those of a network with more layers.
    """
    checks.check_flags(train=train)
    lr = checks.check_images(lr, "lr", channels=self.num_in_ch)
    if valid is not None:
      valid = jnp.broadcast_to(valid, (*lr.shape[:-1], 1))
    return self.reconstruct(self._features(lr, valid, train), valid)

  def features(self, lr: Array, valid: Array | None = None) -> Array:
    """Runs the network up to its first upsampling, with running statistics.

    Args:
      lr: `[..., H, W, num_in_ch]` in [0, 1].
      valid: As for `__call__`.

    Returns:
      `[..., H, W, num_feat]` of the compute dtype. Of the variant
      `"msrresnet"`, whose result is added to the image, `[..., H, W, num_feat +
      num_in_ch]` of float32: the image comes last.

    Raises:
      TypeError: As for `__call__`.
      ValueError: As for `__call__`.

    >>> import jax, jax.numpy as jnp
    >>> net = SRResNet(num_feat=4, num_block=1)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> variables = jax.jit(net.init)(jax.random.key(0), lr)
    >>> feat = net.apply(variables, lr, method="features")
    >>> net.apply(variables, feat, method="reconstruct").shape
    (1, 32, 32, 3)
    """
    lr = checks.check_images(lr, "lr", channels=self.num_in_ch)
    return self._features(lr, valid, False)

  def _features(self, lr: Array, valid: Array | None, train: bool) -> Array:
    self._check_layers()
    x = 2 * lr - 1 if self.centered else lr
    x = _mask(x.astype(self.dtype), valid)
    x = _convolve(x, self.conv_first(), self._is_plain)
    first = self.act_first(x) if self._is_srgan else _leaky_relu(x)
    first = _mask(first, valid)

    def run(block: _Block, x: Array) -> Array:
      return block(x, valid, train)

    if self.remat:
      run = nn.remat(run, prevent_cse=False)
    loop = nn.scan(
      lambda block, x, _: (run(block, x), None),
      variable_axes={"params": 0, "batch_stats": 0},
      split_rngs={"params": True},
      length=self.num_block,
      unroll=min(self.unroll, self.num_block),
    )
    deep, _ = loop(self.body, first, None)
    if not self._is_srgan:
      dtype = at_least_float32(self.dtype)
      return jnp.concatenate([deep.astype(dtype), lr.astype(dtype)], axis=-1)
    deep = _convolve(deep, self.conv_body(), self._is_plain)
    if self.has_norm:
      deep = _normalize(self.bn_body, deep, valid, train)
    return first + _mask(deep, valid)

  def reconstruct(self, feat: Array, valid: Array | None = None) -> Array:
    """Runs the network from its first upsampling on.

    Args:
      feat: `[..., h, w, C]`, what `features` returns or a part of it.
      valid: `[..., h, w, 1]`, as for `__call__`.

    Returns:
      float32 `[..., h * scale, w * scale, num_out_ch]`.

    Raises:
      TypeError: If `feat` is no float array.
      ValueError: If its shape doesn't fit, or as for `__call__`.
    """
    feat = checks.check_floats(feat, "feat")
    channels = self.num_feat + (0 if self._is_srgan else self.num_in_ch)
    if feat.ndim < 3 or feat.shape[-1] != channels:
      raise ValueError(
        f"feat must be [..., h, w, {channels}], as of `features`, got"
        f" {feat.shape}"
      )
    self._check_layers()
    image, inside = feat[..., self.num_feat :], valid
    x = feat[..., : self.num_feat].astype(self.dtype)
    for i, factor in enumerate(self.upsampling, 1):
      up = getattr(self, f"conv_up{i}")
      x = axes.anywhere(
        functools.partial(pixel_shuffle, factor=factor),
        _convolve(x, up(), self._is_plain),
      )
      x = getattr(self, f"act_up{i}")(x) if self._is_srgan else _leaky_relu(x)
      if valid is not None:
        valid = axes.anywhere(
          functools.partial(repeat_pixels, factor=factor), valid
        )
      x = _mask(x, valid)
    if not self._is_srgan:
      x = _leaky_relu(_convolve(x, self.conv_hr(), self._is_plain))
      x = _mask(x, valid)
    dtype = at_least_float32(self.dtype)
    sr = _convolve(x, self.conv_last(), self._is_plain, dtype)
    if not self._is_srgan:
      base = functools.partial(enlarge_linearly, factor=self.scale)
      image = image.astype(dtype)
      return sr + axes.anywhere(
        lambda image, inside: base(image, valid=inside), image, inside
      )
    return (jnp.tanh(sr) + 1) / 2 if self.output == "tanh" else sr

  def _check_layers(self) -> None:
    """Raises if upsamplings of a larger network would be left out."""
    known = [f"conv_up{i + 1}" for i in range(len(self.upsampling))]
    given = self.variables.get("params", {})
    ignored = sorted({n for n in given if n.startswith("conv_up")} - {*known})
    if ignored:
      raise ValueError(
        f"params have {', '.join(ignored)}, which a network of scale"
        f" {self.scale} has not: they are of one that upsamples more; choose"
        " its scale"
      )


def _conv_params(
  in_ch: int,
  out_ch: int,
  dtype: Dtype,
  has_norm: bool,
  *,
  side: int = 3,
  has_bias: bool = True,
) -> ConvParams:
  # Kaiming normal; a tenth of it without BatchNorm, or each block would double
  # the variance: BasicSR's `default_init_weights`.
  gain = 2.0 if has_norm else 2.0 * 0.1**2
  init = nn.initializers.variance_scaling(gain, "fan_in", "normal")
  bias_init = nn.initializers.zeros if has_bias else None
  return ConvParams(in_ch, out_ch, init, bias_init, dtype, side)


def _batch_norm(dtype: Dtype) -> nn.BatchNorm:
  return nn.BatchNorm(
    momentum=0.9,  # PyTorch's momentum of 0.1.
    epsilon=1e-5,
    # The mean of squares less the square of the mean loses digits.
    use_fast_variance=False,
    dtype=at_least_float32(dtype),
  )


def _normalize(
  norm: nn.BatchNorm, x: Array, valid: Array | None, train: bool
) -> Array:
  mask = None if valid is None else valid.astype(bool)
  # Flax's would promote by itself, which programs may have forbidden.
  y = norm(x.astype(norm.dtype), use_running_average=not train, mask=mask)
  return y.astype(x.dtype)


def _convolve(
  x: Array,
  params: tuple[Array, Array | None],
  is_plain: bool,
  dtype: Dtype = None,
) -> Array:
  """A convolution that pads zeros, and a bias."""

  def run(x, params):
    kernel, bias = params
    flat, pad = x.reshape(-1, *x.shape[-3:]), kernel.shape[0] // 2
    if is_plain:
      y = convolve(flat, kernel, pad=pad, out_dtype=dtype)
    else:
      y = conv(flat, kernel, 1, pad, dtype)
    if bias is not None:
      y += bias.astype(y.dtype).reshape(1, 1, 1, -1)
    return y.reshape(*x.shape[:-1], y.shape[-1])

  return axes.anywhere(run, x, params)


def _leaky_relu(x: Array) -> Array:
  return jnp.where(x > 0, x, _MSRRESNET_SLOPE * x)


def _mask(x: Array, valid: Array | None) -> Array:
  if valid is None:
    return x
  return x * jnp.broadcast_to(valid, (*x.shape[:-1], 1)).astype(x.dtype)


def start_bilinear(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an SRResNet's parameters with a path that upscales linearly.

  The paper's variant begins with noise and learns to copy first. Here one
  channel a colour carries the image past the blocks, whose last BatchNorm
  begins at zero, and each shuffle enlarges it bilinearly. The variant
  `"msrresnet"` begins so by itself, and is returned as it is.

  Args:
    params: Parameters as of `SRResNet.init`, for 3 channels and BatchNorm, and
      3 or more features.

  Returns:
    Parameters of the same shapes.

  Raises:
    ValueError: If the network is none of this kind.

  Source: none published; the idea is that of ICNR (arXiv:1707.02937), to begin
  as a plain interpolation, and of zero-gamma (arXiv:1706.02677).

  >>> import jax
  >>> net = SRResNet(num_feat=4, num_block=2)
  >>> lr = jnp.linspace(0.2, 0.8, 3 * 64).reshape(1, 8, 8, 3)
  >>> variables = jax.jit(net.init)(jax.random.key(0), lr)
  >>> begun = {**variables, "params": start_bilinear(variables["params"])}
  >>> sr = net.apply(begun, lr)[:, 8:-8, 8:-8]
  >>> bool(abs(sr - enlarge_linearly(lr, 4)[:, 8:-8, 8:-8]).max() < 1e-5)
  True
  """
  if "conv_hr" in params:
    return dict(params)
  first = params.get("conv_first", {}).get("kernel")
  last = params.get("conv_last", {}).get("kernel")
  if first is None or last is None or "bn_body" not in params:
    raise ValueError(
      "a bilinear start needs an SRResNet with BatchNorm; choose"
      " initialization=published"
    )
  if (first.shape[2], last.shape[3]) != (3, 3) or first.shape[3] < 3:
    raise ValueError(
      "a bilinear start needs 3 channels in and out and 3 features or more,"
      f" got {first.shape[2]}, {last.shape[3]} and {first.shape[3]}; choose"
      " initialization=published"
    )
  filled = dict(params)
  point = jnp.zeros(first.shape[:2], jnp.float32)
  point = point.at[first.shape[0] // 2, first.shape[1] // 2].set(1.0)
  same = jnp.eye(3, dtype=jnp.float32)
  carry = point[..., None, None] * same.reshape(1, 1, 3, 3)
  filled["conv_first"] = {
    **params["conv_first"],
    "kernel": first.at[..., :3].set(carry),
  }
  filled["conv_last"] = {
    **params["conv_last"],
    "kernel": jnp.zeros_like(last).at[:, :, :3].set(carry),
  }
  filled["bn_body"] = _with_zero_scale(params["bn_body"])
  bn2 = _with_zero_scale(params["body"]["bn2"])
  filled["body"] = {**params["body"], "bn2": bn2}
  for name in [name for name in params if name.startswith("conv_up")]:
    kernel = params[name]["kernel"]
    factor = math.isqrt(kernel.shape[3] // kernel.shape[2])
    # What one pixel adds to the pixels around it, a phase of the shuffle each.
    weights = bilinear_phases(factor)
    block = jnp.einsum("yxp,io->yxiop", weights, same)
    block = block.reshape(3, 3, 3, 3 * factor**2)
    kernel = kernel.at[..., : 3 * factor**2].set(0.0)
    kernel = kernel.at[:, :, :3, : 3 * factor**2].set(block)
    filled[name] = {**params[name], "kernel": kernel}
  return filled


def _with_zero_scale(norm: Mapping[str, Array]) -> dict[str, Array]:
  return {**norm, "scale": jnp.zeros_like(norm["scale"])}
