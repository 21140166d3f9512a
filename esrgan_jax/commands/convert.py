"""Converts a weight file; the suffix of DST decides the format.

SRC is a name from `python -m esrgan_jax models`, or a .safetensors, .pth or
ncnn (.param with .bin) file of any dialect of the ESRGAN family. DST is a
.safetensors file, or a .pth where PyTorch is installed, in BasicSR's names: it
loads in chaiNNer, ComfyUI and spandrel as it is.
"""

from __future__ import annotations

import argparse
import os
import pathlib

from esrgan_jax import console, storage
from esrgan_jax.weights import files, zoo


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument("source", metavar="SRC", help="name or weight file")
  parser.add_argument("target", metavar="DST", help=".safetensors or .pth file")
  parser.add_argument(
    "--dtype",
    choices=("float32", "float16"),
    default="float32",
    help="type of the numbers in DST (default: %(default)s)",
  )
  parser.add_argument(
    "--scale",
    type=int,
    help="upscaling factor, for the rare file that does not tell (x3)",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace an existing DST"
  )


def run(args: argparse.Namespace) -> int:
  """Converts; returns the exit status."""
  out = console.make_console()
  source, metadata = args.source, {}
  _check_target(args.target, args.overwrite, source)
  if any(source == row.model.name for row in zoo.models()):
    model = zoo.get(source)
    with console.fetch_progress(model.name, quiet=False) as progress:
      source = os.fspath(zoo.find(model.name, progress=progress))
    metadata = {"source": model.source, "licence": model.licence}
    _check_target(args.target, args.overwrite, source)
  weights = files.read_weights(source, scale=args.scale)
  for note in weights.notes:
    out.print(f"note: {note}")
  path = files.write_weights(
    args.target,
    weights.params,
    weights.config,
    dtype=args.dtype,
    metadata=weights.metadata | metadata,
    overwrite=args.overwrite,
  )
  architecture, *fields = weights.config.items()
  config = " ".join(f"{k}={v}" for k, v in fields)
  out.print(f"{path}: {architecture[1]} {config}, {args.dtype}")
  return 0


def _check_target(target: str, overwrite: bool, source: str) -> None:
  both = [source, pathlib.Path(source).with_suffix(".bin")]  # As ncnn has it.
  inputs = storage.file_ids(both)
  files.check_target(target, overwrite=overwrite, inputs=inputs)
