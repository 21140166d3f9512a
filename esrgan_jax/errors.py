"""Arguments that cannot be used: the error, and the parser that tells of it."""

from __future__ import annotations

import argparse
from typing import NoReturn

from esrgan_jax.text import printable

__all__ = ["ArgumentParser", "UsageError"]


class UsageError(ValueError):
  """What was asked for cannot be used: a name, a number, two that exclude."""


class ArgumentParser(argparse.ArgumentParser):
  """Says what is wrong in a line, where argparse says all options first.

  Arguments are shown as text: a pattern may have put any file's name there.

  >>> ArgumentParser(prog="it").parse_args(["--none"])
  Traceback (most recent call last):
  ...
  SystemExit: 2
  """

  def error(self, message: str) -> NoReturn:
    """Ends the program with status 2."""
    hint = ""
    if message.startswith("unrecognized arguments: ") and " -" not in message:
      hint = " (a pattern that an option takes must be in quotes)"
    self.exit(
      2,
      f"error: {printable(message, limit=4000)}{hint}\n"
      f"`{self.prog} --help` explains the arguments\n",
    )
