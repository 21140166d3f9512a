"""Meshes: has what is written for one device run under any of them.

Networks here have gradients of their own, reshape, and choose by platform. None
of that needs to know of a mesh, if two things are seen to at a network's door:

- Under `jax.shard_map`, an operand that is the same on all devices is made one
  that may vary, where the image varies: JAX's own transposition then sums its
  gradient over the devices.
- Where a mesh has Explicit axes, the inside runs in Auto mode, and the result
  is sharded as the image was.

And what a program that maps over a named axis (`jax.pmap`, `jax.shard_map`,
`jax.vmap`) needs to do what one device does with all images is here: each
device differentiates its own loss, of values that `gather` took from all, and
`mean` of the gradients is then that of the mean loss. JAX's transposition sums
over the devices for every one of the three. An `axis_name` is a name or a tuple
of them; with None, each of these functions returns what it was given.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AxisName = str | tuple[str, ...] | None


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
    An array, or a pytree of them, sharded as the image is along those axes,
    but for rows and columns whose number the mesh does not divide any more.

  >>> import jax.numpy as jnp
  >>> anywhere(lambda x, y: x @ y, jnp.ones((2, 3)), jnp.ones((3, 4))).shape
  (2, 4)
  """
  image, *operands = vary_alike((image, *operands))
  mesh, spec = _sharding(image, operands)
  explicit = [AxisType.Explicit == kind for kind in mesh.axis_types]
  if not any(explicit):
    return run(image, *operands)
  kept = image.ndim - 1 if kept is None else kept
  spec = spec[:kept]
  auto = functools.partial(
    jax.sharding.auto_axes,
    run,
    axes=tuple(itertools.compress(mesh.axis_names, explicit)),
  )
  with jax.sharding.use_abstract_mesh(mesh):
    out_sharding = NamedSharding(mesh, PartitionSpec(*spec))
    if any(spec[max(image.ndim - 3, 0) :]):
      whole = auto(out_sharding=NamedSharding(mesh, PartitionSpec()))
      out_sharding = jax.tree.map(
        lambda x: NamedSharding(mesh, _divided(x.shape, mesh, spec)),
        jax.eval_shape(whole, image, *operands),
      )
    return auto(out_sharding=out_sharding)(image, *operands)


def _sharding(image, operands):
  """The mesh of arrays, and how the first lies on it; perhaps an empty one."""
  for array in jax.tree.leaves((image, operands)):
    sharding = jax.typeof(array).sharding
    if not sharding.mesh.empty:
      return sharding.mesh, tuple(sharding.spec) if array is image else ()
  return jax.typeof(image).sharding.mesh, ()


def _divided(shape, mesh, spec):
  """As far as a spec divides a shape: XLA shards no axis unevenly."""
  kept = []
  for size, each in zip(shape, spec, strict=False):
    parts = math.prod(mesh.shape[name] for name in names(each))
    kept.append(each if size % parts == 0 else None)
  return PartitionSpec(*kept)


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
  every = varying(tree)
  if not every:
    return tree
  leaves = [_vary(leaf, every - varying(leaf)) for leaf in leaves]
  return jax.tree.unflatten(structure, leaves)


def varying(tree: Any) -> frozenset[str]:
  """Returns the axes of `jax.shard_map` that any array is known to vary along.

  Args:
    tree: Pytree of arrays.

  Returns:
    Names; none under `jax.pmap`, `jax.vmap` or `check_vma=False`, where JAX
    keeps no account.

  >>> varying({"a": 1.0})
  frozenset()
  """
  kinds = [jax.typeof(leaf).manual_axis_type for leaf in jax.tree.leaves(tree)]
  return frozenset().union(*(kind.varying for kind in kinds))


def vary(tree: Any, axis_name: AxisName) -> Any:
  """Marks what is floating to vary along an axis, for gradients of one's own.

  Args:
    tree: Pytree of arrays.
    axis_name: Of the axis.

  Returns:
    The same values.

  >>> vary({"a": 1.0}, None)
  {'a': 1.0}
  """
  if axis_name is None:
    return tree
  # Empty where nothing is known to vary.
  known = varying(lax.axis_index(axis_name))
  return jax.tree.map(
    lambda x: _vary(x, known - varying(x)) if _is_floating(x) else x, tree
  )


def zeros(like: jax.ShapeDtypeStruct) -> Array:
  """Returns zeros of a shape and dtype that vary along the same axes.

  Args:
    like: From `jax.eval_shape`.

  >>> zeros(jax.ShapeDtypeStruct((2,), "float32")).tolist()
  [0.0, 0.0]
  """
  kind = like.manual_axis_type
  return _vary(
    lax.full(like.shape, 0, like.dtype), kind.varying if kind else frozenset()
  )


def mean(tree: Any, axis_name: AxisName) -> Any:
  """Returns means over an axis of what is floating, and the rest as it is.

  Args:
    tree: Pytree of arrays.
    axis_name: Of the axis.

  >>> import jax.numpy as jnp
  >>> both = lambda x: mean({"loss": x, "count": 1}, "data")
  >>> run = jax.vmap(both, axis_name="data", out_axes=None)
  >>> jax.tree.map(float, run(jnp.array([1.0, 4.0])))
  {'count': 1.0, 'loss': 2.5}
  """
  if axis_name is None:
    return tree
  return jax.tree.map(
    lambda x: lax.pmean(x, axis_name) if _is_floating(x) else x, tree
  )


def gather(x: Array, axis_name: AxisName) -> Array:
  """Returns the rows of all along an axis, in their order.

  Args:
    x: `[B, ...]`, the same shape for all.
    axis_name: Of the axis.

  Returns:
    `[size(axis_name) * B, ...]`.

  >>> import jax.numpy as jnp
  >>> sums = lambda x: gather(x, "data").sum(0)
  >>> jax.vmap(sums, axis_name="data")(jnp.ones((3, 2, 1))).tolist()
  [[6.0], [6.0], [6.0]]
  """
  for name in reversed(names(axis_name)):
    x = lax.all_gather(x, name, tiled=True)
  return x


def own_rows(x: Array, axis_name: AxisName) -> Array:
  """Returns those rows that are one's own, of the rows of all.

  Args:
    x: `[size(axis_name) * B, ...]`, as `gather` returns them.
    axis_name: Of the axis.

  Returns:
    `[B, ...]`.

  >>> import jax.numpy as jnp
  >>> own = lambda _: own_rows(jnp.arange(4.0), "data")
  >>> jax.vmap(own, axis_name="data")(jnp.ones(2)).tolist()
  [[0.0, 1.0], [2.0, 3.0]]
  """
  if axis_name is None:
    return x
  num = x.shape[0] // size(axis_name)
  first = lax.axis_index(axis_name) * num
  return lax.dynamic_slice_in_dim(x, first, num)


def check_bound(axis_name: AxisName) -> None:
  """Raises unless something is mapped over an axis, here.

  Args:
    axis_name: Of the axis.

  >>> check_bound("data")
  Traceback (most recent call last):
  ...
  ValueError: axis_name is 'data', and nothing is mapped over an axis 'data'...
  """
  for name in names(axis_name):
    if not isinstance(name, str):
      raise TypeError(
        f"axis_name must be a name, or a tuple of names, got {axis_name!r}"
      )
    try:
      lax.axis_size(name)
    except NameError as error:
      raise ValueError(
        f"axis_name is {axis_name!r}, and nothing is mapped over an axis"
        f" {name!r} here: give it inside of jax.pmap, jax.shard_map or jax.vmap"
        " alone, with the name that they have; under jax.jit leave it out"
      ) from error


def size(axis_name: AxisName) -> int:
  """Returns the length of an axis.

  Args:
    axis_name: Of the axis.

  >>> size(None)
  1
  """
  return 1 if axis_name is None else lax.axis_size(axis_name)


def names(axis_name: AxisName) -> tuple[str, ...]:
  """Returns the names that an axis stands for.

  Args:
    axis_name: Of the axis.

  >>> names(None), names("data"), names(("slice", "data"))
  ((), ('data',), ('slice', 'data'))
  """
  if axis_name is None:
    return ()
  return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def _is_floating(x):
  return jax.dtypes.issubdtype(jax.typeof(x).dtype, np.inexact)


def _vary(x, axes):
  return lax.pcast(x, tuple(sorted(axes)), to="varying") if axes else x


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
