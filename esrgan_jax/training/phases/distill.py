"""A small generator, by its distance to what a large one makes of LR.

A run with such a phase has the teacher's results in the place of HR, in all of
its phases: a GAN phase that follows has the discriminator tell the student's
from the teacher's. And it measures by them.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from esrgan_jax.steps import distill, shared
from esrgan_jax.training.phases import kinds

_TARGETS = ("ahead", "step")


def _make(run: Any, name: str, generator: nn.Module) -> kinds.Phase:
  step, options = distill.distill_step, ("pixel_loss", "truth_weight")
  return kinds.make_regression(run, name, generator, step, options)


def _check(settings, config):
  """Why the section makes no phase, if so."""
  if not settings.teacher:
    return "teacher is empty: name a model, a file or a workdir"
  if not settings.truth_weight >= 0:
    return f"truth_weight is {settings.truth_weight!r}; it must be 0 or more"
  if settings.truth_weight and settings.targets == "ahead":
    return (
      f"truth_weight is {settings.truth_weight:g}, but results that are"
      " computed ahead take the truth's place: add targets=step, or set it to 0"
    )
  if settings.margin < 0:
    return f"margin is {settings.margin}; it must be 0 or more"
  first = kinds.taught_by(config)
  for key in ("teacher", "targets", "margin"):
    if settings[key] != first[key]:
      return (
        f"{key} is {settings[key]!r}, and {first[key]!r} of a phase before: a"
        " run has one teacher; another training can go on with another"
      )
  return ""


kinds.register_kind(
  kinds.Kind(
    "distill",
    "Distilled",
    defaults={
      # A model's name, a file or a workdir, of config.scale.
      "teacher": "realesrgan-x4plus",
      # Its results, of all training images: "ahead", once, kept on the disk;
      # or "step", in each step, of the patches alone, for fast accelerators.
      # Those of validation images are computed ahead.
      "targets": "ahead",
      # LR pixels at each edge of a training image that are not learned from:
      # the teacher sees less there. Of results that are computed ahead.
      "margin": 0,
      "num_train_steps": 200_000,
      "learning_rate": 1e-3,
      "schedule": {"name": "cosine_restart", "periods": (200_000,)},
      "b1": 0.9,
      "b2": 0.999,
      "pixel_loss": "l1",
      # Of the distance to HR itself; needs "step", and HR.
      "truth_weight": 0.0,
    },
    make=_make,
    choices={"pixel_loss": shared.PIXEL_LOSSES, "targets": _TARGETS},
    positive=("learning_rate",),
    check=_check,
  )
)
