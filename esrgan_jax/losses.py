"""Losses of ESRGAN and its predecessors, as functions of arrays.

Every loss is a scalar in float32, whatever the inputs' dtype, but for those of
float64 (with `JAX_ENABLE_X64`), which it keeps. Weights between
losses belong to the caller; ESRGAN's are perceptual 1, adversarial 5e-3 and
pixel 1e-2, for images in [0, 1]. Means run over the global array: under `jit`
on a sharded batch a relativistic mean is over all devices' images, where
PyTorch's data parallelism takes one mean per GPU. Under `jax.pmap` or
`jax.shard_map` the array is one device's: give the relativistic losses the
logits of all, `jax.lax.all_gather(logits, axis_name, tiled=True)`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from esrgan_jax import checks
from esrgan_jax.ops import axes
from esrgan_jax.ops.precision import at_least_float32


def l1_loss(sr: Array, hr: Array) -> Array:
  """Returns the mean absolute error.

  Args:
    sr: Super-resolved images or features, any shape and float dtype.
    hr: Ground truth, same shape.

  Returns:
    Scalar, float32.

  Raises:
    TypeError: If either is no float array.
    ValueError: If the shapes differ, or they are empty.

  Source: ESRGAN (arXiv:1809.00219), section 3.4, L_1 and the PSNR phase.

  >>> float(l1_loss(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.0])))
  0.75
  """
  return jnp.mean(jnp.abs(_difference(sr, hr)))


def mse_loss(sr: Array, hr: Array) -> Array:
  """Returns the mean squared error.

  Args:
    sr: Super-resolved images or features, any shape and float dtype.
    hr: Ground truth, same shape.

  Returns:
    Scalar, float32.

  Raises:
    TypeError: If either is no float array.
    ValueError: If the shapes differ, or they are empty.

  Source: SRGAN (arXiv:1609.04802), equation 4.

  >>> float(mse_loss(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.0])))
  0.625
  """
  return jnp.mean(jnp.square(_difference(sr, hr)))


def charbonnier_loss(sr: Array, hr: Array, *, epsilon: float = 1e-12) -> Array:
  """Returns the mean of sqrt((sr - hr)^2 + epsilon), a smooth L1.

  Args:
    sr: Super-resolved images or features, any shape and float dtype.
    hr: Ground truth, same shape.
    epsilon: Added under the root, > 0; LapSRN's paper has 1e-6.

  Returns:
    Scalar, float32.

  Raises:
    TypeError: If either is no float array, or `epsilon` no number.
    ValueError: If the shapes differ, they are empty, or `epsilon` is not
      positive.

  Source: LapSRN (arXiv:1710.01992), equation 6; the default is that of
  BasicSR `losses/basic_loss.py::CharbonnierLoss`.

  >>> loss = charbonnier_loss(jnp.array([3.0]), jnp.array([0.0]), epsilon=16.0)
  >>> round(float(loss), 3)
  5.0
  """
  checks.check_number(epsilon, "epsilon")
  if not epsilon > 0:
    raise ValueError(
      f"epsilon must be > 0, got {epsilon}: at 0 the gradient of equal images "
      "is not finite; use l1_loss"
    )
  difference = _difference(sr, hr)
  epsilon = jnp.asarray(epsilon, difference.dtype)
  return jnp.mean(jnp.sqrt(jnp.square(difference) + epsilon))


_CRITERIA = {"l1": l1_loss, "l2": mse_loss}


def perceptual_loss(
  sr_features: Mapping[str, Array],
  hr_features: Mapping[str, Array],
  *,
  layer_weights: Mapping[str, float] | None = None,
  criterion: str = "l1",
) -> Array:
  """Returns the weighted distance between two images' network features.

  Args:
    sr_features: Features of the super-resolved images by layer name, any
      shapes, as `vgg19_features` returns them.
    hr_features: Features of the ground truth, the same layers and shapes.
    layer_weights: Weight of each layer, for all layers of `sr_features`;
      `None` weighs every layer 1. ESRGAN: `{"conv5_4": 1.0}`.
    criterion: `"l1"` (ESRGAN's training code) or `"l2"` (SRGAN).

  Returns:
    Scalar, float32: the sum over layers of weight times mean distance.

  Raises:
    TypeError: If the features are no mappings of float arrays, but images, or
      weights no numbers by layer.
    ValueError: If the layers differ or are none, if shapes differ, or if
      `criterion` is unknown.

  Source: ESRGAN (arXiv:1809.00219), section 3.3; BasicSR
  `losses/basic_loss.py::PerceptualLoss` with `style_weight: 0`.

  >>> sr = {"conv5_4": jnp.zeros((1, 2, 2, 4))}
  >>> hr = {"conv5_4": jnp.full((1, 2, 2, 4), 0.5)}
  >>> float(perceptual_loss(sr, hr, layer_weights={"conv5_4": 2.0}))
  1.0
  """
  if criterion not in _CRITERIA:
    raise ValueError(
      f"criterion must be one of {tuple(_CRITERIA)}, got {criterion!r}"
    )
  for features in (sr_features, hr_features):
    if not isinstance(features, Mapping):
      raise TypeError(
        "perceptual_loss takes features by layer, got"
        f" {checks.describe(features)}: take vgg19_features of images first, or"
        " compare them with esrgan_jax.steps.vgg_perceptual(vgg_params)"
      )
  if not isinstance(layer_weights, Mapping | None):
    raise TypeError(
      "layer_weights must be weights by layer, such as {'conv5_4': 1.0}, got"
      f" {checks.describe(layer_weights)}"
    )
  if layer_weights is None:
    layer_weights = dict.fromkeys(sr_features, 1.0)
  if not layer_weights:
    raise ValueError("perceptual_loss needs at least one layer, got none")
  if not set(layer_weights) == set(sr_features) == set(hr_features):
    raise ValueError(
      "layers must be the same: sr_features has "
      f"{sorted(sr_features)}, hr_features {sorted(hr_features)}, "
      f"layer_weights {sorted(layer_weights)}"
    )
  total = 0
  for layer, weight in layer_weights.items():
    distance = _CRITERIA[criterion](sr_features[layer], hr_features[layer])
    checks.check_number(weight, f"layer_weights[{layer!r}]")
    total += jnp.asarray(weight, distance.dtype) * distance
  return total


def relativistic_generator_loss(
  real_logits: Array, fake_logits: Array, *, halve: bool = True
) -> Array:
  """Returns the generator's relativistic average GAN loss.

  L_G = -E_r[log(1 - D(r, f))] - E_f[log D(f, r)], where D(a, b) is the sigmoid
  of C(a) - E_b[C(b)]. Gradients pass through both means; all published codes
  agree on that for the generator.

  Args:
    real_logits: C of real images, before any sigmoid, any shape.
    fake_logits: C of super-resolved images, any shape.
    halve: Halve the sum, as the authors' training code and BasicSR do: their
      weight of 5e-3 rests on it. `False` is the paper's equation.

  Returns:
    Scalar, float32; ln 2 (or 2 ln 2) where all logits are equal.

  Raises:
    TypeError: If either is no float array.
    ValueError: If either is empty.

  Source: ESRGAN (arXiv:1809.00219), equation 2; the authors' training code
  (2019-06) and BasicSR `models/esrgan_model.py`: `(l_g_real + l_g_fake) / 2`.

  >>> logits = jnp.zeros((4,))
  >>> round(float(relativistic_generator_loss(logits, logits)), 4)
  0.6931
  """
  checks.check_flags(halve=halve)
  real, fake = _floats(real_logits=real_logits, fake_logits=fake_logits)
  loss = _bce(real - jnp.mean(fake), False) + _bce(fake - jnp.mean(real), True)
  return loss / 2 if halve else loss


def relativistic_discriminator_loss(
  real_logits: Array,
  fake_logits: Array,
  *,
  detach_means: bool = False,
  halve: bool = True,
) -> Array:
  """Returns the discriminator's relativistic average GAN loss.

  L_D = -E_r[log D(r, f)] - E_f[log(1 - D(f, r))], where D(a, b) is the sigmoid
  of C(a) - E_b[C(b)]. The value does not depend on `detach_means`; the
  gradient does.

  Args:
    real_logits: C of real images, before any sigmoid, any shape.
    fake_logits: C of super-resolved images, any shape.
    detach_means: Stop gradients at the two means, as BasicSR does (it runs
      two backward passes); the authors' code differentiates them.
    halve: Halve the sum, as the authors' training code and BasicSR do.
      `False` is the paper's equation.

  Returns:
    Scalar, float32; ln 2 (or 2 ln 2) where all logits are equal.

  Raises:
    TypeError: If either is no float array.
    ValueError: If either is empty.

  Source: ESRGAN (arXiv:1809.00219), equation 1; the authors' training code
  (2019-06); BasicSR `models/esrgan_model.py` for `detach_means=True`.

  >>> real, fake = jnp.array([3.0, 5.0]), jnp.array([-4.0, -4.0])
  >>> round(float(relativistic_discriminator_loss(real, fake)), 4)
  0.0004
  """
  checks.check_flags(detach_means=detach_means, halve=halve)
  real, fake = _floats(real_logits=real_logits, fake_logits=fake_logits)
  real_mean, fake_mean = jnp.mean(real), jnp.mean(fake)
  if detach_means:
    real_mean, fake_mean = jax.lax.stop_gradient((real_mean, fake_mean))
  loss = _bce(real - fake_mean, True) + _bce(fake - real_mean, False)
  return loss / 2 if halve else loss


def vanilla_generator_loss(fake_logits: Array) -> Array:
  """Returns the generator's non-saturating GAN loss, -E[log D(fake)].

  Args:
    fake_logits: Discriminator logits of super-resolved images, any shape.

  Returns:
    Scalar, float32.

  Raises:
    TypeError: If it is no float array.
    ValueError: If it is empty.

  Source: SRGAN (arXiv:1609.04802), equation 6.

  >>> round(float(vanilla_generator_loss(jnp.zeros((4,)))), 4)
  0.6931
  """
  (fake,) = _floats(fake_logits=fake_logits)
  return _bce(fake, True)


def vanilla_discriminator_loss(real_logits: Array, fake_logits: Array) -> Array:
  """Returns the GAN loss -E[log D(real)] - E[log(1 - D(fake))].

  Args:
    real_logits: Discriminator logits of real images, any shape.
    fake_logits: Discriminator logits of super-resolved images, any shape.

  Returns:
    Scalar, float32; a sum, not halved.

  Raises:
    TypeError: If either is no float array.
    ValueError: If either is empty.

  Source: SRGAN (arXiv:1609.04802), equation 2; BasicSR
  `models/srgan_model.py`, which adds both terms.

  >>> logits = jnp.zeros((4,))
  >>> round(float(vanilla_discriminator_loss(logits, logits)), 4)
  1.3863
  """
  real, fake = _floats(real_logits=real_logits, fake_logits=fake_logits)
  return _bce(real, True) + _bce(fake, False)


def wasserstein_generator_loss(fake_scores: Array) -> Array:
  """Returns the generator's Wasserstein loss, -E[C(fake)].

  Args:
    fake_scores: Critic scores of super-resolved images, any shape.

  Returns:
    Scalar, float32.

  Raises:
    TypeError: If it is no float array.
    ValueError: If it is empty.

  Source: WGAN-GP (arXiv:1704.00028), algorithm 1.

  >>> float(wasserstein_generator_loss(jnp.array([1.0, 3.0])))
  -2.0
  """
  (fake,) = _floats(fake_scores=fake_scores)
  return -jnp.mean(fake)


def wasserstein_critic_loss(real_scores: Array, fake_scores: Array) -> Array:
  """Returns the critic's Wasserstein loss, E[C(fake)] - E[C(real)].

  Add 10 times `gradient_penalty` for WGAN-GP.

  Args:
    real_scores: Critic scores of real images, any shape.
    fake_scores: Critic scores of super-resolved images, any shape.

  Returns:
    Scalar, float32.

  Raises:
    TypeError: If either is no float array.
    ValueError: If either is empty.

  Source: WGAN-GP (arXiv:1704.00028), equation 3.

  >>> float(wasserstein_critic_loss(jnp.array([5.0]), jnp.array([1.0, 3.0])))
  -3.0
  """
  real, fake = _floats(real_scores=real_scores, fake_scores=fake_scores)
  return jnp.mean(fake) - jnp.mean(real)


def least_squares_generator_loss(
  fake_scores: Array, *, halve: bool = True
) -> Array:
  """Returns the generator's least squares loss, E[(C(fake) - 1)^2] / 2.

  Args:
    fake_scores: Scores of super-resolved images, any shape.
    halve: As in the paper. `False` is BasicSR's `lsgan`, and twice as much.

  Returns:
    Scalar, float32.

  Raises:
    TypeError: If it is no float array.
    ValueError: If it is empty.

  Source: LSGAN (arXiv:1611.04076), equations 2 and 9: a = 0, b = c = 1.

  >>> float(least_squares_generator_loss(jnp.array([1.0, -1.0])))
  1.0
  """
  checks.check_flags(halve=halve)
  (fake,) = _floats(fake_scores=fake_scores)
  loss = jnp.mean(jnp.square(fake - 1))
  return loss / 2 if halve else loss


def least_squares_discriminator_loss(
  real_scores: Array, fake_scores: Array, *, halve: bool = True
) -> Array:
  """Returns the least squares loss (E[(C(real) - 1)^2] + E[C(fake)^2]) / 2.

  Args:
    real_scores: Scores of real images, any shape.
    fake_scores: Scores of super-resolved images, any shape.
    halve: As in the paper. `False` is BasicSR's `lsgan`, and twice as much.

  Returns:
    Scalar, float32.

  Raises:
    TypeError: If either is no float array.
    ValueError: If either is empty.

  Source: LSGAN (arXiv:1611.04076), equations 2 and 9: a = 0, b = c = 1.

  >>> real, fake = jnp.array([1.0, 3.0]), jnp.array([0.0])
  >>> float(least_squares_discriminator_loss(real, fake))
  1.0
  """
  checks.check_flags(halve=halve)
  real, fake = _floats(real_scores=real_scores, fake_scores=fake_scores)
  loss = jnp.mean(jnp.square(real - 1)) + jnp.mean(jnp.square(fake))
  return loss / 2 if halve else loss


def hinge_discriminator_loss(real_scores: Array, fake_scores: Array) -> Array:
  """Returns the loss E[max(0, 1 - C(real))] + E[max(0, 1 + C(fake))].

  The generator's is `wasserstein_generator_loss`.

  Args:
    real_scores: Scores of real images, any shape.
    fake_scores: Scores of super-resolved images, any shape.

  Returns:
    Scalar, float32; 0 where all scores are beyond 1 and -1.

  Raises:
    TypeError: If either is no float array.
    ValueError: If either is empty.

  Source: Geometric GAN (arXiv:1705.02894), section 3; BasicSR
  `losses/gan_loss.py::GANLoss`, `hinge`.

  >>> real, fake = jnp.array([1.0, 0.5]), jnp.array([-3.0, 1.0])
  >>> float(hinge_discriminator_loss(real, fake))
  1.25
  """
  real, fake = _floats(real_scores=real_scores, fake_scores=fake_scores)
  return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def gradient_penalty(
  key: Array,
  critic: Callable[[Array], Array],
  real: Array,
  fake: Array,
  *,
  axis_name: axes.AxisName = None,
) -> Array:
  """Returns WGAN-GP's penalty, E[(||grad C(x)|| - 1)^2], not yet times 10.

  Each x lies at a random place between a real image and a fake one.

  Args:
    key: Random key.
    critic: Function of images to one score each; it must treat images of a
      batch independently, so without BatchNorm in training mode.
    real: Real images, `[B, H, W, C]`.
    fake: Super-resolved images, same shape.
    axis_name: Axis or axes that a batch is mapped over, by `jax.pmap`,
      `jax.shard_map` or `jax.vmap`: the places are then those that one device
      would have chosen for all images. The result is of one's own images.

  Returns:
    Scalar, float32; differentiable with respect to what `critic` closes over.

  Raises:
    TypeError: If the images are no float arrays, `key` no key or `critic` no
      function.
    ValueError: If the shapes differ, there is no batch axis or no image, or
      nothing is mapped over `axis_name`.

  Source: WGAN-GP (arXiv:1704.00028), equation 3.

  >>> image = jnp.ones((2, 4, 4, 3))
  >>> critic = lambda x: 2.0 * x[:, 0, 0, 0]
  >>> penalty = gradient_penalty(jax.random.key(0), critic, image, 0 * image)
  >>> round(float(penalty), 3)
  1.0
  """
  checks.check_key(key)
  axes.check_bound(axis_name)
  if not callable(critic):
    raise TypeError(
      "critic must be a function of images to one score each, got"
      f" {checks.describe(critic)}"
    )
  for name, image in (("real", real), ("fake", fake)):
    checks.check_images(image, name, batch=True)
  real, fake = _floats(real=real, fake=fake)
  if real.shape != fake.shape:
    raise ValueError(
      f"real and fake must have the same shape, got {real.shape} and"
      f" {fake.shape}"
    )
  num = axes.size(axis_name) * real.shape[0]
  shape = (num,) + (1,) * (real.ndim - 1)
  place = jax.random.uniform(key, shape, real.dtype)
  place = axes.own_rows(place, axis_name)
  between = place * real + (1 - place) * fake
  # The sum over a batch of independent scores has each image's own gradient.
  gradient = jax.grad(lambda x: jnp.sum(critic(x).astype(x.dtype)))(between)
  squares = jnp.sum(jnp.square(gradient), axis=tuple(range(1, real.ndim)))
  # A root of exactly 0, where the critic is flat, has no finite derivative.
  norm = jnp.sqrt(squares + 1e-12)
  return jnp.mean(jnp.square(norm - 1))


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
  """What both players minimise, by one name.

  Attributes:
    name: As configs have it.
    generator: `(real_logits, fake_logits, **options) -> scalar`.
    discriminator: The same for the discriminator, without the penalty.
    options: What both take by name, with defaults: plain values.
    penalty: `(key, critic, real, fake) -> scalar` besides, such as
      `gradient_penalty`; the discriminator must then see each image apart from
      the others of its batch. Its weight is the option `penalty_weight`, which
      the two functions do not get. It gets `axis_name` besides, from a step
      that has one.
  """

  name: str
  generator: Callable[..., Array]
  discriminator: Callable[..., Array]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  penalty: Callable[..., Array] | None = None


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {}
ADVERSARIAL_OPTIONS: dict[str, Any] = {}


def register_adversarial_loss(loss: AdversarialLoss) -> None:
  """Gives an adversarial loss its name, for configs and steps.

  Args:
    loss: The loss; its options become keys of a GAN phase's config.

  Raises:
    ValueError: If another loss has its name, or another default for an option.

  >>> find_adversarial_loss("relativistic").options["halve"]
  True
  """
  if ADVERSARIAL_LOSSES.get(loss.name, loss) != loss:
    raise ValueError(f"another adversarial loss is called {loss.name!r}")
  for name, value in loss.options.items():
    if ADVERSARIAL_OPTIONS.get(name, value) != value:
      raise ValueError(
        f"option {name} of {loss.name!r} is {ADVERSARIAL_OPTIONS[name]} by"
        f" default for another loss, not {value}: call it something else"
      )
  ADVERSARIAL_LOSSES[loss.name] = loss
  ADVERSARIAL_OPTIONS.update(loss.options)


def find_adversarial_loss(name: str) -> AdversarialLoss:
  """Returns the adversarial loss of that name.

  Raises:
    ValueError: If there is none; says what there is.

  >>> find_adversarial_loss("hing")
  Traceback (most recent call last):
  ...
  ValueError: adversarial must be one of relativistic, vanilla, wgan-gp...
  """
  if name not in ADVERSARIAL_LOSSES:
    raise ValueError(
      f"adversarial must be one of {', '.join(ADVERSARIAL_LOSSES)}, got"
      f" {name!r}"
    )
  return ADVERSARIAL_LOSSES[name]


register_adversarial_loss(
  AdversarialLoss(
    "relativistic",  # ESRGAN.
    lambda real, fake, *, detach_means, halve: relativistic_generator_loss(
      real, fake, halve=halve
    ),
    relativistic_discriminator_loss,
    # BasicSR detaches. The paper's equation is not halved.
    options={"detach_means": False, "halve": True},
  )
)
register_adversarial_loss(
  AdversarialLoss(
    "vanilla",  # SRGAN.
    lambda real, fake: vanilla_generator_loss(fake),
    vanilla_discriminator_loss,
  )
)
register_adversarial_loss(
  AdversarialLoss(
    "wgan-gp",
    lambda real, fake: wasserstein_generator_loss(fake),
    wasserstein_critic_loss,
    options={"penalty_weight": 10.0},
    penalty=gradient_penalty,
  )
)
register_adversarial_loss(
  AdversarialLoss(
    "lsgan",
    lambda real, fake, *, halve: least_squares_generator_loss(
      fake, halve=halve
    ),
    least_squares_discriminator_loss,
    # The paper's equation is halved; BasicSR's is not.
    options={"halve": True},
  )
)
register_adversarial_loss(
  AdversarialLoss(
    "hinge",
    lambda real, fake: wasserstein_generator_loss(fake),
    hinge_discriminator_loss,
  )
)


def _floats(**arrays):
  """Arrays by name, of one dtype; the mean of none would be nan."""
  arrays = [checks.check_floats(x, name) for name, x in arrays.items()]
  dtype = at_least_float32(*(x.dtype for x in arrays))
  return [x.astype(dtype) for x in arrays]


def _difference(sr, hr):
  """`sr - hr` in float32; no silent broadcasting."""
  sr, hr = _floats(sr=sr, hr=hr)
  checks.check_pair(sr, hr)
  return sr - hr


def _bce(logits, is_real):
  """Mean binary cross-entropy of logits against one label, never inf."""
  return jnp.mean(jax.nn.softplus(-logits if is_real else logits))
