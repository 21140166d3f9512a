"""VGG-style discriminators: images to one logit each."""

import math
import numbers
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrgan_jax import checks
from esrgan_jax.models.layers import (
  NORMS,
  Conv,
  add_bias,
  bias_init,
  convolve,
  convolve_strided,
  kernel_init,
  normalize,
)
from esrgan_jax.models.parameters import ConvParams
from esrgan_jax.ops import axes, packing
from esrgan_jax.ops.convolution import conv
from esrgan_jax.ops.platforms import by_platform


class VGGStyleDiscriminator(nn.Module):
  """The discriminator of ESRGAN: strided convolutions, BatchNorm, two layers.

  Stages of a 3x3 and a strided 4x4 convolution halve the image until 3x3 or
  4x4 positions are left: 5 stages for 96 and 128, 6 for 192 and 256. Widths
  are `num_feat` times 1, 2, 4, 8, 8, ... Names are BasicSR's (`conv0_0`,
  `bn0_1`, ..., `linear1`, `linear2`).

  BatchNorm statistics are global under `jit` on a batch sharded over devices
  (synchronised BatchNorm), unlike BasicSR's, which are per GPU; so they are
  with an `axis_name`, which the steps set. The running
  variance averages the biased batch variance, PyTorch's the unbiased one: a
  factor of (n - 1) / n with n = B * H * W, below 0.4 % for a batch of 16, and
  felt only with `train=False`, which GAN training never uses.

  Attributes:
    num_feat: Channels of the first stage.
    input_size: Height and width of the images, HR pixels: 3 or 4 times a power
      of two, at least 6.
    norm: `"batch"`, as published; `"layer"`, over channels and positions of
      each image, `"instance"`, over positions of each channel, or `"none"` for
      critics whose gradient is penalised: WGAN-GP (arXiv:1704.00028, section
      4) needs images that don't see each other.
    dtype: Compute dtype; parameters, batch statistics and logits are float32.
    axis_name: Axis or axes that the batch is mapped over, by `jax.pmap`,
      `jax.shard_map` or `jax.vmap`: with `train=True`, BatchNorm's statistics
      are those of all images along it.

  Source: BasicSR `archs/discriminator_arch.py::VGGStyleDiscriminator` (128 and
  256); the authors' `Discriminator_VGG_96` and `Discriminator_VGG_192`.

  >>> import jax
  >>> discriminator = VGGStyleDiscriminator(num_feat=4, input_size=8)
  >>> image = jnp.zeros((2, 8, 8, 3))
  >>> variables = discriminator.init(jax.random.key(0), image, train=False)
  >>> sorted(variables["batch_stats"])
  ['bn0_1']
  >>> discriminator.apply(variables, image, train=False).shape
  (2,)
  """

  num_feat: int = 64
  input_size: int = 128
  norm: str = "batch"
  dtype: Any = jnp.float32
  axis_name: axes.AxisName = None

  def __post_init__(self) -> None:
    """Raises ValueError if a field is unfit, before anything is computed."""
    super().__post_init__()
    _num_stages(self.input_size)
    if self.norm not in NORMS:
      raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}")
    checks.check_sizes(self, "num_feat")
    checks.check_compute_dtype(self.dtype)

  @nn.compact
  def __call__(self, image: Array, *, train: bool) -> Array:
    """Returns one logit per image, before any sigmoid.

    Args:
      image: Images, float `[B, input_size, input_size, 3]` in [0, 1].
      train: Normalise with this batch's statistics, and update the running
        ones where `batch_stats` is mutable; otherwise use the running ones.

    Returns:
      Logits, float32 `[B]` (BasicSR's are `[B, 1]`).

    Raises:
      TypeError: If `image` is no float array, or `train` no bool.
      ValueError: If it has another shape, or nothing is mapped over
        `axis_name`.
    """
    checks.check_flags(train=train)
    if train and not self.is_initializing():
      axes.check_bound(self.axis_name)
    num_stages = _num_stages(self.input_size)
    image = checks.check_images(
      image, batch=True, size=(self.input_size, self.input_size)
    )
    features = image.astype(self.dtype)
    for stage in range(num_stages):
      width = self.num_feat * min(2**stage, 8)
      first, second = (
        ConvParams(
          in_ch,
          width,
          kernel_init,
          bias_init(side**2 * in_ch)
          if stage == step == 0 or self.norm == "none"
          else None,
          self.dtype,
          side,
          name=f"conv{stage}_{step}",
        )()
        for step, (side, in_ch) in enumerate(
          ((3, features.shape[-1]), (4, width))
        )
      )
      if stage == 0:
        features = axes.anywhere(_run_first_stage, features, first, second)
      else:
        features = axes.anywhere(convolve, features, first)
        features = self._normalize(features, f"{stage}_0", train)
        features = nn.leaky_relu(features, 0.2)
        features = axes.anywhere(convolve_strided, features, second)
      features = self._normalize(features, f"{stage}_1", train)
      features = nn.leaky_relu(features, 0.2)
    features = axes.anywhere(
      lambda x: x.reshape(x.shape[0], -1), features, kept=1
    )
    features = nn.Dense(
      100,
      dtype=self.dtype,
      kernel_init=kernel_init,
      bias_init=bias_init(features.shape[-1]),
      name="linear1",
    )(features)
    features = nn.leaky_relu(features, 0.2)
    logits = nn.Dense(
      1,
      dtype=jnp.float32,
      kernel_init=kernel_init,
      bias_init=bias_init(100),
      name="linear2",
    )(features)
    return logits[:, 0]

  def _normalize(self, features: Array, position: str, train: bool) -> Array:
    return normalize(
      features,
      self.norm,
      position,
      train=train,
      dtype=self.dtype,
      axis_name=self.axis_name,
    )


def _run_first_stage(image: Array, first: Conv, second: Conv) -> Array:
  """The two convolutions at the image's own resolution, and below."""
  if not packing.can_pack(image):
    return _run_stage(image, first, second)
  return by_platform(
    image,
    first,
    second,
    tpu=_run_stage_packed,
    default=_run_stage,
  )


def _run_stage(image: Array, first: Conv, second: Conv) -> Array:
  features = nn.leaky_relu(add_bias(conv(image, first[0]), first[1]), 0.2)
  return add_bias(conv(features, second[0], 2), second[1])


def _run_stage_packed(image: Array, first: Conv, second: Conv) -> Array:
  """The same for a TPU's 128 lanes."""
  kernel, bias = first
  features = packing.convolve(packing.pack(image), kernel)
  features = add_bias(features, packing.pack_channels(bias))
  features = nn.leaky_relu(features, 0.2)
  kernel, bias = second
  features = packing.convolve(features, kernel, stride=2, packs=False)
  return add_bias(features, bias)


def linear1_from_torch(weight: np.ndarray, *, channels: int) -> np.ndarray:
  """Returns the kernel of `linear1` from PyTorch's weight of it.

  PyTorch flattens channels first, this module flattens channels last.

  Args:
    weight: PyTorch's weight, `[out, channels * side * side]`.
    channels: Channels of the last convolution: 8 * `num_feat` from 4 stages.

  Returns:
    Kernel, `[side * side * channels, out]`.

  Raises:
    ValueError: If the inputs are not a square map of `channels`.

  >>> linear1_from_torch(np.arange(8.0).reshape(1, 8), channels=2)[:, 0]
  array([0., 4., 1., 5., 2., 6., 3., 7.])
  """
  weight = np.asarray(weight)
  out, inputs = weight.shape
  side = math.isqrt(inputs // channels)
  if channels * side * side != inputs:
    raise ValueError(
      f"{inputs} inputs are not a square map of {channels} channels: pass the "
      "channels of the last convolution"
    )
  kernel = weight.reshape(out, channels, side, side)
  return kernel.transpose(2, 3, 1, 0).reshape(inputs, out)


def linear1_to_torch(kernel: np.ndarray, *, channels: int) -> np.ndarray:
  """Returns PyTorch's weight of `linear1` from the kernel of this module.

  Args:
    kernel: Kernel, `[side * side * channels, out]`.
    channels: Channels of the last convolution: 8 * `num_feat` from 4 stages.

  Returns:
    Weight, `[out, channels * side * side]`; undoes `linear1_from_torch`.

  Raises:
    ValueError: If the inputs are not a square map of `channels`.

  >>> kernel = np.arange(8.0).reshape(8, 1)
  >>> linear1_to_torch(kernel, channels=2)[0]
  array([0., 2., 4., 6., 1., 3., 5., 7.])
  """
  kernel = np.asarray(kernel)
  inputs, out = kernel.shape
  side = math.isqrt(inputs // channels)
  if channels * side * side != inputs:
    raise ValueError(
      f"{inputs} inputs are not a square map of {channels} channels: pass the "
      "channels of the last convolution"
    )
  weight = kernel.reshape(side, side, channels, out)
  return weight.transpose(3, 2, 0, 1).reshape(out, inputs)


def _num_stages(input_size: int) -> int:
  """Halvings from `input_size` to a side of 3 or 4."""
  size, num_stages = input_size, 0
  while isinstance(size, numbers.Integral) and size > 4 and size % 2 == 0:
    size, num_stages = size // 2, num_stages + 1
  if size not in (3, 4) or num_stages == 0:
    raise ValueError(
      "input_size must be 3 or 4 times a power of two, at least 6, such as 96, "
      f"128, 192 or 256; got {input_size!r}"
    )
  return num_stages
