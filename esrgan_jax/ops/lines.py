"""The dense block by lines: some rows at a time go through all of its layers.

What a large image's layer gives does not fit into a CPU's caches, and each of
the five layers of a block would wait for memory again. Here layer i is i rows
behind the first one: what it sees above is there already, and what it sees
below the layer before has just made. So nothing is computed twice, a few rows
of each layer are kept, and only the block's input and result are as large as
the image. The figures are in `docs/generator.md`.

For where nothing is differentiated. Arrays are NHWC and HWIO; `valid` is 1
inside of an image and 0 outside, or None.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from esrgan_jax.ops import axes, winograd
from esrgan_jax.ops.convolution import convolve
from esrgan_jax.ops.pointwise import add_fifth, channels, leaky_relu, mask

Array = jax.Array

# What a core has in its cache, all images of the batch together; fewest rows,
# since those at the seams are copied; and most, for narrow images.
_PIXELS = 2**11
_ROWS = 8
# Of an image, for each core: all of a smaller one stays in the caches.
_MIN_PIXELS = 2**13


def count_rows(
  shape: tuple[Any, ...], *, layers: int, cores: int | None = None
) -> int | None:
  """How many rows go through a block at a time.

  Args:
    shape: `[N, H, W, C]`; dimensions of an exported program may be symbols.
    layers: Of the block.
    cores: None for those that this process may run on.

  Returns:
    Rows; None where the image is too small to be cut, or of a size that is not
    known yet.

  >>> count_rows((1, 608, 672, 64), layers=5, cores=2)
  8
  >>> count_rows((1, 64, 64, 64), layers=5, cores=2) is None
  True
  """
  n, h, w, _ = shape
  if not all(isinstance(size, int) for size in (n, h, w)):
    return None
  cores = cores or _count_cores()
  if n * h * w < _MIN_PIXELS * cores:
    return None
  most = _ROWS * cores
  rows = min(max(_PIXELS * cores // (n * w), _ROWS), most)
  needed = h + layers - 1  # The last layer is so many behind.
  return -(-needed // -(-needed // rows))


def _count_cores() -> int:
  if hasattr(os, "sched_getaffinity"):  # Not on macOS.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def dense_block(
  x: Array,
  first: Sequence[tuple[Array, Array]],
  later: Sequence[Array],
  valid: Array | None,
  *,
  rows: int,
) -> Array:
  """Runs a dense block, and adds a fifth of what it gives to its input.

  Args:
    x: `[N, H, W, F]`.
    first: Kernels and biases from the block's input to all layers: together
      `[3, 3, F, n * G + F]`, the first layer's G outputs first.
    later: From layer 1, 2 .. n to all that come after it, kernels
      `[3, 3, G, ...]`.
    valid: `[N, H, W, 1]`, or None.
    rows: At a time.

  Returns:
    `[N, H, W, F]`.
  """
  n, h, w, feat = x.shape
  lag = len(later)
  widths = [kernel.shape[2] for kernel in later] + [feat]
  steps = -(-(h + lag) // rows)
  above = lag + 1
  below = steps * rows + 1 - h

  def pad(array):
    return jnp.pad(array, ((0, 0), (above, below), (0, 0), (0, 0)))

  x = pad(x)
  valid = None if valid is None else pad(valid)

  def cut(array, row, size):
    return lax.dynamic_slice_in_dim(array, above + row, size, axis=1)

  def inside(row, size):
    """1 within the image: beyond it, what the next layer sees is zero."""
    if valid is not None:
      return cut(valid, row, size)
    rows_of = row + lax.broadcasted_iota(jnp.int32, (1, size, 1, 1), 1)
    return ((rows_of >= 0) & (rows_of < h)).astype(x.dtype)

  def step(kept, i):
    top = i * rows
    seen = cut(x, top - 1, rows + 2)
    sums = jnp.concatenate(
      [_convolve(seen, kernel) + channels(bias) for kernel, bias in first],
      axis=-1,
    )
    # Of each layer, from `above` rows before the new ones.
    sums = [
      jnp.concatenate(pair, axis=1)
      for pair in zip(kept, _split(sums, widths), strict=True)
    ]
    for layer, kernel in enumerate(later):
      behind = layer + 1
      at = above - behind
      seen = leaky_relu(sums[layer][:, at - 1 : at + rows + 1])
      more = _convolve(seen * inside(top - behind - 1, rows + 2), kernel)
      after = layer + 1
      for j, part in enumerate(_split(more, widths[after:]), after):
        sums[j] = sums[j].at[:, at : at + rows].add(part)
    out = sums[-1][:, above - lag : above - lag + rows]
    out = mask(out, None if valid is None else cut(valid, top - lag, rows))
    out = add_fifth(cut(x, top - lag, rows), out)
    return [each[:, rows:] for each in sums], out

  kept = [jnp.zeros((n, above, w, width), x.dtype) for width in widths]
  _, kept = axes.vary_alike((x, kept))
  _, out = lax.scan(step, kept, jnp.arange(steps, dtype=jnp.int32))
  out = out.swapaxes(0, 1).reshape(n, steps * rows, w, feat)
  return out[:, lag : lag + h]


def _split(array: Array, widths: Sequence[int]) -> list[Array]:
  """Parts of an array along its channels."""
  ends = functools.reduce(lambda found, w: [*found, found[-1] + w], widths, [0])
  return jnp.split(array, ends[1:-1], axis=-1)


def _convolve(x: Array, kernel: Array) -> Array:
  """A 3x3 convolution without the rows that see outside: H - 2 of them."""
  if winograd.pays(x, kernel):
    return winograd.convolve(x, kernel, pad_rows=0)
  return convolve(x, kernel, pad=(0, 1))
