"""Zarr: pictures as folders of chunks, by the package `zarr` (extra `zarr`).

One picture is an array `[H, W]` or `[H, W, C]`, or `[C, H, W]`, or a group of
arrays of falling size, by OME-Zarr's `multiscales`. What a folder says is
checked before `zarr` sees it: kinds of numbers and codecs are those of a list,
chunks have a size that memory has room for, and nothing is a link.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from esrgan_jax import extras
from esrgan_jax.images import light, limits
from esrgan_jax.images.encoders.tiff_pieces import halved, tile_of
from esrgan_jax.images.pixels import ImageError, Metadata
from esrgan_jax.images.survey import Survey, Window, look_at

__all__ = ["ZarrPicture", "ZarrPieces", "can_write", "is_zarr", "stamps"]

_HEADS = ("zarr.json", ".zarray", ".zgroup")
_MOST_HEAD = 2**24
_MOST_OF_CHUNK = 2**30
_CHUNK = 512
# As NumPy's and as Zarr 3 call them.
_DTYPES = {
  "|u1": np.uint8,
  "<u2": np.uint16,
  ">u2": np.uint16,
  "<f4": np.float32,
  ">f4": np.float32,
  "uint8": np.uint8,
  "uint16": np.uint16,
  "float32": np.float32,
}
# None of them runs code, or opens anything.
_CODECS = {"bytes", "gzip", "zstd", "blosc", "transpose", "crc32c"}
_SHARDING = "sharding_indexed"
_COMPRESSORS = {"blosc", "zlib", "gzip", "zstd", "lz4", "lzma", "bz2"}
_FILTERS = {"shuffle", "delta"}


def read_size(path: pathlib.Path) -> tuple[int, int]:
  """Returns width and height, as its head says.

  Raises:
    ValueError: If it says none.
  """
  try:
    layout, inner = _layout_of(path)
    sizes = dict(zip(layout.axes, _head(path / inner)["shape"], strict=True))
    return sizes["x"], sizes["y"]
  except (LookupError, TypeError, AttributeError) as error:
    raise ValueError("no header") from error


def can_write() -> bool:
  """Tells whether the package is there."""
  return importlib.util.find_spec("zarr") is not None


def is_zarr(path: str | os.PathLike[str]) -> bool:
  """Tells a folder that is a Zarr array or group, by what lies in it.

  >>> is_zarr(".")
  False
  """
  return any(os.path.isfile(os.path.join(path, head)) for head in _HEADS)


class Layout(NamedTuple):
  """How a picture lies in an array, and what else is said of it.

  Attributes:
    axes: Of the array, by their letters, "yxc" for instance.
    version: Of Zarr's format, 2 or 3.
    levels: The names of the arrays, largest first; empty: there is one, which
      is the folder itself.
    scales: What a pixel of the first measures, an axis each.
    about: OME-Zarr's axes as they stand there.
  """

  axes: str
  version: int = 3
  levels: tuple[str, ...] = ()
  scales: tuple[float, ...] = ()
  about: tuple[dict[str, Any], ...] = ()


class ZarrPicture:
  """A Zarr of which windows are read; see `survey.Large`.

  Args:
    path: The folder.
    max_pixels: See `images.read_image`.

  Raises:
    ImageError: If it is no picture that is read.
  """

  notes = ()

  def __init__(self, path: pathlib.Path, max_pixels: int):
    if not can_write():
      raise ImageError(f"Zarr needs a package: {extras.pip_install('zarr')}")
    self.layout, inner = _layout_of(path)
    head = _head(path / inner)
    shape, dtype, self._chunk = _check_array(head, max_pixels)
    axes = self.layout.axes
    if len(axes) != len(shape):
      raise ImageError(f"has {len(shape)} axes, and names {len(axes)}")
    sizes = dict(zip(axes, shape, strict=True))
    others = [n for axis, n in sizes.items() if axis not in "yxc"]
    if math.prod(others) != 1 or not {"y", "x"} <= sizes.keys():
      raise ImageError(
        f"its axes {axes} are {list(shape)} long; one picture is wanted, of"
        " y, x and c"
      )
    H, W, channels = sizes["y"], sizes["x"], sizes.get("c", 1)
    limits.check_size(W, H, max_pixels)
    if channels not in (1, 3, 4):
      raise ImageError(
        f"has {channels} channels; 1 is grey, 3 are RGB, 4 with transparency"
      )
    import zarr

    self._array = zarr.open_array(
      store=os.fspath(path / inner), mode="r", zarr_format=self.layout.version
    )
    self.shape, self.dtype = (H, W, min(channels, 3)), np.dtype(dtype)
    self.has_alpha, self.further = channels == 4, 0
    self.metadata = Metadata(format="Zarr", size=(W, H))
    self.levels = "parts" if len(self.layout.levels) > 1 else None
    self._levels: dict[str, float] = {}

  def survey(self, known: Survey | None = None) -> Survey:
    """See `survey.Large`."""
    if known is None:
      known = Survey()
      if self.has_alpha or self.dtype == np.float32:
        W = self.shape[1]
        known = look_at(
          lambda rows: self._window(rows, slice(0, W), divide=False),
          self.shape,
          self.dtype,
          part=self._chunk[self.layout.axes.index("y")],
          linear=False,
        )
    if known.levels is not None:
      self._levels = known.levels
      self.metadata = dataclasses.replace(self.metadata, **known.levels)
    return known

  def expect(self, height: int) -> None:
    """See `survey.Large`; chunks are decoded as they come."""

  def read(self, rows: slice, columns: slice) -> Window:
    """See `survey.Large`."""
    return self._window(rows, columns)

  def _window(
    self, rows: slice, columns: slice, *, divide: bool = True
  ) -> Window:
    axes = self.layout.axes
    where = {"y": rows, "x": columns, "c": slice(None)}
    found = np.asarray(self._array[tuple(where.get(axis, 0) for axis in axes)])
    kept = [axis for axis in axes if axis in where]
    if "c" not in kept:
      kept.append("c")
      found = found[..., None]
    found = found.transpose([kept.index(axis) for axis in "yxc"])
    found = np.ascontiguousarray(found, self.dtype)
    if self.dtype == np.float32:
      light.check_finite(found)
    C = self.shape[2]
    pixels = np.ascontiguousarray(found[..., :C])
    if self.dtype == np.float32 and divide:
      light.divide(pixels, self._levels)
    alpha = np.ascontiguousarray(found[..., C]) if self.has_alpha else None
    return Window(pixels, alpha, None)


def stamps(path: pathlib.Path) -> str:
  """Returns what changes with a Zarr: names, sizes and times of its files.

  Args:
    path: The folder.

  Raises:
    ImageError: If anything in it is a link.
  """
  lines = []
  for folder, folders, names in os.walk(path):
    folders.sort()
    for name in sorted([*names, *folders]):
      file = pathlib.Path(folder, name)
      if file.is_symlink():
        raise ImageError(
          f"{path}: {file.relative_to(path)} is a link; copy the folder with"
          " what it leads to"
        )
    for name in sorted(names):
      status = os.stat(os.path.join(folder, name))
      inside = os.path.relpath(os.path.join(folder, name), path)
      lines.append(f"{inside} {status.st_size} {status.st_mtime_ns}")
  return "\n".join(lines)


def _head(folder: pathlib.Path) -> dict[str, Any]:
  """Reads what an array or a group says of itself, its attributes as well."""

  def read(name: str) -> dict[str, Any]:
    path = folder / name
    if path.is_symlink() or path.stat().st_size > _MOST_HEAD:
      raise ImageError(f"its {name} is a link, or too long")
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
      raise ImageError(f"its {name} is none")
    return found

  for name in _HEADS:
    if (folder / name).is_file():
      head = read(name)
      if name != "zarr.json":
        more = (folder / ".zattrs").is_file()
        head["attributes"] = read(".zattrs") if more else {}
        head["zarr_format"] = 2
      return head
  raise ImageError("has no array of that name")


def _layout_of(path: pathlib.Path) -> tuple[Layout, str]:
  """Tells how a folder's picture lies in it, and in which array."""
  head = _head(path)
  version = 2 if head["zarr_format"] == 2 else 3
  if head.get("shape") is not None:
    return Layout(_axes_of(head), version), "."
  attributes = head.get("attributes", {})
  found = attributes.get("ome", attributes).get("multiscales")
  if not found:
    raise ImageError(
      "is a group without OME-Zarr's multiscales; name an array in it"
    )
  names, scales = [], []
  for each in found[0]["datasets"][:64]:
    name = each["path"]
    parts = pathlib.PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
      raise ImageError(f"its array {name!r} lies elsewhere")
    names.append(name)
    for change in each.get("coordinateTransformations", ()):
      if change.get("type") == "scale" and not scales:
        scales = [float(value) for value in change["scale"]]
  array = _head(path / names[0])
  about = found[0].get("axes", ())
  axes = "".join(
    each if isinstance(each, str) else each["name"] for each in about
  )
  axes = axes or "tczyx"[-len(array["shape"]) :]
  if len(scales) != len(axes):
    scales = [1.0] * len(axes)
  about = tuple(each for each in about if isinstance(each, dict))
  return Layout(axes, version, tuple(names), tuple(scales), about), names[0]


def _axes_of(head: dict[str, Any]) -> str:
  """Returns the axes of an array, by their names or by its shape."""
  shape, names = head["shape"], head.get("dimension_names")
  if names and all(names) and {"y", "x"} <= {*names}:
    return "".join(names)
  if len(shape) == 2:
    return "yx"
  if len(shape) == 3 and shape[-1] in (1, 3, 4):
    return "yxc"
  if len(shape) == 3 and shape[0] in (1, 3, 4):
    return "cyx"
  raise ImageError(
    f"is an array {shape}; a picture is [H, W], [H, W, C] or [C, H, W]"
  )


def _check_array(
  head: dict[str, Any], max_pixels: int
) -> tuple[tuple[int, ...], type, tuple[int, ...]]:
  """Refuses what is not read; returns shape, dtype and shape of a chunk."""
  if head["zarr_format"] == 2:
    kind, chunk = head["dtype"], head["chunks"]
    compressor, filters = head.get("compressor"), head.get("filters") or []
    codecs = [c["id"] for c in ([compressor] if compressor else [])]
    strange = {*codecs} - _COMPRESSORS | {f["id"] for f in filters} - _FILTERS
  else:
    kind = head["data_type"]
    grid = head["chunk_grid"]
    if grid["name"] != "regular" or head.get("storage_transformers"):
      raise ImageError("its chunks are of no regular grid")
    chunk = grid["configuration"]["chunk_shape"]
    strange = _strange(head["codecs"])
  if strange:
    raise ImageError(f"its codec {sorted(map(str, strange))[0]!r} is not read")
  if not isinstance(kind, str) or kind not in _DTYPES:
    raise ImageError(
      f"its numbers are {kind}; 8 and 16 bits without sign and floats of 32"
      " are read"
    )
  shape, chunk = tuple(head["shape"]), tuple(chunk)
  if len(chunk) != len(shape) or not all(
    isinstance(n, int) and n > 0 for n in (*shape, *chunk)
  ):
    raise ImageError(f"is an array {list(shape)} of chunks {list(chunk)}")
  dtype = _DTYPES[kind]
  size = math.prod(chunk) * np.dtype(dtype).itemsize
  if size > _MOST_OF_CHUNK:
    raise ImageError(
      f"its chunks {list(chunk)} have {size / 1e9:.1f} GB, which must be"
      " decoded at once; save it with smaller ones"
    )
  return shape, dtype, chunk


def _strange(codecs: Sequence[dict[str, Any]]) -> set[str]:
  """Returns the names of codecs that are on no list."""
  found = set()
  for codec in codecs:
    name = codec["name"]
    if name == _SHARDING:
      inside = codec["configuration"]
      found |= _strange(inside["codecs"])
      found |= _strange(inside.get("index_codecs", ()))
    elif name not in _CODECS:
      found.add(name)
  return found


class ZarrPieces:
  """A Zarr on its way, written by rows of chunks; see `TiffPieces`.

  Args:
    folder: Where it lies until it is whole.
    metadata: Of the result; its record is kept.
    size: Height and width of the result.
    channels: Of all samples.
    colours: Of colour, which are undone as `light` says.
    dtype: Of the pixels.
    layout: Of the picture that it is made of, if that is a Zarr.
    levels: Whether there are to be smaller copies.
    scales: Height and width of the result over those of its picture.
    mark: What `mark` had returned.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    metadata: Metadata,
    size: tuple[int, int],
    channels: int,
    colours: int,
    dtype: np.dtype,
    layout: Layout | None,
    levels: bool,
    scales: tuple[float, float],
    mark: dict[str, int] | None = None,
  ):
    self.path = folder / "result.zarr"
    self._metadata, self._colours = metadata, colours
    self._kind = np.dtype(dtype)
    if layout is None:
      axes = "cyx" if levels else "yxc"
      layout = Layout(axes if channels > 1 else "yx", scales=(1.0,) * 3)
    self._layout = layout
    self.band = max(_CHUNK, tile_of(*size))
    self._sizes = [size]
    while levels and max(size) > self.band:
      size = (-(-size[0] // 2), -(-size[1] // 2))
      self._sizes.append(size)
    self._done = (mark or {"rows": 0})["rows"]
    self._names = [f"/{n}" for n in range(len(self._sizes))] if levels else [""]
    self._written: list[tuple[int, int]] = []
    self._arrays = self._make(channels, levels, scales, anew=mark is None)

  def _make(
    self,
    channels: int,
    levels: bool,
    scales: tuple[float, float],
    *,
    anew: bool,
  ) -> list[Any]:
    import zarr

    version, axes = self._layout.version, self._layout.axes
    format_ = {"zarr_format": version}
    names = self._names
    if not anew:
      return [
        zarr.open_array(store=f"{self.path}{name}", mode="r+", **format_)
        for name in names
      ]
    shutil.rmtree(self.path, ignore_errors=True)  # Of which nothing is marked.
    record = self._metadata.record
    about = {"software": record} if record else {}
    if levels:
      multiscales = {"multiscales": [self._multiscales(scales)]}
      if version == 3:
        multiscales = {"ome": {"version": "0.5", **multiscales}}
      else:
        multiscales["multiscales"][0]["version"] = "0.4"
      zarr.create_group(
        store=self.path, attributes={**about, **multiscales}, **format_
      )
    arrays = []
    for name, (H, W) in zip(names, self._sizes, strict=True):
      lengths = {"y": H, "x": W, "c": channels}
      sides = {"y": self.band, "x": self.band, "c": channels}
      if version == 3:
        format_["dimension_names"] = list(axes)
      arrays.append(
        zarr.create_array(
          store=f"{self.path}{name}",
          shape=tuple(lengths.get(axis, 1) for axis in axes),
          chunks=tuple(sides.get(axis, 1) for axis in axes),
          dtype=self._kind,
          attributes={} if levels else about,
          **format_,
        )
      )
    return arrays

  def _multiscales(self, scales: tuple[float, float]) -> dict[str, Any]:
    layout = self._layout
    larger = dict(zip("yx", scales, strict=True))
    kinds = {"c": "channel", "t": "time"}
    axes = list(layout.about) or [
      {"name": axis, "type": kinds.get(axis, "space")} for axis in layout.axes
    ]
    before = layout.scales[: len(layout.axes)]
    datasets = []
    for number in range(len(self._sizes)):
      sizes = [
        value * 2**number / larger[axis] if axis in larger else value
        for axis, value in zip(layout.axes, before, strict=True)
      ]
      change = {"type": "scale", "scale": sizes}
      datasets.append(
        {"path": str(number), "coordinateTransformations": [change]}
      )
    return {"axes": axes, "datasets": datasets}

  def close(self) -> None:
    """Nothing is open."""

  @property
  def rows(self) -> int:
    """Rows of the picture that have been appended."""
    return min(self._done * self.band, self._sizes[0][0])

  def mark(self) -> dict[str, int]:
    """Returns how far it is; that much outlives whatever comes."""
    for level, row in self._written:
      axes, array = self._layout.axes, self._arrays[level]
      _, across = self._sizes[level]
      for column in range(-(-across // self.band)):
        place = {"y": row, "x": column}
        key = array.metadata.encode_chunk_key(
          tuple(place.get(axis, 0) for axis in axes)
        )
        _sync(pathlib.Path(f"{self.path}{self._names[level]}", key))
    self._written.clear()
    return {"rows": self._done}

  def append(self, samples: np.ndarray) -> None:
    """Takes the next rows; see `TiffPieces.append`."""
    if samples.dtype == np.float32:
      samples, C = np.array(samples), self._colours
      samples[..., :C] = light.to_file(
        samples[..., :C], self._metadata, linear=self._metadata.linear
      )
      light.check_finite(samples)
    self._put(0, self._done, samples)

  def _put(self, level: int, row: int, samples: np.ndarray) -> None:
    array, axes = self._arrays[level], self._layout.axes
    kept = [axis for axis in "yxc" if axis in axes]
    if "c" not in axes:
      samples = samples[..., 0]
    inside = [axis for axis in axes if axis in kept]
    samples = samples.transpose([kept.index(axis) for axis in inside])
    top = row * self.band
    rows = slice(top, min(top + self.band, self._sizes[level][0]))
    array[
      tuple(
        rows if axis == "y" else slice(None) if axis in kept else 0
        for axis in axes
      )
    ] = samples
    self._written.append((level, row))
    self._done += 1

  def _get(self, level: int, rows: slice) -> np.ndarray:
    axes = self._layout.axes
    where = {"y": rows, "x": slice(None), "c": slice(None)}
    found = self._arrays[level][tuple(where.get(axis, 0) for axis in axes)]
    kept = [axis for axis in axes if axis in where]
    if "c" not in kept:
      kept.append("c")
      found = found[..., None]
    return found.transpose([kept.index(axis) for axis in "yxc"])

  def reduce(self, tell: Callable[[int, int], None]) -> None:
    """Makes the smaller copies; see `TiffPieces.reduce`."""
    counts = [-(-H // self.band) for H, _ in self._sizes]
    begin = 0
    for level, count in enumerate(counts[1:], 1):
      begin += counts[level - 1]
      for row in range(count):
        if self._done > begin + row:
          continue  # There already.
        rows = slice(2 * row * self.band, 2 * (row + 1) * self.band)
        self._put(level, row, halved(self._get(level - 1, rows)))
        tell(self._done, sum(counts))

  def finish(self) -> pathlib.Path:
    """Returns the folder, which is whole."""
    self.mark()
    return self.path


def _sync(path: pathlib.Path) -> None:
  """Has a chunk outlive whatever comes; there is none of what is all zero."""
  try:
    file = os.open(path, os.O_RDONLY)
  except FileNotFoundError:
    return
  try:
    os.fsync(file)
  finally:
    os.close(file)
