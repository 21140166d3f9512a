"""What a file of weights may claim: no more than its own bytes can justify.

Every reader keeps to these. A file's size is a fact; all else in it is a claim.
So arrays are looked at where they lie and none is made for a number alone; the
part that describes them is small in any sound file, and reading it takes steps
in proportion to its size.
"""

from __future__ import annotations

import os
import pathlib

from esrgan_jax.text import printable

__all__ = ["Budget", "DamagedFileError", "need", "read_file"]

# The largest RRDBNet takes 67 MB; a full training state 0.3 GB.
MAX_FILE_BYTES = 2**31
# Of all names, shapes and places together; an RRDBNet's take 0.1 MB.
MAX_TABLE_BYTES = 2**22
# To read the table; an RRDBNet's takes 40,000.
MAX_STEPS = 2**19
# An RRDBNet has 702; its training state four times as many.
MAX_ARRAYS = 2**16
# Characters.
MAX_NAME = 500
# As NumPy's, at its lowest.
MAX_AXES = 32
# Arrays may share memory, such as weights and what they were averaged from.
MAX_SHARING = 4


class DamagedFileError(ValueError):
  """The file is cut off, corrupted or contradicts itself."""


class Budget:
  """The steps that reading a table may take: one for each of its bytes.

  An honest one takes fewer. What takes more has the same few bytes read, or the
  same few values copied, over and over.

  Args:
    size: Of the table, in bytes.

  >>> budget = Budget(3)
  >>> budget.spend(2)
  >>> budget.spend(2)
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.formats.limits.DamagedFileError: the file takes more...
  """

  def __init__(self, size: int):
    self._left = min(size, MAX_STEPS)

  def spend(self, steps: int = 1) -> None:
    """Takes steps; raises `DamagedFileError` when none are left."""
    self._left -= steps
    if self._left < 0:
      raise DamagedFileError(
        "the file takes more steps to read than its size justifies, or over"
        f" {MAX_STEPS}: no weights are described like this"
      )


def need(condition: object, message: str) -> None:
  """Raises `DamagedFileError` unless a condition holds.

  >>> need(1 > 0, "never seen")
  """
  if not condition:
    raise DamagedFileError(message)


def read_file(path: pathlib.Path, *, limit: int | None = None) -> bytes:
  """Returns a file's bytes.

  Args:
    path: The file.
    limit: Bytes at most; `MAX_FILE_BYTES` by default.

  Raises:
    ValueError: If it is larger.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "a.bin")
  ...   _ = path.write_bytes(b"123")
  ...   read_file(path, limit=2)
  Traceback (most recent call last):
  ...
  ValueError: a.bin has 3 bytes; the limit is 2: no file of weights
  """
  limit = MAX_FILE_BYTES if limit is None else limit
  with path.open("rb") as file:
    size = os.fstat(file.fileno()).st_size
    if size > limit:
      raise ValueError(
        f"{printable(path.name)} has {size} bytes; the limit is {limit}: no"
        " file of weights"
      )
    return file.read(size)
