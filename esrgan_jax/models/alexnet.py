"""AlexNet's convolutional features, for LPIPS.

torchvision's form of it, "one weird trick": one column, no local response
normalisation. Parameters are `{"conv1": {"kernel", "bias"}, ..., "conv5":
{...}, "normalization": {"mean", "std"}}`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from esrgan_jax import checks
from esrgan_jax.models import vgg
from esrgan_jax.ops import axes, masks
from esrgan_jax.ops.convolution import convolve

# Source: Krizhevsky (arXiv:1404.5997); torchvision `models/alexnet.py`.
KERNEL_SHAPES = {
  "conv1": (11, 11, 3, 64),
  "conv2": (5, 5, 64, 192),
  "conv3": (3, 3, 192, 384),
  "conv4": (3, 3, 384, 256),
  "conv5": (3, 3, 256, 256),
}
LAYERS = ("relu1", "relu2", "relu3", "relu4", "relu5")
# The smallest image of which a pixel is left after two poolings.
SMALLEST = 31


def alexnet_features(
  params: Mapping[str, Mapping[str, Array]],
  image: Array,
  *,
  dtype: Any = None,
  size: Array | None = None,
) -> dict[str, Array]:
  """Returns AlexNet's features of images after each convolution's ReLU.

  Args:
    params: See the module.
    image: Images, float `[..., H, W, 3]`, RGB in [0, 1]: normalised here; 31
      pixels a side or more.
    dtype: Compute dtype; `None` for the image's.
    size: As of `vgg.vgg16_features`.

  Returns:
    Features by the names in `LAYERS`, in `dtype`.

  Raises:
    TypeError: If `image` is no float array, or `params` no tree of them.
    ValueError: If the image has another shape or is smaller, or parameters are
      missing or of another shape.

  Source: torchvision `models/alexnet.py::AlexNet.features`.

  >>> layers = {
  ...   name: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}
  ...   for name, shape in KERNEL_SHAPES.items()
  ... }
  >>> layers["normalization"] = {"mean": jnp.zeros(3), "std": jnp.ones(3)}
  >>> image = jax.ShapeDtypeStruct((64, 31, 3), jnp.float32)
  >>> features = jax.eval_shape(alexnet_features, layers, image)
  >>> features["relu1"].shape, features["relu5"].shape
  ((15, 7, 64), (3, 1, 256))
  """
  image = checks.check_images(image, channels=3)
  if min(image.shape[-3:-1]) < SMALLEST:
    raise ValueError(
      f"AlexNet needs images of {SMALLEST} pixels a side or more, got"
      f" {image.shape[-3]}x{image.shape[-2]}"
    )
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  expected = {
    name: {"kernel": shape(kernel), "bias": shape(kernel[-1:])}
    for name, kernel in KERNEL_SHAPES.items()
  }
  expected["normalization"] = {"mean": shape((3,)), "std": shape((3,))}
  checks.check_params(params, expected, owner="an AlexNet")
  convs = {name: params[name] for name in KERNEL_SHAPES}
  operands = (params["normalization"], convs)
  operands += () if size is None else (size,)
  dtype = jnp.dtype(image.dtype if dtype is None else dtype)
  run = functools.partial(_features, dtype=dtype)
  found = axes.anywhere(run, image, *operands)
  return dict(zip(LAYERS, found, strict=True))


def _features(image, normalization, params, size=None, *, dtype):
  leading = image.shape[:-3]
  x = image.reshape(-1, *image.shape[-3:])
  x = vgg.normalize(x, normalization).astype(dtype)
  if size is not None:
    size = jnp.broadcast_to(size, (*leading, 2)).reshape(-1, 2)
    x = masks.cut(x, size)
  found = []
  for name, layer in params.items():
    side = layer["kernel"].shape[0]
    stride, pad = (4, 2) if name == "conv1" else (1, side // 2)
    if name in ("conv2", "conv3"):
      size = _after(size, 3, 2)
      x = masks.cut(_pool(x), size)
    kernel = jnp.asarray(layer["kernel"], x.dtype)
    bias = jnp.asarray(layer["bias"], x.dtype).reshape(1, 1, 1, -1)
    x = jax.nn.relu(convolve(x, kernel, stride=stride, pad=pad) + bias)
    size = _after(size, side, stride, pad)
    x = masks.cut(x, size)
    found.append(x.reshape(*leading, *x.shape[1:]))
  return found


def _pool(x):
  """3x3 maxima, every other one, as PyTorch: windows lie inside."""
  return lax.reduce_window(
    x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
  )


def _after(size, side, stride, pad=0):
  """How many rows and columns a window leaves of so many."""
  return None if size is None else (size + 2 * pad - side) // stride + 1
