"""SRResNet's names in weight files and our parameter tree: what maps to what.

Pure functions of arrays. BasicSR's MSRResNet goes round under three sets of
names:

| layer | BasicSR | its first code, KAIR | mmagic |
| --- | --- | --- | --- |
| first | `conv_first` | `conv_first` | `conv_first` |
| block | `body.0.conv1` | `recon_trunk.0.conv1` | `trunk_net.0.conv1` |
| up i | `upconv1` | `upconv1` | `upsample1.upsample_conv` |
| high | `conv_hr` | `HRconv` | `conv_hr` |
| last | `conv_last` | `conv_last` | `conv_last` |

and SRGAN's generator under those of its PyTorch tutorials, the first two of
which are Lornatang's SRGAN-PyTorch (older and newer):

| layer | Lornatang | | leftthomas | Persson, giakou4 |
| --- | --- | --- | --- | --- |
| first | `conv_block1.0` | `conv1.0` | `block1.0` | `initial.cnn` |
| slope | `conv_block1.1` | `conv1.1` | `block1.1` | `initial.act` |
| block | `trunk.0.rcb.0` | the same | `block2.conv1` | `residuals.0.block1.cnn` |
| body | `conv_block2.0` | `conv2.0` | `block7.0` | `convblock.cnn` |
| up i | `upsampling.0.upsample_block.0` | the same | `block8.0.conv` | `upsamples.0.conv` |
| last | `conv_block3` | `conv3` | `block8.2` | `final` |

Names tell the programs, and they what arrays don't: those of leftthomas and of
Persson end with a tanh, for HR images in [-1, 1]. One thing must be said:
giakou4's program has Persson's names, and LR images in [-1, 1] as well
(`centered`). Keras's numbered layers are in `srresnet_keras`.

A state dict is flat, with OIHW kernels; our tree is nested, with HWIO kernels
and the blocks stacked on a leading axis of `body`. A bias in front of a
BatchNorm, which some have, is taken off its running mean: that is the same.
"""  # noqa: E501

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from esrgan_jax.models.srresnet import SRResNet
from esrgan_jax.text import printable
from esrgan_jax.weights.dialects import srresnet_keras
from esrgan_jax.weights.dialects.protocol import (
  Called,
  NamedWeights,
  NcnnLayer,
  StateDict,
  UnsupportedWeightsError,
  as_float32,
  compare,
)

SUPPORTED = (
  "SRResNet (SRGAN's generator, as of its PyTorch tutorials, and BasicSR's"
  " MSRResNet)"
)
UNTOLD = ("output", "centered")
COLLECTIONS = ("batch_stats",)
NAMES = None

# The key that tells an SRResNet from everything else, whatever stands before.
TELLTALE = re.compile(
  r"(?P<prefix>(?:.*\.)?)"
  r"(?:(?:(?:body|recon_trunk|trunk_net)\.0\.conv1|trunk\.0\.rcb\.0"
  r"|block2\.prelu|residuals\.0\.block1\.cnn)\.weight"
  r"|p_re_lu(?:_[0-9]+)?/alpha)"
)

# The same in our own tree.
LEAF = ("body", "conv1", "kernel")

_EITHER = (
  "the names are those of programs whose networks see images in [0, 1], and of"
  " one (giakou4/gans) whose see images in [-1, 1]: took the first; for the"
  ' other, --config FILE with {"architecture": "SRResNet", "scale": 4,'
  ' "centered": true}'
)
_LINEARLY = 2  # As ncnn numbers ways to resize.
_N = "(0|[1-9][0-9]{0,3})"
# Kinds of arrays in PyTorch, and in our tree, by the kind of layer.
_KINDS = {
  "conv": {"weight": "kernel", "bias": "bias"},
  "act": {"weight": "slope"},
  "bn": {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
  },
}

# Each program's layers, and ours, where a pattern tells; a function of the
# match where it has to count. What follows a name is the kind of array.
_MSRRESNET = {
  rf"(?:body|recon_trunk|trunk_net)\.{_N}\.(conv[12])": r"body.\1.\2",
  r"upconv([1-9])|upsample([1-9])\.upsample_conv": (
    lambda m: f"conv_up{m[1] or m[2]}"
  ),
  "conv_first": "conv_first",
  "conv_hr|HRconv": "conv_hr",
  "conv_last": "conv_last",
}
_RCB = ("conv1", "bn1", "act", "conv2", "bn2")
_LORNATANG = {
  r"conv(?:_block)?1\.0": "conv_first",
  r"conv(?:_block)?1\.1": "act_first",
  rf"trunk\.{_N}\.rcb\.([0-4])": lambda m: f"body.{m[1]}.{_RCB[int(m[2])]}",
  r"conv(?:_block)?2\.0": "conv_body",
  r"conv(?:_block)?2\.1": "bn_body",
  r"upsampling\.([0-8])\.upsample_block\.0": (
    lambda m: f"conv_up{int(m[1]) + 1}"
  ),
  r"upsampling\.([0-8])\.upsample_block\.2": (
    lambda m: f"act_up{int(m[1]) + 1}"
  ),
  "conv(?:_block)?3": "conv_last",
}
_PERSSON = {
  r"initial\.cnn": "conv_first",
  r"initial\.act": "act_first",
  rf"residuals\.{_N}\.block([12])\.cnn": r"body.\1.conv\2",
  rf"residuals\.{_N}\.block([12])\.bn": r"body.\1.bn\2",
  rf"residuals\.{_N}\.block1\.act": r"body.\1.act",
  r"convblock\.cnn": "conv_body",
  r"convblock\.bn": "bn_body",
  r"upsamples\.([0-8])\.conv": lambda m: f"conv_up{int(m[1]) + 1}",
  r"upsamples\.([0-8])\.act": lambda m: f"act_up{int(m[1]) + 1}",
  "final": "conv_last",
}


def _leftthomas(num_block: int, num_up: int) -> dict[str, Any]:
  """That program's layers: blocks of all kinds are counted through."""
  body, up = num_block + 2, num_block + 3
  return {
    r"block1\.0": "conv_first",
    r"block1\.1": "act_first",
    rf"block{_N}\.(conv[12]|bn[12]|prelu)": lambda m: (
      f"body.{int(m[1]) - 2}.{m[2].replace('prelu', 'act')}"
    ),
    rf"block{body}\.0": "conv_body",
    rf"block{body}\.1": "bn_body",
    rf"block{up}\.([0-8])\.conv": lambda m: f"conv_up{int(m[1]) + 1}",
    rf"block{up}\.([0-8])\.prelu": lambda m: f"act_up{int(m[1]) + 1}",
    rf"block{up}\.{num_up}": "conv_last",
  }


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns the names and shapes of an SRResNet's arrays.

  The names are those that a state dict has inside of this module: layers as in
  our own tree, blocks one by one, PyTorch's kinds of arrays.

  Args:
    config: Fields of the network, no default left out.

  Returns:
    Name to shape, kernels OIHW.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1, scale=3,
  ...               variant="msrresnet", norm="none")
  >>> shapes(config)["conv_up1.weight"]
  (72, 8, 3, 3)
  """
  feat, is_srgan = config["num_feat"], config["variant"] == "srgan"
  has_norm = config["norm"] == "batch"
  slopes = feat if config.get("slopes") == "channel" else 1
  side = 9 if is_srgan else 3
  result: dict[str, tuple[int, ...]] = {}

  def conv(name, fan_in, fan_out, side=3, bias=True):
    result[f"{name}.weight"] = (fan_out, fan_in, side, side)
    if bias:
      result[f"{name}.bias"] = (fan_out,)

  def norm(name):
    for kind in ("weight", "bias", "running_mean", "running_var"):
      result[f"{name}.{kind}"] = (feat,)

  def slope(name):
    if is_srgan:
      result[f"{name}.weight"] = (slopes,)

  conv("conv_first", config["num_in_ch"], feat, side)
  slope("act_first")
  for n in range(config["num_block"]):
    for i in (1, 2):
      conv(f"body.{n}.conv{i}", feat, feat, bias=not has_norm)
      if has_norm:
        norm(f"body.{n}.bn{i}")
      if i == 1:
        slope(f"body.{n}.act")
  if is_srgan:
    conv("conv_body", feat, feat, bias=not has_norm)
    if has_norm:
      norm("bn_body")
  for i, factor in enumerate(_factors(config["scale"]), 1):
    conv(f"conv_up{i}", feat, feat * factor**2)
    slope(f"act_up{i}")
  if not is_srgan:
    conv("conv_hr", feat, feat)
  conv("conv_last", feat, config["num_out_ch"], side)
  return result


def from_state_dict(
  state: Mapping[str, Any],
  *,
  scale: int | None = None,
  output: str | None = None,
  centered: bool | None = None,
) -> NamedWeights:
  """Returns the SRResNet that named arrays are, under any set of names.

  Args:
    state: Name to array (float, kernels OIHW).
    scale: Upscaling factor; it must agree with what the shapes say.
    output: How the network ends; it must agree with what the names say.
    centered: Whether it is given images in [-1, 1]; None is taken for no, with
      a note where the names leave it open.

  Returns:
    The network's fields, its parameter tree, its running statistics, and notes.

  Raises:
    UnsupportedWeightsError: If arrays are missing, left over, of the wrong
      shape or not finite.
    ValueError: If `scale`, `output` or `centered` contradicts the arrays.

  Source: the names of BasicSR `archs/srresnet_arch.py` and mmagic
  `sr_resnet.py`, and of `model.py` of Lornatang/SRGAN-PyTorch, leftthomas/SRGAN
  and giakou4/gans; `srresnet_keras` has its own.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=2, scale=4,
  ...               variant="msrresnet", norm="none", slopes="one",
  ...               output="linear", centered=False)
  >>> state = {k.replace("conv_up", "upconv"): np.zeros(s, np.float32)
  ...          for k, s in shapes(config).items()}
  >>> found = from_state_dict(state)
  >>> found.config == config, found.params["body"]["conv1"]["kernel"].shape
  (True, (2, 3, 3, 4, 4))
  """
  flat, variant, named, called = _canonical(state)
  config = _infer(flat, variant, named, called)
  _fold_biases(flat, config, called)
  compare(flat, shapes(config), "an SRResNet", called)
  if scale not in (None, config["scale"]):
    raise ValueError(
      f"scale {scale} was asked for, but the weights are those of a"
      f" x{config['scale']} network; leave scale out"
    )
  if output not in (None, named):
    raise ValueError(
      f"output {printable(output)} was asked for, but the names are those of a"
      f" network whose output is {named}; leave output out"
    )
  notes = []
  if any(name.startswith("residuals.0.block1.") for name in state):
    if centered is None:
      notes.append(_EITHER)
    config["centered"] = bool(centered)
  elif centered:
    raise ValueError(
      "centered was asked for, but the names are those of a program with LR"
      " images in [0, 1]; leave centered out"
    )
  if any(v.dtype == np.float64 for v in flat.values()):
    notes.append("the weights are float64: rounded to float32")
  params: dict[str, Any] = {}
  stats: dict[str, Any] = {}
  for name in shapes(config):
    if name.startswith("body.") and not name.startswith("body.0."):
      continue
    path, leaf = _place(name)
    names = [name]
    if name.startswith("body."):
      rest = name.removeprefix("body.0.")
      names = [f"body.{n}.{rest}" for n in range(config["num_block"])]
    value = _stack(flat, names, called)
    tree = stats if leaf in ("mean", "var") else params
    if leaf == "var" and (value < 0).any():
      raise UnsupportedWeightsError(
        f"{called(name)} has variances below 0: the file is damaged"
      )
    for part in path:
      tree = tree.setdefault(part, {})
    tree[leaf] = value if name.startswith("body.") else value[0]
  collections = {"batch_stats": stats} if stats else {}
  return NamedWeights(config, params, tuple(notes), collections)


def from_ncnn(
  layers: Sequence[NcnnLayer],
) -> tuple[StateDict, dict[str, Any]]:
  """Names the arrays of ncnn's layers, which are known by their order.

  Args:
    layers: The network's convolutions and activations, and what enlarges.

  Returns:
    Name to array as `to_state_dict` has them, and the network's `scale`,
    `output` and `centered`, which these layers show. BatchNorm is part of the
    convolutions there.

  Raises:
    UnsupportedWeightsError: If they are not those of an SRResNet.

  >>> from_ncnn([])
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.dialects.protocol.UnsupportedWeightsError: 0 convolutions...
  """  # noqa: E501
  kinds = [layer.kind for layer in layers]
  num_conv, num_up = kinds.count("Convolution"), kinds.count("PixelShuffle")
  num_block, rest = divmod(num_conv - num_up - 3, 2)
  if num_block < 1 or rest or not num_up:
    raise UnsupportedWeightsError(
      f"{num_conv} convolutions and {num_up} shuffles of pixels are no"
      " SRResNet: with N blocks and U upsamplings it has 2N + U + 3 and U"
    )
  is_srgan = "PReLU" in kinds
  is_tanh = kinds[-1] == "Sigmoid"  # Of twice as much.
  resizes = [layer for layer in layers if layer.kind == "Interp"]
  steps = [
    layer for layer in layers[: len(layers) - is_tanh] if layer.kind != "Interp"
  ]
  flat: StateDict = {}
  factors = []
  for name, act in _in_order(num_block, num_up, is_srgan):
    is_up, slope = name.startswith("conv_up"), None
    if steps:
      slope = steps[0].slope  # A convolution may have it.
    due = ["Convolution", *["PixelShuffle"] * is_up]
    if act is not None and slope is None:
      due.append("PReLU" if is_srgan else "ReLU")
    found, steps = steps[: len(due)], steps[len(due) :]
    slope = found[-1].slope if slope is None and found else slope
    if [layer.kind for layer in found] != due or not _is_slope(slope, act):
      raise UnsupportedWeightsError(
        f"its layers do not follow those of an SRResNet, from {name} on"
      )
    flat[f"{name}.weight"] = found[0].weight
    flat[f"{name}.bias"] = found[0].bias
    if is_up:
      factors.append(int(found[1].factor))
    if act is ...:
      layer = name.removesuffix("1") if "body" in name else name
      flat[f"{layer.replace('conv', 'act')}.weight"] = slope
  scale = math.prod(factors)
  enlarged = [(layer.mode, layer.factor) for layer in resizes]
  if steps or enlarged != ([] if is_srgan else [(_LINEARLY, scale)]):
    raise UnsupportedWeightsError(
      "it has more layers than an SRResNet, or adds another image to its result"
    )
  if is_tanh:
    for kind in ("weight", "bias"):
      half = flat[f"conv_last.{kind}"].astype(np.float32) / 2
      flat[f"conv_last.{kind}"] = half
  output = "tanh" if is_tanh else "linear"
  variant = "srgan" if is_srgan else "msrresnet"
  config = _infer(flat, variant, output, str)
  known = {"scale": scale, "output": output, "centered": False}
  return _named(flat, config), known


def _in_order(
  num_block: int, num_up: int, is_srgan: bool
) -> Iterator[tuple[str, Any]]:
  """Yields convolutions, and the slope behind each: a number, or `...`."""
  outer, inner = (..., ...) if is_srgan else (0.1, 0.0)
  yield "conv_first", outer
  for n in range(num_block):
    yield f"body.{n}.conv1", inner
    yield f"body.{n}.conv2", None
  if is_srgan:
    yield "conv_body", None
  for i in range(1, num_up + 1):
    yield f"conv_up{i}", outer
  if not is_srgan:
    yield "conv_hr", outer
  yield "conv_last", None


def _is_slope(slope: Any, due: Any) -> bool:
  if due is None or slope is None:
    return slope is due
  if due is ...:
    return bool(np.ndim(slope))
  return not np.ndim(slope) and abs(slope - due) < 1e-6


def to_state_dict(
  params: Mapping[str, Any],
  collections: Mapping[str, Any] | None = None,
  config: Mapping[str, Any] | None = None,
) -> StateDict:
  """Returns an SRResNet's arrays under the names most programs know.

  Args:
    params: Its parameters, the tree of `SRResNet.init(...)["params"]`.
    collections: Its variables besides: `batch_stats`, with BatchNorm.
    config: Its fields, of which `output` and `centered` are heeded.

  Returns:
    Name to float32 array, kernels OIHW, each in C order: of an MSRResNet, what
    `load_state_dict` of BasicSR's takes; of another, that of Lornatang's
    SRGAN-PyTorch. Where it ends with a tanh, that of leftthomas's SRGAN, or of
    Persson's if it has a slope a channel, or is centered.

  Raises:
    UnsupportedWeightsError: If the tree is not SRResNet's.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=2, scale=4,
  ...               variant="msrresnet", norm="none")
  >>> state = {k.replace("conv_up", "upconv"): np.ones(s, np.float32)
  ...          for k, s in shapes(config).items()}
  >>> again = to_state_dict(from_state_dict(state).params)
  >>> sorted(again) == sorted(state), again["upconv1.weight"].shape
  (True, (16, 4, 3, 3))
  """
  flat = _from_tree(params, collections or {})
  try:
    variant = "msrresnet" if "conv_hr" in params else "srgan"
    found = _infer(flat, variant, "linear", str)
    compare(flat, shapes(found), "an SRResNet")
  except UnsupportedWeightsError as error:
    raise UnsupportedWeightsError(
      f"not the parameter tree of an SRResNet: {error}"
    ) from error
  told = {key: config[key] for key in UNTOLD if key in (config or {})}
  return _named(flat, found | told)


def _named(flat: StateDict, config: Mapping[str, Any]) -> StateDict:
  """Renames our arrays to those of the program that fits a network."""
  if config["variant"] == "msrresnet":
    name_of = functools.partial(_in_msrresnet, body="body")
  elif config["output"] != "tanh":
    name_of = _in_lornatang
  elif config["centered"] or config["slopes"] == "channel":
    name_of = _in_persson
  else:
    flat = dict(flat)
    for name in [n for n in flat if ".bn" in n or n.startswith("bn_body")]:
      layer, _, kind = name.rpartition(".")
      if kind == "bias":  # Its convolutions have one, too.
        before = layer.replace("bn", "conv")
        flat[f"{before}.bias"] = np.zeros_like(flat[name])
    name_of = functools.partial(
      _in_leftthomas,
      num_block=config["num_block"],
      num_up=len(_factors(config["scale"])),
    )
  return {
    ".".join((name_of(layer), kind)): flat[name]
    for name in sorted(flat, key=_order(config))
    for layer, _, kind in [name.rpartition(".")]
  }


def _order(config: Mapping[str, Any]) -> Callable[[str], int]:
  """Where a name stands in PyTorch's own order."""
  layers = [name.rpartition(".")[0] for name in shapes(config)]
  places = {layer: n for n, layer in enumerate(dict.fromkeys(layers))}
  return lambda name: places[name.rpartition(".")[0]]


def _in_msrresnet(layer: str, body: str) -> str:
  """As of the program whose blocks are `body`."""
  up = r"upsample\1.upsample_conv" if body == "trunk_net" else r"upconv\1"
  layer = re.sub(r"^conv_up(\d)$", up, layer)
  if body == "recon_trunk" and layer == "conv_hr":
    return "HRconv"
  return re.sub(r"^body\.", f"{body}.", layer)


def _in_lornatang(layer: str) -> str:
  if match := re.fullmatch(r"body\.(\d+)\.(\w+)", layer):
    return f"trunk.{match[1]}.rcb.{_RCB.index(match[2])}"
  if match := re.fullmatch(r"(conv|act)_up(\d)", layer):
    place = 0 if match[1] == "conv" else 2
    return f"upsampling.{int(match[2]) - 1}.upsample_block.{place}"
  return {
    "conv_first": "conv1.0",
    "act_first": "conv1.1",
    "conv_body": "conv2.0",
    "bn_body": "conv2.1",
    "conv_last": "conv3",
  }[layer]


def _in_older_lornatang(layer: str) -> str:
  return re.sub(r"^conv(?=\d)", "conv_block", _in_lornatang(layer))


def _in_persson(layer: str) -> str:
  if match := re.fullmatch(r"body\.(\d+)\.(conv|bn|act)(\d?)", layer):
    part = match[2].replace("conv", "cnn")
    return f"residuals.{match[1]}.block{match[3] or 1}.{part}"
  if match := re.fullmatch(r"(conv|act)_up(\d)", layer):
    return f"upsamples.{int(match[2]) - 1}.{match[1]}"
  return {
    "conv_first": "initial.cnn",
    "act_first": "initial.act",
    "conv_body": "convblock.cnn",
    "bn_body": "convblock.bn",
    "conv_last": "final",
  }[layer]


def _in_leftthomas(layer: str, num_block: int, num_up: int) -> str:
  if match := re.fullmatch(r"body\.(\d+)\.(\w+)", layer):
    return f"block{int(match[1]) + 2}.{match[2].replace('act', 'prelu')}"
  if match := re.fullmatch(r"(conv|act)_up(\d)", layer):
    part = match[1].replace("act", "prelu")
    return f"block{num_block + 3}.{int(match[2]) - 1}.{part}"
  return {
    "conv_first": "block1.0",
    "act_first": "block1.1",
    "conv_body": f"block{num_block + 2}.0",
    "bn_body": f"block{num_block + 2}.1",
    "conv_last": f"block{num_block + 3}.{num_up}",
  }[layer]


def _factors(scale: int) -> tuple[int, ...]:
  return SRResNet(scale=scale).upsampling


def _canonical(
  state: Mapping[str, Any],
) -> tuple[StateDict, str, str, Called]:
  """Renames any program's arrays to ours; names it does not know stay.

  Returns them, the network's variant, its output, and what the program calls
  our arrays.
  """
  if srresnet_keras.is_keras(state):
    flat, called = srresnet_keras.renamed(state)
    return flat, "srgan", "tanh", called
  variant, output = "srgan", "linear"
  name_of: Called = str
  if any(name.startswith("trunk.0.rcb.") for name in state):
    is_older = any(name.startswith("conv_block") for name in state)
    rules = _LORNATANG
    name_of = _in_older_lornatang if is_older else _in_lornatang
  elif any(name.startswith("residuals.0.block1.") for name in state):
    rules, output, name_of = _PERSSON, "tanh", _in_persson
  elif any(name.startswith("block2.prelu.") for name in state):
    blocks = [re.fullmatch(rf"block{_N}\.prelu\.weight", n) for n in state]
    num_block = sum(map(bool, blocks))
    ups = [
      re.fullmatch(rf"block{num_block + 3}\.[0-8]\.conv\.weight", n)
      for n in state
    ]
    counts = {"num_block": num_block, "num_up": sum(map(bool, ups))}
    rules, output = _leftthomas(**counts), "tanh"
    name_of = functools.partial(_in_leftthomas, **counts)
  else:
    rules, variant = _MSRRESNET, "msrresnet"
    body = next((k.split(".")[0] for k in state if ".0.conv1." in k), "body")
    name_of = functools.partial(_in_msrresnet, body=body)
  compiled = [(re.compile(pattern), to) for pattern, to in rules.items()]
  result: StateDict = {}
  for key, value in state.items():
    layer, _, kind = key.rpartition(".")
    if kind == "num_batches_tracked":
      continue
    name = key
    for pattern, to in compiled:
      if match := pattern.fullmatch(layer):
        found = to(match) if callable(to) else match.expand(to)
        name = f"{found}.{kind}"
        break
    if name in result:
      raise UnsupportedWeightsError(
        f"{printable(key)} and another name both stand for {name}: the file"
        " mixes dialects"
      )
    result[name] = value

  def called(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    try:
      return f"{name_of(layer)}.{kind}"
    except (KeyError, ValueError):  # One that is none of the network's.
      return name

  return result, variant, output, called


def _infer(
  flat: StateDict, variant: str, output: str, called: Called
) -> dict[str, Any]:
  """Reads the network's fields from names and shapes."""

  def shape(name: str) -> tuple[int, ...]:
    if name not in flat:
      raise UnsupportedWeightsError(
        f"an SRResNet without {called(name)}: {len(flat)} arrays are there. The"
        " file is incomplete or another variant of the network"
      )
    found = flat[name].shape
    if len(found) != 4 or min(found) < 1:
      raise UnsupportedWeightsError(
        f"{called(name)} has shape {found}, not that of a convolution"
      )
    return found

  feat, inputs = shape("conv_first.weight")[:2]
  outputs = shape("conv_last.weight")[0]
  blocks = sorted(
    {int(m[1]) for k in flat if (m := re.match(rf"body\.{_N}\.", k))}
  )
  if not blocks:
    raise UnsupportedWeightsError("an SRResNet without a block")
  num_block = blocks[-1] + 1
  if num_gaps := num_block - len(blocks):
    gap = next(n for n, block in enumerate(blocks) if n != block)
    raise UnsupportedWeightsError(
      f"of {num_block} blocks {num_gaps} are missing:"
      f" {called(f'body.{gap}.conv1.weight')}, ..."
    )
  ups = sorted(k for k in flat if re.fullmatch(r"conv_up[1-9]\.weight", k))
  factors = []
  for name in ups:
    outs = shape(name)[0]
    factor = math.isqrt(max(outs // feat, 1))
    if factor**2 * feat != outs:
      raise UnsupportedWeightsError(
        f"{called(name)} has {outs} outputs for {feat} channels: no shuffle of"
        " pixels"
      )
    factors.append(factor)
  if factors != [3] and factors not in ([2], [2, 2], [2, 2, 2]):
    raise UnsupportedWeightsError(
      f"it shuffles pixels by {' and '.join(map(str, factors)) or 'nothing'}:"
      " an SRResNet does by 3, or by 2 up to three times"
    )
  slopes = flat.get("act_first.weight", np.zeros(1)).shape
  return {
    "num_in_ch": inputs,
    "num_out_ch": outputs,
    "num_feat": feat,
    "num_block": num_block,
    "scale": math.prod(factors),
    "variant": variant,
    "norm": "batch" if "body.0.bn1.weight" in flat else "none",
    "slopes": "channel" if slopes == (feat,) and feat > 1 else "one",
    "output": output,
    "centered": False,
  }


def _fold_biases(
  flat: StateDict, config: Mapping[str, Any], called: Called
) -> None:
  """Takes biases that BatchNorm would take off again from its means."""
  if config["norm"] != "batch":
    return
  layers = [
    f"body.{n}.conv{i}" for n in range(config["num_block"]) for i in (1, 2)
  ]
  for layer in (*layers, "conv_body"):
    name = f"{layer}.bias"
    mean = f"{layer.replace('conv', 'bn')}.running_mean"
    if name in flat and mean in flat and flat[name].shape == flat[mean].shape:
      bias = _floats(called(name), flat.pop(name))
      flat[mean] = _floats(called(mean), flat[mean]) - bias


def _place(name: str) -> tuple[list[str], str]:
  """Where in the tree an array is: the path of its layer, and its own name."""
  layer, _, kind = name.rpartition(".")
  path = [part for part in layer.split(".") if not part.isdecimal()]
  family = re.match("conv|act|bn", path[-1])[0]
  return path, _KINDS[family][kind]


def _stack(flat: StateDict, names: list[str], called: Called) -> np.ndarray:
  """Stacks arrays as float32, kernels HWIO; refuses what is not finite."""
  return np.stack([_turned(_floats(called(n), flat[n])) for n in names])


def _turned(value: np.ndarray) -> np.ndarray:
  return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def _floats(name: str, value: np.ndarray) -> np.ndarray:
  result = np.empty(value.shape, np.float32)
  as_float32(name, value, result)
  return result


def _from_tree(
  params: Mapping[str, Any], collections: Mapping[str, Any]
) -> StateDict:
  """The arrays of a tree by our names, as a state dict has them."""
  if others := sorted(map(str, set(collections) - {*COLLECTIONS})):
    raise UnsupportedWeightsError(
      f"an SRResNet has no {printable(', '.join(others))}"
    )
  flat: StateDict = {}
  for tree in (params, collections.get("batch_stats", {})):
    for path, value in _leaves(tree, ()):
      value = np.asarray(value, np.float32)
      *layer, leaf = path
      match = re.match("conv|act|bn", layer[-1] if layer else "")
      kinds = (
        {new: old for old, new in _KINDS[match[0]].items()} if match else {}
      )
      kind = kinds.get(leaf, leaf)
      if layer[:1] == ["body"] and value.ndim:
        for n, each in enumerate(value):
          name = ".".join(("body", str(n), *layer[1:], kind))
          flat[name] = _put(name, each)
      else:
        name = ".".join((*layer, kind))
        flat[name] = _put(name, value)
  return flat


def _leaves(tree, path):
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, (*path, str(key)))
    else:
      yield (*path, str(key)), value


def _put(name: str, value: np.ndarray) -> np.ndarray:
  if value.ndim == 4:
    value = value.transpose(3, 2, 0, 1)
  return np.ascontiguousarray(value)
