"""TFLite, as LiteRT runs it on phones and small machines; no TensorFlow.

Input "image" and output "sr" of the signature "serving_default" are float32
`[N, H, W, 3]`, RGB in [0, 1]. For one size (`--size`) every runtime and
accelerator takes it; for any size, ask LiteRT to resize the input. float16 and
int8 are what the kernels are kept in: half and a quarter of the size.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
from typing import Any

from esrgan_jax.export import arrays, programs
from esrgan_jax.models import registry
from esrgan_jax.weights.files import Weights

__all__ = ["PROGRAM"]


def write(path: pathlib.Path, weights: Weights, options: Any) -> None:
  """Writes a `.tflite`; see `programs.Program`."""
  import jax
  import jax.numpy as jnp
  from litert_converter import converter_api_ext
  from litert_converter.mlir import ir, passmanager

  if options.size:
    shape = (1, *options.size, 3)
  else:
    side = registry.size_multiple(registry.make_generator(**weights.config))
    sizes = f"n, {side}*h, {side}*w" if side > 1 else "n, h, w"
    shape = (*jax.export.symbolic_shape(sizes), 3)
  program = jax.export.export(
    # The converter would fold factors itself, if the size is known.
    jax.jit(lambda x: arrays.forward(weights, x, fills_up=False, folds=True)),
    platforms=("cpu",),
  )(jax.ShapeDtypeStruct(shape, jnp.float32))

  context = ir.Context()
  converter_api_ext.prepare_mlir_context(context)
  with context, ir.Location.unknown():
    module = ir.Module.parse(str(program.mlir_module()), context)
    converter_api_ext.set_signature(
      module.operation, "serving_default", ["image"], ["sr"]
    )
    passes = passmanager.PassManager("builtin.module")
    converter_api_ext.run_convert_to_tfl_passes(
      module, passes, converter_api_ext.ConvertToTFLConfig()
    )
    passes.run(module.operation)
    content = converter_api_ext.export_flatbuffer_to_bytes(module.operation)
  path.write_bytes(content)
  if options.dtype != "float32":
    _quantize(path, options.dtype)


def _quantize(path: pathlib.Path, dtype: str) -> None:
  """Keeps the kernels in fewer bits; what is computed stays float32."""
  from litert_quantizer import algorithm_manager, qtyping, quantizer, recipe

  quantized = quantizer.Quantizer(str(path))
  if dtype == "int8":
    quantized.load_quantization_recipe(recipe.weight_only_wi8_afp32())
  else:
    quantized.update_quantization_recipe(
      regex=".*",
      operation_name=qtyping.TFLOperationName.CONV_2D,
      op_config=qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
          num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
      ),
      algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
    )
  smaller = path.with_name("smaller.tflite")
  talk = io.StringIO()  # A bar, and sizes.
  with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
    quantized.quantize().export_model(str(smaller))
  smaller.replace(path)


def run(path, images):
  """Runs such a file, in a process without this package."""
  from ai_edge_litert.interpreter import Interpreter

  interpreter = Interpreter(path)
  for image in images:
    place = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(place, image.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(place, image)
    interpreter.invoke()
    yield interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def read(path):
  """Reads the arrays of such a file, likewise."""
  import numpy as np
  from ai_edge_litert.interpreter import Interpreter

  interpreter = Interpreter(path)
  interpreter.allocate_tensors()
  for each in interpreter.get_tensor_details():
    scales = each["quantization_parameters"]["scales"]
    is_whole = each["dtype"] is np.int8
    if is_whole != bool(len(scales)):
      continue
    try:
      array = interpreter.get_tensor(each["index"])
    except ValueError:
      continue  # It is computed.
    if array.size == (array.shape or (1,))[-1]:
      array = array.ravel()  # A slope, or a bias that is added for itself.
    if is_whole:  # A scale for all, or for each of O.
      scales = scales.reshape(-1, *[1] * (array.ndim - 1))
      yield array.astype(np.float32) * scales, scales * 0.5001
    else:
      yield array, 0


PROGRAM = programs.Program(
  "tflite",
  "TFLite, any size or one: LiteRT, on phones and small machines",
  suffix=".tflite",
  packages=("litert_converter", "litert_quantizer", "ai_edge_litert"),
  runtime="ai-edge-litert",
  write=write,
  run=run,
  bounds={"float32": 2e-5, "float16": 2e-5, "int8": 0.25},
  half="kernels",
  read=read,
  takes_size=True,
  fills_up=False,
  folds=True,
)
