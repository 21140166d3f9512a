"""`python -m esrgan_jax demo`: what it does with pictures, without its page."""

import argparse
import asyncio
import re
import shlex
import socket

import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.__main__ import main
from esrgan_jax.commands import demo
from esrgan_jax.demo import guard
from esrgan_jax.demo.studio import SIDE, Choice, Studio
from esrgan_jax.weights import files
from tests.test_upscaler import make_model, photo

NET = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory):
  """A folder with two models that can be mixed, and one that cannot."""
  folder = tmp_path_factory.mktemp("models")
  for seed, (name, fields) in enumerate(
    {"p": {}, "g": {}, "deep": {"num_block": 2}}.items()
  ):
    params = make_model(seed, **NET | fields).params
    params["conv_last"]["bias"] += 0.5  # Neither black nor white.
    files.write_weights(f"{folder}/{name}.safetensors", params, NET | fields)
  return folder


@pytest.fixture(name="studio")
def _studio(models, tmp_path, monkeypatch):
  monkeypatch.chdir(models)
  names = [f"{name}.safetensors" for name in ("g", "p", "deep")]
  return Studio(tmp_path, models=names, psnr_model="p.safetensors")


@pytest.fixture(name="picture")
def _picture(tmp_path):
  path = tmp_path / "my photo.png"
  image = images.Image(photo(20, 28, 3, dtype=np.uint8))
  images.write_image(path, image)
  return path


def _pixels(path):
  return images.read_image(path).pixels


def test_own_models_come_first_and_fitting_ones_can_be_mixed(studio):
  assert [*studio.offers][:3] == [
    f"{name}.safetensors" for name in ("g", "p", "deep")
  ]
  assert studio.first == Choice("g.safetensors", "p.safetensors")
  assert studio.partners("g.safetensors") == ["p.safetensors"]
  assert studio.partners("deep.safetensors") == []
  assert studio.offers["general-x4v3"].denoises
  assert "fetched when used, 5 MB" in studio.offers["general-x4v3"].label
  # By hand, and not here.
  assert "esrgan-psnr-x4" not in studio.offers


def test_a_result_is_that_of_the_command(studio, picture, monkeypatch):
  choice = Choice("g.safetensors", "p.safetensors", alpha=0.3)
  reports = []
  result = studio.upscale(
    picture, choice, report=lambda *told: reports.append(told)
  )
  assert result.file.name == "my photo_x4.png"
  assert result.facts.startswith("112 x 80 pixels")
  assert reports[-2:] == [(1.0, "upscaling"), (1.0, "showing")]
  words = shlex.split(studio.command(picture, choice))
  assert words[:5] == ["python", "-m", "esrgan_jax", "upscale", "my photo.png"]
  out = picture.with_name("by_command.png")
  assert main(["upscale", str(picture), *words[5:], "-o", str(out)]) == 0
  ours, theirs = map(images.read_image, (result.file, out))
  np.testing.assert_array_equal(ours.pixels, theirs.pixels)
  assert ours.metadata == theirs.metadata
  assert b"alpha=0.3" in out.read_bytes()
  np.testing.assert_array_equal(_pixels(result.after), ours.pixels)
  assert _pixels(result.before).shape == ours.pixels.shape


def test_alpha_moves_what_is_seen_from_one_model_to_the_other(studio, picture):
  def seen(**choice):
    look = studio.look(picture, Choice("g.safetensors", **choice))
    return _pixels(look.after).astype(int)

  other = {"other": "p.safetensors"}
  first, between, last = (seen(**other, alpha=a) for a in (0.0, 0.5, 1.0))
  np.testing.assert_allclose(last, seen(), atol=1)
  assert abs(first - last).max() > 3
  assert 0 < abs(between - last).mean() < abs(first - last).mean()


def test_the_square_is_where_it_is_wanted(studio, tmp_path):
  image = photo(300, 400, 3, dtype=np.uint8)
  path = tmp_path / "large.png"
  images.write_image(path, images.Image(image))
  whole = studio._load(Choice("p.safetensors"), print)[0].upscale(image)
  overview = _pixels(studio.look(path, Choice("p.safetensors")).overview)
  assert overview.shape == (300, 400, 3)
  middle = np.s_[300 // 2 - SIDE // 2, 400 // 2 - SIDE // 2 : 400 // 2]
  assert (overview[middle] == (255, 255, 255)).all()
  inside = np.s_[90:200, 140:250]
  np.testing.assert_array_equal(overview[inside], image[inside])
  for (x, y), (top, left) in {
    (0, 0): (0, 0),
    (399, 299): (300 - SIDE, 400 - SIDE),
    (200, 100): (100 - SIDE // 2, 200 - SIDE // 2),
  }.items():
    look = studio.look(
      path, Choice("p.safetensors"), at=studio.point(path, x, y)
    )
    after = _pixels(look.after)
    assert after.shape == (4 * SIDE, 4 * SIDE, 3)
    # Far from the square's edges, which the whole picture does not have.
    part = whole[
      4 * top + 200 : 4 * (top + SIDE) - 200,
      4 * left + 200 : 4 * (left + SIDE) - 200,
    ].astype(int)
    assert abs(after[200:-200, 200:-200] - part).max() <= 2


def test_all_kinds_of_pictures_are_shown(studio, tmp_path):
  grey = photo(9, 7, 1, dtype=np.uint16)
  alpha = np.zeros((9, 7), np.uint16)
  images.write_image(tmp_path / "grey.png", images.Image(grey, alpha=alpha))
  frames = [PilImage.new("L", (6, 5), level) for level in (9, 99)]
  frames[0].save(
    tmp_path / "moving.gif", save_all=True, append_images=frames[1:]
  )
  look = studio.look(tmp_path / "grey.png", Choice("p.safetensors"))
  assert (_pixels(look.after) == 255).all()  # Nothing is seen, on white.
  result = studio.upscale(tmp_path / "grey.png", Choice("p.safetensors"))
  assert _pixels(result.file).dtype == np.uint16
  look = studio.look(tmp_path / "moving.gif", Choice("p.safetensors"))
  assert "the file has 2 pictures; this is the first" in look.notes
  result = studio.upscale(tmp_path / "moving.gif", Choice("p.safetensors"))
  assert result.facts.startswith("2 of 24 x 20 pixels")
  assert len(images.read_frames(result.file)) == 2


@pytest.mark.parametrize("depth", [0, 3])
def test_a_wrong_file_is_told_without_the_folder(studio, tmp_path, depth):
  folder = tmp_path.joinpath(*depth * ["a" * 64])  # Too long to be shown whole.
  folder.mkdir(parents=True, exist_ok=True)
  wrong = folder / "letter.png"
  wrong.write_text("Dear Sir or Madam, this is no picture at all." * 9)
  for act in (studio.look, studio.upscale):
    with pytest.raises(images.ImageError) as caught:
      act(wrong, Choice("p.safetensors"))
    text = studio.explain(caught.value, wrong)
    assert text.startswith("letter.png: not an image of a known format")
    assert str(tmp_path) not in text


def test_what_is_too_large_is_refused_before_it_is_decoded(models, tmp_path):
  studio = Studio(
    tmp_path, models=[f"{models}/p.safetensors"], max_pixels=20 * 27
  )
  path = tmp_path / "a.png"
  images.write_image(path, images.Image(photo(20, 28, 3, dtype=np.uint8)))
  for act in (studio.look, studio.upscale):
    with pytest.raises(images.ImageError, match="28 x 20 pixels are more than"):
      act(path, studio.first)


def test_a_report_that_raises_ends_the_work_and_leaves_no_result(
  studio, picture
):
  def report(share, what):
    if what == "upscaling":
      raise KeyError(what)

  with pytest.raises(KeyError):
    studio.upscale(picture, Choice("p.safetensors"), report=report)
  assert not [*picture.parent.rglob("*_x4*")]
  studio.upscale(picture, Choice("p.safetensors"))  # It is free again.


def test_models_that_cannot_be_mixed_are_told_at_once(models, tmp_path):
  names = [f"{models}/{name}.safetensors" for name in ("g", "deep")]
  with pytest.raises(ValueError, match=r"num_block is 2 in .* and 1 in"):
    Studio(tmp_path, models=names[:1], psnr_model=names[1])


def test_programs_are_kept_for_another_alpha(studio, picture):
  alphas = [Choice("g.safetensors", "p.safetensors", a) for a in (0.1, 0.2)]
  studio.look(picture, alphas[0])
  key = (alphas[0].model, alphas[0].other, "programs")
  programs = studio._models[key]._programs
  assert (compiled := len(programs)) > 0
  studio.look(picture, alphas[1])
  assert studio._models[key]._programs is programs
  assert len(programs) == compiled


def _asked(app, method="GET", sent=None, **headers):
  """Status and headers of an answer; `sent` gets what was read before it."""
  got = []

  async def send(message):
    got.append(message)

  async def receive():
    sent.append(len(got))
    return {"type": "http.request", "more_body": len(sent) < 3}

  scope = {
    "type": "http",
    "method": method,
    "headers": [
      (k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()
    ],
  }
  asyncio.run(app(scope, receive, send))
  return got[0]["status"], dict(got[0]["headers"])


async def _behind(_, __, send):
  head = {"type": "http.response.start", "status": 200, "headers": []}
  await send(head)


LOCAL = {"localhost", "127.0.0.1"}


@pytest.mark.parametrize(
  ("hosts", "headers", "status"),
  [
    (LOCAL, {"host": "127.0.0.1:7860"}, 200),
    (LOCAL, {"host": "localhost", "origin": "http://localhost"}, 200),
    (LOCAL, {"host": "LocalHost:7860"}, 200),
    (LOCAL, {"host": "evil.example:7860"}, 403),
    (LOCAL, {}, 403),
    (LOCAL, {"host": "localhost:1", "origin": "http://evil.example"}, 403),
    (LOCAL, {"host": "localhost:1", "origin": "null"}, 403),
    (None, {"host": "gpu.example:7860"}, 200),
    (None, {"host": "gpu.example", "origin": "http://evil.example"}, 403),
  ],
)
def test_other_pages_and_names_are_refused(hosts, headers, status):
  found, told = _asked(guard.Guard(_behind, hosts), **headers)
  assert found == status
  if status == 200:
    assert b"default-src 'self'" in told[b"content-security-policy"]


@pytest.mark.parametrize(
  ("method", "headers", "status"),
  [
    ("GET", {}, 200),
    ("POST", {"content_length": "1064000"}, 200),
    ("POST", {"content_length": "1064001"}, 413),
    ("PUT", {"content_length": "9" * 99}, 413),
    ("POST", {}, 413),
    ("POST", {"content_length": "-1"}, 413),
    ("POST", {"content_length": "9", "transfer_encoding": "chunked"}, 413),
  ],
)
def test_what_is_uploaded_is_bounded(method, headers, status):
  app = guard.Guard(_behind, None, max_upload=64_000)
  assert _asked(app, method, **headers)[0] == status


def test_uploads_are_bounded_together(tmp_path):
  seen = []

  async def behind(scope, receive, send):
    """While it is at a request, others come."""
    await _behind(scope, receive, send)
    if len(seen) < 2:
      seen.append(None)
      seen.append(await asyncio.to_thread(_asked, app, "POST", sent, **two))

  two = {"content_length": "2000000"}
  app = guard.Guard(
    behind, None, max_upload=4_000_000, quota=5_000_000, folder=tmp_path
  )
  sent = []
  # Two are on their way; with a third they would be too many.
  assert _asked(app, "POST", **two)[0] == 200
  assert [each[0] for each in seen if each] == [413, 200]
  assert sent == [0, 0, 0]  # It is heard to its end, then told.
  assert _asked(app, "POST", content_length="5000000")[0] == 200
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "picture").write_bytes(bytes(3_000_001))
  assert _asked(app, "POST", [], **two)[0] == 413
  # Clicks go on.
  assert _asked(app, "POST", content_length="1000")[0] == 200
  assert _asked(app)[0] == 200
  (tmp_path / "a" / "picture").unlink()
  assert _asked(app, "POST", **two)[0] == 200


def test_the_port_is_the_usual_one_or_one_that_is_free():
  with demo._bound("127.0.0.1", None) as first:
    with demo._bound("127.0.0.1", None) as second:
      ports = {each.getsockname()[1] for each in (first, second)}
      assert len(ports) == 2
    taken = first.getsockname()[1]
    with pytest.raises(OSError, match=f"port {taken}: .* another --port"):
      demo._bound("127.0.0.1", taken)


def test_an_address_of_another_machine_is_told():
  with pytest.raises(ValueError, match="no address of this machine"):
    demo._bound("no such\thost", None)
  with pytest.raises(OSError, match=r"cannot serve at 192\.0\.2\.1"):
    demo._bound("192.0.2.1", 0)


@pytest.mark.parametrize(
  ("address", "names"),
  [
    ("127.0.0.1", {"localhost", "127.0.0.1"}),
    ("::1", {"localhost", "[::1]"}),
    ("0.0.0.0", None),
    ("192.0.2.1", None),
  ],
)
def test_only_a_loopback_has_names(address, names):
  found = demo._hosts(address, address)
  assert found is names is None or names <= found
  with_name = demo._hosts(address, address, ["pictures.example"])
  assert {"pictures.example", "localhost", "127.0.0.1"} <= with_name
  assert "evil.example" not in with_name


@pytest.mark.parametrize(
  ("given", "sent"),
  [
    ("Pictures.example", "pictures.example"),
    ("192.0.2.1", "192.0.2.1"),
    ("2001:DB8::1", "[2001:db8::1]"),
    ("[2001:db8::1]", "[2001:db8::1]"),
  ],
)
def test_names_are_as_browsers_send_them(given, sent):
  parser = argparse.ArgumentParser()
  demo.add_arguments(parser)
  assert parser.parse_args(["--name", given]).name == [sent]


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setattr(demo, "_NAMES", ("no_such_gradio",))
  assert main(["demo"]) == 1
  err = capsys.readouterr().err
  assert re.search(r"needs no_such_gradio, .*: pip install 'gradio[<>]", err)


@pytest.mark.parametrize(
  "wrong",
  [
    ["--port", "70000"],
    ["--port", "-1"],
    ["--max-upload", "0"],
    ["--name", "http://pictures.example"],
    ["--name", "pictures.example:7860"],
  ],
)
def test_wrong_arguments(wrong, capsys):
  with pytest.raises(SystemExit) as stop:
    main(["demo", *wrong])
  assert stop.value.code == 2
  assert wrong[1] in capsys.readouterr().err


def test_ipv6_where_it_is_there():
  if not socket.has_ipv6:
    pytest.skip("no IPv6 here")
  try:
    socket.create_server(("::1", 0), family=socket.AF_INET6).close()
  except OSError:
    pytest.skip("no IPv6 here")
  with demo._bound("::1", 0) as bound:
    assert bound.getsockname()[0] == "::1"
