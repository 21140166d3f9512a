import importlib.util
import os

import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax.data import sources
from esrgan_jax.resize import imresize_uint8


def _noise(seed, height, width):
  return np.random.default_rng(seed).integers(
    0, 256, (height, width, 3), dtype=np.uint8
  )


def _save(path, array, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  PilImage.fromarray(array).save(path, **options)


def test_a_folder_gives_cropped_hr_and_matlabs_lr(tmp_path):
  photo = _noise(0, 35, 42)
  _save(tmp_path / "deep" / "er" / "b.png", photo)
  _save(tmp_path / "a.bmp", _noise(1, 16, 16))
  (tmp_path / "notes.txt").write_text("no image")
  (tmp_path / "._a.png").write_text("what a Mac leaves behind")
  source = sources.ImageFolder(tmp_path, scale=4)
  assert source.names == ["a.bmp", "deep/er/b.png"]
  lr, hr = source[1]
  np.testing.assert_array_equal(hr, photo[:32, :40])
  np.testing.assert_array_equal(lr, imresize_uint8(hr, scale=1 / 4))
  clamped = sources.ImageFolder(tmp_path, scale=4, border="clamp")
  assert (clamped[1].lr != lr).any()
  assert clamped.fingerprint() != source.fingerprint()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_crops_lr_is_that_of_the_whole_image(tmp_path, scale):
  _save(tmp_path / "a.png", _noise(0, 66, 75))
  source = sources.ImageFolder(tmp_path, scale=scale)
  whole = source[0]
  for y in (0.0, 0.3, 0.6, 0.999):
    for x in (0.0, 0.5, 0.999):
      got = source.crop(0, (y, x), 9)
      top, left = sources.corner(whole.lr.shape, (y, x), 9, "a.png")
      np.testing.assert_array_equal(
        got.lr, whole.lr[top : top + 9, left : left + 9]
      )
      np.testing.assert_array_equal(
        got.hr,
        whole.hr[scale * top :, scale * left :][: 9 * scale, : 9 * scale],
      )


def test_every_kind_of_file_becomes_8_bit_rgb(tmp_path):
  grey = _noise(0, 8, 8)[..., 0]
  _save(tmp_path / "grey.png", grey)
  _save(tmp_path / "grey16.png", grey.astype(np.uint16) * 257)
  _save(tmp_path / "alpha.png", np.dstack([grey] * 3 + [grey * 0 + 255]))
  PilImage.fromarray(grey).convert("P").save(tmp_path / "palette.png")
  source = sources.ImageFolder(tmp_path, scale=4)
  assert len(source) == 4
  for pair in source:
    np.testing.assert_array_equal(pair.hr, np.dstack([grey] * 3))


def test_unusable_files_are_named(tmp_path):
  _save(tmp_path / "whole.png", _noise(0, 16, 16))
  whole = (tmp_path / "whole.png").read_bytes()
  (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "empty.jpg").write_bytes(b"")
  _save(tmp_path / "thin.png", _noise(0, 3, 16))
  source = sources.ImageFolder(tmp_path, scale=4)
  for name in ("cut.png", "empty.jpg", "thin.png"):
    with pytest.raises(sources.DataError, match=name):
      source[source.names.index(name)]
  assert source[source.names.index("whole.png")].lr.shape == (4, 4, 3)


def test_folders_that_are_missing_or_empty_are_errors(tmp_path):
  with pytest.raises(sources.DataError, match="no such folder"):
    sources.ImageFolder(tmp_path / "none", scale=4)
  with pytest.raises(sources.DataError, match="no image in it"):
    sources.ImageFolder(tmp_path, scale=4)
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(sources.DataError, match="not a folder"):
    sources.ImageFolder(tmp_path / "pipe", scale=4)


def test_a_file_is_one_image_and_two_are_a_pair(tmp_path):
  for name, size in (("a[1]_HR.png", 16), ("a[1]_LR.png", 4), ("b.png", 4)):
    _save(tmp_path / name, _noise(size, size, size))
  hr = sources.open_source(str(tmp_path / "a[1]_HR.png"), scale=4)
  assert hr.names == ["a[1]_HR.png"]
  for lr in ("a[1]_LR.png", "b.png"):
    found = sources.open_source(f"{hr.title}::{tmp_path / lr}", scale=4)
    assert found.names == hr.names
    np.testing.assert_array_equal(found[0].hr, hr[0].hr)
    np.testing.assert_array_equal(found[0].lr, _noise(4, 4, 4))


def _pairs(tmp_path):
  for name in ("0001", "sub/0002"):
    _save(tmp_path / f"hr/{name}.png", _noise(int(name[-1]), 16, 24))
    _save(tmp_path / f"lr/{name}x4.png", _noise(int(name[-1]), 4, 6))
  return tmp_path / "hr", tmp_path / "lr"


def test_pairs_match_by_name_and_say_what_does_not(tmp_path):
  hr, lr = _pairs(tmp_path)
  _save(hr / "same.png", _noise(3, 8, 8))
  _save(lr / "same.bmp", _noise(3, 2, 2))
  _save(hr / "lonely.png", _noise(4, 8, 8))
  _save(lr / "orphanx4.png", _noise(5, 2, 2))
  for folder, suffix in ((hr, "png"), (hr, "bmp"), (lr, "png")):
    _save(folder / f"twice.{suffix}", _noise(6, 8, 8))
  source = sources.PairFolder(hr, lr, scale=4)
  assert source.names == ["0001.png", "same.png", "sub/0002.png"]
  np.testing.assert_array_equal(source[2].lr, _noise(2, 4, 6))
  np.testing.assert_array_equal(source[2].hr, _noise(2, 16, 24))
  reasons = {problem.name: problem.reason for problem in source.problems}
  assert set(reasons) == {"lonely.png", "orphanx4.png", "twice.bmp"}
  assert "no LR image" in reasons["lonely.png"]
  assert "no HR image" in reasons["orphanx4.png"]
  assert "ambiguous" in reasons["twice.bmp"]


def test_pairs_of_other_sizes_are_cut_or_refused(tmp_path):
  hr, lr = _pairs(tmp_path)
  # imresize rounds up, a cropping tool down; both begin at the top left.
  _save(hr / "up.png", _noise(7, 18, 21))
  _save(lr / "up.png", _noise(8, 5, 6))
  _save(hr / "down.png", _noise(7, 18, 21))
  _save(lr / "down.png", _noise(8, 4, 5))
  _save(hr / "wrong.png", _noise(7, 16, 16))
  _save(lr / "wrong.png", _noise(8, 4, 3))
  source = sources.PairFolder(hr, lr, scale=4)
  for name in ("up.png", "down.png"):
    pair = source[source.names.index(name)]
    assert (pair.lr.shape, pair.hr.shape) == ((4, 5, 3), (16, 20, 3))
    np.testing.assert_array_equal(pair.hr, _noise(7, 18, 21)[:16, :20])
  with pytest.raises(
    sources.DataError, match=r"wrong.png: LR is 4x3 and HR 16"
  ):
    source[source.names.index("wrong.png")]


def test_pairs_without_a_single_match_are_an_error(tmp_path):
  _save(tmp_path / "hr/a.png", _noise(0, 8, 8))
  _save(tmp_path / "lr/b.png", _noise(0, 2, 2))
  with pytest.raises(sources.DataError, match=r"a\.png and b\.png"):
    sources.PairFolder(tmp_path / "hr", tmp_path / "lr", scale=4)


def test_a_pattern_gives_what_it_matches(tmp_path, monkeypatch):
  hr, _ = _pairs(tmp_path)
  _save(hr / "sub/0003.jpg", _noise(3, 16, 16))
  _save(tmp_path / "[1]/a,b.png", _noise(4, 16, 16))
  (hr / "sub/notes.txt").write_text("no image")
  folder = sources.ImageFolder(hr, scale=4)
  for place in (hr / "**", hr / "**/*", str(hr / "**/*.[pj]*")):
    found = sources.open_source(str(place), scale=4)
    assert found.names == folder.names
    assert found.fingerprint() == folder.fingerprint()
    np.testing.assert_array_equal(found[1].lr, folder[1].lr)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  for pattern, names in (
    ("hr/*/*.png", ["sub/0002.png"]),
    ("hr/?ub/000[23].*", ["sub/0002.png", "sub/0003.jpg"]),
    ("*/0001.png", ["hr/0001.png"]),
    ("~/hr/*.png", ["0001.png"]),
    ("[1]", ["a,b.png"]),  # The folder of that name.
    ("?1?/a,*.png", ["[1]/a,b.png"]),
    ("hr/0*,hr/sub/0*", ["0001.png", "0002.png", "0003.jpg"]),
  ):
    assert sources.open_source(pattern, scale=4).names == names
  for pattern, message in (
    ("hr/*.bmp", r"hr/\*\.bmp: no image matches this pattern;"),
    ("hr/sub/*s*", "no image matches this pattern, but 1 of other kinds"),
  ):
    with pytest.raises(sources.DataError, match=message):
      sources.open_source(pattern, scale=4)


def test_patterns_are_paired_by_name_or_by_their_wildcards(tmp_path):
  for number in (1, 2, 3):
    for kind, size in (("HR", 16), ("LR", 4)):
      picture = _noise(number, size, size)
      _save(tmp_path / f"one/img_{number}_{kind}.png", picture)
      _save(tmp_path / f"set{number}/{kind}/{number}.png", picture)
      x4 = "x4" if kind == "LR" else ""
      _save(tmp_path / f"{kind}/0{number}{x4}.png", picture)
  (tmp_path / "one/img_3_LR.png").unlink()

  def pairs(hr, lr):
    return sources.open_source(f"{tmp_path}/{hr}::{tmp_path}/{lr}", scale=4)

  for hr, lr, names in (
    ("one/*_HR.png", "one/*_LR.*", ["img_1_HR.png", "img_2_HR.png"]),
    ("set?/HR/*", "set?/LR/*", [f"set{n}/HR/{n}.png" for n in (1, 2, 3)]),
    ("HR/0*.png", "LR", ["01.png", "02.png", "03.png"]),
    ("HR/0*", "**/LR/0*", ["01.png", "02.png", "03.png"]),
    ("HR", "set[12]/LR/*.png", []),
    ("HR/0*", "one/img_*_LR.png", ["01.png", "02.png"]),
  ):
    if not names:
      with pytest.raises(sources.DataError, match="stand for the same"):
        pairs(hr, lr)
      continue
    found = pairs(hr, lr)
    assert found.names == names
    for index, name in enumerate(names):
      number = int("".join(filter(str.isdigit, name))[-1])
      np.testing.assert_array_equal(found[index].lr, _noise(number, 4, 4))
      np.testing.assert_array_equal(found[index].hr, _noise(number, 16, 16))
  (problem,) = pairs("one/*_HR.png", "one/*_LR.png").problems
  assert str(problem).endswith("_LR.png has img_3 or img_3x4 for the wildcards")


def test_fingerprints_follow_the_files(tmp_path):
  hr, lr = _pairs(tmp_path)
  folder = sources.ImageFolder(hr, scale=4)
  first = folder.fingerprint()
  assert first == sources.ImageFolder(hr, scale=4).fingerprint()
  assert first != sources.ImageFolder(hr, scale=2).fingerprint()
  assert first != sources.PairFolder(hr, lr, scale=4).fingerprint()
  _save(hr / "0001.png", _noise(9, 20, 20))
  assert first != folder.fingerprint()


def test_the_sample_photos_are_the_wheels_and_split_by_name():
  train = sources.SamplePhotos("train", scale=4)
  held_out = sources.SamplePhotos("held_out", scale=4)
  assert (len(train), len(held_out)) == (6, 3)
  assert not set(train.names) & set(held_out.names)
  data = pytest.importorskip("skimage.data")
  chelsea = held_out[held_out.names.index("chelsea.png")]
  np.testing.assert_array_equal(chelsea.hr, data.chelsea()[:300, :448])
  with pytest.raises(sources.DataError, match="train held_out"):
    sources.SamplePhotos("test", scale=4)


def test_the_sample_photos_say_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(sources.DataError, match="pip install scikit-image"):
    sources.SamplePhotos("train", scale=4)


def test_specs_open_every_kind(tmp_path):
  hr, lr = _pairs(tmp_path)
  pair = sources.open_source(f"{hr}::{lr}", scale=4)
  assert isinstance(pair, sources.PairFolder)
  same = sources.open_source({"hr": str(hr), "lr": str(lr)}, scale=4)
  assert same.fingerprint() == pair.fingerprint()
  assert isinstance(sources.open_source(hr, scale=4), sources.ImageFolder)
  both = sources.open_source([str(hr), f"{hr}::{lr}", "sample_photos"], scale=4)
  assert len(both) == 2 + 2 + 6
  np.testing.assert_array_equal(both[3].lr, pair[1].lr)
  np.testing.assert_array_equal(both.crop(3, (0, 0), 2).hr, pair[1].hr[:8, :8])
  with pytest.raises(IndexError):
    both[10]


def test_commas_divide_but_for_folders_that_exist(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  for folder in ("a", "b", "a,b", "c,d/hr", "c,d/lr"):
    _save(tmp_path / folder / "1.png", _noise(0, 16, 16))
  _save(tmp_path / "c,d/lr/1.png", _noise(0, 4, 4))
  for spec, names in (
    ("a, b", None),
    ("a,b", ["1.png"]),
    (("a", "b"), ["a/1.png", "b/1.png"]),
    (["./a,./b"], ["./a/1.png", "./b/1.png"]),
    ("~/a,b", ["1.png"]),
    ("c,d/hr::c,d/lr", ["1.png"]),
    ("~/c,d/hr::~/c,d/lr", ["1.png"]),
    ({"hr": "~/c,d/hr", "lr": "~/c,d/lr"}, ["1.png"]),
    ("a,", ["1.png"]),
  ):
    source = sources.open_source(spec, scale=4)
    if names is None:
      assert isinstance(source, sources.SourceList)
    else:
      assert source.names == names
  with pytest.raises(sources.DataError) as caught:
    sources.open_source("a,old", scale=4)
  assert str(caught.value).startswith("old: no such folder")
  assert "'a,old': commas divide" in str(caught.value)


def test_a_subset_is_the_source_of_its_images(tmp_path):
  for n in range(4):
    _save(tmp_path / f"{n}.png", _noise(n, 16 + 4 * n, 16))
  whole = sources.ImageFolder(tmp_path, scale=4)
  some = sources.Subset(whole, [3, 1])
  assert some.names == ["3.png", "1.png"]
  assert some.lr_size(0) == (7, 4)
  for index, place in ((0, 3), (1, 1)):
    np.testing.assert_array_equal(some[index].hr, whole[place].hr)
    got, expected = (
      s.crop(i, (0.5, 0.5), 2) for s, i in ((some, index), (whole, place))
    )
    np.testing.assert_array_equal(got.hr, expected.hr)
  assert some.fingerprint() != whole.fingerprint()
  (tmp_path / "1.png").unlink()
  skipped = []
  read = [index for index, _ in sources.readable(some, skipped.append)]
  assert (read, [p.name for p in skipped]) == ([0], ["1.png"])
  with pytest.raises(sources.DataError, match=r"^1\.png: no such file"):
    list(sources.readable(some, None))


def test_names_of_strangers_are_printable(tmp_path):
  _save(tmp_path / "hr" / "a\x1b[31m.png", _noise(0, 16, 16))
  (tmp_path / "hr" / "b\x1b[31m.png").write_bytes(b"bad")
  source = sources.ImageFolder(tmp_path / "hr", scale=4)
  with pytest.raises(sources.DataError) as caught:
    source[1]
  assert str(caught.value).startswith(r"b\x1b[31m.png: ")
  assert str(tmp_path) not in str(caught.value)
  problem = sources.Problem.of(source.names[1], caught.value)
  assert str(problem) == str(caught.value)
  _save(tmp_path / "lr" / "c\x1b[31m.png", _noise(0, 4, 4))
  with pytest.raises(
    sources.DataError, match=r"are a\\x1b\[31m.png and c\\x1b"
  ):
    sources.PairFolder(tmp_path / "hr", tmp_path / "lr", scale=4)


def test_a_file_that_vanishes_still_has_a_fingerprint(tmp_path):
  for name in "ab":
    _save(tmp_path / f"{name}.png", _noise(0, 16, 16))
  source = sources.ImageFolder(tmp_path, scale=4)
  before = source.fingerprint()
  (tmp_path / "a.png").unlink()
  assert source.fingerprint() != before


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("", "empty"),
    (",", "at least one"),
    (7, "a source is 7;"),
    (["sample_photos", None], "a source is None;"),
    ("a::", "is ''; give its path"),
    ({"hr": "gs://a", "lr": "b"}, "gs://a: .* mount the bucket"),
    ("gs://a/b", "gs://a/b: .* mount the bucket"),
    ([], "at least one"),
    ({"hr": "a"}, "keys hr and lr"),
    ("sample_photos:nope", "nope"),
    ("no/such/folder", "no such folder"),
  ],
)
def test_bad_specs_are_errors(spec, message):
  with pytest.raises(sources.DataError, match=message):
    sources.open_source(spec, scale=4)


def test_sources_of_several_scales_do_not_mix(tmp_path):
  _save(tmp_path / "a.png", _noise(0, 16, 16))
  folders = [sources.ImageFolder(tmp_path, scale=k) for k in (2, 4)]
  with pytest.raises(sources.DataError, match=r"\[2, 4\]"):
    sources.SourceList(folders)
