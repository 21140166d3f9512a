"""SRGAN's generator in Keras, as krasserm's super-resolution has it: an oracle.

Written from the architecture; images are in [0, 255].
"""

import keras
import tensorflow as tf
from keras import layers

from tests import golden


def generator(num_up, feat=4, num_block=2):
  """Maps `[B, H, W, 3]` to `2**num_up` times the size."""
  image = keras.Input((None, None, 3))
  x = layers.Rescaling(1 / 255)(image)
  first = x = _slope(_conv(feat, 9)(x))
  for _ in range(num_block):
    y = _slope(layers.BatchNormalization()(_conv(feat)(x)))
    y = layers.BatchNormalization()(_conv(feat)(y))
    x = layers.Add()([x, y])
  x = layers.BatchNormalization()(_conv(feat)(x))
  x = layers.Add()([first, x])
  for _ in range(num_up):
    x = layers.Lambda(tf.nn.depth_to_space, arguments={"block_size": 2})(
      _conv(4 * feat)(x)
    )
    x = _slope(x)
  x = _conv(3, 9, activation="tanh")(x)
  x = layers.Rescaling(127.5, offset=127.5)(x)
  net = keras.Model(image, x)
  for layer in net.layers:
    arrays = layer.get_weights()
    layer.set_weights([_draw(n, layer.name, a) for n, a in enumerate(arrays)])
  return net


def _conv(num_out, side=3, **options):
  return layers.Conv2D(num_out, side, padding="same", **options)


def _slope(x):
  return layers.PReLU(shared_axes=[1, 2])(x)


def _draw(index, name, array):
  value = golden.draw(f"keras {index} {name}", *array.shape) / 3
  # BatchNorm's scales and variances are about one.
  return value + 1 if name.startswith("batch") and index in (0, 3) else value
