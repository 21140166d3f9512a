"""What a dialect is: how files name the arrays of one architecture.

A dialect is a module of this folder with the members of `Dialect`, and a line
in `dialects.DIALECTS`. Names and shapes are all that it knows: files are read
by `formats`, and what surrounds a network in them is put aside by `selection`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from esrgan_jax.text import printable

__all__ = [
  "Called",
  "Dialect",
  "NamedWeights",
  "NcnnLayer",
  "Params",
  "StateDict",
  "UnsupportedWeightsError",
  "UntoldScaleError",
  "as_float32",
  "compare",
]

StateDict = dict[str, np.ndarray]
# Our name of an array to the file's, for errors.
Called = Callable[[str], str]
Params = dict[str, Any]


class UnsupportedWeightsError(ValueError):
  """The arrays are not, or not completely, those of one supported network."""


class UntoldScaleError(ValueError):
  """The arrays are those of networks of several scales: it must be given."""


@dataclasses.dataclass(frozen=True)
class NamedWeights:
  """A network found among named arrays.

  Attributes:
    config: The network's fields, for `registry.make_generator(**config)`.
    params: Its parameter tree, float32 NumPy arrays.
    notes: Sentences on choices made for the user, perhaps none.
    collections: Its variables besides `params`, by collection.
  """

  config: dict[str, Any]
  params: Params
  notes: tuple[str, ...] = ()
  collections: dict[str, Any] = dataclasses.field(default_factory=dict)


class NcnnLayer(Protocol):
  """A layer as `formats.ncnn_file` reads it."""

  kind: str
  factor: float
  mode: int
  weight: np.ndarray | None
  bias: np.ndarray | None
  slope: float | np.ndarray | None


class Dialect(Protocol):
  """The names of one architecture's arrays in files; a module has them all.

  Attributes:
    TELLTALE: Matches in full one name that each network of this architecture
      has once, and nothing else has; the group `prefix` is what stands before.
    NAMES: Matches in full each name that such a network may have, without the
      prefix, where others have the telltale one too; None where none has.
    LEAF: The path of one array that each tree of this architecture has.
    SUPPORTED: Which networks these are, in words.
    UNTOLD: Fields besides `scale` that arrays do not tell, or not surely:
      further arguments of `from_state_dict`.
    COLLECTIONS: What a network of this architecture may have besides
      parameters.
  """

  TELLTALE: re.Pattern[str]
  NAMES: re.Pattern[str] | None
  LEAF: tuple[str, ...]
  SUPPORTED: str
  UNTOLD: tuple[str, ...]
  COLLECTIONS: tuple[str, ...]

  def from_state_dict(
    self, state: Mapping[str, np.ndarray], *, scale: int | None = None
  ) -> NamedWeights:
    """Returns the network that arrays make, all of them and no other.

    Args:
      state: Name to array, without a prefix.
      scale: Upscaling factor; must agree with what the arrays tell.

    Raises:
      UnsupportedWeightsError: If arrays are missing, left over, of the wrong
        shape or not finite.
      UntoldScaleError: If the arrays do not tell the scale, and it is None.
      ValueError: If an argument contradicts the arrays.
    """

  def from_ncnn(
    self, layers: Sequence[NcnnLayer]
  ) -> tuple[StateDict, dict[str, Any]]:
    """Names the arrays of ncnn's layers, which are known by their order.

    Args:
      layers: The network's convolutions and activations, and what enlarges.

    Returns:
      A state dict for `from_state_dict`, and arguments that go with it.

    Raises:
      UnsupportedWeightsError: If they are not this architecture's.
    """

  def to_state_dict(
    self,
    params: Mapping[str, Any],
    collections: Mapping[str, Any],
    config: Mapping[str, Any],
  ) -> StateDict:
    """Returns the arrays of a network under the names most programs know.

    Args:
      params: Its parameters.
      collections: Its variables besides.
      config: Its fields, for one whose names depend on what its arrays don't
        tell.

    Raises:
      UnsupportedWeightsError: If the tree is not this architecture's.
    """


def compare(
  flat: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
  network: str,
  called: Called = str,
) -> None:
  """Compares names and shapes with those of a network.

  Args:
    flat: What there is.
    expected: What there should be.
    network: The network's name.
    called: What the file calls an array.

  Raises:
    UnsupportedWeightsError: If they differ; says in what.

  >>> compare({"a": np.ones(2)}, {"a": (3,)}, "Net")
  Traceback (most recent call last):
  ...
  esrgan_jax.weights.dialects.protocol.UnsupportedWeightsError: almost Net...
  """
  missing = [called(k) for k in expected if k not in flat]
  extra = [called(k) for k in flat if k not in expected]
  wrong = [
    f"{called(k)} is {flat[k].shape}, not {s}"
    for k, s in expected.items()
    if k in flat and flat[k].shape != s
  ]
  problems = [
    f"{len(found)} {what} ({'; '.join(map(printable, found[:3]))}"
    f"{'; ...' if len(found) > 3 else ''})"
    for what, found in (
      ("missing", missing),
      ("left over", extra),
      ("of the wrong shape", wrong),
    )
    if found
  ]
  if problems:
    raise UnsupportedWeightsError(
      f"almost {network}, but of its {len(expected)} arrays: "
      + ", ".join(problems)
    )


def as_float32(name: str, value: np.ndarray, target: np.ndarray) -> None:
  """Copies weights into a float32 array of their shape.

  Args:
    name: What to call them.
    value: The weights: floats of any precision.
    target: Where they go.

  Raises:
    UnsupportedWeightsError: If they are no floats, or not finite in float32.

  >>> as_float32("bias", np.ones(2, np.float16), a := np.zeros(2, np.float32))
  >>> a
  array([1., 1.], dtype=float32)
  """
  # ml_dtypes' bfloat16 has kind V and casts exactly.
  if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
    raise UnsupportedWeightsError(
      f"{printable(name)} is {value.dtype}: weights are floats (quantised files"
      " are not supported)"
    )
  with np.errstate(over="ignore", invalid="ignore"):
    target[...] = value
  if not (finite := np.isfinite(target)).all():
    raise UnsupportedWeightsError(
      f"{printable(name)} has {finite.size - finite.sum()} values that are NaN"
      " or infinite: the file is damaged or its training diverged"
    )
