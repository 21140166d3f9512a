"""Upscales a photo as it lies in a file: depth, grey and transparency kept.

`images.read_image` reads one, `images.write_image` writes what comes out.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.models import registry
from esrgan_jax.upscaling import consistency, luma, stream
from esrgan_jax.upscaling import seamless as wrapping
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = ["Ready", "Task", "resize", "upscale_photo", "upscale_photos"]

# A result above this size lives in a file until it is written.
MEMMAP_BYTES = 2**28


def upscale_photo(
  model: Upscaler,
  photo: images.Image,
  *,
  size: tuple[int, int] | None = None,
  tile: int | str = "auto",
  exact: bool = False,
  halo: int | None = None,
  seamless: str | None = None,
  consistent: bool = False,
  folder: str | os.PathLike[str] | None = None,
  progress: Callable[[int, int], None] | None = None,
  notify: Callable[[str], None] | None = None,
) -> images.Image:
  """Upscales a photo: 8 or 16 bits or float, grey or colour, with alpha or not.

  Transparency is upscaled by the network too, as a grey image of its own, and
  what lies under it takes its colour from what is seen. So is each further
  band. A network of four channels gets colour and transparency together; of
  one, luma, and the colours are enlarged by a bicubic filter.

  Args:
    model: Upscales the pixels.
    photo: The photo; it stays as it is.
    size: Height and width of the result. What the model gives is resized to
      it at the end, by Lanczos. None means what the model gives.
    tile: See `Upscaler.upscale`, as for `exact` and `halo`.
    exact: Likewise.
    halo: Likewise.
    seamless: Which edges of the photo meet, one of `seamless.DIRECTIONS`: they
      do so in the result, exactly if `exact`. None for none.
    consistent: Change the result so that, downscaled, it is the photo (see
      `consistency`); a note of the result says where half a level is missing.
    folder: Where results above 256 MB lie, in a file without a name, which is
      gone with them; None means the system's folder for such files.
    progress: Called with the number of tiles done and in all.
    notify: Called with a sentence when tiles had to be made smaller.

  Returns:
    The result, with the photo's metadata.

  Raises:
    FloatingPointError: If the network's result is not finite.
    OutOfMemoryError: If not even small tiles fit into memory.
    OSError: If the folder has no room for a large result.
    ValueError: If no image of a file can go through such a network, or
      `seamless` is no direction, or edges of this network cannot meet exactly,
      or `size` is too small for `consistent`.

  >>> from esrgan_jax.upscaling.upscaler import load
  >>> pixels = np.full((6, 8, 3), 200, np.uint8)
  >>> clear = images.Image(pixels, alpha=np.full((6, 8), 99, np.uint8))
  >>> model = load("realesrgan-x4plus-anime")
  >>> result = upscale_photo(model, clear, size=(12, 16))
  >>> result.pixels.shape, int(result.alpha[0, 0])
  ((12, 16, 3), 99)
  """
  task = Task(photo, size=size, folder=folder, progress=progress)
  options = {"tile": tile, "exact": exact, "halo": halo, "notify": notify}
  options |= {"seamless": seamless, "consistent": consistent}
  (ready,) = upscale_photos(model, [task], **options)
  return ready.result()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A photo to be upscaled; see `upscale_photo` for the fields."""

  photo: images.Image = dataclasses.field(kw_only=False)
  size: tuple[int, int] | None = None
  folder: str | os.PathLike[str] | None = None
  progress: Callable[[int, int], None] | None = None


class Ready:
  """A photo whose planes have been through the network, or an error."""

  def __init__(self, finish: Callable[[], images.Image]):
    self._finish = finish

  def result(self) -> images.Image:
    """Returns the photo's result, or raises why there is none.

    What the host does at the end happens here, resizing for one: it may be
    called in another thread. Call it once.
    """
    return self._finish()


def upscale_photos(
  model: Upscaler,
  tasks: Iterable[Task | Exception],
  *,
  sizes: Iterable[tuple[int, int]] = (),
  tile: int | str = "auto",
  exact: bool = False,
  halo: int | None = None,
  seamless: str | None = None,
  consistent: bool = False,
  notify: Callable[[str], None] | None = None,
) -> Iterator[Ready]:
  """Upscales photos as `Upscaler.stream` does images; none stops the others.

  Args:
    model: Upscales the pixels.
    tasks: What to upscale, read ahead; an exception stands for a photo that
      there is not, and is raised by its result.
    sizes: Height and width of the photos that will come, where known.
    tile: See `Upscaler.upscale`, as for the others.
    exact: Likewise.
    halo: Likewise.
    seamless: See `upscale_photo`.
    consistent: Likewise.
    notify: See `Upscaler.upscale`.

  Yields:
    In order, each of whose result is what `upscale_photo` returns.

  >>> from esrgan_jax.upscaling.upscaler import load
  >>> model = load("realesrgan-x4plus-anime")
  >>> photos = [np.full((6, n, 3), 200, np.uint8) for n in (5, 9)]
  >>> tasks = [Task(images.Image(pixels)) for pixels in photos]
  >>> for ready in upscale_photos(model, tasks):
  ...   ready.result().pixels.shape
  (24, 20, 3)
  (24, 36, 3)
  """
  waiting: collections.deque[_Photo] = collections.deque()

  def border(shape: tuple[int, ...]) -> wrapping.Border:
    return wrapping.border_of_network(
      model.net, shape, seamless, exact=exact, halo=halo
    )

  def orders() -> Iterator[stream.Order]:
    for task in tasks:
      photo = _Photo(model, task, seamless, border, consistent=consistent)
      waiting.append(photo)
      yield from photo.orders

  ended = 0
  engine = model.engine(tile=tile, exact=exact, halo=halo, notify=notify)
  sizes = (border(size).size_of(size) for size in sizes)
  for _ in engine.run(orders(), sizes):
    ended += 1
    if ended == len(waiting[0].orders):
      yield Ready(waiting.popleft().finish)
      ended = 0


class _Photo:
  """A photo's planes on their way, at least one order."""

  def __init__(
    self,
    model: Upscaler,
    task: Task | Exception,
    seamless: str | None,
    border: Callable[[tuple[int, ...]], wrapping.Border],
    *,
    consistent: bool,
  ):
    self._model = model
    self._task = task
    self._seamless = seamless
    self._consistent = consistent
    self.orders: list[stream.Order] = []
    try:
      if isinstance(task, Exception):
        raise task
      if consistent and task.size is not None:
        consistency.check_size(task.size, task.photo.pixels.shape)
      self._border = border(task.photo.pixels.shape)
      self._prepare(task.photo)
    except Exception as error:
      self.orders = [stream.Order.failed(error)]

  def _prepare(self, photo: images.Image) -> None:
    pixels, alpha, extra = photo.pixels, photo.alpha, photo.extra
    self._even = alpha is None or bool((alpha == alpha.flat[0]).all())
    if not self._even:
      # What lies under full transparency must not bleed into what is seen. Over
      # an edge it comes from no farther than what is seen looks.
      wide = self._border.twice()
      bled = images.bleed_colour(wide.add(pixels), wide.add(alpha))
      pixels = wide.take_off(bled)
    channels = registry.channels(self._model.net)
    self._channels = channels[0]
    if channels not in ((1, 1), (3, 3), (4, 4)):
      raise ValueError(
        f"this network maps {channels[0]} to {channels[1]} channels; images"
        " of files need one that maps 1 to 1, 3 to 3 or 4 to 4"
      )
    planes = [pixels]
    if self._channels == 1 and pixels.shape[2] == 3:
      planes = [luma.of(pixels)]
    if self._channels == 4:
      planes = [_four(pixels, alpha)]
    elif not self._even:
      planes.append(alpha[..., None])
    if extra is not None:
      planes += [extra[..., n, None] for n in range(extra.shape[2])]
    if self._channels == 4:
      # Grey stays grey, as for other networks.
      planes[1:] = [_four(plane, None) for plane in planes[1:]]
    self._pixels = pixels
    counts: dict[int, tuple[int, int]] = {}

    def report(index: int, done: int, total: int) -> None:
      counts[index] = (done, total)
      done = sum(part for part, _ in counts.values())
      # Planes have one size, and as many tiles.
      self._task.progress(done, total * len(planes))

    for index, plane in enumerate(map(self._border.add, planes)):
      progress = self._task.progress and (
        lambda done, total, index=index: report(index, done, total)
      )
      scale = self._model.scale
      shape = (plane.shape[0] * scale, plane.shape[1] * scale, plane.shape[2])
      out = _room(shape, plane.dtype, self._task.folder)
      self.orders.append(self._model.order(plane, out, progress))

  def finish(self) -> images.Image:
    """Puts the planes together again."""
    for order in self.orders:
      if order.error is not None:
        raise order.error
    photo, size = self._task.photo, self._task.size
    scale, seamless = self._model.scale, self._seamless
    results = [self._border.take_off(o.out, scale) for o in self.orders]
    self.orders = []
    if size is not None and size != results[0].shape[:2]:
      results = [resize(each, *size, seamless=seamless) for each in results]
    pixels, *further = results
    alpha, extra = photo.alpha, photo.extra
    if self._channels == 4:
      further = [_grey(plane) for plane in further]
      if alpha is not None:
        further.insert(0, pixels[..., 3:])
      pixels = _grey(pixels) if photo.pixels.shape[2] == 1 else pixels[..., :3]
    elif self._channels == 1 and photo.pixels.shape[2] == 3:
      pixels = luma.put(pixels, self._pixels, seamless=seamless)
    if alpha is not None:
      if self._even and self._channels != 4:
        alpha = np.broadcast_to(alpha.flat[0], pixels.shape[:2])
      else:
        alpha = further.pop(0)[..., 0]
    if extra is not None:
      folder = self._task.folder
      shape = (*pixels.shape[:2], extra.shape[2])
      extra = _room(shape, extra.dtype, folder)
      for n, plane in enumerate(further):
        extra[..., n] = plane[..., 0]
    result = dataclasses.replace(photo, pixels=pixels, alpha=alpha, extra=extra)
    return self._agreeing(result) if self._consistent else result

  def _agreeing(self, result: images.Image) -> images.Image:
    """Returns a result that is consistent with its photo."""
    photo, changed, missing = self._task.photo, {}, []
    for name, plane in (
      ("pixels", self._pixels),
      ("alpha", None if self._even else photo.alpha),
      ("extra", photo.extra),
    ):
      if plane is None:
        continue
      found = getattr(result, name)
      found = found if found.flags.writeable else found.copy()
      channels = (slice(None), slice(None), *([None] * (found.ndim == 2)))
      agreement = consistency.make_consistent(
        found[channels], plane[channels], seamless=self._seamless
      )
      missing.append(agreement.after)
      changed[name] = found
    notes = result.notes
    if max(missing) >= consistency.UNSEEN:
      levels = consistency.levels(photo.pixels.dtype)
      notes += (
        f"downscaled, the result is up to {max(missing):.1f} of {levels} levels"
        " from the image",
      )
    return dataclasses.replace(result, notes=notes, **changed)


def _four(pixels: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
  """Returns RGBA, opaque where there is no alpha."""
  most = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
  four = np.full((*pixels.shape[:2], 4), most, pixels.dtype)
  four[..., :3] = pixels
  if alpha is not None:
    four[..., 3] = alpha
  return four


def _grey(pixels: np.ndarray) -> np.ndarray:
  """Returns one channel of what was grey: the middle one."""
  return pixels[..., 1:2]


def resize(
  pixels: np.ndarray,
  height: int,
  width: int,
  *,
  seamless: str | None = None,
  rows: tuple[float, float] | None = None,
) -> np.ndarray:
  """Resizes by Lanczos, antialiased; a band of channels at a time.

  Args:
    pixels: uint8, uint16 or float32 `[H, W, C]`.
    height: Of the result.
    width: Of the result.
    seamless: Which edges meet; see `upscale_photo`.
    rows: Where the part begins and ends that is resized, of pixels that are a
      part of a picture: those beyond it are its neighbours. None: it is all.

  Returns:
    `[height, width, C]`; integers are rounded and clipped.

  >>> resize(np.full((8, 8, 1), 999, np.uint16), 4, 5)[0, 0]
  array([999], dtype=uint16)
  """
  # Of what lies around the box, Pillow takes what its filter reaches.
  pixels, box = wrapping.widen_for_resize(pixels, (height, width), seamless)
  if rows is not None:
    box = (0, rows[0], pixels.shape[1], rows[1])
  how = ((width, height), PilImage.Resampling.LANCZOS, box)
  if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
    return np.asarray(PilImage.fromarray(pixels).resize(*how))
  result = np.empty((height, width, pixels.shape[2]), pixels.dtype)
  for channel in range(pixels.shape[2]):
    plane = PilImage.fromarray(pixels[..., channel].astype(np.float32))
    plane = plane.resize(*how)
    if pixels.dtype.kind != "f":
      plane = np.clip(np.rint(plane), 0, np.iinfo(pixels.dtype).max)
    result[..., channel] = plane
  return result


def _room(
  shape: tuple[int, ...],
  dtype: np.dtype,
  folder: str | os.PathLike[str] | None,
) -> np.ndarray:
  """Returns an array for a result; a large one lies in a nameless file."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  if size <= MEMMAP_BYTES:
    return np.empty(shape, dtype)
  with tempfile.TemporaryFile(dir=folder) as file:
    if hasattr(os, "posix_fallocate"):
      # A full disk is an error now; later, it would be a fatal signal.
      os.posix_fallocate(file.fileno(), 0, size)
    return np.memmap(file, dtype, "w+", shape=shape)
