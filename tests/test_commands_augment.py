"""The picture of what augmentation does."""

import re

import jax
import numpy as np
import PIL.Image
import pytest

from esrgan_jax import augment
from esrgan_jax.__main__ import main
from esrgan_jax.data import sources
from esrgan_jax.report import samples
from tests.training_runs import ROOT, tiny_config, write_config

_PAGE = (ROOT / "docs/augmentation.md").read_text()


def _cells(path, size, rows):
  """The picture's crops: `[columns, rows, size, size, 3]`."""
  picture = np.asarray(PIL.Image.open(path))
  header, gap = 18, 4
  count = (picture.shape[1] + gap) // (size + gap)
  assert picture.shape[0] == header + rows * (size + gap)
  return np.stack(
    [
      [
        picture[
          header + row * (size + gap) : header + row * (size + gap) + size,
          column * (size + gap) : column * (size + gap) + size,
        ]
        for row in range(rows)
      ]
      for column in range(count)
    ]
  )


@pytest.mark.slow
def test_a_column_is_one_augmentation(tmp_path):
  out = tmp_path / "sheet.png"
  flags = ["--size=32", "--scale=2", "--pairs=2", "--set=noise.levels=0,0"]
  assert main(["augment", "-o", str(out), *flags]) == 0
  cells = _cells(out, 32, 4)
  assert len(cells) == 1 + len(augment.OPERATIONS)
  pairs = sources.open_source("sample_photos", scale=2)
  crops = samples.choose_crops(list(pairs), size=32, scale=2, count=2)
  for row, crop in enumerate(crops):
    large = crop.lr.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(cells[0, 2 * row], large)
    np.testing.assert_array_equal(cells[0, 2 * row + 1], crop.hr)
  columns = dict(zip(augment.OPERATIONS, cells[1:], strict=True))
  np.testing.assert_array_equal(columns["noise"], cells[0])
  for name in ("blur", "cutblur"):
    np.testing.assert_array_equal(columns[name][1::2], cells[0, 1::2])
    assert (columns[name][::2] != cells[0, ::2]).any(axis=(1, 2, 3)).all()
  assert (columns["cutmix"] != cells[0]).any(axis=(1, 2, 3)).all()
  # Nothing is overwritten unasked.
  before = out.read_bytes()
  assert main(["augment", "-o", str(out), *flags]) == 1
  assert out.read_bytes() == before


@pytest.mark.release
def test_a_configs_last_column_is_its_training(tmp_path):
  config = tiny_config(tmp_path)
  config["augmentation"] = {"blur": {"probability": 1.0, "sigmas": (2.0, 2.0)}}
  config["phases"]["gan"]["augmentation"] = {"blur": {"probability": 0.0}}
  path = write_config(tmp_path / "config.py", config)
  out = tmp_path / "sheet.png"
  flags = ["--config", str(path), "-o", str(out), "--overwrite"]
  assert main(["augment", *flags]) == 0
  cells = _cells(out, config["patch_size"], 6)
  names = ["as it is", *augment.OPERATIONS, "in training"]
  columns = dict(zip(names, cells, strict=True))
  np.testing.assert_array_equal(columns["in training"], columns["blur"])
  assert main(["augment", *flags, "--phase=gan"]) == 0
  assert len(_cells(out, config["patch_size"], 6)) == len(cells) - 1
  # One photo: its partner is itself, upside down.
  for name in ("1.png", "2.png"):
    (tmp_path / "photos" / name).unlink()
  assert main(["augment", *flags]) == 0
  assert len(_cells(out, config["patch_size"], 2)) == len(cells)


@pytest.mark.parametrize(
  ("flags", "message", "status"),
  [
    (
      ["--set=noise.level=3"],
      "there is no noise.level; perhaps noise.levels=",
      2,
    ),
    (["--set=noise.levels"], "it is NAME.OPTION=VALUE", 2),
    (["--set=noise.levels=(9, 1)"], "the least and the most", 2),
    (["--set=noise.levels=a"], "no number, nor two with a comma", 2),
    (["--phase=gan"], "give --config as well", 2),
    (["--size=30"], "a multiple of the scale, 4, such as 28", 2),
    (["--size=4096"], "choose a smaller --size, or others", 1),
    (["--pairs=0"], "must be 1 or more", 2),
    (["-oa.jpg"], "it is a PNG file; end it in .png", 2),
    (["--scale=0"], "must be 1 or more", 2),
    (["nowhere"], "nowhere: no such folder", 1),
    (["--config=nowhere.py"], "no config file nowhere.py", 2),
  ],
)
def test_what_cannot_be_drawn(
  tmp_path, monkeypatch, capsys, flags, message, status
):
  monkeypatch.chdir(tmp_path)
  assert main(["augment", *flags]) == status
  assert message in " ".join(capsys.readouterr().err.split())
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_one_more_of_the_page():
  (code,) = re.findall(r"```python\n# lines.py\n(.*?)```", _PAGE, re.DOTALL)
  try:
    exec(code, {})
    white = np.ones((1, 4, 4, 3), np.float32)
    key, options = jax.random.key(0), {"lines": {"probability": 1.0}}
    done = augment.transform(key, {"lr": white, "hr": white}, options)
  finally:
    del augment.OPERATIONS["lines"]
  np.testing.assert_array_equal(done["hr"], white)
  np.testing.assert_array_equal(done["lr"][:, 1::2], white[:, 1::2])
  assert (done["lr"][:, ::2] < 1).all()


def test_the_page_has_the_table():
  rows = re.findall(
    r"^\| `(\w+)` \| yes \| (?:yes)? ?\| (.*?) \|", _PAGE, re.MULTILINE
  )
  assert [name for name, _ in rows] == list(augment.OPERATIONS)
  for name, strengths in rows:
    found = dict(re.findall(r"`(\w+)` (\([\d., ]+\)|[\d.]+)", strengths))
    expected = augment.OPERATIONS[name].strengths
    assert {key: eval(value) for key, value in found.items()} == expected
