"""What a clip is, and its frames as arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from esrgan_jax.images import MAX_PIXELS
from esrgan_jax.text import printable
from esrgan_jax.video import colours
from esrgan_jax.video.containers import decoders, losses, opened
from esrgan_jax.video.errors import VideoError

if TYPE_CHECKING:
  import av
  import av.container
  import av.stream
  import av.video

__all__ = [
  "Clip",
  "Clock",
  "Frame",
  "main_stream",
  "read_clip",
  "read_frames",
]

_QUARTER_TURNS = (90, 270)
# Containers whose times begin anywhere, and count from there.
SHIFTED = ("mpegts", "mpeg")
# Seconds that times may go back, which is mended; FFmpeg takes more for a clock
# that begins anew.
_JITTER = fractions.Fraction(1, 10)
# Codecs with a picture a packet; others have hidden ones, or several.
_ONE_EACH = {"h264", "hevc", "mpeg1video", "mpeg2video"}
# Whatever a header says: a thousand years have fewer frames.
_MOST_FRAMES = 2**40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """What a clip is, apart from its frames.

  Attributes:
    container: FFmpeg's name of its format.
    codec: FFmpeg's name of what decodes it.
    width: Of its frames as they are coded, before they are turned.
    height: Likewise.
    is_turned: Whether it is shown turned by a quarter.
    count: How many frames it is said to have, or should have by its duration; 0
      if nothing tells.
    rate: Frames a second, on average.
    time_base: Seconds of a step of its times.
    bits: Of a sample.
    chroma: How its chroma is sampled, "420", "422" or "444".
    colours: How its samples are meant.
    light: What it says of light, for HDR.
    pixel_shape: Width of a pixel over its height; None if nothing tells.
    matrix: The nine numbers of how it is turned when shown; None: it is not.
    notes: Sentences on what is not as one would expect.
  """

  container: str
  codec: str
  width: int
  height: int
  is_turned: bool
  count: int
  rate: fractions.Fraction
  time_base: fractions.Fraction
  bits: int
  chroma: str
  colours: colours.Colours
  light: colours.Light = dataclasses.field(default_factory=colours.Light)
  pixel_shape: fractions.Fraction | None = None
  matrix: tuple[int, ...] | None = None
  notes: tuple[str, ...] = ()

  @property
  def size(self) -> tuple[int, int]:
    """Width and height as it is shown, in pixels of the frames."""
    size = self.width, self.height
    return size[::-1] if self.is_turned else size


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
  """A picture of a clip.

  Attributes:
    pixels: `[H, W, 3]` RGB, as coded, not turned: uint8, or uint16 where a
      sample has more than 8 bits.
    time: When it is shown, in steps of the clip's `time_base`.
    duration: How long, likewise; 0 if nothing tells.
    is_damaged: Whether the decoder had to guess at parts.
    lost: Of the last one, how many pictures of the clip could not be decoded,
      so that there is none of them; 0 of all others.
  """

  pixels: np.ndarray
  time: int
  duration: int
  is_damaged: bool = False
  lost: int = 0


class Clock:
  """Finds where the times of a clip begin anew, packet by packet.

  So they do where recordings were put one after the other, byte by byte. What
  is shown when, and heard with what, is not told there.
  """

  def __init__(self) -> None:
    # Of streams: how far their times may go back, their first, and their last.
    self._streams: dict[int, tuple[int, int, int]] = {}

  def check(self, packet: av.Packet) -> None:
    """Looks at the next packet.

    Raises:
      VideoError: If its time is earlier than those before it in its stream, by
        more than what is mended.
    """
    # Pictures come in another order than they are shown in; but all that come
    # before a key frame are shown before it.
    pictures = packet.stream.type == "video"
    time = packet.pts if pictures else packet.dts
    if time is None:
      return
    index = packet.stream_index
    if index not in self._streams:
      self._streams[index] = _room(packet.stream), time, time
    room, first, last = self._streams[index]
    if time < last - room and (packet.is_keyframe or not pictures):
      back = float((last - time) * packet.time_base)
      at = float((last - first) * packet.time_base)
      raise VideoError(
        f"its clock goes back by {back:.2f} s, {at:.2f} s after its beginning,"
        " as where two recordings are put together; cut it there"
      )
    self._streams[index] = room, first, max(last, time)


def _room(stream: av.stream.Stream) -> int:
  """Returns by how many steps a stream's times may go back."""
  seconds = _JITTER
  if stream.type == "video" and stream.average_rate:
    seconds = max(seconds, 2 / stream.average_rate)
  return round(seconds / stream.time_base)


def main_stream(
  container: av.container.InputContainer,
) -> av.video.VideoStream:
  """Returns the stream that is meant: the first that is no cover picture.

  Raises:
    VideoError: If there is none, or it is one that is not decoded here.
  """
  import av.stream

  other = av.stream.Disposition
  other = other.attached_pic | other.still_image | other.timed_thumbnails
  found = [s for s in container.streams.video if not s.disposition & other]
  if not found:
    raise VideoError("no moving pictures in it")
  context = found[0].codec_context
  if context is None or not (context.width and context.height):
    name = "an unknown codec" if context is None else context.name
    raise VideoError(f"its pictures ({name}) cannot be decoded")
  if context.name not in decoders().split(","):
    raise VideoError(
      f"its pictures ({printable(context.name)}) are of a codec that is not"
      " decoded here; save it with another one"
    )
  return found[0]


def read_clip(
  path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS
) -> Clip:
  """Reads what a clip is, by its header and its first frame.

  Args:
    path: The file.
    max_pixels: Refuse frames of more.

  Raises:
    VideoError: If it is no clip, too large, or damaged there; or PyAV is not
      installed.
    OSError: If it cannot be opened.
  """
  with opened(path, max_pixels=max_pixels) as container:
    stream = main_stream(container)
    rate = stream.average_rate or stream.guessed_rate or fractions.Fraction(25)
    decoding = _Decoding(container, stream, max_pixels)
    frame, _ = next(iter(decoding), (None, None))
    if frame is None:
      raise VideoError("not a single frame of it can be decoded")
    format_ = frame.format
    notes = []
    if frame.interlaced_frame:
      notes.append(
        "it is interlaced, and its fields are not taken apart: deinterlace it"
        " before"
      )
    # Of VP8 and VP9 it is in packets of its own, which are not decoded.
    is_beside = _tag(stream.metadata, "ALPHA_MODE") == "1"
    if is_beside or any(c.is_alpha for c in format_.components):
      notes.append("its transparency is left out")
    matrix = _display_matrix(frame)
    return Clip(
      container=container.format.name.split(",")[0],
      codec=stream.codec_context.name,
      width=frame.width,
      height=frame.height,
      is_turned=round(frame.rotation) % 360 in _QUARTER_TURNS,
      count=min(_count(container, stream, rate), _MOST_FRAMES),
      rate=rate,
      time_base=stream.time_base,
      bits=max(c.bits for c in format_.components),
      chroma=_chroma(format_),
      colours=colours.of_frame(frame, stream.codec_context),
      light=colours.light_of_frame(frame),
      pixel_shape=stream.sample_aspect_ratio or None,
      matrix=matrix,
      notes=(*notes, *losses(path)),
    )


def read_frames(
  path: str | os.PathLike[str],
  clip: Clip,
  *,
  skip: int = 0,
  max_pixels: int = MAX_PIXELS,
) -> Iterator[Frame]:
  """Yields a clip's frames in the order in which they are shown.

  Times rise from each to the next: where a file has none, they are counted by
  the rate; where they stand still or go back a little, by a step.

  Args:
    path: The file.
    clip: What `read_clip` says of it.
    skip: Frames to leave out at the beginning. They are decoded all the same.
    max_pixels: Refuse frames of more.

  Raises:
    VideoError: If a part of it cannot be decoded, its frames change their size,
      or its clock begins anew.
    OSError: If it cannot be opened.
  """
  with opened(path, max_pixels=max_pixels) as container:
    stream = main_stream(container)
    usual = max(round(1 / (clip.rate * clip.time_base)), 1)
    last = ready = None
    number = 0
    is_counted = clip.codec in _ONE_EACH
    decoding = _Decoding(container, stream, max_pixels)
    for number, (frame, time) in enumerate(decoding, 1):
      if (frame.width, frame.height) != (clip.width, clip.height):
        raise VideoError(
          f"frame {number} has {frame.width} x {frame.height} pixels, and those"
          f" before have {clip.width} x {clip.height}; cut it there"
        )
      if time is None:
        time = 0 if last is None else last + usual
      if last is not None and time <= last:
        time = last + 1
      last = time
      # A field of an interlaced picture may be a packet of its own.
      is_counted &= not frame.interlaced_frame
      if ready:
        yield ready
      if number > skip:
        ready = Frame(
          colours.to_rgb(frame, clip.colours, deep=clip.bits > 8),
          time,
          frame.duration or 0,
          frame.is_corrupt,
        )
    if ready:
      lost = max(decoding.packets - number, 0) if is_counted else 0
      yield dataclasses.replace(ready, lost=lost)


class _Decoding:
  """A clip's frames, with their times as the file has them.

  Attributes:
    packets: How many there were so far, of pictures.
  """

  def __init__(
    self,
    container: av.container.InputContainer,
    stream: av.video.VideoStream,
    max_pixels: int,
  ):
    context = stream.codec_context
    if context.width * context.height > max_pixels:
      raise VideoError(
        f"{context.width} x {context.height} pixels are more than"
        f" max_pixels={max_pixels}; if you trust the file, raise max_pixels"
        " (--max-pixels)"
      )
    context.options = {
      "codec_whitelist": decoders(),
      "max_pixels": str(max_pixels),
    }
    context.thread_type = "AUTO"
    self.packets = 0
    self._container, self._stream = container, stream

  def __iter__(self) -> Iterator[tuple[av.VideoFrame, int | None]]:
    import av

    begun = False
    clock = Clock()
    for packet in self._container.demux(self._stream):
      clock.check(packet)
      self.packets += packet.size > 0 and not packet.is_discard
      try:
        frames = packet.decode()
      except av.InvalidDataError as error:
        # What is broadcast begins anywhere.
        if self._container.format.name in SHIFTED and not begun:
          continue
        when = packet.pts if packet.pts is not None else packet.dts
        seconds = 0 if when is None else float(when * packet.time_base)
        at = "" if when is None else f" at {seconds:.2f} s"
        raise VideoError(f"damaged{at}: a frame cannot be decoded") from error
      for frame in frames:
        begun = True
        yield frame, frame.pts


def _count(container, stream, rate) -> int:
  if stream.frames:
    return stream.frames
  with contextlib.suppress(ValueError, TypeError):
    if words := _tag(stream.metadata, "NUMBER_OF_FRAMES"):
      return max(int(words), 0)
  if stream.duration:
    return max(round(stream.duration * stream.time_base * rate), 1)
  if container.duration:
    return max(round(container.duration * rate / 1_000_000), 1)
  return 0


def _tag(metadata: Mapping[str, str], name: str) -> str | None:
  found = (v for k, v in metadata.items() if k.split("-")[0].upper() == name)
  return next(found, None)


def _chroma(format_) -> str:
  if format_.is_rgb or len(format_.components) < 3:
    return "444" if format_.is_rgb or format_.has_palette else "420"
  across = format_.width / max(format_.chroma_width(format_.width), 1)
  down = format_.height / max(format_.chroma_height(format_.height), 1)
  if across < 1.5:
    return "444"
  return "422" if down < 1.5 else "420"


def _display_matrix(frame) -> tuple[int, ...] | None:
  try:
    data = frame.side_data["DISPLAYMATRIX"]
  except KeyError:
    return None
  return tuple(int(v) for v in np.frombuffer(bytes(data), np.int32))
