"""Upscaling a photo on this CPU, beside PyTorch, ONNX Runtime and OpenVINO.

All run realesrgan-x4plus, float32, the same weights on the same photo, with all
cores, in one process, taking turns, after a first call each, which compiles and
loads and is timed apart. PyTorch comes with its blocks compiled as well, where
there is a C++ compiler, and of large photos in tiles, as Real-ESRGAN's own
command cuts them: their margin of 10 pixels is not all that a pixel depends on.

  pip install torch onnx onnxruntime openvino scikit-image
  python -m benchmarks.upscale [--size 128 512] [--rounds 5] [--half]

A peer that is not installed is left out. `--half` is for processors that
multiply in bfloat16: those that can do so, beside ours in float32, whose result
all others are compared with.
"""

import argparse
import functools
import pathlib
import statistics
import time

import jax
import numpy as np

import esrgan_jax
from benchmarks import machine, peers
from esrgan_jax.images import read_image
from esrgan_jax.weights.dialects import rrdb as names


def photo(size):
  """Returns the middle of a real photo, uint8 `[size, size, 3]`."""
  import skimage.data

  path = pathlib.Path(skimage.data.__file__).parent / "astronaut.png"
  pixels = read_image(path).pixels
  start = (pixels.shape[0] - size) // 2
  return np.ascontiguousarray(
    pixels[start : start + size, start : start + size]
  )


def make_ours(state, *, dtype="float32"):
  """Our upscaler."""
  del state
  return esrgan_jax.load(dtype=dtype, devices=jax.devices("cpu")).upscale


def sides(size, *, half=False):
  """What makes each side, by its name, for photos of a size."""
  if half:
    return {
      "esrgan_jax": functools.partial(make_ours, dtype="bfloat16"),
      "esrgan_jax, float32": make_ours,
      **{
        name: functools.partial(make, half=True)
        for name, make in {
          "PyTorch, channels_last": peers.make_torch,
          "PyTorch, compiled blocks": peers.make_compiled_torch,
          "OpenVINO": peers.make_openvino_of_one_size,
        }.items()
      },
    }
  found = {
    "esrgan_jax": make_ours,
    **peers.PEERS,
    "PyTorch, compiled blocks": peers.make_compiled_torch,
    # Where all images have one size.
    "OpenVINO": peers.make_openvino_of_one_size,
  }
  if size > 2 * peers.TILE:
    # It is slower on a whole photo than on so many small ones.
    tiles = f"tiles of {peers.TILE}"
    for name in ("PyTorch, channels_last", "PyTorch, compiled blocks"):
      make = functools.partial(found[name], tiled=True)
      found[f"{name}, {tiles}"] = make
    # The whole at once takes as long as all others together.
    del found["PyTorch, compiled blocks"]
  return found


def main():
  """Prints a table a size."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, nargs="+", default=[128, 512])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--half", action="store_true", help="in bfloat16")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  state = names.to_state_dict(
    jax.tree.map(np.asarray, esrgan_jax.load(dtype="float32").params)
  )
  print(machine.versions("jax", "torch", "onnxruntime", "openvino"))
  print(machine.describe())
  for size in args.size:
    rounds = args.rounds if size <= 128 else max(1, args.rounds // 5)
    compare(state, photo(size), rounds, half=args.half)


def compare(state, lr, rounds, *, half=False):
  """Times all peers on one photo, taking turns."""
  runs, prepared = {}, {}
  for name, make in sides(lr.shape[0], half=half).items():
    started = time.perf_counter()
    try:
      runs[name] = make(state)
    except ImportError:
      continue
    runs[name](lr)  # It may compile.
    prepared[name] = time.perf_counter() - started
  seconds = {name: [] for name in runs}
  results = {}
  for _ in range(rounds):
    for name, run in runs.items():
      started = time.perf_counter()
      results[name] = run(lr)
      seconds[name].append(time.perf_counter() - started)
  reference = "esrgan_jax, float32" if half else "esrgan_jax"
  expected = np.asarray(results[reference], np.int16)
  median = {name: statistics.median(v) for name, v in seconds.items()}
  height, width = lr.shape[:2]
  precision = ", bfloat16" if half else ""
  print(
    f"\n{height} x {width} pixels to x4{precision}, median of {rounds} rounds"
  )
  print("| | seconds | relative to ours | first call | differs by |")
  print("| --- | --- | --- | --- | --- |")
  for name in runs:
    ratio = statistics.median(
      a / b for a, b in zip(seconds[name], seconds["esrgan_jax"], strict=True)
    )
    error = np.abs(expected - results[name])
    print(
      f"| {name} | {median[name]:.2f} | {ratio:.2f} | {prepared[name]:.1f} |"
      f" {error.max()} of 255, mean {error.mean():.2f} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
