"""Upscales a photo as it lies in a file: depth, grey and transparency kept.

`images.read_image` reads one, `images.write_image` writes what comes out.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable

import numpy as np
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.upscaling.upscaler import Upscaler

__all__ = ["resize", "upscale_photo"]

# A result above this size lives in a file until it is written.
_MEMMAP_BYTES = 2**28


def upscale_photo(
  model: Upscaler,
  photo: images.Image,
  *,
  size: tuple[int, int] | None = None,
  tile: int | str = "auto",
  exact: bool = False,
  halo: int | None = None,
  folder: str | os.PathLike[str] | None = None,
  progress: Callable[[int, int], None] | None = None,
  notify: Callable[[str], None] | None = None,
) -> images.Image:
  """Upscales a photo: 8 or 16 bits, grey or colour, with or without alpha.

  Transparency is upscaled by the network too, as a grey image of its own, and
  what lies under it takes its colour from what is seen. So is each further
  band.

  Args:
    model: Upscales the pixels.
    photo: The photo; it stays as it is.
    size: Height and width of the result. What the model gives is resized to
      it at the end, by Lanczos. None means what the model gives.
    tile: See `Upscaler.upscale`, as for `exact` and `halo`.
    exact: Likewise.
    halo: Likewise.
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

  >>> from esrgan_jax.upscaling.upscaler import load
  >>> pixels = np.full((6, 8, 3), 200, np.uint8)
  >>> clear = images.Image(pixels, alpha=np.full((6, 8), 99, np.uint8))
  >>> model = load("realesrgan-x4plus-anime")
  >>> result = upscale_photo(model, clear, size=(12, 16))
  >>> result.pixels.shape, int(result.alpha[0, 0])
  ((12, 16, 3), 99)
  """
  pixels, alpha = photo.pixels, photo.alpha
  even = alpha is None or bool((alpha == alpha.flat[0]).all())
  if not even:
    # What lies under full transparency must not bleed into what is seen.
    pixels = images.bleed_colour(pixels, alpha)
  extra = photo.extra
  further = 0 if extra is None else extra.shape[2]
  passes = (1 if even else 2) + further

  def upscale(plane: np.ndarray, index: int) -> np.ndarray:
    height, width, channels = plane.shape
    shape = (height * model.scale, width * model.scale, channels)
    result = model.upscale(
      plane,
      tile=tile,
      exact=exact,
      halo=halo,
      out=_room(shape, plane.dtype, folder),
      progress=progress
      and (lambda done, total: progress(done + index * total, total * passes)),
      notify=notify,
    )
    if size is not None and size != result.shape[:2]:
      result = resize(result, *size)
    return result

  result = upscale(pixels, 0)
  if alpha is not None:
    if even:
      alpha = np.broadcast_to(alpha.flat[0], result.shape[:2])
    else:
      alpha = upscale(alpha[..., None], 1)[..., 0]
  if extra is not None:
    planes = _room((*result.shape[:2], further), extra.dtype, folder)
    for index in range(further):
      plane = upscale(extra[..., index, None], passes - further + index)
      planes[..., index] = plane[..., 0]
    extra = planes
  return dataclasses.replace(photo, pixels=result, alpha=alpha, extra=extra)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes by Lanczos, antialiased; a band of channels at a time.

  Args:
    pixels: uint8 or uint16 `[H, W, C]`.
    height: Of the result.
    width: Of the result.

  Returns:
    `[height, width, C]`, rounded and clipped.

  >>> resize(np.full((8, 8, 1), 999, np.uint16), 4, 5)[0, 0]
  array([999], dtype=uint16)
  """
  if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
    picture = PilImage.fromarray(pixels)
    picture = picture.resize((width, height), PilImage.Resampling.LANCZOS)
    return np.asarray(picture)
  result = np.empty((height, width, pixels.shape[2]), pixels.dtype)
  limit = np.iinfo(pixels.dtype).max
  for channel in range(pixels.shape[2]):
    plane = PilImage.fromarray(pixels[..., channel].astype(np.float32))
    plane = plane.resize((width, height), PilImage.Resampling.LANCZOS)
    result[..., channel] = np.clip(np.rint(plane), 0, limit)
  return result


def _room(
  shape: tuple[int, ...],
  dtype: np.dtype,
  folder: str | os.PathLike[str] | None,
) -> np.ndarray:
  """Returns an array for a result; a large one lies in a nameless file."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  if size <= _MEMMAP_BYTES:
    return np.empty(shape, dtype)
  with tempfile.TemporaryFile(dir=folder) as file:
    if hasattr(os, "posix_fallocate"):
      # A full disk is an error now; later, it would be a fatal signal.
      os.posix_fallocate(file.fileno(), 0, size)
    return np.memmap(file, dtype, "w+", shape=shape)
