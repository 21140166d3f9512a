"""The table of formats, and that a file is there in whole or not at all."""

import re

import numpy as np
import pytest

from esrgan_jax import export
from esrgan_jax.weights import files, find


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
  with pytest.raises(ValueError, match=r"must be .safetensors, .pth or .txt"):
    export.write(tmp_path / "a.bmp", model)


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
