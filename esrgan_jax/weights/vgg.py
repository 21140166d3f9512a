"""Reads VGG19's weights: torchvision's `.pth`, Keras's `.h5` in two layouts.

What is returned has the network's shapes and only finite numbers, whoever made
the file. Neither PyTorch nor h5py is needed.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from esrgan_jax.models import vgg
from esrgan_jax.text import printable
from esrgan_jax.weights.formats import limits, torch_file
from esrgan_jax.weights.formats.hdf5_file import (
  MAGIC,
  Dataset,
  Group,
  read_hdf5,
)
from esrgan_jax.weights.formats.limits import DamagedFileError

__all__ = ["read_vgg19"]

Shapes = Mapping[str, tuple[int, ...]]


def read_vgg19(
  path: str | os.PathLike[str], *, shapes: Shapes = vgg.KERNEL_SHAPES
) -> dict[str, dict[str, Any]]:
  """Reads VGG19's convolutions from a file of either publisher.

  Args:
    path: `vgg19-dcbb9e9d.pth`, `vgg19_weights_tf_dim_ordering_tf_kernels_notop
      .h5`, or what Keras 3's `save_weights` writes; told apart by content.
    shapes: Of every layer's kernel, HWIO; another than VGG19's for a slimmer
      network.

  Returns:
    Parameters for `vgg19_features`, float32.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is not VGG19's: one line that names the file and, where it
      is a layer, the layer that is missing, of another shape or type, or not
      finite.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "vgg.h5")
  ...   _ = path.write_bytes(MAGIC)
  ...   try:
  ...     read_vgg19(path)
  ...   except ValueError as e:
  ...     print(str(e).partition(" is not ")[2])
  VGG19: the HDF5 file is cut off or damaged
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no file {printable(path)}")
  try:
    with path.open("rb") as file:
      is_hdf5 = file.read(len(MAGIC)) == MAGIC
    return (_read_keras if is_hdf5 else _read_torchvision)(path, shapes)
  except ValueError as e:
    kinds = (torch_file.UnsafeFileError, DamagedFileError)
    error = type(e) if isinstance(e, kinds) else ValueError
    message = f"{path} is not VGG19: {e}"
    raise error(printable(message, limit=1000)) from e


def _read_torchvision(path: pathlib.Path, shapes: Shapes):
  state, found = torch_file.read_torch(path), {}
  for layer, (*window, fan_in, fan_out) in shapes.items():
    place = f"features.{vgg.LAYERS.index(layer)}"
    for part, shape in (
      ("weight", (fan_out, fan_in, *window)),
      ("bias", (fan_out,)),
    ):
      name = f"{place}.{part}"
      value = state.get(name)
      if not isinstance(value, np.ndarray):
        problem = "missing" if value is None else "no array"
        raise ValueError(f"{name} ({layer}) is {problem}")
      _check(f"{name} ({layer})", value.shape, value.dtype, shape)
      found[name] = _finite(f"{name} ({layer})", value)
  return vgg.vgg19_from_torchvision(found)


def _read_keras(path: pathlib.Path, shapes: Shapes):
  root = read_hdf5(limits.read_file(path))
  weights = {}
  find = _numbered(root) if "layers" in root.names else _named(root)
  for layer, shape in shapes.items():
    name = f"block{layer[4]}_conv{layer[6]}"
    try:
      datasets = find(name)
      weights[name] = []
      for part, dataset, expected in zip(
        ("kernel", "bias"), datasets, (shape, shape[-1:]), strict=True
      ):
        _check(part, dataset.shape, dataset.dtype, expected)
        weights[name].append(_finite(part, dataset.read()))
    except ValueError as e:
      damaged = isinstance(e, DamagedFileError)
      error = DamagedFileError if damaged else ValueError
      raise error(f"{name}: {e}") from e
  return vgg.vgg19_from_keras(weights)


def _named(root: Group):
  """Finds arrays in the layout until Keras 2, of a network or a model."""
  model = root.get("model_weights") if "model_weights" in root.names else root

  def find(name: str) -> list[Dataset]:
    layer = _group(model).get(name)
    names = _group(layer).strings("weight_names")
    if names is None or len(names) != 2:
      raise ValueError("the layer does not name a kernel and a bias")
    return [_dataset(layer, each) for each in names]

  return find


def _numbered(root: Group):
  """Finds arrays in Keras 3's layout: layers by kind, in order."""
  layers = _group(root.get("layers"))
  numbers = {}
  for name in layers.names:
    if match := re.fullmatch(r"conv2d(?:_([0-9]{1,4}))?", name):
      numbers[int(match[1] or 0)] = name
  ordered = [numbers[n] for n in sorted(numbers)]

  def find(name: str) -> list[Dataset]:
    index = vgg.CONV_LAYERS.index(f"conv{name[5]}_{name[11]}")
    if index >= len(ordered):
      raise ValueError("the layer is missing")
    layer = _group(layers.get(f"{ordered[index]}/vars"))
    return [_dataset(layer, key) for key in "01"]

  return find


def _group(found: Group | Dataset | None) -> Group:
  if not isinstance(found, Group):
    raise ValueError("the layer is missing")
  return found


def _dataset(group: Group, path: str) -> Dataset:
  found = group.get(path)
  if not isinstance(found, Dataset):
    raise ValueError(f"{printable(path, limit=60)} is missing")
  return found


def _check(name, shape, dtype, expected) -> None:
  """Looks at shape and type, before anything is read."""
  if shape != expected:
    raise ValueError(f"{name} is of shape {shape}, not {expected}")
  if dtype is None or np.dtype(dtype).kind != "f":
    raise ValueError(f"{name} holds no floats")


def _finite(name: str, value: np.ndarray) -> np.ndarray:
  """Returns a copy in float32: a view would keep the whole file in memory."""
  with np.errstate(over="ignore"):
    value = np.array(value, np.float32)
  if bad := value.size - int(np.isfinite(value).sum()):
    raise ValueError(f"{name} has {bad} values that are NaN or infinite")
  return value
