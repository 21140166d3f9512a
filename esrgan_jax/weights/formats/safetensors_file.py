"""Reads and writes `.safetensors` files: a JSON header and raw arrays, no code.

The header's length (8 bytes), the header, then the arrays without gaps. The
`safetensors` package would do, but for two things: it hands the arrays over in
another order each time, and writes the metadata so, which leaves equal models
in unequal files.

Source: huggingface/safetensors `README.md`, section Format; `tensor.rs`.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.weights.formats import limits
from esrgan_jax.weights.formats.limits import DamagedFileError, need

_DTYPES = {
  "F64": "<f8",
  "F32": "<f4",
  "F16": "<f2",
  "BF16": "<u2",
  "I64": "<i8",
  "I32": "<i4",
  "I16": "<i2",
  "I8": "i1",
  "U8": "u1",
  "BOOL": "?",
}
_METADATA = "__metadata__"


def read_safetensors(
  path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the arrays of a `.safetensors` file and its metadata.

  Args:
    path: The file.

  Returns:
    Name to array, in the header's order (bfloat16 widened to float32, other
    types as they are; views, not to be written to), and the strings that the
    writer left in the header.

  Raises:
    limits.DamagedFileError: If the file is cut off or contradicts itself.
    ValueError: If it is larger than any of ours (`limits`), or holds a type
      that no weights of one have, such as float8.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "a.safetensors")
  ...   _ = path.write_bytes(to_bytes({"a": np.ones(2)}, {"scale": "4"}))
  ...   read_safetensors(path)
  ({'a': array([1., 1.])}, {'scale': '4'})
  """
  return parse(limits.read_file(pathlib.Path(path)))


def parse(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Does what `read_safetensors` does, with a file's bytes.

  >>> parse(to_bytes({}, {"scale": "4"}))
  ({}, {'scale': '4'})
  """
  size = int.from_bytes(data[:8], "little")
  need(8 + size <= len(data), "the .safetensors file is damaged: it is cut off")
  if size > limits.MAX_TABLE_BYTES:
    raise DamagedFileError(
      f"the header has {size} bytes; the limit is {limits.MAX_TABLE_BYTES}"
    )
  header = _header(data[8 : 8 + size])
  metadata = header.pop(_METADATA, None) or {}
  need(
    isinstance(metadata, dict)
    and all(isinstance(value, str) for value in metadata.values()),
    "the .safetensors file is damaged: its metadata are no strings",
  )
  need(
    len(header) <= limits.MAX_ARRAYS,
    f"the file has over {limits.MAX_ARRAYS} arrays",
  )
  arrays, spans = {}, []
  for name, entry in header.items():
    arrays[name], span = _array(name, entry, data, 8 + size)
    spans.append(span)
  end = 8 + size
  for start, stop in sorted(spans):
    need(start == end, "the .safetensors file is damaged: arrays overlap")
    end = stop
  need(
    end == len(data),
    "the .safetensors file is damaged: its arrays end before the file",
  )
  return arrays, metadata


def to_bytes(
  arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> bytes:
  """Returns a `.safetensors` file; equal arguments give equal bytes.

  Args:
    arrays: Name to array, of float32 or float16 (or another type of NumPy's
      that the format has).
    metadata: Strings for the header.

  Returns:
    The file: the largest types first, then by name, as the format's own writer
    orders them.

  Raises:
    ValueError: If the format has no such type.

  >>> one = to_bytes({"a": np.ones(2), "b": np.ones(1)}, {"x": "1", "y": "2"})
  >>> one == to_bytes({"b": np.ones(1), "a": np.ones(2)}, {"y": "2", "x": "1"})
  True
  """
  kinds = {np.dtype(v): k for k, v in _DTYPES.items() if k != "BF16"}
  order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
  header: dict[str, Any] = {}
  if metadata:
    header[_METADATA] = {k: metadata[k] for k in sorted(metadata)}
  parts, end = [], 0
  for name in order:
    array = arrays[name]
    if not (kind := kinds.get(array.dtype.newbyteorder("<"))):
      raise ValueError(f"{printable(name)} has type {array.dtype}")
    start, end = end, end + array.nbytes
    header[name] = {
      "dtype": kind,
      "shape": list(array.shape),
      "data_offsets": [start, end],
    }
    flat = np.ascontiguousarray(array, _DTYPES[kind]).reshape(-1)
    parts.append(flat.view(np.uint8).data)
  text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
  # Names of files, in metadata, need not be text.
  head = text.encode("utf-8", "replace")
  head += b" " * (-len(head) % 8)
  return b"".join([len(head).to_bytes(8, "little"), head, *parts])


def _header(raw: bytes) -> dict[str, Any]:
  """Reads the header's JSON; numbers are whole, and no name stands twice."""

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    need(len(found) == len(pairs), "a name stands twice")
    return found

  def refuse(text: str) -> None:
    raise DamagedFileError(f"{printable(text, limit=40)} stands in it")

  try:
    need(raw[:1] == b"{", "it is no JSON object")
    header = json.loads(
      raw.decode("utf-8"),
      object_pairs_hook=unique,
      parse_float=refuse,
      parse_constant=refuse,
    )
  except (ValueError, RecursionError) as e:
    raise DamagedFileError(
      f"the .safetensors file is damaged: its header: {printable(e)}"
    ) from e
  return header


def _array(
  name: str, entry: Any, data: bytes, start: int
) -> tuple[np.ndarray, tuple[int, int]]:
  """Returns a view of one array, and where it lies in the file."""
  if len(name) > limits.MAX_NAME:
    raise DamagedFileError(
      f"a name has {len(name)} characters; the limit is {limits.MAX_NAME}"
    )
  match entry:
    case {
      "dtype": str(kind),
      "shape": list(shape),
      "data_offsets": [begin, end],
    } if (
      len(shape) <= limits.MAX_AXES
      and all(type(n) is int for n in (*shape, begin, end))
      and all(0 <= n <= len(data) for n in shape)
      and 0 <= begin <= end <= len(data) - start
    ):
      pass
    case _:
      raise DamagedFileError(
        f"the .safetensors file is damaged: {printable(name)} is malformed, or"
        " lies outside of it"
      )
  if kind not in _DTYPES:
    raise ValueError(
      f"{printable(name)} has type {printable(kind, limit=40)}; supported are"
      f" {', '.join(_DTYPES)}: convert the file to float16 or float32"
    )
  dtype, count = np.dtype(_DTYPES[kind]), math.prod(shape)
  if count * dtype.itemsize != end - begin:
    raise DamagedFileError(
      f"the .safetensors file is damaged: {printable(name)} of shape {shape}"
      f" and type {kind} has {end - begin} bytes"
    )
  array = np.frombuffer(data, dtype, count, start + begin)
  if kind == "BF16":
    array = (array.astype(np.uint32) << 16).view(np.float32)
  return array.reshape(shape), (start + begin, start + end)
