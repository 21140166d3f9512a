"""Networks as Orbax checkpoints: what any JAX program reads, and can write.

`docs/checkpoints.md` describes what is in one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax import checks, storage
from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.weights import fields, files, find
from esrgan_jax.weights.dialects import DIALECTS, plain
from esrgan_jax.weights.formats import stored_arrays as stored

__all__ = ["check_folder", "load_checkpoint", "save_checkpoint"]


_OUTSIDE = "call it outside of jax.jit, with what a program returns"


def save_checkpoint(
  path: str | os.PathLike[str],
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  collections: Mapping[str, Any] | None = None,
  metadata: Mapping[str, object] | None = None,
) -> None:
  """Saves a network as an Orbax checkpoint, in whole or not at all.

  Every command takes it as a model, `load` and `load_checkpoint` do, and plain
  Orbax: `StandardCheckpointer().restore(path / "ema")` are the parameters.

  Args:
    path: A new folder; its parents are made. May be in a bucket.
    params: The network's parameter tree.
    config: The network's `architecture` (absent: RRDBNet) and fields. `scale`
      is required; where shapes tell the rest, they do.
    collections: Its variables besides, such as BatchNorm's `batch_stats`.
    metadata: Further notes to keep, such as source, licence, alpha.

  Raises:
    TypeError: If what is given is of another kind.
    FileExistsError: If there is anything at that path.
    ValueError: If the parameters are not those of such a network, or not
      finite.
    OSError: If it cannot be written.
    RuntimeError: If Orbax is not installed.

  >>> import tempfile
  >>> from esrgan_jax import RRDBNet
  >>> config = dict(num_feat=4, num_block=1, num_grow_ch=2, scale=2)
  >>> init, lr = RRDBNet(**config).init, np.zeros((1, 8, 8, 3), np.float32)
  >>> shapes = jax.eval_shape(init, jax.random.key(0), lr)["params"]
  >>> params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save_checkpoint(f"{folder}/tiny", params, config)
  ...   load_checkpoint(f"{folder}/tiny").config["num_grow_ch"]
  2
  """
  _check_kinds(path, params, config)
  checks.check_concrete((params, collections), "save_checkpoint", _OUTSIDE)
  folder = storage.absolute(path)
  check_folder(folder)
  config = {"architecture": registry.DEFAULT_GENERATOR, **config}
  if "scale" not in config:
    raise ValueError(
      "config has no scale: a checkpoint says how much its network enlarges"
    )
  _check_finite(params)
  if dialect := DIALECTS.get(config["architecture"]):
    state = dialect.to_state_dict(params, collections or {}, config)
    found = files.agreeing(dialect, state, config)
    config = {**found.config, **config}
    checked = fields.checked(config)
  else:
    checked = fields.checked(config)
    plain.to_state_dict(params, collections or {})  # Raises, if not finite.
    files.check_tree(checked, {"params": params, **(collections or {})})
  generator = {k: v for k, v in checked.items() if k != "scale"}
  items = {"ema": _own(params)}
  if collections:
    items["collections"] = _own(collections)
  info = {
    "config": {"generator": generator, "scale": checked["scale"]},
    "metrics": {},
    "origin": None,
    "metadata": {str(k): str(v) for k, v in (metadata or {}).items()},
    "versions": {"jax": jax.__version__},
  }
  try:
    from esrgan_jax.weights.formats import orbax_writer
  except ImportError as error:
    raise RuntimeError(
      f"{folder} cannot be written: that takes {error.name or 'Orbax'}, which"
      " is not installed: pip install orbax-checkpoint"
    ) from error
  with storage.reaching(folder), _explaining(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    orbax_writer.write(folder, items, info)


def load_checkpoint(
  path: str | os.PathLike[str],
  *,
  config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> files.Weights:
  """Reads a network from an Orbax checkpoint, whoever has saved it.

  Ours are compared with their digests. A tree that another program has saved,
  by `StandardCheckpointer`, `CheckpointManager` or `v1.save`, has none; that
  and each choice made is said in `notes`. Of several networks in it the moving
  average is taken, such as `ema_params`.

  Args:
    path: A checkpoint of `save_checkpoint`, of training, or of another program;
      or a folder of such steps, of which the newest is read. May be in a
      bucket.
    config: The network's `architecture` (absent: RRDBNet) and fields, for
      another program's tree, or the path of a JSON file with them; None takes
      `config.json` beside it, and without one, an RRDBNet is what its shapes
      tell. One of ours says itself what it is, and must agree.

  Returns:
    The network: `config`, `params` (float32 NumPy arrays), `collections`,
    `metadata` and `notes`.

  Raises:
    FileNotFoundError: If there is nothing.
    TypeError: If `path` is no path, or `config` none.
    ValueError: If it is no checkpoint, is damaged, or holds no such network,
      or a config is damaged, or contradicts it.
    OSError: If it cannot be reached.
    RuntimeError: If what reads checkpoints is not installed.

  >>> load_checkpoint("/nowhere/mixed")
  Traceback (most recent call last):
  ...
  FileNotFoundError: no file /nowhere/mixed
  """
  checks.check_path(path)
  place = find.locate(path, fetch=False)
  if not place.is_checkpoint:
    shown, there = printable(path), printable(place.path)
    raise ValueError(
      f"{shown} is {'' if shown == there else f'{there}, '}no checkpoint:"
      " esrgan_jax.load reads models of every kind"
    )
  return find.read(place, config=config).weights


def check_folder(path: str | os.PathLike[str]) -> None:
  """Raises if a checkpoint cannot be written, before there is one.

  Args:
    path: Its folder.

  Raises:
    FileExistsError: If there is anything.

  >>> check_folder("/")
  Traceback (most recent call last):
  ...
  FileExistsError: / exists already; a checkpoint takes a new folder
  """
  folder = storage.absolute(path)
  with storage.reaching(folder):
    exists = folder.exists() or os.path.lexists(folder)
  if exists:
    raise FileExistsError(
      f"{printable(path)} exists already; a checkpoint takes a new folder"
    )


def _check_kinds(path, params, config):
  """Raises if arguments are not what they should be, such as swapped."""
  checks.check_path(path)
  if not isinstance(params, Mapping):
    raise TypeError(
      f"params must be a tree of arrays, got {checks.describe(params)}"
    )
  wanted = "config must be a network's fields by name, such as {'scale': 4}"
  if not isinstance(config, Mapping):
    raise TypeError(f"{wanted}, got {checks.describe(config)}")
  for key, value in config.items():
    if isinstance(value, Mapping) or hasattr(value, "dtype"):
      raise TypeError(
        f"{wanted}, got {printable(key)} of {checks.describe(value)}: params"
        " come before config"
      )


def _check_finite(params):
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating):
      with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(leaf, np.float32))
      if not finite.all():
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ValueError(
          f"{printable(name)} in params has {finite.size - finite.sum()} values"
          " that are NaN or infinite in float32: did the training diverge?"
        )


def _own(tree):
  """Floats as float32, which is what is read; counts as they are."""

  def each(leaf):
    array = np.asarray(leaf)
    return array if array.dtype.kind in "biu" else np.asarray(array, np.float32)

  return jax.tree.map(each, dict(tree))


@contextlib.contextmanager
def _explaining(folder: Any) -> Iterator[None]:
  """Says in one line why a checkpoint could not be written to a disk."""
  try:
    yield
  except Exception as error:  # Orbax and TensorStore raise many kinds.
    if storage.is_remote(folder):
      raise
    raise OSError(
      f"{folder} cannot be written: {stored.reason(error)}"
    ) from error
