"""Meshes: has what is written for one device run under any of them.

Networks here have gradients of their own, reshape, and choose by platform. None
of that needs to know of a mesh, if two things are seen to at a network's door:

- Under `jax.shard_map`, an operand that is the same on all devices is made one
  that may vary, where the image varies: JAX's own transposition then sums its
  gradient over the devices.
- Where a mesh has Explicit axes, the inside runs in Auto mode, and the result
  is sharded as the image was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def anywhere(
  run: Callable[..., Array],
  image: Array,
  *operands: Any,
  kept: int | None = None,
) -> Array:
  """Returns `run(image, *operands)`, whatever mesh the arrays are on.

  Args:
    run: A function of arrays that knows of no mesh.
    image: What decides how the result is sharded.
    *operands: Pytrees of arrays, such as parameters.
    kept: How many leading axes of `image` the result has as well, perhaps of
      another size, and is sharded along; None for all but the last.

  Returns:
    An array, or a pytree of them that are all sharded alike.

  >>> import jax.numpy as jnp
  >>> anywhere(lambda x, y: x @ y, jnp.ones((2, 3)), jnp.ones((3, 4))).shape
  (2, 4)
  """
  image, *operands = vary_alike((image, *operands))
  sharding = jax.typeof(image).sharding
  mesh = sharding.mesh
  if mesh.empty or AxisType.Explicit not in mesh.axis_types:
    return run(image, *operands)
  kept = image.ndim - 1 if kept is None else kept
  spec = PartitionSpec(*tuple(sharding.spec)[:kept])
  with jax.sharding.use_abstract_mesh(mesh):
    auto = jax.sharding.auto_axes(run, out_sharding=NamedSharding(mesh, spec))
    return auto(image, *operands)


def vary_alike(tree: Any) -> Any:
  """Marks arrays in `jax.shard_map` to vary along all axes that any does.

  Args:
    tree: Pytree of arrays.

  Returns:
    The same values. Outside of `jax.shard_map`, the same arrays.

  >>> vary_alike({"a": 1.0})
  {'a': 1.0}
  """
  leaves, structure = jax.tree.flatten(tree)
  varying = [jax.typeof(leaf).manual_axis_type.varying for leaf in leaves]
  every = functools.reduce(frozenset.union, varying, frozenset())
  if not every:
    return tree
  leaves = [
    lax.pcast(leaf, tuple(sorted(every - own)), to="varying")
    if every - own
    else leaf
    for leaf, own in zip(leaves, varying, strict=True)
  ]
  return jax.tree.unflatten(structure, leaves)


def abstract(shape: tuple[int, ...], like: Array) -> jax.ShapeDtypeStruct:
  """Returns what `jax.linear_transpose` needs to know of an operand.

  Args:
    shape: Of the operand.
    like: An array of its dtype, that varies along the axes that it does.

  >>> import jax.numpy as jnp
  >>> abstract((2, 3), jnp.ones(4, jnp.bfloat16)).dtype
  dtype(bfloat16)
  """
  kind = jax.typeof(like)
  sharding = None
  if not kind.sharding.mesh.empty:
    sharding = NamedSharding(kind.sharding.mesh, PartitionSpec())
  return jax.ShapeDtypeStruct(
    shape,
    like.dtype,
    sharding=sharding,
    manual_axis_type=kind.manual_axis_type,
  )
