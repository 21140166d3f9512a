"""A server on loopback that sends a file, and misbehaves where it is asked."""

import contextlib
import hashlib
import http.server
import threading
import time

DATA = bytes(range(256)) * 4000  # 1 MB: four chunks.
DIGEST = hashlib.sha256(DATA).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
  """Serves DATA as the server's `mode` says."""

  def do_GET(self):
    with contextlib.suppress(ConnectionError):
      self._answer(self.server.mode, self.headers.get("Range"))

  def _answer(self, mode, wanted):
    self.server.requests.append(wanted)
    data, start, first = DATA, 0, len(self.server.requests) == 1
    if mode == "404" or (mode == "500 once" and first):
      self.send_error(int(mode[:3]))
      return
    if mode == "escapes":
      self.wfile.write(b"HTTP/1.0 404 \x1b[31mGone\x9b\xff\r\n\r\n")
      return
    if mode.startswith("to "):
      self.send_response(302)
      self.send_header("Location", mode.removeprefix("to "))
      self.end_headers()
      return
    if mode == "drips headers":
      self._drip(b"HTTP/1.0 200 OK\r\nX-Long: " + b"x" * 10_000)
      return
    if mode == "corrupt":
      data = b"x" * len(DATA)
    if mode == "longer":
      data = DATA * 2
    if wanted and mode != "no range":
      start = int(wanted.removeprefix("bytes=").rstrip("-"))
      if start >= len(data):
        self.send_error(416)
        return
      self.send_response(206)
      span = f"bytes {start}-{len(data) - 1}/{len(data)}"
      self.send_header("Content-Range", span)
    else:
      self.send_response(200)
    length = str(len(data) - start)
    if mode.startswith("length "):
      length = mode.removeprefix("length ")
    if mode not in ("no length", "endless"):
      self.send_header("Content-Length", length)
    self.end_headers()
    if mode == "drips":
      self._drip(data)
    while mode == "endless":
      self.wfile.write(data)
    end = len(data)
    if mode == "truncate" or (mode == "truncate once" and first):
      end = start + (end - start) // 2
    self.wfile.write(data[start:end])

  def _drip(self, data):
    for i in range(len(data)):
      self.wfile.write(data[i : i + 1])
      time.sleep(0.02)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving():
  """Yields the server: `mode`, `url` of a file, ranges of `requests`."""
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
    server.mode, server.requests = "range", []
    server.url = f"http://127.0.0.1:{server.server_port}/x.pth"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()
