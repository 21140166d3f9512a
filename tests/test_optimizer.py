"""Schedules at their published milestones; Adam against PyTorch's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from esrgan_jax import steps
from esrgan_jax.steps.optimizer import (
  check_optimizer,
  constant_schedule,
  cosine_restart_schedule,
  make_optimizer,
  make_schedule,
  milestone_schedule,
  update,
)
from tests import golden

PSNR = (200_000, 400_000, 600_000, 800_000)
GAN = (50_000, 100_000, 200_000, 300_000)


@pytest.mark.parametrize(
  ("rate", "milestones", "published"),
  [
    (
      2e-4,
      PSNR,
      {
        0: 2e-4,
        199_999: 2e-4,
        200_000: 1e-4,
        400_000: 5e-5,
        799_999: 2.5e-5,
        800_000: 1.25e-5,
        999_999: 1.25e-5,
      },
    ),
    (
      1e-4,
      GAN,
      {
        0: 1e-4,
        49_999: 1e-4,
        50_000: 5e-5,
        99_999: 5e-5,
        100_000: 2.5e-5,
        200_000: 1.25e-5,
        300_000: 6.25e-6,
        399_999: 6.25e-6,
      },
    ),
  ],
)
def test_published_milestones(rate, milestones, published):
  schedule = jax.jit(milestone_schedule(rate, milestones=milestones))
  for step, expected in published.items():
    value = schedule(jnp.int32(step))
    assert value.dtype == jnp.float32
    assert value.shape == ()
    assert float(value) == np.float32(expected), step


def basicsr_cosine(step, rate, periods, weights, minimum):
  """BasicSR's formula, in float64: a period owns the step that ends it."""
  start = 0
  for period, weight in zip(periods, weights, strict=True):
    if step <= start + period:
      cosine = np.cos(np.pi * (step - start) / period)
      return minimum + weight * 0.5 * (rate - minimum) * (1 + cosine)
    start += period
  raise AssertionError(step)


def test_cosine_restarts_are_basicsrs():
  periods, weights = (250_000,) * 4, (1, 1, 0.5, 0.25)
  schedule = jax.jit(
    cosine_restart_schedule(2e-4, periods=periods, restart_weights=weights)
  )
  for step in (0, 1, 125_000, 250_000, 250_001, 375_000, 600_000, 1_000_000):
    expected = basicsr_cosine(step, 2e-4, periods, weights, 1e-7)
    assert float(schedule(step)) == pytest.approx(
      expected, rel=1e-5, abs=1e-11
    ), step
  # BasicSR has no value here.
  assert float(schedule(2_000_000)) == pytest.approx(1e-7, rel=1e-4)


def test_restarts_weigh_one_by_default():
  schedule = cosine_restart_schedule(1.0, periods=(10, 20), minimum=0.0)
  values = [float(schedule(step)) for step in (0, 5, 10, 20, 30)]
  np.testing.assert_allclose(values, [1, 0.5, 0, 0.5, 0], atol=1e-6)


def test_schedules_by_name():
  assert float(make_schedule(0.25)(10**6)) == 0.25
  assert float(make_schedule(0.25, {"name": "constant"})(0)) == 0.25
  assert float(milestone_schedule(0.25, milestones=())(7)) == 0.25
  card = {"name": "milestones", "milestones": [2], "factor": 0.1}
  assert float(make_schedule(1.0, card)(2)) == pytest.approx(0.1)
  assert card["name"] == "milestones", "a config must not be changed"
  card = {"name": "cosine_restart", "periods": [4], "minimum": 0.0}
  assert float(make_schedule(1.0, card)(2)) == pytest.approx(0.5)


def test_a_warm_up_is_before_any_schedule():
  card = {"name": "cosine_restart", "periods": [100]}
  whole = make_schedule(2.0, card)
  warmed = make_schedule(2.0, card | {"warmup_steps": 10})
  for step in (0, 4, 8, 9, 10, 50, 100):
    share = min((step + 1) / 10, 1.0)
    assert float(warmed(step)) == pytest.approx(share * float(whole(step)))
  assert float(make_schedule(2.0, card | {"warmup_steps": 0})(0)) == 2.0
  # As `optax.join_schedules` and PyTorch have it for a constant.
  ramp = optax.linear_schedule(0.5, 2.0, 3)
  constant = make_schedule(2.0, {"name": "constant", "warmup_steps": 4})
  for step in range(8):
    assert float(constant(step)) == pytest.approx(float(ramp(step)))
  for wrong in (-1, 2.5):
    with pytest.raises(ValueError, match="warmup_steps must be whole and >= 0"):
      make_schedule(1.0, {"name": "constant", "warmup_steps": wrong})


@pytest.mark.parametrize("clip_norm", golden.CLIP_NORMS)
def test_adam_is_pytorchs(clip_norm):
  schedule = {
    "name": "milestones",
    "milestones": golden.MILESTONES,
    "factor": 0.1,
  }
  optimizer = make_optimizer(
    1e-2, schedule=schedule, b2=0.99, clip_norm=clip_norm
  )

  @jax.jit
  def update(params, opt_state, grads, step):
    updates, opt_state = optimizer.update(grads, opt_state, params, step=step)
    rate = opt_state.hyperparams["learning_rate"]
    return optax.apply_updates(params, updates), opt_state, rate

  expected = golden.load("optimizer")[f"clip {clip_norm}"]
  params, all_grads = golden.descent()
  opt_state = optimizer.init(params)
  for step, grads in enumerate(all_grads):
    params, opt_state, rate = update(params, opt_state, grads, step)
    np.testing.assert_allclose(rate, expected["rates"][step], rtol=1e-6)
    for name, value in params.items():
      np.testing.assert_allclose(value, expected[f"{step} {name}"], atol=2e-6)


def test_clipping_bounds_the_norm_of_all_gradients_together():
  # Without Adam's normalisation the clipped gradient itself is seen.
  optimizer = make_optimizer(1.0, b1=0.0, b2=0.0, clip_norm=1.0)
  grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  _, opt_state = optimizer.update(grads, optimizer.init(grads))
  adam = opt_state.inner_state[1]
  assert isinstance(adam, optax.ScaleByAdamState)
  np.testing.assert_allclose(adam.mu["a"], [0.6], rtol=1e-5)
  np.testing.assert_allclose(adam.mu["b"], [0.8], rtol=1e-5)


def test_the_rate_is_of_the_step_that_is_told_or_else_of_the_updates_done():
  optimizer = make_optimizer(
    1.0, schedule={"name": "milestones", "milestones": (1, 2, 3)}
  )
  opt_state = optimizer.init({"w": jnp.ones(2)})
  rates = []
  for extra in ({}, {}, {"step": 1}, {}, {"step": 0}, {"value": 7.0}):
    grads = {"w": jnp.ones(2)}
    _, opt_state = optimizer.update(grads, opt_state, **extra)
    # As optax's own documentation looks it up.
    rates.append(
      optax.tree.get(
        opt_state,
        "learning_rate",
        filtering=lambda _, value: isinstance(value, jax.Array),
      )
    )
  assert rates == [1, 0.5, 0.5, 0.25, 1, 0.5]


def _plateau():
  """An own transformation that takes the loss alone."""

  def scale(grads, state, params=None, *, value=None, **extra_args):
    assert extra_args.keys() <= {"step"}
    return jax.tree.map(lambda g: g * value, grads), state

  return optax.GradientTransformationExtraArgs(lambda _: (), scale)


def _dated():
  """One that takes the step alone, and keeps it."""

  def keep(grads, state, params=None, *, step, **extra_args):
    assert extra_args.keys() <= {"value"}
    return grads, step

  return optax.GradientTransformationExtraArgs(lambda _: jnp.int32(-1), keep)


def test_each_is_told_what_it_takes():
  ours = make_optimizer(
    1.0, schedule={"name": "milestones", "milestones": (3, 7)}
  )
  params = grads = {"w": jnp.ones(2)}

  @functools.partial(jax.jit, static_argnums=0)
  def run(optimizer, step):
    state = optimizer.init(params)
    return update(
      optimizer, grads, state, params, step=step, value=jnp.float32(2.0)
    )

  for step in (0, 7):
    alone, alone_state = run(ours, jnp.int32(step))
    chained, state = run(optax.chain(ours, _plateau()), jnp.int32(step))
    np.testing.assert_array_equal(chained["w"], 2 * alone["w"])
    jax.tree.map(np.testing.assert_array_equal, state[0], alone_state)
    assert alone_state.hyperparams["learning_rate"] == (1, 0.25)[step // 7]
  np.testing.assert_array_equal(run(_plateau(), jnp.int32(1))[0]["w"], [2, 2])
  _, (kept, _) = run(optax.chain(_dated(), optax.sgd(1.0)), jnp.int32(5))
  assert kept == 5
  # One that takes nothing of it, in an own argument's company.
  run(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), jnp.int32(0))
  with pytest.raises(TypeError, match="'value_fn'"):
    run(optax.lbfgs(), jnp.int32(0))
  # What goes wrong inside stays as it is.
  broken = optax.stateless(lambda grads, params: len(3))
  with pytest.raises(TypeError, match="has no len"):
    run(broken, jnp.int32(0))


@pytest.mark.parametrize(
  ("optimizer", "reason"),
  [
    (optax.lbfgs(), "a line search, as of optax.lbfgs"),
    (
      optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(3)),
      "a line search has to",
    ),
    (optax.lookahead(optax.sgd(1.0), 5, 0.5), "optax.lookahead has a pair"),
  ],
)
def test_what_is_not_supported_is_told_at_once(optimizer, reason):
  with pytest.raises(TypeError, match=f"^optimizer is not supported: {reason}"):
    steps.create_psnr_state(jax.random.key(0), nn.Conv(3, (3, 3)), optimizer)


def test_optimizers_may_promote_where_programs_may_not():
  params = {"w": jnp.ones(3)}
  rate = optax.cosine_decay_schedule(1e-3, 10)
  with (
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    for optimizer in (make_optimizer(1e-3), optax.sgd(rate, momentum=0.9)):
      updates, _ = update(
        optimizer,
        params,
        optimizer.init(params),
        params,
        step=jnp.int32(3),
        value=jnp.float32(1),
      )
      np.testing.assert_allclose(updates["w"], -1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["opt_state", "d_opt_state"])
def test_a_state_of_another_optimizer_is_told(name):
  net = nn.Conv(1, (3, 3))
  adam, sgd, key = optax.adam(1.0), optax.sgd(1.0), jax.random.key(0)
  make = functools.partial(steps.create_gan_state, key, net, net)
  state = jax.eval_shape(lambda: make(adam, adam))
  optimizers = {"optimizer": adam, "d_optimizer": adam}
  optimizers[name.replace("opt_state", "optimizer")] = sgd
  images = {"lr": jnp.ones((1, 4, 4, 3)), "hr": jnp.ones((1, 4, 4, 1))}
  step = functools.partial(
    steps.gan_step, generator=net, discriminator=net, **optimizers
  )
  with pytest.raises(ValueError, match=rf"^{name} must be .*0 arrays in Empty"):
    jax.eval_shape(step, state, images)


def test_adam_is_optaxs_adam_with_the_schedule_inside():
  """The factories of schedules are optax's: count to rate."""
  schedule = milestone_schedule(1e-2, milestones=(1, 3))
  params, all_grads = golden.descent()
  found = []
  for optimizer in (
    make_optimizer(1e-2, schedule={"name": "milestones", "milestones": (1, 3)}),
    optax.adam(schedule),
  ):
    values, state = params, optimizer.init(params)
    for grads in all_grads:
      updates, state = optimizer.update(grads, state, values)
      values = optax.apply_updates(values, updates)
    found.append(values)
  jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize(
  ("wrong", "got"),
  [
    (optax.adam, "got adam, which may have to be called"),
    (None, "got None"),
    (optax.MultiSteps, "got MultiSteps, which may have to be called"),
    (optax.EmptyState(), "got an object of type EmptyState"),
    (1e-4, "got an object of type float"),
    ({"learning_rate": 1e-4}, "got an object of type dict"),
  ],
)
def test_what_is_no_optimizer_is_refused(wrong, got):
  with pytest.raises(TypeError, match=rf"optax.adam\(1e-4\) or .*, {got}$"):
    check_optimizer(wrong)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: constant_schedule(0.0), "learning_rate must be positive.*got 0.0"),
    (lambda: constant_schedule(float("nan")), "got nan"),
    (
      lambda: milestone_schedule(1.0, milestones=(5, 5)),
      r"ascending order, got \(5, 5\)",
    ),
    (lambda: milestone_schedule(1.0, milestones=(-1,)), r"got \(-1,\)"),
    (
      lambda: milestone_schedule(1.0, milestones=(5,), factor=0.0),
      "factor must be > 0, got 0.0",
    ),
    (lambda: cosine_restart_schedule(1.0, periods=()), "at least one"),
    (lambda: cosine_restart_schedule(1.0, periods=(5, 0)), r"got \(5, 0\)"),
    (
      lambda: cosine_restart_schedule(
        1.0, periods=(5, 5), restart_weights=(1,)
      ),
      r"each of the 2 periods, got \(1,\)",
    ),
    (
      lambda: cosine_restart_schedule(1e-8, periods=(5,)),
      r"minimum must be in \[0, learning_rate = 1e-08\], got 1e-07",
    ),
    (
      lambda: make_schedule(1.0, {"name": "step"}),
      r"one of \('constant', 'milestones', 'cosine_restart'\), got 'step'",
    ),
    (lambda: make_optimizer(1e-4, b1=1.0), r"b1 must be in \[0, 1\), got 1.0"),
    (lambda: make_optimizer(1e-4, b2=-0.1), "b2 must be.*got -0.1"),
    (lambda: make_optimizer(1e-4, clip_norm=0.0), "None does not clip"),
  ],
)
def test_misuse_is_explained(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_unknown_arguments_of_a_schedule_raise():
  with pytest.raises(TypeError, match="gamma"):
    make_schedule(1.0, {"name": "milestones", "milestones": (1,), "gamma": 1})
