"""What values the keys of a training config may have."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

from esrgan_jax import augment, losses, text
from esrgan_jax.data import pipeline
from esrgan_jax.evaluation import measures
from esrgan_jax.models import registry, vgg
from esrgan_jax.training import perceptual
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training.defaults import ANY_TYPE, NETWORKS, is_section
from esrgan_jax.training.errors import ConfigError
from esrgan_jax.weights import fields

__all__ = ["check_generator", "check_phases", "problem_of"]


def problem_of(key: str, value: Any, default: Any, config: Any) -> str:
  """Returns why a key cannot have a value; nothing if it can.

  Args:
    key: Its name, with dots.
    value: Its value.
    default: What it is by default, which says its type.
    config: The whole config.
  """
  found = _AUGMENTATION.fullmatch(key)
  if found:
    # What a phase leaves None is as for all of them.
    if found["phase"] and value is None:
      return ""
    if found["option"] == "one_of":
      return _type_problem(key, value, False)
    return augment.problem_of(*found["option"].split("."), value)
  return _type_problem(key, value, default) or _range_problem(
    key, value, default, config
  )


def _type_problem(key, value, default):
  if key in ANY_TYPE:
    return ""
  if default is None:
    good = value is None or isinstance(
      value, bool | int | float | str | tuple | list
    )
    kind = "a plain value, or None"
  elif isinstance(default, bool):
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
    good, kind = is_section(value), "a section"
  else:
    good, kind = isinstance(value, str), "a text"
  return "" if good else f"it must be {kind}"


_AUGMENTATION = re.compile(
  rf"(?P<phase>phases\.[^.]+\.)?{phases_lib.AUGMENTATION}\.(?P<option>.+)"
)
_PUBLISHED = (registry.DEFAULT_GENERATOR, registry.DEFAULT_DISCRIMINATOR)
# Of the adversarial losses that are here, not of a plugin's.
_OPTIONS = tuple(losses.ADVERSARIAL_OPTIONS)
_CHOICES = {
  "dtype": ("auto", "float32", "bfloat16"),
  "scale": (1, 2, 3, 4, 8),
  "perceptual.criterion": ("l1", "l2"),
  "perceptual.network": perceptual.NETWORKS,
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
  "film.first_step",
  "film.size",
)
_LARGEST_FILM = 1024  # HR pixels a side.
# A million steps then have 250 frames.
_SLOWEST_GROWTH = 1.05


def _layers_problem(layers, network):
  if network in perceptual.DISTANCES:
    return ""  # It has its own.
  known = vgg.VGG16_LAYERS if network == "vgg16" else vgg.LAYERS
  for layer, weight in layers.items():
    if layer not in known:
      near = difflib.get_close_matches(layer, known, n=1, cutoff=0)
      return (
        f"{network.upper()} has no layer {layer!r}; did you mean {near[0]!r}?"
      )
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
      return f"the weight of {layer} must be a number above 0"
  return "" if layers else "name a layer, such as {'conv5_4': 1.0}"


def _film_problem(key, value, config):
  """Why a key of the film cannot have a value, if so."""
  side = f"{_LARGEST_FILM} HR pixels a side or less"
  if key == "size" and value > _LARGEST_FILM:
    return f"it must be {side}"
  if key == "growth" and not _SLOWEST_GROWTH <= value < math.inf:
    return f"it must be {_SLOWEST_GROWTH} or more"
  if key == "seconds" and not 0.01 <= value <= 60:
    return "it must be from 0.01 to 60"
  if key == "quality" and not 1 <= value <= 100:
    return "it must be from 1 to 100"
  if key == "crop" and len(value):
    whole = all(
      isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value
    )
    if len(value) != 4 or not whole or not all(value[2:]):
      return "it must be left, top, width and height, HR pixels; or ()"
    if any(n % config.scale for n in value):
      return f"each must be a multiple of config.scale, {config.scale}"
    if max(value[2:]) > _LARGEST_FILM:
      return f"it must be {side}"
  return ""


def _limits(key, default, config):
  """What a value may be, or None; the least number, or what it is more than.

  What a network or a kind of phase of somebody's own can have, they say.
  """
  section, _, rest = key.partition(".")
  if section in NETWORKS:
    if config[section].architecture not in _PUBLISHED:
      return None, None, None
    # What a network counts, it has some of.
    counts = isinstance(default, int) and default > 0
    return None, 0, 0 if counts else None
  if section == "phases":
    name, _, last = rest.partition(".")
    kind = phases_lib.find_kind(config.phases[name].kind)
    known = last == "num_train_steps" or kind.name in phases_lib.PUBLISHED
    # Other losses' options may be anything.
    known &= last not in losses.ADVERSARIAL_OPTIONS or last in _OPTIONS
    more = 0 if last in kind.positive else None
    return kind.choices.get(last), 0 if known else None, more
  return _CHOICES.get(key), 0, 0 if key in _POSITIVE else None


def _range_problem(key, value, default, config):
  if key == "initialization":
    network = config.generator.architecture
    own = phases_lib.starts(network)
    return "" if value in own else f"{network} begins as {' or '.join(own)}"
  choices, least, above = _limits(key, default, config)
  if choices is not None and value not in choices:
    return f"choose one of {', '.join(map(str, choices))}"
  if above is not None and not above < value < math.inf:
    return f"it must be more than {above}"
  if key == "ema_decay" and not 0 <= value <= 1:
    return "it must be from 0 to 1"
  is_number = isinstance(value, int | float)
  if is_number and least is not None and not value >= least:
    return f"it must be {least} or more"
  if key.startswith("generator.") and not fields.fits(value, default):
    held = text.printable(repr(default), limit=60)
    return f"the default is {held}, and a model's file holds {fields.LIMITS}"
  if key == "export_alpha" and not 0 <= value <= 1:
    return "it must be from 0, the first phase's model, to 1, the last one's"
  if key == "interpolation_alphas" and not all(
    isinstance(v, int | float) and 0 <= v <= 1 for v in value
  ):
    return "it must be numbers from 0 to 1"
  if key.startswith("film."):
    return _film_problem(key.removeprefix("film."), value, config)
  if key in ("eval.measures", "eval.best"):
    try:
      measures.choose(value if key == "eval.measures" else [value])
    except ValueError as error:
      return str(error)
  if key == "perceptual.weights":
    return perceptual.problem(config.perceptual.network, value)
  if key == "perceptual.layers":
    return _layers_problem(value, config.perceptual.network)
  is_schedule = is_section(default) and key.endswith(".schedule")
  if is_schedule and "name" not in value:
    return "it needs a name, such as {'name': 'constant'}"
  if key == "phase_order" and not all(isinstance(n, str) for n in value):
    return "it must be names"
  return ""


def check_generator(config: Any) -> None:
  """Raises if the model's file could not be read again.

  Args:
    config: The whole config, its values checked.

  Raises:
    ConfigError: If its fields are too long a text.
  """
  found = {**config.generator, "scale": config.scale}
  try:
    fields.from_text(found["architecture"], fields.to_text(found))
  except (TypeError, ValueError) as error:
    raise ConfigError(f"config.generator: {error}") from error


def check_phases(config: Any) -> None:
  """Raises if the phases that are asked for cannot follow each other.

  Args:
    config: The whole config, its values checked.

  Raises:
    ConfigError: If they cannot.
  """
  given = config.phase_order
  if len({*given}) < len(given):
    raise ConfigError(
      f"config.phase_order is {tuple(given)!r}; a phase comes once: give the"
      " second of a kind a name and a section of its own, with `kind`"
    )
  names = phases_lib.order(config)
  if not names:
    raise ConfigError(
      "config.phase_order has no phase with steps: nothing is to be done. See"
      " config.phases.NAME.num_train_steps; init_from alone skips phase one,"
      f" --config.phase_order={phases_lib.PUBLISHED[0]} goes on with it"
    )
  if config.init_partial and not (
    config.init_from or config.init_discriminator
  ):
    raise ConfigError(
      "config.init_partial is True, but nothing says what to take: set"
      " config.init_from, or leave it out"
    )
  kinds = [phases_lib.find_kind(config.phases[name].kind) for name in names]
  if kinds[0].needs_start and not config.init_from:
    raise ConfigError(
      f"phase {names[0]} is the first and config.init_from is empty: it needs"
      " a generator to start from; set config.init_from, or have another phase"
      f" come before it ({_before(config)})"
    )
  for name, kind in zip(names, kinds, strict=True):
    problem = kind.check and kind.check(config.phases[name], config)
    if problem:
      raise ConfigError(f"config.phases.{name}.{problem}")
    settings = phases_lib.augmentation(config, name)
    problem = augment.together(
      settings["operations"], settings["one_of"], config.batch_size
    )
    if problem:
      raise ConfigError(
        f"config.{phases_lib.AUGMENTATION}, of phase {name}: {problem}"
      )


def _before(config):
  """What to set for a phase before the first, in words."""
  if config.phase_order:
    return "config.phase_order"
  return f"config.phases.{phases_lib.PUBLISHED[0]}.num_train_steps is 0"
