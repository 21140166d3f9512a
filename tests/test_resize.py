"""MATLAB's imresize against exact rational arithmetic, Pillow and itself."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from esrgan_jax import resize
from esrgan_jax.resize import imresize, imresize_uint8

BORDERS = ("mirror", "clamp")


def pattern(height, width, channels=1):
  """A busy 8-bit image by formula, with full-range edges."""
  i, j, c = np.indices((height, width, channels))
  return ((7 * i * i + 13 * j + i * j + 29 * c) % 256).astype(np.uint8)


def noise(*shape, seed=0):
  return np.random.default_rng(seed).random(shape)


def exact_matrix(in_size, out_size, scale, border):
  """MATLAB's weights, [out, in], in rational arithmetic from the definition."""

  def cubic(x):
    x = abs(x)
    if x <= 1:
      return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x <= 2:
      return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)

  stretch = min(scale, Fraction(1))
  matrix = [[Fraction(0)] * in_size for _ in range(out_size)]
  for out in range(out_size):
    center = (out + Fraction(1, 2)) / scale - Fraction(1, 2)
    reach = math.ceil(2 / stretch) + 1
    for source in range(
      math.floor(center) - reach, math.floor(center) + reach + 1
    ):
      weight = cubic(stretch * (center - source))
      place = source
      if border == "clamp":
        place = min(max(place, 0), in_size - 1)
      else:
        while not 0 <= place < in_size:
          place = -1 - place if place < 0 else 2 * in_size - 1 - place
      matrix[out][place] += weight
    total = sum(matrix[out])
    matrix[out] = [weight / total for weight in matrix[out]]
  return matrix


def exact_matrices(shape, out_shape, scales, border):
  return [
    exact_matrix(n, o, s, border)
    for n, o, s in zip(shape, out_shape, scales, strict=True)
  ]


def round_uint8(value):
  """Exact, halves up, saturating."""
  return min(max(math.floor(value + Fraction(1, 2)), 0), 255)


def exact_uint8(image, out_shape, scales, border):
  """Two rounded passes over a [H, W] list, rows first unless W shrinks more."""
  rows, columns = exact_matrices(image.shape, out_shape, scales, border)
  image = [[int(v) for v in line] for line in image]

  def along_rows(image):
    return [
      [
        round_uint8(
          sum(w * v for w, v in zip(weights, column, strict=True) if w)
        )
        for column in zip(*image, strict=True)
      ]
      for weights in rows
    ]

  def along_columns(image):
    return [
      [
        round_uint8(sum(w * v for w, v in zip(weights, line, strict=True) if w))
        for weights in columns
      ]
      for line in image
    ]

  if scales[1] < scales[0]:
    return along_rows(along_columns(image))
  return along_columns(along_rows(image))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("scale", ["1/4", "1/2", "1/3", "2", "3", "4"])
def test_uint8_equals_rational_arithmetic(scale, border):
  scale = Fraction(scale)
  image = pattern(18, 22)
  out_shape = tuple(math.ceil(scale * n) for n in image.shape[:2])
  expected = exact_uint8(image[..., 0], out_shape, (scale, scale), border)
  actual = imresize_uint8(image, scale=float(scale), border=border)
  np.testing.assert_array_equal(actual[..., 0], expected)


@pytest.mark.parametrize("size", [(7, 30), (30, 7), (5, 3), (18, 22)])
def test_size_sets_a_factor_per_axis(size):
  image = pattern(18, 22)
  scales = [Fraction(o, i) for o, i in zip(size, (18, 22), strict=True)]
  expected = exact_uint8(image[..., 0], size, scales, "mirror")
  actual = imresize_uint8(image, size=size)
  np.testing.assert_array_equal(actual[..., 0], expected)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(
  ("shape", "scale"),
  [
    ((20, 16), Fraction(1, 4)),
    ((16, 21), Fraction(1, 3)),
    ((9, 11), Fraction(4)),
    ((5, 4), Fraction(2, 5)),
    ((3, 2), Fraction(1, 2)),
    ((2, 1), Fraction(5)),
  ],
)
def test_float_equals_rational_arithmetic(shape, scale, border):
  image = noise(*shape, 3)
  out_shape = [math.ceil(scale * n) for n in shape]
  rows, columns = (
    np.array(m, float)
    for m in exact_matrices(shape, out_shape, (scale, scale), border)
  )
  expected = np.einsum("ah,bw,hwc->abc", rows, columns, image)
  actual = imresize(
    jnp.asarray(image, jnp.float32), scale=float(scale), border=border
  )
  np.testing.assert_allclose(actual, expected, atol=1e-5)


# Made by this module when it reproduced the published LR images of Set5 and
# Set14 bit by bit (19 of 19 with the clamped border).
GOLDEN = {
  "mirror": [
    [47, 106, 150, 171, 132],
    [142, 137, 127, 123, 122],
    [134, 127, 131, 136, 136],
    [115, 138, 111, 138, 107],
    [111, 148, 121, 138, 115],
  ],
  "clamp": [
    [52, 109, 152, 168, 130],
    [143, 137, 127, 124, 122],
    [133, 127, 131, 136, 135],
    [116, 138, 111, 138, 107],
    [104, 149, 119, 138, 122],
  ],
}


@pytest.mark.parametrize("border", BORDERS)
def test_golden_values(border):
  actual = imresize_uint8(pattern(20, 20), scale=1 / 4, border=border)
  np.testing.assert_array_equal(
    actual[..., 0],
    GOLDEN[border],
    err_msg="LR images changed: data sets and published numbers depend on "
    "these bits. Correct the code, not the values.",
  )


@pytest.mark.parametrize("factor", [4, 3])
def test_interior_equals_pillow(factor):
  # Pillow drops the taps outside the image instead of folding them back.
  size = 24 * factor
  image = noise(size, size).astype(np.float32)
  expected = np.asarray(
    Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC)
  )
  actual = imresize(jnp.asarray(image)[..., None], scale=1 / factor)[..., 0]
  inside = (slice(3, -3), slice(3, -3))
  np.testing.assert_allclose(actual[inside], expected[inside], atol=2e-6)
  assert np.abs(np.asarray(actual) - expected).max() > 1e-3


@pytest.mark.parametrize("scale", [1 / 2, 1 / 4, 1 / 8, 2.0, 4.0])
@pytest.mark.parametrize("border", BORDERS)
def test_rounding_in_float32_is_exact_for_powers_of_two(scale, border):
  image = pattern(56, 48, 3)
  expected = imresize_uint8(image, scale=scale, border=border)
  actual = imresize(
    jnp.asarray(image, jnp.float32) / 255,
    scale=scale,
    border=border,
    round_between=True,
  )
  np.testing.assert_array_equal(np.rint(np.asarray(actual) * 255), expected)


@pytest.mark.parametrize("scale", [1 / 3, 3.0, 0.7])
def test_rounding_in_float32_is_within_a_level(scale):
  image = pattern(51, 48, 3)
  expected = imresize_uint8(image, scale=scale).astype(int)
  actual = imresize(
    jnp.asarray(image, jnp.float32) / 255, scale=scale, round_between=True
  )
  difference = np.abs(np.rint(np.asarray(actual) * 255) - expected)
  assert difference.max() <= 1
  assert np.mean(difference != 0) < 0.01


@pytest.mark.parametrize("scale", [1 / 4, 4.0])
def test_blocks_join_without_seams(scale):
  # More than 128 outputs: several blocks; one output alone: a single one.
  length = 1300 if scale < 1 else 70
  image = noise(length, 1, 1)
  sources, weights = resize._taps(
    length, math.ceil(length * scale), scale, "mirror", True
  )
  starts, _ = resize._blocks(length, len(sources), scale, "mirror", True)
  assert len(starts) > 2
  expected = np.sum(weights * image[sources, 0, 0], axis=1)
  image = jnp.asarray(image, jnp.float32)
  size = (len(sources), 1)
  rows = imresize(image, size=size)
  columns = imresize(image.swapaxes(0, 1), size=size[::-1])
  np.testing.assert_allclose(rows[:, 0, 0], expected, atol=1e-5)
  np.testing.assert_allclose(columns[0, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 7), (13, 20), (50, 64)])
def test_without_antialias_it_is_jax_images_inside(size):
  # Keys' kernel as well, not widened; other weights where taps are outside.
  image = jnp.asarray(noise(26, 30, 2), jnp.float32)
  found = imresize(image, size=size, antialias=False)
  expected = jax.image.resize(image, (*size, 2), "cubic", antialias=False)
  inner = tuple(
    slice(math.ceil(2 * n / m), -math.ceil(2 * n / m))
    for n, m in zip(size, image.shape[:2], strict=True)
  )
  np.testing.assert_allclose(found[inner], expected[inner], atol=2e-5)
  levels = np.asarray(image * 255).astype(np.uint8)
  exact = imresize_uint8(levels, size=size, antialias=False)
  near = imresize(
    jnp.asarray(levels / 255, jnp.float32),
    size=size,
    antialias=False,
    round_between=True,
  )
  assert np.abs(exact - np.asarray(near * 255)).max() <= 1.01


@pytest.mark.parametrize("scale", [1 / 4, 4.0])
def test_constants_grow_linearly_with_the_image(scale):
  sizes = [
    resize._blocks(n, math.ceil(n * scale), scale, "mirror", True)[1].size
    for n in (4096, 8192)
  ]
  assert sizes[1] <= 2.05 * sizes[0]


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 0.9, 1.0, 2.5])
def test_constant_images_stay_constant(scale, border):
  image = jnp.full((2, 13, 17, 3), 0.6)
  out = imresize(image, scale=scale, border=border)
  np.testing.assert_allclose(out, 0.6, atol=1e-5)


def test_scale_one_is_the_identity():
  image = pattern(9, 12, 3)
  np.testing.assert_array_equal(imresize_uint8(image, scale=1), image)


def test_flips_and_transposes_commute():
  image = jnp.asarray(noise(24, 16, 3), jnp.float32)
  out = imresize(image, scale=1 / 4)
  flipped = imresize(image[::-1, ::-1], scale=1 / 4)
  turned = imresize(image.swapaxes(0, 1), scale=1 / 4)
  np.testing.assert_allclose(flipped[::-1, ::-1], out, atol=1e-5)
  np.testing.assert_allclose(turned.swapaxes(0, 1), out, atol=1e-5)


def test_large_images_in_chunks_equal_small_ones():
  image = pattern(1200, 8)
  whole = imresize_uint8(image, scale=1 / 2)
  assert len(whole) > 2 * resize._CHUNK
  # Rows 260..339 of the output see rows 504..695 of the image at most.
  part = imresize_uint8(image[504:696], scale=1 / 2)
  np.testing.assert_array_equal(part[8:-8], whole[260:340])


def test_batches_jit_and_vmap_agree():
  image = jnp.asarray(noise(2, 3, 16, 12, 3), jnp.float32)
  whole = imresize(image, scale=1 / 2)
  assert whole.shape == (2, 3, 8, 6, 3)
  jitted = jax.jit(lambda x: imresize(x, scale=1 / 2))(image)
  mapped = jax.vmap(lambda x: imresize(x, scale=1 / 2))(image)
  one = imresize(image[1, 2], scale=1 / 2)
  np.testing.assert_allclose(jitted, whole, atol=1e-5)
  np.testing.assert_allclose(mapped, whole, atol=1e-5)
  np.testing.assert_allclose(one, whole[1, 2], atol=1e-5)


def test_uint8_batches_agree_with_single_images():
  image = pattern(16, 12, 6).reshape(16, 12, 2, 3).transpose(2, 0, 1, 3)
  whole = imresize_uint8(image, scale=1 / 2)
  for index in range(2):
    single = imresize_uint8(image[index], scale=1 / 2)
    np.testing.assert_array_equal(whole[index], single)


def test_gradient_is_the_transpose():
  image = jnp.asarray(noise(300, 8, 1), jnp.float32)
  weight = jnp.asarray(noise(600, 16, 1, seed=1), jnp.float32)
  out, vjp = jax.vjp(lambda x: imresize(x, scale=2), image)
  (back,) = vjp(weight)
  np.testing.assert_allclose(
    np.vdot(out, weight), np.vdot(image, back), rtol=1e-5
  )


def test_half_precision_is_summed_in_float32():
  image = jnp.asarray(noise(32, 32, 3), jnp.bfloat16)
  out = imresize(image, scale=1 / 4)
  assert out.dtype == jnp.bfloat16
  exact = imresize(image.astype(jnp.float32), scale=1 / 4)
  # Rounded once, to 8 bits.
  np.testing.assert_allclose(np.float32(out), exact, rtol=2**-8)


_RATIOS = (4, 3, 1.5, 2 / 3, 1 / 4, 1 / 8)
_OTHERS = [(s, b, a) for s in _RATIOS for b in resize.BORDERS for a in (0, 1)]


@pytest.mark.parametrize(
  ("scale", "border", "antialias"),
  [
    (2, "mirror", True),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in _OTHERS),
  ],
)
def test_symbolic_sizes_give_what_each_size_does(scale, border, antialias):
  run = jax.jit(
    functools.partial(
      imresize, scale=scale, border=border, antialias=bool(antialias)
    )
  )
  n, h, w = jax.export.symbolic_shape("n, h, w")
  image = jax.ShapeDtypeStruct((n, h, w, 2), jnp.float32)
  exported = jax.export.export(run)(image)
  random = np.random.default_rng(0)
  # Some fold back more than once, some have more than a block of outputs.
  for shape in ((1, 3, 1, 2), (2, 20, 33, 2), (1, 140, 31, 2)):
    image = random.random(shape, np.float32)
    np.testing.assert_allclose(exported.call(image), run(image), atol=1e-6)


def test_symbolic_sizes_need_a_scale_that_is_a_ratio():
  h, w = jax.export.symbolic_shape("h, w")
  image = jax.ShapeDtypeStruct((h, w, 3), jnp.float32)
  for options, message in (
    (
      {"size": (4, 4)},
      r"size=\(4, 4\) of images of symbolic size .*give scale",
    ),
    ({"scale": 2**0.5}, "must be a ratio of whole numbers up to 128"),
    ({"scale": 1 / 1000}, "must be a ratio"),
  ):
    run = jax.jit(functools.partial(imresize, **options))
    with pytest.raises(ValueError, match=message):
      jax.export.export(run)(image)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "either scale or size"),
    ({"scale": 2, "size": (4, 4)}, "either scale or size"),
    ({"scale": 0}, "scale must be finite and > 0, got 0"),
    ({"scale": float("nan")}, "scale must be finite"),
    ({"size": (0, 4)}, "size must be"),
    ({"size": (4.0, 4)}, "size must be"),
    ({"size": (4, 4, 3)}, "size must be"),
    ({"scale": 2, "border": "wrap"}, "border must be one of .*got 'wrap'"),
  ],
)
def test_bad_options_raise(options, message):
  with pytest.raises(ValueError, match=message):
    imresize(jnp.zeros((4, 4, 3)), **options)
  with pytest.raises(ValueError, match=message):
    imresize_uint8(np.zeros((4, 4, 3), np.uint8), **options)


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 3)])
def test_bad_shapes_raise(shape):
  with pytest.raises(ValueError, match="image must be"):
    imresize(jnp.zeros(shape), scale=2)


def test_the_wrong_dtype_names_the_other_function():
  with pytest.raises(TypeError, match="imresize_uint8"):
    imresize(jnp.zeros((4, 4, 3), jnp.uint8), scale=2)
  with pytest.raises(TypeError, match="use imresize"):
    imresize_uint8(np.zeros((4, 4, 3)), scale=2)
