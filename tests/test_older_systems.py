"""The page of the older systems: its commands, as they stand there."""

import re
import shlex

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import __main__, images
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.training import config as config_lib
from esrgan_jax.weights import files
from tests.networks import random_params
from tests.training_runs import ROOT

_PAGE = (ROOT / "docs/older_systems.md").read_text()
_TRAIN = "python -m esrgan_jax.main "
_COMMANDS = list(dict.fromkeys(re.findall(r"`(python -m [^`]*)`", _PAGE)))
_TRAININGS = [c for c in _COMMANDS if c.startswith(_TRAIN)]
_OTHERS = [c for c in _COMMANDS if not c.startswith(_TRAIN)]
# Another runtime, or a model that is brought by hand.
_ELSEWHERE = ("saved_model", "tflite", "ncnn", "msrgan", "gen.pth.tar")
_FIELDS = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}


@pytest.mark.parametrize("command", _TRAININGS)
def test_a_trainings_command_is_understood(command):
  words = shlex.split(command.removeprefix(_TRAIN))
  given = dict(word.removeprefix("--").split("=", 1) for word in words)
  config = config_lib.read_config(ROOT / given.pop("config"))
  del given["workdir"]
  config_lib.override(
    config, [(k.removeprefix("config."), v) for k, v in given.items()]
  )
  config_lib.complete(config)


def test_the_keys_that_the_page_names_are_there():
  config = config_lib.complete({})
  keys = re.findall(r"`config\.((?:\w+\.)*\w+)(?:=[^`]*)?`", _PAGE)
  keys += re.findall(r"`--config\.((?:\w+\.)*\w+)=[^`]*`", _PAGE)
  keys = set(keys) - {"yaml"}
  assert len(keys) > 10
  for key in keys:
    value = config
    for name in key.split("."):
      value = value[name]


@pytest.mark.parametrize("command", _OTHERS)
def test_a_command_is_understood(command):
  words = shlex.split(command.removeprefix("python -m esrgan_jax "))
  __main__._parser(words[0]).parse_args(words)


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory):
  """A folder with the files that the page speaks of."""
  place = tmp_path_factory.mktemp("older")
  random = np.random.default_rng(0)
  for folder in ("LR", "HR", "FOLDER"):
    (place / folder).mkdir()
  for index in range(2):
    pixels = random.integers(0, 256, (512, 520, 3), np.uint8)
    hr = PilImage.fromarray(pixels)
    hr.save(place / f"HR/{index}.png")
    hr.save(place / f"FOLDER/{index}.png")
    lr = hr.resize((130, 128), PilImage.Resampling.BICUBIC)
    lr.save(place / f"LR/{index}.png")
  lr.crop((0, 0, 36, 32)).save(place / "photo.png")
  net = RRDBNet(**_FIELDS)
  for name, seed in (("A.pth", 0), ("B.pth", 1), ("mine", 2)):
    image = np.zeros((1, 4, 4, 3), np.float32)
    params = random_params(net, image, seed=seed)
    target = place / "runs/mine/models/gan.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    if name != "mine":
      target = place / name
    files.write_weights(target.with_suffix(".safetensors"), params, _FIELDS)
  return place


@pytest.mark.slow
@pytest.mark.parametrize(
  "command",
  [c for c in _OTHERS if not any(word in c for word in _ELSEWHERE)],
)
def test_a_command_does_something(place, command, monkeypatch):
  given = command
  monkeypatch.chdir(place)
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(place / "cache"))
  command = command.replace("A.pth", "A.safetensors")
  command = command.replace("B.pth", "B.safetensors")
  words = shlex.split(command.removeprefix("python -m esrgan_jax "))
  if words[0] == "upscale" and "-o" not in words:
    words += ["-o", "large.png", "--overwrite"]
  if words[0] == "evaluate":
    words += ["--json", f"{_OTHERS.index(given)}.json"]
  before = set(place.rglob("*"))
  assert __main__.main(words) == 0
  jax.config.update("jax_compilation_cache_dir", None)
  made = {path for path in place.rglob("*") if path.is_file()} - before
  assert made or "--overwrite" in words or words[0] == "models"
  for path in made:
    if images.is_image_suffix(path):
      assert all(frame.pixels.size for frame in images.read_frames(path))
