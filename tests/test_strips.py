"""The last layers in strips, beside the plain form of the network at once."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.ops import strips
from tests import networks

FACTORS = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}


def _nets(**fields):
  """The fast and the plain form, and parameters whose biases are not zero."""
  fast = RRDBNet(num_block=1, **fields)
  plain = RRDBNet(num_block=1, **fields, form="plain")
  params = networks.random_params(fast, jnp.zeros((1, 8, 8, 3)))
  random = np.random.default_rng(2)
  params = jax.tree.map(
    lambda x: x + random.normal(0, 0.1, x.shape).astype(x.dtype), params
  )
  return fast, plain, {"params": params}


def _features(*shape):
  random = np.random.default_rng(1)
  valid = np.ones((*shape[:-1], 1), np.float32)
  valid[-1, shape[1] // 2 :] = 0
  valid[0, :, -5:] = 0
  feat = random.standard_normal(shape).astype(np.float32)
  return jnp.asarray(feat), jnp.asarray(valid)


def _assert_close(actual, expected):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def _run(net, *arguments):
  return net.apply(*arguments, method="reconstruct")


@pytest.mark.parametrize(
  ("scale", "masked", "height"),
  [
    *((2, True, 24), (3, False, 24), (4, True, 24), (8, False, 24)),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in itertools.product(FACTORS, (False, True), (23, 40))
    ),
  ],
)
def test_strips_are_the_image(monkeypatch, scale, masked, height):
  monkeypatch.setattr(strips, "_STRIP_PIXELS", 1)
  fast, plain, variables = _nets(
    num_feat=6, num_grow_ch=4, scale=scale, unshuffle=1
  )
  feat, valid = _features(2, height, 9, 6)
  last = scale // FACTORS[scale][-1]
  shape = (2, height * last, 9 * last, 6)
  rows = strips.count_rows(shape)
  assert 8 >= rows > 4
  masks = (valid,) if masked else ()
  found, expected = (
    _run(net, variables, feat, *masks) for net in (fast, plain)
  )
  assert found.shape == (2, height * scale, 9 * scale, 3)
  _assert_close(found, expected)


@pytest.mark.parametrize(
  "masked", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_at_the_published_width(masked):
  fast, plain, variables = _nets()
  feat, valid = _features(2, 70, 67, 64)
  assert strips.count_rows((2, 140, 134, 64)) == 28
  masks = (valid,) if masked else ()
  _assert_close(*(_run(net, variables, feat, *masks) for net in (fast, plain)))


def test_what_is_differentiated_is_the_same(monkeypatch):
  monkeypatch.setattr(strips, "_STRIP_PIXELS", 1)
  fast, plain, variables = _nets(num_feat=6, num_grow_ch=4)
  feat, valid = _features(2, 24, 9, 6)

  def loss(net, variables, feat):
    sr = net.apply(variables, feat, valid, method="reconstruct")
    return (sr * sr).mean(), sr

  found, expected = (
    jax.jit(
      jax.value_and_grad(
        functools.partial(loss, net), argnums=(0, 1), has_aux=True
      )
    )(variables, feat)
    for net in (fast, plain)
  )
  jax.tree.map(_assert_close, found, expected)
  # And the same, undifferentiated, in strips.
  _, sr = jax.jit(functools.partial(loss, fast))(variables, feat)
  _assert_close(found[0][1], sr)


def test_half_precision(monkeypatch):
  monkeypatch.setattr(strips, "_STRIP_PIXELS", 1)
  fast, plain, variables = _nets(num_feat=6, num_grow_ch=4, dtype=jnp.bfloat16)
  feat, _ = _features(2, 24, 9, 6)
  assert strips.count_rows((2, 48, 18, 6)) is not None
  found, expected = (
    _run(net, variables, feat.astype(jnp.bfloat16)) for net in (fast, plain)
  )
  assert found.dtype == expected.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=0.03 * expected.max())


def test_strips_are_about_alike_and_of_eight_rows_or_more():
  for h in range(1, 300):
    for w in (1, 50, 4000):
      rows = strips.count_rows((2, h, w, 64))
      if rows is None:
        continue
      count = -(-h // rows)
      assert count >= 3
      assert rows * 2 * w <= 2**13 or rows <= 8
      assert (count - 1) * rows < h <= count * rows


def test_a_size_that_is_not_known_is_not_cut():
  (size,) = jax.export.symbolic_shape("h")
  assert strips.count_rows((1, size, 512, 64)) is None
  assert strips.count_rows((0, 512, 512, 64)) is None


@pytest.fixture(scope="module")
def in_four():
  """A network whose strips are short, four images, and their gradients."""
  fast, plain, variables = _nets(num_feat=6, num_grow_ch=4)
  feat, valid = _features(4, 24, 9, 6)
  return fast, variables, feat, valid, _run(plain, variables, feat, valid)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_under_a_mesh(monkeypatch, in_four, kind):
  monkeypatch.setattr(strips, "_STRIP_PIXELS", 1)
  fast, variables, feat, valid, expected = in_four
  mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
  whole, parted = (NamedSharding(mesh, P(*axes)) for axes in ((), ("data",)))
  run = jax.jit(functools.partial(_run, fast))
  arrays = (
    jax.device_put(variables, whole),
    *jax.device_put((feat, valid), parted),
  )
  sr = run(*arrays)
  assert sr.sharding.spec[0] == "data"
  _assert_close(sr, expected)
  with jax.set_mesh(mesh):
    _assert_close(run(*arrays), expected)


def test_in_a_shard_map_and_a_vmap(monkeypatch, in_four):
  monkeypatch.setattr(strips, "_STRIP_PIXELS", 1)
  fast, variables, feat, valid, expected = in_four
  run = functools.partial(_run, fast)
  sharded = jax.shard_map(
    run,
    mesh=jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)),
    in_specs=(P(), P("data"), P("data")),
    out_specs=P("data"),
  )
  _assert_close(jax.jit(sharded)(variables, feat, valid), expected)
  several = jax.tree.map(lambda x: jnp.stack([x, -x]), variables)
  found = jax.vmap(run, (0, None, None))(several, feat, valid)
  _assert_close(found[0], expected)
  found = jax.vmap(run, (None, 0, 0))(variables, feat, valid)
  _assert_close(found, expected)
