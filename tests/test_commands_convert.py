"""`python -m esrgan_jax convert` and `models`."""

import os

import numpy as np
import pytest

from esrgan_jax import __main__
from esrgan_jax.weights import files, zoo
from tests import weight_builders as build


def test_models_lists_every_model_and_what_is_here(capsys):
  assert __main__.main(["models"]) == 0
  lines = capsys.readouterr().out.splitlines()
  for row in zoo.models():
    line = next(x for x in lines if x.split()[:1] == [row.model.name])
    assert f"x{row.model.scale}" in line
    assert row.model.licence in line
    assert (" here " in line) == (row.path is not None)
  assert "(default)" in next(x for x in lines if "realesrgan-x4plus " in x)


def test_models_verbose_tells_checksums(capsys):
  assert __main__.main(["models", "--verbose"]) == 0
  out = capsys.readouterr().out
  for row in zoo.models():
    assert (row.model.sha256 or "none is published") in out


def test_a_named_model_to_safetensors_and_back(tmp_path, capsys):
  path = tmp_path / "anime.safetensors"
  name = "realesrgan-x4plus-anime"
  assert __main__.main(["convert", name, str(path)]) == 0
  assert "num_block=6" in capsys.readouterr().out
  original = files.read_weights(zoo.find(name))
  converted = files.read_weights(path)
  assert converted.config == original.config
  assert converted.metadata["licence"] == "BSD-3-Clause"
  kernel = ("body", "rdb2", "conv3", "kernel")
  a, b = original.params, converted.params
  for key in kernel:
    a, b = a[key], b[key]
  np.testing.assert_array_equal(a, b)
  half = tmp_path / "half.safetensors"
  arguments = ["convert", str(path), str(half), "--dtype", "float16"]
  assert __main__.main(arguments) == 0
  assert half.stat().st_size < 0.51 * path.stat().st_size


def test_nothing_is_lost(tmp_path, capsys):
  path = tmp_path / "a.safetensors"
  name = "realesrgan-x4plus-anime"
  __main__.main(["convert", name, str(path)])
  before = path.read_bytes()
  for arguments, message in (
    ([str(path), str(path)], "would replace an input"),
    ([str(path), str(path), "--overwrite"], "would replace an input"),
    ([name, str(path)], "exists"),
    ([name, str(tmp_path / "a.h5")], "suffix"),
    ([str(tmp_path / "none.pth"), str(tmp_path / "b.safetensors")], "none"),
  ):
    status = 2 if message == "suffix" else 1
    assert __main__.main(["convert", *arguments]) == status
    assert message in capsys.readouterr().err
    assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
  ("target", "message"),
  [
    ("null", "is not a file but a device"),
    ("dangling", "where there is nothing"),
    ("none/a", "no folder"),
    ("pipe", "is not a file but a pipe"),
  ],
)
def test_targets_are_looked_at_before_the_work(
  tmp_path, capsys, target, message
):
  (tmp_path / "null.safetensors").symlink_to("/dev/null")
  (tmp_path / "dangling.safetensors").symlink_to("nowhere")
  os.mkfifo(tmp_path / "pipe.safetensors")
  target = str(tmp_path / f"{target}.safetensors")
  # Had it been read, that would be the error.
  (tmp_path / "a.pth").write_bytes(b"no weights")
  command = ["convert", str(tmp_path / "a.pth"), target, "--overwrite"]
  assert __main__.main(command) == 1
  assert message in capsys.readouterr().err
  assert len(list(tmp_path.iterdir())) == 4


def test_without_a_command_there_is_help(capsys):
  with pytest.raises(SystemExit) as stop:
    __main__.main([])
  assert stop.value.code == 2
  assert "COMMAND" in capsys.readouterr().err


def test_every_command_asks_for_a_scale_that_no_file_tells(tmp_path, capsys):
  model = str(tmp_path / "net.pth")
  state = build.random_state({"scale": 3, "num_block": 1})
  (tmp_path / "net.pth").write_bytes(build.zip_pth(state))
  out = str(tmp_path / "net.safetensors")
  for command in (
    ["convert", model, out],
    ["interpolate", model, model, "-o", out],
    ["upscale", out.replace("safetensors", "png"), "--model", model],
    ["evaluate", "--model", model, "--hr", str(tmp_path)],
  ):
    (tmp_path / "net.png").write_bytes(b"")
    assert __main__.main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {model}: its one upsampling may be by 2")
    assert "--model-scale 2 or --model-scale 3" in line
    with pytest.raises(SystemExit):
      __main__.main([*command, "--model-scale", "0"])
    assert "0 is not at least 1" in capsys.readouterr().err
  for flag in ("--model-scale", "--scale"):
    command = ["convert", model, out, flag, "3", "--overwrite"]
    assert __main__.main(command) == 0
    assert files.read_weights(out).config["scale"] == 3
