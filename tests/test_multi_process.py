"""Several real processes on loopback, by the script that users start."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from esrgan_jax import augment
from esrgan_jax.evaluation.evaluator import read_evaluations
from tests.training_runs import (
  ROOT,
  environment,
  logged,
  models,
  tiny_config,
  write_config,
)

_SCRIPT = ROOT / "launch" / "local_processes.sh"


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("processes")
  config = tiny_config(folder, mesh={"num_devices": 0}, log_every_steps=1)
  # A loop over blocks, unless it is seen to, and threads to run its sums over
  # devices beside others: gloo then ended such a run in its first step.
  config["generator"]["num_block"] = 6
  config["data"]["eval"] = config["data"]["sources"]
  # Rows have partners on other devices, and of other processes.
  config["augmentation"] = {
    name: {"probability": 0.5} for name in augment.OPERATIONS
  }
  (folder / "photos" / "bad.png").write_bytes(b"no image")
  write_config(folder / "config.py", config)
  return folder


def _start(place, workdir, *flags, processes=2, devices=2):
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
      PYTHON=sys.executable,
      DEVICES_PER_PROCESS=str(devices),
      JAX_NUM_CPU_DEVICES=str(devices),
      NPROC="16",
    ),
  )


def _run(place, workdir, *flags, **options):
  process = _start(place, workdir, *flags, **options)
  out, _ = process.communicate(timeout=900)
  return process.returncode, out


@pytest.fixture(scope="module", name="whole")
def _whole(place):
  """The documented command, as it stands."""
  status, out = _run(place, place / "two")
  assert status == 0, out
  return place / "two", out


@pytest.mark.release
def test_two_processes_do_all_of_it(place, whole):
  workdir, out = whole
  assert "4 cpu device(s) in 2 process(es)" in out
  assert "[0] psnr: trains on 3 images" in out
  assert "[1] psnr" not in out
  assert out.count("bad.png") == 1
  for name in (
    "evaluation.json",
    "interpolation.json",
    "report.html",
    "models/interpolated_0.8.safetensors",
    "film.webp",
    "film/gan/0000008.png",
    "samples/final.png",
    "samples/psnr_0000006.png",
    "samples/gan_0000008.png",
  ):
    assert (workdir / name).stat().st_size > 0, name

  # Again: nothing is trained, all the rest is made anew.
  (workdir / "interpolation.json").unlink()
  status, out = _run(place, workdir)
  assert status == 0, out
  assert "psnr: finished before, at step 12" in out
  assert "gan: finished before, at step 8" in out
  assert (workdir / "interpolation.json").exists()


def test_processes_change_nothing_but_roundings(place, whole):
  workdir, _ = whole
  status, out = _run(place, place / "one", processes=1, devices=4)
  assert status == 0, out
  assert "4 cpu device(s) in 1 process(es)" in out
  for phase in ("psnr", "gan"):
    several, one = (
      [line for line in logged(w, phase) if "g/loss" in line]
      for w in (workdir, place / "one")
    )
    assert len(several) == len(one) >= 8
    for a, b in zip(several, one, strict=True):
      for key in ("g/loss", "d/loss"):
        assert a.get(key) == pytest.approx(b.get(key), abs=1e-4)
  for a, b in zip(
    read_evaluations(workdir / "evaluation.json"),
    read_evaluations(place / "one/evaluation.json"),
    strict=True,
  ):
    assert a["means"]["psnr_y"] == pytest.approx(b["means"]["psnr_y"], abs=0.05)


@pytest.mark.release
def test_one_process_goes_on_where_two_were(place, whole):
  workdir = place / "goes_on"
  status, out = _run(place, workdir, "--config.phases.gan.num_train_steps=4")
  assert status == 0, out
  more = ("--config.allow_changes=true", "--config.mesh.num_devices=1")
  status, out = _run(place, workdir, *more, processes=1)
  assert status == 0, out
  assert "gan: going on from step 4 of 8" in out
  a, b = models(workdir), models(whole[0])
  assert a.keys() == b.keys()
  for key, array in a.items():
    assert abs(array - b[key]).max() < 1e-3, key


@pytest.mark.release
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


@pytest.mark.release
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
