"""VGG19 against PyTorch and Keras, layer by layer, on random weights."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax import losses
from esrgan_jax.models import vgg
from tests import golden

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def slim_params(seed=0, width=8):
  """A VGG19 of one eighth the width, with biases."""
  rng = np.random.default_rng(seed)
  params = {
    "normalization": {
      "mean": MEAN.astype(np.float32),
      "std": STD.astype(np.float32),
    }
  }
  channels = 3
  for name in vgg.CONV_LAYERS:
    out = width * min(2 ** (int(name[4]) - 1), 8)
    kernel = rng.standard_normal((3, 3, channels, out))
    params[name] = {
      "kernel": (kernel * (2 / (9 * channels)) ** 0.5).astype(np.float32),
      "bias": rng.standard_normal(out).astype(np.float32) * 0.1,
    }
    channels = out
  return params


def images(*shape, seed=0):
  return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_layers_are_vgg19s():
  assert len(vgg.CONV_LAYERS) == 16
  assert len(vgg.LAYERS) == 16 * 2 + 5
  # ESRGAN's `features[:35]` ends before the ReLU of conv5_4.
  assert vgg.LAYERS.index("conv5_4") == 34


def all_features(params, image):
  return vgg.vgg19_features(params, image, layers=vgg.LAYERS)


def test_every_layer_is_pytorchs():
  params = vgg.vgg19_from_torchvision(golden.vgg_state())
  actual = jax.jit(all_features)(params, golden.vgg_images()[0])
  expected = golden.load("vgg19")["layers"]
  for layer in vgg.LAYERS:
    message = f"{layer} is the first layer to differ"
    np.testing.assert_allclose(
      np.linalg.norm(actual[layer]),
      expected[f"norm {layer}"],
      rtol=1e-5,
      err_msg=message,
    )
    if layer in golden.WHOLE_LAYERS:
      np.testing.assert_allclose(
        actual[layer], expected[layer], atol=1e-5, err_msg=message
      )


def test_perceptual_distances_and_gradients_are_pytorchs():
  params = vgg.vgg19_from_torchvision(golden.vgg_state())

  def distances(sr, hr):
    layers = golden.DISTANCE_LAYERS
    sr, hr = (
      vgg.vgg19_features(params, image, layers=layers) for image in (sr, hr)
    )
    l1, l2 = (
      losses.perceptual_loss(sr, hr, layer_weights=layers, criterion=criterion)
      for criterion in ("l1", "l2")
    )
    return l2, l1

  run = jax.jit(jax.value_and_grad(distances, has_aux=True))
  (l2, l1), gradient = run(*golden.vgg_images())
  expected = golden.load("vgg19")["distance"]
  np.testing.assert_allclose([l1, l2], [expected["l1"], expected["l2"]], 1e-5)
  np.testing.assert_allclose(
    gradient,
    expected["gradient"],
    atol=1e-4 * np.abs(expected["gradient"]).max(),
  )


@pytest.mark.torch
@pytest.mark.parametrize("size", [(32, 48), (35, 41)])
def test_every_layer_is_pytorchs_when_larger(size):
  from tests.oracles import answers

  image = images(2, *size, 3)
  params = vgg.vgg19_from_torchvision(golden.vgg_state(8))
  actual = jax.jit(all_features)(params, image)
  for layer, expected in answers.vgg_layers(8, image).items():
    np.testing.assert_allclose(
      actual[layer],
      expected,
      atol=1e-4,
      err_msg=f"{layer} is the first layer to differ",
    )


@pytest.mark.torch
def test_state_dict_names_are_torchvisions(torchvision):
  import torch

  with torch.device("meta"):
    state_dict = torchvision.models.vgg19(weights=None).state_dict()
  ours = jax.eval_shape(vgg.init_vgg19, jax.random.key(0))
  by_name = {
    f"features.{vgg.LAYERS.index(layer)}": ours[layer]
    for layer in vgg.CONV_LAYERS
  }
  theirs = {n for n in state_dict if n.startswith("features.")}
  assert theirs == {f"{n}.{p}" for n in by_name for p in ("weight", "bias")}
  for name, layer in by_name.items():
    shape = tuple(state_dict[f"{name}.weight"].shape)
    assert shape == tuple(np.array(layer["kernel"].shape)[[3, 2, 0, 1]])
    assert tuple(state_dict[f"{name}.bias"].shape) == layer["bias"].shape


KERAS = """
  import sys
  import numpy as np
  import keras
  from keras.applications import vgg19

  weights, image = (dict(np.load(p)) for p in sys.argv[1:3])
  model = vgg19.VGG19(
    weights=None, include_top=False, input_shape=(None, None, 3)
  )
  layers = [layer for layer in model.layers if "block" in layer.name]
  convs = [layer for layer in layers if "conv" in layer.name]
  for conv in convs:
    conv.set_weights([weights[conv.name + "/0"], weights[conv.name + "/1"]])
  x = vgg19.preprocess_input(image["image"] * 255)
  outputs = {}
  for layer in layers:
    if "conv" in layer.name:
      layer.activation = keras.activations.linear
      outputs[layer.name + "/pre"] = np.asarray(layer(x))
      layer.activation = keras.activations.relu
    x = layer(x)
    outputs[layer.name] = np.asarray(x)
  np.savez(sys.argv[3], **outputs)
"""


@pytest.mark.release
def test_every_layer_equals_keras(tmp_path):
  # In a process of its own: Keras configures JAX when imported.
  environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
  probe = subprocess.run(
    [sys.executable, "-c", "import keras"],
    env=environment,
    check=False,
    capture_output=True,
  )
  if probe.returncode:
    pytest.skip("Keras is not installed")
  rng = np.random.default_rng(0)
  weights = {}
  channels = 3
  for name in vgg.CONV_LAYERS:
    out = min(64 * 2 ** (int(name[4]) - 1), 512)
    kernel = rng.standard_normal((3, 3, channels, out), np.float32)
    weights[f"block{name[4]}_conv{name[6]}"] = [
      kernel * np.float32((2 / (9 * channels)) ** 0.5),
      rng.standard_normal(out, np.float32) * np.float32(0.1),
    ]
    channels = out
  image = images(1, 32, 36, 3)
  paths = [str(tmp_path / f"{n}.npz") for n in ("weights", "image", "features")]
  np.savez(
    paths[0],
    **{f"{n}/{i}": w for n, ws in weights.items() for i, w in enumerate(ws)},
  )
  np.savez(paths[1], image=image)
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(KERAS), *paths],
    env=environment,
    check=False,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  expected = np.load(paths[2])
  params = vgg.vgg19_from_keras(weights)
  actual = jax.jit(lambda p, x: vgg.vgg19_features(p, x, layers=vgg.LAYERS))(
    params, image
  )
  for layer in vgg.LAYERS:
    if layer.startswith("pool"):
      name = f"block{layer[4]}_pool"
    else:
      name = f"block{layer[4]}_conv{layer[6]}"
      name += "/pre" if layer.startswith("conv") else ""
    scale = np.abs(expected[name]).max()
    np.testing.assert_allclose(
      actual[layer] / scale,
      expected[name] / scale,
      atol=1e-5,
      err_msg=f"{layer} is the first layer to differ",
    )


def test_normalisation_is_not_folded_into_the_border():
  # Zeros are padded after it: a mean-coloured image has no visible border.
  params = slim_params()
  params["conv1_1"]["bias"][:] = 0
  image = np.broadcast_to(MEAN.astype(np.float32), (16, 16, 3))
  features = vgg.vgg19_features(params, image, layers=("conv1_1",))
  np.testing.assert_allclose(features["conv1_1"], 0, atol=1e-6)


def test_stops_at_the_deepest_layer():
  params = slim_params()
  needed = ("normalization", "conv1_1", "conv1_2", "conv2_1")
  shallow = {name: params[name] for name in needed}
  image = images(16, 20, 3)
  features = vgg.vgg19_features(shallow, image, layers=["relu2_1", "conv1_2"])
  assert list(features) == ["relu2_1", "conv1_2"]
  assert features["relu2_1"].shape == (8, 10, 16)
  assert features["relu2_1"].min() == 0 > features["conv1_2"].min()
  whole = vgg.vgg19_features(params, image, layers="relu2_1")
  np.testing.assert_allclose(
    whole["relu2_1"], features["relu2_1"], rtol=1e-5, atol=1e-5
  )
  with pytest.raises(ValueError, match=r"params lack \['conv2_2'\]"):
    vgg.vgg19_features(shallow, image, layers=("conv2_2",))


def test_leading_axes_and_vmap_agree():
  params = slim_params()
  image = images(2, 2, 16, 16, 3)

  def features(x):
    return vgg.vgg19_features(params, x)["conv5_4"]

  whole = jax.jit(features)(image)
  assert whole.shape == (2, 2, 1, 1, 64)
  np.testing.assert_allclose(
    jax.jit(jax.vmap(features))(image), whole, atol=1e-4
  )
  np.testing.assert_allclose(
    jax.jit(features)(image[1, 0]), whole[1, 0], atol=1e-4
  )


def test_bfloat16_follows_float32():
  params = slim_params()
  image = images(1, 32, 32, 3)
  layers = ("conv1_2", "pool3", "conv5_4")
  run = jax.jit(
    lambda x, dtype: vgg.vgg19_features(params, x, layers=layers, dtype=dtype),
    static_argnums=1,
  )
  exact, half = run(image, None), run(image, jnp.bfloat16)
  for layer in layers:
    assert exact[layer].dtype == jnp.float32
    assert half[layer].dtype == jnp.bfloat16
    error = np.abs(half[layer].astype(np.float32) - exact[layer]).max()
    assert 0 < error < 0.05 * np.abs(exact[layer]).max()


@pytest.mark.slow
def test_random_weights_keep_the_scale():
  params = vgg.init_vgg19(jax.random.key(0))
  assert list(params) == ["normalization", *vgg.CONV_LAYERS]
  count = sum(params[n][p].size for n in vgg.CONV_LAYERS for p in params[n])
  assert count == 20_024_384  # torchvision's `vgg19().features`.
  features = jax.jit(
    lambda p, x: vgg.vgg19_features(p, x, layers=("conv1_1", "conv5_4"))
  )(params, images(1, 32, 32, 3))
  ratio = jnp.std(features["conv5_4"]) / jnp.std(features["conv1_1"])
  assert 0.2 < ratio < 5


@pytest.mark.parametrize(
  ("layers", "message"),
  [
    (("conv5_5",), r"got \['conv5_5'\]"),
    ((), r"got \(\)"),
    ("conv9_9", r"got \['conv9_9'\]"),
  ],
)
def test_unknown_layers_raise(layers, message):
  with pytest.raises(ValueError, match=message):
    vgg.vgg19_features(slim_params(), jnp.zeros((16, 16, 3)), layers=layers)


def test_bad_images_raise():
  params = slim_params()
  with pytest.raises(ValueError, match="16 pixels a side or more, got 15x32"):
    vgg.vgg19_features(params, jnp.zeros((15, 32, 3)))
  with pytest.raises(ValueError, match=r"\[\.\.\., H, W, 3\]"):
    vgg.vgg19_features(params, jnp.zeros((16, 16, 1)))


def test_foreign_weights_are_checked():
  with pytest.raises(ValueError, match=r"lack features\.0\.weight and 31 more"):
    vgg.vgg19_from_torchvision({})
  state_dict = {
    f"features.{vgg.LAYERS.index(name)}.{part}": np.zeros(3)
    for name in vgg.CONV_LAYERS
    for part in ("weight", "bias")
  }
  with pytest.raises(ValueError, match=r"features\.0\.weight must be .*\(3,\)"):
    vgg.vgg19_from_torchvision(state_dict)
  weights = {
    f"block{n[4]}_conv{n[6]}": [np.zeros(3), np.zeros(3)]
    for n in vgg.CONV_LAYERS
  }
  with pytest.raises(ValueError, match="block1_conv1 must be a convolution"):
    vgg.vgg19_from_keras(weights)
  weights.pop("block5_conv4")
  with pytest.raises(ValueError, match=r"lack block5_conv4$"):
    vgg.vgg19_from_keras(weights)
