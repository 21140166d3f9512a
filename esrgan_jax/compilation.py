"""How XLA is to compile: options per platform, persistent cache, and `init`.

The programs do all of it. Of a library nothing of it happens by itself; two
lines switch it on:

    esrgan_jax.enable_compilation_cache("~/.cache/my_programs")
    step = jax.jit(..., compiler_options=esrgan_jax.compiler_options())

Options are given to each compilation, not to the process: an option that a
version of XLA does not know is an error that can be caught, where an unknown
flag in `XLA_FLAGS` ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pathlib
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from esrgan_jax import checks
from esrgan_jax.models import registry
from esrgan_jax.models.registry import Network

# Runs matrix products and, through them, convolutions in XNNPACK's successor
# YNN: 1.5 times the speed of Eigen's here (docs/generator.md). Present, and off
# by default, in jaxlib 0.10 to 0.12.
_CPU_OPTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": (
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
  ),
}
# Of processors that multiply in bfloat16, as Linux names it: x86, and ARM.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# Drawing a network's first parameters takes milliseconds, and the optimized
# program for it, with a loop a parameter, 14 seconds to compile instead of 2.
_CPU_OPTIONS_ONCE = {"xla_backend_optimization_level": "0"}


@functools.cache
def compiler_options(
  platform: str | None = None, *, once: bool = False
) -> dict[str, str]:
  """Returns options for `jax.jit(..., compiler_options=)` on a platform.

  What the programs compile with: on a CPU, another library for products and
  convolutions (docs/generator.md), elsewhere nothing. They are for the
  outermost `jit`: JAX refuses them inside another. Options that the installed
  XLA does not know are left out: each is tried once on a tiny program.

  Args:
    platform: "cpu", "gpu" or "tpu"; None means JAX's default backend.
    once: For a program that runs once, and should be compiled in no time.

  Returns:
    Options by name, to be treated as constant; empty where there are none.

  >>> compiler_options("tpu")
  {}
  >>> double = jax.jit(lambda x: 2 * x, compiler_options=compiler_options())
  >>> float(double(1.0))
  2.0
  """
  platform = platform or jax.default_backend()
  if platform != "cpu":
    return {}
  device = jax.local_devices(backend="cpu")[0]
  known = {}
  options = _CPU_OPTIONS_ONCE if once else _CPU_OPTIONS
  mesh = jax.sharding.Mesh([device], ("one",))
  scalar = jax.ShapeDtypeStruct(
    (),
    jnp.float32,
    sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
  )
  for name, value in options.items():
    with jax.set_mesh(mesh):  # Whatever the caller's is.
      program = jax.jit(jnp.negative).lower(scalar)
    try:
      program.compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
      continue
    known[name] = value
  return known


def init(net: Network, key: jax.Array) -> dict[str, Any]:
  """Returns a network's first variables, from a program compiled in no time.

  The same as `net.init` with an image that fits; for the whole RRDBNet in a
  third of the time of `jax.jit(net.init)` or less. Under `jit`, `vmap` and
  their like it is part of their program.

  Args:
    net: Linen module of images to images, such as `RRDBNet`, or to logits, such
      as `VGGStyleDiscriminator`, with the images' size as its `input_size`.
    key: Random key.

  Returns:
    `{"params": ...}`, and its other collections, if any.

  Raises:
    TypeError: If `net` is no network, or `key` no key.

  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> init(net, jax.random.key(0))["params"]["conv_first"]["kernel"].shape
  (3, 3, 3, 4)
  """
  from esrgan_jax.steps import state  # With optax: to upscale needs none.

  registry.check_network(net)
  checks.check_key(key)
  begin = state.init_generator
  if getattr(net, "input_size", None):
    begin = state.init_discriminator
  if any(isinstance(x, jax.core.Tracer) for x in (key, jnp.zeros(()))):
    return begin(key, net)  # The options are those of the whole program.
  platform = None
  if isinstance(key, jax.Array):
    platform = next(iter(key.devices())).platform
  options = compiler_options(platform, once=True)
  return jax.jit(lambda key: begin(key, net), compiler_options=options)(key)


def favours_bfloat16(platform: str | None = None) -> bool:
  """Returns whether networks compute in bfloat16 where nothing is asked for.

  On a CPU they do not: where that is faster (`multiplies_bfloat16`), it is so
  by little, and results would depend on the processor.

  Args:
    platform: "cpu", "gpu" or "tpu"; None means JAX's default backend.

  >>> favours_bfloat16("cpu"), favours_bfloat16("tpu")
  (False, True)
  """
  return (platform or jax.default_backend()) != "cpu"


@functools.cache
def multiplies_bfloat16() -> bool:
  """Returns whether this machine's CPU is known to multiply in bfloat16.

  By what Linux tells of it: AVX512_BF16 or AMX on x86, BF16 on ARM. With these,
  upscaling in bfloat16 is faster than in float32 (docs/compiling.md).

  >>> isinstance(multiplies_bfloat16(), bool)
  True
  """
  with contextlib.suppress(OSError):
    told = pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
    return not _BFLOAT16_FLAGS.isdisjoint(told.split())
  return False


def precision_notes(name: str) -> list[str]:
  """Returns what to tell whoever asks to upscale in a precision.

  Args:
    name: As of `compute_dtype`.

  Returns:
    A sentence where bfloat16 gains nothing, else none.

  >>> precision_notes("float32")
  []
  """
  gains = favours_bfloat16() or multiplies_bfloat16()
  if name != "bfloat16" or gains:
    return []
  return [
    "this CPU is not known to multiply in bfloat16: it gains no time by it, and"
    " rounds more; leave --precision out"
  ]


def compute_dtype(name: Any = "auto", platform: str | None = None) -> Any:
  """Returns the compute dtype of a name: bfloat16 where hardware favours it.

  Args:
    name: "auto", "float32" or "bfloat16", or one of these types itself; "auto"
      is bfloat16 on GPU and TPU.
    platform: "cpu", "gpu" or "tpu"; None means JAX's default backend.

  Returns:
    A NumPy scalar type.

  Raises:
    ValueError: If there is no such name.

  >>> compute_dtype("auto", "cpu") is jnp.float32
  True
  """
  if name is not None and not isinstance(name, str):
    with contextlib.suppress(TypeError):  # No dtype has that name.
      name = jnp.dtype(name).name
  if name == "auto":
    name = "bfloat16" if favours_bfloat16(platform) else "float32"
  if name not in ("float32", "bfloat16"):
    raise ValueError(
      f"no dtype {name!r}; choose 'auto', 'float32' or 'bfloat16'"
    )
  return jnp.float32 if name == "float32" else jnp.bfloat16


def enable_compilation_cache(folder: str | os.PathLike[str]) -> None:
  """Keeps compiled programs in `folder`, so that the next run starts at once.

  `$JAX_COMPILATION_CACHE_DIR`, where set, is left in charge. What cannot be
  kept or read, on a full disk say, is compiled without a word.

  Args:
    folder: Where to keep them; made when first needed.

  >>> import tempfile
  >>> enable_compilation_cache(tempfile.gettempdir())
  """
  checks.check_path(folder, "folder")
  warnings.filterwarnings(
    "ignore", "Error (reading|writing) persistent compilation cache entry"
  )
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    folder = os.path.expanduser(os.fspath(folder))
    jax.config.update("jax_compilation_cache_dir", folder)


def return_free_memory() -> None:
  """Gives back to the system what the C library holds and nobody uses.

  Compiling a training step for a CPU takes more than a gigabyte, which glibc
  would keep: the step's own memory would come on top of it. Without glibc it
  does nothing.

  Source: malloc_trim(3).

  >>> return_free_memory()
  """
  if sys.platform == "linux":
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
      trim(0)
