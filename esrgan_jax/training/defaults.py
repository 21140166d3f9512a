"""What keys a training config has, and what they are by default.

Networks, kinds of phases and adversarial losses bring their own keys.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from esrgan_jax import augment
from esrgan_jax.data import pipeline
from esrgan_jax.evaluation import measures
from esrgan_jax.models import registry
from esrgan_jax.training import degrading
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training.errors import ConfigError
from esrgan_jax.weights import workdir

__all__ = ["ANY_TYPE", "FREE_FORM", "NETWORKS", "defaults", "is_section"]

# All that does not depend on which networks and phases there are. Where no
# source is named: the authors' training files and BasicSR's,
# `options/train/ESRGAN/*.yml`.
_COMMON: dict[str, Any] = {
  "seed": 0,
  "scale": 4,  # HR pixels per LR pixel.
  # Files beside the config, or modules, that register networks, phases, losses
  # and measures of your own.
  "plugins": (),
  # The network's name, and its fields; those of the architecture that is named
  # are filled in. Of RRDBNet: num_feat 64, num_block 23, num_grow_ch 32, ...
  "generator": {"architecture": registry.DEFAULT_GENERATOR},
  # "published": as the network has it, small random numbers. "bilinear": these
  # too, and a path that makes RRDBNet begin as bilinear upscaling; for short
  # trainings.
  "initialization": "published",
  # Of VGGStyleDiscriminator: num_feat 64, norm "batch", or for "wgan-gp"
  # "layer", "instance" or "none". UNetDiscriminatorSN is Real-ESRGAN's.
  "discriminator": {"architecture": registry.DEFAULT_DISCRIMINATOR},
  "batch_size": 16,  # Of all devices together.
  "patch_size": 128,  # HR pixels.
  "dtype": "auto",  # Compute: bfloat16 on GPU and TPU, float32 on CPU.
  "remat": False,  # Recompute activations: less memory, more time.
  "accumulate": 1,  # Microbatches a step.
  "clip_norm": 0.0,  # Of all gradients together; 0 does not clip.
  "ema_decay": 0.999,  # BasicSR; the paper has none.
  "mesh": {"num_devices": 0},  # 0 for all.
  # Weights to start from, instead of phase one: a file, a name from `python -m
  # esrgan_jax models`, another training's workdir (its last phase's model, as
  # for every command) or one phase of it (WORKDIR/psnr). To go on with phase
  # one from them, name it: phase_order ("psnr",).
  "init_from": "",
  # Take what fits of another network's weights, as of x2 for x4; the rest
  # begins anew, and is named.
  "init_partial": False,
  # Weights for the discriminator to start from: a workdir, or its GAN phase; or
  # a file, such as Real-ESRGAN's RealESRGAN_x4plus_netD.pth.
  "init_discriminator": "",
  # Names of phases, one after another; () is phase one, "psnr", unless
  # init_from takes its place, and phase two, "gan".
  "phase_order": (),
  # A section a phase, filled in from what its kind has by default: see
  # training/phases/. The kind is the name, or the key `kind`; a second phase
  # of a kind has another name.
  "phases": {},
  "perceptual": {
    # "vgg19"; "vgg16", of the extra `perceptual`, whose last layer is conv5_3;
    # or a trained distance as the loss: "lpips_vgg", "lpips" or "dists".
    "network": "vgg19",
    # Of a VGG: a file (torchvision's .pth, Keras's .h5), "auto" (this machine's
    # packages and caches; VGG19 is fetched else), "random", or "installed":
    # "auto" where they are here, else "random". Of a distance: "auto".
    "weights": "auto",
    "layers": {"conv5_4": 1.0},  # Of a VGG; before the activation.
    "criterion": "l1",
  },
  "data": {
    **pipeline.DEFAULTS,
    "sources": ("div2k/bicubic_x4",),
    "eval": "div2k/bicubic_x4:validation",
  },
  # What is done to some pairs inside the step, besides data.augment's flips and
  # turns: mixup, cutblur and so on, each with a probability, 0 by default, and
  # strengths: see augment/operations.py, and docs/augmentation.md. A phase has
  # the same section; what is None there is as here.
  phases_lib.AUGMENTATION: {
    # At most one of them a pair: probabilities are shares, 1 together at most.
    "one_of": False,
  },
  # LR made of HR inside the step, as Real-ESRGAN's training has it: blur, size,
  # noise and JPEG, twice. Off unless `enabled`: see training/degrading.py, and
  # docs/realesrgan.md. Validation images are degraded as well, once and for
  # all, but for pairs (HR::LR).
  degrading.SECTION: degrading.DEFAULTS,
  # A trace of some steps of each phase, in WORKDIR/profile, for TensorBoard or
  # Perfetto; 0 for none.
  "profile": {"num_steps": 0, "after_steps": 10},
  "log_every_steps": 100,
  "eval_every_steps": 5000,
  "checkpoint_every_steps": 5000,
  "keep": 3,  # Newest checkpoints; the one that is best stays besides.
  "max_skipped_in_a_row": 20,  # Updates that were not finite.
  "eval": {
    "crop_border": 4,  # HR pixels, as published.
    "max_images": 0,  # While training; 0 for all.
    # And PSNR on Y, by which is told whether training diverges. `lpips`,
    # `lpips_vgg`, `dists` and `niqe` need the extra `perceptual`.
    "measures": measures.DEFAULT,
    "best": "psnr_y",  # By which measure a checkpoint is the best.
    "num_samples": 4,  # Crops in sample pictures; 0 for none.
    "sample_size": 128,  # HR pixels.
  },
  # The training film: one picture as the model of each step upscales it, in
  # film.webp and in the report. Without validation images, there is none unless
  # a picture is named.
  "film": {
    "enabled": True,
    # A file of HR, or the name of a validation image; "" for the first of them.
    "picture": "",
    # Of the picture, HR pixels: left, top, width, height; () for the square
    # with the most in it.
    "crop": (),
    "size": 256,  # HR pixels a side of that square, at most.
    "first_step": 10,  # Of each phase; step 0 of the first has a frame, too.
    "growth": 1.25,  # Each frame is so many times as far on as the one before.
    "seconds": 0.25,  # A frame is seen; the last one eight times as long.
    "quality": 80,  # WebP's, 1 to 100.
  },
  "interpolation_alphas": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
  "export_alpha": 0.8,  # Of the model in between: xinntao/ESRGAN's example.
  # Go on although the workdir has another config: what does not fit begins
  # anew, phase two is trained again after more of phase one. All is kept.
  "allow_changes": False,
}

# Sections whose keys are the user's, and keys that hold more than one type.
FREE_FORM = ("schedule", "layers")
ANY_TYPE = ("data.sources", "data.eval")
# Fields of a network that are not of its section: other keys say them.
_ELSEWHERE = {"generator": "scale", "discriminator": "input_size"}
# What a workdir, or a report, has besides phases.
_FOLDERS = (
  "bicubic",
  "checkpoints",
  "curves",
  "earlier",
  "film",
  "metrics",
  "models",
  "samples",
  "start",
)


def defaults(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Returns all keys, and what they are unless a config says otherwise.

  Args:
    config: Names networks and phases, if others than ESRGAN's; a dict.

  Raises:
    ConfigError: If one of them is unknown.

  >>> defaults()["generator"]["num_block"]
  23
  >>> again = {"phases": {"again": {"kind": "gan"}}}
  >>> defaults(again)["phases"]["again"]["adversarial_weight"]
  0.005
  """
  config = config or {}
  found = copy.deepcopy(_COMMON)
  found[phases_lib.AUGMENTATION] |= augment.defaults()  # Plugins' as well.
  for key, find in NETWORKS.items():
    given = _section(config, key)
    name = given.get("architecture", found[key]["architecture"])
    try:
      fields = find(str(name)).fields
    except ValueError as error:
      raise ConfigError(f"config.{key}.architecture: {error}") from error
    found[key] = {"architecture": name, **fields}
    found[key].pop(_ELSEWHERE[key], None)
  sections = _section(config, "phases")
  ordered = config.get("phase_order", ())
  named = ordered if isinstance(ordered, tuple | list) else ()
  for name in dict.fromkeys((*phases_lib.PUBLISHED, *sections, *named)):
    _check_name(name)
    kind = _section(sections, name, "phases.").get("kind", name)
    if kind == name and name not in phases_lib.kinds():
      _raise_no_kind(name, found)
    settings = copy.deepcopy(dict(phases_lib.find_kind(str(kind)).defaults))
    own = {phases_lib.AUGMENTATION: _unset(found[phases_lib.AUGMENTATION])}
    found["phases"][name] = {"kind": kind, **settings, **own}
  return found


def _unset(section):
  """The keys of a section, and no values."""
  return {
    key: _unset(value) if is_section(value) else None
    for key, value in section.items()
  }


NETWORKS = {
  "generator": registry.find_generator,
  "discriminator": registry.find_discriminator,
}


def _section(config, key, prefix=""):
  value = config.get(key, {})
  if not is_section(value):
    raise ConfigError(f"config.{prefix}{key} is {value!r}; it is a section")
  return value


def _check_name(name):
  # A number is a checkpoint's.
  if not re.fullmatch(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9_-]{0,63}", str(name)):
    raise ConfigError(
      f"config.phases has {name!r}: a phase's name is a folder's, of letters,"
      " digits, _ and -, and no number"
    )
  if name in _FOLDERS or name.startswith(workdir.MIXED):
    raise ConfigError(
      f"config.phases has {name!r}, which is another folder of a workdir, or"
      " another model's name: choose another name"
    )


def _raise_no_kind(name, found):
  near = difflib.get_close_matches(str(name), found["phases"], n=1, cutoff=0.5)
  hint = f"; did you mean config.phases.{near[0]}?" if near else "."
  raise ConfigError(
    f"no key config.phases.{name}{hint} A phase of a name of your own has a"
    f" kind: config.phases.{name}.kind is one of"
    f" {', '.join(phases_lib.kinds())}"
  )


def is_section(value: Any) -> bool:
  """Returns whether a value has keys."""
  return isinstance(value, Mapping | ml_collections.ConfigDict)
