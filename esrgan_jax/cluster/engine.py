"""A job on a cluster, from what is in OUT already to the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import pickle
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from esrgan_jax import plugins, storage, video
from esrgan_jax.cluster import driver, manifest, places, worker
from esrgan_jax.text import explain, printable
from esrgan_jax.upscaling.identity import digest_of_model
from esrgan_jax.upscaling.inputs import find_inputs
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = [
  "Found",
  "Source",
  "find_sources",
  "sources_of",
  "upscale",
]

# Seconds between manifests of a job that runs, for those who look.
_EVERY = 60.0


@dataclasses.dataclass(frozen=True)
class Source:
  """An image that is meant.

  Attributes:
    address: Its whole path, or its address in a bucket.
    below: See `upscaling.inputs.Input`.
    size: Its bytes.
  """

  address: str
  below: str
  size: int


@dataclasses.dataclass(frozen=True)
class Found:
  """As `upscaling.inputs.Inputs`, on a disk or in a bucket."""

  found: tuple[Source, ...]
  notes: tuple[str, ...]
  problems: tuple[str, ...]


def find_sources(texts: Sequence[str], *, recursive: bool, out: str) -> Found:
  """Finds the images that texts stand for, as `find_inputs`; in buckets, too.

  Args:
    texts: Files, folders and patterns; addresses of such.
    recursive: Whether a folder's subfolders are meant as well.
    out: The folder for results, which is not looked into.
  """
  remote = [text for text in texts if storage.is_remote(text)]
  local = find_inputs(
    [text for text in texts if text not in remote],
    recursive=recursive,
    results=None if storage.is_remote(out) else out,
  )
  problems = [*local.problems]
  found: dict[str, Source] = {}
  for each in local.found:
    if video.is_clip(each.path):
      problems.append(
        f"{printable(each.path)}: clips are upscaled on one machine; leave out"
        " --engine ray"
      )
      continue
    address = os.path.abspath(each.path)
    size = os.stat(address).st_size
    found[address] = Source(address, each.below.as_posix(), size)
  for text in remote:
    try:
      listed = places.find_images(text, recursive=recursive)
    except (OSError, ValueError) as error:
      problems.append(explain(error))
      continue
    for each in listed:
      if not each.address.startswith(f"{out.rstrip('/')}/"):
        source = Source(each.address, each.below, each.size)
        found.setdefault(each.address, source)
  return Found(tuple(found.values()), local.notes, tuple(problems))


def sources_of(names: Sequence[str]) -> dict[str, str]:
  """Returns the text of plugins that are files, by the names of their modules.

  Those of the variable `ESRGAN_JAX_PLUGINS` are among them.

  The modules of a network are found by name where a model's pickle is read;
  those that are installed are so there as well.
  """
  given = os.environ.get(plugins.VARIABLE, "").split(os.pathsep)
  files = map(pathlib.Path, (*filter(None, given), *names))
  paths = {path.resolve() for path in files if path.is_file()}
  return {
    name: path.read_text()
    for name, module in list(sys.modules.items())
    if (file := getattr(module, "__file__", None))
    and name != "__main__"
    and (path := pathlib.Path(file)).resolve() in paths
  }


def upscale(
  sources: Sequence[Source],
  model: Upscaler,
  job: worker.Job,
  workers: driver.Workers,
  *,
  notify: Callable[[str], None],
) -> Iterator[tuple[Source, worker.Reply]]:
  """Upscales images on the cluster that is connected; keeps the manifest.

  Args:
    sources: The images.
    model: The model.
    job: What is wanted; its run and its digest of the model are filled in.
    workers: See `driver.upscale`.
    notify: Called with a sentence when something happened to the cluster.

  Yields:
    What became of each image, in the order in which they end.

  Raises:
    OSError: If OUT cannot be read or written, or another command writes there.
    ValueError: If there is another file of the manifest's name.
  """
  with places.claimed(job.out):
    yield from _upscale(sources, model, job, workers, notify)


def _upscale(sources, model, job, workers, notify):
  """Upscales images into a folder that is this process's alone."""
  out = job.out
  job = dataclasses.replace(
    job, run=secrets.token_hex(8), model_digest=digest_of_model(model)
  )
  rows = manifest.read(out)
  there = places.sizes_below(out)
  left = manifest.take_over(out, rows, there)
  contents = manifest.Contents(there)
  images = []
  for number, source in enumerate(sources):
    row = rows.get(source.address)
    done = row is not None and contents.has_result_of(row)
    images.append(
      worker.Image(
        number,
        source.address,
        source.below,
        source.size,
        known=row.digest if done and not job.overwrite else None,
        own=tuple(filter(None, (row.result, row.earlier))) if row else (),
      )
    )
  manifest.write(out, rows.values())  # Now, if it cannot be at all.
  for folder in left:
    places.remove_folder(folder)
  written = time.monotonic()
  replies = driver.upscale(
    images, job, pickle.dumps(model), workers, notify=notify
  )
  try:
    with contextlib.closing(replies):
      for reply in replies:
        row = reply.row
        if reply.state == "failed" and (before := rows.get(row.input)):
          earlier = row.earlier or before.result or before.earlier
          row = dataclasses.replace(row, earlier=earlier)
        if reply.state in ("made", "failed") or (
          reply.state == "left" and row.digest
        ):
          rows[row.input] = row
        yield sources[reply.number], reply
        if time.monotonic() - written > _EVERY:
          manifest.write(out, rows.values())
          written = time.monotonic()
  except BaseException:
    # Workers have done more than they have said: their rows stay, for the next
    # command, as they do if this cannot be written.
    with contextlib.suppress(OSError):
      manifest.write(out, rows.values())
    raise
  manifest.write(out, rows.values())
  places.remove_folder(manifest.run_folder(out, job.run))
