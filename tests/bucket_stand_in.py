"""A bucket in this process's memory, under `gs://`: whole objects, no more.

There is no adding to an object and no renaming. Importing it, in a process
with `EPATH_USE_TF=0`, puts it behind `etils.epath` through fsspec's registry,
behind TensorStore by HTTP, and stands in for the package that Orbax asks what
kind of bucket it is.
"""

import http.server
import importlib
import io
import itertools
import json
import os
import sys
import threading
import types
import urllib.parse

import fsspec


class Bucket(fsspec.AbstractFileSystem):
  protocol = ("gs", "gcs")
  objects: dict[str, bytes] = {}  # noqa: RUF012
  generations: dict[str, int] = {}  # noqa: RUF012
  lock = threading.RLock()
  _number = itertools.count(1)

  @classmethod
  def put(cls, name, content):
    with cls.lock:
      cls.objects[name] = content
      cls.generations[name] = next(cls._number)

  @classmethod
  def _strip_protocol(cls, path):
    return str(path).removeprefix("gs://").rstrip("/")

  def ls(self, path, detail=True, **_):
    path = self._strip_protocol(path)
    found = {}
    for name, content in list(self.objects.items()):
      if name == path:
        found[name] = {"name": name, "size": len(content), "type": "file"}
      elif name.startswith(f"{path}/"):
        child, deeper, _ = name.removeprefix(f"{path}/").partition("/")
        kind = "directory" if deeper else "file"
        child = f"{path}/{child}"
        found[child] = {"name": child, "size": len(content), "type": kind}
    if not found:
      raise FileNotFoundError(path)
    return list(found.values()) if detail else list(found)

  def mkdir(self, path, create_parents=True, **_):
    pass  # A bucket has no folders, only names with slashes.

  def makedirs(self, path, exist_ok=False):
    pass

  def rm(self, path, recursive=False, maxdepth=None):
    path = self._strip_protocol(path)
    for name in list(self.objects):
      if name == path or (recursive and name.startswith(f"{path}/")):
        del self.objects[name]

  def mv(self, *_, **__):
    raise NotImplementedError("objects cannot be renamed")

  rename = mv

  def _open(self, path, mode="rb", **_):
    if mode == "rb":
      try:
        return io.BytesIO(self.objects[path])
      except KeyError:
        raise FileNotFoundError(path) from None
    if mode == "wb":
      return _Upload(path)
    raise NotImplementedError(f"mode {mode}: objects are written whole")


class _Upload(io.BytesIO):
  """Becomes an object when it is closed."""

  def __init__(self, path):
    super().__init__()
    self._path = path

  def close(self):
    if not self.closed:
      Bucket.put(self._path, self.getvalue())
    super().close()


class _Server(http.server.BaseHTTPRequestHandler):
  """As much of Cloud Storage's JSON interface as TensorStore uses."""

  protocol_version = "HTTP/1.1"

  def _parse(self):
    url = urllib.parse.urlparse(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    _, rest = url.path.split("/storage/v1/b/")
    bucket, _, name = rest.partition("/o")
    name = urllib.parse.unquote(name.removeprefix("/"))
    return query, bucket, f"{bucket}/{name or query.get('name', '')}"

  def _answer(self, status, content=b"", **headers):
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _refused(self, query, name):
    """Whether it is not the version that the client has in mind."""
    version = Bucket.generations.get(name, 0) if name in Bucket.objects else 0
    if query.get("ifGenerationMatch", str(version)) != str(version):
      self._answer(412)
    elif query.get("ifGenerationNotMatch") == str(version) and version:
      self._answer(304)
    else:
      return False
    return True

  def _describe(self, name):
    _, _, short = name.partition("/")
    content = Bucket.objects[name]
    version = str(Bucket.generations[name])
    return {"name": short, "size": str(len(content)), "generation": version}

  def do_GET(self):
    query, bucket, name = self._parse()
    with Bucket.lock:
      if name == f"{bucket}/":
        first, end = query.get("startOffset", ""), query.get("endOffset")
        names = [n for n in Bucket.objects if n.startswith(f"{bucket}/")]
        items = [self._describe(n) for n in sorted(names)]
        self._answer(
          200,
          {
            "items": [
              item
              for item in items
              if first <= item["name"] and (not end or item["name"] < end)
            ]
          },
        )
      elif name not in Bucket.objects:
        self._answer(404)
      elif not self._refused(query, name):
        self._read(query, name)

  def _read(self, query, name):
    if query.get("alt") != "media":
      self._answer(200, self._describe(name))
      return
    content, status, headers = Bucket.objects[name], 200, {}
    if wanted := self.headers.get("Range"):
      total = len(content)
      begin, end = wanted.removeprefix("bytes=").split("-")
      begin = int(begin) if begin else total - int(end)
      end = min(int(end) + 1, total) if end and begin >= 0 else total
      content, status = content[begin:end], 206
      headers["Content_Range"] = f"bytes {begin}-{end - 1}/{total}"
    version = Bucket.generations[name]
    self._answer(status, content, x_goog_generation=str(version), **headers)

  def do_POST(self):
    query, _, name = self._parse()
    content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    with Bucket.lock:
      if not self._refused(query, name):
        Bucket.put(name, content)
        self._answer(200, self._describe(name))

  def do_DELETE(self):
    query, _, name = self._parse()
    with Bucket.lock:
      if name not in Bucket.objects:
        self._answer(404)
      elif not self._refused(query, name):
        del Bucket.objects[name]
        self._answer(204)

  def log_message(self, *_):
    pass


def _stand_in():
  fsspec.register_implementation("gcs", Bucket, clobber=True)

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  os.environ["TENSORSTORE_GCS_HTTP_URL"] = (
    f"http://127.0.0.1:{server.server_port}"
  )
  os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "any"

  storage = types.ModuleType("google.cloud.storage")
  storage.Client = lambda: types.SimpleNamespace(
    get_bucket=lambda name: types.SimpleNamespace(name=name)
  )
  try:
    cloud = importlib.import_module("google.cloud")
  except ImportError:
    cloud = sys.modules["google.cloud"] = types.ModuleType("google.cloud")
    cloud.__path__ = []
  cloud.storage = sys.modules["google.cloud.storage"] = storage


_stand_in()
