"""VGG19's weights from files: torchvision's, Keras's two layouts, mishaps."""

import h5py
import jax
import numpy as np
import pytest

from esrgan_jax.models import vgg
from esrgan_jax.training import perceptual
from tests import weight_builders as build
from tests.file_server import serving

_LAYERS = vgg.CONV_LAYERS


@pytest.fixture(autouse=True)
def _no_caches(tmp_path, monkeypatch):
  """Keeps this machine's caches out of the tests."""
  for name in ("ESRGAN_JAX_CACHE", "TORCH_HOME", "HOME"):
    monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture(scope="module", name="kernels")
def _kernels():
  """A net of VGG19's layers, 2 channels wide but for the image."""
  generator = np.random.default_rng(0)
  shapes = [(3, 3, 3 if name == "conv1_1" else 2, 2) for name in _LAYERS]
  return {
    name: (
      generator.normal(size=shape).astype(np.float32),
      generator.normal(size=2).astype(np.float32),
    )
    for name, shape in zip(_LAYERS, shapes, strict=True)
  }


def _write_torchvision(path, kernels):
  state = {}
  for name, (kernel, bias) in kernels.items():
    place = f"features.{vgg.LAYERS.index(name)}"
    kernel_oihw = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    state[f"{place}.weight"] = kernel_oihw
    state[f"{place}.bias"] = bias
  state["classifier.0.weight"] = np.zeros((2, 2), np.float32)
  path.write_bytes(build.zip_pth(state))
  return path


def _write_keras_2(path, kernels):
  with h5py.File(path, "w") as file:
    names = []
    for name, arrays in kernels.items():
      layer = f"block{name[4]}_conv{name[6]}"
      names.append(layer.encode())
      group = file.create_group(layer)
      weights = [f"{layer}_W_1:0", f"{layer}_b_1:0"]
      group.attrs["weight_names"] = [each.encode() for each in weights]
      for weight, array in zip(weights, arrays, strict=True):
        group[weight] = array
    file.attrs["layer_names"] = names
  return path


def _write_keras_3(path, kernels):
  with h5py.File(path, "w") as file:
    for index, arrays in enumerate(kernels.values()):
      name = "conv2d" + (f"_{index}" if index else "")
      for key, array in zip("01", arrays, strict=True):
        file[f"layers/{name}/vars/{key}"] = array
  return path


@pytest.mark.parametrize(
  ("write", "is_bgr"),
  [
    (_write_torchvision, False),
    (_write_keras_2, True),
    (_write_keras_3, True),
  ],
)
def test_every_layout_gives_the_same_kernels(tmp_path, kernels, write, is_bgr):
  path = write(tmp_path / "vgg.file", kernels)
  found = perceptual.load_vgg19(str(path))
  assert str(path) in found.description
  for name, (kernel, bias) in kernels.items():
    if is_bgr and name == "conv1_1":
      kernel = kernel[:, :, ::-1]
    np.testing.assert_array_equal(found.params[name]["kernel"], kernel)
    np.testing.assert_array_equal(found.params[name]["bias"], bias)
  expected = (
    np.array([123.68, 116.779, 103.939]) / 255
    if is_bgr
    else np.array([0.485, 0.456, 0.406])
  )
  mean = found.params["normalization"]["mean"]
  np.testing.assert_allclose(mean, expected, rtol=1e-6)


def test_auto_takes_what_is_in_a_cache(tmp_path, kernels):
  own = tmp_path / "ESRGAN_JAX_CACHE"
  own.mkdir()
  _write_torchvision(own / "vgg19-dcbb9e9d.pth", kernels)
  found = perceptual.load_vgg19("auto", fetch=False)
  assert str(own) in found.description


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
  with pytest.raises(ValueError, match=r"is not VGG19: .* lack features\.0"):
    perceptual.load_vgg19(str(path))


def test_random_is_by_seed():
  one, other = (
    perceptual.load_vgg19("random", seed=seed).params["conv1_1"]["kernel"]
    for seed in (1, 2)
  )
  expected = vgg.init_vgg19(jax.random.key(1))["conv1_1"]["kernel"]
  np.testing.assert_allclose(one, expected, rtol=1e-6)
  assert not np.array_equal(one, other)
