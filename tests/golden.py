"""What PyTorch says, recorded, so that it is held to where there is no PyTorch.

`python -m tests.oracles.record` asks PyTorch, in float64, and writes what it
says to `tests/goldens`. Weights and inputs are stored nowhere: both sides draw
them by name, as PyTorch's state dicts have them. A test marked `torch` asks
again, and compares.
"""

import functools
import hashlib
import math
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy

from esrgan_jax import perceptual
from esrgan_jax.models import alexnet, vgg
from esrgan_jax.models.discriminators import linear1_from_torch
from esrgan_jax.weights.dialects import compact
from esrgan_jax.weights.dialects import rrdb as names
from esrgan_jax.weights.dialects import unet_discriminator as unet_names

FOLDER = pathlib.Path(__file__).with_name("goldens")


def draw(name, *shape):
  """Numbers uniform in [-1, 1), float32, by name.

  They are multiples of 2**-23 made of the bits of SHAKE-128: equal to the last
  bit on all machines and in all versions, which NumPy promises of no
  distribution.
  """
  data = hashlib.shake_128(name.encode()).digest(4 * math.prod(shape))
  bits = np.frombuffer(data, "<u4") >> np.uint32(8)
  return (bits.astype(np.float32) * np.float32(2**-23) - 1).reshape(shape)


@functools.cache
def load(file):
  """What was recorded in a file: `{case: {name: array}}`."""
  cases = {}
  arrays = safetensors.numpy.load_file(FOLDER / f"{file}.safetensors")
  for key, value in arrays.items():
    case, name = key.split("/", 1)
    cases.setdefault(case, {})[name] = value
  return cases


def assert_same_places(actual, recorded):
  """That JAX draws the numbers which PyTorch was given."""
  np.testing.assert_allclose(
    actual,
    recorded,
    rtol=1e-6,
    err_msg="JAX draws other numbers now: python -m tests.oracles.record",
  )


def image(name, *shape):
  """Pixels in [0, 1)."""
  return draw(name, *shape) / 2 + np.float32(0.5)


# --- Generators.

# Scale and unshuffle.
FORMS = ((1, 4), (1, 2), (1, 1), (2, 2), (2, 1), (3, 1), (4, 1), (8, 1))


def generator_config(scale, unshuffle, **fields):
  """The fields of a small RRDBNet."""
  return {
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 4,
    "num_block": 2,
    "num_grow_ch": 2,
    "scale": scale,
    "unshuffle": unshuffle,
    **fields,
  }


def generator_state(config):
  """A state dict whose every weight and bias matters."""
  return {
    key: draw(f"generator {key}", *shape) / 4
    for key, shape in names.shapes(config).items()
  }


def lr_image(unshuffle):
  """An image that a generator with this unshuffling takes."""
  return image(f"lr {unshuffle}", 1, 3 * unshuffle, 4 * unshuffle, 3)


# --- Discriminators.

# Channels and sizes, of final maps of 4x4 and 3x3.
DISCRIMINATORS = ((1, 16), (2, 12))


def discriminator_input(size):
  """Images, and a gradient of their logits."""
  return image(f"hr {size}", 3, size, size, 3), draw("logits", 3)


def discriminator_state(num_feat, input_size, norm="batch"):
  """A state dict whose every parameter and statistic matters."""
  state = {}

  def put(name, *shape, scale=1.0, offset=0.0):
    value = draw(f"discriminator {name}", *shape)
    state[name] = value * np.float32(scale) + np.float32(offset)

  size, stage, channels = input_size, 0, 3
  while size > 4:
    width = num_feat * min(2**stage, 8)
    for step, side in enumerate((3, 4)):
      position = f"{stage}_{step}"
      first = position == "0_0"
      # Keeps the scale from layer to layer.
      scale = math.sqrt(6 / (channels * side**2))
      put(f"conv{position}.weight", width, channels, side, side, scale=scale)
      if first or norm == "none":
        put(f"conv{position}.bias", width, scale=0.3)
      if not first and norm != "none":
        kinds = {"batch": "bn", "layer": "ln", "instance": "in"}
        layer = kinds[norm] + position
        put(f"{layer}.weight", width, scale=0.5, offset=1)
        put(f"{layer}.bias", width, scale=0.3)
        if norm == "batch":
          put(f"{layer}.running_mean", width, scale=0.2)
          put(f"{layer}.running_var", width, scale=0.5, offset=1)
      channels = width
    size, stage = size // 2, stage + 1
  inputs = channels * size**2
  put("linear1.weight", 100, inputs, scale=math.sqrt(6 / inputs))
  put("linear1.bias", 100, scale=0.3)
  put("linear2.weight", 1, 100, scale=math.sqrt(3 / 100))
  put("linear2.bias", 1, scale=0.3)
  return state


# Channels and steps of the U-Net discriminator, and the rate of its descent.
UNET = (1, 3, 0.05)


def unet_input():
  """Real images and fake ones, of another shape than a square."""
  return image("unet real", 2, 16, 24, 3), image("unet fake", 2, 16, 24, 3)


def unet_state(num_feat):
  """A state dict of UNetDiscriminatorSN, its vectors as if training had begun.

  Whatever these are, iteration goes on from them.
  """
  state = {}
  for name, shape in unet_names.shapes(num_feat=num_feat).items():
    value = draw(f"unet {name}", *shape)
    if name.endswith(("_u", "_v")):
      value /= np.linalg.norm(value)
    elif not name.endswith("bias"):
      value *= np.float32(math.sqrt(6 / math.prod(shape[1:])))
    state[name] = value
  return state


def discriminator_trees(state):
  """Our trees of parameters and of running statistics from a state dict."""
  params, stats = {}, {}
  last = max(key for key in state if key.startswith("conv"))
  channels = state[last].shape[0]
  for key, value in state.items():
    layer, part = key.split(".")
    if layer.startswith("conv") and part == "weight":
      part, value = "kernel", value.transpose(2, 3, 1, 0)
    elif layer == "linear1" and part == "weight":
      part, value = "kernel", linear1_from_torch(value, channels=channels)
    elif layer == "linear2" and part == "weight":
      part, value = "kernel", value.T
    elif layer.startswith(("bn", "ln", "in")):
      part = {"weight": "scale", "running_mean": "mean"}.get(part, part)
      part = {"running_var": "var"}.get(part, part)
    tree = stats if part in ("mean", "var") else params
    tree.setdefault(layer, {})[part] = value
  return params, stats


# --- SRGAN's networks, in the names of several programs.

# Programs and scales.
SRGAN_GENERATORS = (
  ("basicsr", 4),
  ("basicsr", 2),
  ("basicsr", 3),
  ("lornatang", 4),
  ("lornatang", 3),
  ("leftthomas", 4),
  ("leftthomas", 8),
  ("persson", 2),
)
# Those whose training is recorded, too.
SRGAN_TRAINED = ("basicsr 2", "lornatang 4")
# Channels, size, pooling and normalisation of the first convolution.
SRGAN_DISCRIMINATORS = ((1, 32, 0, False), (2, 40, 2, True), (1, 16, 1, False))


def srgan_state(shapes):
  """A state dict of these shapes whose every array matters."""
  state = {}
  for name, shape in shapes.items():
    value = draw(f"srgan {name}", *shape)
    kind = name.rpartition(".")[2]
    if len(shape) in (2, 4):  # Keeps the scale from layer to layer.
      value = value * np.float32(math.sqrt(3 / math.prod(shape[1:])))
    elif kind == "running_var" or shape == (1,) or kind == "weight":
      value = value / 2 + 1
    else:
      value = value / 4
    state[name] = value
  return state


def srgan_lr():
  """Two images, for statistics of a batch."""
  return image("srgan lr", 2, 3, 4, 3)


def srgan_shapes(case):
  """Names and shapes of a state dict, as they were recorded."""
  return {
    name.removeprefix("shape "): tuple(map(int, value))
    for name, value in case.items()
    if name.startswith("shape ")
  }


def srgan_discriminator_trees(state):
  """Our trees of parameters and of running statistics from a state dict."""
  params, stats = {}, {}
  channels = state["conv7.weight"].shape[0]
  for key, value in state.items():
    layer, part = key.split(".")
    if layer.startswith("conv") and part == "weight":
      part, value = "kernel", value.transpose(2, 3, 1, 0)
    elif layer == "linear1" and part == "weight":
      part, value = "kernel", linear1_from_torch(value, channels=channels)
    elif layer == "linear2" and part == "weight":
      part, value = "kernel", value.T
    elif layer.startswith(("bn", "ln", "in")):
      part = {"weight": "scale", "running_mean": "mean"}.get(part, part)
      part = {"running_var": "var"}.get(part, part)
    tree = stats if part in ("mean", "var") else params
    tree.setdefault(layer, {})[part] = value
  return params, stats


# --- SRVGGNetCompact.

# Scale, activation, and side of the shuffled blocks.
COMPACT = {
  "x1": (1, "leakyrelu", 1),
  "x2": (2, "relu", 2),
  "x3": (3, "prelu", 3),
  "x4": (4, "prelu", 4),
  "x2 of 4": (2, "prelu", 4),
  "x3 of 4": (3, "prelu", 4),
}


def compact_config(name, **fields):
  """The fields of a small network."""
  scale, act_type, shuffle = COMPACT[name]
  return {
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 4,
    "num_conv": 2,
    "scale": scale,
    "act_type": act_type,
    "shuffle": shuffle,
    **fields,
  }


def compact_state(config):
  """A state dict whose every array matters."""
  state = {}
  for key, shape in compact.shapes(config).items():
    fan_in = math.prod(shape[1:])  # Keeps the scale from layer to layer.
    factor = math.sqrt(3 / fan_in) if len(shape) == 4 else 0.5
    state[key] = draw(f"compact {key}", *shape) * np.float32(factor)
  return state


def compact_lr():
  """An image, wider than high."""
  return image("compact lr", 1, 5, 6, 3)


# --- Losses.

EPSILON = 1e-2  # Charbonnier's.


def logits():
  """Logits of six real images and five fake ones."""
  return 4 * draw("real", 6), 4 * draw("fake", 5)


def image_pair():
  """Two images to compare."""
  return image("sr", 2, 4, 5, 3), image("hr", 2, 4, 5, 3)


def penalty_input():
  """Real images, fake ones, and a weight of a critic."""
  shape = (4, 5, 5, 3)
  return draw("real", *shape), draw("fake", *shape), draw("weight", 75, 8) / 2


# --- VGG19.

# The others are told by their norms.
WHOLE_LAYERS = ("conv1_1", "pool1", "pool2", "relu3_4", "pool4", "conv5_4")
DISTANCE_LAYERS = {"conv1_2": 0.1, "conv5_4": 1.0}


def vgg_images():
  """Two images: one side is the least that has a `pool5`, the other is odd."""
  return image("vgg sr", 1, 32, 35, 3), image("vgg hr", 1, 32, 35, 3)


def vgg_state(width=2):
  """torchvision's state dict, with a first stage of so many channels."""
  state, channels = {}, 3
  for layer in vgg.CONV_LAYERS:
    out = width * min(2 ** (int(layer[4]) - 1), 8)
    name = f"features.{vgg.LAYERS.index(layer)}"
    scale = np.float32(math.sqrt(6 / (9 * channels)))
    kernel = draw(f"vgg {name}.weight", out, channels, 3, 3)
    state[f"{name}.weight"] = kernel * scale
    state[f"{name}.bias"] = draw(f"vgg {name}.bias", out) / 8
    channels = out
  return state


# --- Trained measures.


MEASURES = ("lpips", "lpips_vgg", "dists")


def measure_images():
  """Pairs of images; two rows above the least that AlexNet takes."""
  hr = image("measured hr", 2, 33, 38, 3)
  return np.clip(hr + draw("measured noise", *hr.shape) / 4, 0, 1), hr


def measure_params(name):
  """Parameters of `lpips`, `lpips_vgg` or `dists`; of a narrow VGG16."""
  if name == "lpips":
    network = _network(name, alexnet.KERNEL_SHAPES, lambda width: width)
    ends = dict(zip(alexnet.LAYERS, alexnet.KERNEL_SHAPES, strict=True))
  else:
    network = _network(name, vgg.VGG16_KERNEL_SHAPES, lambda width: width // 32)
    ends = {n: n.replace("relu", "conv") for n in perceptual.VGG16_LAYERS}
  widths = {layer: len(network[end]["bias"]) for layer, end in ends.items()}
  if name == "dists":
    widths = {"image": 3, **widths}
  parts = ("alpha", "beta") if name == "dists" else ("heads",)
  return {
    "network": network,
    **{
      part: {
        layer: np.abs(draw(f"{name} {part} {layer}", width))
        for layer, width in widths.items()
      }
      for part in parts
    },
  }


def _network(name, shapes, narrow):
  params, channels = {}, 3
  for layer, (*window, _, width) in shapes.items():
    width, fan_in = narrow(width), channels * math.prod(window)
    kernel = draw(f"{name} {layer}", *window, channels, width)
    params[layer] = {
      "kernel": kernel * np.float32(math.sqrt(6 / fan_in)),
      "bias": draw(f"{name} {layer} bias", width) / 8,
    }
    channels = width
  params["normalization"] = {
    "mean": np.float32([0.485, 0.456, 0.406]),
    "std": np.float32([0.229, 0.224, 0.225]),
  }
  return params


# --- Steps.

PIXEL_LOSSES = ("l1", "mse", "charbonnier")
LAYER_WEIGHTS = {"conv1_2": 0.5, "conv2_1": 2.0}
# Such that no term's gradient is lost among the others'.
WEIGHTS = {
  "pixel_weight": 3.0,
  "perceptual_weight": 0.1,
  "adversarial_weight": 5.0,
}
STEPS = {
  "relativistic": {},
  "detached": {"detach_means": True},
  "paper": {"halve": False},
  "detached paper": {
    "detach_means": True,
    "halve": False,
    "pixel_loss": "mse",
  },
  "vanilla": {"adversarial": "vanilla", "pixel_loss": "charbonnier"},
  "wgan-gp layer": {"adversarial": "wgan-gp", "penalty_weight": 7.0},
  "wgan-gp none": {"adversarial": "wgan-gp", "penalty_weight": 7.0},
  "wgan-gp instance": {"adversarial": "wgan-gp", "penalty_weight": 7.0},
  "lsgan": {"adversarial": "lsgan"},
  "hinge": {"adversarial": "hinge"},
}


class Networks(NamedTuple):
  """What a step trains, and on how much.

  Attributes:
    generator: Fields of the RRDBNet; None is the smallest generator there is.
    num_feat: Channels of the discriminator.
    size: HR pixels of the images' sides.
    batch: Their number.
    steps: Keys of `STEPS`.
  """

  generator: dict[str, int] | None
  num_feat: int
  size: int
  batch: int
  steps: tuple[str, ...]

  def generator_state(self):
    if self.generator:
      return generator_state(self.generator)
    state = {}
    for layer, shape in (("first", (4, 3, 3, 3)), ("last", (3, 4, 3, 3))):
      state[f"{layer}.weight"] = draw(f"upscaler {layer}.weight", *shape) / 2
      state[f"{layer}.bias"] = draw(f"upscaler {layer}.bias", shape[0]) / 4
    return state

  def discriminator(self, step):
    """Channels, size and normalisation."""
    norm = step.split()[1] if "wgan-gp" in step else "batch"
    return self.num_feat, self.size, norm

  def images(self):
    hr = image("step hr", self.batch, self.size, self.size, 3)
    lr = image("step lr", self.batch, self.size // 4, self.size // 4, 3)
    return {"lr": lr, "hr": hr}


RECORDED = Networks(
  generator=None,
  num_feat=1,
  size=12,
  batch=3,
  steps=("relativistic", "detached paper", "vanilla", "wgan-gp layer"),
)
# Not recorded, for they take long to compile.
LARGER = Networks(
  generator=generator_config(4, 1, num_feat=6, num_grow_ch=4),
  num_feat=4,
  size=16,
  batch=4,
  steps=tuple(STEPS),
)


def penalty_key():
  """The key of the places of WGAN-GP's penalty."""
  return jax.random.key(3)


# --- Optimizers.

CLIP_NORMS = (None, 0.1)
MILESTONES = (2, 4)


def descent():
  """A start and the gradients of five steps."""
  shapes = {"a": (3, 2), "b": (4,)}
  start = {name: draw(f"start {name}", *s) for name, s in shapes.items()}
  return start, [
    {name: draw(f"gradient {step} {name}", *s) for name, s in shapes.items()}
    for step in range(5)
  ]


# --- Files. Both forms of `torch.save`: an archive, and what was before it.

SAVED = {"saved.pth": True, "saved_legacy.pth": False}
SAVED_DTYPES = (
  "float32",
  "float16",
  "bfloat16",
  "float64",
  "int64",
  "uint8",
  "bool",
)


def saved(dtype):
  """An array that all dtypes but `bool` hold exactly; no NumPy has bfloat16."""
  values = np.arange(60).reshape(3, 4, 5) % 7
  return values.astype("float32" if dtype == "bfloat16" else dtype)


def turned(array):
  """A view that is not contiguous, of NumPy's array or PyTorch's tensor."""
  return array.swapaxes(0, 2)[1:, ::2]


# --- Degradation.

# An image's size and that of the result; what is larger, smaller, the same.
RESIZED = (((14, 17), (5, 9)), ((14, 17), (21, 40)), ((9, 6), (9, 1)))
RESIZE_FACTORS = (0.37, 1.4)
USM_RADIUS = 20


def hr_image(*size):
  """An image with three channels."""
  return image("hr", *size, 3)
