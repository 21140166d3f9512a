"""Each config of configs/, by the command, smaller: to a report and a photo.

configs/finetune.py has tests of its own, test_finetune.py. configs/realesrnet
is the first phase of configs/realesrgan, and configs/realesrgan_finetune the
second, of other data: test_realesrgan.py has those.
"""

import io
import json

import jax
import numpy as np
import pytest
import rich.console
from PIL import Image as PilImage

from esrgan_jax import __main__, main
from esrgan_jax.data.sources import SamplePhotos
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import run as run_lib
from esrgan_jax.weights import files
from tests.training_runs import ROOT, SMALLER, logged

_ELSEWHERE = ("finetune", "realesrnet", "realesrgan_finetune")
# One with all that there is, one of a single phase; the others are likewise.
_SOON = ("gan", "psnr")
_CARDS = [
  pytest.param(
    name, marks=pytest.mark.slow if name in _SOON else pytest.mark.release
  )
  for name in sorted(path.stem for path in ROOT.glob("configs/*.py"))
  if name not in _ELSEWHERE
]
_NUM_STEPS = 3


def _teacher(folder):
  fields = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
  net = RRDBNet(**fields)
  lr = np.zeros((1, 8, 8, 3), np.float32)
  params = jax.jit(net.init)(jax.random.key(0), lr)["params"]
  return files.write_weights(folder / "large.safetensors", params, fields)


@pytest.mark.runtimes
def test_the_quickstart_takes_trained_features_where_they_are(tmp_path):
  told = io.StringIO()
  config = config_lib.read_config(ROOT / "configs/quickstart.py")
  run = run_lib.make_run(
    config, tmp_path, console=rich.console.Console(file=told)
  )
  distance = run.perceptual()
  assert "VGG16 features, trained on ImageNet" in " ".join(
    told.getvalue().split()
  )
  run.write_config()
  noted = json.loads((tmp_path / "perceptual.json").read_text())
  assert (noted["network"], noted["weights"]) == ("vgg16", "trained")
  hr = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
  near, far = (distance(hr + step, hr) for step in (0.01, 0.1))
  assert 0 < near < far


@pytest.mark.parametrize("card", _CARDS)
def test_a_card_trains_reports_and_upscales(card, tmp_path, capsys):
  pytest.importorskip("skimage")  # Its photos.
  file = ROOT / f"configs/{card}.py"
  config = config_lib.complete(config_lib.read_config(file))
  phases = {
    name: min(section.num_train_steps, _NUM_STEPS)
    for name, section in config.phases.items()
  }
  run, held_out = tmp_path / "run", tmp_path / "held_out"
  held_out.mkdir()
  crop = SamplePhotos("held_out", scale=4).crop(0, (0.4, 0.6), 16).hr
  PilImage.fromarray(crop).save(held_out / "crop.png")
  flags = {"config": file, "workdir": run, **SMALLER}
  flags["config.data.eval"] = held_out
  if "num_conv" in config.generator:  # It has these instead of blocks.
    flags["config.generator.num_conv"] = flags.pop("config.generator.num_block")
  for name, num_steps in phases.items():
    flags[f"config.phases.{name}.num_train_steps"] = num_steps
  trained = [name for name, num_steps in phases.items() if num_steps]
  if "distill" in phases:
    # A model that takes no time, for the teacher; and the phase after.
    trained = ["distill", "gan"]
    flags["config.phases.distill.teacher"] = _teacher(tmp_path)
    flags["config.phase_order"] = ",".join(trained)
  assert main.main([f"--{key}={value}" for key, value in flags.items()]) == 0
  out, _ = capsys.readouterr()
  for name in trained:
    assert f"{name} {_NUM_STEPS}/{_NUM_STEPS}" in out
    assert (run / f"models/{name}.safetensors").exists()
    losses = [line for line in logged(run, name) if "g/loss" in line]
    assert losses
    if "perceptual_weight" in config.phases[name]:
      # A result is compared with another image.
      assert all(line["g/perceptual"] > 0 for line in losses)
  assert "data:image/png;base64," in (run / "report.html").read_text()
  with PilImage.open(run / "film.webp") as film:
    assert film.n_frames > len(trained)
  assert list(run.glob("curves/*.svg"))
  assert list(run.glob("curves/*.png"))
  content = json.loads((run / "evaluation.json").read_text())["evaluations"]
  names = [each["model"] for each in content]
  assert {"bicubic", *trained} <= set(names)

  photo = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
  PilImage.fromarray(photo).save(tmp_path / "photo.png")
  large = tmp_path / "large.png"
  command = ["upscale", tmp_path / "photo.png", "-m", run, "-o", large]
  assert __main__.main([str(word) for word in command]) == 0
  scale = config.scale
  with PilImage.open(large) as opened:
    assert opened.size == (scale * 11, scale * 9)
