"""Reads PyTorch's `.pth` and `.pt` files without PyTorch, and runs nothing.

Such a file is a pickle (a program for a small stack machine, which may call any
function of any installed package) next to raw arrays. Nothing is unpickled
here. The standard library's disassembler splits the program into instructions,
and the few that build dicts, lists and tensors are carried out by the code
below; any other instruction, and any name that is not on the list, is refused.
So the worst that a hostile file can do is to raise an error.

Two containers exist: the zip archive of PyTorch >= 1.6 and the older sequence
of pickles, which the authors' ESRGAN files still use.

Source: pytorch `torch/serialization.py` (`_save`, `_legacy_save`).
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MAX_FILE_BYTES = 2**31  # RRDBNet takes 67 MB; a full training state 0.3 GB.
MAX_ELEMENTS = 2**29  # In all tensors together: 2 GiB as float32.
MAX_PICKLE_BYTES = 2**23  # That of an RRDBNet takes 0.1 MB.
MAX_INSTRUCTIONS = 2_000_000

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# "bfloat16" is no NumPy type: read as uint16 and widened.
_STORAGES = {
  "FloatStorage": "f4",
  "HalfStorage": "f2",
  "DoubleStorage": "f8",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "i8",
  "IntStorage": "i4",
  "ShortStorage": "i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}
_DTYPES = (
  *("float32", "float16", "float64", "bfloat16"),
  *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


class UnsafeFileError(ValueError):
  """The file asks for a function or an instruction that is not allowed."""


class DamagedFileError(ValueError):
  """The file is cut off, corrupted or contradicts itself."""


def read_torch(path: str | os.PathLike[str]) -> dict[str, Any]:
  r"""Returns what `torch.save` wrote, without PyTorch and running nothing.

  Args:
    path: A `.pth` or `.pt` file, of any PyTorch since 0.4.

  Returns:
    The saved dict: arrays for tensors (bfloat16 widened to float32, other types
    as they are; views, not to be written to), dicts, lists, tuples, strings and
    numbers for themselves.

  Raises:
    UnsafeFileError: If the file would call anything but PyTorch's constructors
      of tensors; it names what.
    DamagedFileError: If the file is truncated or its parts disagree.
    ValueError: If it is a TorchScript archive, holds no dict, or is larger than
      any RRDBNet checkpoint (`MAX_FILE_BYTES`, `MAX_ELEMENTS`).

  Source: pytorch `torch/serialization.py`, `torch/_utils.py`.

  >>> import tempfile
  >>> evil = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "evil.pth")
  ...   _ = path.write_bytes(evil)
  ...   try:
  ...     read_torch(path)
  ...   except UnsafeFileError as e:
  ...     print(str(e)[:18])
  refused: os.system
  """
  path = pathlib.Path(path)
  if (size := path.stat().st_size) > MAX_FILE_BYTES:
    raise ValueError(
      f"{path.name} has {size} bytes; the limit is {MAX_FILE_BYTES}, thirty"
      " times a full RRDBNet"
    )
  data = path.read_bytes()
  try:
    tree = _read_zip(data) if data[:2] == b"PK" else _read_legacy(data)
  except zipfile.BadZipFile as e:
    raise DamagedFileError(f"the zip archive is damaged: {e}") from e
  if not isinstance(tree, dict):
    raise ValueError(
      f"the file holds a {type(tree).__name__}, not a dict of named tensors:"
      " save model.state_dict(), not the model"
    )
  return tree


@dataclasses.dataclass(frozen=True)
class _Global:
  """A name on the list, standing for itself: it is never imported."""

  name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
  """An array in the file that tensors look into; sizes in elements."""

  key: str
  dtype: str
  size: int
  base_size: int
  offset: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
  """A view of a storage, as the pickle describes it."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Mark:
  """Where a group of stack items starts."""


_ALLOWED = {
  "collections.OrderedDict",
  "torch._utils._rebuild_tensor",
  "torch._utils._rebuild_tensor_v2",
  "torch._utils._rebuild_parameter",
  "torch.Size",
  "torch.device",
  *(f"torch.{s}" for s in _STORAGES),
  *(f"torch.{d}" for d in _DTYPES),
}


def _need(condition: object, message: str) -> None:
  if not condition:
    raise DamagedFileError(message)


def _is_count(value: object) -> bool:
  return type(value) is int and 0 <= value < 2**48


def _name(module: object, name: object) -> _Global:
  """Admits a name that the pickle wants to import, or refuses it."""
  full = f"{module}.{name}".replace("__builtin__.", "builtins.")
  if full not in _ALLOWED:
    raise UnsafeFileError(
      f"refused: {full[:80]} (the file asks to call it; nothing was run). Only"
      " tensors and plain containers are read: save the state dict alone, or as"
      " .safetensors"
    )
  return _Global(full)


def _storage(pid: object) -> _Storage:
  """Admits a reference to an array: ("storage", type, key, device, size)."""
  _need(
    isinstance(pid, tuple)
    and len(pid) in (5, 6)
    and pid[0] == "storage"
    and isinstance(pid[1], _Global)
    and pid[1].name.removeprefix("torch.") in _STORAGES
    and isinstance(pid[2], str)
    and re.fullmatch(r"[0-9A-Za-z_]{1,64}", pid[2])
    and _is_count(pid[4]),
    "a reference to an array is malformed",
  )
  dtype = _STORAGES[pid[1].name.removeprefix("torch.")]
  size = base_size = pid[4]
  offset = 0
  if len(pid) == 6 and pid[5] is not None:  # A view of another storage.
    view = pid[5]
    _need(
      isinstance(view, tuple)
      and len(view) == 3
      and _is_count(view[1])
      and _is_count(view[2])
      and view[1] + view[2] <= base_size,
      "a view of an array lies outside of it",
    )
    offset, size = view[1], view[2]
  return _Storage(pid[2], dtype, size, base_size, offset)


def _call(function: object, args: object) -> Any:
  """Carries out REDUCE for the names on the list."""
  if not isinstance(function, _Global):
    raise UnsafeFileError(
      f"refused: a call of a {type(function).__name__}; nothing was run"
    )
  _need(isinstance(args, tuple), f"{function.name} without arguments")
  match function.name, args:
    case "collections.OrderedDict", ():
      return {}
    case "collections.OrderedDict", ([*pairs],):
      result: dict[Any, Any] = {}
      for pair in pairs:
        _need(isinstance(pair, (list, tuple)) and len(pair) == 2, "a bad pair")
        _set(result, *pair)
      return result
    case (
      "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
      (_Storage() as storage, offset, tuple(shape), tuple(strides), *_),
    ):
      return _tensor(storage, offset, shape, strides)
    case "torch._utils._rebuild_parameter", (_Tensor() as tensor, *_):
      return tensor
    case "torch.Size", ((*size,),):
      return tuple(size)
    case "torch.device", (str(kind), *_):
      return kind
  raise UnsafeFileError(
    f"refused: {function.name} with arguments of other kinds than PyTorch"
    " writes; nothing was run"
  )


def _tensor(
  storage: _Storage, offset: Any, shape: Any, strides: Any
) -> _Tensor:
  """Checks that a tensor lies within its storage and is no larger."""
  _need(
    _is_count(offset)
    and len(shape) == len(strides) <= 16
    and all(map(_is_count, shape))
    and all(map(_is_count, strides)),
    "a tensor's offset, shape or strides are malformed",
  )
  count, last = 1, offset
  for n, stride in zip(shape, strides, strict=True):
    count *= n
    last += max(n - 1, 0) * stride
  _need(
    count == 0 or (last < storage.size and count <= storage.size),
    f"a tensor of shape {shape}, strides {strides} and offset {offset} reaches"
    f" out of its storage of {storage.size} elements",
  )
  return _Tensor(storage, offset, shape, strides)


def _set(target: object, key: object, value: object) -> None:
  _need(isinstance(target, dict), "an item is set on something not a dict")
  assert isinstance(target, dict)
  _need(
    isinstance(key, (str, int, float, bool)),
    f"a dict key is a {type(key).__name__}, not a name",
  )
  _need(key not in target, f"the name {str(key)[:80]!r} stands there twice")
  target[key] = value


# Instructions whose argument, decoded by pickletools, is the value itself.
_VALUES = {
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
  *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_TUPLE": tuple,
  "MARK": _Mark,
}


def _evaluate(
  stream: io.BytesIO, storages: list[_Storage] | None = None
) -> Any:
  """Carries out one pickle up to its STOP, with inert values only.

  Appends the arrays that it refers to to `storages`; without, there are none.
  """
  stack: list[Any] = []
  memo: dict[int, Any] = {}

  def pop() -> Any:
    _need(stack, "the pickle takes from an empty stack")
    return stack.pop()

  def group() -> list[Any]:
    """Pops everything above the last mark."""
    items = []
    while not isinstance(item := pop(), _Mark):
      items.append(item)
    return items[::-1]

  def top(kind: type) -> Any:
    _need(stack and isinstance(stack[-1], kind), "the pickle is malformed")
    return stack[-1]

  try:
    for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
      _need(count < MAX_INSTRUCTIONS, f"over {MAX_INSTRUCTIONS} instructions")
      name = opcode.name
      if name in _VALUES:
        stack.append(arg)
      elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name]())
      elif name in ("PROTO", "FRAME"):
        pass
      elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        _need(stack, "the pickle takes from an empty stack")
        memo[len(memo) if name == "MEMOIZE" else int(arg)] = stack[-1]
      elif name in ("GET", "BINGET", "LONG_BINGET"):
        _need(int(arg) in memo, "the pickle recalls what it never stored")
        stack.append(memo[int(arg)])
      elif name == "TUPLE":
        stack.append(tuple(group()))
      elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        items = [pop() for _ in range(int(name[-1]))]
        stack.append(tuple(items[::-1]))
      elif name == "LIST":
        stack.append(group())
      elif name == "DICT":
        items = group()
        stack.append({})
        for key, value in zip(items[::2], items[1::2], strict=True):
          _set(stack[-1], key, value)
      elif name == "APPEND":
        item = pop()
        top(list).append(item)
      elif name == "APPENDS":
        items = group()
        top(list).extend(items)
      elif name == "SETITEM":
        value, key = pop(), pop()
        _set(top(dict), key, value)
      elif name == "SETITEMS":
        items = group()
        for key, value in zip(items[::2], items[1::2], strict=True):
          _set(top(dict), key, value)
      elif name == "GLOBAL":
        stack.append(_name(*str(arg).split(" ", 1)))
      elif name == "STACK_GLOBAL":
        attribute, module = pop(), pop()
        stack.append(_name(module, attribute))
      elif name == "REDUCE":
        args, function = pop(), pop()
        stack.append(_call(function, args))
      elif name == "BINPERSID":
        _need(storages is not None, "an array where there can be none")
        stack.append(_storage(pop()))
        storages.append(stack[-1])
      elif name == "BUILD":
        # `state_dict()` hangs a `_metadata` attribute on its OrderedDict.
        pop()
        top(dict)
      elif name == "POP":
        pop()
      elif name == "STOP":
        result = pop()
        _need(not stack, "the pickle leaves values behind")
        return result
      else:
        raise UnsafeFileError(
          f"refused: the pickle instruction {name}, which no file of tensors"
          " needs; nothing was run"
        )
  except (UnsafeFileError, DamagedFileError):
    raise
  # pickletools warns of odd escapes in names; a warning may be an error.
  except (ValueError, TypeError, IndexError, OverflowError, Warning) as e:
    raise DamagedFileError(f"the pickle is cut off or malformed: {e}") from e
  raise DamagedFileError("the pickle has no end")


def _array(raw: memoryview, storage: _Storage, order: str) -> np.ndarray:
  """Interprets a storage's bytes; bfloat16 is widened to float32."""
  if storage.dtype == "bfloat16":
    bits = np.frombuffer(raw, np.dtype("u2").newbyteorder(order))
    return (bits.astype(np.uint32) << 16).view(np.float32)
  return np.frombuffer(raw, np.dtype(storage.dtype).newbyteorder(order))


def _itemsize(dtype: str) -> int:
  return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


class _Arrays:
  """Turns the tensors of a tree into arrays, each storage read once."""

  def __init__(self, load: Callable[[_Storage], memoryview], order: str):
    self._load = load
    self._order = order
    self._storages: dict[tuple[str, str], np.ndarray] = {}
    self._elements = 0

  def __call__(self, tensor: _Tensor) -> np.ndarray:
    storage = tensor.storage
    key = (storage.key, storage.dtype)
    if key not in self._storages:
      raw = self._load(storage)
      needed = storage.base_size * _itemsize(storage.dtype)
      _need(
        len(raw) >= needed,
        f"array {storage.key} has {len(raw)} bytes, {needed} are declared",
      )
      self._storages[key] = _array(raw[:needed], storage, self._order)
    base = self._storages[key]
    self._elements += (count := int(np.prod(tensor.shape, dtype=np.int64)))
    if self._elements > MAX_ELEMENTS:
      raise ValueError(
        f"the tensors have over {MAX_ELEMENTS} elements, thirty times a full"
        " RRDBNet: not a file of its weights"
      )
    start = storage.offset + tensor.offset
    # Another tensor may have declared this storage larger than it is.
    span = sum(
      (n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)
    )
    if count == 0:
      return np.empty(tensor.shape, base.dtype)
    _need(start + span < len(base), "a tensor reaches out of its storage")
    return np.lib.stride_tricks.as_strided(
      base[start:],
      tensor.shape,
      [s * base.itemsize for s in tensor.strides],
      writeable=False,
    )


def _resolve(tree: Any, arrays: _Arrays) -> Any:
  """Replaces tensors in place, without recursion: nesting is unbounded."""
  root = [tree]
  todo: list[Any] = [root]
  seen: set[int] = set()
  while todo:
    container = todo.pop()
    if id(container) in seen:
      continue
    seen.add(id(container))
    items = (
      list(container.items())
      if isinstance(container, dict)
      else list(enumerate(container))
    )
    for key, value in items:
      if isinstance(value, _Tensor):
        container[key] = arrays(value)
      elif isinstance(value, (dict, list)):
        todo.append(value)
  return root[0]


def _read_zip(data: bytes) -> Any:
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    infos: Mapping[str, zipfile.ZipInfo] = {
      i.filename: i for i in archive.infolist()
    }
    _need(len(infos) == len(archive.infolist()), "the zip names a file twice")
    roots = [n[: -len("data.pkl")] for n in infos if n.endswith("/data.pkl")]
    if any(n.endswith("/constants.pkl") or "/code/" in n for n in infos):
      raise ValueError(
        "this is a TorchScript archive, which holds a program; load it in"
        " PyTorch and save its state_dict()"
      )
    if len(roots) != 1:
      raise ValueError(
        f"this zip archive is no PyTorch file: it has {len(roots)} data.pkl"
        f" among {len(infos)} files"
      )
    budget = len(data)

    def read(name: str) -> bytes:
      nonlocal budget
      _need(name in infos, f"the zip lacks {name}")
      info = infos[name]
      _need(
        info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1,
        f"{name} is compressed or encrypted; PyTorch stores as it is",
      )
      # Members may overlap: together no more than the file holds.
      budget -= info.file_size
      _need(budget >= 0, f"{name} declares more bytes than the file has")
      try:
        return archive.read(info)
      except (EOFError, RuntimeError, NotImplementedError, OSError) as e:
        raise DamagedFileError(f"{name} is cut off: {e}") from e

    root = roots[0]
    pickled = infos[root + "data.pkl"].file_size
    _need(
      pickled <= MAX_PICKLE_BYTES,
      f"data.pkl has {pickled} bytes; the limit is {MAX_PICKLE_BYTES}",
    )
    order = read(root + "byteorder") if root + "byteorder" in infos else b""
    _need(
      order in (b"", b"little", b"big"), f"unknown byte order {order[:9]!r}"
    )
    tree = _evaluate(io.BytesIO(read(root + "data.pkl")), [])
    raw: dict[str, memoryview] = {}

    def load(storage: _Storage) -> memoryview:
      if storage.key not in raw:
        raw[storage.key] = memoryview(read(f"{root}data/{storage.key}"))
      return raw[storage.key]

    return _resolve(tree, _Arrays(load, ">" if order == b"big" else "<"))


def _read_legacy(data: bytes) -> Any:
  stream = io.BytesIO(data)
  magic = _evaluate(stream)
  if magic != _LEGACY_MAGIC:
    raise ValueError(
      "this is a pickle, but not one that torch.save wrote: give a .pth,"
      " .safetensors or ncnn file"
    )
  protocol, info = _evaluate(stream), _evaluate(stream)
  if protocol != _LEGACY_PROTOCOL or not isinstance(info, dict):
    raise ValueError(f"unknown version {str(protocol)[:20]} of the .pth format")
  if info.get("little_endian") is not True:
    raise ValueError(
      "the .pth file is big-endian: save it again with PyTorch >= 1.6"
    )
  storages: list[_Storage] = []
  tree, keys = _evaluate(stream, storages), _evaluate(stream)
  _need(isinstance(keys, list), "the list of arrays is malformed")
  sizes: dict[str, int] = {}
  for storage in storages:
    size = _itemsize(storage.dtype)
    _need(
      sizes.setdefault(storage.key, size) == size,
      f"array {storage.key} has two element types",
    )
  arrays: dict[str, memoryview] = {}
  view, position = memoryview(data), stream.tell()
  for key in keys:
    _need(isinstance(key, str) and key not in arrays, "an array's name is bad")
    if key not in sizes:
      raise ValueError(f"array {key[:64]} belongs to no tensor")
    _need(position + 8 <= len(data), "the file is cut off")
    count = int.from_bytes(data[position : position + 8], "little", signed=True)
    end = position + 8 + count * sizes[key]
    _need(
      count >= 0 and end <= len(data),
      f"the file is cut off: array {key} has {count} elements, but only"
      f" {len(data) - position - 8} bytes are left",
    )
    arrays[key] = view[position + 8 : end]
    position = end

  def load(storage: _Storage) -> memoryview:
    _need(storage.key in arrays, f"array {storage.key} is missing")
    return arrays[storage.key]

  return _resolve(tree, _Arrays(load, "<"))
