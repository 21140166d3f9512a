"""The README's picture: a part of a photo, bicubic and by realesrgan-x4plus.

The photo is scikit-image's `chelsea.png` (Stefan van der Walt, CC0). Nothing is
made worse first: its pixels are LR, and no one knows it at four times the size.

  python -m benchmarks.before_after [OUT]
"""

import argparse
import pathlib

import numpy as np
import PIL.Image
import skimage.data

import esrgan_jax

ROOT = pathlib.Path(__file__).parents[1]
_LEFT, _TOP, _WIDTH, _HEIGHT = 122, 74, 104, 84
_GAP = 4


def draw(photo: np.ndarray) -> PIL.Image.Image:
  """Returns both results side by side."""
  part = (_LEFT, _TOP, _LEFT + _WIDTH, _TOP + _HEIGHT)
  size = (4 * _WIDTH, 4 * _HEIGHT)
  image = PIL.Image.fromarray(photo)
  plain = image.resize(
    (4 * image.width, 4 * image.height), PIL.Image.Resampling.BICUBIC
  ).crop(tuple(4 * side for side in part))
  # With what is around, as in an upscaled photo.
  large = esrgan_jax.load("realesrgan-x4plus").upscale(photo)
  sharp = PIL.Image.fromarray(large).crop(tuple(4 * side for side in part))
  sheet = PIL.Image.new("RGB", (2 * size[0] + _GAP, size[1]), "white")
  sheet.paste(plain, (0, 0))
  sheet.paste(sharp, (size[0] + _GAP, 0))
  return sheet


def main():
  """Writes the picture."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "out",
    nargs="?",
    metavar="OUT",
    type=pathlib.Path,
    default=ROOT / "docs/before_after.jpg",
    help="a JPEG file, which is replaced (default: the README's)",
  )
  out = parser.parse_args().out
  if out.suffix.lower() not in {".jpg", ".jpeg"}:
    parser.error(f"{out} must end in .jpg")
  draw(skimage.data.chelsea()).save(out, quality=85, subsampling=0)


if __name__ == "__main__":
  main()
