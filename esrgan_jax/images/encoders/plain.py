"""Formats of a header and the samples: PNM, PAM, PFM, TGA; and QOI."""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np

from esrgan_jax.images import light
from esrgan_jax.images.pixels import Image, bands, samples_of


def write_pnm(file: BinaryIO, image: Image) -> None:
  """Writes a PGM or a PPM."""
  H, W, C = image.pixels.shape
  kind = image.pixels.dtype
  mark = 5 if C == 1 else 6
  file.write(b"P%d\n%d %d\n%d\n" % (mark, W, H, np.iinfo(kind).max))
  _write_samples(file, image)


def write_pam(file: BinaryIO, image: Image) -> None:
  """Writes a PAM."""
  H, W, C = image.pixels.shape
  alpha = image.alpha is not None
  words = b"GRAYSCALE" if C == 1 else b"RGB"
  words += b"_ALPHA" if alpha else b""
  file.write(
    b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH %d\nMAXVAL %d\nTUPLTYPE %s\nENDHDR\n"
    % (W, H, C + alpha, np.iinfo(image.pixels.dtype).max, words)
  )
  _write_samples(file, image)


def _write_samples(file: BinaryIO, image: Image) -> None:
  for rows in bands(image.pixels):
    part = samples_of(image, rows)
    file.write(part.astype(part.dtype.newbyteorder(">")).tobytes())


def write_pfm(file: BinaryIO, image: Image) -> None:
  """Writes a PFM, linear light."""
  H, W, C = image.pixels.shape
  file.write(b"P%s\n%d %d\n-1.0\n" % (b"f" if C == 1 else b"F", W, H))
  for rows in reversed(bands(image.pixels)):
    part = light.to_file(image.pixels[rows], image.metadata, linear=True)
    light.check_finite(part)
    file.write(part[::-1].astype("<f4").tobytes())


def write_tga(file: BinaryIO, image: Image) -> None:
  """Writes a TGA, the first row first, without compression."""
  H, W, C = image.pixels.shape
  alpha = image.alpha is not None
  kind, bits = 3 if C == 1 else 2, 8 * (C + alpha)
  flags = 0x20 | 8 * alpha
  file.write(struct.pack("<BBB5x4x2H2B", 0, 0, kind, W, H, bits, flags))
  order = [0] if C == 1 else [2, 1, 0]
  order += [C] * alpha
  for rows in bands(image.pixels):
    file.write(samples_of(image, rows)[..., order].tobytes())
  file.write(bytes(8) + b"TRUEVISION-XFILE.\0")


def write_qoi(file: BinaryIO, image: Image) -> None:
  """Writes a QOI."""
  import imagecodecs

  samples = samples_of(image, slice(None))
  file.write(imagecodecs.qoi_encode(np.ascontiguousarray(samples)))
