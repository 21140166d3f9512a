"""The upscaler: tiles against the whole image, dtypes, memory, many devices."""

import copy
import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.upscaling import memory, upscaler
from esrgan_jax.upscaling.upscaler import Upscaler
from esrgan_jax.weights import files, zoo
from tests import golden, networks


def make_model(seed=0, devices=1, **fields):
  net = RRDBNet(**{"num_feat": 8, "num_block": 1, "num_grow_ch": 4, **fields})
  shapes = jax.eval_shape(
    net.init, jax.random.key(0), jnp.zeros((8, 8, net.num_in_ch))
  )["params"]
  random = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda a: random.normal(0, 0.12, a.shape).astype(np.float32), shapes
  )
  return Upscaler(net, params, devices=jax.devices()[:devices])


def photo(*shape, dtype=np.float32, seed=1):
  image = np.random.default_rng(seed).random(shape)
  if dtype == np.float32:
    return image.astype(dtype)
  return np.rint(image * np.iinfo(dtype).max).astype(dtype)


jitted = functools.cache(jax.jit)


def whole(model, image):
  return np.asarray(jitted(model)(image))


@pytest.fixture(scope="module")
def model():
  return make_model()


@pytest.mark.parametrize(
  ("size", "tile"),
  [
    ((131, 77), 16),
    ((1, 200), 64),
    pytest.param((131, 77), 40, marks=pytest.mark.slow),
    pytest.param((1, 1), 16, marks=pytest.mark.slow),
    pytest.param((2, 3), 8, marks=pytest.mark.slow),
  ],
)
def test_exact_tiles_equal_the_whole_image(model, size, tile):
  image = photo(*size, 3)
  expected = whole(model, image)
  actual = model.upscale(image, tile=tile, exact=True)
  assert actual.shape == (size[0] * 4, size[1] * 4, 3)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("tile", [0, "auto"])
def test_other_tiles_of_an_awkward_size(model, tile):
  image = photo(131, 77, 3)
  actual = model.upscale(image, tile=tile)
  np.testing.assert_allclose(actual, whole(model, image), atol=1e-5)


@pytest.mark.parametrize(
  ("fields", "size"),
  [
    ({"scale": 2}, (51, 37)),
    ({"scale": 3}, (40, 33)),
    pytest.param({"scale": 1}, (50, 41), marks=pytest.mark.slow),
    pytest.param(
      {"scale": 2, "unshuffle": 1}, (51, 37), marks=pytest.mark.slow
    ),
  ],
)
def test_every_scale_and_sizes_that_do_not_divide(fields, size):
  model = make_model(**fields)
  image = photo(*size, 3)
  factor = model.net.unshuffle_factor
  padded = np.pad(
    image, [(0, -n % factor) for n in size] + [(0, 0)], mode="reflect"
  )
  expected = whole(model, padded)
  expected = expected[: size[0] * model.scale, : size[1] * model.scale]
  actual = model.upscale(image, tile=8, exact=True)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_too_narrow_a_halo_is_seen():
  # Otherwise the tests above could not fail.
  model = make_model()
  image = photo(40, 40, 3)
  actual = model.upscale(image, tile=16, halo=1)
  assert np.abs(actual - whole(model, image)).max() > 1e-3


def test_tiles_are_shared_out_to_all_devices():
  image = photo(110, 90, 3)
  one, many = make_model(), make_model(devices=8)
  expected = one.upscale(image, tile=16, exact=True)
  counts = []
  actual = many.upscale(
    image, tile=16, exact=True, progress=lambda *c: counts.append(c)
  )
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  total = counts[0][1]
  assert total > 8
  assert counts[1][0] == 8
  assert counts[-1] == (total, total)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_the_rounded_and_clipped_floats(model, dtype):
  image = photo(20, 24, 3, dtype=dtype)
  levels = np.iinfo(dtype).max
  exact = whole(model, image.astype(np.float32) / levels)
  actual = model.upscale(image)
  assert actual.dtype == dtype
  expected = np.clip(exact, 0, 1).astype(np.float64) * levels
  np.testing.assert_allclose(actual, expected, atol=0.51 + 1e-6 * levels)
  assert len(np.unique(actual)) > 100


def test_grey_stays_grey_and_is_the_luma_of_the_colour_result(model):
  image = photo(20, 24)
  colour = whole(model, np.repeat(image[..., None], 3, axis=-1))
  expected = colour @ np.array([0.299, 0.587, 0.114])
  np.testing.assert_allclose(model.upscale(image), expected, atol=1e-5)
  with_axis = model.upscale(image[..., None])
  assert with_axis.shape == (80, 96, 1)
  np.testing.assert_array_equal(with_axis[..., 0], model.upscale(image))


def test_jax_arrays_and_a_given_place(model, tmp_path):
  image = jnp.asarray(photo(20, 24, 3))
  out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(80, 96, 3))
  result = model.upscale(image, out=out)
  assert result is out
  np.testing.assert_allclose(out, whole(model, image), atol=1e-5)


def test_below_upscale_it_is_a_pure_function(model):
  images = photo(3, 20, 24, 3)
  batched = jitted(model)(images)
  mapped = jax.jit(jax.vmap(model))(images)
  np.testing.assert_allclose(batched, mapped, atol=1e-5)
  np.testing.assert_allclose(batched[1], model.upscale(images[1]), atol=1e-5)


def test_its_weights_are_arguments_of_a_program():
  # At real width, where the text would be megabytes.
  net = RRDBNet(num_block=2)
  params = networks.random_params(net, jnp.zeros((8, 8, 3)))
  model = Upscaler(net, params, devices=jax.devices()[:1])
  lr = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert size > 6e6
  for run in (Upscaler.__call__, lambda model, lr: model(lr)):
    assert len(jax.jit(run).lower(model, lr).as_text()) < 2e5


def test_it_is_a_pytree(model):
  lr = photo(1, 20, 24, 3)
  run = jitted(Upscaler.__call__)
  expected = run(model, lr)
  np.testing.assert_allclose(expected, whole(model, lr), atol=1e-5)
  half = jax.tree.map(lambda leaf: leaf / 2, model)
  assert half.name == ""
  # A program of the one is a program of the other, without their weights.
  with jax.no_tracing():
    changed = run(half, lr)
  assert np.abs(changed - expected).max() > 1e-3
  np.testing.assert_allclose(half.upscale(lr[0]), changed[0], atol=1e-5)
  assert half._programs is model._programs
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(model)]
  assert jax.tree_util.keystr(paths[0]).startswith(".params['body']")


@pytest.mark.slow
def test_models_in_a_batch_and_their_gradients(model):
  lr = photo(1, 20, 24, 3)
  half = jax.tree.map(lambda leaf: leaf / 2, model)
  both = jax.tree.map(lambda *leaves: jnp.stack(leaves), model, half)
  run = jax.jit(jax.vmap(Upscaler.__call__, in_axes=(0, None)))
  for found, one in zip(run(both, lr), (model, half), strict=True):
    np.testing.assert_allclose(found, one(lr), atol=1e-5)
  gradient = jax.jit(jax.grad(lambda model: model(lr).sum()))(model)
  assert isinstance(gradient, Upscaler)
  assert np.isfinite(gradient.params["conv_last"]["kernel"]).all()


def test_nobody_changes_it(model):
  for name in ("params", "net", "collections", "name", "anything"):
    with pytest.raises(AttributeError, match="is not changed"):
      setattr(model, name, None)
  with pytest.raises(AttributeError, match="is not changed"):
    del model.net
  tree = model.params
  tree["conv_first"]["kernel"] = None
  assert model.params["conv_first"]["kernel"] is not None


def test_copies_and_pickles():
  model = make_model(devices=2)
  named = Upscaler(
    model.net, model.params, name="it", notes=["a"], devices=jax.devices()[:2]
  )
  assert copy.deepcopy(named) is copy.copy(named) is named
  other = pickle.loads(pickle.dumps(named))
  assert repr(other) == "Upscaler(it, x4)"
  assert other.notes == ("a",)
  assert jax.tree.structure(other) == jax.tree.structure(named)
  for a, b in zip(*map(jax.tree.leaves, (named, other)), strict=True):
    assert a.sharding == b.sharding
    np.testing.assert_array_equal(a, b)


def test_other_parameters_of_another_dtype_get_a_program_of_their_own():
  model = make_model()
  image = photo(9, 7, 3)
  expected = model.upscale(image)
  rough = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
  found = rough.upscale(image)
  assert len(model._programs) == 2
  assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_one_program_for_an_image_and_for_the_next_of_its_size():
  model = make_model()
  model.upscale(photo(131, 77, 3), tile=16, exact=True)
  model.upscale(photo(131, 77, 3), tile=16, exact=True)
  assert len(model._programs) == 1


@pytest.mark.parametrize(
  "tile", ["auto", 256, pytest.param(0, marks=pytest.mark.slow)]
)
def test_the_compilers_report_decides_about_tiles(monkeypatch, model, tile):
  image = photo(150, 150, 3, dtype=np.uint8)
  expected = np.clip(whole(model, image / np.float32(255)), 0, 1) * 255
  model.upscale(image, tile=0, exact=True)
  ((shape, *_),) = (key for key in model._programs if key[0].area >= 150**2)
  needed = memory.needed_memory(model._program(shape, image.dtype))
  assert needed > 150 * 150 * 3
  monkeypatch.setattr(memory, "free_memory", lambda device: needed // 2)
  counts, messages = [], []
  actual = model.upscale(
    image,
    tile=tile,
    exact=True,
    progress=lambda *c: counts.append(c),
    notify=messages.append,
  )
  assert counts[-1][1] > 1
  assert (np.abs(actual - expected) <= 1).all()
  # Whoever named a size hears of it.
  assert bool(messages) == (tile != "auto")
  monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
  with pytest.raises(upscaler.OutOfMemoryError, match="without exact tiles"):
    model.upscale(image, exact=True)


def test_running_out_of_memory_starts_again_with_smaller_tiles(monkeypatch):
  model = make_model()
  image = photo(131, 77, 3)
  expected = whole(model, image)
  program, runs = model._program, []
  # XLA's own error, after the call has returned: it waits for the other.
  slow = jax.jit(lambda x: (x @ x @ x @ x).sum())
  vast = jax.jit(lambda x: jnp.zeros(2**46) + x)

  def scarce(shape, dtype):
    compiled = program(shape, dtype)

    def run(*arguments):
      runs.append(shape)
      if len(runs) == 2:  # In the middle of the image.
        failing = vast(slow(jnp.ones((1000, 1000))))
        return failing, failing
      return compiled(*arguments)

    run.memory_analysis = compiled.memory_analysis
    return run

  monkeypatch.setattr(Upscaler, "_program", lambda _, *of: scarce(*of))
  with pytest.warns(UserWarning, match="too little memory for tiles of") as w:
    actual = model.upscale(image, tile=32, exact=True)
  assert len(w) == 1
  assert runs[-1].height < runs[0].height
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_an_error_that_is_not_about_memory_passes_through(model):
  def progress(*_):
    raise RuntimeError("the user's own")

  with pytest.raises(RuntimeError, match="the user's own"):
    model.upscale(photo(20, 24, 3), progress=progress)


def test_a_result_that_is_not_finite_is_an_error(model):
  image = photo(20, 24, 3)
  image[3, 3] = np.nan
  with pytest.raises(FloatingPointError, match="not finite"):
    model.upscale(image)


@pytest.mark.parametrize(
  ("image", "options", "message"),
  [
    (np.zeros((4, 4, 4)), {}, r"\(4, 4, 4\)"),
    (np.zeros((0, 4, 3)), {}, "at least one pixel"),
    (np.zeros((4, 4, 3), np.int32), {}, "int32"),
    (np.zeros((4, 4, 3)), {"tile": -1}, "tile is -1"),
    (np.zeros((4, 4, 3)), {"tile": "big"}, "tile is 'big'"),
    (np.zeros((4, 4, 3)), {"tile": 8, "halo": -1}, "halo -1"),
    (np.zeros((4, 4, 3)), {"out": np.zeros((4, 4, 3))}, "must be float32"),
  ],
)
def test_misuse_is_explained(model, image, options, message):
  with pytest.raises(ValueError, match=message):
    model.upscale(image, **options)


def test_load_takes_names_and_files(tmp_path):
  net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, scale=2)
  model = make_model(num_feat=4, num_grow_ch=2, scale=2)
  config = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 2}
  path = tmp_path / "mine.safetensors"
  files.write_weights(path, jax.device_get(model.params), config)
  loaded = upscaler.load(path)
  assert loaded.name == "mine.safetensors"
  assert loaded.net.scale == net.scale
  image = photo(6, 8, 3)
  np.testing.assert_allclose(
    loaded.upscale(image), model.upscale(image), atol=1e-5
  )
  assert upscaler.load(path, dtype="bfloat16").net.dtype == jnp.bfloat16
  with pytest.raises(ValueError, match="did you mean realesrgan-x4plus"):
    upscaler.load("realesrgan-x4-plus")
  with pytest.raises(FileNotFoundError):
    upscaler.load(tmp_path / "none.pth")
  with pytest.raises(ValueError, match="no dtype 'float16'"):
    upscaler.load(path, dtype="float16")


@pytest.mark.parametrize(
  ("name", "size", "ensemble"),
  [
    ("fast", 40, True),
    # At its real width, of a size with several strips.
    pytest.param("realesrgan-x4plus-anime", 100, False, marks=pytest.mark.slow),
  ],
)
def test_on_a_cpu_a_model_of_bfloat16_only_multiplies_in_it(
  name, size, ensemble
):
  image = skimage.data.astronaut()[150 : 150 + size, 150 : 150 + size]
  results = []
  for dtype in ("float32", "bfloat16"):
    model = upscaler.load(name, dtype=dtype, devices=jax.devices()[:1])
    model = model.with_ensemble() if ensemble else model
    results.append(model.upscale(image).astype(int))
    (program,) = model._programs.values()
    assert ("bf16" in program.as_text()) == (dtype == "bfloat16")
  # OpenVINO's bfloat16 errs by 0.27 in the mean with x4plus, by 14 at most.
  error = np.abs(results[1] - results[0])
  assert 0.01 < error.mean() < 0.3
  assert error.max() <= 16


class _Blur(nn.Module):
  """A network of strangers: no mask, no halves, sizes that must be even."""

  scale: int = 2
  size_multiple: int = 2
  receptive_radius: int | None = 4

  @nn.compact
  def __call__(self, lr):
    x = nn.Conv(8, (5, 5))(lr)
    x = nn.relu(nn.Conv(4, (5, 5))(x))
    x = x.repeat(self.scale, axis=-3).repeat(self.scale, axis=-2)
    return nn.Conv(3, (1, 1))(x)


class _Normed(nn.Module):
  """Has running statistics, and tells nothing of how far it looks."""

  scale: int = 2

  @nn.compact
  def __call__(self, lr, train=False):
    x = nn.Conv(4, (3, 3))(lr)
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = x.repeat(self.scale, axis=-3).repeat(self.scale, axis=-2)
    return nn.Conv(3, (3, 3))(x)


class _Masked(nn.Module):
  """Takes a mask, has no halves."""

  scale: int = 2
  receptive_radius: int = 3

  @nn.compact
  def __call__(self, lr, valid=None):
    x = nn.Conv(8, (5, 5))(lr)
    # Its bias is not zero outside.
    x = x if valid is None else x * valid.astype(x.dtype)
    x = x.repeat(self.scale, axis=-3).repeat(self.scale, axis=-2)
    return nn.Conv(3, (3, 3))(x)


class _InHalves(nn.Module):
  """Has halves, takes no mask."""

  scale: int = 2
  num_feat: int = 6
  receptive_radius: int = 3
  reconstruct_radius: int = 1

  def setup(self):
    self.first = nn.Conv(self.num_feat, (5, 5))
    self.last = nn.Conv(3, (3, 3))

  def __call__(self, lr):
    return self.reconstruct(self.features(lr))

  def features(self, lr):
    return self.first(lr)

  def reconstruct(self, features):
    x = features.repeat(self.scale, axis=-3).repeat(self.scale, axis=-2)
    return self.last(x)


@pytest.mark.parametrize("net", [_Masked(), _InHalves()])
@pytest.mark.parametrize("size", [(61, 37), (9, 40)])
def test_a_mask_and_halves_each_without_the_other(monkeypatch, net, size):
  variables = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  params = jax.tree.map(lambda x: x + 0.1, variables["params"])
  model = Upscaler(net, params, devices=jax.devices()[:1])
  image = photo(*size, 3)
  # A few rows a strip, where there are strips.
  monkeypatch.setattr(memory, "strip_size", lambda platform: 2000)
  for tile in (0, 16):
    actual = model.upscale(image, tile=tile, exact=True)
    np.testing.assert_allclose(actual, whole(model, image), atol=1e-5)
  strips = {key[0].num_strips for key in model._programs}
  assert (max(strips) > 1) == isinstance(net, _InHalves)


@pytest.mark.parametrize("size", [(61, 37), (9, 40), (3, 2)])
def test_tiles_of_a_network_without_mask_equal_the_whole_image(size):
  net = _Blur()
  params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  model = Upscaler(net, params, devices=jax.devices()[:1])
  image = photo(*size, 3)
  padded = np.pad(image, [(0, n % 2) for n in size] + [(0, 0)], mode="reflect")
  expected = whole(model, padded)[: 2 * size[0], : 2 * size[1]]
  for tile in (0, 16):
    actual = model.upscale(image, tile=tile, exact=True)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_network_that_does_not_tell_how_far_it_looks():
  net = _Normed()
  lr = jnp.zeros((1, 8, 8, 3))
  variables = net.init(jax.random.key(0), lr)
  statistics = jax.tree.map(lambda x: x + 0.25, variables["batch_stats"])
  model = Upscaler(
    net,
    variables["params"],
    {"batch_stats": statistics},
    devices=jax.devices()[:1],
  )
  image = photo(31, 40, 3)
  expected = net.apply(
    {"params": variables["params"], "batch_stats": statistics}, image
  )
  # The default halo is wide enough by far for this one.
  one = {"tile": 40, "exact": True}
  for options in (
    {"tile": 0},
    {"tile": 16, "halo": 3},
    {},
    one,
    one | {"tile": 0},
  ):
    actual = model.upscale(image, **options)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
  np.testing.assert_allclose(whole(model, image), expected, atol=1e-5)
  others = {"batch_stats": variables["batch_stats"]}
  other = model.with_params(variables["params"], others)
  assert np.abs(other.upscale(image) - expected).max() > 1e-3
  with pytest.raises(
    ValueError, match=r": _Normed does not tell how far it looks.*\(tile 0\)"
  ):
    model.upscale(image, tile=16, halo=3, exact=True)


def test_default_model_is_pytorchs_within_a_level():
  expected = golden.load("default_model")[zoo.DEFAULT]
  sr = upscaler.load(zoo.DEFAULT).upscale(expected["lr"], tile=0)
  assert sr.dtype == np.uint8
  error = np.abs(sr.astype(int) - expected["sr"].astype(int))
  assert error.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_any_mesh_may_be_set(devices):
  model = make_model(devices=devices)
  lr = jnp.asarray(photo(8, 9, 3))[None].repeat(8, axis=0)
  expected = model(lr)
  mesh = jax.make_mesh((8,), ("d",))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
  with jax.set_mesh(mesh):
    apart = jax.device_put(lr, split)
    found = [
      model(lr),
      model(apart),
      jax.jit(Upscaler.__call__)(model, apart),
      model.net.apply({"params": model.params}, lr),
    ]
    # Its first, for which it compiles.
    assert model.upscale(photo(9, 8, 3)).shape == (36, 32, 3)
  assert found[1].sharding.spec[0] == "d"
  for each in found:
    np.testing.assert_allclose(each, expected, atol=1e-5)
