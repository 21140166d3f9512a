"""The bilinear start of a generator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.training.initialization import start_bilinear
from tests.networks import random_params


def _params(**fields):
  net = RRDBNet(num_feat=6, num_block=1, num_grow_ch=2, **fields)
  return net, random_params(net, np.zeros((1, 8, 8, 3), np.float32))


@pytest.mark.parametrize("scale", [4, 8])
def test_without_its_body_it_is_bilinear_upscaling(scale):
  net, params = _params(scale=scale)
  params = start_bilinear(params)
  params["conv_body"] = jax.tree.map(jnp.zeros_like, params["conv_body"])
  lr = np.random.default_rng(0).random((12, 10, 3), np.float32)
  sr = jax.jit(net.apply)({"params": params}, lr)
  expected = lr
  size = lr.shape
  for _ in range(int(np.log2(scale))):
    size = (2 * size[0], 2 * size[1], 3)
    expected = jax.image.resize(expected, size, "bilinear")
  # The network pads with black, so that borders differ.
  inner = slice(scale, -scale)
  np.testing.assert_allclose(
    sr[inner, inner], expected[inner, inner], atol=1e-6
  )


def test_only_the_path_changes():
  _, params = _params()
  changed = start_bilinear(params)
  assert jax.tree.structure(changed) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, changed["body"], params["body"])
  np.testing.assert_array_equal(
    changed["conv_first"]["kernel"][..., 3:],
    params["conv_first"]["kernel"][..., 3:],
  )


def test_other_networks_are_refused():
  _, params = _params(scale=2)  # Unshuffles: 12 channels in.
  with pytest.raises(ValueError, match="got 12, 3 and 6"):
    start_bilinear(params)
