"""SRVGGNetCompact, the small network of Real-ESRGAN's fast models.

Images are float `[..., H, W, C]` in [0, 1], RGB. Activations are NHWC.

The parameters of all layers between the first and the last share one subtree,
`body`, with a leading axis of length `num_conv`; the arithmetic is in
`esrgan_jax.ops.compact`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from esrgan_jax import checks
from esrgan_jax.models.initialization import bilinear_phases
from esrgan_jax.models.layers import bias_init
from esrgan_jax.models.parameters import ConvParams
from esrgan_jax.ops import axes, compact
from esrgan_jax.ops.precision import at_least_float32

Array = jax.Array
Dtype = Any

# Where there are no slopes that are learnt, the one that there is.
LEAKS = {"prelu": 0.0, "relu": 0.0, "leakyrelu": 0.1}
FORMS = ("fast", "plain")


class _Slopes(nn.Module):
  """A PReLU's slopes, one a channel, cast to the compute dtype."""

  num: int
  dtype: Dtype
  stack: tuple[int, ...] = ()

  @nn.compact
  def __call__(self) -> Array:
    init = nn.initializers.constant(0.25)  # PyTorch's.
    shape = (*self.stack, self.num)
    return self.param("slope", init, shape, jnp.float32).astype(self.dtype)


class _Body(nn.Module):
  """The layers between the first and the last."""

  num_conv: int
  num_feat: int
  has_slopes: bool
  dtype: Dtype

  def setup(self) -> None:
    feat, stack = self.num_feat, (self.num_conv,)
    self.conv = _conv_params(feat, feat, self.dtype, stack)
    if self.has_slopes:
      self.act = _Slopes(feat, self.dtype, stack)

  def __call__(self) -> compact.Layer:
    return *self.conv(), self.act() if self.has_slopes else None


class SRVGGNetCompact(nn.Module):
  """The compact generator of Real-ESRGAN: layers, a shuffle of pixels, a skip.

  `apply({"params": params}, lr)` and the tree of `params` are the contract with
  users: float32, plain nested dicts, HWIO kernels, and every array below `body`
  stacked over the `num_conv` layers.

  Source: Real-ESRGAN `archs/srvgg_arch.py`; what `shuffle` above `scale` is,
  the `.param` files of its `realesr-animevideov3-x2` and `-x3` for ncnn.

  Attributes:
    num_in_ch: Channels of the input.
    num_out_ch: Channels of the output; as many, for the input is added.
    num_feat: Channels between the layers.
    num_conv: Layers between the first and the last, >= 1.
    scale: Output size over input size, >= 1.
    act_type: What follows all convolutions but the last: `"prelu"`, with a
      slope a channel, `"relu"`, or `"leakyrelu"` of slope 0.1.
    shuffle: Side of the block that a pixel becomes; above `scale`, the result
      is interpolated cubically from that size, as the x2 and x3 models of
      animevideov3 do, whose network is that of x4. None means `scale`.
    dtype: Compute dtype, e.g. bfloat16. Parameters, the skip and the result are
      float32; float64 where it is computed in that.
    unroll: Layers per iteration of the loop over layers; the parameters are the
      same.
    remat: Recompute each layer in the backward pass instead of storing its
      activations.
    form: How it computes; the parameters are the same. `"fast"` chooses by
      platform and size, for reverse-mode differentiation. `"plain"` is JAX's
      own convolution, for derivatives in forward mode, float64 and symbolic
      sizes.

  Raises:
    ValueError: If a size is below 1, `num_out_ch` is not `num_in_ch`, `shuffle`
      is below `scale`, a choice is unknown, or `dtype` is no floating-point
      type.

  >>> import jax, jax.numpy as jnp
  >>> net = SRVGGNetCompact(num_feat=4, num_conv=2)
  >>> lr = jnp.zeros((1, 8, 8, 3))
  >>> variables = jax.jit(net.init)(jax.random.key(0), lr)
  >>> net.apply(variables, lr).shape
  (1, 32, 32, 3)
  >>> variables["params"]["body"]["conv"]["kernel"].shape
  (2, 3, 3, 4, 4)
  """

  num_in_ch: int = 3
  num_out_ch: int = 3
  num_feat: int = 64
  num_conv: int = 16
  scale: int = 4
  act_type: str = "prelu"
  shuffle: int | None = None
  dtype: Dtype = jnp.float32
  unroll: int = 1
  remat: bool = False
  form: str = "fast"

  def __post_init__(self) -> None:
    """Raises ValueError if a field is unfit, before anything is computed."""
    super().__post_init__()
    sizes = ("num_in_ch", "num_out_ch", "num_feat", "num_conv")
    checks.check_sizes(self, *sizes, "scale", "unroll")
    for name, choices in (("act_type", LEAKS), ("form", FORMS)):
      if (value := getattr(self, name)) not in choices:
        raise ValueError(
          f"{name} is {value!r}; choose one of {', '.join(choices)}"
        )
    if self.num_out_ch != self.num_in_ch:
      raise ValueError(
        f"num_in_ch is {self.num_in_ch} and num_out_ch {self.num_out_ch}, but"
        " the image is added to the result: choose equal numbers"
      )
    if self.shuffle is not None:
      checks.check_sizes(self, "shuffle")
      if self.shuffle < self.scale:
        raise ValueError(
          f"shuffle is {self.shuffle}, less than scale {self.scale}: the result"
          " may be made smaller, not larger; leave shuffle out"
        )
    checks.check_compute_dtype(self.dtype)
    checks.check_flags(remat=self.remat)

  @property
  def shuffle_factor(self) -> int:
    """Side of the block that a pixel becomes, before anything is resized."""
    return self.scale if self.shuffle is None else self.shuffle

  @property
  def mask_gap(self) -> int:
    """Pixels between two images under one mask: no kernel is wider than 3."""
    return 1

  @property
  def receptive_radius(self) -> int:
    """How far from a pixel the network looks, in LR pixels.

    >>> SRVGGNetCompact(num_conv=16).receptive_radius
    18
    >>> SRVGGNetCompact(num_conv=16, scale=2, shuffle=4).receptive_radius
    19
    """
    return 1 + self.num_conv + self.reconstruct_radius

  @property
  def reconstruct_radius(self) -> int:
    """How far `reconstruct` looks, in pixels of its input."""
    # Besides its convolution, cubic interpolation sees the next block.
    return 1 + (self.shuffle_factor > self.scale)

  @property
  def _is_plain(self) -> bool:
    # What is fast sums in float32, and on some platforms in no other dtype.
    return self.form == "plain" or jnp.dtype(self.dtype) == jnp.float64

  def without_loops(self) -> SRVGGNetCompact:
    """Returns the same network, its layers one after another in the program.

    >>> SRVGGNetCompact(num_conv=6).without_loops().unroll
    6
    """
    return self.clone(unroll=self.num_conv)

  def setup(self) -> None:
    """Names the layers as the other networks' are."""
    feat, dtype = self.num_feat, self.dtype
    has_slopes = self.act_type == "prelu"
    self.conv_first = _conv_params(self.num_in_ch, feat, dtype)
    if has_slopes:
      self.act_first = _Slopes(feat, dtype)
    self.body = _Body(self.num_conv, feat, has_slopes, dtype)
    outputs = self.num_out_ch * self.shuffle_factor**2
    self.conv_last = _conv_params(feat, outputs, dtype)

  def __call__(self, lr: Array, valid: Array | None = None) -> Array:
    """Super-resolves images.

    Args:
      lr: `[..., H, W, num_in_ch]` in [0, 1].
      valid: `[..., H, W, 1]`, 1 inside the image and 0 outside of it. Each
        convolution then sees zeros outside, as it does beyond the border of
        `lr`: the result inside equals that of the image alone, whatever size
        it was padded to. None means that all of `lr` is image.

    Returns:
      float32 `[..., H * scale, W * scale, num_out_ch]`, not clipped to [0, 1].

    Raises:
      TypeError: If `lr` is no float array.
      ValueError: If the rank or the channels of `lr` don't fit.
    """
    lr = checks.check_images(lr, "lr", channels=self.num_in_ch)
    return self._reconstruct(self._features(lr, valid), lr, valid)

  def features(self, lr: Array, valid: Array | None = None) -> Array:
    """Runs all but the last convolution.

    Args:
      lr: `[..., H, W, num_in_ch]` in [0, 1].
      valid: As for `__call__`.

    Returns:
      float32 `[..., H, W, num_feat + num_in_ch]`: the image, which is added to
      the result, comes last.

    Raises:
      TypeError: As for `__call__`.
      ValueError: As for `__call__`.

    >>> import jax, jax.numpy as jnp
    >>> net = SRVGGNetCompact(num_feat=4, num_conv=1)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> variables = jax.jit(net.init)(jax.random.key(0), lr)
    >>> feat = net.apply(variables, lr, method="features")
    >>> net.apply(variables, feat, method="reconstruct").shape
    (1, 32, 32, 3)
    """
    lr = checks.check_images(lr, "lr", channels=self.num_in_ch)
    dtype = at_least_float32(self.dtype)
    feat = self._features(lr, valid).astype(dtype)
    return jnp.concatenate([feat, lr.astype(dtype)], axis=-1)

  def reconstruct(self, feat: Array, valid: Array | None = None) -> Array:
    """Runs the last convolution, and all that is behind it.

    Args:
      feat: `[..., h, w, num_feat + num_in_ch]`, what `features` returns or a
        part of it.
      valid: `[..., h, w, 1]`, as for `__call__`.

    Returns:
      float32 `[..., h * scale, w * scale, num_out_ch]`.

    Raises:
      TypeError: If `feat` is no float array.
      ValueError: If its shape doesn't fit.
    """
    feat = checks.check_floats(feat, "feat")
    channels = self.num_feat + self.num_in_ch
    if feat.ndim < 3 or feat.shape[-1] != channels:
      raise ValueError(
        f"feat must be [..., h, w, {channels}], as of `features`, got"
        f" {feat.shape}"
      )
    deep, image = feat[..., : self.num_feat], feat[..., self.num_feat :]
    return self._reconstruct(deep.astype(self.dtype), image, valid)

  def _features(self, lr: Array, valid: Array | None) -> Array:
    run = functools.partial(
      compact.features,
      leak=LEAKS[self.act_type],
      unroll=min(self.unroll, self.num_conv),
      remat=self.remat,
      is_plain=self._is_plain,
    )
    slopes = self.act_first() if self.act_type == "prelu" else None
    first = *self.conv_first(), slopes
    return axes.anywhere(run, lr.astype(self.dtype), valid, first, self.body())

  def _reconstruct(
    self, feat: Array, image: Array, valid: Array | None
  ) -> Array:
    run = functools.partial(
      compact.reconstruct,
      shuffle=self.shuffle_factor,
      scale=self.scale,
      is_plain=self._is_plain,
    )
    image = image.astype(at_least_float32(self.dtype))
    return axes.anywhere(run, feat, image, valid, self.conv_last())


def start_bilinear(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an SRVGGNetCompact's parameters with a path that upscales linearly.

  A published start is near the image with its pixels repeated. Here one channel
  a colour carries the image past all layers, none of which makes anything of a
  positive number, and the last convolution adds what bilinear upscaling has
  over repeated pixels. All other weights stay.

  Args:
    params: Parameters as of `SRVGGNetCompact.init`, for 3 channels, and 3 or
      more features.

  Returns:
    Parameters of the same shapes.

  Raises:
    ValueError: If the network is none of this kind.

  Source: none published; as `start_bilinear` of RRDBNet.

  >>> from esrgan_jax.ops.pixels import enlarge_linearly
  >>> net = SRVGGNetCompact(num_feat=4, num_conv=2)
  >>> lr = jnp.linspace(0.2, 0.8, 3 * 64).reshape(1, 8, 8, 3)
  >>> params = jax.jit(net.init)(jax.random.key(0), lr)["params"]
  >>> sr = net.apply({"params": start_bilinear(params)}, lr)
  >>> bool(abs(sr - enlarge_linearly(lr, 4))[:, 8:-8, 8:-8].mean() < 0.1)
  True
  """
  first, last = (params[n]["kernel"] for n in ("conv_first", "conv_last"))
  if first.shape[2] != 3 or first.shape[3] < 3:
    raise ValueError(
      "a bilinear start needs 3 channels and 3 features or more, got"
      f" {first.shape[2]} and {first.shape[3]}; choose initialization=published"
    )
  shuffle = math.isqrt(last.shape[3] // 3)
  same = jnp.eye(3, dtype=jnp.float32)
  point = jnp.zeros((3, 3, 1, 1), jnp.float32).at[1, 1].set(1.0)
  carry = point * same.reshape(1, 1, 3, 3)
  change = bilinear_phases(shuffle) - point[..., 0]
  change = jnp.einsum("yxp,io->yxiop", change, same)
  conv = params["body"]["conv"]
  body = jnp.zeros((*conv["kernel"].shape[:-1], 3), jnp.float32)
  filled = dict(params)
  filled["conv_first"] = {
    "kernel": first.at[..., :3].set(carry),
    "bias": params["conv_first"]["bias"].at[:3].set(0.0),
  }
  filled["body"] = {
    **params["body"],
    "conv": {
      "kernel": conv["kernel"]
      .at[..., :3]
      .set(body.at[..., :3, :].set(carry[None])),
      "bias": conv["bias"].at[..., :3].set(0.0),
    },
  }
  filled["conv_last"] = {
    **params["conv_last"],
    "kernel": last.at[:, :, :3].set(change.reshape(3, 3, 3, -1)),
  }
  return filled


def _conv_params(
  in_ch: int, out_ch: int, dtype: Dtype, stack: tuple[int, ...] = ()
) -> ConvParams:
  # PyTorch's default initialisation, which Real-ESRGAN leaves in place.
  kernel_init = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform", batch_axis=tuple(range(len(stack)))
  )
  return ConvParams(
    in_ch,
    out_ch,
    kernel_init,
    bias_init(math.prod((3, 3, in_ch))),
    dtype,
    stack=stack,
  )
