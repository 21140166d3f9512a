"""Images as arrays: floats, hidden colour, names."""

import subprocess
import sys

import numpy as np
import pytest

from esrgan_jax import images
from esrgan_jax.images import Image
from tests import image_builders as build
from tests.image_builders import (
  noise,
)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_float_and_back_is_exact(dtype):
  every = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
  floats = images.to_float(every)
  assert floats.dtype == np.float32
  assert (floats[0], floats[-1]) == (0, 1)
  np.testing.assert_array_equal(images.from_float(floats, dtype), every)


def test_from_float_rounds_clips_and_refuses():
  got = images.from_float([-np.inf, -0.1, 0.4 / 255, 0.6 / 255, 7], np.uint8)
  assert got.tolist() == [0, 0, 0, 1, 255]
  with pytest.raises(ValueError, match="1 of 2 values are NaN"):
    images.from_float(np.array([0.0, np.nan]), np.uint8)
  with pytest.raises(ValueError, match="int32"):
    images.from_float(np.zeros(2), np.int32)
  floats = np.array([-1, 2], np.float32)
  np.testing.assert_array_equal(images.from_float(floats, np.float32), floats)
  assert images.to_float(floats) is floats
  with pytest.raises(ValueError, match="float64"):
    images.to_float(np.zeros(2))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (33, 20), (64, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bleeding_keeps_what_is_visible(shape, dtype):
  pixels = noise(*shape, 3, dtype=dtype)
  alpha = noise(*shape, dtype=dtype, seed=1)
  alpha[alpha < 0.8 * np.iinfo(dtype).max] = 0
  filled = images.bleed_colour(pixels, alpha)
  assert filled.dtype == dtype
  np.testing.assert_array_equal(filled[alpha > 0], pixels[alpha > 0])
  np.testing.assert_array_equal(filled, images.bleed_colour(pixels, alpha))
  # What lay under alpha 0 has no say.
  hidden = pixels.copy()
  hidden[alpha == 0] ^= 255
  if alpha.any():
    np.testing.assert_array_equal(filled, images.bleed_colour(hidden, alpha))
  for trivial in (np.zeros_like(alpha), np.ones_like(alpha)):
    np.testing.assert_array_equal(images.bleed_colour(pixels, trivial), pixels)


def test_bleeding_is_near():
  ndimage = pytest.importorskip("scipy.ndimage")
  # Two flat discs: away from the border between their domains, each filled
  # pixel has the colour of the disc that is nearest.
  y, x = np.mgrid[:128, :200]
  first = (y - 60) ** 2 + (x - 50) ** 2 < 300
  second = (y - 60) ** 2 + (x - 150) ** 2 < 300
  pixels = np.where(first[..., None], [200, 10, 10], [0, 0, 0])
  pixels = np.where(second[..., None], [10, 10, 200], pixels).astype(np.uint8)
  alpha = ((first | second) * 255).astype(np.uint8)
  filled = images.bleed_colour(pixels, alpha)
  distance, (ny, nx) = ndimage.distance_transform_edt(
    alpha == 0, return_indices=True
  )
  near = distance < 20
  np.testing.assert_array_equal(filled[near], pixels[ny, nx][near])
  # Elsewhere, too, never the black beneath.
  assert (filled.max(axis=2) == 200).all()


def test_a_flat_colour_fills_everything():
  pixels = noise(37, 53, 1)
  alpha = np.zeros((37, 53), np.uint8)
  alpha[30, 50] = 1
  filled = images.bleed_colour(pixels, alpha)
  assert (filled == pixels[30, 50]).all()
  with pytest.raises(ValueError, match="height and width"):
    images.bleed_colour(pixels, alpha[:5])


@pytest.mark.parametrize(
  ("pixels", "alpha", "message"),
  [
    (np.zeros((2, 2, 3)), None, "from_float"),
    (np.zeros((2, 2), np.uint8), None, r"\[2, 2\]"),
    (np.zeros((2, 0, 3), np.uint8), None, "0, 3"),
    (np.zeros((2, 2, 4), np.uint8), None, "2, 4"),
    (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8), "alpha"),
    (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint16), "alpha"),
  ],
)
def test_images_are_checked(pixels, alpha, message):
  with pytest.raises(ValueError, match=message):
    Image(pixels, alpha)


@pytest.mark.parametrize(
  ("extra", "message"),
  [
    (np.zeros((2, 3), np.uint8), r"extra is uint8 \[2, 3\]"),
    (np.zeros((2, 3, 0), np.uint8), "1 or more"),
    (np.zeros((3, 2, 1), np.uint8), r"need uint8 \[2, 3, 1"),
    (np.zeros((2, 3, 1), np.uint16), "extra is uint16"),
  ],
)
def test_further_samples_are_checked(extra, message):
  pixels = np.zeros((2, 3, 1), np.uint8)
  assert Image(pixels, extra=pixels).extra is pixels
  with pytest.raises(ValueError, match=message):
    Image(pixels, extra=extra)


def test_what_is_said_is_one_line():
  with pytest.raises(ValueError, match="record"):
    images.Metadata(record="a\nb")
  with pytest.raises(ValueError, match="record"):
    images.Metadata(record="")
  with pytest.raises(ValueError, match="size"):
    images.Metadata(size=(0, 1))
  with pytest.raises(ValueError, match="note"):
    Image(np.zeros((2, 2, 3), np.uint8), notes=("\x1b[31m",))


def test_suffixes():
  assert images.is_image_suffix("a/b.TIFF")
  assert not images.is_image_suffix("a/b.tiff.txt")
  assert not images.is_image_suffix("png")
  assert set(images.OUTPUT_SUFFIXES) <= images.INPUT_SUFFIXES


@pytest.mark.parametrize("kind", sorted(build.samples()))
def test_sizes_are_read_from_headers(tmp_path, kind):
  file = tmp_path / "image"
  for data in build.samples()[kind].values():
    file.write_bytes(data)
    shape = images.read_image(file).pixels.shape
    assert sorted(images.read_size(file)) == sorted(shape[:2])
    for length in range(0, min(len(data), 200), 7):
      file.write_bytes(data[:length])
      size = images.read_size(file)
      assert size is None or sorted(size) == sorted(shape[:2])


def test_sizes_of_what_is_no_image(tmp_path):
  assert images.read_size(tmp_path) is None
  assert images.read_size(tmp_path / "none.png") is None
  (tmp_path / "a.png").write_text("text")
  assert images.read_size(tmp_path / "a.png") is None


def test_imports_are_late(tmp_path):
  code = """
import sys, numpy, esrgan_jax
assert "PIL" not in sys.modules
from esrgan_jax import images
image = images.Image(numpy.zeros((2, 2, 3), numpy.uint8))
heavy = {"imagecodecs", "tifffile", "scipy"}
for suffix in ("png", "jpg", "webp"):
  images.write_image(f"{sys.argv[1]}/a.{suffix}", image)
print(heavy & set(sys.modules))
images.read_image(f"{sys.argv[1]}/a.png")
print(heavy & set(sys.modules))
"""
  done = subprocess.run(
    [sys.executable, "-c", code, tmp_path], capture_output=True, text=True
  )
  assert (done.stdout, done.stderr) == ("set()\n{'imagecodecs'}\n", "")
