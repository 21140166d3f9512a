"""What optional packages are called, for messages that tell what is missing.

They are named one by one, as `pyproject.toml` has them, and not by an extra of
this package: an index may have none of that name, or a stranger's.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex

__all__ = ["explain_missing", "pip_install"]

# What the programs that train import, and the others do without.
_TRAINING = {"absl", "clu", "etils", "ml_collections", "orbax", "tensorboard"}


def pip_install(extra: str, *modules: str) -> str:
  """Returns the command that installs what an extra has.

  Args:
    extra: One of `pyproject.toml`'s.
    modules: What to name instead where there is no such extra, for a plugin's.

  Returns:
    `pip install` and the packages; where this package is not installed, as in
    a clone that is on the path, the extra of the folder.

  >>> pip_install("heif").partition(">")[0]
  "pip install 'pi-heif"
  >>> pip_install("of_a_plugin", "runtime")
  'pip install runtime'
  """
  try:
    requirements = importlib.metadata.requires("esrgan-jax") or []
  except importlib.metadata.PackageNotFoundError:
    return f"pip install {shlex.quote(f'.[{extra}]')}"
  found = []
  for requirement in requirements:
    package, _, condition = requirement.partition(";")
    if re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", condition):
      found.append(package.strip())
  return f"pip install {' '.join(map(shlex.quote, found or modules))}"


def explain_missing(error: BaseException) -> str:
  """Returns what is said of a missing package of training, else nothing.

  >>> explain_missing(ModuleNotFoundError(name="clu.metrics")).partition(":")[0]
  'training takes clu, which is not installed'
  >>> explain_missing(ModuleNotFoundError(name="a")), explain_missing(OSError())
  ('', '')
  """
  name = getattr(error, "name", None) or ""
  package = name.partition(".")[0]
  if not isinstance(error, ModuleNotFoundError) or package not in _TRAINING:
    return ""
  return (
    f"training takes {package}, which is not installed: {pip_install('train')}"
  )
