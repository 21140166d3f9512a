"""LPIPS and DISTS: how far apart images look, by a trained network's features.

Images are float `[..., H, W, 3]` in [0, 1], RGB; one value is returned per
image, 0 for equal ones. Parameters come from `esrgan_jax.load_measure`; nothing
here reads a file. Both are differentiable, by reverse mode, and serve as losses
as they are: their mean over a batch.

A value depends on the size of images, so nothing is resized. Images of several
sizes share a program, exactly, where they are padded with anything and `size`
tells how much of each counts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from esrgan_jax import checks
from esrgan_jax.models import alexnet, vgg
from esrgan_jax.ops import axes, masks
from esrgan_jax.ops.precision import at_least_float32

__all__ = ["dists", "lpips"]

# What both look at of VGG16: the end of each stage.
VGG16_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
_EPSILON = 1e-10  # LPIPS `normalize_tensor`.
_C1 = _C2 = 1e-6  # DISTS, equations 6 and 7.


def lpips(
  params: Mapping[str, Any],
  sr: Array,
  hr: Array,
  *,
  size: Array | None = None,
  dtype: Any = None,
) -> Array:
  """Returns LPIPS, the learned perceptual distance, of each pair of images.

  Version 0.1: squared differences of features of unit length, weighed channel
  by channel as people judged, averaged over places, summed over five layers.

  Args:
    params: `{"network": ..., "heads": {layer: [channels]}}`, of
      `load_measure("lpips")`, on AlexNet as in papers' tables, or of
      `load_measure("lpips_vgg")`, on VGG16, the choice as a loss.
    sr: Super-resolved images, float `[..., H, W, 3]` in [0, 1]; not clipped.
    hr: Ground truth, same shape. At least 31 pixels a side for AlexNet, 16 for
      VGG16.
    size: Rows and columns of each pair that count, integers `[..., 2]`; None
      for all.
    dtype: Compute dtype of the network, such as `jnp.bfloat16` for a loss;
      None for the images', at the highest precision of the device.

  Returns:
    `[...]` array, float32 (float64 for float64 images); 0 for equal images,
    seldom above 1.

  Raises:
    TypeError: If the images are no float arrays, or `params` no such tree.
    ValueError: If the shapes differ or are too small, or `params` are of no
      such network.

  Source: Zhang et al. (arXiv:1801.03924); PyTorch `lpips` 0.1.4,
  `LPIPS(net=...)(sr, hr, normalize=True)`.

  >>> network = jax.eval_shape(vgg.init_vgg16, jax.random.key(0))
  >>> heads = {
  ...   layer: network[layer.replace("relu", "conv")]["bias"]
  ...   for layer in VGG16_LAYERS
  ... }
  >>> params = {"network": network, "heads": heads}
  >>> image = jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.float32)
  >>> jax.eval_shape(lpips, params, image, image).shape
  (2,)
  """
  heads = _part(params, "heads", "LPIPS")
  if set(heads) == set(alexnet.LAYERS):
    run, layers, sides = (
      alexnet.alexnet_features,
      alexnet.LAYERS,
      _alexnet_sides,
    )
  else:
    run = functools.partial(vgg.vgg16_features, layers=VGG16_LAYERS)
    layers, sides = VGG16_LAYERS, _vgg16_sides

  def measure(sr, hr, params, size=None):
    features = _features(run, params, sr, hr, size, dtype)
    total = 0
    for layer, own in zip(layers, sides(size), strict=True):
      a, b = map(_unit, features[layer])
      head = _weights(params, "heads", layer, a)
      total += _mean((jnp.square(a - b) * head).sum(-1, keepdims=True), own)
    return total[..., 0]

  return _measure(measure, params, sr, hr, size)


def dists(
  params: Mapping[str, Any],
  sr: Array,
  hr: Array,
  *,
  size: Array | None = None,
  dtype: Any = None,
) -> Array:
  """Returns DISTS, the distance of structure and texture, of each pair.

  Of every feature map of VGG16, and of the image itself, means over the whole
  image are compared, which are texture, and covariances, which are structure:
  another grain of the same texture is close.

  Args:
    params: `{"network": ..., "alpha": {layer: [channels]}, "beta": ...}`, of
      `load_measure("dists")`.
    sr: Super-resolved images, float `[..., H, W, 3]` in [0, 1]; not clipped.
    hr: Ground truth, same shape.
    size: As of `lpips`.
    dtype: As of `lpips`.

  Returns:
    `[...]` array, float32 (float64 for float64 images); 0 for equal images, the
    farther the higher, below 1 for photos.

  Raises:
    TypeError: If the images are no float arrays, or `params` no such tree.
    ValueError: If the shapes differ, or `params` are not of DISTS.

  Source: Ding et al. (arXiv:2004.07728); PyTorch `dists-pytorch` 0.1, whose
  class does not resize either (its command does).

  >>> network = jax.eval_shape(vgg.init_vgg16, jax.random.key(0))
  >>> each = {
  ...   layer: network[layer.replace("relu", "conv")]["bias"]
  ...   for layer in VGG16_LAYERS
  ... } | {"image": network["normalization"]["mean"]}
  >>> params = {"network": network, "alpha": each, "beta": each}
  >>> image = jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.float32)
  >>> jax.eval_shape(dists, params, image, image).shape
  (2,)
  """
  sr, hr, size = _pair(sr, hr, size)
  for name in ("alpha", "beta"):
    _part(params, name, "DISTS")
  run = functools.partial(vgg.vgg16_features, layers=VGG16_LAYERS, pooling="l2")

  def measure(sr, hr, params, size=None):
    features = {
      "image": (masks.cut(sr, size), masks.cut(hr, size)),
      **_features(run, params, sr, hr, size, dtype),
    }
    total = weight = 0
    for (layer, (a, b)), own in zip(
      features.items(), _dists_sides(size), strict=True
    ):
      mean_a, mean_b = _mean(a, own), _mean(b, own)
      a, b = _less(a, mean_a, own), _less(b, mean_b, own)
      # What either lacks of 1: next to that, float32 has few digits.
      texture = jnp.square(mean_a - mean_b) / (
        jnp.square(mean_a) + jnp.square(mean_b) + _C1
      )
      structure = _mean(jnp.square(a - b), own) / (
        _mean(jnp.square(a) + jnp.square(b), own) + _C2
      )
      for part, lack in (("alpha", texture), ("beta", structure)):
        weights = _weights(params, part, layer, lack)
        total += (weights * lack).sum(-1)
        weight += weights.sum()
    return total / weight

  return _measure(measure, params, sr, hr, size)


def _pair(sr, hr, size):
  """The pair as arrays, in float32 at least; raises unless it is one."""
  sr = checks.check_images(sr, "sr", channels=3)
  hr = checks.check_images(hr, "hr", channels=3)
  checks.check_pair(sr, hr)
  dtype = at_least_float32(sr.dtype, hr.dtype)
  if size is not None:
    wanted = "integers [..., 2], rows and columns"
    size = checks.check_array(size, "size", wanted)
    if size.shape[-1:] != (2,) or not jnp.issubdtype(size.dtype, jnp.integer):
      raise ValueError(f"size must be {wanted}, got {checks.describe(size)}")
  return sr.astype(dtype), hr.astype(dtype), size


def _part(params, name, owner):
  """A part of the parameters, or an error where they are of another kind."""
  found = params.get(name) if isinstance(params, Mapping) else None
  if not isinstance(found, Mapping):
    raise TypeError(
      f"params must be {owner}'s, of load_measure, with network and {name}, got"
      f" {checks.describe(params)}"
    )
  return found


def _measure(measure, params, sr, hr, size):
  """One number an image, whatever the leading axes and the mesh."""

  def run(sr, hr, params, *size):
    leading = sr.shape[:-3]
    sr, hr = (x.reshape(-1, *x.shape[-3:]) for x in (sr, hr))
    size = [jnp.broadcast_to(x, (*leading, 2)).reshape(-1, 2) for x in size]
    return measure(sr, hr, params, *size).reshape(leading)

  sizes = () if size is None else (size,)
  return axes.anywhere(run, sr, hr, params, *sizes, kept=sr.ndim - 3)


def _features(run, params, sr, hr, size, dtype):
  """Features of both images, by layer; the network runs once, on both."""
  image = jnp.concatenate([sr, hr])
  size = None if size is None else jnp.concatenate([size, size])
  # What a GPU or a TPU does to float32 by default would be seen in the result.
  precision = "highest" if dtype is None else None
  with jax.default_matmul_precision(precision):
    features = run(params["network"], image, dtype=dtype, size=size)
  return {
    layer: jnp.split(x.astype(at_least_float32(x.dtype)), 2)
    for layer, x in features.items()
  }


def _weights(params, part, layer, like):
  """A layer's weights, with the axes of what they are multiplied with."""
  weights = params[part].get(layer)
  if jnp.shape(weights) != like.shape[-1:]:
    raise ValueError(
      f"params must have {part}/{layer} of shape {like.shape[-1:]}, got"
      f" {checks.describe(weights)}"
    )
  weights = jnp.asarray(weights, like.dtype)
  return weights.reshape(*(1,) * (like.ndim - 1), -1)


def _unit(x):
  """Features of length 1; where there are none, zeros, and no gradient."""
  squares = jnp.square(x).sum(-1, keepdims=True)
  length = jnp.sqrt(jnp.where(squares > 0, squares, 1))
  return jnp.where(squares > 0, x / (length + _EPSILON), 0)


def _mean(x, own):
  """Means `[N, C]` over an image's own places; what is beyond must be zero."""
  # In two steps: long sums drift in float32.
  total = x.sum(2).sum(1)
  if own is None:
    return total / (x.shape[1] * x.shape[2])
  return total / own.astype(x.dtype).prod(-1, keepdims=True)


def _less(x, mean, own):
  """Differences from the mean, and zeros beyond an image's own places."""
  return masks.cut(x - mean.reshape(-1, 1, 1, mean.shape[-1]), own)


def _alexnet_sides(size):
  """Of each layer, how many rows and columns are an image's own."""
  if size is None:
    return [None] * 5
  first = (size - 7) // 4 + 1
  second = (first - 3) // 2 + 1
  third = (second - 3) // 2 + 1
  return [first, second, third, third, third]


def _vgg16_sides(size):
  return [None if size is None else size // 2**k for k in range(5)]


def _dists_sides(size):
  """The same of the image, and of layers with poolings that round up."""
  if size is None:
    return [None] * 6
  return [size, *(-(-size // 2**k) for k in range(5))]
