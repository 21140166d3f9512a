"""Text from strangers: names in their files, of their files, from servers."""

from __future__ import annotations

import io
import logging
import unicodedata
from typing import TextIO

__all__ = [
  "LogFormatter",
  "escape_unencodable",
  "explain",
  "log_warnings",
  "printable",
  "printable_lines",
]

_LINE = 4000  # Characters of a line that may hold several names.

# Not printable by Python's rule, and part of ordinary words and emoji.
_JOINERS = "\u200c\u200d"


def printable(text: object, *, limit: int = 200) -> str:
  r"""Makes a text safe to show, on one line.

  Control characters would move the cursor, recolour or forge lines of a
  terminal, and marks of direction show a name as another. They are escaped, as
  are bytes of a file name that is not in the file system's encoding. Letters of
  all scripts, spaces and emoji stay as they are.

  Args:
    text: What to show; anything but a string by its `str`.
    limit: Characters at most; of a longer text the middle is left out.

  Returns:
    The text, without line breaks.

  >>> printable("conv\x1b[31m\nerror: all is lost"), printable("naïve 写真")
  ('conv\\x1b[31m\\nerror: all is lost', 'naïve 写真')
  >>> printable("caf\udce9.png"), printable("long" * 9, limit=13)
  ('caf\\xe9.png', 'longlo…nglong')
  """
  text = text if isinstance(text, str) else str(text)
  if len(text) > limit:
    half = max(limit - 1, 2) // 2
    text = f"{text[:half]}…{text[-half:]}"
  return "".join(map(_escaped, text))


def printable_lines(text: object) -> str:
  r"""Makes our own message safe to show, keeping its line breaks.

  What it cites must have been made `printable` before, for the breaks in that.

  Args:
    text: The message; anything but a string by its `str`.

  Returns:
    The text, every line of it printable.

  >>> printable_lines("two files:\n  a\n  b\x1b[31m")
  'two files:\n  a\n  b\\x1b[31m'
  """
  lines = str(text).split("\n")
  return "\n".join(printable(line, limit=_LINE) for line in lines)


def explain(error: BaseException) -> str:
  """Returns what a program says of an error before it ends.

  Args:
    error: One with a message for users: a `ValueError`, an `OSError`, a plain
      `RuntimeError`, or of a kind of ours; else the kind is told too.

  Returns:
    The message, printable; one line unless it has several of its own.

  >>> explain(ValueError("no such model")), explain(MemoryError())
  ('no such model', 'not enough memory')
  >>> explain(FileNotFoundError(2, "No such file or directory", "a.png"))
  'No such file or directory: a.png'
  >>> explain(KeyError("scale"))
  "KeyError: 'scale' (ESRGAN_JAX_TRACEBACK=1 shows where)"
  """
  message = str(error)
  if isinstance(error, OSError) and error.strerror:
    message = error.strerror
    if error.filename is not None:
      message += f": {error.filename}"
  elif isinstance(error, MemoryError):
    message = f"not enough memory{': ' * bool(message)}{message}"
  elif not (
    isinstance(error, ValueError | OSError)
    or type(error) is RuntimeError
    or type(error).__module__.startswith("esrgan_jax.")
  ):
    message = " ".join(message.split())
    message = f"{type(error).__name__}: {message}"
    message += " (ESRGAN_JAX_TRACEBACK=1 shows where)"
  return printable_lines(message or type(error).__name__)


def escape_unencodable(*streams: TextIO) -> None:
  r"""Has streams escape what their encoding lacks, where they would fail.

  >>> stream = io.TextIOWrapper(io.BytesIO(), "ascii")
  >>> escape_unencodable(stream)
  >>> stream.write("写"), stream.flush(), stream.buffer.getvalue()
  (1, None, b'\\u5199')
  """
  for stream in streams:
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


class LogFormatter(logging.Formatter):
  r"""Formats log records as `logging.Formatter` does, printable.

  >>> record = logging.makeLogRecord({"msg": "%s is damaged", "args": "\x1b"})
  >>> LogFormatter().format(record)
  '\\x1b is damaged'
  """

  def format(self, record: logging.LogRecord) -> str:
    """Returns the record as text."""
    return printable_lines(super().format(record))


def log_warnings(*, force: bool = False) -> None:
  """Has programs log warnings to stderr, printable.

  Args:
    force: Whether to do so even where the process logs already.
  """
  handler = logging.StreamHandler()
  handler.setFormatter(LogFormatter("%(levelname)s: %(message)s"))
  logging.basicConfig(handlers=[handler], level=logging.WARNING, force=force)
  # Orbax tells of each file of its own that it does not need.
  logging.getLogger("absl").setLevel(logging.ERROR)


def _escaped(character: str) -> str:
  kept = character.isprintable() or character in _JOINERS
  if kept or unicodedata.category(character) == "Zs":
    return character
  code = ord(character)
  if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte that was no character.
    return f"\\x{code - 0xDC00:02x}"
  return character.encode("unicode_escape").decode("ascii")
