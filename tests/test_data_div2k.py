"""DIV2K by TFDS's real builder, on archives of its layout made here."""

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
from esrgan_jax.data.sources import DataError, Div2k, div2k
from esrgan_jax.resize import imresize_uint8
from tests.training_runs import tiny_config, write_config

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


@pytest.mark.slow
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
