"""The training program: config, phases, loop, checkpoints, and its end."""

from __future__ import annotations

import importlib
import types
import warnings

# Where modules of 0.1 are now; gone in 0.3.
_MOVED = {
  "evaluator": "esrgan_jax.evaluation.evaluator",
  "optimizer": "esrgan_jax.steps.optimizer",
  "report": "esrgan_jax.report.page",
  "state": "esrgan_jax.steps.state",
}


def __getattr__(name: str) -> types.ModuleType:
  if name in _MOVED:
    warnings.warn(
      f"esrgan_jax.training.{name} is {_MOVED[name]} now; the old name goes in"
      " version 0.3",
      DeprecationWarning,
      stacklevel=2,
    )
    return importlib.import_module(_MOVED[name])
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
