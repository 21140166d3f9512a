"""The photos in scikit-image's wheel."""

from __future__ import annotations

import importlib.util
import pathlib

from esrgan_jax import images
from esrgan_jax.data.sources.base import DataError
from esrgan_jax.data.sources.folders import ImageFolder

__all__ = ["HELD_OUT_PHOTOS", "TRAINING_PHOTOS", "SamplePhotos"]

# Inside scikit-image's wheel: no other of its photos, they would be fetched.
# The two views of the motorcycle stay together, or the test would be known.
TRAINING_PHOTOS = (
  "astronaut.png",
  "hubble_deep_field.jpg",
  "ihc.png",
  "motorcycle_left.png",
  "motorcycle_right.png",
  "retina.jpg",
)
HELD_OUT_PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg")


class SamplePhotos(ImageFolder):
  """The photos in scikit-image's wheel: enough to see training work.

  Nothing is downloaded, and scikit-image itself is not imported.

  Args:
    split: `"train"` (`TRAINING_PHOTOS`) or `"held_out"` (`HELD_OUT_PHOTOS`).
    scale: HR pixels per LR pixel.
    border: `"mirror"` or `"clamp"`, see `imresize_uint8`.
    max_pixels: Larger images are refused, see `images.read_image`.

  Raises:
    DataError: If scikit-image is not installed, or `split` is unknown.

  >>> SamplePhotos("held_out", scale=4).names
  ['chelsea.png', 'coffee.png', 'rocket.jpg']
  """

  def __init__(
    self,
    split: str,
    *,
    scale: int,
    border: str = "mirror",
    max_pixels: int = images.MAX_PIXELS,
  ):
    splits = {"train": TRAINING_PHOTOS, "held_out": HELD_OUT_PHOTOS}
    if split not in splits:
      raise DataError(
        f"sample photos have no split {split!r}; choose one of"
        f" {' '.join(splits)}"
      )
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
      raise DataError(
        "the sample photos come with scikit-image, which is not installed;"
        " pip install scikit-image, or give a folder of images"
      )
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "data"
    files = [pathlib.Path(name) for name in splits[split]]
    missing = [f.name for f in files if not (folder / f).is_file()]
    if missing:
      raise DataError(
        f"scikit-image is installed without {' '.join(missing)}; reinstall it,"
        " or give a folder of images"
      )
    self._set(folder, files, scale, border, max_pixels)
    self.title = f"sample_photos:{split}"
