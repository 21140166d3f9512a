"""What one worker does: a model that stays warm, and images that come by turns.

Images go the way of one machine, `upscaling.plan` and `upscaling.files`. Each
result is made aside; then a row for the manifest is written, and then it gets
its name. So whoever comes after a worker that died can tell what it had done.
Nothing in here knows Ray.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import os
import pathlib
import pickle
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

import jax

from esrgan_jax import __version__, storage
from esrgan_jax.cluster import manifest, places
from esrgan_jax.text import explain
from esrgan_jax.upscaling import names
from esrgan_jax.upscaling.inputs import Input

__all__ = ["Image", "Job", "Reply", "Worker"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
# Errors for which another machine may have none: of its disks, its memory, its
# devices.
_OF_MACHINES = OSError, MemoryError, jax.errors.JaxRuntimeError
_THREADS = 4
_PIECE = 2**22


@dataclasses.dataclass(frozen=True)
class Image:
  """An image to be done.

  Attributes:
    number: Of this job.
    address: Its path, or its address in a bucket.
    below: See `Input`.
    size: Its bytes.
    known: Digest of what is done already, and is there.
    own: Names below OUT that this program made of it before; they may be
      replaced.
    again: Whether another worker has been at it, in this run. It may have ended
      after its result was there; out of reach only, it may be at it still.
  """

  number: int
  address: str
  below: str
  size: int
  known: str | None = None
  own: tuple[str, ...] = ()
  again: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What is wanted of all images alike.

  Attributes:
    run: A name for this run.
    out: The folder for results, a path or an address.
    model_digest: Of the model's weights and structure.
    naming: How results are called; its folder is any.
    settings: How they are made.
    only_smaller: See `make_plan`.
    skip_existing: Likewise.
    overwrite: Likewise.
    plugins: The text of Python files by the names of their modules, which the
      pickle needs.
    platforms: What JAX may run on; nothing: what it finds.
  """

  run: str = ""
  out: str
  model_digest: str = ""
  naming: names.Naming
  settings: object
  only_smaller: bool = False
  skip_existing: bool = False
  overwrite: bool = False
  plugins: Mapping[str, str] = dataclasses.field(default_factory=dict)
  platforms: str = ""

  @property
  def digest(self) -> bytes:
    """Of what decides on results, besides the image."""
    settings = dataclasses.asdict(self.settings)
    # What says how a result was made names the program's version.
    settings["record"] = settings["record"] is not None
    for name in ("max_pixels", "overwrite"):
      del settings[name]
    naming = dataclasses.asdict(self.naming)
    del naming["folder"], naming["file"]
    said = (self.model_digest, sorted(settings.items()), sorted(naming.items()))
    return hashlib.sha256(repr((*said, self.only_smaller)).encode()).digest()


@dataclasses.dataclass(frozen=True)
class Reply:
  """What became of an image.

  Attributes:
    number: The image's.
    row: For the manifest.
    state: "made", "same" (it was done already), "left" (it exists, or is large
      enough), "failed", or "trouble": failed for what may be otherwise on
      another machine.
    full: Whether the trouble is a disk without room.
  """

  number: int
  row: manifest.Row
  state: str
  full: bool = False


def _digest_of(path, job):
  """Returns the digest of an image with a job's model and settings.

  A Zarr's is of all files in it, and of their names.
  """
  digest = hashlib.sha256(job.digest)
  files = [path]
  if path.is_dir():
    files = sorted(each for each in path.rglob("*") if each.is_file())
  for each in files:
    if each != path:
      name = os.fsencode(each.relative_to(path))
      digest.update(b"%d %s %d " % (len(name), name, each.stat().st_size))
    with open(each, "rb") as file:
      while piece := file.read(_PIECE):
        digest.update(piece)
  return digest.hexdigest()


@dataclasses.dataclass
class _Task:
  """An image on a worker.

  Attributes:
    image: The image.
    path: Where its bytes are.
    folder: Where its results are made.
    row: What is known of it.
    job: What `upscale_files` is to make of it.
  """

  image: Image
  path: pathlib.Path
  folder: pathlib.Path | None
  row: manifest.Row
  job: object = None


class Worker:
  """Upscales images for one driver.

  Args:
    job: What is wanted.
    model: An `Upscaler`'s pickle.
  """

  def __init__(self, job: Job, model: bytes):
    self._job, self._pickle = job, model
    self._model = None
    self._computing = threading.Lock()
    self._node = socket.gethostname()
    self._pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    if job.platforms:
      jax.config.update("jax_platforms", job.platforms)

  def hello(self) -> tuple[str, str, str]:
    """Loads the model.

    Returns:
      Who this is: the machine, and the program's version; and why it cannot
      work: nothing, or the message of what was raised.
    """
    try:
      self._load()
    except Exception as error:  # A network's module, a driver: anything.
      return self._node, __version__, explain(error)
    return self._node, __version__, ""

  def run(self, images: Sequence[Image]) -> Iterator[Reply]:
    """Yields what became of images, each as soon as it is known.

    Two threads may do so at a time: one reads while the other computes.
    """
    with contextlib.ExitStack() as stack:
      try:
        scratch = stack.enter_context(storage.scratch_folder())
      except OSError as error:  # The disk is full, say.
        for image in images:
          path = pathlib.Path(image.address)
          row = manifest.Row(input=image.address, node=self._node)
          yield self._failed(_Task(image, path, None, row), error)
        return
      aside = scratch / "out"
      if not storage.is_remote(self._job.out):
        aside = pathlib.Path(manifest.run_folder(self._job.out, self._job.run))
      prepared = self._pool.map(
        lambda image: self._prepare(image, scratch, aside), images
      )
      tasks = []
      for each in prepared:
        if isinstance(each, Reply):
          yield each
        else:
          tasks.append(each)
      if tasks:
        with self._computing:
          yield from self._compute(tasks)

  def _prepare(
    self, image: Image, scratch: pathlib.Path, aside: pathlib.Path
  ) -> _Task | Reply:
    """Fetches an image, and plans what to make of it."""
    from esrgan_jax.upscaling import plan

    job = self._job
    row = manifest.Row(input=image.address, node=self._node)
    # Nobody else's, even if another worker is at the same image.
    folder = aside / f"{image.number}.{secrets.token_hex(4)}"
    path = pathlib.Path(image.address)
    try:
      if ".." in pathlib.PurePath(image.below).parts:
        message = f"{image.address}: its name leads out of {job.out}"
        task = _Task(image, path, folder, row)
        return self._failed(task, ValueError(message))
      if storage.is_remote(image.address):
        *_, parent, name = pathlib.PurePosixPath("_", image.address).parts
        # A name may ask for that of the folder.
        path = scratch / str(image.number) / parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        places.copy_here(image.address, path)
      row = dataclasses.replace(row, digest=_digest_of(path, job))
      task = _Task(image, path, folder, row)
      if image.known == row.digest:
        return Reply(image.number, row, "same")
      folder.mkdir(parents=True, exist_ok=True)
      found = plan.make_plan(
        [Input(path, pathlib.PurePath(image.below))],
        dataclasses.replace(job.naming, folder=folder),
        only_smaller=job.only_smaller,
        consistent=job.settings.consistent,
        seamless=job.settings.seamless,
        in_pieces=job.settings.pieces,
        max_pixels=job.settings.max_pixels,
      )
    except (OSError, MemoryError) as error:
      task = _Task(image, path, folder, row)
      return self._failed(task, error)
    if found.large:
      row = dataclasses.replace(row, notes=("is large enough, left alone",))
      return Reply(image.number, row, "left")
    if found.problems:
      return self._failed(task, ValueError(found.problems[0]))
    [task.job] = found.jobs
    try:
      for target in task.job.targets:
        name = target.relative_to(folder).as_posix()
        # No folder of somebody's is replaced, as on one machine.
        may_replace = job.overwrite and target.suffix.lower() != ".zarr"
        if (
          may_replace or self._is_ours(name, image) or not self._is_there(name)
        ):
          continue
        if job.skip_existing:
          row = dataclasses.replace(
            row, notes=("exists, skipped",), digest=None
          )
          return Reply(image.number, row, "left")
        way_out = "" if job.overwrite else ", or give --overwrite"
        raise FileExistsError(
          f"{places.join(job.out, name)} exists already, and is not of this"
          f" image by the manifest; choose another folder{way_out}"
        )
    except OSError as error:
      return self._failed(task, error)
    return task

  def _is_there(self, name: str) -> bool:
    """Whether there is such a file, or a Zarr, which is a folder."""
    if name.lower().endswith(".zarr"):
      return bool(places.sizes_of(self._job.out, name))
    return places.size_of(places.join(self._job.out, name)) is not None

  def _is_ours(self, name: str, image: Image) -> bool:
    """Whether a file that may be there is this program's, of this image.

    Of this run, for it has a row, which is written before the result.
    """
    if _is_own(name, image):
      return True
    if not image.again:
      return False
    file = manifest.row_file(self._job.out, self._job.run, image.number)
    try:
      row = manifest.from_json(places.read(file))
    except (FileNotFoundError, ValueError):  # None, or a part of one.
      return False
    return row.result in _wholes(name)

  def _compute(self, tasks: Sequence[_Task]) -> Iterator[Reply]:
    from esrgan_jax.upscaling import files

    of = {task.job: task for task in tasks}
    outcomes = files.upscale_files(
      self._load(), [task.job for task in tasks], self._job.settings
    )
    publishing = []
    with contextlib.closing(outcomes):
      for job, outcome in outcomes:
        finish = self._pool.submit(self._finish, of[job], outcome)
        publishing.append(finish)
        while publishing and publishing[0].done():
          yield publishing.pop(0).result()
    for each in publishing:
      yield each.result()

  def _load(self):
    if self._model is None:
      from esrgan_jax import compilation

      compilation.enable_compilation_cache(storage.cache_dir() / "xla")
      for name, text in self._job.plugins.items():
        _run_plugin(name, text)
      self._model, self._pickle = pickle.loads(self._pickle), b""
    return self._model

  def _finish(self, task: _Task, outcome: object) -> Reply:
    """Gives a result its name, after a row that tells of it."""
    if isinstance(outcome, Exception):
      return self._failed(task, outcome)
    job, folder = self._job, task.folder
    made = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    row = dataclasses.replace(
      task.row,
      result=task.job.target.relative_to(folder).as_posix(),
      width=outcome.width,
      height=outcome.height,
      frames=outcome.frames,
      files=len(made),
      bytes=sum(path.stat().st_size for path in made),
      seconds=outcome.seconds,
      notes=tuple(self._said(task, note) for note in outcome.notes),
    )
    number = task.image.number
    try:
      name = manifest.row_file(job.out, job.run, number)
      places.write(name, manifest.to_json(row))
      below = [path.relative_to(folder).as_posix() for path in made]
      if task.job.target.suffix.lower() == ".zarr":
        # What is all zero has no file: one of before would stand for it.
        for name in places.sizes_of(job.out, row.result).keys() - {*below}:
          places.remove(places.join(job.out, name))
      for path, name in zip(made, below, strict=True):
        places.publish(
          path,
          places.join(job.out, name),
          overwrite=(
            job.overwrite or _is_own(name, task.image) or task.image.again
          ),
        )
        # Whatever comes, this one is ours.
        task.row = dataclasses.replace(task.row, earlier=row.result)
    except Exception as error:
      return self._failed(task, error)
    places.remove_folder(str(folder))
    return Reply(number, row, "made")

  def _failed(self, task: _Task, error: Exception) -> Reply:
    """Tells why there is no result, and removes what there is of it."""
    if task.folder:
      places.remove_folder(str(task.folder))
    row = dataclasses.replace(
      task.row, error=self._said(task, explain(error)), result=None
    )
    cause = error.__cause__
    if isinstance(cause, MemoryError) or (
      isinstance(cause, OSError) and cause.errno is not None
    ):
      error = cause  # Of the system; what decoders find has no number.
    elsewhere = isinstance(error, _OF_MACHINES) and not isinstance(
      error, FileExistsError
    )
    full = getattr(error, "errno", None) in _FULL
    state = "trouble" if elsewhere else "failed"
    return Reply(task.image.number, row, state, full=elsewhere and full)

  def _said(self, task: _Task, message: str) -> str:
    """Names the image and OUT where a message names our copies."""
    out = self._job.out.rstrip("/")
    if task.folder:
      message = message.replace(str(task.folder), out)
    return message.replace(str(task.path), task.image.address)


def _is_own(name: str, image: Image) -> bool:
  """Whether a file may be replaced, for what this program made before."""
  return not _wholes(name).isdisjoint(image.own)


def _wholes(name: str) -> set[str]:
  """Returns what a file may be all of, or a part of: itself, and its folders.

  >>> sorted(_wholes("deep/a.zarr/c/0"))
  ['deep', 'deep/a.zarr', 'deep/a.zarr/c', 'deep/a.zarr/c/0']
  """
  path = pathlib.PurePosixPath(name)
  return {each.as_posix() for each in (path, *path.parents)} - {"."}


def _run_plugin(name: str, text: str) -> None:
  """Runs a driver's plugin under the name by which the pickle knows it."""
  if name in sys.modules:
    return
  spec = importlib.util.spec_from_loader(name, loader=None)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  try:
    exec(compile(text, f"<plugin {name}>", "exec"), module.__dict__)
  except BaseException:
    del sys.modules[name]
    raise
