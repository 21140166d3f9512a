"""SRResNet's names in files: programs', and what is none of theirs."""

import re

import h5py
import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import __main__, images
from esrgan_jax.export import ncnn_files, programs
from esrgan_jax.models import registry
from esrgan_jax.weights import files, find, selection
from esrgan_jax.weights.dialects import srresnet as names
from esrgan_jax.weights.dialects.protocol import UnsupportedWeightsError
from tests import golden
from tests import weight_builders as build


def drawn(case):
  """A state dict in the names of a program, as they were recorded."""
  return golden.srgan_state(golden.srgan_shapes(golden.load("srgan")[case]))


def kair(state):
  """BasicSR's names as in its first code, and in KAIR's files."""
  changes = (("body.", "recon_trunk."), ("conv_hr", "HRconv"))
  return _renamed(state, changes)


def mmagic(state):
  """BasicSR's names as mmagic has them."""
  changes = (("body.", "trunk_net."), ("upconv", "upsample"))
  renamed = _renamed(state, changes)
  return {
    re.sub(r"(upsample\d)", r"\1.upsample_conv", key): value
    for key, value in renamed.items()
  }


def older_lornatang(state):
  return {re.sub("^conv", "conv_block", k): v for k, v in state.items()}


def _renamed(state, changes):
  result = {}
  for key, value in state.items():
    for old, new in changes:
      key = key.replace(old, new)
    result[key] = value
  return result


def assert_same(a, b):
  assert a.config == b.config
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
  jax.tree.map(np.testing.assert_array_equal, a.collections, b.collections)


@pytest.mark.parametrize(
  ("case", "rename"),
  [
    ("basicsr 4", kair),
    ("basicsr 2", kair),
    ("basicsr 3", mmagic),
    ("lornatang 4", older_lornatang),
    *((case, dict) for case in ("basicsr 4", "leftthomas 8", "persson 2")),
  ],
)
def test_names_of_other_programs(case, rename):
  state = drawn(case)
  wrapped = {f"module.{k}": v for k, v in rename(state).items()}
  found = selection.find_network({"state_dict": wrapped, "epoch": 3})
  assert_same(found, selection.find_network(state))
  assert found.config["scale"] == int(case.split()[1])


@pytest.mark.parametrize(
  ("case", "norm", "slopes", "output"),
  [
    ("basicsr 4", "none", "one", "linear"),
    ("lornatang 4", "batch", "one", "linear"),
    ("leftthomas 4", "batch", "one", "tanh"),
    ("persson 2", "batch", "channel", "tanh"),
  ],
)
def test_fields_are_told(case, norm, slopes, output):
  config = selection.find_network(drawn(case)).config
  assert (config["norm"], config["slopes"]) == (norm, slopes)
  assert (config["output"], config["num_feat"]) == (output, 4)
  assert (config["num_block"], config["num_in_ch"]) == (2, 3)


@pytest.mark.parametrize(
  "case", ["basicsr 2", "basicsr 3", "lornatang 4", "persson 2"]
)
def test_what_was_read_is_written_bit_for_bit(case):
  state = drawn(case)
  found = names.from_state_dict(state)
  again = names.to_state_dict(found.params, found.collections, found.config)
  assert again.keys() == state.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(again[key], value, err_msg=key)
    assert again[key].flags.c_contiguous


def test_a_tanh_is_kept_by_the_names_of_a_program_that_has_it():
  """Its biases before BatchNorm are in the means."""
  state = drawn("leftthomas 4")
  found = names.from_state_dict(state)
  again = names.to_state_dict(found.params, found.collections, found.config)
  assert again.keys() == state.keys()
  assert not again["block2.conv1.bias"].any()
  assert_same(names.from_state_dict(again), found)


def test_images_around_zero_are_told_or_asked_for(tmp_path):
  """giakou4's names are Persson's; what we write tells."""
  state = drawn("persson 2")
  (note,) = names.from_state_dict(state).notes
  assert "[-1, 1]: took the first" in note
  found = names.from_state_dict(state, centered=True)
  assert found.notes == ()
  assert found.config["centered"]
  path = files.write_weights(
    tmp_path / "x.safetensors",
    found.params,
    {"architecture": "SRResNet", **found.config},
    collections=found.collections,
  )
  again = files.read_weights(path)
  assert again.config["centered"]
  assert again.notes == ()
  # As another program's file, which says nothing.
  stranger = tmp_path / "gen.pth.tar"
  stranger.write_bytes(build.zip_pth(state, lambda tree: {"state_dict": tree}))
  assert not find.find_model(stranger).weights.config["centered"]
  for config, told in (
    ({"centered": True}, True),
    ({"centered": False}, False),
  ):
    model = find.find_model(
      stranger, config={**config, "architecture": "SRResNet"}
    )
    assert model.weights.config["centered"] == told
    assert model.weights.notes == ()
  with pytest.raises(ValueError, match="cannot have centered='yes'"):
    find.find_model(stranger, config={"centered": "yes"})
  with pytest.raises(ValueError, match="leave centered out"):
    names.from_state_dict(drawn("lornatang 4"), centered=True)


@pytest.mark.slow
def test_centered_is_what_theirs_computes():
  net = registry.make_generator(
    "SRResNet", num_feat=4, num_block=1, scale=2, output="tanh"
  )
  lr = golden.srgan_lr()
  shapes = jax.eval_shape(net.init, jax.random.key(0), lr)
  variables = jax.tree.map(
    lambda x: golden.draw(f"centered {x.shape}", *x.shape) / 2 + 1, shapes
  )
  centered = jax.jit(net.clone(centered=True).apply)(variables, lr)
  theirs = jax.jit(net.apply)(variables, 2 * lr - 1)
  np.testing.assert_allclose(centered, theirs, atol=1e-6)


def test_biases_before_batch_norm_are_taken_off_the_means():
  state = drawn("leftthomas 4")
  found = names.from_state_dict(state)
  assert "bias" not in found.params["body"]["conv2"]
  means = found.collections["batch_stats"]["body"]["bn2"]["mean"]
  for n, mean in enumerate(means):
    expected = state[f"block{n + 2}.bn2.running_mean"]
    expected = expected - state[f"block{n + 2}.conv2.bias"]
    np.testing.assert_array_equal(mean, expected)


def test_keras_layers_are_found_by_their_order(tmp_path):
  """Numbers begin anywhere, and 10 comes after 9."""
  first, second = (
    files.read_weights(
      build.write_keras_layers(
        tmp_path / f"{n}.h5", build.keras_srresnet(first=n), inside=inside
      )
    )
    for n, inside in ((0, ""), (8, "model_weights"))
  )
  assert_same(first, second)
  config = first.config
  assert (config["scale"], config["num_block"], config["num_feat"]) == (4, 2, 4)
  told = config["norm"], config["slopes"], config["output"], config["centered"]
  assert told == ("batch", "channel", "tanh", False)
  theirs = build.keras_srresnet()["conv2d_6"]["conv2d_6/kernel:0"]
  ours = first.params["conv_up1"]["kernel"]
  for pixel in range(4):
    np.testing.assert_array_equal(
      ours[..., pixel::4], theirs[..., 4 * pixel : 4 * pixel + 4]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def test_keras_computes_the_same(tmp_path):
  """A file of its own, of a network as in krasserm's super-resolution."""
  import keras

  from tests.oracles import keras_srgan

  net = keras_srgan.generator(3)
  net.save(tmp_path / "generator.h5")
  net.save_weights(tmp_path / "generator.weights.h5")
  lr = golden.srgan_lr()
  expected = np.asarray(net(keras.ops.convert_to_tensor(255 * lr))) / 255
  found = files.read_weights(tmp_path / "generator.h5")
  assert found.config["scale"] == 8
  assert_same(files.read_weights(tmp_path / "generator.weights.h5"), found)
  sr = jax.jit(registry.make_generator(**found.config).apply)(
    {"params": found.params, **found.collections}, lr
  )
  np.testing.assert_allclose(sr, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda s: s.pop("batch_normalization_2"),
      "are no SRResNet of Keras: with",
    ),
    (lambda s: s.pop("p_re_lu_1"), "are no SRResNet of Keras: with"),
    (
      lambda s: s.update(dense={"dense/kernel:0": np.ones((2, 2))}),
      "dense/kernel is of no layer",
    ),
    (
      lambda s: s["conv2d_6"].pop("conv2d_6/kernel:0"),
      "1 missing .conv2d_6/kernel",
    ),
    (
      lambda s: s["conv2d_6"].update({"conv2d_6/bias:0": np.ones(())}),
      "1 of the wrong shape .conv2d_6/bias",
    ),
    (lambda s: s.clear(), "first names: none"),
  ],
)
def test_other_keras_networks_are_refused(change, message, tmp_path):
  layers = build.keras_srresnet()
  change(layers)
  path = build.write_keras_layers(tmp_path / "a.h5", layers)
  with pytest.raises(ValueError, match=message):
    files.read_weights(path)


@pytest.mark.parametrize("container", ["layers", "model/layers"])
def test_a_file_of_keras_3_has_no_names_of_weights(container, tmp_path):
  layers = build.keras_srresnet()
  expected = files.read_weights(
    build.write_keras_layers(tmp_path / "a.h5", layers)
  )
  path = tmp_path / "a.weights.h5"
  where = container.replace("model", "layers/functional")
  build.write_keras_3_layers(path, layers, where)
  assert_same(files.read_weights(path), expected)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda s: s["batch_normalization"].pop("batch_normalization/beta:0"),
      "batch_normalization/0 is of no layer",
    ),
    (lambda s: s.pop("p_re_lu_1"), "are no SRResNet of Keras: with"),
    (lambda s: s.update(dense={"k": np.ones(1)}), "dense/0 is of no layer"),
  ],
)
def test_other_networks_of_keras_3_are_refused(change, message, tmp_path):
  layers = build.keras_srresnet()
  change(layers)
  path = build.write_keras_3_layers(tmp_path / "a.weights.h5", layers)
  with pytest.raises(ValueError, match=message):
    files.read_weights(path)


def test_a_file_that_is_not_of_keras_is_refused(tmp_path):
  with h5py.File(tmp_path / "a.h5", "w") as file:
    file["bias"] = np.ones(2, np.float32)
  with pytest.raises(ValueError, match="neither layer_names"):
    files.read_weights(tmp_path / "a.h5")


def _drawn_network(**fields):
  """A network's config, its parameters and its collections, of any numbers."""
  config = {"architecture": "SRResNet", "num_feat": 4, "num_block": 2, **fields}
  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: random.random(x.shape, np.float32), files.expected(config)
  )
  return config, variables.pop("params"), variables


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
  "fields",
  [
    {"variant": "msrresnet", "scale": 4},
    {"variant": "msrresnet", "scale": 3},
    {"norm": "none", "scale": 8},
    {"norm": "none", "scale": 2, "slopes": "channel"},
    {"norm": "none", "scale": 2, "output": "tanh"},
    {"norm": "none", "scale": 3, "output": "tanh", "slopes": "channel"},
  ],
)
def test_what_is_exported_to_ncnn_is_read(fields, dtype, tmp_path):
  config, params, _ = _drawn_network(**fields)
  path = tmp_path / "a.param"
  weights = files.Weights(config, params, {})
  ncnn_files.write(path, weights, programs.Options(dtype))
  found = files.read_weights(path)
  assert found.notes == ()
  assert found.config.items() >= config.items()
  assert found.config["norm"] == "none"

  def kept(path, x):  # Kernels are kept in half the size.
    return x.astype(dtype) if path[-1].key == "kernel" else x

  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(y, x.astype(np.float32)),
    jax.tree_util.tree_map_with_path(kept, params),
    found.params,
  )


def test_batch_norm_is_in_the_convolutions_of_ncnn(tmp_path):
  config, params, collections = _drawn_network(scale=2)
  path = tmp_path / "a.param"
  weights = files.Weights(config, params, {}, (), collections)
  ncnn_files.write(path, weights, programs.Options("float32"))
  found = files.read_weights(path)
  assert found.config["norm"] == "none"
  lr = golden.srgan_lr()[:1, :6, :5]
  results = [
    jax.jit(registry.make_generator(**each.config).apply)(
      {"params": each.params, **each.collections}, lr
    )
    for each in (weights, found)
  ]
  np.testing.assert_allclose(*results, rtol=1e-4)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("PReLU ", "ReLU ", "quantised"),
    ("Sigmoid ", "Noop ", "read"),
    ("PixelShuffle ", "Noop ", "are no SRResNet: with N blocks"),
    ("0=2\n", "0=3\n", "of a x2 network"),
  ],
)
def test_another_network_of_ncnn_is_refused(old, new, message, tmp_path):
  config, params, _ = _drawn_network(norm="none", scale=2, output="tanh")
  path = tmp_path / "a.param"
  weights = files.Weights(config, params, {})
  ncnn_files.write(path, weights, programs.Options("float32"))
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))
  if message == "read":  # The same without an end: its numbers are twice those.
    found = files.read_weights(path)
    assert found.config["output"] == "linear"
    last = params["conv_last"]["bias"]
    np.testing.assert_array_equal(found.params["conv_last"]["bias"], 2 * last)
    return
  with pytest.raises(ValueError, match=message):
    files.read_weights(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
  "fields",
  [
    {"scale": 2, "norm": "none", "slopes": "channel"},
    {"scale": 8, "output": "tanh", "norm": "none"},
    {"scale": 8, "variant": "msrresnet"},
    {"scale": 3, "num_in_ch": 1, "num_out_ch": 1},
  ],
)
def test_files_hold_every_network(fields, suffix, tmp_path):
  if suffix == ".pth":
    pytest.importorskip("torch")
  config = {"architecture": "SRResNet", "num_feat": 4, "num_block": 3, **fields}
  net = registry.make_generator(**config)
  shape = (1, 8, 8, net.num_in_ch)
  shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros(shape))
  random = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: random.random(x.shape, np.float32), shapes)
  collections = {k: v for k, v in variables.items() if k != "params"}
  path = files.write_weights(
    tmp_path / f"model{suffix}",
    variables["params"],
    config,
    collections=collections,
  )
  found = files.read_weights(path)
  again = registry.make_generator(**found.config)
  assert again.clone(norm=None) == net.clone(norm=None)
  jax.tree.map(
    np.testing.assert_array_equal,
    {"params": found.params, **found.collections},
    variables,
  )


@pytest.mark.parametrize(
  ("case", "change", "message"),
  [
    ("basicsr 4", lambda s: s.pop("conv_hr.weight"), "1 missing"),
    ("basicsr 4", lambda s: s.pop("conv_last.weight"), "without conv_last.wei"),
    ("basicsr 4", lambda s: s.update(x=np.ones(1)), "1 left over"),
    ("basicsr 4", lambda s: s.pop("upconv1.weight"), "1 missing"),
    (
      "basicsr 4",
      lambda s: s.update({"HRconv.bias": np.ones(4)}),
      "mixes dialects",
    ),
    (
      "basicsr 4",
      lambda s: s.update({"body.9.conv1.bias": np.ones(4)}),
      "of 10 blocks 7 are missing: body.2",
    ),
    (
      "basicsr 4",
      lambda s: s.update({"upconv1.weight": np.ones((20, 4, 3, 3))}),
      "20 outputs for 4 channels",
    ),
    (
      "basicsr 4",
      lambda s: s.update({"upconv1.weight": np.ones((36, 4, 3, 3))}),
      "by 3 and 2",
    ),
    ("basicsr 4", lambda s: s["conv_hr.bias"].fill(np.nan), "conv_hr.bias has"),
    (
      "basicsr 4",
      lambda s: s.update({"conv_hr.bias": np.ones(4, int)}),
      "quantised",
    ),
    (
      "lornatang 4",
      lambda s: s["trunk.1.rcb.4.running_var"].fill(-1),
      "variances below 0",
    ),
    ("lornatang 4", lambda s: s.pop("conv2.1.running_mean"), "1 missing"),
    (
      "leftthomas 4",
      lambda s: s.update({"block4.2.weight": np.ones(1)}),
      "1 left over",
    ),
    (
      "leftthomas 4",
      lambda s: s.update({"block2.conv1.bias": np.ones(3)}),
      "left over",
    ),
  ],
)
def test_damage_raises_and_names_the_array(case, change, message):
  state = drawn(case)
  change(state)
  with pytest.raises(UnsupportedWeightsError, match=message):
    selection.find_network(state)


@pytest.mark.parametrize(
  ("case", "rename", "absent"),
  [
    ("basicsr 3", dict, "upconv1.bias"),
    ("basicsr 4", kair, "HRconv.weight"),
    ("basicsr 2", mmagic, "upsample1.upsample_conv.bias"),
    ("lornatang 4", dict, "trunk.1.rcb.3.weight"),
    ("lornatang 4", older_lornatang, "conv_block2.0.weight"),
    ("leftthomas 4", dict, "block5.1.conv.bias"),
    ("persson 2", dict, "upsamples.0.act.weight"),
  ],
)
def test_errors_have_the_files_own_names(case, rename, absent):
  state = rename(drawn(case))
  for key in state:
    if key.endswith("num_batches_tracked"):
      continue
    damaged = {**state, key: np.full_like(state[key], np.nan)}
    with pytest.raises(UnsupportedWeightsError, match=f"^{re.escape(key)} has"):
      names.from_state_dict(damaged)
  del state[absent]
  with pytest.raises(UnsupportedWeightsError, match=re.escape(absent)):
    names.from_state_dict(state)


def test_contradictions_raise():
  state = drawn("lornatang 4")
  with pytest.raises(ValueError, match=r"scale 2 was asked for.* x4 network"):
    names.from_state_dict(state, scale=2)
  with pytest.raises(ValueError, match="whose output is linear"):
    names.from_state_dict(state, output="tanh")


def test_other_trees_are_refused():
  found = names.from_state_dict(drawn("lornatang 4"))
  with pytest.raises(UnsupportedWeightsError, match="parameter tree of an SR"):
    names.to_state_dict({"params": found.params}, found.collections)
  with pytest.raises(UnsupportedWeightsError, match="missing"):
    names.to_state_dict(found.params)
  with pytest.raises(UnsupportedWeightsError, match="has no cache"):
    names.to_state_dict(found.params, {**found.collections, "cache": {}})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A file as Lornatang's program would write it, but safetensors."""
  found = selection.find_network(drawn("lornatang 4"))
  path = tmp_path_factory.mktemp("srresnet") / "srresnet.safetensors"
  return files.write_weights(
    path, found.params, found.config, collections=found.collections
  )


@pytest.mark.slow
def test_a_photo_is_upscaled_by_a_file(model, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (11, 9, 3), np.uint8)
  PilImage.fromarray(pixels).save(tmp_path / "a.png")
  out = tmp_path / "large.png"
  command = ["upscale", str(tmp_path / "a.png"), "-o", str(out)]
  assert __main__.main([*command, "--model", str(model)]) == 0
  found = files.read_weights(model)
  net = registry.make_generator(**found.config)
  sr = jax.jit(net.apply)(
    {"params": found.params, **found.collections},
    pixels[None] / np.float32(255),
  )[0]
  expected = np.rint(np.clip(sr, 0, 1) * 255)
  result = images.read_image(out).pixels.astype(int)
  assert result.shape == (44, 36, 3)
  assert np.abs(result - expected).max() <= 1
  assert result.std() > 20  # Not all black or white.


def test_pairs_are_interpolated_with_their_statistics(model, tmp_path):
  a = files.read_weights(model)
  b = tmp_path / "b.safetensors"
  other = jax.tree.map(lambda x: 2 * x, {"p": a.params, **a.collections})
  files.write_weights(
    b,
    other.pop("p"),
    a.config,
    collections=other,
  )
  out = tmp_path / "mixed.safetensors"
  command = ["interpolate", str(model), str(b), "--alpha", "0.25"]
  assert __main__.main([*command, "-o", str(out)]) == 0
  mixed = find.find_model(out).weights
  assert mixed.config == a.config
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, 1.25 * y, rtol=1e-6),
    {"params": mixed.params, **mixed.collections},
    {"params": a.params, **a.collections},
  )


def test_a_model_whose_file_has_no_checksum_is_brought_by_hand(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path))
  (tmp_path / "a.png").write_bytes(b"")
  PilImage.new("RGB", (8, 8)).save(tmp_path / "a.png")
  command = ["upscale", str(tmp_path / "a.png"), "--model", "msrgan-x4"]
  command += ["-o", str(tmp_path / "large.png")]
  assert __main__.main(command) == 1
  error = capsys.readouterr().err
  assert "drive.google.com" in error
  assert "no SHA-256 is published" in error
  name = "004_MSRGAN_x4_f64b16_DIV2K_400k_B16G1_wandb.pth"
  assert name in error
  found = names.from_state_dict(drawn("basicsr 4"))
  path = files.write_weights(
    tmp_path / "x.safetensors",
    found.params,
    {"architecture": "SRResNet", **found.config},
  )
  path.rename(tmp_path / name)
  assert __main__.main(command) == 0


@pytest.mark.torch
@pytest.mark.parametrize(
  "case", ["basicsr 3", "lornatang 4", "leftthomas 4", "persson 2"]
)
def test_files_load_where_their_names_come_from(case, tmp_path):
  import torch

  from tests.oracles import torch_srgan

  program, scale = case.split()
  found = selection.find_network(drawn(case))
  path = files.write_weights(
    tmp_path / "model.pth",
    found.params,
    found.config,
    collections=found.collections,
  )
  net = torch_srgan.GENERATORS[program](scale=int(scale))
  net.load_state_dict(torch.load(path, weights_only=True)["params"])
  lr = torch.tensor(golden.srgan_lr()[:1]).permute(0, 3, 1, 2)
  with torch.inference_mode():
    sr = net.eval()(lr).permute(0, 2, 3, 1)
  expected = golden.load("srgan")[case]["sr"]
  np.testing.assert_allclose(sr, expected, atol=1e-4)
