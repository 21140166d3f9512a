"""Names of files that mean something to a terminal, to markup or to HTML."""

import os

NAMES = [
  "[b]a[red].png",
  "[link=http:x.example]b.png",
  "c\x1b[31m\x1b]0;title\x07.png",
  "d\nerror: all is lost.png",
  "e\r\x9b2Kf.png",
  "\u202egnp.f.png",
  "g<img src=x onerror=alert(1)>&amp;.png",
  os.fsdecode(b"caf\xe9.png"),
  "写真.png",
]


def harmless(text):
  """Whether a program's output holds nothing of what the names would do."""
  lines = text.splitlines()
  return all(line.isprintable() for line in lines) and not any(
    line.startswith("error: all is lost") for line in lines
  )
