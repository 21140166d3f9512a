"""What is found before the first step of the first phase."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models import registry, rrdb
from esrgan_jax.steps.state import averaged
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training import run as run_lib
from esrgan_jax.training import start
from esrgan_jax.weights import files
from tests import networks
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


@pytest.mark.release
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
    ("patch_size", "26", "patch_size is 26: LR .* 13 .* multiple of 4.* 24"),
    ("generator.form", "plian", "^config.generator: .*plian"),
    (
      "generator.num_in_ch",
      "1",
      "^config.generator: num_in_ch .* 1 and 3, but",
    ),
    ("generator.num_feat", "2", "3 features or more.*initialization=published"),
  ],
)
def test_what_no_phase_can_do_is_found_first(tmp_path, key, value, message):
  overrides = [(key, value)]
  if value == "26":
    overrides += [("scale", "2"), ("phases.gan.num_train_steps", "0")]
  if not key.startswith("perceptual"):
    overrides.append(_NO_VGG)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    _make(tmp_path, *overrides)


class Threes(nn.Module):
  """A generator of images that are multiples of 3."""

  scale: int = 2
  size_multiple: int = 3
  dims: tuple[int, ...] = (1, 2)

  @nn.compact
  def __call__(self, lr):
    if lr.shape[-3] % self.size_multiple or lr.shape[-2] % self.size_multiple:
      raise ValueError(f"{lr.shape} is no multiple")
    gain = self.param("gain", nn.initializers.ones, ())
    return gain * lr.repeat(self.scale, -3).repeat(self.scale, -2)


def test_a_generator_of_threes(tmp_path):
  registry.register_generator("Threes", Threes)
  try:
    changes = {
      "generator": {"architecture": "Threes"},
      "initialization": "published",
      "scale": 2,
    }
    order = ("phase_order", "psnr")
    (only,) = _make(tmp_path, order, ("patch_size", "24"), **changes)
    assert set(only.abstract_state(None).params) == {"gain"}
    with pytest.raises(config_lib.ConfigError, match=r"multiple of 6, .* 30$"):
      _make(tmp_path, order, ("patch_size", "28"), **changes)
  finally:
    registry.unregister("Threes")


def test_a_discriminator_that_no_phase_takes(tmp_path):
  with pytest.raises(config_lib.ConfigError, match="init_discriminator is 'a'"):
    _make(tmp_path, ("phase_order", "psnr"), ("init_discriminator", "a"))


def test_a_kind_that_makes_no_phase(tmp_path):
  kind = phases_lib.Kind("own", "Own", {"num_train_steps": 1}, lambda *_: None)
  phases_lib.register_kind(kind)
  try:
    with pytest.raises(config_lib.ConfigError, match="'own' returns NoneType"):
      _make(tmp_path, ("phase_order", "own"))
  finally:
    phases_lib.unregister_kind("own")


def _start(tmp_path, **changes):
  sizes = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2}
  path = tmp_path / "start.safetensors"
  if not path.exists():
    image = jnp.zeros((1, 8, 8, 3))
    params = networks.random_params(rrdb.RRDBNet(**sizes), image)
    files.write_weights(path, params, {**sizes, "scale": 4})
  generator = sizes | changes.pop("generator", {})
  config = tiny_config(
    tmp_path, init_from=str(path), generator=generator, **changes
  )
  return start.read(run_lib.make_run(config, tmp_path / "run"))


def test_what_is_computed_otherwise_may_begin_a_training(tmp_path):
  for form in ("plain", "fast"):
    generator = {"form": form, "unroll": 2}
    assert _start(tmp_path, generator=generator).is_whole
  message = "another shape; add --config.generator.num_feat=4$"
  with pytest.raises(config_lib.ConfigError, match=message):
    _start(tmp_path, generator={"num_feat": 6})


def test_a_start_of_a_network_with_tuples(tmp_path):
  registry.register_generator("Threes", Threes)
  try:
    network = {"architecture": "Threes", "dims": (4, 5), "scale": 2}
    path = tmp_path / "start.safetensors"
    files.write_weights(path, {"gain": np.ones((), np.float32)}, network)
    config = tiny_config(
      tmp_path,
      generator={"architecture": "Threes", "dims": [4, 5]},
      initialization="published",
      scale=2,
      init_from=str(path),
    )
    run = run_lib.make_run(config, tmp_path / "run")
    assert start.read(run).is_whole
    assert run.generator.dims == (4, 5)
    config["generator"]["dims"] = (4, 6)
    run = run_lib.make_run(config, tmp_path / "run")
    message = r"add --config.generator.dims='\(4, 5\)'$"
    with pytest.raises(config_lib.ConfigError, match=message):
      start.read(run)
  finally:
    registry.unregister("Threes")


@pytest.mark.slow
def test_a_start_of_another_scale(tmp_path):
  message = "add --config.scale=4, or --config.init_partial=true"
  with pytest.raises(config_lib.ConfigError, match=message):
    _start(tmp_path, scale=2)
  assert not _start(tmp_path, scale=2, init_partial=True).is_whole


@pytest.mark.parametrize(
  "scale",
  [2, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 3, 4, 8))],
)
def test_a_bilinear_start_at_every_scale(tmp_path, scale):
  overrides = [("scale", str(scale)), _NO_VGG]
  psnr, _ = _make(tmp_path, *overrides)
  assert psnr.abstract_state(None).params
