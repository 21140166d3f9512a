"""Self-ensemble: the mean of eight transformed results, however it is run."""

import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.__main__ import main
from esrgan_jax.evaluation import evaluator
from esrgan_jax.models import registry
from esrgan_jax.models.ensemble import SelfEnsemble
from esrgan_jax.ops import strips
from esrgan_jax.upscaling import memory, stream, tiles, upscaler
from esrgan_jax.upscaling import photo as photos
from esrgan_jax.upscaling.upscaler import Upscaler
from esrgan_jax.weights import files
from tests.test_upscaler import make_model, photo, whole

# NumPy's own: quarter turns, and those of the mirror image.
WAYS = [(turns, mirrored) for turns in range(4) for mirrored in (0, 1)]


def there(image, way):
  turns, mirrored = way
  return np.rot90(image[:, ::-1] if mirrored else image, turns)


def back(image, way):
  turns, mirrored = way
  image = np.rot90(image, -turns)
  return image[:, ::-1] if mirrored else image


def mean(run, image):
  return np.mean([back(run(there(image, way)), way) for way in WAYS], axis=0)


@pytest.fixture(scope="module")
def model():
  return make_model()


@pytest.mark.parametrize(
  ("size", "options"),
  [
    ((12, 9), {}),
    pytest.param((24, 24), {}, marks=pytest.mark.slow),
    pytest.param((70, 31), {"tile": 16, "exact": True}, marks=pytest.mark.slow),
  ],
)
def test_it_is_the_mean_of_eight_results(model, size, options):
  image = photo(*size, 3)
  expected = mean(lambda x: whole(model, np.ascontiguousarray(x)), image)
  found = model.upscale(image, ensemble=True, **options)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # None of the eight is like another, or this would say nothing.
  assert np.abs(found - whole(model, image)).max() > 0.05


@pytest.mark.slow
def test_rounding_comes_last(model):
  image = photo(12, 9, 3, dtype=np.uint8)
  floats = mean(
    lambda x: whole(model, np.float32(np.ascontiguousarray(x) / 255)), image
  )
  found = model.upscale(image, ensemble=True)
  assert found.dtype == np.uint8
  expected = np.clip(floats, 0, 1) * 255
  assert np.abs(found - expected).max() <= 0.5 + 1e-3


@pytest.mark.release
def test_a_stream_is_each_alone():
  one, many = make_model(), make_model(devices=8)
  sizes = [(9, 14), (20, 7), (12, 12), (31, 17)]
  batch = [photo(*size, 3, seed=i) for i, size in enumerate(sizes)]
  batch.append(photo(11, 8, 1))
  for image, found in zip(
    batch, many.stream(batch, ensemble=True), strict=True
  ):
    expected = one.upscale(image, ensemble=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_program_is_worth_its_compiling_sooner():
  """Eight times the work for a pixel: sizes get programs of their own."""
  model = upscaler.load("realesrgan-x4plus-anime", devices=jax.devices()[:1])
  orders = [
    stream.Order(np.zeros((*size, 3), np.uint8), np.zeros((0, 0, 3), np.uint8))
    for size in [(64, 64)] * 60 + [(50, 20), (33, 61)]
  ]
  shapes = [
    {batch.shape for batch in each.engine().forecast(orders)}
    for each in (model, model.with_ensemble())
  ]
  assert [len(found) for found in shapes] == [1, 2]
  assert any((s.height, s.width) == (64, 64) for s in shapes[1])


@pytest.mark.slow
def test_in_strips(monkeypatch):
  image = photo(48, 31, 3)
  expected = mean(lambda x: whole(make_model(), np.ascontiguousarray(x)), image)
  # Of windows, and within them of the last layers.
  monkeypatch.setattr(memory, "_STRIP_SIZE", {"cpu": 2**15})
  monkeypatch.setattr(strips, "_STRIP_PIXELS", 1)
  model = make_model()
  found = model.upscale(image, ensemble=True)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  (shape, *_), *others = model._programs
  assert shape.num_strips > 2
  assert not others


@pytest.mark.slow
def test_of_a_network_that_unshuffles_it_is_that_of_the_padded_image():
  model = make_model(scale=2)
  image = photo(21, 15, 3)
  padded = tiles.pad_to_multiple(image, model.net.size_multiple)
  expected = mean(lambda x: whole(model, np.ascontiguousarray(x)), padded)
  found = model.upscale(image, ensemble=True)
  expected = expected[: found.shape[0], : found.shape[1]]
  np.testing.assert_allclose(found, expected, atol=1e-5)


class Plain(nn.Module):
  """A network that tells nothing of itself."""

  scale: int = 2

  @nn.compact
  def __call__(self, lr):
    return nn.Conv(3, (3, 2))(lr).repeat(2, -3).repeat(2, -2)


def test_a_network_that_tells_nothing():
  net = Plain()
  image = photo(10, 7, 3)
  model = Upscaler(net, net.init(jax.random.key(0), image[None])["params"])
  assert not registry.has_halves(SelfEnsemble(net))
  assert not registry.takes_mask(SelfEnsemble(net))
  expected = mean(lambda x: whole(model, np.ascontiguousarray(x)), image)
  found = model.upscale(image, ensemble=True)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_tells_what_its_network_tells(model):
  net, other = model.net, model.with_ensemble().net
  for ask in (
    registry.channels,
    registry.has_halves,
    registry.mask_gap,
    registry.receptive_radius,
    registry.size_multiple,
    registry.takes_mask,
  ):
    assert ask(other) == ask(net)
  assert model.with_ensemble().with_ensemble().net == other
  again = pickle.loads(pickle.dumps(model.with_ensemble()))
  assert again.net == other
  with pytest.raises(ValueError, match="params"):
    again.with_params({})


def test_programs_are_compiled_once(model):
  image = photo(12, 9, 3)
  model.upscale(image, ensemble=True)
  before = dict(model._programs)
  model.upscale(image, ensemble=True)
  model.with_params(jax.tree.map(jnp.negative, model.params)).upscale(
    image, ensemble=True
  )
  assert model._programs == before


def test_what_is_no_flag(model):
  with pytest.raises(TypeError, match="ensemble"):
    model.upscale(photo(8, 8, 3), ensemble="yes")


@pytest.mark.slow
def test_transparency_edges_that_meet_and_consistency(model):
  pixels = photo(16, 12, 3, dtype=np.uint8)
  alpha = photo(16, 12, dtype=np.uint8)
  image = images.Image(pixels, alpha=alpha)
  options = {"seamless": "both", "exact": True}
  found = photos.upscale_photo(model.with_ensemble(), image, **options)
  rolled = images.Image(
    np.roll(pixels, (5, 3), (0, 1)), alpha=np.roll(alpha, (5, 3), (0, 1))
  )
  again = photos.upscale_photo(model.with_ensemble(), rolled, **options)
  for name in ("pixels", "alpha"):
    expected = np.roll(getattr(found, name), (20, 12), (0, 1)).astype(int)
    assert np.abs(getattr(again, name) - expected).max() <= 1
  # Grey stays grey, and turns with the image.
  turned = images.Image(np.rot90(pixels).copy(), alpha=np.rot90(alpha).copy())
  other = photos.upscale_photo(model.with_ensemble(), turned, consistent=True)
  plain = photos.upscale_photo(model.with_ensemble(), image, consistent=True)
  for name in ("pixels", "alpha"):
    expected = np.rot90(getattr(plain, name)).astype(int)
    assert np.abs(getattr(other, name) - expected).max() <= 1


@pytest.mark.slow
def test_the_commands(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  config = {"num_feat": 8, "num_block": 1, "num_grow_ch": 4, "scale": 4}
  params = make_model().params
  params["conv_last"]["bias"] += 0.5  # Neither black nor white.
  name = str(files.write_weights(tmp_path / "m.safetensors", params, config))
  (tmp_path / "lr").mkdir()
  pictures = [photo(10, 12, 3, dtype=np.uint8, seed=n) for n in range(3)]
  first, *others = map(PilImage.fromarray, pictures[:2])
  first.save(tmp_path / "lr/a.png", save_all=True, append_images=others)
  PilImage.fromarray(pictures[2][:7]).save(tmp_path / "lr/b.png")
  out = tmp_path / "sr"
  command = ["upscale", str(tmp_path / "lr"), "-m", name, "-o", str(out)]
  assert main([*command, "--ensemble"]) == 0
  model = upscaler.load(name)
  found = [
    *images.read_frames(out / "a.png"),
    images.read_image(out / "b.png"),
  ]
  for lr, sr in zip([*pictures[:2], pictures[2][:7]], found, strict=True):
    expected = model.upscale(lr, ensemble=True).astype(int)
    assert np.abs(sr.pixels - expected).max() <= 1
  with PilImage.open(out / "b.png") as picture:
    assert "ensemble=True" in picture.info["Software"]
  (tmp_path / "hr").mkdir()
  large = PilImage.fromarray(photo(64, 48, 3, dtype=np.uint8))
  large.save(tmp_path / "hr" / "x.png")
  numbers = tmp_path / "n.json"
  command = ["evaluate", "--hr", str(tmp_path / "hr"), "--json", str(numbers)]
  assert main([*command, "-m", name, "--ensemble"]) == 0
  (found,) = evaluator.read_evaluations(numbers)
  assert found["model"].endswith(", ensemble")
  assert main([*command, "-m", "bicubic", "--ensemble", "--overwrite"]) == 2
  assert "--ensemble is for networks" in capsys.readouterr().err
