"""Finds the model that a user means: a name, a file, a checkpoint, a workdir.

A workdir holds `models/{psnr,gan}.safetensors` once a phase is done, and
`{psnr,gan}/checkpoints/` before that. Like a file, it may be in a bucket.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esrgan_jax import storage
from esrgan_jax.text import printable
from esrgan_jax.weights import files, zoo

__all__ = ["PHASES", "FoundModel", "find_model", "is_workdir", "relation"]

PHASES = ("psnr", "gan")


@dataclasses.dataclass(frozen=True)
class FoundModel:
  """A model that was asked for.

  Attributes:
    name: What to call it: as it was asked for and, of a workdir, which part.
    path: Where it was read from; an `epath.Path` if it is in a bucket.
    weights: The network, as a weight file holds it.
  """

  name: str
  path: pathlib.PurePath
  weights: files.Weights


def is_workdir(path: str | os.PathLike[str]) -> bool:
  """Returns whether a folder is one that training wrote, or is writing.

  >>> is_workdir("/")
  False
  """
  path = _as_path(path)
  return any(
    (path / "models" / f"{phase}.safetensors").is_file()
    or (path / phase / "checkpoints").is_dir()
    for phase in PHASES
  )


def find_model(
  model: str | os.PathLike[str],
  *,
  phases: Sequence[str] = ("gan", "psnr"),
  scale: int | None = None,
  progress: Callable[[int, int | None], None] | None = None,
) -> FoundModel:
  """Reads the model that a text stands for.

  Args:
    model: A name of the zoo, a weight file, a workdir, one phase's folder in
      it, or a folder of Orbax checkpoints; `gs://` works as well.
    phases: Which phase of a workdir to take: the first one that is there; of
      it, the finished model, or else the newest checkpoint.
    scale: Upscaling factor, for the rare file that does not tell (x3).
    progress: Called with the bytes downloaded so far, and in all where known.

  Returns:
    The model.

  Raises:
    ValueError: If there is no such name, or what is there is no RRDBNet.
    FileNotFoundError: If there is no such file, or a workdir lacks the phases.
    OSError: If a bucket cannot be reached.

  >>> find_model("realesrgan-x4plus-anime").weights.config["num_block"]
  6
  """
  text = os.fspath(model)
  if any(text == row.model.name for row in zoo.models()):
    path = zoo.find(text, progress=progress)
    return FoundModel(text, path, files.read_weights(path, scale=scale))
  if "://" in text:
    with storage.reaching(text):
      return _find(_as_path(text), phases, scale)
  path = pathlib.Path(text)
  if not path.exists() and os.sep not in text and not path.suffix:
    zoo.get(text)  # Raises, with the nearest names.
  return _find(path, phases, scale)


def relation(psnr: Mapping[str, str], gan: Mapping[str, str]) -> str:
  """Returns what does not fit between two models' descents, if anything.

  Args:
    psnr: Metadata of what should be the start, as `lineage` writes it.
    gan: Of what should have been begun from it.

  Returns:
    A clause; empty if they fit, or if nothing is known of either.

  >>> ours = {"generator_sha256": "ab"}
  >>> relation(ours, {"begun_from_sha256": "ab"}), relation(ours, {})
  ('', '')
  >>> relation(ours, {"begun_from_sha256": "cd"})
  'was begun from another model (cd), not from this one (ab)'
  """
  start, begun_from = psnr.get("generator_sha256"), gan.get("begun_from_sha256")
  if not start or not begun_from or start == begun_from:
    return ""
  return (
    f"was begun from another model ({printable(begun_from[:12])}), not from"
    f" this one ({printable(start[:12])})"
  )


def _as_path(path: str | os.PathLike[str]) -> Any:
  if "://" not in os.fspath(path):
    return pathlib.Path(path)
  return storage.absolute(path)


def _find(path: Any, phases: Sequence[str], scale: int | None) -> FoundModel:
  if path.is_dir():
    return _find_in_folder(path, phases, scale)
  return FoundModel(path.name, path, _read_weights(path, scale))


def _read_weights(path: Any, scale: int | None) -> files.Weights:
  if isinstance(path, pathlib.Path):
    return files.read_weights(path, scale=scale)
  # In a bucket: read from a copy, which no error should name.
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder, path.name)
    copy.write_bytes(path.read_bytes())
    try:
      return files.read_weights(copy, scale=scale)
    except ValueError as error:
      raise ValueError(str(error).replace(str(copy), str(path))) from error


def _find_in_folder(
  path: Any, phases: Sequence[str], scale: int | None
) -> FoundModel:
  if path.name in PHASES and (path / "checkpoints").is_dir():
    path, phases = path.parent, (path.name,)
  if not is_workdir(path):
    if (found := sorted(path.glob("*.safetensors"))) or path.name == "models":
      names = ", ".join(each.name for each in found) or "no model"
      raise ValueError(f"{path} is a folder: give a file in it ({names})")
    return _read_checkpoint(path, "/".join(path.parts[-2:]))
  for phase in phases:
    finished = path / "models" / f"{phase}.safetensors"
    if finished.is_file():
      weights = _read_weights(finished, scale)
      return FoundModel(f"{path.name}/{phase}", finished, weights)
    checkpoints = path / phase / "checkpoints"
    if checkpoints.is_dir() and any(checkpoints.iterdir()):
      return _read_checkpoint(path / phase, f"{path.name}/{phase}")
  raise FileNotFoundError(
    f"{path} has no model of phase {' or '.join(phases)}, and no checkpoint of"
    " it: has that phase been trained there?"
  )


def _read_checkpoint(path: Any, name: str) -> FoundModel:
  # Upscaling installs do without TensorStore.
  from esrgan_jax.weights.formats import checkpoint_folders

  config, params, info, collections = checkpoint_folders.load_model(path)
  metadata = {"generator_sha256": info["sha256"]["ema"]}
  if origin := info.get("origin"):
    metadata["begun_from_sha256"] = origin["sha256"]
  weights = files.Weights(config, params, metadata, (), collections)
  return FoundModel(name, path, weights)
