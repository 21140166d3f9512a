"""The page of degraded pictures."""

import re

import numpy as np
import PIL.Image
import pytest

from esrgan_jax import degradation
from esrgan_jax.__main__ import main
from esrgan_jax.data import sources
from esrgan_jax.report import samples
from tests.training_runs import ROOT

_PAGE = (ROOT / "docs/degradation.md").read_text()


@pytest.mark.release
def test_a_row_goes_from_the_least_to_the_most(tmp_path):
  out = tmp_path / "page.png"
  flags = ["-o", str(out), "--size=32", "--scale=2", "--count=2"]
  flags += ["--set=noise_range=0,40", "--set=jpeg_range=1,100"]
  assert main(["degrade", *flags]) == 0
  picture = np.asarray(PIL.Image.open(out)).astype(np.float32)
  header, gap, size = 18, 4, 32
  rows = 7  # Of one photo, each with a header; then two with one.
  height = header + size + gap
  assert picture.shape == (
    rows * height + header + 2 * (size + gap),
    6 * (size + gap) - gap,
    3,
  )

  def cells(top):
    return [
      picture[top + header : top + header + size, left : left + size]
      for left in range(0, picture.shape[1], size + gap)
    ]

  pairs = sources.open_source("sample_photos", scale=2)
  crop, *_ = samples.choose_crops(list(pairs), size=size, scale=2, count=1)
  away = [
    [np.abs(cell - crop.hr).mean() for cell in cells(row * height)]
    for row in range(rows)
  ]
  _, sigmas, sincs, _, gaussian, poisson, qualities = away
  assert sigmas == sorted(sigmas)
  assert sincs == sorted(sincs, reverse=True)
  assert gaussian[0] == gaussian[3] == 0
  assert gaussian[:3] == sorted(gaussian[:3])
  assert poisson[:3] == sorted(poisson[:3])
  assert qualities == sorted(qualities, reverse=True)
  grey = cells(4 * height)[5] - crop.hr
  inside = (cells(4 * height)[5] > 0) & (cells(4 * height)[5] < 255)
  inside = inside.all(axis=-1)
  np.testing.assert_allclose(grey[inside].std(axis=-1), 0, atol=0.5)
  # Nothing is overwritten unasked.
  before = out.read_bytes()
  assert main(["degrade", *flags]) == 1
  assert out.read_bytes() == before


@pytest.mark.parametrize(
  ("flags", "message", "status"),
  [
    (["--set=noise_rang=3"], "is no noise_rang; perhaps noise_range=", 2),
    (["--set=noise_range"], "it is NAME=VALUE", 2),
    (["--set=noise_range=(9, 1)"], "the least and the most", 2),
    (["--set=noise_range=a"], "no number, nor several with commas", 2),
    (
      ["--set=kernel_list='iso',"],
      "kernel_prob has 6 weights, and kernel_l",
      2,
    ),
    (["--size=30"], "a multiple of the scale, 4, such as 28", 2),
    (["--size=4096"], "choose a smaller --size, or others", 1),
    (["--count=0"], "must be 1 or more", 2),
    (["-oa.jpg"], "it is a PNG file; end it in .png", 2),
    (["--scale=0"], "must be 1 or more", 2),
    (["nowhere"], "nowhere: no such folder", 1),
  ],
)
def test_what_cannot_be_drawn(
  tmp_path, monkeypatch, capsys, flags, message, status
):
  monkeypatch.chdir(tmp_path)
  assert main(["degrade", *flags]) == status
  assert message in " ".join(capsys.readouterr().err.split())
  assert not list(tmp_path.iterdir())


def test_the_page_has_the_defaults():
  settings = vars(degradation.Degradation())
  table = _PAGE.partition("| step |")[2].partition("\n\n")[0]
  found = re.findall(r"`(\w+)` (\([\d., ]+\)|[\d.]+)", table)
  assert len(found) > 20
  weights = dict(
    zip(settings["kernel_list"], settings["kernel_prob"], strict=True)
  )
  for name, value in found:
    expected = weights.get(name, settings.get(name))
    assert eval(value) == expected, name
  named = {name for name, _ in found} | {"kernel_list", "kernel_prob"}
  first = {name for name in settings if not name.endswith("2")}
  assert first <= named
