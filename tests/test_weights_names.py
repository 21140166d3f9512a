"""Dialects, inference of the configuration, and errors that name the cause."""

import re

import numpy as np
import pytest

from esrgan_jax.models import registry
from esrgan_jax.weights import selection
from esrgan_jax.weights.dialects import DIALECTS
from esrgan_jax.weights.dialects import rrdb as names
from esrgan_jax.weights.dialects.protocol import (
  UnsupportedWeightsError,
  UntoldScaleError,
)
from tests import weight_builders as build


def _equal(a, b):
  assert list(a) == list(b)
  for key in a:
    assert a[key].dtype == b[key].dtype == np.float32
    np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("dialect", [dict, build.authors, build.oldest])
@pytest.mark.parametrize("prefix", ["", "module.", "generator.", "_orig_mod."])
def test_dialects_round_trip_bit_exactly(dialect, prefix):
  state = build.random_state()
  renamed = {prefix + k: v for k, v in dialect(state).items()}
  found = selection.find_network(renamed)
  assert found.config == build.NETWORK
  assert found.notes == ()
  again = names.to_state_dict(found.params)
  _equal(again, state)
  assert all(v.flags.c_contiguous for v in again.values())


def test_tree_is_hwio_with_blocks_stacked():
  state = build.random_state()
  params = selection.find_network(state).params
  kernel = params["body"]["rdb2"]["conv3"]["kernel"]
  assert kernel.shape == (2, 3, 3, 6 + 2 * 4, 4)
  weight = state["body.1.rdb2.conv3.weight"]
  assert kernel[1, 0, 2, 5, 3] == weight[3, 5, 0, 2]
  assert params["conv_first"]["kernel"].shape == (3, 3, 3, 6)
  assert params["body"]["rdb1"]["conv5"]["bias"].shape == (2, 6)


@pytest.mark.parametrize(
  ("scale", "unshuffle"),
  [(1, 1), (1, 4), (2, 2), (4, 1), (8, 1), (16, 1)],
)
@pytest.mark.parametrize("dialect", [dict, build.authors, build.oldest])
def test_scale_is_inferred(dialect, scale, unshuffle):
  config = {"scale": scale, "unshuffle": unshuffle, "num_block": 1}
  state = dialect(build.random_state(config))
  assert selection.find_network(state).config == {**build.NETWORK, **config}


def test_other_sizes_are_inferred():
  config = {"num_in_ch": 1, "num_out_ch": 2, "num_block": 3, "num_feat": 5}
  found = selection.find_network(build.random_state(config))
  assert found.config == {**build.NETWORK, **config}


@pytest.mark.parametrize("dialect", [dict, build.authors, build.oldest])
def test_x3_and_plain_x2_must_be_told(dialect):
  state = dialect(build.random_state({"scale": 3}))
  with pytest.raises(UntoldScaleError, match="--model-scale 2 or --model-sc"):
    selection.find_network(state)
  for scale in (2, 3):
    found = selection.find_network(state, scale=scale).config
    assert (found["scale"], found["unshuffle"]) == (scale, 1)
  with pytest.raises(ValueError, match=r"scale 4 .* x2 or x3 network"):
    selection.find_network(state, scale=4)
  # With unshuffled inputs, or more of them, there is no x3.
  for config in ({"scale": 1, "unshuffle": 2}, {"scale": 4}, {"scale": 8}):
    found = selection.find_network(dialect(build.random_state(config)))
    assert found.config["scale"] == config["scale"]


@pytest.mark.parametrize(
  ("inputs", "outputs", "config"),
  [
    (1, 1, {}),
    (4, 4, {}),
    (4, 3, {}),
    (3, 1, {}),
    (1, 3, {}),
    (1, 1, {"scale": 2, "unshuffle": 2}),
    (4, 4, {"scale": 2, "unshuffle": 2}),
    (4, 3, {"scale": 2, "unshuffle": 2}),
    (3, 1, {"scale": 2, "unshuffle": 2}),
    (3, 4, {"scale": 1, "unshuffle": 4}),
    (4, 4, {"scale": 1, "unshuffle": 4}),
    (1, 1, {"scale": 1, "unshuffle": 4}),
    (3, 1, {"scale": 8}),
  ],
)
@pytest.mark.parametrize("dialect", [dict, build.authors, build.oldest])
def test_grey_and_four_channels_are_told_by_shapes(
  inputs, outputs, config, dialect
):
  config = {"num_in_ch": inputs, "num_out_ch": outputs, **config}
  state = dialect(build.random_state(config))
  assert selection.find_network(state).config == {**build.NETWORK, **config}


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_contradicting_scale_raises(scale):
  with pytest.raises(ValueError, match=f"scale {scale}.* x4 network"):
    selection.find_network(build.random_state(), scale=scale)


def test_given_unshuffle_wins():
  state = build.random_state({"num_in_ch": 12})
  assert selection.find_network(state).config["unshuffle"] == 2
  found = selection.find_network(state, unshuffle=1).config
  assert (found["num_in_ch"], found["unshuffle"]) == (12, 1)
  with pytest.raises(ValueError, match="12 inputs"):
    selection.find_network(state, unshuffle=5)


def test_a_scale_tells_the_unshuffle():
  """Of 12 channels, x4 has two upsamplings: nothing was unshuffled."""
  state = build.random_state({"num_in_ch": 12})
  found = selection.find_network(state, scale=4).config
  assert (found["num_in_ch"], found["unshuffle"], found["scale"]) == (12, 1, 4)
  assert selection.find_network(state, scale=2).config["unshuffle"] == 2


@pytest.mark.parametrize(
  "wrap", ["params", "params_ema", "state_dict", "model"]
)
def test_wrapping_dicts_are_opened(wrap):
  state = build.random_state()
  found = selection.find_network({wrap: state, "iter": 5, "note": "text"})
  assert found.notes == ()
  _equal(names.to_state_dict(found.params), state)


def test_moving_average_is_preferred_and_said():
  plain, average = build.random_state(seed=1), build.random_state(seed=2)
  found = selection.find_network({"params": plain, "params_ema": average})
  _equal(names.to_state_dict(found.params), average)
  assert len(found.notes) == 1
  assert "took params_ema (the moving average), left params" in found.notes[0]


def test_generator_is_found_next_to_its_discriminator():
  state = build.random_state()
  lightning = {f"net_g.{k}": v for k, v in state.items()}
  lightning["net_d.conv0.weight"] = np.zeros((2, 3, 3, 3))
  found = selection.find_network({"state_dict": lightning, "epoch": 3})
  _equal(names.to_state_dict(found.params), state)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(dtype):
  state = build.random_state(dtype=dtype)
  found = selection.find_network(state)
  expected = {k: v.astype(np.float32) for k, v in state.items()}
  _equal(names.to_state_dict(found.params), expected)
  assert len(found.notes) == (dtype is np.float64)


@pytest.mark.parametrize(
  ("keys", "kind"),
  [
    (["body.1.weight", "body.2.bias"], "an unknown network"),
    (["body.0.conv1.weight", "conv_after_body.weight"], "EDSR"),
    (["model.0.weight", "model.1.sub.0.res.0.weight"], "SRResNet"),
    (["head.0.weight", "body.0.body.0.weight", "tail.0.0.weight"], "EDSR"),
    (["conv_first.weight", "conv_after_body.weight"], "EDSR"),
    (["head.0.weight", "body.0.body.0.body.3.conv_du.0.weight"], "RCAN"),
    (["layers.0.residual_group.blocks.0.norm1.weight"], "SwinIR"),
    (["layers.0.residual_group.blocks.0.conv_block.cab.0.weight"], "HAT"),
    (["layers.0.blocks.0.attn.attns.0.pos.pos_proj.weight"], "DAT"),
    (["layers.0.residual_group.blocks.0.attn.logit_scale"], "Swin2SR"),
    (["conv0_0.weight", "bn0_1.weight", "linear1.weight"], "VGG"),
    (["features.0.weight", "classifier.6.weight"], "VGG"),
    (["conv0.weight", "conv1.weight_orig", "conv9.bias"], "U-Net"),
    (["stylegan_decoder.style_conv1.weight"], "GFPGAN"),
    (["block1.0.weight", "block2.conv1.weight"], "SRGAN"),
    (["model.0.weight", "model.1.sub.0.RDB1.conv1x1.weight"], "ESRGAN+"),
    (["fc.weight"], "an unknown network"),
  ],
)
def test_other_networks_are_called_by_name(keys, kind):
  state = {k: np.zeros((2, 2, 3, 3), np.float32) for k in keys}
  with pytest.raises(UnsupportedWeightsError, match="RRDBNet") as error:
    selection.find_network({"params": state})
  assert f"this is {kind}" in str(error.value) or kind in str(error.value)


def test_esrgan_plus_is_refused_although_it_has_every_name():
  state = build.oldest(build.random_state())
  state["model.1.sub.0.RDB1.conv1x1.weight"] = np.zeros((4, 6, 1, 1))
  with pytest.raises(UnsupportedWeightsError, match=r"ESRGAN\+"):
    selection.find_network(state)


def test_training_state_is_called_so():
  state = {"epoch": 1, "optimizers": [{"param_groups": []}], "schedulers": []}
  with pytest.raises(UnsupportedWeightsError, match="training state"):
    selection.find_network(state)


def test_missing_extra_and_misshapen_arrays_are_listed():
  state = build.random_state()
  for key in [k for k in state if k.startswith("body.0.rdb3.")]:
    del state[key]
  state["conv_more.weight"] = np.zeros(3, np.float32)
  state["conv_hr.weight"] = np.zeros((6, 6, 1, 1), np.float32)
  with pytest.raises(UnsupportedWeightsError) as error:
    selection.find_network(state)
  message = str(error.value)
  assert "10 missing (body.0.rdb3.conv1.weight; " in message
  assert "1 left over (conv_more.weight)" in message
  assert "conv_hr.weight is (6, 6, 1, 1), not (6, 6, 3, 3)" in message


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s.pop("conv_last.weight"), "without conv_last.weight"),
    (
      lambda s: s.update({"body.7.rdb1.conv1.weight": np.ones(1)}),
      "are missin",
    ),
    (lambda s: s["conv_hr.bias"].fill(np.nan), "conv_hr.bias has 6 values"),
    (lambda s: s["body.1.rdb1.conv2.bias"].fill(np.inf), "body.1.rdb1.conv2"),
    (lambda s: s.update({"conv_hr.bias": np.ones(6, int)}), "quantised"),
    (lambda s: s.update({"HRconv.bias": np.ones(6)}), "mixes dialects"),
    (lambda s: s.update({"conv_first.weight": np.ones(6)}), "3x3 convolution"),
    (lambda s: s.pop("conv_up1.weight"), "1 missing"),
  ],
)
def test_damage_raises_and_names_the_array(change, message):
  state = build.random_state()
  change(state)
  with pytest.raises(UnsupportedWeightsError, match=message):
    selection.find_network(state)


@pytest.mark.parametrize(
  ("rename", "absent"),
  [
    (dict, "conv_body.bias"),
    (build.authors, "trunk_conv.weight"),
    (build.authors, "RRDB_trunk.1.RDB2.conv5.weight"),
    (build.oldest, "model.1.sub.2.bias"),
    (build.oldest, "model.6.weight"),
    (build.oldest, "model.0.weight"),
    (build.oldest, "model.1.sub.1.RDB3.conv4.0.bias"),
  ],
)
def test_errors_have_the_files_own_names(rename, absent):
  state = rename(build.random_state())
  for key in state:
    damaged = {**state, key: np.full_like(state[key], np.nan)}
    with pytest.raises(UnsupportedWeightsError, match=f"^{re.escape(key)} has"):
      selection.find_network(damaged)
  del state[absent]
  with pytest.raises(UnsupportedWeightsError, match=re.escape(absent)):
    selection.find_network(state)


def test_pixel_shuffle_variant_of_the_oldest_names_is_refused():
  state = build.oldest(build.random_state())
  state["model.2.weight"] = state.pop("model.3.weight")
  state["model.2.bias"] = state.pop("model.3.bias")
  with pytest.raises(UnsupportedWeightsError, match="pixel shuffle"):
    selection.find_network(state)


def test_float64_beyond_float32_is_not_finite():
  state = build.random_state(dtype=np.float64)
  state["conv_hr.bias"][0] = 1e300
  with pytest.raises(UnsupportedWeightsError, match=r"hr\.bias has 1"):
    selection.find_network(state)


def test_dict_that_holds_itself_ends():
  state = {"inner": {}}
  state["inner"]["outer"] = state
  with pytest.raises(UnsupportedWeightsError, match="unknown"):
    selection.find_network(state)


def test_to_state_dict_refuses_other_trees():
  params = selection.find_network(build.random_state()).params
  with pytest.raises(UnsupportedWeightsError, match="without the outer"):
    names.to_state_dict({"params": params})
  with pytest.raises(UnsupportedWeightsError, match="batch_norm"):
    names.to_state_dict({**params, "batch_norm": {}})


def test_shapes_of_a_scale_that_the_net_lacks():
  config = selection.find_network(build.random_state()).config
  with pytest.raises(ValueError, match="scale 5 with unshuffle 1"):
    names.shapes(config | {"scale": 5})


def test_what_an_rrdbnet_cannot_be():
  state = build.random_state()
  params = names.from_state_dict(state).params
  with pytest.raises(UnsupportedWeightsError, match="has no batch_stats"):
    names.to_state_dict(params, {"batch_stats": {"mean": np.zeros(1)}})
  rest = {k: v for k, v in state.items() if not k.startswith("body.")}
  with pytest.raises(UnsupportedWeightsError, match="without a block"):
    names.from_state_dict(rest)


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_are_of_networks_that_are_registered(name):
  dialect = DIALECTS[name]
  known = registry.find_generator(name).fields
  assert {"scale", *dialect.UNTOLD} <= known.keys()
  assert "prefix" in dialect.TELLTALE.groupindex
  assert name in dialect.SUPPORTED
