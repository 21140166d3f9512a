"""Networks layer by layer, for whatever writes a graph: a function each.

ONNX and ncnn have layers, no Python: a format is a `Graph`, which notes what it
is told to do, and a network here is a function that tells it. Both can be added
to without the other. `arrays.ArrayGraph` computes instead of noting, so that
one test holds a network here equal to the one in `models/`.

Kernels are HWIO, of float32; a writer turns them as its format has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from esrgan_jax.models import compact, registry
from esrgan_jax.text import printable
from esrgan_jax.weights.files import Weights

__all__ = [
  "Activation",
  "Conv",
  "Graph",
  "draw",
  "has_graph",
  "networks",
  "of_blocks",
  "register_network",
]


@dataclasses.dataclass(frozen=True)
class Activation:
  """What follows a convolution: x where x > 0, else x times a slope.

  Attributes:
    slope: 0 for ReLU, a number for leaky ReLU, `[C]` or `[1]` for PReLU.
  """

  slope: float | np.ndarray


@dataclasses.dataclass(frozen=True)
class Conv:
  """A convolution of stride 1 that pads zeros, so that the size stays.

  Attributes:
    name: As the architecture's world has it, such as "body.0.rdb1.conv1".
    kernel: float32 `[K, K, I, O]`, K odd; traced, where the model is.
    bias: float32 `[O]`.
  """

  name: str
  kernel: np.ndarray
  bias: np.ndarray


def of_blocks(kernel: Any, side: int) -> Any:
  """Returns a kernel that sees pixels where another sees blocks of them.

  A convolution after `pixel_unshuffle` is one of a larger kernel before it, in
  steps of a block, of an image that is padded by as many blocks.

  Args:
    kernel: `[K, K, C * side**2, O]`.
    side: Of a block, in pixels.

  Returns:
    `[K * side, K * side, C, O]`.

  >>> of_blocks(np.zeros((3, 3, 12, 8)), 2).shape
  (6, 6, 3, 8)
  """
  k, _, inputs, outputs = kernel.shape
  channels = inputs // side**2
  kernel = kernel.reshape(k, k, channels, side, side, outputs)
  kernel = kernel.transpose(0, 3, 1, 4, 2, 5)
  return kernel.reshape(k * side, k * side, channels, outputs)


class Graph(Protocol):
  """What networks are made of; a value is whatever the format calls one.

  Attributes:
    folds: Whether a factor of a convolution's result goes into the convolution,
      as some converters have it, and not into the sum behind.
  """

  folds: bool

  def conv(
    self,
    x: Any,
    conv: Conv,
    activation: Activation | None = None,
    *,
    unshuffle: int = 1,
  ) -> Any:
    """A convolution, of an image whose blocks of pixels are channels.

    Args:
      x: `[N, H, W, C]`; the network's image, if `unshuffle` is above 1.
      conv: Its arrays; I is C * `unshuffle`**2, in `pixel_unshuffle`'s order.
      activation: What follows.
      unshuffle: Side of the blocks.
    """

  def activate(self, x: Any, activation: Activation) -> Any:
    """An activation, where no convolution stands directly in front."""

  def sigmoid(self, x: Any) -> Any:
    """1 / (1 + exp(-x))."""

  def affine(self, x: Any, factor: float, offset: float) -> Any:
    """`factor` * x + `offset`."""

  def concat(self, values: Sequence[Any]) -> Any:
    """Values side by side in channels."""

  def add(self, x: Any, y: Any, *, factor: float = 1.0) -> Any:
    """The sum x + `factor` * y."""

  def nearest(self, x: Any, factor: int) -> Any:
    """Each pixel `factor` x `factor` times."""

  def bilinear(self, x: Any, factor: int) -> Any:
    """Larger by lines between the centres of pixels, flat beyond the last."""

  def cubic(self, x: Any, block: int, size: int) -> Any:
    """Smaller, `size` pixels of `block`, by cubics of coefficient -0.75."""

  def shuffle(self, x: Any, factor: int) -> Any:
    """Channels to blocks of pixels, as PyTorch's `pixel_shuffle`."""


Network = Callable[[Graph, Any, Any, Weights], Any]

_networks: dict[str, Network] = {}


def register_network(architecture: str, network: Network) -> None:
  """Says how an architecture is drawn.

  Args:
    architecture: Its name, as the registry has it.
    network: `(graph, image, net, weights) -> result`: `net` is the module, of
      `weights.config`.

  Raises:
    ValueError: If another function draws it.

  >>> register_network("RRDBNet", print)
  Traceback (most recent call last):
  ...
  ValueError: another function draws 'RRDBNet'
  """
  if _networks.get(architecture, network) is not network:
    raise ValueError(f"another function draws {architecture!r}")
  _networks[architecture] = network


def networks() -> tuple[str, ...]:
  """Returns the architectures that can be drawn.

  >>> "RRDBNet" in networks()
  True
  """
  return tuple(_networks)


def has_graph(weights: Weights) -> bool:
  """Returns whether a model's architecture can be drawn."""
  return weights.config["architecture"] in _networks


def draw(graph: Graph, image: Any, weights: Weights) -> Any:
  """Tells a graph all of a network.

  Args:
    graph: What is told.
    image: Its value for the image, `[N, H, W, 3]` in [0, 1].
    weights: The model.

  Returns:
    The graph's value for the result.

  Raises:
    ValueError: If nothing says how the architecture is drawn.
  """
  name = weights.config["architecture"]
  if name not in _networks:
    raise ValueError(
      f"layers of {printable(name)} are not known, only those of"
      f" {', '.join(_networks)}: export it as stablehlo, saved_model or tflite,"
      " or say how it is drawn (CONTRIBUTING.md)"
    )
  net = registry.make_generator(**weights.config)
  return _networks[name](graph, image, net, weights)


def _conv(
  name: str,
  params: Mapping[str, Any],
  index: Any = ...,
  norm: Sequence[Mapping[str, Any]] = (),
  factor: float = 1.0,
) -> Conv:
  """A convolution of a tree; what follows it and is linear goes into it.

  Args:
    name: In the file.
    params: `kernel`, and perhaps `bias`.
    index: Of stacked arrays, which one.
    norm: Parameters and running statistics of a BatchNorm behind it.
    factor: Of its result.
  """
  kernel = params["kernel"][index]
  bias = params["bias"][index] if "bias" in params else 0 * kernel[0, 0, 0]
  if norm:
    scale, shift, mean, var = (
      tree[key][index]
      for tree, keys in zip(
        norm, (("scale", "bias"), ("mean", "var")), strict=True
      )
      for key in keys
    )
    scale = scale * (var + 1e-5) ** -0.5  # As PyTorch has it.
    kernel = kernel * scale.reshape(1, 1, 1, -1)
    bias = (bias - mean) * scale + shift
  factor = np.float32(factor)
  return Conv(name, kernel * factor, bias * factor)


def _rrdbnet(graph: Graph, image: Any, net: Any, weights: Weights) -> Any:
  """`models/reference.py`, drawn."""
  params, tree = weights.params, weights.params["body"]
  leaky = Activation(0.2)
  inside, outside = (0.2, 1.0) if graph.folds else (1.0, 0.2)

  def conv(x, name, activation=None, **options):
    return graph.conv(x, _conv(name, params[name]), activation, **options)

  first = conv(image, "conv_first", unshuffle=net.unshuffle_factor)
  x = first
  for n in range(net.num_block):
    block = x
    for rdb in ("rdb1", "rdb2", "rdb3"):
      seen, sources = block, [block]
      for i in range(1, 5):
        made = _conv(f"body.{n}.{rdb}.conv{i}", tree[rdb][f"conv{i}"], n)
        sources.append(graph.conv(seen, made, leaky))
        seen = graph.concat(sources)
      name, leaf = f"body.{n}.{rdb}.conv5", tree[rdb]["conv5"]
      y = graph.conv(seen, _conv(name, leaf, n, factor=inside))
      block = graph.add(block, y, factor=outside)
    x = graph.add(x, block, factor=0.2)
  x = graph.add(first, conv(x, "conv_body"))
  for i, factor in enumerate(net.upsampling, 1):
    x = conv(graph.nearest(x, factor), f"conv_up{i}", leaky)
  return conv(conv(x, "conv_hr", leaky), "conv_last")


def _srresnet(graph: Graph, image: Any, net: Any, weights: Weights) -> Any:
  """`models/srresnet.py`, drawn; BatchNorm is part of the convolutions."""
  params = weights.params
  stats = weights.collections.get("batch_stats", {})
  is_srgan = net.variant == "srgan"

  def activation(params, name, index=...):
    """PReLU where it is learnt; else what BasicSR's MSRResNet has."""
    if is_srgan:
      return Activation(params[name]["slope"][index])
    return Activation(0.0 if name == "act" else 0.1)

  def norm(params, stats, name):
    return (params[name], stats[name]) if name in params else ()

  def conv(x, name, act=None, *, norm=(), factor=1.0, called=None):
    made = _conv(called or name, params[name], norm=norm, factor=factor)
    return graph.conv(x, made, act)

  first = graph.affine(image, 2.0, -1.0) if net.centered else image
  first = conv(first, "conv_first", activation(params, "act_first"))
  x, body, kept = first, params["body"], stats.get("body", {})
  for n in range(net.num_block):
    y = x
    for i, act in ((1, activation(body, "act", n)), (2, None)):
      name, after = f"conv{i}", norm(body, kept, f"bn{i}")
      made = _conv(f"body.{n}.{name}", body[name], n, after)
      y = graph.conv(y, made, act)
    x = graph.add(x, y)
  if is_srgan:
    after = norm(params, stats, "bn_body")
    x = graph.add(first, conv(x, "conv_body", norm=after))
  for i, factor in enumerate(net.upsampling, 1):
    x = conv(x, f"conv_up{i}", called=None if is_srgan else f"upconv{i}")
    x = graph.activate(
      graph.shuffle(x, factor), activation(params, f"act_up{i}")
    )
  if not is_srgan:
    x = conv(conv(x, "conv_hr", Activation(0.1)), "conv_last")
    return graph.add(x, graph.bilinear(image, net.scale))
  if net.output == "linear":
    return conv(x, "conv_last")
  # (tanh(x) + 1) / 2.
  return graph.sigmoid(conv(x, "conv_last", factor=2.0))


def _compact(graph: Graph, image: Any, net: Any, weights: Weights) -> Any:
  """`models/compact.py`, drawn."""
  params, body = weights.params, weights.params["body"]

  def activation(params, index=...):
    """PReLU where it is learnt."""
    if "slope" in params:
      return Activation(params["slope"][index])
    return Activation(compact.LEAKS[net.act_type])

  first, act = params["conv_first"], params.get("act_first", {})
  x = graph.conv(image, _conv("body.0", first), activation(act))
  for n in range(net.num_conv):
    made = _conv(f"body.{2 * n + 2}", body["conv"], n)
    x = graph.conv(x, made, activation(body.get("act", {}), n))
  name = f"body.{2 * net.num_conv + 2}"
  x = graph.conv(x, _conv(name, params["conv_last"]))
  shuffle = net.shuffle_factor
  x = graph.shuffle(x, shuffle)
  x = graph.add(x, image if shuffle == 1 else graph.nearest(image, shuffle))
  return x if net.scale == shuffle else graph.cubic(x, shuffle, net.scale)


def _centered(graph: Graph, image: Any, net: Any, weights: Weights) -> Any:
  """`models/centered.py`, drawn."""
  sr = _rrdbnet(graph, graph.affine(image, 1.0, -0.5), net, weights)
  return graph.affine(sr, 1.0, 0.5)


register_network("RRDBNet", _rrdbnet)
register_network("CenteredRRDBNet", _centered)
register_network("SRResNet", _srresnet)
register_network("SRVGGNetCompact", _compact)
