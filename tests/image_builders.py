"""Builds small image files byte by byte, sound ones and others."""

import base64
import io
import itertools
import pathlib
import struct
import tempfile
import zlib

import imagecodecs
import numpy as np
import tifffile
from PIL import Image as PilImage
from PIL import ImageCms, PngImagePlugin

from esrgan_jax.images import Image, Metadata, profiles, write_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Of BT.2020, so that it says something.
WIDE = profiles.of_primaries(
  (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046), None, channels=3
)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'


def noise(*shape, dtype=np.uint8, seed=0):
  """Returns random pixels of all values."""
  top = np.iinfo(dtype).max
  return np.random.default_rng(seed).integers(0, top, shape, dtype, True)


def joined(image):
  """Returns an image's samples: colour, alpha, further ones."""
  planes = [image.pixels]
  if image.alpha is not None:
    planes.append(image.alpha[..., None])
  if image.extra is not None:
    planes.append(image.extra)
  return np.concatenate(planes, axis=2)


def split(samples):
  """Makes an image of samples `[H, W, 1 to 4]`."""
  if samples.shape[2] in (1, 3):
    return Image(samples)
  return Image(samples[..., :-1], samples[..., -1])


# --- metadata ---------------------------------------------------------------


def grey_profile():
  """An sRGB profile that claims to be grey: only its header is looked at."""
  return SRGB[:16] + b"GRAY" + SRGB[20:]


def cmyk_profile():
  """An ICC v2 profile whose CMYK to Lab table maps all ink to mid-grey."""
  grid, outputs = 2, 3
  lut = b"mft1" + b"\0" * 4 + bytes([4, outputs, grid, 0])
  for value in (1, 0, 0, 0, 1, 0, 0, 0, 1):
    lut += struct.pack(">i", value << 16)
  lut += bytes(range(256)) * 4
  lut += bytes([128, 128, 128]) * grid**4
  lut += bytes(range(256)) * outputs
  lut += b"\0" * (-len(lut) % 4)
  white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
  tags = {b"A2B0": lut, b"A2B1": lut, b"wtpt": white}
  table, body = struct.pack(">I", len(tags)), b""
  for name, value in tags.items():
    at = 128 + 4 + 12 * len(tags) + len(body)
    table += name + struct.pack(">II", at, len(value))
    body += value
  head = b"\0" * 4 + struct.pack(">I", 0x02400000) + b"prtrCMYKLab "
  head += b"\0" * 12 + b"acsp" + b"\0" * 28
  head += struct.pack(">iii", 63190, 65536, 54061)
  head = head.ljust(124, b"\0") + table + body
  return struct.pack(">I", len(head) + 4) + head


def exif_block(orientation=1, *, order="<", thumbnail=False):
  """A hand-made block: make, orientation, size, comment, old thumbnail."""
  ifd = struct.pack(order + "H", 3)
  ifd += struct.pack(order + "HHI4s", 271, 2, 4, b"Cam\0")
  ifd += struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
  ifd += struct.pack(order + "HHII", 34665, 4, 1, 50)
  following = 104 if thumbnail else 0
  ifd += struct.pack(order + "I", following)
  assert 8 + len(ifd) == 50
  sub = struct.pack(order + "H", 3)
  sub += struct.pack(order + "HHIHH", 40962, 3, 1, 77, 0)
  sub += struct.pack(order + "HHII", 40963, 4, 1, 77)
  sub += struct.pack(order + "HHII", 37500, 7, 12, 92) + b"\0\0\0\0"
  sub += b"maker's note"
  block = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
  block += ifd + sub
  assert len(block) == 104
  if thumbnail:
    block += struct.pack(order + "H", 2)
    block += struct.pack(order + "HHII", 513, 4, 1, 134)
    block += struct.pack(order + "HHII", 514, 4, 1, 9) + b"\0" * 4
    block += b"THUMBNAIL"
  return block


def exif_of(path):
  """Returns the tags that Pillow finds, and those of its sub-directory."""
  with PilImage.open(path) as picture:
    exif = picture.getexif()
    return dict(exif), dict(exif.get_ifd(34665))


def overlapping_exif(count=2900, pointers=0):
  """A block whose tags all have the same large value, or point to each other.

  Without a bound, each tag's value is a copy of the whole, and is unpacked.
  """
  tags = [(n + 40000, 3, count * 6, 8) for n in range(count)]
  tags += [(34665, 4, 1, 8), (34853, 4, 1, 8), (40965, 4, 1, 8)][:pointers]
  body = struct.pack("<H", len(tags))
  body += b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
  return b"II*\0\x08\0\0\0" + body + bytes(4)


def packets():
  """Returns small XMP packets: of a panorama, a motion photo, regions."""
  head = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"'
    ' xmlns:g="http://ns.google.com/photos/1.0/camera/"'
    ' xmlns:tiff="http://ns.adobe.com/tiff/1.0/">'
  )
  return {
    "panorama": (
      f'<?xpacket begin="\ufeff"?>{head}<r GPano:FullPanoWidthPixels="6"'
      ' GPano:CroppedAreaTopPixels="1"><tiff:ImageWidth>3</tiff:ImageWidth></r>'
      '</x:xmpmeta><?xpacket end="w"?>'
    ).encode(),
    "motion": (
      f'{head}<r g:MotionPhoto="1" dc:title="&lt;"><Container:Directory>'
      "<Container:Item/></Container:Directory><![CDATA[<]]></r></x:xmpmeta>"
    ).encode("utf-16"),
    "gain map": f'{head}<hdrgm:a b="1">c</hdrgm:a>\u5199</x:xmpmeta>'.encode(),
  }


# --- PNG --------------------------------------------------------------------


def chunk(kind, body):
  """A PNG chunk, its checksum right."""
  checksum = zlib.crc32(kind + body)
  return (
    struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
  )


def png(width, height, packed, *, depth=8, colour=0, interlace=0, extra=()):
  """A PNG of a header and some compressed bytes that need not belong to it."""
  head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
  return b"".join(
    (
      b"\x89PNG\r\n\x1a\n",
      chunk(b"IHDR", head),
      *(chunk(*c) for c in extra),
      chunk(b"IDAT", packed),
      chunk(b"IEND", b""),
    )
  )


def make_png(samples, *, interlace=False, filters=(0, 1, 2, 3, 4), extra=()):
  """A PNG from [H, W, C] samples, by the letter of the specification."""
  H, W, C = samples.shape
  depth = 8 * samples.itemsize
  colour = {1: 0, 2: 4, 3: 2, 4: 6}[C]
  adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
  adam7 += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
  raw = b""
  for y, x, dy, dx in adam7 if interlace else [(0, 0, 1, 1)]:
    part = samples[y::dy, x::dx]
    if part.size:
      raw += filter_rows(part.astype(part.dtype.newbyteorder(">")), filters)
  head = struct.pack(">IIBBBBB", W, H, depth, colour, 0, 0, int(interlace))
  packed = zlib.compress(raw)
  half = len(packed) // 2
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + b"".join(chunk(*c) for c in extra)
    + chunk(b"IDAT", packed[:half])
    + chunk(b"IDAT", packed[half:])
    + chunk(b"IEND", b"")
  )


def filter_rows(part, filters):
  """Filters rows by these kinds in turn."""
  rows = part.reshape(len(part), -1).view(np.uint8).astype(int)
  distance = part.shape[2] * part.itemsize
  out = bytearray()
  above = np.zeros(rows.shape[1], int)
  for number, row in enumerate(rows):
    kind = filters[number % len(filters)]
    left = np.concatenate([np.zeros(distance, int), row[:-distance]])
    corner = np.concatenate([np.zeros(distance, int), above[:-distance]])
    guess = left + above - corner
    far = [abs(guess - v) for v in (left, above, corner)]
    paeth = np.where(
      (far[0] <= far[1]) & (far[0] <= far[2]),
      left,
      np.where(far[1] <= far[2], above, corner),
    )
    predicted = (0, left, above, (left + above) // 2, paeth)[kind]
    out += bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
    above = row
  return bytes(out)


# --- JPEG -------------------------------------------------------------------

# One Huffman code of one bit, "0": no difference, and the end of a block.
_CODES = b"".join(
  struct.pack(">HHB16sB", 0xFFC4, 20, table, bytes((1, *bytes(15))), 0)
  for table in (0x00, 0x10)
)
SEQUENTIAL = (0, 63, 0)


def jpeg(
  width,
  height,
  scans,
  *,
  kind=0xC0,
  sampling=(0x11,),
  extra=b"",
  interval=0,
  tail=b"\xff\xd9",
):
  """A JPEG of grey 128, if there are enough zero bits.

  Args:
    width: In pixels.
    height: In pixels.
    scans: (components or None: all, (first, last, bits), data) each.
    kind: The frame's marker.
    sampling: Factors of each component.
    extra: Segments before the frame.
    interval: Units between restarts.
    tail: What the file ends in.
  """
  count = len(sampling)
  components = b"".join(bytes((n + 1, f, 0)) for n, f in enumerate(sampling))
  parts = [b"\xff\xd8", extra]
  parts += [b"\xff\xdb\0\x43\0", bytes([1] * 64), _CODES]
  parts += [
    struct.pack(">BBHBHHB", 255, kind, 8 + 3 * count, 8, height, width, count),
    components,
  ]
  if interval:
    parts.append(struct.pack(">HHH", 0xFFDD, 4, interval))
  for chosen, (first, last, bits), data in scans:
    chosen = range(1, count + 1) if chosen is None else chosen
    parts.append(struct.pack(">HHB", 0xFFDA, 6 + 2 * len(chosen), len(chosen)))
    parts += [bytes((number, 0)) for number in chosen]
    parts += [bytes((first, last, bits)), data]
  return b"".join([*parts, tail])


def flat_jpeg(width, height, **options):
  """A sound one of one component, as small as it can be."""
  blocks = -(-width // 8) * -(-height // 8)
  bits = 2 * blocks
  data = bytes(bits // 8) + (bytes((255 >> bits % 8,)) if bits % 8 else b"")
  return jpeg(width, height, [(None, SEQUENTIAL, data)], **options)


# --- GIF, WebP, BMP ---------------------------------------------------------


def gif(canvas, frames, *, palette=bytes(range(6)), tail=b";"):
  """A GIF of frames: ((left, top, width, height), minimal code size, LZW)."""
  parts = [b"GIF89a", struct.pack("<HHBBB", *canvas, 0x80, 0, 0), palette]
  for place, size, data in frames:
    parts += [struct.pack("<BHHHHB", 0x2C, *place, 0), bytes((size,))]
    for start in range(0, len(data), 255):
      block = data[start : start + 255]
      parts += [bytes((len(block),)), block]
    parts.append(b"\0")
  return b"".join([*parts, tail])


def gif_frame(
  indices, place=(0, 0), *, palette=None, dispose=0, delay=0, clear=None
):
  """A GIF's frame of indices `[H, W]`, at left and top, and its control block.

  Codes are of nine bits: each index as it is, and a clear one in time.
  """
  codes = []
  for number, index in enumerate(indices.ravel().tolist()):
    codes += [256, index] if number % 250 == 0 else [index]
  codes.append(257)
  bits = np.array(codes, "<u2").view(np.uint8).reshape(-1, 2)
  bits = np.unpackbits(bits, axis=1, bitorder="little")[:, :9]
  data = np.packbits(bits, bitorder="little").tobytes()
  height, width = indices.shape
  flags = 4 * dispose + (clear is not None)
  parts = [b"!\xf9\4", struct.pack("<BHBB", flags, delay, clear or 0, 0)]
  flags = 0 if palette is None else 0x87
  parts.append(struct.pack("<BHHHHB", 0x2C, *place, width, height, flags))
  parts += [palette or b"", b"\x08"]
  for start in range(0, len(data), 255):
    block = data[start : start + 255]
    parts += [bytes((len(block),)), block]
  return b"".join([*parts, b"\0"])


def animated_gif(canvas, frames, *, palette=b"", times=None):
  """A GIF of frames of `gif_frame`; `times` is the number that it states."""
  flags = 0x87 if palette else 0
  parts = [b"GIF89a", struct.pack("<HHBBB", *canvas, flags, 0, 0), palette]
  if times is not None:
    parts += [b"!\xff\x0bNETSCAPE2.0\3\1", struct.pack("<HB", times, 0)]
  return b"".join([*parts, *frames, b";"])


def lossless_chunk(width, height, bits="00" + "0" + 5 * "1000"):
  """A WebP chunk of one colour, whose pixels take no bits at all.

  No transform, no cache, one group of codes, each of one symbol.
  """
  head = f"{0:03b}{0:01b}{height - 1:014b}{width - 1:014b}"
  flags = "".join(reversed(bits)) + head  # The first bit is the lowest.
  data = int(flags, 2).to_bytes(-(-len(flags) // 8), "little")
  return riff(b"VP8L", b"\x2f" + data.ljust(16, b"\0"))


def riff(kind, body):
  """A chunk of WebP."""
  return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def webp(*chunks):
  """A WebP file of these chunks."""
  return riff(b"RIFF", b"WEBP" + b"".join(chunks))


def extended_chunk(width, height, flags=0):
  """A WebP's canvas."""
  sides = (v.to_bytes(3, "little") for v in (width - 1, height - 1))
  return riff(b"VP8X", struct.pack("<B3x", flags) + b"".join(sides))


def frame_chunk(place, chunks, *, duration=0, flags=0):
  """A frame of an animated WebP: left, top, width, height."""
  left, top, width, height = place
  numbers = left // 2, top // 2, width - 1, height - 1, duration
  head = b"".join(v.to_bytes(3, "little") for v in numbers) + bytes((flags,))
  return riff(b"ANMF", head + chunks)


def bmp(width, height, bits, compression, data, *, palette=None, size=40):
  """A BMP with any header of Windows."""
  if palette is None:
    palette = bytes(itertools.chain(*((i, i, 9, 0) for i in range(1 << bits))))
  at = 14 + size + len(palette)
  head = struct.pack(
    "<IiiHHIIIIII",
    *(size, width, height, 1, bits),
    compression,
    len(data),
    2835,
    2835,
    len(palette) // 4,
    0,
  )
  head = head.ljust(size, b"\0")
  return (
    struct.pack("<2sIII", b"BM", at + len(data), 0, at) + head + palette + data
  )


# --- TIFF -------------------------------------------------------------------

_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 7: "s", 13: "I", 16: "Q"}


def tiff(tags, data=b"", *, order="<", big=False, following=0):
  """A TIFF whose pixels lie at byte 16, directory after them.

  Args:
    tags: {tag: (kind, values)}; of bytes, the values are one.
    data: What lies at byte 16.
    order: "<" or ">".
    big: Whether offsets have 64 bits.
    following: The next directory's offset.
  """
  pointer, room = ("Q", 8) if big else ("I", 4)
  data = data + bytes(len(data) % 2)
  start = 16 + len(data)
  mark = b"II" if order == "<" else b"MM"
  if big:
    head = mark + struct.pack(order + "HHHQ", 43, 8, 0, start)
  else:
    head = mark + struct.pack(order + "HI", 42, start)
  count = struct.pack(order + ("Q" if big else "H"), len(tags))
  after = start + len(count) + len(tags) * (12 + 2 * room - 8) + room
  entries, values = b"", b""
  for tag, (kind, value) in sorted(tags.items()):
    if isinstance(value, bytes):
      raw, number = value, len(value)
    else:
      value = value if isinstance(value, tuple | list) else (value,)
      raw = struct.pack(f"{order}{len(value)}{_FORMATS[kind]}", *value)
      number = len(value)
    entry = struct.pack(order + "HH" + pointer, tag, kind, number)
    if len(raw) > room:
      entry += struct.pack(order + pointer, after + len(values))
      values += raw + bytes(len(raw) % 2)
    else:
      entry += raw.ljust(room, b"\0")
    entries += entry
  end = struct.pack(order + pointer, following)
  return head.ljust(16, b"\0") + data + count + entries + end + values


def grey_tiff(width, height, data, compression=1, **more):
  """A grey TIFF of one strip; `more` are further tags, `tag_258` and so on."""
  tags = {
    256: (4, width),
    257: (4, height),
    258: (3, 8),
    259: (3, compression),
    262: (3, 1),
    273: (4, 16),
    277: (3, 1),
    278: (4, height),
    279: (4, len(data)),
  }
  tags |= {int(k.removeprefix("tag_")): v for k, v in more.items()}
  return tiff(tags, data)


# --- TGA, OpenEXR -----------------------------------------------------------


def tga(width, height, bits, kind, data, *, flags=0, palette=b"", entry=24):
  """A TGA; of a palette, `entry` are its colours' bits."""
  count = len(palette) // -(-entry // 8)
  head = struct.pack(
    "<BBBHHBHHHHBB",
    *(0, bool(palette), kind, 0, count, entry * bool(palette)),
    *(0, 0, width, height, bits, flags),
  )
  return head + palette + data + bytes(8) + b"TRUEVISION-XFILE.\0"


def exr(channels, compression=0, *, tile=None, window=None, more=()):
  """An OpenEXR file by the letter of the specification.

  Args:
    channels: {name: [H, W] of float16 or float32}.
    compression: 0 none, 1 RLE (of literals), 2 ZIPS, 3 ZIP.
    tile: Width and height, or None for scan lines.
    window: The data window; None: that of the arrays.
    more: Further attributes, (name, type, value).
  """
  channels = dict(sorted(channels.items()))
  (H, W), *_ = {c.shape for c in channels.values()}
  kinds = {np.dtype(np.float16): 1, np.dtype(np.float32): 2}
  _, above, *_ = window = window or (0, 0, W - 1, H - 1)
  window = struct.pack("<4i", *window)
  rows = b"".join(
    name.encode() + b"\0" + struct.pack("<iiii", kinds[c.dtype], 0, 1, 1)
    for name, c in channels.items()
  )
  attributes = [
    ("channels", "chlist", rows + b"\0"),
    ("compression", "compression", bytes((compression,))),
    ("dataWindow", "box2i", window),
    ("displayWindow", "box2i", window),
    ("lineOrder", "lineOrder", b"\0"),
    ("pixelAspectRatio", "float", struct.pack("<f", 1)),
    *more,
  ]
  if tile is not None:
    attributes.append(("tiles", "tiledesc", struct.pack("<IIB", *tile, 0)))
  head = b"v/1\1" + struct.pack("<I", 2 | 0x200 * (tile is not None))
  for name, kind, value in attributes:
    head += f"{name}\0{kind}\0".encode() + struct.pack("<i", len(value)) + value
  head += b"\0"
  across, down = tile or (W, 16 if compression == 3 else 1)
  chunks = []
  for top, left in itertools.product(range(0, H, down), range(0, W, across)):
    raw = b"".join(
      c[y, left : left + across].astype(c.dtype.newbyteorder("<")).tobytes()
      for y in range(top, min(top + down, H))
      for c in channels.values()
    )
    packed = _packed(raw, compression)
    place = (top + above,)
    if tile is not None:
      place = (left // across, top // down, 0, 0)
    chunks.append(
      struct.pack(f"<{len(place) + 1}i", *place, len(packed)) + packed
    )
  at, offsets = len(head) + 8 * len(chunks), []
  for part in chunks:
    offsets.append(at)
    at += len(part)
  return head + struct.pack(f"<{len(offsets)}Q", *offsets) + b"".join(chunks)


def _packed(raw, compression):
  """Packs a chunk of OpenEXR, unless that makes it longer."""
  if compression == 0:
    return raw
  values = raw[0::2] + raw[1::2]
  errors = bytes(values[:1]) + bytes(
    (b - a + 128) % 256 for a, b in itertools.pairwise(values)
  )
  if compression > 1:
    packed = zlib.compress(errors)
  else:
    runs = [(value, len(list(g))) for value, g in itertools.groupby(errors)]
    packed = b"".join(
      bytes((n - 1, v)) if n < 128 else bytes((255, v)) * n for v, n in runs
    )
  return packed if len(packed) < len(raw) else raw


def exr_pattern():
  """What `EXR_PIZ`, `EXR_B44A` (half) and `EXR_PXR24` show: `[21, 18, 3]`."""
  y, x = np.mgrid[0:21, 0:18]
  return np.stack([x // 3 % 4 / 2, y // 4 / 3, (x + y) // 9 * 0.75], axis=2)


# Made by OpenEXR 3.5's own library, packed by zlib and base85.
_PIZ = (
  b"c-"
  b"kw|H)LdDU|>kjNX*Mi%_#;lax#lc7|elUP7I6;5Won<?ieCL7$OYG`MCu}sl~;a`FSX8"
  b"kR(e=Vo73nW?o8uIYUx@g;6Gh00ROD0<j1Xr(_lv<Rn%SRF{*Pm+D`Xl3Iks0z07~vm!"
  b"OevA7^Lxg;pDBr~5OEhj&*gn<RDyTQIVxhOR?4`RG?YF-IYTbWTB0|$~7$V$R9Q%W+>j"
  b"3}urNM$H4Day=CXW#{^Ps{^3A~QEJJ(VGj5n+-!P|GSd2Mz@WS^!3(RVq-ZpN{r((8E1"
  b"Y^)r|dT8{#Ce`kg8SQ1?s3fn}I?EjB~p$HDL2^gGE4>ft+82=*vrtOKjzwCjud60UH$i"
  b"lzeztwjN@As;A`gii@@>taxEAems-"
  b"|MFQyZ>hXTRpDuyBqCJ{=0r@{_Ve$|E}lMe!6YPH2-"
  b"h=gMZiG{~dpjPsTD}qLNF4JEL3u{SOIhhyMRpVYyi!f8c;`(?9VK3)GHIi%bQgzKiE3w"
  b"`LRwhJO9ZD4K0+cj1B3>esKBv@V|a6J2<~HT?P&me4g{emggGtzW-"
  b"_V}@B@kvbPl4VMg$iaaYH0AQwT)&"
)
_PXR24 = (
  b"c-"
  b"kw|H)LdDU|>kjNX*Mi%_#;lax#lc7|elUP7EL!5MYF2cMOpr3=xLp{M>?~)Z*gI{5%vk"
  b"NRl-ru_Q4(GcP5-"
  b"oFOT{!YGqLfB^vnfmj5HQ!<MSauO>Es>{jDOZ6{GNi9NRft^s0S&^FKSX_{rToRO6l9|"
  b"ttmXn`Y!oUL7-"
  b"C$pwT$Gxc2Ql6`HLnDyt;{Hmfdk13WF_I5DJ2<bMwC<*q%stj6lLb6Gw_1dC+2}1k(ry"
  b"Ap30EM2r=a|Bf`X1Ag+izd*vW+g8~n0z_UV*R2KInx!6M&Z30bI*Z!SwsXogt^OxU}S-"
  b"s0<otgFT!qnHM)2D2z^JAEne_u4_1<R4vIERP~wsmVPBZ@b%iO*`h=VW~$l7pePm1D!k"
  b"EgRCN2r#h;3Ki7f%W~pSP2gC_k(2ZH&yC}psR;}VndazUX;^niTJxCGNl-|JfgQ6s-"
  b"GQBthu0vDVHFS4jpU9shXf*f6`R(4WDwfj*mw|#7}s%#Cfs`JaHEm=%^_w3wmfz|A@M`"
  b"984VMf8yz1y)$koz^jfRUL!*tOQjdjUb%x|^0FGCxZv"
)
_B44A = (
  b"c-"
  b"kw|H)LdDU|>kjNX*Mi%_#;lax#lc7|elUP7I6;5Won<?ieCL7$OYG`MCu}sl~;a`FSX8"
  b"kR*FbVo73nW?o8uIYUx@g;6Gh00ROD0<j1Xr(_lv<Rn%SRF{*Pm+D`Xl3Iks0z07~vm!"
  b"OevA7^Lxg;pDBr~5OEhj&*gn<RDyTQIVxhOR?4`RG?YF-IYTbWTB0|$~7$V$R9Q%W+>j"
  b"3}urNM$H4Day=CXW#{^Ps{^3A~QEJJ(VGj5n<AEVDL6D{AplN<4|Y<A=@VYga!un8w%f"
  b"`0t&krq+rY@4g(;MN1+)eK)Sv|V1a!gD@jnik3o#Xq=}a_#mycHmpBv-"
  b"H2fi~;y{BCNY0`OSq0RJ%f2RH6@Lza9F2muhN7UIsAvxZ3fdcrg7&ROL5Pr4_<Y`G2h@"
  b"j$c?^K$9*|=oOq4K(s2tTwoK^r&Hb2e"
)
EXR_PIZ, EXR_PXR24, EXR_B44A = (
  zlib.decompress(base64.b85decode(text)) for text in (_PIZ, _PXR24, _B44A)
)


# --- AVIF, JPEG XL, JPEG 2000 ------------------------------------------------


def jxl(width, height, rest=b""):
  """The beginning of a JPEG XL stream: its size, and nothing said beside."""
  number = (0b11 | (height - 1) << 2) << 1  # Not by eights; of 30 bits.
  number |= (0b11 | (width - 1) << 2) << 36  # No ratio of the sides.
  number |= 1 << 68  # All as usual.
  return b"\xff\x0a" + number.to_bytes(9, "little") + rest


def avif_that_claims(width, height):
  """An AVIF of 12 x 10 pixels whose container says another size."""
  data = imagecodecs.avif_encode(noise(10, 12, 3), level=90)
  size = struct.pack(">II", 12, 10)
  assert data.count(size) == 1
  return data.replace(size, struct.pack(">II", width, height))


def jp2_that_claims(width, height, tile=None):
  """A JPEG 2000 stream of 12 x 10 pixels that says another size."""
  data = imagecodecs.jpeg2k_encode(noise(10, 12, 3), level=0, codecformat="j2k")
  sides = struct.pack(">4I", width, height, 0, 0)
  tile = struct.pack(">II", *((tile, tile) if tile else (width, height)))
  return data[:8] + sides + tile + data[32:]


# --- sound samples ----------------------------------------------------------


def saved(picture, format_, **options):
  """Returns the bytes of what Pillow saves."""
  buffer = io.BytesIO()
  picture.save(buffer, format_, **options)
  return buffer.getvalue()


def samples():
  """Returns small sound files of every kind: {format: {name: bytes}}."""
  rgb = PilImage.fromarray(noise(12, 10, 3))
  rgba = PilImage.fromarray(noise(12, 10, 4))
  deep = noise(12, 10, 4, dtype=np.uint16)
  exif = b"Exif\0\0" + exif_block(6, thumbnail=True)
  text = PngImagePlugin.PngInfo()
  text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
  words = {"icc_profile": SRGB, "exif": exif, "xmp": XMP}
  return {
    "png": {
      "rgb": saved(rgb, "PNG", exif=exif),
      "palette, metadata": saved(
        rgb.convert("P"), "PNG", pnginfo=text, icc_profile=SRGB, dpi=(72, 72)
      ),
      "bilevel": saved(rgb.convert("1"), "PNG"),
      "16 bits, interlaced": make_png(
        deep[..., :3],
        interlace=True,
        extra=[(b"eXIf", exif_block(3)), (b"tRNS", bytes(6))],
      ),
      "alpha, interlaced": make_png(noise(12, 10, 4), interlace=True),
      "16 bits, alpha": make_png(deep),
      "colours, texts": make_png(
        noise(7, 5, 3),
        extra=[
          (b"gAMA", struct.pack(">I", 100_000)),
          (b"cHRM", struct.pack(">8I", *range(30_000, 38_000, 1000))),
          (b"tEXt", b"parameters\0a cat"),
          (b"zTXt", b"Comment\0\0" + zlib.compress(b"of a cat")),
          (b"iTXt", b"Author\0\1\0\0\0" + zlib.compress(b"J\xc3\xb6rg")),
        ],
      ),
      "one frame": saved(rgb, "PNG", save_all=True, append_images=[]),
    },
    "jpeg": {
      "exif": saved(rgb, "JPEG", exif=exif, quality=80),
      "metadata": saved(rgb.resize((40, 24)), "JPEG", dpi=(72, 72), **words),
      "grey": saved(rgb.convert("L"), "JPEG"),
      "motion": saved(
        rgb, "JPEG", xmp=packets()["panorama"], comment=b"of a cat"
      ),
      "progressive": saved(rgb.resize((40, 24)), "JPEG", progressive=True),
      "restarts": saved(
        rgb.resize((40, 24)), "JPEG", restart_marker_blocks=2, subsampling=0
      ),
      "cmyk": saved(rgb.convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
      "two pictures": saved(
        rgb, "MPO", save_all=True, append_images=[rgba.convert("RGB")]
      ),
      "lossless": imagecodecs.jpeg8_encode(noise(9, 9), lossless=True),
    },
    "gif": {
      "palette": saved(rgb, "GIF", comment=b"of a gif"),
      "transparent": saved(rgb.convert("P"), "GIF", transparency=3),
      "interlaced": saved(rgb.convert("L"), "GIF", interlace=True),
      "part": gif((9, 7), [((2, 1, 4, 1), 2, b"\x44\x02\x05")]),
    },
    "webp": {
      "lossy": saved(rgb, "WEBP", exif=exif),
      "metadata": saved(rgba, "WEBP", **words),
      "lossless": saved(rgba, "WEBP", lossless=True),
      "one frame": webp(
        extended_chunk(16, 14, 2),
        riff(b"ANIM", bytes(6)),
        frame_chunk((2, 4, 8, 8), lossless_chunk(8, 8)),
      ),
    },
    "bmp": {
      "rgb": saved(rgb, "BMP"),
      "palette": saved(rgb.convert("P"), "BMP"),
      "bilevel": saved(rgb.convert("1"), "BMP"),
      "alpha": saved(rgba, "BMP"),
      "4 bits": bmp(5, 3, 4, 0, noise(12).tobytes()),
      "16 bits": bmp(5, 3, 16, 0, noise(36).tobytes(), palette=b""),
      "RLE8": bmp(5, 3, 8, 1, b"\5\7\0\0\2\1\0\3abc\0\0\0\5\1\0\1"),
      "RLE4": bmp(5, 2, 4, 2, b"\5\x7a\0\0\0\3\x12\x30\2\4\0\1"),
    },
    "tiff": _tiffs(rgb, rgba, deep, exif),
    "tga": _tgas(rgb, rgba),
    "pnm": {
      "bits": saved(rgb.convert("1"), "PPM"),
      "grey": saved(rgb.convert("L"), "PPM"),
      "RGB": saved(rgb, "PPM"),
      "16 bits": saved(PilImage.fromarray(deep[..., 0]), "PPM"),
      "floats": saved(rgb.convert("F"), "PPM"),
      "text": b"P3 # of a camera\n2 1\n9\n1 2 3\n4 5 9\n",
      "alpha": b"P7\nWIDTH 5\nHEIGHT 3\nDEPTH 4\nMAXVAL 1023\nTUPLTYPE "
      b"RGB_ALPHA\nENDHDR\n" + (noise(120) & 3).tobytes(),
    },
    "qoi": {
      "RGB": imagecodecs.qoi_encode(noise(12, 10, 3)),
      "alpha": imagecodecs.qoi_encode(noise(12, 10, 4) // 99),
    },
    "exr": _exrs(),
    "avif": _avifs(rgb, rgba, exif),
    "jxl": {
      "RGB": imagecodecs.jpegxl_encode(noise(12, 10, 3), lossless=True),
      "lossy": imagecodecs.jpegxl_encode(noise(30, 20, 4), distance=1.0),
      "16 bits": imagecodecs.jpegxl_encode(deep, lossless=True),
      "10 bits": imagecodecs.jpegxl_encode(
        deep[..., :1] & 1023, lossless=True, bitspersample=10
      ),
      "floats": imagecodecs.jpegxl_encode(
        (deep / 65535).astype(np.float32), lossless=True
      ),
      "boxes": _written(".jxl", rgb, exif=exif[6:], xmp=XMP),
    },
    "jp2": {
      "RGB": saved(rgb, "JPEG2000"),
      "alpha, tiles": saved(rgba, "JPEG2000", tile_size=(8, 8)),
      "layers": saved(
        rgb.resize((40, 24)),
        "JPEG2000",
        irreversible=True,
        quality_layers=[20, 5],
        codeblock_size=(16, 16),
        precinct_size=(32, 32),
      ),
      "stream of 12 bits": imagecodecs.jpeg2k_encode(
        deep[..., :3] >> 4, level=0, codecformat="j2k", bitspersample=12
      ),
      "metadata": _written(
        ".jp2", rgba, exif=exif[6:], xmp=XMP, icc_profile=SRGB, dpi=(72, 300)
      ),
    },
  }


def _written(suffix, picture, **info):
  """Returns what this package itself writes."""
  samples = np.asarray(picture)
  image = split(samples)
  image = Image(image.pixels, image.alpha, Metadata(**info))
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / f"a{suffix}"
    write_image(file, image, lossless=True)
    return file.read_bytes()


def _avifs(rgb, rgba, exif):
  deep = noise(12, 10, 4, dtype=np.uint16)
  return {
    "RGB": saved(rgb, "AVIF", quality=90),
    "metadata": saved(rgba, "AVIF", exif=exif, icc_profile=SRGB, xmp=XMP),
    "grey of 10 bits": imagecodecs.avif_encode(
      deep[..., 0] >> 6, level=100, bitspersample=10
    ),
    "12 bits": imagecodecs.avif_encode(
      deep >> 4, level=100, bitspersample=12, speed=8
    ),
    "written": _written(".avif", rgba, exif=exif[6:], xmp=XMP),
  }


def _tgas(rgb, rgba):
  return {
    "RGB": saved(rgb, "TGA"),
    "runs, alpha": saved(
      rgba.resize((40, 24), 0), "TGA", compression="tga_rle", orientation=1
    ),
    "palette": saved(rgb.convert("P"), "TGA"),
    "grey": saved(rgb.convert("L"), "TGA"),
    "16 bits": tga(5, 3, 16, 2, noise(30).tobytes(), flags=1),
    "small palette": tga(
      5, 2, 8, 9, b"\x84\0\2\1\0\1\x81\1", palette=bytes(range(6)), flags=16
    ),
  }


def _exrs():
  planes = dict(zip("RGBA", noise(4, 20, 9) / 255, strict=True))
  half = {n: c.astype(np.float16) for n, c in planes.items()}
  single = {n: c.astype(np.float32) for n, c in planes.items()}
  flat = {"Y": np.full((17, 33), 0.25, np.float16)}
  return {
    "none": exr(half),
    "RLE": exr(flat, 1),
    "ZIPS, float": exr(single, 2),
    "ZIP": exr({**half, "Z": single["R"]}, 3),
    "tiles": exr(half, 3, tile=(4, 8)),
    "PIZ": EXR_PIZ,
    "PXR24": EXR_PXR24,
    "B44A": EXR_B44A,
  }


def several():
  """Returns small sound files of several pictures: {format: {name: bytes}}."""
  patches = [noise(12, 10, 4), noise(5, 6, 4, seed=1), noise(3, 9, 4, seed=2)]
  places = [(0, 0, 10, 12), (2, 4, 6, 5), (1, 7, 9, 3)]
  kinds = [(1, 0), (2, 1), (0, 1)]
  deep = [noise(12, 10, 3, dtype=np.uint16, seed=s) for s in range(3)]
  pages = io.BytesIO()
  with tifffile.TiffWriter(pages) as tiff:
    tiff.write(deep[0], photometric="rgb", compression="zlib", metadata=None)
    tiff.write(patches[1][..., 0], subfiletype=1, metadata=None)
    tiff.write(patches[1][..., 0], rowsperstrip=2, metadata=None)
    tiff.write(
      *(patches[2],), photometric="rgb", extrasamples=[2], metadata=None
    )
  palette = noise(256, 3, seed=5).tobytes()
  return {
    "gif": {
      "parts": animated_gif(
        (10, 12),
        [
          gif_frame(
            patch[..., 0],
            place[:2],
            palette=palette if clear else None,
            dispose=kind,
            clear=clear,
            delay=7,
          )
          for patch, place, kind, clear in zip(
            patches, places, (1, 2, 3), (None, 3, 4), strict=True
          )
        ],
        palette=palette,
        times=0,
      ),
      "Pillow's": saved(
        PilImage.fromarray(patches[0][..., :3]),
        "GIF",
        save_all=True,
        append_images=[
          PilImage.fromarray(noise(12, 10, 3, seed=s)) for s in (8, 9)
        ],
        duration=[30, 40, 50],
      ),
    },
    "png": {
      "parts": animated_png(patches, places, kinds),
      "16 bits, a picture before": animated_png(
        deep, places[:1] * 3, [(0, 0)] * 3, poster=True
      ),
    },
    "webp": {
      "parts": webp(
        extended_chunk(10, 12, 2 + 16),
        riff(b"ANIM", bytes(6)),
        *(
          frame_chunk(
            (place[0] // 2 * 2, place[1] // 2 * 2, *place[2:]),
            webp_chunks(patch, lossless=lossless),
            flags=flags,
          )
          for patch, place, lossless, flags in zip(
            patches,
            [places[0], places[1], (0, 6, 9, 3)],
            (0, 1, 1),
            (0, 1, 2),
            strict=True,
          )
        ),
      ),
      "Pillow's": saved(
        PilImage.fromarray(patches[0]),
        "WEBP",
        save_all=True,
        append_images=[
          PilImage.fromarray(noise(12, 10, 4, seed=s)) for s in (8, 9)
        ],
        exif=b"Exif\0\0" + exif_block(6),
        icc_profile=SRGB,
        lossless=True,
      ),
    },
    "tiff": {"pages": pages.getvalue()},
  }


def animated_png(samples, places, kinds, *, poster=False, ratios=None):
  """An APNG of patches `[H, W, C]` at (left, top, width, height); thrice.

  Args:
    samples: Patches; the first is as large as the canvas.
    places: Theirs.
    kinds: Disposal and blending of each.
    poster: Whether the picture for other programs is not a frame.
    ratios: Durations, two numbers each.
  """

  def packed(data):
    at, parts = 8, []
    while at < len(data):
      length, kind = struct.unpack_from(">I4s", data, at)
      parts += [data[at + 8 : at + 8 + length]] if kind == b"IDAT" else []
      at += 12 + length
    return b"".join(parts)

  number = 0
  whole = make_png(samples[0])
  chunks = [chunk(b"acTL", struct.pack(">II", len(places), 3))]
  if poster:
    chunks.append(chunk(b"IDAT", packed(whole)))
  ratios = ratios or [(1, 10)] * len(places)
  for (left, top, width, height), patch, kind, ratio in zip(
    places, samples, kinds, ratios, strict=True
  ):
    control = number, width, height, left, top, *ratio, *kind
    chunks.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", *control)))
    number += 1
    data = packed(make_png(patch))
    if number == 1 and not poster:
      chunks.append(chunk(b"IDAT", data))
      continue
    for part in (data[: len(data) // 2], data[len(data) // 2 :]):
      chunks.append(chunk(b"fdAT", struct.pack(">I", number) + part))
      number += 1
  # The signature and IHDR.
  return b"".join([whole[:33], *chunks, chunk(b"IEND", b"")])


def webp_chunks(samples, **options):
  """The chunks of a WebP's pixels."""
  data = saved(PilImage.fromarray(samples), "WEBP", **options)
  at, chunks = 12, []
  while at < len(data):
    kind, size = struct.unpack_from("<4sI", data, at)
    end = at + 8 + size + size % 2
    chunks += [] if kind == b"VP8X" else [data[at:end]]
    at = end
  return b"".join(chunks)


def _tiffs(rgb, rgba, deep, exif):
  def written(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()

  colour = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
  bilevel = rgb.resize((40, 24)).convert("1")
  files = {
    "exif": saved(rgb, "TIFF", exif=exif, icc_profile=SRGB, dpi=(72, 72)),
    "LZW": saved(rgb, "TIFF", compression="tiff_lzw"),
    "palette": saved(rgb.convert("P"), "TIFF", compression="packbits"),
    "JPEG": saved(rgb, "TIFF", compression="jpeg"),
    "CMYK": saved(rgb.convert("CMYK"), "TIFF", icc_profile=cmyk_profile()),
    "Lab": saved(PilImage.new("LAB", (5, 4), (99, 128, 128)), "TIFF"),
    "planes, strips": written(
      np.moveaxis(deep, 2, 0),
      planarconfig="separate",
      rowsperstrip=5,
      compression="zlib",
      predictor=True,
      **colour,
    ),
    "tiles, big": written(
      deep, tile=(16, 16), bigtiff=True, byteorder=">", **colour
    ),
    "premultiplied": written(
      deep, photometric="rgb", extrasamples=["assocalpha"]
    ),
    "palette of 8 bits": grey_tiff(
      5,
      4,
      noise(20).tobytes(),
      tag_262=(3, 3),
      tag_320=(3, noise(768).tolist()),
    ),
    "bands": written(
      noise(12, 10, 6), photometric="rgb", extrasamples=[0, 2, 0]
    ),
    "map": written(
      noise(12, 10, 3),
      photometric="rgb",
      extratags=[
        (33550, 12, 3, (2.0, 2.0, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, 5.0, 6.0, 0.0), True),
        (34735, 3, 8, (1, 1, 0, 1, 1025, 0, 1, 2), True),
        (42113, 2, 2, b"0\0", True),
      ],
    ),
    "group 3": saved(bilevel, "TIFF", compression="group3"),
    "group 4": saved(bilevel, "TIFF", compression="group4"),
    "floats": written(
      (deep[..., :3] / 65535).astype(np.float32),
      photometric="rgb",
      compression="zlib",
      predictor=True,
    ),
    "Huffman": saved(bilevel, "TIFF", compression="tiff_ccitt"),
  }
  for name in ("zstd", "lzma", "webp"):
    pixels = noise(16, 16, 3)
    files[name] = written(pixels, photometric="rgb", compression=name)
  return files
