"""What a step's checkpoint holds, read and verified; without Orbax.

`orbax_writer` has Orbax write them. Its reader raises one and the same error
for a flipped bit, for arrays of another shape and for a file system that does
not answer, and leaves half of its reads behind. Here each has its own: what is
damaged has been read from end to end, twice, and is not what was saved.

A checkpoint is a folder named by its step: `info/metadata`, JSON, with a
SHA-256 of itself and of each item; `ema/`, the averaged generator;
`collections/`, what goes with its parameters, of the few networks that have
such; `state/`, all the rest. An item has its tree in `_METADATA`, and a Zarr
array a leaf in an OCDBT database. Trees that others had Orbax write are the
same but for `info`: `plain_checkpoints` says where they are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from esrgan_jax import storage
from esrgan_jax.text import printable
from esrgan_jax.weights.formats import limits

if typing.TYPE_CHECKING:
  from etils import epath

__all__ = [
  "ITEMS",
  "CheckpointError",
  "DamagedError",
  "Stored",
  "attempt",
  "digest",
  "digest_by_leaf",
  "digest_of_info",
  "flatten",
  "nest",
  "open_arrays",
  "path_of",
  "read",
  "read_arrays",
  "read_info",
  "read_shapes",
  "reason",
]

ITEMS = ("state", "ema", "collections")
_BY_LEAF = "by_leaf:"  # How a digest begins that is one of digests.

# Only of generators that have more than parameters.
_OPTIONAL = ("collections",)

# A key of a dict or the name of a field, or an index, a level.
Path = tuple[str | int, ...]

_INDEX = 1  # Orbax's `key_type` of a list's or tuple's.

# Of a tree's description; a whole training state's takes 0.1 MB.
_MAX_DESCRIPTION = 2**25
_MAX_DEPTH = 64

# Arrays of one value are compressed to nothing. So many bytes are believed,
# four times the largest RRDBNet; and so many more for each that is stored.
_BELIEVED = 2**28
_RATIO = 2**10

# Seconds to wait for a file system that does not answer.
_PAUSES = (0.5, 2.0)
_BLOCK = 1 << 24


class CheckpointError(ValueError):
  """A checkpoint that is absent, or cannot be used; the message says why."""


class DamagedError(CheckpointError):
  """A checkpoint that can be read, and is not what was saved."""


class Stored(NamedTuple):
  """What `read` returns.

  Attributes:
    info: Config, metrics and digests.
    arrays: NumPy arrays by item and path.
  """

  info: dict[str, Any]
  arrays: dict[str, dict[Path, np.ndarray]]


def read_info(folder: epath.Path) -> dict[str, Any]:
  """Reads the config, metrics and digests of a checkpoint.

  Args:
    folder: The checkpoint's.

  Returns:
    As it was saved.

  Raises:
    CheckpointError: If it is damaged, or cannot be read.
  """
  return attempt(folder, lambda: _read_info(folder))


def read_shapes(folder: epath.Path) -> dict[str, dict[Path, Any]]:
  """Reads what arrays a checkpoint holds, and none of them.

  Args:
    folder: The checkpoint's.

  Returns:
    By item and path, with `shape` and `dtype`.

  Raises:
    CheckpointError: If it is damaged, or cannot be read.
  """

  def shapes():
    return {
      name: open_arrays(folder / name)
      for name in ITEMS
      if name not in _OPTIONAL or (folder / name).is_dir()
    }

  return attempt(folder, shapes)


def read(folder: epath.Path, *, items: Sequence[str] = ITEMS) -> Stored:
  """Reads a checkpoint, and compares it with its digests.

  Args:
    folder: The checkpoint's.
    items: Which ones to read; of `collections`, what there is.

  Returns:
    What is in it, exactly as it was saved.

  Raises:
    DamagedError: If it is not what was saved.
    CheckpointError: If it cannot be read: a file system that does not answer,
      or does not permit it, says nothing about what it holds.
  """

  def whole():
    info = _read_info(folder)
    arrays = {}
    for name in items:
      if name in _OPTIONAL and name not in info["sha256"]:
        continue
      arrays[name] = read_arrays(folder, open_arrays(folder / name))
      if not (expected := info["sha256"].get(name)):
        raise ValueError(f"its info has no digest of {name}")
      by_leaf = expected.startswith(_BY_LEAF)
      found = (digest_by_leaf if by_leaf else digest)(arrays[name])
      _compare(f"item {name!r}", found, expected)
    return Stored(info, arrays)

  return attempt(folder, whole)


def open_arrays(folder: epath.Path) -> dict[Path, Any]:
  """Opens the arrays of a tree that Orbax wrote, and reads none.

  Texts and empty nodes are left out.

  Args:
    folder: The tree's, with `_METADATA`.

  Returns:
    TensorStore's arrays by path, with `shape` and `dtype`.

  Raises:
    ValueError: If the tree's description is none; TensorStore and file systems
      have errors of their own. See `attempt`.
  """
  import tensorstore

  with (folder / "_METADATA").open("rb") as file:
    text = file.read(_MAX_DESCRIPTION + 1)
  described = json.loads(text) if len(text) <= _MAX_DESCRIPTION else None
  paths = _paths(described)
  is_database = described.get("use_ocdbt", True)
  context = tensorstore.Context()  # A new one: nothing is taken from a cache.
  opened = {}
  for path in paths:
    name = ".".join(map(str, path))
    if is_database:
      place = {
        "driver": "ocdbt",
        "base": storage.kvstore(folder),
        "path": f"{name}/",
      }
    elif re.search(r"[/\\\0]|^\.*$", name):
      raise ValueError(f"no folder can be called {printable(repr(name))}")
    else:
      place = storage.kvstore(folder / name)
    spec = {
      "driver": "zarr3" if described.get("use_zarr3") else "zarr",
      "kvstore": place,
    }
    opened[path] = tensorstore.open(spec, read=True, context=context)
  return {path: future.result() for path, future in opened.items()}


def read_arrays(
  folder: epath.Path, opened: Mapping[Path, Any]
) -> dict[Path, np.ndarray]:
  """Reads arrays, all at once, if their files are large enough for them.

  Args:
    folder: Where all of the files are.
    opened: As of `open_arrays`.

  Returns:
    NumPy arrays by path.

  Raises:
    ValueError: If they claim more than the files justify; TensorStore has
      errors of its own. See `attempt`.
  """
  claimed = sum(map(_claim, opened.values()))
  if claimed > _BELIEVED:
    there = _size(folder)
    if claimed > (limit := _BELIEVED + _RATIO * there):
      raise ValueError(
        f"its arrays take {claimed} bytes by what it says of itself; its files,"
        f" of {there}, justify {limit}"
      )
  reads = {path: array.read() for path, array in opened.items()}
  return {path: future.result() for path, future in reads.items()}


def attempt(folder: epath.Path, call: Callable[[], Any]) -> Any:
  """Tells what is damaged from what cannot be read now.

  Args:
    folder: What is read.
    call: Reads it.

  Returns:
    What the call returns.

  Raises:
    DamagedError: If all of the folder can be read, and the call fails.
    CheckpointError: If it cannot.
  """
  pauses, failures = list(_PAUSES), 0
  while True:
    try:
      return call()
    except (MemoryError, ImportError):
      raise
    except Exception as error:  # Of TensorStore, JSON, file systems.
      problem = error
    if not (obstacle := _obstacle(folder)):
      failures += 1
      if failures == 2:
        raise DamagedError(
          f"{folder} is damaged: {reason(problem)}"
        ) from problem
    elif pauses:
      time.sleep(pauses.pop(0))
    else:
      raise CheckpointError(
        f"{folder} cannot be read: {obstacle}. Nothing was moved or removed:"
        " the same command goes on once it can be read"
      ) from problem


def flatten(tree: Any) -> dict[Path, Any]:
  """Returns the leaves of a tree by path, in the order of their paths.

  >>> flatten({"b": [1, 2], "a": 0})
  {('a',): 0, ('b', 0): 1, ('b', 1): 2}
  """
  leaves = {
    path_of(keys): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  return {path: leaves[path] for path in sorted(leaves)}


def path_of(keys: Sequence[Any]) -> Path:
  """Returns a path of JAX's as names and indices.

  >>> path_of((jax.tree_util.GetAttrKey("mu"), jax.tree_util.SequenceKey(1)))
  ('mu', 1)
  """
  names = ("key", "name", "idx")
  return tuple(
    next(getattr(key, name) for name in names if hasattr(key, name))
    for key in keys
  )


def nest(arrays: Mapping[Path, Any]) -> dict[str, Any]:
  """Returns leaves by path as dicts in dicts.

  >>> nest({("a", "b"): 1, ("a", "c"): 2})
  {'a': {'b': 1, 'c': 2}}
  """
  tree: dict[str, Any] = {}
  for (*parents, last), leaf in arrays.items():
    level = tree
    for parent in parents:
      level = level.setdefault(parent, {})
    level[last] = leaf
  return tree


def digest(arrays: Mapping[Path, Any]) -> str:
  """Returns the SHA-256 of arrays: of their paths, types, shapes and bytes.

  Args:
    arrays: Arrays of one tree by path, as of `flatten`; of JAX, they must be on
      this process's devices in whole.

  >>> digest(flatten({"bias": np.zeros(3, np.float32)}))[:12]
  '5677989ec1ae'
  """
  found = hashlib.sha256()
  for path in sorted(arrays):
    _feed(found, path, arrays[path])
  return found.hexdigest()


def digest_by_leaf(arrays: Mapping[Path, Any]) -> str:
  """Returns the SHA-256 of those of each array.

  They need not be in one place: of arrays that several processes share, each
  can take its own, and a few lines of text make the whole.

  Args:
    arrays: As of `digest`.

  >>> digest_by_leaf(flatten({"bias": np.zeros(3, np.float32)}))[:19]
  'by_leaf:a9e3b294532'
  """
  whole = hashlib.sha256()
  for path in sorted(arrays):
    found = hashlib.sha256()
    _feed(found, path, arrays[path])
    whole.update(f"{found.hexdigest()}\n".encode())
  return f"{_BY_LEAF}{whole.hexdigest()}"


def _feed(found, path, array):
  array = np.ascontiguousarray(array)
  name = "/".join(map(str, path))
  found.update(f"{name} {array.dtype} {array.shape}\0".encode())
  found.update(array.reshape(-1).view(np.uint8).data)


def digest_of_info(info: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of all that an info says but for this.

  >>> digest_of_info({"sha256": {"ema": "12"}})[:12]
  '42b430ea8251'
  """
  others = {k: v for k, v in info["sha256"].items() if k != "info"}
  text = json.dumps({**info, "sha256": others}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def reason(error: BaseException) -> str:
  """Returns what an error of a file system, TensorStore or Orbax comes to.

  Args:
    error: The error.

  Returns:
    One line: what the operating system said, if it did.

  >>> reason(ValueError("INTERNAL: /a/b: no [os_error_code='28']"))
  'No space left on device'
  """
  if isinstance(error, OSError) and error.strerror:
    name = f": {printable(error.filename)}" if error.filename else ""
    return f"{error.strerror}{name}"
  text = " ".join(str(error).split())
  if found := re.search(r"os_error_code='(\d+)'", text):
    return os.strerror(int(found[1]))
  text = re.split(r" \[(?:tensorstore_spec|source locations)=", text)[0]
  return printable(text or type(error).__name__)


def _read_info(folder):
  info = json.loads((folder / "info" / "metadata").read_text())
  match info:
    case {"sha256": {**digests}}:
      if not all(isinstance(each, str) for each in digests.values()):
        raise ValueError("its info has digests (sha256) that are no text")
    case _:
      raise ValueError("its info has no digests (sha256)")
  if "info" in info["sha256"]:  # Earlier versions wrote none.
    _compare("info", digest_of_info(info), info["sha256"]["info"])
  return info


def _paths(described):
  """The paths of a tree's arrays, by what it says of itself."""
  match described:
    case {"tree_metadata": {**leaves}} if len(leaves) <= limits.MAX_ARRAYS:
      return [
        path for leaf in leaves.values() if (path := _path(leaf)) is not None
      ]
  raise ValueError("its _METADATA is no description of a tree of arrays")


def _path(leaf):
  """The path of a leaf; None if it is no array."""
  match leaf:
    case {
      "key_metadata": [*keys],
      "value_metadata": {"skip_deserialize": bool(empty), **value},
    } if len(keys) <= _MAX_DEPTH:
      path = tuple(
        int(each["key"]) if each["key_type"] == _INDEX else str(each["key"])
        for each in keys
      )
      if max((len(str(key)) for key in path), default=0) <= limits.MAX_NAME:
        # Texts are in a file of their own.
        return None if empty or value.get("value_type") == "string" else path
  raise ValueError("its _METADATA describes a leaf that none can be")


def _claim(array):
  """Bytes that reading an array takes, by what it says of itself."""
  if len(array.shape) > limits.MAX_AXES:
    raise ValueError(
      f"an array of {len(array.shape)} axes; the limit is {limits.MAX_AXES}"
    )
  # A block is read in whole, for however little of it.
  block = array.chunk_layout.read_chunk.shape or ()
  sides = map(max, array.shape, block, itertools.repeat(1))
  return math.prod(sides) * array.dtype.numpy_dtype.itemsize


def _size(folder):
  """Bytes of all files below a folder."""
  total = 0
  for path in folder.iterdir():
    if path.is_dir():
      total += _size(path)
    else:
      status = path.stat()
      # Buckets' paths have their own name for it.
      total += getattr(status, "st_size", None) or getattr(status, "length", 0)
  return total


def _compare(what, found, expected):
  if found != expected:
    there, saved = (
      str(each).removeprefix(_BY_LEAF)[:12] for each in (found, expected)
    )
    raise DamagedError(
      f"{what} is not what was saved: SHA-256 {there} instead of {saved}"
    )


def _obstacle(folder):
  """Why not every file of a folder can be read from end to end, or nothing."""
  try:
    for path in folder.iterdir():
      if path.is_dir():
        if found := _obstacle(path):
          return found
        continue
      with path.open("rb") as file:
        while file.read(_BLOCK):
          pass
  except MemoryError:
    raise
  except Exception as error:  # Buckets have errors of their own.
    return reason(error)
  return ""
