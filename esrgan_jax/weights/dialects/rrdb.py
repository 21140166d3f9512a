"""Names in weight files and our parameter tree: what maps to what.

Pure functions of arrays. RRDBNet's weights go round under three sets of names,
the *dialects*:

| layer | BasicSR, Real-ESRGAN | authors, BSRGAN | oldest |
| --- | --- | --- | --- |
| first | `conv_first` | `conv_first` | `model.0` |
| block | `body.0.rdb1.conv1` | `RRDB_trunk.0.RDB1.conv1` | `model.1.sub.0.RDB1.conv1.0` |
| trunk | `conv_body` | `trunk_conv` | `model.1.sub.{num_block}` |
| up i | `conv_up1` | `upconv1` | `model.{3i}` |
| high | `conv_hr` | `HRconv` | `model.{3n+2}` |
| last | `conv_last` | `conv_last` | `model.{3n+4}` |

bare, wrapped in dicts (`params`, `params_ema`, `state_dict`), or prefixed
(`module.`, `generator.`). A state dict is flat, with OIHW kernels; our tree is
nested, with HWIO kernels and the blocks stacked on a leading axis of `body`.

Everything about the network is read from names and shapes, save one thing: a x3
network has a single upsampling convolution and so looks like a plain x2 one.
Two is assumed, as everywhere else, unless `scale=3` is given.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.text import printable

StateDict = dict[str, np.ndarray]
Params = dict[str, Any]

SUPPORTED = (
  "RRDBNet (ESRGAN, Real-ESRGAN x2plus/x4plus/anime_6B, BSRGAN, RealSR and"
  " their fine-tuned descendants)"
)


# Files keep a network, its average, perhaps one more; what looks at every name
# for every network would take forever with more of them.
_MAX_NETWORKS = 16
_MAX_DEPTH = 8  # Of dicts in dicts.
_MAX_SAMPLE = 4096  # Names are enough to tell what a file is.


class UnsupportedWeightsError(ValueError):
  """The arrays are not, or not completely, those of one RRDBNet."""


@dataclasses.dataclass(frozen=True)
class NamedWeights:
  """An RRDBNet found among named arrays.

  Attributes:
    config: The network's fields, for `RRDBNet(**config)`.
    params: Its parameter tree, float32 NumPy arrays.
    notes: Sentences on choices made for the user, perhaps none.
  """

  config: dict[str, int]
  params: Params
  notes: tuple[str, ...] = ()


# The key that tells an RRDBNet from everything else, whatever stands before.
_TELLTALE = re.compile(
  r"(?P<prefix>(?:.*\.)?)"
  r"(?:body\.0\.rdb1\.conv1|RRDB_trunk\.0\.RDB1\.conv1"
  r"|model\.1\.sub\.0\.RDB1\.conv1\.0)\.weight"
)

_BLOCK = re.compile(
  r"(?:body|RRDB_trunk|model\.1\.sub)\.([0-9]{1,4})\.(?:rdb|RDB)([1-3])"
  r"\.conv([1-5])(?:\.0)?\.(weight|bias)"
)
_UP = re.compile(r"(?:conv_up|upconv)([1-9])\.(weight|bias)")
_OLD_TRUNK = re.compile(r"model\.1\.sub\.([0-9]{1,4})\.(weight|bias)")
_OLD_TAIL = re.compile(r"model\.([0-9]{1,2})\.(weight|bias)")
# A moving average, by a word of its name: `params_ema`, `modelEMA`; no cinema.
_EMA = re.compile(r"EMA|Ema(?![a-z])|(?<![A-Za-z])ema(?![a-z])")
_RENAMED = {
  "trunk_conv": "conv_body",
  "HRconv": "conv_hr",
  "model.0": "conv_first",
}

# Other networks by names found nowhere else; the first match counts.
_OTHERS: tuple[tuple[str, str], ...] = (
  (r"conv1x1", "ESRGAN+ (RRDB with extra 1x1 convolutions)"),
  (r"^model\.diffusion_model\.", "a Stable Diffusion checkpoint"),
  (r"stylegan_decoder|^final_linear\.|stylegan", "GFPGAN (face restoration)"),
  (r"quantize\.embedding|idx_pred_layer", "CodeFormer (face restoration)"),
  (r"overlap_attn|conv_block\.cab", "HAT"),
  (r"attns\.\d+\.|\.attn\.attns", "DAT"),
  (r"cpb_mlp|logit_scale", "Swin2SR"),
  (r"residual_group|relative_position_bias_table", "SwinIR"),
  (r"\.rcab\.|conv_du", "RCAN"),
  (r"sk\.weight$|block_\d+\.c\d_r", "SPAN"),
  (r"weight_orig$|weight_u$", "a U-Net discriminator of Real-ESRGAN"),
  (r"^conv0_[01]\.|^features\.0\.|^bn\d_\d\.", "a VGG or a VGG-style critic"),
  (
    r"param_groups|exp_avg|^optimizers?\b|^schedulers?\b|^optimizer_states",
    "a training state (optimizers, schedulers), not a network",
  ),
  (r"^recon_trunk\.|sub\.\d+\.res\.", "SRResNet / MSRResNet"),
  (r"^conv_after_body\.|^head\.0\.|^sub_mean\.|^tail\.", "EDSR"),
  (r"^body\.\d+\.conv1\.", "SRResNet / MSRResNet"),
  (r"^block[2-8]\.(?:conv|0\.)", "an SRGAN generator"),
)
COMPACT = "SRVGGNetCompact (a compact Real-ESRGAN model)"


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
) -> NamedWeights:
  """Finds an RRDBNet among named arrays, in any dialect, wrapped or not.

  Args:
    state: Name to array (float, kernels OIHW), or dicts of such dicts as
      training programs write them. Where the plain weights and their moving
      average (a name with `ema`) are both there, the average is taken; other
      choices between networks are left to the caller.
    scale: Upscaling factor, needed for x3 only (see above); given for another
      network, it must agree with what the shapes say.
    unshuffle: Pixel-unshuffle factor; by default read from the first layer:
      2 or 4 where it has 4 or 16 times as many inputs as the net has outputs.

  Returns:
    The network's configuration, its parameter tree, and notes.

  Raises:
    UnsupportedWeightsError: If there is no RRDBNet, naming what it looks like,
      or several, naming them; or if arrays are missing, left over, of the
      wrong shape or not finite.
    ValueError: If `scale` or `unshuffle` contradicts the arrays.

  Source: the three dialects from BasicSR `archs/rrdbnet_arch.py` and
  xinntao/ESRGAN `RRDBNet_arch.py`, `transer_RRDB_models.py`.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=2,
  ...               num_grow_ch=2, scale=4, unshuffle=1)
  >>> state = {k: np.zeros(s, np.float32) for k, s in shapes(config).items()}
  >>> found = from_state_dict({"params_ema": state})
  >>> found.config == config, found.params["conv_last"]["kernel"].shape
  (True, (3, 3, 4, 3))
  """
  flat, notes = _select(state)
  flat = _canonical(flat)
  config = _infer(flat, scale, unshuffle)
  _check(flat, shapes(config))
  if any(v.dtype == np.float64 for v in flat.values()):
    notes.append("the weights are float64: rounded to float32")
  params: Params = {}
  for name in shapes(config):
    if not name.startswith("body."):
      layer, kind = name.rsplit(".", 1)
      leaf, value = _stack(flat, [name], kind)
      params.setdefault(layer, {})[leaf] = value[0]
  blocks = range(config["num_block"])
  params["body"] = {
    f"rdb{r}": {
      f"conv{c}": dict(
        _stack(flat, [f"body.{n}.rdb{r}.conv{c}.{kind}" for n in blocks], kind)
        for kind in ("weight", "bias")
      )
      for c in range(1, 6)
    }
    for r in (1, 2, 3)
  }
  return NamedWeights(config, params, tuple(notes))


def to_state_dict(params: Mapping[str, Any]) -> StateDict:
  """Returns a parameter tree as a state dict in BasicSR's names.

  Args:
    params: RRDBNet's parameters, the tree of `RRDBNet.init(...)["params"]`.

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
  return state


def describe(names: list[str]) -> str:
  """Returns what kind of network has these array names, in words.

  Args:
    names: Names of arrays, as they stand in a file.

  Returns:
    A network's or a file's kind, or "an unknown network".

  >>> describe(["body.0.weight", "body.1.weight"])
  'SRVGGNetCompact (a compact Real-ESRGAN model)'
  >>> describe(["layers.0.residual_group.blocks.0.norm1.weight"])
  'SwinIR'
  """
  stripped = [
    re.sub(r"^(?:module|generator|netG)\.", "", n) for n in names[:_MAX_SAMPLE]
  ]
  # The compact net has no other names at all; many nets have a `body.0`.
  if stripped and all(re.match(r"body\.\d+\.[wb]\w+$", n) for n in stripped):
    return COMPACT
  for pattern, kind in _OTHERS:
    if any(re.search(pattern, n) for n in stripped):
      return kind
  return "an unknown network"


def _mappings(
  tree: Mapping[str, Any],
) -> Iterator[tuple[tuple[str, ...], StateDict]]:
  """Yields every dict in `tree` that holds arrays, each object once."""
  # A hostile file may nest a dict in itself, or one dict a million times.
  seen: set[int] = set()
  todo: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), tree)]
  while todo:
    path, mapping = todo.pop()
    if id(mapping) in seen or len(path) > _MAX_DEPTH:
      continue
    seen.add(id(mapping))
    arrays, inner = {}, []
    for key, value in mapping.items():
      if isinstance(value, Mapping):
        inner.append(((*path, str(key)), value))
      elif (
        isinstance(key, str)
        and hasattr(value, "shape")
        and hasattr(value, "dtype")
      ):
        arrays[key] = value
    todo += reversed(inner)
    if arrays:
      yield path, arrays


def _select(state: Mapping[str, Any]) -> tuple[StateDict, list[str]]:
  """Picks the RRDBNet's arrays out of whatever surrounds them."""
  networks: dict[tuple[tuple[str, ...], str], StateDict] = {}
  names: list[str] = []
  for path, arrays in _mappings(state):
    names += arrays
    for name in arrays:
      if match := _TELLTALE.fullmatch(name):
        # One network under two dialects' names fails further on.
        networks[path, match["prefix"]] = arrays
  if not networks or any("conv1x1" in n for n in names):
    names = names or [key for key in state if isinstance(key, str)]
    few = ", ".join(printable(n, limit=60) for n in names[:4]) or "none"
    raise UnsupportedWeightsError(
      f"this is {describe(names)}, not an RRDBNet (its first names: {few});"
      f" supported is {SUPPORTED}"
    )
  labels = ["/".join((*path, prefix)).rstrip("/.") for path, prefix in networks]
  chosen = _choose(labels)
  notes = []
  if others := labels[:chosen] + labels[chosen + 1 :]:
    notes.append(
      f"the file holds several networks: took {_shown(labels[chosen])} (the"
      f" moving average), left {', '.join(map(_shown, others))}"
    )
  (_, prefix), arrays = list(networks.items())[chosen]
  flat = {
    k[len(prefix) :]: np.asarray(v)
    for k, v in arrays.items()
    if k.startswith(prefix)
  }
  return flat, notes


def _choose(labels: list[str]) -> int:
  """Returns which network is the only one, or the only moving average."""
  averages = [i for i, label in enumerate(labels) if _EMA.search(label)]
  if len(labels) <= _MAX_NETWORKS:
    for found in (range(len(labels)), averages):
      if len(found) == 1:
        return found[0]
  named = [labels[i] for i in averages] or labels
  few = ", ".join(map(_shown, named[:4]))
  raise UnsupportedWeightsError(
    f"the file holds {len(labels)} networks, and nothing says which one is"
    f" meant: {few}{', ...' if len(named) > 4 else ''}. Save that one alone"
  )


def _shown(label: str) -> str:
  return printable(label, limit=60) or "the unwrapped one"


def _canonical(flat: StateDict) -> StateDict:
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


def _infer(
  flat: StateDict, scale: int | None, unshuffle: int | None
) -> dict[str, int]:
  """Reads the network's fields from names and shapes."""

  def size(name: str, axis: int) -> int:
    if name not in flat:
      raise UnsupportedWeightsError(
        f"an RRDBNet without {name}: {len(flat)} arrays are there. The file is"
        " incomplete or another variant of the network"
      )
    if flat[name].ndim != 4 or min(flat[name].shape) < 1:
      raise UnsupportedWeightsError(
        f"{name} has shape {flat[name].shape}, not that of a 3x3 convolution"
      )
    return flat[name].shape[axis]

  inputs, num_out_ch = size("conv_first.weight", 1), size("conv_last.weight", 0)
  blocks = sorted({int(m[1]) for k in flat if (m := _BLOCK.fullmatch(k))})
  num_block = blocks[-1] + 1
  if num_gaps := num_block - len(blocks):
    gap = next(n for n, block in enumerate(blocks) if n != block)
    raise UnsupportedWeightsError(
      f"of {num_block} blocks {num_gaps} are missing: body.{gap}"
      f"{', ...' if num_gaps > 1 else ''}"
    )
  num_up = len({m[1] for k in flat if (m := _UP.fullmatch(k))})
  if unshuffle is None:
    unshuffle = {4: 2, 16: 4}.get(inputs // num_out_ch, 1)
    unshuffle = unshuffle if inputs == num_out_ch * unshuffle**2 else 1
  if unshuffle < 1 or inputs % unshuffle**2:
    raise ValueError(
      f"unshuffle {unshuffle} cannot be: conv_first has {inputs} inputs, no"
      f" multiple of {unshuffle}**2"
    )
  found, rest = divmod(2**num_up, unshuffle)
  if rest:
    raise UnsupportedWeightsError(
      f"conv_first has {inputs} inputs (unshuffle {unshuffle}) but there are"
      f" only {num_up} upsamplings: the output would be smaller than the input"
    )
  if scale is None:
    scale = found
  elif scale != found and not (scale == 3 and num_up == 1 and unshuffle == 1):
    raise ValueError(
      f"scale {scale} was asked for, but the weights are those of a x{found}"
      f" network ({num_up} upsamplings, unshuffle {unshuffle}); leave scale out"
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


def _check(flat: StateDict, expected: dict[str, tuple[int, ...]]) -> None:
  """Compares names and shapes, and names what differs."""
  missing = [k for k in expected if k not in flat]
  extra = [k for k in flat if k not in expected]
  wrong = [
    f"{k} is {flat[k].shape}, not {s}"
    for k, s in expected.items()
    if k in flat and flat[k].shape != s
  ]
  problems = [
    f"{len(found)} {what} ({'; '.join(map(printable, found[:3]))}"
    f"{'; ...' if len(found) > 3 else ''})"
    for what, found in (
      ("missing", missing),
      ("left over", extra),
      ("of the wrong shape", wrong),
    )
    if found
  ]
  if problems:
    raise UnsupportedWeightsError(
      f"almost an RRDBNet, but of its {len(expected)} arrays: "
      + ", ".join(problems)
    )


def _stack(
  flat: StateDict, names: list[str], kind: str
) -> tuple[str, np.ndarray]:
  """Stacks arrays as float32, kernels HWIO; refuses what is not finite."""
  leaf = "bias" if kind == "bias" else "kernel"
  turned = [_turned(flat[name]) for name in names]
  result = np.empty((len(names), *turned[0].shape), np.float32)
  for name, value, target in zip(names, turned, result, strict=True):
    # ml_dtypes' bfloat16 has kind V and casts exactly.
    if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
      raise UnsupportedWeightsError(
        f"{name} is {value.dtype}: weights are floats (quantised files are not"
        " supported)"
      )
    with np.errstate(over="ignore", invalid="ignore"):
      target[...] = value
    if not (finite := np.isfinite(target)).all():
      raise UnsupportedWeightsError(
        f"{name} has {finite.size - finite.sum()} values that are NaN or"
        " infinite: the file is damaged or its training diverged"
      )
  return leaf, result


def _turned(value: np.ndarray) -> np.ndarray:
  return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def _put(state: StateDict, name: str, kernel: Any, bias: Any) -> None:
  kernel = np.asarray(kernel, np.float32)
  if kernel.ndim != 4:
    raise UnsupportedWeightsError(
      f"{name} has a kernel of shape {kernel.shape}, not HWIO"
    )
  state[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
  state[f"{name}.bias"] = np.ascontiguousarray(np.asarray(bias, np.float32))
