"""Training states without networks: nothing is compiled to make or keep one."""

import jax
import numpy as np

from esrgan_jax.steps.optimizer import make_optimizer
from esrgan_jax.steps.state import GanState, PsnrState
from esrgan_jax.training import mesh

WHOLE = mesh.replicated(mesh.make_mesh(1))


def arrays(number, size=4):
  """Parameters of a network, or what stands in for one."""
  return {
    "conv": {
      "bias": np.full(3, number, np.float32),
      "kernel": np.arange(2 * size, dtype=np.float32).reshape(2, size) + number,
    }
  }


def zero():
  return np.zeros((), np.int32)


def moments(params, clip_norm=None):
  """Adam's state, its moments not zero."""
  adam = make_optimizer(1e-3, clip_norm=clip_norm)
  return jax.tree.map(
    lambda x: np.asarray(x) + np.ones((), x.dtype), adam.init(params)
  )


def psnr(number=0, size=4, clip_norm=None, devices=1):
  params = arrays(number, size)
  state = PsnrState(
    step=np.int32(number),
    params=params,
    opt_state=moments(params, clip_norm),
    ema_params=arrays(number + 1, size),
    skipped=zero(),
    skipped_in_a_row=zero(),
  )
  return jax.device_put(state, mesh.replicated(mesh.make_mesh(devices)))


def gan(number=0, d_size=4, batch_norm=True, clip_norm=None):
  shared = psnr(number, clip_norm=clip_norm)
  d_params = arrays(number + 2, d_size)
  state = GanState(
    **{name: getattr(shared, name) for name in shared.__dataclass_fields__},
    d_params=d_params,
    d_batch_stats={"mean": np.ones(3, np.float32)} if batch_norm else {},
    d_opt_state=moments(d_params, clip_norm),
  )
  return jax.device_put(state, WHOLE)
