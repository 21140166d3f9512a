"""UNetDiscriminatorSN's names in weight files: BasicSR's, and PyTorch's newer.

| array | `torch.nn.utils.spectral_norm` | `parametrizations.spectral_norm` |
| --- | --- | --- |
| kernel | `conv1.weight_orig` | `conv1.parametrizations.weight.original` |
| `u` | `conv1.weight_u` | `conv1.parametrizations.weight.0._u` |
| `v` | `conv1.weight_v` | `conv1.parametrizations.weight.0._v` |

`conv0` and `conv9` have no spectral norm, but a `weight` and a `bias`. The
first names are those of the public discriminators, and those that are written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from esrgan_jax.models.unet_discriminator import LAYERS
from esrgan_jax.text import printable
from esrgan_jax.weights.dialects.protocol import (
  NamedWeights,
  StateDict,
  UnsupportedWeightsError,
  as_float32,
  compare,
)

SUPPORTED = "UNetDiscriminatorSN (Real-ESRGAN's)"
# Another network has the same arrays.
UNTOLD = ("skip_connection",)
# Other names beside these make it another network: `from_state_dict` tells.
NAMES = None
TELLTALE = re.compile(
  r"(?P<prefix>(?:.*\.)?)conv1\."
  r"(?:weight_orig|parametrizations\.weight\.original)"
)
_NEWER = re.compile(
  r"(conv[1-8])\.parametrizations\.weight\.(original|0\._[uv])"
)
_OLDER = {"original": "weight_orig", "0._u": "weight_u", "0._v": "weight_v"}


def shapes(*, num_feat: int, num_in_ch: int = 3) -> dict[str, tuple[int, ...]]:
  """Returns the names and shapes of a network's arrays, in BasicSR's order.

  Args:
    num_feat: As of the network.
    num_in_ch: Channels of its images.

  >>> shapes(num_feat=2)["conv1.weight_v"]
  (32,)
  """
  found: dict[str, tuple[int, ...]] = {
    "conv0.weight": (num_feat, num_in_ch, 3, 3),
    "conv0.bias": (num_feat,),
  }
  ins = num_feat
  for layer, (factor, side, _) in LAYERS.items():
    outs = factor * num_feat
    found[f"{layer}.weight_orig"] = (outs, ins, side, side)
    found[f"{layer}.weight_u"] = (outs,)
    found[f"{layer}.weight_v"] = (ins * side**2,)
    ins = outs
  return {
    **found,
    "conv9.weight": (1, num_feat, 3, 3),
    "conv9.bias": (1,),
  }


def from_state_dict(
  state: Mapping[str, Any], *, skip_connection: bool | None = None
) -> NamedWeights:
  """Returns the discriminator that named arrays are.

  Args:
    state: Name to array (float, kernels OIHW), all of them and no other.
    skip_connection: Which of the two networks it is; None for the usual one,
      with them.

  Returns:
    Its fields, its parameters, and its collection `batch_stats`: the vectors of
    power iteration.

  Raises:
    UnsupportedWeightsError: If arrays are missing, left over, of the wrong
      shape or not finite.

  Source: BasicSR `archs/discriminator_arch.py::UNetDiscriminatorSN`.

  >>> state = {name: np.ones(s) for name, s in shapes(num_feat=2).items()}
  >>> found = from_state_dict(state)
  >>> found.config, found.params["conv3"]["kernel"].shape
  ({'num_feat': 2, 'skip_connection': True}, (4, 4, 8, 16))
  >>> found.collections["batch_stats"]["conv3"]["v"].shape
  (4, 4, 8)
  """
  flat: StateDict = {}
  for key, value in state.items():
    match = _NEWER.fullmatch(key)
    name = f"{match[1]}.{_OLDER[match[2]]}" if match else key
    if name in flat:
      raise UnsupportedWeightsError(
        f"{printable(key, limit=60)} and another name both stand for {name}"
      )
    flat[name] = value
  first = flat.get("conv0.weight")
  if first is None or first.ndim != 4:
    raise UnsupportedWeightsError(
      "almost UNetDiscriminatorSN, but there is no kernel conv0.weight"
    )
  feat, ins = first.shape[:2]
  expected = shapes(num_feat=feat, num_in_ch=ins)
  compare(flat, expected, "UNetDiscriminatorSN")
  if not feat * ins:
    raise UnsupportedWeightsError("conv0.weight is empty")
  params: dict[str, Any] = {}
  stats: dict[str, Any] = {}
  for name, shape in expected.items():
    array = np.empty(shape, np.float32)
    as_float32(name, flat[name], array)
    layer, kind = name.split(".")
    if kind == "bias":
      params[layer]["bias"] = array
    elif kind == "weight_u":
      stats[layer] = {"u": array}
    elif kind == "weight_v":
      *_, ins, height, width = expected[f"{layer}.weight_orig"]
      array = array.reshape(ins, height, width).transpose(1, 2, 0)
      stats[layer]["v"] = np.ascontiguousarray(array)
    else:
      array = array.transpose(2, 3, 1, 0)
      params[layer] = {"kernel": np.ascontiguousarray(array)}
  skip = True if skip_connection is None else skip_connection
  config = {"num_feat": int(feat), "skip_connection": skip}
  return NamedWeights(config, params, collections={"batch_stats": stats})


def to_state_dict(
  params: Mapping[str, Any], collections: Mapping[str, Any]
) -> StateDict:
  """Returns a discriminator's arrays by BasicSR's names.

  Args:
    params: UNetDiscriminatorSN's parameters.
    collections: Its variables besides: `batch_stats`.

  Returns:
    Name to float32 array, kernels OIHW: what `load_state_dict` takes. Undoes
    `from_state_dict`.

  Raises:
    UnsupportedWeightsError: If the tree is not UNetDiscriminatorSN's.

  >>> state = {name: np.ones(s) for name, s in shapes(num_feat=2).items()}
  >>> found = from_state_dict(state)
  >>> list(to_state_dict(found.params, found.collections)) == list(state)
  True
  """
  flat: StateDict = {}
  for layer, leaves in params.items():
    for kind, leaf in leaves.items():
      name = {"kernel": "weight_orig" if layer in LAYERS else "weight"}
      array = np.asarray(leaf, np.float32)
      if kind == "kernel" and array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
      flat[f"{layer}.{name.get(kind, kind)}"] = np.ascontiguousarray(array)
  for layer, leaves in collections.get("batch_stats", {}).items():
    for kind, leaf in leaves.items():
      array = np.asarray(leaf, np.float32)
      if kind == "v" and array.ndim == 3:
        array = array.transpose(2, 0, 1).reshape(-1)
      flat[f"{layer}.weight_{kind}"] = np.ascontiguousarray(array)
  first = flat.get("conv0.weight", np.zeros((0, 0)))
  expected = shapes(num_feat=first.shape[0], num_in_ch=first.shape[1])
  compare(flat, expected, "UNetDiscriminatorSN")
  return {name: flat[name] for name in expected}
