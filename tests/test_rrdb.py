"""RRDBNet against PyTorch's textbook form, and the frozen tree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.ops.pixels import pixel_unshuffle
from esrgan_jax.weights.dialects.rrdb import from_state_dict
from tests import golden

TINY = {"num_feat": 8, "num_block": 2, "num_grow_ch": 4}


def random_params(net, seed=0, scale=0.15):
  """Parameters with weights and biases large enough to matter."""
  shapes = jax.eval_shape(
    net.init, jax.random.key(0), jnp.zeros((1, 8, 8, net.num_in_ch))
  )["params"]
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda a: jnp.asarray(random.normal(0, scale, a.shape), a.dtype), shapes
  )


def random_image(*shape, seed=1):
  return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def drawn_params(config):
  """The parameters that PyTorch had when its results were recorded."""
  state = golden.generator_state(config)
  return from_state_dict(state, scale=config["scale"]).params


def assert_close(actual, expected):
  atol = 1e-5 * np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
  "form", ["fast", pytest.param("plain", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("scale", "unshuffle"), golden.FORMS)
def test_every_scale_is_pytorchs(scale, unshuffle, form):
  config = golden.generator_config(scale, unshuffle)
  # Left out, it is BasicSR's.
  default = {1: 4, 2: 2}.get(scale, 1) == unshuffle
  fields = {**config, "unshuffle": None if default else unshuffle}
  net = RRDBNet(**fields, form=form)
  lr = golden.lr_image(unshuffle)
  sr = jax.jit(net.apply)({"params": drawn_params(config)}, lr)
  case = f"x{scale} unshuffle {unshuffle}"
  assert_close(sr, golden.load("generator")[case]["sr"])


def test_gradients_are_pytorchs():
  config = golden.generator_config(4, 1)
  net, params, lr = RRDBNet(**config), drawn_params(config), golden.lr_image(1)
  sr = jax.eval_shape(net.apply, {"params": params}, lr)
  cotangent = golden.draw("cotangent", *sr.shape)

  @jax.jit
  def gradients(params, lr):
    _, vjp = jax.vjp(lambda p, lr: net.apply({"params": p}, lr), params, lr)
    return vjp(cotangent)

  expected = dict(golden.load("generator")["gradients"])
  grads, d_lr = gradients(params, lr)
  assert_close(d_lr, expected.pop("lr"))
  jax.tree.map(assert_close, grads, from_state_dict(expected).params)


def test_pixel_unshuffle_has_pytorchs_channel_order():
  image = jnp.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).transpose(0, 2, 3, 1)
  np.testing.assert_array_equal(
    pixel_unshuffle(image, factor=2),
    golden.load("generator")["unshuffle"]["order"],
  )
  with pytest.raises(ValueError, match=r"height 5 .* multiples of 2"):
    pixel_unshuffle(jnp.zeros((5, 4, 3)), factor=2)


@pytest.mark.parametrize(
  ("scale", "size"),
  [(2, (4, 6)), pytest.param(4, (5, 7), marks=pytest.mark.slow)],
)
def test_valid_makes_padding_invisible(scale, size):
  net = RRDBNet(**TINY, scale=scale)
  params = random_params(net)
  h, w = size
  lr = random_image(1, h, w, 3)
  padded = random_image(1, h + 4, w + 6, 3, seed=5).at[:, :h, :w].set(lr)
  valid = jnp.zeros((1, h + 4, w + 6, 1)).at[:, :h, :w].set(1)
  alone = jax.jit(net.apply)({"params": params}, lr)
  sr = jax.jit(net.apply)({"params": params}, padded, valid)
  np.testing.assert_allclose(
    sr[:, : h * scale, : w * scale], alone, atol=1e-5, rtol=1e-5
  )


@pytest.mark.parametrize(
  ("scale", "unshuffle"),
  [
    (2, None),
    pytest.param(4, None, marks=pytest.mark.slow),
    pytest.param(3, None, marks=pytest.mark.slow),
    pytest.param(2, 1, marks=pytest.mark.slow),
    pytest.param(8, None, marks=pytest.mark.slow),
  ],
)
def test_receptive_radius_is_what_the_gradient_sees(scale, unshuffle):
  net = RRDBNet(
    num_feat=2, num_block=1, num_grow_ch=2, scale=scale, unshuffle=unshuffle
  )
  # All weights positive: no path through the network can cancel or vanish.
  params = jax.tree.map(lambda a: jnp.abs(a) + 0.01, random_params(net))
  radius = net.receptive_radius
  factor = net.unshuffle_factor
  size = -(-(2 * radius + 9) // factor) * factor
  centre = size // 2
  lr = jnp.full((size, 1 * factor, 3), 0.5)

  def pixel(lr, offset):
    return net.apply({"params": params}, lr)[centre * scale + offset].sum()

  offsets = jnp.arange(scale * factor)
  gradients = jax.jit(jax.vmap(jax.grad(pixel), (None, 0)))(lr, offsets)
  distances = []
  for offset, gradient in enumerate(np.abs(gradients).sum((2, 3))):
    rows = np.flatnonzero(gradient) - (centre + offset // scale)
    distances += [-rows.min(), rows.max()]
  farthest = max(distances)
  assert radius - factor < farthest <= radius


def test_parameter_tree_is_frozen():
  net = RRDBNet()
  tree = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  leaves = jax.tree_util.tree_leaves_with_path(tree["params"])
  actual = {
    "/".join(key.key for key in path): leaf.shape for path, leaf in leaves
  }
  expected = {
    "conv_first/kernel": (3, 3, 3, 64),
    "conv_first/bias": (64,),
    "conv_last/kernel": (3, 3, 64, 3),
    "conv_last/bias": (3,),
  }
  for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
    expected[f"{name}/kernel"] = (3, 3, 64, 64)
    expected[f"{name}/bias"] = (64,)
  for i in (1, 2, 3):
    for j, (in_ch, out_ch) in enumerate(
      [(64, 32), (96, 32), (128, 32), (160, 32), (192, 64)], start=1
    ):
      name = f"body/rdb{i}/conv{j}"
      expected[f"{name}/kernel"] = (23, 3, 3, in_ch, out_ch)
      expected[f"{name}/bias"] = (23, out_ch)
  assert actual == expected
  assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
  # ESRGAN's published generator.
  assert sum(leaf.size for _, leaf in leaves) == 16_697_987


def test_initialisation_is_a_tenth_of_kaimings():
  net = RRDBNet(num_feat=32, num_block=2, num_grow_ch=16)
  init = jax.jit(net.init)
  params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if path[-1].key == "bias":
      assert not leaf.any()
    elif leaf.size > 5000:
      fan_in = 9 * leaf.shape[-2]
      expected = 0.1 * np.sqrt(2 / fan_in)
      np.testing.assert_allclose(leaf.std(), expected, rtol=0.05)
  # Each block starts from its own draw.
  kernel = params["body"]["rdb1"]["conv1"]["kernel"]
  assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.slow
@pytest.mark.parametrize(
  "change",
  [pytest.param({"unroll": 2}, marks=pytest.mark.slow), {"remat": True}],
)
def test_how_it_runs_does_not_change_what_it_computes(change):
  lr = random_image(1, 6, 6, 3)
  net, other = RRDBNet(**TINY), RRDBNet(**TINY, **change)
  params = random_params(net)

  def loss(params, net):
    return jnp.square(net.apply({"params": params}, lr)).mean()

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  for a, b in zip(
    jax.tree.leaves(gradient(params, net)),
    jax.tree.leaves(gradient(params, other)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_close_by_and_returns_float32():
  lr = random_image(1, 8, 8, 3)
  params = random_params(RRDBNet(**TINY), scale=0.1)
  exact = jax.jit(RRDBNet(**TINY).apply)({"params": params}, lr)
  net = RRDBNet(**TINY, dtype=jnp.bfloat16)
  sr = jax.jit(net.apply)({"params": params}, lr)
  assert sr.dtype == jnp.float32
  np.testing.assert_allclose(sr, exact, atol=0.03 * float(jnp.abs(exact).max()))
  loss = lambda params: net.apply({"params": params}, lr).sum()  # noqa: E731
  grads = jax.jit(jax.grad(loss))(params)
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))


def test_any_batch_shape_jit_and_vmap_agree():
  net = RRDBNet(**TINY)
  variables = {"params": random_params(net)}
  lr = random_image(2, 3, 5, 6, 3)
  sr = jax.jit(net.apply)(variables, lr)
  assert sr.shape == (2, 3, 20, 24, 3)
  apply = functools.partial(net.apply, variables)
  mapped = jax.jit(jax.vmap(jax.vmap(apply)))(lr)
  np.testing.assert_allclose(sr, mapped, atol=1e-5)
  np.testing.assert_allclose(
    sr[1, 2], net.apply(variables, lr[1, 2]), atol=1e-5
  )


@pytest.mark.parametrize(
  ("fields", "shape", "message"),
  [
    ({}, (8, 8, 1), r"\[..., H, W, 3\] in \[0, 1\], got float32\[8, 8, 1\]"),
    ({}, (8, 3), "a channel axis"),
    ({"scale": 2}, (7, 8, 3), "multiples of 2"),
    ({"form": "plain"}, (8, 3), "a channel axis"),
    ({"form": "plain", "scale": 2}, (7, 8, 3), "multiples of 2"),
  ],
)
def test_misuse_is_explained(fields, shape, message):
  net = RRDBNet(**{**TINY, **fields})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape, jnp.float32))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"scale": 5}, "upsamples by 5"),
    ({"num_block": 0}, "num_block is 0; it must be a whole number of at least"),
    ({"num_feat": 4.0}, r"num_feat is 4\.0"),
    ({"unshuffle": 0}, "unshuffle is 0"),
    ({"unroll": 0}, "unroll is 0"),
    ({"form": "slow"}, "'slow'; choose one of fast, plain"),
    ({"dtype": jnp.int8}, "dtype is int8"),
    ({"dtype": None}, "dtype is None"),
  ],
)
def test_unfit_fields_are_refused_at_once(fields, message):
  with pytest.raises(ValueError, match=message):
    RRDBNet(**fields)
