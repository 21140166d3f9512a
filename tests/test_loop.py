"""The training program from inside: what it writes, and how it fails."""

import io
import json
import re
import shutil

import jax
import numpy as np
import pytest
import rich.console

from esrgan_jax import interpolate, metrics
from esrgan_jax.data import sources
from esrgan_jax.resize import imresize_uint8
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import finish, loop
from esrgan_jax.upscaling.upscaler import Upscaler, load
from esrgan_jax.weights.files import read_weights
from tests.training_runs import logged, tiny_config, trained


def _train(config, workdir):
  out = io.StringIO()
  console = rich.console.Console(file=out, width=200)
  loop.train(config, workdir, console=console)
  return out.getvalue()


@pytest.fixture(scope="module", name="finished")
def _finished():
  folder, config, out = trained()
  return folder / "run", config, out


def test_a_workdir_is_complete(finished):
  workdir, config, out = finished
  for name in (
    "config.json",
    "evaluation.json",
    "interpolation.json",
    "perceptual.json",
    "report.html",
    "models/psnr.safetensors",
    "models/gan.safetensors",
    "models/interpolated_0.8.safetensors",
    "samples/final.png",
    "samples/psnr_0000006.png",
    "samples/gan_0000008.png",
  ):
    assert (workdir / name).stat().st_size > 0, name
  assert not list(workdir.rglob("*.part"))
  saved = json.loads((workdir / "config.json").read_text())
  assert saved == config_lib.plain(config_lib.complete(config))
  assert "random VGG19 features" in out
  assert "interpolated_0.8" in out
  assert out.splitlines()[-1].endswith("report.html")


def test_metrics_are_logged_at_their_steps(finished):
  workdir, _, _ = finished
  for phase, steps in (("psnr", (1, 2, 4, 6, 8, 10, 12)), ("gan", (1, 2, 4))):
    lines = [line for line in logged(workdir, phase) if "g/loss" in line]
    assert tuple(line["step"] for line in lines)[: len(steps)] == steps
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert "g/learning_rate" in lines[-1]
    assert 0 <= lines[-1]["data_wait_share"] <= 1
    assert lines[-1]["images_per_second"] > 0
    assert lines[-1]["steps_per_second"] > 0
    assert "peak_share" not in lines[-1]  # Nobody states a CPU's.
    evaluated = [
      line for line in logged(workdir, phase) if "eval/ssim_y" in line
    ]
    assert evaluated
  assert {"d/real", "d/fake", "d/gap", "d/grad_norm"} <= lines[-1].keys()
  gap = lines[-1]["d/real"] - lines[-1]["d/fake"]
  np.testing.assert_allclose(lines[-1]["d/gap"], gap, atol=1e-5)


def test_the_models_are_what_was_evaluated(finished):
  workdir, config, _ = finished
  content = json.loads((workdir / "evaluation.json").read_text())
  means = {each["model"]: each["means"] for each in content["evaluations"]}
  assert list(means) == ["bicubic", "psnr", "gan", "interpolated_0.8"]
  pairs = list(sources.open_source(config["data"]["eval"], scale=4))
  for name in ("bicubic", "psnr"):
    if name == "psnr":
      model = load(workdir / "models/psnr.safetensors", dtype="float32")
      assert isinstance(model, Upscaler)
      results = [model.upscale(pair.lr) for pair in pairs]
    else:
      results = [imresize_uint8(pair.lr, scale=4) for pair in pairs]
    values = [
      metrics.psnr(
        np.float32(sr) / 255,
        np.float32(pair.hr) / 255,
        crop_border=4,
        y_channel=True,
      )
      for sr, pair in zip(results, pairs, strict=True)
    ]
    np.testing.assert_allclose(
      means[name]["psnr_y"], np.mean(values), atol=1e-2
    )


def test_the_interpolated_model_lies_between(finished):
  workdir, _, _ = finished
  psnr, gan, mixed = (
    read_weights(workdir / f"models/{name}.safetensors")
    for name in ("psnr", "gan", "interpolated_0.8")
  )
  expected = jax.tree.map(
    lambda a, b: 0.2 * a + 0.8 * b, psnr.params, gan.params
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    mixed.params,
    expected,
  )
  assert mixed.metadata["alpha"] == "0.8"
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), psnr.params, gan.params
  )
  assert max(jax.tree.leaves(moved)) > 0
  rows = json.loads((workdir / "interpolation.json").read_text())["rows"]
  assert [row["alpha"] for row in rows] == [0.0, 0.5, 0.8, 1.0]
  content = json.loads((workdir / "evaluation.json").read_text())["evaluations"]
  assert rows[0] == {"alpha": 0.0, **content[1]["means"]}
  assert rows[-1] == {"alpha": 1.0, **content[2]["means"]}
  assert interpolate.interpolate_params is finish.interpolate_params


@pytest.mark.release
def test_more_steps_are_a_changed_config(finished, tmp_path):
  finished, config, _ = finished
  workdir = shutil.copytree(finished, tmp_path / "run")
  psnr = {**config["phases"]["psnr"]}
  changed = {
    **config,
    "phases": {"psnr": psnr, "gan": {**config["phases"]["gan"]}},
  }
  changed["phases"]["gan"]["num_train_steps"] = 10
  with pytest.raises(
    config_lib.ConfigError, match=r"num_train_steps: 8 -> 10(.|\n)*allow_ch"
  ):
    _train(changed, workdir)
  out = _train({**changed, "allow_changes": True}, workdir)
  assert "num_train_steps: 8 -> 10" in out
  assert "gan: going on from step 8 of 10" in out
  assert logged(workdir, "gan")[-1]["step"] == 10


def _exploding(folder, **changes):
  """A config whose learning rate becomes absurd from the fifth step on."""
  config = tiny_config(folder, max_skipped_in_a_row=2, **changes)
  config["phases"]["psnr"]["schedule"] = {
    "name": "milestones",
    "milestones": (4,),
    "factor": 1e35,
  }
  return config


@pytest.mark.release
def test_failing_updates_go_back_once_and_then_stop(tmp_path):
  with pytest.raises(loop.TrainingError, match=r"not\s+finite") as caught:
    _train(_exploding(tmp_path), tmp_path / "run")
  # One of the first steps is all that there is to go back to.
  assert "no good checkpoint to go back to" in str(caught.value)
  assert "lower config.phases.psnr.learning_rate" in str(caught.value)
  # What is kept is from before it went wrong.
  saved = (tmp_path / "run/psnr/checkpoints").glob("[0-9]*")
  assert [p.name for p in saved] == ["3"]


@pytest.mark.slow
def test_failing_before_any_checkpoint(tmp_path):
  with pytest.raises(
    loop.TrainingError, match="no good checkpoint to go back to"
  ):
    _train(_exploding(tmp_path, checkpoint_every_steps=9), tmp_path / "run")


@pytest.mark.release
def test_what_is_absurd_has_diverged_too(tmp_path):
  config = tiny_config(tmp_path, checkpoint_every_steps=1, eval_every_steps=1)
  config["data"]["eval"] = config["data"]["sources"]
  config["phases"]["gan"] = {"num_train_steps": 0}
  constant = config["phases"]["psnr"]
  # Finite, and far too much: results get worse for a while before.
  config["phases"]["psnr"] = constant | {
    "schedule": {"name": "milestones", "milestones": (6,), "factor": 300.0}
  }
  with pytest.raises(loop.TrainingError, match="has diverged") as caught:
    _train(config, tmp_path / "run")
  text = str(caught.value)
  assert re.search(r"again after going back to step \d and step \d;", text)
  assert "lower config.phases.psnr.learning_rate (0.001)" in text
  assert "float32" not in text  # It is.
  kept = sorted(
    int(p.name) for p in (tmp_path / "run/psnr/checkpoints").iterdir()
  )
  assert kept[-1] <= 7  # Soon after the rate has changed.
  aside = list((tmp_path / "run/psnr/diverged_checkpoints").iterdir())
  assert aside
  config["phases"]["psnr"] = constant
  out = _train({**config, "allow_changes": True}, tmp_path / "run")
  assert f"going on from step {kept[-1]} of 12" in out
  assert logged(tmp_path / "run", "psnr")[-1]["step"] == 12


@pytest.mark.parametrize(
  ("losses", "absurd"),
  [
    ((8.0, 1.5), False),  # A network that begins far off.
    ((11.0,), True),
    ((0.9, 1.1), False),  # A toy that learns by leaps.
    ((0.05, 1.2), True),
    ((0.05, 0.9), False),  # Black images.
    ((0.3, 2.9), False),
    ((0.3, 0.2, 2.9), True),
  ],
)
def test_a_pixel_loss_is_absurd_beside_what_it_was(losses, absurd):
  least, found = np.inf, []
  for loss in losses:
    found.append(loop._is_absurd(loss, least))
    least = min(least, loss)
  assert found == [False] * (len(losses) - 1) + [absurd]


@pytest.mark.parametrize(
  ("scores", "done", "step"),
  [
    ({}, 5, None),
    ({3: None, 6: None}, 9, 6),  # Nothing is known against any.
    ({3: None, 6: None}, 6, 3),
    ({3: 28.0, 6: 27.0, 9: 7.6}, 12, 6),
    ({3: 28.0, 6: None}, 9, 3),
    ({3: 7.6, 6: 28.0}, 6, 3),
  ],
)
def test_the_checkpoint_to_go_back_to(scores, done, step):
  assert loop._last_good(scores, done) == step


@pytest.mark.release
def test_init_from_skips_phase_one(finished, tmp_path):
  workdir, config, _ = finished
  # The phase that is evaluated and upscaled with too, unless one is named.
  gan = {**config["phases"]["gan"], "num_train_steps": 2}
  phases = {**config["phases"], "gan": gan}
  config = {**config, "phases": phases, "init_from": str(workdir)}
  out = _train(config, tmp_path)
  assert "phase one is skipped: the generator is run/gan" in out
  assert not (tmp_path / "psnr").exists()
  a = read_weights(workdir / "models/gan.safetensors")
  b = read_weights(tmp_path / "models/psnr.safetensors")
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
  content = json.loads((tmp_path / "evaluation.json").read_text())
  names = [each["model"] for each in content["evaluations"]]
  assert names == [
    "bicubic",
    "/".join(workdir.parts[-2:]),
    "gan",
    "interpolated_0.8",
  ]


@pytest.mark.slow
def test_a_failing_evaluation_ends_no_training(finished, tmp_path):
  _, config, _ = finished
  photos = tmp_path / "photos"
  shutil.copytree(config["data"]["sources"], photos)
  config = {**config, "data": {**config["data"], "eval": str(photos)}}
  config["phases"] = {**config["phases"], "gan": {"num_train_steps": 0}}

  class Vanishing(io.StringIO):
    """The images are gone once training has begun."""

    def write(self, text):
      if "trains on" in text:
        shutil.rmtree(photos)
      return super().write(text)

  console = rich.console.Console(file=Vanishing(), width=200)
  with pytest.raises(loop.IncompleteError, match="the final evaluation") as e:
    loop.train(config, tmp_path / "run", console=console)
  assert "evaluation at step 6 of phase psnr: there is no image left" in str(
    e.value
  )
  assert (tmp_path / "run/models/psnr.safetensors").exists()
  assert (tmp_path / "run/report.html").exists()
  steps = [p.name for p in (tmp_path / "run/psnr/checkpoints").glob("[0-9]*")]
  assert "12" in steps


def test_init_from_another_shape_says_how_to_get_it(finished, tmp_path):
  workdir, config, _ = finished
  config = {**config, "init_from": str(workdir / "models/psnr.safetensors")}
  config["generator"] = {**config["generator"], "num_feat": 8}
  with pytest.raises(
    config_lib.ConfigError, match=r"--config\.generator\.num_feat=4$"
  ):
    _train(config, tmp_path / "run")


def test_vgg_is_asked_for_by_name(tmp_path):
  config = tiny_config(tmp_path)
  config["phases"]["psnr"]["num_train_steps"] = 1
  config["perceptual"] = {"weights": str(tmp_path / "absent.pth")}
  with pytest.raises(FileNotFoundError, match=r"config\.perceptual\.weights="):
    _train(config, tmp_path / "run")
