"""How windows cover an axis: invariants over many sizes."""

import itertools

import numpy as np
import pytest

from esrgan_jax import tiling

CASES = [
  case
  for case in itertools.product(
    (1, 2, 17, 64, 100, 255, 256, 257, 1000),
    (0, 1, 16, 64, 256),
    (0, 1, 20, 94),
    (1, 2, 4),
  )
  if case[0] % case[3] == 0
]


@pytest.mark.parametrize(("length", "tile", "halo", "multiple"), CASES)
def test_windows_cover_the_axis_once_and_keep_their_halo(
  length, tile, halo, multiple
):
  options = {"tile": tile, "halo": halo, "multiple": multiple}
  size, spans = tiling.cut(length, **options)
  assert size % multiple == 0
  exact, same = tiling.cut(length, **options, rounded=False)
  assert same == spans
  assert {span.stop - span.start for span in same} == {exact}
  kept = [range(span.keep_start, span.keep_stop) for span in spans]
  np.testing.assert_array_equal(
    np.concatenate([list(r) for r in kept]), np.arange(length)
  )
  for span in spans:
    assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop
    assert span.stop <= length
    assert span.stop - span.start in (size, length)
    assert span.start % multiple == span.keep_start % multiple == 0
    if span.start > 0:
      assert span.keep_start - span.start >= halo
    if span.stop < length:
      assert span.stop - span.keep_stop >= halo
  if tile == 0:
    assert len(spans) == 1
  elif len(spans) > 1:
    assert size < tile + 2 * halo + 3 * multiple


def test_sizes_are_shared_by_similar_images():
  sizes = {tiling.cut(n, tile=256, halo=16)[0] for n in range(1, 2000)}
  assert len(sizes) < 16


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"length": 0, "tile": 8, "halo": 1}, "length 0"),
    ({"length": 7, "tile": 8, "halo": 1, "multiple": 2}, "multiple of 2"),
    ({"length": 7, "tile": -1, "halo": 1}, "tile -1"),
    ({"length": 7, "tile": 8, "halo": -1}, "halo -1"),
  ],
)
def test_misuse_is_explained(arguments, message):
  length = arguments.pop("length")
  with pytest.raises(ValueError, match=message):
    tiling.cut(length, **arguments)
