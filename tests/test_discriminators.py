"""The VGG-style discriminator against PyTorch's, and across devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrgan_jax.models.discriminators import (
  VGGStyleDiscriminator,
  linear1_from_torch,
  linear1_to_torch,
)
from tests import golden
from tests.networks import init


def images(batch, size, seed=0):
  rng = np.random.default_rng(seed)
  return rng.random((batch, size, size, 3)).astype(np.float32)


def assert_trees_close(actual, expected, **tolerance):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(actual),
    jax.tree.leaves(expected),
    strict=True,
  ):
    np.testing.assert_allclose(
      x, y, err_msg=jax.tree_util.keystr(path), **tolerance
    )


def check_is_pytorchs(num_feat, input_size, expected):
  model = VGGStyleDiscriminator(num_feat=num_feat, input_size=input_size)
  state = golden.discriminator_state(num_feat, input_size)
  params, stats = golden.discriminator_trees(state)
  image, cotangent = golden.discriminator_input(input_size)

  @jax.jit
  def run(params, image):
    def loss(params, image):
      logits, updates = model.apply(
        {"params": params, "batch_stats": stats},
        image,
        train=True,
        mutable=["batch_stats"],
      )
      return jnp.vdot(logits, cotangent), (logits, updates["batch_stats"])

    gradients, aux = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, image)
    evaluated = model.apply(
      {"params": params, "batch_stats": stats}, image, train=False
    )
    return gradients, aux, evaluated

  (gradients, image_gradient), (logits, new_stats), evaluated = run(
    params, image
  )
  np.testing.assert_allclose(evaluated, expected["eval"], atol=2e-5)
  np.testing.assert_allclose(logits, expected["train"], atol=2e-5)
  tolerance = {"atol": 2e-4, "rtol": 1e-3}
  np.testing.assert_allclose(image_gradient, expected["image"], **tolerance)
  expected_gradients, expected_stats = golden.discriminator_trees(
    {
      name.removeprefix("grad "): value
      for name, value in expected.items()
      if "." in name
    }
  )
  assert_trees_close(gradients, expected_gradients, **tolerance)
  # Running means are PyTorch's; running variances average the biased batch
  # variance, (n - 1) / n of PyTorch's.
  for name, leaf in new_stats.items():
    np.testing.assert_allclose(
      leaf["mean"], expected_stats[name]["mean"], atol=1e-5
    )
    side = input_size // 2 ** (int(name[2]) + int(name[4]))
    n = len(image) * side * side
    unbiased = (leaf["var"] - 0.9 * stats[name]["var"]) * n / (n - 1)
    np.testing.assert_allclose(
      unbiased + 0.9 * stats[name]["var"],
      expected_stats[name]["var"],
      atol=1e-5,
    )


@pytest.mark.parametrize(("num_feat", "input_size"), golden.DISCRIMINATORS)
def test_is_pytorchs(num_feat, input_size):
  expected = golden.load("discriminator")[str(input_size)]
  check_is_pytorchs(num_feat, input_size, expected)


@pytest.mark.torch
@pytest.mark.parametrize("input_size", [32, 24])
def test_is_pytorchs_when_larger(input_size):
  from tests.oracles import answers

  expected = answers.discriminator([(4, input_size)])[str(input_size)]
  check_is_pytorchs(4, input_size, expected)


@pytest.mark.parametrize(
  ("input_size", "side", "num_stages"),
  [(96, 3, 5), (128, 4, 5), (192, 3, 6), (256, 4, 6)],
)
def test_published_sizes(input_size, side, num_stages):
  model = VGGStyleDiscriminator(input_size=input_size)
  shapes = jax.eval_shape(
    lambda key, image: model.init(key, image, train=False),
    jax.random.key(0),
    jnp.zeros((1, input_size, input_size, 3)),
  )
  params = shapes["params"]
  assert params["linear1"]["kernel"].shape == (512 * side * side, 100)
  assert len([n for n in params if n.startswith("conv")]) == 2 * num_stages
  assert len(shapes["batch_stats"]) == 2 * num_stages - 1
  if input_size == 128:
    # Counted on BasicSR's module.
    assert sum(p.size for p in jax.tree.leaves(params)) == 14_499_401


def test_parameter_tree():
  model = VGGStyleDiscriminator(num_feat=2, input_size=12)
  variables = jax.eval_shape(
    lambda key, image: model.init(key, image, train=False),
    jax.random.key(0),
    jnp.zeros((1, 12, 12, 3)),
  )
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }
  assert shapes == {
    "batch_stats/bn0_1/mean": (2,),
    "batch_stats/bn0_1/var": (2,),
    "batch_stats/bn1_0/mean": (4,),
    "batch_stats/bn1_0/var": (4,),
    "batch_stats/bn1_1/mean": (4,),
    "batch_stats/bn1_1/var": (4,),
    "params/bn0_1/bias": (2,),
    "params/bn0_1/scale": (2,),
    "params/bn1_0/bias": (4,),
    "params/bn1_0/scale": (4,),
    "params/bn1_1/bias": (4,),
    "params/bn1_1/scale": (4,),
    "params/conv0_0/bias": (2,),
    "params/conv0_0/kernel": (3, 3, 3, 2),
    "params/conv0_1/kernel": (4, 4, 2, 2),
    "params/conv1_0/kernel": (3, 3, 2, 4),
    "params/conv1_1/kernel": (4, 4, 4, 4),
    "params/linear1/bias": (100,),
    "params/linear1/kernel": (36, 100),
    "params/linear2/bias": (1,),
    "params/linear2/kernel": (100, 1),
  }


def test_initial_weights_are_pytorchs_uniform():
  model = VGGStyleDiscriminator(num_feat=8, input_size=12)
  image = jnp.zeros((1, 12, 12, 3))
  params = init(model, jax.random.key(1), image, train=False)["params"]
  for layer, part, fan_in in (
    ("conv0_0", "kernel", 27),
    ("conv0_0", "bias", 27),
    ("conv1_1", "kernel", 16 * 16),
    ("linear1", "kernel", 144),
    ("linear1", "bias", 144),
    ("linear2", "kernel", 100),
  ):
    values = np.asarray(params[layer][part]) * np.sqrt(fan_in)
    assert 0.7 < np.abs(values).max() <= 1 + 1e-6
    assert np.std(values) == pytest.approx(3**-0.5, rel=0.35)


@pytest.mark.slow
def test_sharded_batches_share_their_statistics():
  model = VGGStyleDiscriminator(num_feat=2, input_size=12)
  # Devices' images differ in brightness: statistics per device would show.
  image = images(16, 12) * np.linspace(0, 1, 16, dtype=np.float32).reshape(
    16, 1, 1, 1
  )
  variables = init(model, jax.random.key(0), image, train=False)

  def loss(params, image):
    logits, updates = model.apply(
      {**variables, "params": params},
      image,
      train=True,
      mutable=["batch_stats"],
    )
    return jnp.mean(jnp.square(logits)), (logits, updates)

  step = jax.value_and_grad(loss, has_aux=True)
  (_, (logits, updates)), gradients = jax.jit(step)(variables["params"], image)
  mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
  split = NamedSharding(mesh, PartitionSpec("data"))
  whole = NamedSharding(mesh, PartitionSpec())
  (_, (split_logits, split_updates)), split_gradients = jax.jit(step)(
    jax.device_put(variables["params"], whole), jax.device_put(image, split)
  )
  np.testing.assert_allclose(split_logits, logits, atol=1e-5)
  assert_trees_close(split_updates, updates, atol=1e-6)
  assert_trees_close(split_gradients, gradients, atol=1e-5)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
  model = VGGStyleDiscriminator(num_feat=4, input_size=16, dtype=jnp.bfloat16)
  image = images(4, 16)
  variables = init(model, jax.random.key(0), image, train=False)

  @functools.partial(jax.jit, static_argnums=0)
  def apply(model, variables, image):
    return model.apply(variables, image, train=True, mutable=["batch_stats"])

  logits, updates = apply(model, variables, image)
  assert logits.dtype == jnp.float32
  leaves = jax.tree.leaves((variables, updates))
  assert all(leaf.dtype == jnp.float32 for leaf in leaves)
  exact, _ = apply(model.clone(dtype=jnp.float32), variables, image)
  np.testing.assert_allclose(logits, exact, atol=0.05)


def test_linear1_round_trip_follows_the_flattening():
  rng = np.random.default_rng(0)
  channels_first = rng.standard_normal((2, 5, 3, 3))
  weight = rng.standard_normal((7, 45))
  kernel = linear1_from_torch(weight, channels=5)
  channels_last = channels_first.transpose(0, 2, 3, 1)
  np.testing.assert_allclose(
    channels_last.reshape(2, -1) @ kernel,
    channels_first.reshape(2, -1) @ weight.T,
  )
  np.testing.assert_array_equal(linear1_to_torch(kernel, channels=5), weight)


def test_linear1_needs_a_square_map():
  with pytest.raises(ValueError, match="45 inputs are not a square map of 4"):
    linear1_from_torch(np.zeros((7, 45)), channels=4)
  with pytest.raises(ValueError, match="45 inputs are not a square map of 4"):
    linear1_to_torch(np.zeros((45, 7)), channels=4)


@pytest.mark.parametrize("input_size", [0, 3, 4, 20, 100, 129])
def test_unfit_sizes_raise(input_size):
  with pytest.raises(ValueError, match=f"power of two.*got {input_size}"):
    VGGStyleDiscriminator(num_feat=2, input_size=input_size)


@pytest.mark.parametrize("shape", [(1, 16, 24, 3), (16, 16, 3)])
def test_other_image_shapes_raise(shape):
  model = VGGStyleDiscriminator(num_feat=2, input_size=16)
  advice = r"\[B, 16, 16, C\].*(set input_size|image\[None\])"
  with pytest.raises(ValueError, match=advice):
    model.init(jax.random.key(0), jnp.zeros(shape), train=False)
