"""Which files are clips, and how they are opened: nothing but themselves.

A container is chosen here, by a file's first bytes and from a short list; what
FFmpeg would otherwise make of a stranger's file is not asked. It reads from the
open file, and whatever else it wants to open is refused: no playlist, script or
reference leads anywhere.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from esrgan_jax import extras, images
from esrgan_jax.text import printable
from esrgan_jax.video import structure
from esrgan_jax.video.errors import VideoError
from esrgan_jax.video.structure.mpeg import TS_PACKET

if TYPE_CHECKING:
  import av.container

__all__ = [
  "INPUT_SUFFIXES",
  "OUTPUT_SUFFIXES",
  "decoders",
  "explained",
  "is_clip",
  "is_clip_suffix",
  "losses",
  "naming",
  "opened",
  "require_av",
  "suffix_of",
]

# Suffix -> FFmpeg's name of the format, for writing.
OUTPUT_SUFFIXES = {
  ".mp4": "mp4",
  ".m4v": "mp4",
  ".mov": "mov",
  ".mkv": "matroska",
  ".webm": "webm",
}
# For choosing files in a folder. A `.ts` is a program more often than a clip.
INPUT_SUFFIXES = frozenset(OUTPUT_SUFFIXES) | {
  ".3g2",
  ".3gp",
  ".asf",
  ".avi",
  ".flv",
  ".m2ts",
  ".mpeg",
  ".mpg",
  ".mts",
  ".ogv",
  ".wmv",
  ".y4m",
}
# Of a file, for finding out what it is.
_HEAD = 1024
# What a box at the beginning of MP4 or QuickTime may be.
_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_PICTURES = {
  *(b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis"),
  *(b"hevc", b"hevx", b"jp2 ", b"jpx ", b"jxl ", b"crx "),
}
# How files begin that name other files or addresses, in lower case.
_LISTS = (
  *(b"#extm3u", b"ffconcat", b"[playlist]", b"[reference]", b"<asx", b"<smil"),
  *(b"v=0\n", b"v=0\r", b"rtsptext", b"<mpd", b"<smoothstreamingmedia"),
)
# What decodes: of what is common, not all of what FFmpeg knows.
_DECODERS = (
  "h264,hevc,vvc,libdav1d,av1,libvpx,vp8,libvpx-vp9,vp9,mpeg4,mpeg2video,"
  "mpeg1video,msmpeg4v1,msmpeg4v2,msmpeg4,h263,flv,vp6f,vp6,vc1,wmv1,wmv2,"
  "wmv3,theora,dvvideo,prores,dnxhd,cfhd,ffv1,huffyuv,ffvhuff,utvideo,"
  "magicyuv,rawvideo,wrapped_avframe,v210,v410,mjpeg,png,qtrle,rpza,"
  "cinepak,svq1,svq3,"
)
_SOUND_DECODERS = (
  "aac,aac_latm,mp3,mp3float,mp2,mp2float,mp1,ac3,eac3,dca,truehd,mlp,opus,"
  "libopus,vorbis,libvorbis,flac,alac,wmav1,wmav2,wmapro,amrnb,amrwb,"
  "libopencore_amrnb,libopencore_amrwb,speex,libspeex,adpcm_ms,"
  "adpcm_ima_wav,adpcm_ima_qt,adpcm_swf,nellymoser,pcm_s16le,pcm_s16be,"
  "pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_u8,pcm_s8,pcm_f32le,"
  "pcm_f32be,pcm_f64le,pcm_alaw,pcm_mulaw,pcm_bluray,pcm_dvd"
)
_BUFFER = 2**18


def is_clip_suffix(path: str | os.PathLike[str]) -> bool:
  """Tells by its name whether a file is a clip.

  >>> is_clip_suffix("a.MP4"), is_clip_suffix("a.gif")
  (True, False)
  """
  return pathlib.PurePath(path).suffix.lower() in INPUT_SUFFIXES


def is_clip(path: str | os.PathLike[str]) -> bool:
  """Tells whether a file is to be read as a clip: by its name, or its content.

  What names a clip's files or addresses is one too: `opened` refuses it. A file
  with an image's suffix is none.

  >>> is_clip("a.mp4"), is_clip("no-such-file")
  (True, False)
  """
  if is_clip_suffix(path) or images.is_image_suffix(path):
    return is_clip_suffix(path)
  with contextlib.suppress(OSError), open(path, "rb") as file:
    head = file.read(_HEAD)
    return _container(head) is not None or _is_list(head)
  return False


def suffix_of(path: str | os.PathLike[str]) -> str:
  """Returns the suffix of results like a clip, by its content.

  Returns:
    One of `OUTPUT_SUFFIXES`; empty if it is no clip.

  >>> suffix_of(os.devnull)
  ''
  """
  with open(path, "rb") as file:
    name = _container(file.read(_HEAD))
  return {None: "", "mov": ".mp4"}.get(name, ".mkv")


def _container(head: bytes) -> str | None:
  """Returns FFmpeg's name of the container that begins so."""
  if head[4:8] in _BOXES:
    return None if head[4:12] in {b"ftyp" + p for p in _PICTURES} else "mov"
  if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"):
    return "avi"
  for name, start in {
    "matroska": b"\x1aE\xdf\xa3",
    "flv": b"FLV\1",
    "asf": bytes.fromhex("3026b2758e66cf11"),
    "ogg": b"OggS",
    "mpeg": b"\0\0\1\xba",
    "yuv4mpegpipe": b"YUV4MPEG2 ",
  }.items():
    if head.startswith(start):
      return name
  for before in (0, 4):  # Of M2TS, a packet has a time before it.
    marks = head[before :: TS_PACKET + before][:5]
    if len(head) == _HEAD and marks == b"G" * 5:
      return "mpegts"
  return None


def _is_list(head: bytes) -> bool:
  text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
  if text.startswith(b"<?xml"):
    return any(word in text for word in _LISTS if word.startswith(b"<"))
  return text.startswith(_LISTS)


def require_av(path: str | os.PathLike[str]) -> None:
  """Raises unless clips can be read here.

  Args:
    path: The clip, for the message.

  Raises:
    VideoError: If PyAV is not installed.
  """
  try:
    import av

    # Its own are said by the errors that we raise.
    av.logging.set_level(None)
  except ImportError as error:
    raise VideoError(
      f"{printable(path)}: needs PyAV; {extras.pip_install('video')}"
    ) from error


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Puts a clip's name before what is wrong with it."""
  try:
    yield
  except VideoError as error:
    raise VideoError(f"{printable(path)}: {error}") from error


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
  """Says in one line what is wrong with a clip.

  Raises:
    VideoError: Instead of what FFmpeg raises of a file's content.
  """
  import av

  with naming(path):
    try:
      yield
    except av.FFmpegError as error:
      reason = " ".join(str(error.strerror or error).split())
      raise VideoError(f"damaged or cut short ({printable(reason)})") from error


@contextlib.contextmanager
def opened(
  path: str | os.PathLike[str], *, max_pixels: int
) -> Iterator[av.container.InputContainer]:
  """Opens a clip.

  Args:
    path: The file.
    max_pixels: Most pixels of a frame, for the decoders.

  Yields:
    The container.

  Raises:
    VideoError: If it is none of those that are known, names other files, or is
      damaged.
    OSError: If it cannot be opened.
  """
  with open(path, "rb") as file:
    with naming(path):
      name = _named(file)
      structure.check(name, file)
    file.seek(0)
    require_av(path)
    import av

    with (
      explained(path),
      av.open(
        file,
        format=name,
        options={
          "codec_whitelist": decoders(),
          "format_whitelist": av.ContainerFormat(name).name,
          "max_pixels": str(max_pixels),
          "protocol_whitelist": "none",
        },
        io_open=_refuse,
        metadata_errors="replace",
        buffer_size=_BUFFER,
      ) as container,
    ):
      yield container


def _named(file: BinaryIO) -> str:
  """Returns FFmpeg's name of a container, by how a file begins."""
  head = file.read(_HEAD)
  if not head:
    raise VideoError("an empty file")
  name = _container(head)
  if name is None and _is_list(head):
    raise VideoError(
      "a list, or a description, of other files or addresses, which are not"
      " opened; name the clip itself"
    )
  if name is None:
    raise VideoError(
      "not a clip of a known kind: MP4, QuickTime, Matroska, WebM, AVI, MPEG,"
      " FLV, ASF, Ogg or Y4M"
    )
  return name


def losses(path: str | os.PathLike[str]) -> tuple[str, ...]:
  """Returns sentences on what a recording lacks, as far as it tells.

  Args:
    path: A clip that was opened.

  Raises:
    OSError: If it cannot be opened.
  """
  with open(path, "rb") as file, naming(path):
    return structure.losses(_named(file), file)


def _refuse(url: str, *_: object) -> None:
  raise VideoError(f"wants to open {printable(url)}; no other file is opened")


@functools.cache
def decoders() -> str:
  """Returns FFmpeg's names of what may decode, with commas between them.

  It holds for the search for streams alone if a container is told: what decodes
  a stream then, PyAV opens for itself (`reading.main_stream`).
  """
  import av

  subtitles = [
    name for name in av.codecs_available if _is_subtitle(av.codec.Codec, name)
  ]
  return _DECODERS + ",".join([_SOUND_DECODERS, *subtitles])


def _is_subtitle(codec, name):
  with contextlib.suppress(Exception):
    return codec(name, "r").type == "subtitle"
  return False
