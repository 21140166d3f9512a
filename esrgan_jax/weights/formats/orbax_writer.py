"""Has Orbax write checkpoints: the only file that knows it.

What they hold, and how they are read without it, `stored_arrays` says.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from esrgan_jax.weights.formats import stored_arrays as stored

__all__ = ["arguments", "open_manager", "write"]


def arguments(items: Mapping[str, Any], info: Mapping[str, Any]) -> Any:
  """Returns what Orbax takes to save a checkpoint.

  Args:
    items: Trees of arrays by the item's name; the arrays may be donated after.
    info: What the checkpoint says of itself; its digests are added.
  """
  return ocp.args.Composite(
    info=_InfoSave(dict(info), _copies(items)),
    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
  )


def open_manager(folder: Any, policy: Any) -> ocp.CheckpointManager:
  """Returns Orbax's manager of a folder of checkpoints, a step each.

  Args:
    folder: An absolute path; made if need be. May be in a bucket.
    policy: Which ones to keep: has Orbax's `should_preserve`.
  """
  _hush_orbax()
  return ocp.CheckpointManager(
    folder,
    item_names=(*stored.ITEMS, "info"),
    options=ocp.CheckpointManagerOptions(
      preservation_policy=policy,
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
    ),
  )


def write(
  folder: Any, items: Mapping[str, Any], info: Mapping[str, Any]
) -> None:
  """Writes one checkpoint, in whole or not at all.

  Every process of a run calls it.

  Args:
    folder: An absolute path, at which there is nothing. May be in a bucket.
    items: As of `arguments`.
    info: As of `arguments`.
  """
  _hush_orbax()
  handler = ocp.CompositeCheckpointHandler(*items, "info")
  with ocp.AsyncCheckpointer(handler) as checkpointer:
    checkpointer.save(folder, args=arguments(items, info))
    checkpointer.wait_until_finished()


class _InfoHandler(ocp.AsyncCheckpointHandler):
  """Takes the digests and writes them, in a thread beside the loop.

  A checkpoint gets its name when all of its parts are written, this among them.
  """

  async def async_save(self, directory: Any, args: Any) -> Any:
    writes = self._write(directory, args)
    return [ocp.future.CommitFutureAwaitingContractedSignals(writes)]

  async def _write(self, directory, args):
    if jax.process_index():
      return
    # The model's is its identity as well: see `lineage`.
    digests = {
      name: (stored.digest if name == "ema" else stored.digest_by_leaf)(each)
      for name, each in args.items.items()
    }
    info = {**args.info, "sha256": digests}
    digests["info"] = stored.digest_of_info(info)
    (directory / "metadata").write_text(json.dumps(info))

  def save(self, directory: Any, args: Any) -> None:
    raise NotImplementedError("only beside the loop")

  def restore(self, directory: Any, args: Any = None) -> Any:
    raise NotImplementedError("`stored_arrays` reads checkpoints")


@ocp.args.register_with_handler(_InfoHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _InfoSave(ocp.args.CheckpointArgs):
  """An info without its digests, and the arrays that they are of."""

  info: dict[str, Any]
  items: dict[str, dict[stored.Path, np.ndarray]]


def _copies(items):
  """Items in memory of their own, which no step will take; in one process."""
  if jax.process_index():
    return {}
  for leaf in jax.tree.leaves(items):
    if isinstance(leaf, jax.Array):
      leaf.copy_to_host_async()  # All are on their way before one is there.
  return {
    name: {path: np.array(leaf) for path, leaf in stored.flatten(tree).items()}
    for name, tree in items.items()
  }


def _hush_orbax():
  """Has Orbax not print pages about errors that it raises as well.

  Its threads log them, with tracebacks; so does asyncio, for each of the writes
  that Orbax no longer waits for. Those that end even later tell an event loop
  that is closed, which is a traceback each.
  """
  if os.environ.get("ESRGAN_JAX_TRACEBACK"):
    return
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(_is_news)
  if not isinstance(sys.unraisablehook, _Unraisable):
    sys.unraisablehook = _Unraisable(sys.unraisablehook)


def _is_news(record):
  if not record.exc_info:
    return True
  # A future that nobody waits for is told of by asyncio, which knows of Orbax
  # by the traceback alone.
  _, _, stack = record.exc_info
  files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(stack))
  places = (record.pathname, record.getMessage(), *files)
  return not any("orbax" in place for place in places)


class _Unraisable:
  def __init__(self, otherwise):
    self._otherwise = otherwise

  def __call__(self, unraisable):
    error = unraisable.exc_value
    late = isinstance(error, RuntimeError) and "loop is closed" in str(error)
    if not late:
      self._otherwise(unraisable)
