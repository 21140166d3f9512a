"""The manifest: what became of each image, as one Parquet file in OUT.

While a job runs, each result has a row in a small file of its own, written
before the result gets its name. A job that was ended in whatever way leaves
those behind, and the next one takes them over.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import pathlib
import typing
from collections.abc import Iterable, Mapping

from esrgan_jax import storage
from esrgan_jax.cluster import places
from esrgan_jax.text import printable

__all__ = [
  "ASIDE",
  "NAME",
  "Contents",
  "Row",
  "from_json",
  "is_aside",
  "read",
  "row_file",
  "run_folder",
  "take_over",
  "to_json",
  "write",
]

NAME = "manifest.parquet"
# Of folders in OUT that hold what is being made, and rows of what was.
ASIDE = ".esrgan_jax."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """What became of an image.

  Attributes:
    input: Its path or address.
    result: The result's name below OUT, or the folder of several files; None
      if there is none.
    width: Of the result; of several pictures, of the first.
    height: Likewise.
    frames: How many pictures it has.
    files: How many files.
    bytes: Of all its files.
    seconds: What it took after the one before it, on its worker.
    error: Why there is no result; None if all is well.
    notes: What is not as one would expect.
    node: The machine.
    digest: SHA-256 of the image's bytes, the model's weights and the settings.
    earlier: A result that it had before it failed.
  """

  input: str
  result: str | None = None
  width: int | None = None
  height: int | None = None
  frames: int | None = None
  files: int | None = None
  bytes: int | None = None
  seconds: float | None = None
  error: str | None = None
  notes: tuple[str, ...] = ()
  node: str | None = None
  digest: str | None = None
  earlier: str | None = None


_KINDS = typing.get_type_hints(Row)


def _schema():
  import pyarrow as pa

  kinds = {
    str: pa.string(),
    str | None: pa.string(),
    int | None: pa.int64(),
    float | None: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
  }
  return pa.schema([(name, kinds[kind]) for name, kind in _KINDS.items()])


def read(folder: str) -> dict[str, Row]:
  """Returns what a folder's manifest tells, by input; nothing if it has none.

  Raises:
    ValueError: If the file of that name is none.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  name = places.join(folder, NAME)
  try:
    content = places.read(name)
  except FileNotFoundError:
    return {}
  try:
    table = pq.read_table(io.BytesIO(content), columns=[*_KINDS])
    rows = [_row(values) for values in table.cast(_schema()).to_pylist()]
  except (pa.ArrowException, ValueError, OSError, KeyError) as error:
    reason = printable(" ".join(str(error).split()))
    raise ValueError(
      f"{name} is no manifest of this program ({reason}); move it away, or"
      " choose another folder"
    ) from error
  return {row.input: row for row in rows}


def write(folder: str, rows: Iterable[Row]) -> None:
  """Writes a folder's manifest, in place of the one before."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  rows = [dataclasses.asdict(row) for row in rows]
  file = io.BytesIO()
  pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), file)
  places.write(places.join(folder, NAME), file.getvalue())


def run_folder(out: str, run: str) -> str:
  """Returns the folder in OUT for what a run is making.

  >>> run_folder("s3://bucket/large", "1f")
  's3://bucket/large/.esrgan_jax.1f'
  """
  return places.join(out, f"{ASIDE}{run}")


def row_file(out: str, run: str, number: int) -> str:
  """Returns the file of an image's row, by its number in a run."""
  return places.join(run_folder(out, run), f"rows/{number}.json")


def take_over(
  out: str, rows: dict[str, Row], there: Mapping[str, int]
) -> list[str]:
  """Adds the rows of runs that were ended before they wrote their manifest.

  Args:
    out: The folder.
    rows: By input; of results that are there as a row tells, it is replaced. Of
      those that are there in part, or were about to replace what is there, it
      becomes one of an error: they are ours, and to be made again.
    there: Bytes of all files below the folder, by name.

  Returns:
    The folders that such runs have left; to be removed once the manifest is
    written.
  """
  contents, folders = Contents(there), set()
  told, aside = [], collections.defaultdict(list)
  for name in sorted(there):
    folder, _, rest = name.partition("/")
    if not (folder.startswith(ASIDE) and rest):
      continue
    folders.add(places.join(out, folder))
    place, _, made = rest.partition("/")
    number = place.partition(".")[0]
    if place == "rows":
      told.append((name, folder, made.partition(".")[0]))
    else:
      aside[folder, number].append(made)
  for name, folder, number in told:
    try:
      row = from_json(places.read(places.join(out, name)))
    except (ValueError, OSError):
      continue  # It was ended while it wrote this.
    waiting = Contents(dict.fromkeys(aside[folder, number], 0))
    # What has its name by now may be as large as what it was to replace.
    if contents.has_result_of(row) and row.result not in waiting:
      rows[row.input] = row
    elif row.result in contents:
      rows[row.input] = Row(
        input=row.input,
        error="was ended while its result was written",
        node=row.node,
        earlier=row.result,
      )
  return sorted(folders)


def is_aside(out: str, run: str, number: int, result: str) -> bool:
  """Tells whether a result, or some of its files, still wait for their names.

  Of a bucket nobody knows: they wait on the worker's disk.

  Args:
    out: The folder.
    run: The run.
    number: Of the image in it.
    result: The result's name below the folder.
  """
  if storage.is_remote(out):
    return False
  folders = pathlib.Path(run_folder(out, run)).glob(f"{number}.*")
  return any(places.sizes_of(str(folder), result) for folder in folders)


def to_json(row: Row) -> bytes:
  """Returns a row for a file of its own.

  >>> from_json(to_json(Row(input="a", notes=("b",)))).notes
  ('b',)
  """
  return json.dumps(dataclasses.asdict(row)).encode()


def from_json(content: bytes) -> Row:
  """Returns the row that a file holds.

  Raises:
    ValueError: If it holds none.
  """
  try:
    return _row(json.loads(content))
  except (TypeError, KeyError, AttributeError) as error:
    raise ValueError(f"no row of a manifest: {error}") from error


def _row(values: Mapping[str, typing.Any]) -> Row:
  values = {name: values[name] for name in _KINDS}
  if not isinstance(values["input"], str):
    raise ValueError("a row without an input")
  return Row(**values | {"notes": tuple(values["notes"] or ())})


class Contents:
  """What lies in a folder: files by name, and how much is in each subfolder.

  Args:
    sizes: Bytes of all files below it, by name.

  >>> there = Contents({"a.png": 9, "b/1.png": 2, "b/2.png": 3})
  >>> done = [
  ...   Row(input="a", digest="0", result="a.png", files=1, bytes=9),
  ...   Row(input="b", digest="0", result="b", files=2, bytes=5),
  ...   Row(input="c", digest="0", result="a.png", files=1, bytes=8),
  ...   Row(input="d", digest="0", result="b", files=3, bytes=5),
  ... ]
  >>> [there.has_result_of(row) for row in done]
  [True, True, False, False]
  >>> "b" in there, "b/3.png" in there
  (True, False)
  """

  def __init__(self, sizes: Mapping[str, int]):
    self._found: dict[str, tuple[int, int]] = {}
    for name, size in sizes.items():
      self._found[name] = (1, size)
      while "/" in name:
        name = name.rpartition("/")[0]
        files, total = self._found.get(name, (0, 0))
        self._found[name] = (files + 1, total + size)

  def __contains__(self, name: str | None) -> bool:
    """Tells whether there is such a file, or a folder with files in it."""
    return name in self._found

  def has_result_of(self, row: Row) -> bool:
    """Tells whether a row's result is there, and has the size that it had.

    One without a result, of an image that was left alone, lacks nothing. Beside
    the files of one that is a folder others may lie: of the same image in
    another format, of a desktop.
    """
    if row.error is not None or row.digest is None:
      return False
    if row.result is None:
      return True
    files, size = self._found.get(row.result, (0, 0))
    if (row.files or 0) > 1:
      return files >= row.files and size >= (row.bytes or 0)
    return (files, size) == (row.files, row.bytes)
