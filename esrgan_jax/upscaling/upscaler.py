"""Upscales images of any size with a network, tile by tile.

The image and the result live in host memory; devices see one batch of tiles at
a time, all of one shape, so that one program is compiled for an image.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
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

from esrgan_jax import compilation, tiling
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.weights import files, zoo

Progress = Callable[[int, int], None]
Notify = Callable[[str], None]

# Larger tiles waste less on halos; the CPU's caches stop gaining, and its
# memory is everybody's.
_LARGEST_TILE = {"cpu": 512}
_LARGEST_TILE_ELSEWHERE = 1024
# Features at the result's resolution that the last layers see at a time.
_STRIP_SIZE = {"cpu": 2**25}
_STRIP_SIZE_ELSEWHERE = 2**29
_SMALLEST_TILE = 16
_MEMORY_SHARE = 0.8  # Of what a device has free; the rest is fragmentation's.

# BT.601 luma: how the three channels of a grey image's result become one.
_LUMA = (0.299, 0.587, 0.114)


class OutOfMemoryError(MemoryError):
  """Not even the smallest tile fits into the device's memory."""


def _warn(message: str) -> None:
  warnings.warn(message, stacklevel=3)


class Upscaler:
  """A network with its parameters, ready for images of any size.

  Calling it is the pure function below `upscale`, for `jax.jit` and `jax.vmap`:
  float `[..., H, W, 3]` in [0, 1] to float32 `[..., H * scale, W * scale, 3]`.

  Attributes:
    net: The network.
    params: Its parameters.
    name: What to call it in messages and metadata.
    notes: Sentences on choices made while its file was read.

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
    net: RRDBNet,
    params: Mapping[str, Any],
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
    self.params = jax.device_put(dict(params), self._replicated)
    self._programs: dict[tuple, jax.stages.Compiled] = {}

  @property
  def scale(self) -> int:
    """Size of a result over the size of its image."""
    return self.net.scale

  def with_params(self, params: Mapping[str, Any]) -> Upscaler:
    """Returns this model with other parameters; compiled programs are shared.

    >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> params = net.init(jax.random.key(0), lr)["params"]
    >>> model = Upscaler(net, params).with_params(jax.tree.map(abs, params))
    >>> bool(model.params["conv_first"]["kernel"].min() >= 0)
    True
    """
    other = copy.copy(self)
    other.params = jax.device_put(dict(params), self._replicated)
    return other

  def __call__(self, lr: jax.Array) -> jax.Array:
    """Applies the network to whole float images `[..., H, W, 3]`."""
    return self.net.apply({"params": self.params}, lr)

  def __repr__(self) -> str:
    """Names the model, its scale and its size."""
    return f"Upscaler({self.name or 'RRDBNet'}, x{self.scale})"

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
        equals that of the whole image to rounding. Slow for deep networks.
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
      ValueError: If the shape, the dtype, `tile`, `halo` or `out` don't fit.
      FloatingPointError: If the network's result is not finite.
      OutOfMemoryError: If not even small tiles fit into memory.

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
    if exact:
      halo = self.net.receptive_radius
    elif halo is None:
      halo = min(tiling.DEFAULT_HALO, self.net.receptive_radius)
    if tile != "auto" and (not isinstance(tile, int) or tile < 0):
      raise ValueError(f"tile is {tile!r}; give 'auto', 0 or pixels")

    padded = _pad_to_multiple(pixels, self.net.unshuffle_factor)
    size = tile
    if tile == "auto":
      size = _LARGEST_TILE.get(self._device.platform, _LARGEST_TILE_ELSEWHERE)
    while True:
      plan = self._plan(padded, size, halo)
      enough = self._fits(plan, padded)
      if enough:
        try:
          self._run(plan, padded, out, progress)
          break
        except Exception as error:
          if not _is_out_of_memory(error):
            raise
      was, size = size, _smaller(plan, size)
      if size < _SMALLEST_TILE:
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
    if (self.net.num_in_ch, self.net.num_out_ch) != (3, 3):
      raise ValueError(
        f"this network maps {self.net.num_in_ch} to {self.net.num_out_ch}"
        " channels; images need one that maps 3 to 3"
      )
    if pixels.dtype in (np.uint8, np.uint16):
      return pixels.dtype
    if np.issubdtype(pixels.dtype, np.floating) or pixels.dtype == jnp.bfloat16:
      return np.dtype(np.float32)
    raise ValueError(
      f"the image is {pixels.dtype}; give uint8, uint16, or float in [0, 1]"
    )

  def _plan(self, pixels: np.ndarray, tile: int, halo: int) -> _Plan:
    strip_size = _STRIP_SIZE.get(self._device.platform, _STRIP_SIZE_ELSEWHERE)
    return _Plan.make(pixels.shape, self.net, tile, halo, strip_size)

  def _fits(self, plan: _Plan, pixels: np.ndarray) -> bool:
    """Whether the compiled program fits what the device has free.

    Asked beforehand because, on CPU, running out of memory ends the process.
    """
    free = _free_memory(self._device)
    if free is None:
      return True
    try:
      needed = self._needed_memory(plan, pixels)
    except Exception as error:  # Some compilers find out by themselves.
      if _is_out_of_memory(error):
        return False
      raise
    return needed <= free * _MEMORY_SHARE

  def _needed_memory(self, plan: _Plan, pixels: np.ndarray) -> int:
    memory = self._program(plan, pixels).memory_analysis()
    if memory is None:
      return 0
    return (
      memory.temp_size_in_bytes
      + memory.output_size_in_bytes
      + memory.argument_size_in_bytes
    )

  def _program(self, plan: _Plan, pixels: np.ndarray) -> jax.stages.Compiled:
    key = (plan.shape, pixels.shape[-1], pixels.dtype, plan.masked)
    if key not in self._programs:

      def sharded(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        shape = (self._batch_size, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharded)

      window = (plan.height, plan.width)
      inside = sharded(2, dtype=jnp.int32) if plan.masked else None
      spec = PartitionSpec("data")
      program = jax.shard_map(
        functools.partial(upscale_tiles, self.net, size=plan.strip),
        mesh=self._sharded.mesh,
        in_specs=(PartitionSpec(), spec, spec, spec),
        out_specs=spec,
        check_vma=False,  # Nothing is communicated.
      )
      program = jax.jit(
        program,
        compiler_options=compilation.compiler_options(self._device.platform),
      )
      self._programs[key] = program.lower(
        self.params,
        sharded(*window, pixels.shape[-1], dtype=pixels.dtype),
        sharded(plan.num_strips, 2, dtype=jnp.int32),
        inside,
      ).compile()
    return self._programs[key]

  def _run(
    self,
    plan: _Plan,
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
      batch, (results, finite) = running.popleft()
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
        (lr, corners // self.net.unshuffle_factor, inside), self._sharded
      )
      inside = inside if plan.masked else None
      running.append((batch, program(self.params, lr, corners, inside)))
      if len(running) > 1:
        land()
    while running:
      land()


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Windows of one size that cover an image; sizes in LR pixels.

  What a window contributes leaves the device in strips: the last layers need
  memory for one strip at a time.

  Attributes:
    height: Of a window.
    width: Of a window.
    rows: Windows along the image's height.
    columns: Windows along its width.
    strip_height: Of a strip.
    strip_width: Of a strip, the widest part that a window contributes.
    multiple: All of these are multiples of it: the network's unshuffle factor.
  """

  height: int
  width: int
  rows: tuple[tiling.Span, ...]
  columns: tuple[tiling.Span, ...]
  strip_height: int
  strip_width: int
  multiple: int

  @classmethod
  def make(
    cls,
    shape: tuple[int, ...],
    net: RRDBNet,
    tile: int,
    halo: int,
    strip_size: int,
  ) -> _Plan:
    """Covers an image of `shape`; a strip has about `strip_size` features."""
    multiple = net.unshuffle_factor
    height, rows = tiling.cut(shape[0], tile=tile, halo=halo, multiple=multiple)
    width, columns = tiling.cut(
      shape[1], tile=tile, halo=halo, multiple=multiple
    )
    keep_height = max(span.keep_stop - span.keep_start for span in rows)
    keep_width = max(span.keep_stop - span.keep_start for span in columns)
    row_size = keep_width * net.scale**2 * net.num_feat
    count = max(1, keep_height * row_size // strip_size)
    strip_height = -(-keep_height // count)
    strip_height = -(-strip_height // multiple) * multiple
    return cls(height, width, rows, columns, strip_height, keep_width, multiple)

  @property
  def shape(self) -> tuple[int, ...]:
    """All that a compiled program depends on."""
    return (self.height, self.width, self.num_strips, *self.strip)

  @property
  def strip(self) -> tuple[int, int]:
    """Height and width of a strip in feature pixels."""
    return (
      self.strip_height // self.multiple,
      self.strip_width // self.multiple,
    )

  @property
  def num_strips(self) -> int:
    """Strips that a window contributes."""
    keep = max(span.keep_stop - span.keep_start for span in self.rows)
    return -(-keep // self.strip_height)

  @property
  def masked(self) -> bool:
    """Whether a window is larger than the image."""
    return (
      self.height > self.rows[0].stop - self.rows[0].start
      or self.width > self.columns[0].stop - self.columns[0].start
    )

  def corners(self, rows: tiling.Span, columns: tiling.Span) -> np.ndarray:
    """Returns where in its window each strip begins: int32 `[strips, 2]`."""
    first = rows.keep_start - rows.start
    top = first + self.strip_height * np.arange(self.num_strips)
    left = columns.keep_start - columns.start
    corners = np.stack([top, np.full_like(top, left)], axis=-1)
    # A last strip that would end outside of the window begins earlier.
    limit = (self.height - self.strip_height, self.width - self.strip_width)
    return np.minimum(corners, limit).astype(np.int32)

  def place(
    self,
    out: np.ndarray,
    strips: np.ndarray,
    window: tuple[tiling.Span, tiling.Span],
    scale: int,
  ) -> None:
    """Copies what a window contributes into the result."""
    for strip, corner in zip(strips, self.corners(*window), strict=True):
      target, source = [], []
      for axis, span in enumerate(window):
        # The result ends before the plan where the image was padded.
        start = (span.start + int(corner[axis])) * scale
        low = max(start, span.keep_start * scale)
        stop = min(
          start + strip.shape[axis], span.keep_stop * scale, out.shape[axis]
        )
        target.append(slice(low, stop))
        source.append(slice(low - start, stop - start))
      if all(piece.stop > piece.start for piece in target):
        out[tuple(target)] = strip[tuple(source)]


def upscale_tiles(
  net: RRDBNet,
  params: Mapping[str, Any],
  tiles: jax.Array,
  corners: jax.Array,
  inside: jax.Array | None = None,
  *,
  size: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
  """Upscales strips of tiles as they come from, and go to, the host.

  Strips and their corners are in feature pixels: LR pixels over the network's
  unshuffle factor.

  Args:
    net: The network, from 3 to 3 channels.
    params: Its parameters.
    tiles: `[N, H, W, C]`, C = 3 (RGB) or 1 (grey); uint8, uint16, or float in
      [0, 1].
    corners: int32 `[N, S, 2]`, the first row and column of each strip.
    inside: int32 `[N, 2]`, LR rows and columns of each tile that are image;
      what lies beyond is treated as outside of it. None means all.
    size: Height and width of a strip.

  Returns:
    `[N, S, height, width, C]`, upscaled, of the dtype of `tiles` if that is an
    integer, else float32; and `[N]`, whether the network's result was finite.
  """
  quantised = jnp.issubdtype(tiles.dtype, jnp.integer)
  levels = jnp.iinfo(tiles.dtype).max if quantised else 1
  grey = tiles.shape[-1] == 1
  factor = net.unshuffle_factor
  variables = {"params": params}

  lr = tiles.astype(jnp.float32) / levels
  lr = jnp.broadcast_to(lr, (*lr.shape[:-1], 3))
  valid = None
  if inside is not None:
    rows = jnp.arange(tiles.shape[1] // factor).reshape(1, -1, 1, 1)
    columns = jnp.arange(tiles.shape[2] // factor).reshape(1, 1, -1, 1)
    limit = (inside // factor).reshape(-1, 2, 1, 1, 1)
    valid = (rows < limit[:, 0]) & (columns < limit[:, 1])
  feat = net.apply(variables, lr, valid, method="features")

  margin = net.reconstruct_radius
  limits = np.array(feat.shape[1:3])
  crop = tuple(int(v) for v in np.minimum(limits, np.array(size) + 2 * margin))
  up = net.scale * factor

  def cut(x: jax.Array, corner: jax.Array, size: Sequence[int]) -> jax.Array:
    pieces = [
      jax.lax.dynamic_slice(image, (*at, 0), (*size, x.shape[-1]))
      for image, at in zip(x, corner, strict=True)
    ]
    return jnp.stack(pieces)

  def reconstruct(corner: jax.Array) -> tuple[jax.Array, jax.Array]:
    last = jnp.asarray(limits - crop, jnp.int32).reshape(1, 2)
    start = jnp.clip(corner - margin, 0, last)
    part = None if valid is None else cut(valid, start, crop)
    sr = net.apply(
      variables, cut(feat, start, crop), part, method="reconstruct"
    )
    sr = cut(sr, (corner - start) * up, [v * up for v in size])
    finite = jnp.isfinite(sr).all(axis=(1, 2, 3))
    if grey:
      luma = jnp.asarray(_LUMA, sr.dtype).reshape(1, 1, 1, 3)
      sr = (sr * luma).sum(axis=-1, keepdims=True)
    if quantised:
      sr = jnp.round(jnp.clip(sr, 0, 1) * levels).astype(tiles.dtype)
    return sr, finite

  sr, finite = jax.lax.map(reconstruct, corners.swapaxes(0, 1))
  return sr.swapaxes(0, 1), finite.all(axis=0)


def _smaller(plan: _Plan, tile: int) -> int:
  """Returns the next tile to try: half, of what was really used."""
  side = max(plan.height, plan.width)
  return (min(tile, side) if tile else side) // 2


def _pad_to_multiple(pixels: np.ndarray, multiple: int) -> np.ndarray:
  """Mirrors the last rows and columns, as Real-ESRGAN's `mod_pad` does."""
  for axis in (0, 1):
    missing = -pixels.shape[axis] % multiple
    if missing:
      pad = [(0, 0)] * 3
      pad[axis] = (0, missing)
      mode = "reflect" if pixels.shape[axis] > missing else "edge"
      pixels = np.pad(pixels, pad, mode=mode)
  return pixels


def _free_memory(device: jax.Device) -> int | None:
  """Returns the bytes that a device has free, or None if it doesn't say."""
  if device.platform == "cpu":
    try:
      with open("/proc/meminfo") as file:  # Linux; in units of 1024 bytes.
        fields = dict(line.split(":") for line in file)
      return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
      return None
  stats = device.memory_stats() or {}
  if "bytes_limit" not in stats:
    return None
  return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def _is_out_of_memory(error: BaseException) -> bool:
  if isinstance(error, MemoryError):
    return True
  return isinstance(error, jax.errors.JaxRuntimeError) and (
    "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
  )


def load(
  model: str | os.PathLike[str] = zoo.DEFAULT,
  *,
  scale: int | None = None,
  dtype: str = "auto",
  fetch: bool = True,
  progress: Callable[[int, int | None], None] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Upscaler:
  """Loads a model by name or from a file.

  Args:
    model: A name, as `python -m esrgan_jax models` lists them, or a file:
      `.safetensors`, `.pth` or ncnn's `.param` and `.bin`.
    scale: Upscaling factor, for the rare file that does not tell (x3).
    dtype: Compute dtype: "float32", "bfloat16", or "auto": bfloat16 on GPU and
      TPU, float32 on CPU.
    fetch: Whether a named model that is not here may be downloaded.
    progress: Called with the bytes downloaded so far, and in all where known.
    devices: Devices to run on; None means all local ones.

  Returns:
    The model, its parameters on the devices.

  Raises:
    ValueError: If there is no such name, or the file is no RRDBNet.
    FileNotFoundError: If the file is not there or cannot be fetched.

  >>> model = load("realesrgan-x4plus-anime")
  >>> model.scale, model.net.num_block
  (4, 6)
  """
  platform = (devices or jax.local_devices())[0].platform
  compute = compilation.compute_dtype(dtype, platform)
  text = os.fspath(model)
  named = any(text == row.model.name for row in zoo.models())
  if not named and not os.path.exists(text) and not _looks_like_file(text):
    zoo.get(text)  # Raises, with the nearest names.
  path = zoo.find(text, fetch=fetch, progress=progress) if named else text
  weights = files.read_weights(path, scale=scale)
  return Upscaler(
    RRDBNet(**weights.config, dtype=compute),
    weights.params,
    name=text if named else os.path.basename(text),
    notes=weights.notes,
    devices=devices,
  )


def _looks_like_file(text: str) -> bool:
  return os.sep in text or os.path.splitext(text)[1].lower() in (
    ".safetensors",
    ".pth",
    ".pt",
    ".param",
    ".bin",
    ".ckpt",
  )
