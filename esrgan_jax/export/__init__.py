"""A model as a file of another program's: one file a format, and this table.

The suffix of a file decides. `python -m esrgan_jax convert` and `interpolate`
read the table; `register_format` adds to it from elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Container, Iterator
from typing import Protocol

from esrgan_jax import storage
from esrgan_jax.errors import UsageError
from esrgan_jax.export import (
  jax_program,
  ncnn_files,
  onnx_file,
  programs,
  saved_model,
  state_dicts,
  tflite_file,
)
from esrgan_jax.text import printable
from esrgan_jax.weights.files import DTYPES, Weights

__all__ = [
  "DTYPES",
  "Format",
  "Writer",
  "check_target",
  "register_format",
  "suffix_of",
  "suffixes",
  "write",
]


class Writer(Protocol):
  """Writes a model to a new file."""

  def __call__(
    self, path: pathlib.Path, weights: Weights, *, dtype: str
  ) -> object:
    """Writes `weights` to `path`, numbers as `dtype`: one of `DTYPES`."""


@dataclasses.dataclass(frozen=True)
class Format:
  """One kind of file.

  Attributes:
    suffix: Of its files, such as ".safetensors" or ".tar.gz".
    title: What it is, and who reads it.
    write: Writes one; what it raises is told to the user, with the suffix.
    check: Raises RuntimeError if what it needs is not installed.
  """

  suffix: str
  title: str
  write: Writer
  check: Callable[[], None] | None = None


_formats: dict[str, Format] = {}


def register_format(form: Format) -> None:
  """Adds a format to the table.

  Args:
    form: Its suffix begins with a dot; no other format may have it.

  Raises:
    ValueError: If the suffix cannot be, or is another format's.

  >>> register_format(Format("npz", "NumPy arrays", write=print))
  Traceback (most recent call last):
  ...
  ValueError: a suffix is a dot and lower-case letters, got 'npz'
  """
  if not form.suffix.startswith(".") or form.suffix != form.suffix.lower():
    raise ValueError(
      f"a suffix is a dot and lower-case letters, got {form.suffix!r}"
    )
  if _formats.get(form.suffix, form) != form:
    raise ValueError(f"another format has the suffix {form.suffix}")
  _formats[form.suffix] = form


def suffixes() -> tuple[str, ...]:
  """Returns the suffixes of all formats.

  >>> suffixes()[:2]
  ('.safetensors', '.pth')
  """
  return tuple(_formats)


def check_target(
  path: str | os.PathLike[str],
  *,
  overwrite: bool,
  inputs: Container[tuple[int, int]] = (),
  make_folder: bool = False,
) -> None:
  """Raises if a model cannot be written to a file, before there is one.

  Args:
    path: The file.
    overwrite: Whether it may replace one.
    inputs: What must not be replaced even so, by `storage.file_ids`.
    make_folder: Whether its folder will be made where there is none.

  Raises:
    ValueError: If no format has its suffix.
    RuntimeError: If what the format needs is not installed.
    OSError: As `storage.check_output`.

  >>> check_target("model.h5", overwrite=False)
  Traceback (most recent call last):
  ...
  esrgan_jax.errors.UsageError: cannot write model.h5: the suffix must be .sa...
  """
  form = _find(path)
  storage.check_output(
    path, overwrite=overwrite, inputs=inputs, make_folder=make_folder
  )
  if form.check:
    form.check()


def write(
  path: str | os.PathLike[str],
  weights: Weights,
  *,
  dtype: str = "float32",
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes a model, in whole or not at all.

  Args:
    path: The file; its suffix decides the format.
    weights: The model.
    dtype: Of the numbers: "float32" or, at half the size, "float16".
    overwrite: Whether to replace a file of that name.

  Returns:
    The path.

  Raises:
    ValueError: If no format has the suffix, `dtype` is none of these, or the
      format cannot hold the model.
    RuntimeError: If what the format needs is not installed.
    OSError: As `storage.write_whole`.

  >>> from esrgan_jax.weights import find
  >>> model = find.find_model("realesrgan-x4plus-anime").weights
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = write(f"{folder}/anime.safetensors", model, dtype="float16")
  ...   path.stat().st_size // 1_000_000
  8
  """
  remote = storage.is_remote(path)
  path = storage.absolute(path) if remote else pathlib.Path(path)
  check_target(path, overwrite=overwrite)
  if dtype not in DTYPES:
    raise ValueError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}")
  form = _find(path)
  with tempfile.TemporaryDirectory() as folder:
    aside = pathlib.Path(folder, f"model{form.suffix}")
    with _naming(form):
      form.write(aside, weights, dtype=dtype)
      if not aside.is_file():
        raise ValueError("it wrote no file to the path that it was given")
    storage.write_whole(path, aside.read_bytes(), overwrite=overwrite)
  return path


@contextlib.contextmanager
def _naming(form: Format) -> Iterator[None]:
  """Says of errors of a writer which format's it is."""
  try:
    yield
  except (MemoryError, OSError):
    raise
  except Exception as error:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(
      f"the writer of {form.suffix} fails: {kind}{printable(error, limit=1000)}"
    ) from error


def suffix_of(path: str | os.PathLike[str]) -> str:
  """Returns the suffix of a file's format; empty if no format has it.

  >>> suffix_of("a.b.PTH"), suffix_of("a.bmp")
  ('.pth', '')
  """
  name = pathlib.Path(path).name.lower()
  found = [suffix for suffix in _formats if name.endswith(suffix)]
  # A name has more than its suffix; of .gz and .tar.gz the longer one is meant.
  return max((s for s in found if s != name), key=len, default="")


def _find(path: str | os.PathLike[str]) -> Format:
  suffix = suffix_of(path)
  if not suffix:
    *others, last = _formats
    raise UsageError(
      f"cannot write {printable(path)}: the suffix must be"
      f" {', '.join(others)} or {last}"
    )
  return _formats[suffix]


for _suffix, _title, _check in state_dicts.FORMATS:
  register_format(Format(_suffix, _title, state_dicts.write, _check))
for _suffix, _title, _write in jax_program.FORMATS:
  register_format(Format(_suffix, _title, _write))
for _module in (saved_model, onnx_file, jax_program, tflite_file, ncnn_files):
  programs.register_program(_module.PROGRAM)
