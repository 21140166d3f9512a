"""Every command takes a model in every form: all ask `weights.find`."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image as PilImage

import esrgan_jax
from esrgan_jax.__main__ import main
from tests.training_runs import trained

# What is asked for, and whose finished model it is; of the tiny workdir.
_FORMS = {
  "": "gan",
  "gan": "gan",
  "gan/checkpoints": "gan",
  "gan/checkpoints/8": "gan",
  "gan/8": "gan",
  "models/gan.safetensors": "gan",
  "psnr": "psnr",
  "psnr/12": "psnr",
}
_CHEAP = ("", "psnr/checkpoints/12")  # Where a program is compiled for each.


@pytest.fixture(scope="module", name="run")
def _run():
  return trained()[0] / "run"


def _arrays(path):
  return safetensors.numpy.load_file(path)


def _assert_model(path, expected):
  found, expected = _arrays(path), _arrays(expected)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("form", _FORMS)
def test_convert(run, tmp_path, form):
  out = tmp_path / "out.safetensors"
  assert main(["convert", str(run / form), str(out)]) == 0
  _assert_model(out, run / f"models/{_FORMS[form]}.safetensors")


def test_a_step_is_that_steps(run, tmp_path):
  out = tmp_path / "out.safetensors"
  assert main(["convert", str(run / "psnr/9"), str(out)]) == 0
  early, late = _arrays(out), _arrays(run / "models/psnr.safetensors")
  assert any((early[name] != late[name]).any() for name in late)


@pytest.mark.parametrize("form", _FORMS)
def test_interpolate(run, tmp_path, form):
  out = tmp_path / "out.safetensors"
  other = str(run / "models/psnr.safetensors")
  # At alpha 1, all is the second's; of a workdir that is the last phase.
  command = ["interpolate", other, str(run / form), "--alpha", "1"]
  assert main([*command, "-o", str(out)]) == 0
  _assert_model(out, run / f"models/{_FORMS[form]}.safetensors")


def test_interpolate_takes_the_first_and_the_last_phase(run, tmp_path):
  for alpha, phase in ((0, "psnr"), (1, "gan")):
    out = tmp_path / f"{phase}.safetensors"
    command = ["interpolate", str(run), str(run), "--alpha", str(alpha)]
    assert main([*command, "-o", str(out)]) == 0
    _assert_model(out, run / f"models/{phase}.safetensors")


def _upscaled(model, folder):
  folder.mkdir()
  pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
  PilImage.fromarray(pixels).save(folder / "in.png")
  command = ["upscale", str(folder / "in.png"), "-o", str(folder / "out.png")]
  assert main([*command, "--model", str(model)]) == 0
  return np.asarray(PilImage.open(folder / "out.png"))


@pytest.mark.parametrize("form", _CHEAP)
def test_upscale(run, tmp_path, form):
  phase = _FORMS.get(form, "psnr")
  found = _upscaled(run / form, tmp_path / "a")
  expected = _upscaled(run / f"models/{phase}.safetensors", tmp_path / "b")
  assert found.shape == (36, 32, 3)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", _CHEAP)
def test_evaluate(run, tmp_path, form):
  phase = _FORMS.get(form, "psnr")
  found = []
  for model in (run / form, run / f"models/{phase}.safetensors"):
    out = tmp_path / f"{len(found)}.json"
    command = ["evaluate", "--hr", str(run.parent / "photos"), "--json", out]
    assert main([*map(str, command), "--model", str(model)]) == 0
    (evaluation,) = json.loads(out.read_text())["evaluations"]
    found.append(evaluation["means"])
  assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("form", _FORMS)
def test_load(run, form):
  model = esrgan_jax.load(run / form)
  kernel = np.asarray(model.params["conv_last"]["kernel"]).transpose(3, 2, 0, 1)
  path = run / f"models/{_FORMS[form]}.safetensors"
  np.testing.assert_array_equal(_arrays(path)["conv_last.weight"], kernel)


@pytest.mark.parametrize("command", ["upscale", "evaluate", "convert"])
def test_what_is_no_model_is_one_line(run, tmp_path, capsys, command):
  models = run / "models"
  arguments = {
    "upscale": [str(run.parent / "photos/0.png"), "--model", str(models)],
    "evaluate": ["--hr", str(run.parent / "photos"), "--model", str(models)],
    "convert": [str(models), str(tmp_path / "a.safetensors")],
  }
  assert main([command, *arguments[command]]) == 1
  error = capsys.readouterr().err
  assert "is a folder: give a file in it (gan.safetensors, " in error
  assert error.count("\n") == 1
  assert list(pathlib.Path(tmp_path).iterdir()) == []


def test_another_scale_is_not_ignored(run, tmp_path, capsys):
  out = str(tmp_path / "out.safetensors")
  for command in (
    ["convert", str(run / "gan/8"), out],
    ["interpolate", str(run / "psnr/12"), str(run), "-o", out],
    ["evaluate", "--hr", str(run.parent / "photos"), "-m", str(run / "gan/8")],
  ):
    assert main([*command, "--scale", "2"]) == 1
    assert "is a x4 model, not x2" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []
