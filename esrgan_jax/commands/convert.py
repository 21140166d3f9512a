"""Converts a weight file; the suffix of DST decides the format.

SRC is a name from `python -m esrgan_jax models`; a .safetensors, .pth or ncnn
(.param with .bin) file of any dialect of the ESRGAN family; or a workdir of
training, a phase's folder in it, or a checkpoint. DST is a .safetensors file,
or a .pth where PyTorch is installed, in BasicSR's names: it loads in chaiNNer,
ComfyUI and spandrel as it is. A .pth.tar is the same as a checkpoint, for
programs that look for its `state_dict`. A .jax is a program that runs without
this package: see docs/export.md. With --discriminator, it is what a training
had against its generator that is converted: of a workdir, or a file.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from esrgan_jax import console, export, storage
from esrgan_jax.errors import UsageError
from esrgan_jax.weights import discriminators, files, find, zoo


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "source", metavar="SRC", help="name, weight file or workdir"
  )
  parser.add_argument(
    "target", metavar="DST", help=".safetensors, .pth, .pth.tar or .jax file"
  )
  parser.add_argument(
    "--dtype",
    choices=export.DTYPES,
    default="float32",
    help="type of the numbers in DST (default: %(default)s)",
  )
  parser.add_argument(
    "--discriminator",
    action="store_true",
    help="convert SRC's discriminator, a UNetDiscriminatorSN, for BasicSR's"
    " pretrain_network_d or config.init_discriminator",
  )
  parser.add_argument(  # As it was called.
    "--scale", type=int, dest="model_scale", help=argparse.SUPPRESS
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace an existing DST"
  )


def run(args: argparse.Namespace) -> int:
  """Converts; returns the exit status."""
  out = console.make_console()
  if args.discriminator:
    return _convert_discriminator(args, out)
  _check_target(args.target, args.overwrite, args.source)
  with console.fetch_progress(args.source, quiet=False) as progress:
    place = find.locate(args.source, progress=progress)
  _check_target(args.target, args.overwrite, place.path)
  config = find.read_config(args.config)
  weights = find.read(place, scale=args.model_scale, config=config).weights
  find.check_scale(place.name, weights.config, args.model_scale)
  for note in weights.notes:
    out.print(f"note: {note}")
  path = export.write(
    args.target, weights, dtype=args.dtype, overwrite=args.overwrite
  )
  architecture, *fields = weights.config.items()
  config = " ".join(f"{k}={v}" for k, v in fields)
  out.print(f"{path}: {architecture[1]} {config}, {args.dtype}")
  return 0


def _convert_discriminator(args: argparse.Namespace, out: Any) -> int:
  if args.dtype != "float32":
    raise UsageError(
      f"--dtype is {args.dtype}, and a discriminator is written in float32:"
      " leave it out"
    )
  if args.config or args.model_scale:
    raise UsageError(
      "a discriminator has no scale, and tells its fields itself: leave"
      " --config and --scale out"
    )
  if zoo.lookup(args.source):
    raise UsageError(
      f"{args.source} is a generator: a model that has a name comes without its"
      " discriminator; give a workdir or a file"
    )
  # Before the source is read, which takes longer.
  remote = storage.is_remote(args.source)
  target = files.check_output(
    args.target,
    overwrite=args.overwrite,
    inputs=() if remote else storage.file_ids([args.source]),
  )
  found = find.find_discriminator(args.source)
  for note in found.notes:
    out.print(f"note: {note}")
  if "architecture" not in found.config:
    raise ValueError(
      f"{args.source} does not say which network its discriminator is"
    )
  path = discriminators.write_discriminator(
    target, found.variables, found.config, overwrite=args.overwrite
  )
  fields = dict(found.config)
  name = fields.pop("architecture")
  config = " ".join(f"{k}={v}" for k, v in fields.items())
  out.print(f"{path}: {name} {config}, float32")
  return 0


def _check_target(target: str, overwrite: bool, source: Any) -> None:
  inputs = ()
  if not storage.is_remote(source):
    source = pathlib.Path(source)
    # As ncnn has it.
    both = [source, source.parent / f"{source.stem}.bin"]
    inputs = storage.file_ids(both)
  export.check_target(target, overwrite=overwrite, inputs=inputs)
