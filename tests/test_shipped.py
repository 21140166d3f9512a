"""The model that is in the package: small, ours, and near to its teacher."""

import importlib.resources
import os

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

import esrgan_jax
from esrgan_jax import __main__, metrics, resize
from esrgan_jax.data.sources import SamplePhotos
from esrgan_jax.evaluation import evaluator
from esrgan_jax.weights import find, zoo

NAME = "esrgan-jax-fast-x4"


def test_is_small_and_in_the_package():
  model = zoo.get("fast")
  assert model is zoo.get(NAME) is zoo.lookup("fast")
  assert model.licence == "Apache-2.0"
  path = zoo.find("fast", fetch=False)
  assert path.stat().st_size == model.size < 2_000_000
  package = importlib.resources.files("esrgan_jax")
  assert path == package / "weights" / "shipped" / f"{NAME}.safetensors"


def test_takes_a_fiftieth_of_its_teachers_work():
  """Multiply-adds a LR pixel: what kernels have, and PixelShuffle none."""
  config = find.find_model("fast").weights.config
  assert config["architecture"] == "SRVGGNetCompact"
  feat, conv, scale = (config[k] for k in ("num_feat", "num_conv", "scale"))
  work = 9 * (3 * feat + conv * feat * feat + 3 * scale**2 * feat)
  assert work <= 350_000


def test_is_chosen_by_either_name(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  random = np.random.default_rng(0)
  pixels = random.integers(0, 256, (12, 18, 3), np.uint8)
  PilImage.fromarray(pixels).save("a.png")
  # A file of that name is no model: the name is the zoo's.
  os.mkdir("fast")
  results = []
  for name in ("fast", NAME):
    status = __main__.main(
      ["upscale", "a.png", "--model", name, "-o", f"{name}.png"]
    )
    assert status == 0, capsys.readouterr().err
    results.append(np.asarray(PilImage.open(f"{name}.png")))
  assert results[0].shape == (48, 72, 3)
  np.testing.assert_array_equal(*results)
  assert __main__.main(["models", "--verbose"]) == 0
  told = capsys.readouterr().out
  assert NAME in told
  assert "--model fast" in told


@pytest.mark.release
def test_is_nearer_to_its_teacher_than_bicubic():
  """On photos that it hasn't learned from."""
  photos = SamplePhotos("held_out", scale=4)
  student = esrgan_jax.load("fast", dtype="float32")
  teacher = esrgan_jax.load("realesrgan-x4plus", dtype="float32")
  gains = []
  for index in range(len(photos)):
    lr = resize.imresize_uint8(photos.read_hr(index), scale=1 / 4)[:96, :96]
    target = teacher.upscale(lr)

    def near(found, target=target):
      found, target = (np.float32(x) / 255 for x in (found, target))
      return float(metrics.psnr(found, target, crop_border=4, y_channel=False))

    bicubic = evaluator.bicubic(lr, scale=4)
    gains.append(near(student.upscale(lr)) - near(bicubic))
  assert np.mean(gains) > 0.5, gains


@pytest.mark.runtimes
@pytest.mark.parametrize(
  "arguments",
  [
    ["onnx", "out.onnx"],
    ["onnx", "out.onnx", "--dtype", "float16"],
    ["ncnn", "out.param"],
    ["tflite", "out.tflite"],
    ["tflite", "out.tflite", "--dtype", "int8", "--size", "128x128"],
    ["stablehlo", "out.jax"],
    ["saved_model", "out"],
  ],
  ids=lambda arguments: "-".join([arguments[0], *arguments[3:4]]),
)
def test_goes_to_every_format(arguments, tmp_path, monkeypatch, capsys):
  """The command has the runtime run it: beyond its bound is an error."""
  monkeypatch.chdir(tmp_path)
  name, out, *options = arguments
  status = __main__.main(
    ["export", "fast", "--format", name, "-o", out, *options]
  )
  captured = capsys.readouterr()
  assert status == 0, captured.err
  assert os.path.exists(out)


def test_its_card_is_beside_it():
  package = importlib.resources.files("esrgan_jax")
  card = (package / "weights" / "shipped" / f"{NAME}.md").read_text()
  for told in (
    "| licence | Apache-2.0 |",
    "python -m esrgan_jax.main --config=configs/distill.py",
    "| mate-backgrounds | 10 | GPL-2.0-or-later |",
  ):
    assert told in card
  assert "325,488 parameters" in card
  params = find.find_model("fast").weights.params
  assert sum(x.size for x in jax.tree.leaves(params)) == 325_488
