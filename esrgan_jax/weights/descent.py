"""Whether the models of a workdir belong together, by what their files say."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping

from esrgan_jax.text import printable
from esrgan_jax.weights import workdir as layout

if typing.TYPE_CHECKING:
  from etils import epath

__all__ = ["relation", "relation_in"]

_HEADER = 10_000_000  # Bytes, of a safetensors file: far more than ours have.


def relation(first: Mapping[str, str], last: Mapping[str, str]) -> str:
  """Returns what does not fit between two models' descents, if anything.

  Args:
    first: Metadata of what should be the start, as `lineage` writes it.
    last: Of what should have been begun from it.

  Returns:
    A clause; empty if they fit, or if nothing is known of either.

  >>> ours = {"generator_sha256": "ab"}
  >>> relation(ours, {"begun_from_sha256": "ab"}), relation(ours, {})
  ('', '')
  >>> relation(ours, {"begun_from_sha256": "cd"})
  'was begun from another model (cd), not from this one (ab)'
  """
  start = first.get("generator_sha256")
  begun_from = last.get("begun_from_sha256")
  if not start or not begun_from or start == begun_from:
    return ""
  return (
    f"was begun from another model ({printable(begun_from[:12])}), not from"
    f" this one ({printable(start[:12])})"
  )


def relation_in(workdir: epath.Path) -> str:
  """Returns what `relation` says of a workdir's first and last model.

  >>> import pathlib
  >>> relation_in(pathlib.Path("/nowhere"))
  ''
  """
  names = layout.phases(workdir)
  if len(names) < 2:
    return ""
  models = (layout.model_of(workdir, name) for name in names)
  first, *_, last = map(_read_metadata, models)
  return relation(first, last)


def _read_metadata(path):
  """What a safetensors file says about itself; nothing if it does not."""
  try:
    with path.open("rb") as file:
      size = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(min(size, _HEADER)))
    return dict(header.get("__metadata__") or {})
  except (OSError, ValueError, AttributeError, TypeError):
    return {}
