"""The script that fetches what is published, against a server on loopback."""

import hashlib

import pytest

from benchmarks import published
from tests.file_server import DATA, DIGEST, serving


def _item(path, digest, **changes):
  url = f"https://publisher.invalid/files/{path.name}"
  return published.Item(path.stem, url, digest, len(DATA), path)._replace(
    **changes
  )


def test_files_come_once_and_are_checked(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  md5 = hashlib.md5(DATA).hexdigest()
  items = [
    _item(tmp_path / "a.pth", DIGEST),
    _item(tmp_path / "b.h5", md5, size=None),
    _item(tmp_path / "c.pth", "", fetched=False),
  ]
  with serving() as server:
    options = {"mirror": server.url.rpartition("/")[0]}
    assert published.check(items, **options)
    out = capsys.readouterr().out.splitlines()
    assert out == [
      "a: fetched, sha256 agrees",
      "b: fetched, md5 agrees",
      "c: left out: to be brought by hand, https://publisher.invalid/files/c.pth",
    ]
    assert len(server.requests) == 2
    (tmp_path / "c.pth").write_bytes(b"c")
    assert published.check(items, **options)
    assert "c: here, no checksum is published" in capsys.readouterr().out
    assert len(server.requests) == 2
    # Another file, and one that was altered since.
    wrong = _item(tmp_path / "d.pth", md5[::-1])
    (tmp_path / "a.pth").write_bytes(b"a")
    assert not published.check([wrong], **options)
    assert not published.check([items[0]], **options)
    server.mode = "404"
    lost = _item(tmp_path / "e.pth", DIGEST)
    assert not published.check([lost], **options)
  out = capsys.readouterr().out.splitlines()
  assert [line.partition(":")[0] for line in out] == ["d", "a", "e"]
  assert "FAILED: what http" in out[0]
  assert f"expected {md5[::-1]}" in out[0]
  assert "DIFFERS: sha256 is " in out[1]
  assert "FAILED: " in out[2]
  assert not (tmp_path / "d.pth").exists()


def test_what_is_not_a_network_is_told(tmp_path):
  path = tmp_path / "vgg16.pth"
  path.write_bytes(DATA)
  item = _item(path, DIGEST, name="vgg16-torchvision")
  with pytest.raises(ValueError, match=r"vgg16\.pth is not VGG16"):
    published.check([item])


def test_all_that_has_an_address_is_in_the_list():
  items = published.published_items()
  names = [item.name for item in items]
  assert len({*names}) == len(names)
  assert {"vgg19-torchvision", "vgg19-keras", "esrgan-x4"} < {*names}
  assert {*published.FIGURES} <= {*names}
  for item in items:
    assert len(item.digest) in ((32, 64) if item.fetched else (0, 64))
    assert "https://" in item.url


def test_figures_are_compared():
  figure = published.FIGURES["msrresnet-x4"]
  means = {"psnr_rgb": 30.25, "ssim_rgb": 0.866, "psnr_y": 1.0, "ssim_y": 0.0}
  assert published.compare(figure, means)[1]
  told, good = published.compare(figure, {**means, "ssim_rgb": 0.87})
  assert not good
  assert "DIFFERS" in told
