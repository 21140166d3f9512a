"""Models as programs of other runtimes, each run before it gets its name.

`export` writes a model into a folder of its own, has the other runtime run what
lies there on a photo, in a process without this package, and compares with the
model; only then the files take their names. `python -m esrgan_jax export` is
this; `register_program` adds to the table from elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from esrgan_jax import extras, storage
from esrgan_jax.errors import UsageError
from esrgan_jax.export import checking
from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.weights.files import Weights

__all__ = [
  "Exported",
  "Options",
  "Program",
  "check_export",
  "check_target",
  "export",
  "find_program",
  "names",
  "paths_of",
  "programs",
  "register_program",
  "runtime_version",
  "verify",
]

_PACKED = ".tar.gz"


@dataclasses.dataclass(frozen=True)
class Options:
  """How a program is written.

  Attributes:
    dtype: Of its numbers, one of its format's.
    size: Height and width of images, if it is for one size only.
  """

  dtype: str
  size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Program:
  """One format of programs.

  Attributes:
    name: As `--format` has it.
    title: What it is, and who runs it.
    suffix: Of its file; empty for a folder, which can be packed.
    packages: Modules that writing and running it takes.
    runtime: The one of them that runs it, by the name it is installed by.
    write: `(path, weights, options)`: writes it to a new path.
    run: `(path, images) -> results`, of float32 `[N, H, W, 3]` in [0, 1].
      It is copied into a process of its own, so all imports are inside.
    bounds: The types of numbers that it may have, the usual one first, and
      the largest difference from the model that each may make, of [0, 1].
    others: Suffixes of files that are written beside.
    half: What of a model float16 rounds: "kernels"; "all" arrays; or "" where
      it computes in that as well, so that nothing tells what is due.
    read: `path -> (array, tolerance)` for each that is in the file, copied
      as `run` is, rounded no further than its type does, or `tolerance` says.
      With it what a result does not tell, a wrong number that is small, is
      found too.
    keeps: What those arrays are: "layers", as a network is drawn, kernels
      `[O, K, K, I]`; or "variables", as the model has them.
    takes_size: Whether it can be for one size only.
    fills_up: Whether it takes sizes that the network alone cannot.
    folds: Whether its convolutions have the factors of their results in them.
  """

  name: str
  title: str
  suffix: str
  packages: tuple[str, ...]
  runtime: str
  write: Callable[[pathlib.Path, Weights, Options], None]
  run: Callable[[str, Iterable[np.ndarray]], Iterator[np.ndarray]]
  bounds: Mapping[str, float]
  others: tuple[str, ...] = ()
  half: str = ""
  read: Callable[[str], Iterator[tuple[np.ndarray, Any]]] | None = None
  keeps: str = "layers"
  takes_size: bool = False
  fills_up: bool = True
  folds: bool = False


@dataclasses.dataclass(frozen=True)
class Exported:
  """What was written, and how it fared.

  Attributes:
    paths: The files, or the folder.
    checked: What the other runtime made of a photo.
  """

  paths: tuple[pathlib.Path, ...]
  checked: checking.Checked


_programs: dict[str, Program] = {}


def register_program(program: Program) -> None:
  """Adds a format to the table.

  Raises:
    ValueError: If another format has its name.
  """
  if _programs.get(program.name, program) != program:
    raise ValueError(f"another format is called {program.name!r}")
  _programs[program.name] = program


def names() -> tuple[str, ...]:
  """Returns the names of all formats.

  >>> names()
  ('saved_model', 'onnx', 'stablehlo', 'tflite', 'ncnn')
  """
  return tuple(_programs)


def programs() -> tuple[Program, ...]:
  """Returns all formats."""
  return tuple(_programs.values())


def find_program(name: str) -> Program:
  """Returns the format of that name.

  Raises:
    ValueError: If there is none.

  >>> find_program("onnx").suffix
  '.onnx'
  """
  if name not in _programs:
    raise UsageError(
      f"no format {printable(name)!r}; there are {', '.join(_programs)}"
    )
  return _programs[name]


def paths_of(program: Program, path: str | os.PathLike[str]) -> list[Any]:
  """Returns where a program's files go, the one that is named first.

  >>> [p.name for p in paths_of(find_program("ncnn"), "anime")]
  ['anime.param', 'anime.bin']
  """
  if storage.is_remote(path):
    raise ValueError(
      f"{printable(path)} is in a bucket: export to a disk, and copy from there"
    )
  path = pathlib.Path(path)
  lower = path.name.lower()
  known = {s for p in programs() for s in (p.suffix, *p.others) if s}
  ends = [s for s in known if lower.endswith(s) and lower != s]
  found = max(ends, key=len, default="")
  packed = lower.endswith(_PACKED)
  own = (program.suffix, *program.others)
  if (found and found not in own) or (packed and program.suffix):
    raise UsageError(
      f"{printable(path)} is no name of {program.name}: give one that ends in"
      f" {program.suffix or _PACKED}"
    )
  if not program.others:
    return [path]
  stem = path.name[: -len(found)] if found else path.name
  return [path.with_name(f"{stem}{suffix}") for suffix in own]


def check_target(
  name: str,
  path: str | os.PathLike[str],
  options: Options,
  *,
  overwrite: bool,
  inputs: Any = (),
) -> None:
  """Raises if a program cannot be written, before there is a model.

  Args:
    name: The format.
    path: The file or folder.
    options: How it is to be written.
    overwrite: Whether it may replace one.
    inputs: What must not be replaced even so, by `storage.file_ids`.

  Raises:
    ValueError: If the format has no such options, or the name is another's.
    RuntimeError: If what the format needs is not installed.
    OSError: As `storage.check_output`.

  >>> check_target("onnx", "a.tflite", Options("float32"), overwrite=False)
  Traceback (most recent call last):
  ...
  esrgan_jax.errors.UsageError: a.tflite is no name of onnx: give one that ...
  """
  program = find_program(name)
  targets = paths_of(program, path)
  _check_options(program, options)
  _check_installed(program)
  for target in targets:
    if _is_folder(program, target):
      _check_folder(target, overwrite)
    else:
      storage.check_output(target, overwrite=overwrite, inputs=inputs)


def check_export(
  name: str, path: str | os.PathLike[str], options: Options
) -> None:
  """Raises if there is nothing to verify, or nothing to verify it with.

  Args:
    name: The format.
    path: The file or folder that is there.
    options: How it was written.

  Raises:
    ValueError: If the format has no such options, or the name is another's.
    RuntimeError: If what the format needs is not installed.
    FileNotFoundError: If a file is missing.

  >>> check_export("ncnn", "nowhere.param", Options("float16"))
  Traceback (most recent call last):
  ...
  FileNotFoundError: no nowhere.param
  """
  program = find_program(name)
  targets = paths_of(program, path)
  _check_options(program, options)
  for target in targets:
    if not target.exists():
      raise FileNotFoundError(f"no {printable(target)}")
  _check_installed(program)


def export(
  name: str,
  path: str | os.PathLike[str],
  weights: Weights,
  options: Options | None = None,
  *,
  photo: np.ndarray | None = None,
  overwrite: bool = False,
) -> Exported:
  """Writes a model for another runtime, which has run it by then.

  Args:
    name: The format, one of `names()`.
    path: The file; for a SavedModel a folder, or a `.tar.gz` of one.
    weights: The model, of RGB images.
    options: None means the format's usual numbers, and any size.
    photo: uint8 `[H, W, 3]`, what it is tried on; None for one that comes with
      the package.
    overwrite: Whether to replace what has that name.

  Returns:
    The paths, and the largest differences.

  Raises:
    ValueError: If the format cannot hold the model, or gives another result
      than the model: then nothing has been written.
    RuntimeError: If what the format needs is not installed.
    OSError: If it cannot be written.
  """
  program = find_program(name)
  options = options or Options(next(iter(program.bounds)))
  check_target(name, path, options, overwrite=overwrite)
  _check_model(program, weights, options)
  targets = paths_of(program, path)
  with storage.temporary_folder() as folder:
    aside = folder / f"model{program.suffix}"
    with _naming(program):
      program.write(aside, weights, options)
    try:
      checked = verify(program, aside, weights, options, photo=photo)
    except ValueError as error:
      raise ValueError(f"{error}: {printable(path)} was not written") from error
    if not program.suffix:
      _place_folder(aside, targets[0], overwrite)
      return Exported(tuple(targets), checked)
    suffixes = (program.suffix, *program.others)
    sources = [folder / f"model{suffix}" for suffix in suffixes]
    done: list[pathlib.Path] = []
    try:
      # The one that is named comes last: where it is, all are.
      for source, target in reversed(list(zip(sources, targets, strict=True))):
        with (
          open(source, "rb") as read,
          storage.written_aside(target, overwrite=overwrite) as file,
        ):
          shutil.copyfileobj(read, file)
        done.append(target)
    except BaseException:
      for target in done:
        target.unlink(missing_ok=True)
      raise
  return Exported(tuple(targets), checked)


@contextlib.contextmanager
def _naming(program: Program) -> Iterator[None]:
  """Says of errors of a writer which format's it is."""
  try:
    yield
  except (MemoryError, OSError):
    raise
  except Exception as error:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    said = printable(error, limit=1000) or "no more is known"
    raise ValueError(
      f"{program.name} cannot be written: {kind}{said}"
    ) from error


def verify(
  program: Program,
  path: str | os.PathLike[str],
  weights: Weights,
  options: Options,
  *,
  photo: np.ndarray | None = None,
) -> checking.Checked:
  """Has the other runtime run what was exported, and compares.

  Args:
    program: The format.
    path: What was exported: a file, or a folder, also a packed one.
    weights: The model that it is said to be.
    options: How it was written.
    photo: As for `export`.

  Returns:
    The largest differences.

  Raises:
    ValueError: If the runtime fails, or a difference is beyond the bound.
  """
  with storage.temporary_folder() as folder:
    if not program.suffix and pathlib.Path(path).is_file():
      _unpack(pathlib.Path(path), folder / "model")
      path = folder / "model"
    return checking.check(program, path, weights, options, photo, folder)


def _check_options(program: Program, options: Options) -> None:
  if options.dtype not in program.bounds:
    raise UsageError(
      f"{program.name} has no {printable(options.dtype)}: choose one of"
      f" {', '.join(program.bounds)}"
    )
  if options.size and not program.takes_size:
    raise UsageError(
      f"{program.name} is for any size: leave out {options.size[0]}x"
      f"{options.size[1]}"
    )


def _check_installed(program: Program) -> None:
  missing = [
    each for each in program.packages if not importlib.util.find_spec(each)
  ]
  if missing:
    raise RuntimeError(
      f"exporting to {program.name} takes {' and '.join(missing)}, which"
      f" {'is' if len(missing) == 1 else 'are'} not installed:"
      f" {extras.pip_install(program.name.replace('_', '-'), *missing)}"
    )


def _check_model(program: Program, weights: Weights, options: Options) -> None:
  net = registry.make_generator(**weights.config)
  if (channels := registry.channels(net)) != (3, 3):
    raise ValueError(
      f"the network takes {channels[0]} channels and gives {channels[1]}:"
      " exports are of RGB, 3 and 3"
    )
  side = registry.size_multiple(net)
  if options.size and any(each < 1 or each % side for each in options.size):
    h, w = options.size
    raise ValueError(
      f"the network takes multiples of {side} pixels, got {h}x{w}"
      if side > 1
      else f"an image has pixels, got {h}x{w}"
    )


def _is_folder(program: Program, path: pathlib.Path) -> bool:
  return not program.suffix and not path.name.lower().endswith(_PACKED)


def _check_folder(path: pathlib.Path, overwrite: bool) -> None:
  if not os.path.lexists(path):
    # Something to be made there is as good as a file.
    storage.check_output(path, overwrite=False)
    return
  if not (path / "saved_model.pb").is_file():
    raise FileExistsError(
      f"{printable(path)} is there, and no SavedModel: choose another name"
    )
  if not overwrite:
    raise FileExistsError(
      f"{printable(path)} exists; choose another name, or pass --overwrite"
    )


def _place_folder(
  source: pathlib.Path, target: pathlib.Path, overwrite: bool
) -> None:
  if target.name.lower().endswith(_PACKED):
    with storage.written_aside(target, overwrite=overwrite) as file:
      _pack(source, file)
    return
  with storage.folder_written_aside(target, is_whole=lambda _: False) as aside:
    shutil.copytree(source, aside, dirs_exist_ok=True)
    _check_folder(target, overwrite)


def _pack(folder: pathlib.Path, file: Any) -> None:
  """Packs what is in a folder; the same bytes each time."""

  def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info

  with (
    gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    tarfile.open(fileobj=packed, mode="w") as tar,
  ):
    for path in sorted(folder.rglob("*")):
      name = path.relative_to(folder).as_posix()
      tar.add(path, name, recursive=False, filter=anonymous)


def _unpack(path: pathlib.Path, folder: pathlib.Path) -> None:
  """Unpacks a SavedModel, which cannot be of any size."""
  left = 100 * path.stat().st_size + 2**20
  try:
    with tarfile.open(path) as packed:
      for member in packed:
        left -= member.size + tarfile.BLOCKSIZE
        if left < 0:
          raise ValueError(
            f"{printable(path)} unpacks to more than it could be"
          )
        packed.extract(member, folder, filter="data")
  except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise ValueError(
      f"{printable(path)} cannot be unpacked: {printable(error)}"
    ) from error


def runtime_version(program: Program) -> str:
  """Returns the name and version of what runs a format.

  A package may come by another name than its runtime's: TensorFlow as
  `tensorflow-cpu`, ONNX Runtime as `onnxruntime-gpu`.

  >>> runtime_version(find_program("stablehlo")).startswith("jax ")
  True
  """
  found = importlib.metadata.packages_distributions()
  module = program.runtime.replace("-", "_")
  for name in [program.runtime, *sorted(found.get(module, ()))]:
    try:
      return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
      pass
  return program.runtime
