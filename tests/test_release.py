"""`.ci/release`: its stages name what is there; what is left out is told."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.training_runs import ROOT

TEXT = (ROOT / ".ci/release").read_text()
HELP = TEXT.partition("\nset -euo")[0]


def _extras():
  """Names of the extras that the stage `extras` installs."""
  stage = TEXT.partition("    extras)\n")[2].partition(";;")[0]
  functions = dict(re.findall(r"^(\w+)\(\) {\n(.*?)^}", TEXT, re.M | re.S))
  found = set()
  for words in re.findall(r"^ *stage extra-\S+ (.*)", stage, re.M):
    name, *rest = words.split()
    if rest:
      found.add(rest[0])
    else:  # It names its own.
      found.update(re.findall(r"^  extra (\w+)", functions[name], re.M))
  for loop in re.findall(r"for each in (.*?); do", stage):
    found.update(loop.split())
  return found - {'"$each"'}


def test_every_extra_is_installed_alone():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert _extras() == {*project["optional-dependencies"]}


def test_every_stage_is_explained_and_does_something():
  listed = re.search(r"^all=\((.*?)\)", TEXT, re.M | re.S)[1].split()
  explained = re.findall(r"^#   ([a-z]\w+)  +\S", HELP, re.M)
  assert sorted(listed) == sorted(explained)
  for name in listed:
    assert re.search(rf"^    {name}\)", TEXT, re.M), name


def test_a_package_of_the_system_is_asked_for_before():
  """A fresh machine's list of packages is empty."""
  lines = [line for line in TEXT.splitlines() if "apt-get install " in line]
  assert [line for line in lines if not line.startswith("#")] == [
    '  apt-get update -q && apt-get install -y -q "$@"'
  ]


@pytest.mark.slow
def test_the_demos_tests_want_its_extra_alone():
  """Collected where there is nothing of training, as in that stage."""
  (files,) = re.findall(
    r"\.venv-demo/bin/python -m pytest (.*?)\n}", TEXT, re.S
  )
  absent = ["ml_collections", "orbax", "clu", "tensorflow", "grain", "etils"]
  code = (
    f"import pytest, sys\nsys.modules |= dict.fromkeys({absent})\n"
    "sys.exit(pytest.main(['--collect-only', *sys.argv[1:]]))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, *files.replace("\\\n", " ").split()],
    cwd=ROOT,
    check=False,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout
  assert "test_a_file_goes_in_and_the_result_comes_out" in done.stdout


def test_a_python_that_is_not_here_is_among_the_verdicts(tmp_path):
  if not (shutil.which("bash") and shutil.which("git")):
    pytest.skip("needs bash and git")
  shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
  for words in (["init", "-q"], ["add", "."]):
    subprocess.run(["git", *words], cwd=tmp_path, check=True)
  done = subprocess.run(
    [tmp_path / ".ci/release", "pythons"],
    env=os.environ | {"PYTHONS": "python3.99"},
    check=False,
    capture_output=True,
    text=True,
  )
  verdicts = done.stdout.rpartition("\n\n")[2].splitlines()
  assert verdicts[0] == "left out python3.99   it is not here", done.stdout
