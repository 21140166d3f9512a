"""Makes what is asked for by number ahead of time, in a thread."""

from __future__ import annotations

import collections
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Pipeline"]


class Pipeline:
  """Batches by number, made ahead in a thread.

  Attributes:
    wait_seconds: How long the last call of `batch` blocked.

  >>> with Pipeline(lambda step: step * 10) as pipeline:
  ...   [pipeline.batch(step) for step in (0, 1, 7)]
  [0, 10, 70]
  """

  def __init__(self, produce: Callable[[int], Any], *, prefetch: int = 2):
    self.wait_seconds = 0.0
    self._produce = produce
    self._prefetch = prefetch
    self._ahead: _Ahead | None = None
    self._stop = lambda: None

  def batch(self, step: int) -> Any:
    """Returns the batch of a step; cheapest in rising order.

    Args:
      step: Number of the step, from 0; any order is possible.

    Returns:
      A pytree of arrays for `Data.preprocess`; do not donate it.

    Raises:
      ValueError: If `step` is negative.
      Exception: Whatever went wrong in the thread that makes batches.
    """
    if step < 0:
      raise ValueError(f"step is {step}; steps count from 0")
    begin = time.perf_counter()
    if self._ahead is None or self._ahead.next_step != step:
      self._stop()
      self._ahead = _Ahead(self._produce, step, self._prefetch)
      # A daemon that still talks to JAX when Python ends brings it down: the
      # finalizer also runs at exit.
      self._stop = weakref.finalize(self, self._ahead.stop)
    try:
      return self._ahead.take()
    except BaseException:
      self.close()
      raise
    finally:
      self.wait_seconds = time.perf_counter() - begin

  def close(self) -> None:
    """Ends the thread; `batch` would start it again."""
    self._stop()
    self._ahead = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


class _Ahead:
  """One run of the thread: makes batches from a step on, `depth` ahead."""

  def __init__(self, produce, step, depth):
    self.next_step = step
    self._made = collections.deque()
    self._depth = max(depth, 1)
    self._changed = threading.Condition()
    self._stopped = False
    self._thread = threading.Thread(
      target=self._run, args=(produce, step), name="esrgan-data", daemon=True
    )
    self._thread.start()

  def _run(self, produce, step):
    while not self._stopped:
      try:
        made = produce(step), None
      except BaseException as error:
        made = None, error
      with self._changed:
        self._made.append(made)
        self._changed.notify_all()
        if made[1] is not None:
          return
        self._changed.wait_for(
          lambda: self._stopped or len(self._made) < self._depth
        )
      step += 1

  def take(self):
    with self._changed:
      self._changed.wait_for(lambda: self._made)
      batch, error = self._made.popleft()
      self._changed.notify_all()
    if error is not None:
      raise error
    self.next_step += 1
    return batch

  def stop(self):
    with self._changed:
      self._stopped = True
      self._made.clear()
      self._changed.notify_all()
    # The collector may finalize a pipeline in any thread, this one included.
    if threading.current_thread() is not self._thread:
      self._thread.join()
