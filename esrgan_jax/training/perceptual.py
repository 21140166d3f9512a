"""The perceptual loss that a config names, and its trained weights.

The weights are not part of this package; their makers publish them. Those of
VGG19 are found or fetched here, the others by `weights.perceptual`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from esrgan_jax import compilation, download, perceptual, storage
from esrgan_jax.models import vgg
from esrgan_jax.steps import gan
from esrgan_jax.text import printable
from esrgan_jax.weights.perceptual import load_measure, load_vgg16
from esrgan_jax.weights.vgg import read_vgg19

__all__ = [
  "DISTANCES",
  "NETWORKS",
  "PerceptualWeights",
  "distance",
  "load",
  "load_vgg19",
  "problem",
]

DISTANCES = {
  "lpips_vgg": perceptual.lpips,
  "lpips": perceptual.lpips,
  "dists": perceptual.dists,
}
NETWORKS = ("vgg19", "vgg16", *DISTANCES)

# torchvision `models/vgg.py`; the name carries the checksum's beginning. The
# whole and the size are the same in several projects that pin the file.
URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
_TORCHVISION = "vgg19-dcbb9e9d.pth"
_SHA256 = "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"
_SIZE = 574_673_361
_KERAS = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"


class PerceptualWeights(NamedTuple):
  """A network's parameters, and a sentence on what they are."""

  params: dict[str, Any]
  description: str


def problem(network: str, weights: str) -> str:
  """Returns why a network cannot have such weights; nothing if it can.

  Args:
    network: One of `NETWORKS`.
    weights: As of `load`.

  >>> problem("vgg16", "vgg16.pth")
  'of vgg16 there are those of the extra `perceptual` only: choose auto or...
  >>> problem("vgg19", "vgg19.pth")
  ''
  """
  own = {"vgg19": (weights,), "vgg16": ("auto", "random")}.get(network)
  own = own or ("auto",)
  if weights in own:
    return ""
  return (
    f"of {network} there are those of the extra `perceptual` only: choose"
    f" {' or '.join(own)}"
  )


def load(network: str, weights: str, *, seed: int = 0) -> PerceptualWeights:
  """Loads what `config.perceptual` names.

  Args:
    network: One of `NETWORKS`.
    weights: As of `load_vgg19`; of the others `"auto"`, which is their own,
      and of VGG16 `"random"` as well.
    seed: Of random weights.

  Raises:
    FileNotFoundError: If they are not on this machine; says how to get them.
    ValueError: As of `load_vgg19`.
  """
  if network == "vgg19":
    return load_vgg19(weights, seed=seed)
  if weights == "random":
    return _random(network, seed)
  if network == "vgg16":
    described = "VGG16 features, trained on ImageNet"
    return PerceptualWeights(load_vgg16(), described)
  return PerceptualWeights(load_measure(network), f"{network} itself")


def distance(
  network: str,
  params: Mapping[str, Any],
  *,
  layer_weights: Mapping[str, float],
  criterion: str,
  dtype: Any,
) -> jax.tree_util.Partial:
  """Returns the perceptual loss, a function of images whose leaves are weights.

  Args:
    network: One of `NETWORKS`.
    params: Its parameters, from `load`.
    layer_weights: As of `steps.vgg_perceptual`; of a VGG only.
    criterion: Likewise.
    dtype: Compute dtype of the network.

  Returns:
    `(sr, hr) -> scalar`.
  """
  if network not in DISTANCES:
    return gan.vgg_perceptual(
      params,
      layer_weights=layer_weights,
      criterion=criterion,
      network=network,
      dtype=dtype,
    )

  def mean(params, sr, hr):
    return DISTANCES[network](params, sr, hr, dtype=dtype).mean()

  return jax.tree_util.Partial(mean, params)


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
    return _random("vgg19", seed)
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


def _random(network, seed):
  options = compilation.compiler_options(once=True)
  begin = {"vgg19": vgg.init_vgg19, "vgg16": vgg.init_vgg16}[network]
  return PerceptualWeights(
    jax.jit(begin, compiler_options=options)(jax.random.key(seed)),
    f"random {network.upper()} features, as asked for: not the published loss",
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
