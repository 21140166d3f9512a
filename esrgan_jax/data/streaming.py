"""Batches of crops that Grain reads and decodes all the time."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

from esrgan_jax.data.batches import Placement
from esrgan_jax.data.draws import draw
from esrgan_jax.data.sources import DataError, Problem, Source

__all__ = ["Stream", "require_grain"]

# So many images in a row that cannot be read are no problem of theirs.
_MOST_UNREADABLE = 100

_log = logging.getLogger(__name__)


def require_grain() -> None:
  """Raises `DataError` if Grain is not installed."""
  try:
    import grain  # noqa: F401
  except ImportError as error:
    raise DataError(
      f'data.cache="stream" needs grain ({error}); pip install grain, or choose'
      ' "memmap"'
    ) from error


class Stream:
  """Batches of crops that Grain reads from a source."""

  def __init__(
    self, source: Source, place: Placement, threads: int, on_problem: str
  ):
    self.abstract_batch = place.abstract_batch
    self._source, self._place, self._threads = source, place, threads
    self._stops = on_problem == "stop"
    self._told, self._telling = set(), threading.Lock()
    # Grain asks for single rows, of several batches at a time.
    self._draw = functools.lru_cache(maxsize=64)(draw)

  def from_seed(self, seed: int) -> Callable[[int], Any]:
    """Returns what makes a phase's batches, by their steps."""
    count = len(self._place.rows)
    iterator, expected = None, None

    def batch(step):
      nonlocal iterator, expected
      if expected != step:
        iterator = self._read_from(seed, step * count)
      expected = None  # Until all have been read.
      local = self._place.empty()
      for i in range(count):
        local["lr"][i], local["hr"][i] = next(iterator)
      expected = step + 1
      return self._place.put(local)

    return batch

  def _read_from(self, seed, number):
    """Returns an iterator over this process's rows, from one of them on."""
    import grain

    options = grain.ReadOptions(
      num_threads=self._threads,
      prefetch_buffer_size=max(2 * len(self._place.rows), self._threads),
    )
    dataset = grain.MapDataset.range(sys.maxsize).map(
      functools.partial(self._read, seed)
    )
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": number})
    return iterator

  def _read(self, seed, number):
    """Reads the crop of a row, of the next image where it cannot be read."""
    step, row = divmod(number, len(self._place.rows))
    row, count = self._place.rows[row], len(self._source)
    drawn = self._draw(
      seed, step, batch_size=self._place.batch_size, count=count
    )
    place = tuple(drawn.places[row])
    for more in range(min(count, _MOST_UNREADABLE)):
      index = (int(drawn.images[row]) + more) % count
      try:
        return self._source.crop(index, place, self._place.size)
      except DataError as error:
        problem = Problem.of(self._source.names[index], error)
        if self._stops:
          raise DataError(
            f"{problem}. It could be read before: restore it, or choose"
            ' data.on_problem="skip"'
          ) from error
        self._tell(problem)
    raise DataError(
      f"{more + 1} images in a row cannot be read any more, the last one"
      f" {problem}; is their disk still there?"
    )

  def _tell(self, problem):
    with self._telling:
      new = problem.name not in self._told
      self._told.add(problem.name)
    if new:
      _log.warning("%s: the next image takes its place from now on", problem)
