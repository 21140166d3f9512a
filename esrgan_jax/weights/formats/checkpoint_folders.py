"""Where a phase's checkpoints are, and what is read of one.

| in a phase's folder     | what                                           |
| ----------------------- | ---------------------------------------------- |
| `checkpoints/`          | a folder a step                                |
| `checkpoints_2/`, ...   | the same, after the discriminator or an        |
|                         | optimizer began anew (`config.allow_changes`)  |
| `damaged_checkpoints/`  | what was proven damaged, while another step    |
|                         | was whole; never the last one                  |

Training goes on from the last of `checkpoints*` that has a step; those before
stay as they are. `save_checkpoint` makes such a folder as a step's under any
name, without `state`.
"""

from __future__ import annotations

import pathlib
import re
import typing
from typing import Any, NamedTuple

from esrgan_jax import storage
from esrgan_jax.models.registry import (
  DEFAULT_DISCRIMINATOR,
  DEFAULT_GENERATOR,
)
from esrgan_jax.weights.formats import plain_checkpoints
from esrgan_jax.weights.formats import stored_arrays as stored

if typing.TYPE_CHECKING:
  from etils import epath

__all__ = [
  "DAMAGED",
  "DIVERGED",
  "FOLDER",
  "Loaded",
  "all_of",
  "current",
  "is_checkpoint",
  "is_ours",
  "list_steps",
  "load_discriminator",
  "load_model",
  "newest",
  "number",
  "steps_in",
  "whole_of",
]

_NUMBER = re.compile("0|[1-9][0-9]*")
# Digits that no file system would let be longer, lest int() refuses them.
_STEP = re.compile("(?:(.+)_)?([0-9]{1,255})")

FOLDER = "checkpoints"
DAMAGED = "damaged_checkpoints"
DIVERGED = "diverged_checkpoints"


def list_steps(folder: epath.Path) -> list[int]:
  """Returns the steps of complete checkpoints, ascending.

  Args:
    folder: Where they are; need not exist.

  >>> list_steps(pathlib.Path("/nowhere"))
  []
  """
  if not folder.is_dir():
    return []
  found = [path for path in folder.iterdir() if _NUMBER.fullmatch(path.name)]
  return sorted(int(path.name) for path in filter(_is_complete, found))


def number(folder: pathlib.PurePath) -> int:
  """Returns which of its phase's folders of checkpoints one is, or 0.

  >>> [number(pathlib.Path("gan", n)) for n in ("checkpoints_2", "samples")]
  [2, 0]
  """
  found = re.fullmatch(rf"{FOLDER}(?:_([1-9]\d*))?", folder.name)
  return int(found[1] or 1) if found else 0


def all_of(phase: epath.Path) -> list[epath.Path]:
  """Returns a phase's folders of checkpoints, the latest first.

  Args:
    phase: The phase's folder; need not exist.

  >>> all_of(pathlib.Path("/nowhere"))
  []
  """
  try:
    if not (phase / FOLDER).is_dir():
      return []
    found = [path for path in phase.iterdir() if number(path)]
  except PermissionError:  # Then it is none of ours.
    return []
  return sorted(found, key=number, reverse=True)


def is_checkpoint(folder: epath.Path) -> bool:
  """Returns whether a folder is a checkpoint, ours or another program's.

  A workdir may have a number for a name, too.

  >>> is_checkpoint(pathlib.Path("/nowhere/5000"))
  False
  """
  return is_ours(folder) or plain_checkpoints.is_saved(folder)


def is_ours(folder: epath.Path) -> bool:
  """Returns whether a folder is a checkpoint that is damaged without digests.

  Whatever is left of it: others have no `info`.

  >>> is_ours(pathlib.Path("/nowhere/5000"))
  False
  """
  info = folder / plain_checkpoints.INFO
  if not info.exists():
    return False
  if plain_checkpoints.is_described(folder) or any(
    (folder / item).is_dir() for item in stored.ITEMS
  ):
    return True
  named = folder.name.isdecimal() or (info / "metadata").is_file()
  return named and info.is_dir()


def whole_of(folder: epath.Path) -> epath.Path | None:
  """Returns the checkpoint of ours that a folder is a part of, or None.

  >>> whole_of(pathlib.Path("/nowhere/5000/ema"))
  """
  is_part = folder.name in (*stored.ITEMS, plain_checkpoints.INFO)
  return folder.parent if is_part and is_ours(folder.parent) else None


def steps_in(folder: epath.Path) -> list[epath.Path]:
  """Returns the checkpoints of steps in any folder, ascending.

  Another program's may have zeros before their numbers, and before those a word
  (`CheckpointManagerOptions`): one word for all, or they are of several models.

  >>> steps_in(pathlib.Path("/nowhere"))
  []
  """
  if not folder.is_dir():
    return []
  found = {}
  for path in filter(_is_complete, folder.iterdir()):
    match = _STEP.fullmatch(path.name)
    if match and is_checkpoint(path):
      found.setdefault(match[1] or "", []).append((int(match[2]), path))
  steps = found.get("", [])
  if not steps and len(found) == 1:
    (steps,) = found.values()
  return [path for _, path in sorted(steps)]


def _is_complete(step):
  # On a disk, one that is not complete has another name.
  return not storage.is_remote(step) or (step / "commit_success.txt").exists()


def current(phase: epath.Path) -> epath.Path:
  """Returns the folder of checkpoints that a phase goes on from.

  Args:
    phase: The phase's folder; need not exist.

  >>> current(pathlib.Path("/nowhere")).name
  'checkpoints'
  """
  return next(filter(list_steps, all_of(phase)), phase / FOLDER)


def newest(phase: epath.Path) -> epath.Path | None:
  """Returns the newest checkpoint of a phase, or None.

  Args:
    phase: The phase's folder; need not exist.

  >>> newest(pathlib.Path("/nowhere"))
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


def load_model(folder: epath.Path) -> Loaded:
  """Reads the averaged generator of a checkpoint.

  Args:
    folder: The step's; `weights.find` finds it.

  Returns:
    The generator.

  Raises:
    CheckpointError: If it is damaged, or cannot be read.
  """
  info, arrays = _read(folder, ("ema", "collections"))
  match info.get("config"):
    case {"generator": {**fields}, "scale": scale}:
      pass
    case _:
      raise stored.DamagedError(
        f"{folder} is damaged: its info has a config without a network"
      )
  # Earlier versions had no other.
  config = {"architecture": DEFAULT_GENERATOR, **fields, "scale": scale}
  collections = stored.nest(arrays.get("collections", {}))
  return Loaded(config, stored.nest(arrays["ema"]), info, collections)


def load_discriminator(
  folder: epath.Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the discriminator of a checkpoint.

  Args:
    folder: The step's.

  Returns:
    Its architecture and fields; and its variables, NumPy arrays, `params` and,
    where it has them, `batch_stats`. Both are empty where the phase has no
    discriminator.

  Raises:
    CheckpointError: If it is damaged, or cannot be read.
  """
  info, arrays = _read(folder, ("state",))
  state = stored.nest(arrays["state"])
  if not state.get("d_params"):
    return {}, {}
  match info.get("config"):
    case {"discriminator": {**fields}}:
      config = {"architecture": DEFAULT_DISCRIMINATOR, **fields}
    case _:
      config = {}
  variables = {"params": state["d_params"]}
  if stats := state.get("d_batch_stats"):
    variables["batch_stats"] = stats
  return config, variables


def _read(folder, items):
  try:
    return stored.read(folder, items=items)
  except stored.DamagedError as error:
    if not folder.name.isdecimal():
      raise
    before = [n for n in list_steps(folder.parent) if n < int(folder.name)]
    if not before:
      raise
    raise stored.DamagedError(
      f"{error}. The step before is {folder.parent / str(before[-1])}"
    ) from error
