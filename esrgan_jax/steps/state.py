"""Training states: everything that a step reads and writes.

Plain pytrees, so checkpoints, shardings and donation need no special case. The
generator's fields have one name in both phases: whoever evaluates, exports or
interpolates reads `ema_params` without asking which phase it came from.

What a generator has besides parameters, such as BatchNorm's running statistics,
is in `collections`: a dict by Linen's names, empty for most. There is one of
it, beside the parameters as they are and beside their average: statistics are
averages themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from esrgan_jax import checks
from esrgan_jax.models import registry
from esrgan_jax.models.registry import Network
from esrgan_jax.steps.optimizer import check_optimizer, check_supported


class PsnrState(flax.struct.PyTreeNode):
  """State of phase one, the generator alone.

  Attributes:
    step: Steps done, skipped ones included; int32 scalar.
    params: The generator's parameters.
    opt_state: State of the generator's optimizer.
    ema_params: Exponential moving average of `params`.
    skipped: Updates skipped because something was not finite; int32 scalar.
    skipped_in_a_row: The same, since the last update; int32 scalar.
    collections: The generator's, besides its parameters.

  >>> import flax.linen as nn
  >>> net, adam = nn.Conv(3, (3, 3)), optax.adam(1e-4)
  >>> state = create_psnr_state(jax.random.key(0), net, adam)
  >>> state.replace(step=jnp.int32(7)).step
  Array(7, dtype=int32)
  """

  step: Array
  params: Any
  opt_state: Any
  ema_params: Any
  skipped: Array
  skipped_in_a_row: Array
  collections: Any = flax.struct.field(default_factory=dict)


class GanState(flax.struct.PyTreeNode):
  """State of phase two, generator and discriminator.

  Attributes:
    step: Steps done, skipped ones included; int32 scalar.
    params: The generator's parameters.
    opt_state: State of the generator's optimizer.
    ema_params: Exponential moving average of `params`.
    d_params: The discriminator's parameters.
    d_batch_stats: The discriminator's running BatchNorm statistics; an empty
      dictionary for one without BatchNorm.
    d_opt_state: State of the discriminator's optimizer.
    skipped: Updates skipped because something was not finite; int32 scalar.
    skipped_in_a_row: The same, since the last update; int32 scalar.
    collections: The generator's, besides its parameters.

  >>> zero = jnp.zeros((), jnp.int32)
  >>> g, d = {"gain": jnp.ones(3)}, {"bias": jnp.zeros(1)}
  >>> state = GanState(zero, g, (), g, d, {}, (), zero, zero)
  >>> averaged(state)["params"] is g
  True
  """

  step: Array
  params: Any
  opt_state: Any
  ema_params: Any
  d_params: Any
  d_batch_stats: Any
  d_opt_state: Any
  skipped: Array
  skipped_in_a_row: Array
  collections: Any = flax.struct.field(default_factory=dict)


def create_psnr_state(
  key: Array,
  generator: Network,
  optimizer: optax.GradientTransformation,
  *,
  params: Any = None,
  collections: Mapping[str, Any] | None = None,
) -> PsnrState:
  """Returns the state before the first step of phase one.

  No two of its arrays share memory, nor does any with `params`, so the state
  can be donated. Under `jit` with `out_shardings` it is made in place, on all
  devices.

  Args:
    key: Random key, for the parameters.
    generator: Linen module of images to images, such as `RRDBNet`, or a
      `FromFunction`.
    optimizer: The generator's, any `optax.GradientTransformation`.
    params: Parameters to start from instead of random ones; a Linen module's
      are compared with its own.
    collections: The generator's other collections that go with `params`; None
      for those that it begins with.

  Returns:
    State with `step` 0; `ema_params` equals `params`.

  Raises:
    ValueError: If `params` are not those of the generator.
    TypeError: If an optimizer, a network or the key is none, an optimizer not
      supported, or `params` no tree of floats.

  >>> import flax.linen as nn
  >>> from esrgan_jax.steps.optimizer import make_optimizer
  >>> net = nn.Conv(3, (3, 3))  # Any module of images to images.
  >>> state = create_psnr_state(jax.random.key(0), net, make_optimizer(2e-4))
  >>> int(state.step), state.ema_params["kernel"].shape
  (0, (3, 3, 3, 3))
  """
  check_optimizer(optimizer)
  registry.check_network(generator, "generator")
  checks.check_key(key)
  params, collections = _variables(key, generator, params, collections)
  return PsnrState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=_init_optimizer(optimizer, params),
    ema_params=_copy(params),
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
    collections=collections,
  )


def create_gan_state(
  key: Array,
  generator: Network,
  discriminator: Network,
  optimizer: optax.GradientTransformation,
  d_optimizer: optax.GradientTransformation,
  *,
  params: Any = None,
  collections: Mapping[str, Any] | None = None,
) -> GanState:
  """Returns the state before the first step of phase two.

  As for `create_psnr_state`, no two arrays share memory.

  Args:
    key: Random key, for the parameters of both networks.
    generator: Linen module of images to images, such as `RRDBNet`, or a
      `FromFunction`.
    discriminator: Linen module of images to one logit each, such as
      `VGGStyleDiscriminator`, or a `FromFunction`; called with `train=` if it
      takes that. One that takes images of one size only names it `input_size`.
    optimizer: The generator's, any `optax.GradientTransformation`.
    d_optimizer: The discriminator's, likewise.
    params: The generator's parameters after phase one. Without them the GAN
      starts from a random generator, which seldom ends well.
    collections: As of `create_psnr_state`.

  Returns:
    State with `step` 0; `ema_params` equals `params`.

  Raises:
    ValueError: If `params` are not those of the generator.
    TypeError: If an optimizer, a network or the key is none, an optimizer not
      supported, or `params` no tree of floats.

  >>> from esrgan_jax.models.discriminators import VGGStyleDiscriminator
  >>> import flax.linen as nn
  >>> from esrgan_jax.steps.optimizer import make_optimizer
  >>> net = nn.Conv(3, (3, 3))  # Any module of images to images.
  >>> critic = VGGStyleDiscriminator(num_feat=2, input_size=8)
  >>> adam = make_optimizer(1e-4)
  >>> create = lambda key: create_gan_state(key, net, critic, adam, adam)
  >>> state = jax.eval_shape(create, jax.random.key(0))
  >>> sorted(state.d_batch_stats)
  ['bn0_1']
  """
  check_optimizer(d_optimizer, "d_optimizer")
  registry.check_network(generator, "generator")
  registry.check_network(discriminator, "discriminator")
  checks.check_key(key)
  g_key, d_key = jax.random.split(key)
  state = create_psnr_state(
    g_key, generator, optimizer, params=params, collections=collections
  )
  variables = init_discriminator(
    d_key, discriminator, channels=registry.channels(generator)[1]
  )
  return GanState(
    **{name: getattr(state, name) for name in state.__dataclass_fields__},
    d_params=variables["params"],
    d_batch_stats=variables.get("batch_stats", {}),
    d_opt_state=_init_optimizer(
      d_optimizer, variables["params"], "d_optimizer"
    ),
  )


def init_generator(key: Array, generator: Network) -> dict[str, Any]:
  """Returns the variables that a generator begins with.

  Args:
    key: Random key, for the parameters.
    generator: Linen module of images to images, such as `RRDBNet`, or a
      `FromFunction`.

  Returns:
    `params`, and its other collections, if any.

  >>> import flax.linen as nn
  >>> sorted(init_generator(jax.random.key(0), nn.Conv(3, (3, 3))))
  ['params']
  """
  registry.check_network(generator, "generator")
  checks.check_key(key)
  multiple = registry.size_multiple(generator)
  size = -(-8 // multiple) * multiple  # 8 pixels, or a little more.
  return _init(key, generator, size, registry.channels(generator)[0])


def init_discriminator(
  key: Array, discriminator: Network, *, channels: int = 3
) -> dict[str, Any]:
  """Returns the variables that a discriminator begins with.

  Args:
    key: Random key.
    discriminator: Linen module of images to logits; see `create_gan_state`.
    channels: Of the images.

  >>> from esrgan_jax.models.discriminators import VGGStyleDiscriminator
  >>> net = VGGStyleDiscriminator(num_feat=2, input_size=8)
  >>> sorted(jax.eval_shape(
  ...   lambda: init_discriminator(jax.random.key(0), net)))
  ['batch_stats', 'params']
  """
  registry.check_network(discriminator, "discriminator")
  checks.check_key(key)
  size = getattr(discriminator, "input_size", None) or 64
  return _init(key, discriminator, size, channels)


def averaged(state: PsnrState | GanState) -> dict[str, Any]:
  """Returns the variables of the averaged generator: what makes a model.

  Args:
    state: Of either phase.

  >>> zero = jnp.zeros((), jnp.int32)
  >>> averaged(PsnrState(zero, {"a": 1}, (), {"a": 2}, zero, zero))
  {'params': {'a': 2}}
  """
  return {"params": state.ema_params, **state.collections}


def split(variables: Mapping[str, Any] | None) -> tuple[Any, Any]:
  """Returns a generator's parameters, and its other collections.

  Args:
    variables: As of `init_generator`; of None, both are None.

  >>> split({"params": 1, "batch_stats": 2}), split(None)
  ((1, {'batch_stats': 2}), (None, None))
  """
  if variables is None:
    return None, None
  others = {name: x for name, x in variables.items() if name != "params"}
  return variables["params"], others


def _init_optimizer(optimizer, params, name="optimizer"):
  opt_state = optimizer.init(params)
  check_supported(opt_state, name)
  return opt_state


def _init(key, net, size, channels):
  """The variables of a network, by a square image."""
  mode = {"train": False} if registry.takes_train(net) else {}
  images = jnp.zeros((1, size, size, channels), jnp.float32)
  return dict(net.init(key, images, **mode))


def _variables(key, generator, params, collections):
  """Random parameters, or a float32 copy of given ones; and collections."""
  others = dict(collections or {})
  if params is not None and isinstance(generator, nn.Module):
    shapes = jax.eval_shape(lambda: init_generator(key, generator))
    owner = f"a {type(generator).__name__}"
    expected = _unboxed(shapes.get("params", {}))
    checks.check_params(_unboxed(params), expected, owner=owner)
  # To begin takes seconds: it is left out where nothing of it is needed.
  missing = collections is None and registry.takes_train(generator)
  if params is None or missing:
    first = init_generator(key, generator)
    begun_with = first.pop("params")
    params = begun_with if params is None else params
    others = first if collections is None else others
  others = jax.tree.map(lambda x: jnp.array(x, copy=True), others)
  return _copy(params), others


def _unboxed(params):
  """Without Flax's notes of how they are partitioned: of shapes as well."""
  boxed = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
  return jax.tree.map(
    lambda x: x.value if boxed(x) else x, params, is_leaf=boxed
  )


def _copy(params):
  """Parameters in memory of their own, float32."""
  return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
