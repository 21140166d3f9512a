"""What a training config may hold: names, defaults, limits, overrides.

A config file has a function `get_config()` that returns a `ConfigDict`, or a
dict, of plain values. It sets what makes its experiment; the rest is filled in
by `defaults`, as ESRGAN's published training has it.
"""

from __future__ import annotations

import ast
import copy
import difflib
import json
import math
import os
import pathlib
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from esrgan_jax import plugins
from esrgan_jax.data import pipeline
from esrgan_jax.evaluation import measures
from esrgan_jax.models import registry, vgg
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training.errors import ConfigError

__all__ = [
  "ConfigError",
  "complete",
  "defaults",
  "difference",
  "override",
  "plain",
  "read_config",
]

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
  # "layer" or "none".
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
  # Weights for the discriminator to start from: a workdir, or its GAN phase.
  "init_discriminator": "",
  # Names of phases, one after another; () is phase one, "psnr", unless
  # init_from takes its place, and phase two, "gan".
  "phase_order": (),
  # A section a phase, filled in from what its kind has by default: see
  # training/phases/. The kind is the name, or the key `kind`; a second phase
  # of a kind has another name.
  "phases": {},
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
# Fields of a network that are not of its section: other keys say them.
_ELSEWHERE = ("scale", "input_size")
# What a workdir has besides phases.
_FOLDERS = ("earlier", "metrics", "models", "samples")

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
  "plugins",
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
  for key, find in _NETWORKS.items():
    given = _section(config, key)
    name = given.get("architecture", found[key]["architecture"])
    try:
      fields = find(str(name)).fields
    except ValueError as error:
      raise ConfigError(f"config.{key}.architecture: {error}") from error
    found[key] = {"architecture": name, **fields}
    for other in _ELSEWHERE:
      found[key].pop(other, None)
  sections = _section(config, "phases")
  ordered = config.get("phase_order", ())
  named = ordered if isinstance(ordered, tuple | list) else ()
  for name in dict.fromkeys((*phases_lib.PUBLISHED, *sections, *named)):
    _check_name(name)
    kind = _section(sections, name, "phases.").get("kind", name)
    if kind == name and name not in phases_lib.kinds():
      _raise_no_kind(name, found)
    settings = copy.deepcopy(dict(phases_lib.find_kind(str(kind)).defaults))
    found["phases"][name] = {"kind": kind, **settings}
  return found


_NETWORKS = {
  "generator": registry.find_generator,
  "discriminator": registry.find_discriminator,
}


def _section(config, key, prefix=""):
  value = config.get(key, {})
  if not _is_section(value):
    raise ConfigError(f"config.{prefix}{key} is {value!r}; it is a section")
  return value


def _check_name(name):
  if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", str(name)):
    raise ConfigError(
      f"config.phases has {name!r}: a phase's name is a folder's, of letters,"
      " digits, _ and -"
    )
  if name in _FOLDERS:
    raise ConfigError(
      f"config.phases has {name!r}, which is another folder of a workdir:"
      " choose another name"
    )


def _raise_no_kind(name, found):
  near = difflib.get_close_matches(str(name), found["phases"], n=1, cutoff=0.5)
  hint = f"; did you mean config.phases.{near[0]}?" if near else "."
  raise ConfigError(
    f"no key config.phases.{name}{hint} A phase of a name of your own has a"
    f" kind: config.phases.{name}.kind is one of"
    f" {', '.join(phases_lib.kinds())}"
  )


def read_config(
  path: str | os.PathLike, *, plugin_names: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Runs a config file and fills in defaults.

  Args:
    path: A Python file with `get_config()`.
    plugin_names: Plugins to load besides those that the config names; these
      are files relative to its folder, or to the working folder.

  Returns:
    The whole config, its values not yet checked: see `complete`.

  Raises:
    ConfigError: If there is no such file, it fails, or a key is unknown.

  >>> read_config("nowhere.py")
  Traceback (most recent call last):
  ...
  esrgan_jax.training.errors.ConfigError: no config file nowhere.py
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
  names = found.get("plugins", ()) if _is_section(found) else ()
  if isinstance(names, tuple | list):
    folder = pathlib.Path(path).parent
    names = [_beside(folder, name) for name in names]
    plugins.load([*names, *plugin_names])
  config = _fill(found)
  with config.unlocked():
    config.plugins = (*names, *plugin_names)
  return config


def _beside(folder, name):
  path = folder / str(name)
  return str(path) if path.is_file() else str(name)


def complete(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Returns a config with all keys, and values that make sense.

  Args:
    config: A dict or ConfigDict; what it lacks is as of `defaults`. Plugins
      that it names are loaded.

  Returns:
    A new, locked ConfigDict.

  Raises:
    ConfigError: If a key is unknown, or a value has no meaning.
    ValueError: If a plugin cannot be loaded.

  >>> complete({"batch_size": 8}).patch_size
  128
  >>> complete({"batch_siez": 8})
  Traceback (most recent call last):
  ...
  esrgan_jax.training.errors.ConfigError: no key config.batch_siez; did you...
  """
  names = config.get("plugins", ())
  plugins.load(names if isinstance(names, tuple | list) else ())
  filled = _fill(config)
  for key, default in _leaves(defaults(filled.to_dict())):
    value = _get(filled, key)
    problem = _type_problem(key, value, default) or _range_problem(
      key, value, default, filled
    )
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
  _check_phases(filled)
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
  esrgan_jax.training.errors.ConfigError: no key config.phases.gan.learning_...
  """
  # What says which keys there are comes first, in whatever order it is given.
  shaping = [each for each in assignments if _shapes(each[0])]
  for name, text in shaping:
    _begin_section(config, name, text)
    _assign(config, name, text)
  if shaping:
    _refill(config)
  for name, text in assignments:
    if not _shapes(name):
      _assign(config, name, text)


def _shapes(name):
  """Whether other keys depend on what a key is."""
  return name in ("phase_order", "plugins") or bool(
    re.fullmatch(r"(generator|discriminator)\.architecture", name)
    or re.fullmatch(r"phases\.[^.]+\.kind", name)
  )


def _begin_section(config, name, text):
  """Empties the section of another network or kind: its keys are others."""
  parent, _, key = name.rpartition(".")
  if not parent:
    return
  *above, last = parent.split(".")
  section = _get(config, ".".join(above)) if above else config
  if last not in section or section[last].get(key) != text:
    with section.ignore_type(), section.unlocked():
      section[last] = {key: text}


def _refill(config):
  filled = _fill(config)
  with config.ignore_type(), config.unlocked():
    for key in (*_NETWORKS, "phases"):
      config[key] = filled[key]


def _assign(config, name, text):
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
    known = dict(_leaves(defaults(config.to_dict())))
    optional = known.get(name, "") is None
    value = _parse(name, text, None if optional else section[last])
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
    new: The one now, likewise. What either lacks, as of an earlier version, is
      as by default.

  Returns:
    Sentences, one a key; none if they agree in all that matters.

  >>> difference({"seed": 0, "keep": 1}, {"seed": 1, "keep": 2})
  ['seed: 0 -> 1']
  """
  before, after = (dict(_leaves(_completed(each))) for each in (old, new))
  lines = []
  for key in sorted(before.keys() | after.keys()):
    if any(key == h or key.startswith(f"{h}.") for h in _HARMLESS):
      continue
    a, b = before.get(key, "(not set)"), after.get(key, "(not set)")
    if a != b:
      lines.append(f"{key}: {a} -> {b}")
  return lines


def _completed(config):
  """A config of an earlier version with the keys of this one, plain."""
  try:
    filled = _fill(config)
  except (ConfigError, AttributeError, TypeError):
    return config  # Of a plugin that is not loaded, or of no version at all.
  with filled.unlocked():
    filled.phase_order = phases_lib.order(filled)
  return plain(filled)


def _fill(config):
  """Fills in defaults; unknown keys are errors."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  if not isinstance(config, Mapping):
    raise ConfigError(f"a config is a ConfigDict, got {type(config).__name__}")
  known = defaults(config)
  merged = _merge(known, config, "", known)
  return ml_collections.ConfigDict(merged).lock()


def _merge(defaults, given, prefix, known):
  merged = copy.deepcopy(dict(defaults))
  for key, value in given.items():
    name = f"{prefix}{key}"
    if key not in defaults:
      _raise_unknown(name, known)
    if isinstance(defaults[key], Mapping) and key not in _FREE_FORM:
      if not isinstance(value, Mapping):
        raise ConfigError(f"config.{name} is {value!r}; it is a section")
      value = _merge(defaults[key], value, f"{name}.", known)
    merged[key] = copy.deepcopy(value)
  return merged


def _raise_unknown(name, config):
  section, _, field = name.partition(".")
  if section in _NETWORKS and field:
    own = config[section]
    fields = ", ".join(sorted(key for key in own if key != "architecture"))
    raise ConfigError(
      f"no key config.{name}: {own['architecture']} has {fields}"
    )
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
    if old is None:
      return literal
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
  if default is None:
    good = value is None or isinstance(value, bool | int | float | str | tuple)
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
    good, kind = _is_section(value), "a section"
  else:
    good, kind = isinstance(value, str), "a text"
  return "" if good else f"it must be {kind}"


_CHOICES = {
  "dtype": ("auto", "float32", "bfloat16"),
  "scale": (1, 2, 3, 4, 8),
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
)


def _layers_problem(layers):
  for layer, weight in layers.items():
    if layer not in vgg.LAYERS:
      near = difflib.get_close_matches(layer, vgg.LAYERS, n=1, cutoff=0)
      return f"VGG19 has no layer {layer!r}; did you mean {near[0]!r}?"
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
      return f"the weight of {layer} must be a number above 0"
  return "" if layers else "name a layer, such as {'conv5_4': 1.0}"


def _limits(key, default, config):
  """What a value may be, or None, and whether it must be more than 0."""
  section, _, rest = key.partition(".")
  if section in _NETWORKS:
    # What a network counts, it has some of.
    return None, isinstance(default, int) and default > 0
  if section == "phases":
    name, _, last = rest.partition(".")
    kind = phases_lib.find_kind(config.phases[name].kind)
    return kind.choices.get(last), last in kind.positive
  return _CHOICES.get(key), key in _POSITIVE


def _range_problem(key, value, default, config):
  if key == "initialization":
    network = config.generator.architecture
    own = phases_lib.starts(network)
    return "" if value in own else f"{network} begins as {' or '.join(own)}"
  choices, positive = _limits(key, default, config)
  if choices is not None and value not in choices:
    return f"choose one of {', '.join(map(str, choices))}"
  if positive and not 0 < value < math.inf:
    return "it must be more than 0"
  if key == "ema_decay" and not 0 <= value <= 1:
    return "it must be from 0 to 1"
  if isinstance(value, int | float) and not value >= 0:
    return "it must be 0 or more"
  if key == "export_alpha" and not 0 <= value <= 1:
    return "it must be from 0, the first phase's model, to 1, the last one's"
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
  if key in ("phase_order", "plugins") and not all(
    isinstance(name, str) for name in value
  ):
    return "it must be names"
  return ""


def _check_phases(config):
  """Raises if the phases that are asked for cannot follow each other."""
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


def _before(config):
  """What to set for a phase before the first, in words."""
  if config.phase_order:
    return "config.phase_order"
  return f"config.phases.{phases_lib.PUBLISHED[0]}.num_train_steps is 0"
