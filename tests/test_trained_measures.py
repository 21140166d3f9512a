"""LPIPS, DISTS and NIQE: against PyTorch and BasicSR, and on padded images."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import esrgan_jax
from esrgan_jax import download, naturalness
from esrgan_jax.evaluation import measures
from esrgan_jax.evaluation.compared import Compared
from esrgan_jax.evaluation.evaluator import bicubic
from esrgan_jax.resize import imresize_uint8
from esrgan_jax.weights import perceptual
from esrgan_jax.weights.formats import numpy_pickle
from tests import golden

RUNS = {
  "lpips": esrgan_jax.lpips,
  "lpips_vgg": esrgan_jax.lpips,
  "dists": esrgan_jax.dists,
}


SLOW_VGG = pytest.param("lpips_vgg", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["lpips", SLOW_VGG, "dists"])
def test_values_are_pytorchs_whatever_is_beyond_an_images_size(name):
  params, images = golden.measure_params(name), golden.measure_images()
  padding = ((0, 0), (0, 31), (0, 11), (0, 0))
  sr, hr = (
    np.pad(x, padding, constant_values=v)
    for x, v in zip(images, (7, -7), strict=True)
  )
  size = np.array(images[0].shape[1:3])
  found = jax.jit(RUNS[name])(params, sr, hr, size=size)
  expected = golden.load("measures")[name]["values"]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_gradients_are_pytorchs(name):
  params, (sr, hr) = golden.measure_params(name), golden.measure_images()

  @jax.jit
  def run(sr):
    values, pull = jax.vjp(lambda sr: RUNS[name](params, sr, hr), sr)
    return values, pull(jnp.ones(2))[0]

  values, gradient = run(sr)
  expected = golden.load("measures")[name]
  np.testing.assert_allclose(values, expected["values"], rtol=1e-5)
  largest = np.abs(expected["gradient"]).max()
  np.testing.assert_allclose(
    gradient[:1], expected["gradient"], atol=1e-4 * largest
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_images_of_several_sizes_share_a_program(name):
  params, (sr, hr) = golden.measure_params(name), golden.measure_images()
  sizes = np.array([[33, 36], [32, 31]])
  run = jax.jit(functools.partial(RUNS[name], params))
  expected = [
    run(*(x[i, :height, :width] for x in (sr, hr)))
    for i, (height, width) in enumerate(sizes)
  ]
  np.testing.assert_allclose(run(sr, hr, size=sizes), expected, rtol=1e-5)


@pytest.mark.release
@pytest.mark.parametrize("name", RUNS)
def test_leading_axes_vmap_and_half_precision(name):
  params, (sr, hr) = golden.measure_params(name), golden.measure_images()
  run = functools.partial(RUNS[name], params)
  values = jax.jit(run)(sr, hr)
  np.testing.assert_allclose(jax.jit(jax.vmap(run))(sr, hr), values, rtol=1e-5)
  found = jax.jit(run)(sr[None], hr[None])
  np.testing.assert_allclose(found[0], values, rtol=1e-5)
  half = jax.jit(functools.partial(run, dtype=jnp.bfloat16))(sr, hr)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, values, rtol=0.1)
  assert not np.array_equal(half, values)
  np.testing.assert_allclose(jax.jit(run)(hr, hr), 0, atol=1e-6)
  # Black is flat: features of no length at all, and no gradient.
  black = jnp.zeros((1, 40, 40, 3))
  gradient = jax.jit(jax.grad(lambda x: run(x, black).sum()))(black)
  assert np.isfinite(gradient).all()


# BasicSR 1.4.2 `metrics/niqe.py::niqe`, of two images and a drawn model.
BASICSR = [8.503207, 8.413181]


def natural_model():
  """A model of natural photos, as if there were one: drawn."""
  spread = golden.draw("niqe spread", 36, 36).astype(np.float64)
  covariance = spread @ spread.T / 36 + np.eye(36) / 10
  return np.abs(golden.draw("niqe mean", 36)).astype(np.float64), covariance


def test_niqe_is_basicsrs():
  data = pytest.importorskip("skimage.data")
  params = naturalness.niqe_params(*natural_model())
  run = jax.jit(functools.partial(esrgan_jax.niqe, params))
  photo = data.chelsea()[20:, 100:400]
  images = (
    np.stack([photo, 255 - photo[::-1], 0 * photo]).astype(np.float32) / 255
  )
  *found, flat = run(images)
  np.testing.assert_allclose(found, BASICSR, atol=1e-4)
  assert np.isnan(flat)


def test_niqe_needs_two_blocks():
  params = naturalness.niqe_params(*natural_model())
  image = np.zeros((96, 191, 3), np.float32)
  with pytest.raises(
    ValueError, match="two blocks of 96x96 pixels, got 96x191"
  ):
    esrgan_jax.niqe(params, image)


def test_parameters_of_another_kind_are_refused():
  image = np.zeros((40, 40, 3), np.float32)
  params = golden.measure_params("dists")
  with pytest.raises(
    TypeError, match="params must be LPIPS's, of load_measure"
  ):
    jax.eval_shape(esrgan_jax.lpips, params, image, image)
  params["alpha"]["relu1_2"] = np.ones(3, np.float32)
  with pytest.raises(ValueError, match=r"alpha/relu1_2 of shape \(2,\)"):
    jax.eval_shape(esrgan_jax.dists, params, image, image)
  with pytest.raises(ValueError, match="integers"):
    esrgan_jax.dists(params, image, image, size=jnp.ones(3, jnp.int32))
  with pytest.raises(ValueError, match="covariance is none"):
    naturalness.niqe_params(np.zeros(36), -np.eye(36))


# --- Files.


def test_pickles_of_arrays():
  tree = {
    "a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "c": np.asfortranarray(np.eye(3)[:2]),
  }
  for protocol in (2, 3, 4):
    found = numpy_pickle.read_arrays(pickle.dumps(tree, protocol))
    np.testing.assert_array_equal(found["a"]["b"], tree["a"]["b"])
    np.testing.assert_array_equal(found["c"], tree["c"])


@pytest.mark.parametrize(
  "value",
  [
    np.array([None]),
    np.array(["text"]),
    [np.zeros(2)],
    {1: np.zeros(2)},
    np.zeros(2, [("a", "f4")]),
    functools.partial(print, 3),
  ],
)
def test_other_pickles_are_refused(value):
  with pytest.raises(ValueError, match=r"refused|malformed|array|name"):
    numpy_pickle.read_arrays(pickle.dumps({"a": value}, 2))


def test_damaged_pickles_are_refused():
  whole = pickle.dumps({"a": np.arange(9.0)}, 2)
  for end in range(len(whole)):
    with pytest.raises(numpy_pickle.DamagedFileError):
      numpy_pickle.read_arrays(whole[:end])


def test_what_is_missing_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path))
  monkeypatch.setattr("sys.path", [])  # No package is found.
  for name in perceptual.MEASURES:
    with pytest.raises(
      FileNotFoundError, match=r": (pip install|put https)"
    ) as caught:
      perceptual.load_measure(name, fetch=False)
    assert "\n" not in str(caught.value)
  other = tmp_path / "basicsr/niqe_pris_params.npz"
  other.parent.mkdir()
  other.write_bytes(b"other")
  with pytest.raises(
    download.ChecksumError, match=f"{other} is not the publish"
  ):
    perceptual.load_measure("niqe")


# --- The trained ones, where they are installed.


def _photo():
  data = pytest.importorskip("skimage.data")
  hr = data.astronaut()[60:309, 130:390]
  return bicubic(imresize_uint8(hr[:248], scale=1 / 4), scale=4), hr[:248]


# `lpips` 0.1.4, `dists-pytorch` 0.1 and BasicSR 1.4.2, on these.
PUBLISHED = {
  "lpips": 0.342676,
  "lpips_vgg": 0.290986,
  "dists": 0.219846,
  "niqe": 8.7353,
}


@pytest.mark.runtimes
@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluation_measures_what_the_published_programs_do(name):
  try:
    perceptual.find_files(name)
  except FileNotFoundError as error:
    if name != "niqe":  # No package that pip installs by itself has it.
      raise
    pytest.skip(str(error))
  take = measures.compile_measures(measures.choose([name]))
  found = take(Compared(*_photo(), crop_border=4))[name]
  # On what is smooth, BasicSR in double precision differs by more.
  close = 5e-3 if name == "niqe" else 1e-5
  assert found == pytest.approx(PUBLISHED[name], abs=close)
  assert measures.find(name).better == "lower"
  assert measures.present(name)
