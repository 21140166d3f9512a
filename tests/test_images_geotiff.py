"""A picture's place on the map, when it is enlarged."""

import numpy as np
import pytest
import tifffile

from esrgan_jax import images
from esrgan_jax.images import Image, geotiff
from tests.image_builders import noise

AREA, POINT = (1, 1, 0, 1, 1025, 0, 1, 1), (1, 1, 0, 1, 1025, 0, 1, 2)
SCALE = (10.0, 5.0, 0.0)
TIEPOINTS = (3.0, 2.0, 0.0, 500_000.0, 4_100_000.0, 0.0)
# Turned and sheared: columns and rows to east, north and height.
MATRIX = (8.0, 3.0, 0.0, 1e5, 2.0, -7.0, 0.0, 2e5, *[0.0] * 7, 1.0)


def written(file, tags, *, pixels=None, **options):
  """Writes a TIFF with these tags: {number: values}."""
  pixels = noise(16, 24, 3) if pixels is None else pixels
  extra = [
    (tag, geotiff.KINDS[tag], len(values), values, True)
    for tag, values in tags.items()
  ]
  options = {"photometric": "rgb", "metadata": None, **options}
  tifffile.imwrite(file, pixels, extratags=extra, **options)


def enlarged(tmp_path, tags, shape=(48, 48), **options):
  """Returns tags of a result, [y, x] sides of it in `shape`, and notes."""
  written(tmp_path / "a.tif", tags, **options)
  image = images.read_image(tmp_path / "a.tif")
  large = Image(noise(*shape, image.pixels.shape[2]), None, image.metadata)
  notes = images.write_image(tmp_path / "b.tif", large, overwrite=True)
  with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
    found = tiff.pages[0].tags
    got = {tag: found[tag].value for tag in geotiff.KINDS if tag in found}
  return got, image.notes + notes


def on_the_map(tags, column, row):
  """Where a point of the raster lies: as OGC 19-008r4 has it.

  `column` and `row` count from the outline, whatever the tags count from.
  """
  if tags.get(34735, AREA)[7] == 2:
    column, row = column - 0.5, row - 0.5
  if 34264 in tags:
    matrix = np.reshape(tags[34264], (4, 4))
    return (matrix @ (column, row, 0, 1))[:2]
  i, j, _, x, y, _ = tags[33922][:6]
  dx, dy, _ = tags[33550]
  return x + (column - i) * dx, y - (row - j) * dy


@pytest.mark.parametrize("keys", [AREA, POINT, None])
@pytest.mark.parametrize(
  "place", [{33550: SCALE, 33922: TIEPOINTS}, {34264: MATRIX}]
)
@pytest.mark.parametrize("shape", [(48, 48), (16, 24), (37, 101), (8, 6)])
def test_every_point_stays_where_it_is(tmp_path, keys, place, shape):
  tags = place if keys is None else place | {34735: keys}
  got, notes = enlarged(tmp_path, tags, shape)
  assert notes == ()
  assert got.get(34735) == keys
  for column, row in ((0, 0), (24, 16), (0, 16), (5.5, 3.25)):
    there = on_the_map(got, column * shape[1] / 24, row * shape[0] / 16)
    np.testing.assert_allclose(
      there, on_the_map(tags, column, row), rtol=1e-12, atol=1e-6
    )


def test_the_first_pixel_of_a_pixel_is_a_point(tmp_path):
  # By hand: at twice the size, the centre of the first pixel is a quarter of
  # an old pixel before that of the old one, by which the tie point counts.
  points = (0.0, 0.0, 0.0, 100.0, 200.0, 0.0)
  tags = {33550: (4.0, 4.0, 0.0), 33922: points, 34735: POINT}
  got, _ = enlarged(tmp_path, tags, (32, 48))
  assert got[33550] == (2.0, 2.0, 0.0)
  assert got[33922] == (0.5, 0.5, 0.0, 100.0, 200.0, 0.0)
  assert on_the_map(got, 0.5, 0.5) == (99.0, 201.0)


def test_control_points_and_rational_polynomials(tmp_path):
  points = (0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 24.0, 16.0, 0.0, 4.0, 5.0, 6.0)
  polynomials = tuple(float(n) for n in range(92))
  tags = {33922: points, 50844: polynomials, 34735: AREA}
  got, _ = enlarged(tmp_path, tags, (48, 48))
  scaled = (*points[:6], 48.0, 48.0, *points[8:])
  assert got[33922] == scaled
  # Of rows and of columns: offset (its centre counts) and scale.
  assert got[50844][2:4] == (2.5 * 3 - 0.5, 3.5 * 2 - 0.5)
  assert got[50844][7:9] == (21.0, 16.0)
  others = [n for n in range(92) if n not in (2, 3, 7, 8)]
  assert all(got[50844][n] == polynomials[n] for n in others)


def test_what_does_not_depend_on_size_stays(tmp_path):
  item = b'<Item name="BAND">red</Item>'
  statistics = b'<Item name="STATISTICS_MEAN" sample="0">9</Item>\n'
  tags = {
    34735: (1, 1, 0, 2, 1025, 0, 1, 1, 2057, 34736, 1, 0),
    34736: (6378137.0,),
    34737: b"WGS 84|\0",
    42112: b"<GDALMetadata>" + statistics + item + b"</GDALMetadata>\0",
    42113: b"-9999\0",
  }
  got, notes = enlarged(tmp_path, tags)
  assert notes == ()
  assert got[34735] == tags[34735]
  assert got[34736] in (6378137.0, (6378137.0,))
  assert got[34737] == "WGS 84|"
  assert got[42112] == f"<GDALMetadata>{item.decode()}</GDALMetadata>"
  assert got[42113] == "-9999"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [True, False])
def test_bands_with_their_place(tmp_path, order, big):
  bands = noise(16, 24, 7, dtype=np.uint16)
  written(
    tmp_path / "a.tif",
    {33550: SCALE, 33922: TIEPOINTS, 34735: AREA},
    pixels=bands,
    photometric="minisblack",
    extrasamples=[0] * 6,
    byteorder=order,
    bigtiff=big,
  )
  image = images.read_image(tmp_path / "a.tif")
  assert images.write_image(tmp_path / "b.tif", image) == ()
  with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
    page = tiff.pages[0]
    np.testing.assert_array_equal(page.asarray(), bands)
    assert page.tags[33550].value == SCALE
    assert page.tags[33922].value == TIEPOINTS
  notes = images.write_image(tmp_path / "b.jpg", image)
  assert notes == (
    "JPEG has no room for its 6 further bands; choose .tif",
    "JPEG has no room for its place on the map; choose .tif",
    "JPEG has 8 bits at most, to which it was rounded",
  )


def test_a_value_that_means_no_data_is_for_pixels_as_stored(tmp_path):
  for options, kept in (
    ({"pixels": noise(16, 24, 3)}, True),
    ({"pixels": noise(16, 24), "photometric": "miniswhite"}, False),
    ({"pixels": noise(16, 24), "photometric": "minisblack"}, True),
    ({"pixels": noise(16, 24, 4), "extrasamples": ["assocalpha"]}, False),
  ):
    got, notes = enlarged(tmp_path, {42113: b"0\0"}, **options)
    assert (42113 in got) == kept
    assert any("no-data" in note for note in notes) != kept


@pytest.mark.parametrize(
  "tags",
  [
    {33550: (1.0, 2.0)},
    {33550: (1.0, 2.0, float("nan"))},
    {33922: (1.0, 2.0, 3.0)},
    {34735: (1, 1, 0)},
    {34264: (1.0,) * 15},
    {50844: (1.0,) * 10},
  ],
)
def test_damaged_tags_are_left_out_and_told(tmp_path, tags):
  got, notes = enlarged(tmp_path, tags | {42113: b"0\0"})
  assert got == {}
  assert notes == ("its GeoTIFF tags are damaged, and left out",)


def test_a_turned_picture_has_no_place(tmp_path):
  # By the letter, tags are of the stored raster; nobody agrees on the rest.
  file = tmp_path / "a.tif"
  written(file, {33550: SCALE, 33922: TIEPOINTS})
  with tifffile.TiffFile(file) as tiff:
    assert 274 not in tiff.pages[0].tags
  extra = [(274, 3, 1, 6, True), (33550, 12, 3, SCALE, True)]
  tifffile.imwrite(file, noise(16, 24, 3), photometric="rgb", extratags=extra)
  image = images.read_image(file)
  assert image.pixels.shape == (24, 16, 3)
  assert image.metadata.geotiff is None
  assert "its pixels are turned" in image.notes[0]
