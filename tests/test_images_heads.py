"""What headers tell of files that cannot be read."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.images import ImageError
from tests import image_builders as build
from tests.image_builders import noise, saved

# Where only decoding tells that something is missing.
_NOT_TOLD = {
  "bmp": {"RLE8", "RLE4"},
  "jxl": {*build.samples()["jxl"]} - {"boxes"},
  "pnm": {"text"},
  "tga": {"runs, alpha", "small palette"},
  "tiff": {"JPEG", "palette", "palette of 8 bits"},
}


def refusal(function, *arguments):
  try:
    function(*arguments)
  except ImageError as error:
    return str(error)
  return ""


@pytest.mark.parametrize("kind", sorted(build.samples()))
def test_heads_refuse_what_is_not_read_and_nothing_else(tmp_path, kind):
  file = tmp_path / f"a.{kind}"
  missed = set()
  for name, data in build.samples()[kind].items():
    file.write_bytes(data)
    images.check_head(file)
    for length in np.linspace(1, len(data) - 1, 9).astype(int):
      file.write_bytes(data[:length])
      told = refusal(images.check_head, file)
      refused = refusal(images.read_image, file)
      assert refused or not told, (name, length, told)
      if refused and not told:
        missed.add(name)
  assert missed <= _NOT_TOLD.get(kind, set())


def test_frames_and_pages_are_looked_at(tmp_path):
  for kind, files in build.several().items():
    for data in files.values():
      file = tmp_path / f"a.{kind}"
      file.write_bytes(data)
      images.check_head(file)
      if kind != "gif":
        file.write_bytes(data[: len(data) // 2])
        assert "damaged or cut short" in refusal(images.check_head, file)
  pages = io.BytesIO()
  with tifffile.TiffWriter(pages) as tiff:
    tiff.write(noise(4, 5))
    tiff.write(noise(4, 5).astype(np.int16))
  file.write_bytes(pages.getvalue())
  assert "a.tiff: page 2: has signed samples of 16" in refusal(
    images.check_head, file
  )


def _signed():
  file = io.BytesIO()
  tifffile.imwrite(file, noise(4, 5).astype(np.int16))
  return file.getvalue()


def _animated(format_):
  pictures = [PilImage.fromarray(noise(12, 10, 3, seed=n)) for n in (0, 1)]
  return saved(pictures[0], format_, save_all=True, append_images=pictures[1:])


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (lambda: _animated("AVIF"), "is an animation; save its frames as PNG"),
    (_signed, "has signed samples of 16 bits, whose white point is not def"),
    (lambda: b"no picture", "not an image of a known format"),
    (lambda: b"", "the file is empty"),
    (lambda: b"P5 6 6 70000\n" + bytes(99), "a largest value of 70000"),
    (
      lambda: saved(PilImage.new("RGB", (300, 200)), "PNG"),
      "300 x 200 pixels are more than max_pixels=50000",
    ),
  ],
)
def test_it_is_what_reading_says(tmp_path, data, message):
  file = tmp_path / "a"
  file.write_bytes(data())
  with pytest.raises(ImageError, match=f"a: .*{message}") as told:
    images.check_head(file, max_pixels=50_000)
  with pytest.raises(ImageError) as refused:
    images.read_image(file, max_pixels=50_000)
  assert str(told.value) == str(refused.value)
