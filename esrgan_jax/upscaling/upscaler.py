"""Upscales images of any size with a network, tile by tile.

The image and the result live in host memory; devices see one batch of tiles at
a time, all of one shape, so that one program is compiled for an image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from esrgan_jax import checks, compilation
from esrgan_jax.models import registry
from esrgan_jax.models.ensemble import SelfEnsemble
from esrgan_jax.ops import platforms
from esrgan_jax.upscaling import stream, tiles
from esrgan_jax.upscaling.memory import OutOfMemoryError
from esrgan_jax.weights import find, mixing, zoo

__all__ = ["OutOfMemoryError", "Upscaler", "load", "load_mixture"]

Progress = Callable[[int, int], None]
Notify = Callable[[str], None]


def _warn(message: str) -> None:
  warnings.warn(message, stacklevel=3)


@dataclasses.dataclass(frozen=True)
class _Placed:
  """Devices, and how arrays lie on them."""

  devices: tuple[jax.Device, ...]

  @functools.cached_property
  def mesh(self) -> Mesh:
    kinds = (AxisType.Auto,)
    return Mesh(np.array(self.devices), ("data",), axis_types=kinds)

  @property
  def sharded(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec("data"))

  def put(self, tree: Any) -> Any:
    # Not on the mesh: an array of one mesh has no place in programs of another,
    # which any caller may have set.
    if self.devices[0] == jax.local_devices()[0]:
      return jax.device_put(tree)  # Goes along with other arguments.
    return jax.device_put(tree, self.devices[0])

  def replicate(self, tree: Any) -> Any:
    return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))


@dataclasses.dataclass(frozen=True)
class _Static:
  """What of a model is no array; its name is left out, to share programs."""

  net: registry.Generator
  placed: _Placed
  programs: dict[tuple, jax.stages.Compiled] = dataclasses.field(compare=False)


@jax.tree_util.register_pytree_with_keys_class
class Upscaler:
  """A network with its parameters, ready for images of any size.

  Calling it is the pure function below `upscale`, for JAX's transformations:
  float `[..., H, W, 3]` in [0, 1] to float32 `[..., H * scale, W * scale, 3]`.

  It is a pytree, whose leaves are its parameters and collections. Give it to a
  program as an argument, `jax.jit(Upscaler.__call__)(model, lr)`. Given as the
  function, `jax.jit(model)(lr)`, it works as well, but what a function holds,
  here the weights, become constants of the program. What `jax.tree.map` and
  other transformations make of a model is another, without `name` and `notes`.

  It does not change: attributes cannot be set, and `params` is a tree of one's
  own. So it may be copied, pickled and sent to other processes. Models of one
  network that are made from each other share compiled programs.

  Args:
    net: The network: any that keeps the protocol of `models.registry`.
    params: Its parameters.
    collections: What it has besides, such as BatchNorm's `batch_stats`.
    name: What to call it in messages and metadata.
    notes: Sentences on choices made while its file was read.
    devices: Devices to run on; None means all local ones.

  Attributes:
    net: As given.
    params: A copy of the tree, not of the arrays, on the first device.
    collections: Likewise.
    name: As given.
    notes: As given.

  Raises:
    TypeError: If the network or a tree is none, or has leaves that are no float
      arrays.
    ValueError: If the parameters or collections are not those of the network.

  >>> from esrgan_jax.models.rrdb import RRDBNet
  >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
  >>> lr = jnp.zeros((1, 8, 8, 3))
  >>> model = Upscaler(net, net.init(jax.random.key(0), lr)["params"])
  >>> model.upscale(np.zeros((5, 6, 3), np.uint8)).shape
  (20, 24, 3)
  >>> jax.jit(Upscaler.__call__)(model, lr).shape
  (1, 32, 32, 3)
  >>> models = jax.tree.map(lambda *leaves: jnp.stack(leaves), model, model)
  >>> jax.vmap(Upscaler.__call__, in_axes=(0, None))(models, lr).shape
  (2, 1, 32, 32, 3)
  """

  __slots__ = (
    "__weakref__",
    "_collections",
    "_everywhere",
    "_params",
    "_placed",
    "_programs",
    "name",
    "net",
    "notes",
  )

  def __init__(
    self,
    net: registry.Generator,
    params: Mapping[str, Any],
    collections: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    notes: Sequence[str] = (),
    devices: Sequence[jax.Device] | None = None,
  ):
    params, collections = unfreeze(params), unfreeze(collections or {})
    _check_variables(net, params, collections)
    placed = _Placed(tuple(devices or jax.local_devices()))
    self._set(
      net=net,
      name=name,
      notes=tuple(notes),
      placed=placed,
      variables=placed.put((params, collections)),
      programs={},
    )

  def _set(self, *, net, name, notes, placed, variables, programs):
    params, collections = variables
    for key, value in {
      "net": net,
      "name": name,
      "notes": notes,
      "_params": params,
      "_collections": collections,
      "_everywhere": None,  # Until it is needed: what `_replicated` returns.
      "_placed": placed,
      "_programs": programs,
    }.items():
      object.__setattr__(self, key, value)

  def __setattr__(self, name: str, value: object) -> None:
    raise AttributeError(
      f"an Upscaler is not changed; {name} is that of another: `with_params`"
      " makes one"
    )

  def __delattr__(self, name: str) -> None:
    self.__setattr__(name, None)

  def _replaced(self, variables, **changes):
    """Another model of the same network, or of another with its variables."""
    other = object.__new__(type(self))
    other._set(
      net=changes.get("net", self.net),
      placed=self._placed,
      programs=self._programs,
      variables=variables,
      name=changes.get("name", self.name),
      notes=changes.get("notes", self.notes),
    )
    return other

  @property
  def params(self) -> dict[str, Any]:
    """The network's parameters; what is done to the tree stays there."""
    return jax.tree.map(lambda leaf: leaf, self._params)

  @property
  def collections(self) -> dict[str, Any]:
    """What the network has besides; see `params`."""
    return jax.tree.map(lambda leaf: leaf, self._collections)

  @property
  def scale(self) -> int:
    """Size of a result over the size of its image."""
    return self.net.scale

  def with_params(
    self,
    params: Mapping[str, Any],
    collections: Mapping[str, Any] | None = None,
  ) -> Upscaler:
    """Returns this model with other parameters; compiled programs are shared.

    Args:
      params: The other ones.
      collections: What belongs to them; None where there is none.

    Raises:
      TypeError: As for `Upscaler`.
      ValueError: As for `Upscaler`.

    >>> from esrgan_jax.models.rrdb import RRDBNet
    >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> params = net.init(jax.random.key(0), lr)["params"]
    >>> model = Upscaler(net, params).with_params(jax.tree.map(abs, params))
    >>> bool(model.params["conv_first"]["kernel"].min() >= 0)
    True
    """
    params, collections = unfreeze(params), unfreeze(collections or {})
    _check_variables(self.net, params, collections)
    return self._replaced(self._placed.put((params, collections)))

  def with_ensemble(self) -> Upscaler:
    """Returns the model whose result is this one's mean over eight ways.

    What `upscale(..., ensemble=True)` runs: images turned and mirrored in all
    ways go through the network, come back, and are averaged before anything is
    rounded (`models.ensemble`). It takes eight times as long, has this model's
    arrays, and is a model as any other. What is one already stays.

    >>> from esrgan_jax.models.rrdb import RRDBNet
    >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> model = Upscaler(net, net.init(jax.random.key(0), lr)["params"])
    >>> model.with_ensemble()(lr).shape
    (1, 32, 32, 3)
    """
    if isinstance(self.net, SelfEnsemble):
      return self
    other = self._replaced(
      (self._params, self._collections),
      net=SelfEnsemble(self.net),
    )
    object.__setattr__(other, "_everywhere", self._everywhere)
    return other

  def __call__(self, lr: jax.Array) -> jax.Array:
    """Applies the network to whole float images `[..., H, W, 3]`.

    Raises:
      TypeError: If they are no float array.
      ValueError: If they have another shape.
    """
    channels, _ = registry.channels(self.net)
    lr = checks.check_images(lr, "lr", channels=channels)
    return registry.infer(self.net, self._variables, lr)

  def __repr__(self) -> str:
    """Names the model, its scale and its size."""
    return f"Upscaler({self.name or type(self.net).__name__}, x{self.scale})"

  def __copy__(self) -> Upscaler:
    """Itself: it does not change."""
    return self

  def __deepcopy__(self, memo: object) -> Upscaler:
    """Itself: it does not change."""
    return self

  def __reduce__(self) -> tuple[Any, ...]:
    """Pickles the arrays as NumPy's, and devices by their numbers."""
    checks.check_concrete(
      self._variables, "pickle", "pickle models outside of jax.jit"
    )
    params, collections = jax.device_get((self._params, self._collections))
    everything = self._placed.devices == tuple(jax.local_devices())
    numbers = None if everything else tuple(d.id for d in self._placed.devices)
    return _restore, (
      self.net,
      params,
      collections,
      self.name,
      self.notes,
      numbers,
    )

  def tree_flatten_with_keys(self) -> tuple[Any, Any]:
    """For JAX: parameters and collections are children."""
    children = (
      (jax.tree_util.GetAttrKey("params"), self._params),
      (jax.tree_util.GetAttrKey("collections"), self._collections),
    )
    return children, _Static(self.net, self._placed, self._programs)

  @classmethod
  def tree_unflatten(cls, static: _Static, variables: Any) -> Upscaler:
    """For JAX: anything may stand where the arrays were."""
    model = object.__new__(cls)
    model._set(
      net=static.net,
      name="",
      notes=(),
      placed=static.placed,
      variables=variables,
      programs=static.programs,
    )
    return model

  @property
  def _device(self):
    return self._placed.devices[0]

  @property
  def _variables(self):
    return {"params": self._params, **self._collections}

  def upscale(
    self,
    image: np.ndarray | jax.Array,
    *,
    tile: int | str = "auto",
    exact: bool = False,
    halo: int | None = None,
    ensemble: bool = False,
    out: np.ndarray | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
  ) -> np.ndarray:
    """Upscales an image of any size.

    Args:
      image: `[H, W, 3]` RGB, or `[H, W, 1]` or `[H, W]` grey, which comes out
        grey: uint8, uint16, or float in [0, 1], an array or what NumPy makes
        one of. Floats that overshoot a little pass: from -1 to 2.
      tile: Side in LR pixels of what one tile contributes; its halo comes on
        top. "auto" takes the largest that fits the memory, 0 does not tile.
      exact: Give tiles a halo as wide as the network looks, so that the result
        equals that of the whole image to rounding. Slow for deep networks;
        where a network does not tell how far it looks, only one tile is.
      halo: LR pixels around a tile; None means a width whose error is below
        one level of 255 (docs/tiling.md).
      ensemble: Return the mean over the eight ways to turn and mirror the
        image, at eight times the cost; see `with_ensemble`.
      out: Where to write the result, e.g. a `numpy.memmap`.
      progress: Called with the number of tiles done and in all.
      notify: Called with a sentence when tiles had to be made smaller; None
        means `warnings.warn`.

    Returns:
      `[H * scale, W * scale(, C)]` of the image's dtype, on the host. Integers
      are rounded and clipped; floats are float32 and may overshoot [0, 1].

    Raises:
      TypeError: If `image` or `out` is no array, or this is traced.
      ValueError: If the shape, the dtype, the values, `tile`, `halo` or `out`
        don't fit, or tiles of this network cannot be exact.
      FloatingPointError: If the network's result is not finite.
      OutOfMemoryError: If not even small tiles fit into memory.

    >>> from esrgan_jax.models.rrdb import RRDBNet
    >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> model = Upscaler(net, net.init(jax.random.key(0), lr)["params"])
    >>> whole = model.upscale(np.ones((60, 40), np.float32), tile=0)
    >>> tiled = model.upscale(np.ones((60, 40), np.float32), tile=8, exact=True)
    >>> bool(np.allclose(whole, tiled, atol=1e-5))
    True
    """
    pixels, result = self._prepare(image, out)
    engine = self._ensemble_if(ensemble).engine(
      tile=tile, exact=exact, halo=halo, notify=notify
    )
    (order,) = engine.run([self.order(pixels, result, progress)])
    if order.error is not None:
      raise order.error
    if out is not None:
      return out
    return result[..., 0] if np.ndim(image) == 2 else result

  def stream(
    self,
    images: Iterable[np.ndarray | jax.Array],
    *,
    sizes: Iterable[tuple[int, int]] = (),
    tile: int | str = "auto",
    exact: bool = False,
    halo: int | None = None,
    ensemble: bool = False,
    notify: Notify | None = None,
  ) -> Iterator[np.ndarray]:
    """Upscales many images, each equal to `upscale` of it alone to rounding.

    Images of many sizes go through a few programs: small ones share windows,
    where the network takes a mask; windows go to all devices in full batches.
    Images are read ahead while devices compute, about eight megapixels a group,
    or 400 MB of results; it is lazy, and holds some three groups at most.

    Args:
      images: Each as for `upscale`; sizes and dtypes may differ.
      sizes: Height and width of the images that will come, where they are
        known, so that shapes of programs are chosen for all of them. They need
        not be right.
      tile: See `upscale`, as for the others.
      exact: Likewise.
      halo: Likewise.
      ensemble: Likewise.
      notify: Likewise.

    Yields:
      The results, in the images' order.

    Raises:
      TypeError: See `upscale`; results of the images before it come first,
        as they do if `images` raises anything.
      ValueError: Likewise.
      FloatingPointError: Likewise.
      OutOfMemoryError: Likewise.

    >>> from esrgan_jax.models.rrdb import RRDBNet
    >>> net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
    >>> lr = jnp.zeros((1, 8, 8, 3))
    >>> model = Upscaler(net, net.init(jax.random.key(0), lr)["params"])
    >>> images = (np.zeros((n, 9, 3), np.uint8) for n in (5, 8, 6))
    >>> [result.shape for result in model.stream(images)]
    [(20, 36, 3), (32, 36, 3), (24, 36, 3)]
    """
    engine = self._ensemble_if(ensemble).engine(
      tile=tile, exact=exact, halo=halo, notify=notify
    )

    def orders() -> Iterator[stream.Order]:
      source = iter(images)
      while True:
        try:
          image = next(source)
          pixels, out = self._prepare(image, None)
        except StopIteration:
          return
        except Exception as error:  # After the results of those before it.
          yield stream.Order.failed(error)
          return
        order = self.order(pixels, out)
        order.flat = np.ndim(image) == 2
        yield order

    for order in engine.run(orders(), sizes):
      if order.error is not None:
        raise order.error
      yield order.out[..., 0] if order.flat else order.out

  def _ensemble_if(self, wanted: bool) -> Upscaler:
    checks.check_flags(ensemble=wanted)
    if not wanted:
      return self
    self._replicated()  # Once, for both.
    return self.with_ensemble()

  def _prepare(
    self, image: Any, out: np.ndarray | None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image's pixels and room for its result."""
    checks.check_concrete(
      (image, self._variables),
      "upscale",
      "call the model itself, model(lr), inside of jax.jit or jax.vmap",
    )
    if not isinstance(image, np.ndarray | jax.Array):
      image = checks.check_array(image, "image", "an array [H, W, 3]")
    image = np.asarray(image)
    pixels = image[..., None] if image.ndim == 2 else image
    dtype = self._check(pixels)
    height, width, channels = pixels.shape
    shape = (height * self.scale, width * self.scale, channels)
    if out is None:
      out = np.empty(shape, dtype)
    elif not isinstance(out, np.ndarray):
      raise TypeError(f"out must be a NumPy array, got {checks.describe(out)}")
    elif image.ndim == 2:
      out = out[..., None]
    if out.shape != shape or out.dtype != dtype:
      raise ValueError(
        f"out is {out.dtype} {out.shape}; it must be {dtype} {shape}"
      )
    return pixels, out

  def order(
    self,
    pixels: np.ndarray,
    out: np.ndarray,
    progress: Progress | None = None,
  ) -> stream.Order:
    """Returns an order of an image that is known to be sound; for `engine`."""
    multiple = registry.size_multiple(self.net)
    return stream.Order(tiles.pad_to_multiple(pixels, multiple), out, progress)

  def engine(
    self,
    *,
    tile: int | str = "auto",
    exact: bool = False,
    halo: int | None = None,
    notify: Notify | None = None,
  ) -> stream.Engine:
    """Returns what upscales orders, for programs of many images.

    Raises:
      ValueError: If `tile` or `halo` don't fit.
    """
    if tile != "auto" and (not isinstance(tile, int) or tile < 0):
      raise ValueError(f"tile is {tile!r}; give 'auto', 0 or pixels")
    if halo is not None and (not isinstance(halo, int) or halo < 0):
      raise ValueError(f"halo {halo!r} must be pixels, 0 or more, or None")
    checks.check_flags(exact=exact)
    return stream.Engine(
      self.net,
      self._placed.devices,
      program=self._program,
      ready=lambda shape, dtype: self._key(shape, dtype) in self._programs,
      put=lambda batch: jax.device_put(batch, self._placed.sharded),
      variables=self._replicated(),
      settings=stream.Settings(tile, exact, halo),
      notify=notify or _warn,
    )

  def _check(self, pixels: np.ndarray) -> np.dtype:
    """Returns the result's dtype, or raises if the image cannot be used."""
    shape = pixels.shape
    channels = registry.channels(self.net)
    allowed = {3: (1, 3)}.get(channels[0], channels[:1])
    if channels[0] != channels[1]:
      raise ValueError(
        f"this network maps {channels[0]} to {channels[1]} channels; to upscale"
        " takes one that has as many of both: call the model on a batch"
      )
    if pixels.ndim != 3 or shape[-1] not in allowed or not pixels.size:
      way_out = ""
      if pixels.ndim == 4:
        way_out = ": upscale images one by one, or call the model on a batch"
      elif pixels.ndim == 3 and shape[-1] == 4:
        way_out = ": leave out alpha, image[..., :3]"
      elif pixels.ndim == 3 and shape[0] in allowed:
        way_out = ": it looks like CHW, move the channels last"
      elif allowed == (1,):
        way_out = ": the network takes one channel, such as luma"
      expected = " or ".join(f"[H, W, {n}]" for n in sorted(allowed)[::-1])
      raise ValueError(
        f"the image has shape {shape}; expected {expected},"
        f" with at least one pixel{way_out}"
      )
    if pixels.dtype in (np.uint8, np.uint16):
      return pixels.dtype
    if jnp.issubdtype(pixels.dtype, jnp.floating):
      checks.check_range(pixels, "the image")
      return np.dtype(np.float32)
    raise ValueError(
      f"the image is {pixels.dtype}; give uint8, uint16, or float in [0, 1]"
    )

  def _replicated(self) -> dict[str, Any]:
    if self._everywhere is None:
      everywhere = self._placed.replicate(self._variables)
      object.__setattr__(self, "_everywhere", everywhere)
    return self._everywhere

  def _key(self, shape: tiles.Shape, dtype: Any) -> tuple:
    leaves = jax.tree.leaves(self._variables)
    layout = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    # A network's programs and those of its ensemble lie side by side.
    return shape, np.dtype(dtype), layout, isinstance(self.net, SelfEnsemble)

  def _program(self, shape: tiles.Shape, dtype: Any) -> jax.stages.Compiled:
    placed = self._placed
    key = self._key(shape, dtype)
    if key not in self._programs:

      def sharded(*size: int, dtype: Any) -> jax.ShapeDtypeStruct:
        size = (len(placed.devices) * shape.per_device, *size)
        return jax.ShapeDtypeStruct(size, dtype, sharding=placed.sharded)

      platform = placed.devices[0].platform
      window = (shape.height, shape.width)
      channels, _ = registry.channels(self.net)
      spec = PartitionSpec("data")
      program = jax.shard_map(
        functools.partial(tiles.upscale_tiles, self.net, size=shape.strip),
        mesh=placed.mesh,
        in_specs=(PartitionSpec(), spec, spec, spec, spec),
        out_specs=spec,
        check_vma=False,  # Nothing is communicated.
      )
      program = jax.jit(
        program,
        compiler_options=compilation.compiler_options(platform),
      )
      with (
        jax.set_mesh(placed.mesh),  # Whatever the caller's is.
        platforms.tracing_for(platform),
      ):
        self._programs[key] = program.lower(
          self._replicated(),
          sharded(*window, channels, dtype=dtype),
          sharded(shape.num_strips, 2, dtype=jnp.int32),
          sharded(*window, 1, dtype=jnp.bool_) if shape.masked else None,
          sharded(dtype=jnp.bool_) if channels == 3 else None,
        ).compile()
    return self._programs[key]


def _restore(net, params, collections, name, notes, numbers):
  """The model of a pickle; on all devices, where those it had are not here."""
  devices = {device.id: device for device in jax.local_devices()}
  if numbers and devices.keys() >= {*numbers}:
    devices = {number: devices[number] for number in numbers}
  return Upscaler(
    net,
    params,
    collections,
    name=name,
    notes=notes,
    devices=tuple(devices.values()),
  )


@functools.lru_cache(maxsize=32)
def _expected(net):
  """Shapes of what a network has, by the form that is traced soonest."""
  net = registry.plain_form(net)
  side = 8 * registry.size_multiple(net)
  lr = jnp.zeros((1, side, side, registry.channels(net)[0]), jnp.float32)
  mode = {"train": False} if registry.takes_train(net) else {}
  return jax.eval_shape(lambda: net.init(jax.random.key(0), lr, **mode))


def _check_variables(net, params, collections):
  """Raises unless they are a network's."""
  if isinstance(net, SelfEnsemble):
    net = net.net
  registry.check_network(net)
  if not hasattr(net, "scale"):
    raise TypeError(
      f"net must have a field `scale`, the size of its result over that of its"
      f" image, and {type(net).__name__} has none"
    )
  if not isinstance(net, nn.Module):
    return  # What a function takes may be any pytree.
  expected = dict(_expected(net))
  owner = f"{type(net).__name__}(scale={net.scale})"
  checks.check_params(params, expected.pop("params"), owner=owner)
  checks.check_params(collections, expected, owner=owner, name="collections")


def load(
  model: str | os.PathLike[str] = zoo.DEFAULT,
  *,
  scale: int | None = None,
  config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
  denoise: float | None = None,
  dtype: Any = "auto",
  fetch: bool = True,
  progress: Callable[[int, int | None], None] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Upscaler:
  """Loads a model by name, from a file, or from where it was trained.

  Args:
    model: A name, as `python -m esrgan_jax models` lists them; a file:
      `.safetensors`, `.pth` or ncnn's `.param` and `.bin`; a workdir of
      training, a phase's folder in it, or a checkpoint. See `weights.find`.
    scale: Upscaling factor, for the rare file that does not tell (x3, or plain
      x2).
    config: The network's architecture and fields, for another program's
      checkpoint that has none beside it, or the path of a JSON file with them;
      see `load_checkpoint`. What tells itself must agree with it.
    denoise: Of general-x4v3, how much noise is taken away, from 0 to 1: 1 is
      the model as it is, 0 its partner general-wdn-x4v3, which keeps noise, and
      between them is `denoise * model + (1 - denoise) * partner`, weight by
      weight. None means 1, the only choice for a model without a partner.
    dtype: Compute dtype: float32 or bfloat16, as a type or by name, or "auto":
      bfloat16 on GPU and TPU, float32 on CPU.
    fetch: Whether a named model that is not here may be downloaded.
    progress: Called with the bytes downloaded so far, and in all where known.
    devices: Devices to run on; None means all local ones.

  Returns:
    The model, its parameters on the devices.

  Raises:
    TypeError: If `model` is no name or path, or `config` none.
    ValueError: If there is no such name, or the file holds no such network or
      does not tell its scale, or `config` contradicts it, or the model has no
      `denoise`, or that is not between 0 and 1.
    FileNotFoundError: If the file is not there or cannot be fetched.

  >>> model = load("realesrgan-x4plus-anime")
  >>> model.scale, model.net.num_block
  (4, 6)
  """
  if denoise is not None:
    mixing.check_denoise(denoise)
    zoo.weak_denoise(model)  # Raises where there is none.
  if denoise not in (None, 1):
    pair = mixing.find_denoising_pair(
      model,
      scale=scale,
      config=config,
      fetch=fetch,
      progress=progress and (lambda _: contextlib.nullcontext(progress)),
    )
    return load_mixture(pair, denoise, dtype=dtype, devices=devices)
  platform = (devices or jax.local_devices())[0].platform
  compute = compilation.compute_dtype(dtype, platform)
  found = find.find_model(
    model, scale=scale, config=config, fetch=fetch, progress=progress
  )
  find.check_scale(found.name, found.weights.config, scale)
  return Upscaler(
    registry.make_generator(**found.weights.config, dtype=compute),
    found.weights.params,
    found.weights.collections,
    name=found.name,
    notes=found.weights.notes,
    devices=devices,
  )


def load_mixture(
  pair: mixing.Pair,
  alpha: float,
  *,
  dtype: Any = "auto",
  devices: Sequence[jax.Device] | None = None,
) -> Upscaler:
  """Returns the model that lies between two.

  Args:
    pair: The two, as of `mixing.find_pair`.
    alpha: Share of the second, whose name it gets; outside of [0, 1] it
      extrapolates.
    dtype: As for `load`.
    devices: Likewise.

  Raises:
    ValueError: If `alpha` is not finite.

  >>> name = "realesrgan-x4plus-anime"
  >>> load_mixture(mixing.find_pair(name, name), 0.5)
  Upscaler(realesrgan-x4plus-anime, x4)
  """
  platform = (devices or jax.local_devices())[0].platform
  compute = compilation.compute_dtype(dtype, platform)
  weights = pair.mix(alpha)
  return Upscaler(
    registry.make_generator(**weights.config, dtype=compute),
    weights.params,
    weights.collections,
    name=pair.last.name,
    notes=pair.notes,
    devices=devices,
  )
