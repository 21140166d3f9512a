"""Reads groups, names and plain arrays of HDF5 files, as Keras writes them.

HDF5's own library follows what a file says: to other files, to plugins, to
gigabytes of fill values; and a flipped bit can keep it busy for ever, which no
Python code can end (seen once in 1,000 damaged files). What weights take of the
format is little and is read here: version 0 of the superblock with groups as
symbol tables (what h5py writes unless told otherwise), attributes of strings,
and arrays in one piece. Anything else is refused by name.

Source: "HDF5 File Format Specification", version 3.0.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from esrgan_jax.weights.formats import limits
from esrgan_jax.weights.formats.limits import DamagedFileError, need

MAGIC = b"\x89HDF\r\n\x1a\n"

_STEP = 8  # The smallest thing that has a header takes that many bytes.
_UNDEFINED = 2**64 - 1

# Messages of an object's header.
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT = 0x01, 0x03, 0x07, 0x08
_ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0x0C, 0x10, 0x11

_COMPACT, _CONTIGUOUS = 0, 1
_FIXED_STRING, _VARIABLE = 3, 9
_SOFT_LINK = 2

_Messages = dict[int, list[memoryview]]

# IEEE's numbers by their size: fields of bits, and the exponent's bias.
_FLOATS = {
  2: (0, 16, 10, 5, 0, 10, 15),
  4: (0, 32, 23, 8, 0, 23, 127),
  8: (0, 64, 52, 11, 0, 52, 1023),
}


class Dataset:
  """An array in an HDF5 file; nothing is read yet.

  Attributes:
    shape: Its shape.
    dtype: NumPy's name for its numbers, such as `"<f4"`; None if they are no
      floats.
  """

  def __init__(self, file: _File, messages: _Messages):
    self._file = file
    self._messages = messages
    self.shape = _shape(_only(messages, _DATASPACE, "a dataspace"))
    self.dtype = _float(_only(messages, _DATATYPE, "a type"))

  def read(self) -> np.ndarray:
    """Returns a view of the array, not to be written to.

    Raises:
      limits.DamagedFileError: If its bytes are not in this file in one piece:
        chunked, compressed, in another file, or never written.
    """
    need(self.dtype, "its numbers are no floats")
    size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
    need(_EXTERNAL not in self._messages, "its values are in another file")
    layout = _only(self._messages, _LAYOUT, "a layout")
    version, kind = _unpack("<2B", layout, 0)
    if version != 3 or kind not in (_COMPACT, _CONTIGUOUS):
      raise DamagedFileError(
        "it is in chunks, compressed or virtual: write it in one piece"
        " (h5repack -l CONTI -f NONE)"
      )
    if kind == _COMPACT:
      (length,) = _unpack("<H", layout, 2)
      raw = layout[4 : 4 + length]
    else:
      start, length = _unpack("<2Q", layout, 2)
      need(start != _UNDEFINED, "its values were never written")
      raw = self._file.view(start, length)
    if length != size or len(raw) != size:
      raise DamagedFileError(f"{size} bytes are declared, and {length} there")
    return np.frombuffer(raw, self.dtype).reshape(self.shape)


class Group:
  """A folder in an HDF5 file: names to groups and datasets."""

  def __init__(self, file: _File, messages: _Messages):
    self._file = file
    self._messages = messages
    table = _only(messages, _SYMBOL_TABLE, "a table of names")
    self._links = file.links(*_unpack("<2Q", table, 0))

  @property
  def names(self) -> list[str]:
    """What is in it, in the file's order (by name)."""
    return list(self._links)

  def get(self, path: str) -> Group | Dataset | None:
    """Returns what a path leads to; None if it leads nowhere.

    Raises:
      limits.DamagedFileError: If it goes over a link, or what is there is
        damaged.
    """
    found: Group | Dataset | None = self
    for name in path.split("/"):
      if not isinstance(found, Group) or name not in found._links:
        return None
      found = found._file.open(found._links[name])
    return found

  def strings(self, name: str) -> list[str] | None:
    """Returns an attribute of strings; None if there is none.

    Raises:
      limits.DamagedFileError: If it holds something else.
    """
    for raw in self._messages.get(_ATTRIBUTE, ()):
      if (found := self._file.attribute(raw, name)) is not None:
        return found
    return None


def read_hdf5(data: bytes) -> Group:
  """Opens an HDF5 file.

  Args:
    data: The file.

  Returns:
    Its outermost group.

  Raises:
    limits.DamagedFileError: If it is damaged, or in another version of the
      format.

  >>> import io, h5py
  >>> with h5py.File(buffer := io.BytesIO(), "w") as file:
  ...   file["layer/bias"] = np.ones(2, np.float32)
  >>> root = read_hdf5(buffer.getvalue())
  >>> root.names, root.get("layer/bias").read()
  (['layer'], array([1., 1.], dtype=float32))
  """
  need(data.startswith(MAGIC), "this is no HDF5 file")
  (version,) = _unpack("<B", data, 8)
  if version > 1:
    raise DamagedFileError(
      f"version {version} of HDF5's superblock cannot be read: write the file"
      " as Keras does, without libver='latest'"
    )
  _, _, _, _, _, offsets, lengths = _unpack("<7B", data, 8)
  base, _, end, _, _, root = _unpack("<6Q", data, 24 + 4 * version)
  need(
    (offsets, lengths, base) == (8, 8, 0) and end <= len(data),
    "the HDF5 file is cut off or damaged",
  )
  group = _File(data).open(root)
  need(isinstance(group, Group), "the HDF5 file has no groups")
  assert isinstance(group, Group)
  return group


class _File:
  """The file's bytes, and the steps that are left to walk them."""

  def __init__(self, data: bytes):
    self._data = memoryview(data)
    self._budget = limits.Budget(len(data))
    self._heaps: dict[int, dict[int, memoryview]] = {}

  def view(self, start: int, length: int) -> memoryview:
    need(
      start + length <= len(self._data), "the HDF5 file is cut off or damaged"
    )
    return self._data[start : start + length]

  def unpack(self, form: str, place: int) -> tuple:
    self._budget.spend(_STEP)
    return _unpack(form, self._data, place)

  def open(self, place: int) -> Group | Dataset:
    """Reads an object's header."""
    need(place != _UNDEFINED, "it is a link to somewhere else")
    version, _, count, _, size = self.unpack("<2BH2L", place)
    need(version == 1, f"version {version} of an object's header is unknown")
    blocks = [(place + 16, size)]
    messages: _Messages = {}
    for start, length in blocks:  # Grows by continuations.
      end = start + length
      while start + 8 <= end and count:
        kind, size, flags = self.unpack("<2HB", start)
        raw = self.view(start + 8, size)
        self._budget.spend(size)
        start, count = start + 8 + size, count - 1
        need(start <= end, "an object's header is damaged")
        if kind == _CONTINUATION:
          blocks.append(_unpack("<2Q", raw, 0))
        else:
          # Its content may be elsewhere in the file, shared with others.
          messages.setdefault(kind, []).append(raw[:0] if flags & 2 else raw)
    if _SYMBOL_TABLE in messages:
      return Group(self, messages)
    return Dataset(self, messages)

  def links(self, tree: int, heap: int) -> dict[str, int]:
    """Returns where a group's members are, by name."""
    magic, size, _, start = self.unpack("<4s4x3Q", heap)
    need(magic == b"HEAP", "a group of the HDF5 file is damaged")
    names = self.view(start, size)
    found: dict[str, int] = {}
    nodes = [tree]
    while nodes:
      place = nodes.pop()
      magic, kind, _, count = self.unpack("<4s2BH", place)
      if magic == b"TREE" and kind == 0:
        # Keys and children alternate, from a key on.
        for i in reversed(range(count)):
          nodes += self.unpack("<Q", place + 32 + 16 * i)
        continue
      need(magic == b"SNOD", "a group of the HDF5 file is damaged")
      for i in range(count):
        offset, target, cache = self.unpack("<2QL", place + 8 + 40 * i)
        name = _text(_until_zero(names[offset : offset + limits.MAX_NAME]))
        need(name not in found, "a group names a member twice")
        found[name] = _UNDEFINED if cache == _SOFT_LINK else target
    return found

  def attribute(self, raw: memoryview, name: str) -> list[str] | None:
    """Returns an attribute's strings if it has this name."""
    version, _, *sizes = _unpack("<2B3H", raw, 0)
    need(version in (1, 2, 3), "an attribute is of an unknown version")
    place = 9 if version == 3 else 8
    parts = []
    for size in sizes:
      parts.append(raw[place : place + size])
      place += -(-size // 8) * 8 if version == 1 else size
    if _until_zero(parts[0]) != name.encode():
      return None
    count = math.prod(_shape(parts[2]))
    head, bits, _, _, size = _unpack("<4BL", parts[1], 0)
    kind, values = head & 15, raw[place:]
    need(count <= limits.MAX_NAME, f"{name} has {count} items")
    if not count:  # An empty list is one of numbers to h5py.
      return []
    need(size and count * size <= len(values), f"{name} is cut off")
    pieces = [values[i * size : (i + 1) * size] for i in range(count)]
    if kind == _FIXED_STRING:
      return [_text(_until_zero(piece).rstrip(b" ")) for piece in pieces]
    need(kind == _VARIABLE and bits & 15 == 1, f"{name} is no list of names")
    return [_text(self._variable(piece)) for piece in pieces]

  def _variable(self, piece: memoryview) -> memoryview:
    """Returns a string of the heap that all objects share."""
    length, heap, index = _unpack("<LQL", piece, 0)
    if heap not in self._heaps:
      self._heaps[heap] = self._heap(heap)
    found = self._heaps[heap].get(index, piece[:0])
    need(length <= len(found), "a string of the HDF5 file is missing")
    return found[:length]

  def _heap(self, place: int) -> dict[int, memoryview]:
    magic, size = self.unpack("<4s4xQ", place)
    need(magic == b"GCOL", "a string of the HDF5 file is missing")
    end, place = place + size, place + 16
    found: dict[int, memoryview] = {}
    while place + 16 <= end:
      index, length = self.unpack("<H6xQ", place)
      if index == 0:  # What is left is free.
        break
      found[index] = self.view(place + 16, length)
      place += 16 + -(-length // 8) * 8
    return found


def _unpack(form: str, data: bytes | memoryview, place: int) -> tuple:
  need(
    place + struct.calcsize(form) <= len(data),
    "the HDF5 file is cut off or damaged",
  )
  return struct.unpack_from(form, data, place)


def _only(messages: _Messages, kind: int, what: str) -> memoryview:
  found = messages.get(kind, [])
  need(len(found) == 1 and found[0], f"an object has not {what} of its own")
  return found[0]


def _until_zero(raw: memoryview) -> bytes:
  return bytes(raw).split(b"\0", 1)[0]


def _text(raw: bytes | memoryview) -> str:
  if len(raw) > limits.MAX_NAME:
    raise DamagedFileError(
      f"a name has {len(raw)} bytes; the limit is {limits.MAX_NAME}"
    )
  return bytes(raw).decode("utf-8", "replace")


def _shape(raw: memoryview) -> tuple[int, ...]:
  """Reads a dataspace."""
  version, rank, _, kind = _unpack("<4B", raw, 0)
  need(version in (1, 2), "a dataspace is of an unknown version")
  need(rank <= limits.MAX_AXES, f"an array has {rank} axes")
  if version == 2 and kind == 2:
    return (0,)
  return _unpack(f"<{rank}Q", raw, 8 if version == 1 else 4)


def _float(raw: memoryview) -> str | None:
  """Reads a datatype; None if it is no IEEE float."""
  head, bits, sign, _, size = _unpack("<4BL", raw, 0)
  if head & 15 != 1 or size not in _FLOATS:
    return None
  fields = _unpack("<2H4BL", raw, 8)
  # Bit 5: the mantissa's first bit is implied; bit 0: the order of bytes.
  if fields != _FLOATS[size] or bits & ~1 != 0x20 or sign != 8 * size - 1:
    return None
  return f"{'>' if bits & 1 else '<'}f{size}"
