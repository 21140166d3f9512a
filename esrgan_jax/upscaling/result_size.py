"""How large a result is to be."""

from __future__ import annotations

import dataclasses
import re

__all__ = ["ResultSize"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultSize:
  """The size of results, by one rule for images of all sizes.

  At most one rule may be given; `width` and `height` together are one, a frame
  that the result fits into. The sides of an image keep their proportion.

  Attributes:
    scale: Size of the result over that of its image.
    width: Pixels of the result.
    height: Likewise.
    long_side: Pixels of the longer side, whichever that is.
    short_side: Likewise, of the shorter.

  Raises:
    ValueError: If there is more than one rule, or a value is not positive.

  >>> ResultSize(width=300).of((20, 30, 3), model_scale=4)
  (200, 300)
  >>> ResultSize(width=300, height=100).of((20, 30, 3), model_scale=4)
  (100, 150)
  >>> ResultSize(long_side=99).of((20, 30), model_scale=4)
  (66, 99)
  >>> ResultSize().of((20, 30), model_scale=4)
  (80, 120)
  """

  scale: float | None = None
  width: int | None = None
  height: int | None = None
  long_side: int | None = None
  short_side: int | None = None

  def __post_init__(self):
    given = {k: v for k, v in vars(self).items() if v is not None}
    for name, value in given.items():
      if not value > 0:
        raise ValueError(f"{name} is {value}; it must be above 0")
    if len(given) > 1 and set(given) != {"width", "height"}:
      raise ValueError(
        f"{' and '.join(given)} are given; one rule decides on a result's size"
      )

  def of(self, shape: tuple[int, ...], *, model_scale: int) -> tuple[int, int]:
    """Returns height and width of a result.

    Args:
      shape: Of the image, height and width first.
      model_scale: The factor where no rule is given.
    """
    H, W = shape[:2]
    wanted = (
      (self.scale, 1),
      (self.width, W),
      (self.height, H),
      (self.long_side, max(H, W)),
      (self.short_side, min(H, W)),
    )
    factor = min(
      (value / side for value, side in wanted if value is not None),
      default=model_scale,
    )
    height, width = (max(1, round(side * factor)) for side in (H, W))
    return height, width

  def label(self, *, model_scale: int) -> str:
    """Returns the rule in a word, for names of files.

    Args:
      model_scale: The factor where no rule is given.
    """
    if self.width and self.height:
      return f"{self.width}x{self.height}"
    for name, mark in _MARKS.items():
      if value := getattr(self, name):
        return f"{mark}{value:g}"
    return f"x{model_scale}"

  @classmethod
  def of_label(cls, label: str) -> ResultSize | None:
    """Returns the rule of such a word; None if it is none.

    Args:
      label: What `label` returned, or another text.

    >>> ResultSize.of_label("x1.5").of((20, 30), model_scale=4)
    (30, 45)
    """
    if match := re.fullmatch(r"(\d{1,9})x(\d{1,9})", label):
      rule = {"width": int(match[1]), "height": int(match[2])}
    elif match := re.fullmatch(r"([a-z]+)(\d{1,9}(?:\.\d{1,9})?)", label):
      names = [name for name, mark in _MARKS.items() if mark == match[1]]
      rule = dict.fromkeys(names, float(match[2]))
    else:
      rule = {}
    return cls(**rule) if rule and min(rule.values()) > 0 else None


_MARKS = {
  "scale": "x",
  "width": "w",
  "height": "h",
  "long_side": "long",
  "short_side": "short",
}
