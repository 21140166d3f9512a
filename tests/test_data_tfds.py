"""Data sets of TFDS, by its real builders, of files made here.

DIV2K first, of archives of its layout; then data sets of one's own. In one
file, as TensorFlow takes seconds to import.
"""

import contextlib
import io
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import warnings
import zipfile
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import main
from esrgan_jax.data import cache, pipeline, prepare
from esrgan_jax.data.sources import (
  DataError,
  Div2k,
  ImageFolder,
  PairFolder,
  div2k,
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
pytest.importorskip("grain")


def _png(array):
  file = io.BytesIO()
  PilImage.fromarray(array).save(file, "PNG")
  return file.getvalue()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
  """The four zips, small; HR images by their bytes."""
  folder = tmp_path_factory.mktemp("zips")
  rng = np.random.default_rng(0)
  images = {}
  for split, first, count in (("train", 1, 5), ("valid", 801, 2)):
    with (
      zipfile.ZipFile(folder / f"DIV2K_{split}_HR.zip", "w") as hr_zip,
      zipfile.ZipFile(
        folder / f"DIV2K_{split}_LR_bicubic_X4.zip", "w"
      ) as lr_zip,
    ):
      for number in range(first, first + count):
        h, w = 4 * rng.integers(12, 24, 2)
        hr = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        lr = imresize_uint8(hr, scale=1 / 4)
        hr_zip.writestr(f"DIV2K_{split}_HR/{number:04}.png", _png(hr))
        lr_zip.writestr(
          f"DIV2K_{split}_LR_bicubic/X4/{number:04}x4.png", _png(lr)
        )
        images.setdefault(split, {})[hr.tobytes()] = lr
  return folder, images


@contextlib.contextmanager
def _taken_for_official(zips):
  """Replaces what the official archives weigh by what ours do; no more."""
  pytest.importorskip("tensorflow")
  from tensorflow_datasets.core.download import checksums
  from tensorflow_datasets.datasets.div2k import div2k_dataset_builder as div2k

  infos = {
    url: checksums.compute_url_info(zips / url.rpartition("/")[2])
    for url in div2k._DL_URLS.values()
    if (zips / url.rpartition("/")[2]).exists()
  }
  with (
    mock.patch.object(div2k.Builder, "url_infos", infos),
    warnings.catch_warnings(),
  ):
    warnings.simplefilter("ignore")  # TensorFlow's and TFDS's own.
    yield


@pytest.fixture(scope="module")
def data_dir(archives, tmp_path_factory):
  """DIV2K, prepared by process 0 while process 1 waits."""
  zips, _ = archives
  folder = tmp_path_factory.mktemp("tfds")
  waited = []
  other = threading.Thread(
    target=lambda: waited.append(
      div2k.prepare_div2k(folder, process_index=1, wait_seconds=240)
    )
  )
  other.start()
  with _taken_for_official(zips):
    path = div2k.prepare_div2k(folder, manual_dir=zips)
  other.join()
  assert waited == [path]
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_real_builder_reads_the_archives(split, archives, data_dir):
  expected = archives[1]["valid" if split == "validation" else split]
  source = Div2k(split, scale=4, data_dir=data_dir)
  assert len(source) == len(expected)
  for lr, hr in source:
    np.testing.assert_array_equal(lr, expected.pop(hr.tobytes()))
  assert not expected
  assert source.names[0] == f"div2k/bicubic_x4:{split} #0"
  part = Div2k(f"{split}[:1]", scale=4, data_dir=data_dir)
  assert len(part) == 1
  assert part.fingerprint() != source.fingerprint()


@pytest.mark.parametrize("where", pipeline.CACHES)
def test_it_feeds_the_pipeline(where, archives, data_dir, tmp_path):
  config = {
    "sources": ("div2k/bicubic_x4",),
    "eval": "div2k/bicubic_x4:validation",
    "data_dir": str(data_dir),
    "cache": where,
    "cache_dir": str(tmp_path),
    "augment": False,
    "num_threads": 3,
  }
  sizes = {"scale": 4, "batch_size": 5, "patch_size": 32}
  data = pipeline.open_data(config, **sizes)
  with data.pipeline(0) as it:
    batch = data.preprocess(jax.random.key(0), it.batch(0))
  assert data.report.images == 5
  # Away from a crop's border, its LR is the HR's, shrunk: a kernel of 4.
  for lr, hr in zip(batch["lr"], batch["hr"], strict=True):
    lr, hr = (np.rint(np.asarray(i) * 255).astype(np.uint8) for i in (lr, hr))
    again = imresize_uint8(hr, scale=1 / 4)
    np.testing.assert_array_equal(lr[2:-2, 2:-2], again[2:-2, 2:-2])
  source, _ = pipeline.open_evaluation(config, scale=4, smallest=16)
  assert len(source) == 2


@pytest.mark.slow
def test_no_tensorflow_is_imported_to_read(data_dir, tmp_path):
  code = """
import sys
import jax
from esrgan_jax.data import pipeline
for cache in pipeline.CACHES:
  config = {"sources": ("div2k/bicubic_x4",), "data_dir": sys.argv[1],
            "cache": cache, "cache_dir": sys.argv[2]}
  data = pipeline.open_data(config, scale=4, batch_size=2, patch_size=32)
  with data.pipeline(0) as it:
    data.preprocess(jax.random.key(0), it.batch(0))
print([m for m in sys.modules if m.partition(".")[0] == "tensorflow"])
"""
  done = subprocess.run(
    [sys.executable, "-c", code, str(data_dir), str(tmp_path)],
    cwd=pathlib.Path(__file__).parent.parent,
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "[]"


def test_damaged_records_are_named(data_dir, tmp_path):
  copy = shutil.copytree(data_dir, tmp_path / "copy")
  (records,) = copy.rglob("div2k-train.array_record*")
  content = bytearray(records.read_bytes())
  inside = content.index(b"\x89PNG") + 1000
  content[inside] ^= 255
  records.write_bytes(content)
  source = Div2k("train", scale=4, data_dir=copy)
  found = cache.in_ram(source, range(5), threads=1)
  assert len(found.pairs) == 4
  assert list(found.problems) == [0]
  assert "cannot be read: Corrupted" in found.problems[0]
  with pytest.raises(IndexError):
    source[5]


def test_what_is_not_prepared_says_how(tmp_path):
  with pytest.raises(DataError, match=r"python -m esrgan_jax\.data\.prepare"):
    Div2k("train", scale=4, data_dir=tmp_path)
  with pytest.raises(DataError, match="choose one of bicubic_x2"):
    Div2k("train", scale=4, config="tricubic_x4", data_dir=tmp_path)


def test_unknown_splits_are_errors(data_dir):
  with pytest.raises(DataError, match="nosplit"):
    Div2k("nosplit", scale=4, data_dir=data_dir)


def test_missing_zips_are_named(archives, tmp_path):
  zips, _ = archives
  with pytest.raises(FileNotFoundError) as caught:
    div2k.prepare_div2k(tmp_path, config="bicubic_x2", manual_dir=zips)
  text = str(caught.value)
  assert re.search(r"lacks DIV2K_train_LR_bicubic_X2\.zip, .*valid", text)
  assert "https://data.vision.ee.ethz.ch/cvl/DIV2K" in text
  config = {"sources": "div2k/bicubic_x4", "manual_dir": str(tmp_path)}
  with pytest.raises(DataError, match=r"lacks DIV2K_train_HR\.zip"):
    pipeline.open_data(
      config | {"data_dir": str(tmp_path)},
      scale=4,
      batch_size=1,
      patch_size=32,
    )


def test_a_server_out_of_reach_is_said_at_once(monkeypatch):
  for name in ("http_proxy", "https_proxy", "all_proxy"):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(name.upper(), raising=False)
  with socket.socket() as bound:  # And not listening: refused.
    bound.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{bound.getsockname()[1]}/DIV2K.zip"
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1.*refused\). By hand"):
      div2k._reach(url, "By hand.")
    bound.listen()
    div2k._reach(url, "By hand.")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
  div2k._reach(url, "By hand.")  # A proxy's business.


def test_waiting_for_process_0_ends(tmp_path):
  with pytest.raises(TimeoutError, match="on each of them first"):
    div2k.prepare_div2k(tmp_path, process_index=1, wait_seconds=0.2)


def test_zips_of_another_make_are_refused(archives, tmp_path, capsys):
  # The checksums are the official ones here: ours are not those archives.
  pytest.importorskip("tensorflow")
  zips, _ = archives
  arguments = ["--manual_dir", str(zips), "--data_dir", str(tmp_path)]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    assert prepare.main(arguments) == 1
  assert "error: preparing" in capsys.readouterr().err


def test_the_command_prints_where_it_is(data_dir, capsys):
  assert prepare.main(["--data_dir", str(data_dir)]) == 0
  assert capsys.readouterr().out.strip().endswith("div2k/bicubic_x4/2.0.0")


@pytest.mark.release
def test_training_prepares_it_and_trains_both_phases(
  archives, tmp_path, capsys
):
  config = tiny_config(tmp_path)
  config["phases"]["psnr"]["num_train_steps"] = 3
  config["phases"]["gan"]["num_train_steps"] = 2
  config["perceptual"]["layers"] = {"conv1_1": 1.0}
  del config["data"]
  command = [
    f"--config={write_config(tmp_path / 'config.py', config)}",
    f"--workdir={tmp_path / 'run'}",
    "--config.data.sources=div2k/bicubic_x4",
    "--config.data.eval=div2k/bicubic_x4:validation",
    f"--config.data.data_dir={tmp_path / 'tfds'}",
  ]
  with _taken_for_official(archives[0]):
    zips = f"--config.data.manual_dir={archives[0]}"
    assert main.main([*command, zips]) == 0
  out = capsys.readouterr().out
  assert "psnr: trains on 5 images" in out
  assert "gan: trains on 5 images" in out
  evaluations = json.loads((tmp_path / "run/evaluation.json").read_text())
  for each in evaluations["evaluations"]:
    names = [image["name"] for image in each["images"]]
    assert names == [f"div2k/bicubic_x4:validation #{i}" for i in range(2)]
  report = (tmp_path / "run/report.html").read_text()
  assert "div2k/bicubic_x4:validation #1" in report
  assert "data:image/png;base64," in report

  # Again: neither zips nor a patch are needed by now.
  assert main.main(command) == 0
  out = capsys.readouterr().out
  assert "psnr: finished before, at step 3" in out
  assert "gan: finished before, at step 2" in out
  again = json.loads((tmp_path / "run/evaluation.json").read_text())
  assert again == evaluations


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


@pytest.fixture(scope="module", name="tiny")
def _tiny(place, tmp_path_factory):
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
            "objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}] * i,
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


def test_images_are_those_of_a_folder_with_the_same_files(place, tiny):
  """To the last bit: also the draws, what is left out, and why."""
  found = open_tfds("tiny_photos", scale=4, data_dir=tiny)
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
    config = {"sources": spec, "data_dir": str(tiny), "num_threads": 2}
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


def test_lr_and_hr_are_pairs(place, tiny):
  spec = "tfds:tiny_pairs/bicubic_x4:test"
  found = open_source(spec, scale=4, data_dir=tiny)
  files = PairFolder(place / "hr", place / "lr", scale=4)
  for a, b in zip(found, files, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)
  some = open_source(f"{spec}[1:]", scale=4, data_dir=tiny)
  assert len(some) == 2
  np.testing.assert_array_equal(some[0].hr, files[1].hr)
  assert some.fingerprint() != found.fingerprint()
  both = open_source(f"{spec},tfds:tiny_photos", scale=4, data_dir=tiny)
  assert (len(both), both.lr_origin) == (
    11,
    "the data set's, made by bicubic imresize (mirror)",
  )
  wrong = open_source(spec, scale=2, data_dir=tiny)
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
    ("tfds:tiny_photos:test", "Unknown split 'test'.*'train'"),
    ("tfds:tiny_photos:train[", "Unrecognized split format"),
    ("tfds:", "no name of a data set"),
    ("tfds:../tiny_photos", "no name of a data set"),
    ("tfds:tiny_photos::lr", "itself, not in a pair|splits: train"),
    ({"hr": "tfds:tiny_photos", "lr": "lr"}, "itself, not in a pair"),
  ],
)
def test_names_that_are_wrong_say_what_to_do(spec, message, tiny):
  with pytest.raises(DataError, match=message) as caught:
    open_source(spec, scale=4, data_dir=tiny)
  assert "\n" not in str(caught.value)


def test_the_newest_version_is_read_unless_one_is_named(tiny, tmp_path):
  old = tiny / "tiny_photos/1.0.0"
  for version in ("1.0.0", "9.0.0", "10.0.0", "11.0.0.incompleteX"):
    shutil.copytree(old, tmp_path / "tiny_photos" / version)
  (records,) = (tmp_path / "tiny_photos/10.0.0").glob("*array_record*")
  records.unlink()
  for name in ("tiny_photos:9.0.0", "tiny_photos:1.0.0"):
    assert len(open_tfds(name, scale=4, data_dir=tmp_path)) == 8
  with pytest.raises(DataError, match=r"train.*array_record"):
    open_tfds("tiny_photos", scale=4, data_dir=tmp_path)[0]


def test_a_file_cannot_have_modules_imported(tiny, tmp_path):
  copy = shutil.copytree(tiny / "tiny_photos", tmp_path / "tiny_photos")
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


@pytest.mark.slow  # TFDS looks at all that it knows.
def test_what_tfds_does_not_know_is_one_line(tmp_path, capsys):
  for name in ("no_such_data_set", "two words"):
    assert prepare.main([name, "--data_dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: no data set of TFDS is called '{name}'")
    assert err.count("\n") == 1


def test_div2k_has_both_names(tmp_path):
  for spec in ("div2k/bicubic_x4", "tfds:div2k/bicubic_x4:validation"):
    with pytest.raises(DataError, match="prepare --config bicubic_x4"):
      open_source(spec, scale=4, data_dir=tmp_path)
  with pytest.raises(DataError, match="is of scale 4, not 2"):
    Div2k("train", scale=2)


@pytest.mark.release
def test_training_is_that_of_the_folder_and_resumes(place, tiny, tmp_path):
  changes = {"phase_order": ("psnr",), "film": {"enabled": False}}
  config = tiny_config(tmp_path, **changes)
  config["phases"] = {"psnr": config["phases"]["psnr"] | {"num_train_steps": 6}}
  config["data"]["data_dir"] = str(tiny)
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
def test_evaluate_reads_a_data_set_without_tensorflow(tiny, tmp_path):
  code = """
import sys
from esrgan_jax import __main__
status = __main__.main(sys.argv[1:])
raise SystemExit(status or "tensorflow" in sys.modules and "imported")
"""
  words = ["evaluate", "-m", "bicubic", "--data-dir", str(tiny)]
  words += ["--hr", "tfds:tiny_pairs/bicubic_x4:test", "--patch", "20"]
  done = subprocess.run(
    [sys.executable, "-c", code, *words],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "12 patches of 3 images" in done.stdout
