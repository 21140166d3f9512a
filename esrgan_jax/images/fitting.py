"""What a format can hold of a picture's metadata, and what it cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from esrgan_jax.images import geotiff, png_chunks, profiles, xmp
from esrgan_jax.images import metadata as meta
from esrgan_jax.images.limits import MAX_METADATA
from esrgan_jax.images.notes import listed
from esrgan_jax.images.pixels import Metadata
from esrgan_jax.text import printable

# What one APP1 segment of JPEG holds, less the identifier of each.
_JPEG_EXIF, _JPEG_XMP = 65_527, 65_504
_NAMES = {"icc_profile": "colour profile", "exif": "EXIF", "xmp": "XMP"}


def fit_metadata(
  metadata: Metadata,
  size: tuple[int, int],
  format_: str,
  *,
  channels: int,
  holds: Container[str],
) -> tuple[Metadata, tuple[str, ...]]:
  """Fits metadata to pixels that may be more than those they were read with.

  Args:
    metadata: Of the picture that they tell of.
    size: Width and height of the pixels.
    format_: Where they go.
    channels: Of the pixels in the file, 1 or 3.
    holds: The fields that the format holds: of icc_profile, exif and xmp.

  Returns:
    The metadata, record included, of this size; sentences on what was lost.
  """
  old_size = metadata.size or size
  packet = xmp.fit(metadata.xmp, old_size, size)
  exif = meta.load_exif(metadata.exif)
  exif = meta.tidy_exif(exif, old_size, size)
  notes = [*packet.notes]
  fields = {
    "icc_profile": metadata.icc_profile,
    "exif": meta.pack_exif(exif),
    "xmp": packet.packet,
  }
  lost = [n for n, v in fields.items() if v is not None and n not in holds]
  for name in lost:
    fields[name] = None
  if "exif" in lost and not meta.says_something(exif):
    lost.remove("exif")
  if "icc_profile" in lost and profiles.is_srgb(metadata.icc_profile):
    lost.remove("icc_profile")  # As without a word.
  space = meta.SPACE_OF_CHANNELS[channels]
  profile = fields["icc_profile"]
  if profile is not None and meta.profile_space(profile) != space:
    fields["icc_profile"] = None
    kind = "grey" if channels == 1 else "RGB"
    notes.append(f"its colour profile is left out, not being one of {kind}")
  missing = [_NAMES[name] for name in lost]
  if format_ != "PNG":
    if "icc_profile" in holds or metadata.icc_profile is None:
      fields["icc_profile"], more = _with_colours(
        metadata.png_chunks, fields["icc_profile"], channels, holds
      )
      missing += more
    fields["exif"], more = _with_words(metadata, exif, format_, holds)
    missing += more
  if format_ == "JPEG" and len(fields["xmp"] or b"") > _JPEG_XMP:
    fields["xmp"] = None
    missing.append("large XMP")
  if missing:
    suffix = ".tif" if format_ == "Zarr" else ".png"
    notes.append(no_room(format_, ", ".join(missing), suffix))
  places = None
  if metadata.geotiff is not None:
    places = geotiff.fit(metadata.geotiff, old_size, size)
    if format_ != "TIFF":
      notes.append(no_room(format_, "place on the map", ".tif"))
  fitted = dataclasses.replace(
    metadata,
    **fields,
    dpi=meta.tidy_dpi(metadata.dpi),
    size=size,
    geotiff=places,
  )
  return fitted, tuple(notes)


def _records(chunks: tuple[tuple[bytes, bytes], ...]) -> set[str]:
  """Returns the keywords of texts on how our own earlier results were made."""
  words = {png_chunks.RECORD, "Software"}
  return {
    word
    for word, text in png_chunks.texts(chunks, words).items()
    if word == png_chunks.RECORD or text.startswith("esrgan_jax ")
  }


def no_room(format_: str, what: str, suffix: str = ".png") -> str:
  """Says that a format cannot hold something, and which one can."""
  return f"{format_} has no room for its {what}; choose {suffix}"


def _with_colours(
  chunks: tuple[tuple[bytes, bytes], ...],
  profile: bytes | None,
  channels: int,
  holds: Container[str],
) -> tuple[bytes | None, list[str]]:
  """Makes a profile of a PNG's colours; returns what has no room, as well."""
  if png_chunks.is_srgb(chunks, profile=profile is not None):
    return profile, []
  if profile is None and "icc_profile" in holds:
    profile = png_chunks.profile_of(chunks, channels=channels)
  # Of a cICP, there is nothing that says the same.
  if png_chunks.is_srgb(chunks, profile=profile is not None):
    return profile, []
  kinds = [kind.decode() for kind, _ in chunks if kind not in png_chunks.TEXTS]
  return profile, [f"colours, which are not sRGB's ({listed(kinds)})"]


def _with_words(
  metadata: Metadata,
  exif: meta.Exif,
  format_: str,
  holds: Container[str],
) -> tuple[bytes | None, list[str]]:
  """Puts a PNG's texts and the record into EXIF; returns what has no room."""
  chunks = metadata.png_chunks
  texts = png_chunks.texts(chunks, meta.TEXTS)
  block, used, missing = None, set(), []
  if "exif" in holds:
    record = metadata.record

    def told(exif: meta.Exif) -> meta.Exif:
      return exif if record is None else meta.with_record(exif, record)

    whole, placed = meta.with_texts(exif, texts)
    nothing = meta.load_exif(None)
    most = _JPEG_EXIF if format_ == "JPEG" else MAX_METADATA
    choices = [(told(whole), placed), (told(exif), set()), (exif, set())]
    choices += [(told(nothing), set()), (nothing, set())]  # Which fits.
    packed = ((meta.pack_exif(tags), used) for tags, used in choices)
    number, (block, used) = next(
      (number, (block, used))
      for number, (block, used) in enumerate(packed)
      if len(block or b"") <= most
    )
    if exif.tree and number > 2:
      missing.append("large EXIF")
  if metadata.record is not None:
    used |= _records(chunks)  # The result has its own.
  words = png_chunks.keywords(chunks)
  if left := [word for word in words if word not in used]:
    missing.append(f"texts ({listed(map(printable, left))})")
  return block, missing
