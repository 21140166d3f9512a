"""Where a generator starts from when it has not seen an image yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

# After doubling by repetition, this makes linear interpolation of it.
_TENT = ((1, 2, 1), (2, 4, 2), (1, 2, 1))


def start_bilinear(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an RRDBNet's parameters with a path that upscales linearly.

  ESRGAN's generator has no skip around the whole of it: a published start, of
  small random numbers, makes black images, and learns first to copy. Here one
  channel a colour carries the image from `conv_first` to `conv_last`, and the
  two convolutions after the doublings smooth it. All other weights stay: they
  are what is left to learn, and how. The result is near bilinear upscaling; of
  a network that unshuffles pixels, upscaling of their means.

  Args:
    params: Parameters as of `RRDBNet.init`, for 3 channels, and 3 or more
      features.

  Returns:
    Parameters of the same shapes.

  Raises:
    ValueError: If the network is none of this kind.

  Source: none published; the idea is that of ICNR (arXiv:1707.02937), to begin
  as a plain interpolation.

  >>> import jax
  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> lr = jnp.full((1, 8, 8, 3), 0.5)
  >>> params = start_bilinear(net.init(jax.random.key(0), lr)["params"])
  >>> sr = net.apply({"params": params}, lr)
  >>> bool(abs(sr[:, 8:-8, 8:-8].mean() - 0.5) < 0.1)
  True
  """
  missing = {"conv_first", "conv_hr", "conv_last"} - set(params)
  if missing:
    raise ValueError(
      "a bilinear start needs an RRDBNet, and this network has no"
      f" {', '.join(sorted(missing))}; choose initialization=published"
    )
  first = params["conv_first"]["kernel"]
  last = params["conv_last"]["kernel"]
  ups = [name for name in params if name.startswith("conv_up")]
  # Unshuffled, a colour is several channels, one after another.
  copies, rest = divmod(first.shape[2], 3)
  if rest or last.shape[3] != 3 or first.shape[3] < 3:
    raise ValueError(
      "a bilinear start needs 3 channels in and out and 3 features or more,"
      f" got {first.shape[2]}, {last.shape[3]} and {first.shape[3]}; choose"
      " initialization=published"
    )
  point = jnp.zeros((3, 3), jnp.float32).at[1, 1].set(1.0)
  tent = jnp.asarray(_TENT, jnp.float32) / 16
  filters = {"conv_first": point / copies, "conv_hr": point, "conv_last": point}
  filters |= dict.fromkeys(ups, tent)
  filled = dict(params)
  for name, image_filter in filters.items():
    many = copies if name == "conv_first" else 1
    kernel = _carry(params[name]["kernel"], image_filter, many)
    filled[name] = {**params[name], "kernel": kernel}
  return filled


def bilinear_phases(factor: int) -> Array:
  """Returns what each pixel of a block is made of, upscaled bilinearly.

  Args:
    factor: Side of the block that a pixel becomes.

  Returns:
    3x3 kernels, `[3, 3, factor**2]`: of each pixel of the block, its weights.

  >>> bilinear_phases(2)[1, :, 0].tolist()
  [0.1875, 0.5625, 0.0]
  """
  taps = []
  for phase in range(factor):
    offset = (phase + 0.5) / factor - 0.5
    taps.append((max(-offset, 0), 1 - abs(offset), max(offset, 0)))
  taps = jnp.asarray(taps, jnp.float32)
  both = jnp.einsum("py,qx->yxpq", taps, taps)
  return both.reshape(3, 3, factor**2)


def _carry(kernel: Array, image_filter: Array, copies: int) -> Array:
  """Has outputs 0 to 2 be sums of `copies` inputs each, filtered."""
  carried = jnp.zeros((*kernel.shape[:3], 3), kernel.dtype)
  for channel in range(3):
    inputs = slice(copies * channel, copies * (channel + 1))
    taps = image_filter[..., None].astype(kernel.dtype)
    carried = carried.at[:, :, inputs, channel].set(taps)
  return jnp.concatenate([carried, kernel[..., 3:]], axis=-1)
