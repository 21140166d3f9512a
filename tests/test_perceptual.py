"""Where VGG19's weights are looked for, and what is said of them."""

import jax
import numpy as np
import pytest

from esrgan_jax.models import vgg
from esrgan_jax.training import perceptual
from esrgan_jax.training.config import complete
from esrgan_jax.training.errors import ConfigError
from tests import golden
from tests import weight_builders as build
from tests.file_server import serving


@pytest.fixture(autouse=True)
def _no_caches(tmp_path, monkeypatch):
  """Keeps this machine's caches out of the tests."""
  for name in ("ESRGAN_JAX_CACHE", "TORCH_HOME", "HOME"):
    monkeypatch.setenv(name, str(tmp_path / name))


def test_auto_takes_what_is_in_a_cache(tmp_path):
  own = tmp_path / "ESRGAN_JAX_CACHE"
  own.mkdir()
  kernels = {  # The whole network, at half its size.
    name: (np.zeros(shape, np.float16), np.ones(shape[-1], np.float16))
    for name, shape in vgg.KERNEL_SHAPES.items()
  }
  path = own / "vgg19-dcbb9e9d.pth"
  path.write_bytes(build.zip_pth(build.torchvision_state(kernels)))
  found = perceptual.load_vgg19("auto", fetch=False)
  path.unlink()
  assert str(own) in found.description
  assert found.params["conv5_4"]["kernel"].shape == (3, 3, 512, 512)
  assert found.params["conv5_4"]["bias"].tolist() == [1] * 512


def test_what_is_missing_says_where_to_get_it(tmp_path):
  for weights in ("auto", str(tmp_path / "absent.h5")):
    with pytest.raises(FileNotFoundError) as caught:
      perceptual.load_vgg19(weights, fetch=False)
    for part in (
      "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
      "--config.perceptual.weights=FILE",
      str(tmp_path / "ESRGAN_JAX_CACHE"),
    ):
      assert part in str(caught.value)
  with pytest.raises(ValueError, match="is empty"):
    perceptual.load_vgg19("")


def test_what_is_fetched_must_be_the_published_file(tmp_path, monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with serving() as server:
    monkeypatch.setattr(perceptual, "URL", server.url)
    with pytest.raises(FileNotFoundError, match="expected 574673361"):
      perceptual.load_vgg19("auto")
  assert not list((tmp_path / "ESRGAN_JAX_CACHE").iterdir())


def test_another_network_is_refused(tmp_path):
  path = tmp_path / "other.pth"
  state = {"conv.weight": np.zeros(1, np.float32)}
  path.write_bytes(build.zip_pth(state))
  with pytest.raises(ValueError, match=r"other\.pth is not VGG19: features\.0"):
    perceptual.load_vgg19(str(path))


@pytest.mark.slow
def test_random_is_by_seed():
  one, other = (
    perceptual.load_vgg19("random", seed=seed).params["conv1_1"]["kernel"]
    for seed in (1, 2)
  )
  expected = vgg.init_vgg19(jax.random.key(1))["conv1_1"]["kernel"]
  np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)
  assert not np.array_equal(one, other)


def test_a_trained_distance_may_be_the_loss():
  network = "dists"
  params, images = golden.measure_params(network), golden.measure_images()
  options = {"layer_weights": {}, "criterion": "l1", "dtype": np.float32}
  loss = perceptual.distance(network, params, **options)
  values = golden.load("measures")[network]["values"]
  found = jax.jit(lambda loss, *images: loss(*images))(loss, *images)
  np.testing.assert_allclose(found, values.mean(), rtol=1e-5)


@pytest.mark.slow
def test_vgg16_may_be_the_network():
  params, (sr, hr) = golden.measure_params("dists"), golden.measure_images()
  loss = perceptual.distance(
    "vgg16",
    params["network"],
    layer_weights={"conv1_2": 0.5, "relu2_2": 2.0},
    criterion="l2",
    dtype=None,
  )
  run = jax.jit(
    lambda x: vgg.vgg16_features(
      params["network"], x, layers=("conv1_2", "relu2_2")
    )
  )
  features = run(sr), run(hr)
  (a, c), (b, d) = (x.values() for x in features)
  expected = 0.5 * ((a - b) ** 2).mean() + 2 * ((c - d) ** 2).mean()
  np.testing.assert_allclose(jax.jit(loss)(sr, hr), expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"network": "vgg"}, "choose one of vgg19, vgg16, lpips_vgg"),
    ({"network": "vgg16"}, "VGG16 has no layer 'conv5_4'; did you mean"),
    ({"network": "dists", "weights": "random"}, "choose auto"),
    (
      {"network": "vgg16", "layers": {"conv5_3": 1.0}, "weights": "a.pth"},
      "choose auto or random",
    ),
  ],
)
def test_configs_of_networks_are_checked(settings, message):
  with pytest.raises(ConfigError, match=message):
    complete({"perceptual": settings})


def test_configs_of_networks():
  assert complete({"perceptual": {"network": "lpips_vgg"}})
  layers = {"conv1_2": 0.1, "conv5_3": 1.0}
  found = complete({"perceptual": {"network": "vgg16", "layers": layers}})
  assert found.perceptual.weights == "auto"
