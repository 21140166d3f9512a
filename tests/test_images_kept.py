"""What else a file holds goes along, and what cannot is told."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, ImageCms, PngImagePlugin
from PIL import Image as PilImage
from PIL.TiffImagePlugin import IFDRational

from esrgan_jax import images
from esrgan_jax.images import Image, ImageError, Metadata
from tests import mutation
from tests.fuzz_images import chunks_of
from tests.image_builders import (
  SRGB,
  bmp,
  chunk,
  exif_block,
  make_png,
  noise,
  overlapping_exif,
  saved,
)

PIXELS = noise(6, 5, 3)
GAMMA = (b"gAMA", struct.pack(">I", 100_000))
PRIMARIES = (
  b"cHRM",
  struct.pack(
    ">8I", *[31270, 32900, 70800, 29200], *[17000, 79700, 13100, 4600]
  ),
)
CHUNKS = [
  (b"cICP", bytes((9, 16, 0, 1))),
  (b"mDCV", bytes(range(24))),
  (b"cLLI", bytes(8)),
  GAMMA,
  PRIMARIES,
  (b"sRGB", b"\0"),
  (b"tEXt", b"parameters\0a cat, \xe9t\xe9\nSteps: 20"),
  (b"tEXt", b"parameters\0twice"),
  (b"zTXt", b"Comment\0\0" + zlib.compress(b"packed")),
  (b"iTXt", b"prompt\0\1\0de\0Aufgabe\0" + zlib.compress(b"text")),
  (b"iTXt", "workflow\0\0\0\0\0{写}".encode()),
]  # fmt: skip


def read(tmp_path, data):
  file = tmp_path / "in"
  file.write_bytes(data)
  return images.read_image(file)


def result(tmp_path, image, suffix, shape=(12, 10)):
  """Writes a picture of another size; returns the file, and the notes."""
  pixels = noise(*shape, image.pixels.shape[2], dtype=image.pixels.dtype)
  file = tmp_path / f"out.{suffix}"
  large = Image(pixels, None, image.metadata)
  return file, images.write_image(file, large, overwrite=True)


def texts_of(file):
  with PilImage.open(file) as picture:
    picture.load()
    return dict(picture.text)


# PNG to PNG.


def test_colours_and_texts_stay_as_they_are(tmp_path):
  for extra in (CHUNKS, CHUNKS[::-1], [CHUNKS[6]], [GAMMA], []):
    image = read(tmp_path, make_png(PIXELS, extra=extra))
    assert image.notes == ()
    file, notes = result(tmp_path, image, "png")
    assert notes == ()
    got = chunks_of(file.read_bytes())
    kinds = [kind for kind, _ in got]
    assert got[1 : kinds.index(b"IDAT")] == extra
  with PilImage.open(file) as picture:
    picture.verify()


def test_texts_behind_the_pixels_are_kept_and_colours_are_not(tmp_path):
  data = make_png(PIXELS)[:-12]
  data += b"".join(chunk(*c) for c in (CHUNKS[6], GAMMA)) + chunk(b"IEND", b"")
  image = read(tmp_path, data)
  assert image.notes == ("its gAMA chunk is left out (behind the pixels)",)
  file, _ = result(tmp_path, image, "png")
  assert CHUNKS[6] in chunks_of(file.read_bytes())
  assert GAMMA not in chunks_of(file.read_bytes())


@pytest.mark.parametrize(
  ("chunks", "note"),
  [
    ([GAMMA, GAMMA], "its gAMA chunk is left out (stated before)"),
    (
      [(b"tIME", bytes(7)), (b"sBIT", b"\5\6\5")],
      "its chunks tIME, sBIT are left out (of the old pixels)",
    ),
    (
      [(b"tIME", bytes(7)), (b"pHYs", b"short")],
      "its chunks pHYs (a wrong checksum or form), tIME (of the old pixels)"
      " are left out",
    ),
    # Nothing is lost with them.
    ([(b"sBIT", b"\x08\x08\x08"), (b"sPLT", b""), (b"pHYs", bytes(9))], None),
  ],
)
def test_every_chunk_that_is_not_kept_is_told(tmp_path, chunks, note):
  image = read(tmp_path, make_png(PIXELS, extra=chunks))
  assert image.notes == (() if note is None else (note,))


@pytest.mark.parametrize(
  "large",
  [
    (b"iCCP", b"x\0\0" + zlib.compress(SRGB.ljust(3_000_000, b"\0"))),
    (b"iCCP", b"x\0\0" + zlib.compress(SRGB + noise(2**21).tobytes(), 1)),
    (b"tEXt", b"parameters\0" + b"long " * 500_000),
    (b"zTXt", b"parameters\0\0" + zlib.compress(b"long " * 2_000_000)),
    (b"iTXt", b"parameters\0\0\0\0\0" + b"long " * 500_000),
    (b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(noise(2**21) % 90 + 32), 1)),
    (b"eXIf", exif_block() + bytes(2**21)),
  ],
)
def test_large_chunks_are_sound(tmp_path, large):
  # libpng's own limit, 8 MB, and Pillow's, 1 MB, are other programs'.
  image = read(tmp_path, make_png(PIXELS, extra=[large]))
  assert image.notes == ()
  np.testing.assert_array_equal(image.pixels, PIXELS)
  file, notes = result(tmp_path, image, "png")
  assert notes == ()
  got = dict(chunks_of(file.read_bytes()))
  if large[0] == b"iCCP":
    unpacked = [
      zlib.decompress(body.partition(b"\0\0")[2])
      for body in (large[1], got[b"iCCP"])
    ]
    assert unpacked[0] == unpacked[1]
  elif large[0] == b"eXIf":
    assert b"Cam\0" in got[b"eXIf"]
  else:
    assert got[large[0]] == large[1]


def test_too_large_ones_are_left_out_and_told(tmp_path):
  for kind in (b"tEXt", b"eXIf", b"iCCP"):
    body = b"x\0" + bytes(2**24)
    image = read(tmp_path, make_png(PIXELS, extra=[(kind, body), CHUNKS[6]]))
    np.testing.assert_array_equal(image.pixels, PIXELS)
    assert image.notes == (
      f"its {kind.decode()} chunk is left out (more than 16777216 bytes of"
      " metadata)",
    )
    assert image.metadata.png_chunks == (CHUNKS[6],)


@pytest.mark.parametrize(
  "kind", ["tEXt", "zTXt", "iTXt", "gAMA", "cHRM", "iCCP", "eXIf", "pHYs"]
)
def test_a_wrong_checksum_of_what_is_not_needed(tmp_path, kind):
  data = make_png(PIXELS, extra=[(kind.encode(), b"x\0\0\0\0\0\0")])
  at = data.index(kind.encode())
  data = data[: at + 11] + b"\0\0\0\0" + data[at + 15 :]
  image = read(tmp_path, data)
  np.testing.assert_array_equal(image.pixels, PIXELS)
  assert image.notes == (
    f"its {kind} chunk is left out (a wrong checksum or form)",
  )
  assert image.metadata == Metadata(format="PNG", size=(5, 6))


def test_a_wrong_checksum_of_transparency_and_of_what_is_needed(tmp_path):
  picture = PilImage.fromarray(PIXELS).convert("P")
  sound = saved(picture, "PNG", transparency=3)
  for kind in (b"IHDR", b"PLTE", b"IDAT", b"tRNS"):
    at = sound.index(kind)
    (length,) = struct.unpack(">I", sound[at - 4 : at])
    end = at + 4 + length
    data = sound[:end] + b"\0\0\0\0" + sound[end + 4 :]
    if kind != b"tRNS":
      with pytest.raises(ImageError, match=kind.decode()):
        read(tmp_path, data)
      continue
    image = read(tmp_path, data)
    assert image.alpha is None
    np.testing.assert_array_equal(image.pixels, read(tmp_path, sound).pixels)
    assert "its tRNS chunk" in image.notes[0]


def test_chunks_of_odd_form_and_of_no_known_meaning(tmp_path):
  odd = [(b"gAMA", b"\0\0\0\0"), (b"tEXt", b"no end"), (b"zTXt", b"x\0\1y")]
  odd += [(b"cHRM", b"short"), (b"tEXt", b"\0text"), (b"iTXt", b"x\0\0")]
  image = read(tmp_path, make_png(PIXELS, extra=odd))
  (note,) = image.notes
  assert "its chunks gAMA, tEXt, zTXt, cHRM, iTXt are left out" in note
  assert image.metadata.png_chunks == ()
  unknown = [(b"vpAg", b""), (b"ca\x1bX", b""), (b"hIST", bytes(7))]
  image = read(tmp_path, make_png(PIXELS, extra=unknown))
  (note,) = image.notes
  assert r"its chunks vpAg, ca\x1bX are left out" in note


def test_an_old_form_of_exif_and_xmp(tmp_path):
  # ImageMagick's, from before there were chunks for it.
  def raw(name, block):
    text = f"\n{name}\n{len(block):8}\n{block.hex()}\n".encode()
    keyword = f"Raw profile type {name}\0".encode()
    return b"zTXt", keyword + b"\0" + zlib.compress(text)

  packet = b"<a tiff:ImageWidth='5'/>"
  for extra in (
    [raw("exif", b"Exif\0\0" + exif_block(6)), raw("xmp", packet)],
    [
      raw("exif", exif_block(3)),
      (b"eXIf", exif_block(6)),
      raw("xmp", b"<b/>"),
      (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet),
    ],
    [
      raw("APP1", b"http://ns.adobe.com/xap/1.0/\0" + packet),
      raw("exif", b"Exif\0\0" + exif_block(6)),
    ],
  ):
    image = read(tmp_path, make_png(PIXELS, extra=extra))
    assert image.pixels.shape == (5, 6, 3)
    file, _ = result(tmp_path, image, "png")
    got = chunks_of(file.read_bytes())
    assert [k for k, _ in got if k.endswith(b"TXt")] == [b"iTXt"]
    assert got[-4 if got[-2][0] == got[-3][0] else -3][1].endswith(
      b"<a tiff:ImageWidth='10'/>"
    )
    with PilImage.open(file) as picture:
      assert picture.getexif()[271] == "Cam"
      assert picture.getexif()[274] == 1


# PNG to others.


STATED = {
  "linear": ([GAMMA], "made"),
  "wide": ([PRIMARIES], "made"),
  "wide, linear": ([PRIMARIES, GAMMA], "made"),
  "sRGB by numbers": ([(b"gAMA", struct.pack(">I", 45_455))], None),
  "sRGB first": ([(b"sRGB", b"\0"), GAMMA], None),
  "profile first": ([(b"iCCP", b"x\0\0" + zlib.compress(SRGB)), GAMMA], "kept"),
  "HDR": ([(b"iCCP", b"x\0\0" + zlib.compress(SRGB)), CHUNKS[0]], "kept, told"),
  "HDR alone": ([CHUNKS[0], GAMMA], "told"),
  "sRGB in cICP": ([(b"cICP", bytes((1, 13, 0, 1))), GAMMA], None),
  "P3": ([(b"cICP", bytes((12, 13, 0, 1)))], "told"),
  "no colours": ([(b"cHRM", bytes(32))], "told"),
  "no curve": ([(b"gAMA", b"\0\0\0\1")], "told"),
  "nothing": ([], None),
}


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
@pytest.mark.parametrize(
  ("name", "channels"),
  [
    (name, channels)
    for name, (extra, _) in STATED.items()
    for channels in (1, 3)
    # A profile of RGB is none of grey.
    if channels == 3 or all(kind != b"iCCP" for kind, _ in extra)
  ],
)
def test_colours_that_a_png_states_in_others(tmp_path, name, suffix, channels):
  extra, expected = STATED[name]
  pixels = PIXELS[..., :channels]
  image = read(tmp_path, make_png(pixels, extra=extra))
  assert image.notes == ()
  file, notes = result(tmp_path, image, suffix)
  format_ = {"jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}[suffix]
  if "told" in (expected or ""):
    names = ", ".join(k.decode() for k, _ in extra if k != b"iCCP")
    assert notes == (
      f"{format_} has no room for its colours, which are not sRGB's ({names});"
      " choose .png",
    )
  else:
    assert notes == ()
  with PilImage.open(file) as picture:
    profile = picture.info.get("icc_profile")
  has_profile = any(word in (expected or "") for word in ("made", "kept"))
  assert (profile is not None) == has_profile
  if "kept" in (expected or ""):
    assert profile == SRGB
  # What is written is read as a profile of these pixels.
  assert images.read_image(file).metadata.icc_profile == profile


@pytest.mark.parametrize(
  ("chunks", "exponent", "places"),
  [
    ([GAMMA], 1.0, None),
    ([(b"gAMA", struct.pack(">I", 55_556))], 1.8, None),
    ([GAMMA, PRIMARIES], 1.0, (0.708, 0.292, 0.17, 0.797, 0.131, 0.046)),
  ],
)
def test_a_profile_shows_what_the_chunks_state(
  tmp_path, chunks, exponent, places
):
  # By colorimetry: to light, to XYZ by the primaries, to sRGB's; white is D65.
  def to_xyz(places):
    x, y = np.reshape(places, (3, 2)).T
    columns = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    white = np.array([0.3127 / 0.329, 1, (1 - 0.3127 - 0.329) / 0.329])
    return columns * np.linalg.solve(columns, white)

  srgb = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
  light = (PIXELS / 255) ** exponent @ to_xyz(places or srgb).T
  light = np.clip(light @ np.linalg.inv(to_xyz(srgb)).T, 0, 1)
  curve = np.where(
    light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
  )
  image = read(tmp_path, make_png(PIXELS, extra=chunks))
  images.write_image(tmp_path / "a.tif", image)
  with PilImage.open(tmp_path / "a.tif") as picture:
    shown = ImageCms.profileToProfile(
      picture,
      ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"])),
      ImageCms.createProfile("sRGB"),
      renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
  assert np.abs(np.asarray(shown) - 255 * curve).max() < 3


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
@pytest.mark.parametrize("text", ["a cat\nSteps: 20", "une été 写"])
def test_texts_become_exif(tmp_path, suffix, text):
  info = PngImagePlugin.PngInfo()
  for word in ("parameters", "Description", "Author", "Copyright", "Software"):
    info.add_itxt(word, f"{word} {text}")
  info.add_text("Comment", "second to parameters")
  info.add_text("workflow\x1b", "x", zip=True)
  data = saved(PilImage.fromarray(PIXELS), "PNG", pnginfo=info)
  file, (note,) = result(tmp_path, read(tmp_path, data), suffix)
  assert r"its texts (Comment, workflow\x1b); choose .png" in note
  with PilImage.open(file) as picture:
    exif = picture.getexif()
    for tag, word in (
      (270, "Description"), (305, "Software"), (315, "Author"),
      (33432, "Copyright"),
    ):  # fmt: skip
      assert exif[tag].encode("latin-1").decode() == f"{word} {text}"
    comment = exif.get_ifd(34665)[37510]
    # What there was none before is big-endian, for piexif's readers.
    assert picture.getexif().endian == ">"
  if text.isascii():
    assert comment == b"ASCII\0\0\0" + f"parameters {text}".encode()
  else:
    assert comment == b"UNICODE\0" + f"parameters {text}".encode("utf-16-be")


def test_texts_do_not_displace_exif(tmp_path):
  exif = PilImage.Exif()
  exif[270] = "as before"
  exif.get_ifd(34665)[37510] = b"ASCII\0\0\0before"
  extra = [(b"eXIf", exif.tobytes()[6:]), CHUNKS[6]]
  extra += [(b"tEXt", b"Description\0other")]
  image = read(tmp_path, make_png(PIXELS, extra=extra))
  file, (note,) = result(tmp_path, image, "jpg")
  assert "texts (parameters, Description)" in note
  with PilImage.open(file) as picture:
    assert picture.getexif()[270] == "as before"
    assert picture.getexif().get_ifd(34665)[37510].endswith(b"before")


def test_texts_that_do_not_fit(tmp_path):
  extra = [(b"tEXt", b"parameters\0" + b"long " * 20_000)]
  image = read(
    tmp_path, make_png(PIXELS, extra=[*extra, (b"eXIf", exif_block())])
  )
  file, (note,) = result(tmp_path, image, "jpg")
  assert "texts (parameters)" in note
  with PilImage.open(file) as picture:
    assert picture.getexif()[271] == "Cam"
  file, notes = result(tmp_path, image, "webp")
  assert notes == ()
  file, (note,) = result(tmp_path, image, "bmp")
  assert note == "BMP has no room for its EXIF, texts (parameters); choose .png"


def test_texts_are_not_unpacked_for_nothing(tmp_path):
  bomb = zlib.compress(bytes(2**22), 9)
  kinds = (b"x", b"Comment", b"Author", b"Raw profile type exif")
  extra = [(b"zTXt", kinds[n % 4] + b"\0\0" + bomb) for n in range(600)]
  data = make_png(PIXELS, extra=extra)
  with mutation.bounded(2, 500):
    image = read(tmp_path, data)
    for suffix in ("png", "jpg", "tif"):
      result(tmp_path, image, suffix)


# How it was made.

RECORD = "esrgan_jax 1.0, realesrgan-x4plus x4"


def metadata_with(exif=None, *, record=RECORD, texts=()):
  return Metadata(exif=exif, record=record, png_chunks=tuple(texts))


def test_a_record_in_png(tmp_path):
  file = tmp_path / "a.png"
  other = (b"tEXt", b"Software\0a camera")
  for record in (RECORD, "esrgan_jax, 写真.pth"):
    for texts, word in (((), "Software"), ((other,), "esrgan_jax")):
      metadata = metadata_with(record=record, texts=texts)
      images.write_image(file, Image(PIXELS, None, metadata), overwrite=True)
      got = texts_of(file)
      assert got.pop(word) == record
      assert got == ({"Software": "a camera"} if texts else {})


@pytest.mark.parametrize("suffix", ["jpg", "tif", "ppm", "avif"])
def test_the_record_of_an_earlier_result_is_not_missed(tmp_path, suffix):
  other = (b"tEXt", b"Software\0a camera")
  for texts, lost in (((), ""), ((other,), "Software")):
    png = tmp_path / "a.png"
    metadata = metadata_with(record="esrgan_jax 0.9, old x2", texts=texts)
    images.write_image(png, Image(PIXELS, None, metadata), overwrite=True)
    image = images.read_image(png)
    image = dataclasses.replace(
      image, metadata=dataclasses.replace(image.metadata, record=RECORD)
    )
    notes = images.write_image(tmp_path / f"b.{suffix}", image, overwrite=True)
    if suffix == "ppm" and lost:  # Another program's word is missed.
      assert notes == ("PPM has no room for its texts (Software); choose .png",)
    else:
      assert notes == ()


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_record_in_exif(tmp_path, suffix, order):
  file = tmp_path / f"a.{suffix}"

  def tags(metadata):
    image = Image(noise(16, 16, 3), None, metadata)
    assert images.write_image(file, image, overwrite=True) == ()
    with PilImage.open(file) as picture:
      exif = picture.getexif()
      return exif.get(305), exif.get_ifd(34665).get(37395)

  assert tags(metadata_with()) == (RECORD, None)
  assert tags(metadata_with(exif_block(order=order))) == (RECORD, None)
  if suffix == "tif":
    with tifffile.TiffFile(file) as tiff:
      assert tiff.pages[0].tags["Software"].value == RECORD
      assert tiff.pages[0].tags["Make"].value == "Cam"
  exif = PilImage.Exif()
  exif.endian = order
  exif[305] = "of the camera"
  block = exif.tobytes()[6:]
  assert tags(metadata_with(block)) == ("of the camera", RECORD)
  # A second time, from the file.
  again = images.read_image(file).metadata
  history = f"{RECORD}; second"
  assert tags(metadata_with(again.exif, record="second")) == (
    "of the camera",
    history,
  )
  # Without: as it was.
  assert tags(metadata_with(block, record=None)) == ("of the camera", None)
  assert tags(metadata_with(record=None)) == (None, None)


def test_a_record_beside_what_is_too_large(tmp_path):
  exif = PilImage.Exif()
  exif.get_ifd(34665)[37510] = b"comment " * 9_000
  file = tmp_path / "a.jpg"
  image = Image(PIXELS, None, metadata_with(exif.tobytes()[6:]))
  notes = images.write_image(file, image)
  assert notes == ("JPEG has no room for its large EXIF; choose .png",)
  with PilImage.open(file) as picture:
    assert dict(picture.getexif()) == {305: RECORD}
  # Just no room for both.
  exif.get_ifd(34665)[37510] = bytes(65_527 - 60)
  image = Image(PIXELS, None, metadata_with(exif.tobytes()[6:]))
  assert images.write_image(file, image, overwrite=True) == ()
  with PilImage.open(file) as picture:
    assert 305 not in picture.getexif()
    assert len(picture.getexif().get_ifd(34665)[37510]) == 65_527 - 60


# EXIF at another size.


def test_exif_counts_in_the_pixels_of_the_result(tmp_path):
  exif = PilImage.Exif()
  below = exif.get_ifd(34665)
  below[40962], below[40963] = 40, 20
  # Of the sensor, to an inch.
  below[41486], below[41487] = IFDRational(201, 2), IFDRational(801, 4)
  below[37396] = (10, 5, 8, 4)
  below[41492] = (10, 5)
  below[34967] = b"\1"  # Xiaomi's: a video behind.
  below[40965] = {4097: 40, 4098: 20}
  picture = PilImage.fromarray(noise(20, 40, 3))
  image = read(tmp_path, saved(picture, "JPEG", exif=exif))
  for suffix in ("jpg", "tif", "png"):
    file, _ = result(tmp_path, image, suffix, shape=(60, 80))
    with PilImage.open(file) as written:
      got = written.getexif().get_ifd(34665)
      related = written.getexif().get_ifd(40965)
    assert (got[40962], got[40963]) == (80, 60)
    assert (float(got[41486]), float(got[41487])) == (201, 600.75)
    # The pixel's middle: 10.5 of 40 is 21 of 80, whose pixel is 20 or 21.
    assert got[37396] == (20, 16, 16, 12)
    assert got[41492] == (20, 16)
    assert 34967 not in got
    assert related == {4097: 80, 4098: 60}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_subject_turns_with_the_picture(tmp_path, orientation):
  stored = np.zeros((20, 40), np.uint8)
  stored[5, 10] = 255
  exif = PilImage.Exif()
  exif[274] = orientation
  below = exif.get_ifd(34665)
  below[41492], below[37396] = (10, 5), (10, 5, 8, 4)
  data = saved(PilImage.fromarray(stored), "PNG", exif=exif)
  image = read(tmp_path, data)
  images.write_image(tmp_path / "a.png", image)
  with PilImage.open(tmp_path / "a.png") as picture:
    below = picture.getexif().get_ifd(34665)
    x, y = below[41492]
    assert picture.getpixel((x, y)) == 255
  sides = (8, 4) if orientation < 5 else (4, 8)
  assert below[37396] == (x, y, *sides)


# Others.


def test_damaged_metadata_is_told(tmp_path):
  picture = PilImage.fromarray(noise(8, 8, 3))
  damaged = b"II*\0\xff\xff\xff\xff"
  for data in (
    saved(picture, "JPEG", exif=b"Exif\0\0" + damaged),
    saved(picture, "WEBP", exif=b"Exif\0\0" + damaged),
    make_png(PIXELS, extra=[(b"eXIf", overlapping_exif(99))]),
  ):
    assert read(tmp_path, data).notes == ("its EXIF is damaged, and left out",)
  for data in (
    saved(picture, "JPEG", icc_profile=b"no profile"),
    saved(picture, "TIFF", icc_profile=b"no profile"),
    saved(picture, "PNG", icc_profile=b"no profile"),
    saved(picture.convert("L"), "JPEG", icc_profile=SRGB),
    make_png(PIXELS, extra=[(b"iCCP", b"x\0\0not packed")]),
  ):
    (note,) = read(tmp_path, data).notes
    assert note == "its colour profile is not one of its pixels, and left out"


def test_a_part_of_a_profile_is_missing(tmp_path):
  picture = PilImage.fromarray(noise(8, 8, 3))
  large = SRGB + bytes(100_000)
  large = len(large).to_bytes(4, "big") + large[4:]
  data = saved(picture, "JPEG", icc_profile=large)
  assert read(tmp_path, data).metadata.icc_profile == large
  at = data.index(b"ICC_PROFILE\0\2")
  image = read(tmp_path, data.replace(b"ICC_PROFILE\0\2", b"ICC_PROFILE\0\1"))
  assert at > 0
  assert image.metadata.icc_profile is None
  assert "colour profile" in image.notes[0]


def test_what_a_jpeg_holds_beside_the_picture(tmp_path):
  def segment(marker, body):
    return struct.pack(">BBH", 255, marker, len(body) + 2) + body

  sound = saved(PilImage.fromarray(noise(8, 8, 3)), "JPEG")
  more = (
    segment(0xED, b"Photoshop 3.0\0" + b"8BIM"),
    segment(0xE2, b"MPF\0II*\0"),
    segment(0xEB, b"JP\0\1"),
    segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0"),
    segment(0xE5, b"nobody's"),
    segment(0xFE, "été 写\0".encode()),
  )
  image = read(tmp_path, sound[:2] + b"".join(more) + sound[2:])
  assert image.notes == (
    "its IPTC and resources of Photoshop are left out",
    "further pictures in it (a preview, a gain map) are left out",
    "its content credentials or the like (JUMBF) are left out",
    "its extended XMP is left out",
  )
  np.testing.assert_array_equal(image.pixels, read(tmp_path, sound).pixels)
  file, notes = result(tmp_path, image, "png")
  assert notes == ()
  assert texts_of(file) == {"Comment": "été 写"}
  file, notes = result(tmp_path, image, "jpg")
  assert notes == ()
  assert b"MPF\0" not in file.read_bytes()
  with PilImage.open(file) as picture:
    comment = picture.getexif().get_ifd(34665)[ExifTags.Base.UserComment]
  assert comment == b"UNICODE\0" + "été 写".encode("utf-16-be")


def test_a_chunk_of_webp_that_is_too_long(tmp_path):
  picture = PilImage.fromarray(noise(8, 8, 3))
  sound = saved(picture, "WEBP", xmp=b"<a/>", lossless=True)
  at = sound.index(b"XMP ") + 4
  data = sound[:at] + struct.pack("<I", 4000) + sound[at + 4 :]
  image = read(tmp_path, data)
  np.testing.assert_array_equal(image.pixels, np.asarray(picture))
  assert image.notes == ("its last chunk is damaged, and left out",)
  at = sound.index(b"VP8L") + 4
  data = sound[:at] + struct.pack("<I", 4000) + sound[at + 4 :]
  with pytest.raises(ImageError, match="beyond the end"):
    read(tmp_path, data)


def test_a_profile_in_bmp(tmp_path):
  data = bmp(4, 4, 24, 0, noise(48).tobytes(), palette=b"", size=124)
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  head = bytearray(data)
  head[70:74] = b"DEBM"
  struct.pack_into("<II", head, 126, len(data) - 14, len(profile))
  assert read(tmp_path, bytes(head) + profile).metadata.icc_profile == profile
  image = read(tmp_path, bytes(head) + profile[:-9])
  assert image.metadata.icc_profile is None
  assert "colour profile" in image.notes[0]


def test_what_a_tiff_holds_beside_the_picture(tmp_path):
  def tiff(**options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, noise(8, 8, 3), photometric="rgb", **options)
    return read(tmp_path, buffer.getvalue())

  tags = [(33723, 7, 4, b"IPTC", True), (65000, 3, 1, 7, True)]
  tags += [(318, 5, 2, (3127, 10000, 329, 1000), True)]
  image = tiff(extratags=tags)
  assert image.notes == (
    "its tags 318 (WhitePoint), 33723 (IPTC), 65000 are left out",
  )
  # What tifffile writes for itself tells of the shape alone.
  assert b"shape" not in (image.metadata.exif or b"")
  (note,) = tiff(ome=True).notes
  assert note == "its description by ImageJ or OME is left out"
  image = tiff(metadata=None, description="a cat")
  assert image.notes == ()
  assert b"a cat" in image.metadata.exif


def test_tags_beyond_the_end_are_told(tmp_path):
  buffer = io.BytesIO()
  options = {"photometric": "rgb", "metadata": None, "software": "a program"}
  tifffile.imwrite(buffer, noise(8, 8, 3), description="a cat", **options)
  data = bytearray(buffer.getvalue())
  with tifffile.TiffFile(io.BytesIO(data)) as tiff:
    place = tiff.pages[0].tags[270].offset
  struct.pack_into("<I", data, place + 8, len(data) - 2)
  image = read(tmp_path, bytes(data))
  assert image.notes == (
    "its tags 270 are left out: their values lie beyond the end",
  )
  assert b"a program" in image.metadata.exif


def test_what_a_gif_says_is_told(tmp_path):
  data = saved(PilImage.new("P", (4, 3)), "GIF", comment=b"a cat")
  assert read(tmp_path, data).notes == ("its comment is left out",)
  # An application's words, behind the 13 bytes of the head and the palette.
  at = data.index(b"!\xfe")
  data = data[:at] + b"!\xff\x0bXMP DataXMP\1x\0" + data[at:]
  image = read(tmp_path, data)
  assert image.notes == ("its extension XMP DataXMP, comment are left out",)


def test_fewer_bits_are_told(tmp_path):
  deep = Image(noise(4, 4, 3, dtype=np.uint16))
  ten = Image(deep.pixels, metadata=Metadata(bits=10))
  floats = Image(deep.pixels / np.float32(65535))
  whole = {"png": 16, "jp2": 16, "avif": 12, "ppm": 16}
  for image, suffixes in (
    (deep, ("png", "jp2", "ppm", "tif")),
    (ten, whole),
    (floats, ("tif", "exr", "pfm", "jxl")),
  ):
    for suffix in suffixes:
      file = tmp_path / f"a.{suffix}"
      assert images.write_image(file, image, overwrite=True) == ()
  eight = dict.fromkeys(("jpg", "webp", "bmp", "tga", "qoi"), 8)
  for image, suffixes in (
    (deep, {**eight, "avif": 12}),
    (ten, eight),
    (floats, eight | whole),
  ):
    for suffix, bits in suffixes.items():
      file = tmp_path / f"a.{suffix}"
      (told,) = images.write_image(file, image, overwrite=True)
      assert told.endswith(f" {bits} bits at most, to which it was rounded")


def test_a_mask_and_a_large_packet_of_a_tiff_are_told(tmp_path):
  file = tmp_path / "a.tif"
  options = {"photometric": "rgb", "metadata": None}
  large = (700, 1, 2**24 + 1, b" " * (2**24 + 1), True)
  with tifffile.TiffWriter(file) as tiff:
    tiff.write(noise(9, 7, 3), extratags=[large], **options)
    tiff.write(noise(4, 3) > 99, subfiletype=4, metadata=None)  # Another's.
    tiff.write(noise(9, 7) > 99, subfiletype=4, metadata=None)
  image = images.read_image(file)
  assert image.notes == (
    "its mask of what is transparent is left out",
    "its XMP of 16777217 bytes is left out, more than 16777216",
  )


@pytest.mark.filterwarnings("error")
def test_no_warning_of_pillow_on_a_large_picture(tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", 100)
  image = Image(noise(40, 41, 3))
  for suffix in ("png", "jpg", "webp", "tif", "bmp"):
    images.write_image(tmp_path / f"a.{suffix}", image)
    assert images.read_image(tmp_path / f"a.{suffix}").pixels.shape[1] == 41
  cmyk = PilImage.frombytes("CMYK", (41, 40), noise(40, 41, 4).tobytes())
  assert read(tmp_path, saved(cmyk, "TIFF")).pixels.shape == (40, 41, 3)
  assert capfd.readouterr() == ("", "")
