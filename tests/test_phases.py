"""What is found before the first step of the first phase."""

import pytest

from esrgan_jax.steps.state import averaged
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training import run as run_lib
from tests.training_runs import tiny_config


def _make(tmp_path, *overrides, **changes):
  config = config_lib.complete(tiny_config(tmp_path, **changes))
  config_lib.override(config, overrides)
  return phases_lib.make_phases(
    run_lib.make_run(config_lib.complete(config), tmp_path / "run")
  )


_NO_VGG = ("phases.gan.perceptual_weight", "0")


def test_phases_in_order(tmp_path):
  psnr, gan = _make(tmp_path, _NO_VGG)
  assert (psnr.name, psnr.total, psnr.seed) == ("psnr", 12, 0)
  assert (gan.name, gan.total, gan.seed) == ("gan", 8, 1)
  state = gan.abstract_state(averaged(psnr.abstract_state(None)))
  assert state.ema_params["conv_first"]["kernel"].shape == (3, 3, 3, 4)
  assert state.d_params["linear2"]["bias"].shape == (1,)
  (only,) = _make(tmp_path, ("phases.gan.num_train_steps", "0"))
  assert only.name == "psnr"
  (only,) = _make(tmp_path, _NO_VGG, ("init_from", "realesrgan-x4plus"))
  assert only.name == "gan"


def test_phases_of_one_kind(tmp_path):
  fine = {"kind": "gan", "num_train_steps": 5, "perceptual_weight": 0.0}
  phases = tiny_config(tmp_path)["phases"] | {"fine": fine, "more": fine}
  made = _make(
    tmp_path,
    _NO_VGG,
    ("phase_order", "psnr,gan,more,fine"),
    ("phases.more.num_train_steps", "7"),
    phases=phases,
  )
  assert [(p.name, p.title, p.total, p.seed) for p in made] == [
    ("psnr", "PSNR", 12, 0),
    ("gan", "GAN", 8, 1),
    ("more", "GAN (more)", 7, 4),
    ("fine", "GAN (fine)", 5, 5),
  ]
  (only,) = _make(
    tmp_path, ("phase_order", "psnr"), ("init_from", "realesrgan-x4plus")
  )
  assert only.name == "psnr"


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("patch_size", "20", "phase gan .*config.patch_size.*power of two"),
    ("phases.gan.schedule", "{'name': 'linear'}", "phases.gan.*'linear'"),
    ("phases.gan.schedule.milestones", "(1,)", "phases.gan.*milestones"),
    ("phases.psnr.schedule.factor", "2", "phases.psnr.*factor"),
    ("phases.gan.b1", "1", "phases.gan: b1 must be"),
    ("accumulate", "3", "config.batch_size: .* is not a multiple of 3"),
    ("perceptual.weights", "absent.h5", "no file absent.h5"),
    ("perceptual.weights", "", "config.perceptual.weights is empty"),
    ("perceptual.layers", "{'conv9_9': 1.0}", "perceptual.layers.*conv9_9"),
    ("perceptual.layers", "{'conv5_4': 'much'}", "perceptual.layers.*much"),
    ("export_alpha", "7", "config.export_alpha is 7.0; it must be from 0"),
    ("mesh.num_devices", "99", "config.mesh.num_devices is 99; .* 1 to 8"),
    ("generator.num_feat", "2", "3 features or more.*initialization=published"),
  ],
)
def test_what_no_phase_can_do_is_found_first(tmp_path, key, value, message):
  overrides = [(key, value)]
  if not key.startswith("perceptual"):
    overrides.append(_NO_VGG)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    _make(tmp_path, *overrides)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_a_bilinear_start_at_every_scale(tmp_path, scale):
  overrides = [("scale", str(scale)), _NO_VGG]
  psnr, _ = _make(tmp_path, *overrides)
  assert psnr.abstract_state(None).params
