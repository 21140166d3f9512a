"""A student of a teacher: its data, its step, its phase."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax import images, steps
from esrgan_jax.data import pipeline, sources, teaching
from esrgan_jax.models import registry
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import loop, phases
from esrgan_jax.training import run as run_lib
from esrgan_jax.upscaling.upscaler import Upscaler
from esrgan_jax.weights import files
from tests import networks
from tests.training_runs import logged, tiny_config

_FIELDS = {"architecture": "SRVGGNetCompact", "num_feat": 4, "num_conv": 1}
_NET = registry.make_generator(**_FIELDS, scale=4)


@functools.cache
def _params(seed=0):
  return networks.random_params(_NET, jnp.zeros((1, 8, 8, 3)), seed=seed)


def _photos(folder, sizes=((20, 24), (20, 24), (17, 31))):
  folder.mkdir()
  random = np.random.default_rng(0)
  for number, size in enumerate(sizes):
    pixels = random.integers(0, 256, (*size, 3), np.uint8)
    images.write_image(folder / f"{number}.png", images.Image(pixels))
  return folder


def _teacher(folder, seed=0):
  model = Upscaler(_NET, _params(seed), name="large")
  return teaching.Teacher(model, folder)


def _written(teacher):
  return {p: p.stat().st_mtime_ns for p in teacher.folder.rglob("*.png")}


def test_photos_as_lr(tmp_path):
  photos = _photos(tmp_path / "photos")
  for spec in (f"::{photos}", {"lr": str(photos)}, f"::{photos}/*.png"):
    source = sources.open_source(spec, scale=4)
    assert source.names == ["0.png", "1.png", "2.png"]
    assert not source.has_hr
    lr, hr = source[2]
    assert (lr.shape, hr.shape) == ((17, 31, 3), (68, 124, 3))
    np.testing.assert_array_equal(
      lr, images.read_image(photos / "2.png").pixels
    )
  both = sources.open_source(f"::{photos}, {photos}", scale=4)
  assert not both.has_hr
  assert not sources.Subset(both, [0]).has_hr
  np.testing.assert_array_equal(both.read_lr(2), source.read_lr(2))
  with pytest.raises(sources.DataError, match=r"data.sources is .*: LR alone"):
    pipeline.open_data(
      {"sources": f"::{photos}"}, scale=4, batch_size=1, patch_size=16
    )
  with pytest.raises(sources.DataError, match=r"data\.eval is"):
    pipeline.open_evaluation({"eval": f"::{photos}"}, scale=4, smallest=16)


def test_a_teacher_upscales_each_image_once(tmp_path):
  source = sources.LrFolder(_photos(tmp_path / "photos"), scale=4)
  teacher, told = _teacher(tmp_path), []
  taught = teacher.teach(source, progress=lambda *done: told.append(done))
  assert told[-1] == (3, 3)
  for index in range(3):
    lr, hr = taught[index]
    expected = teacher.model.upscale(lr).astype(int)
    assert np.abs(hr - expected).max() <= 1
    assert hr.std() > 5
  # Again, by a process that knows of nothing, in another order.
  before = _written(teacher)
  assert len(before) == 3
  again = _teacher(tmp_path).teach(source, first=2)
  assert _written(teacher) == before
  assert again.fingerprint() == taught.fingerprint()
  # One that is gone is computed, and no other.
  gone = next(iter(before))
  gone.unlink()
  _teacher(tmp_path).teach(source)
  changed = {p for p, time in _written(teacher).items() if time != before[p]}
  assert changed <= {gone}
  assert gone.exists()
  # Another teacher has other results.
  other = _teacher(tmp_path, seed=1)
  assert other.folder != teacher.folder
  assert other.teach(source).fingerprint() != taught.fingerprint()
  assert _written(teacher).keys() == before.keys()


def test_a_margin_is_not_learned_from(tmp_path):
  source = sources.LrFolder(_photos(tmp_path / "photos"), scale=4)
  teacher = _teacher(tmp_path)
  whole, inner = teacher.teach(source), teacher.teach(source, margin=3)
  assert len(_written(teacher)) == 3
  for index in range(3):
    (lr, hr), (all_lr, all_hr) = inner[index], whole[index]
    np.testing.assert_array_equal(lr, all_lr[3:-3, 3:-3])
    np.testing.assert_array_equal(hr, all_hr[12:-12, 12:-12])
    assert inner.lr_size(index) == lr.shape[:2]
  assert inner.fingerprint() != whole.fingerprint()
  too_much = teacher.teach(source, margin=10)
  with pytest.raises(sources.DataError, match="20x24, and nothing is left"):
    too_much[0]
  # A run has it of what it learns from, and not of what it is measured by.
  run = run_lib.make_run(_config(tmp_path, margin=10), tmp_path / "run")
  assert run.eval_source[0].lr.shape == (17, 31, 3)
  with pytest.raises(sources.DataError, match="inside of a margin of 10"):
    _ = run.data
  run = run_lib.make_run(_config(tmp_path, margin=9), tmp_path / "other")
  with pytest.raises(
    sources.DataError, match=r"HR is 8x24, .* without the margin of 9 LR pixels"
  ):
    _ = run.data


def test_what_was_done_before_a_kill_is_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(teaching, "_GROUP_PIXELS", 1)
  source = sources.LrFolder(_photos(tmp_path / "photos"), scale=4)
  teacher = _teacher(tmp_path)

  def kill(done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    teacher.teach(source, progress=kill)
  before = _written(teacher)
  assert len(before) == 1
  teacher.teach(source)
  after = _written(teacher)
  assert len(after) == 3
  assert before.items() <= after.items()


def test_results_that_cannot_be_used(tmp_path):
  source = sources.LrFolder(_photos(tmp_path / "photos"), scale=4)
  teacher = _teacher(tmp_path)
  taught = teacher.teach(source)
  for path in _written(teacher):
    path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(sources.DataError, match=r"cannot be read.*delete it"):
    taught[0]
  small = images.Image(np.zeros((8, 8, 3), np.uint8))
  for path in _written(teacher):
    images.write_image(path, small, overwrite=True)
  with pytest.raises(sources.DataError, match="is not what the teacher made"):
    taught[0]
  with pytest.raises(sources.DataError, match="x2 pairs, but large is a x4"):
    teacher.teach(sources.LrFolder(tmp_path / "photos", scale=2))
  with pytest.raises(sources.DataError, match="kept on a disk"):
    teaching.Teacher(teacher.model, "gs://bucket").teach(source)
  # What cannot be read stays for the data's own report.
  (tmp_path / "photos/1.png").write_bytes(b"no image")
  taught = teacher.teach(source)
  with pytest.raises(sources.DataError, match=r"1\.png"):
    taught[1]


def test_the_loss_is_the_sum_of_both_distances():
  net, keys = nn.Conv(3, (3, 3)), jax.random.split(jax.random.key(2), 4)
  lr, hr, truth = (jax.random.uniform(key, (2, 8, 8, 3)) for key in keys[:3])
  batch = {"lr": lr, "hr": hr, "truth": truth}

  @jax.jit
  def run(key, batch):
    params = net.init(key, lr)["params"]
    both = steps.distill_gradients(
      params, batch, generator=net, truth_weight=0.25
    )
    parts = [
      steps.psnr_gradients(params, {"lr": lr, "hr": target}, generator=net)
      for target in (batch["hr"], batch["truth"])
    ]
    return both, parts

  (grads, _, metrics), (own, other) = run(keys[3], batch)
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(a, b + c / 4, atol=1e-6),
    grads,
    own[0],
    other[0],
  )
  expected = own[2]["g/loss"] + other[2]["g/loss"] / 4
  assert float(metrics["g/loss"]) == pytest.approx(float(expected), rel=1e-5)
  assert float(metrics["g/truth"]) == pytest.approx(
    float(other[2]["g/loss"]), rel=1e-5
  )
  for wrong in ({"lr": lr, "hr": hr}, batch | {"truth": lr[:, :4]}):
    with pytest.raises(ValueError, match=r"batch\['truth'\] must be of"):
      steps.distill_gradients({}, wrong, generator=net, truth_weight=1.0)
  with pytest.raises(ValueError, match="take one of the student's scale"):
    jax.eval_shape(
      lambda: steps.taught(batch, teacher=_NET, variables={"params": _params()})
    )


def _config(tmp_path, **changes):
  """Three steps by a file's teacher, of photos that are LR."""
  path = tmp_path / "large.safetensors"
  if not path.exists():
    files.write_weights(path, _params(), _FIELDS | {"scale": 4})
    _photos(tmp_path / "lr")
  distill = {
    "teacher": str(path),
    "num_train_steps": 3,
    "schedule": {"name": "constant"},
    **changes,
  }
  gan = {
    "num_train_steps": 2,
    "schedule": {"name": "constant"},
    "perceptual_weight": 0.0,
  }
  config = tiny_config(
    tmp_path,
    generator=_FIELDS,
    phases={"distill": distill, "gan": gan},
    phase_order=("distill",),
    film={"enabled": False},
    log_every_steps=1,
  )
  config["data"] = {
    "sources": f"::{tmp_path / 'lr'}",
    "eval": f"::{tmp_path / 'lr/2.png'}",
    "cache_dir": str(tmp_path / "cache"),
    "num_threads": 1,
  }
  return config


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"truth_weight": 0.5}, "truth_weight is 0.5, but results .* targets=step"),
    ({"truth_weight": -1.0}, "truth_weight is -1.0; it must be 0 or more"),
    ({"teacher": ""}, "teacher is empty"),
    ({"targets": "later"}, "choose one of ahead, step"),
    ({"margin": -1}, "margin is -1; it must be 0 or more"),
  ],
)
def test_sections_that_make_no_phase(tmp_path, changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.complete(_config(tmp_path, **changes))


def test_one_teacher_a_run(tmp_path):
  config = _config(tmp_path)
  again = {"kind": "distill", "teacher": "realesrgan-x4plus"}
  config["phases"]["again"] = again
  config["phase_order"] = ("distill", "again")
  with pytest.raises(config_lib.ConfigError, match="a run has one teacher"):
    config_lib.complete(config)
  again["teacher"] = config["phases"]["distill"]["teacher"]
  assert config_lib.complete(config).phase_order == ("distill", "again")
  # Of another scale, and none at all.
  run = run_lib.make_run(_config(tmp_path) | {"scale": 2}, tmp_path / "run")
  with pytest.raises(config_lib.ConfigError, match="is a x4 model, not x2"):
    _ = run.teacher
  run = run_lib.make_run(
    _config(tmp_path, teacher=str(tmp_path / "none")), tmp_path / "run"
  )
  with pytest.raises(FileNotFoundError, match="none"):
    _ = run.teacher
  assert (
    run_lib.make_run(tiny_config(tmp_path), tmp_path / "run").teacher is None
  )


def test_truth_of_a_later_phase_needs_hr(tmp_path):
  config = _config(tmp_path, targets="step")
  again = config["phases"]["distill"] | {"kind": "distill", "truth_weight": 0.5}
  config["phases"]["again"] = again
  config["phase_order"] = ("distill", "again")
  run = run_lib.make_run(config, tmp_path / "run")
  with pytest.raises(sources.DataError, match=r"data.sources is .*: LR alone"):
    _ = run.data
  again["truth_weight"] = 0.0
  assert run_lib.make_run(config, tmp_path / "run").data.report.images == 3


def test_a_teacher_in_the_step_takes_its_own_patches(tmp_path):
  """One of pixels that are put together wants them in twos."""
  fields = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 2}
  params = networks.random_params(RRDBNet(**fields), jnp.zeros((1, 8, 8, 3)))
  path = files.write_weights(tmp_path / "x2.safetensors", params, fields)
  config = _config(tmp_path, teacher=str(path), targets="step")
  config |= {"scale": 2, "patch_size": 18}
  run = run_lib.make_run(config, tmp_path / "run")
  with pytest.raises(config_lib.ConfigError, match="the teacher takes mult"):
    phases.make_phases(run)


@pytest.mark.release
def test_ahead_and_in_the_step_are_the_same_training(tmp_path):
  """But for 256 levels, and for what lies around a patch."""
  for folder, targets in (("ahead", "ahead"), ("step", "step")):
    config = _config(tmp_path, targets=targets)
    # Patches are whole images, so that the teacher sees no more ahead.
    config["data"]["sources"] = f"::{tmp_path / 'square'}"
    config["patch_size"] = 96
    if not (tmp_path / "square").exists():
      _photos(tmp_path / "square", sizes=((24, 24), (24, 24)))
    if targets == "step":
      config["phase_order"] = ("distill", "gan")
    loop.train(config, tmp_path / folder)
  losses = [
    [
      line["g/pixel"]
      for line in logged(tmp_path / folder, "distill")
      if "g/pixel" in line
    ]
    for folder in ("ahead", "step")
  ]
  assert len(losses[0]) == 3
  np.testing.assert_allclose(*losses, atol=1 / 255)
  content = json.loads((tmp_path / "step/evaluation.json").read_text())
  models = [each["model"] for each in content["evaluations"]]
  assert {"bicubic", "distill", "gan"} <= {*models}
  # What was learnt from is not computed again.
  cached = list((tmp_path / "cache").rglob("*.png"))
  assert len(cached) == 3


@pytest.mark.release
def test_truth_has_a_part_in_the_step(tmp_path):
  config = _config(tmp_path, targets="step", truth_weight=0.5)
  with pytest.raises(sources.DataError, match=r"data.sources is .*: LR alone"):
    loop.train(config, tmp_path / "run")
  config["data"] |= {"sources": str(tmp_path / "photos"), "eval": ""}
  loop.train(config, tmp_path / "run")
  (first, *_) = [
    line for line in logged(tmp_path / "run", "distill") if "g/truth" in line
  ]
  total = first["g/pixel"] + 0.5 * first["g/truth"]
  assert first["g/loss"] == pytest.approx(total, rel=1e-4)
