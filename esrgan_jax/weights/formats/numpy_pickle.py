"""Reads pickles of NumPy arrays in dicts, and imports nothing that they name.

A pickle may name any function of any installed package, to be called. Here each
of the few names that such trees need stands for a function of this file; all
others are refused.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.weights.formats.limits import (
  MAX_AXES,
  DamagedFileError,
  need,
)
from esrgan_jax.weights.formats.torch_file import UnsafeFileError

__all__ = ["read_arrays"]


def read_arrays(data: bytes) -> dict[str, Any]:
  r"""Returns the tree of a pickle.

  Args:
    data: The pickle; its checksum has been compared by whoever calls, for what
      a hostile one may take of memory is not limited here.

  Returns:
    Nested dicts by name; what is no dict is an array.

  Raises:
    UnsafeFileError: If it names anything that a tree of arrays does not need.
    DamagedFileError: If it is cut off or malformed, or no such tree.

  >>> tree = {"layer": {"kernel": np.arange(3.0)}}
  >>> read_arrays(pickle.dumps(tree))["layer"]["kernel"].tolist()
  [0.0, 1.0, 2.0]
  >>> read_arrays(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.")
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.formats.torch_file.UnsafeFileError: refused: os.system...
  """
  try:
    tree = _Unpickler(io.BytesIO(data)).load()
  except (UnsafeFileError, DamagedFileError):
    raise
  # The standard library's own raises what its instructions happen to raise.
  except Exception as error:
    raise DamagedFileError(
      f"the pickle is cut off or malformed: {printable(error)}"
    ) from error
  return _plain(tree)


class _Array:
  """An array that is still to be filled: `state` is what NumPy pickles."""

  def __init__(self) -> None:
    self.value: np.ndarray | None = None

  def __setstate__(self, state: Any) -> None:
    need(isinstance(state, tuple) and len(state) == 5, "an array is malformed")
    _, shape, dtype, turned, raw = state
    need(
      isinstance(shape, tuple)
      and len(shape) <= MAX_AXES
      and all(type(n) is int and n >= 0 for n in shape)
      and isinstance(dtype, _Dtype)
      and isinstance(raw, bytes),
      "an array's shape, type or content is malformed",
    )
    kind = dtype.value()
    need(
      len(raw) == math.prod(shape) * kind.itemsize,
      f"an array of shape {shape} has {len(raw)} bytes",
    )
    flat = np.frombuffer(raw, kind)
    self.value = flat.reshape(shape, order="F" if turned else "C")


class _Dtype:
  """A type of numbers: `state` begins with a version and the byte order."""

  def __init__(self, name: object, *_: object) -> None:
    need(
      isinstance(name, str) and re.fullmatch("[fiu][1248]", name),
      "an array is not of plain numbers",
    )
    self._name, self._order = name, "<"

  def __setstate__(self, state: Any) -> None:
    need(
      isinstance(state, tuple)
      and len(state) > 1
      and state[1] in ("<", ">", "|"),
      "an array's byte order is unknown",
    )
    self._order = state[1]

  def value(self) -> np.dtype:
    return np.dtype(self._name).newbyteorder(self._order)


def _begin_array(*_: object) -> _Array:
  return _Array()


def _dict(tree: object = ()) -> dict:
  need(tree == () or isinstance(tree, dict), "a dict is malformed")
  return tree if isinstance(tree, dict) else {}


def _encode(text: object, coding: object = "latin1") -> bytes:
  # How pickles of protocol 2 hold bytes.
  need(isinstance(text, str) and coding == "latin1", "bytes are malformed")
  return text.encode("latin1")


_NAMES: dict[str, Callable[..., Any]] = {
  **{
    f"numpy.{core}.multiarray._reconstruct": _begin_array
    for core in ("core", "_core")
  },
  "numpy.ndarray": _begin_array,
  "numpy.dtype": _Dtype,
  "_codecs.encode": _encode,
  "collections.OrderedDict": _dict,
  "flax.core.frozen_dict.FrozenDict": _dict,
}


class _Unpickler(pickle.Unpickler):
  """One for which names stand for functions of this file."""

  def find_class(self, module: str, name: str) -> Any:
    full = f"{module}.{name}"
    if full not in _NAMES:
      raise UnsafeFileError(
        f"refused: {printable(full, limit=80)} (the file asks to call it;"
        " nothing was run). Only NumPy arrays in dicts are read"
      )
    return _NAMES[full]


def _plain(tree: Any, depth: int = 0) -> Any:
  """The arrays themselves, in dicts of text."""
  if isinstance(tree, _Array):
    need(tree.value is not None, "an array has no content")
    return tree.value
  need(isinstance(tree, dict) and depth < 20, "the pickle is no tree of arrays")
  need(all(isinstance(key, str) for key in tree), "a name is no text")
  return {key: _plain(value, depth + 1) for key, value in tree.items()}
