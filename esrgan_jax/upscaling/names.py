"""What results are called: beside their images, or in a folder."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from itertools import chain

from esrgan_jax import images, video
from esrgan_jax.errors import UsageError
from esrgan_jax.text import printable
from esrgan_jax.upscaling.inputs import Input
from esrgan_jax.upscaling.result_size import ResultSize

__all__ = ["FIELDS", "SUFFIXES", "Naming", "check_template", "output_of"]

FIELDS = (
  "name",
  "suffix",
  "type",
  "folder",
  "model",
  "alpha",
  "scale",
  "width",
  "height",
)
# Of formats that hold one picture, of those for several, and of clips.
SUFFIXES: Mapping[str | None, Collection[str]] = {
  None: (*images.OUTPUT_SUFFIXES, ".zarr"),  # Which is a folder.
  "frame": images.ANIMATION_SUFFIXES,
  "page": [s for s, name in images.OUTPUT_SUFFIXES.items() if name == "TIFF"],
  "clip": video.OUTPUT_SUFFIXES,
}
_TEMPLATE = "{name}{suffix}"
_FIELD = re.compile(r"\{([^{}]*)\}")
_OF_SIZE = {"width", "height", "scale"}
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f/\\:*?"<>|]+')
_WEIGHTS = re.compile(
  r"\.(safetensors|(pth|pt)(\.tar)?|h5|param|bin|ckpt)$", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming:
  """How results are named.

  Attributes:
    model: The model's name.
    model_scale: Its scale.
    alpha: Its share, where it is mixed with another.
    size: The size of results.
    file: The one result's name; None if there may be several.
    folder: Where results go; None: beside their images.
    template: Name of a result, with `FIELDS` in braces; None: `{name}{suffix}`.
      It may have folders in it, and a suffix of a format.
    suffix: What a name ends with, with fields likewise; None: `_x4` or the
      like beside images, nothing in a folder.
    format: Suffix of the results' format; None: as the image's. One of clips
      counts for them alone, and one of images for these; so does a template's.
    lossless: Whether the format must be a lossless one, where it is not given.

  >>> naming = Naming(model="toy", model_scale=4, template="{name}-{model}")
  >>> naming.target(Input(pathlib.Path("in/a.bmp"))).as_posix()
  'in/a-toy.bmp'
  """

  model: str = ""
  model_scale: int = 4
  alpha: float = 1.0
  size: ResultSize = dataclasses.field(default_factory=ResultSize)
  file: pathlib.Path | None = None
  folder: pathlib.Path | None = None
  template: str | None = None
  suffix: str | None = None
  format: str | None = None
  lossless: bool = False

  def __post_init__(self):
    for text in (self.template, self.suffix):
      check_template(text or "")

  @property
  def label(self) -> str:
    """What tells of the size of results in their names, such as `x4`."""
    return self.size.label(model_scale=self.model_scale)

  def target(
    self,
    image: Input,
    size: tuple[int, int] | None = None,
    *,
    kind: str | None = None,
  ) -> pathlib.Path:
    """Returns the name of an image's result.

    Args:
      image: The image.
      size: Its width and height, upright; only where they are in the template.
      kind: "frame" or "page" if it is several pictures, "clip" if it is one;
        None: it is one picture.

    Returns:
      The file; the folder of several files, where `each` tells of such.

    Raises:
      ValueError: If the size is needed and is not known, or the name leads
        elsewhere.
    """
    if self.file:
      return self.file
    source = image.path
    suffix = self.suffix
    if suffix is None:
      suffix = "" if self.folder else f"_{self.label}"
    name = (self.template or _TEMPLATE).replace("{suffix}", suffix)
    if self._suffix_of_template:
      name = name.removesuffix(self._suffix_of_template)
    values = {
      "name": source.stem,
      "type": source.suffix[1:],
      "folder": pathlib.Path(os.path.abspath(source)).parent.name,
      "model": _tidy(_WEIGHTS.sub("", self.model)),
      "alpha": f"{self.alpha:.12g}",
      **self._of_size(source, size, {*_FIELD.findall(name)}),
    }
    name = _FIELD.sub(lambda match: values[match[1]], name)
    if not os.path.basename(name).strip(" ."):
      raise ValueError(
        f"{printable(source)}: '{printable(self.template or '')}' gives its"
        " result no name; add {name}"
      )
    folder = self.folder / image.below if self.folder else source.parent
    ending = "" if self.each(image, kind) else self._ending(image, kind)
    return folder / f"{name}{ending}"

  def wider(self) -> list[str]:
    """Returns templates by which more results have names of their own.

    >>> Naming(template="a.png").wider()
    ['{folder}_a.png', 'a_{type}.png', '{folder}_a_{type}.png']
    """
    template, ending = self.template, self._suffix_of_template
    if template is None:
      template = "{name}" if self.folder and not self.suffix else _TEMPLATE
    folders, name = os.path.split(template.removesuffix(ending))
    return [
      os.path.join(folders, f"{before}{name}{after}{ending}")
      for before, after in (
        ("{folder}_", ""),
        ("", "_{type}"),
        ("{folder}_", "_{type}"),
      )
    ]

  def each(self, image: Input, kind: str | None) -> str | None:
    """Returns the suffix of files for one frame each; None if one holds all.

    Args:
      image: The image.
      kind: See `target`.
    """
    ending = self._ending(image, kind)
    if kind in (None, "clip") or self.file or ending.lower() in SUFFIXES[kind]:
      return None
    return ending

  @property
  def _suffix_of_template(self):
    suffix = pathlib.PurePath(self.template or "").suffix
    return suffix if suffix.lower() in {*chain(*SUFFIXES.values())} else ""

  def _ending(self, image, kind):
    for asked in (self.format and f".{self.format}", self._suffix_of_template):
      if asked and (asked.lower() in SUFFIXES["clip"]) == (kind == "clip"):
        return asked
    ending = image.path.suffix
    if kind == "clip":
      is_known = ending.lower() in SUFFIXES[kind]
      return ending if is_known and not self.lossless else ".mkv"
    known = {*SUFFIXES[None], *SUFFIXES[kind]}
    if ending.lower() not in known or (
      self.lossless
      and ending.lower() != ".zarr"
      and not images.can_be_lossless(f"a{ending}")
    ):
      return ".png" if kind != "page" else ".tif"
    return ending

  def _of_size(self, source, size, wanted):
    by_scale = self.size == ResultSize(scale=self.size.scale)
    if not wanted & ({"width", "height"} if by_scale else _OF_SIZE):
      return {"scale": f"{self.size.scale or self.model_scale:g}"}
    if size is None:
      fields = " and ".join(f"{{{field}}}" for field in wanted & _OF_SIZE)
      raise ValueError(
        f"{printable(source)}: its header does not tell its size; leave"
        f" {fields} out of its result's name"
      )
    height, width = self.size.of(size[::-1], model_scale=self.model_scale)
    scale = max(width, height) / max(size)
    values = {"width": width, "height": height, "scale": f"{scale:.3g}"}
    return {field: str(value) for field, value in values.items()}


def check_template(text: str) -> str:
  """Raises if a name's template cannot be meant.

  Args:
    text: With `FIELDS` in braces.

  Returns:
    The text.

  Raises:
    ValueError: If there are other braces, or it leads to another folder than
      one below that of the results.

  >>> check_template("{nam}")
  Traceback (most recent call last):
  ...
  ValueError: '{nam}' has {nam}; fields are {name} {suffix} {type} {folder} ...
  """
  fields = " ".join(f"{{{field}}}" for field in FIELDS)
  shown = printable(text)
  for match in _FIELD.finditer(text):
    if match[1] not in FIELDS:
      raise ValueError(
        f"'{shown}' has {printable(match[0])}; fields are {fields}"
      )
  if re.search("[{}]", _FIELD.sub("", text)):
    raise ValueError(f"'{shown}' has a brace alone; fields are {fields}")
  if (
    "\0" in text
    or pathlib.PurePath(text).is_absolute()
    or ".." in (pathlib.PurePath(text).parts)
  ):
    raise ValueError(f"'{shown}' leads out of the folder of the results")
  return text


def _tidy(name: str) -> str:
  """Returns a name in which nothing means a folder or a device."""
  return _NOT_IN_NAMES.sub("_", name).strip("_. ")


def output_of(
  output: str | None, count: int
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
  """Tells what a user means by the name of an output.

  Args:
    output: The name; nothing: results lie beside their images.
    count: Number of images.

  Returns:
    The folder, or None; the one file, or None.

  Raises:
    UsageError: If it can be neither.

  >>> output_of("large.png", 1)[1].name, output_of("large", 1)[0].name
  ('large.png', 'large')
  """
  if output is None:
    return None, None
  if not output:
    raise UsageError("'' is no name of an output; . is the current folder")
  path = pathlib.Path(output)
  suffixes = (*SUFFIXES[None], *video.OUTPUT_SUFFIXES)
  if path.suffix.lower() == ".zarr" and count == 1:
    return None, path
  if path.is_dir() or output.endswith(("/", os.sep)) or not path.suffix:
    if path.exists() and not path.is_dir() and not path.is_file():
      raise UsageError(
        f"{path} is a device or a pipe; choose a file, a folder, or - for"
        " standard output"
      )
    if os.path.lexists(path) and not path.is_dir():
      raise UsageError(f"{path} is not a folder; choose another name")
    return path, None
  if path.suffix.lower() not in {*suffixes, *images.ANIMATION_SUFFIXES}:
    if count > 1:
      return path, None
    raise UsageError(
      f"{path}: cannot write {path.suffix} files; choose one of"
      f" {', '.join(suffixes)}"
    )
  if count > 1:
    raise UsageError(
      f"{path}: {count} inputs cannot go to one file; give a folder"
    )
  return None, path
