"""Fetches a published file: whole, checked, going on where it broke off.

What a server says of itself is not believed: a file ends at a limit, a
connection that trickles is cut, redirections are few and stay on http(s), and
nothing is kept whose checksum is not the published one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import pathlib
import re
import socket
import ssl
import stat
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import BinaryIO

from esrgan_jax.text import printable

try:
  import fcntl
except ImportError:  # Windows: two processes may disturb each other there.
  fcntl = None  # type: ignore[assignment]

__all__ = ["ChecksumError", "DownloadError", "Progress", "fetch", "sha256"]

Progress = Callable[[int, int | None], None]

_ATTEMPTS = 3
_CHUNK_BYTES = 2**18
_LEAST_RATE = 2**13  # Bytes a second: 64 kbit/s.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Of some network drives. The checksum tells if two processes got in the way.
_LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class DownloadError(OSError):
  """A file could not be fetched; says why."""


class ChecksumError(ValueError):
  """A file is not the one that was published under its name."""


def fetch(
  url: str,
  path: str | os.PathLike[str],
  *,
  limit: int,
  sha256: str = "",
  md5: str = "",
  size: int | None = None,
  progress: Progress | None = None,
  timeout: float = 30.0,
) -> None:
  """Fetches a file, unless another process does so meanwhile.

  It is written to `PATH.part`, which stays after a broken connection or an
  interrupt, to go on with next time, and is locked: of several processes, one
  fetches and the others wait. A file of that name that is not ours, or not a
  file at all, is removed unread.

  Args:
    url: Its address, http or https.
    path: Where to put it; the folder is made.
    limit: Bytes at most, whatever the server says.
    sha256: Its checksum in hexadecimal.
    md5: Another, of makers that publish no better; one of the two is needed.
    size: Its size in bytes, where known.
    progress: Called with the bytes fetched so far, and in all where known.
    timeout: Seconds in which there must be an answer, and after that data at
      8 kB/s; else an attempt is given up, of three. Also what another process
      may take, at that rate.

  Raises:
    DownloadError: If it cannot be fetched.
    ChecksumError: If something else was sent.
    ValueError: If there is no checksum to compare with.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   fetch("file:///etc/hosts", f"{folder}/a", sha256="0", limit=100)
  Traceback (most recent call last):
  ...
  esrgan_jax.download.DownloadError: unknown url type: file
  """
  path = pathlib.Path(path)
  part = path.with_name(f"{path.name}.part")
  limit = size or limit
  kind, expected = ("MD5", md5) if md5 else ("SHA-256", sha256)
  if not expected:
    raise ValueError(f"{url} needs a checksum, sha256 or md5")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part, timeout + limit / _LEAST_RATE) as file:
      if path.is_file():  # Another process was faster.
        part.unlink()
        return
      _fetch(url, file, part, size, limit, progress, timeout)
      if (found := _digest(file, kind)) != expected:
        part.unlink()
        raise ChecksumError(
          f"what {url} sent is not the published file: {kind} is {found},"
          f" expected {expected}. It was deleted; try again, and check for a"
          " proxy that alters downloads"
        )
      os.fsync(file.fileno())
      if os.name == "nt":  # An open file cannot be renamed there.
        file.close()
      os.replace(part, path)
  except (ChecksumError, DownloadError):
    raise
  except (OSError, http.client.HTTPException, ValueError) as error:
    raise DownloadError(_reason(error)) from error


def sha256(path: str | os.PathLike[str]) -> str:
  """Returns a file's SHA-256 checksum in hexadecimal.

  >>> sha256(os.devnull)[:8]
  'e3b0c442'
  """
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(file: BinaryIO, kind: str) -> str:
  file.seek(0)
  return hashlib.file_digest(file, kind.replace("-", "").lower()).hexdigest()


def _reason(error: Exception) -> str:
  """Says in a line what went wrong; servers have a say in it."""
  if type(error) is urllib.error.URLError:
    error = error.reason
  text = " ".join(str(error).split()) or type(error).__name__
  if isinstance(error, OSError) and error.strerror:
    text = error.strerror
    if error.filename:
      text += f": {error.filename}"
  return printable(text, limit=400)


@contextlib.contextmanager
def _locked(part: pathlib.Path, patience: float) -> Iterator[BinaryIO]:
  """Opens a file that nobody else has opened so; the system lifts the lock."""
  until = time.monotonic() + patience
  while True:
    with _opened(part) as file:
      while not _lock(file):
        if time.monotonic() > until:
          raise TimeoutError(f"another process holds {part}")
        time.sleep(0.1)
      # The one before us may have renamed or removed it.
      if _same(file, part):
        try:
          yield file
        finally:
          if _same(file, part) and not file.seek(0, os.SEEK_END):
            part.unlink()
        return


def _opened(part: pathlib.Path) -> BinaryIO:
  """Opens what has been fetched so far, or a new file, and nothing else."""
  flags = os.O_RDWR | os.O_CREAT
  for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    flags |= getattr(os, name, 0)
  for _ in range(2):
    try:
      descriptor = os.open(part, flags, 0o666)
    except OSError as error:
      # A link, a socket, a socket as BSD says it.
      if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EOPNOTSUPP):
        raise
    else:
      if _is_ours(os.fstat(descriptor)):
        return open(descriptor, "r+b", buffering=0)
      os.close(descriptor)
    part.unlink(missing_ok=True)
  raise PermissionError(f"{part} is not a file of ours; remove it")


def _is_ours(status: os.stat_result) -> bool:
  owned = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
  return stat.S_ISREG(status.st_mode) and owned and status.st_nlink == 1


def _lock(file: BinaryIO) -> bool:
  if fcntl is not None:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return False
    except OSError as error:
      if error.errno not in _LOCKLESS:
        raise
  return True


def _same(file: BinaryIO, part: pathlib.Path) -> bool:
  try:
    there = os.lstat(part)
  except FileNotFoundError:
    return False
  return os.path.samestat(os.fstat(file.fileno()), there)


def _fetch(
  url: str,
  file: BinaryIO,
  part: pathlib.Path,
  size: int | None,
  limit: int,
  progress: Progress | None,
  timeout: float,
) -> None:
  """Adds what is missing of a file, in a few attempts."""
  for attempt in range(_ATTEMPTS):
    last = attempt + 1 == _ATTEMPTS
    try:
      with _Watch(timeout) as watch:
        _attempt(url, file, size, limit, progress, watch)
      return
    except DownloadError:  # Asking again would not help.
      raise
    except urllib.error.HTTPError as error:
      error.close()
      if error.code == 416 and not last:  # The part is longer than the file.
        file.truncate(0)
      elif error.code < 500 or last:
        raise
    except (OSError, http.client.HTTPException) as error:
      full = getattr(error, "errno", None) in _FULL
      if full:
        part.unlink()
      if full or last:
        raise


def _attempt(
  url: str,
  file: BinaryIO,
  size: int | None,
  limit: int,
  progress: Progress | None,
  watch: _Watch,
) -> None:
  """Makes one request; raises OSError unless the whole file has come."""
  start = file.seek(0, os.SEEK_END)
  if start and start == size:
    return  # Complete, but its checksum was never compared.
  if start >= limit:
    file.truncate(0)
    start = file.seek(0)
  headers = {"User-Agent": "esrgan-jax"}
  if start:
    headers["Range"] = f"bytes={start}-"
  request = urllib.request.Request(url, headers=headers)
  try:
    with watch.opener().open(request, timeout=watch.timeout) as response:
      span = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)",
        response.headers.get("Content-Range", ""),
      )
      if not (response.status == 206 and span and int(span[1]) == start):
        start = 0
      done, length = start, response.headers.get("Content-Length", "")
      known = re.fullmatch("[0-9]{1,18}", length)
      total = start + int(length) if known else size
      if size and total != size:
        raise DownloadError(f"the server has {total} bytes, expected {size}")
      if total and total > limit:
        raise DownloadError(
          f"the server has {total} bytes, the limit is {limit}"
        )
      file.truncate(start)
      file.seek(start)
      while chunk := response.read1(_CHUNK_BYTES):
        done += len(chunk)
        if done > (total or limit):
          file.truncate(0)
          raise DownloadError(
            f"the server sends more than {total or limit} bytes"
          )
        if file.write(chunk) < len(chunk):
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch.received += len(chunk)
        if progress:
          progress(done, total)
  except (OSError, http.client.HTTPException) as error:
    if watch.slow:
      raise TimeoutError(watch.slow) from error
    raise
  if watch.slow:
    raise TimeoutError(watch.slow)
  if total is not None and done < total:
    raise OSError(f"the connection broke after {done} of {total} bytes")


class _Watch:
  """Ends an attempt's connections once they are slower than a rate.

  A timeout of a socket begins anew with each byte, and also headers and
  handshakes can come one by one: so this looks on from another thread.
  """

  def __init__(self, timeout: float):
    self.timeout, self.received, self.slow = timeout, 0, ""
    self._sockets: list[socket.socket] = []
    self._opened = contextlib.ExitStack()
    self._lock, self._end = threading.Lock(), threading.Event()
    self._thread = threading.Thread(target=self._look_on, daemon=True)

  def __enter__(self) -> _Watch:
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._end.set()
    self._thread.join()
    self._opened.close()

  def opener(self) -> urllib.request.OpenerDirector:
    """Returns what opens http(s) addresses, by watched connections."""
    opener = urllib.request.OpenerDirector()
    for handler in (
      urllib.request.ProxyHandler(),
      urllib.request.UnknownHandler(),
      urllib.request.HTTPDefaultErrorHandler(),
      urllib.request.HTTPErrorProcessor(),
      _Redirects(),
      _Connections(self._connect, self._opened),
    ):
      opener.add_handler(handler)
    return opener

  def _connect(self, *args, **kwargs) -> socket.socket:
    connection = socket.create_connection(*args, **kwargs)
    with self._lock:
      # A handshake takes the socket over: a copy still ends the connection.
      self._sockets.append(self._opened.enter_context(connection.dup()))
      if self.slow:
        connection.shutdown(socket.SHUT_RDWR)
    return connection

  def _look_on(self) -> None:
    seen, least = 0, _LEAST_RATE * self.timeout
    while not self._end.wait(self.timeout):
      if (received := self.received) - seen < least:
        with self._lock:
          self.slow = (
            f"the server sent {received - seen} bytes in {self.timeout:g} s,"
            f" at least {least:.0f} are expected"
          )
          for connection in self._sockets:
            with contextlib.suppress(OSError):
              connection.shutdown(socket.SHUT_RDWR)
        return
      seen = received


class _Connections(urllib.request.AbstractHTTPHandler):
  """Opens http and https by connections that a function makes."""

  def __init__(
    self, connect: Callable[..., socket.socket], opened: contextlib.ExitStack
  ):
    super().__init__()
    self._connect, self._opened = connect, opened

  def http_open(self, request):
    return self._open(http.client.HTTPConnection, request)

  def https_open(self, request):
    context = ssl.create_default_context()
    return self._open(http.client.HTTPSConnection, request, context=context)

  http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

  def _open(self, kind, request, **options):
    def make(host, **rest):
      connection = kind(host, **rest)
      connection._create_connection = self._connect
      return connection

    response = self.do_open(make, request, **options)
    # A redirection that is refused leaves it open.
    self._opened.callback(response.close)
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows a few redirections, none of them off http(s) or off https."""

  max_redirections = 5

  def redirect_request(self, request, file, code, message, headers, url):
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("https", request.type):
      raise OSError(f"it is redirected to {url}, from {request.type}")
    return super().redirect_request(request, file, code, message, headers, url)
