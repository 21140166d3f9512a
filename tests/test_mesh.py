"""Meshes, shardings and compiled steps on eight virtual CPU devices."""

import pathlib
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.training import mesh as mesh_lib


def test_make_mesh_takes_all_or_the_first():
  assert dict(mesh_lib.make_mesh().shape) == {"data": 8}
  mesh = mesh_lib.make_mesh(2)
  assert list(mesh.devices) == jax.devices()[:2]
  assert mesh.axis_types == (jax.sharding.AxisType.Auto,)


@pytest.mark.parametrize("num", [0, 9])
def test_make_mesh_refuses_devices_that_are_not_there(num):
  with pytest.raises(ValueError, match=rf"num must be in 1\.\.8.*got {num}"):
    mesh_lib.make_mesh(num)


def test_global_batch_is_split_and_replicated_is_whole():
  mesh = mesh_lib.make_mesh(4)
  local = {"lr": np.arange(8.0).reshape(8, 1), "ids": np.arange(4)}
  batch = mesh_lib.global_batch(mesh, local)
  assert jax.tree.structure(batch) == jax.tree.structure(local)
  assert batch["lr"].sharding == mesh_lib.batch_sharding(mesh)
  for shard in batch["lr"].addressable_shards:
    np.testing.assert_array_equal(shard.data, local["lr"][shard.index])
    assert shard.data.shape == (2, 1)
  np.testing.assert_array_equal(batch["ids"], local["ids"])
  whole = jax.device_put(local["lr"], mesh_lib.replicated(mesh))
  assert all(s.data.shape == (8, 1) for s in whole.addressable_shards)


@pytest.mark.parametrize("array", [np.zeros((6, 2)), np.float32(1.0)])
def test_global_batch_names_what_does_not_fit(array):
  mesh = mesh_lib.make_mesh(4)
  with pytest.raises(ValueError, match=r"\['hr'\] has shape .* 4 devices"):
    mesh_lib.global_batch(mesh, {"hr": array})


def test_local_batch_size():
  mesh = mesh_lib.make_mesh(8)
  assert mesh_lib.local_batch_size(mesh, batch_size=16) == 16
  with pytest.raises(ValueError, match=r"20 is not a multiple of 8 .*use 16"):
    mesh_lib.local_batch_size(mesh, batch_size=20)
  with pytest.raises(
    ValueError, match=r"8 is not a multiple of 16 \(8 devices times 2 .*use 16"
  ):
    mesh_lib.local_batch_size(mesh, batch_size=8, accumulate=2)
  with pytest.raises(ValueError, match="accumulate must be >= 1, got 0"):
    mesh_lib.local_batch_size(mesh, batch_size=8, accumulate=0)


def mean_step(state, batch, *, weights):
  total = state["sum"] + jnp.mean(batch["x"]) * weights(batch["x"]).sum()
  return {"sum": total, "rows": state["rows"] + 1}, {"images": jnp.sum(total)}


@pytest.mark.parametrize("num", [1, 8])
def test_jit_step_donates_traces_once_and_takes_arrays_as_arguments(num):
  mesh = mesh_lib.make_mesh(num)
  traces = []

  def counted(state, batch, **arrays):
    traces.append(jax.core.Tracer)
    # Not a constant of the program: it is traced like the state.
    assert isinstance(jax.tree.leaves(arrays)[0], jax.core.Tracer)
    return mean_step(state, batch, **arrays)

  weights = jax.tree_util.Partial(lambda w, x: w * x[0], jnp.full(3, 2.0))
  step = mesh_lib.jit_step(counted, mesh, weights=weights)
  state = {"sum": jnp.float32(1.0), "rows": jnp.zeros(4)}
  state = jax.device_put(state, mesh_lib.replicated(mesh))
  batch = mesh_lib.global_batch(mesh, {"x": np.ones((8, 3), np.float32)})
  first = state
  for _ in range(3):
    state, metrics = step(state, batch)
  assert first["rows"].is_deleted()
  assert len(traces) == 1
  assert float(state["sum"]) == 1.0 + 3 * 6.0
  assert state["rows"].sharding.is_fully_replicated
  assert metrics["images"].sharding.is_fully_replicated


def test_jit_step_takes_other_batch_shardings():
  mesh = mesh_lib.make_mesh(8)
  whole = mesh_lib.replicated(mesh)
  step = mesh_lib.jit_step(
    lambda state, batch: (state + jnp.sum(batch), batch),
    mesh,
    batch_shardings=whole,
  )
  state, _ = step(jnp.float32(0.0), np.ones(3, np.float32))
  assert float(state) == 3.0


def test_jit_step_passes_compiler_options_on():
  mesh = mesh_lib.make_mesh(1)
  step = mesh_lib.jit_step(
    lambda state, batch: (state, batch),
    mesh,
    compiler_options={"no_such_option": "1"},
  )
  with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
    step(jnp.float32(0.0), np.ones(1, np.float32))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")
def test_what_compiling_took_is_given_back_before_the_first_step():
  step = mesh_lib.jit_step(
    lambda state, batch: (state + jnp.sum(batch), {}), mesh_lib.make_mesh(1)
  )
  # As a compiler leaves it: small pieces, each freed but the last, which lies
  # at the end and keeps glibc from giving anything back by itself.
  pieces = [bytes(4000) for _ in range(50_000)]
  last = bytes(4000)
  del pieces
  before = resident_bytes()
  step.compile(jnp.float32(0.0), np.ones(3, np.float32))
  assert resident_bytes() < before - 100_000_000
  assert len(last) == 4000


def resident_bytes():
  """What this process has in memory."""
  status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
  (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
  return 1024 * int(line.split()[1])
