"""What the README promises is what is run."""

import pathlib
import re

import esrgan_jax
from esrgan_jax import __main__
from esrgan_jax.weights import zoo

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_commands_and_names_exist():
  for command in re.findall(r"python -m esrgan_jax (\w+)", README):
    assert command in __main__._COMMANDS
  for name in re.findall(r"`esrgan_jax\.(\w+)`", README):
    assert name in esrgan_jax.__all__
  table = README[README.index("## Models") :]
  for name in re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE):
    assert name in {row.model.name for row in zoo.models()}
