"""The choice by platform, in one place.

`jax.lax.platform_dependent` traces what every platform would do, to choose when
a program is lowered: nested, that is many times the work of one. A program that
knows where it will run says so while it is traced.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from jax import lax
from jax.sharding import Mesh

__all__ = ["by_platform", "known", "known_mesh", "tracing_for"]

_GPUS = {"cuda", "rocm"}
_known: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  "esrgan_jax_platform", default=None
)
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  "esrgan_jax_mesh", default=None
)


def by_platform(
  *args: Any, default: Callable[..., Any], **choices: Callable[..., Any]
) -> Any:
  """Applies the function of the platform that the program will run on.

  Args:
    *args: Of the function: pytrees of arrays.
    default: For every other platform.
    **choices: By the platforms' names: `cpu`, `cuda`, `rocm`, `tpu`.

  Returns:
    What the function returns; shapes and dtypes are the same on all platforms.

  >>> float(by_platform(2.0, default=lambda x: x, cpu=lambda x: -x))
  -2.0
  """
  platform = _known.get()
  if platform is None or (platform == "gpu" and _GPUS & choices.keys()):
    return lax.platform_dependent(*args, default=default, **choices)
  return choices.get(platform, default)(*args)


def known() -> str | None:
  """Returns the platform that the program being traced is for, where known.

  >>> with tracing_for("tpu"):
  ...   known()
  'tpu'
  """
  return _known.get()


def known_mesh() -> Mesh | None:
  """Returns the mesh that the batch is split over, where several are known to.

  >>> known_mesh() is None
  True
  """
  return _mesh.get()


@contextlib.contextmanager
def tracing_for(platform: str, mesh: Mesh | None = None) -> Iterator[None]:
  """What is traced inside will be lowered for one platform only.

  To be used around the `lower` of a `jax.jit` that is made for it, which no
  other program shares.

  Args:
    platform: As a device tells it. A GPU's says nothing of its kind: where
      choices differ by that, they are left to lowering.
    mesh: Of one axis, which a program's batch is split over, where the program
      is of all its devices together and not of each, as in `jax.shard_map`.

  >>> with tracing_for("tpu"):
  ...   float(by_platform(2.0, default=lambda x: x, cpu=lambda x: -x))
  2.0
  """
  several = mesh if mesh is not None and mesh.size > 1 else None
  tokens = _known.set(platform), _mesh.set(several)
  try:
    yield
  finally:
    _known.reset(tokens[0])
    _mesh.reset(tokens[1])
