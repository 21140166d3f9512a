"""How fast HR patches are degraded: on this machine, and beside the host's way.

The host's way is what training programs of PyTorch do in their loaders: NumPy
draws, OpenCV blurs and resizes, Pillow compresses, an image at a time in each
of two processes. Both sides draw from the same ranges, on the same images, in
turns. Then the TPU compiler says what it estimates; nothing here ran on a TPU.

  pip install opencv-python-headless scikit-image libtpu
  python -m benchmarks.degradation [--sizes 256 400] [--tpu v5e:1]
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

import numpy as np

from benchmarks import machine

SCALE = 4


# --- The host's way: an image is float32 `[H, W, 3]` in [0, 1].


def host_kernel(random, settings, order):
  """A kernel as it is drawn here, of NumPy and SciPy."""

  def option(name):
    return getattr(settings, f"{name}{order}")

  side = 2 * random.integers(3, option("blur_kernel_size") // 2 + 1) + 1
  if random.random() < option("sinc_prob"):
    lowest = math.pi / 3 if side < 13 else math.pi / 5
    return host_sinc(random.uniform(lowest, math.pi), side)
  weights = np.array(option("kernel_prob")) / sum(option("kernel_prob"))
  kind = random.choice(option("kernel_list"), p=weights)
  sigmas = random.uniform(*option("blur_sigma"), 2)
  theta = random.uniform(-math.pi, math.pi)
  if "aniso" not in kind:
    sigmas, theta = (sigmas[0], sigmas[0]), 0.0
  step = np.arange(side) - side // 2
  x, y = np.meshgrid(step, step)
  u = x * math.cos(theta) + y * math.sin(theta)
  v = y * math.cos(theta) - x * math.sin(theta)
  power = (u / sigmas[0]) ** 2 + (v / sigmas[1]) ** 2
  if "generalized" in kind:
    kernel = np.exp(-0.5 * power ** host_beta(random, option("betag_range")))
  elif "plateau" in kind:
    kernel = 1 / (1 + power ** host_beta(random, option("betap_range")))
  else:
    kernel = np.exp(-0.5 * power)
  return kernel / kernel.sum()


def host_beta(random, limits):
  """A shape, below 1 as often as above."""
  low, high = (limits[0], 1) if random.random() < 0.5 else (1, limits[1])
  return random.uniform(low, high)


def host_sinc(cutoff, side):
  """A sinc filter."""
  import scipy.special

  step = np.arange(side) - side // 2
  radius = np.hypot(*np.meshgrid(step, step))
  radius[side // 2, side // 2] = 1
  kernel = scipy.special.j1(cutoff * radius) / radius
  kernel[side // 2, side // 2] = cutoff / 2
  return kernel / kernel.sum()


def host_resize(random, image, size):
  """Of another size, by area, bilinear or bicubic."""
  import cv2

  how = random.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC])
  return cv2.resize(image, size[::-1], interpolation=int(how))


def host_factor(random, weights, limits):
  """A factor of the size."""
  kind = random.choice(3, p=np.array(weights) / sum(weights))
  if kind == 2:
    return 1.0
  return random.uniform(*((1, limits[1]) if kind == 0 else (limits[0], 1)))


def host_noise(random, image, settings, order):
  """Gaussian or Poisson noise, grey or not."""

  def option(name):
    return getattr(settings, f"{name}{order}")

  grey = random.random() < option("gray_noise_prob")
  if random.random() < option("gaussian_noise_prob"):
    shape = (*image.shape[:2], 1) if grey else image.shape
    sigma = random.uniform(*option("noise_range")) / 255
    noise = sigma * random.standard_normal(shape, np.float32)
  else:
    light = image
    if grey:
      light = image @ np.array([[0.2989], [0.587], [0.114]], np.float32)
    light = np.clip(np.round(light * 255), 0, 255) / 255
    events = 2 ** math.ceil(math.log2(len(np.unique(light))))
    noise = random.poisson(light * events) / events - light
    noise = random.uniform(*option("poisson_scale_range")) * noise
  return np.clip(image + noise, 0, 1).astype(np.float32)


def host_jpeg(random, image, limits):
  """As a JPEG file has it."""
  import io

  import PIL.Image

  file = io.BytesIO()
  levels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
  quality = int(random.uniform(*limits))
  PIL.Image.fromarray(levels).save(file, "JPEG", quality=quality)
  return np.asarray(PIL.Image.open(file)).astype(np.float32) / 255


def host_degrade(random, image, settings):
  """LR of an image."""
  import cv2

  def blur(image, kernel):
    kernel = kernel.astype(np.float32)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)

  sides = np.array(image.shape[:2])
  lr = tuple(int(n) for n in sides // SCALE)
  image = blur(image, host_kernel(random, settings, ""))
  factor = host_factor(random, settings.resize_prob, settings.resize_range)
  image = host_resize(random, image, [int(n * factor) for n in sides])
  image = host_noise(random, image, settings, "")
  image = host_jpeg(random, image, settings.jpeg_range)
  if random.random() < settings.second_blur_prob:
    image = blur(image, host_kernel(random, settings, "2"))
  factor = host_factor(random, settings.resize_prob2, settings.resize_range2)
  image = host_resize(random, image, [int(n * factor) for n in lr])
  image = host_noise(random, image, settings, "2")
  jpeg_first = random.random() < 0.5
  if jpeg_first:
    image = host_jpeg(random, image, settings.jpeg_range2)
  image = host_resize(random, image, lr)
  if random.random() < settings.final_sinc_prob:
    side = 2 * random.integers(3, settings.blur_kernel_size2 // 2 + 1) + 1
    cutoff = random.uniform(math.pi / 3, math.pi)
    image = blur(image, host_sinc(cutoff, side))
  if not jpeg_first:
    image = host_jpeg(random, image, settings.jpeg_range2)
  return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


_images = None  # A worker's, from its beginning.


def begin_worker(images):
  """Gives a worker its images, and one thread."""
  import cv2

  global _images
  _images = images.astype(np.float32) / 255
  cv2.setNumThreads(1)


def work(seed):
  """Degrades all images of a worker."""
  from esrgan_jax.degradation import Degradation

  random = np.random.default_rng(seed)
  lr = [host_degrade(random, image, Degradation()) for image in _images]
  return np.stack(lr)


# --- Here.


def prepare_jax(images):
  """Returns a function that degrades all images, and what compiling took."""
  import jax
  import jax.numpy as jnp

  from esrgan_jax import compilation, degradation

  hr = jax.device_put(jnp.asarray(images, jnp.float32) / 255)

  def degrade(seed, hr):
    keys = jax.random.split(jax.random.key(seed), len(hr))
    return degradation.degrade(keys, hr, degradation.Degradation(), SCALE)

  options = compilation.compiler_options(jax.default_backend())
  began = time.perf_counter()
  program = jax.jit(degrade, compiler_options=options).lower(0, hr).compile()
  seconds = time.perf_counter() - began
  return lambda seed: jax.block_until_ready(program(seed, hr)), seconds


def photos(count, size):
  """Cuts of scikit-image's photos, uint8."""
  from skimage import data

  random = np.random.default_rng(0)
  whole = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
  whole = [each for each in whole if min(each.shape[:2]) >= size]
  cuts = []
  for index in range(count):
    photo = whole[index % len(whole)]
    top, left = (random.integers(n - size + 1) for n in photo.shape[:2])
    cuts.append(photo[top : top + size, left : left + size])
  return np.stack(cuts)


def compare(size, batch, rounds, processes, host):
  """Prints a row: images a second of both sides."""
  images = photos(batch, size)
  run, compiled = prepare_jax(images)
  run(0)
  seconds = {"here": [], "host": []}
  if host:
    parts = np.array_split(images, processes)
    context = multiprocessing.get_context("spawn")
    pools = [context.Pool(1, begin_worker, (part,)) for part in parts]
    for pool in pools:
      pool.apply(work, (0,))
  for seed in range(1, rounds + 1):
    began = time.perf_counter()
    run(seed)
    seconds["here"].append(time.perf_counter() - began)
    if host:
      began = time.perf_counter()
      waiting = [
        pool.apply_async(work, (seed * processes + index,))
        for index, pool in enumerate(pools)
      ]
      for each in waiting:
        each.get()
      seconds["host"].append(time.perf_counter() - began)
  if host:
    for pool in pools:
      pool.close()
      pool.join()
  here = batch / statistics.median(seconds["here"])
  cells = [f"{size} x {size}", f"{here:.1f}"]
  if host:
    there = batch / statistics.median(seconds["host"])
    ratio = statistics.median(
      b / a for a, b in zip(seconds["here"], seconds["host"], strict=True)
    )
    cells += [f"{there:.1f}", f"{ratio:.2f}"]
  else:
    cells += ["", ""]
  print(f"| {' | '.join(cells)} | {compiled:.0f} |", flush=True)


# --- The TPU compiler.


def estimate(case):
  """What the TPU compiler says of a batch, in a process of its own."""
  import jax
  import jax.numpy as jnp

  from benchmarks import tpu_aot
  from esrgan_jax import degradation

  topology, chips = tpu_aot.topology_name(case["chips"])
  mesh = tpu_aot.make_mesh(topology, chips)
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(tpu_aot.mesh_lib.AXIS)
  )
  count = case["batch"] * mesh.size

  def degrade(seeds, hr):
    keys = jax.vmap(jax.random.key)(seeds)
    return degradation.degrade(keys, hr, degradation.Degradation(), SCALE)

  side = case["size"]
  program = tpu_aot.Program(
    degrade,
    (
      jax.ShapeDtypeStruct((count,), jnp.uint32, sharding=sharding),
      jax.ShapeDtypeStruct(
        (count, side, side, 3), jnp.float32, sharding=sharding
      ),
    ),
    {"out_shardings": sharding},
    "",
  )
  return tpu_aot.measure(program, mesh, hlo_file=case["hlo"])


def print_estimate(chips, size, batch, hlo):
  """Prints a row of a TPU's figures, estimated."""
  from benchmarks import tpu_aot

  case = {"chips": chips, "size": size, "batch": batch, "hlo": hlo}
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "benchmarks.degradation",
      "--case",
      json.dumps(case),
    ],
    env=os.environ | tpu_aot.ENVIRONMENT,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise SystemExit(done.stderr[-3000:])
  row = json.loads(done.stdout.splitlines()[-1])
  rate = 1e3 * batch / row["milliseconds"]
  exchanged = ", ".join(row["collectives"]) or "none"
  print(
    f"| {chips} | {batch} x {size} x {size} | {row['cycles'] / 1e6:.1f}"
    f" | {row['milliseconds']:.2f} | {rate:.0f}"
    f" | {row['peak'] / 2**30:.2f} | {row['traffic'] / 1e9:.1f}"
    f" | {exchanged} | {row['compile_seconds']:.0f} |",
    flush=True,
  )


def main(arguments=None):
  """Prints both tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--sizes", type=int, nargs="*", default=[256, 400], help="HR pixels")
  add("--batch", type=int, default=12)
  add("--rounds", type=int, default=7)
  add("--processes", type=int, default=2, help="of the host's way")
  add("--no_host", action="store_true", help="without OpenCV")
  add("--tpu", nargs="*", default=[], metavar="TPU:COUNT", help="as v5e:1")
  add("--hlo", default="", metavar="FILE", help="keep the compiled program")
  add("--case", help=argparse.SUPPRESS)
  args = parser.parse_args(arguments)
  if args.case:
    print(json.dumps(estimate(json.loads(args.case))))
    return
  packages = ("jax", "numpy", "opencv-python-headless", "pillow", "libtpu")
  print(machine.versions(*packages))
  print(machine.describe(), flush=True)
  if args.rounds:
    print(
      f"\nimages a second, median of {args.rounds} rounds of {args.batch}, in"
      f" turns with the host's {args.processes} processes\n\n"
      "| HR | here | host's way | here / host | compiled in s |\n"
      f"{'| --- ' * 5}|",
      flush=True,
    )
    for size in args.sizes:
      compare(size, args.batch, args.rounds, args.processes, not args.no_host)
  if args.tpu:
    print(
      "\n| chip | HR | Mcycles (est.) | ms (est.) | images/s (est.)"
      " | GiB, peak | GB to and from HBM (est.) | collectives"
      f" | compiled in s |\n{'| --- ' * 9}|",
      flush=True,
    )
    for chips in args.tpu:
      for size in args.sizes:
        print_estimate(chips, size, args.batch, args.hlo)


if __name__ == "__main__":
  main()
