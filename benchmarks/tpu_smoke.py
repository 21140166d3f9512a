"""A TPU's first minutes: does all of it run there, and as was estimated?

The network and batch of configs/gan.py, on sample photos, with random VGG19
features: 100 steps of each phase, phase two stopped in its middle by SIGTERM,
as a preempted machine is, and gone on with; then tiles of a photo by
realesrgan-x4plus, and `upscale` itself. Time and memory stand beside what the
TPU's compiler estimates for the same programs (`benchmarks.tpu_aot`).

  launch/tpu_smoke.sh [FOLDER]          on a TPU VM: installs, then this
  python -m benchmarks.tpu_smoke FOLDER

docs/tpu.md says how to read it. It was never run on a TPU; with --small, toy
networks go the same way on a CPU in a minute, and a test runs that. The exit
status is 1 if something failed, 2 where there is no TPU. FOLDER must be new.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

from etils import epath

from benchmarks import machine
from esrgan_jax.report import metric_log

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, SMALL_STEPS = 100, 20
TILE = 256
SMALL = {
  "generator.num_feat": 8,
  "generator.num_block": 1,
  "generator.num_grow_ch": 4,
  "discriminator.num_feat": 4,
  "batch_size": 2,
  "patch_size": 32,
}
PHASES = {"psnr": "phase one, a step", "gan": "phase two, a step"}
PROGRAMS = {"psnr": "psnr_step", "gan": "gan_step", "tile": "tile"}
_PATIENCE = 600  # Seconds without a step, before a training is given up.


class Smoke:
  """One run: what was tried, and what came of it.

  Args:
    folder: Where everything goes.
    small: Toy networks, few steps.
  """

  def __init__(self, folder: pathlib.Path, *, small: bool):
    self.folder, self.small = folder, small
    self.steps = SMALL_STEPS if small else STEPS
    self.failed = False

  def check(self, what: str, good: bool, told: str = "") -> None:
    """Prints how something went."""
    self.failed |= not good
    told = f": {told}" if told else ""
    print(f"{'ok    ' if good else 'FAILED'}  {what}{told}", flush=True)

  def command(self) -> list[str]:
    """Returns the training's, the same each time."""
    settings = {
      "phases.psnr.num_train_steps": self.steps,
      "phases.gan.num_train_steps": self.steps,
      "data.sources": "sample_photos",
      "data.eval": "sample_photos:held_out",
      "perceptual.weights": "random",
      "log_every_steps": 5,
      "eval_every_steps": self.steps,
      "checkpoint_every_steps": self.steps,
      **(SMALL if self.small else {}),
    }
    return [
      *(sys.executable, "-m", "esrgan_jax.main", "--config=configs/gan.py"),
      f"--workdir={self.folder / 'run'}",
      *(f"--config.{key}={value}" for key, value in settings.items()),
    ]

  def log(self, phase: str) -> list[dict[str, Any]]:
    """Returns what training has told of a phase by now."""
    return metric_log.read_phase(epath.Path(self.folder / "run" / phase))

  def train(self) -> None:
    """Trains, is stopped in phase two, and goes on."""
    half = self.steps // 2
    with (
      open(self.folder / "training.log", "w") as file,
      subprocess.Popen(
        self.command(), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
      ) as process,
    ):
      said, changed = None, time.monotonic()
      while process.poll() is None:
        done = self.log("gan")
        if done and done[-1]["step"] >= half:
          process.send_signal(signal.SIGTERM)
          break
        count = len(done) + len(self.log("psnr"))
        if count != said:
          said, changed = count, time.monotonic()
        if time.monotonic() - changed > _PATIENCE:
          process.kill()
        time.sleep(0.05)
      status = process.wait()
    reached = self._last("gan")
    self.check(
      "phase two is stopped by SIGTERM, and saved",
      status == 143 and half <= reached < self.steps,
      f"exit status {status}, step {reached} of {self.steps}",
    )
    with open(self.folder / "training.log", "a") as file:
      done = subprocess.run(
        self.command(),
        cwd=ROOT,
        stdout=file,
        stderr=subprocess.STDOUT,
        check=False,
      )
    self.check(
      "started again, it goes on to the end",
      done.returncode == 0 and self._last("gan") == self.steps,
      f"exit status {done.returncode}, step {self._last('gan')}",
    )
    for phase in PHASES:
      rows = self.log(phase)
      steps = [row["step"] for row in rows if "images_per_second" in row]
      finite = all(
        math.isfinite(value)
        for row in rows
        for value in row.values()
        if isinstance(value, float)
      )
      self.check(
        f"{phase}: {self.steps} steps, each logged once, all finite",
        steps[-1:] == [self.steps] and steps == sorted({*steps}) and finite,
      )

  def _last(self, phase):
    return max((row["step"] for row in self.log(phase)), default=0)

  def measured(self) -> dict[str, dict[str, float]]:
    """Returns milliseconds and GiB of each phase's steps."""
    batch = SMALL["batch_size"] if self.small else 16
    found = {}
    for phase in PHASES:
      rows = [row for row in self.log(phase) if "images_per_second" in row]
      if not rows:
        continue
      # The median: where a process begins, it compiles.
      speed = statistics.median(row["images_per_second"] for row in rows)
      found[phase] = {"milliseconds": 1e3 * batch / speed}
      if memory := rows[-1].get("device_memory_gb"):
        found[phase]["gib"] = memory * 1e9 / 2**30
    return found

  def upscale(self) -> dict[str, float]:
    """Upscales tiles, then a file by the command."""
    model = "realesrgan-x4plus" + ("-anime" if self.small else "")
    size = 48 if self.small else 2 * TILE
    tile = min(TILE, size)
    arguments = [model, str(size), str(tile)]
    done = subprocess.run(
      [sys.executable, "-c", _TILES, *arguments],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    good = done.returncode == 0
    error = "" if good else done.stderr.strip().rpartition("\n")[2]
    self.check(f"tiles of {tile} x {tile} by {model}", good, error)
    figures = json.loads(done.stdout.splitlines()[-1]) if good else {}
    photo, result = self.folder / "photo.png", self.folder / "photo_x4.png"
    subprocess.run(
      [sys.executable, "-c", _PHOTO, str(photo), str(size)],
      cwd=ROOT,
      check=True,
    )
    command = [sys.executable, "-m", "esrgan_jax", "upscale", str(photo)]
    done = subprocess.run([*command, "-m", model], cwd=ROOT, check=False)
    self.check(
      f"upscale {photo.name}",
      done.returncode == 0 and result.exists(),
      f"exit status {done.returncode}; look at {result}",
    )
    return figures

  def estimates(self, chips: str) -> dict[str, dict[str, Any]]:
    """Returns rows of `benchmarks.tpu_aot`; none where libtpu is not here."""
    target = self.folder / "estimates.json"
    command = [sys.executable, "-m", "benchmarks.tpu_aot", "--chips", chips]
    programs = ["psnr_step"] if self.small else PROGRAMS.values()
    command += ["--programs", *programs, "--json", str(target)]
    if self.small:  # One is enough to try this.
      command += ["--set", *(f"{k}={v}" for k, v in SMALL.items())]
      command += ["--num_block", "1"]
    with open(self.folder / "estimates.log", "w") as file:
      done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=file,
        stderr=subprocess.STDOUT,
        check=False,
      )
    rows = json.loads(target.read_text()) if target.exists() else []
    if done.returncode or any("error" in row for row in rows):
      print(f"note    no estimates, or not all: {self.folder}/estimates.log")
    return {row["program"]: row for row in rows if "error" not in row}


# Each in a process of its own: a TPU belongs to one at a time.
_DEVICES = """
import jax
print(*jax.devices())
print(jax.devices()[0].platform)
"""
_PHOTO = """
import sys
from benchmarks import upscale
from esrgan_jax import images
images.write_image(sys.argv[1], images.Image(upscale.photo(int(sys.argv[2]))))
"""
_TILES = """
import json, sys, time
import jax
import numpy as np
import esrgan_jax
from benchmarks import upscale
name, size, tile = sys.argv[1], *map(int, sys.argv[2:])
device = jax.local_devices()[0]
model = esrgan_jax.load(name, devices=[device])
image = upscale.photo(size)
times = []
for _ in range(4):  # The first compiles.
  began = time.perf_counter()
  result = model.upscale(image, tile=tile)
  times.append(time.perf_counter() - began)
assert result.shape == (4 * size, 4 * size, 3) and result.std() > 1
count = (size // tile) ** 2
figures = {"milliseconds": 1e3 * sorted(times[1:])[1] / count}
stats = device.memory_stats() or {}
if "peak_bytes_in_use" in stats:
  figures["gib"] = stats["peak_bytes_in_use"] / 2**30
print(json.dumps(figures))
"""


def table(
  measured: dict[str, dict[str, float]], estimates: dict[str, dict[str, Any]]
) -> list[str]:
  """Returns lines of what was measured beside what was estimated.

  >>> rows = table({"psnr": {"milliseconds": 36.0}}, {"psnr_step":
  ...   {"milliseconds": 30.0, "peak": 2**30}})
  >>> rows[2]
  '| phase one, a step | 36.0 | 30.0 | 1.20 | - | 1.00 | - |'
  """

  def ratio(a, b):
    return f"{a / b:.2f}" if a and b else "-"

  lines = [
    "| | ms, measured | ms, estimated | ratio | GiB, measured | GiB, planned |"
    " ratio |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  names = PHASES | {"tile": f"a tile of {TILE} x {TILE}"}
  for key, name in names.items():
    found, plan = measured.get(key, {}), estimates.get(PROGRAMS[key], {})
    seconds, planned = found.get("milliseconds"), plan.get("milliseconds")
    used, peak = found.get("gib"), plan.get("peak", 0) / 2**30
    cells = [
      f"{seconds:.1f}" if seconds else "-",
      f"{planned:.1f}" if planned else "-",
      ratio(seconds, planned),
      f"{used:.2f}" if used else "-",
      f"{peak:.2f}" if peak else "-",
      ratio(used, peak),
    ]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return lines


def _devices():
  """Returns what JAX finds, in words, and the platform's name."""
  done = subprocess.run(
    [sys.executable, "-c", _DEVICES],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return done.stdout.splitlines()[-2:]


def main(arguments: list[str] | None = None) -> int:
  """Runs everything; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", help="where everything goes; must be new")
  parser.add_argument(
    "--chips", default="v5e:1", help="estimates are for (default: %(default)s)"
  )
  parser.add_argument("--small", action="store_true", help="toy networks")
  args = parser.parse_args(arguments)
  folder = pathlib.Path(args.folder).absolute()
  if folder.exists():
    parser.error(f"{folder}: it is there; name a new folder")
  devices, platform = _devices()
  if platform != "tpu" and not args.small:
    # On a CPU the full network's steps would take days.
    parser.error(
      f"JAX finds no TPU here but {devices}; is libtpu installed, and no other"
      " process at the chip? --small (SMALL=1) tries toy networks on a CPU"
    )
  try:
    folder.mkdir(parents=True)
  except OSError as error:
    parser.error(f"{folder}: {error.strerror}; name a new folder")
  began = time.monotonic()
  print(devices)
  print(machine.describe())
  print(machine.versions("jax", "jaxlib", "libtpu", "flax"), flush=True)
  smoke = Smoke(folder, small=args.small)
  smoke.train()
  measured = smoke.measured()
  measured["tile"] = smoke.upscale()
  estimates = smoke.estimates(args.chips)
  print(f"\nestimates are for {args.chips}\n")
  print(*table(measured, estimates), sep="\n")
  facts = {"measured": measured, "estimates": estimates, "small": args.small}
  (folder / "smoke.json").write_text(json.dumps(facts, indent=1))
  print(f"\n{time.monotonic() - began:.0f} s; all of it is in {folder}")
  print("FAILED" if smoke.failed else "passed")
  return int(smoke.failed)


if __name__ == "__main__":
  sys.exit(main())
