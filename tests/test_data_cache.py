import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax.data import cache, sources

_READERS = {"ram": cache.in_ram, "mapped": cache.mapped}


@pytest.fixture
def folder(tmp_path):
  """Five images: three usable, one small, one cut short."""
  rng = np.random.default_rng(0)
  photos = tmp_path / "photos"
  photos.mkdir()
  for name, size in (
    ("a", (40, 44)),
    ("b", (32, 48)),
    ("c", (50, 33)),
    ("small", (16, 64)),
  ):
    array = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    PilImage.fromarray(array).save(photos / f"{name}.png")
  whole = (photos / "a.png").read_bytes()
  (photos / "cut.png").write_bytes(whole[:-200])
  return photos


def _read(kind, source, tmp_path, **options):
  options = {"size": 8, "threads": 2} | options
  if kind == "mapped":
    options["cache_dir"] = tmp_path / "cache"
  return _READERS[kind](source, range(len(source)), **options)


@pytest.mark.parametrize("kind", _READERS)
def test_images_are_kept_and_problems_named(kind, folder, tmp_path):
  source = sources.ImageFolder(folder, scale=4)
  calls = []
  pairs, report = _read(
    kind, source, tmp_path, progress=lambda *c: calls.append(c)
  )
  assert [source.names[i] for i in pairs] == ["a.png", "b.png", "c.png"]
  for index, pair in pairs.items():
    for got, expected in zip(pair, source[index], strict=True):
      np.testing.assert_array_equal(got, expected)
      assert got.dtype == np.uint8
  assert [p.name for p in report.problems] == ["cut.png", "small.png"]
  assert "smaller than a patch of 32" in report.problems[1].reason
  assert report.pixels == 40 * 44 + 32 * 48 + 48 * 32
  assert calls == [(n, 5) for n in range(1, 6)]
  assert "3 images" in str(report)
  assert "cut.png" in str(report)


def test_the_number_of_threads_changes_nothing(folder, tmp_path):
  source = sources.ImageFolder(folder, scale=4)
  first, second = (
    _read("ram", source, tmp_path, threads=threads) for threads in (1, 7)
  )
  assert first[1] == second[1]
  assert list(first[0]) == list(second[0])


def test_a_file_is_decoded_once_until_it_changes(folder, tmp_path):
  calls = []
  progress = lambda *c: calls.append(c)  # noqa: E731
  source = sources.ImageFolder(folder, scale=4)
  first = _read("mapped", source, tmp_path, progress=progress)
  decoded = len(calls)
  again = _read("mapped", source, tmp_path, progress=progress, size=9)
  assert len(calls) == decoded == 5
  assert not again[0][0].hr.flags.writeable
  assert (list(first[0]), list(again[0])) == ([0, 1, 2], [0])  # 9 x 4 > 32.
  whole = PilImage.open(folder / "a.png")
  whole.save(folder / "cut.png")
  repaired = _read("mapped", source, tmp_path, progress=progress)
  assert len(calls) == 2 * decoded
  assert len(repaired[0]) == 4


@pytest.mark.parametrize("damage", ["truncate", "garble", "remove"])
def test_a_damaged_cache_is_made_anew(damage, folder, tmp_path):
  source = sources.ImageFolder(folder, scale=4)
  expected, _ = _read("mapped", source, tmp_path)
  expected = {i: pair.lr.copy() for i, pair in expected.items()}
  (cached,) = (tmp_path / "cache").iterdir()
  data = cached / "images.bin"
  if damage == "truncate":
    os.truncate(data, data.stat().st_size - 1)
  elif damage == "garble":
    (cached / "index.json").write_text("{")
  else:
    data.unlink()
  pairs, _ = _read("mapped", source, tmp_path)
  for index, lr in expected.items():
    np.testing.assert_array_equal(pairs[index].lr, lr)
  assert list((tmp_path / "cache").iterdir()) == [cached]


def test_nothing_but_damage_maps_too(tmp_path):
  (tmp_path / "a.png").write_bytes(b"no image")
  source = sources.ImageFolder(tmp_path, scale=4)
  pairs, report = _read("mapped", source, tmp_path)
  assert pairs == {}
  assert report.images == 0


def test_a_killed_writer_leaves_nothing_for_good(folder, tmp_path):
  there = tmp_path / "cache"
  ended = subprocess.Popen([sys.executable, "-c", ""])
  ended.wait()
  host = socket.gethostname()
  dead = there / f".images-0.{host}.{ended.pid}.aa.part"
  alive = there / f".images-0.{host}.{os.getpid()}.aa.part"
  elsewhere = there / f".images-0.not-{host}.{ended.pid}.aa.part"
  for aside in (dead, alive, elsewhere):
    aside.mkdir(parents=True)
  _read("mapped", sources.ImageFolder(folder, scale=4), tmp_path)
  assert [a.exists() for a in (dead, alive, elsewhere)] == [False, True, True]


def test_processes_may_make_one_cache_at_once(folder, tmp_path):
  code = """
import sys
from esrgan_jax.data import cache, sources
source = sources.ImageFolder(sys.argv[1], scale=4)
pairs, _ = cache.mapped(source, range(5), size=8, threads=1,
                        cache_dir=sys.argv[2])
print(sum(int(pair.hr.sum()) for pair in pairs.values()))
"""
  root = pathlib.Path(__file__).parent.parent
  command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
  started = [
    subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  sums = {int(process.communicate(timeout=120)[0]) for process in started}
  assert len(sums) == 1
  assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_an_error(folder, tmp_path):
  (tmp_path / "file").touch()
  source = sources.ImageFolder(folder, scale=4)
  with pytest.raises(sources.DataError, match="cache_dir"):
    cache.mapped(
      source, [0], size=8, threads=1, cache_dir=tmp_path / "file" / "cache"
    )


def test_a_survey_reads_everything_once(folder, tmp_path):
  source = sources.ImageFolder(folder, scale=4)
  calls = []
  options = {"threads": 2, "cache_dir": tmp_path}
  options["progress"] = lambda *c: calls.append(c)
  usable, report = cache.survey(source, range(5), size=8, **options)
  _, expected = _read("ram", source, tmp_path)
  assert ([source.names[i] for i in usable], report) == (
    ["a.png", "b.png", "c.png"],
    expected,
  )
  usable, _ = cache.survey(source, range(5), size=2, **options)
  assert len(usable) == 4
  assert len(calls) == 5
