"""Discriminators in files of their own, to start a training from.

A generator is a model; a discriminator is what a training had besides. Public
ones are there to fine-tune with: `RealESRGAN_x4plus_netD.pth`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from esrgan_jax.text import printable
from esrgan_jax.weights import files, selection
from esrgan_jax.weights.dialects import DISCRIMINATORS

__all__ = ["Discriminator", "read_discriminator", "write_discriminator"]


class Discriminator(NamedTuple):
  """A discriminator that was found.

  Attributes:
    config: Its architecture and fields, as far as they are known: as of
      `registry.make_discriminator`.
    variables: `params`, and its collections: of spectral norm or BatchNorm
      `batch_stats`. NumPy arrays.
    notes: Sentences on choices made while reading; mostly none.
  """

  config: dict[str, Any]
  variables: dict[str, Any]
  notes: tuple[str, ...] = ()


def read_discriminator(path: str | os.PathLike[str]) -> Discriminator:
  """Reads a discriminator from a file.

  Args:
    path: `.pth`, `.pt` or `.safetensors`, told apart by content; nothing in it
      is executed.

  Returns:
    The discriminator.

  Raises:
    FileNotFoundError: If there is no such file.
    UnsupportedWeightsError: If the file holds no discriminator that has names;
      says what it holds.
    ValueError: If it is damaged, unsafe, or no weight file at all. All of them
      are one line that names the file.

  >>> read_discriminator("none.pth")
  Traceback (most recent call last):
  ...
  FileNotFoundError: no file none.pth
  """
  path = pathlib.Path(path)
  kind = files.kind_of(path)
  with files.naming(path):
    state, metadata = files.read_arrays(path, kind)
    name, flat, notes = selection.pick(state, DISCRIMINATORS, _supported())
    told = {"True": True, "False": False}.get(
      metadata.get("skip_connection", "")
    )
    found = DISCRIMINATORS[name].from_state_dict(flat, skip_connection=told)
  config = {"architecture": name, **found.config}
  variables = {"params": found.params, **found.collections}
  return Discriminator(config, variables, (*notes, *found.notes))


def write_discriminator(
  path: str | os.PathLike[str],
  variables: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  metadata: Mapping[str, object] | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes a discriminator to a file that BasicSR goes on from.

  That program's `pretrain_network_d` names it, with `param_key_d: params`.

  Args:
    path: `.safetensors`; where PyTorch is installed, `.pth`.
    variables: Its `params` and `batch_stats`: as of `init`, or of a state
      `{"params": state.d_params, "batch_stats": state.d_batch_stats}`.
    config: Its architecture and fields, as of `registry.make_discriminator`.
    metadata: Further notes to keep in the file.
    overwrite: Replace an existing file.

  Returns:
    The path.

  Raises:
    ValueError: If the architecture has no names in files, the suffix is not
      supported, or a weight is not finite.
    UnsupportedWeightsError: If the variables are not that architecture's.
    FileExistsError: If the file exists and `overwrite` is false.
    FileNotFoundError: If its folder does not exist.
    RuntimeError: If PyTorch's is asked for, and it is not installed.

  >>> write_discriminator("d.pth", {}, {"architecture": "SRGANDiscriminator"})
  Traceback (most recent call last):
  ...
  ValueError: SRGANDiscriminator has no names in files; UNetDiscriminatorSN has
  """
  name = config["architecture"]
  if name not in DISCRIMINATORS:
    raise ValueError(
      f"{printable(name)} has no names in files;"
      f" {', '.join(DISCRIMINATORS)} has"
    )
  dialect = DISCRIMINATORS[name]
  others = {key: x for key, x in variables.items() if key != "params"}
  state = dialect.to_state_dict(variables.get("params", {}), others)
  told = {key: config[key] for key in dialect.UNTOLD if key in config}
  # Reading back what is to be written checks shapes and finiteness.
  found = dialect.from_state_dict(state, **told)
  for key, value in config.items():
    if found.config.get(key, value) != value:
      raise ValueError(
        f"config says {key} {printable(value)}, but the parameters have"
        f" {found.config[key]}"
      )
  notes = {str(k): str(v) for k, v in (metadata or {}).items()}
  notes |= {k: str(v) for k, v in found.config.items()}
  notes |= {"format": "pt", "architecture": name}
  return files.write_arrays(path, state, notes, overwrite=overwrite)


def _supported() -> str:
  return "; ".join(each.SUPPORTED for each in DISCRIMINATORS.values())
