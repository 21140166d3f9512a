"""What an LR pixel costs in windows of several sizes, on this device.

The sizes take turns. Each time, as many images of a size are upscaled as have
the pixels of the largest, by one program that is compiled before.

  python -m benchmarks.windows [--rounds 3]
"""

import argparse
import statistics
import time

import numpy as np

import esrgan_jax
from benchmarks import machine

SIZES = ((160, 160), (224, 224), (320, 320), (448, 448), (608, 672))


def main():
  """Prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--model", default="realesrgan-x4plus-anime")
  args = parser.parse_args()
  print(machine.versions("jax"))
  print(machine.describe())
  model = esrgan_jax.load(args.model, dtype="float32")
  random = np.random.default_rng(0)
  most = max(height * width for height, width in SIZES)
  taken = {size: [] for size in SIZES}
  for size in SIZES:
    model.upscale(np.zeros((*size, 3), np.uint8))
  for _ in range(args.rounds):
    for size in SIZES:
      count = round(most / (size[0] * size[1]))
      images = random.integers(0, 255, (count, *size, 3), np.uint8)
      started = time.perf_counter()
      for _ in model.stream(images):
        pass
      seconds = time.perf_counter() - started
      taken[size].append(seconds / (count * size[0] * size[1]))
  print(f"{args.model}, medians of {args.rounds} rounds")
  print("| window | us a pixel | relative to the smallest |")
  print("| --- | --- | --- |")
  least = statistics.median(taken[SIZES[0]])
  for (height, width), found in taken.items():
    cost = statistics.median(found)
    print(f"| {height} x {width} | {1e6 * cost:.1f} | {cost / least:.2f} |")


if __name__ == "__main__":
  main()
