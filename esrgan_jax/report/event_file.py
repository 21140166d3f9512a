"""TensorBoard's event files, as a log that can be cut back to a step.

A run that resumes writes some steps again. TensorBoard would show them twice:
so each start begins a file of its own, with the events before, and removes the
file that held them. No TensorFlow: it takes seconds to import, to write bytes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from esrgan_jax import storage

__all__ = ["EventFile", "is_available"]

_PREFIX = "events.out.tfevents."
_SUFFIX = ".esrgan_jax"


def is_available() -> bool:
  """Returns whether TensorBoard, which brings the format, is installed."""
  return importlib.util.find_spec("tensorboard") is not None


class EventFile:
  """Writes scalars and pictures for TensorBoard.

  Args:
    folder: Where to; other event files of ours in it are replaced.
    step: The last step whose events stay.
    scalars: Of steps up to that, by step: written where no file of ours has
      any event, as in a workdir of TensorFlow's writer.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = EventFile(epath.Path(folder), step=0)
  ...   file.write_scalars(1, {"g/loss": 0.5})
  ...   file.close()
  ...   file = EventFile(epath.Path(folder), step=1)
  ...   file.close()
  ...   [event.step for event in file.events()]
  [0, 1]
  """

  def __init__(
    self,
    folder: epath.Path,
    *,
    step: int,
    scalars: Mapping[int, Mapping[str, float]] | None = None,
  ):
    old = sorted(folder.glob(f"{_PREFIX}*"))
    kept = [event for event in _read(old) if event.step <= step]
    number = time.time_ns()  # Names order files: the newest is the last.
    self._path = folder / f"{_PREFIX}{number}{_SUFFIX}"
    self._remote = storage.is_remote(folder)
    self._pending = bytearray()
    self._written = b""  # What is in a bucket, which cannot be added to.
    if kept:
      for event in kept:
        self._add(event)
    else:
      self._add(_event(0, file_version="brain.Event:2"))
      for at, values in sorted((scalars or {}).items()):
        self.write_scalars(at, values)
    self.flush()
    for path in old:
      with contextlib.suppress(FileNotFoundError):
        path.unlink()

  def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds values of a step, by name."""
    self._add_values(
      step,
      [{"tag": name, "simple_value": value} for name, value in values.items()],
    )

  def write_picture(self, step: int, name: str, png: bytes) -> None:
    """Adds a picture, a PNG file's content."""
    width, height = struct.unpack_from(">II", png, 16)
    image = {
      "width": width,
      "height": height,
      "colorspace": 3,
      "encoded_image_string": png,
    }
    self._add_values(step, [{"tag": name, "image": image}])

  def flush(self) -> None:
    """Makes sure that all is written."""
    if not self._pending:
      return
    if self._remote:
      self._written += bytes(self._pending)
      storage.write_whole(self._path, self._written, overwrite=True)
    else:
      with open(self._path, "ab") as file:
        file.write(self._pending)
    self._pending.clear()

  def close(self) -> None:
    """Writes what is left."""
    self.flush()

  def events(self) -> list[Any]:
    """Returns what has been written, TensorBoard's `Event` messages."""
    return list(_read([self._path]))

  def _add_values(self, step: int, values: list[dict[str, Any]]) -> None:
    self._add(_event(step, summary={"value": values}))
    if not self._remote:  # To be seen at once.
      self.flush()

  def _add(self, event: Any) -> None:
    from tensorboard.summary.writer import record_writer

    record_writer.RecordWriter(_Buffer(self._pending)).write(
      event.SerializeToString()
    )


class _Buffer:
  """As much of a file as a `RecordWriter` needs."""

  def __init__(self, content: bytearray):
    self.write = content.extend


def _event(step: int, **fields: Any) -> Any:
  from tensorboard.compat.proto import event_pb2

  return event_pb2.Event(wall_time=time.time(), step=step, **fields)


def _read(paths: list[epath.Path]) -> Iterator[Any]:
  """Yields the events of our files; one cut short by a crash ends its file."""
  from google.protobuf import message
  from tensorboard.compat.proto import event_pb2

  for path in paths:
    if not os.fspath(path).endswith(_SUFFIX):
      continue
    content, place = path.read_bytes(), 0
    # A record: length, its checksum, the content, its checksum.
    while place + 12 <= len(content):
      (length,) = struct.unpack_from("<Q", content, place)
      end = place + 12 + length
      if end + 4 > len(content):
        break
      try:
        yield event_pb2.Event.FromString(content[place + 12 : end])
      except message.DecodeError:
        break
      place = end + 4
