"""RRDBNet's names in weight files and our parameter tree: what maps to what.

Pure functions of arrays. The weights go round under three sets of names:

| layer | BasicSR, Real-ESRGAN | authors, BSRGAN | oldest |
| --- | --- | --- | --- |
| first | `conv_first` | `conv_first` | `model.0` |
| block | `body.0.rdb1.conv1` | `RRDB_trunk.0.RDB1.conv1` | `model.1.sub.0.RDB1.conv1.0` |
| trunk | `conv_body` | `trunk_conv` | `model.1.sub.{num_block}` |
| up i | `conv_up1` | `upconv1` | `model.{3i}` |
| high | `conv_hr` | `HRconv` | `model.{3n+2}` |
| last | `conv_last` | `conv_last` | `model.{3n+4}` |

A state dict is flat, with OIHW kernels; our tree is nested, with HWIO kernels
and the blocks stacked on a leading axis of `body`.

Everything about the network is read from names and shapes, save one thing: a x3
network has a single upsampling convolution and so looks like a plain x2 one,
under every set of names. Which of the two it is must be said: by the file's
metadata, by ncnn's layers, by a config, or by whoever asks (`scale`).
"""  # noqa: E501

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.text import printable
from esrgan_jax.weights.dialects.protocol import (
  Called,
  NamedWeights,
  NcnnLayer,
  Params,
  StateDict,
  UnsupportedWeightsError,
  UntoldScaleError,
  as_float32,
  compare,
)

SUPPORTED = (
  "RRDBNet (ESRGAN, Real-ESRGAN x2plus/x4plus/anime_6B, BSRGAN, RealSR and"
  " their fine-tuned descendants)"
)
UNTOLD = ("unshuffle",)
COLLECTIONS = ()
NAMES = None

# The key that tells an RRDBNet from everything else, whatever stands before.
TELLTALE = re.compile(
  r"(?P<prefix>(?:.*\.)?)"
  r"(?:body\.0\.rdb1\.conv1|RRDB_trunk\.0\.RDB1\.conv1"
  r"|model\.1\.sub\.0\.RDB1\.conv1\.0)\.weight"
)

# The same in our own tree.
LEAF = ("body", "rdb1", "conv1", "kernel")

_BLOCK = re.compile(
  r"(?:body|RRDB_trunk|model\.1\.sub)\.([0-9]{1,4})\.(?:rdb|RDB)([1-3])"
  r"\.conv([1-5])(?:\.0)?\.(weight|bias)"
)
_UP = re.compile(r"(?:conv_up|upconv)([1-9])\.(weight|bias)")
_OLD_TRUNK = re.compile(r"model\.1\.sub\.([0-9]{1,4})\.(weight|bias)")
_OLD_TAIL = re.compile(r"model\.([0-9]{1,2})\.(weight|bias)")
_RENAMED = {
  "trunk_conv": "conv_body",
  "HRconv": "conv_hr",
  "model.0": "conv_first",
}


def shapes(config: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
  """Returns the names and shapes of an RRDBNet's state dict.

  Args:
    config: Fields of the network, `unshuffle` among them, no default left out.

  Returns:
    BasicSR name to shape, kernels OIHW.

  Source: BasicSR `archs/rrdbnet_arch.py::RRDBNet`.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1,
  ...               num_grow_ch=4, scale=4, unshuffle=1)
  >>> shapes(config)["body.0.rdb1.conv2.weight"]
  (4, 12, 3, 3)
  """
  feat, grow = config["num_feat"], config["num_grow_ch"]
  first = config["num_in_ch"] * config["unshuffle"] ** 2
  convs = {"conv_first": (first, feat)}
  for n in range(config["num_block"]):
    for r in (1, 2, 3):
      for i in range(5):
        out = grow if i < 4 else feat
        convs[f"body.{n}.rdb{r}.conv{i + 1}"] = (feat + i * grow, out)
  convs["conv_body"] = (feat, feat)
  net = RRDBNet(scale=config["scale"], unshuffle=config["unshuffle"])
  for i in range(len(net.upsampling)):
    convs[f"conv_up{i + 1}"] = (feat, feat)
  convs["conv_hr"] = (feat, feat)
  convs["conv_last"] = (feat, config["num_out_ch"])
  result: dict[str, tuple[int, ...]] = {}
  for name, (fan_in, fan_out) in convs.items():
    result[f"{name}.weight"] = (fan_out, fan_in, 3, 3)
    result[f"{name}.bias"] = (fan_out,)
  return result


def from_state_dict(
  state: Mapping[str, Any],
  *,
  scale: int | None = None,
  unshuffle: int | None = None,
  called: Called | None = None,
) -> NamedWeights:
  """Returns the RRDBNet that named arrays are, under any set of names.

  Args:
    state: Name to array (float, kernels OIHW).
    scale: Upscaling factor, needed for x3 and plain x2 (see above); given for
      another network, it must agree with what the shapes say.
    unshuffle: Pixel-unshuffle factor; by default read from the first layer: if
      `scale` is given, BasicSR's where it fits; else 2 or 4 where there are 4
      or 16 times as many inputs as an image has channels.
    called: What to call an array in errors, by its name of BasicSR's; None for
      the name that `state` has.

  Returns:
    The network's fields, its parameter tree, and notes.

  Raises:
    UnsupportedWeightsError: If arrays are missing, left over, of the wrong
      shape or not finite.
    UntoldScaleError: If it may be x2 or x3, and `scale` is None.
    ValueError: If `scale` or `unshuffle` contradicts the arrays.

  Source: the three sets of names from BasicSR `archs/rrdbnet_arch.py` and
  xinntao/ESRGAN `RRDBNet_arch.py`, `transer_RRDB_models.py`.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=2,
  ...               num_grow_ch=2, scale=4, unshuffle=1)
  >>> state = {k: np.zeros(s, np.float32) for k, s in shapes(config).items()}
  >>> found = from_state_dict(state)
  >>> found.config == config, found.params["conv_last"]["kernel"].shape
  (True, (3, 3, 4, 3))
  """
  notes = []
  flat = _canonical(state)
  called = called or _called(state)
  config = _infer(flat, scale, unshuffle, called)
  compare(flat, shapes(config), "an RRDBNet", called)
  if any(v.dtype == np.float64 for v in flat.values()):
    notes.append("the weights are float64: rounded to float32")
  params: Params = {}
  for name in shapes(config):
    if not name.startswith("body."):
      layer, kind = name.rsplit(".", 1)
      leaf, value = _stack(flat, [name], kind, called)
      params.setdefault(layer, {})[leaf] = value[0]
  blocks = range(config["num_block"])
  params["body"] = {
    f"rdb{r}": {
      f"conv{c}": dict(
        _stack(
          flat,
          [f"body.{n}.rdb{r}.conv{c}.{kind}" for n in blocks],
          kind,
          called,
        )
        for kind in ("weight", "bias")
      )
      for c in range(1, 6)
    }
    for r in (1, 2, 3)
  }
  return NamedWeights(config, params, tuple(notes))


def from_ncnn(
  layers: Sequence[NcnnLayer],
) -> tuple[StateDict, dict[str, int]]:
  """Names the arrays of ncnn's layers, which are known by their order.

  Args:
    layers: The network's convolutions and activations, and what enlarges.

  Returns:
    Name to array under BasicSR's names, and the network's `scale` and
    `unshuffle`, which these layers show.

  Raises:
    UnsupportedWeightsError: If they are not those of an RRDBNet.

  >>> from_ncnn([])
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.dialects.protocol.UnsupportedWeightsError: there are 0...
  """
  others = {"PReLU", "PixelShuffle", "Sigmoid"}
  if any(layer.kind in others for layer in layers):
    raise UnsupportedWeightsError(
      "there are shuffles of pixels, PReLUs or a sigmoid; an RRDBNet has none"
    )
  convs = [layer for layer in layers if layer.kind == "Convolution"]
  factors = [layer.factor for layer in layers if layer.kind == "Interp"]
  num_block, rest = divmod(len(convs) - len(factors) - 4, 15)
  if num_block < 1 or rest:
    raise UnsupportedWeightsError(
      f"there are {len(convs)} convolutions and {len(factors)} upsamplings; an"
      " RRDBNet has 15 a block, one an upsampling and 4 more"
    )
  blocks = [
    f"body.{n}.rdb{r}.conv{c}"
    for n in range(num_block)
    for r in (1, 2, 3)
    for c in range(1, 6)
  ]
  ups = [f"conv_up{i + 1}" for i in range(len(factors))]
  names = ["conv_first", *blocks, "conv_body", *ups, "conv_hr", "conv_last"]
  state: StateDict = {}
  for name, conv in zip(names, convs, strict=True):
    state[f"{name}.weight"], state[f"{name}.bias"] = conv.weight, conv.bias
  inputs, outputs = convs[0].weight.shape[1], convs[-1].weight.shape[0]
  total = math.prod(factors, start=1.0)
  unshuffle = _unshuffle(inputs, outputs, total)
  # As the network itself does: by 2 each time, or by 3 once.
  if not all(f in (2, 3) for f in factors) or total % unshuffle:
    raise UnsupportedWeightsError(
      f"it upsamples {total:g} times after an unshuffle of {unshuffle}: not an"
      " RRDBNet"
    )
  return state, {"scale": int(total) // unshuffle, "unshuffle": unshuffle}


def to_state_dict(
  params: Mapping[str, Any],
  collections: Mapping[str, Any] | None = None,
  config: Mapping[str, Any] | None = None,
) -> StateDict:
  """Returns a parameter tree as a state dict in BasicSR's names.

  Args:
    params: RRDBNet's parameters, the tree of `RRDBNet.init(...)["params"]`.
    collections: What it has besides: nothing.
    config: Its fields; the tree tells all that is needed.

  Returns:
    Name to float32 array, kernels OIHW, each in C order: what
    `load_state_dict` of BasicSR's RRDBNet takes. Bit for bit what
    `from_state_dict` was given, where that was float32.

  Raises:
    UnsupportedWeightsError: If the tree is not RRDBNet's.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=2,
  ...               num_grow_ch=2, scale=4, unshuffle=1)
  >>> state = {k: np.ones(s, np.float32) for k, s in shapes(config).items()}
  >>> again = to_state_dict(from_state_dict(state).params)
  >>> list(again) == list(state), again["conv_last.weight"].shape
  (True, (3, 4, 3, 3))
  """
  del config
  try:
    blocks = {
      f"rdb{r}.conv{c}": params["body"][f"rdb{r}"][f"conv{c}"]
      for r in (1, 2, 3)
      for c in range(1, 6)
    }
    num_block = len(blocks["rdb1.conv1"]["bias"])
    ups = sorted(k for k in params if re.fullmatch(r"conv_up\d", k))
    tail = ["conv_body", *ups, "conv_hr", "conv_last"]
    state: StateDict = {}
    for layer in ["conv_first", *tail]:
      if layer == "conv_body":
        for n in range(num_block):
          for name, conv in blocks.items():
            _put(state, f"body.{n}.{name}", conv["kernel"][n], conv["bias"][n])
      _put(state, layer, params[layer]["kernel"], params[layer]["bias"])
  except (KeyError, TypeError, IndexError) as e:
    raise UnsupportedWeightsError(
      "not the parameter tree of an RRDBNet:"
      f" {type(e).__name__} {printable(e)}; give"
      " RRDBNet.init(...)['params'], without the outer 'params'"
    ) from e
  if left := set(params) - {"conv_first", "body", *tail}:
    raise UnsupportedWeightsError(
      "not the parameter tree of an RRDBNet:"
      f" {printable(sorted(map(str, left)))} are none of it"
    )
  if collections:
    raise UnsupportedWeightsError(
      f"an RRDBNet has no {printable(', '.join(map(str, collections)))}"
    )
  return state


def _canonical(flat: Mapping[str, Any]) -> StateDict:
  """Renames any dialect to BasicSR's; names it does not know stay."""
  tail = sorted(
    {int(m[1]) for k in flat if (m := _OLD_TAIL.fullmatch(k))} - {0}
  )
  old = {}
  if tail:
    num_up = len(tail) - 2
    expected = [3 * i + 3 for i in range(num_up)]
    expected += [3 * num_up + 2, 3 * num_up + 4]
    if tail != expected:
      raise UnsupportedWeightsError(
        f"the layers model.{tail} do not follow the RRDBNet of xinntao/ESRGAN,"
        f" which has model.{expected}: another upsampler (pixel shuffle?)"
      )
    layers = [*(f"conv_up{i + 1}" for i in range(num_up)), "conv_hr"]
    old = dict(zip(tail, [*layers, "conv_last"], strict=True))
  result: StateDict = {}
  for key, value in flat.items():
    layer, _, kind = key.rpartition(".")
    name = key
    if match := _BLOCK.fullmatch(key):
      n, r, c, kind = match.groups()
      name = f"body.{int(n)}.rdb{r}.conv{c}.{kind}"
    elif match := _OLD_TRUNK.fullmatch(key):
      name = f"conv_body.{match[2]}"
    elif match := _UP.fullmatch(key):
      name = f"conv_up{match[1]}.{match[2]}"
    elif layer in _RENAMED:
      name = f"{_RENAMED[layer]}.{kind}"
    elif match := _OLD_TAIL.fullmatch(key):
      name = f"{old[int(match[1])]}.{match[2]}"
    if name in result:
      raise UnsupportedWeightsError(
        f"{printable(key)} and another name both stand for {name}: the file"
        " mixes dialects"
      )
    result[name] = value
  return result


def _called(state: Mapping[str, Any]) -> Called:
  """Returns how a file calls what BasicSR calls otherwise."""
  if any(name.startswith("RRDB_trunk.") for name in state):
    block, up = "RRDB_trunk.{}.RDB{}.conv{}", "upconv{}".format
    layers = {"conv_body": "trunk_conv", "conv_hr": "HRconv"}
  elif any(name.startswith("model.1.sub.") for name in state):
    block, up = "model.1.sub.{}.RDB{}.conv{}.0", lambda i: f"model.{3 * int(i)}"
    trunk = [int(m[1]) for k in state if (m := _OLD_TRUNK.fullmatch(k))]
    tail = {m[1] for k in state if (m := _OLD_TAIL.fullmatch(k))} - {"0"}
    num_up = len(tail) - 2
    layers = {
      "conv_first": "model.0",
      "conv_body": f"model.1.sub.{max(trunk, default='N')}",
      "conv_hr": f"model.{3 * num_up + 2}",
      "conv_last": f"model.{3 * num_up + 4}",
    }
  else:
    return str

  def called(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)", layer):
      return f"{block.format(*match.groups())}.{kind}"
    if match := re.fullmatch(r"conv_up(\d)", layer):
      return f"{up(match[1])}.{kind}"
    return f"{layers.get(layer, layer)}.{kind}" if layer else name

  return called


def _infer(
  flat: StateDict, scale: int | None, unshuffle: int | None, called: Called
) -> dict[str, int]:
  """Reads the network's fields from names and shapes."""

  def size(name: str, axis: int) -> int:
    if name not in flat:
      raise UnsupportedWeightsError(
        f"an RRDBNet without {called(name)}: {len(flat)} arrays are there. The"
        " file is incomplete or another variant of the network"
      )
    if flat[name].ndim != 4 or min(flat[name].shape) < 1:
      raise UnsupportedWeightsError(
        f"{called(name)} has shape {flat[name].shape}, not that of a 3x3"
        " convolution"
      )
    return flat[name].shape[axis]

  inputs, num_out_ch = size("conv_first.weight", 1), size("conv_last.weight", 0)
  blocks = sorted({int(m[1]) for k in flat if (m := _BLOCK.fullmatch(k))})
  if not blocks:
    raise UnsupportedWeightsError("an RRDBNet without a block")
  num_block = blocks[-1] + 1
  if num_gaps := num_block - len(blocks):
    gap = next(n for n, block in enumerate(blocks) if n != block)
    raise UnsupportedWeightsError(
      f"of {num_block} blocks {num_gaps} are missing:"
      f" {called(f'body.{gap}.rdb1.conv1.weight')}, ..."
    )
  num_up = len({m[1] for k in flat if (m := _UP.fullmatch(k))})
  if unshuffle is None and scale is not None:
    usual = RRDBNet(scale=scale).unshuffle_factor
    if inputs % usual**2 == 0 and scale * usual == 2**num_up:
      unshuffle = usual
  if unshuffle is None:
    unshuffle = _unshuffle(inputs, num_out_ch, 2**num_up)
  if unshuffle < 1 or inputs % unshuffle**2:
    raise ValueError(
      f"unshuffle {unshuffle} cannot be: {called('conv_first.weight')} has"
      f" {inputs} inputs, no multiple of {unshuffle}**2"
    )
  found, rest = divmod(2**num_up, unshuffle)
  if rest:
    raise UnsupportedWeightsError(
      f"{called('conv_first.weight')} has {inputs} inputs (unshuffle"
      f" {unshuffle}) but there are only {num_up} upsamplings: the output would"
      " be smaller than the input"
    )
  either = num_up == 1 and unshuffle == 1
  if scale is None and either:
    raise UntoldScaleError(
      "its one upsampling may be by 2 or by 3, and nothing tells by which: give"
      " the network's scale, --model-scale 2 or --model-scale 3 (in Python,"
      " scale=2 or scale=3)"
    )
  if scale is None:
    scale = found
  elif scale != found and not (scale == 3 and either):
    raise ValueError(
      f"scale {scale} was asked for, but the weights are those of a x{found}"
      f"{' or x3' if either else ''} network ({num_up} upsamplings, unshuffle"
      f" {unshuffle}); {'give which' if either else 'leave scale out'}"
    )
  return {
    "num_in_ch": inputs // unshuffle**2,
    "num_out_ch": num_out_ch,
    "num_feat": size("conv_first.weight", 0),
    "num_block": num_block,
    "num_grow_ch": size("body.0.rdb1.conv1.weight", 0),
    "scale": scale,
    "unshuffle": unshuffle,
  }


def _unshuffle(inputs: int, outputs: int, upsampling: float) -> int:
  """Returns the side of the blocks of pixels that the inputs are, by counts."""
  sides = [side for side in (1, 2, 4) if inputs % side**2 == 0]
  for channels in ((outputs,), (1, 3, 4)):
    found = [side for side in sides if inputs // side**2 in channels]
    if found:
      return next((side for side in found if side <= upsampling), found[0])
  return 1


def _stack(
  flat: StateDict, names: list[str], kind: str, called: Called
) -> tuple[str, np.ndarray]:
  """Stacks arrays as float32, kernels HWIO; refuses what is not finite."""
  leaf = "bias" if kind == "bias" else "kernel"
  values = [flat[name] for name in names]
  turned = [v.transpose(2, 3, 1, 0) if v.ndim == 4 else v for v in values]
  result = np.empty((len(names), *turned[0].shape), np.float32)
  for name, value, target in zip(names, turned, result, strict=True):
    as_float32(called(name), value, target)
  return leaf, result


def _put(state: StateDict, name: str, kernel: Any, bias: Any) -> None:
  kernel = np.asarray(kernel, np.float32)
  if kernel.ndim != 4:
    raise UnsupportedWeightsError(
      f"{name} has a kernel of shape {kernel.shape}, not HWIO"
    )
  state[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
  state[f"{name}.bias"] = np.ascontiguousarray(np.asarray(bias, np.float32))
