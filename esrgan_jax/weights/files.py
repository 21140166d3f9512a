"""Reads and writes weight files of every supported kind.

What a file is, its first bytes say: names lie ("model.pth" that is a web page
or a Git LFS pointer is an everyday mishap).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax import checks, extras, storage
from esrgan_jax.errors import UsageError
from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.weights import fields, partial, selection
from esrgan_jax.weights.dialects import DIALECTS, plain
from esrgan_jax.weights.dialects.protocol import (
  Dialect,
  NamedWeights,
  Params,
  UnsupportedWeightsError,
  UntoldScaleError,
)
from esrgan_jax.weights.formats import hdf5_file, safetensors_file
from esrgan_jax.weights.formats.keras_file import read_keras
from esrgan_jax.weights.formats.limits import DamagedFileError
from esrgan_jax.weights.formats.ncnn_file import MAGIC, read_ncnn
from esrgan_jax.weights.formats.safetensors_file import read_safetensors
from esrgan_jax.weights.formats.torch_file import UnsafeFileError, read_torch

READABLE = (
  ".safetensors, .pth, .pt, .pth.tar, .h5 (Keras), .param with .bin (ncnn)"
)
WRITABLE = (".safetensors", ".pth", ".pth.tar")
DTYPES = ("float32", "float16")

# What people hand over instead of weights, by its first bytes.
_MISHAPS: tuple[tuple[bytes, str], ...] = (
  (
    b"version https://git-lfs",
    "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download"
    " the file from its page",
  ),
  (b"<!doctype", "is a web page: the download link led to a page, not a file"),
  (b"<html", "is a web page: the download link led to a page, not a file"),
  (b"\x89png", "is an image, not weights"),
  (b"\xff\xd8\xff", "is an image, not weights"),
  (b"\x1f\x8b", "is a gzip archive: unpack it first"),
  (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
  (b"rar!", "is a RAR archive: unpack it first"),
)


@dataclasses.dataclass(frozen=True)
class Weights:
  """A network read from a file.

  Attributes:
    config: The network's architecture and fields, for
      `registry.make_generator(**config)`.
    params: Its parameter tree, float32 NumPy arrays.
    metadata: Strings that the file carries, such as licence and source.
    notes: Sentences on choices made while reading, for the user; mostly none.
    collections: Its variables besides `params`, such as BatchNorm's
      `batch_stats`; mostly none.
  """

  config: dict[str, Any]
  params: Params
  metadata: dict[str, str]
  notes: tuple[str, ...] = ()
  collections: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_weights(
  path: str | os.PathLike[str],
  *,
  scale: int | None = None,
  config: Mapping[str, Any] | None = None,
) -> Weights:
  """Reads a network from a file of any supported kind.

  Args:
    path: `.safetensors`, `.pth`, `.pt`, Keras's `.h5`, or either file of an
      ncnn pair; told apart by content.
    scale: Upscaling factor, needed only for a x3 or plain x2 network in a file
      that does not say which (see `esrgan_jax.weights.dialects.rrdb`).
    config: Fields of the network, of which those are heeded that its arrays
      don't tell.

  Returns:
    The network's configuration, parameters, metadata and notes.

  Raises:
    FileNotFoundError: If there is no such file.
    UnknownArchitectureError: If the file names one that nobody registered.
    UnsupportedWeightsError: If the file holds no network that is supported, or
      several; says what it holds.
    UntoldScaleError: If it does not tell its scale, and `scale` is None.
    ValueError: If it is damaged, unsafe, or no weight file at all. All of them
      are one line that names the file.

  >>> config = dict(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=1,
  ...               num_grow_ch=2, scale=3, unshuffle=1)
  >>> from esrgan_jax.weights.dialects import rrdb
  >>> state = {k: np.ones(s) for k, s in rrdb.shapes(config).items()}
  >>> params = rrdb.from_state_dict(state, scale=3).params
  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = write_weights(f"{folder}/x3.safetensors", params, config)
  ...   read_weights(path).config["scale"]
  3
  """
  path = pathlib.Path(path)
  kind = kind_of(path)
  with naming(path):
    state, metadata = read_arrays(path, kind)
    found = _network(state, metadata, scale, config or {})
  return Weights(
    found.config, found.params, metadata, found.notes, found.collections
  )


def read_arrays(
  path: pathlib.Path, kind: str
) -> tuple[dict[str, Any], dict[str, str]]:
  """Reads the arrays of a file, whatever network they are.

  Args:
    path: The file.
    kind: As of `kind_of`.

  Returns:
    Name to array, or dicts of such dicts; and the file's metadata.

  Raises:
    ValueError: If it is damaged, unsafe, or not of that kind; see `naming`.

  >>> read_arrays(pathlib.Path("none"), "safetensors")
  Traceback (most recent call last):
  ...
  FileNotFoundError: [Errno 2] No such file or directory: 'none'
  """
  if kind == "ncnn":
    return selection.name_layers(read_ncnn(path))
  if kind == "safetensors":
    return read_safetensors(path)
  if kind == "keras":
    return read_keras(path), {}
  state = read_torch(path)
  own = state.pop("esrgan_jax", None)
  if not isinstance(own, dict):
    return state, {}
  # Nothing that holds others: its text may be longer than any memory.
  plain = (str, int, float)
  return state, {k: str(v) for k, v in own.items() if isinstance(v, plain)}


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
  """Has what is raised in here name a file, in one line.

  Args:
    path: The file.

  >>> with naming(pathlib.Path("my.pth")):
  ...   raise ValueError("it is cut short")
  Traceback (most recent call last):
  ...
  ValueError: my.pth: it is cut short
  """
  try:
    yield
  except registry.UnknownArchitectureError as e:
    raise registry.UnknownArchitectureError(f"{printable(path)} {e}") from e
  except ValueError as e:
    # The same kind of error, with the file's name in front.
    kinds = (
      *(UnsupportedWeightsError, UntoldScaleError),
      *(UnsafeFileError, DamagedFileError),
    )
    error = type(e) if isinstance(e, kinds) else ValueError
    raise error(printable(f"{path}: {e}", limit=1000)) from e


def write_weights(
  path: str | os.PathLike[str],
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  collections: Mapping[str, Any] | None = None,
  dtype: str = "float32",
  metadata: Mapping[str, object] | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes a network to a file that BasicSR, chaiNNer and ComfyUI load.

  One without a dialect, such as a user's own, is for this package only.

  The file is written aside and renamed once complete, so a crash leaves
  neither half a file nor a damaged old one.

  Args:
    path: `.safetensors`; where PyTorch is installed, `.pth`, or `.pth.tar` for
      programs that look for a `state_dict`.
    params: The network's parameter tree.
    config: The network's `architecture` (absent: RRDBNet) and fields. `scale`
      is required; where there is a dialect, the rest is read from `params`.
    collections: Its variables besides, such as BatchNorm's `batch_stats`.
    dtype: "float32" or, at half the size, "float16".
    metadata: Further notes to keep in the file, such as source, licence, alpha.
    overwrite: Replace an existing file.

  Returns:
    The path.

  Raises:
    TypeError: If what is given is of another kind, or traced.
    ValueError: If the suffix or `dtype` is not supported, `config` contradicts
      `params`, a weight is not finite or does not fit float16.
    FileExistsError: If the file exists and `overwrite` is false.
    FileNotFoundError: If its folder does not exist.
    RuntimeError: If PyTorch's is asked for, and it is not installed.

  >>> write_weights("model.h5", {}, {"scale": 4})
  Traceback (most recent call last):
  ...
  esrgan_jax.errors.UsageError: cannot write model.h5: the suffix must be .sa...
  """
  checks.check_path(path)
  for name, value in (("params", params), ("config", config)):
    if not isinstance(value, Mapping):
      raise TypeError(
        f"{name} must be a dictionary, got {checks.describe(value)}"
      )
  checks.check_concrete(
    (params, collections),
    "write_weights",
    "call it outside of jax.jit, with what a program returns",
  )
  path = check_output(path, overwrite=overwrite)
  if dtype not in DTYPES:
    raise ValueError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}")
  config = {"architecture": registry.DEFAULT_GENERATOR, **config}
  name, collections = config["architecture"], collections or {}
  registry.find_generator(name)
  if dialect := DIALECTS.get(name):
    state = dialect.to_state_dict(params, collections, config)
    # Reading back what is to be written checks names, shapes and finiteness.
    found = agreeing(dialect, state, config)
    own = {key: str(value) for key, value in found.config.items()}
  else:
    state = plain.to_state_dict(params, collections)
    own = {"scale": str(config["scale"]), fields.KEY: fields.to_text(config)}
  if dtype == "float16":
    state = {k: _float16(k, v) for k, v in state.items()}
  notes = {str(k): str(v) for k, v in (metadata or {}).items()}
  notes |= {"format": "pt", "architecture": name, **own}
  return write_arrays(path, state, notes, overwrite=overwrite)


def write_arrays(
  path: str | os.PathLike[str],
  state: Mapping[str, np.ndarray],
  notes: Mapping[str, str],
  *,
  overwrite: bool,
) -> pathlib.Path:
  """Writes named arrays to a file of the kind that its suffix says.

  Args:
    path: As of `write_weights`.
    state: Name to array.
    notes: Metadata.
    overwrite: Replace an existing file.

  Returns:
    The path.

  Raises:
    ValueError: If the suffix is not supported.
    OSError: As of `write_weights`.
    RuntimeError: If PyTorch's is asked for, and it is not installed.

  >>> write_arrays("arrays.npz", {}, {}, overwrite=False)
  Traceback (most recent call last):
  ...
  esrgan_jax.errors.UsageError: cannot write arrays.npz: the suffix must be ...
  """
  path = check_output(path, overwrite=overwrite)
  suffix = _suffix(path)
  if suffix == ".safetensors":
    data = safetensors_file.to_bytes(state, notes)
    storage.write_whole(path, data, overwrite=overwrite)
  else:
    # Where BasicSR looks, and what most tutorials' checkpoints have.
    key = "params" if suffix == ".pth" else "state_dict"
    write = _torch_writer(key, state, notes)
    with storage.written_aside(path, overwrite=overwrite) as file:
      write(file)
  return path


def agreeing(
  dialect: Dialect, state: Mapping[str, Any], config: Mapping[str, Any]
) -> NamedWeights:
  """Returns the network that arrays make, if it is the one that a config says.

  Args:
    dialect: The architecture's.
    state: Its arrays, by the names of the dialect.
    config: Fields of the network, as many as are known.

  Raises:
    ValueError: If arrays and config say different things.

  >>> from esrgan_jax.weights.dialects import rrdb
  >>> agreeing(rrdb, {}, {})
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.dialects.protocol.UnsupportedWeightsError: an RRDBNet...
  """
  known = {key: config.get(key) for key in ("scale", *dialect.UNTOLD)}
  try:
    found = dialect.from_state_dict(state, **known)
  except UnsupportedWeightsError:
    raise
  except ValueError as error:
    # To leave it out, as of a file, is no way out where a config must have it.
    scale = known.pop("scale")
    try:
      told = dialect.from_state_dict(state, **known).config["scale"]
    except ValueError:
      raise error from None
    if told == scale:
      raise
    raise ValueError(
      f"scale {printable(scale)} was given, but the parameters are those of a"
      f" x{told} network: give scale {told}"
    ) from error
  for key, value in found.config.items():
    if config.get(key) not in (None, value):
      raise ValueError(
        f"config says {key} {config[key]}, but the parameters have {value}"
      )
  return found


def check_installed(path: str | os.PathLike[str]) -> None:
  """Raises if what writes a file of that name is not installed.

  Args:
    path: The file.

  Raises:
    RuntimeError: If it is one of PyTorch's, which is missing.

  >>> check_installed("model.safetensors")
  """
  is_torch = _suffix(pathlib.Path(path)) in (".pth", ".pth.tar")
  if is_torch and importlib.util.find_spec("torch") is None:
    raise RuntimeError(
      "writing .pth takes PyTorch, which is not installed:"
      f" {extras.pip_install('torch')}, or write .safetensors, which chaiNNer,"
      " ComfyUI and spandrel load as well"
    )


def check_output(
  path: str | os.PathLike[str],
  *,
  overwrite: bool,
  inputs: Container[tuple[int, int]] = (),
) -> pathlib.Path:
  """Returns a path, if a file of weights can be written there.

  Args:
    path: The file.
    overwrite: Whether one that is there may be replaced.
    inputs: As of `storage.check_output`.

  Raises:
    ValueError: If the suffix is not supported.
    OSError: As of `write_weights`.
    RuntimeError: If PyTorch's is asked for, and it is not installed.

  >>> check_output("model.safetensors", overwrite=True).name
  'model.safetensors'
  """
  path = pathlib.Path(path)
  if not _suffix(path):
    *others, last = WRITABLE
    raise UsageError(
      f"cannot write {printable(path)}: the suffix must be"
      f" {', '.join(others)} or {last}"
    )
  storage.check_output(path, overwrite=overwrite, inputs=inputs)
  check_installed(path)
  return path


def _suffix(path: pathlib.Path) -> str:
  """Which of `WRITABLE` a name ends with; empty for none."""
  name = path.name.lower()
  return next((s for s in WRITABLE if name.endswith(s) and name != s), "")


def kind_of(path: pathlib.Path) -> str:
  """Returns how to read a file, by its first bytes.

  Args:
    path: The file.

  Raises:
    FileNotFoundError: If there is none.
    ValueError: If it cannot be read; explains why.

  >>> kind_of(pathlib.Path("none.pth"))
  Traceback (most recent call last):
  ...
  FileNotFoundError: no file none.pth
  """
  shown = printable(path)
  if path.is_dir():
    raise ValueError(f"{shown} is a folder: give a file ({READABLE})")
  if not path.is_file():
    raise FileNotFoundError(f"no file {shown}")
  with path.open("rb") as file:
    start = file.read(512)
  if not start:
    raise ValueError(f"{shown} is empty (0 bytes): download it again")
  # 0x80 and the protocol begin every pickle since protocol 2.
  if start[:2] == b"PK" or re.match(rb"\x80[\2-\5]", start):
    return "torch"
  if len(start) > 8 and start[8:9] == b"{" and start[6:8] == b"\0\0":
    return "safetensors"
  if start.startswith(hdf5_file.MAGIC):
    return "keras"
  if start.startswith(MAGIC.encode()):
    return "ncnn"
  text = start.lstrip().lower()
  for magic, message in _MISHAPS:
    if text.startswith(magic):
      raise ValueError(f"{shown} {message}")
  if start[257:262] == b"ustar":
    raise ValueError(
      f"{shown} is a tar archive: unpack it (or, if PyTorch 0.1 wrote it, save"
      " it again with a current PyTorch)"
    )
  if path.suffix.lower() == ".jax":  # What convert writes.
    raise ValueError(
      f"{shown} is an exported program, no weights: call it with jax.export"
      " (docs/export.md), or give the model that it was made of"
    )
  if path.suffix.lower() == ".bin":  # ncnn's has no magic number.
    return "ncnn"
  raise ValueError(
    f"{shown} is no weight file of a known kind (it begins with"
    f" {start[:8]!r}); supported: {READABLE}"
  )


def _network(
  state: dict[str, Any],
  metadata: Mapping[str, str],
  scale: int | None,
  config: Mapping[str, Any],
) -> NamedWeights:
  """Finds the network; metadata count where they are of this package."""
  name = metadata.get("architecture")
  if name is None:
    untold = {key for each in DIALECTS.values() for key in each.UNTOLD}
    given = {key: config[key] for key in untold if key in config}
    try:
      return selection.find_network(state, scale=scale, **given)
    except UntoldScaleError:
      # Another program's word counts where the arrays leave it open.
      if told := _integer(metadata, "scale"):
        with contextlib.suppress(ValueError):
          return selection.find_network(state, scale=told, **given)
      raise
  fields.registered(name)
  if dialect := DIALECTS.get(name):
    known = {key: _told(name, metadata, key) for key in dialect.UNTOLD}
    scale = scale or _integer(metadata, "scale")
    return selection.find_network(
      state, architecture=name, scale=scale, **known
    )
  config = fields.from_text(name, metadata.get(fields.KEY, ""))
  if scale not in (None, config["scale"]):
    raise ValueError(
      f"scale {scale} was asked for, but this is a x{config['scale']} network;"
      " leave scale out"
    )
  params, collections = plain.from_state_dict(state.get("params", state))
  check_tree(config, {"params": params, **collections})
  return NamedWeights(config, params, (), collections)


def check_tree(config: Mapping[str, Any], variables: Params) -> None:
  """Raises if variables are not those that a network has.

  Args:
    config: The network's architecture and fields.
    variables: Its parameters, as `params`, and collections.

  Raises:
    UnsupportedWeightsError: If names or shapes differ; says in what.
    ValueError: If there can be no such network.

  >>> check_tree({"architecture": "RRDBNet"}, {"params": {}})
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.dialects.protocol.UnsupportedWeightsError: not the...
  """
  _, report = partial.fit(variables, expected(config))
  if report.left:
    raise UnsupportedWeightsError(
      f"not the weights of {config['architecture']} as it is now: {report}"
    )


def expected(config: Mapping[str, Any]) -> Params:
  """Returns the variables that a network has, abstract, by its config.

  Args:
    config: Its architecture and fields.

  Raises:
    ValueError: If there can be no such network.

  >>> found = expected({"architecture": "RRDBNet", "num_block": 1})
  >>> found["params"]["conv_last"]["bias"].shape
  (3,)
  """
  try:
    net = registry.make_generator(**config)
    side = 8 * registry.size_multiple(net)
    shape = (1, side, side, registry.channels(net)[0])
    return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros(shape)))
  except Exception as error:  # Of whoever wrote the network.
    raise ValueError(
      f"{config['architecture']} cannot be made with its {fields.KEY}:"
      f" {type(error).__name__} {printable(error)}"
    ) from error


def _told(name: str, metadata: Mapping[str, str], key: str) -> Any:
  """A field as metadata have it, of the kind of its default; None if not."""
  text = metadata.get(key, "")
  match registry.find_generator(name).fields[key]:
    case bool():
      return {"True": True, "False": False}.get(text)
    case str():
      return text if re.fullmatch("[a-z]{1,20}", text) else None
  return _integer(metadata, key)


def _integer(metadata: Mapping[str, str], key: str) -> int | None:
  text = metadata.get(key, "")
  return int(text) if re.fullmatch("[0-9]{1,3}", text) else None


def _float16(name: str, value: np.ndarray) -> np.ndarray:
  largest = float(np.abs(value).max(initial=0))
  if largest > (limit := float(np.finfo(np.float16).max)):
    raise ValueError(
      f"{name} reaches {largest:g}, float16 ends at {limit:g}: write float32"
    )
  return value.astype(np.float16)


def _torch_writer(
  key: str, state: Mapping[str, np.ndarray], notes: Mapping[str, str]
) -> Callable[[BinaryIO], object]:
  import torch

  tensors = {k: torch.from_numpy(v.copy()) for k, v in state.items()}
  # Others step over "esrgan_jax".
  content = {key: tensors, "esrgan_jax": dict(sorted(notes.items()))}
  return lambda file: torch.save(content, file)
