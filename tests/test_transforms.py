"""Everything public, on every mesh and under every transformation of JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import esrgan_jax
from esrgan_jax import metrics
from tests.networks import random_params

P = PartitionSpec
NUM, SIDE = 4, 16
METRIC = {"crop_border": 1, "y_channel": True}


def _network(**fields):
  return esrgan_jax.RRDBNet(**fields)


def _apply(net, params, image):
  return net.apply({"params": params}, image)


def _critic(norm):
  return esrgan_jax.VGGStyleDiscriminator(4, input_size=SIDE, norm=norm)


def _judge(critic, params, image):
  return critic.apply(params, image, train=False)


def _vgg(params, image):
  layers = ("conv1_2", "pool1")
  return esrgan_jax.vgg19_features(params, image, layers=layers)


def _alone(loss):
  """A loss of one image against its mirror image, of each."""
  return lambda params, image: jax.vmap(loss)(image, image[:, ::-1] ** 2)


def _one(loss):
  return lambda params, image: jax.vmap(loss)(image)


def _penalty(params, image):
  def critic(x):
    return jnp.sum(jnp.sin(x), axis=(1, 2, 3))

  def one(x):
    x = x[None]
    return esrgan_jax.gradient_penalty(jax.random.key(0), critic, x, x**2)

  return jax.vmap(one)(image)


def _perceptual(sr, hr):
  return esrgan_jax.perceptual_loss({"layer": sr}, {"layer": hr})


def _mixed(params, image):
  mixed = esrgan_jax.interpolate_params(
    params, jax.tree.map(lambda x: x**2, params), alpha=0.3
  )
  return image * mixed["gain"]


def _without(function, **options):
  return lambda params, image: function(image, **options)


TINY = {"num_feat": 8, "num_block": 2, "num_grow_ch": 4}
REAL = {"num_feat": 64, "num_block": 2, "num_grow_ch": 32}
GENERATOR_LOSSES = (
  "vanilla_generator_loss",
  "wasserstein_generator_loss",
  "least_squares_generator_loss",
)
LOSSES = (
  "l1_loss",
  "mse_loss",
  "charbonnier_loss",
  "relativistic_discriminator_loss",
  "relativistic_generator_loss",
  "hinge_discriminator_loss",
  "least_squares_discriminator_loss",
  "vanilla_discriminator_loss",
  "wasserstein_critic_loss",
)
# By name: a function of parameters and images to something of each image.
ALONE = {
  "RRDBNet": functools.partial(_apply, _network(**TINY)),
  "RRDBNet, plain": functools.partial(_apply, _network(**TINY, form="plain")),
  "RRDBNet, x2": functools.partial(_apply, _network(**TINY, scale=2)),
  "RRDBNet, 64/2/32": functools.partial(_apply, _network(**REAL)),
  "SRResNet": functools.partial(
    _apply, esrgan_jax.SRResNet(num_feat=8, num_block=2, norm="none")
  ),
  "SRVGGNetCompact": functools.partial(
    _apply, esrgan_jax.SRVGGNetCompact(num_feat=8, num_conv=2)
  ),
  "SRGANDiscriminator": functools.partial(
    _judge, esrgan_jax.SRGANDiscriminator(4, input_size=SIDE, norm="layer")
  ),
  "UNetDiscriminatorSN": functools.partial(
    _judge, esrgan_jax.UNetDiscriminatorSN(4)
  ),
  "VGGStyleDiscriminator": functools.partial(_judge, _critic("batch")),
  "VGGStyleDiscriminator, layer": functools.partial(_judge, _critic("layer")),
  "vgg19_features": _vgg,
  "imresize": _without(esrgan_jax.imresize, scale=1 / 4),
}
# Those that are small share programs, and nothing else.
TOGETHER = {
  "measures": {
    "psnr": _alone(functools.partial(esrgan_jax.psnr, **METRIC)),
    "ssim": _alone(functools.partial(esrgan_jax.ssim, **METRIC)),
    "ssim_map": _alone(metrics.ssim_map),
  },
  "pixels": {
    "rgb_to_y": _without(esrgan_jax.rgb_to_y),
    "imresize, larger": _without(esrgan_jax.imresize, size=(40, 23)),
    "pixel_unshuffle": _without(esrgan_jax.pixel_unshuffle, factor=2),
    "interpolate_params": _mixed,
  },
  "losses": {
    "gradient_penalty": _penalty,
    "perceptual_loss": _alone(_perceptual),
    **{name: _one(getattr(esrgan_jax, name)) for name in GENERATOR_LOSSES},
    **{name: _alone(getattr(esrgan_jax, name)) for name in LOSSES},
  },
}


def _together(functions):
  """One of a parameter and an image for each, to a result of each."""

  def run(params, image):
    return {
      name: function(params[name], image[name])
      for name, function in functions.items()
    }

  return run


FUNCTIONS = ALONE | {name: _together(each) for name, each in TOGETHER.items()}
QUICK = ("imresize",)
LONG = (
  "RRDBNet",
  "RRDBNet, x2",
  "RRDBNet, 64/2/32",
  "SRResNet",
  "SRGANDiscriminator",
  "UNetDiscriminatorSN",
  "measures",
)


@functools.cache
def _photos():
  return np.random.default_rng(0).random((NUM, SIDE, SIDE, 3), np.float32)


def _images(name):
  if name in TOGETHER:
    return dict.fromkeys(TOGETHER[name], _photos())
  return _photos()


def _params(name):
  image = _photos()
  function = FUNCTIONS[name]
  if name.startswith(("RRDBNet", "SRResNet", "SRVGGNet")):
    return random_params(function.args[0], image)
  if "Discriminator" in name:
    init = functools.partial(function.args[0].init, train=False)
    return jax.jit(init)(jax.random.key(0), image)
  if name == "vgg19_features":
    params = jax.jit(esrgan_jax.init_vgg19)(jax.random.key(0))
    return {k: params[k] for k in ("normalization", "conv1_1", "conv1_2")}
  gain = {"gain": np.float32(0.7)}
  return dict.fromkeys(TOGETHER[name], gain) if name in TOGETHER else gain


def _scalar(function, params, image):
  """What is differentiated: not linear, and all of the result counts."""
  leaves = jax.tree.leaves(function(params, image))
  return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves)


def _gradients(function, params, image):
  loss = functools.partial(_scalar, function)
  return function(params, image), jax.grad(loss, (0, 1))(params, image)


def _assert_close(found, expected, rtol=1e-4):
  """Within `rtol` of each leaf's largest value."""
  for x, y in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert x.shape == y.shape
    largest = float(jnp.abs(y).max()) + 1e-6
    np.testing.assert_allclose(x, y, rtol=0, atol=rtol * largest)


def _closeness(name):
  """At real widths, rounding has one rectifier or other change its side.

  Seen: 46 of 3072 gradients, of one image, off by 0.5 % of the largest. Images
  moved by 3e-7, on one device, change the same ones by the same.
  """
  close = functools.partial(_assert_close, rtol=1e-2)
  return close if "64/2/32" in name else _assert_close


def _put(mesh, params, image):
  params = jax.device_put(params, NamedSharding(mesh, P()))
  return params, jax.device_put(image, NamedSharding(mesh, P("data")))


def _each(*others):
  names = [name for name in FUNCTIONS if name not in others]
  return pytest.mark.parametrize("name", list(map(_in_its_tier, names)))


def _in_its_tier(name):
  if name in QUICK:
    return name
  tier = pytest.mark.release if name in LONG else pytest.mark.slow
  return pytest.param(name, marks=tier)


every = _each()


def _room(value):
  module = getattr(value, "__module__", "")
  return module.removeprefix("esrgan_jax.").partition(".")[0]


def test_every_function_of_arrays_is_tried():
  """Those of the core, but what begins or converts parameters."""
  rooms = ("interpolate", "losses", "metrics", "models", "ops", "resize")
  public = {
    name
    for name in esrgan_jax.__all__
    if _room(getattr(esrgan_jax, name)) in rooms
    and not name.startswith(("init_", "vgg19_from_"))
    and name != "imresize_uint8"  # NumPy's.
  }
  tried = [*ALONE, *(name for each in TOGETHER.values() for name in each)]
  assert public <= {name.partition(",")[0] for name in tried}


@_each("RRDBNet, 64/2/32")  # Is in test_axes.
def test_on_every_mesh(name):
  function, params, close = FUNCTIONS[name], _params(name), _closeness(name)
  image = _images(name)
  run = functools.partial(_gradients, function)
  expected = jax.jit(run)(params, image)
  mesh = jax.make_mesh((NUM,), ("data",), axis_types=(AxisType.Explicit,))
  placed = _put(mesh, params, image)
  found = jax.jit(run)(*placed)
  close(found, expected)
  for leaf in jax.tree.leaves(found[0]):
    assert leaf.sharding.spec[0] == "data"
  with jax.set_mesh(mesh):
    close(jax.jit(run)(*placed), expected)
  mesh = jax.make_mesh((NUM,), ("data",), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh):
    close(jax.jit(run)(*_put(mesh, params, image)), expected)


@every
def test_in_shard_map(name):
  function, params, close = FUNCTIONS[name], _params(name), _closeness(name)
  image = _images(name)
  mesh = jax.make_mesh((NUM,), ("data",), axis_types=(AxisType.Auto,))
  specs = P(), P("data")
  # What all devices share has the sum of their gradients.
  run = functools.partial(_gradients, function)
  found = jax.jit(
    jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(P("data"), specs))
  )(params, image)
  close(found, jax.jit(run)(params, image))


@every
def test_under_transformations(name):
  function, params, image = FUNCTIONS[name], _params(name), _images(name)
  close = _closeness(name)
  loss = functools.partial(_scalar, function)
  scales = jnp.array([1.0, 0.5])
  random = np.random.default_rng(1)
  u, v = (
    jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), image)
    for _ in range(2)
  )

  def lifted(image, axis):
    return jax.tree.map(lambda x: jnp.expand_dims(x, axis), image)

  def scaled(params, scale):
    return jax.tree.map(lambda x: x * scale, params)

  @jax.jit
  def run(params, image):
    many = jax.vmap(scaled, (None, 0))(params, scales)

    def each(a, b):
      return jax.tree.map(jnp.vdot, a, b)

    def along(direction):
      slope = jax.grad(loss, 1)
      return lambda x: sum(jax.tree.leaves(each(slope(params, x), direction)))

    def one(carry, x):
      return carry, function(params, lifted(x, 0))

    return {
      "vmap": jax.vmap(function, (None, 0))(params, lifted(image, 1)),
      "vmap params": jax.vmap(function, (0, None))(many, image),
      "scan": jax.lax.scan(one, 0, image)[1],
      "remat": jax.grad(jax.checkpoint(loss), (0, 1))(params, image),
      "vmap grad": jax.vmap(jax.grad(loss), (None, 0))(
        params, lifted(image, 1)
      ),
      "second": [
        each(jax.grad(along(a))(image), b) for a, b in ((u, v), (v, u))
      ],
    }

  found = run(params, image)
  plain = jax.jit(functools.partial(_gradients, function))
  values, gradients = plain(params, image)
  for way in ("vmap", "scan"):
    close(jax.tree.map(lambda x: x[:, 0], found[way]), values)
  for i, scale in enumerate(scales):
    expected = plain(scaled(params, scale), image)[0]
    own = jax.tree.map(lambda x, i=i: x[i], found["vmap params"])
    close(own, expected)
  close(found["remat"], gradients)
  summed = jax.tree.map(lambda x: x.sum(0), found["vmap grad"])
  close(summed, gradients[0])
  # The Hessian is symmetric.
  for first, second in zip(*map(jax.tree.leaves, found["second"]), strict=True):
    np.testing.assert_allclose(first, second, rtol=1e-2, atol=1e-3)
