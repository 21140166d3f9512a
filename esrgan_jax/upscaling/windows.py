"""Which windows a job's images go through: few shapes, and hardly empty.

A program is compiled for each shape of windows, which costs as much as some
thousands of pixels; what a window has beyond its pieces is computed for
nothing. So images of many sizes share large windows, where the network takes a
mask, and what fits into smaller ones has those, where that is worth a program;
images of one size have windows of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from esrgan_jax.upscaling.tiles import Piece, Plan, Shape

# Shapes for images of one piece and one size, besides the one for all others.
_MOST_OWN = 3
# How full shared windows get, about: with pieces of all sizes, and with those
# that leave no room for another of their kind.
_FILL, _FILL_LARGE = 0.93, 0.8
_STEP = 32
# What a window has to hold, and how many of a job's may wait to hold more.
_FULL = 0.9
_WAITING = 1 / 3
# Packing some hundred pieces takes milliseconds; with more of them, what is
# chosen costs no less.
_TRIED = 48
_MOST_PACKED = 256
# Of the best, those that are tried with smaller windows beside them, whose
# sides are these parts of the longest.
_TRIED_TWO = 3
_PARTS = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1)


@dataclasses.dataclass(frozen=True)
class Held:
  """A piece in a window.

  Attributes:
    image: Whose it is.
    piece: The piece.
    at: Where in the window its first row and column lie.
  """

  image: Any
  piece: Piece
  at: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Window:
  """A window and what it holds.

  Attributes:
    shape: Of the window.
    grey: Whether what it holds is grey.
    held: At least one piece.
  """

  shape: Shape
  grey: bool
  held: Sequence[Held]

  @property
  def fill(self) -> float:
    """The part of it that pieces take."""
    area = sum(held.piece.height * held.piece.width for held in self.held)
    return area / self.shape.area

  @property
  def corners(self) -> np.ndarray:
    """Where its strips begin, in LR pixels."""
    if self.shape.gap is not None:
      return self.shape.corners()
    (held,) = self.held
    rows, columns = held.piece.rows, held.piece.columns
    return self.shape.corners(
      rows.keep_start - rows.start, columns.keep_start - columns.start
    )


@dataclasses.dataclass(frozen=True)
class Choice:
  """The shapes of a job.

  Attributes:
    shared: For pieces of any size up to theirs; the first takes all, another
      is smaller. Empty where pieces share no windows.
    own: Shapes that images of one size keep for themselves, by those of their
      plans: of small windows, a device sees several at a time.
  """

  shared: Sequence[Shape]
  own: Mapping[Shape, Shape]

  def knows(self, plan: Plan) -> bool:
    """Whether there is a shape for an image."""
    return plan.shape in self.own or self.takes(plan)

  def takes(self, plan: Plan) -> bool:
    """Whether an image goes into shared windows."""
    return (
      len(self.shared) > 0
      and plan.shape not in self.own
      and all(fits(piece, self.shared[0]) for piece in plan.pieces)
    )


def fits(piece: Piece, shape: Shape) -> bool:
  """Returns whether a window has room for a piece."""
  return piece.height <= shape.height and piece.width <= shape.width


def choose(
  groups: Sequence[Sequence[Plan]],
  make_shared: Callable[[tuple[int, int]], Shape] | None,
  *,
  largest: int,
  devices: int,
  least: int,
  computing: Callable[[Shape], float],
  compiling: Callable[[Shape], float],
) -> Choice:
  """Chooses a job's shapes, by the pixels that are computed.

  Args:
    groups: Plans of its images, or of a fair sample of them, as they will be
      arranged together.
    make_shared: Makes the shape of shared windows of a height and a width; None
      where the network takes no mask.
    largest: The longest side to try.
    devices: How many there are.
    least: Pixels that keep a device busy.
    computing: What a window of a shape costs, in pixels.
    compiling: What a shape's program costs, in pixels; 0 if it is there.

  Returns:
    The shapes.
  """
  plans = [plan for group in groups for plan in group]
  classes: dict[Shape, list[Plan]] = {}
  for plan in plans:
    classes.setdefault(plan.shape, []).append(plan)

  def keep(shapes: Iterable[Shape]) -> dict[Shape, Shape]:
    kept = {}
    for shape in shapes:
      count = sum(len(plan.pieces) for plan in classes[shape])
      most = max(1, min(least // shape.area, count // devices))
      # A power of two, so that other jobs have the same.
      per_device = 2 ** int(math.log2(most))
      kept[shape] = dataclasses.replace(shape, per_device=per_device)
    return kept

  everything = Choice((), keep(classes))
  if make_shared is None or len(plans) < 2:
    return everything

  def own_cost(shape: Shape) -> float:
    count = sum(len(plan.pieces) for plan in classes[shape])
    # The last batch is computed whole, but images to come may fill it.
    return max(1, count / devices) * computing(shape) + compiling(shape)

  def area(plans: Iterable[Plan]) -> int:
    return sum(p.height * p.width for plan in plans for p in plan.pieces)

  def gain(shape: Shape) -> float:
    large = 2 * min(shape.height, shape.width) > largest
    shared = area(classes[shape]) / (_FILL_LARGE if large else _FILL) / devices
    return shared - own_cost(shape)

  gains = {shape: gain(shape) for shape in classes}
  useful = [s for s in sorted(gains, key=gains.get)[::-1] if gains[s] > 0]
  cut = {shape for shape in useful if len(classes[shape][0].pieces) > 1}
  own = cut | {*[shape for shape in useful if shape not in cut][:_MOST_OWN]}
  rest = [plan for plan in plans if plan.shape not in own]
  if not rest:
    return Choice((), keep(own))
  pieces = [piece for plan in rest for piece in plan.pieces]
  total = area(rest)
  sample = _sample(
    [
      [
        piece
        for plan in group
        if plan.shape not in own
        for piece in plan.pieces
      ]
      for group in groups
    ]
  )
  part = total / sum(p.height * p.width for group in sample for p in group)

  def sides(least: int) -> list[int]:
    steps = range(-(-least // _STEP) * _STEP, largest + 1, _STEP)
    return list(steps) or [least]

  def estimate(size: tuple[int, int]) -> float:
    count = math.ceil(total / _FILL / math.prod(size))
    return math.ceil(count / devices) * math.prod(size)

  def cost(shapes: Sequence[Shape]) -> float:
    counts = _count_windows(sample, shapes, devices)
    return sum(
      math.ceil(part * count / devices) * computing(shape) + compiling(shape)
      for shape, count in zip(shapes, counts, strict=True)
    )

  sizes = itertools.product(
    sides(max(piece.height for piece in pieces)),
    sides(max(piece.width for piece in pieces)),
  )
  tried = [make_shared(size) for size in sorted(sizes, key=estimate)[:_TRIED]]
  costs = {(shape,): cost((shape,)) for shape in tried}
  small = [math.ceil(largest * part / _STEP) * _STEP for part in _PARTS]
  for shape in sorted(tried, key=lambda shape: costs[shape,])[:_TRIED_TWO]:
    for size in itertools.product(small, small):
      within = size[0] <= shape.height and size[1] <= shape.width
      # What is nearly as large brings nothing.
      if within and 2 * math.prod(size) <= shape.area:
        both = (shape, make_shared(size))
        costs[both] = cost(both)
  shared = min(costs, key=costs.get)
  alone = sum(own_cost(shape) for shape in classes if shape not in own)
  if costs[shared] >= alone:
    return everything
  return Choice(shared, keep(own))


def _sample(groups: Sequence[Sequence[Piece]]) -> list[Sequence[Piece]]:
  """Returns as many groups as can be packed in no time, or one that is less."""
  groups = [group for group in groups if group]
  found = groups[:: -(-sum(map(len, groups)) // _MOST_PACKED)]
  return [group[:: -(-len(group) // _MOST_PACKED)] for group in found]


def _count_windows(
  groups: Sequence[Sequence[Piece]], shapes: Sequence[Shape], devices: int
) -> list[int]:
  """Returns how many windows of each shape groups take, one after another."""
  found: list[Window] = []
  left: list[tuple[Any, Piece]] = []
  waited: set[Any] = set()
  for number, group in enumerate(groups):
    items = left + [((number, i), piece) for i, piece in enumerate(group)]
    filled, waiting = _share(items, shapes, False), []
    if number + 1 < len(groups):
      filled, waiting = hold_back(
        filled, shapes, devices, waited=waited.__contains__
      )
    left = [(held.image, held.piece) for w in waiting for held in w.held]
    waited.update(key for key, _ in left)
    found += filled
  return [sum(window.shape == shape for window in found) for shape in shapes]


def arrange(
  images: Iterable[tuple[Hashable, Plan, bool]],
  choice: Choice,
  *,
  devices: int = 1,
) -> list[Window]:
  """Puts images into windows.

  Args:
    images: Each, its plan, and whether it is grey: windows are grey or not.
    choice: The job's shapes.
    devices: To have work alike.

  Returns:
    Windows, in the order of the first image in them.
  """
  windows: list[Window] = []
  shared: dict[bool, list[tuple[Hashable, Piece]]] = {}
  order = {}
  for key, plan, grey in images:
    order[key] = len(order)
    pieces = plan.pieces
    if choice.takes(plan):
      shared.setdefault(grey, []).extend((key, piece) for piece in pieces)
      continue
    shape = choice.own.get(plan.shape, plan.shape)
    windows += [
      Window(shape, grey, [Held(key, piece, (0, 0))]) for piece in pieces
    ]
  for grey, items in shared.items():
    filled = _share(items, choice.shared, grey)
    for shape in choice.shared:
      alike = [window for window in filled if window.shape == shape]
      windows += _spread(alike, devices)
  windows.sort(key=lambda window: min(order[h.image] for h in window.held))
  return windows


def hold_back(
  windows: Sequence[Window],
  shared: Sequence[Shape],
  devices: int,
  *,
  waited: Callable[[Any], bool],
) -> tuple[list[Window], list[Window]]:
  """Parts windows from those that are to be packed again, with what comes next.

  Args:
    windows: From `arrange`.
    shared: The shapes of those that images share.
    devices: Those beyond a full batch wait as well.
    waited: Whether an image did before: none waits twice, for those after it
      are handed out after it.

  Returns:
    Those to be computed now, and no more than a third of those of each shared
    shape: the least full.
  """
  waiting: list[Window] = []
  for shape, grey in itertools.product(shared, (False, True)):
    alike = [w for w in windows if w.shape == shape and w.grey == grey]
    left, found = len(alike), []
    for window in sorted(alike, key=lambda window: window.fill):
      if left - 1 < len(alike) * (1 - _WAITING):
        break
      if window.fill >= _FULL and not left % devices:
        break
      if not any(waited(held.image) for held in window.held):
        found.append(window)
        left -= 1
    # A batch is computed whole: the fullest take what room is left in it.
    room = -left % devices
    waiting += found[: max(len(found) - room, 0)]
  chosen = set(map(id, waiting))
  return [window for window in windows if id(window) not in chosen], waiting


def batches(
  windows: Sequence[Window], devices: int
) -> list[tuple[Shape, list[Window]]]:
  """Cuts windows into what is computed at a time; the first come first."""
  waiting: dict[Shape, list[Window]] = {}
  found: list[tuple[Shape, list[Window]]] = []
  for window in windows:
    shape = window.shape
    if shape not in waiting:
      waiting[shape] = []
      found.append((shape, waiting[shape]))
    waiting[shape].append(window)
    if len(waiting[shape]) == devices * shape.per_device:
      del waiting[shape]
  return found


def _share(
  items: Iterable[tuple[Hashable, Piece]], shapes: Sequence[Shape], grey: bool
) -> list[Window]:
  """Puts pieces into windows of one shape, or of two.

  Those that only the first has room for come first, and what fits between them.
  """
  first, *others = shapes
  if not others:
    return [Window(first, grey, held) for held in pack(items, first)]
  (second,) = others
  large, small = [], []
  for item in items:
    (small if fits(item[1], second) else large).append(item)
  bins: list[_Bin] = []
  _put(large, bins, first)
  rest = _put(small, bins, first, more=False)
  found = [Window(first, grey, bin_.held) for bin_ in bins]
  return found + [Window(second, grey, held) for held in pack(rest, second)]


def pack(
  items: Iterable[tuple[Hashable, Piece]], shape: Shape
) -> list[list[Held]]:
  """Packs pieces into as few windows as it can, a masked pixel apart.

  Where a piece fits best is where the shorter of the two sides that are left
  is shortest, among the largest free rectangles of all windows: MAXRECTS-BSSF
  of Jylanki, "A Thousand Ways to Pack the Bin" (2010).

  Args:
    items: Each piece, with its image before it.
    shape: Of the windows; every piece must fit.

  Returns:
    What each window holds.

  >>> from esrgan_jax.tiling import Span
  >>> piece = Piece(Span(0, 15, 0, 15), Span(0, 9, 0, 9))
  >>> shape = Shape(31, 31, 31, 31, 1, masked=True, gap=1)
  >>> [len(held) for held in pack(((i, piece) for i in range(7)), shape)]
  [6, 1]
  """
  bins: list[_Bin] = []
  _put(items, bins, shape)
  return [bin_.held for bin_ in bins]


def _put(
  items: Iterable[tuple[Hashable, Piece]],
  bins: list[_Bin],
  shape: Shape,
  *,
  more: bool = True,
) -> list[tuple[Hashable, Piece]]:
  """Packs pieces into windows that are there, and into more of them if need be.

  Returns:
    Those for which there is no room, if there may not be more.
  """
  gap = shape.gap
  left = []
  items = sorted(
    items,
    key=lambda item: (item[1].height * item[1].width, item[1].height),
    reverse=True,
  )
  for key, piece in items:
    # Beyond the window's end, no gap is needed.
    size = (piece.height + gap, piece.width + gap)
    best = min(
      (
        (score, index, free)
        for index, bin_ in enumerate(bins)
        if (found := bin_.best(size)) is not None
        for score, free in (found,)
      ),
      default=None,
    )
    if best is not None:
      _, index, free = best
    elif more:
      bins.append(_Bin((shape.height + gap, shape.width + gap)))
      index, free = len(bins) - 1, bins[-1].best(size)[1]
    else:
      left.append((key, piece))
      continue
    bins[index].take(free[:2], size)
    bins[index].held.append(Held(key, piece, free[:2]))
  return left


def _spread(windows: list[Window], count: int) -> list[Window]:
  """Makes windows fill a batch, which is computed whole: some hold less."""
  missing = -len(windows) % count
  found = list(windows)
  while missing and max(len(window.held) for window in found) > 1:
    fullest = max(found, key=lambda window: len(window.held))
    found.remove(fullest)
    found += [
      dataclasses.replace(fullest, held=fullest.held[i::2]) for i in range(2)
    ]
    missing -= 1
  return found


class _Bin:
  """A window's largest free rectangles: top, left, bottom, right."""

  def __init__(self, size: tuple[int, int]):
    self.free = [(0, 0, *size)]
    self.held: list[Held] = []

  def best(self, size):
    """How well a piece fits, and where; None if it does not."""
    height, width = size
    best = None
    for rectangle in self.free:
      top, left, bottom, right = rectangle
      spare_height, spare_width = bottom - top - height, right - left - width
      if spare_height < 0 or spare_width < 0:
        continue
      score = (min(spare_height, spare_width), max(spare_height, spare_width))
      if best is None or score < best[0]:
        best = (score, rectangle)
    return best

  def take(self, at, size):
    """Takes a part; what is left are largest rectangles again."""
    (top, left), (height, width) = at, size
    bottom, right = top + height, left + width
    left_over = set()
    for rectangle in self.free:
      up, west, down, east = rectangle
      if bottom <= up or down <= top or right <= west or east <= left:
        left_over.add(rectangle)
        continue
      if top > up:
        left_over.add((up, west, top, east))
      if bottom < down:
        left_over.add((bottom, west, down, east))
      if left > west:
        left_over.add((up, west, down, left))
      if right < east:
        left_over.add((up, right, down, east))
    self.free = [
      a
      for a in left_over
      if not any(
        a != b
        and b[0] <= a[0]
        and b[1] <= a[1]
        and a[2] <= b[2]
        and a[3] <= b[3]
        for b in left_over
      )
    ]
