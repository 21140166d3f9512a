"""AVIF, HEIC, JPEG XL and JPEG 2000, by imagecodecs and Pillow as oracles."""

import importlib.util
import io
import re
import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageOps

from esrgan_jax import extras, images
from esrgan_jax.images import Image, ImageError, Metadata, boxes, heif, light
from tests import image_builders as build
from tests.image_builders import SRGB, XMP, joined, noise, split

DECODERS = {
  ".avif": imagecodecs.avif_decode,
  ".jxl": imagecodecs.jpegxl_decode,
  ".jp2": imagecodecs.jpeg2k_decode,
  ".j2k": imagecodecs.jpeg2k_decode,
}
# The most that each keeps.
BITS = {".avif": (8, 10, 12), ".jxl": (8, 16), ".jp2": (8, 12, 16)}
BITS[".j2k"] = BITS[".jp2"]
DEPTHS = [(suffix, bits) for suffix, all_ in BITS.items() for bits in all_]


def read(tmp_path, data, name="a"):
  file = tmp_path / name
  file.write_bytes(data)
  image = images.read_image(file)
  assert sorted(images.read_size(file)) == sorted(image.pixels.shape[:2])
  return image


def of_bits(samples, bits):
  """Integers of so many bits as 8 or 16 of a picture."""
  full = 255 if bits == 8 else 65535
  return np.rint(samples * (full / (2**bits - 1))).astype(
    np.uint8 if bits == 8 else np.uint16
  )


def ramp(height, width, channels, bits):
  """A smooth picture, with a little noise."""
  y, x = np.mgrid[:height, :width]
  waves = [x / width, y / height, (x + y) / (width + height), 1 - x / width / 2]
  values = np.stack(waves[:channels], axis=2) * (2**bits - 1)
  values = values * 0.9 + noise(height, width, channels) % 4 / 4 * 2 ** (
    bits - 8
  )
  return np.rint(values).astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("suffix", "bits"), DEPTHS)
def test_without_loss(tmp_path, suffix, bits, channels):
  samples = ramp(22, 35, channels, bits)
  image = split(of_bits(samples, bits))
  info = Metadata(bits=bits if bits in (10, 12) else None)
  image = Image(image.pixels, image.alpha, info)
  file = tmp_path / f"a{suffix}"
  assert images.write_image(file, image, lossless=True) == ()
  data = file.read_bytes()
  kept = DECODERS[suffix](data).reshape(samples.shape)
  np.testing.assert_array_equal(kept, samples)
  again = read(tmp_path, data)
  np.testing.assert_array_equal(joined(again), joined(image))
  assert again.metadata.bits == info.bits


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("suffix", "bits"), DEPTHS)
def test_with_loss(tmp_path, suffix, bits, channels):
  image = split(of_bits(ramp(40, 56, channels, bits), bits))
  sizes = []
  for quality in (95, 60):
    file = tmp_path / f"{quality}{suffix}"
    images.write_image(file, image, quality=quality)
    got = images.read_image(file)
    error = joined(got) / images.opaque(got.pixels.dtype) - joined(
      image
    ) / images.opaque(image.pixels.dtype)
    assert np.abs(error).mean() < 0.02
    sizes.append(file.stat().st_size)
  # imagecodecs writes grey AVIF without loss, whatever the quality.
  assert sizes[1] < sizes[0] or (suffix, channels) == (".avif", 1)


def test_sixteen_bits_into_twelve_are_told(tmp_path):
  image = Image(noise(8, 8, 3, dtype=np.uint16))
  file = tmp_path / "a.avif"
  (note,) = images.write_image(file, image, lossless=True)
  assert "12 bits at most" in note
  error = images.read_image(file).pixels.astype(int) - image.pixels
  assert np.abs(error).max() <= 65535 / 4095 / 2 + 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_floats_in_jpeg_xl(tmp_path, dtype):
  samples = np.linspace(0, 3, 360).reshape(12, 10, 3).astype(dtype)
  data = imagecodecs.jpegxl_encode(samples, lossless=True)
  image = read(tmp_path, data)
  assert image.metadata.linear
  images.write_image(tmp_path / "b.jxl", image, lossless=True)
  kept = imagecodecs.jpegxl_decode((tmp_path / "b.jxl").read_bytes())
  assert kept.dtype == dtype
  np.testing.assert_allclose(kept, samples, rtol=2e-6, atol=1e-7)


def test_integers_of_linear_light_in_jpeg_xl(tmp_path):
  # imagecodecs says so of 16 bits, and we of none.
  samples = ramp(12, 10, 3, 16)
  data = imagecodecs.jpegxl_encode(samples, lossless=True)
  shown = light.to_display(samples / 65535)
  got = read(tmp_path, data)
  assert np.abs(got.pixels / 65535 - shown).max() < 1e-5
  assert got.notes == ()


@pytest.mark.parametrize(
  ("suffix", "names"),
  [
    (".avif", "icc_profile exif xmp"),
    (".jp2", "icc_profile exif xmp dpi"),
    (".jxl", "exif xmp"),
  ],
)
@pytest.mark.parametrize("channels", [3, 4])
def test_metadata(tmp_path, suffix, names, channels):
  everything = {
    "icc_profile": build.WIDE if suffix == ".jxl" else SRGB,
    "exif": build.exif_block(),
    "xmp": XMP.replace(b"6", b"1"),
    "dpi": (300.0, 72.5),
  }
  image = split(noise(9, 11, channels))
  image = Image(image.pixels, image.alpha, Metadata(**everything))
  file = tmp_path / f"a{suffix}"
  notes = images.write_image(file, image, lossless=True)
  assert any("colour profile" in note for note in notes) == (suffix == ".jxl")
  got = images.read_image(file)
  np.testing.assert_array_equal(joined(got), joined(image))
  for name in names.split():
    value = getattr(got.metadata, name)
    if name == "exif":
      assert b"maker's note" in value
    elif name == "dpi":
      np.testing.assert_allclose(value, everything[name], rtol=1e-6)
    else:
      assert value == everything[name]
  if suffix == ".avif":
    with PilImage.open(file) as picture:
      picture.load()
      assert picture.info["icc_profile"] == SRGB
      assert picture.info["xmp"] == everything["xmp"]
      assert picture.getexif()[271] == "Cam"
  if suffix == ".jp2":
    with PilImage.open(file) as picture:
      np.testing.assert_allclose(picture.info["dpi"], (300, 72.5), rtol=1e-3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_upright(tmp_path, orientation):
  samples = np.kron(noise(4, 6, 3), np.ones((8, 8, 1), np.uint8))
  picture = PilImage.fromarray(samples)
  picture.getexif()[274] = orientation
  upright = np.asarray(ImageOps.exif_transpose(picture))
  data = build.saved(
    picture, "AVIF", exif=picture.getexif(), quality=100, subsampling="4:4:4"
  )
  got = read(tmp_path, data)
  assert got.pixels.shape == upright.shape
  assert np.abs(got.pixels.astype(int) - upright).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_xl_is_turned_upright(tmp_path, orientation):
  samples = np.kron(noise(5, 7, 3), np.ones((8, 8, 1), np.uint8))
  stream = imagecodecs.jpegxl_encode(samples, distance=0.1)
  # All is as usual: one bit says so of the picture, one of how it is made.
  size = 1 + 5 + 3 + 5
  head = int.from_bytes(stream[2:4], "little")
  assert (head >> size, stream[:2]) == (0b11, b"\xff\x0a")
  head &= (1 << size) - 1
  # Not as usual, further fields, the orientation; no own size, preview, frames.
  said = [(0, 1), (1, 1), (orientation - 1, 3), (0, 3)]
  # 8 bits, of integers; small buffers; nothing beside colour, XYB, sRGB.
  said += [(0, 3), (1, 1), (0, 2), (1, 1), (1, 1)]
  said += [(1, 1), (0, 2), (1, 1)]  # Tones and transforms, as usual.
  for value, bits in said:
    head, size = head | value << size, size + bits
  turned = b"\xff\x0a" + head.to_bytes(-(-size // 8), "little") + stream[4:]
  picture = PilImage.fromarray(samples)
  picture.getexif()[274] = orientation
  upright = np.asarray(ImageOps.exif_transpose(picture))
  got = read(tmp_path, turned)
  assert got.pixels.shape == upright.shape
  assert np.abs(got.pixels.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize(
  "options",
  [
    {},
    {"tile_size": (16, 16)},
    {"irreversible": True, "quality_layers": [20, 5]},
    {"codeblock_size": (16, 16), "precinct_size": (64, 64)},
    {"num_resolutions": 1, "no_jp2": True},
  ],
)
def test_jpeg_2000_of_pillow(tmp_path, mode, options):
  picture = PilImage.fromarray(ramp(40, 50, 4, 8)).convert(mode)
  data = build.saved(picture, "JPEG2000", **options)
  got = read(tmp_path, data)
  with PilImage.open(io.BytesIO(data)) as opened:
    expected = np.asarray(opened)
  np.testing.assert_array_equal(
    joined(got), expected.reshape(joined(got).shape)
  )


def jp2_of(stream, count, *, more=b""):
  """A JP2 of a codestream and further boxes of its header."""
  y, x = (
    struct.unpack_from(">II", stream, 12),
    struct.unpack_from(">I", stream, 8),
  )
  head = struct.pack(">IIHBBBB", y[0], x[0], count, 7, 7, 0, 0)
  return b"".join(
    (
      b"\0\0\0\x0cjP  \r\n\x87\n",
      boxes.pack(b"ftyp", b"jp2 \0\0\0\0jp2 "),
      boxes.pack(b"jp2h", boxes.pack(b"ihdr", head), more),
      boxes.pack(b"jp2c", stream),
    )
  )


def test_jpeg_2000_with_a_palette_and_in_another_order(tmp_path):
  palette, indices = noise(7, 3), noise(6, 5) % 7
  stream = imagecodecs.jpeg2k_encode(indices, level=0, codecformat="j2k")
  entries = struct.pack(">HB", 7, 3) + b"\7\7\7" + palette.tobytes()
  columns = b"".join(struct.pack(">HBB", 0, 1, i) for i in range(3))
  more = boxes.pack(b"pclr", entries) + boxes.pack(b"cmap", columns)
  got = read(tmp_path, jp2_of(stream, 1, more=more))
  np.testing.assert_array_equal(got.pixels, palette[indices])
  # Alpha first, then blue, green, red, and what is none of them.
  samples = noise(6, 5, 4)
  stream = imagecodecs.jpeg2k_encode(
    samples, level=0, codecformat="j2k", mct=False
  )
  kinds = [(0, 1, 0), (1, 0, 3), (2, 0, 2), (3, 0, 1)]
  kinds = b"".join(struct.pack(">HHH", *kind) for kind in kinds)
  more = boxes.pack(b"cdef", struct.pack(">H", 4) + kinds)
  got = read(tmp_path, jp2_of(stream, 4, more=more))
  np.testing.assert_array_equal(joined(got), samples[..., [3, 2, 1, 0]])


def test_jpeg_2000_of_too_many_pieces(tmp_path):
  data = bytearray(
    build.saved(
      PilImage.fromarray(noise(64, 64)),
      "JPEG2000",
      precinct_size=(32, 32),
      no_jp2=True,
    )
  )
  at = data.index(b"\xff\x52")
  layered = bytearray(data)
  struct.pack_into(">H", layered, at + 6, 65_535)
  with pytest.raises(ImageError, match=r"packets .* more than any program"):
    read(tmp_path, bytes(layered))


def test_colours_that_are_stated_become_a_profile(tmp_path):
  samples = noise(8, 9, 3)
  kinds = imagecodecs.AVIF
  for primaries, curve, has in ((12, 13, True), (1, 13, False), (9, 16, False)):
    data = imagecodecs.avif_encode(
      samples,
      level=100,
      primaries=kinds.COLOR_PRIMARIES(primaries),
      transfer=kinds.TRANSFER_CHARACTERISTICS(curve),
    )
    got = read(tmp_path, data)
    assert (got.metadata.icc_profile is not None) == has
    assert bool(got.notes) == (curve == 16)


def test_sizes_behind_large_metadata(tmp_path):
  info = Metadata(xmp=b"<x:xmpmeta>" + b"\xff\x0a" * 99_999 + b"</x:xmpmeta>")
  image = Image(noise(12, 17, 3), metadata=info)
  for suffix in (".jxl", ".avif", ".jp2"):
    images.write_image(tmp_path / f"a{suffix}", image)
    assert images.read_size(tmp_path / f"a{suffix}") == (17, 12)
  preview = ("preview", "preview", bytes(2**17))
  plane = np.zeros((4, 6), np.float16)
  (tmp_path / "a.exr").write_bytes(build.exr({"Y": plane}, more=[preview]))
  assert images.read_size(tmp_path / "a.exr") == (6, 4)


def test_animations_are_refused(tmp_path):
  frames = [PilImage.fromarray(noise(16, 16, 3, seed=i)) for i in range(2)]
  data = build.saved(frames[0], "AVIF", save_all=True, append_images=frames[1:])
  with pytest.raises(ImageError, match="is an animation; save its frames"):
    read(tmp_path, data)


def heic(*crop):
  """The container of a HEIC, without a picture in it."""
  crops = [struct.pack(">8I", *crop, 0, 1, 0, 1)] if crop else []
  picture = heif.Item(
    kind=b"hvc1",
    properties=[
      (b"ispe", bytes(4) + struct.pack(">II", 64, 48), False),
      (b"hvcC", bytes(23), True),
      *((b"clap", each, True) for each in crops),
      (b"irot", b"\1", True),
    ],
  )
  return heif.build(b"heic", b"mif1heic", 1, [(picture, noise(99).tobytes())])


def test_heic_without_its_library(tmp_path):
  file = tmp_path / "a.heic"
  file.write_bytes(heic())
  assert images.read_size(file) == (48, 64)
  assert images.is_image_suffix(file)
  message = f"needs pi-heif; {re.escape(extras.pip_install('heif'))}"
  if importlib.util.find_spec("pi_heif") is not None:
    message = "damaged or cut short"
  with pytest.raises(ImageError, match=message):
    images.read_image(file)


@pytest.mark.parametrize(
  ("crop", "size"),
  [
    ((33, 1, 21, 1), (21, 33)),
    ((66, 2, 7, 3), (2, 33)),
    ((65, 1, 21, 1), (48, 64)),
    ((0, 1, 21, 1), (48, 64)),
    ((33, 0, 21, 1), (48, 64)),
  ],
)
def test_the_size_of_a_heic_is_that_of_its_crop(tmp_path, crop, size):
  """Unless that is no part of it."""
  file = tmp_path / "a.heic"
  file.write_bytes(heic(*crop))
  assert images.read_size(file) == size


# Newer libheif makes 64 x 64 of the smaller one, and crops it.
@pytest.mark.runtimes
@pytest.mark.parametrize("size", [(64, 48), (33, 21)])
def test_heic(tmp_path, size):
  import pillow_heif  # It writes, which pi-heif cannot.

  samples = ramp(*size[::-1], 3, 8)
  file = pillow_heif.from_bytes("RGB", size, samples.tobytes())
  buffer = io.BytesIO()
  plain = XMP.replace(b' tiff:Orientation="6"', b"")
  file.save(buffer, quality=-1, icc_profile=SRGB, xmp=plain, chroma=444)
  got = read(tmp_path, buffer.getvalue(), "a.heic")
  assert images.read_size(tmp_path / "a.heic") == size
  assert np.abs(got.pixels.astype(int) - samples).max() < 3
  assert got.metadata.icc_profile == SRGB


@pytest.mark.parametrize(
  ("suffix", "codec"),
  [(".avif", "AVIF"), (".jxl", "JPEGXL"), (".jp2", "JPEG2K")],
)
def test_a_build_without_a_codec(tmp_path, monkeypatch, suffix, codec):
  file, image = tmp_path / f"a{suffix}", Image(noise(4, 4, 3))
  images.write_image(file, image)
  monkeypatch.setattr(getattr(imagecodecs, codec), "available", False)
  with pytest.raises(ImageError, match="pip install --upgrade imagecodecs"):
    images.read_image(file)
  with pytest.raises(ImageError, match="pip install --upgrade imagecodecs"):
    images.write_image(tmp_path / f"b{suffix}", image)
  assert not (tmp_path / f"b{suffix}").exists()


def test_boxes_are_walked_within_bounds():
  inner = boxes.pack(b"free", b"abc")
  large = struct.pack(">I4sQ", 1, b"wide", 16 + 3) + b"xyz"
  last = struct.pack(">I4s", 0, b"last") + b"to the end"
  found = [(k, bytes(b)) for k, b in boxes.walk(inner + large + last)]
  assert found == [
    (b"free", b"abc"),
    (b"wide", b"xyz"),
    (b"last", b"to the end"),
  ]
  for wrong in (inner[:-1], b"\0\0\0\7free", large[:12], b"\0\0"):
    with pytest.raises(ValueError, match="a box"):
      list(boxes.walk(wrong))
