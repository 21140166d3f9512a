"""Layers that discriminators share: convolutions, norms, initialisation."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from esrgan_jax.ops import axes
from esrgan_jax.ops.convolution import conv
from esrgan_jax.ops.precision import at_least_float32

NORMS = ("batch", "layer", "instance", "none")

Conv = tuple[Array, Array | None]  # Kernel and bias.

# PyTorch's default initialisation, which the authors' 2019-06 code and BasicSR
# leave in place: uniform within 1 / sqrt(fan_in), for kernels and biases.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in: int) -> nn.initializers.Initializer:
  """PyTorch's bias initialisation: uniform within 1 / sqrt(fan_in)."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def add_bias(x: Array, bias: Array | None) -> Array:
  """Adds a bias `[C]`, if there is one, to `[B, H, W, C]`."""
  return x if bias is None else x + bias.reshape(1, 1, 1, -1)


def convolve(x: Array, params: Conv) -> Array:
  """A convolution with padding 1, and its bias, if any."""
  kernel, bias = params
  return add_bias(conv(x, kernel), bias)


def convolve_strided(x: Array, params: Conv) -> Array:
  """The same with stride 2."""
  kernel, bias = params
  return add_bias(conv(x, kernel, 2), bias)


def normalize(
  features: Array,
  norm: str,
  position: str,
  *,
  train: bool,
  dtype: Any = jnp.float32,
  axis_name: axes.AxisName = None,
) -> Array:
  """Returns normalised features; for a compact method of a discriminator.

  Args:
    features: `[B, H, W, C]`.
    norm: One of `NORMS`: of `"batch"` alone, images see each other.
    position: What follows in the layer's name, after `bn`, `ln` or `in`.
    train: With `"batch"`, normalise with this batch's statistics.
    dtype: Of the result; statistics are of float32.
    axis_name: With `"batch"`, an axis that the batch is mapped over.

  Returns:
    The same shape.

  Raises:
    ValueError: If `"instance"` would leave nothing of maps of one position.

  >>> class Scored(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, image):
  ...     return normalize(image, "instance", "0", train=True).mean((1, 2, 3))
  >>> image = jax.random.uniform(jax.random.key(0), (1, 4, 4, 3))
  >>> scores, variables = Scored().init_with_output(jax.random.key(0), image)
  >>> list(variables["params"]), bool(abs(scores[0]) < 1e-5)
  (['in0'], True)
  """
  if norm == "none":
    return features
  if norm == "instance" and features.shape[1] * features.shape[2] == 1:
    raise ValueError(
      f"norm is 'instance', and the map at {position} has one position, which"
      " is its own mean: nothing would be left of it. Take larger images, or"
      " norm 'layer'"
    )
  # Flax's would promote by itself, which programs may have forbidden.
  wide = at_least_float32(dtype)
  if norm == "batch":
    layer = nn.BatchNorm(
      use_running_average=not train,
      momentum=0.9,  # PyTorch's momentum of 0.1.
      epsilon=1e-5,
      # The mean of squares less the square of the mean loses digits: enough
      # that, within ten steps, two devices and four would train apart.
      use_fast_variance=False,
      dtype=wide,
      axis_name=axis_name,
      name=f"bn{position}",
    )
  elif norm == "layer":
    layer = nn.GroupNorm(
      num_groups=1, epsilon=1e-5, dtype=wide, name=f"ln{position}"
    )
  else:
    # A group a channel. As for BatchNorm, few positions are left at the end.
    layer = nn.GroupNorm(
      num_groups=None,
      group_size=1,
      epsilon=1e-5,
      use_fast_variance=False,
      dtype=wide,
      name=f"in{position}",
    )
  return layer(features.astype(wide)).astype(dtype)
