"""Floats: in display form for the network, and back as the file had them."""

import io
import itertools

import numpy as np
import pytest
import tifffile
from PIL import ImageCms, ImageColor

from esrgan_jax import images
from esrgan_jax.images import Image, ImageError, Metadata, light, profiles
from tests.image_builders import SRGB, joined, noise


def waves(*shape, top=1.0, dtype=np.float32):
  """Floats from 0 to `top`, both among them."""
  values = np.linspace(0, top, int(np.prod(shape))).astype(dtype)
  return (
    np.random.default_rng(0).permutation(values).reshape(shape).astype(dtype)
  )


def test_the_curve_is_srgbs_continued():
  light_values = np.array([0, 0.002, 0.0031308, 0.2, 1, 7, 1e4])
  expected = np.where(
    light_values <= 0.0031308,
    12.92 * light_values,
    1.055 * light_values ** (1 / 2.4) - 0.055,
  )
  got = light.to_display(light_values)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  np.testing.assert_array_equal(light.to_display(-light_values), -got)
  np.testing.assert_allclose(light.to_light(got), light_values, rtol=1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_tiff(tmp_path, dtype, channels, predictor, order):
  samples = waves(33, 20, channels, dtype=dtype)
  file = tmp_path / "a.tif"
  tifffile.imwrite(
    file,
    samples if channels > 1 else samples[..., 0],
    photometric="rgb" if channels > 1 else "minisblack",
    extrasamples=["unassalpha"] if channels == 4 else None,
    predictor=predictor,
    compression="zlib",
    rowsperstrip=10,
    byteorder=order,
    metadata=None,
  )
  image = images.read_image(file)
  assert image.pixels.dtype == np.float32
  assert image.metadata.bits == (16 if dtype == np.float16 else None)
  assert bool(image.notes) == (dtype == np.float64)
  np.testing.assert_array_equal(joined(image), samples.astype(np.float32))
  assert images.write_image(file, image, overwrite=True) == ()
  kept = tifffile.imread(file)
  assert kept.dtype == (np.float16 if dtype == np.float16 else np.float32)
  np.testing.assert_array_equal(
    kept.reshape(samples.shape), samples.astype(kept.dtype)
  )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_linear_tiff_goes_through_the_curve_and_back(tmp_path, dtype, channels):
  samples, file = (
    waves(30, 20, channels, top=5, dtype=dtype),
    tmp_path / "a.tif",
  )
  linear = profiles.linear_srgb(channels)
  opened = ImageCms.ImageCmsProfile(io.BytesIO(linear)).profile
  assert opened.xcolor_space.strip() == ("RGB" if channels == 3 else "GRAY")
  samples = samples if channels == 3 else samples[..., 0]
  tifffile.imwrite(
    file,
    samples,
    photometric="rgb" if channels == 3 else "minisblack",
    iccprofile=linear,
  )
  image = images.read_image(file)
  assert image.metadata.linear
  assert image.notes == ()
  samples = samples.reshape(image.pixels.shape)
  assert 0.99 < image.pixels.max() < 1.01
  shown = light.to_display(samples)
  np.testing.assert_allclose(
    image.pixels * image.metadata.gain, shown, rtol=1e-5
  )
  assert not profiles.is_linear(image.metadata.icc_profile)
  images.write_image(file, image, overwrite=True)
  with tifffile.TiffFile(file) as tiff:
    got = tiff.asarray().reshape(samples.shape)
    np.testing.assert_allclose(got, samples, rtol=1e-5)
    assert profiles.is_linear(tiff.pages[0].iccprofile)
  # As a screen shows it: white stays white, and what is brighter is clipped.
  clipped, rounded = images.write_image(tmp_path / "a.png", image)
  assert "brighter than white" in clipped
  assert rounded == "PNG has 16 bits at most, to which it was rounded"
  got = images.read_image(tmp_path / "a.png")
  expected = np.rint(np.clip(shown, 0, 1).astype(np.float64) * 65535)
  assert np.abs(got.pixels - expected).max() <= 1
  assert got.metadata.icc_profile == image.metadata.icc_profile


@pytest.mark.parametrize(
  ("top", "white"),
  [(1, 1), (200, 255), (255, 255), (65535, 65535), (2960.5, 2913.5)],
)
def test_floats_beyond_one(tmp_path, top, white):
  # Of heights, which have no white, nearly the greatest one.
  samples, file = waves(9, 7, 1, top=top), tmp_path / "a.tif"
  tifffile.imwrite(file, samples[..., 0])
  image = images.read_image(file)
  assert abs(image.metadata.white - white) <= 0.02 * white
  white = image.metadata.white
  assert image.metadata.gain == 1
  np.testing.assert_allclose(image.pixels, samples / white, rtol=1e-6)
  images.write_image(file, image, overwrite=True)
  np.testing.assert_allclose(tifffile.imread(file), samples[..., 0], rtol=1e-6)
  notes = images.write_image(tmp_path / "a.jpg", image)
  assert len(notes) == 1 + (white != 1) + (top == 2960.5)
  assert notes[-1] == "JPEG has 8 bits at most, to which it was rounded"
  assert white == 1 or f"divided by {white:.6g}, " in notes[0]


@pytest.mark.parametrize("suffix", ["exr", "pfm", "jxl"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("top", [1.5, 3, 40, 1500])
def test_the_scale_goes_from_format_to_format(tmp_path, top, dtype, suffix):
  samples = waves(9, 7, 3, top=top, dtype=dtype)
  tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb")
  chain = ("a.tif", f"b.{suffix}", "c.tif", f"d.{suffix}")
  expected = light.to_light(samples)
  for before, after in itertools.pairwise(chain):
    image = images.read_image(tmp_path / before)
    assert images.write_image(tmp_path / after, image, lossless=True) == ()
    got = images.read_image(tmp_path / after)
    assert got.metadata.linear
    got = light.to_file(got.pixels, got.metadata, linear=True)
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-5)


def test_a_lamp_does_not_darken_the_picture(tmp_path):
  samples, file = waves(100, 100, 3), tmp_path / "a.tif"
  samples[3, 4] = 1e4
  tifffile.imwrite(file, samples, photometric="rgb")
  image = images.read_image(file)
  assert image.metadata.gain == 1
  images.write_image(file, image, overwrite=True)
  np.testing.assert_array_equal(tifffile.imread(file), samples)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted(tmp_path, value):
  samples, file = waves(8, 9, 3), tmp_path / "a.tif"
  samples[2, 3:5, 1] = value
  tifffile.imwrite(file, samples, photometric="rgb")
  with pytest.raises(ImageError, match="2 of 216 values are NaN or infinite"):
    images.read_image(file)
  with pytest.raises(ImageError, match="2 of 216 values"):
    images.write_image(tmp_path / "b.png", Image(samples))
  assert not (tmp_path / "b.png").exists()


def test_metadata_of_floats_are_sound():
  for wrong in ({"gain": 0}, {"white": -1}, {"gain": np.inf}):
    with pytest.raises(ValueError, match="above 0"):
      Metadata(**wrong)


def test_profiles_that_are_none():
  for wrong in (b"", SRGB[:140], bytes(200), SRGB[:128] + b"\xff" * 400):
    assert not profiles.is_linear(wrong)
    assert profiles.with_curves(wrong, linear=True) is None
  assert not profiles.is_linear(SRGB)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("name", ["white", "#102030", "teal"])
def test_flattening(dtype, channels, name):
  top = images.opaque(dtype)
  samples = noise(12, 9, channels + 1) / 255 * top
  samples = samples.astype(dtype)
  image = Image(samples[..., :-1], samples[..., -1])
  flat = images.flatten(image, name)
  colour = np.array(ImageColor.getrgb(name)) / 255
  grey = len(set(colour)) == 1
  assert flat.pixels.shape == (12, 9, 1 if grey and channels == 1 else 3)
  assert flat.pixels.dtype == dtype
  assert flat.alpha is None
  share = samples[..., -1:] / top
  expected = samples[..., :-1] * share + colour * top * (1 - share)
  error = np.abs(flat.pixels - expected).max()
  assert error <= (1e-6 if top == 1 else 0.5)


def test_flattening_needs_a_colour():
  image = Image(noise(4, 4, 3))
  assert images.flatten(image, "white") is image
  for wrong in ("snowwhite", "#12", "", "#10203040"):
    with pytest.raises(ValueError, match=r"opaque colour; give .*#rrggbb"):
      images.flatten(image, wrong)


def test_formats_without_a_lossless_form(tmp_path):
  image = Image(noise(4, 4, 3))
  with pytest.raises(ImageError, match=r"JPEG has no lossless form.*\.webp"):
    images.write_image(tmp_path / "a.jpg", image, lossless=True)
  assert not list(tmp_path.iterdir())
  assert not images.can_be_lossless("a.JPG")
  assert not images.can_be_lossless("a.unknown")
