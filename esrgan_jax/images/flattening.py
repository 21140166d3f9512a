"""Transparency laid over a colour, for formats that have none."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import ImageColor

from esrgan_jax.images.pixels import Image, bands, opaque


def parse_colour(text: str) -> tuple[int, int, int]:
  """Reads a colour.

  Args:
    text: A name of CSS, or `#rrggbb`; and what else Pillow's `ImageColor`
      knows, such as `rgb(10, 20, 30)`.

  Returns:
    Red, green and blue, 0 to 255.

  Raises:
    ValueError: If it is none, or one that is not opaque.

  >>> parse_colour("white"), parse_colour("#102030")
  ((255, 255, 255), (16, 32, 48))
  """
  try:
    colour = ImageColor.getrgb(text)
  except ValueError:
    colour = ()
  if len(colour) != 3:
    raise ValueError(
      f"{text!r} is no opaque colour; give a name such as white, or #rrggbb"
    )
  return colour


def flatten(
  image: Image, background: str | tuple[int, int, int] = "white"
) -> Image:
  """Lays a picture over a colour, as a browser does: in the display's curve.

  Args:
    image: With or without transparency.
    background: A colour, as `parse_colour` reads it, or its three numbers.

  Returns:
    The picture without alpha, at its own depth. Grey becomes RGB if the colour
    is none of the greys. One without alpha is returned as it is.

  Raises:
    ValueError: If the background is no colour.

  >>> alpha = np.array([[0, 51]], np.uint8)
  >>> clear = Image(np.zeros((1, 2, 1), np.uint8), alpha)
  >>> flatten(clear, "white").pixels.tolist()
  [[[255], [204]]]
  """
  if isinstance(background, str):
    background = parse_colour(background)
  if image.alpha is None:
    return image
  pixels, metadata = image.pixels, image.metadata
  H, W, C = pixels.shape
  if len(set(background)) > 1:
    C = 3
  top = opaque(pixels.dtype)
  colour = np.array(background[:C], np.float64) * top / 255
  if pixels.dtype == np.float32:
    colour /= metadata.gain
  flat = np.empty((H, W, C), pixels.dtype)
  for rows in bands(flat):
    alpha = image.alpha[rows, :, None] / np.float64(top)
    mixed = pixels[rows] * alpha + colour * (1 - alpha)
    flat[rows] = mixed if top == 1 else np.rint(mixed)
  return dataclasses.replace(image, pixels=flat, alpha=None)
