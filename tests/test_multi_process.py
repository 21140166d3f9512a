"""Several real processes on loopback, by the script that users start."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.training_runs import (
  ROOT,
  environment,
  logged,
  models,
  tiny_config,
  write_config,
)

_SCRIPT = ROOT / "launch" / "local_processes.sh"


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("processes")
  config = tiny_config(folder, mesh={"num_devices": 0})
  config["data"]["cache"] = "device"  # Its batches are those of one process.
  write_config(folder / "config.py", config)
  return folder


def _start(place, workdir, *flags, processes=2):
  flags = [f"--config={place / 'config.py'}", f"--workdir={workdir}", *flags]
  if processes > 1:
    command = ["bash", str(_SCRIPT), str(processes), *flags]
  else:
    command = [sys.executable, "-m", "esrgan_jax.main", *flags]
  return subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=ROOT,
    env=environment(
      place / "cache", PYTHON=sys.executable, DEVICES_PER_PROCESS="2"
    ),
  )


def _run(place, workdir, *flags, processes=2):
  process = _start(place, workdir, *flags, processes=processes)
  out, _ = process.communicate(timeout=900)
  return process.returncode, out


@pytest.mark.slow
def test_two_processes_train_and_one_goes_on(place):
  workdir = place / "two"
  first = "--config.phases.gan.num_train_steps=4"
  status, out = _run(place, workdir, first)
  assert status == 0, out
  assert "4 cpu device(s) in 2 process(es)" in out
  assert "[0] psnr: 12 steps" in out
  assert "[1] psnr" not in out
  assert [x["step"] for x in logged(workdir, "gan")] == [1, 2, 4]

  # The checkpoint of 2 x 2 devices goes on with one device.
  more = "--config.allow_changes=true"
  status, out = _run(place, workdir, more, processes=1)
  assert status == 0, out
  assert "psnr: finished before, at step 12" in out
  assert "gan: going on from step 4 of 8" in out

  # The same as one device alone, to rounding.
  status, out = _run(place, place / "one", processes=1)
  assert status == 0, out
  a, b = models(workdir), models(place / "one")
  assert a.keys() == b.keys()
  for key, array in a.items():
    assert abs(array - b[key]).max() < 1e-3, key


@pytest.mark.slow
def test_a_process_dies_and_all_end_then_the_run_goes_on(place):
  workdir = place / "dies"
  with _start(place, workdir) as process:
    while process.poll() is None and len(logged(workdir, "psnr")) < 4:
      time.sleep(0.01)
    found = subprocess.run(
      ["ps", "-ww", "-eo", "pid,args"],
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    main = rf"{re.escape(sys.executable)} -m esrgan_jax\.main .*{workdir}"
    trainers = re.findall(rf"^\s*(\d+)\s+{main}", found, re.MULTILINE)
    assert len(trainers) == 2, found
    subprocess.run(["kill", "-KILL", trainers[1]], check=True)
    began = time.monotonic()
    out, _ = process.communicate(timeout=300)
  assert process.returncode != 0
  assert time.monotonic() - began < 60, out
  status, out = _run(place, workdir)
  assert status == 0, out
  assert pathlib.Path(workdir, "models/gan.safetensors").exists()


@pytest.mark.slow
def test_sigterm_stops_all_at_one_step(place):
  workdir = place / "stopped"
  flag = "--config.phases.psnr.num_train_steps=100000"
  with _start(place, workdir, flag) as process:
    while process.poll() is None and len(logged(workdir, "psnr")) < 4:
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
  assert process.returncode == 128 + signal.SIGTERM, out
  steps = re.findall(r"stopped by SIGTERM at step (\d+)", out)
  assert len(steps) == 2
  assert steps[0] == steps[1]
  assert (workdir / "psnr/checkpoints" / steps[0] / "ema").is_dir()
