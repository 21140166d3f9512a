"""Upscales images of any size with a network, tile by tile.

The image and the result live in host memory; devices see one batch of tiles at
a time, all of one shape, so that one program is compiled for an image.
"""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from esrgan_jax import compilation
from esrgan_jax.models import registry
from esrgan_jax.upscaling import memory, tiles
from esrgan_jax.upscaling.memory import OutOfMemoryError
from esrgan_jax.weights import find, zoo

__all__ = ["OutOfMemoryError", "Upscaler", "load"]

Progress = Callable[[int, int], None]
Notify = Callable[[str], None]


def _warn(message: str) -> None:
  warnings.warn(message, stacklevel=3)


class Upscaler:
  """A network with its parameters, ready for images of any size.

  Calling it is the pure function below `upscale`, for `jax.jit` and `jax.vmap`:
  float `[..., H, W, 3]` in [0, 1] to float32 `[..., H * scale, W * scale, 3]`.

  Args:
    net: The network: any that keeps the protocol of `models.registry`.
    params: Its parameters.
    collections: What it has besides, such as BatchNorm's `batch_stats`.
    name: What to call it in messages and metadata.
    notes: Sentences on choices made while its file was read.
    devices: Devices to run on; None means all local ones.

  Attributes:
    net: As given.
    params: On the devices.
    collections: On the devices.
    name: As given.
    notes: As given.

  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> lr = jnp.zeros((1, 8, 8, 3))
  >>> model = Upscaler(net, net.init(jax.random.key(0), lr)["params"])
  >>> model.upscale(np.zeros((5, 6, 3), np.uint8)).shape
  (20, 24, 3)
  >>> jax.jit(model)(lr).shape
  (1, 32, 32, 3)
  """

  def __init__(
    self,
    net: registry.Generator,
    params: Mapping[str, Any],
    collections: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    notes: Sequence[str] = (),
    devices: Sequence[jax.Device] | None = None,
  ):
    self.net = net
    self.name = name
    self.notes = tuple(notes)
    devices = list(devices or jax.local_devices())
    self._device = devices[0]
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._sharded = NamedSharding(mesh, PartitionSpec("data"))
    self._batch_size = len(devices)
    self._put(params, collections)
    self._programs: dict[tuple, jax.stages.Compiled] = {}

  def _put(self, params, collections):
    self.params, self.collections = jax.device_put(
      (dict(params), dict(collections or {})), self._replicated
    )

  @property
  def scale(self) -> int:
    """Size of a result over the size of its image."""
    return self.net.scale

  def with_params(
    self,
    params: Mapping[str, Any],
    collections: Mapping[str, Any] | None = None,
  ) -> Upscaler:
    """Returns this model with other parameters; compiled programs are shared.

    Args:
      params: The other ones.
      collections: What belongs to them; None where there is none.

    >>> from esrgan_jax.models.rrdb import RRDBNet
    >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> params = net.init(jax.random.key(0), lr)["params"]
    >>> model = Upscaler(net, params).with_params(jax.tree.map(abs, params))
    >>> bool(model.params["conv_first"]["kernel"].min() >= 0)
    True
    """
    other = copy.copy(self)
    other._put(params, collections)
    return other

  def __call__(self, lr: jax.Array) -> jax.Array:
    """Applies the network to whole float images `[..., H, W, 3]`."""
    return registry.infer(self.net, self._variables, lr)

  def __repr__(self) -> str:
    """Names the model, its scale and its size."""
    return f"Upscaler({self.name or type(self.net).__name__}, x{self.scale})"

  @property
  def _variables(self):
    return {"params": self.params, **self.collections}

  def upscale(
    self,
    image: np.ndarray | jax.Array,
    *,
    tile: int | str = "auto",
    exact: bool = False,
    halo: int | None = None,
    out: np.ndarray | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
  ) -> np.ndarray:
    """Upscales an image of any size.

    Args:
      image: `[H, W, 3]` RGB, or `[H, W, 1]` or `[H, W]` grey, which comes out
        grey: uint8, uint16, or float in [0, 1].
      tile: Side in LR pixels of what one tile contributes; its halo comes on
        top. "auto" takes the largest that fits the memory, 0 does not tile.
      exact: Give tiles a halo as wide as the network looks, so that the result
        equals that of the whole image to rounding. Slow for deep networks;
        where a network does not tell how far it looks, only one tile is.
      halo: LR pixels around a tile; None means a width whose error is below
        one level of 255 (docs/tiling.md).
      out: Where to write the result, e.g. a `numpy.memmap`.
      progress: Called with the number of tiles done and in all.
      notify: Called with a sentence when tiles had to be made smaller; None
        means `warnings.warn`.

    Returns:
      `[H * scale, W * scale(, C)]` of the image's dtype, on the host. Integers
      are rounded and clipped; floats are float32 and may overshoot [0, 1].

    Raises:
      ValueError: If the shape, the dtype, `tile`, `halo` or `out` don't fit,
        or tiles of this network cannot be exact.
      FloatingPointError: If the network's result is not finite.
      OutOfMemoryError: If not even small tiles fit into memory.

    >>> from esrgan_jax.models.rrdb import RRDBNet
    >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> model = Upscaler(net, net.init(jax.random.key(0), lr)["params"])
    >>> whole = model.upscale(np.ones((60, 40), np.float32), tile=0)
    >>> tiled = model.upscale(np.ones((60, 40), np.float32), tile=8, exact=True)
    >>> bool(np.allclose(whole, tiled, atol=1e-5))
    True
    """
    image = np.asarray(image)
    pixels = image[..., None] if image.ndim == 2 else image
    dtype = self._check(pixels)
    height, width, channels = pixels.shape
    shape = (height * self.scale, width * self.scale, channels)
    if image.ndim == 2 and out is not None:
      out = out[..., None]
    if out is None:
      out = np.empty(shape, dtype)
    elif out.shape != shape or out.dtype != dtype:
      raise ValueError(
        f"out is {out.dtype} {out.shape}; it must be {dtype} {shape}"
      )
    halo = tiles.choose_halo(self.net, halo, exact=exact)
    if tile != "auto" and (not isinstance(tile, int) or tile < 0):
      raise ValueError(f"tile is {tile!r}; give 'auto', 0 or pixels")

    padded = tiles.pad_to_multiple(pixels, registry.size_multiple(self.net))
    size = tile
    if tile == "auto":
      size = memory.largest_tile(self._device.platform)
    while True:
      plan = self._plan(padded, size, halo)
      if exact:
        tiles.check_exact(self.net, plan, whole=tile == 0)
      # Bound at once: `plan` changes from turn to turn.
      program = functools.partial(self._program, plan, padded)
      enough = memory.fits(self._device, program)
      if enough:
        try:
          self._run(plan, padded, out, progress)
          break
        except Exception as error:
          if not memory.is_out_of_memory(error):
            raise
      was, size = size, _smaller(plan, size)
      if size < memory.SMALLEST_TILE:
        raise OutOfMemoryError(
          f"{self._device} has too little memory for tiles of {plan.height} x"
          f" {plan.width} pixels (halo {halo} included); free some or use a"
          f" smaller model{', or do without exact tiles' if exact else ''}"
        )
      if enough or was == tile:  # Else nobody had counted on the larger one.
        (notify or _warn)(
          f"too little memory for tiles of {plan.height} x {plan.width} pixels;"
          f" trying again with --tile {size}"
        )
    return out[..., 0] if image.ndim == 2 else out

  def _check(self, pixels: np.ndarray) -> np.dtype:
    """Returns the result's dtype, or raises if the image cannot be used."""
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
      raise ValueError(
        f"the image has shape {pixels.shape}; expected [H, W, 3] or [H, W, 1],"
        " with at least one pixel"
      )
    channels = [
      getattr(self.net, name, 3) for name in ("num_in_ch", "num_out_ch")
    ]
    if channels != [3, 3]:
      raise ValueError(
        f"this network maps {channels[0]} to {channels[1]} channels; images"
        " need one that maps 3 to 3"
      )
    if pixels.dtype in (np.uint8, np.uint16):
      return pixels.dtype
    if np.issubdtype(pixels.dtype, np.floating) or pixels.dtype == jnp.bfloat16:
      return np.dtype(np.float32)
    raise ValueError(
      f"the image is {pixels.dtype}; give uint8, uint16, or float in [0, 1]"
    )

  def _plan(self, pixels: np.ndarray, tile: int, halo: int) -> tiles.Plan:
    strip_size = memory.strip_size(self._device.platform)
    return tiles.Plan.make(pixels.shape, self.net, tile, halo, strip_size)

  def _program(
    self, plan: tiles.Plan, pixels: np.ndarray
  ) -> jax.stages.Compiled:
    key = (plan.shape, pixels.shape[-1], pixels.dtype, plan.masked)
    if key not in self._programs:

      def sharded(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        shape = (self._batch_size, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharded)

      window = (plan.height, plan.width)
      inside = sharded(2, dtype=jnp.int32) if plan.masked else None
      spec = PartitionSpec("data")
      program = jax.shard_map(
        functools.partial(tiles.upscale_tiles, self.net, size=plan.strip),
        mesh=self._sharded.mesh,
        in_specs=(PartitionSpec(), spec, spec, spec),
        out_specs=spec,
        check_vma=False,  # Nothing is communicated.
      )
      program = jax.jit(
        program,
        compiler_options=compilation.compiler_options(self._device.platform),
      )
      with jax.set_mesh(self._sharded.mesh):  # Whatever the caller's is.
        self._programs[key] = program.lower(
          self._variables,
          sharded(*window, pixels.shape[-1], dtype=pixels.dtype),
          sharded(plan.num_strips, 2, dtype=jnp.int32),
          inside,
        ).compile()
    return self._programs[key]

  def _run(
    self,
    plan: tiles.Plan,
    pixels: np.ndarray,
    out: np.ndarray,
    progress: Progress | None,
  ) -> None:
    """Runs every window of a plan; the next batch computes while one lands."""
    program = self._program(plan, pixels)
    windows = list(itertools.product(plan.rows, plan.columns))
    total = len(windows)
    if progress:
      progress(0, total)
    running: collections.deque = collections.deque()
    done = 0

    def land() -> None:
      nonlocal done
      batch, landing = running.popleft()
      # Memory that ran out on the way is an error here; fetching such an array
      # ends the process (jaxlib 0.10 on CPU: "buffer_.IsConcrete()").
      results, finite = jax.block_until_ready(landing)
      if not np.asarray(finite).all():
        raise FloatingPointError(
          f"the result of {self!r} is not finite: its weights, or the image,"
          " hold values that it cannot handle"
        )
      for strips, window in zip(np.asarray(results), batch, strict=False):
        plan.place(out, strips, window, self.scale)
      done += len(batch)
      if progress:
        progress(done, total)

    for first in range(0, total, self._batch_size):
      batch = windows[first : first + self._batch_size]
      shape = (self._batch_size, plan.height, plan.width, pixels.shape[-1])
      lr = np.zeros(shape, pixels.dtype)
      corners = np.zeros((self._batch_size, plan.num_strips, 2), np.int32)
      inside = np.ones((self._batch_size, 2), np.int32)
      for i, (rows, columns) in enumerate(batch):
        window = pixels[rows.start : rows.stop, columns.start : columns.stop]
        lr[i, : window.shape[0], : window.shape[1]] = window
        inside[i] = window.shape[:2]
        corners[i] = plan.corners(rows, columns)
      lr, corners, inside = jax.device_put(
        (lr, corners // plan.multiple, inside), self._sharded
      )
      inside = inside if plan.masked else None
      running.append((batch, program(self._variables, lr, corners, inside)))
      if len(running) > 1:
        land()
    while running:
      land()


def _smaller(plan: tiles.Plan, tile: int) -> int:
  """Returns the next tile to try: half, of what was really used."""
  side = max(plan.height, plan.width)
  return (min(tile, side) if tile else side) // 2


def load(
  model: str | os.PathLike[str] = zoo.DEFAULT,
  *,
  scale: int | None = None,
  config: Mapping[str, Any] | None = None,
  dtype: str = "auto",
  fetch: bool = True,
  progress: Callable[[int, int | None], None] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Upscaler:
  """Loads a model by name, from a file, or from where it was trained.

  Args:
    model: A name, as `python -m esrgan_jax models` lists them; a file:
      `.safetensors`, `.pth` or ncnn's `.param` and `.bin`; a workdir of
      training, a phase's folder in it, or a checkpoint. See `weights.find`.
    scale: Upscaling factor, for the rare file that does not tell (x3).
    config: The network's architecture and fields, for another program's
      checkpoint that has none beside it; see `load_checkpoint`.
    dtype: Compute dtype: "float32", "bfloat16", or "auto": bfloat16 on GPU and
      TPU, float32 on CPU.
    fetch: Whether a named model that is not here may be downloaded.
    progress: Called with the bytes downloaded so far, and in all where known.
    devices: Devices to run on; None means all local ones.

  Returns:
    The model, its parameters on the devices.

  Raises:
    ValueError: If there is no such name, or the file holds no such network.
    FileNotFoundError: If the file is not there or cannot be fetched.

  >>> model = load("realesrgan-x4plus-anime")
  >>> model.scale, model.net.num_block
  (4, 6)
  """
  platform = (devices or jax.local_devices())[0].platform
  compute = compilation.compute_dtype(dtype, platform)
  found = find.find_model(
    model, scale=scale, config=config, fetch=fetch, progress=progress
  )
  return Upscaler(
    registry.make_generator(**found.weights.config, dtype=compute),
    found.weights.params,
    found.weights.collections,
    name=found.name,
    notes=found.weights.notes,
    devices=devices,
  )
