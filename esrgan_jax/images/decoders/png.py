"""PNG: its chunks are read here, its pixels by libpng."""

from __future__ import annotations

import dataclasses
import fractions
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from esrgan_jax.images import limits, png_chunks
from esrgan_jax.images.animation import (
  CLEAR,
  KEEP,
  RESTORE,
  Animation,
  Patch,
)
from esrgan_jax.images.assembly import Found, refuse_frames, split_alpha
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.metadata import load_exif
from esrgan_jax.images.notes import listed
from esrgan_jax.text import printable

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNK = 2**30  # The format ends at twice that.
# By colour type: grey, RGB, palette, grey with alpha, RGB with alpha.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16)}
_DEPTHS |= {6: (8, 16)}
# Adam7: first row and column of each pass, and the steps.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4))
_PASSES += ((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


@dataclasses.dataclass(kw_only=True)
class _Contents:
  """What a file holds; bodies of chunks, or whole ones where it says so.

  Attributes:
    header: Numbers of IHDR.
    palette: PLTE and tRNS, whole.
    packed: IDAT, whole.
    count: Frames that acTL states; 0 if there is no animation.
    loop: How often they are played, by acTL.
    frames: Bodies of fcTL; the whole chunks of each frame's pixels.
    first: Whether a frame's header stands before the picture, so that it is
      the first frame.
    words: What is said beside the pixels.
  """

  header: tuple[int, ...]
  palette: list[memoryview]
  packed: list[memoryview]
  count: int
  loop: int
  frames: list[tuple[memoryview, list[memoryview]]]
  first: bool
  words: _Words

  def fields(self) -> dict[str, Any]:
    """Returns what a `Found` has besides the picture."""
    found = self.words.older | self.words.found
    return {
      "icc_profile": found.get(b"iCCP"),
      "exif": load_exif(found.get(b"eXIf")),
      "xmp": found.get(b"iTXt"),
      "dpi": found.get(b"pHYs"),
      "png_chunks": tuple(self.words.kept),
      "notes": self.words.notes(),
    }


def read_png(data: bytes, max_pixels: int) -> Found:
  """Reads a PNG of one picture.

  A wrong checksum of a chunk that the picture needs is an error. One that it
  does not need is left out and told, as libpng does.
  """
  contents = _read_contents(memoryview(data), max_pixels)
  refuse_frames(contents.count, "frames")
  packed = [_intact(chunk) for chunk in contents.packed]
  samples = _decode(contents.header, contents.palette, packed)
  pixels, alpha = split_alpha(samples)
  found = Found(format="PNG", pixels=pixels, alpha=alpha, **contents.fields())
  if contents.count and not contents.first:
    # One frame is no animation; what other programs show is the picture.
    note = "a frame for programs that know animations is left out"
    found = dataclasses.replace(found, notes=(*found.notes, note))
  return found


def read_png_frames(
  data: bytes | memoryview, max_pixels: int
) -> Animation | None:
  """Finds an animation's frames; None if there is one picture."""
  view = memoryview(data)
  contents = _read_contents(view, max_pixels)
  count = contents.count
  if count < 2:
    return None
  if len(contents.frames) < count:
    raise ValueError(f"{len(contents.frames)} of {count} frames")
  patches = [_read_frame(*frame, contents) for frame in contents.frames[:count]]
  width, height, *rest = contents.header

  def decode(patch: Patch) -> np.ndarray:
    # IDAT has the pixels at once, fdAT a number before them.
    packed = [
      _intact(chunk)[4 if chunk[4:8] == b"fdAT" else 0 :]
      for chunk in patch.data
    ]
    header = patch.width, patch.height, *rest
    pixels, alpha = split_alpha(_decode(header, contents.palette, packed))
    if alpha is None:
      alpha = np.full(pixels.shape[:2], np.iinfo(pixels.dtype).max)
    return np.dstack([pixels, alpha.astype(pixels.dtype)])

  if contents.first and (patches[0].width, patches[0].height) != (
    width,
    height,
  ):
    raise ValueError("a first frame of another size than the picture")
  animation = Animation(
    format="PNG",
    width=width,
    height=height,
    loop=contents.loop,
    patches=patches,
    decode=decode,
    found=contents.fields(),
  )
  animation.check(len(view), max_pixels)
  return animation


def _read_frame(
  control: memoryview, chunks: list[memoryview], contents: _Contents
) -> Patch:
  """Reads what is said of a frame."""
  _, width, height, left, top, above, below, dispose, blend = struct.unpack(
    ">IIIIIHHBB", control
  )
  if dispose > 2 or blend > 1:
    raise ValueError(f"a frame of kinds {dispose} and {blend}")
  colour = contents.header[3]
  return Patch(
    left=left,
    top=top,
    width=width,
    height=height,
    # Of a second; nothing stands for hundredths.
    duration=fractions.Fraction(1000 * above, below or 100),
    dispose=(KEEP, CLEAR, RESTORE)[dispose],
    opaque=colour < 4 and all(c[4:8] != b"tRNS" for c in contents.palette),
    blend=blend == 1,
    data=chunks,
  )


def _read_contents(view: memoryview, max_pixels: int) -> _Contents:
  """Walks through the chunks; what the pixels are is looked at later."""
  header, palette, packed = None, [], []
  controls, frames, first = [], [], False
  ordered, number = True, 0
  words = _Words()
  for kind, start, end in _chunks(view):
    whole, body = view[start:end], view[start + 8 : end - 4]
    if (kind == b"IHDR") != (header is None):
      raise ValueError("no header" if header is None else "two headers")
    if kind == b"IHDR":
      header = struct.unpack(">IIBBBBB", _intact(whole))
      limits.check_size(*header[:2], max_pixels)
    elif kind == b"PLTE":
      _intact(whole)
      palette.append(whole)
    elif kind == b"tRNS":
      if _is_intact(whole):
        palette.append(whole)
      else:
        words.wrong[kind] = None
    elif kind == b"IDAT":
      packed.append(whole)
      if first and len(frames) == 1:
        frames[0][1].append(whole)
    elif kind == b"acTL" and len(body) == 8 and not packed:
      controls.append(struct.unpack(">II", body))
      if len(controls) > 1:
        words.repeated[kind] = None
    elif kind in (b"fcTL", b"fdAT"):
      # All are numbered, and count as far as they are in order.
      ordered = ordered and body[:4] == struct.pack(">I", number)
      number += 1
      first |= kind == b"fcTL" and not packed
      if kind == b"fcTL":
        ordered = ordered and len(body) == 26 and _is_intact(whole)
        frames += [(body, [])] if ordered else []
      elif ordered and frames and packed:
        frames[-1][1].append(whole)
    elif kind != b"sBIT" or _is_narrower(body, header):
      words.take(kind, whole, late=bool(packed))
  if header is None:
    raise ValueError("no header")
  count, loop = controls[0] if len(controls) == 1 else (0, 0)
  return _Contents(
    header=header,
    palette=palette,
    packed=packed,
    count=count if count < 2**31 else 0,  # Else there is no animation.
    loop=loop,
    frames=[frame for frame in frames if frame[1]],
    first=first,
    words=words,
  )


def _decode(
  header: tuple[int, ...], palette: list[memoryview], packed: list[memoryview]
) -> np.ndarray:
  """Decodes the pixels: unpacks them here, and has libpng do the rest.

  So everything is known to be there and sound, and is given to libpng in blocks
  that are only stored. An error there costs more than time: imagecodecs 2026.3
  then keeps the picture in memory, and takes a reference from None.
  """
  import imagecodecs

  width, height, depth, colour, *_, interlace = header
  if depth not in _DEPTHS.get(colour, ()) or (colour == 3 and not palette):
    raise ValueError(f"colour type {colour} of {depth} bits")
  shapes = _shapes(width, height, depth * _SAMPLES[colour], interlace)
  size = sum(rows * stride for rows, stride in shapes)
  found = sum(map(len, packed))
  needed = -(-size // limits.DEFLATE_RATIO)
  limits.check_bits(width, height, 8 * needed, found)
  raw = _unpack(b"".join(packed), size)
  at = 0
  for rows, stride in shapes:
    filters = np.frombuffer(raw, np.uint8, rows * stride, at)[::stride]
    if filters.max() > 4:
      raise ValueError(f"filter {filters.max()}")
    at += rows * stride
  stored = memoryview(zlib.compress(raw, 0))
  del raw
  parts = [_SIGNATURE, *_chunk(b"IHDR", struct.pack(">IIBBBBB", *header))]
  parts += palette
  for start in range(0, len(stored), _MOST_CHUNK):
    parts += _chunk(b"IDAT", stored[start : start + _MOST_CHUNK])
  parts += _chunk(b"IEND", b"")
  return imagecodecs.png_decode(b"".join(parts))


def _unpack(packed: bytes, size: int) -> bytes:
  """Inflates so many bytes; what follows them does not matter."""
  import imagecodecs

  try:
    raw = imagecodecs.deflate_decode(packed, out=size)
  except RuntimeError:
    # It wants the checksum, and not a byte more.
    raw = zlib.decompressobj().decompress(packed, size)
  if len(raw) < size:
    raise ValueError(f"{len(raw)} of {size} bytes")
  return raw


def _shapes(
  width: int, height: int, bits: int, interlace: int
) -> list[tuple[int, int]]:
  """Returns rows and bytes a row, a filter's included, of each pass."""
  shapes = []
  for top, left, down, across in _PASSES if interlace else ((0, 0, 1, 1),):
    rows, columns = -(-(height - top) // down), -(-(width - left) // across)
    if rows > 0 and columns > 0:
      shapes.append((rows, 1 + (columns * bits + 7) // 8))
  return shapes


def _chunk(
  kind: bytes, body: bytes | memoryview
) -> tuple[bytes | memoryview, ...]:
  checksum = zlib.crc32(body, zlib.crc32(kind))
  return struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)


def _chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
  """Yields kind, start and end of each chunk but the end mark."""
  at, count = len(_SIGNATURE), 0
  while at + 12 <= len(view):
    length, kind = struct.unpack_from(">I4s", view, at)
    end = at + 12 + length
    if kind == b"IEND":
      return
    if end > len(view):
      break
    limits.check_pieces(count := count + 1, "chunks")
    yield kind, at, end
    at = end
  raise ValueError("no end mark")


def _intact(chunk: memoryview) -> memoryview:
  """Returns a chunk's body, if its checksum is right."""
  if not _is_intact(chunk):
    raise ValueError(f"a wrong checksum of {bytes(chunk[4:8]).decode()}")
  return chunk[8:-4]


def _is_intact(chunk: memoryview) -> bool:
  """Tells whether a chunk's checksum is right."""
  (checksum,) = struct.unpack(">I", chunk[-4:])
  return zlib.crc32(chunk[4:-4]) == checksum


class _Words:
  """What chunks say beside the pixels.

  Attributes:
    found: Metadata by chunk; of several, the first counts.
    older: The same in its older form, which counts where there is no other.
    kept: Chunks that are for the result as they are.
    wrong: Kinds of chunks that are damaged.
    large: Kinds of chunks that are too large.
    late: Kinds of chunks that stand behind the pixels, and may not.
    repeated: Kinds of chunks of which another one counts.
    old: Kinds of chunks that tell of the pixels that were read.
    unknown: Kinds of chunks that nobody here knows.
  """

  def __init__(self):
    self.found: dict[bytes, Any] = {}
    self.older: dict[bytes, bytes] = {}
    self.kept: list[tuple[bytes, bytes]] = []
    self.wrong: dict[bytes, None] = {}
    self.large: dict[bytes, None] = {}
    self.late: dict[bytes, None] = {}
    self.repeated: dict[bytes, None] = {}
    self.old: dict[bytes, None] = {}
    self.unknown: dict[bytes, None] = {}
    self._room = MAX_METADATA
    self._tried: set[bytes] = set()  # What takes time is done once.

  def take(self, kind: bytes, chunk: memoryview, *, late: bool) -> None:
    """Takes a chunk; `late` if it comes after pixels."""
    if kind not in _METADATA and kind not in png_chunks.KEPT:
      if kind in _OF_PIXELS:
        self.old[kind] = None
      elif kind == b"acTL":
        (self.late if late else self.wrong)[kind] = None
      elif kind not in _MEANINGLESS:
        self.unknown[kind] = None
      return
    if not _is_intact(chunk):
      self.wrong[kind] = None
      return
    body = chunk[8:-4]
    if len(body) > self._room:
      self.large[kind] = None
      return
    self._room -= len(body)
    body = bytes(body)
    if kind in png_chunks.TEXTS:
      self._take_text(kind, body)
    elif kind in png_chunks.KEPT:
      # Colours are stated once, and before the pixels.
      if late:
        self.late[kind] = None
      elif kind in self._tried:
        self.repeated[kind] = None
      else:
        self._tried.add(kind)
        if png_chunks.is_sound(kind, body):
          self.kept.append((kind, body))
        else:
          self.wrong[kind] = None
    elif kind in self.found:
      self.repeated[kind] = None
    elif kind == b"pHYs" and len(body) != 9:
      self.wrong[kind] = None
    else:
      said = _METADATA[kind](body)
      if said is not None:
        self.found[kind] = said
      elif body[:4] != body[4:8]:
        self.old[kind] = None  # Pixels that are not square.

  def _take_text(self, kind: bytes, body: bytes) -> None:
    """Keeps a text, unless it is metadata in disguise."""
    keyword = png_chunks.keyword(body)
    is_xmp = kind == b"iTXt" and keyword == png_chunks.XMP
    place = _RAW_PROFILES.get(keyword)
    if not is_xmp and place is None:
      if png_chunks.is_sound(kind, body):
        self.kept.append((kind, body))
      else:
        self.wrong[kind] = None
      return
    if keyword in self._tried:
      self.repeated[kind] = None
      return
    self._tried.add(keyword)
    if is_xmp:
      self.found[b"iTXt"] = _xmp(body)
      return
    text = png_chunks.text_of(kind, body)
    block = None if text is None else png_chunks.raw_profile(text)
    if block:
      # ImageMagick's, from before there were chunks for it.
      head = b"http://ns.adobe.com/xap/1.0/\0"
      if block.startswith(head):
        place, block = b"iTXt", block.removeprefix(head)
      self.older.setdefault(place, block)
    else:
      self.wrong[kind] = None

  def notes(self) -> tuple[str, ...]:
    """Returns what is left out, in one sentence if there is anything."""
    reasons = [
      (kinds, why)
      for kinds, why in (
        (self.wrong, "a wrong checksum or form"),
        (self.large, f"more than {MAX_METADATA} bytes of metadata"),
        (self.late, "behind the pixels"),
        (self.repeated, "stated before"),
        (self.old, "of the old pixels"),
        (self.unknown, "what they say may not hold for the result"),
      )
      if kinds
    ]
    parts = [
      (listed(printable(kind.decode("latin-1")) for kind in kinds), why)
      for kinds, why in reasons
    ]
    if not parts:
      return ()
    if len(parts) > 1:
      named = ", ".join(f"{names} ({why})" for names, why in parts)
      return (f"its chunks {named} are left out",)
    ((names, why),) = parts
    if len(reasons[0][0]) == 1:
      return (f"its {names} chunk is left out ({why})",)
    return (f"its chunks {names} are left out ({why})",)


# Chunks of the stored pixels, which a result does not have: how deep they were,
# what lies behind them, when they were last changed.
_OF_PIXELS = {b"sBIT", b"bKGD", b"tIME"}
# Helps for reading the file: how often its palette's colours are met, a palette
# for poor screens, where its parts begin. Nothing is lost with them.
_MEANINGLESS = {b"hIST", b"sPLT", b"iDOT"}
_RAW_PROFILES = {
  b"Raw profile type exif": b"eXIf",
  b"Raw profile type APP1": b"eXIf",
  b"Raw profile type xmp": b"iTXt",
}


# Metadata by chunk: bytes or numbers, empty if damaged, None if of no use.


def _is_narrower(body: memoryview, header: tuple[int, ...] | None) -> bool:
  """Tells whether sBIT says that some bits of the samples mean nothing."""
  depth = header[2] if header is not None and header[3] != 3 else 8
  return any(bits != depth for bits in body)


def _profile(body: bytes) -> bytes:
  _, _, rest = body.partition(b"\0")
  return png_chunks.inflate(rest[1:]) if rest[:1] == b"\0" else b""


def _xmp(body: bytes) -> bytes:
  _, _, rest = body.partition(b"\0")
  text = rest[2:].split(b"\0", 2)[-1]
  if rest[:1] == b"\0":
    return text
  return png_chunks.inflate(text) if rest[1:2] == b"\0" else b""


def _dpi(body: bytes) -> tuple[float, float] | None:
  if len(body) != 9 or body[8] != 1:
    return None
  x, y = struct.unpack_from(">II", body)
  return x * 0.0254, y * 0.0254


_METADATA = {b"iCCP": _profile, b"eXIf": bytes, b"pHYs": _dpi}
