"""Text from strangers: names in their files, of their files, from servers."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

# Not printable by Python's rule, and part of ordinary words and emoji.
_JOINERS = "\u200c\u200d"


def printable(text: object, *, limit: int = 200) -> str:
  r"""Makes a text safe to show, on one line.

  Control characters would move the cursor, recolour or forge lines of a
  terminal, and marks of direction show a name as another. They are escaped, as
  are bytes of a file name that is not in the file system's encoding. Letters of
  all scripts, spaces and emoji stay as they are.

  Args:
    text: What to show; anything but a string by its `str`.
    limit: Characters at most; of a longer text the middle is left out.

  Returns:
    The text, without line breaks.

  >>> printable("conv\x1b[31m\nerror: all is lost"), printable("naïve 写真")
  ('conv\\x1b[31m\\nerror: all is lost', 'naïve 写真')
  >>> printable("caf\udce9.png"), printable("long" * 9, limit=13)
  ('caf\\xe9.png', 'longlo…nglong')
  """
  text = text if isinstance(text, str) else str(text)
  if len(text) > limit:
    half = max(limit - 1, 2) // 2
    text = f"{text[:half]}…{text[-half:]}"
  return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
  kept = character.isprintable() or character in _JOINERS
  if kept or unicodedata.category(character) == "Zs":
    return character
  code = ord(character)
  if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte that was no character.
    return f"\\x{code - 0xDC00:02x}"
  return character.encode("unicode_escape").decode("ascii")
