"""Reads the arrays of Keras's `.h5` files: of `save_weights`, or a whole model.

Layers and their weights are listed in attributes, as Keras 1 and 2 write them,
and Keras 3 where it saves a model as `.h5`. What Keras 3's `save_weights`
writes has no names of weights, and is refused.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.weights.formats import limits
from esrgan_jax.weights.formats.hdf5_file import Dataset, Group, read_hdf5
from esrgan_jax.weights.formats.limits import DamagedFileError, need

__all__ = ["read_keras"]


def read_keras(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads every array of a Keras model.

  Args:
    path: The `.h5` file.

  Returns:
    `LAYER/KIND`, such as `conv2d_1/kernel`, to array; layers in the model's
    order.

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
    raise DamagedFileError(
      "it is an HDF5 file, but has no layer_names, as weights of Keras 1 and 2"
      " have: with Keras 3, write them by model.save('NAME.h5')"
    )
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
