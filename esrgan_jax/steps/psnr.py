"""The step of phase one, pure: (state, batch) -> (state, metrics). Jit it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from esrgan_jax import checks
from esrgan_jax.models.registry import Network
from esrgan_jax.ops import axes
from esrgan_jax.steps import shared
from esrgan_jax.steps.optimizer import check_opt_state, check_optimizer
from esrgan_jax.steps.shared import Batch, ImageLoss, Metrics
from esrgan_jax.steps.state import PsnrState


def psnr_gradients(
  params: Any,
  batch: Batch,
  *,
  generator: Network,
  collections: Mapping[str, Any] | None = None,
  pixel_loss: str | ImageLoss = "l1",
  gt_usm: bool = False,
  key: Array | None = None,
  axis_name: axes.AxisName = None,
) -> tuple[Any, Any, Metrics]:
  """Returns the generator's gradients in phase one.

  Args:
    params: The generator's parameters.
    batch: `lr` and `hr`, as above.
    generator: Linen module of `lr` to `sr`, or a `FromFunction`.
    collections: The generator's, besides its parameters.
    pixel_loss: `"l1"`, `"mse"`, `"charbonnier"`, or a function of `(sr, hr)`.
    gt_usm: Whether `hr` is sharpened (`degradation.usm_sharpen`) before SR is
      compared with it, as Real-ESRNet's training does.
    key: Random key, for a generator with dropout or its like.
    axis_name: As of `psnr_step`.

  Returns:
    Gradients like `params`; the new `collections`; and metrics `g/pixel` and
    `g/loss`.

  Raises:
    ValueError: If the loss is unknown, `lr` or `hr` is missing or no batch of
      images, `hr` is not of the size of `sr`, or nothing is mapped over
      `axis_name`.
    TypeError: If they are not of floats, or a loss returns no number.

  >>> import flax.linen as nn
  >>> net = nn.Conv(3, (1, 1))  # Any module of images to images.
  >>> params = {"kernel": jnp.eye(3).reshape(1, 1, 3, 3), "bias": jnp.ones(3)}
  >>> batch = {"lr": jnp.ones((2, 4, 4, 3)), "hr": jnp.ones((2, 4, 4, 3))}
  >>> grads, _, metrics = psnr_gradients(params, batch, generator=net)
  >>> float(metrics["g/pixel"]), round(float(grads["bias"].sum()), 3)
  (1.0, 1.0)
  """
  axes.check_bound(axis_name)
  pixel = shared.find_pixel_loss(pixel_loss)
  batch = shared.check_batch(batch, generator)
  checks.check_flags(gt_usm=gt_usm)
  hr = shared.sharpen(batch["hr"]) if gt_usm else batch["hr"]
  params, collections = axes.vary((params, collections or {}), axis_name)
  (own_key,) = shared.device_keys(key, 1, axis_name)

  def loss(params):
    with shared.synchronized(axis_name):
      sr, updated = shared.run_network(
        generator, params, collections, batch["lr"], own_key
      )
    return pixel(sr, hr), updated

  (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(params)
  metrics = {"g/pixel": value, "g/loss": value}
  return axes.mean((grads, updated, metrics), axis_name)


def psnr_step(
  state: PsnrState,
  batch: Batch,
  *,
  generator: Network,
  optimizer: optax.GradientTransformation,
  pixel_loss: str | ImageLoss = "l1",
  gt_usm: bool = False,
  ema_decay: float = 0.999,
  accumulate: int = 1,
  seed: int = 0,
  axis_name: axes.AxisName = None,
) -> tuple[PsnrState, Metrics]:
  """Does one step of phase one.

  A loss or gradient that is not finite changes nothing but the counters: `step`
  goes on, so that the next batch and random numbers are others.

  Args:
    state: From `create_psnr_state` or the last step.
    batch: `lr` and `hr`, as above.
    generator: Linen module of `lr` to `sr`, or a `FromFunction`; compute dtype
      and rematerialisation are its fields.
    optimizer: Any `optax.GradientTransformation`, such as `make_optimizer`'s;
      its updates are added. It is told `step` and `value`, the loss, if it
      takes them; line searches such as `optax.lbfgs`, and `optax.lookahead`,
      are not supported.
    pixel_loss: `"l1"`, `"mse"`, `"charbonnier"`, or a function of `(sr, hr)`.
    gt_usm: As of `psnr_gradients`.
    ema_decay: Decay of `ema_params`, in [0, 1]; 0 has them equal `params`.
    accumulate: Microbatches that the batch is split into, one after another,
      to save memory. The result is that of the whole batch, to rounding, but
      for a generator with BatchNorm.
    seed: Seed of the random numbers of a generator with dropout or its like,
      with step and microbatch.
    axis_name: Axis or axes that the step is mapped over, by `jax.pmap`,
      `jax.shard_map` or `jax.vmap`, each device with its part of a batch and
      all with the same state. The result is that of the whole batch: gradients,
      metrics, the statistics of BatchNorm in Linen modules, the decision to
      skip. Without it, devices under `jax.pmap` go apart, unseen, since that
      may be meant (a training a device), and so under `jax.shard_map` with
      `check_vma=False`. With that check, which knows what is the same on all,
      it is an error. Under `jax.jit`, on any mesh, there is no such axis.

  Returns:
    The new state, and metrics: those of `psnr_gradients`, `g/grad_norm` before
    any clipping, `g/learning_rate` where the optimizer's state has it (see
    `optax.inject_hyperparams`), `skipped` and `skipped_in_a_row`.

  Raises:
    ValueError: If an option is out of range, the batch lacks images or they
      have another shape, `accumulate` does not divide it, devices would go
      apart, nothing is mapped over `axis_name`, or the state is not of this
      optimizer.
    TypeError: If the optimizer is none or not supported, the state is of the
      other phase, images are not of floats, or a loss returns no number.

  Source: ESRGAN (arXiv:1809.00219), section 4.1; EMA as in BasicSR
  `models/sr_model.py::model_ema`.

  >>> import functools
  >>> import flax.linen as nn
  >>> from esrgan_jax.steps.optimizer import make_optimizer
  >>> from esrgan_jax.steps.state import create_psnr_state
  >>> net, adam = nn.Conv(3, (1, 1)), make_optimizer(2e-4)
  >>> state = create_psnr_state(jax.random.key(0), net, adam)
  >>> step = functools.partial(psnr_step, generator=net, optimizer=adam)
  >>> batch = {"lr": jnp.ones((2, 4, 4, 3)), "hr": jnp.ones((2, 4, 4, 3))}
  >>> state, metrics = jax.jit(step)(state, batch)
  >>> int(state.step), float(metrics["skipped"])
  (1, 0.0)
  """
  gradients = functools.partial(
    psnr_gradients,
    generator=generator,
    pixel_loss=pixel_loss,
    gt_usm=gt_usm,
  )
  return regress(
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


def regress(
  gradients: Callable[..., tuple[Any, Any, Metrics]],
  state: PsnrState,
  batch: Batch,
  *,
  generator: Network,
  optimizer: optax.GradientTransformation,
  ema_decay: float,
  accumulate: int,
  seed: int,
  axis_name: axes.AxisName,
) -> tuple[PsnrState, Metrics]:
  """Does a step of a generator alone, whatever its loss.

  Args:
    gradients: `(params, batch, *, collections, key, axis_name)` to what
      `psnr_gradients` returns.
    state: As of `psnr_step`, and so are the others.
    batch: Likewise; it may have more than `lr` and `hr`.
    generator: Likewise.
    optimizer: Likewise.
    ema_decay: Likewise.
    accumulate: Likewise.
    seed: Likewise.
    axis_name: Likewise.
  """
  shared.check_decay(ema_decay)
  shared.check_state(state, PsnrState)
  batch = shared.check_batch(batch, generator)
  shared.check_axis(state, batch, axis_name)
  check_optimizer(optimizer)
  check_opt_state(state.opt_state, optimizer, state.params)

  def of_microbatch(collections, microbatch, index):
    grads, collections, metrics = gradients(
      state.params,
      microbatch,
      collections=collections,
      key=shared.microbatch_key(seed, state.step, index),
      axis_name=axis_name,
    )
    return collections, (grads, metrics)

  collections, (grads, metrics) = shared.accumulate_gradients(
    of_microbatch, state.collections, batch, accumulate
  )
  norm = shared.global_norm(grads)
  finite = jnp.isfinite(metrics["g/loss"]) & jnp.isfinite(norm)
  params, opt_state, learning_rate = shared.apply_update(
    optimizer,
    grads,
    state.opt_state,
    state.params,
    step=state.step,
    value=metrics["g/loss"],
  )
  updated = state.replace(
    params=params,
    opt_state=opt_state,
    ema_params=shared.average(state.ema_params, params, ema_decay),
    collections=collections,
  )
  state = shared.keep_finite(finite, updated, state)
  metrics |= {"g/grad_norm": norm, "g/learning_rate": learning_rate}
  return state, shared.with_counters(metrics, state)
