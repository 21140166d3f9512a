"""Pictures whose edges meet: rolled, or beside each other, they stay so."""

import numpy as np
import pytest

from esrgan_jax import images
from esrgan_jax.upscaling import photo, seamless, tiles, upscaler
from tests import own_network
from tests.test_upscaler import make_model


@pytest.fixture(scope="module")
def model():
  return make_model(num_feat=4, num_grow_ch=2)


def texture(*shape, dtype=np.uint8, seed=0):
  """Noise of all frequencies, which goes on over the edges."""
  random = np.random.default_rng(seed)
  noise = random.random(shape)
  for axis in (0, 1):
    noise = noise + np.roll(noise, 1, axis)
  return np.rint(noise / 4 * np.iinfo(dtype).max).astype(dtype)


def run(model, pixels, direction="both", **options):
  options = {"exact": True, **options}
  picture = images.Image(pixels)
  return photo.upscale_photo(
    model, picture, seamless=direction, **options
  ).pixels


def same(a, b, levels=1):
  """Equal but for what rounding decides: a few pixels, by a level."""
  difference = np.abs(a.astype(int) - b.astype(int))
  assert difference.max() <= levels
  assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize(
  ("direction", "shift"),
  [
    ("both", (5, 9)),
    pytest.param("horizontal", (0, 7), marks=pytest.mark.slow),
    pytest.param("vertical", (6, 0), marks=pytest.mark.slow),
  ],
)
def test_rolled_is_the_same_rolled(model, direction, shift):
  # Smaller than the network looks: it is wrapped more than once.
  pixels = texture(12, 17, 3)
  assert tiles.choose_halo(model.net, exact=True) > 17
  result = run(model, pixels, direction)
  rolled = run(model, np.roll(pixels, shift, (0, 1)), direction)
  assert result.shape == (48, 68, 3)
  same(rolled, np.roll(result, [4 * s for s in shift], (0, 1)))


def test_it_is_the_middle_of_many_beside_each_other(model):
  pixels = texture(24, 30, 1, dtype=np.uint16)
  tiled = model.upscale(np.tile(pixels, (3, 3, 1)), tile=0)
  same(run(model, pixels), tiled[96:192, 120:240], levels=3)
  plain = model.upscale(pixels, tile=0)
  assert np.abs(plain.astype(int) - tiled[96:192, 120:240]).max() > 300


def test_an_edge_that_does_not_meet_stays_as_it_is(model):
  pixels = texture(14, 18, 3)
  tiled = model.upscale(np.tile(pixels, (1, 5, 1)), tile=0)
  same(run(model, pixels, "horizontal"), tiled[:, 144:216])


@pytest.mark.parametrize(
  "width", [16, pytest.param(15, marks=pytest.mark.slow)]
)
def test_blocks_of_pixels_lie_as_without_a_border(width):
  model = make_model(num_feat=4, num_grow_ch=2, scale=2)
  assert model.net.size_multiple == 2
  pixels = texture(12, width, 3)
  result = run(model, pixels)
  assert result.shape == (24, 2 * width, 3)
  if width % 2 == 0:
    rolled = run(model, np.roll(pixels, (2, 6), (0, 1)))
    same(rolled, np.roll(result, (4, 12), (0, 1)))
  tiled = model.upscale(np.tile(pixels, (5, 5, 1)), tile=0)
  middle = (slice(48, 72), slice(4 * width, 6 * width))
  same(result, tiled[middle])


@pytest.mark.parametrize("size", [(18, 24), (60, 32), (8, 8)])
@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (1, np.uint16)])
def test_a_resize_goes_on_over_the_edges(size, channels, dtype):
  pixels = texture(24, 32, channels, dtype=dtype)
  result = photo.resize(pixels, *size, seamless="both")
  tiled = photo.resize(np.tile(pixels, (3, 3, 1)), 3 * size[0], 3 * size[1])
  middle = tiled[size[0] : 2 * size[0], size[1] : 2 * size[1]]
  np.testing.assert_allclose(result, middle, atol=1)
  across = photo.resize(pixels, *size, seamless="horizontal")
  tiled = photo.resize(np.tile(pixels, (1, 3, 1)), size[0], 3 * size[1])
  np.testing.assert_allclose(across, tiled[:, size[1] : 2 * size[1]], atol=1)


def test_other_scales_and_alpha_meet_too(model):
  pixels, alpha = texture(12, 16, 3), texture(12, 16, seed=1)
  alpha[2:5, :3] = alpha[9:, 14:] = 0
  pixels[alpha == 0] = 255
  shift = (4, 6)
  options = {"size": (18, 24), "seamless": "both", "exact": True}
  plain = images.Image(pixels, alpha=alpha)
  moved = images.Image(
    *(np.roll(plane, shift, (0, 1)) for plane in (pixels, alpha))
  )
  a, b = (photo.upscale_photo(model, p, **options) for p in (plain, moved))
  same(b.alpha, np.roll(a.alpha, (6, 9), (0, 1)))
  # Of two visible pixels that are as near, either gives its colour.
  difference = np.roll(a.pixels, (6, 9), (0, 1)).astype(int) - b.pixels
  assert np.median(np.abs(difference)) == 0


def test_a_hidden_corner_takes_its_colour_over_the_edge(model):
  pixels = np.full((12, 40, 3), 30, np.uint8)
  pixels[:, 30:] = 200
  alpha = np.full((12, 40), 255, np.uint8)
  alpha[:, :4] = 0
  pixels[:, :4] = 0
  filled = pixels.copy()
  filled[:, :2], filled[:, 2:4] = 200, 30
  result = photo.upscale_photo(
    model, images.Image(pixels, alpha=alpha), seamless="both", exact=True
  )
  same(result.pixels, run(model, filled))


@pytest.mark.slow
def test_colours_beside_a_network_of_one_channel_meet_too():
  model = make_model(num_feat=4, num_grow_ch=2, num_in_ch=1, num_out_ch=1)
  pixels, shift = texture(12, 16, 3), (3, 5)
  for size, by in ((None, (12, 20)), ((24, 32), (6, 10))):
    result = run(model, pixels, size=size)
    rolled = run(model, np.roll(pixels, shift, (0, 1)), size=size)
    same(rolled, np.roll(result, by, (0, 1)))


@pytest.mark.release
def test_at_real_width():
  model = upscaler.load("realesrgan-x4plus-anime")
  pixels = texture(8, 28, 3)
  result = run(model, pixels, "horizontal")
  rolled = run(model, np.roll(pixels, 13, 1), "horizontal")
  same(rolled, np.roll(result, 52, 1))
  near = run(model, pixels, "horizontal", exact=False)
  assert np.abs(near.astype(int) - result).max() <= 1
  plain = model.upscale(pixels, tile=0)
  assert np.abs(plain.astype(int) - result).max() > 20


def test_what_cannot_be():
  model = make_model()
  pixels = texture(8, 8, 3)
  with pytest.raises(ValueError, match="'around'; choose one of both, hor"):
    run(model, pixels, "around")
  net = own_network.Normalized()
  with pytest.raises(ValueError, match="edges cannot meet exactly: Normalized"):
    seamless.border_of_network(net, (8, 8), "both", exact=True)
