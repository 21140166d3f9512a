"""One run a workdir: a lock that nobody leaves behind.

On a disk it is a lock of the operating system (`flock`) on the file `.lock`,
which also says who holds it. It ends with the process, however that ends; the
file stays. On NFS, Linux has the server keep it, so that it holds between
machines; where that is mounted with `nolock`, it holds within one machine.

A bucket has no such locks. There, `.lock` is a lease: an object that its holder
renews every half minute, written only over the version last seen. One that has
not been renewed for two minutes is taken over, by a holder that has watched it
for a while: clocks that differ do no harm. Whoever finds that another has taken
its lease stops.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from typing import Any

from esrgan_jax import storage
from esrgan_jax.errors import UsageError
from esrgan_jax.text import printable

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None

__all__ = ["LockError", "WorkdirLock"]

_NAME = ".lock"
_RENEW, _EXPIRE = 30.0, 120.0  # Seconds.
_ANSWER = 30.0  # Seconds for a bucket to answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_log = logging.getLogger(__name__)


class LockError(RuntimeError):
  """A workdir that another run has, or has taken; the message says which."""


class WorkdirLock:
  """Keeps other runs out of a workdir, from `with` to its end.

  Args:
    workdir: A folder; made if need be. May be in a bucket.
    renew: Seconds between two renewals of a lease.
    expire: Seconds after which a lease that was not renewed is free.

  Raises:
    LockError: On entering, if another run has it.
    OSError: On entering, if nothing can be written there.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with WorkdirLock(folder) as lock:
  ...     lock.check()
  ...     WorkdirLock(folder).__enter__()
  Traceback (most recent call last):
  ...
  esrgan_jax.training.lock.LockError: ... is in use: process ... has been...
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    renew: float = _RENEW,
    expire: float = _EXPIRE,
  ):
    self._workdir = storage.absolute(workdir)
    self._held = None
    self._renew, self._expire = renew, expire

  def __enter__(self) -> WorkdirLock:
    if storage.is_remote(self._workdir):
      self._held = _Lease(self._workdir, self._renew, self._expire)
    else:
      self._held = _FileLock(self._workdir)
    return self

  def __exit__(self, *_) -> None:
    held, self._held = self._held, None
    held.release()

  def check(self) -> None:
    """Raises if the lock has been lost; costs nothing.

    Raises:
      LockError: If another run has taken it.
    """
    if self._held and self._held.lost:
      raise LockError(self._held.lost)


class _FileLock:
  """A lock of the operating system."""

  lost = ""

  def __init__(self, workdir):
    try:
      workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
      raise UsageError(
        f"{error.filename} is no folder; choose another workdir"
      ) from error
    path = os.fspath(workdir / _NAME)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
      self._file = os.open(path, flags, 0o644)
    except OSError as error:
      raise OSError(
        f"{workdir} cannot be written: {error.strerror} ({_NAME}). Choose"
        " another workdir"
      ) from error
    _open_files.add(self)
    try:
      _try_lock(self._file, workdir)
    except BaseException:
      self._close()
      raise
    with contextlib.suppress(OSError):  # On a full disk it is locked as well.
      os.ftruncate(self._file, 0)
      os.pwrite(self._file, json.dumps(_about_me()).encode(), 0)

  def release(self):
    with contextlib.suppress(OSError):
      os.ftruncate(self._file, 0)
    self._close()

  def _close(self):
    _open_files.discard(self)
    os.close(self._file)

  def forget(self):
    """Closes the file in a child process, which would keep the lock."""
    with contextlib.suppress(OSError):
      os.close(self._file)


# What a fork inherits. A program that is started inherits nothing: O_CLOEXEC.
_open_files: weakref.WeakSet[_FileLock] = weakref.WeakSet()


def _forget_all():
  for each in list(_open_files):
    each.forget()
  _open_files.clear()


if hasattr(os, "register_at_fork"):
  os.register_at_fork(after_in_child=_forget_all)


def _try_lock(file, workdir):
  if not fcntl:
    _log.warning("%s is not locked: keep other runs out of it", workdir)
    return
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise LockError(_in_use(workdir, os.pread(file, 4096, 0))) from None
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    _log.warning(
      "%s is not locked: %s. Keep other runs out of it",
      workdir,
      error.strerror,
    )


class _Lease:
  """An object of a bucket that is renewed by a thread."""

  def __init__(self, workdir, renew, expire):
    import tensorstore

    self.lost = ""
    self._workdir, self._renew, self._expire = workdir, renew, expire
    self._me = _about_me() | {"token": secrets.token_hex(16)}
    try:
      store = tensorstore.KvStore.open(storage.kvstore(workdir))
      self._store = store.result(_ANSWER)
      self._acquire()
    except LockError:
      raise
    except Exception as error:  # TensorStore's, of which it raises many kinds.
      raise OSError(
        f"{workdir} cannot be written: {printable(error)}. Is there such a"
        " bucket, and may you write to it? (gcloud auth application-default"
        " login)"
      ) from error
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._keep, daemon=True)
    self._thread.start()

  def release(self):
    self._ended.set()
    self._thread.join()
    if not self.lost:
      with contextlib.suppress(Exception):  # It expires by itself.
        deleted = self._store.write(_NAME, None, if_equal=self._version)
        deleted.result(_ANSWER)

  def _acquire(self):
    """Takes the lease; one that is there is watched, whether it still lives."""
    found = first = self._read()
    if first.value:
      since = time.time() - _parse(first.value).get("renewed", 0)
      # Who lives renews it before that, whatever its clock says.
      wait = min(max(self._expire - since, 1.5 * self._renew), self._expire)
      _log.warning(
        "%s: %s; waiting %.0f s to see whether it still runs",
        self._workdir,
        _who(first.value),
        wait,
      )
      deadline = time.monotonic() + wait
      while time.monotonic() < deadline and found.value:
        time.sleep(self._renew / 10)
        found = self._read()
        if found.value and found.value != first.value:
          raise LockError(_in_use(self._workdir, found.value))
    self._version = found.stamp.generation
    if not self._write():
      raise LockError(_in_use(self._workdir, self._read().value))

  def _read(self):
    return self._store.read(_NAME).result(_ANSWER)

  def _write(self):
    """Writes the lease over the version last seen; whether it was that."""
    content = json.dumps(self._me | {"renewed": time.time()})
    written = self._store.write(_NAME, content, if_equal=self._version)
    generation = written.result(_ANSWER).generation
    if not generation:
      return False
    self._version, self._renewed = generation, time.monotonic()
    return True

  def _keep(self):
    pause = self._renew
    while not self._ended.wait(pause):
      pause, problem = self._renew, ""
      try:
        if not self._write():
          self._find_out()
      except Exception as error:  # Of the network, which may come back.
        pause, problem = self._renew / 6, " ".join(str(error).split())
      if time.monotonic() - self._renewed > self._expire:
        self.lost = (
          f"the lock of {self._workdir} could not be renewed for"
          f" {self._expire:.0f} s, and another run may have it by now:"
          f" {printable(problem)}. The same command goes on once it can"
        )
      if self.lost:
        return

  def _find_out(self):
    """Whose the lease is, where it is not the version last written."""
    found = self._read()
    if _parse(found.value).get("token") == self._me["token"]:
      self._version = found.stamp.generation  # The answer had been lost.
      return
    taken = f"by {_who(found.value)}" if found.value else "from outside"
    self.lost = (
      f"the lock of {self._workdir} was taken {taken}: this run stops, what it"
      " has saved is there"
    )


def _about_me():
  since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _parse(content: bytes) -> dict[str, Any]:
  try:
    found = json.loads(content)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _who(content):
  found = _parse(content)
  if not {"host", "pid", "since"} <= found.keys():
    return "another process trains there"
  pid, host, since = (
    printable(found[key], limit=80) for key in ("pid", "host", "since")
  )
  return f"process {pid} on {host} has been training there since {since}"


def _in_use(workdir, content):
  return (
    f"{workdir} is in use: {_who(content)}. Wait for it to end, stop it, or"
    " choose another workdir"
  )
