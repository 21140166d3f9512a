"""What a version promises the next one: `tests/promises.json`.

python -m tests.promises > tests/promises.json

Public names and their arguments, commands and their options, keys of configs,
and the arrays of each network. A later version may have more; what is here
stays, or is deprecated first (docs/stability.md).
"""

import argparse
import functools
import importlib
import inspect
import json
import pathlib

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import esrgan_jax
from esrgan_jax import __main__, steps
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
    "commands": {name: _options(name) for name in __main__._COMMANDS},
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
    return []
  try:
    parameters = inspect.signature(value).parameters
  except (TypeError, ValueError):
    return []
  return [name for name in parameters if name not in ("args", "kwargs")]


def _options(name):
  parser = argparse.ArgumentParser()
  importlib.import_module(f"esrgan_jax.commands.{name}").add_arguments(parser)
  return sorted({*parser._option_string_actions} - {"-h", "--help"})


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
      elif section == "trees" and items != now[section][name]:
        yield f"trees: {name}'s arrays"
      else:
        missing = [item for item in items if item not in now[section][name]]
        if missing:
          yield f"{section}: {name}: {', '.join(missing)}"
  for key in promised["config"]:
    if key not in now["config"]:
      yield f"config: {key}"


if __name__ == "__main__":
  print(json.dumps(found(), indent=1))
