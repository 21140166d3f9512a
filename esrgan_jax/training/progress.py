"""What a training run tells while it goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import rich.console
import rich.progress

from esrgan_jax import console as console_lib


class Progress:
  """A line that says how far a phase is, what it measures, and what is left.

  On a terminal, a bar that is redrawn; elsewhere a line each time that there
  are new measurements.

  Args:
    name: Of the phase.
    total: Its steps.
    start: Steps done before.
    console: Where to; None for nowhere, in processes other than the first.

  >>> with Progress("psnr", 10, 0, None) as progress:
  ...   progress.advance(1)
  """

  def __init__(
    self,
    name: str,
    total: int,
    start: int,
    console: rich.console.Console | None,
  ):
    self._name, self._total, self._start = name, total, start
    self._console = console
    self._began: float | None = None
    self._first = start
    self._bar: rich.progress.Progress | None = None
    if console and console.is_terminal:
      bar_width = min(max(console.width - 120, 5), 40)
      # Of a line, for measurements: without the name, the bar, the steps, the
      # time that is left and what lies between them.
      taken = len(name) + bar_width + 2 * len(str(total)) + len("left 99:59:59")
      self._room = console.width - taken - 6
      self._bar = rich.progress.Progress(
        console_lib.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width),
        rich.progress.MofNCompleteColumn(),
        console_lib.TextColumn("{task.fields[figures]}"),
        console_lib.TextColumn("left {task.fields[left]}"),
        console=console,
        transient=True,
      )
      self._task = self._bar.add_task(
        name, total=total, completed=start, figures="compiling", left="?"
      )

  def __enter__(self) -> Progress:
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    if self._bar:
      self._bar.stop()

  def advance(self, step: int) -> None:
    """Says that `step` steps are done."""
    if self._began is None:
      self._began, self._first = time.perf_counter(), step
    if self._bar:
      self._bar.update(self._task, completed=step, left=self._left(step))

  def show(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows measurements of a step."""
    if not self._console:
      return
    shown = [
      f"{name} {metrics[key]:{form}}"
      for key, name, form in _SHOWN
      if key in metrics
    ]
    figures = "  ".join(shown)
    if self._bar:
      while shown and len(figures) > self._room:
        shown.pop()
        figures = "  ".join(shown)
      self._bar.update(self._task, figures=figures)
    else:
      self._console.print(
        f"{self._name} {step}/{self._total}  {figures}  left {self._left(step)}"
      )

  def say(self, message: str) -> None:
    """Prints a line above the bar."""
    if self._console:
      self._console.print(console_lib.lines(message))

  def _left(self, step):
    if self._began is None or step == self._first:
      return "?"
    seconds = (time.perf_counter() - self._began) / (step - self._first)
    seconds *= self._total - step
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


@contextlib.contextmanager
def counting(
  title: str,
  console: rich.console.Console | None,
  *,
  every_seconds: float = 10.0,
) -> Iterator[Callable[[int, int], None] | None]:
  """Yields what shows how many of how many are done, from its first call on.

  On a terminal, a bar that goes away; elsewhere a line now and then.

  Args:
    title: What is done.
    console: Where to; None for nowhere.
    every_seconds: Time between lines, and before the first.

  Yields:
    A function of the number done and the number in all; None for nowhere.

  >>> with counting("decoding", None) as progress:
  ...   progress is None
  True
  """
  if not console:
    yield None
    return
  with contextlib.ExitStack() as stack:
    bar, task, said = None, None, time.perf_counter()

    def show(done, total):
      nonlocal bar, task, said
      if not console.is_terminal:
        if time.perf_counter() - said >= every_seconds:
          console.print(f"{title}: {done} of {total}")
          said = time.perf_counter()
        return
      if bar is None:
        bar = stack.enter_context(
          rich.progress.Progress(
            console_lib.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            transient=True,
          )
        )
        task = bar.add_task(title, total=total)
      bar.update(task, completed=done)

    yield show


_SHOWN = (
  ("g/pixel", "pixel", ".4f"),
  ("g/perceptual", "perceptual", ".4f"),
  ("g/adversarial", "adversarial", ".4f"),
  ("d/gap", "D gap", "+.3f"),
  ("images_per_second", "images/s", ".1f"),
  ("peak_share", "of peak", ".0%"),
  ("data_wait_share", "data wait", ".0%"),
)
