"""Files and folders of this program, on a disk or in a bucket.

What is written appears whole or not at all: on a disk it is written aside and
renamed. An object of a bucket (`gs://bucket/run`) is so of itself; it cannot be
added to, and there is no renaming, only copies. Buckets are reached through
`etils.epath`, imported only for them: by TensorFlow where that is installed,
else by gcsfs. Orbax needs google-cloud-storage as well, which gcsfs brings
along.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import os
import pathlib
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import typing
from collections.abc import Callable, Container, Iterable, Iterator
from typing import BinaryIO

if typing.TYPE_CHECKING:
  from etils import epath

__all__ = [
  "WriteError",
  "absolute",
  "cache_dir",
  "check_output",
  "file_ids",
  "folder_written_aside",
  "free_bytes",
  "is_remote",
  "kvstore",
  "move_folder",
  "publish",
  "reaching",
  "remove_scratch",
  "remove_unfinished",
  "require_packages",
  "scratch_folder",
  "temporary_folder",
  "write_whole",
  "written_aside",
]


class WriteError(OSError):
  """A file could not be written; says which, and why."""


def cache_dir() -> pathlib.Path:
  """Returns the folder for what can be had again; it may not exist.

  Fetched files, decoded images and compiled programs are kept in it.

  Returns:
    `$ESRGAN_JAX_CACHE` where set; else `esrgan_jax` in `~/Library/Caches` on
    macOS, `%LOCALAPPDATA%` on Windows, and `$XDG_CACHE_HOME` or `~/.cache`
    elsewhere.

  >>> cache_dir().is_absolute()
  True
  """
  if own := os.environ.get("ESRGAN_JAX_CACHE"):
    return pathlib.Path(own).expanduser().absolute()
  if sys.platform == "darwin":
    base = pathlib.Path.home() / "Library" / "Caches"
  elif sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
    base = pathlib.Path(local)
  else:
    # The specification has relative paths ignored.
    xdg = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = xdg if xdg.is_absolute() else pathlib.Path.home() / ".cache"
  return base / "esrgan_jax"


def check_output(
  path: str | os.PathLike[str],
  *,
  overwrite: bool,
  inputs: Container[tuple[int, int]] = (),
  make_folder: bool = False,
) -> None:
  """Raises if a file cannot be written, before there is anything to write.

  Args:
    path: The file that is to be written, on a disk or in a bucket.
    overwrite: Whether a file that is there may be replaced.
    inputs: What must not be replaced even so, by `file_ids`.
    make_folder: Whether its folder will be made where there is none.

  Raises:
    FileExistsError: If there is such a file that may not be replaced, or what
      is there is no file: a folder, a device, a link that leads nowhere.
    FileNotFoundError: If its folder does not exist.
    WriteError: If no file of that name can be made there.

  >>> check_output("/dev/null", overwrite=True)
  Traceback (most recent call last):
  ...
  FileExistsError: /dev/null is not a file but a device; choose another name
  """
  if is_remote(path):
    if not overwrite and absolute(path).exists():
      raise _exists(path)
    return
  try:
    found = _stat(path)
  except FileExistsError:
    raise
  except OSError as error:
    raise _unwritable(path, error) from error
  if found:
    if (kind := stat.S_IFMT(found.st_mode)) != stat.S_IFREG:
      what = _KINDS.get(kind, "a device")
      raise FileExistsError(
        f"{path} is not a file but {what}; choose another name"
      )
    if (found.st_dev, found.st_ino) in inputs:
      raise FileExistsError(
        f"{path} would replace an input; choose another name for the output"
      )
    if not overwrite:
      raise _exists(path)
  folder = pathlib.Path(os.path.realpath(path) if found else path).parent
  while make_folder and not os.path.lexists(folder):
    folder = folder.parent
  if not folder.is_dir():
    if os.path.lexists(folder):
      raise WriteError(f"{path} cannot be written: {folder} is not a folder")
    raise FileNotFoundError(f"{path}: no folder {folder}; create it first")
  if not os.access(folder, os.W_OK | os.X_OK):
    raise WriteError(
      f"{path} cannot be written: no file may be made in {folder}"
    )


_KINDS = {
  stat.S_IFDIR: "a folder",
  stat.S_IFIFO: "a pipe",
  stat.S_IFSOCK: "a socket",
}


def free_bytes(folder: str | os.PathLike[str]) -> int:
  """Tells how much room there is where a folder is, or would be made.

  >>> free_bytes("no/such/folder") > 0
  True
  """
  folder = pathlib.Path(folder).absolute()
  while not folder.is_dir():
    folder = folder.parent
  return shutil.disk_usage(folder).free


def _stat(path):
  """Describes what is behind a name, and its links; None if nothing is."""
  try:
    return os.stat(path)
  except FileNotFoundError:
    if not os.path.islink(path):
      return None
    raise FileExistsError(
      f"{path} is a link to {os.readlink(path)}, where there is nothing; remove"
      " it, or choose another name"
    ) from None


def _exists(path):
  return FileExistsError(
    f"{path} exists already; choose another name, or give --overwrite"
    " (in Python, overwrite=True)"
  )


def _unwritable(path, error):
  reason = error.strerror or " ".join(str(error).split())
  result = WriteError(f"{path} cannot be written: {reason}")
  result.errno = error.errno
  return result


def file_ids(
  paths: Iterable[str | os.PathLike[str]],
) -> frozenset[tuple[int, int]]:
  """Identifies files, by whichever name; those that are not there are left out.

  Args:
    paths: Local files.

  Returns:
    What `check_output` takes as `inputs`.

  >>> len(file_ids([os.devnull, "/dev/../dev/null", "/nowhere"]))
  1
  """
  found = set()
  for path in paths:
    with contextlib.suppress(OSError):
      status = os.stat(path)
      found.add((status.st_dev, status.st_ino))
  return frozenset(found)


@contextlib.contextmanager
def written_aside(
  path: str | os.PathLike[str], *, overwrite: bool
) -> Iterator[BinaryIO]:
  """Yields a file that takes a name at the end, if all went well.

  It lies in the same folder, under a name that nobody can have guessed, and is
  gone after an error or an interrupt, and at the end of the process, whichever
  thread was writing it. The name is hidden, and has no more letters than the
  file's own or nine: where that fits, it does. What replaces a file takes over
  its permissions and, where that is allowed, its owner and group, and is at no
  time open to more people than that. A link stays: the file that it leads to
  is replaced.

  Args:
    path: The name, on a disk; its folder must exist.
    overwrite: Whether to replace a file of that name. Else an existing one is
      not touched, even if it appears while this one is being written.

  Yields:
    A binary file to write, read and seek in.

  Raises:
    OSError: As `check_output`; and a `WriteError` if writing fails.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = os.path.join(folder, "a.txt")
  ...   with written_aside(path, overwrite=False) as file:
  ...     print(file.write(b"all of it"), os.path.exists(path))
  ...   os.listdir(folder)
  9 False
  ['a.txt']
  """
  check_output(path, overwrite=overwrite)
  replaced = _stat(path)
  target = pathlib.Path(os.path.realpath(path) if replaced else path)
  aside = target.with_name(_aside_name(target.name))
  # 0o666 less the umask is what new files get.
  create = functools.partial(os.open, mode=0o600 if replaced else 0o666)
  try:
    _unfinished[aside] = os.getpid()
    with open(aside, "x+b", opener=create) as file:
      yield file
      file.flush()
      if replaced:
        _take_over(file.fileno(), replaced)
      os.fsync(file.fileno())
    _name(aside, path, overwrite=overwrite)
  except BaseException as error:
    with contextlib.suppress(OSError):
      os.unlink(aside)
    names = (None, os.fspath(aside), os.fspath(target))
    if type(error) is FileExistsError or not isinstance(error, OSError):
      raise
    if error.filename not in names or isinstance(error, WriteError):
      raise  # Of another file, that the writer has read.
    raise _unwritable(path, error) from error
  finally:
    if not os.path.lexists(aside):  # Else an interrupt came while removing.
      _unfinished.pop(aside, None)
  _sync_folder(target.parent)


# What is being written, by which process: a fork has no part in it.
_unfinished: dict[pathlib.Path, int] = {}


def _aside_name(name):
  """A hidden name that is not longer than another, by the system's bytes."""
  size = max(len(os.fsencode(name)), 9)
  token = secrets.token_hex(8)
  for form in (f".esrgan_jax.{token}.part", f".{token}.part"):
    if len(form) <= size:
      return form
  return f".{token}"[:size]


@atexit.register
def remove_unfinished() -> None:
  """Removes what all threads of this process are writing aside.

  For the end of a process, which calls it of itself where it ends in order;
  `os._exit` does not. A thread that writes on gets an error at its end.

  >>> remove_unfinished()
  """
  for aside, owner in list(_unfinished.items()):
    if owner == os.getpid():
      with contextlib.suppress(OSError):
        if os.path.isdir(aside) and not os.path.islink(aside):
          shutil.rmtree(aside, ignore_errors=True)
        else:
          os.unlink(aside)


@contextlib.contextmanager
def temporary_folder(
  parent: str | os.PathLike[str] | None = None,
) -> Iterator[pathlib.Path]:
  """Yields a folder for such files, which is gone at the end.

  Args:
    parent: Where it lies; None: where the system has such.

  >>> with temporary_folder() as folder:
  ...   folder.is_dir()
  True
  >>> folder.exists()
  False
  """
  with tempfile.TemporaryDirectory(
    dir=parent, ignore_cleanup_errors=True
  ) as name:
    folder = pathlib.Path(name)
    _unfinished[folder] = os.getpid()
    try:
      yield folder
    finally:
      del _unfinished[folder]


@contextlib.contextmanager
def scratch_folder() -> Iterator[pathlib.Path]:
  """Yields such a folder for a process that may be killed.

  What killed ones of this host left behind is removed.

  >>> with scratch_folder() as folder:
  ...   folder.is_dir()
  True
  """
  parent = pathlib.Path(tempfile.gettempdir())
  _sweep(parent)
  owner = f"{socket.gethostname()[:64]}.{os.getpid()}"
  folder = parent / f".esrgan_jax.{owner}.{secrets.token_hex(8)}.part"
  folder.mkdir(mode=0o700)
  try:
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _take_over(file, replaced):
  """Gives a file the permissions, the owner and the group of another."""
  if not hasattr(os, "fchown"):  # Windows has neither.
    return
  mode = replaced.st_mode & 0o777
  own = os.fstat(file)
  if own.st_gid != replaced.st_gid:
    try:
      os.fchown(file, -1, replaced.st_gid)
    except PermissionError:
      # Our group may be another than theirs: it may do what anybody may.
      mode &= ~0o070 | (mode & 0o007) << 3
  if own.st_uid != replaced.st_uid:
    with contextlib.suppress(PermissionError):
      os.fchown(file, replaced.st_uid, -1)
  # As one that is no longer the owner, only root may.
  with contextlib.suppress(PermissionError):
    os.fchmod(file, mode)


def publish(
  aside: str | os.PathLike[str],
  path: str | os.PathLike[str],
  *,
  overwrite: bool,
) -> None:
  """Gives a file or folder that was written elsewhere its name, at once.

  Args:
    aside: What is whole; on the same file system.
    path: The name.
    overwrite: Whether a file of that name is replaced, as by `written_aside`;
      a folder is not.

  Raises:
    OSError: As `check_output`; and a `WriteError` if it cannot be renamed.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   aside, path = (pathlib.Path(folder, name) for name in "ab")
  ...   _ = aside.write_text("all of it")
  ...   publish(aside, path, overwrite=False)
  ...   path.read_text()
  'all of it'
  """
  aside = pathlib.Path(aside)
  try:
    if aside.is_dir():
      if os.path.lexists(path):
        raise _exists(path)
      os.rename(aside, path)
    else:
      check_output(path, overwrite=overwrite)
      if replaced := _stat(path):
        with open(aside, "rb") as file:
          _take_over(file.fileno(), replaced)
      _name(aside, path, overwrite=overwrite)
  except OSError as error:
    if isinstance(error, FileExistsError | WriteError):
      raise
    raise _unwritable(path, error) from error
  _sync_folder(pathlib.Path(path).absolute().parent)


def _name(aside, path, *, overwrite):
  """Renames to a name, or to where a link of that name leads."""
  if overwrite:
    check_output(path, overwrite=True)
    os.replace(aside, os.path.realpath(path) if _stat(path) else path)
  else:
    _publish(aside, path)


def _publish(aside, path):
  """Renames, failing if there is anything of that name by now."""
  try:
    os.link(aside, path)
  except FileExistsError:
    raise _exists(path) from None
  except (OSError, NotImplementedError, AttributeError):
    # No hard links here (exFAT, some network drives): reserve the name first.
    try:
      open(path, "xb").close()
      os.replace(aside, path)
    except FileExistsError:
      raise _exists(path) from None
    except BaseException:
      with contextlib.suppress(OSError):
        if not os.path.getsize(path):
          os.unlink(path)
      raise
  else:
    os.unlink(aside)


def _sync_folder(folder):
  """Makes a new name outlive a power failure, where the system can."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


@contextlib.contextmanager
def folder_written_aside(
  path: str | os.PathLike[str],
  *,
  is_whole: Callable[[pathlib.Path], bool],
) -> Iterator[pathlib.Path]:
  """Yields a new folder that takes a name at the end, if all went well.

  What was left behind in its parent by processes of this host that were killed
  is removed.

  Args:
    path: The name, on a disk; its parents are made.
    is_whole: Tells whether a folder of that name, by another process that was
      faster, is as good; else it is replaced.

  Yields:
    The folder.

  Raises:
    OSError: If it cannot be written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as parent:
  ...   path = pathlib.Path(parent, "a")
  ...   with folder_written_aside(path, is_whole=pathlib.Path.is_dir) as aside:
  ...     _ = (aside / "part").write_text("all of it")
  ...   [p.relative_to(parent).as_posix() for p in path.parent.rglob("*")]
  ['a', 'a/part']
  """
  path = pathlib.Path(path)
  owner = f"{socket.gethostname()[:64]}.{os.getpid()}"
  name = f".{path.name[:40]}.{owner}.{secrets.token_hex(8)}.part"
  aside = path.with_name(name)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    _unfinished[aside] = os.getpid()
    aside.mkdir()
    yield aside
    _rename_folder(aside, path, is_whole)
  finally:  # After the rename there is nothing left of that name.
    shutil.rmtree(aside, ignore_errors=True)
    _unfinished.pop(aside, None)


def _rename_folder(aside, path, is_whole):
  if path.exists():
    if is_whole(path):
      return
    # What is damaged gives way, under a name of its own until it is gone.
    os.rename(path, aside / "damaged")
    shutil.rmtree(aside / "damaged")
  try:
    os.rename(aside, path)
  except OSError:
    if not is_whole(path):
      raise


def remove_scratch(ended: Iterable[int] = ()) -> None:
  """Removes scratch folders of processes of this host that were killed.

  Args:
    ended: Numbers of those that are known to have ended, though the system may
      still list them.

  >>> remove_scratch()
  """
  _sweep(pathlib.Path(tempfile.gettempdir()), {*ended})


def _sweep(folder, ended=frozenset()):
  """Removes what processes of this host left behind when they were killed."""
  for aside in folder.glob(f".*.{socket.gethostname()[:64]}.*.part"):
    number = aside.name.split(".")[-3]
    if number.isdecimal() and (int(number) in ended or _is_over(int(number))):
      shutil.rmtree(aside, ignore_errors=True)


def _is_over(process):
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return True
  except (OverflowError, OSError):
    pass  # Another user's, or not ours to judge.
  return False


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
  from etils import epath

  try:
    found = epath.Path(path)
  except KeyError as error:  # Of epath's table of schemes.
    scheme = os.fspath(path).partition("://")[0]
    raise ValueError(
      f"{os.fspath(path)}: {scheme}:// is not supported; give a local folder,"
      " or gs://BUCKET/FOLDER"
    ) from error
  if is_remote(found):
    return found
  # By pathlib: etils before 1.15 has no `absolute`.
  return epath.Path(pathlib.Path(found).expanduser().absolute())


def kvstore(path: str | os.PathLike[str]) -> dict[str, str]:
  """Returns what TensorStore calls a folder.

  Args:
    path: An absolute path, or one of a bucket.

  >>> kvstore("/tmp/run")
  {'driver': 'file', 'path': '/tmp/run/'}
  >>> kvstore("gs://bucket/run")
  {'driver': 'gcs', 'bucket': 'bucket', 'path': 'run/'}
  """
  scheme, separator, rest = os.fspath(path).partition("://")
  if not separator:
    return {"driver": "file", "path": f"{scheme}/"}
  bucket, _, folder = rest.partition("/")
  driver = {"gs": "gcs"}.get(scheme, scheme)
  return {"driver": driver, "bucket": bucket, "path": f"{folder}/"}


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


def write_whole(
  path: str | os.PathLike[str], content: str | bytes, *, overwrite: bool
) -> None:
  """Writes a file, in whole or not at all; its folder must exist.

  Args:
    path: The file, on a disk or in a bucket.
    content: Bytes, or text for UTF-8.
    overwrite: Whether to replace a file of that name.

  Raises:
    OSError: As `written_aside`.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "a.txt")
  ...   write_whole(path, "all of it", overwrite=False)
  ...   path.read_text(), len(os.listdir(folder))
  ('all of it', 1)
  """
  if isinstance(content, str):
    content = content.encode()
  if is_remote(path):
    check_output(path, overwrite=overwrite)
    absolute(path).write_bytes(content)
    return
  with written_aside(path, overwrite=overwrite) as file:
    file.write(content)


def move_folder(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder; in a bucket, all is there before anything is removed.

  Args:
    source: The folder.
    target: Its new path, at which there is nothing.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   old, new = (pathlib.Path(folder, name) for name in ("old", "new"))
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
