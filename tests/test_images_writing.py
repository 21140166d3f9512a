"""Images are written whole or not at all, and losslessly where it is so."""

import os
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.images import Image, ImageError, Metadata
from tests.image_builders import (
  SRGB,
  XMP,
  exif_block,
  exif_of,
  joined,
  noise,
  split,
)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("shape", [(1, 1), (13, 1), (1, 17), (600, 701)])
def test_lossless_round_trip(tmp_path, dtype, channels, suffix, shape):
  samples = noise(*shape, channels, dtype=dtype)
  samples[: shape[0] // 2] >>= 5  # Other filters and compressions.
  file = tmp_path / f"a.{suffix}"
  images.write_image(file, split(samples))
  image = images.read_image(file)
  assert image.pixels.dtype == dtype
  np.testing.assert_array_equal(joined(image), samples)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_several_bands_and_strings_are_read_by_others(tmp_path, suffix):
  skimage_io = pytest.importorskip("skimage.io")
  # A drawing, 7.6 MB: repetitive, so that the string matcher is chosen.
  tile = np.kron(noise(40, 40, 3) // 128 * 255, np.ones((8, 8, 1), np.uint8))
  pixels = np.tile(tile, (5, 5, 1))[:1590, :1598].astype(np.uint8)
  file = tmp_path / f"a.{suffix}"
  images.write_image(file, Image(pixels))
  with PilImage.open(file) as picture:
    np.testing.assert_array_equal(np.asarray(picture), pixels)
  np.testing.assert_array_equal(skimage_io.imread(file), pixels)
  assert file.stat().st_size < pixels.nbytes / 50


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_tiff_is_read_by_tifffile(tmp_path, channels):
  samples = noise(30, 20, channels, dtype=np.uint16)
  for order in "<>":
    image = split(samples)
    meta = Metadata(exif=exif_block(order=order))
    file = tmp_path / "a.tif"
    images.write_image(
      file, Image(image.pixels, image.alpha, meta), overwrite=True
    )
    np.testing.assert_array_equal(
      tifffile.imread(file), samples[..., 0] if channels == 1 else samples
    )


def test_big_tiff(tmp_path, monkeypatch):
  # The file that would need it has 4 GB; the limit is lowered instead.
  monkeypatch.setattr(images.encoders.tiff, "CLASSIC_BYTES", 1000)
  samples = noise(30, 20, 4, dtype=np.uint16)
  image = split(samples)
  meta = Metadata(icc_profile=SRGB, exif=exif_block(), xmp=XMP)
  file = tmp_path / "a.tif"
  images.write_image(file, Image(image.pixels, image.alpha, meta))
  with tifffile.TiffFile(file) as tiff:
    assert tiff.is_bigtiff
    np.testing.assert_array_equal(tiff.asarray(), samples)
  got = images.read_image(file)
  np.testing.assert_array_equal(joined(got), samples)
  assert got.metadata.icc_profile == SRGB
  assert exif_of(file)[1][40962] == 20


@pytest.mark.parametrize("suffix", ["bmp", "webp"])
def test_lossless_by_pillow(tmp_path, suffix):
  samples = noise(9, 11, 3)
  images.write_image(tmp_path / f"a.{suffix}", Image(samples), lossless=True)
  image = images.read_image(tmp_path / f"a.{suffix}")
  np.testing.assert_array_equal(image.pixels, samples)
  if suffix == "webp":  # Colour under alpha 0 as well.
    image = Image(samples, noise(9, 11) // 128 * 255)
    images.write_image(tmp_path / "b.webp", image, lossless=True)
    got = images.read_image(tmp_path / "b.webp")
    np.testing.assert_array_equal(joined(got), joined(image))


def test_jpeg_quality_and_subsampling(tmp_path):
  x = np.mgrid[:64, :64][1]
  # Colour that alternates by the column is lost by 4:2:0.
  samples = np.stack([x % 2 * 255, 0 * x, 255 - x % 2 * 255], 2)
  samples = samples.astype(np.uint8)
  images.write_image(tmp_path / "a.jpg", Image(samples))
  got = images.read_image(tmp_path / "a.jpg").pixels
  assert np.abs(got.astype(int) - samples).mean() < 6
  images.write_image(tmp_path / "b.jpg", Image(samples), quality=20)
  sizes = [(tmp_path / n).stat().st_size for n in ("a.jpg", "b.jpg")]
  assert sizes[0] > 1.5 * sizes[1]
  with pytest.raises(ValueError, match="quality is 0"):
    images.write_image(tmp_path / "c.jpg", Image(samples), quality=0)


def test_sixteen_bits_round_to_eight(tmp_path):
  samples = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
  images.write_image(tmp_path / "a.bmp", Image(samples))
  got = images.read_image(tmp_path / "a.bmp").pixels
  np.testing.assert_array_equal(got, np.rint(samples / 257))


@pytest.mark.parametrize("suffix", ["jpg", "bmp"])
def test_alpha_only_where_it_fits(tmp_path, suffix):
  samples, file = noise(8, 8, 3), tmp_path / f"a.{suffix}"
  alpha = np.full((8, 8), 255, np.uint8)
  images.write_image(file, Image(samples, alpha))
  assert images.read_image(file).alpha is None
  alpha[0, 0] = 254
  with pytest.raises(ImageError, match=r"transparency; choose \.png"):
    images.write_image(file, Image(samples, alpha), overwrite=True)


@pytest.mark.parametrize(
  ("suffix", "side"), [("webp", 16_384), ("jpg", 65_501)]
)
def test_sides_too_long_for_the_format(tmp_path, suffix, side):
  image = Image(np.zeros((1, side, 3), np.uint8))
  with pytest.raises(ImageError, match=rf"{side} x 1 .*{side - 1}.*\.png"):
    images.write_image(tmp_path / f"a.{suffix}", image)
  assert not list(tmp_path.iterdir())
  image = Image(image.pixels[:, 1:])
  images.write_image(tmp_path / f"a.{suffix}", image)
  assert images.read_image(tmp_path / f"a.{suffix}").pixels.shape[1] == side - 1


def test_never_overwrites_unless_asked(tmp_path):
  image, file = Image(noise(4, 4, 3)), tmp_path / "a.png"
  file.write_text("precious")
  with pytest.raises(ImageError, match=r"a\.png exists already"):
    images.write_image(file, image)
  assert file.read_text() == "precious"
  images.write_image(file, image, overwrite=True)
  assert images.read_image(file).pixels.shape == (4, 4, 3)
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_writers_wins(tmp_path, monkeypatch, links):
  if not links:  # As on exFAT.
    monkeypatch.delattr(os, "link")
  errors = []

  def write(value):
    pixels = np.full((50, 50, 1), value, np.uint8)
    try:
      images.write_image(tmp_path / "a.png", Image(pixels))
    except ImageError as error:
      errors.append(error)

  threads = [threading.Thread(target=write, args=(v,)) for v in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(errors) == 7
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
  assert np.ptp(images.read_image(tmp_path / "a.png").pixels) == 0


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_an_interrupt_leaves_no_debris(tmp_path, suffix):
  class Interrupting(np.ndarray):
    def __getitem__(self, key):
      if isinstance(key, slice) and key.start and key.start > 1500:
        raise KeyboardInterrupt
      return super().__getitem__(key)

  pixels = np.zeros((3000, 1000, 3), np.uint8).view(Interrupting)
  with pytest.raises(KeyboardInterrupt):
    images.write_image(tmp_path / f"a.{suffix}", Image(pixels))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp", "bmp"])
def test_a_full_disk_is_a_line_and_leaves_nothing(tmp_path, full_disk, suffix):
  path, image = tmp_path / f"a.{suffix}", Image(noise(100, 300, 3))
  for there in False, True:
    if there:
      path.write_text("precious")
    with (
      full_disk(),
      pytest.raises(ImageError, match=f"a.{suffix} cannot be written: [^\n]*$"),
    ):
      images.write_image(path, image, overwrite=True)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"] * there


def test_writing_says_what_is_wrong(tmp_path):
  image = Image(noise(4, 4, 3))
  with pytest.raises(ImageError, match=r"suffix '\.gif'.*choose one of \.png"):
    images.write_image(tmp_path / "a.gif", image)
  with pytest.raises(ImageError, match=r"no folder .*create it first"):
    images.write_image(tmp_path / "nowhere" / "a.png", image)


def test_a_memmap_is_written_in_bands(tmp_path):
  pixels = np.memmap(
    tmp_path / "raw", np.uint8, mode="w+", shape=(900, 1100, 3)
  )
  pixels[:] = noise(900, 1100, 3)
  images.write_image(tmp_path / "a.png", Image(pixels))
  np.testing.assert_array_equal(
    images.read_image(tmp_path / "a.png").pixels, pixels
  )
