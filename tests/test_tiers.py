"""The tiers of the tests: what the README's command collects, it brings."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
COLLECTED = [
  *(ROOT / "esrgan_jax").rglob("*.py"),
  *(ROOT / "tests").glob("test_*.py"),
]


def _brought():
  """Names of the distributions that the README's command asks for."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
  wanted += (ROOT / "requirements.txt").read_text().splitlines()
  names = (re.match(r"[\w-]+", line) for line in wanted)
  return {name[0].lower().replace("_", "-") for name in names if name}


def _imported(path):
  """Names of the packages that a module imports at once."""
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Import):
      yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module.partition(".")[0]


def test_what_is_collected_imports_what_was_brought():
  brought = _brought()
  known = {"esrgan_jax", "tests", "benchmarks", *sys.stdlib_module_names}
  for name, owners in importlib.metadata.packages_distributions().items():
    if {owner.lower().replace("_", "-") for owner in owners} & brought:
      known.add(name)
  unknown = {
    str(path.relative_to(ROOT)): missing
    for path in COLLECTED
    if (missing := set(_imported(path)) - known)
  }
  assert not unknown


def test_the_cores_tests_that_ci_repeats_are_there():
  text = (ROOT / ".ci/run").read_text()
  listed = re.search(r"for name in (.*?); do", text, re.DOTALL)[1]
  names = listed.replace("\\\n", " ").split()
  assert names == sorted(names)
  for name in names:
    assert (ROOT / f"tests/test_{name}.py").exists(), name
