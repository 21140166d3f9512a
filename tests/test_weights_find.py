"""What a name, a path in a workdir, or a file stands for."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.training import checkpoint
from esrgan_jax.weights import files, find, zoo
from esrgan_jax.weights.formats.stored_arrays import CheckpointError
from esrgan_jax.weights.workdir import phases
from tests import plain_states
from tests import weight_builders as build

_NET = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2}


def _save(phase, *steps, make=plain_states.psnr):
  config = {"generator": _NET, "scale": 4}
  with checkpoint.Checkpoints(phase, config=config, keep=9) as checkpoints:
    for step in steps:
      checkpoints.save(step, make(step))


def _write(path, number, **config):
  """Writes a network whose first bias is a number."""
  config = {**_NET, "scale": 4, **config}
  image = np.zeros((1, 8, 8, 3), np.float32)
  shapes = jax.eval_shape(RRDBNet(**config).init, jax.random.key(0), image)
  params = jax.tree.map(
    lambda x: np.full(x.shape, number, np.float32), shapes["params"]
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  return files.write_weights(path, params, config)


def _number(found):
  """The number that its averaged parameters were made of."""
  params = found.weights.params
  layer = params["conv"] if "conv" in params else params["conv_first"]
  return int(layer["bias"][0])


@pytest.fixture(scope="module", name="saved")
def _saved(tmp_path_factory):
  """A workdir: phase one finished, phase two under way."""
  run = tmp_path_factory.mktemp("saved") / "run"
  _save(run / "psnr", 1, 3)
  _write(run / "models/psnr.safetensors", 70)
  _write(run / "models/interpolated_0.8.safetensors", 80)
  _save(run / "gan", 2, 5, make=plain_states.gan)
  return run


@pytest.fixture(name="run")
def _run(saved, tmp_path):
  """The same, to do with it what one likes."""
  return shutil.copytree(saved, tmp_path / "run")


@pytest.mark.parametrize(
  ("path", "name", "number"),
  [
    ("", "run/gan", 6),
    ("psnr", "run/psnr", 70),
    ("gan", "run/gan", 6),
    ("gan/", "run/gan", 6),
    ("gan/checkpoints", "run/gan", 6),
    ("psnr/checkpoints", "run/psnr", 4),
    ("gan/checkpoints/2", "run/gan/2", 3),
    ("gan/2", "run/gan/2", 3),
    ("psnr/1", "run/psnr/1", 2),
    ("models/psnr.safetensors", "psnr.safetensors", 70),
    ("models/interpolated_0.8.safetensors", "interpolated_0.8.safetensors", 80),
  ],
)
def test_every_depth_of_a_workdir(run, path, name, number):
  found = find.find_model(f"{run}/{path}")
  assert (found.name, _number(found)) == (name, number)
  assert found.weights.config["architecture"] == "RRDBNet"
  assert found.weights.config["num_feat"] == 4


def test_the_folder_one_is_in(run, monkeypatch):
  monkeypatch.chdir(run)
  assert find.find_model(".").name == "run/gan"
  monkeypatch.chdir(run / "gan/checkpoints")
  assert _number(find.find_model("..")) == 6
  assert _number(find.find_model("2")) == 3


def test_first_and_last_phase(run):
  assert find.find_model(run, phase="first").name == "run/psnr"
  assert find.find_model(run, phase="last").name == "run/gan"
  shutil.rmtree(run / "gan")
  assert find.find_model(run).name == "run/psnr"
  with pytest.raises(FileNotFoundError, match="no model of phase gan"):
    find.find_model(run, phase="last")


def test_phases_are_those_of_the_config(run):
  shutil.rmtree(run / "gan")
  _write(run / "models/sharp.safetensors", 90)
  _save(run / "clean", 4)
  # Nothing tells the order of those that nobody knows.
  assert phases(run) == ("clean", "sharp", "psnr")
  assert find.find_model(run).name == "run/psnr"
  config = {"phases": {"sharp": {}, "clean": {}, "psnr": {}}}
  text = json.dumps(config | {"phase_order": ["psnr", "clean", "sharp"]})
  (run / "config.json").write_text(text)
  assert phases(run) == ("psnr", "clean", "sharp")
  assert _number(find.find_model(run)) == 90
  assert find.find_model(run, phase="first").name == "run/psnr"
  (run / "models/sharp.safetensors").unlink()
  assert find.find_model(run).name == "run/clean"
  (run / "config.json").write_text("[" * 9)  # Of a crash: as if it were not.
  assert find.find_model(run).name == "run/psnr"


def test_a_phase_that_began_from_a_model(tmp_path):
  """It alone is in the order; what it began from is the first."""
  _write(tmp_path / "models/psnr.safetensors", 1)
  _write(tmp_path / "models/gan.safetensors", 2)
  (tmp_path / "config.json").write_text('{"phase_order": ["gan"]}')
  assert _number(find.find_model(tmp_path, phase="first")) == 1
  assert _number(find.find_model(tmp_path, phase="last")) == 2


def test_models_of_unknown_order_are_left_to_the_user(tmp_path):
  for number, name in enumerate(("a", "b")):
    _write(tmp_path / f"models/{name}.safetensors", number)
  with pytest.raises(ValueError, match=r"give one, such as .*/b$"):
    find.find_model(tmp_path)
  assert _number(find.find_model(tmp_path / "b")) == 1


@pytest.mark.parametrize(
  ("path", "kind", "message"),
  [
    ("models", ValueError, r"give a file in it \(interpolated.*psnr\.safe"),
    ("gan/4", FileNotFoundError, r"step 4 in .*/gan; there are: 2, 5$"),
    ("gan/checkpoints/4", FileNotFoundError, r"there are: 2, 5$"),
    ("sharp", FileNotFoundError, "no file"),
    ("none.safetensors", FileNotFoundError, "no file .*none.safetensors"),
    ("gan/checkpoints/5/ema", ValueError, "is a part of the checkpoint .*/5:"),
    ("empty/checkpoints", FileNotFoundError, "no checkpoint in .* is complete"),
    ("empty", FileNotFoundError, "no model of phase empty, and no checkpoint"),
  ],
)
def test_what_is_not_there_is_told(run, path, kind, message):
  (run / "empty/checkpoints").mkdir(parents=True)
  with pytest.raises(kind, match=message) as error:
    find.find_model(run / path)
  assert "\n" not in str(error.value)


def test_workdirs_that_have_numbers_for_names(run):
  shutil.move(run, run.parent / "runs/1")
  with pytest.raises(ValueError, match="is a folder"):
    find.find_model(run.parent / "runs")
  assert find.find_model(run.parent / "runs/1").name == "1/gan"


def test_damage_names_the_step_before(run):
  (run / "gan/checkpoints/5/info/metadata").write_text("{")
  with pytest.raises(
    CheckpointError, match=r"5 is damaged: .* before is .*points/2$"
  ):
    find.find_model(run)
  shutil.rmtree(run / "gan/checkpoints/2")
  with pytest.raises(CheckpointError, match="5 is damaged: "):
    find.find_model(run)


def test_what_was_set_aside_can_be_read(run):
  aside = run / "gan/diverged_checkpoints"
  shutil.move(run / "gan/checkpoints/5", aside / "5")
  assert _number(find.find_model(aside)) == 6
  assert _number(find.find_model(run / "gan")) == 3


def test_a_checkpoint_of_an_architecture_that_nobody_registered(tmp_path):
  config = {"generator": {"architecture": "antigravity"}, "scale": 2}
  with checkpoint.Checkpoints(tmp_path / "psnr", config=config) as checkpoints:
    checkpoints.save(1, plain_states.psnr(1))
  with pytest.raises(ValueError, match=r"psnr/.*'antigravity'.*--plugin FILE"):
    find.find_model(tmp_path)
  assert "antigravity" not in sys.modules


def test_without_tensorstore_it_is_one_line(run):
  code = """
import sys
sys.modules["tensorstore"] = sys.modules["etils"] = None  # Not installed.
from esrgan_jax.weights import find
assert find.find_model(sys.argv[1] + "/psnr").name == "run/psnr"
try:
  find.find_model(sys.argv[1])
except RuntimeError as error:
  print(error)
"""
  done = subprocess.run(
    [sys.executable, "-c", code, str(run)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert re.fullmatch(
    r".*/gan/checkpoints/5 is a checkpoint, which takes tensorstore .*\n",
    done.stdout,
  )


# --- names ------------------------------------------------------------------


@pytest.mark.parametrize("model", [row.model for row in zoo.models()])
def test_official_names_find_their_entry(model):
  stem, suffix = os.path.splitext(model.filename)
  for name in (model.name, stem, model.filename):
    assert zoo.lookup(name) == model
  assert zoo.lookup(f"./{model.name}") is None
  assert zoo.lookup(stem + "_more" + suffix) is None


def test_a_name_wins_over_a_path_and_says_so(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = "realesrgan-x4plus-anime"
  _write(tmp_path / name / "models/psnr.safetensors", 7)
  found = find.find_model(name)
  assert found.weights.config["num_block"] == 6
  (note,) = found.weights.notes
  assert note.endswith(f"say ./{name}")
  assert _number(find.find_model(f"./{name}")) == 7


def test_a_file_of_an_official_name_is_the_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = "RealESRGAN_x4plus_anime_6B.pth"
  state = build.random_state()
  pathlib.Path(name).write_bytes(build.zip_pth(state))
  found = find.find_model(name)
  assert found.weights.config == build.NETWORK
  assert found.weights.notes == ()


def test_names_that_are_none(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="did you mean realesrgan-x4plus"):
    find.find_model("realesrgan-x4-plus")
  with pytest.raises(FileNotFoundError, match=r"no file none\.pth"):
    find.find_model("none.pth")


# --- discriminators ---------------------------------------------------------


@pytest.mark.parametrize("path", ["", "gan", "gan/checkpoints", "gan/5"])
def test_a_discriminator_is_found(run, path):
  found = find.find_discriminator(run / path)
  state = plain_states.gan(5)
  expected = {"params": dict(state.d_params)}
  if state.d_batch_stats:
    expected["batch_stats"] = dict(state.d_batch_stats)
  jax.tree.map(np.testing.assert_array_equal, found.variables, expected)


@pytest.mark.parametrize(
  ("path", "kind", "message"),
  [
    ("psnr", ValueError, "no checkpoint with a discriminator"),
    ("models/psnr.safetensors", ValueError, "supported is UNetDisc"),
    ("gan/4", FileNotFoundError, "there are: 2, 5"),
    ("none", FileNotFoundError, "no file"),
  ],
)
def test_where_there_is_no_discriminator(run, path, kind, message):
  with pytest.raises(kind, match=message):
    find.find_discriminator(run / path)
