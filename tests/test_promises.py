"""What the version before had, this one has: names, options, keys, arrays."""

import copy
import json
import subprocess
import sys

import pytest

import esrgan_jax
from tests import promises
from tests.training_runs import ROOT


@pytest.fixture(name="now", scope="module")
def _now():
  # In a process of its own: here, other tests have registered theirs.
  done = subprocess.run(
    [sys.executable, "-m", "tests.promises"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def test_what_was_promised_is_there(now):
  promised = json.loads(promises.FILE.read_text())
  assert not list(promises.broken(promised, now)), (
    "deprecate it first: docs/stability.md"
  )


def test_what_is_public_is_promised(now):
  """A list that calls itself this version's has all that this version has."""
  promised = json.loads(promises.FILE.read_text())
  if promised["version"] == esrgan_jax.__version__:
    assert not list(promises.missing(promised, now)), (
      "write the list anew: docs/stability.md"
    )


def test_what_a_command_takes_is_what_its_parser_takes(now):
  """With what all commands take, and the training's own."""
  commands = now["commands"]
  assert {"--plugin", "--config", "--model-scale"} < {*commands["upscale"]}
  assert commands["upscale"]["inputs"] == {"required": True}
  assert {"--config", "--workdir", "--plugin"} < {*commands["main"]}
  assert commands["main"]["--config"] == {"required": True}
  assert "jpeg" in commands["upscale"]["--format"]["choices"]


@pytest.mark.parametrize(
  ("section", "name", "said"),
  [
    ("names", "esrgan_jax.psnr", "names: esrgan_jax.psnr"),
    ("commands", "upscale", "commands: upscale"),
    ("config", "batch_size", "config: batch_size"),
    ("trees", "RRDBNet", "trees: RRDBNet"),
  ],
)
def test_what_goes_is_told(now, section, name, said):
  changed = copy.deepcopy(now)
  if section == "config":
    changed[section].remove(name)
  else:
    del changed[section][name]
  assert list(promises.broken(now, changed)) == [said]


def test_a_part_that_goes_is_told(now):
  changed = copy.deepcopy(now)
  del changed["names"]["esrgan_jax.psnr"]["crop_border"]
  del changed["commands"]["upscale"]["--tile"]
  changed["trees"]["RRDBNet"]["params/conv_first/bias"] = [65]
  assert list(promises.broken(now, changed)) == [
    "names: esrgan_jax.psnr: crop_border",
    "commands: upscale: --tile",
    "trees: RRDBNet's arrays",
  ]


def test_what_breaks_calls_is_told(now):
  changed = json.loads(json.dumps(now))  # `-f` and `--format` apart.
  arguments = changed["names"]["esrgan_jax.load"]
  arguments["fetch"] = {"default": False}
  arguments["new"] = {"required": True}
  options = changed["commands"]["upscale"]
  options["--tile"] = {"required": True}
  options["--format"]["choices"].remove("jpeg")
  options["--new"] = {"default": 1}
  assert sorted(promises.broken(now, changed)) == [
    "commands: upscale: --format without jpeg",
    "commands: upscale: --tile is required",
    "names: esrgan_jax.load: fetch is False, was True",
    "names: esrgan_jax.load: new is required",
  ]


def test_what_is_new_is_told(now):
  before = copy.deepcopy(now)
  del before["names"]["esrgan_jax.psnr"]["crop_border"]
  del before["commands"]["demo"]
  del before["commands"]["upscale"]["--plugin"]
  before["config"].remove("batch_size")
  assert list(promises.missing(before, now)) == [
    "names: esrgan_jax.psnr: crop_border",
    "commands: upscale: --plugin",
    "commands: demo",
    "config: batch_size",
  ]


def test_a_version_has_a_line_in_the_changelog():
  text = (promises.FILE.parents[1] / "CHANGELOG.md").read_text()
  assert f"\n## {esrgan_jax.__version__}" in text
  citation = (promises.FILE.parents[1] / "CITATION.cff").read_text()
  assert f"\nversion: {esrgan_jax.__version__}\n" in citation
