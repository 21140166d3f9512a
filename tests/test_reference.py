"""The plain form of RRDBNet: equal to the fast one, and all that it adds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.test_util import check_grads

from esrgan_jax.models import reference
from esrgan_jax.models.rrdb import RRDBNet

TINY = {"num_feat": 6, "num_block": 2, "num_grow_ch": 4}
# As published, but for the depth: thresholds of fast forms hide below it.
WIDE = {"num_feat": 64, "num_block": 2, "num_grow_ch": 32}


def both(**fields):
  return RRDBNet(**fields), RRDBNet(**fields, form="plain")


def draw_params(net, *, seed=0):
  """Parameters with biases of plus and minus one.

  All of the network matters then, and no value lies so near zero that rounding
  decides on its side of the rectifier, where the gradient jumps.
  """
  side = net.size_multiple
  shapes = jax.eval_shape(
    net.init, jax.random.key(0), jnp.zeros((side, side, 3))
  )
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == "bias":
      return np.sign(random.normal(size=leaf.shape)).astype(np.float32)
    scale = 0.2 / np.sqrt(np.prod(leaf.shape[-4:-1]))
    return random.normal(0, scale, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)["params"]


def draw_image(*shape, seed=1):
  return np.random.default_rng(seed).random(shape).astype(np.float32)


def draw_mask(batch, height, width):
  """Images of several sizes in one array."""
  valid = np.ones((batch, height, width, 1), np.float32)
  valid[:, height - 4 :] = valid[0, :, width // 8 * 4 :] = 0
  return valid


def assert_close(actual, expected):
  actual, expected = jax.device_get((actual, expected))
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def outputs_and_gradients(net, params, lr, valid):
  @jax.jit
  def run(params, lr):
    sr, vjp = jax.vjp(
      lambda params, lr: net.apply({"params": params}, lr, valid), params, lr
    )
    return sr, vjp(draw_image(*sr.shape, seed=9) - 0.5)

  return run(params, lr)


@pytest.mark.parametrize(
  ("fields", "masked"),
  [
    ({"scale": 4, "remat": True, "unroll": 2}, True),
    pytest.param({"scale": 2}, False, marks=pytest.mark.slow),
    pytest.param({"scale": 4}, False, marks=pytest.mark.slow),
    pytest.param({"scale": 3}, True, marks=pytest.mark.slow),
    pytest.param({"scale": 2}, True, marks=pytest.mark.slow),
    pytest.param({"scale": 1}, False, marks=pytest.mark.slow),
    pytest.param({"scale": 2, "unshuffle": 1}, False, marks=pytest.mark.slow),
  ],
)
def test_both_forms_compute_the_same(fields, masked):
  fast, plain = both(**TINY, **fields)
  params = draw_params(fast)
  lr = draw_image(2, 8, 12, 3)
  valid = draw_mask(2, 8, 12) if masked else None
  assert_close(
    outputs_and_gradients(fast, params, lr, valid),
    outputs_and_gradients(plain, params, lr, valid),
  )


@pytest.mark.slow
def test_both_forms_compute_the_same_at_the_published_width():
  fast, plain = both(**WIDE)
  params, lr = draw_params(fast), draw_image(1, 20, 24, 3)
  valid = draw_mask(1, 20, 24)
  assert_close(
    outputs_and_gradients(fast, params, lr, valid),
    outputs_and_gradients(plain, params, lr, valid),
  )


@pytest.mark.slow
def test_halves_of_both_forms_fit_together():
  fast, plain = both(**TINY)
  variables = {"params": draw_params(fast)}
  lr, valid = draw_image(2, 8, 12, 3), draw_mask(2, 8, 12)
  feat = plain.apply(variables, lr, valid, method="features")
  assert_close(feat, fast.apply(variables, lr, valid, method="features"))
  for form in (fast, plain):
    sr = form.apply(variables, feat, valid, method="reconstruct")
    assert_close(sr, fast.apply(variables, lr, valid))


@pytest.mark.slow
def test_the_functions_need_no_module():
  net = RRDBNet(**TINY, scale=2)
  params, lr = draw_params(net), draw_image(2, 3, 8, 12, 3)
  feat = reference.features(params, lr, unshuffle=2)
  sr = reference.reconstruct(params, feat, factors=net.upsampling)
  assert sr.shape == (2, 3, 16, 24, 3)
  assert_close(sr, net.apply({"params": params}, lr))


def test_parameters_of_another_network_are_refused():
  params = draw_params(RRDBNet(**{**TINY, "num_block": 3}))
  with pytest.raises(Exception, match=r"shape \(2, 3, 3, 6, 4\)"):
    RRDBNet(**TINY, form="plain").apply(
      {"params": params}, jnp.zeros((8, 8, 3))
    )


def test_forward_mode_agrees_with_the_fast_forms_reverse_mode():
  fast, plain = both(**TINY)
  lr = draw_image(1, 6, 7, 3)
  arguments = draw_params(fast), lr
  tangents = draw_params(fast, seed=3), draw_image(*lr.shape, seed=4)

  def run(net, params, lr):
    return net.apply({"params": params}, lr)

  sr, change = jax.jit(lambda *a: jax.jvp(functools.partial(run, plain), *a))(
    arguments, tangents
  )
  cotangent = draw_image(*sr.shape, seed=5) - 0.5
  _, vjp = jax.vjp(jax.jit(functools.partial(run, fast)), *arguments)
  by_reverse = sum(
    float(np.vdot(g, t))
    for g, t in zip(
      jax.tree.leaves(vjp(cotangent)), jax.tree.leaves(tangents), strict=True
    )
  )
  magnitude = np.linalg.norm(change) * np.linalg.norm(cotangent)
  assert abs(np.vdot(change, cotangent) - by_reverse) < 1e-5 * magnitude


@pytest.mark.slow
def test_jacfwd_of_an_image_is_jacrev_of_it():
  _, plain = both(num_feat=3, num_block=1, num_grow_ch=2)
  variables, lr = {"params": draw_params(plain)}, draw_image(2, 3, 3)
  run = functools.partial(plain.apply, variables)
  assert_close(jax.jit(jax.jacfwd(run))(lr), jax.jit(jax.jacrev(run))(lr))


def test_float64_gradients_are_finite_differences():
  net = RRDBNet(
    num_feat=3, num_block=2, num_grow_ch=2, dtype=jnp.float64, form="plain"
  )
  single = RRDBNet(num_feat=3, num_block=2, num_grow_ch=2)
  arguments = draw_params(single), draw_image(1, 5, 6, 3)
  with jax.enable_x64(True):
    params, lr = jax.tree.map(lambda a: jnp.asarray(a, "float64"), arguments)
    run = jax.jit(lambda params, lr: net.apply({"params": params}, lr))
    sr = run(params, lr)
    assert sr.dtype == jnp.float64
    check_grads(
      run, (params, lr), 1, ("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-7
    )
    # Nothing on the way was rounded to float32: nor were the parameters.
    nudged = jax.tree.map(lambda a: a * (1 + 1e-11), params)
    change = np.abs(run(nudged, lr) - sr).max() / np.abs(sr).max()
    assert 1e-12 < change < 1e-9
    exact = np.asarray(sr)
  params, lr = arguments
  assert_close(jax.jit(single.apply)({"params": params}, lr), exact)


@pytest.mark.parametrize(
  "masked", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_an_export_of_any_size_is_the_fast_form_at_each(masked):
  fast, plain = both(**WIDE)
  params = draw_params(fast)
  b, h, w = export.symbolic_shape("b, h, w")
  images = [jax.ShapeDtypeStruct((b, h, w, 3), jnp.float32)]
  if masked:
    images.append(jax.ShapeDtypeStruct((b, h, w, 1), jnp.float32))
  platforms = ["cpu", "cuda", "tpu"]
  exported = export.export(jax.jit(plain.apply), platforms=platforms)(
    {"params": params}, *images
  )
  loaded = export.deserialize(exported.serialize())
  for shape in ((1, 8, 11), (2, 12, 13)):  # Above and below Winograd's least.
    arguments = [draw_image(*shape, 3)]
    if masked:
      arguments.append(draw_mask(*shape))
    assert_close(
      loaded.call({"params": params}, *arguments),
      jax.jit(fast.apply)({"params": params}, *arguments),
    )


@pytest.mark.slow
def test_an_export_of_a_network_that_unshuffles():
  fast, plain = both(**TINY, scale=2)
  variables = {"params": draw_params(fast)}
  shape = export.symbolic_shape("2*h, 2*w, 3")
  exported = export.export(jax.jit(plain.apply))(
    variables, jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  for size in ((6, 8), (10, 4)):
    lr = draw_image(*size, 3)
    assert_close(exported.call(variables, lr), fast.apply(variables, lr))


@pytest.mark.slow
def test_bfloat16_computes_close_by_and_returns_float32():
  exact = RRDBNet(**TINY)
  plain = RRDBNet(**TINY, form="plain", dtype=jnp.bfloat16)
  params, lr = draw_params(exact), draw_image(1, 6, 7, 3)

  sr = jax.jit(plain.apply)({"params": params}, lr)
  assert sr.dtype == jnp.float32
  expected = jax.jit(exact.apply)({"params": params}, lr)
  np.testing.assert_allclose(sr, expected, atol=0.03 * np.abs(expected).max())

  def loss(params):
    return plain.apply({"params": params}, lr).sum()

  grads = jax.eval_shape(jax.grad(loss), params)
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
