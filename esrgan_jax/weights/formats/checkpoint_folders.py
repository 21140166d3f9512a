"""Where a phase's checkpoints are, and which one is meant by a path.

| in a phase's folder     | what                                           |
| ----------------------- | ---------------------------------------------- |
| `checkpoints/`          | a folder a step                                |
| `checkpoints_2/`, ...   | the same, after the discriminator or an        |
|                         | optimizer began anew (`config.allow_changes`)  |
| `damaged_checkpoints/`  | what was proven damaged, while another step    |
|                         | was whole; never the last one                  |

Training goes on from the last of `checkpoints*` that has a step; those before
stay as they are.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from etils import epath

from esrgan_jax import storage
from esrgan_jax.models.registry import DEFAULT_GENERATOR
from esrgan_jax.weights.formats import stored_arrays as stored

__all__ = [
  "DAMAGED",
  "FOLDER",
  "Loaded",
  "current",
  "list_steps",
  "load_model",
  "newest",
  "number",
]

FOLDER = "checkpoints"
DAMAGED = "damaged_checkpoints"
DIVERGED = "diverged_checkpoints"

_PHASES = ("gan", "psnr")  # As `load_model` prefers them.


def list_steps(folder: epath.Path) -> list[int]:
  """Returns the steps of complete checkpoints, ascending.

  Args:
    folder: Where they are; need not exist.

  >>> list_steps(epath.Path("/nowhere"))
  []
  """
  if not folder.is_dir():
    return []
  found = [path for path in folder.iterdir() if path.name.isdecimal()]
  if storage.is_remote(folder):
    # On a disk, one that is not complete has another name.
    found = [p for p in found if (p / "commit_success.txt").exists()]
  return sorted(int(path.name) for path in found)


def number(folder: epath.Path) -> int:
  """Returns which of its phase's folders of checkpoints one is, or 0.

  >>> number(epath.Path("gan/checkpoints")), number(epath.Path("gan/samples"))
  (1, 0)
  """
  found = re.fullmatch(rf"{FOLDER}(?:_([1-9]\d*))?", folder.name)
  return int(found[1] or 1) if found else 0


def current(phase: epath.Path) -> epath.Path:
  """Returns the folder of checkpoints that a phase goes on from.

  Args:
    phase: The phase's folder; need not exist.

  >>> current(epath.Path("/nowhere")).name
  'checkpoints'
  """
  folders = [phase / FOLDER]
  if phase.is_dir():
    folders += [path for path in phase.iterdir() if number(path) > 1]
  folders.sort(key=number, reverse=True)
  return next(filter(list_steps, folders), phase / FOLDER)


def newest(phase: epath.Path) -> epath.Path | None:
  """Returns the newest checkpoint of a phase, or None.

  Args:
    phase: The phase's folder; need not exist.

  >>> newest(epath.Path("/nowhere"))
  """
  folder = current(phase)
  steps = list_steps(folder)
  return folder / str(steps[-1]) if steps else None


class Loaded(NamedTuple):
  """What `load_model` returns.

  Attributes:
    config: The network, for `registry.make_generator(**config)`.
    params: The averaged generator's parameters, NumPy arrays.
    info: What the checkpoint says of itself: its whole config and digests.
    collections: What goes with the parameters, such as `batch_stats`; mostly
      nothing.
  """

  config: dict[str, Any]
  params: dict[str, Any]
  info: dict[str, Any]
  collections: dict[str, Any]


def load_model(path: str | os.PathLike[str]) -> Loaded:
  """Reads the averaged generator from a workdir or its checkpoints.

  Args:
    path: A workdir (then phase two's, if it has begun), a phase's folder, its
      `checkpoints`, or one step in there. Otherwise the newest step.

  Returns:
    The generator.

  Raises:
    CheckpointError: If there is no checkpoint, it is damaged, or it cannot be
      read.

  >>> load_model("/nowhere")
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.formats.stored_arrays.CheckpointError: no checkpoint...
  """
  root = storage.absolute(path)
  with storage.reaching(root):
    found = _find(root)
  if not found:
    raise stored.CheckpointError(
      f"no checkpoint in {path}: give the workdir of a training run, or a"
      f" folder named {FOLDER}"
    )
  try:
    info, arrays = stored.read(found, items=("ema", "collections"))
  except stored.DamagedError as error:
    before = [n for n in list_steps(found.parent) if n < int(found.name)]
    if not before:
      raise
    raise stored.DamagedError(
      f"{error}. The step before is {found.parent / str(before[-1])}"
    ) from error
  config = {
    "architecture": DEFAULT_GENERATOR,  # Earlier versions had no other.
    **info["config"]["generator"],
    "scale": info["config"]["scale"],
  }
  collections = stored.nest(arrays.get("collections", {}))
  return Loaded(config, stored.nest(arrays["ema"]), info, collections)


def _find(root):
  """The checkpoint that is meant by a path."""
  for phase in (*(root / name for name in _PHASES), root):
    if found := newest(phase):
      return found
  steps = (root / str(step) for step in reversed(list_steps(root)))
  return next(filter(_is_one, (root, *steps)), None)


def _is_one(folder):
  """Whether it is a checkpoint, not a workdir with a number for a name."""
  return any((folder / item).is_dir() for item in (*stored.ITEMS, "info"))
