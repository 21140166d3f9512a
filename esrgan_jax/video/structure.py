"""Looks at how a clip's file is built, before FFmpeg does.

FFmpeg gives what it finds of a file, and is silent about the rest: a download
that broke off, or a hole in the midst, is a shorter clip to it. So a file is
walked here from piece to piece, as its container lays them out, and none of
what they hold is read. Sources: ISO/IEC 14496-12 (MP4), RFC 8794 and RFC 9559
(Matroska), RFC 3533 (Ogg), Adobe's Video File Format Specification 10 (FLV),
Microsoft's AVI RIFF File Reference and Advanced Systems Format Specification
1.2, ISO/IEC 13818-1 (MPEG-TS and -PS), and FFmpeg's yuv4mpegdec.c (Y4M).
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from esrgan_jax.images import boxes
from esrgan_jax.video.errors import VideoError

__all__ = ["TS_PACKET", "check", "losses"]

TS_PACKET = 188  # Bytes.


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


def _cut(size: int, wanted: int) -> VideoError:
  return VideoError(f"damaged or cut short ({size} bytes of {wanted})")


def _damaged(at: int) -> VideoError:
  return VideoError(f"damaged or cut short (at byte {at})")


def _check_boxes(data: mmap.mmap) -> None:
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


_SEGMENT, _CLUSTER, _TRACKS = 0x18538067, 0x1F43B675, 0x1654AE6B
_TRACK, _TRACK_NUMBER = 0xAE, 0xD7
_BLOCK_GROUP, _BLOCKS = 0xA0, {0xA1, 0xA3}
_ANYWHERE = {0xEC, 0xBF}  # What is void, and checksums.
# Seek head, info, tracks, clusters, cues, attachments, chapters, tags.
_IN_SEGMENT = {0x114D9B74, 0x1549A966, _TRACKS, _CLUSTER, 0x1C53BB6B}
_IN_SEGMENT |= {0x1941A469, 0x1043A770, 0x1254C367}
# Of a cluster and of its groups of blocks: times, what is silent, places,
# sizes; durations, references, additions, states, padding, slices.
_IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, _BLOCK_GROUP, *_BLOCKS}
_IN_CLUSTER |= {0x9B, 0xFA, 0xFB, 0x75A1, 0xA4, 0x75A2, 0x8E, 0xC8}


def _check_elements(data: mmap.mmap) -> None:
  """Refuses Matroska that is shorter than it says, or whose elements break off.

  Outside clusters, an element that is not known counts if one that is follows
  it: programs have some of their own.
  """
  at, size = 0, len(data)
  for _ in range(3):  # The header, perhaps something void, the segment.
    try:
      identity, begin = _number(data, at, keep=True)
      length, begin = _number(data, begin)
    except ValueError:
      raise VideoError("damaged or cut short (no segment)") from None
    at = size if length is None else begin + length
    if identity == _SEGMENT:
      break
  else:
    return  # FFmpeg may know what that is.
  if at > size:
    raise _cut(size, at)
  end, at = at, begin
  tracks: set[int] = set()
  cluster = None  # Where the one ends that is being read.
  while at < end:
    if at == cluster:
      cluster = None
    try:
      identity, begin = _number(data, at, keep=True)
      length, begin = _number(data, begin)
    except ValueError:
      raise _damaged(at) from None
    stop = end if length is None else begin + length
    if cluster == end and identity in _IN_SEGMENT:
      cluster = None  # It did not say its length: the next one ends it.
    if stop > (cluster or end) or (length is None and identity != _CLUSTER):
      raise _damaged(at)
    inside = _IN_SEGMENT if cluster is None else _IN_CLUSTER
    if identity not in inside | _ANYWHERE:
      if cluster or (stop != end and not _is_known(data, stop)):
        raise _damaged(at)
    elif identity == _CLUSTER:
      cluster, stop = stop, begin
    elif identity == _BLOCK_GROUP:
      stop = begin  # Its parts have names of their own.
    elif identity == _TRACKS:
      tracks.update(_tracks(data, begin, stop))
    elif identity in _BLOCKS and not _is_block(data, begin, stop, tracks):
      raise _damaged(at)
    at = stop


def _is_known(data: mmap.mmap, at: int) -> bool:
  try:
    identity, _ = _number(data, at, keep=True)
  except ValueError:
    return False
  return identity in _IN_SEGMENT | _IN_CLUSTER | _ANYWHERE


def _is_block(data: mmap.mmap, at: int, end: int, tracks: set[int]) -> bool:
  """Tells whether a block is of a track, and frames fill it (RFC 9559, 10)."""
  try:
    track, at = _number(data, at)
    flags, count, at = data[at + 2], data[at + 3] + 1, at + 4
    if tracks and track not in tracks:
      return False
    if at > end or flags & 0x70:
      return False
    lacing = flags >> 1 & 3
    if lacing == 0:
      return True
    if lacing == 2:  # All are as long.
      return (end - at) % count == 0
    length = total = 0
    for number in range(count - 1):  # The last one has the rest.
      if lacing == 1:
        length = 0
        while data[at] == 255:
          length, at = length + 255, at + 1
        length, at = length + data[at], at + 1
      else:
        begin = at
        change, at = _number(data, at)
        half = (1 << 7 * (at - begin) - 1) - 1 if number else 0
        length = (change or 0) - half + (length if number else 0)
      total += length
      if length < 0:
        return False
    return at + total <= end
  except (ValueError, IndexError):
    return False


def _tracks(data: mmap.mmap, at: int, end: int) -> Iterator[int]:
  """Yields the numbers of tracks, as blocks name them."""
  for kind, begin, stop in _elements(data, at, end):
    parts = _elements(data, begin, stop) if kind == _TRACK else ()
    for identity, first, last in parts:
      if identity == _TRACK_NUMBER:
        yield int.from_bytes(data[first:last])


def _elements(
  data: mmap.mmap, at: int, end: int
) -> Iterator[tuple[int | None, int, int]]:
  while at < end:
    try:
      identity, begin = _number(data, at, keep=True)
      length, begin = _number(data, begin)
    except ValueError:
      raise _damaged(at) from None
    stop = end if length is None else begin + length
    if stop > end:
      raise _damaged(at)
    yield identity, begin, stop
    at = stop


def _number(
  data: mmap.mmap, at: int, *, keep: bool = False
) -> tuple[int | None, int]:
  """Reads EBML's number, and where it ends; None stands for what is unknown.

  Raises:
    ValueError: If there is none.
  """
  head = data[at : at + 8]
  length = 9 - head[0].bit_length() if head else 9
  if length > len(head):
    raise ValueError("no number")
  value = int.from_bytes(head[:length])
  if not keep:
    mask = (1 << 7 * length) - 1
    value = None if value & mask == mask else value & mask
  return value, at + length


def _check_chunks(data: mmap.mmap) -> None:
  """Refuses an AVI that is shorter than it says, in any of its parts."""
  at, size = 0, len(data)
  while data[at : at + 4] == b"RIFF":
    at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    if at > size:
      raise _cut(size, at)
    at += at % 2


_ASF_DATA = bytes.fromhex("3626b2758e66cf11 a6d900aa0062ce6c")


def _is_filling(data: mmap.mmap, at: int) -> bool:
  """Tells whether a file has nothing but zeros from there on."""
  return not any(
    data[n : n + 2**20].strip(b"\0") for n in range(at, len(data), 2**20)
  )


def _check_objects(data: mmap.mmap) -> None:
  """Refuses ASF that is shorter than it says."""
  at, size = 0, len(data)
  while at < size:
    length = int.from_bytes(data[at + 16 : at + 24], "little")
    if data[at : at + 16] == _ASF_DATA and length == 0:
      return  # As of what was sent live, whose length nobody knew.
    if length < 24:
      if _is_filling(data, at):
        return
      raise _damaged(at)
    at += length
  if at > size:
    raise _cut(size, at)


_SCRIPT = 18
_FLV_TAGS = {8, 9, _SCRIPT}  # Sound, pictures.
_FLV_SIZE = re.compile(rb"\x00\x08filesize\x00(.{8})", re.DOTALL)


def _check_tags(data: mmap.mmap) -> None:
  """Refuses an FLV whose tags do not lie one after the other."""
  at, size = 4 + int.from_bytes(data[5:9]), len(data)
  while at < size:
    kind, begin = data[at] & 0x1F, at + 11
    if kind not in _FLV_TAGS:
      if _is_filling(data, at):
        return
      raise _damaged(at)
    at = begin + int.from_bytes(data[at + 1 : at + 4])
    if at > size:
      raise _cut(size, at + 4)
    if kind == _SCRIPT and (told := _FLV_SIZE.search(data, begin, at)):
      (wanted,) = struct.unpack(">d", told[1])
      if size < wanted < 2**60:  # It ends between two tags.
        raise _cut(size, int(wanted))
    at += 4  # The length once more, which is wrong in some.


# Ogg's checksum begins with the highest bit of a byte, zlib's with the lowest.
_TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _check_pages(data: mmap.mmap) -> None:
  """Refuses an Ogg with a page that is cut short, damaged or not there."""
  at, size = 0, len(data)
  numbers: dict[bytes, int] = {}
  while at < size:
    head = data[at : at + 27]
    if head[:4] != b"OggS"[: len(head)]:
      if _is_filling(data, at):
        return
      raise _damaged(at)
    count = head[26] if len(head) == 27 else 0
    lengths = data[at + 27 : at + 27 + count]
    stop = at + 27 + count + sum(lengths)
    if len(lengths) < count or stop > size or len(head) < 27:
      raise _cut(size, stop)
    page = head[:22] + bytes(4) + data[at + 26 : stop]
    serial, number, checksum = struct.unpack_from("<4sII", head, 14)
    if number != numbers.get(serial, number) or checksum != _checksum(page):
      raise _damaged(at)
    numbers[serial] = number + 1
    at = stop


def _checksum(page: bytes) -> int:
  turned = zlib.crc32(page.translate(_TURNED), 0xFFFFFFFF) ^ 0xFFFFFFFF
  return int(f"{turned:032b}"[::-1], 2)


def _check_raw(data: mmap.mmap) -> None:
  """Refuses a Y4M with a frame that is cut short, or without a mark."""
  at, size = data.find(b"\n") + 1, len(data)
  words = data[:at].decode("latin-1").split()[1:]
  told = {word[0]: word[1:] for word in words}
  kind = re.fullmatch(
    r"(420|411|422|444alpha|444|mono)(?:jpeg|mpeg2|paldv)?p?(\d*)",
    told.get("C", "420"),
  )
  sizes = f"{told.get('W')}{told.get('H')}"
  is_old = "C" not in told and b"XYSCSS" in data[:at]
  if is_old or not (at and kind and sizes.isdecimal()):
    return  # FFmpeg knows the older form, or says what is wrong.
  width, height = int(told["W"]), int(told["H"])
  chroma = {
    "420": 2 * (-(-width // 2)) * (-(-height // 2)),
    "411": 2 * (-(-width // 4)) * height,
    "422": 2 * (-(-width // 2)) * height,
    "444": 2 * width * height,
    "444alpha": 3 * width * height,
    "mono": 0,
  }[kind[1]]
  sample = 2 if int(kind[2] or 8) > 8 else 1
  frame = (width * height + chroma) * sample
  while at < size:
    if data[at : at + 5] != b"FRAME"[: size - at]:
      raise _damaged(at)
    at = data.find(b"\n", at) + 1 or size
    at += frame
  if at > size:
    raise _cut(size, at)


def _ogg_losses(data: mmap.mmap) -> Iterator[str]:
  """Yields a sentence if a stream of an Ogg has no page that is its last."""
  at, ended = 0, {}
  while data[at : at + 4] == b"OggS":
    count = data[at + 26]
    ended[data[at + 14 : at + 18]] = data[at + 5] & 4 > 0
    at += 27 + count + sum(data[at + 27 : at + 27 + count])
  if not all(ended.values()):
    yield "it has no end: it may be cut short"


_PACKETS = 2**16  # That are looked at in one go.
_FILLING = 0x1FFF  # The number of what is no stream.


def _ts_losses(data: mmap.mmap) -> Iterator[str]:
  """Yields sentences on what MPEG-TS lacks, by its packets' counters."""
  # Of M2TS, times are before them.
  before = 0 if data[: TS_PACKET + 1 : TS_PACKET].count(b"G") == 2 else 4
  size = before + TS_PACKET
  count, rest = divmod(len(data), size)
  if rest:
    yield f"cut short: it ends with {rest} bytes of a packet of {size}"
  last: dict[int, int] = {}
  places = bad = 0
  for first in range(0, count, _PACKETS):
    number = min(_PACKETS, count - first)
    packets = np.frombuffer(data, np.uint8, number * size, first * size)
    packets = packets.reshape(number, size)[:, before:]
    sound = (packets[:, 0] == ord("G")) & (packets[:, 1] < 0x80)
    bad += number - int(sound.sum()) + _bad_starts(packets[sound])
    places += _jumps(packets[sound, :8].astype(np.int32), last)
  if bad:
    yield f"{bad} of its {count} packets are damaged"
  if places:
    yield (
      f"packets are missing at {places} places of it by their counters, unless"
      " it is made of several recordings"
    )


def _streams(packets: np.ndarray) -> np.ndarray:
  """Returns the number of each packet's stream; `[N]`, int32."""
  return (packets[:, 1] & 0x1F).astype(np.int32) << 8 | packets[:, 2]


def _bad_starts(packets: np.ndarray) -> int:
  """Counts packets that begin something, but not as others of their stream."""
  begin = (packets[:, 1] & 0x40 > 0) & (packets[:, 3] & 0x10 > 0)
  packets = packets[begin & (_streams(packets) != _FILLING)]
  adapted = packets[:, 3] & 0x20 > 0
  places = 4 + np.where(adapted, packets[:, 4].astype(np.int32) + 1, 0)
  places = np.minimum(places, TS_PACKET - 3)
  rows = np.arange(len(packets))
  head = [
    packets[rows, places + n] == value for n, value in enumerate((0, 0, 1))
  ]
  is_good = np.all(head, axis=0)
  streams = _streams(packets)
  # Tables begin in another way.
  return int((np.isin(streams, streams[is_good]) & ~is_good).sum())


def _jumps(heads: np.ndarray, last: dict[int, int]) -> int:
  """Counts where counters do not go on.

  Args:
    heads: `[N, 8]`, how packets begin.
    last: Of a stream's number, its counter; is brought up to date.
  """
  streams = _streams(heads)
  # With a payload, and of a stream; others do not count.
  heads = heads[keep := (heads[:, 3] & 0x10 > 0) & (streams != _FILLING)]
  streams = streams[keep]
  # A field of adaptation may say that a counter begins anew.
  is_anew = (
    (heads[:, 3] & 0x20 > 0) & (heads[:, 4] > 0) & (heads[:, 5] & 0x80 > 0)
  )
  found = 0
  for stream in np.unique(streams).tolist():
    own = streams == stream
    counters = heads[own, 3] & 0xF
    steps = np.diff(counters, prepend=last.get(stream, counters[0])) % 16
    if stream not in last:
      steps[0] = 1
    # A packet may be sent twice.
    found += int(((steps > 1) & ~is_anew[own]).sum())
    last[stream] = int(counters[-1])
  return found


_PACK, _END = 0xBA, 0xB9  # Of MPEG-PS: begins, and is all.
_CODE = re.compile(rb"\x00\x00\x01[\xb9-\xff]")


def _ps_losses(data: mmap.mmap) -> Iterator[str]:
  """Yields a sentence if MPEG-PS breaks off in a packet, or between them."""
  at, size, holes = 0, len(data), 0
  while at < size:
    head = data[at : at + 14]
    kind = head[3] if head[:3] == b"\0\0\1" and len(head) > 3 else 0
    if kind < _END:
      begin, at = at, _next_code(data, at)
      holes += bool(data[begin:at].strip(b"\0"))
    elif kind == _END:
      at += 4
    elif kind == _PACK:
      # Of MPEG-1, or of MPEG-2 with what fills it.
      is_second = len(head) > 4 and head[4] >> 6 == 1
      at += 14 + (head[13] & 7 if len(head) == 14 else 0) if is_second else 12
    else:
      at += 6 + int.from_bytes(head[4:6])
  if at > size:
    yield f"cut short: {size} bytes of {at}"
  if holes:
    yield f"damaged at {holes} places"


def _next_code(data: mmap.mmap, at: int) -> int:
  found = _CODE.search(data, at)
  return found.start() if found else len(data)


_CHECKS = {
  "mov": _check_boxes,
  "matroska": _check_elements,
  "avi": _check_chunks,
  "asf": _check_objects,
  "flv": _check_tags,
  "ogg": _check_pages,
  "yuv4mpegpipe": _check_raw,
}
_LOSSES = {"mpegts": _ts_losses, "mpeg": _ps_losses, "ogg": _ogg_losses}
