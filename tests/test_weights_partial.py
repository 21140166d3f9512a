"""What a network takes over of another one."""

import jax
import numpy as np
import pytest

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.weights import partial
from tests.networks import random_params

_TINY = {"num_feat": 4, "num_block": 2, "num_grow_ch": 2}
_IMAGE = np.zeros((1, 8, 8, 3), np.float32)


def _params(seed, **fields):
  return random_params(RRDBNet(**_TINY | fields), _IMAGE, seed=seed)


def _names(report):
  return {line.partition(" ")[0] for line in report.left}


def _paths(params):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {"/".join(k.key for k in keys): leaf for keys, leaf in leaves}


@pytest.mark.parametrize(
  ("fields", "left"),
  [
    ({"scale": 2, "unshuffle": 1}, {"conv_up2/kernel", "conv_up2/bias"}),
    ({"scale": 2}, {"conv_first/kernel"}),
    ({"scale": 8}, {"conv_up3/kernel", "conv_up3/bias"}),
    ({}, set()),
  ],
)
def test_another_scale_keeps_the_body(fields, left):
  found, wanted = _params(1, **fields), _params(2)
  params, report = partial.fit(found, wanted)
  assert _names(report) == left
  assert jax.tree.structure(params) == jax.tree.structure(wanted)
  found, wanted, params = map(_paths, (found, wanted, params))
  assert set(report.taken) == wanted.keys() - left
  for path, leaf in params.items():
    source = wanted if path in left else found
    np.testing.assert_array_equal(leaf, source[path], err_msg=path)
  assert str(report).count("\n") == 0


def test_widths_that_differ_leave_what_hangs_on_them():
  params, report = partial.fit(_params(1, num_grow_ch=3), _params(2))
  assert "body/rdb1/conv1/kernel" in _names(report)
  assert "conv_body/kernel" in report.taken
  text = str(report)
  assert "body/rdb1/conv1/bias (2x3 there, 2x2 here)" in text
  assert text.endswith(f"and {len(report.left) - 4} more")
  assert jax.tree.structure(params) == jax.tree.structure(_params(2))


def test_nothing_fits_another_kind_of_network():
  found = {"conv0": {"kernel": np.ones((3, 3, 3, 4), np.float32)}}
  params, report = partial.fit(found, wanted := _params(2))
  assert report.taken == []
  jax.tree.map(np.testing.assert_array_equal, params, wanted)


def test_types_are_those_that_are_wanted():
  found = {"a": np.ones(2, np.float64)}
  params, _ = partial.fit(found, {"a": np.zeros(2, np.float32)})
  assert params["a"].dtype == np.float32
  like = jax.eval_shape(lambda: {"a": np.zeros(2), "b": np.zeros(2)})
  _, report = partial.fit(found, like)
  assert report.left == ["b (absent there, 2 here)"]
