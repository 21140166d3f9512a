"""SRGAN's discriminator against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models.srgan_discriminator import (
  SRGANDiscriminator,
  pool_adaptively,
)
from tests import golden


def close(actual, expected, name=""):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=1e-4 * scale, err_msg=name
  )


def check_statistics(size, before, updates, expected):
  """Running means are PyTorch's; its variances are unbiased, ours are not."""
  num_images = len(golden.discriminator_input(size)[0])
  for name, leaf in updates.items():
    close(leaf["mean"], expected[name]["mean"], name)
    side = size
    for n in range(int(name[2:]) + 1):
      side = -(-side // (1 + n % 2))
    # Of three numbers, the last ones, that is a lot.
    num, old = num_images * side**2, 0.9 * before[name]["var"]
    unbiased = (leaf["var"] - old) * num / (num - 1) + old
    close(unbiased, expected[name]["var"], name)


def test_is_pytorchs():
  """In both modes."""
  num_feat, size, pool, _ = golden.SRGAN_DISCRIMINATORS[-1]
  model = SRGANDiscriminator(num_feat, pool=pool)  # Not of its `input_size`.
  expected = golden.load("srgan_discriminator")[str(size)]
  state = golden.srgan_state(golden.srgan_shapes(expected))
  params, stats = golden.srgan_discriminator_trees(state)

  @jax.jit
  def run(variables, image):
    evaluated = model.apply(variables, image, train=False)
    return evaluated, model.apply(
      variables, image, train=True, mutable=["batch_stats"]
    )

  image, _ = golden.discriminator_input(size)
  evaluated, (logits, updates) = run(
    {"params": params, "batch_stats": stats}, image
  )
  close(evaluated, expected["eval"])
  close(logits, expected["train"])
  statistics = {n: v for n, v in expected.items() if n.startswith("bn")}
  _, wanted = golden.srgan_discriminator_trees(state | statistics)
  check_statistics(size, stats, updates["batch_stats"], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("fields", golden.SRGAN_DISCRIMINATORS[:2])
def test_is_pytorchs_with_gradients(fields):
  num_feat, size, pool, norm_first = fields
  # Of another size than it is told: with a pool, it takes any.
  told = 96 if pool else size
  model = SRGANDiscriminator(num_feat, told, pool, norm_first=norm_first)
  expected = golden.load("srgan_discriminator")[str(size)]
  state = golden.srgan_state(golden.srgan_shapes(expected))
  params, stats = golden.srgan_discriminator_trees(state)
  image, cotangent = golden.discriminator_input(size)

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
    variables = {"params": params, "batch_stats": stats}
    return gradients, aux, model.apply(variables, image, train=False)

  (gradients, image_gradient), (logits, updates), evaluated = run(params, image)
  close(evaluated, expected["eval"])
  close(logits, expected["train"])
  close(image_gradient[:, :4], expected["image"])
  grads = {
    name.removeprefix("grad "): value
    for name, value in expected.items()
    if name.startswith("grad ")
  }
  statistics = {n: v for n, v in expected.items() if n.startswith("bn")}
  wanted, wanted_stats = golden.srgan_discriminator_trees(
    state | grads | statistics
  )
  jax.tree.map(close, gradients, jax.tree.map(np.asarray, wanted))
  check_statistics(size, stats, updates, wanted_stats)


@pytest.mark.parametrize(("pool", "side"), [(0, 6), (6, 6), (1, 1)])
def test_published_size(pool, side):
  model = SRGANDiscriminator(pool=pool)
  image = jnp.zeros((1, 96, 96, 3))
  shapes = jax.eval_shape(
    lambda key: model.init(key, image, train=False), jax.random.key(0)
  )
  params = shapes["params"]
  assert params["linear1"]["kernel"].shape == (512 * side**2, 1024)
  assert len([n for n in params if n.startswith("conv")]) == 8
  assert len(shapes["batch_stats"]) == 7
  if side == 6:  # Counted on PyTorch's, without its statistics.
    assert sum(p.size for p in jax.tree.leaves(params)) == 23_563_649


@pytest.mark.parametrize(("size", "side"), [(96, 6), (5, 2), (3, 6), (7, 3)])
def test_pools_every_pixel(size, side):
  """Rows' windows overlap where they do not divide: PyTorch's definition."""
  x = golden.draw("pooled", 2, size, size + 1, 2)
  rows = [
    x[:, i * size // side : -(-(i + 1) * size // side)].mean(1, keepdims=True)
    for i in range(side)
  ]
  y, size = np.concatenate(rows, 1), size + 1
  columns = [
    y[:, :, i * size // side : -(-(i + 1) * size // side)].mean(
      2, keepdims=True
    )
    for i in range(side)
  ]
  actual = pool_adaptively(jnp.asarray(x), side)
  np.testing.assert_allclose(actual, np.concatenate(columns, 2), atol=1e-6)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"input_size": 15}, "at least 16"),
    ({"pool": -1}, "pool is -1"),
    ({"norm": "instance?"}, "norm must be one of"),
    ({"num_feat": 0}, "num_feat is 0"),
  ],
)
def test_unfit_fields_raise(fields, message):
  with pytest.raises(ValueError, match=message):
    SRGANDiscriminator(**fields)


@pytest.mark.parametrize(("pool", "side"), [(0, 20), (6, 12)])
def test_other_image_sizes_raise(pool, side):
  model = SRGANDiscriminator(2, input_size=16, pool=pool)
  image = jnp.zeros((1, side, side, 3))
  with pytest.raises(ValueError, match="16"):
    jax.eval_shape(
      lambda key: model.init(key, image, train=False), jax.random.key(0)
    )
