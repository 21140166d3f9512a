"""`python -m esrgan_jax.main` from end to end, as users and schedulers run it.

`ESRGAN_JAX_KILLS=10` kills the interrupted run ten times instead of three.
"""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from esrgan_jax import main
from tests.training_runs import (
  ROOT,
  assert_same_models,
  environment,
  logged,
  trained,
)

_KILLS = int(os.environ.get("ESRGAN_JAX_KILLS", "3"))


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("main")
  shutil.copy(trained()[0] / "config.py", folder)
  return folder


def _start(place, workdir, *flags, **variables):
  command = [sys.executable, "-m", "esrgan_jax.main"]
  command += [f"--config={place / 'config.py'}", f"--workdir={workdir}"]
  return subprocess.Popen(
    [*command, *flags],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=environment(**variables),
  )


def _run(place, workdir, *flags, **variables):
  process = _start(place, workdir, *flags, **variables)
  out, err = process.communicate(timeout=900)
  return process.returncode, out, err


@pytest.fixture(scope="module", name="undisturbed")
def _undisturbed():
  folder, _, out = trained()
  return folder / "run", out


def _progress(workdir):
  return sum(len(logged(workdir, phase)) for phase in ("psnr", "gan"))


@pytest.mark.release
def test_killed_at_random_moments_it_ends_the_same(place, undisturbed):
  workdir = place / "killed"
  chance = random.Random(0)
  total = _progress(undisturbed[0])
  for number in range(_KILLS):
    # Anywhere between this moment's progress and the end.
    moment = round(total * (number + chance.random()) / _KILLS)
    with _start(place, workdir) as process:
      while process.poll() is None and _progress(workdir) < moment:
        time.sleep(0.01)
      time.sleep(chance.random() * 0.3)
      process.kill()
  status, out, err = _run(place, workdir)
  assert status == 0, err
  assert "going on from step" in out or "finished before" in out
  assert_same_models(undisturbed[0], workdir)
  for phase in ("psnr", "gan"):
    steps = [line["step"] for line in logged(workdir, phase)]
    assert steps == [line["step"] for line in logged(undisturbed[0], phase)]


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(place, undisturbed):
  workdir = place / "stopped"
  with _start(place, workdir) as process:
    while process.poll() is None and _progress(workdir) < 2:
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
  assert process.returncode == 128 + signal.SIGTERM, err
  assert "saved. The same command goes on from there" in err
  saved = [int(p.name) for p in (workdir / "psnr/checkpoints").glob("[0-9]*")]
  assert f"at step {max(saved)} of phase psnr" in err
  status, out, err = _run(place, workdir)
  assert status == 0, err
  assert f"psnr: going on from step {max(saved)} of 12" in out
  assert_same_models(undisturbed[0], workdir)


@pytest.mark.release
def test_a_finished_run_is_recognised(place, undisturbed):
  finished, before = undisturbed
  workdir = shutil.copytree(finished, place / "finished")
  times = {p: p.stat().st_mtime_ns for p in workdir.glob("*/checkpoints/*")}
  status, out, err = _run(place, workdir)
  assert status == 0, err
  assert "psnr: 12 steps" in before
  assert "psnr: finished before, at step 12" in out
  assert "gan: finished before, at step 8" in out
  assert times
  assert times == {p: p.stat().st_mtime_ns for p in times}


def test_another_config_is_shown_and_refused(place, undisturbed):
  workdir, _ = undisturbed
  flags = ["--config.seed=1", "--config.phases.gan.learning_rate", "3e-4"]
  flags += ["--config.keep=7"]
  status, _, err = _run(place, workdir, *flags)
  assert status == 2
  assert "seed: 0 -> 1" in err
  assert "phases.gan.learning_rate: 0.0001 -> 0.0003" in err
  assert "--config.allow_changes=true" in err
  assert "keep" not in err
  assert "Traceback" not in err


@pytest.mark.parametrize(
  ("flag", "message", "status"),
  [
    ("--config.batch_siez=8", "did you mean config.batch_size?", 2),
    (
      "--config.phases.gan.pixel_wieght=1",
      "config.phases.gan.pixel_weight?",
      2,
    ),
    ("--config.batch_size=many", "'many'; it must be an integer", 2),
    ("--config.batch_size=-1", "is -1; it must be more than 0", 2),
    ("--config.batch_size=3", "batch_size", 2),
    ("--config.data.sources=/nowhere", "/nowhere", 1),
    (
      "--config.init_from=realesrgan-x4-plus",
      "did you mean realesrgan-x4plus",
      2,
    ),
    ("--config.data.sources=", "config.data.sources is empty", 2),
    ("--plugin=nowhere.py", "no plugin nowhere.py: give a Python file", 2),
  ],
)
def test_mistakes_are_one_line_errors(
  place, tmp_path, flag, message, status, capsys
):
  flags = [f"--config={place / 'config.py'}", f"--workdir={tmp_path}/run"]
  assert main.main([*flags, "--config.mesh.num_devices=2", flag]) == status
  err = capsys.readouterr().err
  assert message in err
  assert err.startswith("error: ")
  assert len(err.splitlines()) == 1


def test_no_config_file(tmp_path):
  flags = [f"--config={tmp_path}/absent.py", f"--workdir={tmp_path}"]
  assert main.main(flags) == 2
  assert not list(pathlib.Path(tmp_path).iterdir())


def test_a_workdir_that_is_a_file(place, tmp_path, capsys):
  path = tmp_path / "run"
  path.write_text("mine")
  flags = [f"--config={place / 'config.py'}", f"--workdir={path}"]
  assert main.main(flags) == 2
  assert f"{path} is no folder; choose another" in capsys.readouterr().err
  assert main.main([*flags[:1], f"--workdir={path}/below"]) == 2
  assert "is no folder; choose another" in capsys.readouterr().err
  assert path.read_text() == "mine"


@pytest.mark.parametrize("key", ["sources", "eval"])
def test_folders_are_told_before_weights_are_looked_for(key, tmp_path, capsys):
  flags = [f"--config={ROOT}/configs/finetune.py", f"--workdir={tmp_path}/run"]
  flags += [
    "--config.data.sources=sample_photos",
    f"--config.data.{key}=/absent",
  ]
  flags += [f"--config.perceptual.weights={tmp_path}/absent.npz"]
  assert main.main(flags) == 1
  err = capsys.readouterr().err
  assert err.startswith(f"error: data.{key}: /absent: no such folder")
  assert len(err.splitlines()) == 1


def test_a_key_without_a_value(place, capsys):
  flags = [f"--config={place / 'config.py'}", "--config.batch_size"]
  with pytest.raises(SystemExit) as stop:
    main.main(flags)
  assert stop.value.code == 2
  assert "--config.batch_size needs a value" in capsys.readouterr().err


_WHILE_IMPORTING = """
import signal
from esrgan_jax import main
assert "jax" not in main.sys.modules  # Its import is what swallows one.

class Thing:
  def __del__(self):  # Python prints what is raised here, and goes on.
    signal.raise_signal(signal.SIGINT)

def run(*_):
  Thing()
  return 0

main._run = run
main.sys.argv = ["main", "--config=none.py"]
main.run_process()
"""


def test_an_interrupt_before_training_ends_it_wherever_it_comes():
  done = subprocess.run(
    [sys.executable, "-c", _WHILE_IMPORTING],
    check=False,
    capture_output=True,
    timeout=60,
  )
  assert (done.returncode, done.stderr) == (130, b"\ninterrupted\n")
