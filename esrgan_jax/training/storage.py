"""Files of a workdir, on a disk or in a bucket (`gs://bucket/run`).

What is written appears whole or not at all: on a disk it is written aside and
renamed. An object of a bucket is so of itself; it cannot be added to, and
there is no renaming, only copies. Buckets are reached through `etils.epath`:
by TensorFlow where that is installed, else by gcsfs. Orbax needs
google-cloud-storage as well, which gcsfs brings along.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator

from etils import epath

__all__ = [
  "absolute",
  "is_remote",
  "move_folder",
  "reaching",
  "require_packages",
  "write_whole",
]


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is one of a bucket.

  >>> is_remote("gs://bucket/run"), is_remote("/tmp/run")
  (True, False)
  """
  return "://" in os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
  """Returns a path as Orbax wants it; one in a bucket is so already.

  Args:
    path: A local path, in which `~` is filled in, or one of a bucket.

  Returns:
    The path.

  Raises:
    ValueError: If no bucket's address begins like this.

  >>> absolute("gs://bucket/run").as_posix()
  'gs://bucket/run'
  >>> absolute("ftp://bucket/run")
  Traceback (most recent call last):
  ...
  ValueError: ftp://bucket/run: ftp:// is not supported; give a local folder...
  """
  try:
    found = epath.Path(path)
  except KeyError as error:  # Of epath's table of schemes.
    scheme = os.fspath(path).partition("://")[0]
    raise ValueError(
      f"{os.fspath(path)}: {scheme}:// is not supported; give a local folder,"
      " or gs://BUCKET/FOLDER"
    ) from error
  return found if is_remote(found) else found.expanduser().absolute()


@contextlib.contextmanager
def reaching(path: str | os.PathLike[str]) -> Iterator[None]:
  """Says in one line what is wrong if a bucket cannot be reached in here.

  Raises:
    OSError: Instead of what gcsfs, TensorFlow and Google's libraries raise.
      `FileNotFoundError` and `ValueError` stay, and all errors of local paths.

  >>> with reaching("gs://bucket/run"):
  ...   raise ImportError("no module")
  Traceback (most recent call last):
  ...
  OSError: gs://bucket/run needs a package: no module. pip install gcsfs
  """
  try:
    yield
  except (FileNotFoundError, ValueError):
    raise
  except Exception as error:
    if not is_remote(path):
      raise
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, ImportError):
      message = f"needs a package: {reason}. pip install gcsfs"
    else:
      message = (
        f"cannot be reached: {reason}. Is there such a bucket, and may you"
        " write to it? (gcloud auth application-default login)"
      )
    raise OSError(f"{os.fspath(path)} {message}") from error


def require_packages(path: str | os.PathLike[str]) -> None:
  """Imports what checkpoints will need, before there are any.

  Args:
    path: A workdir.

  Raises:
    ImportError: If it is in a bucket, and Orbax could not write there.

  >>> require_packages("/tmp/run")
  """
  if os.fspath(path).startswith("gs://"):
    importlib.import_module("google.cloud.storage")


def write_whole(path: epath.Path, content: str | bytes) -> None:
  """Writes a file, in whole or not at all; its folder must exist.

  Args:
    path: The file; replaced if it exists.
    content: Bytes, or text for UTF-8.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = epath.Path(folder) / "a.txt"
  ...   write_whole(path, "all of it")
  ...   path.read_text(), len(list(path.parent.iterdir()))
  ('all of it', 1)
  """
  if isinstance(content, str):
    content = content.encode()
  if is_remote(path):
    path.write_bytes(content)
    return
  aside = path.with_name(f".{path.name}.part")
  aside.write_bytes(content)
  aside.replace(path)


def move_folder(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder; in a bucket, all is there before anything is removed.

  Args:
    source: The folder.
    target: Its new path, at which there is nothing.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   old, new = (epath.Path(folder) / name for name in ("old", "new"))
  ...   (old / "deep").mkdir(parents=True)
  ...   move_folder(old, new)
  ...   old.exists(), (new / "deep").is_dir()
  (False, True)
  """
  if not is_remote(source):
    source.rename(target)
    return
  _copy_folder(source, target)
  source.rmtree()


def _copy_folder(source, target):
  target.mkdir(parents=True, exist_ok=True)
  for child in source.iterdir():
    if child.is_dir():
      _copy_folder(child, target / child.name)
    else:
      child.copy(target / child.name, overwrite=True)
