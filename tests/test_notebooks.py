"""The notebooks: what can be told without Jupyter. `.ci/release` runs them."""

import ast
import json
import re
import tomllib
import types

import pytest

import esrgan_jax
from esrgan_jax.training import config as config_lib
from tests import notebooks
from tests.training_runs import ROOT

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


def test_colab_gets_what_training_needs():
  """All of the extra `train` but TensorFlow, whose own Colab has."""
  text = (ROOT / "pyproject.toml").read_text()
  train = tomllib.loads(text)["project"]["optional-dependencies"]["train"]
  wanted = {re.match(r"[\w-]+", each)[0] for each in train}
  code = (notebooks.FOLDER / "train_and_look.ipynb").read_text()
  lines = re.findall(r"%pip install -q (.*?)(?:\\n)?\",?$", code, re.MULTILINE)
  words = " ".join(lines).split()
  assert words.pop(0) == "$SOURCE"
  names = {re.match(r"[\w-]+", each)[0] for each in words}
  assert names == wanted - {"tensorflow-cpu"}


def test_a_notebook_that_shows_too_little_is_told(monkeypatch):
  monkeypatch.setattr(
    notebooks, "execute", lambda _: types.SimpleNamespace(cells=[])
  )
  with pytest.raises(AssertionError, match="shows 0 pictures"):
    notebooks.main(["train_and_look"])


def test_the_training_is_the_quickstart_with_half_of_phase_one():
  content = json.loads((notebooks.FOLDER / "train_and_look.ipynb").read_text())
  cells = ["".join(cell["source"]) for cell in content["cells"]]
  (code,) = (cell for cell in cells if cell.startswith("%%writefile"))
  names = {}
  exec(code.partition("\n")[2], names)
  ours = config_lib.complete(names["get_config"]())
  theirs = config_lib.read_config(ROOT / "configs" / "quickstart.py")
  theirs = config_lib.plain(config_lib.complete(theirs))
  assert config_lib.difference(theirs, config_lib.plain(ours)) == [
    "phases.psnr.num_train_steps: 700 -> 350",
    "phases.psnr.schedule: {'name': 'cosine_restart', 'periods': [700]} ->"
    " {'name': 'cosine_restart', 'periods': [350]}",
  ]
