"""XMP packets, of which only what does not hold for the result is changed.

A packet is XML of a stranger. Expat reads it, without a document type, so that
there are no entities; what is to change is cut out of the bytes and the rest
stays as it was, letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple
from xml.parsers import expat

from esrgan_jax.images.limits import MAX_METADATA

# By custom, for packets that don't declare them.
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_EXIF = "http://ns.adobe.com/exif/1.0/"
_PANO = "http://ns.google.com/photos/1.0/panorama/"
_CAMERA = "http://ns.google.com/photos/1.0/camera/"
_CONTAINER = "http://ns.google.com/photos/1.0/container/"
_ITEM = "http://ns.google.com/photos/1.0/container/item/"
_GAIN_MAP = "http://ns.adobe.com/hdr-gain-map/1.0/"
_APPLE_GAIN_MAP = "http://ns.apple.com/HDRGainMap/1.0/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_NOTE = "http://ns.adobe.com/xmp/note/"
_CROP = "http://ns.adobe.com/camera-raw-settings/1.0/"
_SIZE = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
_REGIONS = "http://www.metadataworkinggroup.com/schemas/regions/"
_SPACES: Mapping[str, str] = {
  "tiff": _TIFF,
  "exif": _EXIF,
  "GPano": _PANO,
  "GCamera": _CAMERA,
  "Container": _CONTAINER,
  "Item": _ITEM,
  "hdrgm": _GAIN_MAP,
  "HDRGainMap": _APPLE_GAIN_MAP,
  "xmp": _XMP,
  "xmpNote": _NOTE,
  "crs": _CROP,
  "stDim": _SIZE,
  "mwg-rs": _REGIONS,
}
# Sound packets have some thousand tags, and nest some ten deep.
_MOST_TAGS = 2**17
_MOST_ATTRIBUTES = 2**17
_MOST_SPACES = 2**10
_DEEPEST = 2**8
_ATTRIBUTE = re.compile(rb"\s+([^\s=>]+)\s*=\s*(\"[^\"]*\"|'[^']*')")
_NUMBER = re.compile(r"\s*(\d{1,9})(?:\.\d{0,9})?\s*")

# What says how large the picture is, and what is counted in its pixels: by
# axis, 0 across and 1 down.
_SIDES = {
  (_TIFF, "ImageWidth"): 0,
  (_TIFF, "ImageLength"): 1,
  (_TIFF, "ImageHeight"): 1,
  (_EXIF, "PixelXDimension"): 0,
  (_EXIF, "PixelYDimension"): 1,
}
_LENGTHS = {
  (_PANO, f"{which}{what}Pixels"): axis
  for which, what, axis in (
    ("FullPano", "Width", 0),
    ("FullPano", "Height", 1),
    ("CroppedAreaImage", "Width", 0),
    ("CroppedAreaImage", "Height", 1),
    ("CroppedArea", "Left", 0),
    ("CroppedArea", "Top", 1),
  )
}
_LENGTHS |= {
  (_PANO, f"LargestValidInteriorRect{side}"): axis
  for side, axis in (("Left", 0), ("Width", 0), ("Top", 1), ("Height", 1))
}
# In pixels where their neighbours say so.
_DIMENSIONS = {(_SIZE, "w"): 0, (_SIZE, "h"): 1}
_CROPS = {(_CROP, "CropWidth"): 0, (_CROP, "CropHeight"): 1}
# Claims of what lay beside the picture, or behind it.
_GONE: Mapping[str, str] = {
  _CONTAINER: "container",
  _ITEM: "container",
  _GAIN_MAP: "gain map",
  _APPLE_GAIN_MAP: "gain map",
}
_MOTION = re.compile(r"(MotionPhoto|MicroVideo|OLivePhoto|VideoLength$).*")
_CAMERAS = re.compile(
  r"http://ns\.(google|oppo|oplus|xiaomi)\.com/photos/1\.0/.*"
)
_NOTES = {
  "gain map": "its gain map for HDR screens is left out",
  "motion": "its video, of a motion photo, is left out",
  "container": "further pictures or videos in it are left out",
  "extended": "its extended XMP, a depth map or the like, is left out",
}


class Fitted(NamedTuple):
  """A packet for a picture, None if there is none, and what it lost."""

  packet: bytes | None
  notes: tuple[str, ...]


class _Tag(NamedTuple):
  """An element that is open.

  Attributes:
    name: Namespace and name.
    begin: Where its tag begins, in bytes.
    inside: Where its content begins.
    closed: Whether it has none, and ends there.
    edit: What to do with its content, if anything.
    spaces: Prefix -> namespace.
  """

  name: tuple[str, str]
  begin: int
  inside: int
  closed: bool
  edit: Callable[[str], str | None] | None
  spaces: Mapping[str, str]


def fit(
  packet: bytes | None, size: tuple[int, int], new_size: tuple[int, int]
) -> Fitted:
  """Fits a packet to an upright picture of another size.

  Sizes become those of the picture, and lengths in pixels are scaled; what is
  a part of a whole, such as regions, holds as it is. Orientation is reset.
  Claims of a gain map, a motion photo, or further pictures are removed, and
  thumbnails, which show the old picture.

  Args:
    packet: Of a stranger.
    size: Width and height of the picture that it was written for, upright.
    new_size: Those of the picture that it is for.

  >>> fit(b'<a tiff:ImageWidth="9"/>', (9, 7), (18, 14)).packet
  b'<a tiff:ImageWidth="18"/>'
  """
  if not packet:
    return Fitted(None, ())
  if len(packet) > MAX_METADATA:
    return Fitted(
      None,
      (
        f"its XMP of {len(packet)} bytes is left out, more than {MAX_METADATA}",
      ),
    )
  try:
    text = _as_utf8(packet)
    editor = _Editor(text, size, new_size)
    return Fitted(editor.result(), editor.notes())
  except (expat.ExpatError, ValueError):
    return Fitted(None, ("its XMP is damaged, and left out",))


def _as_utf8(packet: bytes) -> bytes:
  """Returns a packet in UTF-8, without what fills it up."""
  for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
    mark = "\ufeff".encode(encoding)
    if packet.startswith((mark, "<".encode(encoding))):
      text = packet.decode(encoding).removeprefix("\ufeff")
      packet = text.encode()
      break
  return packet.strip(b"\0 \t\r\n").removeprefix(b"\xef\xbb\xbf")


class _Editor:
  """Goes through a packet once and notes what to replace."""

  def __init__(
    self, text: bytes, size: tuple[int, int], new_size: tuple[int, int]
  ):
    self._text, self._size, self._new_size = text, size, new_size
    self._changes: list[tuple[int, int, bytes]] = []
    self._open: list[_Tag] = []
    self._content: list[str] = []
    self._removing = 0  # How many open elements deep.
    self._tags = self._attributes = self._spaces = 0
    self._lost: dict[str, None] = {}
    parser = expat.ParserCreate("UTF-8")
    parser.ordered_attributes = True
    parser.buffer_text = False
    parser.StartElementHandler = self._start
    parser.EndElementHandler = self._end
    parser.CharacterDataHandler = self._characters
    parser.StartDoctypeDeclHandler = _refuse
    self._parser = parser
    parser.Parse(text, True)

  def result(self) -> bytes:
    """Returns the packet with all changes."""
    pieces, at = [], 0
    for begin, end, new in self._changes:
      pieces += [self._text[at:begin], new]
      at = end
    return b"".join([*pieces, self._text[at:]])

  def notes(self) -> tuple[str, ...]:
    """Returns what was removed, in sentences."""
    lost = dict(self._lost)
    lost.pop("thumbnail", None)  # As that of EXIF, it is a copy.
    if "gain map" in lost or "motion" in lost:
      lost.pop("container", None)  # It lists them.
    return tuple(_NOTES[name] for name in lost)

  def _start(self, name: str, attributes: list[str]) -> None:
    self._tags += 1
    self._attributes += len(attributes) // 2
    if self._tags > _MOST_TAGS or self._attributes > _MOST_ATTRIBUTES:
      raise ValueError("more tags than can be")
    begin = self._parser.CurrentByteIndex
    if self._removing:
      self._removing += 1
      return
    spaces = self._open[-1].spaces if self._open else _SPACES
    names = attributes[::2]
    declared = {
      key.removeprefix("xmlns:"): value
      for key, value in zip(names, attributes[1::2], strict=True)
      if key.startswith("xmlns:")
    }
    self._spaces += len(declared)
    if self._spaces > _MOST_SPACES or len(self._open) > _DEEPEST:
      raise ValueError("more namespaces than can be")
    if declared:
      spaces = {**spaces, **declared}
    full = _full(name, spaces)
    at = begin + 1 + len(name.encode())
    matches = []
    while (match := _ATTRIBUTE.match(self._text, at)) is not None:
      at = match.end()
      matches.append(match)
    inside = self._text.index(b">", at) + 1
    closed = self._text[inside - 2 : inside] == b"/>"
    tag = _Tag(full, begin, inside, closed, None, spaces)
    self._open.append(tag)
    if lost := _what_is_gone(full):
      self._lost[lost] = None
      self._removing = 1
      return
    values = {
      _full(key, spaces): value
      for key, value in zip(names, attributes[1::2], strict=True)
    }
    for match in matches:
      self._change_attribute(match, spaces, values)
    self._open[-1] = tag._replace(edit=self._edit_of(full, values))
    self._content.clear()

  def _change_attribute(
    self,
    match: re.Match[bytes],
    spaces: Mapping[str, str],
    values: Mapping[tuple[str, str], str],
  ) -> None:
    name = match[1].decode()
    if name.startswith("xmlns:"):
      if spaces[name.removeprefix("xmlns:")] in _GONE:
        self._changes.append((*match.span(), b""))
      return
    full = _full(name, spaces)
    if lost := _what_is_gone(full):
      self._lost[lost] = None
      self._changes.append((*match.span(), b""))
      return
    edit = self._edit_of(full, values)
    new = None if edit is None else edit(match[2][1:-1].decode())
    if new is not None:
      begin, end = match.span(2)
      self._changes.append((begin + 1, end - 1, new.encode()))

  def _characters(self, text: str) -> None:
    if self._open and self._open[-1].edit is not None:
      self._content.append(text)

  def _end(self, name: str) -> None:
    at = self._parser.CurrentByteIndex
    if self._removing:
      self._removing -= 1
      if not self._removing:
        tag = self._open.pop()
        end = tag.inside if tag.closed else self._text.index(b">", at) + 1
        self._changes.append((tag.begin, end, b""))
      return
    tag = self._open.pop()
    text = "".join(self._content)
    self._content.clear()
    # Else it is not the text alone, or there is none.
    if (
      tag.edit is not None
      and not tag.closed
      and text
      and self._text[tag.inside : at].decode() == text
    ):
      new = tag.edit(text)
      if new is not None:
        self._changes.append((tag.inside, at, new.encode()))

  def _edit_of(
    self, name: tuple[str, str], values: Mapping[tuple[str, str], str]
  ) -> Callable[[str], str | None] | None:
    """Returns how to change a property's value, given its neighbours."""
    if name == (_TIFF, "Orientation"):
      return lambda text: "1" if _NUMBER.fullmatch(text) else None
    if name in _SIDES:
      return lambda text: str(self._new_size[_SIDES[name]])
    axis = _LENGTHS.get(name)
    if axis is None and name in _DIMENSIONS and self._in_pixels(values):
      axis = _DIMENSIONS[name]
    if axis is None and values.get((_CROP, "CropUnits")) == "0":
      axis = _CROPS.get(name)
    return None if axis is None else lambda text: self._scaled(text, axis)

  def _in_pixels(self, values: Mapping[tuple[str, str], str]) -> bool:
    """Tells whether the dimensions that are open are those of regions."""
    unit = values.get((_SIZE, "unit"), "pixel")
    return unit.lower().startswith("pixel") and any(
      tag.name == (_REGIONS, "AppliedToDimensions") for tag in self._open
    )

  def _scaled(self, text: str, axis: int) -> str | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
      return None
    return str(round(float(text) * self._new_size[axis] / self._size[axis]))


def _full(name: str, spaces: Mapping[str, str]) -> tuple[str, str]:
  prefix, colon, local = name.partition(":")
  return (spaces.get(prefix, prefix), local) if colon else ("", name)


def _what_is_gone(name: tuple[str, str]) -> str | None:
  """Returns which claim a property makes of what the result does not have."""
  space, local = name
  if space == _NOTE and local == "HasExtendedXMP":
    return "extended"
  if name == (_XMP, "Thumbnails"):
    return "thumbnail"
  if _CAMERAS.fullmatch(space) and _MOTION.fullmatch(local):
    return "motion"
  return _GONE.get(space)


def _refuse(*_: object) -> None:
  raise ValueError("a document type")
