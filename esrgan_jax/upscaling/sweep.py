"""One image by all models that lie between two, in one program.

It is vmapped over alpha, in rounds: the weights are mixed on the device, and as
many models see the image at a time as keep that busy. No alpha, and nothing of
the models but their shapes, is in the program.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax import compilation
from esrgan_jax.interpolate import interpolate_params
from esrgan_jax.models import registry
from esrgan_jax.ops import platforms
from esrgan_jax.upscaling import memory, tiles

__all__ = ["sweep"]


def sweep(
  net: registry.Generator,
  first: Mapping[str, Any],
  last: Mapping[str, Any],
  image: np.ndarray,
  alphas: Sequence[float],
  *,
  tile: int | str = "auto",
  together: int | None = None,
  device: jax.Device | None = None,
) -> np.ndarray:
  """Upscales an image by each model between two.

  Args:
    net: The network of both, of RGB images.
    first: Its variables at alpha 0, `{"params": ...}` and other collections.
    last: Those at alpha 1.
    image: uint8 `[H, W, 3]`.
    alphas: Shares of the last.
    tile: See `Upscaler.upscale`.
    together: How many models see the image at a time, at most; None means as
      many as keep the device busy, and on CPUs one.
    device: To run on; None means the first.

  Returns:
    uint8 `[A, H * scale, W * scale, 3]`, one an alpha.

  Raises:
    ValueError: If the network is none of RGB images, the two do not fit, or
      `together` is below 1.
    FloatingPointError: If a result is not finite; names its alpha.
    OutOfMemoryError: If not even small tiles fit into memory, or the results
      into the host's.

  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> first, last = (
  ...   net.init(jax.random.key(i), jnp.zeros((1, 8, 8, 3))) for i in (0, 1)
  ... )
  >>> image = np.zeros((8, 6, 3), np.uint8)
  >>> sweep(net, first, last, image, [0, 0.5, 1]).shape
  (3, 32, 24, 3)
  """
  if registry.channels(net) != (3, 3):
    raise ValueError(
      f"this network maps {registry.channels(net)[0]} to"
      f" {registry.channels(net)[1]} channels, and a sweep is of RGB images"
    )
  if together is not None and together < 1:
    raise ValueError(f"together is {together}; it is at least 1, or None")
  device = device or jax.local_devices()[0]
  height, width = (side * net.scale for side in image.shape[:2])
  out = _room(len(alphas), height, width)
  pixels = tiles.pad_to_multiple(image, registry.size_multiple(net))
  variables = jax.device_put((first, last), device)
  values = np.asarray(alphas, np.float32)
  plan, program = _fitting(
    net, variables, values, pixels, tile, together, device
  )
  for piece in plan.pieces:
    shape = plan.shape
    window = np.zeros((1, shape.height, shape.width, 3), np.uint8)
    valid = np.zeros((*window.shape[:3], 1), np.bool_)
    inside = (0, slice(piece.height), slice(piece.width))
    window[inside] = pixels[
      piece.rows.start : piece.rows.stop,
      piece.columns.start : piece.columns.stop,
    ]
    valid[inside] = True
    top = piece.rows.keep_start - piece.rows.start
    left = piece.columns.keep_start - piece.columns.start
    corners = shape.corners(top, left)
    strips, finite = map(
      np.asarray,
      program(
        *variables,
        values,
        window,
        corners[None] // shape.multiple,
        valid if shape.masked else None,
      ),
    )
    for index, alpha in enumerate(alphas):
      if not finite[index].all():
        raise FloatingPointError(
          f"the result at alpha {alpha:g} is not finite: the weights between"
          " the two models hold values that the network cannot handle"
        )
      tiles.place(
        out[index], strips[index, 0], corners, piece, (0, 0), net.scale
      )
  return out


def _fitting(net, variables, alphas, pixels, tile, together, device):
  """Returns how to cut the image, and a program that fits into memory."""
  platform = device.platform
  largest = memory.largest_tile(platform) if tile == "auto" else tile
  most, asked = min(together or len(alphas), len(alphas)), together
  while True:
    plan = tiles.Plan.make(
      pixels.shape,
      net,
      largest,
      tiles.choose_halo(net),
      memory.strip_size(platform),
    )
    shape = plan.shape
    if not asked:
      most = min(most, _count_wanted(platform, shape.area))
    together = _even(len(alphas), most)
    compiled = functools.cache(
      functools.partial(
        _compile,
        net,
        shape,
        variables,
        len(alphas),
        together=together,
        device=device,
      )
    )
    if memory.fits(device, compiled):
      return plan, compiled()
    if together > 1:
      most = together // 2
      continue
    side = max(shape.height, shape.width)
    largest = (min(largest, side) if largest else side) // 2
    most = 1
    if largest < memory.SMALLEST_TILE:
      raise memory.OutOfMemoryError(
        f"{device} has too little memory for tiles of {shape.height} x"
        f" {shape.width} pixels; free some or use smaller models"
      )


def _count_wanted(platform, area):
  """How many models keep a device busy, that see windows of an area."""
  if platform == "cpu":
    # A convolution with several models' kernels takes two to three times as
    # long as one model after the other.
    return 1
  return -(-memory.least_pixels(platform) // area)


def _even(count, most):
  """How many go at a time, so that rounds are about alike."""
  rounds = -(-count // most)
  return -(-count // rounds)


def _compile(net, shape, variables, count, *, together, device):
  def run(first, last, alphas, window, corners, valid):
    def one(alpha):
      mixed = interpolate_params(first, last, alpha=alpha)
      return tiles.upscale_tiles(
        net, mixed, window, corners, valid, size=shape.strip
      )

    # Whole rounds, so that the network is in the program once.
    padded = jnp.pad(alphas, (0, -count % together), mode="edge")
    results = jax.lax.map(one, padded, batch_size=together)
    return jax.tree.map(lambda x: x[:count], results)

  def like(*size, dtype):
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.ShapeDtypeStruct(size, dtype, sharding=sharding)

  window = (1, shape.height, shape.width)
  options = compilation.compiler_options(device.platform)
  with platforms.tracing_for(device.platform):
    lowered = jax.jit(run, compiler_options=options).lower(
      *variables,
      like(count, dtype=np.float32),
      like(*window, 3, dtype=np.uint8),
      like(1, shape.num_strips, 2, dtype=np.int32),
      like(*window, 1, dtype=np.bool_) if shape.masked else None,
    )
  return lowered.compile()


def _room(count, height, width):
  needed = count * height * width * 3
  free = memory.free_host_memory()
  if free is not None and needed > free // 2:
    raise memory.OutOfMemoryError(
      f"{count} results of {width} x {height} pixels need {needed / 1e9:.1f} GB"
      f" of memory, and {free / 1e9:.1f} GB are free; take fewer alphas, or a"
      " part of the image"
    )
  return np.empty((count, height, width, 3), np.uint8)
