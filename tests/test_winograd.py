"""Winograd's form of 3x3 convolutions against plain sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.ops import convolution, winograd


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def convolve_in_float64(x, kernel):
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
  return np.einsum("nhwcij,ijcf->nhwf", windows, kernel)


def correlate_in_float64(x, dy):
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
  return np.einsum("nhwcij,nhwf->ijcf", windows, dy)


def assert_close(actual, expected):
  atol = 1e-5 * np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
  "size", [(1, 1), (3, 2), (4, 5), (5, 7), (2, 8), (12, 13)]
)
def test_equals_plain_sums_for_every_remainder_of_the_width(size):
  x, kernel = draw(2, *size, 5), draw(3, 3, 5, 4, seed=1)
  dy = draw(2, *size, 4, seed=2)
  y = jax.jit(winograd.convolve)(*map(jnp.float32, (x, kernel)))
  assert_close(y, convolve_in_float64(x, kernel))
  gradient = jax.jit(winograd.kernel_gradient)(*map(jnp.float32, (x, dy)))
  assert_close(gradient, correlate_in_float64(x, dy))
  gradient = jax.jit(winograd.input_gradient)(*map(jnp.float32, (dy, kernel)))
  transposed = kernel[::-1, ::-1].swapaxes(2, 3)
  assert_close(gradient, convolve_in_float64(dy, transposed))


def test_rounding_stays_small_with_many_channels():
  x, kernel = draw(1, 16, 16, 256), draw(3, 3, 256, 32, seed=1) / 48
  dy = draw(1, 16, 16, 32, seed=2)
  y = jax.jit(winograd.convolve)(*map(jnp.float32, (x, kernel)))
  assert_close(y, convolve_in_float64(x, kernel))
  gradient = jax.jit(winograd.kernel_gradient)(*map(jnp.float32, (x, dy)))
  assert_close(gradient, correlate_in_float64(x, dy))


@pytest.mark.parametrize(
  ("x", "kernel", "pays"),
  [
    ((1, 32, 32, 64), (3, 3, 64, 64), True),
    ((1, 32, 32, 3), (3, 3, 3, 64), False),
    ((1, 32, 32, 64), (3, 3, 64, 3), False),
    ((1, 16, 16, 64), (3, 3, 64, 64), False),
    ((1, 32, 32, 64), (4, 4, 64, 64), False),
    ((2, 8, 8, 512), (3, 3, 512, 512), False),
    ((64, 5, 5, 64), (3, 3, 64, 64), False),
  ],
)
def test_it_runs_on_cpu_where_it_pays(x, kernel, pays):
  x, kernel = draw(*x), draw(*kernel, seed=1)
  x, kernel = jnp.float32(x), jnp.float32(kernel)
  assert winograd.pays(x, kernel) == pays
  half = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
  assert not winograd.pays(*half)
  program = jax.jit(convolution.conv).lower(x, kernel).as_text()
  assert ("x1x64x64xf32" in program) == pays  # Kernels of 3x1.
  for stride, pad in ((2, 1), (1, 0)):
    assert_close(
      convolution.convolve_on_cpu(x, kernel, stride=stride, pad=pad),
      convolution.convolve(x, kernel, stride=stride, pad=pad),
    )


def test_gradients_of_gradients():
  x = jnp.float32(draw(1, 32, 32, 64))
  kernel = jnp.float32(draw(3, 3, 64, 64, seed=1)) / 24
  assert winograd.pays(x, kernel)

  def penalty(conv, kernel):
    slope = jax.grad(lambda x: jnp.sin(conv(x, kernel)).sum())(x)
    return jnp.square(slope).sum()

  actual, expected = (
    jax.jit(jax.grad(lambda kernel, conv=conv: penalty(conv, kernel)))(kernel)
    for conv in (convolution.conv, convolution.convolve)
  )
  error = np.linalg.norm(actual - expected)
  assert error < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("size", [(1, 5, 7), (2, 64, 64), (1, 130, 127)])
def test_products_of_bfloat16_are_summed_in_float32(size):
  # The second is just one strip, the third has three, the last one shorter.
  x, kernel = draw(*size, 48), draw(3, 3, 48, 32, seed=1)
  exact = convolve_in_float64(x, kernel)
  top = np.abs(exact).max()
  x, kernel = jnp.float32(x), jnp.float32(kernel)
  with jax.default_matmul_precision("bfloat16"):
    lowered = jax.jit(winograd.convolve).lower(x, kernel)
  y = lowered.compile()(x, kernel)
  assert y.dtype == jnp.float32
  error = np.abs(y - exact)
  assert 1e-4 < error.mean() / top < 2e-3
  assert error.max() < 2e-2 * top
  rounded = y.astype(jnp.bfloat16).astype(jnp.float32)
  assert float((y != rounded).mean()) > 0.9
  assert "convolution" not in lowered.as_text()
  assert "convolution" in jax.jit(winograd.convolve).lower(x, kernel).as_text()


def test_products_of_bfloat16_have_gradients():
  x, kernel = jnp.float32(draw(1, 96, 96, 32)), jnp.float32(draw(3, 3, 32, 32))

  def loss(x, kernel):
    return (winograd.convolve(x, kernel) ** 2).mean()

  expected = jax.grad(loss, argnums=(0, 1))(x, kernel)
  with jax.default_matmul_precision("bfloat16"):
    found = jax.grad(loss, argnums=(0, 1))(x, kernel)
  for a, b in zip(found, expected, strict=True):
    assert float(jnp.abs(a - b).max()) < 0.05 * float(jnp.abs(b).max())
    assert float(jnp.abs(a - b).max()) > 0
