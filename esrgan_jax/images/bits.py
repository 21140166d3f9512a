"""Numbers of any bits, out of headers."""

from __future__ import annotations


class Bits:
  """Reads a header bit by bit, the highest of a byte first or the lowest.

  >>> Bits(bytes([160])).take(3), Bits(bytes([5]), lowest_first=True).take(3)
  (5, 5)
  """

  def __init__(
    self, data: bytes | memoryview, *, lowest_first: bool = False
  ) -> None:
    self._data = bytes(data)
    self._lowest_first = lowest_first
    self._at = 0

  def take(self, count: int) -> int:
    """Returns the next bits as a number.

    Raises:
      ValueError: If there are not as many.
    """
    at, end = self._at, self._at + count
    if end > 8 * len(self._data):
      raise ValueError("a header that is cut short")
    self._at = end
    part = self._data[at // 8 : -(-end // 8)]
    if self._lowest_first:
      number = int.from_bytes(part, "little") >> at % 8
    else:
      number = int.from_bytes(part, "big") >> -end % 8
    return number & ((1 << count) - 1)

  @property
  def at(self) -> int:
    """Bits that have been taken."""
    return self._at

  def flag(self) -> bool:
    """Returns the next bit."""
    return bool(self.take(1))

  def one_of(self, *choices: tuple[int, int]) -> int:
    """Reads JPEG XL's U32: two bits choose a first value and more bits."""
    offset, count = choices[self.take(2)]
    return offset + self.take(count)
