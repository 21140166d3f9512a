"""Clips: their frames as arrays, and results beside what else they have.

A clip is a file of moving pictures, perhaps with sound, subtitles and chapters.
`read_clip` says what it is, `read_frames` yields its frames, a `Folder` keeps
what is encoded of a result, and `join` makes the result of it, with all else of
the clip copied.

PyAV reads and writes; it is the extra `video`, imported when a clip is met. It
brings FFmpeg, whose encoders of H.264 and HEVC are under the GPL. Files are
taken for what strangers wrote (`containers.py`).
"""

from esrgan_jax.video.containers import (
  INPUT_SUFFIXES,
  OUTPUT_SUFFIXES,
  is_clip,
  is_clip_suffix,
  naming,
  suffix_of,
)
from esrgan_jax.video.encoding import CODECS, Encoding, choose_encoding
from esrgan_jax.video.errors import VideoError
from esrgan_jax.video.joining import check_fits, join
from esrgan_jax.video.reading import Clip, Frame, read_clip, read_frames
from esrgan_jax.video.segments import Folder

__all__ = [
  "CODECS",
  "INPUT_SUFFIXES",
  "OUTPUT_SUFFIXES",
  "Clip",
  "Encoding",
  "Folder",
  "Frame",
  "VideoError",
  "check_fits",
  "choose_encoding",
  "is_clip",
  "is_clip_suffix",
  "join",
  "naming",
  "read_clip",
  "read_frames",
  "suffix_of",
]
