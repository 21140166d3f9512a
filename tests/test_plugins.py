"""Files of the user's: run once, and what is wrong with one is told."""

import sys

import pytest

from esrgan_jax import plugins
from esrgan_jax.__main__ import main


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
  """A working folder that can be imported from, as `python -m` has it."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  before = set(sys.modules)
  yield tmp_path
  for name in set(sys.modules) - before:
    if getattr(sys.modules[name], "__file__", "").startswith(str(tmp_path)):
      del sys.modules[name]


def _write(name, *lines):
  runs = f"with open('runs.txt', 'a') as file:\n  file.write({name!r} + ' ')"
  with open(name, "w") as file:
    file.write("\n".join([runs, *lines]))


def _runs():
  with open("runs.txt") as file:
    return file.read().split()


@pytest.mark.parametrize("order", [("warm.py", "cold.py"), ("cold.py", "warm")])
def test_each_runs_once_though_another_imports_it(order):
  _write("warm.py")
  _write("cold.py", "import warm")
  plugins.load(order)
  plugins.load(["./warm.py", "cold.py", "warm.py", "cold"])
  assert sorted(_runs()) == ["cold.py", "warm.py"]


def test_files_of_one_name_are_two(place):
  for folder in ("a", "b"):
    (place / folder).mkdir()
    _write(f"{folder}/own.py")
    plugins.load("own.py", folder=folder)
  plugins.load(place / "a" / "own.py")
  assert _runs() == ["a/own.py", "b/own.py"]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("raise SystemExit(3)", "plugin bad.py fails: SystemExit: 3"),
    ("import nowhere_at_all", "plugin bad.py fails: ModuleNotFoundError: No"),
    ("def:", "plugin bad.py fails: SyntaxError: "),
  ],
)
def test_one_that_fails_is_named(capsys, line, message):
  _write("bad.py", line)
  assert main(["models", "--plugin", "bad.py"]) == 1
  assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize(
  "name", [".", "", "3", "folder", "a b", "no.py", "a/b"]
)
def test_what_is_none_is_told(place, name):
  (place / "folder").mkdir()
  shown = name or "''"
  with pytest.raises(ValueError, match=f"no plugin {shown}: give a Python"):
    plugins.load([name])
