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

from esrgan_jax.text import printable

VARIABLE = "ESRGAN_JAX_PLUGINS"


def load(names: Iterable[str] = (), *, folder: str | os.PathLike = "") -> None:
  """Runs plugins, each once a process: those named, and the variable's.

  Args:
    names: Python files, or modules that can be imported.
    folder: Where files are looked for first, besides the working folder: that
      of the config which names them.

  Raises:
    ValueError: If there is no such file or module, or it fails; names it.

  >>> load(["nowhere.py"])
  Traceback (most recent call last):
  ...
  ValueError: no plugin nowhere.py: give a Python file, or a module's name
  """
  given = os.environ.get(VARIABLE, "").split(os.pathsep)
  for name in (*filter(None, given), *names):
    _load(str(name), pathlib.Path(folder))


def _load(name: str, folder: pathlib.Path) -> None:
  places = [folder / name, pathlib.Path(name)]
  path = next((p.resolve() for p in places if p.is_file()), None)
  if path is None and (name.endswith(".py") or os.sep in name):
    raise ValueError(
      f"no plugin {printable(name)}: give a Python file, or a module's name"
    )
  try:
    if path is None:
      importlib.import_module(name)
      return
    module_name = f"esrgan_jax_plugin_{path.stem}_{hash(path) & 0xFFFFFF:x}"
    if module_name in sys.modules:
      return
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
      spec.loader.exec_module(module)
    except BaseException:
      del sys.modules[module_name]
      raise
  except Exception as error:
    raise ValueError(
      f"plugin {printable(name)} fails: {type(error).__name__}:"
      f" {printable(error)}"
    ) from error
