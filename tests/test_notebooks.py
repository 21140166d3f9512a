"""The notebooks: what can be told without Jupyter. `.ci/release` runs them."""

import ast
import json
import re

import pytest

import esrgan_jax
from tests import notebooks

PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_its_code_is_python(path):
  content = json.loads(path.read_text())
  assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
  for cell in content["cells"]:
    if cell["cell_type"] != "code":
      continue
    assert cell["outputs"] == []
    assert cell["execution_count"] is None
    code = "".join(cell["source"])
    if not code.startswith("%%"):
      ast.parse(re.sub(r"^( *)%.*", r"\1pass", code, flags=re.MULTILINE))
    assert esrgan_jax.__version__ in code or ".whl" not in code


def test_both_are_there():
  listed = (notebooks.FOLDER / "README.md").read_text()
  assert len(PATHS) == 2
  for path in PATHS:
    assert f"`{path.name}`" in listed
