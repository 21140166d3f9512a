r"""A training on a CPU with large pages, beside glibc's own way.

  python -m benchmarks.large_pages [--config configs/science.py] [--steps 150] \
    [-- --config.batch_size=2]

The training program is run as it is, and with `MALLOC_ARENA_MAX` set to what
glibc has by itself, a choice that `esrgan_jax.large_pages` leaves alone. They
take turns. The rate is that of the last steps, as the program logs it; pages
are those that the process had to be given, from its start to its end.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

from benchmarks import machine


def main():
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/science.py")
  parser.add_argument("--phase", default="psnr")
  parser.add_argument("--steps", type=int, default=150)
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument(
    "rest", nargs="*", metavar="--config.KEY=VALUE", help="after a --"
  )
  args = parser.parse_args()
  print(machine.versions("jax", "jaxlib"))
  print(machine.describe())
  usual = {"MALLOC_ARENA_MAX": str(8 * machine.num_cores())}
  sides = {"as glibc does": usual, "large pages": {}}
  rates = {name: [] for name in sides}
  for _ in range(args.rounds):
    for name, chosen in sides.items():
      rate, pages, memory = run(args, chosen)
      rates[name].append(rate)
      print(
        f"{name}: {rate:.1f} images/s, {pages:,} page faults,"
        f" {memory:.2f} GB at most",
        flush=True,
      )
  usual, large = (statistics.median(each) for each in rates.values())
  print(f"with large pages it is {large / usual:.2f} times as fast")


def run(args, chosen):
  """Images a second, page faults and the peak in GB of a training."""
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
  }
  with tempfile.TemporaryDirectory() as folder:
    phase = f"phases.{args.phase}"
    command = [
      *(sys.executable, "-m", "esrgan_jax.main"),
      *(f"--config={args.config}", f"--workdir={folder}/run"),
      f"--config.phase_order={args.phase}",
      f"--config.{phase}.num_train_steps={args.steps}",
      *args.rest,
    ]
    process = subprocess.Popen(
      command, env=environment | chosen, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
      raise SystemExit(f"the training failed: {' '.join(command)}")
    log = pathlib.Path(folder, "run", args.phase, "metrics.jsonl")
    lines = map(json.loads, log.read_text().splitlines())
    rates = [line.get("images_per_second") for line in lines]
  rate = [each for each in rates if each][-1]
  return rate, used.ru_minflt, _bytes(used) / 1e9


def _bytes(used: resource.struct_rusage) -> int:
  return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
  main()
