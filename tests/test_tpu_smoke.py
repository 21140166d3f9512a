"""`launch/tpu_smoke.sh`, with toy networks on this machine's CPU."""

import json
import os
import pathlib
import re
import shutil
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


def test_without_a_tpu_it_ends_at_once_and_says_so(tmp_path, capfd):
  folder = tmp_path / "smoke"
  with pytest.raises(SystemExit) as stop:
    tpu_smoke.main([str(folder)])
  assert stop.value.code == 2
  assert not folder.exists()
  assert re.search(r"no TPU here but cpu:0.* --small", capfd.readouterr()[1])


# How the script comes to an environment: by stand-ins.

_UV = """#!/usr/bin/env bash
echo "uv $*" >>"$LOG"
for last; do :; done
if [[ $1 == venv ]]; then
  mkdir -p "$last/bin"
  cp "$HOME/python" "$last/bin/python"
elif [[ -e $HOME/offline ]]; then
  exit 1
else
  touch .venv/complete
fi
"""
_PYTHON = """#!/usr/bin/env bash
if [[ $1 == - ]]; then
  echo "needs ${*:2}" >>"$LOG"
  [[ -e $(dirname "$0")/../complete ]]
else
  echo "python $*" >>"$LOG"
fi
"""
_CURL = """#!/usr/bin/env bash
echo "curl $*" >>"$LOG"
echo 'mkdir -p "$HOME/.local/bin"; cp "$HOME/uv" "$HOME/.local/bin"'
"""


class Machine:
  """A TPU VM's home, with a checkout."""

  def __init__(self, folder):
    self.home, self.checkout = folder / "home", folder / "checkout"
    (folder / "bin").mkdir()
    self.home.mkdir()
    (self.checkout / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch/tpu_smoke.sh", self.checkout / "launch")
    for path, text in {
      self.home / "uv": _UV,
      self.home / "python": _PYTHON,
      folder / "bin/curl": _CURL,
    }.items():
      path.write_text(text)
      path.chmod(0o755)
    # Not this machine's own uv.
    path = os.pathsep.join([str(folder / "bin"), "/usr/bin", "/bin"])
    self.environ = {
      "HOME": str(self.home),
      "PATH": path,
      "LOG": str(folder / "log"),
    }

  def __call__(self, **environ):
    """Runs the script; returns its status, what it said, and what it called."""
    log = pathlib.Path(self.environ["LOG"])
    log.write_text("")
    done = subprocess.run(
      ["bash", self.checkout / "launch/tpu_smoke.sh", self.home / "smoke"],
      env=self.environ | environ,
      check=False,
      capture_output=True,
      text=True,
    )
    return done.returncode, done.stderr, log.read_text().splitlines()


@pytest.fixture(name="vm")
def _vm(tmp_path):
  if os.path.exists("/usr/bin/uv"):
    pytest.skip("uv is where it can't be hidden")
  return Machine(tmp_path)


INSTALLS = "uv pip install --quiet --python .venv/bin/python"
RUNS = "python -m benchmarks.tpu_smoke"


def test_a_bare_vm_gets_uv_a_python_and_the_packages_once(vm):
  status, err, calls = vm()
  assert status == 0, err
  assert calls == [
    "curl -LsSf https://astral.sh/uv/install.sh",
    "uv venv --quiet --python 3.12 .venv",
    f"{INSTALLS} -r requirements.txt -e .[tpu]",
    f"{RUNS} {vm.home}/smoke --chips v5e:1",
  ]
  status, _, calls = vm(CHIPS="v6e:1")
  assert status == 0
  assert calls == [
    "needs flax ml_collections orbax.checkpoint skimage libtpu",
    f"{RUNS} {vm.home}/smoke --chips v6e:1",
  ]


def test_an_installation_that_failed_is_tried_again(vm):
  (vm.home / "offline").touch()
  assert vm()[0] == 1
  (vm.home / "offline").unlink()
  status, _, calls = vm()
  assert status == 0
  assert [call.partition(" --")[0] for call in calls[1:]] == [
    "uv pip install",
    f"{RUNS} {vm.home}/smoke",
  ]


def test_toy_networks_want_no_libtpu(vm):
  status, _, calls = vm(SMALL="1")
  assert status == 0
  assert f"{INSTALLS} -r requirements.txt -e .[tpu-aot]" in calls
  status, _, calls = vm(SMALL="1")
  assert status == 0
  assert calls == [
    "needs flax ml_collections orbax.checkpoint skimage",
    f"{RUNS} {vm.home}/smoke --chips v5e:1 --small",
  ]


def test_an_environment_of_ones_own_is_left_as_it_is(vm):
  status, err, calls = vm(VENV="mine")
  assert status == 2
  assert "VENV=mine lacks something of" in err
  assert calls == []
  (vm.checkout / "mine/bin").mkdir(parents=True)
  shutil.copy(vm.home / "python", vm.checkout / "mine/bin")
  assert vm(VENV="mine")[0] == 2
  (vm.checkout / "mine/complete").touch()
  status, _, calls = vm(VENV="mine")
  assert status == 0
  assert calls[-1].startswith(RUNS)
  assert not (vm.checkout / ".venv").exists()
