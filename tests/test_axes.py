"""Networks under meshes of every kind give what one device gives."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import esrgan_jax
from esrgan_jax.ops import axes
from esrgan_jax.steps import gan, state
from esrgan_jax.steps.optimizer import make_optimizer

P = PartitionSpec
WIDTHS = {
  "tiny": {"num_feat": 8, "num_block": 2, "num_grow_ch": 4},
  "real": {"num_feat": 64, "num_block": 2, "num_grow_ch": 32},
}


def _mesh(kind):
  return jax.make_mesh((4,), ("data",), axis_types=(kind,))


def _images(side=8, seed=0):
  shape = (4, side, side, 3)
  return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def _assert_close(found, expected, rtol=2e-5):
  """Within `rtol` of each leaf's largest value."""
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=rtol * float(jnp.abs(b).max()))


def _loss(apply, params, lr):
  return jnp.mean(jnp.square(apply({"params": params}, lr)))


@functools.cache
def _generator(width, form):
  net = esrgan_jax.RRDBNet(**WIDTHS[width], form=form)
  params = jax.jit(net.init)(jax.random.key(0), _images())["params"]
  run = jax.jit(jax.value_and_grad(functools.partial(_loss, net.apply)))
  return net, params, run(params, _images())


@pytest.mark.slow
@pytest.mark.parametrize(
  ("width", "form"),
  [
    ("tiny", "fast"),
    pytest.param("tiny", "plain", marks=pytest.mark.slow),
    pytest.param("real", "fast", marks=pytest.mark.slow),
  ],
)
def test_explicit_axes(width, form):
  net, params, expected = _generator(width, form)
  mesh = _mesh(AxisType.Explicit)
  lr = jax.device_put(_images(), NamedSharding(mesh, P("data")))
  params = jax.device_put(params, NamedSharding(mesh, P()))
  sr = jax.jit(net.apply)({"params": params}, lr)
  assert sr.sharding.spec == P("data", None, None, None)
  run = jax.jit(jax.value_and_grad(functools.partial(_loss, net.apply)))
  _assert_close(run(params, lr), expected)
  with jax.set_mesh(mesh):
    _assert_close(run(params, lr), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("width", "form"),
  [
    ("tiny", "fast"),
    pytest.param("tiny", "plain", marks=pytest.mark.slow),
    pytest.param("real", "fast", marks=pytest.mark.slow),
  ],
)
def test_shard_map(width, form):
  net, params, expected = _generator(width, form)

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=_mesh(AxisType.Auto),
    in_specs=(P(), P("data")),
    out_specs=P(),
  )
  def run(params, lr):
    loss = functools.partial(_loss, net.apply)
    # The gradients of parameters that all devices share come summed.
    value, grads = jax.value_and_grad(loss)(params, lr)
    count = jax.lax.axis_size("data")
    grads = jax.tree.map(lambda g: g / count, grads)
    return jax.lax.pmean(value, "data"), grads

  _assert_close(run(params, _images()), expected)


@pytest.mark.slow
def test_discriminator_and_vgg_under_explicit_axes():
  mesh = _mesh(AxisType.Explicit)
  put = jax.device_put
  image = _images(32)
  sharded = put(image, NamedSharding(mesh, P("data")))
  critic = esrgan_jax.VGGStyleDiscriminator(num_feat=4, input_size=32)
  variables = jax.jit(functools.partial(critic.init, train=False))(
    jax.random.key(0), image
  )
  vgg = jax.jit(esrgan_jax.init_vgg19)(jax.random.key(1))

  @jax.jit
  def run(variables, vgg, image):
    logits, updates = critic.apply(
      variables, image, train=True, mutable=["batch_stats"]
    )
    features = esrgan_jax.vgg19_features(vgg, image, layers=("conv2_2",))
    unshuffled = esrgan_jax.pixel_unshuffle(image, factor=2)
    return logits, updates, features, unshuffled

  expected = run(variables, vgg, image)
  whole = NamedSharding(mesh, P())
  found = run(put(variables, whole), put(vgg, whole), sharded)
  assert found[2]["conv2_2"].sharding.spec[0] == "data"
  _assert_close(found, expected)


@pytest.mark.slow
def test_a_step_of_phase_two_under_explicit_axes():
  nets = {
    "generator": esrgan_jax.RRDBNet(**WIDTHS["tiny"]),
    "discriminator": esrgan_jax.VGGStyleDiscriminator(
      num_feat=2, input_size=32
    ),
  }
  adam = make_optimizer(1e-4)
  create = functools.partial(
    state.create_gan_state, **nets, optimizer=adam, d_optimizer=adam
  )
  start = jax.jit(create)(jax.random.key(0))
  step = jax.jit(
    functools.partial(
      gan.gan_step, **nets, optimizer=adam, d_optimizer=adam, accumulate=1
    )
  )
  batch = {"lr": _images(), "hr": _images(32, seed=1)}
  _, expected = step(start, batch)
  mesh = _mesh(AxisType.Explicit)
  start = jax.device_put(start, NamedSharding(mesh, P()))
  batch = jax.device_put(batch, NamedSharding(mesh, P("data")))
  new, found = step(start, batch)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)
  assert int(new.step) == 1


def test_vary_alike_changes_nothing_outside():
  tree = {"a": jnp.ones(2), "b": None}
  assert axes.vary_alike(tree) is tree


def test_an_upscaler_inside_of_a_mesh():
  net = esrgan_jax.RRDBNet(**WIDTHS["tiny"])
  _, params, _ = _generator("tiny", "fast")
  model = esrgan_jax.Upscaler(net, params)
  image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  expected = model.upscale(image)
  for kind in (AxisType.Explicit, AxisType.Auto):
    with jax.set_mesh(_mesh(kind)):
      found = esrgan_jax.Upscaler(net, params).upscale(image)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_a_module_around_it():
  """A network of the user's that has ours inside."""

  class Around(nn.Module):
    @nn.compact
    def __call__(self, lr):
      return nn.Conv(3, (3, 3))(esrgan_jax.RRDBNet(**WIDTHS["tiny"])(lr))

  net, mesh = Around(), _mesh(AxisType.Explicit)
  variables = jax.jit(net.init)(jax.random.key(0), _images())
  expected = jax.jit(net.apply)(variables, _images())
  lr = jax.device_put(_images(), NamedSharding(mesh, P("data")))
  variables = jax.device_put(variables, NamedSharding(mesh, P()))
  _assert_close(jax.jit(net.apply)(variables, lr), expected)
