"""Two models of one structure, and what lies between: network interpolation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from esrgan_jax.interpolate import interpolate_params
from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.weights import descent, find, partial, zoo
from esrgan_jax.weights.dialects import DIALECTS
from esrgan_jax.weights.files import Weights

__all__ = ["DEFAULT_ALPHA", "Pair", "find_pair", "read_alpha"]

# Share of the second model, as in the authors' example (net_interp.py).
DEFAULT_ALPHA = 0.8


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two models that can be mixed.

  Attributes:
    first: At alpha 0, the faithful one.
    last: At alpha 1, the one that is full of detail.
    notes: Sentences on what is not as one would expect.
  """

  first: find.FoundModel
  last: find.FoundModel
  notes: tuple[str, ...] = ()

  @property
  def config(self) -> dict[str, Any]:
    """Architecture and fields of both."""
    return self.first.weights.config

  @property
  def name(self) -> str:
    """What to call what lies between."""
    return f"{self.first.name}+{self.last.name}"

  @property
  def variables(self) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and collections of each."""
    first, last = (
      {"params": each.weights.params, **each.weights.collections}
      for each in (self.first, self.last)
    )
    return first, last

  def mix(self, alpha: float) -> Weights:
    """Returns `(1 - alpha) * first + alpha * last`, on the host.

    Args:
      alpha: Share of the last; outside of [0, 1] it extrapolates.

    Raises:
      ValueError: If it is not finite.
    """
    _check_alpha(alpha)
    collections = jax.tree.map(
      np.asarray, interpolate_params(*self.variables, alpha=alpha)
    )
    params = collections.pop("params")
    return Weights(
      self.config, params, self._metadata(alpha), collections=collections
    )

  def said(self, alpha: float) -> str:
    """Returns the formula, in the models' names."""
    return (
      f"{1 - alpha:.12g} * {self.first.name} + {alpha!r} * {self.last.name}"
    )

  def _metadata(self, alpha: float) -> dict[str, str]:
    """Where a mixture comes from; what both models say is kept."""
    theirs = self.last.weights.metadata
    shared = {
      key: value
      for key, value in self.first.weights.metadata.items()
      if theirs.get(key) == value
    }
    names = {
      "interpolated_a": printable(self.first.name),
      "interpolated_b": printable(self.last.name),
    }
    return shared | names | {"alpha": repr(alpha)}


def read_alpha(text: str) -> float:
  """Reads a share from a command's argument; a ValueError if it is none.

  >>> read_alpha("0.3"), read_alpha("1e-3")
  (0.3, 0.001)
  >>> read_alpha("much")
  Traceback (most recent call last):
  ...
  ValueError: alpha much is not a finite number
  """
  with contextlib.suppress(ValueError):
    alpha = float(text)
    _check_alpha(alpha)
    return alpha
  raise ValueError(f"alpha {text} is not a finite number")


def _check_alpha(alpha: float) -> None:
  if not math.isfinite(alpha):
    raise ValueError(f"alpha {alpha} is not a finite number")


def check_denoise(strength: float) -> None:
  """Raises a ValueError unless a strength of denoising is between 0 and 1.

  >>> check_denoise(2.0)
  Traceback (most recent call last):
  ...
  ValueError: denoise is 2.0; give a strength between 0, which keeps noise, ...
  """
  if not 0 <= strength <= 1:
    raise ValueError(
      f"denoise is {strength}; give a strength between 0, which keeps noise,"
      " and 1"
    )


def find_denoising_pair(model: str, **options: Any) -> Pair:
  """Reads the two models that denoising of some strength lies between.

  At strength s it is `s * model + (1 - s) * its partner`, weight by weight:
  `Pair.mix(s)`. At 1 that is the model, which takes noise away, and at 0 the
  partner, which keeps it.

  Args:
    model: The name of one that has such a partner: general-x4v3, or
      realesr-general-x4v3 as its file is called.
    **options: As for `find_pair`.

  Raises:
    ValueError: If it has none. And as `find_pair`.

  Source: Real-ESRGAN `inference_realesrgan.py`, `--denoise_strength`, whose
  numbers these are.

  >>> find_denoising_pair("realesrgan-x4plus")
  Traceback (most recent call last):
  ...
  esrgan_jax.errors.UsageError: realesrgan-x4plus has no strength of denoisin...
  """
  return find_pair(zoo.weak_denoise(model), model, **options)


def find_pair(
  first: str | os.PathLike[str],
  last: str | os.PathLike[str],
  *,
  scale: int | None = None,
  config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
  fetch: bool = True,
  progress: Callable[[str], Any] | None = None,
) -> Pair:
  """Reads two models, and compares them.

  Args:
    first: The model at alpha 0, as for `find.find_model`; of a workdir, that
      of its first phase.
    last: That at alpha 1; of a workdir, that of its last phase.
    scale: As for `find.find_model`, as for the others.
    config: Likewise.
    fetch: Likewise.
    progress: Returns a context for each, whose value is called with the bytes
      downloaded so far, and in all where known.

  Raises:
    ValueError: If one is no model, or they are different networks; says in
      what. And as `find.find_model`, as are the other errors.

  >>> name = "realesrgan-x4plus-anime"
  >>> pair = find_pair(name, name)
  >>> pair.said(0.8)[:29]
  '0.2 * realesrgan-x4plus-anime'
  >>> pair.mix(0.8).metadata["alpha"]
  '0.8'
  >>> find_pair(name, "realesrgan-x4plus")
  Traceback (most recent call last):
  ...
  ValueError: ...num_block is 6 in realesrgan-x4plus-anime and 23 in realesr...
  """
  models = []
  for model, phase in ((first, "first"), (last, "last")):
    with _telling(progress, model) as report:
      found = find.find_model(
        model,
        phase=phase,
        scale=scale,
        config=config,
        fetch=fetch,
        progress=report,
      )
    find.check_scale(found.name, found.weights.config, scale)
    models.append(found)
  a, b = models
  _check_alike(a, b)
  notes = [f"{m.name}: {note}" for m in models for note in m.weights.notes]
  if relation := descent.relation(
    a.weights.metadata, b.weights.metadata, descent.models_beside(b.path)
  ):
    notes.append(
      f"{b.name} {relation}, {a.name}: what lies between may be neither"
    )
  return Pair(a, b, tuple(dict.fromkeys(notes)))


def _check_alike(a: find.FoundModel, b: find.FoundModel) -> None:
  """Raises if two networks differ, in the words of their configuration."""
  ours, theirs = map(_fields, (a, b))
  _, report = partial.fit(_everything(b), _everything(a))
  keys = {**ours, **theirs}
  dialect = DIALECTS.get(ours["architecture"])
  if ours["architecture"] != theirs["architecture"]:
    keys = ("architecture", "scale")
  elif dialect and not report.left:
    # What else arrays do not tell is how they are computed with.
    keys = ("scale", *dialect.UNTOLD)
  differences = [
    f"{key} is {ours.get(key)} in {a.name} and {theirs.get(key)} in {b.name}"
    for key in keys
    # None is the network's own choice.
    if None not in (ours.get(key), theirs.get(key)) and ours[key] != theirs[key]
  ]
  if report.left and not differences:
    # Fields that only one of them tells.
    differences = [f"arrays of {b.name} do not fit: {report.left[0]}"]
  if differences:
    raise ValueError(
      f"{a.path} and {b.path} cannot be mixed, they are different networks: "
      + "; ".join(differences)
    )


def _fields(model: find.FoundModel) -> dict[str, Any]:
  """Its configuration, and what a checkpoint's does not tell: the defaults."""
  config = model.weights.config
  found = registry.find_generator(config["architecture"])
  return {**found.fields, **config}


def _everything(model: find.FoundModel) -> dict[str, Any]:
  return {**model.weights.params, **model.weights.collections}


def _telling(progress, model):
  return progress(os.fspath(model)) if progress else contextlib.nullcontext()
