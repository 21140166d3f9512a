"""Keeps what training measures: a line of JSON a time, and TensorBoard's files.

`metrics.jsonl` is what the report reads. Resuming drops the lines that the
resumed run will write again, so that its curves are those of a run that was
never interrupted. TensorBoard's files, which have the sample pictures too, are
written where it is installed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from esrgan_jax import storage
from esrgan_jax.report import event_file

__all__ = ["FILENAME", "MetricLog", "read_metrics", "read_phase"]

FILENAME = "metrics.jsonl"


class MetricLog:
  """Writes metrics to a folder; in processes other than the first, nothing.

  Args:
    folder: Where to write; made if needed.
    step: The step that training goes on from: what was logged after it is
      dropped. 0 begins anew.
    measured: Whether what was evaluated at that step is known; if not, it is
      evaluated again, and its line is dropped.
    tensorboard: Whether to write TensorBoard's files as well; None means if
      it is installed.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with MetricLog(folder, tensorboard=False) as log:
  ...     log.write(1, {"g/loss": 0.5})
  ...     log.write(2, {"g/loss": 0.25})
  ...   with MetricLog(folder, 1, tensorboard=False) as log:
  ...     log.write(2, {"g/loss": 0.125})
  ...   read_metrics(folder)
  [{'step': 1, 'g/loss': 0.5}, {'step': 2, 'g/loss': 0.125}]
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    step: int = 0,
    *,
    measured: bool = True,
    tensorboard: bool | None = None,
  ):
    self._file = self._events = None
    self._path = epath.Path(folder) / FILENAME
    self._lines: list[str] = []
    if jax.process_index():
      return
    # Objects in a bucket cannot be added to: `flush` writes them anew.
    self._remote = storage.is_remote(folder)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._has_events = (
      event_file.is_available() if tensorboard is None else tensorboard
    )
    self.rewind(step, measured=measured)

  def __enter__(self) -> MetricLog:
    """Returns itself."""
    return self

  def __exit__(self, *_: object) -> None:
    """Closes the log."""
    self.close()

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Adds a line.

    Args:
      step: The step that was measured.
      metrics: Scalars by name; what is not finite becomes null.
    """
    if jax.process_index():
      return
    values = {name: float(np.asarray(v)) for name, v in metrics.items()}
    plain = {k: v if math.isfinite(v) else None for k, v in values.items()}
    line = json.dumps({"step": int(step), **plain}, allow_nan=False) + "\n"
    if self._remote:
      self._lines.append(line)
    else:
      self._file.write(line)
      self._file.flush()
    if self._events:
      self._events.write_scalars(int(step), values)

  def write_picture(self, step: int, name: str, png: bytes) -> None:
    """Adds a picture, for TensorBoard.

    Args:
      step: The step that it shows.
      name: What it shows.
      png: A PNG file's content.
    """
    if self._events:
      self._events.write_picture(int(step), name, png)

  def rewind(self, step: int, *, measured: bool = True) -> None:
    """Drops what was logged after a step, and a line cut short by a crash.

    Args:
      step: The last step to keep.
      measured: Whether to keep what was evaluated at it.
    """
    if jax.process_index():
      return
    self.flush()
    if self._file:
      self._file.close()
    if self._events:
      self._events.close()
    text = self._path.read_text() if self._path.exists() else ""
    kept = [
      line + "\n"
      for line in text.splitlines()
      if (entry := _parse(line))
      and entry["step"] <= step
      and (measured or entry["step"] < step or not _is_evaluation(entry))
    ]
    if "".join(kept) != text:
      storage.write_whole(self._path, "".join(kept), overwrite=True)
    if self._remote:
      self._lines = kept
    else:
      self._file = open(self._path, "a")  # noqa: SIM115
    if self._has_events:
      entries = map(_parse, kept)
      self._events = event_file.EventFile(
        self._path.parent,
        step=step,
        scalars=_by_step(entry for entry in entries if entry),
      )

  def flush(self) -> None:
    """Makes sure that all is written; a bucket has nothing before that."""
    if self._lines:
      storage.write_whole(self._path, "".join(self._lines), overwrite=True)
    if self._events:
      self._events.flush()

  def close(self) -> None:
    """Writes what is left, and ends."""
    self.flush()
    if self._file:
      self._file.close()
    if self._events:
      self._events.close()
      self._events = None


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads the lines of a folder's log, in the order of their steps.

  Args:
    folder: The folder that a `MetricLog` writes to.

  Returns:
    A dict a line: `step` and numbers, None for what was not finite. Empty if
    there is no log.

  >>> read_metrics("/nowhere")
  []
  """
  path = epath.Path(folder) / FILENAME
  if not path.exists():
    return []
  entries = [_parse(line) for line in path.read_text().splitlines()]
  return sorted(filter(None, entries), key=lambda entry: entry["step"])


def read_phase(folder: epath.Path) -> list[dict[str, Any]]:
  """Reads a phase's log, which may be in `metrics/` below.

  Args:
    folder: The phase's.

  >>> read_phase(epath.Path("/nowhere"))
  []
  """
  return read_metrics(folder) or read_metrics(folder / "metrics")


def _is_evaluation(entry: Mapping[str, Any]) -> bool:
  return any(key.startswith("eval/") for key in entry)


def _parse(line: str) -> dict[str, Any] | None:
  """Returns a line's content, or None if it is no line of ours."""
  try:
    entry = json.loads(line)
  except ValueError:
    return None
  whole = isinstance(entry, dict) and isinstance(entry.get("step"), int)
  return entry if whole else None


def _by_step(
  entries: Iterable[Mapping[str, Any]],
) -> dict[int, dict[str, float]]:
  """Returns lines' numbers by step; not finite where there was none."""
  found: dict[int, dict[str, float]] = {}
  for entry in entries:
    values = {k: v for k, v in entry.items() if k != "step"}
    numbers = {k: math.nan if v is None else v for k, v in values.items()}
    found.setdefault(entry["step"], {}).update(numbers)
  return found
