"""How large a result is to be."""

from __future__ import annotations

import dataclasses

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
