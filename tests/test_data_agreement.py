"""Several processes agree on images; here, they are threads."""

import concurrent.futures
import json
import threading

from esrgan_jax.data import agreement, cache, sources
from esrgan_jax.data.sources import DataError, Problem


class _Names(sources.Source):
  """A source of which the processes have only to know the names."""

  def __init__(self, names, problems=()):
    self.scale, self.title, self.names = 2, "photos", names
    self.problems = problems

  def __getitem__(self, index):
    raise NotImplementedError

  def fingerprint(self):
    return json.dumps(self.names)


def _together(functions):
  """Runs a function a process, in threads; errors are results as well."""
  said = [None] * len(functions)
  barrier = threading.Barrier(len(functions), timeout=60)

  def run(number):
    def gather(text):
      said[number] = text
      barrier.wait()
      heard = list(said)
      barrier.wait()
      return heard

    try:
      return functions[number](gather)
    except DataError as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
    return list(pool.map(run, range(len(functions))))


def _agree_on_names(*opens):
  return _together(
    [lambda gather, o=o: agreement.agree_on_names(o, gather) for o in opens]
  )


def test_the_same_listing_stays():
  source = _Names(["a", "b"], [Problem("c", "no LR image")])
  for got, problems in _agree_on_names(lambda: source, lambda: source):
    assert got is source
    assert problems == (("c", "no LR image"),)


def test_what_one_process_does_not_see_is_left_out_everywhere():
  sources_ = [
    _Names(["a", "b", "x", "c"]),
    _Names(["a", "b", "c", "d"], [Problem("x", "no LR image")]),
    _Names(["a", "b", "b", "x", "c", "d"]),
  ]
  results = _agree_on_names(*(lambda s=s: s for s in sources_))
  for source, problems in results:
    assert source.names == ["a", "b", "c"]
    assert dict(problems) == {
      "x": "no LR image",
      "d": "process 0 does not have it",
      "b": "process 0 does not have it",
    }
  assert results[2][0]._indices == [0, 1, 4]


def test_nothing_in_common_is_an_error():
  for error in _agree_on_names(lambda: _Names("a"), lambda: _Names("b")):
    assert "photos: the processes have no image in common" in str(error)


def test_who_cannot_open_ends_all():
  def fail():
    raise DataError("/photos: no such folder")

  first, second = _agree_on_names(lambda: _Names("a"), fail)
  assert str(first) == "process 1: /photos: no such folder"
  assert str(second) == "/photos: no such folder"


def _agree_on_images(source, *found):
  return _together(
    [
      lambda gather, f=f: agreement.agree_on_images(
        source,
        f if callable(f) else lambda: f,
        gather,
        smallest=4,
        need="a patch of {}",
        listed=(Problem("x", "no LR image"),),
      )
      for f in found
    ]
  )


def test_problems_of_any_process_are_those_of_all():
  source = _Names(list("abcdef"))
  good = (4, 9)
  (_, first), (_, second) = _agree_on_images(
    source,
    cache.Found({0: good, 1: good, 2: (3, 9), 4: good, 5: good}, {3: "cut"}),
    cache.Found(
      {0: good, 2: (3, 9), 3: good, 4: (5, 9), 5: good}, {1: "locked"}
    ),
  )
  assert first == second
  assert first.usable == [0, 5]
  assert first.sizes == [good, good]
  assert first.report.images == 2
  assert first.report.pixels == 2 * 4 * 36
  assert str(first.report).splitlines() == [
    "2 images, 0.0 megapixels, 5 left out:",
    "  x: no LR image",
    "  b: locked",
    "  c: HR is 6x18, smaller than a patch of 8x8",
    "  d: cut",
    "  e: not the same picture in all processes",
  ]


def test_shares_make_a_whole():
  source = _Names(list("abc"))
  results = _agree_on_images(
    source,
    cache.Found({0: (5, 5), 2: (7, 7)}),
    cache.Found({1: (6, 6)}),
  )
  for _, agreed in results:
    assert agreed.usable == [0, 1, 2]
    assert agreed.sizes == [(5, 5), (6, 6), (7, 7)]


def test_who_cannot_read_at_all_ends_all():
  def fail():
    raise DataError("the cache cannot be written")

  first, _ = _agree_on_images(_Names("a"), cache.Found({0: (5, 5)}), fail)
  assert str(first) == "process 1: the cache cannot be written"


def test_a_long_list_is_cut():
  problems = tuple(Problem(f"{n}\x1b.png", "bad") for n in range(30))
  text = str(agreement.Report(0, 0, problems))
  assert text.endswith("  and 10 more")
  assert r"  0\x1b.png: bad" in text
