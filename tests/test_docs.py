"""The site of docs/: what its tool reads; `.ci/release docs` builds it."""

import ast
import importlib
import pathlib
import re

import pytest

import esrgan_jax
from tests import documented
from tests.training_runs import ROOT


@pytest.mark.parametrize("module", ["esrgan_jax", "esrgan_jax.steps"])
def test_the_page_of_the_api_has_every_public_name(module):
  """The tool imports nothing: a name must be bound where it can read it."""
  page = (ROOT / "docs/api.md").read_text()
  assert re.search(rf"^::: {re.escape(module)}$", page, re.MULTILINE)
  found = importlib.import_module(module)
  with open(found.__file__) as file:
    tree = ast.parse(file.read())
  bound = {
    alias.asname or alias.name.partition(".")[0]
    for node in ast.walk(tree)
    if isinstance(node, ast.Import | ast.ImportFrom)
    for alias in node.names
  }
  folder = pathlib.Path(found.__file__).parent
  bound |= {path.stem for path in folder.iterdir()}
  assert bound >= set(found.__all__)


def test_the_check_of_the_page_finds_what_is_missing():
  ids = [f'<h2 id="esrgan_jax.{n}">' for n in esrgan_jax.__all__ if n != "psnr"]
  assert "esrgan_jax.psnr" in documented.missing("".join(ids))
  assert "esrgan_jax.ssim" not in documented.missing("".join(ids))


# A number and a full stop at a line's start begin a list, in a list's item.
WRAPPED_NUMBER = re.compile(r"^\s*\d{2,}\. ", re.MULTILINE)


@pytest.mark.parametrize(
  "page",
  [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")],
  ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_no_line_of_a_page_begins_with_a_sentences_last_number(page):
  assert not WRAPPED_NUMBER.findall(page.read_text())


def test_the_check_of_lines_finds_one():
  assert WRAPPED_NUMBER.search("- a step between 50 and\n  99. With 0")
