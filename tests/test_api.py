"""The public names, and their documentation."""

import ast
import importlib
import inspect
import pathlib
import pydoc
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import esrgan_jax
from esrgan_jax import steps
from esrgan_jax.models import reference
from tests.networks import random_params

ROOT = pathlib.Path(esrgan_jax.__file__).parent
HEAVY = [
  "PIL",
  "clu",
  "grain",
  "imagecodecs",
  "ml_collections",
  "orbax",
  "safetensors",
  "tensorboard",
  "tensorflow",
  "tensorflow_datasets",
  "tifffile",
  "torch",
]


def modules():
  for path in sorted(ROOT.rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    yield ".".join(parts).removesuffix(".__init__") or "__init__", path


def test_import_is_light():
  code = f"""
import sys, esrgan_jax
assert "jax" not in sys.modules  # What is first used brings it.
assert esrgan_jax.losses.l1_loss is esrgan_jax.l1_loss
for name in esrgan_jax._MODULES:
  getattr(esrgan_jax, name)
core = [n for n, module in esrgan_jax._LAZY.items() if module.count(".") == 1]
for name in [*core, "RRDBNet", "VGGStyleDiscriminator", "vgg19_features"]:
  getattr(esrgan_jax, name)
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
import jax
assert not jax._src.xla_bridge._backends, "importing started a backend"
"""
  subprocess.run([sys.executable, "-c", code], check=True)


def test_load_comes_with_what_it_needs_and_nothing_for_training():
  training = sorted(set(HEAVY) - {"PIL", "safetensors"})
  code = f"""
import sys, esrgan_jax
esrgan_jax.load
loaded = [name for name in {training!r} if name in sys.modules]
assert not loaded, loaded
"""
  subprocess.run([sys.executable, "-c", code], check=True)


def test_the_list_of_public_names_is_what_there_is():
  assert esrgan_jax.__all__ == sorted(esrgan_jax.__all__)
  assert steps.__all__ == sorted(steps.__all__)
  for name in esrgan_jax.__all__:
    assert name in dir(esrgan_jax)
    assert getattr(esrgan_jax, name) is not None
  public = {
    name
    for name, value in vars(esrgan_jax).items()
    if not name.startswith("_")
    and not isinstance(value, types.ModuleType)
    and name not in ("annotations",)
  }
  assert public <= set(esrgan_jax.__all__)
  with pytest.raises(AttributeError, match="no attribute 'upscale'"):
    _ = esrgan_jax.upscale


def test_help_begins_with_every_name():
  """Linen's own methods make pages of it, before any function has its turn."""
  lines = pydoc.render_doc(esrgan_jax, renderer=pydoc.plaintext).splitlines()
  beginning = "\n".join(lines[:50])
  table = esrgan_jax.__doc__.partition("| --- |")[2].partition("\n\n")[0]
  listed = re.findall(r"`(\w+)`", table)
  assert sorted(listed) == esrgan_jax.__all__
  assert all(f"`{name}`" in beginning for name in listed)


def test_names_that_are_leaving_say_so_and_work():
  for name in ("RRDB", "ResidualDenseBlock"):
    message = rf"{name} goes in version 0\.3"
    with pytest.warns(DeprecationWarning, match=message):
      module = getattr(esrgan_jax, name)(num_grow_ch=2)
  x = np.random.default_rng(0).random((1, 5, 6, 4), np.float32)
  params = random_params(module, x)
  np.testing.assert_allclose(
    jax.jit(module.apply)({"params": params}, x),
    reference.dense_block(params, x),
    rtol=1e-5,
  )


PUBLIC = [
  pytest.param(getattr(module, name), name, id=f"{prefix}{name}")
  for module, prefix in ((esrgan_jax, ""), (steps, "steps."))
  for name in module.__all__
]


@pytest.mark.parametrize(("value", "name"), PUBLIC)
def test_public_names_are_documented(value, name):
  doc = inspect.getdoc(value)
  assert doc, f"{name} has no docstring"
  # What dataclasses and Linen modules get when nobody wrote one.
  assert not doc.startswith(f"{name}("), f"{name} has no docstring"
  summary = doc.splitlines()[0]
  assert summary.endswith((".", "?")), f"{name}: {summary!r}"
  has_example = ">>>" in doc or (
    inspect.isclass(value)
    and any(">>>" in (inspect.getdoc(m) or "") for m in vars(value).values())
  )
  assert has_example, f"{name} has no example"
  if inspect.isfunction(value):
    for parameter in inspect.signature(value).parameters:
      # "name: ...", or several that share a line: "sr, hr: ...".
      entry = rf"^  (\w+, |\*\*)*{parameter}(, \w+)*: "
      assert re.search(entry, doc, re.MULTILINE), f"{name}: {parameter}?"


@pytest.mark.parametrize(("value", "name"), PUBLIC)
def test_public_names_follow_the_conventions(value, name):
  del name
  if not inspect.isfunction(value):
    return
  parameters = list(inspect.signature(value).parameters.values())
  names = [p.name for p in parameters]
  optional = [p.name for p in parameters if p.default is not p.empty]
  assert "rng" not in names, "prefer `key` to `rng`"
  if "key" in names and "key" not in optional:
    # After the network whose method it might be, `net.init(key)`.
    assert names.index("key") == ("net" in names), "`key` comes first"
  for p in parameters:
    if p.default is not p.empty and p.name not in ("model", "platform"):
      assert p.kind is p.KEYWORD_ONLY, f"option {p.name} must be keyword-only"
    assert p.annotation is not p.empty, f"{p.name} has no type"


def test_every_module_says_what_it_is_for():
  for name, path in modules():
    assert ast.get_docstring(ast.parse(path.read_text())), name


def test_no_module_is_a_drawer():
  names = {name.rpartition(".")[2] for name, _ in modules()}
  assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_version_is_the_distributions():
  metadata = pytest.importorskip("importlib.metadata")
  try:
    installed = metadata.version("esrgan-jax")
  except metadata.PackageNotFoundError:
    pytest.skip("running from a checkout")
  assert installed == esrgan_jax.__version__
  assert importlib.import_module("esrgan_jax") is esrgan_jax


def test_modules_that_have_moved_are_found_by_their_old_names():
  with pytest.warns(DeprecationWarning, match=r"esrgan_jax\.report\.page now"):
    from esrgan_jax.training import report
  from esrgan_jax.report import page

  assert report is page
  with pytest.raises(ImportError):
    from esrgan_jax.training import nothing  # noqa: F401
