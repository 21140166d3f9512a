"""Photos: depth, grey, transparency, other scales, results beyond memory."""

import numpy as np
import pytest

from esrgan_jax import images
from esrgan_jax.upscaling import photo
from tests.test_upscaler import make_model


@pytest.fixture(scope="module")
def model():
  return make_model(num_feat=4, num_grow_ch=2)


def array(*shape, dtype=np.uint8, seed=0):
  limit = np.iinfo(dtype).max
  random = np.random.default_rng(seed)
  return random.integers(0, limit, shape, dtype, endpoint=True)


def test_without_alpha_it_is_the_upscaler(model):
  for shape, dtype in (((11, 14, 3), np.uint8), ((11, 14, 1), np.uint16)):
    pixels = array(*shape, dtype=dtype)
    result = photo.upscale_photo(model, images.Image(pixels))
    assert result.alpha is None
    np.testing.assert_array_equal(result.pixels, model.upscale(pixels))


def test_alpha_is_an_image_of_its_own(model):
  pixels, alpha = array(11, 14, 3), array(11, 14, seed=1)
  alpha[:4] = 0
  counts = []
  result = photo.upscale_photo(
    model,
    images.Image(pixels, alpha=alpha),
    progress=lambda *count: counts.append(count),
  )
  np.testing.assert_array_equal(result.alpha, model.upscale(alpha))
  bled = images.bleed_colour(pixels, alpha)
  assert (bled != pixels).any()
  np.testing.assert_array_equal(result.pixels, model.upscale(bled))
  assert counts == sorted(counts)
  assert (counts[0], counts[-1]) == ((0, 2), (2, 2))


def test_even_alpha_takes_no_second_pass(model):
  pixels, alpha = array(11, 14, 3), np.full((11, 14), 77, np.uint8)
  counts = []
  result = photo.upscale_photo(
    model,
    images.Image(pixels, alpha=alpha),
    size=(16, 21),
    progress=lambda *count: counts.append(count),
  )
  assert counts[-1] == (1, 1)
  assert result.alpha.shape == result.pixels.shape[:2] == (16, 21)
  assert (result.alpha == 77).all()


def test_a_large_result_lies_in_a_file(model, monkeypatch, tmp_path):
  picture = images.Image(array(11, 14, 3))
  expected = photo.upscale_photo(model, picture).pixels
  monkeypatch.setattr(photo, "MEMMAP_BYTES", 1000)
  result = photo.upscale_photo(model, picture, folder=tmp_path).pixels
  assert isinstance(result, np.memmap)
  np.testing.assert_array_equal(result, expected)
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(FileNotFoundError):
    photo.upscale_photo(model, picture, folder=tmp_path / "absent")


def test_lanczos_is_pillows_for_any_depth():
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  expected = photo.resize(pixels, 12, 17).astype(int)
  wide = photo.resize(pixels.astype(np.uint16) * 257, 12, 17)
  assert np.abs(wide / 257 - expected).max() < 1.5
  grey = photo.resize(pixels[..., :1], 12, 17)
  assert np.abs(grey[..., 0] - expected[..., 0]).max() <= 1
