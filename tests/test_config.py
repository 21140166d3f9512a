"""Training configs: published values, overrides, mistakes."""

import json
import pathlib
import tarfile

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import pytest

from esrgan_jax import losses
from esrgan_jax.models import registry
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import phases
from esrgan_jax.weights import fields

_CARDS = sorted(pathlib.Path(__file__).parents[1].glob("configs/*.py"))


@pytest.mark.parametrize("path", _CARDS, ids=lambda p: p.stem)
def test_every_card_is_complete_and_documented(path):
  config = config_lib.read_config(path)
  if path.stem in ("finetune", "realesrgan_finetune"):
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
    ("phase_order", "psnr, gan", ("psnr", "gan")),
    ("interpolation_alphas", "(0.25,)", (0.25,)),
    ("data.sources", "a folder/of, photos", "a folder/of, photos"),
    ("data.sources", "('a', 'b')", ("a", "b")),
    ("phases.gan.schedule.milestones", "(1, 2)", (1, 2)),
    ("film.crop", "8, 0,64,32", (8, 0, 64, 32)),
    ("film.enabled", "false", False),
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
    ({"generator": {"num_blocks": 2}}, "RRDBNet has form, num_block, num_feat"),
    ({"generator": {"num_feat": 0}}, "it must be more than 0"),
    ({"generator": {"architecture": "RDBNet"}}, "did you mean RRDBNet?"),
    ({"discriminator": {"num_feats": 2}}, "VGGStyleDiscriminator has"),
    ({"initialization": "zero"}, "RRDBNet begins as published or bilinear"),
    ({"phases": {"psrn": {}}}, "did you mean config.phases.psnr? A phase"),
    ({"phases": {"a": {"kind": "b"}}}, "no kind of phase 'b'"),
    ({"phases": {"../a": {"kind": "gan"}}}, "a phase's name is a folder's"),
    ({"phases": {"models": {"kind": "gan"}}}, "another folder of a workdir"),
    ({"phases": {"checkpoints": {"kind": "gan"}}}, "choose another name"),
    ({"phases": {"bicubic": {"kind": "gan"}}}, "choose another name"),
    ({"phases": {"interpolated_2": {"kind": "gan"}}}, "choose another name"),
    ({"phases": {"film": {"kind": "gan"}}}, "choose another name"),
    ({"phases": {"7": {"kind": "gan"}}}, "and no number"),
    ({"film": {"size": 2000}}, "1024 HR pixels a side or less"),
    ({"film": {"size": 0}}, "config.film.size is 0; it must be more than 0"),
    ({"film": {"first_step": 0}}, "it must be more than 0"),
    ({"film": {"growth": 1.01}}, "it must be 1.05 or more"),
    ({"film": {"growth": float("inf")}}, "it must be 1.05 or more"),
    ({"film": {"seconds": 0}}, "it must be from 0.01 to 60"),
    ({"film": {"quality": 101}}, "it must be from 1 to 100"),
    ({"film": {"crop": (0, 0, 8)}}, "left, top, width and height"),
    ({"film": {"crop": (0, -4, 8, 8)}}, "left, top, width and height"),
    ({"film": {"crop": (0, 0, 0, 8)}}, "left, top, width and height"),
    ({"film": {"crop": (0, 2, 8, 8)}}, "a multiple of config.scale, 4"),
    ({"film": {"crop": (0, 0, 2048, 8)}}, "1024 HR pixels a side or less"),
    ({"film": {"enabled": 1}}, "it must be True or False"),
    ({"film": {"frames": 3}}, "no key config.film.frames"),
    ({"phase_order": ("psnr", "psnr")}, "a phase comes once"),
    ({"phase_order": ("gan", "psnr")}, "phase gan is the first"),
    ({"phase_order": "psnr"}, "it must be a tuple"),
    (
      {"phases": {"gan": {"adversarial": "hing"}}},
      "relativistic, vanilla",
    ),
    (
      {"phases": {"gan": {"adversarial": "wgan-gp"}}},
      "config.phases.gan.adversarial is 'wgan-gp', whose penalty needs images",
    ),
    (
      {"init_from": "a", "phases": {"gan": {"num_train_steps": 0}}},
      "has no",
    ),
    ({"plugins": ("nowhere.py",)}, "no plugin nowhere.py"),
    ({"plugins": "nowhere.py"}, "no plugin nowhere.py"),
    ({"plugins": ("json", 3)}, "must be names of files or modules"),
    ({"init_partial": True}, "config.init_partial is True, but nothing"),
    ({"phases": {"psnr": {"b1": -0.1}}}, "it must be 0 or more"),
    ({"phases": {"gan": {"penalty_weight": -1.0}}}, "it must be 0 or more"),
    ({"generator": {"num_feat": 70_000}}, "numbers up to 65536"),
    ({"generator": {"unshuffle": 70_000}}, "numbers up to 65536"),
  ],
)
def test_wrong_values(changes, message):
  with pytest.raises(ValueError, match=message[:1]) as caught:
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


def test_a_file_is_called_with_what_follows_a_colon(tmp_path):
  path = tmp_path / "config.py"
  path.write_text("def get_config(text='8'): return {'batch_size': int(text)}")
  read = config_lib.read_config
  assert read(path).batch_size == read(f"{path}:8").batch_size == 8
  assert read(f"{path}:64").batch_size == 64
  with pytest.raises(config_lib.ConfigError, match="ValueError: invalid"):
    read(f"{path}:many")
  with pytest.raises(config_lib.ConfigError, match="no config file"):
    read(f"{path}s:64")
  path.write_text("def get_config(): return {}")
  with pytest.raises(config_lib.ConfigError, match="takes 0 positional"):
    read(f"{path}:64")
  # A file's own name is taken as it is.
  other = tmp_path / "a:8"
  other.write_text("def get_config(): return {'batch_size': 4}")
  assert read(other).batch_size == 4
  assert config_lib.foretell(f"{path}:64", config_lib.complete({}))


def test_the_large_batch_sees_as_many_images_as_the_published_one():
  path = next(p for p in _CARDS if p.stem == "large_batch")
  published = config_lib.complete({})
  one = config_lib.complete(config_lib.read_config(f"{path}:1"))
  for name in ("psnr", "gan"):
    phase = config_lib.plain(one)["phases"][name]
    assert phase["schedule"].pop("warmup_steps") == 0
    assert phase == config_lib.plain(published)["phases"][name]
  assert one.batch_size == published.batch_size
  for chips in (8, 64, 256):
    config = config_lib.complete(config_lib.read_config(f"{path}:{chips}"))
    assert config.batch_size == 16 * chips
    for name in ("psnr", "gan"):
      phase, before = config.phases[name], published.phases[name]
      seen = config.batch_size * phase.num_train_steps
      assert seen == pytest.approx(16 * before.num_train_steps, rel=1e-3)
      assert phase.learning_rate == before.learning_rate * chips**0.5
      assert phase.schedule.milestones == tuple(
        step // chips for step in before.schedule.milestones
      )
      assert 0 < phase.schedule.warmup_steps < phase.schedule.milestones[0]
  for wrong in ("0", "257", "-8"):
    with pytest.raises(config_lib.ConfigError, match="from 1 to 256"):
      config_lib.read_config(f"{path}:{wrong}")


class Nearest(nn.Module):
  """A network of somebody's own."""

  scale: int = 4
  gain: float = 1.0
  num_feat: int = 5

  @nn.compact
  def __call__(self, lr):
    return self.gain * lr.repeat(self.scale, -3).repeat(self.scale, -2)


@pytest.fixture(name="nearest")
def _nearest():
  registry.register_generator("Nearest", Nearest)
  yield
  registry.unregister("Nearest")


def test_a_networks_fields_are_its_keys(nearest):
  config = config_lib.complete({"generator": {"architecture": "Nearest"}})
  own = {"architecture": "Nearest", "gain": 1.0, "num_feat": 5}
  assert config.generator.to_dict() == own
  # By name as well, and whichever comes first; another network's are not kept.
  config = config_lib.complete({"generator": {"num_feat": 32}})
  flags = [("generator.gain", "2"), ("generator.architecture", "Nearest")]
  config_lib.override(config, flags)
  assert config.generator.to_dict() == own | {"gain": 2.0}
  assert config_lib.complete(config).generator.gain == 2.0
  with pytest.raises(config_lib.ConfigError, match="Nearest has gain, num_fea"):
    config_lib.override(config, [("generator.num_block", "3")])


class Many(nn.Module):
  """A network of all kinds of fields."""

  scale: int = 4
  dims: tuple[int, ...] = (1, 2)
  nested: tuple[tuple[int, ...], ...] = ((1, 2), (3,))
  mixed: tuple[int | str, ...] = (1, "a")
  shift: float = -0.5
  offset: int = 3
  schedule: str = "linear"
  input_size: int = 7
  any: object = None


@pytest.fixture(name="many")
def _many():
  registry.register_generator("Many", Many)
  yield {"generator": {"architecture": "Many"}}
  registry.unregister("Many")


def test_what_a_config_takes_a_file_holds(many):
  config = config_lib.complete(many)
  flags = {
    "nested": "((4,), (5, 6), ())",
    "mixed": "('b', 2)",
    "shift": "-3",
    "offset": "-2",
    "schedule": "cosine",
    "input_size": "9",
    "any": "((1, 2), 'a')",
  }
  config_lib.override(config, [(f"generator.{k}", v) for k, v in flags.items()])
  found = config_lib.complete(config).generator.to_dict()
  assert found["any"] == ((1, 2), "a")
  again = fields.from_text("Many", fields.to_text({**found, "scale": 4}))
  assert again == {**found, "scale": 4}
  # As a run of JSON has it.
  plain = config_lib.plain(config_lib.complete(config))
  assert fields.checked(plain["generator"]) == found


@pytest.mark.parametrize(
  ("key", "text", "message"),
  [
    ("dims", "((1, 2), (3, 4))", "the default is (1, 2), and a model's file"),
    ("dims", f"{(0,) * 1001}", "tuples of up to 1000"),
    ("dims", "(1, 'a')", "plain values of its kind"),
    ("any", "((((1,),),),)", "3 in each other"),
    ("any", "100000", "numbers up to 65536"),
    ("any", "{'a': 1}", "any is {'a': 1}; it must be a plain value, or None"),
    ("any", f"{('a' * 9,) * 1000}", "characters; the limit is"),
  ],
)
def test_what_no_file_could_hold(many, key, text, message):
  config = config_lib.complete(many)
  config_lib.override(config, [(f"generator.{key}", text)])
  with pytest.raises(config_lib.ConfigError) as caught:
    config_lib.complete(config)
  assert message in str(caught.value)
  assert len(str(caught.value)) < 600


def test_a_kinds_own_numbers_may_be_negative():
  kind = phases.Kind("own", "Own", {"num_train_steps": 3, "sign": -1.0}, None)
  phases.register_kind(kind)
  try:
    given = {"phases": {"own": {"sign": -2.0}}, "phase_order": ("psnr", "own")}
    assert config_lib.complete(given).phases.own.sign == -2.0
    given["phases"]["own"] = {"num_train_steps": -1}
    with pytest.raises(config_lib.ConfigError, match="must be 0 or more"):
      config_lib.complete(given)
  finally:
    phases.unregister_kind("own")


def test_a_start_is_the_networks_own(nearest):
  given = {
    "generator": {"architecture": "Nearest"},
    "initialization": "bilinear",
  }
  with pytest.raises(
    config_lib.ConfigError, match=r"'bilinear'; Nearest begins as published$"
  ):
    config_lib.complete(given)


def test_fields_without_a_value_stay_so():
  config = config_lib.complete({})
  assert config.generator.unshuffle is None
  for text, value in (("2", 2), ("None", None), ("1", 1)):
    config_lib.override(config, [("generator.unshuffle", text)])
    assert config.generator.unshuffle == value
    again = config_lib.complete(config_lib.plain(config_lib.complete(config)))
    assert again.generator.unshuffle == value
    net = registry.make_generator(**again.generator, scale=again.scale)
    assert net.unshuffle == value


def test_phases_of_a_users_choice():
  config = config_lib.complete(
    {
      "phases": {"fine": {"kind": "gan", "learning_rate": 1e-5}},
      "phase_order": ("psnr", "gan", "fine"),
    }
  )
  assert config.phases.fine.learning_rate == 1e-5
  assert config.phases.fine.d_learning_rate == 1e-4
  assert config.phases.gan.learning_rate == 1e-4
  assert phases.order(config) == ("psnr", "gan", "fine")
  # The same by name.
  other = config_lib.complete({})
  assert phases.order(other) == ("psnr", "gan")
  config_lib.override(
    other,
    [
      ("phases.fine.learning_rate", "1e-5"),
      ("phase_order", "psnr,gan,fine"),
      ("phases.fine.kind", "gan"),
    ],
  )
  assert config_lib.plain(other) == config_lib.plain(config)
  for changes, names in (
    ({"init_from": "a"}, ("gan",)),
    ({"init_from": "a", "phase_order": ("psnr",)}, ("psnr",)),
    ({"phases": {"gan": {"num_train_steps": 0}}}, ("psnr",)),
  ):
    assert phases.order(config_lib.complete(changes)) == names


def test_an_adversarial_loss_is_one_entry():
  margin = losses.AdversarialLoss(
    "margin",
    lambda real, fake, *, margin: -jnp.mean(fake),
    lambda real, fake, *, margin: (
      jnp.mean(jnp.maximum(margin - real, 0))
      + jnp.mean(jnp.maximum(margin + fake, 0))
    ),
    options={"margin": 1.0},
  )
  losses.register_adversarial_loss(margin)
  try:
    config = config_lib.complete(
      {"phases": {"gan": {"adversarial": "margin", "margin": 2.0}}}
    )
    assert config.phases.gan.margin == 2.0
    with pytest.raises(ValueError, match="called 'margin'"):
      losses.register_adversarial_loss(losses.AdversarialLoss("margin", 1, 2))
  finally:
    del losses.ADVERSARIAL_LOSSES["margin"]
    del losses.ADVERSARIAL_OPTIONS["margin"]
  with pytest.raises(config_lib.ConfigError, match=r"phases\.gan\.margin"):
    config_lib.complete({"phases": {"gan": {"margin": 2.0}}})


def test_a_config_of_the_version_before_is_the_same(tmp_path):
  here = pathlib.Path(__file__).parent
  with tarfile.open(here / "goldens/workdir_of_0.1.tar.xz") as file:
    file.extractall(tmp_path, filter="data")
  before = json.loads((tmp_path / "run/config.json").read_text())
  assert "architecture" not in before["generator"]
  config = config_lib.complete(config_lib.read_config(tmp_path / "config.py"))
  now = config_lib.plain(config)
  assert config_lib.difference(before, now) == []
  now["generator"]["num_feat"] = 6
  assert config_lib.difference(before, now) == ["generator.num_feat: 4 -> 6"]


def test_plugins_are_beside_the_config(tmp_path):
  (tmp_path / "own.py").write_text(
    "from esrgan_jax.models import registry\n"
    "from tests.test_config import Nearest\n"
    "registry.register_generator('Own', Nearest)\n"
  )
  path = tmp_path / "config.py"
  path.write_text(
    "def get_config():\n  return {'plugins': ('own.py',),"
    " 'generator': {'architecture': 'Own'}}\n"
  )
  try:
    config = config_lib.complete(config_lib.read_config(path))
    assert config.generator.gain == 1.0
    assert registry.generators()[-1] == "Own"
  finally:
    registry.unregister("Own")


@pytest.mark.parametrize(
  ("value", "message"),
  [("lpip", "did you mean lpips"), ("perceptual", "needs")],
)
def test_the_best_is_by_a_measure(value, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.complete({"eval": {"best": value}})
  assert config_lib.complete({"eval": {"best": "ssim_y"}}).eval.best == "ssim_y"
