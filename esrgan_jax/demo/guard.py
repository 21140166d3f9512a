"""What a page on this machine does not do for other pages and machines."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Guard", "refuse_addresses"]

# A page loads from here alone, whatever is in it; Gradio's needs inline code.
_POLICY = (
  "default-src 'self' 'unsafe-inline' data: blob:;"
  " script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
  " frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
_HEADERS = (
  (b"content-security-policy", _POLICY.encode()),
  (b"referrer-policy", b"no-referrer"),
  (b"x-content-type-options", b"nosniff"),
)


class Guard:
  """An application of ASGI that another one is behind.

  It answers who asks for it by its name, and not who leads a browser here by a
  name of theirs (DNS rebinding), or from a page of theirs. Browsers are told to
  load nothing from elsewhere.

  Args:
    app: The one behind.
    hosts: The names, without ports; None for any.
  """

  def __init__(self, app: Any, hosts: set[str] | None):
    self._app, self._hosts = app, hosts

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
    if self._hosts is not None and _name(host) not in self._hosts:
      await _refuse(send, "this is no name of this page")
    elif origin and origin.partition("://")[2] != host:
      await _refuse(send, "another page asks")
    else:
      await self._app(scope, receive, functools.partial(_add_headers, send))


async def _add_headers(send, message):
  if message["type"] == "http.response.start":
    kept = [*message.get("headers", ())]
    message = {**message, "headers": [*kept, *_HEADERS]}
  await send(message)


async def _refuse(send, reason):
  await send(
    {
      "type": "http.response.start",
      "status": 403,
      "headers": [(b"content-type", b"text/plain")],
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
