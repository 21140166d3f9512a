"""Files through the command: frames, pages, pipes, sizes, what is recorded."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import images, resize
from esrgan_jax.upscaling import upscaler
from tests.test_commands_upscale import run, save, size_of, weights
from tests.training_runs import ROOT

__all__ = ["run", "weights"]  # Fixtures.


def animate(name, count=3, size=(14, 11), **options):
  """Saves frames that Pillow finds to differ."""
  frames = []
  for number in range(count):
    pixels = np.full((*size[::-1], 3), 20 * number, np.uint8)
    pixels[number, :5] = (255, 99, 9)
    frames.append(PilImage.fromarray(pixels))
  durations = [40 * (number + 1) for number in range(count)]
  if not name.endswith(".tif"):
    options |= {"duration": durations, "loop": 2}
  frames[0].save(name, save_all=True, append_images=frames[1:], **options)
  return [np.asarray(frame) for frame in frames]


@pytest.mark.parametrize(
  "suffix", ["png", pytest.param("webp", marks=pytest.mark.slow)]
)
def test_an_animation_stays_one_with_its_timing(run, weights, suffix):
  frames = animate(f"a.{suffix}", lossless=True)
  status, out, err = run(f"a.{suffix}", "--lossless")
  assert (status, err) == (0, "")
  assert f"a_x4.{suffix}  3 of 56 x 44, " in out
  result = images.read_frames(f"a_x4.{suffix}")
  assert list(result.durations) == [40, 80, 120]
  assert result.loop == images.read_frames(f"a.{suffix}").loop
  model = upscaler.load(weights)
  for image, frame in zip(result, frames, strict=True):
    expected = model.upscale(frame)
    np.testing.assert_allclose(image.pixels, expected, rtol=0, atol=1)


@pytest.mark.slow
def test_gif_stays_gif_and_one_of_one_frame_becomes_png(run):
  animate("a.gif")
  animate("b.gif", count=1)
  status, out, err = run("a.gif", "b.gif", "-o", "out", "--scale", 2)
  assert (status, err) == (0, "")
  assert sorted(os.listdir("out")) == ["a.gif", "b.png"]
  assert len(images.read_frames("out/a.gif")) == 3
  assert "2 images" in out


@pytest.mark.slow
def test_a_format_of_one_picture_gets_a_file_for_each_frame(run):
  animate("a.gif")
  status, out, err = run("a.gif", "-f", "jpg")
  assert (status, err) == (0, "")
  names = ["a_0001.jpg", "a_0002.jpg", "a_0003.jpg"]
  assert sorted(os.listdir("a_x4")) == names
  assert "a_x4  3 of 56 x 44" in out
  assert size_of("a_x4/a_0002.jpg") == (56, 44)
  # Those that are there are neither made again nor upscaled.
  assert run("a.gif", "-f", "jpg", "--skip-existing")[:2] == (
    0,
    "a_x4  exists, skipped\n",
  )
  status, out, _ = run(".", "-r", "-f", "jpg", "--skip-existing")
  assert status == 0
  assert "left out a_x4/a_0001.jpg and 2 others" in out
  status, _, err = run("a.gif", "-f", "jpg")
  assert status == 1
  assert "a_x4/a_0001.jpg exists already" in err
  os.unlink("a_x4/a_0003.jpg")
  status, _, err = run("a.gif", "-f", "jpg", "--skip-existing")
  assert status == 1
  assert "has some of its 3 files" in err
  assert run("a.gif", "-f", "jpg", "--overwrite")[0] == 0
  assert sorted(os.listdir("a_x4")) == names


@pytest.mark.slow
def test_pages_stay_pages_and_are_no_animation(run):
  frames = animate("a.tif")
  assert run("a.tif", "-o", "b.tif")[0] == 0
  pages = images.read_frames("b.tif")
  assert (len(pages), pages.durations) == (len(frames), None)
  status, _, err = run("a.tif", "-o", "b.gif")
  assert status == 1
  assert ".gif files hold no 3 pages; give a folder, or choose one of" in err
  assert run("a.tif", "-o", "b.png")[0] == 1
  assert run("a.tif", "-o", "b/", "-f", "png")[0] == 0
  assert len(os.listdir("b/a")) == 3


@pytest.mark.parametrize(
  "broken",
  [
    1,
    pytest.param(0, marks=pytest.mark.slow),
    pytest.param(4, marks=pytest.mark.slow),
  ],
)
def test_a_broken_frame_costs_the_file_and_no_other(run, broken):
  """In one file of all frames, nothing; and whatever comes after it."""
  animate("a.png", count=6)
  data = bytearray(pathlib.Path("a.png").read_bytes())
  at, kind = 0, b"IDAT" if broken == 0 else b"fdAT"
  for _ in range(max(broken, 1)):
    at = data.index(kind, at + 1)
  data[at + 8 : at + 16] = b"\xff" * 8
  pathlib.Path("a.png").write_bytes(data)
  save("b.png")
  animate("c.png", count=9)
  status, out, err = run("a.png", "b.png", "c.png", "-o", "out")
  assert status == 1
  assert err.startswith("error: a.png: ")
  assert err.count("\n") == 1
  assert sorted(os.listdir("out")) == ["b.png", "c.png"]
  assert "2 images" in out
  assert len(images.read_frames("out/c.png")) == 9


class _Pipe(io.TextIOWrapper):
  def __init__(self, data=b"", *, is_terminal=False):
    super().__init__(io.BytesIO(data), write_through=True)
    self._is_terminal = is_terminal

  def isatty(self):
    return self._is_terminal


@pytest.fixture
def piped(run, monkeypatch):
  """As `run`, with standard input; returns standard output as bytes."""

  def piped(*arguments, given=b"", to_terminal=False, from_terminal=False):
    output = _Pipe(is_terminal=to_terminal)
    monkeypatch.setattr(sys, "stdin", _Pipe(given, is_terminal=from_terminal))
    monkeypatch.setattr(sys, "stdout", output)
    status, _, err = run(*arguments)
    return status, output.buffer.getvalue(), err

  return piped


@pytest.mark.parametrize(
  "suffix",
  [
    "png",
    pytest.param("jpg", marks=pytest.mark.slow),
    pytest.param("webp", marks=pytest.mark.slow),
  ],
)
def test_standard_input_and_output(piped, suffix):
  save(f"a.{suffix}")
  data = pathlib.Path(f"a.{suffix}").read_bytes()
  status, out, err = piped("-", given=data)
  assert status == 0
  picture = PilImage.open(io.BytesIO(out))
  assert picture.size == (56, 44)
  assert picture.format == {"jpg": "JPEG"}.get(suffix, suffix.upper())
  # What is said is on stderr, without our own folders.
  assert err.splitlines()[0].startswith("-  56 x 44, ")
  assert "/" not in err
  assert piped(f"a.{suffix}", "-o", "-", "-q")[1] == out
  assert piped("/dev/stdin", "-o", "/dev/stdout", "-q", given=data)[1] == out
  assert set(os.listdir()) - {"cache"} == {f"a.{suffix}"}


@pytest.mark.slow
def test_animations_go_through_pipes(piped):
  animate("a.gif")
  data = pathlib.Path("a.gif").read_bytes()
  status, out, _ = piped("-", given=data)
  assert (status, out[:4]) == (0, b"GIF8")
  status, out, err = piped("-", "-f", "jpg", given=data)
  assert (status, out) == (2, b"")
  assert "3 files, one a frame, cannot go to standard output" in err


@pytest.mark.slow
def test_pipes_and_files_may_be_mixed(piped):
  save("a.png")
  data = pathlib.Path("a.png").read_bytes()
  status, out, err = piped("-", "a.png", "-o", "out/", given=data)
  assert (status, err) == (0, "")
  assert sorted(os.listdir("out")) == ["a.png", "stdin.png"]
  assert b"out/stdin.png  56 x 44" in out
  assert piped("-", "-o", "b.jpg", given=data)[0] == 0
  assert size_of("b.jpg") == (56, 44)


@pytest.mark.parametrize(
  ("arguments", "options", "message", "status"),
  [
    (
      ["-"],
      {"from_terminal": True},
      "standard input is closed, or a terminal",
      1,
    ),
    (
      ["a.png", "-o", "-"],
      {"to_terminal": True},
      "output is closed, or a terminal",
      2,
    ),
    (["-"], {}, "stdin: the file is empty (0 bytes)", 1),
    (["-"], {"given": b"no image"}, "stdin: not an image of a known format", 1),
    (
      ["-", "a.png"],
      {"given": b"x"},
      "- has no name for its result; give -o",
      2,
    ),
    (["a.png", "b.png", "-o", "-"], {}, "2 inputs cannot go to standard", 2),
  ],
)
def test_what_no_pipe_is_for(piped, arguments, options, message, status):
  save("a.png")
  save("b.png", size=(9, 9))
  found, out, err = piped(*arguments, **options)
  assert found == status
  assert message in err
  assert out == b""
  assert "Traceback" not in err


@pytest.mark.slow
def test_a_named_pipe_is_read_to_its_end(run):
  save("a.png")
  os.mkfifo("pipe")
  data = pathlib.Path("a.png").read_bytes()
  sender = threading.Thread(
    target=pathlib.Path("pipe").write_bytes, args=[data]
  )
  sender.start()
  assert run("pipe", "-o", "out/")[0] == 0
  sender.join()
  assert os.listdir("out") == ["pipe.png"]


def test_a_dry_run_tells_and_does_nothing(run):
  os.mkdir("in")
  save("in/a.png")
  save("in/b.jpg", size=(5, 900))
  animate("in/c.gif")
  pathlib.Path("in/d.png").write_bytes(b"no image")
  before = sorted(pathlib.Path().rglob("*"))
  status, out, err = run("in", "-o", "out", "-n", "-f", "webp", "-s", 20)
  assert status == 1
  assert err == (
    "error: out/b.webp: 100 x 18000 pixels do not fit WEBP, which ends at 16383"
    " a side; choose .png\n"
    "error: in/d.png: not an image of a known format; PNG, JPEG, WebP, TIFF,"
    " BMP, GIF and some more are read (docs/formats.md)\n"
  )
  assert "in/a.png -> out/a.webp  14 x 11 -> 280 x 220\n" in out
  assert "in/c.gif -> out/c.webp  3 of 14 x 11 -> 280 x 220\n" in out
  assert "in/d.png" not in out
  assert "nothing was done" in out
  assert sorted(pathlib.Path().rglob("*")) == before


def test_pages_of_several_sizes_are_said_to_be(run):
  pages = [PilImage.new("RGB", size) for size in ((14, 11), (6, 5), (9, 7))]
  pages[0].save("a.tif", save_all=True, append_images=pages[1:])
  pixels = 16 * sum(page.width * page.height for page in pages) / 1e6
  status, out, err = run("a.tif", "-n")
  assert (status, err) == (0, "")
  assert out.splitlines() == [
    "a.tif -> a_x4.tif  3 of 14 x 11 and other sizes -> 56 x 44 and other"
    " sizes",
    f"1 image, {pixels:.1f} megapixels; nothing was done",
  ]
  status, out, err = run("a.tif")
  assert (status, err) == (0, "")
  assert "a_x4.tif  3 of 56 x 44 and other sizes, " in out
  sizes = [
    image.pixels.shape[1::-1] for image in images.read_frames("a_x4.tif")
  ]
  assert sizes == [(4 * page.width, 4 * page.height) for page in pages]


_FULL = "No space left on device: standard output"
needs_full = pytest.mark.skipif(
  not os.path.exists("/dev/full"), reason="no /dev/full"
)


@needs_full
def test_standard_output_that_fails_has_a_name(run, monkeypatch):
  save("a.png")
  for arguments, expected in (
    (["-o", "-", "-q"], f"error: a.png: {_FULL}\n"),
    (["-o", "b.png"], f"error: {_FULL}\n"),
  ):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
      patch.setattr(sys, "stdout", full)
      status, _, err = run("a.png", *arguments)
    assert (status, err) == (1, expected)


@pytest.mark.slow
@needs_full
def test_a_result_that_is_not_sent_is_not_said_to_be_there(run, weights):
  save("a.png")
  command = [sys.executable, "-m", "esrgan_jax", "upscale", "a.png", "-o", "-"]
  with open("/dev/full", "wb") as full:
    done = subprocess.run(
      [*command, "--model", weights],
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
  assert done.returncode == 1
  first, last = done.stderr.splitlines()
  assert first == f"error: a.png: {_FULL}"
  assert last.startswith("0 images, 0.0 megapixels")
  assert last.endswith("; 1 failed")


def test_a_dry_run_needs_no_weights(run):
  save("a.png")
  status, out, _ = run("a.png", "-n", model="realesrgan-x4plus")
  assert (status, "a.png -> a_x4.png" in out) == (0, True)
  status, out, _ = run("a.png", "-n", model="esrgan-psnr-x4")
  assert (status, "a.png -> a_x4.png" in out) == (0, True)
  status, _, err = run("a.png", "-n", model="nothing")
  assert (status, "no model 'nothing'" in err) == (2, True)
  more = ["-n", "--psnr-model", "nothing"]
  status, _, err = run("a.png", *more, model="realesrgan-x4plus")
  assert (status, "no model 'nothing'" in err) == (2, True)
  more = ["-n", "--psnr-model", "esrgan-psnr-x4"]
  assert run("a.png", *more, model="realesrgan-x4plus")[0] == 0


def test_results_are_called_by_the_scale_that_was_asked_for(run):
  save("a.png")
  more = ["--model-scale", 2, "--name", "{name}_{scale}_{width}"]
  assert "-> a_2_28.png" in run("a.png", "-n", *more, model="fast")[1]
  assert run("a.png", *more, model="fast")[0] == 0
  assert size_of("a_2_28.png") == (28, 22)


@pytest.mark.slow
def test_what_is_large_enough_is_left_alone_and_told(run):
  save("small.png", size=(20, 10))
  save("large.png", size=(20, 90))
  rule = ["--long-side", 50]
  status, out, _ = run("small.png", "large.png", "--only-smaller", *rule)
  assert status == 0
  assert "large.png  is large enough, left alone\n" in out
  assert size_of("small_long50.png") == (50, 25)
  assert not pathlib.Path("large_long50.png").exists()
  assert run("large.png", *rule)[0] == 0
  assert size_of("large_long50.png") == (11, 50)


@pytest.mark.parametrize(
  "rules", [["-s", 2, "--width", 9], ["--width", 9, "--long-side", 9]]
)
def test_two_rules_for_one_size_are_an_error(run, rules):
  save("a.png")
  status, _, err = run("a.png", *rules)
  assert status == 2
  assert "give one of --scale, --width, --height, --long-side" in err


@pytest.mark.slow
def test_what_is_transparent_lies_on_a_colour_where_it_must(run):
  pixels = np.full((12, 12, 4), (200, 100, 50, 0), np.uint8)
  PilImage.fromarray(pixels).save("a.png")
  assert run("a.png", "-f", "jpg")[0] == 1
  colour = ["--background", "#0060ff"]
  assert run("a.png", "-f", "jpg", *colour, "--quality", 100)[0] == 0
  PilImage.new("RGB", (12, 12), "#0060ff").save("flat.png")
  assert run("flat.png", "-f", "jpg", "--quality", 100)[0] == 0
  seen, expected = (images.read_image(f"{n}_x4.jpg") for n in ("a", "flat"))
  np.testing.assert_array_equal(seen.pixels, expected.pixels)
  assert run("a.png", *colour)[0] == 0
  assert images.read_image("a_x4.png").alpha is not None
  with pytest.raises(SystemExit):
    run("a.png", "--background", "no colour")


@pytest.mark.slow
def test_results_tell_how_they_were_made_unless_that_is_not_wanted(run):
  save("a.png")
  run("a.png", "-s", 2, "--tile", 64)
  record = images.read_image("a_x2.png").metadata.record
  data = pathlib.Path("a_x2.png").read_bytes()
  expected = "tiny.safetensors x4, scale=2.0, tile=64"
  assert expected in (record or "") or expected.encode() in data
  run("a.png", "-s", 2, "--overwrite", "--no-record")
  assert b"esrgan_jax" not in pathlib.Path("a_x2.png").read_bytes()


@pytest.mark.slow
def test_consistent_results_are_their_images_again(run):
  save("a.png", size=(12, 9))
  assert run("a.png", "--consistent")[0] == 0
  image, result = (images.read_image(n).pixels for n in ("a.png", "a_x4.png"))
  again = resize.imresize_uint8(result, scale=1 / 4)
  off = np.abs(again.astype(int) - image)
  run("a.png", "-o", "b.png")
  plain = resize.imresize_uint8(images.read_image("b.png").pixels, scale=1 / 4)
  assert off.mean() < np.abs(plain.astype(int) - image).mean() / 4
  status, _, err = run("a.png", "-o", "c.png", "-s", 0.5, "--consistent")
  assert (status, "cannot be consistent" in err) == (1, True)


def test_no_loss_means_another_format_than_jpeg(run):
  save("a.jpg")
  save("b.webp", lossless=True)
  assert run("a.jpg", "b.webp", "--lossless")[0] == 0
  a, b = images.read_image("a_x4.png"), images.read_image("b_x4.webp")
  assert a.pixels.shape == b.pixels.shape
  assert b"VP8L" in pathlib.Path("b_x4.webp").read_bytes()[:4096]
  status, _, err = run("a.jpg", "--lossless", "-f", "jpg")
  assert (status, "lossless" in err) == (1, True)


@pytest.mark.slow
def test_what_has_no_seam_gets_none(run):
  save("a.png", size=(24, 24))
  assert run("a.png", "-o", "b.png", "--seamless", "--exact")[0] == 0
  pixels = np.roll(images.read_image("a.png").pixels, (7, 5), (0, 1))
  images.write_image("rolled.png", images.Image(pixels))
  assert run("rolled.png", "-o", "c.png", "--seamless", "--exact")[0] == 0
  b, c = (images.read_image(n).pixels.astype(int) for n in ("b.png", "c.png"))
  assert np.abs(np.roll(b, (28, 20), (0, 1)) - c).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_while_a_result_is_written_leaves_nothing(
  weights, tmp_path, name
):
  random = np.random.default_rng(0)
  pixels = random.integers(0, 256, (700, 700, 3), np.uint8)
  PilImage.fromarray(pixels).save(tmp_path / "a.png")
  words = ["upscale", tmp_path, "-o", tmp_path / "out", "-m", weights]
  words += ["-f", "webp", "--lossless"]
  path = os.pathsep.join(map(str, [ROOT, os.environ.get("PYTHONPATH", "")]))
  with subprocess.Popen(
    [sys.executable, "-m", "esrgan_jax", *words],
    env=os.environ | {"PYTHONPATH": path},
    stderr=subprocess.PIPE,
  ) as process:
    while not (there := list(tmp_path.glob("out/*"))):
      assert process.poll() is None
      time.sleep(0.01)
    assert there[0].name.startswith(".")
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=20)
  assert process.returncode == 128 + getattr(signal, name)
  assert os.listdir(tmp_path / "out") == []
  assert b"Traceback" not in err


@pytest.mark.slow
def test_two_names_of_one_result_are_not_written_twice(run):
  """As of `A.png` and `a.png`, where a system takes them for one name."""
  save("a.png")
  save("b.png", size=(9, 9))
  os.mkdir("out")
  save("out/a.png")
  os.symlink("a.png", "out/b.png")
  status, _, err = run("a.png", "b.png", "-o", "out", "--overwrite")
  assert status == 1
  assert "out/b.png is the result of another image" in err
  assert size_of("out/a.png") == (56, 44)
