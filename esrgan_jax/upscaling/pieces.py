"""One image larger than memory: read, upscaled and written in pieces.

Its tiles go through the same windows and devices as those of any image
(`stream.py`), so that the result is the same. What they give lies in a folder
beside the result: rows of the image on their way as they are, and what of them
is whole packed as it will stay. A journal tells how far that is; a process that
was killed goes on at the next tile.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from esrgan_jax import __version__, extras, images, storage
from esrgan_jax.images import large, zarr_arrays
from esrgan_jax.images.encoders import tiff, tiff_pieces
from esrgan_jax.images.fitting import fit_metadata
from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.upscaling import memory, photo, stream
from esrgan_jax.upscaling.identity import digest_of_file, digest_of_model
from esrgan_jax.upscaling.result_size import ResultSize
from esrgan_jax.upscaling.upscaler import Upscaler

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None

__all__ = [
  "BUDGET",
  "MODES",
  "SUFFIXES",
  "outgrows",
  "takes",
  "upscale",
  "why_not",
]

# Bytes of image and result, decoded, above which they are not held in memory.
BUDGET = 2**30
MODES = ("auto", "always", "never")
SUFFIXES = (".tif", ".tiff", ".zarr")
_JOURNAL = "journal"
# Seconds of work that may be lost where tiles take less.
_OFTEN = 2.0


def outgrows(samples: int, result_samples: int, itemsize: int = 1) -> bool:
  """Tells whether an image and its result are more than memory should hold.

  Args:
    samples: Of the image: height x width x channels.
    result_samples: Likewise, of the result.
    itemsize: Bytes of one.

  >>> outgrows(4000 * 3000 * 3, 16 * 4000 * 3000 * 3)
  False
  >>> outgrows(8000 * 8000 * 3, 16 * 8000 * 8000 * 3)
  True
  """
  free = memory.free_host_memory()
  budget = BUDGET if free is None else min(BUDGET, free // 4)
  return (samples + result_samples) * itemsize > budget


def why_not(
  target: pathlib.Path,
  *,
  several: bool = False,
  seamless: str | None = None,
  consistent: bool = False,
) -> str | None:
  """Says why an image cannot be upscaled in pieces; None if it can.

  Args:
    target: Of the result.
    several: Whether the image has frames or pages.
    seamless: See `photo.upscale_photo`.
    consistent: Likewise.

  >>> why_not(pathlib.Path("a.png"))
  'results in pieces are .tif, .tiff or .zarr, not .png'
  >>> why_not(pathlib.Path("a.tif")) is None
  True
  """
  suffix = target.suffix.lower()
  if suffix not in SUFFIXES:
    *most, last = SUFFIXES
    return (
      f"results in pieces are {', '.join(most)} or {last}, not"
      f" {printable(suffix)}"
    )
  if suffix == ".zarr" and not zarr_arrays.can_write():
    return f"Zarr needs a package: {extras.pip_install('zarr')}"
  if several:
    return "it has several pictures, and pieces are of one"
  if seamless:
    return "edges that meet (--seamless) are not joined in pieces"
  if consistent:
    return "--consistent looks at the whole image, not at pieces"
  if not hasattr(os, "pwrite"):
    return "this system cannot write in the middle of files (pwrite)"
  return None


def takes(model: Upscaler) -> bool:
  """Tells whether a model's images can go through it in pieces."""
  return registry.channels(model.net) == (3, 3)


def upscale(
  model: Upscaler,
  source: pathlib.Path,
  target: pathlib.Path,
  *,
  size: ResultSize | None = None,
  tile: int | str = "auto",
  exact: bool = False,
  halo: int | None = None,
  record: str | None = None,
  max_pixels: int = images.MAX_PIXELS,
  overwrite: bool = False,
  progress: Callable[[int, int], None] | None = None,
  tell: Callable[[str], None] = lambda _: None,
) -> tuple[tuple[int, int], tuple[str, ...]]:
  """Upscales an image file into a BigTIFF, in pieces.

  If it is interrupted, by a signal or a full disk, what is done stays, in a
  folder beside the result; the same call goes on with it. The result is, byte
  by byte, that of a call that was not.

  Args:
    model: Upscales the pixels, of three channels.
    source: The image. Of a TIFF, tiles or strips are decoded as they are
      wanted; others are decoded whole.
    target: The result; its suffix is one of `SUFFIXES`.
    size: Of the result; None: what the model gives. Another one is resized to,
      by Lanczos.
    tile: See `Upscaler.upscale`.
    exact: Likewise.
    halo: Likewise.
    record: A line on how it was made, for the metadata.
    max_pixels: See `images.read_image`.
    overwrite: Whether an existing result is replaced.
    progress: Called with the number of tiles done and in all.
    tell: Called with sentences on what happens.

  Returns:
    Height and width of the result, and sentences on what it could not keep.

  Raises:
    ImageError: If the image cannot be read. What is done stays where memory is
      short, or a disk or its server fails, and not the image.
    ValueError: If such a network's images are not upscaled in pieces.
    FloatingPointError: As `Upscaler.upscale`.
    OutOfMemoryError: Likewise.
    OSError: If the result cannot be written, or another process writes it.

  >>> import tempfile
  >>> from esrgan_jax.upscaling.upscaler import load
  >>> model = load("realesrgan-x4plus-anime")
  >>> grey = images.Image(np.full((6, 8, 1), 200, np.uint8))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   source, target = (pathlib.Path(folder, n) for n in ("a.png", "a.tif"))
  ...   _ = images.write_image(source, grey)
  ...   size, _ = upscale(model, source, target)
  ...   size, sorted(path.name for path in source.parent.iterdir())
  ((24, 32), ['a.png', 'a.tif'])
  """
  if not takes(model):
    raise ValueError(
      f"{printable(source)}: in pieces, images go through networks of three"
      f" channels, and this one has {registry.channels(model.net)[0]}; give"
      " another --model, or --pieces never"
    )
  storage.check_output(
    target, overwrite=overwrite, inputs=storage.file_ids([source])
  )
  with large.open_large(source, max_pixels=max_pixels) as picture:
    wanted = (size or ResultSize()).of(picture.shape, model_scale=model.scale)
    identity = {
      "size": list(wanted),
      "version": __version__,
      "input": _digest_of(source),
      "model": digest_of_model(model),
      "platform": jax.local_devices()[0].platform,
      "tile": tile,
      "exact": exact,
      "halo": halo,
      "record": record,
      "format": target.suffix.lower(),
    }
    with _Journal.opened(target, identity, tell) as journal:
      run = _Run(model, picture, target, wanted, journal, progress, tell)
      try:
        notes = run.run(tile=tile, exact=exact, halo=halo, record=record)
      except OSError as error:
        raise _stopped(target, error) from error
      except (ValueError, FloatingPointError) as error:
        if not (journal.state and _may_pass(error)):
          journal.remove()  # Nobody could go on with it.
          raise
        raise images.ImageError(
          f"{error}; what is done is kept: the same command goes on there"
        ) from error.__cause__
      storage.publish(run.path, target, overwrite=overwrite)
      journal.remove()
  return wanted, (*picture.notes, *notes)


def _stopped(target: pathlib.Path, error: OSError) -> OSError:
  """Says what can be done about an error that stopped it."""
  reason = error.strerror or str(error)
  full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  way_out = "make room, and the same command" if full else "the same command"
  return storage.WriteError(
    f"{target} cannot be written: {printable(reason)}; what is done is kept:"
    f" {way_out} goes on there"
  )


def _may_pass(error: Exception) -> bool:
  """Whether an image that could not be read may be so another time."""
  cause = error.__cause__
  return isinstance(cause, MemoryError) or (
    # Of the system; what decoders find in damaged files has no other number.
    isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL)
  )


def _digest_of(path: pathlib.Path) -> str:
  if not path.is_dir():
    return digest_of_file(path)
  text = zarr_arrays.stamps(path)
  return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class _Journal:
  """How far a result is, in a folder that outlives the process.

  Attributes:
    folder: Where all of it lies.
    begun: What the first process has written of its choices, or None.
    state: What the last one has marked.
  """

  def __init__(self, folder: pathlib.Path, identity: dict[str, Any]):
    self.folder, self._identity = folder, identity
    self._file = os.open(
      folder / _JOURNAL,
      os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0),
      0o666,
    )
    try:
      self._lock()
      self.begun, self.state = self._read()
    except BaseException:
      os.close(self._file)
      raise

  @classmethod
  @contextlib.contextmanager
  def opened(
    cls,
    target: pathlib.Path,
    identity: dict[str, Any],
    tell: Callable[[str], None],
  ) -> Iterator[_Journal]:
    """Opens that of a result, input, model and settings; makes it if need be.

    Args:
      target: The result.
      identity: What it is made of, and how.
      tell: Called with a sentence on what else lies there.
    """
    text = json.dumps(identity, sort_keys=True)
    own = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = target.name
    while len(os.fsencode(name)) > 200:
      name = name[:-1]
    if target.exists():  # It may be a link to elsewhere.
      target = pathlib.Path(os.path.realpath(target))
    folder = target.with_name(f".{name}.{own}.part")
    try:
      # Nobody else's, as what it replaces may be.
      folder.mkdir(mode=0o700, exist_ok=True)
      journal = cls(folder, identity)
    except OSError as error:
      if isinstance(error, storage.WriteError):
        raise
      raise storage.WriteError(
        f"{target} cannot be written: {error.strerror}"
      ) from error
    try:
      others = sorted(
        path
        for path in target.parent.glob(f".{_escaped(name)}.*.part")
        if path != folder and (path / _JOURNAL).is_file()
      )
      if others:
        tell(
          f"note: {printable(others[0])} is of another model, image or setting;"
          " remove it if that is not gone on with"
        )
      yield journal
    finally:
      journal.close()

  def _lock(self) -> None:
    if fcntl is None:
      return
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise storage.WriteError(
        f"{self.folder}: another process is at the same result; wait for it"
      ) from None
    except OSError:
      pass  # No locks on this file system.

  def _read(self) -> tuple[dict[str, Any] | None, dict[str, int]]:
    """Returns what is there, as far as it is whole."""
    size = os.fstat(self._file).st_size
    text = os.pread(self._file, size, 0)
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole.splitlines()
    try:
      begun, *states = [json.loads(line) for line in lines]
      if begun.pop("identity") == self._identity:
        os.ftruncate(self._file, len(whole))
        return begun, states[-1] if states else {}
    except (ValueError, KeyError, AttributeError):
      pass
    return None, {}

  def begin(self, choices: dict[str, Any]) -> None:
    """Begins, perhaps anew: what lies there is of nobody."""
    for path in self.folder.iterdir():
      if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
      elif path.name != _JOURNAL:
        path.unlink()
    os.ftruncate(self._file, 0)
    self._append({"identity": self._identity, **choices})
    self.begun, self.state = choices, {}

  def put(self, state: dict[str, int]) -> None:
    """Marks how far it is."""
    self._append(state)
    self.state = state

  def _append(self, line: dict[str, Any]) -> None:
    end = os.fstat(self._file).st_size
    data = json.dumps(line).encode() + b"\n"
    while data:
      count = os.pwrite(self._file, data, end)
      data, end = data[count:], end + count
    os.fsync(self._file)

  def close(self) -> None:
    """Lets others at it; where nothing was marked, nothing stays."""
    if not self.state and self.folder.is_dir():
      self.remove()
    os.close(self._file)

  def remove(self) -> None:
    """Removes all of it."""
    shutil.rmtree(self.folder, ignore_errors=True)


def _escaped(name: str) -> str:
  """Returns a name as a pattern that it alone matches."""
  return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@dataclasses.dataclass(frozen=True)
class _Source:
  """One plane of a picture, as the network gets it, read as it is wanted.

  Attributes:
    picture: Of which windows are read.
    part: "pixels", "alpha", or the number of a further sample.
    shape: `[H, W, C]`, multiples of the network's.
    margin: How far around a window what is seen gives its colour to what is
      transparent; 0: nothing is.
  """

  picture: large.Large
  part: str | int
  shape: tuple[int, int, int]
  margin: int = 0

  @property
  def dtype(self) -> np.dtype:
    """Of its samples."""
    return self.picture.dtype

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    # Beyond the picture, it is mirrored (`tiles.pad_to_multiple`).
    wanted = [
      _mirrored(part, length)
      for part, length in zip(window, self.picture.shape, strict=False)
    ]
    rows, columns = (
      slice(
        max(int(each.min()) - self.margin, 0),
        min(int(each.max()) + 1 + self.margin, length),
      )
      for each, length in zip(wanted, self.picture.shape, strict=False)
    )
    found = self.picture.read(rows, columns)
    if self.part == "pixels":
      pixels = found.pixels
      if self.margin and found.alpha is not None:
        pixels = images.bleed_colour(pixels, found.alpha)
    elif self.part == "alpha":
      pixels = found.alpha[..., None]
    else:
      pixels = found.extra[..., self.part, None]
    down, across = wanted
    if down.size == rows.stop - rows.start and (
      across.size == columns.stop - columns.start
    ):
      return pixels
    return pixels[(down - rows.start)[:, None], across - columns.start]


def _mirrored(part: slice, length: int) -> np.ndarray:
  """Returns which of so many pixels stand where there are more."""
  numbers = np.arange(part.start, part.stop)
  beyond = numbers >= length
  if part.stop - length < length:
    numbers[beyond] = 2 * (length - 1) - numbers[beyond]
  else:
    numbers[beyond] = length - 1
  return numbers


class _Row:
  """What a row of tiles gives of a plane, in a file.

  Args:
    path: The file.
    top: The result's row that it begins with.
    shape: `[H, W, C]` of all of the result's plane.
    dtype: Of the result.
  """

  def __init__(
    self,
    path: pathlib.Path,
    top: int,
    shape: tuple[int, int, int],
    dtype: np.dtype,
  ):
    self._path, self._top, self.shape, self.dtype = path, top, shape, dtype
    self._file: int | None = None

  def __setitem__(self, part: tuple[slice, slice], pixels: np.ndarray) -> None:
    rows, columns = part
    _, W, C = self.shape
    size = C * self.dtype.itemsize
    pixels = np.ascontiguousarray(pixels)
    if columns.start == 0 and columns.stop == W:
      pixels = pixels[None]
    for row, line in enumerate(pixels, rows.start - self._top):
      data, at = line.reshape(-1).view(np.uint8), row * W + columns.start
      at *= size
      while data.size:
        count = os.pwrite(self._opened(), data, at)
        data, at = data[count:], at + count

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns rows of the result: `[stop - start, W, C]`."""
    _, W, C = self.shape
    row = W * C * self.dtype.itemsize
    at, end = (start - self._top) * row, (stop - self._top) * row
    out = bytearray()
    while at < end:
      data = os.pread(self._opened(), min(end - at, 2**30), at)
      if not data:
        raise OSError(f"{self._path} is shorter than it was")
      out += data
      at += len(data)
    return np.frombuffer(out, self.dtype).reshape(stop - start, W, C)

  def _opened(self) -> int:
    if self._file is None:
      flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
      self._file = os.open(self._path, flags, 0o666)
    return self._file

  def is_there(self) -> bool:
    """Whether something was written."""
    return self._path.is_file()

  def sync(self) -> None:
    """Has what was written outlive whatever comes."""
    if self._file is not None:
      os.fsync(self._file)

  def close(self) -> None:
    """Closes the file, which stays."""
    if self._file is not None:
      os.close(self._file)
      self._file = None

  def remove(self) -> None:
    """Removes the file."""
    self.close()
    self._path.unlink(missing_ok=True)


class _Run:
  """One process's work on a result.

  Attributes:
    path: The file that is whole at the end.
  """

  path: pathlib.Path

  def __init__(
    self,
    model: Upscaler,
    picture: large.Large,
    target: pathlib.Path,
    size: tuple[int, int],
    journal: _Journal,
    progress: Callable[[int, int], None] | None,
    tell: Callable[[str], None],
  ):
    self._model, self._picture, self._target = model, picture, target
    self._journal, self._progress, self._tell = journal, progress, tell
    # Of the result, and of what the model gives, which may be resized to it.
    self._size = size
    self._native = tuple(side * model.scale for side in picture.shape[:2])
    self._lock = threading.Lock()
    self._marked = time.monotonic()

  def run(
    self,
    *,
    tile: int | str,
    exact: bool,
    halo: int | None,
    record: str | None,
  ) -> tuple[str, ...]:
    """Does what is left to do; returns what the result could not keep."""
    journal, picture = self._journal, self._picture
    begun = journal.begun
    survey = picture.survey(begun and large.Survey(**begun["survey"]))
    engine = self._model.engine(
      tile=begun["tile"] if begun else tile, exact=exact, halo=halo
    )
    H, W, C = picture.shape
    multiple = registry.size_multiple(self._model.net)
    padded = tuple(-(-side // multiple) * multiple for side in (H, W))
    plan = engine.settle(padded, picture.dtype)
    if begun is None:
      choices = {"tile": engine.tile, "survey": dataclasses.asdict(survey)}
      journal.begin(choices)
    elif engine.tile != begun["tile"]:
      raise memory.OutOfMemoryError(
        f"{self._target} was begun with tiles of {begun['tile']} pixels, for"
        f" which there is too little memory now; free some, or remove"
        f" {journal.folder} to begin anew"
      )
    self._even = survey.alpha
    self._planes: list[tuple[str | int, int]] = [("pixels", C)]
    if picture.has_alpha and self._even is None:
      self._planes.append(("alpha", 1))
    self._planes += [(number, 1) for number in range(picture.further)]
    self._grid = [
      list(row)
      for _, row in itertools.groupby(plan.pieces, lambda piece: piece.rows)
    ]
    picture.expect(plan.shape.height + 2 * engine.halo)
    metadata = picture.metadata
    if record:
      metadata = dataclasses.replace(metadata, record=record)
    is_zarr = self._target.suffix.lower() == ".zarr"
    metadata, notes = fit_metadata(
      metadata,
      self._size[::-1],
      "Zarr" if is_zarr else "TIFF",
      channels=C,
      holds=() if is_zarr else ("icc_profile", "exif", "xmp"),
    )
    self._kinds = tiff.kinds_of(
      metadata, picture.further, alpha=picture.has_alpha
    )
    self._rows = [
      [self._row(number, plane) for plane in range(len(self._planes))]
      for number in range(len(self._grid))
    ]
    state = journal.state
    mark = {k: n for k, n in state.items() if k != "pieces"} or None
    if is_zarr:
      self._sink = zarr_arrays.ZarrPieces(
        journal.folder,
        metadata=metadata,
        size=self._size,
        channels=C + len(self._kinds),
        colours=C,
        dtype=picture.dtype,
        layout=getattr(picture, "layout", None),
        levels=picture.levels is not None,
        scales=(self._size[0] / H, self._size[1] / W),
        mark=mark,
      )
    else:
      self._sink = tiff_pieces.TiffPieces(
        journal.folder,
        metadata=metadata,
        size=self._size,
        channels=C,
        kinds=self._kinds,
        dtype=picture.dtype,
        levels=picture.levels,
        mark=mark,
      )
    self._mark = self._sink.mark()
    try:
      self._upscale(engine, padded, state.get("pieces", 0))
      self._sink.reduce(self._reduced)
      self.path = self._sink.finish()
    finally:
      self._sink.close()
      for row in itertools.chain(*self._rows):
        row.close()
    return notes

  def _row(self, number: int, plane: int) -> _Row:
    top, _ = self._span(number)
    _, channels = self._planes[plane]
    return _Row(
      self._journal.folder / f"row.{number}.{plane}",
      top,
      (*self._native, channels),
      self._picture.dtype,
    )

  def _span(self, number: int) -> tuple[int, int]:
    """Returns where in what the model gives a row of tiles begins and ends."""
    rows, scale = self._grid[number][0].rows, self._model.scale
    return (
      rows.keep_start * scale,
      min(rows.keep_stop * scale, self._native[0]),
    )

  def _needs(self, start: int, stop: int) -> tuple[int, int]:
    """Returns the rows of what the model gives that rows of the result need."""
    if self._size == self._native:
      return start, stop
    height = self._native[0]
    ratio = height / self._size[0]
    # As far as Pillow's Lanczos looks, and a row for rounding.
    margin = math.ceil(3 * max(ratio, 1)) + 1
    return (
      max(math.floor(start * ratio) - margin, 0),
      min(math.ceil(stop * ratio) + margin, height),
    )

  def _is_packed(self, number: int) -> bool:
    """Whether what a row of tiles gives is needed no more."""
    rows = self._sink.rows
    if rows == self._size[0]:
      return True
    return self._span(number)[1] <= self._needs(rows, rows + 1)[0]

  def _upscale(
    self, engine: stream.Engine, padded: tuple[int, int], done: int
  ) -> None:
    """Computes the tiles that are not there yet, and packs what is whole."""
    across, planes = len(self._grid[0]), len(self._planes)
    self._total = len(self._grid) * planes * across
    # What was removed by somebody is computed again.
    for number, rows in enumerate(self._rows):
      first = number * planes * across
      whole = self._is_packed(number)
      for plane, row in enumerate(rows):
        if done > first + plane * across and not (whole or row.is_there()):
          done = min(done, first)
    self._done, self._removed = done, 0
    self._counts: dict[int, int] = {}
    self._next = done // (across * planes)  # The first row not whole.
    name = printable(self._target)
    if self._journal.state:
      self._tell(f"{name}: going on, {done} of {self._total} tiles are there")
    else:
      tiles = f"{self._total} tile{'' if self._total == 1 else 's'}"
      self._tell(
        f"{name}: in {tiles}; if it is interrupted, the same command goes on"
      )
    if self._progress:
      self._progress(done, self._total)
    with concurrent.futures.ThreadPoolExecutor(1, "esrgan-pack") as packer:
      self._packer, self._packing = packer, None
      if self._next:
        self._pack(self._next - 1)
      for order in engine.run(self._orders(engine, padded, done)):
        if order.error is not None:
          raise order.error
      self._wait()

  def _orders(
    self, engine: stream.Engine, padded: tuple[int, int], done: int
  ) -> Iterator[stream.Order]:
    across = len(self._grid[0])
    for place in range(len(self._grid) * len(self._planes)):
      number, plane = divmod(place, len(self._planes))
      part, channels = self._planes[plane]
      before = min(max(done - place * across, 0), across)
      self._counts[place] = before
      if before == across:
        continue
      margin = 0
      if part == "pixels" and self._picture.has_alpha and self._even is None:
        margin = engine.halo
      order = stream.Order(
        _Source(self._picture, part, (*padded, channels), margin),
        self._rows[number][plane],
        part=self._grid[number][before:],
      )
      order.progress = lambda *_, order=order, place=place: self._landed(
        order, place
      )
      yield order

  def _landed(self, order: stream.Order, place: int) -> None:
    """Counts what is done from the beginning on."""
    across, planes = len(self._grid[0]), len(self._planes)
    ready = next(
      (n for n, piece in enumerate(order.part) if piece in order.left),
      len(order.part),
    )
    self._counts[place] = across - len(order.part) + ready
    done = self._done
    while done < self._total:
      there = self._counts.get(done // across, 0)
      if done % across >= there:
        break
      done += there - done % across
    if done == self._done:
      return
    with self._lock:
      self._done = done
    while self._next < done // (across * planes):
      self._pack(self._next)
      self._next += 1
    self._commit()
    if self._progress:
      self._progress(done, self._total)

  def _pack(self, number: int) -> None:
    """Has what is whole by a row of tiles packed, after what was before it."""
    self._wait()
    self._packing = self._packer.submit(self._pack_rows, number)

  def _wait(self) -> None:
    if self._packing is not None:
      self._packing.result()

  def _pack_rows(self, number: int) -> None:
    """Packs the rows that are whole, in a thread."""
    sink, (height, _) = self._sink, self._size
    stop = self._span(number)[1]
    while sink.rows < height:
      start = sink.rows
      end = min(start + sink.band, height)
      if self._needs(start, end)[1] > stop:
        break
      sink.append(self._band(start, end))
      self._note_mark()
    self._commit(now=True)
    with self._lock:
      while self._removed < number and self._is_packed(self._removed):
        for row in self._rows[self._removed]:
          row.remove()
        self._removed += 1

  def _band(self, start: int, stop: int) -> np.ndarray:
    """Returns rows of the result, `[rows, W, samples]`."""
    kinds, C = self._kinds, self._picture.shape[2]
    shape = (stop - start, self._size[1], C + len(kinds))
    band = np.empty(shape, self._picture.dtype)
    at = C + kinds.index(2) if self._picture.has_alpha else None
    others = [n for n in range(C, shape[2]) if n != at]
    if at is not None and self._even is not None:
      band[..., at] = self._even
    for plane, (part, _) in enumerate(self._planes):
      if part == "pixels":
        channels = slice(0, C)
      else:
        number = at if part == "alpha" else others[part]
        channels = slice(number, number + 1)
      ratio = self._native[0] / self._size[0]
      # So that what is resized at a time is no more than a band or two.
      step = max(1, math.floor((stop - start) / max(ratio / 2, 1)))
      for first in range(start, stop, step):
        last = min(first + step, stop)
        band[first - start : last - start, :, channels] = self._result(
          plane, first, last
        )
    return band

  def _result(self, plane: int, start: int, stop: int) -> np.ndarray:
    """Returns rows of the result's plane."""
    top, end = self._needs(start, stop)
    found = self._given(plane, top, end)
    if self._size == self._native:
      return found
    ratio = self._native[0] / self._size[0]
    return photo.resize(
      found,
      stop - start,
      self._size[1],
      rows=(start * ratio - top, stop * ratio - top),
    )

  def _given(self, plane: int, start: int, stop: int) -> np.ndarray:
    """Returns rows of what the model gives of a plane."""
    found = []
    for number, rows in enumerate(self._rows):
      top, end = self._span(number)
      if max(top, start) < min(end, stop):
        found.append(rows[plane].read(max(top, start), min(end, stop)))
    return found[0] if len(found) == 1 else np.concatenate(found)

  def _note_mark(self) -> None:
    mark = self._sink.mark()
    with self._lock:
      self._mark = mark

  def _commit(self, *, now: bool = False) -> None:
    """Marks in the journal how far it is, if that is worth it."""
    with self._lock:
      if not now and time.monotonic() - self._marked < _OFTEN:
        return
      across = len(self._grid[0]) * len(self._planes)
      for row in itertools.chain(
        *self._rows[max(self._next - 1, 0) : self._done // across + 1]
      ):
        row.sync()
      self._journal.put({"pieces": self._done, **self._mark})
      self._marked = time.monotonic()

  def _reduced(self, done: int, total: int) -> None:
    if time.monotonic() - self._marked >= _OFTEN:
      self._note_mark()
      self._commit(now=True)
