"""Damaged, cut and hostile image files: refused at once, by one line."""

import gc
import struct
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.images import Image, ImageError
from tests import fuzz_images, mutation
from tests import image_builders as build
from tests.image_builders import SEQUENTIAL, joined, noise

SIDE = 16384
MANY = 300_000
SAMPLES = {
  f"{kind}: {name}": data
  for kind, files in build.samples().items()
  for name, data in files.items()
}


def read(tmp_path, data, **options):
  file = tmp_path / "image"
  file.write_bytes(data)
  return images.read_image(file, **options)


def refused(tmp_path, data, **options):
  """Returns the one line that a file is refused by, within bounds."""
  with mutation.bounded(2, 500), pytest.raises(ImageError) as caught:
    read(tmp_path, data, **options)
  message = str(caught.value)
  assert "\n" not in message
  assert "memory" not in message
  return message


def test_no_file_and_no_image(tmp_path):
  cases = {
    "none.png": (None, "no such file"),
    "empty.png": (b"", "empty"),
    "text.png": (b"hello world", "not an image of a known format"),
    "photo.heic": (b"\0\0\0\x18ftypheic", "damaged or cut short"),
    "film.mp4": (b"\0\0\0\x18ftypisom", "a video; save its frames"),
  }
  for name, (data, message) in cases.items():
    file = tmp_path / name
    if data is not None:
      file.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
      images.read_image(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
  with pytest.raises(ImageError, match="not a file"):
    images.read_image(tmp_path)


def test_names_of_files_are_shown_as_text(tmp_path):
  file = tmp_path / "a\x1b[31m\n.png"
  file.write_bytes(b"no picture")
  with pytest.raises(ImageError, match=r"a\\x1b\[31m\\n\.png: not an image"):
    images.read_image(file)
  with pytest.raises(ImageError, match=r"a\\x1b\[31m\\n\.gif: suffix"):
    images.write_image(file.with_suffix(".gif"), Image(noise(2, 2, 3)))


# What a header claims.


def test_sizes_are_checked_before_the_pixels(tmp_path):
  bomb = build.png(60_000, 60_000, zlib.compress(bytes(10_000)), depth=1)
  assert "60000 x 60000 pixels are more than max_pixels" in refused(
    tmp_path, bomb
  )
  small = build.png(1, 1, zlib.compress(bytes(2)), depth=1)
  assert "two headers" in refused(tmp_path, small[:33] + bomb[8:])
  assert "0 x 5" in refused(tmp_path, build.png(0, 5, b""))
  for suffix in ("png", "jpg", "webp", "tif", "bmp"):
    file = tmp_path / f"a.{suffix}"
    images.write_image(file, Image(noise(10, 11, 3)), overwrite=True)
    with pytest.raises(ImageError, match=r"11 x 10 .*max_pixels=109"):
      images.read_image(file, max_pixels=109)
    assert images.read_image(file, max_pixels=110).pixels.shape == (10, 11, 3)
  for lossless in (True, False):
    for alpha in (None, noise(10, 11)):
      image = Image(noise(10, 11, 3), alpha)
      file = tmp_path / "a.webp"
      images.write_image(file, image, lossless=lossless, overwrite=True)
      with pytest.raises(ImageError, match="11 x 10"):
        images.read_image(file, max_pixels=109)


def tall(compression, rows, part, **more):
  """A grey TIFF of so many strips, which are all the same bytes."""
  tags = {"tag_278": (4, 1), "tag_273": (4, [16] * rows)}
  tags |= {"tag_279": (4, [len(part)] * rows), "tag_257": (4, rows)} | more
  return build.grey_tiff(16, rows, part, compression, **tags)


def colour_tiff(width, height, data, compression):
  tags = {"tag_258": (3, (8, 8, 8)), "tag_262": (3, 2), "tag_277": (3, 3)}
  return build.grey_tiff(width, height, data, compression, **tags)


BILEVEL = {"tag_258": (3, 1)}


def wide_exr(compression, **options):
  """An OpenEXR file that claims much more than it has."""
  plane = np.zeros((2, 2), np.float16)
  window = (0, 0, SIDE - 1, SIDE - 1)
  return build.exr({"Y": plane}, compression, window=window, **options)


CLAIMS = {
  "PNG": lambda: build.png(SIDE, SIDE, zlib.compress(bytes(99)), depth=1),
  "PNG, half": lambda: build.png(
    SIDE, SIDE, zlib.compress(bytes((SIDE // 8 + 1) * SIDE // 2), 9), depth=1
  ),
  "JPEG": lambda: build.jpeg(SIDE, SIDE, [(None, SEQUENTIAL, bytes(99))]),
  "JPEG, colour": lambda: build.jpeg(
    *(SIDE, SIDE, [(None, SEQUENTIAL, bytes(99))]), sampling=(34, 17, 17)
  ),
  "JPEG, progressive": lambda: build.jpeg(
    *(SIDE, SIDE, [(None, (0, 0, 0), b"\0"), (None, (1, 63, 0), b"\0")]),
    kind=0xC2,
  ),
  "JPEG, arithmetic": lambda: build.jpeg(
    SIDE, SIDE, [(None, SEQUENTIAL, bytes(99))], kind=0xC9
  ),
  "JPEG, lossless": lambda: build.jpeg(
    SIDE, SIDE, [(None, (1, 0, 0), bytes(99))], kind=0xC3
  ),
  "JPEG, size in the end": lambda: build.jpeg(
    SIDE, 0, [(None, SEQUENTIAL, bytes(99) + b"\xff\xdc\0\4\x40\0")]
  ),
  "JPEG, restarts": lambda: build.jpeg(
    SIDE, SIDE, [(None, SEQUENTIAL, b"\0\xff\xd0" * 2**19)], interval=4
  ),
  "GIF, frame": lambda: build.gif(
    (SIDE, SIDE), [((0, 0, SIDE, SIDE), 2, b"\x44\1")]
  ),
  "GIF, canvas": lambda: build.gif((SIDE, SIDE), [((0, 0, 1, 1), 2, b"D\1")]),
  "WebP": lambda: build.webp(build.lossless_chunk(SIDE - 1, SIDE - 1)),
  "WebP, canvas": lambda: build.webp(
    build.extended_chunk(13_000, 13_000, 2),
    build.frame_chunk((0, 0, 8, 8), build.lossless_chunk(8, 8)),
  ),
  "WebP, frame": lambda: build.webp(
    build.extended_chunk(16, 16, 2),
    build.frame_chunk((0, 0, 16, 16), build.lossless_chunk(SIDE, SIDE)),
  ),
  "BMP": lambda: build.bmp(SIDE, SIDE, 24, 0, bytes(99), palette=b""),
  "BMP, run lengths": lambda: build.bmp(SIDE, SIDE, 8, 1, b"\0\1"),
  "BMP, a long row": lambda: build.bmp(2**28 - 1, 1, 4, 2, b"\0\0\0\1"),
  "TGA": lambda: build.tga(SIDE, SIDE, 24, 2, bytes(99)),
  "TGA, runs": lambda: build.tga(SIDE, SIDE, 24, 10, b"\xff123" * 9),
  "PPM": lambda: b"P6 9999 9999 255\n" + bytes(99),
  "PPM, text": lambda: b"P3 9999 9999 255\n" + b"7 " * 99,
  "PFM": lambda: b"PF 9999 9999 -1\n" + bytes(99),
  "PAM": lambda: b"P7\nWIDTH 9999\nHEIGHT 9999\nDEPTH 4\nMAXVAL 255\nENDHDR\n",
  "QOI": lambda: (
    b"qoif"
    + struct.pack(">IIBB", SIDE, SIDE, 3, 0)
    + b"\xfd" * 999
    + bytes(7)
    + b"\1"
  ),
  **{
    f"OpenEXR, compression {number}": lambda number=number: wide_exr(number)
    for number in range(8)
  },
  "OpenEXR, tiles": lambda: wide_exr(3, tile=(64, 64)),
  "OpenEXR, small tiles": lambda: wide_exr(3, tile=(1, 1)),
  "OpenEXR, a large tile": lambda: wide_exr(3, tile=(65_535, 65_535)),
  "JPEG XL": lambda: build.jxl(SIDE, SIDE) + bytes(99),
  "AVIF": lambda: build.avif_that_claims(SIDE, SIDE),
  "AVIF, a larger stream": lambda: build.avif_that_claims(4, 2),
  "JPEG 2000": lambda: build.jp2_that_claims(SIDE, SIDE),
  "JPEG 2000, tiles": lambda: build.jp2_that_claims(SIDE, SIDE, tile=16),
  "BMP, upwards": lambda: build.bmp(2, -(2**31), 8, 0, bytes(8)),
  **{
    f"TIFF, compression {number}": lambda number=number: build.grey_tiff(
      SIDE, SIDE, bytes(99), number
    )
    for number in (1, 5, 7, 8, 32773, 34925, 50000)
  },
  **{
    f"TIFF, fax {number}": lambda number=number: build.grey_tiff(
      SIDE, SIDE, bytes(99), number, **BILEVEL
    )
    for number in (2, 3, 4)
  },
  "TIFF, zstd": lambda: build.grey_tiff(
    SIDE, SIDE, imagecodecs.zstd_encode(bytes(999)), 50000
  ),
  "TIFF, WebP": lambda: colour_tiff(
    SIDE - 1, SIDE - 1, build.webp(build.lossless_chunk(16, 16)), 50001
  ),
  "TIFF, larger WebP": lambda: colour_tiff(
    16, 16, build.webp(build.lossless_chunk(SIDE - 1, SIDE - 1)), 50001
  ),
  "TIFF, larger JPEG": lambda: build.grey_tiff(
    16, 16, build.flat_jpeg(800, 800), 7
  ),
  "TIFF, tiles": lambda: build.grey_tiff(
    *(16, 16, bytes(99)), tag_322=(4, 2**20), tag_323=(4, 2**20)
  ),
  "TIFF, samples": lambda: build.grey_tiff(
    4, 4, bytes(999), tag_277=(3, 65_535)
  ),
}


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_claims_are_held_against_the_bytes(tmp_path, name):
  message = refused(tmp_path, CLAIMS[name]())
  assert "cut short" in message or "max_pixels" in message


def test_what_is_flat_is_sound(tmp_path):
  # As few bytes as these pixels can have.
  row = 4096 // 8 + 1
  data = build.png(4096, 4096, zlib.compress(bytes(row * 4096), 9), depth=1)
  assert len(data) < 2200
  assert read(tmp_path, data).pixels.shape == (4096, 4096, 1)
  assert (read(tmp_path, build.flat_jpeg(800, 600)).pixels == 128).all()
  progressive = build.jpeg(
    *(64, 64, [(None, (0, 0, 0), bytes(8)), (None, (1, 63, 0), bytes(8))]),
    kind=0xC2,
  )
  assert (read(tmp_path, progressive).pixels == 128).all()
  webp = build.webp(build.lossless_chunk(2000, 2000))
  assert (read(tmp_path, webp).pixels == 0).all()
  fax = build.grey_tiff(800, 800, b"\xff" * 100, 4, **BILEVEL)
  assert read(tmp_path, fax).pixels.shape == (800, 800, 1)


def test_the_limit_of_claims_rises_with_max_pixels(tmp_path):
  data = build.webp(build.lossless_chunk(1000, 1000))
  message = refused(tmp_path, data, max_pixels=1_000_000)
  assert "claims 1000 x 1000 pixels in 17 bytes" in message
  enough = int(message.split()[-1])
  assert read(tmp_path, data, max_pixels=enough).pixels.shape[0] == 1000


def test_scans_are_weighed(tmp_path):
  first = (None, (0, 0, 0), bytes(2**9))
  more = [(None, (1, 63, 0), bytes(8))] * 200
  data = build.jpeg(512, 512, [first, *more], kind=0xC2)
  assert read(tmp_path, data).pixels.shape == (512, 512, 1)
  message = refused(tmp_path, data, max_pixels=512**2)
  assert "201 scans of 512 x 512 pixels" in message
  enough = int(message.split()[-1])
  assert read(tmp_path, data, max_pixels=enough).pixels.shape[0] == 512
  large = [(None, (0, 0, 0), bytes(2**19))]
  large += [(None, (1, 63, 0), bytes(240))] * 5000
  message = refused(tmp_path, build.jpeg(SIDE, SIDE, large, kind=0xC2))
  assert "5001 scans" in message


def test_files_are_as_long_as_their_pictures(tmp_path):
  # Holes take no place on a disk, and would be read as zeros.
  file = tmp_path / "a"
  heads = {"text": b"no picture", "sizes": build.png(2, 2, b"")[:33]}
  heads["too many for a picture of 7 x 5"] = build.bmp(7, 5, 8, 0, bytes(40))
  heads["9000000 x 9000000 pixels"] = build.png(9_000_000, 9_000_000, b"")
  for message, head in heads.items():
    with open(file, "wb") as opened:
      opened.write(head)
      opened.truncate(2**32)
    with mutation.bounded(2, 100), pytest.raises(ImageError) as caught:
      images.read_image(file)
    if " " in message:
      assert message in str(caught.value)


# Frames and pages.


def read_frames(tmp_path, data, **options):
  file = tmp_path / "image"
  file.write_bytes(data)
  return list(images.read_frames(file, **options))


def frames_refused(tmp_path, data, **options):
  """Returns the one line that a file of frames is refused by, within bounds."""
  with mutation.bounded(2, 500), pytest.raises(ImageError) as caught:
    read_frames(tmp_path, data, **options)
  message = str(caught.value)
  assert "\n" not in message
  assert "memory" not in message
  return message


DOT = build.gif_frame(np.zeros((1, 1), np.uint8))
WEBP_DOT = build.frame_chunk((0, 0, 1, 1), build.lossless_chunk(1, 1))


def apng(canvas, place, data, *, claimed=2, numbers=(1, 2)):
  """An APNG whose second frame is the one to look at."""
  control = struct.pack(">IIIIIHHBB", 0, *canvas, 0, 0, 1, 1, 0, 0)
  second = struct.pack(">IIIIIHHBB", numbers[0], *place, 1, 1, 0, 0)
  row = (canvas[0] + 7) // 8 + 1
  return b"".join(
    (
      build.png(*canvas, b"", depth=1)[:33],
      build.chunk(b"acTL", struct.pack(">II", claimed, 0)),
      build.chunk(b"fcTL", control),
      build.chunk(b"IDAT", zlib.compress(bytes(row * canvas[1]))),
      build.chunk(b"fcTL", second),
      build.chunk(b"fdAT", struct.pack(">I", numbers[1]) + data),
      build.chunk(b"IEND", b""),
    )
  )


def webp_frames(canvas, frames):
  return build.webp(
    build.extended_chunk(*canvas, 2), build.riff(b"ANIM", bytes(6)), *frames
  )


def pages(count, tags):
  """A TIFF of directories one after the other, of the same tags each."""
  entries = [
    (tag, kind, 1 if isinstance(value, int) else len(value), value)
    for tag, (kind, value) in sorted(tags.items())
  ]
  assert all(isinstance(value, int) for *_, value in entries)
  size = 2 + 12 * len(entries) + 4
  parts = [b"II*\0", struct.pack("<I", 2**16)]
  parts.append(bytes(2**16 - 8))
  for number in range(1, count + 1):
    parts.append(struct.pack("<H", len(entries)))
    parts += [struct.pack("<HHII", *entry) for entry in entries]
    following = 2**16 + number * size if number < count else 0
    parts.append(struct.pack("<I", following))
  return b"".join(parts)


PAGE = {256: (4, 256), 257: (4, 255), 258: (3, 8), 259: (3, 1), 262: (3, 1)}
PAGE |= {273: (4, 8), 278: (4, 255), 279: (4, 65_280)}
FRAMES = {
  "GIF, canvas": (
    lambda: build.animated_gif((SIDE, SIDE), [DOT] * 2),
    "claims 16384 x 16384 pixels",
  ),
  "GIF, canvas by a frame": (
    lambda: build.animated_gif(
      (9, 9), [DOT, build.gif_frame(np.zeros((1, 1), np.uint8), (60_000,) * 2)]
    ),
    "60001 x 60001 pixels are more than max_pixels",
  ),
  "GIF, many frames": (
    lambda: build.animated_gif((4000, 4000), [DOT] * 20_000),
    "claims 20000 frames of 4000 x 4000 pixels",
  ),
  "GIF, blocks": (
    lambda: build.animated_gif(
      (9, 9), [DOT] * 2 + [b"!\xfe" + b"\1x" * MANY + b"\0"]
    ),
    "blocks",
  ),
  "PNG, count": (
    lambda: apng((9, 9), (9, 9, 0, 0), b"", claimed=2**31 - 1),
    "2 of 2147483647 frames",
  ),
  "PNG, place": (
    lambda: apng((9, 9), (9, 9, 1, 0), zlib.compress(bytes(27))),
    "frame 2: 9 x 9 pixels at 1, 0 of 9 x 9",
  ),
  "PNG, far place": (
    lambda: apng((9, 9), (2**32 - 1, 9, 2, 0), zlib.compress(bytes(27))),
    "frame 2: 4294967295 x 9 pixels",
  ),
  "PNG, no pixels": (
    lambda: apng((9, 9), (0, 9, 0, 0), zlib.compress(bytes(27))),
    "frame 2: 0 x 9 pixels",
  ),
  "PNG, order": (
    lambda: apng((9, 9), (9, 9, 0, 0), b"", numbers=(2, 1)),
    "1 of 2 frames",
  ),
  "PNG, cut pixels": (
    lambda: apng((9, 9), (9, 9, 0, 0), zlib.compress(bytes(26))),
    "frame 2: damaged or cut short",
  ),
  "PNG, canvas": (
    lambda: apng((SIDE, SIDE), (1, 1, 0, 0), zlib.compress(bytes(2))),
    "claims 16384 x 16384 pixels",
  ),
  "WebP, canvas": (
    lambda: webp_frames((SIDE, SIDE), [WEBP_DOT] * 2),
    "claims 16384 x 16384 pixels",
  ),
  "WebP, many frames": (
    lambda: webp_frames((4000, 4000), [WEBP_DOT] * 20_000),
    "claims 20000 frames of 4000 x 4000 pixels",
  ),
  "WebP, frame": (
    lambda: webp_frames(
      (16, 16),
      [
        build.frame_chunk((0, 0, 16, 16), build.lossless_chunk(SIDE, SIDE)),
        WEBP_DOT,
      ],
    ),
    "frame 1: 16384 x 16384 pixels at 0, 0 of 16 x 16",
  ),
  "WebP, no pixels": (
    lambda: webp_frames(
      (16, 16), [WEBP_DOT, build.frame_chunk((0, 0, 1, 1), b"")]
    ),
    "a frame without pixels",
  ),
  "TIFF, one strip for all": (
    lambda: pages(20_000, PAGE),
    "pages that overlap",
  ),
  "TIFF, a page": (
    lambda: pages(2, PAGE | {256: (4, SIDE), 257: (4, SIDE)}),
    "page 1: damaged or cut short",
  ),
}


@pytest.mark.parametrize("name", sorted(FRAMES))
def test_claims_of_frames_are_held_against_the_bytes(tmp_path, name):
  make, message = FRAMES[name]
  assert message in frames_refused(tmp_path, make())


def test_many_small_frames_are_little_work(tmp_path):
  file = tmp_path / "a.gif"
  file.write_bytes(build.animated_gif((1, 1), [DOT * 20_000]))
  with mutation.bounded(2, 500):
    assert images.count_frames(file) == 20_000
    frames = iter(images.read_frames(file))
    assert [next(frames).pixels.shape for _ in range(99)] == [(1, 1, 1)] * 99


def test_directories_that_overlap(tmp_path):
  # Each begins within the one before, and has as many tags as can be.
  count = 3000
  data = bytearray(b"II*\0\x08\0\0\0" + bytes(4096 * 12 + 4 * count + 16))
  for at in range(8, 8 + 4 * count, 4):
    struct.pack_into("<H", data, at, 4000)
    struct.pack_into("<I", data, at + 2 + 12 * 4000, at + 4)
  assert "directories that overlap" in frames_refused(tmp_path, bytes(data))


@pytest.mark.parametrize("kind", sorted(build.several()))
def test_frames_of_cut_files(tmp_path, kind):
  for data in build.several()[kind].values():
    whole = read_frames(tmp_path, data)
    assert len(whole) == 3
    refusals = 0
    for length in range(0, len(data), max(1, len(data) // 40)):
      try:
        found = read_frames(tmp_path, data[:length])
      except ImageError:
        refusals += 1
        continue
      # Some of them, and it is said; but of none is there a part.
      assert found[-1].notes
      for one, other in zip(found, whole, strict=False):
        np.testing.assert_array_equal(joined(one), joined(other))
    assert refusals >= 20


# Pieces that are too many, or overlap.

GIF_FRAME = ((0, 0, 8, 8), 2, b"D\1")
PIECES = {
  "PNG": lambda: build.png(2, 2, b"")[:33] + build.chunk(b"tEXt", b"") * MANY,
  "JPEG": lambda: build.jpeg(8, 8, [], extra=b"\xff\xfe\0\2" * MANY),
  "GIF, blocks": lambda: build.gif(
    (8, 8), [GIF_FRAME], tail=b"!\xfe" + b"\1x" * MANY + b"\0;"
  ),
  "GIF, extensions": lambda: build.gif(
    (8, 8), [GIF_FRAME], tail=b"!\xfe\0" * MANY
  ),
  "GIF, frames": lambda: build.gif((8, 8), [GIF_FRAME] * 9999),
  "WebP": lambda: build.webp(build.riff(b"junk", b"") * MANY),
  "BMP, runs": lambda: build.bmp(4000, 4000, 8, 1, b"\0\2\0\0" * 2**20),
  "OpenEXR, attributes": lambda: (
    b"v/1\1" + struct.pack("<I", 2) + b"a\0a\0\0\0\0\0" * MANY + b"\0"
  ),
  "OpenEXR, parts": lambda: (
    b"v/1\1" + struct.pack("<I", 0x1002) + b"a\0a\0\0\0\0\0\0" * MANY + b"\0"
  ),
  "TIFF, directories": lambda: b"".join(
    (
      b"II*\0\x08\0\0\0",
      *(
        struct.pack("<HHHIII", 1, 254, 4, 1, 1, 26 + 18 * i)
        for i in range(2000)
      ),
    )
  ),
  "TIFF, tags": lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(2**20),
  "TIFF, values": lambda: build.overlapping_exif(4000),
  "TIFF, parts": lambda: tall(1, 20_000, bytes(60_000)),
  "TIFF, packed parts": lambda: tall(8, 20_000, zlib.compress(bytes(2**22))),
}


@pytest.mark.parametrize("name", sorted(PIECES))
def test_pieces_are_counted(tmp_path, name):
  refused(tmp_path, PIECES[name]())


def test_bombs_beside_the_pixels_are_left_out(tmp_path):
  bomb = zlib.compress(bytes(2**26), 9)
  packed = zlib.compress(bytes(6))
  for chunk in (
    (b"iCCP", b"x\0\0" + bomb),
    (b"zTXt", b"x\0\0" + bomb),
    (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
  ):
    with mutation.bounded(2, 200):
      image = read(tmp_path, build.png(2, 2, packed, extra=[chunk] * 20))
    assert image.metadata.icc_profile is None
    assert image.metadata.xmp is None


@pytest.mark.parametrize("pointers", [0, 3])
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_exif_that_overlaps_is_left_out(tmp_path, kind, pointers):
  block = build.overlapping_exif(2900, pointers)
  if kind == "png":
    data = build.png(2, 2, zlib.compress(bytes(6)), extra=[(b"eXIf", block)])
  elif kind == "jpg":
    body = b"Exif\0\0" + block
    extra = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    data = build.flat_jpeg(8, 8, extra=extra)
  else:
    exif = build.riff(b"EXIF", block)
    data = build.webp(
      build.extended_chunk(2, 2, 8), build.lossless_chunk(2, 2), exif
    )
  with mutation.bounded(2, 200):
    assert read(tmp_path, data).metadata.exif is None


def test_metadata_of_wrong_checksums_are_left_out(tmp_path):
  profile = b"x\0\0" + zlib.compress(build.SRGB)
  extra = [(b"iCCP", profile), (b"pHYs", struct.pack(">IIB", 2835, 2835, 1))]
  data = bytearray(build.make_png(noise(4, 4, 3), extra=extra))
  data[data.index(b"iCCP") + 20] ^= 1
  got = read(tmp_path, bytes(data))
  assert got.metadata.icc_profile is None
  np.testing.assert_allclose(got.metadata.dpi, (72, 72), atol=0.1)
  np.testing.assert_array_equal(got.pixels, noise(4, 4, 3))


def test_directories_in_a_circle_are_read_once(tmp_path):
  data = bytearray(build.grey_tiff(2, 2, bytes(4)))
  (at,) = struct.unpack_from("<I", data, 4)
  (count,) = struct.unpack_from("<H", data, at)
  struct.pack_into("<I", data, at + 2 + 12 * count, at)
  assert read(tmp_path, bytes(data)).pixels.shape == (2, 2, 1)


def test_pillows_limit_is_neither_changed_nor_asked(tmp_path, monkeypatch):
  monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", 10)
  for suffix in ("png", "jpg", "tif", "bmp", "webp"):
    file = tmp_path / f"a.{suffix}"
    images.write_image(file, Image(noise(10, 10, 3)))
    assert images.read_image(file).pixels.shape == (10, 10, 3)
  assert PilImage.MAX_IMAGE_PIXELS == 10


# What is missing.


def check_cut(tmp_path, whole, cuts):
  """Of files that lack something, only those are read that lack nothing."""
  refusals = 0
  for data in cuts:
    try:
      image = read(tmp_path, data)
    except ImageError:
      refusals += 1
    else:
      np.testing.assert_array_equal(joined(image), joined(whole))
  return refusals


@pytest.mark.parametrize(
  ("name", "kept"),
  [("gif grey", 30), ("exr zip", 40), ("bmp", 20), ("webp", 14)],
)
def test_messages_on_cut_files_are_words(tmp_path, name, kept):
  name = next(n for n in sorted(SAMPLES) if n.startswith(name.split()[0]))
  with pytest.raises(ImageError, match="damaged or cut short") as error:
    read(tmp_path, SAMPLES[name][:kept])
  for raw in ("index", "unpack", "buffer", "dimension", "Error"):
    assert raw not in str(error.value)


def test_a_tiff_that_lost_tags_is_not_called_unusual(tmp_path):
  file = tmp_path / "a.tif"
  tifffile.imwrite(file, noise(64, 64, 3), photometric="rgb", metadata=None)
  data = file.read_bytes()
  for length in range(10, 250, 5):
    with pytest.raises(ImageError, match="damaged or cut short"):
      read(tmp_path, data[:length])


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_cut_files_are_no_pictures(tmp_path, name, capfd):
  data = SAMPLES[name]
  whole = read(tmp_path, data)
  step = max(1, len(data) // 40)
  lengths = [*range(0, len(data), step), len(data) - 1, len(data) - 2]
  assert check_cut(tmp_path, whole, (data[:n] for n in lengths)) >= 20
  assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
  "name", [n for n in sorted(SAMPLES) if n.startswith("jpeg")]
)
def test_jpegs_that_were_cut_and_closed_again(tmp_path, name):
  data = SAMPLES[name]
  start = data.index(b"\xff\xda") + 10
  end = data.index(b"\xff\xd9", start)
  whole = read(tmp_path, data)
  cuts = [data[:n] + b"\xff\xd9" for n in range(start, end, 3)]
  assert check_cut(tmp_path, whole, cuts) == len(cuts)


@pytest.mark.parametrize(
  "name", [n for n in sorted(SAMPLES) if n.startswith("png")]
)
def test_pngs_with_fewer_rows_than_they_say(tmp_path, name):
  whole = read(tmp_path, SAMPLES[name])
  chunks = fuzz_images.chunks_of(SAMPLES[name])
  packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
  raw = zlib.decompress(packed)
  rest = [c for c in chunks if c[0] not in (b"IDAT", b"IEND")]
  shorter = (zlib.compress(raw[:n]) for n in range(0, len(raw), 13))
  cuts = [
    fuzz_images.with_chunks(
      SAMPLES[name], [*rest, (b"IDAT", part), (b"IEND", b"")]
    )
    for part in (*shorter, packed[:-9], packed[: len(packed) // 2])
  ]
  assert check_cut(tmp_path, whole, cuts) == len(cuts)


def test_gifs_with_fewer_codes_than_pixels(tmp_path):
  place = (0, 0, 12, 10)
  whole = build.saved(PilImage.fromarray(noise(10, 12) & 3), "GIF")
  start = whole.index(b",") + 11
  codes, at = b"", start
  while whole[at]:
    codes += whole[at + 1 : at + 1 + whole[at]]
    at += whole[at] + 1
  size, palette = whole[start - 1], whole[13 : whole.index(b",")]
  assert len(palette) == 3 * 4 or len(palette) == 768
  cuts = [
    build.gif((12, 10), [(place, size, codes[:n])])
    for n in range(1, len(codes) - 1)
  ]
  assert check_cut(tmp_path, read(tmp_path, whole), cuts) == len(cuts)


def last_count(data):
  """Returns where a TIFF's last part states its bytes, and how many."""
  with tifffile.TiffFile(build.io.BytesIO(data)) as tiff:
    page = tiff.pages[0]
    tag = page.tags.get(279) or page.tags[325]
    form = tiff.byteorder + {1: "B", 3: "H", 4: "I", 16: "Q"}[tag.dtype]
    at = tag.valueoffset + (tag.count - 1) * struct.calcsize(form)
    return form, at, page.databytecounts[-1]


@pytest.mark.parametrize(
  "name", [n for n in sorted(SAMPLES) if n.startswith("tiff")]
)
def test_tiffs_whose_last_part_is_shorter(tmp_path, name):
  data = SAMPLES[name]
  form, at, count = last_count(data)
  cuts = []
  for left in range(1, count - 4, max(1, count // 40)):
    cut = bytearray(data)
    struct.pack_into(form, cut, at, left)
    cuts.append(bytes(cut))
  assert check_cut(tmp_path, read(tmp_path, data), cuts) >= len(cuts) - 3


def test_tiff_parts_that_are_missing_or_too_large(tmp_path):
  file, samples = tmp_path / "a.tif", noise(40, 30, 3)
  options = {"photometric": "rgb", "metadata": None, "rowsperstrip": 10}
  for squeezed in (None, "zlib", "zstd"):
    tifffile.imwrite(file, samples, compression=squeezed, **options)
    with tifffile.TiffFile(file) as tiff:
      offsets = tiff.pages[0].dataoffsets
      counts = tiff.pages[0].databytecounts
    assert len(offsets) == 4
    for code, value in (
      (279, (*counts[:3], 0)),
      (279, (*counts[:3], 65_000)),
      (273, (*offsets[:3], 0)),
      (273, offsets[:3]),
    ):
      tifffile.imwrite(file, samples, compression=squeezed, **options)
      with tifffile.TiffFile(file, mode="r+") as tiff:
        tiff.pages[0].tags[code].overwrite(value)
      with pytest.raises(ImageError, match="damaged or cut short"):
        images.read_image(file)


def test_restarts_that_are_missing(tmp_path):
  data = SAMPLES["jpeg: restarts"]
  marks = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xd1"]
  for at in marks:
    message = refused(tmp_path, data[:at] + data[at + 2 :])
    assert "restart markers" in message


def test_progress_that_stops_early(tmp_path):
  data = SAMPLES["jpeg: progressive"]
  scans = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
  assert len(scans) > 5
  for at in scans:
    assert "cut short" in refused(tmp_path, data[:at] + b"\xff\xd9")


def test_wrong_checksums_of_pixels(tmp_path):
  for samples in (noise(9, 9, 3), noise(9, 9, 3, dtype=np.uint16)):
    data = bytearray(build.make_png(samples))
    data[data.index(b"IDAT") + 30] ^= 1
    assert "checksum of IDAT" in refused(tmp_path, bytes(data))


def test_refusals_leave_nothing_in_memory(tmp_path):
  # As imagecodecs does where libpng itself finds the damage.
  samples = noise(200, 200, 3)
  good = build.make_png(samples)
  chunks = fuzz_images.chunks_of(good)
  packed = zlib.compress(bytes([9]) + bytes(601 * 200 - 1))
  cases = [good.replace(b"IDAT", b"IDAt"), good[:9000] + good[9100:]]
  cases.append(
    fuzz_images.with_chunks(good, [chunks[0], (b"IDAT", packed), chunks[-1]])
  )
  tracemalloc.start()
  try:
    for data in cases:
      before, _ = tracemalloc.get_traced_memory()
      for _ in range(20):
        refused(tmp_path, data)
      gc.collect()
      after, _ = tracemalloc.get_traced_memory()
      assert after - before < samples.nbytes
  finally:
    tracemalloc.stop()


# Whatever it is.


def test_damaged_files_of_every_kind(capfd):
  report = mutation.run(
    fuzz_images.targets(), seed=9, cases=range(900), seconds=2, megabytes=500
  )
  assert not report.violations, report
  for target in fuzz_images.targets():
    outcomes = report.outcomes(target.name)
    refused = {error.__name__ for error in target.refusals}
    assert set(outcomes) == {"read", *refused}
    assert min(outcomes.values()) > 2
  assert capfd.readouterr().err == ""
