"""Finds the model that a user means: all that takes one asks here.

| what is given                   | what is found                              |
| ------------------------------- | ------------------------------------------ |
| `realesrgan-x4plus`             | the zoo's model of that name               |
| `RealESRGAN_x4plus`, `.pth`     | the same by its file's official name,      |
|                                 | unless there is such a file here           |
| `model.safetensors`             | the file                                   |
| `RUN`                           | a workdir's last phase that has something: |
|                                 | its finished model, else its newest        |
|                                 | checkpoint                                 |
| `RUN/gan`                       | that phase's                               |
| `RUN/gan/checkpoints`           | the newest checkpoint in there             |
| `RUN/gan/checkpoints/5000`,     | that step's checkpoint                     |
| `RUN/gan/5000`                  |                                            |
| `FOLDER`                        | a checkpoint of any other program that has |
|                                 | Orbax save them, or its newest step in     |
|                                 | there; see `weights.trees`                 |

Names of the zoo win: for a folder or file of such a name say `./NAME`. Each may
be in a bucket (`gs://BUCKET/RUN`). A checkpoint has the averaged generator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from esrgan_jax import checks, storage
from esrgan_jax.errors import UsageError
from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.weights import discriminators, fields, files, trees, zoo
from esrgan_jax.weights.dialects.protocol import UntoldScaleError
from esrgan_jax.weights.formats import checkpoint_folders as folders
from esrgan_jax.weights.formats import plain_checkpoints
from esrgan_jax.weights.workdir import MODELS, SUFFIX, model_of, order, phases

__all__ = [
  "FoundModel",
  "Place",
  "check_scale",
  "find_discriminator",
  "find_model",
  "locate",
  "read",
  "read_config",
]

_SUFFIXES = (
  *(".safetensors", ".pth", ".pt", ".tar", ".h5"),
  *(".param", ".bin", ".ckpt"),
)

Progress = Callable[[int, int | None], None]


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a model is that was asked for.

  Attributes:
    name: What to call it: as it was asked for and, of a workdir, which part.
    path: The file, or a checkpoint's folder; an `epath.Path` in a bucket.
    is_checkpoint: Which of the two.
    notes: Sentences on choices made for the user; mostly none.
    metadata: What is known of it besides.
  """

  name: str
  path: Any
  is_checkpoint: bool = False
  notes: tuple[str, ...] = ()
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FoundModel:
  """A model that was asked for.

  Attributes:
    name: What to call it: as it was asked for and, of a workdir, which part.
    path: Where it was read from; an `epath.Path` if it is in a bucket.
    weights: The network, as a weight file holds it.
  """

  name: str
  path: Any
  weights: files.Weights


def find_model(
  model: str | os.PathLike[str],
  *,
  phase: Literal["first", "last"] | None = None,
  scale: int | None = None,
  config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
  fetch: bool = True,
  progress: Progress | None = None,
) -> FoundModel:
  """Reads the model that a text stands for.

  Args:
    model: See the table above.
    phase: Which phase of a workdir to take; None is the last that has a model
      or checkpoint.
    scale: Upscaling factor, for the rare file that does not tell (x3, or plain
      x2).
    config: The network's architecture and fields, for another program's file
      or checkpoint that has none beside it and does not tell, or the path of a
      JSON file with them. What tells itself must agree with it.
    fetch: Whether a named model that is not here may be downloaded.
    progress: Called with the bytes downloaded so far, and in all where known.

  Returns:
    The model.

  Raises:
    TypeError: If `model` is no name or path.
    ValueError: If there is no such name, or what is there is no network.
    FileNotFoundError: If there is no such file, or a workdir lacks the phase.
    OSError: If a bucket cannot be reached.
    RuntimeError: If it is a checkpoint, and what reads them is not installed.

  >>> find_model("realesrgan-x4plus-anime").weights.config["num_block"]
  6
  """
  place = locate(model, phase=phase, fetch=fetch, progress=progress)
  return read(place, scale=scale, config=config)


def locate(
  model: str | os.PathLike[str],
  *,
  phase: Literal["first", "last"] | None = None,
  fetch: bool = True,
  progress: Progress | None = None,
) -> Place:
  """Finds what a text stands for, and does not read it; see `find_model`.

  >>> locate("RealESRGAN_x4plus_anime_6B.pth", fetch=False)
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.zoo.ModelNotFoundError: realesrgan-x4plus-anime-float32...
  """
  checks.check_path(model, "model", "a name or a path")
  text = os.fspath(model)
  if not text:
    raise UsageError(
      "the model's name is empty: give a name, a file or a workdir"
      f" ({os.curdir} is the folder here)"
    )
  if entry := zoo.lookup(text):
    notes = ()
    if os.path.exists(text):
      if text not in (entry.name, entry.short):
        return _locate(pathlib.Path(text), phase)
      notes = (
        f"took the model of the name {text}; for what lies here say"
        f" {os.curdir}{os.sep}{text}",
      )
    path = zoo.find(entry.name, fetch=fetch, progress=progress)
    metadata = {"source": entry.source, "licence": entry.licence}
    return Place(text, path, notes=notes, metadata=metadata)
  if "://" in text:
    with storage.reaching(text):
      return _locate(storage.absolute(text), phase)
  path = pathlib.Path(text)
  if not path.exists() and not _looks_like_a_path(text):
    zoo.get(text)  # Raises, with the nearest names.
  return _locate(path, phase)


def read(
  place: Place,
  *,
  scale: int | None = None,
  config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> FoundModel:
  """Reads the model at a place; see `find_model`.

  Args:
    place: As of `locate`.
    scale: Upscaling factor, for the rare file that does not tell (x3, or plain
      x2).
    config: As of `find_model`.
  """
  if isinstance(config, str | os.PathLike):
    config = read_config(config)
  elif not isinstance(config, Mapping | None):
    raise TypeError(
      "config must be a network's fields by name, or the path of a JSON file"
      f" with them, got {checks.describe(config)}"
    )
  if place.is_checkpoint:
    weights = _read_checkpoint(place.path, scale, config)
  else:
    read_weights = functools.partial(files.read_weights, config=config)
    try:
      weights = _read_file(
        place.path, functools.partial(read_weights, scale=scale)
      )
    except UntoldScaleError:
      told = (config or {}).get("scale")
      if not isinstance(told, int):
        raise
      weights = _read_file(
        place.path, functools.partial(read_weights, scale=told)
      )
  if config:
    _check_config(place.name, weights.config, config)
  weights = dataclasses.replace(
    weights,
    metadata=weights.metadata | dict(place.metadata),
    notes=place.notes + weights.notes,
  )
  return FoundModel(place.name, place.path, weights)


def read_config(
  path: str | os.PathLike[str] | None,
) -> dict[str, Any] | None:
  """Reads a network's config from a file, for `find_model`.

  Args:
    path: JSON with the network's `scale`, its `architecture` (absent: RRDBNet)
      and fields; or a workdir's `config.json`. None for none.

  Returns:
    Architecture and fields, not yet checked; None for none.

  Raises:
    ValueError: If it is none, or cannot be read.

  >>> read_config("/nowhere.json")
  Traceback (most recent call last):
  ...
  ValueError: /nowhere.json is no config of a network: No such file...
  """
  if path is None:
    return None
  with storage.reaching(path):
    return plain_checkpoints.read_config(_as_path(path))


def check_scale(
  name: str, config: Mapping[str, Any], scale: int | None
) -> None:
  """Raises if a model has not the scale that was asked for.

  Files are compared as they are read, by what their arrays tell; a checkpoint
  says what it is, whatever was asked for.

  Args:
    name: What to call the model.
    config: Its configuration.
    scale: As it was asked for; None for any.

  Raises:
    ValueError: If it has another one.

  >>> check_scale("run/gan", {"scale": 4}, 2)
  Traceback (most recent call last):
  ...
  ValueError: run/gan is a x4 model, not x2
  """
  if scale not in (None, config["scale"]):
    raise ValueError(f"{name} is a x{config['scale']} model, not x{scale}")


def find_discriminator(
  path: str | os.PathLike[str],
) -> discriminators.Discriminator:
  """Reads a discriminator, to start another one from.

  Args:
    path: A workdir (then the last phase that has a discriminator), a phase's
      folder, its `checkpoints`, or one step in there; or a file, such as
      Real-ESRGAN's `RealESRGAN_x4plus_netD.pth`.

  Returns:
    The discriminator.

  Raises:
    FileNotFoundError: If there is no such file, or no checkpoint.
    ValueError: If there is no discriminator in it.

  >>> find_discriminator("/nowhere")
  Traceback (most recent call last):
  ...
  FileNotFoundError: no file /nowhere
  """
  root = _as_path(path)
  with storage.reaching(root), _explaining_imports(root):
    if there := phases(root):
      steps = [folders.newest(root / name) for name in reversed(there)]
    else:
      place = _locate(root, None, finished=False)
      if not place.is_checkpoint:
        return _read_file(place.path, discriminators.read_discriminator)
      steps = [place.path]
    for step in filter(folders.is_ours, filter(None, steps)):
      config, variables = folders.load_discriminator(step)
      if variables:
        return discriminators.Discriminator(config, variables)
  raise ValueError(
    f"{printable(path)} has no checkpoint with a discriminator: phases that"
    " train one, such as gan, have it"
  )


def _check_config(
  name: str, said: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
  """Raises if a config that was given contradicts what a model says itself."""
  try:
    given = fields.checked({"architecture": said["architecture"], **given})
  except ValueError as error:
    raise ValueError(f"{name}: the config that was given: {error}") from error
  for key, value in given.items():
    # None is what the others come to; how it is computed, files do not say.
    if None not in (value, said.get(key)) and said[key] != value:
      raise ValueError(
        f"the config that was given says {key} {printable(value)}, but {name}"
        f" has {printable(said[key])}; leave the config out"
      )


def _looks_like_a_path(text: str) -> bool:
  suffix = os.path.splitext(text)[1].lower()
  return os.sep in text or text in (os.curdir, os.pardir) or suffix in _SUFFIXES


def _as_path(path: str | os.PathLike[str]) -> Any:
  """A path with a name: `.` has none."""
  if storage.is_remote(path):
    return storage.absolute(path)
  path = pathlib.Path(path)
  return path if path.name not in ("", os.pardir) else path.resolve()


def _locate(path: Any, phase: str | None, *, finished: bool = True) -> Place:
  """The place that a path stands for, of a model or, else, of a checkpoint."""
  path = _as_path(path)
  if path.is_file():
    return Place(path.name, path)
  if not path.is_dir():
    return _locate_what_is_elsewhere(path)
  if whole := folders.whole_of(path):
    raise ValueError(f"{path} is a part of the checkpoint {whole}: give that")
  if folders.is_checkpoint(path):
    return Place(_name(path), path, is_checkpoint=True)
  if steps := folders.steps_in(path):
    return Place(_name(path), steps[-1], is_checkpoint=True)
  if folders.number(path):
    raise FileNotFoundError(f"no checkpoint in {path} is complete")
  if path.name != MODELS and _is_phase(path):
    found = _of_phase(path.parent, path.name, finished=finished)
    if found is None:
      raise _nothing_of(path.parent, [path.name])
    return found
  if phases(path):
    return _of_workdir(path, phase)
  models = sorted(each.name for each in path.glob(f"*{SUFFIX}"))
  raise ValueError(
    f"{path} is a folder: give a file in it"
    f" ({', '.join(map(printable, models)) or 'no model'}), or a workdir of"
    f" training, or a folder of {folders.FOLDER}"
  )


def _locate_what_is_elsewhere(path: Any) -> Place:
  """What is meant by a path where nothing is: a step, or a phase's model."""
  if path.name.isdecimal():
    phase = path.parent
    if folders.number(phase):
      there = folders.list_steps(phase)
    else:
      there = []
      for folder in folders.all_of(phase):
        steps = folders.list_steps(folder)
        if int(path.name) in steps:
          found = folder / path.name
          return Place(_name(found), found, is_checkpoint=True)
        there += steps
    if there:
      raise FileNotFoundError(
        f"no checkpoint of step {path.name} in {printable(phase)}; there are:"
        f" {', '.join(map(str, sorted(there)))}"
      )
  model = model_of(path.parent, path.name)
  if path.name and model.is_file():
    return Place(_name(path), model)
  raise FileNotFoundError(f"no file {printable(path)}")


def _of_workdir(workdir: Any, phase: str | None) -> Place:
  """A phase's model or newest checkpoint."""
  there, ordered = phases(workdir), order(workdir)
  if phase is None:
    wanted = list(reversed(there))
    if len(there) > 1 and not set(there) & set(ordered):
      raise ValueError(
        f"{workdir} has models of several phases, and no config.json that says"
        f" which is the last: give one, such as {workdir / there[-1]}"
      )
  elif phase == "last":
    wanted = [ordered[-1]]
  elif len(ordered) > 1 or len(there) == 1:
    wanted = [ordered[0]]
  else:  # The one phase began from a model that lies beside its own.
    wanted = [there[0]]
  for name in wanted:
    if found := _of_phase(workdir, name):
      return found
  raise _nothing_of(workdir, wanted)


def _of_phase(
  workdir: Any, name: str, *, finished: bool = True
) -> Place | None:
  label = _name(workdir / name)
  model = model_of(workdir, name)
  if finished and model.is_file():
    return Place(label, model)
  if newest := folders.newest(workdir / name):
    return Place(label, newest, is_checkpoint=True)
  return None


def _nothing_of(workdir: Any, names: list[str]) -> FileNotFoundError:
  return FileNotFoundError(
    f"{workdir} has no model of phase {' or '.join(map(printable, names))}, and"
    " no checkpoint of it: has that phase been trained there?"
  )


def _is_phase(path: Any) -> bool:
  model = model_of(path.parent, path.name)
  return bool(folders.all_of(path)) or model.is_file()


def _name(path: Any) -> str:
  """The last parts of a path that tell models of one workdir apart."""
  each = (pathlib.PurePath(part) for part in path.parts)
  parts = [part.name for part in each if not folders.number(part)]
  count = 3 if path.name.isdecimal() else 2
  return "/".join(parts[-count:])


def _read_file(path: Any, read: Callable[[pathlib.Path], Any]) -> Any:
  if isinstance(path, pathlib.Path):
    return read(path)
  # In a bucket: read from a copy, which no error should name.
  with storage.reaching(path), tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder, path.name)
    copy.write_bytes(path.read_bytes())
    try:
      return read(copy)
    except ValueError as error:
      kind = UntoldScaleError
      kind = kind if isinstance(error, kind) else ValueError
      raise kind(str(error).replace(str(copy), str(path))) from error


def _read_checkpoint(
  path: Any, scale: int | None, config: Mapping[str, Any] | None
) -> files.Weights:
  with storage.reaching(path), _explaining_imports(path):
    if not folders.is_ours(path):
      return trees.read(path, scale=scale, config=config)
    config, params, info, collections = folders.load_model(path)
  try:
    config = fields.checked(config)
  except registry.UnknownArchitectureError as error:
    raise registry.UnknownArchitectureError(f"{path} {error}") from error
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  metadata = {"generator_sha256": info["sha256"]["ema"]}
  if origin := info.get("origin"):
    metadata["begun_from_sha256"] = origin["sha256"]
  if isinstance(found := info.get("metadata"), dict):
    metadata |= {k: v for k, v in found.items() if isinstance(v, str)}
  return files.Weights(config, params, metadata, (), collections)


@contextlib.contextmanager
def _explaining_imports(path: Any) -> Iterator[None]:
  """Installs for upscaling alone may lack what reads checkpoints."""
  try:
    yield
  except ImportError as error:
    raise RuntimeError(
      f"{path} is a checkpoint, which takes {error.name or 'TensorStore'} to be"
      " read, and that is not installed: pip install tensorstore, or give the"
      " model's .safetensors file"
    ) from error
