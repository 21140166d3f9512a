"""AVIF and HEIC: the container is read here, the pixels by libavif, libheif."""

from __future__ import annotations

import mmap
import struct

import numpy as np

from esrgan_jax import extras
from esrgan_jax.images import h273, heif, limits
from esrgan_jax.images.assembly import Found, split_alpha
from esrgan_jax.images.codecs import codec
from esrgan_jax.images.levels import widened
from esrgan_jax.images.metadata import load_exif
from esrgan_jax.images.pixels import ImageError

_AVIF, _HEVC = b"av01", b"hvc1"
_SEQUENCES = (b"avis", b"hevc", b"hevx", b"msf1")


def look(
  data: bytes | mmap.mmap, max_pixels: int
) -> tuple[heif.Heif, list[heif.Item], bool]:
  """Reads the container; raises if it is nothing that is read.

  Returns:
    The file, its parts of pixels, and whether they are AVIF's.
  """
  file = heif.parse(data)
  picture = file.picture
  if picture.size is None:
    raise ValueError("no size of the picture")
  limits.check_size(*picture.size, max_pixels)
  if file.brand in _SEQUENCES:
    raise ImageError("is an animation; save its frames as PNG files first")
  parts = file.parts()
  kinds = {part.kind for part in parts}
  if kinds not in ({_AVIF}, {_HEVC}):
    names = " ".join(k.decode("latin-1") for k in sorted(kinds)) or "nothing"
    raise ImageError(f"pictures by {names!r} are not read; save it as PNG")
  alpha = [item for item in file.referring(b"auxl") if _is_alpha(item)]
  others = []
  for item in alpha:
    others += [item] if item.kind in kinds else []
    for kind, targets in item.refers:
      others += [file.items[t] for t in targets if kind == b"dimg"]
  found = 0
  for part in (*parts, *others):
    found += _check_part(file, part, max_pixels)
    if found > len(data):
      raise ValueError("parts that overlap")
  limits.check_claim(*picture.size, found, max_pixels, ratio=limits.DENSE_RATIO)
  return file, parts, kinds == {_AVIF}


def read_heif(data: bytes, max_pixels: int) -> Found:
  """Reads the picture of an AVIF or HEIC file."""
  file, parts, avif = look(data, max_pixels)
  picture = file.picture
  bits = _bits(parts[0], avif)
  samples = _decode_avif(file) if avif else _decode_heic(data, bits > 8)
  size = (picture.size if avif else picture.clean_size)[::-1]
  if not avif and file.orientation() > 4:
    size = size[::-1]
  if samples.shape[:2] != size or samples.shape[2] > 4:
    raise ValueError(f"a picture of {list(samples.shape)}")
  if not avif and bits > 8:
    bits = 16  # Of which libheif makes so many.
  pixels, plane = split_alpha(widened(samples, bits))
  grey = pixels.shape[2] == 1
  profile, told = _colours(picture, grey)
  if profile is None and not told:
    profile, told = _colours(parts[0], grey)
  notes = list(told)
  if picture.named(b"clap") is not None and avif:
    notes.append("its crop is left out, and all of it was read")
  if any(item.kind == b"tmap" for item in file.items.values()):
    notes.append("its gain map is left out")
  own = _bits(parts[0], avif)
  return Found(
    format="AVIF" if avif else "HEIC",
    pixels=pixels,
    alpha=plane,
    icc_profile=profile,
    exif=load_exif(file.exif()),
    orientation=file.orientation() if avif else 1,
    xmp=file.xmp(),
    bits=own if 8 < own < 16 else None,
    notes=tuple(notes),
  )


def _is_alpha(item: heif.Item) -> bool:
  name = item.named(b"auxC") or b""
  return b"alpha" in name or b"auxid:1" in name


def _check_part(file: heif.Heif, part: heif.Item, max_pixels: int) -> int:
  """Holds a stream's own headers against its size; returns its bytes."""
  stream = file.bytes_of(part)
  if part.size is None:
    raise ValueError("a part without a size")
  limits.check_size(*part.size, max_pixels)
  if part.kind == _AVIF:
    sizes = list(heif.sequence_sizes(stream))
    settings = part.named(b"av1C") or b""
    sizes += heif.sequence_sizes(settings[4:])
    if not sizes:
      raise ValueError("no header of the picture")
    for size in sizes:
      if size[0] > part.size[0] + 7 or size[1] > part.size[1] + 7:
        raise ValueError(f"a picture of {size[0]} x {size[1]} pixels")
  return len(stream)


def _bits(part: heif.Item, avif: bool) -> int:
  """Returns the bits of samples."""
  body = part.named(b"av1C" if avif else b"hvcC") or b""
  if avif:
    if len(body) < 4:
      raise ValueError("no settings of the codec")
    return (8, 8, 10, 12)[body[2] >> 5 & 3]
  return 8 + (body[17] & 7) if len(body) > 17 else 8


def _decode_avif(file: heif.Heif) -> np.ndarray:
  """Decodes by libavif, which is not to see a film."""
  data = bytearray(file.data)
  if file.has_movie:
    at = data.find(b"moov")
    while at >= 0:
      data[at : at + 4] = b"free"
      at = data.find(b"moov", at)
  samples = codec("avif").decode(bytes(data), index=0, numthreads=1)
  return samples if samples.ndim == 3 else samples[..., None]


def _decode_heic(data: bytes, deep: bool) -> np.ndarray:
  """Decodes by libheif, upright."""
  try:
    import pi_heif
  except ImportError:
    raise ImageError(
      f"a HEIC file, which needs pi-heif; {extras.pip_install('heif')}, or"
      " convert it to PNG or JPEG"
    ) from None
  file = pi_heif.open_heif(data, convert_hdr_to_8bit=False)
  # A copy: its own memory goes with it.
  samples = np.array(file)
  if samples.itemsize != 1 + deep:
    raise ValueError(f"samples of {8 * samples.itemsize} bits")
  return samples if samples.ndim == 3 else samples[..., None]


def _colours(
  item: heif.Item, grey: bool
) -> tuple[bytes | None, tuple[str, ...]]:
  """Returns the profile, or one of what is stated; what is not kept."""
  found: tuple[bytes | None, tuple[str, ...]] = None, ()
  for kind, body, _ in item.properties:
    if kind == b"colr" and body[:4] in (b"prof", b"rICC"):
      return body[4:], ()
    if kind == b"colr" and body[:4] == b"nclx" and len(body) >= 10:
      primaries, curve = struct.unpack_from(">HH", body, 4)
      found = h273.profile_of(1 if grey else primaries, curve)
  return found
