"""Writes a model as a program of another runtime, and has it run a photo first.

  python -m esrgan_jax export realesrgan-x4plus --format onnx -o x4plus.onnx
  python -m esrgan_jax export runs/mine --format saved_model -o esrgan.tar.gz
  python -m esrgan_jax export runs/mine --format tflite --size 99 -o a.tflite

MODEL is a name, a weight file, a workdir, or a checkpoint. The other runtime
opens what was written in a process without this package, and its result is held
against the model's: beyond the format's bound, nothing is written. What OUT is,
and who opens it: docs/export.md. With --check, OUT is there already, and is
only run and compared.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from esrgan_jax import console, images, storage
from esrgan_jax.export import programs
from esrgan_jax.weights import find


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "model", metavar="MODEL", help="name, weight file or workdir"
  )
  parser.add_argument(
    "--format",
    required=True,
    metavar="FORMAT",  # A plugin may bring others.
    help="; ".join(f"{p.name}: {p.title}" for p in programs.programs()),
  )
  parser.add_argument(
    "-o", "--output", required=True, metavar="OUT", help="file or folder"
  )
  parser.add_argument(
    "--dtype",
    metavar="TYPE",
    help="type of the numbers: "
    + "; ".join(
      f"{p.name}: {' or '.join(p.bounds)}" for p in programs.programs()
    )
    + " (default: the first)",
  )
  parser.add_argument(
    "--size",
    type=_size,
    metavar="HxW",
    help="for images of this size only: onnx and tflite (default: any size)",
  )
  parser.add_argument(
    "--photo",
    metavar="FILE",
    help="try it on the middle of this photo (default: one that comes along)",
  )
  parser.add_argument(
    "--check",
    action="store_true",
    help="write nothing: compare an OUT that is there with MODEL",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace an existing OUT"
  )


def run(args: argparse.Namespace) -> int:
  """Exports; returns the exit status."""
  out = console.make_console()
  program = programs.find_program(args.format)
  dtype = args.dtype or next(iter(program.bounds))
  options = programs.Options(dtype, args.size)
  _check_target(args, options, args.model)
  photo = None
  if args.photo:
    photo = _pixels(args.photo)
  with console.fetch_progress(args.model, quiet=False) as progress:
    place = find.locate(args.model, progress=progress)
  _check_target(args, options, place.path)
  config = find.read_config(args.config)
  weights = find.read(place, scale=args.model_scale, config=config).weights
  find.check_scale(place.name, weights.config, args.model_scale)
  for note in weights.notes:
    out.print(f"note: {note}")
  if args.check:
    path, *_ = programs.paths_of(program, args.output)
    checked = programs.verify(program, path, weights, options, photo=photo)
  else:
    with _converters_quiet():
      written = programs.export(
        args.format,
        args.output,
        weights,
        options,
        photo=photo,
        overwrite=args.overwrite,
      )
    checked = written.checked
  sizes = " and ".join(
    f"{f'{n} of ' if n > 1 else ''}{h}x{w}" for n, h, w in checked.sizes
  )
  out.print(
    f"{programs.runtime_version(program)} ran it on a photo ({sizes}): largest"
    f" difference from the model {checked.difference:.2g} of 1, PSNR"
    f" {checked.psnr:.1f} dB"
  )
  if not args.check:
    paths = " and ".join(map(str, written.paths))
    out.print(f"{paths}: {program.title}; {dtype}")
  out.print("done")
  return 0


@contextlib.contextmanager
def _converters_quiet() -> Iterator[None]:
  """Keeps from the terminal what TensorFlow's C++ says of the machine."""
  sys.stderr.flush()
  try:
    terminal = os.dup(2)
  except OSError:  # It is closed.
    yield
    return
  try:
    with open(os.devnull, "wb") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(terminal, 2)
    os.close(terminal)


def _size(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text)
  if not match or not int(match[1]) or not int(match[2] or 1):
    raise argparse.ArgumentTypeError(
      f"{text} is no size: give one such as 128 or 96x128"
    )
  return int(match[1]), int(match[2] or match[1])


def _check_target(
  args: argparse.Namespace, options: programs.Options, source: Any
) -> None:
  if args.check:
    programs.check_export(args.format, args.output, options)
    return
  inputs = ()
  if not storage.is_remote(source):
    source = pathlib.Path(source)
    # As ncnn has it.
    inputs = storage.file_ids([source, source.parent / f"{source.stem}.bin"])
  programs.check_target(
    args.format, args.output, options, overwrite=args.overwrite, inputs=inputs
  )


def _pixels(path: str) -> Any:
  pixels = images.read_image(path).pixels
  if pixels.dtype != "uint8" or pixels.shape[-1] != 3:
    raise ValueError(f"{path} is no RGB image of 8 bits: give another photo")
  return pixels
