"""CONTRIBUTING.md's examples, as they stand there, through the commands."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from esrgan_jax import images
from esrgan_jax.weights import files
from tests.training_runs import ROOT, environment

pytestmark = pytest.mark.slow

_BLOCK = re.compile(
  r"^```(python|sh)(?: [^\n]*)?\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  """A folder with the files of CONTRIBUTING.md, and a photo."""
  folder = tmp_path_factory.mktemp("contributing")
  for kind, text in _BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
    if kind == "python":
      name = text.partition("\n")[0].removeprefix("# ")
      (folder / name).write_text(text)
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  images.write_image(folder / "photo.png", images.Image(pixels))
  return folder


def _commands(word):
  """The commands of CONTRIBUTING.md that have a word."""
  blocks = _BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
  lines = "".join(text for kind, text in blocks if kind == "sh").splitlines()
  return [line for line in lines if word in line]


def _run(place, command):
  words = shlex.split(command)
  assert words[0] == "python"
  return subprocess.run(
    [sys.executable, *words[1:]],
    cwd=place,
    env=environment(JAX_NUM_CPU_DEVICES="1"),
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope="module", name="trained")
def _trained(place):
  commands = _commands("toy")
  assert len(commands) == 3
  outs = []
  for command in commands:
    done = _run(place, command)
    assert done.returncode == 0, done.stdout + done.stderr
    outs.append(done.stdout)
  return outs


@pytest.mark.release
def test_a_network(place, trained):
  assert "psnr 20/20" in trained[0]
  large = images.read_image(place / "large.png").pixels
  assert large.shape == (80, 120, 3)
  assert "PSNR Y" in trained[2]
  info = json.loads((place / "runs/toy/config.json").read_text())
  assert info["generator"]["architecture"] == "Toy"


@pytest.mark.release
def test_a_network_is_not_run_because_a_file_names_it(place, trained):
  (command,) = _commands("upscale photo.png --model runs/toy")
  done = _run(
    place, command.replace("--plugin toy.py", "").replace("large", "b")
  )
  assert done.returncode != 0
  assert "Toy" in done.stderr
  assert "--plugin" in done.stderr
  assert "Traceback" not in done.stderr
  assert not (place / "b.png").exists()


def test_a_measure(place):
  (command,) = _commands("sharpness.py")
  done = _run(place, command)
  assert done.returncode == 0, done.stderr
  assert "Sharpness" in done.stdout


def test_an_export(place):
  (command,) = _commands("npz.py")
  done = _run(place, command)
  assert done.returncode == 0, done.stderr
  with np.load(place / "anime.npz") as found:
    assert found["conv_first/kernel"].shape == (3, 3, 3, 64)


def test_a_program(place):
  config = {"num_feat": 4, "num_block": 1, "num_grow_ch": 4, "scale": 2}
  config |= {"architecture": "RRDBNet", "unshuffle": 1}
  params = jax.tree.map(
    lambda leaf: np.full(leaf.shape, 0.01, np.float32),
    files.expected(config)["params"],
  )
  files.write_weights(place / "small.safetensors", params, config)
  (command,) = _commands("packed.py")
  command = command.replace("realesrgan-x4plus-anime", "small.safetensors")
  done = _run(place, command)
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith("done\n")
  assert (place / "anime.jax.gz").stat().st_size > 1e3


@pytest.mark.release
def test_a_phase(place):
  (command,) = _commands("smooth_config.py")
  done = _run(place, command)
  assert done.returncode == 0, done.stdout + done.stderr
  workdir = pathlib.Path(place, "runs/smooth")
  assert (workdir / "models/smooth.safetensors").exists()
  assert "Smooth" in (workdir / "report.html").read_text()
