"""Reads `.safetensors` files: a JSON header and raw arrays, no code."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np
import safetensors

MAX_FILE_BYTES = 2**31

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


def read_safetensors(
  path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the arrays of a `.safetensors` file and its metadata.

  Args:
    path: The file.

  Returns:
    Name to array (bfloat16 widened to float32, other types as they are), and
    the strings that the writer left in the header.

  Raises:
    ValueError: If the file is damaged, too large (`MAX_FILE_BYTES`), or holds a
      type that no weights of an RRDBNet have, such as float8.

  Source: huggingface/safetensors `README.md`, section Format.

  >>> import tempfile, safetensors.numpy
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "a.safetensors")
  ...   safetensors.numpy.save_file({"a": np.ones(2)}, path, {"scale": "4"})
  ...   read_safetensors(path)
  ({'a': array([1., 1.])}, {'scale': '4'})
  """
  path = pathlib.Path(path)
  if (size := path.stat().st_size) > MAX_FILE_BYTES:
    raise ValueError(
      f"{path.name} has {size} bytes; the limit is {MAX_FILE_BYTES}, thirty"
      " times a full RRDBNet"
    )
  data = path.read_bytes()
  try:
    tensors = safetensors.deserialize(data)  # Checks every offset and length.
  except safetensors.SafetensorError as e:
    raise ValueError(f"the .safetensors file is damaged: {e}") from e
  header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
  arrays = {name: _array(name, tensor) for name, tensor in tensors}
  return arrays, dict(header.get("__metadata__") or {})


def _array(name: str, tensor: dict[str, Any]) -> np.ndarray:
  if (kind := tensor["dtype"]) not in _DTYPES:
    raise ValueError(
      f"{name} has type {kind}; supported are {', '.join(_DTYPES)}: convert the"
      " file to float16 or float32"
    )
  array = np.frombuffer(tensor["data"], _DTYPES[kind])
  if kind == "BF16":
    array = (array.astype(np.uint32) << 16).view(np.float32)
  return array.reshape(tensor["shape"])
