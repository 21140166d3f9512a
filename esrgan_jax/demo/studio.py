"""What the demo does with pictures and models; knows nothing of pages."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from esrgan_jax import images
from esrgan_jax.data.sources.shrunk import to_rgb8
from esrgan_jax.models import registry
from esrgan_jax.text import explain, printable
from esrgan_jax.upscaling import files, names, photo, record, upscaler
from esrgan_jax.upscaling import plan as plan_
from esrgan_jax.upscaling.inputs import Input
from esrgan_jax.weights import find, mixing, zoo

__all__ = ["SIDE", "Choice", "Look", "Offer", "Result", "Studio"]

# Of the square that is looked at, in pixels of the picture.
SIDE = 128
# Longest side of what is shown, in pixels: of the picture that the square is
# chosen in, and of a result.
_OVERVIEW, _SHOWN = 512, 2048
# Larger results are not read again to be shown.
_MOST_SHOWN = 2**26
# Models, or pairs of them, whose weights and programs are kept.
_KEPT = 3
_FRAME = (255, 64, 0)  # Of the square, in the overview.

# Told how much is done, from 0 to 1, and of what; ends the work by raising.
Report = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Offer:
  """A model that can be chosen.

  Attributes:
    name: What commands call it.
    label: What people are shown.
    config: Its architecture, scale and fields.
    denoises: Whether its strength of denoising can be chosen.
    is_own: Whether it is none of the zoo's.
    is_pair: Whether it is a workdir with models of several phases.
  """

  name: str
  label: str
  config: Mapping[str, Any]
  denoises: bool = False
  is_own: bool = False
  is_pair: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which model is to upscale, as arguments of `upscale` say it.

  Attributes:
    model: An offer's name.
    other: One that it is mixed with, at alpha 0; None for none.
    alpha: Share of `model` in the mixture.
    denoise: Strength of denoising; None means 1.

  >>> Choice("general-x4v3", denoise=0.5).arguments()
  ['--model', 'general-x4v3', '--denoise', '0.5']
  """

  model: str = zoo.DEFAULT
  other: str | None = None
  alpha: float = mixing.DEFAULT_ALPHA
  denoise: float | None = None

  def arguments(self) -> list[str]:
    """Returns the command's arguments that mean the same."""
    said = ["--model", self.model]
    if self.other is not None:
      said += ["--psnr-model", self.other, "--alpha", f"{self.alpha:.12g}"]
    elif self.denoise is not None:
      said += ["--denoise", f"{self.denoise:.12g}"]
    return said

  @property
  def share(self) -> float:
    """Of `model`, in what upscales."""
    if self.other is not None:
      return self.alpha
    return 1.0 if self.denoise is None else self.denoise


@dataclasses.dataclass(frozen=True)
class Look:
  """A square of a picture, enlarged: files of 8-bit PNG.

  Attributes:
    before: The square, enlarged by a filter.
    after: By the model, of the same size.
    overview: All of the picture, small, with a frame around the square.
    notes: Sentences on what is not as one would expect.
  """

  before: pathlib.Path
  after: pathlib.Path
  overview: pathlib.Path
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
  """All of a picture, enlarged.

  Attributes:
    file: As the command would have written it.
    before: The picture, enlarged by a filter, as PNG; None where the result is
      too large to be shown.
    after: What of the result is shown, likewise.
    facts: What became of it, in a line.
    notes: Sentences on what is not as one would expect.
  """

  file: pathlib.Path
  before: pathlib.Path | None
  after: pathlib.Path | None
  facts: str
  notes: tuple[str, ...] = ()


class Studio:
  """Upscales pictures of strangers, one at a time, into a folder.

  Args:
    folder: Where everything goes that is written; pictures come from there.
    models: Names, files or workdirs to offer before those of the zoo.
    psnr_model: What the first of them is mixed with from the start.
    precision: As for `upscaler.load`.
    max_pixels: As for `images.read_image`.
    scale: As for `find.find_model`, of models that are not the zoo's.
    config: Likewise.

  Raises:
    ValueError: If a model is none, or the two cannot be mixed. And as
      `find.find_model`, as are the other errors.

  >>> with tempfile.TemporaryDirectory() as folder:
  ...   studio = Studio(folder, models=["realesrgan-x4plus-anime"])
  >>> [*studio.offers][:2]
  ['realesrgan-x4plus-anime', 'realesrgan-x4plus']
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    models: Iterable[str] = (),
    psnr_model: str | None = None,
    precision: str = "auto",
    max_pixels: int = images.MAX_PIXELS,
    scale: int | None = None,
    config: Mapping[str, Any] | None = None,
  ):
    self.folder = pathlib.Path(os.path.realpath(folder))
    self.offers: dict[str, Offer] = {}
    self._precision, self._max_pixels = precision, max_pixels
    self._asked = {"scale": scale, "config": config}
    self._models: collections.OrderedDict = collections.OrderedDict()
    self._picture: tuple | None = None
    self._busy = threading.Lock()
    models = list(models)
    named = [*models, *filter(None, [psnr_model])]
    for text in dict.fromkeys(named):
      self.offers[text] = self._offer(text)
    for row in zoo.models():
      if row.path or row.model.url:
        self.offers.setdefault(row.model.name, _of_zoo(row))
    self.first = Choice(next(iter(models), zoo.DEFAULT), psnr_model)
    if psnr_model is not None:
      self._pair(self.first, lambda *_: None)  # Raises if there is none.

  def partners(self, model: str) -> list[str]:
    """Returns the offers that a model can be mixed with, by what is known.

    Args:
      model: An offer's name.
    """
    ours = self.offers[model]
    return [
      name
      for name, theirs in self.offers.items()
      if (ours.is_pair if name == model else _fits(ours.config, theirs.config))
    ]

  def look(
    self,
    path: str | os.PathLike[str],
    choice: Choice,
    *,
    at: tuple[float, float] = (0.5, 0.5),
    report: Report = lambda *_: None,
  ) -> Look:
    """Upscales a square of a picture.

    Args:
      path: The picture; of several in a file, the first is looked at.
      choice: What upscales.
      at: Where the middle of the square is to be, from 0 to 1, down and right.
      report: Called as it goes.

    Raises:
      ImageError: If it is no picture that can be read, or too large.
      Exception: As what loads models and upscales.
    """
    with self._busy:
      report(0.0, "reading the picture")
      picture, count = self._read(path)
      model, _ = self._load(choice, report)
      folder = self._room()
      square = _square(picture, at)
      cut = dataclasses.replace(
        picture,
        pixels=picture.pixels[square],
        alpha=None if picture.alpha is None else picture.alpha[square],
        extra=None,
        notes=(),
      )
      result = photo.upscale_photo(
        model,
        cut,
        progress=lambda done, total: report(done / total, "looking"),
      )
      size = result.pixels.shape[:2]
      notes = [*picture.notes, *model.notes, *result.notes]
      if count > 1:
        notes.append(f"the file has {count} pictures; this is the first")
      return Look(
        _write(folder / "before.png", _seen(cut, size), picture),
        _write(folder / "after.png", _seen(result, size), picture),
        _write(folder / "overview.png", _overview(picture, square), picture),
        tuple(dict.fromkeys(notes)),
      )

  def upscale(
    self,
    path: str | os.PathLike[str],
    choice: Choice,
    *,
    report: Report = lambda *_: None,
  ) -> Result:
    """Upscales all of a picture, or of several in a file, as `upscale` does.

    Args:
      path: The picture.
      choice: What upscales.
      report: Called as it goes.

    Raises:
      Exception: As for `look`; nothing is left of a result then.
    """
    with self._busy:
      model, mixed = self._load(choice, report)
      folder = self._room()
      naming = names.Naming(
        model=model.name,
        model_scale=model.scale,
        alpha=choice.share,
        folder=folder,
        suffix=f"_x{model.scale}",
      )
      plan = plan_.make_plan(
        [Input(pathlib.Path(path))], naming, max_pixels=self._max_pixels
      )
      if plan.problems:
        raise ValueError(plan.problems[0])
      settings = files.Settings(
        record=record.describe(model, mixed=mixed, precision=self._precision),
        max_pixels=self._max_pixels,
      )
      ((job, done),) = files.upscale_files(
        model,
        plan.jobs,
        settings,
        progress=lambda _, done, total: report(done / total, "upscaling"),
      )
      if isinstance(done, Exception):
        raise done
      frames = f"{done.frames} of " if done.frames > 1 else ""
      facts = (
        f"{frames}{done.width} x {done.height} pixels, in {done.seconds:.1f} s"
      )
      if done.width * done.height > _MOST_SHOWN:
        return Result(job.target, None, None, facts, done.notes)
      report(1.0, "showing")
      picture, _ = self._read(path)
      most = 16 * max(self._max_pixels, images.MAX_PIXELS)
      result = next(iter(images.read_frames(job.target, max_pixels=most)))
      size = _fitting(result.pixels.shape, _SHOWN)
      return Result(
        job.target,
        _write(folder / "before.png", _seen(picture, size), picture),
        _write(folder / "after.png", _seen(result, size), result),
        facts,
        done.notes,
      )

  def point(
    self, path: str | os.PathLike[str], x: float, y: float
  ) -> tuple[float, float]:
    """Returns `at` of `look` for a pixel of its overview.

    Args:
      path: The picture.
      x: Column of the overview.
      y: Row of it.
    """
    with self._busy:
      picture, _ = self._read(path)
    height, width = _fitting(picture.pixels.shape, _OVERVIEW)
    return (y + 0.5) / height, (x + 0.5) / width

  def command(self, path: str | os.PathLike[str], choice: Choice) -> str:
    """Returns the command that does what `upscale` does.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...   Studio(folder).command("/a/my photo.png", Choice())
    "python -m esrgan_jax upscale 'my photo.png' --model realesrgan-x4plus"
    """
    program = ["python", "-m", "esrgan_jax", "upscale"]
    name = os.path.basename(path)
    return printable(
      shlex.join([*program, name, *choice.arguments()]), limit=4000
    )

  def explain(self, error: BaseException, path: str | os.PathLike[str]) -> str:
    """Returns what to tell of an error; this folder is nobody's business.

    Args:
      error: What came of a picture.
      path: The picture.
    """
    text = explain(error).replace(
      printable(path), printable(os.path.basename(path))
    )
    for root, _, _ in os.walk(self.folder):
      text = text.replace(f"{root}{os.sep}", "")
    return text

  def _offer(self, text):
    """Describes a model that was named, which is read for that."""
    if known := zoo.lookup(text):
      for row in zoo.models():
        if row.model == known:
          return dataclasses.replace(_of_zoo(row), name=text)
    found = find.find_model(text, **self._asked)
    find.check_scale(found.name, found.weights.config, self._asked["scale"])
    first = found
    if os.path.isdir(text):
      first = find.locate(text, phase="first")
    return Offer(
      text,
      f"{found.name}, x{found.weights.config['scale']}",
      found.weights.config,
      is_own=True,
      is_pair=str(first.path) != str(found.path),
    )

  def _read(self, path):
    """Returns the first picture of a file, and how many there are."""
    status = os.stat(path)
    key = os.fspath(path), status.st_size, status.st_mtime_ns
    if self._picture is None or self._picture[0] != key:
      self._picture = None
      frames = images.read_frames(path, max_pixels=self._max_pixels)
      self._picture = key, next(iter(frames)), len(frames)
    return self._picture[1:]

  def _room(self):
    return pathlib.Path(tempfile.mkdtemp(dir=self.folder))

  def _options(self, *names):
    """What else was asked for of models that are not the zoo's."""
    own = any(self.offers[name].is_own for name in filter(None, names))
    return self._asked if own else {}

  def _load(self, choice, report):
    """Returns the model, and how it was mixed, for records."""
    if choice.other is None and choice.denoise in (None, 1):
      options = self._options(choice.model)
      model = self._kept(
        choice.model,
        lambda: upscaler.load(
          choice.model,
          dtype=self._precision,
          progress=_fetching(choice.model, report),
          **options,
        ),
      )
      mixed = () if choice.denoise is None else ("denoise=1",)
      return model, mixed
    pair = self._pair(choice, report)
    share = choice.share
    # Programs are those of the pair, whatever lies between.
    model = self._kept(
      (choice.model, choice.other, "programs"),
      lambda: upscaler.load_mixture(pair, share, dtype=self._precision),
    )
    weights = pair.mix(share)
    model = model.with_params(weights.params, weights.collections)
    if choice.other is None:
      return model, (f"denoise={share:.12g}",)
    return model, (f"psnr_model={pair.first.name}", f"alpha={share:.12g}")

  def _pair(self, choice, report):
    def told(name):
      return contextlib.nullcontext(_fetching(name, report))

    options = self._options(choice.model, choice.other)
    if choice.other is None:
      return self._kept(
        (choice.model, "denoise"),
        lambda: mixing.find_denoising_pair(
          choice.model, progress=told, **options
        ),
      )
    return self._kept(
      (choice.other, choice.model),
      lambda: mixing.find_pair(
        choice.other, choice.model, progress=told, **options
      ),
    )

  def _kept(self, key, make):
    """Returns what was made before, or makes it; a few are kept."""
    if key not in self._models:
      while len(self._models) >= 2 * _KEPT:
        self._models.popitem(last=False)
      self._models[key] = make()
    self._models.move_to_end(key)
    return self._models[key]


def _of_zoo(row):
  model = row.model
  state = ""
  if row.path is None:
    size = f", {model.size / 1e6:.0f} MB" if model.size else ""
    state = f" (fetched when used{size})"
  return Offer(
    model.name,
    f"{model.name}: {model.description}{state}",
    {"architecture": model.architecture, "scale": model.scale, **model.fields},
    denoises=model.weak_denoise is not None,
  )


def _fits(ours, theirs):
  """Tells whether two networks are alike; `mixing.find_pair` knows for sure."""
  if ours["architecture"] != theirs["architecture"]:
    return False
  fields = registry.find_generator(ours["architecture"]).fields
  ours, theirs = {**fields, **ours}, {**fields, **theirs}
  return all(
    None in (ours.get(key), theirs.get(key)) or ours[key] == theirs[key]
    for key in {**ours, **theirs}
  )


def _fetching(name, report):
  def progress(done, total):
    share = done / total if total else 0.0
    report(share, f"fetching {name}, {done / 1e6:.0f} MB")

  return progress


def _square(picture, at):
  """Returns rows and columns of the square, all of it inside."""
  slices = []
  for length, where in zip(picture.pixels.shape[:2], at, strict=True):
    side = min(SIDE, length)
    start = round(where * length) - side // 2
    start = min(max(start, 0), length - side)
    slices.append(slice(start, start + side))
  return tuple(slices)


def _fitting(shape, longest):
  """Returns height and width of what is no longer than that."""
  height, width = shape[:2]
  share = min(1.0, longest / max(height, width))
  return max(1, round(height * share)), max(1, round(width * share))


def _seen(picture, size):
  """Returns what is seen of a picture on white, in 8 bits and of a size."""
  flat = images.flatten(dataclasses.replace(picture, extra=None), "white")
  pixels = to_rgb8(flat)
  return pixels if pixels.shape[:2] == size else photo.resize(pixels, *size)


def _overview(picture, square):
  """Returns the picture, small, with a frame around the square."""
  size = _fitting(picture.pixels.shape, _OVERVIEW)
  pixels = _seen(picture, size).copy()
  shape = picture.pixels.shape[:2]
  if all(
    part.stop - part.start == n for part, n in zip(square, shape, strict=True)
  ):
    return pixels
  top, bottom, left, right = (
    min(edge * size[axis] // shape[axis], size[axis] - 1)
    for axis in (0, 1)
    for edge in (square[axis].start, square[axis].stop)
  )
  for inset, colour in ((0, (255, 255, 255)), (1, _FRAME), (2, _FRAME)):
    rows = slice(max(top - inset, 0), bottom + inset + 1)
    columns = slice(max(left - inset, 0), right + inset + 1)
    for edge in (rows.start, min(rows.stop, size[0]) - 1):
      pixels[edge, columns] = colour
    for edge in (columns.start, min(columns.stop, size[1]) - 1):
      pixels[rows, edge] = colour
  return pixels


def _write(path, pixels, picture):
  """Writes what a browser shows, in the colours of a picture."""
  is_grey = picture.pixels.shape[2] == 1  # Whose profile is of grey.
  profile = None if is_grey else picture.metadata.icc_profile
  metadata = images.Metadata(icc_profile=profile)
  images.write_image(path, images.Image(np.asarray(pixels), metadata=metadata))
  return path
