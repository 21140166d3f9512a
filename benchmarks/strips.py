"""The last layers in strips, beside the same layers at once, on this CPU.

Both are compiled as the programs compile, and run in turns, on features of 64
channels: two upsamplings by 2 and the two convolutions after them.

  python -m benchmarks.strips [--size 64 128 256 608] [--rounds 5]

Prints microseconds a pixel of the image, the temporary memory of each, and the
ratio of the medians.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from benchmarks import machine
from esrgan_jax.compilation import compiler_options
from esrgan_jax.ops import rrdb

FACTORS = (2, 2)


def make_layers(random):
  """Kernels and biases of the upsamplings, `conv_hr` and `conv_last`."""

  def conv(outputs):
    kernel = random.normal(0, 0.05, (3, 3, 64, outputs))
    return kernel.astype(np.float32), np.zeros(outputs, np.float32)

  return [conv(64) for _ in FACTORS], conv(64), conv(3)


def compile_form(feat, layers, *, strips):
  """Compiles one of the forms; returns it and its temporary bytes."""

  def run(feat, layers):
    return rrdb.upsample(feat, None, *layers, factors=FACTORS, strips=strips)

  jitted = jax.jit(run, compiler_options=compiler_options("cpu"))
  program = jitted.lower(feat, layers).compile()
  jax.block_until_ready(program(feat, layers))
  return program, program.memory_analysis().temp_size_in_bytes


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--size", type=int, nargs="+", default=[64, 128, 256, 608]
  )
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  print(machine.versions("jax", "jaxlib"))
  print(machine.describe())
  print("| image | at once, us a pixel | MB | in strips | MB | ratio |")
  print("| --- | --- | --- | --- | --- | --- |")
  random = np.random.default_rng(0)
  layers = make_layers(random)
  for size in args.size:
    feat = random.normal(size=(1, size, size, 64)).astype(np.float32)
    forms = [compile_form(feat, layers, strips=cut) for cut in (False, True)]
    times = [[], []]
    for _ in range(args.rounds):
      for (program, _), found in zip(forms, times, strict=True):
        start = time.perf_counter()
        jax.block_until_ready(program(feat, layers))
        found.append((time.perf_counter() - start) / size**2 * 1e6)
    whole, cut = map(statistics.median, times)
    (_, more), (_, less) = forms
    print(
      f"| {size} x {size} | {whole:.1f} | {more / 1e6:.0f} | {cut:.1f} |"
      f" {less / 1e6:.0f} | {cut / whole:.2f} |"
    )


if __name__ == "__main__":
  main()
