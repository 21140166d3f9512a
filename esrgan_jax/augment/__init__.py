"""Crops and augmentation of (LR, HR) pairs, pure and on device.

A batch is a dict of `"lr"`, `[B, h, w, 3]`, and `"hr"`,
`[B, scale * h, scale * w, 3]`: uint8 in `pairs`, which cuts, flips and turns,
and float in [0, 1] in `transform`, which mixes, recolors and degrades, and in
`degraded_pairs`, which makes LR of HR.
"""

from esrgan_jax.augment.degraded import degraded_pairs
from esrgan_jax.augment.operations import (
  OPERATIONS,
  Operation,
  defaults,
  problem_of,
  register_operation,
  together,
  transform,
)
from esrgan_jax.augment.pairs import (
  NUM_SYMMETRIES,
  Resident,
  augment,
  cut,
  pack,
  symmetry,
  to_float,
)

__all__ = [
  "NUM_SYMMETRIES",
  "OPERATIONS",
  "Operation",
  "Resident",
  "augment",
  "cut",
  "defaults",
  "degraded_pairs",
  "pack",
  "problem_of",
  "register_operation",
  "symmetry",
  "to_float",
  "together",
  "transform",
]
