"""What a phase was begun from, so that models of different descent do not mix.

A phase goes on from one generator: that of the phase before, or for the first
that of `config.init_from`. Its checkpoints and its model carry that generator's
digest. Where the phase before has been trained on since, it is stale, and so is
all that follows: it is trained again, if the user allows changes, and what
there was of it becomes a workdir of its own, `earlier/1`, `earlier/2`, ..., of
models that belong together.
"""

from __future__ import annotations

import itertools
import json
import typing
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from esrgan_jax import storage
from esrgan_jax.distributed import wait_for_all
from esrgan_jax.report import curves, film
from esrgan_jax.training import config as config_lib
from esrgan_jax.weights.formats import checkpoint_folders
from esrgan_jax.weights.formats import stored_arrays as stored

if typing.TYPE_CHECKING:
  from esrgan_jax.training import run as run_lib

__all__ = ["foresee", "metadata", "origin", "settle"]

_EARLIER = "earlier"
_MODELS = "models"
# What is made of all phases together.
_RESULTS = (
  f"{_MODELS}/*.safetensors",
  f"{curves.FOLDER}/*",
  "evaluation.json",
  film.NAME,
  "interpolation.json",
  "report.html",
  "samples/final.png",
)
_MOVING = ".moving"  # In a folder of `earlier` that is not yet all of it.


def origin(run: run_lib.Run, params: Any, phase: str = "") -> dict[str, Any]:
  """Describes what a phase begins from.

  Args:
    run: The run.
    params: The generator's parameters, whole on this process's devices.
    phase: The phase that they are of; none for those of `config.init_from`.

  Returns:
    The parameters' digest, and where they come from; for `Checkpoints`.
  """
  found = {"sha256": stored.digest(stored.flatten(params))}
  if not phase:
    return found | {"init_from": run.config.init_from}
  step = _newest_step(run, phase)
  return found | {"phase": phase, "step": step}


def metadata(params: Any, origin: Mapping[str, Any] | None) -> dict[str, str]:
  """Returns what a model's file says about its descent.

  Args:
    params: Its parameters.
    origin: What it was begun from, if anything.

  >>> import numpy as np
  >>> found = metadata({"bias": np.zeros(3, np.float32)}, {"sha256": "ab12"})
  >>> found["generator_sha256"][:12], found["begun_from_sha256"]
  ('5677989ec1ae', 'ab12')
  """
  found = {"generator_sha256": stored.digest(stored.flatten(params))}
  if origin:
    found["begun_from_sha256"] = origin["sha256"]
  return found


def foresee(run: run_lib.Run) -> None:
  """Says before a phase is trained on that those after it will be stale.

  Raises:
    ConfigError: If they will be, and nothing allows to train them again.
  """
  for index, name in enumerate(run.order):
    total = run.config.phases[name].num_train_steps
    later = _begun(run, run.order[index + 1 :])
    step = _newest_step(run, name)
    if step >= total or not later:
      continue
    if not run.config.allow_changes:
      raise config_lib.ConfigError(
        f"phase {name} is at step {step} of {total}, but phase {later[0]} has"
        f" begun, from another model than phase {name} will end with."
        f" {_ways_out(run, later[0])}"
      )
    if not _origin_of(run, later[0]):
      # Later, nobody could tell.
      _set_aside(run, later, f"phase {name} is at step {step} of {total}")
    return


def settle(run: run_lib.Run, phase: str, origin: Mapping[str, Any]) -> bool:
  """Compares what there is of a phase with what it would begin from now.

  Call it before anything is written over the model of the phase before.

  Args:
    run: The run.
    phase: The phase that begins, or goes on.
    origin: As of `origin`.

  Returns:
    Whether all models were set aside, with it and the phases that follow.

  Raises:
    ConfigError: If they differ, and nothing allows to train it again.
  """
  stale = _begun(run, run.order[run.order.index(phase) :])
  if phase not in stale:
    return False
  before = _origin_of(run, phase)
  if not before:
    run.say(
      f"{phase}: begun by an earlier version, which did not tell from what"
      " model"
    )
    return False
  if before["sha256"] == origin["sha256"]:
    return False
  reason = (
    f"phase {phase}, at step {_newest_step(run, phase)}, was begun from"
    f" {_name(before)}, not from {_name(origin)}"
  )
  if not run.config.allow_changes:
    raise config_lib.ConfigError(f"{reason}. {_ways_out(run, phase)}")
  _set_aside(run, stale, reason)
  return True


def _begun(run, names):
  """Those of the phases that have a checkpoint."""
  return [name for name in names if _newest(run, name)]


def _newest(run, name):
  return checkpoint_folders.newest(run.workdir / name)


def _newest_step(run, name):
  found = _newest(run, name)
  return int(found.name) if found else 0


def _origin_of(run, name):
  """What a phase says that it was begun from; None if it does not."""
  try:
    return stored.read_info(_newest(run, name)).get("origin")
  except stored.DamagedError:  # Restoring it will tell.
    return None


def _name(origin):
  digest = origin["sha256"][:12]
  if "init_from" in origin:
    return f"{origin['init_from']} ({digest})"
  return f"phase {origin['phase']}'s step {origin['step']} ({digest})"


def _ways_out(run, stale):
  index = run.order.index(stale)
  before = run.order[index - 1] if index else run.start_key
  return (
    "To train it again, add --config.allow_changes=true: what there is of it"
    f" is kept, in {_next(run, [stale])}. To go on with it alone, add what it"
    " was begun from as well, such as"
    f" --config.init_from={run.workdir / _MODELS / f'{before}.safetensors'}"
  )


def _next(run, names):
  """The next folder for what is set aside, or one begun before a kill."""
  for number in itertools.count(1):
    folder = run.workdir / _EARLIER / str(number)
    has = {
      path.name
      for path in (folder.iterdir() if folder.is_dir() else ())
      if checkpoint_folders.newest(path)
    }
    unfinished = (folder / _MOVING).exists() or not has
    if unfinished and has.isdisjoint(names):
      return folder


def _set_aside(run, names, reason):
  """Makes phases, and what the first was begun from, a workdir of their own."""
  target = _next(run, names)
  run.say(f"{reason}: it is trained again, what there is goes to {target}")
  wait_for_all()  # All have read what is there.
  if jax.process_index() == 0:
    config = stored.read_info(_newest(run, names[0]))["config"]
    target.mkdir(parents=True, exist_ok=True)
    (target / _MOVING).write_text("")
    text = json.dumps(config, indent=2) + "\n"
    storage.write_whole(target / "config.json", text, overwrite=True)
    # A phase's folder last, and that of the first of all: where it is left,
    # the rest may have been moved before.
    later = reversed(
      [
        (f"samples/{name}_*.png", f"{film.FOLDER}/{name}/*.png", name)
        for name in names
      ]
    )
    for pattern in (*_RESULTS, *itertools.chain.from_iterable(later)):
      for path in sorted(run.workdir.glob(pattern)):
        _move(path, target / path.relative_to(run.workdir))
    (target / _MOVING).unlink()
  wait_for_all()


def _move(source: epath.Path, target: epath.Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  if source.is_dir():
    storage.move_folder(source, target)
  elif storage.is_remote(source):
    source.copy(target, overwrite=True)
    source.unlink()
  else:
    source.rename(target)
