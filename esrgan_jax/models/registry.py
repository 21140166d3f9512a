"""Networks by name, and what a generator tells of itself.

A config, a checkpoint and a weight file name an architecture; here is what the
name means. Names are only looked up, never imported: one that nobody has
registered is an error. All other code asks a network, by the functions below,
and knows no class.

A generator is a Linen module with a field `scale`, called on float images
`[..., H, W, 3]` in [0, 1], that returns float32 `[..., H * scale, W * scale,
3]`. That is enough to train, save, load, evaluate and upscale with it; any
object with such `init` and `apply` is as good, see `models/functions.py`. What
else it may have, each for more speed or use:

- fields `dtype` (compute dtype) and `remat` (recompute activations);
- `size_multiple`: H and W must be multiples of it, 1 if absent;
- `receptive_radius`: how far from a pixel it looks, in LR pixels; where it is
  absent, tiles overlap by a default, and cannot be exact;
- an argument `valid` of its call, `[..., H, W, 1]`, 1 inside the image: it then
  computes inside as if the image ended there, and images of many sizes share a
  program; with `mask_gap`, the pixels that have to lie between two images for
  neither to see the other, several share a window;
- methods `features(lr, valid)` and `reconstruct(features, valid)`, one after
  the other the same as the call, with running statistics; `valid` is at the
  resolution of the features, and absent where the call does not take it. With
  `reconstruct_radius`, how far the second looks in pixels of the features, and
  `num_feat`, about how many channels they have, large tiles are reconstructed
  in strips, in less memory;
- a method `without_loops()`, the same network with no loop in its program: for
  several processes on CPUs, whose sums over devices must not be in one;
- collections besides `params`, such as BatchNorm's `batch_stats`: its call then
  takes `train=`, False for running statistics, and they are trained, saved and
  loaded with it. In training, `make_rng` has random numbers under any name, for
  dropout or noise;
- `takes_train` and `takes_mask`, True or False, where the signature of its call
  does not tell;
- `passes`, how often it goes through its parameters for a pixel of the image, 1
  if absent: how soon a program of a shape of its own is worth its compiling;
- `num_in_ch` and `num_out_ch`, channels of its image and its result, 3 if
  absent; with others it is trained and applied by functions, not by programs,
  whose images are RGB.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn

from esrgan_jax.models import compact, srresnet
from esrgan_jax.models.centered import CenteredRRDBNet
from esrgan_jax.models.discriminators import VGGStyleDiscriminator
from esrgan_jax.models.initialization import start_bilinear
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.models.srgan_discriminator import SRGANDiscriminator
from esrgan_jax.models.unet_discriminator import UNetDiscriminatorSN

DEFAULT_GENERATOR = "RRDBNet"
DEFAULT_DISCRIMINATOR = "VGGStyleDiscriminator"

# Fields that are not a network's shape: a program sets them.
_NO_SHAPE = ("parent", "name", "dtype", "remat", "axis_name")


class Network(Protocol):
  """What a training step wants of a network: a Linen module, or its like."""

  def init(self, *args: Any, **kwargs: Any) -> Any:
    """As of `flax.linen.Module`."""

  def apply(self, *args: Any, **kwargs: Any) -> Any:
    """As of `flax.linen.Module`."""


class Generator(Network, Protocol):
  """The least that a generator has; see the module for what else it may."""

  scale: int


class UnknownArchitectureError(ValueError):
  """Nobody has registered a network of that name."""


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A network that has a name.

  Attributes:
    name: As configs, checkpoints and weight files have it.
    make: Fields by name to a module; the module's class, mostly.
    fields: The fields that a config or a file may set, with their defaults:
      plain values.
    starts: Functions by name, of a generator's random parameters to others of
      the same shapes, that training may begin with.
  """

  name: str
  make: Callable[..., nn.Module]
  fields: Mapping[str, Any]
  starts: Mapping[str, Callable[[Any], Any]] = dataclasses.field(
    default_factory=dict
  )


_generators: dict[str, Architecture] = {}
_discriminators: dict[str, Architecture] = {}


def register_generator(
  name: str,
  make: Callable[..., nn.Module],
  *,
  fields: Mapping[str, Any] | None = None,
  starts: Mapping[str, Callable[[Any], Any]] | None = None,
) -> None:
  """Gives a generator a name, for configs, checkpoints and weight files.

  Args:
    name: The architecture's name; no other may have it.
    make: Fields by name to a module: a Linen module's class, or a function.
    fields: The fields that a config may set, with their defaults. None means
      all that the class has, of plain values.
    starts: What `config.initialization` may be besides "published"; see
      `Architecture`.

  Raises:
    ValueError: If another architecture has the name, or there is no `scale`.

  >>> class Nearest(nn.Module):
  ...   scale: int = 2
  ...   @nn.compact
  ...   def __call__(self, lr):
  ...     gain = self.param("gain", nn.initializers.ones, (3,))
  ...     return (lr * gain).repeat(self.scale, -3).repeat(self.scale, -2)
  >>> register_generator("Nearest", Nearest)
  >>> make_generator("Nearest", scale=4).scale
  4
  >>> unregister("Nearest")
  """
  _register(_generators, name, make, fields, starts)


def register_discriminator(
  name: str,
  make: Callable[..., nn.Module],
  *,
  fields: Mapping[str, Any] | None = None,
) -> None:
  """Gives a discriminator a name, for configs.

  Args:
    name: The architecture's name; no other may have it.
    make: Fields by name to a Linen module of images `[B, H, W, 3]` to logits,
      called with `train=`. One for images of one size has a field `input_size`.
    fields: See `register_generator`.

  Raises:
    ValueError: If another architecture has the name.

  >>> find_discriminator("VGGStyleDiscriminator").fields["num_feat"]
  64
  """
  _register(_discriminators, name, make, fields)


def unregister(name: str) -> None:
  """Forgets a name, where there is one; for tests and notebooks."""
  _generators.pop(name, None)
  _discriminators.pop(name, None)


def generators() -> tuple[str, ...]:
  """Returns the names of all generators.

  >>> "RRDBNet" in generators()
  True
  """
  return tuple(_generators)


def discriminators() -> tuple[str, ...]:
  """Returns the names of all discriminators.

  >>> "VGGStyleDiscriminator" in discriminators()
  True
  """
  return tuple(_discriminators)


def find_generator(name: str) -> Architecture:
  """Returns the generator of that name.

  Raises:
    UnknownArchitectureError: If there is none; says what there is.

  >>> find_generator("RRDBNet").fields["num_block"]
  23
  >>> find_generator("RRDBnet")
  Traceback (most recent call last):
  ...
  esrgan_jax.models.registry.UnknownArchitectureError: no generator 'RRDBnet'...
  """
  return _find(_generators, "generator", name)


def find_discriminator(name: str) -> Architecture:
  """Returns the discriminator of that name; see `find_generator`."""
  return _find(_discriminators, "discriminator", name)


def make_generator(
  architecture: str = DEFAULT_GENERATOR,
  *,
  dtype: Any = None,
  remat: bool = False,
  **fields: Any,
) -> Any:
  """Makes a generator, without parameters.

  Args:
    architecture: Its name.
    dtype: Compute dtype; None for the network's own choice.
    remat: Recompute activations in the backward pass.
    **fields: Of the network: `scale`, and what its architecture has.

  Returns:
    A Linen module that keeps the protocol above.

  Raises:
    UnknownArchitectureError: If nobody has registered the name.
    ValueError: If the network has no such field; names those it has.

  >>> net = make_generator("RRDBNet", num_block=6, scale=4, dtype="bfloat16")
  >>> net.scale, receptive_radius(net)
  (4, 94)
  """
  extra = {"dtype": dtype, "remat": remat or None}
  return _make(find_generator(architecture), fields, extra)


def make_discriminator(
  architecture: str = DEFAULT_DISCRIMINATOR,
  *,
  input_size: int,
  dtype: Any = None,
  **fields: Any,
) -> Any:
  """Makes a discriminator, without parameters.

  Args:
    architecture: Its name.
    input_size: Side of the images in HR pixels.
    dtype: Compute dtype; None for the network's own choice.
    **fields: Of the network.

  Returns:
    A Linen module of images to logits.

  Raises:
    UnknownArchitectureError: If nobody has registered the name.
    ValueError: If the network has no such field.

  >>> make_discriminator(num_feat=8, input_size=64).norm
  'batch'
  """
  found = find_discriminator(architecture)
  sized = {"input_size": input_size} if "input_size" in found.fields else {}
  return _make(found, fields | sized, {"dtype": dtype})


def check_network(net: Any, name: str = "net") -> None:
  """Raises a TypeError that says what to pass, unless it is a network.

  >>> check_network(RRDBNet())
  >>> check_network(RRDBNet)
  Traceback (most recent call last):
  ...
  TypeError: net must be a network, got the class RRDBNet: make one, ...
  """
  if isinstance(net, type):
    got = f"the class {net.__name__}: make one, {net.__name__}(...)"
  elif callable(getattr(net, "init", None)) and callable(
    getattr(net, "apply", None)
  ):
    return
  elif callable(net):
    function = getattr(net, "__name__", "function")
    got = (
      f"the function {function}: wrap one of variables and images, as"
      f" esrgan_jax.steps.FromFunction({function})"
    )
  else:
    got = f"an object of type {type(net).__name__}: see steps.FromFunction"
  raise TypeError(f"{name} must be a network, got {got}")


def size_multiple(net: Any) -> int:
  """Returns what height and width of an LR image must be multiples of."""
  return getattr(net, "size_multiple", 1)


def channels(net: Any) -> tuple[int, int]:
  """Returns how many channels a network's images have, and its result's.

  >>> channels(RRDBNet(num_in_ch=1)), channels(nn.Conv(3, (3, 3)))
  ((1, 3), (3, 3))
  """
  return getattr(net, "num_in_ch", 3), getattr(net, "num_out_ch", 3)


def passes(net: Any) -> int:
  """Returns how often a generator multiplies a pixel by its parameters.

  >>> passes(RRDBNet())
  1
  """
  return getattr(net, "passes", 1)


def receptive_radius(net: Any) -> int | None:
  """Returns how far a generator looks, in LR pixels; None if it does not tell.

  >>> receptive_radius(nn.Conv(3, (3, 3))) is None
  True
  """
  return getattr(net, "receptive_radius", None)


def takes_mask(net: Any) -> bool:
  """Returns whether a generator takes `valid`, and heeds an image's border.

  >>> takes_mask(RRDBNet()), takes_mask(nn.Conv(3, (3, 3)))
  (True, False)
  """
  told = getattr(net, "takes_mask", None)
  return _takes(net, "valid") if told is None else bool(told)


def mask_gap(net: Any) -> int | None:
  """Returns how far apart images in one window lie; None if there is but one.

  >>> mask_gap(RRDBNet()), mask_gap(RRDBNet(scale=2)), mask_gap(nn.Dense(3))
  (1, 2, None)
  """
  return getattr(net, "mask_gap", None) if takes_mask(net) else None


def takes_train(net: Any) -> bool:
  """Returns whether a network has a mode to be trained in, `train=`.

  >>> takes_train(RRDBNet()), takes_train(VGGStyleDiscriminator())
  (False, True)
  """
  told = getattr(net, "takes_train", None)
  return _takes(net, "train") if told is None else bool(told)


def has_halves(net: Any) -> bool:
  """Returns whether a generator has `features` and `reconstruct`.

  >>> has_halves(RRDBNet()), has_halves(nn.Conv(3, (3, 3)))
  (True, False)
  """
  names = ("features", "reconstruct", "reconstruct_radius", "num_feat")
  return all(hasattr(type(net), name) or hasattr(net, name) for name in names)


def without_loops(net: Any) -> Any:
  """Returns a network whose program has no loop, if it can be had.

  >>> without_loops(RRDBNet(num_block=6)).unroll
  6
  """
  return net.without_loops() if hasattr(net, "without_loops") else net


def plain_form(net: Any) -> Any:
  """Returns a network in the form that takes symbolic sizes, if it has forms.

  >>> plain_form(RRDBNet()).form
  'plain'
  """
  return net.clone(form="plain") if hasattr(net, "form") else net


def infer(
  net: Any, variables: Mapping[str, Any], lr: Any, valid: Any = None
) -> Any:
  """Applies a generator as it is used once it is trained.

  Args:
    net: The generator.
    variables: `{"params": ...}`, and what collections it has.
    lr: Images `[..., H, W, C]`.
    valid: Which pixels are image, for one that takes it; None means all.

  Returns:
    Images `[..., H * scale, W * scale, 3]`.

  >>> import jax, jax.numpy as jnp
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> lr = jnp.zeros((1, 8, 8, 3))
  >>> infer(net, net.init(jax.random.key(0), lr), lr).shape
  (1, 32, 32, 3)
  """
  masked = {} if valid is None else {"valid": valid}
  mode = {"train": False} if takes_train(net) else {}
  return net.apply(variables, lr, **masked, **mode)


def _takes(net, argument):
  return argument in inspect.signature(type(net).__call__).parameters


def _register(table, name, make, fields, starts=None):
  if name in table and table[name].make is not make:
    raise ValueError(
      f"another network is called {name!r}: choose another name for {make!r}"
    )
  if fields is None:
    fields = _plain_fields(make)
  if table is _generators and "scale" not in fields:
    raise ValueError(
      f"{make!r} has no field `scale`, the size of its result over that of its"
      " image: a generator needs one"
    )
  table[name] = Architecture(name, make, dict(fields), dict(starts or {}))


def _plain_fields(make):
  """Fields of plain values with defaults, but for what programs set."""
  if not dataclasses.is_dataclass(make):
    raise ValueError(
      f"{make!r} is no Linen module's class: pass `fields`, with defaults"
    )
  fields = [f for f in dataclasses.fields(make) if f.name not in _NO_SHAPE]
  missing = [f.name for f in fields if f.default is dataclasses.MISSING]
  if missing:
    raise ValueError(
      f"{make!r} has no default for {', '.join(missing)}: give it one, or pass"
      " `fields`"
    )
  # An activation, say, or a type of numbers is the code's to choose.
  return {f.name: f.default for f in fields if _is_plain(f.default)}


def _is_plain(value):
  if isinstance(value, tuple):
    return all(map(_is_plain, value))
  return value is None or isinstance(value, bool | int | float | str)


def _find(table, kind, name):
  if name in table:
    return table[name]
  near = difflib.get_close_matches(str(name), table, n=1)
  lead = f"did you mean {near[0]}? There" if near else "there"
  raise UnknownArchitectureError(
    f"no {kind} {name!r}; {lead} are {', '.join(table)}. One of your own"
    " is registered by a plugin (CONTRIBUTING.md)"
  )


def _make(found, fields, extra):
  unknown = [key for key in fields if key not in found.fields]
  if unknown:
    raise ValueError(
      f"{found.name} has no field {', '.join(unknown)}; it has"
      f" {', '.join(found.fields)}"
    )
  own = inspect.signature(found.make).parameters
  for key, value in extra.items():
    if value is None:
      continue
    if key in own:
      fields = fields | {key: value}
    elif key == "remat":
      raise ValueError(f"{found.name} has no field remat: set remat to False")
  return found.make(**fields)


register_generator(
  DEFAULT_GENERATOR, RRDBNet, starts={"bilinear": start_bilinear}
)
register_generator(
  "SRResNet", srresnet.SRResNet, starts={"bilinear": srresnet.start_bilinear}
)
register_generator("CenteredRRDBNet", CenteredRRDBNet)
register_generator(
  "SRVGGNetCompact",
  compact.SRVGGNetCompact,
  starts={"bilinear": compact.start_bilinear},
)
register_discriminator(DEFAULT_DISCRIMINATOR, VGGStyleDiscriminator)
register_discriminator("SRGANDiscriminator", SRGANDiscriminator)
register_discriminator("UNetDiscriminatorSN", UNetDiscriminatorSN)
