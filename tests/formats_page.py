"""What each image format keeps, found by writing and reading: docs/formats.md.

python -m tests.formats_page > docs/formats.md
"""

import functools
import pathlib
import tempfile

import numpy as np

from esrgan_jax import images
from tests.image_builders import SRGB, XMP, exif_block, grey_profile, joined

PAGE = pathlib.Path(__file__).parent.parent / "docs/formats.md"

# Suffixes of what is read as well, or only; none of them is tried by writing.
MORE = {
  "PNG": (".apng",),
  "JPEG": (".jfif",),
  "JP2": (".jpx", ".jpf"),
  "J2K": (".j2c",),
  "GIF": (".gif",),
  "PBM": (".pbm",),
  "HEIC": (".heic", ".heif", ".hif"),
}
NAMES = {"JPEG": "JPEG", "WEBP": "WebP", "EXR": "OpenEXR", "JXL": "JPEG XL"}
NAMES |= {"JP2": "JPEG 2000", "J2K": "JPEG 2000, bare"}
# Of those that are only read: depths, alpha, profile, EXIF, XMP, resolution.
READ_ONLY = {
  "GIF": ("8", "yes", "", "", "", ""),
  "PBM": ("8, of 1", "", "", "", "", ""),
  "HEIC": ("8, 10 and 12 as 16", "yes", "yes", "yes", "yes", ""),
}

_HEAD = """\
# Image formats

What a file is, its content says. Suffixes choose the files of a folder, and the
format of a result; only of a TGA without a mark at its end the suffix counts.

The table is made by `python -m tests.formats_page`, which writes and reads
each, and a test compares it. Depths are bits of a sample that come back as they
were: `half` and `float` are floating point of 16 and 32 bits. "asked" is a
format that is lossless with `--lossless` (`write_image(..., lossless=True)`).
"""
_COLUMNS = (
  "format",
  "suffixes",
  "",
  "depths",
  "alpha",
  "profile",
  "EXIF",
  "XMP",
)
_COLUMNS += ("resolution", "lossless")

_TAIL = """
What a format has no room for is told: metadata, [further bands](metadata.md),
values above white. Samples of more bits than a format has are rounded to it,
and that is told as well: 16 to 8, or to AVIF's 12, and floats to integers.
Fewer bits are widened, so that white stays white.

- **Zarr**, in and out, is for [images larger than memory](gigapixel.md), and
  needs `pip install '.[zarr]'`.
- **PNG, TIFF, OpenEXR, TGA, PGM to PFM** are written piece by piece. For the
  others the encoder has the whole picture in memory.
- **TIFF** is read with no compression, LZW, deflate, PackBits, LZMA, zstd, fax,
  JPEG and WebP inside; of floats, 16, 32 and 64 bits. **OpenEXR** is read with
  none, RLE, ZIP, PIZ, PXR24 and B44, but not DWAA, lines or tiles, half or
  float; the layer without a name, or else the one with R, G and B; of several
  parts the first. It is written with ZIP.
- **JPEG 2000** is read with up to 32 components of up to 16 bits, equal and not
  subsampled, with a palette as well. Further components are kept as further
  bands.
- **JPEG XL**'s colour profiles are neither read nor written, by what
  imagecodecs offers; both are told. Floats are linear light.
- **AVIF** and **HEIC** are turned upright by what the container says (`irot`,
  `imir`), **JPEG XL** by its header, **JPEG 2000** never, the others by EXIF.
  HEIC needs `pip install '.[heif]'`. Grey AVIF is always lossless.
- Display P3 and BT.2020 of AVIF, HEIC and JPEG XL, and OpenEXR's primaries,
  become a colour profile; a profile's primaries go into OpenEXR. PQ and HLG are
  taken for sRGB's curve, and told.
- AVIF, JPEG XL and JPEG 2000 are imagecodecs' where its build has them; where
  not, one line says so.

## Quality

`--quality`, 1 to 100, is 95 where nothing is said. It means, in

- JPEG: libjpeg's quality, colour at full resolution;
- WebP: libwebp's;
- AVIF: libavif's, colour at full resolution, 99 at most;
- JPEG XL: a distance as `cjxl` has it: 0.1 + 0.09 x (100 - quality), from 30
  on;
- JPEG 2000: a signal-to-noise ratio of 20 + 0.3 x quality decibels.

JPEG has no lossless form here: `--lossless` is an error there which names the
formats that have one.

## Floats

Networks know pictures as displays show them, in [0, 1]. `Image.pixels` of
floats is that, and `Metadata` says what the writer undoes:

- `linear`: OpenEXR, PFM and floats of JPEG XL hold light, and a float TIFF does
  where its profile's curve is the identity or EXIF's `Gamma` is 1. Light goes
  through sRGB's curve, continued above 1 and odd below 0. The profile goes
  along with sRGB's curve in it, and with the identity into a TIFF.
- `gain`: where more than a thousandth of the values are above white, they are
  divided by what they stay below. Lamps may stay above 1.
- `white`: floats of a TIFF that are not linear may go beyond 1. White is 255 or
  65535 where they come near to it, else what they stay below, such as a height.
  A float TIFF gets them back. Elsewhere what they were divided by is told, but
  for the second kind in OpenEXR, PFM and JPEG XL: light goes as far.
- `bits`: 16 of halves, which become halves again. 10 or 12 of integers.

A result in an integer format is what a display shows: white is white, and what
is brighter is clipped, and told. Integers in OpenEXR and PFM go through the
curve to light; 8 bits become halves. OpenEXR's colours are multiplied by alpha,
as its programs expect. NaN and infinity are an error that says how many there
are.
"""


def _picture(bits, channels):
  """A picture that has values of its own at this depth."""
  rng = np.random.default_rng(bits if isinstance(bits, int) else 1)
  values = rng.random((12, 10, channels))
  info = {}
  if bits == "half":
    # Through the curve and back, as a file would have been read.
    samples = values.astype(np.float16).astype(np.float32)
    info["bits"] = 16
  elif bits == "float":
    samples = values.astype(np.float32)
  else:
    top = 2**bits - 1
    kind = np.uint8 if bits == 8 else np.uint16
    samples = np.rint(values * top) * (np.iinfo(kind).max / top)
    samples = np.rint(samples).astype(kind)
    if bits in (10, 12):
      info["bits"] = bits
  return samples, info


def _through(folder, suffix, image, lossless):
  file = folder / f"a{suffix}"
  images.write_image(file, image, lossless=lossless, overwrite=True)
  return images.read_image(file)


def _keeps(folder, suffix, bits, channels, lossless):
  """Tells whether samples of this depth come back, and as such."""
  samples, info = _picture(bits, channels)
  image = images.Image(samples, metadata=images.Metadata(**info))
  got = _through(folder, suffix, image, lossless)
  if joined(got).dtype != samples.dtype or got.metadata.bits != info.get(
    "bits"
  ):
    return False
  if not lossless and not images.can_be_lossless(f"a{suffix}"):
    return True
  # Of half floats, a display's value is rounded to a half of light.
  tolerance = {"half": 1e-3, "float": 1e-5}.get(bits, 0)
  error = np.abs(joined(got) - samples.astype(np.float64))
  return bool((error <= tolerance).all())


def found(suffix):
  """Writes and reads a format; returns its cells of the table."""
  name = f"a{suffix}"
  lossless = images.can_be_lossless(name)
  with tempfile.TemporaryDirectory() as path:
    folder = pathlib.Path(path)
    channels = 1 if suffix == ".pgm" else 3
    depths = [
      bits
      for bits in (8, 10, 12, 16, "half", "float")
      if _keeps(folder, suffix, bits, channels, lossless)
    ]
    deepest = np.float32 if depths == ["float"] else np.uint8
    samples, _ = _picture("float" if deepest == np.float32 else 8, 3)
    colour = samples[..., :channels]
    clear = images.Image(colour, samples[..., 0])
    try:
      alpha = _through(folder, suffix, clear, lossless).alpha is not None
    except images.ImageError:
      alpha = False
    meta = images.Metadata(
      icc_profile=grey_profile() if channels == 1 else SRGB,
      exif=exif_block(),
      xmp=XMP,
      dpi=(300.0, 300.0),
    )
    image = images.Image(colour, metadata=meta)
    got = _through(folder, suffix, image, lossless).metadata
    kept = [getattr(got, n) for n in ("icc_profile", "exif", "xmp", "dpi")]
    always = lossless and _keeps(folder, suffix, depths[0], channels, False)
  words = {True: "always", False: "asked" if lossless else "no"}[always]
  return (
    ", ".join(map(str, depths)),
    "yes" if alpha else "",
    *("yes" if value is not None else "" for value in kept),
    words,
  )


@functools.cache
def page():
  """The text of `docs/formats.md`."""
  suffixes = {}
  for suffix, format_ in images.OUTPUT_SUFFIXES.items():
    suffixes.setdefault(format_, []).append(suffix)
  rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
  for format_, own in suffixes.items():
    every = " ".join(f"`{s}`" for s in (*own, *MORE.get(format_, ())))
    cells = (NAMES.get(format_, format_), every, "in, out", *found(own[0]))
    rows.append(cells)
  for format_, cells in READ_ONLY.items():
    every = " ".join(f"`{s}`" for s in MORE[format_])
    rows.append((format_, every, "in", *cells, ""))
  lines = (f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)
  return _HEAD + "\n" + "\n".join(lines).replace("|  |", "| |") + "\n" + _TAIL


if __name__ == "__main__":
  print(page(), end="")
