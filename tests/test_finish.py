"""The end of training: what is measured, and what fails."""

import io
import itertools
import json
import shutil

import pytest
import rich.console

from esrgan_jax.evaluation import measures
from esrgan_jax.training import loop
from tests import training_runs


@pytest.fixture
def workdir(tmp_path):
  """A training that is done: what is after it is done again."""
  folder, config, _ = training_runs.trained()
  shutil.copytree(folder / "run", tmp_path / "run")
  return tmp_path / "run", config


@pytest.fixture
def register(monkeypatch):
  monkeypatch.setattr(measures, "MEASURES", dict(measures.MEASURES))
  return measures.register_measure


def train(workdir, config, **settings):
  console = rich.console.Console(file=io.StringIO(), width=200)
  settings = {**config["eval"], **settings}
  loop.train({**config, "eval": settings}, workdir, console=console)
  return console.file.getvalue()


@pytest.mark.release
def test_a_measure_of_ones_own_is_in_all_that_is_shown(workdir, register):
  folder, config = workdir
  register(
    measures.Measure(
      "brightness",
      "Brightness off",
      digits=1,
      better="lower",
      function=lambda pair: abs(pair.sr.mean() - pair.hr.mean()),
    )
  )
  out = train(folder, config, measures=("ssim_y", "brightness"))
  found = json.loads((folder / "evaluation.json").read_text())["evaluations"]
  # PSNR on Y is always there: checkpoints are chosen by it.
  expected = ["psnr_y", "ssim_y", "brightness", "perceptual"]
  assert list(found[0]["means"]) == expected
  assert list(found[0]["images"][0]) == ["name", *expected]
  rows = json.loads((folder / "interpolation.json").read_text())["rows"]
  assert list(rows[0]) == ["alpha", *expected]
  (line,) = (x for x in out.splitlines() if x.startswith("bicubic "))
  assert f"{found[0]['means']['brightness']:.1f}" in line.split()
  page = (folder / "report.html").read_text()
  assert "<th>Brightness off</th>" in page
  assert "Brightness off over alpha" in page
  assert "PSNR RGB" not in page
  # What a report of somebody without the plugin calls it.
  del measures.MEASURES["brightness"]
  from esrgan_jax.report.page import write_report

  assert "<th>brightness</th>" in write_report(folder).read_text()


@pytest.mark.release
def test_a_model_that_cannot_be_measured_leaves_the_others(workdir, register):
  folder, config = workdir
  calls = itertools.count()

  def fails_once(pair):
    del pair
    if next(calls) == 3:  # Bicubic's three images are done.
      raise FloatingPointError("no number for this one")
    return 1.0

  register(measures.Measure("moody", "Moody", function=fails_once))
  with pytest.raises(loop.IncompleteError) as caught:
    train(folder, config, measures=("moody",))
  lines = str(caught.value).splitlines()[1:-1]
  assert lines == [
    "  the final evaluation of psnr: 0.png: measure 'moody' fails:"
    " FloatingPointError: no number for this one"
  ]
  found = json.loads((folder / "evaluation.json").read_text())["evaluations"]
  names = [each["model"] for each in found]
  assert names == ["bicubic", "gan", "interpolated_0.8"]
  rows = json.loads((folder / "interpolation.json").read_text())["rows"]
  assert [row["alpha"] for row in rows] == [0.5, 0.8, 1.0]
  assert "<td>gan</td>" in (folder / "report.html").read_text()
