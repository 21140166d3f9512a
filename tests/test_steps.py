"""The steps: PyTorch's gradients, one device or eight, guard, EMA, donation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from esrgan_jax.models.discriminators import VGGStyleDiscriminator
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.models.vgg import vgg19_from_torchvision
from esrgan_jax.steps import gan, psnr
from esrgan_jax.steps.optimizer import make_optimizer
from esrgan_jax.steps.state import create_gan_state, create_psnr_state
from esrgan_jax.training import mesh as mesh_lib
from esrgan_jax.weights.dialects.rrdb import from_state_dict
from tests import golden

BATCH, SIZE = 4, 16


class Upscaler(nn.Module):
  """The smallest generator of scale 4: cheap to compile."""

  @nn.compact
  def __call__(self, lr):
    x = nn.tanh(nn.Conv(4, (3, 3))(lr)).repeat(4, axis=1).repeat(4, axis=2)
    return nn.Conv(3, (3, 3))(x)


class Normalized(nn.Module):
  """The same with BatchNorm, whose statistics are trained with it."""

  scale: int = 4

  @nn.compact
  def __call__(self, lr, *, train):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.75)(lr)
    return nn.Conv(3, (3, 3))(x).repeat(4, axis=1).repeat(4, axis=2)


def make_batch(num=BATCH, *, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "lr": rng.random((num, SIZE // 4, SIZE // 4, 3), np.float32),
    "hr": rng.random((num, SIZE, SIZE, 3), np.float32),
  }


@functools.cache
def perceptual():
  """Not to be called first in a traced function: it would be traced as well."""
  params = vgg19_from_torchvision(golden.vgg_state())
  used = ("normalization", "conv1_1", "conv1_2", "conv2_1")
  return gan.vgg_perceptual(
    {name: params[name] for name in used}, layer_weights=golden.LAYER_WEIGHTS
  )


# With it, the new parameters are the old ones less the gradients.
SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)


def assert_trees_close(actual, expected, *, rtol):
  """Differences below `rtol` of each leaf's norm, and float32's rounding.

  Gradients are sums of terms of about 1, some of which all but cancel. Of D's
  last bias they do: a relativistic loss does not change when all logits do.
  """
  rounding = float(np.finfo(np.float32).eps)
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(actual),
    jax.tree.leaves(expected),
    strict=True,
  ):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert x.shape == y.shape
    error, norm = np.linalg.norm(x - y), np.linalg.norm(y)
    name = jax.tree_util.keystr(path)
    if name.endswith("['linear2']['bias']"):
      assert error <= 4 * rounding, (name, error)
    else:
      assert norm > 0, name
      assert error <= rtol * norm + rounding, (name, error, norm)


def assert_trees_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


# --- Against PyTorch, in float64, in the order of BasicSR's program.


def g_tree(networks, tensors):
  """Our tree of the generator's parameters from PyTorch's."""
  if networks.generator:
    return from_state_dict(tensors).params
  return {
    name: {
      "kernel": tensors[f"{layer}.weight"].transpose(2, 3, 1, 0),
      "bias": tensors[f"{layer}.bias"],
    }
    for name, layer in (("Conv_0", "first"), ("Conv_1", "last"))
  }


def our_gradients(networks):
  """What `answers.steps` asks PyTorch, asked here, as one program."""
  fields = networks.generator
  net = RRDBNet(**fields) if fields else Upscaler()
  params = g_tree(networks, networks.generator_state())
  batch = networks.images()
  distance = perceptual()
  d_trees = {
    name: golden.discriminator_trees(
      golden.discriminator_state(*networks.discriminator(name))
    )
    for name in networks.steps
  }

  @jax.jit
  def run(params, d_trees, batch):
    found = {
      f"psnr {pixel_loss}": psnr.psnr_gradients(
        params, batch, generator=net, pixel_loss=pixel_loss
      )
      for pixel_loss in golden.PIXEL_LOSSES
    }
    for name in networks.steps:
      found[name] = gan.gan_gradients(
        params,
        *d_trees[name],
        batch,
        generator=net,
        discriminator=VGGStyleDiscriminator(*networks.discriminator(name)),
        perceptual=distance,
        key=golden.penalty_key(),
        **golden.WEIGHTS,
        **golden.STEPS[name],
      )
    shape = (networks.batch, 1, 1, 1)
    return found, jax.random.uniform(golden.penalty_key(), shape)

  return run(params, d_trees, batch)


def check_are_pytorchs(networks, expected):
  actual, places = our_gradients(networks)
  golden.assert_same_places(places, expected["penalty"]["place"])
  assert actual.keys() == expected.keys() - {"penalty"}
  for name, (*trees, metrics) in actual.items():
    case = expected[name]

    def take(prefix, case=case):
      size = len(prefix)
      return {k[size:]: v for k, v in case.items() if k.startswith(prefix)}

    assert_trees_close(trees[0], g_tree(networks, take("g ")), rtol=1e-4)
    for key in ("g/loss", "d/loss", "d/penalty"):
      assert (key in metrics) == (key in case), (name, key)
      if key in case:
        assert float(metrics[key]) == pytest.approx(float(case[key]), rel=1e-5)
    if name.startswith("psnr"):
      assert metrics["g/loss"] == metrics["g/pixel"]
      continue
    d_grads, _ = golden.discriminator_trees(take("d "))
    assert_trees_close(trees[1], d_grads, rtol=1e-4)
    # Real images move the running means first, fake ones second.
    means = {k: v for k, v in case.items() if k.endswith(".running_mean")}
    assert len(trees[2]) == len(means)
    for key, value in means.items():
      layer = key.removesuffix(".running_mean")
      np.testing.assert_allclose(trees[2][layer]["mean"], value, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_pytorchs():
  check_are_pytorchs(golden.RECORDED, golden.load("steps"))


@pytest.mark.torch
def test_gradients_of_larger_networks_are_pytorchs():
  from tests.oracles import answers

  check_are_pytorchs(golden.LARGER, answers.steps(golden.LARGER))


# --- Steps on meshes.


@functools.cache
def networks():
  return {
    "generator": Upscaler(),
    "discriminator": VGGStyleDiscriminator(num_feat=2, input_size=SIZE),
  }


def fresh_states(optimizer):
  nets, key = networks(), jax.random.key(0)
  psnr_state = create_psnr_state(key, nets["generator"], optimizer)
  gan_state = create_gan_state(key, *nets.values(), optimizer, optimizer)
  return psnr_state, gan_state


@functools.cache
def initial_states():
  """Host copies: donation cannot reach them."""
  return jax.tree.map(np.array, jax.jit(lambda: fresh_states(SGD))())


def run_psnr(num_devices, batch, **options):
  mesh = mesh_lib.make_mesh(num_devices)
  step = functools.partial(
    psnr.psnr_step,
    generator=networks()["generator"],
    optimizer=SGD,
    **options,
  )
  jitted = mesh_lib.jit_step(step, mesh)
  return jitted(initial_states()[0], mesh_lib.global_batch(mesh, batch))


@functools.cache
def gan_step(mesh, **options):
  step = functools.partial(
    gan.gan_step,
    **networks(),
    optimizer=SGD,
    d_optimizer=SGD,
    adversarial_weight=0.5,
    **options,
  )
  return mesh_lib.jit_step(step, mesh, perceptual=perceptual())


def run_gan(num_devices, batch, **options):
  mesh = mesh_lib.make_mesh(num_devices)
  step = gan_step(mesh, **options)
  return step(initial_states()[1], mesh_lib.global_batch(mesh, batch))


def gradients(state, before):
  """What plain gradient descent at a rate of 1 has taken away."""
  fields = [name for name in ("params", "d_params") if hasattr(state, name)]
  return [
    jax.tree.map(np.subtract, getattr(before, f), getattr(state, f))
    for f in fields
  ]


def uneven_batch():
  """Devices' images differ in brightness: statistics per device would show."""
  batch = make_batch(16)
  ramp = np.linspace(0.2, 1, 16, dtype=np.float32).reshape(16, 1, 1, 1)
  return jax.tree.map(lambda x: x * ramp, batch)


@pytest.mark.slow
@pytest.mark.parametrize(
  "accumulate", [1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_eight_devices_do_what_one_does(accumulate):
  batch = uneven_batch()
  for run, before in zip((run_psnr, run_gan), initial_states(), strict=True):
    one, metrics_one = run(1, batch, accumulate=accumulate)
    eight, metrics_eight = run(8, batch, accumulate=accumulate)
    assert_trees_close(
      gradients(eight, before), gradients(one, before), rtol=1e-4
    )
    assert metrics_eight.keys() == metrics_one.keys()
    for name, value in metrics_one.items():
      assert value.shape == ()
      assert value.dtype == jnp.float32
      np.testing.assert_allclose(
        metrics_eight[name], value, rtol=1e-4, atol=1e-6, err_msg=name
      )
    if run is run_gan:
      assert_trees_close(eight.d_batch_stats, one.d_batch_stats, rtol=1e-5)


@pytest.mark.slow
def test_accumulation_is_exact_for_psnr_and_per_microbatch_for_gan():
  batch = uneven_batch()
  whole, metrics = run_psnr(1, batch)
  parts, part_metrics = run_psnr(1, batch, accumulate=4)
  before = initial_states()[0]
  assert_trees_close(
    gradients(parts, before), gradients(whole, before), rtol=1e-5
  )
  for name, value in metrics.items():
    np.testing.assert_allclose(part_metrics[name], value, rtol=1e-5)

  parts, part_metrics = run_gan(1, batch, accumulate=2)
  before = initial_states()[1]
  stats = before.d_batch_stats
  total = jax.tree.map(np.zeros_like, gradients(parts, before))
  run = jax.jit(
    functools.partial(
      gan.gan_gradients,
      **networks(),
      perceptual=perceptual(),
      adversarial_weight=0.5,
    )
  )
  for i in range(2):
    half = jax.tree.map(lambda x, i=i: x[i::2], batch)
    grads, d_grads, stats, *_ = jax.device_get(
      run(before.params, before.d_params, stats, half)
    )
    total = jax.tree.map(lambda a, b: a + b / 2, total, [grads, d_grads])
  assert_trees_close(gradients(parts, before), total, rtol=1e-4)
  assert_trees_close(parts.d_batch_stats, stats, rtol=1e-5)


# --- Generators with collections besides their parameters.


def norm_states():
  """A state of either phase, and its step, not compiled."""
  adam, key = make_optimizer(1e-3), jax.random.key(0)
  net, critic = Normalized(), networks()["discriminator"]
  parts = {"generator": net, "discriminator": critic}
  return (
    (
      create_psnr_state(key, net, adam),
      functools.partial(psnr.psnr_step, generator=net, optimizer=adam),
    ),
    (
      create_gan_state(key, net, critic, adam, adam),
      functools.partial(
        gan.gan_step, **parts, optimizer=adam, d_optimizer=adam
      ),
    ),
  )


@pytest.mark.release
def test_a_generators_statistics_move_by_the_images():
  batch = make_batch()
  bad = {**batch, "hr": batch["hr"] * np.float32("nan")}
  mean, parts = batch["lr"].mean((0, 1, 2)), batch["lr"]
  halves = [parts[i::2].mean((0, 1, 2)) for i in range(2)]
  for before, step in norm_states():
    (norm,) = before.collections["batch_stats"].values()
    assert_trees_equal(norm["mean"], np.zeros(3))
    after, _ = jax.jit(step)(before, batch)
    (norm,) = after.collections["batch_stats"].values()
    np.testing.assert_allclose(norm["mean"], mean / 4, rtol=1e-5)
    # A step that is skipped moves nothing.
    skipped, metrics = jax.jit(step)(after, bad)
    assert float(metrics["skipped"]) == 1
    assert_trees_equal(skipped.collections, after.collections)
    # Microbatches move it one after another.
    after, _ = jax.jit(functools.partial(step, accumulate=2))(before, batch)
    (norm,) = after.collections["batch_stats"].values()
    expected = 0.75 * halves[0] / 4 + halves[1] / 4
    np.testing.assert_allclose(norm["mean"], expected, rtol=1e-5)


@pytest.mark.slow
def test_statistics_go_on_into_the_next_phase():
  (first, step), (second, _) = norm_states()
  first, _ = jax.jit(step)(first, make_batch())
  state = create_gan_state(
    jax.random.key(1),
    *(Normalized(), networks()["discriminator"], SGD, SGD),
    params=first.ema_params,
    collections=first.collections,
  )
  assert_trees_equal(state.collections, first.collections)
  assert_trees_equal(state.ema_params, first.ema_params)
  # Without them, they begin as the network has them.
  state = create_psnr_state(
    jax.random.key(1), Normalized(), SGD, params=first.ema_params
  )
  assert_trees_equal(state.collections, second.collections)
  assert_trees_equal(state.params, first.ema_params)


# --- The life of a state.


@pytest.fixture(scope="module")
def adam_gan():
  """One compiled GAN step with Adam, its traces counted, and its state."""
  adam = make_optimizer(
    1e-2, schedule={"name": "milestones", "milestones": (1, 3)}
  )
  traces = []

  def step(state, batch):
    traces.append(1)
    return gan.gan_step(
      state,
      batch,
      **networks(),
      optimizer=adam,
      d_optimizer=adam,
      ema_decay=0.9,
    )

  make_state = jax.jit(lambda: fresh_states(adam)[1])
  return jax.jit(step, donate_argnums=0), make_state, traces


def test_non_finite_steps_change_nothing_but_counters(adam_gan):
  step, make_state, _ = adam_gan
  good = make_batch()
  bad_lr = {**good, "lr": good["lr"] * np.float32("nan")}
  # Only the discriminator's real images and the pixel loss see it.
  bad_hr = {**good, "hr": np.where(good["hr"] > 0.9, np.inf, good["hr"])}
  state, metrics = step(make_state(), good)
  assert float(metrics["skipped"]) == 0
  before = jax.tree.map(np.array, state)
  for count, bad in enumerate((bad_lr, bad_hr), 1):
    state, metrics = step(state, bad)
    after = jax.tree.map(np.array, state)
    counters = {
      "step": 1 + count,
      "skipped": count,
      "skipped_in_a_row": count,
    }
    for name, value in counters.items():
      assert getattr(after, name) == value
      assert getattr(after, name).dtype == np.int32
    assert_trees_equal(
      after.replace(**{name: getattr(before, name) for name in counters}),
      before,
    )
    assert not np.isfinite(metrics["g/loss"])
    assert float(metrics["skipped_in_a_row"]) == count
  state, metrics = step(state, good)
  assert int(state.step) == 4
  assert int(state.skipped) == 2
  assert int(state.skipped_in_a_row) == 0
  # Adam counts updates, the schedule counts steps.
  assert int(state.opt_state.count) == 2
  assert float(metrics["g/learning_rate"]) == np.float32(1e-2 / 4)
  assert any(
    np.any(x != y)
    for x, y in zip(
      jax.tree.leaves(state.params), jax.tree.leaves(before.params), strict=True
    )
  )


def test_psnr_steps_skip_as_well():
  good = make_batch()
  bad = {**good, "hr": good["hr"] * np.float32("inf")}
  state, metrics = run_psnr(1, bad)
  before = initial_states()[0]
  assert_trees_equal(state.params, before.params)
  assert_trees_equal(state.ema_params, before.ema_params)
  assert (int(state.step), int(state.skipped)) == (1, 1)
  assert float(metrics["skipped"]) == 1


def test_finite_losses_with_gradients_that_are_not_are_skipped():
  def rooted(sr, hr):
    # Its value at equal images is 0, its derivative is not finite.
    return jnp.sum(jnp.sqrt(jnp.square(sr - sr + 0 * hr)))

  state, metrics = run_psnr(1, make_batch(), pixel_loss=rooted)
  assert float(metrics["g/loss"]) == 0
  assert not np.isfinite(metrics["g/grad_norm"])
  assert_trees_equal(state.params, initial_states()[0].params)
  assert int(state.skipped_in_a_row) == 1


def test_donated_states_are_consumed_and_a_step_is_traced_once(adam_gan):
  step, make_state, traces = adam_gan
  first = state = make_state()
  pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
  assert len(set(pointers)) == len(pointers)
  for seed in range(3):
    state, _ = step(state, make_batch(seed=seed))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
  assert len(traces) == 1
  assert int(state.step) == 3


def test_given_params_are_copied_not_shared():
  params = jax.jit(
    lambda: networks()["generator"].init(
      jax.random.key(0), jnp.zeros((1, 4, 4, 3))
    )["params"]
  )()
  create = functools.partial(
    create_psnr_state,
    generator=networks()["generator"],
    optimizer=SGD,
  )
  for make in (create, jax.jit(create)):
    state = make(jax.random.key(1), params=params)
    assert_trees_equal(state.params, params)
    leaves = jax.tree.leaves((params, state))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)


def test_ema_and_learning_rate_by_hand(adam_gan):
  step, make_state, _ = adam_gan
  state = make_state()
  expected = jax.tree.map(np.array, state.params)
  for seed, rate in enumerate((1e-2, 5e-3, 5e-3, 2.5e-3)):
    state, metrics = step(state, make_batch(seed=seed))
    expected = jax.tree.map(
      lambda e, p: 0.9 * e + 0.1 * np.asarray(p, np.float64),
      expected,
      state.params,
    )
    assert float(metrics["g/learning_rate"]) == np.float32(rate)
    assert float(metrics["d/learning_rate"]) == np.float32(rate)
  assert_trees_close(state.ema_params, expected, rtol=1e-6)


def test_metrics_are_the_losses_and_norms():
  batch, before = uneven_batch(), initial_states()[1]
  state, metrics = run_gan(1, batch)
  shared = {"loss", "grad_norm", "learning_rate"}
  g_names = shared | {"pixel", "perceptual", "adversarial"}
  d_names = shared | {"real", "fake", "gap"}
  assert set(metrics) == (
    {f"g/{name}" for name in g_names}
    | {f"d/{name}" for name in d_names}
    | {"skipped", "skipped_in_a_row"}
  )
  m = {name: float(value) for name, value in metrics.items()}
  assert m["d/gap"] == pytest.approx(m["d/real"] - m["d/fake"], abs=1e-5)
  assert m["g/loss"] == pytest.approx(
    1e-2 * m["g/pixel"] + m["g/perceptual"] + 0.5 * m["g/adversarial"],
    rel=1e-5,
  )
  grads = gradients(state, before)
  for name, tree in zip(("g/grad_norm", "d/grad_norm"), grads, strict=True):
    squares = sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree))
    assert m[name] == pytest.approx(np.sqrt(squares), rel=1e-3)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"accumulate": 3}, "accumulate 3 does not divide the batch of 4"),
    ({"accumulate": 0}, "accumulate must be a whole number >= 1, got 0"),
    ({"ema_decay": 1.5}, r"ema_decay must be in \[0, 1\], got 1.5"),
    ({"pixel_loss": "l3"}, r"\('l1', 'mse', 'charbonnier'\).*got 'l3'"),
    ({"adversarial": "hing"}, "wgan-gp, lsgan, hinge, got 'hing'"),
    ({"halv": True}, "has no option halv; it has detach_means, halve"),
  ],
)
def test_misuse_is_explained(options, message):
  with pytest.raises(ValueError, match=message):
    run_gan(1, make_batch(), **options)


def test_wgan_gp_needs_a_key():
  batch = make_batch()
  before = initial_states()[1]
  with pytest.raises(ValueError, match="needs a key, got None"):
    jax.eval_shape(
      functools.partial(gan.gan_gradients, **networks(), adversarial="wgan-gp"),
      before.params,
      before.d_params,
      before.d_batch_stats,
      batch,
    )


@pytest.mark.release
def test_wgan_gp_draws_anew_each_step_and_again_on_resume():
  adam = make_optimizer(1e-3)
  critic = VGGStyleDiscriminator(2, input_size=SIZE, norm="layer")
  nets = {"generator": Upscaler(), "discriminator": critic}
  state = jax.jit(
    lambda: create_gan_state(jax.random.key(0), *nets.values(), adam, adam)
  )()
  step = jax.jit(
    functools.partial(
      gan.gan_step,
      **nets,
      optimizer=adam,
      d_optimizer=adam,
      adversarial="wgan-gp",
      accumulate=2,
    )
  )
  batch = make_batch()
  penalties = [
    float(step(state.replace(step=jnp.int32(n)), batch)[1]["d/penalty"])
    for n in (0, 1, 0)
  ]
  assert penalties[0] == penalties[2]
  assert penalties[0] != penalties[1]
