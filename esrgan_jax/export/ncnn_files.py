"""ncnn's pair of files, which Upscayl and realesrgan-ncnn-vulkan load.

`.param` is text, a line a layer; `.bin` has the arrays in that order. The image
is the blob "data", RGB in [0, 1], and the result "output", as in the files that
Real-ESRGAN published: those of its x4plus-anime come out byte for byte.
"""

from __future__ import annotations

import collections
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from esrgan_jax.export import graphs, programs
from esrgan_jax.weights.files import Weights
from esrgan_jax.weights.formats.ncnn_file import FLOAT16_TAG, FLOAT32_TAG, MAGIC

__all__ = ["PROGRAM"]


class _NcnnGraph:
  """Notes layers and arrays; see `graphs.Graph`. A value is a blob's name."""

  folds = False

  def __init__(self, dtype: str):
    self.dtype = dtype
    self.layers = [("Input", ["data"], [], "")]
    self.arrays = bytearray()

  def layer(self, kind: str, inputs: Sequence[str], options: str = "") -> str:
    """Adds a layer; returns its blob."""
    blob = f"blob_{len(self.layers)}"
    self.layers.append((kind, [blob], list(inputs), options))
    return blob

  def _put(self, array: np.ndarray, tagged: bool) -> None:
    """Adds an array to the `.bin`, in C order, filled up to four bytes."""
    if tagged:
      half = self.dtype == "float16"
      self.arrays += struct.pack("<I", FLOAT16_TAG if half else FLOAT32_TAG)
      array = array.astype("<f2" if half else "<f4")
    self.arrays += np.ascontiguousarray(array).tobytes()
    self.arrays += bytes(-len(self.arrays) % 4)

  def conv(self, x, conv, activation=None, *, unshuffle=1):
    """See `graphs.Graph.conv`."""
    if unshuffle > 1:
      x = self.layer("Reorg", [x], f"0={unshuffle}")
    kernel = conv.kernel
    side, outputs = kernel.shape[0], kernel.shape[-1]
    self._put(kernel.transpose(3, 2, 0, 1), tagged=True)
    self._put(conv.bias.astype("<f4"), tagged=False)
    options = f"0={outputs} 1={side} 4={side // 2} 5=1 6={kernel.size}"
    if activation is None or np.ndim(activation.slope):
      y = self.layer("Convolution", [x], options)
      return y if activation is None else self.activate(y, activation)
    fused = f"9=2 -23310=1,{activation.slope:e}" if activation.slope else "9=1"
    return self.layer("Convolution", [x], f"{options} {fused}")

  def activate(self, x, activation):
    """See `graphs.Graph.activate`."""
    slope = np.asarray(activation.slope, "<f4")
    if slope.ndim:
      self._put(slope, tagged=False)
      return self.layer("PReLU", [x], f"0={slope.size}")
    return self.layer("ReLU", [x], f"0={activation.slope:e}" if slope else "")

  def sigmoid(self, x):
    """See `graphs.Graph.sigmoid`."""
    return self.layer("Sigmoid", [x])

  def affine(self, x, factor, offset):
    """See `graphs.Graph.affine`."""
    x = self.layer("BinaryOp", [x], f"0=2 1=1 2={factor:e}")
    return self.layer("BinaryOp", [x], f"0=0 1=1 2={offset:e}")

  def concat(self, values):
    """See `graphs.Graph.concat`."""
    return self.layer("Concat", values, "0=0")

  def add(self, x, y, *, factor=1.0):
    """See `graphs.Graph.add`."""
    if factor == 1:
      return self.layer("BinaryOp", [x, y], "0=0")
    return self.layer("Eltwise", [y, x], f"0=1 -23301=2,{factor:e},{1:e}")

  def nearest(self, x, factor):
    """See `graphs.Graph.nearest`."""
    return self.layer("Interp", [x], f"0=1 1={factor:e} 2={factor:e}")

  def bilinear(self, x, factor):
    """See `graphs.Graph.bilinear`."""
    return self.layer("Interp", [x], f"0=2 1={factor:e} 2={factor:e}")

  def cubic(self, x, block, size):
    """See `graphs.Graph.cubic`."""
    factor = size / block
    return self.layer("Interp", [x], f"0=3 1={factor:e} 2={factor:e}")

  def shuffle(self, x, factor):
    """See `graphs.Graph.shuffle`."""
    return self.layer("PixelShuffle", [x], f"0={factor}")

  def text(self, result: str) -> str:
    """Returns the `.param`: a blob is read once, so some are split."""
    reads = collections.Counter(i for *_, ins, _ in self.layers for i in ins)
    parts: dict[str, list[str]] = {}
    lines = []
    for kind, outputs, inputs, options in self.layers:
      outputs = ["output" if each == result else each for each in outputs]
      inputs = [parts[i].pop(0) if i in parts else i for i in inputs]
      lines.append((kind, inputs, outputs, options))
      for blob in outputs:
        if reads[blob] > 1:
          parts[blob] = [f"{blob}_{i}" for i in range(reads[blob])]
          lines.append(("Split", [blob], list(parts[blob]), ""))
    blobs = sum(len(outputs) for _, _, outputs, _ in lines)
    text = [MAGIC, f"{len(lines)} {blobs}"]
    for i, (kind, inputs, outputs, options) in enumerate(lines):
      name = "data" if kind == "Input" else f"{kind}_{i}"
      counts = f"{len(inputs)} {len(outputs)}"
      fields = [f"{kind:<16} {name:<16} {counts}", *inputs, *outputs, options]
      text.append(" ".join(fields).rstrip())
    return "\n".join([*text, ""])


def write(path: pathlib.Path, weights: Weights, options: Any) -> None:
  """Writes a `.param` and a `.bin` beside it; see `programs.Program`."""
  graph = _NcnnGraph(options.dtype)
  result = graphs.draw(graph, "data", weights)
  path.write_text(graph.text(result))
  path.with_suffix(".bin").write_bytes(graph.arrays)


def run(path, images):
  """Runs such files, in a process without this package."""
  import ncnn
  import numpy as np

  net = ncnn.Net()
  net.opt.use_vulkan_compute = False
  # What is in the files, and not how this machine would hurry.
  for name in ("storage", "arithmetic", "packed"):
    setattr(net.opt, f"use_fp16_{name}", False)
  net.opt.use_bf16_storage = False
  if net.load_param(path) or net.load_model(path[:-5] + "bin"):
    raise ValueError("ncnn cannot load the files")
  for batch in images:
    results = []
    for image in batch:
      # A Mat borrows an array's memory.
      array = np.ascontiguousarray(image.transpose(2, 0, 1))
      extractor = net.create_extractor()
      extractor.input("data", ncnn.Mat(array).clone())
      status, result = extractor.extract("output")
      if status:
        raise ValueError(f"ncnn cannot run the files: {status}")
      results.append(np.array(result).transpose(1, 2, 0))
    yield np.stack(results)


def read(path):
  """Reads the arrays of such files, likewise."""
  import numpy as np

  blocks = 1
  with open(path) as lines, open(f"{path[:-5]}bin", "rb") as file:
    for line in lines:
      kind, *words = line.split()
      options = dict(word.split("=") for word in words if "=" in word)
      if kind == "Reorg":
        blocks = int(options["0"])
      elif kind == "PReLU":
        yield np.frombuffer(file.read(4 * int(options["0"])), "<f4"), 0
      elif kind == "Convolution":
        outputs, side, size = (int(options[key]) for key in "016")
        dtype = np.dtype("<f2" if any(file.read(4)) else "<f4")
        kernel = np.frombuffer(file.read(dtype.itemsize * size), dtype)
        # As one of a larger kernel, which sees pixels and not blocks of them.
        kernel = kernel.reshape(outputs, -1, blocks, blocks, side, side)
        kernel = kernel.transpose(0, 4, 2, 5, 3, 1)
        yield kernel.reshape(outputs, *[side * blocks] * 2, -1), 0
        file.seek(-file.tell() % 4, 1)
        yield np.frombuffer(file.read(4 * outputs), "<f4"), 0
        blocks = 1


PROGRAM = programs.Program(
  "ncnn",
  "ncnn, any size: Upscayl, realesrgan-ncnn-vulkan, phones",
  suffix=".param",
  others=(".bin",),
  packages=("ncnn",),
  runtime="ncnn",
  write=write,
  run=run,
  # As published: half the size, and nothing is computed in half precision.
  bounds={"float16": 2e-5, "float32": 2e-5},
  half="kernels",
  read=read,
  fills_up=False,
)
