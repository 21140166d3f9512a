"""Takes over what fits of another network: a x2 one's blocks for a x4 one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from esrgan_jax.text import printable

__all__ = ["Report", "fit"]

_SHOWN = 4  # Arrays in a line of text.


class Report(NamedTuple):
  """What was taken over and what was not.

  Attributes:
    taken: Paths of what was, such as `body/rdb1/conv1/kernel`.
    left: Of what was not, on either side, and why.
  """

  taken: list[str]
  left: list[str]

  def __str__(self) -> str:
    text = f"{len(self.taken)} arrays are taken over"
    if not self.left:
      return text
    more = f"; and {len(self.left) - _SHOWN} more" * (len(self.left) > _SHOWN)
    return f"{text}, not {'; '.join(self.left[:_SHOWN])}{more}"


def fit(
  found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[dict[str, Any], Report]:
  """Copies parameters from one tree into another, by path and shape.

  Args:
    found: Parameters of the network to begin from.
    wanted: Those of the network that is to be trained, as they would be without
      it; abstract ones (`jax.eval_shape`) do where all fits, and to ask.

  Returns:
    A tree like `wanted`, with NumPy arrays of its types where something fits;
    and what was taken. Nothing may have been.

  >>> x2 = {"up": {"bias": np.ones(3)}, "first": {"bias": np.ones(12)}}
  >>> x4 = {"up": {"bias": np.zeros(3)}, "first": {"bias": np.zeros(3)}}
  >>> params, report = fit(x2, x4)
  >>> params["up"]["bias"], params["first"]["bias"]
  (array([1., 1., 1.]), array([0., 0., 0.]))
  >>> print(report)
  1 arrays are taken over, not first/bias (12 there, 3 here)
  """
  theirs, params = dict(_leaves(found)), {}
  report = Report([], [])
  for path, leaf in _leaves(wanted):
    there, name = theirs.pop(path, None), "/".join(path)
    if there is not None and there.shape == leaf.shape:
      report.taken.append(name)
      leaf = np.asarray(there, leaf.dtype)
    else:
      shape = "absent" if there is None else _shape(there)
      report.left.append(
        f"{printable(name)} ({shape} there, {_shape(leaf)} here)"
      )
    level = params
    for key in path[:-1]:
      level = level.setdefault(key, {})
    level[path[-1]] = leaf
  report.left.extend(
    f"{printable('/'.join(path))} ({_shape(leaf)} there, absent here)"
    for path, leaf in theirs.items()
  )
  return params, report


def _leaves(
  tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, (*path, str(key)))
    else:
      yield (*path, str(key)), value


def _shape(leaf: Any) -> str:
  return "x".join(map(str, leaf.shape)) or "a scalar"
