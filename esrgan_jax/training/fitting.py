"""What of a checkpoint a training state can take over.

A generator of another shape cannot go on. Another discriminator can begin anew
beside the same generator, and another optimizer without its moments: if that is
asked for. Where moments have merely moved, as they do when clipping is switched
on, nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from esrgan_jax.text import printable
from esrgan_jax.weights.formats import stored_arrays as stored

__all__ = ["Difference", "Fit", "begun_anew", "fit", "refusal"]


class _Part(NamedTuple):
  """Fields of a state that fit, or do not fit, together."""

  name: str
  fields: tuple[str, ...]
  followers: tuple[str, ...]  # Fields that go with them.
  required: bool  # Whether all is in vain without it.
  keys: tuple[str, ...]  # Of the config, that they depend on.


_PARTS = (
  _Part(
    "generator",
    ("params", "ema_params", "collections"),
    ("opt_state",),
    required=True,
    keys=("generator", "scale"),
  ),
  _Part(
    "discriminator",
    ("d_params", "d_batch_stats"),
    ("d_opt_state",),
    required=False,
    keys=("discriminator", "patch_size"),
  ),
  _Part("generator's optimizer", ("opt_state",), (), False, ("clip_norm",)),
  _Part(
    "discriminator's optimizer", ("d_opt_state",), (), False, ("clip_norm",)
  ),
)
# Of these, places in tuples say nothing: `optax.chain` adds one.
_CHAINED = ("opt_state", "d_opt_state")


class Difference(NamedTuple):
  """A part that does not fit.

  Attributes:
    part: Its name.
    text: How it differs, for a message.
    anew: Fields that could begin anew; none if nothing can go on without it.
  """

  part: str
  text: str
  anew: tuple[str, ...]


class Fit(NamedTuple):
  """What `fit` returns.

  Attributes:
    sources: Item and path in the checkpoint, by path in the state; lacks what
      does not fit.
    differences: The parts that do not fit; none if all does.
  """

  sources: dict[stored.Path, tuple[str, stored.Path]]
  differences: tuple[Difference, ...]


def fit(
  found: Mapping[str, Mapping[stored.Path, Any]],
  like: Any,
  *,
  changes: Sequence[str] = (),
) -> Fit:
  """Compares what a checkpoint holds with a state.

  Args:
    found: Arrays, or what has their shape and dtype, by item and path.
    like: A state, or abstract one, such as `PsnrState`.
    changes: How the config has changed, as of `config.difference`.

  Returns:
    Where to find what, and what there is not.

  >>> import numpy as np
  >>> from esrgan_jax.steps.state import PsnrState
  >>> zero, four, eight = (np.zeros(n, np.float32) for n in ((), 4, 8))
  >>> like = PsnrState(zero, {"a": four}, {"m": four}, {"a": four}, zero, zero)
  >>> state = {("params", "a"): four, ("opt_state", "m"): eight}
  >>> counts = {(n,): zero for n in ("step", "skipped", "skipped_in_a_row")}
  >>> found = {"ema": {("a",): four}, "state": state | counts}
  >>> [(each.part, each.text) for each in fit(found, like).differences]
  [("generator's optimizer", 'opt_state/m is 8 there, 4 here')]
  """
  have = {path: ("state", path) for path in found["state"]}
  for item, field in (("ema", "ema_params"), ("collections", "collections")):
    own = found.get(item, {})
    have |= {(field, *path): (item, path) for path in own}
  want = stored.flatten(
    {name: getattr(like, name) for name in like.__dataclass_fields__}
  )
  sources, texts = {}, {}
  for field in dict.fromkeys(path[0] for path in (*want, *have)):
    ours = {path: leaf for path, leaf in want.items() if path[0] == field}
    theirs = {path: at for path, at in have.items() if path[0] == field}
    if field in _CHAINED:
      theirs = _align(ours, theirs)
    shapes = {path: found[item][at] for path, (item, at) in theirs.items()}
    if text := _compare(ours, shapes):
      texts[field] = text
    else:
      sources |= theirs

  differences = []
  for part in _PARTS:
    own = [texts.pop(name) for name in part.fields if name in texts]
    if not own:
      continue
    for name in part.followers:
      texts.pop(name, None)
    anew = () if part.required else (*part.fields, *part.followers)
    text = own[0] + _changed(changes, part.keys)
    differences.append(Difference(part.name, text, anew))
  differences += [Difference("state", text, ()) for text in texts.values()]
  return Fit(sources, tuple(differences))


def refusal(fit: Fit, name: str, *, may_begin_anew: bool) -> str:
  """Returns why a state cannot take over a checkpoint, and what to do.

  Args:
    fit: How they compare.
    name: The checkpoint's.
    may_begin_anew: Whether the user allows what can to begin anew.

  Returns:
    A message; empty if nothing speaks against it.

  >>> found = Fit({}, (Difference("generator", "a is 4 there", ()),))
  >>> refusal(found, "W", may_begin_anew=True)
  'W holds another generator: a is 4 there. Training cannot go on from...
  """
  required = [each for each in fit.differences if not each.anew]
  if required:
    part, text, _ = required[0]
    return (
      f"{name} holds another {part}: {text}. Training cannot go on from another"
      f" {part}: set that back, or choose another workdir"
    )
  if fit.differences and not may_begin_anew:
    texts = "; another ".join(f"{part}: {text}" for part, text, _ in fit[1])
    return (
      f"{name} holds another {texts}. Set that back; or add"
      f" --config.allow_changes=true to begin the {_parts(fit)} anew, beside"
      " the same generator and in a new folder"
    )
  return ""


def begun_anew(fit: Fit) -> str:
  """Returns what begins anew, and why.

  >>> difference = Difference("discriminator", "a is 4 there", ("d_params",))
  >>> begun_anew(Fit({}, (difference,)))
  'the discriminator begins anew: a is 4 there'
  """
  texts = "; ".join(each.text for each in fit.differences)
  begins = "begins" if len(fit.differences) == 1 else "begin"
  return f"the {_parts(fit)} {begins} anew: {texts}"


def _parts(fit):
  return " and the ".join(each.part for each in fit.differences)


def _align(ours, theirs):
  """Their leaves under our paths, if only places in tuples differ."""

  def bare(path):
    return tuple(key for key in path if not isinstance(key, int))

  there = {bare(path): at for path, at in theirs.items()}
  here = {bare(path): path for path in ours}
  distinct = len(there) == len(theirs) and len(here) == len(ours)
  if not distinct or there.keys() != here.keys():
    return theirs
  return {here[key]: there[key] for key in there}


def _compare(ours, theirs):
  """How two parts differ in paths, shapes and types; nothing if they do not."""
  lines = []
  for path in sorted(ours.keys() | theirs.keys(), key=str):
    name = "/".join(map(str, path))
    there, here = (
      f"{_shape(leaves[path])}" if path in leaves else "absent"
      for leaves in (theirs, ours)
    )
    if there != here:
      lines.append(f"{printable(name)} is {there} there, {here} here")
  more = f", and {len(lines) - 1} more differ" if len(lines) > 1 else ""
  return lines[0] + more if lines else ""


def _shape(leaf):
  dtype = getattr(leaf.dtype, "name", leaf.dtype)
  text = "x".join(map(str, leaf.shape)) or "a scalar"
  return text if str(dtype) == "float32" else f"{text} of {dtype}"


def _changed(changes, keys):
  """The changes of a config that a part depends on."""
  own = [
    line for line in changes if line.partition(":")[0].split(".")[0] in keys
  ]
  return f" ({', '.join(own)})" if own else ""
