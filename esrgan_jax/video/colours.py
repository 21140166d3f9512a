"""How a clip's samples are meant: range, primaries, transfer and matrix.

Numbers are those of ITU-T H.273, as FFmpeg has them; 2 stands for what nothing
tells, 0 for that of the range.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  import av

__all__ = ["Colours", "Light", "from_rgb", "of_frame", "to_rgb"]

_UNKNOWN = 2
_RGB, _BT709, _BT470BG, _SMPTE170M = 0, 1, 5, 6
_FULL = 2  # Of the range; 1 is that of television, 0 unknown.
# Matrix -> swscale's number. What is not there is computed as BT.601.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT601 = 5
# Frames that are larger in one of these are taken for BT.709 where they don't
# tell, by players and here.
_HD_WIDTH, _HD_HEIGHT = 1280, 576
# Lanczos, with chroma in full and accurate rounding: FFmpeg's usual, faster way
# is darker by a level, and repeats chroma.
_HOW = 0x200 | 0x2000 | 0x4000 | 0x40000


@dataclasses.dataclass(frozen=True)
class Colours:
  """What a clip says of its colours.

  Attributes:
    range: 2 is full, 1 that of television, 0 untold (that of television).
    primaries: As H.273's `ColourPrimaries`.
    transfer: As its `TransferCharacteristics`.
    matrix: As its `MatrixCoefficients`.
  """

  range: int = 0
  primaries: int = _UNKNOWN
  transfer: int = _UNKNOWN
  matrix: int = _UNKNOWN

  def of_result(
    self, size: tuple[int, int], result: tuple[int, int]
  ) -> Colours:
    """Returns what a result has to say, for its samples to be meant likewise.

    The same, mostly. A small clip that doesn't tell its matrix is taken for
    BT.601 by players, and a large one for BT.709: where it grows from one to
    the other, it has to tell.

    Args:
      size: Width and height of the clip.
      result: Likewise of the result.

    >>> Colours().of_result((640, 272), (2560, 1088)).matrix
    6
    >>> Colours(matrix=9).of_result((640, 272), (2560, 1088)).matrix
    9
    """
    if self.matrix == _RGB:
      # The result has luma and chroma.
      return dataclasses.replace(self, range=1, matrix=_BT709)
    if self.matrix == _UNKNOWN and _is_large(size) != _is_large(result):
      matrix = _BT709 if _is_large(size) else _SMPTE170M
      return dataclasses.replace(self, matrix=matrix)
    return self


def _is_large(size: tuple[int, int]) -> bool:
  return size[0] >= _HD_WIDTH or size[1] > _HD_HEIGHT


def _sws_matrix(colours: Colours, size: tuple[int, int]) -> int:
  if colours.matrix in (_UNKNOWN, _RGB):
    return _MATRICES[_BT709] if _is_large(size) else _BT601
  return _MATRICES.get(colours.matrix, _BT601)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Light:
  """What an HDR clip says of the display that it was made on, and of its light.

  Attributes:
    display: x and y of green, blue, red and white, then the most and the least
      candelas a square metre; empty if it doesn't tell.
    content: The most of any pixel, and of any frame's mean; empty likewise.
  """

  display: tuple[Fraction, ...] = ()
  content: tuple[int, ...] = ()

  def arguments(self, *, units: bool) -> dict[str, str]:
    """Returns this as encoders read it.

    Args:
      units: Whether in whole units, as x265 does; else in decimals.
    """
    found = {}
    if self.display:
      scales = [50_000] * 8 + [10_000] * 2
      numbers = [
        str(round(value * scale)) if units else f"{float(value):.5f}"
        for value, scale in zip(self.display, scales, strict=True)
      ]
      pairs = [",".join(numbers[n : n + 2]) for n in range(0, 10, 2)]
      names = ("G", "B", "R", "WP", "L")
      found["display"] = "".join(
        f"{name}({pair})" for name, pair in zip(names, pairs, strict=True)
      )
    if self.content:
      found["content"] = ",".join(map(str, self.content))
    return found


def light_of_frame(frame: av.VideoFrame) -> Light:
  """Returns what a frame says of light."""
  display: tuple[Fraction, ...] = ()
  content: tuple[int, ...] = ()
  with contextlib.suppress(KeyError, struct.error, ZeroDivisionError):
    data = bytes(frame.side_data["MASTERING_DISPLAY_METADATA"])
    *numbers, has_colours, has_light = struct.unpack_from("22i", data)
    red, green, blue, white, (least, most) = zip(
      *[iter(map(Fraction, numbers[::2], numbers[1::2]))] * 2, strict=True
    )
    if has_colours and has_light:
      display = (*green, *blue, *red, *white, most, least)
  with contextlib.suppress(KeyError, struct.error):
    content = struct.unpack_from(
      "2I", bytes(frame.side_data["CONTENT_LIGHT_LEVEL"])
    )
  return Light(display=display, content=content)


def of_frame(frame: av.VideoFrame, context: object) -> Colours:
  """Returns a frame's colours; what it doesn't tell is its stream's."""

  def told(name: str, unknown: int) -> int:
    value = int(getattr(frame, name))
    return int(getattr(context, name)) if value == unknown else value

  full = frame.format.name.startswith("yuvj")
  return Colours(
    range=_FULL if full else told("color_range", 0),
    primaries=told("color_primaries", _UNKNOWN),
    transfer=told("color_trc", _UNKNOWN),
    matrix=_RGB if frame.format.is_rgb else told("colorspace", _UNKNOWN),
  )


def to_rgb(frame: av.VideoFrame, colours: Colours, *, deep: bool) -> np.ndarray:
  """Returns a frame's pixels, `[H, W, 3]` uint8, or uint16 if `deep`."""
  size = frame.width, frame.height
  return frame.to_ndarray(
    format="rgb48le" if deep else "rgb24",
    src_colorspace=None if frame.format.is_rgb else _sws_matrix(colours, size),
    src_color_range=colours.range or None,
    interpolation=_HOW,
    threads=1,
  )


def from_rgb(
  pixels: np.ndarray, format_: str, colours: Colours
) -> av.VideoFrame:
  """Returns pixels, `[H, W, 3]` uint8 or uint16, as a frame of a format."""
  import av

  name = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=name)
  if format_ == name:
    return frame
  size = frame.width, frame.height
  return frame.reformat(
    format=format_,
    dst_colorspace=(
      None if colours.matrix == _RGB else _sws_matrix(colours, size)
    ),
    dst_color_range=colours.range or None,
    interpolation=_HOW,
    threads=1,
  )
