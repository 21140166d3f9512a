"""What a device has room for: how large tiles may be, and whether one fits."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax

# Larger tiles waste less on halos; the CPU's caches stop gaining, and its
# memory is everybody's.
_LARGEST_TILE = {"cpu": 512}
_LARGEST_TILE_ELSEWHERE = 1024
# Features at the result's resolution that the last layers see at a time.
_STRIP_SIZE = {"cpu": 2**27}
_STRIP_SIZE_ELSEWHERE = 2**29
# LR pixels that keep a device busy.
_LEAST_PIXELS = {"cpu": 2**12}
_LEAST_PIXELS_ELSEWHERE = 2**16
SMALLEST_TILE = 16
# Pixels up to which their number does not change what one costs, those from
# which on it does not, and what one costs then: caches are left behind.
_COMPUTING = {"cpu": (2**15, 2**19, 1.15)}
# Seconds for a program, and multiplications a second.
_COMPILING = {"cpu": (3.0, 1e11)}
_COMPILING_ELSEWHERE = (30.0, 2e13)
_MEMORY_SHARE = 0.8  # Of what a device has free; the rest is fragmentation's.
# Of that, what windows may take that are computed beside each other.
_EASY_SHARE = 0.25


class OutOfMemoryError(MemoryError):
  """Not even the smallest tile fits into the device's memory."""


def largest_tile(platform: str) -> int:
  """Returns the side of a tile to begin with, in LR pixels.

  >>> largest_tile("cpu"), largest_tile("tpu")
  (512, 1024)
  """
  return _LARGEST_TILE.get(platform, _LARGEST_TILE_ELSEWHERE)


def strip_size(platform: str) -> int:
  """Returns how many features the last layers should see at a time.

  >>> strip_size("cpu") < strip_size("gpu")
  True
  """
  return _STRIP_SIZE.get(platform, _STRIP_SIZE_ELSEWHERE)


def least_pixels(platform: str) -> int:
  """Returns how many LR pixels a device should see at a time.

  >>> least_pixels("cpu") < least_pixels("tpu")
  True
  """
  return _LEAST_PIXELS.get(platform, _LEAST_PIXELS_ELSEWHERE)


def computing_pixels(platform: str, pixels: int) -> float:
  """Returns how many pixels of a small image take as long as a large one.

  About what `python -m benchmarks.windows` measures.

  Args:
    platform: Of the devices.
    pixels: LR pixels of an image.

  >>> computing_pixels("cpu", 1000), computing_pixels("tpu", 2**20)
  (1000, 1048576)
  >>> computing_pixels("cpu", 2**19) > 2**19
  True
  """
  if platform not in _COMPUTING:
    return pixels
  few, many, cost = _COMPUTING[platform]
  part = math.log(max(pixels, 1) / few) / math.log(many / few)
  return pixels if part <= 0 else pixels * (1 + (cost - 1) * min(part, 1))


def compiling_pixels(platform: str, parameters: int, passes: int = 1) -> float:
  """Returns about how many LR pixels are computed while a program compiles.

  A guess, for choosing how many programs a job is worth: most networks multiply
  each pixel with each parameter once.

  Args:
    platform: Of the devices.
    parameters: Of the network.
    passes: How often a pixel is multiplied with each; see `registry.passes`.

  >>> compiling_pixels("tpu", 10**7) > compiling_pixels("cpu", 10**7) > 1000
  True
  """
  seconds, rate = _COMPILING.get(platform, _COMPILING_ELSEWHERE)
  return seconds * rate / max(1, parameters * passes)


def fits(
  device: jax.Device, compile_program: Callable[[], jax.stages.Compiled]
) -> bool:
  """Returns whether a program fits what a device has free.

  Asked beforehand because, on CPU, running out of memory ends the process.

  Args:
    device: The device.
    compile_program: Compiles the program, or returns it.
  """
  free = free_memory(device)
  if free is None:
    return True
  try:
    needed = needed_memory(compile_program())
  except Exception as error:  # Some compilers find out by themselves.
    if is_out_of_memory(error):
      return False
    raise
  return needed <= free * _MEMORY_SHARE


def fits_easily(
  device: jax.Device, program: jax.stages.Compiled, *, count: int
) -> bool:
  """Returns whether a program fits several times, and leaves most for others.

  Args:
    device: The device.
    program: It may be running already.
    count: How many times.

  >>> program = jax.jit(lambda x: x + 1).lower(1.0).compile()
  >>> fits_easily(jax.devices()[0], program, count=2)
  True
  """
  free = free_memory(device)
  return free is None or needed_memory(program) * count <= free * _EASY_SHARE


def needed_memory(program: jax.stages.Compiled) -> int:
  """Returns the bytes that a program takes on a device, 0 if it doesn't say.

  >>> needed_memory(jax.jit(lambda x: x + 1).lower(1.0).compile()) > 0
  True
  """
  memory = program.memory_analysis()
  if memory is None:
    return 0
  return (
    memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    + memory.argument_size_in_bytes
  )


def free_memory(device: jax.Device) -> int | None:
  """Returns the bytes that a device has free, or None if it doesn't say.

  >>> (free_memory(jax.devices("cpu")[0]) or 1) > 0
  True
  """
  if device.platform == "cpu":
    return free_host_memory()
  stats = device.memory_stats() or {}
  if "bytes_limit" not in stats:
    return None
  return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def free_host_memory() -> int | None:
  """Returns the bytes that are free here, or None if the system doesn't say.

  >>> (free_host_memory() or 1) > 0
  True
  """
  try:
    with open("/proc/meminfo") as file:  # Linux; in units of 1024 bytes.
      fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024
  except (OSError, ValueError, KeyError):
    return None


def is_out_of_memory(error: BaseException) -> bool:
  """Returns whether an error says that a device's or the host's memory is full.

  >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError())
  (True, False)
  """
  if isinstance(error, MemoryError):
    return True
  return isinstance(error, jax.errors.JaxRuntimeError) and (
    "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
  )
