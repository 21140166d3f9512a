"""Whether the models of a workdir belong together, by what their files say."""

from __future__ import annotations

import itertools
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from esrgan_jax.text import printable
from esrgan_jax.weights import workdir as layout

if typing.TYPE_CHECKING:
  from etils import epath

__all__ = ["models_beside", "relation", "relation_in"]

_START = "start"  # As training calls what a run was begun from.
_HEADER = 10_000_000  # Bytes, of a safetensors file: far more than ours have.


def relation(
  first: Mapping[str, str],
  last: Mapping[str, str],
  between: Iterable[Mapping[str, str]] = (),
) -> str:
  """Returns what does not fit between two models' descents, if anything.

  Args:
    first: Metadata of what should be the start, as `lineage` writes it.
    last: Of what should have been begun from it, or from what was.
    between: Of models that may stand between the two.

  Returns:
    A clause; empty if they fit, or if nothing is known of either.

  >>> ours = {"generator_sha256": "ab"}
  >>> relation(ours, {"begun_from_sha256": "ab"}), relation(ours, {})
  ('', '')
  >>> relation(ours, {"begun_from_sha256": "cd"})
  'was begun from another model (cd), not from this one (ab)'
  >>> middle = {"generator_sha256": "cd", "begun_from_sha256": "ab"}
  >>> relation(ours, {"begun_from_sha256": "cd"}, [middle])
  ''
  """
  start = first.get("generator_sha256")
  begun_from = last.get("begun_from_sha256")
  if not start or not begun_from or start == last.get("generator_sha256"):
    return ""
  parents = {
    each["generator_sha256"]: each.get("begun_from_sha256")
    for each in between
    if each.get("generator_sha256")
  }
  ancestor = begun_from
  while ancestor and ancestor != start:
    # What is taken out does not come again: files may say anything.
    ancestor = parents.pop(ancestor, None)
  if ancestor:
    return ""
  return (
    f"was begun from another model ({printable(begun_from[:12])}), not from"
    f" this one ({printable(start[:12])})"
  )


def relation_in(workdir: epath.Path) -> str:
  """Returns what does not fit between a workdir's models, if anything.

  Args:
    workdir: A folder. Each phase is compared with the one before it, as far as
      there are finished models of both.

  >>> import pathlib
  >>> relation_in(pathlib.Path("/nowhere"))
  ''
  """
  ordered = layout.order(workdir)
  # What else lies there is no phase's, but what the first was begun from.
  known = {_START, *ordered}
  names = [name for name in layout.phases(workdir) if name in known]
  models = {name: _metadata_of(workdir, name) for name in names}
  for before, name in itertools.pairwise(names):
    if found := relation(models[before], models[name]):
      return (
        f"the model of phase {printable(name)} {found}, that of phase"
        f" {printable(before)}"
      )
  return ""


def models_beside(path: Any) -> list[dict[str, str]]:
  """Returns the metadata of the models of a workdir that a model lies in.

  Args:
    path: A model's file, or a checkpoint.

  >>> import pathlib
  >>> models_beside(pathlib.Path("/nowhere/models/gan.safetensors"))
  []
  """
  for workdir in itertools.islice(path.parents, 4):
    if names := layout.phases(workdir):
      return [_metadata_of(workdir, name) for name in names]
  return []


def _metadata_of(workdir, name):
  return _read_metadata(layout.model_of(workdir, name))


def _read_metadata(path):
  """What a safetensors file says about itself; nothing if it does not."""
  try:
    with path.open("rb") as file:
      size = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(min(size, _HEADER)))
    return dict(header.get("__metadata__") or {})
  except (OSError, ValueError, AttributeError, TypeError):
    return {}
