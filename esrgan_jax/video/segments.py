"""Parts of a result on the disk: what is finished outlives the process.

A segment is some frames, encoded so that decoding can begin with them. It is a
file of its own: what the encoder said at its beginning, and the packets. A
folder has them by number, and only whole ones: they are written aside.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import pathlib
import shutil
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from esrgan_jax import storage
from esrgan_jax.video.encoding import Encoder, Encoding, Packet
from esrgan_jax.video.errors import VideoError

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None

__all__ = ["Folder", "Writer"]

_MAGIC = b"esrgan_jax segment 1\n"
_PACKET = struct.Struct("<qqIB")  # Time, duration, size, whether it is a key.
_END = struct.Struct("<I")  # CRC-32 of all before it.
# Result pixels of a segment: some seconds' work, or minutes' on a CPU.
_PIXELS = 2**25
_FEWEST, _MOST = 24, 240
_SUFFIX = ".segments"
_LETTERS = 40  # Of a result's name, in that of its folder.


class Folder:
  """The folder of a result's segments.

  Use it as a context, which keeps other processes out.

  Args:
    target: The result that is to be; the folder lies beside it, hidden. Beside
      what a link leads to, if it is one that is to be replaced.
    digest: Of all that the result depends on, in hexadecimal.
    encoding: How frames are encoded.

  Raises:
    VideoError: On entering, if another process is at it.
    OSError: If it cannot be made.
  """

  def __init__(self, target: pathlib.Path, digest: str, encoding: Encoding):
    name = target.name[:_LETTERS]
    if len(target.name) > _LETTERS:  # Others may begin like it.
      whole = hashlib.sha256(os.fsencode(target.name)).hexdigest()
      name = f"{name}.{whole[:8]}"
    self._start = f".{name}."
    if target.exists():  # It may be a link to elsewhere.
      target = pathlib.Path(os.path.realpath(target))
    self.path = target.with_name(f"{self._start}{digest[:16]}{_SUFFIX}")
    self._encoding = encoding
    area = encoding.width * encoding.height
    self.length = min(max(_PIXELS // area, _FEWEST), _MOST)
    self._lock = None

  def __enter__(self) -> Folder:
    # Nobody else's, as a result that is replaced may be.
    self.path.mkdir(mode=0o700, exist_ok=True)
    self._lock = open(self.path / "lock", "ab")
    if fcntl:
      try:
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        self._lock.close()
        raise VideoError(
          f"another process is making this result, in {self.path}; wait for it"
        ) from None
      except OSError:
        pass  # Some network drives have no locks.
      if not self._is_there():
        self._lock.close()
        return self.__enter__()
    for aside in self.path.glob(".*"):  # Of a process that was killed.
      aside.unlink(missing_ok=True)
    return self

  def _is_there(self) -> bool:
    """Tells whether the lock is not of a folder that is removed meanwhile."""
    own = os.fstat(self._lock.fileno())
    with contextlib.suppress(FileNotFoundError):
      return os.path.samestat(own, os.stat(self.path / "lock"))
    return False

  def __exit__(self, *_: object) -> None:
    # Nothing in it but the lock: there is nothing to go on with. Afterwards it
    # may be another's.
    try:
      if self.path.is_dir() and not self.segments():
        self.remove()
    finally:
      self._lock.close()

  def others(self) -> list[pathlib.Path]:
    """Returns folders of the same result by another model or setting."""
    pattern = f"{glob.escape(self._start)}{'[0-9a-f]' * 16}{_SUFFIX}"
    found = sorted(self.path.parent.glob(pattern))
    return [path for path in found if path != self.path]

  def segments(self) -> list[pathlib.Path]:
    """Returns the finished ones, as far as none is missing."""
    found = []
    while (path := self._segment(len(found))).exists():
      found.append(path)
    return found

  def _segment(self, number: int) -> pathlib.Path:
    return self.path / f"{number:06}"

  def finished(self) -> list[int]:
    """Returns the times of the frames that are done, in order.

    What is damaged, or was encoded by another encoder, is removed, and what
    comes after it.
    """
    times: list[int] = []
    head = hashlib.sha256(Encoder(self._encoding).head).digest()
    segments = self.segments()
    for number, path in enumerate(segments):
      try:
        own = [packet.time for packet in read_packets(path, head)]
      except VideoError:
        for each in segments[number:]:
          each.unlink()
        break
      times += sorted(own)
    return times

  def writer(self) -> Writer:
    """Returns what writes further segments."""
    return Writer(self, len(self.segments()), self._encoding)

  def remove(self) -> None:
    """Removes all of it."""
    shutil.rmtree(self.path, ignore_errors=True)


class Writer:
  """Encodes frames into segments; not for several threads at once.

  Args:
    folder: Where they go.
    first: The number of the first.
    encoding: How they are encoded.
  """

  def __init__(self, folder: Folder, first: int, encoding: Encoding):
    self._folder, self._number, self._encoding = folder, first, encoding
    self._open: contextlib.ExitStack | None = None
    self._count = 0

  def add(self, pixels: np.ndarray, time: int, duration: int) -> None:
    """Encodes the next frame; see `Encoder.encode`."""
    if self._open is None:
      self._begin()
    self._write(self._encoder.encode(pixels, time, duration))
    self._count += 1
    if self._count == self._folder.length:
      self.end()

  def end(self) -> None:
    """Finishes the segment that is begun, if one is."""
    if self._open is None:
      return
    self._write(self._encoder.end())
    self._file.write(_END.pack(self._crc))
    stack, self._open = self._open, None
    stack.close()
    self._number += 1

  def abandon(self) -> None:
    """Leaves the segment that is begun; not even its file stays."""
    if self._open is not None:
      stack, self._open = self._open, None
      with contextlib.suppress(_AbandonedError):
        stack.__exit__(_AbandonedError, _AbandonedError(), None)

  def _begin(self) -> None:
    self._encoder = Encoder(self._encoding)
    self._crc, self._count = 0, 0
    stack = contextlib.ExitStack()
    self._file = stack.enter_context(
      storage.written_aside(
        self._folder.path / f"{self._number:06}", overwrite=True
      )
    )
    self._open = stack
    self._put(_MAGIC + hashlib.sha256(self._encoder.head).digest())

  def _write(self, packets: Iterator[Packet]) -> None:
    for packet in packets:
      size = len(packet.data)
      self._put(_PACKET.pack(packet.time, packet.duration, size, packet.is_key))
      self._put(packet.data)

  def _put(self, data: bytes) -> None:
    self._crc = zlib.crc32(data, self._crc)
    self._file.write(data)


class _AbandonedError(Exception):
  """Ends the writing of a segment."""


def read_packets(
  path: str | os.PathLike[str], head: bytes | None = None
) -> Iterator[Packet]:
  """Yields a segment's packets, in the order of decoding.

  Args:
    path: The file.
    head: The digest of what the encoder says; None: any.

  Raises:
    VideoError: If it is damaged, or of another encoder.
  """
  size = os.path.getsize(path) - _END.size
  with open(path, "rb") as file:
    start = file.read(len(_MAGIC) + 32)
    if start[: len(_MAGIC)] != _MAGIC or head not in (None, start[-32:]):
      raise VideoError("a segment of another encoder")
    crc, at = zlib.crc32(start), len(start)
    while at < size:
      record = file.read(_PACKET.size)
      if len(record) < _PACKET.size:
        raise VideoError("a segment that is damaged")
      time, duration, length, is_key = _PACKET.unpack(record)
      if at + _PACKET.size + length > size:
        raise VideoError("a segment that is damaged")
      data = file.read(length)
      crc = zlib.crc32(data, zlib.crc32(record, crc))
      at += len(record) + len(data)
      yield Packet(data, time, duration, bool(is_key))
    if file.read(_END.size) != _END.pack(crc):
      raise VideoError("a segment that is damaged")
