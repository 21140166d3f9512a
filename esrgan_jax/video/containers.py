"""Which files are clips, and how they are opened: nothing but themselves.

A container is chosen here, by a file's first bytes and from a short list; what
FFmpeg would otherwise make of a stranger's file is not asked. It reads from the
open file, and whatever else it wants to open is refused: no playlist, script or
reference leads anywhere.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from esrgan_jax import images
from esrgan_jax.images import boxes
from esrgan_jax.text import printable

if TYPE_CHECKING:
  import av.container

__all__ = [
  "INPUT_SUFFIXES",
  "OUTPUT_SUFFIXES",
  "VideoError",
  "decoders",
  "explained",
  "is_clip",
  "is_clip_suffix",
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
_PACKET = 188  # Bytes of MPEG-TS.
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


class VideoError(ValueError):
  """A clip that cannot be read or written; the message is one line."""


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
    marks = head[before :: _PACKET + before][:5]
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
      f"{printable(path)}: needs PyAV; pip install 'esrgan-jax[video]'"
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
      name = _look(file)
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


def _look(file: BinaryIO) -> str:
  """Returns FFmpeg's name of a container, after a look at its structure."""
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
  if name in _LOOKS:
    _LOOKS[name](file)
  file.seek(0)
  return name


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


def _look_at_boxes(file: BinaryIO) -> None:
  """Refuses MP4 that is cut short, or whose samples are in other files."""
  data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  movies, seen = [], set()
  try:
    for kind, body in boxes.walk(data):
      seen.add(kind)
      if kind == b"moov":
        movies.append(body)
  except (ValueError, struct.error) as error:
    if not {b"moov", b"mdat"} <= seen:  # Else it is what comes after them.
      raise VideoError(f"damaged or cut short ({error})") from error
  if not movies:
    raise VideoError("damaged or cut short (no box 'moov')")
  try:
    for body in movies:
      _look_at_movie(body)
  except VideoError:
    raise
  except (ValueError, struct.error) as error:
    raise VideoError(f"damaged or cut short ({error})") from error


def _look_at_movie(movie: memoryview) -> None:
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
      _look_at_track(body)


def _look_at_track(track: memoryview) -> None:
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


def _look_at_elements(file: BinaryIO) -> None:
  """Refuses Matroska that is shorter than it says."""
  file.seek(0)
  size = os.fstat(file.fileno()).st_size
  at = 0
  for _ in range(3):  # The header, perhaps something void, the segment.
    file.seek(at)
    head = file.read(16)
    try:
      identity, begin = _number(head, 0, keep=True)
      length, begin = _number(head, begin)
    except IndexError:
      raise VideoError("damaged or cut short (no segment)") from None
    if length is None:
      return  # A live one: it ends where it ends.
    at += begin + length
    if identity == 0x18538067:
      break
  if at > size:
    raise VideoError(f"damaged or cut short ({size} bytes of {at})")


def _number(head: bytes, at: int, *, keep: bool = False):
  """Reads EBML's number; None if it stands for what is unknown."""
  length = 9 - head[at].bit_length()
  if length > 8 or at + length > len(head):
    raise IndexError
  value = int.from_bytes(head[at : at + length])
  if not keep:
    mask = (1 << 7 * length) - 1
    value = None if value & mask == mask else value & mask
  return value, at + length


def _look_at_chunks(file: BinaryIO) -> None:
  """Refuses an AVI that is shorter than it says."""
  file.seek(4)
  end = 8 + int.from_bytes(file.read(4), "little")
  size = os.fstat(file.fileno()).st_size
  if end > size:
    raise VideoError(f"damaged or cut short ({size} bytes of {end})")


_LOOKS = {
  "mov": _look_at_boxes,
  "matroska": _look_at_elements,
  "avi": _look_at_chunks,
}
