"""Whether another runtime makes of a photo what the model makes of it.

What it runs is `run` of the format, copied into a process that has neither JAX
nor this package, unless the runtime is JAX itself.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from esrgan_jax import images
from esrgan_jax.export import arrays, graphs
from esrgan_jax.models import registry
from esrgan_jax.text import printable
from esrgan_jax.weights.files import Weights

__all__ = ["Checked", "check", "sample_photo"]

_SIDE = (48, 64)  # Of the photo, so that the largest network takes seconds.

_PROCESS = """
import sys
for name in {absent}:
  sys.modules[name] = None
import numpy as np
{source}
with np.load(sys.argv[2]) as file:
  images = [file[str(i)] for i in range(len(file.files))]
results = run(sys.argv[1], images)
results = {{str(i): np.asarray(y, np.float32) for i, y in enumerate(results)}}
for i, (array, tolerance) in enumerate(read(sys.argv[1])):
  results[f"array_{{i}}"] = array
  results[f"tolerance_{{i}}"] = tolerance
np.savez(sys.argv[3], **results)
"""


@dataclasses.dataclass(frozen=True)
class Checked:
  """How far a program's results are from the model's.

  Attributes:
    sizes: Of what it was run on, `(N, H, W)` each; the first is the photo.
    difference: The largest from the model, of [0, 1].
    psnr: Of all results against the model's, in dB.
  """

  sizes: tuple[tuple[int, int, int], ...]
  difference: float
  psnr: float


@functools.cache
def sample_photo() -> np.ndarray:
  """Returns the photo that programs are tried on, uint8 `[48, 64, 3]`.

  From (88, 60) on, 128 x 96 pixels of scikit-image's `chelsea.png`, at half the
  size: a photo by Stefan van der Walt, who gave it to the public domain (CC0).

  >>> sample_photo().shape
  (48, 64, 3)
  """
  return images.read_image(pathlib.Path(__file__).with_name("photo.png")).pixels


def check(
  program: Any,
  path: str | os.PathLike[str],
  weights: Weights,
  options: Any,
  photo: np.ndarray | None,
  folder: pathlib.Path,
) -> Checked:
  """Runs a program and compares; see `programs.verify`.

  Args:
    program: Its format, a `programs.Program`.
    path: The file or folder.
    weights: The model.
    options: How it was written, `programs.Options`.
    photo: What it is run on, or None.
    folder: For what the processes tell each other.

  Returns:
    How far it is from the model.

  Raises:
    ValueError: If it fails, or is too far.
  """
  net = registry.make_generator(**weights.config)
  inputs = _inputs(net, program, weights, options, photo)
  found, kept = _run(program, path, inputs, folder)
  if program.read:
    _check_arrays(program, _due(program, weights), kept)
  with jax.default_device(_cpu()), jax.default_matmul_precision("highest"):
    exact = [_model(net, weights, x) for x in inputs]
    due = exact
    if options.dtype == "float16" and program.half == "all":
      variables = {"params": weights.params, **weights.collections}
      halved = jax.tree.map(
        lambda x: arrays.halved(x) if x.dtype == np.float32 else x, variables
      )
      rounded = arrays.with_variables(weights, halved)
      due = [_model(net, rounded, x) for x in inputs]
    elif options.dtype == "float16" and program.half == "kernels":
      folds = program.folds
      forward = jax.jit(
        lambda x: arrays.forward(weights, x, half=True, folds=folds)
      )
      due = [np.asarray(forward(x)) for x in inputs]
  bound = program.bounds[options.dtype]
  for x, y, wanted in zip(inputs, found, due, strict=True):
    size = "x".join(map(str, x.shape[1:3]))
    if y.shape != wanted.shape:
      raise ValueError(
        f"{program.runtime} makes {y.shape} of an image of {size}, and not"
        f" {wanted.shape}"
      )
    # One that is not trained gives results far from [0, 1].
    largest = max(1.0, float(np.abs(wanted).max()))
    difference = _largest(y, wanted)
    if not difference <= bound * largest:
      raise ValueError(
        f"{program.runtime} gives another result than the model: it differs by"
        f" {difference:.2g} on a photo of {size}, and {bound * largest:.2g} is"
        f" the most for {program.name} in {options.dtype}"
      )
  pairs = list(zip(found, exact, strict=True))
  errors = np.concatenate([(a - b).ravel() for a, b in pairs])
  mse = float(np.mean(np.square(errors, dtype=np.float64)))
  return Checked(
    tuple(x.shape[:3] for x in inputs),
    max(_largest(a, b) for a, b in pairs),
    -10 * float(np.log10(mse)) if mse else float("inf"),
  )


def _due(program: Any, weights: Weights) -> dict[str, np.ndarray]:
  """Returns the arrays that a file has to have; of a stranger's network none.

  It may have some that do nothing, and are not in its program.
  """
  if not graphs.has_graph(weights):
    return {}
  if program.keeps == "variables":
    variables = {"params": weights.params, **weights.collections}
    flat = jax.tree_util.tree_leaves_with_path(variables)
    return {
      jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
      for path, leaf in flat
    }
  return arrays.layers(weights, folds=program.folds)


def _check_arrays(
  program: Any,
  due_arrays: Mapping[str, np.ndarray],
  found: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
  """Raises unless each of the model's arrays is in the file."""
  for name, due in due_arrays.items():
    if not any(
      array.shape == due.shape
      and np.all(np.abs(array - due.astype(array.dtype)) <= tolerance)
      for array, tolerance in found
    ):
      raise ValueError(
        f"the {program.name} has other numbers than the model:"
        f" {printable(name)}, of {'x'.join(map(str, due.shape))}, is not there"
      )


def _largest(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.abs(a - b).max())


def _cpu() -> Any:
  """Where sums are of float32; None if JAX has been kept from it."""
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return None


def _model(net: Any, weights: Weights, lr: np.ndarray) -> np.ndarray:
  """What the model itself makes of images of any size."""
  h, w = lr.shape[1:3]
  side = registry.size_multiple(net)
  pads = ((0, 0), (0, -h % side), (0, -w % side), (0, 0))
  variables = {"params": weights.params, **weights.collections}
  plain = registry.plain_form(net)
  infer = jax.jit(lambda variables, lr: registry.infer(plain, variables, lr))
  sr = infer(variables, np.pad(lr, pads, mode="edge"))
  return np.asarray(sr)[:, : h * net.scale, : w * net.scale]


def _inputs(
  net: Any,
  program: Any,
  weights: Weights,
  options: Any,
  photo: np.ndarray | None,
) -> list[np.ndarray]:
  """A photo, and two smaller ones of an odd size where any will do."""
  photo = sample_photo() if photo is None else photo
  photo = photo[np.newaxis].astype(np.float32) / 255
  side = registry.size_multiple(net)
  size = options.size or [each - each % side for each in _SIDE]
  first = _middle(photo, size)
  if options.size:
    return [first]
  odd = [21, 35]
  if side > 1 and not (program.fills_up and arrays.takes_any_size(weights)):
    odd = [each + -each % side for each in odd]
  second = _middle(photo, odd)
  return [first, np.concatenate([second, second[:, ::-1]])]


def _middle(photo: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """The middle of a photo, continued by its mirror image where it ends."""
  for axis, wanted in enumerate(size, 1):
    have = photo.shape[axis]
    if have < wanted:
      pads = [(0, 0)] * photo.ndim
      pads[axis] = (0, wanted - have)
      photo = np.pad(photo, pads, mode="symmetric")
    start = (photo.shape[axis] - wanted) // 2
    photo = photo.take(range(start, start + wanted), axis)
  return np.ascontiguousarray(photo)


def _none(path):
  return ()


def _source(name: str, function: Any) -> str:
  """A function's text, as one of that name."""
  text = textwrap.dedent(inspect.getsource(function))
  return f"{text}\n{name} = {function.__name__}\n"


def _run(
  program: Any,
  path: str | os.PathLike[str],
  inputs: Sequence[np.ndarray],
  folder: pathlib.Path,
) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
  given, found = folder / "given.npz", folder / "found.npz"
  np.savez(given, **{str(i): x for i, x in enumerate(inputs)})
  absent = {"jax", "jaxlib", "flax", "esrgan_jax"} - {program.runtime}
  absent -= {"jaxlib"} if program.runtime == "jax" else set()
  source = _source("run", program.run)
  source += _source("read", program.read or _none)
  process = _PROCESS.format(absent=sorted(absent), source=source)
  quiet = {
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "PYTHONIOENCODING": "utf-8",
  }
  files = [os.path.abspath(each) for each in (path, given, found)]
  done = subprocess.run(
    [sys.executable, "-c", process, *files],
    env={**os.environ, **quiet},
    cwd=folder,
    capture_output=True,
    encoding="utf-8",
    errors="replace",
    check=False,
  )
  if done.returncode or not found.is_file():
    lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
    raise ValueError(
      f"{program.runtime} cannot run the export:"
      f" {printable(lines[-1], limit=1000)}"
    )
  with np.load(found) as file:
    results = [file[name] for name in file.files if name.isdigit()]
    kept = [name for name in file.files if name.startswith("array_")]
    kept = [
      (file[name], file[name.replace("array", "tolerance")]) for name in kept
    ]
  if len(results) != len(inputs):
    raise ValueError(
      f"{program.runtime} gave {len(results)} results of {len(inputs)}"
    )
  return results, kept
