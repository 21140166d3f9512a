"""Whether the models of a workdir belong together, by what their files say."""

from __future__ import annotations

import json

from etils import epath

from esrgan_jax.weights import find

_HEADER = 10_000_000  # Bytes, of a safetensors file: far more than ours have.


def relation_in(workdir: epath.Path) -> str:
  """Returns what `workdir.relation` says of a workdir's two models.

  >>> relation_in(epath.Path("/nowhere"))
  ''
  """
  models = (workdir / "models" / f"{n}.safetensors" for n in find.PHASES)
  return find.relation(*map(_read_metadata, models))


def _read_metadata(path):
  """What a safetensors file says about itself; nothing if it does not."""
  try:
    with path.open("rb") as file:
      size = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(min(size, _HEADER)))
    return dict(header.get("__metadata__") or {})
  except (OSError, ValueError, AttributeError, TypeError):
    return {}
