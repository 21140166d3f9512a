"""A terminal for tests: a pseudo terminal, and what it would show."""

import contextlib
import io
import os
import pty
import re
import sys
import threading
import tty

_CODES = re.compile(
  r"\x1b\[([?\d;]*)([A-Za-z])|\x1b.|[\r\n\x08]|[^\x1b\r\n\x08]+"
)


@contextlib.contextmanager
def terminal(monkeypatch, *, columns, streams=("stdout", "stderr")):
  """Has streams be a terminal's; yields a function for what it got by now.

  The streams that are not its own are files.
  """
  monkeypatch.setenv("COLUMNS", str(columns))
  monkeypatch.setenv("LINES", "40")
  ours, theirs = pty.openpty()
  tty.setraw(theirs)
  got = []

  def read():
    with contextlib.suppress(OSError):  # Linux: nobody has it open any more.
      while piece := os.read(ours, 10_000):
        got.append(piece)

  reader = threading.Thread(target=read)
  files = {}
  with contextlib.ExitStack() as stack:
    for name in ("stdout", "stderr"):
      if name in streams:
        raw = io.FileIO(os.dup(theirs), "w")
        # Raw mode leaves line ends to us.
        file = io.TextIOWrapper(
          raw, "utf-8", newline="\r\n", write_through=True
        )
      else:
        file = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
      files[name] = stack.enter_context(file)
      monkeypatch.setattr(sys, name, file)
    os.close(theirs)
    reader.start()

    def read_file(name):
      return files[name].buffer.getvalue().decode()

    yield got, read_file
  reader.join()
  os.close(ours)


def screens(pieces, columns):
  """Yields the lines of the screen after each code: a small emulator.

  Knows what `rich` uses: colours, moving up, erasing lines, hiding the cursor.
  """
  lines, row, column = [""], 0, 0
  for match in _CODES.finditer(b"".join(pieces).decode()):
    text, (count, code) = match[0], match.groups()
    if text == "\r":
      column = 0
    elif text == "\n":
      row += 1
      lines += [""] * (row + 1 - len(lines))
    elif code == "A":
      row = max(row - int(count or 1), 0)
    elif code == "K":
      assert count == "2", text
      lines[row] = ""
    elif code in ("m", "h", "l"):
      continue
    else:
      assert code is None, text
      for character in text:
        if column == columns:
          row, column = row + 1, 0
          lines += [""] * (row + 1 - len(lines))
        padded = lines[row].ljust(column)
        lines[row] = padded[:column] + character + padded[column + 1 :]
        column += 1
    yield [line.rstrip() for line in lines]
