"""Which image each row of a batch shows, and where it is cropped: the draws.

They depend on the seed, the step and the row of the global batch, and on
nothing else: not on the cache, the number of processes or devices, threads, or
what was drawn before. Row `r` of step `s` in batches of `B` is slot
`s * B + r`. Of `n` usable images, in the order of their sources, epoch
`slot // n` shows each once, in an order of its own, slot by slot.

Random numbers are words of 64 bits of Philox 4x64 (Salmon et al., 2011) in
counter mode, keyed by the seed: NumPy guarantees these for all its versions,
which it does not for `permutation` and the like. An epoch's order sorts `n`
words from counter `(0, epoch, 0, 0)` on; a slot's place are the first two of
the four words of counter `(slot, 0, 0, 1)`, as fractions of 53 bits. (NumPy
counts up before it draws: its first block is that of the counter plus one.)
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

__all__ = ["Draws", "draw"]

_ORDER, _PLACE = 0, 1  # Highest words of the counters.


class Draws(NamedTuple):
  """What the rows of a batch show.

  Attributes:
    images: int64 `[batch_size]`, numbers of images, from 0.
    places: float64 `[batch_size, 2]` in [0, 1), how far down and to the right
      a crop is, of the places that it can have: see `sources.corner`.
  """

  images: np.ndarray
  places: np.ndarray


def draw(seed: int, step: int, *, batch_size: int, count: int) -> Draws:
  """Draws a global batch.

  Args:
    seed: >= 0; its lowest 64 bits count.
    step: Number of the step, from 0.
    batch_size: Rows of the global batch.
    count: How many images there are to draw from, at least 1.

  Returns:
    The draws of all rows.

  >>> draw(0, 1, batch_size=3, count=4).images.tolist()
  [3, 0, 1]
  >>> whole = draw(0, 0, batch_size=8, count=4).images
  >>> sorted(whole[:4].tolist()), sorted(whole[4:].tolist())
  ([0, 1, 2, 3], [0, 1, 2, 3])
  """
  first = step * batch_size
  epochs, positions = np.divmod(np.arange(first, first + batch_size), count)
  images = np.empty(batch_size, np.int64)
  for epoch in np.unique(epochs):
    rows = epochs == epoch
    images[rows] = _order(seed, int(epoch), count)[positions[rows]]
  words = _words(seed, (first, 0, 0, _PLACE), 4 * batch_size)
  return Draws(images, (words.reshape(-1, 4)[:, :2] >> 11) * 2.0**-53)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
  """Returns an epoch's order of the images."""
  words = _words(seed, (0, epoch, 0, _ORDER), count)
  return np.argsort(words, kind="stable")


def _words(seed, counter, number):
  philox = np.random.Philox(
    key=seed % 2**64, counter=np.array(counter, np.uint64)
  )
  return philox.random_raw(number)
