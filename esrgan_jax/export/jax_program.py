"""A model as one program of JAX's, for images of any number and size.

Whoever runs it needs jax alone, and none of this package's code:

  program = jax.export.deserialize(bytearray(pathlib.Path(NAME).read_bytes()))
  sr = program.call(lr)  # float32 [N, H, W, C] in [0, 1], on CPU, GPU or TPU

It is StableHLO with the parameters inside, traced from the plain form of the
network (`RRDBNet(form="plain")`), for the fast forms are chosen by size.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from esrgan_jax.export import programs
from esrgan_jax.models import registry
from esrgan_jax.weights import files

__all__ = ["FORMATS", "PLATFORMS", "PROGRAM", "write"]

PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: pathlib.Path, weights: files.Weights, *, dtype: str) -> None:
  """Writes a `.jax`; see `esrgan_jax.export.Writer`."""
  net = registry.plain_form(registry.make_generator(**weights.config))
  variables = jax.tree.map(
    lambda x: np.asarray(x, dtype) if x.dtype == np.float32 else x,
    {"params": weights.params, **weights.collections},
  )

  def upscale(lr):
    # What is kept in half the size is computed with in float32.
    full = jax.tree.map(
      lambda x: x.astype(jnp.float32) if x.dtype == np.float16 else x,
      jax.tree.map(jnp.asarray, variables),
    )
    return registry.infer(net, full, lr)

  side = registry.size_multiple(net)
  sizes = f"n, {side}*h, {side}*w" if side > 1 else "n, h, w"
  channels = getattr(net, "num_in_ch", 3)
  shape = (*jax.export.symbolic_shape(sizes), channels)
  program = jax.export.export(jax.jit(upscale), platforms=PLATFORMS)(
    jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  path.write_bytes(program.serialize())


def run(path, images):
  """Runs such a file, in a process without this package."""
  import jax

  with open(path, "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
  for image in images:
    yield program.call(image)


def read(path):
  """Reads the constants of such a file, likewise."""
  import jax
  import numpy as np
  from jax.extend.mlir import ir
  from jax.interpreters import mlir

  with open(path, "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
  found = []

  def note(operation):
    if operation.name == "stablehlo.constant":
      found.append(np.array(operation.attributes["value"]))
    return ir.WalkResult.ADVANCE

  with mlir.make_ir_context():
    ir.Module.parse(program.mlir_module()).operation.walk(note)
  for array in found:
    yield array, 0


PROGRAM = programs.Program(
  "stablehlo",
  "StableHLO for jax.export, any size: CPU, GPU and TPU",
  suffix=".jax",
  packages=("jax", "flatbuffers"),
  runtime="jax",
  write=lambda path, weights, options: write(
    path, weights, dtype=options.dtype
  ),
  run=run,
  bounds={"float32": 2e-5, "float16": 2e-5},
  half="all",
  read=read,
  keeps="variables",
  fills_up=False,
)

# Suffix, title, and what raises if such a file cannot be written here.
FORMATS = ((".jax", "a program for jax.export, on CPU, GPU and TPU", write),)
