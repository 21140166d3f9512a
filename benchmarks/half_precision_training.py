r"""Whether training in bfloat16 ends where training in float32 does.

  python -m benchmarks.half_precision_training --out runs/half \
    [--config configs/quickstart.py] [--seeds 0 1 2] [--set KEY=VALUE...]

Each seed is trained twice by the same config, in processes of their own, one
after another: compute dtype float32, and bfloat16, the accelerators' default.
The table has PSNR (Y) of every phase's model on the config's validation photos,
bfloat16's less float32's, and the spread of seeds beside it. What was trained
before is not trained again: stopped, the command goes on where it was.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys

from benchmarks import machine
from esrgan_jax.evaluation import evaluator

DTYPES = ("float32", "bfloat16")
CLOSE = 0.05  # Decibels, of the means.


def train(workdir, args, seed, dtype):
  """Trains, or goes on; returns PSNR by phase."""
  found = workdir / "evaluation.json"
  if not found.exists():
    values = [f"seed={seed}", f"dtype={dtype}", *args.set]
    command = [sys.executable, "-m", "esrgan_jax.main"]
    command += [f"--config={args.config}", f"--workdir={workdir}"]
    command += [f"--config.{value}" for value in values]
    print(f"seed {seed}, {dtype}: {workdir}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
      raise SystemExit(f"seed {seed}, {dtype}: exit status {status}")
  evaluations = evaluator.read_evaluations(found)
  return {each["model"]: each["means"]["psnr_y"] for each in evaluations}


def row(cells):
  """A line of Markdown."""
  return f"| {' | '.join(cells)} |"


def main(arguments=None):
  """Trains all, and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--out", type=pathlib.Path, required=True, help="folder of workdirs")
  add("--config", default="configs/quickstart.py")
  add("--seeds", type=int, nargs="+", default=[0, 1, 2])
  add(
    "--set",
    nargs="+",
    default=[],
    metavar="KEY=VALUE",
    help="values of the config",
  )
  args = parser.parse_args(arguments)
  results = [
    {
      dtype: train(args.out / f"{dtype}_{seed}", args, seed, dtype)
      for dtype in DTYPES
    }
    for seed in args.seeds
  ]
  print(machine.versions("jax", "jaxlib", "flax"))
  print(machine.describe())
  titles = ["", *(f"seed {seed}" for seed in args.seeds), "mean", "spread"]
  shared = set.intersection(*(set(each[d]) for each in results for d in DTYPES))
  for model in [name for name in results[0]["float32"] if name in shared]:
    print(f"\n{model}, PSNR Y in dB\n")
    print(row(titles))
    print(row(["---"] * len(titles)))
    means = {}
    for dtype in DTYPES:
      values = [each[dtype][model] for each in results]
      means[dtype] = statistics.mean(values)
      spread = max(values) - min(values)
      cells = [f"{value:.3f}" for value in (*values, means[dtype], spread)]
      print(row([dtype, *cells]))
    change = means["bfloat16"] - means["float32"]
    verdict = "within" if abs(change) <= CLOSE else "NOT within"
    print(f"\nbfloat16 less float32: {change:+.3f} dB, {verdict} {CLOSE} dB")


if __name__ == "__main__":
  main()
