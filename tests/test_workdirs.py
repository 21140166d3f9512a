"""Workdirs that are gone on with: by another config, after more, by two.

Real commands, from end to end; the parts are in test_checkpoint, test_lineage
and test_lock.
"""

import hashlib
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.training_runs import (
  ROOT,
  assert_same_models,
  environment,
  logged,
  models,
  tiny_config,
  write_config,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("workdirs")
  config = tiny_config(folder, checkpoint_every_steps=1, log_every_steps=1)
  config["phases"]["psnr"]["num_train_steps"] = 4
  config["phases"]["gan"]["num_train_steps"] = 2
  write_config(folder / "config.py", config)
  return folder


def _start(place, workdir, *flags):
  command = [sys.executable, "-m", "esrgan_jax.main"]
  command += [f"--config={place / 'config.py'}", f"--workdir={workdir}"]
  return subprocess.Popen(
    [*command, *(f"--config.{flag}" for flag in flags)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=environment(),
  )


def _run(place, workdir, *flags):
  process = _start(place, workdir, *flags)
  out, err = process.communicate(timeout=900)
  return process.returncode, out, err


@pytest.fixture(scope="module", name="finished")
def _finished(place):
  status, _, err = _run(place, place / "finished")
  assert status == 0, err
  return place / "finished"


def _digests(folder, *, ignore=(".lock",)):
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(pathlib.Path(folder).rglob("*"))
    if path.is_file() and path.name not in ignore
  }


def test_another_generator_is_refused_and_all_stays(place, finished, tmp_path):
  workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
  before = _digests(workdir)
  for flag in ("generator.num_feat=16", "generator.num_block=2"):
    for allowed in ([], ["allow_changes=true"]):
      status, _, err = _run(place, workdir, flag, *allowed)
      assert status == 1
      assert f"  {flag.partition('=')[0]}: " in err
      assert "A generator of another shape cannot go on" in err
      assert "Traceback" not in err
      assert _digests(workdir) == before
  # Whatever config.json says, it is the arrays that count.
  (workdir / "config.json").unlink()
  before.pop("config.json")
  status, _, err = _run(place, workdir, "generator.num_feat=16")
  assert status == 1
  assert re.fullmatch(
    r"error: .*/psnr/checkpoints/4 holds another generator: \S+ is \S+ there,"
    r" \S+ here, and \d+ more differ \(generator\.num_feat: 4 -> 16\)\. .*\n",
    err,
  )
  assert _digests(workdir) == before
  # And the right one goes on.
  status, out, err = _run(place, workdir)
  assert status == 0, err
  assert "gan: finished before, at step 2" in out
  assert_same_models(workdir, finished)


def test_larger_patches_keep_the_generator(place, finished, tmp_path):
  workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
  before = _digests(workdir / "gan/checkpoints")
  flags = ["patch_size=32", "phases.gan.num_train_steps=4", "keep=1"]
  status, _, err = _run(place, workdir, *flags)
  assert status == 1
  assert "patch_size: 24 -> 32" in err
  flags.append("allow_changes=true")
  status, out, err = _run(place, workdir, *flags)
  assert status == 0, err
  assert "psnr: finished before, at step 4" in out
  assert "gan: going on from step 2 of 4" in out
  assert "gan: the discriminator begins anew: " in out
  assert [line["step"] for line in logged(workdir, "gan")] == [1, 2, 3, 4]
  assert _digests(workdir / "gan/checkpoints") == before
  kept = [path.name for path in (workdir / "gan/checkpoints_2").iterdir()]
  assert kept == ["4"]
  status, out, err = _run(place, workdir, *flags)
  assert status == 0, err
  assert "gan: finished before, at step 4" in out


def test_more_of_phase_one_has_phase_two_trained_again(
  place, finished, tmp_path
):
  workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
  flags = ["phases.psnr.num_train_steps=5"]
  status, _, err = _run(place, workdir, *flags)
  assert status == 1
  assert "Phase gan, now at step 2, is then trained again" in err
  assert _digests(workdir) == _digests(finished)
  status, out, err = _run(place, workdir, *flags, "allow_changes=true")
  assert status == 0, err
  assert "psnr: going on from step 4 of 5" in out
  assert re.search(
    r"phase gan, at step 2, was begun from phase psnr's step 4 \(\w+\), not"
    r" from phase psnr's step 5 \(\w+\)",
    " ".join(out.split()),
  )
  assert "gan: 2 steps" in out
  earlier = workdir / "earlier/1"
  assert_same_models(earlier, finished)
  assert _digests(earlier / "gan") == _digests(finished / "gan")
  old, new = models(finished), models(workdir)
  assert old.keys() == new.keys()
  assert any((old[key] != new[key]).any() for key in old)
  # Then they belong together.
  status, out, err = _run(place, workdir, *flags)
  assert status == 0, err
  assert "gan: finished before, at step 2" in out
  assert not (workdir / "earlier/2").exists()


def test_two_runs_in_one_workdir(place, finished, tmp_path):
  workdir = tmp_path / "run"
  long = "phases.psnr.num_train_steps=1000000"
  with _start(place, workdir, long) as first:
    while first.poll() is None and len(logged(workdir, "psnr")) < 3:
      time.sleep(0.01)
    assert first.poll() is None, first.stderr.read()
    status, out, err = _run(place, workdir, long)
    assert status == 1
    assert out == ""
    assert re.fullmatch(
      rf"error: {workdir} is in use: process {first.pid} on \S+ has been"
      r" training there since \d{4}-[^\n]*\n",
      err,
    )
    first.send_signal(signal.SIGKILL)
    first.communicate()
  steps = [line["step"] for line in logged(workdir, "psnr")]
  assert steps == sorted(set(steps))
  # Nobody has to remove anything.
  with _start(place, workdir, long) as second:
    while second.poll() is None and len(logged(workdir, "psnr")) <= len(steps):
      time.sleep(0.01)
    second.send_signal(signal.SIGTERM)
    out, err = second.communicate(timeout=300)
  assert second.returncode == 128 + signal.SIGTERM, err
  assert "psnr: going on from step" in out
