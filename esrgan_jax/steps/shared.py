"""What all training steps share: microbatches, updates, averages, the guard.

A batch is `{"lr": [B, h, w, 3], "hr": [B, scale * h, scale * w, 3]}`, float32
in [0, 1]. Metrics are a flat dictionary of float32 scalars: losses before their
weights, except for `g/loss` and `d/loss`, which are what is minimised.

Under `jit`, arrays are those of all devices, and nothing here needs to know of
them. Mapped over a named axis, by `jax.pmap`, `jax.shard_map` or `jax.vmap`, a
step has one device's batch, and takes the axis' name: its result is then that
of all batches together, the same on every device.
"""

from __future__ import annotations

import contextlib
import functools
import numbers
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from esrgan_jax import checks, degradation, losses
from esrgan_jax.models import registry
from esrgan_jax.ops import axes
from esrgan_jax.ops.layout import keep_compact
from esrgan_jax.ops.platforms import by_platform
from esrgan_jax.steps.optimizer import find_learning_rate, update

Batch = Mapping[str, Array]
Metrics = dict[str, Array]
ImageLoss = Callable[[Array, Array], Array]

PIXEL_LOSSES: dict[str, ImageLoss] = {
  "l1": losses.l1_loss,
  "mse": losses.mse_loss,
  "charbonnier": losses.charbonnier_loss,
}


def find_pixel_loss(pixel_loss):
  """The function of a name."""
  if callable(pixel_loss):
    return image_loss(pixel_loss, "pixel_loss")
  if pixel_loss not in PIXEL_LOSSES:
    raise ValueError(
      f"pixel_loss must be one of {tuple(PIXEL_LOSSES)} or a function of "
      f"(sr, hr), got {pixel_loss!r}"
    )
  return PIXEL_LOSSES[pixel_loss]


def image_loss(function, name):
  """A function of the user's, held to what it is to return."""
  if not callable(function):
    raise TypeError(
      f"{name} must be a function of (sr, hr), got {checks.describe(function)}"
    )
  return lambda *images: checks.check_scalar_loss(function(*images), name)


def sharpen(images):
  """HR as Real-ESRGAN's losses compare SR with it."""
  return axes.anywhere(degradation.usm_sharpen, images)


def run_network(net, params, collections, images, key=None):
  """Its result in training mode, and the collections that come out of it.

  The key is for dropout and its like, under any name.
  """
  variables = {"params": params, **collections}
  if not registry.takes_train(net):
    return net.apply(variables, images), collections
  rngs = {} if key is None else {"rngs": key}
  result, updates = net.apply(
    variables, images, train=True, mutable=list(collections), **rngs
  )
  return result, {**collections, **updates}


def microbatch_key(seed, step, index):
  """The random key of a microbatch: resumed, a training draws the same."""
  checks.check_seed(seed)
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.random.fold_in(key, index)


def check_state(state, kind):
  """Raises unless a state is of a step's phase."""
  if not isinstance(state, kind):
    create = f"create_{kind.__name__.removesuffix('State').lower()}_state"
    raise TypeError(
      f"state must be a {kind.__name__}, from {create}, got"
      f" {checks.describe(state)}"
    )


def check_batch(batch, generator):
  """The batch, its images as arrays; raises unless they are images.

  Of channels, a generator that does not tell takes what it takes.
  """
  registry.check_network(generator, "generator")
  if not isinstance(batch, Mapping):
    raise TypeError(
      "batch must be a dictionary of images, 'lr' and 'hr', got"
      f" {checks.describe(batch)}"
    )
  if missing := [name for name in ("lr", "hr") if name not in batch]:
    has = ", ".join(map(repr, batch)) or "nothing"
    raise ValueError(
      f"batch must have 'lr' and 'hr', {' and '.join(map(repr, missing))} not"
      f" found: it has {has}"
    )
  checked = dict(batch)
  for name, field in (("lr", "num_in_ch"), ("hr", "num_out_ch")):
    images, channels = batch[name], getattr(generator, field, None)
    shape = getattr(images, "shape", ())
    planes = len(shape) == 4 and shape[1] == 3 and shape[3] not in (1, 2, 3, 4)
    if channels is None and planes:
      channels = 3  # Three rows of many channels: it is NCHW, and told so.
    checked[name] = checks.check_images(
      images, f"batch[{name!r}]", channels=channels, batch=True
    )
  return checked


def check_axis(state, batch, axis_name):
  """Raises where devices would train apart, as far as JAX keeps account.

  `jax.shard_map` tells which arrays are the same on all devices, unless it has
  `check_vma=False`. `jax.pmap` doesn't: there, a state that is meant to be the
  same looks like one that isn't (independent trainings, one a device).
  """
  axes.check_bound(axis_name)
  apart = axes.varying(batch) - axes.varying(state.params)
  if missing := apart - set(axes.names(axis_name)):
    wanted = {*axes.names(axis_name), *missing}
    mesh = jax.sharding.get_abstract_mesh()
    wanted = tuple(name for name in mesh.axis_names if name in wanted)
    wanted = wanted[0] if len(wanted) == 1 else wanted
    raise ValueError(
      f"axis_name is {axis_name!r}, but devices have batches of their own along"
      f" {', '.join(sorted(missing))}, and a state in common, which would go"
      f" apart: pass axis_name={wanted!r}"
    )


@contextlib.contextmanager
def synchronized(axis_name):
  """Within, BatchNorm in Linen modules has the statistics of all devices."""
  if axis_name is None:
    yield
    return

  def intercept(call, args, kwargs, context):
    norm = context.module
    if not isinstance(norm, nn.BatchNorm) or context.method_name != "__call__":
      return call(*args, **kwargs)
    if norm.axis_name is None:
      norm = norm.clone(parent=norm.scope, axis_name=axis_name)
      return norm(*args, **kwargs)
    if set(axes.names(norm.axis_name)) != set(axes.names(axis_name)):
      raise ValueError(
        f"axis_name is {axis_name!r} for the step and {norm.axis_name!r} for"
        f" BatchNorm {'/'.join(norm.path)}: give the step's alone"
      )
    return call(*args, **kwargs)

  with nn.intercept_methods(intercept):
    yield


def device_keys(key, num, axis_name):
  """Random keys for so many networks, on each device its own; None of None."""
  if key is None:
    return (None,) * num
  if axis_name is not None:
    key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
  return tuple(jax.random.fold_in(key, n + 1) for n in range(num))


def accumulate_gradients(gradients, carry, batch, num):
  """Means of `gradients(carry, microbatch, index) -> (carry, tree)`."""
  if not isinstance(num, numbers.Integral) or num < 1:
    raise ValueError(f"accumulate must be a whole number >= 1, got {num!r}")
  if num == 1:
    return gradients(carry, batch, 0)

  def split(array):
    if array.shape[0] % num:
      raise ValueError(
        f"accumulate {num} does not divide the batch of {array.shape[0]}"
      )
    # Every num-th image, so that a sharded batch's microbatches are sharded
    # alike: contiguous ones would lie on some of the devices only.
    array = array.reshape(-1, num, *array.shape[1:])
    return jnp.swapaxes(array, 0, 1)

  microbatches = jax.tree.map(split, batch)
  first = jax.tree.map(lambda x: x[0], microbatches)
  shapes = jax.eval_shape(gradients, carry, first, 0)[1]

  def body(loop, xs):
    carry, total = loop
    carry, tree = gradients(carry, *xs)
    return (carry, jax.tree.map(jnp.add, total, tree)), None

  zeros = jax.tree.map(axes.zeros, shapes)
  (carry, total), _ = jax.lax.scan(
    body, (carry, zeros), (microbatches, jnp.arange(num))
  )
  return carry, jax.tree.map(lambda x: x / num, total)


def global_norm(tree):
  """Norm of all leaves together; not finite where any element is not."""
  squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.sqrt(sum(squares))


def apply_update(optimizer, grads, opt_state, params, *, step, value):
  """New parameters and state, and the learning rate where the state tells it.

  A transformation that asks for them is told the training step and the loss.
  """
  # To lie as the parameters do: otherwise the whole update would take place in
  # the gradients' layout, and parameters and state be copied there and back.
  grads = by_platform(
    grads,
    tpu=functools.partial(jax.tree.map, keep_compact),
    default=lambda grads: grads,
  )
  updates, opt_state = update(
    optimizer, grads, opt_state, params, step=step, value=value
  )
  params = optax.apply_updates(params, updates)
  return params, opt_state, find_learning_rate(opt_state)


def average(ema_params, params, decay):
  """BasicSR's form, without correction: it starts at the parameters."""
  return jax.tree.map(
    lambda e, p: decay * e + (1 - decay) * p, ema_params, params
  )


def check_decay(ema_decay):
  """Raises unless a decay is in range."""
  checks.check_number(ema_decay, "ema_decay")
  if not 0 <= ema_decay <= 1:
    raise ValueError(f"ema_decay must be in [0, 1], got {ema_decay}")


def keep_finite(finite, updated, state):
  """The updated state where all is finite, else the old one; both count."""
  kept = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), updated, state
  )
  skip = (~finite).astype(jnp.int32)
  return kept.replace(
    step=state.step + 1,
    skipped=state.skipped + skip,
    skipped_in_a_row=(state.skipped_in_a_row + skip) * skip,
  )


def with_counters(metrics, state):
  """Metrics with the counters, all float32; without those that are None."""
  counters = {
    "skipped": state.skipped,
    "skipped_in_a_row": state.skipped_in_a_row,
  }
  return {
    name: jnp.asarray(value, jnp.float32)
    for name, value in (metrics | counters).items()
    if value is not None
  }
