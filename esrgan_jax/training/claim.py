"""Takes a workdir for a run: nobody else's, and of the same config."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import jax
import numpy as np

from esrgan_jax import storage
from esrgan_jax.distributed import everywhere
from esrgan_jax.models import registry
from esrgan_jax.steps.state import init_generator
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import lock as lock_lib
from esrgan_jax.training import perceptual_note
from esrgan_jax.training import run as run_lib
from esrgan_jax.weights import fields
from esrgan_jax.weights.formats import checkpoint_folders

__all__ = ["claim_workdir"]


@contextlib.contextmanager
def claim_workdir(run: run_lib.Run) -> Iterator[None]:
  """Locks the workdir; refuses a config that differs from what is there.

  Writes nothing but the lock: see `Run.write_config`.

  Raises:
    LockError: If another run has it.
    ConfigError: If it differs in what changes the result.
    OSError: If the workdir cannot be written.
  """
  with contextlib.ExitStack() as stack:
    problem = None
    if jax.process_index() == 0:
      try:
        with storage.reaching(run.workdir):
          storage.require_packages(run.workdir)
          run.workdir.exists()  # What cannot be reached is not locked.
        stack.enter_context(run.lock)
        with storage.reaching(run.workdir):
          _compare_configs(run)
      except (lock_lib.LockError, ValueError, OSError) as error:
        problem = error
    # All processes end together, or none does.
    failed = everywhere(np.array(problem is not None))
    if problem:
      raise problem
    if failed.any():
      raise config_lib.ConfigError(
        f"{run.workdir} cannot be had: see what process 0 says"
      )
    yield


def _compare_configs(run):
  """Raises if the config has changed in what matters, and may not."""
  path = run.workdir / "config.json"
  folders = [run.workdir / name for name in run.config.phases]
  # Where nothing has been saved, a mistake may just have been corrected.
  if not path.exists() or not any(map(checkpoint_folders.newest, folders)):
    return
  try:
    before = json.loads(path.read_text())
  except ValueError as error:
    raise config_lib.ConfigError(
      f"{path} is damaged ({error}); move it away to go on with the config"
      " that is given now"
    ) from error
  changes = config_lib.difference(before, run.plain)
  # What was found by it is compared later.
  if perceptual_note.noted(run.workdir):
    changes = [x for x in changes if not x.startswith("perceptual.weights:")]
  if not changes:
    return
  listed = "".join(f"\n  {line}" for line in changes)
  shape = [
    line for line in changes if line.startswith(("generator.", "scale:"))
  ]
  if shape and _is_another_network(run, before):
    raise config_lib.ConfigError(
      f"{run.workdir} was begun with another config:{listed}\nA generator of"
      " another shape cannot go on from what is there: set"
      f" {shape[0].partition(':')[0]} back, or choose another workdir"
    )
  if not run.config.allow_changes:
    raise config_lib.ConfigError(
      f"{run.workdir} was begun with another config:{listed}\nTo go on with"
      " the new one, add --config.allow_changes=true; or choose another"
      f" workdir{_consequence(run)}"
    )
  run.say(f"going on with another config than before:{listed}")


def _is_another_network(run, before):
  """Whether what an earlier config's network has learnt fits in none of now."""
  network = {
    "architecture": registry.DEFAULT_GENERATOR,
    **before.get("generator", {}),
    "scale": before.get("scale"),
  }
  same = ("architecture", "scale")
  if any(network[key] != run.network[key] for key in same):
    return True
  try:
    both = fields.checked(network), run.network
    nets = (registry.make_generator(**each) for each in both)
    there, here = (
      jax.eval_shape(lambda net=net: init_generator(jax.random.key(0), net))
      for net in nets
    )
  except (TypeError, ValueError):
    return True
  return there != here


def _consequence(run):
  """What going on with another config means for later phases, if anything."""
  for index, name in enumerate(run.order):
    newest = checkpoint_folders.newest(run.workdir / name)
    total = run.config.phases[name].num_train_steps
    if newest and int(newest.name) >= total:
      continue
    for later in run.order[index + 1 :]:
      found = checkpoint_folders.newest(run.workdir / later)
      if newest and found:
        return (
          f". Phase {later}, now at step {found.name}, is then trained again"
          f" after phase {name}; what there is of it is kept"
        )
  return ""
