"""What a training config may hold: names, defaults, limits, overrides.

A config file has a function `get_config()` that returns a `ConfigDict`, or a
dict, of plain values. It sets what makes its experiment; the rest is filled in
from `DEFAULTS`, ESRGAN's published training.
"""

from __future__ import annotations

import ast
import copy
import difflib
import json
import math
import os
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from esrgan_jax.data import pipeline
from esrgan_jax.evaluation import measures
from esrgan_jax.models import discriminators, vgg
from esrgan_jax.steps import gan as gan_lib
from esrgan_jax.steps import shared

__all__ = [
  "DEFAULTS",
  "ConfigError",
  "complete",
  "difference",
  "override",
  "plain",
  "read_config",
]

# Where no source is named: the authors' training files and BasicSR's,
# `options/train/ESRGAN/*.yml`.
DEFAULTS: dict[str, Any] = {
  "seed": 0,
  "scale": 4,  # HR pixels per LR pixel.
  "generator": {"num_feat": 64, "num_block": 23, "num_grow_ch": 32},
  # "published": small random numbers. "bilinear": these too, and a path that
  # makes the net begin as bilinear upscaling; for short trainings.
  "initialization": "published",
  # norm: "batch", or for "wgan-gp" "layer" or "none".
  "discriminator": {"num_feat": 64, "norm": "batch"},
  "batch_size": 16,  # Of all devices together.
  "patch_size": 128,  # HR pixels.
  "dtype": "auto",  # Compute: bfloat16 on GPU and TPU, float32 on CPU.
  "remat": False,  # Recompute activations: less memory, more time.
  "accumulate": 1,  # Microbatches a step.
  "clip_norm": 0.0,  # Of all gradients together; 0 does not clip.
  "ema_decay": 0.999,  # BasicSR; the paper has none.
  "mesh": {"num_devices": 0},  # 0 for all.
  # Weights to start phase two from, instead of phase one: a file, a name from
  # `python -m esrgan_jax models`, another training's workdir (its last phase's
  # model, as for every command) or one phase of it (WORKDIR/psnr).
  "init_from": "",
  "phases": {
    "psnr": {
      "num_train_steps": 1_000_000,
      "learning_rate": 2e-4,
      "schedule": {
        "name": "milestones",
        "milestones": (200_000, 400_000, 600_000, 800_000),
      },
      "b1": 0.9,
      "b2": 0.999,
      "pixel_loss": "l1",
    },
    "gan": {
      "num_train_steps": 400_000,
      "learning_rate": 1e-4,
      "d_learning_rate": 1e-4,
      "schedule": {
        "name": "milestones",
        "milestones": (50_000, 100_000, 200_000, 300_000),
      },
      "b1": 0.9,
      "b2": 0.999,
      "pixel_loss": "l1",
      "pixel_weight": 1e-2,
      "perceptual_weight": 1.0,
      "adversarial": "relativistic",
      "adversarial_weight": 5e-3,
      "detach_means": False,  # BasicSR: True.
      "halve": True,  # The paper's equation: False.
      "penalty_weight": 10.0,  # Of "wgan-gp".
    },
  },
  "perceptual": {
    # VGG19: a file (torchvision's .pth, Keras's .h5), "auto" (this machine's
    # caches, or fetched), or "random".
    "weights": "auto",
    "layers": {"conv5_4": 1.0},
    "criterion": "l1",
  },
  "data": {
    **pipeline.DEFAULTS,
    "sources": ("div2k/bicubic_x4",),
    "eval": "div2k/bicubic_x4:validation",
  },
  "log_every_steps": 100,
  "eval_every_steps": 5000,
  "checkpoint_every_steps": 5000,
  "keep": 3,  # Newest checkpoints; that of the best PSNR stays besides.
  "max_skipped_in_a_row": 20,  # Updates that were not finite.
  "eval": {
    "crop_border": 4,  # HR pixels, as published.
    "max_images": 0,  # While training; 0 for all.
    "measures": measures.DEFAULT,  # And PSNR on Y, by which is chosen.
    "num_samples": 4,  # Crops in sample pictures; 0 for none.
    "sample_size": 128,  # HR pixels.
  },
  "interpolation_alphas": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
  "export_alpha": 0.8,  # Of the model in between: xinntao/ESRGAN's example.
  # Go on although the workdir has another config: what does not fit begins
  # anew, phase two is trained again after more of phase one. All is kept.
  "allow_changes": False,
}

# Sections whose keys are the user's, and keys that hold more than one type.
_FREE_FORM = ("schedule", "layers")
_ANY_TYPE = ("data.sources", "data.eval")

# What may change between runs of a workdir without being asked about: these
# change what is told and kept, not what is computed.
_HARMLESS = (
  "allow_changes",
  "checkpoint_every_steps",
  "data.cache_dir",
  "data.data_dir",
  "data.manual_dir",
  "data.num_threads",
  "data.prefetch",
  "data.prepare",
  "eval",
  "eval_every_steps",
  "export_alpha",
  "interpolation_alphas",
  "keep",
  "log_every_steps",
  "max_skipped_in_a_row",
  "mesh",
)


class ConfigError(ValueError):
  """A config that cannot be used; the message names the key and the remedy."""


def read_config(path: str | os.PathLike) -> ml_collections.ConfigDict:
  """Runs a config file and fills in defaults.

  Args:
    path: A Python file with `get_config()`.

  Returns:
    The whole config, its values not yet checked: see `complete`.

  Raises:
    ConfigError: If there is no such file, it fails, or a key is unknown.

  >>> read_config("nowhere.py")
  Traceback (most recent call last):
  ...
  esrgan_jax.training.config.ConfigError: no config file nowhere.py
  """
  if not os.path.isfile(path):
    raise ConfigError(f"no config file {os.fspath(path)}")
  try:
    found = runpy.run_path(os.fspath(path))["get_config"]()
  except KeyError as error:
    if error.args != ("get_config",):
      raise ConfigError(
        f"{os.fspath(path)} fails: KeyError: {error}"
      ) from error
    raise ConfigError(f"{os.fspath(path)} has no get_config()") from error
  except Exception as error:
    raise ConfigError(
      f"{os.fspath(path)} fails: {type(error).__name__}: {error}"
    ) from error
  return _fill(found)


def complete(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Returns a config with all keys, and values that make sense.

  Args:
    config: A dict or ConfigDict; what it lacks is as in `DEFAULTS`.

  Returns:
    A new, locked ConfigDict.

  Raises:
    ConfigError: If a key is unknown, or a value has no meaning.

  >>> complete({"batch_size": 8}).patch_size
  128
  >>> complete({"batch_siez": 8})
  Traceback (most recent call last):
  ...
  esrgan_jax.training.config.ConfigError: no key config.batch_siez; did you...
  """
  filled = _fill(config)
  for key, default in _leaves(DEFAULTS):
    value = _get(filled, key)
    problem = _type_problem(key, value, default) or _range_problem(key, value)
    if problem:
      raise ConfigError(f"config.{key} is {value!r}; {problem}")
  if filled.patch_size % filled.scale:
    raise ConfigError(
      f"config.patch_size is {filled.patch_size}; it must be a multiple of"
      f" config.scale, {filled.scale}"
    )
  if not filled.data.sources:
    raise ConfigError(
      "config.data.sources is empty; name a folder of photos, or several"
    )
  psnr, gan = filled.phases.psnr, filled.phases.gan
  if not filled.init_from and not psnr.num_train_steps:
    raise ConfigError(
      "config.phases.psnr.num_train_steps is 0 and config.init_from is empty:"
      " phase two needs a generator to start from; set either"
    )
  if gan.adversarial == "wgan-gp" and filled.discriminator.norm == "batch":
    raise ConfigError(
      "config.phases.gan.adversarial is 'wgan-gp', whose penalty needs images"
      " that don't see each other through BatchNorm; add"
      " --config.discriminator.norm=layer, or none"
    )
  if filled.init_from and not gan.num_train_steps:
    raise ConfigError(
      "config.init_from skips phase one, and"
      " config.phases.gan.num_train_steps is 0: nothing is left to do"
    )
  return filled


def override(
  config: ml_collections.ConfigDict, assignments: Sequence[tuple[str, str]]
) -> None:
  """Sets values by name, from texts as of a command line.

  Args:
    config: A complete config, changed in place.
    assignments: Names with dots, and values: of lists, `a,b` or Python's form.

  Raises:
    ConfigError: If there is no such key, with the nearest name, or the text
      does not make a value of the key's type.

  >>> config = complete({})
  >>> override(config, [("phases.gan.learning_rate", "5e-5")])
  >>> config.phases.gan.learning_rate
  5e-05
  >>> override(config, [("phases.gan.learning_rat", "1")])
  Traceback (most recent call last):
  ...
  esrgan_jax.training.config.ConfigError: no key config.phases.gan.learning_...
  """
  for name, text in assignments:
    *parents, last = name.split(".")
    section = config
    for depth, parent in enumerate(parents):
      if not _is_section(section) or parent not in section:
        _raise_unknown(".".join(parents[: depth + 1]), config)
      section = section[parent]
    free = bool(parents) and parents[-1] in _FREE_FORM
    if not _is_section(section) or (last not in section and not free):
      _raise_unknown(name, config)
    if last not in section:
      value = _literal(text)
    else:
      value = _parse(name, text, section[last])
    with section.ignore_type(), section.unlocked():
      section[last] = value


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config as JSON gives it back: tuples are lists.

  >>> plain(complete({}))["interpolation_alphas"][:2]
  [0.0, 0.2]
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return json.loads(json.dumps(config))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Tells how two configs differ in what changes a training's result.

  Args:
    old: The one before, as of `plain`.
    new: The one now, likewise.

  Returns:
    Sentences, one a key; none if they agree in all that matters.

  >>> difference({"seed": 0, "keep": 1}, {"seed": 1, "keep": 2})
  ['seed: 0 -> 1']
  """
  before, after = dict(_leaves(old)), dict(_leaves(new))
  lines = []
  for key in sorted(before.keys() | after.keys()):
    if any(key == h or key.startswith(f"{h}.") for h in _HARMLESS):
      continue
    a, b = before.get(key, "(not set)"), after.get(key, "(not set)")
    if a != b:
      lines.append(f"{key}: {a} -> {b}")
  return lines


def _fill(config):
  """Fills in defaults; unknown keys are errors."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  if not isinstance(config, Mapping):
    raise ConfigError(f"a config is a ConfigDict, got {type(config).__name__}")
  merged = _merge(DEFAULTS, config, "")
  return ml_collections.ConfigDict(merged).lock()


def _merge(defaults, given, prefix):
  merged = copy.deepcopy(dict(defaults))
  for key, value in given.items():
    name = f"{prefix}{key}"
    if key not in defaults:
      _raise_unknown(name, DEFAULTS)
    if isinstance(defaults[key], Mapping) and key not in _FREE_FORM:
      if not isinstance(value, Mapping):
        raise ConfigError(f"config.{name} is {value!r}; it is a section")
      value = _merge(defaults[key], value, f"{name}.")
    merged[key] = copy.deepcopy(value)
  return merged


def _raise_unknown(name, config):
  names = {key for key, _ in _leaves(config)}
  for key in list(names):  # Sections are names as well.
    parts = key.split(".")
    names |= {".".join(parts[:n]) for n in range(1, len(parts))}
  near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  if not near:  # Perhaps it is right but for the section.
    last = name.rpartition(".")[2]
    near = [key for key in sorted(names) if key.rpartition(".")[2] == last]
  hint = f"; did you mean config.{near[0]}?" if near else ""
  raise ConfigError(f"no key config.{name}{hint}")


def _is_section(value):
  return isinstance(value, Mapping | ml_collections.ConfigDict)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Names with dots and values; a free-form section is one value."""
  for key, value in tree.items():
    name = f"{prefix}{key}"
    if _is_section(value) and key not in _FREE_FORM:
      yield from _leaves(value, f"{name}.")
    else:
      yield name, value


def _get(config, name):
  for key in name.split("."):
    config = config[key]
  return config


def _literal(text):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _parse(name, text, old):
  """A value of the type of the one before."""
  literal = _literal(text)
  try:
    if name in _ANY_TYPE:
      kinds = (tuple, list, dict)
      return literal if isinstance(literal, kinds) else text
    if isinstance(old, bool):
      return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if isinstance(old, int):
      number = float(text.replace("_", ""))
      if number != int(number):
        raise ValueError
      return int(number)  # 1e6 is an integer too.
    if isinstance(old, float):
      return float(text)
    if isinstance(old, str):
      return text
    if _is_section(old):
      if not isinstance(literal, dict):
        raise ValueError
      return ml_collections.ConfigDict(literal)
    if isinstance(literal, tuple | list):
      return tuple(literal)
    return tuple(_literal(part) for part in text.split(",") if part)
  except (ValueError, KeyError, OverflowError):
    kind = {
      bool: "true or false",
      int: "an integer",
      float: "a number",
      ml_collections.ConfigDict: "a section, such as {'name': 'constant'}",
    }.get(type(old), f"a {type(old).__name__}")
    raise ConfigError(f"config.{name} is {text!r}; it must be {kind}") from None


def _type_problem(key, value, default):
  if key in _ANY_TYPE:
    return ""
  if isinstance(default, bool):
    good, kind = isinstance(value, bool), "True or False"
  elif isinstance(default, int):
    good = isinstance(value, int) and not isinstance(value, bool)
    kind = "an integer"
  elif isinstance(default, float):
    good = isinstance(value, int | float) and not isinstance(value, bool)
    kind = "a number"
  elif isinstance(default, tuple):
    good, kind = isinstance(value, tuple | list), "a tuple"
  elif isinstance(default, Mapping):
    good, kind = _is_section(value), "a section"
  else:
    good, kind = isinstance(value, str), "a text"
  return "" if good else f"it must be {kind}"


_CHOICES = {
  "dtype": ("auto", "float32", "bfloat16"),
  "initialization": ("published", "bilinear"),
  "discriminator.norm": discriminators.NORMS,
  "scale": (1, 2, 3, 4, 8),
  "phases.psnr.pixel_loss": tuple(shared.PIXEL_LOSSES),
  "phases.gan.pixel_loss": tuple(shared.PIXEL_LOSSES),
  "phases.gan.adversarial": gan_lib.ADVERSARIAL_LOSSES,
  "perceptual.criterion": ("l1", "l2"),
  "data.cache": pipeline.CACHES,
  "data.on_problem": ("skip", "stop"),
  "data.border": ("mirror", "clamp"),
}
_POSITIVE = (
  "batch_size",
  "patch_size",
  "accumulate",
  "keep",
  "log_every_steps",
  "eval_every_steps",
  "checkpoint_every_steps",
  "max_skipped_in_a_row",
  "eval.sample_size",
  "generator.num_feat",
  "generator.num_block",
  "generator.num_grow_ch",
  "discriminator.num_feat",
  "phases.psnr.learning_rate",
  "phases.gan.learning_rate",
  "phases.gan.d_learning_rate",
)


def _layers_problem(layers):
  for layer, weight in layers.items():
    if layer not in vgg.LAYERS:
      near = difflib.get_close_matches(layer, vgg.LAYERS, n=1, cutoff=0)
      return f"VGG19 has no layer {layer!r}; did you mean {near[0]!r}?"
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
      return f"the weight of {layer} must be a number above 0"
  return "" if layers else "name a layer, such as {'conv5_4': 1.0}"


def _range_problem(key, value):
  if key in _CHOICES and value not in _CHOICES[key]:
    return f"choose one of {', '.join(map(str, _CHOICES[key]))}"
  if key in _POSITIVE and not 0 < value < math.inf:
    return "it must be more than 0"
  if key == "ema_decay" and not 0 <= value <= 1:
    return "it must be from 0 to 1"
  if isinstance(value, int | float) and not value >= 0:
    return "it must be 0 or more"
  if key == "export_alpha" and not 0 <= value <= 1:
    return "it must be from 0, phase one's model, to 1, phase two's"
  if key == "interpolation_alphas" and not all(
    isinstance(v, int | float) and 0 <= v <= 1 for v in value
  ):
    return "it must be numbers from 0 to 1"
  if key == "eval.measures":
    try:
      measures.choose(value)
    except ValueError as error:
      return str(error)
  if key == "perceptual.layers":
    return _layers_problem(value)
  if key.endswith("schedule") and "name" not in value:
    return "it needs a name, such as {'name': 'constant'}"
  return ""
