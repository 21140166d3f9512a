"""Windows of pictures, and TIFF that is written by rows of tiles."""

import io
import itertools
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.images import Image, ImageError, Metadata, large
from esrgan_jax.images.encoders import tiff_pieces
from tests import image_builders as build
from tests.image_builders import SRGB, noise
from tests.test_images_floats import waves

PilImage.MAX_IMAGE_PIXELS = None


def assert_windows_are_of(file, *, side=(7, 9)):
  """All windows of a file are parts of what `read_image` reads."""
  whole = images.read_image(file)
  with large.open_large(file) as picture:
    known = picture.survey()
    picture.survey(known)
    H, W, _ = picture.shape
    assert picture.shape == whole.pixels.shape
    assert picture.dtype == whole.pixels.dtype
    assert picture.metadata == whole.metadata
    assert sorted(picture.notes) == sorted(whole.notes)
    for top, left in itertools.product(
      range(0, H, side[0] - 2), range(0, W, side[1] - 3)
    ):
      rows = slice(top, min(top + side[0], H))
      columns = slice(left, min(left + side[1], W))
      window = picture.read(rows, columns)
      for name in ("pixels", "alpha", "extra"):
        part, expected = getattr(window, name), getattr(whole, name)
        assert (part is None) == (expected is None)
        if part is not None:
          np.testing.assert_array_equal(part, expected[rows, columns])
    if whole.alpha is not None:
      even = (whole.alpha == whole.alpha.flat[0]).all()
      assert known.alpha == (whole.alpha.flat[0] if even else None)


SAMPLES = [
  (kind, name) for kind in ("tiff", "png") for name in build.samples()[kind]
]


@pytest.mark.parametrize(("kind", "name"), SAMPLES)
def test_windows_of_every_kind_of_file(tmp_path, kind, name):
  file = tmp_path / "a"
  file.write_bytes(build.samples()[kind][name])
  assert_windows_are_of(file)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_windows_of_turned_ones(tmp_path, turn, tile):
  tifffile.imwrite(
    tmp_path / "a.tif",
    noise(37, 21, 3),
    photometric="rgb",
    tile=tile,
    compression="zlib",
    metadata=None,
    extratags=[(274, 3, 1, turn, True)],
  )
  assert_windows_are_of(tmp_path / "a.tif", side=(10, 12))


@pytest.mark.parametrize("strip", [None, 8, 20])
def test_large_strips_without_compression_are_cut(tmp_path, monkeypatch, strip):
  monkeypatch.setattr("esrgan_jax.images.decoders.tiff._CUT", 300)
  options = {} if strip is None else {"rowsperstrip": strip}
  tifffile.imwrite(
    tmp_path / "a.tif",
    noise(3, 41, 23, dtype=np.uint16),
    photometric="rgb",
    planarconfig="separate",
    metadata=None,
    **options,
  )
  assert_windows_are_of(tmp_path / "a.tif")


@pytest.mark.parametrize("top", [0.5, 3.0, 250.0])
@pytest.mark.parametrize("linear", [False, True])
def test_floats_are_as_bright_as_of_the_whole(tmp_path, linear, top):
  values = waves(40, 50, 3, top=top)
  image = Image(values, metadata=Metadata(linear=linear))
  images.write_image(tmp_path / "a.tif", image)
  assert_windows_are_of(tmp_path / "a.tif", side=(30, 30))


def test_not_all_is_kept_and_still_right(tmp_path, monkeypatch):
  monkeypatch.setattr("esrgan_jax.images.decoders.tiff._KEPT", 1)
  tifffile.imwrite(
    tmp_path / "a.tif",
    noise(70, 90),
    tile=(16, 32),
    compression="lzw",
    metadata=None,
  )
  assert_windows_are_of(tmp_path / "a.tif", side=(40, 50))


def test_what_is_refused(tmp_path, monkeypatch):
  file = tmp_path / "a.tif"
  for _ in range(2):
    tifffile.imwrite(file, noise(8, 8), append=True, metadata=None)
  with pytest.raises(ImageError, match="holds 2 pages"), large.open_large(file):
    pass
  file.unlink()
  tifffile.imwrite(file, noise(64, 64), compression="zlib", metadata=None)
  with (
    pytest.raises(ImageError, match="more than max_pixels=99"),
    large.open_large(file, max_pixels=99),
  ):
    pass
  monkeypatch.setattr("esrgan_jax.images.decoders.tiff._MOST_OF_PART", 4000)
  with (
    pytest.raises(ImageError, match="save it with tiles"),
    large.open_large(file),
  ):
    pass


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_damaged_part_is_an_error_of_its_windows(tmp_path, tile):
  file = tmp_path / "a.tif"
  tifffile.imwrite(
    file,
    noise(64, 64, 3),
    photometric="rgb",
    tile=tile,
    rowsperstrip=None if tile else 16,
    compression="zlib",
    metadata=None,
  )
  with tifffile.TiffFile(file) as tiff:
    at, size = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
  data = bytearray(file.read_bytes())
  data[at : at + size] = bytes(size)
  file.write_bytes(data)
  with large.open_large(file) as picture:
    picture.read(slice(0, 48), slice(0, 64))
    with pytest.raises(ImageError, match=r"a\.tif: damaged"):
      picture.read(slice(40, 64), slice(40, 64))


def pyramid(file, pixels, *, below, **options):
  """Writes a picture with copies of half and a quarter of its size."""
  levels = [pixels[::step, ::step] for step in (1, 2, 4)]
  options = {"tile": (32, 32), "metadata": None, **options}
  with tifffile.TiffWriter(file) as tiff:
    more = {"subifds": 2} if below else {}
    tiff.write(levels[0], **options, **more)
    for level in levels[1:]:
      tiff.write(level, subfiletype=1, **options)


def test_smaller_copies_are_found(tmp_path):
  file = tmp_path / "a.tif"
  for below, levels in ((True, "parts"), (False, "pages")):
    pyramid(file, noise(90, 70, 3), below=below, photometric="rgb")
    assert images.read_storage(file) == (3, levels)
    assert_windows_are_of(file, side=(50, 60))
  # A preview has any size, and is none of them.
  with tifffile.TiffWriter(file) as tiff:
    tiff.write(noise(90, 70), metadata=None)
    tiff.write(noise(20, 20), subfiletype=1, metadata=None)
  assert images.read_storage(file) == (1, None)


def write_in_pieces(folder, image, *, levels=None, stops=()):
  """Writes by rows of tiles; stops, and begins again where it had marked."""
  folder.mkdir(exist_ok=True)
  C = image.pixels.shape[2]
  kinds = (2,) if image.alpha is not None else ()
  options = {
    "metadata": image.metadata,
    "size": image.pixels.shape[:2],
    "channels": C,
    "kinds": kinds,
    "dtype": image.pixels.dtype,
    "levels": levels,
  }
  samples = image.pixels
  if kinds:
    samples = np.concatenate([samples, image.alpha[..., None]], axis=2)
  sink = tiff_pieces.TiffPieces(folder, **options)
  mark, number = None, 0
  while sink.rows < len(samples):
    sink.append(samples[sink.rows : sink.rows + sink.band])
    number += 1
    if number in stops:
      # What comes after the mark is lost with the process.
      mark = sink.mark()
      sink.append(samples[sink.rows : sink.rows + sink.band])
      sink.close()
      sink = tiff_pieces.TiffPieces(folder, **options, mark=mark)
  sink.reduce(lambda done, total: None)
  path = sink.finish()
  sink.close()
  return path


@pytest.mark.parametrize("levels", [None, "parts", "pages"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_rows_of_tiles_become_a_big_tiff(tmp_path, dtype, channels, levels):
  shape = (600, 530, channels)
  samples = waves(*shape) if dtype == np.float32 else noise(*shape, dtype=dtype)
  alpha = np.ascontiguousarray(samples[..., 3]) if channels == 4 else None
  info = Metadata(
    dpi=(300.0, 72.5),
    exif=build.exif_block(),
    xmp=b"<x:xmpmeta/>",
    icc_profile=SRGB if channels > 1 else None,
    geotiff={33550: (2.0, 2.0, 0.0), 42113: b"0\0"},
  )
  image = Image(np.ascontiguousarray(samples[..., :3]), alpha, info)
  path = write_in_pieces(tmp_path, image, levels=levels, stops=(1,))
  got = images.read_image(path)
  np.testing.assert_array_equal(got.pixels, image.pixels)
  if alpha is not None:
    np.testing.assert_array_equal(got.alpha, alpha)
  assert got.notes == ()
  for name in ("dpi", "icc_profile", "geotiff", "xmp"):
    assert getattr(got.metadata, name) == getattr(info, name)
  assert got.metadata.exif is not None
  with tifffile.TiffFile(path) as tiff:
    assert tiff.is_bigtiff
    page = tiff.pages[0]
    expected = samples if channels > 1 else samples[..., 0]
    np.testing.assert_array_equal(page.asarray(), expected)
    copies = list(page.pages) if levels == "parts" else tiff.pages[1:]
    sizes = [(300, 265), (150, 133)] if levels else []
    assert [copy.shape[:2] for copy in copies] == sizes
    if levels:
      first = samples[:600, :530].astype(np.float64)
      means = first.reshape(300, 2, 265, 2, -1).mean(axis=(1, 3))
      # Of integers, halves are rounded up.
      atol = 1e-6 if dtype == np.float32 else 0.5
      found = copies[0].asarray().reshape(means.shape)
      np.testing.assert_allclose(found, means, rtol=0, atol=atol)
      assert copies[0].is_reduced
  if dtype == np.uint8:
    with PilImage.open(path) as picture:
      np.testing.assert_array_equal(np.asarray(picture), page_of(samples))


def page_of(samples):
  return samples[..., 0] if samples.shape[2] == 1 else samples


@pytest.mark.parametrize("stops", [(1,), (2,), (1, 2, 3)])
def test_one_that_was_stopped_has_the_same_bytes(tmp_path, stops):
  image = Image(noise(800, 300, 3))
  whole = write_in_pieces(tmp_path / "a", image, levels="pages")
  stopped = write_in_pieces(tmp_path / "b", image, levels="pages", stops=stops)
  assert whole.read_bytes() == stopped.read_bytes()


def test_without_makers_notes_pillow_can_read_it(tmp_path):
  """Which has no BigTIFF whose numbers begin with the highest byte."""
  exif = build.exif_block(order=">")
  # A user's comment, whose bytes are in no order.
  tags = [struct.pack(">HH", tag, 7) for tag in (37500, 37510)]
  image = Image(noise(300, 280, 3), metadata=Metadata(exif=exif.replace(*tags)))
  path = write_in_pieces(tmp_path, image, levels="parts")
  assert path.read_bytes()[:4] == b"II+\0"
  with PilImage.open(path) as picture:
    np.testing.assert_array_equal(picture, image.pixels)
  main, sub = build.exif_of(path)
  assert (main[271], sub[37510]) == ("Cam", b"maker's note")
  assert images.read_image(path).metadata.exif is not None


def test_the_order_of_bytes_is_that_of_makers_notes(tmp_path):
  """On which makers' notes may count."""
  exif = build.exif_block(order=">")
  image = Image(
    noise(300, 280, 3, dtype=np.uint16), metadata=Metadata(exif=exif)
  )
  path = write_in_pieces(tmp_path, image, levels="parts")
  assert path.read_bytes()[:4] == b"MM\0+"
  got = images.read_image(path)
  np.testing.assert_array_equal(got.pixels, image.pixels)
  assert got.metadata.exif[:2] == b"MM"
  with tifffile.TiffFile(io.BytesIO(path.read_bytes())) as tiff:
    np.testing.assert_array_equal(tiff.asarray(), image.pixels)


def test_floats_of_linear_light_and_halves_stay_such(tmp_path):
  halves = waves(70, 60, 3, dtype=np.float16).astype(np.float32)
  first = tmp_path / "first.tif"
  info = Metadata(bits=16, linear=True, gain=2.0)
  images.write_image(first, Image(halves, metadata=info))
  image = images.read_image(first)
  path = write_in_pieces(tmp_path / "b", image)
  again = images.read_image(path)
  np.testing.assert_array_equal(again.pixels, image.pixels)
  assert again.metadata == image.metadata
