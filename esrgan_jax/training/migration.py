"""Optimizer states as earlier versions left them, turned into today's.

Until November 2026 the learning rate stood beside the optimizer, as a function
of the step, and the state was Adam's alone: `count`, `mu` and `nu`, in a tuple
if gradients were clipped. Today it is that of `make_optimizer`, Adam's inside
what `optax.inject_hyperparams` keeps. Which one a checkpoint has, its paths
say; of files that are written today, nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from esrgan_jax.weights.formats import stored_arrays as stored

__all__ = ["optimizer_states"]

_FIELDS = ("opt_state", "d_opt_state")
_ADAM = {"count", "mu", "nu"}
_INJECTED = ("count", "hyperparams", "hyperparams_states", "inner_state")


def optimizer_states(
  found: Mapping[str, Mapping[stored.Path, Any]], like: Any
) -> dict[str, Mapping[stored.Path, Any]]:
  """Returns what a checkpoint holds, with its optimizers' states as today's.

  Args:
    found: Arrays, or what has their shape and dtype, by item and path.
    like: A state, or abstract one: a field is changed only where its own would
      be wanted.

  Returns:
    The same; changed where an earlier version wrote it. The learning rate is 0:
    an update computes it and looks at none before.

  >>> from esrgan_jax.steps import optimizer, state
  >>> zero, four = np.zeros((), np.int32), np.zeros(4, np.float32)
  >>> adam = optimizer.make_optimizer(1e-4).init(four)
  >>> like = state.PsnrState(zero, four, adam, four, zero, zero)
  >>> written = {("step",): zero, ("opt_state", "count"): zero,
  ...            ("opt_state", "mu"): four, ("opt_state", "nu"): four}
  >>> paths = optimizer_states({"state": written}, like)["state"]
  >>> ("opt_state", "inner_state", "mu") in paths, len(paths)
  (True, 7)
  """
  fields = dict(found["state"])
  for field in _FIELDS:
    ours = getattr(like, field, None)
    theirs = {path[1:]: x for path, x in fields.items() if path[0] == field}
    adam = {_bare(path): x for path, x in theirs.items()}
    if getattr(ours, "_fields", None) != _INJECTED:
      continue
    if {path[0] for path in adam if path} != _ADAM:
      continue
    # In the order of the paths, as all that is flattened.
    moved = {
      ("count",): adam["count",],
      ("hyperparams", "learning_rate"): np.zeros((), np.float32),
      ("hyperparams_states", "learning_rate", "count"): fields["step",],
      **{("inner_state", *path): x for path, x in adam.items()},
    }
    fields = {path: x for path, x in fields.items() if path[0] != field}
    fields |= {(field, *path): x for path, x in moved.items()}
  return {**found, "state": fields}


def _bare(path):
  """Without its place in a tuple: `fitting` finds that."""
  while path and isinstance(path[0], int):
    path = path[1:]
  return path
