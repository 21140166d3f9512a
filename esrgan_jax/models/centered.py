"""RRDBNet of images around mid-grey: beyond their border is grey, not black.

Programs that normalise images to [-1, 1] train such networks. What a
convolution sees beyond the border is 0 there, which is mid-grey; so weights of
theirs cannot be had in an `RRDBNet` of images in [0, 1], whatever is done to
its first and last layer: edges would differ.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esrgan_jax import checks
from esrgan_jax.models.rrdb import RRDBNet

_GREY = 0.5


class CenteredRRDBNet(RRDBNet):
  """An RRDBNet that is given `lr - 0.5`, and whose result is added to 0.5.

  Images are in [0, 1] all the same; parameters and fields are RRDBNet's.

  Source: the Generator of giakou4/gans, `10. ESRGAN/model.py`, trained on
  images in [-1, 1] by `train.py`; its weights are read by
  `weights/dialects/centered.py`.

  >>> net = CenteredRRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> grey = jnp.full((1, 8, 8, 3), 0.5)
  >>> variables = jax.jit(net.init)(jax.random.key(0), grey)
  >>> jax.jit(net.apply)(variables, grey)[0, 0, 0].tolist()
  [0.5, 0.5, 0.5]
  """

  def features(
    self, lr: jax.Array, valid: jax.Array | None = None
  ) -> jax.Array:
    """As of RRDBNet."""
    lr = checks.check_images(lr, "lr", channels=self.num_in_ch)
    return super().features(lr - jnp.asarray(_GREY, lr.dtype), valid)

  def reconstruct(
    self, feat: jax.Array, valid: jax.Array | None = None
  ) -> jax.Array:
    """As of RRDBNet."""
    sr = super().reconstruct(feat, valid)
    return sr + jnp.asarray(_GREY, sr.dtype)
