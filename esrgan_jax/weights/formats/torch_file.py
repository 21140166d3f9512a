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
import functools
import io
import math
import os
import pathlib
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.weights.formats import limits
from esrgan_jax.weights.formats.limits import Budget, DamagedFileError, need
from esrgan_jax.weights.formats.zip_file import StoredZip

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# By the names of their classes, of `torch`, `torch.cuda` or `torch.storage`.
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
  "ComplexFloatStorage": "c8",
  "ComplexDoubleStorage": "c16",
  "QInt8Storage": "i1",
  "QUInt8Storage": "u1",
  "QInt32Storage": "i4",
  "UntypedStorage": "u1",
}
_FLOATS8 = tuple(
  f"float8_{form}"
  for form in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
)
# Of tensors that say their type themselves; what is no NumPy type, as bytes.
_UNTYPED = {
  **{"uint16": "u2", "uint32": "u4", "uint64": "u8"},
  **dict.fromkeys(_FLOATS8, "u1"),
}
_DTYPES = (
  *("float32", "float16", "float64", "bfloat16"),
  *("int64", "int32", "int16", "int8", "uint8", "bool"),
  *("complex32", "complex64", "complex128", "float4_e2m1fn_x2"),
  *_UNTYPED,
  *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
  *("qint8", "quint8", "qint32", "quint4x2", "quint2x4"),
  *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
)
# What is called, and with what, takes more bytes than that.
_CALL_STEPS = 10


class UnsafeFileError(ValueError):
  """The file asks for a function or an instruction that is not allowed."""


def read_torch(path: str | os.PathLike[str]) -> dict[str, Any]:
  r"""Returns what `torch.save` wrote, without PyTorch and running nothing.

  Args:
    path: A `.pth` or `.pt` file, of any PyTorch since 0.4.

  Returns:
    The saved dict: arrays for tensors (bfloat16 widened to float32, other types
    as they are, quantised ones as integers; views, not to be written to),
    dicts, lists, tuples, strings and numbers for themselves. What else states
    of optimizers and schedulers hold is plain, too: a dict for a
    `collections.Counter`, a list for a set, text for a device, and for what is
    no array, such as a sparse tensor; bytes may be text. Keys of dicts are
    text, of numbers their digits. Values may share parts and hold themselves:
    walk them with care.

  Raises:
    UnsafeFileError: If the file would call anything that PyTorch's own
      restricted loader (`weights_only=True`) does not take; it names what.
    DamagedFileError: If the file is truncated or its parts disagree.
    ValueError: If it is a TorchScript archive, holds no dict, or is larger than
      any checkpoint of ours (`limits`).

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
  data = limits.read_file(pathlib.Path(path))
  tree = _read_zip(data) if data[:2] == b"PK" else _read_legacy(data)
  if not isinstance(tree, dict):
    raise ValueError(
      f"the file holds a {type(tree).__name__.lstrip('_').lower()}, not a dict"
      " of named tensors: save model.state_dict(), not the model"
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


# What makes a tensor that is no array here, and the text that stands for it.
_NO_ARRAYS = {
  "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
  "torch._utils._rebuild_nested_tensor": "a nested tensor",
  "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without data",
  "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
  "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of a device",
}
# Source: pytorch `torch/_weights_only_unpickler.py::_get_allowed_globals`.
_ALLOWED = {
  "collections.OrderedDict",
  "collections.Counter",
  "_codecs.encode",
  "builtins.bytearray",
  "builtins.complex",
  "builtins.set",
  "torch._tensor._rebuild_from_type_v2",
  "torch._utils._rebuild_tensor",
  "torch._utils._rebuild_tensor_v2",
  "torch._utils._rebuild_tensor_v3",
  "torch._utils._rebuild_qtensor",
  "torch._utils._rebuild_parameter",
  "torch._utils._rebuild_parameter_with_state",
  "torch._utils._rebuild_device_tensor_from_cpu_tensor",
  *_NO_ARRAYS,
  "torch.nn.parameter.Parameter",
  "torch.serialization._get_layout",
  "torch.Tensor",
  "torch.Size",
  "torch.device",
  "torch.storage.TypedStorage",
  *(
    f"torch.{place}{s}"
    for place in ("", "cuda.", "storage.")
    for s in _STORAGES
  ),
  *(f"torch.{d}" for d in _DTYPES),
  *(
    f"torch.per_{of}_{how}"
    for of in ("tensor", "channel")
    for how in ("affine", "symmetric")
  ),
  "torch.per_channel_affine_float_qparams",
}


def _is_count(value: object) -> bool:
  return type(value) is int and 0 <= value < 2**48


def _name(module: object, name: object) -> _Global:
  """Admits a name that the pickle wants to import, or refuses it."""
  need(isinstance(module, str) and isinstance(name, str), "a name is no text")
  full = f"{module}.{name}"
  if module == "__builtin__":  # What Python 2 calls it, as protocol 2 does.
    full = f"builtins.{name}"
  if full not in _ALLOWED:
    raise UnsafeFileError(
      f"refused: {printable(full, limit=80)} (the file asks to call it; nothing"
      " was run). Only tensors and plain containers are read: save the state"
      " dict alone, or as .safetensors"
    )
  return _Global(full)


def _last(name: _Global) -> str:
  return name.name.rpartition(".")[2]


def _storage(pid: object) -> _Storage:
  """Admits a reference to an array: ("storage", type, key, device, size)."""
  need(
    isinstance(pid, tuple)
    and len(pid) in (5, 6)
    and pid[0] == "storage"
    and isinstance(pid[1], _Global)
    and _last(pid[1]) in _STORAGES
    and isinstance(pid[2], str)
    and re.fullmatch(r"[0-9A-Za-z_]{1,64}", pid[2])
    and _is_count(pid[4]),
    "a reference to an array is malformed",
  )
  dtype = _STORAGES[_last(pid[1])]
  size = base_size = pid[4]
  offset = 0
  if len(pid) == 6 and pid[5] is not None:  # A view of another storage.
    view = pid[5]
    need(
      isinstance(view, tuple)
      and len(view) == 3
      and _is_count(view[1])
      and _is_count(view[2])
      and view[1] + view[2] <= base_size,
      "a view of an array lies outside of it",
    )
    offset, size = view[1], view[2]
  return _Storage(pid[2], dtype, size, base_size, offset)


def _call(function: object, args: object, budget: Budget) -> Any:
  """Carries out REDUCE for the names on the list."""
  budget.spend(_CALL_STEPS)
  if not isinstance(function, _Global):
    raise UnsafeFileError(
      f"refused: a call of a {type(function).__name__}; nothing was run"
    )
  need(isinstance(args, tuple), f"{function.name} without arguments")
  match function.name, args:
    case "collections.OrderedDict" | "collections.Counter", ():
      return {}
    case "collections.Counter", (dict() as counts,):
      return counts
    case "collections.OrderedDict", (list() | tuple() as pairs,):
      budget.spend(len(pairs))
      result: dict[str, Any] = {}
      for pair in pairs:
        need(isinstance(pair, (list, tuple)) and len(pair) == 2, "a bad pair")
        _set(result, *pair)
      return result
    case "builtins.set", (list() | tuple() as items,):
      budget.spend(len(items))
      return list(items)
    case "builtins.bytearray" | "_codecs.encode", (str() | bytes() as text, *_):
      return text  # As it stands there: a copy each time may fill any memory.
    case "builtins.complex", (int() | float() as real, int() | float() as imag):
      return complex(real, imag)
    case (
      "torch._utils._rebuild_tensor"
      | "torch._utils._rebuild_tensor_v2"
      | "torch._utils._rebuild_qtensor",
      (_Storage() as storage, offset, tuple(shape), tuple(strides), *_),
    ):
      return _tensor(storage, offset, shape, strides)
    case (
      "torch._utils._rebuild_tensor_v3",
      (
        _Storage() as storage,
        offset,
        tuple(shape),
        tuple(strides),
        _,
        _,
        _Global() as dtype,
        *_,
      ),
    ):
      return _tensor_of(dtype, storage, offset, shape, strides)
    case (
      "torch._tensor._rebuild_from_type_v2",
      (_Global() as rebuild, _, tuple() as inner, _),
    ) if rebuild != function:
      return _call(rebuild, inner, budget)
    case (
      "torch._utils._rebuild_parameter"
      | "torch._utils._rebuild_parameter_with_state"
      | "torch._utils._rebuild_device_tensor_from_cpu_tensor"
      | "torch.nn.parameter.Parameter",
      (_Tensor() as tensor, *_),
    ):
      return tensor
    case name, _ if name in _NO_ARRAYS:
      return _NO_ARRAYS[name]
    case "torch.serialization._get_layout", (str(layout),):
      return layout
    case "torch.Size", (tuple() | list() as size,) if (
      len(size) <= limits.MAX_AXES
    ):
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
  need(
    _is_count(offset)
    and len(shape) == len(strides) <= limits.MAX_AXES
    and all(map(_is_count, shape))
    and all(map(_is_count, strides)),
    "a tensor's offset, shape or strides are malformed",
  )
  count = math.prod(shape)
  last = offset
  for n, stride in zip(shape, strides, strict=True):
    last += (n - 1) * stride
  if count and (last >= storage.size or count > storage.size):
    raise DamagedFileError(
      f"a tensor of shape {shape}, strides {strides} and offset {offset}"
      f" reaches out of its storage of {storage.size} elements"
    )
  return _Tensor(storage, offset, shape, strides)


def _tensor_of(
  dtype: _Global, storage: _Storage, offset: Any, shape: Any, strides: Any
) -> _Tensor | str:
  """A tensor of a type that its storage, which is bytes, does not tell."""
  found = _UNTYPED.get(_last(dtype))
  if found is None or _itemsize(storage.dtype) != 1:
    return f"a tensor of {dtype.name}"
  size = storage.size // _itemsize(found)
  need(not storage.offset, "a tensor looks at bytes through a view")
  typed = dataclasses.replace(storage, dtype=found, size=size, base_size=size)
  return _tensor(typed, offset, shape, strides)


def _set(target: object, key: object, value: object) -> None:
  need(isinstance(target, dict), "an item is set on something not a dict")
  assert isinstance(target, dict)
  # Python hashes numbers to themselves: they can be chosen to collide, which
  # makes a dict quadratic. Strings' hashes nobody knows beforehand.
  if key is None or isinstance(key, (int, float)):
    key = str(key)
  elif isinstance(key, bytes):
    key = key.decode("latin-1")
  elif isinstance(key, (tuple, complex, _Global, _Tensor)):
    # No name of anything that is looked for; its text may have no end.
    key = f"({type(key).__name__.lstrip('_').lower()}, {len(target)})"
  if not isinstance(key, str):
    raise DamagedFileError(f"a dict key is a {type(key).__name__}, not a name")
  if len(key) > limits.MAX_NAME:
    raise DamagedFileError(
      f"a name has {len(key)} characters; the limit is {limits.MAX_NAME}"
    )
  if key in target:
    raise DamagedFileError(f"the name {printable(key)} stands there twice")
  target[key] = value


# Instructions whose argument, decoded by pickletools, is the value itself.
_VALUES = {
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
  *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_SET": list,
  "EMPTY_TUPLE": tuple,
}


class _Stack:
  """The machine's stack, on which groups begin at marks."""

  def __init__(self) -> None:
    self._items: list[Any] = []
    self._marks: list[int] = []

  def push(self, item: Any) -> None:
    self._items.append(item)

  def mark(self) -> None:
    self._marks.append(len(self._items))

  def _holds(self, count: int) -> bool:
    """Whether there are so many items above the last mark."""
    return len(self._items) - count >= (self._marks[-1] if self._marks else 0)

  def pop(self) -> Any:
    need(self._holds(1), "the pickle takes from an empty stack")
    return self._items.pop()

  def top(self, kind: type | None = None) -> Any:
    need(
      self._holds(1) and (kind is None or isinstance(self._items[-1], kind)),
      "the pickle is malformed",
    )
    return self._items[-1]

  def drop(self) -> None:
    """Removes the topmost item or mark."""
    if self._marks and self._marks[-1] == len(self._items):
      self._marks.pop()
    else:
      self.pop()

  def group(self, count: int | None = None) -> list[Any]:
    """Takes the topmost items, by default all above the last mark."""
    if count is None:
      need(self._marks, "the pickle closes what it never opened")
      place = self._marks.pop()
    else:
      need(self._holds(count), "the pickle takes from an empty stack")
      place = len(self._items) - count
    items = self._items[place:]
    del self._items[place:]
    return items

  def done(self) -> bool:
    return not self._items and not self._marks


def _evaluate(
  stream: io.BytesIO, budget: Budget, storages: list[_Storage] | None = None
) -> Any:
  """Carries out one pickle up to its STOP, with inert values only.

  Appends the arrays that it refers to to `storages`; without, there are none.
  """
  stack = _Stack()
  memo: list[Any] = []
  unset = object()

  def set_items(target: dict[str, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
      _set(target, key, value)

  try:
    for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
      budget.spend()
      name = opcode.name
      if name in _VALUES:
        if type(arg) is int and arg.bit_length() > 128:
          raise DamagedFileError(f"a number has {arg.bit_length()} bits")
        stack.push(arg)
      elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE", "PUT"):
        place = len(memo) if name == "MEMOIZE" else int(arg)
        # Picklers count up.
        need(0 <= place <= count, "the pickle stores in a place far away")
        memo.extend([unset] * (place + 1 - len(memo)))
        memo[place] = stack.top()
      elif name in ("BINGET", "LONG_BINGET", "GET"):
        known = 0 <= int(arg) < len(memo) and memo[int(arg)] is not unset
        need(known, "the pickle recalls what it never stored")
        stack.push(memo[int(arg)])
      elif name == "MARK":
        stack.mark()
      elif name in _CONSTANTS:
        stack.push(_CONSTANTS[name]())
      elif name in ("PROTO", "FRAME"):
        pass
      elif name == "TUPLE":
        stack.push(tuple(stack.group()))
      elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack.push(tuple(stack.group(int(name[-1]))))
      elif name == "LIST":
        stack.push(stack.group())
      elif name == "DICT":
        items = stack.group()
        stack.push({})
        set_items(stack.top(), items)
      elif name == "APPEND":
        item = stack.pop()
        stack.top(list).append(item)
      elif name in ("APPENDS", "ADDITEMS"):
        items = stack.group()
        stack.top(list).extend(items)
      elif name == "SETITEM":
        items = stack.group(2)
        set_items(stack.top(dict), items)
      elif name == "SETITEMS":
        items = stack.group()
        set_items(stack.top(dict), items)
      elif name == "GLOBAL":
        stack.push(_name(*str(arg).split(" ", 1)))
      elif name == "STACK_GLOBAL":
        stack.push(_name(*stack.group(2)))
      elif name in ("REDUCE", "NEWOBJ"):
        stack.push(_call(*stack.group(2), budget))
      elif name == "BINPERSID":
        need(storages is not None, "an array where there can be none")
        stack.push(_storage(stack.pop()))
        storages.append(stack.top())
      elif name == "BUILD":
        # `state_dict()` hangs a `_metadata` attribute on its OrderedDict;
        # attributes, of this or of a tensor, are no weights.
        stack.pop()
        has_any = isinstance(stack.top(), (dict, _Tensor))
        need(has_any, "a value that can have no attributes is given some")
      elif name == "POP":
        stack.drop()
      elif name == "STOP":
        result = stack.pop()
        need(stack.done(), "the pickle leaves values behind")
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
    raise DamagedFileError(
      f"the pickle is cut off or malformed: {printable(e)}"
    ) from e
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
  """Turns the tensors of a tree into views of arrays, each read once."""

  def __init__(self, load: Callable[[str], memoryview], order: str, size: int):
    self._load = load
    self._order = order
    self._storages: dict[tuple[str, str], np.ndarray] = {}
    self._count = 0
    self._bytes = limits.MAX_SHARING * size

  def __call__(self, tensor: _Tensor) -> np.ndarray:
    storage = tensor.storage
    key = (storage.key, storage.dtype)
    itemsize = _itemsize(storage.dtype)
    if key not in self._storages:
      raw = self._load(storage.key)
      needed = storage.base_size * itemsize
      if len(raw) < needed:
        raise DamagedFileError(
          f"array {storage.key} has {len(raw)} bytes, {needed} are declared"
        )
      self._storages[key] = _array(raw[:needed], storage, self._order)
    base = self._storages[key]
    self._count += 1
    self._bytes -= math.prod(tensor.shape) * itemsize
    if self._count > limits.MAX_ARRAYS or self._bytes < 0:
      raise DamagedFileError(
        f"the file has over {limits.MAX_ARRAYS} tensors, or they look at its"
        f" bytes more than {limits.MAX_SHARING} times over"
      )
    try:
      # Checks, for one, that no other tensor declared this storage smaller.
      view = np.ndarray(
        tensor.shape,
        base.dtype,
        base,
        (storage.offset + tensor.offset) * base.itemsize,
        tuple(s * base.itemsize for s in tensor.strides),
      )
    except (ValueError, TypeError, OverflowError) as e:
      raise DamagedFileError("a tensor reaches out of its storage") from e
    view.flags.writeable = False
    return view


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
  archive = StoredZip(data)
  names = archive.names
  roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")]
  if any(n.endswith("/constants.pkl") or "/code/" in n for n in names):
    raise ValueError(
      "this is a TorchScript archive, which holds a program; load it in"
      " PyTorch and save its state_dict()"
    )
  if len(roots) != 1:
    raise ValueError(
      f"this zip archive is no PyTorch file: it has {len(roots)} data.pkl"
      f" among {len(names)} files"
    )
  root = roots[0]
  if (size := archive.size(root + "data.pkl")) > limits.MAX_TABLE_BYTES:
    raise DamagedFileError(
      f"data.pkl has {size} bytes; the limit is {limits.MAX_TABLE_BYTES}"
    )
  order = b"little"
  if root + "byteorder" in names:
    order = bytes(archive.read(root + "byteorder")[:9])
  need(order in (b"little", b"big"), f"unknown byte order {order!r}")
  pickled = archive.read(root + "data.pkl")
  tree = _evaluate(io.BytesIO(pickled), Budget(size), [])

  @functools.cache
  def load(key: str) -> memoryview:
    return archive.read(f"{root}data/{key}")

  sign = ">" if order == b"big" else "<"
  return _resolve(tree, _Arrays(load, sign, len(data)))


def _read_legacy(data: bytes) -> Any:
  # Five pickles, then the arrays.
  table = data[: limits.MAX_TABLE_BYTES]
  stream, budget = io.BytesIO(table), Budget(len(table))
  if _evaluate(stream, budget) != _LEGACY_MAGIC:
    raise ValueError(
      "this is a pickle, but not one that torch.save wrote: give a .pth,"
      " .safetensors or ncnn file"
    )
  protocol, info = _evaluate(stream, budget), _evaluate(stream, budget)
  if protocol != _LEGACY_PROTOCOL or not isinstance(info, dict):
    number = protocol if isinstance(protocol, int) else "of an odd kind"
    raise ValueError(f"unknown version {number} of the .pth format")
  if info.get("little_endian") is not True:
    raise ValueError(
      "the .pth file is big-endian: save it again with PyTorch >= 1.6"
    )
  storages: list[_Storage] = []
  tree = _evaluate(stream, budget, storages)
  keys = _evaluate(stream, budget)
  need(isinstance(keys, list), "the list of arrays is malformed")
  sizes: dict[str, int] = {}
  for storage in storages:
    size = _itemsize(storage.dtype)
    if sizes.setdefault(storage.key, size) != size:
      raise DamagedFileError(f"array {storage.key} has two element types")
  arrays: dict[str, memoryview] = {}
  view, position = memoryview(data), stream.tell()
  for key in keys:
    need(isinstance(key, str) and key not in arrays, "an array's name is bad")
    if key not in sizes:
      raise ValueError(f"array {printable(key)} belongs to no tensor")
    need(position + 8 <= len(data), "the file is cut off")
    count = int.from_bytes(data[position : position + 8], "little", signed=True)
    end = position + 8 + count * sizes[key]
    if count < 0 or end > len(data):
      raise DamagedFileError(
        f"the file is cut off: array {key} has {count} elements, but only"
        f" {len(data) - position - 8} bytes are left"
      )
    arrays[key] = view[position + 8 : end]
    position = end

  def load(key: str) -> memoryview:
    if key not in arrays:
      raise DamagedFileError(f"array {key} is missing")
    return arrays[key]

  return _resolve(tree, _Arrays(load, "<", len(data)))
