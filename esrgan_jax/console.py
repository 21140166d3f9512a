"""What the commands print, and how they show progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress


def make_console(*, stderr: bool = False) -> rich.console.Console:
  """Returns a console that neither wraps nor interprets what it is given."""
  return rich.console.Console(
    stderr=stderr, soft_wrap=True, markup=False, highlight=False, emoji=False
  )


@contextlib.contextmanager
def fetch_progress(
  name: str, *, quiet: bool
) -> Iterator[Callable[[int, int | None], None]]:
  """Yields a callback that draws a download's bar once it is first called."""
  bar = rich.progress.Progress(
    rich.progress.TextColumn("fetching {task.description}"),
    rich.progress.BarColumn(),
    rich.progress.DownloadColumn(),
    rich.progress.TransferSpeedColumn(),
    rich.progress.TimeRemainingColumn(),
    console=make_console(stderr=True),
    transient=True,
    disable=quiet,
  )
  task = None

  def update(done: int, total: int | None) -> None:
    nonlocal task
    if task is None:
      bar.start()
      task = bar.add_task(name, total=total)
    bar.update(task, completed=done, total=total)

  try:
    yield update
  finally:
    if task is not None:
      bar.stop()
