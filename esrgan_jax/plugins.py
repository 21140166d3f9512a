"""Code of the user's that registers networks, phases and measures of their own.

Only what the user names is run: an argument, `config.plugins`, or the variable
`ESRGAN_JAX_PLUGINS`. What a weight file or a workdir names is never run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterable

from esrgan_jax.errors import UsageError
from esrgan_jax.text import printable

VARIABLE = "ESRGAN_JAX_PLUGINS"
_PACKAGE = "__init__.py"


def load(
  names: Iterable[str | os.PathLike] | str | os.PathLike = (),
  *,
  folder: str | os.PathLike = "",
) -> None:
  """Runs plugins, each once a process: those named, and the variable's.

  Args:
    names: Python files, or modules that can be imported; one alone may be
      given as it is.
    folder: Where files are looked for first, besides the working folder: that
      of the config which names them.

  Raises:
    ValueError: If there is no such file or module, or it fails; names it.

  >>> load(["nowhere.py"])
  Traceback (most recent call last):
  ...
  esrgan_jax.errors.UsageError: no plugin nowhere.py: give a Python file, or ...
  """
  if isinstance(names, str | os.PathLike):
    names = [names]
  given = os.environ.get(VARIABLE, "").split(os.pathsep)
  for name in (*filter(None, given), *names):
    _load(str(name), pathlib.Path(folder))


def _load(name: str, folder: pathlib.Path) -> None:
  places = [folder / name, pathlib.Path(name)]
  path = next((p.resolve() for p in places if p.is_file()), None)
  is_name = all(map(str.isidentifier, name.split(".")))
  # Python would take any folder for an empty package.
  is_name &= not any(p.is_dir() and not (p / _PACKAGE).exists() for p in places)
  if path is None and (name.endswith(".py") or not is_name):
    raise UsageError(
      f"no plugin {printable(name) or repr(name)}: give a Python file, or a"
      " module's name"
    )
  try:
    if path is None:
      importlib.import_module(name)
    elif not _is_loaded(path):
      _run(path)
  except (Exception, SystemExit) as error:
    # Ending the program is not for a plugin: nobody would know why.
    raise ValueError(
      f"plugin {printable(name)} fails: {type(error).__name__}:"
      f" {printable(error)}"
    ) from error


def _is_loaded(path):
  """Whether a file has been run, by us or by another plugin's import."""
  files = [getattr(m, "__file__", None) for m in list(sys.modules.values())]
  return any(
    isinstance(file, str)
    and os.path.basename(file) == path.name
    and pathlib.Path(file).resolve() == path
    for file in files
  )


def _run(path):
  if _is_importable(path):
    # So that another plugin's import of it does not run it again.
    importlib.import_module(path.stem)
    return
  name = f"esrgan_jax_plugin_{path.stem}_{hash(path) & 0xFFFFFF:x}"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise


def _is_importable(path):
  """Whether `import STEM` is this very file."""
  if not path.stem.isidentifier() or path.stem in sys.modules:
    return False
  spec = importlib.util.find_spec(path.stem)
  origin = spec and spec.origin
  return bool(origin) and pathlib.Path(origin).resolve() == path
