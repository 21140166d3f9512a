"""The generator that a training starts from, where it is not random numbers."""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple

import jax
import numpy as np

from esrgan_jax import compilation
from esrgan_jax.models import registry
from esrgan_jax.steps.state import init_generator, split
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training import run as run_lib
from esrgan_jax.training.errors import ConfigError
from esrgan_jax.weights import find, partial
from esrgan_jax.weights.dialects import DIALECTS
from esrgan_jax.weights.dialects.protocol import UntoldScaleError

__all__ = ["Start", "read"]


class Start(NamedTuple):
  """What `config.init_from` names.

  Attributes:
    variables: The generator's, NumPy arrays.
    is_whole: Whether all of it is from there: then it is a model itself.
  """

  variables: dict[str, Any]
  is_whole: bool


def read(run: run_lib.Run) -> Start:
  """Reads the generator that `config.init_from` names.

  Args:
    run: The run; it is told what was found.

  Raises:
    ConfigError: If it is another network, or one of another shape.
    ValueError: If there is no such model, or it is damaged.
    FileNotFoundError: If there is no such file.
  """
  name = run.config.init_from
  found = _find(run)
  weights = found.weights
  for note in weights.notes:
    run.say(f"{found.name}: {note}")
  variables = _float32({"params": weights.params, **weights.collections})

  def has_shapes(fields):
    net = registry.make_generator(**fields)
    expected = jax.eval_shape(lambda: init_generator(jax.random.key(0), net))
    return _shapes(expected) == _shapes(variables)

  fits = has_shapes(run.network)
  if not fits and run.config.init_partial:
    return _take_what_fits(run, found.name, variables)
  problem = _difference(run, weights.config, has_shapes)
  if not problem and not fits:
    problem = f"whose layers are not those of {_network(run)}"
  if problem:
    raise ConfigError(f"config.init_from is {name!r}, {problem}")
  run.say(f"{_beginning(run)}: the generator is {found.name}")
  return Start(variables, is_whole=True)


def _find(run):
  """The model, of whatever scale it is."""
  name = run.config.init_from
  # Another program's checkpoint of a network whose shapes do not tell.
  own = run.network["architecture"] not in DIALECTS
  config = run.network if own and not run.config.init_partial else None
  if run.config.init_partial:
    return _of_any_scale(name)
  try:
    # The rare file does not tell its scale.
    return find.find_model(name, scale=run.config.scale, config=config)
  except ValueError:
    try:
      found = _of_any_scale(name)
    except ValueError:
      found = None
    # Another network of one's own is told apart below, with what to set.
    if found and (own or found.weights.config["scale"] != run.config.scale):
      return found
    raise


def _of_any_scale(name):
  try:
    return find.find_model(name)
  except UntoldScaleError:
    return find.find_model(name, scale=2)  # The arrays are the same.


def _take_what_fits(run, name, variables):
  """A start of two networks: tells what of it begins anew."""
  key = jax.random.key(run.config.seed)
  options = compilation.compiler_options(run.platform, once=True)
  fresh = jax.jit(
    lambda key: phases_lib.variables(run.config, run.generator, key),
    compiler_options=options,
  )
  taken, report = partial.fit(variables, jax.device_get(fresh(key)))
  if not report.taken:
    raise ConfigError(
      f"config.init_from is {run.config.init_from!r}, of which nothing fits in"
      f" {_network(run)}"
    )
  run.say(f"{_beginning(run)}, from {name}: {report}")
  return Start(taken, is_whole=not report.left)


def _beginning(run):
  """What starting from weights means for the first phase."""
  if run.config.phase_order:
    return f"phase {run.order[0]} starts from weights"
  return "phase one is skipped"


def _difference(run, config, has_shapes):
  """How another network differs, and what to do about it, if it does."""
  wanted, fits = run.network, has_shapes(run.network)
  architecture = config["architecture"]
  if architecture != wanted["architecture"]:
    # With all that it has besides, or the next error would ask for that.
    fields = dict(registry.find_generator(architecture).fields)
    fields["scale"] = wanted["scale"]
    different = {
      "architecture": architecture,
      **{k: v for k, v in config.items() if k in fields and v != fields[k]},
    }
    return f"of {architecture}, another network: add {_flags(different)}"
  different = {
    key: config[key]
    for key, value in wanted.items()
    # None is what the others come to.
    if value is not None and config.get(key, value) not in (value, None)
  }
  if not fits and not has_shapes(wanted | different):
    # Here it does not: the older plain networks of scale 2, say.
    different |= {
      key: config[key]
      for key, value in wanted.items()
      if value is None and config.get(key) is not None
    }
  if fits and architecture in DIALECTS:
    # The others are how it is computed, which may change.
    told = ("scale", *DIALECTS[architecture].UNTOLD)
    different = {k: v for k, v in different.items() if k in told}
  if not different:
    return ""
  partly = ""
  if "scale" in different:
    partly = ", or --config.init_partial=true to take what fits"
  return f"a network of another shape; add {_flags(different)}{partly}"


def _flags(different):
  """What the command line says of a generator's fields."""
  return " ".join(
    f"--config.{'' if key == 'scale' else 'generator.'}{key}="
    + shlex.quote(str(value))
    for key, value in different.items()
  )


def _network(run):
  return f"{run.network['architecture']}(scale={run.config.scale})"


def _float32(variables):
  params, collections = split(variables)
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), dict(params))
  return {"params": params, **collections}


def _shapes(tree):
  return jax.tree.map(lambda x: x.shape, tree)
