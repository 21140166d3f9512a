"""SRVGGNetCompact's names in weight files: all are numbers of one list.

| layer | Real-ESRGAN, BasicSR |
| --- | --- |
| first | `body.0` |
| its activation | `body.1`, where it is a PReLU |
| layer n, its activation | `body.{2n + 2}`, `body.{2n + 3}` |
| last | `body.{2 * num_conv + 2}` |

A state dict is flat, with OIHW kernels; our tree is nested, with HWIO kernels
and the layers between the first and the last stacked on a leading axis of
`body`.

Two things arrays do not tell. Without PReLUs, an activation may be ReLU or
leaky ReLU (`act_type`). And what is shuffled to blocks of `shuffle` pixels may
be interpolated to another `scale` afterwards, as animevideov3's x2 and x3 are
in ncnn's files; other programs' files know no such thing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esrgan_jax.models.compact import LEAKS
from esrgan_jax.text import printable
from esrgan_jax.weights.dialects.protocol import (
  NamedWeights,
  NcnnLayer,
  Params,
  StateDict,
  UnsupportedWeightsError,
  as_float32,
  compare,
)

SUPPORTED = (
  "SRVGGNetCompact (Real-ESRGAN's general-x4v3 and animevideov3, and their"
  " fine-tuned descendants)"
)
UNTOLD = ("act_type", "shuffle")
COLLECTIONS = ()

# Many networks have lists of this name: in another list, or beside others.
TELLTALE = re.compile(r"(?P<prefix>(?:(?![0-9]+\.)[^.]+\.)*)body\.0\.weight")
NAMES = re.compile(r"body\.[0-9]{1,5}\.(?:weight|bias)")

# In our own tree.
LEAF = ("body", "conv", "kernel")

# How ncnn resizes, by its numbers.
_NEAREST, _CUBIC = 1, 3

_NAME = re.compile(r"body\.(0|[1-9][0-9]{0,4})\.(weight|bias)")


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns the names and shapes of an SRVGGNetCompact's state dict.

  Args:
    config: Fields of the network, `shuffle` among them, no default left out.

  Returns:
    Name to shape, kernels OIHW.

  Source: Real-ESRGAN `archs/srvgg_arch.py`.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, scale=4,
  ...               act_type="prelu", shuffle=4)
  >>> found = shapes(config)
  >>> found["body.1.weight"], found["body.6.weight"]
  ((8,), (48, 8, 3, 3))
  """
  feat, num_conv = config["num_feat"], config["num_conv"]
  outputs = config["num_out_ch"] * config["shuffle"] ** 2
  result: dict[str, tuple[int, ...]] = {}
  for n in range(num_conv + 2):
    fan_in = feat if n else config["num_in_ch"]
    fan_out = feat if n <= num_conv else outputs
    result[f"body.{2 * n}.weight"] = (fan_out, fan_in, 3, 3)
    result[f"body.{2 * n}.bias"] = (fan_out,)
    if config["act_type"] == "prelu" and n <= num_conv:
      result[f"body.{2 * n + 1}.weight"] = (feat,)
  return result


def from_state_dict(
  state: Mapping[str, Any],
  *,
  scale: int | None = None,
  act_type: str | None = None,
  shuffle: int | None = None,
) -> NamedWeights:
  """Returns the SRVGGNetCompact that named arrays are.

  Args:
    state: Name to array (float, kernels OIHW).
    scale: Upscaling factor; it must agree with what the shapes say, unless
      `shuffle` says that the result is made smaller.
    act_type: Which activation; it must agree with what the names say, and is
      needed where there are no PReLUs.
    shuffle: Side of the block that a pixel becomes; it must agree with what the
      shapes say.

  Returns:
    The network's fields, its parameter tree, and notes.

  Raises:
    UnsupportedWeightsError: If arrays are missing, left over, of the wrong
      shape or not finite.
    ValueError: If an argument contradicts the arrays, or the activation has to
      be said.

  Source: Real-ESRGAN `archs/srvgg_arch.py`.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_conv=2, scale=4,
  ...               act_type="prelu", shuffle=4)
  >>> state = {k: np.zeros(s, np.float32) for k, s in shapes(config).items()}
  >>> found = from_state_dict(state)
  >>> found.config == config, found.params["body"]["act"]["slope"].shape
  (True, (2, 4))
  """
  flat = dict(state)
  config = _infer(flat, act_type)
  compare(flat, shapes(config), "an SRVGGNetCompact")
  if act_type not in (None, config["act_type"]):
    raise ValueError(
      f"act_type {printable(act_type)} was asked for, but the activations are"
      f" {config['act_type']}; leave act_type out"
    )
  if shuffle not in (None, config["shuffle"]):
    raise ValueError(
      f"shuffle {shuffle} was asked for, but the weights are those of a network"
      f" that shuffles by {config['shuffle']}; leave shuffle out"
    )
  if scale is not None and shuffle is not None and 1 <= scale <= shuffle:
    config["scale"] = scale
  elif scale not in (None, config["scale"]):
    raise ValueError(
      f"scale {scale} was asked for, but the weights are those of a"
      f" x{config['scale']} network; leave scale out"
    )
  notes = []
  if any(v.dtype == np.float64 for v in flat.values()):
    notes.append("the weights are float64: rounded to float32")
  num_conv = config["num_conv"]
  params: Params = {
    "conv_first": _conv(flat, [0], stacked=False),
    "body": {"conv": _conv(flat, range(1, num_conv + 1))},
    "conv_last": _conv(flat, [num_conv + 1], stacked=False),
  }
  if config["act_type"] == "prelu":
    slopes = _stack(
      flat, [f"body.{2 * n + 1}.weight" for n in range(num_conv + 1)]
    )
    params["act_first"] = {"slope": slopes[0]}
    params["body"]["act"] = {"slope": slopes[1:]}
  return NamedWeights(config, params, tuple(notes))


def from_ncnn(
  layers: Sequence[NcnnLayer],
) -> tuple[StateDict, dict[str, Any]]:
  """Names the arrays of ncnn's layers, which are known by their order.

  Args:
    layers: The network's convolutions and activations, and what enlarges.

  Returns:
    Name to array under Real-ESRGAN's names, and the network's `scale`,
    `shuffle` and `act_type`, which these layers show.

  Raises:
    UnsupportedWeightsError: If they are not those of an SRVGGNetCompact.

  >>> from_ncnn([])
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.dialects.protocol.UnsupportedWeightsError: there are no...
  """
  kinds = [layer.kind for layer in layers]
  if (count := kinds.count("PixelShuffle")) != 1:
    raise UnsupportedWeightsError(
      f"there are {count or 'no'} shuffles of pixels; an SRVGGNetCompact has"
      " one"
    )
  end = kinds.index("PixelShuffle")
  shuffle = layers[end].factor
  convs, slopes = _chain(layers[:end], layers[end + 1 :])
  resizes = [layer for layer in layers if layer.kind == "Interp"]
  skips = [layer.factor for layer in resizes if layer.mode == _NEAREST]
  ends = [layer.factor for layer in resizes if layer.mode == _CUBIC]
  scale = shuffle * math.prod(ends)
  if (
    len(skips) + len(ends) != len(resizes)
    or len(ends) > 1
    # Of x1, nothing need be enlarged.
    or (skips or [1.0]) != [shuffle]
    or not (scale.is_integer() and 1 <= scale <= shuffle)
  ):
    raise UnsupportedWeightsError(
      f"it shuffles pixels by {shuffle:g}, and resizes by"
      f" {', '.join(f'{x.factor:g}' for x in resizes) or 'nothing'}; an"
      " SRVGGNetCompact enlarges its image by the same, and may make the result"
      " smaller cubically"
    )
  state: StateDict = {}
  for n, conv in enumerate(convs):
    state[f"body.{2 * n}.weight"] = conv.weight
    state[f"body.{2 * n}.bias"] = conv.bias
  act_type = _act_type(slopes)
  if act_type == "prelu":
    for n, slope in enumerate(slopes):
      if not np.ndim(slope):  # One for all channels.
        slope = np.full(len(convs[n].bias), slope, np.float32)
      state[f"body.{2 * n + 1}.weight"] = slope
  known = {"scale": int(scale), "shuffle": int(shuffle), "act_type": act_type}
  return state, known


def to_state_dict(
  params: Mapping[str, Any],
  collections: Mapping[str, Any] | None = None,
  config: Mapping[str, Any] | None = None,
) -> StateDict:
  """Returns a parameter tree as a state dict in Real-ESRGAN's names.

  Args:
    params: The parameters, the tree of `SRVGGNetCompact.init(...)["params"]`.
    collections: What it has besides: nothing.
    config: Its fields; the names need none of them.

  Returns:
    Name to float32 array, kernels OIHW, each in C order: what
    `load_state_dict` of Real-ESRGAN's SRVGGNetCompact takes. Bit for bit what
    `from_state_dict` was given, where that was float32.

  Raises:
    UnsupportedWeightsError: If the tree is not SRVGGNetCompact's.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_conv=2, scale=4,
  ...               act_type="prelu", shuffle=4)
  >>> state = {k: np.ones(s, np.float32) for k, s in shapes(config).items()}
  >>> again = to_state_dict(from_state_dict(state).params)
  >>> list(again) == list(state), again["body.6.weight"].shape
  (True, (48, 4, 3, 3))
  """
  del config
  try:
    body, has_slopes = params["body"], "act_first" in params
    layers = [(params["conv_first"], params.get("act_first"))]
    for n in range(len(body["conv"]["bias"])):
      conv = {key: body["conv"][key][n] for key in ("kernel", "bias")}
      slope = {"slope": body["act"]["slope"][n]} if has_slopes else None
      layers.append((conv, slope))
    layers.append((params["conv_last"], None))
    state: StateDict = {}
    for n, (conv, act) in enumerate(layers):
      _put(state, f"body.{2 * n}", conv["kernel"], conv["bias"])
      if act is not None:
        state[f"body.{2 * n + 1}.weight"] = _floats(act["slope"])
  except (KeyError, TypeError, IndexError) as e:
    raise UnsupportedWeightsError(
      "not the parameter tree of an SRVGGNetCompact:"
      f" {type(e).__name__} {printable(e)}; give"
      " SRVGGNetCompact.init(...)['params'], without the outer 'params'"
    ) from e
  known = {"conv_first", "act_first", "body", "conv_last"}
  left = {*params} - known | {*body} - {"conv", "act" if has_slopes else "conv"}
  if left:
    raise UnsupportedWeightsError(
      "not the parameter tree of an SRVGGNetCompact:"
      f" {printable(sorted(map(str, left)))} are none of it"
    )
  if collections:
    raise UnsupportedWeightsError(
      f"an SRVGGNetCompact has no {printable(', '.join(map(str, collections)))}"
    )
  return state


def _infer(flat: StateDict, act_type: str | None) -> dict[str, Any]:
  """Reads the network's fields from names and shapes."""
  numbers = {int(m[1]) for key in flat if (m := _NAME.fullmatch(key))}
  last = max(numbers, default=0)
  num_conv = last // 2 - 1
  if last % 2 or num_conv < 1:
    raise UnsupportedWeightsError(
      "almost an SRVGGNetCompact, whose last layer is body.4, body.6, body.8"
      f" or so; here it is body.{last}"
    )

  def shape(name: str) -> tuple[int, ...]:
    if name not in flat:
      raise UnsupportedWeightsError(
        f"an SRVGGNetCompact without {name}: {len(flat)} arrays are there. The"
        " file is incomplete or another variant of the network"
      )
    found = flat[name].shape
    if len(found) != 4 or min(found) < 1:
      raise UnsupportedWeightsError(
        f"{name} has shape {found}, not that of a 3x3 convolution"
      )
    return found

  feat, inputs = shape("body.0.weight")[:2]
  outputs = shape(f"body.{last}.weight")[0]
  shuffle = math.isqrt(outputs // inputs)
  if outputs != inputs * shuffle**2:
    raise UnsupportedWeightsError(
      f"body.{last} has {outputs} outputs for {inputs} channels: no shuffle of"
      " pixels"
    )
  if any(number % 2 for number in numbers):
    act_type = "prelu"
  elif act_type is None:
    leaks = [name for name in LEAKS if name != "prelu"]
    raise ValueError(
      f"its activations may be {' or '.join(leaks)}, and nothing tells which:"
      ' --config FILE with {"architecture": "SRVGGNetCompact", "scale":'
      f' {shuffle}, "act_type": "{leaks[0]}"}}'
    )
  elif act_type == "prelu":
    raise ValueError(
      "act_type prelu was asked for, but there are no slopes: the activations"
      " are others"
    )
  return {
    "num_in_ch": inputs,
    "num_out_ch": inputs,
    "num_feat": feat,
    "num_conv": num_conv,
    "scale": shuffle,
    "act_type": act_type,
    "shuffle": shuffle,
  }


def _chain(
  layers: Sequence[NcnnLayer], behind: Sequence[NcnnLayer]
) -> tuple[list[NcnnLayer], list[Any]]:
  """The convolutions, and the slope of each but the last."""
  convs: list[NcnnLayer] = []
  slopes: list[Any] = []
  fits = all(layer.kind == "Interp" for layer in behind)
  fits = fits and all(layer.kind != "Sigmoid" for layer in layers)
  for layer in layers:
    if layer.kind == "Convolution":
      fits = fits and len(convs) == len(slopes)
      convs.append(layer)
    if layer.slope is not None:
      slopes.append(layer.slope)
      fits = fits and len(convs) == len(slopes)
  if not fits or len(convs) < 3 or len(convs) != len(slopes) + 1:
    raise UnsupportedWeightsError(
      f"{len(convs)} convolutions and {len(slopes)} activations are no"
      " SRVGGNetCompact: there are three or more, an activation between each"
      " two, then a shuffle of pixels"
    )
  return convs, slopes


def _act_type(slopes: Sequence[Any]) -> str:
  for name, leak in LEAKS.items():
    if name != "prelu" and all(
      not np.ndim(slope) and abs(slope - leak) < 1e-6 for slope in slopes
    ):
      return name
  return "prelu"


def _conv(
  flat: StateDict, layers: Sequence[int], *, stacked: bool = True
) -> dict[str, np.ndarray]:
  found = {
    leaf: _stack(flat, [f"body.{2 * n}.{kind}" for n in layers])
    for leaf, kind in (("kernel", "weight"), ("bias", "bias"))
  }
  return found if stacked else {leaf: x[0] for leaf, x in found.items()}


def _stack(flat: StateDict, names: Sequence[str]) -> np.ndarray:
  """Stacks arrays as float32, kernels HWIO; refuses what is not finite."""
  values = [flat[name] for name in names]
  turned = [v.transpose(2, 3, 1, 0) if v.ndim == 4 else v for v in values]
  result = np.empty((len(names), *turned[0].shape), np.float32)
  for name, value, target in zip(names, turned, result, strict=True):
    as_float32(name, value, target)
  return result


def _put(state: StateDict, name: str, kernel: Any, bias: Any) -> None:
  kernel = _floats(kernel)
  if kernel.ndim != 4:
    raise UnsupportedWeightsError(
      f"{name} has a kernel of shape {kernel.shape}, not HWIO"
    )
  state[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
  state[f"{name}.bias"] = _floats(bias)


def _floats(value: Any) -> np.ndarray:
  return np.ascontiguousarray(np.asarray(value, np.float32))
