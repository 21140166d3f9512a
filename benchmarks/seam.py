"""How well do edges meet? Measures what is wrong where a picture closes.

Part of a photo and its mirror image make a strip whose left and right edge meet
somewhere within the photo. It is upscaled plainly, with `--seamless`, and with
`--seamless --exact`; what that edge should have become is seen where the strip
was rolled by half, with the edge in its middle.

  python -m benchmarks.seam [--model NAME] [FOLDER]

Without a folder, the photos are those that scikit-image ships.
"""

import argparse
import platform

import jax
import numpy as np

import esrgan_jax
from benchmarks.halo import strips
from esrgan_jax.upscaling import seamless

HEIGHT, WIDTH = 32, 48  # LR pixels, before it is mirrored.
HOW = {
  "plain": None,
  "--seamless": {"exact": False},
  "--seamless --exact": {"exact": True},
}


def closed(photo):
  """Returns a strip that closes, from the middle of a photo."""
  y, x = (
    (a - b) // 2 for a, b in zip(photo.shape[:2], (HEIGHT, WIDTH), strict=True)
  )
  part = photo[y : y + HEIGHT, x : x + WIDTH].astype(np.float32) / 255
  return np.roll(np.concatenate([part, part[:, ::-1]], axis=1), WIDTH // 2, 1)


def upscale(model, strip, how):
  """Returns a result, clipped as before anybody sees it."""
  border = seamless.border_of_network(
    model.net, strip.shape, "horizontal" if how else None, **how or {}
  )
  wide = model.upscale(border.add(strip), tile=0)
  return np.clip(border.take_off(wide, model.scale), 0, 1)


def errors(model, strip):
  """Returns, for each way, the differences beside the edge, of 255."""
  half = strip.shape[1] // 2
  rolled = upscale(model, np.roll(strip, half, 1), {"exact": True})
  right = np.roll(rolled, half * model.scale, 1)
  # A pixel of the image on either side.
  beside = np.r_[-model.scale : model.scale]
  return [
    255 * np.abs(upscale(model, strip, how) - right)[:, beside]
    for how in HOW.values()
  ]


def main():
  """Prints a row a photo."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", nargs="?")
  parser.add_argument("--model", default="realesrgan-x4plus")
  args = parser.parse_args()
  model = esrgan_jax.load(args.model, dtype="float32")
  print(
    f"{args.model}; difference beside the edge in levels of 255, mean and"
    f" largest; jax {jax.__version__}, {jax.default_backend()},"
    f" {platform.machine()}"
  )
  print("| photo | " + " | ".join(HOW) + " |")
  print("| --- |" + " --- |" * len(HOW))
  for name, photo in strips(args.folder):
    cells = (
      f"{each.mean():.4f}, {each.max():.4f}"
      for each in errors(model, closed(photo))
    )
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
  main()
