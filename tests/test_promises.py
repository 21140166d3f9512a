"""What the version before had, this one has: names, options, keys, arrays."""

import copy
import json

import pytest

import esrgan_jax
from tests import promises


@pytest.fixture(name="now", scope="module")
def _now():
  return promises.found()


def test_what_was_promised_is_there(now):
  promised = json.loads(promises.FILE.read_text())
  assert not list(promises.broken(promised, now)), (
    "deprecate it first: docs/stability.md"
  )


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
  changed["names"]["esrgan_jax.psnr"].remove("crop_border")
  changed["commands"]["upscale"].remove("--tile")
  changed["trees"]["RRDBNet"]["params/conv_first/bias"] = [65]
  assert list(promises.broken(now, changed)) == [
    "names: esrgan_jax.psnr: crop_border",
    "commands: upscale: --tile",
    "trees: RRDBNet's arrays",
  ]


def test_a_version_has_a_line_in_the_changelog():
  text = (promises.FILE.parents[1] / "CHANGELOG.md").read_text()
  assert f"\n## {esrgan_jax.__version__}" in text
  citation = (promises.FILE.parents[1] / "CITATION.cff").read_text()
  assert f"\nversion: {esrgan_jax.__version__}\n" in citation
