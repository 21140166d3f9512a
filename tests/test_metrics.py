"""PSNR, SSIM and luma against scikit-image and values worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from esrgan_jax.metrics import psnr, rgb_to_y, ssim


def pair(*shape, seed=0, deviation=0.05):
  """A smooth image and a noisy copy of it, float64."""
  rng = np.random.default_rng(seed)
  rows, columns = np.indices(shape[-3:-1])
  hr = 0.5 + 0.4 * np.sin(rows / 3 + columns / 5)[..., None]
  hr = np.clip(hr + 0.05 * rng.standard_normal(shape), 0, 1)
  sr = np.clip(hr + deviation * rng.standard_normal(shape), 0, 1)
  return sr, hr


def reference_ssim(sr, hr):
  """scikit-image's SSIM map over whole windows, float64."""
  _, similarity = structural_similarity(
    sr,
    hr,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
    data_range=1.0,
    channel_axis=-1,
    full=True,
  )
  return similarity[5:-5, 5:-5].mean()


def reference_y(image):
  return rgb2ycbcr(image)[..., :1] / 255


def crop(image, border):
  return image[border : image.shape[0] - border, border : -border or None]


def test_luma_by_hand():
  primaries = jnp.array([[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 0]]])
  expected = np.array([16 + 65.481, 16 + 128.553, 16 + 24.966, 16]) / 255
  np.testing.assert_allclose(rgb_to_y(primaries)[0, :, 0], expected, rtol=1e-5)


def test_luma_equals_scikit_image():
  _, image = pair(2, 9, 7, 3)
  luma = rgb_to_y(jnp.asarray(image, jnp.float32))
  assert luma.shape == (2, 9, 7, 1)
  np.testing.assert_allclose(luma, reference_y(image), atol=1e-5)


@pytest.mark.parametrize("y_channel", [False, True])
@pytest.mark.parametrize("border", [0, 4])
def test_psnr_equals_scikit_image(border, y_channel):
  sr, hr = pair(24, 21, 3)
  take = reference_y if y_channel else np.asarray
  expected = peak_signal_noise_ratio(
    crop(take(hr), border), crop(take(sr), border), data_range=1.0
  )
  actual = psnr(
    jnp.asarray(sr, jnp.float32),
    jnp.asarray(hr, jnp.float32),
    crop_border=border,
    y_channel=y_channel,
  )
  np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_psnr_by_hand():
  hr = jnp.zeros((8, 8, 3))
  # One level of 255 everywhere: 20 log10(255) dB, the familiar 48.13.
  value = psnr(hr + 1 / 255, hr, crop_border=0, y_channel=False)
  np.testing.assert_allclose(value, 48.1308, atol=1e-3)
  # Luma spans 219 of 255 levels.
  value = psnr(hr + 1, hr, crop_border=0, y_channel=True)
  np.testing.assert_allclose(value, 20 * np.log10(255 / 219), atol=1e-4)


def test_psnr_of_equal_images_is_infinite():
  _, hr = pair(8, 8, 3)
  assert psnr(hr, hr, crop_border=1, y_channel=True) == np.inf


def test_the_border_does_not_count():
  _, hr = pair(24, 24, 3)
  sr = hr.copy()
  sr[:4] = sr[-4:] = sr[:, :4] = sr[:, -4:] = 0
  sr[12, 12] += 0.25
  options = {"crop_border": 4, "y_channel": False}
  clean = hr.copy()
  clean[12, 12] += 0.25
  for metric in (psnr, ssim):
    np.testing.assert_array_equal(
      metric(sr, hr, **options), metric(clean, hr, **options)
    )


@pytest.mark.parametrize("y_channel", [False, True])
@pytest.mark.parametrize("border", [0, 4])
def test_ssim_equals_scikit_image(border, y_channel):
  sr, hr = pair(26, 31, 3)
  take = reference_y if y_channel else np.asarray
  expected = reference_ssim(crop(take(sr), border), crop(take(hr), border))
  actual = ssim(
    jnp.asarray(sr, jnp.float32),
    jnp.asarray(hr, jnp.float32),
    crop_border=border,
    y_channel=y_channel,
  )
  np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize("level", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("deviation", [1e-4, 3e-3])
def test_ssim_in_float32_holds_in_flat_regions(level, deviation):
  rng = np.random.default_rng(0)
  hr = level + deviation * rng.standard_normal((32, 32, 3))
  sr = hr + deviation * rng.standard_normal((32, 32, 3))
  sr, hr = sr.astype(np.float32), hr.astype(np.float32)
  expected = reference_ssim(sr.astype(float), hr.astype(float))
  actual = ssim(sr, hr, crop_border=0, y_channel=False)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_ssim_of_constants_by_hand():
  hr = jnp.full((12, 12, 3), 0.6)
  value = ssim(hr / 2, hr, crop_border=0, y_channel=False)
  expected = (2 * 0.6 * 0.3 + 1e-4) / (0.6**2 + 0.3**2 + 1e-4)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_ssim_properties():
  sr, hr = pair(16, 16, 3)
  options = {"crop_border": 0, "y_channel": False}
  np.testing.assert_allclose(ssim(hr, hr, **options), 1.0, atol=1e-5)
  forth, back = ssim(sr, hr, **options), ssim(hr, sr, **options)
  np.testing.assert_allclose(forth, back, atol=1e-5)
  assert ssim(1 - hr, hr, **options) < 0 < forth < 1


@pytest.mark.slow
def test_ssim_has_finite_gradients_on_flat_images():
  flat = jnp.full((16, 16, 3), 0.5)
  gradient = jax.grad(lambda sr: ssim(sr, flat, crop_border=0, y_channel=True))(
    flat
  )
  assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_batches_jit_and_vmap_agree(metric):
  sr, hr = (jnp.asarray(x, jnp.float32) for x in pair(2, 2, 20, 18, 3))

  def measure(sr, hr):
    return metric(sr, hr, crop_border=2, y_channel=True)

  whole = measure(sr, hr)
  assert whole.shape == (2, 2)
  np.testing.assert_allclose(jax.jit(measure)(sr, hr), whole, rtol=1e-5)
  np.testing.assert_allclose(jax.vmap(measure)(sr, hr), whole, rtol=1e-5)
  np.testing.assert_allclose(
    measure(sr[1, 0], hr[1, 0]), whole[1, 0], rtol=1e-5
  )


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_half_precision_is_measured_in_float32(metric):
  sr, hr = (jnp.asarray(x, jnp.bfloat16) for x in pair(20, 20, 3))
  options = {"crop_border": 0, "y_channel": False}
  value = metric(sr, hr, **options)
  assert value.dtype == jnp.float32
  expected = metric(sr.astype(jnp.float32), hr.astype(jnp.float32), **options)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_grey_is_its_own_luma(metric):
  """As `evaluate` has it, which repeats grey: the range is luma's."""
  sr, hr = (x.astype(np.float32) for x in pair(2, 16, 14, 1))
  found = metric(sr, hr, crop_border=1, y_channel=True)
  sr, hr = sr.repeat(3, -1), hr.repeat(3, -1)
  expected = metric(sr, hr, crop_border=1, y_channel=True)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input_raises(metric):
  image = jnp.zeros((12, 12, 3))
  options = {"crop_border": 0, "y_channel": False}
  with pytest.raises(ValueError, match="same shape"):
    metric(image, image[None], **options)
  with pytest.raises(ValueError, match=r"\[\.\.\., H, W, C\]"):
    metric(image[..., 0], image[..., 0], **options)
  with pytest.raises(ValueError, match=r"H, W, 3\].*it has 2 channels"):
    metric(image[..., :2], image[..., :2], crop_border=0, y_channel=True)
  with pytest.raises(TypeError, match="y_channel must be True or False, got"):
    metric(image, image, crop_border=0, y_channel="no")
  with pytest.raises(TypeError, match=r"uint8.*: divide by 255"):
    metric(image.astype(jnp.uint8), image.astype(jnp.uint8), **options)
  with pytest.raises(ValueError, match="crop_border=6 leaves 0x0 of 12x12"):
    metric(image, image, crop_border=6, y_channel=False)
  with pytest.raises(ValueError, match="crop_border must be >= 0, got -1"):
    metric(image, image, crop_border=-1, y_channel=False)
  with pytest.raises(TypeError, match="crop_border"):
    metric(image, image)
  with pytest.raises(TypeError, match=r"static_argnames=\('crop_border', 'y_"):
    jax.jit(metric)(image, image, **options)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(metric, channels):
  sr, hr = (jnp.asarray(x, jnp.float32) for x in pair(16, 14, channels))
  options = {"crop_border": 1, "y_channel": False}
  value = metric(sr, hr, **options)
  if metric is ssim:  # The mean of its channels.
    singles = [
      ssim(sr[..., [c]], hr[..., [c]], **options) for c in range(channels)
    ]
    np.testing.assert_allclose(value, np.mean(singles), rtol=1e-5)
  else:
    inner = np.square(np.asarray(sr - hr, np.float64))[1:-1, 1:-1]
    np.testing.assert_allclose(value, -10 * np.log10(inner.mean()), rtol=1e-5)


@pytest.mark.parametrize(
  "metric", [psnr, pytest.param(ssim, marks=pytest.mark.slow)]
)
def test_symbolic_sizes_give_what_each_size_does(metric):
  options = {"crop_border": 2, "y_channel": True}
  run = jax.jit(lambda sr, hr: metric(sr, hr, **options))
  sizes = jax.export.symbolic_shape("n, h, w", constraints=["h>=15", "w>=15"])
  images = jax.ShapeDtypeStruct((*sizes, 3), jnp.float32)
  exported = jax.export.export(run)(images, images)
  sr, hr = np.random.default_rng(0).random((2, 1, 15, 20, 3), np.float32)
  np.testing.assert_allclose(exported.call(sr, hr), run(sr, hr), rtol=1e-5)


def test_ssim_needs_a_window():
  image = jnp.zeros((12, 12, 3))
  with pytest.raises(ValueError, match="at least 11x11"):
    ssim(image, image, crop_border=1, y_channel=False)


def test_luma_needs_three_channels():
  with pytest.raises(ValueError, match=r"\[\.\.\., H, W, 3\]"):
    rgb_to_y(jnp.zeros((4, 4, 1)))
