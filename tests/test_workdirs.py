"""Workdirs that are gone on with: by another config, after more, by two.

Real commands, from end to end; the parts are in test_checkpoint, test_lineage
and test_lock.
"""

import hashlib
import itertools
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import jax
import numpy as np
import pytest

from esrgan_jax import plugins
from esrgan_jax.models import registry
from esrgan_jax.training import phases
from esrgan_jax.weights import find
from esrgan_jax.weights.files import read_weights
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


@pytest.mark.release
def test_another_generator_is_refused_and_all_stays(place, finished, tmp_path):
  workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
  before = _digests(workdir)
  for flag in ("generator.num_feat=16", "generator.num_block=2"):
    for allowed in ([], ["allow_changes=true"]):
      status, _, err = _run(place, workdir, flag, *allowed)
      assert status == 2
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


@pytest.mark.release
def test_larger_patches_keep_the_generator(place, finished, tmp_path):
  workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
  before = _digests(workdir / "gan/checkpoints")
  flags = ["patch_size=32", "phases.gan.num_train_steps=4", "keep=1"]
  status, _, err = _run(place, workdir, *flags)
  assert status == 2
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


@pytest.mark.release
def test_more_of_phase_one_has_phase_two_trained_again(
  place, finished, tmp_path
):
  workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
  flags = ["phases.psnr.num_train_steps=5"]
  status, _, err = _run(place, workdir, *flags)
  assert status == 2
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


@pytest.mark.release
def test_two_runs_in_one_workdir(place, finished, tmp_path):
  workdir = tmp_path / "run"
  long = "phases.psnr.num_train_steps=1000000"
  with _start(place, workdir, long) as first:
    while first.poll() is None and len(logged(workdir, "psnr")) < 3:
      time.sleep(0.01)
    assert first.poll() is None, first.stderr.read()
    status, out, err = _run(place, workdir, long)
    assert status == 1
    # What it would do, and no word of having begun.
    assert re.fullmatch(r"trains psnr for 1,000,000 steps, [^\n]*\n", out)
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


@pytest.mark.release
def test_a_workdir_of_the_version_before_goes_on(tmp_path):
  """As 0.1 left it: phase one is done, phase two at step 2 of 4."""
  with tarfile.open(ROOT / "tests/goldens/workdir_of_0.1.tar.xz") as file:
    file.extractall(tmp_path, filter="data")
  command = [sys.executable, "-m", "esrgan_jax.main"]
  done = subprocess.run(
    [*command, "--config=config.py", "--workdir=run"],
    cwd=tmp_path,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  assert "psnr: finished before, at step 4" in done.stdout
  assert "gan: going on from step 2 of 4" in done.stdout
  steps = [row["step"] for row in logged(tmp_path / "run", "gan")]
  assert steps == [1, 2, 3, 4]
  # And ends where that version did.
  ours, theirs = (
    read_weights(tmp_path / name).params
    for name in ("run/models/gan.safetensors", "expected.safetensors")
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs
  )
  assert (tmp_path / "run/models/interpolated_0.8.safetensors").exists()


@pytest.fixture(scope="module", name="own")
def _own(tmp_path_factory):
  """A network, phases and an order of one's own, from a plugin."""
  folder = tmp_path_factory.mktemp("own")
  shutil.copy(ROOT / "tests/own_network.py", folder)
  gan = {
    "num_train_steps": 2,
    "perceptual_weight": 0.0,
    "schedule": {"name": "constant"},
  }
  config = tiny_config(
    folder,
    plugins=("own_network.py",),
    generator={"architecture": "Normalized", "width": 6},
    initialization="published",
    phase_order=("soft", "gan", "fine"),
    phases={"gan": gan, "fine": {**gan, "kind": "gan", "learning_rate": 1e-5}},
  )
  config["data"]["eval"] = config["data"]["sources"]
  write_config(folder / "config.py", config)
  status, out, err = _run(folder, folder / "run")
  assert status == 0, err
  plugins.load(["tests/own_network.py"], folder=ROOT)  # To read it here.
  yield folder, out
  registry.unregister("Normalized")
  phases.unregister_kind("soft")


def _statistics(workdir, phase):
  found = find.find_model(workdir / "models" / f"{phase}.safetensors")
  return found.weights.collections["batch_stats"]["norm"]["mean"]


@pytest.mark.release
def test_a_network_and_phases_of_ones_own(own, tmp_path):
  folder, out = own
  run = folder / "run"
  for name, steps in (("soft", 3), ("gan", 2), ("fine", 2)):
    assert f"{name}: {steps} steps" in out
  page = (run / "report.html").read_text()
  for text in ("one: Soft L1", "two: GAN", "three: GAN (fine)", "Normalized"):
    assert text in page
  names = {path.stem for path in (run / "models").iterdir()}
  assert names == {"soft", "gan", "fine", "interpolated_0.8"}
  rows = json.loads((run / "interpolation.json").read_text())["rows"]
  means = {
    each["model"]: each["means"]
    for each in json.loads((run / "evaluation.json").read_text())["evaluations"]
  }
  assert list(means) == ["bicubic", "soft", "gan", "fine", "interpolated_0.8"]
  assert rows[0] == {"alpha": 0.0, **means["soft"]}
  assert rows[-1] == {"alpha": 1.0, **means["fine"]}
  # BatchNorm's statistics move in every phase, and are what is evaluated.
  seen = [_statistics(run, name) for name in ("soft", "gan", "fine")]
  assert all(np.abs(a - b).max() > 0 for a, b in itertools.pairwise(seen))
  command = [sys.executable, "-m", "esrgan_jax", "evaluate", f"--model={run}"]
  command += [f"--hr={folder / 'photos'}", f"--json={tmp_path / 'again.json'}"]
  done = subprocess.run(
    [*command, f"--plugin={folder / 'own_network.py'}"],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  (again,) = json.loads((tmp_path / "again.json").read_text())["evaluations"]
  assert again["means"]["psnr_y"] == pytest.approx(
    means["fine"]["psnr_y"], abs=1e-3
  )


@pytest.mark.release
def test_a_phase_in_the_middle_that_goes_on(own, tmp_path):
  folder, _ = own
  workdir = shutil.copytree(folder / "run", tmp_path / "run")
  flags = ["phases.gan.num_train_steps=3"]
  status, _, err = _run(folder, workdir, *flags)
  assert status == 2
  assert "Phase fine, now at step 2, is then trained again after" in err
  status, out, err = _run(folder, workdir, *flags, "allow_changes=true")
  assert status == 0, err
  assert "soft: finished before, at step 3" in out
  assert "gan: going on from step 2 of 3" in out
  assert "fine: 2 steps" in out
  assert_same_models(workdir / "earlier/1", folder / "run")
  assert models(workdir).keys() == models(folder / "run").keys()
  status, out, err = _run(folder, workdir, *flags)
  assert status == 0, err
  assert "fine: finished before, at step 2" in out


@pytest.mark.release
def test_one_phase_from_weights_and_a_discriminator(own, tmp_path):
  folder, _ = own
  run = folder / "run"
  flags = [f"init_from={run}", "phase_order=soft"]
  status, out, err = _run(folder, tmp_path / "soft", *flags)
  assert status == 0, err
  assert "phase soft starts from weights: the generator is" in out
  names = {path.stem for path in (tmp_path / "soft/models").iterdir()}
  assert names == {"start", "soft", "interpolated_0.8"}
  start, fine = (
    read_weights(path)
    for path in (
      tmp_path / "soft/models/start.safetensors",
      run / "models/fine.safetensors",
    )
  )
  jax.tree.map(np.testing.assert_array_equal, start.params, fine.params)
  jax.tree.map(
    np.testing.assert_array_equal, start.collections, fine.collections
  )

  flags = [f"init_from={run}/soft", "phase_order=gan"]
  flags += [f"init_discriminator={run}", "phases.gan.learning_rate=1e-9"]
  flags += ["phases.gan.d_learning_rate=1e-9"]
  status, out, err = _run(folder, tmp_path / "gan", *flags)
  assert status == 0, err
  ours, theirs = map(find.find_discriminator, (tmp_path / "gan", run))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    ours.variables["params"],
    theirs.variables["params"],
  )
  flags.append("discriminator.num_feat=4")
  status, _, err = _run(folder, tmp_path / "other", *flags)
  assert status == 2
  assert "a discriminator of another shape" in err


@pytest.mark.release
def test_what_fits_of_another_network(own, tmp_path):
  folder, _ = own
  flags = [f"init_from={folder / 'run/soft'}", "phase_order=soft"]
  another = "generator.architecture=RRDBNet"
  status, _, err = _run(folder, tmp_path / "run", *flags, another)
  assert status == 2
  wanted = "generator.architecture=Normalized --config.generator.width=6"
  assert f"another network: add --config.{wanted}" in err
  flags += ["generator.width=8", "phases.soft.learning_rate=1e-9"]
  status, _, err = _run(folder, tmp_path / "run", *flags)
  assert status == 2
  assert "a network of another shape; add --config.generator.width=6" in err
  flags.append("init_partial=true")
  status, out, err = _run(folder, tmp_path / "run", *flags)
  assert status == 0, err
  said = " ".join(out.split())
  assert "phase soft starts from weights, from run/soft: 1 array" in said
  assert "params/first/kernel (3x3x3x6 there, 3x3x3x8 here)" in said
  # A mixture is no model to compare with.
  assert not (tmp_path / "run/models/start.safetensors").exists()
  # The same start again: nothing is stale.
  status, out, err = _run(folder, tmp_path / "run", *flags)
  assert status == 0, err
  assert "soft: finished before, at step 3" in out
