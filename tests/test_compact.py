"""SRVGGNetCompact against PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import esrgan_jax
from esrgan_jax.models import registry
from esrgan_jax.models.compact import SRVGGNetCompact, start_bilinear
from esrgan_jax.ops import compact, packing
from esrgan_jax.ops.pixels import (
  enlarge_linearly,
  reduce_cubically,
)
from esrgan_jax.ops.platforms import tracing_for
from esrgan_jax.weights.dialects import compact as names
from tests import golden
from tests.networks import init

SMALL = {"num_feat": 4, "num_conv": 2}


def read(name, **fields):
  """A network and its parameters, of a state dict drawn by name."""
  config = golden.compact_config(name, **fields)
  found = names.from_state_dict(
    golden.compact_state(config),
    scale=config["scale"],
    act_type=config["act_type"],
    shuffle=config["shuffle"],
  )
  assert found.config == config
  return SRVGGNetCompact(**config), found.params


def drawn(net):
  """Any parameters of a network, none of them as they begin."""
  config = {
    name: getattr(net, name) for name in golden.compact_config("x4")
  } | {"shuffle": net.shuffle_factor}
  return names.from_state_dict(
    golden.compact_state(config),
    scale=net.scale,
    shuffle=net.shuffle_factor,
    act_type=net.act_type,
  ).params


def close(actual, expected, name=""):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=1e-5 * scale, err_msg=name
  )


def gradients(net, params, lr, cotangent):
  def loss(params, lr):
    sr = net.apply({"params": params}, lr)
    return jnp.vdot(sr, cotangent), sr

  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  (grads, lr_grad), sr = run(params, lr)
  return sr, lr_grad, grads


def check(net, params, case):
  cotangent = golden.draw("compact cotangent", *case["sr"].shape)
  sr, lr_grad, grads = gradients(net, params, golden.compact_lr(), cotangent)
  close(sr, case["sr"])
  close(lr_grad, case["lr"])
  for name, value in names.to_state_dict(grads).items():
    close(value, case[f"grad {name}"], name)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=() if name == "x3 of 4" else pytest.mark.slow)
    for name in golden.COMPACT
  ],
)
def test_is_pytorchs(name):
  check(*read(name), golden.load("compact")[name])


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"form": "plain"}, {"remat": True}])
def test_forms_and_recomputing_change_nothing(fields):
  net, params = read("x4")
  net = net.clone(**fields).without_loops()
  check(net, params, golden.load("compact")["x4"])


def test_learnt_slopes_have_jaxs_gradients_of_any_order():
  x = golden.draw("prelu x", 2, 3, 4, 5)
  x = jnp.asarray(x).at[0, 0].set(0.0)  # Where a slope does not count.
  slopes = jnp.asarray(golden.draw("prelu slopes", 5))

  def orders(prelu):
    def first(x, slopes):
      y, vjp = jax.vjp(prelu, x, slopes)
      return y, *vjp(jnp.cos(y))

    def second(x, slopes):
      return sum(jnp.square(part).sum() for part in first(x, slopes))

    run = jax.jit(lambda *args: (first(*args), jax.grad(second, (0, 1))(*args)))
    return jax.tree.leaves(run(x, slopes))

  def plain(x, slopes):
    return jnp.where(x > 0, x, slopes.reshape(1, 1, 1, -1) * x)

  for actual, expected in zip(
    orders(compact.prelu), orders(plain), strict=True
  ):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.torch
def test_is_pytorchs_at_published_size():
  from tests.oracles import answers

  fields = {"num_feat": 64, "num_conv": 16}
  case = answers.compact_generator(golden.compact_config("x4", **fields))
  check(*read("x4", **fields), case)


@pytest.mark.slow
def test_pairs_of_pixels_change_nothing():
  """As a TPU computes, and with a mask."""
  net, params = read("x2 of 4")
  lr = golden.image("packed lr", 2, 5, 8, 3)
  valid = np.ones((2, 5, 8, 1), bool)
  valid[0, 4:], valid[1, :, 5:] = False, False
  run = functools.partial(net.apply, {"params": params})
  assert packing.can_pack(lr)
  expected = jax.jit(run)(lr, valid)

  def as_on_a_tpu(lr, valid):
    with tracing_for("tpu"):
      return run(lr, valid)

  np.testing.assert_allclose(
    jax.jit(as_on_a_tpu)(lr, valid), expected, atol=1e-5
  )


@pytest.mark.parametrize(
  "fields",
  [
    {"scale": 3, "shuffle": 4},
    pytest.param({"scale": 2, "act_type": "relu"}, marks=pytest.mark.slow),
  ],
)
def test_what_is_outside_of_the_mask_is_not_seen(fields):
  """Two images in one window, each as if it were alone, and in halves."""
  net = SRVGGNetCompact(**SMALL, **fields)
  params = {"params": drawn(net)}
  lr = golden.image("masked lr", 1, 9, 12, 3)
  gap = registry.mask_gap(net)
  valid = np.zeros((1, 9, 12, 1), bool)
  places = (slice(1, 8), slice(0, 5)), (slice(0, 9), slice(5 + gap, 12))
  for rows, columns in places:
    valid[:, rows, columns] = True

  @jax.jit
  def run(lr, valid):
    feat = net.apply(params, lr, valid, method="features")
    halves = net.apply(params, feat, valid, method="reconstruct")
    alone = [net.apply(params, lr[:, *place]) for place in places]
    return net.apply(params, lr, valid), halves, alone

  both, halves, alone = run(lr, valid)
  np.testing.assert_allclose(halves, both, atol=1e-6)
  for place, expected in zip(places, alone, strict=True):
    rows, columns = (
      slice(part.start * net.scale, part.stop * net.scale) for part in place
    )
    np.testing.assert_allclose(both[:, rows, columns], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [2, 4])
def test_looks_as_far_as_it_says(shuffle):
  net = SRVGGNetCompact(num_feat=2, num_conv=1, scale=2, shuffle=shuffle)
  radius = net.receptive_radius
  # Without slopes of 0, or what a network sees might not be used.
  params = {"params": jax.tree.map(np.abs, drawn(net))}
  lr = np.full((1, 2 * radius + 3, 4, 3), 0.5, np.float32)
  changed = lr.copy()
  changed[:, 0] = 0.75
  run = jax.jit(net.apply)
  difference = np.abs(run(params, changed) - run(params, lr))
  rows = np.flatnonzero(difference.max(axis=(0, 2, 3)) > 1e-7)
  assert rows.max() // net.scale == radius


def test_begins_as_pytorchs_with_pixels_repeated():
  net = SRVGGNetCompact(num_feat=24, num_conv=3)
  lr = golden.compact_lr()
  params = init(net, jax.random.key(0), lr)["params"]
  kernel, bias = (params["body"]["conv"][key] for key in ("kernel", "bias"))
  bound = (9 * 24) ** -0.5
  for values in (kernel, bias):
    assert 0.9 * bound < np.abs(values).max() <= bound
  np.testing.assert_allclose(np.std(kernel), bound / 3**0.5, rtol=0.02)
  assert (params["act_first"]["slope"] == 0.25).all()
  last = jax.tree.map(np.zeros_like, params["conv_last"])
  sr = jax.jit(net.clone(dtype=jnp.bfloat16).apply)(
    {"params": {**params, "conv_last": last}}, lr
  )
  # The skip is not rounded to half precision: a smooth sky would have steps.
  repeated = lr.repeat(4, axis=1).repeat(4, axis=2)
  np.testing.assert_array_equal(sr, repeated)


@pytest.mark.parametrize("scale", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_bilinear_start_is_near_it_but_for_what_is_left_to_learn(scale):
  net = SRVGGNetCompact(num_feat=12, num_conv=4, scale=scale)
  lr = golden.image("start lr", 1, 8, 8, 3)
  params = init(net, jax.random.key(0), lr)["params"]
  begun = jax.jit(start_bilinear)(params)
  # Without the other channels, all that is left is the path.
  last = begun["conv_last"]
  kernel = np.array(last["kernel"])
  kernel[:, :, 3:] = 0
  path = {"kernel": kernel, "bias": np.zeros_like(last["bias"])}
  run = jax.jit(net.apply)
  expected = jax.jit(functools.partial(enlarge_linearly, factor=scale))(lr)
  border = (slice(None), slice(scale, -scale), slice(scale, -scale))
  found = run({"params": {**begun, "conv_last": path}}, lr)
  np.testing.assert_allclose(found[border], expected[border], atol=1e-5)
  far = np.abs(run({"params": begun}, lr) - expected)[border].mean()
  assert 0 < far < 0.1


def test_bilinear_start_is_for_color():
  for fields in ({"num_feat": 2}, {"num_in_ch": 1, "num_out_ch": 1}):
    net = SRVGGNetCompact(**{"num_conv": 1, **fields})
    with pytest.raises(ValueError, match="initialization=published"):
      start_bilinear(drawn(net))


@pytest.mark.parametrize(("block", "size"), [(4, 1), (6, 3)])
def test_reducing_keeps_lines_straight(block, size):
  """Halfway between pixels, where cubics of any coefficient do."""
  line = np.arange(4 * block, dtype=np.float32).reshape(1, -1, 1)
  line = line.repeat(2 * block, axis=0)
  reduced = jax.jit(
    functools.partial(reduce_cubically, block=block, size=size)
  )(line)
  centres = (np.arange(4 * size) + 0.5) * block / size - 0.5
  assert reduced.shape == (2 * size, 4 * size, 1)
  for row in reduced[:, size:-size, 0]:
    np.testing.assert_allclose(row, centres[size:-size], rtol=1e-5)


def test_tree_is_frozen():
  shapes = jax.eval_shape(
    SRVGGNetCompact(**SMALL, scale=2, shuffle=4).init,
    jax.random.key(0),
    golden.compact_lr(),
  )
  found = jax.tree_util.tree_leaves_with_path(shapes)
  assert {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in found
  } == {
    "params/conv_first/kernel": (3, 3, 3, 4),
    "params/conv_first/bias": (4,),
    "params/act_first/slope": (4,),
    "params/body/conv/kernel": (2, 3, 3, 4, 4),
    "params/body/conv/bias": (2, 4),
    "params/body/act/slope": (2, 4),
    "params/conv_last/kernel": (3, 3, 4, 48),
    "params/conv_last/bias": (48,),
  }


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"scale": 0}, "scale is 0"),
    ({"num_conv": 0}, "num_conv is 0"),
    ({"act_type": "gelu"}, "choose one of prelu, relu, leakyrelu"),
    ({"num_in_ch": 1}, "choose equal numbers"),
    ({"shuffle": 2}, "shuffle is 2, less than scale 4"),
    ({"form": "fastest"}, "choose one of fast, plain"),
  ],
)
def test_unfit_fields_raise(fields, message):
  with pytest.raises(ValueError, match=message):
    SRVGGNetCompact(**fields)


def test_features_of_another_width_raise():
  net = esrgan_jax.SRVGGNetCompact(**SMALL)
  params = {"params": drawn(net)}
  with pytest.raises(ValueError, match=r"feat must be \[..., h, w, 7\]"):
    net.apply(params, jnp.zeros((1, 4, 4, 4)), method="reconstruct")
