"""Optimizer states of earlier versions: training goes on as if nothing was."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from esrgan_jax.steps import psnr
from esrgan_jax.steps.optimizer import make_optimizer
from esrgan_jax.steps.state import create_psnr_state
from esrgan_jax.training import checkpoint, migration
from esrgan_jax.weights.formats import stored_arrays as stored
from tests import plain_states

_NET = nn.Conv(3, (1, 1))
_CONFIG = {"generator": {}, "scale": 1, "seed": 0}


def _as_before(opt_state):
  """As it was when the rate stood beside it: Adam's, in a tuple if clipped."""
  *clip, adam, rate = opt_state.inner_state
  assert isinstance(adam, optax.ScaleByAdamState)
  assert rate == optax.EmptyState()
  return (*clip, adam) if clip else adam


def _batch(step):
  images = np.random.default_rng(step).random((2, 2, 4, 4, 3), np.float32)
  # Steps and updates are then two numbers.
  return {"lr": images[0], "hr": images[1] * (np.nan if step == 1 else 1)}


def _step(clip_norm):
  schedule = {"name": "milestones", "milestones": (1, 3, 4)}
  adam = make_optimizer(1e-2, schedule=schedule, clip_norm=clip_norm)
  step = functools.partial(psnr.psnr_step, generator=_NET, optimizer=adam)
  state = create_psnr_state(jax.random.key(0), _NET, adam)
  return jax.jit(step), jax.device_put(state, plain_states.WHOLE)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_training_goes_on_to_the_bit(clip_norm, tmp_path):
  step, like = _step(clip_norm)
  state = like
  for each in range(3):
    state, _ = step(state, _batch(each))
  old = state.replace(opt_state=_as_before(state.opt_state))
  with checkpoint.Checkpoints(tmp_path, config=_CONFIG) as checkpoints:
    checkpoints.save(3, old)
    checkpoints.check(like)
    found = checkpoints.restore(like).state
  for each in (3, 4):
    state, metrics = step(state, _batch(each))
    found, again = step(found, _batch(each))
    jax.tree.map(np.testing.assert_array_equal, again, metrics)
    assert again["g/learning_rate"] == np.float32(1e-2 / 2 ** (each - 1))
  jax.tree.map(np.testing.assert_array_equal, found, state)
  assert int(found.opt_state.count) == 4


@pytest.mark.parametrize(("before", "now"), [(None, 1.0), (1.0, None)])
def test_clipping_switched_on_or_off_on_the_way(before, now, tmp_path):
  old = plain_states.gan(2, clip_norm=before)
  old = old.replace(
    opt_state=_as_before(old.opt_state), d_opt_state=_as_before(old.d_opt_state)
  )
  like = plain_states.gan(2, clip_norm=now)
  with checkpoint.Checkpoints(tmp_path, config=_CONFIG) as checkpoints:
    checkpoints.save(2, old)
    found = checkpoints.restore(like).state
  for field in ("opt_state", "d_opt_state"):
    ours, theirs = (
      optax.tree.get(getattr(each, field), "ScaleByAdamState")
      for each in (found, like)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_what_is_todays_stays_and_so_does_what_is_wanted_as_it_is():
  """Adam alone is an optimizer of optax's too, after which to go on."""
  today = plain_states.psnr()
  alone = today.replace(opt_state=_as_before(today.opt_state))
  for state in (today, alone):
    found = {"state": stored.flatten(vars(state))}
    assert migration.optimizer_states(found, state) == found
  other = today.replace(opt_state={"momentum": np.ones(3)})
  found = {"state": stored.flatten(vars(other))}
  assert migration.optimizer_states(found, today) == found
