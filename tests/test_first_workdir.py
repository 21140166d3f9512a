"""A workdir of the first version: it is gone on with, upscales, interpolates.

`goldens/first_workdir.tar.xz` is one of `tiny_config` in a step a phase, with
the smallest networks, as the version of commit 2885e94 wrote it on a CPU; and
`upscaled.npy`, what that made of the image below with the GAN model.
"""

import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

import esrgan_jax
from esrgan_jax.__main__ import main
from esrgan_jax.weights import files, find
from tests.training_runs import (
  ROOT,
  environment,
  logged,
  tiny_config,
  write_config,
)

_SIZES = {"num_feat": 3, "num_block": 1, "num_grow_ch": 1}


@pytest.fixture(name="run")
def _run(tmp_path):
  with tarfile.open(ROOT / "tests/goldens/first_workdir.tar.xz") as file:
    file.extractall(tmp_path / "run", filter="data")
  return tmp_path / "run"


@pytest.mark.parametrize("form", ["", "gan/1", "models/gan.safetensors"])
def test_upscale(run, form):
  pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
  sr = esrgan_jax.load(run / form).upscale(pixels)
  expected = np.load(run / "upscaled.npy")
  assert sr.dtype == expected.dtype == np.uint8
  # Rounding may fall otherwise, on another machine.
  assert np.abs(sr.astype(int) - expected).max() <= 1


def test_a_checkpoint_is_its_phases_model(run):
  for phase in ("psnr", "gan"):
    file = files.read_weights(run / f"models/{phase}.safetensors")
    step = find.find_model(run / phase / "1").weights
    assert (
      step.metadata["generator_sha256"] == (file.metadata["generator_sha256"])
    )
    jax.tree.map(np.testing.assert_array_equal, step.params, file.params)
    assert file.config == {
      **{"architecture": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3},
      **_SIZES,
      **{"scale": 4, "unshuffle": 1},
    }


@pytest.mark.parametrize("parts", [("", ""), ("psnr/1", "gan/checkpoints")])
def test_interpolate(run, tmp_path, parts, capsys):
  out = tmp_path / "mixed.safetensors"
  paths = [str(run / part) for part in parts]
  command = ["interpolate", *paths, "--alpha", "0.8", "-o", str(out)]
  assert main(command) == 0
  assert "begun from another" not in capsys.readouterr().out
  expected = files.read_weights(run / "models/interpolated_0.8.safetensors")
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7),
    files.read_weights(out).params,
    expected.params,
  )


@pytest.mark.slow
def test_training_goes_on(run, tmp_path):
  config = tiny_config(
    tmp_path,
    generator=_SIZES,
    discriminator={"num_feat": 1},
    checkpoint_every_steps=1,
    log_every_steps=1,
    eval_every_steps=9,
  )
  for phase, steps in (("psnr", 1), ("gan", 2)):
    config["phases"][phase]["num_train_steps"] = steps
  write_config(tmp_path / "config.py", config)
  command = [sys.executable, "-m", "esrgan_jax.main"]
  command += [f"--config={tmp_path / 'config.py'}", f"--workdir={run}"]
  # Of the first version's config, the folder of photos was another.
  done = subprocess.run(
    [*command, "--config.allow_changes=true"],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  assert "psnr: finished before, at step 1" in done.stdout
  assert "gan: going on from step 1 of 2" in done.stdout
  assert "begins anew" not in done.stdout
  assert [line["step"] for line in logged(run, "gan")] == [2]
  assert (run / "gan/checkpoints/2").is_dir()
