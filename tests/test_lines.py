"""The dense blocks by lines, beside the plain form of the network at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.ops import lines
from tests import networks

SMALL = {"num_feat": 6, "num_grow_ch": 4}


@pytest.fixture(name="always")
def _always(monkeypatch):
  """Small images are cut as well, whatever the machine."""
  monkeypatch.setattr(lines, "_MIN_PIXELS", 1)
  monkeypatch.setattr(lines, "_PIXELS", 1)


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


def _images(n, height, width):
  random = np.random.default_rng(1)
  valid = np.ones((n, height, width, 1), np.bool_)
  valid[-1, height // 2 :] = False
  valid[0, :, -5:] = False
  image = random.random((n, height, width, 3), np.float32)
  return jnp.asarray(image), jnp.asarray(valid)


def _run(net, variables, image, *masks):
  return net.apply(variables, image, *masks, method="features")


def _assert_close(actual, expected):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-5)


def _rows(n, height, width):
  return lines.count_rows((n, height, width, 6), layers=5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
  "height", [23, *(pytest.param(h, marks=pytest.mark.slow) for h in (3, 36))]
)
def test_lines_are_the_image(always, masked, height):
  fast, plain, variables = _nets(**SMALL)
  image, valid = _images(2, height, 11)
  assert _rows(2, height, 11) is not None
  masks = (valid,) if masked else ()
  found, expected = (
    _run(net, variables, image, *masks) for net in (fast, plain)
  )
  assert found.shape == expected.shape
  _assert_close(found, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_at_the_published_width(monkeypatch, masked):
  monkeypatch.setattr(lines, "_MIN_PIXELS", 1)
  fast, plain, variables = _nets()
  image, valid = _images(1, 66, 67)
  masks = (valid,) if masked else ()
  _assert_close(
    _run(fast, variables, image, *masks),
    _run(plain, variables, image, *masks),
  )


def test_what_is_differentiated_is_the_same(always):
  fast, plain, variables = _nets(**SMALL)
  image, valid = _images(2, 24, 9)

  def loss(net, variables, image):
    feat = _run(net, variables, image, valid)
    return (feat * feat).mean(), feat

  def run(net):
    return jax.value_and_grad(
      lambda *args: loss(net, *args), argnums=(0, 1), has_aux=True
    )(variables, image)

  found, expected = run(fast), run(plain)
  jax.tree.map(_assert_close, found, expected)
  # And the same, undifferentiated, by lines.
  _assert_close(found[0][1], loss(fast, variables, image)[1])


def test_lines_are_about_alike_and_end_with_the_image():
  for cores in (1, 2, 16):
    for h in (1, 100, 128, 608, 3000):
      for w in (1, 50, 672, 4000):
        rows = lines.count_rows((2, h, w, 64), layers=5, cores=cores)
        if 2 * h * w < 2**13 * cores:
          assert rows is None
          continue
        # Hardly any of what is computed lies below the image.
        steps = -(-(h + 4) // rows)
        assert steps * rows - (h + 4) < steps
        assert rows <= 8 * cores
        assert rows <= 8 or rows * 2 * w <= 2**11 * cores


def test_a_size_that_is_not_known_is_not_cut():
  (size,) = jax.export.symbolic_shape("h")
  assert lines.count_rows((1, size, 512, 64), layers=5) is None
  assert lines.count_rows((0, 512, 512, 64), layers=5) is None


@pytest.fixture(scope="module", name="in_four")
def _in_four():
  """A network, four images, and what the plain form makes of them."""
  fast, plain, variables = _nets(**SMALL)
  image, valid = _images(4, 24, 9)
  return fast, variables, image, valid, _run(plain, variables, image, valid)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_under_a_mesh(always, in_four, kind):
  fast, variables, image, valid, expected = in_four
  mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
  whole, parted = (NamedSharding(mesh, P(*axes)) for axes in ((), ("data",)))
  run = jax.jit(functools.partial(_run, fast))
  arrays = (
    jax.device_put(variables, whole),
    *jax.device_put((image, valid), parted),
  )
  feat = run(*arrays)
  assert feat.sharding.spec[0] == "data"
  _assert_close(feat, expected)
  with jax.set_mesh(mesh):
    _assert_close(run(*arrays), expected)


def test_in_a_shard_map_and_a_vmap(always, in_four):
  fast, variables, image, valid, expected = in_four
  run = functools.partial(_run, fast)
  sharded = jax.shard_map(
    run,
    mesh=jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)),
    in_specs=(P(), P("data"), P("data")),
    out_specs=P("data"),
  )
  _assert_close(jax.jit(sharded)(variables, image, valid), expected)
  several = jax.tree.map(lambda x: jnp.stack([x, -x]), variables)
  found = jax.vmap(run, (0, None, None))(several, image, valid)
  _assert_close(found[0], expected)
