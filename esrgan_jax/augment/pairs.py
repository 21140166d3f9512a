"""Crops, flips and turns of (LR, HR) pairs, and images in device memory.

A batch is a dict of `"lr"`, `[B, h, w, 3]`, and `"hr"`,
`[B, scale * h, scale * w, 3]`. Images that live in device memory are packed:
rows of one height-wise stack, `[rows, width * 3]` uint8, landscape, so that
the 3 channels do not cost a tile of 128 lanes each on a TPU and every index
stays far below 2^31.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from esrgan_jax.ops import axes

NUM_SYMMETRIES = 8  # Flips and quarter turns of a square.


def symmetry(image: Array, code: Array | int) -> Array:
  """Returns an image under one of the eight symmetries of the square.

  Args:
    image: Square images, `[..., H, H, C]`, any dtype.
    code: 0 to 7, may be traced. Bit 0 mirrors left-right, bit 1 mirrors
      top-bottom, then bit 2 swaps rows and columns; 0 changes nothing.

  Returns:
    Images of the same shape and dtype.

  Raises:
    ValueError: If `image` is not square.

  Source: BasicSR `data/transforms.py::augment` (hflip, vflip, rot90, each
  with probability 1/2: `code` uniform over 0..7).

  >>> image = jnp.arange(4).reshape(2, 2, 1)
  >>> symmetry(image, 1)[..., 0].tolist(), symmetry(image, 4)[..., 0].tolist()
  ([[1, 0], [3, 2]], [[0, 2], [1, 3]])
  """
  _check_square(image)
  return axes.anywhere(_turned, image, code)


def _check_square(image):
  if image.ndim < 3 or image.shape[-3] != image.shape[-2]:
    raise ValueError(
      f"symmetry takes square images [..., H, H, C], got {image.shape}: a"
      " quarter turn would change the shape; crop first"
    )


def _turned(image, code):
  image = jnp.where(code & 1, jnp.flip(image, -2), image)
  image = jnp.where(code & 2, jnp.flip(image, -3), image)
  return jnp.where(code & 4, jnp.swapaxes(image, -3, -2), image)


def augment(key: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
  """Flips and turns each pair of a batch, LR and HR alike, at random.

  The draw of an image depends on `key` and its place in the batch alone: it
  is the same however the batch is sharded.

  Args:
    key: PRNG key; give each step its own, such as `fold_in(key, step)`.
    batch: `"lr"` `[B, h, h, 3]` and `"hr"` `[B, H, H, 3]`, any dtype.

  Returns:
    A dict of the same shapes and dtypes.

  Raises:
    ValueError: If the images are not square or the batch sizes differ.

  Source: BasicSR `data/transforms.py::augment`.

  >>> batch = {"lr": jnp.ones((2, 4, 4, 3)), "hr": jnp.ones((2, 16, 16, 3))}
  >>> augment(jax.random.key(0), batch)["hr"].shape
  (2, 16, 16, 3)
  """
  lr, hr = batch["lr"], batch["hr"]
  if len(lr) != len(hr):
    raise ValueError(
      f"a batch needs as many LR as HR images, got {len(lr)} and {len(hr)}"
    )
  codes = jax.random.randint(key, (len(lr),), 0, NUM_SYMMETRIES)

  def turn(images):
    _check_square(images)
    return axes.anywhere(jax.vmap(_turned), images, codes)

  return {"lr": turn(lr), "hr": turn(hr)}


def to_float(batch: Mapping[str, Array]) -> dict[str, Array]:
  """Returns a batch of 8-bit images as float32 in [0, 1].

  Args:
    batch: `"lr"` and `"hr"`, uint8 `[B, H, W, 3]`.

  Returns:
    A dict of the same shapes, float32.

  Raises:
    TypeError: If an image is not uint8 (it would be scaled twice).

  >>> batch = {"lr": jnp.full((1, 1, 1, 3), 255, jnp.uint8)}
  >>> [round(value, 3) for value in to_float(batch)["lr"].ravel().tolist()]
  [1.0, 1.0, 1.0]
  """
  for name, image in batch.items():
    if image.dtype != jnp.uint8:
      raise TypeError(f"to_float takes uint8, but {name!r} is {image.dtype}")
  return {k: v.astype(jnp.float32) / 255 for k, v in batch.items()}


class Resident(struct.PyTreeNode):
  """Pairs of images in device memory, packed; see `pack`.

  Attributes:
    lr: uint8 `[devices * rows, width * 3]`, sharded over the first axis.
    hr: uint8 `[devices * scale * rows, scale * width * 3]`, likewise.
    table: int32 `[images, 5]`, replicated; a row says device, first LR row
      on that device, LR height and LR width as packed, and whether the image
      lies transposed there.

  >>> lr, hr = np.zeros((1, 6, 3), np.uint8), np.zeros((4, 24, 3), np.uint8)
  >>> Resident(
  ...   lr=pack([lr], rows=1, width=6),
  ...   hr=pack([hr], rows=4, width=24),
  ...   table=np.array([[0, 0, 1, 6, 0]]),
  ... ).hr.shape
  (4, 72)
  """

  lr: Array
  hr: Array
  table: Array


def pack(images: Sequence[np.ndarray], *, rows: int, width: int) -> np.ndarray:
  """Packs one device's images for `cut`: stacked, padded to one width.

  Portrait images should come transposed. On the host, in NumPy.

  Args:
    images: uint8 `[H, W, 3]`, W <= width; there may be none.
    rows: Rows to fill in all, at least the sum of the heights.
    width: Pixels to pad to.

  Returns:
    uint8 `[rows, width * 3]`.

  Raises:
    ValueError: If the images do not fit.

  >>> pack([np.ones((2, 5, 3), np.uint8)], rows=3, width=6).sum(axis=1).tolist()
  [15, 15, 0]
  """
  height = sum(image.shape[0] for image in images)
  widest = max((image.shape[1] for image in images), default=0)
  if height > rows or widest > width:
    raise ValueError(
      f"images of {height} rows in all, {widest} wide at most, do not fit"
      f" {rows} rows of width {width}"
    )
  packed = np.zeros((rows, width, 3), np.uint8)
  top = 0
  for image in images:
    H, W, _ = image.shape
    packed[top : top + H, :W] = image
    top += H
  return packed.reshape(rows, width * 3)


def cut(
  images: Resident,
  index: Array,
  corners: Array,
  *,
  patch_size: int,
  scale: int,
  mesh: Mesh | None = None,
) -> dict[str, Array]:
  """Cuts a batch of LR-aligned crops out of images in device memory.

  Each device cuts the patches that it holds, and one reduce-scatter of patches
  over the data axis brings them to the places that train on them.

  Args:
    images: The packed images.
    index: Number of each row's image, int32 `[B]`.
    corners: Where the crops begin, int32 `[B, 2]`: LR row and column, of the
      upright image.
    patch_size: HR pixels a side; a multiple of `scale`, and no image smaller.
    scale: HR pixels per LR pixel.
    mesh: Mesh over whose `"data"` axis the images are sharded; None for one
      device.

  Returns:
    `{"lr": [B, p, p, 3], "hr": [B, scale * p, scale * p, 3]}`, uint8, sharded
    over the batch.

  Raises:
    ValueError: If `patch_size` is not a multiple of `scale`, or the batch not
      one of the data axis.

  >>> images = Resident(
  ...   lr=jnp.zeros((4, 6 * 3), jnp.uint8),
  ...   hr=jnp.zeros((8, 12 * 3), jnp.uint8),
  ...   table=jnp.array([[0, 0, 4, 6, 0]]),
  ... )
  >>> where = jnp.array([0]), jnp.array([[2, 4]])
  >>> cut(images, *where, patch_size=4, scale=2)["hr"].shape
  (1, 4, 4, 3)
  """
  if patch_size % scale:
    raise ValueError(
      f"patch_size {patch_size} is not a multiple of scale {scale}"
    )
  devices = 1 if mesh is None else mesh.shape["data"]
  if len(index) % devices:
    raise ValueError(
      f"batch_size {len(index)} is not a multiple of the {devices} devices of"
      " the data axis"
    )
  size = patch_size // scale
  rows = images.table[index]

  def cut_one(packed, row, corner, k):
    corner = jnp.where(row[4], corner[::-1], corner)
    start = (k * (row[1] + corner[0]), k * 3 * corner[1])
    patch = jax.lax.dynamic_slice(packed, start, (k * size, k * size * 3))
    patch = patch.reshape(k * size, k * size, 3)
    return jnp.where(row[4], jnp.swapaxes(patch, 0, 1), patch)

  def cut_all(lr, hr, rows, corners):
    over_batch = jax.vmap(cut_one, in_axes=(None, 0, 0, None))
    return {
      "lr": over_batch(lr, rows, corners, 1),
      "hr": over_batch(hr, rows, corners, scale),
    }

  if devices == 1:
    return cut_all(images.lr, images.hr, rows, corners)

  def cut_mine(lr, hr, rows, corners):
    mine = rows[:, 0] == jax.lax.axis_index("data")
    # Elsewhere the row means nothing: dynamic_slice clamps it, zero hides it.
    patches = cut_all(lr, hr, rows, corners)

    def exchange(patch):
      # One device has the patch, all others zeros: the sum is exact. int32,
      # because not every collective of every backend knows uint8.
      patch = jnp.where(mine[:, None, None, None], patch, 0).astype(jnp.int32)
      patch = jax.lax.psum_scatter(patch, "data", tiled=True)
      return patch.astype(jnp.uint8)

    return jax.tree.map(exchange, patches)

  return jax.shard_map(
    cut_mine,
    mesh=mesh,
    in_specs=(P("data"), P("data"), P(), P()),
    out_specs=P("data"),
  )(images.lr, images.hr, rows, corners)
