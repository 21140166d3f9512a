"""What an evaluation has found: scores, means, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from esrgan_jax import storage
from esrgan_jax.evaluation import measures

__all__ = [
  "Evaluation",
  "Patches",
  "Score",
  "read_evaluations",
  "write_evaluations",
]


class Score(NamedTuple):
  """What was measured on an image, or a patch: values by names of measures."""

  name: str
  values: dict[str, float]


class Patches(NamedTuple):
  """Squares that images are cut into: HR pixels a side, and between starts."""

  size: int
  step: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A model's scores on a set of images.

  Attributes:
    model: What it was, for tables.
    scale: HR pixels per LR pixel.
    crop_border: HR pixels that were cut off each side.
    scores: One an image, or a patch.
    patches: What was measured instead of whole images, if that was done.

  >>> scores = (Score("a", {"psnr_y": 30.0}), Score("b", {"psnr_y": 31.0}))
  >>> Evaluation("net", 4, 4, scores).means
  {'psnr_y': 30.5}
  """

  model: str
  scale: int
  crop_border: int
  scores: tuple[Score, ...]
  patches: Patches | None = None

  @property
  def means(self) -> dict[str, float]:
    """Mean over images, or patches, of each value."""
    names = self.scores[0].values if self.scores else ()
    return {
      name: statistics.fmean(score.values[name] for score in self.scores)
      for name in names
    }

  @property
  def protocol(self) -> str:
    """How it was measured, in a sentence."""
    cut, over = "", "images"
    if self.patches:
      size, step = self.patches
      cut = f"{size}x{size} patches every {step} pixels, each upscaled alone; "
      over = "patches"
    more = (measures.looks_of(name).protocol for name in self.means)
    said = (
      f"x{self.scale}; {cut}results rounded to 8 bits; {self.crop_border}"
      " pixels cut off each side; Y: BT.601 luma, 16 to 235 of 255; SSIM: 11x11"
      f" Gaussian window; means over {over}"
    )
    return "; ".join([said, *filter(None, more)])

  def to_json(self) -> dict[str, Any]:
    """Returns plain values for a JSON file; None for what is not finite."""
    return {
      "model": self.model,
      "scale": self.scale,
      "crop_border": self.crop_border,
      **({"patches": self.patches._asdict()} if self.patches else {}),
      "protocol": self.protocol,
      "means": _plain(self.means),
      "images": [{"name": s.name, **_plain(s.values)} for s in self.scores],
    }


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
  return {k: v if math.isfinite(v) else None for k, v in values.items()}


def write_evaluations(
  path: str | os.PathLike[str],
  evaluations: Sequence[Evaluation],
  *,
  overwrite: bool = True,
) -> None:
  """Writes evaluations to a JSON file, in whole or not at all.

  Args:
    path: The file. `gs://` works as well.
    evaluations: Several models on the same images, mostly.
    overwrite: Whether to replace a file of that name.

  Raises:
    OSError: As `storage.write_whole`.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = os.path.join(folder, "evaluation.json")
  ...   scores = (Score("a", {"psnr_y": math.inf}),)
  ...   write_evaluations(path, [Evaluation("perfect", 4, 4, scores)])
  ...   read_evaluations(path)[0]["means"]
  {'psnr_y': None}
  """
  path = epath.Path(path)
  content = {"evaluations": [each.to_json() for each in evaluations]}
  text = json.dumps(content, indent=1, allow_nan=False) + "\n"
  storage.write_whole(path, text, overwrite=overwrite)


def read_evaluations(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads what `write_evaluations` wrote, as `Evaluation.to_json` gives it.

  Args:
    path: The file.

  Returns:
    A dict an evaluation.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is no such file; names it.
  """
  try:
    return list(json.loads(epath.Path(path).read_text())["evaluations"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} holds no evaluations: {error!r}") from error
