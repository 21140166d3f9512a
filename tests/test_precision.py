"""Programs under `JAX_ENABLE_X64`, and results of the dtypes that are told."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import esrgan_jax
from esrgan_jax import metrics
from tests.networks import random_params

SMALL = {"num_feat": 8, "num_block": 1, "num_grow_ch": 4}
OPTIONS = {"crop_border": 1, "y_channel": True}

# Of images: what has the dtype that sums are in.
SUMS = {
  "l1": lambda x: esrgan_jax.l1_loss(x, x),
  "mse": lambda x: esrgan_jax.mse_loss(x, x),
  "charbonnier": lambda x: esrgan_jax.charbonnier_loss(
    x, x, epsilon=np.float64(1e-6)
  ),
  "perceptual": lambda x: esrgan_jax.perceptual_loss(
    {"a": x}, {"a": x}, layer_weights={"a": np.float64(0.5)}
  ),
  "relativistic_generator": lambda x: esrgan_jax.relativistic_generator_loss(
    x, x
  ),
  "relativistic": lambda x: esrgan_jax.relativistic_discriminator_loss(x, x),
  "vanilla_generator": lambda x: esrgan_jax.vanilla_generator_loss(x),
  "vanilla": lambda x: esrgan_jax.vanilla_discriminator_loss(x, x),
  "wasserstein_generator": lambda x: esrgan_jax.wasserstein_generator_loss(x),
  "wasserstein": lambda x: esrgan_jax.wasserstein_critic_loss(x, x),
  "penalty": lambda x: esrgan_jax.gradient_penalty(
    jax.random.key(0), lambda x: x.sum((1, 2, 3)), x, x
  ),
  "rgb_to_y": esrgan_jax.rgb_to_y,
  "psnr": lambda x: esrgan_jax.psnr(x, x, **OPTIONS),
  "ssim": lambda x: esrgan_jax.ssim(x, x, **OPTIONS),
  "ssim_map": lambda x: metrics.ssim_map(x, x),
}
# And what keeps that of the images.
KEPT = {
  "imresize": lambda x: esrgan_jax.imresize(x, scale=0.4),
  "rounded": lambda x: esrgan_jax.imresize(x, scale=2, round_between=True),
  "interpolate": lambda x: esrgan_jax.interpolate_params(
    x, x, alpha=np.float64(0.5)
  ),
  "unshuffle": lambda x: esrgan_jax.pixel_unshuffle(x, factor=2),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", [*SUMS, *KEPT])
def test_results_have_the_dtype_that_is_told(name, dtype):
  with jax.enable_x64(True):
    image = jax.ShapeDtypeStruct((2, 16, 16, 3), dtype)
    found = jax.eval_shape((SUMS | KEPT)[name], image)
  is_kept = name in KEPT or dtype == jnp.float64
  assert found.dtype == (dtype if is_kept else jnp.float32)
  assert not found.weak_type


def _network(**fields):
  net = esrgan_jax.RRDBNet(**SMALL, **fields)
  image = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
  return net, random_params(net, image), image


def test_a_program_in_32_bits_has_nothing_in_64():
  net, params, image = _network()

  def run(params, image):
    sr = net.apply({"params": params}, image)
    functions = (SUMS | KEPT).values()
    return jax.grad(lambda sr: sum(f(sr).sum() for f in functions))(sr)

  with jax.enable_x64(True):
    program = jax.make_jaxpr(run)(params, image)
    init = jax.eval_shape(net.init, jax.random.key(0), image)
    vgg = jax.eval_shape(esrgan_jax.init_vgg19, jax.random.key(0))
  assert not re.findall(r"f64\[\d", str(program))  # But for numbers.
  kinds = {leaf.dtype for leaf in jax.tree.leaves((init, vgg))}
  assert kinds == {np.dtype(np.float32)}


@pytest.mark.slow
def test_a_network_in_float64_is_the_plain_one():
  net, params, image = _network()
  expected = net.apply({"params": params}, image)
  with jax.enable_x64(True):
    wide = net.clone(dtype=jnp.float64)
    run = jax.jit(lambda p, x: wide.apply({"params": p}, x))
    found = run(params, image.astype(np.float64))
    assert found.dtype == jnp.float64
    jaxpr = jax.make_jaxpr(run)(params, image)
    plain = jax.make_jaxpr(
      jax.jit(lambda p, x: wide.clone(form="plain").apply({"params": p}, x))
    )(params, image)
  assert str(jaxpr) == str(plain)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_images_are_upscaled_with_64_bits_as_without(scale):
  net, params, _ = _network(scale=scale)
  image = np.random.default_rng(1).integers(0, 256, (13, 9, 3), np.uint8)
  upscale = functools.partial(
    esrgan_jax.Upscaler(net, params, devices=jax.devices()[:1]).upscale,
    tile=8,
  )
  expected = upscale(image)
  with jax.enable_x64(True):
    found = upscale(image)
    fresh = esrgan_jax.Upscaler(net, params, devices=jax.devices()[:1])
    again = fresh.upscale(image, tile=8)
    wide = fresh.upscale(image / 255, tile=8)
  np.testing.assert_array_equal(found, expected)
  assert np.abs(again.astype(int) - expected).max() <= 1
  assert wide.dtype == np.float32
