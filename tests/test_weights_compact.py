"""SRVGGNetCompact's names in files, and its files in ncnn's form."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

import esrgan_jax
from esrgan_jax import __main__, images, main
from esrgan_jax.export import checking, ncnn_files, programs
from esrgan_jax.models import registry
from esrgan_jax.weights import files, find, selection, zoo
from esrgan_jax.weights.dialects import compact as names
from esrgan_jax.weights.dialects.protocol import UnsupportedWeightsError
from tests import golden
from tests import weight_builders as build
from tests.training_runs import logged, tiny_config, write_config

CONFIG = golden.compact_config("x4")
NETWORK = {"architecture": "SRVGGNetCompact", **CONFIG}


def state(**fields):
  return golden.compact_state({**CONFIG, **fields})


def edsr(num_block):
  """A network whose blocks have a list of this name each."""
  block = {"body.0": 4, "body.2": 4}
  result = {"head.0.weight": np.zeros((4, 3, 3, 3), np.float32)}
  for n in range(num_block):
    for name, width in block.items():
      result[f"body.{n}.{name}.weight"] = np.zeros((width, 4, 3, 3), np.float32)
      result[f"body.{n}.{name}.bias"] = np.zeros(width, np.float32)
  return result


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("prefix", ["", "module.", "net_g.", "a.b0."])
def test_is_found_beside_other_networks(prefix):
  found = selection.find_network(
    {
      "state_dict": {f"{prefix}{k}": v for k, v in state().items()}
      | {"net_d.conv0.weight": np.zeros((2, 3, 3, 3)), "net_d.body.w": 1},
      "epoch": 3,
    }
    if prefix
    else {"params": state(), "step": 3}
  )
  assert found.config == NETWORK
  equal(names.to_state_dict(found.params), state())


@pytest.mark.parametrize("count", [1, 4, 32])
def test_lists_in_other_networks_are_none(count):
  with pytest.raises(UnsupportedWeightsError, match="this is EDSR"):
    selection.find_network(edsr(count))
  more = state() | {"tail.weight": np.zeros(3, np.float32)}
  with pytest.raises(UnsupportedWeightsError, match="an unknown network"):
    selection.find_network({f"net.{k}": v for k, v in more.items()})


def without(**changes):
  """A state dict in which some arrays are others, or missing."""
  found = state()
  for name, value in changes.items():
    found.pop(name.replace("_", "."))
    if value is not None:
      found[name.replace("_", ".")] = value
  return found


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"body_2_bias": None}, r"1 missing \(body.2.bias\)"),
    ({"body_3_weight": None}, r"1 missing \(body.3.weight\)"),
    ({"body_3_weight": np.zeros(1)}, r"body.3.weight is \(1,\), not \(4,\)"),
    ({"body_6_weight": None, "body_6_bias": None}, "here it is body.5"),
    ({"body_6_weight": np.zeros((40, 4, 3, 3))}, "no shuffle of pixels"),
    ({"body_0_weight": np.zeros((4, 3, 3))}, "not that of a 3x3 convolution"),
    ({"body_4_bias": np.full(4, np.nan)}, "body.4.bias has 4 values"),
  ],
)
def test_what_is_almost_one_says_what_is_wrong(changed, message):
  with pytest.raises(UnsupportedWeightsError, match=message):
    selection.find_network(without(**changed))


@pytest.mark.parametrize(
  ("told", "message"),
  [
    ({"scale": 2}, "weights are those of a x4 network; leave scale out"),
    ({"shuffle": 2}, "shuffles by 4; leave shuffle out"),
    ({"act_type": "relu"}, "activations are prelu; leave act_type out"),
    ({"shuffle": 4, "scale": 5}, "of a x4 network"),
  ],
)
def test_what_is_told_must_agree(told, message):
  with pytest.raises(ValueError, match=message):
    names.from_state_dict(state(), **told)


def test_trees_that_are_not_its_own_are_refused():
  params = names.from_state_dict(state()).params
  body = {**params["body"], "norm": {}}
  for tree, message in (
    ({"params": params}, "without the outer"),
    ({**params, "conv_hr": {}}, "'conv_hr'"),
    ({**params, "body": body}, "'norm'"),
  ):
    with pytest.raises(UnsupportedWeightsError, match=message):
      names.to_state_dict(tree)
  with pytest.raises(UnsupportedWeightsError, match="has no batch_stats"):
    names.to_state_dict(params, {"batch_stats": {}})


def test_an_activation_without_arrays_has_to_be_told(tmp_path, capsys):
  """By who wrote the file, or by who reads it."""
  config = golden.compact_config("x2")
  found = state(**config)
  with pytest.raises(ValueError, match=r"relu or leakyrelu.*--config FILE"):
    selection.find_network(found)
  path = tmp_path / "other.pth"
  path.write_bytes(build.zip_pth(found))
  fields = tmp_path / "fields.json"
  fields.write_text(
    '{"architecture": "SRVGGNetCompact", "scale": 2, "act_type": "relu"}'
  )
  out = tmp_path / "own.safetensors"
  command = ["convert", str(path), str(out)]
  assert __main__.main(command) == 1
  assert "nothing tells which" in capsys.readouterr().err
  assert __main__.main([*command, "--config", str(fields)]) == 0
  own = files.read_weights(out)
  assert own.config == {"architecture": "SRVGGNetCompact", **config}
  equal(names.to_state_dict(own.params), found)


@pytest.mark.parametrize("suffix", [".safetensors", ".param"])
@pytest.mark.parametrize("name", golden.COMPACT)
def test_files_tell_all(name, suffix, tmp_path):
  config = golden.compact_config(name)
  params = names.from_state_dict(
    state(**config), **{k: config[k] for k in ("scale", *names.UNTOLD)}
  ).params
  config = {"architecture": "SRVGGNetCompact", **config}
  path = tmp_path / f"a{suffix}"
  if suffix == ".param":
    weights = files.Weights(config, params, {})
    ncnn_files.write(path, weights, programs.Options("float32"))
  else:
    files.write_weights(path, params, config)
  found = files.read_weights(path)
  assert found.config == config
  equal(found.params, params)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_animevideov3_is_read_and_written_as_published(scale, tmp_path):
  """`.bin` byte for byte; of `.param`, all layers with all that they are."""
  original = zoo.find(f"animevideov3-x{scale}")
  weights = files.read_weights(original)
  assert weights.config == {
    **NETWORK,
    "num_feat": 64,
    "num_conv": 16,
    "scale": scale,
  }
  path = tmp_path / "a.param"
  ncnn_files.write(path, weights, programs.Options("float16"))
  assert path.with_suffix(".bin").read_bytes() == original.read_bytes()

  def layers(param):
    found = []
    for line in param.read_text().splitlines()[2:]:
      kind, _, inputs, outputs, *rest = line.split()
      options = {*rest[int(inputs) + int(outputs) :]} - {
        "0=0"
      }  # An addition's.
      found.append((kind, *sorted(options)))
    return sorted(found)

  assert layers(path) == layers(original.with_suffix(".param"))


def param(tmp_path, *changes):
  """animevideov3-x2's files, changed."""
  original = zoo.find("animevideov3-x2")
  text = original.with_suffix(".param").read_text()
  for old, new in changes:
    assert old in text
    text = text.replace(old, new)
  path = tmp_path / "changed.param"
  path.write_text(text)
  path.with_suffix(".bin").write_bytes(original.read_bytes())
  return path


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("0=3 1=5.0", "0=2 1=5.0", "shuffles pixels by 4, and resizes by 4, 0.5"),
    ("0=3 1=5.0", "0=3 1=6.0", "shuffles pixels by 4, and resizes by 4, 0.6"),
    ("0=1 1=4.0", "0=1 1=2.0", "shuffles pixels by 4, and resizes by 2, 0.5"),
    ("106 0=4", "106 0=4 1=1", "in another order than PyTorch"),
    ("106 0=4", "106 0=2", "shuffles pixels by 2"),
    ("6=1728\n", "6=1728 9=1\n", "18 convolutions and 18 activations"),
    ("6=1728\n", "6=1728 9=4\n", r"no supported network has \(9=4\)"),
    ("6=1728\n", "6=1728 9=2 -23310=1,inf\n", "is not finite"),
    ("PReLU                    PRelu_1 ", "Noop n ", "is quantised"),
  ],
)
def test_other_layers_in_ncnns_files_are_refused(old, new, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    files.read_weights(param(tmp_path, (old, new)))


def test_other_slopes_are_a_prelus(tmp_path):
  """One for all channels, or within a convolution: no such network is lost."""
  drawn = names.from_state_dict(state())
  act = {"slope": np.float32([[0.3] * 4, [0.1] * 4])}
  params = {**drawn.params, "act_first": {"slope": np.full(4, 0.2, np.float32)}}
  params["body"] = {**params["body"], "act": act}
  path = tmp_path / "a.param"
  weights = files.Weights(NETWORK, params, {})
  ncnn_files.write(path, weights, programs.Options("float32"))
  lines = path.read_text().splitlines()
  # Of the first layer, the slopes go into the convolution.
  first = next(i for i, line in enumerate(lines) if "PReLU" in line)
  lines[first - 1] += " 9=2 -23310=1,2.000000e-01"
  lines[first] = lines[first].replace("PReLU", "Noop ", 1).replace("0=4", "")
  path.write_text("\n".join(lines) + "\n")
  data = path.with_suffix(".bin").read_bytes()
  end = 4 + 4 * (9 * 3 * 4 + 4)
  path.with_suffix(".bin").write_bytes(data[:end] + data[end + 16 :])
  found = files.read_weights(path)
  assert found.config == NETWORK
  equal(found.params, params)


@pytest.mark.slow
def test_upscales_by_its_name(tmp_path):
  """Of an odd size, in tiles whose results are those of the whole."""
  pixels = (golden.image("odd", 37, 45, 3) * 255).astype(np.uint8)
  PilImage.fromarray(pixels).save(tmp_path / "a.png")
  results = []
  for out, options in (("b", ["--tile", "0"]), ("c", ["--tile", "24"])):
    path = tmp_path / f"{out}.png"
    command = ["upscale", str(tmp_path / "a.png"), "-o", str(path)]
    command += ["--model", "animevideov3-x2", "--exact", *options]
    assert __main__.main(command) == 0
    results.append(images.read_image(path).pixels.astype(int))
  assert results[0].shape == (74, 90, 3)
  assert np.abs(results[0] - results[1]).max() <= 1
  weights = find.find_model("animevideov3-x2").weights
  net = registry.make_generator(**weights.config)
  infer = jax.jit(functools.partial(registry.infer, net))
  sr = infer({"params": weights.params}, pixels[None] / np.float32(255))[0]
  assert np.abs(results[0] - np.rint(np.clip(sr, 0, 1) * 255)).max() <= 1


@pytest.mark.slow
def test_trains_and_what_is_trained_is_a_model(tmp_path, capsys):
  """Phase one, small."""
  config = tiny_config(tmp_path)
  fields = {"architecture": "SRVGGNetCompact", "num_feat": 4, "num_conv": 2}
  config |= {"generator": fields, "phase_order": ("psnr",)}
  card = write_config(tmp_path / "card.py", config)
  command = [f"--config={card}", f"--workdir={tmp_path / 'run'}"]
  assert main.main(command) == 0, capsys.readouterr().err
  assert find.find_model(tmp_path / "run").weights.config == NETWORK
  lines = logged(tmp_path / "run", "psnr")
  losses = [line["g/pixel"] for line in lines if "g/pixel" in line]
  assert losses[-1] < losses[0]


@pytest.mark.runtimes
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_animevideov3_is_what_ncnn_makes_of_it(scale):
  """Of the published files, in whole levels."""
  name = f"animevideov3-x{scale}"
  model = esrgan_jax.load(name)
  whole = checking.sample_photo()
  photos = [whole, whole[:31, 20:57]]
  theirs = ncnn_files.run(
    str(zoo.find(name).with_suffix(".param")),
    [photo[np.newaxis] / np.float32(255) for photo in photos],
  )
  for photo, sr in zip(photos, theirs, strict=True):
    sr = np.rint(np.clip(sr[0], 0, 1) * 255)
    assert np.abs(model.upscale(photo) - sr).max() <= 1
    assert sr.std() > 20  # Not all black or white.


@pytest.fixture(name="general")
def _general(monkeypatch, tmp_path):
  """The two that denoise more and less, small and other ones."""
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path))
  monkeypatch.setattr(zoo, "_MODELS", build.write_general(tmp_path))
  return tmp_path


@pytest.mark.parametrize("strength", [0, 0.25, 1])
def test_denoising_of_a_strength_is_a_mixture(general, strength):
  """As Real-ESRGAN's: 1 is the model, and 0 the one that keeps noise."""
  model = esrgan_jax.load("realesr-general-x4v3", denoise=strength)
  expected = names.from_state_dict(
    {k: strength * v - (1 - strength) * v for k, v in state().items()}
  ).params
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    jax.tree.map(np.asarray, model.params),
    expected,
  )


def test_the_command_denoises_by_a_strength(general, capsys):
  PilImage.new("RGB", (9, 8), "#4080c0").save(general / "a.png")
  command = ["upscale", str(general / "a.png"), "--model", "general-x4v3"]

  def upscale(*options):
    out = general / "out.png"
    args = [*command, "-o", str(out), "--overwrite", *map(str, options)]
    assert __main__.main(args) == 0
    return images.read_image(out).pixels.astype(int)

  model = esrgan_jax.load("general-x4v3", denoise=0.75)
  expected = model.upscale(np.asarray(PilImage.open(general / "a.png")))
  assert np.abs(upscale("--denoise", 0.75) - expected).max() <= 1
  assert "denoise=0.75" in capsys.readouterr().out
  with PilImage.open(general / "out.png") as image:
    assert "general-x4v3 x4, denoise=0.75" in str(image.info)
  np.testing.assert_array_equal(upscale("--denoise", 1), upscale())
  assert (upscale("--denoise", 0) != upscale()).any()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["-m", "realesrgan-x4plus"], "realesrgan-x4plus has no strength of deno"),
    (["-m", "general-wdn-x4v3"], "that is for general-x4v3"),
    (["--psnr-model", "a.pth"], "--denoise and --psnr-model both say what"),
  ],
)
def test_other_models_have_no_strength(options, message, capsys, tmp_path):
  PilImage.new("RGB", (8, 8)).save(tmp_path / "a.png")
  command = ["upscale", str(tmp_path / "a.png"), "--denoise", "0.5", *options]
  assert __main__.main(command) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1


@pytest.mark.parametrize("strength", ["-0.1", "1.5", "nan", "much"])
def test_a_strength_is_between_0_and_1(strength, capsys):
  command = ["upscale", "a.png", "-m", "general-x4v3", "--denoise", strength]
  with pytest.raises(SystemExit):
    __main__.main(command)
  assert f"{strength} is not a strength between 0" in capsys.readouterr().err
  if strength != "much":
    with pytest.raises(ValueError, match="give a strength between 0"):
      esrgan_jax.load("general-x4v3", denoise=float(strength))


@pytest.mark.torch
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["x2", "x3", "x4"])
def test_files_load_in_spandrel(name, suffix, tmp_path, torchvision):
  import spandrel
  import torch

  config = golden.compact_config(name, act_type="prelu")
  found = state(**config)
  params = names.from_state_dict(found).params
  path = files.write_weights(
    tmp_path / f"a{suffix}",
    params,
    {"architecture": "SRVGGNetCompact", **config},
  )
  model = spandrel.ModelLoader().load_from_file(path)
  assert model.architecture.id == "Compact"
  assert model.scale == config["scale"]
  lr = torch.tensor(golden.compact_lr()).permute(0, 3, 1, 2)
  with torch.inference_mode():
    sr = model.model(lr).permute(0, 2, 3, 1)
  net = registry.make_generator("SRVGGNetCompact", **config)
  ours = jax.jit(net.apply)({"params": params}, golden.compact_lr())
  np.testing.assert_allclose(sr, ours, atol=1e-5)
