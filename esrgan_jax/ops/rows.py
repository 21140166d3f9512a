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

from esrgan_jax.ops import convolution

Array = jax.Array

_SUBLANES = 8
_NONE = (0, 0)


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
    How to cut; not at all where there are images enough, or rows cannot be
    shared out equally.

  >>> [choose_strips((n, 32, 32, 64)).num for n in (1, 2, 3, 8)]
  [8, 4, 8, 1]
  >>> choose_strips((1, 31, 9, 64)) == WHOLE
  True
  """
  n, h = shape[:2]
  if not (isinstance(n, int) and isinstance(h, int)):
    return WHOLE
  devices = Strips(mesh=mesh).devices
  num = _SUBLANES // math.gcd(n // devices, _SUBLANES)
  fits = n % devices == 0 and 0 < n // devices < _SUBLANES
  return Strips(num, mesh) if fits and h and h % num == 0 else WHOLE


def split(x: Array, strips: Strips) -> Array:
  """Cuts images.

  Args:
    x: `[N, H, W, C]`.
    strips: From `choose_strips`.

  Returns:
    `[N * num, H / num, W, C]`.

  >>> x = jnp.arange(8).reshape(2, 4, 1, 1)
  >>> split(x, Strips(2))[..., 0, 0].tolist()
  [[0, 1], [4, 5], [2, 3], [6, 7]]
  """
  n, h, *rest = x.shape
  num, devices = strips.num, strips.devices
  x = x.reshape(devices, n // devices, num, h // num, *rest)
  return x.swapaxes(1, 2).reshape(n * num, h // num, *rest)


def join(x: Array, strips: Strips) -> Array:
  """Undoes `split`.

  >>> x = jnp.arange(8).reshape(2, 4, 1, 1)
  >>> bool((join(split(x, Strips(2)), Strips(2)) == x).all())
  True
  """
  n, h, *rest = x.shape
  num, devices = strips.num, strips.devices
  x = x.reshape(devices, num, n // (devices * num), h, *rest)
  return x.swapaxes(1, 2).reshape(n // num, h * num, *rest)


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
  above = jnp.pad(x[:-step, -1:], ((step, 0), _NONE, _NONE, _NONE))
  below = jnp.pad(x[step:, :1], ((0, step), _NONE, _NONE, _NONE))
  return jnp.concatenate([above, x, below], axis=1)


def convolve(x: Array, kernel: Array, strips: Strips) -> Array:
  """A 3x3 convolution of images, zeros around them.

  Args:
    x: `[N * num, H, W, C]`, from `split`.
    kernel: `[3, 3, C, F]`.
    strips: Of what `split` was called with.

  Returns:
    `[N * num, H, W, F]`.

  >>> convolve(jnp.ones((2, 4, 8, 5)), jnp.ones((3, 3, 5, 7)), Strips(2)).shape
  (2, 4, 8, 7)
  """
  if strips.num == 1:
    return convolution.convolve(x, kernel)
  return convolution.convolve(add_neighbours(x, strips), kernel, pad=(0, 1))


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
