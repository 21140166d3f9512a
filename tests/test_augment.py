import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from esrgan_jax import augment


def _coordinates(size, scale=1):
  """Square image whose channels say which LR row and column a pixel is of."""
  y, x = np.mgrid[: size * scale, : size * scale] // scale
  return np.stack([y, x, 0 * y], axis=-1).astype(np.uint8)


def test_the_symmetries_are_numpys_flips_and_quarter_turns():
  image = _coordinates(5)
  ours = {np.asarray(augment.symmetry(image, c)).tobytes() for c in range(8)}
  turns = [
    np.rot90(flipped, k)
    for k in range(4)
    for flipped in (image, image[:, ::-1])
  ]
  assert ours == {turn.tobytes() for turn in turns}
  assert len(ours) == augment.NUM_SYMMETRIES


def test_symmetry_refuses_what_a_turn_would_reshape():
  with pytest.raises(ValueError, match="square"):
    augment.symmetry(jnp.zeros((4, 6, 3)), 4)


def test_augment_keeps_pairs_aligned_and_uses_every_symmetry():
  count, size, scale = 96, 6, 4
  lr = jnp.tile(_coordinates(size), (count, 1, 1, 1))
  hr = jnp.tile(_coordinates(size, scale), (count, 1, 1, 1))
  out = augment.augment(jax.random.key(3), {"lr": lr, "hr": hr})
  lr, hr = np.asarray(out["lr"]), np.asarray(out["hr"])
  np.testing.assert_array_equal(hr, lr.repeat(scale, 1).repeat(scale, 2))
  assert len({image.tobytes() for image in lr}) == 8


def test_augment_does_not_depend_on_sharding_or_jit():
  mesh = Mesh(np.array(jax.devices()), ("data",))
  batch = {
    "lr": jax.random.uniform(jax.random.key(0), (8, 4, 4, 3)),
    "hr": jax.random.uniform(jax.random.key(1), (8, 8, 8, 3)),
  }
  expected = augment.augment(jax.random.key(2), batch)
  spread = jax.device_put(batch, NamedSharding(mesh, P("data")))
  got = jax.jit(augment.augment)(jax.random.key(2), spread)
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_augment_refuses_batches_of_different_sizes():
  batch = {"lr": jnp.zeros((2, 4, 4, 3)), "hr": jnp.zeros((3, 8, 8, 3))}
  with pytest.raises(ValueError, match="2 and 3"):
    augment.augment(jax.random.key(0), batch)


def test_to_float_equals_division_and_refuses_floats():
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  out = augment.to_float({"lr": jnp.asarray(levels)})["lr"]
  np.testing.assert_allclose(out, levels.astype(np.float64) / 255, rtol=1e-6)
  with pytest.raises(TypeError, match="float32"):
    augment.to_float({"lr": jnp.zeros((1, 2, 2, 3), jnp.float32)})


def test_pack_refuses_images_that_do_not_fit():
  images = [np.zeros((3, 5, 3), np.uint8)] * 2
  assert augment.pack([], rows=2, width=4).shape == (2, 12)
  with pytest.raises(ValueError, match="6 rows"):
    augment.pack(images, rows=5, width=5)
  with pytest.raises(ValueError, match="5 wide"):
    augment.pack(images, rows=6, width=4)


def _resident(devices):
  """Three images of distinct sizes, the last transposed, on some devices."""
  sizes = [(5, 9), (4, 4), (9, 6)]
  scale = 2
  pairs = []
  for number, (h, w) in enumerate(sizes):
    y, x = np.mgrid[:h, :w]
    lr = np.stack([y, x, 0 * y + number], axis=-1).astype(np.uint8)
    pairs.append((lr, lr.repeat(scale, 0).repeat(scale, 1)))
  rows, width = 20, 9
  held = [[] for _ in range(devices)]
  table = []
  for number, pair in enumerate(pairs):
    device = number % devices
    turned = number == 2
    pair = [np.swapaxes(i, 0, 1) for i in pair] if turned else pair
    top = sum(len(lr) for lr, _ in held[device])
    table.append([device, top, *pair[0].shape[:2], turned])
    held[device].append(pair)
  lr, hr = (
    np.concatenate(
      [
        augment.pack([p[i] for p in pairs], rows=k * rows, width=k * width)
        for pairs in held
      ]
    )
    for i, k in ((0, 1), (1, scale))
  )
  images = augment.Resident(
    jnp.asarray(lr), jnp.asarray(hr), jnp.asarray(table, jnp.int32)
  )
  return images, sizes


def _everywhere(sizes, size):
  """Every place that crops of these images can have: index and corners."""
  places = np.array(
    [
      (number, y, x)
      for number, (h, w) in enumerate(sizes)
      for y in range(h - size + 1)
      for x in range(w - size + 1)
    ],
    np.int32,
  )
  return places[:, 0], places[:, 1:]


def test_cut_gives_aligned_crops_of_everywhere():
  images, sizes = _resident(1)
  index, corners = _everywhere(sizes, 4)
  out = augment.cut(images, index, corners, patch_size=8, scale=2)
  lr, hr = np.asarray(out["lr"]), np.asarray(out["hr"])
  assert lr.shape == (len(index), 4, 4, 3)
  np.testing.assert_array_equal(hr, lr.repeat(2, 1).repeat(2, 2))
  # Rows count downwards and columns to the right: undone, the transposition.
  rows, columns = np.mgrid[:4, :4]
  expected = np.zeros_like(lr)
  expected[..., 0] = corners[:, 0].reshape(-1, 1, 1) + rows
  expected[..., 1] = corners[:, 1].reshape(-1, 1, 1) + columns
  expected[..., 2] = index.reshape(-1, 1, 1)
  np.testing.assert_array_equal(lr, expected)


@pytest.mark.parametrize("devices", [2, 8])
def test_cut_is_the_same_on_any_number_of_devices(devices):
  images, sizes = _resident(devices)
  where = [part[:16] for part in _everywhere(sizes, 3)]
  options = {"patch_size": 6, "scale": 2}
  expected = augment.cut(_resident(1)[0], *where, **options)
  mesh = Mesh(
    np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,)
  )
  images = augment.Resident(
    *jax.device_put((images.lr, images.hr), NamedSharding(mesh, P("data"))),
    jax.device_put(images.table, NamedSharding(mesh, P())),
  )
  step = jax.jit(lambda i, *where: augment.cut(i, *where, mesh=mesh, **options))
  got = step(images, *where)
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert got["hr"].sharding.spec[0] == "data"


def test_cut_refuses_what_does_not_divide():
  images, _ = _resident(1)
  where = np.zeros(6, np.int32), np.zeros((6, 2), np.int32)
  with pytest.raises(ValueError, match="patch_size 7"):
    augment.cut(images, *where, patch_size=7, scale=2)
  mesh = Mesh(np.array(jax.devices()), ("data",))
  with pytest.raises(ValueError, match="8 devices"):
    augment.cut(images, *where, patch_size=4, scale=2, mesh=mesh)


def test_augmentation_belongs_to_the_core():
  code = """
import sys
from esrgan_jax import augment
heavy = {"grain", "tensorflow", "tensorflow_datasets", "PIL", "ml_collections"}
print(sorted(heavy & sys.modules.keys()))
"""
  root = pathlib.Path(__file__).parent.parent
  text = subprocess.check_output([sys.executable, "-c", code], cwd=root)
  assert text.strip() == b"[]"
