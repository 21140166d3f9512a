"""Self-ensemble x8: the "+" of papers' tables, around any generator.

A picture is turned and mirrored in all eight ways, each goes through the
network, comes back, and the result is their mean: what the network makes of a
line does then not hang on where that leads. It costs eight times as much.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrgan_jax.models import registry

# Rows become columns; what was below comes first; what was right.
_WAYS = np.array(
  [(t, r, c) for t in (0, 1) for r in (0, 1) for c in (0, 1)], np.bool_
)

# What the network tells of itself is true of its mean as well.
_TOLD = frozenset(
  {
    "dtype",
    "features",
    "mask_gap",
    "num_feat",
    "num_in_ch",
    "num_out_ch",
    "receptive_radius",
    "reconstruct",
    "reconstruct_radius",
    "scale",
    "size_multiple",
  }
)


@dataclasses.dataclass(frozen=True)
class SelfEnsemble:
  """The mean of a generator over the eight ways to turn and mirror images.

  It keeps the protocol of `registry`, with the variables of the generator: by
  its halves, in strips, and under a mask, where the generator has these.

  Source: "Seven ways to improve example-based single image super resolution"
  (arXiv:1511.02228), section 3.6; EDSR (arXiv:1707.02921), section 3.4.

  Attributes:
    net: The generator.

  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> lr = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3))
  >>> variables = net.init(jax.random.key(1), lr)
  >>> mean = SelfEnsemble(net).apply(variables, lr)
  >>> mean.shape
  (1, 32, 32, 3)
  >>> mirrored = SelfEnsemble(net).apply(variables, lr[:, ::-1])
  >>> bool(jnp.allclose(mean[:, ::-1], mirrored, atol=1e-5))
  True
  """

  net: registry.Generator

  def __getattr__(self, name: str) -> Any:
    """What the network tells."""
    if name in _TOLD:
      return getattr(self.net, name)
    raise AttributeError(f"SelfEnsemble has no attribute {name!r}")

  @property
  def passes(self) -> int:
    """See `registry.passes`."""
    return len(_WAYS) * registry.passes(self.net)

  @property
  def takes_mask(self) -> bool:
    """See `registry.takes_mask`."""
    return registry.takes_mask(self.net)

  @property
  def takes_train(self) -> bool:
    """It is for networks that are trained."""
    return False

  def init(self, *args: Any, **kwargs: Any) -> Any:
    """As of the network."""
    return self.net.init(*args, **kwargs)

  def clone(self, **fields: Any) -> SelfEnsemble:
    """The mean of a network with other fields, as of `flax.linen.Module`."""
    return SelfEnsemble(self.net.clone(**fields))

  def apply(
    self,
    variables: Mapping[str, Any],
    images: Array,
    valid: Array | None = None,
    *,
    method: str | None = None,
  ) -> Array:
    """Returns the mean, or one half of what leads to it.

    Args:
      variables: Of the network.
      images: `[..., H, W, C]`; of `reconstruct`, what `features` returned, or
        a part of it.
      valid: As for the network.
      method: "features", "reconstruct" or None, as for the network.

    Returns:
      `[..., H * scale, W * scale, C]`; of `features`, those of all ways, which
      lie as the image does, one after another in the channels.
    """
    if method is None:
      run = functools.partial(registry.infer, self.net, variables)
      return _in_all_ways(run, images, valid).mean(axis=0)

    def half(x: Array, mask: Array | None) -> Array:
      masked = () if mask is None else (mask,)
      return self.net.apply(variables, x, *masked, method=method)

    if method == "features":
      return jnp.concatenate([*_in_all_ways(half, images, valid)], axis=-1)
    own = jnp.stack(jnp.split(images, len(_WAYS), axis=-1))
    return _in_all_ways(half, own, valid, one_each=True).mean(axis=0)


def _in_all_ways(
  run: Callable[[Array, Array | None], Array],
  x: Array,
  valid: Array | None,
  *,
  one_each: bool = False,
) -> Array:
  """Returns what comes of a picture in each way, `[8, ...]`, as that lies.

  Args:
    run: Of `x` and `valid`, turned and mirrored.
    x: `[..., H, W, C]`.
    valid: `[..., H, W, 1]`, at any resolution; None for none.
    one_each: Whether `x` has a leading axis, one for each way.
  """

  def one(given: tuple[Array, Array | None], turn: Any) -> Array:
    (_, *mirror), own = given

    def there(plane: Array) -> Array:
      return _mirrored(_turned(plane, turn), *mirror)

    mask = None if valid is None else there(valid)
    result = run(there(x if own is None else own), mask)
    return _turned(_mirrored(result, *mirror), turn)

  own = x if one_each else None
  half = len(_WAYS) // 2
  if x.shape[-3] == x.shape[-2]:  # One shape: the program has the network once.
    return jax.lax.map(lambda given: one(given, given[0][0]), (_WAYS, own))
  parts = [
    jax.lax.map(
      lambda given, turn=turn: one(given, turn),
      (_WAYS[part], None if own is None else own[part]),
    )
    for turn, part in ((False, slice(half)), (True, slice(half, None)))
  ]
  return jnp.concatenate(parts)


def _turned(x: Array, turn: Any) -> Array:
  """Rows for columns; `turn` is traced only where an image is square."""
  if turn is False:
    return x
  turned = jnp.swapaxes(x, -3, -2)
  return turned if turn is True else jnp.where(turn, turned, x)


def _mirrored(x: Array, rows: Array, columns: Array) -> Array:
  x = jnp.where(rows, jnp.flip(x, -3), x)
  return jnp.where(columns, jnp.flip(x, -2), x)
