"""Lists the models that have a name, and which of them are here.

A model is used by its name, e.g. `python -m esrgan_jax upscale --model NAME`.
Those that are not here are fetched when they are first used, and their checksum
is compared before each use; what is brought by hand may have none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from esrgan_jax import console, storage
from esrgan_jax.weights import zoo


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "-v",
    "--verbose",
    action="store_true",
    help="also print each model's source, checksum and file",
  )


def run(args: argparse.Namespace) -> int:
  """Prints a line a model; returns the exit status."""
  out = console.make_console()
  rows = zoo.models()
  lines = [_line(row, rows) for row in rows]
  # One that a terminal is too narrow for is a paragraph.
  narrow = out.is_terminal and max(map(len, lines)) > out.width
  for row, line in zip(rows, lines, strict=True):
    model = row.model
    if narrow:
      out.print(f"{model.name}{_default(model)}")
      out.print(f"  {model.description}")
      details = f"x{model.scale}", _network(model), model.licence, _state(row)
      out.print(f"  {', '.join(details)}")
    else:
      out.print(line)
    if args.verbose:
      out.print(f"  source  {model.source}")
      for label, value in (
        ("page", model.page),
        ("url", model.url),
        ("install", model.install and f"pip install '{model.install}'"),
        ("file", row.path or model.filename),
        ("sha256", model.sha256 or "none is published"),
      ):
        if value:
          out.print(f"  {label:7} {value}")
  out.print()
  out.print(f"fetched models are kept in {storage.cache_dir()}")
  return 0


def _line(row: zoo.Row, rows: Sequence[zoo.Row]) -> str:
  model = row.model
  width = max(len(each.model.name) for each in rows)
  network_width = max(len(_network(each.model)) for each in rows)
  return (
    f"{model.name:{width}}  x{model.scale}  {_network(model):{network_width}}"
    f"  {model.licence:12}  {_state(row):17}  {model.description}"
    f"{_default(model)}"
  )


def _default(model: zoo.ZooModel) -> str:
  return " (default)" if model.name == zoo.DEFAULT else ""


def _state(row: zoo.Row) -> str:
  if row.path:
    return "here"
  if row.model.package:
    return "to be installed"
  return "fetched when used" if row.model.url else "fetched by hand"


def _network(model: zoo.ZooModel) -> str:
  fields = [f"{key}={value}" for key, value in model.fields.items()]
  return " ".join([model.architecture, *fields])
