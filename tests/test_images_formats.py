"""Formats that hold samples more or less as they are, and OpenEXR.

The oracles are Pillow, imagecodecs, and files assembled byte by byte.
"""

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.images import (
  Image,
  ImageError,
  Metadata,
  h273,
  light,
  profiles,
)
from tests import formats_page
from tests import image_builders as build
from tests.image_builders import joined, noise, split


def read(tmp_path, data, name="a.tga"):
  file = tmp_path / name
  file.write_bytes(data)
  image = images.read_image(file)
  size = images.read_size(file)
  assert size is not None
  assert sorted(size) == sorted(image.pixels.shape[:2])
  return image


def shown(values):
  """What a screen shows of light, by the letter of sRGB."""
  values = np.asarray(values, np.float64)
  return np.where(
    values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055
  )


def by_pillow(data, mode=None):
  with PilImage.open(io.BytesIO(data)) as picture:
    picture = picture if mode is None else picture.convert(mode)
    samples = np.asarray(picture)
  return samples if samples.ndim == 3 else samples[..., None]


# TGA.


@pytest.mark.parametrize("orientation", [-1, 1])
@pytest.mark.parametrize("compression", [None, "tga_rle"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_tga_of_pillow(tmp_path, mode, compression, orientation):
  samples = noise(31, 23, 4) | 1
  samples[5:15] = 9  # Runs over the ends of rows.
  picture = PilImage.fromarray(samples)
  picture = picture.convert("RGB" if mode == "P" else "RGBA").convert(mode)
  data = build.saved(
    picture, "TGA", compression=compression, orientation=orientation
  )
  image = read(tmp_path, data)
  assert image.metadata.format == "TGA"
  mode = "RGB" if mode == "P" else mode
  np.testing.assert_array_equal(joined(image), by_pillow(data, mode))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tga_is_read_by_pillow(tmp_path, channels):
  samples = noise(12, 9, channels) | 1
  images.write_image(tmp_path / "a.tga", split(samples))
  data = (tmp_path / "a.tga").read_bytes()
  np.testing.assert_array_equal(by_pillow(data), samples)
  np.testing.assert_array_equal(joined(read(tmp_path, data)), samples)


def test_tga_of_five_bits_and_turned(tmp_path):
  red, clear = (31 << 10 | 1 << 15, 3)
  words = np.array([red, clear], "<u2").tobytes()
  image = read(tmp_path, build.tga(2, 1, 16, 2, words, flags=1 | 16))
  assert joined(image).tolist() == [[[0, 0, 25, 0], [255, 0, 0, 255]]]
  image = read(tmp_path, build.tga(2, 1, 16, 2, words))
  assert image.alpha is None


def test_tga_of_a_palette_that_is_too_small(tmp_path):
  data = build.tga(2, 1, 8, 1, b"\0\2", palette=bytes(6))
  with pytest.raises(ImageError, match="a colour that is not in the palette"):
    read(tmp_path, data)


def test_alpha_that_says_nothing(tmp_path):
  samples = noise(4, 4, 4)
  samples[..., 3] = 0
  image = read(tmp_path, build.tga(4, 4, 32, 2, samples.tobytes(), flags=40))
  assert image.alpha is None
  np.testing.assert_array_equal(image.pixels, samples[..., 2::-1])


def test_tga_by_its_end_or_its_name(tmp_path):
  data = build.tga(4, 4, 24, 2, noise(48).tobytes())
  bare = data[:-26]
  assert read(tmp_path, data, "a.dat").pixels.shape == (4, 4, 3)
  assert read(tmp_path, bare, "a.TGA").pixels.shape == (4, 4, 3)
  with pytest.raises(ImageError, match="not an image of a known format"):
    read(tmp_path, bare, "a.dat")
  with pytest.raises(ImageError, match="not an image of a known format"):
    read(tmp_path, b"a letter, by chance of this name" * 9, "a.tga")


# PBM, PGM, PPM, PAM, PFM.


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I"])
def test_pnm_of_pillow(tmp_path, mode):
  samples = noise(11, 13, 3)
  if mode == "I":
    picture = PilImage.fromarray(noise(11, 13, dtype=np.uint16))
  else:
    picture = PilImage.fromarray(samples).convert(mode)
  data = build.saved(picture, "PPM")
  image = read(tmp_path, data, "a.pnm")
  expected = by_pillow(data, "L" if mode == "1" else None)
  assert image.pixels.dtype == (np.uint16 if mode == "I" else np.uint8)
  np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (b"P1\n# of old\n3 1\n1 01", [[0], [255], [0]]),
    (b"P2 2 1 15 1\n# a\n 15", [[17], [255]]),
    (b"P3\n1 1\n65535\n7 8 65535 ", [[7, 8, 65535]]),
    (b"P5 1 1 1023 \x02\x00", [[round(512 / 1023 * 65535)]]),
    (b"P6#\n1 1#\n255\n\n#\x0b", [[10, 35, 11]]),
  ],
)
def test_pnm_by_the_letter(tmp_path, text, expected):
  assert read(tmp_path, text).pixels[0].tolist() == expected


@pytest.mark.parametrize(
  "picture",
  [
    b"P4 9 1 \x80\x80",
    b"P5 2 1 255 ab",
    b"P6 1 1 1023 \0a\0b\0c",
    b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 2\nMAXVAL 255\nENDHDR\nab",
  ],
)
def test_pictures_after_the_first_are_told(tmp_path, picture):
  assert read(tmp_path, picture).notes == ()
  assert read(tmp_path, picture + b"\n").notes == ()
  two = read(tmp_path, picture * 2)
  assert "after its first are left out" in two.notes[0]
  np.testing.assert_array_equal(two.pixels, read(tmp_path, picture).pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pnm_round_trips(tmp_path, dtype, channels):
  samples = noise(7, 5, channels, dtype=dtype)
  suffixes = {1: ".pgm .pnm .pam", 3: ".ppm .pnm .pam"}.get(channels, ".pam")
  for suffix in suffixes.split():
    file = tmp_path / f"a{suffix}"
    images.write_image(file, split(samples))
    np.testing.assert_array_equal(joined(images.read_image(file)), samples)
    if suffix != ".pam" and (channels, dtype) != (3, np.uint16):
      expected = by_pillow(file.read_bytes())
      np.testing.assert_array_equal(expected, samples)


def test_pnm_of_other_colours(tmp_path):
  grey, colour = Image(noise(3, 4, 1)), Image(noise(3, 4, 3))
  images.write_image(tmp_path / "a.ppm", grey)
  got = images.read_image(tmp_path / "a.ppm").pixels
  np.testing.assert_array_equal(got, grey.pixels.repeat(3, axis=2))
  with pytest.raises(ImageError, match=r"grey only; choose \.ppm"):
    images.write_image(tmp_path / "a.pgm", colour)
  clear = Image(grey.pixels, noise(3, 4))
  with pytest.raises(ImageError, match="cannot hold transparency"):
    images.write_image(tmp_path / "b.ppm", clear)


def test_pfm_is_light(tmp_path):
  values = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
  data = build.saved(PilImage.fromarray(values), "PPM")
  image = read(tmp_path, data)
  assert image.metadata.linear
  np.testing.assert_allclose(image.pixels[..., 0], shown(values), atol=1e-6)
  images.write_image(tmp_path / "a.pfm", image)
  got = by_pillow((tmp_path / "a.pfm").read_bytes())[..., 0]
  np.testing.assert_allclose(got, values, atol=1e-6)


@pytest.mark.parametrize(
  "text",
  [
    b"P5\n9 9\n255\n" + bytes(80),
    b"P2\n2 2\n255\n1 2 3",
    b"P2\n2 1\n255\n1 256",
    b"P2\n1 1\n255\n" + b"9" * 999,
    b"P5\n1 1\n0\n\0",
    b"P5\n1 1\n65536\n\0\0\0",
    b"P5\n1 one\n255\n\0",
    b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\n\0",
    b"Pf\n1 1\n0\n\0\0\0\0",
    b"Pf\n1 1\nnan\n\0\0\0\0",
  ],
)
def test_pnm_that_is_damaged(tmp_path, text):
  with pytest.raises(ImageError, match="damaged or cut short"):
    read(tmp_path, text)


# QOI.


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_qoi(tmp_path, channels):
  samples = noise(12, 9, channels)
  samples[4:8] //= 99  # Runs, and colours that come again.
  images.write_image(tmp_path / "a.qoi", split(samples))
  data = (tmp_path / "a.qoi").read_bytes()
  if channels < 3:
    samples = samples[..., [0, 0, 0, *range(1, channels)]]
  np.testing.assert_array_equal(by_pillow(data), samples)
  np.testing.assert_array_equal(imagecodecs.qoi_decode(data), samples)
  np.testing.assert_array_equal(joined(read(tmp_path, data)), samples)


# OpenEXR.


@pytest.mark.parametrize("tile", [None, (8, 4)])
@pytest.mark.parametrize("compression", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("names", ["Y", "RGB", "RGBA"])
def test_exr_by_the_letter(tmp_path, names, dtype, compression, tile):
  values = (noise(len(names), 19, 13) // 16 * 16 / 128).astype(dtype)
  planes = dict(zip(names, values, strict=True))
  if "A" in planes:
    planes["A"] = np.clip(planes["A"], 0.25, 1)
  image = read(tmp_path, build.exr(planes, compression, tile=tile))
  assert image.metadata.bits == (16 if dtype == np.float16 else None)
  assert image.notes == ()
  light_of = np.stack([planes[n] for n in names if n != "A"], axis=2)
  if "A" in planes:
    np.testing.assert_array_equal(image.alpha, planes["A"])
    light_of = light_of / planes["A"][..., None].astype(np.float64)
  np.testing.assert_allclose(
    image.pixels * image.metadata.gain, shown(light_of), rtol=1e-5, atol=1e-6
  )
  # And back: the same to the bit, where halves have so few.
  images.write_image(tmp_path / "b.exr", image)
  again = images.read_image(tmp_path / "b.exr")
  assert again.metadata.bits == image.metadata.bits
  assert (again.alpha is None) == (image.alpha is None)
  tolerance = 1e-3 if dtype == np.float16 and "A" in planes else 2e-6
  np.testing.assert_allclose(
    again.pixels, image.pixels, rtol=tolerance, atol=1e-6
  )


@pytest.mark.parametrize(
  ("data", "dtype"),
  [
    (build.EXR_PIZ, np.float16),
    (build.EXR_PXR24, np.float32),
    (build.EXR_B44A, np.float16),
  ],
)
def test_exr_of_its_own_library(tmp_path, data, dtype):
  image = read(tmp_path, data)
  np.testing.assert_allclose(
    image.pixels * image.metadata.gain,
    shown(build.exr_pattern().astype(dtype)),
    rtol=1e-4,
    atol=1e-6,
  )


def test_halves_are_kept_to_the_bit(tmp_path):
  values = (noise(3, 40, 30, dtype=np.uint16) % 0x7C00).view(np.float16)
  data = build.exr(dict(zip("RGB", values, strict=True)))
  image = read(tmp_path, data)
  assert image.metadata.gain > 1
  images.write_image(tmp_path / "b.exr", image)
  again = images.read_image(tmp_path / "b.exr")
  got = light.to_light(again.pixels * np.float32(again.metadata.gain))
  np.testing.assert_array_equal(
    got.astype(np.float16), np.moveaxis(values, 0, 2)
  )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_become_light_and_come_back(tmp_path, dtype):
  top = np.iinfo(dtype).max
  samples = np.arange(0, top + 1, max(1, top // 4000), dtype=dtype)
  samples = samples.reshape(1, -1, 1)
  images.write_image(tmp_path / "a.exr", Image(samples))
  image = images.read_image(tmp_path / "a.exr")
  np.testing.assert_allclose(image.pixels, samples / top, atol=0.0005)
  (told,) = images.write_image(tmp_path / "a.png", image)
  assert told == "PNG has 16 bits at most, to which it was rounded"
  got = images.read_image(tmp_path / "a.png").pixels
  step = 257 // 2 if dtype == np.uint8 else 1
  assert np.abs(
    got.astype(int) - samples.astype(int) * (65535 // top)
  ).max() <= (step)


def test_exr_layers_and_windows_are_told(tmp_path):
  values = noise(4, 6, 5).astype(np.float16) / 255
  planes = {
    "View.Combined.R": values[0],
    "View.Combined.G": values[1],
    "View.Combined.B": values[2],
    "View.Depth.Z": values[3],
  }
  more = [("chromaticities", "chromaticities", bytes(32))]
  more += [("xDensity", "float", np.float32(300).tobytes())]
  data = build.exr(planes, window=(-2, 5, 2, 10), more=more)
  image = read(tmp_path, data)
  np.testing.assert_allclose(
    image.pixels[..., 0], shown(values[0]), rtol=1e-4, atol=1e-6
  )
  assert image.metadata.dpi == (300, 300)
  notes = "; ".join(image.notes)
  assert "View.Depth.Z" in notes
  assert "primaries" in notes
  images.write_image(tmp_path / "b.exr", image)
  assert images.read_image(tmp_path / "b.exr").metadata.dpi == (300, 300)


def test_exr_of_no_picture(tmp_path):
  plane = np.zeros((4, 4), np.float16)
  with pytest.raises(ImageError, match=r"channels are U V, and R, G and B"):
    read(tmp_path, build.exr({"U": plane, "V": plane}))
  with pytest.raises(ImageError, match="DWAA compression is not read"):
    read(tmp_path, build.exr({"Y": plane}, 8))
  plane[1, 2] = np.nan
  with pytest.raises(ImageError, match="1 of 16 values are NaN"):
    read(tmp_path, build.exr({"Y": plane}))


def test_what_has_no_room_is_told(tmp_path):
  info = Metadata(icc_profile=build.WIDE, exif=build.exif_block())
  image = Image(noise(4, 4, 3), metadata=info)
  for suffix in (".tga", ".ppm", ".qoi", ".exr"):
    (note,) = images.write_image(tmp_path / f"a{suffix}", image)
    assert ("colour profile, EXIF" in note) == (suffix != ".exr")
    assert "EXIF" in note


@pytest.mark.parametrize("channels", [1, 3])
def test_what_says_nothing_is_not_told(tmp_path, channels):
  # tifffile names itself, and linear light is what OpenEXR means.
  samples = np.zeros((4, 4, channels), np.float32)
  linear = profiles.linear_srgb(channels)
  file = tmp_path / "a.tif"
  tifffile.imwrite(
    file,
    samples if channels == 3 else samples[..., 0],
    photometric="rgb" if channels == 3 else "minisblack",
    iccprofile=linear,
  )
  image = images.read_image(file)
  assert image.metadata.exif is not None
  for suffix in (".exr", ".pfm", ".jxl", ".tga"):
    assert not [
      note
      for note in images.write_image(tmp_path / f"a{suffix}", image)
      if "no room" in note
    ]


# The page.


def test_the_page_says_what_is_kept():
  assert formats_page.PAGE.read_text() == formats_page.page(), (
    "make it anew: python -m tests.formats_page > docs/formats.md"
  )


def test_the_page_has_every_suffix():
  text = formats_page.page()
  for suffix in images.INPUT_SUFFIXES:
    assert f"`{suffix}`" in text


# Colours that are stated by numbers.

P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329)


def test_primaries_of_exr_go_along(tmp_path):
  values = noise(3, 6, 5).astype(np.float32) / 255
  packed = np.array(P3, "<f4").tobytes()
  data = build.exr(
    dict(zip("RGB", values, strict=True)),
    more=[("chromaticities", "chromaticities", packed)],
  )
  image = read(tmp_path, data)
  assert image.notes == ()
  info = image.metadata
  assert not profiles.is_linear(info.icc_profile)
  found = profiles.primaries_of(info.icc_profile)
  np.testing.assert_allclose(found, (*P3[6:], *P3[:6]), atol=1e-3)
  assert images.write_image(tmp_path / "b.exr", image) == ()
  written = (tmp_path / "b.exr").read_bytes()
  at = written.index(b"chromaticities\0chromaticities\0") + 34
  places = np.frombuffer(written, "<f4", 8, at)
  np.testing.assert_allclose(places, P3, atol=1e-3)
  # Of a profile of sRGB, those of sRGB.
  srgb = Image(noise(4, 4, 3), metadata=Metadata(icc_profile=build.SRGB))
  assert images.write_image(tmp_path / "c.exr", srgb) == ()
  again = images.read_image(tmp_path / "c.exr")
  assert again.metadata.icc_profile is None


def test_colours_by_number():
  for primaries in (9, 12):
    profile, notes = h273.profile_of(primaries, 13)
    assert notes == ()
    red = {9: (0.708, 0.292), 12: (0.68, 0.32)}[primaries]
    found = profiles.primaries_of(profile)
    np.testing.assert_allclose(found[2:4], red, atol=1e-3)
  assert h273.profile_of(1, 1) == (None, ())
  for primaries, curve, words in ((1, 16, "PQ"), (9, 18, "BT.2020, HLG")):
    profile, (note,) = h273.profile_of(primaries, curve)
    assert profile is None
    assert f"({words})" in note


def test_profiles_without_a_matrix_have_no_primaries():
  for wrong in (b"", bytes(200), build.grey_profile(), build.cmyk_profile()):
    assert profiles.primaries_of(wrong[:300]) is None
