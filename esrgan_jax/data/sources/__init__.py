"""Where pairs of images come from: files, data sets of TFDS, sample photos.

A `Source` is a sequence of named (LR, HR) pairs, uint8 RGB. Reading one may
raise `DataError`, which names the image and says what is wrong with it.
`open_source` makes a source from the plain value that a config holds.
"""

from esrgan_jax.data.sources.base import (
  DataError,
  Pair,
  Problem,
  Source,
  SourceList,
  Subset,
  corner,
  readable,
  require_hr,
)
from esrgan_jax.data.sources.div2k import Div2k
from esrgan_jax.data.sources.folders import ImageFolder, LrFolder, PairFolder
from esrgan_jax.data.sources.sample_photos import (
  HELD_OUT_PHOTOS,
  TRAINING_PHOTOS,
  SamplePhotos,
)
from esrgan_jax.data.sources.specs import (
  check_folders,
  open_source,
  prepare,
  split_spec,
)
from esrgan_jax.data.sources.tfds_images import (
  TfdsImages,
  TfdsPairs,
  open_tfds,
  prepare_tfds,
)

__all__ = [
  "HELD_OUT_PHOTOS",
  "TRAINING_PHOTOS",
  "DataError",
  "Div2k",
  "ImageFolder",
  "LrFolder",
  "Pair",
  "PairFolder",
  "Problem",
  "SamplePhotos",
  "Source",
  "SourceList",
  "Subset",
  "TfdsImages",
  "TfdsPairs",
  "check_folders",
  "corner",
  "open_source",
  "open_tfds",
  "prepare",
  "prepare_tfds",
  "readable",
  "require_hr",
  "split_spec",
]
