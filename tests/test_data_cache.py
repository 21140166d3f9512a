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
  options = {"threads": 2} | options
  if kind == "mapped":
    options["cache_dir"] = tmp_path / "cache"
  return _READERS[kind](source, range(len(source)), **options)


@pytest.mark.parametrize("kind", _READERS)
def test_images_are_kept_and_problems_named(kind, folder, tmp_path):
  source = sources.ImageFolder(folder, scale=4)
  calls = []
  found = _read(kind, source, tmp_path, progress=lambda *c: calls.append(c))
  assert [source.names[i] for i in found.pairs] == [
    "a.png",
    "b.png",
    "c.png",
    "small.png",
  ]
  for index, pair in found.pairs.items():
    assert found.sizes[index] == pair.lr.shape[:2] == source.lr_size(index)
    for got, expected in zip(pair, source[index], strict=True):
      np.testing.assert_array_equal(got, expected)
      assert got.dtype == np.uint8
  ((index, reason),) = found.problems.items()
  assert source.names[index] == "cut.png"
  assert reason.startswith("damaged or cut short")
  assert calls == [(n, 5) for n in range(1, 6)]


def test_the_number_of_threads_changes_nothing(folder, tmp_path):
  source = sources.ImageFolder(folder, scale=4)
  first, second = (
    _read("ram", source, tmp_path, threads=threads) for threads in (1, 7)
  )
  assert first.problems == second.problems
  assert list(first.sizes.items()) == list(second.sizes.items())


def test_a_file_is_decoded_once_until_it_changes(folder, tmp_path):
  calls = []
  progress = lambda *c: calls.append(c)  # noqa: E731
  source = sources.ImageFolder(folder, scale=4)
  first = _read("mapped", source, tmp_path, progress=progress)
  decoded = len(calls)
  again = _read("mapped", source, tmp_path, progress=progress)
  assert len(calls) == decoded == 5
  assert not again.pairs[0].hr.flags.writeable
  assert (again.sizes, again.problems) == (first.sizes, first.problems)
  whole = PilImage.open(folder / "a.png")
  whole.save(folder / "cut.png")
  repaired = _read("mapped", source, tmp_path, progress=progress)
  assert len(calls) == 2 * decoded
  assert len(repaired.pairs) == 5


@pytest.mark.parametrize("read", [cache.mapped, cache.survey])
def test_what_can_be_read_again_is(read, folder, tmp_path):
  """As after a server did not answer, which leaves no trace in the file."""
  source = sources.ImageFolder(folder, scale=4)
  options = {"threads": 1, "cache_dir": tmp_path / "cache"}
  times = (folder / "cut.png").stat().st_mtime_ns
  assert len(read(source, range(5), **options).problems) == 1
  size = (folder / "cut.png").stat().st_size
  whole = PilImage.open(folder / "a.png")
  whole.crop((0, 0, 8, 8)).save(folder / "cut.png")
  with open(folder / "cut.png", "ab") as file:
    file.write(bytes(size - file.tell()))
  os.utime(folder / "cut.png", ns=(times, times))
  found = read(source, range(5), **options)
  assert found.problems == {}
  assert found.sizes[3] == (2, 2)


@pytest.mark.parametrize("damage", ["truncate", "garble", "remove"])
def test_a_damaged_cache_is_made_anew(damage, folder, tmp_path):
  source = sources.ImageFolder(folder, scale=4)
  expected = _read("mapped", source, tmp_path).pairs
  expected = {i: pair.lr.copy() for i, pair in expected.items()}
  (cached,) = (tmp_path / "cache").iterdir()
  data = cached / "images.bin"
  if damage == "truncate":
    os.truncate(data, data.stat().st_size - 1)
  elif damage == "garble":
    (cached / "index.json").write_text("{")
  else:
    data.unlink()
  pairs = _read("mapped", source, tmp_path).pairs
  for index, lr in expected.items():
    np.testing.assert_array_equal(pairs[index].lr, lr)
  assert list((tmp_path / "cache").iterdir()) == [cached]


def test_nothing_but_damage_maps_too(tmp_path):
  (tmp_path / "a.png").write_bytes(b"no image")
  source = sources.ImageFolder(tmp_path, scale=4)
  found = _read("mapped", source, tmp_path)
  assert (found.pairs, list(found.problems)) == ({}, [0])


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


def test_of_several_processes_one_decodes(folder, tmp_path):
  """The others wait for it; all map the same file."""
  code = """
import sys
from esrgan_jax.data import cache, sources
calls = []
source = sources.ImageFolder(sys.argv[1], scale=4)
print("ready", flush=True)
sys.stdin.readline()
found = cache.mapped(source, range(5), threads=1, cache_dir=sys.argv[2],
                     progress=lambda *c: calls.append(c))
print(len(calls), sum(int(pair.hr.sum()) for pair in found.pairs.values()))
"""
  root = pathlib.Path(__file__).parent.parent
  command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  started = [subprocess.Popen(command, cwd=root, **pipes) for _ in range(2)]
  for process in started:
    assert process.stdout.readline() == "ready\n"
  texts = [process.communicate("\n", timeout=120)[0] for process in started]
  calls, sums = zip(*(map(int, text.split()) for text in texts), strict=True)
  # Who waits is shown that there is something to wait for.
  assert sorted(calls) in ([0, 5], [1, 5])
  assert len(set(sums)) == 1
  assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_an_error(folder, tmp_path):
  (tmp_path / "file").touch()
  source = sources.ImageFolder(folder, scale=4)
  with pytest.raises(sources.DataError, match="cache_dir"):
    cache.mapped(source, [0], threads=1, cache_dir=tmp_path / "file" / "cache")


def test_a_full_disk_leaves_nothing(folder, tmp_path, full_disk):
  source = sources.ImageFolder(folder, scale=4)
  options = {"threads": 2, "cache_dir": tmp_path / "cache"}
  with full_disk(50):
    with pytest.raises(sources.DataError, match="File too large"):
      cache.mapped(source, range(len(source)), **options)
    cache.survey(source, range(len(source)), **options)
  assert not list((tmp_path / "cache").iterdir())


def test_a_survey_reads_everything_once(folder, tmp_path):
  source = sources.ImageFolder(folder, scale=4)
  calls = []
  options = {"threads": 2, "progress": lambda *c: calls.append(c)}
  expected = cache.look_at(source, range(5), **options)
  assert len(expected.sizes) == 4
  assert expected.pairs == {}
  no_folder = folder / "a.png"
  for place in (tmp_path / "cache", no_folder):
    calls.clear()
    for _ in range(2):
      found = cache.survey(source, range(5), cache_dir=place, **options)
      assert found == expected
    # Where it cannot be kept, everything is read again.
    assert len(calls) == (10 if place == no_folder else 5)
