"""Picks a network out of a tree of arrays that another program had saved.

As of weight files: a tree holds a network bare or wrapped (`params`), beside
its moving average, an optimizer, a discriminator. What it is, a config says,
or the shapes of its arrays if they are those of a network that has a dialect.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.weights import fields, files, selection
from esrgan_jax.weights.dialects import DIALECTS
from esrgan_jax.weights.dialects.protocol import (
  UnsupportedWeightsError,
  UntoldScaleError,
  as_float32,
)
from esrgan_jax.weights.formats import plain_checkpoints as plain
from esrgan_jax.weights.formats import stored_arrays as stored

__all__ = ["read"]

_NOTE = "it was saved without digests: damage to it may go unnoticed"
_MAX_AXIS = 2**16  # More layers, or channels, than any network has.
_PARAMS = "params"
_SHOWN = 3  # Arrays in a line of text.


def read(
  folder: Any,
  *,
  scale: int | None = None,
  config: Mapping[str, Any] | None = None,
) -> files.Weights:
  """Reads a network from a checkpoint that another program had Orbax save.

  Args:
    folder: As of `plain_checkpoints.is_saved`.
    scale: Upscaling factor, for a tree that does not tell (x3, plain x2).
    config: The network's architecture (absent: RRDBNet) and fields; None takes
      what lies beside the tree, else what its shapes tell.

  Returns:
    The network.

  Raises:
    UnknownArchitectureError: If the config names one that nobody registered.
    UnsupportedWeightsError: If there is no such network, or several.
    CheckpointError: If it is damaged, cannot be read, or claims too much.
    ValueError: If the config is none, or contradicts the arrays.
  """
  opened = plain.open_all(folder)
  beside, notes = (config, ()) if config else plain.config_beside(folder)
  found = dict(beside or {})
  try:
    if scale is not None and found.setdefault("scale", scale) != scale:
      raise ValueError(
        f"scale {scale} was asked for, but its config says {found['scale']};"
        " leave scale out"
      )
    if found:
      found.setdefault("architecture", registry.DEFAULT_GENERATOR)
      found = fields.checked(found)
    own = found.get("architecture", registry.DEFAULT_GENERATOR) not in DIALECTS
    read_as = _told_by_config if own else _told_by_shapes
    weights = read_as(folder, opened, found)
    return dataclasses.replace(weights, notes=(*notes, *weights.notes))
  except registry.UnknownArchitectureError as error:
    raise registry.UnknownArchitectureError(f"{folder} {error}") from error
  except stored.CheckpointError:
    raise
  except ValueError as error:
    kinds = (UnsupportedWeightsError, UntoldScaleError)
    kind = type(error) if isinstance(error, kinds) else ValueError
    raise kind(printable(f"{folder}: {error}", limit=1000)) from error


def _told_by_shapes(folder, opened, config):
  """A network that has a dialect."""
  wanted = [config["architecture"]] if config else list(DIALECTS)
  places = {
    prefix: name
    for name in reversed(wanted)  # The first has the last word.
    for prefix in _ending_with(opened, DIALECTS[name].LEAF)
  }
  if not places:
    raise UnsupportedWeightsError(
      f"this is no network that its shapes tell (its first arrays:"
      f" {_few(opened)}); supported is {selection.supported()}. To one of"
      f" another architecture belongs its config: a file {plain.CONFIG} in the"
      " folder, with architecture, scale and its other fields"
    )
  prefix, notes = _choose(places)
  name = places[prefix]
  params = stored.nest(_read(folder, _below(opened, prefix), only_floats=True))
  collections = {}
  for key in DIALECTS[name].COLLECTIONS:
    for place in _beside(prefix, key):
      if key not in collections and (there := _below(opened, place)):
        tree = _read(folder, there, only_floats=True)
        collections[key] = stored.nest(tree)
  state = DIALECTS[name].to_state_dict(params, collections, config)
  found = files.agreeing(DIALECTS[name], state, config)
  return files.Weights(
    {"architecture": name, **found.config},
    params,
    {},
    (*notes, _NOTE),
    collections,
  )


def _told_by_config(folder, opened, config):
  """A network of the user's own."""
  name = config["architecture"]
  wanted = {
    key: stored.flatten(tree) for key, tree in files.expected(config).items()
  }
  params = wanted.pop(_PARAMS)
  prefixes = _ending_with(opened, next(iter(params)))
  fitting = [
    prefix for prefix in prefixes if _fits(_below(opened, prefix), params)
  ]
  if not fitting:
    best = max(
      (_below(opened, prefix) for prefix in prefixes),
      key=lambda there: len(there.keys() & params.keys()),
      default=opened,
    )
    raise UnsupportedWeightsError(
      f"not the weights of {name} as its config has it: {len(params)} arrays,"
      f" such as {_few(_unlike(params, best) or params)}; in the tree"
      f" {_few(_unlike(best, params) or best)}"
    )
  prefix, notes = _choose(fitting)
  chosen = {_PARAMS: _below(opened, prefix)}
  for key, arrays in wanted.items():
    places = _beside(prefix, key)
    there = (_below(opened, place) for place in places)
    each = next((found for found in there if _fits(found, arrays)), None)
    if each is None:
      raise UnsupportedWeightsError(
        f"{name} has {printable(key)} besides its parameters, and the tree has"
        f" none that fits, at {' or '.join('/'.join(p) for p in places)}"
      )
    chosen[key] = each
  trees = {
    key: stored.nest(_read(folder, arrays)) for key, arrays in chosen.items()
  }
  params = trees.pop(_PARAMS)
  return files.Weights(config, params, {}, (*notes, _NOTE), trees)


def _beside(prefix, key):
  """Where a collection may be, of the parameters at some place."""
  around = prefix[:-1]
  return [(*around, key), (*around, "collections", key)]


def _ending_with(paths, end):
  """What stands before an end of a path, of all that have it."""
  size = len(end)
  return [path[:-size] for path in paths if path[-size:] == end]


def _below(opened, prefix):
  """The arrays below a node of the tree, by what follows of their path."""
  size = len(prefix)
  return {
    path[size:]: array
    for path, array in opened.items()
    if path[:size] == prefix
  }


def _choose(prefixes: Iterable[stored.Path]) -> tuple[stored.Path, list[str]]:
  """Which network is meant, and a note where there are several."""
  prefixes = list(prefixes)
  # An optimizer's moments are of the parameters' shapes.
  prefixes = [p for p in prefixes if not any(map(_is_moment, p))] or prefixes
  labels = ["/".join(map(str, prefix)) for prefix in prefixes]
  chosen = selection.choose(labels)
  others = labels[:chosen] + labels[chosen + 1 :]
  notes = [selection.taken(labels[chosen], others)] if others else []
  return prefixes[chosen], notes


def _is_moment(key):
  return str(key) in ("mu", "nu", "trace") or str(key).startswith("opt")


def _fits(there, wanted):
  return {p: tuple(x.shape) for p, x in there.items()} == {
    p: tuple(x.shape) for p, x in wanted.items()
  }


def _unlike(arrays, others):
  """Those that the others have not, or of another shape."""
  return {
    path: array
    for path, array in arrays.items()
    if path not in others or tuple(others[path].shape) != tuple(array.shape)
  }


def _few(arrays):
  """The first of some arrays, in words."""
  shown = [
    printable(
      f"{'/'.join(map(str, path))} ({'x'.join(map(str, array.shape))})",
      limit=120,
    )
    for path, array in itertools.islice(arrays.items(), _SHOWN)
  ]
  more = ", ..." * (len(arrays) > _SHOWN)
  return ", ".join(shown) + more if shown else "none"


def _read(folder, opened, *, only_floats=False):
  """Reads arrays: floats as float32, counts and flags as they are."""
  for path, array in opened.items():
    if only_floats and max(array.shape, default=0) > _MAX_AXIS:
      raise UnsupportedWeightsError(
        f"{_few({path: array})} is longer than any network's: the limit is"
        f" {_MAX_AXIS}"
      )
    kind = array.dtype.name
    if only_floats or not kind.startswith(("int", "uint", "bool")):
      name = "/".join(map(str, path))
      # Raises before anything is read.
      as_float32(name, np.empty(0, array.dtype.numpy_dtype), np.empty(0))
  result = plain.read_some(folder, opened)
  for path, array in result.items():
    if array.dtype.kind not in "biu":
      result[path] = np.empty(array.shape, np.float32)
      as_float32("/".join(map(str, path)), array, result[path])
  return result
