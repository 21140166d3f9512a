"""What a teacher makes of LR images: in the place of HR, for a student.

A large model takes a thousandth of a second and more for a pixel that its
student takes a hundred thousandth for. So the teacher looks at each LR image
once, ahead of the training, and its results are kept on disk: a file an image,
named by the pixels that it was made of, in a folder that is named by the
teacher's parameters and how it computes. What is there is never computed again,
whatever run or source asks for it; one that is killed has lost a minute.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from esrgan_jax import images, storage, text
from esrgan_jax.data.sources import DataError, Pair, Source
from esrgan_jax.upscaling.upscaler import Upscaler
from esrgan_jax.weights.formats import stored_arrays as stored

__all__ = ["Taught", "Teacher"]

_VERSION = 1  # Of the results' folder.
# LR pixels that are upscaled together: what a kill may cost.
_GROUP_PIXELS = 2**18
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model, and where its results are kept.

  Attributes:
    model: The model.
    cache_dir: Folder for the results; None for `storage.cache_dir()`.
  """

  model: Upscaler
  cache_dir: str | os.PathLike | None = None

  @functools.cached_property
  def digest(self) -> str:
    """Tells one teacher from another: parameters, network, precision."""
    arrays = self.model.params, self.model.collections
    digests = [stored.digest(stored.flatten(each)) for each in arrays]
    content = json.dumps([_VERSION, *digests, _description(self.model.net)])
    return hashlib.sha256(content.encode()).hexdigest()

  @functools.cached_property
  def folder(self) -> pathlib.Path:
    """Where its results are.

    Raises:
      DataError: If `cache_dir` is in a bucket.
    """
    if "://" in str(self.cache_dir):
      raise DataError(
        f"{self.cache_dir}: a teacher's results are kept on a disk; name a"
        " local folder as data.cache_dir"
      )
    cache = pathlib.Path(self.cache_dir or storage.cache_dir()).expanduser()
    return cache / f"teacher-{self.digest[:32]}"

  def teach(
    self,
    source: Source,
    *,
    first: int = 0,
    margin: int = 0,
    progress: Callable[[int, int], None] | None = None,
  ) -> Taught:
    """Computes what is missing for a source, and returns the source with it.

    Args:
      source: Of the teacher's scale. What of it cannot be read is left to who
        reads the result: it raises there again.
      first: The image to begin with. Processes that share the folder begin at
        different ones, and find the rest done.
      margin: As of `Taught`.
      progress: Called with images done and images in all.

    Returns:
      The source whose HR are the results.

    Raises:
      DataError: If a result cannot be written, or the scales differ.
    """
    if source.scale != self.model.scale:
      raise DataError(
        f"{source.title}: x{source.scale} pairs, but {self.model.name} is a"
        f" x{self.model.scale} model"
      )
    order = [*range(first, len(source)), *range(first)]
    for group in _groups(self._missing(source, order), len(order)):
      if group.images:
        self._upscale(group.images)
      if progress:
        progress(group.looked_at, len(order))
    return Taught(source, self, margin)

  def _missing(self, source, order):
    """Yields, of each image, its pixels and its result's place, or None."""
    for index in order:
      try:
        lr = source.read_lr(index)
      except DataError:
        yield None
        continue
      place = _place(self.folder, lr)
      yield None if place.is_file() else (lr, place)

  def _upscale(self, group):
    pixels = [lr for lr, _ in group]
    results = self.model.stream(
      pixels, sizes=[lr.shape[:2] for lr in pixels], notify=_log.warning
    )
    for (_, place), result in zip(group, results, strict=True):
      try:
        place.parent.mkdir(parents=True, exist_ok=True)
        images.write_image(place, images.Image(result), overwrite=True)
      except OSError as error:
        raise DataError(
          f"{place.parent}: a teacher's result cannot be written:"
          f" {text.explain(error)}; name another folder as data.cache_dir"
        ) from error


# Fields that change a result by rounding, at most, or say nothing of it.
_FORMS = ("dtype", "form", "name", "parent", "remat", "unroll")


def _description(net):
  """A network's kind, precision, and what of it is not as by default."""
  dtype = np.dtype(getattr(net, "dtype", None) or np.float32).name
  own = dataclasses.fields(net) if dataclasses.is_dataclass(net) else ()
  others = [
    f"{field.name}={getattr(net, field.name)!r}"
    for field in own
    if field.name not in _FORMS and getattr(net, field.name) != field.default
  ]
  return [type(net).__name__, dtype, *others]


def _place(folder, lr):
  """Where the result for an image is, or would be."""
  digest = hashlib.sha256(f"{lr.shape}".encode())
  digest.update(np.ascontiguousarray(lr))
  name = digest.hexdigest()[:40]
  return folder / name[:2] / f"{name[2:]}.png"


@dataclasses.dataclass
class _Group:
  """Images to upscale together, and how many of all were looked at by then."""

  images: list[tuple[np.ndarray, pathlib.Path]]
  looked_at: int


def _groups(missing: Iterator[Any], total: int) -> Iterator[_Group]:
  found, pixels = {}, 0
  for number, each in enumerate(missing, start=1):
    if each is not None and each[1] not in found:
      found[each[1]] = each[0]
      pixels += each[0].shape[0] * each[0].shape[1]
    # One of which nothing is missing shows how far it is as well.
    if pixels >= _GROUP_PIXELS or number == total or not number % 1000:
      yield _Group([(lr, place) for place, lr in found.items()], number)
      found, pixels = {}, 0


class Taught(Source):
  """A source whose HR are a teacher's results; `Teacher.teach` makes it.

  It knows no JAX: any process or thread may read it.

  Args:
    source: The source; its HR is not looked at.
    teacher: The teacher.
    margin: LR pixels at each edge that are left out. There the teacher sees
      less than in the middle of a photo: `realesrgan-x4plus` makes something
      else of a crop's edges than of the same pixels in a photo.

  >>> import tempfile, jax, jax.numpy as jnp
  >>> from esrgan_jax.data.sources import SamplePhotos, Subset
  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  >>> photos = Subset(SamplePhotos("held_out", scale=4), [0])
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   taught = Teacher(Upscaler(net, params), folder).teach(photos)
  ...   taught[0].hr.shape
  (300, 448, 3)
  """

  has_hr = True

  def __init__(self, source: Source, teacher: Teacher, margin: int = 0):
    self.scale, self.title = source.scale, source.title
    self.lr_origin = source.lr_origin
    self.names, self.problems = source.names, source.problems
    self.teacher = teacher.model.name
    self._source, self._digest = source, teacher.digest
    self._folder, self.margin = teacher.folder, margin

  def __getitem__(self, index: int) -> Pair:
    lr = self.read_lr(index)
    place, name = _place(self._folder, lr), text.printable(self.names[index])
    try:
      hr = images.read_image(place).pixels
    except images.ImageError as error:
      raise DataError(
        f"{name}: what the teacher made of it cannot be read: {error}; delete"
        " it, and start again: it is computed anew"
      ) from error
    h, w, _ = lr.shape
    if hr.shape != (self.scale * h, self.scale * w, 3) or hr.dtype != np.uint8:
      raise DataError(
        f"{name}: {place} is not what the teacher made of it: delete it, and"
        " start again: it is computed anew"
      )
    m = self.margin
    if not m:
      return Pair(lr, hr)
    if min(h, w) <= 2 * m:
      raise DataError(
        f"{name}: LR is {h}x{w}, and nothing is left of it inside of a margin"
        f" of {m}; leave it out, or take a smaller margin"
      )
    n = self.scale * m
    return Pair(
      np.ascontiguousarray(lr[m:-m, m:-m]), np.ascontiguousarray(hr[n:-n, n:-n])
    )

  def read_lr(self, index: int) -> np.ndarray:
    """As `Source.read_lr`."""
    return self._source.read_lr(index)

  def lr_size(self, index: int) -> tuple[int, int]:
    """As `Source.lr_size`."""
    return self[index].lr.shape[:2]

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of the source, teacher and margin."""
    content = f"{self._source.fingerprint()} {self._digest}"
    content += f" {self.margin}" if self.margin else ""
    return hashlib.sha256(content.encode()).hexdigest()
