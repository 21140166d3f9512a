"""What a file may claim: in proportion to the bytes that are there.

A header of some bytes can claim hundreds of megapixels. Most encodings need so
many bits a pixel at least; a file that has fewer is cut short, whatever its
decoder makes of it. Where an encoding has no such bound (WebP, arithmetic
codes, a small frame on a large canvas), a generous one is set here, which rises
with `max_pixels`.
"""

from __future__ import annotations

from esrgan_jax.images.pixels import ImageError

# Of a profile, an EXIF block or an XMP packet; larger ones are left out.
MAX_METADATA = 2**24
# Chunks, segments or blocks of one file. Sound ones have some thousands: a
# gigabyte of PNG, in the pieces of 8 KB that libpng writes, has 131,072.
MAX_PIECES = 2**18
# Bytes of a piece, on average, in a file of many frames. GIF's have 255 mostly.
_MEAN_PIECE = 128
# Pixels that any file may claim, as a part of `max_pixels`.
_FREE_PART = 16
# Bytes of flat data out of one of deflate: 258 by 2 bits.
DEFLATE_RATIO = 1032
# What the densest encoder met gives: libwebp, lossless, one colour, has 26,038
# pixels a byte; zstd's longest run is 32,768 bytes a byte.
DENSE_RATIO = 2**15

# Pixels of a canvas to a byte of all frames, beyond those that any may claim.
_CANVAS_RATIO = 2**12


def check_size(width: int, height: int, max_pixels: int) -> None:
  """Refuses a picture by what its header says of its size."""
  if width <= 0 or height <= 0:
    raise ValueError(f"its header says {width} x {height} pixels")
  if width * height > max_pixels:
    raise ImageError(
      f"{width} x {height} pixels are more than max_pixels={max_pixels}; if you"
      " trust the file, raise max_pixels (--max-pixels)"
    )


def check_bits(width: int, height: int, needed: int, found: int) -> None:
  """Refuses a picture that cannot be in so few bytes; `needed` is in bits."""
  if needed > 8 * found:
    raise ValueError(
      f"{width} x {height} pixels need {-(-needed // 8)} bytes at least, and"
      f" {found} are there"
    )


def check_claim(
  width: int, height: int, found: int, max_pixels: int, *, ratio: int
) -> None:
  """Refuses a picture of much more pixels than its bytes make believable."""
  missing = width * height - ratio * found
  if missing > max_pixels // _FREE_PART:
    raise ImageError(
      f"claims {width} x {height} pixels in {found} bytes; if you trust the"
      f" file, raise max_pixels (--max-pixels) to"
      f" {_FREE_PART * missing}"
    )


def check_frames(
  count: int, width: int, height: int, found: int, max_pixels: int
) -> None:
  """Refuses an animation of much more pixels than its bytes make believable.

  Frames that change nothing are small in sound files, too; so it is all frames
  that are held against all bytes.
  """
  check_claim(width, height, found, max_pixels, ratio=_CANVAS_RATIO)
  missing = count * width * height - DENSE_RATIO * found
  if missing > max_pixels // _FREE_PART:
    raise ImageError(
      f"claims {count} frames of {width} x {height} pixels in {found} bytes; if"
      f" you trust the file, raise max_pixels (--max-pixels) to"
      f" {_FREE_PART * missing}"
    )


def check_pieces(count: int, what: str, length: int = 0) -> None:
  """Refuses a file of more pieces than any program writes.

  Args:
    count: How many there are.
    what: What they are called.
    length: Bytes of the file, where many frames make many pieces.
  """
  most = MAX_PIECES + length // _MEAN_PIECE
  if count > most:
    raise ValueError(f"more than {most} {what}")
