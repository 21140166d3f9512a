"""A folder of photos on this CPU, beside PyTorch, ONNX Runtime and OpenVINO.

All run the same weights, float32, on the same folder with all cores, each in a
process of its own that is timed from its start to its last file. Ours is
`python -m esrgan_jax upscale`, with nothing compiled before, and again.
The others read, compute and write one photo after the other, by the same reader
and writer; the next is read, and the last is written, in threads as here.

  pip install torch onnx onnxruntime openvino scikit-image
  python -m benchmarks.folder [--count 200] [--devices 8]

The photos are parts of those of scikit-image, height and width log-uniform, and
are the same for the same seed. A peer that is not installed is left out.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import machine, peers
from esrgan_jax import images

SOURCES = ("astronaut", "chelsea", "coffee", "rocket", "ihc", "retina")
ROOT = pathlib.Path(__file__).parent.parent


def make_photos(folder, count, low, high, seed):
  """Writes photos; returns their pixels in all."""
  import skimage.data

  data = pathlib.Path(skimage.data.__file__).parent
  sources = []
  for name in SOURCES:
    for path in data.glob(f"{name}.*"):
      if images.is_image_suffix(path):
        sources.append(images.read_image(path).pixels)
  random = np.random.default_rng(seed)
  total = 0
  for i in range(count):
    source = sources[random.integers(len(sources))]
    # Where a photo is lower, its mirror image goes on.
    source = np.concatenate([source, source[::-1]])
    sides = np.exp(random.uniform(np.log(low), np.log(high), 2)).astype(int)
    height, width = np.minimum(sides, source.shape[:2])
    top = random.integers(source.shape[0] - height + 1)
    left = random.integers(source.shape[1] - width + 1)
    pixels = source[top : top + height, left : left + width]
    picture = images.Image(np.ascontiguousarray(pixels))
    images.write_image(folder / f"{i:04}.png", picture)
    total += height * width
  return total


def run_peer(name, weights, folder, out):
  """What a peer's process does."""
  with np.load(weights) as arrays:
    state = dict(arrays)
  run = peers.PEERS[name](state)
  paths = sorted(folder.iterdir())
  writing = collections.deque()
  with (
    concurrent.futures.ThreadPoolExecutor(1) as reader,
    concurrent.futures.ThreadPoolExecutor(2) as writers,
  ):
    # All are small enough to be read at once.
    for path, picture in zip(
      paths, reader.map(images.read_image, paths), strict=True
    ):
      result = images.Image(run(picture.pixels))
      target = out / path.name
      writing.append(writers.submit(images.write_image, target, result))
      while len(writing) > 16:
        writing.popleft().result()
    for future in writing:
      future.result()


def timed(command, **environment):
  """Runs a process; returns seconds from its start to its end."""
  started = time.perf_counter()
  done = subprocess.run(
    command,
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True,
    text=True,
    check=False,
  )
  seconds = time.perf_counter() - started
  if done.returncode:
    error = done.stderr.strip().splitlines()[-1:]
    return None, error[0] if error else "failed"
  return seconds, done.stdout.strip().splitlines()[-1:]


def ours(model, folder, out, cache, devices):
  """Runs the command."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  command = [sys.executable, "-m", "esrgan_jax", "upscale", str(folder)]
  command += ["-o", str(out), "-m", model, "--precision", "float32"]
  environment = {"ESRGAN_JAX_CACHE": str(cache)}
  if devices > 1:
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
  return timed(command, **environment)


def show_shares(model, folder):
  """Prints how many programs a folder takes, and each device's windows."""
  import jax

  from esrgan_jax.upscaling import upscaler

  model = upscaler.load(model, dtype="float32")
  sizes = [images.read_size(path)[::-1] for path in sorted(folder.iterdir())]
  nothing = np.zeros((1, 1, 3), np.uint8)
  orders = [
    model.order(
      np.broadcast_to(nothing, (*size, 3)),
      np.broadcast_to(nothing, (4 * size[0], 4 * size[1], 3)),
    )
    for size in sizes
  ]
  batches = model.engine().forecast(orders)
  devices = len(jax.local_devices())
  shapes = {batch.shape for batch in batches}
  pixels = sum(height * width for height, width in sizes)
  computed = sum(b.shape.area * len(b.windows) for b in batches)
  print(f"{len(sizes)} photos, {len(shapes)} programs")
  print(f"windows are full to {100 * pixels / computed:.0f} %")
  shares = [
    sum(len(batch.windows) > device for batch in batches)
    for device in range(devices)
  ]
  print(f"windows a device, of {devices}: {shares}")


def main():
  """Prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--count", type=int, default=200)
  parser.add_argument("--low", type=int, default=24, help="least side")
  parser.add_argument("--high", type=int, default=600, help="greatest side")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--model", default="realesrgan-x4plus-anime")
  parser.add_argument("--devices", type=int, default=1)
  parser.add_argument("--only", nargs="+", help="names of peers")
  parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.peer:
    name, *paths = args.peer
    run_peer(name, *map(pathlib.Path, paths))
    return
  with tempfile.TemporaryDirectory() as work:
    measure(args, pathlib.Path(work))


def measure(args, work):
  """Runs all sides on one folder."""
  folder = work / "photos"
  folder.mkdir()
  total = make_photos(folder, args.count, args.low, args.high, args.seed)
  print(machine.versions("jax", "torch", "onnxruntime", "openvino"))
  print(machine.describe())
  print(
    f"{args.count} photos, sides {args.low} to {args.high}, seed {args.seed},"
    f" {total / 1e6:.2f} megapixels, {args.model}"
  )
  print("| | seconds | relative to ours, second run |", flush=True)
  print("| --- | --- | --- |")
  seconds = {}

  def show(name, found):
    seconds[name], last = found
    if seconds[name] is None:
      print(f"| {name} | left out: {last} | |", flush=True)
      return
    base = seconds["esrgan_jax, second run"]
    ratio = "" if base is None else f"{seconds[name] / base:.2f}"
    print(f"| {name} | {seconds[name]:.1f} | {ratio} |", flush=True)

  cache = work / "cache"
  first = ours(args.model, folder, work / "first", cache, args.devices)
  show(
    "esrgan_jax, second run",
    ours(args.model, folder, work / "second", cache, args.devices),
  )
  show("esrgan_jax, first run", first)
  weights = work / "weights.npz"
  subprocess.run(
    [sys.executable, "-c", _SAVE, args.model, str(weights)],
    cwd=ROOT,
    check=True,
  )
  for name in args.only or peers.PEERS:
    out = work / name.replace(" ", "_")
    out.mkdir()
    command = [sys.executable, "-m", "benchmarks.folder", "--peer"]
    show(name, timed([*command, name, str(weights), str(folder), str(out)]))
    if seconds[name] is not None:
      print(f"  differs by {difference(out, work / 'second')} of 255")
  command = [sys.executable, "-c", _SHARES, args.model, str(folder)]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  for devices in {args.devices, 8}:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment["XLA_FLAGS"] = flags
    subprocess.run(command, cwd=ROOT, check=True, env=environment)


def difference(a, b):
  """Returns the largest difference of two folders' pictures."""
  return max(
    int(
      np.abs(
        images.read_image(path).pixels.astype(np.int16)
        - images.read_image(b / path.name).pixels
      ).max()
    )
    for path in sorted(a.iterdir())
  )


# In processes of their own: this one imports no JAX.
_SAVE = """
import sys, numpy, jax, esrgan_jax
from esrgan_jax.weights.dialects import rrdb
params = jax.device_get(esrgan_jax.load(sys.argv[1], dtype="float32").params)
numpy.savez(sys.argv[2], **rrdb.to_state_dict(params))
"""
_SHARES = """
import sys, pathlib
from benchmarks import folder
folder.show_shares(sys.argv[1], pathlib.Path(sys.argv[2]))
"""


if __name__ == "__main__":
  main()
