"""Any image data set of TensorFlow Datasets that is prepared on this machine.

Its own files are read, as ArrayRecord, by place; neither the code that made
them nor TensorFlow is needed. The images in them are read as image files are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from typing import Any, NamedTuple

import numpy as np

from esrgan_jax import extras, images, text
from esrgan_jax.data.sources.base import DataError, Pair, Source, matched
from esrgan_jax.data.sources.shrunk import Shrunk, to_rgb8
from esrgan_jax.errors import UsageError

__all__ = [
  "Named",
  "TfdsImages",
  "TfdsPairs",
  "explained",
  "import_tfds",
  "open_tfds",
  "prepare_tfds",
  "read_name",
]

_VERSION = r"\d+\.\d+\.\d+"
_NAME = re.compile(rf"(\w+)(?:/([\w.+-]+))?(?::({_VERSION}))?")


class Named(NamedTuple):
  """What a source's name says: the data set's name at TFDS, and the split."""

  name: str
  split: str


def read_name(spec: Any) -> Named | None:
  """Returns what a source's name says, None if it is no data set of TFDS.

  >>> read_name("tfds:coco/2014:validation[:100]")
  Named(name='coco/2014', split='validation[:100]')
  >>> read_name("tfds:coco/2014:1.1.0"), read_name("photos")
  (Named(name='coco/2014:1.1.0', split='train'), None)
  """
  if not isinstance(spec, str) or not spec.startswith("tfds:"):
    return None
  pattern = rf"tfds:([^:]*(?::{_VERSION})?)(?::(.*))?"
  match = re.fullmatch(pattern, spec)
  return Named(match[1], match[2] or "train") if match else None


def open_tfds(
  name: str,
  split: str = "train",
  *,
  scale: int,
  data_dir: str | os.PathLike | None = None,
  border: str = "mirror",
  max_pixels: int = images.MAX_PIXELS,
) -> TfdsImages | TfdsPairs:
  """Opens a data set that TFDS has prepared as ArrayRecord files.

  Of its features, `lr` and `hr` are pairs, if both are images; otherwise
  `image` is HR, or the only image that there is, and LR is made from it.
  Masks (`LabeledImage`) are no images. What is in them becomes 8-bit RGB as
  image files do: grey is repeated, 16 bits are rounded, transparency and EXIF
  orientation are dealt with.

  Args:
    name: TFDS's: `"NAME"`, `"NAME/CONFIG"`, either with `":1.0.0"` after it;
      without, the newest version that is there.
    split: Of TFDS's, slices such as `"train[:10%]"` and sums too.
    scale: HR pixels per LR pixel.
    data_dir: TFDS's folder; None for its own default.
    border: How LR is made, see `imresize_uint8`.
    max_pixels: Larger images are refused, see `images.read_image`.

  Returns:
    The source. TFDS keeps no file names, so that images are named by their
    place.

  Raises:
    DataError: If tensorflow-datasets is missing, or the data set is not
      prepared, not as ArrayRecord, has no such split, or no image.

  >>> open_tfds("photos", scale=4, data_dir="/no/such/folder")
  Traceback (most recent call last):
  ...
  esrgan_jax.data.sources.base.DataError: tfds:photos is not prepared in ...
  """
  tfds = import_tfds(f"tfds:{name}")
  path = _find(name, data_dir)
  _check_features(name, path)
  try:
    builder = tfds.builder_from_directory(path)
  except Exception as error:  # Whatever its files make TFDS raise.
    raise DataError(
      f"tfds:{name}: {path} cannot be opened: {explained(error)}"
    ) from error
  records = Records(builder, f"tfds:{name}:{split}", split, max_pixels)
  if records.features == ("lr", "hr"):
    return TfdsPairs(records, scale=scale)
  return TfdsImages(records, scale=scale, border=border)


class Records:
  """The encoded images of a split, by place.

  Args:
    builder: TFDS's builder of a prepared data set.
    title: What it is called, in reports and errors.
    split: Which of its splits.
    max_pixels: See `images.read_image`.

  Attributes:
    title: See the arguments.
    features: The features that are read: `("lr", "hr")`, or one.
    names: A name an image.
  """

  def __init__(self, builder: Any, title: str, split: str, max_pixels: int):
    import tensorflow_datasets as tfds

    self.title = title
    self.features = _choose_features(title, builder.info.features)
    self._path = builder.data_path  # An epath: it may be in a bucket.
    self._max_pixels = max_pixels
    self._parser = tfds.features.FeaturesDict(
      {name: builder.info.features[name] for name in self.features}
    )
    self._decoders = {
      name: tfds.decode.SkipDecoding() for name in self.features
    }
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
      self._data = builder.as_data_source(split=split, deserialize_method=raw)
      count = len(self._data)
    except NotImplementedError as error:
      raise DataError(
        f"{self._path} was prepared as {builder.info.file_format.value}, which"
        " has no random access; prepare it again as array_record, in another"
        " data_dir"
      ) from error
    except Exception as error:  # ValueError for a split; files that are gone.
      reason, splits = explained(error), list(builder.info.splits)
      if not all(each in reason for each in splits):
        reason += f" (its splits: {text.printable(' '.join(splits))})"
      raise DataError(f"{title}: {reason}") from error
    self.names = [f"{title} #{i}" for i in range(count)]

  def read(self, index: int) -> list[np.ndarray]:
    """Reads an example: an image a feature, uint8 RGB."""
    name = self.names[index]
    try:
      example = self._parser.deserialize_example_np(
        self._data[index], decoders=self._decoders
      )
    except Exception as error:  # array_record and protobuf have their own.
      raise DataError(f"{name}: cannot be read: {explained(error)}") from error
    return [self._decode(example[key], name) for key in self.features]

  def _decode(self, data, name):
    try:
      return to_rgb8(
        images.decode_image(data, name=name, max_pixels=self._max_pixels)
      )
    except images.ImageError as error:
      raise DataError(str(error)) from error

  def fingerprint(self, kind: str) -> str:
    """As `Source.fingerprint`: of the data set's files."""
    digest = hashlib.sha256(f"{self.title} {kind}".encode())
    for file in sorted(self._path.iterdir()):
      stat = file.stat()
      digest.update(f"\n{file}\0{stat.length}\0{stat.mtime}".encode())
    return digest.hexdigest()


class TfdsImages(Shrunk):
  """HR images of a data set of TFDS; LR is made from them, see `Shrunk`.

  Args:
    records: The data set's, of one feature.
    scale: HR pixels per LR pixel.
    border: `"mirror"` or `"clamp"`, see `imresize_uint8`.
  """

  def __init__(self, records: Records, *, scale: int, border: str):
    self.scale, self.border = scale, border
    self.title, self.names = records.title, records.names
    self._records = records

  def read_hr(self, index: int) -> np.ndarray:
    """As `Shrunk.read_hr`."""
    (hr,) = self._records.read(index)
    return hr

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of the data set's files."""
    return self._records.fingerprint(f"x{self.scale} {self.border}")


class TfdsPairs(Source):
  """Pairs of a data set of TFDS.

  Args:
    records: The data set's, of the features `lr` and `hr`.
    scale: HR pixels per LR pixel.
  """

  lr_origin = "the data set's"

  def __init__(self, records: Records, *, scale: int):
    self.scale = scale
    self.title, self.names = records.title, records.names
    self._records = records

  def __getitem__(self, index: int) -> Pair:
    lr, hr = self._records.read(index)
    return matched(lr, hr, self.scale, self.names[index])

  def fingerprint(self) -> str:
    """As `Source.fingerprint`: of the data set's files."""
    return self._records.fingerprint(f"x{self.scale}")


def import_tfds(what: str) -> Any:
  """Imports tensorflow-datasets, or raises a `DataError` that says for what."""
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise DataError(
      f"{what} needs tensorflow-datasets ({error});"
      f" {extras.pip_install('train')}, or name folders of images instead"
    ) from error
  return tensorflow_datasets


def explained(error: BaseException) -> str:
  """Returns what a library says, or else what it raised, on one line."""
  reason = text.printable(" ".join(str(error).split()), limit=500)
  return reason or type(error).__name__


def _find(name, data_dir):
  """Returns the folder of a prepared data set, as TFDS lays them out."""
  import tensorflow_datasets as tfds
  from etils import epath

  match = _NAME.fullmatch(name)
  if not match:
    raise DataError(
      f"tfds:{name}: no name of a data set; give tfds:NAME, tfds:NAME/CONFIG or"
      " either with :SPLIT, such as tfds:coco/2014:validation"
    )
  root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
  folder = root / match[1]
  # `.config` is TFDS's own, and what it is writing has a name of this kind.
  configs = [
    each
    for each in _below(folder)
    if not each.startswith(".") and "incomplete" not in each
  ]
  if match[2]:
    folder = folder / match[2]
  versions = [v for v in _below(folder) if re.fullmatch(_VERSION, v)]
  if match[3]:
    versions = [v for v in versions if v == match[3]]
  if versions:
    return folder / max(versions, key=lambda v: [*map(int, v.split("."))])
  if configs and not (match[2] or match[3]):
    raise DataError(
      f"tfds:{name}: name one of its configurations as well:"
      f" {' '.join(f'tfds:{name}/{text.printable(each)}' for each in configs)}"
    )
  where = f" --data_dir {data_dir}" if data_dir else ""
  raise DataError(
    f"tfds:{name} is not prepared in {root}; run python -m"
    f" esrgan_jax.data.prepare {name}{where}"
  )


def _below(folder):
  """Returns the names of a folder's subfolders."""
  try:
    return sorted(each.name for each in folder.iterdir() if each.is_dir())
  except OSError:
    return []


def _check_features(name, path):
  """Refuses features of modules that TFDS would import because a file says so.

  One of yours that a plugin has imported is known.
  """
  try:
    content = json.loads((path / "features.json").read_text())
  except (OSError, ValueError) as error:
    raise DataError(
      f"tfds:{name}: {path} is no data set of TFDS: features.json:"
      f" {explained(error)}"
    ) from error
  pending = [content]
  while pending:
    each = pending.pop()
    if isinstance(each, dict):
      for key in ("pythonClassName", "python_class_name", "type"):
        kind = each.get(key)
        module = kind.rpartition(".")[0] if isinstance(kind, str) else ""
        own = f"{module}.".startswith("tensorflow_datasets.")
        if module and not own and module not in sys.modules:
          raise DataError(
            f"tfds:{name}: a feature is of {text.printable(module)}, which is"
            " not of TFDS and is not imported because a file says so; name it"
            " in config.plugins"
          )
    if isinstance(each, dict | list):
      pending += each.values() if isinstance(each, dict) else each


def _choose_features(title, features):
  """Returns the names of the features to read."""
  import tensorflow_datasets as tfds

  found = {
    name: feature
    for name, feature in getattr(features, "items", dict)()
    if isinstance(feature, tfds.features.Image)
    and not isinstance(feature, tfds.features.LabeledImage)
  }
  if {"lr", "hr"} <= found.keys():
    chosen = ("lr", "hr")
  elif "image" in found:
    chosen = ("image",)
  elif len(found) == 1:
    chosen = tuple(found)
  else:
    which = text.printable(" ".join(found)) or "none"
    raise DataError(
      f"{title}: of its features, images are: {which}; one called image is"
      " read, lr with hr, or the only one"
    )
  for name in chosen:
    if found[name].np_dtype == np.float32:
      raise DataError(
        f"{title}: its feature {text.printable(name)} is of float32, which is"
        " no picture; 8 and 16 bits are read"
      )
  return chosen


def prepare_tfds(
  name: str,
  data_dir: str | os.PathLike | None = None,
  *,
  manual_dir: str | os.PathLike | None = None,
) -> os.PathLike:
  """Has TFDS download a data set and write it as ArrayRecord files.

  Args:
    name: TFDS's, such as `"coco/2014"`.
    data_dir: TFDS's folder; None for its own default.
    manual_dir: Folder of what must be, or has been, downloaded by hand.

  Returns:
    The folder of the prepared data set. One that is there is left as it is.

  Raises:
    DataError: If tensorflow-datasets is not installed.
    ImportError: If TensorFlow is not installed.
    ValueError: If TFDS knows no such data set.
    RuntimeError: If downloading or building fails.

  >>> prepare_tfds("photos of mine")
  Traceback (most recent call last):
  ...
  esrgan_jax.errors.UsageError: no data set of TFDS is called 'photos of m...
  """
  tfds = import_tfds(f"tfds:{name}")
  directory = None if data_dir is None else os.path.expanduser(data_dir)
  unknown = (
    f"no data set of TFDS is called {name!r}; see"
    " https://www.tensorflow.org/datasets/catalog, or prepare one of your own"
    " with `tfds build --file_format=array_record`"
  )
  if not _NAME.fullmatch(name):
    raise UsageError(unknown)
  try:
    builder = tfds.builder(name, data_dir=directory, file_format="array_record")
  except tfds.core.DatasetNotFoundError as error:
    raise UsageError(unknown) from error
  except Exception as error:  # A wrong configuration, a module that is missing.
    raise ValueError(f"tfds:{name}: {explained(error)}") from error
  build(builder, manual_dir, f"tfds:{name}")
  return builder.data_path


def build(
  builder: Any,
  manual_dir: str | os.PathLike | None,
  what: str,
  by_hand: str = "",
) -> None:
  """Downloads and prepares what a builder of TFDS builds, unless that is done.

  Args:
    builder: The builder.
    manual_dir: Folder of what must be, or has been, downloaded by hand.
    what: Its name, for errors.
    by_hand: What to do without a network, for errors.

  Raises:
    ImportError: If TensorFlow is not installed.
    RuntimeError: If it fails.
  """
  if builder.is_prepared():
    return
  try:
    import tensorflow  # noqa: F401
  except ImportError as error:
    raise ImportError(
      f"preparing {what} needs TensorFlow ({error}); pip install"
      " tensorflow-cpu. Reading it afterwards does not"
    ) from error
  import tensorflow_datasets as tfds

  if manual_dir is not None:
    manual_dir = os.path.expanduser(manual_dir)
  config = tfds.download.DownloadConfig(manual_dir=manual_dir)
  try:
    builder.download_and_prepare(download_config=config)
  except Exception as error:
    # Anything from a refused connection to a wrong checksum or a full disk.
    raise RuntimeError(
      f"preparing {builder.data_path} failed: {explained(error)}"
      f"{by_hand and '. '}{by_hand}"
    ) from error
