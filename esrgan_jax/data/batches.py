"""Batches on the host: the rows that a process has, cut from decoded images."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from esrgan_jax import distributed
from esrgan_jax.data.draws import draw
from esrgan_jax.data.sources import Pair, corner

__all__ = ["Crops", "Placement", "gather_of", "parts_of"]


def parts_of(mesh: Mesh | None) -> tuple[list[tuple[int, ...]], int]:
  """Returns each process's coordinates on the data axis, and which is ours.

  Processes that have the same ones (a second axis runs across them) are one
  part: they make the same rows.

  Args:
    mesh: The mesh, or None for the default device.

  Returns:
    Coordinates of each part, and the number of this process's.

  Raises:
    ValueError: If the mesh has no data axis, or its processes cannot be told
      apart along it.

  >>> parts_of(None)
  ([(0,)], 0)
  """
  if mesh is None:
    return [(0,)], 0
  if "data" not in mesh.axis_names:
    raise ValueError(f"the mesh has axes {mesh.axis_names}, but no 'data'")
  axis = mesh.axis_names.index("data")
  by_process: dict[int, set[int]] = {}
  for position, device in np.ndenumerate(mesh.devices):
    by_process.setdefault(device.process_index, set()).add(position[axis])
  missing = set(range(jax.process_count())) - by_process.keys()
  if (missing and len(by_process) > 1) or jax.process_index() in missing:
    raise ValueError(f"processes {sorted(missing)} have no device in the mesh")
  parts = sorted({tuple(sorted(c)) for c in by_process.values()})
  if sum(map(len, parts)) != mesh.shape["data"]:
    raise ValueError(
      "processes share some coordinates of the mesh's data axis and not others;"
      " give each its own, or the same to several"
    )
  return parts, parts.index(tuple(sorted(by_process[jax.process_index()])))


def gather_of(mesh: Mesh | None) -> Callable[[str], Sequence[str]]:
  """Returns how processes of a mesh exchange texts: not at all, if alone.

  >>> gather_of(None)("mine")
  ['mine']
  """
  if mesh is None or len({d.process_index for d in mesh.devices.flat}) == 1:
    return lambda text: [text]
  return distributed.gather


class Placement:
  """Makes global arrays of the rows that this process has."""

  def __init__(self, mesh, batch_size, scale, size):
    self.batch_size, self.scale, self.size = batch_size, scale, size
    self._sharding = None
    slices = [slice(None)]
    if mesh is not None:
      self._sharding = NamedSharding(mesh, P("data"))
      indices = self._sharding.addressable_devices_indices_map((batch_size,))
      slices = [index[0] for index in indices.values()]
    rows = (range(*part.indices(batch_size)) for part in slices)
    # Of the global batch, in rising order; devices may share them.
    self.rows = sorted(set(itertools.chain(*rows)))

  @property
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch's shapes, types and, on a mesh, shardings."""
    return {
      name: jax.ShapeDtypeStruct(
        (self.batch_size, side, side, 3), np.uint8, sharding=self._sharding
      )
      for name, side in (("lr", self.size), ("hr", self.scale * self.size))
    }

  def empty(self):
    """Returns arrays for the rows of this process, to be filled and `put`."""
    return {
      name: np.empty((len(self.rows), *struct.shape[1:]), np.uint8)
      for name, struct in self.abstract_batch.items()
    }

  def put(self, local):
    """Puts this process's rows on its devices; returns the global batch."""
    if self._sharding is None:
      return jax.tree.map(jnp.asarray, local)
    # The rows of a device follow each other in either batch.
    position = {row: i for i, row in enumerate(self.rows)}

    def put(rows):
      def shard(index):
        start, stop, _ = index[0].indices(self.batch_size)
        return rows[position[start] :][: stop - start]

      shape = (self.batch_size, *rows.shape[1:])
      return jax.make_array_from_callback(shape, self._sharding, shard)

    return jax.tree.map(put, local)


class Crops:
  """Batches of crops of decoded images."""

  def __init__(self, pairs: Sequence[Pair], place: Placement, workers: int):
    self.abstract_batch = place.abstract_batch
    self._pairs, self._place = pairs, place
    # Threads wait side by side for pages of a file that are not in memory.
    self._map = map
    if workers > 1:
      self._map = concurrent.futures.ThreadPoolExecutor(workers).map

  def from_seed(self, seed: int) -> Callable[[int], Any]:
    """Returns what makes a phase's batches, by their steps."""
    return functools.partial(self._batch, seed)

  def _batch(self, seed, step):
    place, size, k = self._place, self._place.size, self._place.scale
    drawn = draw(
      seed, step, batch_size=place.batch_size, count=len(self._pairs)
    )
    local = place.empty()

    def cut(i, row):
      lr, hr = self._pairs[drawn.images[row]]
      y, x = corner(lr.shape, drawn.places[row], size, "")
      local["lr"][i] = lr[y : y + size, x : x + size]
      local["hr"][i] = hr[k * y : k * (y + size), k * x : k * (x + size)]

    done = self._map(cut, itertools.count(), place.rows)
    collections.deque(done, maxlen=0)
    return place.put(local)
