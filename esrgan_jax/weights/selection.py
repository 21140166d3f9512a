"""Picks a network's arrays out of whatever surrounds them in a file.

Files hold a network bare, wrapped in dicts (`params`, `params_ema`,
`state_dict`), or with a prefix (`module.`, `generator.`), beside its moving
average, its discriminator, an optimizer. Which one is meant, and what a file
holds if it is none of ours, is decided here, by names alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.weights import fields
from esrgan_jax.weights.dialects import DIALECTS
from esrgan_jax.weights.dialects.protocol import (
  NamedWeights,
  NcnnLayer,
  StateDict,
  UnsupportedWeightsError,
)

__all__ = [
  "choose",
  "describe",
  "find_network",
  "name_layers",
  "pick",
  "supported",
  "taken",
]

# Files keep a network, its average, perhaps one more; what looks at every name
# for every network would take forever with more of them.
_MAX_NETWORKS = 16
_MAX_DEPTH = 8  # Of dicts in dicts.
_MAX_SAMPLE = 4096  # Names are enough to tell what a file is.

# A moving average, by a word of its name: `params_ema`, `modelEMA`; no cinema.
_EMA = re.compile(r"EMA|Ema(?![a-z])|(?<![A-Za-z])ema(?![a-z])")
# Networks that have every name of a supported one, and more: ESRGAN+, EDSR.
_VARIANT = re.compile("conv1x1|conv_after_body")

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
  (
    r"weight_orig$|weight_u$|parametrizations\.weight\.original$",
    "a U-Net discriminator of Real-ESRGAN",
  ),
  (
    r"^conv0_[01]\.|^features\.0\.|^bn\d_\d\.|^block\d_conv\d/",
    "a VGG or a VGG-style critic",
  ),
  (r"^blocks\.\d+\.cnn\.weight", "a critic (disc.pth.tar), no generator"),
  (
    r"param_groups|exp_avg|^optimizers?\b|^schedulers?\b|^optimizer_states",
    "a training state (optimizers, schedulers), not a network",
  ),
  (r"sub\.\d+\.res\.", "an SRResNet of BasicSR's oldest code"),
  (r"^conv_after_body\.|^head\.0\.|^sub_mean\.|^tail\.", "EDSR"),
  (r"^block[2-8]\.(?:conv|0\.)", "an SRGAN generator"),
)


def supported() -> str:
  """Returns which networks are supported, in words.

  >>> supported()[:7]
  'RRDBNet'
  """
  return "; ".join(dialect.SUPPORTED for dialect in DIALECTS.values())


def find_network(
  state: Mapping[str, Any],
  *,
  architecture: str | None = None,
  scale: int | None = None,
  **untold: Any,
) -> NamedWeights:
  """Finds a network among named arrays, in any dialect, wrapped or not.

  Args:
    state: Name to array, or dicts of such dicts as training programs write
      them. Where the plain weights and their moving average (a name with `ema`)
      are both there, the average is taken; other choices between networks are
      left to the caller.
    architecture: Which one to look for; None for all that have a dialect.
    scale: Upscaling factor, for networks that do not tell; given for another
      one, it must agree with what the shapes say.
    **untold: Further fields that arrays do not tell: those of its dialect's
      `UNTOLD` are heeded.

  Returns:
    The network's architecture and fields, its parameter tree, and notes.

  Raises:
    UnsupportedWeightsError: If there is none, naming what it looks like, or
      several, naming them; or if arrays are missing, left over, of the wrong
      shape or not finite.
    ValueError: If `scale` or another field contradicts the arrays.

  >>> from esrgan_jax.weights.dialects import rrdb
  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=2,
  ...               num_grow_ch=2, scale=4, unshuffle=1)
  >>> state = {k: np.ones(s) for k, s in rrdb.shapes(config).items()}
  >>> found = find_network({"params_ema": state})
  >>> found.config == {"architecture": "RRDBNet", **config}
  True
  """
  wanted = [architecture] if architecture else list(DIALECTS)
  dialects = {name: DIALECTS[name] for name in wanted}
  name, flat, notes = pick(state, dialects, supported(), variants=_VARIANT)
  dialect = DIALECTS[name]
  known = {key: untold[key] for key in dialect.UNTOLD if key in untold}
  for key, value in known.items():
    default = registry.find_generator(name).fields[key]
    if not fields.fits(value, 0 if default is None else default):
      raise ValueError(
        f"{name} cannot have {key}={printable(repr(value), limit=60)}"
      )
  found = dialect.from_state_dict(flat, scale=scale, **known)
  return dataclasses.replace(
    found,
    config={"architecture": name, **found.config},
    notes=(*notes, *found.notes),
  )


def name_layers(
  layers: Sequence[NcnnLayer],
) -> tuple[StateDict, dict[str, str]]:
  """Names the arrays of an ncnn network's layers.

  Args:
    layers: Its convolutions and activations, and what enlarges.

  Returns:
    A state dict, and metadata for `find_network`: the architecture and what its
    arrays do not tell, as text.

  Raises:
    UnsupportedWeightsError: If no dialect knows such layers; says why.

  >>> name_layers([])
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.dialects.protocol.UnsupportedWeightsError: there are 0...
  """
  problems = []
  for architecture, dialect in DIALECTS.items():
    try:
      state, known = dialect.from_ncnn(layers)
    except UnsupportedWeightsError as error:
      problems.append(str(error))
      continue
    found = {key: str(value) for key, value in known.items()}
    return state, {"architecture": architecture, **found}
  raise UnsupportedWeightsError(
    f"{'; '.join(problems)}; supported is {supported()}"
  )


def describe(names: list[str]) -> str:
  """Returns what kind of network has these array names, in words.

  Args:
    names: Names of arrays, as they stand in a file.

  Returns:
    A network's or a file's kind, or "an unknown network".

  >>> describe(["layers.0.residual_group.blocks.0.norm1.weight"])
  'SwinIR'
  """
  stripped = [
    re.sub(r"^(?:module|generator|netG)\.", "", n) for n in names[:_MAX_SAMPLE]
  ]
  for pattern, kind in _OTHERS:
    if any(re.search(pattern, n) for n in stripped):
      return kind
  return "an unknown network"


def choose(labels: Sequence[str]) -> int:
  """Returns which network is the only one, or the only moving average.

  Args:
    labels: Where each stands in a file.

  Raises:
    UnsupportedWeightsError: If nothing says which one is meant.

  >>> choose(["params", "params_ema"])
  1
  """
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


def taken(label: str, others: Sequence[str]) -> str:
  """Returns a sentence on which of several networks was taken.

  >>> taken("params_ema", ["params"]).partition(": ")[2]
  'took params_ema (the moving average), left params'
  """
  return (
    f"the file holds several networks: took {_shown(label)} (the moving"
    f" average), left {', '.join(map(_shown, others))}"
  )


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


def pick(
  state: Mapping[str, Any],
  dialects: Mapping[str, Any],
  wanted: str,
  *,
  variants: re.Pattern[str] | None = None,
) -> tuple[str, StateDict, list[str]]:
  """Returns the architecture of the network that is meant, and its arrays.

  Args:
    state: As of `find_network`.
    dialects: By architecture: each has `TELLTALE` and `NAMES`, as of
      `protocol.Dialect`.
    wanted: Which networks these are, in words.
    variants: Matches a name of networks that have all of a wanted one's.

  Returns:
    The architecture; its arrays without a prefix; and notes.

  Raises:
    UnsupportedWeightsError: If there is none, naming what it looks like, or
      several, naming them.

  >>> from esrgan_jax.weights.dialects import DISCRIMINATORS
  >>> state = {"params": {"d.conv1.weight_orig": np.ones(1)}}
  >>> pick(state, DISCRIMINATORS, "")[:2]
  ('UNetDiscriminatorSN', {'conv1.weight_orig': array([1.])})
  """
  networks: dict[tuple[tuple[str, ...], str, str], StateDict] = {}
  names: list[str] = []
  for path, arrays in _mappings(state):
    names += arrays
    for each, dialect in dialects.items():
      matches = map(dialect.TELLTALE.fullmatch, arrays)
      prefixes = {match["prefix"]: None for match in matches if match}
      if len(dialects) > 1 and (known := dialect.NAMES):
        prefixes = _all_known(prefixes, arrays, known)
      for prefix in prefixes:
        # One network under two sets of names fails further on.
        networks[path, prefix, each] = arrays
  if not networks or (variants and any(map(variants.search, names))):
    names = names or [key for key in state if isinstance(key, str)]
    few = ", ".join(printable(n, limit=60) for n in names[:4]) or "none"
    raise UnsupportedWeightsError(
      f"this is {describe(names)}, which is not supported (its first names:"
      f" {few}); supported is {wanted}"
    )
  labels = [
    "/".join((*path, prefix)).rstrip("/.") for path, prefix, _ in networks
  ]
  chosen = choose(labels)
  notes = []
  if others := labels[:chosen] + labels[chosen + 1 :]:
    notes.append(taken(labels[chosen], others))
  (_, prefix, architecture), arrays = list(networks.items())[chosen]
  flat = {
    k[len(prefix) :]: np.asarray(v)
    for k, v in arrays.items()
    if k.startswith(prefix)
  }
  return architecture, flat, notes


def _all_known(
  prefixes: Iterable[str], names: Iterable[str], known: re.Pattern[str]
) -> list[str]:
  """Returns the prefixes of which nothing is called by other names."""
  prefixes = list(prefixes)
  # A list in a list, as of a network's blocks: it is none of these.
  if len(prefixes) > _MAX_NETWORKS:
    return []
  return [
    prefix
    for prefix in prefixes
    if all(
      known.fullmatch(name, len(prefix))
      for name in names
      if name.startswith(prefix)
    )
  ]


def _shown(label: str) -> str:
  return printable(label, limit=60) or "the unwrapped one"
