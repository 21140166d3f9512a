"""The result: its segments as one stream, and all else of the clip beside it.

Sound, subtitles, attachments, covers and data are copied packet by packet,
chapters and metadata as they are. Nothing of them is decoded.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import os
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

from esrgan_jax import storage
from esrgan_jax.images import MAX_PIXELS
from esrgan_jax.text import printable
from esrgan_jax.video.containers import (
  OUTPUT_SUFFIXES,
  naming,
  opened,
)
from esrgan_jax.video.encoding import CODECS, Encoder, Encoding
from esrgan_jax.video.errors import VideoError
from esrgan_jax.video.reading import SHIFTED, Clip, Clock, main_stream
from esrgan_jax.video.segments import read_packets

if TYPE_CHECKING:
  import av
  import av.container

__all__ = ["check_fits", "join"]

# What a file's format says of itself, and of the encoder that is no more.
_OWN = {"major_brand", "minor_version", "compatible_brands", "encoder"}
# Of Matroska's statistics, on a stream that is another now.
_STATISTICS = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS_", "ENCODER")
# What MP4's usual tags hold; for others it has to use those of QuickTime.
_TAGS = {
  *("title", "author", "album_artist", "artist", "album", "comment", "date"),
  *("composer", "genre", "copyright", "grouping", "lyrics", "description"),
  *("synopsis", "show", "episode_id", "network", "keywords", "encoder"),
  *("creation_time", "season_number", "episode_sort", "media_type", "hd_video"),
  *("gapless_playback", "compilation", "track", "disc", "major_brand"),
  *("minor_version", "compatible_brands", "timecode", "location"),
}
# MP4 says with such a packet that no subtitle is shown; what writes MP4 puts
# them where they belong.
_NO_TEXT = b"\0\0"
# Frames that may come before one that is shown earlier: of H.264 and HEVC, 16.
_MOST_REORDERED = 16
# Hidden, as all that is no segment and is left behind.
_JOINED = ".joined"
# Covers are files there, not streams.
_ATTACHING = ("matroska",)
# Where a file's head cannot be written: packets come later.
_ADVICE = "; choose another --format"
_WHAT = {
  "audio": "sound",
  "subtitle": "subtitles",
  "video": "further pictures",
  "attachment": "attachment",
  "data": "data",
}


@dataclasses.dataclass(frozen=True)
class _Output:
  """A file that is begun: its container, and which stream becomes which."""

  container: av.container.OutputContainer
  pictures: av.video.VideoStream
  copies: dict[int, av.stream.Stream]
  notes: tuple[str, ...]


def check_fits(
  source: str | os.PathLike[str],
  clip: Clip,
  target: pathlib.Path,
  encoding: Encoding,
  *,
  max_pixels: int = MAX_PIXELS,
) -> tuple[str, ...]:
  """Raises if a result cannot hold what its clip has beside pictures.

  All packets of the clip are read, and none is decoded: what would not fit at
  the end is told before the work.

  Args:
    source: The clip.
    clip: What `read_clip` says of it.
    target: The result that is to be; only its name counts.
    encoding: How pictures are encoded.
    max_pixels: As of `read_clip`.

  Returns:
    Sentences on what is left out.

  Raises:
    VideoError: If sound or subtitles would be left out, the clip's clock begins
      anew in its midst, or there is no encoder for frames of such a size.
  """
  with naming(source):
    Encoder(encoding)
  with (
    opened(source, max_pixels=max_pixels) as container,
    contextlib.closing(io.BytesIO()) as nowhere,
    _begun(container, clip, target, encoding, nowhere) as output,
  ):
    clock = Clock()
    wanted = [main_stream(container).index, *output.copies]
    for packet in container.demux([container.streams[n] for n in wanted]):
      clock.check(packet)
    return output.notes


def join(
  source: str | os.PathLike[str],
  clip: Clip,
  target: pathlib.Path,
  encoding: Encoding,
  segments: Sequence[pathlib.Path],
  *,
  record: str | None = None,
  overwrite: bool = False,
  max_pixels: int = MAX_PIXELS,
) -> None:
  """Writes a result.

  It is written into the folder of its segments, where `Folder` removes what a
  process that was killed has left.

  Args:
    source: The clip.
    clip: What `read_clip` says of it.
    target: The result; its suffix is one of `containers.OUTPUT_SUFFIXES`.
    encoding: How its frames were encoded.
    segments: Their files, at least one.
    record: A line on how it was made, for its metadata.
    overwrite: Whether to replace a file of that name.
    max_pixels: As of `read_clip`.

  Raises:
    VideoError: If the clip is damaged, or the result cannot hold what it has.
    OSError: If it cannot be written.
  """
  storage.check_output(target, overwrite=overwrite)
  times, delay = _times(segments)
  covers = _covers(source, max_pixels=max_pixels)
  joined = segments[0].with_name(_JOINED)
  _check_room(target, segments)
  with (
    opened(source, max_pixels=max_pixels) as container,
    storage.written_aside(joined, overwrite=True) as file,
    _begun(
      container, clip, target, encoding, file, record=record, covers=covers
    ) as output,
  ):
    start = _start(container)
    pictures = _numbered(
      segments, times, delay, encoding, output.pictures, start
    )

    def put(packet: av.Packet) -> None:
      with explained_result(target):
        output.container.mux_one(packet)

    ahead = next(pictures, None)
    for packet, when in _copied(container, output, start):
      while ahead is not None and ahead.dts * encoding.time_base <= when:
        put(ahead)
        ahead = next(pictures, None)
      put(packet)
    while ahead is not None:
      put(ahead)
      ahead = next(pictures, None)
  storage.publish(joined, target, overwrite=overwrite)


def _check_room(target: pathlib.Path, segments: Sequence[pathlib.Path]) -> None:
  """Raises if there is no room for a result beside its segments."""
  needed = sum(path.stat().st_size for path in segments)
  free = storage.free_bytes(segments[0].parent)
  if needed > free:
    raise OSError(
      f"{target} needs {needed / 1e6:.0f} MB beside its parts, which are"
      f" finished, and {free / 1e6:.0f} MB are free; make room, and the same"
      " command goes on"
    )


def _times(segments: Sequence[pathlib.Path]) -> tuple[list[int], int]:
  """Returns all times in order, and how many packets come before their turn."""
  times: list[int] = []
  delay = 0
  for path in segments:
    decoded = [packet.time for packet in read_packets(path)]
    shown = sorted(decoded)
    places = {time: place for place, time in enumerate(shown)}
    delay = max([delay, *(n - places[time] for n, time in enumerate(decoded))])
    times += shown
  return times, delay


def _numbered(
  segments: Iterable[pathlib.Path],
  times: Sequence[int],
  delay: int,
  encoding: Encoding,
  stream: av.video.VideoStream,
  start: Fraction,
) -> Iterator[av.Packet]:
  """Yields the packets of pictures, with times for decoding.

  Segments know nothing of each other, and each would begin some frames too
  early: so those times are made anew, the times of frames, later by a delay.
  """
  import av

  shift = round(start / encoding.time_base)
  number = 0
  for path in segments:
    for packet in read_packets(path):
      result = av.Packet(packet.data)
      result.stream = stream
      result.time_base = encoding.time_base
      result.pts = packet.time - shift
      if number >= delay:
        result.dts = times[number - delay] - shift
      elif delay < len(
        times
      ):  # As much before the first as it is before later.
        result.dts = times[0] - (times[delay] - times[number]) - shift
      else:
        result.dts = times[0] - (delay - number) - shift
      result.duration = packet.duration
      result.is_keyframe = packet.is_key
      yield result
      number += 1


def _start(container: av.container.InputContainer) -> Fraction:
  """Seconds by which all times are earlier than in the clip."""
  if container.format.name not in SHIFTED:
    return Fraction(0)
  return Fraction(container.start_time or 0, 1_000_000)


def _copied(container, output, start):
  """Yields packets of other streams, and their seconds."""
  copies = output.copies
  wanted = [container.streams[index] for index in copies]
  if not wanted:
    return
  fillers = {s.index for s in wanted if _is_text(s)}
  rising = {
    index: _Rising(copy, output.container.format)
    for index, copy in copies.items()
  }
  for packet in _with_times(container.demux(wanted)):
    if packet.stream_index in fillers and bytes(packet) == _NO_TEXT:
      continue
    shift = round(start / packet.time_base)
    packet.dts -= shift
    if packet.pts is not None:
      packet.pts -= shift
    rising[packet.stream_index].mend(packet)
    when = packet.dts * packet.time_base
    packet.stream = copies[packet.stream_index]
    yield packet, when


def _with_times(packets):
  """Yields packets that have bytes; all have times for decoding.

  Matroska has only those for showing. Of pictures that come in another order
  than they are shown in, the first have none for decoding then: they get what
  comes before the first that has one.
  """
  clock = Clock()
  held, begun = collections.defaultdict(list), set()
  for packet in packets:
    clock.check(packet)
    own = held[packet.stream_index]
    is_early = packet.dts is None and packet.stream_index not in begun
    if is_early and _is_reordered(packet) and len(own) < _MOST_REORDERED:
      own.append(packet)
      continue
    begun.add(packet.stream_index)
    for back, each in zip(range(len(own), 0, -1), own, strict=True):
      if packet.dts is not None:
        each.dts = packet.dts - back * max(packet.duration or 0, 1)
    for each in [*own, packet]:
      if each.dts is None:  # A cover has neither.
        each.dts = each.pts = each.pts or 0
      if each.size:  # Else it is the end of a stream.
        yield each
    own.clear()


def _is_reordered(packet: av.Packet) -> bool:
  stream = packet.stream
  return packet.size > 0 and stream.type == "video" and not _is_cover(stream)


class _Rising:
  """Has the times of a copied stream rise, where they only jitter.

  What writes a file refuses it otherwise. A step is one of the result's: in
  Matroska several packets may have one time, and keep it.
  """

  def __init__(
    self, copy: av.stream.Stream, container: av.format.ContainerFormat
  ):
    import av.format

    self._base = copy.time_base
    may_stay = container.flags & av.format.Flags.ts_nonstrict.value
    self._step = 0 if may_stay or copy.type in ("subtitle", "data") else 1
    self._least: int | None = None

  def mend(self, packet: av.Packet) -> None:
    """Gives a packet another time if its own is too early."""
    factor = packet.time_base / self._base
    time = round(packet.dts * factor)
    if self._least is not None and time < self._least:
      time = self._least
      shown = packet.pts
      packet.dts = time
      packet.pts = None if shown is None else round(shown * factor)
      packet.duration = round((packet.duration or 0) * factor)
      packet.time_base = self._base
    if packet.pts is not None:
      packet.pts = max(packet.pts, packet.dts)
    self._least = time + self._step


def _is_text(stream) -> bool:
  context = stream.codec_context
  return context is not None and context.name == "mov_text"


@contextlib.contextmanager
def _begun(
  source: av.container.InputContainer,
  clip: Clip,
  target: pathlib.Path,
  encoding: Encoding,
  file: BinaryIO,
  *,
  record: str | None = None,
  covers: Mapping[int, bytes] = types.MappingProxyType({}),
) -> Iterator[_Output]:
  """Yields a file whose header is written, and ends it."""
  import av

  name = OUTPUT_SUFFIXES[target.suffix.lower()]
  main = main_stream(source)
  kept, notes = _keepable(source, main, name, target.suffix)
  metadata = {
    key: text
    for key, text in source.metadata.items()
    if key.lower() not in _OWN
  }
  if record and "comment" not in map(str.lower, metadata):
    metadata["comment"] = record
  options = {}
  others = {key.lower().partition("-")[0] for key in metadata} - _TAGS
  if others and name in ("mp4", "mov"):  # A device's own, for one.
    options["movflags"] = "use_metadata_tags"
  with explained_result(target, advice=_ADVICE):
    container = av.open(
      file, "w", format=name, container_options=options, buffer_size=2**20
    )
  try:
    with explained_result(target, advice=_ADVICE):
      container.metadata.update(metadata)
      container.set_chapters(source.chapters())
      copies = {}
      pictures = None
      for stream in source.streams:
        if stream.index == main.index:
          pictures = _add_pictures(container, main, clip, encoding, name)
        elif _is_cover(stream) and name in _ATTACHING:
          _attach(container, stream, covers.get(stream.index, b""))
        elif stream in kept:
          copies[stream.index] = _add_copy(container, stream)
      container.start_encoding()
    yield _Output(container, pictures, copies, tuple(notes))
  except BaseException:
    with contextlib.suppress(Exception):
      container.close()
    raise
  with explained_result(target):
    container.close()


@contextlib.contextmanager
def explained_result(target: pathlib.Path, advice: str = "") -> Iterator[None]:
  """Says in one line why a result cannot be written, and perhaps a way out."""
  import av

  try:
    yield
  except OSError:
    raise  # Of the disk.
  except (av.FFmpegError, ValueError) as error:
    if isinstance(error, VideoError):
      raise
    reason = " ".join(str(error).split())
    raise VideoError(
      f"{printable(target)} cannot be written: {printable(reason)}{advice}"
    ) from error


def _add_pictures(container, main, clip, encoding, name):
  stream = container.add_stream(
    encoding.encoder, rate=encoding.rate, time_base=encoding.time_base
  )
  encoding.prepare(stream.codec_context)
  tag = CODECS[encoding.codec].tag
  if tag and name in ("mp4", "mov"):
    stream.codec_context.codec_tag = tag
  stream.metadata.update(
    {
      key: value
      for key, value in main.metadata.items()
      if not key.upper().startswith(_STATISTICS)
    }
  )
  stream.disposition = int(main.disposition)
  if clip.matrix:
    stream.set_display_matrix(_enlarged(clip, encoding))
  return stream


def _enlarged(clip: Clip, encoding: Encoding) -> list[int]:
  """A matrix, for larger frames: what is in pixels grows."""
  matrix = list(clip.matrix)
  matrix[6] = round(matrix[6] * encoding.width / clip.width)
  matrix[7] = round(matrix[7] * encoding.height / clip.height)
  return matrix


def _add_copy(container, stream):
  copy = container.add_stream_from_template(stream, opaque=True)
  copy.metadata.update(stream.metadata)
  if "name" in stream.metadata:  # As MP4's are read; written, it is a title.
    copy.metadata.setdefault("title", stream.metadata["name"])
  copy.disposition = int(stream.disposition)
  return copy


def _keepable(source, main, name, suffix):
  """Tells which streams a container can hold, and what is left out."""
  kept, left_out = [], collections.Counter()
  import av.stream

  for stream in source.streams:
    if stream.index == main.index:
      continue
    if stream.type == "data" and stream.discard == av.stream.Discard.all:
      continue  # QuickTime's chapters, which are written as such.
    if _is_cover(stream) and name in _ATTACHING:
      continue
    if _fits(stream, name):
      kept.append(stream)
      continue
    what = _WHAT.get(stream.type, stream.type)
    if stream.type in ("audio", "subtitle"):
      context = stream.codec_context
      codec = "an unknown codec" if context is None else context.name
      raise VideoError(
        f"its {what} ({printable(codec)}) cannot be copied into {suffix} files;"
        f" choose {_others(stream, suffix)}"
      )
    left_out[what] += 1
  notes = [
    f"left out {count} of {what}, which {suffix} files cannot hold"
    for what, count in left_out.items()
  ]
  return kept, notes


def _is_cover(stream) -> bool:
  import av.stream

  is_cover = bool(stream.disposition & av.stream.Disposition.attached_pic)
  return stream.type == "video" and is_cover


def _covers(source: str | os.PathLike[str], *, max_pixels: int):
  """Returns covers' bytes by the number of their streams."""
  with opened(source, max_pixels=max_pixels) as container:
    wanted = [stream for stream in container.streams if _is_cover(stream)]
    found: dict[int, bytes] = {}
    for packet in container.demux(wanted) if wanted else ():
      if packet.size:
        found.setdefault(packet.stream_index, bytes(packet))
      if len(found) == len(wanted):
        break
    return found


def _attach(container, stream, data: bytes) -> None:
  """Adds a cover as Matroska has them."""
  context = stream.codec_context
  is_jpeg = context is None or context.name == "mjpeg"
  suffix, kind = ("jpg", "jpeg") if is_jpeg else (context.name, context.name)
  name = stream.metadata.get("filename", f"cover.{suffix}")
  mime = stream.metadata.get("mimetype", f"image/{kind}")
  container.add_attachment(name, mime, data)


def _others(stream, suffix):
  """Names suffixes of files that hold a stream."""
  found = [
    other
    for other, name in OUTPUT_SUFFIXES.items()
    if other != suffix and other != ".m4v" and _fits(stream, name)
  ]
  return " or ".join(found) or "a clip without it"


def _fits(stream, name: str) -> bool:
  """Tries whether a container takes a stream, by its header alone."""
  import av

  with contextlib.closing(io.BytesIO()) as nowhere:
    container = av.open(nowhere, "w", format=name)
    try:
      _add_copy(container, stream)
      container.start_encoding()
      container.close()
    except (av.FFmpegError, ValueError, AttributeError):
      return False
  return True
