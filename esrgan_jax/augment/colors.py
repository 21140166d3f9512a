"""Other colours, of LR and HR alike: one pair at a time.

Functions of `(key, pair, ...)`, for `jax.vmap`: a pair is `(lr, hr)`, float
`[h, w, 3]` and `[scale * h, scale * w, 3]` in [0, 1].

What changes a pixel here is affine, the same for all pixels of both images: so
a downscaled HR becomes the downscaled new HR.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrgan_jax.augment.mixes import Pair, shrunk

_LUMA = (0.299, 0.587, 0.114)  # BT.601, of which YIQ is made.
_YIQ = np.array([_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
_GREY = np.broadcast_to(_LUMA, (3, 3))  # A pixel's grey, in each channel.
# The colour, a quarter turn on around grey.
_TURN = np.linalg.inv(_YIQ) @ [[0, 0, 0], [0, 0, -1], [0, 1, 0]] @ _YIQ
_ORDERS = np.array(
  [np.eye(3)[list(p)] for p in itertools.permutations((0, 1, 2))]
)


def permute_channels(key: Array, pair: Pair) -> Pair:
  """Returns a pair with its channels in any order, the one that is included.

  Args:
    key: PRNG key.
    pair: The pair.

  Source: "RGB permutation" of CutBlur (arXiv:2004.00448), section 2.

  >>> red = jnp.array([[[1.0, 0.0, 0.0]]])
  >>> lr, hr = permute_channels(jax.random.key(0), (red, red))
  >>> lr.tolist() == hr.tolist(), float(lr.sum())
  (True, 1.0)
  """
  order = jnp.asarray(_ORDERS, pair[0].dtype)[jax.random.randint(key, (), 0, 6)]
  return tuple(_recolored(image, order) for image in pair)


def color_jitter(
  key: Array,
  pair: Pair,
  *,
  brightness: float,
  contrast: float,
  saturation: float,
  hue: float,
) -> Pair:
  """Returns a pair in another light.

  Each factor is uniform from one less its option to one more. The four commute,
  as nothing is clipped in between. What exceeds [0, 1] is clipped in HR, and
  what that takes off HR is taken off LR, downscaled: they stay a pair where
  highlights burn out.

  Args:
    key: PRNG key.
    pair: The pair.
    brightness: All values times 1 - brightness to 1 + brightness.
    contrast: Their distance to the mean grey of HR, likewise.
    saturation: Their distance to their own grey, likewise.
    hue: Colours turn around grey, in YIQ, by up to so many turns either way.

  Source: the four of torchvision's and albumentations' `ColorJitter`; hue there
  is a shift in HSV, which does not go with downscaling.

  >>> grey = jnp.full((2, 2, 3), 0.5)
  >>> lr, hr = color_jitter(jax.random.key(0), (grey, grey),
  ...   brightness=0.0, contrast=1.0, saturation=1.0, hue=0.5)
  >>> bool(jnp.allclose(hr, grey, atol=1e-6))
  True
  """
  lr, hr = pair
  dtype = lr.dtype
  draws = jax.random.uniform(key, (4,), dtype, minval=-1, maxval=1)
  gain, distance, color = (
    1 + draw * most
    for draw, most in zip(
      draws[:3], (brightness, contrast, saturation), strict=True
    )
  )
  angle = draws[3] * (2 * np.pi * hue)
  grey, turn = jnp.asarray(_GREY, dtype), jnp.asarray(_TURN, dtype)
  turned = jnp.cos(angle) * (jnp.eye(3, dtype=dtype) - grey)
  matrix = grey + color * (turned + jnp.sin(angle) * turn)
  mean = gain * (1 - distance) * _recolored(hr, grey).mean()
  lr, wanted = (
    _recolored(image, distance * gain * matrix) + mean for image in (lr, hr)
  )
  hr = jnp.clip(wanted, 0, 1)
  return jnp.clip(lr + shrunk(hr - wanted, lr.shape), 0, 1), hr


def _recolored(image, matrix):
  """Each pixel times a matrix: three sums, exact where a product by 1 is."""
  return sum(image[..., c : c + 1] * matrix[:, c][None, None] for c in range(3))
