"""Wrong inputs at every door, and right ones of every kind that pass."""

import functools

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify

import esrgan_jax
from esrgan_jax import checks
from tests import wrong_inputs
from tests.networks import random_params

DOORS = {
  "RRDBNet": lambda n, x: n["net"].apply({"params": n["params"]}, x),
  "plain": lambda n, x: (
    n["net"].clone(form="plain").apply({"params": n["params"]}, x)
  ),
  "Upscaler": lambda n, x: n["model"](x),
  "critic": lambda n, x: n["critic"].init(jax.random.key(0), x, train=False),
  "vgg19_features": lambda n, x: esrgan_jax.vgg19_features(
    n["vgg"], x, layers="conv1_2"
  ),
  "rgb_to_y": lambda n, x: esrgan_jax.rgb_to_y(x),
  "psnr": lambda n, x: esrgan_jax.psnr(x, x, crop_border=0, y_channel=True),
  "ssim": lambda n, x: esrgan_jax.ssim(x, x, crop_border=0, y_channel=False),
  "imresize": lambda n, x: esrgan_jax.imresize(x, scale=0.5),
  "l1": lambda n, x: esrgan_jax.l1_loss(x, x),
  "mse": lambda n, x: esrgan_jax.mse_loss(x, x),
  "charbonnier": lambda n, x: esrgan_jax.charbonnier_loss(x, x),
  "perceptual": lambda n, x: esrgan_jax.perceptual_loss({"a": x}, {"a": x}),
  "relativistic": lambda n, x: esrgan_jax.relativistic_generator_loss(x, x),
  "wasserstein": lambda n, x: esrgan_jax.wasserstein_critic_loss(x, x),
  "penalty": lambda n, x: esrgan_jax.gradient_penalty(
    jax.random.key(0), lambda x: x.sum((1, 2, 3)), x, x
  ),
}
WRONG = {
  "None": lambda x: None,
  "a list": lambda x: [x, x],
  "a dict": lambda x: {"lr": x},
  "a path": lambda x: "photo.png",
  "uint8": lambda x: x.astype(jnp.uint8),
  "uint16": lambda x: np.asarray(x).astype(np.uint16),
  "int32": lambda x: x.astype(jnp.int32),
  "bool": lambda x: x > 0,
  "complex": lambda x: x.astype(jnp.complex64),
  "a key": lambda x: jax.random.key(0),
  "objects": lambda x: np.asarray([None, 3]),
  "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("door", DOORS)
def test_no_door_takes_it(door, kind):
  names = wrong_inputs.names()
  wrong = WRONG[kind](names["image"])
  with pytest.raises((TypeError, ValueError), match=r"must be .*, got "):
    DOORS[door](names, wrong)


@pytest.mark.parametrize(
  "dtype",
  [
    jnp.bfloat16,
    pytest.param(jnp.float32, marks=pytest.mark.slow),
    pytest.param(jnp.float16, marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize("door", DOORS)
def test_all_doors_take_floats_that_are_traced(door, dtype):
  run = jax.vmap(functools.partial(DOORS[door], wrong_inputs.names()))
  jax.eval_shape(run, jax.ShapeDtypeStruct((2, 1, 16, 16, 3), dtype))


def test_the_page_says_what_is_said():
  assert wrong_inputs.PAGE.read_text() == wrong_inputs.page(), (
    "make it anew: python -m tests.wrong_inputs > docs/errors.md"
  )


def test_a_size_that_is_not_known_yet():
  batch, side = export.symbolic_shape("b, h")
  image = jax.ShapeDtypeStruct((batch, 4 * side, 8, 3), jnp.float32)
  run = jax.jit(lambda x: checks.check_images(x, channels=3) * 2)
  export.export(run)(image)
  with pytest.raises(ValueError, match=r"got float32\[b, 4\*h, 8, 3\]"):
    export.export(jax.jit(lambda x: checks.check_images(x, channels=1)))(image)


def test_they_leave_no_trace_in_a_program():
  def program(check):
    return str(jax.make_jaxpr(lambda x: check(x) * 2)(jnp.ones((1, 4, 4, 3))))

  assert program(checks.check_images) == program(lambda x: x)


@pytest.mark.parametrize(
  ("low", "high", "passes"),
  [(0, 1, True), (-0.3, 1.4, True), (0, 255, False), (-128, 0, False)],
)
def test_the_range_of_values_known_or_not(low, high, passes):
  values = np.linspace(low, high, 48, dtype=np.float32).reshape(1, 4, 4, 3)
  error, found = jax.jit(checkify.checkify(checks.check_range))(values)
  np.testing.assert_array_equal(found, values)
  if passes:
    error.throw()
    assert checks.check_range(values) is values
    return
  with pytest.raises(checkify.JaxRuntimeError, match=r"must be in \[0, 1\]"):
    error.throw()
  with pytest.raises(ValueError, match=r"must be in \[0, 1\], got values from"):
    checks.check_range(values)


@pytest.mark.slow
def test_the_range_in_a_step_that_is_checked():
  names = wrong_inputs.names()

  def loss(params, lr):
    lr = checks.check_range(lr, "lr")
    return names["net"].apply({"params": params}, lr).mean()

  run = jax.jit(checkify.checkify(jax.value_and_grad(loss)))
  error, (_, gradient) = run(names["params"], names["image"] + 0.5)
  error.throw()
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  error, _ = run(names["params"], names["image"] + 200)
  assert "lr must be in [0, 1]" in error.get()


def test_trees_of_any_mapping():
  names = wrong_inputs.names()
  frozen = flax.core.freeze(names["params"])
  model = esrgan_jax.Upscaler(names["net"], frozen)
  assert type(model.params) is type(model.params["body"]) is dict
  checks.check_params(frozen, names["params"], owner="a net")


def test_a_tree_of_real_width():
  net = esrgan_jax.RRDBNet(num_block=2)
  params = random_params(net, jnp.zeros((8, 8, 3)))
  checks.check_params(params, params, owner="it")
  other = net.clone(scale=2, unshuffle=1)
  with pytest.raises(ValueError, match="conv_up2"):
    jax.eval_shape(other.apply, {"params": params}, jnp.zeros((8, 8, 3)))
  with pytest.raises(ValueError, match="conv_up2/bias is not one of its"):
    esrgan_jax.Upscaler(other, params)
