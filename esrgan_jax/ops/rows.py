"""Few images as many strips of rows, for a TPU's convolutions.

A TPU lays the images of a convolution along the eight sublanes of its
registers. With fewer than eight, XLA cuts the width of what each convolution
sees, and copies, pads and slices around it: more instructions than there are
convolutions. Here an image is cut once, into strips of rows that are images of
the batch, and before a convolution each takes one row from either neighbour.
`docs/tpu.md` has the figures.

In the batch, what a device has stays together; of that, the first strips of
all images come first, so that a strip and its neighbour are a step apart, and
on the same device. Arrays are NHWC and HWIO.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from esrgan_jax.ops import convolution, platforms

Array = jax.Array

_SUBLANES = 8
_MIN_ROWS = 2  # Of a strip.
_KEPT = (0, 0)  # An axis without padding.


class Strips(NamedTuple):
  """How images are cut.

  Attributes:
    num: Strips of an image; 1 means that images are whole.
    mesh: Whose first axis the images are split over; None for one device.
  """

  num: int = 1
  mesh: Mesh | None = None

  @property
  def devices(self) -> int:
    """How many devices the images are split over."""
    return 1 if self.mesh is None else self.mesh.devices.shape[0]


WHOLE = Strips()


def choose_strips(shape: tuple[Any, ...], mesh: Mesh | None = None) -> Strips:
  """Chooses the fewest strips that fill the sublanes of each device.

  Args:
    shape: `[N, H, W, C]`; dimensions of an exported program may be symbols.
    mesh: Whose first axis the images are split over; None for one device.

  Returns:
    How to cut; not at all where there are images enough, or they are low.

  >>> [choose_strips((n, 32, 32, 64)).num for n in (1, 2, 3, 8)]
  [8, 4, 8, 1]
  >>> choose_strips((1, 15, 9, 64)) == WHOLE
  True
  """
  n, h = shape[:2]
  if not (isinstance(n, int) and isinstance(h, int)):
    return WHOLE
  devices = Strips(mesh=mesh).devices
  num = _SUBLANES // math.gcd(n // devices, _SUBLANES)
  fits = n % devices == 0 and 0 < n // devices < _SUBLANES
  return Strips(num, mesh) if fits and h >= _MIN_ROWS * num else WHOLE


def strips_here(shape: tuple[Any, ...]) -> Strips:
  """Chooses for the program that is being traced.

  Of a program that is for no known platform, images may be on several devices
  without its telling so, and strips would travel between them.

  Args:
    shape: `[N, H, W, C]`.

  Returns:
    As `choose_strips`.

  >>> with platforms.tracing_for("tpu"):
  ...   strips_here((1, 32, 32, 64)).num
  8
  >>> strips_here((1, 32, 32, 64)) == WHOLE
  True
  """
  if platforms.known() is None:
    return WHOLE
  return choose_strips(shape, platforms.known_mesh())


def split(x: Array, strips: Strips) -> Array:
  """Cuts images, with rows of zeros below where there are not enough.

  Args:
    x: `[N, H, W, C]`.
    strips: From `choose_strips`.

  Returns:
    `[N * num, ceil(H / num), W, C]`.

  >>> x = jnp.arange(1, 9).reshape(2, 4, 1, 1)
  >>> split(x, Strips(2))[..., 0, 0].tolist()
  [[1, 2], [5, 6], [3, 4], [7, 8]]
  >>> split(x[:1, :3], Strips(2))[..., 0, 0].tolist()
  [[1, 2], [3, 0]]
  """
  num, devices = strips.num, strips.devices
  n, h, *rest = x.shape
  if missing := -h % num:
    x = jnp.pad(x, (_KEPT, (0, missing), _KEPT, _KEPT))
  x = x.reshape(devices, n // devices, num, (h + missing) // num, *rest)
  return x.swapaxes(1, 2).reshape(n * num, (h + missing) // num, *rest)


def split_mask(valid: Array | None, x: Array, strips: Strips) -> Array | None:
  """Cuts a mask, or makes one of the rows that `split` adds.

  Args:
    valid: `[N, H, W, 1]`, 1 inside the image and 0 outside; None if all is
      inside.
    x: What is cut.
    strips: From `choose_strips`.

  Returns:
    A mask of the strips; None if all is inside.

  >>> x = jnp.zeros((1, 3, 1, 1))
  >>> split_mask(None, x, Strips(2))[..., 0, 0].tolist()
  [[1.0, 1.0], [1.0, 0.0]]
  """
  if valid is None:
    if x.shape[1] % strips.num == 0:
      return None
    valid = jnp.ones((*x.shape[:-1], 1), x.dtype)
  return split(valid, strips)


def join(x: Array, strips: Strips, height: int) -> Array:
  """Undoes `split`.

  Args:
    x: `[N * num, h, W, C]`.
    strips: Of what `split` was called with.
    height: H of the images.

  Returns:
    `[N, H, W, C]`.

  >>> x = jnp.arange(6).reshape(2, 3, 1, 1)
  >>> bool((join(split(x, Strips(2)), Strips(2), 3) == x).all())
  True
  """
  num, devices = strips.num, strips.devices
  n, h, *rest = x.shape
  x = x.reshape(devices, num, n // (devices * num), h, *rest)
  return x.swapaxes(1, 2).reshape(n // num, h * num, *rest)[:, :height]


def add_neighbours(x: Array, strips: Strips) -> Array:
  """Adds the row above and the row below each strip, zeros outside the image.

  Args:
    x: `[N * num, H, W, C]`, from `split`.
    strips: Of what `split` was called with.

  Returns:
    `[N * num, H + 2, W, C]`.

  >>> x = split(jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1), Strips(2))
  >>> add_neighbours(x, Strips(2))[..., 0, 0].tolist()
  [[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 0.0]]
  """
  add = functools.partial(_add_neighbours, num=strips.num)
  if strips.mesh is not None:
    # The compiler would ask other devices for rows that it then sets to zero.
    split_over = PartitionSpec(strips.mesh.axis_names[0])
    add = jax.shard_map(
      add, mesh=strips.mesh, in_specs=split_over, out_specs=split_over
    )
  return add(x)


def _add_neighbours(x: Array, num: int) -> Array:
  step = x.shape[0] // num
  above = jnp.pad(x[:-step, -1:], ((step, 0), _KEPT, _KEPT, _KEPT))
  below = jnp.pad(x[step:, :1], ((0, step), _KEPT, _KEPT, _KEPT))
  return jnp.concatenate([above, x, below], axis=1)


def convolve(
  x: Array, kernel: Array, strips: Strips, *, out_dtype: Any = None
) -> Array:
  """A 3x3 convolution of images, zeros around them.

  Args:
    x: `[N * num, H, W, C]`, from `split`.
    kernel: `[3, 3, C, F]`.
    strips: Of what `split` was called with.
    out_dtype: Dtype of the result; None for that of `x`.

  Returns:
    `[N * num, H, W, F]`.

  >>> convolve(jnp.ones((2, 4, 8, 5)), jnp.ones((3, 3, 5, 7)), Strips(2)).shape
  (2, 4, 8, 7)
  """
  if strips.num == 1:
    return convolution.convolve(x, kernel, out_dtype=out_dtype)
  x = add_neighbours(x, strips)
  return convolution.convolve(x, kernel, pad=(0, 1), out_dtype=out_dtype)


def kernel_gradient(x: Array, dy: Array, strips: Strips) -> Array:
  """The gradient of the kernel of `convolve`.

  Args:
    x: As for `convolve`.
    dy: `[N * num, H, W, F]`, the gradient of its result.
    strips: Of what `split` was called with.

  Returns:
    `[3, 3, C, F]`.

  >>> x, dy = jnp.ones((2, 4, 8, 5)), jnp.ones((2, 4, 8, 7))
  >>> kernel_gradient(x, dy, Strips(2)).shape
  (3, 3, 5, 7)
  """
  if strips.num == 1:
    return convolution.kernel_gradient_by_conv(x, dy)
  return convolution.kernel_gradient_by_conv(
    add_neighbours(x, strips), dy, pad=(0, 1)
  )
