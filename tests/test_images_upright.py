"""A size as it is seen, against what reading the picture gives."""

import pytest
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.images.upright import read_upright_size


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("turn", [None, 1, 3, 5, 6, 8, 99])
def test_it_is_that_of_the_picture(tmp_path, suffix, turn):
  path = tmp_path / f"a.{suffix}"
  exif = PilImage.Exif()
  exif[271] = "Maker"
  if turn:
    exif[274] = turn
  PilImage.new("RGB", (7, 4), (9, 99, 200)).save(path, exif=exif)
  height, width, _ = images.read_image(path).pixels.shape
  assert read_upright_size(path) == (width, height)


@pytest.mark.parametrize("suffix", ["png", "jpg", "pgm", "ppm", "webp"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_channels_are_those_of_the_picture_or_not_told(tmp_path, suffix, mode):
  path = tmp_path / f"a.{suffix}"
  for options in ({}, {"transparency": 0}) if suffix == "png" else ({},):
    try:
      PilImage.new(mode, (7, 4)).save(path, **options)
    except (OSError, ValueError, TypeError):
      return  # Not in this format, or without what is transparent.
    picture = images.read_image(path)
    expected = (picture.pixels.shape[2], picture.alpha is not None)
    known = images.read_channels(path)
    assert known == (None if suffix == "webp" else expected)


def test_what_is_cut_short_has_what_is_known(tmp_path):
  path = tmp_path / "a.jpg"
  PilImage.new("RGB", (7, 4)).save(path)
  path.write_bytes(path.read_bytes()[:-100])
  assert read_upright_size(path) == (7, 4)
  path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x07\0\0\0\x04")
  assert read_upright_size(path) == (7, 4)
  assert images.read_channels(path) is None
  assert read_upright_size(tmp_path) is None
  assert read_upright_size(tmp_path / "absent.png") is None


@pytest.mark.parametrize("turn", range(8))
def test_jpeg_xl_has_its_turn_in_its_header(tmp_path, turn):
  bits = "1" + "00000" + "000" + "10000"  # 8 rows, 16 columns; lowest first.
  bits += "0" + "1" + f"{turn:03b}"[::-1]
  packed = int(bits[::-1], 2).to_bytes(40, "little")
  path = tmp_path / "a.jxl"
  path.write_bytes(b"\xff\x0a" + packed)
  assert read_upright_size(path) == ((8, 16) if turn > 3 else (16, 8))
