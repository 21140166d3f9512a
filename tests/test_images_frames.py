"""Pages and frames: read one by one, as they are seen, and written."""

import fractions
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image as PilImage
from PIL import ImageSequence

from esrgan_jax import images
from esrgan_jax.images import ImageError
from tests import image_builders as build
from tests.image_builders import joined, noise

PALETTE = noise(256, 3, seed=5).tobytes()


def read(tmp_path, data, **options):
  """Returns a file's frames, and the pictures in them."""
  file = tmp_path / "file"
  file.write_bytes(data)
  frames = images.read_frames(file, **options)
  assert images.count_frames(file) == len(frames)
  pictures = list(frames)
  assert len(pictures) == len(frames) == len(frames.sizes)
  return frames, pictures


def seen(image):
  """RGBA of 8 bits, black where nothing is seen."""
  samples = joined(image)
  if samples.shape[2] < 3:
    samples = samples[..., [0, 0, 0, *range(1, samples.shape[2])]]
  if samples.shape[2] == 3:
    full = np.iinfo(samples.dtype).max
    samples = np.pad(samples, ((0, 0),) * 2 + ((0, 1),), constant_values=full)
  return samples * (samples[..., 3:] > 0)


def by_pillow(tmp_path):
  """What Pillow makes of the same file."""
  with PilImage.open(tmp_path / "file") as picture:
    for frame in ImageSequence.Iterator(picture):
      samples = np.asarray(frame.convert("RGBA"))
      yield samples * (samples[..., 3:] > 0)


def random_places(rng, canvas, count):
  """Places on a canvas, (left, top, width, height); the first is all of it."""
  yield (0, 0, *canvas)
  for _ in range(count - 1):
    left, top = (int(rng.integers(0, side - 1)) for side in canvas)
    yield (
      *(left, top),
      int(rng.integers(1, canvas[0] - left + 1)),
      int(rng.integers(1, canvas[1] - top + 1)),
    )


# GIF.


@pytest.mark.parametrize("seed", range(4))
def test_gif_frames_are_laid_over_one_another(tmp_path, seed):
  rng = np.random.default_rng(seed)
  canvas, frames = (13, 11), []
  for left, top, width, height in random_places(rng, canvas, 9):
    frames.append(
      build.gif_frame(
        rng.integers(0, 4, (height, width)).astype(np.uint8),
        (left, top),
        palette=rng.bytes(768) if rng.random() < 0.5 else None,
        dispose=int(rng.integers(1, 4)),
        delay=int(rng.integers(0, 9)),
        clear=2,
      )
    )
  data = build.animated_gif(canvas, frames, palette=PALETTE, times=0)
  found, pictures = read(tmp_path, data)
  assert found.sizes == (canvas,) * 9
  for picture, expected in zip(pictures, by_pillow(tmp_path), strict=True):
    np.testing.assert_array_equal(seen(picture), expected)


def test_gif_times_and_turns(tmp_path):
  frame = np.zeros((2, 3), np.uint8)
  frames = [build.gif_frame(frame + n % 256, delay=n) for n in (0, 3, 65_535)]
  for stated, loop in ((None, 1), (0, 0), (1, 2), (65_535, 65_536)):
    data = build.animated_gif((3, 2), frames, palette=PALETTE, times=stated)
    found, pictures = read(tmp_path, data)
    assert found.durations == (0, 30, 655_350)
    assert isinstance(found.durations[0], fractions.Fraction)
    assert found.loop == loop
    assert [p.alpha for p in pictures] == [None] * 3
    # Grey is what has no palette but this.
    assert pictures[0].pixels.shape == (2, 3, 3)
  greys = bytes(np.arange(256, dtype=np.uint8).repeat(3))
  _, pictures = read(
    tmp_path, build.animated_gif((3, 2), frames, palette=greys)
  )
  assert [p.pixels.shape for p in pictures] == [(2, 3, 1)] * 3
  assert [p.pixels.max() for p in pictures] == [0, 3, 255]


def test_gif_without_anything_beneath_is_transparent(tmp_path):
  part = build.gif_frame(np.ones((2, 2), np.uint8), (3, 4))
  data = build.animated_gif((4, 4), [part, part], palette=PALETTE)
  frames, pictures = read(tmp_path, data)
  assert frames.sizes == ((5, 6),) * 2  # Large enough for what is drawn.
  expected = np.zeros((6, 5), np.uint8)
  expected[4:, 3:] = 255
  for picture in pictures:
    np.testing.assert_array_equal(picture.alpha, expected)


# PNG.


# Disposal and blending. Pillow has (2, 1) wrong: what it goes back to has in it
# what is to go.
KINDS = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))


@pytest.mark.parametrize("poster", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_png_frames_are_laid_over_one_another(tmp_path, seed, poster):
  rng = np.random.default_rng(seed)
  canvas = (13, 11)
  places = list(random_places(rng, canvas, 8))
  samples = [rng.integers(0, 256, (p[3], p[2], 4), np.uint8) for p in places]
  for patch in samples:
    # Pillow pastes, which is right for all or nothing.
    patch[..., 3] = np.where(patch[..., 3] > 99, 255, 0)
  kinds = [KINDS[i] for i in rng.integers(0, len(KINDS), len(places))]
  ratios = [tuple(map(int, rng.integers(0, 50, 2))) for _ in places]
  data = build.animated_png(
    samples, places, kinds, poster=poster, ratios=ratios
  )
  frames, pictures = read(tmp_path, data)
  assert frames.sizes == (canvas,) * 8
  assert frames.loop == 3
  assert frames.durations == tuple(
    fractions.Fraction(1000 * above, below or 100) for above, below in ratios
  )
  expected = list(by_pillow(tmp_path))[poster:]
  for picture, other in zip(pictures, expected, strict=True):
    np.testing.assert_array_equal(seen(picture), other)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_frames_that_shine_through(tmp_path, dtype):
  below, above = (noise(9, 9, 4, dtype=dtype, seed=s) for s in (1, 2))
  above[0, :, 3], below[:, 0, 3] = np.iinfo(dtype).max, 0
  above[1, :, 3] = 0
  data = build.animated_png([below, above], [(0, 0, 9, 9)] * 2, [(0, 1)] * 2)
  _, (first, second) = read(tmp_path, data)
  np.testing.assert_array_equal(joined(first), below)
  step = np.iinfo(dtype).max // 255
  expected = PilImage.alpha_composite(
    *(PilImage.fromarray((x // step).astype(np.uint8)) for x in (below, above))
  )
  difference = (seen(second) // step).astype(int) - np.asarray(expected)
  # Of what is hardly seen, the colour is hardly known.
  weight = np.asarray(expected)[..., 3:] / 255
  assert np.abs(difference * weight).max() <= 2


def test_png_goes_back_to_what_was_there(tmp_path):
  rng = np.random.default_rng(3)
  samples = [rng.integers(0, 256, (9, 9, 4), np.uint8) for _ in range(3)]
  samples[0][..., 3] = 255
  samples[2][..., 3] = 0
  places = [(0, 0, 9, 9)] * 3
  # The first has nothing to go back to.
  for kind, expected in (((2, 1), None), ((0, 1), samples[0])):
    data = build.animated_png(samples, places, [kind, (2, 1), (2, 1)])
    _, pictures = read(tmp_path, data)
    if expected is None:
      np.testing.assert_array_equal(pictures[2].alpha, 0)
    else:
      np.testing.assert_array_equal(seen(pictures[2]), expected)


def test_png_of_one_frame_is_the_picture(tmp_path):
  picture, place = noise(9, 9, 4), (0, 0, 9, 9)
  for poster in (False, True):
    data = build.animated_png([picture], [place], [(0, 0)], poster=poster)
    frames, (found,) = read(tmp_path, data)
    assert frames.durations is None
    np.testing.assert_array_equal(joined(found), picture)
    assert len(found.notes) == poster


# WebP.


@pytest.mark.parametrize("seed", range(3))
def test_webp_frames_are_laid_over_one_another(tmp_path, seed):
  rng = np.random.default_rng(seed)
  canvas, frames = (14, 10), []
  for left, top, width, height in random_places(rng, canvas, 9):
    samples = rng.integers(0, 256, (height, width, 4), np.uint8)
    samples[..., 3] = np.where(samples[..., 3] > 99, 255, 0)
    packed = build.webp_chunks(
      samples, lossless=bool(rng.integers(2)), exact=True
    )
    place = left // 2 * 2, top // 2 * 2, width, height
    flags = int(rng.integers(0, 4))
    frames.append(
      build.frame_chunk(place, packed, duration=len(frames), flags=flags)
    )
  data = build.webp(
    build.extended_chunk(*canvas, 2 + 16),
    build.riff(b"ANIM", b"\1\2\3\4\7\0"),
    *frames,
  )
  found, pictures = read(tmp_path, data)
  assert found.sizes == (canvas,) * 9
  assert found.durations == tuple(range(9))
  assert found.loop == 7
  for picture, other in zip(pictures, by_pillow(tmp_path), strict=True):
    np.testing.assert_array_equal(seen(picture), other)


# Every kind.


def test_one_picture_is_one_frame(tmp_path):
  for kind, files in build.samples().items():
    for data in files.values():
      frames, (picture,) = read(tmp_path, data)
      assert (frames.durations, frames.loop) == (None, None), kind
      expected = images.read_image(tmp_path / "file")
      np.testing.assert_array_equal(joined(picture), joined(expected))
      assert picture.metadata == expected.metadata


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP"])
def test_animations_of_pillow(tmp_path, format_, mode):
  pictures = [
    PilImage.fromarray(noise(20, 30, 4, seed=n)).convert(mode) for n in range(4)
  ]
  for number, picture in enumerate(pictures[1:]):  # Only parts change.
    picture.paste(pictures[0].crop((0, 0, 30, 5 + number)), (0, 0))
  options = {"save_all": True, "append_images": pictures[1:]}
  options |= {"duration": [10, 20, 30, 40], "loop": 2, "lossless": True}
  data = build.saved(pictures[0], format_, **options)
  frames, found = read(tmp_path, data)
  assert frames.durations == (10, 20, 30, 40)
  # GIF's number is of repetitions.
  assert frames.loop == 2 + (format_ == "GIF")
  for picture, other in zip(found, by_pillow(tmp_path), strict=True):
    np.testing.assert_array_equal(seen(picture), other)


def test_large_files_are_read_where_they_lie(tmp_path, monkeypatch):
  for files in build.several().values():
    for data in files.values():
      _, pictures = read(tmp_path, data)
      with monkeypatch.context() as patch:
        patch.setattr(images.frames, "_MAPPED_BYTES", 0)
        _, others = read(tmp_path, data)
      for picture, other in zip(pictures, others, strict=True):
        np.testing.assert_array_equal(joined(picture), joined(other))
        assert picture.metadata == other.metadata


def test_what_is_no_picture_has_no_frames(tmp_path):
  file = tmp_path / "a.gif"
  assert images.count_frames(file) is None
  with pytest.raises(ImageError, match=r"a\.gif: no such file"):
    images.read_frames(file)
  file.write_bytes(b"no picture")
  assert images.count_frames(file) is None
  with pytest.raises(ImageError, match=r"a\.gif: not an image"):
    images.read_frames(file)


def test_a_damaged_frame_is_named(tmp_path):
  frame = build.gif_frame(noise(9, 9))
  # Its pixels end too early.
  short = frame[:19] + b"\2" + frame[20:22] + b"\0"
  data = build.animated_gif((9, 9), [frame, short, frame], palette=PALETTE)
  file = tmp_path / "a.gif"
  file.write_bytes(data)
  frames = iter(images.read_frames(file))
  next(frames)
  with pytest.raises(ImageError, match=r"a\.gif: frame 2: damaged or cut"):
    next(frames)


# Writing.

SUFFIXES = {"GIF": ".gif", "WEBP": ".webp", "PNG": ".png"}


def moving(count, *shape, dtype=np.uint8, colours=None):
  """Frames of noise, of which a part changes."""
  pixels = noise(*shape, dtype=dtype)
  if colours is not None:
    pixels %= colours
  for number in range(count):
    pixels = pixels.copy()
    pixels[2 : 5 + number, 3:8] += np.asarray(number, dtype)
    yield pixels


def written(tmp_path, suffix, frames, **options):
  """Writes frames; returns what is read, by us and by Pillow."""
  file = tmp_path / f"written{suffix}"
  options = {"overwrite": True, "lossless": suffix != ".gif", **options}
  notes = images.write_frames(file, iter(frames), **options)
  assert notes == ()
  (tmp_path / "file").write_bytes(file.read_bytes())
  found = images.read_frames(file)
  return found, list(found), list(by_pillow(tmp_path))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_animations_come_back(tmp_path, suffix, channels):
  # Of few colours, as GIF has no more.
  frames = [images.Image(p) for p in moving(5, 12, 14, channels, colours=6)]
  frames.insert(2, frames[1])  # Nothing changes.
  durations = [40, 50, 10, 20, 0, 30]
  found, pictures, others = written(
    *(tmp_path, suffix, frames), durations=durations, loop=3
  )
  assert list(found.durations) == durations
  assert found.loop == 3
  assert len(pictures) == len(others) == 6
  for frame, picture, other in zip(frames, pictures, others, strict=True):
    assert picture.alpha is None
    np.testing.assert_array_equal(seen(picture), seen(frame))
    np.testing.assert_array_equal(other, seen(frame))
    if suffix != ".webp":
      assert picture.pixels.shape == frame.pixels.shape


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_of_animations_comes_back(tmp_path, suffix, channels):
  frames = []
  for number, pixels in enumerate(moving(4, 12, 14, channels, colours=6)):
    alpha = noise(12, 14, seed=number)
    if suffix == ".gif":
      alpha = np.where(alpha > 99, 255, 0).astype(np.uint8)
    frames.append(images.Image(pixels, alpha))
  frames[3] = images.Image(frames[3].pixels)  # All of it is seen.
  _, pictures, others = written(
    *(tmp_path, suffix, frames), durations=[100] * 4, loop=1
  )
  for frame, picture, other in zip(frames, pictures, others, strict=True):
    np.testing.assert_array_equal(seen(picture), seen(frame))
    np.testing.assert_array_equal(other, seen(frame))


def test_png_keeps_16_bits_and_every_duration(tmp_path):
  frames = [
    images.Image(p, noise(9, 11, dtype=np.uint16))
    for p in moving(4, 9, 11, 3, dtype=np.uint16)
  ]
  durations = [fractions.Fraction(1001, 30), 1000 / 3, 0.5, 90_000_000]
  found, pictures, _ = written(tmp_path, ".apng", frames, durations=durations)
  for frame, picture in zip(frames, pictures, strict=True):
    np.testing.assert_array_equal(joined(picture), joined(frame))
  assert found.durations[0] == durations[0]
  assert found.durations[1] == fractions.Fraction(1000, 3)
  assert found.durations[2:] == (fractions.Fraction(1, 2), 65_535_000)


@pytest.mark.parametrize(("suffix", "unit"), [(".gif", 10), (".webp", 1)])
def test_durations_are_rounded_and_their_sum_stays(tmp_path, suffix, unit):
  frames = [images.Image(p) for p in moving(9, 4, 9, 3, colours=4)]
  exact = fractions.Fraction(1001, 30)
  found, _, _ = written(tmp_path, suffix, frames, durations=[exact] * 9)
  end = 0
  for number, duration in enumerate(found.durations, 1):
    assert duration % unit == 0
    end += duration
    assert abs(end - number * exact) <= unit / 2


def test_gif_of_many_colours_is_near(tmp_path):
  ramp = np.linspace(0, 255, 64).astype(np.uint8)
  pixels = np.stack(
    np.broadcast_arrays(ramp[:, None], ramp, ramp[::-1]), axis=2
  )
  clear = np.where(np.eye(64) > 0, 0, 255).astype(np.uint8)
  for alpha in (None, clear):
    frames = [images.Image(pixels, alpha), images.Image(pixels[::-1], alpha)]
    _, pictures, _ = written(tmp_path, ".gif", frames, durations=[10, 10])
    for frame, picture in zip(frames, pictures, strict=True):
      difference = seen(picture).astype(int) - seen(frame)
      np.testing.assert_array_equal(difference[..., 3], 0)
      # Of 4096 colours, 16 share one; errors are spread.
      assert np.abs(difference).mean() < 8
  greys = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  half = np.full((16, 16), 255, np.uint8)
  half[0, 0] = 0
  _, (picture, _), _ = written(
    *(tmp_path, ".gif", [images.Image(greys, half)] * 2), durations=[10, 10]
  )
  np.testing.assert_array_equal(picture.alpha, half)
  assert np.abs(picture.pixels.astype(int) - greys)[half > 0].max() <= 1


def test_metadata_of_animations_are_the_first_frames(tmp_path):
  info = images.Metadata(
    icc_profile=build.SRGB, exif=build.exif_block(1), xmp=build.XMP
  )
  for suffix in (".png", ".webp"):
    frames = [images.Image(p, metadata=info) for p in moving(3, 8, 9, 3)]
    _, pictures, _ = written(tmp_path, suffix, frames, durations=[10] * 3)
    for picture in pictures:
      assert picture.metadata.icc_profile == info.icc_profile
      assert picture.metadata.xmp is not None
      assert picture.metadata.exif is not None


def test_frames_that_do_not_fit(tmp_path):
  frames = [images.Image(p) for p in moving(3, 8, 9, 3)]
  other = images.Image(noise(9, 9, 3))
  file = tmp_path / "a.gif"
  timing = {"durations": [10] * 3}
  for wrong, message in (
    ([*frames[:2], other], r"a\.gif: frame 3 has 9 x 9 .*first 9 x 8 pixels"),
    ([frames[0], images.Image(noise(8, 9, 1))], "frame 2 has .* of 1 uint8"),
    ([frames[0], images.Image(noise(8, 9, 3), noise(8, 9))], "transparency"),
  ):
    with pytest.raises(ImageError, match=message):
      images.write_frames(file, wrong, **timing)
  for few, message in (
    (frames[:2], "2 frames, and 3"),
    (frames * 2, "more frames than the 3 durations"),
    ([], "0 frames, and 3"),
  ):
    with pytest.raises(ValueError, match=message):
      images.write_frames(file, few, **timing)
  for options, message in (
    ({"durations": [10, -1, 10]}, "-1 for frame 2"),
    ({"durations": []}, "durations are empty"),
    ({**timing, "loop": -1}, "loop is -1"),
    ({**timing, "quality": 0}, "quality is 0"),
  ):
    with pytest.raises(ValueError, match=message):
      images.write_frames(file, frames, **options)
  assert list(tmp_path.iterdir()) == []
  file.write_bytes(b"there")
  with pytest.raises(ImageError, match="exists"):
    images.write_frames(file, frames, **timing)
  assert file.read_bytes() == b"there"


def test_formats_that_hold_no_frames_or_no_pages(tmp_path):
  for name, animated, message in (
    ("a.jpg", True, r"JPEG holds one picture, not 3 frames; .*\.gif .*a frame"),
    ("a.bmp", False, r"BMP holds one picture, not 3 pages; .* \.tif .*a page"),
    ("a.tif", True, "TIFF has no durations"),
    ("a.webp", False, "WEBP holds frames with durations"),
    ("a.mp4", True, r"suffix '\.mp4' is not one"),
  ):
    with pytest.raises(ImageError, match=message):
      images.check_frames_fit(tmp_path / name, animated=animated, count=3)
  with pytest.raises(ImageError, match=r"no lossless form; .* \.webp \.png"):
    images.write_frames(tmp_path / "a.gif", [], durations=[1], lossless=True)
  images.check_frames_fit("a.apng", animated=True, lossless=True)
  images.check_frames_fit("a.GIF", animated=True, size=(65_535, 1))
  with pytest.raises(ImageError, match="65536 x 1 pixels do not fit GIF"):
    images.check_frames_fit("a.GIF", animated=True, size=(65_536, 1))


def test_what_frames_raise_passes_and_nothing_stays(tmp_path):
  errors = ImageError("b.gif: frame 2: damaged"), OSError("gone"), KeyError(1)
  for suffix in (".gif", ".webp", ".png"):
    for error in errors:

      def frames(error=error):
        yield images.Image(noise(5, 5, 3))
        raise error

      with pytest.raises(type(error)) as caught:
        images.write_frames(tmp_path / f"a{suffix}", frames(), durations=[1, 1])
      assert caught.value is error
  assert list(tmp_path.iterdir()) == []


# Pages.


def test_pages_are_read_as_they_are(tmp_path):
  pages = [
    noise(9, 7, 3),
    noise(20, 30, dtype=np.uint16),
    noise(5, 5, 4, seed=2),
    noise(40, 8, 3, seed=3),
  ]
  file = tmp_path / "file"
  with tifffile.TiffWriter(file) as tiff:
    for number, page in enumerate(pages):
      colour = "rgb" if page.ndim == 3 else "minisblack"
      extra = ["unassalpha"] if page.shape[-1] == 4 else None
      # A preview of its own, below or beside it, and a mask are no pages.
      tiff.write(
        *(page,),
        photometric=colour,
        extrasamples=extra,
        subifds=1 if number == 0 else None,
        compression="zlib" if number % 2 else None,
        resolution=(72 + number, 72),
        metadata=None,
      )
      if number < 2:
        tiff.write(
          page[::2, ::2], photometric=colour, subfiletype=1, metadata=None
        )
    tiff.write(noise(9, 7) > 99, subfiletype=4, metadata=None)
  frames, pictures = read(tmp_path, file.read_bytes())
  assert (frames.durations, frames.loop) == (None, None)
  assert frames.sizes == ((7, 9), (30, 20), (5, 5), (8, 40))
  for number, (page, picture) in enumerate(zip(pages, pictures, strict=True)):
    np.testing.assert_array_equal(joined(picture).squeeze(), page)
    assert picture.metadata.dpi == (72 + number, 72)
  # From the first again, as often as one likes.
  np.testing.assert_array_equal(joined(next(iter(frames))), pages[0])


def test_pages_come_back(tmp_path):
  pages = [
    images.Image(noise(9, 7, 3), metadata=images.Metadata(dpi=(300.0, 300.0))),
    images.Image(
      noise(300, 30, 1, dtype=np.uint16),
      metadata=images.Metadata(exif=build.exif_block(1, order=">")),
    ),
    images.Image(
      noise(5, 5, 3),
      noise(5, 5, seed=7),
      metadata=images.Metadata(
        exif=build.exif_block(1), icc_profile=build.SRGB, xmp=build.XMP
      ),
    ),
  ]
  file = tmp_path / "all.tif"
  images.write_frames(file, iter(pages), durations=None)
  found = images.read_frames(file)
  with tifffile.TiffFile(file) as tiff:
    others = [page.asarray() for page in tiff.pages]
  for page, picture, other in zip(pages, found, others, strict=True):
    np.testing.assert_array_equal(joined(picture), joined(page))
    np.testing.assert_array_equal(other, joined(page).squeeze())
    assert picture.pixels.dtype == page.pixels.dtype
    assert picture.metadata.dpi == page.metadata.dpi
    assert picture.metadata.icc_profile == page.metadata.icc_profile
  first, second, third = (picture.metadata.exif for picture in found)
  assert first is None
  # In one byte order, whatever it was.
  assert second[:2] == third[:2] == b"II"
  alone = tmp_path / "alone.tif"
  images.write_image(alone, pages[2])
  assert third == images.read_image(alone).metadata.exif


def test_a_damaged_page_is_named(tmp_path):
  file = tmp_path / "a.tif"
  pages = [noise(64, 64, seed=n) for n in range(3)]
  with tifffile.TiffWriter(file) as tiff:
    for page in pages:
      tiff.write(page, compression="zlib", metadata=None)
  data = file.read_bytes()
  with tifffile.TiffFile(file) as tiff:
    at = tiff.pages[1].dataoffsets[0]
    starts = [page.offset for page in tiff.pages]
  file.write_bytes(data[:at] + bytes(9) + data[at + 9 :])
  frames = iter(images.read_frames(file))
  np.testing.assert_array_equal(next(frames).pixels[..., 0], pages[0])
  with pytest.raises(ImageError, match=r"a\.tif: page 2: damaged"):
    next(frames)
  # Of what was cut off, what is there, and a word on the rest.
  for count in (1, 2):
    file.write_bytes(data[: starts[count]])
    *others, last = images.read_frames(file)
    assert len(others) == count - 1
    assert [page.notes for page in others] == [()] * (count - 1)
    assert last.notes == (
      "what follows it in the file is damaged, and left out",
    )


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_few_frames_are_in_memory(tmp_path, suffix):
  file, count = tmp_path / f"a{suffix}", 24
  pixels = np.broadcast_to(noise(1, 256, 3) & 7, (256, 256, 3))

  def frames():
    for number in range(count):
      yield images.Image(pixels + np.uint8(number))

  durations = None if suffix == ".tif" else [10] * count
  images.write_frames(file, frames(), durations=durations)  # Loads codecs.
  tracemalloc.start()
  try:
    images.write_frames(file, frames(), durations=durations, overwrite=True)
    _, written = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    assert sum(frame.pixels.shape[0] for frame in images.read_frames(file)) == (
      256 * count
    )
    _, read = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert max(written, read - before) < 14 * pixels.size
