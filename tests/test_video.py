"""Clips without PyAV: what is told of them, and what is refused unopened."""

import dataclasses
import os
import struct
import sys
import types

import pytest

from esrgan_jax import extras, video
from esrgan_jax.images import boxes
from esrgan_jax.upscaling import inputs
from esrgan_jax.upscaling.names import Naming, output_of
from esrgan_jax.video import colours, segments


@pytest.fixture
def no_av(monkeypatch):
  """Has PyAV be not installed."""
  monkeypatch.setitem(sys.modules, "av", None)


def _movie(flags, kind=b"url "):
  """An MP4 whose one track's samples are in itself, or, without flags, not."""
  entry = boxes.pack(kind, struct.pack(">I", flags), b"/etc/hostname\0")
  packed = boxes.pack(b"dref", struct.pack(">II", 0, 1), entry)
  for around in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
    packed = boxes.pack(around, packed)
  return (
    boxes.pack(b"ftyp", b"isom\0\0\2\0isom")
    + packed
    + boxes.pack(b"mdat", bytes(99))
  )


# Its samples come first, and a box before the track that is elsewhere is none.
_GARBLED = boxes.pack(b"ftyp", b"isom\0\0\2\0isom") + boxes.pack(b"mdat", b"")
_GARBLED += boxes.pack(b"moov", struct.pack(">I4s", 3, b"free"), bytes(99))
REFUSED = {
  "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\nother.ts\n", "a list"),
  "playlist.m3u8": (b"\xef\xbb\xbf#EXTM3U\n", "a list"),
  "script.mkv": (b"ffconcat version 1.0\nfile other.mkv\n", "a list"),
  "script.ffconcat": (b"ffconcat version 1.0\nfile other.mkv\n", "a list"),
  "manifest.mpd": (b'<?xml version="1.0"?>\n<MPD profiles="x">', "a list"),
  "session.sdp": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", "a list"),
  "outside.mp4": (_movie(0), "another file"),
  "alias.mov": (_movie(0, b"alis"), "another file"),
  "movie.mov": (boxes.pack(b"moov", boxes.pack(b"rmra", b"")), "a list"),
  "packed.mov": (boxes.pack(b"moov", boxes.pack(b"cmov", b"")), "packed"),
  "garbled.mp4": (_GARBLED, "damaged"),
  "cut.mp4": (_movie(1)[:-9], "cut short"),
  "cut.mkv": (bytes.fromhex("1a45dfa3 80 18538067 88"), "cut short"),
  "cut.avi": (b"RIFF\xff\0\0\0AVI " + bytes(9), "cut short"),
  "cut.flv": (b"FLV\1\5\0\0\0\x09" + bytes(4) + b"\x12\0\0\x63", "cut short"),
  "hole.flv": (b"FLV\1\5\0\0\0\x09" + b"\7" * 99, "at byte 13"),
  "cut.ogv": (b"OggS\0\2" + bytes(20) + b"\2\x1e", "cut short"),
  "hole.ogv": (b"OggS\0\2" + bytes(20) + b"\1\1x", "at byte 0"),
  "cut.y4m": (
    b"YUV4MPEG2 W4 H3 F25:1 C444\nFRAME\n" + bytes(35),
    "68 bytes of 69",
  ),
  "hole.y4m": (b"YUV4MPEG2 W4 H3\nFRAME\n" + bytes(99), "at byte 42"),
  "cut.wmv": (
    bytes.fromhex("3026b2758e66cf11 a6d900aa0062ce6c") + b"\x63" + bytes(9),
    "26 bytes of 99",
  ),
  # A cluster with a time, and something that leads nowhere.
  "hole.mkv": (
    bytes.fromhex("1a45dfa3 80 18538067 8b 1f43b675 86 e78107 fe8000"),
    "at byte 18",
  ),
  # Of the cluster's block, frames as long as each other cannot fill it.
  "lace.mkv": (
    bytes.fromhex("1a45dfa3 80 18538067 8d 1f43b675 88 a386 81 0000 04 01 63"),
    "at byte 15",
  ),
  # Numbers that no integer is made of: FFmpeg is asked.
  "long.y4m": (b"YUV4MPEG2 H3 C420p10 W" + b"9" * 9999 + b"\n", "needs PyAV"),
  "deep.y4m": (b"YUV4MPEG2 W4 H3 C420p" + b"9" * 9999 + b"\n", "needs PyAV"),
  "empty.webm": (b"", "empty"),
  "text.mp4": (b"no clip at all", "known kind"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_names_other_files_or_is_cut_short_is_refused(
  tmp_path, no_av, name
):
  content, reason = REFUSED[name]
  path = tmp_path / name
  path.write_bytes(content)
  assert video.is_clip(path)
  with pytest.raises(video.VideoError, match=reason) as caught:
    video.read_clip(path)
  assert str(caught.value).startswith(f"{path}: ")
  assert "\n" not in str(caught.value)


def test_a_sound_clip_needs_the_extra(tmp_path, no_av):
  path = tmp_path / "a.mp4"
  path.write_bytes(_movie(1))
  with pytest.raises(video.VideoError, match="pip install '"):
    video.read_clip(path)


def test_pictures_are_no_clips(tmp_path):
  heic = boxes.pack(b"ftyp", b"heic\0\0\0\0mif1")
  for name, content in {
    "a.png": b"\x89PNG\r\n\x1a\n",
    "photo": heic,
    "b.gif": _movie(1),
    "drawing": b'<?xml version="1.0"?><svg/>',
    "notes": b"v=0 is a speed",
  }.items():
    (tmp_path / name).write_bytes(content)
    assert not video.is_clip(tmp_path / name), name
  (tmp_path / "nameless").write_bytes(_movie(1))
  assert video.is_clip(tmp_path / "nameless")
  assert video.suffix_of(tmp_path / "nameless") == ".mp4"


def test_folders_have_clips_where_they_can_be_read(tmp_path, monkeypatch):
  for name in ("a.png", "b.mp4", "c.ts"):
    (tmp_path / name).touch()
  found = inputs.find_inputs([str(tmp_path)])
  if "b.mp4" not in [each.path.name for each in found.found]:
    (note,) = found.notes
    assert f"1 .mp4 ({extras.pip_install('video')} to read it)" in note
  monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda _: object())
  found = inputs.find_inputs([str(tmp_path)])
  assert [each.path.name for each in found.found] == ["a.png", "b.mp4"]


def test_results_of_clips_are_named():
  clip, photo = (inputs.Input(tmp) for tmp in map(_path, ("a.avi", "a.bmp")))

  def named(each, kind=None, **options):
    return Naming(**options).target(each, kind=kind).name

  mp4 = dataclasses.replace(clip, path=_path("a.mp4"))
  assert named(mp4, "clip") == "a_x4.mp4"
  assert named(clip, "clip") == "a_x4.mkv"
  assert named(mp4, "clip", lossless=True) == "a_x4.mkv"
  # A format counts for what can have it.
  assert named(mp4, "clip", format="webm") == "a_x4.webm"
  assert named(photo, format="webm") == "a_x4.bmp"
  assert named(mp4, "clip", format="png") == "a_x4.mp4"
  assert named(photo, format="png") == "a_x4.png"
  assert named(mp4, "clip", template="{name}-l.mkv") == "a-l.mkv"
  assert named(photo, template="{name}-l.mkv") == "a-l.bmp"
  assert output_of("large.mp4", 1)[1].name == "large.mp4"
  with pytest.raises(ValueError, match=r"\.avi files; .*\.mkv"):
    output_of("large.avi", 1)


def _path(name):
  return inputs.pathlib.Path(name)


def test_a_small_clip_that_becomes_large_tells_its_matrix():
  untold = colours.Colours()
  assert untold.of_result((640, 480), (1280, 960)).matrix == 6
  assert untold.of_result((1280, 720), (640, 360)).matrix == 1
  assert untold.of_result((320, 240), (640, 480)) == untold
  assert untold.of_result((1280, 720), (5120, 2880)) == untold
  told = colours.Colours(2, 9, 16, 9)
  assert told.of_result((640, 480), (2560, 1920)) == told
  assert colours.Colours(matrix=0).of_result((9, 9), (36, 36)).matrix == 1


def test_hidden_folders_of_segments_are_no_inputs(tmp_path):
  folder = tmp_path / ".a_x4.mp4.0123456789abcdef.segments"
  folder.mkdir()
  (folder / "000000").touch()
  (tmp_path / "a.png").touch()
  found = inputs.find_inputs([str(tmp_path)], recursive=True)
  assert [os.path.basename(each.path) for each in found.found] == ["a.png"]


def _folder(target):
  encoding = types.SimpleNamespace(width=8, height=8)
  return video.Folder(target, "0" * 64, encoding)


def test_names_that_begin_alike_have_folders_of_their_own(tmp_path):
  first, second = (
    _folder(tmp_path / f"{'long' * 20}{end}.mp4") for end in ("1", "2")
  )
  short = _folder(tmp_path / f"{'long' * 10}")
  assert len({each.path for each in (first, second, short)}) == 3
  for each in (first, second, short):
    each.path.mkdir()
  assert [each.others() for each in (first, second, short)] == [[], [], []]
  other = video.Folder(
    tmp_path / f"{'long' * 20}1.mp4", "1" * 64, first._encoding
  )
  assert other.others() == [first.path]


@pytest.mark.skipif(segments.fcntl is None, reason="no locks here")
def test_a_folder_is_removed_under_its_lock(tmp_path, monkeypatch):
  folder = _folder(tmp_path / "a.mp4")
  remove, seen = folder.remove, []

  def look():
    with (
      pytest.raises(video.VideoError, match="another process"),
      _folder(tmp_path / "a.mp4"),
    ):
      pass
    seen.append(folder.path.is_dir())
    remove()

  monkeypatch.setattr(folder, "remove", look)
  with folder:
    pass
  assert seen == [True]
  assert not folder.path.exists()


@pytest.mark.skipif(segments.fcntl is None, reason="no locks here")
def test_a_lock_of_a_folder_that_is_gone_is_none(tmp_path, monkeypatch):
  folder = _folder(tmp_path / "a.mp4")
  flock, calls = segments.fcntl.flock, []

  def removed_meanwhile(*arguments):
    if not calls:
      folder.remove()
    calls.append(arguments)
    return flock(*arguments)

  monkeypatch.setattr(segments.fcntl, "flock", removed_meanwhile)
  with folder:
    assert (folder.path / "lock").exists()
  assert len(calls) == 2
