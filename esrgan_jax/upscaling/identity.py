"""What a result is made of, by digests: who goes on with it compares them."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import jax
import numpy as np

from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = ["digest_of_file", "digest_of_model"]


def digest_of_model(model: Upscaler) -> str:
  """Returns the SHA-256 of a model: its weights, and what it computes of them.

  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> import jax.numpy as jnp
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  >>> models = [Upscaler(net, params, name=name) for name in "ab"]
  >>> models += [Upscaler(net, jax.tree.map(lambda x: 2 * x, params))]
  >>> digests = [digest_of_model(model) for model in models]
  >>> digests[0] == digests[1], digests[0] == digests[2]
  (True, False)
  """
  digest = hashlib.sha256(_said(model.net).encode())
  variables = (model.params, model.collections)
  for path, leaf in jax.tree.leaves_with_path(jax.device_get(variables)):
    digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype}".encode())
    digest.update(f"{leaf.shape}".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def digest_of_file(path: str | os.PathLike[str]) -> str:
  """Returns the SHA-256 of a file's bytes.

  >>> digest_of_file(os.devnull)[:8]
  'e3b0c442'
  """
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _said(value: object) -> str:
  """What decides on what a network computes; where its objects lie does not."""
  if dataclasses.is_dataclass(value):
    fields = {
      field.name: _said(getattr(value, field.name, None))
      for field in dataclasses.fields(value)
      if field.name not in ("parent", "name")
    }
    return f"{type(value).__name__}{sorted(fields.items())}"
  if isinstance(value, str | int | float | tuple | list | None):
    return repr(value)
  return getattr(value, "__name__", type(value).__name__)
