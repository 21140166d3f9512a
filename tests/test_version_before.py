"""Files of the version before: they upscale and interpolate as they did.

`goldens/workdir_of_0.1.tar.xz` is a workdir as the version of commit 2885e94
left it: phase one done at step 4, phase two at step 2; `expected.safetensors`
is the model that phase two ended with. `goldens/upscaled_by_0.1.npz` is what
that version made of the image below. That training goes on, test_workdirs says.
"""

import tarfile

import jax
import numpy as np
import pytest

import esrgan_jax
from esrgan_jax.__main__ import main
from esrgan_jax.weights import files, find
from tests.training_runs import ROOT


@pytest.fixture(name="place")
def _place(tmp_path):
  with tarfile.open(ROOT / "tests/goldens/workdir_of_0.1.tar.xz") as file:
    file.extractall(tmp_path, filter="data")
  return tmp_path


@pytest.mark.parametrize(
  ("path", "phase"),
  [
    ("run/models/psnr.safetensors", "psnr"),
    ("run/psnr", "psnr"),
    ("run/psnr/4", "psnr"),
    ("expected.safetensors", "gan"),
  ],
)
def test_upscale(place, path, phase):
  pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
  sr = esrgan_jax.load(place / path).upscale(pixels)
  expected = np.load(ROOT / "tests/goldens/upscaled_by_0.1.npz")[phase]
  assert sr.dtype == expected.dtype == np.uint8
  # Rounding may fall otherwise, on another machine.
  assert np.abs(sr.astype(int) - expected).max() <= 1


def test_a_checkpoint_is_its_phases_model(place):
  file = files.read_weights(place / "run/models/psnr.safetensors")
  step = find.find_model(place / "run/psnr/checkpoints/4").weights
  digest = file.metadata["generator_sha256"]
  assert step.metadata["generator_sha256"] == digest
  jax.tree.map(np.testing.assert_array_equal, step.params, file.params)
  told = {k: v for k, v in step.config.items() if v is not None}
  assert told == {k: file.config[k] for k in told}
  assert file.config["architecture"] == "RRDBNet"


@pytest.mark.parametrize(
  ("a", "b"), [("run", "run"), ("run/psnr/4", "run/gan/checkpoints")]
)
def test_interpolate(place, a, b, capsys):
  out = place / "mixed.safetensors"
  paths = [str(place / path) for path in (a, b)]
  assert main(["interpolate", *paths, "--alpha", "0.8", "-o", str(out)]) == 0
  assert "begun from another" not in capsys.readouterr().out
  psnr = files.read_weights(place / "run/models/psnr.safetensors").params
  gan = find.find_model(place / "run/gan/2").weights.params
  jax.tree.map(
    lambda x, y, z: np.testing.assert_allclose(
      x, np.float32(0.2) * y + np.float32(0.8) * z, rtol=1e-5, atol=1e-7
    ),
    files.read_weights(out).params,
    psnr,
    gan,
  )
