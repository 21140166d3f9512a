"""Networks under meshes of every kind give what one device gives."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import esrgan_jax
from esrgan_jax import augment
from esrgan_jax.ops import axes
from esrgan_jax.steps import gan, state
from esrgan_jax.steps.optimizer import make_optimizer
from tests.networks import random_params

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
def _generator():
  net = esrgan_jax.RRDBNet(**WIDTHS["real"])
  params = jax.jit(net.init)(jax.random.key(0), _images())["params"]
  run = jax.jit(jax.value_and_grad(functools.partial(_loss, net.apply)))
  return net, params, run(params, _images())


@pytest.mark.release  # Other widths and forms are in test_transforms.
def test_explicit_axes():
  net, params, expected = _generator()
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
def test_shard_map():
  net, params, expected = _generator()

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


@pytest.mark.release
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


@pytest.mark.parametrize(
  "kind",
  [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)],
)
def test_an_upscaler_inside_of_a_mesh(kind):
  net = esrgan_jax.RRDBNet(**WIDTHS["tiny"])
  params = random_params(net, _images())
  model = esrgan_jax.Upscaler(net, params)
  image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  expected = model.upscale(image)
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


@pytest.mark.slow
@pytest.mark.parametrize("spec", [P(None, "a", "b"), P("a", "b")])
def test_rows_and_columns_may_be_sharded(spec):
  """Sizes that come out need not be multiples of the mesh's."""
  kinds = (AxisType.Explicit,) * 2
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=kinds)
  sr, hr = _images(16), _images(16, seed=1)
  key = jax.random.key(0)

  def run(sr, hr):
    return {
      "psnr": esrgan_jax.psnr(sr, hr, crop_border=3, y_channel=False),
      "ssim": esrgan_jax.ssim(sr, hr, crop_border=1, y_channel=True),
      "map": esrgan_jax.ssim_map(sr, hr),
      "luma": esrgan_jax.rgb_to_y(sr),
      "resized": esrgan_jax.imresize(sr, scale=1 / 3),
      "larger": esrgan_jax.imresize(sr, size=(135, 17)),
      "unshuffled": esrgan_jax.pixel_unshuffle(sr, factor=8),
      "turned": augment.augment(key, {"lr": sr, "hr": hr}),
      "loss": esrgan_jax.charbonnier_loss(sr, hr),
    }

  expected = jax.jit(run)(sr, hr)
  sr, hr = jax.device_put((sr, hr), NamedSharding(mesh, spec))
  _assert_close(jax.jit(run)(sr, hr), expected)
  with jax.set_mesh(mesh):
    found = jax.jit(run)(sr, hr)
  _assert_close(found, expected)
  assert found["luma"].sharding.spec[:2] == sr.sharding.spec[:2]
  assert found["resized"].shape[1:3] == (6, 6)  # Not four parts of them.
  assert "b" not in found["resized"].sharding.spec


def test_one_image_whose_columns_are_sharded():
  mesh = jax.make_mesh((4,), ("w",), devices=jax.devices()[:4])
  image = jnp.full((1, 64, 64, 3), 0.5)
  image = jax.device_put(image, NamedSharding(mesh, P(None, None, "w")))
  ssim = esrgan_jax.ssim(image, image, crop_border=0, y_channel=False)
  np.testing.assert_allclose(ssim, 1, atol=1e-6)
  psnr = esrgan_jax.psnr(image, image * 0.9, crop_border=3, y_channel=False)
  np.testing.assert_allclose(psnr, 26.0206, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_a_discriminator_whose_rows_and_columns_are_sharded(norm):
  kinds = (AxisType.Explicit,) * 2
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=kinds)
  image = _images(32)
  critic = esrgan_jax.VGGStyleDiscriminator(
    num_feat=2, input_size=32, norm=norm
  )
  variables = jax.jit(functools.partial(critic.init, train=False))(
    jax.random.key(0), image
  )

  def loss(image):
    logits, _ = critic.apply(
      variables, image, train=True, mutable=["batch_stats"]
    )
    return logits.mean(), logits

  run = jax.jit(jax.grad(loss, has_aux=True))
  expected = run(image)
  for spec in (P(None, "a", "b"), P("a", None, "b"), P(None, ("a", "b"))):
    with jax.set_mesh(mesh):
      found = run(jax.device_put(image, NamedSharding(mesh, spec)))
    _assert_close(found, expected, rtol=1e-4)
