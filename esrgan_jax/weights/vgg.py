"""Reads VGG's weights: torchvision's `.pth`, Keras's `.h5` in two layouts.

What is returned has the network's shapes and only finite numbers, whoever made
the file. Neither PyTorch nor h5py is needed.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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

__all__ = ["read_vgg"]

Shapes = Mapping[str, tuple[int, ...]]


class _Vgg(NamedTuple):
  layers: tuple[str, ...]
  shapes: Shapes
  from_torchvision: Callable[[Any], Any]
  from_keras: Callable[[Any], Any]


NETWORKS = {
  "vgg19": _Vgg(
    vgg.LAYERS,
    vgg.KERNEL_SHAPES,
    vgg.vgg19_from_torchvision,
    vgg.vgg19_from_keras,
  ),
  "vgg16": _Vgg(
    vgg.VGG16_LAYERS,
    vgg.VGG16_KERNEL_SHAPES,
    vgg.vgg16_from_torchvision,
    vgg.vgg16_from_keras,
  ),
}


def read_vgg(
  path: str | os.PathLike[str],
  *,
  network: str = "vgg19",
  shapes: Shapes | None = None,
) -> dict[str, dict[str, Any]]:
  """Reads a VGG's convolutions from a file of either publisher.

  Args:
    path: Of VGG19, `vgg19-dcbb9e9d.pth`,
      `vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5`, or what Keras 3's
      `save_weights` writes; told apart by content. Of VGG16 the same files with
      its name.
    network: `"vgg19"` or `"vgg16"`.
    shapes: Of every layer's kernel, HWIO; another than the network's for a
      slimmer one; None for its own.

  Returns:
    Parameters for `vgg19_features` or `vgg16_features`, float32.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is not that network's: one line that names the file and,
      where it is a layer, the layer that is missing, of another shape or type,
      not finite, or one too many.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "vgg.h5")
  ...   _ = path.write_bytes(MAGIC)
  ...   try:
  ...     read_vgg(path)
  ...   except ValueError as e:
  ...     print(str(e).partition(" is not ")[2])
  VGG19: the HDF5 file is cut off or damaged
  """
  if network not in NETWORKS:
    raise ValueError(
      f"network must be one of {', '.join(NETWORKS)}, got {network!r}"
    )
  own = NETWORKS[network]
  own = own if shapes is None else own._replace(shapes=shapes)
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no file {printable(path)}")
  try:
    with path.open("rb") as file:
      is_hdf5 = file.read(len(MAGIC)) == MAGIC
    return (_read_keras if is_hdf5 else _read_torchvision)(path, own)
  except ValueError as e:
    kinds = (torch_file.UnsafeFileError, DamagedFileError)
    error = type(e) if isinstance(e, kinds) else ValueError
    message = f"{path} is not {network.upper()}: {e}"
    raise error(printable(message, limit=1000)) from e


def _read_torchvision(path: pathlib.Path, own: _Vgg):
  state, found = torch_file.read_torch(path), {}
  for layer, (*window, fan_in, fan_out) in own.shapes.items():
    place = f"features.{own.layers.index(layer)}"
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
  return own.from_torchvision(found)


def _read_keras(path: pathlib.Path, own: _Vgg):
  root = read_hdf5(limits.read_file(path))
  weights = {}
  make = _numbered if "layers" in root.names else _named
  find = make(root, [_keras_name(layer) for layer in own.shapes])
  for layer, shape in own.shapes.items():
    name = _keras_name(layer)
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
  return own.from_keras(weights)


def _keras_name(layer: str) -> str:
  return f"block{layer[4]}_conv{layer[6]}"


def _named(root: Group, names: Sequence[str]):
  """Finds arrays in the layout until Keras 2, of a network or a model."""
  model = root.get("model_weights") if "model_weights" in root.names else root
  for more in _group(model).names:
    # VGG19 has all of VGG16's layers, and more.
    if re.fullmatch(r"block[0-9]_conv[0-9]", more) and more not in names:
      raise ValueError(f"it has a layer {more} besides")

  def find(name: str) -> list[Dataset]:
    layer = _group(model).get(name)
    names = _group(layer).strings("weight_names")
    if names is None or len(names) != 2:
      raise ValueError("the layer does not name a kernel and a bias")
    return [_dataset(layer, each) for each in names]

  return find


def _numbered(root: Group, names: Sequence[str]):
  """Finds arrays in Keras 3's layout: layers by kind, in order."""
  layers = _group(root.get("layers"))
  numbers = {}
  for name in layers.names:
    if match := re.fullmatch(r"conv2d(?:_([0-9]{1,4}))?", name):
      numbers[int(match[1] or 0)] = name
  ordered = [numbers[n] for n in sorted(numbers)]
  if len(ordered) > len(names):
    raise ValueError(f"it has {len(ordered)} convolutions, not {len(names)}")

  def find(name: str) -> list[Dataset]:
    index = names.index(name)
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
