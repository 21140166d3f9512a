"""Training configs: published values, overrides, mistakes."""

import pathlib

import ml_collections
import pytest

from esrgan_jax.training import config as config_lib

_CARDS = sorted(pathlib.Path(__file__).parents[1].glob("configs/*.py"))


@pytest.mark.parametrize("path", _CARDS, ids=lambda p: p.stem)
def test_every_card_is_complete_and_documented(path):
  config = config_lib.read_config(path)
  if path.stem == "finetune":
    config_lib.override(config, [("data.sources", "photos")])
  config = config_lib.complete(config)
  total = config.phases.psnr.num_train_steps + config.phases.gan.num_train_steps
  assert total > 0
  docstring = path.read_text().split('"""')[1]
  for heading in ("Reproduces:", "Command:", "Hardware:", "Cost:", "Result:"):
    assert heading in docstring


@pytest.mark.parametrize("name", ["gan", "psnr"])
def test_cards_hold_the_published_recipe(name):
  path = next(p for p in _CARDS if p.stem == name)
  config = config_lib.complete(config_lib.read_config(path))
  published = config_lib.plain(config_lib.complete({}))
  if name == "psnr":
    published["phases"]["gan"]["num_train_steps"] = 0
  assert config_lib.plain(config) == published
  # arXiv:1809.00219, section 4.1.
  psnr = config.phases.psnr
  assert (psnr.num_train_steps, psnr.learning_rate) == (1_000_000, 2e-4)
  gan = config_lib.complete({}).phases.gan
  assert gan.schedule.milestones == (50_000, 100_000, 200_000, 300_000)
  weights = gan.perceptual_weight, gan.adversarial_weight, gan.pixel_weight
  assert weights == (1.0, 5e-3, 1e-2)


@pytest.mark.parametrize(
  ("name", "text", "value"),
  [
    ("batch_size", "8", 8),
    ("phases.psnr.num_train_steps", "1e6", 1_000_000),
    ("phases.gan.learning_rate", "1", 1.0),
    ("remat", "true", True),
    ("dtype", "bfloat16", "bfloat16"),
    ("init_from", "2", "2"),
    ("interpolation_alphas", "0,0.5", (0, 0.5)),
    ("interpolation_alphas", "(0.25,)", (0.25,)),
    ("data.sources", "a folder/of, photos", "a folder/of, photos"),
    ("data.sources", "('a', 'b')", ("a", "b")),
    ("phases.gan.schedule.milestones", "(1, 2)", (1, 2)),
    ("perceptual.layers.conv3_4", "0.5", 0.5),
  ],
)
def test_overrides_have_the_type_of_the_key(name, text, value):
  config = config_lib.complete({})
  config_lib.override(config, [(name, text)])
  for key in name.split("."):
    config = config[key]
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  assert config == value
  assert type(config) is type(value)


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("batchsize", "8", "did you mean config.batch_size"),
    ("learning_rate", "8", "did you mean config.phases.gan.learning_rate"),
    ("phases.psrn.learning_rate", "8", "did you mean config.phases.psnr"),
    ("batch_size", "8.5", "'8.5'; it must be an integer"),
    ("remat", "yes", "'yes'; it must be true or false"),
    ("ema_decay", "high", "'high'; it must be a number"),
    ("phases.psnr.schedule", "cosine", "it must be a section"),
  ],
)
def test_wrong_overrides(name, text, message):
  with pytest.raises(config_lib.ConfigError, match="config") as caught:
    config_lib.override(config_lib.complete({}), [(name, text)])
  assert message in str(caught.value)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"phases": {"gan": {"pixel_wieght": 1}}}, "config.phases.gan.pixel_weigh"),
    ({"batch_size": 0}, "config.batch_size is 0; it must be more than 0"),
    ({"ema_decay": 1.5}, "from 0 to 1"),
    ({"dtype": "float16"}, "choose one of auto, float32, bfloat16"),
    ({"patch_size": 130}, "a multiple of config.scale, 4"),
    ({"remat": 1}, "it must be True or False"),
    ({"generator": 3}, "it is a section"),
    ({"phases": {"psnr": {"num_train_steps": 0}}}, "config.init_from is empty"),
    ({"eval": {"measures": ("psnr",)}}, "did you mean psnr_y?"),
    ({"eval": {"measures": ("perceptual",)}}, "training measures it by itself"),
    ({"data": {"cache": "disk"}}, "ram, memmap, device, stream"),
  ],
)
def test_wrong_values(changes, message):
  with pytest.raises(config_lib.ConfigError, match="config") as caught:
    config_lib.complete(changes)
  assert message in str(caught.value)


def test_difference_leaves_out_what_changes_no_result():
  old = config_lib.plain(config_lib.complete({}))
  changes = {"keep": 9, "log_every_steps": 1, "mesh": {"num_devices": 1}}
  assert config_lib.difference(old, config_lib.plain({**old, **changes})) == []
  new = config_lib.plain(config_lib.complete({"batch_size": 32}))
  assert config_lib.difference(old, new) == ["batch_size: 16 -> 32"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("x = 1", "has no get_config()"),
    ("import nothing_of_this_name", "ModuleNotFoundError"),
    ("def get_config(): return 3", "got int"),
  ],
)
def test_unusable_files(tmp_path, content, message):
  path = tmp_path / "config.py"
  path.write_text(content)
  with pytest.raises(config_lib.ConfigError) as caught:
    config_lib.read_config(path)
  assert message in str(caught.value)
