"""Has all processes of a run draw from the same images.

A draw names an image by its number, so that a number must mean the same image
everywhere. Each process lists the images that it sees and says what is wrong
with those that it has read; what is wrong anywhere is left out everywhere.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from esrgan_jax.data.cache import Found
from esrgan_jax.data.sources import DataError, Problem, Source, Subset

__all__ = ["Agreed", "Report", "agree_on_images", "agree_on_names"]

# Takes a text of this process, returns those of all, in the same order to all.
Gather = Callable[[str], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Report:
  """What the first pass over a source has found.

  Attributes:
    images: How many pairs are used.
    pixels: HR pixels of these, in all.
    problems: The images that are left out, and why; each once.

  >>> report = Report(2, 5_000_000, (Problem("a.png", "cut short"),))
  >>> print(report)
  2 images, 5.0 megapixels, 1 left out:
    a.png: cut short
  >>> report.summary
  '2 images, 5.0 megapixels, 1 left out'
  """

  images: int
  pixels: int
  problems: tuple[Problem, ...] = ()

  @property
  def summary(self) -> str:
    """All but names and reasons."""
    text = f"{self.images} images, {self.pixels / 1e6:.1f} megapixels"
    left_out = len(self.problems)
    return f"{text}, {left_out} left out" if left_out else text

  def __str__(self) -> str:
    if not self.problems:
      return self.summary
    shown = [f"  {problem}" for problem in self.problems[:20]]
    if len(self.problems) > 20:
      shown.append(f"  and {len(self.problems) - 20} more")
    return "\n".join([f"{self.summary}:", *shown])


class Agreed(NamedTuple):
  """What `agree_on_images` finds, the same in all processes.

  Attributes:
    usable: Numbers of the images that are used, in rising order.
    sizes: `(h, w)` of LR of each of them.
    report: The same in words.
  """

  usable: list[int]
  sizes: list[tuple[int, int]]
  report: Report


def agree_on_names(
  open_source: Callable[[], Source], gather: Gather
) -> tuple[Source, tuple[Problem, ...]]:
  """Opens a source, and keeps of it what all processes see.

  Args:
    open_source: Opens it.
    gather: Exchanges texts with the other processes.

  Returns:
    The source, its images the same in the same order in all processes, and
    what is left out: that some process does not see, or sees a problem with.

  Raises:
    DataError: If any process cannot open it, or they share no image.

  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> source, problems = agree_on_names(
  ...   lambda: SamplePhotos("held_out", scale=4), lambda text: [text]
  ... )
  >>> len(source), problems
  (3, ())
  """
  source, view = None, {}
  try:
    source = open_source()
  except DataError as error:
    view["error"] = str(error)
  else:
    names = json.dumps([source.names, source.problems])
    view["digest"] = hashlib.sha256(names.encode()).hexdigest()
  views = _exchange(view, gather)
  if len({view["digest"] for view in views}) == 1:
    return source, tuple(source.problems)

  # Sources that are named twice have each name twice.
  seen: collections.Counter = collections.Counter()
  keys = []
  for name in source.names:
    keys.append((name, seen[name]))
    seen[name] += 1
  views = _exchange({"keys": keys, "problems": source.problems}, gather)
  theirs = [[tuple(key) for key in view["keys"]] for view in views]
  common = set.intersection(*map(set, theirs))
  problems = dict(p for view in views for p in view["problems"])
  for number, missing in enumerate(
    set().union(*theirs) - set(t) for t in theirs
  ):
    for name, _ in sorted(missing):
      problems.setdefault(name, f"process {number} does not have it")
  if not common:
    raise DataError(
      f"{source.title}: the processes have no image in common; give all of them"
      " the same files"
    )
  kept = [i for i, key in enumerate(keys) if key in common]
  return Subset(source, kept), tuple(Problem(*p) for p in problems.items())


def agree_on_images(
  source: Source,
  find: Callable[[], Found],
  gather: Gather,
  *,
  smallest: int,
  need: str,
  listed: Sequence[Problem] = (),
) -> tuple[Found, Agreed]:
  """Reads images, and keeps what is in order in all processes.

  Args:
    source: From `agree_on_names`.
    find: Reads this process's share; together they read every image.
    gather: Exchanges texts with the other processes.
    smallest: LR pixels a side that an image must have at least.
    need: What needs that many, for the report, with `{}` for their number.
    listed: What is left out already.

  Returns:
    What this process has found, and what is used by all.

  Raises:
    DataError: If a process could not read its share at all.

  >>> from esrgan_jax.data import cache
  >>> from esrgan_jax.data.sources import SamplePhotos
  >>> photos = SamplePhotos("held_out", scale=4)
  >>> _, agreed = agree_on_images(
  ...   photos,
  ...   lambda: cache.look_at(photos, [0, 1, 2], threads=1),
  ...   lambda text: [text],
  ...   smallest=100,
  ...   need="a patch of {}",
  ... )
  >>> agreed.usable, agreed.report.problems[0].reason
  ([1, 2], 'HR is 300x448, smaller than a patch of 400x400')
  """
  found, view = None, {}
  try:
    found = find()
  except DataError as error:
    view["error"] = str(error)
  else:
    view["sizes"] = list(found.sizes.items())
    view["problems"] = list(found.problems.items())
  views = _exchange(view, gather)

  sizes: dict[int, tuple[int, int]] = {}
  reasons: dict[int, str] = {}
  for view in views:
    for index, reason in view["problems"]:
      reasons.setdefault(index, reason)
    for index, size in view["sizes"]:
      if sizes.setdefault(index, tuple(size)) != tuple(size):
        reasons.setdefault(index, "not the same picture in all processes")
  k = source.scale
  for index, (h, w) in sizes.items():
    if min(h, w) < smallest:
      needed = need.format(f"{k * smallest}x{k * smallest}")
      reason = f"HR is {k * h}x{k * w}, smaller than {needed}"
      if source.margin:
        reason += f", without the margin of {source.margin} LR pixels"
      reasons.setdefault(index, reason)
  usable = sorted(sizes.keys() - reasons.keys())
  problems = [Problem(source.names[i], reasons[i]) for i in sorted(reasons)]
  kept = [sizes[i] for i in usable]
  pixels = k * k * sum(h * w for h, w in kept)
  report = Report(len(usable), pixels, (*listed, *problems))
  return found, Agreed(usable, kept, report)


def _exchange(view, gather):
  """Returns all processes' views; raises what is wrong with any."""
  views = [json.loads(text) for text in gather(json.dumps(view))]
  failed = [n for n, view in enumerate(views) if "error" in view]
  if failed:
    error = view.get("error") or (
      f"process {failed[0]}: {views[failed[0]]['error']}"
    )
    raise DataError(error)
  return views
