"""The networks as the papers draw them, to compare our forms with.

Every convolution of a dense block sees the concatenation of all before it;
upsampling repeats pixels and then convolves them; no pixels are packed into
channels, and all layouts are the compiler's. Parameters and results are those
of `esrgan_jax.models`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax

from esrgan_jax.models import rrdb
from esrgan_jax.ops import layout, packing

Array = jax.Array
Conv = tuple[Array, Array]


@contextlib.contextmanager
def in_use() -> Iterator[None]:
  """Has networks that are traced inside compute as the papers draw them.

  Raises:
    RuntimeError: If no generator was traced, at the end.

  >>> net = rrdb.RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> with in_use():
  ...   jaxpr = jax.make_jaxpr(net.init)(jax.random.key(0), jnp.ones((8, 8, 3)))
  >>> "concatenate" in str(jaxpr)
  True
  """
  blocks = mock.Mock(wraps=run_blocks)
  with (
    mock.patch.object(rrdb, "run_blocks", blocks),
    mock.patch.object(rrdb, "_reconstruct", reconstruct),
    mock.patch.object(packing, "can_pack", return_value=False),
    mock.patch.object(layout, "_layout", None),
  ):
    yield
  if not blocks.called:
    raise RuntimeError("no generator was traced in the textbook's form")


def run_blocks(
  x: Array,
  blocks: Sequence[Sequence[Conv]],
  valid: Array | None = None,
  *,
  unroll: int = 1,
  remat: bool = False,
) -> Array:
  """`rrdb.run_blocks`, concatenated."""
  fifth = jnp.asarray(0.2, x.dtype)

  def block(x, block):
    out = x
    for convs in block:
      sources = [out]
      for i, conv in enumerate(convs, 1):
        y = _convolve(jnp.concatenate(sources, axis=-1), conv)
        sources.append(_rectify(y, valid) if i < len(convs) else y)
      change = sources[-1]
      out += (change if valid is None else change * valid) * fifth
    return x + out * fifth, None

  if remat:
    block = jax.checkpoint(block, prevent_cse=False)
  return lax.scan(block, x, blocks, unroll=unroll)[0]


def reconstruct(
  feat: Array,
  valid: Array | None,
  ups: Sequence[Conv],
  conv_hr: Conv,
  conv_last: Conv,
  *,
  factors: tuple[int, ...],
  packed: bool = False,
) -> Array:
  """`rrdb._reconstruct`, with the repeated image; `packed` changes nothing."""
  del packed
  for factor, conv in zip(factors, ups, strict=True):
    feat, valid = _repeat(feat, factor), _repeat(valid, factor)
    feat = _rectify(_convolve(feat, conv), valid)
  feat = _rectify(_convolve(feat, conv_hr), valid)
  return _convolve(feat, conv_last, jnp.float32)


def _repeat(x, factor):
  if x is None:
    return None
  n, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, factor, w, factor, c))
  return x.reshape(n, h * factor, w * factor, c)


def _convolve(x, conv, dtype=None):
  kernel, bias = conv
  y = lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    preferred_element_type=dtype,
  )
  return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)


def _rectify(x, valid):
  x = jnp.maximum(x, x * jnp.asarray(0.2, x.dtype))
  return x if valid is None else x * valid
