"""PNG written band by band, in threads."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np

from esrgan_jax.images import png_chunks
from esrgan_jax.images.pixels import Image, bands, samples_of


def in_order(function: Callable, items: Iterable) -> Iterator:
  """Maps in threads, in order, a few items ahead and no more."""
  workers = min(os.cpu_count() or 1, 8)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    pending: collections.deque = collections.deque()
    try:
      for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > workers:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      pool.shutdown(cancel_futures=True)


def _deflate(data: bytes, flush: int) -> bytes:
  """Compresses prediction errors.

  Those of photographs are noise to a string matcher: run lengths and Huffman
  codes alone (Z_RLE) are ten times as fast as level 6 and no larger. Drawings
  do repeat themselves. So a sixteenth of the data is tried both ways.
  """

  def compress(part, level, strategy, end):
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return packer.compress(part) + packer.flush(end)

  middle = len(data) // 2
  probe = data[middle : middle + max(len(data) // 16, 2**15)]
  runs = compress(probe, 1, zlib.Z_RLE, zlib.Z_FINISH)
  strings = compress(probe, 6, zlib.Z_DEFAULT_STRATEGY, zlib.Z_FINISH)
  if len(strings) < 0.9 * len(runs):
    return compress(data, 6, zlib.Z_DEFAULT_STRATEGY, flush)
  return compress(data, 1, zlib.Z_RLE, flush)


def write_png(file: BinaryIO, image: Image) -> None:
  """Writes a PNG, one IDAT chunk a band."""
  write_head(file, image)
  for packed in packed_bands(image):
    write_chunk(file, b"IDAT", packed)
  write_chunk(file, b"IEND", b"")


def write_chunk(file: BinaryIO, kind: bytes, *body: bytes) -> None:
  """Writes a chunk, its body in pieces."""
  file.write(struct.pack(">I", sum(map(len, body))) + kind)
  checksum = zlib.crc32(kind)
  for part in body:
    file.write(part)
    checksum = zlib.crc32(part, checksum)
  file.write(struct.pack(">I", checksum))


def write_head(file: BinaryIO, image: Image) -> None:
  """Writes what comes before the pixels."""
  H, W, C = image.pixels.shape
  samples = C + (image.alpha is not None)
  size = image.pixels.itemsize
  meta = image.metadata

  def chunk(kind, body):
    write_chunk(file, kind, body)

  colour = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
  file.write(b"\x89PNG\r\n\x1a\n")
  chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 8 * size, colour, 0, 0, 0))
  if meta.icc_profile is not None:
    chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(meta.icc_profile))
  if meta.dpi is not None:
    metre = (round(v / 0.0254) for v in meta.dpi)
    chunk(b"pHYs", struct.pack(">IIB", *metre, 1))
  if meta.exif is not None:
    chunk(b"eXIf", meta.exif)
  if meta.xmp is not None:
    chunk(b"iTXt", png_chunks.XMP + b"\0\0\0\0\0" + meta.xmp)
  for kind, body in meta.png_chunks:
    chunk(kind, body)
  if meta.record is not None:
    # Which programs show; another's word stays.
    taken = "Software" in png_chunks.keywords(meta.png_chunks)
    word = png_chunks.RECORD if taken else "Software"
    chunk(*png_chunks.text_chunk(word, meta.record))


def packed_bands(image: Image) -> Iterator[bytes]:
  """Yields the pixels, filtered and deflated: one stream, in pieces."""
  H, _, C = image.pixels.shape
  samples = C + (image.alpha is not None)
  size = image.pixels.itemsize

  def pack(rows):
    # The row above belongs to the prediction, the band starts below it.
    top = max(rows.start - 1, 0)
    band = samples_of(image, slice(top, rows.stop))
    band = band.astype(band.dtype.newbyteorder(">"), copy=False)
    band = np.ascontiguousarray(band).view(np.uint8).reshape(len(band), -1)
    if rows.start == 0:
      band = np.concatenate([np.zeros_like(band[:1]), band])
    filtered = _filter_png(band, samples * size)
    flush = zlib.Z_FINISH if rows.stop == H else zlib.Z_SYNC_FLUSH
    return _deflate(filtered, flush), filtered

  checksum = zlib.adler32(b"")
  for rows, (packed, filtered) in zip(
    cuts := bands(image.pixels, samples), in_order(pack, cuts), strict=True
  ):
    checksum = zlib.adler32(filtered, checksum)
    head = b"\x78\x01" if rows.start == 0 else b""
    tail = struct.pack(">I", checksum) if rows.stop == H else b""
    yield head + packed + tail


def _filter_png(band: np.ndarray, distance: int) -> bytes:
  """Filters all rows but the first, each by the best of Sub, Up, Average."""
  raw, up = band[1:], band[:-1]
  left = np.zeros_like(raw)
  left[:, distance:] = raw[:, :-distance]
  # (a + b) >> 1 without leaving eight bits.
  mean = (left & up) + ((left ^ up) >> 1)
  candidates = (raw - left, raw - up, raw - mean)
  costs = [
    np.minimum(c, np.uint8(0) - c).sum(axis=1, dtype=np.int64)
    for c in candidates
  ]
  best = np.argmin(costs, axis=0)
  out = np.empty((raw.shape[0], raw.shape[1] + 1), np.uint8)
  out[:, 0] = best + 1  # PNG's numbers: 1 Sub, 2 Up, 3 Average.
  for number, candidate in enumerate(candidates):
    out[best == number, 1:] = candidate[best == number]
  return out.tobytes()
