"""Network interpolation: endpoints, arithmetic and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.interpolate import interpolate_params


def tree(seed, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return {
    "conv": {
      "kernel": rng.standard_normal((3, 3, 2, 4)).astype(dtype),
      "bias": rng.standard_normal(4).astype(dtype),
    },
    "scale": np.asarray(rng.standard_normal(), dtype),
  }


@pytest.mark.parametrize("alpha", [0.2, 0.8, -0.5, 1.5, np.float32(0.3)])
def test_equals_net_interp(alpha):
  a, b = tree(0), tree(1)
  mixed = interpolate_params(a, b, alpha=alpha)
  assert jax.tree.structure(mixed) == jax.tree.structure(a)
  alpha = float(alpha)
  for x, y, z in zip(*map(jax.tree.leaves, (a, b, mixed)), strict=True):
    assert z.dtype == x.dtype
    np.testing.assert_allclose(
      z, (1 - alpha) * x.astype(float) + alpha * y.astype(float), atol=1e-6
    )


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_endpoints_are_exact_to_the_bit(dtype, jit):
  a, b = tree(0, dtype), tree(1, dtype)
  # Values that 0 * x + 1 * y does not carry over: signed zero, inf and nan.
  a["conv"]["bias"][:] = [-0.0, np.inf, np.nan, 1e-3]
  b["conv"]["bias"][:] = [np.nan, -0.0, -np.inf, np.nan]

  def mix(alpha):
    return interpolate_params(a, b, alpha=alpha)

  mix = jax.jit(mix) if jit else mix
  for alpha, end in ((0.0, a), (1.0, b), (0, a), (1, b)):
    for x, y in zip(*map(jax.tree.leaves, (mix(alpha), end)), strict=True):
      assert np.asarray(x).tobytes() == y.tobytes()


def test_half_precision_is_mixed_in_float32():
  a = {"w": jnp.full(1, 1.0, jnp.bfloat16)}
  b = {"w": jnp.full(1, 1.0078125, jnp.bfloat16)}
  mixed = interpolate_params(a, b, alpha=0.75)["w"]
  # 1.005859 lies next to 1.0078125; bfloat16's 0.25 + 0.7559 could not tell.
  assert mixed.dtype == jnp.bfloat16
  assert float(mixed[0]) == 1.0078125


def test_vmap_over_alpha():
  a, b = tree(0), tree(1)
  alphas = jnp.array([0.0, 0.4, 1.0])
  stacked = jax.vmap(lambda t: interpolate_params(a, b, alpha=t))(alphas)
  for index, alpha in enumerate(alphas):
    single = interpolate_params(a, b, alpha=alpha)
    for x, y in zip(*map(jax.tree.leaves, (stacked, single)), strict=True):
      np.testing.assert_allclose(x[index], y, atol=1e-6)


def test_a_model_with_itself_is_itself():
  a = tree(0)
  mixed = interpolate_params(a, a, alpha=0.37)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-6), mixed, a)


def test_differences_are_named():
  a, b = tree(0), tree(1)
  b["conv"]["kernel"] = np.zeros((3, 3, 2, 5), np.float32)
  b["extra"] = b.pop("scale")
  with pytest.raises(ValueError, match="one architecture") as error:
    interpolate_params(a, b, alpha=0.5)
  message = str(error.value)
  assert "scale: only in params_a" in message
  assert "extra: only in params_b" in message
  assert "conv/kernel: float32[3, 3, 2, 4] and float32[3, 3, 2, 5]" in message


def test_many_differences_are_counted():
  a = {f"layer{i}": np.zeros(1) for i in range(12)}
  with pytest.raises(ValueError, match=r"layer0.*and 7 more"):
    interpolate_params(a, {}, alpha=0.5)


def test_dtypes_containers_and_integers_are_refused():
  a = tree(0)
  with pytest.raises(ValueError, match=r"bias: float32\[4\] and bfloat16"):
    interpolate_params(a, tree(1, jnp.bfloat16), alpha=0.5)
  with pytest.raises(ValueError, match="not floating-point"):
    interpolate_params({"step": 1}, {"step": 2}, alpha=0.5)
  with pytest.raises(ValueError, match=r"one architecture: they: no array$"):
    interpolate_params(None, None, alpha=0.5)
  with pytest.raises(ValueError, match="containers of different types"):
    interpolate_params([np.zeros(1)], (np.zeros(1),), alpha=0.5)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alpha_must_be_finite(alpha):
  with pytest.raises(ValueError, match="alpha must be finite"):
    interpolate_params(tree(0), tree(1), alpha=alpha)


def test_alpha_must_be_a_scalar():
  with pytest.raises(ValueError, match=r"shape \(2,\): use jax.vmap"):
    interpolate_params(tree(0), tree(1), alpha=jnp.array([0.2, 0.8]))
