"""TIFF, which tifffile writes, all but EXIF."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from esrgan_jax.images import geotiff, light, profiles
from esrgan_jax.images import metadata as meta
from esrgan_jax.images.directories import (
  EXIF,
  GPS,
  Layout,
  Tree,
  pack_tree,
  swapped,
)
from esrgan_jax.images.pixels import Image, Metadata, samples_of

# Uncompressed bytes from which on a file is a BigTIFF. Classic ones end at
# 4 GiB, and what does not compress may grow a little.
CLASSIC_BYTES = 2**32 - 2**26

_TILE = 256


def extra_samples(image: Image) -> tuple[int, ...]:
  """Returns tag 338 of an image: as its file had it, if that still holds."""
  further = 0 if image.extra is None else image.extra.shape[2]
  return kinds_of(image.metadata, further, alpha=image.alpha is not None)


def kinds_of(info: Metadata, further: int, *, alpha: bool) -> tuple[int, ...]:
  """Returns tag 338 for so many further samples, and transparency or not."""
  kinds = info.extra_samples or ()
  if len(kinds) == further + alpha and (not alpha or 2 in kinds):
    return kinds
  return (2,) * alpha + (0,) * further


def linear_profile(info: Metadata, channels: int) -> bytes:
  """Returns a profile which says that the light is linear."""
  linear = None
  if info.icc_profile is not None:
    linear = profiles.with_curves(info.icc_profile, linear=True)
  return linear or profiles.linear_srgb(channels)


def write_tiff(file: BinaryIO, image: Image) -> None:
  """Writes a TIFF of one page; `file` must be readable, too."""
  write_pages(file, [image], count=1)


def write_pages(
  file: BinaryIO, images: Iterable[Image], *, count: int | None
) -> None:
  """Writes a TIFF of pages, each of deflated tiles.

  Args:
    file: It must be readable, too.
    images: The pages; they are taken one by one.
    count: How many there are, if that is known: if so many of the size of the
      first do not fit a classic TIFF, it will be a BigTIFF.
  """
  import tifffile

  images = iter(images)
  first = next(images)
  size = first.pixels.nbytes
  for part in (first.alpha, first.extra):
    size += 0 if part is None else part.nbytes
  exif = meta.load_exif(first.metadata.exif)
  big = size * (count or 1) > CLASSIC_BYTES
  # For makers' notes, whose order is not ours to change.
  layout = Layout(meta.bigtiff_order(exif) if big else exif.order, big=big)
  pages, trees = itertools.chain([first], images), []
  del first  # It may be large.
  with tifffile.TiffWriter(
    file, bigtiff=layout.big, byteorder=layout.order
  ) as tiff:
    for image in pages:
      exif = meta.load_exif(image.metadata.exif)
      tree = exif.tree
      if exif.order != layout.order:
        tree = swapped(tree, exif.order)
      _write_page(tiff, image, tree, layout)
      trees.append({tag: tree[tag] for tag in {EXIF, GPS} & tree.keys()})
  _fill_in(file, trees, layout)


def _write_page(tiff: Any, image: Image, tree: Tree, layout: Layout) -> None:
  """Writes one page, but for the directories that it points to."""
  H, W, C = image.pixels.shape
  kinds = extra_samples(image)
  alpha = kinds.index(2) if image.alpha is not None else 0
  samples = C + len(kinds)
  info = image.metadata
  depth = image.pixels.dtype
  if depth == np.float32 and info.bits == 16:
    depth = np.dtype(np.float16)

  def tiles() -> Iterator[np.ndarray]:
    for top, left in itertools.product(range(0, H, _TILE), range(0, W, _TILE)):
      rows, columns = slice(top, top + _TILE), slice(left, left + _TILE)
      part = samples_of(image, rows, columns, at=alpha)
      if image.pixels.dtype == np.float32:
        part = np.array(part)
        part[..., :C] = light.to_file(part[..., :C], info, linear=info.linear)
        part = light.as_kind(part, depth)
      yield part.astype(depth.newbyteorder(layout.order))

  tags: list[tuple] = []
  for tag, value in tree.items():
    if tag in meta.WORDS:
      # Of text, the kind that tag has here, whatever it was.
      kind = 2 if tag in meta.ASCII_WORDS else value.kind
      tags.append((tag, kind, len(value.raw), value.raw, True))
    elif tag in (EXIF, GPS):
      # tifffile refuses pointers to directories that it has not made. So this
      # keeps the place of one, and is filled in below.
      tags.append((tag - 1, 16 if layout.big else 4, 1, 0, True))
  for tag, values in (info.geotiff or {}).items():
    tags.append((tag, geotiff.KINDS[tag], len(values), values, True))
  if info.xmp is not None:
    tags.append((700, 1, len(info.xmp), info.xmp, True))
  tiff.write(
    tiles(),
    shape=(H, W, samples) if samples > 1 else (H, W),
    dtype=depth,
    tile=(_TILE, _TILE),
    photometric="minisblack" if C == 1 else "rgb",
    planarconfig="contig" if samples > 1 else None,
    extrasamples=kinds or None,
    compression="zlib",
    compressionargs={"level": 4},  # 6: 1 % less, in twice the time.
    predictor=True,
    iccprofile=linear_profile(info, C) if info.linear else info.icc_profile,
    resolution=info.dpi,
    resolutionunit=None if info.dpi is None else "inch",
    software=False,
    metadata=None,
    extratags=tags,
  )


def _fill_in(file: BinaryIO, trees: list[Tree], layout: Layout) -> None:
  """Writes the directories that pages point to, by page."""
  import tifffile

  order, big = layout
  file.seek(0)
  with tifffile.TiffFile(file) as tiff:
    for number, tree in enumerate(trees):
      places = tiff.pages[number].tags if tree else {}
      for group, below in tree.items():
        at = file.seek(0, 2)
        at += file.write(bytes(at % 2))
        file.write(pack_tree(below, at, layout))
        file.seek(places[group - 1].offset)
        file.write(struct.pack(order + "H", group))
        file.seek(places[group - 1].valueoffset)
        file.write(struct.pack(order + ("Q" if big else "I"), at))
