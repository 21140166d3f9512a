"""Real-ESRGAN's training: degradation in the step, its losses, its data."""

import io
import os
import pathlib
import signal
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from esrgan_jax import (
  __main__,
  augment,
  degradation,
  images,
  losses,
  main,
  steps,
)
from esrgan_jax.data import sources
from esrgan_jax.data.degraded_source import Degraded
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import degrading as degrading_lib
from esrgan_jax.training import loop
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training import run as run_lib
from esrgan_jax.weights import files
from tests import golden, networks, weight_builders
from tests.training_runs import ROOT, assert_same_models, logged, tiny_config

# Next to nothing is done to an image, so that its LR can be foretold.
_MILD = {
  "resize_prob": (0.0, 0.0, 1.0),
  "resize_prob2": (0.0, 0.0, 1.0),
  "kernel_list": ("iso",),
  "kernel_prob": (1.0,),
  "sinc_prob": 0.0,
  "blur_sigma": (0.2, 0.2),
  "gaussian_noise_prob": 1.0,
  "gaussian_noise_prob2": 1.0,
  "noise_range": (0.0, 0.0),
  "noise_range2": (0.0, 0.0),
  "second_blur_prob": 0.0,
  "jpeg_range": (100.0, 100.0),
  "jpeg_range2": (100.0, 100.0),
  "final_sinc_prob": 0.0,
}


# --- the config -------------------------------------------------------------


def test_it_is_off_unless_asked_for():
  for given in ({}, {"degradation": None}):
    config = config_lib.complete(given)
    assert not config.degradation.enabled
    assert run_lib.make_run(given, "/tmp/run").degrading is None
  # As a file of a workdir has it: lists are tuples again.
  given = {"degradation": {"enabled": True, "noise_range": (2, 3)}}
  plain = config_lib.plain(config_lib.complete(given | {"patch_size": 256}))
  degrading = run_lib.make_run(plain, "/tmp/run").degrading
  assert degrading.settings == degradation.Degradation(noise_range=(2, 3))
  assert degrading.crop_size == 400
  assert (
    config_lib.difference(
      plain, plain | {"degradation": plain["degradation"] | {"eval_seed": 1}}
    )
    == []
  )
  config = config_lib.complete({})
  config_lib.override(
    config,
    [
      ("degradation.enabled", "true"),
      ("degradation.kernel_list", "iso,aniso"),
      ("degradation.kernel_prob", "0.5,0.5"),
      ("degradation.jpeg_range2", "60,90"),
    ],
  )
  settings = run_lib.make_run(config, "/tmp/run").degrading.settings
  assert (settings.kernel_list, settings.jpeg_range2) == (
    ("iso", "aniso"),
    (60, 90),
  )


@pytest.mark.parametrize(
  ("section", "changes", "message"),
  [
    ({"noise_rang": (1, 2)}, {}, "did you mean config.degradation.noise_range"),
    ({"jpeg_range": (95, 30)}, {}, "config.degradation.jpeg_range is (95, 30)"),
    ({"blur_kernel_size": 20}, {}, "config.degradation.blur_kernel_size is 20"),
    ({"enabled": 1}, {}, "config.degradation.enabled is 1; it must be True"),
    ({"crop_size": 126}, {}, "crop_size is 126; it must be a multiple of"),
    ({"crop_size": 64}, {}, "config.patch_size (128) at least"),
    (
      {"enabled": True},
      {"data": {"sources": "hr::lr", "eval": ""}},
      "add --config.degradation.enabled=false",
    ),
    (
      {"enabled": True},
      {"data": {"sources": "hr", "eval": ("hr::lr", "others")}},
      "some with LR images and some without",
    ),
  ],
)
def test_what_the_section_cannot_be(section, changes, message):
  with pytest.raises(config_lib.ConfigError, match=r"config\.") as caught:
    config_lib.complete({"degradation": section, **changes})
  assert message in str(caught.value)


@pytest.mark.parametrize(
  "name", ["realesrnet", "realesrgan", "realesrgan_finetune"]
)
def test_cards_hold_their_recipe(name):
  """Real-ESRGAN's options/*.yml."""
  config = config_lib.read_config(ROOT / f"configs/{name}.py")
  if name == "realesrgan_finetune":
    config_lib.override(config, [("data.sources", "photos")])
  config = config_lib.complete(config)
  degrading = degrading_lib.of(config)
  assert degrading.settings == degradation.Degradation()
  assert (degrading.patch_size, degrading.crop_size) == (256, 400)
  assert degrading.gt_usm
  assert config.ema_decay == 0.999
  order = phases_lib.order(config)
  assert (
    order
    == {
      "realesrnet": ("psnr",),
      "realesrgan": ("psnr", "gan"),
      "realesrgan_finetune": ("gan",),
    }[name]
  )
  for phase in order:
    settings = config.phases[phase]
    assert (settings.b1, settings.b2) == (0.9, 0.99)
    assert settings.schedule.name == "constant"
    assert settings.learning_rate == {"psnr": 2e-4, "gan": 1e-4}[phase]
  if "psnr" in order:
    assert config.phases.psnr.gt_usm
    assert config.batch_size == 48
  if "gan" in order:
    gan = config.phases.gan
    assert config.discriminator.to_dict() == {
      "architecture": "UNetDiscriminatorSN",
      "num_feat": 64,
      "skip_connection": True,
    }
    assert (gan.l1_gt_usm, gan.percep_gt_usm, gan.gan_gt_usm) == (1, 1, 0)
    assert (gan.adversarial, gan.adversarial_weight) == ("vanilla", 0.1)
    assert (gan.pixel_weight, gan.perceptual_weight) == (1.0, 1.0)
    weights = config.perceptual.layers.to_dict()
    assert list(weights.values()) == [0.1, 0.1, 1.0, 1.0, 1.0]


# --- the step ---------------------------------------------------------------


def _crops(count=8, size=48):
  rng = np.random.default_rng(0)
  coarse = rng.random((count, size // 8, size // 8, 3), np.float32)
  return coarse.repeat(8, axis=1).repeat(8, axis=2)


def test_a_patch_is_of_the_place_of_its_lr():
  settings = degradation.Degradation(**_MILD)
  crops = _crops()[..., :1].repeat(3, axis=-1)  # JPEG halves colours.

  @jax.jit
  def make(key, crops):
    return augment.degraded_pairs(
      key, crops, settings, scale=4, patch_size=24, gt_usm=False
    )

  batch = make(jax.random.key(0), crops)
  assert batch["lr"].shape == (8, 6, 6, 3)
  assert batch["hr"].shape == (8, 24, 24, 3)
  means = batch["hr"].reshape(8, 6, 4, 6, 4, 3).mean((2, 4))
  # A blur of 0.2 pixels and a JPEG of all but no loss are left.
  assert float(jnp.abs(batch["lr"] - means).mean()) < 0.02
  # Each is found in its crop, at places that differ.
  places = set()
  for crop, hr in zip(crops, np.asarray(batch["hr"]), strict=True):
    (place,) = [
      (y, x)
      for y in range(0, 25, 4)
      for x in range(0, 25, 4)
      if (crop[y : y + 24, x : x + 24] == hr).all()
    ]
    places.add(place)
  assert len(places) > 3
  # Another step, another batch; the same step, the same.
  again, other = make(jax.random.key(0), crops), make(jax.random.key(1), crops)
  np.testing.assert_array_equal(batch["lr"], again["lr"])
  assert (batch["hr"] != other["hr"]).any()


@pytest.mark.release
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_devices_change_no_pair(kind):
  settings, crops = degradation.Degradation(), _crops(8, 32)
  mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(kind,))
  own = mesh if kind == AxisType.Auto else None
  make, make_own = (
    jax.jit(
      lambda key, crops, mesh=mesh: augment.degraded_pairs(
        key, crops, settings, scale=4, patch_size=16, mesh=mesh
      )
    )
    for mesh in (None, own)
  )
  key = jax.random.key(3, impl="rbg")  # Whose draws depend on the batch.
  one = make(key, crops)
  # Rows have degradations of their own, whatever other rows there are.
  few = make(key, np.concatenate([crops[:4], crops[:4]]))
  split = NamedSharding(mesh, PartitionSpec("data"))
  many = make_own(key, jax.device_put(crops, split))
  assert many["lr"].sharding.spec[0] == "data"
  np.testing.assert_array_equal(one["hr"], many["hr"])
  # A level may round otherwise.
  for found in (many["lr"], few["lr"][:4]):
    off = np.abs(np.asarray(found) - np.asarray(one["lr"])[: len(found)]) * 255
    assert off.max() < 3
    assert (off > 0.5).mean() < 0.01


def test_what_it_cannot_make_pairs_of():
  make = jax.jit(
    lambda hr, **sizes: augment.degraded_pairs(
      jax.random.key(0), hr, degradation.Degradation(), **sizes
    ),
    static_argnames=("scale", "patch_size"),
  )
  crops = jnp.zeros((1, 32, 32, 3))
  with pytest.raises(ValueError, match=r"patch_size is 18; .* multiple of 4"):
    make(crops, scale=4, patch_size=18)
  with pytest.raises(ValueError, match="larger than a crop of 32x32"):
    make(crops, scale=4, patch_size=36)
  with pytest.raises(TypeError, match="hr must be float"):
    make(crops.astype(jnp.uint8), scale=4, patch_size=16)


def test_each_loss_has_its_own_hr():
  net, critic = nn.Conv(3, (1, 1)), nn.Conv(1, (1, 1))
  batch = {"lr": _crops(2, 32), "hr": 1 - _crops(2, 32)}
  params = {"kernel": jnp.eye(3)[None, None], "bias": jnp.zeros(3)}

  @jax.jit
  def run(params):
    sharp = degradation.usm_sharpen(batch["hr"])

    def metrics(hr, **flags):
      *_, found = steps.gan_gradients(
        params,
        {"kernel": jnp.ones((1, 1, 3, 1)), "bias": jnp.zeros(1)},
        {},
        batch | {"hr": hr},
        generator=net,
        discriminator=critic,
        perceptual=losses.mse_loss,
        adversarial="vanilla",
        **flags,
      )
      _, _, psnr = steps.psnr_gradients(
        params,
        batch | {"hr": hr},
        generator=net,
        gt_usm=flags.get("l1_gt_usm", False),
      )
      return found | {"psnr": psnr["g/pixel"]}

    flags = {"l1_gt_usm": True, "percep_gt_usm": True}
    return (
      metrics(batch["hr"]),
      metrics(sharp),
      metrics(batch["hr"], **flags),
      metrics(batch["hr"], gan_gt_usm=True),
    )

  plain, sharp, usual, other = run(params)
  images_too = ("g/pixel", "g/perceptual", "psnr")
  for found, names in ((usual, images_too), (other, ("d/real", "d/loss"))):
    for name in (*images_too, "d/real", "d/loss"):
      wanted, not_wanted = (sharp, plain) if name in names else (plain, sharp)
      assert float(found[name]) == pytest.approx(float(wanted[name]), rel=1e-5)
      assert abs(float(wanted[name]) - float(not_wanted[name])) > 1e-5, name


def test_a_penalty_is_of_the_mean_of_the_map():
  """An image's score by WGAN-GP, of a discriminator that has one a pixel."""

  class Mean(nn.Module):
    side: int

    @nn.compact
    def __call__(self, image):
      slope = self.param("slope", nn.initializers.ones, ())
      gain = 3.0 * slope * image.shape[1] * image.shape[2] ** 0.5
      scores = gain * image.mean(-1)
      return scores if self.side else scores.mean((1, 2))

  net = nn.Conv(3, (1, 1))
  batch = {"lr": _crops(2, 8), "hr": _crops(2, 8)}
  params = {"kernel": jnp.eye(3)[None, None], "bias": jnp.ones(3)}
  run = jax.jit(
    lambda side: steps.gan_gradients(
      params,
      {"slope": jnp.float32(1)},
      {},
      batch,
      generator=net,
      discriminator=Mean(side),
      adversarial="wgan-gp",
      key=jax.random.key(0),
    )[-1]["d/penalty"],
    static_argnums=0,
  )
  found = [run(side) for side in (0, 8)]
  assert float(found[0]) > 1
  assert float(found[1]) == pytest.approx(float(found[0]), rel=1e-5)


# --- data -------------------------------------------------------------------


def _folder(folder, sizes, seed=0):
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)
  for n, size in enumerate(sizes):
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    images.write_image(folder / f"{n}.png", images.Image(pixels))
  return folder


@pytest.mark.slow
def test_validation_pictures_are_the_same_every_time(tmp_path):
  folder = _folder(tmp_path / "hr", [(37, 50), (64, 41)])
  whole = sources.ImageFolder(folder, scale=4)
  settings = degradation.Degradation()
  source = Degraded(whole, settings)
  assert [source.lr_size(n) for n in range(2)] == [(9, 12), (16, 10)]
  lr = [source[n].lr for n in range(2)]
  assert [each.shape[:2] for each in lr] == [(9, 12), (16, 10)]
  np.testing.assert_array_equal(source[1].hr, whole[1].hr)
  # In another order, and without the others.
  again = Degraded(sources.Subset(whole, [1]), settings)
  np.testing.assert_array_equal(again[0].lr, lr[1])
  other = Degraded(whole, settings, seed=1)
  assert (other[1].lr != lr[1]).any()
  prints = {each.fingerprint() for each in (source, again, other)}
  assert len(prints) == 3


def test_of_hr_alone_no_lr_is_made(tmp_path):
  folder = _folder(tmp_path / "photos", [(60, 80)] * 3)
  config = tiny_config(tmp_path, degradation={"enabled": True})
  config["data"] |= {"sources": f"{folder}/*.png", "eval": str(folder)}
  run = run_lib.make_run(config_lib.complete(config), tmp_path / "run")
  with run.data.pipeline(0) as pipeline:
    raw = pipeline.batch(0)
  # 25/16 of 24, in whole LR pixels.
  assert raw["hr"].shape == (4, 36, 36, 3)
  np.testing.assert_array_equal(raw["lr"], raw["hr"][:, ::4, ::4])
  assert run.eval_source.lr_origin == "degraded, seed 0"


def test_pairs_to_validate_on_stay_as_they_are(tmp_path):
  hr = _folder(tmp_path / "hr", [(64, 48)])
  lr = _folder(tmp_path / "lr", [(16, 12)])
  config = tiny_config(tmp_path, degradation={"enabled": True})
  config["data"]["eval"] = f"{hr}::{lr}"
  run = run_lib.make_run(config_lib.complete(config), tmp_path / "run")
  np.testing.assert_array_equal(
    run.eval_source[0].lr, sources.PairFolder(hr, lr, scale=4)[0].lr
  )


def test_a_public_discriminator_is_gone_on_from(tmp_path):
  path = tmp_path / "netD.pth"
  state = golden.unet_state(2)
  path.write_bytes(weight_builders.zip_pth(state, lambda s: {"params": s}))
  config = tiny_config(tmp_path, init_discriminator=str(path))
  config["discriminator"] |= {"architecture": "UNetDiscriminatorSN"}
  config["phases"]["gan"]["perceptual_weight"] = 0.0

  def begun(**discriminator):
    changed = config | {"discriminator": discriminator}
    out = io.StringIO()
    console = rich.console.Console(file=out, width=200)
    run = run_lib.make_run(changed, tmp_path / "run", console=console)
    gan = phases_lib.find_kind("gan").make(run, "gan", run.generator)
    return gan.load(gan.abstract_state(None)), out.getvalue()

  found, out = begun(**config["discriminator"])
  assert "the discriminator starts from" in out
  for layer, leaves in found.d_batch_stats.items():
    np.testing.assert_array_equal(leaves["u"], state[f"{layer}.weight_u"])
  np.testing.assert_array_equal(
    found.d_params["conv1"]["kernel"],
    state["conv1.weight_orig"].transpose(2, 3, 1, 0),
  )
  another = r"add --config\.discriminator\.architecture=UNetDiscriminatorSN"
  with pytest.raises(config_lib.ConfigError, match=another):
    begun(num_feat=2)
  with pytest.raises(config_lib.ConfigError, match="of another shape"):
    begun(architecture="UNetDiscriminatorSN", num_feat=4)


# --- training ---------------------------------------------------------------


def _config(folder, **changes):
  """The card, as small as it goes."""
  card = config_lib.read_config(ROOT / "configs/realesrgan.py").to_dict()
  tiny = tiny_config(folder)
  for name, phase in card["phases"].items():
    phase |= {"num_train_steps": {"psnr": 3, "gan": 10}[name]}
  kept = ("phases", "degradation")
  config = card | {k: v for k, v in tiny.items() if k not in kept}
  config |= {
    "discriminator": card["discriminator"] | {"num_feat": 1},
    "batch_size": 8,
    "patch_size": 32,
    "film": {"enabled": False},
    "interpolation_alphas": (),
    "log_every_steps": 1,
  }
  config["perceptual"] = {**card["perceptual"], "weights": "random"}
  config["perceptual"]["layers"] = {"conv1_2": 0.1, "conv2_2": 1.0}
  config["data"]["sources"] = str(pathlib.Path(folder, "photos"))
  return config | changes


def _train(config, workdir):
  out = io.StringIO()
  console = rich.console.Console(file=out, width=200)
  loop.train(config, workdir, console=console)
  return out.getvalue()


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("realesrgan")
  return folder, _train(_config(folder), folder / "run")


@pytest.mark.release
def test_stopped_in_the_middle_it_ends_the_same(whole):
  folder, out = whole
  assert "LR is degraded in the step, of crops of 48 pixels" in out
  workdir, ended = folder / "stopped", threading.Event()

  def stop():
    while not ended.wait(0.001):
      if len(logged(workdir, "gan")) >= 2:
        os.kill(os.getpid(), signal.SIGTERM)
        return

  thread = threading.Thread(target=stop)
  thread.start()
  try:
    with pytest.raises(loop.StoppedError, match=r"of phase gan; saved"):
      _train(_config(folder), workdir)
  finally:
    ended.set()
    thread.join()
  assert "gan: going on from step" in _train(_config(folder), workdir)
  assert_same_models(workdir, folder / "run")


@pytest.mark.release
def test_eight_devices_train_as_one(whole):
  folder, _ = whole
  _train(_config(folder, mesh={"num_devices": 8}), folder / "eight")
  for phase, keys in (("psnr", ["g/loss"]), ("gan", ["g/loss", "d/loss"])):
    many, one = (logged(folder / name, phase) for name in ("eight", "run"))
    assert len(many) == len(one) >= 3
    for a, b in zip(many, one, strict=True):
      for key in keys:
        # A level of LR may round otherwise.
        assert a[key] == pytest.approx(b[key], abs=1e-3)


@pytest.mark.release
@pytest.mark.parametrize("kind", ["hr alone", "pairs"])
def test_what_is_trained_goes_on_with_photos_of_ones_own(
  kind, tmp_path, capsys
):
  """configs/realesrgan_finetune.py, by the command, to a report and a photo."""
  fields = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
  params = networks.random_params(RRDBNet(**fields), jnp.zeros((1, 8, 8, 3)))
  begun = files.write_weights(tmp_path / "begun.safetensors", params, fields)
  netd = tmp_path / "netD.pth"
  state = golden.unet_state(2)
  netd.write_bytes(weight_builders.zip_pth(state, lambda s: {"params": s}))
  photos = _folder(tmp_path / "photos", [(60, 80), (64, 52)])
  others = _folder(tmp_path / "others", [(64, 48)], seed=1)
  flags = {
    "config": ROOT / "configs/realesrgan_finetune.py",
    "workdir": tmp_path / "run",
    "config.init_from": begun,
    "config.init_discriminator": netd,
    "config.discriminator.num_feat": 2,
    **{f"config.generator.{name}": fields[name] for name in fields},
    "config.perceptual.weights": "random",
    "config.batch_size": 2,
    "config.patch_size": 32,
    "config.phases.gan.num_train_steps": 3,
    "config.mesh.num_devices": 1,
    "config.eval.sample_size": 32,
    "config.film.enabled": "false",
    "config.log_every_steps": 1,
    "config.data.sources": photos,
    "config.data.eval": others,
  }
  del flags["config.generator.scale"]  # The config's own.
  if kind == "pairs":
    small = [_folder(tmp_path / "lr", [(15, 20), (16, 13)])]
    small.append(_folder(tmp_path / "other_lr", [(16, 12)], seed=1))
    for key, lr in zip(("sources", "eval"), small, strict=True):
      flags[f"config.data.{key}"] = f"{flags[f'config.data.{key}']}::{lr}"
    flags["config.degradation.enabled"] = "false"
  assert main.main([f"--{key}={value}" for key, value in flags.items()]) == 0
  out, _ = capsys.readouterr()
  assert ("LR is degraded in the step" in out) == (kind == "hr alone")
  assert "the discriminator starts from" in out
  assert "gan 3/3" in out
  run = tmp_path / "run"
  losses_found = [line for line in logged(run, "gan") if "g/loss" in line]
  assert len(losses_found) == 3
  assert all(line["g/perceptual"] > 0 for line in losses_found)
  assert "data:image/png;base64," in (run / "report.html").read_text()
  command = ["upscale", others / "0.png", "-m", run, "-o", tmp_path / "x4.png"]
  assert __main__.main([str(word) for word in command]) == 0
  assert images.read_image(tmp_path / "x4.png").pixels.shape == (256, 192, 3)
