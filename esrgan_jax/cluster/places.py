"""Files on a disk or in a bucket: one name each, a path or an address.

A disk is reached as everywhere here; what has a scheme (`s3://bucket/folder`)
by pyarrow, or by fsspec's package for it. Nothing in here needs Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fnmatch
import functools
import os
import pathlib
import shutil
import stat
import urllib.parse
from collections.abc import Iterator
from typing import Any

from esrgan_jax import images, storage
from esrgan_jax.text import printable

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None

__all__ = [
  "Found",
  "claimed",
  "copy_here",
  "find_images",
  "join",
  "publish",
  "read",
  "remove",
  "remove_folder",
  "size_of",
  "sizes_below",
  "sizes_of",
  "write",
]

_PIECE = 2**22
_LOCK = ".esrgan_jax.lock"
# By botocore, and so by everything else that speaks to S3; Arrow reads neither.
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_GCS_PATIENCE = datetime.timedelta(seconds=60)


@dataclasses.dataclass(frozen=True)
class Found:
  """An image in a bucket.

  Attributes:
    address: What reads it.
    below: Its folder below the one that was named, `.` for that itself.
    size: Its bytes.
  """

  address: str
  below: str
  size: int


def join(folder: str, name: str) -> str:
  """Returns the name of what lies in a folder.

  >>> join("s3://bucket", "a/b.png"), join("/data/", "a.png")
  ('s3://bucket/a/b.png', '/data/a.png')
  """
  return f"{folder.rstrip('/')}/{name}"


def find_images(text: str, *, recursive: bool) -> list[Found]:
  """Returns the images that an address stands for, in the order of names.

  Args:
    text: `SCHEME://...`: an object, a folder of them, or a pattern of names in
      one folder (`s3://bucket/holiday/*.png`).
    recursive: Whether a folder's subfolders are meant as well.

  Raises:
    ValueError: If there is no image.
    OSError: If it cannot be reached.
  """
  whole = text.rstrip("/")
  folder, _, name = whole.rpartition("/")
  pattern = None
  if any(sign in name for sign in "*?["):
    whole, pattern = folder, name
  with _reaching(text):
    system, path = _find(whole)
    [info] = system.get_file_info([path])
    if info.is_file and pattern is None:
      return [Found(whole, ".", info.size)]
    infos = _below(system, path, recursive=recursive and pattern is None)
  found = []
  for relative, size in sorted(infos.items()):
    parts = pathlib.PurePosixPath(relative).parts
    hidden = any(part.startswith(".") for part in parts)
    if hidden or not images.is_image_suffix(relative):
      continue
    if pattern is None or fnmatch.fnmatchcase(relative, pattern):
      below = pathlib.PurePosixPath(relative).parent.as_posix()
      found.append(Found(join(whole, relative), below, size))
  if not found:
    what = "nothing matches" if pattern else "no image there"
    raise ValueError(f"{printable(text)}: {what}")
  return found


def sizes_below(folder: str) -> dict[str, int]:
  """Returns the bytes of all files in a folder and below, by relative name.

  A folder that is not there has none.

  >>> sizes_below("/no/such/folder")
  {}
  """
  if not storage.is_remote(folder):
    found = {}
    for path, _, files in os.walk(folder):
      for name in files:
        whole = os.path.join(path, name)
        relative = os.path.relpath(whole, folder).replace(os.sep, "/")
        with contextlib.suppress(FileNotFoundError):
          found[relative] = os.stat(whole).st_size
    return found
  with _reaching(folder):
    return _below(*_find(folder), recursive=True)


def size_of(name: str) -> int | None:
  """Returns the bytes of a file; None if it is not there.

  >>> size_of("/no/such/file") is None
  True
  """
  if not storage.is_remote(name):
    try:
      status = os.stat(name)
      if stat.S_ISREG(status.st_mode):
        # Of what is opened NFS asks the server; else it may tell what it knew.
        with contextlib.suppress(PermissionError), open(name, "rb") as file:
          status = os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
      return None
    return status.st_size
  with _reaching(name):
    system, path = _find(name)
    [info] = system.get_file_info([path])
  return info.size if info.is_file else None


def sizes_of(folder: str, name: str) -> dict[str, int]:
  """Returns the bytes of a file, or of those of a folder, as `sizes_below`.

  Args:
    folder: Where it lies.
    name: Its name there, by which it is called in what is returned.

  >>> sizes_of("/dev", "null")
  {'null': 0}
  """
  whole = join(folder, name)
  remote = storage.is_remote(whole)
  if remote or not os.path.isdir(whole):
    size = size_of(whole)
    if size is not None:
      return {name: size}
  sizes = sizes_below(whole)
  if not remote:
    sizes = {each: size_of(join(whole, each)) or 0 for each in sizes}
  return {join(name, each): size for each, size in sizes.items()}


def read(name: str) -> bytes:
  """Returns what is in a file.

  Raises:
    OSError: If it cannot be read; a FileNotFoundError, if there is none.
  """
  if not storage.is_remote(name):
    return pathlib.Path(name).read_bytes()
  with _reaching(name):
    system, path = _find(name)
    with system.open_input_stream(path) as stream:
      return stream.read()


def copy_here(name: str, path: pathlib.Path) -> None:
  """Copies an object to a disk."""
  with _reaching(name):
    system, source = _find(name)
    stream = system.open_input_stream(source)
  with stream, open(path, "xb") as file:
    while True:
      with _reaching(name):
        piece = stream.read(_PIECE)
      if not piece:
        return
      file.write(piece)


def write(name: str, content: bytes) -> None:
  """Writes a small file of ours, whole or not at all, in place of another."""
  if storage.is_remote(name):
    with _reaching(name):
      system, path = _find(name)
      with system.open_output_stream(path) as stream:
        stream.write(content)
    return
  pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
  storage.write_whole(name, content, overwrite=True)


def publish(file: pathlib.Path, name: str, *, overwrite: bool) -> None:
  """Gives a finished file its name: nobody sees a part of it.

  Args:
    file: The file; it may be gone then.
    name: On a disk, one of the same file system; or in a bucket.
    overwrite: Whether to replace what is there.

  Raises:
    FileExistsError: If there is such a file that may not be replaced.
    OSError: If it cannot be written.
  """
  if not storage.is_remote(name):
    pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
    storage.publish(file, name, overwrite=overwrite)
    return
  if not overwrite and size_of(name) is not None:
    raise FileExistsError(
      f"{name} exists already; choose another name, or give --overwrite"
    )
  # All of it is here before the first byte goes out: an object whose source
  # fails half-way would be whole in the bucket's eyes.
  content = file.read_bytes()
  with _reaching(name):
    system, path = _find(name)
    with system.open_output_stream(path) as stream:
      stream.write(content)
  if size_of(name) != len(content):
    raise OSError(f"{name} is not in the bucket as it was sent; try again")


def remove(name: str) -> None:
  """Removes a file of ours, where it is there."""
  if not storage.is_remote(name):
    pathlib.Path(name).unlink(missing_ok=True)
    return
  with _reaching(name), contextlib.suppress(FileNotFoundError):
    system, path = _find(name)
    system.delete_file(path)


@contextlib.contextmanager
def claimed(folder: str) -> Iterator[None]:
  """Keeps other processes that ask for it out of a folder, which is made.

  By a lock of the operating system, which ends with the process, on a file
  that is gone at the end. A bucket has no such locks, nor have some network
  drives: there, nothing keeps another away.

  Raises:
    OSError: If another process has it, or nothing can be written there.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as out:
  ...   with claimed(out):
  ...     claimed(out).__enter__()
  Traceback (most recent call last):
  ...
  esrgan_jax.storage.WriteError: ... another command writes there; wait for it
  """
  if fcntl is None or storage.is_remote(folder):
    yield
    return
  file = _lock(folder)
  try:
    yield
  finally:
    # While it is locked: who has it open by now looks whether it is there yet.
    with contextlib.suppress(OSError):
      os.unlink(join(folder, _LOCK))
    os.close(file)


def _lock(folder: str) -> int:
  name = join(folder, _LOCK)
  flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
  while True:
    try:
      os.makedirs(folder, exist_ok=True)
      file = os.open(name, flags, 0o666)
    except OSError as error:
      raise storage.WriteError(
        f"{folder} cannot be written: {error.strerror}"
      ) from error
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(file)
      raise storage.WriteError(
        f"{folder}: another command writes there; wait for it"
      ) from None
    except OSError:
      return file  # No locks on this file system.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file), os.stat(name)):
        return file
    os.close(file)  # It was removed by who had it: once more.


def remove_folder(folder: str) -> None:
  """Removes a folder of ours, where it is there."""
  if not storage.is_remote(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return
  with _reaching(folder), contextlib.suppress(FileNotFoundError):
    system, path = _find(folder)
    system.delete_dir(path)


def _below(system: Any, path: str, *, recursive: bool) -> dict[str, int]:
  from pyarrow import fs

  selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
  start = path.rstrip("/") + "/"
  return {
    info.path.removeprefix(start): info.size
    for info in system.get_file_info(selector)
    if info.is_file
  }


def _find(name: str) -> tuple[Any, str]:
  """Returns a file system of pyarrow's, and what a name is called there."""
  scheme, _, rest = name.partition("://")
  bucket, _, _ = rest.partition("/")
  return _system(scheme, bucket), rest.rstrip("/")


@functools.lru_cache(maxsize=16)
def _system(scheme: str, bucket: str) -> Any:
  from pyarrow import fs

  if scheme == "s3":
    for variable in _S3_ENDPOINTS:
      if address := os.environ.get(variable):
        url = urllib.parse.urlsplit(address)
        return fs.S3FileSystem(
          endpoint_override=url.netloc or url.path, scheme=url.scheme or "https"
        )
    return fs.FileSystem.from_uri(f"s3://{bucket}")[0]
  if scheme in ("gs", "gcs"):
    return fs.GcsFileSystem(retry_time_limit=_GCS_PATIENCE)
  import fsspec

  return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))


@contextlib.contextmanager
def _reaching(name: str) -> Iterator[None]:
  """Says in one line what is wrong where a bucket cannot be reached.

  Raises:
    OSError: Instead of what libraries raise.
  """
  try:
    yield
  except FileNotFoundError:
    raise FileNotFoundError(f"{printable(name)}: no such object") from None
  except Exception as error:
    if not storage.is_remote(name):
      raise
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, ImportError):
      scheme = name.partition("://")[0]
      raise OSError(
        f"{printable(name)}: {scheme}:// needs a package: {reason}"
      ) from error
    raise OSError(f"{printable(name)} cannot be reached: {reason}") from error
