"""State dicts under the names of the architecture's own world.

RRDBNet's are BasicSR's: they load in chaiNNer, ComfyUI and spandrel as they
are. An architecture that nobody else has is written for this package alone.
"""

from __future__ import annotations

import functools
import pathlib

from esrgan_jax.weights import files


def write(path: pathlib.Path, weights: files.Weights, *, dtype: str) -> None:
  """Writes one of `files.WRITABLE`; see `esrgan_jax.export.Writer`."""
  files.write_weights(
    path,
    weights.params,
    weights.config,
    collections=weights.collections,
    dtype=dtype,
    metadata=weights.metadata,
  )


_TITLES = {
  ".safetensors": "safetensors: chaiNNer, ComfyUI, spandrel, this",
  ".pth": "PyTorch: BasicSR and what grew from it",
  ".pth.tar": "PyTorch: programs that look for a state_dict",
}

# Suffix, title, and what raises if such a file cannot be written here.
FORMATS = tuple(
  (
    suffix,
    _TITLES[suffix],
    functools.partial(files.check_installed, f"a{suffix}"),
  )
  for suffix in files.WRITABLE
)
