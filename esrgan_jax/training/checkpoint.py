"""Checkpoints of a training phase: exact, verified, and kept sparingly.

The only file that knows Orbax. A step's checkpoint has three items: `ema`, the
averaged generator, apart so that evaluation and export read it alone; `state`,
all the rest; `info`, JSON: config, metrics and a SHA-256 of either item. Orbax
itself would restore a flipped bit without a word.
"""

from __future__ import annotations

import hashlib
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from esrgan_jax import storage
from esrgan_jax.distributed import wait_for_all

__all__ = [
  "CheckpointError",
  "Checkpoints",
  "Restored",
  "load_params",
  "saved_steps",
  "wait_for_all",
]

FOLDER = "checkpoints"  # Inside a phase's folder.
PHASES = ("gan", "psnr")  # As `load_params` prefers them.

_ITEMS = ("state", "ema", "info")
_BEST = "psnr_y"
_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
  """A checkpoint that is absent or damaged; the message says which."""


class Restored(NamedTuple):
  """What `Checkpoints.restore` returns.

  Attributes:
    state: The training state, on the devices that were asked for.
    step: Its step.
    config: The config that it was saved with.
    metrics: Metrics of evaluation at this step; empty where there was none.
  """

  state: Any
  step: int
  config: dict[str, Any]
  metrics: dict[str, float]


class Checkpoints:
  """The checkpoints of one phase, in a folder of their own.

  Kept are the newest `keep` and the one of the best PSNR. A checkpoint appears
  under its name only when it is complete, so that one may be killed at any
  time. Every process of a run calls every method, in the same order.

  Args:
    folder: Where; made if need be. May be in a bucket.
    keep: How many of the newest to keep, >= 1.

  Raises:
    ValueError: If `keep` is not positive.

  >>> import tempfile
  >>> import jax.numpy as jnp
  >>> from esrgan_jax.training.optimizer import make_optimizer
  >>> from esrgan_jax.training.state import PsnrState
  >>> zero, params = jnp.zeros((), jnp.int32), {"bias": jnp.ones(2)}
  >>> opt_state = make_optimizer(1e-4).transform.init(params)
  >>> state = PsnrState(zero, params, opt_state, params, zero, zero)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with Checkpoints(folder) as checkpoints:
  ...     saved = checkpoints.save(7, state, config={"seed": 0})
  ...     restored = checkpoints.restore(state)
  >>> saved, restored.step, restored.state.params["bias"].tolist()
  (True, 7, [1.0, 1.0])
  """

  def __init__(self, folder: str | epath.Path, *, keep: int = 3):
    if keep < 1:
      raise ValueError(f"keep is {keep}; at least one checkpoint must stay.")
    self._folder = storage.absolute(folder)
    policies = checkpoint_managers
    with storage.reaching(self._folder):
      self._manager = ocp.CheckpointManager(
        self._folder,
        item_names=_ITEMS,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=policies.AnyPreservationPolicy(
            [
              policies.LatestN(keep),
              policies.BestN(
                get_metric_fn=lambda metrics: metrics[_BEST],
                n=1,
                keep_checkpoints_without_metrics=False,
              ),
            ]
          ),
          cleanup_tmp_directories=True,
          enable_async_checkpointing=True,
        ),
      )

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Returns the steps that have a checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: Any,
    *,
    config: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> bool:
    """Saves a state; returns once the devices' memory has been copied.

    Args:
      step: The state's step; above that of any checkpoint.
      state: A `PsnrState` or `GanState`, replicated; it may be donated after.
      config: Plain values that JSON can hold.
      metrics: Means of an evaluation at this step, `"psnr_y"` among them.

    Returns:
      False where this step or a later one has a checkpoint already.

    Raises:
      Exception: What went wrong with the checkpoint before, if anything.
    """
    if self.steps() and step <= self.steps()[-1]:
      return False
    items = _split(state)
    info = {
      "config": dict(config),
      "metrics": dict(metrics or {}),
      "sha256": {name: _digest(tree) for name, tree in items.items()},
      "versions": {"jax": jax.__version__},
    }
    return self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(items["state"]),
        ema=ocp.args.StandardSave(items["ema"]),
        info=ocp.args.JsonSave(info),
      ),
      metrics=dict(metrics) if metrics else None,
      force=True,
    )

  def restore(self, like: Any) -> Restored | None:
    """Restores the newest checkpoint that is whole.

    Damaged ones are reported and moved to `damaged_checkpoints`, next to the
    folder; training goes on from the one before.

    Args:
      like: A state of the same shapes, arrays or `jax.ShapeDtypeStruct` with a
        sharding; the number of devices may be another than when it was saved.

    Returns:
      What was restored; None if there is no checkpoint.

    Raises:
      CheckpointError: If there are checkpoints, and all are damaged.
    """
    self.wait()
    found = self.steps()
    for step in reversed(found):
      try:
        restored, problem = self._restore(step, like), ""
      except Exception as error:  # Orbax and TensorStore raise many kinds.
        restored, problem = None, _one_line(error)
      if _agree(not problem):
        return restored
      _log.warning(
        "checkpoint %d of %s is damaged (%s); trying the one before",
        step,
        self._folder,
        problem or "for another process",
      )
      self._move_aside(step)
    if found:
      raise CheckpointError(
        f"all {len(found)} checkpoints of {self._folder} are damaged; they are"
        f" in {self._aside}. Start again with another workdir"
      )
    return None

  def reached_preemption(self, step: int) -> bool:
    """Whether to save now and stop, because the machine will be taken away.

    Only for several processes: all of them get True at the same step.

    Args:
      step: The step just done; call it after every one.
    """
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Waits until everything is written."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and ends the threads."""
    self._manager.close()

  @property
  def _aside(self):
    return self._folder.parent / "damaged_checkpoints"

  def _restore(self, step, like):
    info = self._manager.restore(
      step, args=ocp.args.Composite(info=ocp.args.JsonRestore())
    ).info
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      _split(like),
    )
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract["state"]),
        ema=ocp.args.StandardRestore(abstract["ema"]),
      ),
    )
    for name in ("state", "ema"):
      _verify(name, items[name], info)
    state = like.replace(**items["state"], ema_params=items["ema"])
    return Restored(state, step, info["config"], info["metrics"])

  def _move_aside(self, step):
    if jax.process_index() == 0:
      self._aside.mkdir(parents=True, exist_ok=True)
      target = self._aside / str(step)
      number = 1
      while target.exists():
        target, number = self._aside / f"{step}.{number}", number + 1
      storage.move_folder(self._folder / str(step), target)
    _agree(True)
    self._manager.reload()


def saved_steps(folder: epath.Path) -> list[int]:
  """Returns the steps of complete checkpoints, ascending.

  Args:
    folder: Where they are; need not exist.

  >>> saved_steps(epath.Path("/nowhere"))
  []
  """
  if not folder.is_dir():
    return []
  found = ocp.path.step.standard_name_format().find_all(folder)
  return sorted(each.step for each in found if (each.path / "ema").is_dir())


def load_params(
  path: str | pathlib.Path | epath.Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the averaged generator from a workdir or its checkpoints.

  Args:
    path: A workdir (then phase two's, if it has begun), a phase's folder, its
      `checkpoints`, or one step in there. Otherwise the newest step.

  Returns:
    Fields for `RRDBNet(**config)`, and the parameters, NumPy arrays.

  Raises:
    CheckpointError: If there is no checkpoint, or it is damaged.

  >>> load_params("/nowhere")
  Traceback (most recent call last):
  ...
  esrgan_jax.training.checkpoint.CheckpointError: no checkpoint in /nowhere: ...
  """
  root = storage.absolute(path)
  folders = [root / phase / FOLDER for phase in PHASES]
  folders += [root / FOLDER, root]
  if root.name.isdigit():
    folders.append(root.parent)
  for folder in folders:
    steps = saved_steps(folder)
    if folder == root.parent:
      steps = [int(root.name)] if int(root.name) in steps else []
    if steps:
      return _load_params(folder / str(steps[-1]))
  raise CheckpointError(
    f"no checkpoint in {path}: give the workdir of a training run, or a folder"
    f" named {FOLDER}"
  )


def _load_params(folder):
  try:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      info = reader.restore(folder / "info")
    with ocp.PyTreeCheckpointer() as reader:
      tree = reader.metadata(folder / "ema").item_metadata.tree
      restore = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
      )
      params = reader.restore(folder / "ema", restore_args=restore)
    _verify("ema", params, info)
  except CheckpointError:
    raise
  except Exception as error:  # Orbax and TensorStore raise many kinds.
    raise CheckpointError(f"{folder} is damaged: {_one_line(error)}") from error
  config = info["config"]
  return {**config["generator"], "scale": config["scale"]}, params


def _split(state):
  """The items of a state: `ema_params`, and a dict of everything else."""
  fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
  return {"ema": fields.pop("ema_params"), "state": fields}


def _digest(tree):
  """SHA-256 of all leaves and their paths."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = np.ascontiguousarray(leaf)
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    digest.update(f"{name} {leaf.dtype} {leaf.shape}\0".encode())
    digest.update(leaf.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def _verify(name, tree, info):
  expected, found = info["sha256"][name], _digest(tree)
  if found != expected:
    raise CheckpointError(
      f"item {name!r} is not what was saved: SHA-256 {found[:12]} instead of"
      f" {expected[:12]}"
    )


def _agree(good):
  """Whether all processes say so."""
  if jax.process_count() == 1:
    return good
  wait_for_all()
  return bool(multihost_utils.process_allgather(np.array(good)).all())


def _one_line(error):
  """The beginning of an error's message."""
  return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
