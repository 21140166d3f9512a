"""How results are encoded: the codec, its quality, and the packets."""

from __future__ import annotations

import dataclasses
import fractions
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from esrgan_jax.text import printable
from esrgan_jax.video import colours
from esrgan_jax.video.containers import OUTPUT_SUFFIXES
from esrgan_jax.video.errors import VideoError
from esrgan_jax.video.reading import Clip

if TYPE_CHECKING:
  import av
  import av.codec

__all__ = ["CODECS", "Encoder", "Encoding", "Packet", "choose_encoding"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Codec:
  """What writes a codec.

  Attributes:
    encoder: FFmpeg's name of it.
    best: Its rate factor at quality 100; more is less.
    slope: What the factor gains for each step of quality that is given up.
    worst: The largest factor.
    options: What else it is told.
    even: Whether sides must be even where chroma has half as many samples.
    least: Pixels of a side at least.
    light: Names of arguments that tell of an HDR clip's light, its display and
      its content, and of the option that takes them.
    tag: How Apple's players want it to be called, in MP4 and QuickTime.
  """

  encoder: str
  best: float = 0
  slope: float = 0
  worst: float = 0
  options: dict[str, str] = dataclasses.field(default_factory=dict)
  even: bool = True
  least: int = 1
  light: tuple[str, str, str] | None = None
  tag: str | None = None


# Factors are such that one quality has about one PSNR. Encoders are told to be
# fast, as they share the machine with the network: that costs size, not looks.
CODECS = {
  "h264": _Codec(
    encoder="libx264",
    best=14,
    slope=0.4,
    worst=51,
    options={"preset": "veryfast"},
  ),
  "hevc": _Codec(
    encoder="libx265",
    best=15,
    slope=0.4,
    worst=51,
    options={"preset": "superfast", "x265-params": "log-level=none"},
    least=64,  # Of 48 x 70, x265 4.2 frees what it has not.
    light=("x265-params", "master-display", "max-cll"),
    tag="hvc1",
  ),
  "av1": _Codec(
    encoder="libsvtav1",
    best=10,
    slope=1.0,
    worst=63,
    options={"preset": "8"},
    light=("svtav1-params", "mastering-display", "content-light"),
  ),
  "vp9": _Codec(
    encoder="libvpx-vp9",
    best=15,
    slope=1.0,
    worst=63,
    options={"deadline": "good", "cpu-used": "4", "row-mt": "1"},
    even=False,
  ),
  "ffv1": _Codec(
    encoder="ffv1",
    options={"level": "3", "slicecrc": "1", "slices": "12"},
    even=False,
  ),
}
_HELD_BY = {
  "mp4": ("h264", "hevc", "av1", "vp9"),
  "mov": ("h264", "hevc"),
  "matroska": tuple(CODECS),
  "webm": ("av1", "vp9"),
}
# Of H.264 that most devices play: level 5.2.
_MOST_H264 = 4096 * 2304
_DECODED_AS = {"libdav1d": "av1", "libvpx-vp9": "vp9"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
  """How a result is encoded.

  Attributes:
    codec: One of `CODECS`.
    width: Of its frames, as coded.
    height: Likewise.
    pixel_format: FFmpeg's name.
    colours: What it says of them.
    rate: Frames a second, about.
    time_base: Seconds of a step of times.
    pixel_shape: Width of a pixel over its height.
    options: What the encoder is told.
    notes: Sentences on what is not as one would expect.
  """

  codec: str
  width: int
  height: int
  pixel_format: str
  colours: colours.Colours
  rate: fractions.Fraction
  time_base: fractions.Fraction
  pixel_shape: fractions.Fraction | None
  options: tuple[tuple[str, str], ...]
  notes: tuple[str, ...] = ()

  def shown_size(self, clip: Clip) -> tuple[int, int]:
    """Returns width and height as the result of a clip is shown."""
    size = self.width, self.height
    return size[::-1] if clip.is_turned else size

  @property
  def encoder(self) -> str:
    """FFmpeg's name of what encodes."""
    return CODECS[self.codec].encoder

  def prepare(self, context: av.codec.CodecContext) -> None:
    """Sets an encoder up; it is not opened."""
    import av.codec.context

    # SVT-AV1 writes to stderr of itself, but for errors.
    os.environ.setdefault("SVT_LOG", "1")
    context.width, context.height = self.width, self.height
    context.pix_fmt = self.pixel_format
    context.time_base = self.time_base
    context.framerate = self.rate
    context.bit_rate = 0
    context.color_range = self.colours.range
    context.color_primaries = self.colours.primaries
    context.color_trc = self.colours.transfer
    context.colorspace = self.colours.matrix
    if self.pixel_shape:
      context.sample_aspect_ratio = self.pixel_shape
    flags = av.codec.context.Flags
    context.flags |= flags.global_header | flags.frame_duration
    context.options = dict(self.options)


@dataclasses.dataclass(frozen=True, eq=False)
class Packet:
  """Some bytes of a stream: those of one frame.

  Attributes:
    data: The bytes.
    time: When its frame is shown, in steps of the encoding's `time_base`.
    duration: How long, likewise.
    is_key: Whether decoding can begin here.
  """

  data: bytes
  time: int
  duration: int
  is_key: bool


class Encoder:
  """Encodes a part of a result, which can be decoded by itself.

  Args:
    encoding: How.
  """

  def __init__(self, encoding: Encoding):
    import av

    self._encoding = encoding
    self._durations: dict[int, int] = {}
    self._context = av.CodecContext.create(encoding.encoder, "w")
    encoding.prepare(self._context)
    try:
      self._context.open()
    except av.FFmpegError as error:
      raise _unusable(encoding, error) from error

  @property
  def head(self) -> bytes:
    """What decoders need beside packets."""
    return bytes(self._context.extradata or b"")

  def encode(
    self, pixels: np.ndarray, time: int, duration: int
  ) -> Iterator[Packet]:
    """Takes the next frame, `[H, W, 3]`; yields what is ready of earlier ones.

    Args:
      pixels: uint8 or uint16.
      time: Above that of the frame before it.
      duration: How long it is shown.
    """
    encoding = self._encoding
    frame = colours.from_rgb(pixels, encoding.pixel_format, encoding.colours)
    frame.pts, frame.duration = time, duration
    frame.time_base = encoding.time_base
    self._durations[time] = duration
    return self._packets(frame)

  def end(self) -> Iterator[Packet]:
    """Yields what is left."""
    return self._packets(None)

  def _packets(self, frame):
    for packet in self._context.encode(frame):
      yield Packet(
        bytes(packet),
        packet.pts,
        self._durations.pop(packet.pts),
        packet.is_keyframe,
      )


def _unusable(encoding: Encoding, error: Exception) -> VideoError:
  reason = " ".join(str(getattr(error, "strerror", "") or error).split())
  return VideoError(
    f"{encoding.encoder} cannot encode {encoding.width} x {encoding.height}"
    f" pixels of {encoding.pixel_format} ({printable(reason)}); choose"
    " another size of the result, or another --codec"
  )


def choose_encoding(
  clip: Clip,
  suffix: str,
  size: tuple[int, int],
  *,
  codec: str = "auto",
  quality: int = 95,
  lossless: bool = False,
) -> Encoding:
  """Chooses how the result of a clip is encoded.

  The codec is the clip's own, if it is one of `CODECS` that the container
  holds, the encoder is there, and it has as many bits; H.264 only up to 4096 x
  2304 pixels, which most devices play. Else it is H.264, HEVC or AV1, whichever
  can first.

  Args:
    clip: What it is made of.
    suffix: Of the result's name, one of `containers.OUTPUT_SUFFIXES`.
    size: Width and height of its frames, as coded. Most codecs want even sides
      where chroma has half as many samples: the result's may be larger by one.
    codec: One of `CODECS`, or "auto".
    quality: From 1 to 100.
    lossless: Whether to keep every sample, in FFV1.

  Raises:
    VideoError: If it cannot be.
  """
  container = OUTPUT_SUFFIXES[suffix.lower()]
  held = _HELD_BY[container]
  if lossless:
    if codec not in ("auto", "ffv1"):
      raise VideoError(
        f"--lossless is for FFV1, not for {codec}; leave out one of them"
      )
    codec = "ffv1"
  wanted = [codec] if codec != "auto" else _preferred(clip, size)
  small = [name for name in wanted if min(size) < CODECS[name].least]
  if codec in small:
    raise VideoError(
      f"{size[0]} x {size[1]} pixels are too few for {CODECS[codec].encoder},"
      f" which takes {CODECS[codec].least} of a side; choose another --codec"
    )
  fitting = [name for name in wanted if name in held and name not in small]
  if not fitting:
    suffixes = [s for s, c in OUTPUT_SUFFIXES.items() if codec in _HELD_BY[c]]
    raise VideoError(
      f"{suffix} files hold no {codec}; choose {' or '.join(suffixes)}, or"
      f" --codec {' or '.join(held)}"
    )
  exact = lossless or codec == "ffv1"
  bits = 8 if clip.bits <= 8 else 10 if clip.bits <= 10 else 12
  formats = {
    name: _pixel_format(name, clip, bits, exact=exact) for name in fitting
  }
  formats = {name: found for name, found in formats.items() if found}
  if not formats:
    encoders = " or ".join(CODECS[name].encoder for name in fitting)
    raise VideoError(
      f"this PyAV has no {encoders}; choose another --codec, or install PyAV"
      " from PyPI"
    )
  deepest = max(depth for _, depth in formats.values())
  name = next(n for n, (_, depth) in formats.items() if depth == deepest)
  pixel_format, depth = formats[name]
  notes = []
  if depth < min(clip.bits, 16):
    notes.append(f"its {clip.bits} bits become {depth}, as {name} has no more")
  found = CODECS[name]
  options = dict(found.options)
  if found.slope:
    factor = round(found.best + found.slope * (100 - quality))
    options["crf"] = str(min(factor, int(found.worst)))
  if found.light:
    option, *names = found.light
    told = clip.light.arguments(units=name == "hevc")
    said = [
      f"{argument}={told[kind]}"
      for argument, kind in zip(names, ("display", "content"), strict=True)
      if kind in told
    ]
    if said:
      options[option] = ":".join([*filter(None, [options.get(option)]), *said])
  width, height = size
  if found.even:
    width += width % 2 * ("444" not in pixel_format)
    height += height % 2 * ("420" in pixel_format)
  meant = clip.colours.of_result((clip.width, clip.height), size)
  if (width, height) != size:
    notes.append(
      f"{width} x {height} instead of {size[0]} x {size[1]}: {name} takes even"
      " sides"
    )
  if exact:  # Of samples as they are, there is no other matrix.
    meant = dataclasses.replace(clip.colours, range=2, matrix=0)
  return Encoding(
    codec=name,
    width=width,
    height=height,
    pixel_format=pixel_format,
    colours=meant,
    rate=clip.rate,
    time_base=clip.time_base,
    pixel_shape=clip.pixel_shape,
    options=tuple(sorted(options.items())),
    notes=tuple(notes),
  )


def _preferred(clip: Clip, size: tuple[int, int]) -> list[str]:
  own = _DECODED_AS.get(clip.codec, clip.codec)
  order = [own] if own in CODECS and own != "ffv1" else []
  order += ["h264", "hevc", "av1", "vp9"]
  if size[0] * size[1] > _MOST_H264:
    order = [name for name in order if name != "h264"] + ["h264"]
  if clip.bits > 8 and own != "h264":
    order = [name for name in order if name != "h264"] + ["h264"]
  return list(dict.fromkeys(order))


def _pixel_format(
  codec: str, clip: Clip, bits: int, *, exact: bool
) -> tuple[str, int] | None:
  """Returns the nearest that an encoder takes, and its bits."""
  known = _formats(CODECS[codec].encoder)
  if exact:
    candidates = [("gbrp16le", 16)] if clip.bits > 8 else [("bgr0", 8)]
  else:
    chromas: Sequence[str] = ("420", "422", "444")
    chromas = chromas[: chromas.index(clip.chroma) + 1][::-1]
    depths = [depth for depth in (12, 10, 8) if depth <= bits]
    candidates = [
      (f"yuv{chroma}p" + (f"{depth}le" if depth > 8 else ""), depth)
      for depth in depths
      for chroma in chromas
    ]
  return next((each for each in candidates if each[0] in known), None)


def _formats(encoder: str) -> set[str]:
  import av.codec

  try:
    return {f.name for f in av.codec.Codec(encoder, "w").video_formats or ()}
  except av.codec.codec.UnknownCodecError:
    return set()
