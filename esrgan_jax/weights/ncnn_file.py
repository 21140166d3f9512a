"""Reads RRDBNet from ncnn's pair of files, `.param` and `.bin`.

The `.param` file is text: a magic number, counts, and one line a layer. The
`.bin` file holds the convolutions' arrays in the order of these lines: a tag
for the number format, the OIHW kernel, the float32 bias. The layers carry no
names of use, so a convolution is known by its place.

Source: Tencent/ncnn wiki, "param and model file structure"; `src/layer/
convolution.cpp::load_model`, `src/modelbin.cpp`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib

import numpy as np

from esrgan_jax.weights import names

MAGIC = "7767517"
MAX_PARAM_BYTES = 2**22  # That of an RRDBNet with 23 blocks takes 0.1 MB.
MAX_BIN_BYTES = 2**31

_FLOAT32_TAG = 0
_FLOAT16_TAG = 0x01306B47
_INT8_TAG = 0x000D4B38

# Layers without arrays; another type would shift everything behind it.
_BARE = {
  *("Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp", "ReLU"),
  *("Noop", "Reorg", "Permute", "Reshape", "PixelShuffle"),
}


@dataclasses.dataclass(frozen=True)
class _Layer:
  kind: str
  name: str
  options: dict[str, str]

  def number(self, key: int, default: float) -> float:
    """Returns option `key`, which may stand once for x and y."""
    text = self.options.get(str(key))
    try:
      return default if text is None else float(text)
    except ValueError as e:
      raise ValueError(f"layer {self.name}: {key}={text[:40]!r}") from e

  def count(self, key: int, default: int = 0) -> int:
    value = self.number(key, default)
    if not (value == int(value) and 0 <= value < 2**31):
      raise ValueError(f"layer {self.name}: {key}={value:g} is no count")
    return int(value)


def find_pair(
  path: str | os.PathLike[str],
) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the `.param` and `.bin` file of a model, given either.

  Args:
    path: One of the two.

  Returns:
    Both, `.param` first.

  Raises:
    FileNotFoundError: If one is missing, naming it.

  >>> find_pair("nowhere/model.bin")
  Traceback (most recent call last):
  ...
  FileNotFoundError: no nowhere/model.param: an ncnn model needs both files
  """
  path = pathlib.Path(path)
  pair = path.with_suffix(".param"), path.with_suffix(".bin")
  for file in pair:
    if not file.is_file():
      raise FileNotFoundError(f"no {file}: an ncnn model needs both files")
  return pair


def read_ncnn(
  path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  r"""Returns an ncnn RRDBNet's arrays under BasicSR's names.

  Args:
    path: The `.param` or the `.bin` file; the other one lies next to it.

  Returns:
    Name to float32 or float16 array (kernels OIHW), and the network's `scale`
    and `unshuffle`, which the `.param` file shows, as strings.

  Raises:
    FileNotFoundError: If one of the two files is missing.
    names.UnsupportedWeightsError: If the layers are not those of an RRDBNet,
      for instance those of a compact model (animevideov3).
    ValueError: If a file is damaged, or its weights are quantised.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "compact.param")
  ...   _ = path.write_text("7767517\n1 1\nPReLU p 1 1 a b 0=64\n")
  ...   _ = path.with_suffix(".bin").write_bytes(b"")
  ...   try:
  ...     read_ncnn(path)
  ...   except names.UnsupportedWeightsError as e:
  ...     print(str(e)[:23])
  this is SRVGGNetCompact
  """
  param, binary = find_pair(path)
  for file, limit in ((param, MAX_PARAM_BYTES), (binary, MAX_BIN_BYTES)):
    if (size := file.stat().st_size) > limit:
      raise ValueError(f"{file.name} has {size} bytes; the limit is {limit}")
  layers = _parse(param.read_bytes(), param.name)
  for layer in layers:
    if layer.kind == "PReLU":
      raise names.UnsupportedWeightsError(
        f"this is {names.COMPACT}, not an RRDBNet; supported is"
        f" {names.SUPPORTED}"
      )
    if layer.kind != "Convolution" and layer.kind not in _BARE:
      raise names.UnsupportedWeightsError(
        f"{param.name} has a layer of type {layer.kind[:40]}, which no RRDBNet"
        f" has; supported is {names.SUPPORTED}"
      )
  convs = [layer for layer in layers if layer.kind == "Convolution"]
  arrays = _read_arrays(convs, binary)
  factors = [layer.number(1, 1.0) for layer in layers if layer.kind == "Interp"]
  labels = _labels(len(convs), len(factors), param.name)
  state: dict[str, np.ndarray] = {}
  for label, (weight, bias) in zip(labels, arrays, strict=True):
    state[f"{label}.weight"], state[f"{label}.bias"] = weight, bias
  inputs, outputs = arrays[0][0].shape[1], arrays[-1][0].shape[0]
  unshuffle = {4: 2, 16: 4}.get(inputs // outputs, 1)
  total = math.prod(factors)
  if total != int(total) or int(total) % unshuffle:
    raise names.UnsupportedWeightsError(
      f"{param.name} upsamples {total:g} times after an unshuffle of"
      f" {unshuffle}: not an RRDBNet"
    )
  scale = int(total) // unshuffle
  return state, {"scale": str(scale), "unshuffle": str(unshuffle)}


def _parse(data: bytes, name: str) -> list[_Layer]:
  """Splits a `.param` file into layers."""
  try:
    lines = data.decode("ascii").splitlines()
  except UnicodeDecodeError as e:
    raise ValueError(
      f"{name} is not text: a binary .param.bin cannot be read, give .param"
    ) from e
  if not lines or lines[0].strip() != MAGIC:
    raise ValueError(f"{name} does not begin with {MAGIC}: no ncnn .param file")
  layers = []
  for i, line in enumerate(lines[2:], 3):
    fields = line.split()
    if not fields:
      continue
    try:
      kind, layer, inputs, outputs = fields[:4]
      skipped = 4 + int(inputs) + int(outputs)
      options = dict(f.split("=", 1) for f in fields[skipped:])
    except ValueError as e:
      raise ValueError(f"{name}, line {i} is malformed: {line[:80]!r}") from e
    layers.append(_Layer(kind, layer, options))
  declared = lines[1].split() if len(lines) > 1 else []
  if declared[:1] != [str(len(layers))]:
    raise ValueError(
      f"{name} is cut off: {len(layers)} layers of {' '.join(declared)[:20]}"
    )
  return layers


def _read_arrays(
  convs: list[_Layer], file: pathlib.Path
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Reads kernel and bias of every convolution, and no byte is left."""
  data = file.read_bytes()
  position = 0

  def take(count: int, dtype: str, what: str) -> np.ndarray:
    nonlocal position
    size = count * np.dtype(dtype).itemsize
    if position + size > len(data):
      raise ValueError(
        f"{file.name} is cut off: {what} needs {size} bytes at {position}, the"
        f" file has {len(data)}"
      )
    array = np.frombuffer(data, dtype, count, position)
    position += -(-size // 4) * 4  # Every array is padded to four bytes.
    return array

  arrays = []
  for conv in convs:
    out, size = conv.count(0), conv.count(6)
    width = conv.count(1)
    area = width * conv.count(11, width)
    if not out or not area or size % (out * area):
      raise ValueError(
        f"{conv.name}: {size} weights do not make {out} kernels of {area}"
      )
    if area != 9 or width != 3 or not conv.count(5):
      raise names.UnsupportedWeightsError(
        f"{conv.name} is no 3x3 convolution with a bias, as all of RRDBNet's"
        f" are; supported is {names.SUPPORTED}"
      )
    tag = int(take(1, "<u4", conv.name)[0])
    if tag not in (_FLOAT32_TAG, _FLOAT16_TAG):
      kind = "int8" if tag == _INT8_TAG else f"tag 0x{tag:08x}"
      raise ValueError(
        f"{conv.name} in {file.name} is quantised ({kind}); supported are"
        " float32 and float16: use the model as it was before quantisation"
      )
    weight = take(size, "<f2" if tag else "<f4", conv.name)
    bias = take(out, "<f4", conv.name)
    arrays.append((weight.reshape(out, -1, 3, 3), bias))
  if position != len(data):
    raise ValueError(
      f"{file.name} has {len(data) - position} bytes more than the layers take:"
      " does it belong to this .param?"
    )
  return arrays


def _labels(num_convs: int, num_up: int, name: str) -> list[str]:
  """Returns BasicSR's names in the order of the graph."""
  num_block, rest = divmod(num_convs - num_up - 4, 15)
  if num_block < 1 or rest:
    raise names.UnsupportedWeightsError(
      f"{name} has {num_convs} convolutions and {num_up} upsamplings; an"
      " RRDBNet has 15 a block, one an upsampling and 4 more"
    )
  blocks = [
    f"body.{n}.rdb{r}.conv{c}"
    for n in range(num_block)
    for r in (1, 2, 3)
    for c in range(1, 6)
  ]
  ups = [f"conv_up{i + 1}" for i in range(num_up)]
  return ["conv_first", *blocks, "conv_body", *ups, "conv_hr", "conv_last"]
