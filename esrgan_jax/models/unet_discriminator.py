"""The discriminator of Real-ESRGAN: images to a logit a pixel."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from esrgan_jax import checks
from esrgan_jax.models.layers import (
  Conv,
  add_bias,
  bias_init,
  convolve,
  kernel_init,
)
from esrgan_jax.models.parameters import ConvParams
from esrgan_jax.ops import axes
from esrgan_jax.ops.convolution import conv
from esrgan_jax.ops.precision import at_least_float32

# Of the layers with spectral norm: outputs as multiples of `num_feat`, side of
# the kernel, and stride.
LAYERS = {
  "conv1": (2, 4, 2),
  "conv2": (4, 4, 2),
  "conv3": (8, 4, 2),
  "conv4": (4, 3, 1),
  "conv5": (2, 3, 1),
  "conv6": (1, 3, 1),
  "conv7": (1, 3, 1),
  "conv8": (1, 3, 1),
}
# Power iteration is of small products: none may be rounded to half precision.
_EXACT = jax.lax.Precision.HIGHEST
_EPSILON = 1e-12  # PyTorch's.


class UNetDiscriminatorSN(nn.Module):
  """A U-Net of ten convolutions, eight of them with spectral norm.

  Three of stride 2 halve the image, three after bilinear enlargement bring it
  back, and what was there at each size is added. Names are BasicSR's (`conv0`
  to `conv9`).

  Spectral norm divides a kernel by its largest singular value, as power
  iteration has it by now. Its two vectors are the layer's `u` and `v` in the
  collection `batch_stats`, which the steps keep, save and restore. They begin
  after 15 iterations, so that the first logits are of usual size. Each call
  with `train=True` goes one iteration on, before the kernel is divided; with
  `train=False` they stay as they are. Gradients pass through the singular
  value, not through the vectors. The steps call it twice, for real images and
  for fake ones, BasicSR three times.

  Attributes:
    num_feat: Channels of the first convolution.
    skip_connection: Whether what was there at each size is added.
    dtype: Compute dtype; parameters, vectors and logits are float32.

  Source: Real-ESRGAN (arXiv:2107.10833), section 3.4 and figure 6; its
  `archs/discriminator_arch.py::UNetDiscriminatorSN`; spectral norm
  (arXiv:1802.05957), algorithm 1, in the form of PyTorch's
  `torch.nn.utils.spectral_norm`.

  >>> discriminator = UNetDiscriminatorSN(num_feat=2)
  >>> image = jnp.zeros((2, 16, 24, 3))
  >>> init = jax.jit(lambda key: discriminator.init(key, image, train=False))
  >>> variables = init(jax.random.key(0))
  >>> variables["batch_stats"]["conv1"]["u"].shape
  (4,)
  >>> discriminator.apply(variables, image, train=False).shape
  (2, 16, 24)
  """

  num_feat: int = 64
  skip_connection: bool = True
  dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    """Raises ValueError if a field is unfit, before anything is computed."""
    super().__post_init__()
    checks.check_sizes(self, "num_feat")
    checks.check_flags(skip_connection=self.skip_connection)
    checks.check_compute_dtype(self.dtype)

  @nn.compact
  def __call__(self, image: Array, *, train: bool) -> Array:
    """Returns one logit per pixel, before any sigmoid.

    Args:
      image: Images, float `[B, H, W, 3]` in [0, 1]; H and W multiples of 8.
      train: Whether power iteration goes on; it is kept where `batch_stats` is
        mutable.

    Returns:
      Logits, float32 `[B, H, W]` (BasicSR's are `[B, 1, H, W]`).

    Raises:
      TypeError: If `image` is no float array, or `train` no bool.
      ValueError: If it has another shape, or `batch_stats` is missing.
    """
    checks.check_flags(train=train)
    image = checks.check_images(image, batch=True)
    if image.shape[1] % 8 or image.shape[2] % 8:
      raise ValueError(
        f"image is {image.shape[1]}x{image.shape[2]}; UNetDiscriminatorSN takes"
        " heights and widths that are multiples of 8: crop it"
      )
    inputs, feat = image.shape[-1], self.num_feat
    # Logits of half precision would be steps.
    wide = at_least_float32(self.dtype)
    layers = {
      name: ConvParams(
        ins, outs, kernel_init, bias_init(9 * ins), dtype, name=name
      )()
      for name, ins, outs, dtype in (
        ("conv0", inputs, feat, self.dtype),
        ("conv9", feat, 1, wide),
      )
    }
    inputs = feat
    for name, (factor, side, _) in LAYERS.items():
      kernel = _NormalizedKernel(inputs, factor * feat, side, name=name)(train)
      layers[name] = kernel.astype(self.dtype), None
      inputs = factor * feat
    return axes.anywhere(self._run, image.astype(self.dtype), layers)

  def _run(self, image: Array, layers: dict[str, Conv]) -> Array:
    def layer(x, name):
      kernel, bias = layers[name]
      _, _, stride = LAYERS.get(name, (1, 3, 1))
      return nn.leaky_relu(add_bias(conv(x, kernel, stride), bias), 0.2)

    sizes = [layer(image, "conv0")]
    for name in ("conv1", "conv2", "conv3"):
      sizes.append(layer(sizes[-1], name))
    x = sizes.pop()
    for name in ("conv4", "conv5", "conv6"):
      x = layer(double(x), name)
      if self.skip_connection:
        x += sizes.pop()
    x = layer(layer(x, "conv7"), "conv8")
    return convolve(x.astype(layers["conv9"][0].dtype), layers["conv9"])[..., 0]


class _NormalizedKernel(nn.Module):
  """A kernel over its largest singular value, and the iteration's vectors.

  The kernel is the matrix of its outputs by all the rest.
  """

  in_ch: int
  out_ch: int
  side: int

  @nn.compact
  def __call__(self, train: bool) -> Array:
    shape = (self.side, self.side, self.in_ch, self.out_ch)
    kernel = self.param("kernel", kernel_init, shape, jnp.float32)
    beginning = self.is_initializing()
    if not beginning and not self.has_variable("batch_stats", "u"):
      raise ValueError(
        f"spectral norm of {self.name} has its vectors u and v in the"
        " collection batch_stats, which is missing: apply with all that `init`"
        " returned, params and batch_stats"
      )
    begun = self._begin(kernel) if beginning else {}
    u, v = (
      self.variable("batch_stats", name, begun.get, name) for name in "uv"
    )
    left, right = u.value, v.value
    if train and not beginning:
      left, right = iterate(kernel, left)
      if self.is_mutable_collection("batch_stats"):
        u.value, v.value = left, right
    return kernel / singular_value(kernel, left, right)

  def _begin(self, kernel):
    """The vectors after some steps: what is drawn is far from the value.

    Source: PyTorch's `torch/nn/utils/parametrizations.py::_SpectralNorm`.
    """
    shape = kernel.shape[3:]
    u = jax.random.normal(self.make_rng("params"), shape, jnp.float32)
    u, v = iterate(kernel, _unit(u))
    u, v = jax.lax.fori_loop(
      1, 15, lambda _, uv: iterate(kernel, uv[0]), (u, v)
    )
    return {"u": u, "v": v}


def iterate(kernel: Array, u: Array) -> tuple[Array, Array]:
  """Returns the vectors after one more step of power iteration.

  Args:
    kernel: HWIO.
    u: The vector of its outputs, `[O]`.

  Returns:
    `u`, `[O]`, and `v`, `[H, W, I]`, each of length 1; no gradient passes.

  Source: spectral norm (arXiv:1802.05957), algorithm 1.

  >>> kernel = jnp.diag(jnp.array([3.0, 1.0])).reshape(1, 1, 2, 2)
  >>> u = jnp.array([0.6, 0.8])
  >>> for _ in range(9): u, v = iterate(kernel, u)
  >>> u.round(3).tolist(), round(float(singular_value(kernel, u, v)), 3)
  ([1.0, 0.0], 3.0)
  """
  kernel, u = jax.lax.stop_gradient((kernel, u))
  v = _unit(jnp.tensordot(kernel, u, 1, precision=_EXACT))
  return _unit(jnp.tensordot(v, kernel, 3, precision=_EXACT)), v


def singular_value(kernel: Array, u: Array, v: Array) -> Array:
  """Returns a kernel's singular value by two vectors, differentiable in it.

  Args:
    kernel: HWIO.
    u: Of `iterate`, `[O]`.
    v: Of `iterate`, `[H, W, I]`.

  Returns:
    Scalar.
  """
  return jnp.vdot(jnp.tensordot(v, kernel, 3, precision=_EXACT), u)


def double(x: Array) -> Array:
  """Enlarges images twice, by bilinear interpolation.

  Args:
    x: `[B, H, W, C]`.

  Returns:
    `[B, 2 * H, 2 * W, C]`.

  Source: PyTorch's `interpolate(scale_factor=2, mode="bilinear",
  align_corners=False)`.

  >>> double(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1))[0, 0, :, 0].tolist()
  [0.0, 1.0, 3.0, 4.0]
  """
  for axis in (1, 2):
    size = x.shape[axis]
    first, last, head, tail = (
      jax.lax.slice_in_dim(x, start, stop, axis=axis)
      for start, stop in ((0, 1), (size - 1, size), (0, size - 1), (1, size))
    )
    before = jnp.concatenate((first, head), axis)
    after = jnp.concatenate((tail, last), axis)
    x = jnp.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after), axis + 1)
    x = x.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 2 :])
  return x


def _unit(x: Array) -> Array:
  return x / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x))), _EPSILON)
