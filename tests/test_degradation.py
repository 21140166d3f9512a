"""Second-order degradation: each function beside what it is modelled on."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
import scipy.special
import scipy.stats
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from skimage import data

from esrgan_jax import degradation
from esrgan_jax.degradation import (
  Degradation,
  blurring,
  draws,
  jpeg,
  kernels,
  noise,
  resizing,
)
from esrgan_jax.ops import platforms
from tests import golden

_DEFAULT = Degradation()
# What is drawn changes nothing but the size.
_NOTHING = Degradation(
  blur_sigma=(0.01, 0.01),
  kernel_list=("iso",),
  kernel_prob=(1,),
  sinc_prob=0,
  noise_range=(0, 0),
  gaussian_noise_prob=1,
  jpeg_range=(100, 100),
  second_blur_prob=0,
  noise_range2=(0, 0),
  gaussian_noise_prob2=1,
  jpeg_range2=(100, 100),
  final_sinc_prob=0,
)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _degrade(keys, hr, settings=_DEFAULT, scale=2):
  return degradation.degrade(keys, hr, settings, scale)


def _keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


@jax.jit
def _draw(keys):
  return jax.vmap(lambda key: draws.draw(key, 1)[0])(keys)


def _numbers(count):
  return _draw(_keys(count))


def _photo(height, width):
  return data.astronaut()[20 : 20 + height, 150 : 150 + width]


def _planes(photo):
  return jnp.asarray(np.moveaxis(photo, -1, 0) / 255, jnp.float32)


def _share_of_others(a, b):
  """JPEG's roundings fall either way, and take a block with them."""
  return (np.abs(np.asarray(a) - np.asarray(b)) * 255 > 1.5).mean()


# --- Settings.


def test_settings_are_hashable_and_made_of_a_section():
  section = {"resize_prob": [1, 2, 3], "jpeg_range2": [50, 60.5]}
  settings = Degradation(**section)
  assert settings.resize_prob == (1, 2, 3)
  assert hash(settings) == hash(Degradation(**section))
  assert dataclasses.replace(settings, noise_range=[3, 3]) != settings
  with pytest.raises(dataclasses.FrozenInstanceError):
    settings.sinc_prob = 1


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("resize_prob", (1, 2), "3 weights, of up, down and keep, 0 or more"),
    ("resize_prob2", (0, 0, 0), "not all 0"),
    ("resize_range", (1.2, 1.5), "with 1 between them"),
    ("resize_range", (0.0, 1.5), "from 0.01 to 8, with 1 between"),
    ("noise_range", (30, 1), "the least and the most, from 0 to 255"),
    ("noise_range", 5, "the least and the most"),
    ("noise_range2", (1, float("nan")), "the least and the most"),
    ("jpeg_range", (30, 101), "from 1 to 100"),
    ("poisson_scale_range", (-1, 1), "from 0 to 100"),
    ("blur_sigma2", ("a", 2), "from 0.01 to 100"),
    ("betap_range", (1.5, 2), "with 1 between them"),
    ("gray_noise_prob", 1.1, "a probability, from 0 to 1"),
    ("sinc_prob", True, "a probability"),
    ("blur_kernel_size", 20, "odd, from 7 to 99"),
    ("blur_kernel_size2", 5, "odd, from 7 to 99"),
    ("kernel_list", ("iso", "anisso"), "no kernel 'anisso'; did you mean 'an"),
    ("kernel_list2", "iso", "it must be kernels' names, of iso, aniso,"),
    ("kernel_prob", (1, 2), "kernel_prob has 2 weights, and kernel_list 6"),
    ("kernel_prob2", (1, -1), "it must be weights, 0 or more"),
  ],
)
def test_what_settings_cannot_be(name, value, message):
  with pytest.raises(ValueError, match=name) as caught:
    Degradation(**{name: value})
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


# --- Kernels.


def _bivariate(side, sigmas, theta, beta, *, plateau):
  """In float64, by the inverse of a covariance."""
  turn = np.array(
    [[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]]
  )
  inverse = np.linalg.inv(turn @ np.diag(np.square(sigmas)) @ turn.T)
  step = np.arange(side) - side // 2
  grid = np.stack(np.meshgrid(step, step), axis=-1)
  power = np.einsum("yxi,ij,yxj->yx", grid, inverse, grid) ** beta
  kernel = 1 / (1 + power) if plateau else np.exp(-0.5 * power)
  return np.pad(kernel / kernel.sum(), (21 - side) // 2)


def test_kernels_are_those_of_their_formulas():
  made = jax.jit(functools.partial(kernels.gaussian_kernel, within=21))
  for side, sigmas, theta, beta, plateau in (
    (7, (1.3, 1.3), 0.0, 1.0, False),
    (21, (0.2, 3.0), 0.7, 1.0, False),
    (15, (2.5, 0.9), -2.0, 0.5, False),
    (21, (1.5, 2.0), 3.0, 4.0, False),
    (13, (0.7, 2.2), 1.1, 2.0, True),
  ):
    kernel = made(side, *sigmas, theta, beta=beta, plateau=plateau)
    expected = _bivariate(side, sigmas, theta, beta, plateau=plateau)
    np.testing.assert_allclose(kernel, expected, atol=3e-6)


def test_sinc_kernels_are_scipys():
  made = jax.jit(functools.partial(kernels.sinc_kernel, within=21))
  for side, cutoff in ((7, np.pi / 3), (13, np.pi / 5), (21, np.pi)):
    step = np.arange(side) - side // 2
    radius = np.hypot(*np.meshgrid(step, step))
    with np.errstate(invalid="ignore"):
      expected = scipy.special.j1(cutoff * radius) / radius
    expected[radius == 0] = cutoff / 2
    expected = np.pad(expected / expected.sum(), (21 - side) // 2)
    np.testing.assert_allclose(made(cutoff, side), expected, atol=2e-6)


def test_bessels_function_is_scipys():
  x = np.linspace(0, 45, 5001, dtype=np.float32)
  found = kernels.bessel_j1(x, most=45.0)
  expected = scipy.special.j1(x.astype(np.float64))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_kernels_are_drawn_as_often_as_said():
  """Sides alike, sinc filters, which go below 0, as often as they are to."""
  draw = functools.partial(
    kernels.draw_kernel,
    within=13,
    kinds=("iso", "plateau_aniso"),
    weights=(3, 1),
    sinc_prob=0.25,
    sigma=(1.0, 2.0),
    betag=(0.5, 4.0),
    betap=(1.0, 2.0),
  )
  numbers = _numbers(1000)
  drawn = np.asarray(jax.jit(jax.vmap(draw))(numbers))
  np.testing.assert_allclose(drawn.sum(axis=(1, 2)), 1, atol=1e-5)
  assert (drawn < 0).any(axis=(1, 2)).mean() == pytest.approx(0.25, abs=0.05)
  sides = 1 + 2 * (drawn[:, 6, 7:] != 0).sum(axis=1)
  for side in (7, 9, 11, 13):
    assert (sides == side).mean() == pytest.approx(0.25, abs=0.05)
  final = functools.partial(kernels.draw_final_kernel, within=13, sinc_prob=0.4)
  drawn = np.asarray(jax.jit(jax.vmap(final))(numbers))
  pulse = (drawn != 0).sum(axis=(1, 2)) == 1
  assert pulse.mean() == pytest.approx(0.6, abs=0.05)


# --- Blur.


@pytest.mark.parametrize(
  "form", [blurring.blur_by_spectra, blurring.blur_by_bands]
)
def test_blur_is_scipys(form):
  random = np.random.default_rng(0)
  kernel = random.random((9, 9)) / 40
  planes = random.random((3, 40, 150))
  expected = np.stack(
    [scipy.ndimage.correlate(plane, kernel, mode="mirror") for plane in planes]
  )
  padded = np.pad(planes, ((0, 0), (4, 4), (4, 4)), mode="reflect")
  found = form(padded.astype(np.float32), kernel.astype(np.float32))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_borders_are_mirrored_where_an_image_ends():
  planes = np.random.default_rng(0).random((2, 16, 32), np.float32)
  mirrored = jax.jit(functools.partial(blurring.mirrored, margin=5))
  for height, width in ((16, 32), (6, 31), (9, 7)):
    found = mirrored(planes, height, width)[:, : height + 10, : width + 10]
    expected = np.pad(
      planes[:, :height, :width], ((0, 0), (5, 5), (5, 5)), mode="reflect"
    )
    np.testing.assert_array_equal(found, expected)


# --- Sizes.


@functools.partial(jax.jit, static_argnames=("lengths",))
def _resized(planes, mode, old, new, step=None, *, lengths):
  return resizing.resize(
    planes,
    *(
      resizing.axis_weights(
        mode, *sizes, in_length=in_length, out_length=out_length, step=step
      )
      for *sizes, in_length, out_length in zip(
        old, new, planes.shape[1:], lengths, strict=True
      )
    ),
  )


@pytest.mark.parametrize("mode", resizing.MODES)
def test_sizes_are_pytorchs(mode):
  """Also inside of arrays that are larger than both images."""
  index = resizing.MODES.index(mode)
  recorded = golden.load("degradation")
  cases = [
    (old, new, None, f"{old} to {new}") for old, new in golden.RESIZED
  ] + [
    ((14, 17), None, factor, f"times {factor}")
    for factor in golden.RESIZE_FACTORS
  ]
  for old, new, factor, case in cases:
    expected = np.moveaxis(recorded[case][mode][0], -1, 0)
    new = new or expected.shape[1:]
    image = np.moveaxis(golden.hr_image(*old), -1, 0)
    planes = np.zeros((3, 18, 21), np.float32)
    planes[:, : old[0], : old[1]] = image
    step = None if factor is None else jnp.float32(1 / factor)
    found = np.asarray(
      _resized(planes, index, old, new, step, lengths=(24, 42))
    )
    height, width = new
    np.testing.assert_allclose(
      found[:, :height, :width], expected, atol=2e-5, err_msg=case
    )
    beside = np.pad(
      found[:, :height, :width],
      ((0, 0), (0, 24 - height), (0, 42 - width)),
      mode="edge",
    )
    np.testing.assert_allclose(found, beside, atol=1e-6)


# --- Noise.

_quantile = jax.jit(noise.poisson_quantile)
_count = jax.jit(noise.count_levels)
_poisson = jax.jit(noise.poisson_noise)


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0, 3.9, 4.0, 9.0, 256.0])
def test_poissons_numbers_are_scipys(rate):
  """The share of them below any number."""
  parts = 20_000
  normal = scipy.stats.norm.ppf((np.arange(parts) + 0.5) / parts)
  drawn = np.sort(
    _quantile(np.full(parts, rate, np.float32), normal.astype(np.float32))
  )
  number = np.arange(int(drawn.max()) + 2)
  below = np.searchsorted(drawn, number, side="right") / parts
  expected = scipy.stats.poisson.cdf(number, rate)
  np.testing.assert_allclose(below, expected, rtol=0, atol=2e-3)


def test_levels_are_counted_where_the_image_is():
  levels = np.random.default_rng(0).integers(0, 256, (3, 20, 30))
  for height, width in ((1, 1), (4, 5), (20, 30)):
    found = _count(levels.astype(np.float32), (height, width))
    assert int(found) == len(np.unique(levels[:, :height, :width]))


@pytest.mark.parametrize("grey", [False, True])
def test_noise_is_as_strong_as_said(grey):
  photo = _photo(128, 96)
  planes = _planes(photo)
  normal = jax.random.normal(jax.random.key(0), planes.shape)
  gaussian = jax.jit(noise.gaussian_noise)(normal, 12.75, grey)
  assert float(gaussian.std()) == pytest.approx(0.05, rel=0.02)
  poisson = _poisson(planes, normal, 2.0, grey, (128, 96))
  light = np.asarray(planes)
  if grey:
    light = np.einsum("c,chw->hw", [0.2989, 0.587, 0.114], light)[None]
  # 256 events at most; of the variance that the number itself is.
  expected = 2 * np.sqrt(light.mean() / 256)
  assert float(poisson.std()) == pytest.approx(expected, rel=0.03)
  assert abs(float(poisson.mean())) < 0.002
  for each in (gaussian, poisson):
    alike = bool((each[0] == each[1]).all() & (each[1] == each[2]).all())
    assert alike == grey
  few = jnp.round(planes)  # Two levels: half as many events each, of 2.
  found = np.asarray(_poisson(few, normal, 1.0, grey, (128, 96)))
  if not grey:
    assert set(np.unique(found[few == 0])) == {0.0}
    np.testing.assert_allclose(2 * found % 1, 0, atol=1e-6)


# --- JPEG.

_jpeg = jax.jit(jpeg.jpeg)


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 95, 100])
def test_jpeg_is_pillows(quality):
  """Of an image in the corner of another, whose sides are no multiples."""
  photo = _photo(96, 112)
  height, width = 75, 94
  file = io.BytesIO()
  cut = PIL.Image.fromarray(photo[:height, :width])
  cut.save(file, "JPEG", quality=quality)
  opened = PIL.Image.open(file)
  tables = [np.reshape(each, (8, 8)) for each in opened.quantization.values()]
  for known, table in zip(("_BRIGHTNESS", "_COLOR"), tables, strict=True):
    steps = jpeg.quality_table(getattr(jpeg, known), jnp.float32(quality))
    np.testing.assert_array_equal(steps, table)
  expected = np.asarray(opened).astype(np.float32)
  found = _jpeg(_planes(photo), float(quality), (height, width))
  found = 255 * np.moveaxis(np.asarray(found), 0, -1)[:height, :width]
  differences = np.abs(found - expected)
  assert differences.mean() < 0.05
  # A coefficient that falls on the other side is seen in all of its block.
  assert (differences > 1.5).mean() < 0.01


def test_jpeg_keeps_what_is_flat():
  levels = jnp.arange(256.0).reshape(1, 256, 1, 1) / 255
  planes = jnp.broadcast_to(levels, (3, 256, 16, 16)).swapaxes(0, 1)
  found = jax.jit(jax.vmap(jpeg.jpeg, (0, None)))(planes, 90.0)
  assert float(abs(found - planes).max()) * 255 < 1.5


# --- All of it.


@pytest.mark.release
def test_an_image_goes_by_its_key_alone():
  hr = jnp.asarray(_photo(48, 64), jnp.float32)[None] / 255
  hr = jnp.repeat(hr, 3, axis=0)
  lr = _degrade(_keys(3), hr)
  assert lr.shape == (3, 24, 32, 3)
  assert lr.dtype == hr.dtype
  levels = np.asarray(lr) * 255
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
  assert levels.min() >= 0
  assert levels.max() <= 255
  assert len(np.unique(levels)) > 50
  assert (np.asarray(lr[0]) != lr[1]).any()
  np.testing.assert_array_equal(lr[::-1], _degrade(_keys(3)[::-1], hr))
  # On eight devices as on one, whatever generator keys are of.
  mesh = Mesh(jax.devices(), ("data",))
  rows = NamedSharding(mesh, P("data"))
  for impl in ("threefry2x32", "rbg"):
    keys = jax.random.split(jax.random.key(3, impl=impl), 8)
    images = jnp.broadcast_to(hr[:1], (8, *hr.shape[1:]))
    one = _degrade(keys, images)
    several = _degrade(jax.device_put(keys, rows), jax.device_put(images, rows))
    assert _share_of_others(one, several) < 0.01


@pytest.mark.release
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_forms_do_the_same(platform):
  hr = jnp.asarray(_photo(64, 48), jnp.float32)[None] / 255
  hr = jnp.repeat(hr, 4, axis=0)
  expected = np.asarray(_degrade(_keys(4, seed=2), hr))
  with platforms.tracing_for(platform):
    program = jax.jit(
      lambda keys, hr: degradation.degrade(keys, hr, Degradation(), 2)
    ).lower(_keys(4), hr)
  found = np.asarray(program.compile()(_keys(4, seed=2), hr))
  assert _share_of_others(found, expected) < 0.01


@pytest.mark.slow
def test_what_is_not_drawn_is_not_done():
  """A grey image stays grey, and of one size is as it was."""
  grey = jnp.full((2, 32, 32, 3), 100 / 255)
  lr = _degrade(_keys(2), grey, _NOTHING)
  assert float(abs(lr - 100 / 255).max()) * 255 < 1.5


@pytest.mark.release
def test_a_part_of_an_array_is_enough():
  """Images that are small after their first size, in arrays of their own."""
  settings = dataclasses.replace(_NOTHING, resize_prob=(1, 3, 0))
  hr = jnp.asarray(_photo(144, 160), jnp.float32)[None] / 255
  hr = jnp.repeat(hr, 6, axis=0)
  parts = np.asarray(_degrade(_keys(6), hr, settings))
  with platforms.tracing_for("cuda"):
    program = jax.jit(
      lambda keys, hr: degradation.degrade(keys, hr, settings, 2)
    ).lower(_keys(6), hr)
  whole = np.asarray(program.compile()(_keys(6), hr))
  assert _share_of_others(parts, whole) < 0.01
  assert (parts[0] != parts[1]).any()


@pytest.mark.parametrize(
  ("keys", "hr", "scale", "error", "message"),
  [
    (jax.random.key(0), np.ones((1, 8, 8, 3)), 2, ValueError, "as many as"),
    (_keys(3), np.ones((1, 8, 8, 3)), 2, ValueError, "as many as images, 1"),
    (np.arange(2), np.ones((2, 8, 8, 3)), 2, TypeError, "keys must be random"),
    (_keys(1), np.ones((1, 8, 9, 3)), 2, ValueError, "multiples of the scale"),
    (_keys(1), np.ones((1, 8, 8, 3)), 0.5, ValueError, "a whole number above"),
    (_keys(1), np.ones((8, 8, 3)), 2, ValueError, r"float \[B, H, W, 3\]"),
    (_keys(1), np.ones((1, 8, 8, 3), int), 2, TypeError, "must be float"),
  ],
)
def test_what_cannot_be_degraded(keys, hr, scale, error, message):
  if hr.dtype == np.float64:
    hr = hr.astype(np.float32)
  with pytest.raises(error, match=message):
    degradation.degrade(keys, hr, Degradation(), scale)
  with pytest.raises(TypeError, match="settings must be a Degradation"):
    degradation.degrade(_keys(1), np.ones((1, 8, 8, 3), np.float32), {}, 2)


def test_draws_are_as_often_as_said():
  number = (np.arange(1000, dtype=np.float32) + 0.5) / 1000
  weights = (0.0, 1.0, 3.0, 0.0)
  index = jax.vmap(lambda each: draws.chosen(each, weights))(number)
  np.testing.assert_array_equal(np.bincount(index) / 1000, (0, 0.25, 0.75))
  beta = np.asarray(draws.around_one(number, (0.5, 4.0)))
  assert (beta < 1).mean() == 0.5
  assert beta[beta < 1].mean() == pytest.approx(0.75, abs=0.01)
  assert beta[beta > 1].mean() == pytest.approx(2.5, abs=0.01)
  drawn = np.stack(list(_numbers(1000).values()))
  mixed = np.corrcoef(drawn)
  np.testing.assert_allclose(mixed, np.eye(len(mixed)), atol=0.15)


# --- Sharpening.


def test_usm_is_basicsrs():
  hr = golden.hr_image(30, 34)
  found = degradation.usm_sharpen(hr, radius=golden.USM_RADIUS)
  expected = golden.load("degradation")["usm"]["sharp"][0]
  np.testing.assert_allclose(found, expected, atol=2e-4)
  two = degradation.usm_sharpen(np.stack([hr, hr]), radius=20)
  np.testing.assert_allclose(two[1], found, atol=1e-6)


def test_usm_leaves_flat_images():
  flat = jnp.full((150, 30, 3), 0.25)
  np.testing.assert_allclose(degradation.usm_sharpen(flat), flat, atol=1e-6)
  with pytest.raises(ValueError, match="must be 26 pixels a side, or more"):
    degradation.usm_sharpen(flat[:25])
  with pytest.raises(ValueError, match="radius must be a whole number"):
    degradation.usm_sharpen(flat, radius=2.5)
