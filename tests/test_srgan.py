"""SRGAN's phases: losses, a step beside PyTorch's, and the card."""

import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax import losses
from esrgan_jax.models import registry
from esrgan_jax.models.srgan_discriminator import SRGANDiscriminator
from esrgan_jax.models.vgg import vgg19_from_torchvision
from esrgan_jax.steps import gan
from esrgan_jax.training import config as config_lib
from esrgan_jax.weights import selection
from tests import golden
from tests.training_runs import ROOT

CARD = ROOT / "configs/srgan.py"
SMALL = ROOT / "configs/srgan_small.py"


@pytest.mark.parametrize("path", [CARD, SMALL], ids=lambda p: p.stem)
def test_the_cards_hold_the_published_recipe(path):
  config = config_lib.complete(config_lib.read_config(path))
  network = registry.make_generator(**config.generator, scale=config.scale)
  assert network.has_norm
  psnr, phase = config.phases.psnr, config.phases.gan
  assert psnr.pixel_loss == "mse"
  weights = (
    phase.pixel_weight,
    phase.perceptual_weight,
    phase.adversarial_weight,
  )
  assert phase.adversarial == "vanilla"
  if path == CARD:  # The other one's losses are the quickstart's.
    assert weights == (0, 0.006, 1e-3)
    assert config.perceptual.criterion == "l2"
    assert (network.num_block, network.num_feat) == (16, 64)
    assert (config.batch_size, config.patch_size) == (128, 96)
    assert psnr.learning_rate == phase.learning_rate == 1e-4
    assert config.perceptual.layers.to_dict() == {"relu5_4": 1.0}


def test_the_pages_flags_are_keys_that_there_are():
  page = (ROOT / "docs/srgan.md").read_text()
  flags = re.findall(r"--config\.([\w.]+)=([^\s`]+)", page)
  assert {"phases.psnr.num_train_steps", "scale"} < dict(flags).keys()
  config = config_lib.complete(config_lib.read_config(CARD))
  config_lib.override(config, flags)
  config_lib.complete(config)
  for line in re.findall(r"^python -m esrgan_jax\.main (.*)$", page, re.M):
    card, workdir = shlex.split(line)
    assert (ROOT / card.removeprefix("--config=")).is_file()
    assert workdir.startswith("--workdir=")


@pytest.mark.parametrize(
  "flags",
  [
    {"perceptual.layers": "{'relu2_2': 1.0}"},
    {
      "phases.gan.perceptual_weight": "1.0",
      "perceptual.layers": "{'relu5_4': 0.00615}",
    },
    {"phases.gan.perceptual_weight": "1.0"},
    {
      "generator.variant": "msrresnet",
      "discriminator.architecture": "VGGStyleDiscriminator",
    },
  ],
)
def test_what_the_card_says_of_other_forms(flags):
  text = CARD.read_text()
  config = config_lib.read_config(CARD)
  config = config_lib.complete(config)
  for key, value in flags.items():
    assert f"--config.{key}=" in text
    assert value in text
  config_lib.override(config, list(flags.items()))
  registry.make_generator(**config.generator, scale=config.scale)
  registry.make_discriminator(
    **config.discriminator, input_size=config.patch_size
  )


def test_features_over_12_75_are_a_layers_weight():
  sr, hr = (golden.draw(name, 2, 3, 4, 8) for name in ("sr22", "hr22"))
  rescaled = np.square(sr / 12.75 - hr / 12.75, dtype=np.float64).mean()
  loss = losses.perceptual_loss(
    {"relu2_2": jnp.asarray(sr)},
    {"relu2_2": jnp.asarray(hr)},
    layer_weights={"relu2_2": 12.75**-2},
    criterion="l2",
  )
  assert float(loss) == pytest.approx(rescaled, rel=1e-5)


@pytest.mark.torch
def test_a_step_is_pytorchs():
  """BatchNorm in both networks, features after the activation, by MSE."""
  from tests.oracles import torch_srgan, torch_steps

  state = golden.srgan_state(
    golden.srgan_shapes(golden.load("srgan")["lornatang 4"])
  )
  d_state = golden.srgan_state(
    golden.srgan_shapes(golden.load("srgan_discriminator")["16"])
  )
  hr = golden.image("srgan step hr", 3, 16, 16, 3)
  batch = {"lr": golden.image("srgan step lr", 3, 4, 4, 3), "hr": hr}
  weights = {
    "pixel_weight": 0.0,
    "perceptual_weight": 0.006,
    "adversarial_weight": 1e-3,
  }
  layers = {"relu2_2": 1.0}
  net = torch_srgan.Lornatang()
  critic = torch_srgan.Discriminator(1, 16, 1)
  wanted, d_wanted, stats, metrics = torch_steps.gan_gradients(
    torch_steps.with_state(net, state),
    torch_steps.with_state(critic, d_state),
    batch,
    vgg_state=golden.vgg_state(),
    layer_weights=layers,
    criterion="l2",
    adversarial="vanilla",
    **weights,
  )
  found = selection.find_network(state)
  d_params, d_stats = golden.srgan_discriminator_trees(d_state)
  vgg = vgg19_from_torchvision(golden.vgg_state())
  grads, d_grads, new_d, new, ours = jax.jit(
    lambda params, d_params: gan.gan_gradients(
      params,
      d_params,
      d_stats,
      batch,
      generator=registry.make_generator(**found.config),
      discriminator=SRGANDiscriminator(1, 16, 1),
      collections=found.collections,
      perceptual=gan.vgg_perceptual(vgg, layer_weights=layers, criterion="l2"),
      adversarial="vanilla",
      **weights,
    )
  )(found.params, d_params)
  for key in ("g/loss", "d/loss"):
    assert float(ours[key]) == pytest.approx(metrics[key], rel=1e-4)
  wanted = state | torch_steps.to_numpy(wanted)
  d_wanted = d_state | torch_steps.to_numpy(d_wanted)
  for tree, other in (
    (grads, selection.find_network(wanted).params),
    (d_grads, golden.srgan_discriminator_trees(d_wanted)[0]),
  ):
    for (path, x), y in zip(
      jax.tree_util.tree_leaves_with_path(tree),
      jax.tree.leaves(other),
      strict=True,
    ):
      error, norm = np.linalg.norm(x - y), np.linalg.norm(y)
      assert error <= 1e-4 * norm + 1e-8, jax.tree_util.keystr(path)
  means = golden.srgan_discriminator_trees(
    d_state | torch_steps.to_numpy(stats)
  )[1]
  for name, leaf in new_d.items():
    np.testing.assert_allclose(leaf["mean"], means[name]["mean"], atol=1e-5)
  old = found.collections["batch_stats"]["bn_body"]["mean"]
  assert np.abs(new["batch_stats"]["bn_body"]["mean"] - old).max() > 1e-3
