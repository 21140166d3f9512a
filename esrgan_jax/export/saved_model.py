"""TensorFlow's SavedModel, with the interface of ESRGAN's page at TF Hub.

`model(images)`, `model.call(images)` and the signature "serving_default" take
float32 `[B, H, W, 3]`, RGB, 0..255, of any B, H and W, and give `[B, H * scale,
W * scale, 3]`, neither rounded nor clipped. TensorFlow runs it without JAX, on
CPU, GPU and TPU; packed as `.tar.gz` it is what `hub.load` fetches.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any

import numpy as np

from esrgan_jax.export import arrays, programs
from esrgan_jax.models import registry
from esrgan_jax.weights.files import Weights

__all__ = ["PROGRAM"]


def write(path: pathlib.Path, weights: Weights, options: Any) -> None:
  """Writes a SavedModel's folder; see `programs.Program`."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  import jax
  import tensorflow as tf
  from jax.experimental import jax2tf

  side = registry.size_multiple(registry.make_generator(**weights.config))
  sizes = "(b, h, w, 3)"
  if side > 1 and not arrays.takes_any_size(weights):
    sizes = f"(b, {side}*h, {side}*w, 3)"

  def upscale(variables, images):
    whole = arrays.with_variables(weights, variables)
    return arrays.forward(whole, images / 255) * 255

  # One GPU's memory is not for both programs, and nothing is computed here.
  with contextlib.suppress(RuntimeError):  # TensorFlow is at work already.
    tf.config.set_visible_devices([], "GPU")
  function = jax2tf.convert(
    upscale,
    polymorphic_shapes=[None, sizes],
    with_gradient=False,
    native_serialization_platforms=("cpu", "cuda", "tpu"),
  )
  spec = tf.TensorSpec([None, None, None, 3], tf.float32, name="input_0")
  signature = {"autograph": False, "input_signature": [spec]}

  class Model(tf.Module):
    """What is saved; its variables are the model's."""

    def __init__(self):
      super().__init__()
      given = {"params": weights.params, **weights.collections}
      self.variables_of_model = jax.tree.map(
        lambda x: tf.Variable(np.asarray(x), trainable=False), given
      )

    @tf.function(**signature)
    def __call__(self, images):
      return function(self.variables_of_model, images)

    call = __call__

  model = Model()
  tf.saved_model.save(
    model,
    str(path),
    signatures={"serving_default": model.__call__},
    options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
  )


def run(path, images):
  """Runs such a folder, in a process without this package."""
  import tensorflow as tf

  # It has to be kept: without it, its variables are gone.
  model = tf.saved_model.load(path)
  serve = model.signatures["serving_default"]
  for i, image in enumerate(images):
    given = tf.constant(image * 255)
    if i == 0:
      served = serve(input_0=given)["output_0"]
      if not bool(tf.reduce_all(served == model(given))):
        raise ValueError("the signature and the call differ")
    yield model.call(given).numpy() / 255


PROGRAM = programs.Program(
  "saved_model",
  "TensorFlow's SavedModel, as at TF Hub, any size; a folder or .tar.gz",
  suffix="",
  packages=("tensorflow",),
  runtime="tensorflow",
  write=write,
  run=run,
  bounds={"float32": 2e-5},
)
