"""The step of phase two, pure: (state, batch) -> (state, metrics). Jit it.

It is one program: one generator forward, one discriminator pass over
the real images and one over the fake, and backward passes that share them. Both
players' gradients are taken at the same parameters. That is what the authors'
code and BasicSR compute as well: they update G first, but D's update reuses
the images of the old G, and the old D.

Real and fake images stay separate batches for BatchNorm, as in the authors'
code: concatenated, they would share statistics, and D's task would change. D
runs in training mode for both players. Each step moves its running statistics
twice, by the real images and then by the fake ones; BasicSR, which repeats the
passes, moves them five times by the same. Training never reads them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from esrgan_jax import checks, losses
from esrgan_jax.models import registry
from esrgan_jax.models.registry import Network
from esrgan_jax.models.vgg import vgg16_features, vgg19_features
from esrgan_jax.ops import axes
from esrgan_jax.steps import shared
from esrgan_jax.steps.optimizer import check_opt_state, check_optimizer
from esrgan_jax.steps.shared import Batch, ImageLoss, Metrics
from esrgan_jax.steps.state import GanState

# Features of a network, and its last layer, before the activation.
_VGGS = {
  "vgg19": (vgg19_features, "conv5_4"),
  "vgg16": (vgg16_features, "conv5_3"),
}


def vgg_perceptual(
  vgg_params: Mapping[str, Mapping[str, Array]],
  *,
  layer_weights: Mapping[str, float] | None = None,
  criterion: str = "l1",
  network: str = "vgg19",
  dtype: Any = None,
) -> jax.tree_util.Partial:
  """Returns the perceptual loss of a VGG, as a function of two images.

  The result is a pytree whose leaves are `vgg_params`: pass it through `jit` as
  an argument (`jit_step(..., perceptual=)` does), and the weights are no
  constants of the program.

  Args:
    vgg_params: Parameters of VGG19, from `esrgan_jax.models.vgg`; or of VGG16,
      from `esrgan_jax.weights.perceptual.load_vgg16`.
    layer_weights: Weight of each layer; `None` is ESRGAN's `{"conv5_4": 1.0}`,
      or, of VGG16, `{"conv5_3": 1.0}`.
    criterion: `"l1"` (ESRGAN) or `"l2"` (SRGAN).
    network: `"vgg19"` or `"vgg16"`, whose parameters they are.
    dtype: Compute dtype of the network; `None` for the images'.

  Returns:
    `(sr, hr) -> scalar` of images `[..., H, W, 3]` in [0, 1].

  Raises:
    ValueError: If there is no such network.

  Source: ESRGAN (arXiv:1809.00219), section 3.3.

  >>> layer = {"kernel": jnp.ones((3, 3, 3, 1)), "bias": jnp.zeros(1)}
  >>> normalization = {"mean": jnp.zeros(3), "std": jnp.ones(3)}
  >>> params = {"normalization": normalization, "conv1_1": layer}
  >>> distance = vgg_perceptual(params, layer_weights={"conv1_1": 1.0})
  >>> image = jnp.full((1, 2, 2, 3), 0.5)
  >>> [round(float(distance(image, other)), 3) for other in (image, 0 * image)]
  [0.0, 6.0]
  """
  if network not in _VGGS:
    raise ValueError(
      f"network must be one of {', '.join(_VGGS)}, got {network!r}"
    )
  features, deepest = _VGGS[network]
  weights = {deepest: 1.0} if layer_weights is None else dict(layer_weights)

  def distance(vgg_params, sr, hr):
    sr_features, hr_features = (
      features(vgg_params, image, layers=weights, dtype=dtype)
      for image in (sr, hr)
    )
    return losses.perceptual_loss(
      sr_features, hr_features, layer_weights=weights, criterion=criterion
    )

  return jax.tree_util.Partial(distance, vgg_params)


def gan_gradients(
  params: Any,
  d_params: Any,
  d_batch_stats: Any,
  batch: Batch,
  *,
  generator: Network,
  discriminator: Network,
  collections: Mapping[str, Any] | None = None,
  perceptual: ImageLoss | None = None,
  pixel_loss: str | ImageLoss = "l1",
  pixel_weight: float = 1e-2,
  perceptual_weight: float = 1.0,
  adversarial: str = "relativistic",
  adversarial_weight: float = 5e-3,
  l1_gt_usm: bool = False,
  percep_gt_usm: bool = False,
  gan_gt_usm: bool = False,
  key: Array | None = None,
  axis_name: axes.AxisName = None,
  **options: Any,
) -> tuple[Any, Any, Any, Any, Metrics]:
  """Returns both networks' gradients in phase two, at the same parameters.

  The defaults are the authors' training code.

  Args:
    params: The generator's parameters.
    d_params: The discriminator's parameters.
    d_batch_stats: Its running statistics, of BatchNorm or spectral norm; `{}`
      without either.
    batch: `lr` and `hr`, as above.
    generator: Linen module of `lr` to `sr`, or a `FromFunction`.
    discriminator: Linen module of images to a logit each, or one a pixel, or a
      `FromFunction`; `train=` tells it the mode, if it takes that.
    collections: The generator's, besides its parameters.
    perceptual: Function of `(sr, hr)` to a scalar, see `vgg_perceptual`; `None`
      leaves the term out.
    pixel_loss: `"l1"`, `"mse"`, `"charbonnier"`, or a function of `(sr, hr)`.
    pixel_weight: ESRGAN's eta, for images in [0, 1].
    perceptual_weight: ESRGAN 1; SRGAN 0.006 with `"l2"` features.
    adversarial: `"relativistic"` (ESRGAN), `"vanilla"` (SRGAN), `"wgan-gp"`,
      `"lsgan"`, `"hinge"`, or another of `losses.ADVERSARIAL_LOSSES`.
    adversarial_weight: ESRGAN's lambda; SRGAN 1e-3, Real-ESRGAN 0.1.
    l1_gt_usm: Whether `hr` is sharpened (`degradation.usm_sharpen`) before the
      pixel loss compares SR with it; Real-ESRGAN's training does.
    percep_gt_usm: The same of the perceptual loss; Real-ESRGAN's does.
    gan_gt_usm: The same of D's real images; Real-ESRGAN's does not.
    key: Random key, for networks with dropout or its like, and for the places
      of the penalty of `"wgan-gp"`. That is of each image's score, and needs a
      D that sees images apart from each other: one whose BatchNorm takes the
      batch's statistics is refused, and so should be a `FromFunction` that
      does the like, which nobody can see from here.
    axis_name: As of `gan_step`.
    **options: Of that loss, where they are not to be its defaults. Of
      `"relativistic"`: `detach_means` stops D's gradients at the means, as
      BasicSR does; `halve` halves both players' sums, as all published codes
      do, `False` is the paper's equation. Of `"lsgan"`: `halve`, as its paper.
      Of `"wgan-gp"`: `penalty_weight`.

  Returns:
    Gradients like `params`; gradients like `d_params`; the new
    `d_batch_stats`; the new `collections`; and metrics: `g/pixel`,
    `g/perceptual`, `g/adversarial`, `g/loss`, `d/loss`, `d/penalty` where there
    is one, the mean logits `d/real` and `d/fake`, and `d/gap`, the first less
    the second.

  Raises:
    ValueError: If a loss or an option of it is unknown, one with a penalty has
      no key or a discriminator with BatchNorm, `lr` or `hr` is missing or no
      batch of images, or nothing is mapped over `axis_name`.
    TypeError: If they are not of floats, or a loss returns no number.

  Source: ESRGAN (arXiv:1809.00219), section 3.4, equation 3; BasicSR
  `models/esrgan_model.py::optimize_parameters`.

  >>> from esrgan_jax.models.discriminators import VGGStyleDiscriminator
  >>> import flax.linen as nn
  >>> net = nn.Conv(3, (1, 1))  # Any module of images to images.
  >>> critic = VGGStyleDiscriminator(num_feat=2, input_size=8)
  >>> batch = {"lr": jnp.ones((2, 8, 8, 3)), "hr": jnp.ones((2, 8, 8, 3))}
  >>> @jax.jit
  ... def run(key):
  ...   params = net.init(key, batch["lr"])["params"]
  ...   d = critic.init(key, batch["hr"], train=False)
  ...   return gan_gradients(params, d["params"], d["batch_stats"], batch,
  ...                        generator=net, discriminator=critic)
  >>> grads, d_grads, *_, metrics = run(jax.random.key(0))
  >>> d_grads["linear2"]["kernel"].shape, round(float(metrics["d/loss"]), 1)
  ((100, 1), 0.7)
  """
  batch = shared.check_batch(batch, generator)
  registry.check_network(discriminator, "discriminator")
  axes.check_bound(axis_name)
  checks.check_number(pixel_weight, "pixel_weight")
  checks.check_number(perceptual_weight, "perceptual_weight")
  checks.check_number(adversarial_weight, "adversarial_weight")
  if perceptual is not None:
    perceptual = shared.image_loss(perceptual, "perceptual")
  lr, hr = batch["lr"], batch["hr"]
  sharpened = {
    "l1_gt_usm": l1_gt_usm,
    "percep_gt_usm": percep_gt_usm,
    "gan_gt_usm": gan_gt_usm,
  }
  checks.check_flags(**sharpened)
  sharp = shared.sharpen(hr) if any(sharpened.values()) else hr
  pixel_hr, perceptual_hr, real_hr = (
    sharp if usm else hr for usm in sharpened.values()
  )
  pixel = shared.find_pixel_loss(pixel_loss)
  loss = losses.find_adversarial_loss(adversarial)
  if loss.penalty and key is None:
    raise ValueError(f"adversarial {adversarial!r} needs a key, got None")
  options = _all_options(loss, options)
  penalty_weight = options.pop("penalty_weight", 1.0)
  params, d_params, d_batch_stats, collections = axes.vary(
    (params, d_params, d_batch_stats, collections or {}), axis_name
  )
  gather = functools.partial(axes.gather, axis_name=axis_name)

  def g_adversarial(real, fake):
    return loss.generator(gather(real), gather(fake), **options)

  def d_adversarial(real, fake):
    return loss.discriminator(gather(real), gather(fake), **options)

  # The penalty's places are drawn from the key itself.
  g_key, real_key, fake_key = shared.device_keys(key, 3, axis_name)

  def apply_g(params):
    with shared.synchronized(axis_name):
      return shared.run_network(generator, params, collections, lr, g_key)

  def apply_d(d_params, d_batch_stats, image, key):
    statistics = {"batch_stats": d_batch_stats}
    apart = _apart(adversarial) if loss.penalty else contextlib.nullcontext()
    with apart, shared.synchronized(axis_name):
      logits, updated = shared.run_network(
        discriminator, d_params, statistics, image, key
      )
    return logits, updated["batch_stats"]

  def image_losses(sr):
    terms = {"g/pixel": pixel(sr, pixel_hr)}
    total = pixel_weight * terms["g/pixel"]
    if perceptual is not None:
      terms["g/perceptual"] = perceptual(sr, perceptual_hr)
      total += perceptual_weight * terms["g/perceptual"]
    return total, terms

  # Forward, once each. XLA drops what no result needs: the gradients of D's
  # weights in G's backward pass, and those of the images in D's.
  sr, g_vjp, new_collections = jax.vjp(apply_g, params, has_aux=True)
  real_logits, real_vjp, d_batch_stats = jax.vjp(
    lambda p: apply_d(p, d_batch_stats, real_hr, real_key),
    d_params,
    has_aux=True,
  )
  fake_logits, fake_vjp, d_batch_stats = jax.vjp(
    lambda p, image: apply_d(p, d_batch_stats, image, fake_key),
    d_params,
    sr,
    has_aux=True,
  )

  # The discriminator: sr is a constant to it.
  d_loss, d_logits = jax.value_and_grad(d_adversarial, (0, 1))(
    real_logits, fake_logits
  )
  (real_grads,), (fake_grads, _) = real_vjp(d_logits[0]), fake_vjp(d_logits[1])
  d_grads = jax.tree.map(jnp.add, real_grads, fake_grads)
  metrics = {}
  if loss.penalty:

    def penalty(d_params):
      variables = {"params": d_params, "batch_stats": d_batch_stats}

      def critic(image):
        scores = registry.infer(discriminator, variables, image)
        # An image's score, where D has one for each pixel: as the losses do.
        return scores.mean(tuple(range(1, scores.ndim)))

      return loss.penalty(
        key,
        critic,
        real_hr,
        sr,
        **({"axis_name": axis_name} if axis_name is not None else {}),
      )

    metrics["d/penalty"], penalty_grads = jax.value_and_grad(penalty)(d_params)
    d_loss += penalty_weight * metrics["d/penalty"]
    d_grads = jax.tree.map(
      lambda g, p: g + penalty_weight * p, d_grads, penalty_grads
    )

  # The generator: gradients of all terms meet in sr and go back together.
  g_loss, fake_cotangent = jax.value_and_grad(g_adversarial, 1)(
    real_logits, fake_logits
  )
  _, d_sr_adversarial = fake_vjp(adversarial_weight * fake_cotangent)
  (image_loss, terms), d_sr = jax.value_and_grad(image_losses, has_aux=True)(sr)
  (grads,) = g_vjp(d_sr + d_sr_adversarial)

  real, fake = jnp.mean(real_logits), jnp.mean(fake_logits)
  metrics |= terms | {
    "g/adversarial": g_loss,
    "g/loss": image_loss + adversarial_weight * g_loss,
    "d/loss": d_loss,
    "d/real": real,
    "d/fake": fake,
    "d/gap": real - fake,
  }
  found = grads, d_grads, d_batch_stats, new_collections, metrics
  return axes.mean(found, axis_name)


def gan_step(
  state: GanState,
  batch: Batch,
  *,
  generator: Network,
  discriminator: Network,
  optimizer: optax.GradientTransformation,
  d_optimizer: optax.GradientTransformation,
  ema_decay: float = 0.999,
  accumulate: int = 1,
  adversarial: str = "relativistic",
  seed: int = 0,
  axis_name: axes.AxisName = None,
  **options: Any,
) -> tuple[GanState, Metrics]:
  """Does one step of phase two: one update of each network.

  A loss or gradient of either network that is not finite changes nothing but
  the counters: `step` goes on, so that the next batch and random numbers are
  others.

  Args:
    state: From `create_gan_state` or the last step.
    batch: `lr` and `hr`, as above.
    generator: Linen module of `lr` to `sr`, or a `FromFunction`; compute dtype
      and rematerialisation are its fields.
    discriminator: Linen module of images to one logit each, or a
      `FromFunction`.
    optimizer: The generator's: any `optax.GradientTransformation`, such as
      `make_optimizer`'s; its updates are added. It is told `step` and `value`,
      the loss, if it takes them; line searches such as `optax.lbfgs`, and
      `optax.lookahead`, are not supported.
    d_optimizer: The discriminator's, likewise.
    ema_decay: Decay of `ema_params`, in [0, 1]; 0 has them equal `params`.
    accumulate: Microbatches that the batch is split into, one after another,
      to save memory. BatchNorm's statistics and the relativistic means are then
      those of a microbatch, so the result is not that of the whole batch.
    adversarial: As of `gan_gradients`.
    seed: Seed of the random numbers of `"wgan-gp"` and of networks with
      dropout or its like, with step and microbatch.
    axis_name: Axis or axes that the step is mapped over, by `jax.pmap`,
      `jax.shard_map` or `jax.vmap`, each device with its part of a batch and
      all with the same state. The result is that of the whole batch: gradients,
      metrics, the statistics of BatchNorm in Linen modules, the relativistic
      means, the decision to skip. Without it, devices under `jax.pmap` go
      apart, unseen, since that may be meant (a training a device), and so under
      `jax.shard_map` with `check_vma=False`. With that check, which knows what
      is the same on all, it is an error. Under `jax.jit`, on any mesh, there is
      no such axis.
    **options: Losses, their weights and options, as of `gan_gradients`.

  Returns:
    The new state, and metrics: those of `gan_gradients`, `g/grad_norm` and
    `d/grad_norm` before any clipping, `g/learning_rate` and `d/learning_rate`
    where the optimizers' states have them (see `optax.inject_hyperparams`),
    `skipped` and `skipped_in_a_row`.

  Raises:
    ValueError: If an option is out of range, the batch lacks images or they
      have another shape, `accumulate` does not divide it, devices would go
      apart, nothing is mapped over `axis_name`, or the state is not of these
      optimizers.
    TypeError: If an optimizer is none or not supported, the state is of the
      other phase, images are not of floats, or a loss returns no number.

  Source: ESRGAN (arXiv:1809.00219), sections 3.4 and 4.1; BasicSR
  `models/esrgan_model.py::optimize_parameters`; both gradients from one
  forward pass as in xmcgan_image_generation `xmc_gan.py`.

  >>> from esrgan_jax.models.discriminators import VGGStyleDiscriminator
  >>> import functools
  >>> import flax.linen as nn
  >>> from esrgan_jax.steps.optimizer import make_optimizer
  >>> from esrgan_jax.steps.state import create_gan_state
  >>> nets = {"generator": nn.Conv(3, (1, 1)),
  ...         "discriminator": VGGStyleDiscriminator(2, input_size=8)}
  >>> adams = {"optimizer": make_optimizer(1e-4),
  ...          "d_optimizer": make_optimizer(1e-4)}
  >>> state = create_gan_state(jax.random.key(0), **nets, **adams)
  >>> step = functools.partial(gan_step, **nets, **adams)
  >>> batch = {"lr": jnp.ones((2, 8, 8, 3)), "hr": jnp.ones((2, 8, 8, 3))}
  >>> state, metrics = jax.jit(step)(state, batch)
  >>> int(state.step), f"{metrics['d/learning_rate']:.0e}"
  (1, '1e-04')
  """
  shared.check_decay(ema_decay)
  shared.check_state(state, GanState)
  batch = shared.check_batch(batch, generator)
  shared.check_axis(state, batch, axis_name)
  check_optimizer(optimizer)
  check_optimizer(d_optimizer, "d_optimizer")
  check_opt_state(state.opt_state, optimizer, state.params)
  check_opt_state(state.d_opt_state, d_optimizer, state.d_params, "d_opt_state")

  def gradients(carry, microbatch, index):
    d_batch_stats, collections = carry
    grads, d_grads, d_batch_stats, collections, metrics = gan_gradients(
      state.params,
      state.d_params,
      d_batch_stats,
      microbatch,
      generator=generator,
      discriminator=discriminator,
      collections=collections,
      adversarial=adversarial,
      key=shared.microbatch_key(seed, state.step, index),
      axis_name=axis_name,
      **options,
    )
    return (d_batch_stats, collections), (grads, d_grads, metrics)

  carry, (grads, d_grads, metrics) = shared.accumulate_gradients(
    gradients, (state.d_batch_stats, state.collections), batch, accumulate
  )
  d_batch_stats, collections = carry
  norm, d_norm = shared.global_norm(grads), shared.global_norm(d_grads)
  checked = jnp.stack([metrics["g/loss"], metrics["d/loss"], norm, d_norm])
  finite = jnp.all(jnp.isfinite(checked))
  params, opt_state, learning_rate = shared.apply_update(
    optimizer,
    grads,
    state.opt_state,
    state.params,
    step=state.step,
    value=metrics["g/loss"],
  )
  d_params, d_opt_state, d_learning_rate = shared.apply_update(
    d_optimizer,
    d_grads,
    state.d_opt_state,
    state.d_params,
    step=state.step,
    value=metrics["d/loss"],
  )
  updated = state.replace(
    params=params,
    opt_state=opt_state,
    ema_params=shared.average(state.ema_params, params, ema_decay),
    d_params=d_params,
    d_batch_stats=d_batch_stats,
    d_opt_state=d_opt_state,
    collections=collections,
  )
  state = shared.keep_finite(finite, updated, state)
  metrics |= {
    "g/grad_norm": norm,
    "d/grad_norm": d_norm,
    "g/learning_rate": learning_rate,
    "d/learning_rate": d_learning_rate,
  }
  return state, shared.with_counters(metrics, state)


@contextlib.contextmanager
def _apart(adversarial):
  """Within, a BatchNorm in which images see each other is an error."""

  def intercept(call, args, kwargs, context):
    norm = context.module
    if isinstance(norm, nn.BatchNorm) and context.method_name == "__call__":
      given = [*args[1:2], kwargs.get("use_running_average")]
      given.append(norm.use_running_average)
      if any(value is not None and not value for value in given):
        raise ValueError(
          f"adversarial is {adversarial!r}, whose penalty is of each image's"
          " score, and in the discriminator's BatchNorm"
          f" {'/'.join(norm.path)} images of a batch see each other: choose"
          " one that normalises each image by itself, such as"
          " VGGStyleDiscriminator(norm='layer'), 'instance', or not at all"
        )
    return call(*args, **kwargs)

  with nn.intercept_methods(intercept):
    yield


def _all_options(loss, given):
  """A loss's options: those given, and defaults."""
  unknown = [name for name in given if name not in loss.options]
  if unknown:
    has = ", ".join(loss.options) or "none"
    raise ValueError(
      f"adversarial {loss.name!r} has no option {', '.join(unknown)}; it has"
      f" {has}"
    )
  return {**loss.options, **given}
