"""Looks into zip archives that store their files as they are, as PyTorch's do.

The standard library's reader is made for files that one trusts: it raises
errors of a dozen kinds, which differ between versions of Python, and copies
what it reads. Nothing is copied or unpacked here.

Source: PKWARE `APPNOTE.TXT`, 4.3; 4.5.3 for sizes over 4 GB ("Zip64").
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from esrgan_jax.text import printable
from esrgan_jax.weights.formats import limits
from esrgan_jax.weights.formats.limits import DamagedFileError, need

_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ZIP64 = 1  # An extra field's number.
_MAX_VERSION = 63


class _Entry(NamedTuple):
  flags: int
  method: int
  crc: int
  size: int
  raw_name: bytes
  start: int  # Of the local header, after which the bytes follow.


class StoredZip:
  """The files of a zip archive, as views of its bytes.

  Args:
    data: The archive.

  Raises:
    limits.DamagedFileError: If its directory is damaged, names a file twice, or
      has files overlap.

  >>> import io, zipfile
  >>> with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
  ...   archive.writestr("a/version", "3")
  >>> archive = StoredZip(buffer.getvalue())
  >>> archive.names, bytes(archive.read("a/version"))
  (['a/version'], b'3')
  """

  def __init__(self, data: bytes):
    self._data = memoryview(data)
    self._end, count, place = _directory(data)
    need(
      count <= limits.MAX_ARRAYS,
      f"the zip has {count} files; the limit is {limits.MAX_ARRAYS}",
    )
    self._entries: dict[str, _Entry] = {}
    for _ in range(count):
      name, entry, place = _entry(data, place)
      if name in self._entries:
        raise DamagedFileError(f"the zip names {printable(name)} twice")
      self._entries[name] = entry
    last = 0
    for entry in sorted(self._entries.values(), key=lambda e: e.start):
      need(entry.start >= last, "files in the zip overlap")
      last = entry.start + _LOCAL.size + len(entry.raw_name) + entry.size
    need(last <= self._end, "a file in the zip reaches beyond its end")

  @property
  def names(self) -> list[str]:
    """The files' names, in the directory's order."""
    return list(self._entries)

  def size(self, name: str) -> int:
    """Returns the size of a file, in bytes."""
    return self._entries[name].size

  def read(self, name: str) -> memoryview:
    """Returns a file's bytes.

    Args:
      name: One of `names`.

    Raises:
      limits.DamagedFileError: If there is none, it is compressed or encrypted,
        or its checksum differs.
    """
    entry = self._entries.get(name)
    if entry is None:
      raise DamagedFileError(f"the zip lacks {printable(name)}")
    if entry.method or entry.flags & 1:
      raise DamagedFileError(
        f"{printable(name)} is compressed or encrypted; PyTorch stores as it is"
      )
    magic, *_, name_size, extra_size = _unpack(_LOCAL, self._data, entry.start)
    start = entry.start + _LOCAL.size
    if (
      magic != b"PK\3\4"
      or self._data[start : start + name_size] != entry.raw_name
    ):
      raise DamagedFileError(
        f"the zip's directory says {printable(name)} where something else is"
      )
    start += name_size + extra_size
    content = self._data[start : start + entry.size]
    if start + entry.size > self._end or zlib.crc32(content) != entry.crc:
      raise DamagedFileError(f"{printable(name)} is damaged: its CRC differs")
    return content


def _unpack(form: struct.Struct, data, place: int) -> tuple:
  need(
    0 <= place <= len(data) - form.size, "the zip archive is cut off or damaged"
  )
  return form.unpack_from(data, place)


def _directory(data: bytes) -> tuple[int, int, int]:
  """Returns the directory's end, its number of entries, and its start."""
  # The end's record may be followed by a comment of 64 KB.
  place = data.rfind(b"PK\5\6", max(0, len(data) - _END.size - 2**16))
  need(place >= 0, "the zip archive is cut off: its directory is missing")
  _, _, _, _, count, size, start, _ = _unpack(_END, data, place)
  locator = place - _END_64_LOCATOR.size
  if data[max(locator, 0) : place][:4] == b"PK\6\7":
    _, _, place, _ = _unpack(_END_64_LOCATOR, data, locator)
    magic, *_, count, size, start = _unpack(_END_64, data, place)
    need(magic == b"PK\6\6", "the zip archive's end is damaged")
  need(start + size <= place, "the zip archive's directory is cut off")
  need(count * _ENTRY.size <= size, "the zip archive's directory is cut off")
  return start, count, start


def _entry(data: bytes, place: int) -> tuple[str, _Entry, int]:
  """Returns a file's name, what the directory says, and the next place."""
  fields = _unpack(_ENTRY, data, place)
  magic, _, version, flags, method, _, _, crc, packed, size = fields[:10]
  name_size, extra_size, comment_size, *_, start = fields[10:]
  need(magic == b"PK\1\2", "the zip archive's directory is damaged")
  if version > _MAX_VERSION:
    raise DamagedFileError(f"version {version / 10} of zip is unknown")
  place += _ENTRY.size
  raw_name = data[place : place + name_size]
  extra = data[place + name_size : place + name_size + extra_size]
  wide = _zip64(extra)
  sizes = []
  for value in (size, packed, start):  # In the order of the extra field.
    if value == 2**32 - 1:
      need(len(wide) >= 8, "the zip archive's directory is damaged")
      value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
    sizes.append(value)
  size, packed, start = sizes
  need(
    method != 0 or packed == size, "a file in the zip has two different sizes"
  )
  need(name_size <= limits.MAX_NAME, "a name in the zip is too long")
  try:
    name = raw_name.decode("utf-8" if flags & 0x800 else "cp437")
  except UnicodeDecodeError as e:
    raise DamagedFileError("a name in the zip is not UTF-8") from e
  entry = _Entry(flags, method, crc, packed, raw_name, start)
  return name, entry, place + name_size + extra_size + comment_size


def _zip64(extra: bytes) -> bytes:
  """Returns the numbers that do not fit the directory."""
  place = 0
  while place + 4 <= len(extra):
    kind, size = struct.unpack_from("<2H", extra, place)
    place += 4 + size
    if kind == _ZIP64:
      return extra[place - size : place]
  return b""
