"""Every form of the dense block against the plain one, concatenated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models import reference
from esrgan_jax.ops import convolution, dense_block, winograd

FORMS = {
  "cpu": (
    functools.partial(
      dense_block.forward_exact, convolve=convolution.convolve_on_cpu
    ),
    functools.partial(
      dense_block.backward_exact,
      convolve=convolution.convolve_on_cpu,
      correlate=convolution.kernel_gradient_on_cpu,
    ),
  ),
  "winograd": (
    functools.partial(dense_block.forward_exact, convolve=winograd.convolve),
    functools.partial(
      dense_block.backward_exact,
      convolve=winograd.convolve,
      correlate=winograd.kernel_gradient,
    ),
  ),
  "exact": (dense_block.forward_exact, dense_block.backward_exact),
  "padded": (dense_block.forward_padded, dense_block.backward_padded),
}


def draw(*shape, seed=1):
  random = np.random.default_rng(seed)
  return (random.random(shape) - 0.5).astype(np.float32)


def draw_convs(num, feat, grow):
  widths = [grow] * (num - 1) + [feat]
  return [
    (draw(3, 3, feat + i * grow, g, seed=i), draw(g, seed=i))
    for i, g in enumerate(widths)
  ]


def run(form, x, convs, valid, d_out):
  """The output, and the gradients of the input and of each convolution."""
  forward, backward = FORMS[form]
  grouped, regroup = jax.vjp(dense_block.group_convs, convs)
  out, grown = forward(x, grouped, valid)
  d_x, d_grouped = backward(x, grown, grouped, valid, d_out)
  return out, d_x, regroup(d_grouped)[0]


def run_plain(x, convs, valid, d_out):
  def plain(x, convs):
    params = {
      f"conv{i}": {"kernel": kernel, "bias": bias}
      for i, (kernel, bias) in enumerate(convs, 1)
    }
    return reference.dense_block(params, x, valid)

  out, vjp = jax.vjp(plain, x, convs)
  return out, *vjp(d_out)


def assert_close(actual, expected):
  actual, expected = jax.device_get((actual, expected))
  for ours, wanted in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())


@functools.cache
def a_case(num, masked):
  """Arguments of a dense block, and what the plain form makes of them."""
  convs = draw_convs(num, 6, 4)
  x, d_out = draw(2, 5, 6, 6, seed=7), draw(2, 5, 6, 6, seed=8)
  valid = None
  if masked:
    valid = np.ones((2, 5, 6, 1), np.float32)
    valid[:, 4:] = valid[0, :, 2:] = 0
  arguments = x, convs, valid, d_out
  return arguments, jax.jit(run_plain)(*arguments)


# A mask is the business of forward and backward, not of the convolution in it.
@pytest.mark.parametrize(
  ("form", "num", "masked"),
  [
    ("exact", 5, False),
    ("exact", 5, True),
    ("exact", 2, False),
    ("padded", 5, False),
    ("padded", 5, True),
    ("padded", 2, False),
    ("cpu", 5, False),
    ("winograd", 5, True),
    pytest.param("exact", 2, True, marks=pytest.mark.slow),
    pytest.param("padded", 2, True, marks=pytest.mark.slow),
    pytest.param("cpu", 5, True, marks=pytest.mark.slow),
    pytest.param("winograd", 5, False, marks=pytest.mark.slow),
  ],
)
def test_every_form_equals_concatenation(form, num, masked):
  arguments, expected = a_case(num, masked)
  assert_close(jax.jit(run, static_argnums=0)(form, *arguments), expected)


def test_the_form_on_this_platform_is_what_jax_grad_gives():
  (x, convs, _, d_out), expected = a_case(5, masked=False)

  @jax.jit
  def differentiate(x, convs):
    out, vjp = jax.vjp(
      lambda x, convs: dense_block.dense_block(
        x, dense_block.group_convs(convs)
      ),
      x,
      convs,
    )
    return out, *vjp(d_out)

  assert_close(differentiate(x, convs), expected)


@pytest.mark.parametrize("form", ["exact", "padded"])
def test_bfloat16_stays_within_its_rounding(form):
  # Biases far from zero: rounding must not decide on which side of the
  # rectifier a value falls, where the gradient jumps.
  convs = [
    (kernel * 0.1, np.sign(bias)) for kernel, bias in draw_convs(5, 16, 8)
  ]
  x, d_out = draw(2, 6, 6, 16, seed=7), draw(2, 6, 6, 16, seed=8)

  def cast(tree):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)

  compute = jax.jit(run, static_argnums=0)
  for actual, expected in zip(
    *map(
      jax.tree.leaves,
      jax.device_get(
        (
          compute(form, cast(x), cast(convs), None, cast(d_out)),
          compute(form, x, convs, None, d_out),
        )
      ),
    ),
    strict=True,
  ):
    assert actual.dtype == jnp.bfloat16
    error = np.linalg.norm(actual.astype(np.float32) - expected)
    assert error < 0.02 * np.linalg.norm(expected)  # 8 bits: 0.004 a rounding.
