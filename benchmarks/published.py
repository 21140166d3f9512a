r"""Fetches the published weights, compares checksums, and figures on Set5.

For machines with a network: VGG19 and VGG16 by torchvision and by Keras, and
all models of `python -m esrgan_jax models` that have an address, 2 GB in all,
into the cache folder. A model whose makers, or others, have published what it
reaches on Set5 is evaluated there, with MATLAB's bicubic in `LRbicx4`, and must
reach that.

Never run here: the publishers could not be reached from where this was built.
What it does was tested against a server on loopback, which sent other files.

  python -m benchmarks.published [--only NAME...] [--set5 Set5]
"""

import argparse
import hashlib
import pathlib
import urllib.parse
from typing import NamedTuple

_LIMIT = 2**30  # Bytes, of a file whose size is not published.
# How far measures may be from what is published with two and four digits.
_CLOSE = {"psnr": 0.02, "ssim": 0.002}


class Item(NamedTuple):
  """A published file.

  Attributes:
    name: What users call it.
    url: Where it is, or where a page tells of it.
    digest: SHA-256, or an MD5 where there is no better.
    size: In bytes; None where it is not published.
    path: Where it goes.
    fetched: Whether the address is the file's.
  """

  name: str
  url: str
  digest: str
  size: int | None
  path: pathlib.Path
  fetched: bool = True


class Figure(NamedTuple):
  """What a model reaches on Set5, x4, without 4 pixels of border.

  Attributes:
    channel: `"y"` or `"rgb"`.
    psnr: In decibels.
    ssim: Of 1.
    source: Who says so.
  """

  channel: str
  psnr: float
  ssim: float
  source: str


FIGURES = {
  "esrgan-psnr-x4": Figure("y", 32.73, 0.9011, "xinntao/ESRGAN, README"),
  "esrgan-x4": Figure("y", 30.44, 0.8525, "Lornatang/ESRGAN-PyTorch, README"),
  "msrresnet-x4": Figure("rgb", 30.2468, 0.8651, "BasicSR, ModelZoo"),
  "msrgan-x4": Figure("rgb", 28.0158, 0.8087, "BasicSR, ModelZoo"),
}


def published_items():
  """Returns all files that have an address or a figure."""
  from esrgan_jax import storage
  from esrgan_jax.training import perceptual
  from esrgan_jax.weights import zoo

  folder, items = storage.cache_dir(), []
  for network, files in perceptual.PUBLISHED.items():
    for file, maker in zip(files, ("torchvision", "keras"), strict=True):
      path = folder / file.name
      items.append(
        Item(f"{network}-{maker}", file.url, file.digest, file.size, path)
      )
  for row in zoo.models():
    model = row.model
    if model.url or (model.name in FIGURES and not model.package):
      items.append(
        Item(
          model.name,
          model.url or model.page,
          model.sha256 or "",
          model.size,
          folder / model.filename,
          bool(model.url),
        )
      )
  return items


def bring(item, mirror=""):
  """Fetches a file unless it is there; returns what there is to say, and if.

  Args:
    item: The file.
    mirror: An address to ask instead, with the same file names; else none.
  """
  from esrgan_jax import download

  kind = "md5" if len(item.digest) == 32 else "sha256"
  if item.path.is_file():
    if not item.digest:
      return "here, no checksum is published", True
    with item.path.open("rb") as file:
      found = hashlib.file_digest(file, kind).hexdigest()
    return (
      (f"here, {kind} agrees", True)
      if found == item.digest
      else (f"DIFFERS: {kind} is {found}, published {item.digest}", False)
    )
  if not item.fetched:
    return f"left out: to be brought by hand, {item.url}", True
  url = item.url
  if mirror:
    name = pathlib.PurePosixPath(urllib.parse.urlparse(url).path).name
    url = f"{mirror.rstrip('/')}/{name}"
  try:
    download.fetch(
      url,
      item.path,
      **{kind: item.digest},
      size=item.size,
      limit=item.size or _LIMIT,
    )
  except (download.DownloadError, download.ChecksumError) as error:
    return f"FAILED: {error}", False
  return f"fetched, {kind} agrees", True


def compare(figure, means):
  """Returns a line that compares measures with published ones, and if close.

  Args:
    figure: What is published.
    means: What was measured, by name.

  >>> compare(Figure("y", 32.73, 0.9011, "x"), {"psnr_y": 32.7, "ssim_y": 0.9})
  ('32.70 dB, 0.9000 (y); published 32.73, 0.9011 by x: DIFFERS', False)
  """
  psnr, ssim = (means[f"{name}_{figure.channel}"] for name in _CLOSE)
  good = (
    abs(psnr - figure.psnr) <= _CLOSE["psnr"]
    and abs(ssim - figure.ssim) <= _CLOSE["ssim"]
  )
  return (
    f"{psnr:.2f} dB, {ssim:.4f} ({figure.channel}); published"
    f" {figure.psnr:.2f}, {figure.ssim:.4f} by {figure.source}:"
    f" {'agrees' if good else 'DIFFERS'}",
    good,
  )


def evaluate(name, set5):
  """Returns a model's means on a folder with HR/ and LRbicx4/."""
  import esrgan_jax
  from esrgan_jax.data import sources
  from esrgan_jax.evaluation import evaluator

  model = esrgan_jax.load(name)
  folders = {"hr": str(set5 / "HR"), "lr": str(set5 / f"LRbicx{model.scale}")}
  pairs = evaluator.named_pairs(sources.open_source(folders, scale=model.scale))
  return evaluator.evaluate_pairs(model, pairs, scale=model.scale).means


def read(item):
  """Reads a VGG's file as training does; raises if it is not what it says."""
  from esrgan_jax.weights.vgg import read_vgg

  read_vgg(item.path, network=item.name.partition("-")[0])


def check(items, *, set5=None, mirror=""):
  """Brings files, reads and evaluates them; returns whether all is well."""
  well = True
  for item in items:
    said, good = bring(item, mirror)
    print(f"{item.name}: {said}", flush=True)
    well &= good
    if not (good and item.path.is_file()):
      continue
    if item.name.startswith("vgg"):
      read(item)
    elif set5 and item.name in FIGURES:
      said, good = compare(FIGURES[item.name], evaluate(item.name, set5))
      print(f"{item.name}: {said}", flush=True)
      well &= good
  return well


def main():
  """Does all, or what the arguments name; the status says how it went."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", nargs="+", metavar="NAME", help="not all")
  parser.add_argument(
    "--set5", type=pathlib.Path, help="folder with HR/ and LRbicx4/"
  )
  parser.add_argument(
    "--mirror", default="", metavar="URL", help="fetch from there instead"
  )
  args = parser.parse_args()
  items = {item.name: item for item in published_items()}
  if unknown := [name for name in args.only or () if name not in items]:
    parser.error(f"no {', '.join(unknown)}; there are {', '.join(items)}")
  chosen = [items[name] for name in args.only or items]
  raise SystemExit(not check(chosen, set5=args.set5, mirror=args.mirror))


if __name__ == "__main__":
  main()
