"""How wide must a tile's halo be? Measures the error by distance from a cut.

A strip of a photo is upscaled whole, and once more with its left third cut off.
Where the two differ, the cut is to blame; the error that a halo of h pixels
leaves is the largest difference at distance h or more from the cut.

  python -m benchmarks.halo [--model NAME] [FOLDER]

Without a folder, the photos are those that scikit-image ships.
"""

import argparse
import pathlib
import platform

import jax
import numpy as np

import esrgan_jax
from esrgan_jax.images import read_image

PHOTOS = (
  "astronaut.png",
  "chelsea.png",
  "coffee.png",
  "rocket.jpg",
  "retina.jpg",
  "hubble_deep_field.jpg",
  "motorcycle_left.png",
)
HALOS = (0, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192)
HEIGHT, WIDTH = 96, 640  # LR pixels of a strip, at most.


def strips(folder):
  """Yields names and strips from the middle of photos."""
  if folder:
    paths = sorted(pathlib.Path(folder).iterdir())
  else:
    import skimage.data

    root = pathlib.Path(skimage.data.__file__).parent
    paths = [root / name for name in PHOTOS if (root / name).exists()]
  for path in paths:
    pixels = read_image(path).pixels
    y = max(0, (pixels.shape[0] - HEIGHT) // 2)
    x = max(0, (pixels.shape[1] - WIDTH) // 2)
    strip = pixels[y : y + HEIGHT, x : x + WIDTH]
    if strip.shape[1] - strip.shape[1] // 3 > HALOS[-1]:
      yield path.name, strip


def error_by_halo(model, strip):
  """Returns the largest difference that each halo leaves, of 255."""
  cut = strip.shape[1] // 3
  strip = strip.astype(np.float32) / 255
  whole = model.upscale(strip, tile=0)[:, cut * model.scale :]
  alone = model.upscale(np.ascontiguousarray(strip[:, cut:]), tile=0)
  # A result is clipped before anybody sees it.
  difference = np.abs(np.clip(whole, 0, 1) - np.clip(alone, 0, 1))
  return [255 * difference[:, halo * model.scale :].max() for halo in HALOS]


def main():
  """Prints a row a photo, and the worst."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", nargs="?")
  parser.add_argument("--model", default="realesrgan-x4plus")
  args = parser.parse_args()
  model = esrgan_jax.load(args.model, dtype="float32")
  print(
    f"{args.model}; largest difference in levels of 255, by halo in LR pixels;"
    f" jax {jax.__version__}, {jax.default_backend()}, {platform.machine()}"
  )
  print("| photo | " + " | ".join(map(str, HALOS)) + " |")
  print("| --- |" + " --- |" * len(HALOS))
  rows = []
  for name, strip in strips(args.folder):
    rows.append(error_by_halo(model, strip))
    print(f"| {name} | " + " | ".join(f"{v:.2f}" for v in rows[-1]) + " |")
  worst = np.max(rows, axis=0)
  print("| **worst** | " + " | ".join(f"{v:.2f}" for v in worst) + " |")


if __name__ == "__main__":
  main()
