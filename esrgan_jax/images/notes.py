"""Words for what is left out of a picture."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_NAMES = 6


def listed(names: Iterable[object]) -> str:
  """Returns names in order, each once, and how many more there are.

  >>> listed(["tEXt", "vpAg", "tEXt"]), listed(range(9))
  ('tEXt, vpAg', '0, 1, 2, 3, 4, 5 and 3 more')
  """
  names = list(dict.fromkeys(map(str, names)))
  text = ", ".join(names[:_MOST_NAMES])
  more = len(names) - _MOST_NAMES
  return f"{text} and {more} more" if more > 0 else text
