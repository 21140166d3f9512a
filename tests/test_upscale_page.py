"""The page of the command `upscale`: its commands, as they stand there."""

import argparse
import io
import os
import pathlib
import re
import shlex
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import __main__, images
from esrgan_jax.commands import upscale
from esrgan_jax.weights import files, zoo
from tests import weight_builders as build
from tests.test_upscaler import make_model
from tests.training_runs import ROOT

PAGE = (ROOT / "docs/upscale.md").read_text()
COMMANDS = list(dict.fromkeys(re.findall(r"\| `(upscale [^`]*)` \|", PAGE)))
OF_CLIPS = [command for command in COMMANDS if "clip.mp4" in command]


def test_every_option_is_there_and_every_command_is_understood():
  parser = argparse.ArgumentParser()
  upscale.add_arguments(parser)
  options = {o for o in parser._option_string_actions if o.startswith("--")}
  text = " ".join(COMMANDS)
  used = {f"--{name}" for name in re.findall(r"--([\w-]+)", text)}
  # `-o` stands there short, as people type it.
  assert options - used == {"--help", "--output"}
  assert len(COMMANDS) > 30
  parser = __main__._parser("upscale")
  for command in COMMANDS:
    words = shlex.split(re.sub(" [<>] .*", "", command))
    parser.parse_args(words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with the files that the page speaks of."""
  here = tmp_path_factory.mktemp("page")
  random = np.random.default_rng(0)

  def save(name, *, channels=3, size=(30, 40)):
    pixels = random.integers(0, 256, (*size, channels), np.uint8)
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    PilImage.fromarray(pixels).save(here / name)

  for name in ("photo.jpg", "holiday/a.jpg", "holiday/trip/b.png"):
    save(name)
  save("texture.png", size=(24, 24))
  save("logo.png", channels=4)
  save("holiday/large.png", size=(70, 90))
  frames = [PilImage.new("RGB", (12, 10), (90 * n, 0, 99)) for n in range(3)]
  several = {"save_all": True, "append_images": frames[1:]}
  frames[0].save(here / "blink.gif", duration=[40, 80, 120], **several)
  frames[0].save(here / "pages.tif", **several)
  config = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
  for seed, name in enumerate(("my", "psnr")):
    model = make_model(seed, num_feat=4, num_grow_ch=2)
    params = jax.device_get(model.params)
    files.write_weights(here / f"{name}.safetensors", params, config)
  return here


class _Output:
  """Standard output, of text and of bytes."""

  def __init__(self):
    self.buffer = io.BytesIO()

  def isatty(self):
    """No terminal."""
    return False

  def write(self, text):
    """Takes text."""
    return self.buffer.write(text.encode())

  def flush(self):
    """There is nothing to wait for."""


@pytest.mark.runtimes  # For want of PyAV elsewhere.
@pytest.mark.parametrize("command", OF_CLIPS)
def test_every_command_of_clips_does_something(
  folder, tmp_path, monkeypatch, command
):
  from tests import clip_builders

  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  clip_builders.write("clip.mp4", sound="aac")
  model = ["--model", str(folder / "my.safetensors")]
  assert __main__.main([*shlex.split(command), *model]) == 0
  assert clip_builders.told("clip_x4.mp4")["size"] == (144, 112)


# What runs on Ray is run by `test_cluster_ray.py`.
@pytest.mark.slow
@pytest.mark.parametrize(
  "command",
  [c for c in COMMANDS if c not in OF_CLIPS and "--engine ray" not in c],
)
def test_every_command_does_something(folder, tmp_path, monkeypatch, command):
  here = tmp_path / "here"
  shutil.copytree(folder, here)
  monkeypatch.chdir(here)
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  output = None
  if match := re.search(" > (.*)", command):
    command, output = command.replace(match[0], ""), match[1]
    monkeypatch.setattr(sys, "stdout", _Output())
  if match := re.search(" < (.*)", command):
    command = command.replace(match[0], "")
    data = io.BytesIO(pathlib.Path(match[1]).read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
  words = shlex.split(command)
  if "--model" not in words:
    words += ["--model", "my.safetensors"]
  if "--denoise" in words:
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(zoo, "_MODELS", build.write_general(tmp_path / "cache"))
  before = {path for path in here.rglob("*") if path.is_file()}
  assert __main__.main(words) == 0
  if output:
    pathlib.Path(output).write_bytes(sys.stdout.buffer.getvalue())
  made = {path for path in here.rglob("*") if path.is_file()} - before
  if "--dry-run" in words:
    assert not made
    return
  assert made
  for path in made:
    for image in images.read_frames(path):
      assert image.pixels.shape[0] > 10
    assert not os.path.basename(path).startswith(".")
