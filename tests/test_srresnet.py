"""SRResNet against PyTorch's, as four programs name and compute it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models import registry
from esrgan_jax.models.srresnet import SRResNet, start_bilinear
from esrgan_jax.ops.pixels import (
  enlarge_linearly,
  pixel_shuffle,
  pixel_unshuffle,
)
from esrgan_jax.steps import psnr
from esrgan_jax.weights import selection
from tests import golden

SMALL = {"num_feat": 4, "num_block": 2}


def variables_of(net, *, seed=0):
  """Any variables, none of them as they begin."""
  random = np.random.default_rng(seed)
  shape = (1, 8, 8, net.num_in_ch)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))

  def draw(path, leaf):
    value = random.uniform(-0.5, 0.5, leaf.shape)
    if path[-1].key in ("var", "scale"):
      value += 1
    return value.astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def read(case):
  """A network and its variables, of the state dict that was recorded."""
  state = golden.srgan_state(golden.srgan_shapes(case))
  found = selection.find_network({"state_dict": state})
  assert found.config["architecture"] == "SRResNet"
  net = registry.make_generator(**found.config)
  return net, {"params": found.params, **found.collections}


def close(actual, expected, name=""):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=1e-4 * scale, err_msg=name
  )


def some_slow(names, quick):
  """Cases of which one is for the quick tier."""
  marks = {name: () if name in quick else pytest.mark.slow for name in names}
  return [pytest.param(name, marks=mark) for name, mark in marks.items()]


@pytest.mark.parametrize(
  "name",
  some_slow(
    [f"{program} {scale}" for program, scale in golden.SRGAN_GENERATORS],
    ("basicsr 2",),
  ),
)
def test_is_pytorchs(name):
  case = golden.load("srgan")[name]
  net, variables = read(case)
  assert str(net.scale) == name.split()[1]
  run = jax.jit(functools.partial(registry.infer, net))
  close(run(variables, golden.srgan_lr()[:1]), case["sr"])


def check_statistics(case, variables, updates):
  """Running statistics have the names of the arrays: they are read likewise."""
  old = variables["batch_stats"]
  shapes = golden.srgan_shapes(case)
  state = golden.srgan_state(shapes)
  new = {n: case[n] for n in shapes if ".running_" in n}
  expected = selection.find_network(state | new).collections["batch_stats"]
  num = golden.srgan_lr()[..., 0].size
  for (path, x), y, before in zip(
    jax.tree_util.tree_leaves_with_path(updates["batch_stats"]),
    jax.tree.leaves(expected),
    jax.tree.leaves(old),
    strict=True,
  ):
    if path[-1].key == "var":  # PyTorch's are of unbiased variances.
      x = (x - 0.9 * before) * num / (num - 1) + 0.9 * before
    close(x, y, jax.tree_util.keystr(path))


def test_normalises_as_pytorchs():
  """In training and in evaluation."""
  case = golden.load("srgan")["lornatang 4"]
  net, variables = read(case)

  @jax.jit
  def run(variables, lr):
    trained = net.apply(variables, lr, train=True, mutable=["batch_stats"])
    return net.apply(variables, lr[:1]), trained

  evaluated, (sr, updates) = run(variables, golden.srgan_lr())
  close(evaluated, case["sr"])
  close(sr[:1], case["train"])
  check_statistics(case, variables, updates)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.SRGAN_TRAINED)
def test_trains_as_pytorchs(name):
  case = golden.load("srgan")[name]
  net, variables = read(case)
  others = {k: v for k, v in variables.items() if k != "params"}

  @jax.jit
  def run(params, lr):
    def loss(params, lr):
      sr, updates = net.apply(
        {"params": params, **others}, lr, train=True, mutable=list(others)
      )
      return jnp.vdot(sr, cotangent), (sr, updates)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, lr)

  lr = golden.srgan_lr()
  shape = (len(lr), *(net.scale * n for n in lr.shape[1:3]), 3)
  cotangent = golden.draw("srgan cotangent", *shape)
  (grads, lr_grad), (sr, updates) = run(variables["params"], lr)
  close(sr[:1], case["train"])
  close(lr_grad, case["lr"])
  state = golden.srgan_state(golden.srgan_shapes(case))
  state |= {
    n.removeprefix("grad "): x for n, x in case.items() if n.startswith("grad ")
  }
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(grads),
    jax.tree.leaves(selection.find_network(state).params),
    strict=True,
  ):
    close(x, y, jax.tree_util.keystr(path))
  if others:
    check_statistics(case, variables, updates)


@pytest.mark.torch
@pytest.mark.parametrize("program", ["basicsr", "lornatang", "persson"])
def test_is_pytorchs_at_published_size(program):
  from tests.oracles import answers

  case = answers.srgan_generator(program, 4, feat=64, num_block=16)
  net, variables = read(case)
  assert (net.num_feat, net.num_block) == (64, 16)
  run = jax.jit(functools.partial(registry.infer, net))
  close(run(variables, golden.srgan_lr()[:1]), case["sr"])


@pytest.mark.slow
@pytest.mark.parametrize(
  "fields",
  [{"scale": 3, "variant": "msrresnet"}, {"scale": 2, "output": "tanh"}],
)
def test_what_is_outside_of_the_mask_is_not_seen(fields):
  """Two images in one window, each as if it were alone, and in halves."""
  net = SRResNet(**SMALL, **fields)
  variables = variables_of(net)
  random = np.random.default_rng(1)
  lr = random.random((1, 9, 18, 3), np.float32)
  gap = registry.mask_gap(net)
  valid = np.zeros((1, 9, 18, 1), bool)
  places = (slice(1, 8), slice(0, 5)), (slice(0, 9), slice(5 + gap, 18))
  for rows, columns in places:
    valid[:, rows, columns] = True
  infer = jax.jit(functools.partial(registry.infer, net))
  both = infer(variables, lr, valid)

  @jax.jit
  def in_halves(variables, lr, valid):
    feat = net.apply(variables, lr, valid, method="features")
    return net.apply(variables, feat, valid, method="reconstruct")

  np.testing.assert_allclose(in_halves(variables, lr, valid), both, atol=1e-5)
  for place in places:
    alone = infer(variables, lr[:, *place])
    rows, columns = (
      slice(part.start * net.scale, part.stop * net.scale) for part in place
    )
    np.testing.assert_allclose(both[:, rows, columns], alone, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["srgan", "msrresnet"])
def test_looks_as_far_as_it_says(variant):
  net = SRResNet(num_feat=2, num_block=1, variant=variant)
  radius = net.receptive_radius
  variables = variables_of(net)
  # Without a ReLU's zeros, or what a network sees might not be used.
  positive = jax.tree.map(jnp.abs, variables)
  side = 2 * radius + 3
  lr = np.full((1, side, 1, 3), 0.5, np.float32)
  changed = lr.copy()
  changed[:, 0] = 0.75
  infer = jax.jit(functools.partial(registry.infer, net))
  difference = np.abs(infer(positive, changed) - infer(positive, lr))
  rows = np.flatnonzero(difference.max(axis=(0, 2, 3)))
  assert rows.max() // net.scale <= radius
  assert rows.max() // net.scale >= radius - 1


@pytest.mark.slow
def test_forms_and_recomputing_change_nothing():
  net = SRResNet(**SMALL)
  variables = variables_of(net)
  lr = golden.srgan_lr()

  def loss(net, params):
    sr, _ = net.apply(
      {**variables, "params": params}, lr, train=True, mutable=["batch_stats"]
    )
    return jnp.square(sr).mean()

  values = [
    jax.jit(jax.value_and_grad(functools.partial(loss, each)))(
      variables["params"]
    )
    for each in (net, net.clone(form="plain", remat=True).without_loops())
  ]
  jax.tree.map(
    lambda a, b: close(a, np.asarray(b)) if np.abs(b).max() > 1e-4 else None,
    *values,
  )


@pytest.mark.slow
def test_bfloat16_keeps_the_enlarged_image():
  """Rounded to 8 bits of mantissa, a smooth sky would have steps."""
  net = SRResNet(**SMALL, variant="msrresnet", dtype=jnp.bfloat16)
  variables = jax.tree.map(np.zeros_like, variables_of(net))
  lr = np.linspace(0.5, 0.51, 5 * 6 * 3, dtype=np.float32)
  lr = lr.reshape(1, 5, 6, 3)
  sr = jax.jit(functools.partial(registry.infer, net))(variables, lr)
  assert sr.dtype == jnp.float32
  np.testing.assert_allclose(sr, enlarge_linearly(lr, 4), atol=1e-6)


def test_tree_is_frozen():
  net = SRResNet(**SMALL, scale=2, slopes="channel")
  found = jax.tree_util.tree_leaves_with_path(variables_of(net))
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in found
  }
  norm = {"scale": (2, 4), "bias": (2, 4)}
  assert shapes == {
    "params/conv_first/kernel": (9, 9, 3, 4),
    "params/conv_first/bias": (4,),
    "params/act_first/slope": (4,),
    "params/body/conv1/kernel": (2, 3, 3, 4, 4),
    "params/body/conv2/kernel": (2, 3, 3, 4, 4),
    **{f"params/body/bn1/{key}": shape for key, shape in norm.items()},
    **{f"params/body/bn2/{key}": shape for key, shape in norm.items()},
    "params/body/act/slope": (2, 4),
    "params/conv_body/kernel": (3, 3, 4, 4),
    "params/bn_body/scale": (4,),
    "params/bn_body/bias": (4,),
    "params/conv_up1/kernel": (3, 3, 4, 16),
    "params/conv_up1/bias": (16,),
    "params/act_up1/slope": (4,),
    "params/conv_last/kernel": (9, 9, 4, 3),
    "params/conv_last/bias": (3,),
    "batch_stats/body/bn1/mean": (2, 4),
    "batch_stats/body/bn1/var": (2, 4),
    "batch_stats/body/bn2/mean": (2, 4),
    "batch_stats/body/bn2/var": (2, 4),
    "batch_stats/bn_body/mean": (4,),
    "batch_stats/bn_body/var": (4,),
  }


@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_shuffling_undoes_unshuffling(leading):
  x = golden.draw("shuffled", *leading, 6, 9, 2)
  unshuffled = pixel_unshuffle(jnp.asarray(x), factor=3)
  np.testing.assert_array_equal(pixel_shuffle(unshuffled, 3), x)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"scale": 1}, "choose scale 2, 3, 4 or 8"),
    ({"scale": 6}, "choose scale 2, 3, 4 or 8"),
    ({"variant": "edsr"}, "choose one of srgan, msrresnet"),
    ({"variant": "msrresnet", "norm": "batch"}, "has no BatchNorm"),
    ({"variant": "msrresnet", "output": "tanh"}, "choose output 'linear'"),
    ({"variant": "msrresnet", "num_in_ch": 1}, "choose equal numbers"),
    ({"num_block": 0}, "num_block is 0"),
    ({"norm": "layer"}, "choose one of batch, none"),
    ({"centered": True}, "choose output 'tanh'"),
  ],
)
def test_unfit_fields_raise(fields, message):
  with pytest.raises(ValueError, match=message):
    SRResNet(**fields)


def test_a_larger_networks_layers_are_not_left_out():
  net = SRResNet(**SMALL)
  with pytest.raises(ValueError, match="params have conv_up2"):
    jax.eval_shape(
      net.clone(scale=2).apply, variables_of(net), jnp.ones((8, 8, 3))
    )


def test_bilinear_start_is_for_batch_norm_and_color():
  for fields in ({"norm": "none"}, {"num_feat": 2}, {"num_in_ch": 1}):
    net = SRResNet(**{**SMALL, **fields})
    with pytest.raises(ValueError, match="initialization=published"):
      start_bilinear(variables_of(net)["params"])


@pytest.mark.release
def test_devices_share_their_statistics():
  """Under an axis, BatchNorm inside the loop over blocks has all images."""
  net = SRResNet(**SMALL, scale=2)
  variables = variables_of(net)
  params = variables["params"]
  others = {"batch_stats": variables["batch_stats"]}
  batch = {
    "lr": golden.image("axis lr", 4, 5, 5, 3),
    "hr": golden.image("axis hr", 4, 10, 10, 3),
  }
  # Devices' images differ in brightness: statistics per device would show.
  batch = jax.tree.map(
    lambda x: x * np.linspace(0, 1, 4, dtype=np.float32).reshape(4, 1, 1, 1),
    batch,
  )

  def run(batch, axis_name=None):
    grads, new, _ = psnr.psnr_gradients(
      params,
      batch,
      generator=net,
      collections=others,
      pixel_loss="mse",
      axis_name=axis_name,
    )
    return grads, new

  whole = jax.jit(run)(batch)
  halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
  apart = jax.jit(
    jax.vmap(functools.partial(run, axis_name="data"), axis_name="data")
  )(halves)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(apart),
    jax.tree.leaves(whole),
    strict=True,
  ):
    for each in x:
      np.testing.assert_allclose(
        each, y, atol=1e-5, err_msg=jax.tree_util.keystr(path)
      )
