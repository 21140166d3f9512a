"""Critics whose gradient is penalised, their losses, and configs/wgan_gp.py."""

import functools
import re
import shlex

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax import losses
from esrgan_jax.models.discriminators import VGGStyleDiscriminator
from esrgan_jax.models.srgan_discriminator import SRGANDiscriminator
from esrgan_jax.steps import gan
from esrgan_jax.training import config as config_lib
from tests import golden
from tests.training_runs import ROOT

CARD = ROOT / "configs/wgan_gp.py"
SMALL = ROOT / "configs/wgan_gp_small.py"


def scores():
  return golden.draw("real scores", 6) * 2, golden.draw("fake scores", 5) * 2


def test_losses_and_their_gradients_are_those_of_the_papers():
  real, fake = (x.astype(np.float64) for x in scores())
  cases = {
    "lsgan": {
      "d": ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
      "g": ((fake - 1) ** 2).mean() / 2,
      "d real": (real - 1) / 6,
      "d fake": fake / 5,
      "g fake": (fake - 1) / 5,
    },
    "hinge": {
      "d": np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean(),
      "g": -fake.mean(),
      "d real": (real < 1) / -6,
      "d fake": (fake > -1) / 5,
      "g fake": np.full(5, -1 / 5),
    },
    "wgan-gp": {
      "d": fake.mean() - real.mean(),
      "g": -fake.mean(),
      "d real": np.full(6, -1 / 6),
      "d fake": np.full(5, 1 / 5),
      "g fake": np.full(5, -1 / 5),
    },
  }
  for name, expected in cases.items():
    loss = losses.find_adversarial_loss(name)
    options = {k: v for k, v in loss.options.items() if k != "penalty_weight"}
    d, (d_real, d_fake) = jax.value_and_grad(loss.discriminator, (0, 1))(
      *map(jnp.float32, (real, fake)), **options
    )
    g, (none, g_fake) = jax.value_and_grad(loss.generator, (0, 1))(
      *map(jnp.float32, (real, fake)), **options
    )
    found = {"d": d, "g": g, "d real": d_real, "d fake": d_fake}
    for key, value in (found | {"g fake": g_fake}).items():
      np.testing.assert_allclose(
        value, expected[key], rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}"
      )
    # The generator has no say in what real images are like.
    np.testing.assert_array_equal(none, 0)
  for loss, arguments in (
    (losses.least_squares_discriminator_loss, (real, fake)),
    (losses.least_squares_generator_loss, (fake,)),
  ):
    arguments = [jnp.float32(x) for x in arguments]
    half, whole = loss(*arguments), loss(*arguments, halve=False)
    np.testing.assert_allclose(whole, 2 * half, rtol=1e-6)


def test_a_hinge_is_flat_at_its_corner():
  # At the corner, PyTorch's ReLU has a derivative of 0.
  gradient = jax.grad(losses.hinge_discriminator_loss)(
    jnp.ones(2), jnp.zeros(2)
  )
  np.testing.assert_array_equal(gradient, 0)


def test_the_penalty_of_a_normalised_critic_by_finite_differences():
  real, fake, weight = (
    golden.draw(f"penalty {n}", *s)
    for n, s in (
      ("real", (2, 3, 3, 2)),
      ("fake", (2, 3, 3, 2)),
      ("weight", (2, 3)),
    )
  )

  def critic(weight, x):
    x = jnp.tanh(x @ weight)
    mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    return (((x - mean) / jnp.sqrt(var + 1e-5)) ** 3).sum((1, 2, 3))

  key = jax.random.key(1)
  place = np.asarray(jax.random.uniform(key, (2, 1, 1, 1)), np.float64)

  def score(weight, x):
    x = np.tanh(x @ weight)
    mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    return (((x - mean) / np.sqrt(var + 1e-5)) ** 3).sum((1, 2, 3))

  def by_hand(weight, step=1e-5):
    between = place * real + (1 - place) * fake
    slopes = np.empty(between.shape)
    for index in np.ndindex(*between.shape[1:]):
      change = np.zeros(between.shape[1:])
      change[index] = step
      slopes[:, *index] = (
        score(weight, between + change) - score(weight, between - change)
      ) / (2 * step)
    norms = np.sqrt((slopes**2).sum((1, 2, 3)))
    return ((norms - 1) ** 2).mean()

  value, gradient = jax.jit(
    jax.value_and_grad(
      lambda w: losses.gradient_penalty(
        key, functools.partial(critic, w), real, fake
      )
    )
  )(weight)
  weight = weight.astype(np.float64)
  np.testing.assert_allclose(value, by_hand(weight), rtol=1e-4)
  for index in np.ndindex(*weight.shape):
    change = np.zeros(weight.shape)
    change[index] = 1e-4
    slope = (by_hand(weight + change) - by_hand(weight - change)) / 2e-4
    np.testing.assert_allclose(
      gradient[index], slope, rtol=2e-3, atol=1e-4 * np.abs(gradient).max()
    )


@pytest.mark.torch
@pytest.mark.parametrize("norm", ["none", "layer", "instance"])
def test_the_cards_critic_and_its_penalty_are_pytorchs(norm):
  from tests.oracles import torch_srgan, torch_steps

  layers = {"none": "none", "layer": "ln", "instance": "in"}
  net = torch_srgan.Discriminator(2, 32, 3, norm=layers[norm])
  state = golden.srgan_state(
    {name: tuple(x.shape) for name, x in net.state_dict().items()}
  )
  net, key = torch_steps.with_state(net, state), golden.penalty_key()
  real, fake = (golden.image(f"critic {n}", 3, 32, 32, 3) for n in "ab")
  place = np.array(jax.random.uniform(key, (3, 1, 1, 1)))
  penalty = torch_steps.gradient_penalty(
    net, *map(torch_steps.to_torch, (real, fake, place))
  )
  scores = (net(torch_steps.to_torch(x)).mean() for x in (fake, real))
  (next(scores) - next(scores) + 10 * penalty).backward()
  grads = {name: x.grad for name, x in net.named_parameters()}
  wanted, _ = golden.srgan_discriminator_trees(torch_steps.to_numpy(grads))
  model = SRGANDiscriminator(2, pool=3, norm=norm)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def run(params):
    critic = functools.partial(model.apply, {"params": params}, train=True)
    found = losses.gradient_penalty(key, critic, real, fake)
    loss = losses.wasserstein_critic_loss(critic(real), critic(fake))
    return loss + 10 * found, found

  params, _ = golden.srgan_discriminator_trees(state)
  found, value = run(params)
  assert float(value) == pytest.approx(penalty.item(), rel=1e-4)
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(found),
    jax.tree.leaves(wanted),
    strict=True,
  ):
    error = np.linalg.norm(x - y)
    # Of the last bias, it is 0 but for rounding.
    assert error <= 1e-4 * np.linalg.norm(y) + 1e-6, jax.tree_util.keystr(path)


class _Repeat(nn.Module):
  scale: int = 4

  @nn.compact
  def __call__(self, lr):
    gain = self.param("gain", nn.initializers.ones, (1, 1, 1, 3))
    return (lr * gain).repeat(4, axis=1).repeat(4, axis=2)


class _Mixing(nn.Module):
  """A critic of the user's own, with a BatchNorm as its call has it."""

  running: bool

  @nn.compact
  def __call__(self, image, *, train):
    norm = nn.BatchNorm(use_fast_variance=False)
    running = self.running or not train
    x = norm(nn.Dense(2)(image), use_running_average=running)
    return x.mean((1, 2, 3))


def _batch(num=4, side=16):
  hr = golden.image("wgan hr", num, side, side, 3)
  # Images unlike each other: what mixes them would show.
  hr = hr * np.linspace(0.2, 1, num, dtype=np.float32).reshape(num, 1, 1, 1)
  return {"lr": hr[:, ::4, ::4], "hr": hr}


def _gradients(critic, **options):
  def run(batch):
    key = jax.random.key(0)
    params = _Repeat().init(key, batch["lr"])["params"]
    variables = critic.init(key, batch["hr"], train=False)
    return gan.gan_gradients(
      params,
      variables["params"],
      variables.get("batch_stats", {}),
      batch,
      generator=_Repeat(),
      discriminator=critic,
      key=key,
      **options,
    )

  return jax.eval_shape(run, _batch())


@pytest.mark.parametrize(
  "critic",
  [
    VGGStyleDiscriminator(2, input_size=16),
    SRGANDiscriminator(2, input_size=16),
    _Mixing(False),
  ],
  ids=["ESRGAN", "SRGAN", "own"],
)
def test_no_norm_that_mixes_a_batch_under_a_penalty(critic):
  with pytest.raises(ValueError, match=r"BatchNorm .* see each other: choose"):
    _gradients(critic, adversarial="wgan-gp")
  _gradients(critic, adversarial="hinge")


def test_a_map_of_one_position_has_no_instance_norm():
  critic = SRGANDiscriminator(2, input_size=16, norm="instance")
  with pytest.raises(ValueError, match="map at 7 has one position"):
    _gradients(critic, adversarial="wgan-gp")


def test_a_norm_of_running_statistics_mixes_nothing():
  metrics = _gradients(_Mixing(True), adversarial="wgan-gp")[-1]
  assert "d/penalty" in metrics


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "instance"])
def test_images_do_not_see_each_other(norm):
  critic = VGGStyleDiscriminator(2, input_size=12, norm=norm)
  images = _batch(3, side=12)["hr"]

  @jax.jit
  def run(images):
    variables = critic.init(jax.random.key(0), images, train=False)
    score = functools.partial(critic.apply, variables, train=True)
    return score(images), jnp.concatenate([score(x[None]) for x in images])

  together, alone = run(images)
  np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
  assert np.ptp(together) > 0


# --- The card.


@pytest.mark.parametrize("path", [CARD, SMALL], ids=lambda p: p.stem)
def test_the_cards_are_the_recipe(path):
  config = config_lib.complete(config_lib.read_config(path))
  section = config.phases.gan
  recipe = {
    "b1": 0.0,
    "b2": 0.9,
    "adversarial": "wgan-gp",
    "adversarial_weight": 5e-3,
    "penalty_weight": 10.0,
    "perceptual_weight": 1.0,
    "pixel_loss": "l1",
  }
  if path == CARD:  # The other one's L1, layers and rates are the quickstart's.
    rates = {"learning_rate": 1e-4, "d_learning_rate": 1e-4}
    recipe |= {"pixel_weight": 1e-2, **rates}
    assert config.perceptual.criterion == "l2"
  assert {key: section[key] for key in recipe} == recipe
  assert section.schedule.to_dict() == {"name": "constant"}
  critic = config.discriminator
  assert (critic.architecture, critic.norm) == ("SRGANDiscriminator", "none")
  if path == CARD:
    assert config.perceptual.layers.to_dict() == {"conv5_4": 1.0}
    assert (config.batch_size, config.patch_size) == (16, 96)
  config_lib.override(config, [("discriminator.norm", "batch")])
  with pytest.raises(config_lib.ConfigError, match="layer, instance or none"):
    config_lib.complete(config)


def test_the_pages_commands_are_of_keys_that_there_are():
  page = (ROOT / "docs/wgan_gp.md").read_text()
  lines = re.findall(r"^python -m esrgan_jax\.main (.*)$", page, re.MULTILINE)
  assert len(lines) == 3
  for line in lines:
    flags = [flag.removeprefix("--") for flag in shlex.split(line)]
    flags = [flag.split("=", 1) for flag in flags]
    config = config_lib.read_config(ROOT / dict(flags)["config"])
    given = [(k[7:], v) for k, v in flags if k.startswith("config.")]
    config_lib.override(config, given)
    assert config_lib.complete(config).phases.gan.adversarial == "wgan-gp"
  keys = set(re.findall(r"`--config\.([\w.]+)=", page))
  sections = config_lib.plain(config)
  for key in keys:
    found = sections
    for part in key.split("."):
      found = found[part]
