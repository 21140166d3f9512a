"""Lists the models that have a name, and which of them are here.

A model is used by its name, e.g. `python -m esrgan_jax upscale --model NAME`.
Those that are not here are fetched when they are first used, and their checksum
is compared before each use.
"""

from __future__ import annotations

import argparse

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
  width = max(len(row.model.name) for row in rows)
  for row in rows:
    model = row.model
    if row.path:
      state = "here"
    elif model.package:
      state = "to be installed"
    elif model.url:
      state = "fetched when used"
    else:
      state = "fetched by hand"
    default = " (default)" if model.name == zoo.DEFAULT else ""
    out.print(
      f"{model.name:{width}}  x{model.scale}  {_network(model):20}"
      f"  {model.licence:12}  {state:17}  {model.description}{default}"
    )
    if args.verbose:
      out.print(f"  source  {model.source}")
      for label, value in (
        ("page", model.page),
        ("url", model.url),
        ("install", model.install and f"pip install '{model.install}'"),
        ("file", row.path or model.filename),
        ("sha256", model.sha256),
      ):
        if value:
          out.print(f"  {label:7} {value}")
  out.print()
  out.print(f"fetched models are kept in {storage.cache_dir()}")
  return 0


def _network(model: zoo.ZooModel) -> str:
  fields = " ".join(f"{key}={value}" for key, value in model.fields.items())
  return f"{model.architecture} {fields}"
