"""Models as programs of other runtimes, each tried before it has its name.

What needs a runtime is marked so, and runs where the extras are installed.
"""

import contextlib
import dataclasses
import functools
import http.server
import json
import pathlib
import re
import subprocess
import sys
import threading

import flax.linen as nn
import jax
import numpy as np
import pytest

from esrgan_jax import plugins
from esrgan_jax.__main__ import main
from esrgan_jax.export import arrays, checking, graphs, ncnn_files, programs
from esrgan_jax.models import registry
from esrgan_jax.weights import files, find, zoo
from tests import weight_builders as build
from tests.training_runs import ROOT

_RRDB = {"num_feat": 6, "num_block": 2, "num_grow_ch": 4}
_SRGAN = {"num_feat": 6, "num_block": 2, "scale": 2}
_COMPACT = {"num_feat": 6, "num_conv": 2}
NETWORKS = {
  "RRDBNet": [
    {**_RRDB, "scale": 4, "unshuffle": 1},
    {**_RRDB, "scale": 2, "unshuffle": 2},
    {**_RRDB, "scale": 1, "unshuffle": 4},
    {**_RRDB, "scale": 3, "unshuffle": 1},
    {**_RRDB, "scale": 8, "unshuffle": 1},
  ],
  "CenteredRRDBNet": [
    {**_RRDB, "scale": 4, "unshuffle": 1},
    {**_RRDB, "scale": 2, "unshuffle": 2},
  ],
  "SRResNet": [
    {**_SRGAN, "variant": "msrresnet"},
    {**_SRGAN, "variant": "msrresnet", "scale": 3},
    {**_SRGAN, "slopes": "channel", "output": "tanh", "centered": True},
    {**_SRGAN, "norm": "none", "scale": 8},
  ],
  "SRVGGNetCompact": [
    {**_COMPACT, "scale": 4},
    {**_COMPACT, "scale": 3, "act_type": "leakyrelu"},
    {**_COMPACT, "scale": 2, "act_type": "relu"},
    {**_COMPACT, "scale": 1},
    {**_COMPACT, "scale": 2, "shuffle": 4},
    {**_COMPACT, "scale": 3, "shuffle": 4},
  ],
}
CASES = [
  {"architecture": name, **fields}
  for name, rows in NETWORKS.items()
  for fields in rows
  if name in registry.generators()
]


def _name(config):
  return "-".join(map(str, config.values()))


def _weights(config, seed=0):
  """A model whose every array shows in its result."""
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == "var":
      return random.uniform(0.5, 2, leaf.shape).astype(np.float32)
    width = np.prod(leaf.shape[-4:-1]) if path[-1].key == "kernel" else 16
    return random.normal(0, width**-0.5, leaf.shape).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, files.expected(config))
  params = variables.pop("params")
  return files.Weights(config, params, {}, (), dict(variables))


def _infer(weights, lr):
  net = registry.plain_form(registry.make_generator(**weights.config))
  variables = {"params": weights.params, **weights.collections}
  return jax.jit(lambda v, x: registry.infer(net, v, x))(variables, lr)


def _compare_drawn(config):
  weights = _weights(config)
  lr = np.random.default_rng(1).random((2, 12, 16, 3), np.float32)
  found = jax.jit(lambda x: arrays.forward(weights, x))(lr)
  np.testing.assert_allclose(found, _infer(weights, lr), atol=2e-5, rtol=1e-5)


def test_a_drawn_network_is_the_network():
  _compare_drawn({**CASES[1], "num_block": 1})


@pytest.mark.slow
@pytest.mark.parametrize("config", CASES, ids=_name)
def test_each_drawn_network_is_the_network(config):
  _compare_drawn(config)


@pytest.mark.slow
def test_a_network_that_unshuffles_takes_any_size():
  weights = _weights(CASES[2])
  lr = np.random.default_rng(1).random((1, 9, 14, 3), np.float32)
  whole = np.pad(lr, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="edge")
  found = jax.jit(lambda x: arrays.forward(weights, x))(lr)
  expected = _infer(weights, whole)[:, :9, :14]
  np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


def test_ncnn_files_are_those_that_were_published(tmp_path):
  """`.bin` byte for byte; of `.param`, what a reader makes of it."""
  original = pathlib.Path(zoo.find("realesrgan-x4plus-anime"))
  weights = files.read_weights(original)
  path = tmp_path / "a.param"
  ncnn_files.write(path, weights, programs.Options("float16"))
  assert path.with_suffix(".bin").read_bytes() == (
    original.with_suffix(".bin").read_bytes()
  )
  found = files.read_weights(path)
  assert found.config == weights.config
  jax.tree.map(np.testing.assert_array_equal, found.params, weights.params)
  kinds = [line.split()[0] for line in path.read_text().splitlines()[2:]]
  published = original.with_suffix(".param").read_text().splitlines()[2:]
  assert sorted(kinds) == sorted(line.split()[0] for line in published)


# A format of one's own, whose runtime is NumPy.
class Gain(nn.Module):
  """Repeats pixels, brighter."""

  scale: int = 2

  @nn.compact
  def __call__(self, lr):
    ones = nn.initializers.ones
    gain = self.param("gain", ones, (3,))
    gain = gain.reshape((1,) * (lr.ndim - 1) + (3,))
    return (lr * gain).repeat(self.scale, -3).repeat(self.scale, -2)


def _write_gain(path, weights, options):
  text = [weights.config["scale"], *map(float, weights.params["gain"])]
  path.write_text(json.dumps(text))
  path.with_suffix(".note").write_text("beside it")


def _run_gain(path, images):
  import json

  with open(path) as file:
    scale, *gain = json.load(file)
  for image in images:
    larger = image.repeat(scale, axis=1).repeat(scale, axis=2)
    yield larger * np.float32(gain)


@pytest.fixture(name="gain")
def _gain(monkeypatch):
  monkeypatch.setattr(programs, "_programs", dict(programs._programs))
  registry.register_generator("Gain", Gain)
  program = programs.Program(
    "gain",
    "JSON",
    suffix=".json",
    others=(".note",),
    packages=("json",),
    runtime="numpy",
    write=_write_gain,
    run=_run_gain,
    bounds={"float32": 1e-6},
  )
  programs.register_program(program)
  yield program
  registry.unregister("Gain")


def _gain_weights(gain=(0.5, 1.0, 1.5)):
  config = {"architecture": "Gain", "scale": 2}
  return files.Weights(config, {"gain": np.float32(gain)}, {})


def test_a_program_is_run_before_it_has_its_name(gain, tmp_path):
  weights = _gain_weights()
  done = programs.export("gain", tmp_path / "a", weights)
  assert [p.name for p in done.paths] == ["a.json", "a.note"]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.note"]
  assert done.checked.difference < 1e-6
  assert done.checked.sizes == ((1, 48, 64), (2, 21, 35))
  # A flipped number, in a file that was whole.
  path = tmp_path / "a.json"
  path.write_text(path.read_text().replace("0.5", "-0.5"))
  with pytest.raises(
    ValueError, match=r"another result than the model: .*0\.7"
  ):
    programs.verify(gain, path, weights, programs.Options("float32"))
  with pytest.raises(FileExistsError):
    programs.export("gain", tmp_path / "a.note", weights)
  programs.export("gain", path, weights, overwrite=True)
  assert "-0.5" not in path.read_text()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[2, 0.5, 1, 1.6]", "numpy gives another result than the model"),
    ("[2, 0.5, 1, NaN]", "numpy gives another result than the model"),
    ("[3, 0.5, 1, 1.5]", r"makes \(1, 144, 192, 3\) of an image of 48x64"),
    ("[2", "numpy cannot run the export: json.decoder.JSONDecodeError"),
  ],
)
def test_of_a_program_that_is_wrong_nothing_is_left(
  gain, tmp_path, monkeypatch, text, message
):
  def write(path, weights, options):
    path.write_text(text)
    path.with_suffix(".note").touch()

  broken = dataclasses.replace(gain, write=write)
  monkeypatch.setitem(programs._programs, "gain", broken)
  with pytest.raises(ValueError, match=f"{message}.*a.json was not written"):
    programs.export("gain", tmp_path / "a.json", _gain_weights())
  assert not list(tmp_path.iterdir())


def test_the_process_has_neither_jax_nor_this_package(gain):
  def run(path, images):
    import importlib

    for name in ("jax", "jaxlib", "flax", "esrgan_jax"):
      try:
        importlib.import_module(name)
      except ImportError:
        continue
      raise ValueError(f"{name} is there")
    yield from (image.repeat(2, axis=1).repeat(2, axis=2) for image in images)

  program = dataclasses.replace(gain, run=run)
  weights = _gain_weights((1, 1, 1))
  found = programs.verify(
    program, ROOT / "README.md", weights, programs.Options("float32")
  )
  assert found.difference == 0


def test_what_cannot_be_exported_is_said_in_a_line(gain, tmp_path, capsys):
  source = str(tmp_path / "a.safetensors")
  config = {**CASES[1]}
  weights = _weights(config)
  files.write_weights(source, weights.params, config)
  out, other = str(tmp_path / "o"), str(tmp_path / "other")
  pathlib.Path(other).touch()
  for arguments, message in (
    (["--format", "stablehlo", "-o", f"{out}.onnx"], "no name of stablehlo"),
    (["--format", "stablehlo", "-o", f"{out}.tar.gz"], "no name of stablehlo"),
    (["--format", "stablehlo", "--dtype", "int8", "-o", out], "has no int8"),
    (["--format", "stablehlo", "--size", "9", "-o", out], "is for any size"),
    (["--format", "stablehlo", "-o", f"{out}/a.jax"], "no folder"),
    (["--format", "stablehlo", "-o", source], "would replace an input"),
    (["--format", "stablehlo", "-o", other], "exists"),
    (["--format", "stablehlo", "--check", "-o", out], f"no {out}"),
    (["--format", "stablehlo", "--photo", "no.png", "-o", out], "no.png"),
  ):
    words = " ".join(arguments)
    status = 2 if re.search(r"\.(onnx|gz)$|int8|--size", words) else 1
    assert main(["export", source, *arguments]) == status
    error = capsys.readouterr().err
    assert message in error.replace("\n", " ")
    assert error.count("\n") == 1
  arguments = ["export", source, "--format", "stablehlo", "-o", source]
  assert main([*arguments, "--overwrite"]) == 1
  assert "would replace an input" in capsys.readouterr().err
  missing = dataclasses.replace(
    gain, name="absent", packages=("json", "no_such_runtime")
  )
  programs.register_program(missing)
  with pytest.raises(
    RuntimeError,
    match=r"absent takes no_such_runtime, .*: pip install no_such_runtime$",
  ):
    programs.export("absent", out, _gain_weights())
  with pytest.raises(ValueError, match="layers of Gain are not known, only"):
    graphs.draw(None, None, _gain_weights())
  with pytest.raises(ValueError, match="takes multiples of 2 pixels, got 8x9"):
    programs._check_model(missing, weights, programs.Options("float32", (8, 9)))
  found = sorted(p.name for p in tmp_path.iterdir())
  assert found == ["a.safetensors", "other"]


def test_a_runtime_may_come_by_another_name(tmp_path, monkeypatch):
  program = dataclasses.replace(
    programs.find_program("stablehlo"), runtime="other-runtime"
  )
  assert programs.runtime_version(program) == "other-runtime"
  info = tmp_path / "other_runtime_cpu-1.5.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Name: other-runtime-cpu\nVersion: 1.5\n")
  (info / "top_level.txt").write_text("other_runtime\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  assert programs.runtime_version(program) == "other-runtime-cpu 1.5"


def test_the_photo_is_one():
  photo = checking.sample_photo()
  assert photo.dtype == np.uint8
  assert len(np.unique(photo.reshape(-1, 3), axis=0)) > 1000


def _file(tmp_path, config):
  weights = _weights(config)
  path = tmp_path / "model.safetensors"
  files.write_weights(
    path, weights.params, config, collections=weights.collections
  )
  return str(path), weights


def _flip(path, kernel):
  """Flips the sign of a kernel's least number, wherever a file has it."""
  for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
    data = file.read_bytes() if file.is_file() else b""
    for order in ((0, 1, 2, 3), (3, 2, 0, 1), (3, 0, 1, 2)):
      for dtype in ("<f4", "<f2"):
        array = np.ascontiguousarray(kernel.transpose(order)).astype(dtype)
        start = data.find(array.tobytes())
        if start < 0:
          continue
        array.flat[np.abs(array).argmin()] *= -1
        end = start + array.nbytes
        file.write_bytes(data[:start] + array.tobytes() + data[end:])
        return True
  return False


def _export_and_corrupt(name, tmp_path, capsys, config, *options):
  source, weights = _file(tmp_path, config)
  out = tmp_path / "out"
  arguments = ["export", source, "--format", name, "-o", str(out), *options]
  assert main(arguments) == 0, capsys.readouterr().err
  said = capsys.readouterr().out
  number = re.search(r"difference from the model (\S+) of 1", said)[1]
  assert float(number) < 5e-2
  assert said.endswith("done\n")
  assert main([*arguments, "--check"]) == 0
  capsys.readouterr()
  kernel = weights.params["conv_hr"]["kernel"]
  flipped = out.with_suffix(".bin") if name == "ncnn" else out
  assert _flip(flipped, kernel)
  assert main([*arguments, "--check"]) == 1
  error = capsys.readouterr().err
  wrong = ("another result than the model", "other numbers")
  # TensorFlow has sums of its own.
  assert any(each in error for each in (*wrong, "Checksum does not match"))


@pytest.mark.release
def test_stablehlo_and_a_flipped_weight(tmp_path, capsys):
  _export_and_corrupt(
    "stablehlo", tmp_path, capsys, CASES[0], "--dtype", "float16"
  )


_RUNTIMES = ("onnx", "ncnn", "tflite", "saved_model")


@pytest.mark.runtimes
@pytest.mark.parametrize("name", _RUNTIMES[:3])
def test_a_runtime_and_a_flipped_weight(tmp_path, capsys, name):
  _export_and_corrupt(name, tmp_path, capsys, CASES[0])


@pytest.mark.slow
@pytest.mark.runtimes
@pytest.mark.parametrize(
  ("name", "option", "value"),
  [
    ("onnx", "--dtype", "float16"),
    ("onnx", "--size", "20x28"),
    ("ncnn", "--dtype", "float32"),
    ("tflite", "--dtype", "float16"),
    ("tflite", "--size", "20x28"),
    ("saved_model", "--dtype", "float32"),
  ],
)
def test_an_option_and_a_flipped_weight(tmp_path, capsys, name, option, value):
  _export_and_corrupt(name, tmp_path, capsys, CASES[0], option, value)


@pytest.mark.slow
@pytest.mark.runtimes
@pytest.mark.parametrize("config", CASES, ids=_name)
@pytest.mark.parametrize("name", _RUNTIMES)
def test_each_network_in_each_runtime(tmp_path, name, config):
  programs.export(name, tmp_path / "out", _weights(config))


@pytest.mark.slow
@pytest.mark.runtimes
@pytest.mark.parametrize("name", _RUNTIMES)
def test_a_model_that_is_trained_in_each_runtime(tmp_path, name):
  weights = find.find_model("realesrgan-x4plus-anime").weights
  done = programs.export(name, tmp_path / "out", weights)
  assert done.checked.psnr > 60


@pytest.mark.slow
@pytest.mark.runtimes
@pytest.mark.parametrize("name", ["stablehlo", "tflite", "saved_model"])
def test_a_network_of_ones_own_is_traced(tmp_path, name):
  plugins.load([ROOT / "tests/own_network.py"])
  weights = _weights({"architecture": "Normalized", "scale": 2})
  programs.export(name, tmp_path / "out", weights)


@pytest.mark.slow
@pytest.mark.runtimes
def test_int8_and_a_flipped_weight(tmp_path):
  weights = _weights(CASES[0])
  options = programs.Options("int8")
  path = tmp_path / "a.tflite"
  programs.export("tflite", path, weights, options)
  for array in weights.params["conv_hr"].values():
    place = np.abs(array).argmax()
    array.flat[place] *= -1
    with pytest.raises(ValueError, match="has other numbers than the model"):
      programs.verify(programs.find_program("tflite"), path, weights, options)
    array.flat[place] *= -1


@pytest.mark.slow
@pytest.mark.runtimes
@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    ("onnx", "float16"),
    ("ncnn", "float16"),
    ("tflite", "float32"),
    ("tflite", "int8"),
  ],
)
def test_a_flipped_slope(tmp_path, name, dtype):
  weights = _weights({**CASES[-1], "scale": 2})
  options = programs.Options(dtype)
  path, *_ = programs.export(name, tmp_path / "a", weights, options).paths
  slopes = weights.params["body"]["act"]["slope"]
  slopes[0] *= -1
  with pytest.raises(ValueError, match="other numbers than the model: slope "):
    programs.verify(programs.find_program(name), path, weights, options)


_HUB = """
import sys
import numpy as np
import tensorflow_hub as hub
sys.modules["jax"] = None
model = hub.load(sys.argv[1])
image = np.load(sys.argv[2])
np.save(sys.argv[3], model.call(image))
"""


@contextlib.contextmanager
def _served(folder):
  """Yields the address of a server of a folder's files."""
  handler = functools.partial(
    http.server.SimpleHTTPRequestHandler, directory=folder
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.runtimes
def test_hub_loads_a_packed_saved_model(tmp_path):
  """As its README has it: `hub.load(URL).call(image)`, 0..255."""
  weights = _weights(CASES[0])
  programs.export("saved_model", tmp_path / "esrgan.tar.gz", weights)
  image = checking.sample_photo()[np.newaxis].astype(np.float32)
  np.save(tmp_path / "image.npy", image)
  with _served(tmp_path) as address:
    subprocess.run(
      [
        *(sys.executable, "-c", _HUB, f"{address}/esrgan.tar.gz"),
        *(str(tmp_path / name) for name in ("image.npy", "sr.npy")),
      ],
      check=True,
    )
  found = np.load(tmp_path / "sr.npy")
  expected = _infer(weights, image / 255) * 255
  limit = 2e-5 * max(255, np.abs(expected).max())
  np.testing.assert_allclose(found, expected, atol=limit, rtol=0)


@pytest.mark.runtimes
def test_onnx_has_the_names_that_others_expect(tmp_path):
  import onnx

  weights = _weights(CASES[0])
  path = tmp_path / "a.onnx"
  programs.export("onnx", path, weights)
  model = onnx.load(path)
  sides = [
    (each.name, [d.dim_param or d.dim_value for d in shape.dim])
    for each in (*model.graph.input, *model.graph.output)
    for shape in [each.type.tensor_type.shape]
  ]
  assert sides == [
    ("input", ["batch_size", 3, "height", "width"]),
    ("output", ["batch_size", 3, "4*height", "4*width"]),
  ]
  arrays = {each.name: list(each.dims) for each in model.graph.initializer}
  state = build.names.shapes(
    {"num_in_ch": 3, "num_out_ch": 3, **weights.config}
  )
  assert {k: list(v) for k, v in state.items()}.items() <= arrays.items()
