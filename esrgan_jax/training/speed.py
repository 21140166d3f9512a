"""What a step computes a second, and a trace of where its time goes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend import core as jax_core

# Products and sums a second in bfloat16 (T4: float16), dense, as their makers
# state them: cloud.google.com/tpu/docs, nvidia.com's data sheets. By the words
# that `Device.device_kind` begins with; the most of them count.
_PEAKS = {
  "TPU v2": 45e12 / 2,
  "TPU v3": 123e12 / 2,  # A device is a core, of two.
  "TPU v4 lite": 138e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "Tesla T4": 65e12,
  "Tesla V100": 125e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA L4": 121e12,
  "NVIDIA L40": 181e12,
  "NVIDIA L40S": 362e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Returns what a kind of device can do in bfloat16, or None if unknown.

  Args:
    device_kind: As `jax.Device.device_kind`.

  Returns:
    Multiplications and additions a second.

  >>> peak_flops("TPU v5 lite") / 1e12, peak_flops("cpu")
  (197.0, None)
  """
  found = [kind for kind in _PEAKS if f"{device_kind} ".startswith(f"{kind} ")]
  found += [kind for kind in _PEAKS if device_kind.startswith(f"{kind}-")]
  return _PEAKS[max(found, key=len)] if found else None


def count_flops(jaxpr: jax_core.Jaxpr | jax_core.ClosedJaxpr) -> float:
  """Counts the multiplications and additions of convolutions and products.

  Those with the zeros between a strided convolution's gradients do not count.
  Of a loop whose length is not known, one turn does; of branches, the dearest.

  Args:
    jaxpr: Of a function, such as `jax.jit(f).trace(x).jaxpr`.

  Returns:
    Their number, on all devices together.

  >>> count_flops(jax.make_jaxpr(lambda a, b: a @ b)(jax.numpy.ones((2, 3)),
  ...                                               jax.numpy.ones((3, 5))))
  60.0
  """
  return float(sum(map(_of_equation, getattr(jaxpr, "jaxpr", jaxpr).eqns)))


def _of_equation(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    inner = math.prod(shape[axis] for axis in contracted)
    return 2.0 * inner * equation.outvars[0].aval.size
  if name == "conv_general_dilated":
    numbers = params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
    zeros = math.prod(params["lhs_dilation"])
    return 2.0 * taps * equation.outvars[0].aval.size / zeros
  inner = [count_flops(each) for each in _jaxprs(params)]
  if name == "cond":
    return max(inner)
  times = params["length"] if name == "scan" else 1
  if name == "shard_map":  # What one device does.
    times = math.prod(params["mesh"].shape.values())
  return times * sum(inner)


def _jaxprs(params: Mapping[str, Any]) -> list[Any]:
  """What an equation calls."""
  kinds = (jax_core.Jaxpr, jax_core.ClosedJaxpr)
  found = []
  for value in params.values():
    values = value if isinstance(value, tuple | list) else (value,)
    found += [each for each in values if isinstance(each, kinds)]
  return found


class Trace:
  """Traces some steps, for TensorBoard, XProf or Perfetto.

  Args:
    folder: Where to, `plugins/profile/...` in it.
    first: The first step that is traced.
    count: How many; 0 for none.

  >>> with Trace("nowhere", first=10, count=0) as trace:
  ...   trace.before(10)
  ...   trace.after(10, None)
  False
  """

  def __init__(self, folder: str | os.PathLike[str], *, first: int, count: int):
    self._folder = os.fspath(folder)
    self._first, self._last = first, first + count - 1
    self._running = False

  def __str__(self) -> str:
    return f"steps {self._first} to {self._last}: {self._folder}"

  def __enter__(self) -> Trace:
    return self

  def __exit__(self, *_) -> None:
    if self._running:
      self._running = False
      jax.profiler.stop_trace()

  def before(self, step: int) -> None:
    """Begins, if this step is the first."""
    if step == self._first <= self._last and not self._running:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # Its own cost would be most of it.
      jax.profiler.start_trace(self._folder, profiler_options=options)
      self._running = True

  def after(self, step: int, results: Any) -> bool:
    """Ends, if this step is the last.

    Args:
      step: Which has been dispatched.
      results: What there is once it is done; waited for.

    Returns:
      Whether it has ended now.
    """
    if not self._running or step < self._last:
      return False
    jax.block_until_ready(results)
    self.__exit__()
    return True
