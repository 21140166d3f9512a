"""Checkpoints: exact, verified, kept sparingly, never lost."""

import contextlib
import json
import logging
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from esrgan_jax.steps.optimizer import make_optimizer
from esrgan_jax.steps.state import GanState, PsnrState
from esrgan_jax.training import checkpoint, fitting
from esrgan_jax.weights.formats import checkpoint_folders
from esrgan_jax.weights.formats import stored_arrays as stored
from tests.plain_states import WHOLE, arrays, gan, psnr, zero
from tests.training_runs import ROOT

_GENERATOR = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2}
_CONFIG = {"generator": _GENERATOR, "scale": 4, "patch_size": 24, "seed": 3}


def _open(folder, keep=3, **changes):
  return checkpoint.Checkpoints(folder, config=_CONFIG | changes, keep=keep)


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _contents(folder):
  """All files below a folder, and their bytes."""
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(pathlib.Path(folder).rglob("*"))
    if path.is_file()
  }


@pytest.fixture(scope="module", name="saved")
def _saved(tmp_path_factory):
  """A phase's folder with steps 1 and 2; copied before it is changed."""
  folder = tmp_path_factory.mktemp("saved") / "gan"
  with _open(folder) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, gan(step))
  return folder


@pytest.fixture(name="phase")
def _phase(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "gan"))


def test_round_trip_is_exact_after_the_state_was_donated(tmp_path):
  expected = jax.tree.map(np.array, gan(5))
  step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
  with _open(tmp_path) as checkpoints:
    running = jax.device_put(expected, WHOLE)
    assert checkpoints.save(5, running)
    for _ in range(3):
      running = step(running)
    restored = checkpoints.restore(running)
    assert (restored.step, restored.config) == (5, _CONFIG)
    assert (restored.metrics, restored.note) == ({}, "")
    assert type(restored.state) is GanState
    _assert_equal(restored.state, expected)
    # It may be donated too.
    doubled = step(restored.state)
    _assert_equal(doubled, jax.tree.map(lambda x: x * 2, expected))
    _assert_equal(checkpoints.restore(doubled).state, expected)


def test_a_generator_with_more_than_parameters(tmp_path):
  statistics = {"batch_stats": {"norm": {"mean": np.ones(3, np.float32)}}}
  state = jax.device_put(psnr(2).replace(collections=statistics), WHOLE)
  with _open(tmp_path / "psnr") as checkpoints:
    checkpoints.save(2, state)
    checkpoints.check(state)
    _assert_equal(checkpoints.restore(state).state, state)
    with pytest.raises(
      checkpoint.CheckpointError,
      match="another generator: collections/batch_stats/norm/mean is 3 there,"
      " absent here",
    ):
      checkpoints.check(psnr())
  step = tmp_path / "psnr/checkpoints/2"
  found = checkpoint_folders.load_model(step)
  _assert_equal(found.collections, statistics)
  _assert_equal(found.params, state.ema_params)
  # It is as well kept as the rest.
  (item,) = (step / "collections/d").iterdir()
  item.unlink()
  with pytest.raises(stored.DamagedError):
    checkpoint_folders.load_model(step)


def test_another_number_of_devices(tmp_path):
  state = psnr(7, devices=4)
  with _open(tmp_path) as checkpoints:
    checkpoints.save(7, state)
    restored = checkpoints.restore(psnr()).state
  assert restored.step.sharding == WHOLE
  _assert_equal(restored, state)


def test_keeps_the_newest_and_the_best_also_after_a_restart(tmp_path):
  state = psnr()
  with _open(tmp_path, keep=2) as checkpoints:
    for step, score in ((1, 30.0), (2, 32.0), (3, 31.0), (4, None), (5, 29.0)):
      metrics = None if score is None else {"psnr_y": score}
      checkpoints.save(step, state, metrics=metrics)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert not checkpoints.save(5, state)
    assert checkpoints.restore(state).metrics == {"psnr_y": 29.0}
  with _open(tmp_path, keep=1) as checkpoints:
    checkpoints.save(6, state)
    checkpoints.save(7, state, metrics={"psnr_y": float("nan")})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 7]


def test_the_best_may_be_the_lowest_of_another_measure(tmp_path):
  options = {"config": _CONFIG, "keep": 1, "best": "lpips"}
  with checkpoint.Checkpoints(tmp_path, **options) as checkpoints:
    for step, psnr_y, lpips in ((1, 32.0, 0.3), (2, 30.0, 0.1), (3, 31.0, 0.2)):
      metrics = {"psnr_y": psnr_y, "lpips": lpips}
      checkpoints.save(step, psnr(), metrics=metrics)
    checkpoints.wait()
    assert checkpoints.scores() == {2: 30.0, 3: 31.0}


def test_rated_later(tmp_path):
  with _open(tmp_path, keep=1) as checkpoints:
    for step, score in ((1, 30.0), (2, 32.0), (3, 31.0)):
      checkpoints.save(step, psnr())
      checkpoints.rate(step, {"psnr_y": score})
  with _open(tmp_path, keep=1) as checkpoints:
    assert checkpoints.restore(psnr()).metrics == {"psnr_y": 31.0}
    checkpoints.save(4, psnr())
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4]
    checkpoints.rate(3, {"psnr_y": 33.0})  # It is gone.
    assert checkpoints.steps() == [2, 4]


def test_keep_must_be_positive(tmp_path):
  with pytest.raises(ValueError, match="keep is 0"):
    _open(tmp_path, keep=0)


def test_checkpoints_of_the_first_version_go_on(tmp_path):
  """Written by the code before this module read them itself."""
  with tarfile.open(ROOT / "tests/goldens/first_checkpoints.tar.xz") as file:
    file.extractall(tmp_path, filter="data")

  def ramp(n):
    kernel = jnp.arange(n, n + 6, dtype=jnp.float32).reshape(2, 3)
    return {"body": {"kernel": kernel}, "bias": jnp.full(3, n, jnp.float32)}

  def half(params, step, clip_norm=None):
    state = make_optimizer(1e-4, clip_norm=clip_norm).init(params)
    state = jax.tree.map(
      lambda x: x + jnp.asarray(0.5 if x.ndim else 2, x.dtype), state
    )
    # What it had not: the next update computes the one of the other.
    count = state.hyperparams_states["learning_rate"]._replace(
      count=jnp.int32(step)
    )
    return state._replace(
      hyperparams={"learning_rate": jnp.zeros(())},
      hyperparams_states={"learning_rate": count},
    )

  shared = {"skipped": zero(), "skipped_in_a_row": zero()}
  first = PsnrState(
    step=np.int32(2),
    params=ramp(1),
    opt_state=half(ramp(1), 2),
    ema_params=ramp(10),
    **shared,
  )
  second = GanState(
    step=np.int32(1),
    params=ramp(2),
    opt_state=half(ramp(2), 1, 1.0),
    ema_params=ramp(20),
    d_params=ramp(3),
    d_batch_stats={},
    d_opt_state=half(ramp(3), 1, 1.0),
    **shared,
  )
  for name, state, metrics in (
    ("psnr", first, {"psnr_y": 30.5}),
    ("gan", second, {}),
  ):
    state = jax.device_put(state, WHOLE)
    with _open(tmp_path / name) as checkpoints:
      checkpoints.check(state)
      restored = checkpoints.restore(state)
      _assert_equal(restored.state, state)
      assert restored.metrics == metrics
      assert checkpoints.save(9, state)
  assert checkpoint_folders.list_steps(tmp_path / "gan/checkpoints") == [1, 9]
  config, params, *_ = checkpoint_folders.load_model(
    tmp_path / "psnr/checkpoints/9"
  )
  assert config == {"architecture": "RRDBNet", **_GENERATOR, "scale": 4}
  _assert_equal(params, ramp(10))


_DAMAGE = {
  "missing": None,
  "empty": lambda content: b"",
  "half": lambda content: content[: len(content) // 2],
  "first bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
  "a bit": lambda content: (
    content[: len(content) // 2]
    + bytes([content[len(content) // 2] ^ 1])
    + content[len(content) // 2 + 1 :]
  ),
}


@pytest.mark.parametrize("kind", _DAMAGE)
def test_damage_to_any_file_is_found_or_does_not_matter(
  phase, kind, caplog, monkeypatch
):
  monkeypatch.setattr(stored, "_PAUSES", ())
  like, found = gan(), 0
  step = phase / "checkpoints/2"
  files = [path for path in step.rglob("*") if path.is_file()]
  assert len(files) > 20
  for path in files:
    content = path.read_bytes()
    if _DAMAGE[kind]:
      path.write_bytes(_DAMAGE[kind](content))
    else:
      path.unlink()
    before = _contents(step)
    caplog.clear()
    with _open(phase) as checkpoints:
      restored = checkpoints.restore(like)
    _assert_equal(restored.state, gan(restored.step))
    assert restored.config == _CONFIG
    if restored.step == 2:
      assert _contents(step) == before
      path.write_bytes(content)
      continue
    found += 1
    assert "damaged; going on" in caplog.text.replace(
      caplog.text.partition(" is damaged")[2].partition("; going on")[0], ""
    )
    aside = phase / "damaged_checkpoints/2"
    assert _contents(aside) == before
    # The last one left is not moved, whatever it is like.
    shutil.move(phase / "checkpoints/1", phase / "1")
    shutil.move(aside, step)
    with (
      _open(phase) as checkpoints,
      pytest.raises(checkpoint.CheckpointError, match=r"is whole \(steps 2\)"),
    ):
      checkpoints.restore(like)
    assert _contents(step) == before
    shutil.move(phase / "1", phase / "checkpoints/1")
    path.write_bytes(content)
  # What it is read from: the infos, trees, manifests and arrays.
  assert 5 <= found <= len(files) // 2


@pytest.mark.parametrize("item", ["state", "ema", "info"])
def test_a_missing_item_is_damage(phase, item):
  shutil.rmtree(phase / "checkpoints/2" / item)
  with _open(phase) as checkpoints:
    assert checkpoints.restore(gan()).step == 1
    # The way is free to save it again.
    assert checkpoints.save(2, gan(2))
  with _open(phase) as checkpoints:
    assert checkpoints.restore(gan()).step == 2
  shutil.rmtree(phase / "checkpoints/2" / item)
  with _open(phase) as checkpoints:
    assert checkpoints.restore(gan()).step == 1
  moved = (phase / "damaged_checkpoints").iterdir()
  assert sorted(path.name for path in moved) == ["2", "2.1"]


def test_what_cannot_be_read_is_not_damaged(phase, monkeypatch):
  # A link to itself: an error of the file system, also for root.
  path = next(phase.glob("checkpoints/2/ema/d/*"))
  content = path.read_bytes()

  def make_unreadable():
    path.unlink()
    path.symlink_to(path)

  make_unreadable()
  pauses = []
  monkeypatch.setattr(stored.time, "sleep", pauses.append)
  with _open(phase) as checkpoints:
    with pytest.raises(
      checkpoint.CheckpointError,
      match=r"checkpoints/2 cannot be read: Too many levels.*Nothing was moved",
    ):
      checkpoints.restore(gan())
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
      checkpoint_folders.load_model(phase / "checkpoints/2")
  assert len(pauses) == 2 * len(stored._PAUSES)
  assert not (phase / "damaged_checkpoints").exists()

  def mend(_):
    path.unlink()
    path.write_bytes(content)

  # An error that passes costs a pause.
  monkeypatch.setattr(stored.time, "sleep", mend)
  with _open(phase) as checkpoints:
    assert checkpoints.restore(gan()).step == 2


def test_no_beginning_beside_what_was_moved_aside(phase):
  # As earlier versions left it, after a restore that failed for any reason.
  (phase / "checkpoints").rename(phase / "damaged_checkpoints")
  for attempt in ("check", "restore"):
    with (
      _open(phase) as checkpoints,
      pytest.raises(
        checkpoint.CheckpointError,
        match=r"no checkpoint, but damaged_checkpoints has \(steps 2, 1\)\.",
      ),
    ):
      getattr(checkpoints, attempt)(gan())
  (phase / "damaged_checkpoints").rename(phase / "checkpoints")
  with _open(phase) as checkpoints:
    assert checkpoints.restore(gan()).step == 2


def test_nothing_saved_yet_is_none(tmp_path):
  with _open(tmp_path / "gan") as checkpoints:
    checkpoints.check(gan())
    assert checkpoints.restore(gan()) is None
  assert not (tmp_path / "gan").exists()


def _wide():
  state = gan()
  return state.replace(params=psnr(size=8).params)


@pytest.mark.parametrize(
  ("like", "changes", "message"),
  [
    (
      _wide,
      {"generator": _GENERATOR | {"num_feat": 8}},
      r"2 holds another generator: params/conv/kernel is 2x4 there, 2x8 here"
      r" \(generator\.num_feat: 4 -> 8\)\. Training cannot go on from another",
    ),
    (
      lambda: gan(d_size=8),
      {"patch_size": 32},
      r"another discriminator: d_params/conv/kernel is 2x4 there, 2x8 here"
      r" \(patch_size: 24 -> 32\)\. .*allow_changes=true to begin the discr",
    ),
    (
      lambda: gan(batch_norm=False),
      {},
      r"another discriminator: d_batch_stats/mean is 3 there, absent here",
    ),
    (
      lambda: gan().replace(opt_state={"momentum": arrays(0)}),
      {},
      r"another generator's optimizer: opt_state/count is a scalar of int32"
      r" there, absent here, and \d more",
    ),
    (
      lambda: gan().replace(step=np.zeros((), np.float32)),
      {},
      "another state: step is a scalar of int32 there, a scalar here",
    ),
  ],
)
def test_what_does_not_fit_is_refused_by_name(phase, like, changes, message):
  before = _contents(phase)
  for attempt in ("check", "restore"):
    with (
      _open(phase, **changes) as checkpoints,
      pytest.raises(checkpoint.CheckpointError, match=message) as caught,
    ):
      getattr(checkpoints, attempt)(like())
    assert "\n" not in str(caught.value)
  assert _contents(phase) == before


def test_another_generator_is_refused_whatever_is_allowed(phase):
  before = _contents(phase)
  with _open(phase) as checkpoints:
    with pytest.raises(checkpoint.CheckpointError, match="another generator"):
      checkpoints.check(_wide(), changes=True)
    with pytest.raises(checkpoint.CheckpointError, match="another generator"):
      checkpoints.restore(_wide(), begin=_wide)
  assert _contents(phase) == before


def test_another_discriminator_begins_anew_in_a_new_folder(phase):
  before = _contents(phase / "checkpoints")
  fresh = gan(70, d_size=8)
  with _open(phase, keep=1, patch_size=32) as checkpoints:
    checkpoints.check(fresh, changes=True)
    restored = checkpoints.restore(fresh, begin=lambda: fresh)
    assert restored.step == 2
    assert restored.note == (
      "the discriminator begins anew: d_params/conv/kernel is 2x4 there, 2x8"
      " here (patch_size: 24 -> 32); checkpoints go to checkpoints_2 from here"
      " on, those before stay in checkpoints"
    )
    anew = {
      name: getattr(fresh, name)
      for name in ("d_params", "d_batch_stats", "d_opt_state")
    }
    _assert_equal(restored.state, gan(2).replace(**anew))
    assert checkpoints.save(2, restored.state)
    for step in (3, 4):
      checkpoints.save(step, restored.state.replace(step=np.int32(step)))
  # `keep` is for the new folder alone.
  assert _contents(phase / "checkpoints") == before
  assert checkpoint_folders.list_steps(phase / "checkpoints_2") == [4]
  newest = checkpoint_folders.newest(epath.Path(phase))
  assert newest == phase / "checkpoints_2/4"
  # From now on it is the phase's, and once more.
  with _open(phase, patch_size=32) as checkpoints:
    assert checkpoints.restore(fresh).step == 4
    restored = checkpoints.restore(gan(), begin=gan)
    assert "checkpoints_3 from here on, those before" in restored.note
    checkpoints.save(4, restored.state)
  with _open(phase) as checkpoints:
    assert checkpoints.restore(gan()).step == 4


def test_killed_before_the_new_folder_has_a_step_the_old_one_counts(phase):
  (phase / "checkpoints_2" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
  with _open(phase) as checkpoints:
    assert checkpoints.restore(gan()).step == 2
    restored = checkpoints.restore(gan(d_size=8), begin=lambda: gan(d_size=8))
    checkpoints.save(2, restored.state)
  assert [p.name for p in (phase / "checkpoints_2").iterdir()] == ["2"]


def test_clipping_moves_moments_and_loses_none(phase):
  like = gan(clip_norm=1.0)
  with _open(phase, clip_norm=1.0) as checkpoints:
    checkpoints.check(like)
    restored = checkpoints.restore(like)
    assert restored.note == ""
    _assert_equal(restored.state, gan(2, clip_norm=1.0))
    checkpoints.save(3, restored.state)
    _assert_equal(checkpoints.restore(gan()).state, gan(2))
  assert checkpoint_folders.list_steps(phase / "checkpoints") == [1, 2, 3]


def test_another_optimizer_begins_anew(phase):
  fresh = gan(70)
  fresh = fresh.replace(opt_state=jax.device_put({"m": arrays(7)}, WHOLE))
  with _open(phase) as checkpoints:
    restored = checkpoints.restore(fresh, begin=lambda: fresh)
  assert restored.note.startswith("the generator's optimizer begins anew")
  expected = gan(2).replace(opt_state=fresh.opt_state)
  _assert_equal(restored.state, expected)


def test_of_damaged_descriptions_none_is_a_change(phase):
  """A shape that is wrong through damage is no reason to begin anew."""
  path = phase / "checkpoints/2/state/_METADATA"
  text = path.read_text()
  path.write_text(text.replace('"key": "d_params"', '"key": "d_paramt"'))
  with _open(phase) as checkpoints:
    checkpoints.check(gan())
    assert checkpoints.restore(gan(), begin=gan).step == 1
  assert not (phase / "checkpoints_2").exists()


def test_zarr3_can_be_read_as_well(tmp_path):
  folder = epath.Path(tmp_path) / "1"
  saved = arrays(3)
  info = {"sha256": {"ema": stored.digest(stored.flatten(saved))}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=True)) as writer:
    writer.save(folder / "ema", saved)
  (folder / "info").mkdir()
  (folder / "info/metadata").write_text(json.dumps(info))
  found = stored.read(folder, items=("ema",))
  _assert_equal(stored.nest(found.arrays["ema"]), saved)


@contextlib.contextmanager
def _files_of_at_most(size):
  """Has writing fail, as on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("package", ["orbax", "own"])
def test_what_orbax_raises_is_not_told_again_by_asyncio(
  tmp_path, package, caplog
):
  with _open(tmp_path) as checkpoints:
    checkpoints.save(1, jax.device_put(psnr(), WHOLE))
  code = "def write(): raise OSError(27, 'File too large')"
  there = {}
  exec(compile(code, f"/lib/{package}/path.py", "exec"), there)
  try:
    there["write"]()
  except OSError:
    # As of a future that is collected, and that nobody has waited for.
    logging.getLogger("asyncio").exception(
      "Future exception was never retrieved"
    )
  assert ("File too large" in caplog.text) == (package == "own")


@pytest.mark.parametrize("size", [200, 2000, 40_000])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
  tmp_path, size, capfd, caplog
):
  chance = np.random.default_rng(0)
  noise = chance.standard_normal(100_000, np.float32)
  state = jax.device_put(psnr().replace(ema_params={"w": noise}), WHOLE)
  with _open(tmp_path) as checkpoints:
    checkpoints.save(1, state)
  before = _contents(tmp_path / "checkpoints/1")

  def save():
    with _open(tmp_path) as checkpoints, _files_of_at_most(size):
      checkpoints.save(2, state)
      while True:  # Told as soon as it is known.
        checkpoints.look()
        time.sleep(0.01)

  with pytest.raises(checkpoint.SaveError) as caught:
    save()
  assert re.fullmatch(
    r"checkpoint 2 cannot be written to .*/checkpoints: File too large\. .* the"
    r" same command goes on from step 1",
    str(caught.value),
  )
  assert _contents(tmp_path / "checkpoints/1") == before
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
  out, err = capfd.readouterr()
  assert "Traceback" not in out + err + caplog.text
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(state).step == 1
    assert checkpoints.save(2, state)


def test_a_file_in_the_place_of_the_folder(tmp_path):
  (tmp_path / "gan").mkdir()
  (tmp_path / "gan/checkpoints").write_text("mine")
  with (
    _open(tmp_path / "gan") as checkpoints,
    pytest.raises(checkpoint.SaveError, match="cannot be written to"),
  ):
    checkpoints.save(1, gan())
  assert (tmp_path / "gan/checkpoints").read_text() == "mine"


@pytest.mark.slow
def test_killed_while_saving_the_step_before_is_there(tmp_path):
  script = textwrap.dedent("""
    import sys, time
    import jax, numpy as np
    from esrgan_jax.training import checkpoint, mesh
    from esrgan_jax.steps.state import PsnrState
    whole = mesh.replicated(mesh.make_mesh(1))
    def state(value):
      big = {"w": np.full(4_000_000, value, np.float32)}
      zero = np.zeros((), np.int32)
      return jax.device_put(
        PsnrState(zero, big, {}, big, zero, zero), whole)
    checkpoints = checkpoint.Checkpoints(sys.argv[1], config={})
    checkpoints.save(1, state(1))
    checkpoints.wait()
    checkpoints.save(2, state(2))
    print("saving", flush=True)
    checkpoints.wait()
    checkpoints.save(3, state(3))
    time.sleep(600)
  """)
  command = [sys.executable, "-c", script, str(tmp_path)]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, env=environment, text=True
  ) as process:
    assert process.stdout.readline() == "saving\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
  leaf = jax.ShapeDtypeStruct((4_000_000,), jnp.float32, sharding=WHOLE)
  zero = jax.ShapeDtypeStruct((), jnp.int32, sharding=WHOLE)
  like = PsnrState(zero, {"w": leaf}, {}, {"w": leaf}, zero, zero)
  with _open(tmp_path) as checkpoints:
    restored = checkpoints.restore(like)
  assert restored.step in (1, 2, 3)
  np.testing.assert_array_equal(
    restored.state.params["w"], float(restored.step)
  )


def test_a_fit_says_where_to_find_what():
  state = psnr(clip_norm=1.0)
  found = {
    "state": stored.flatten(
      {"params": state.params, "opt_state": psnr().opt_state}
    ),
    "ema": stored.flatten(state.ema_params),
  }
  fit = fitting.fit(found, state)
  path = ("mu", "conv", "bias")
  assert fit.sources["opt_state", "inner_state", 1, *path] == (
    "state",
    ("opt_state", "inner_state", 0, *path),
  )
  assert fit.sources["ema_params", "conv", "bias"] == ("ema", ("conv", "bias"))
  assert {each.part for each in fit.differences} == {"state"}
