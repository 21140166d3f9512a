"""Many images through few programs: in full batches, in order, within memory.

Images are read ahead, a group at a time, and arranged in windows
(`windows.py`); while devices compute a batch, the one before it is fetched,
what is ready is handed out, and images of the next group are read.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from esrgan_jax.models import registry
from esrgan_jax.upscaling import memory, tiles, windows

# Of all results of a group, on the host.
_GROUP_BYTES = 3 * 2**27
# LR pixels of a group: some full batches, of which the last is not.
_GROUP_PIXELS = 2**23
_GROUP_IMAGES = 1024
# Batches on the devices: one computes while one lands, or on a CPU both do:
# while cores wait for each other in one, there is work in the other.
_IN_FLIGHT = 2
_MOST_PLANNED = 4096

Notify = Callable[[str], None]


@dataclasses.dataclass(eq=False)
class Order:
  """An image on its way.

  Attributes:
    pixels: `[H, W, C]`, C the network's, or 1 where that is 3; H and W
      multiples of the network's.
    out: Where the result goes; it may end earlier than that of `pixels`.
    progress: Called with the number of tiles done and in all.
    error: Why there will be no result.
    flat: Whether the image had no axis of channels.
    total: Its pieces; 0 until it is planned.
    left: Those whose result is not in `out` yet.
    waited: Whether pieces of it were left to be computed with the next group.
    part: Those of its plan's pieces that are wanted, of an image that is read
      and written as it is computed; None: all. `Engine.settle` has the plan.
  """

  pixels: np.ndarray
  out: np.ndarray
  progress: Callable[[int, int], None] | None = None
  error: Exception | None = None
  flat: bool = False
  total: int = 0
  left: set[tiles.Piece] = dataclasses.field(default_factory=set)
  waited: bool = False
  part: Sequence[tiles.Piece] | None = None

  @classmethod
  def failed(cls, error: Exception) -> Order:
    """Returns one that has ended, to stand in its place."""
    nothing = np.empty((0, 0, 1), np.uint8)
    return cls(nothing, nothing, error=error)

  @property
  def ended(self) -> bool:
    """Whether it waits for nothing."""
    return self.error is not None or (self.total > 0 and not self.left)

  @property
  def held(self) -> tuple[int, int]:
    """Its pixels, and the bytes of its result, that are in memory meanwhile."""
    if self.part is not None:
      return 0, 0
    return math.prod(self.pixels.shape[:2]), self.out.nbytes

  def begin(self, plan: tiles.Plan) -> None:
    """Begins, perhaps anew: what of another plan is on its way counts not."""
    self.left = set(plan.pieces)
    self.total = len(self.left)
    self.report()

  def report(self) -> None:
    """Tells how far it is."""
    if self.progress:
      self.progress(self.total - len(self.left), self.total)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How images are cut; see `Upscaler.upscale`."""

  tile: int | str = "auto"
  exact: bool = False
  halo: int | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
  """What devices compute at a time."""

  shape: tiles.Shape
  dtype: np.dtype
  windows: Sequence[windows.Window]
  # Whether its images have others beside them: one alone, which may be large,
  # takes as little memory as it can.
  shared: bool = False


# An image, how it is cut (or what is left of that), and whether it is grey.
_Planned = tuple[Order, tiles.Plan, bool]


class Engine:
  """Runs a model's programs over orders.

  Args:
    net: The network.
    devices: To run on.
    program: Compiles the program of a shape and a dtype, or returns it.
    ready: Whether it need not be compiled.
    put: Places a batch on the devices.
    variables: Of the network, on the devices.
    settings: How images are cut.
    notify: Called with a sentence when tiles had to be made smaller.
  """

  def __init__(
    self,
    net: registry.Generator,
    devices: Sequence[jax.Device],
    *,
    program: Callable[[tiles.Shape, np.dtype], Callable[..., Any]],
    ready: Callable[[tiles.Shape, np.dtype], bool],
    put: Callable[[Any], Any],
    variables: Any,
    settings: Settings,
    notify: Notify,
  ):
    self._net = net
    self._devices = devices
    self._program = program
    self._ready = ready
    self._put = put
    self._variables = variables
    self._settings = settings
    self._notify = notify
    self._halo = tiles.choose_halo(net, settings.halo, exact=settings.exact)
    self._platform = devices[0].platform
    self._tile = self._first_tile
    self._workers: concurrent.futures.Executor | None = None
    # Some images did not fit; those of their group share no windows.
    self._gave_up = False
    self._choices: dict[np.dtype, windows.Choice] = {}
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(variables))
    self._compiling = memory.compiling_pixels(
      self._platform, parameters, registry.passes(net)
    )

  def run(
    self, orders: Iterable[Order], sizes: Iterable[tuple[int, int]] = ()
  ) -> Iterator[Order]:
    """Yields orders in order, each as soon as it has ended.

    Args:
      orders: They are read ahead, as far as a group goes.
      sizes: Height and width of what will come, where they are known: shapes
        are then chosen for all of it, of 8 bits, else for a group at a time.
    """
    if self._platform != "cpu" or len(self._devices) > 1:
      yield from self._run(orders, list(sizes))
      return
    # What a thread dispatches is computed in order, and beside another's.
    with concurrent.futures.ThreadPoolExecutor(_IN_FLIGHT) as self._workers:
      try:
        yield from self._run(orders, list(sizes))
      finally:
        self._workers.shutdown(cancel_futures=True)

  def _run(
    self, orders: Iterable[Order], sizes: list[tuple[int, int]]
  ) -> Iterator[Order]:
    self._foresee(sizes)
    ahead = _Ahead(orders)
    pending: collections.deque[Order] = collections.deque()
    batches: collections.deque[Batch] = collections.deque()
    running: collections.deque[tuple[Batch, Any]] = collections.deque()
    waiting: list[_Planned] = []
    total = 0
    while True:
      if not batches:
        ahead.read(1.0)
        group = ahead.take()
        if self._gave_up:
          self._tile, self._gave_up = self._first_tile, False
        pending.extend(group)
        found, waiting = self._batches(group, waiting, last=ahead.ended)
        batches.extend(found)
        total = len(batches)
        if not (group or batches or running):
          return
      batch = None
      try:
        if batches:
          batch = batches.popleft()
          running.append((batch, self._launch(batch)))
          # Little by little, so that no device waits for all of a group.
          ahead.read(1 - len(batches) / total)
        if len(running) == _IN_FLIGHT or (running and batch is None):
          batch, landing = running.popleft()
          self._land(batch, landing)
      except Exception as error:
        if not memory.is_out_of_memory(error) or batch is None:
          raise
        running.clear()
        batches.clear()
        unfinished = [order for order in pending if not order.ended]
        self._make_smaller(batch.shape, unfinished, expected=True)
        found, waiting = self._batches(unfinished, [], last=ahead.ended)
        batches.extend(found)
        total = len(batches)
      while pending and pending[0].ended:
        yield pending.popleft()

  @property
  def _first_tile(self) -> int:
    tile = self._settings.tile
    return memory.largest_tile(self._platform) if tile == "auto" else tile

  def _foresee(self, sizes: list[tuple[int, int]]) -> None:
    """Chooses shapes for a job whose sizes are known."""
    if len(sizes) < 2:
      return
    multiple = registry.size_multiple(self._net)
    _, channels = registry.channels(self._net)
    step = -(-len(sizes) // _MOST_PLANNED)
    limits = _Limits()
    groups: list[list[tiles.Plan]] = [[]]
    for size in sizes[::step]:
      if limits.reached(1.0):
        limits = _Limits()
        groups.append([])
      height, width = (-(-side // multiple) * multiple for side in size)
      groups[-1].append(self._plan((height, width)))
      pixels = height * width
      limits.add(pixels, pixels * self._net.scale**2 * channels, count=step)
    dtype = np.dtype(np.uint8)
    self._choices[dtype] = self._choose(groups, dtype)

  def settle(self, shape: Sequence[int], dtype: Any) -> tiles.Plan:
    """Returns how an image will be cut, by a program that fits into memory.

    Args:
      shape: Of the image, height and width first, as of `Order.pixels`.
      dtype: Of the image.

    Raises:
      OutOfMemoryError: If there is none.
      ValueError: If tiles were to be exact, and cannot be.
    """
    while True:
      plan = self._plan(shape)
      if self._settings.exact:
        tiles.check_exact(self._net, plan, whole=self._settings.tile == 0)
      program = functools.partial(self._program, plan.shape, np.dtype(dtype))
      if memory.fits(self._devices[0], program):
        return plan
      side = max(plan.shape.height, plan.shape.width)
      smaller = (min(self._tile, side) if self._tile else side) // 2
      if smaller < memory.SMALLEST_TILE:
        raise self._out_of_memory(plan.shape)
      self._tile = smaller

  @property
  def tile(self) -> int:
    """Side of a tile by now, in LR pixels; 0: none."""
    return self._tile

  @property
  def halo(self) -> int:
    """How far tiles overlap, in LR pixels."""
    return self._halo

  def _plan(self, shape: Sequence[int]) -> tiles.Plan:
    return tiles.Plan.make(
      tuple(shape),
      self._net,
      self._tile,
      self._halo,
      memory.strip_size(self._platform),
    )

  def _choose(
    self, groups: Sequence[Sequence[tiles.Plan]], dtype: np.dtype
  ) -> windows.Choice:
    make_shared = None
    gap = registry.mask_gap(self._net)
    if gap is not None and not self._gave_up:

      def make_shared(size: tuple[int, int]) -> tiles.Shape:
        return tiles.make_shape(
          self._net,
          size,
          size,
          memory.strip_size(self._platform),
          masked=True,
          gap=gap,
        )

    return windows.choose(
      groups,
      make_shared,
      largest=(self._tile or memory.largest_tile(self._platform))
      + 2 * self._halo,
      devices=len(self._devices),
      least=memory.least_pixels(self._platform),
      computing=lambda shape: memory.computing_pixels(
        self._platform, shape.area
      ),
      compiling=lambda shape: (
        0.0 if self._ready(shape, dtype) else self._compiling
      ),
    )

  def forecast(self, orders: Iterable[Order]) -> list[Batch]:
    """Returns the batches that orders will go through; compiles nothing."""
    orders = list(orders)
    self._foresee([order.pixels.shape[:2] for order in orders])
    ahead = _Ahead(orders)
    found: list[Batch] = []
    waiting: list[_Planned] = []
    while True:
      ahead.read(1.0)
      group = ahead.take()
      if not (group or waiting):
        return found
      batches, waiting = self._arrange(group, waiting, last=ahead.ended)
      found += batches

  def _arrange(
    self, orders: Sequence[Order], waiting: Sequence[_Planned], *, last: bool
  ) -> tuple[list[Batch], list[_Planned]]:
    """Cuts orders into pieces, and puts them into batches.

    Args:
      orders: A group.
      waiting: What the group before has left.
      last: Whether nothing comes after this group.

    Returns:
      Batches, and what is left for the next group.
    """
    by_dtype: dict[np.dtype, list[_Planned]] = {}
    parts: dict[np.dtype, list[_Planned]] = {}
    for planned in waiting:
      if not planned[0].ended:
        by_dtype.setdefault(planned[0].pixels.dtype, []).append(planned)
    channels, _ = registry.channels(self._net)
    for order in orders:
      if order.ended:
        continue
      plan = self._plan(order.pixels.shape)
      try:
        if self._settings.exact:
          whole = self._settings.tile == 0
          tiles.check_exact(self._net, plan, whole=whole)
      except ValueError as error:
        order.error = error
        continue
      grey = order.pixels.shape[-1] < channels
      where = by_dtype
      if order.part is not None:
        plan = dataclasses.replace(plan, pieces=tuple(order.part))
        where = parts
      order.begin(plan)
      where.setdefault(order.pixels.dtype, []).append((order, plan, grey))
    found: list[Batch] = []
    left: list[_Planned] = []
    count = len(self._devices)
    for dtype, images in parts.items():
      # In their order, whatever else is there: what is done is a beginning.
      alone = windows.arrange(images, windows.Choice((), {}), devices=count)
      found += [
        Batch(shape, dtype, held)
        for shape, held in windows.batches(alone, count)
      ]
    for dtype, images in by_dtype.items():
      choice = self._choices.get(dtype)
      if choice is None or any(not choice.knows(p) for _, p, _ in images):
        choice = self._choose([[plan for _, plan, _ in images]], dtype)
      arranged = windows.arrange(images, choice, devices=count)
      if not last:
        arranged, waiting = windows.hold_back(
          arranged, choice.shared, count, waited=lambda order: order.waited
        )
        left += self._what_is_left(images, waiting)
      found += [
        Batch(shape, dtype, held, shared=len(images) > 1)
        for shape, held in windows.batches(arranged, count)
      ]
    return found, left

  def _what_is_left(
    self, images: Sequence[_Planned], waiting: Sequence[windows.Window]
  ) -> list[_Planned]:
    """Of images, the pieces in windows that are not computed yet."""
    pieces: dict[Order, list[tiles.Piece]] = {}
    for window in waiting:
      for held in window.held:
        pieces.setdefault(held.image, []).append(held.piece)
    left = []
    for order, plan, grey in images:
      if order in pieces:
        order.waited = True
        plan = dataclasses.replace(plan, pieces=tuple(pieces[order]))
        left.append((order, plan, grey))
    return left

  def _batches(
    self, orders: Sequence[Order], waiting: Sequence[_Planned], *, last: bool
  ) -> tuple[list[Batch], list[_Planned]]:
    """Arranges orders into batches whose programs fit into memory.

    Args and returned value are those of `_arrange`.
    """
    while True:
      found, left = self._arrange(orders, waiting, last=last)
      for shape, dtype in dict.fromkeys((b.shape, b.dtype) for b in found):
        program = functools.partial(self._program, shape, dtype)
        if not memory.fits(self._devices[0], program):
          # What waits is cut anew as well, and all of it computed again.
          orders = [order for order, _, _ in waiting] + list(orders)
          waiting = ()
          self._make_smaller(shape, orders, expected=False)
          break
      else:
        return found, left

  def _make_smaller(
    self, shape: tiles.Shape, orders: Sequence[Order], *, expected: bool
  ) -> None:
    """Chooses smaller tiles, or gives up on orders.

    Args:
      shape: Of the windows for which memory does not suffice.
      orders: What is to be done.
      expected: Whether it had looked as if it did.
    """
    self._choices.clear()
    for order in orders:
      if order.part is not None and not order.ended:
        # Its pieces are those of the plan that does not fit.
        order.error = self._out_of_memory(shape)
    if all(order.ended for order in orders):
      return
    was, side = self._tile, max(shape.height, shape.width)
    # Half of what was really used.
    self._tile = (min(was, side) if was else side) // 2
    if self._tile < memory.SMALLEST_TILE:
      # What had seemed to fit, and was alone, would never end.
      last = self._gave_up and expected
      self._tile, self._gave_up = was, True
      for order in orders:
        if not order.ended and (last or not self._fits_alone(order)):
          order.error = self._out_of_memory(shape)
    elif expected or was == self._settings.tile:
      # Else nobody had counted on the larger one.
      self._notify(
        f"too little memory for tiles of {shape.height} x {shape.width}"
        f" pixels; trying again with --tile {self._tile}"
      )

  def _fits_alone(self, order: Order) -> bool:
    """Whether there is memory for an image's own windows."""
    shape = self._plan(order.pixels.shape).shape
    program = functools.partial(self._program, shape, order.pixels.dtype)
    return memory.fits(self._devices[0], program)

  def _out_of_memory(self, shape: tiles.Shape) -> Exception:
    remedy = ", or do without exact tiles" if self._settings.exact else ""
    return memory.OutOfMemoryError(
      f"{self._devices[0]} has too little memory for tiles of"
      f" {shape.height} x {shape.width} pixels (halo {self._halo} included);"
      f" free some or use a smaller model{remedy}"
    )

  def _launch(self, batch: Batch) -> Any:
    """Starts a batch; returns what will be there."""
    shape = batch.shape
    channels, _ = registry.channels(self._net)
    count = len(self._devices) * shape.per_device
    lr = np.zeros((count, shape.height, shape.width, channels), batch.dtype)
    valid = None
    if shape.masked:
      valid = np.zeros((count, shape.height, shape.width, 1), np.bool_)
    corners = np.zeros((count, shape.num_strips, 2), np.int32)
    grey = np.zeros((count,), np.bool_) if channels == 3 else None
    for i, window in enumerate(batch.windows):
      corners[i] = window.corners // shape.multiple
      if grey is not None:
        grey[i] = window.grey
      for held in window.held:
        (top, left), piece = held.at, held.piece
        inside = (
          i,
          slice(top, top + piece.height),
          slice(left, left + piece.width),
        )
        lr[inside] = held.image.pixels[
          piece.rows.start : piece.rows.stop,
          piece.columns.start : piece.columns.stop,
        ]
        if valid is not None:
          valid[inside] = True
    program = self._program(shape, batch.dtype)
    arguments = self._put((lr, corners, valid, grey))
    if not (
      self._workers
      and batch.shared
      and memory.fits_easily(self._devices[0], program, count=_IN_FLIGHT)
    ):
      return program(self._variables, *arguments)

    def compute() -> Any:
      return jax.block_until_ready(program(self._variables, *arguments))

    return self._workers.submit(compute)

  def _land(self, batch: Batch, landing: Any) -> None:
    """Waits for a batch, and puts it where it belongs."""
    if isinstance(landing, concurrent.futures.Future):
      landing = landing.result()
    # Memory that ran out on the way is an error here; fetching such an array
    # ends the process (jaxlib 0.10 on CPU: "buffer_.IsConcrete()").
    results, finite = map(np.asarray, jax.block_until_ready(landing))
    landed = set()
    for strips, sound, window in zip(
      results, finite, batch.windows, strict=False
    ):
      if not sound:
        self._blame(window, batch.dtype)
        continue
      for held in window.held:
        order = held.image
        if order.ended:
          continue
        tiles.place(
          order.out,
          strips[..., : order.out.shape[-1]],
          window.corners,
          held.piece,
          held.at,
          self._net.scale,
        )
        order.left.discard(held.piece)
        landed.add(order)
    for order in landed:
      order.report()

  def _blame(self, window: windows.Window, dtype: np.dtype) -> None:
    """Finds out whose result is not finite: what is not spreads."""
    orders = dict.fromkeys(held.image for held in window.held)
    if len(orders) == 1:
      for order in orders:
        order.error = FloatingPointError(
          "the result is not finite: the model's weights, or the image, hold"
          " values that it cannot handle"
        )
      return
    for order in orders:
      if order.ended:
        continue
      plan = self._plan(order.pixels.shape)
      alone = windows.Choice((), {})
      order.begin(plan)
      for part in windows.arrange([(order, plan, window.grey)], alone):
        batch = Batch(plan.shape, dtype, [part])
        self._land(batch, self._launch(batch))


@dataclasses.dataclass
class _Limits:
  """How much of a group is there."""

  pixels: int = 0
  bytes: int = 0
  images: int = 0

  def add(self, pixels: int, bytes_: int, *, count: int = 1) -> None:
    """Counts an image, or `count` images that are like it."""
    self.pixels += count * pixels
    self.bytes += count * bytes_
    self.images += count

  def reached(self, part: float) -> bool:
    """Tells whether that is a part of a group, or more."""
    return (
      self.pixels >= part * _GROUP_PIXELS
      or self.bytes >= part * _GROUP_BYTES
      or self.images >= part * _GROUP_IMAGES
    )


class _Ahead:
  """Reads a group of orders ahead."""

  def __init__(self, orders: Iterable[Order]):
    self._source = iter(orders)
    self.ended = False
    self._group: list[Order] = []
    self._limits = _Limits()

  def read(self, part: float) -> None:
    """Reads as far as a part of a group goes."""
    while not self._limits.reached(part):
      order = next(self._source, None)
      if order is None:
        self.ended = True
        return
      self._group.append(order)
      self._limits.add(*order.held)

  def take(self) -> list[Order]:
    """Returns what was read, and begins anew."""
    group, self._group = self._group, []
    self._limits = _Limits()
    return group
