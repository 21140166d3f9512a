"""What `--engine ray` costs on one machine, beside the plain command.

  pip install '.[ray]' scikit-image
  python -m benchmarks.ray_cost [--count 60]

Photos as in `benchmarks.folder`, small ones. Each command runs twice in a
process of its own, timed from its start to its end; the second time nothing is
compiled, and that is what is told. Ray's starts and ends a cluster as well.
"""

import argparse
import pathlib
import sys
import tempfile

from benchmarks import folder, machine


def seconds(photos, out, *options, model):
  """Runs the command; returns how long it took, compiled programs at hand."""
  command = [sys.executable, "-m", "esrgan_jax", "upscale", str(photos)]
  command += ["-m", model, "--quiet", *options]
  for turn in range(2):
    took, said = folder.timed([*command, "-o", f"{out}-{turn}"])
    if took is None:
      sys.exit(said)
  return took


def main():
  """Prints two lines, one a command."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--count", type=int, default=60)
  parser.add_argument("--low", type=int, default=24)
  parser.add_argument("--high", type=int, default=160)
  parser.add_argument("--model", default="realesrgan-x4plus-anime")
  args = parser.parse_args()
  print(machine.describe())
  print(machine.versions("jax", "ray"))
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    photos = scratch / "photos"
    photos.mkdir()
    pixels = folder.make_photos(photos, args.count, args.low, args.high, 0)
    print(f"{args.count} photos, {pixels / 1e6:.2f} megapixels, {args.model}")
    plain = seconds(photos, scratch / "plain", model=args.model)
    print(f"| plain | {plain:.1f} | 1.00 |")
    ray = seconds(photos, scratch / "ray", "--engine", "ray", model=args.model)
    print(f"| --engine ray | {ray:.1f} | {ray / plain:.2f} |")


if __name__ == "__main__":
  main()
