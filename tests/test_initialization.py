"""The bilinear start of a generator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models.initialization import start_bilinear
from esrgan_jax.models.rrdb import RRDBNet
from tests.networks import random_params


def _params(**fields):
  net = RRDBNet(num_feat=6, num_block=1, num_grow_ch=2, **fields)
  return net, random_params(net, np.zeros((1, 8, 8, 3), np.float32))


@pytest.mark.parametrize(
  "scale", [2, 4, pytest.param(8, marks=pytest.mark.slow)]
)
def test_without_its_body_it_is_bilinear_upscaling(scale):
  net, params = _params(scale=scale)
  params = start_bilinear(params)
  params["conv_body"] = jax.tree.map(jnp.zeros_like, params["conv_body"])
  lr = np.random.default_rng(0).random((12, 10, 3), np.float32)
  sr = jax.jit(net.apply)({"params": params}, lr)
  expected = lr
  if scale == 2:  # Unshuffles: of the means of 2x2 pixels.
    expected = lr.reshape(6, 2, 5, 2, 3).mean(axis=(1, 3))
  while len(expected) < scale * len(lr):
    size = (2 * len(expected), 2 * expected.shape[1], 3)
    expected = jax.image.resize(expected, size, "bilinear")
  # The network pads with black, so that borders differ.
  inner = slice(8, -8)
  np.testing.assert_allclose(
    sr[inner, inner], expected[inner, inner], atol=1e-5
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
  _, params = _params(num_in_ch=3, num_out_ch=1)
  with pytest.raises(ValueError, match=r"got 3, 1 and 6.*published"):
    start_bilinear(params)
  del params["conv_hr"]
  with pytest.raises(ValueError, match=r"has no conv_hr; .*published"):
    start_bilinear(params)
