"""AVI, ASF, FLV and Y4M: one piece after the other.

Sources: Microsoft's AVI RIFF File Reference and Advanced Systems Format
Specification 1.2, Adobe's Video File Format Specification 10, and FFmpeg's
yuv4mpegdec.c.
"""

from __future__ import annotations

import mmap
import re
import struct

from esrgan_jax.video.structure import faults

__all__ = ["check_asf", "check_avi", "check_flv", "check_y4m"]


def check_avi(data: mmap.mmap) -> None:
  """Refuses an AVI that is shorter than it says, in any of its parts."""
  at, size = 0, len(data)
  while data[at : at + 4] == b"RIFF":
    at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    if at > size:
      raise faults.cut(size, at)
    at += at % 2


_ASF_DATA = bytes.fromhex("3626b2758e66cf11 a6d900aa0062ce6c")


def check_asf(data: mmap.mmap) -> None:
  """Refuses ASF that is shorter than it says."""
  at, size = 0, len(data)
  while at < size:
    length = int.from_bytes(data[at + 16 : at + 24], "little")
    if data[at : at + 16] == _ASF_DATA and length == 0:
      return  # As of what was sent live, whose length nobody knew.
    if length < 24:
      if faults.is_filling(data, at):
        return
      raise faults.damaged(at)
    at += length
  if at > size:
    raise faults.cut(size, at)


_SCRIPT = 18
_FLV_TAGS = {8, 9, _SCRIPT}  # Sound, pictures.
_FLV_SIZE = re.compile(rb"\x00\x08filesize\x00(.{8})", re.DOTALL)


def check_flv(data: mmap.mmap) -> None:
  """Refuses an FLV whose tags do not lie one after the other."""
  at, size = 4 + int.from_bytes(data[5:9]), len(data)
  while at < size:
    kind, begin = data[at] & 0x1F, at + 11
    if kind not in _FLV_TAGS:
      if faults.is_filling(data, at):
        return
      raise faults.damaged(at)
    at = begin + int.from_bytes(data[at + 1 : at + 4])
    if at > size:
      raise faults.cut(size, at + 4)
    if kind == _SCRIPT and (told := _FLV_SIZE.search(data, begin, at)):
      (wanted,) = struct.unpack(">d", told[1])
      if size < wanted < 2**60:  # It ends between two tags.
        raise faults.cut(size, int(wanted))
    at += 4  # The length once more, which is wrong in some.


_MOST_WORDS = 2**16  # Bytes of what a Y4M begins with.


def check_y4m(data: mmap.mmap) -> None:
  """Refuses a Y4M with a frame that is cut short, or without a mark."""
  at, size = data.find(b"\n", 0, _MOST_WORDS) + 1, len(data)
  words = data[:at].decode("latin-1").split()[1:]
  told = {word[0]: word[1:] for word in words}
  kind = re.fullmatch(
    r"(420|411|422|444alpha|444|mono)(?:jpeg|mpeg2|paldv)?p?(\d{0,2})",
    told.get("C", "420"),
  )
  sides = [told.get(name, "") for name in "WH"]
  is_old = "C" not in told and b"XYSCSS" in data[:at]
  sound = all(re.fullmatch(r"[0-9]{1,9}", side) for side in sides)
  if is_old or not (at and kind and sound):
    return  # FFmpeg knows the older form, or says what is wrong.
  width, height = map(int, sides)
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
      raise faults.damaged(at)
    at = data.find(b"\n", at) + 1 or size
    at += frame
  if at > size:
    raise faults.cut(size, at)
