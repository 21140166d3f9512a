"""Names for a network that has no dialect: the paths of its own tree.

Made for networks of the user's own, which no other program knows: `a.b.kernel`
is `params["a"]["b"]["kernel"]` as it is, and below `collections.` stand the
variables besides, such as `collections.batch_stats.norm.mean`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.weights.dialects.protocol import (
  StateDict,
  UnsupportedWeightsError,
  as_float32,
)

__all__ = ["from_state_dict", "to_state_dict"]

_COLLECTIONS = "collections"
_MAX_DEPTH = 32


def from_state_dict(
  state: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the parameter tree and the collections that named arrays are.

  Args:
    state: Name to array.

  Raises:
    UnsupportedWeightsError: If there are none, a name is no path, or a weight
      is no number or not finite.

  >>> state = {"up.bias": np.ones(1), "collections.stats.mean": np.zeros(1)}
  >>> params, collections = from_state_dict(state)
  >>> params, list(collections)
  ({'up': {'bias': array([1.], dtype=float32)}}, ['stats'])
  """
  tree: dict[str, Any] = {}
  for name, value in state.items():
    *parents, last = str(name).split(".")
    level: Any = tree
    for parent in parents[:_MAX_DEPTH]:
      level = level.setdefault(parent, {}) if isinstance(level, dict) else None
    if (
      not all((*parents, last))
      or len(parents) > _MAX_DEPTH
      or not isinstance(level, dict)
      or last in level
    ):
      raise UnsupportedWeightsError(
        f"{printable(name)} is no path of a tree of parameters"
      )
    level[last] = _weight(name, value)
  collections = tree.pop(_COLLECTIONS, {})
  if not tree or not isinstance(collections, dict):
    raise UnsupportedWeightsError("there are no parameters")
  return tree, collections


def to_state_dict(
  params: Mapping[str, Any], collections: Mapping[str, Any]
) -> StateDict:
  """Returns the arrays of a network under the paths of its tree.

  Args:
    params: Its parameters.
    collections: Its variables besides.

  Raises:
    UnsupportedWeightsError: If a name in the tree has a dot, or cannot be told
      from a collection.

  >>> list(to_state_dict({"up": {"bias": np.ones(1)}}, {"stats": {}}))
  ['up.bias']
  """
  if _COLLECTIONS in params:
    raise UnsupportedWeightsError(
      f"parameters cannot be called {_COLLECTIONS!r} in a file"
    )
  tree = {**params, _COLLECTIONS: collections}
  return {
    ".".join(path): _weight(path, value) for path, value in _leaves(tree, ())
  }


def _leaves(
  tree: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
  for key, value in tree.items():
    if not key or "." in key:
      raise UnsupportedWeightsError(
        f"{printable(key)!r} in the tree is no name that a file can have"
      )
    if isinstance(value, Mapping):
      yield from _leaves(value, (*path, key))
    else:
      yield (*path, key), value


def _weight(name: Any, value: Any) -> np.ndarray:
  """Floats become float32; counts and flags stay as they are."""
  if not (hasattr(value, "shape") and hasattr(value, "dtype")):
    raise UnsupportedWeightsError(f"{printable(name)} is no array")
  value = np.asarray(value)
  if value.dtype.kind in "biu":
    return value
  result = np.empty(value.shape, np.float32)
  as_float32(name if isinstance(name, str) else ".".join(name), value, result)
  return result
