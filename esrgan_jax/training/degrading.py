"""What `config.degradation` says, its limits, and what is made of it.

That is `augment.degraded_pairs` inside the step, and `data.degraded_source` of
validation images.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from esrgan_jax import augment
from esrgan_jax.data import sources
from esrgan_jax.data.degraded_source import Degraded
from esrgan_jax.degradation import Degradation
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training.errors import ConfigError

__all__ = ["DEFAULTS", "SECTION", "Degrading", "check", "of"]

SECTION = "degradation"

# The keys of the section: these, and all fields of `Degradation`, by their
# names in BasicSR.
_OWN: dict[str, Any] = {
  # Off: LR is as the data have it, or made of HR by bicubic.
  "enabled": False,
  # HR pixels a side of what is degraded, of which a patch is cut; 0 is 25/16 of
  # patch_size, which is Real-ESRGAN's 400 of 256.
  "crop_size": 0,
  # Whether LR is made of sharpened HR (USM).
  "gt_usm": True,
  # Of the validation images, which are degraded once, the same in every run.
  "eval_seed": 0,
}
DEFAULTS = _OWN | {
  field.name: field.default for field in dataclasses.fields(Degradation)
}


@dataclasses.dataclass(frozen=True)
class Degrading:
  """How a run degrades.

  Attributes:
    settings: What is drawn from.
    scale: HR pixels per LR pixel.
    patch_size: HR pixels a side of a patch.
    crop_size: HR pixels a side of what it is cut of.
    gt_usm: Whether LR is made of sharpened HR.
    eval_seed: Of validation images.
  """

  settings: Degradation
  scale: int
  patch_size: int
  crop_size: int
  gt_usm: bool
  eval_seed: int

  def pairs(
    self, key: jax.Array, hr: jax.Array, mesh: Mesh
  ) -> dict[str, jax.Array]:
    """Returns a step's pairs, of crops; see `augment.degraded_pairs`."""
    return augment.degraded_pairs(
      key,
      hr,
      self.settings,
      scale=self.scale,
      patch_size=self.patch_size,
      gt_usm=self.gt_usm,
      mesh=mesh,
    )

  def source(self, source: sources.Source) -> sources.Source:
    """Returns validation images with LR degraded."""
    return Degraded(
      source, self.settings, seed=self.eval_seed, gt_usm=self.gt_usm
    )


def of(config: Any) -> Degrading | None:
  """Returns how a config has HR degraded; None where it doesn't.

  Args:
    config: A complete config.

  Raises:
    ConfigError: If the section has a value that cannot be.
  """
  section = config[SECTION].to_dict()
  own = {key: section.pop(key) for key in _OWN}
  try:
    settings = Degradation(**section)
  except ValueError as error:
    raise ConfigError(f"config.{SECTION}.{error}") from error
  crop = own["crop_size"] or config.patch_size * 25 // 16
  crop -= 0 if own["crop_size"] else crop % config.scale
  if crop % config.scale or crop < config.patch_size:
    raise ConfigError(
      f"config.{SECTION}.crop_size is {crop}; it must be a multiple of"
      f" config.scale, {config.scale}, and config.patch_size"
      f" ({config.patch_size}) at least; or 0"
    )
  if not own["enabled"]:
    return None
  return Degrading(
    settings,
    config.scale,
    config.patch_size,
    crop,
    own["gt_usm"],
    own["eval_seed"],
  )


def check(config: Any) -> None:
  """Raises if a config's degradation cannot be, or not of its data.

  Args:
    config: A complete config.

  Raises:
    ConfigError: If it cannot.
  """
  degrading = of(config)
  if degrading is None:
    return
  if phases_lib.taught_by(config) is not None:
    raise ConfigError(
      f"config.{SECTION}.enabled is True, and a phase learns from a teacher,"
      " whose results are of LR as the data have it: add"
      f" --config.{SECTION}.enabled=false"
    )
  pairs, _ = has_pairs(config.data.sources)
  if pairs:
    raise ConfigError(
      f"config.data.sources is {config.data.sources!r}, with LR images, and"
      f" config.{SECTION}.enabled is True, which makes LR of HR: name HR alone,"
      f" or add --config.{SECTION}.enabled=false"
    )
  pairs, others = has_pairs(config.data.eval)
  if pairs and others:
    raise ConfigError(
      f"config.data.eval is {config.data.eval!r}, some with LR images and some"
      f" without, which config.{SECTION} would degrade: name one kind"
    )


def has_pairs(spec: Any) -> tuple[bool, bool]:
  """Returns whether a spec names pairs of HR and LR, and whether it has others.

  Data sets that bring their own LR, such as DIV2K, are others: where HR is
  degraded, it is not looked at.

  Args:
    spec: As of `data.sources.open_source`.

  >>> has_pairs("hr::lr"), has_pairs(["photos", {"hr": "a", "lr": "b"}])
  ((True, False), (True, True))
  """
  parts = sources.split_spec(spec) if spec else []
  found = [
    hasattr(part, "keys") or (isinstance(part, str) and "::" in part)
    for part in parts
  ]
  return any(found), not all(found)
