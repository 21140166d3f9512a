"""Results whose downscaling is the image they were made of."""

import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.resize import imresize
from esrgan_jax.upscaling import consistency, photo
from tests.test_upscaler import make_model

make_consistent = consistency.make_consistent


def smooth(height, width, channels=3, dtype=np.uint8, seed=0):
  """A picture with edges and even parts; some of it black, some white."""
  random = np.random.default_rng(seed)
  small = random.random((height // 6 + 2, width // 6 + 2, channels)) * 1.4 - 0.2
  planes = [
    PilImage.fromarray(small[..., c].astype(np.float32)).resize(
      (width, height), PilImage.Resampling.BICUBIC
    )
    for c in range(channels)
  ]
  picture = np.stack([np.asarray(plane) for plane in planes], axis=-1)
  picture = np.clip(picture, 0, 1)
  if dtype == np.float32:
    return picture
  return np.rint(picture * np.iinfo(dtype).max).astype(dtype)


def drifted(picture):
  """The same with another colour and brightness, and noise."""
  limit = 1 if picture.dtype == np.float32 else np.iinfo(picture.dtype).max
  noise = np.random.default_rng(1).normal(0, 0.02, picture.shape)
  changed = picture / limit * [0.9, 1.0, 0.95][: picture.shape[2]] + 0.03
  changed = np.clip(changed + noise, 0, 1) * limit
  return (changed if limit == 1 else np.rint(changed)).astype(picture.dtype)


def downscaled(result, size):
  """By the library's own resize, which is MATLAB's, clipped."""
  limit = 1 if result.dtype == np.float32 else np.iinfo(result.dtype).max
  small = np.asarray(imresize(result.astype(np.float32), size=size))
  return np.clip(small, 0, limit)


def shrunk(picture, size):
  small = downscaled(picture, size)
  small = small if picture.dtype == np.float32 else np.rint(small)
  return small.astype(picture.dtype)


@pytest.mark.parametrize(
  ("size", "large", "dtype"),
  [
    ((24, 31), (96, 124), np.uint8),
    ((24, 31), (48, 62), np.uint8),
    ((24, 31), (31, 40), np.uint8),
    ((24, 31), (96, 124), np.uint16),
    ((24, 31), (96, 124), np.float32),
    ((1, 9), (4, 36), np.uint8),
    ((1, 1), (3, 3), np.uint8),
    ((9, 8), (9, 24), np.uint8),
  ],
)
def test_what_was_downscaled_is_the_image_again(size, large, dtype):
  picture = smooth(*large, dtype=dtype)
  image = shrunk(picture, size)
  result = drifted(picture)
  far = np.abs(downscaled(result, size) - image.astype(np.float64)).max()
  agreement = make_consistent(result, image)
  near = np.abs(downscaled(result, size) - image.astype(np.float64)).max()
  unit = 1 / 65535 if dtype == np.float32 else 1
  assert result.dtype == dtype
  assert agreement.before * unit == pytest.approx(far, rel=1e-3)
  assert agreement.after * unit == pytest.approx(near, rel=0.05, abs=unit / 9)
  # Of 16 bits, a level is little: black and white are in the way. Few pixels
  # of 8 bits are in the way of each other.
  allowed = {np.uint8: 0.6, np.uint16: 60, np.float32: 1e-3}[dtype]
  assert near < (allowed if large[0] >= 2 * size[0] else 1.2)
  assert far > 5 * near


def test_nothing_is_changed_that_agrees():
  picture = smooth(64, 80)
  image = shrunk(picture, (16, 20))
  result = picture.copy()
  assert make_consistent(result, image).before <= 0.5
  np.testing.assert_array_equal(result, picture)


def test_it_is_the_nearest_that_agrees():
  """Of float pictures that are far from black and white: a projection."""
  picture = 0.3 + 0.4 * smooth(32, 40, dtype=np.float32)
  image = shrunk(picture, (8, 10))
  start = picture + np.random.default_rng(0).normal(0, 0.02, picture.shape)
  start = start.astype(np.float32)
  result = start.copy()
  make_consistent(result, image)
  # So the picture is farther from where it began than from what it became.
  moved, left = (
    np.square(result - start).sum(),
    np.square(result - picture).sum(),
  )
  np.testing.assert_allclose(
    moved + left, np.square(start - picture).sum(), rtol=1e-2
  )


@pytest.mark.parametrize(
  ("seamless", "large", "size"),
  [
    (None, (120, 33), (80, 11)),
    pytest.param("both", (120, 33), (80, 11), marks=pytest.mark.slow),
    pytest.param("both", (33, 120), (11, 80), marks=pytest.mark.slow),
    pytest.param("horizontal", (100, 300), (50, 75), marks=pytest.mark.slow),
  ],
)
def test_blocks_do_not_show(monkeypatch, seamless, large, size):
  picture = smooth(*large)
  image = shrunk(picture, size)
  whole, parted = drifted(picture), drifted(picture)
  agreement = make_consistent(whole, image, seamless=seamless)
  monkeypatch.setattr(consistency, "_BLOCK", 1)
  again = make_consistent(parted, image, seamless=seamless)
  difference = np.abs(whole.astype(int) - parted)
  assert difference.max() <= 2
  assert (difference > 0).mean() < 0.02
  assert again.after == pytest.approx(agreement.after, abs=0.3)


def test_edges_that_meet_still_do():
  x, y = np.meshgrid(np.arange(64), np.arange(48))
  waves = np.sin(x / 64 * 2 * np.pi * 3) + np.cos(y / 48 * 2 * np.pi * 2 + x)
  picture = np.rint(127 + 50 * waves[..., None]).astype(np.uint8)
  tiled = np.tile(picture, (3, 3, 1))
  image = np.rint(downscaled(tiled, (36, 48))[12:24, 16:32]).astype(np.uint8)
  result = drifted(picture)
  rolled = np.roll(result, (12, 20), (0, 1))
  make_consistent(result, image, seamless="both")
  make_consistent(rolled, np.roll(image, (3, 5), (0, 1)), seamless="both")
  moved = np.roll(result, (12, 20), (0, 1)).astype(int)
  assert np.abs(moved - rolled).max() <= 1
  again = downscaled(np.tile(result, (3, 3, 1)), (36, 48))[12:24, 16:32]
  assert np.abs(again - image).max() < 0.6


@pytest.mark.slow
def test_photos_of_all_kinds():
  model = make_model(num_feat=4, num_grow_ch=2)
  alpha = smooth(12, 14, 1, seed=2)[..., 0]
  extra = smooth(12, 14, 2, seed=3)
  image = images.Image(smooth(12, 14), alpha=alpha, extra=extra)
  for size in (None, (25, 30)):
    result = photo.upscale_photo(model, image, size=size, consistent=True)
    plain = photo.upscale_photo(model, image, size=size)
    visible = alpha > 0
    for name in ("pixels", "alpha", "extra"):
      planes = [getattr(each, name) for each in (result, plain, image)]
      planes = [p[..., None] if p.ndim == 2 else p for p in planes]
      far, near = (
        np.abs(downscaled(p, (12, 14)) - planes[2])[visible].max()
        for p in planes[1::-1]
      )
      assert near < 3 < far
  with pytest.raises(ValueError, match="result of 14 x 11 pixels cannot be"):
    photo.upscale_photo(model, image, size=(11, 14), consistent=True)


def test_what_no_pixels_can_do_is_said():
  model = make_model(num_feat=4, num_grow_ch=2)
  board = np.indices((12, 14)).sum(axis=0) % 2
  pixels = np.repeat(board[..., None], 3, -1).astype(np.uint8) * 255
  result = photo.upscale_photo(model, images.Image(pixels), consistent=True)
  (note,) = result.notes
  assert note.startswith("downscaled, the result is up to ")
  assert note.endswith(" of 255 levels from the image")
