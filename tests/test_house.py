"""The rooms of the house: which may know which, and none knows itself."""

import ast
import pathlib
import sys

import pytest

import esrgan_jax

ROOT = pathlib.Path(esrgan_jax.__file__).parent

# The pure core: functions of arrays and pytrees. No order among its rooms, but
# no circle either.
CORE = [
  "__init__",
  "augment",
  "checks",
  "degradation",
  "interpolate",
  "losses",
  "metrics",
  "models",
  "naturalness",
  "ops",
  "perceptual",
  "resize",
  "steps",
  "tiling",
]
CORE_LIBRARIES = {"jax", "flax", "numpy", "optax"}

# The programs, which touch the world: each may import the core, and those
# above it here.
PROGRAMS = [
  "text",
  "errors",
  "extras",
  "console",
  "storage",
  "download",
  "large_pages",
  "compilation",
  "distributed",
  "plugins",
  "images",
  "video",
  "weights",
  "upscaling",
  "cluster",
  "export",
  "data",
  "evaluation",
  "report",
  "demo",
  "training",
  "commands",
  "main",
  "__main__",
]


def _modules():
  for path in sorted(ROOT.rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    yield ".".join(parts).removesuffix(".__init__") or "__init__", path


MODULES = dict(_modules())


def _room(name):
  return name.partition(".")[0]


def _imports(name):
  """Modules that a module imports; those of functions and types as well."""
  for node in ast.walk(ast.parse(MODULES[name].read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        inside = whole.removeprefix("esrgan_jax.") in MODULES
        yield whole if inside else node.module


def _own(name):
  for imported in _imports(name):
    if imported.partition(".")[0] == "esrgan_jax":
      yield imported.partition(".")[2] or "__init__"


def test_every_module_is_in_a_room():
  assert {_room(name) for name in MODULES} == {*CORE, *PROGRAMS}


@pytest.mark.parametrize("name", [n for n in MODULES if _room(n) in CORE])
def test_the_core_imports_the_core_alone(name):
  for imported in _imports(name):
    top, _, rest = imported.partition(".")
    if name == "__init__" and imported in (
      "esrgan_jax.compilation",
      "esrgan_jax.upscaling.upscaler",
      "esrgan_jax.weights.checkpoints",
      "esrgan_jax.weights.files",
      "esrgan_jax.weights.perceptual",
    ):
      continue  # For type checkers only.
    if top == "esrgan_jax":
      assert _room(rest or "__init__") in CORE, f"{name} imports {imported}"
    else:
      allowed = CORE_LIBRARIES | sys.stdlib_module_names
      assert top in allowed, f"{name} imports {imported}"


@pytest.mark.parametrize("name", [n for n in MODULES if _room(n) in PROGRAMS])
def test_programs_import_what_stands_before_them(name):
  place = PROGRAMS.index(_room(name))
  for imported in _own(name):
    room = _room(imported)
    if room not in CORE:
      assert PROGRAMS.index(room) <= place, f"{name} imports {imported}"


def test_one_file_writes_with_orbax():
  """`distributed` asks it which process is which."""
  knowing = {
    name
    for name in MODULES
    if any(each.partition(".")[0] == "orbax" for each in _imports(name))
  }
  assert knowing == {"distributed", "weights.formats.orbax_writer"}


def test_there_is_no_circle():
  state = {}

  def visit(name, path):
    if state.get(name) == "done":
      return
    assert name not in path, " -> ".join([*path, name])
    for imported in _own(name):
      if imported in MODULES and imported != "__init__":
        visit(imported, [*path, name])
    state[name] = "done"

  for name in MODULES:
    visit(name, [])
