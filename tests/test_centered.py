"""Networks of images in [-1, 1]: their files, and what they make of borders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax import export
from esrgan_jax.models import reference, registry
from esrgan_jax.models.centered import CenteredRRDBNet
from esrgan_jax.weights import find
from esrgan_jax.weights.dialects import centered, rrdb
from esrgan_jax.weights.dialects.protocol import UnsupportedWeightsError
from esrgan_jax.weights.files import read_weights, write_weights
from tests import golden
from tests import weight_builders as build

FIELDS = golden.generator_config(4, 1)
NETWORK = {"architecture": "CenteredRRDBNet", **FIELDS}


def theirs(config=FIELDS):
  """A state dict by that program's names, of images in [-1, 1]."""
  state = {}
  for name, shape in rrdb.shapes(config).items():
    layer, kind = name.rsplit(".", 1)
    layer = {
      "conv_first": "initial",
      "conv_body": "conv",
      "conv_hr": "final.0",
      "conv_last": "final.2",
    }.get(layer, layer)
    if layer.startswith("body."):
      layer = layer.replace("body.", "residuals.", 1) + ".cnn"
    elif layer.startswith("conv_up"):
      layer = f"upsamples.{int(layer[-1]) - 1}.conv"
    state[f"{layer}.{kind}"] = golden.draw(f"centered {name}", *shape) / 4
  return state


def checkpoint(state):
  """What surrounds it in `gen.pth.tar`."""
  group = {"lr": "1e-4", "betas": (0, 1), "params": list(range(3))}
  optimizer = {"state": {}, "param_groups": [group]}
  return build.zip_pth(
    state, lambda tree: {"state_dict": tree, "optimizer": optimizer}
  )


def as_it_is_there(state, image):
  """The textbook's arithmetic: in and out as that program has it."""
  named = {
    rrdb_name: state[name]
    for name, rrdb_name in zip(
      state, rrdb.shapes(golden.generator_config(4, 1)), strict=True
    )
  }
  params = rrdb.from_state_dict(named).params
  run = jax.jit(
    lambda x: reference.reconstruct(params, reference.features(params, x))
  )
  return np.asarray(run(2 * image - 1)) * 0.5 + 0.5


def test_a_checkpoint_is_read_and_does_what_it_did(tmp_path):
  state, image = theirs(), golden.image("centered", 1, 6, 5, 3)
  path = tmp_path / "gen.pth.tar"
  path.write_bytes(checkpoint(state))
  found = find.find_model(path)
  assert found.weights.config == NETWORK
  net = registry.make_generator(**found.weights.config)
  sr = jax.jit(net.apply)({"params": found.weights.params}, image)
  expected = as_it_is_there(state, image)
  np.testing.assert_allclose(sr, expected, rtol=0, atol=1e-5)
  # An RRDBNet of the same weights, folded as well as can be, has other edges.
  params = dict(found.weights.params)
  kernel, bias = params["conv_first"].values()
  shifted = bias - kernel.sum((0, 1, 2)) / 2
  params["conv_first"] = {"kernel": kernel, "bias": shifted}
  kernel, bias = params["conv_last"].values()
  params["conv_last"] = {"kernel": kernel, "bias": bias + np.float32(0.5)}
  folded = registry.make_generator(**FIELDS)
  other = jax.jit(folded.apply)({"params": params}, image)
  assert np.abs(other - expected).max() > 1e-3
  # And back, bit for bit.
  again = centered.to_state_dict(found.weights.params)
  assert again.keys() == state.keys()
  for name, value in state.items():
    np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_what_is_trained_here_is_written_and_read(scale, tmp_path):
  fields = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": scale}
  net = CenteredRRDBNet(**fields)
  side = net.size_multiple
  shapes = jax.eval_shape(
    net.init, jax.random.key(0), jnp.ones((side, side, 3))
  )
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)[
    "params"
  ]
  config = {"architecture": "CenteredRRDBNet", **fields}
  path = write_weights(tmp_path / "a.safetensors", params, config)
  found = find.find_model(path).weights
  assert {key: found.config[key] for key in config} == config
  jax.tree.map(np.testing.assert_array_equal, found.params, params)


@pytest.mark.slow
def test_an_image_in_a_window_has_its_own_border():
  net = CenteredRRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  image = golden.image("window", 1, 5, 4, 3)
  window = np.ones((1, 9, 8, 3), np.float32)
  window[:, :5, :4] = image
  valid = np.zeros((1, 9, 8, 1), np.float32)
  valid[:, :5, :4] = 1
  params = jax.jit(net.init)(jax.random.key(0), image)
  params = jax.tree.map(lambda x: 8 * x, params)
  alone = jax.jit(net.apply)(params, image)
  within = jax.jit(net.apply)(params, window, valid)[:, :20, :16]
  assert np.ptp(alone) > 1e-3
  np.testing.assert_allclose(within, alone, atol=1e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s.pop("conv.bias"), r"1 missing \(conv.bias"),
    (lambda s: s.update({"x.weight": np.ones(1)}), "which has no x.weight"),
    (lambda s: s.update({"conv_hr.bias": np.ones(4)}), "has no conv_hr.bias"),
    (
      lambda s: s.update({"residuals.00.rdb1.conv1.cnn.bias": np.ones(2)}),
      "both stand for",
    ),
    (
      lambda s: s.update({"final.2.bias": np.float32([1, np.nan, 1])}),
      "final.2.bias has 1 values that are NaN or infinite",
    ),
    (
      lambda s: s.update({"initial.weight": s["initial.weight"] + 3e38}),
      "^initial.weight has weights too large",
    ),
    (lambda s: s.pop("upsamples.0.conv.weight"), "upsamples.0.conv.w"),
    (lambda s: s.pop("initial.weight"), "without initial.weight"),
  ],
)
def test_damage_is_named(change, message):
  state = theirs()
  change(state)
  with (
    np.errstate(over="ignore"),
    pytest.raises(UnsupportedWeightsError, match=message),
  ):
    centered.from_state_dict(state)


def test_another_scale_and_a_critic_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"scale 2 was asked for, .* of a x4"):
    centered.from_state_dict(theirs(), scale=2)
  path = tmp_path / "disc.pth.tar"
  critic = {f"blocks.{i}.cnn.weight": np.ones((2, 2, 3, 3)) for i in range(8)}
  path.write_bytes(checkpoint(critic))
  with pytest.raises(UnsupportedWeightsError, match=r"a critic \(disc.pth"):
    read_weights(path)
  with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.pth.tar"):
    find.find_model("nowhere.pth.tar")


def test_what_was_exported_to_ncnn_is_no_rrdbnet(tmp_path):
  path = tmp_path / "model.param"
  shift = "BinaryOp shift 1 1 data a 0=0 1=1 2=-5.000000e-01"
  path.write_text(f"7767517\n2 2\nInput data 0 1 data\n{shift}\n")
  path.with_suffix(".bin").write_bytes(b"")
  with pytest.raises(UnsupportedWeightsError, match="adds a number to its im"):
    read_weights(path)


@pytest.mark.torch
def test_what_that_program_saves(tmp_path):
  import torch

  from tests.oracles.torch_centered import Generator

  torch.manual_seed(0)
  net = Generator(feat=8, blocks=3, grow=4)
  adam = torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.0, 0.9))
  image = golden.image("torch centered", 2, 12, 9, 3)
  images = torch.tensor(image).permute(0, 3, 1, 2) * 2 - 1
  for _ in range(3):
    adam.zero_grad()
    net(images).square().mean().backward()
    adam.step()
  state = {"state_dict": net.state_dict(), "optimizer": adam.state_dict()}
  torch.save(state, tmp_path / "gen.pth.tar")
  with torch.inference_mode():
    expected = (net(images) * 0.5 + 0.5).permute(0, 2, 3, 1).numpy()
  weights = read_weights(tmp_path / "gen.pth.tar")
  sr = registry.make_generator(**weights.config).apply(
    {"params": weights.params}, jnp.asarray(image)
  )
  np.testing.assert_allclose(sr, expected, atol=1e-4)
  # And what is written is read by it, bit for bit.
  path = tmp_path / "new.pth.tar"
  export.write(path, weights)
  assert find.find_model(path).weights.config == weights.config
  again = torch.load(path)["state_dict"]
  other = Generator(feat=8, blocks=3, grow=4)
  other.load_state_dict(again)
  for name, value in net.state_dict().items():
    assert torch.equal(again[name], value), name
