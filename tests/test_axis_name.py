"""Steps mapped over a named axis do what one device does with all images."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import esrgan_jax
from esrgan_jax import losses
from esrgan_jax.models.discriminators import VGGStyleDiscriminator
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.steps import gan, psnr
from esrgan_jax.steps.state import create_gan_state, create_psnr_state

P = PartitionSpec
NUM = 4


class Normalized(nn.Module):
  """The smallest generator with BatchNorm, and a count that is no float."""

  scale: int = 2
  axis_name: str | None = None

  @nn.compact
  def __call__(self, lr, *, train=False):
    count = self.variable("seen", "count", lambda: jnp.zeros((), jnp.int32))
    if train:
      count.value += 1
    x = nn.BatchNorm(
      use_running_average=not train, momentum=0.5, axis_name=self.axis_name
    )(lr)
    x = nn.Conv(3, (3, 3))(x)
    return x.repeat(self.scale, axis=-3).repeat(self.scale, axis=-2)


def _batch(num=2 * NUM, side=8, scale=2):
  """Images that differ in brightness: statistics of some would show."""
  random = np.random.default_rng(0)
  ramp = np.linspace(0.2, 1, num, dtype=np.float32).reshape(-1, 1, 1, 1)
  return {
    "lr": random.random((num, side // scale, side // scale, 3), np.float32)
    * ramp,
    "hr": random.random((num, side, side, 3), np.float32) * ramp,
  }


def _mesh(*axes, kind=AxisType.Auto):
  sizes = {1: (NUM,), 2: (2, NUM // 2)}[len(axes)]
  return jax.make_mesh(sizes, axes, axis_types=(kind,) * len(axes))


def _shard_map(step, state, batch, *, kind=AxisType.Auto, check_vma=True):
  run = jax.shard_map(
    functools.partial(step, axis_name="data"),
    mesh=_mesh("data", kind=kind),
    in_specs=(P(), P("data")),
    out_specs=P(),
    check_vma=check_vma,
  )
  if kind is AxisType.Explicit:
    sharding = jax.NamedSharding(_mesh("data", kind=kind), P("data"))
    batch = jax.device_put(batch, sharding)
  return jax.jit(run)(state, batch)


def _two_axes(step, state, batch):
  names = ("slice", "data")
  run = jax.shard_map(
    functools.partial(step, axis_name=names),
    mesh=_mesh(*names),
    in_specs=(P(), P(names)),
    out_specs=P(),
  )
  return jax.jit(run)(state, batch)


def _split(batch):
  return jax.tree.map(lambda x: x.reshape(NUM, -1, *x.shape[1:]), batch)


def _vmap(step, state, batch):
  run = functools.partial(step, axis_name="data")
  run = jax.vmap(run, axis_name="data", in_axes=(None, 0), out_axes=None)
  return jax.jit(run)(state, _split(batch))


def _pmap(step, state, batch):
  run = functools.partial(step, axis_name="data")
  run = jax.pmap(
    run,
    axis_name="data",
    in_axes=(None, 0),
    devices=jax.devices()[:NUM],
  )
  found = jax.tree.map(np.asarray, run(state, _split(batch)))
  # No device went its own way.
  jax.tree.map(lambda x: np.testing.assert_array_equal(x, x[:1] + 0 * x), found)
  return jax.tree.map(lambda x: x[0], found)


FORMS = {
  "shard_map": _shard_map,
  "shard_map, explicit": functools.partial(_shard_map, kind=AxisType.Explicit),
  "shard_map, unchecked": functools.partial(_shard_map, check_vma=False),
  "shard_map, two axes": _two_axes,
  "vmap": _vmap,
  "pmap": _pmap,
}

STEPS = {
  "psnr": {},
  "relativistic": {},
  "detached": {"detach_means": True},
  "vanilla": {"adversarial": "vanilla"},
  "wgan-gp": {"adversarial": "wgan-gp"},
}


def _make(name, generator=None, *, num_feat=2, side=8, rate=1.0, **options):
  """A state, and the step, of a row of `STEPS`."""
  generator = generator or Normalized()
  # With it, the new parameters are the old ones less the gradients.
  sgd = optax.sgd(rate)
  key, rest = jax.random.key(0), {"optimizer": sgd, **options}
  if name == "psnr":
    create = functools.partial(create_psnr_state, key, generator, sgd)
    return create, functools.partial(
      psnr.psnr_step, generator=generator, **rest
    )
  norm = "layer" if name == "wgan-gp" else "batch"
  critic = VGGStyleDiscriminator(num_feat, input_size=side, norm=norm)
  create = functools.partial(create_gan_state, key, generator, critic, sgd, sgd)
  return create, functools.partial(
    gan.gan_step,
    generator=generator,
    discriminator=critic,
    d_optimizer=sgd,
    adversarial_weight=0.5,
    **STEPS[name],
    **rest,
  )


def _assert_alike(found, expected, before, rtol, rate=1.0):
  """Gradients, statistics and metrics, each within `rtol` of its norm."""
  (state, metrics), (one, metrics_one) = jax.device_get((found, expected))
  assert metrics.keys() == metrics_one.keys()
  for name, value in metrics_one.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=rtol, atol=1e-6, err_msg=name
    )
  first = jax.tree_util.tree_leaves_with_path(jax.device_get(before))
  for (path, old), x, y in zip(
    first, jax.tree.leaves(state), jax.tree.leaves(one), strict=True
  ):
    name = jax.tree_util.keystr(path)
    assert x.shape == y.shape, name
    # A relativistic loss does not change when all logits do: but for rounding,
    # the gradient of D's last bias is 0.
    least = 1e-2 * rate if "linear2" in name else 1e-6
    norm = max(np.linalg.norm(y - old), least)
    error = np.linalg.norm(x.astype(float) - y)
    assert error <= rtol * norm, (name, error / norm)


@functools.cache
def _on_one_device(name, **options):
  create, step = _make(name, **options)
  state, batch = jax.jit(create)(), _batch()
  return step, state, batch, jax.jit(step)(state, batch)


def _check(form, name, **options):
  step, state, batch, expected = _on_one_device(name, **options)
  _assert_alike(FORMS[form](step, state, batch), expected, state, 1e-4)


def test_a_step_of_phase_two():
  _check("shard_map", "relativistic")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detached", "vanilla", "wgan-gp"])
@pytest.mark.parametrize("form", ["shard_map", "vmap"])
def test_other_losses(form, name):
  _check(form, name)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("form", "name"),
  [
    *((form, "psnr") for form in FORMS),
    *((form, "relativistic") for form in FORMS if form != "shard_map"),
  ],
)
def test_every_form(form, name):
  _check(form, name)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("form", "name"),
  [
    *(("shard_map", name) for name in ("psnr", "relativistic", "wgan-gp")),
    *(("vmap", "relativistic"), ("vmap", "wgan-gp"), ("pmap", "relativistic")),
  ],
)
def test_microbatches(form, name):
  _check(form, name, accumulate=2)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("form", "num_block"),
  [("pmap", 2), pytest.param("shard_map", 23, marks=pytest.mark.release)],
)
def test_real_widths(form, num_block):
  # Real weights: D's BatchNorm of the flat images that random ones make divides
  # by so little that it is rounding which decides.
  params = dict(esrgan_jax.load("realesrgan-x4plus").params)
  params["body"] = jax.tree.map(lambda x: x[:num_block], params["body"])
  net = RRDBNet(num_block=num_block)
  batch = _batch(NUM, side=32, scale=4)
  rate = 1e6  # The gradients are small beside the parameters.
  create, step = _make("relativistic", net, num_feat=64, side=32, rate=rate)
  state = jax.jit(functools.partial(create, params=params))()
  expected = jax.jit(step)(state, batch)
  _assert_alike(FORMS[form](step, state, batch), expected, state, 1e-4, rate)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["shard_map", "vmap", "pmap"])
def test_what_is_not_finite_on_one_device_is_skipped_by_all(form):
  create, step = _make("relativistic")
  state, batch = jax.jit(create)(), _batch()
  batch["hr"][-1] = np.nan
  after, metrics = FORMS[form](step, state, batch)
  assert float(metrics["skipped"]) == 1
  assert int(after.step) == 1
  for name in ("params", "d_params", "d_batch_stats", "collections"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(after, name), getattr(state, name)
    )


@pytest.mark.slow
def test_a_loop_over_steps_inside():
  """As a program that does many steps a call: `lax.scan` in `shard_map`."""
  create, step = _make("relativistic")
  state, batches = (
    jax.jit(create)(),
    [_batch(), jax.tree.map(lambda x: x[::-1], _batch())],
  )
  batches = jax.tree.map(lambda *x: np.stack(x), *batches)

  def scanned(state, batches, axis_name=None):
    named = functools.partial(step, axis_name=axis_name)
    state, metrics = jax.lax.scan(named, state, batches)
    return state, jax.tree.map(lambda x: x[-1], metrics)

  run = jax.shard_map(
    functools.partial(scanned, axis_name="data"),
    mesh=_mesh("data"),
    in_specs=(P(), P(None, "data")),
    out_specs=P(),
  )
  expected = jax.jit(scanned)(state, batches)
  _assert_alike(jax.jit(run)(state, batches), expected, state, 1e-3)


@pytest.mark.release
def test_trainings_apart_need_no_name():
  """A state a device, stacked: each does what it does alone."""
  create, step = _make("relativistic", accumulate=2)
  state, batch = jax.jit(create)(), _batch(4 * NUM)
  states = jax.tree.map(lambda x: jnp.stack([x, *(NUM - 1) * [0.9 * x]]), state)
  states = jax.tree.map(lambda x, y: x.astype(y.dtype), states, state)
  own = jax.tree.map(lambda x: x[:4], batch)
  expected = jax.jit(step)(state, own)

  @functools.partial(
    jax.shard_map, mesh=_mesh("data"), in_specs=P("data"), out_specs=P("data")
  )
  def apart(states, batch):
    found = step(jax.tree.map(lambda x: x[0], states), batch)
    return jax.tree.map(lambda x: x[None], found)

  found = jax.tree.map(lambda x: x[0], jax.jit(apart)(states, batch))
  _assert_alike(found, expected, state, 1e-4)


def _trace(step, state, batch, axis_name, spec="data", axes=("data",)):
  run = jax.shard_map(
    functools.partial(step, axis_name=axis_name),
    mesh=_mesh(*axes),
    in_specs=(P(), P(spec)),
    out_specs=P(),
  )
  return jax.eval_shape(run, state, batch)


@pytest.mark.parametrize("name", ["psnr", "relativistic"])
def test_a_name_that_is_missing_is_told(name):
  create, step = _make(name)
  state, batch = jax.eval_shape(create), _batch()
  message = "axis_name is None, .* along data, .* pass axis_name='data'"
  with pytest.raises(ValueError, match=message):
    _trace(step, state, batch, None)
  message = r"along slice, .* pass axis_name=\('slice', 'data'\)"
  names = ("slice", "data")
  with pytest.raises(ValueError, match=message):
    _trace(step, state, batch, "data", names, names)


def test_names_that_disagree_are_told():
  create, step = _make("psnr", Normalized(axis_name="batch"))
  state = jax.eval_shape(create)
  message = "'data' for the step and 'batch' for BatchNorm BatchNorm_0"
  with pytest.raises(ValueError, match=message):
    _trace(step, state, _batch(), "data")
  # The same name twice is no error.
  create, step = _make("psnr", Normalized(axis_name="data"))
  after, _ = _trace(step, state, _batch(), "data")
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_a_discriminator_with_an_axis_of_its_own():
  """In a program without our steps; and where there is no such axis."""
  image = _batch()["hr"]
  critic = VGGStyleDiscriminator(2, input_size=8)
  named = critic.clone(axis_name="data")
  variables = jax.jit(functools.partial(named.init, train=True))(
    jax.random.key(0), image
  )
  expected = jax.jit(
    functools.partial(critic.apply, train=True, mutable=["batch_stats"])
  )(variables, image)
  run = jax.vmap(
    functools.partial(named.apply, train=True, mutable=["batch_stats"]),
    axis_name="data",
    in_axes=(None, 0),
    out_axes=(0, None),
  )
  logits, updates = jax.jit(run)(variables, _split(image))
  np.testing.assert_allclose(logits.ravel(), expected[0], rtol=1e-4, atol=1e-6)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4),
    updates,
    expected[1],
  )
  evaluate = functools.partial(named.apply, train=False)
  assert jax.eval_shape(evaluate, variables, image).shape == image.shape[:1]


def test_the_penaltys_places_are_those_of_all_images():
  batch = _batch()
  key = jax.random.key(3)

  def critic(image):
    return jnp.sum(image**2, axis=(1, 2, 3))

  def penalty(hr, axis_name=None):
    return losses.gradient_penalty(
      key, critic, hr, 0.5 * hr, axis_name=axis_name
    )

  run = functools.partial(penalty, axis_name="data")
  found = jax.jit(jax.vmap(run, axis_name="data"))(_split(batch["hr"]))
  assert np.ptp(found) > 0
  expected = jax.jit(penalty)(batch["hr"])
  np.testing.assert_allclose(found.mean(), expected, rtol=1e-5)
