"""Losses against PyTorch's, hand values, and across devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrgan_jax import losses
from tests import golden


def rand(*shape, seed=0, scale=1.0):
  values = scale * np.random.default_rng(seed).standard_normal(shape)
  return values.astype(np.float32)


@functools.cache
def recorded_losses():
  """Values and gradients of all losses that are recorded, by one program."""
  real, fake = golden.logits()
  sr, hr = golden.image_pair()
  real_image, fake_image, weight = golden.penalty_input()

  def penalty(weight):
    return losses.gradient_penalty(
      golden.penalty_key(),
      lambda x: jnp.tanh(x.reshape(len(x), -1) @ weight).sum(-1),
      real_image,
      fake_image,
    )

  def charbonnier(sr):
    return losses.charbonnier_loss(sr, hr, epsilon=golden.EPSILON)

  calls = {
    "vanilla_discriminator": (
      losses.vanilla_discriminator_loss,
      {"real": real, "fake": fake},
    ),
    "vanilla_generator": (losses.vanilla_generator_loss, {"fake": fake}),
    "l1": (lambda sr: losses.l1_loss(sr, hr), {"sr": sr}),
    "mse": (lambda sr: losses.mse_loss(sr, hr), {"sr": sr}),
    "charbonnier": (charbonnier, {"sr": sr}),
    "penalty": (penalty, {"weight": weight}),
  }
  for halve in (True, False):
    calls[f"relativistic_generator halve={halve}"] = (
      functools.partial(losses.relativistic_generator_loss, real, halve=halve),
      {"fake": fake},
    )
    for detach in (True, False):
      loss = functools.partial(
        losses.relativistic_discriminator_loss, halve=halve, detach_means=detach
      )
      name = f"relativistic_discriminator halve={halve} detach={detach}"
      calls[name] = loss, {"real": real, "fake": fake}

  @jax.jit
  def run():
    found = {}
    for name, (loss, inputs) in calls.items():
      value, gradients = jax.value_and_grad(loss, tuple(range(len(inputs))))(
        *inputs.values()
      )
      gradients = dict(zip(inputs, gradients, strict=True))
      found[name] = {"value": value, **gradients}
    found["penalty"]["place"] = jax.random.uniform(
      golden.penalty_key(), (len(real_image), 1, 1, 1), jnp.float32
    )
    return found

  return jax.tree.map(np.asarray, run())


@pytest.mark.parametrize("name", golden.load("losses"))
def test_values_and_gradients_are_pytorchs(name):
  actual, expected = recorded_losses()[name], golden.load("losses")[name]
  assert actual.keys() == expected.keys()
  if "place" in expected:
    golden.assert_same_places(actual["place"], expected["place"])
  for key, value in expected.items():
    np.testing.assert_allclose(
      actual[key], value, rtol=1e-5, atol=1e-5 * np.abs(value).max()
    )


def test_charbonnier_is_smooth_where_images_agree():
  image = jnp.ones((2, 2, 3))
  value, gradient = jax.value_and_grad(losses.charbonnier_loss)(image, image)
  np.testing.assert_allclose(value, 1e-6, rtol=1e-3)
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
  "loss", [losses.l1_loss, losses.mse_loss, losses.charbonnier_loss]
)
def test_half_precision_is_averaged_in_float32(loss):
  sr = jnp.full((64, 64, 3), 1.0, jnp.bfloat16)
  hr = jnp.full((64, 64, 3), 0.75, jnp.bfloat16)
  value = loss(sr, hr)
  assert value.dtype == jnp.float32
  exact = loss(sr.astype(jnp.float32), hr.astype(jnp.float32))
  np.testing.assert_array_equal(value, exact)


@pytest.mark.parametrize(
  "loss", [losses.l1_loss, losses.mse_loss, losses.charbonnier_loss]
)
def test_pixel_losses_do_not_broadcast(loss):
  with pytest.raises(ValueError, match=r"\(4, 4, 3\) and \(1, 4, 3\)"):
    loss(jnp.zeros((4, 4, 3)), jnp.zeros((1, 4, 3)))


def test_charbonnier_epsilon_must_be_positive():
  with pytest.raises(ValueError, match="epsilon must be > 0, got 0"):
    losses.charbonnier_loss(jnp.zeros(2), jnp.zeros(2), epsilon=0)


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_perceptual_loss_adds_weighted_layers(criterion, power):
  sr = {"a": rand(2, 4, 4, 8), "b": rand(2, 2, 2, 16, seed=1)}
  hr = {"a": rand(2, 4, 4, 8, seed=2), "b": rand(2, 2, 2, 16, seed=3)}
  weights = {"a": 0.1, "b": 2.0}
  expected = sum(
    w * np.mean(np.abs(sr[n] - hr[n]) ** power) for n, w in weights.items()
  )
  actual = losses.perceptual_loss(
    sr, hr, layer_weights=weights, criterion=criterion
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  # An image differs from another one, and not from itself.
  assert losses.perceptual_loss(sr, hr) > 0.5
  assert losses.perceptual_loss(sr, sr) == 0


def test_perceptual_loss_refuses_other_layers():
  sr = {"conv5_4": jnp.zeros(3)}
  with pytest.raises(ValueError, match="criterion must be one of"):
    losses.perceptual_loss(sr, sr, criterion="huber")
  with pytest.raises(ValueError, match="layers must be the same"):
    losses.perceptual_loss(sr, {"relu5_4": jnp.zeros(3)})
  with pytest.raises(ValueError, match="layers must be the same"):
    losses.perceptual_loss(sr, sr, layer_weights={"conv1_1": 1.0})
  with pytest.raises(ValueError, match="at least one layer"):
    losses.perceptual_loss({}, {})
  with pytest.raises(ValueError, match="same shape"):
    losses.perceptual_loss(sr, {"conv5_4": jnp.zeros(4)})


def test_relativistic_losses_mirror_each_other():
  real, fake = rand(5), rand(5, seed=1)
  np.testing.assert_allclose(
    losses.relativistic_generator_loss(real, fake),
    losses.relativistic_discriminator_loss(fake, real),
    rtol=1e-5,
  )
  # Only differences count.
  np.testing.assert_allclose(
    losses.relativistic_discriminator_loss(real + 3, fake + 3),
    losses.relativistic_discriminator_loss(real, fake),
    rtol=1e-5,
  )


def test_wasserstein_losses_by_hand():
  real, fake = jnp.array([1.0, 3.0]), jnp.array([-1.0, 0.0, 4.0, 1.0])
  assert losses.wasserstein_critic_loss(real, fake) == -1
  assert losses.wasserstein_generator_loss(fake) == -1


GAN_LOSSES = {
  "relativistic_generator": losses.relativistic_generator_loss,
  "relativistic_discriminator": losses.relativistic_discriminator_loss,
  "vanilla_discriminator": losses.vanilla_discriminator_loss,
  "wasserstein_critic": losses.wasserstein_critic_loss,
  "vanilla_generator": lambda _, f: losses.vanilla_generator_loss(f),
  "wasserstein_generator": lambda _, f: losses.wasserstein_generator_loss(f),
}


@pytest.mark.parametrize("name", GAN_LOSSES)
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_logits_stay_finite(name, sign):
  real = sign * jnp.array([1e4, 9e3, -1e4])
  value, gradients = jax.value_and_grad(GAN_LOSSES[name], argnums=(0, 1))(
    real, -real
  )
  assert jnp.isfinite(value)
  assert all(jnp.all(jnp.isfinite(g)) for g in gradients)
  # The loss a discriminator suffers grows with the logit, never saturates.
  assert jnp.abs(gradients[1]).max() > 0.1


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_empty_and_half_precision_logits(name):
  loss = GAN_LOSSES[name]
  logits = jnp.array([0.5, -1.5], jnp.bfloat16)
  assert loss(logits, logits).dtype == jnp.float32
  with pytest.raises(ValueError, match=r"got bfloat16\[0\]: it is empty"):
    loss(logits[:0], logits[:0])


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_sharded_batches_have_global_means(name):
  loss = jax.value_and_grad(GAN_LOSSES[name], argnums=(0, 1))
  # Devices' means differ, so a mean per device would show.
  real = rand(16) + np.linspace(-4, 4, 16, dtype=np.float32)
  fake = rand(16, seed=1) - np.linspace(-3, 5, 16, dtype=np.float32)
  expected, expected_gradients = loss(real, fake)
  mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  actual, gradients = jax.jit(loss, in_shardings=(sharding, sharding))(
    jax.device_put(real, sharding), jax.device_put(fake, sharding)
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  for x, y in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_gradient_penalty_of_a_unit_slope_is_zero():
  real, fake = rand(3, 2, 2, 1), rand(3, 2, 2, 1, seed=1)
  penalty = losses.gradient_penalty(
    jax.random.key(0), lambda x: x.sum((1, 2, 3)) / 2, real, fake
  )
  np.testing.assert_allclose(penalty, 0, atol=1e-10)


def test_gradient_penalty_of_a_flat_critic_is_differentiable():
  image = jnp.ones((2, 3, 3, 1))

  def penalty(slope):
    return losses.gradient_penalty(
      jax.random.key(0), lambda x: slope * x.sum((1, 2, 3)), image, image
    )

  value, gradient = jax.value_and_grad(penalty)(0.0)
  assert math.isclose(value, 1, rel_tol=1e-5)
  assert jnp.isfinite(gradient)


def test_gradient_penalty_needs_pairs():
  image = jnp.ones((2, 3, 3, 1))
  with pytest.raises(ValueError, match=r"\(2, 3, 3, 1\) and \(1, 3, 3, 1\)"):
    losses.gradient_penalty(jax.random.key(0), jnp.sum, image, image[:1])
