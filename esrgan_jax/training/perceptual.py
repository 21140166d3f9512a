"""Finds and reads VGG19's weights for the perceptual loss.

The trained weights are not part of this package; their makers publish them.
"""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import jax

from esrgan_jax import compilation, download, storage
from esrgan_jax.models import vgg
from esrgan_jax.text import printable
from esrgan_jax.weights.vgg import read_vgg19

__all__ = ["PerceptualWeights", "load_vgg19"]

# torchvision `models/vgg.py`; the name carries the checksum's beginning. The
# whole and the size are the same in several projects that pin the file.
URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
_TORCHVISION = "vgg19-dcbb9e9d.pth"
_SHA256 = "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"
_SIZE = 574_673_361
_KERAS = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"


class PerceptualWeights(NamedTuple):
  """VGG19's parameters, and a sentence on what they are."""

  params: dict[str, dict[str, jax.Array]]
  description: str


def load_vgg19(
  weights: str, *, seed: int = 0, fetch: bool = True
) -> PerceptualWeights:
  """Loads VGG19 as `config.perceptual.weights` names it.

  Args:
    weights: A file: torchvision's `.pth`, or Keras's `.h5`.
      `"auto"`: such a file in the caches of this package, PyTorch or Keras,
      else torchvision's, fetched. `"random"`: untrained ones; their features
      compare structure, but results are not ESRGAN's.
    seed: Of random weights.
    fetch: Whether the network may be used.

  Returns:
    Parameters for `vgg19_features`, and what they are.

  Raises:
    FileNotFoundError: If there is no such file; says where to get it.
    ValueError: If `weights` is empty, or the file is not VGG19's; names the
      layer.

  >>> load_vgg19("random").description
  'random VGG19 features, as asked for: not the published loss'
  >>> load_vgg19("vgg.pth")
  Traceback (most recent call last):
  ...
  FileNotFoundError: no file vgg.pth: VGG19's trained weights are torchvision...
  """
  if weights == "random":
    options = compilation.compiler_options(once=True)
    init = jax.jit(vgg.init_vgg19, compiler_options=options)
    return PerceptualWeights(
      init(jax.random.key(seed)),
      "random VGG19 features, as asked for: not the published loss",
    )
  if not weights:
    raise ValueError(f"config.perceptual.weights is empty: {_by_hand()}")
  path = pathlib.Path(weights).expanduser()
  if weights == "auto":
    path = _find(fetch)
  elif not path.is_file():
    raise FileNotFoundError(f"no file {printable(weights)}: {_by_hand()}")
  return PerceptualWeights(
    read_vgg19(path), f"VGG19 features from {printable(path)}"
  )


def _find(fetch):
  """The first file in known caches; else the fetched one."""
  own = storage.cache_dir()
  home = pathlib.Path.home()
  torch_home = os.environ.get("TORCH_HOME") or home / ".cache" / "torch"
  for path in (
    own / _TORCHVISION,
    own / _KERAS,
    pathlib.Path(torch_home) / "hub" / "checkpoints" / _TORCHVISION,
    home / ".keras" / "models" / _KERAS,
  ):
    if path.is_file():
      return path
  if not fetch:
    raise FileNotFoundError(f"VGG19 is in no cache: {_by_hand()}")
  path = own / _TORCHVISION
  try:
    download.fetch(URL, path, sha256=_SHA256, size=_SIZE, limit=_SIZE)
  except (download.DownloadError, download.ChecksumError) as error:
    raise FileNotFoundError(
      f"fetching VGG19 from {URL} failed ({error}): {_by_hand()}"
    ) from error
  return path


def _by_hand():
  return (
    f"VGG19's trained weights are torchvision's {_TORCHVISION}, from {URL}, or"
    f" Keras's {_KERAS}. Put either into {storage.cache_dir()}, or give its"
    ' path as --config.perceptual.weights=FILE; "random" asks for untrained'
    " features"
  )
