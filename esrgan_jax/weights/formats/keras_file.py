"""Reads the arrays of Keras's `.h5` files: of `save_weights`, or a whole model.

Layers and their weights are listed in attributes, as Keras 1 and 2 write them,
and Keras 3 where it saves a model as `.h5`. What Keras 3's `save_weights`
writes, `.weights.h5`, has layers by kind and place in the model, and weights
without names: `layers/conv2d_1/vars/0`. Their order tells which they are.

Source: Keras 3 `src/saving/saving_lib.py`; `build` of its layers.
"""

from __future__ import annotations

import os
import pathlib
import re

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.weights.formats import limits
from esrgan_jax.weights.formats.hdf5_file import Dataset, Group, read_hdf5
from esrgan_jax.weights.formats.limits import DamagedFileError, need

__all__ = ["read_keras"]

# Where Keras 3, and Keras 2.12 and on, has a model's layers.
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
# Weights in the order in which layers make them.
_KINDS = {
  "conv2d": ("kernel", "bias"),
  "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
  "p_re_lu": ("alpha",),
}


def read_keras(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads every array of a Keras model.

  Args:
    path: The `.h5` file.

  Returns:
    `LAYER/KIND`, such as `conv2d_1/kernel`, to array. Of Keras 3's layers that
    are none of an SRResNet, `LAYER/NUMBER`.

  Raises:
    limits.DamagedFileError: If it is damaged, or no such file.

  >>> import tempfile, h5py
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with h5py.File(f"{folder}/a.h5", "w") as file:
  ...     file["conv2d/conv2d/bias:0"] = np.ones(2, np.float32)
  ...     file["conv2d"].attrs["weight_names"] = [b"conv2d/bias:0"]
  ...     file.attrs["layer_names"] = [b"conv2d"]
  ...   read_keras(f"{folder}/a.h5")
  {'conv2d/bias': array([1., 1.], dtype=float32)}
  """
  root = read_hdf5(limits.read_file(pathlib.Path(path)))
  inside = root.get("model_weights")
  model = inside if isinstance(inside, Group) else root
  layers = model.strings("layer_names")
  if layers is None:
    need(
      any(isinstance(root.get(name), Group) for name in _CONTAINERS),
      "it is an HDF5 file, but has neither layer_names, as weights of Keras 1"
      " and 2 have, nor layers, as those of Keras 3",
    )
    return _keras_3(root)
  state: dict[str, np.ndarray] = {}
  for layer in layers:
    group = model.get(layer)
    names = group.strings("weight_names") if isinstance(group, Group) else None
    for name in names or ():
      assert isinstance(group, Group)
      dataset = group.get(name)
      if not isinstance(dataset, Dataset):
        raise DamagedFileError(f"{printable(name, limit=60)} is missing")
      key = f"{layer}/{name.rpartition('/')[2].removesuffix(':0')}"
      need(key not in state, f"{printable(key, limit=60)} is there twice")
      state[key] = dataset.read()
  return state


def _keras_3(root: Group) -> dict[str, np.ndarray]:
  """Reads what `save_weights` of Keras 3 writes; models in a model as well."""
  state: dict[str, np.ndarray] = {}
  models = [root]
  while models:
    model = models.pop()
    for container in filter(None, map(model.get, _CONTAINERS)):
      for name in container.names if isinstance(container, Group) else ():
        layer = container.get(name)
        if not isinstance(layer, Group):
          continue
        models.append(layer)
        found = layer.get("vars")
        numbers = found.names if isinstance(found, Group) else []
        for kind, number in zip(_kinds(name, numbers), numbers, strict=True):
          assert isinstance(found, Group)
          dataset = found.get(number)
          key = f"{name}/{kind}"
          need(
            isinstance(dataset, Dataset) and key not in state,
            f"{printable(key, limit=60)} is no array, or there twice",
          )
          assert isinstance(dataset, Dataset)
          state[key] = dataset.read()
  return state


def _kinds(layer: str, numbers: list[str]) -> list[str]:
  """Returns what a layer's weights are; their numbers where that is unknown."""
  kinds = _KINDS.get(re.sub("_[0-9]+$", "", layer), ())
  counts = {len(kinds), 1} if kinds[:1] == ("kernel",) else {len(kinds)}
  expected = list(map(str, range(len(numbers))))
  known = numbers == expected and len(numbers) in counts
  return list(kinds[: len(numbers)]) if known else numbers
