"""`python -m esrgan_jax upscale`, run as users run it, on real files."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import __main__, compilation, images, storage
from esrgan_jax.upscaling import memory, photo, upscaler
from esrgan_jax.weights import files
from tests.hostile_names import NAMES, harmless
from tests.test_upscaler import make_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A small x4 network that keeps the brightness of its image, roughly."""
  model = make_model(num_feat=4, num_grow_ch=2)
  path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
  config = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
  files.write_weights(path, jax.device_get(model.params), config)
  return path


@pytest.fixture
def run(weights, tmp_path, monkeypatch, capsys):
  """Runs the command in a folder of its own; returns status, out and err."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))

  def run(*arguments, model=weights):
    arguments = ["upscale", *map(str, arguments), "--model", str(model)]
    status = __main__.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err

  return run


def save(name, mode="RGB", size=(14, 11), **options):
  random = np.random.default_rng(0)
  channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
  array = random.integers(0, 256, (size[1], size[0], *channels), np.uint8)
  PilImage.fromarray(array).save(name, **options)
  return array


def size_of(name):
  with PilImage.open(name) as picture:
    return picture.size


def array_of(name):
  with PilImage.open(name) as picture:
    return np.asarray(picture)


def test_as_users_run_it(weights, tmp_path):
  """A real process: the result is the model's, and nothing else is left."""
  array = save(tmp_path / "a.png")
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "esrgan_jax",
      "upscale",
      "a.png",
      "-m",
      str(weights),
    ],
    cwd=tmp_path,
    env=os.environ
    | {
      "ESRGAN_JAX_CACHE": str(tmp_path / "cache"),
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  assert "a_x4.png  56 x 44" in done.stdout
  assert "1 image" in done.stdout
  result = array_of(tmp_path / "a_x4.png")
  # Compiled for other devices, it may round a tie otherwise.
  expected = upscaler.load(weights).upscale(array)
  np.testing.assert_allclose(result, expected, rtol=0, atol=1)
  left = {path.name for path in tmp_path.iterdir()}
  assert left - {"cache"} == {"a.png", "a_x4.png"}


def test_help_lists_the_commands_and_describes_each(capsys):
  for arguments, word in (
    (["--help"], "upscale"),
    (["upscale", "--help"], "photo_x4.jpg"),
    (["convert", "--help"], "BasicSR"),
    (["models", "--help"], "checksum"),
  ):
    with pytest.raises(SystemExit) as stop:
      __main__.main(arguments)
    assert stop.value.code == 0
    assert word in capsys.readouterr().out


def test_a_named_output_decides_the_format(run):
  save("a.png")
  status, _, _ = run("a.png", "-o", "b.jpg")
  assert status == 0
  with PilImage.open("b.jpg") as picture:
    assert (picture.format, picture.size) == ("JPEG", (56, 44))


def test_folders_globs_and_files_go_to_a_folder_under_their_names(run):
  os.mkdir("in")
  save("in/a.png")
  save("in/b.bmp", "L")
  save("c1.png")
  save("c2.webp", lossless=True)
  pathlib.Path("in/notes.txt").write_text("not an image")
  status, out, err = run("in", "c*", "-o", "out/")
  assert (status, err) == (0, "")
  assert "4 images" in out
  names = sorted(os.listdir("out"))
  assert names == ["a.png", "b.bmp", "c1.png", "c2.webp"]
  with PilImage.open("out/b.bmp") as picture:
    assert picture.mode == "L"


def test_formats_can_be_chosen_for_all(run):
  save("a.bmp")
  save("b.webp")
  status, _, _ = run("a.bmp", "b.webp", "--format", "png")
  assert status == 0
  assert {"a_x4.png", "b_x4.png"} <= set(os.listdir())


@pytest.mark.parametrize(
  ("mode", "suffix"),
  [("L", "png"), ("LA", "png"), ("RGB", "tiff"), ("RGBA", "webp")],
)
def test_grey_and_alpha_stay_what_they_are(run, mode, suffix):
  save(f"a.{suffix}", mode)
  status, _, err = run(f"a.{suffix}")
  assert (status, err) == (0, "")
  with PilImage.open(f"a_x4.{suffix}") as picture:
    assert (picture.mode, picture.size) == (mode, (56, 44))


def test_sixteen_bits_stay_sixteen(run, weights):
  random = np.random.default_rng(0)
  pixels = random.integers(0, 65536, (9, 12, 3), np.uint16)
  images.write_image("a.png", images.Image(pixels=pixels))
  status, _, _ = run("a.png")
  assert status == 0
  result = images.read_image("a_x4.png").pixels
  expected = upscaler.load(weights).upscale(pixels)
  np.testing.assert_allclose(result, expected, rtol=0, atol=1)
  assert len(np.unique(result)) > 1000


def test_what_is_under_full_transparency_is_not_seen(run):
  """Two pictures that look the same give results that look the same."""
  seen = np.zeros((16, 16, 4), np.uint8)
  seen[4:12, 4:12] = (200, 120, 40, 255)
  hidden = seen.copy()
  hidden[hidden[..., 3] == 0] = (255, 0, 255, 0)
  PilImage.fromarray(seen).save("a.png")
  PilImage.fromarray(hidden).save("b.png")
  status, _, _ = run("a.png", "b.png")
  assert status == 0
  a = array_of("a_x4.png")
  b = array_of("b_x4.png")
  np.testing.assert_array_equal(a, b)
  # The network was shown one flat colour: no edge of it is darker or tinted.
  inner = a[24:40, 24:40, :3].astype(int)
  assert np.ptp(inner.reshape(-1, 3), axis=0).max() <= 1


@pytest.mark.parametrize("alpha", [0, 90, 255])
def test_constant_alpha_is_kept_to_the_bit(run, alpha):
  array = save("a.png", "RGBA")
  array[..., 3] = alpha
  PilImage.fromarray(array).save("a.png")
  run("a.png")
  result = array_of("a_x4.png")
  assert (result[..., 3] == alpha).all()


def test_orientation_profile_and_exif(run):
  from PIL import ImageCms

  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  exif = PilImage.Exif()
  exif[0x0112] = 6  # Turn by 90 degrees.
  exif[0x010F] = "Maker"
  save("a.jpg", size=(16, 8), exif=exif, icc_profile=profile)
  status, _, _ = run("a.jpg")
  assert status == 0
  with PilImage.open("a_x4.jpg") as picture:
    assert picture.size == (32, 64)
    assert picture.info["icc_profile"] == profile
    assert picture.getexif()[0x010F] == "Maker"
    assert picture.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
  ("scale", "size"), [(2, (28, 22)), (1.5, (21, 16)), (6, (84, 66))]
)
def test_another_scale_resizes_at_the_end(run, scale, size):
  save("a.png")
  images.write_image(
    "b.tiff", images.Image(pixels=np.full((11, 14, 3), 999, np.uint16))
  )
  status, _, _ = run("a.png", "b.tiff", "--scale", scale)
  assert status == 0
  assert size_of(f"a_x{scale:g}.png") == size
  result = images.read_image(f"b_x{scale:g}.tiff").pixels
  assert result.dtype == np.uint16
  assert result.shape == (size[1], size[0], 3)


def test_bad_files_are_named_and_the_others_done(run):
  save("good.png")
  pathlib.Path("empty.png").touch()
  pathlib.Path("text.jpg").write_text("no image")
  data = pathlib.Path("good.png").read_bytes()
  pathlib.Path("cut.png").write_bytes(data[: len(data) // 2])
  names = ["empty.png", "text.jpg", "cut.png", "absent.png"]
  status, out, err = run(*names, "good.png", "-o", "out")
  assert status == 1
  assert os.listdir("out") == ["good.png"]
  lines = err.splitlines()
  assert len(lines) == len(names)
  for name in names:
    assert sum(name in line for line in lines) == 1
  assert "1 image" in out
  assert "Traceback" not in err


def test_what_no_format_holds_is_refused_before_the_work(run, monkeypatch):
  save("wide.png", size=(1025, 8))
  save("clear.png", "RGBA")
  monkeypatch.setattr(upscaler.Upscaler, "upscale", None)  # Would fail.
  status, _, err = run("wide.png", "-o", "wide.webp", "--scale", "16")
  assert status == 1
  assert "wide.webp: 16400 x 128 pixels do not fit WEBP" in err
  status, _, err = run("clear.png", "-o", "clear.jpg")
  assert status == 1
  assert "JPEG cannot hold transparency; choose .png" in err
  assert not pathlib.Path("wide.webp").exists()
  assert not pathlib.Path("clear.jpg").exists()


def test_an_image_too_large_for_the_memory_leaves_the_others(run, monkeypatch):
  save("large.png", size=(40, 40))
  save("small.png", size=(8, 8))
  needed, original = [], memory.fits

  def fits(device, compile_program):
    needed.append(memory.needed_memory(compile_program()))
    return original(device, compile_program)

  monkeypatch.setattr(memory, "fits", fits)
  assert run("small.png", "-o", "alone.png")[0] == 0
  free = 1.3 * max(needed)
  monkeypatch.setattr(memory, "free_memory", lambda device: free)
  status, out, err = run("large.png", "small.png", "-o", "out")
  assert status == 1
  assert os.listdir("out") == ["small.png"]
  assert err.startswith("error: large.png: ")
  assert "memory" in err
  assert "1 image, " in out


def test_a_bomb_is_refused(run, tmp_path):
  import struct
  import zlib

  def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

  header = struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0)
  data = zlib.compress(bytes(10_000_000))
  path = tmp_path / "bomb.png"
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", data)
    + chunk(b"IEND", b"")
  )
  status, _, err = run(path)
  assert status == 1
  assert "60000" in err
  assert os.listdir() == ["bomb.png"] or set(os.listdir()) == {
    "bomb.png",
    "cache",
  }


def test_nothing_is_overwritten_unasked(run):
  save("a.png")
  pathlib.Path("a_x4.png").write_text("precious")
  status, _, err = run("a.png")
  assert status == 1
  assert "--overwrite" in err
  assert pathlib.Path("a_x4.png").read_text() == "precious"
  status, out, err = run("a.png", "--skip-existing")
  assert (status, err) == (0, "")
  assert "skipped" in out
  assert pathlib.Path("a_x4.png").read_text() == "precious"
  status, _, _ = run("a.png", "--overwrite")
  assert status == 0
  assert size_of("a_x4.png") == (56, 44)


def test_an_input_that_cannot_be_looked_at_does_not_end_the_batch(run):
  save("a.png")
  status, out, err = run("x" * 300, "a.png", "a.png/b.png", "gone.png")
  assert status == 1
  assert "1 image" in out
  assert [line.split(":")[1] for line in err.splitlines()] == [
    " File name too long",
    " a.png/b.png",
    " gone.png",
  ]


def test_a_limit_of_pixels(run):
  save("a.png", size=(14, 11))
  save("b.png", size=(14, 10))
  status, out, err = run("a.png", "b.png", "--max-pixels", 140)
  assert status == 1
  assert "a.png: 14 x 11 pixels are more than max_pixels=140" in err
  assert "b_x4.png" in out


@pytest.mark.parametrize(
  ("output", "message", "status"),
  [
    ("link.png", "is a link to nowhere.png, where there is nothing", 1),
    ("pipe.png", "is not a file but a pipe", 1),
    ("link", "link is not a folder", 2),
    ("a.png/b.png", "cannot be written: Not a directory", 1),
    ("/dev/null", "/dev/null is a device", 2),
    ("x" * 252 + ".png", "File name too long", 1),
    ("weights", "would replace an input", 1),
  ],
)
def test_outputs_are_looked_at_before_the_work(
  run, weights, output, message, status
):
  save("a.png")
  os.symlink("nowhere.png", "link.png")
  os.symlink("nowhere", "link")
  os.mkfifo("pipe.png")
  model = weights
  if output == "weights":
    output = model = "model.png"
    pathlib.Path(output).write_bytes(weights.read_bytes())
  before = sorted(os.listdir())
  found, out, err = run("a.png", "-o", output, "--overwrite", model=model)
  assert found == status
  assert message in err
  assert err.count("\n") == 1
  assert out == ""
  assert sorted(set(os.listdir()) - {"cache"}) == before


def test_a_replaced_result_keeps_its_permissions(run):
  save("a.png")
  pathlib.Path("b.png").touch(0o600)
  assert run("a.png", "-o", "b.png", "--overwrite")[0] == 0
  assert os.stat("b.png").st_mode & 0o777 == 0o600


def test_a_full_disk_is_a_line_an_image(run, full_disk):
  save("a.png", size=(60, 60))
  save("b.png", size=(6, 6))
  with full_disk():
    status, out, err = run("a.png", "b.png", "-o", "out")
  assert status == 1
  assert err == "error: out/a.png cannot be written: File too large\n"
  assert "out/b.png  24 x 24" in out
  assert os.listdir("out") == ["b.png"]


def test_names_are_text(run, monkeypatch):
  """At a terminal: none ends the batch, or is more than a text."""
  monkeypatch.setenv("FORCE_COLOR", "1")
  monkeypatch.setenv("COLUMNS", "1000")
  os.mkdir("in")
  for name in NAMES:
    save("in/" + name)
  pathlib.Path("in/[z]\x1b.png").write_bytes(b"no image")
  status, out, err = run("in", "-o", "out")
  assert status == 1
  assert "error: in/[z]\\x1b.png" in err
  assert harmless(out)
  assert f"{len(NAMES)} images" in out
  assert sorted(os.listdir("out")) == sorted(NAMES)
  # The bar's own codes aside, there is nothing of the names'.
  assert not {"\x07", "\x9b", "\u202e"} & set(err)
  assert "\x1b]" not in err
  assert "tile" in err


def test_an_input_is_never_replaced(run):
  save("a.png")
  before = pathlib.Path("a.png").read_bytes()
  status, _, err = run("a.png", "-o", "a.png", "--overwrite")
  assert status == 1
  assert "would replace an input" in err
  status, _, _ = run("a.png", "-o", ".", "--overwrite")
  assert status == 1
  assert pathlib.Path("a.png").read_bytes() == before


def test_two_results_of_one_name_are_an_error(run):
  for folder in ("one", "two"):
    os.mkdir(folder)
    save(f"{folder}/a.png")
  status, _, err = run("one", "two", "-o", "out")
  assert status == 1
  assert "two/a.png" in err
  assert "one/a.png" in err
  assert os.listdir("out") == ["a.png"]


@pytest.mark.parametrize(
  ("arguments", "message", "status"),
  [
    (["a.png", "-o", "b.gif"], "cannot write .gif", 1),
    (["a.png", "b.png", "-o", "c.png"], "give a folder", 2),
    (["a.png", "-o", "none/b.png"], "no folder none", 1),
    (["*.bmp"], "nothing matches", 1),
    (["empty"], "no image in this folder", 1),
  ],
)
def test_arguments_that_cannot_be_meant(run, arguments, message, status):
  save("a.png")
  save("b.png")
  os.mkdir("empty")
  found, out, err = run(*arguments)
  assert found == status
  assert message in err
  assert out == ""


@pytest.mark.parametrize(
  "option",
  [
    ["--tile", "-1"],
    ["--tile", "big"],
    ["--quality", "0"],
    ["--quality", "high"],
    ["--scale", "0"],
    ["--scale", "double"],
    ["--width", "1e3"],
  ],
)
def test_values_out_of_range_are_usage_errors(run, option, capsys):
  save("a.png")
  with pytest.raises(SystemExit) as stop:
    run("a.png", *option)
  assert stop.value.code == 2
  err = capsys.readouterr().err
  assert option[1] in err
  assert "invalid" not in err


def test_a_dry_run_knows_what_cannot_be_consistent(run):
  save("a.png", size=(14, 11))
  status, out, err = run("a.png", "-s", 0.5, "--consistent", "-n")
  assert status == 1
  assert "->" not in out
  assert "a.png: a result of 7 x 6 pixels cannot be consistent" in err
  assert run("a.png", "-s", 1.5, "--consistent", "-n")[0] == 0


def test_formats_are_named_as_files_are(run):
  save("a.png")
  for name in ("jpg", "JPG", ".jpg"):
    _, out, _ = run("a.png", "-f", name, "-n")
    assert "a_x4.jpg" in out


def test_a_dry_run_claims_what_headers_tell(run):
  save("grey.png", "L")
  save("grey_alpha.png", "LA")
  save("colour.png")
  save("alpha.png", "RGBA")
  save("webp.webp", "L", lossless=True)
  save("jpeg.jpg", "L")
  status, out, err = run(".", "-f", "pgm", "-o", "out", "-n", "-q")
  assert status == 1
  refused = {line.split(":")[1].strip() for line in err.splitlines()}
  assert refused == {"out/colour.pgm", "out/alpha.pgm"}
  _, out, err = run(".", "-f", "pgm", "-n")
  assert "webp.webp -> webp_x4.pgm  14 x 11 -> 56 x 44, if it is grey" in out
  _, out, err = run("grey.png", "alpha.png", "colour.png", "-f", "jpg", "-n")
  doubted = [line for line in out.splitlines() if "if nothing of it" in line]
  assert [line.split()[0] for line in doubted] == ["alpha.png"]
  assert err == ""
  _, out, _ = run("alpha.png", "-f", "jpg", "-n", "--background", "white")
  assert ", if" not in out


def test_a_result_that_has_no_room_is_refused_before_the_work(run, monkeypatch):
  free = 10**9

  def compute(*_, **__):
    raise AssertionError("computed")

  monkeypatch.setattr(upscaler.Upscaler, "upscale", compute)
  monkeypatch.setattr(storage, "free_bytes", lambda _: free)
  monkeypatch.setattr(memory, "free_host_memory", lambda: None)
  save("a.png", size=(30, 20))
  status, out, err = run("a.png", "--width", 30_000)
  assert status == 1
  assert "note: 1000 MB are free there, and results have 1800 MB" in out
  assert "a_w30000.png needs 1.8 GB of the disk" in err
  assert run("a.png", "--width", 30_000, "-n")[2] == ""
  monkeypatch.setattr(memory, "free_host_memory", lambda: free)
  assert "pixels needs 6.0 GB of memory" in run("a.png", "--width", 30_000)[2]


def test_an_unknown_model_names_the_nearest(run):
  save("a.png")
  status, _, err = run("a.png", model="realesrgan-x4-plus")
  assert status == 2
  assert "did you mean realesrgan-x4plus" in err


def test_quiet_prints_nothing(run):
  save("a.png")
  assert run("a.png", "--quiet") == (0, "", "")


def test_tiles_and_exactness_reach_the_model(run):
  save("a.png", size=(90, 80))
  run("a.png", "-o", "whole.png", "--tile", 0)
  run("a.png", "-o", "tiled.png", "--tile", 16, "--exact")
  whole = array_of("whole.png").astype(int)
  tiled = array_of("tiled.png")
  assert np.abs(whole - tiled).max() <= 1


def test_a_large_result_lies_in_a_file_until_it_is_written(run, monkeypatch):
  save("a.png")
  run("a.png", "-o", "small.png")
  monkeypatch.setattr(photo, "MEMMAP_BYTES", 1000)
  status, _, _ = run("a.png", "-o", "large.png")
  assert status == 0
  np.testing.assert_array_equal(array_of("small.png"), array_of("large.png"))
  left = set(os.listdir()) - {"cache"}
  assert left == {"a.png", "small.png", "large.png"}


@pytest.mark.parametrize("gains", [False, True])
def test_a_precision_that_gains_nothing_says_so(run, monkeypatch, gains):
  monkeypatch.setattr(compilation, "multiplies_bfloat16", lambda: gains)
  save("a.png")
  status, out, err = run("a.png", "--precision", "bfloat16")
  assert status == 0
  assert ("not known to multiply in bfloat16" not in out + err) == gains
  assert run("a.png", "--overwrite", "--precision", "float32")[2] == ""
