"""PNG's chunks that go from picture to picture: colours and texts.

Of what states colours, a reader heeds the first that is there of cICP, iCCP,
sRGB, gAMA with cHRM (PNG 3, 4.3). So all go along as they are.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Container, Iterable, Mapping

from esrgan_jax.images import profiles
from esrgan_jax.images.limits import MAX_METADATA

XMP = b"XML:com.adobe.xmp"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Keyword of our own text on how a result was made, where another's is taken.
RECORD = "esrgan_jax"
# Bytes of each that states colours.
_COLOURS: Mapping[bytes, int] = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4}
_COLOURS |= {b"cHRM": 32, b"mDCV": 24, b"cLLI": 8}
KEPT = {*TEXTS, *_COLOURS}
# sRGB's own in gAMA and cHRM, in 1/100,000, and what is as good as that.
_GAMMA = 45_455
_PRIMARIES = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
_NEAR = 1_000


def keyword(body: bytes) -> bytes:
  """Returns a text chunk's keyword."""
  return body[:80].partition(b"\0")[0]


def is_sound(kind: bytes, body: bytes) -> bool:
  """Tells whether a chunk's form is right; of texts, not what is packed."""
  if kind in _COLOURS:
    return len(body) == _COLOURS[kind] and (kind != b"gAMA" or any(body))
  word = keyword(body)
  rest = body[len(word) :]
  if not 1 <= len(word) <= 79 or rest[:1] != b"\0":
    return False
  if kind == b"zTXt":
    return rest[1:2] == b"\0"
  return kind == b"tEXt" or rest.count(b"\0", 0, 2**10) >= 3


def inflate(packed: bytes) -> bytes:
  """Unpacks up to `MAX_METADATA` bytes; none if it is damaged, or has more."""
  inflater = zlib.decompressobj()
  try:
    text = inflater.decompress(packed, MAX_METADATA)
  except zlib.error:
    return b""
  return text if inflater.eof else b""


def text_of(kind: bytes, body: bytes) -> str | None:
  """Returns a text chunk's text; None if it is damaged."""
  rest = body[len(keyword(body)) + 1 :]
  if kind == b"tEXt":
    return rest.decode("latin-1")
  if kind == b"zTXt":
    return inflate(rest[1:]).decode("latin-1") or None
  pieces = rest[2:].split(b"\0", 2)
  if len(pieces) < 3:
    return None
  text = inflate(pieces[2]) if rest[:1] == b"\1" else pieces[2]
  try:
    return text.decode("utf-8") or None
  except UnicodeDecodeError:
    return None


def keywords(chunks: Iterable[tuple[bytes, bytes]]) -> dict[str, None]:
  """Returns the keywords of all texts, in order, each once."""
  return {
    keyword(body).decode("latin-1"): None
    for kind, body in chunks
    if kind in TEXTS
  }


def texts(
  chunks: Iterable[tuple[bytes, bytes]], words: Container[str]
) -> dict[str, str]:
  """Returns the texts of some keywords; of several of one, the first.

  No others are unpacked, which a stranger's file may have any number of.
  """
  found: dict[str, str | None] = {}
  for kind, body in chunks:
    word = keyword(body).decode("latin-1")
    if kind in TEXTS and word in words and word not in found:
      found[word] = text_of(kind, body)
  return {word: text for word, text in found.items() if text is not None}


def text_chunk(word: str, text: str) -> tuple[bytes, bytes]:
  """Makes the chunk of a text, by the letters that it has."""
  try:
    return b"tEXt", f"{word}\0{text}".encode("latin-1")
  except UnicodeEncodeError:
    return b"iTXt", f"{word}\0\0\0\0\0{text}".encode()


def raw_profile(text: str) -> bytes | None:
  """Returns the bytes that ImageMagick writes as name, length and digits."""
  match = re.fullmatch(r"\s*\S{1,20}\s+(\d{1,9})\s([0-9a-fA-F\s]*)\0?", text)
  if match is None:
    return None
  try:
    return bytes.fromhex(match[2])[: int(match[1])]
  except ValueError:
    return None


def is_srgb(chunks: Iterable[tuple[bytes, bytes]], *, profile: bool) -> bool:
  """Tells whether chunks state no other colours than sRGB's, or a profile's."""
  found = dict(chunks)
  if b"cICP" in found:
    return found[b"cICP"][:2] == b"\1\x0d"
  if profile or b"sRGB" in found:
    return True
  gamma, places = _stated(found)
  return (gamma is None or abs(gamma - _GAMMA) <= _NEAR) and all(
    abs(a - b) <= _NEAR for a, b in zip(places, _PRIMARIES, strict=True)
  )


def profile_of(
  chunks: Iterable[tuple[bytes, bytes]], *, channels: int
) -> bytes | None:
  """Makes a profile of gAMA and cHRM; None if others state the colours."""
  found = dict(chunks)
  if b"cICP" in found:
    return None
  gamma, places = _stated(found)
  return profiles.of_primaries(
    [place / 100_000 for place in places],
    None if gamma is None else 100_000 / gamma,
    channels=channels,
  )


def _stated(found: Mapping[bytes, bytes]) -> tuple[int | None, tuple[int, ...]]:
  """Returns the numbers of gAMA, if it is there, and of cHRM, or sRGB's."""
  gamma, places = None, _PRIMARIES
  if b"gAMA" in found:
    (gamma,) = struct.unpack(">I", found[b"gAMA"])
  if b"cHRM" in found:
    places = struct.unpack(">8I", found[b"cHRM"])
  return gamma, places
