"""Mixes two models of one structure: between faithful and full of detail.

  python -m esrgan_jax interpolate PSNR GAN --alpha 0.8 -o mixed.safetensors
  python -m esrgan_jax interpolate runs/mine runs/mine --alpha 0.2 0.5 -o mixes/
  python -m esrgan_jax interpolate runs/mine runs/mine --alpha 0.2 -o mixed

The result is (1 - alpha) * A + alpha * B, weight by weight. B must have been
trained from A, as ESRGAN's GAN phase is from its PSNR phase. A and B are names,
weight files, workdirs, phases' folders in them, or checkpoints; of a workdir, A
is the model of its first phase (PSNR) and B that of its last (GAN). The last of
these lines writes an Orbax checkpoint: see docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from esrgan_jax import console, export, storage
from esrgan_jax.errors import UsageError
from esrgan_jax.weights import checkpoints, find, mixing
from esrgan_jax.weights.files import Weights

_ALPHA = "{alpha}"
_NAME = f"interpolated_{_ALPHA}.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument("a", metavar="A", help="the model at alpha 0 (PSNR)")
  parser.add_argument("b", metavar="B", help="the model at alpha 1 (GAN)")
  parser.add_argument(
    "--alpha",
    type=_alpha,
    nargs="+",
    default=[mixing.DEFAULT_ALPHA],
    metavar="ALPHA",
    help="share of B; several give several files (default:"
    f" {mixing.DEFAULT_ALPHA})",
  )
  parser.add_argument(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    help="a .safetensors or .pth file, or a new folder for an Orbax checkpoint;"
    " for several alphas a name with {alpha} in it, or a folder (with / at its"
    " end), which gets interpolated_ALPHA.safetensors",
  )
  parser.add_argument(
    "--dtype",
    choices=export.DTYPES,
    default="float32",
    help="type of the numbers in a file OUT (default: %(default)s)",
  )
  parser.add_argument(  # As it was called.
    "--scale", type=int, dest="model_scale", help=argparse.SUPPRESS
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace existing files"
  )


def run(args: argparse.Namespace) -> int:
  """Interpolates; returns the exit status."""
  out = console.make_console()
  targets = _targets(args.output, args.alpha)
  _check_targets(targets.values(), args)
  pair = mixing.find_pair(
    args.a,
    args.b,
    scale=args.model_scale,
    config=find.read_config(args.config),
    progress=functools.partial(console.fetch_progress, quiet=False),
  )
  for note in pair.notes:
    out.print(f"note: {note}")
  _check_targets(targets.values(), args, [pair.first.path, pair.last.path])
  for alpha, path in targets.items():
    _write(path, pair.mix(alpha), args)
    out.print(f"{path}: {pair.said(alpha)}")
  return 0


def _alpha(text: str) -> float:
  try:
    return mixing.read_alpha(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def _targets(output: str, alphas: Sequence[float]) -> dict[float, Any]:
  """Returns where each model goes; names carry alpha in full."""
  alphas = list(dict.fromkeys(alphas))
  suffix = pathlib.PurePath(output).suffix
  for field in re.findall(r"\{[A-Za-z]\w*\}", output):
    if field != _ALPHA:
      raise UsageError(f"OUT is {output}: {_ALPHA} is filled in, not {field}")
  if output.endswith(("/", os.sep)):
    output += _NAME
  elif not export.suffix_of(output):
    if re.fullmatch(r"\.[A-Za-z]\w*", suffix):
      raise UsageError(
        f"cannot write {output}: give a name that ends in"
        f" {' or '.join(export.suffixes())}, a new folder for a checkpoint, or"
        " one for files (with / at its end)"
      )
    if len(alphas) > 1 and _ALPHA not in output:
      output = f"{output}/{_NAME}"
  elif len(alphas) > 1 and _ALPHA not in output:
    raise UsageError(
      f"{len(alphas)} models cannot go to one file {output}: put {_ALPHA} into"
      " its name, or give a folder"
    )
  make = storage.absolute if storage.is_remote(output) else pathlib.Path
  return {alpha: make(output.replace(_ALPHA, repr(alpha))) for alpha in alphas}


def _is_checkpoint(path: Any) -> bool:
  return not export.suffix_of(path)


def _check_targets(
  paths: Iterable[Any],
  args: argparse.Namespace,
  inputs: Iterable[os.PathLike[str]] = (),
) -> None:
  ids = storage.file_ids(inputs)
  for path in paths:
    for folder in list(path.parents)[:2]:
      if _has_a_checkpoint(folder):
        raise UsageError(
          f"{path} would lie in the checkpoint {folder}: give a place outside"
        )
    if not _is_checkpoint(path):
      export.check_target(
        path, overwrite=args.overwrite, inputs=ids, make_folder=True
      )
      continue
    if args.dtype != "float32":
      raise UsageError(
        f"{path} is a checkpoint, of float32: {args.dtype} is for files"
      )
    try:
      checkpoints.check_folder(path)
    except FileExistsError as error:
      if not path.is_dir() or _has_a_checkpoint(path):
        raise
      raise FileExistsError(f"{error}; for a file in it say {path}/") from error


def _has_a_checkpoint(folder: Any) -> bool:
  """Whether a folder is a checkpoint or a part of one, whole or damaged."""
  parts = ("_METADATA", "_CHECKPOINT_METADATA", "info/metadata")
  with storage.reaching(folder):
    return any((folder / part).exists() for part in parts)


def _write(path: Any, mixed: Weights, args: argparse.Namespace) -> None:
  if not _is_checkpoint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    export.write(path, mixed, dtype=args.dtype, overwrite=args.overwrite)
    return
  checkpoints.save_checkpoint(
    path,
    mixed.params,
    mixed.config,
    collections=mixed.collections,
    metadata=mixed.metadata,
  )
