"""What a release is made of: its lists of packages, its archives."""

import io
import re
import tarfile
import tomllib
import zipfile

import pytest

from esrgan_jax import export
from tests import built
from tests.training_runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_are_those_of_the_package_and_of_training():
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  lines = [line for line in lines if line and not line.startswith("#")]
  train = PROJECT["optional-dependencies"]["train"]
  assert lines == [*PROJECT["dependencies"], *train]


def test_requirements_name_no_folder():
  """They are installed from any."""
  text = (ROOT / "requirements.txt").read_text()
  assert not [
    line
    for line in text.splitlines()
    if line.startswith((".", "-", "/", "file:"))
  ]


def test_extras_have_names_that_any_pip_finds():
  """A wheel has `a-b` for `a_b`, which older ones ask for in vain."""
  for name in PROJECT["optional-dependencies"]:
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name), name


def test_each_format_of_exports_names_an_extra():
  for program in export.programs.programs():
    # As `export` tells how to install what it lacks.
    name = program.name.replace("_", "-")
    assert name in PROJECT["optional-dependencies"]


FILES = ["esrgan_jax/__init__.py", "esrgan_jax/export/photo.png"]
INFO = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"]


def _wheel(path, names):
  with zipfile.ZipFile(path, "w") as file:
    for name in names:
      file.writestr(name, b"")


def _sdist(path, names):
  with tarfile.open(path, "w:gz") as file:
    for name in names:
      file.addfile(tarfile.TarInfo(name), io.BytesIO())


@pytest.mark.parametrize(
  ("missing", "more", "expected"),
  [
    ((), (), []),
    ((FILES[1],), (), ["esrgan_jax/export/photo.png"]),
    (
      (),
      ("tests/goldens/losses.safetensors",),
      ["tests/goldens/losses.safetensors"],
    ),
  ],
)
def test_archives_hold_the_package_and_no_more(
  tmp_path, missing, more, expected
):
  names = [name for name in FILES if name not in missing] + [*more]
  wheel, sdist = tmp_path / "a-1-py3-none-any.whl", tmp_path / "a-1.tar.gz"
  _wheel(wheel, [*names, *(f"a-1.dist-info/{name}" for name in INFO)])
  own = ["PKG-INFO", "README.md", "LICENSE", "pyproject.toml", ".gitignore"]
  _sdist(sdist, [f"a-1/{name}" for name in [*names, *own]])
  for archive in (wheel, sdist):
    found = built.wrong(archive, set(FILES))
    top = "" if archive is wheel else "a-1/"
    what = "lacks" if missing else "has"
    assert found == [f"{archive.name} {what} {top}{each}" for each in expected]


def test_the_package_is_its_modules_a_picture_and_a_model():
  """A file of another kind is one to look at: does it belong there?"""
  others = {name for name in built.package() if not name.endswith(".py")}
  assert others == {
    "esrgan_jax/export/photo.png",
    "esrgan_jax/weights/shipped/esrgan-jax-fast-x4.md",
    "esrgan_jax/weights/shipped/esrgan-jax-fast-x4.safetensors",
  }
