"""Damages image files of every kind, and holds their reader to `mutation`.

  python -m tests.fuzz_images --count 12000 --seed 1

Kinds: those of `image_builders.samples`, with EXIF and profiles in them. What
is read must be a picture of a size that its bytes make believable; of a file
that was only cut off, or cut off and closed again, it must be the same one.
Written at another size, with all that its file held, it must be a sound file.
Those of several frames or pages are read to the last; of one that was cut off,
the first ones may be read, if the last of them says so.

XMP packets are damaged by themselves, too: what is made of one is XML.
"""

import dataclasses
import functools
import re
import struct
import sys
import warnings
import zlib
from xml.parsers import expat

import numpy as np

from esrgan_jax import images
from esrgan_jax.images import xmp
from tests import image_builders as build
from tests import mutation

_SIZES = (0, 1, 2, 7, 8, 9, 16, 255, 256, 4000, 16383, 16384, 65535, 2**24)
_SIZES += (2**28 - 1, 2**31 - 1, 2**31, 2**32 - 1)
_SUFFIXES = {"jpeg": ".jpg", "tiff": ".tif"}


def targets():
  """Returns every kind of file with its reader."""
  edits = {
    "png": (_png_chunks, _png_header, _png_pixels, _tiff_entry),
    "jpeg": (_jpeg_segments, _jpeg_frame, _jpeg_closed, _tiff_entry),
    "gif": (_gif_field, _gif_blocks),
    "webp": (_webp_chunks, _webp_size, _tiff_entry),
    "bmp": (_bmp_field,),
    "tiff": (_tiff_entry, _tiff_entry, _tiff_pointer),
    "tga": (_tga_field,),
    "pnm": (_pnm_number,),
    "qoi": (_qoi_field,),
    "exr": (_exr_attribute, _exr_chunk),
    "avif": (_box_field, _box_field, _boxes, _tiff_entry),
    "jxl": (_box_field, _boxes, _jxl_header),
    "jp2": (_box_field, _boxes, _jp2_segment, _jp2_segment),
  }

  def target(kind, files, name, read):
    return mutation.Target(
      name,
      list(files.values()),
      functools.partial(read, kind, list(files.values())),
      edits[kind],
      (images.ImageError,),
    )

  return (
    [
      target(kind, files, kind, _read)
      for kind, files in build.samples().items()
    ]
    + [
      target(kind, files, f"{kind} frames", _read_frames)
      for kind, files in build.several().items()
    ]
    + [
      mutation.Target(
        "xmp", list(build.packets().values()), _fit_packet, (_xml_pieces,), ()
      )
    ]
  )


def _read_frames(kind, samples, folder, data):
  path = folder / f"frames{_SUFFIXES.get(kind, f'.{kind}')}"
  path.write_bytes(data)
  count = images.count_frames(path)
  assert count is None or 0 < count <= len(data)
  cut = [sample for sample in samples if _is_cut(sample, data)]
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      frames = images.read_frames(path)
      total = 0
      pictures = []
      for picture in frames:
        height, width, _ = picture.pixels.shape
        total += height * width
        assert total <= 2**24 + 2**15 * len(data) * (1 + (kind == "tiff"))
        if cut:
          pictures.append(picture)
  except images.ImageError as error:
    if "memory" in str(error):
      raise MemoryError from error
    raise
  for sample in samples:
    if _is_cut(sample, data):
      whole = _sound(sample, folder, images.read_frames)
      # Fewer, if any, and then it is said.
      assert len(pictures) == len(whole) or pictures[-1].notes
      for picture, other in zip(pictures, whole, strict=False):
        np.testing.assert_array_equal(
          build.joined(picture), build.joined(other)
        )


def _read(kind, samples, folder, data):
  path = folder / f"image{_SUFFIXES.get(kind, f'.{kind}')}"
  path.write_bytes(data)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      image = images.read_image(path)
  except images.ImageError as error:
    if "memory" in str(error):
      raise MemoryError from error
    raise
  height, width, _ = image.pixels.shape
  assert height * width <= 2**24 + 2**15 * len(data)
  for sample in samples:
    if _is_cut(sample, data):
      np.testing.assert_array_equal(
        build.joined(image), build.joined(_sound(sample, folder))
      )
  number = zlib.crc32(data)
  if number % 2 and image.pixels.size < 2**14:
    _write(image, folder, number)


def _write(image, folder, number):
  """Writes a picture of twice the size, and reads it back."""
  suffix = (".png", ".tif", ".jpg", ".webp", ".bmp")[number % 5]
  larger = [
    None if array is None else array.repeat(2, 0).repeat(2, 1)
    for array in (image.pixels, image.alpha, image.extra)
  ]
  metadata = dataclasses.replace(image.metadata, record="how it was made")
  if suffix in (".jpg", ".bmp"):
    larger[1] = None
  image = images.Image(*larger[:2], metadata, larger[2])
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    images.write_image(folder / f"out{suffix}", image)
    written = images.read_image(folder / f"out{suffix}")
  assert not written.notes, written.notes
  assert written.pixels.shape[:2] == image.pixels.shape[:2]
  if suffix in (".png", ".tif") and image.pixels.dtype != np.float32:
    np.testing.assert_array_equal(written.pixels, image.pixels)


def _fit_packet(folder, data):
  result = xmp.fit(data, (3, 2), (9, 4))
  assert (result.packet is None) <= bool(result.notes or not data)
  if result.packet is not None:
    expat.ParserCreate("UTF-8").Parse(result.packet, True)
    again = xmp.fit(result.packet, (9, 4), (9, 4))
    assert again.packet is not None
    assert again.notes == ()


def _xml_pieces(rng, data):
  """Shuffles tags, or changes a name, a number or a mark."""
  pieces = re.split(rb"(?=<)|(?<=>)", data)
  if rng.random() < 0.5:
    return b"".join(_shuffled(rng, pieces))
  i = rng.randrange(len(pieces))
  words = (b"'", b'"', b"<", b"&amp;", b"&#0;", b"xmlns:a='b'", b"99999999999")
  words += (b"<tiff:ImageWidth>", b"</tiff:ImageWidth>", b"<hdrgm:a/>", b"<!--")
  words += (b"<Container:a>", b" GPano:FullPanoWidthPixels='7'", b"\xff", b"")
  at = rng.randint(0, len(pieces[i]))
  pieces[i] = pieces[i][:at] + rng.choice(words) + pieces[i][at:]
  return b"".join(pieces)


def _is_cut(sample, data):
  """Tells whether data are the beginning of a sample, maybe closed again."""
  if len(data) >= len(sample):
    return False
  return sample.startswith((data, data.removesuffix(b"\xff\xd9")))


def _sound(sample, folder, read=images.read_image):
  path = folder / "sound"
  path.write_bytes(sample)
  return read(path)


def _set(data, at, form, value):
  """Puts a number into a file; of one that is too large, the lower bits."""
  size = struct.calcsize(form)
  if not 0 <= at <= len(data) - size:
    return data
  raw = struct.pack(form, value % 256**size)
  return data[:at] + raw + data[at + size :]


def _shuffled(rng, pieces):
  """Drops, doubles, repeats, exchanges or moves pieces."""
  pieces = list(pieces)
  if not pieces:
    return pieces
  i, j = rng.randrange(len(pieces)), rng.randrange(len(pieces))
  how = rng.randrange(5)
  if how == 0:
    del pieces[i]
  elif how == 1:
    pieces.insert(j, pieces[i])
  elif how == 2:
    pieces[i:i] = [pieces[i]] * rng.choice((2, 30, 2000))
  elif how == 3:
    pieces[i], pieces[j] = pieces[j], pieces[i]
  else:
    pieces.insert(j, pieces.pop(i))
  total, kept = 0, []
  for piece in pieces:
    total += len(piece)
    if total < 2**18:
      kept.append(piece)
  return kept


# --- PNG --------------------------------------------------------------------


def chunks_of(data):
  """Cuts a PNG into (kind, body), as far as it goes."""
  at, chunks = 8, []
  while at + 12 <= len(data):
    length, kind = struct.unpack_from(">I4s", data, at)
    if at + 12 + length > len(data):
      break
    chunks.append((kind, data[at + 8 : at + 8 + length]))
    at += 12 + length
  return chunks


def with_chunks(data, chunks):
  """Returns a PNG of other chunks, their checksums right."""
  return data[:8] + b"".join(build.chunk(*c) for c in chunks)


def _png_chunks(rng, data):
  chunks = chunks_of(data)
  if not chunks:
    return data
  how = rng.randrange(4)
  if how == 0:
    raw = [build.chunk(*c) for c in chunks]
    return data[:8] + b"".join(_shuffled(rng, raw))
  i = rng.randrange(len(chunks))
  kind, body = chunks[i]
  if how == 1:  # Its checksum is right again.
    chunks[i] = kind, _damage_once(rng, body)
  elif how == 2:
    chunks.insert(i, rng.choice(_more_chunks()))
  else:
    kinds = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"fdAT")
    chunks[i] = rng.choice(kinds), body
  return with_chunks(data, chunks)


@functools.cache
def _more_chunks():
  bomb = zlib.compress(bytes(2**25))
  return (
    (b"iCCP", b"x\0\0" + bomb),
    (b"zTXt", b"x\0\0" + bomb),
    (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
    (b"eXIf", build.overlapping_exif(2000, 3)),
    (b"acTL", struct.pack(">II", 1, 0)),
    (b"acTL", struct.pack(">II", 2**31, 0)),
    (b"fcTL", bytes(26)),
    (b"pHYs", b"\xff" * 8 + b"\1"),
    (b"PLTE", bytes(769)),
    (b"tRNS", bytes(300)),
    (b"IDAT", b""),
    (b"tEXt", b"\x1b[31m\0\n"),
    (b"tEXt", b"Software\0\xe9\0\1"),
    (b"zTXt", b"parameters\0\0" + bomb),
    (b"zTXt", b"Raw profile type exif\0\0" + bomb),
    (b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(b"\nx\n4\n3c612f3e")),
    (b"iTXt", b"Author\0\0\0\0\0\xff"),
    (b"gAMA", b"\0\0\0\1"),
    (b"cHRM", bytes(32)),
    (b"cICP", b"\xff" * 4),
    (b"sRGB", b"\xff"),
  )


def _png_header(rng, data):
  chunks = chunks_of(data)
  if not chunks or len(chunks[0][1]) < 13:
    return data
  kind, body = chunks[0]
  if rng.random() < 0.6:
    body = _set(body, rng.choice((0, 4)), ">I", rng.choice(_SIZES))
  else:
    at, value = rng.randrange(8, 13), rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    body = _set(body, at, ">B", value)
  return with_chunks(data, [(kind, body), *chunks[1:]])


def _png_pixels(rng, data):
  """Packs other pixels, fewer mostly, soundly."""
  chunks = chunks_of(data)
  packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
  try:
    raw = zlib.decompressobj().decompress(packed, 2**20)
  except zlib.error:
    return data
  raw = rng.choice((raw[: rng.randint(0, len(raw))], raw * 2, bytes(2**20)))
  rest = [c for c in chunks if c[0] != b"IDAT"]
  rest[-1:-1] = [(b"IDAT", zlib.compress(raw))]
  return with_chunks(data, rest)


def _damage_once(rng, body):
  if not body:
    return bytes((rng.randrange(256),))
  at = rng.randrange(len(body))
  return rng.choice(
    (
      _set(body, at, ">B", rng.choice((0, 1, 127, 128, 255))),
      _set(body, at, rng.choice((">I", "<I", ">H")), rng.choice(_SIZES)),
      body[:at],
      body + body[:at],
    )
  )


# --- JPEG -------------------------------------------------------------------


def _segments(data):
  """Cuts a JPEG into its segments, those of scans with their data."""
  at, segments = 2, []
  while at + 4 <= len(data) and data[at] == 0xFF:
    marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
    end = min(at + 2 + max(length, 2), len(data))
    while marker == 0xDA and end + 1 < len(data):
      if data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8)):
        break
      end += 1
    segments.append(data[at:end])
    at = end
  return segments, data[at:]


def _jpeg_segments(rng, data):
  segments, tail = _segments(data)
  if not segments:
    return data
  how = rng.randrange(4)
  i = rng.randrange(len(segments))
  if how == 0:
    segments = _shuffled(rng, segments)
  elif how == 1:
    body = _damage_once(rng, segments[i][4:])
    length = struct.pack(">H", (len(body) + 2) % 65536)
    segments[i] = segments[i][:2] + length + body
  elif how == 2:
    segments.insert(i, rng.choice(_more_segments()))
  else:
    segments[i] = _damage_once(rng, segments[i])
  return data[:2] + b"".join(segments) + tail


@functools.cache
def _more_segments():
  exif = b"Exif\0\0" + build.overlapping_exif(2000, 3)
  return (
    b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif,
    b"\xff\xdd\0\4\0\1",
    b"\xff\xdd\0\4\0\0",
    b"\xff\xdc\0\4\x40\0",
    b"\xff\xd9",
    b"\xff\xd8",
    b"\xff\xd0",
    b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\2",
    b"\xff\xe2\0\x10ICC_PROFILE\0\1\2",
    b"\xff\xda\0\x08\1\1\0\1\x3f\0\0",
    b"\xff" * 1000,
    b"\xff\xfe\0\2" * 1000,
  )


def _jpeg_frame(rng, data):
  """Changes the frame's or a scan's header."""
  frames = [m for m in (0xC0, 0xC1, 0xC2, 0xC3) if data.find(bytes((255, m)))]
  marker = rng.choice([*frames, 0xDA])
  at = data.find(bytes((255, marker)), 2)
  if at < 0:
    return data
  how = rng.randrange(3)
  if how == 0:
    return _set(data, at + 1, ">B", rng.choice((*range(0xC0, 0xD0), 0xDA)))
  if how == 1:
    size = rng.choice([s for s in _SIZES if s < 65536])
    return _set(data, at + rng.choice((5, 7)), ">H", size)
  value = rng.choice((0, 1, 3, 4, 0x11, 0x14, 0x22, 0x41, 0x44, 63, 255))
  return _set(data, at + rng.randrange(2, 20), ">B", value)


def _jpeg_closed(rng, data):
  """Cuts it off, and closes it again."""
  return data[: rng.randint(2, max(2, len(data)))] + b"\xff\xd9"


# --- GIF, WebP, BMP ---------------------------------------------------------


def _gif_field(rng, data):
  """Changes a number of the canvas or a frame."""
  at = rng.choice((6, 8))
  if rng.random() < 0.5:
    frame = data.find(b",", 13)
    at = frame + rng.choice((1, 3, 5, 7))
  if rng.random() < 0.3:
    return _set(data, at + rng.randrange(6), "<B", rng.randrange(256))
  return _set(data, at, "<H", rng.choice(_SIZES))


def _gif_blocks(rng, data):
  """Puts blocks between others."""
  ends = [i for i in range(13, len(data)) if data[i] == 0] or [len(data)]
  at = rng.choice(ends) + 1
  more = (
    b"!\xfe\0" * 999,
    b"!\xf9\4\1\0\0\3\0",
    b"!\xfe" + b"\1x" * 9999 + b"\0",
    b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0",
    b"\0",
    b";",
  )
  return data[:at] + rng.choice(more) + data[at:]


def riff_chunks(data):
  at, chunks = 12, []
  while at + 8 <= len(data):
    kind, size = struct.unpack_from("<4sI", data, at)
    end = min(at + 8 + size + size % 2, len(data))
    chunks.append((kind, data[at + 8 : min(at + 8 + size, end)]))
    at = end
  return chunks


def _webp_chunks(rng, data):
  chunks = riff_chunks(data)
  if not chunks:
    return data
  i = rng.randrange(len(chunks))
  kind, body = chunks[i]
  how = rng.randrange(4)
  if how == 0:
    return build.webp(*_shuffled(rng, [build.riff(*c) for c in chunks]))
  if how == 1:
    chunks[i] = kind, _damage_once(rng, body)
  elif how == 2:
    kinds = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANMF", b"ICCP", b"XMP ")
    chunks[i] = rng.choice(kinds), body
  else:
    exif = b"EXIF", build.overlapping_exif(2000, 3)
    frame = b"ANMF", build.frame_chunk((0, 0, 8, 8), b"")[8:]
    chunks.insert(i, rng.choice((exif, frame, (b"VP8X", b""), (b"abcd", b""))))
  return build.webp(*(build.riff(*c) for c in chunks))


def _webp_size(rng, data):
  """Changes the canvas, the picture's own size, or a length."""
  place, form = rng.choice(
    ((b"VP8X", "<I"), (b"VP8 ", "<H"), (b"VP8L", "<I"), (b"RIFF", "<I"))
  )
  at = data.find(place)
  if at < 0:
    return data
  inner = {b"VP8X": (11, 12, 15), b"VP8 ": (14, 16), b"VP8L": (9,)}
  at += rng.choice((4, *inner.get(place, ())))
  value = rng.choice(_SIZES)
  return _set(data, at, form, value << 8 if place == b"VP8X" else value)


def _bmp_field(rng, data):
  at = rng.choice((10, 14, 18, 22, 26, 28, 30, 34, 46, 50, 54, 58, 62))
  if at in (26, 28) or rng.random() < 0.2:
    value = rng.choice((0, 1, 2, 3, 4, 8, 16, 24, 32, 40, 124))
    return _set(data, at, "<H", value)
  sizes = (*_SIZES, -1, -8, 12, 40, 52, 56, 64, 108, 124, len(data))
  return _set(data, at, "<I", rng.choice(sizes))


# --- TGA, PNM, QOI, OpenEXR -------------------------------------------------


def _tga_field(rng, data):
  at = rng.choice((0, 1, 2, 3, 5, 7, 12, 14, 16, 17))
  if at in (3, 5, 12, 14):
    return _set(data, at, "<H", rng.choice(_SIZES))
  values = (0, 1, 2, 3, 8, 9, 10, 11, 15, 16, 17, 24, 32, 40, 48, 255)
  return _set(data, at, "<B", rng.choice(values))


def _pnm_number(rng, data):
  """Changes a number of the header, or of the text."""
  words = list(re.finditer(rb"\d+", data[:200]))
  if not words:
    return data
  word = rng.choice(words)
  more = (b"", b"-1", b"nan", b"1e9", b"#", b"99999999999999999999", b"65535")
  value = rng.choice((*(b"%d" % size for size in _SIZES), *more))
  return data[: word.start()] + value + data[word.end() :]


def _qoi_field(rng, data):
  if rng.random() < 0.3:
    return _set(data, rng.choice((12, 13)), ">B", rng.randrange(256))
  return _set(data, rng.choice((4, 8)), ">I", rng.choice(_SIZES))


def _exr_attribute(rng, data):
  """Changes a number of the header, or an attribute's length."""
  names = (b"channels", b"compression", b"dataWindow", b"tiles", b"v/1")
  name = rng.choice(names)
  at = data.find(name) + len(name)
  kind_end = data.find(b"\0", at + 1)
  if name == b"v/1":
    return _set(data, 4, "<I", 2 | rng.choice((0, 0x200, 0x800, 0x1000)))
  if name == b"compression":
    return _set(data, kind_end + 5, "<B", rng.randrange(12))
  at = kind_end + 1 + 4 * rng.randrange(6)
  return _set(data, at, "<I", rng.choice((*_SIZES, -1, -8, 3, 4)))


def _exr_chunk(rng, data):
  """Changes an offset, or a number in front of a chunk."""
  at = data.find(b"\0\0", data.find(b"pixelAspectRatio") + 60)
  at = max(at, 200) + rng.randrange(200)
  return _set(data, at, rng.choice(("<I", "<Q", "<B")), rng.choice(_SIZES))


# --- AVIF, JPEG XL, JPEG 2000 ------------------------------------------------

_BOXES = (
  b"ftyp meta pitm iloc iinf infe iref iprp ipco ipma ispe av1C colr pixi auxC"
  b" mdat idat irot jxlc jxlp brob Exif jp2h ihdr cdef res  resd uuid jp2c"
).split()


def _box_field(rng, data):
  """Changes a number in a box, or its length."""
  found = [name for name in _BOXES if name in data]
  if not found:
    return data
  at = data.find(rng.choice(found)) + rng.choice((-4, 4, 6, 8, 10, 12, 14, 16))
  sizes = (*_SIZES, 1, 2, 3, 8, len(data))
  form = rng.choice((">I", ">H", ">B", ">Q"))
  return _set(data, max(at, 0), form, rng.choice(sizes))


def _boxes(rng, data):
  """Drops, doubles and moves the outer boxes."""
  at, found = 0, []
  while at + 8 <= len(data):
    (size,) = struct.unpack_from(">I", data, at)
    size = size if 8 <= size <= len(data) - at else len(data) - at
    found.append(data[at : at + size])
    at += size
  return b"".join(_shuffled(rng, found))


def _jxl_header(rng, data):
  """Changes bits behind the mark, where sizes and kinds are."""
  at = data.find(b"\xff\x0a") + 2 + rng.randrange(12)
  if at >= len(data):
    return data
  return _set(data, at, ">B", data[at] ^ 1 << rng.randrange(8))


def _jp2_segment(rng, data):
  """Changes a number of a codestream's header, or of a tile."""
  mark = rng.choice((b"\xff\x51", b"\xff\x51", b"\xff\x52", b"\xff\x90"))
  at = data.find(mark, max(0, data.find(b"\xff\x4f")))
  if at < 0:
    return data
  if mark == b"\xff\x51":
    return _set(data, at + rng.choice((6, 10, 14, 18, 22, 26, 30, 34, 38)),
                rng.choice((">I", ">H")), rng.choice(_SIZES))  # fmt: skip
  values = (0, 1, 2, 4, 8, 15, 16, 17, 32, 64, 0x11, 0x22, 127, 255)
  return _set(data, at + rng.randrange(2, 24), ">B", rng.choice(values))


# --- TIFF and EXIF ----------------------------------------------------------


def _structure(rng, data):
  """Finds a TIFF structure and its directory: (begin, order, big, at)."""
  begins = [
    i
    for mark in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    if (i := data.find(mark)) >= 0
  ]
  if not begins:
    return None
  begin = rng.choice(begins)
  order = "<" if data[begin] == 0x49 else ">"
  big = 43 in data[begin + 2 : begin + 4]
  at, form = (8, "Q") if big else (4, "I")
  if begin + at + 8 > len(data):
    return None
  (at,) = struct.unpack_from(order + form, data, begin + at)
  return begin, order, big, begin + at


def _repaired(data):
  """Makes a PNG's checksums right."""
  if data.startswith(b"\x89PNG") and (chunks := chunks_of(data)):
    return with_chunks(data, chunks)
  return data


def _tiff_entry(rng, data):
  """Changes a tag, its kind, its count or its value."""
  found = _structure(rng, data)
  if found is None:
    return data
  _, order, big, at = found
  head, size, count_form = (8, 20, "Q") if big else (2, 12, "H")
  if at + head > len(data):
    return data
  (count,) = struct.unpack_from(order + count_form, data, at)
  if rng.random() < 0.1:
    return _repaired(_set(data, at, order + count_form, rng.choice(_SIZES)))
  at += head + size * rng.randrange(min(count, 40) or 1)
  wide = order + ("Q" if big else "I")
  offset, form, values = rng.choice(
    (
      (0, order + "H", (254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284,
                        317, 322, 323, 338, 339, 34665, 34853, 40965)),
      (2, order + "H", (0, 1, 2, 3, 4, 5, 7, 12, 13, 16, 99)),
      (4, wide, (*_SIZES, 3, 4, 2**40, 2**63)),
      (8 if not big else 12, wide, (*_SIZES, 3, 4, 5, 32773, 50000, len(data))),
      (8 if not big else 12, order + "H", (0, 1, 2, 3, 4, 5, 7, 8, 16, 255)),
    )
  )  # fmt: skip
  return _repaired(_set(data, at + offset, form, rng.choice(values)))


def _tiff_pointer(rng, data):
  """Changes where the first or the next directory lies."""
  found = _structure(rng, data)
  if found is None:
    return data
  begin, order, big, at = found
  form = order + ("Q" if big else "I")
  if rng.random() < 0.5:
    return _set(data, begin + (8 if big else 4), form, rng.randrange(2**9))
  head, size = (8, 20) if big else (2, 12)
  if at + head > len(data):
    return data
  (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
  at += head + size * count
  return _set(data, at, form, rng.choice((at - begin, 8, begin, len(data))))


if __name__ == "__main__":
  sys.exit(mutation.main("tests.fuzz_images", targets))
