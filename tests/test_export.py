"""The table of formats, and that a file is there in whole or not at all."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import esrgan_jax
from esrgan_jax import export, plugins
from esrgan_jax.models import registry
from esrgan_jax.weights import files, find
from tests.training_runs import ROOT


@pytest.fixture(scope="module", name="model")
def _model():
  return find.find_model("realesrgan-x4plus-anime").weights


@pytest.fixture(name="table")
def _table(monkeypatch):
  monkeypatch.setattr(export, "_formats", dict(export._formats))


def test_a_file_gives_back_what_was_written(model, tmp_path):
  path = export.write(tmp_path / "a.SAFETENSORS", model)
  found = files.read_weights(path)
  assert found.config == model.config
  for name in ("conv_first", "conv_last"):
    for leaf, value in model.params[name].items():
      np.testing.assert_array_equal(found.params[name][leaf], value)
  assert [p.name for p in tmp_path.iterdir()] == ["a.SAFETENSORS"]


def test_a_format_of_ones_own(model, tmp_path, table):
  def write(path, weights, *, dtype):
    path.write_text(f"{weights.config['num_block']} {dtype}")

  export.register_format(export.Format(".txt", "a note", write))
  export.register_format(export.Format(".txt", "a note", write))  # Again.
  path = export.write(tmp_path / "a.txt", model, dtype="float16")
  assert path.read_text() == "6 float16"
  with pytest.raises(FileExistsError):
    export.write(path, model)
  export.write(path, model, overwrite=True)
  assert path.read_text() == "6 float32"
  with pytest.raises(ValueError, match="another format has the suffix"):
    export.register_format(export.Format(".txt", "another", print))
  with pytest.raises(ValueError, match=r"must be .*\.pth, .*or \.txt$"):
    export.write(tmp_path / "a.bmp", model)


PLATFORMS = ("cpu", "cuda", "tpu")
_CALL = """
import pathlib
import sys
sys.modules["esrgan_jax"] = None  # Not installed.
import jax
import numpy as np
folder = pathlib.Path(sys.argv[1])
for name in sys.argv[2:]:
  program = jax.export.deserialize(bytearray((folder / name).read_bytes()))
  images = dict(np.load(folder / f"{name}.npz"))
  found = {key: program.call(image) for key, image in images.items()}
  np.savez(folder / f"{name}.out.npz", **found)
"""


def _without_this_package(folder, programs):
  """What programs give, in a process that cannot import the package."""
  for name, (program, images) in programs.items():
    (folder / name).write_bytes(program)
    np.savez(folder / f"{name}.npz", **images)
  subprocess.run(
    [sys.executable, "-c", _CALL, str(folder), *programs],
    cwd=folder,
    env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    check=True,
  )
  return {name: dict(np.load(folder / f"{name}.out.npz")) for name in programs}


@pytest.mark.release
def test_a_program_of_the_whole_network_runs_without_this_package(tmp_path):
  """At the published widths, real weights, for three platforms."""
  weights = find.find_model("realesrgan-x4plus").weights
  path = export.write(tmp_path / "model.jax", weights)
  content = path.read_bytes()
  program = jax.export.deserialize(bytearray(content))
  assert program.platforms == PLATFORMS
  assert len(content) < 1.1 * 67e6
  random = np.random.default_rng(0)
  images = {
    "a": random.random((2, 16, 21, 3), np.float32),
    "b": random.random((1, 33, 12, 3), np.float32),
  }
  found = _without_this_package(tmp_path, {"copy": (content, images)})["copy"]
  net = registry.make_generator(**weights.config)
  for key, image in images.items():
    expected = jax.jit(net.apply)({"params": weights.params}, image)
    np.testing.assert_allclose(found[key], expected, atol=1e-5)


@pytest.mark.slow
def test_functions_of_images_run_without_this_package(tmp_path):
  n, h, w = jax.export.symbolic_shape("n, h, w", constraints=["h>=19", "w>=19"])
  pair = jax.ShapeDtypeStruct((2, n, h, w, 3), np.float32)
  image = jax.ShapeDtypeStruct((n, h, w, 3), np.float32)
  options = {"crop_border": 4, "y_channel": True}
  cases = {
    "psnr": (lambda x: esrgan_jax.psnr(*x, **options), pair),
    "ssim": (lambda x: esrgan_jax.ssim(*x, **options), pair),
    "larger": (lambda x: esrgan_jax.imresize(x, scale=4), image),
    "smaller": (lambda x: esrgan_jax.imresize(x, scale=1 / 4), image),
  }
  random, programs = np.random.default_rng(0), {}
  for name, (function, spec) in cases.items():
    program = jax.export.export(jax.jit(function), platforms=PLATFORMS)
    first = spec.shape[:-4]
    images = {
      str(size): random.random((*first, *size, 3), np.float32)
      for size in ((2, 19, 24), (1, 200, 31))
    }
    programs[name] = (program(spec).serialize(), images)
  found = _without_this_package(tmp_path, programs)
  for name, (function, _) in cases.items():
    for key, image in programs[name][1].items():
      np.testing.assert_allclose(
        found[name][key], function(image), atol=1e-5, err_msg=name
      )


@pytest.mark.parametrize(
  ("config", "sizes"),
  [
    ({"architecture": "Normalized", "scale": 2}, [(5, 7), (9, 4)]),
    pytest.param(
      {"architecture": "RRDBNet", "scale": 2, "num_feat": 4, "num_block": 1},
      [(6, 4), (8, 10)],
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_program_of_ones_own_network_and_of_one_that_unshuffles(
  config, sizes, tmp_path
):
  plugins.load([ROOT / "tests/own_network.py"])
  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: random.random(x.shape, np.float32) / 10, files.expected(config)
  )
  params = variables.pop("params")
  weights = files.Weights(config, params, {}, (), variables)
  path = export.write(tmp_path / "own.jax", weights)
  program = jax.export.deserialize(bytearray(path.read_bytes()))
  net = registry.make_generator(**config)
  for size in sizes:
    lr = random.random((1, *size, 3), np.float32)
    expected = jax.jit(net.apply)({"params": params, **variables}, lr)
    np.testing.assert_allclose(program.call(lr), expected, rtol=1e-5, atol=1e-5)


def test_a_suffix_of_two_parts(model, tmp_path, table):
  def write(path, weights, *, dtype):
    path.write_text(path.name)

  for suffix in (".gz", ".tar.gz"):
    export.register_format(export.Format(suffix, "packed", write))
  path = export.write(tmp_path / "a.b.TAR.GZ", model)
  assert path.read_text() == "model.tar.gz"
  assert export.write(tmp_path / "a.gz", model).read_text() == "model.gz"
  with pytest.raises(ValueError, match=r"cannot write .*\.gz: the suffix"):
    export.write(tmp_path / ".gz", model)


def test_a_writer_that_fails_is_named(model, tmp_path, table):
  def write(path, weights, *, dtype):
    return weights.params["no such layer"]

  export.register_format(export.Format(".nil", "nothing", print))
  export.register_format(export.Format(".bad", "bad", write))
  for suffix, message in (
    (".nil", "the writer of .nil fails: TypeError: "),
    (".bad", "the writer of .bad fails: KeyError: 'no such layer'"),
  ):
    with pytest.raises(ValueError, match=re.escape(message)):
      export.write(tmp_path / f"a{suffix}", model)
  nothing = export.Format(".none", "nothing", lambda *_, **__: None)
  export.register_format(nothing)
  with pytest.raises(ValueError, match=r"writer of \.none fails: it wrote no"):
    export.write(tmp_path / "a.none", model)
  assert not list(tmp_path.iterdir())


def test_a_writer_that_fails_leaves_nothing(model, tmp_path, table):
  def write(path, weights, *, dtype):
    path.write_bytes(b"half")
    raise ValueError("this network has too many layers")

  export.register_format(export.Format(".half", "half", write))
  with pytest.raises(ValueError, match="too many layers"):
    export.write(tmp_path / "a.half", model)
  assert not list(tmp_path.iterdir())


def test_what_cannot_be_raises(model, tmp_path):
  with pytest.raises(ValueError, match="dtype 'int8' must be one of float32"):
    export.write(tmp_path / "a.safetensors", model, dtype="int8")
  with pytest.raises(FileNotFoundError):
    export.write(tmp_path / "no" / "a.safetensors", model)
  for suffix in ("npz", ".NPZ"):
    with pytest.raises(ValueError, match="a suffix is a dot"):
      export.register_format(export.Format(suffix, "", print))
