"""What a page on this machine does not do for other pages and machines."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Guard", "refuse_addresses"]

# A page loads from here alone, whatever is in it; Gradio's needs inline code.
_POLICY = (
  "default-src 'self' 'unsafe-inline' data: blob:;"
  " script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
  " frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
# Of a request, beside a picture's file: the form around it.
_MORE = 10**6
# Methods that bring nothing along.
_EMPTY = ("GET", "HEAD", "OPTIONS")
_HEADERS = (
  (b"content-security-policy", _POLICY.encode()),
  (b"referrer-policy", b"no-referrer"),
  (b"x-content-type-options", b"nosniff"),
)


class Guard:
  """An application of ASGI that another one is behind.

  It answers who asks for it by its name, and not who leads a browser here by a
  name of theirs (DNS rebinding), or from a page of theirs. Browsers are told to
  load nothing from elsewhere. What is uploaded is bounded, each request and all
  of them together: the one behind bounds a file, not how many come.

  Args:
    app: The one behind.
    hosts: The names, in lower case and without ports; None for any.
    max_upload: Most bytes of a file.
    quota: Most bytes that lie in `folder`, and are on their way to it.
    folder: Where files are put.
  """

  def __init__(
    self,
    app: Any,
    hosts: set[str] | None,
    *,
    max_upload: float = math.inf,
    quota: float = math.inf,
    folder: str | os.PathLike[str] | None = None,
  ):
    self._app, self._hosts = app, hosts
    self._most, self._quota, self._folder = max_upload + _MORE, quota, folder
    self._coming = 0

  async def __call__(
    self,
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
  ) -> None:
    """Answers one request."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin", b"").decode("latin-1")
    if self._hosts is not None and _name(host).lower() not in self._hosts:
      await _refuse(send, 403, "this is no name of this page")
      return
    if origin and origin.partition("://")[2] != host:
      await _refuse(send, 403, "another page asks")
      return
    size = 0
    if scope["method"] not in _EMPTY:
      length = headers.get(b"content-length", b"")
      # One that comes in chunks tells none, or one that does not count.
      if not length.isdigit() or b"transfer-encoding" in headers:
        await _refuse(send, 413, "the request does not tell its length")
        return
      size = int(length)
    if size > self._most:
      await _refuse(send, 413, "this exceeds what may be uploaded at once")
      return
    if size > _MORE and self._lying() + self._coming + size > self._quota:
      # A browser that is still sending would not hear why.
      while (await receive()).get("more_body"):
        pass
      await _refuse(send, 413, "too much was uploaded; come again in an hour")
      return
    self._coming += size
    try:
      await self._app(scope, receive, functools.partial(_add_headers, send))
    finally:
      self._coming -= size

  def _lying(self):
    """Returns the bytes that are in the folder."""
    if self._folder is None:
      return 0
    total = 0
    for root, _, names in os.walk(self._folder):
      for name in names:
        with contextlib.suppress(OSError):  # It is gone by now.
          total += os.lstat(os.path.join(root, name)).st_size
    return total


async def _add_headers(send, message):
  if message["type"] == "http.response.start":
    kept = [*message.get("headers", ())]
    message = {**message, "headers": [*kept, *_HEADERS]}
  await send(message)


async def _refuse(send, status, reason):
  await send(
    {
      "type": "http.response.start",
      "status": status,
      "headers": [(b"content-type", b"text/plain"), (b"connection", b"close")],
    }
  )
  await send({"type": "http.response.body", "body": reason.encode()})


def _name(host):
  """Returns a host without its port.

  >>> _name("localhost:7860"), _name("[::1]:7860")
  ('localhost', '[::1]')
  """
  head, _, last = host.rpartition(":")
  return head if head and last.isdecimal() else host


def refuse_addresses(block: Any) -> None:
  """Has a component of Gradio take files for files only, of uploads.

  It would else fetch what a request calls an address.

  Args:
    block: The component.
  """
  move = block.async_move_resource_to_block_cache

  async def moved(path):
    if path is not None and "://" in str(path):
      raise ValueError("an address is no uploaded file")
    return await move(path)

  block.async_move_resource_to_block_cache = moved
