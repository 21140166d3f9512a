"""A training that takes seconds, for the tests of the training program."""

import fcntl
import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import safetensors.numpy

from esrgan_jax import images

ROOT = pathlib.Path(__file__).parents[1]

# What makes a card of configs/ small. Losses, phases, layers, norms and kinds
# of networks stay the card's own.
SMALLER = {
  "config.data.sources": "sample_photos",
  "config.data.cache": "ram",
  "config.perceptual.weights": "random",
  "config.generator.num_feat": 8,
  "config.generator.num_block": 1,
  "config.discriminator.num_feat": 2,
  "config.batch_size": 2,
  "config.patch_size": 32,
  "config.mesh.num_devices": 1,
  "config.eval.max_images": 1,
  "config.eval.num_samples": 1,
  "config.eval.sample_size": 64,
  "config.film.size": 64,
  "config.interpolation_alphas": "0,1",
  "config.log_every_steps": 1,
}


def tiny_config(folder, **changes):
  """Both phases in 12 and 8 steps, on three small images in `folder`."""
  photos = pathlib.Path(folder) / "photos"
  if not photos.exists():
    photos.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(3):
      coarse = generator.integers(0, 255, (8, 10, 3), np.uint8)
      pixels = coarse.repeat(8, axis=0).repeat(8, axis=1)
      images.write_image(photos / f"{index}.png", images.Image(pixels))
  config = {
    "generator": {"num_feat": 4, "num_block": 1, "num_grow_ch": 2},
    "discriminator": {"num_feat": 2},
    "initialization": "bilinear",
    "batch_size": 4,
    "patch_size": 24,
    "ema_decay": 0.9,
    "mesh": {"num_devices": 1},
    "phases": {
      "psnr": {
        "num_train_steps": 12,
        "learning_rate": 1e-3,
        "schedule": {"name": "constant"},
      },
      "gan": {"num_train_steps": 8, "schedule": {"name": "constant"}},
    },
    "perceptual": {"weights": "random", "layers": {"conv1_2": 1.0}},
    "data": {"sources": str(photos), "eval": "", "num_threads": 1},
    "log_every_steps": 2,
    "eval_every_steps": 6,
    "checkpoint_every_steps": 3,
    "eval": {"num_samples": 2, "sample_size": 32},
    "film": {"crop": (0, 24, 48, 24), "first_step": 1, "growth": 2.0},
    "interpolation_alphas": (0.0, 0.5, 1.0),
  }
  return config | changes


def write_config(path, config):
  """Writes a config file that gives these values."""
  path.write_text(f"def get_config():\n  return {config!r}\n")
  return path


def environment(**variables):
  """Variables of a training process, by which it shares compiled programs.

  They are the test session's; as many devices are part of what a program is.
  """
  return {
    **os.environ,
    "JAX_NUM_CPU_DEVICES": "8",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
    **variables,
  }


@functools.cache
def trained():
  """The command, run to its end once in a test session; to be read only.

  Returns the folder with `config.py` and the workdir `run`, the config, and
  what was printed.
  """
  folder = pathlib.Path(os.environ["ESRGAN_JAX_TEST_RUN"], "trained")
  folder.mkdir(exist_ok=True)
  with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Other workers wait for the first.
    config = tiny_config(folder)
    config["data"]["eval"] = config["data"]["sources"]
    out = folder / "out"
    if not out.exists():
      write_config(folder / "config.py", config)
      command = [sys.executable, "-m", "esrgan_jax.main"]
      command += [f"--config={folder / 'config.py'}"]
      command += [f"--workdir={folder / 'run'}"]
      done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=900,
      )
      assert done.returncode == 0, done.stderr
      out.write_text(done.stdout)
    return folder, config, out.read_text()


def models(workdir):
  """All arrays of all models, by file and name."""
  return {
    (path.name, name): array
    for path in sorted(pathlib.Path(workdir, "models").glob("*"))
    for name, array in safetensors.numpy.load_file(path).items()
  }


def assert_same_models(a, b):
  """Asserts that two workdirs hold the same models, bit for bit."""
  a, b = models(a), models(b)
  assert a.keys() == b.keys()
  assert a
  for key, array in a.items():
    np.testing.assert_array_equal(array, b[key], err_msg=str(key))


def logged(workdir, phase):
  """The lines of a phase's metrics; an unfinished last one is left out."""
  path = pathlib.Path(workdir, phase, "metrics.jsonl")
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  return [json.loads(line) for line in lines]
