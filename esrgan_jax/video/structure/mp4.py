"""MP4 and QuickTime: boxes (ISO/IEC 14496-12)."""

from __future__ import annotations

import mmap
import struct

from esrgan_jax.images import boxes
from esrgan_jax.video.errors import VideoError

__all__ = ["check"]


def check(data: mmap.mmap) -> None:
  """Refuses MP4 that is cut short, or whose samples are in other files."""
  movies, seen = [], set()
  try:
    for kind, body in boxes.walk(data):
      seen.add(kind)
      if kind == b"moov":
        movies.append(body)
  except (ValueError, struct.error) as error:
    # What comes after all samples is no loss; in fragments there are more.
    if not {b"moov", b"mdat"} <= seen or b"moof" in seen:
      raise VideoError(f"damaged or cut short ({error})") from error
  if not movies:
    raise VideoError("damaged or cut short (no box 'moov')")
  try:
    for body in movies:
      _check_movie(body)
  except VideoError:
    raise
  except (ValueError, struct.error) as error:
    raise VideoError(f"damaged or cut short ({error})") from error


def _check_movie(movie: memoryview) -> None:
  for kind, body in boxes.walk(movie):
    if kind == b"rmra":
      raise VideoError(
        "a list of other files, which are not opened; name the clip itself"
      )
    if kind == b"cmov":
      raise VideoError(
        "its header is packed, which is not read; save it as another MP4"
      )
    if kind == b"trak":
      _check_track(body)


def _check_track(track: memoryview) -> None:
  """Refuses a track whose samples are elsewhere."""
  inside = track
  for kind in (b"mdia", b"minf", b"dinf", b"dref"):
    inside = next((b for k, b in boxes.walk(inside) if k == kind), None)
    if inside is None:
      return
  for _, entry in boxes.walk(inside, 8):
    if not int.from_bytes(entry[:4]) & 1:
      raise VideoError(
        "a track of it is in another file, which is not opened; save it as a"
        " self-contained one"
      )
