"""What a version promises the next one: `tests/promises.json`.

python -m tests.promises > new.json && mv new.json tests/promises.json

Public names and their arguments, commands and their options (`main` is the
training's), with what is required, defaults and choices; keys of configs, and
the arrays of each network. A later version may have more; what is here stays,
or is deprecated first (docs/stability.md).
"""

import argparse
import functools
import inspect
import json
import pathlib

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import esrgan_jax
from esrgan_jax import __main__, main, steps
from esrgan_jax.models import registry
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import defaults, phases

FILE = pathlib.Path(__file__).with_suffix(".json")


def found():
  """All that is promised, as this version has it."""
  return {
    "version": esrgan_jax.__version__,
    "names": {
      f"{module.__name__}.{name}": _arguments(getattr(module, name))
      for module in (esrgan_jax, steps)
      for name in module.__all__
    },
    "commands": {
      **{name: _options(_command(name)) for name in __main__._COMMANDS},
      "main": _options(main._parser()),
    },
    "config": config_keys(),
    "trees": {
      **{
        name: _tree(registry.make_generator(name, scale=4), (1, 8, 8, 3))
        for name in registry.generators()
      },
      **{
        name: _tree(
          registry.make_discriminator(name, input_size=128), (1, 128, 128, 3)
        )
        for name in registry.discriminators()
      },
    },
  }


def _arguments(value):
  if not callable(value):
    return {}
  try:
    parameters = inspect.signature(value).parameters.values()
  except (TypeError, ValueError):
    return {}
  return {
    each.name: _facts(each.default is each.empty, each.default)
    for each in parameters
    if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
  }


def _command(name):
  """The parser of one command, with what `__main__` adds to all."""
  (commands,) = [
    each
    for each in __main__._parser(name)._actions
    if isinstance(each, argparse._SubParsersAction)
  ]
  return commands.choices[name]


def _options(parser):
  found = {}
  for action in parser._actions:
    if isinstance(action, argparse._HelpAction):
      continue
    facts = _facts(action.required, action.default)
    if action.choices is not None:
      facts["choices"] = sorted(map(str, action.choices))
    for name in action.option_strings or [action.dest]:
      found[name] = facts
  return dict(sorted(found.items()))


def _facts(required, default):
  """Whether it must be given, or what it is if not, where JSON can say it."""
  if required:
    return {"required": True}
  try:
    return {"default": json.loads(json.dumps(default))}
  except (TypeError, ValueError):
    return {}


def config_keys():
  """All keys of configs, of every kind of phase and every network."""
  config = {"phases": {kind: {} for kind in phases.kinds()}}
  found = flatten_dict(defaults.defaults(config), sep=".")
  for kind, names in (
    ("generator", registry.generators()),
    ("discriminator", registry.discriminators()),
  ):
    for name in names:
      section = defaults.defaults({kind: {"architecture": name}})[kind]
      found |= {f"{kind}.{key}": None for key in section}
  config_lib.complete(config)  # They can be together.
  return sorted(found)


def _tree(net, shape):
  """The published size's arrays: paths and shapes."""
  image = jax.ShapeDtypeStruct(shape, np.float32)
  train = {"train": False} if registry.takes_train(net) else {}
  init = functools.partial(net.init, **train)
  variables = jax.eval_shape(init, jax.random.key(0), image)
  flat = flatten_dict(variables, sep="/")
  return {path: list(leaf.shape) for path, leaf in sorted(flat.items())}


def broken(promised, now):
  """What was promised and is no more, a line each."""
  for section in ("names", "commands", "trees"):
    for name, items in promised[section].items():
      if name not in now[section]:
        yield f"{section}: {name}"
      elif section != "trees":
        for told in _changed(items, now[section][name]):
          yield f"{section}: {name}: {told}"
      elif items != now[section][name]:
        yield f"trees: {name}'s arrays"
  for key in promised["config"]:
    if key not in now["config"]:
      yield f"config: {key}"


def _changed(before, after):
  """What of arguments or options breaks calls that were right."""
  for name in sorted(before.keys() - after.keys()):
    yield name
  for name, facts in after.items():
    was = before.get(name, {})
    if facts.get("required") and not was.get("required"):
      yield f"{name} is required"
    elif {"default"} <= was.keys() and was["default"] != facts.get("default"):
      yield f"{name} is {facts.get('default')!r}, was {was['default']!r}"
    gone = {*was.get("choices", ())} - {*facts.get("choices", ())}
    if gone and "choices" in facts:  # Without, anything can be chosen.
      yield f"{name} without {', '.join(sorted(gone))}"


def missing(promised, now):
  """What is public and not promised yet, a line each."""
  for section in ("names", "commands", "trees"):
    for name, items in now[section].items():
      known = promised[section].get(name)
      if known is None:
        yield f"{section}: {name}"
      elif section != "trees" and items.keys() - known.keys():
        more = sorted(items.keys() - known.keys())
        yield f"{section}: {name}: {', '.join(more)}"
  for key in now["config"]:
    if key not in promised["config"]:
      yield f"config: {key}"


if __name__ == "__main__":
  print(json.dumps(found(), indent=1))
