"""A network drawn with JAX's own operations: no loop, any size, no platform's.

What is traced of it is what converters and other programs take: convolutions,
comparisons, sums and slices, for sizes that are symbols as for numbers. Sizes
that a network which unshuffles cannot take are filled up by its last pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esrgan_jax.export import graphs
from esrgan_jax.models import registry
from esrgan_jax.ops.pixels import reduce_cubically, repeat_pixels
from esrgan_jax.weights.files import Weights

__all__ = [
  "ArrayGraph",
  "forward",
  "halved",
  "layers",
  "takes_any_size",
  "with_variables",
]

Array = jax.Array


def halved(kernel: np.ndarray) -> np.ndarray:
  """Returns float32 numbers as a file of float16 keeps them.

  >>> halved(np.float32([0.1]))
  array([0.09997559], dtype=float32)
  """
  return kernel.astype(np.float16).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ArrayGraph:
  """Computes what it is told; see `graphs.Graph`.

  Attributes:
    half: Whether kernels are those that a file of float16 keeps.
    fills_up: Whether an image of which a network takes multiples may be of any
      size.
    folds: As of a `Graph`.
  """

  half: bool = False
  fills_up: bool = True
  folds: bool = False

  def conv(
    self,
    x: Array,
    conv: graphs.Conv,
    activation: graphs.Activation | None = None,
    *,
    unshuffle: int = 1,
  ) -> Array:
    """See `graphs.Graph.conv`."""
    kernel = halved(conv.kernel) if self.half else conv.kernel
    pad = kernel.shape[0] // 2 * unshuffle
    if unshuffle > 1 and self.fills_up:
      x = _filled(x, unshuffle)
    y = lax.conv_general_dilated(
      x,
      graphs.of_blocks(kernel, unshuffle),
      window_strides=(unshuffle, unshuffle),
      padding=((pad, pad), (pad, pad)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = y + jnp.reshape(conv.bias, (1, 1, 1, -1))
    return y if activation is None else self.activate(y, activation)

  def activate(self, x: Array, activation: graphs.Activation) -> Array:
    """See `graphs.Graph.activate`."""
    slope = activation.slope
    if np.ndim(slope):
      slope = jnp.reshape(slope, (1, 1, 1, -1))
    return jnp.where(x > 0, x, slope * x)

  def sigmoid(self, x: Array) -> Array:
    """See `graphs.Graph.sigmoid`."""
    return jax.nn.sigmoid(x)

  def affine(self, x: Array, factor: float, offset: float) -> Array:
    """See `graphs.Graph.affine`."""
    return np.float32(factor) * x + np.float32(offset)

  def concat(self, values: Sequence[Array]) -> Array:
    """See `graphs.Graph.concat`."""
    return jnp.concatenate(values, axis=-1)

  def add(self, x: Array, y: Array, *, factor: float = 1.0) -> Array:
    """See `graphs.Graph.add`."""
    return x + (y if factor == 1 else np.float32(factor) * y)

  def nearest(self, x: Array, factor: int) -> Array:
    """See `graphs.Graph.nearest`."""
    return repeat_pixels(x, factor)

  def bilinear(self, x: Array, factor: int) -> Array:
    """See `graphs.Graph.bilinear`."""
    return _lines(_lines(x, factor, axis=1), factor, axis=2)

  def cubic(self, x: Array, block: int, size: int) -> Array:
    """See `graphs.Graph.cubic`."""
    return reduce_cubically(x, block=block, size=size)

  def shuffle(self, x: Array, factor: int) -> Array:
    """See `graphs.Graph.shuffle`."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, c // factor**2, factor, factor)
    x = x.transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, h * factor, w * factor, c // factor**2)


def forward(
  weights: Weights,
  lr: Array,
  *,
  half: bool = False,
  fills_up: bool = True,
  folds: bool = False,
) -> Array:
  """Applies a model, in a form that symbolic sizes and converters bear.

  Args:
    weights: The model; its arrays become constants.
    lr: float32 `[N, H, W, 3]` in [0, 1], of any size if the architecture is
      known to `graphs`; else as the network takes it.
    half: Whether to compute with kernels as a file of float16 keeps them.
    fills_up: False if `lr` is as the network takes it in any case.
    folds: As of a `graphs.Graph`.

  Returns:
    float32 `[N, H * scale, W * scale, 3]`.

  >>> from esrgan_jax.weights import find
  >>> model = find.find_model("realesrgan-x4plus-anime").weights
  >>> image = jax.ShapeDtypeStruct((1, 5, 7, 3), "float32")
  >>> jax.eval_shape(lambda lr: forward(model, lr), image).shape
  (1, 20, 28, 3)
  """
  net = registry.make_generator(**weights.config)
  if not graphs.has_graph(weights):
    variables = {"params": weights.params, **weights.collections}
    return registry.infer(registry.plain_form(net), variables, lr)
  sr = graphs.draw(ArrayGraph(half, fills_up, folds), lr, weights)
  if registry.size_multiple(net) == 1 or not fills_up:
    return sr
  h, w = (size * net.scale for size in lr.shape[1:3])
  return sr[:, :h, :w]


def layers(weights: Weights, *, folds: bool = False) -> dict[str, np.ndarray]:
  """Returns the arrays of a model's layers, as they are drawn.

  Args:
    weights: The model.
    folds: As of a `graphs.Graph`.

  Returns:
    Names to kernels `[O, K, K, I]`, biases `[O]` and slopes `[C]` or `[1]`.

  >>> from esrgan_jax.weights import find
  >>> model = find.find_model("realesrgan-x4plus-anime").weights
  >>> found = layers(model)
  >>> found["conv_first.weight"].shape, found["conv_first.bias"].shape
  ((64, 3, 3, 3), (64,))
  """
  found: dict[str, np.ndarray] = {}

  class Noting(ArrayGraph):
    def conv(self, x, conv, activation=None, *, unshuffle=1):
      kernel = graphs.of_blocks(np.asarray(conv.kernel), unshuffle)
      found[f"{conv.name}.weight"] = kernel.transpose(3, 0, 1, 2)
      found[f"{conv.name}.bias"] = np.asarray(conv.bias)
      return super().conv(x, conv, activation, unshuffle=unshuffle)

    def activate(self, x, activation):
      if np.ndim(activation.slope):
        found[f"slope {len(found)}"] = np.asarray(activation.slope)
      return super().activate(x, activation)

  image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
  jax.eval_shape(lambda x: graphs.draw(Noting(folds=folds), x, weights), image)
  return found


def with_variables(weights: Weights, variables: Mapping[str, Any]) -> Weights:
  """Returns a model with other arrays, which may be traced.

  Args:
    weights: The model.
    variables: Its `params` and collections.
  """
  collections = {k: v for k, v in variables.items() if k != "params"}
  return dataclasses.replace(
    weights, params=variables["params"], collections=collections
  )


def takes_any_size(weights: Weights) -> bool:
  """Returns whether `forward` takes what the network alone does not."""
  net = registry.make_generator(**weights.config)
  return registry.size_multiple(net) == 1 or graphs.has_graph(weights)


def _filled(x: Array, side: int) -> Array:
  """Fills an image up to whole blocks of pixels by its last ones."""
  for axis in (1, 2):
    size = x.shape[axis]
    last = lax.slice_in_dim(x, size - 1, size, axis=axis)
    x = jnp.concatenate([x] + [last] * (side - 1), axis=axis)
    # As many rows of each place in a block: so it is cut at whole ones.
    x = _whole(x, size, side, axis)
  return x


def _whole(x: Array, size: Any, side: int, axis: int) -> Array:
  """Cuts `size + side - 1` pixels to a multiple of `side`."""
  blocks = (size + side - 1) // side
  rows = [
    lax.slice_in_dim(x, i, i + size, stride=side, axis=axis)
    for i in range(side)
  ]
  stacked = jnp.stack(rows, axis=axis + 1)
  shape = list(x.shape)
  shape[axis] = blocks * side
  return stacked.reshape(shape)


def _lines(x: Array, factor: int, *, axis: int) -> Array:
  """Bilinear enlargement along one axis, a phase at a time."""
  size = x.shape[axis]
  first, last = (
    lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, size - 1)
  )
  wide = jnp.concatenate([first, x, last], axis=axis)
  before, after = (
    lax.slice_in_dim(wide, i, i + size, axis=axis) for i in (0, 2)
  )
  phases = []
  for phase in range(factor):
    # Where the phase's centre lies, in pixels from this one's.
    offset = np.float32((phase + 0.5) / factor - 0.5)
    other = before if offset < 0 else after
    phases.append((1 - abs(offset)) * x + abs(offset) * other)
  stacked = jnp.stack(phases, axis=axis + 1)
  shape = list(x.shape)
  shape[axis] = size * factor
  return stacked.reshape(shape)
