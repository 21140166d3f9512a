"""Checkpoints: exact, verified, kept sparingly, readable apart."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.training import checkpoint, mesh
from esrgan_jax.training.optimizer import make_optimizer
from esrgan_jax.training.state import create_psnr_state

# TensorStore's other reads end after Orbax has given up on damaged files.
pytestmark = pytest.mark.filterwarnings(
  "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)

_GENERATOR = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2}
_CONFIG = {"generator": _GENERATOR, "scale": 4, "seed": 3}


def _create(num_devices=1):
  net, adam = RRDBNet(**_GENERATOR), make_optimizer(1e-3, clip_norm=1.0)
  return jax.jit(
    lambda key: create_psnr_state(key, net, adam),
    out_shardings=mesh.replicated(mesh.make_mesh(num_devices)),
  )(jax.random.key(0))


@pytest.fixture(scope="module", name="state")
def _state():
  return _create()


def _plus(state, number):
  return jax.tree.map(lambda x: x + jnp.asarray(number, x.dtype), state)


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _damage(folder, item):
  """Flips a bit in the middle of every data file of an item."""
  for path in (folder / item).rglob("d/*"):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_round_trip_is_exact_after_the_state_was_donated(tmp_path, state):
  expected = jax.tree.map(np.array, _plus(state, 1))
  step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
  with checkpoint.Checkpoints(tmp_path / "c") as checkpoints:
    running = jax.device_put(expected, state.step.sharding)
    assert checkpoints.save(5, running, config=_CONFIG)
    for _ in range(3):
      running = step(running)
    restored = checkpoints.restore(state)
  assert (restored.step, restored.config) == (5, _CONFIG)
  assert type(restored.state) is type(state)
  _assert_equal(restored.state, expected)


def test_another_number_of_devices(tmp_path, state):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, _create(4), config=_CONFIG)
    restored = checkpoints.restore(state)
  assert restored.state.step.sharding == state.step.sharding
  _assert_equal(restored.state, state)


def test_keeps_the_newest_and_the_best(tmp_path, state):
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    for step, psnr in ((1, 30.0), (2, 32.0), (3, 31.0), (4, None), (5, 29.0)):
      metrics = None if psnr is None else {"psnr_y": psnr}
      checkpoints.save(step, state, config=_CONFIG, metrics=metrics)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert not checkpoints.save(5, state, config=_CONFIG)
    assert checkpoints.restore(state).metrics == {"psnr_y": 29.0}


@pytest.mark.parametrize("item", ["state", "ema"])
def test_a_flipped_bit_sends_back_to_the_step_before(
  tmp_path, state, item, caplog
):
  folder = tmp_path / "checkpoints"
  with checkpoint.Checkpoints(folder) as checkpoints:
    checkpoints.save(1, state, config=_CONFIG)
    checkpoints.save(2, _plus(state, 1), config=_CONFIG)
  _damage(folder / "2", item)
  with checkpoint.Checkpoints(folder) as checkpoints:
    restored = checkpoints.restore(state)
    assert restored.step == 1
    _assert_equal(restored.state, state)
    assert "checkpoint 2" in caplog.text
    assert "damaged" in caplog.text
    # The way is free to save it again; the damaged one was not destroyed.
    assert checkpoints.save(2, _plus(state, 1), config=_CONFIG)
  assert (tmp_path / "damaged_checkpoints" / "2" / item).is_dir()


def test_all_damaged_is_an_error_and_none_is_none(tmp_path, state):
  folder = tmp_path / "checkpoints"
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(state) is None
    checkpoints.save(1, state, config=_CONFIG)
  (folder / "1" / "info" / "metadata").write_text("{")
  with (
    checkpoint.Checkpoints(folder) as checkpoints,
    pytest.raises(checkpoint.CheckpointError, match="all 1 checkpoints"),
  ):
    checkpoints.restore(state)


def test_load_params_from_every_depth(tmp_path, state):
  for phase, number in (("psnr", 0), ("gan", 1)):
    folder = tmp_path / phase / checkpoint.FOLDER
    with checkpoint.Checkpoints(folder) as checkpoints:
      for step in (1, 2):
        numbered = _plus(state, number + step)
        checkpoints.save(step, numbered, config=_CONFIG)
  for path, number in (
    (tmp_path, 3),
    (tmp_path / "gan", 3),
    (tmp_path / "psnr", 2),
    (tmp_path / "psnr" / checkpoint.FOLDER / "1", 1),
  ):
    config, params = checkpoint.load_params(path)
    assert config == {**_GENERATOR, "scale": 4}
    _assert_equal(params, _plus(state.ema_params, number))
    assert isinstance(params["conv_first"]["bias"], np.ndarray)


def test_load_params_refuses_what_is_absent_or_damaged(tmp_path, state):
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
    checkpoint.load_params(tmp_path)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, config=_CONFIG)
  _damage(tmp_path / "1", "ema")
  with pytest.raises(checkpoint.CheckpointError, match="damaged"):
    checkpoint.load_params(tmp_path)


def test_keep_must_be_positive(tmp_path):
  with pytest.raises(ValueError, match="keep is 0"):
    checkpoint.Checkpoints(tmp_path, keep=0)


def test_killed_while_saving_the_step_before_is_there(tmp_path):
  script = textwrap.dedent("""
    import sys
    import jax, numpy as np
    from esrgan_jax.training import checkpoint, mesh
    from esrgan_jax.training.state import PsnrState
    whole = mesh.replicated(mesh.make_mesh(1))
    def state(value):
      big = {"w": np.full(4_000_000, value, np.float32)}
      zero = np.zeros((), np.int32)
      return jax.device_put(
        PsnrState(zero, big, {}, big, zero, zero), whole)
    checkpoints = checkpoint.Checkpoints(sys.argv[1])
    checkpoints.save(1, state(1), config={})
    checkpoints.wait()
    checkpoints.save(2, state(2), config={})
    print("saving", flush=True)
    checkpoints.wait()
    checkpoints.save(3, state(3), config={})
    import time; time.sleep(600)
  """)
  command = [sys.executable, "-c", script, str(tmp_path / "c")]
  root = pathlib.Path(__file__).parents[1]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, env=environment, text=True
  ) as process:
    assert process.stdout.readline() == "saving\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
  whole = mesh.replicated(mesh.make_mesh(1))
  leaf = jax.ShapeDtypeStruct((4_000_000,), jnp.float32, sharding=whole)
  zero = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
  from esrgan_jax.training.state import PsnrState

  like = PsnrState(zero, {"w": leaf}, {}, {"w": leaf}, zero, zero)
  with checkpoint.Checkpoints(tmp_path / "c") as checkpoints:
    restored = checkpoints.restore(like)
  value = float(restored.step)
  assert restored.step in (1, 2, 3)
  np.testing.assert_array_equal(restored.state.params["w"], value)
