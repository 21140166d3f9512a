"""What commands look like on a terminal, and where only a part of it is one."""

import os
import pathlib

import jax
import numpy as np
import pytest

from esrgan_jax import __main__, images
from esrgan_jax.weights import files
from tests.terminal import screens, terminal
from tests.test_upscaler import make_model

NAMES = [
  f"a long name, of a photo of the holidays, {n:02}.png" for n in range(4)
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  model = make_model(num_feat=4, num_grow_ch=2)
  path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
  config = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
  files.write_weights(path, jax.device_get(model.params), config)
  return path


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("TERM", "xterm-256color")
  for name in ("NO_COLOR", "FORCE_COLOR"):
    monkeypatch.delenv(name, raising=False)
  os.mkdir("in")
  for name in NAMES:
    images.write_image(
      f"in/{name}", images.Image(np.full((9, 40, 3), 99, np.uint8))
    )
  pathlib.Path("in/bad.png").write_text("no image, and the message is long")


def shown(monkeypatch, weights, *, columns, **options):
  with terminal(monkeypatch, columns=columns, **options) as (got, read_file):
    arguments = ["upscale", "in", "-o", "out", "--model", str(weights)]
    assert __main__.main(arguments) == 1
    files = [
      read_file(name)
      for name in ("stdout", "stderr")
      if name not in options.get("streams", ("stdout", "stderr"))
    ]
  return got, files


@pytest.mark.parametrize(
  ("setting", "columns"),
  [
    ("", 80),
    pytest.param("TERM", 80, marks=pytest.mark.slow),
    pytest.param("", 60, marks=pytest.mark.slow),
    pytest.param("", 120, marks=pytest.mark.slow),
    pytest.param("NO_COLOR", 80, marks=pytest.mark.slow),
    pytest.param("NO_COLOR", 120, marks=pytest.mark.slow),
  ],
)
def test_the_bar_and_the_results_have_lines_of_their_own(
  monkeypatch, weights, setting, columns
):
  if setting:
    monkeypatch.setenv(setting, "dumb")
  got, _ = shown(monkeypatch, weights, columns=columns)
  bars = results = 0
  for lines in screens(got, columns):
    for line in lines:
      bar, result = "━" in line or "tile" in line, ".png  " in line
      assert not (bar and result), line
      bars += bar
      results += result
      assert len(line) <= columns
  assert results
  assert bool(bars) == (setting != "TERM")
  # At the end there is nothing of the bar, and no word is broken.
  text = "\n".join(lines)
  assert "━" not in text
  words = text.split()
  for word in ["known", "format;", "megapixels", "failed", "PNG,"]:
    assert word in words
  for name in NAMES:
    assert all(word in words for word in name.split())
  assert len(lines) == text.count("\n") + 1
  if setting == "TERM":
    assert b"\x1b[" not in b"".join(got)
  if setting == "NO_COLOR":
    assert b"\x1b[3" not in b"".join(got)


@pytest.mark.parametrize(("stream", "other"), [("stdout", 1), ("stderr", 0)])
def test_where_one_stream_is_a_file_it_has_its_lines_and_nothing_else(
  monkeypatch, weights, stream, other
):
  got, (text,) = shown(monkeypatch, weights, columns=80, streams=(stream,))
  assert "\x1b" not in text
  assert "━" not in text
  if stream == "stdout":
    assert text.startswith("error: in/bad.png")
    assert text.count("\n") == 1
    assert b"\x1b[2K" not in b"".join(got)  # No bar without its errors.
  else:
    assert text.count("\n") == len(NAMES) + 1
    assert "━" in b"".join(got).decode()


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_the_list_of_models_breaks_no_word(monkeypatch, capsys, columns):
  __main__.main(["models"])
  expected = capsys.readouterr().out.split()
  with terminal(monkeypatch, columns=columns) as (got, _):
    assert __main__.main(["models"]) == 0
  *_, lines = screens(got, columns)
  folder = os.environ["ESRGAN_JAX_CACHE"]
  words = [word.strip(",") for word in " ".join(lines).split()]
  for word in {*expected} - {folder}:
    assert word.strip(",") in words


@pytest.mark.slow
def test_the_table_of_an_evaluation_fits(monkeypatch):
  name = "one of the photos of the holidays whose name is long, {}.png"
  os.mkdir("hr")
  for number in range(2):
    pixels = np.full((24, 24, 3), 99, np.uint8)
    pixels[::2] += np.uint8(number + 3)
    images.write_image(f"hr/{name.format(number)}", images.Image(pixels))
  with terminal(monkeypatch, columns=80) as (got, _):
    assert __main__.main(["evaluate", "-m", "bicubic", "--hr", "hr"]) == 0
  *_, lines = screens(got, 80)
  (head,) = (n for n, line in enumerate(lines) if "PSNR RGB" in line)
  assert [line[:3].strip() for line in lines[head : head + 4]] == [
    "",
    "one",
    "one",
    "mea",
  ]
  assert "0.png" in lines[head + 1]
  assert "━" not in "".join(lines)
