"""Images that come through a pipe, or go into one."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat
import sys
from typing import BinaryIO

from esrgan_jax import console, images, video
from esrgan_jax.errors import UsageError

__all__ = [
  "check_stdout",
  "is_pipe",
  "is_stdin",
  "is_stdout",
  "receive",
  "send",
]

_STDIN = {"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}
_STDOUT = {"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}
# More is no image that anybody pipes; it would fill the disk.
_MOST_BYTES = 2**32
_PIECE = 2**20


def is_pipe(text: str) -> bool:
  """Tells whether an input is standard input, or another pipe.

  >>> is_pipe("-"), is_pipe("a.png")
  (True, False)
  """
  if text in _STDIN:
    return True
  try:
    return stat.S_ISFIFO(os.stat(text).st_mode)
  except (OSError, ValueError):
    return False


def is_stdin(text: str) -> bool:
  """Tells whether an input is standard input.

  >>> is_stdin("/dev/stdin"), is_stdin("a.png")
  (True, False)
  """
  return text in _STDIN


def is_stdout(text: str | None) -> bool:
  """Tells whether an output is standard output.

  >>> is_stdout("-"), is_stdout("a.png"), is_stdout(None)
  (True, False, False)
  """
  return text in _STDOUT


def receive(text: str, folder: pathlib.Path) -> pathlib.Path:
  """Puts what comes through a pipe into a file.

  Args:
    text: The pipe, by `is_pipe`.
    folder: Where to put it.

  Returns:
    The file. Its suffix is of its format, where that is one.

  Raises:
    ValueError: If it is a terminal, or there is no end to it.
    OSError: If it cannot be read, or the folder has no room.
  """
  name = "stdin" if text in _STDIN else pathlib.Path(text).stem
  path = folder / name
  if text in _STDIN:
    if sys.stdin is None or sys.stdin.isatty():
      raise UsageError(
        "standard input is closed, or a terminal; send an image there: ... - <"
        " photo.jpg"
      )
    _copy(sys.stdin.buffer, path)
  else:
    with open(text, "rb") as pipe:
      _copy(pipe, path)
  try:
    first = next(iter(images.read_frames(path)))
  except images.ImageError:
    suffix = video.suffix_of(path)  # Whoever reads it says why if it is none.
    return path.rename(path.with_name(name + suffix)) if suffix else path
  known = {**images.OUTPUT_SUFFIXES, **images.ANIMATION_SUFFIXES}
  suffixes = [s for s, f in known.items() if f == first.metadata.format]
  return path.rename(path.with_name(name + (suffixes or [""])[0]))


def _copy(pipe: BinaryIO, path: pathlib.Path) -> None:
  size = 0
  with open(path, "xb") as file:
    while piece := pipe.read(_PIECE):
      size += len(piece)
      if size > _MOST_BYTES:
        raise ValueError(f"{path.name}: more than {_MOST_BYTES} bytes")
      file.write(piece)


def check_stdout() -> None:
  """Raises if standard output is no place for an image.

  Raises:
    ValueError: If it is a terminal, or is closed.
  """
  if sys.stdout is None or sys.stdout.isatty():
    raise UsageError(
      "standard output is closed, or a terminal; send the image to a file:"
      " ... > large.png, or name one with -o"
    )


def send(path: pathlib.Path) -> None:
  """Copies a file to standard output.

  Raises:
    OSError: If it cannot be written; a BrokenPipeError, if nobody reads it.
  """
  with open(path, "rb") as file, console.naming_stdout():
    sys.stdout.flush()
    shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()
