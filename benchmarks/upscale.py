"""Upscaling a photo on this CPU, beside PyTorch, ONNX Runtime and OpenVINO.

All run realesrgan-x4plus, float32, the same weights on the same photo, with all
cores, in one process, taking turns. Compiling and loading are timed apart.

  pip install torch onnx onnxruntime openvino scikit-image
  python -m benchmarks.upscale [--size 128 512] [--rounds 5]

A peer that is not installed is left out.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

import esrgan_jax
from benchmarks import machine
from esrgan_jax.images import read_image
from esrgan_jax.weights.dialects import rrdb as names

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))


def photo(size):
  """Returns the middle of a real photo, uint8 `[size, size, 3]`."""
  import skimage.data

  path = pathlib.Path(skimage.data.__file__).parent / "astronaut.png"
  pixels = read_image(path).pixels
  start = (pixels.shape[0] - size) // 2
  return np.ascontiguousarray(
    pixels[start : start + size, start : start + size]
  )


def run_jax(model, lr):
  """Prepares our upscaler; returns a function without arguments."""
  del model
  ours = esrgan_jax.load(dtype="float32", devices=jax.devices("cpu"))
  ours.upscale(lr)
  return lambda: ours.upscale(lr)


def run_torch(state, lr):
  """Prepares PyTorch, channels last."""
  import torch
  from torch_rrdb import RRDBNet

  torch.set_num_threads(os.cpu_count())
  net = RRDBNet(num_feat=64, num_block=23, num_grow_ch=32).eval()
  net.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
  net = net.to(memory_format=torch.channels_last)

  def run():
    with torch.inference_mode():
      x = torch.tensor(lr).permute(2, 0, 1)[None].float() / 255
      x = x.contiguous(memory_format=torch.channels_last)
      sr = net(x).clamp(0, 1)[0].permute(1, 2, 0)
      return (sr * 255).round().to(torch.uint8).numpy()

  if lr.shape[0] <= 128:
    run()
  return run


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
  blocks = 1 + max(int(k.split(".")[1]) for k in state if k[:5] == "body.")
  for n in range(blocks):
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


def _finish(sr):
  return np.rint(sr[0].clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)


def _start(lr):
  return lr.transpose(2, 0, 1)[None].astype(np.float32) / 255


def run_onnxruntime(state, lr):
  """Prepares ONNX Runtime."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = os.cpu_count()
  session = onnxruntime.InferenceSession(
    onnx_model(state), options, providers=["CPUExecutionProvider"]
  )

  def run():
    return _finish(session.run(None, {"lr": _start(lr)})[0])

  if lr.shape[0] <= 128:
    run()
  return run


def run_openvino(state, lr):
  """Prepares OpenVINO, float32."""
  import openvino

  core = openvino.Core()
  model = core.read_model(onnx_model(state))
  model.reshape([1, 3, *lr.shape[:2]])
  config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
  compiled = core.compile_model(model, "CPU", config)

  def run():
    return _finish(compiled(_start(lr))[0])

  if lr.shape[0] <= 128:
    run()
  return run


PEERS = {
  "esrgan_jax": ("jax", run_jax),
  "PyTorch, channels_last": ("torch", run_torch),
  "ONNX Runtime": ("onnxruntime", run_onnxruntime),
  "OpenVINO": ("openvino", run_openvino),
}


def main():
  """Prints a table a size."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, nargs="+", default=[128, 512])
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  state = names.to_state_dict(
    jax.tree.map(np.asarray, esrgan_jax.load(dtype="float32").params)
  )
  print(machine.versions("jax", "torch", "onnxruntime", "openvino"))
  print(machine.describe())
  for size in args.size:
    rounds = args.rounds if size <= 128 else max(1, args.rounds // 5)
    compare(state, photo(size), rounds)


def compare(state, lr, rounds):
  """Times all peers on one photo, taking turns."""
  runs, prepared = {}, {}
  for name, (_, prepare) in PEERS.items():
    started = time.perf_counter()
    try:
      runs[name] = prepare(state, lr)
    except ImportError:
      continue
    prepared[name] = time.perf_counter() - started
  seconds = {name: [] for name in runs}
  results = {}
  for _ in range(rounds):
    for name, run in runs.items():
      started = time.perf_counter()
      results[name] = run()
      seconds[name].append(time.perf_counter() - started)
  ours = np.asarray(results["esrgan_jax"], np.int16)
  median = {name: statistics.median(v) for name, v in seconds.items()}
  height, width = lr.shape[:2]
  print(f"\n{height} x {width} pixels to x4, median of {rounds} rounds")
  print("| | seconds | relative to ours | first call | differs by |")
  print("| --- | --- | --- | --- | --- |")
  for name in runs:
    ratio = statistics.median(
      a / b for a, b in zip(seconds[name], seconds["esrgan_jax"], strict=True)
    )
    worst = np.abs(ours - results[name]).max()
    print(
      f"| {name} | {median[name]:.2f} | {ratio:.2f} | {prepared[name]:.1f} |"
      f" {worst} of 255 |",
      flush=True,
    )


if __name__ == "__main__":
  main()
