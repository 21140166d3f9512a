"""What a phase was begun from, so that models of different descent do not mix.

Phase two goes on from one generator: phase one's, or that of
`config.init_from`. Its checkpoints and its model carry that generator's digest.
Where phase one has been trained on since, phase two is stale: it is trained
again, if the user allows changes, and what there was of it becomes a workdir of
its own, `earlier/1`, `earlier/2`, ..., of two models that belong together.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from esrgan_jax import storage
from esrgan_jax.distributed import wait_for_all
from esrgan_jax.training import config as config_lib
from esrgan_jax.weights.formats import checkpoint_folders
from esrgan_jax.weights.formats import stored_arrays as stored

if typing.TYPE_CHECKING:
  from esrgan_jax.training import run as run_lib

__all__ = ["foresee", "metadata", "origin", "settle"]

_EARLIER = "earlier"
_MODELS = "models"
# What phase two leaves in a workdir; its folder last: where that is left, the
# rest may have been moved before.
_RESULTS = (
  f"{_MODELS}/*.safetensors",
  "evaluation.json",
  "interpolation.json",
  "report.html",
  "samples/gan_*.png",
  "samples/final.png",
  "gan",
)


def origin(run: run_lib.Run, params: Any) -> dict[str, Any]:
  """Describes what phase two begins from.

  Args:
    run: The run.
    params: The generator's parameters, whole on this process's devices.

  Returns:
    The parameters' digest, and where they come from; for `Checkpoints`.
  """
  found = {"sha256": stored.digest(stored.flatten(params))}
  if run.config.init_from:
    return found | {"init_from": run.config.init_from}
  newest = checkpoint_folders.newest(run.workdir / "psnr")
  return found | {"phase": "psnr", "step": int(newest.name) if newest else 0}


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
  """Says before phase one is trained on that phase two will be stale.

  Raises:
    ConfigError: If it will be, and nothing allows to train it again.
  """
  total = run.config.phases.psnr.num_train_steps
  first, second = (
    checkpoint_folders.newest(run.workdir / name) for name in ("psnr", "gan")
  )
  step = int(first.name) if first else 0
  if run.config.init_from or step >= total or not second:
    return
  if not run.config.allow_changes:
    raise config_lib.ConfigError(
      f"phase one is at step {step} of {total}, but phase two has begun, from"
      f" another model than phase one will end with. {_ways_out(run)}"
    )
  if not _origin_of_phase_two(second):
    # Later, nobody could tell.
    _set_aside(run, second, f"phase one is at step {step} of {total}")


def settle(run: run_lib.Run, origin: Mapping[str, Any]) -> None:
  """Compares what there is of phase two with what it would begin from now.

  Call it before anything is written over phase one's model.

  Args:
    run: The run.
    origin: As of `origin`.

  Raises:
    ConfigError: If they differ, and nothing allows to train it again.
  """
  second = checkpoint_folders.newest(run.workdir / "gan")
  if not second:
    return
  before = _origin_of_phase_two(second)
  if not before:
    run.say(
      "gan: begun by an earlier version, which did not tell from what model"
    )
    return
  if before["sha256"] == origin["sha256"]:
    return
  reason = (
    f"phase two, at step {second.name}, was begun from {_name(before)}, not"
    f" from {_name(origin)}"
  )
  if not run.config.allow_changes:
    raise config_lib.ConfigError(f"{reason}. {_ways_out(run)}")
  _set_aside(run, second, reason)


def _origin_of_phase_two(folder):
  """What a checkpoint says that it was begun from; None if it does not."""
  try:
    return stored.read_info(folder).get("origin")
  except stored.DamagedError:  # Restoring it will tell.
    return None


def _name(origin):
  digest = origin["sha256"][:12]
  if "init_from" in origin:
    return f"{origin['init_from']} ({digest})"
  return f"phase one's step {origin['step']} ({digest})"


def _ways_out(run):
  return (
    "To train it again after phase one, add --config.allow_changes=true: what"
    f" there is of it is kept, in {_next(run.workdir)}. To go on with it"
    " alone, add what it was begun from as well, such as"
    f" --config.init_from={run.workdir / _MODELS / 'psnr.safetensors'}"
  )


def _next(workdir):
  """The next folder for what is set aside, or one begun before a kill."""
  number = 1
  while (workdir / _EARLIER / str(number) / "gan").exists():
    number += 1
  return workdir / _EARLIER / str(number)


def _set_aside(run, newest, reason):
  """Makes phase two, and what it was begun from, a workdir of its own."""
  target = _next(run.workdir)
  run.say(f"{reason}: it is trained again, what there is goes to {target}")
  wait_for_all()  # All have read what is there.
  if jax.process_index() == 0:
    config = stored.read_info(newest)["config"]
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    storage.write_whole(target / "config.json", text, overwrite=True)
    for pattern in _RESULTS:
      for path in sorted(run.workdir.glob(pattern)):
        _move(path, target / path.relative_to(run.workdir))
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
