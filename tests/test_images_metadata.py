"""What a file says beside its pixels: read, kept, fit for the new ones."""

import random

import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.images import Image, Metadata
from tests.image_builders import (
  SRGB,
  XMP,
  cmyk_profile,
  exif_block,
  exif_of,
  grey_profile,
  make_png,
  noise,
)

XMP_UPRIGHT = XMP.replace(b'"6"', b'"1"')


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_orientation(tmp_path, orientation, suffix):
  # What the camera stored, and what it meant (EXIF 2.32, tag 274).
  turn = [
    lambda a: a,
    lambda a: a[:, ::-1],
    lambda a: a[::-1, ::-1],
    lambda a: a[::-1],
    lambda a: a.swapaxes(0, 1),
    lambda a: np.rot90(a, -1),
    lambda a: np.rot90(a, 2).swapaxes(0, 1),
    lambda a: np.rot90(a, 1),
  ][orientation - 1]
  stored = noise(16, 24, 3)
  options = {"lossless": True} if suffix == "webp" else {}
  file = tmp_path / f"a.{suffix}"
  exif = PilImage.Exif()
  exif[274] = orientation
  exif[271] = "Cam"
  if suffix == "tif":
    options["compression"] = "tiff_lzw"
  PilImage.fromarray(stored).save(file, exif=exif, dpi=(100, 200), **options)
  if suffix == "jpg":
    with PilImage.open(file) as picture:
      stored = np.asarray(picture)
  image = images.read_image(file)
  np.testing.assert_array_equal(image.pixels, turn(stored))
  if suffix != "webp":
    expected = (100, 200) if orientation < 5 else (200, 100)
    np.testing.assert_allclose(image.metadata.dpi, expected, atol=0.02)
  for out in ("png", "tif", "jpg", "webp"):
    images.write_image(tmp_path / f"out.{out}", image, overwrite=True)
    ifd, _ = exif_of(tmp_path / f"out.{out}")
    assert ifd.get(274, 1) == 1
    assert ifd[271] == "Cam"


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_of_sixteen_bits(tmp_path, orientation):
  samples = noise(4, 6, 3, dtype=np.uint16)
  extra = [(b"eXIf", exif_block(orientation))]
  (tmp_path / "a.png").write_bytes(make_png(samples, extra=extra))
  image = images.read_image(tmp_path / "a.png")
  expected = samples if orientation == 1 else np.rot90(samples, -1)
  np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_metadata_survives_two_hops(tmp_path, order, dtype, suffix):
  exif = exif_block(8, order=order, thumbnail=True)
  metadata = Metadata(icc_profile=SRGB, exif=exif, xmp=XMP, dpi=(300, 150))
  image = Image(noise(12, 20, 3, dtype=dtype), None, metadata)
  images.write_image(tmp_path / f"a.{suffix}", image)
  image = images.read_image(tmp_path / f"a.{suffix}")
  images.write_image(tmp_path / f"b.{suffix}", image)
  image = images.read_image(tmp_path / f"b.{suffix}")
  got = image.metadata
  assert got.icc_profile == SRGB
  assert got.xmp == XMP_UPRIGHT
  if suffix != "webp":
    np.testing.assert_allclose(got.dpi, (300, 150), atol=0.02)
  assert b"THUMBNAIL" not in got.exif
  ifd, sub = exif_of(tmp_path / f"b.{suffix}")
  assert ifd[271] == "Cam"
  assert ifd.get(274, 1) == 1
  assert (sub[40962], sub[40963]) == (20, 12)
  assert sub[37500] == b"maker's note"
  with PilImage.open(tmp_path / f"b.{suffix}") as picture:
    assert picture.info["icc_profile"] == SRGB


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_places_and_letters_survive(tmp_path, suffix):
  exif = PilImage.Exif()
  exif[315] = "J\xf6rg".encode("latin-1")
  exif[34853] = {1: "N", 2: (48.0, 8.0, 14.5)}
  exif[34665] = {33437: 2.8, 40965: {1: "R98"}}
  image = Image(noise(8, 8, 3), None, Metadata(exif=exif.tobytes()[6:]))
  for name in (f"a.{suffix}", f"b.{suffix}"):
    images.write_image(tmp_path / name, image)
    image = images.read_image(tmp_path / name)
  with PilImage.open(tmp_path / f"b.{suffix}") as picture:
    got = picture.getexif()
    assert got[315] == "J\xf6rg"
    assert got.get_ifd(34853) == {1: "N", 2: (48.0, 8.0, 14.5)}
    assert got.get_ifd(34665)[33437] == 2.8
    assert got.get_ifd(40965) == {1: "R98"}


def test_profiles_stay_with_their_kind_of_pixels(tmp_path):
  grey, rgb = noise(4, 4, 1), noise(4, 4, 3)
  for suffix in ("png", "tif", "jpg", "webp"):
    for pixels, profile in (
      (grey, SRGB),
      (rgb, grey_profile()),
      (rgb, cmyk_profile()),
      (rgb, b"not a profile"),
    ):
      if suffix == "webp" and profile is SRGB:
        profile = grey_profile()  # WebP has no grey: its pixels are RGB.
      file = tmp_path / f"a.{suffix}"
      meta = Metadata(icc_profile=profile)
      images.write_image(file, Image(pixels, None, meta), overwrite=True)
      with PilImage.open(file) as picture:
        assert "icc_profile" not in picture.info
  image = Image(grey, None, Metadata(icc_profile=grey_profile()))
  images.write_image(tmp_path / "b.png", image)
  got = images.read_image(tmp_path / "b.png")
  assert got.metadata.icc_profile == grey_profile()


def test_damaged_exif_is_left_out(tmp_path):
  rng = random.Random(0)
  base = exif_block(6, thumbnail=True)
  file = tmp_path / "a.png"
  for number in range(60):
    block = bytearray(base)
    for _ in range(rng.randint(1, 4)):
      block[rng.randrange(len(block))] = rng.randrange(256)
    block = bytes(block[: rng.randint(0, len(block))])
    image = Image(noise(2, 2, 3), None, Metadata(exif=block))
    file = tmp_path / ("a.tif" if number % 20 == 0 else "a.png")
    images.write_image(file, image, overwrite=True)
    np.testing.assert_array_equal(images.read_image(file).pixels, image.pixels)


def test_exif_that_is_cut_short_keeps_what_is_there(tmp_path):
  # Some programs cut blocks off, or write one tag too few: how the picture
  # lies is among the first.
  block = exif_block(6)[:40]
  file = tmp_path / "a.png"
  file.write_bytes(make_png(noise(4, 6, 3), extra=[(b"eXIf", block)]))
  image = images.read_image(file)
  assert image.pixels.shape == (6, 4, 3)
  images.write_image(tmp_path / "b.png", image)
  assert exif_of(tmp_path / "b.png")[0] == {271: "Cam", 274: 1}


def test_pointers_into_another_file_are_left_out(tmp_path):
  exif = PilImage.Exif()
  exif[271] = "Cam"
  exif[273], exif[279], exif[330] = 1000, 99, 123456
  image = Image(noise(2, 2, 3), None, Metadata(exif=exif.tobytes()))
  images.write_image(tmp_path / "a.png", image)
  assert exif_of(tmp_path / "a.png")[0] == {271: "Cam"}


def test_resolution_is_read_where_it_is_stated(tmp_path):
  for unit, factor in ((1, None), (2, 1), (3, 2.54), (None, 1)):
    exif = PilImage.Exif()
    exif[282], exif[283] = 50.0, 25.0
    if unit:
      exif[296] = unit
    file = tmp_path / "a.jpg"
    PilImage.fromarray(noise(8, 8, 3)).save(file, exif=exif)
    data = file.read_bytes()
    # Without JFIF, which would say so first.
    file.write_bytes(data[:2] + data[data.index(b"\xff\xe1") :])
    dpi = images.read_image(file).metadata.dpi
    assert dpi == (None if factor is None else (50 * factor, 25 * factor))


def test_exif_beyond_jpegs_limit_is_left_out(tmp_path):
  exif = PilImage.Exif()
  exif.get_ifd(34665)[37510] = b"comment " * 9_000
  block = exif.tobytes()
  image = Image(noise(8, 8, 3), None, Metadata(exif=block, xmp=bytes(70_000)))
  images.write_image(tmp_path / "a.jpg", image)
  got = images.read_image(tmp_path / "a.jpg").metadata
  assert got.exif is None
  assert got.xmp is None
  images.write_image(tmp_path / "a.png", image)
  assert len(images.read_image(tmp_path / "a.png").metadata.exif) > 70_000
