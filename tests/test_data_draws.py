import numpy as np
import pytest

from esrgan_jax.data import draws, sources

_MASK = 2**64 - 1


def _philox(counter, key):
  """Philox 4x64 with 10 rounds, from the paper: a block of four words."""
  c, k = list(counter), [key, 0]
  for _ in range(10):
    products = [0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]]
    (high0, low0), (high1, low1) = (divmod(p, 2**64) for p in products)
    c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
    weyl = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
    k = [(a + b) & _MASK for a, b in zip(k, weyl, strict=True)]
  return c


@pytest.mark.parametrize(
  ("seed", "step", "batch_size", "count"),
  [(0, 0, 3, 7), (5, 11, 4, 3), (2**64 + 9, 2, 16, 5), (1, 10**6, 2, 800)],
)
def test_draws_are_as_specified(seed, step, batch_size, count):
  drawn = draws.draw(seed, step, batch_size=batch_size, count=count)
  key = seed & _MASK
  for row in range(batch_size):
    slot = step * batch_size + row
    epoch, position = divmod(slot, count)
    words = []
    while len(words) < count:
      words += _philox((len(words) // 4 + 1, epoch, 0, 0), key)
    order = sorted(range(count), key=words.__getitem__)
    assert drawn.images[row] == order[position]
    place = _philox((slot + 1, 0, 0, 1), key)[:2]
    assert drawn.places[row].tolist() == [w // 2**11 / 2**53 for w in place]


def test_an_epoch_shows_every_image_once():
  images = np.concatenate(
    [draws.draw(3, s, batch_size=10, count=7).images for s in range(21)]
  )
  epochs = images.reshape(30, 7)
  assert (np.sort(epochs) == np.arange(7)).all()
  assert len({tuple(epoch) for epoch in epochs.tolist()}) > 25


def test_draws_are_uniform():
  drawn = draws.draw(1, 0, batch_size=6000, count=3)
  orders = drawn.images.reshape(-1, 3) @ [9, 3, 1]
  _, counts = np.unique(orders, return_counts=True)
  assert len(counts) == 6
  # 2,000 draws of 1/6, and 6,000 of 1/16: within five sigma.
  np.testing.assert_allclose(counts, 2000 / 6, atol=5 * 17)
  cells = (drawn.places * 4).astype(int) @ [4, 1]
  np.testing.assert_allclose(np.bincount(cells), 375, atol=5 * 19)


def test_places_become_corners():
  assert sources.corner((10, 20), (0.0, 0.0), 8, "") == (0, 0)
  last = 1 - 2.0**-53
  for room in (1, 2, 3, 2**20 - 1, 2**20):
    corner = sources.corner((room + 7, room + 7), (last, 0.5), 8, "")
    assert corner == (room - 1, room // 2)
