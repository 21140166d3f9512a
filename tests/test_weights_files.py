"""Reading and writing weight files of every kind, and everyday mishaps."""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import esrgan_jax
from esrgan_jax.weights import files
from esrgan_jax.weights.dialects import rrdb as names
from esrgan_jax.weights.dialects.protocol import (
  UnsupportedWeightsError,
  UntoldScaleError,
)
from esrgan_jax.weights.formats import limits, safetensors_file
from tests import weight_builders as build


def _params(config=None, **options):
  state = build.random_state(config, **options)
  scale = (config or {}).get("scale")
  return state, names.from_state_dict(state, scale=scale).params


def _same(params, state):
  again = names.to_state_dict(params)
  assert again.keys() == state.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(again[key], value)


# --- .safetensors -----------------------------------------------------------


@pytest.mark.parametrize(
  ("scale", "unshuffle"), [(1, 4), (2, 2), (2, 1), (3, 1), (4, 1), (8, 1)]
)
def test_safetensors_round_trip_bit_exactly(tmp_path, scale, unshuffle):
  config = {**build.CONFIG, "scale": scale, "unshuffle": unshuffle}
  state = build.random_state(config)
  params = names.from_state_dict(state, scale=scale).params
  path = files.write_weights(
    tmp_path / "a.safetensors", params, config, metadata={"alpha": 0.8}
  )
  weights = files.read_weights(path)
  assert weights.config == {"architecture": "RRDBNet", **config}
  assert weights.metadata["alpha"] == "0.8"
  assert weights.metadata["format"] == "pt"
  _same(weights.params, state)
  assert os.listdir(tmp_path) == ["a.safetensors"]


def test_x3_is_told_by_a_word_in_the_file(tmp_path):
  state = build.random_state({"scale": 3})
  path = tmp_path / "x3.safetensors"
  for word in (None, "4", "three", "1e9"):
    notes = {} if word is None else {"scale": word}
    path.write_bytes(safetensors_file.to_bytes(state, notes))
    with pytest.raises(UntoldScaleError, match=f"^{path}: its one upsampling"):
      files.read_weights(path)
    assert files.read_weights(path, scale=3).config["scale"] == 3
  for scale in (2, 3):
    path.write_bytes(safetensors_file.to_bytes(state, {"scale": str(scale)}))
    assert files.read_weights(path).config["scale"] == scale
    with pytest.raises(ValueError, match="x2 or x3"):
      files.read_weights(path, scale=4)
  pth = tmp_path / "x3.pth"
  pth.write_bytes(build.zip_pth(state, lambda tree: {"params": tree}))
  with pytest.raises(UntoldScaleError, match="by 2 or by 3"):
    files.read_weights(pth)
  assert esrgan_jax.load(pth, scale=3).scale == 3
  with pytest.raises(ValueError, match=r"scale 3 .* x4 network"):
    esrgan_jax.load(scale=3)


@pytest.mark.parametrize("channels", [1, 4])
def test_networks_of_other_channels_load(tmp_path, channels):
  config = {"num_in_ch": channels, "num_out_ch": channels, "num_block": 1}
  state = build.random_state(config)
  path = tmp_path / "model.pth"
  path.write_bytes(build.legacy_pth(build.oldest(state)))
  model = esrgan_jax.load(path)
  lr = jax.ShapeDtypeStruct((1, 4, 5, channels), np.float32)
  assert jax.eval_shape(model, lr).shape == (1, 16, 20, channels)
  again = files.write_weights(
    tmp_path / "again.safetensors", model.params, {**build.CONFIG, **config}
  )
  _same(files.read_weights(again).params, state)


def test_missing_unshuffle_is_the_default_of_basicsr(tmp_path):
  state = build.random_state({"scale": 2, "unshuffle": 2})
  params = names.from_state_dict(state).params
  path = files.write_weights(tmp_path / "a.safetensors", params, {"scale": 2})
  assert files.read_weights(path).config["unshuffle"] == 2


def test_float16_halves_the_file_and_rounds_once(tmp_path):
  state, params = _params()
  path = tmp_path / "a.safetensors"
  files.write_weights(path, params, build.CONFIG, dtype="float16")
  rounded = {k: v.astype(np.float16).astype("f4") for k, v in state.items()}
  _same(files.read_weights(path).params, rounded)
  raw = safetensors.numpy.load_file(path)
  assert {v.dtype for v in raw.values()} == {np.dtype("f2")}


def test_bfloat16_is_widened(tmp_path):
  values = np.random.default_rng(0).normal(size=(3, 4)).astype(jnp.bfloat16)
  entry = {"dtype": "BF16", "shape": (3, 4), "data_offsets": (0, 24)}
  header = json.dumps({"a": entry}).encode()
  path = tmp_path / "a.safetensors"
  size = len(header).to_bytes(8, "little")
  path.write_bytes(size + header + values.tobytes())
  found, metadata = safetensors_file.read_safetensors(path)
  np.testing.assert_array_equal(found["a"], values.astype(np.float32))
  assert metadata == {}


def test_equal_models_are_equal_files(tmp_path):
  _, params = _params()
  notes = {"source": "x", "licence": "MIT", "alpha": 0.5}
  one, other = (
    files.write_weights(
      tmp_path / f"{name}.safetensors", params, build.CONFIG, metadata=metadata
    ).read_bytes()
    for name, metadata in (
      ("one", notes),
      ("other", dict(reversed(notes.items()))),
    )
  )
  assert one == other
  assert (8 + int.from_bytes(one[:8], "little")) % 8 == 0


@pytest.mark.parametrize("metadata", [{}, {"source": 'caf\xe9 "a"\n'}])
def test_file_is_that_of_the_formats_own_writer(metadata):
  state = build.random_state({"num_block": 1})
  state["conv_hr.bias"] = state["conv_hr.bias"].astype(np.float16)
  state |= {"a": np.zeros((), np.int64), "b": np.zeros((0, 3), bool)}
  state |= {"turned": np.arange(6, dtype=np.float32).reshape(2, 3)}
  ours = safetensors_file.to_bytes(state, metadata)
  # It wants arrays in C order; of two keys, its order would be random.
  assert ours == safetensors.numpy.save(state, metadata or None)


def test_metadata_from_names_of_files_are_text():
  data = safetensors_file.to_bytes({}, {"source": os.fsdecode(b"caf\xe9")})
  assert safetensors_file.parse(data)[1] == {"source": "caf?"}
  with pytest.raises(ValueError, match="has type complex64"):
    safetensors_file.to_bytes({"a": np.zeros(1, "c8")}, {})


def test_damaged_safetensors(tmp_path):
  state, _ = _params()
  data = safetensors.numpy.save(state)
  path = tmp_path / "a.safetensors"
  for damaged in (data[:-5], data[:50], data[:8] + b"{" * 40 + data[48:]):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a\.safetensors: .* is damaged"):
      files.read_weights(path)


def test_safetensors_limits(tmp_path, monkeypatch):
  path = tmp_path / "a.safetensors"
  safetensors.numpy.save_file({"a": np.zeros(3, np.uint64)}, path)
  with pytest.raises(ValueError, match="a has type U64"):
    files.read_weights(path)
  monkeypatch.setattr(limits, "MAX_FILE_BYTES", 9)
  with pytest.raises(ValueError, match="the limit is 9"):
    files.read_weights(path)


@pytest.mark.torch
def test_spandrel_loads_what_is_written(tmp_path, torchvision):
  import spandrel
  import torch

  from tests.oracles.torch_rrdb import RRDBNet

  for scale, suffix in ((4, ".safetensors"), (2, ".pth"), (1, ".safetensors")):
    torch.manual_seed(scale)
    net = RRDBNet(num_feat=6, num_block=2, num_grow_ch=32, scale=scale)
    state = {k: v.numpy() for k, v in net.state_dict().items()}
    found = names.from_state_dict(state)
    path = tmp_path / f"x{scale}{suffix}"
    files.write_weights(path, found.params, found.config)
    loaded = spandrel.ModelLoader().load_from_file(path)
    assert (loaded.scale, loaded.architecture.name) == (scale, "ESRGAN")
    image = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
      torch.testing.assert_close(loaded(image), net(image).clamp(0, 1))


# --- .pth -------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [dict, build.authors, build.oldest])
@pytest.mark.parametrize("form", [build.zip_pth, build.legacy_pth])
def test_pth_in_every_dialect(tmp_path, dialect, form):
  state = build.random_state()
  path = tmp_path / "model.pth"
  path.write_bytes(form(dialect(state), lambda t: {"state_dict": t}))
  weights = files.read_weights(path)
  assert weights.config == build.NETWORK
  _same(weights.params, state)


def test_pth_with_and_without_average(tmp_path):
  state = build.random_state()
  path = tmp_path / "model.pth"
  path.write_bytes(
    build.zip_pth(state, lambda t: {"params": t, "params_ema": t})
  )
  assert "params_ema" in files.read_weights(path).notes[0]


@pytest.mark.torch
@pytest.mark.parametrize("scale", [3, 4])
def test_written_pth_is_read_by_torch_and_by_us(tmp_path, scale):
  import torch

  state, params = _params({"scale": scale})
  config = {**build.CONFIG, "scale": scale}
  path = files.write_weights(tmp_path / "a.pth", params, config)
  loaded = torch.load(path, weights_only=True)["params"]
  for key, value in state.items():
    np.testing.assert_array_equal(loaded[key].numpy(), value)
  again = files.write_weights(tmp_path / "b.pth", params, config)
  assert again.read_bytes() == path.read_bytes()
  weights = files.read_weights(path)  # The file tells of its scale.
  assert weights.config == {"architecture": "RRDBNet", **config}
  assert weights.metadata["architecture"] == "RRDBNet"
  _same(weights.params, state)


def test_pth_without_torch_says_what_to_do(tmp_path, monkeypatch):
  _, params = _params()
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(RuntimeError, match=r"write \.safetensors"):
    files.write_weights(tmp_path / "a.pth", params, build.CONFIG)
  assert os.listdir(tmp_path) == []


# --- ncnn -------------------------------------------------------------------


@pytest.mark.parametrize(
  ("config", "factors"),
  [
    ({}, (2, 2)),
    ({"scale": 2}, (2,)),
    ({"scale": 3}, (3,)),
    ({"scale": 2, "unshuffle": 2}, (2, 2)),
    ({"scale": 8, "num_block": 1, "num_feat": 5}, (2, 2, 2)),
    ({"num_in_ch": 1, "num_out_ch": 1}, (2, 2)),
    ({"num_in_ch": 4, "num_out_ch": 4, "scale": 3}, (3,)),
    ({"num_in_ch": 1, "num_out_ch": 1, "scale": 2, "unshuffle": 2}, (2, 2)),
  ],
)
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("suffix", [".param", ".bin"])
def test_ncnn(tmp_path, config, factors, half, suffix):
  state = build.random_state(config)
  param = build.write_ncnn(tmp_path, state, factors=factors, half=half)
  weights = files.read_weights(param.with_suffix(suffix))
  assert weights.config == {**build.NETWORK, **config}
  if half:
    state = {
      k: v.astype("f2").astype("f4") if v.ndim == 4 else v
      for k, v in state.items()
    }
  _same(weights.params, state)


@pytest.mark.parametrize("missing", [".param", ".bin"])
def test_ncnn_without_its_other_half(tmp_path, missing):
  param = build.write_ncnn(tmp_path, build.random_state())
  param.with_suffix(missing).unlink()
  (kept,) = tmp_path.iterdir()
  with pytest.raises(FileNotFoundError, match=f"model{missing}: an ncnn"):
    files.read_weights(kept)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("Input ", "PReLU ", "there are shuffles of pixels, PReLUs"),
    ("Input ", "InnerProduct ", "type InnerProduct"),
    ("Input ", "Input x ", "line 3 is malformed"),
    ("1=3 4=1", "1=1 4=1", "is no convolution of 3x3"),
    ("6=162", "6=161", "161 weights do not make 6 kernels"),
    ("6=162", "6=1e99", "6=1e99 is no count"),
    ("6=162", "6=abc", "6=abc is no number"),
    ("5=1 6=162", "5=0 6=162", "with a bias"),
    ("1=2.0", "1=1.5", "upsamples"),
    ("Interp conv_up2", "Noop n", "36 convolutions and 1 upsamplings"),
    ("Input data 0 1 data\n", "", "cut off"),
    ("7767517\n", "7767517\n9", "cut off"),
    ("7767517", "\xff767517", "no weight file|not text"),
  ],
)
def test_ncnn_param_damage(tmp_path, old, new, message):
  param = build.write_ncnn(tmp_path, build.random_state())
  text = param.read_text()
  assert old in text
  param.write_bytes(text.replace(old, new).encode("latin-1"))
  with pytest.raises(ValueError, match=message):
    files.read_weights(param.with_suffix(".bin"))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda b: b[:-4], "cut off"),
    (lambda b: b + b"\0\0\0\0", "4 bytes more"),
    (lambda b: b"\x38\x4b\x0d\0" + b[4:], "int8"),
    (lambda b: b"\1\0\0\0" + b[4:], "tag 0x00000001"),
    (lambda b: b"\0\0\0\0" + b[4:], "conv_first|cut off|quantised"),
    (lambda b: b[:4] + b"\xff\x7f" + b[6:], "conv_first.weight has 1 values"),
  ],
)
def test_ncnn_bin_damage(tmp_path, change, message):
  binary = build.write_ncnn(tmp_path, build.random_state()).with_suffix(".bin")
  binary.write_bytes(change(binary.read_bytes()))
  with pytest.raises(ValueError, match=message):
    files.read_weights(binary)


def test_ncnn_limits(tmp_path, monkeypatch):
  param = build.write_ncnn(tmp_path, build.random_state())
  monkeypatch.setattr(limits, "MAX_TABLE_BYTES", 9)
  with pytest.raises(ValueError, match=r"model\.param has \d+ bytes"):
    files.read_weights(param)


# --- everyday mishaps -------------------------------------------------------


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    (b"\n<!DOCTYPE html><html>", "is a web page"),
    (b"<html>", "is a web page"),
    (b"\x89PNG\r\n\x1a\n", "is an image"),
    (b"\xff\xd8\xff\xe0", "is an image"),
    (b"\x89HDF\r\n\x1a\n", "HDF5 file is cut off"),
    (b"\x1f\x8b\x08", "gzip"),
    (b"\0" * 257 + b"ustar", "tar archive"),
    (b"hello", "begins with b'hello'"),
  ],
)
def test_mishaps_are_explained(tmp_path, data, message):
  path = tmp_path / "model.pth"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=message) as error:
    files.read_weights(path)
  assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match="no file"):
    files.read_weights(tmp_path / "no.pth")
  with pytest.raises(ValueError, match="is a folder"):
    files.read_weights(tmp_path)


def test_content_counts_not_the_suffix(tmp_path):
  state, params = _params()
  path = files.write_weights(tmp_path / "a.safetensors", params, build.CONFIG)
  _same(files.read_weights(path.rename(tmp_path / "a.pth")).params, state)


def test_errors_name_the_file_and_keep_their_kind(tmp_path):
  path = tmp_path / "fc.safetensors"
  safetensors.numpy.save_file({"fc.weight": np.zeros(2, np.float32)}, path)
  with pytest.raises(UnsupportedWeightsError, match=r"fc\.safetensors"):
    files.read_weights(path)


def test_foreign_metadata_is_not_believed(tmp_path):
  state, _ = _params()
  path = tmp_path / "a.safetensors"
  safetensors.numpy.save_file(state, path, {"scale": "9", "unshuffle": "7"})
  assert files.read_weights(path).config == build.NETWORK


# --- writing ----------------------------------------------------------------


def test_existing_file_is_kept_unless_told(tmp_path):
  state, params = _params()
  path = tmp_path / "a.safetensors"
  path.write_bytes(b"precious")
  with pytest.raises(FileExistsError, match="overwrite=True"):
    files.write_weights(path, params, build.CONFIG)
  assert path.read_bytes() == b"precious"
  files.write_weights(path, params, build.CONFIG, overwrite=True)
  _same(files.read_weights(path).params, state)
  (tmp_path / "folder.safetensors").mkdir()
  with pytest.raises(FileExistsError, match="but a folder"):
    files.write_weights(
      tmp_path / "folder.safetensors", params, build.CONFIG, overwrite=True
    )


def test_failure_leaves_nothing_behind(tmp_path, full_disk):
  _, params = _params()
  path = tmp_path / "a.safetensors"
  path.write_bytes(b"precious")
  with full_disk(1000), pytest.raises(OSError, match="cannot be written: File"):
    files.write_weights(path, params, build.CONFIG, overwrite=True)
  assert os.listdir(tmp_path) == ["a.safetensors"]
  assert path.read_bytes() == b"precious"


def test_wrong_requests_to_write(tmp_path):
  state, params = _params()
  path = tmp_path / "a.safetensors"
  with pytest.raises(ValueError, match=r"suffix must be"):
    files.write_weights(tmp_path / "a.onnx", params, build.CONFIG)
  with pytest.raises(ValueError, match="'int8' must be"):
    files.write_weights(path, params, build.CONFIG, dtype="int8")
  with pytest.raises(FileNotFoundError, match="create it first"):
    files.write_weights(tmp_path / "no" / "a.pth", params, build.CONFIG)
  with pytest.raises(ValueError, match=r"num_block 5.* have 2"):
    files.write_weights(path, params, {**build.CONFIG, "num_block": 5})
  with pytest.raises(ValueError, match="x4 network"):
    files.write_weights(path, params, {**build.CONFIG, "scale": 8})
  state["conv_hr.bias"][0] = 1e5
  large = names.from_state_dict(state).params
  with pytest.raises(ValueError, match=r"conv_hr\.bias reaches 100000"):
    files.write_weights(path, large, build.CONFIG, dtype="float16")
  large["conv_hr"]["bias"][0] = np.nan
  with pytest.raises(ValueError, match=r"conv_hr\.bias has 1 values"):
    files.write_weights(path, large, build.CONFIG)
  assert os.listdir(tmp_path) == []
