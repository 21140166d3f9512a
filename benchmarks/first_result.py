"""From a command to its first pixel: `upscale` of one 64 x 64 picture.

Each row is the command as a process of its own, timed from its start until
its result is there under its name, and until it has ended: with nothing
compiled before (cold), and with what the cold one left (warm). Then what it
waited for in between: each program that was compiled, and what imports cost.

  python -m benchmarks.first_result [--models fast anime x4plus] [--rounds 3]

The picture is of scikit-image's photos where it is installed, else noise: the
time is the same.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import machine
from esrgan_jax import images

ROOT = pathlib.Path(__file__).parent.parent
MODELS = {
  "fast": "esrgan-jax-fast-x4",
  "anime": "realesrgan-x4plus-anime",
  "x4plus": "realesrgan-x4plus",
}
IMPORTS = {
  "Python alone": "pass",
  "numpy": "import numpy",
  "jax": "import jax",
  "esrgan_jax": "import esrgan_jax",
  "the command's own": "import esrgan_jax.__main__",
}

# The command, in a process that tells what it compiles.
_LISTENING = """
import sys, jax.monitoring
from esrgan_jax import __main__
def listen(event, seconds, **about):
  kind = event.rsplit("/", 1)[-1]
  if "/compile/" in event or "cache" in event:
    name = about.get("fun_name", "")
    print("EVENT", kind, name, seconds, file=sys.stderr)
jax.monitoring.register_event_duration_secs_listener(listen)
sys.exit(__main__.main(sys.argv[1:]))
"""


def make_picture(path, size):
  """Writes a square of a photo, or noise."""
  try:
    from skimage import data

    pixels = data.astronaut()[100 : 100 + size, 200 : 200 + size]
  except ImportError:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
  images.write_image(path, images.Image(np.ascontiguousarray(pixels)))


def environment(cache):
  """This process's, on a CPU, with a folder of compiled programs."""
  found = {**os.environ, "JAX_PLATFORMS": "cpu", "ESRGAN_JAX_CACHE": str(cache)}
  found.pop("JAX_COMPILATION_CACHE_DIR", None)
  return found


def arguments(picture, result, model):
  """The command's, all as it comes but for the model."""
  return ["upscale", str(picture), "-o", str(result), "--model", model]


def timed(picture, result, model, cache):
  """Seconds until the result is there, and until the command has ended."""
  result.unlink(missing_ok=True)
  command = [sys.executable, "-m", "esrgan_jax"]
  began = time.perf_counter()
  process = subprocess.Popen(
    command + arguments(picture, result, model),
    cwd=ROOT,
    env=environment(cache),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  seen = None
  while process.poll() is None:
    # It is renamed when it is whole.
    if seen is None and result.exists():
      seen = time.perf_counter() - began
    time.sleep(0.002)
  ended = time.perf_counter() - began
  if process.returncode:
    raise SystemExit(process.stderr.read())
  return seen or ended, ended


def programs(picture, result, model, cache):
  """Seconds of each program, by kind and name, most first."""
  result.unlink(missing_ok=True)
  done = subprocess.run(
    [sys.executable, "-c", _LISTENING, *arguments(picture, result, model)],
    cwd=ROOT,
    env=environment(cache),
    capture_output=True,
    text=True,
    check=True,
  )
  found = []
  for line in done.stderr.splitlines():
    if line.startswith("EVENT "):
      # Some names have spaces.
      kind, *name, seconds = line[6:].split(" ")
      found.append((float(seconds), kind, " ".join(name)))
  return sorted(found, reverse=True)


def import_seconds(rounds):
  """Medians of processes that import something and end, taking turns."""
  found = {name: [] for name in IMPORTS}
  for _ in range(rounds):
    for name, code in IMPORTS.items():
      began = time.perf_counter()
      subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
      )
      found[name].append(time.perf_counter() - began)
  return {name: statistics.median(each) for name, each in found.items()}


def main(argv=None):
  """Prints three tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--models", nargs="+", default=list(MODELS))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--size", type=int, default=64, help="pixels a side")
  args = parser.parse_args(argv)
  print(machine.describe())
  print(machine.versions("jax", "jaxlib", "numpy", "pillow"))

  print(f"\none picture of {args.size} x {args.size}, seconds, medians of")
  print(f"{args.rounds} rounds in turns: to the result, and to the end")
  print("\n| model | cold, result | cold, end | warm, result | warm, end |")
  print("| --- " * 5 + "|")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    picture, result = folder / "picture.png", folder / "result.png"
    make_picture(picture, args.size)
    rows = {model: [] for model in args.models}
    for turn in range(args.rounds):
      for model in args.models:
        cache = folder / f"{model.replace('/', '_')}{turn}"
        known = MODELS.get(model, model)
        both = [timed(picture, result, known, cache) for _ in range(2)]
        rows[model].append([*both[0], *both[1]])
    for model, turns in rows.items():
      medians = map(statistics.median, zip(*turns, strict=True))
      cells = " | ".join(f"{each:.2f}" for each in medians)
      print(f"| `{MODELS.get(model, model)}` | {cells} |")

    print("\nprograms of a cold run, from 0.05 s")
    print("\n| model | what | program | seconds |")
    print("| --- " * 4 + "|")
    for model in args.models:
      known = MODELS.get(model, model)
      cache = folder / "listening" / model.replace("/", "_")
      for seconds, kind, program in programs(picture, result, known, cache):
        if seconds >= 0.05:
          print(f"| `{known}` | {kind} | `{program}` | {seconds:.2f} |")

  print("\nimports, seconds of a process that does nothing else")
  print("\n| | seconds |")
  print("| --- " * 2 + "|")
  for what, seconds in import_seconds(max(args.rounds, 3)).items():
    print(f"| {what} | {seconds:.2f} |")


if __name__ == "__main__":
  main()
