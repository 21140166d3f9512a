"""Wrong inputs of the library, and what is said of each: `docs/errors.md`.

python -m tests.wrong_inputs > docs/errors.md
"""

import functools
import pathlib
import re

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax

import esrgan_jax
from esrgan_jax import checks, steps
from tests.networks import random_params

PAGE = pathlib.Path(__file__).parent.parent / "docs/errors.md"

_HEAD = """\
# Inputs that are wrong

What the library says of them. Kinds, shapes and dtypes are looked at while a
program is traced, once, and cost it nothing. What is no array of floats is a
`TypeError`, what has another shape a `ValueError`.

Floats up to 255 have the right dtype and shape. `Upscaler.upscale` looks at its
image's values; inside of programs, `esrgan_jax.checks.check_range` does, where
`jax.experimental.checkify` makes a function of it that returns the error:

```python
import jax
import jax.numpy as jnp
from jax.experimental import checkify
import esrgan_jax
from esrgan_jax import checks

net = esrgan_jax.RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
lr = jnp.zeros((1, 8, 8, 3))
params = net.init(jax.random.key(0), lr)["params"]


@jax.jit
@checkify.checkify
def run(params, lr):
  return net.apply({"params": params}, checks.check_range(lr, "lr"))


error, sr = run(params, lr)
error.throw()  # Raises, if `lr` is far outside of [0, 1].
```

The table is made by `python -m tests.wrong_inputs`, and a test compares it.
There, `image` is float32 `[1, 16, 16, 3]`, `uint8` the same in 8 bits, `net` an
RRDBNet, `params` its parameters, `critic` a discriminator for 16 pixels, `vgg`
VGG19's parameters, `step` a `steps.psnr_step` of `net` and `adam`, `state` its
state, `batch` images for it, and `lookahead` an `optax.lookahead`.
"""

# By what they are about: calls, as one writes them.
CALLS = {
  "Images": (
    "vgg19_features(vgg, uint8, layers='conv1_2')",
    "steps.vgg_perceptual(vgg, layer_weights=one)(image, uint8)",
    "net.apply({'params': params}, uint8)",
    "net.apply({'params': params}, image > 0.5)",
    "net.apply({'params': params}, image.astype(jnp.complex64))",
    "net.apply({'params': params}, image.astype(jnp.int32))",
    "net.apply({'params': params}, None)",
    "net.apply({'params': params}, [image, image])",
    "net.apply({'params': params}, 'photo.png')",
    "net.apply({'params': params}, image[:0])",
    "net.apply({'params': params}, jnp.moveaxis(image, -1, 1))",
    "net.apply({'params': params}, image[0, :, :, 0])",
    "net.apply({'params': params}, image[..., :1])",
    "model(uint8)",
    "model(jnp.moveaxis(image, -1, 1))",
    "model.upscale('photo.png')",
    "model.upscale(255 * (image[0] + 1))",
    "model.upscale(image)",
    "jax.jit(model.upscale)(image[0])",
    "critic.init(jax.random.key(0), image[0], train=False)",
    "rgb_to_y(uint8)",
    "psnr(image, uint8, crop_border=0, y_channel=False)",
    "psnr(image, image[0], crop_border=0, y_channel=False)",
    "jax.jit(psnr)(image, image, crop_border=0, y_channel=False)",
    "psnr(image, image, crop_border=1.5, y_channel=False)",
    "ssim(image, None, crop_border=0, y_channel=False)",
    "pixel_unshuffle(image, factor=0)",
    "imresize(uint8, scale=0.5)",
    "imresize(image, scale=(0.5, 0.5))",
    "imresize(image, size=8)",
    "imresize_uint8(image, scale=0.5)",
    "jax.jit(functools.partial(imresize_uint8, scale=0.5))(uint8)",
    "imresize(image, scale=0.5, antialias='no')",
    "psnr(image, image, crop_border=0, y_channel='no')",
    "psnr(image[..., :2], image[..., :2], crop_border=0, y_channel=True)",
    "lpips({}, image, image)",
    "niqe({}, image)",
    "checks.check_range(255 * (image + 1))",
  ),
  "Losses": (
    "l1_loss(image, uint8)",
    "l1_loss(image, image[0])",
    "mse_loss(image[:0], image[:0])",
    "perceptual_loss(image, image)",
    "vanilla_generator_loss(None)",
    "relativistic_generator_loss(image > 0, image)",
    "relativistic_generator_loss(image, image, halve='no')",
    "charbonnier_loss(image, image, epsilon=None)",
    "gradient_penalty(jax.random.key(0), critic, image[0], image[0])",
    "gradient_penalty(0, critic, image, image)",
  ),
  "Networks and their parameters": (
    "RRDBNet(scale=5)",
    "RRDBNet(num_block=0)",
    "RRDBNet(dtype=jnp.uint8)",
    "RRDBNet(dtype='foo')",
    "RRDBNet(remat='no')",
    "RRDBNet(**small, scale=2, unshuffle=1).apply({'params': params}, image)",
    "VGGStyleDiscriminator(input_size=100)",
    "VGGStyleDiscriminator(norm='group')",
    "Upscaler(RRDBNet, params)",
    "Upscaler(None, params)",
    "Upscaler(lambda lr: lr, params)",
    "Upscaler(critic, params)",
    "Upscaler(net, None)",
    "Upscaler(net, {'params': params})",
    "Upscaler(RRDBNet(**small, scale=2, unshuffle=1), params)",
    "Upscaler(RRDBNet(**{**small, 'num_block': 2}), params)",
    "Upscaler(net, jax.tree.map(jnp.int8, params))",
    "model.with_params({})",
    "setattr(model, 'params', params)",
    "vgg19_features(params, image, layers='conv1_2')",
    "vgg19_features({**vgg, 'conv1_1': layer}, image, layers='conv1_2')",
    "interpolate_params(params, params, alpha=np.float32('nan'))",
    "interpolate_params(params, params, alpha=jnp.array(jnp.inf))",
    "interpolate_params(params, params, alpha='0.5')",
    "interpolate_params(params, flax.core.freeze(params), alpha=0.5)",
    "interpolate_params(params, {}, alpha=0.5)",
    "interpolate_params(None, None, alpha=0.5)",
    "init(net, 0)",
    "init_vgg19(None)",
    "load(None)",
    "load_checkpoint(None)",
    "load_measure('fid')",
    "save_checkpoint(5, params, {'scale': 4})",
    "jax.jit(lambda p: write_weights('a.pth', p, {'scale': 4}))(params)",
  ),
  "Steps": (
    "steps.create_psnr_state(None, net, adam)",
    "steps.create_psnr_state(jax.random.key(0), RRDBNet, adam)",
    "steps.create_psnr_state(jax.random.key(0), net, optax.adam)",
    "steps.create_psnr_state(jax.random.key(0), net, optax.lbfgs())",
    "steps.create_psnr_state(jax.random.key(0), net, lookahead)",
    "step(state, None)",
    "step(state, {'lr': image})",
    "step(None, batch)",
    "step(state, batch, axis_name='data')",
    "step(state, batch, accumulate=1.5)",
    "step(state, batch, ema_decay='a')",
    "step(state, batch, seed=None)",
    "step(state, batch, pixel_loss='l3')",
    "step(state, batch, pixel_loss=lambda sr, hr: sr - hr)",
    "steps.make_optimizer(None)",
  ),
}


@functools.cache
def names():
  """What the calls are made of."""
  small = {"num_feat": 8, "num_block": 1, "num_grow_ch": 4}
  net = esrgan_jax.RRDBNet(**small)
  image = jnp.zeros((1, 16, 16, 3), jnp.float32)  # Even with 64 bits.
  params = random_params(net, image)
  shapes = {"conv1_1": (3, 3, 3, 4), "conv1_2": (3, 3, 4, 4)}
  vgg = {
    name: {
      "kernel": jnp.ones(shape, jnp.float32),
      "bias": jnp.ones(shape[-1], jnp.float32),
    }
    for name, shape in shapes.items()
  }
  vgg["normalization"] = {"mean": jnp.zeros(3), "std": jnp.ones(3)}
  adam = optax.adam(1e-4)
  own = {
    "adam": adam,
    "batch": {"lr": image, "hr": image.repeat(4, 1).repeat(4, 2)},
    "checks": checks,
    "critic": esrgan_jax.VGGStyleDiscriminator(num_feat=2, input_size=16),
    "flax": flax,
    "functools": functools,
    "image": image,
    "jax": jax,
    "jnp": jnp,
    "layer": vgg["conv1_2"],
    "lookahead": optax.lookahead(adam, 5, 0.5),
    "model": esrgan_jax.Upscaler(net, params, devices=jax.devices()[:1]),
    "net": net,
    "np": np,
    "one": {"conv1_2": 1.0},
    "optax": optax,
    "params": params,
    "small": small,
    "state": steps.create_psnr_state(
      jax.random.key(0), net, adam, params=params
    ),
    "step": functools.partial(steps.psnr_step, generator=net, optimizer=adam),
    "steps": steps,
    "uint8": image.astype(jnp.uint8),
    "vgg": vgg,
  }
  return {name: getattr(esrgan_jax, name) for name in esrgan_jax.__all__} | own


def said(call):
  """The kind and the message of the error that a call raises."""
  try:
    eval(call, dict(names()))  # Those above, and nothing else.
  except (AttributeError, TypeError, ValueError) as error:
    # JAX adds remarks of its own, to one that it has passed on.
    return type(error).__name__, str(error).partition("\n")[0]
  raise AssertionError(f"nothing is said of {call}")


def page():
  """The text of `docs/errors.md`."""
  parts = [_HEAD]
  for heading, calls in CALLS.items():
    parts.append(f"\n## {heading}\n\n| | |\n| --- | --- |\n")
    for call in calls:
      kind, message = said(call)
      message = re.sub(r"([|<>*_`\[\]])", r"\\\1", message)
      parts.append(f"| `{call}` | {kind}: {message} |\n")
  return "".join(parts)


if __name__ == "__main__":
  print(page(), end="")
