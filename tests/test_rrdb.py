"""RRDBNet against the textbook form, PyTorch's order and the frozen tree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from esrgan_jax.models.rrdb import RRDBNet, pixel_unshuffle

TINY = {"num_feat": 8, "num_block": 2, "num_grow_ch": 4}


def conv(x, kernel, bias):
  dims = ("NHWC", "HWIO", "NHWC")
  y = lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=dims
  )
  return y + bias.reshape(1, 1, 1, -1)


def concat_form(params, lr, num_block, upsampling=(2, 2)):
  """RRDBNet as the paper draws it: one convolution a layer, concatenated."""

  def lrelu(x):
    return jnp.where(x > 0, x, 0.2 * x)

  def p(tree):
    return tree["kernel"], tree["bias"]

  def dense_block(x, tree):
    sources = [x]
    for i in range(4):
      y = conv(jnp.concatenate(sources, -1), *p(tree[f"conv{i + 1}"]))
      sources.append(lrelu(y))
    return x + 0.2 * conv(jnp.concatenate(sources, -1), *p(tree["conv5"]))

  feat = conv(lr, *p(params["conv_first"]))
  x = feat
  for n in range(num_block):
    block = jax.tree.map(lambda a, n=n: a[n], params["body"])
    y = x
    for i in range(3):
      y = dense_block(y, block[f"rdb{i + 1}"])
    x = x + 0.2 * y
  feat = feat + conv(x, *p(params["conv_body"]))
  for i, factor in enumerate(upsampling):
    feat = feat.repeat(factor, axis=1).repeat(factor, axis=2)
    feat = lrelu(conv(feat, *p(params[f"conv_up{i + 1}"])))
  feat = lrelu(conv(feat, *p(params["conv_hr"])))
  return conv(feat, *p(params["conv_last"]))


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


def test_output_and_gradients_equal_the_concat_form():
  net = RRDBNet(**TINY)
  params = random_params(net)
  lr = random_image(2, 7, 9, 3)
  target = random_image(2, 28, 36, 3, seed=2)

  def loss(apply, params, lr):
    return jnp.mean((apply(params, lr) - target) ** 2)

  ours = jax.jit(lambda params, lr: net.apply({"params": params}, lr))
  reference = jax.jit(functools.partial(concat_form, num_block=2))
  np.testing.assert_allclose(
    ours(params, lr), reference(params, lr), atol=1e-5, rtol=1e-5
  )
  actual = jax.jit(jax.grad(functools.partial(loss, ours), (0, 1)))(params, lr)
  expected = jax.jit(jax.grad(functools.partial(loss, reference), (0, 1)))(
    params, lr
  )
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(
      a, e, atol=2e-5 * float(jnp.abs(e).max()), rtol=2e-5
    ),
    actual,
    expected,
  )


@pytest.mark.parametrize(
  ("scale", "unshuffle", "total", "multiple"),
  [
    (1, None, 4, 4),
    (1, 1, 1, 1),
    (1, 2, 2, 2),
    (2, None, 4, 2),
    (2, 1, 2, 1),
    (3, None, 3, 1),
    (4, None, 4, 1),
    (8, None, 8, 1),
  ],
)
def test_every_scale(scale, unshuffle, total, multiple):
  net = RRDBNet(**TINY, scale=scale, unshuffle=unshuffle)
  params = random_params(net)
  lr = random_image(1, 2 * multiple, 3 * multiple, 3)
  sr = jax.jit(net.apply)({"params": params}, lr)
  assert sr.shape == (1, lr.shape[1] * scale, lr.shape[2] * scale, 3)
  factors = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}[total]
  inner = pixel_unshuffle(lr, factor=multiple) if multiple > 1 else lr
  expected = jax.jit(concat_form, static_argnums=(2, 3))(
    params, inner, 2, factors
  )
  np.testing.assert_allclose(sr, expected, atol=1e-4, rtol=1e-4)
  ups = [name for name in params if name.startswith("conv_up")]
  assert len(ups) == len(factors)


def test_pixel_unshuffle_has_pytorchs_channel_order():
  image = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  out = pixel_unshuffle(image, factor=2)
  for channel, row, column in np.ndindex(3, 2, 2):
    np.testing.assert_array_equal(
      out[..., channel * 4 + row * 2 + column],
      image[:, row::2, column::2, channel],
    )
  with pytest.raises(ValueError, match=r"height 5 .* multiples of 2"):
    pixel_unshuffle(jnp.zeros((5, 4, 3)), factor=2)


@pytest.mark.parametrize(("scale", "size"), [(4, (5, 7)), (2, (4, 6))])
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
  ("scale", "unshuffle"), [(4, None), (3, None), (2, 1), (2, None), (8, None)]
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


@pytest.mark.parametrize("change", [{"unroll": 2}, {"remat": True}])
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
    ({}, (8, 8, 1), r"\(8, 8, 1\); expected \[..., H, W, 3\]"),
    ({}, (8, 3), "expected"),
    ({"scale": 5}, (8, 8, 3), "upsamples by 5"),
    ({"scale": 2}, (7, 8, 3), "multiples of 2"),
    ({"num_block": 0}, (8, 8, 3), "at least 1"),
  ],
)
def test_misuse_is_explained(fields, shape, message):
  net = RRDBNet(**{**TINY, **fields})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
