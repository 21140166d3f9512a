r"""Whether a large batch learns as much of as many images as a small one.

  python -m benchmarks.large_batch --out runs/batch [--config FILE]
    [--times 4 16] [--epochs 3] [--set KEY=VALUE...]

Phase one of a config (default: configs/quickstart.py) is trained at its batch,
then at so many times its batch and so many times fewer steps: as many images
are seen, by half a cosine. Each large batch has the config's rate as it is,
times the root of how many times larger it is, and times that itself, the latter
two with a warm-up of a fiftieth. The average's decay goes with the steps.

The table has PSNR (Y) on the config's validation photos at quarters of the
images; a chart in the folder draws each batch beside the published one. What
was trained before is not trained again: stopped, the command goes on where it
was.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys

from benchmarks import machine
from esrgan_jax.report import chart, chart_files
from esrgan_jax.training import config as config_lib

SHARES = (0.25, 0.5, 0.75, 1.0)
EVALUATIONS = 12
RULES = {"the same": 0.0, "root": 0.5, "linear": 1.0}


@dataclasses.dataclass(frozen=True)
class Side:
  """A batch, so many times the config's, and the power of its rate."""

  times: int
  rule: str

  @property
  def name(self):
    """In a path and a table."""
    if self.times == 1:
      return "published"
    return f"x{self.times}, {self.rule}"


def values(config, side, epochs):
  """Values of the config of one training."""
  times, phase = side.times, config.phases.psnr
  published = round(phase.num_train_steps * epochs)
  # A multiple, so that evaluations are of as many images.
  steps = published // times // EVALUATIONS * EVALUATIONS
  schedule = {
    "name": "cosine_restart",
    "periods": [steps],
    "warmup_steps": steps // 50 if side.rule != "the same" else 0,
  }
  return {
    "phase_order": "psnr",
    "batch_size": config.batch_size * times,
    "ema_decay": config.ema_decay**times,
    "phases.psnr.num_train_steps": steps,
    "phases.psnr.learning_rate": (
      phase.learning_rate * times ** RULES[side.rule]
    ),
    "phases.psnr.schedule": json.dumps(schedule),
    "eval_every_steps": steps // EVALUATIONS,
    "checkpoint_every_steps": steps // EVALUATIONS,
    "log_every_steps": max(steps // EVALUATIONS // 5, 1),
  }


def train(workdir, args, given):
  """Trains, or goes on; returns images seen and PSNR; [] if it diverged."""
  command = [sys.executable, "-m", "esrgan_jax.main"]
  command += [f"--config={args.config}", f"--workdir={workdir}"]
  command += [f"--config.{key}={value}" for key, value in given.items()]
  command += [f"--config.{value}" for value in args.set]
  log = workdir.with_suffix(".log")
  log.parent.mkdir(parents=True, exist_ok=True)
  if not (workdir / "evaluation.json").exists():
    print(f"trains {workdir}", flush=True)
    with log.open("w") as file:
      done = subprocess.run(command, stdout=file, stderr=file, check=False)
    if done.returncode:
      text = log.read_text().strip().splitlines()[-1]
      if "has diverged" not in text:
        raise SystemExit(f"{log}: {text}")
      return []
  lines = (workdir / "psnr/metrics.jsonl").read_text().splitlines()
  found = map(json.loads, lines)
  return [
    (line["step"] * given["batch_size"], line["eval/psnr_y"])
    for line in found
    if "eval/psnr_y" in line
  ]


def main(arguments=None):
  """Trains all, prints the table, and draws it."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--out", type=pathlib.Path, required=True, help="folder of workdirs")
  add("--config", default="configs/quickstart.py")
  add("--times", type=int, nargs="+", default=[4, 16])
  add("--epochs", type=float, default=3, help="times the config's steps")
  add("--rules", nargs="+", choices=RULES, default=list(RULES))
  add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the config")
  args = parser.parse_args(arguments)
  config = config_lib.complete(config_lib.read_config(args.config))
  sides = [Side(1, "the same")]
  sides += [Side(times, rule) for times in args.times for rule in args.rules]
  print(machine.versions("jax", "jaxlib", "flax", "optax"))
  print(machine.describe())
  lines, table = {}, []
  for side in sides:
    given = values(config, side, args.epochs)
    folder = args.out / side.name.replace(", ", "_").replace(" ", "_")
    found = train(folder, args, given)
    batch, steps = given["batch_size"], given["phases.psnr.num_train_steps"]
    rate = f"{given['phases.psnr.learning_rate']:.2g}"
    cells = [side.name, f"{batch}", f"{steps:,}", rate]
    if found:
      images, scores = zip(*found, strict=True)
      lines[side] = chart.Line(side.name, list(images), list(scores))
      at = [scores[round(share * len(scores)) - 1] for share in SHARES]
      cells += [f"{score:.2f}" for score in at]
    else:
      cells += ["diverged", "", "", ""]
    table.append(cells)
  seen = config.batch_size * config.phases.psnr.num_train_steps * args.epochs
  print(f"\nPSNR Y in dB, of {seen:,.0f} images\n")
  titles = ["batch", "images", "steps", "rate"]
  titles += [f"{share:.0%} of the images" for share in SHARES]
  for cells in (titles, ["---"] * len(titles), *table):
    print(f"| {' | '.join(cells)} |")
  print()
  for times in args.times:
    chosen = [line for side, line in lines.items() if side.times in (1, times)]
    drawn = chart.plan(chosen, x_label="images seen")
    file = args.out / f"batch_{times}_times.png"
    title = f"PSNR Y, batch of {config.batch_size * times}"
    file.write_bytes(chart_files.png(drawn, title))
    print(f"wrote {file}")


if __name__ == "__main__":
  main()
