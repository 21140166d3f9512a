"""Trees that other programs had Orbax save: where they are, what they claim.

| written by                              | what it is                        |
| --------------------------------------- | --------------------------------- |
| `StandardCheckpointer().save(FOLDER)`   | a tree, with `_METADATA`          |
| `PyTreeCheckpointer().save(FOLDER)`     | the same                          |
| `CheckpointManager(FOLDER).save(STEP)`  | `STEP/default`, or a tree an item |
| `v1.save(FOLDER)`                       | `FOLDER/state` or `FOLDER/pytree` |

None has a digest, and none is believed: descriptions and arrays are no larger
than their files justify. A tree without `info` beside it is another program's;
one with it is ours, and damaged if it is not as we write it.
"""

from __future__ import annotations

import itertools
import json
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from esrgan_jax.weights.formats import stored_arrays as stored

if typing.TYPE_CHECKING:
  from etils import epath

__all__ = [
  "NoConfigError",
  "config_beside",
  "is_described",
  "is_saved",
  "open_all",
  "read_config",
  "read_some",
]

CONFIG = "config.json"
INFO = "info"  # What only ours have.
_TREE = "_METADATA"
_ITEMS = "_CHECKPOINT_METADATA"
_MAX_CONFIG = 2**20  # Bytes.
_MAX_ITEMS = 64


class NoConfigError(ValueError):
  """A file is whole, and not the config of a network; says whose."""


def is_saved(folder: epath.Path) -> bool:
  """Returns whether a folder is a checkpoint that another program had saved.

  >>> import pathlib
  >>> is_saved(pathlib.Path("/nowhere"))
  False
  """
  if (folder / INFO).exists():
    return False
  return (folder / _TREE).is_file() or bool(_items(folder))


def is_described(folder: epath.Path) -> bool:
  """Returns whether a folder says that it is a checkpoint, anybody's.

  >>> import pathlib
  >>> is_described(pathlib.Path("/nowhere"))
  False
  """
  return any((folder / name).is_file() for name in (_TREE, _ITEMS))


def open_all(folder: epath.Path) -> dict[stored.Path, Any]:
  """Opens the arrays of a checkpoint, and reads none.

  Args:
    folder: As of `is_saved`.

  Returns:
    By path, with `shape` and `dtype`; of several items, the item's name comes
    first.

  Raises:
    CheckpointError: If it is damaged, or cannot be read.
  """

  def each():
    if (folder / _TREE).is_file():
      return stored.open_arrays(folder)
    return {
      (item.name, *path): array
      for item in _items(folder)
      for path, array in stored.open_arrays(item).items()
    }

  return stored.attempt(folder, each)


def read_some(
  folder: epath.Path, opened: Mapping[stored.Path, Any]
) -> dict[stored.Path, np.ndarray]:
  """Reads arrays of a checkpoint, if its files are large enough for them.

  Args:
    folder: As of `is_saved`.
    opened: As of `open_all`, or some of it.

  Returns:
    NumPy arrays by path.

  Raises:
    CheckpointError: If it is damaged, cannot be read, or claims too much.
  """
  return stored.attempt(folder, lambda: stored.read_arrays(folder, opened))


def config_beside(
  folder: epath.Path,
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
  """Reads the config that lies beside a checkpoint, if one does.

  Looked for is an item `config`, of `JsonSave`; then `config.json` in the
  folder; then in the two above it, such as a workdir's.

  Args:
    folder: As of `is_saved`.

  Returns:
    The network's fields, as they stand there, or None if there are none; and
    notes on what was left out.

  Raises:
    ValueError: If a config in the folder itself is none, or one above is no
      whole JSON.

  >>> import pathlib
  >>> config_beside(pathlib.Path("/nowhere"))
  (None, ())
  """
  for place in (folder / "config" / "metadata", folder / CONFIG):
    if place.is_file():
      return read_config(place), ()
  notes = []
  for above in itertools.islice(folder.parents, 2):
    path = above / CONFIG
    if not path.is_file():
      continue
    try:
      return read_config(path), tuple(notes)
    except NoConfigError as error:
      # Other programs have such files, too.
      notes.append(f"{error}; it was left out")
    except ValueError as error:
      # It may have been the network's, which shapes may not tell.
      raise ValueError(
        f"{error}; mend it or take it away, or give another one (--config FILE,"
        " in Python config=)"
      ) from error
  return None, tuple(notes)


def read_config(path: epath.Path) -> dict[str, Any]:
  """Reads a network's fields from a file: such fields alone, or a training's.

  Args:
    path: The file.

  Returns:
    The fields, as they stand there.

  Raises:
    NoConfigError: If they are none.
    ValueError: If it is damaged, or cannot be read.
  """
  try:
    with path.open("rb") as file:
      text = file.read(_MAX_CONFIG + 1)
    if len(text) > _MAX_CONFIG:
      raise NoConfigError(f"it has more than {_MAX_CONFIG} bytes")
    found = json.loads(text)
    match found:
      case {"generator": {**fields}, "scale": scale}:  # A training's.
        return {**fields, "scale": scale}
      case {"scale": _}:
        return found
    raise NoConfigError(
      "it is no object with scale, and architecture and fields"
    )
  except (OSError, ValueError, RecursionError) as error:
    kind = NoConfigError if isinstance(error, NoConfigError) else ValueError
    raise kind(
      f"{path} is no config of a network: {stored.reason(error)}"
    ) from error


def _items(folder):
  """The trees of a checkpoint of several."""
  if not (folder / _ITEMS).is_file():
    return []
  found = [path for path in folder.iterdir() if (path / _TREE).is_file()]
  return sorted(found, key=lambda path: path.name)[:_MAX_ITEMS]
