"""MATLAB's `imresize` (bicubic): what makes LR images in super-resolution.

Images are float `[..., H, W, C]` in [0, 1]. Benchmarks and published numbers
rest on MATLAB's bicubic filter: cubic convolution with a = -0.5, widened when
shrinking (antialiasing), normalised at every output, rows before columns.
`jax.image.resize`, Pillow and OpenCV differ from it, at the borders or wholly.

Each axis is a banded matrix product. It runs in blocks of 128 outputs, each
with the one window of inputs it reads, so cost and constants grow linearly
with the image and the arithmetic stays a batch of dense products. Where sizes
are symbolic (`jax.export`), it is a sum over taps instead.
"""

import fractions
import functools
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrgan_jax import checks
from esrgan_jax.ops import axes
from esrgan_jax.ops.precision import at_least_float32

BORDERS = ("mirror", "clamp")
_BLOCK = 128  # Outputs a block: the side of a TPU's matrix unit.
_CHUNK = 256  # Outputs held in float64 at a time by `imresize_uint8`.


def imresize(
  image: Array,
  *,
  scale: float | None = None,
  size: tuple[int, int] | None = None,
  border: str = "mirror",
  antialias: bool = True,
  round_between: bool = False,
) -> Array:
  """Resizes images as MATLAB's bicubic `imresize` does, antialiasing included.

  Differentiable and safe under `jit`, `vmap` and `grad`; shapes, `scale` and
  `size` are static. Like MATLAB on doubles, it does not clip: values
  overshoot [0, 1] next to strong edges. With `round_between` it does what
  MATLAB does on `uint8`: 256 levels after either pass. Then factors of 2, 4
  and 8 are exact in float32; others may differ by one level, where float64
  falls next to a tie. Data preparation should use `imresize_uint8`.

  For `jax.export`, the number of images, H and W may be symbolic: then `scale`
  is a ratio of whole numbers, such as 4 or 1 / 4.

  Args:
    image: Images, float `[..., H, W, C]` in [0, 1].
    scale: Output pixels per input pixel, > 0, the same for both axes; the
      output is `ceil(scale * H)` by `ceil(scale * W)`.
    size: Output `(height, width)` in pixels; give either `scale` or `size`.
    border: `"mirror"` (current MATLAB, DIV2K) or `"clamp"` (old MATLAB, the
      usual copies of Set5 and Set14); decides the outermost pixels only.
    antialias: Widen the filter when shrinking, as MATLAB does by default.
    round_between: Round to 8-bit levels before, between and after the passes;
      has no useful gradient.

  Returns:
    Images, `[..., out_H, out_W, C]`, of `image`'s dtype.

  Raises:
    TypeError: If `image` is no float array, `scale` no number, or another
      option of another kind.
    ValueError: If `image` has fewer than three axes or no pixels, if not
      exactly one of `scale` and `size` is given, if either is not positive,
      or if `border` is unknown.

  Source: MATLAB `imresize.m` (contributions, cubic); the rounding and the
  clamped border reproduce the published LR images of Set5 bit by bit.

  >>> image = jnp.linspace(0.0, 1.0, 8).reshape(1, 8, 1)
  >>> lr = imresize(image, scale=1 / 4)
  >>> lr.shape, [round(float(v), 3) for v in lr.ravel()]
  ((1, 2, 1), [0.197, 0.803])
  """
  checks.check_flags(antialias=antialias, round_between=round_between)
  image = checks.check_images(image, integers="imresize_uint8")
  passes = _plan(image.shape, scale, size, border, antialias)
  return axes.anywhere(
    functools.partial(_run, passes=passes, round_between=round_between), image
  )


def _run(image, *, passes, round_between):
  """Does the passes, one after the other."""
  dtype = image.dtype
  # Half-precision images are still weighed and summed in float32.
  image = image.astype(at_least_float32(dtype))
  if round_between:
    # On whole numbers float32 is exact wherever the weights are dyadic.
    image = _round_levels(image * 255)
  for axis, *axis_plan in passes:
    image = _resize_axis(image, axis, *axis_plan)
    if round_between:
      image = _round_levels(image)
  return (image / 255 if round_between else image).astype(dtype)


def imresize_uint8(
  image: np.ndarray,
  *,
  scale: float | None = None,
  size: tuple[int, int] | None = None,
  border: str = "mirror",
  antialias: bool = True,
) -> np.ndarray:
  """Resizes 8-bit images on the host, equal to MATLAB's to the last bit.

  float64 NumPy, taps summed in a fixed order: the same bits on every machine.
  Factors whose weights are not dyadic (3, 3/2) leave it to float64 where an
  exact half falls.

  Args:
    image: Images, uint8 `[..., H, W, C]`.
    scale: Output pixels per input pixel, > 0; see `imresize`.
    size: Output `(height, width)` in pixels; give either `scale` or `size`.
    border: `"mirror"` (current MATLAB, DIV2K) or `"clamp"` (old MATLAB, the
      usual copies of Set5 and Set14).
    antialias: Widen the filter when shrinking, as MATLAB does by default.

  Returns:
    Images, uint8 `[..., out_H, out_W, C]`.

  Raises:
    TypeError: If `image` is not uint8, or traced, or an option of another
      kind.
    ValueError: As `imresize`.

  Source: MATLAB `imresize.m`; its compiled passes return the input's class,
  so uint8 images are rounded, halves up, after each.

  >>> image = np.arange(0, 256, 32, dtype=np.uint8).reshape(1, 8, 1)
  >>> imresize_uint8(image, scale=1 / 4).ravel().tolist()
  [44, 180]
  """
  checks.check_flags(antialias=antialias)
  checks.check_concrete(
    image,
    "imresize_uint8",
    "use imresize, of floats, inside of jax.jit or jax.vmap; round_between=True"
    " rounds as this does",
  )
  if not isinstance(image, np.ndarray):
    image = checks.check_array(image, "image", "uint8 [..., H, W, C]")
    image = np.asarray(image)
  if image.dtype != np.uint8:
    raise TypeError(
      f"image must be uint8 [..., H, W, C], got {checks.describe(image)}: use"
      " imresize"
    )
  for axis, *axis_plan in _plan(image.shape, scale, size, border, antialias):
    image = _resize_axis_uint8(image, axis, *axis_plan)
  return image


def axis_weights(
  in_size: int, out_size: int, *, border: str = "mirror"
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what `imresize` makes of one axis: a sparse matrix, by its rows.

  Args:
    in_size: Pixels of the image along the axis.
    out_size: Pixels of the result.
    border: As of `imresize`; or `"wrap"`, of images whose edges meet.

  Returns:
    For each output, the inputs that it is a sum of, and their float64 weights:
    two `[out_size, taps]`. An input may come twice, at a border.

  >>> sources, weights = axis_weights(4, 2, border="clamp")
  >>> sources[0].tolist(), weights.sum(axis=1).round(6).tolist()
  ([0, 0, 0, 0, 1, 2, 3, 3], [1.0, 1.0])
  """
  return _taps(in_size, out_size, out_size / in_size, border, True)


def _plan(shape, scale, size, border, antialias):
  """Validates; returns an axis and what `_taps` takes, per pass."""
  if len(shape) < 3 or 0 in shape[-3:]:
    raise ValueError(
      f"images must be [..., H, W, C] with pixels, got shape {tuple(shape)}; "
      "give a grey image a channel axis: image[..., None]"
    )
  if border not in BORDERS:
    raise ValueError(f"border must be one of {BORDERS}, got {border!r}")
  if (scale is None) == (size is None):
    raise ValueError(
      f"give either scale or size, got scale={scale} and size={size}"
    )
  in_sizes = shape[-3:-1]
  symbolic = any(map(jax.export.is_symbolic_dim, in_sizes))
  if size is not None and symbolic:
    raise ValueError(
      f"size={size} of images of symbolic size {tuple(in_sizes)}: give scale"
    )
  if size is None:
    checks.check_static(scale=scale)
    if isinstance(scale, jax.Array) and not scale.ndim:
      scale = scale.item()
    if not isinstance(scale, numbers.Real):
      several = isinstance(scale, tuple | list | np.ndarray)
      raise TypeError(
        f"scale must be one number for both axes, got {scale}"
        f"{': for others give size=(height, width)' if several else ''}"
      )
    if not (math.isfinite(scale) and scale > 0):
      raise ValueError(f"scale must be finite and > 0, got {scale}")
    scales = (float(scale), float(scale))
    if symbolic:
      more, less = _ratio(scales[0])
      out_sizes = tuple(-(-n * more // less) for n in in_sizes)
    else:
      out_sizes = tuple(math.ceil(scales[0] * n) for n in in_sizes)
  else:
    if np.shape(size) != (2,) or not all(
      isinstance(n, numbers.Integral) and n > 0 for n in size
    ):
      raise ValueError(
        f"size must be (height, width), two whole numbers > 0, got {size}"
      )
    out_sizes = tuple(int(n) for n in size)
    scales = tuple(o / i for o, i in zip(out_sizes, in_sizes, strict=True))
  passes = [
    (axis, in_sizes[i], out_sizes[i], scales[i], border, antialias)
    for i, axis in enumerate((-3, -2))
  ]
  # As MATLAB: the axis that shrinks most goes first, rows first on a draw.
  return sorted(passes, key=lambda axis_pass: axis_pass[3])


def _ratio(scale):
  """The whole numbers whose ratio a scale is."""
  found = fractions.Fraction(scale).limit_denominator(_BLOCK)
  if float(found) != scale or found.numerator > _BLOCK:
    raise ValueError(
      f"scale {scale} of images of symbolic size: it must be a ratio of whole"
      f" numbers up to {_BLOCK}"
    )
  return found.numerator, found.denominator


def _cubic(x):
  """Cubic convolution kernel with a = -0.5 (Keys 1981)."""
  x = np.abs(x)
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return near * (x <= 1) + far * ((x > 1) & (x <= 2))


@functools.lru_cache(maxsize=256)
def _taps(in_size, out_size, scale, border, antialias):
  """Sources and float64 weights of every output: two `[out, taps]`."""
  stretch = min(scale, 1.0) if antialias else 1.0
  width = 4.0 / stretch
  # One-based coordinates, operation by operation as MATLAB: same rounding.
  center = np.arange(1, out_size + 1) / scale + 0.5 * (1 - 1 / scale)
  left = np.floor(center - width / 2)
  sources = left[:, None] + np.arange(math.ceil(width) + 2)
  weights = stretch * _cubic(stretch * (center[:, None] - sources))
  weights /= weights.sum(axis=1, keepdims=True)
  sources = sources.astype(np.int64) - 1
  if border == "wrap":
    sources = sources % in_size
  elif border == "mirror":
    sources = sources % (2 * in_size)
    sources = np.minimum(sources, 2 * in_size - 1 - sources)
  else:
    sources = np.clip(sources, 0, in_size - 1)
  used = np.any(weights != 0, axis=0)
  return sources[:, used], weights[:, used]


@functools.lru_cache(maxsize=64)
def _blocks(in_size, out_size, scale, border, antialias):
  """The band as dense blocks: starts `[N]`, weights `[N, outputs, window]`."""
  sources, weights = _taps(in_size, out_size, scale, border, antialias)
  block = min(_BLOCK, out_size)
  num_blocks = -(-out_size // block)
  padding = ((0, num_blocks * block - out_size), (0, 0))
  sources = np.pad(sources, padding, mode="edge")
  sources = sources.reshape(num_blocks, block, -1)
  weights = np.pad(weights, padding).reshape(sources.shape)
  first = sources.min(axis=(1, 2))
  window = int((sources.max(axis=(1, 2)) - first).max()) + 1
  starts = np.minimum(first, in_size - window)
  dense = np.zeros((num_blocks, block, window))
  index_n, index_o, _ = np.indices(sources.shape, sparse=True)
  # Several taps share a source where the border folds them back.
  np.add.at(dense, (index_n, index_o, sources - starts[:, None, None]), weights)
  return starts, dense


def _resize_axis(image, axis, in_size, out_size, *how):
  """Resizes one axis (-3 or -2) of a float image by blocked products."""
  if jax.export.is_symbolic_dim(in_size):
    return _resize_symbolic_axis(image, axis, in_size, out_size, *how)
  starts, weights = _blocks(in_size, out_size, *how)
  weights = jnp.asarray(weights, image.dtype)
  window = weights.shape[-1]
  position = image.ndim + axis
  # [..., H, W, C] -> [..., N, window, W, C] or [..., H, N, window, C].
  if len(starts) == 1:
    begin = int(starts[0])
    image = jax.lax.slice_in_dim(image, begin, begin + window, axis=position)
    image = jnp.expand_dims(image, position)
  else:
    windows = starts[:, None] + np.arange(window)
    image = jnp.take(image, windows, axis=position, mode="clip")
  equation = {
    -3: "nok,...nkwc->...nowc",
    -2: "nok,...hnkc->...hnoc",
  }[axis]
  image = jnp.einsum(
    equation, weights, image, precision=jax.lax.Precision.HIGHEST
  )
  image = jax.lax.collapse(image, position, position + 2)
  return jax.lax.slice_in_dim(image, 0, out_size, axis=position)


def _resize_symbolic_axis(
  image, axis, in_size, out_size, scale, border, antialias
):
  """The same of any length: every `more` outputs have the same weights."""
  more, less = _ratio(scale)
  # Far enough inside of an axis that nothing is folded back.
  away = less * (2 + math.ceil(4 / min(scale, 1.0) / less))
  length = 2 * away + less
  sources, weights = _taps(
    length, length * more // less, scale, border, antialias
  )
  first = away * more // less
  sources = jnp.asarray(sources[first : first + more] - away)
  weights = jnp.asarray(weights[first : first + more], image.dtype)
  others = [a for a in range(image.ndim) if a != image.ndim + axis]
  output = jnp.arange(out_size)
  phase, start = output % more, output // more * less
  total = 0
  for tap in range(weights.shape[1]):
    source = sources[phase, tap] + start
    if border == "mirror":
      source = source % (2 * in_size)
      source = jnp.minimum(source, 2 * in_size - 1 - source)
    else:
      source = jnp.clip(source, 0, in_size - 1)
    weight = jnp.expand_dims(weights[phase, tap], others)
    total += weight * jnp.take(image, source, axis=axis, mode="clip")
  return total


def _resize_axis_uint8(image, axis, in_size, out_size, *how):
  """Resizes one axis of a uint8 image in float64, rounding halves up."""
  sources, weights = _taps(in_size, out_size, *how)
  image = np.moveaxis(image, axis, 0)
  out = np.empty((out_size, *image.shape[1:]), np.uint8)
  trailing = (1,) * (image.ndim - 1)
  for begin in range(0, out_size, _CHUNK):
    chunk = slice(begin, begin + _CHUNK)
    total = 0.0
    for source, weight in zip(sources[chunk].T, weights[chunk].T, strict=True):
      total = total + weight.reshape(-1, *trailing) * image[source]
    out[chunk] = np.clip(np.floor(total + 0.5), 0, 255)
  return np.moveaxis(out, 0, axis)


def _round_levels(image):
  """Rounds [0, 255] to whole levels, halves up as MATLAB does."""
  return jnp.clip(jnp.floor(image + 0.5), 0, 255)
