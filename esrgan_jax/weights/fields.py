"""A network's configuration as it stands in files, which are not believed.

The architecture's name is only looked up; fields are plain values, of those
that the architecture has and of the kind that their defaults are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from esrgan_jax.models import registry
from esrgan_jax.text import printable

__all__ = [
  "KEY",
  "LIMITS",
  "checked",
  "fits",
  "from_text",
  "registered",
  "to_text",
]

KEY = "fields"  # In the metadata of a file.

_MAX_TEXT = 10_000  # Characters.
_MAX_NUMBER = 2**16  # More layers, or channels, than any network has.
_MAX_ITEMS = 1000
_MAX_DEPTH = 3  # Of lists in lists.

LIMITS = (
  f"plain values of its kind, numbers up to {_MAX_NUMBER}, tuples of up to"
  f" {_MAX_ITEMS}, {_MAX_DEPTH} in each other"
)


def registered(name: object) -> str:
  """Returns the name of an architecture, if somebody has registered it.

  Args:
    name: As it stands in a file.

  Raises:
    UnknownArchitectureError: If nobody has; nothing of that name is imported.

  >>> registered("os")
  Traceback (most recent call last):
  ...
  esrgan_jax.models.registry.UnknownArchitectureError: holds a network...
  """
  if isinstance(name, str) and name in registry.generators():
    return name
  raise registry.UnknownArchitectureError(
    f"holds a network {printable(repr(name), limit=60)},"
    " which is not registered here: give the Python file that does so, --plugin"
    " FILE, in Python esrgan_jax.plugins.load(FILE). There are"
    f" {', '.join(registry.generators())}"
  )


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a configuration, once it is one that a network can have.

  Args:
    config: Fields, and `architecture` among them.

  Raises:
    UnknownArchitectureError: If nobody has registered the architecture.
    ValueError: If it has no such field, or the value is of another kind.

  >>> checked({"architecture": "RRDBNet", "num_block": "23"})
  Traceback (most recent call last):
  ...
  ValueError: RRDBNet cannot have num_block='23'
  """
  name = registered(config["architecture"])
  known = registry.find_generator(name).fields
  for key, value in config.items():
    if key == "architecture":
      continue
    if key not in known:
      raise ValueError(
        f"{name} has no field {printable(key, limit=60)};"
        f" it has {', '.join(known)}"
      )
    if not fits(value, known[key]):
      raise ValueError(
        f"{name} cannot have {key}={printable(repr(value), limit=60)}"
      )
  # JSON has no tuples.
  return {key: _tuples(value) for key, value in config.items()}


def to_text(config: Mapping[str, Any]) -> str:
  """Returns a network's fields as text, for a file's metadata.

  Args:
    config: Fields, and `architecture`; what is left out is the default.

  Returns:
    JSON of all of its fields.

  >>> to_text({"architecture": "RRDBNet", "num_block": 6})[-32:]
  ' "unroll": 1, "unshuffle": null}'
  """
  name = config["architecture"]
  found = {**registry.find_generator(name).fields, **config}
  del found["architecture"]
  return json.dumps(found, sort_keys=True)


def from_text(name: str, text: str) -> dict[str, Any]:
  """Returns a configuration from a file's metadata.

  Args:
    name: The architecture's, which is registered.
    text: As of `to_text`.

  Raises:
    ValueError: If it is no such text, or no such network can be.

  >>> from_text("RRDBNet", '{"num_block": 6, "scale": 4}')
  {'architecture': 'RRDBNet', 'num_block': 6, 'scale': 4}
  """
  try:
    if len(text) > _MAX_TEXT:
      raise ValueError(f"{len(text)} characters; the limit is {_MAX_TEXT}")
    found = json.loads(text)
    if not isinstance(found, dict) or "architecture" in found:
      raise ValueError("no fields of a network")
    if "scale" not in found:
      raise ValueError("there is no scale")
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"the network's {KEY} cannot be read: {printable(error)}"
    ) from error
  return checked({"architecture": name, **found})


def fits(value: Any, default: Any) -> bool:
  """Returns whether a value is plain, and of the kind of a default.

  Args:
    value: As it stands in a file, or a config.
    default: The field's; None takes all that is plain.

  >>> fits(((1, 2), (3,)), ((0, 0),)), fits((1, "a"), (0, 0)), fits(7, "a")
  (True, False, False)
  """
  return _fits(value, default, _MAX_DEPTH)


def _fits(value, default, depth):
  match value:
    case bool():
      return default is None or isinstance(default, bool)
    case int():
      number = default is None or isinstance(default, int | float)
      return number and not isinstance(default, bool) and _small(value)
    case float():
      return (default is None or isinstance(default, float)) and _small(value)
    case str():
      return default is None or isinstance(default, str)
    case None:
      return True
    case list() | tuple():
      listed = default is None or _is_list(default)
      if not (listed and depth and len(value) <= _MAX_ITEMS):
        return False
      # Each as some item of the default.
      likes = {repr(item): item for item in default or (None,)}.values()
      return all(
        any(_fits(item, like, depth - 1) for like in likes) for item in value
      )
  return False


def _tuples(value):
  return tuple(map(_tuples, value)) if _is_list(value) else value


def _is_list(value: Any) -> bool:
  return isinstance(value, list | tuple)


def _small(value: float) -> bool:
  return abs(value) <= _MAX_NUMBER  # False for NaN, too.
