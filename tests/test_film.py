"""The training film: its frames, what belongs to it, and the last one."""

import copy
import io
import itertools
import math
import pathlib
import re
import shutil
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import rich.console
from etils import epath

from esrgan_jax import metrics
from esrgan_jax.data.sources import Pair
from esrgan_jax.report import film
from esrgan_jax.report.page import write_report
from esrgan_jax.resize import imresize_uint8
from esrgan_jax.training import filming, loop
from esrgan_jax.training import run as run_lib
from esrgan_jax.training.config import ConfigError
from esrgan_jax.upscaling.upscaler import load
from tests.training_runs import tiny_config, trained


@pytest.mark.parametrize(
  ("total", "first", "growth"),
  [(1, 10, 1.25), (10, 10, 1.25), (1_000_000, 1, 1.05), (400_000, 10, 1.25)],
)
def test_steps_grow_and_end_with_the_last(total, first, growth):
  found = film.steps(total, first=first, growth=growth)
  assert found[-1] == total
  assert all(a < b for a, b in itertools.pairwise(found))
  assert all(
    b <= max(a + 1, a * growth + 1) for a, b in itertools.pairwise(found)
  )
  assert len(found) <= math.log(total) / math.log(growth) + 2
  # More of the same training has the same frames, and more.
  longer = film.steps(2 * total, first=first, growth=growth)
  assert longer[: len(found) - 1] == found[:-1]


def test_every_step_until_it_grows():
  assert film.steps(9, first=1, growth=1.25) == [1, 2, 3, 4, 5, 7, 9]


def noise(height, width, seed=0):
  generator = np.random.default_rng(seed)
  return generator.integers(0, 256, (height, width, 3), np.uint8)


def make_frame(path, picture, film_="ab", caption=("PSNR, step 1", "20 dB")):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(film.frame(picture, caption, film_))
  return film.Frame(epath.Path(path))


def test_a_frame_holds_the_picture_and_a_caption(tmp_path):
  for picture in (noise(24, 40), noise(24, 300)):
    found = make_frame(tmp_path / "0000001.png", picture)
    with PIL.Image.open(found.path) as opened:
      seen = np.asarray(opened)
      assert opened.mode == "RGB"
    height, width, _ = picture.shape
    left = (seen.shape[1] - width) // 2
    inside = seen[-height:, left : left + width]
    np.testing.assert_array_equal(inside, picture)
    above = seen[:-height]
    # Letters, whole: none at an edge.
    assert (above < 128).any()
    assert above[[0, -1]].min() == above[:, [0, -1]].min() == 255
    other = film.frame(picture, ("PSNR, step 2", "20 dB"), "ab")
    assert other != found.path.read_bytes()
  # What a stranger's plugin calls a phase ends nothing.
  odd = ("\N{KATAKANA LETTER A}\n\x00" * 40, "\N{GRINNING FACE}")
  make_frame(tmp_path / "0000001.png", noise(20, 20), caption=odd)


def test_what_belongs_to_a_film(tmp_path):
  path = tmp_path / "0000010.png"
  found = make_frame(path, noise(24, 40))
  assert found.step == 10
  assert found.belongs("ab", (40, 24))
  assert not found.belongs("ac", (40, 24))
  assert not found.belongs("ab", (24, 40))
  whole = path.read_bytes()
  # Of 900 megapixels, by what it says.
  head = b"IHDR" + struct.pack(">II", 30_000, 30_000) + whole[24:29]
  bomb = whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:]
  gif = io.BytesIO()
  PIL.Image.new("L", (220, 64)).save(gif, "gif")
  for content in (b"", whole[:400], bomb, gif.getvalue()):
    path.write_bytes(content)
    assert not found.belongs("ab", (40, 24))
  path.unlink()
  assert not found.belongs("ab", (40, 24))
  for name in ("final.png", "0000001.webp", ".0000001.png", "٣٣٣٣٣٣٣.png"):
    (tmp_path / name).write_bytes(whole)
  assert film.frames(epath.Path(tmp_path)) == []


def make_film(folder, pictures):
  found = [
    make_frame(folder / f"{n:07d}.png", picture)
    for n, picture in enumerate(pictures)
  ]
  return found, film.encode(found, seconds=0.2, quality=90)


def test_a_film_plays_in_other_programs(tmp_path):
  smooth = np.linspace(0, 255, 240).astype(np.uint8)
  pictures = [
    np.broadcast_to(smooth[None, :, None] // n, (40, 240, 3)) for n in (1, 2, 3)
  ]
  found, data = make_film(tmp_path, pictures)
  assert film.is_film(data)
  with PIL.Image.open(io.BytesIO(data)) as opened:
    assert (opened.format, opened.n_frames) == ("WEBP", 3)
    assert opened.info["loop"] == 0
    for number, (each, duration) in enumerate(
      zip(found, (200, 200, 1600), strict=True)
    ):
      opened.seek(number)
      seen = np.asarray(opened.convert("RGB")).astype(float)
      assert np.abs(seen - each.pixels()).mean() < 3
      assert opened.info["duration"] == duration
  # One frame is a film of its own.
  _, data = make_film(tmp_path / "one", pictures[:1])
  assert film.is_film(data)
  still = io.BytesIO()
  PIL.Image.fromarray(noise(20, 20)).save(still, "webp")
  assert not film.is_film(still.getvalue())


def test_the_film_plays_in_the_report(tmp_path, monkeypatch):
  _, data = make_film(tmp_path / "film/psnr", [noise(20, 20)])
  (tmp_path / "film.webp").write_bytes(data)
  page = write_report(tmp_path).read_text()
  assert '<img src="data:image/webp;base64,' in page
  assert len(page) > len(data)
  monkeypatch.setattr("esrgan_jax.report.page._LARGEST_FILM", len(data) - 1)
  page = write_report(tmp_path).read_text()
  assert "data:image/webp" not in page
  assert "see film.webp, beside this page" in page
  # What has been trained since has no film.
  (tmp_path / "config.json").write_text('{"film": {"enabled": false}}')
  assert "film.webp" not in write_report(tmp_path).read_text()
  (tmp_path / "config.json").unlink()
  (tmp_path / "film.webp").write_bytes(b"no film")
  assert "Training film" not in write_report(tmp_path).read_text()


def test_another_picture_is_another_film():
  pair = Pair(noise(5, 6), noise(20, 24))
  names = {
    film.identity(pair, 4),
    film.identity(pair, 0),
    film.identity(Pair(pair.lr, noise(20, 24, seed=1)), 4),
    film.identity(Pair(noise(5, 6, seed=1), pair.hr), 4),
    film.identity(Pair(noise(6, 5), pair.hr), 4),
  }
  assert len(names) == 5


def _run_of(config, workdir, **settings):
  config = {**config, "film": {**config["film"], **settings}}
  console = rich.console.Console(file=io.StringIO(), width=200)
  return run_lib.make_run(config, workdir, console=console)


@pytest.fixture(name="finished")
def _finished(tmp_path):
  folder, config, _ = trained()
  shutil.copytree(folder / "run", tmp_path / "run")
  return tmp_path / "run", copy.deepcopy(config)


def _steps(workdir):
  return {
    phase: [
      each.step for each in film.frames(epath.Path(workdir, "film", phase))
    ]
    for phase in ("psnr", "gan")
  }


_ALL = {"psnr": [0, 1, 2, 4, 8, 12], "gan": [1, 2, 4, 8]}


def test_the_last_frame_is_the_final_model(finished):
  workdir, config = finished
  assert _steps(workdir) == _ALL
  with PIL.Image.open(
    pathlib.Path(config["data"]["sources"], "0.png")
  ) as photo:
    hr = np.asarray(photo.convert("RGB"))
  lr = imresize_uint8(hr, scale=1 / 4)[6:12, :12]
  hr = hr[24:48, :48]
  model = load(workdir / "models/gan.safetensors", dtype="float32")
  sr = model.upscale(lr)
  path = workdir / "film/gan/0000008.png"
  with PIL.Image.open(path) as opened:
    seen = np.asarray(opened)
  left = (seen.shape[1] - 48) // 2
  found = seen[-24:, left : left + 48]
  assert np.abs(found.astype(int) - sr).max() <= 1

  def psnr(image):
    images = (np.float32(each) / 255 for each in (image, hr))
    return float(metrics.psnr(*images, crop_border=4, y_channel=True))

  bicubic = imresize_uint8(lr, scale=4)
  caption = (
    "GAN phase, step 8",
    f"PSNR Y {psnr(found):.2f} dB (bicubic {psnr(bicubic):.2f})",
  )
  again = film.frame(found, caption, "")
  with PIL.Image.open(io.BytesIO(again)) as opened:
    np.testing.assert_array_equal(seen, np.asarray(opened))
  # And the film's last frame is this one.
  with PIL.Image.open(workdir / "film.webp") as opened:
    assert opened.n_frames == sum(map(len, _ALL.values()))
    opened.seek(opened.n_frames - 1)
    last = np.asarray(opened.convert("RGB")).astype(float)
  assert np.abs(last - seen).mean() < 4
  assert "data:image/webp;base64" in (workdir / "report.html").read_text()


def test_what_a_phase_goes_on_with(finished):
  workdir, config = finished
  found = filming.open_film(_run_of(config, workdir))
  for step, left in ((12, _ALL["psnr"]), (7, [0, 1, 2, 4]), (0, [0])):
    found.begin("psnr", step)
    assert _steps(workdir) == {**_ALL, "psnr": left}


@pytest.mark.parametrize(
  ("settings", "steps"),
  [
    ({}, [0, 1, 2, 4, 8, 12]),
    ({"growth": 4.0}, [0, 1, 4, 12]),
    ({"first_step": 3}, [0, 12]),
    ({"crop": (0, 16, 40, 32)}, []),
    ({"picture": "1.png"}, []),
    ({"seconds": 1.0, "quality": 50}, [0, 1, 2, 4, 8, 12]),
  ],
)
def test_what_is_in_the_film(finished, settings, steps):
  workdir, config = finished
  found = filming.open_film(_run_of(config, workdir, **settings))
  found.begin("psnr", 12)
  assert [each.step for each in found.frames("psnr")] == steps
  # What is left out is there, should one change one's mind.
  assert _steps(workdir) == _ALL


def test_of_a_phase_that_was_trained_longer(finished):
  workdir, config = finished
  folder = workdir / "film/psnr"
  shutil.copy(folder / "0000012.png", folder / "0000024.png")
  found = filming.open_film(_run_of(config, workdir))
  steps = [each.step for each in found.frames("psnr")]
  assert steps == [0, 1, 2, 4, 8, 24]


def test_the_picture(finished, tmp_path):
  workdir, config = finished

  def opened(**settings):
    run = _run_of(config, workdir, **settings)
    found = filming.open_film(run)
    return found and found.picture

  assert opened(enabled=False) is None
  photos = pathlib.Path(config["data"]["sources"])
  pixels = np.asarray(PIL.Image.open(photos / "1.png").convert("RGB"))
  named = opened(picture="1.png", crop=(0, 0, 80, 64))
  np.testing.assert_array_equal(named.hr, pixels)
  np.testing.assert_array_equal(named.lr, imresize_uint8(pixels, scale=1 / 4))
  file = opened(picture=str(photos / "1.png"), crop=(0, 0, 80, 64))
  np.testing.assert_array_equal(file.lr, named.lr)
  # The square of that size with the most in it, or what there is.
  assert opened(crop=()).hr.shape == (64, 80, 3)
  assert opened(crop=(), size=40).hr.shape == (40, 40, 3)
  assert opened(crop=(), size=1).hr.shape == (20, 20, 3)  # What PSNR needs.
  flat = np.full((64, 80, 3), 128, np.uint8)
  flat[40:60, 48:68] = noise(20, 20)
  PIL.Image.fromarray(flat).save(tmp_path / "flat.png")
  lively = opened(picture=str(tmp_path / "flat.png"), crop=(), size=20)
  np.testing.assert_array_equal(lively.hr, flat[40:60, 48:68])
  # A network that takes two pixels at a time.
  config["scale"] = 2
  assert opened(crop=(), size=50).hr.shape == (48, 48, 3)
  with pytest.raises(ConfigError, match=r"multiples of 4$"):
    opened(crop=(2, 0, 50, 48))
  # One that takes four, and a first image with less than PSNR then needs.
  small = tmp_path / "small"
  small.mkdir()
  for side in (19, 20):
    PIL.Image.fromarray(noise(side, side)).save(small / f"{side}.png")
  config["scale"], config["data"]["eval"] = 1, str(small)
  assert opened(crop=()).hr.shape == (20, 20, 3)
  config["scale"] = 4
  # No validation images, and none named.
  config["data"]["eval"] = ""
  assert opened() is None
  assert opened(picture=str(photos / "1.png")) is not None


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"picture": "7.png"}, r"config\.film\.picture, '7\.png', is no file"),
    ({"crop": (44, 0, 40, 32)}, r"has 80 x 64 pixels$"),
    ({"crop": (0, 0, 16, 32)}, r"16 x 32 pixels, and PSNR needs 19 a side"),
    ({"picture": __file__}, r"^config\.film\.picture: test_film\.py: not an"),
  ],
)
def test_a_picture_that_cannot_be_had(finished, settings, message):
  workdir, config = finished
  with pytest.raises(ConfigError, match=message) as caught:
    filming.open_film(_run_of(config, workdir, **settings))
  assert "\n" not in str(caught.value)


def _film(workdir):
  """All frames, and the film; what others cannot tell from each other."""
  files = [*workdir.glob("film/*/*"), workdir / "film.webp"]
  return {
    path.relative_to(workdir).as_posix(): path.read_bytes() for path in files
  }


def _train(config, workdir, **settings):
  config = {**config, "film": {**config["film"], **settings}}
  console = rich.console.Console(file=io.StringIO(), width=200)
  return loop.train(config, workdir, console=console)


# That one that was stopped at random moments is the same: `faults.py`.
@pytest.mark.release
def test_more_of_phase_one_begins_the_next_one_anew(finished):
  workdir, config = finished
  before = _film(workdir)
  gan = {name for name in before if name.startswith("film/gan/")}
  # A finished run has its last frame, and the same film, even if it was lost.
  (workdir / "film/gan/0000008.png").unlink()
  _train(config, workdir)
  assert _film(workdir) == before
  config["phases"]["psnr"]["num_train_steps"] = 20
  _train(config | {"allow_changes": True}, workdir)
  after = _film(workdir)
  assert _steps(workdir) == {
    "psnr": [0, 1, 2, 4, 8, 12, 16, 20],
    "gan": _ALL["gan"],
  }
  with PIL.Image.open(workdir / "film.webp") as opened:
    assert opened.n_frames == 7 + 4  # Without step 12.
  earlier = _film(workdir / "earlier/1")
  assert earlier == {name: before[name] for name in (*gan, "film.webp")}
  assert all(after[name] != before[name] for name in gan)


@pytest.mark.release
def test_switched_off_and_on(tmp_path):
  config = tiny_config(tmp_path)
  config["data"]["eval"] = config["data"]["sources"]
  config["phases"]["gan"] = {"num_train_steps": 0}
  workdir = tmp_path / "run"
  _train(config, workdir, enabled=False)
  assert not list(workdir.rglob("*film*"))
  # It may be switched on later, without asking: of what is to come. A frame
  # that cannot be written ends no training.
  (workdir / "film").mkdir()
  (workdir / "film/psnr").write_text("no folder")
  with pytest.raises(loop.IncompleteError) as caught:
    _train(config, workdir)
  assert re.search(r"the film's frame of psnr at step 12: ", str(caught.value))
  (workdir / "film/psnr").unlink()
  _train(config, workdir)
  assert _steps(workdir)["psnr"] == [12]
  with PIL.Image.open(workdir / "film.webp") as opened:
    assert opened.n_frames == 1
