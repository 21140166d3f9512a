"""Reads XLA's text of a compiled program: what runs, and how many times.

XLA's own totals, `cost_analysis()` and the TPU compiler's "estimated_cycles"
next to each instruction, count the body of a loop once. Here each instruction
counts as often as it runs: `total` walks from the entry through loops, calls
and branches.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import numpy as np

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # Others carry it in their name.
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+)[ (].*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
  r"\b(calls|to_apply|body|condition|true_computation|false_computation)="
  r"%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: Its name, without the percent sign.
    opcode: What it does, such as "fusion" or "while".
    shape: The result's, as it is written.
    operands: Names of the operands; of a constant or parameter, what is
      written there.
    attributes: The rest of the line.
    is_root: Whether it is the computation's result.
  """

  name: str
  opcode: str
  shape: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool = False

  def called(self, attribute: str) -> str | None:
    """Returns the computation that an attribute, such as "body", names."""
    return dict(_CALLED.findall(self.attributes)).get(attribute)

  @property
  def branches(self) -> tuple[str, ...]:
    """The computations that a conditional chooses from."""
    found = _BRANCHES.search(self.attributes)
    if found:
      return tuple(part.strip().lstrip("%") for part in found[1].split(","))
    two = self.called("true_computation"), self.called("false_computation")
    return tuple(name for name in two if name)


@dataclasses.dataclass(frozen=True)
class Module:
  """A program: computations by name, and the name of the one to begin with."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


class UnknownTripCountError(ValueError):
  """A loop whose number of turns does not stand in the text."""


def parse(text: str) -> Module:
  """Reads the text of a compiled program.

  Args:
    text: As of `jax.stages.Compiled.as_text()`.

  Returns:
    The program.

  Raises:
    ValueError: If there is no entry computation.

  >>> module = parse('''
  ... ENTRY %main (x: f32[2]) -> f32[2] {
  ...   %x = f32[2]{0} parameter(0)
  ...   ROOT %y = f32[2]{0} add(%x, %x)
  ... }''')
  >>> module.computations["main"]["y"].operands
  ('x', 'x')
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if not line[:1].isspace():
      head = _HEAD.match(line)
      current = None
      if head and not line.startswith("HloModule"):
        current = computations.setdefault(head[2], {})
        entry = head[2] if head[1] else entry
    elif current is not None and (instruction := _parse_line(line)):
      current[instruction.name] = instruction
  if not entry:
    raise ValueError("the text has no ENTRY computation; is it HLO?")
  return Module(computations, entry)


def _parse_line(line):
  """One instruction, or None for what is none."""
  head = _LINE.match(line)
  if not head:
    return None
  rest = re.sub(r"/\*.*?\*/", "", line[head.end() :])
  # A shape is a tuple in parentheses, or has no space.
  end = _closing(rest) if rest.startswith("(") else rest.find(" ")
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition("(")
  rest = rest[len(opcode) :]
  end = _closing(rest)
  inside, attributes = rest[1 : end - 1], rest[end:]
  if opcode in ("constant", "parameter"):
    operands = (inside,)
  else:
    operands = tuple(_operands(inside))
  return Instruction(
    head[2], opcode, shape, operands, attributes, bool(head[1])
  )


def _closing(text):
  """Where the parenthesis that the text begins with has been closed."""
  depth = 0
  for found in re.finditer(r"[()]", text):
    depth += 1 if found[0] == "(" else -1
    if not depth:
      return found.end()
  return len(text)


def _operands(text):
  """Names of operands, which some printers precede by their shapes."""
  named = re.findall(r"%([\w.\-]+)", text)
  if named or "[" in text:
    return named
  return [part.strip() for part in text.split(",") if part.strip()]


def shape_bytes(shape: str, *, padded: bool = False) -> int:
  """Returns the bytes of an array or of all of a tuple's arrays.

  Args:
    shape: As written, with layouts or without.
    padded: Round up the last two axes to what a tile of the layout holds, as
      the arrays lie in a TPU's memory.

  Returns:
    Bytes, of narrow integers rounded up.

  >>> shape_bytes("(bf16[2,3]{1,0}, /*index=1*/pred[], token[])")
  13
  >>> shape_bytes("bf16[9,32]{1,0:T(8,128)(2,1)}", padded=True)
  4096
  """
  return sum(
    math.ceil(math.prod(_sides(sides, layout, padded)) * _bits(dtype) / 8)
    for dtype, sides, layout in _ARRAY.findall(shape)
  )


def _bits(dtype):
  if dtype in _BITS:
    return _BITS[dtype]
  return int(re.search(r"\d+", dtype)[0])


def _sides(text, layout, padded):
  sides = [int(side.strip("<= ")) for side in text.split(",") if side.strip()]
  order, _, tiles = layout.strip("{}").partition(":")
  tile = re.match(r"T\(([\d,]+)\)", tiles)
  if padded and tile and sides:
    axes = [int(axis) for axis in order.split(",") if axis]
    tile = [int(side) for side in tile[1].split(",")]
    for axis, unit in zip(axes, reversed(tile), strict=False):
      sides[axis] = -(-sides[axis] // unit) * unit
  return sides


def trip_count(module: Module, computation: str, loop: str) -> int:
  """Returns how many times a loop's body runs.

  It is XLA's "known_trip_count" where there is one. Else the condition must
  compare a counter, which goes up by one, with a constant.

  Args:
    module: The program.
    computation: Where the loop stands.
    loop: The `while` instruction's name.

  Returns:
    Turns, >= 0.

  Raises:
    UnknownTripCountError: If the text doesn't tell.
  """
  instruction = module.computations[computation][loop]
  known = re.search(
    r'"?known_trip_count"?:?=?\s*\{\s*"?n"?\s*[:=]\s*"?(\d+)',
    instruction.attributes,
  )
  if known:
    return int(known[1])
  condition = instruction.called("condition")
  root = _root(module, condition)
  problem = f"loop {loop} in {computation}: "
  while root.opcode in ("bitcast", "copy", "convert", "reshape"):
    root = module.computations[condition][root.operands[0]]
  sides = [_follow(module, condition, name) for name in root.operands]
  direction = root
  if root.opcode == "fusion":  # Of the comparison alone.
    inner = root.called("calls")
    direction = _root(module, inner)
    numbers = []
    for name in direction.operands:
      source = _follow(module, inner, name)
      if source.opcode == "parameter":
        source = sides[int(source.operands[0])]
      numbers.append(source)
    sides = numbers
  way = re.search(r"direction=(\w+)", direction.attributes)
  if direction.opcode != "compare" or not way or len(sides) != 2:
    raise UnknownTripCountError(f"{problem}its condition is {direction.opcode}")
  way = way[1]
  if sides[0].opcode == "constant":
    sides.reverse()
    way = {"GT": "LT", "GE": "LE", "LT": "GT", "LE": "GE"}.get(way, way)
  counter, limit = sides
  if limit.opcode != "constant" or counter.opcode != "get-tuple-element":
    raise UnknownTripCountError(
      f"{problem}it compares {counter.opcode} with {limit.opcode}"
    )
  if way not in ("LT", "LE", "NE"):
    raise UnknownTripCountError(f"{problem}it compares by {way}")
  index = int(re.search(r"index=(\d+)", counter.attributes)[1])
  first = _initial(module, computation, instruction.operands[0], index)
  if first is None:
    raise UnknownTripCountError(f"{problem}its counter's start is not known")
  _check_step(module, instruction.called("body"), index, problem)
  return max(0, int(limit.operands[0]) - first + (way == "LE"))


def _root(module, computation):
  instructions = module.computations[computation].values()
  return next(i for i in instructions if i.is_root)


def _follow(module, computation, name):
  """What a value is a copy of."""
  instruction = module.computations[computation][name]
  while instruction.opcode in ("bitcast", "copy", "convert", "reshape"):
    instruction = module.computations[computation][instruction.operands[0]]
  return instruction


def _initial(module, computation, name, index):
  """The number that an element of a tuple begins with, or None."""
  source = _follow(module, computation, name)
  if source.opcode != "tuple":
    return None
  source = _follow(module, computation, source.operands[index])
  if source.opcode == "broadcast":
    source = _follow(module, computation, source.operands[0])
  if source.opcode == "constant":
    return int(source.operands[0])
  return None


def _check_step(module, body, index, problem):
  """Raises if a body plainly changes the counter by another number than 1."""
  root = _follow(module, body, _root(module, body).name)
  if root.opcode != "tuple":
    return
  change = _follow(module, body, root.operands[index])
  if change.opcode != "add":
    return
  for name in change.operands:
    source = _follow(module, body, name)
    if source.opcode == "constant" and source.operands[0] != "1":
      raise UnknownTripCountError(
        f"{problem}its counter goes up by {source.operands[0]}"
      )


def total(
  module: Module,
  measure: Callable[[str, Instruction], float | None],
  *,
  inside_fusions: bool = False,
) -> float:
  """Adds up a measure over all that runs.

  Args:
    module: The program.
    measure: `(computation, instruction)` to a number, or None to have what the
      instruction calls looked at instead. What has a number is not looked
      into, so that nothing counts twice.
    inside_fusions: Also look into fusions.

  Returns:
    The sum; each turn of a loop counts, and of a conditional the branch that
    has the most.

  Raises:
    UnknownTripCountError: If there is something to count in a loop and the text
      does not tell how often.

  >>> module = parse('''
  ... %body (t: (s32[])) -> (s32[]) {
  ...   %t = (s32[]) parameter(0)
  ...   %i = s32[] get-tuple-element(%t), index=0
  ...   %one = s32[] constant(1)
  ...   %next = s32[] add(%i, %one)
  ...   ROOT %out = (s32[]) tuple(%next)
  ... }
  ... %condition (t.1: (s32[])) -> pred[] {
  ...   %t.1 = (s32[]) parameter(0)
  ...   %i.1 = s32[] get-tuple-element(%t.1), index=0
  ...   %n = s32[] constant(5)
  ...   ROOT %less = pred[] compare(%i.1, %n), direction=LT
  ... }
  ... ENTRY %main () -> (s32[]) {
  ...   %zero = s32[] constant(0)
  ...   %start = (s32[]) tuple(%zero)
  ...   ROOT %loop = (s32[]) while(%start), condition=%condition, body=%body
  ... }''')
  >>> total(module, lambda _, i: 1 if i.opcode == "add" else None)
  5
  """

  @functools.cache
  def of(computation):
    return sum(
      one(computation, instruction)
      for instruction in module.computations[computation].values()
    )

  def one(computation, instruction):
    value = measure(computation, instruction)
    if value is not None:
      return value
    opcode = instruction.opcode
    if opcode == "while":
      turn = of(instruction.called("body"))
      turn += of(instruction.called("condition"))
      if not turn:
        return 0
      return turn * trip_count(module, computation, instruction.name)
    if opcode == "conditional":
      return max(map(of, instruction.branches), default=0)
    if opcode == "call":
      return of(instruction.called("to_apply") or instruction.called("calls"))
    # What ends asynchronous work names the computation once more.
    if opcode == "async-start" or (opcode == "fusion" and inside_fusions):
      return of(instruction.called("calls"))
    return 0

  return of(module.entry)


def estimated_cycles(module: Module) -> int:
  """Returns the TPU compiler's estimate of the cycles of all that runs.

  It has none for collectives, nor for waiting on asynchronous copies.

  Args:
    module: A program compiled for a TPU.

  Returns:
    Cycles of one device.

  Raises:
    UnknownTripCountError: As `total`.
  """

  def cycles(_, instruction):
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(found[1]) if found else None

  return int(total(module, cycles))


def collectives(module: Module) -> dict[str, tuple[int, int]]:
  """Returns what devices exchange, by kind.

  Args:
    module: The program.

  Returns:
    By kind, such as "all-reduce": how many run, and the bytes that each device
    puts into all of them. Asynchronous ones count where they start.

  Raises:
    UnknownTripCountError: As `total`.
  """
  found = {}
  for kind in COLLECTIVES:

    def count(_, instruction, kind=kind):
      return 1 if _is(kind, instruction) else None

    def size(computation, instruction, kind=kind):
      if not _is(kind, instruction):
        return None
      here = module.computations[computation]
      return sum(shape_bytes(here[n].shape) for n in instruction.operands)

    number = int(total(module, count, inside_fusions=True))
    if number:
      found[kind] = number, int(total(module, size, inside_fusions=True))
  return found


def _is(kind, instruction):
  return instruction.opcode in (kind, f"{kind}-start")


# Values that are names for others' memory, or cost what they call.
_FREE = (
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "after-all",
  "partition-id",
  "replica-id",
)


def memory_traffic(module: Module) -> int:
  """Returns the bytes that all that runs reads from and writes to main memory.

  Operands and results of each instruction as they lie there, padding included;
  of what is sliced or updated in place, the part. Arrays that the compiler has
  placed in a memory of its own (`S(1)` in a layout) are left out. An estimate:
  what a fusion reads twice counts once.

  Args:
    module: The program.

  Returns:
    Bytes of one device.

  Raises:
    UnknownTripCountError: As `total`.
  """
  reads = functools.cache(functools.partial(_bytes_read, module))

  def moved(computation, instruction):
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
      return 0
    if 'custom_call_target="AllocateBuffer"' in instruction.attributes:
      return 0
    if opcode in ("while", "conditional", "call", "async-start"):
      return None
    here = module.computations[computation]
    shapes = [here[n].shape for n in instruction.operands if n in here]
    if opcode == "copy-start":  # Shows (to, from, a semaphore).
      return _in_memory(_arrays(instruction.shape)[0]) + _in_memory(shapes[0])
    if opcode.endswith("-start"):
      return 2 * sum(map(_in_memory, shapes))
    if opcode in ("dynamic-slice", "slice"):
      return _in_memory(instruction.shape) + _part(shapes[0], instruction.shape)
    if opcode == "dynamic-update-slice":
      return _in_memory(shapes[1]) + _part(instruction.shape, shapes[1])
    if opcode != "fusion":
      return sum(map(_in_memory, shapes)) + _in_memory(instruction.shape)
    inner = instruction.called("calls")
    read = sum(reads(inner, i) for i in range(len(instruction.operands)))
    return read + _bytes_written(module, inner, instruction.shape)

  return int(total(module, moved))


def _arrays(shape):
  """The arrays of a tuple that is not nested, as they are written."""
  return [found[0] for found in _ARRAY.finditer(shape)]


def _in_memory(shape):
  """Bytes in main memory."""
  return sum(
    shape_bytes(array, padded=True)
    for array in _arrays(shape)
    if not re.search(r"S\([1-9]", array)
  )


def _part(whole, part):
  """Bytes of a part of an array that may lie in main memory."""
  if not _in_memory(whole):
    return 0
  return shape_bytes(part, padded=True)


def _bytes_read(module, computation, number):
  """Of a fusion's parameter: all of it, or what slices take."""
  here = module.computations[computation]
  parameter = next(
    i
    for i in here.values()
    if i.opcode == "parameter" and i.operands[0] == str(number)
  )
  whole = _in_memory(parameter.shape)

  def used(name):
    read = 0
    for user in here.values():
      for place, operand in enumerate(user.operands):
        if operand != name or user.opcode in ("parameter", "constant"):
          continue
        if user.opcode in ("dynamic-slice", "slice") and place == 0:
          read += shape_bytes(user.shape, padded=True)
        elif user.opcode == "dynamic-update-slice" and place == 0:
          pass
        elif user.opcode == "bitcast":
          read += used(user.name)
        elif user.opcode == "fusion":
          read += _bytes_read(module, user.called("calls"), place)
        else:
          return whole
    return read

  return min(whole, used(parameter.name)) if whole else 0


def _bytes_written(module, computation, shape):
  """Of a fusion: its result, or what updates change of it."""
  here = module.computations[computation]
  root = _follow(module, computation, _root(module, computation).name)
  results = [root.name]
  if root.opcode == "tuple":
    results = root.operands
  written = 0
  for name, array in zip(results, _arrays(shape), strict=False):
    result = _follow(module, computation, name)
    if result.opcode == "dynamic-update-slice":
      written += _part(array, here[result.operands[1]].shape)
    else:
      written += _in_memory(array)
  return written


def jaxpr_flops(jaxpr) -> int:
  """Returns the floating-point operations of convolutions and products.

  Counted before compilation, for all devices together: 2 for a multiplication
  and its addition, none where a window lies on padding or between dilated
  pixels, which is XLA's convention too. What no result needs is left out.

  Args:
    jaxpr: As of `jax.make_jaxpr(function)(*arguments)`.

  Returns:
    Operations. Each turn of a scan counts, and of a `cond` the branch that has
    the most, but where platforms differ, that of the rest of them, which has no
    operations that only suit a machine; a `while` whose turns are not known
    counts once.

  >>> import jax, jax.numpy as jnp
  >>> def f(x):
  ...   return jax.lax.scan(lambda x, _: (x @ x, None), x, length=3)[0]
  >>> jaxpr_flops(jax.make_jaxpr(f)(jnp.ones((4, 4)))) == 3 * 2 * 4**3
  True
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return _live_flops(jaxpr, [True] * len(jaxpr.outvars))


def _live_flops(jaxpr, wanted):
  """Operations that the wanted results need."""
  live = {
    v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and _var(v)
  }
  flops = 0
  for equation in reversed(jaxpr.eqns):
    out = [v in live for v in equation.outvars]
    if not (any(out) or equation.effects):
      continue
    live.update(v for v in equation.invars if _var(v))
    flops += _equation_flops(equation, out)
  return flops


def _var(value):
  return not hasattr(value, "val")  # Literals have one, and no hash.


def _equation_flops(equation, out):
  name, params = equation.primitive.name, equation.params
  if name == "conv_general_dilated":
    return _conv_flops(equation)
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)
  if name == "cond":
    branches = params["branches"]
    platforms = params.get("branches_platforms") or ()
    if None in platforms:
      branches = branches[platforms.index(None) :][:1]
    return max(_live_flops(b.jaxpr, out) for b in branches)
  if name == "scan":
    return params["length"] * jaxpr_flops(params["jaxpr"])
  if name == "while":
    return jaxpr_flops(params["body_jaxpr"])
  if name == "shard_map":  # Its jaxpr is one device's.
    return params["mesh"].size * jaxpr_flops(params["jaxpr"])
  flops = 0
  for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    inner = getattr(params.get(key), "jaxpr", params.get(key))
    if hasattr(inner, "eqns"):
      same = len(inner.outvars) == len(out)
      flops += _live_flops(inner, out if same else [True] * len(inner.outvars))
  return flops


def _conv_flops(equation):
  """Multiplications of pixels that exist, and their additions."""
  params = equation.params
  x, kernel = (v.aval.shape for v in equation.invars)
  out = equation.outvars[0].aval.shape
  numbers = params["dimension_numbers"]
  flops = 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]]
  flops *= kernel[numbers.rhs_spec[1]]  # Inputs of one group.
  for axis in range(len(params["window_strides"])):
    positions = np.arange(out[numbers.out_spec[2 + axis]])
    taps = np.arange(kernel[numbers.rhs_spec[2 + axis]])
    place = positions[:, None] * params["window_strides"][axis]
    place = place + taps[None] * params["rhs_dilation"][axis]
    place = place - params["padding"][axis][0]
    dilation = params["lhs_dilation"][axis]
    last = (x[numbers.lhs_spec[2 + axis]] - 1) * dilation
    real = (place >= 0) & (place <= last) & (place % dilation == 0)
    flops *= int(real.sum())
  return flops
