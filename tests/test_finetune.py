"""Fine-tuning as users do it: configs/finetune.py, on a folder of photos."""

import json

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import main
from esrgan_jax.data.sources import SamplePhotos
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.weights.files import read_weights, write_weights
from tests.networks import random_params
from tests.training_runs import ROOT

pytest.importorskip("skimage")

_SIZES = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2}


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  """Two folders of crops of photos, and a small pretrained network."""
  folder = tmp_path_factory.mktemp("finetune")
  for split, name in (("train", "photos"), ("held_out", "others")):
    (folder / name).mkdir()
    source = SamplePhotos(split, scale=4)
    for index in range(3):
      crop = source.crop(index, (0.4, 0.6), 14).hr
      PilImage.fromarray(crop).save(folder / name / f"{index}.png")
  net = RRDBNet(**_SIZES, scale=4)
  params = jax.jit(net.init)(jax.random.key(7), np.zeros((1, 8, 8, 3)))
  write_weights(
    folder / "start.safetensors", params["params"], {**_SIZES, "scale": 4}
  )
  fields = {**_SIZES, "scale": 2, "unshuffle": 1}
  image = np.zeros((1, 8, 8, 3))
  write_weights(
    folder / "plain2.safetensors",
    random_params(RRDBNet(**fields), image),
    fields,
  )
  return folder


def _finetune(place, workdir, *flags):
  command = {
    "config": ROOT / "configs/finetune.py",
    "workdir": workdir,
    "config.data.sources": place / "photos",
    "config.data.eval": place / "others",
    "config.data.cache_dir": place / "cache",
    "config.init_from": place / "start.safetensors",
    **{f"config.generator.{key}": size for key, size in _SIZES.items()},
    "config.discriminator.num_feat": 2,
    "config.perceptual.weights": "random",
    "config.perceptual.layers": "{'conv1_1': 1.0}",
    "config.batch_size": 2,
    "config.patch_size": 32,
    "config.eval.sample_size": 32,
    "config.mesh.num_devices": 1,
    "config.phases.gan.num_train_steps": 3,
    **dict(flag.split("=", 1) for flag in flags),
  }
  return main.main([f"--{key}={value}" for key, value in command.items()])


@pytest.mark.slow
def test_photos_of_ones_own(place, tmp_path, capsys):
  # A mistake first, which is then corrected.
  flag = "config.data.sources=/nowhere"
  assert _finetune(place, tmp_path / "run", flag) == 1
  assert "/nowhere: no such folder" in capsys.readouterr().err
  assert _finetune(place, tmp_path / "run") == 0
  out, err = capsys.readouterr()
  assert "phase one is skipped: the generator is" in out
  assert "gan: trains on 3 images" in out
  assert "gan 3/3" in out
  assert err == ""
  assert "report: " in out
  run = tmp_path / "run"
  assert "data:image/png;base64," in (run / "report.html").read_text()
  content = json.loads((run / "evaluation.json").read_text())["evaluations"]
  names = [
    "bicubic",
    f"{place.name}/start.safetensors",
    "gan",
    "interpolated_0.8",
  ]
  assert [each["model"] for each in content] == names
  for each in content:
    images = [image["name"] for image in each["images"]]
    assert images == ["0.png", "1.png", "2.png"]
  start, psnr, gan = (
    jax.tree.leaves(read_weights(path).params)
    for path in (
      place / "start.safetensors",
      run / "models/psnr.safetensors",
      run / "models/gan.safetensors",
    )
  )
  for a, b in zip(start, psnr, strict=True):
    np.testing.assert_array_equal(a, b)
  assert any((a != b).any() for a, b in zip(start, gan, strict=True))

  # The same folder, for something else.
  flag = "config.phases.gan.learning_rate=3e-4"
  assert _finetune(place, run, flag) == 2
  err = capsys.readouterr().err
  assert "was begun with another config" in err
  assert "phases.gan.learning_rate: 0.0001 -> 0.0003" in err
  assert "choose another workdir" in err


@pytest.mark.parametrize(
  ("flag", "message", "status"),
  [
    ("config.data.sources=PLACE/absent", "PLACE/absent: no such folder", 1),
    pytest.param(
      "config.data.sources=PLACE/empty",
      "PLACE/empty: no image in it",
      1,
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "config.data.eval=PLACE/absent",
      "PLACE/absent: no such folder",
      1,
      marks=pytest.mark.slow,
    ),
    ("config.data.sources=gs://bucket/photos", "read from local folders", 1),
    pytest.param(
      "config.data.cache_dir=gs://bucket/cache",
      "name a local folder",
      1,
      marks=pytest.mark.slow,
    ),
    (
      "config.init_from=PLACE/absent.safetensors",
      "PLACE/absent.safetensors",
      1,
    ),
    # All that it takes, at once: the half of it would lead to another error.
    (
      "config.init_from=PLACE/plain2.safetensors",
      "add --config.scale=2 --config.generator.unshuffle=1, or",
      2,
    ),
    ("config.generator.num_feat=8", "add --config.generator.num_feat=4", 2),
    ("config.patch_size=64", "HR is 56x56, smaller than a patch of 64", 1),
    ("workdir=ftp://bucket/run", "ftp:// is not supported", 1),
  ],
)
def test_mistakes(place, tmp_path, flag, message, status, capsys):
  (place / "empty").mkdir(exist_ok=True)
  flag, message = (
    text.replace("PLACE", str(place)) for text in (flag, message)
  )
  assert _finetune(place, tmp_path / "run", flag) == status
  err = capsys.readouterr().err
  assert err.startswith("error: ")
  assert message in err
  assert "Traceback" not in err
