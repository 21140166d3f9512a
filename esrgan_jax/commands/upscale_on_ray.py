"""`upscale --engine ray`: the same, on the machines of a Ray cluster."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from esrgan_jax import images, storage
from esrgan_jax.commands import arguments
from esrgan_jax.errors import UsageError
from esrgan_jax.text import printable
from esrgan_jax.upscaling import names, pipes
from esrgan_jax.upscaling.inputs import Input

__all__ = ["add_arguments", "check_unused", "run"]

_SUFFIXES = {*images.OUTPUT_SUFFIXES, *images.ANIMATION_SUFFIXES}
_ONE_OR_SEVERAL = _SUFFIXES - {*images.OUTPUT_SUFFIXES}
_OF_RAY = ("ray_address", "ray_workers", "ray_device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what says where it runs."""
  group = parser.add_argument_group("many machines (docs/many_machines.md)")
  group.add_argument(
    "--engine",
    choices=("local", "ray"),
    default="local",
    help="ray: workers on a Ray cluster, of this machine alone unless"
    " --ray-address or RAY_ADDRESS names another; inputs and OUT may be"
    " addresses such as s3://bucket/folder, and OUT gets a manifest, by which"
    " what is done is not done again (default: %(default)s)",
  )
  group.add_argument(
    "--ray-address",
    metavar="HOST:PORT",
    help="the cluster; auto: the one that this machine is of",
  )
  group.add_argument(
    "--ray-workers",
    type=_limits,
    metavar="[MIN:]MAX",
    help="how many workers there may be, and how many are kept as long as there"
    " is work (default: 1 and as many as the cluster has room for)",
  )
  group.add_argument(
    "--ray-device",
    choices=("cpu", "gpu", "tpu"),
    help="what each worker has one of; of cpu, all of a machine's (default: gpu"
    " where the cluster has any, else tpu, else cpu)",
  )


def check_unused(args: argparse.Namespace) -> None:
  """Raises if something says how to use a cluster, and none is wanted."""
  for name in _OF_RAY:
    if getattr(args, name) is not None:
      raise UsageError(f"--{name.replace('_', '-')} goes with --engine ray")
  for text in (*args.inputs, args.output or ""):
    if text.startswith(("http://", "https://")):
      raise UsageError(
        f"{printable(text)} is an address of the web: fetch the image, and give"
        " the file"
      )
    if storage.is_remote(text) and not os.path.lexists(text):
      raise UsageError(
        f"{printable(text)} is in a bucket, which takes --engine ray"
      )


@dataclasses.dataclass(eq=False)
class _Part:
  """An image as the bar counts it: by its bytes, for nobody has its header."""

  work: int


def run(
  args: argparse.Namespace,
  report: Any,
  prepare: Callable[..., tuple[Any, names.Naming, Any]],
) -> int:
  """Upscales all inputs on a cluster.

  Args:
    args: The command's.
    report: Says what is to be said.
    prepare: Returns the model, the naming and the settings.

  Returns:
    The exit status.
  """
  out = _folder(args)
  from esrgan_jax.cluster import driver, engine, worker

  address = driver.find_ray(args.ray_address)
  found = engine.find_sources(args.inputs, recursive=args.recursive, out=out)
  for note in found.notes:
    report.say(f"note: {note}")
  for problem in found.problems:
    report.fail(problem)
  if not found.found:
    return 1
  if args.dry_run:
    for each in found.found:
      report.say(f"{each.address} -> {out}")
    report.say(f"{_count(len(found.found))}; nothing was done")
    return report.status
  least, most = args.ray_workers or (1, None)
  kind = args.ray_device and args.ray_device.upper()
  began = time.perf_counter()
  with driver.connected(address):
    workers = driver.Workers(driver.find_kind(kind), least, most)
    platforms = _stay_off_devices()
    if args.precision == "auto":
      on_cpu = workers.kind == "CPU"
      args.precision = "float32" if on_cpu else "bfloat16"
    model, naming, settings = prepare(args, report)
    sources = _without_collisions(found.found, naming, out, report)
    job = worker.Job(
      out=out,
      naming=naming,
      settings=settings,
      only_smaller=args.only_smaller,
      skip_existing=args.skip_existing,
      overwrite=args.overwrite,
      plugins=engine.sources_of(args.plugin),
      platforms="cpu" if workers.kind == "CPU" else platforms,
    )
    counts = _run(sources, model, job, workers, report, shown=args.output)
  made, same = counts["made"], counts["same"]
  seconds = time.perf_counter() - began
  hosts = len(counts["hosts"])
  report.say(
    f"{_count(made)}, {counts['pixels'] / 1e6:.1f} megapixels in"
    f" {seconds:.1f} s with {model.name}"
    + f" on {hosts} machine{'s' * (hosts > 1)}" * (hosts > 0)
    + f"; {same} done before" * (same > 0)
    + f"; {report.failures} failed" * (report.failures > 0)
  )
  return report.status


def _run(sources, model, job, workers, report, *, shown):
  """Upscales images, and tells of each."""
  from esrgan_jax.cluster import engine, places

  counts = {"made": 0, "same": 0, "pixels": 0, "hosts": set()}
  parts = {each: _Part(each.size) for each in sources}
  done = engine.upscale(
    sources,
    model,
    job,
    workers,
    notify=lambda message: report.say(f"note: {message}"),
  )
  with (
    report.progress([*parts.values()]) as bar,
    contextlib.closing(done),  # While there is a cluster.
  ):
    bar.tell("starting")
    for source, reply in done:
      row = reply.row
      name = printable(source.address)
      for note in row.notes:
        report.say(f"{name}: {note}")
      if reply.state == "made":
        counts["made"] += 1
        counts["pixels"] += row.width * row.height * row.frames
        counts["hosts"].add(row.node)
        frames = f"{row.frames} of " if row.frames > 1 else ""
        report.say(
          f"{places.join(shown, row.result)}  {frames}{row.width} x"
          f" {row.height}, {row.seconds:.1f} s on {row.node}"
        )
      elif reply.state == "same":
        counts["same"] += 1
      elif reply.state == "failed":
        error = row.error
        report.fail(error if name in error else f"{name}: {error}")
      bar.finish(parts[source])
      bar.tell(f"{bar.finished}/{len(sources)}")
  return counts


def _folder(args):
  """Returns OUT, a whole path or an address; raises if it is no folder."""
  piped = [text for text in args.inputs if pipes.is_pipe(text)]
  if piped or pipes.is_stdout(args.output):
    raise UsageError("--engine ray takes files and a folder, no pipes")
  if args.output is None:
    raise UsageError(
      "--engine ray needs -o OUT, a folder that all machines see"
    )
  for text in args.inputs:
    if text.rstrip("/") == args.output.rstrip("/"):
      raise UsageError(f"{printable(text)} is OUT as well; give another folder")
  if storage.is_remote(args.output):
    return args.output.rstrip("/")
  suffix = pathlib.Path(args.output).suffix.lower()
  if suffix in _SUFFIXES and not os.path.isdir(args.output):
    raise UsageError(
      f"{args.output} is a file's name; give a folder, for results and manifest"
    )
  folder, _ = names.output_of(args.output, 2)
  out = os.path.abspath(folder)
  for text in args.inputs:
    if (
      os.path.isdir(text) and os.path.isdir(out) and os.path.samefile(text, out)
    ):
      raise UsageError(f"{printable(text)} is OUT as well; give another folder")
  return out


def _without_collisions(sources, naming, out, report) -> Sequence[Any]:
  """Returns images whose results have names of their own."""
  inputs = {each.address for each in sources}
  placed = dataclasses.replace(naming, folder=pathlib.Path())
  taken: dict[str, str] = {}
  kept = []
  for each in sources:
    image = Input(pathlib.Path(each.address), pathlib.PurePath(each.below))
    try:
      if image.path.suffix.lower() in _ONE_OR_SEVERAL and not naming.format:
        raise ValueError("what its file holds decides on its result's name")
      target = f"{out}/{placed.target(image).as_posix()}"
    except ValueError:
      kept.append(each)  # Its worker sees to it.
      continue
    other = taken.setdefault(target, each.address)
    if target in inputs:
      report.fail(
        f"{each.address}: its result would replace the input {target}"
      )
    elif other != each.address:
      report.fail(
        f"{each.address}: its result {target} is that of {other} as well;"
        " --name '{name}_{type}' or '{folder}_{name}' tells them apart"
      )
    else:
      kept.append(each)
  return kept


def _stay_off_devices() -> str:
  """Has this process compute nothing: accelerators are the workers'.

  Returns:
    What workers may run on.
  """
  import jax

  wanted = os.environ.get("JAX_PLATFORMS", "")
  jax.config.update("jax_platforms", "cpu")
  return wanted


def _count(number: int) -> str:
  return f"{number} image{'' if number == 1 else 's'}"


def _limits(text: str) -> tuple[int, int]:
  least, _, most = text.rpartition(":")
  least, most = arguments.natural(least or "1"), arguments.natural(most)
  if not 1 <= least <= most:
    raise argparse.ArgumentTypeError(f"{text} is not MIN:MAX such as 1:8")
  return least, most
