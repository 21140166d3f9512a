"""The choice by platform: the same program, whether it is made soon or late."""

import functools

import jax
import jax.numpy as jnp
import pytest

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.ops.platforms import by_platform, tracing_for


def choose(x):
  return by_platform(
    x, default=lambda x: x + 1, cpu=lambda x: x + 2, tpu=lambda x: x + 3
  )


@pytest.mark.parametrize(
  ("platform", "expected"), [("cpu", 2), ("tpu", 3), ("gpu", 1), ("odd", 1)]
)
def test_a_known_platform_decides_while_it_is_traced(platform, expected):
  # Of one function, JAX would keep what it traced first.
  soon, late = (jax.jit(lambda x: choose(x)) for _ in range(2))
  with tracing_for(platform):
    assert soon(0.0) == expected
  # Not any more: this is a CPU.
  assert late(0.0) == 2


def test_a_gpu_of_unknown_kind_is_left_to_lowering():
  def choose(x):
    return by_platform(
      x, default=lambda x: x + 1, cpu=lambda x: x + 2, rocm=lambda x: x + 3
    )

  with tracing_for("gpu"):
    assert jax.jit(choose)(0.0) == 2  # This is a CPU.


@functools.cache
def text_for(platform, known, *, num_feat=64):
  """The program of forward and gradient, fast and at real width."""
  net = RRDBNet(num_feat=num_feat, num_block=1)
  lr = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), lr)
  step = jax.grad(lambda variables, lr: net.apply(variables, lr).sum())
  traced = jax.jit(step)
  if known:
    with tracing_for(platform):
      traced = traced.trace(variables, lr)
  else:
    traced = traced.trace(variables, lr)
  return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_what_was_traced_for_one_platform_is_used_for_no_other(platform):
  other = {"cpu": "tpu", "tpu": "cpu"}[platform]
  text_for(platform, True)
  # Nothing of it has been kept for those that know nothing.
  late = text_for(other, False)
  soon = text_for(other, True)
  assert late.count("convolution(") == soon.count("convolution(")
  assert late.count("dot_general") == soon.count("dot_general")
  assert text_for("cpu", True).count("dot_general") != text_for(
    "tpu", True
  ).count("dot_general")
