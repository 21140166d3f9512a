"""Pictures larger than memory: windows of them, read as they are wanted.

Of a TIFF, only the tiles or strips are decoded in which a window lies. What has
no parts, PNG and JPEG for instance, is decoded whole, once. What comes out is
that of `read_image`, to the last bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from esrgan_jax.images import assembly, light, zarr_arrays
from esrgan_jax.images import metadata as meta
from esrgan_jax.images.channels import read_channels
from esrgan_jax.images.decoders import tiff
from esrgan_jax.images.pixels import MAX_PIXELS, Image, ImageError
from esrgan_jax.images.reading import explained, opened, read_image
from esrgan_jax.images.survey import Large, Survey, Window, look_at

__all__ = ["Large", "Survey", "Window", "open_large", "read_storage"]


@contextlib.contextmanager
def open_large(
  path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> Iterator[Large]:
  """Opens a picture of which windows are to be read, as `read_image` would.

  Args:
    path: The file, which must stay as it is.
    max_pixels: See `read_image`.

  Yields:
    The picture.

  Raises:
    ImageError: As `read_image`, here or as damaged parts are met.

  >>> import tempfile
  >>> from esrgan_jax.images.writing import write_image
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "grey.tif")
  ...   _ = write_image(file, Image(np.full((300, 400, 1), 7, np.uint8)))
  ...   with open_large(file) as large:
  ...     window = large.read(slice(200, 290), slice(30, 100))
  ...     large.shape, window.pixels.shape
  ((300, 400, 1), (90, 70, 1))
  """
  path = pathlib.Path(path)
  if zarr_arrays.is_zarr(path):
    with explained(path):
      picture = _Zarr(path, max_pixels)
    yield picture
    return
  with explained(path), opened(path) as (reader, _, _):
    is_tiff = reader is tiff.read_tiff
  if not is_tiff:
    yield _Whole(read_image(path, max_pixels=max_pixels))
    return
  # Errors of whoever reads windows are not those of the file.
  with open(path, "rb") as file:
    with explained(path):
      large = _Tiff(path, tiff.Windows(file, max_pixels))
    yield large


def read_storage(
  path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> tuple[int, str | None]:
  """Tells what a picture's pixel takes, by its header, for estimates.

  Args:
    path: The file.
    max_pixels: See `read_image`.

  Returns:
    Bytes of a pixel, decoded; 3 where the header does not tell. And whether
    there are smaller copies, as of `Large.levels`.

  >>> import tempfile
  >>> from esrgan_jax.images.writing import write_image
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = os.path.join(folder, "grey.tif")
  ...   _ = write_image(file, Image(np.zeros((3, 4, 1), np.uint16)))
  ...   read_storage(file)
  (2, None)
  """
  path = pathlib.Path(path)
  if zarr_arrays.is_zarr(path):
    with contextlib.suppress(ImageError), explained(path):
      picture = zarr_arrays.ZarrPicture(path, max_pixels)
      samples = picture.shape[2] + picture.has_alpha
      return samples * picture.dtype.itemsize, picture.levels
    return 3, None
  known = read_channels(path)
  if known:
    return sum(known), None
  with contextlib.suppress(ImageError, OSError), opened(path) as opening:
    reader, file, _ = opening
    if reader is tiff.read_tiff:
      with explained(path):
        windows = tiff.Windows(file, max_pixels)
      samples = windows.shape[2]
      return samples * windows.head.pixels.itemsize, windows.levels
  return 3, None


class _Whole:
  """One that is in memory."""

  levels = None

  def __init__(self, image: Image):
    self._image = image
    self.shape, self.dtype = image.pixels.shape, image.pixels.dtype
    self.has_alpha = image.alpha is not None
    self.further = 0 if image.extra is None else image.extra.shape[2]
    self.metadata, self.notes = image.metadata, image.notes

  def survey(self, known: Survey | None = None) -> Survey:
    alpha = self._image.alpha
    if alpha is not None and (alpha == alpha.flat[0]).all():
      return Survey(alpha=alpha.flat[0].item())
    return Survey()

  def expect(self, height: int) -> None:
    pass

  def read(self, rows: slice, columns: slice) -> Window:
    image = self._image
    return Window(
      *(
        None if part is None else part[rows, columns]
        for part in (image.pixels, image.alpha, image.extra)
      )
    )


class _Zarr(zarr_arrays.ZarrPicture):
  """A Zarr, with errors as those of other files."""

  def __init__(self, path: pathlib.Path, max_pixels: int):
    super().__init__(path, max_pixels)
    self._path = path

  def survey(self, known: Survey | None = None) -> Survey:
    with explained(self._path):
      return super().survey(known)

  def read(self, rows: slice, columns: slice) -> Window:
    with explained(self._path):
      return super().read(rows, columns)


class _Tiff:
  """A TIFF, whose parts are decoded as they are wanted."""

  def __init__(self, path: pathlib.Path, windows: tiff.Windows):
    self._path, self._windows = path, windows
    head = windows.head
    self._head = head
    self._turn = head.orientation or meta.orientation_of(head.exif)
    H, W, _ = windows.shape
    self._stored = H, W
    if self._turn >= 5:
      H, W = W, H
    C = head.pixels.shape[2]
    self.shape, self.dtype = (H, W, C), head.pixels.dtype
    self.has_alpha = head.alpha is not None
    self.further = 0 if head.extra is None else head.extra.shape[2]
    self.levels = windows.levels
    self._levels: dict[str, float] = {}
    self._linear = False
    if self.dtype == np.float32:
      self._linear = assembly.is_linear(head)
      head = assembly.as_displayed(head, head.pixels, linear=self._linear)
    self.metadata, self.notes = assembly.tidy_metadata(head, (W, H), C)

  def survey(self, known: Survey | None = None) -> Survey:
    floats = self.dtype == np.float32
    if known is None:
      known = Survey()
      if self.has_alpha or floats:
        with explained(self._path):
          known = self._look()
    if known.levels is not None:
      self._levels = known.levels
      self.metadata = dataclasses.replace(self.metadata, **known.levels)
    return known

  def _look(self) -> Survey:
    part = self._windows.part_height
    return look_at(
      lambda rows: self._stored_window(
        rows, slice(0, self._stored[1]), divide=False
      ),
      (*self._stored, self.shape[2]),
      self.dtype,
      part=part,
      linear=self._linear,
    )

  def _stored_window(
    self, rows: slice, columns: slice, *, divide: bool = True
  ) -> Window:
    pixels, alpha, extra = self._windows.read(rows, columns)
    if self.dtype == np.float32:
      for samples in (pixels, alpha, extra):
        if samples is not None:
          light.check_finite(samples)
      found = dataclasses.replace(self._head, pixels=pixels, alpha=alpha)
      pixels = assembly.straight(found).astype(np.float32)
      if self._linear:
        pixels = light.to_display(pixels)
      if divide:
        light.divide(pixels, self._levels)
    return Window(pixels, alpha, extra)

  def expect(self, height: int) -> None:
    if self._turn < 5:
      self._windows.expect(height)

  def read(self, rows: slice, columns: slice) -> Window:
    H, W = self._stored
    if self._turn >= 5:
      rows, columns = columns, rows
    if self._turn in (3, 4, 6, 7):
      rows = slice(H - rows.stop, H - rows.start)
    if self._turn in (2, 3, 7, 8):
      columns = slice(W - columns.stop, W - columns.start)
    with explained(self._path):
      window = self._stored_window(rows, columns)
    if self._turn == 1:
      return window
    return Window(
      *(
        None if part is None else assembly.upright(part, self._turn)
        for part in window
      )
    )
