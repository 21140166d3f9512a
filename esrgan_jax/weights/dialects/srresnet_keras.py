"""SRResNet's names in Keras files: krasserm's super-resolution and its kin.

Layers are numbered by kind, in the order in which they were made, which is the
network's; a generator that was not made first begins with a higher number.

| layer | Keras |
| --- | --- |
| convolution | `conv2d`, `conv2d_1`, ... with `kernel` (HWIO) and `bias` |
| BatchNorm | `batch_normalization`, ... with `gamma`, `moving_variance`, ... |
| slope | `p_re_lu`, ... with `alpha`, `[1, 1, C]` |

TensorFlow's `depth_to_space` has channels in another order than PyTorch's pixel
shuffle, and Keras's BatchNorm adds 1e-3 to variances, where ours adds 1e-5: the
arrays are changed so that the results are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.weights.dialects.protocol import (
  Called,
  StateDict,
  UnsupportedWeightsError,
)

_ARRAY = re.compile(
  r"(conv2d|batch_normalization|p_re_lu)(?:_([1-9][0-9]{0,5}))?/([a-z_]+)"
)
# Kinds of arrays in Keras, and in PyTorch.
_KINDS = {
  "conv2d": {"kernel": "weight", "bias": "bias"},
  "batch_normalization": {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
  },
  "p_re_lu": {"alpha": "weight"},
}
_EPSILON, _OUR_EPSILON = 1e-3, 1e-5  # Of BatchNorm.


def is_keras(state: Mapping[str, Any]) -> bool:
  """Returns whether names are those of Keras.

  >>> is_keras({"p_re_lu_3/alpha": 0}), is_keras({"conv_first.weight": 0})
  (True, False)
  """
  return any(map(_ARRAY.fullmatch, state))


def renamed(state: Mapping[str, np.ndarray]) -> tuple[StateDict, Called]:
  """Returns arrays by the names that `srresnet.shapes` has.

  Args:
    state: `LAYER/KIND` to array, as of `formats.keras_file`.

  Returns:
    Name to array, as PyTorch has it: kernels OIHW, channels in its order; and
    Keras's name of such a name.

  Raises:
    UnsupportedWeightsError: If the layers are not those of an SRResNet.

  Source: krasserm/super-resolution `model/srgan.py`.

  >>> renamed({"p_re_lu/alpha": np.ones((1, 1, 4))})
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.dialects.protocol.UnsupportedWeightsError: 0 convolutions...
  """  # noqa: E501
  found: dict[str, dict[int, dict[str, np.ndarray]]] = {k: {} for k in _KINDS}
  for name, value in state.items():
    match = _ARRAY.fullmatch(name)
    kind = match and _KINDS[match[1]].get(match[3])
    if not match or not kind:
      raise UnsupportedWeightsError(
        f"{printable(name, limit=60)} is of no layer that an SRResNet of"
        " Keras has"
      )
    found[match[1]].setdefault(int(match[2] or 0), {})[kind] = value
  numbers = {kind: sorted(of_kind) for kind, of_kind in found.items()}
  layers = {
    kind: [of_kind[number] for number in numbers[kind]]
    for kind, of_kind in found.items()
  }
  num_conv, num_norm, num_slope = map(len, layers.values())
  num_block = (num_norm - 1) // 2
  num_up = num_slope - 1 - num_block
  names = _names(num_block, num_up)
  if any(len(names[kind]) != len(layers[kind]) for kind in _KINDS):
    raise UnsupportedWeightsError(
      f"{num_conv} convolutions, {num_norm} BatchNorms and"
      f" {num_slope} PReLUs are no SRResNet of Keras: with N blocks and U"
      " upsamplings it has 2N + U + 3, 2N + 1 and N + U + 1"
    )
  flat = {
    f"{name}.{part}": _as_pytorch(part, value)
    for kind in _KINDS
    for name, layer in zip(names[kind], layers[kind], strict=True)
    for part, value in layer.items()
  }
  for i in range(1, num_up + 1):
    parts = [f"conv_up{i}.{part}" for part in ("weight", "bias")]
    kernel = flat.get(parts[0], np.zeros(0))
    if kernel.ndim == 4:
      for name in set(parts) & set(flat):
        flat[name] = _reordered(flat[name], kernel.shape[1])
  theirs = {
    f"{name}.{ours}": f"{kind}{f'_{number}' * bool(number)}/{part}"
    for kind, parts in _KINDS.items()
    for name, number in zip(names[kind], numbers[kind], strict=True)
    for part, ours in parts.items()
  }
  return flat, lambda name: theirs.get(name, name)


def _names(num_block: int, num_up: int) -> dict[str, list[str]]:
  """Our layers of each kind, in the order in which Keras's are made."""
  blocks = [f"body.{n}" for n in range(num_block)]
  ups = range(1, num_up + 1)
  pairs = [f"{block}.{{}}{i}" for block in blocks for i in (1, 2)]
  return {
    "conv2d": [
      "conv_first",
      *(pair.format("conv") for pair in pairs),
      "conv_body",
      *(f"conv_up{i}" for i in ups),
      "conv_last",
    ],
    "batch_normalization": [*(pair.format("bn") for pair in pairs), "bn_body"],
    "p_re_lu": [
      "act_first",
      *(f"{block}.act" for block in blocks),
      *(f"act_up{i}" for i in ups),
    ],
  }


def _as_pytorch(part: str, value: np.ndarray) -> np.ndarray:
  if part == "running_var":
    return value.astype(np.float32) + np.float32(_EPSILON - _OUR_EPSILON)
  if value.ndim == 4:
    return value.transpose(3, 2, 0, 1)
  # A slope that is shared by all pixels.
  return value[0, 0] if value.shape[:-1] == (1, 1) else value


def _reordered(value: np.ndarray, channels: int) -> np.ndarray:
  """The outputs of a convolution, a block's pixels last instead of first."""
  if not value.ndim or not channels or len(value) % channels:
    return value  # Refused further on.
  parts = value.reshape(-1, channels, *value.shape[1:])
  return parts.swapaxes(0, 1).reshape(value.shape)
