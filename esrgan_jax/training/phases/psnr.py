"""The generator alone, by its distance to the pixels of HR: phase one."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from esrgan_jax.steps import psnr, shared
from esrgan_jax.training.phases import kinds


def _make(run: Any, name: str, generator: nn.Module) -> kinds.Phase:
  options = ("pixel_loss", "gt_usm")
  return kinds.make_regression(run, name, generator, psnr.psnr_step, options)


kinds.register_kind(
  kinds.Kind(
    "psnr",
    "PSNR",
    # The authors' training files and BasicSR's, `options/train/ESRGAN/*.yml`.
    defaults={
      "num_train_steps": 1_000_000,
      "learning_rate": 2e-4,
      "schedule": {
        "name": "milestones",
        "milestones": (200_000, 400_000, 600_000, 800_000),
      },
      "b1": 0.9,
      "b2": 0.999,
      "pixel_loss": "l1",
      "gt_usm": False,  # Whether HR is sharpened (USM): Real-ESRNet's True.
    },
    make=_make,
    choices={"pixel_loss": shared.PIXEL_LOSSES},
    positive=("learning_rate",),
    offset=0,
  )
)
