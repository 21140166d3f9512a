"""Convolutions' own gradients against JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.ops import convolution


def draw(*shape, seed=0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
  ("side", "stride", "pad", "size"),
  [
    (3, 1, 1, (5, 6)),
    (2, 1, 1, (5, 6)),
    (1, 1, 0, (4, 3)),
    (4, 2, 1, (8, 6)),
    (4, 2, 1, (7, 9)),
    (3, 2, 1, (6, 7)),
  ],
)
def test_gradients_of_every_form_are_jaxs(side, stride, pad, size):
  x, kernel = draw(2, *size, 3), draw(side, side, 3, 4, seed=1)
  window = {"stride": stride, "pad": pad}

  @jax.jit
  def run(x, kernel):
    y, expected = jax.vjp(
      lambda x, k: convolution.convolve(x, k, **window), x, kernel
    )
    ours_y, ours = jax.vjp(
      lambda x, k: convolution.conv(x, k, stride, pad), x, kernel
    )
    dy = jnp.cos(y)
    kernel_gradients = [
      by(x, dy, side=side, **window)
      for by in (
        convolution.kernel_gradient_by_conv,
        convolution.kernel_gradient_by_dot,
      )
    ]
    input_gradients = [
      convolution.input_gradient_by_transposition(
        dy, kernel, shape=x.shape, **window
      )
    ]
    if (side, stride) == (4, 2) and size[0] % 2 == 0:
      by_parity = convolution.input_gradient_by_parity(dy, kernel)
      input_gradients.append(by_parity)
    return y, ours_y, expected(dy), ours(dy), input_gradients, kernel_gradients

  y, ours_y, (dx, dk), (ours_dx, ours_dk), dxs, dks = run(x, kernel)
  np.testing.assert_allclose(ours_y, y, atol=1e-4)
  for actual in (ours_dx, *dxs):
    np.testing.assert_allclose(actual, dx, atol=1e-4)
  for actual in (ours_dk, *dks):
    np.testing.assert_allclose(actual, dk, atol=1e-4)


@pytest.mark.parametrize(
  ("side", "stride", "in_ch", "out_ch", "size"),
  [
    (3, 1, 256, 256, (8, 9)),  # Kernels too large to transpose.
    (4, 2, 256, 256, (4, 6)),
    (3, 1, 64, 64, (32, 33)),  # Winograd's form.
    (3, 1, 32, 3, (6, 5)),  # The narrower side's taps.
    (4, 2, 16, 16, (32, 34)),  # A product a tap.
  ],
)
def test_gradients_of_wide_convolutions_are_jaxs(
  side, stride, in_ch, out_ch, size
):
  x = draw(1, *size, in_ch)
  kernel = draw(side, side, in_ch, out_ch, seed=1) / (side * in_ch**0.5)

  @jax.jit
  def run(x, kernel):
    y, expected = jax.vjp(
      lambda x, k: convolution.convolve(x, k, stride=stride), x, kernel
    )
    ours_y, ours = jax.vjp(
      lambda x, k: convolution.conv(x, k, stride), x, kernel
    )
    dy = jnp.cos(y)
    return (ours_y, *ours(dy)), (y, *expected(dy))

  for actual, expected in zip(*run(x, kernel), strict=True):
    atol = 1e-5 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


def test_doubling_is_the_transpose():
  x, kernel = draw(2, 3, 4, 5), draw(4, 4, 2, 5, seed=1)

  @jax.jit
  def run(x, kernel):
    y, ours = jax.vjp(convolution.conv_doubling, x, kernel)
    expected_y, expected = jax.vjp(
      lambda x, kernel: convolution.input_gradient_by_transposition(
        x, kernel, shape=(2, 6, 8, 2), stride=2, pad=1
      ),
      x,
      kernel,
    )
    return (y, *ours(jnp.cos(y))), (expected_y, *expected(jnp.cos(y)))

  for actual, expected in zip(*run(x, kernel), strict=True):
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_gradients_have_gradients():
  x, kernel = draw(2, 6, 6, 2), draw(4, 4, 2, 3, seed=1)

  def penalty(conv, kernel):
    slope = jax.grad(lambda x: jnp.sin(conv(x, kernel)).sum())(x)
    return jnp.square(slope).sum()

  def gradient(conv):
    return jax.jit(jax.grad(lambda kernel: penalty(conv, kernel)))(kernel)

  actual = gradient(lambda x, k: convolution.conv(x, k, 2))
  expected = gradient(lambda x, k: convolution.convolve(x, k, stride=2))
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_another_result_dtype():
  x = draw(1, 4, 4, 2).astype(jnp.bfloat16)
  kernel = draw(3, 3, 2, 3).astype(jnp.bfloat16)
  run = lambda x: convolution.conv(x, kernel, 1, 1, jnp.float32)  # noqa: E731
  assert run(x).dtype == jnp.float32
  assert jax.grad(lambda x: run(x).sum())(x).dtype == jnp.bfloat16


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_biass_gradient_is_jaxs(dtype, products):
  """Of more pixels than bfloat16 counts to, and however products are made."""
  x, bias = draw(3, 16, 20, 5).astype(dtype), draw(5, seed=1).astype(dtype)
  dy = draw(*x.shape, seed=2).astype(dtype)

  @jax.jit
  def run(x, bias, dy):
    y, vjp = jax.vjp(convolution.add_bias, x, bias)
    return y, *vjp(dy)

  with jax.default_matmul_precision(products):
    y, d_x, d_bias = run(x, bias, dy)
  assert (y == x + bias.reshape(1, 1, 1, -1)).all()
  assert (d_x == dy).all()
  assert d_bias.dtype == dtype
  expected = np.asarray(dy, np.float64).sum((0, 1, 2))
  rounding = 1e-4 if dtype == jnp.float32 else 0.3  # Of a sum of some 30.
  np.testing.assert_allclose(
    np.asarray(d_bias, np.float64), expected, atol=rounding
  )
