"""DIV2K: its name in configs, its preparation by TFDS, its images.

TensorFlow Datasets' own builder prepares it, once, as ArrayRecord files.
Preparing needs TensorFlow (tensorflow-cpu will do); reading what was prepared
does not.
"""

from __future__ import annotations

import os
import pathlib
import re
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

from esrgan_jax import images
from esrgan_jax.data.sources.base import DataError
from esrgan_jax.data.sources.tfds_images import (
  Records,
  TfdsPairs,
  build,
  import_tfds,
)
from esrgan_jax.errors import UsageError

__all__ = [
  "Div2k",
  "Named",
  "div2k_builder",
  "prepare_div2k",
  "read_name",
]


class Named(NamedTuple):
  """What a name of DIV2K says: TFDS's configuration, and the split."""

  config: str
  split: str


def read_name(spec: Any) -> Named | None:
  """Returns what a source's name says, None if it is not DIV2K's.

  >>> read_name("div2k/bicubic_x4:validation")
  Named(config='bicubic_x4', split='validation')
  >>> read_name("tfds:div2k/unknown_x2").split, read_name("div2k")
  ('train', None)
  """
  if not isinstance(spec, str):
    return None
  match = re.fullmatch(r"(?:tfds:)?div2k/([^:/]*)(?::(.*))?", spec)
  return Named(match[1], match[2] or "train") if match else None


class Div2k(TfdsPairs):
  """DIV2K through TensorFlow Datasets, without TensorFlow.

  Reads what `prepare_div2k` wrote. TFDS keeps no file names, so that images are
  named by their place.

  Args:
    split: `"train"` or `"validation"`; slices such as `"train[:10]"` too.
    scale: HR pixels per LR pixel, that of `config`.
    config: TFDS's configuration, such as `"bicubic_x4"` or `"unknown_x4"`.
    data_dir: TFDS's folder; None for its own default.
    max_pixels: Larger images are refused, see `images.read_image`.

  Raises:
    DataError: If tensorflow-datasets is missing, the data set is not
      prepared or not as ArrayRecord, or `scale` is not the configuration's.

  >>> Div2k("train", scale=2, config="bicubic_x4")
  Traceback (most recent call last):
  ...
  esrgan_jax.data.sources.base.DataError: div2k/bicubic_x4 is of scale 4, not 2
  """

  def __init__(
    self,
    split: str,
    *,
    scale: int,
    config: str = "bicubic_x4",
    data_dir: str | os.PathLike | None = None,
    max_pixels: int = images.MAX_PIXELS,
  ):
    told = re.search(r"_x(\d)$", config)  # Else it is no configuration.
    if told and int(told[1]) != scale:
      raise DataError(f"div2k/{config} is of scale {told[1]}, not {scale}")
    try:
      builder = div2k_builder(data_dir, config=config)
    except ValueError as error:
      raise DataError(str(error)) from error
    if not builder.is_prepared():
      raise DataError(
        f"div2k/{config} is not prepared in {builder.data_path}; run python -m"
        f" esrgan_jax.data.prepare --config {config} --data_dir"
        f" {data_dir or '~/tensorflow_datasets'} (--manual_dir with the"
        " official zips where there is no network)"
      )
    title = f"div2k/{config}:{split}"
    super().__init__(Records(builder, title, split, max_pixels), scale=scale)


def div2k_builder(
  data_dir: str | os.PathLike | None = None, *, config: str = "bicubic_x4"
) -> Any:
  """Returns TFDS's builder of DIV2K; imports no TensorFlow.

  Args:
    data_dir: TFDS's folder; None for its own default.
    config: TFDS's configuration, such as `"bicubic_x4"`.

  Returns:
    A `tfds.core.DatasetBuilder` that writes ArrayRecord files, and reads what
    there is.

  Raises:
    DataError: If tensorflow-datasets is not installed.
    ValueError: If there is no such configuration.

  >>> builder = div2k_builder("/tmp/tfds", config="bicubic_x4")
  >>> builder.info.full_name
  'div2k/bicubic_x4/2.0.0'
  """
  tfds = import_tfds("DIV2K")
  directory = None if data_dir is None else os.path.expanduser(data_dir)
  known = [c.name for c in tfds.builder_cls("div2k").BUILDER_CONFIGS]
  if config not in known:
    raise UsageError(
      f"DIV2K has no configuration {config!r}; choose one of {' '.join(known)}"
    )
  return tfds.builder(
    f"div2k/{config}", data_dir=directory, file_format="array_record"
  )


def prepare_div2k(
  data_dir: str | os.PathLike | None = None,
  *,
  config: str = "bicubic_x4",
  manual_dir: str | os.PathLike | None = None,
  process_index: int = 0,
  wait_seconds: float = 6 * 3600,
  report: Callable[[str], None] | None = None,
) -> os.PathLike:
  """Prepares DIV2K if that has not been done, and returns where it is.

  Process 0 prepares; the others wait until the data set appears under its
  final name, which TFDS gives it when it is complete. So `data_dir` must be
  shared by all; if every host has a disk of its own, run the command once on
  each before training.

  Args:
    data_dir: TFDS's folder; None for its own default.
    config: TFDS's configuration, such as `"bicubic_x4"`.
    manual_dir: Folder of the official zips, if they are not to be downloaded.
    process_index: Number of this process among those that prepare together.
    wait_seconds: How long a process other than 0 waits.
    report: Called with a line now and then.

  Returns:
    The folder of the prepared data set.

  Raises:
    FileNotFoundError: If `manual_dir` lacks a zip.
    TimeoutError: If process 0 does not finish in time.
    DataError: If tensorflow-datasets is not installed.
    ImportError: If TensorFlow is not installed.
    RuntimeError: If downloading or building fails.

  >>> prepare_div2k("/tmp/tfds", manual_dir="/tmp/no-such-folder")
  Traceback (most recent call last):
  ...
  FileNotFoundError: /tmp/no-such-folder lacks DIV2K_train_HR.zip, ...
  """
  say = report or (lambda line: None)
  builder = div2k_builder(data_dir, config=config)
  path = builder.data_path  # An epath: it may be in a bucket.
  if process_index != 0:
    end = time.monotonic() + wait_seconds
    say(f"waiting for process 0 to prepare {path}")
    while not builder.is_prepared():
      if time.monotonic() > end:
        raise TimeoutError(
          f"{path} was not prepared within {wait_seconds:g} s; if the hosts do"
          " not share that folder, run python -m esrgan_jax.data.prepare on"
          " each of them first"
        )
      time.sleep(min(1.0, wait_seconds / 10))
      # What a builder knows of its folder, it has read when it was made.
      builder = div2k_builder(data_dir, config=config)
    return path
  if builder.is_prepared():
    return path

  urls = builder.builder_config.download_urls.values()
  zips = sorted({url.rpartition("/")[2] for url in urls})
  if manual_dir is not None:
    manual_dir = os.path.expanduser(manual_dir)
    missing = [
      name
      for name in zips
      if not os.path.isfile(os.path.join(manual_dir, name))
    ]
    if missing:
      raise FileNotFoundError(
        f"{manual_dir} lacks {', '.join(missing)}; get them from"
        f" {min(urls).rpartition('/')[0]}"
      )
  by_hand = (
    f"Without a network, put {', '.join(zips)} into a folder and name it as"
    " manual_dir (--config.data.manual_dir=FOLDER)"
  )
  if manual_dir is None and not _has_downloads(data_dir, len(zips)):
    _reach(min(urls), by_hand)
  say(f"preparing {path}")
  build(builder, manual_dir, "DIV2K", by_hand)
  return path


def _has_downloads(data_dir: str | os.PathLike | None, number: int) -> bool:
  """Whether TFDS has fetched all archives before, and needs no network."""
  import tensorflow_datasets as tfds

  root = os.fspath(data_dir or tfds.core.constants.DATA_DIR)
  if "://" in root:
    return True  # Not ours to judge.
  downloads = pathlib.Path(root).expanduser() / "downloads"
  return len(list(downloads.rglob("*DIV2*.zip"))) >= number


def _reach(url: str, by_hand: str) -> None:
  """Tries a server once: TFDS would try for minutes, in forty warnings."""
  parts = urllib.parse.urlsplit(url)
  if urllib.request.getproxies():
    return  # A proxy knows names and ways that this machine does not.
  port = parts.port or {"https": 443}.get(parts.scheme, 80)
  try:
    with socket.create_connection((parts.hostname, port), timeout=20):
      pass
  except OSError as error:
    raise RuntimeError(
      f"{parts.hostname}, where DIV2K is, cannot be reached"
      f" ({error.strerror or error}). {by_hand}"
    ) from error
