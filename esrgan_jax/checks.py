"""The one check of images and the one of trees, at the doors of public names.

They look at kinds, shapes and dtypes, which are known while a program is
traced: nothing is added to it. Values are looked at by `check_range`, where
they are known, or where `checkify` is asked to.

What is no array of floats is a TypeError, what has another shape a ValueError.
`docs/errors.md` has a table of what is said.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax import Array
from jax.experimental import checkify

_SHOWN = 5  # Paths an error names before it only counts.
# Bicubic interpolation and networks overshoot [0, 1]; 8-bit levels do by far.
_LOWEST, _HIGHEST = -1.0, 2.0


def check_images(
  images: Any,
  name: str = "image",
  *,
  channels: int | None = None,
  batch: bool = False,
  size: Sequence[int] | None = None,
  integers: str = "",
) -> Array:
  """Returns images as an array, or raises unless they are float images.

  Args:
    images: What was given.
    name: What the caller calls it.
    channels: How many they must have; None for any number.
    batch: Whether exactly one leading axis is needed.
    size: The height and width that they must have; None for any.
    integers: What takes integer images, if anything does.

  Returns:
    The array.

  Raises:
    TypeError: If it is no array, or not of floats.
    ValueError: If it has another shape, or no pixel.

  >>> check_images(np.zeros((8, 8, 3), np.uint8), channels=3)
  Traceback (most recent call last):
  ...
  TypeError: image must be float [..., H, W, 3] in [0, 1], got uint8[8, 8, 3]...
  """
  leading = "B" if batch else "..."
  height, width = size or ("H", "W")
  last = "C" if channels is None else channels
  wanted = f"float [{leading}, {height}, {width}, {last}] in [0, 1]"
  images = _floats(images, name, wanted, integers)
  shape = images.shape
  if way_out := _misshapen(shape, channels, batch, size):
    raise ValueError(_got(name, wanted, show(images), way_out))
  return images


def check_floats(array: Any, name: str) -> Array:
  """Returns floats of any shape as an array, or raises: features, logits.

  Args:
    array: What was given; a Python float is an array of no axes.
    name: What the caller calls it.

  Raises:
    TypeError: If it is no array, or not of floats.
    ValueError: If it is empty.

  >>> check_floats(None, "sr")
  Traceback (most recent call last):
  ...
  TypeError: sr must be a float array, got None
  """
  wanted = "a float array"
  if isinstance(array, float):
    array = jnp.asarray(array)
  array = _floats(array, name, wanted)
  if 0 in array.shape:
    raise ValueError(
      _got(name, wanted, show(array), "it is empty, and has no mean")
    )
  return array


def check_pair(sr: Array, hr: Array) -> None:
  """Raises unless two arrays have the same shape: nothing is broadcast.

  Args:
    sr: An array.
    hr: What it is compared with.

  >>> check_pair(jnp.ones((2, 3)), jnp.ones((1, 3)))
  Traceback (most recent call last):
  ...
  ValueError: sr and hr must have the same shape, got (2, 3) and (1, 3)
  """
  if sr.shape != hr.shape:
    raise ValueError(
      f"sr and hr must have the same shape, got {sr.shape} and {hr.shape}"
    )


def check_array(array: Any, name: str, wanted: str) -> Array:
  """Returns an array of any dtype, or raises unless it is one.

  Args:
    array: What was given.
    name: What the caller calls it.
    wanted: What it must be, in words.

  Raises:
    TypeError: If it is no array.

  >>> check_array("photo.png", "image", "an array [..., H, W, C]")
  Traceback (most recent call last):
  ...
  TypeError: image must be an array [..., H, W, C], got the path 'photo.png':...
  """
  if isinstance(array, jax.Array):
    return array
  if hasattr(array, "__jax_array__"):
    return jnp.asarray(array)
  if isinstance(array, str | os.PathLike):
    got = f"the path {os.fspath(array)!r}"
    way_out = (
      "read the file, as np.asarray(PIL.Image.open(path).convert('RGB')), or"
      " run `python -m esrgan_jax upscale`"
    )
  elif isinstance(array, list | tuple):
    got = describe(array)
    way_out = "make one array of it, with jnp.asarray or jnp.stack"
  elif not (
    hasattr(array, "__array__") or hasattr(array, "__array_interface__")
  ):
    got, way_out = describe(array), ""
  elif np.asarray(array).dtype.hasobject:
    got, way_out = "an array of objects", "give numbers"
  else:
    return jnp.asarray(array)
  raise TypeError(_got(name, wanted, got, way_out))


def check_range(images: Any, name: str = "image") -> Array:
  """Returns images, and checks that their values are about [0, 1].

  Values up to 255 in float are a common mistake, which no shape and no dtype
  tells of. Outside of `jax.jit` this looks at them and raises. Inside, it is a
  check of `jax.experimental.checkify`, for those who functionalise it:

  >>> from jax.experimental import checkify
  >>> def run(lr):
  ...   lr = check_range(lr, "lr")
  ...   return lr * 2  # Or `net.apply({"params": params}, lr)`.
  >>> run = jax.jit(checkify.checkify(run))
  >>> error, _ = run(jnp.full((1, 4, 4, 3), 0.5))
  >>> error.throw()
  >>> error, _ = run(jnp.full((1, 4, 4, 3), 200.0))
  >>> error.get().startswith("lr must be in [0, 1], got values from 200")
  True

  Args:
    images: Float arrays of any shape. What overshoots a little, as bicubic
      interpolation does, passes: from -1 to 2. So does nan.
    name: What to call them.

  Returns:
    The images.

  Raises:
    ValueError: If there are values outside, and they are known.
  """
  message = (
    f"{name} must be in [0, 1], got values from {{}} to {{}}: divide by the"
    " largest level, such as 255"
  )
  if isinstance(images, jax.core.Tracer):
    low, high = images.min(), images.max()
    outside = (low < _LOWEST) | (high > _HIGHEST)
    checkify.check(~outside, message, low, high)
    return images
  values = np.asarray(images)
  if values.size:
    low, high = float(values.min()), float(values.max())
    if low < _LOWEST or high > _HIGHEST:
      raise ValueError(message.format(f"{low:g}", f"{high:g}"))
  return images


def check_params(
  params: Any, expected: Any, *, owner: str, name: str = "params"
) -> None:
  """Raises unless a tree has the layers and shapes of a network.

  Args:
    params: What was given: nested dictionaries of arrays.
    expected: A tree of what has shapes, such as `jax.eval_shape` returns.
    owner: Whose parameters they must be, in words.
    name: What the caller calls them.

  Raises:
    TypeError: If it is no dictionary, or a leaf is no array of floats.
    ValueError: If layers or shapes differ; names the first that do.

  >>> check_params({"a": jnp.ones(2)}, {"b": jnp.ones(2)}, owner="a Net")
  Traceback (most recent call last):
  ...
  ValueError: params must be those of a Net: b is missing; a is not one of ...
  """
  if not isinstance(params, Mapping):
    raise TypeError(_got(name, f"the tree of {owner}", describe(params), ""))
  found, wanted = _leaves(params), _leaves(expected)
  problems = [f"{path} is missing" for path in wanted if path not in found]
  problems += [
    f"{path} is not one of its layers" for path in found if path not in wanted
  ]
  if problems and "params" in params and "params" not in expected:
    raise ValueError(
      f"{name} must be those of {owner}, got variables: give"
      " variables['params']"
    )
  for path, (shape, dtype) in found.items():
    if path in wanted and wanted[path][0] != shape:
      problems.append(
        f"{path} is {_show(shape, dtype)}, not {_show(*wanted[path])}"
      )
    elif dtype is None or not jnp.issubdtype(dtype, jnp.floating):
      raise TypeError(
        f"{name} must be float arrays, {path} is {_show(shape, dtype)}"
      )
  if problems:
    raise ValueError(f"{name} must be those of {owner}: {_listed(problems)}")


def check_alike(params_a: Any, params_b: Any) -> None:
  """Raises unless two trees of floats have one structure, shapes and dtypes.

  Args:
    params_a: Any pytree.
    params_b: What is to be like it.

  Raises:
    ValueError: If they differ; names the first paths that do.

  >>> check_alike({"a": jnp.ones(2)}, {"a": jnp.ones(3)})
  Traceback (most recent call last):
  ...
  ValueError: params_a and params_b must be ...: a: float32[2] and float32[3]
  """
  leaves_a, leaves_b = _leaves(params_a), _leaves(params_b)
  problems = [
    f"{path}: only in params_{side}"
    for side, here, there in (
      ("a", leaves_a, leaves_b),
      ("b", leaves_b, leaves_a),
    )
    for path in here
    if path not in there
  ]
  for path, leaf_a in leaves_a.items():
    leaf_b = leaves_b.get(path, leaf_a)
    if leaf_a != leaf_b:
      problems.append(f"{path}: {_show(*leaf_a)} and {_show(*leaf_b)}")
    elif leaf_a[1] is None or not jnp.issubdtype(leaf_a[1], jnp.floating):
      if leaf_a[1] is None:
        problems.append(f"{path or 'they'}: no array")
      else:
        problems.append(f"{path}: {_show(*leaf_a)} is not floating-point")
  if not problems and not leaves_a:
    problems.append("they have no array")
  if not problems and (
    jax.tree.structure(params_a) != jax.tree.structure(params_b)
  ):
    kinds = f"{type(params_a).__name__} and {type(params_b).__name__}"
    problems.append(
      f"containers of different types hold the same leaves ({kinds})"
    )
    if _has_frozen(params_a) != _has_frozen(params_b):
      problems[-1] += ": flax.core.unfreeze makes dicts of FrozenDicts"
  if problems:
    raise ValueError(
      "params_a and params_b must be float trees of one architecture: "
      f"{_listed(problems)}"
    )


def check_finite_scalar(value: Any, name: str, hint: str = "") -> None:
  """Raises unless a value is one real number, and finite where it is known.

  Args:
    value: A number, or an array without axes, traced or not.
    name: What the caller calls it.
    hint: What to do with several.

  >>> check_finite_scalar(np.float32("nan"), "alpha")
  Traceback (most recent call last):
  ...
  ValueError: alpha must be finite, got nan
  """
  check_number(value, name, hint)
  if not isinstance(value, jax.core.Tracer) and not math.isfinite(value):
    raise ValueError(f"{name} must be finite, got {value}")


def check_number(value: Any, name: str, hint: str = "") -> None:
  """Raises unless a value is one real number.

  Args:
    value: A number, or an array without axes, traced or not.
    name: What the caller calls it.
    hint: What to do with several.

  >>> check_number("a", "alpha")
  Traceback (most recent call last):
  ...
  TypeError: alpha must be a number, got 'a'
  """
  if isinstance(value, bool | int | float):
    return
  if isinstance(value, str):
    raise TypeError(f"{name} must be a number, got {value!r}")
  value = check_array(value, name, "a number")
  if value.ndim:
    raise ValueError(
      f"{name} must be a scalar, got shape {value.shape}"
      f"{': ' if hint else ''}{hint}"
    )
  if jnp.issubdtype(value.dtype, jnp.complexfloating):
    raise TypeError(f"{name} must be real, got {value.dtype}")


def check_key(key: Any, name: str = "key") -> None:
  """Raises a TypeError if a seed, or nothing, is given as a random key.

  >>> check_key(0)
  Traceback (most recent call last):
  ...
  TypeError: key must be a random key, got 0: make one, jax.random.key(0)
  """
  shape, dtype = getattr(key, "shape", None), getattr(key, "dtype", None)
  if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
    if shape == ():
      return
    way_out = "take one of them"
  elif dtype == np.uint32 and len(shape) == 1:  # Of jax.random.PRNGKey.
    return
  else:
    way_out = f"make one, jax.random.key({key if isinstance(key, int) else 0})"
  raise TypeError(_got(name, "a random key", describe(key), way_out))


def check_seed(seed: Any) -> None:
  """Raises a TypeError unless a seed is a whole number, traced or not.

  >>> check_seed(None)
  Traceback (most recent call last):
  ...
  TypeError: seed must be a whole number, got None
  """
  if isinstance(seed, numbers.Integral):
    return
  dtype = getattr(seed, "dtype", None)
  whole = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
  if not whole or seed.ndim:
    raise TypeError(_got("seed", "a whole number", describe(seed), ""))


def check_path(path: Any, name: str = "path", wanted: str = "a path") -> None:
  """Raises a TypeError unless something is a path.

  >>> check_path(None)
  Traceback (most recent call last):
  ...
  TypeError: path must be a path, got None
  """
  if not isinstance(path, str | os.PathLike):
    raise TypeError(_got(name, wanted, describe(path), ""))


def check_concrete(tree: Any, function: str, way_out: str) -> None:
  """Raises a TypeError where what runs on the host is given what is traced.

  Args:
    tree: What was given.
    function: What runs on the host.
    way_out: What to do instead.

  >>> jax.jit(lambda x: check_concrete(x, "count", "use jnp.sum"))(4)
  Traceback (most recent call last):
  ...
  TypeError: count runs on the host, and cannot be traced: use jnp.sum...
  """
  if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
    raise TypeError(
      f"{function} runs on the host, and cannot be traced: {way_out}"
    )


def check_scalar_loss(value: Any, name: str) -> Array:
  """Returns the value of a loss function, or raises unless it is one number.

  Args:
    value: What it returned.
    name: What the caller calls the function.

  >>> check_scalar_loss(jnp.ones((2, 3)), "pixel_loss")
  Traceback (most recent call last):
  ...
  TypeError: pixel_loss must return one float, got float32[2, 3]: take its mean
  """
  if isinstance(value, float):
    return jnp.asarray(value, jnp.float32)
  shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
  is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
  if not is_float or shape != ():
    way_out = "take its mean" if shape else ""
    raise TypeError(
      f"{name} must return one float, got {describe(value)}"
      f"{': ' if way_out else ''}{way_out}"
    )
  return value


def check_sizes(fields: Any, *names: str) -> None:
  """Raises unless fields are whole numbers from 1 on.

  Args:
    fields: What has them, such as a network.
    *names: Theirs.

  >>> import types
  >>> check_sizes(types.SimpleNamespace(num_feat=0), "num_feat")
  Traceback (most recent call last):
  ...
  ValueError: num_feat is 0; it must be a whole number of at least 1
  """
  for name in names:
    value = getattr(fields, name)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < 1:
      raise ValueError(
        f"{name} is {value!r}; it must be a whole number of at least 1"
      )


def check_compute_dtype(dtype: Any) -> None:
  """Raises unless networks can compute in a dtype.

  Args:
    dtype: A floating-point type, or its name.

  >>> check_compute_dtype(jnp.int8)
  Traceback (most recent call last):
  ...
  ValueError: dtype is int8; it must be a floating-point type, such as bfloat16
  """
  try:
    kind = None if dtype is None else jnp.dtype(dtype)
  except TypeError:  # NumPy knows no such type.
    kind = None
  if kind is None or not jnp.issubdtype(kind, jnp.floating):
    raise ValueError(
      f"dtype is {kind or describe(dtype)}; it must be a floating-point type,"
      " such as bfloat16"
    )


def check_static(**options: Any) -> None:
  """Raises where options of a function are traced, and says what to do.

  Args:
    **options: By name, what was given.

  >>> jax.jit(lambda x: check_static(border=x))(4)
  Traceback (most recent call last):
  ...
  TypeError: border decides the program and must be static: bind it, as in ...
  """
  for name, value in options.items():
    if isinstance(value, jax.core.Tracer):
      raise TypeError(
        f"{name} decides the program and must be static: bind it, as in"
        f" functools.partial(f, {name}=...), or give jax.jit"
        f" static_argnames={tuple(options)}"
      )


def check_flags(**options: Any) -> None:
  """Raises unless options are True or False: "no" would count as true.

  Args:
    **options: By name, what was given.

  >>> check_flags(antialias="no")
  Traceback (most recent call last):
  ...
  TypeError: antialias must be True or False, got 'no'
  """
  check_static(**options)
  for name, value in options.items():
    if not isinstance(value, bool | np.bool_):
      raise TypeError(_got(name, "True or False", describe(value), ""))


def describe(value: Any) -> str:
  """Returns what a value is, in a few words.

  >>> describe(jnp.ones((2, 3))), describe(None), describe("a.png")
  ('float32[2, 3]', 'None', "'a.png'")
  """
  if value is None or isinstance(value, str | bool | int | float):
    return repr(value)
  if hasattr(value, "shape") and hasattr(value, "dtype"):
    return show(value)
  return f"a {type(value).__name__}"


def show(array: Any) -> str:
  """Returns an array's dtype and shape.

  >>> show(np.zeros((2, 3), np.uint8))
  'uint8[2, 3]'
  """
  return _show(array.shape, array.dtype)


def _show(shape, dtype):
  return f"{dtype}[{', '.join(map(str, shape))}]"


def _got(name, wanted, got, way_out):
  return f"{name} must be {wanted}, got {got}{': ' if way_out else ''}{way_out}"


def _floats(array, name, wanted, integers=""):
  """An array of floats, or a TypeError."""
  array = check_array(array, name, wanted)
  dtype = array.dtype
  if jnp.issubdtype(dtype, jnp.floating):
    return array
  if jnp.issubdtype(dtype, jnp.unsignedinteger):
    way_out = f"divide by {jnp.iinfo(dtype).max}, in float32"
    way_out += integers and f", or use {integers}"
  elif jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, bool):
    way_out = "convert it, with astype(jnp.float32)"
  elif jnp.issubdtype(dtype, jnp.complexfloating):
    way_out = "take its real part"
  else:
    way_out = ""
  raise TypeError(_got(name, wanted, show(array), way_out))


def _misshapen(shape, channels, batch, size):
  """What to do about images of a shape that does not fit; empty if it does."""
  rank = len(shape)
  if rank < 3:
    grey = "give a grey image a channel axis, image[..., None]"
    return grey if rank == 2 else "images have rows, columns and channels"
  if 0 in shape:
    return "there is no pixel in it"
  if channels is not None and shape[-1] != channels:
    if shape[-3] == channels:
      return "it looks like NCHW, move the channels: jnp.moveaxis(x, -3, -1)"
    if channels == 3 and shape[-1] == 4:
      return "leave out alpha, image[..., :3]"
    if channels == 3 and shape[-1] == 1:
      return "repeat the grey channel, image.repeat(3, axis=-1)"
    return f"it has {shape[-1]} channels"
  if batch and rank == 3:
    return "give one image a batch axis, image[None]"
  if batch and rank > 4:
    return "make one axis of the leading ones, with reshape, or use jax.vmap"
  if size is not None and tuple(shape[-3:-1]) != tuple(size):
    return "crop them, or set input_size"
  return ""


def _leaves(tree):
  """Path -> (shape, dtype) of every leaf; dtype None of what is no array."""

  def shape_and_dtype(leaf):
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
      dtype = jax.dtypes.canonicalize_dtype(
        leaf.dtype, allow_extended_dtype=True
      )
      return tuple(leaf.shape), dtype
    if isinstance(leaf, bool | int | float | complex):
      return (), jnp.result_type(leaf)
    return (), None

  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): shape_and_dtype(
      leaf
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda x: x is None
    )
  }


def _listed(problems):
  more = len(problems) - _SHOWN
  shown = "; ".join(problems[:_SHOWN])
  return f"{shown}{f'; and {more} more' if more > 0 else ''}"


def _has_frozen(tree):
  frozen = lambda x: isinstance(x, FrozenDict)  # noqa: E731
  return any(map(frozen, jax.tree.leaves(tree, is_leaf=frozen)))
