"""Asserts that a page of the API, as built, has every public name.

python -m tests.documented site/api/index.html
"""

import pathlib
import re
import sys

import esrgan_jax
from esrgan_jax import steps


def missing(page):
  """The public names that a page has no heading for."""
  there = set(re.findall(r'id="(esrgan_jax\.[\w.]+)"', page))
  wanted = [f"esrgan_jax.{name}" for name in esrgan_jax.__all__]
  wanted += [f"esrgan_jax.steps.{name}" for name in steps.__all__]
  return [name for name in wanted if name not in there]


if __name__ == "__main__":
  absent = missing(pathlib.Path(sys.argv[1]).read_text())
  sys.exit(f"not on the page: {', '.join(absent)}" if absent else 0)
