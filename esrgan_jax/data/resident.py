"""Batches of draws, of images that lie in device memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from esrgan_jax import augment as augment_lib
from esrgan_jax.data.agreement import Agreed
from esrgan_jax.data.draws import draw
from esrgan_jax.data.sources import DataError, Pair

__all__ = ["Resident", "place_on_devices"]


class Resident:
  """Batches of draws, of images in device memory."""

  def __init__(
    self,
    images: augment_lib.Resident,
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    size: int,
    mesh: Mesh | None,
  ):
    self._images, self._sizes = images, np.array(sizes)
    self._batch_size, self._size, self._mesh = batch_size, size, mesh
    whole = None if mesh is None else NamedSharding(mesh, P())
    draws = functools.partial(
      jax.ShapeDtypeStruct, dtype=np.int32, sharding=whole
    )
    self.abstract_batch = {
      "images": jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=None if mesh is None else x.sharding
        ),
        images,
      ),
      "index": draws((batch_size,)),
      "corners": draws((batch_size, 2)),
    }

  def from_seed(self, seed: int) -> Callable[[int], Any]:
    """Returns what makes a phase's batches, by their steps."""
    return functools.partial(self._batch, seed)

  def _batch(self, seed, step):
    drawn = draw(
      seed, step, batch_size=self._batch_size, count=len(self._sizes)
    )
    room = self._sizes[drawn.images] - self._size + 1
    corners = (drawn.places * room).astype(np.int32)
    return {
      "images": self._images,
      "index": _replicate(drawn.images.astype(np.int32), self._mesh),
      "corners": _replicate(corners, self._mesh),
    }


def _replicate(array, mesh):
  if mesh is None:
    return jnp.asarray(array)
  # `device_put` would have all processes compare what they have.
  return jax.make_array_from_callback(
    array.shape, NamedSharding(mesh, P()), lambda index: array[index]
  )


def place_on_devices(
  agreed: Agreed,
  pairs: Mapping[int, Pair],
  scale: int,
  mesh: Mesh | None,
  parts: Sequence[tuple[int, ...]],
) -> augment_lib.Resident:
  """Packs each process's share of the images for its devices.

  Args:
    agreed: Which images there are, and their sizes.
    pairs: Those that this process has decoded, by their numbers.
    scale: HR pixels per LR pixel.
    mesh: The mesh, or None for the default device.
    parts: Of the data axis, as of `batches.parts_of`: images are dealt out to
      these in turn.

  Returns:
    The images, and where each of them lies.

  Raises:
    DataError: If the devices have no room for them.
  """
  devices = sum(map(len, parts))
  # The largest first, each to the device with the fewest rows so far. Everyone
  # finds the same places for the images of all.
  held: dict[int, list[int]] = {c: [] for c in range(devices)}
  heights = [0] * devices
  table = np.empty((len(agreed.usable), 5), np.int32)
  for number in sorted(
    range(len(agreed.usable)), key=lambda n: -min(agreed.sizes[n])
  ):
    mine = parts[agreed.usable[number] % len(parts)]
    least = min(mine, key=lambda c: (heights[c], c))
    h, w = agreed.sizes[number]
    table[number] = (least, heights[least], min(h, w), max(h, w), h > w)
    held[least].append(number)
    heights[least] += min(h, w)
  rows, width = max(heights), int(table[:, 3].max())

  needed = rows * width * 3 * (1 + scale**2)
  limit = _memory_limit(mesh)
  if limit and needed > 0.8 * limit:
    raise DataError(
      f"the images take {needed / 1e9:.1f} GB on each device, of"
      f' {limit / 1e9:.1f} GB; choose data.cache="ram" or "memmap"'
    )

  def packed(which, k):
    def shard(coordinate):
      chosen = [
        np.swapaxes(pairs[agreed.usable[number]][which], 0, 1)
        if table[number, 4]
        else pairs[agreed.usable[number]][which]
        for number in held[coordinate]
      ]
      return augment_lib.pack(chosen, rows=k * rows, width=k * width)

    if mesh is None:
      return jnp.asarray(shard(0))
    return jax.make_array_from_callback(
      (devices * k * rows, k * width * 3),
      NamedSharding(mesh, P("data")),
      lambda index: shard((index[0].start or 0) // (k * rows)),
    )

  return augment_lib.Resident(
    packed(0, 1), packed(1, scale), _replicate(table, mesh)
  )


def _memory_limit(mesh):
  """Returns bytes of a device's memory, None where it does not say."""
  device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
  try:
    return (device.memory_stats() or {}).get("bytes_limit")
  except (RuntimeError, NotImplementedError):
    return None
