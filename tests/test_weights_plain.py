"""Networks of the user's own in files, by a name that they registered."""

import json
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models import registry
from esrgan_jax.weights import files
from esrgan_jax.weights.dialects import plain
from esrgan_jax.weights.dialects.protocol import UnsupportedWeightsError
from esrgan_jax.weights.formats import safetensors_file


class Toy(nn.Module):
  """A convolution with BatchNorm, and as plain fields as there are."""

  scale: int = 2
  width: int = 4
  gain: float = 0.5
  kind: str = "nearest"
  norm: bool = True
  sizes: tuple[int, ...] = (3, 3)
  extra: int | None = None

  @nn.compact
  def __call__(self, lr, *, train=False):
    x = nn.Conv(self.width, self.sizes, name="first")(lr)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
    x = nn.Conv(3 * self.scale**2, (1, 1), name="last")(x) * self.gain
    n, h, w, _ = x.shape
    x = x.reshape(n, h, w, self.scale, self.scale, 3).swapaxes(2, 3)
    return x.reshape(n, h * self.scale, w * self.scale, 3)


@pytest.fixture(name="toy", autouse=True)
def _toy():
  registry.register_generator("Toy", Toy)
  yield
  registry.unregister("Toy")


def _variables(**fields):
  variables = Toy(**fields).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
  draw = np.random.default_rng(0).standard_normal
  return jax.tree.map(lambda x: draw(x.shape).astype(np.float32), variables)


def _write(path, fields=None, **options):
  variables = _variables(**(fields or {}))
  params = variables.pop("params")
  config = {"architecture": "Toy", "scale": 2, **(fields or {})}
  return files.write_weights(
    path, params, config, collections=variables, **options
  )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_round_trip_is_exact(tmp_path, suffix):
  if suffix == ".pth":
    pytest.importorskip("torch")
  fields = {"scale": 3, "width": 5, "gain": 0.1, "sizes": (1, 1), "extra": 7}
  path = _write(tmp_path / f"a{suffix}", fields, metadata={"licence": "MIT"})
  found = files.read_weights(path)
  net = registry.make_generator(**found.config)
  assert net == Toy(**fields)
  expected = _variables(**fields)
  read = {"params": found.params, **found.collections}
  assert jax.tree.structure(read) == jax.tree.structure(dict(expected))
  jax.tree.map(np.testing.assert_array_equal, read, dict(expected))
  assert found.metadata["licence"] == "MIT"
  # What is read can be written again, and is the same.
  again = files.write_weights(
    tmp_path / "b.safetensors",
    found.params,
    found.config,
    collections=found.collections,
    metadata={"licence": "MIT"},
  )
  if suffix == ".safetensors":
    assert again.read_bytes() == path.read_bytes()


def test_half_precision(tmp_path):
  path = _write(tmp_path / "a.safetensors", dtype="float16")
  found = files.read_weights(path)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y.astype(np.float16)),
    dict(found.params),
    dict(_variables()["params"]),
  )


def test_scale_must_agree(tmp_path):
  path = _write(tmp_path / "a.safetensors")
  assert files.read_weights(path, scale=2).config["scale"] == 2
  with pytest.raises(ValueError, match=r"scale 4 was asked for, .* a x2"):
    files.read_weights(path, scale=4)


class _Usual(Toy):
  """Has fields as Flax's own layers have them."""

  act: Callable[[jax.Array], jax.Array] = nn.relu
  param_dtype: Any = jnp.float32
  sizes: tuple[int, ...] = (3, 1)
  norm: str | None = None
  layers: Any = (nn.relu, 3)


def test_fields_that_no_config_can_hold_are_the_codes():
  registry.register_generator("_Usual", _Usual)
  try:
    fields = dict(registry.find_generator("_Usual").fields)
    plain = dict(registry.find_generator("Toy").fields)
    assert fields == plain | {"sizes": (3, 1), "norm": None}
    made = registry.make_generator("_Usual", sizes=(5, 1))
    assert (made.sizes, made.act) == ((5, 1), nn.relu)
    with pytest.raises(ValueError, match="_Usual has no field act"):
      registry.make_generator("_Usual", act="relu")
  finally:
    registry.unregister("_Usual")


def test_a_network_that_has_changed_since(tmp_path):
  path = _write(tmp_path / "a.safetensors")

  class Other(Toy):
    @nn.compact
    def __call__(self, lr):
      return nn.Conv(3, (1, 1), name="last")(lr)

  registry.unregister("Toy")
  registry.register_generator("Toy", Other)
  with pytest.raises(
    UnsupportedWeightsError,
    match=r"a\.saf.*not the weights of Toy as it is now: 0 arrays.*params/last",
  ):
    files.read_weights(path)


def test_an_unregistered_name_is_not_looked_for_elsewhere(tmp_path):
  path = _write(tmp_path / "a.safetensors")
  registry.unregister("Toy")
  with pytest.raises(
    registry.UnknownArchitectureError, match=r"a\.saf.*'Toy'.*--plugin FILE"
  ) as error:
    files.read_weights(path)
  assert "\n" not in str(error.value)
  for name in ("antigravity", "os.system", "esrgan_jax.models.rrdb.RRDBNet"):
    data = safetensors_file.to_bytes(
      {"a": np.zeros(1, np.float32)}, {"architecture": name}
    )
    path.write_bytes(data)
    with pytest.raises(registry.UnknownArchitectureError, match=r"a\.saf"):
      files.read_weights(path)
  assert "antigravity" not in sys.modules
  with pytest.raises(registry.UnknownArchitectureError, match="'Toy'"):
    _write(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ("", "cannot be read"),
    ("[]", "cannot be read: no fields"),
    ("[" * 5000, "cannot be read"),
    (json.dumps({"scale": 2, "x": "9" * 10_000}), "the limit is 10000"),
    ('{"scale": 2, "width": ' + "9" * 5000 + "}", "cannot be read"),
    ('{"scale": 2, "architecture": "RRDBNet"}', "cannot be read"),
    ('{"scale": 2, "depth": 1}', "Toy has no field depth; it has scale, width"),
    ('{"scale": 2, "parent": null}', "Toy has no field parent"),
    ('{"scale": 2, "width": "4"}', "Toy cannot have width='4'"),
    ('{"scale": 2, "width": 4.0}', "Toy cannot have width=4.0"),
    ('{"scale": 2, "width": true}', "Toy cannot have width=True"),
    ('{"scale": 2, "width": 1000000000}', "Toy cannot have width=1000000000"),
    ('{"scale": 2, "gain": NaN}', "Toy cannot have gain=nan"),
    ('{"scale": 2, "norm": 1}', "Toy cannot have norm=1"),
    ('{"scale": 2, "kind": {}}', "Toy cannot have kind={}"),
    ('{"scale": 2, "sizes": [3, [3]]}', "Toy cannot have sizes="),
    ('{"scale": 2, "sizes": [3, "3"]}', "Toy cannot have sizes="),
    ('{"scale": 2, "extra": {"a": 1}}', "Toy cannot have extra="),
    ('{"width": 4}', "no scale"),
    ('{"scale": 2, "width": null}', "Toy cannot be made with its fields: "),
    ('{"scale": 2, "sizes": [-1, 3]}', "Toy cannot be made with its fields: "),
    ('{"scale": 2}', "not the weights of Toy as it is now: 0 arrays"),
  ],
)
def test_fields_are_not_believed(tmp_path, fields, message):
  path = tmp_path / "a.safetensors"
  metadata = {"architecture": "Toy", "fields": fields}
  path.write_bytes(
    safetensors_file.to_bytes({"a": np.zeros(1, np.float32)}, metadata)
  )
  with pytest.raises(ValueError, match=r"a\.safetensors: ") as error:
    files.read_weights(path)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({}, "no parameters"),
    ({"collections.stats.mean": 1.0}, "no parameters"),
    ({"collections": 1.0, "a": 1.0}, "no parameters"),
    ({"a": 1.0, "a.b": 1.0}, "a.b is no path"),
    ({"a.b": 1.0, "a": 1.0}, "a is no path"),
    ({"": 1.0}, " is no path"),
    ({"a..b": 1.0}, "a..b is no path"),
    ({".".join("a" * 40): 1.0}, "is no path"),
    ({"a": np.nan}, "a has 1 values that are NaN"),
    ({"a\x1b[31m": np.inf}, r"a\x1b[31m has 1 values"),
  ],
)
def test_arrays_that_are_no_tree(arrays, message):
  state = {name: np.full(1, value) for name, value in arrays.items()}
  with pytest.raises(UnsupportedWeightsError) as error:
    plain.from_state_dict(state)
  assert message in str(error.value)


@pytest.mark.parametrize(
  "tree",
  [{"a.b": np.ones(1)}, {"": np.ones(1)}, {"collections": {"a": np.ones(1)}}],
)
def test_trees_that_a_file_cannot_hold(tree):
  with pytest.raises(UnsupportedWeightsError):
    plain.to_state_dict(tree, {})


def test_counts_stay_whole():
  state = plain.to_state_dict(
    {"a": np.float64(0.1)}, {"stats": {"count": np.int32(7)}}
  )
  params, collections = plain.from_state_dict(state)
  assert params["a"].dtype == np.float32
  assert params["a"].shape == ()
  assert collections["stats"]["count"].dtype == np.int32
  assert collections["stats"]["count"] == 7
