"""A dense block by lines, beside the same block at once, on this CPU.

Both are compiled as the programs compile, and run in turns, on features of 64
channels that a block of the published network gets.

  python -m benchmarks.lines [--size 128 256 608] [--rounds 5]

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
from esrgan_jax.ops import dense_block, lines
from esrgan_jax.ops.convolution import convolve_on_cpu

FEAT, GROW, LAYERS = 64, 32, 5


def make_convs(random):
  """The convolutions of a block, grouped by source."""
  convs = []
  for i in range(LAYERS):
    out = FEAT if i + 1 == LAYERS else GROW
    kernel = random.normal(0, 0.05, (3, 3, FEAT + i * GROW, out))
    convs.append((kernel.astype(np.float32), np.zeros(out, np.float32)))
  return dense_block.group_convs(convs)


def at_once(x, convs):
  """The block, a layer of the whole image after the other."""
  return dense_block.forward_exact(x, convs, None, convolve=convolve_on_cpu)[0]


def by_lines(x, convs):
  """The block, some rows at a time."""
  return dense_block.forward_by_lines(
    x, convs, None, rows=lines.count_rows(x.shape, layers=LAYERS)
  )


def compile_form(form, x, convs):
  """Compiles one of the forms; returns it and its temporary bytes."""
  jitted = jax.jit(form, compiler_options=compiler_options("cpu"))
  program = jitted.lower(x, convs).compile()
  jax.block_until_ready(program(x, convs))
  return program, program.memory_analysis().temp_size_in_bytes


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, nargs="+", default=[128, 256, 608])
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  print(machine.versions("jax", "jaxlib"))
  print(machine.describe())
  print("| image | rows | at once, us a pixel | MB | by lines | MB | ratio |")
  print("| --- | --- | --- | --- | --- | --- | --- |")
  random = np.random.default_rng(0)
  convs = make_convs(random)
  for size in args.size:
    x = random.normal(size=(1, size, size, FEAT)).astype(np.float32)
    rows = lines.count_rows(x.shape, layers=LAYERS)
    if rows is None:
      print(f"| {size} x {size} | too small to be cut | | | | | |")
      continue
    forms = [compile_form(form, x, convs) for form in (at_once, by_lines)]
    times = [[], []]
    for _ in range(args.rounds):
      for (program, _), found in zip(forms, times, strict=True):
        start = time.perf_counter()
        jax.block_until_ready(program(x, convs))
        found.append((time.perf_counter() - start) / size**2 * 1e6)
    whole, cut = map(statistics.median, times)
    (_, more), (_, less) = forms
    print(
      f"| {size} x {size} | {rows} | {whole:.2f} | {more / 1e6:.0f} |"
      f" {cut:.2f} | {less / 1e6:.0f} | {cut / whole:.2f} |"
    )


if __name__ == "__main__":
  main()
