"""Arguments that several commands have."""

from __future__ import annotations

import argparse

from esrgan_jax import images

__all__ = ["add_max_pixels", "add_precision", "natural"]


def add_precision(parser: argparse.ArgumentParser) -> None:
  """Adds --precision, as `compilation.compute_dtype` takes it.

  >>> parser = argparse.ArgumentParser()
  >>> add_precision(parser)
  >>> parser.parse_args([]).precision
  'auto'
  """
  parser.add_argument(
    "--precision",
    choices=("auto", "float32", "bfloat16"),
    default="auto",
    help="auto: bfloat16 on GPU and TPU; float32 on CPU, of which some are a"
    " little faster in bfloat16, and none as exact (default: auto)",
  )


def add_max_pixels(
  parser: argparse.ArgumentParser, *, refused: str = ""
) -> None:
  """Adds --max-pixels.

  Args:
    parser: The command's.
    refused: What else it refuses.

  >>> parser = argparse.ArgumentParser()
  >>> add_max_pixels(parser)
  >>> parser.parse_args(["--max-pixels", "80"]).max_pixels
  80
  """
  claims = "those that claim far more than their bytes make believable"
  what = f"{claims}, and {refused}" if refused else f"and {claims}"
  parser.add_argument(
    "--max-pixels",
    type=natural,
    default=images.MAX_PIXELS,
    metavar="N",
    help=f"refuse larger images, {what} (default: %(default)s)",
  )


def natural(text: str) -> int:
  """Reads a whole number from 0 on.

  Raises:
    argparse.ArgumentTypeError: If it is none.

  >>> natural("80")
  80
  """
  if not text.strip().isdecimal():
    raise argparse.ArgumentTypeError(f"{text} is not a number such as 0 or 80")
  return int(text)
