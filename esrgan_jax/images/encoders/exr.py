"""OpenEXR, half or float, in chunks of ZIP."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np

from esrgan_jax.images import light, profiles
from esrgan_jax.images.encoders.png import in_order
from esrgan_jax.images.pixels import Image

_ROWS = 16  # Of a chunk of ZIP.
_HALF, _FLOAT = 1, 2


def write_exr(file: BinaryIO, image: Image) -> None:
  """Writes an OpenEXR file: linear light, alpha multiplied; `file` can seek."""
  H, _W, C = image.pixels.shape
  info, alpha = image.metadata, image.alpha
  # Half floats have eleven bits at any brightness: enough for 8-bit integers.
  half = info.bits == 16 and light.fits_half(info)
  half = half or image.pixels.dtype == np.uint8
  kind = np.dtype("<f2" if half else "<f4")
  # The file has channels by their names' order.
  names = ["Y"] if C == 1 else ["B", "G", "R"]
  order = list(range(C))[::-1]
  if alpha is not None:
    names = ["A", *names]
  _write_header(file, image, names, _HALF if half else _FLOAT)

  def pack(top: int) -> tuple[int, bytes]:
    rows = slice(top, top + _ROWS)
    part = light.to_file(image.pixels[rows], info, linear=True)
    planes = [part[..., channel] for channel in order]
    if alpha is not None:
      shown = light.share(alpha[rows])
      planes = [shown, *(plane * shown for plane in planes)]
    # [rows, channels, columns], as the format has it.
    lines = light.as_kind(np.stack(planes, axis=1), kind)
    return top, _deflated(lines.tobytes())

  tops = range(0, H, _ROWS)
  table = file.tell()
  file.write(bytes(8 * len(tops)))
  offsets = []
  for top, packed in in_order(pack, tops):
    offsets.append(file.tell())
    file.write(struct.pack("<ii", top, len(packed)))
    file.write(packed)
  end = file.tell()
  file.seek(table)
  file.write(struct.pack(f"<{len(offsets)}Q", *offsets))
  file.seek(end)


def _write_header(
  file: BinaryIO, image: Image, names: list[str], kind: int
) -> None:
  H, W, _ = image.pixels.shape
  dpi, record = image.metadata.dpi, image.metadata.record
  window = struct.pack("<4i", 0, 0, W - 1, H - 1)
  channels = b"".join(
    name.encode() + b"\0" + struct.pack("<iiii", kind, 0, 1, 1)
    for name in names
  )
  attributes = [
    ("channels", "chlist", channels + b"\0"),
    ("compression", "compression", b"\3"),
    ("dataWindow", "box2i", window),
    ("displayWindow", "box2i", window),
    ("lineOrder", "lineOrder", b"\0"),
    (
      "pixelAspectRatio",
      "float",
      struct.pack("<f", 1 if dpi is None else dpi[1] / dpi[0]),
    ),
    ("screenWindowCenter", "v2f", bytes(8)),
    ("screenWindowWidth", "float", struct.pack("<f", 1)),
  ]
  if dpi is not None:
    attributes.append(("xDensity", "float", struct.pack("<f", dpi[0])))
  if (places := chromaticities(image.metadata.icc_profile)) is not None:
    packed = struct.pack("<8f", *places)
    attributes.append(("chromaticities", "chromaticities", packed))
  if record is not None:
    attributes.append(("comments", "string", record.encode()))
  file.write(b"v/1\x01" + struct.pack("<I", 2))
  for name, type_, value in attributes:
    file.write(f"{name}\0{type_}\0".encode())
    file.write(struct.pack("<i", len(value)) + value)
  file.write(b"\0")


def chromaticities(profile: bytes | None) -> tuple[float, ...] | None:
  """Returns a profile's primaries, and white behind; None if it has none."""
  places = None if profile is None else profiles.primaries_of(profile)
  return None if places is None else places[2:] + places[:2]


def _deflated(raw: bytes) -> bytes:
  """Packs a chunk: even bytes first, differences, deflate."""
  values = np.frombuffer(raw, np.uint8)
  values = np.concatenate([values[0::2], values[1::2]])
  errors = values.copy()
  errors[1:] -= values[:-1]
  errors[1:] += np.uint8(128)
  packed = zlib.compress(errors, 4)
  return packed if len(packed) < len(raw) else raw
