"""State dicts under the names of the architecture's own world.

RRDBNet's are BasicSR's: they load in chaiNNer, ComfyUI and spandrel as they
are. An architecture that nobody else has is written for this package alone.
"""

from __future__ import annotations

import importlib.util
import pathlib

from esrgan_jax.weights import files


def write(path: pathlib.Path, weights: files.Weights, *, dtype: str) -> None:
  """Writes a `.safetensors`, or a `.pth`; see `esrgan_jax.export.Writer`."""
  files.write_weights(
    path,
    weights.params,
    weights.config,
    collections=weights.collections,
    dtype=dtype,
    metadata=weights.metadata,
  )


def _check_torch() -> None:
  if importlib.util.find_spec("torch") is None:
    raise RuntimeError(
      "writing .pth takes PyTorch, which is not installed: write .safetensors,"
      " which chaiNNer, ComfyUI and spandrel load as well"
    )


FORMATS = (
  (".safetensors", "safetensors: chaiNNer, ComfyUI, spandrel, this", None),
  (".pth", "PyTorch: BasicSR and what grew from it", _check_torch),
)
