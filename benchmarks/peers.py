"""Other runtimes, each in its best form, on the same network and weights.

`PEERS` has them by name. Each is made of BasicSR's arrays by name, and is a
function of an image, uint8 `[H, W, 3]`, to its result, of any size, in float32
(or bfloat16, where it says `half`) with all cores. Nothing here imports JAX.
"""

import functools
import shutil

import numpy as np

from benchmarks import machine

TILE, TILE_PAD = 128, 10  # Real-ESRGAN's own way with images too large.


def make_torch(state, *, compiled=False, tiled=False, half=False):
  """PyTorch, channels last; each block compiled; in tiles of its own.

  `half` is its automatic mixed precision, with bfloat16.
  """
  import torch

  from benchmarks import torch_networks

  torch.set_num_threads(machine.num_cores())
  num_feat = len(state["conv_first.bias"])
  net = torch_networks.RRDBNet(
    num_feat=num_feat,
    num_block=num_blocks(state),
    num_grow_ch=len(state["body.0.rdb1.conv1.bias"]),
  ).eval()
  # Both have the layers in the paper's order.
  for ours, theirs in zip(state.values(), net.parameters(), strict=True):
    assert ours.shape == tuple(theirs.shape)
    theirs.data = torch.tensor(ours)
  net = net.to(memory_format=torch.channels_last)
  if compiled:
    for block in net.body:
      block.compile()

  def run(lr):
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.inference_mode(), autocast:
      x = torch.tensor(lr).permute(2, 0, 1)[None].float() / 255
      x = x.contiguous(memory_format=torch.channels_last)
      sr = net(x).float().clamp(0, 1)[0].permute(1, 2, 0)
      return (sr * 255).round().to(torch.uint8).numpy()

  return functools.partial(_in_tiles, run) if tiled else run


def make_compiled_torch(state, *, tiled=False, half=False):
  """PyTorch with each block compiled, where there is a compiler."""
  if not shutil.which("g++"):
    raise ImportError("torch.compile needs a C++ compiler")
  return make_torch(state, compiled=True, tiled=tiled, half=half)


def _in_tiles(run, lr):
  """As `RealESRGANer.tile_process`: tiles, each with what is around it."""
  height, width = lr.shape[:2]
  sr = np.empty((4 * height, 4 * width, 3), np.uint8)
  for top in range(0, height, TILE):
    for left in range(0, width, TILE):
      bottom, right = min(top + TILE, height), min(left + TILE, width)
      above, before = max(top - TILE_PAD, 0), max(left - TILE_PAD, 0)
      tile = run(lr[above : bottom + TILE_PAD, before : right + TILE_PAD])
      down, across = 4 * (top - above), 4 * (left - before)
      sr[4 * top : 4 * bottom, 4 * left : 4 * right] = tile[
        down : down + 4 * (bottom - top), across : across + 4 * (right - left)
      ]
  return sr


def onnx_model(state):
  """Builds the network as an ONNX graph of any image size."""
  import onnx
  from onnx import helper, numpy_helper

  nodes, arrays = (
    [],
    [
      numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "x2"),
      numpy_helper.from_array(np.array(0.2, np.float32), "beta"),
    ],
  )
  arrays += [numpy_helper.from_array(v, k) for k, v in state.items()]

  def add(op, *inputs, **attributes):
    output = f"t{len(nodes)}"
    nodes.append(helper.make_node(op, inputs, [output], **attributes))
    return output

  def conv(x, name):
    weights = (f"{name}.weight", f"{name}.bias")
    return add("Conv", x, *weights, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

  def lrelu(x):
    return add("LeakyRelu", x, alpha=0.2)

  def scaled_sum(x, y):
    return add("Add", x, add("Mul", y, "beta"))

  feat = conv("lr", "conv_first")
  x = feat
  for n in range(num_blocks(state)):
    outer = x
    for i in (1, 2, 3):
      sources = [x]
      for j in (1, 2, 3, 4):
        joined = add("Concat", *sources, axis=1) if j > 1 else x
        sources.append(lrelu(conv(joined, f"body.{n}.rdb{i}.conv{j}")))
      joined = add("Concat", *sources, axis=1)
      x = scaled_sum(x, conv(joined, f"body.{n}.rdb{i}.conv5"))
    x = scaled_sum(outer, x)
  x = add("Add", feat, conv(x, "conv_body"))
  for name in ("conv_up1", "conv_up2"):
    x = add("Resize", x, "", "x2", mode="nearest")
    x = lrelu(conv(x, name))
  sr = conv(lrelu(conv(x, "conv_hr")), "conv_last")
  shape = ["n", 3, "h", "w"]
  graph = helper.make_graph(
    nodes,
    "rrdbnet",
    [helper.make_tensor_value_info("lr", onnx.TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info(sr, onnx.TensorProto.FLOAT, None)],
    arrays,
  )
  opsets = [helper.make_opsetid("", 18)]
  model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
  return model.SerializeToString()


def make_onnxruntime(state):
  """ONNX Runtime."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = machine.num_cores()
  session = onnxruntime.InferenceSession(
    onnx_model(state), options, providers=["CPUExecutionProvider"]
  )
  return lambda lr: _finish(session.run(None, {"lr": _start(lr)})[0])


def make_openvino(state):
  """OpenVINO, float32, of any size."""
  import openvino

  core = openvino.Core()
  model = core.read_model(onnx_model(state))
  config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
  compiled = core.compile_model(model, "CPU", config)
  return lambda lr: _finish(compiled(_start(lr))[0])


def make_openvino_of_one_size(state, *, half=False):
  """OpenVINO, float32 or bfloat16, compiled for each size that comes."""
  import openvino

  core = openvino.Core()
  model = core.read_model(onnx_model(state))
  config = {
    "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
    "PERFORMANCE_HINT": "LATENCY",
  }
  compiled = {}

  def run(lr):
    if lr.shape not in compiled:
      model.reshape([1, 3, *lr.shape[:2]])
      compiled[lr.shape] = core.compile_model(model, "CPU", config)
    return _finish(compiled[lr.shape](_start(lr))[0])

  return run


def num_blocks(state):
  """Returns how many blocks a network has, by its arrays' names."""
  return 1 + max(int(k.split(".")[1]) for k in state if k[:5] == "body.")


def _start(lr):
  return lr.transpose(2, 0, 1)[None].astype(np.float32) / 255


def _finish(sr):
  return np.rint(sr[0].clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)


# Name -> what makes it; the packages are named as pip knows them.
PEERS = {
  "PyTorch, channels_last": make_torch,
  "ONNX Runtime": make_onnxruntime,
  "OpenVINO": make_openvino,
}
