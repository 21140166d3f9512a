"""The discriminator of SRGAN: images to one logit each."""

from __future__ import annotations

import numbers
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrgan_jax import checks
from esrgan_jax.models.layers import (
  NORMS,
  bias_init,
  convolve,
  convolve_strided,
  kernel_init,
  normalize,
)
from esrgan_jax.models.parameters import ConvParams
from esrgan_jax.ops import axes

_NUM_CONVS = 8


class SRGANDiscriminator(nn.Module):
  """Eight 3x3 convolutions, every second of stride 2, and two dense layers.

  Widths are `num_feat` times 1, 1, 2, 2, 4, 4, 8, 8. All convolutions but the
  first are normalised, leaky ReLUs have a slope of 0.2, and the first dense
  layer has `16 * num_feat` outputs: 1024, as published.

  BatchNorm is as in `VGGStyleDiscriminator`: its statistics are those of all
  devices' images under `jit`, and the running variance is biased.

  Source: SRGAN (arXiv:1609.04802), figure 4, without its sigmoid, which the
  loss has. The pooled form: as the tutorials have it, with 6 (which changes
  nothing at 96 pixels) or with 1.

  Attributes:
    num_feat: Channels of the first convolution.
    input_size: Height and width of the images, HR pixels, at least 16; without
      `pool`, images of another size are an error.
    pool: Side of the map that the last features are averaged to, whatever the
      image's size; 0 for none, as published.
    norm: `"batch"`, as published; `"layer"`, over channels and positions of
      each image, `"instance"`, over positions of each channel, or `"none"`:
      for critics whose gradient is penalised.
    norm_first: Whether the first convolution is normalised, too, as some
      tutorials have it.
    dtype: Compute dtype; parameters, batch statistics and logits are float32.
    axis_name: Axis or axes that the batch is mapped over, by `jax.pmap`,
      `jax.shard_map` or `jax.vmap`: with `train=True`, BatchNorm's statistics
      are those of all images along it.

  Raises:
    ValueError: If a size is out of range, `norm` is unknown, or `dtype` is no
      floating-point type.

  >>> import jax
  >>> discriminator = SRGANDiscriminator(num_feat=2, input_size=16)
  >>> image = jnp.zeros((3, 16, 16, 3))
  >>> init = jax.jit(lambda key: discriminator.init(key, image, train=False))
  >>> variables = init(jax.random.key(0))
  >>> variables["params"]["linear1"]["kernel"].shape
  (16, 32)
  >>> discriminator.apply(variables, image, train=False).shape
  (3,)
  """

  num_feat: int = 64
  input_size: int = 96
  pool: int = 0
  norm: str = "batch"
  norm_first: bool = False
  dtype: Any = jnp.float32
  axis_name: axes.AxisName = None

  def __post_init__(self) -> None:
    """Raises ValueError if a field is unfit, before anything is computed."""
    super().__post_init__()
    checks.check_sizes(self, "num_feat", "input_size")
    if self.input_size < 16:
      raise ValueError(
        f"input_size is {self.input_size}; four halvings need at least 16"
      )
    if not isinstance(self.pool, numbers.Integral) or self.pool < 0:
      raise ValueError(
        f"pool is {self.pool!r}; it must be the side of a map, such as 6, or 0"
        " for none"
      )
    if self.norm not in NORMS:
      raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}")
    checks.check_flags(norm_first=self.norm_first)
    checks.check_compute_dtype(self.dtype)

  @nn.compact
  def __call__(self, image: Array, *, train: bool) -> Array:
    """Returns one logit per image, before any sigmoid.

    Args:
      image: Images, float `[B, input_size, input_size, 3]` in [0, 1]; with
        `pool`, of any size from 16 pixels a side.
      train: Normalise with this batch's statistics, and update the running
        ones where `batch_stats` is mutable; otherwise use the running ones.

    Returns:
      Logits, float32 `[B]`.

    Raises:
      TypeError: If `image` is no float array, or `train` no bool.
      ValueError: If it has another shape, or nothing is mapped over
        `axis_name`.
    """
    checks.check_flags(train=train)
    if train and not self.is_initializing():
      axes.check_bound(self.axis_name)
    size = None if self.pool else (self.input_size, self.input_size)
    image = checks.check_images(image, batch=True, size=size)
    if min(image.shape[1:3]) < 16:
      raise ValueError(
        f"image is {image.shape[1]}x{image.shape[2]}; four halvings need at"
        " least 16 pixels a side"
      )
    x = image.astype(self.dtype)
    for n in range(_NUM_CONVS):
      normalised = self.norm != "none" and (n > 0 or self.norm_first)
      in_ch, width = x.shape[-1], self.num_feat * 2 ** (n // 2)
      params = ConvParams(
        in_ch,
        width,
        kernel_init,
        None if normalised else bias_init(9 * in_ch),
        self.dtype,
        name=f"conv{n}",
      )()
      run = convolve_strided if n % 2 else convolve
      x = axes.anywhere(run, x, params)
      if normalised:
        x = normalize(
          x,
          self.norm,
          str(n),
          train=train,
          dtype=self.dtype,
          axis_name=self.axis_name,
        )
      x = nn.leaky_relu(x, 0.2)
    x = axes.anywhere(self._flatten, x, kept=1)
    hidden = 16 * self.num_feat
    x = nn.Dense(
      hidden,
      dtype=self.dtype,
      kernel_init=kernel_init,
      bias_init=bias_init(x.shape[-1]),
      name="linear1",
    )(x)
    x = nn.leaky_relu(x, 0.2)
    logits = nn.Dense(
      1,
      dtype=jnp.float32,
      kernel_init=kernel_init,
      bias_init=bias_init(hidden),
      name="linear2",
    )(x)
    return logits[:, 0]

  def _flatten(self, x: Array) -> Array:
    if self.pool:
      x = pool_adaptively(x, self.pool)
    return x.reshape(x.shape[0], -1)


def pool_adaptively(x: Array, side: int) -> Array:
  """Averages images to one size, as PyTorch's `AdaptiveAvgPool2d`.

  Args:
    x: `[..., H, W, C]`.
    side: Height and width of the result.

  Returns:
    `[..., side, side, C]`: each the mean of the rows from `floor(i * H / side)`
    to `ceil((i + 1) * H / side)`, and columns likewise.

  >>> x = jnp.arange(4.0).reshape(4, 1, 1)
  >>> pool_adaptively(x, 3)[:, 0, 0].tolist()
  [0.5, 1.5, 2.5]
  """
  rows, columns = (
    jnp.asarray(_pooling(size, side), x.dtype) for size in x.shape[-3:-1]
  )
  return jnp.einsum("ih,...hwc,jw->...ijc", rows, x, columns)


def _pooling(size: int, side: int) -> np.ndarray:
  """A matrix of means, `[side, size]`."""
  matrix = np.zeros((side, size))
  for i in range(side):
    start, stop = i * size // side, -(-(i + 1) * size // side)
    matrix[i, start:stop] = 1 / (stop - start)
  return matrix
