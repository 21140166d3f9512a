"""Clips with all that a clip may have; needs PyAV, the extra `video`."""

import collections
from fractions import Fraction

import av
import numpy as np

TICKS = Fraction(1, 12800)  # 512 of them are a frame, at 25 frames a second.
CHAPTERS = [(0, 200, "Eins"), (200, 400, "Zwei")]
# Metadata of a file, not of what is in it; ours has a comment.
_OF_THE_FILE = {
  *("encoder", "comment", "major_brand", "minor_version", "compatible_brands"),
}
SUBTITLES = [(0, 100, "Guten Tag"), (150, 300, "noch etwas")]


def pictures(count, size, *, depth=8):
  """Frames that move, `[H, W, 3]` each."""
  width, height = size
  y, x = np.mgrid[:height, :width]
  dtype, factor = (np.uint8, 1) if depth == 8 else (np.uint16, 257)
  for n in range(count):
    bands = (x * 5 + n * 9) % 256, (y * 7 + n * 3) % 256, (x * 3 + y * 2) % 256
    yield np.stack(bands, -1).astype(dtype) * dtype(factor)


def write(
  path,
  *,
  size=(36, 28),
  frames=10,
  codec="libx264",
  pixel_format="yuv420p",
  times=None,
  time_base=TICKS,
  sound=None,
  subtitles=None,
  chapters=(),
  font=None,
  cover=None,
  rotation=None,
  pixel_shape=None,
  colours=None,
  options=None,
  metadata=None,
  stream_metadata=None,
  container_options=None,
  container=None,
):
  """Writes a clip; `times` are of frames, in steps of `time_base`."""
  times = times or [n * 512 for n in range(frames)]
  with av.open(
    str(path), "w", format=container, container_options=container_options
  ) as output:
    stream = output.add_stream(codec, rate=25, time_base=time_base)
    context = stream.codec_context
    context.width, context.height = size
    context.pix_fmt = pixel_format
    context.options = options or {}
    if codec == "libx265" and not options:
      context.options = {"x265-params": "log-level=none"}
    if pixel_shape:
      context.sample_aspect_ratio = pixel_shape
    if colours:
      context.color_range, context.color_primaries = colours[:2]
      context.color_trc, context.colorspace = colours[2:]
    if rotation:
      stream.set_display_rotation(rotation)
    stream.metadata.update(stream_metadata or {})
    stream.metadata["language"] = "deu"
    heard = read = shown = None
    if sound:
      heard = output.add_stream(sound, rate=48000)
      heard.layout = "stereo"
      heard.metadata["language"] = "fra"
      heard.metadata["title"] = "Ton"
    if subtitles:
      read = output.add_mux_stream(subtitles)
      read.time_base = Fraction(1, 1000)
      read.metadata["language"] = "eng"
      read.disposition = int(av.stream.Disposition.forced)
    if cover and output.format.name == "matroska":
      output.add_attachment("cover.png", "image/png", cover)
    elif cover:
      shown = output.add_mux_stream("png", width=8, height=8)
      shown.disposition = int(av.stream.Disposition.attached_pic)
    if font:
      output.add_attachment("font.ttf", "font/ttf", font)
    output.metadata.update(metadata or {})
    output.set_chapters(
      [
        {
          "id": number,
          "start": start,
          "end": end,
          "time_base": Fraction(1, 1000),
          "metadata": {"title": title},
        }
        for number, (start, end, title) in enumerate(chapters, 1)
      ]
    )
    if shown:
      packet = av.Packet(cover)
      packet.stream, packet.pts, packet.dts = shown, 0, 0
      packet.time_base, packet.is_keyframe = TICKS, True
      output.mux(packet)
    deep = "10" in pixel_format or "16" in pixel_format
    found = pictures(len(times), size, depth=16 if deep else 8)
    for number, (pixels, time) in enumerate(zip(found, times, strict=True)):
      frame = av.VideoFrame.from_ndarray(
        pixels, format="rgb48le" if deep else "rgb24"
      )
      frame = frame.reformat(format=pixel_format)
      frame.pts, frame.time_base = time, time_base
      later = times[number + 1 :][:1] or [time + 512]
      frame.duration = later[0] - time
      output.mux(stream.encode(frame))
    output.mux(stream.encode(None))
    if heard:
      _write_sound(output, heard, float((times[-1] + 512) * time_base))
    for start, end, text in SUBTITLES if read else ():
      data = text.encode()
      if subtitles == "mov_text":
        data = len(data).to_bytes(2) + data
      packet = av.Packet(data)
      packet.stream, packet.pts, packet.dts = read, start, start
      packet.duration, packet.time_base = end - start, Fraction(1, 1000)
      output.mux(packet)


def write_twice(path, source):
  """Writes a clip with the pictures of another one twice."""
  with (
    av.open(str(source)) as first,
    av.open(str(source)) as second,
    av.open(str(path), "w") as output,
  ):
    streams = [each.streams.video[0] for each in (first, second)]
    copies = [output.add_stream_from_template(each) for each in streams]
    for pair in zip(
      first.demux(streams[0]), second.demux(streams[1]), strict=True
    ):
      for packet, copy in zip(pair, copies, strict=True):
        if packet.size:
          packet.stream = copy
          output.mux(packet)


def restamp(path, change):
  """Changes the times of an FLV.

  Args:
    path: The file.
    change: Called with what a tag is of, "audio" or "video", its number among
      them, the time of the one before it, and its own, in milliseconds; returns
      the new one.
  """
  data = bytearray(path.read_bytes())
  at = 13  # After the header, and the size of no tag before it.
  count, before = collections.Counter(), {}
  while at < len(data):
    kind = {8: "audio", 9: "video"}.get(data[at])
    size = int.from_bytes(data[at + 1 : at + 4])
    if kind:
      time = int.from_bytes(data[at + 4 : at + 7])
      time = change(kind, count[kind], before.get(kind, 0), time)
      data[at + 4 : at + 7] = time.to_bytes(3)
      before[kind] = time
      count[kind] += 1
    at += 11 + size + 4
  path.write_bytes(data)


def _write_sound(output, stream, seconds):
  wave = np.sin(np.arange(int(48000 * seconds)) / 20) * 0.3
  wave = np.ascontiguousarray(wave[None].repeat(2, 0), np.float32)
  sound = stream.codec_context.format.name
  if sound in ("s16", "flt"):
    wave = wave.T.reshape(1, -1)
  if sound == "s16":
    wave = (wave * 32767).astype(np.int16)
  frame = av.AudioFrame.from_ndarray(
    np.ascontiguousarray(wave), format=sound, layout="stereo"
  )
  frame.sample_rate, frame.pts = 48000, 0
  frame.time_base = Fraction(1, 48000)
  queue = av.AudioFifo()
  queue.write(frame)
  length = stream.codec_context.frame_size or 1024
  while piece := queue.read(length) or queue.read():
    output.mux(stream.encode(piece))
  output.mux(stream.encode(None))


def copied(path):
  """What of a clip is no picture: streams with their packets, and the rest."""
  with av.open(str(path)) as container:
    streams = [s for s in container.streams if s.type in ("audio", "subtitle")]
    packets = {stream.index: [] for stream in streams}
    for packet in container.demux(streams) if streams else ():
      if packet.size:
        when = packet.pts * packet.time_base
        packets[packet.stream_index].append((when, bytes(packet)))
    return {
      "streams": [
        (
          stream.type,
          stream.codec_context.name,
          int(stream.disposition),
          stream.metadata.get("language"),
          stream.metadata.get("title", stream.metadata.get("name")),
          packets[stream.index],
        )
        for stream in streams
      ],
      "attachments": [
        (stream.metadata["filename"], stream.mimetype, bytes(stream.data))
        for stream in container.streams
        if stream.type == "attachment"
      ],
      "chapters": [
        (each["start"] * each["time_base"], each["metadata"]["title"])
        for each in container.chapters()
      ],
      "metadata": {
        name.lower(): text
        for name, text in container.metadata.items()
        if name.lower() not in _OF_THE_FILE
      },
    }


def shown(path):
  """Seconds at which frames are shown, and their pixels as FFmpeg has them."""
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    deep = max(c.bits for c in stream.format.components) > 8
    found = [
      (
        frame.pts * frame.time_base,
        frame.to_ndarray(format="rgb48le" if deep else "rgb24"),
      )
      for frame in container.decode(stream)
    ]
  return [time for time, _ in found], [pixels for _, pixels in found]


def stamps(path):
  """Seconds at which frames are shown, in order."""
  with av.open(str(path)) as container:
    frames = container.decode(video=0)
    return [frame.pts * frame.time_base for frame in frames]


def told(path):
  """What a clip says of its pictures."""
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    context = stream.codec_context
    frame = next(container.decode(stream))
    return {
      "codec": context.name,
      "size": (frame.width, frame.height),
      "format": frame.format.name,
      "rotation": frame.rotation,
      "pixel_shape": stream.sample_aspect_ratio,
      "language": stream.metadata.get("language"),
      "colours": (
        context.color_range,
        context.color_primaries,
        context.color_trc,
        context.colorspace,
      ),
      "tag": context.codec_tag,
    }
