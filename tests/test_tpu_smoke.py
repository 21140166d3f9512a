"""`launch/tpu_smoke.sh`, with toy networks on this machine's CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import tpu_smoke
from tests.training_runs import ROOT


@pytest.mark.release
def test_all_of_it_with_toy_networks(tmp_path):
  folder = tmp_path / "smoke"
  # As `python -m venv` lays it out; the running one, wherever it is.
  done = subprocess.run(
    ["bash", ROOT / "launch" / "tpu_smoke.sh", folder],
    check=False,
    capture_output=True,
    text=True,
    env=os.environ
    | {"SMALL": "1", "VENV": str(pathlib.Path(sys.executable).parent.parent)},
  )
  out = done.stdout
  assert done.returncode == 0, out + done.stderr
  assert out.endswith("passed\n")
  lines = [line for line in out.splitlines() if line.startswith("ok")]
  assert [line.split(": ")[0].removeprefix("ok").strip() for line in lines] == [
    "phase two is stopped by SIGTERM, and saved",
    "started again, it goes on to the end",
    "psnr",
    "gan",
    "tiles of 48 x 48 by realesrgan-x4plus-anime",
    "upscale photo.png",
  ]
  measured = json.loads((folder / "smoke.json").read_text())["measured"]
  assert {*measured} == {"psnr", "gan", "tile"}
  assert all(each["milliseconds"] > 0 for each in measured.values())
  assert (folder / "photo_x4.png").exists()


def test_a_folder_that_is_there_is_refused(tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    tpu_smoke.main([str(tmp_path)])
  assert stop.value.code == 2
  assert "name a new folder" in capsys.readouterr().err


def test_a_training_that_goes_wrong_is_told(tmp_path, monkeypatch, capsys):
  smoke = tpu_smoke.Smoke(tmp_path, small=True)
  monkeypatch.setattr(
    smoke, "command", lambda: [sys.executable, "-c", "raise SystemExit(1)"]
  )
  smoke.train()
  assert smoke.failed
  told = capsys.readouterr().out
  assert "FAILED  phase two is stopped by SIGTERM" in told
  assert "exit status 1, step 0 of 20" in told
  assert "FAILED  gan: 20 steps" in told


def test_what_was_not_measured_or_estimated_is_a_dash():
  rows = tpu_smoke.table(
    {"psnr": {"milliseconds": 45.0, "gib": 2.0}},
    {"psnr_step": {"milliseconds": 30.0, "peak": 2**30}},
  )
  assert rows[2:] == [
    "| phase one, a step | 45.0 | 30.0 | 1.50 | 2.00 | 1.00 | 2.00 |",
    "| phase two, a step | - | - | - | - | - | - |",
    "| a tile of 256 x 256 | - | - | - | - | - | - |",
  ]
