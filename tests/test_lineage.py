"""Phases and the models that they were begun from."""

import io
import json
import pathlib

import jax
import numpy as np
import pytest
import rich.console

from esrgan_jax.models import registry
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.report import page as report
from esrgan_jax.training import checkpoint, claim, finish, lineage
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import run as run_lib
from esrgan_jax.weights import descent, find
from esrgan_jax.weights.formats import checkpoint_folders
from esrgan_jax.weights.workdir import phases
from tests import plain_states

_SIZES = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2}


def _run(folder, **changes):
  config = {
    "generator": _SIZES,
    "mesh": {"num_devices": 1},
    "phases": {"psnr": {"num_train_steps": 2}, "gan": {"num_train_steps": 3}},
  }
  console = rich.console.Console(file=io.StringIO(), width=1000)
  return run_lib.make_run(config | changes, folder, console=console)


def _save(run, phase, step, state, origin=None):
  with checkpoint.Checkpoints(
    run.workdir / phase, config=run.plain, origin=origin
  ) as checkpoints:
    checkpoints.save(step, state)


@pytest.fixture(name="place")
def _place(tmp_path):
  """A finished workdir: two phases, a model each, and what is made of them."""
  folder = tmp_path / "run"
  run = _run(folder)
  _save(run, "psnr", 2, plain_states.psnr(2))
  _save(
    run, "gan", 3, plain_states.gan(3), lineage.origin(run, _params(2), "psnr")
  )
  for name in (
    "models/psnr.safetensors",
    "models/gan.safetensors",
    "models/interpolated_0.8.safetensors",
    "evaluation.json",
    "interpolation.json",
    "report.html",
    "film.webp",
    "film/psnr/0000002.png",
    "film/gan/0000003.png",
    "curves/gan_pixel_loss.svg",
    "samples/psnr_0000002.png",
    "samples/gan_0000003.png",
    "samples/final.png",
    "psnr/metrics.jsonl",
    "gan/metrics.jsonl",
  ):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"the old {name}")
  run.write_config()
  return folder


def _params(number):
  """The averaged generator of `plain_states.psnr(number)`."""
  return plain_states.arrays(number + 1)


def _files(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }


def _said(run):
  return run.console.file.getvalue()


def test_what_fits_is_left_alone(place):
  before = _files(place)
  run = _run(place)
  lineage.foresee(run)
  origin = lineage.origin(run, _params(2), "psnr")
  assert (origin["phase"], origin["step"]) == ("psnr", 2)
  lineage.settle(run, "gan", origin)
  # So are the same parameters from a file.
  run = _run(place, init_from="start.safetensors")
  lineage.foresee(run)
  lineage.settle(run, "gan", lineage.origin(run, _params(2)))
  assert _files(place) == before
  assert _said(run) == ""
  # And where phase two has not begun.
  run = _run(place.parent / "empty")
  lineage.foresee(run)
  lineage.settle(run, "gan", lineage.origin(run, _params(2), "psnr"))


def test_what_is_stale_is_refused_by_name(place):
  before = _files(place)
  run = _run(place)
  _save(run, "psnr", 4, plain_states.psnr(4))
  after = _files(place)
  with pytest.raises(
    config_lib.ConfigError,
    match=r"phase gan, at step 3, was begun from phase psnr's step 2"
    r" \([0-9a-f]{12}\), not from phase psnr's step 4 \([0-9a-f]{12}\)\. .*"
    r"allow_changes=true: .* is kept, in .*/earlier/1\. .*"
    r"--config\.init_from=.*/models/psnr\.safetensors$",
  ) as caught:
    lineage.settle(run, "gan", lineage.origin(run, _params(4), "psnr"))
  assert "\n" not in str(caught.value)
  assert _files(place) == after
  assert before.items() <= after.items()


def test_what_is_stale_becomes_a_workdir_of_its_own(place):
  before = _files(place)
  longer = _run(
    place,
    allow_changes=True,
    phases={"psnr": {"num_train_steps": 4}, "gan": {"num_train_steps": 3}},
  )
  lineage.foresee(longer)
  assert _files(place) == before
  _save(longer, "psnr", 4, plain_states.psnr(4))
  origin = lineage.origin(longer, _params(4), "psnr")
  lineage.settle(longer, "gan", origin)
  assert "phase gan, at step 3, was begun from phase psnr's step 2" in _said(
    longer
  )
  moved = {
    name: content
    for name, content in before.items()
    if name.startswith(("models/", "gan/", "samples/gan", "samples/final"))
    or name.startswith(("curves/", "film/gan/", "film.webp"))
    or name in ("evaluation.json", "interpolation.json", "report.html")
  }
  assert len(moved) > 20
  earlier = _files(place / "earlier/1")
  assert json.loads(earlier.pop("config.json")) == _run(place).plain
  assert earlier == moved
  assert _files(place).keys().isdisjoint(moved)
  # It is one that all commands read.
  assert phases(place / "earlier/1") == ("psnr", "gan")
  model = checkpoint_folders.load_model(
    checkpoint_folders.newest(place / "earlier/1/gan")
  )
  assert model.info["origin"]["step"] == 2
  jax.tree.map(
    np.testing.assert_array_equal, model.params, plain_states.arrays(4)
  )
  # The next one has a folder of its own.
  _save(longer, "gan", 3, plain_states.gan(3), origin)
  lineage.settle(longer, "gan", lineage.origin(longer, _params(5), "psnr"))
  assert (place / "earlier/2/gan").is_dir()
  assert _files(place / "earlier/1").keys() == {*earlier, "config.json"}


def test_another_network_is_refused_by_name(place):
  def begin(**generator):
    run = _run(place, generator=generator)
    with claim.claim_workdir(run):
      pass

  begin(**_SIZES)
  before = _files(place)
  # As the version before has left it.
  config = json.loads((place / "config.json").read_text())
  for key in ("plugins", "phase_order", "init_partial", "init_discriminator"):
    del config[key]
  config["generator"] = _SIZES
  del config["discriminator"]["architecture"]
  (place / "config.json").write_text(json.dumps(config))
  begin(**_SIZES)
  registry.register_generator("Other", RRDBNet)
  try:
    with pytest.raises(
      config_lib.ConfigError,
      match=r"\n  generator.architecture: RRDBNet -> Other\nA generator of"
      r" another shape .*: set generator.architecture back, or",
    ):
      begin(architecture="Other", **_SIZES)
  finally:
    registry.unregister("Other")
  # Another form of the same is a change like others.
  with pytest.raises(
    config_lib.ConfigError,
    match=r"\n  generator.unroll: 1 -> 2\nTo go on with the new one, add",
  ):
    begin(unroll=2, **_SIZES)
  (place / "config.json").write_bytes(before["config.json"])
  assert _files(place) == before


def test_setting_aside_goes_on_after_a_kill(place):
  run = _run(place, allow_changes=True)
  origin = lineage.origin(run, _params(9))
  # As if killed between the models and the phase's folder.
  (place / "earlier/1/models").mkdir(parents=True)
  for path in (place / "models").iterdir():
    path.rename(place / "earlier/1/models" / path.name)
  lineage.settle(run, "gan", origin)
  assert (place / "earlier/1/gan/checkpoints/3").is_dir()
  assert (place / "earlier/1/models/psnr.safetensors").exists()
  assert not (place / "earlier/2").exists()


def test_phase_one_is_not_trained_beside_phase_two_unasked(place):
  before = _files(place)
  longer = {"psnr": {"num_train_steps": 9}, "gan": {"num_train_steps": 3}}
  with pytest.raises(
    config_lib.ConfigError, match="phase psnr is at step 2 of 9, but phase gan"
  ):
    lineage.foresee(_run(place, phases=longer))
  (place / "psnr").rename(place / "gone")
  with pytest.raises(
    config_lib.ConfigError, match="phase psnr is at step 0 of 2, but phase gan"
  ):
    lineage.foresee(_run(place))
  (place / "gone").rename(place / "psnr")
  assert _files(place) == before


def test_unknown_descent_is_accepted_until_phase_one_goes_on(tmp_path):
  run = _run(tmp_path, allow_changes=True)
  _save(run, "psnr", 2, plain_states.psnr(2))
  _save(run, "gan", 3, plain_states.gan(3))
  lineage.foresee(run)
  lineage.settle(run, "gan", lineage.origin(run, _params(2), "psnr"))
  assert "begun by an earlier version" in _said(run)
  assert not (tmp_path / "earlier").exists()
  # It stays unknown when it goes on: nothing is made up.
  with checkpoint.Checkpoints(
    run.workdir / "gan", config=run.plain, origin={"sha256": "made up"}
  ) as checkpoints:
    checkpoints.restore(plain_states.gan())
    assert checkpoints.origin is None
    checkpoints.save(5, plain_states.gan(5))
  newest = checkpoint_folders.newest(tmp_path / "gan")
  assert checkpoint_folders.load_model(newest).info["origin"] is None
  # But of another phase one it cannot be.
  longer = {"psnr": {"num_train_steps": 9}, "gan": {"num_train_steps": 3}}
  lineage.foresee(_run(tmp_path, allow_changes=True, phases=longer))
  assert (tmp_path / "earlier/1/gan").is_dir()


def test_models_say_what_they_were_begun_from(tmp_path, capsys):
  run = _run(tmp_path)
  net = RRDBNet(**_SIZES, scale=4)
  shapes = jax.eval_shape(
    lambda: net.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
  )["params"]
  psnr, gan, other = (
    jax.tree.map(lambda x, n=n: np.full(x.shape, n, np.float32), shapes)
    for n in range(3)
  )
  origin = lineage.origin(run, psnr, "psnr")
  finish.export(run, finish.Model("psnr", {"params": psnr}, 0.0))
  finish.export(run, finish.Model("gan", {"params": gan}, 1.0), origin=origin)
  found = find.find_model(tmp_path / "models/psnr.safetensors").weights
  assert found.metadata["generator_sha256"] == origin["sha256"]
  # A file gives the digest that its parameters had.
  assert lineage.origin(run, found.params)["sha256"] == origin["sha256"]
  assert descent.relation_in(run.workdir) == ""
  assert "was begun from" not in report.write_report(tmp_path).read_text()
  finish.export(run, finish.Model("psnr", {"params": other}, 0.0))
  assert "was begun from another model" in descent.relation_in(run.workdir)
  page = report.write_report(tmp_path).read_text()
  assert "The model of phase gan was begun from another model" in page
  # So does a checkpoint.
  _save(run, "psnr", 2, plain_states.psnr(2))
  for path in (tmp_path / "models").iterdir():
    path.unlink()
  metadata = find.find_model(tmp_path).weights.metadata
  digest = lineage.origin(run, _params(2))["sha256"]
  assert metadata == {"generator_sha256": digest}


@pytest.mark.parametrize(
  "content", [b"", b"\x08", b"\xff" * 8 + b"{", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_a_report_survives_models_that_are_none(tmp_path, content):
  (tmp_path / "models").mkdir()
  for name in ("psnr", "gan"):
    (tmp_path / "models" / f"{name}.safetensors").write_bytes(content)
  assert descent.relation_in(_run(tmp_path).workdir) == ""
