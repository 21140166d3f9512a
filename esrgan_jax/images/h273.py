"""Colours by numbers of ITU-T H.273, as AVIF, HEIC and JPEG XL state them."""

from __future__ import annotations

from esrgan_jax.images import profiles

_D65 = (0.3127, 0.329)
# Those of which a picture is taken as it is: sRGB's, and nothing said.
_SRGB_PRIMARIES = (1, 2)
_PLACES = {
  9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
  12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
# Those of cameras and of nothing said are taken for sRGB's, as browsers do.
_SRGB_CURVES = (1, 2, 6, 13, 14, 15)
_NAMES = {9: "BT.2020", 12: "P3"}, {8: "linear", 16: "PQ", 18: "HLG"}


def profile_of(
  primaries: int, curve: int
) -> tuple[bytes | None, tuple[str, ...]]:
  """Returns a profile of stated colours, and a note where there is none.

  Args:
    primaries: Their number.
    curve: Number of the transfer characteristics.

  >>> profile_of(1, 13)
  (None, ())
  >>> profile_of(9, 16)[1]
  ("its colours, which are not sRGB's (BT.2020, PQ), are taken so",)
  """
  words = []
  if primaries not in _SRGB_PRIMARIES:
    words.append(_NAMES[0].get(primaries, "other primaries"))
  if curve not in _SRGB_CURVES:
    words.append(_NAMES[1].get(curve, "another curve"))
  elif primaries in _PLACES:
    return profiles.of_primaries(_PLACES[primaries], None, channels=3), ()
  if not words:
    return None, ()
  stated = ", ".join(words)
  return None, (f"its colours, which are not sRGB's ({stated}), are taken so",)
