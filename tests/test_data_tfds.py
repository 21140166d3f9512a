"""Data sets of TFDS of one's own, by its real builders."""

import json
import pathlib
import shutil
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import main
from esrgan_jax.data import pipeline, prepare
from esrgan_jax.data.sources import (
  DataError,
  Div2k,
  ImageFolder,
  PairFolder,
  open_source,
  open_tfds,
  tfds_images,
)
from esrgan_jax.resize import imresize_uint8
from tests.training_runs import (
  ROOT,
  assert_same_models,
  environment,
  tiny_config,
  write_config,
)

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("importlib_resources")


def _noise(seed, *shape):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  """Image files of every kind in `photos`, pairs in `hr` and `lr`."""
  place = tmp_path_factory.mktemp("files")
  for folder in ("photos", "hr", "lr"):
    (place / folder).mkdir()
  photos = place / "photos"
  grey = _noise(0, 48, 44)
  PilImage.fromarray(_noise(1, 41, 50, 3)).save(photos / "0.png")
  PilImage.fromarray(grey).save(photos / "1.png")
  PilImage.fromarray(grey.astype(np.uint16) * 257).save(photos / "2.png")
  PilImage.fromarray(_noise(2, 40, 40, 4)).save(photos / "3.png")
  turned = PilImage.Exif()
  turned[0x0112] = 6
  PilImage.fromarray(_noise(3, 40, 60, 3)).save(photos / "4.jpg", exif=turned)
  PilImage.fromarray(grey).save(photos / "5.jpg")
  PilImage.fromarray(_noise(4, 20, 99, 3)).save(photos / "6.png")  # Small.
  (photos / "7.png").write_bytes((photos / "0.png").read_bytes()[:900])
  for i in range(3):
    hr = _noise(i, 40, 44, 3)
    PilImage.fromarray(hr).save(place / f"hr/{i}.png")
    PilImage.fromarray(imresize_uint8(hr, scale=1 / 4)).save(
      place / f"lr/{i}.png"
    )
  return place


@pytest.fixture(scope="module", name="data_dir")
def _data_dir(place, tmp_path_factory):
  """Both as data sets, prepared by the command."""
  pytest.importorskip("tensorflow")
  image = tfds.features.Image

  class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {
        "image": image(),
        "mask": image(shape=(None, None, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
        "objects": tfds.features.Sequence(
          {"bbox": tfds.features.BBoxFeature()}
        ),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i, file in enumerate(sorted((place / "photos").iterdir())):
        yield (
          i,
          {
            "image": file.read_bytes(),
            "mask": np.zeros((2, 2, 1), np.uint8),
            "label": i % 2,
            "objects": [{"bbox": tfds.features.BBox(0, 0, 1, 1)}] * i,
          },
        )

  class TinyPairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="bicubic_x4"),)

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({"lr": image(), "hr": image()}),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {"test": self._generate_examples()}

    def _generate_examples(self):
      for i in range(3):
        files = {key: place / f"{key}/{i}.png" for key in ("lr", "hr")}
        yield i, {key: file.read_bytes() for key, file in files.items()}

  folder = tmp_path_factory.mktemp("tfds")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's and TFDS's own.
    for name in ("tiny_photos", "tfds:tiny_pairs/bicubic_x4"):
      assert prepare.main([name, "--data_dir", str(folder)]) == 0
  return folder


def test_images_are_those_of_a_folder_with_the_same_files(place, data_dir):
  """To the last bit: also the draws, what is left out, and why."""
  found = open_tfds("tiny_photos", scale=4, data_dir=data_dir)
  files = ImageFolder(place / "photos", scale=4)
  assert found.names[-1] == "tfds:tiny_photos:train #7"
  assert len(found) == len(files) == 8
  for index in range(7):
    for a, b in zip(found[index], files[index], strict=True):
      np.testing.assert_array_equal(a, b)
    assert found.lr_size(index) == files.lr_size(index)
  for a, b in zip(
    found.crop(4, (0.9, 0.3), 5), files.crop(4, (0.9, 0.3), 5), strict=True
  ):
    np.testing.assert_array_equal(a, b)

  batches, reports = [], []
  for spec in ("tfds:tiny_photos", str(place / "photos/*")):
    config = {"sources": spec, "data_dir": str(data_dir), "num_threads": 2}
    data = pipeline.open_data(config, scale=4, batch_size=8, patch_size=32)
    with data.pipeline(7) as it:
      batches.append(data.preprocess(jax.random.key(0), it.batch(3)))
    reports.append(data.report)
  jax.tree.map(np.testing.assert_array_equal, *batches)
  reasons = [[each.reason for each in report.problems] for report in reports]
  assert reasons[0] == reasons[1]
  assert reports[0].images == 6
  assert "smaller than a patch of 32x32" in reasons[0][0]
  assert (
    str(reports[0]).splitlines()[-1].startswith("  tfds:tiny_photos:train #7: ")
  )


def test_lr_and_hr_are_pairs(place, data_dir):
  spec = "tfds:tiny_pairs/bicubic_x4:test"
  found = open_source(spec, scale=4, data_dir=data_dir)
  files = PairFolder(place / "hr", place / "lr", scale=4)
  for a, b in zip(found, files, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)
  some = open_source(f"{spec}[1:]", scale=4, data_dir=data_dir)
  assert len(some) == 2
  np.testing.assert_array_equal(some[0].hr, files[1].hr)
  assert some.fingerprint() != found.fingerprint()
  both = open_source(f"{spec},tfds:tiny_photos", scale=4, data_dir=data_dir)
  assert (len(both), both.lr_origin) == (
    11,
    "the data set's, made by bicubic imresize (mirror)",
  )
  wrong = open_source(spec, scale=2, data_dir=data_dir)
  with pytest.raises(DataError, match="not 2 times as large"):
    wrong[0]


def _choose(**features):
  return tfds_images._choose_features(
    "tfds:x:train", tfds.features.FeaturesDict(features)
  )


def test_which_features_are_images():
  image = tfds.features.Image
  mask = tfds.features.LabeledImage(labels=2, shape=(None, None, 1))
  assert _choose(photo=image(), segmentation=mask) == ("photo",)
  assert _choose(hr=image(), other=image(), lr=image()) == ("lr", "hr")
  assert _choose(image=image(), hr=image()) == ("image",)
  with pytest.raises(DataError, match="images are: left right; one called"):
    _choose(left=image(), right=image())
  with pytest.raises(DataError, match="images are: none"):
    _choose(label=tfds.features.ClassLabel(num_classes=2), mask=mask)
  depth = image(shape=(None, None, 1), dtype=np.float32)
  with pytest.raises(DataError, match="depth is of float32"):
    _choose(depth=depth)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("tfds:nothing", r"esrgan_jax\.data\.prepare nothing --data_dir"),
    ("tfds:tiny_pairs", "as well: tfds:tiny_pairs/bicubic_x4"),
    ("tfds:tiny_photos:1.0.1", "tiny_photos:1.0.1 is not prepared"),
    ("tfds:tiny_photos:test", r"test.* \(its splits: train\)"),
    ("tfds:tiny_photos:train[", r"\(its splits: train\)"),
    ("tfds:", "no name of a data set"),
    ("tfds:../tiny_photos", "no name of a data set"),
    ("tfds:tiny_photos::lr", "itself, not in a pair|splits: train"),
    ({"hr": "tfds:tiny_photos", "lr": "lr"}, "itself, not in a pair"),
  ],
)
def test_names_that_are_wrong_say_what_to_do(spec, message, data_dir):
  with pytest.raises(DataError, match=message) as caught:
    open_source(spec, scale=4, data_dir=data_dir)
  assert "\n" not in str(caught.value)


def test_the_newest_version_is_read_unless_one_is_named(data_dir, tmp_path):
  old = data_dir / "tiny_photos/1.0.0"
  for version in ("1.0.0", "9.0.0", "10.0.0", "11.0.0.incompleteX"):
    shutil.copytree(old, tmp_path / "tiny_photos" / version)
  (records,) = (tmp_path / "tiny_photos/10.0.0").glob("*array_record*")
  records.unlink()
  for name in ("tiny_photos:9.0.0", "tiny_photos:1.0.0"):
    assert len(open_tfds(name, scale=4, data_dir=tmp_path)) == 8
  with pytest.raises(DataError, match=r"train.*array_record"):
    open_tfds("tiny_photos", scale=4, data_dir=tmp_path)[0]


def test_a_file_cannot_have_modules_imported(data_dir, tmp_path):
  copy = shutil.copytree(data_dir / "tiny_photos", tmp_path / "tiny_photos")
  path = copy / "1.0.0/features.json"
  content = path.read_text()
  name = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
  assert name in content
  path.write_text(content.replace(name, "antigravity.ClassLabel"))
  with pytest.raises(DataError, match="is of antigravity, which is not of"):
    open_tfds("tiny_photos", scale=4, data_dir=tmp_path)
  assert "antigravity" not in sys.modules
  path.write_text("{")
  with pytest.raises(DataError, match=r"no data set of TFDS: features\.json"):
    open_tfds("tiny_photos", scale=4, data_dir=tmp_path)


def test_what_tfds_does_not_know_is_one_line(tmp_path, capsys):
  for name in ("no_such_data_set", "two words"):
    assert prepare.main([name, "--data_dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: no data set of TFDS is called '{name}'")
    assert err.count("\n") == 1


def test_div2k_has_both_names(tmp_path):
  for spec in ("div2k/bicubic_x4", "tfds:div2k/bicubic_x4:validation"):
    with pytest.raises(DataError, match="prepare --config bicubic_x4"):
      open_source(spec, scale=4, data_dir=tmp_path)
  with pytest.raises(DataError, match="is of scale 4, not 2"):
    Div2k("train", scale=2)


@pytest.mark.slow
def test_training_is_that_of_the_folder_and_resumes(place, data_dir, tmp_path):
  config = tiny_config(tmp_path)
  config["phases"]["psnr"]["num_train_steps"] = 6
  config["phases"]["gan"]["num_train_steps"] = 3
  config["perceptual"]["layers"] = {"conv1_1": 1.0}
  config["data"]["data_dir"] = str(data_dir)
  config["patch_size"] = 32
  file = write_config(tmp_path / "config.py", config)

  def train(name, *flags):
    words = [f"--config={file}", f"--workdir={tmp_path / name}", *flags]
    assert main.main(words) == 0

  train("folder", f"--config.data.sources={place / '**/photos/*.[jp][pn]*g'}")
  flags = ("--config.data.sources=tfds:tiny_photos:train",)
  flags += ("--config.data.eval=tfds:tiny_pairs/bicubic_x4:test",)
  flags += ("--config.data.cache=stream", f"--config.data.cache_dir={tmp_path}")
  train("tfds", *flags, "--config.phases.psnr.num_train_steps=4")
  train("tfds", *flags, "--config.allow_changes=true")
  assert_same_models(tmp_path / "folder", tmp_path / "tfds")
  found = json.loads((tmp_path / "tfds/evaluation.json").read_text())
  names = [image["name"] for image in found["evaluations"][0]["images"]]
  assert names == [f"tfds:tiny_pairs/bicubic_x4:test #{i}" for i in range(3)]


@pytest.mark.slow
def test_no_tensorflow_is_needed_to_read(data_dir, tmp_path):
  code = """
import sys
sys.modules["tensorflow"] = None  # Its import fails.
from esrgan_jax import __main__
status = __main__.main(sys.argv[1:])
raise SystemExit(status)
"""
  words = ["evaluate", "-m", "bicubic", "--data-dir", str(data_dir)]
  words += ["--hr", "tfds:tiny_pairs/bicubic_x4:test", "--patch", "20"]
  done = subprocess.run(
    [sys.executable, "-c", code, *words],
    cwd=pathlib.Path(ROOT),
    env=environment(),
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "12 patches of 3 images" in done.stdout
