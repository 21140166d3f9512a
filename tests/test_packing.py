"""Pairs of pixels in the channels against the same layers without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models import discriminators, vgg
from esrgan_jax.ops import convolution, layout, packing, rrdb


def draw(*shape, seed=0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.standard_normal(shape), jnp.float32)


def run_with_gradients(function, *arguments):
  """The result, and the gradients for a result's gradient drawn at random."""

  @jax.jit
  def run(*arguments):
    y, vjp = jax.vjp(function, *arguments)
    dy = jax.tree.map(lambda y: draw(*y.shape, seed=9).astype(y.dtype), y)
    return y, vjp(dy)

  return jax.tree.leaves(run(*arguments))


def assert_same(packed, plain, *arguments, tolerance=1e-5):
  for actual, expected in zip(
    jax.device_get(run_with_gradients(packed, *arguments)),
    jax.device_get(run_with_gradients(plain, *arguments)),
    strict=True,
  ):
    assert actual.dtype == expected.dtype
    atol = tolerance * float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
  ("side", "stride", "pad", "packs"),
  [(3, 1, 1, True), (5, 1, 2, True), (1, 1, 0, True), (4, 2, 1, True),
   (4, 2, 1, False), (2, 2, 0, False), (6, 2, 2, False)],
)  # fmt: skip
def test_convolution(side, stride, pad, packs):
  def packed(x, kernel):
    y = packing.convolve(
      packing.pack(x), kernel, stride=stride, pad=pad, packs=packs
    )
    return packing.unpack(y) if packs else y

  def plain(x, kernel):
    return convolution.convolve(x, kernel, stride=stride, pad=pad)

  assert_same(packed, plain, draw(2, 6, 8, 3), draw(side, side, 3, 5, seed=1))


def test_doubling():
  assert_same(
    lambda x, kernel: packing.unpack(packing.conv_doubling(x, kernel)),
    convolution.conv_doubling,
    draw(2, 3, 5, 4),
    draw(4, 4, 3, 4, seed=1),
  )


@pytest.mark.parametrize("height", [6, 7])
def test_pooling(height):
  x = draw(2, height, 8, 3)
  assert_same(
    lambda x: packing.max_pool(packing.pack(x)), vgg._max_pool_by_window, x
  )


@pytest.mark.parametrize("size", [(16, 16), (17, 18)])
def test_vggs_first_stage(size):
  layers = ("conv1_1", "relu1_2", "pool1", "conv2_1")
  params = {
    name: {"kernel": draw(3, 3, width, 8, seed=i), "bias": draw(8, seed=i + 9)}
    for i, (name, width) in enumerate(
      (("conv1_1", 3), ("conv1_2", 8), ("conv2_1", 8)), start=1
    )
  }

  def run(packed):
    return lambda x, params: vgg._run_layers(
      x, params, layers=layers, names=vgg.LAYERS[:6], packed=packed
    )

  assert_same(run(True), run(False), draw(2, *size, 3), params)


@pytest.mark.parametrize("bias", [None, draw(4, seed=3)])
def test_the_discriminators_first_stage(bias):
  first = draw(3, 3, 3, 4, seed=1), draw(4, seed=2)
  second = draw(4, 4, 4, 4, seed=4), bias
  assert_same(
    discriminators._run_stage_packed,
    discriminators._run_stage,
    draw(2, 8, 6, 3),
    first,
    second,
  )


@pytest.mark.parametrize(
  ("factors", "masked"),
  [
    ((2,), True),
    ((2, 2), False),
    ((3, 2), True),
    pytest.param((2,), False, marks=pytest.mark.slow),
    pytest.param((2, 2), True, marks=pytest.mark.slow),
    pytest.param((3, 2), False, marks=pytest.mark.slow),
  ],
)
def test_the_generators_last_layers(factors, masked):
  def draw_conv(in_ch, out_ch, seed):
    return draw(3, 3, in_ch, out_ch, seed=seed), draw(out_ch, seed=seed + 10)

  ups = [draw_conv(4, 4, seed) for seed in range(len(factors))]
  convs = ups, draw_conv(4, 4, 5), draw_conv(4, 3, 6)
  valid = None
  if masked:
    valid = jnp.ones((2, 3, 5, 1), jnp.float32)
    valid = valid.at[:, 2:].set(0).at[0, :, 3:].set(0)

  def run(packed):
    return lambda feat, convs: rrdb.upsample(
      feat, valid, *convs, factors=factors, packed=packed
    )

  assert_same(run(True), run(False), draw(2, 3, 5, 4), convs)


def test_bfloat16_loses_nothing_to_packing():
  """Zeros add nothing: only the order of the sums may differ."""
  x = draw(2, 6, 8, 32).astype(jnp.bfloat16)
  kernel = draw(3, 3, 32, 32, seed=1).astype(jnp.bfloat16)

  def packed(x, kernel):
    return packing.unpack(packing.convolve(packing.pack(x), kernel))

  assert_same(packed, convolution.convolve, x, kernel, tolerance=0.01)


@pytest.mark.parametrize(
  "shape", [(), (5,), (3, 3, 160, 32), (2, 3, 3, 64, 192), (8192, 100)]
)
def test_layouts_change_no_value(shape):
  x = draw(*shape)
  for keep in (layout.keep_compact, layout.keep_last_axis_minor):
    np.testing.assert_array_equal(jax.jit(keep)(x), x)
    gradient = jax.jit(jax.grad(lambda x, keep=keep: jnp.sin(keep(x)).sum()))(x)
    np.testing.assert_allclose(gradient, jnp.cos(x), rtol=1e-5, atol=1e-6)
