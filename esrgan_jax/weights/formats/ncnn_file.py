"""Reads networks from ncnn's pair of files, `.param` and `.bin`.

The `.param` file is text: a magic number, counts, and one line a layer. The
`.bin` file holds the convolutions' arrays in the order of these lines: a tag
for the number format, the OIHW kernel, the float32 bias. The layers carry no
names of use, so a convolution is known by its place; a dialect knows which.

Source: Tencent/ncnn wiki, "param and model file structure"; `src/layer/
convolution.cpp::load_model`, `src/modelbin.cpp`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.weights.dialects.protocol import UnsupportedWeightsError
from esrgan_jax.weights.formats import limits
from esrgan_jax.weights.formats.limits import DamagedFileError, need

MAGIC = "7767517"

FLOAT32_TAG = 0
FLOAT16_TAG = 0x01306B47
_INT8_TAG = 0x000D4B38

_DIGITS = re.compile("[0-9]{1,6}")

# Layers that tell what a network is, and others without arrays; another type
# would shift everything behind it.
_TELLING = (
  *("Convolution", "Interp", "PixelShuffle", "PReLU", "ReLU", "Sigmoid"),
)
_BARE = {
  *("Input", "Split", "Concat", "Eltwise", "BinaryOp"),
  *("Noop", "Reorg", "Permute", "Reshape"),
}
# Activations within a convolution, by ncnn's numbers.
_NONE, _RELU, _LEAKY = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer of a network that tells what the network is.

  Attributes:
    kind: `Convolution`, `Interp`, `PixelShuffle`, `PReLU`, `ReLU` or `Sigmoid`.
    name: As the file has it, which is mostly a number.
    factor: How many times it enlarges, 1 if it does not.
    mode: How an `Interp` does: 1 by repetition, 2 linearly, 3 cubically.
    weight: A convolution's kernel, OIHW; float32 or float16.
    bias: Its bias, float32.
    slope: Of an activation, which a convolution may have too, below 0: 0 of a
      ReLU, an array of a PReLU. None where there is none.
  """

  kind: str
  name: str
  factor: float = 1.0
  mode: int = 0
  weight: np.ndarray | None = None
  bias: np.ndarray | None = None
  slope: float | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Line:
  kind: str
  name: str
  options: dict[str, str]

  def number(self, key: int, default: float) -> float:
    """Returns option `key`, which may stand once for x and y."""
    text = self.options.get(str(key))
    return default if text is None else self._float(str(key), text)

  def count(self, key: int, default: int = 0) -> int:
    """Returns option `key`, a whole number."""
    value = self.number(key, float(default))
    if not (value.is_integer() and 0 <= value < 2**31):
      raise DamagedFileError(f"{self._odd(key)} is no count")
    return int(value)

  def slope(self) -> float | None:
    """Returns the slope of the activation that a convolution has, if any."""
    kind = self.count(9, _NONE)
    if kind in (_NONE, _RELU):
      return 0.0 if kind else None
    count, _, slope = self.options.get("-23310", "").partition(",")
    if kind != _LEAKY or count != "1":
      raise UnsupportedWeightsError(
        f"layer {printable(self.name)} has an activation that no supported"
        f" network has (9={kind})"
      )
    return self._float("-23310", slope)

  def _float(self, key: str, text: str) -> float:
    try:
      value = float(text)
    except ValueError as e:
      raise DamagedFileError(f"{self._odd(key)} is no number") from e
    if not math.isfinite(value):
      raise DamagedFileError(f"{self._odd(key)} is not finite")
    return value

  def _odd(self, key: int | str) -> str:
    text = printable(self.options[str(key)], limit=40)
    return f"layer {printable(self.name)}: {key}={text}"


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
      raise FileNotFoundError(
        f"no {printable(file)}: an ncnn model needs both files"
      )
  return pair


def read_ncnn(path: str | os.PathLike[str]) -> list[Layer]:
  r"""Returns the layers of an ncnn network that tell what it is.

  Args:
    path: The `.param` or the `.bin` file; the other one lies next to it.

  Returns:
    Its convolutions and activations, and what enlarges, in order.

  Raises:
    FileNotFoundError: If one of the two files is missing.
    UnsupportedWeightsError: If it has layers that no supported network has.
    limits.DamagedFileError: If a file is damaged.
    ValueError: If its weights are quantised, or a file too large (`limits`).

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "compact.param")
  ...   _ = path.write_text("7767517\n1 1\nPReLU p 1 1 a b 0=2\n")
  ...   _ = path.with_suffix(".bin").write_bytes(np.float32([0.5, 1]).tobytes())
  ...   [(layer.kind, layer.slope.tolist()) for layer in read_ncnn(path)]
  [('PReLU', [0.5, 1.0])]
  """
  param, binary = find_pair(path)
  text = limits.read_file(param, limit=limits.MAX_TABLE_BYTES)
  lines = _parse(text, printable(param.name))
  return _read_layers(lines, binary)


def _shifts(layer: _Line) -> bool:
  """Whether it adds or takes off a number; factors there are in residuals."""
  given = layer.options.get("1"), layer.options.get("0", "0")
  return layer.kind == "BinaryOp" and given in (("1", "0"), ("1", "1"))


def _parse(data: bytes, name: str) -> list[_Line]:
  """Splits a `.param` file into layers; keeps those that matter."""
  try:
    lines = data.decode("ascii").splitlines()
  except UnicodeDecodeError as e:
    raise DamagedFileError(
      f"{name} is not text: a binary .param.bin cannot be read, give .param"
    ) from e
  need(
    lines and lines[0].strip() == MAGIC,
    f"{name} does not begin with {MAGIC}: no ncnn .param file",
  )
  layers, count = [], 0
  for i, line in enumerate(lines[2:], 3):
    fields = line.split()
    if not fields:
      continue
    layer = _layer(fields)
    if layer is None:
      raise DamagedFileError(
        f"{name}, line {i} is malformed: {printable(line, limit=80)}"
      )
    if _shifts(layer):
      raise UnsupportedWeightsError(
        f"{name} adds a number to its images, as no supported network's file"
        " does: a network of images in [-1, 1] is read from its .safetensors"
      )
    if layer.kind in _TELLING:
      layers.append(layer)
    elif layer.kind not in _BARE:
      raise UnsupportedWeightsError(
        f"{name} has a layer of type {printable(layer.kind, limit=40)}, which"
        " no supported network has"
      )
    count += 1
  need(
    len(layers) <= limits.MAX_ARRAYS,
    f"{name} has over {limits.MAX_ARRAYS} layers",
  )
  declared = lines[1].split() if len(lines) > 1 else []
  if declared[:1] != [str(count)]:
    raise DamagedFileError(
      f"{name} is cut off: {count} layers of"
      f" {printable(' '.join(declared), limit=20)}"
    )
  return layers


def _layer(fields: list[str]) -> _Line | None:
  """A line's type, name, numbers of inputs and outputs, these, and options."""
  if len(fields) < 4 or not all(map(_DIGITS.fullmatch, fields[2:4])):
    return None
  skipped = 4 + int(fields[2]) + int(fields[3])
  options = [field.partition("=") for field in fields[skipped:]]
  if len(fields) < skipped or not all(sign for _, sign, _ in options):
    return None
  return _Line(fields[0], fields[1], {key: text for key, _, text in options})


def _read_layers(lines: list[_Line], file: pathlib.Path) -> list[Layer]:
  """Reads what the layers have in the `.bin`, and no byte is left."""
  data = limits.read_file(file)
  shown = printable(file.name)
  position = 0

  def take(count: int, dtype: str, what: str) -> np.ndarray:
    nonlocal position
    size = count * np.dtype(dtype).itemsize
    if position + size > len(data):
      raise DamagedFileError(
        f"{shown} is cut off: {printable(what)} needs {size} bytes at"
        f" {position}, the file has {len(data)}"
      )
    array = np.frombuffer(data, dtype, count, position)
    position += -(-size // 4) * 4  # Every array is padded to four bytes.
    return array

  def convolution(conv: _Line) -> Layer:
    out, size = conv.count(0), conv.count(6)
    width = conv.count(1)
    area = width * conv.count(11, width)
    if not out or not area or not size or size % (out * area):
      raise DamagedFileError(
        f"{printable(conv.name)}: {size} weights do not make {out} kernels of"
        f" {area}"
      )
    if width not in (3, 9) or area != width**2 or not conv.count(5):
      raise UnsupportedWeightsError(
        f"{printable(conv.name)} is no convolution of 3x3 or 9x9 with a bias,"
        " as all of the supported networks' are"
      )
    tag = int(take(1, "<u4", conv.name)[0])
    if tag not in (FLOAT32_TAG, FLOAT16_TAG):
      kind = "int8" if tag == _INT8_TAG else f"tag 0x{tag:08x}"
      raise ValueError(
        f"{printable(conv.name)} in {shown} is quantised ({kind}); supported"
        " are float32 and float16: use the model as it was before quantisation"
      )
    weight = take(size, "<f2" if tag else "<f4", conv.name)
    bias = take(out, "<f4", conv.name)
    return Layer(
      conv.kind,
      conv.name,
      weight=weight.reshape(out, -1, width, width),
      bias=bias,
      slope=conv.slope(),
    )

  layers = []
  for line in lines:
    if line.kind == "Convolution":
      layer = convolution(line)
    elif line.kind == "PReLU":
      slope = take(line.count(0), "<f4", line.name)
      layer = Layer(line.kind, line.name, slope=slope)
    elif line.kind == "ReLU":
      layer = Layer(line.kind, line.name, slope=line.number(0, 0.0))
    elif line.kind == "PixelShuffle":
      if line.count(1):
        raise UnsupportedWeightsError(
          f"{printable(line.name)} shuffles pixels in another order than"
          " PyTorch, as no supported network does"
        )
      layer = Layer(line.kind, line.name, float(line.count(0, 1)))
    elif line.kind == "Sigmoid":
      layer = Layer(line.kind, line.name)
    else:
      layer = Layer(line.kind, line.name, line.number(1, 1.0), line.count(0))
    layers.append(layer)
  if position != len(data):
    raise DamagedFileError(
      f"{shown} has {len(data) - position} bytes more than the layers take:"
      " does it belong to this .param?"
    )
  return layers
