"""Keys of a batch's rows."""

import jax
import numpy as np
import pytest

from esrgan_jax.ops import keys


@jax.jit
def _draw(rows):
  return jax.vmap(lambda key: jax.random.uniform(key, (2,)))(rows)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_row_draws_the_same_in_any_batch(impl):
  key = jax.random.key(3, impl=impl)
  rows = keys.of_rows(key, 8)
  drawn = _draw(rows)
  assert len(np.unique(drawn)) == 16
  np.testing.assert_array_equal(drawn[:3], _draw(keys.of_rows(key, 3)))
  np.testing.assert_array_equal(drawn[4:], _draw(rows[4:]))
  other = _draw(keys.of_rows(jax.random.key(4, impl=impl), 8))
  assert (other != drawn).all()
  if impl == "threefry2x32":
    assert keys.as_threefry(key) == key
    legacy = jax.random.key_data(key)
    np.testing.assert_array_equal(drawn, _draw(keys.of_rows(legacy, 8)))


def test_names_have_keys_of_their_own():
  row = keys.of_rows(jax.random.key(0), 1)[0]
  drawn = [
    jax.random.bits(keys.named(row, name)).item()
    for name in ("noise", "blur", "noise")
  ]
  assert drawn[0] == drawn[2] != drawn[1]
