"""Checkpoints of a training phase: exact, verified, and kept sparingly.

`orbax_writer` writes them, `stored` reads them. A step's checkpoint has three
items: `ema`, the averaged generator, apart so that evaluation and export read
it alone; `state`, all the rest; `info`, JSON: the config, metrics, what the
phase was begun from, and SHA-256s. A generator with more than parameters has a
fourth, `collections`. Where they are, `checkpoint_folders` says.

Moved is only what is proven damaged, and only where another step is whole.
Removed are only steps beyond `keep`, in the folder that is being written: what
was saved before something began anew stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from esrgan_jax import storage
from esrgan_jax.distributed import everywhere, wait_for_all
from esrgan_jax.evaluation import measures
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import fitting, migration
from esrgan_jax.weights.formats import checkpoint_folders as folders
from esrgan_jax.weights.formats import orbax_writer
from esrgan_jax.weights.formats import stored_arrays as stored
from esrgan_jax.weights.formats.stored_arrays import CheckpointError

__all__ = [
  "CheckpointError",
  "Checkpoints",
  "Restored",
  "SaveError",
]

_METRICS = "metrics.json"
_PSNR = "psnr_y"
_log = logging.getLogger(__name__)


class SaveError(OSError):
  """A checkpoint could not be written; those before it are whole."""


class Restored(NamedTuple):
  """What `Checkpoints.restore` returns.

  Attributes:
    state: The training state, on the devices that were asked for.
    step: Its step.
    config: The config that it was saved with.
    metrics: Metrics of evaluation at this step; empty where there was none.
    note: What began anew, and where; empty if all was carried over.
  """

  state: Any
  step: int
  config: dict[str, Any]
  metrics: dict[str, float]
  note: str = ""


class Checkpoints:
  """The checkpoints of one phase.

  Kept are the newest `keep` and the one of the best score. A checkpoint appears
  under its name only when it is complete, so that one may be killed at any
  time. Every process of a run calls every method, in the same order.

  Args:
    folder: The phase's; made if need be. May be in a bucket.
    config: The run's, plain values that JSON can hold.
    keep: How many of the newest to keep, >= 1.
    best: The measure by which the best one is chosen, which stays as well.
    origin: What the phase begins from, likewise, if it begins now: one that
      goes on keeps its own, or goes on without. See `lineage`.

  Attributes:
    origin: What the phase was begun from; None where that is not known.

  Raises:
    ValueError: If `keep` is not positive.

  >>> import tempfile
  >>> import jax.numpy as jnp
  >>> from esrgan_jax.steps.optimizer import make_optimizer
  >>> from esrgan_jax.steps.state import PsnrState
  >>> zero, params = jnp.zeros((), jnp.int32), {"bias": jnp.ones(2)}
  >>> opt_state = make_optimizer(1e-4).init(params)
  >>> state = PsnrState(zero, params, opt_state, params, zero, zero)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with Checkpoints(folder, config={"seed": 0}) as checkpoints:
  ...     saved = checkpoints.save(7, state)
  ...     restored = checkpoints.restore(state)
  >>> saved, restored.step, restored.state.params["bias"].tolist()
  (True, 7, [1.0, 1.0])
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    keep: int = 3,
    best: str = _PSNR,
    origin: Mapping[str, Any] | None = None,
  ):
    if keep < 1:
      raise ValueError(f"keep is {keep}; at least one checkpoint must stay")
    self._phase = storage.absolute(folder)
    self._config, self.origin = dict(config), origin and dict(origin)
    self._keep = _NewestAndBest(keep, measures.looks_of(best), {})
    self._manager = None
    self._saving = 0
    with storage.reaching(self._phase):
      self._folder = folders.current(self._phase)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if error is None:
      self.close()
      return
    with contextlib.suppress(SaveError):  # It would hide what went wrong.
      self.close()

  def steps(self) -> list[int]:
    """Returns the steps that have a checkpoint, ascending."""
    if self._manager:
      return sorted(self._manager.all_steps())
    return folders.list_steps(self._folder)

  def save(
    self, step: int, state: Any, *, metrics: Mapping[str, float] | None = None
  ) -> bool:
    """Saves a state; returns once the devices' memory has been copied.

    Args:
      step: The state's step; above that of any checkpoint.
      state: A `PsnrState` or `GanState`, replicated; it may be donated after.
      metrics: Means of an evaluation at this step, `"psnr_y"` among them; if it
        comes later, see `rate`.

    Returns:
      False where this step or a later one has a checkpoint already.

    Raises:
      SaveError: If this checkpoint or the one before cannot be written.
    """
    if self.steps() and step <= self.steps()[-1]:
      return False
    self.wait()
    items = _split(state)
    info = {
      "config": self._config,
      "metrics": dict(metrics or {}),
      "origin": self.origin,
      "versions": {"jax": jax.__version__},
    }
    arguments = orbax_writer.arguments(items, info)
    self._saving = step
    with self._writing():
      saved = self._open().save(step, args=arguments, force=True)
    self._keep.note(step, info["metrics"])
    return saved

  def rate(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of an evaluation to a checkpoint.

    Args:
      step: The checkpoint's.
      metrics: Means, `"psnr_y"` among them.

    Raises:
      SaveError: If the checkpoint could not be written.
    """
    self.wait()
    self._keep.note(step, metrics)
    path = self._folder / str(step) / _METRICS
    if jax.process_index() == 0 and path.parent.is_dir():
      with self._writing():
        storage.write_whole(path, json.dumps(dict(metrics)), overwrite=True)

  def check(self, like: Any, *, changes: bool = False) -> None:
    """Raises if training could not go on with such a state; reads no arrays.

    Args:
      like: As of `restore`.
      changes: Whether something may begin anew.

    Raises:
      CheckpointError: As `restore`, but for what is damaged.
    """
    steps = self.steps()
    if not steps:
      self._refuse_to_begin_again()
      return
    folder, problem = self._folder / str(steps[-1]), ""

    def refusal(info, found):
      found = migration.optimizer_states(found, like)
      fit = self._fit(info, found, like)
      return fitting.refusal(fit, str(folder), may_begin_anew=changes)

    try:
      if refusal(stored.read_info(folder), stored.read_shapes(folder)):
        # If so, not because what describes them is damaged.
        problem = refusal(*stored.read(folder))
    except stored.DamagedError:
      pass  # There may be one before.
    except CheckpointError as error:
      problem = str(error)
    _raise_everywhere(problem)

  def restore(
    self, like: Any, *, begin: Callable[[], Any] | None = None
  ) -> Restored | None:
    """Restores the newest checkpoint that is whole.

    Damaged ones after it are reported and moved aside. Where it has another
    discriminator or optimizer than the state, these begin anew if they may, and
    what is saved from then on goes to a new folder, which counts once it has a
    step: save the restored one.

    Args:
      like: A state of the same shapes, arrays or `jax.ShapeDtypeStruct` with a
        sharding; the number of devices may be another than when it was saved.
      begin: Makes a state from which to take what begins anew; without it,
        nothing may.

    Returns:
      What was restored; None if nothing has been saved yet.

    Raises:
      CheckpointError: If no checkpoint is whole, or it cannot be read now, or
        is of another shape. Nothing has been moved then.
    """
    self.wait()
    damaged = {}
    for step in reversed(self.steps()):
      found = self._read(step, damaged)
      if found:
        break
    else:
      self._refuse_to_begin_again(damaged)
      return None
    folder = self._folder / str(step)
    arrays = migration.optimizer_states(found.arrays, like)
    fit = self._fit(found.info, arrays, like)
    if problem := fitting.refusal(
      fit, str(folder), may_begin_anew=begin is not None
    ):
      raise CheckpointError(problem)
    for each, reason in damaged.items():
      if jax.process_index() == 0:
        _log.warning("%s; going on from the step before", reason)
      self._move_aside(each, folders.DAMAGED)
    metrics = found.info["metrics"] | _read_metrics(folder)
    state = _place(fit.sources, arrays, like, begin)
    self.origin = found.info.get("origin")
    note = self._begin_folder(fit) if fit.differences else ""
    return Restored(state, step, found.info["config"], metrics, note)

  def scores(self) -> dict[int, float | None]:
    """Returns the PSNR of each step, decibels; None where there is none."""
    self._open()
    return {step: self._keep.value(step, _PSNR) for step in self.steps()}

  def leave(self, step: int) -> None:
    """Moves steps after one to `diverged_checkpoints`: none may follow on them.

    Args:
      step: The last one that stays.
    """
    self.wait()
    for each in self.steps():
      if each > step:
        self._keep.metrics.pop(each, None)
        self._move_aside(each, folders.DIVERGED)

  def reached_preemption(self, step: int) -> bool:
    """Whether to save now and stop, because the machine will be taken away.

    Only for several processes: all of them get True at the same step.

    Args:
      step: The step just done; call it after every one.
    """
    return self._open().reached_preemption(step)

  def look(self) -> None:
    """Raises if the last save has failed by now; does not wait for it.

    Raises:
      SaveError: If it has.
    """
    if self._manager and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits until everything is written.

    Raises:
      SaveError: If it could not be.
    """
    if self._manager:
      with self._writing():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and ends the threads.

    Raises:
      SaveError: If something could not be written.
    """
    if self._manager:
      with self._writing():
        self._manager.close()
      self._manager = None

  def _open(self):
    """Orbax's manager of the folder that is written to."""
    if self._manager:
      return self._manager
    for step in folders.list_steps(self._folder):
      with contextlib.suppress(CheckpointError):
        folder = self._folder / str(step)
        info = stored.read_info(folder)
        self._keep.note(step, info["metrics"] | _read_metrics(folder))
    with storage.reaching(self._folder), self._writing():
      self._manager = orbax_writer.open_manager(self._folder, self._keep)
    return self._manager

  @contextlib.contextmanager
  def _writing(self):
    """Says in one line what went wrong with writing, and cleans up."""
    try:
      yield
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      self._manager = None  # It would raise the same again.
      self._remove_partial()
      steps = folders.list_steps(self._folder)
      then = f"goes on from step {steps[-1]}" if steps else "begins again"
      raise SaveError(
        f"checkpoint {self._saving} cannot be written to {self._folder}:"
        f" {stored.reason(error)}. What was saved before is whole; once this is"
        f" mended (free space, permissions), the same command {then}"
      ) from error

  def _remove_partial(self):
    """Gives back the space of what was not completed."""
    if jax.process_index() or storage.is_remote(self._folder):
      return
    for _ in range(20):  # Other writes may still be under way.
      partial = list(self._folder.glob("*.orbax-checkpoint-tmp"))
      if not partial:
        return
      for path in partial:
        shutil.rmtree(path, ignore_errors=True)
      time.sleep(0.05)

  def _read(self, step, damaged):
    """Reads a step; None, and why, if it is damaged for any process."""
    folder = self._folder / str(step)
    found, code, error = None, 0, None
    try:
      found = stored.read(folder)
    except stored.DamagedError as problem:
      code, error = 1, problem
    except CheckpointError as problem:
      code, error = 2, problem
    worst = _worst(code)
    if worst == 2:
      raise error or CheckpointError(
        f"{folder} cannot be read by another process"
      )
    if worst == 1:
      damaged[step] = str(error or f"{folder} is damaged for another process")
      return None
    return found

  def _fit(self, info, found, like):
    changed = config_lib.difference(info["config"], self._config)
    return fitting.fit(found, like, changes=changed)

  def _refuse_to_begin_again(self, damaged=None):
    """Raises if there is anything that training could have gone on from."""
    aside, problem = self._phase / folders.DAMAGED, ""
    if damaged:
      listed = ", ".join(map(str, damaged))
      problem = (
        f"no checkpoint of {self._folder} is whole (steps {listed}):"
        f" {next(iter(damaged.values()))}. Nothing was moved: move the folder"
        " away to begin anew, or choose another workdir"
      )
    elif steps := folders.list_steps(aside):
      listed = ", ".join(map(str, reversed(steps)))
      problem = (
        f"{self._phase} has no checkpoint, but {aside.name} has (steps"
        f" {listed}). Move these to {self._folder} to go on from them: an"
        f" earlier version moved whole ones too; or move {aside.name} away to"
        " begin anew"
      )
    _raise_everywhere(problem)

  def _move_aside(self, step, name):
    aside = self._phase / name
    if jax.process_index() == 0:
      aside.mkdir(parents=True, exist_ok=True)
      names = (f"{step}.{n}" if n else str(step) for n in itertools.count())
      target = next(
        aside / name for name in names if not (aside / name).exists()
      )
      storage.move_folder(self._folder / str(step), target)
    wait_for_all()
    if self._manager:
      self._manager.reload()

  def _begin_folder(self, fit):
    """Turns to a new folder; tells what begins anew, and where things are."""
    before = self._folder
    self.close()
    following = folders.number(before) + 1
    self._folder = self._phase / f"{folders.FOLDER}_{following}"
    self._keep.metrics.clear()
    return (
      f"{fitting.begun_anew(fit)}; checkpoints go to {self._folder.name} from"
      f" here on, those before stay in {before.name}"
    )


@dataclasses.dataclass
class _NewestAndBest:
  """The newest ones, and the best one: also after a restart."""

  newest: int
  best: measures.Measure
  metrics: dict[int, dict[str, float]]

  def note(self, step, metrics):
    """Takes note of a step's evaluation, if there was one."""
    if metrics:
      self.metrics[step] = dict(metrics)

  def value(self, step, name):
    """What was measured at a step; None where that is no number."""
    score = self.metrics.get(step, {}).get(name)
    return score if score is not None and math.isfinite(score) else None

  def should_preserve(self, checkpoints, *, context):
    """As Orbax asks: whether to keep each."""
    steps = sorted(each.step for each in checkpoints)
    kept = set(steps[-self.newest :])
    scores = {step: self.value(step, self.best.name) for step in steps}
    rated = [step for step, score in scores.items() if score is not None]
    if rated:
      choose = min if self.best.better == "lower" else max
      kept.add(choose(rated, key=scores.__getitem__))
    return [each.step in kept for each in checkpoints]


def _read_metrics(folder):
  """What `rate` has written for a checkpoint."""
  try:
    return json.loads((folder / _METRICS).read_text())
  except (OSError, ValueError):
    return {}


def _place(sources, arrays, like, begin):
  """A state on the devices: what was found, and what begins anew."""
  complete = len(sources) == len(jax.tree.leaves(like))
  fresh = like if complete else begin()

  def put(keys, leaf, other):
    path = stored.path_of(keys)
    if path not in sources:
      return other
    item, at = sources[path]
    array = arrays[item][at]
    return jax.make_array_from_callback(
      array.shape, leaf.sharding, array.__getitem__
    )

  return jax.tree_util.tree_map_with_path(put, like, fresh)


def _split(state):
  """The items of a state: what a model needs, and all the rest."""
  fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
  items = {"ema": fields.pop("ema_params")}
  if collections := fields.pop("collections"):
    items["collections"] = collections
  return {**items, "state": fields}


def _worst(code):
  """The highest of all processes' numbers."""
  return int(everywhere(np.array(code)).max())


def _raise_everywhere(problem):
  """Raises in all processes if there is a problem in any."""
  if _worst(int(bool(problem))):
    raise CheckpointError(problem or "a checkpoint is refused: see process 0")
