"""Images are read in every mode that their formats have.

The oracles are files assembled byte by byte, Pillow and tifffile.
"""

import logging
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as PilImage
from PIL import TiffImagePlugin

from esrgan_jax import images
from esrgan_jax.images import Image, ImageError
from tests import image_builders as build
from tests.image_builders import (
  chunk,
  cmyk_profile,
  joined,
  make_png,
  noise,
)


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


def test_samples_without_white_point_are_refused(tmp_path):
  PilImage.new("I", (4, 4)).save(tmp_path / "a.tif")
  with pytest.raises(ImageError, match=r"32 bits.*save it as"):
    images.read_image(tmp_path / "a.tif")


def test_tiff_of_other_samples_is_refused(tmp_path):
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


def test_frames_and_pages(tmp_path):
  frames = [PilImage.fromarray(noise(8, 8, 3, seed=s)) for s in range(3)]
  rest = {"save_all": True, "append_images": frames[1:]}
  for suffix in ("gif", "webp", "png", "tif"):
    file = tmp_path / f"a.{suffix}"
    frames[0].save(file, **rest)
    with pytest.raises(ImageError, match=r"holds 3 .*images.read_frames"):
      images.read_image(file)


def test_a_preview_is_not_a_page(tmp_path):
  samples = noise(20, 20, 3, dtype=np.uint16)
  with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
    tiff.write(noise(5, 5, 3), subfiletype=1, photometric="rgb", metadata=None)
    tiff.write(samples, photometric="rgb", metadata=None)
  image = images.read_image(tmp_path / "a.tif")
  np.testing.assert_array_equal(image.pixels, samples)


def test_cmyk_without_profile_is_pillows_conversion(tmp_path):
  picture = PilImage.frombytes("CMYK", (8, 8), noise(8, 8, 4).tobytes())
  for suffix in ("tif", "jpg"):
    file = tmp_path / f"a.{suffix}"
    picture.save(file)
    with PilImage.open(file) as read:
      expected = np.asarray(read.convert("RGB"))
    np.testing.assert_array_equal(images.read_image(file).pixels, expected)


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


def test_libraries_log_for_others_only(tmp_path, caplog):
  interlaced = make_png(noise(9, 9, 3, dtype=np.uint16), interlace=True)
  (tmp_path / "a.png").write_bytes(interlaced)  # imagecodecs remarks on it.
  images.read_image(tmp_path / "a.png")
  assert not caplog.records
  logging.getLogger("imagecodecs").warning("from elsewhere")
  assert [record.message for record in caplog.records] == ["from elsewhere"]


# BMP, which is read here, against Pillow and by hand.


def bmps():
  """BMPs that Pillow reads as well."""
  masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
  alpha = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
  head = {"palette": masks, "size": 40}
  files = {
    "1 bit": build.bmp(13, 3, 1, 0, noise(12).tobytes()),
    "4 bits": build.bmp(5, 3, 4, 0, noise(12).tobytes()),
    "8 bits": build.bmp(5, 3, 8, 0, noise(24).tobytes()),
    "15 bits": build.bmp(5, 3, 16, 0, noise(36).tobytes(), palette=b""),
    "16 bits": build.bmp(5, 3, 16, 3, noise(36).tobytes(), **head),
    "24 bits": build.bmp(5, 3, 24, 0, noise(48).tobytes(), palette=b""),
    "32 bits": build.bmp(5, 3, 32, 0, noise(60).tobytes(), palette=b""),
    "downwards": build.bmp(5, -3, 24, 0, noise(48).tobytes(), palette=b""),
  }
  big = bytearray(
    build.bmp(5, 3, 32, 3, noise(60).tobytes(), palette=b"", size=108)
  )
  big[54:70] = alpha
  files["alpha"] = bytes(big)
  core = struct.pack("<2sIIIIHHHH", b"BM", 0, 0, 38, 12, 5, 3, 1, 4)
  files["OS/2"] = core + noise(48).tobytes()[:12] + bytes(36) + bytes(12)
  return files


@pytest.mark.parametrize("name", sorted(bmps()))
def test_bmps_are_read_as_by_pillow(tmp_path, name):
  file = tmp_path / "a.bmp"
  file.write_bytes(bmps()[name])
  image = images.read_image(file)
  with PilImage.open(file) as picture:
    if picture.mode == "P":
      picture = picture.convert("RGB")
    elif picture.mode == "1":
      picture = picture.convert("L")
    expected = np.asarray(picture)
  np.testing.assert_array_equal(joined(image).squeeze(), expected)


def test_run_lengths(tmp_path):
  # Rows upwards: a run and single values; an empty one; a step to the right.
  runs = b"\2\1\0\3\4\5\6\0\0\0" + b"\0\0" + b"\0\2\3\0\2\x07\0\1"
  (tmp_path / "a.bmp").write_bytes(build.bmp(5, 3, 8, 1, runs))
  got = images.read_image(tmp_path / "a.bmp").pixels
  assert (got[..., 0] == 9).all()  # Red, of any colour of that palette.
  assert got[..., 2].tolist() == [[0, 0, 0, 7, 7], [0] * 5, [1, 1, 4, 5, 6]]
  runs = b"\5\x12\0\0" + b"\0\5\x34\x56\x70\0\0\1"
  (tmp_path / "a.bmp").write_bytes(build.bmp(5, 2, 4, 2, runs))
  got = images.read_image(tmp_path / "a.bmp").pixels[..., 2]
  assert got.tolist() == [[3, 4, 5, 6, 7], [1, 2, 1, 2, 1]]
  (tmp_path / "a.bmp").write_bytes(build.bmp(5, 2, 8, 1, runs[:5]))
  with pytest.raises(ImageError, match="no end mark"):
    images.read_image(tmp_path / "a.bmp")


def test_bmps_of_other_kinds_are_refused(tmp_path):
  for bits, compression in ((2, 0), (8, 2), (24, 4), (24, 5), (8, 3)):
    data = build.bmp(4, 4, bits, compression, bytes(99), palette=b"")
    (tmp_path / "a.bmp").write_bytes(data)
    message = f"{bits} bits and compression {compression} is not read"
    with pytest.raises(ImageError, match=message):
      images.read_image(tmp_path / "a.bmp")


# GIF and WebP on a larger canvas.


@pytest.mark.parametrize("transparent", [None, 3])
def test_gif_frame_on_its_canvas(tmp_path, transparent):
  part = PilImage.fromarray(noise(5, 7) & 7).convert("P")
  part.putpalette(noise(24).tobytes())
  options = {} if transparent is None else {"transparency": transparent}
  data = bytearray(build.saved(part, "GIF", **options))
  data[6:10] = struct.pack("<HH", 11, 9)
  place = data.index(b",", 13 + 24)
  data[place + 1 : place + 5] = struct.pack("<HH", 3, 2)
  file = tmp_path / "a.gif"
  file.write_bytes(data)
  image = images.read_image(file)
  with PilImage.open(file) as picture:
    expected = np.asarray(
      picture.convert("RGB" if transparent is None else "RGBA")
    )
  np.testing.assert_array_equal(joined(image), expected)


def test_gif_of_greys_stays_grey(tmp_path):
  grey = noise(6, 9)
  file = tmp_path / "a.gif"
  PilImage.fromarray(grey).save(file)
  np.testing.assert_array_equal(images.read_image(file).pixels[..., 0], grey)


def test_webp_frame_on_its_canvas(tmp_path):
  picture = PilImage.fromarray(noise(6, 8, 3))
  still = build.saved(picture, "WEBP", lossless=True)
  data = build.webp(
    build.extended_chunk(16, 14, 2),
    build.riff(b"ANIM", bytes(6)),
    build.frame_chunk((4, 2, 8, 6), still[12:]),
  )
  (tmp_path / "a.webp").write_bytes(data)
  image = images.read_image(tmp_path / "a.webp")
  np.testing.assert_array_equal(image.pixels[2:8, 4:12], noise(6, 8, 3))
  assert image.alpha[2:8, 4:12].min() == 255
  assert int(image.alpha.sum()) == 255 * 6 * 8


# TIFF's own parts.


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", [0, 1, 3])
def test_tiff_of_few_bits(tmp_path, bits, photometric):
  values = noise(5, 7) >> (8 - bits)
  rows = "".join(
    "".join(f"{v:0{bits}b}" for v in row).ljust(-(-7 * bits // 8) * 8, "0")
    for row in values
  )
  data = int(rows, 2).to_bytes(len(rows) // 8, "big")
  palette = noise(3, 1 << bits, dtype=np.uint16)
  tags = {"tag_258": (3, bits), "tag_262": (3, photometric)}
  if photometric == 3:
    tags["tag_320"] = (3, palette.ravel().tolist())
    expected = (palette >> 8).T[values]
  else:
    top = 2**bits - 1
    grey = values if photometric else top - values
    expected = grey[..., None] * (255 // top)
  for order in (1, 2):
    if order == 2:  # The lowest bit first.
      data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
    file = build.grey_tiff(7, 5, data, tag_266=(3, order), **tags)
    (tmp_path / "a.tif").write_bytes(file)
    image = images.read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, expected)


def test_tiff_without_counts_of_its_strips(tmp_path):
  file = build.grey_tiff(7, 5, noise(5, 7).tobytes(), tag_278=(4, 5))
  places = file.index(struct.pack("<HH", 279, 4))
  data = file[:places] + struct.pack("<HH", 60_000, 4) + file[places + 4 :]
  (tmp_path / "a.tif").write_bytes(data)
  image = images.read_image(tmp_path / "a.tif")
  np.testing.assert_array_equal(image.pixels[..., 0], noise(5, 7))


@pytest.mark.parametrize("width", [1, 8, 65, 640, 2561, 5200])
@pytest.mark.parametrize(
  ("compression", "options"),
  [("tiff_ccitt", 0), *(("group3", n) for n in (0, 1, 4, 5)), ("group4", 0)],
)
def test_fax(tmp_path, width, compression, options):
  rng = np.random.default_rng(width)
  pages = [
    rng.random((6, width)) < 0.5,
    np.ones((3, width), bool),
    np.zeros((3, width), bool),
    np.tile(rng.random((1, width)) < 0.1, (4, 1)),
  ]
  info = TiffImagePlugin.ImageFileDirectory_v2()
  if options:
    info[292] = options
  for page in pages:
    picture = PilImage.fromarray(page.astype(np.uint8) * 255).convert("1")
    picture.save(tmp_path / "a.tif", compression=compression, tiffinfo=info)
    image = images.read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels[..., 0], page * 255)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_palettes_of_eight_bits(tmp_path, bits):
  # ColorMap has 16 bits a value; some programs write 8, and mean it.
  values = noise(5, 7, dtype=np.uint16) >> (16 - bits)
  palette = noise(3, 1 << bits)
  if bits < 8:
    rows = "".join(
      "".join(f"{v:0{bits}b}" for v in row).ljust(-(-7 * bits // 8) * 8, "0")
      for row in values
    )
    data = int(rows, 2).to_bytes(len(rows) // 8, "big")
  else:
    data = values.astype(f"<u{bits // 8}").tobytes()
  for factor in (1, 256, 257):
    colours = palette.astype(np.uint16) * np.uint16(factor)
    file = build.grey_tiff(
      7,
      5,
      data,
      tag_258=(3, bits),
      tag_262=(3, 3),
      tag_320=(3, colours.ravel().tolist()),
    )
    (tmp_path / "a.tif").write_bytes(file)
    got = images.read_image(tmp_path / "a.tif").pixels
    expected = palette.T[values]
    if bits == 16:  # As deep as the indices.
      assert got.dtype == np.uint16
      expected = expected * np.uint16(257 if factor == 1 else factor)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
  ("kinds", "place"),
  [
    ((0,), None),
    ((0, 0, 0), None),
    ((2, 0), 0),
    ((0, 0, 2), 2),
    ((0, 2, 2), 1),
    ((1,), 0),
    ((0, 1), 1),
  ],
)
def test_further_bands(tmp_path, photometric, planar, kinds, place):
  colours = 3 if photometric == "rgb" else 1
  samples = noise(6, 5, colours + len(kinds), dtype=np.uint16)
  if place is not None:
    samples[..., colours + place] = 65535  # So that nothing is divided.
  tifffile.imwrite(
    tmp_path / "a.tif",
    samples if planar == "contig" else np.moveaxis(samples, 2, 0),
    photometric=photometric,
    planarconfig=planar,
    extrasamples=kinds,
    metadata=None,
  )
  image = images.read_image(tmp_path / "a.tif")
  np.testing.assert_array_equal(image.pixels, samples[..., :colours])
  rest = samples[..., colours:]
  if place is None:
    assert image.alpha is None
  else:
    np.testing.assert_array_equal(image.alpha, rest[..., place])
    rest = np.delete(rest, place, axis=2)
  if rest.shape[2]:
    np.testing.assert_array_equal(image.extra, rest)
  else:
    assert image.extra is None
  assert images.write_image(tmp_path / "b.tif", image) == ()
  with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
    page = tiff.pages[0]
    np.testing.assert_array_equal(page.asarray(), samples)
    unmultiplied = tuple(2 if i == place else k for i, k in enumerate(kinds))
    assert tuple(page.extrasamples) == unmultiplied
  (note,) = images.write_image(tmp_path / "b.png", image) or (None,)
  assert (note is None) == (image.extra is None)
  if note:
    assert f"no room for its {rest.shape[2]} further band" in note


def test_one_more_sample_is_transparency_and_more_are_bands(tmp_path):
  # Without the tag that says so.
  for more, alpha in ((1, True), (2, False), (5, False)):
    samples = noise(4, 5, 3 + more)
    file = build.grey_tiff(
      5,
      4,
      samples.tobytes(),
      tag_258=(3, [8] * (3 + more)),
      tag_262=(3, 2),
      tag_277=(3, 3 + more),
    )
    (tmp_path / "a.tif").write_bytes(file)
    image = images.read_image(tmp_path / "a.tif")
    assert (image.alpha is not None) == alpha
    got = image.alpha[..., None] if alpha else image.extra
    np.testing.assert_array_equal(got, samples[..., 3:])
