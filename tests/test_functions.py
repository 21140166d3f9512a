"""Networks that are no Linen modules, or draw, or are not of RGB, as such."""

import functools
import pathlib
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import esrgan_jax
from esrgan_jax import steps
from esrgan_jax.models import registry
from esrgan_jax.models.discriminators import VGGStyleDiscriminator
from esrgan_jax.models.rrdb import RRDBNet
from tests.networks import random_params

ROOT = pathlib.Path(__file__).parent.parent
SGD = optax.sgd(0.1)


class Srgan(nn.Module):
  """A generator like SRGAN's, with BatchNorm, and with dropout and noise."""

  scale: int = 2
  rate: float = 0.5

  @nn.compact
  def __call__(self, lr, *, train=False):
    x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(lr))
    x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
    if train:
      x += 0.01 * jax.random.normal(self.make_rng("noise"), x.shape)
    return nn.Conv(3, (3, 3))(x).repeat(2, axis=-3).repeat(2, axis=-2)


class Critic(nn.Module):
  """A discriminator with BatchNorm and dropout."""

  @nn.compact
  def __call__(self, images, *, train):
    x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (4, 4))(images))
    x = nn.Dropout(0.5, deterministic=not train)(nn.leaky_relu(x))
    return nn.Dense(1)(x.mean((1, 2)))[:, 0]


def as_function(net, **fields):
  """A Linen module as a function: an oracle that draws the same numbers."""

  def apply(variables, images, *, train, key):
    if not train:
      return net.apply(variables, images, train=False), {}
    rngs = {} if key is None else {"rngs": key}
    return net.apply(
      variables, images, train=True, mutable=["batch_stats"], **rngs
    )

  return steps.FromFunction(
    apply,
    functools.partial(net.init, train=False),
    takes_train=True,
    **fields,
  )


def batch(num=4, scale=2, channels=(3, 3), size=4):
  rng = np.random.default_rng(0)
  return {
    "lr": rng.random((num, size, size, channels[0]), np.float32),
    "hr": rng.random(
      (num, size * scale, size * scale, channels[1]), np.float32
    ),
  }


@functools.cache
def psnr(net, **options):
  state = steps.create_psnr_state(jax.random.key(0), net, SGD)
  step = functools.partial(
    steps.psnr_step, generator=net, optimizer=SGD, **options
  )
  return state, jax.jit(step)


@functools.cache
def gan(net, critic):
  state = steps.create_gan_state(jax.random.key(0), net, critic, SGD, SGD)
  nets = {"generator": net, "discriminator": critic}
  step = functools.partial(
    steps.gan_step, **nets, optimizer=SGD, d_optimizer=SGD
  )
  return state, jax.jit(step)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_not_same(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  assert any(np.any(np.asarray(x) != y) for x, y in pairs)


def test_dropout_is_a_function_of_seed_step_and_microbatch():
  state, step = psnr(Srgan())
  first, metrics = step(state, batch())
  again, _ = step(state, batch())
  assert_same(first, again)
  # Of the same state at another step, all else being equal.
  other, _ = step(state.replace(step=jnp.int32(1)), batch())
  assert_not_same(first.params, other.params)
  # It drops: trained and applied are two things.
  sr = registry.infer(Srgan(), steps.averaged(state), batch()["lr"])
  assert not np.isclose(metrics["g/loss"], np.abs(sr - batch()["hr"]).mean())


@pytest.mark.slow
def test_seeds_and_microbatches_draw_other_numbers():
  state, step = psnr(Srgan())
  once = batch(2)
  whole, _ = step(state, once)
  _, seeded = psnr(Srgan(), seed=1)
  assert_not_same(whole.params, seeded(state, once)[0].params)
  # Two microbatches that are alike are not dropped alike.
  twice = {name: x.repeat(2, axis=0) for name, x in once.items()}
  halves, _ = psnr(Srgan(), accumulate=2)[1](state, twice)
  assert_not_same(halves.params, whole.params)


@pytest.mark.parametrize(
  "phase", ["psnr", pytest.param("gan", marks=pytest.mark.slow)]
)
def test_a_function_trains_as_the_module_that_it_is_of(phase):
  nets, functions = (
    (Srgan(), Critic()),
    (
      as_function(Srgan(), scale=2),
      as_function(Critic()),
    ),
  )
  if phase == "psnr":
    one, other = psnr(nets[0]), psnr(functions[0])
  else:
    one, other = gan(*nets), gan(*functions)
  assert_same(one[0], other[0])
  states = []
  for state, step in (one, other):
    for _ in range(2):
      state, metrics = step(state, batch())
    states.append((state, metrics))
  assert_same(*states)
  state = states[0][0]
  (norm,) = state.collections["batch_stats"].values()
  assert np.abs(norm["mean"]).max() > 0
  if phase == "gan":
    (norm,) = state.d_batch_stats.values()
    assert np.abs(norm["mean"]).max() > 0
  lr = batch()["lr"]
  assert_same(
    *(
      registry.infer(f, steps.averaged(state), lr)
      for f in (nets[0], functions[0])
    )
  )


def test_functions_of_parameters_alone():
  def apply(variables, images):
    gain = variables["params"]["gain"]
    return (gain[None, None, None] * images).repeat(2, -3).repeat(2, -2)

  def judge(variables, images):
    return images.mean((1, 2)) @ variables["params"]

  net = steps.FromFunction(apply, scale=2)
  with pytest.raises(ValueError, match="this network has no `begin`"):
    steps.create_psnr_state(jax.random.key(0), net, SGD)
  critic = steps.FromFunction(judge, lambda *_: {"params": jnp.ones(3)})
  state = steps.create_gan_state(
    jax.random.key(0),
    net,
    critic,
    SGD,
    SGD,
    params={"gain": jnp.full(3, 0.5)},
  )
  data = batch()
  data["hr"] = data["lr"].repeat(2, 1).repeat(2, 2)
  step = functools.partial(
    steps.gan_step,
    generator=net,
    discriminator=critic,
    pixel_loss="mse",
    pixel_weight=1.0,
    adversarial_weight=0.0,
    optimizer=SGD,
    d_optimizer=SGD,
  )
  after, metrics = jax.jit(step)(state, data)
  # The mean over all channels: a channel's share of the slope is a third.
  slope = (data["lr"] ** 2).mean((0, 1, 2)) * 2 * (0.5 - 1) / 3
  np.testing.assert_allclose(after.params["gain"], 0.5 - 0.1 * slope, rtol=1e-5)
  assert "g/learning_rate" not in metrics
  assert (after.d_batch_stats, after.collections) == ({}, {})
  model = esrgan_jax.Upscaler(net, after.params)
  assert model.upscale(np.zeros((3, 5, 3), np.uint8)).shape == (6, 10, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
  "channels", [(1, 3), pytest.param((4, 1), marks=pytest.mark.slow)]
)
def test_images_of_other_channels(channels):
  """Of full size; shapes."""
  net = RRDBNet(*channels, scale=2)
  critic = VGGStyleDiscriminator(input_size=16)
  parts = {"generator": net, "optimizer": SGD}
  whole = {**parts, "discriminator": critic, "d_optimizer": SGD}
  state = jax.eval_shape(
    lambda key: steps.create_gan_state(key, **whole), jax.random.key(0)
  )
  assert state.params["conv_last"]["kernel"].shape == (3, 3, 64, channels[1])
  assert state.d_params["conv0_0"]["kernel"].shape == (3, 3, channels[1], 64)
  data = batch(channels=channels, size=8)
  step = functools.partial(steps.gan_step, **whole)
  after, _ = jax.eval_shape(step, state, data)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  sr = jax.eval_shape(
    functools.partial(registry.infer, net), steps.averaged(after), data["lr"]
  )
  assert sr.shape == data["hr"].shape
  first = jax.eval_shape(
    lambda key: steps.create_psnr_state(key, **parts), jax.random.key(0)
  )
  after, _ = jax.eval_shape(
    functools.partial(steps.psnr_step, **parts), first, data
  )
  assert jax.tree.structure(after) == jax.tree.structure(first)


def test_a_wrong_optimizer_is_told_before_anything_is_made():
  net, critic = Srgan(), Critic()
  with pytest.raises(TypeError, match=r"^optimizer must be .* got adam, which"):
    steps.create_psnr_state(jax.random.key(0), net, optax.adam)
  with pytest.raises(TypeError, match=r"^d_optimizer must be .* got None"):
    steps.create_gan_state(jax.random.key(0), net, critic, SGD, None)
  state, _ = psnr(net)
  with pytest.raises(TypeError, match=r"^optimizer must be"):
    steps.psnr_step(state, batch(), generator=net, optimizer=1e-4)


@pytest.mark.parametrize(
  ("wrong", "error", "message"),
  [
    ({"lr": np.zeros((2, 4, 4, 3), np.uint8)}, TypeError, "'lr'.* by 255"),
    ({"lr": np.ones((4, 4, 3), np.float32)}, ValueError, "'lr'.*batch axis"),
    ({"hr": np.ones((2, 3, 8, 8), np.float32)}, ValueError, "'hr'.*NCHW"),
    ({"hr": None}, TypeError, r"batch\['hr'\] must be float .* got None"),
    (["hr"], ValueError, "'lr' and 'hr', 'hr' not found: it has 'lr'"),
    ((), TypeError, "a dictionary of images, 'lr' and 'hr', got a tuple"),
  ],
)
def test_a_batch_that_is_none_is_told_at_every_door(wrong, error, message):
  net, critic = nn.Conv(3, (3, 3)), Critic()
  given = batch(scale=1) | wrong if isinstance(wrong, dict) else wrong
  if wrong == ["hr"]:
    given = {"lr": batch()["lr"]}
  state = jax.eval_shape(
    lambda key: steps.create_gan_state(key, net, critic, SGD, SGD),
    jax.random.key(0),
  )
  first = {f: getattr(state, f) for f in steps.PsnrState.__dataclass_fields__}
  one = {"generator": net}
  both = one | {"discriminator": critic}
  d = state.d_params, state.d_batch_stats
  for door in (
    lambda: steps.psnr_gradients(state.params, given, **one),
    lambda: steps.gan_gradients(state.params, *d, given, **both),
    lambda: steps.psnr_step(
      steps.PsnrState(**first), given, **one, optimizer=SGD
    ),
    lambda: steps.gan_step(
      state, given, **both, optimizer=SGD, d_optimizer=SGD
    ),
  ):
    with pytest.raises(error, match=message):
      door()


def test_channels_are_as_the_network_tells_or_any():
  def run(net, lr):
    images = {"lr": lr, "hr": lr}
    params = jax.eval_shape(net.init, jax.random.key(0), lr)["params"]
    gradients = functools.partial(steps.psnr_gradients, generator=net)
    jax.eval_shape(gradients, params, images)

  for dtype in ("float32", "bfloat16", "float16"):
    run(nn.Conv(5, (3, 3)), jnp.ones((2, 4, 4, 5), dtype))
  net = steps.FromFunction(
    lambda variables, images: images, lambda *_: {"params": {}}, num_in_ch=1
  )
  with pytest.raises(ValueError, match=r"'lr'\].* W, 1\].*it has 5 channels"):
    run(net, jnp.ones((2, 4, 4, 5)))


def test_what_is_no_network_or_no_key_is_told():
  def brighten(variables, images):
    return images

  net, key = nn.Conv(3, (3, 3)), jax.random.key(0)
  create = steps.create_psnr_state
  for call, message in (
    (lambda: esrgan_jax.init(RRDBNet, key), r"^net must .* RRDBNet\(...\)"),
    (lambda: create(key, RRDBNet, SGD), r"^generator must .* RRDBNet\(...\)"),
    (lambda: create(key, brighten, SGD), r"steps.FromFunction\(brighten\)"),
    (
      lambda: steps.psnr_gradients({}, batch(), generator=brighten),
      r"^generator must .*steps.FromFunction\(brighten\)",
    ),
    (
      lambda: steps.create_gan_state(key, net, Critic, SGD, SGD),
      r"^discriminator must .* the class Critic",
    ),
    (lambda: esrgan_jax.init(net, 3), r"^key must be .* jax.random.key\(3\)"),
    (lambda: jax.jit(lambda k: create(k, net, SGD))(3), r"got int32\[\]: make"),
    (
      lambda: steps.create_gan_state(0, net, Critic(), SGD, SGD),
      r"^key must be a random key, got 0",
    ),
  ):
    with pytest.raises(TypeError, match=message):
      call()
  jax.eval_shape(lambda: create(jax.random.PRNGKey(0), net, SGD))


def test_parameters_of_another_network_are_told():
  net, key, size = nn.Conv(3, (3, 3)), jax.random.key(0), (1, 4, 4, 3)
  params = net.init(key, jnp.ones(size))["params"]
  other = nn.Conv(4, (3, 3)).init(key, jnp.ones(size))["params"]

  def create(params, net=net):
    steps.create_psnr_state(key, net, SGD, params=params)
    steps.create_gan_state(key, net, Critic(), SGD, SGD, params=params)

  jax.eval_shape(create, params)
  for wrong, message in (
    ({"params": params}, "of a Conv, got variables: give variables"),
    (other, r"of a Conv: bias is float32\[4\], not float32\[3\]; kernel is"),
    ({"kernel": params["kernel"]}, "of a Conv: bias is missing"),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(create, wrong)
  with pytest.raises(TypeError, match="the tree of a Conv, got a tuple"):
    create(())
  boxed = nn.Conv(
    3,
    (3, 3),
    kernel_init=nn.with_partitioning(nn.initializers.zeros, (None,) * 4),
  )
  jax.eval_shape(functools.partial(create, net=boxed), params)
  # What a function takes may be any pytree.
  net = steps.FromFunction(lambda variables, images: images)
  jax.eval_shape(functools.partial(create, net=net), (params, other))


def test_a_state_with_64_bits_and_strict_promotion():
  net = nn.Conv(3, (3, 3))
  with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
    state = jax.eval_shape(
      lambda: steps.create_psnr_state(jax.random.key(0), net, SGD)
    )
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {
      jnp.dtype("float32")
    }


def test_a_state_of_the_other_phase_is_told():
  net, critic = Srgan(), Critic()
  one = {"generator": net, "optimizer": SGD}
  both = {**one, "discriminator": critic, "d_optimizer": SGD}
  key = jax.random.key(0)
  first = jax.eval_shape(lambda: steps.create_psnr_state(key, **one))
  second = jax.eval_shape(lambda: steps.create_gan_state(key, **both))
  with pytest.raises(TypeError, match=r"GanState, from create_gan_.* a PsnrSt"):
    steps.gan_step(first, batch(), **both)
  with pytest.raises(TypeError, match=r"PsnrState, from create_psnr.* a GanSt"):
    steps.psnr_step(second, batch(), **one)


@pytest.mark.parametrize(
  "net",
  [
    Srgan(),
    pytest.param(
      VGGStyleDiscriminator(1, input_size=6), marks=pytest.mark.slow
    ),
  ],
)
def test_init_is_the_networks_own(net):
  size = getattr(net, "input_size", 8)
  image, key = jnp.zeros((1, size, size, 3)), jax.random.key(3)
  found = esrgan_jax.init(net, key)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    found,
    net.init(key, image, train=False),
  )
  # Part of another program, which may have options of its own.
  for program in (
    jax.jit(lambda: esrgan_jax.init(net, key)),
    jax.vmap(functools.partial(esrgan_jax.init, net)),
  ):
    keys = () if program.__name__ == "<lambda>" else (key[None],)
    inside = jax.eval_shape(program, *keys)
    assert jax.tree.structure(inside) == jax.tree.structure(found)


@pytest.mark.slow
def test_init_of_the_full_network():
  net = RRDBNet()
  found = esrgan_jax.init(net, jax.random.key(0))["params"]
  lr = jnp.zeros((1, 8, 8, 3))
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(
    jnp.shape, random_params(net, lr)
  )
  kernel = np.asarray(found["conv_body"]["kernel"])
  assert kernel.std() == pytest.approx(0.1 * (2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.slow
def test_the_nnx_example_learns():
  names = runpy.run_path(str(ROOT / "examples/nnx_generator.py"))
  network = names["train"]()
  data = next(names["batches"]())
  repeated = data["lr"].repeat(2, 1).repeat(2, 2)
  better, before = (
    esrgan_jax.psnr(sr, data["hr"], crop_border=2, y_channel=False).mean()
    for sr in (network(data["lr"]), repeated)
  )
  assert better > before + 5
