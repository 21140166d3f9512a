"""ONNX: a file of any number of images of any size, for all that runs those.

Input and output are called "input" and "output", float32 `[N, 3, H, W]`, RGB in
[0, 1], with dimensions `batch_size`, `height` and `width`, as Real-ESRGAN's own
and chaiNNer's exports are; arrays have the names of the architecture's world.
With float16 all between is in half precision, input and output are not.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from esrgan_jax.export import graphs, programs
from esrgan_jax.models import registry
from esrgan_jax.weights.files import Weights

__all__ = ["PROGRAM"]

# Of 2022: TensorRT 8.5, ONNX Runtime 1.12, and all that came after read it.
_OPSET, _IR_VERSION = 17, 8


class _OnnxGraph:
  """Notes nodes and arrays; see `graphs.Graph`. A value is a name."""

  folds = False

  def __init__(self, dtype: str):
    self.dtype = np.dtype(dtype)
    self.nodes: list[Any] = []
    self.arrays: dict[str, np.ndarray] = {}

  def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
    """Adds a node; returns its value."""
    from onnx import helper

    name = f"{kind}_{len(self.nodes)}"
    self.nodes.append(
      helper.make_node(kind, inputs, [name], name=name, **attributes)
    )
    return name

  def array(self, name: str, array: np.ndarray) -> str:
    """Adds an array, once; returns its value."""
    self.arrays[name] = np.ascontiguousarray(array)
    return name

  def conv(self, x, conv, activation=None, *, unshuffle=1):
    """See `graphs.Graph.conv`."""
    side = conv.kernel.shape[0]
    kernel = graphs.of_blocks(conv.kernel, unshuffle)
    weight = kernel.transpose(3, 2, 0, 1).astype(self.dtype)
    bias = conv.bias.astype(self.dtype)
    names = (
      self.array(f"{conv.name}.weight", weight),
      self.array(f"{conv.name}.bias", bias),
    )
    y = self.node(
      "Conv",
      [x, *names],
      kernel_shape=[side * unshuffle] * 2,
      pads=[side // 2 * unshuffle] * 4,
      strides=[unshuffle] * 2,
    )
    return y if activation is None else self.activate(y, activation)

  def activate(self, x, activation):
    """See `graphs.Graph.activate`."""
    slope = np.asarray(activation.slope, self.dtype)
    if slope.ndim:
      name = f"slope_{len(self.nodes)}"
      return self.node("PRelu", [x, self.array(name, slope.reshape(-1, 1, 1))])
    if not slope:
      return self.node("Relu", [x])
    return self.node("LeakyRelu", [x], alpha=float(activation.slope))

  def sigmoid(self, x):
    """See `graphs.Graph.sigmoid`."""
    return self.node("Sigmoid", [x])

  def affine(self, x, factor, offset):
    """See `graphs.Graph.affine`."""
    for kind, number in (("Mul", factor), ("Add", offset)):
      constant = np.asarray(number, self.dtype)
      x = self.node(kind, [x, self.array(f"number_{number}", constant)])
    return x

  def concat(self, values):
    """See `graphs.Graph.concat`."""
    return self.node("Concat", list(values), axis=1)

  def add(self, x, y, *, factor=1.0):
    """See `graphs.Graph.add`."""
    if factor != 1:
      constant = np.asarray(factor, self.dtype)
      y = self.node("Mul", [y, self.array(f"number_{factor}", constant)])
    return self.node("Add", [x, y])

  def nearest(self, x, factor):
    """See `graphs.Graph.nearest`."""
    return self._resize(
      x,
      factor,
      mode="nearest",
      coordinate_transformation_mode="asymmetric",
      nearest_mode="floor",
    )

  def bilinear(self, x, factor):
    """See `graphs.Graph.bilinear`."""
    return self._resize(
      x,
      factor,
      mode="linear",
      coordinate_transformation_mode="half_pixel",
    )

  def cubic(self, x, block, size):
    """See `graphs.Graph.cubic`."""
    return self._resize(
      x,
      size / block,
      mode="cubic",
      cubic_coeff_a=-0.75,
      coordinate_transformation_mode="half_pixel",
    )

  def _resize(self, x, factor, **attributes):
    scales = np.array([1, 1, factor, factor], np.float32)
    name = self.array(f"scales_{factor:g}", scales)
    return self.node("Resize", [x, "", name], **attributes)

  def shuffle(self, x, factor):
    """See `graphs.Graph.shuffle`."""
    return self.node("DepthToSpace", [x], blocksize=factor, mode="CRD")

  def whole(self, name: str, values: Sequence[int]) -> str:
    """Adds whole numbers."""
    return self.array(name, np.array(values, np.int64))


def write(path: pathlib.Path, weights: Weights, options: Any) -> None:
  """Writes a `.onnx`; see `programs.Program`."""
  import onnx
  from onnx import TensorProto, helper, numpy_helper

  net = registry.make_generator(**weights.config)
  graph = _OnnxGraph(options.dtype)
  half = options.dtype == "float16"
  side, scale = registry.size_multiple(net), net.scale
  fills_up = side > 1 and not options.size
  image = "input"
  if fills_up:  # By its last pixels, which are cut off at the end.
    shape = graph.node("Shape", [image], start=2, end=4)
    blocks = graph.whole("blocks", [side, side])
    rest = graph.node("Mod", [graph.node("Neg", [shape]), blocks])
    before = graph.whole("no_pads", [0] * 6)
    pads = graph.node("Concat", [before, rest], axis=0)
    image = graph.node("Pad", [image, pads], mode="edge")
  if half:
    image = graph.node("Cast", [image], to=TensorProto.FLOAT16)
  result = graphs.draw(graph, image, weights)
  if half:
    result = graph.node("Cast", [result], to=TensorProto.FLOAT)
  if fills_up:
    ends = graph.node("Mul", [shape, graph.whole("scale", [scale, scale])])
    starts, axes = graph.whole("starts", [0, 0]), graph.whole("axes", [2, 3])
    graph.node("Slice", [result, starts, ends, axes])
  graph.nodes[-1].output[0] = "output"

  sizes = ("height", "width")
  if options.size:
    first: list[Any] = [1, 3, *options.size]
    last: list[Any] = [1, 3, *(scale * each for each in options.size)]
  else:
    first = ["batch_size", 3, *sizes]
    last = ["batch_size", 3, *(f"{scale}*{each}" for each in sizes)]
  model = helper.make_model(
    helper.make_graph(
      graph.nodes,
      weights.config["architecture"],
      [helper.make_tensor_value_info("input", TensorProto.FLOAT, first)],
      [helper.make_tensor_value_info("output", TensorProto.FLOAT, last)],
      [numpy_helper.from_array(a, name) for name, a in graph.arrays.items()],
    ),
    opset_imports=[helper.make_opsetid("", _OPSET)],
    ir_version=_IR_VERSION,
    producer_name="esrgan_jax",
  )
  metadata = {**weights.metadata, "scale": str(scale)}
  helper.set_model_props(model, {k: str(v) for k, v in metadata.items()})
  onnx.checker.check_model(model, full_check=True)
  path.write_bytes(model.SerializeToString())


def run(path, images):
  """Runs such a file, in a process without this package."""
  import numpy as np
  import onnxruntime

  session = onnxruntime.InferenceSession(
    path, providers=["CPUExecutionProvider"]
  )
  for image in images:
    feed = {"input": np.ascontiguousarray(image.transpose(0, 3, 1, 2))}
    yield session.run(["output"], feed)[0].transpose(0, 2, 3, 1)


def read(path):
  """Reads the arrays of such a file, likewise."""
  import onnx
  from onnx import numpy_helper

  for each in onnx.load(path).graph.initializer:
    array = numpy_helper.to_array(each)
    if array.ndim == 3:  # Slopes.
      array = array.ravel()
    yield (array.transpose(0, 2, 3, 1) if array.ndim == 4 else array), 0


PROGRAM = programs.Program(
  "onnx",
  "ONNX, any size: ONNX Runtime, chaiNNer, TensorRT, OpenVINO",
  suffix=".onnx",
  packages=("onnx", "onnxruntime"),
  runtime="onnxruntime",
  write=write,
  run=run,
  bounds={"float32": 2e-5, "float16": 1e-2},
  read=read,
  takes_size=True,
)
