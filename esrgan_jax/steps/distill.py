"""The step that has a small network learn from a large one's results, pure.

A batch's HR are what the teacher makes of LR: computed ahead, and then it is a
batch as any other, or in the step, by `taught`. What HR was before, the truth,
may have a part in the loss.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from esrgan_jax import checks
from esrgan_jax.models import registry
from esrgan_jax.models.registry import Network
from esrgan_jax.ops import axes
from esrgan_jax.steps import psnr, shared
from esrgan_jax.steps.shared import Batch, ImageLoss, Metrics
from esrgan_jax.steps.state import PsnrState


def taught(
  batch: Batch, *, teacher: Network, variables: Mapping[str, Any]
) -> dict[str, Array]:
  """Returns a batch whose HR are a teacher's results.

  Args:
    batch: `lr`, `[B, h, w, 3]`, and `hr`, in [0, 1].
    teacher: Linen module of `lr` to images of the size of `hr`, or a
      `FromFunction`.
    variables: Its `{"params": ...}`, and what collections it has.

  Returns:
    The batch, `hr` being the results, in [0, 1], and `truth` what `hr` was.

  Raises:
    ValueError: If an image is missing or the results are of another size.
    TypeError: If they are not of floats, or the teacher is no network.

  Source: Hinton et al. 2015 (arXiv:1503.02531), for images: what is matched is
  the teacher's output.

  >>> import flax.linen as nn
  >>> net = nn.Conv(3, (1, 1))  # Any module of images to images.
  >>> params = {"kernel": jnp.eye(3).reshape(1, 1, 3, 3), "bias": jnp.zeros(3)}
  >>> batch = {"lr": jnp.ones((1, 2, 2, 3)), "hr": jnp.zeros((1, 2, 2, 3))}
  >>> batch = taught(batch, teacher=net, variables={"params": params})
  >>> float(batch["hr"].mean()), float(batch["truth"].mean())
  (1.0, 0.0)
  """
  batch = shared.check_batch(batch, teacher)
  result = registry.infer(teacher, variables, batch["lr"])
  if result.shape != batch["hr"].shape:
    raise ValueError(
      f"the teacher makes {result.shape} of lr {batch['lr'].shape}, and hr is"
      f" {batch['hr'].shape}: take one of the student's scale"
    )
  result = jax.lax.stop_gradient(jnp.clip(result, 0, 1))
  return batch | {"hr": result.astype(jnp.float32), "truth": batch["hr"]}


def distill_gradients(
  params: Any,
  batch: Batch,
  *,
  generator: Network,
  collections: Mapping[str, Any] | None = None,
  pixel_loss: str | ImageLoss = "l1",
  truth_weight: float = 0.0,
  key: Array | None = None,
  axis_name: axes.AxisName = None,
) -> tuple[Any, Any, Metrics]:
  """Returns the student's gradients.

  Args:
    params: The student's parameters.
    batch: `lr`; `hr`, the teacher's results; and `truth`, of their size, where
      it has a weight.
    generator: The student: Linen module of `lr` to `sr`, or a `FromFunction`.
    collections: The student's, besides its parameters.
    pixel_loss: As of `psnr_gradients`; for both.
    truth_weight: Of the distance to the truth; that to the teacher has 1.
    key: As of `psnr_gradients`.
    axis_name: Likewise.

  Returns:
    As `psnr_gradients`; the metrics are `g/pixel`, the distance to the teacher,
    `g/truth`, where that has a weight, and `g/loss`.

  Raises:
    ValueError: As `psnr_gradients`; or if there is a weight and no `truth`, or
      one of another size.
    TypeError: As `psnr_gradients`.

  >>> import flax.linen as nn
  >>> net = nn.Conv(3, (1, 1))  # Any module of images to images.
  >>> params = {"kernel": jnp.eye(3).reshape(1, 1, 3, 3), "bias": jnp.ones(3)}
  >>> ones = jnp.ones((2, 4, 4, 3))
  >>> batch = {"lr": ones, "hr": ones, "truth": 2 * ones}
  >>> _, _, metrics = distill_gradients(
  ...   params, batch, generator=net, truth_weight=0.5)
  >>> [float(metrics[f"g/{name}"]) for name in ("pixel", "truth", "loss")]
  [1.0, 0.0, 1.0]
  """
  checks.check_number(truth_weight, "truth_weight")
  if not truth_weight:
    return psnr.psnr_gradients(
      params,
      batch,
      generator=generator,
      collections=collections,
      pixel_loss=pixel_loss,
      key=key,
      axis_name=axis_name,
    )
  axes.check_bound(axis_name)
  pixel = shared.find_pixel_loss(pixel_loss)
  batch = shared.check_batch(batch, generator)
  lr, hr, truth = batch["lr"], batch["hr"], batch.get("truth")
  if truth is None or truth.shape != hr.shape:
    found = "there is none" if truth is None else f"it is {truth.shape}"
    raise ValueError(
      f"truth_weight is {truth_weight:g}, and batch['truth'] must be of the"
      f" size of hr, {hr.shape}: {found}"
    )
  params, collections = axes.vary((params, collections or {}), axis_name)
  (own_key,) = shared.device_keys(key, 1, axis_name)

  def loss(params):
    with shared.synchronized(axis_name):
      sr, updated = shared.run_network(
        generator, params, collections, lr, own_key
      )
    terms = {"g/pixel": pixel(sr, hr), "g/truth": pixel(sr, truth)}
    total = terms["g/pixel"] + truth_weight * terms["g/truth"]
    return total, (updated, terms)

  (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
  updated, terms = aux
  return axes.mean((grads, updated, terms | {"g/loss": value}), axis_name)


def distill_step(
  state: PsnrState,
  batch: Batch,
  *,
  generator: Network,
  optimizer: optax.GradientTransformation,
  pixel_loss: str | ImageLoss = "l1",
  truth_weight: float = 0.0,
  ema_decay: float = 0.999,
  accumulate: int = 1,
  seed: int = 0,
  axis_name: axes.AxisName = None,
) -> tuple[PsnrState, Metrics]:
  """Does one step of a student's training.

  Args:
    state: From `create_psnr_state` or the last step.
    batch: As of `distill_gradients`, or of `taught`.
    generator: The student.
    optimizer: As of `psnr_step`.
    pixel_loss: As of `distill_gradients`.
    truth_weight: Likewise.
    ema_decay: As of `psnr_step`, and so are the others.
    accumulate: Likewise.
    seed: Likewise.
    axis_name: Likewise.

  Returns:
    As `psnr_step`; metrics are those of `distill_gradients` besides.

  Raises:
    ValueError: As `psnr_step` and `distill_gradients`.
    TypeError: Likewise.

  >>> import functools
  >>> import flax.linen as nn
  >>> from esrgan_jax.steps.optimizer import make_optimizer
  >>> from esrgan_jax.steps.state import create_psnr_state
  >>> net, adam = nn.Conv(3, (1, 1)), make_optimizer(2e-4)
  >>> state = create_psnr_state(jax.random.key(0), net, adam)
  >>> teacher = {"kernel": jnp.eye(3).reshape(1, 1, 3, 3), "bias": jnp.ones(3)}
  >>> def step(state, batch):
  ...   batch = taught(batch, teacher=net, variables={"params": teacher})
  ...   return distill_step(state, batch, generator=net, optimizer=adam)
  >>> batch = {"lr": jnp.ones((2, 4, 4, 3)), "hr": jnp.ones((2, 4, 4, 3))}
  >>> state, metrics = jax.jit(step)(state, batch)
  >>> int(state.step), float(metrics["skipped"])
  (1, 0.0)
  """
  gradients = functools.partial(
    distill_gradients,
    generator=generator,
    pixel_loss=pixel_loss,
    truth_weight=truth_weight,
  )
  return psnr.regress(
    gradients,
    state,
    batch,
    generator=generator,
    optimizer=optimizer,
    ema_decay=ema_decay,
    accumulate=accumulate,
    seed=seed,
    axis_name=axis_name,
  )
