"""What a workdir of training holds: phases, their models and checkpoints.

| in a workdir              | what                               |
| ------------------------- | ---------------------------------- |
| `models/NAME.safetensors` | a phase's model, once it is done   |
| `NAME/checkpoints`        | a phase's checkpoints              |
| `config.json`             | the run's config, with their order |
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any

from esrgan_jax.weights.formats import checkpoint_folders as folders

if typing.TYPE_CHECKING:
  from etils import epath

__all__ = ["MIXED", "MODELS", "SUFFIX", "model_of", "order", "phases"]

SUFFIX = ".safetensors"
MODELS = "models"
MIXED = "interpolated_"  # How models between two phases' are called.

# Of a workdir that does not say; all were so once.
_PHASES = ("psnr", "gan")


def phases(workdir: epath.Path) -> tuple[str, ...]:
  """Returns the phases of which a workdir has something, in their order.

  Args:
    workdir: A folder. What is none of training's has no phases.

  >>> import pathlib
  >>> phases(pathlib.Path("/"))
  ()
  """
  there = _there(workdir)
  if not there:
    return ()
  ordered = order(workdir)
  # A model that a run began with stands before its phases.
  others = sorted(there - set(ordered), key=lambda n: (n not in _PHASES, n))
  return (*others, *(name for name in ordered if name in there))


def model_of(workdir: epath.Path, phase: str) -> epath.Path:
  """Returns where the model of a phase is, once it is finished.

  >>> import pathlib
  >>> model_of(pathlib.Path("run"), "gan").as_posix()
  'run/models/gan.safetensors'
  """
  return workdir / MODELS / f"{phase}{SUFFIX}"


def order(workdir: epath.Path) -> tuple[str, ...]:
  """Returns the phases that a workdir's config has, in their order.

  >>> import pathlib
  >>> order(pathlib.Path("/"))
  ('psnr', 'gan')
  """
  try:
    config = json.loads((workdir / "config.json").read_text())
    named = [name for name in config.get("phases", ()) if name not in _PHASES]
    return tuple(map(str, config.get("phase_order") or (*_PHASES, *named)))
  except (OSError, ValueError, AttributeError, TypeError):
    return _PHASES


def _there(workdir: Any) -> set[str]:
  """The phases that have a model or a folder of checkpoints."""
  models = workdir / MODELS
  names = [path.stem for path in _listed(models) if path.suffix == SUFFIX]
  names = [name for name in names if not name.startswith(MIXED)]
  names += [path.name for path in _listed(workdir) if folders.all_of(path)]
  return set(names)


def _listed(folder: Any) -> Iterator[Any]:
  try:
    yield from folder.iterdir()
  except (FileNotFoundError, NotADirectoryError, PermissionError):
    return
