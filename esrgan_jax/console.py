"""What programs print, and how they show progress.

Names of files and of what is in them are shown as they are: nothing in them is
markup, moves the cursor or breaks a line.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import rich.cells
import rich.console
import rich.progress
import rich.text

from esrgan_jax.text import escape_unencodable, printable, printable_lines

__all__ = [
  "Console",
  "TextColumn",
  "fetch_progress",
  "line",
  "lines",
  "make_console",
  "naming_stdout",
]


class Console(rich.console.Console):
  r"""A console that interprets nothing of what it is given.

  On a terminal, lines break between words; elsewhere they do not.

  >>> Console().print("a[/b]\x1b[31m\n", 1)
  a[/b]\x1b[31m\n 1
  """

  def __init__(self, **options: Any):
    options = {"soft_wrap": True} | options
    super().__init__(markup=False, highlight=False, emoji=False, **options)

  def print(self, *objects: Any, **options: Any) -> None:
    """Prints objects on one line; what rich renders, as it does."""
    shown = [
      each if hasattr(each, "__rich_console__") else line(each)
      for each in objects
    ]
    if self.is_terminal and all(isinstance(s, rich.text.Text) for s in shown):
      whole = " ".join(each.plain for each in shown)
      broken = (_broken(each, self.width) for each in whole.split("\n"))
      shown = [rich.text.Text("\n".join(broken))]
    with contextlib.nullcontext() if self.stderr else naming_stdout():
      super().print(*shown, **options)


@contextlib.contextmanager
def naming_stdout() -> Iterator[None]:
  """Gives an error of standard output its name.

  What could not be written is abandoned: Python would else try again at the
  end, and fail a second time.

  Raises:
    OSError: Of that name; a BrokenPipeError as it is.

  >>> with naming_stdout():
  ...   raise OSError(28, "No space left on device")
  Traceback (most recent call last):
  ...
  OSError: [Errno 28] No space left on device: 'standard output'
  """
  try:
    yield
  except BrokenPipeError:
    raise
  except OSError as error:
    with contextlib.suppress(OSError, ValueError):
      place = sys.stdout.fileno()
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, place)
      os.close(nowhere)
    reason = error.strerror or str(error)
    raise OSError(error.errno, reason, "standard output") from error


def _broken(line: str, width: int) -> str:
  """Breaks a line between words; one that is too long stays whole."""
  indentation = " " * (len(line) - len(line.lstrip(" ")))
  words = re.findall(r" *[^ ]+", line)
  broken, used = "", 0
  for word in words:
    size = rich.cells.cell_len(word)
    if used and used + size > width:
      word = indentation + word.lstrip(" ")
      broken += "\n"
      used, size = 0, rich.cells.cell_len(word)
    broken += word
    used += size
  return broken


def line(value: object) -> rich.text.Text:
  """Returns what any console shows as one line, with nothing interpreted."""
  return rich.text.Text(printable(value, limit=4000))


def lines(message: object) -> rich.text.Text:
  """Returns what any console shows of our own message, with its line breaks."""
  return rich.text.Text(printable_lines(message))


class TextColumn(rich.progress.TextColumn):
  """A column of a progress bar: a text in which nothing is interpreted."""

  def render(self, task: rich.progress.Task) -> rich.text.Text:
    """Returns what to show of a task."""
    return line(self.text_format.format(task=task))


def make_console(*, stderr: bool = False) -> Console:
  """Returns a console on stdout or stderr, which encodes whatever it gets."""
  escape_unencodable(sys.stdout, sys.stderr)
  return Console(stderr=stderr)


@contextlib.contextmanager
def fetch_progress(
  name: str, *, quiet: bool
) -> Iterator[Callable[[int, int | None], None]]:
  """Yields a callback that draws a download's bar once it is first called."""
  bar = rich.progress.Progress(
    TextColumn("fetching {task.description}"),
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
