"""Reads training configs: fills in what they lack, checks them, sets values.

A config file has a function `get_config()` that returns a `ConfigDict`, or a
dict, of plain values. It sets what makes its experiment; the rest is filled in
by `defaults.py`, as ESRGAN's published training has it.
"""

from __future__ import annotations

import ast
import copy
import difflib
import json
import os
import pathlib
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from esrgan_jax import plugins
from esrgan_jax import text as text_lib
from esrgan_jax.training import degrading, limits
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training.defaults import (
  ANY_TYPE,
  FREE_FORM,
  NETWORKS,
  defaults,
  is_section,
)
from esrgan_jax.training.errors import ConfigError

__all__ = [
  "ConfigError",
  "complete",
  "defaults",
  "difference",
  "foretell",
  "override",
  "plain",
  "read_config",
]

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
  "degradation.eval_seed",
  "eval",
  "eval_every_steps",
  "export_alpha",
  "film",
  "interpolation_alphas",
  "keep",
  "log_every_steps",
  "max_skipped_in_a_row",
  "mesh",
  "plugins",
  "profile",
)


def read_config(
  path: str | os.PathLike, *, plugin_names: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Runs a config file and fills in defaults.

  Args:
    path: A Python file with `get_config()`; or, as of `config_flags`, the file,
      a colon, and a text, with which it calls `get_config(text)`.
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
  path, arguments = _file_and_arguments(path)
  if not os.path.isfile(path):
    raise ConfigError(f"no config file {path}")
  try:
    found = runpy.run_path(path)["get_config"](*arguments)
  except KeyError as error:
    if error.args != ("get_config",):
      raise ConfigError(f"{path} fails: KeyError: {error}") from error
    raise ConfigError(f"{path} has no get_config()") from error
  except Exception as error:
    raise ConfigError(
      f"{path} fails: {type(error).__name__}: {error}"
    ) from error
  folder = pathlib.Path(path).parent
  names = [_beside(folder, name) for name in _plugins(found)]
  plugins.load([*names, *plugin_names])
  config = _fill(found)
  with config.unlocked():
    config.plugins = (*names, *plugin_names)
  return config


def _file_and_arguments(path):
  """A config's file, and what its `get_config` is called with."""
  path = os.fspath(path)
  file, colon, argument = path.rpartition(":")
  if colon and not os.path.isfile(path):
    return file, (argument,)
  return path, ()


def foretell(path: str | os.PathLike, config: Any) -> list[str]:
  """Returns lines on what a training will do, and how long that took before.

  Args:
    path: The config's file, as `read_config` takes it. Its docstring tells the
      latter: what stands after `Cost:`.
    config: What `complete` returned.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "a.py")
  ...   text = "A short one.", "", "Cost: an hour,", "  on a GPU.", "Result: 1"
  ...   _ = path.write_text(repr(chr(10).join(text)))
  ...   phases = {"psnr": {"num_train_steps": 9000}}
  ...   for line in foretell(path, complete({"phases": phases})):
  ...     print(line)
  A short one.
  trains psnr for 9,000 steps, then gan for 400,000, then evaluates and ...
  cost: an hour, on a GPU.
  """
  path, _ = _file_and_arguments(path)
  try:
    told = ast.get_docstring(ast.parse(pathlib.Path(path).read_text())) or ""
  except (SyntaxError, ValueError):
    told = ""  # It has run; what it says of itself is for people.
  phases = [
    f"{name} for {config['phases'][name]['num_train_steps']:,}"
    for name in phases_lib.order(config)
  ]
  if phases:
    phases[0] += " steps"
  plan = ", then ".join(phases) or "nothing"
  lines = [f"trains {plan}, then evaluates and writes report.html"]
  if told:
    lines.insert(0, told.splitlines()[0])
  if cost := re.search(r"^Cost: (.*(?:\n .*)*)", told, re.MULTILINE):
    words = " ".join(cost[1].split())
    lines.append(f"cost: {words}")
  return [text_lib.printable(line, limit=1000) for line in lines]


def _plugins(config):
  """The plugins that a config names; one needs no tuple."""
  found = config.get("plugins", ()) if is_section(config) else ()
  names = (found,) if isinstance(found, str) else found
  if not isinstance(names, tuple | list) or not all(
    isinstance(name, str) for name in names
  ):
    raise ConfigError(
      f"config.plugins is {found!r}; it must be names of files or modules"
    )
  return tuple(names)


def _beside(folder, name):
  path = folder / name
  return str(path) if path.is_file() else name


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
  plugins.load(_plugins(config))
  filled = _fill(config)
  for key, default in _leaves(defaults(filled.to_dict())):
    value = _get(filled, key)
    problem = limits.problem_of(key, value, default, filled)
    if problem:
      shown = value.to_dict() if is_section(value) else value
      shown = text_lib.printable(repr(shown), limit=300)
      raise ConfigError(f"config.{key} is {shown}; {problem}")
  limits.check_generator(filled)
  if filled.patch_size % filled.scale:
    raise ConfigError(
      f"config.patch_size is {filled.patch_size}; it must be a multiple of"
      f" config.scale, {filled.scale}"
    )
  if not filled.data.sources:
    raise ConfigError(
      "config.data.sources is empty; name a folder of photos, or several"
    )
  limits.check_phases(filled)
  degrading.check(filled)
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
    for key in (*NETWORKS, phases_lib.AUGMENTATION, "phases"):
      config[key] = filled[key]


def _assign(config, name, text):
  *parents, last = name.split(".")
  section = config
  for depth, parent in enumerate(parents):
    if not is_section(section) or parent not in section:
      _raise_unknown(".".join(parents[: depth + 1]), config)
    section = section[parent]
  free = bool(parents) and parents[-1] in FREE_FORM
  if not is_section(section) or (last not in section and not free):
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
  merged["plugins"] = _plugins(config)
  return ml_collections.ConfigDict(merged).lock()


def _merge(defaults, given, prefix, known):
  merged = copy.deepcopy(dict(defaults))
  for key, value in given.items():
    name = f"{prefix}{key}"
    if key not in defaults:
      _raise_unknown(name, known)
    if isinstance(defaults[key], Mapping) and key not in FREE_FORM:
      if value is None:
        continue  # A section that is left out.
      if not isinstance(value, Mapping):
        raise ConfigError(f"config.{name} is {value!r}; it is a section")
      value = _merge(defaults[key], value, f"{name}.", known)
    merged[key] = copy.deepcopy(value)
  return merged


def _raise_unknown(name, config):
  section, _, field = name.partition(".")
  if section in NETWORKS and field:
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


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Names with dots and values; a free-form section is one value."""
  for key, value in tree.items():
    name = f"{prefix}{key}"
    if is_section(value) and key not in FREE_FORM:
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
    if name in ANY_TYPE:
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
    if is_section(old):
      if not isinstance(literal, dict):
        raise ValueError
      return ml_collections.ConfigDict(literal)
    if isinstance(literal, tuple | list):
      return tuple(literal)
    return tuple(_literal(part.strip()) for part in text.split(",") if part)
  except (ValueError, KeyError, OverflowError):
    kind = {
      bool: "true or false",
      int: "an integer",
      float: "a number",
      ml_collections.ConfigDict: "a section, such as {'name': 'constant'}",
    }.get(type(old), f"a {type(old).__name__}")
    raise ConfigError(f"config.{name} is {text!r}; it must be {kind}") from None
