"""VGG's convolutional features, for perceptual losses and measures.

Plain functions: the networks are frozen, so there is nothing to train, and
their parameters are data. Those of VGG19 are a dictionary `{"conv1_1":
{"kernel", "bias"}, ..., "conv5_4": {...}, "normalization": {"mean", "std"}}`;
VGG16 is the same with three convolutions in each of the last three stages.

torchvision's and Keras's weights expect different inputs. The mean cannot be
folded into `conv1_1` exactly, because zeros are padded after normalisation: a
folded mean would change the border. So the normalisation travels with the
weights, always as RGB in [0, 1]; only Keras's BGR order is folded into the
kernel, which is exact.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from esrgan_jax import checks
from esrgan_jax.ops import axes, masks, packing
from esrgan_jax.ops.convolution import conv
from esrgan_jax.ops.platforms import by_platform
from esrgan_jax.ops.precision import at_least_float32

# Convolutions per stage (arXiv:1409.1556, columns E and D), and their widths.
_VGG19 = (2, 2, 4, 4, 4)
_VGG16 = (2, 2, 3, 3, 3)
_WIDTHS = (64, 128, 256, 512, 512)


def _kernel_shapes(
  stages: Sequence[int],
) -> Iterator[tuple[str, tuple[int, ...]]]:
  """The shape of every convolution's kernel, HWIO."""
  channels = 3
  for stage, (count, width) in enumerate(zip(stages, _WIDTHS, strict=True), 1):
    for index in range(1, count + 1):
      yield f"conv{stage}_{index}", (3, 3, channels, width)
      channels = width


KERNEL_SHAPES = dict(_kernel_shapes(_VGG19))
VGG16_KERNEL_SHAPES = dict(_kernel_shapes(_VGG16))
CONV_LAYERS = tuple(KERNEL_SHAPES)


def _all_layers(stages: Sequence[int]) -> Iterator[str]:
  """Every layer name in the order of computation."""
  for stage, count in enumerate(stages, 1):
    for index in range(1, count + 1):
      yield f"conv{stage}_{index}"
      yield f"relu{stage}_{index}"
    yield f"pool{stage}"


LAYERS = tuple(_all_layers(_VGG19))
VGG16_LAYERS = tuple(_all_layers(_VGG16))

# torchvision's `VGG19_Weights.IMAGENET1K_V1.transforms()`.
_TORCHVISION_MEAN = (0.485, 0.456, 0.406)
_TORCHVISION_STD = (0.229, 0.224, 0.225)
# Keras `imagenet_utils.preprocess_input(mode="caffe")`, turned to RGB order.
_KERAS_MEAN_255 = (123.68, 116.779, 103.939)

_OUTSIDE = "call it outside of jax.jit, and give the program its result"


class _Network(NamedTuple):
  """What errors call a network, its layers, and what makes its parameters."""

  name: str
  layers: tuple[str, ...]
  made_by: str


_VGG19_NETWORK = _Network(
  "VGG19",
  LAYERS,
  "vgg19_from_torchvision, vgg19_from_keras or init_vgg19",
)
_VGG16_NETWORK = _Network(
  "VGG16",
  VGG16_LAYERS,
  "weights.perceptual.load_vgg16, vgg16_from_torchvision or vgg16_from_keras",
)


def vgg19_features(
  params: Mapping[str, Mapping[str, Array]],
  image: Array,
  *,
  layers: Iterable[str] = ("conv5_4",),
  dtype: Any = None,
) -> dict[str, Array]:
  """Returns VGG19's features of images at the named layers.

  Computes no further than the deepest layer asked for. Reverse-mode
  differentiation only.

  Args:
    params: Parameters, from `vgg19_from_torchvision`, `vgg19_from_keras` or
      `init_vgg19`. Convolutions past the deepest layer may be absent.
    image: Images, float `[..., H, W, 3]`, RGB in [0, 1]: normalised here.
    layers: Names out of `LAYERS`: `"conv5_4"` is before the activation (as in
      ESRGAN and BasicSR), `"relu5_4"` after it (as in SRGAN), `"pool5"` after
      the pooling.
    dtype: Compute dtype, such as `jnp.bfloat16`; `None` for the image's. The
      normalisation is computed in float32 at least.

  Returns:
    Features by layer name, in `dtype`: `[..., H / 2^k, W / 2^k, channels]`,
    rounded down, k being the poolings before the layer.

  Raises:
    TypeError: If `image` is no float array, or `params` no tree of them.
    ValueError: If a layer is unknown, none is named, its parameters are
      missing or of another shape, or the images are too small for it, or not
      `[..., H, W, 3]`.

  Source: Simonyan and Zisserman (arXiv:1409.1556), configuration E; layer
  names of BasicSR `archs/vgg_arch.py::VGGFeatureExtractor`.

  >>> params = init_vgg19(jax.random.key(0))
  >>> image = jnp.zeros((2, 16, 16, 3))
  >>> features = vgg19_features(params, image, layers=("conv1_2", "pool1"))
  >>> {name: feature.shape for name, feature in features.items()}
  {'conv1_2': (2, 16, 16, 64), 'pool1': (2, 8, 8, 64)}
  """
  return _named_features(_VGG19_NETWORK, params, image, layers, dtype)


def vgg16_features(
  params: Mapping[str, Mapping[str, Array]],
  image: Array,
  *,
  layers: Iterable[str] = ("conv5_3",),
  dtype: Any = None,
  size: Array | None = None,
  pooling: str = "max",
) -> dict[str, Array]:
  """Returns VGG16's features of images at the named layers.

  Args:
    params: Parameters, from `esrgan_jax.weights.perceptual.load_vgg16`.
    image: Images, float `[..., H, W, 3]`, RGB in [0, 1]: normalised here.
    layers: Names out of `VGG16_LAYERS`: `"conv5_3"` is before the activation,
      `"relu5_3"` after it.
    dtype: Compute dtype; `None` for the image's.
    size: Rows and columns of each image that count, integers `[..., 2]`; what
      is beyond may be anything, and features are zero there. So one program
      serves images of many sizes. Features are those of the image cut to that
      size, exactly.
    pooling: `"max"`, or DISTS's `"l2"`, whose results are rounded up in size.

  Returns:
    As `vgg19_features`.

  Raises:
    TypeError: As `vgg19_features`.
    ValueError: As `vgg19_features`, or if there is no such pooling.

  Source: Simonyan and Zisserman (arXiv:1409.1556), configuration D; pooling
  `"l2"`: Ding et al. (arXiv:2004.07728), equation 3.

  >>> layer = {"kernel": jnp.ones((3, 3, 3, 1)), "bias": jnp.zeros(1)}
  >>> normalization = {"mean": jnp.zeros(3), "std": jnp.ones(3)}
  >>> params = {"normalization": normalization, "conv1_1": layer}
  >>> image = jnp.ones((4, 4, 3))
  >>> size = jnp.array([2, 3])
  >>> features = vgg16_features(params, image, layers="conv1_1", size=size)
  >>> features["conv1_1"][:, :, 0].tolist()[:2]
  [[12.0, 18.0, 12.0, 0.0], [12.0, 18.0, 12.0, 0.0]]
  """
  if pooling not in ("max", "l2"):
    raise ValueError(f"pooling must be 'max' or 'l2', got {pooling!r}")
  return _named_features(
    _VGG16_NETWORK, params, image, layers, dtype, size=size, pooling=pooling
  )


def _named_features(
  network, params, image, layers, dtype, *, size=None, pooling="max"
):
  """Checks what either network was given, and runs it."""
  name, names, made_by = network
  layers = (layers,) if isinstance(layers, str) else layers
  if not isinstance(layers, Iterable):
    raise TypeError(
      f"layers must be names of layers, got {checks.describe(layers)}"
    )
  layers = tuple(layers)
  unknown = [layer for layer in layers if layer not in names]
  if unknown or not layers:
    raise ValueError(
      f"layers must be some of {names[0]}, {names[1]}, ..., {names[-1]}, "
      f"got {unknown or layers}"
    )
  image = checks.check_images(image, channels=3)
  depth = 1 + max(names.index(layer) for layer in layers)
  num_pools = sum(layer.startswith("pool") for layer in names[:depth])
  if min(image.shape[-3:-1]) < 2**num_pools and pooling == "max":
    raise ValueError(
      f"{names[depth - 1]} needs images of {2**num_pools} pixels a side or "
      f"more, got {image.shape[-3]}x{image.shape[-2]}"
    )
  if not isinstance(params, Mapping):
    raise TypeError(
      f"params must be {name}'s, of {made_by}, got {checks.describe(params)}"
    )
  used = _used_params(params, names[:depth], name)
  dtype = jnp.dtype(image.dtype if dtype is None else dtype)
  run = functools.partial(
    _features, layers=layers, names=names[:depth], dtype=dtype, pooling=pooling
  )
  operands = (used.pop("normalization"), used)
  operands += () if size is None else (size,)
  features = axes.anywhere(run, image, *operands)
  return dict(zip(layers, features, strict=True))


def _used_params(
  params: Mapping[str, Any], layers: Sequence[str], network: str
) -> dict[str, Any]:
  """The parameters of some layers, or an error where they are not a VGG's."""
  names = ("normalization", *(name for name in layers if name in KERNEL_SHAPES))
  missing = [name for name in names if name not in params]
  if missing:
    raise ValueError(f"params lack {missing}; they have {sorted(params)}")
  used = {name: params[name] for name in names}
  expected, channels = {}, 3
  for name in names[1:]:
    # A slimmer VGG is one, too.
    width = (jnp.shape(used[name].get("bias")) or KERNEL_SHAPES[name])[-1]
    expected[name] = {
      "kernel": jax.ShapeDtypeStruct((3, 3, channels, width), jnp.float32),
      "bias": jax.ShapeDtypeStruct((width,), jnp.float32),
    }
    channels = width
  convs = {name: used[name] for name in expected}
  checks.check_params(convs, expected, owner=f"a {network}")
  return used


def _features(
  image: Array,
  normalization: Mapping[str, Array],
  params: Mapping[str, Any],
  size: Array | None = None,
  *,
  layers: tuple[str, ...],
  names: tuple[str, ...],
  dtype: Any,
  pooling: str,
) -> list[Array]:
  """Normalises images and runs the layers."""
  leading = image.shape[:-3]
  x = image.reshape(-1, *image.shape[-3:])
  x = normalize(x, normalization).astype(dtype)
  run = functools.partial(
    _run_layers, layers=layers, names=names, pooling=pooling
  )
  if size is None and pooling == "max":
    features = by_platform(
      x,
      params,
      tpu=functools.partial(run, packed=packing.can_pack(x)),
      default=functools.partial(run, packed=False),
    )
  else:
    if size is not None:
      size = jnp.broadcast_to(size, (*leading, 2)).reshape(-1, 2)
    features = run(masks.cut(x, size), params, packed=False, size=size)
  return [feature.reshape(*leading, *feature.shape[1:]) for feature in features]


def normalize(image: Array, normalization: Mapping[str, Array]) -> Array:
  """Returns images less a mean, by a standard deviation, in float32 at least.

  Args:
    image: Images `[..., 3]`, RGB in [0, 1].
    normalization: `mean` and `std`, `[3]` each.

  >>> unit = {"mean": jnp.full(3, 0.5), "std": jnp.full(3, 0.25)}
  >>> normalize(jnp.ones((1, 1, 1, 3)), unit).ravel().tolist()
  [2.0, 2.0, 2.0]
  """
  image = image.astype(at_least_float32(image.dtype))
  mean, std = (
    jnp.asarray(normalization[name], image.dtype).reshape(1, 1, 1, 3)
    for name in ("mean", "std")
  )
  return (image - mean) / std


def init_vgg19(key: Array) -> dict[str, dict[str, Array]]:
  """Returns random VGG19 parameters, for tests and random-feature losses.

  He normal kernels and zero biases keep the features' scale from layer to
  layer. Features of random weights compare structure, but they are not the
  trained ones that ESRGAN's results rest on.

  Args:
    key: Random key.

  Returns:
    Parameters, float32, with torchvision's normalisation.

  Source: He et al. (arXiv:1502.01852), equation 10.

  >>> params = jax.eval_shape(init_vgg19, jax.random.key(0))
  >>> params["conv5_4"]["kernel"].shape
  (3, 3, 512, 512)
  """
  return _init(key, KERNEL_SHAPES)


def init_vgg16(key: Array) -> dict[str, dict[str, Array]]:
  """Returns random VGG16 parameters, as `init_vgg19`.

  Args:
    key: Random key.

  >>> jax.eval_shape(init_vgg16, jax.random.key(0))["conv5_3"]["bias"].shape
  (512,)
  """
  return _init(key, VGG16_KERNEL_SHAPES)


def _init(key, shapes):
  checks.check_key(key)
  init = jax.nn.initializers.he_normal()
  keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
  params = {"normalization": _torchvision_normalization()}
  for name, shape in shapes.items():
    params[name] = {
      "kernel": init(keys[name], shape, jnp.float32),
      "bias": jnp.zeros(shape[-1], jnp.float32),
    }
  return params


def vgg19_from_torchvision(
  state_dict: Mapping[str, Any],
) -> dict[str, dict[str, Array]]:
  """Returns VGG19's parameters from torchvision's state dictionary.

  Args:
    state_dict: `{"features.0.weight": [64, 3, 3, 3], ...}` as of
      `vgg19-dcbb9e9d.pth`, array-likes; `classifier.*` is ignored.

  Returns:
    Parameters, float32; expects ImageNet's mean and standard deviation, which
    they carry.

  Raises:
    TypeError: If they are no arrays by name, or traced.
    ValueError: If a convolution is missing or of the wrong rank.

  Source: torchvision `models/vgg.py`, configuration "E".

  >>> weight, bias = np.zeros((64, 3, 3, 3)), np.zeros(64)
  >>> vgg19_from_torchvision({"features.0.weight": weight})
  Traceback (most recent call last):
  ...
  ValueError: the VGG19 weights lack features.0.bias and 30 more
  """
  return _from_torchvision(_VGG19_NETWORK, state_dict)


def vgg16_from_torchvision(
  state_dict: Mapping[str, Any],
) -> dict[str, dict[str, Array]]:
  """Returns VGG16's parameters from torchvision's state dictionary.

  Args:
    state_dict: As of `vgg19_from_torchvision`, of `vgg16-397923af.pth`.

  Returns:
    Parameters for `vgg16_features`, float32.

  Raises:
    TypeError: If they are no arrays by name, or traced.
    ValueError: If a convolution is missing or of the wrong rank.

  Source: torchvision `models/vgg.py`, configuration "D".

  >>> vgg16_from_torchvision({})
  Traceback (most recent call last):
  ...
  ValueError: the VGG16 weights lack features.0.weight and 25 more
  """
  return _from_torchvision(_VGG16_NETWORK, state_dict)


def vgg19_from_keras(
  weights: Mapping[str, Sequence[Any]],
) -> dict[str, dict[str, Array]]:
  """Returns VGG19's parameters from Keras's weights.

  Keras's network takes BGR in [0, 255] less ImageNet's mean. The channel order
  is folded into `conv1_1`; mean and range travel as `normalization`.

  Args:
    weights: `{"block1_conv1": [kernel, bias], ...}` as of
      `vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5`; kernels are
      `[3, 3, in, out]`. Other layers are ignored.

  Returns:
    Parameters, float32; they take the same RGB images in [0, 1].

  Raises:
    TypeError: If they are no arrays by name, or traced.
    ValueError: If a convolution is missing or of the wrong rank.

  Source: Keras `applications/vgg19.py` and `imagenet_utils.py` ("caffe").

  >>> vgg19_from_keras({})
  Traceback (most recent call last):
  ...
  ValueError: the VGG19 weights lack block1_conv1 and 15 more
  """
  return _from_keras(_VGG19_NETWORK, weights)


def vgg16_from_keras(
  weights: Mapping[str, Sequence[Any]],
) -> dict[str, dict[str, Array]]:
  """Returns VGG16's parameters from Keras's weights, as `vgg19_from_keras`.

  Args:
    weights: As of `vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5`.

  Returns:
    Parameters for `vgg16_features`, float32.

  Raises:
    TypeError: If they are no arrays by name, or traced.
    ValueError: If a convolution is missing or of the wrong rank.

  Source: Keras `applications/vgg16.py`.

  >>> vgg16_from_keras({})
  Traceback (most recent call last):
  ...
  ValueError: the VGG16 weights lack block1_conv1 and 12 more
  """
  return _from_keras(_VGG16_NETWORK, weights)


def _from_torchvision(network, state_dict):
  # Positions in `features`: a convolution and a ReLU each, a pool per stage.
  names = {
    layer: f"features.{index}"
    for index, layer in enumerate(network.layers)
    if layer.startswith("conv")
  }
  _check_present(
    state_dict,
    [f"{n}.{part}" for n in names.values() for part in ("weight", "bias")],
    network.name,
  )
  owner = f"{network.name.lower()}_from_torchvision"
  checks.check_concrete(state_dict, owner, _OUTSIDE)
  params = {"normalization": _torchvision_normalization()}
  for layer, name in names.items():
    kernel_oihw = np.asarray(state_dict[f"{name}.weight"], np.float32)
    bias = np.asarray(state_dict[f"{name}.bias"], np.float32)
    _check_rank(f"{name}.weight", kernel_oihw)
    params[layer] = {
      "kernel": jnp.asarray(kernel_oihw.transpose(2, 3, 1, 0)),
      "bias": jnp.asarray(bias),
    }
  return params


def _from_keras(network, weights):
  names = {
    layer: f"block{layer[4]}_conv{layer[6]}"
    for layer in network.layers
    if layer.startswith("conv")
  }
  _check_present(weights, names.values(), network.name)
  owner = f"{network.name.lower()}_from_keras"
  checks.check_concrete(weights, owner, _OUTSIDE)
  params = {
    "normalization": {
      "mean": jnp.asarray(_KERAS_MEAN_255, jnp.float32) / 255,
      "std": jnp.full(3, 1 / 255, jnp.float32),
    }
  }
  for layer, name in names.items():
    kernel, bias = (np.asarray(w, np.float32) for w in weights[name])
    _check_rank(name, kernel)
    if layer == "conv1_1":
      kernel = kernel[:, :, ::-1]
    params[layer] = {
      "kernel": jnp.asarray(np.ascontiguousarray(kernel)),
      "bias": jnp.asarray(bias),
    }
  return params


def _torchvision_normalization() -> dict[str, Array]:
  """ImageNet's mean and standard deviation, RGB in [0, 1]."""
  return {
    "mean": jnp.asarray(_TORCHVISION_MEAN, jnp.float32),
    "std": jnp.asarray(_TORCHVISION_STD, jnp.float32),
  }


def _run_layers(
  x: Array,
  params: Mapping[str, Mapping[str, Array]],
  *,
  layers: Sequence[str],
  names: Sequence[str],
  packed: bool,
  size: Array | None = None,
  pooling: str = "max",
) -> list[Array]:
  """The features of some layers; the first stage packed, where asked for."""
  features = {}
  x = packing.pack(x) if packed else x
  for layer in names:
    if layer.startswith("conv"):
      x = masks.cut(_conv(params[layer], x, packed), size)
    elif layer.startswith("relu"):
      x = jax.nn.relu(x)
    elif pooling == "l2":
      size = None if size is None else (size + 1) // 2
      x = masks.cut(_l2_pool(x), size)
    else:
      x = packing.max_pool(x) if packed else _max_pool(x)
      size = None if size is None else size // 2
      x = masks.cut(x, size)
      packed = False
    features[layer] = packing.unpack(x) if packed else x
  return [features[layer] for layer in layers]


def _conv(layer: Mapping[str, Array], x: Array, packed: bool) -> Array:
  """A 3x3 convolution with zero padding and bias, in `x`'s dtype."""
  kernel = jnp.asarray(layer["kernel"], x.dtype)
  bias = jnp.asarray(layer["bias"], x.dtype)
  if packed:
    x, bias = packing.convolve(x, kernel), packing.pack_channels(bias)
  else:
    x = conv(x, kernel)
  return x + bias.reshape(1, 1, 1, -1)


def _max_pool(x: Array) -> Array:
  """2x2 maxima; an odd last row or column is dropped, as in PyTorch."""
  return by_platform(x, cpu=_max_pool_by_reshape, default=_max_pool_by_window)


def _max_pool_by_window(x: Array) -> Array:
  return lax.reduce_window(
    x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
  )


def _max_pool_by_reshape(x: Array) -> Array:
  """The same; the window's gradient is slow on CPU, and this on a TPU.

  It differs in what equal maxima get: shares here, one of them all there. After
  a ReLU, equal ones are zeros, which pass no gradient on.
  """
  n, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _l2_pool(x: Array) -> Array:
  """Every other root of a 3x3 Hann-weighted mean of squares, from zeros on."""
  x = jnp.square(x)
  for axis in (1, 2):
    count = (x.shape[axis] + 1) // 2
    pads = [(0, 0)] * 4
    pads[axis] = (1, x.shape[axis] % 2)
    x = jnp.pad(x, pads)
    before, here, after = (
      lax.slice_in_dim(x, tap, tap + 2 * count - 1, 2, axis) for tap in range(3)
    )
    x = 0.25 * before + 0.5 * here + 0.25 * after
  return jnp.sqrt(x + jnp.asarray(1e-12, x.dtype))


def _check_present(
  mapping: Mapping[str, Any], names: Iterable[str], network: str
) -> None:
  """Raises naming the first of the missing weights."""
  if not isinstance(mapping, Mapping):
    raise TypeError(
      f"the {network} weights must be arrays by name, got"
      f" {checks.describe(mapping)}"
    )
  missing = [name for name in names if name not in mapping]
  if missing:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise ValueError(f"the {network} weights lack {missing[0]}{more}")


def _check_rank(name: str, kernel: np.ndarray) -> None:
  """Raises unless a kernel has the rank of a convolution's."""
  if kernel.ndim != 4:
    raise ValueError(
      f"{name} must be a convolution kernel of 4 axes, got {kernel.shape}"
    )
