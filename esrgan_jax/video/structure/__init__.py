"""Looks at how a clip's file is built, before FFmpeg does.

FFmpeg gives what it finds of a file, and is silent about the rest: a download
that broke off, or a hole in the midst, is a shorter clip to it. So a file is
walked here from piece to piece, as its container lays them out, and none of
what they hold is read.
"""

from __future__ import annotations

import mmap
from typing import BinaryIO

from esrgan_jax.video.structure import matroska, mp4, mpeg, ogg, plain

__all__ = ["check", "losses"]

_CHECKS = {
  "mov": mp4.check,
  "matroska": matroska.check,
  "avi": plain.check_avi,
  "asf": plain.check_asf,
  "flv": plain.check_flv,
  "ogg": ogg.check,
  "yuv4mpegpipe": plain.check_y4m,
}
_LOSSES = {"mpegts": mpeg.ts_losses, "mpeg": mpeg.ps_losses, "ogg": ogg.losses}


def check(container: str, file: BinaryIO) -> None:
  """Refuses a file that is cut short or has a hole, or is not all of a clip.

  Args:
    container: FFmpeg's name of its format.
    file: An open file; where it is read does not count, and does not change.

  Raises:
    VideoError: If it ends before it should, its pieces do not lie one after
      the other, or its samples are in other files.
  """
  if container in _CHECKS:
    _CHECKS[container](_mapped(file))


def losses(container: str, file: BinaryIO) -> tuple[str, ...]:
  """Returns sentences on what a recording lacks that may be cut anywhere.

  So MPEG's are made, and received with faults: what is there is worth having.

  Args:
    container: As of `check`.
    file: Likewise.
  """
  if container not in _LOSSES:
    return ()
  return tuple(_LOSSES[container](_mapped(file)))


def _mapped(file: BinaryIO) -> mmap.mmap:
  # Is closed with the last view of it: errors hold some.
  return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
