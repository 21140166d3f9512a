"""Augmentation in a training: its config, its phases, and on going on."""

import io
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from esrgan_jax import augment
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import loop
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training import run as run_lib
from tests.training_runs import (
  ROOT,
  assert_same_models,
  environment,
  logged,
  tiny_config,
  write_config,
)

_ON = {
  "augmentation": {
    "mixup": {"probability": 0.5},
    "noise": {"probability": 0.5, "levels": (5.0, 5.0)},
  },
  "phases": {
    "gan": {
      "augmentation": {
        "mixup": {"probability": 0.0},
        "cutblur": {"probability": 0.5},
      }
    }
  },
}


def _on(config, phase):
  found = phases_lib.augmentation(config_lib.complete(config), phase)
  return found["one_of"], {
    name: options
    for name, options in found["operations"].items()
    if options["probability"]
  }


def test_all_is_off_unless_asked_for():
  for phase in ("psnr", "gan"):
    assert _on({}, phase) == (False, {})
  assert set(config_lib.complete({}).augmentation) == {
    "one_of",
    *augment.OPERATIONS,
  }


def test_a_phase_may_have_its_own():
  noise = {"probability": 0.5, "levels": (5.0, 5.0)}
  _, psnr = _on(_ON, "psnr")
  assert psnr == {"mixup": {"probability": 0.5, "alpha": 1.2}, "noise": noise}
  _, gan = _on(_ON, "gan")
  cutblur = {"probability": 0.5, "sides": (0.7, 0.7)}
  assert gan == {"noise": noise, "cutblur": cutblur}
  # As by name, and as a file of the workdir has it.
  config = config_lib.complete({})
  config_lib.override(
    config,
    [
      ("augmentation.mixup.probability", "0.5"),
      ("augmentation.noise.probability", "0.5"),
      ("augmentation.noise.levels", "5,5"),
      ("phases.gan.augmentation.mixup.probability", "0"),
      ("phases.gan.augmentation.cutblur.probability", "0.5"),
      ("phases.gan.augmentation.one_of", "True"),
    ],
  )
  assert _on(config, "psnr") == (False, psnr)
  assert _on(config, "gan") == (True, gan)
  again = config_lib.complete(config_lib.plain(config))
  assert _on(again, "gan")[1]["cutblur"]["sides"] == [0.7, 0.7]
  assert "augmentation.mixup.probability: 0.0 -> 0.5" in config_lib.difference(
    config_lib.plain(config_lib.complete({})), config_lib.plain(config)
  )


def _section(**values):
  return {"augmentation": values}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (_section(cutblurr={}), "did you mean config.augmentation.cutblur"),
    (_section(noise={"level": 1}), "did you mean config.augmentation.noise.l"),
    (_section(noise=0.5), "config.augmentation.noise is 0.5; it is a section"),
    (_section(one_of=1), "config.augmentation.one_of is 1; it must be True"),
    (
      _section(noise={"probability": 2}),
      "config.augmentation.noise.probability is 2; it must be from 0 to 1",
    ),
    (_section(blur={"sigmas": 1.0}), "such as (0.2, 1.5)"),
    (
      {"phases": {"gan": _section(blur={"sigmas": (2, 1)})}},
      "config.phases.gan.augmentation.blur.sigmas is (2, 1); it must be",
    ),
    ({"phases": {"gan": _section(one_of="no")}}, "must be True or False"),
    ({"phases": {"gan": _section(blurr={})}}, "config.phases.gan.augmentatio"),
    (
      {"batch_size": 1, **_section(cutmix={"probability": 0.1})},
      "of phase psnr: cutmix needs a second pair",
    ),
    (
      _section(
        one_of=True, blur={"probability": 0.6}, noise={"probability": 0.6}
      ),
      "the shares are 1.2 together (blur 0.6, noise 0.6)",
    ),
  ],
)
def test_what_a_section_cannot_be(changes, message):
  with pytest.raises(config_lib.ConfigError, match=r"config\.") as caught:
    config_lib.complete(changes)
  assert message in str(caught.value)


def test_a_kind_has_no_section_of_that_name():
  defaults = {"num_train_steps": 1, "augmentation": {}}
  with pytest.raises(ValueError, match="which every phase has"):
    phases_lib.register_kind(phases_lib.Kind("own", "Own", defaults, None))


def test_one_more_is_an_entry_of_the_table():
  def darken(key, pair, *, amount):
    return tuple(image * (1 - amount) for image in pair)

  operation = augment.Operation(darken, {"amount": 0.25}, most={"amount": 1.0})
  with pytest.raises(ValueError, match="another operation is called 'noise'"):
    augment.register_operation("noise", operation)
  augment.register_operation("darken", operation)
  try:
    given = _section(darken={"probability": 1.0})
    _, found = _on(given, "gan")
    assert found == {"darken": {"probability": 1.0, "amount": 0.25}}
    white = jnp.ones((1, 2, 2, 3))
    batch = augment.transform(
      jax.random.key(0), {"lr": white, "hr": white}, found
    )
    np.testing.assert_array_equal(batch["hr"], 0.75)
    given["augmentation"]["darken"]["amount"] = 2
    with pytest.raises(config_lib.ConfigError, match=r"amount is 2; .* to 1"):
      config_lib.complete(given)
  finally:
    del augment.OPERATIONS["darken"]


def _train(config, workdir):
  out = io.StringIO()
  console = rich.console.Console(file=out, width=200)
  loop.train(config, workdir, console=console)
  return out.getvalue()


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  """A folder with photos, and phase one trained with all of it, in `run`."""
  folder = tmp_path_factory.mktemp("augmented")
  config = tiny_config(folder, log_every_steps=1, phase_order=("psnr",), seed=3)
  config["augmentation"] = {
    name: {"probability": 0.5} for name in augment.OPERATIONS
  }
  config["phases"]["psnr"] |= {"num_train_steps": 24}
  write_config(folder / "config.py", config)
  _train(config, folder / "run")
  return folder, config


@pytest.mark.release
def test_a_step_has_the_pairs_of_its_seed_and_step(place):
  folder, config = place
  run = run_lib.make_run(config_lib.complete(config), folder / "again")
  with run.data.pipeline(3) as pipeline:
    raw = pipeline.batch(0)

  @jax.jit
  def losses(raw):
    seed = jax.random.key(3)
    variables = phases_lib.variables(run.config, run.generator, seed)
    key = jax.random.fold_in(seed, 0)
    batch = run.data.preprocess(key, raw)
    found = []
    for operations in (config["augmentation"], {}):
      pairs = augment.transform(key, batch, operations)
      sr = run.generator.apply(variables, pairs["lr"])
      found.append(abs(sr - pairs["hr"]).mean())
    return found

  first = logged(folder / "run", "psnr")[0]
  assert first["step"] == 1
  augmented, plain = map(float, losses(raw))
  assert first["g/pixel"] == pytest.approx(augmented, rel=1e-4)
  assert abs(plain - augmented) > 1e-3


@pytest.mark.release
def test_killed_in_the_middle_it_ends_the_same(place):
  folder, config = place
  workdir = folder / "killed"
  command = [sys.executable, "-m", "esrgan_jax.main"]
  command += [f"--config={folder / 'config.py'}", f"--workdir={workdir}"]
  with subprocess.Popen(
    command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
  ) as process:
    while process.poll() is None and len(logged(workdir, "psnr")) < 8:
      time.sleep(0.001)
    process.kill()
  assert process.returncode == -signal.SIGKILL
  out = _train(config, workdir)
  assert "psnr: going on from step" in out
  assert "psnr: augmentation: permute_channels 0.5, color_jitter 0.5, " in out
  assert_same_models(workdir, folder / "run")
