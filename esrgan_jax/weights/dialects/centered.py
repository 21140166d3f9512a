"""CenteredRRDBNet's names in weight files: those of giakou4/gans' ESRGAN.

Its training writes `gen.pth.tar`, the generator as `state_dict` beside its
optimizer:

| layer | name |
| --- | --- |
| first | `initial` |
| block | `residuals.0.rdb1.conv1.cnn` |
| trunk | `conv` |
| up i | `upsamples.{i-1}.conv` |
| high | `final.0` |
| last | `final.2` |

It was trained on images in [-1, 1]. Here they are in [0, 1]: the first kernel
is twice theirs, and the last layer half of theirs, which rounds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.weights.dialects import rrdb
from esrgan_jax.weights.dialects.protocol import (
  NamedWeights,
  NcnnLayer,
  StateDict,
  UnsupportedWeightsError,
)

SUPPORTED = (
  "CenteredRRDBNet (RRDBNet of images in [-1, 1]: gen.pth.tar of the PyTorch"
  " ESRGAN with a WGAN-GP critic)"
)
UNTOLD = rrdb.UNTOLD
COLLECTIONS = ()
NAMES = None
TELLTALE = re.compile(
  r"(?P<prefix>(?:.*\.)?)residuals\.0\.rdb1\.conv1\.cnn\.weight"
)
LEAF = rrdb.LEAF

_BLOCK = re.compile(r"residuals\.([0-9]{1,4})\.rdb([1-3])\.conv([1-5])\.cnn")
_UP = re.compile(r"upsamples\.([0-8])\.conv")
_LAYERS = {
  "initial": "conv_first",
  "conv": "conv_body",
  "final.0": "conv_hr",
  "final.2": "conv_last",
}
# What becomes of the arrays that see images, or make them.
_FACTORS = {
  "conv_first.weight": np.float32(2),
  "conv_last.weight": np.float32(0.5),
  "conv_last.bias": np.float32(0.5),
}


def from_state_dict(
  state: Mapping[str, Any],
  *,
  scale: int | None = None,
  unshuffle: int | None = None,
) -> NamedWeights:
  """Returns the CenteredRRDBNet that named arrays are.

  Args:
    state: Name to array (float, kernels OIHW).
    scale: As of `rrdb.from_state_dict`; that program's is 4.
    unshuffle: As of `rrdb.from_state_dict`; that program's is 1.

  Returns:
    The network's fields, and its parameter tree.

  Raises:
    UnsupportedWeightsError: If arrays are missing, left over, of the wrong
      shape or not finite.
    UntoldScaleError: If it may be x2 or x3, and `scale` is None.
    ValueError: If `scale` or `unshuffle` contradicts the arrays.

  Source: giakou4/gans `10. ESRGAN/model.py`, `utils.py::save_checkpoint`.

  >>> from_state_dict({"residuals.0.rdb1.conv1.cnn.weight": np.ones(1)})
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.dialects.protocol.UnsupportedWeightsError: an RRDBNet...
  """
  flat: StateDict = {}
  for key, value in state.items():
    layer, _, kind = key.rpartition(".")
    ours = _ours(layer)
    if not ours or kind not in ("weight", "bias"):
      raise UnsupportedWeightsError(
        f"almost a CenteredRRDBNet, which has no {printable(key, limit=60)}"
      )
    name = f"{ours}.{kind}"
    if name in flat:
      raise UnsupportedWeightsError(
        f"{printable(key, limit=60)} and another name both stand for {name}"
      )
    flat[name] = value
  found = rrdb.from_state_dict(
    flat, scale=scale, unshuffle=unshuffle, called=_theirs
  )
  for name, factor in _FACTORS.items():
    layer, leaf = name.replace("weight", "kernel").split(".")
    with np.errstate(over="ignore"):
      found.params[layer][leaf] *= factor
    if not np.isfinite(found.params[layer][leaf]).all():
      raise UnsupportedWeightsError(
        f"{_theirs(name)} has weights too large for float32"
      )
  return found


def from_ncnn(
  layers: Sequence[NcnnLayer],
) -> tuple[StateDict, dict[str, int]]:
  """Raises: ncnn's layers are known by their order, which is RRDBNet's."""
  raise UnsupportedWeightsError("no CenteredRRDBNet is known in ncnn's files")


def to_state_dict(
  params: Mapping[str, Any],
  collections: Mapping[str, Any] | None = None,
  config: Mapping[str, Any] | None = None,
) -> StateDict:
  """Returns a parameter tree as a state dict of the program it is from.

  Args:
    params: CenteredRRDBNet's parameters.
    collections: What it has besides: nothing.
    config: Its fields; the tree tells all that is needed.

  Returns:
    Name to float32 array, kernels OIHW: what `load_state_dict` of that
    program's Generator takes. Undoes `from_state_dict`.

  Raises:
    UnsupportedWeightsError: If the tree is not CenteredRRDBNet's.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=2,
  ...               num_grow_ch=2, scale=4, unshuffle=1)
  >>> state = {k: np.ones(s) for k, s in rrdb.shapes(config).items()}
  >>> state = to_state_dict(rrdb.from_state_dict(state).params)
  >>> [name for name in state if name.startswith("up")][0], len(state)
  ('upsamples.0.conv.weight', 72)
  """
  del config
  state = rrdb.to_state_dict(params, collections or {})
  return {
    _theirs(name): value / _FACTORS.get(name, np.float32(1))
    for name, value in state.items()
  }


def _theirs(name: str) -> str:
  """That program's name of an array of BasicSR's name."""
  layer, _, kind = name.rpartition(".")
  if layer.startswith("body."):
    _, n, rdb, conv = layer.split(".")
    layer = f"residuals.{n}.{rdb}.{conv}.cnn"
  elif layer.startswith("conv_up"):
    layer = f"upsamples.{int(layer.removeprefix('conv_up')) - 1}.conv"
  else:
    layer = {ours: theirs for theirs, ours in _LAYERS.items()}[layer]
  return f"{layer}.{kind}"


def _ours(layer: str) -> str:
  """BasicSR's name of a layer; nothing for none."""
  if match := _BLOCK.fullmatch(layer):
    n, rdb, conv = match.groups()
    return f"body.{int(n)}.rdb{rdb}.conv{conv}"
  if match := _UP.fullmatch(layer):
    return f"conv_up{int(match[1]) + 1}"
  return _LAYERS.get(layer, "")
