"""What a step computes, what a device could, and the trace of a run."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.ops import platforms
from esrgan_jax.training import loop, speed
from esrgan_jax.training import mesh as mesh_lib
from tests.training_runs import tiny_config


def _flops(function, *args):
  return speed.count_flops(jax.make_jaxpr(function)(*args))


def _convolve(x, kernel, stride=1):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def test_a_network_is_counted_layer_by_layer():
  net = RRDBNet(num_feat=8, num_block=2, num_grow_ch=4, form="plain")
  lr = jnp.zeros((2, 6, 5, 3))
  variables = jax.eval_shape(net.init, jax.random.key(0), lr)
  dense = 9 * sum((8 + 4 * i) * (4 if i < 4 else 8) for i in range(5))
  an_lr_pixel = 9 * 3 * 8 + 2 * 3 * dense + 9 * 8 * 8
  an_lr_pixel += 4 * 9 * 8 * 8 + 16 * (2 * 9 * 8 * 8 + 9 * 8 * 3)
  expected = 2 * 60 * an_lr_pixel
  assert _flops(net.apply, variables, lr) == expected


@pytest.mark.release
def test_a_step_is_counted_in_the_form_that_runs():
  # At real width: forms depend on it.
  net = RRDBNet(num_block=1)
  lr = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), lr)

  def step(variables, lr):
    loss = lambda variables: net.apply(variables, lr).sum()  # noqa: E731
    return variables, jax.grad(loss)(variables)

  compiled = mesh_lib.jit_step(step, mesh_lib.make_mesh(1)).compile(
    variables, lr
  )
  counted = {}
  for platform in ("cpu", "tpu", "gpu"):
    with platforms.tracing_for(platform):
      counted[platform] = _flops(lambda v, x: step(v, x), variables, lr)
  # They differ, so that the dearest of all would be none of the others.
  assert len({*counted.values()}) > 1
  assert compiled.flops == counted["cpu"] < _flops(step, variables, lr)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_costs_twice_what_the_function_does(stride):
  x, kernel = jnp.ones((2, 8, 12, 3)), jnp.ones((3, 3, 3, 5))

  def loss(x, kernel):
    return jnp.sum(_convolve(x, kernel, stride) ** 2)

  forward = _flops(loss, x, kernel)
  assert forward == 2 * 27 * 5 * 2 * 8 * 12 / stride**2
  assert _flops(jax.grad(loss, (0, 1)), x, kernel) == 3 * forward


def test_loops_branches_and_devices():
  a = jnp.ones((4, 4))
  once = _flops(jnp.matmul, a, a)
  assert once == 2 * 4**3

  def repeated(a):
    return lax.scan(lambda x, _: (x @ a, None), a, None, length=7)[0]

  assert _flops(jax.jit(repeated), a) == 7 * once

  def either(a):
    return lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a)

  assert _flops(jax.checkpoint(either), a) == 2 * once
  mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
  spec = PartitionSpec("data")
  split = jax.shard_map(
    lambda x: x @ a, mesh=mesh, in_specs=spec, out_specs=spec
  )
  assert _flops(split, a) == once


def test_peaks_of_devices_by_their_whole_name():
  assert speed.peak_flops("TPU v5 lite") == 197e12
  assert speed.peak_flops("TPU v5p") == 459e12
  assert speed.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
  assert speed.peak_flops("NVIDIA H100 PCIe") == 756e12
  assert speed.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
  assert speed.peak_flops("NVIDIA L40S") == 362e12
  assert speed.peak_flops("NVIDIA L4") == 121e12
  for unknown in ("TPU v99", "NVIDIA L41", "cpu", ""):
    assert speed.peak_flops(unknown) is None


def test_a_run_traces_the_steps_that_it_is_asked_for(tmp_path):
  config = tiny_config(
    tmp_path,
    phase_order=("psnr",),
    profile={"num_steps": 2, "after_steps": 1},
  )
  out = io.StringIO()
  loop.train(config, tmp_path / "run", console=rich.console.Console(file=out))
  assert "traced steps 2 to 3" in out.getvalue()
  (trace,) = (tmp_path / "run/profile/psnr").rglob("*.xplane.pb")
  found = jax.profiler.ProfileData.from_file(str(trace))
  steps = {
    dict(event.stats).get("step_num")
    for plane in found.planes
    for line in plane.lines
    for event in line.events
    if event.name == "psnr"
  }
  assert steps == {2, 3}


def test_a_trace_that_is_not_whole_is_ended(tmp_path):
  with speed.Trace(tmp_path, first=1, count=5) as trace:
    trace.before(1)
    assert not trace.after(1, None)
  assert list(tmp_path.rglob("*.xplane.pb"))
