"""Images: files made here in every mode, hostile ones, and exact round trips.

The oracles are files assembled byte by byte, Pillow, tifffile and SciPy.
"""

import io
import logging
import os
import random
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageCms, PngImagePlugin

from esrgan_jax import images
from esrgan_jax.images import Image, ImageError, Metadata

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
XMP_UPRIGHT = XMP.replace(b'"6"', b'"1"')


def noise(*shape, dtype=np.uint8, seed=0):
  top = np.iinfo(dtype).max
  return np.random.default_rng(seed).integers(0, top, shape, dtype, True)


def grey_profile():
  """An sRGB profile that claims to be grey: only its header is looked at."""
  return SRGB[:16] + b"GRAY" + SRGB[20:]


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
  with PilImage.open(path) as picture:
    exif = picture.getexif()
    return dict(exif), dict(exif.get_ifd(34665))


def chunk(kind, body):
  return (
    struct.pack(">I", len(body))
    + kind
    + body
    + struct.pack(">I", zlib.crc32(kind + body))
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


def joined(image):
  if image.alpha is None:
    return image.pixels
  return np.concatenate([image.pixels, image.alpha[..., None]], axis=2)


def split(samples):
  if samples.shape[2] in (1, 3):
    return Image(samples)
  return Image(samples[..., :-1], samples[..., -1])


# Reading PNG.


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlace", [False, True])
def test_reads_hand_made_png(tmp_path, dtype, channels, interlace):
  samples = noise(11, 7, channels, dtype=dtype)
  file = tmp_path / "a.png"
  file.write_bytes(make_png(samples, interlace=interlace))
  image = images.read_image(file)
  assert image.pixels.dtype == dtype
  assert image.metadata.format == "PNG"
  np.testing.assert_array_equal(joined(image), samples)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_transparent_colour(tmp_path, dtype, channels):
  samples = noise(5, 6, channels, dtype=dtype)
  samples[2, 3] = samples[0, 0]
  key = struct.pack(f">{channels}H", *samples[0, 0].tolist())
  file = tmp_path / "a.png"
  file.write_bytes(make_png(samples, extra=[(b"tRNS", key)]))
  image = images.read_image(file)
  np.testing.assert_array_equal(image.pixels, samples)
  opaque = (samples != samples[0, 0]).any(axis=2)
  assert not opaque[2, 3]
  np.testing.assert_array_equal(image.alpha, opaque * np.iinfo(dtype).max)


def test_png_of_few_bits_with_transparent_grey(tmp_path):
  # 2 bits: samples 0 1 2 3; 2 is transparent.
  head = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
  body = zlib.compress(bytes([0, 0b00011011]))
  file = tmp_path / "a.png"
  file.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + chunk(b"tRNS", b"\0\2")
    + chunk(b"IDAT", body)
    + chunk(b"IEND", b"")
  )
  image = images.read_image(file)
  assert image.pixels[0, :, 0].tolist() == [0, 85, 170, 255]
  assert image.alpha[0].tolist() == [255, 255, 0, 255]


def test_png_palette_with_and_without_transparency(tmp_path):
  for extra in ((), (b"tRNS", bytes([255, 7]))):
    head = struct.pack(">IIBBBBB", 3, 1, 8, 3, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    data += chunk(b"PLTE", bytes(range(9)))
    data += chunk(*extra) if extra else b""
    data += chunk(b"IDAT", zlib.compress(bytes([0, 2, 1, 0])))
    file = tmp_path / "a.png"
    file.write_bytes(data + chunk(b"IEND", b""))
    image = images.read_image(file)
    assert image.pixels.tolist() == [[[6, 7, 8], [3, 4, 5], [0, 1, 2]]]
    assert (image.alpha is None) == (not extra)
    if extra:
      assert image.alpha.tolist() == [[255, 7, 255]]


def test_sixteen_bits_are_the_header_not_the_values(tmp_path):
  dark = np.full((3, 3, 3), 200, np.uint16)  # Below 256 throughout.
  images.write_image(tmp_path / "a.png", Image(dark))
  image = images.read_image(tmp_path / "a.png")
  assert image.pixels.dtype == np.uint16
  np.testing.assert_array_equal(image.pixels, dark)


# Reading the other formats.

SAVED = {
  "png": ["1", "L", "P", "LA", "RGB", "RGBA"],
  "tiff": ["1", "L", "P", "LA", "RGB", "RGBA"],
  "bmp": ["1", "L", "P", "RGB"],
  "gif": ["P"],
}
MODES = [(suffix, mode) for suffix, modes in SAVED.items() for mode in modes]


@pytest.mark.parametrize(("suffix", "mode"), MODES)
def test_reads_what_pillow_writes(tmp_path, suffix, mode):
  picture = PilImage.fromarray(noise(9, 13, 4))
  picture = picture.convert("RGB" if mode == "P" else "RGBA").convert(mode)
  file = tmp_path / f"a.{suffix}"
  picture.save(file)
  image = images.read_image(file)
  grey = mode in ("1", "L", "LA")
  expected = picture.convert("L" if grey else "RGB")
  assert image.pixels.dtype == np.uint8
  np.testing.assert_array_equal(
    image.pixels.squeeze(), np.asarray(expected).squeeze()
  )
  assert (image.alpha is not None) == mode.endswith("A")
  if image.alpha is not None:
    np.testing.assert_array_equal(image.alpha, np.asarray(picture)[..., -1])


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_reads_lossy_files(tmp_path, suffix, mode):
  file = tmp_path / f"a.{suffix}"
  PilImage.fromarray(noise(16, 24, 3)).convert(mode).save(file, quality=90)
  image = images.read_image(file)
  with PilImage.open(file) as picture:
    expected = np.asarray(picture).reshape(16, 24, -1)
  np.testing.assert_array_equal(image.pixels, expected)


def test_content_counts_not_the_suffix(tmp_path):
  file = tmp_path / "really_a_png.jpg"
  file.write_bytes(make_png(noise(4, 4, 3)))
  assert images.read_image(file).metadata.format == "PNG"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
def test_reads_tiff_of_every_layout(tmp_path, dtype, channels, planar, tile):
  tifffile = pytest.importorskip("tifffile")
  samples = noise(37, 45, channels, dtype=dtype)
  planar = planar if channels > 1 else None  # One channel has one layout.
  data = np.moveaxis(samples, 2, 0) if planar == "separate" else samples
  for number in range(8):
    big, order, squeezed = number & 1, "<>"[number >> 1 & 1], number & 4
    file = tmp_path / "a.tif"
    tifffile.imwrite(
      file,
      data[..., 0] if channels == 1 else data,
      photometric="rgb" if channels > 2 else "minisblack",
      planarconfig=planar,
      extrasamples=["unassalpha"] if channels in (2, 4) else None,
      compression="zlib" if squeezed else None,
      predictor=bool(squeezed),
      byteorder=order,
      bigtiff=bool(big),
      tile=tile,
      rowsperstrip=None if tile else 10,
      metadata=None,
    )
    image = images.read_image(file)
    assert image.pixels.dtype == dtype
    np.testing.assert_array_equal(joined(image), samples)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "group4"])
def test_reads_tiff_compressions(tmp_path, compression):
  mode = "1" if compression == "group4" else "RGB"
  picture = PilImage.fromarray(noise(20, 30, 3)).convert(mode)
  picture.save(tmp_path / "a.tif", compression=compression)
  image = images.read_image(tmp_path / "a.tif")
  expected = np.asarray(picture.convert("L" if mode == "1" else "RGB"))
  np.testing.assert_array_equal(image.pixels.squeeze(), expected)


def test_reads_jpeg_in_tiff(tmp_path):
  file = tmp_path / "a.tif"
  PilImage.fromarray(noise(20, 30, 3)).save(file, compression="jpeg")
  with PilImage.open(file) as picture:
    expected = np.asarray(picture)
  np.testing.assert_array_equal(images.read_image(file).pixels, expected)


def test_tiff_white_is_zero_and_premultiplied(tmp_path):
  tifffile = pytest.importorskip("tifffile")
  grey = noise(5, 6, dtype=np.uint16)
  file = tmp_path / "a.tif"
  tifffile.imwrite(file, grey, photometric="miniswhite", metadata=None)
  np.testing.assert_array_equal(
    images.read_image(file).pixels[..., 0], 65535 - grey
  )
  premultiplied = np.array(
    [[[100, 0, 50, 200], [0, 0, 0, 0], [500, 7, 65535, 65535]]], np.uint16
  )
  tifffile.imwrite(
    file,
    premultiplied,
    photometric="rgb",
    extrasamples=["assocalpha"],
    metadata=None,
  )
  image = images.read_image(file)
  assert image.pixels[0, 0].tolist() == [32768, 0, 16384]
  assert image.pixels[0, 2].tolist() == [500, 7, 65535]
  assert image.alpha[0].tolist() == [200, 0, 65535]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_white_point_are_refused(tmp_path, mode):
  PilImage.new(mode, (4, 4)).save(tmp_path / "a.tif")
  with pytest.raises(ImageError, match=r"32 bits.*save it as"):
    images.read_image(tmp_path / "a.tif")


def test_cmyk_without_profile_is_pillows_conversion(tmp_path):
  picture = PilImage.frombytes("CMYK", (8, 8), noise(8, 8, 4).tobytes())
  for suffix in ("tif", "jpg"):
    file = tmp_path / f"a.{suffix}"
    picture.save(file)
    with PilImage.open(file) as read:
      expected = np.asarray(read.convert("RGB"))
    np.testing.assert_array_equal(images.read_image(file).pixels, expected)


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


def test_cmyk_goes_through_its_profile_which_is_dropped(tmp_path):
  picture = PilImage.frombytes("CMYK", (8, 8), noise(8, 8, 4).tobytes())
  picture.save(tmp_path / "a.tif", icc_profile=cmyk_profile())
  image = images.read_image(tmp_path / "a.tif")
  # Any ink is L* 50, which is sRGB 119; black point compensation may differ.
  assert np.ptp(image.pixels) <= 1
  naive = np.asarray(picture.convert("RGB"))
  assert np.ptp(naive) > 100
  assert image.metadata.icc_profile is None
  broken = cmyk_profile()[:200]
  broken = struct.pack(">I", 200) + broken[4:]
  picture.save(tmp_path / "b.tif", icc_profile=broken)
  np.testing.assert_array_equal(
    images.read_image(tmp_path / "b.tif").pixels, naive
  )


def test_lab_becomes_srgb(tmp_path):
  picture = PilImage.new("LAB", (2, 2), (255, 128, 128))
  picture.save(tmp_path / "a.tif")
  assert (images.read_image(tmp_path / "a.tif").pixels >= 254).all()


# Orientation and metadata.


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_orientation(tmp_path, orientation, suffix):
  # What the camera stored, and what it meant (EXIF 2.32, tag 274).
  turn = [
    lambda a: a,
    lambda a: a[:, ::-1],
    lambda a: a[::-1, ::-1],
    lambda a: a[::-1],
    lambda a: a.swapaxes(0, 1),
    lambda a: np.rot90(a, -1),
    lambda a: np.rot90(a, 2).swapaxes(0, 1),
    lambda a: np.rot90(a, 1),
  ][orientation - 1]
  stored = noise(16, 24, 3)
  options = {"lossless": True} if suffix == "webp" else {}
  file = tmp_path / f"a.{suffix}"
  exif = PilImage.Exif()
  exif[274] = orientation
  exif[271] = "Cam"
  if suffix == "tif":
    options["compression"] = "tiff_lzw"
  PilImage.fromarray(stored).save(file, exif=exif, dpi=(100, 200), **options)
  if suffix == "jpg":
    with PilImage.open(file) as picture:
      stored = np.asarray(picture)
  image = images.read_image(file)
  np.testing.assert_array_equal(image.pixels, turn(stored))
  if suffix != "webp":
    expected = (100, 200) if orientation < 5 else (200, 100)
    np.testing.assert_allclose(image.metadata.dpi, expected, atol=0.02)
  for out in ("png", "tif", "jpg", "webp"):
    images.write_image(tmp_path / f"out.{out}", image, overwrite=True)
    ifd, _ = exif_of(tmp_path / f"out.{out}")
    assert ifd.get(274, 1) == 1
    assert ifd[271] == "Cam"


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_of_sixteen_bits(tmp_path, orientation):
  samples = noise(4, 6, 3, dtype=np.uint16)
  extra = [(b"eXIf", exif_block(orientation))]
  (tmp_path / "a.png").write_bytes(make_png(samples, extra=extra))
  image = images.read_image(tmp_path / "a.png")
  expected = samples if orientation == 1 else np.rot90(samples, -1)
  np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_metadata_survives_two_hops(tmp_path, order, dtype, suffix):
  exif = exif_block(8, order=order, thumbnail=True)
  metadata = Metadata(icc_profile=SRGB, exif=exif, xmp=XMP, dpi=(300, 150))
  image = Image(noise(12, 20, 3, dtype=dtype), None, metadata)
  images.write_image(tmp_path / f"a.{suffix}", image)
  image = images.read_image(tmp_path / f"a.{suffix}")
  images.write_image(tmp_path / f"b.{suffix}", image)
  image = images.read_image(tmp_path / f"b.{suffix}")
  got = image.metadata
  assert got.icc_profile == SRGB
  assert got.xmp == XMP_UPRIGHT
  if suffix != "webp":
    np.testing.assert_allclose(got.dpi, (300, 150), atol=0.02)
  assert b"THUMBNAIL" not in got.exif
  ifd, sub = exif_of(tmp_path / f"b.{suffix}")
  assert ifd[271] == "Cam"
  assert ifd.get(274, 1) == 1
  assert (sub[40962], sub[40963]) == (20, 12)
  assert sub[37500] == b"maker's note"
  with PilImage.open(tmp_path / f"b.{suffix}") as picture:
    assert picture.info["icc_profile"] == SRGB


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_places_and_letters_survive(tmp_path, suffix):
  exif = PilImage.Exif()
  exif[315] = "J\xf6rg".encode("latin-1")
  exif[34853] = {1: "N", 2: (48.0, 8.0, 14.5)}
  exif[34665] = {33437: 2.8, 40965: {1: "R98"}}
  image = Image(noise(8, 8, 3), None, Metadata(exif=exif.tobytes()[6:]))
  for name in (f"a.{suffix}", f"b.{suffix}"):
    images.write_image(tmp_path / name, image)
    image = images.read_image(tmp_path / name)
  with PilImage.open(tmp_path / f"b.{suffix}") as picture:
    got = picture.getexif()
    assert got[315] == "J\xf6rg"
    assert got.get_ifd(34853) == {1: "N", 2: (48.0, 8.0, 14.5)}
    assert got.get_ifd(34665)[33437] == 2.8
    assert got.get_ifd(40965) == {1: "R98"}


def test_profiles_stay_with_their_kind_of_pixels(tmp_path):
  grey, rgb = noise(4, 4, 1), noise(4, 4, 3)
  for suffix in ("png", "tif", "jpg", "webp"):
    for pixels, profile in (
      (grey, SRGB),
      (rgb, grey_profile()),
      (rgb, cmyk_profile()),
      (rgb, b"not a profile"),
    ):
      if suffix == "webp" and profile is SRGB:
        profile = grey_profile()  # WebP has no grey: its pixels are RGB.
      file = tmp_path / f"a.{suffix}"
      meta = Metadata(icc_profile=profile)
      images.write_image(file, Image(pixels, None, meta), overwrite=True)
      with PilImage.open(file) as picture:
        assert "icc_profile" not in picture.info
  image = Image(grey, None, Metadata(icc_profile=grey_profile()))
  images.write_image(tmp_path / "b.png", image)
  got = images.read_image(tmp_path / "b.png")
  assert got.metadata.icc_profile == grey_profile()


def test_damaged_exif_is_left_out(tmp_path):
  rng = random.Random(0)
  base = exif_block(6, thumbnail=True)
  for _ in range(200):
    block = bytearray(base)
    for _ in range(rng.randint(1, 4)):
      block[rng.randrange(len(block))] = rng.randrange(256)
    block = bytes(block[: rng.randint(0, len(block))])
    image = Image(noise(2, 2, 3), None, Metadata(exif=block))
    for suffix in ("png", "tif"):
      file = tmp_path / f"a.{suffix}"
      images.write_image(file, image, overwrite=True)
      np.testing.assert_array_equal(
        images.read_image(file).pixels, image.pixels
      )


def test_exif_beyond_jpegs_limit_is_left_out(tmp_path):
  exif = PilImage.Exif()
  exif.get_ifd(34665)[37510] = b"comment " * 9_000
  block = exif.tobytes()
  image = Image(noise(8, 8, 3), None, Metadata(exif=block, xmp=bytes(70_000)))
  images.write_image(tmp_path / "a.jpg", image)
  got = images.read_image(tmp_path / "a.jpg").metadata
  assert got.exif is None
  assert got.xmp is None
  images.write_image(tmp_path / "a.png", image)
  assert len(images.read_image(tmp_path / "a.png").metadata.exif) > 70_000


# Writing.


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("shape", [(1, 1), (13, 1), (1, 17), (600, 701)])
def test_lossless_round_trip(tmp_path, dtype, channels, suffix, shape):
  samples = noise(*shape, channels, dtype=dtype)
  samples[: shape[0] // 2] >>= 5  # Other filters and compressions.
  file = tmp_path / f"a.{suffix}"
  images.write_image(file, split(samples))
  image = images.read_image(file)
  assert image.pixels.dtype == dtype
  np.testing.assert_array_equal(joined(image), samples)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_several_bands_and_strings_are_read_by_others(tmp_path, suffix):
  skimage_io = pytest.importorskip("skimage.io")
  # A drawing, 7.6 MB: repetitive, so that the string matcher is chosen.
  tile = np.kron(noise(40, 40, 3) // 128 * 255, np.ones((8, 8, 1), np.uint8))
  pixels = np.tile(tile, (5, 5, 1))[:1590, :1598].astype(np.uint8)
  file = tmp_path / f"a.{suffix}"
  images.write_image(file, Image(pixels))
  with PilImage.open(file) as picture:
    np.testing.assert_array_equal(np.asarray(picture), pixels)
  np.testing.assert_array_equal(skimage_io.imread(file), pixels)
  assert file.stat().st_size < pixels.nbytes / 50


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_tiff_is_read_by_tifffile(tmp_path, channels):
  tifffile = pytest.importorskip("tifffile")
  samples = noise(30, 20, channels, dtype=np.uint16)
  for order in "<>":
    image = split(samples)
    meta = Metadata(exif=exif_block(order=order))
    file = tmp_path / "a.tif"
    images.write_image(
      file, Image(image.pixels, image.alpha, meta), overwrite=True
    )
    np.testing.assert_array_equal(
      tifffile.imread(file), samples[..., 0] if channels == 1 else samples
    )


def test_big_tiff(tmp_path, monkeypatch):
  tifffile = pytest.importorskip("tifffile")
  # The file that would need it has 4 GB; the limit is lowered instead.
  monkeypatch.setattr(images.encoders.tiff, "CLASSIC_BYTES", 1000)
  samples = noise(30, 20, 4, dtype=np.uint16)
  image = split(samples)
  meta = Metadata(icc_profile=SRGB, exif=exif_block(), xmp=XMP)
  file = tmp_path / "a.tif"
  images.write_image(file, Image(image.pixels, image.alpha, meta))
  with tifffile.TiffFile(file) as tiff:
    assert tiff.is_bigtiff
    np.testing.assert_array_equal(tiff.asarray(), samples)
  got = images.read_image(file)
  np.testing.assert_array_equal(joined(got), samples)
  assert got.metadata.icc_profile == SRGB
  assert exif_of(file)[1][40962] == 20


@pytest.mark.parametrize("suffix", ["bmp", "webp"])
def test_lossless_by_pillow(tmp_path, suffix):
  samples = noise(9, 11, 3)
  images.write_image(tmp_path / f"a.{suffix}", Image(samples), lossless=True)
  image = images.read_image(tmp_path / f"a.{suffix}")
  np.testing.assert_array_equal(image.pixels, samples)
  if suffix == "webp":  # Colour under alpha 0 as well.
    image = Image(samples, noise(9, 11) // 128 * 255)
    images.write_image(tmp_path / "b.webp", image, lossless=True)
    got = images.read_image(tmp_path / "b.webp")
    np.testing.assert_array_equal(joined(got), joined(image))


def test_jpeg_quality_and_subsampling(tmp_path):
  x = np.mgrid[:64, :64][1]
  # Colour that alternates by the column is lost by 4:2:0.
  samples = np.stack([x % 2 * 255, 0 * x, 255 - x % 2 * 255], 2)
  samples = samples.astype(np.uint8)
  images.write_image(tmp_path / "a.jpg", Image(samples))
  got = images.read_image(tmp_path / "a.jpg").pixels
  assert np.abs(got.astype(int) - samples).mean() < 6
  images.write_image(tmp_path / "b.jpg", Image(samples), quality=20)
  sizes = [(tmp_path / n).stat().st_size for n in ("a.jpg", "b.jpg")]
  assert sizes[0] > 1.5 * sizes[1]
  with pytest.raises(ValueError, match="quality is 0"):
    images.write_image(tmp_path / "c.jpg", Image(samples), quality=0)


def test_sixteen_bits_round_to_eight(tmp_path):
  samples = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
  images.write_image(tmp_path / "a.bmp", Image(samples))
  got = images.read_image(tmp_path / "a.bmp").pixels
  np.testing.assert_array_equal(got, np.rint(samples / 257))


@pytest.mark.parametrize("suffix", ["jpg", "bmp"])
def test_alpha_only_where_it_fits(tmp_path, suffix):
  samples, file = noise(8, 8, 3), tmp_path / f"a.{suffix}"
  alpha = np.full((8, 8), 255, np.uint8)
  images.write_image(file, Image(samples, alpha))
  assert images.read_image(file).alpha is None
  alpha[0, 0] = 254
  with pytest.raises(ImageError, match=r"transparency; choose \.png"):
    images.write_image(file, Image(samples, alpha), overwrite=True)


@pytest.mark.parametrize(
  ("suffix", "side"), [("webp", 16_384), ("jpg", 65_501)]
)
def test_sides_too_long_for_the_format(tmp_path, suffix, side):
  image = Image(np.zeros((1, side, 3), np.uint8))
  with pytest.raises(ImageError, match=rf"{side} x 1 .*{side - 1}.*\.png"):
    images.write_image(tmp_path / f"a.{suffix}", image)
  assert not list(tmp_path.iterdir())
  image = Image(image.pixels[:, 1:])
  images.write_image(tmp_path / f"a.{suffix}", image)
  assert images.read_image(tmp_path / f"a.{suffix}").pixels.shape[1] == side - 1


def test_never_overwrites_unless_asked(tmp_path):
  image, file = Image(noise(4, 4, 3)), tmp_path / "a.png"
  file.write_text("precious")
  with pytest.raises(ImageError, match=r"a\.png exists already"):
    images.write_image(file, image)
  assert file.read_text() == "precious"
  images.write_image(file, image, overwrite=True)
  assert images.read_image(file).pixels.shape == (4, 4, 3)
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_writers_wins(tmp_path, monkeypatch, links):
  if not links:  # As on exFAT.
    monkeypatch.delattr(os, "link")
  errors = []

  def write(value):
    pixels = np.full((50, 50, 1), value, np.uint8)
    try:
      images.write_image(tmp_path / "a.png", Image(pixels))
    except ImageError as error:
      errors.append(error)

  threads = [threading.Thread(target=write, args=(v,)) for v in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(errors) == 7
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
  assert np.ptp(images.read_image(tmp_path / "a.png").pixels) == 0


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_an_interrupt_leaves_no_debris(tmp_path, suffix):
  class Interrupting(np.ndarray):
    def __getitem__(self, key):
      if isinstance(key, slice) and key.start and key.start > 1500:
        raise KeyboardInterrupt
      return super().__getitem__(key)

  pixels = np.zeros((3000, 1000, 3), np.uint8).view(Interrupting)
  with pytest.raises(KeyboardInterrupt):
    images.write_image(tmp_path / f"a.{suffix}", Image(pixels))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp", "bmp"])
def test_a_full_disk_is_a_line_and_leaves_nothing(tmp_path, full_disk, suffix):
  path, image = tmp_path / f"a.{suffix}", Image(noise(100, 300, 3))
  for there in False, True:
    if there:
      path.write_text("precious")
    with (
      full_disk(),
      pytest.raises(ImageError, match=f"a.{suffix} cannot be written: [^\n]*$"),
    ):
      images.write_image(path, image, overwrite=True)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"] * there


def test_writing_says_what_is_wrong(tmp_path):
  image = Image(noise(4, 4, 3))
  with pytest.raises(ImageError, match=r"suffix '\.gif'.*choose one of \.png"):
    images.write_image(tmp_path / "a.gif", image)
  with pytest.raises(ImageError, match=r"no folder .*create it first"):
    images.write_image(tmp_path / "nowhere" / "a.png", image)


def test_a_memmap_is_written_in_bands(tmp_path):
  pixels = np.memmap(
    tmp_path / "raw", np.uint8, mode="w+", shape=(900, 1100, 3)
  )
  pixels[:] = noise(900, 1100, 3)
  images.write_image(tmp_path / "a.png", Image(pixels))
  np.testing.assert_array_equal(
    images.read_image(tmp_path / "a.png").pixels, pixels
  )


# Hostile files.


def test_no_file_and_no_image(tmp_path):
  cases = {
    "none.png": (None, "no such file"),
    "empty.png": (b"", "empty"),
    "text.png": (b"hello world", "not an image of a known format"),
    "photo.heic": (b"\0\0\0\x18ftypheic", "convert it to PNG"),
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


def bomb(width, height):
  head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    + chunk(b"IEND", b"")
  )


def test_bombs_are_refused_by_their_header(tmp_path):
  file = tmp_path / "a.png"
  file.write_bytes(bomb(60_000, 60_000))
  with pytest.raises(ImageError, match=r"60000 x 60000 .*max_pixels"):
    images.read_image(file)
  hidden = bomb(1, 1)
  file.write_bytes(hidden[:33] + bomb(60_000, 60_000)[8:])
  with pytest.raises(ImageError, match="two headers"):
    images.read_image(file)
  file.write_bytes(bomb(0, 5))
  with pytest.raises(ImageError, match="0 x 5"):
    images.read_image(file)
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


def test_pillows_limit_is_neither_changed_nor_asked(tmp_path, monkeypatch):
  monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", 10)
  for suffix in ("png", "jpg", "tif", "bmp", "webp"):
    file = tmp_path / f"a.{suffix}"
    images.write_image(file, Image(noise(10, 10, 3)))
    assert images.read_image(file).pixels.shape == (10, 10, 3)
  assert PilImage.MAX_IMAGE_PIXELS == 10


def test_frames_and_pages(tmp_path):
  frames = [PilImage.fromarray(noise(8, 8, 3, seed=s)) for s in range(3)]
  rest = {"save_all": True, "append_images": frames[1:]}
  for suffix in ("gif", "webp", "png", "tif"):
    file = tmp_path / f"a.{suffix}"
    frames[0].save(file, **rest)
    with pytest.raises(ImageError, match=r"holds 3 .*save the"):
      images.read_image(file)


def test_a_preview_is_not_a_page(tmp_path):
  tifffile = pytest.importorskip("tifffile")
  samples = noise(20, 20, 3, dtype=np.uint16)
  with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
    tiff.write(noise(5, 5, 3), subfiletype=1, photometric="rgb", metadata=None)
    tiff.write(samples, photometric="rgb", metadata=None)
  image = images.read_image(tmp_path / "a.tif")
  np.testing.assert_array_equal(image.pixels, samples)


def corpus():
  """One small file of each kind of reader, by name."""
  files = {}

  def save(name, picture, format_, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format_, **options)
    files[name] = buffer.getvalue()

  rgb = PilImage.fromarray(noise(12, 10, 3))
  exif = b"Exif\0\0" + exif_block(6, thumbnail=True)
  for format_ in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
    options = {} if format_ in ("BMP", "GIF") else {"exif": exif}
    save(format_.lower(), rgb, format_, **options)
  save("lzw", rgb, "TIFF", compression="tiff_lzw")
  save("palette_tiff", rgb.convert("P"), "TIFF", compression="tiff_lzw")
  save("cmyk_jpeg", rgb.convert("CMYK"), "JPEG", icc_profile=cmyk_profile())
  save("jpeg_tiff", rgb, "TIFF", compression="jpeg")
  save("rgba_webp", rgb.convert("RGBA"), "WEBP", lossless=True)
  text = PngImagePlugin.PngInfo()
  text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
  save("xmp_png", rgb.convert("P"), "PNG", pnginfo=text, icc_profile=SRGB)
  extra = [(b"eXIf", exif_block(3)), (b"tRNS", bytes(6))]
  deep = noise(12, 10, 3, dtype=np.uint16)
  files["png16"] = make_png(deep, interlace=True, extra=extra)
  return files


def check_survives(file, data):
  """Reads it; nothing but an ImageError of one line may come out."""
  file.write_bytes(data)
  try:
    image = images.read_image(file, max_pixels=10_000_000)
  except ImageError as error:
    message = str(error)
  else:
    return image
  assert "\n" not in message
  return None


@pytest.mark.parametrize("name", sorted(corpus()))
def test_truncated_files(tmp_path, name, capfd):
  data = corpus()[name]
  whole = check_survives(tmp_path / "a", data)
  assert whole is not None
  step = max(1, len(data) // 150)
  refused = 0
  for length in [*range(0, len(data), step), len(data) - 1, len(data) - 2]:
    image = check_survives(tmp_path / "a", data[:length])
    refused += image is None
    if image is not None:
      np.testing.assert_array_equal(joined(image), joined(whole))
  assert refused > 100
  assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", sorted(corpus()))
def test_mutated_files(tmp_path, name, capfd):
  data = corpus()[name]
  rng = random.Random(name)
  for _ in range(60):
    mutated = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
      # Headers are where lies do most harm.
      end = rng.choice([64, 256, len(data)])
      mutated[rng.randrange(min(end, len(data)))] = rng.choice(
        [0, 1, 127, 128, 255, rng.randrange(256)]
      )
    check_survives(tmp_path / "a", bytes(mutated))
  assert capfd.readouterr().err == ""


def test_mutated_tiffs_of_sixteen_bits(tmp_path, capfd):
  rng = random.Random(1)
  for channels in (1, 4):
    image = split(noise(9, 9, channels, dtype=np.uint16))
    meta = Metadata(exif=exif_block(), icc_profile=SRGB, xmp=XMP)
    file = tmp_path / "a.tif"
    images.write_image(
      file, Image(image.pixels, image.alpha, meta), overwrite=True
    )
    data = file.read_bytes()
    (root,) = struct.unpack_from("<I", data, 4)
    for _ in range(300):
      mutated = bytearray(data)
      for _ in range(rng.choice([1, 2, 4])):
        at = rng.randrange(root, min(root + 260, len(data)))
        mutated[at] = rng.choice([0, 1, 2, 255, rng.randrange(256)])
      check_survives(file, bytes(mutated))
  assert capfd.readouterr().err == ""


def patched_tiff(path, *tags):
  """Sets tags (code, value) of the first page, in place."""
  tifffile = pytest.importorskip("tifffile")
  with tifffile.TiffFile(path, mode="r+") as tiff:
    for code, value in tags:
      tiff.pages[0].tags[code].overwrite(value)


def test_tiff_parts_that_are_missing_or_too_large(tmp_path):
  tifffile = pytest.importorskip("tifffile")
  file, samples = tmp_path / "a.tif", noise(40, 30, 3)
  options = {"photometric": "rgb", "metadata": None, "rowsperstrip": 10}
  for squeezed in (None, "zlib", "zstd"):
    # A part of no bytes is left out by tifffile, and comes as zeros.
    tifffile.imwrite(file, samples, compression=squeezed, **options)
    with tifffile.TiffFile(file) as tiff:
      offsets = tiff.pages[0].dataoffsets
      counts = tiff.pages[0].databytecounts
    assert len(offsets) == 4
    for code, value in (
      (279, (*counts[:3], 0)),
      (279, (*counts[:3], 65_000)),
      (273, (*offsets[:3], 0)),
      (279, (*counts[:3], counts[3] - 20)),
    ):
      tifffile.imwrite(file, samples, compression=squeezed, **options)
      patched_tiff(file, (code, value))
      with pytest.raises(ImageError, match="damaged or cut short"):
        images.read_image(file)
  # A JPEG stream in it that is larger than the page: its decoder would obey.
  options["rowsperstrip"] = 600
  tifffile.imwrite(
    file, np.zeros((600, 600, 3), np.uint8), compression="jpeg", **options
  )
  patched_tiff(file, (256, 16), (257, 16), (278, 16))
  with pytest.raises(ImageError, match="a part of 600 x 600 pixels"):
    images.read_image(file)


def test_tiff_of_other_samples_is_refused(tmp_path):
  tifffile = pytest.importorskip("tifffile")
  file = tmp_path / "a.tif"
  deep = noise(8, 8, 4, dtype=np.uint16)
  tifffile.imwrite(file, deep, photometric="separated", metadata=None)
  with pytest.raises(ImageError, match=r"16-bit .*photometric 5.*save it as"):
    images.read_image(file)
  tifffile.imwrite(
    file, noise(8, 8, 3), photometric="rgb", compression="jpeg2000"
  )
  with pytest.raises(ImageError, match=r"compression 347\d\d are not read"):
    images.read_image(file)


def test_libraries_log_for_others_only(tmp_path, caplog):
  interlaced = make_png(noise(9, 9, 3, dtype=np.uint16), interlace=True)
  (tmp_path / "a.png").write_bytes(interlaced)  # imagecodecs remarks on it.
  images.read_image(tmp_path / "a.png")
  assert not caplog.records
  logging.getLogger("imagecodecs").warning("from elsewhere")
  assert [record.message for record in caplog.records] == ["from elsewhere"]


def test_wrong_checksum_of_sixteen_bits(tmp_path):
  data = bytearray(make_png(noise(9, 9, 3, dtype=np.uint16)))
  data[data.index(b"IDAT") + 30] ^= 1
  (tmp_path / "a.png").write_bytes(data)
  with pytest.raises(ImageError, match="checksum"):
    images.read_image(tmp_path / "a.png")


# Pure functions.


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_float_and_back_is_exact(dtype):
  every = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
  floats = images.to_float(every)
  assert floats.dtype == np.float32
  assert (floats[0], floats[-1]) == (0, 1)
  np.testing.assert_array_equal(images.from_float(floats, dtype), every)


def test_from_float_rounds_clips_and_refuses():
  got = images.from_float([-np.inf, -0.1, 0.4 / 255, 0.6 / 255, 7], np.uint8)
  assert got.tolist() == [0, 0, 0, 1, 255]
  with pytest.raises(ValueError, match="1 of 2 values are NaN"):
    images.from_float(np.array([0.0, np.nan]), np.uint8)
  with pytest.raises(ValueError, match="int32"):
    images.from_float(np.zeros(2), np.int32)
  with pytest.raises(ValueError, match="float32"):
    images.to_float(np.zeros(2, np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (33, 20), (64, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bleeding_keeps_what_is_visible(shape, dtype):
  pixels = noise(*shape, 3, dtype=dtype)
  alpha = noise(*shape, dtype=dtype, seed=1)
  alpha[alpha < 0.8 * np.iinfo(dtype).max] = 0
  filled = images.bleed_colour(pixels, alpha)
  assert filled.dtype == dtype
  np.testing.assert_array_equal(filled[alpha > 0], pixels[alpha > 0])
  np.testing.assert_array_equal(filled, images.bleed_colour(pixels, alpha))
  # What lay under alpha 0 has no say.
  hidden = pixels.copy()
  hidden[alpha == 0] ^= 255
  if alpha.any():
    np.testing.assert_array_equal(filled, images.bleed_colour(hidden, alpha))
  for trivial in (np.zeros_like(alpha), np.ones_like(alpha)):
    np.testing.assert_array_equal(images.bleed_colour(pixels, trivial), pixels)


def test_bleeding_is_near():
  ndimage = pytest.importorskip("scipy.ndimage")
  # Two flat discs: away from the border between their domains, each filled
  # pixel has the colour of the disc that is nearest.
  y, x = np.mgrid[:128, :200]
  first = (y - 60) ** 2 + (x - 50) ** 2 < 300
  second = (y - 60) ** 2 + (x - 150) ** 2 < 300
  pixels = np.where(first[..., None], [200, 10, 10], [0, 0, 0])
  pixels = np.where(second[..., None], [10, 10, 200], pixels).astype(np.uint8)
  alpha = ((first | second) * 255).astype(np.uint8)
  filled = images.bleed_colour(pixels, alpha)
  distance, (ny, nx) = ndimage.distance_transform_edt(
    alpha == 0, return_indices=True
  )
  near = distance < 20
  np.testing.assert_array_equal(filled[near], pixels[ny, nx][near])
  # Elsewhere, too, never the black beneath.
  assert (filled.max(axis=2) == 200).all()


def test_a_flat_colour_fills_everything():
  pixels = noise(37, 53, 1)
  alpha = np.zeros((37, 53), np.uint8)
  alpha[30, 50] = 1
  filled = images.bleed_colour(pixels, alpha)
  assert (filled == pixels[30, 50]).all()
  with pytest.raises(ValueError, match="height and width"):
    images.bleed_colour(pixels, alpha[:5])


@pytest.mark.parametrize(
  ("pixels", "alpha", "message"),
  [
    (np.zeros((2, 2, 3), np.float32), None, "from_float"),
    (np.zeros((2, 2), np.uint8), None, r"\[2, 2\]"),
    (np.zeros((2, 0, 3), np.uint8), None, "0, 3"),
    (np.zeros((2, 2, 4), np.uint8), None, "2, 4"),
    (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8), "alpha"),
    (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint16), "alpha"),
  ],
)
def test_images_are_checked(pixels, alpha, message):
  with pytest.raises(ValueError, match=message):
    Image(pixels, alpha)


def test_suffixes():
  assert images.is_image_suffix("a/b.TIFF")
  assert not images.is_image_suffix("a/b.tiff.txt")
  assert not images.is_image_suffix("png")
  assert set(images.OUTPUT_SUFFIXES) <= images.INPUT_SUFFIXES


def test_imports_are_late(tmp_path):
  code = """
import sys, numpy, esrgan_jax
assert "PIL" not in sys.modules
from esrgan_jax import images
image = images.Image(numpy.zeros((2, 2, 3), numpy.uint8))
heavy = {"imagecodecs", "tifffile", "scipy"}
for suffix in ("png", "jpg", "webp"):
  images.write_image(f"{sys.argv[1]}/a.{suffix}", image)
print(heavy & set(sys.modules))
images.read_image(f"{sys.argv[1]}/a.png")
print(heavy & set(sys.modules))
"""
  done = subprocess.run(
    [sys.executable, "-c", code, tmp_path], capture_output=True, text=True
  )
  assert (done.stdout, done.stderr) == ("set()\n{'imagecodecs'}\n", "")
