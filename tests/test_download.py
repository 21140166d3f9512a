"""Fetching from a local server: what comes, what breaks, what is planted."""

import multiprocessing
import os
import threading

import pytest

from esrgan_jax import download
from tests.file_server import DATA, DIGEST, serving

ESCAPE = "\x1b"


@pytest.fixture
def server(monkeypatch, tmp_path):
  """A server, and in `folder` a cache that is not there yet."""
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with serving() as server:
    server.folder = tmp_path / "cache"
    server.file = server.folder / "x.pth"
    server.part = server.folder / "x.pth.part"
    yield server


def fetch(server, **options):
  options = {"sha256": DIGEST, "size": len(DATA), "limit": 2**21} | options
  download.fetch(server.url, server.file, **options)
  assert server.file.read_bytes() == DATA
  assert os.listdir(server.folder) == ["x.pth"]


def left(server):
  return os.listdir(server.folder)


def test_a_file_comes_with_progress(server):
  seen = []
  fetch(server, progress=lambda *a: seen.append(a))
  assert seen[-1] == (len(DATA), len(DATA))
  assert [a for a, _ in seen] == sorted({a for a, _ in seen})
  assert server.requests == [None]


@pytest.mark.parametrize("mode", ["range", "no range"])
def test_an_interrupted_download_goes_on(server, mode):
  server.mode = mode
  server.folder.mkdir()
  server.part.write_bytes(DATA[:1000])
  fetch(server)
  assert server.requests == ["bytes=1000-"]


def test_a_broken_connection_is_resumed(server):
  server.mode = "truncate once"
  fetch(server)
  assert server.requests == [None, f"bytes={len(DATA) // 2}-"]


def test_a_connection_that_keeps_breaking(server):
  server.mode = "truncate"
  with pytest.raises(download.DownloadError, match="broke after"):
    fetch(server)
  assert len(server.requests) == 3
  assert left(server) == ["x.pth.part"]  # To go on from next time.
  server.mode = "range"
  fetch(server)


def test_a_server_error_is_tried_again(server):
  server.mode = "500 once"
  fetch(server)
  assert server.requests == [None, None]


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_part_longer_than_the_file_starts_anew(server, size):
  server.folder.mkdir()
  server.part.write_bytes(DATA + b"more")
  fetch(server, size=size)
  assert server.requests[-1] is None


def test_a_complete_part_is_checked_not_trusted(server):
  server.folder.mkdir()
  server.part.write_bytes(b"y" * len(DATA))
  with pytest.raises(download.ChecksumError, match="deleted"):
    fetch(server)
  assert left(server) == []
  server.part.write_bytes(DATA)
  fetch(server)
  assert server.requests == []


def test_another_file_is_not_kept(server):
  server.mode = "corrupt"
  with pytest.raises(download.ChecksumError, match=DIGEST):
    fetch(server)
  assert left(server) == []


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_server_that_names_no_length(server, size):
  server.mode = "no length"
  fetch(server, size=size)


@pytest.mark.parametrize(
  ("mode", "size", "message"),
  [
    ("longer", len(DATA), f"the server has {2 * len(DATA)} bytes, expected"),
    ("length 1000000000000", None, "1000000000000 bytes, the limit is 2097152"),
    ("endless", None, "sends more than 2097152 bytes"),
    ("endless", len(DATA), f"sends more than {len(DATA)} bytes"),
    (f"length {'9' * 5000}", len(DATA) - 1, f"more than {len(DATA) - 1} bytes"),
  ],
)
def test_a_limit_holds_whatever_the_server_says(server, mode, size, message):
  server.mode = mode
  with pytest.raises(download.DownloadError, match=message):
    fetch(server, size=size)
  assert left(server) == []
  assert len(server.requests) == 1


@pytest.mark.parametrize("mode", ["drips", "drips headers"])
def test_what_trickles_is_cut(server, mode):
  server.mode = mode
  with pytest.raises(download.DownloadError, match=r"in 0\.2 s, at least 1638"):
    fetch(server, timeout=0.2)
  assert len(server.requests) == 3


@pytest.mark.parametrize(
  ("target", "message"),
  [
    ("file:///etc/hosts", "'file:///etc/hosts' is not allowed"),
    ("ftp://127.0.0.1/x", "it is redirected to ftp://127.0.0.1/x, from http"),
    ("/again", "would lead to an infinite loop"),
    ("http://[broken", "Invalid IPv6 URL"),
    (f"http://127.0.0.1:9/{ESCAPE}]0;", "refused|control characters"),
  ],
)
def test_redirections_are_followed_within_http_only(server, target, message):
  server.mode = f"to {target}"
  with pytest.raises(download.DownloadError, match=message) as caught:
    fetch(server, timeout=2)
  assert str(caught.value).isprintable()
  assert left(server) == []


def test_a_redirection_is_followed(server):
  with serving() as other:
    server.mode = f"to {other.url}"
    fetch(server)
    assert len(other.requests) == 1


@pytest.mark.parametrize("mode", ["404", "escapes"])
def test_a_refusal_is_final_and_printable(server, mode):
  server.mode = mode
  with pytest.raises(download.DownloadError, match="404") as caught:
    fetch(server)
  assert str(caught.value).isprintable()
  assert server.requests == [None]  # Asking again would not help.
  assert left(server) == []


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "dangling"])
def test_what_was_planted_is_neither_followed_nor_read(server, tmp_path, kind):
  precious = tmp_path / "precious"
  server.folder.mkdir()
  if kind == "pipe":
    os.mkfifo(server.part)
  elif kind == "hard link":
    precious.write_bytes(b"precious")
    server.part.hardlink_to(precious)
  else:
    if kind == "link":
      precious.write_bytes(b"precious")
    server.part.symlink_to(precious)
  fetch(server)
  assert server.requests == [None]
  if "link" in kind:
    assert precious.read_bytes() == b"precious"
  else:
    assert not precious.exists()


def test_a_folder_in_the_way(server):
  server.part.mkdir(parents=True)
  with pytest.raises(download.DownloadError, match=r"directory: .*\.part"):
    fetch(server)


def test_a_cache_folder_that_is_a_file(server):
  server.folder.write_bytes(b"precious")
  with pytest.raises(download.DownloadError, match=r"File exists: .*cache"):
    fetch(server)


def test_a_full_disk_leaves_nothing(server, full_disk):
  with (
    full_disk(300_000),
    pytest.raises(download.DownloadError, match=r"No space|too large"),
  ):
    fetch(server)
  assert left(server) == []
  assert len(server.requests) == 1


def test_threads_fetch_once(server):
  options = {"sha256": DIGEST, "limit": len(DATA)}
  threads = [
    threading.Thread(
      target=download.fetch, args=(server.url, server.file), kwargs=options
    )
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert server.requests == [None]
  assert left(server) == ["x.pth"]


def _hold(url, path, ready, release):
  def wait(*_):
    ready.set()
    release.wait(30)

  download.fetch(url, path, sha256=DIGEST, limit=len(DATA), progress=wait)


def test_of_two_processes_one_fetches(server):
  context = multiprocessing.get_context("spawn")
  ready, release = context.Event(), context.Event()
  arguments = (server.url, server.file, ready, release)
  other = context.Process(target=_hold, args=arguments)
  other.start()
  assert ready.wait(60)
  thread = threading.Thread(target=fetch, args=(server,))
  thread.start()
  thread.join(0.3)
  assert thread.is_alive()
  release.set()
  thread.join(30)
  other.join(30)
  assert left(server) == ["x.pth"]
  assert server.requests == [None]


def test_one_does_not_wait_for_ever(server):
  server.folder.mkdir()
  with (
    download._locked(server.part, 0),
    pytest.raises(download.DownloadError, match="another process holds"),
  ):
    download.fetch(
      server.url, server.file, sha256=DIGEST, limit=1, timeout=0.01
    )
