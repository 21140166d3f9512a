"""One image in pieces: killed and begun again, and how much memory it takes.

A picture is made of photos that scikit-image ships, as a tiled TIFF, and
upscaled by `python -m esrgan_jax upscale`, twice: once undisturbed, once killed
(SIGKILL) several times, each time after a part of the tiles, and started again.
The two results must have the same bytes. Each process's peak memory is what the
system says of it at its end (`ru_maxrss`).

  python -m benchmarks.gigapixel                       # 32,000 x 32,000
  python -m benchmarks.gigapixel --side 1024 --model animevideov3-x4

`--model tiny`, the default, is a compact network of a few channels and random
weights: it shows that memory is bounded, in minutes on a CPU.
"""

import argparse
import filecmp
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import folder, machine
from esrgan_jax import images

ROOT = pathlib.Path(__file__).parent.parent
_TILE = 512
# Of a journal that is looked at.
_PAUSE = 0.2


def make_picture(path, side, seed, *, smaller=False):
  """Writes a picture, tile by tile: parts of photos, turned and mirrored."""
  import skimage.data
  import tifffile

  data = pathlib.Path(skimage.data.__file__).parent
  photos = [
    images.read_image(file).pixels
    for name in folder.SOURCES
    for file in sorted(data.glob(f"{name}.*"))
    if images.is_image_suffix(file)
  ]

  def tiles(size, step):
    # One picture for one seed, whatever else there is.
    random = np.random.default_rng(seed)
    for _ in range((-(-size // _TILE)) ** 2):
      photo = photos[random.integers(len(photos))]
      photo = np.concatenate([photo, photo[::-1]])
      photo = np.concatenate([photo, photo[:, ::-1]], axis=1)
      top, left = (random.integers(n - _TILE + 1) for n in photo.shape[:2])
      part = photo[top : top + _TILE, left : left + _TILE]
      yield (
        np.ascontiguousarray(np.rot90(part, random.integers(4)))[::step, ::step]
        .repeat(step, 0)
        .repeat(step, 1)
      )

  options = {
    "dtype": np.uint8,
    "tile": (_TILE, _TILE),
    "photometric": "rgb",
    "compression": "zlib",
    "predictor": True,
    "metadata": None,
  }
  with tifffile.TiffWriter(path, bigtiff=True) as tiff:
    tiff.write(tiles(side, 1), shape=(side, side, 3), **options)
    if smaller:
      half = -(-side // 2)
      tiff.write(
        tiles(half, 2), shape=(half, half, 3), subfiletype=1, **options
      )


def write_tiny(path, seed):
  """Writes a compact network of random weights, that is nearly bicubic."""
  import jax
  import jax.numpy as jnp

  from esrgan_jax.models import registry
  from esrgan_jax.weights import files

  config = {
    "architecture": "SRVGGNetCompact",
    "num_feat": 4,
    "num_conv": 1,
    "scale": 4,
  }
  net = registry.make_generator(**config)
  lr = jnp.zeros((1, 8, 8, 3))
  params = net.init(jax.random.key(seed), lr)["params"]
  files.write_weights(path, jax.device_get(params), config)


def start(source, target, model, options):
  """Starts the command."""
  command = [sys.executable, "-m", "esrgan_jax", "upscale", str(source)]
  command += ["-o", str(target), "-m", str(model), "--pieces", "always"]
  with open(target.with_suffix(".log"), "ab") as log:
    return subprocess.Popen(
      [*command, *options], cwd=ROOT, stdout=log, stderr=log
    )


def wait(process):
  """Returns the exit status and the peak memory, in bytes."""
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  return process.returncode, usage.ru_maxrss * 1024


def done_of(target):
  """Returns how many tiles a result's journal has, and its folder's bytes."""
  for part in target.parent.glob(f".{target.name}.*.part"):
    try:
      lines = (part / "journal").read_bytes().split(b"\n")[1:-1]
      size = sum(f.stat().st_size for f in part.iterdir())
    except OSError:
      continue
    return (json.loads(lines[-1])["pieces"] if lines else 0), size
  return 0, 0


def run(source, target, model, options, stops):
  """Runs the command to its end, killed after so many tiles each time.

  Returns:
    Seconds, peak memory of each process, and the most bytes on the disk.
  """
  began, peaks, most = time.perf_counter(), [], 0
  stops = list(stops)
  while True:
    process = start(source, target, model, options)
    while (
      stops
      and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
      is None
    ):
      done, size = done_of(target)
      most = max(most, size)
      if done >= stops[0]:
        process.send_signal(signal.SIGKILL)
        break
      time.sleep(_PAUSE)
    while (
      not stops
      and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
      is None
    ):
      most = max(most, done_of(target)[1])
      time.sleep(_PAUSE)
    status, peak = wait(process)
    peaks.append(peak)
    if status == -signal.SIGKILL and stops:
      print(f"  killed at {done_of(target)[0]} tiles", flush=True)
      stops.pop(0)
      continue
    if status:
      log = target.with_suffix(".log").read_text()
      raise SystemExit(f"exit status {status}: {log[-2000:]}")
    return time.perf_counter() - began, peaks, most


def main():
  """Prints what was measured."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--side", type=int, default=8000, help="of the image")
  parser.add_argument("--model", default="tiny")
  parser.add_argument("--kills", type=int, default=3)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--tile", default="auto")
  parser.add_argument(
    "--pyramid", action="store_true", help="give the image a smaller copy"
  )
  parser.add_argument("--folder", help="where files lie; it needs some GB")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=args.folder) as work:
    measure(args, pathlib.Path(work))


def measure(args, work):
  """Makes the picture, and runs both."""
  source = work / "picture.tif"
  make_picture(source, args.side, args.seed, smaller=args.pyramid)
  model = args.model
  if model == "tiny":
    model = work / "tiny.safetensors"
    write_tiny(model, args.seed)
  options = ["--tile", args.tile]
  print(machine.versions("jax", "tifffile", "imagecodecs"))
  print(machine.describe())
  decoded = 3 * args.side**2
  print(
    f"{args.side} x {args.side} pixels, seed {args.seed}, {args.model}:"
    f" {decoded / 1e9:.2f} GB decoded, the file"
    f" {source.stat().st_size / 1e9:.2f} GB",
    flush=True,
  )
  first, second = work / "undisturbed.tif", work / "killed.tif"
  seconds, peaks, most = run(source, first, model, options, [])
  width, height = images.read_size(first)
  said = first.with_suffix(".log").read_text()
  total = int(said.partition(": in ")[2].split()[0])
  print(
    f"undisturbed: {width} x {height} pixels,"
    f" {3 * width * height / 1e9:.2f} GB decoded, the file"
    f" {first.stat().st_size / 1e9:.2f} GB, {total} tiles, {seconds:.0f} s;"
    f" peak memory {peaks[0] / 1e9:.2f} GB, at most {most / 1e9:.2f} GB on"
    " the disk",
    flush=True,
  )
  stops = [
    max(1, total * (n + 1) // (args.kills + 1)) for n in range(args.kills)
  ]
  seconds, peaks, most = run(source, second, model, options, stops)
  shown = ", ".join(f"{peak / 1e9:.2f}" for peak in peaks)
  print(
    f"killed {len(peaks) - 1} times: {seconds:.0f} s; peak memory {shown} GB,"
    f" at most {most / 1e9:.2f} GB on the disk"
  )
  same = filecmp.cmp(first, second, shallow=False)
  print(f"the same bytes: {'yes' if same else 'NO'}")
  left = [p.name for p in work.iterdir() if p.suffix == ".part"]
  print(f"left behind: {', '.join(left) or 'nothing'}")
  if not same or left:
    raise SystemExit(1)


if __name__ == "__main__":
  main()
