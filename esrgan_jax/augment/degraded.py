"""Pairs of HR alone: LR is made inside the step, and a patch cut of both.

Those to train on; `data.degraded_source` has those to validate on.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from esrgan_jax import checks, degradation
from esrgan_jax.ops import axes
from esrgan_jax.ops import keys as keys_lib


def degraded_pairs(
  key: Array,
  hr: Array,
  settings: degradation.Degradation,
  *,
  scale: int,
  patch_size: int,
  gt_usm: bool = True,
  mesh: Mesh | None = None,
) -> dict[str, Array]:
  """Makes pairs of HR crops, as Real-ESRGAN's training does.

  The whole crop is degraded, and a patch cut of it and of its LR, at a random
  place: so a patch's border is as far from the crop's as the place has it, and
  what a blur or an enlargement does at borders is seldom seen. What is drawn
  for a pair depends on the key and its row in the batch alone, and not on the
  devices that have it.

  Under `jax.shard_map` and `jax.pmap` a batch is one device's: fold the axis'
  index into the key.

  Args:
    key: PRNG key; give each step its own, such as `fold_in(key, step)`.
    hr: Crops, float `[B, H, W, 3]` in [0, 1]; sides multiples of `scale`.
    settings: What the degradation draws from.
    scale: HR pixels per LR pixel.
    patch_size: HR pixels a side of the result, at most H and W, a multiple of
      `scale`. Real-ESRGAN: 256, of crops of 400.
    gt_usm: Whether LR is made of sharpened HR, as there; the result's HR is as
      it was given. For losses, see the options `l1_gt_usm` and so on of
      `steps.gan_step`, and `gt_usm` of `steps.psnr_step`.
    mesh: Mesh over whose `"data"` axis `hr` is sharded: each device then makes
      its own pairs. The result is the same without, but on CPUs each makes all.

  Returns:
    `{"lr": [B, p, p, 3], "hr": [B, scale * p, scale * p, 3]}`, float, for
    `steps.psnr_step` and `steps.gan_step`.

  Raises:
    TypeError: If `hr` is not of floats, or `key` is no key.
    ValueError: If a size is no multiple of `scale`, or a crop is smaller than
      the patch.

  Source: Real-ESRGAN (arXiv:2107.10833), section 3; its
  `models/realesrgan_model.py::feed_data`, without the pool of pairs, since each
  has a degradation of its own.

  >>> mild = degradation.Degradation(resize_prob=(0, 0, 1))
  >>> make = jax.jit(lambda key, hr: degraded_pairs(
  ...   key, hr, mild, scale=4, patch_size=16))
  >>> batch = make(jax.random.key(0), jnp.ones((2, 32, 32, 3)))
  >>> batch["lr"].shape, batch["hr"].shape
  ((2, 4, 4, 3), (2, 16, 16, 3))
  """
  checks.check_key(key)
  checks.check_flags(gt_usm=gt_usm)
  hr = checks.check_images(hr, "hr", channels=3, batch=True)
  height, width = hr.shape[1:3]
  for name, size in (("H", height), ("W", width), ("patch_size", patch_size)):
    if size < 1 or size % scale:
      raise ValueError(f"{name} is {size}; it must be a multiple of {scale}")
  if patch_size > min(height, width):
    raise ValueError(
      f"patch_size is {patch_size}, larger than a crop of {height}x{width}"
    )
  side = patch_size // scale
  room = jnp.array([height // scale - side + 1, width // scale - side + 1])

  def cut(key, lr, hr):
    own = keys_lib.named(key, "degraded place")
    place = jax.random.randint(own, (2,), 0, room)
    lr, hr = (
      jax.lax.dynamic_slice(image, (*(k * place), 0), (k * side, k * side, 3))
      for image, k in ((lr, 1), (hr, scale))
    )
    return {"lr": lr, "hr": hr}

  def run(hr, keys):
    clean = degradation.usm_sharpen(hr) if gt_usm else hr
    # No operation's name is like these: they are identifiers.
    draws = jax.vmap(lambda key: keys_lib.named(key, "degraded degradation"))
    lr = degradation.degrade(draws(keys), clean, settings, scale)
    return jax.vmap(cut)(keys, lr.astype(hr.dtype), hr)

  keys = keys_lib.of_rows(key, len(hr))
  if mesh is not None and mesh.size > 1:
    # Rows know nothing of each other, and nothing is differentiated.
    run = jax.shard_map(
      run, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    return run(hr, keys)
  return axes.anywhere(run, hr, keys, kept=1)
