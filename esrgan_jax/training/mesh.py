"""One mesh axis for the batch, and steps compiled for it.

Parameters are replicated and the batch is split: at 17 M parameters, sharding
the state would save little memory and cost time. The step is one global
program: relativistic means and BatchNorm statistics run over all devices'
images, and the number of devices does not change what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from esrgan_jax import compilation
from esrgan_jax.ops import platforms
from esrgan_jax.training import speed

AXIS = "data"


def make_mesh(num: int | None = None) -> Mesh:
  """Returns a mesh of one axis, "data", over devices.

  Args:
    num: How many devices, from the first on; `None` means all devices of all
      processes. Fewer than all is for one process only.

  Returns:
    The mesh.

  Raises:
    ValueError: If there are not `num` devices, or fewer than all are asked for
      in a run of several processes.

  >>> dict(make_mesh(1).shape)
  {'data': 1}
  """
  devices = jax.devices()
  num = len(devices) if num is None else num
  if not 1 <= num <= len(devices):
    raise ValueError(
      f"num must be in 1..{len(devices)}, the devices here, got {num}: None "
      "takes all"
    )
  if num < len(devices) and jax.process_count() > 1:
    raise ValueError(
      f"num is {num} of {len(devices)} devices; {jax.process_count()} "
      "processes must use all: pass None"
    )
  # Auto: the compiler propagates shardings. The default has changed over time.
  return jax.make_mesh(
    (num,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:num]
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole: the state.

  Args:
    mesh: From `make_mesh`.

  Returns:
    A sharding for arrays of any shape.

  >>> replicated(make_mesh(1)).is_fully_replicated
  True
  """
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what is split along its first axis: a batch.

  Args:
    mesh: From `make_mesh`.

  Returns:
    A sharding for arrays whose first axis is a multiple of the devices.

  >>> batch_sharding(make_mesh(1)).shard_shape((4, 8, 8, 3))
  (4, 8, 8, 3)
  """
  return NamedSharding(mesh, PartitionSpec(AXIS))


def local_batch_size(
  mesh: Mesh, *, batch_size: int, accumulate: int = 1
) -> int:
  """Returns how many images of a global batch this process provides.

  Args:
    mesh: From `make_mesh`.
    batch_size: Images of the global batch.
    accumulate: Microbatches that a step splits it into.

  Returns:
    Images per process.

  Raises:
    ValueError: If the devices or microbatches cannot get equal parts.

  >>> local_batch_size(make_mesh(1), batch_size=16, accumulate=2)
  16
  """
  if accumulate < 1:
    raise ValueError(f"accumulate must be >= 1, got {accumulate}")
  parts = mesh.size * accumulate
  if batch_size < 1 or batch_size % parts:
    nearest = max(parts, round(batch_size / parts) * parts)
    raise ValueError(
      f"batch_size {batch_size} is not a multiple of {parts} ({mesh.size} "
      f"devices times {accumulate} microbatches): use {nearest}"
    )
  return batch_size // jax.process_count()


def global_batch(mesh: Mesh, local_batch: Any) -> Any:
  """Returns a batch on the mesh, from each process's part of it.

  Args:
    mesh: From `make_mesh`.
    local_batch: Pytree of host arrays `[images of this process, ...]`.

  Returns:
    The same tree of global arrays `[images of all processes, ...]`, split over
    the devices.

  Raises:
    ValueError: If an array cannot be split over this process's devices.

  >>> batch = global_batch(make_mesh(1), {"lr": np.zeros((2, 8, 8, 3))})
  >>> batch["lr"].shape
  (2, 8, 8, 3)
  """
  sharding = batch_sharding(mesh)
  local = max(1, len(sharding.addressable_devices))

  def put(path, array):
    if np.ndim(array) == 0 or np.shape(array)[0] % local:
      raise ValueError(
        f"local_batch{jax.tree_util.keystr(path)} has shape {np.shape(array)}; "
        f"its first axis must be a multiple of this process's {local} devices: "
        "choose batch_size with local_batch_size"
      )
    return jax.make_array_from_process_local_data(sharding, np.asarray(array))

  return jax.tree_util.tree_map_with_path(put, local_batch)


def jit_step(
  step: Callable[..., tuple[Any, Any]],
  mesh: Mesh,
  *,
  batch_shardings: Any = None,
  compiler_options: Mapping[str, str] | None = None,
  **arrays: Any,
) -> Callable[[Any, Any], tuple[Any, Any]]:
  """Returns a step compiled for a mesh, its state donated.

  The state that is passed in is consumed: use the one that comes back.

  Args:
    step: `(state, batch, **arrays) -> (state, metrics)`, such as
      `functools.partial(gan_step, generator=generator, ...)`.
    mesh: From `make_mesh`.
    batch_shardings: Shardings of the batch, a tree or a prefix of one; `None`
      splits every array over the devices.
    compiler_options: XLA options for this program.
    **arrays: Keyword arguments of `step` that are arrays or pytrees of them,
      such as `perceptual`. They are put on the mesh once and travel as
      arguments, where closed-over arrays become constants of the program: VGG19
      would be compiled into it, 80 MB, and folded.

  Returns:
    `(state, batch) -> (state, metrics)`; state and metrics are replicated. Its
    attribute `compile`, called with both or their abstract values, compiles
    ahead of time and returns the same function for arrays of these shapes, and
    that has an attribute `flops`; see `speed.count_flops`.

  >>> import jax.numpy as jnp
  >>> def step(state, batch, *, weight):
  ...   return state + weight * jnp.sum(batch), {"images": batch.shape[0]}
  >>> mesh = make_mesh(1)
  >>> jitted = jit_step(step, mesh, weight=jnp.float32(2.0))
  >>> state, _ = jitted(jnp.float32(1.0), global_batch(mesh, np.ones(4)))
  >>> float(state)
  9.0
  """
  whole = replicated(mesh)
  if batch_shardings is None:
    batch_shardings = batch_sharding(mesh)

  def run(state, batch, arrays):
    return step(state, batch, **arrays)

  jitted = jax.jit(
    run,
    in_shardings=(whole, batch_shardings, whole),
    out_shardings=(whole, whole),
    donate_argnums=0,
    compiler_options=dict(compiler_options or {}),
  )
  arrays = jax.device_put(arrays, whole)

  def call(state, batch):
    return jitted(state, batch, arrays)

  def compile_ahead(state, batch):
    # Tracing what other platforms would do takes longer than all else.
    platform = mesh.devices.flat[0].platform
    with platforms.tracing_for(platform, mesh):
      traced = jitted.trace(state, batch, arrays)
      lowered = traced.lower()
    compiled = lowered.compile()
    compilation.return_free_memory()

    def compiled_call(state, batch):
      return compiled(state, batch, arrays)

    compiled_call.flops = speed.count_flops(traced.jaxpr)
    return compiled_call

  call.compile = compile_ahead
  return call
