"""ESRGAN in JAX and Flax.

Images are float arrays `[..., H, W, 3]`, RGB, in [0, 1]. Everything here is a
pure function of arrays and pytrees, but for what reads and writes files, runs
on devices or compiles: `load`, `Upscaler` and a few more. All are imported,
with what they need, when first used. `esrgan_jax.steps` trains.

>>> import numpy as np
>>> import esrgan_jax
>>> model = esrgan_jax.load("realesrgan-x4plus-anime")
>>> model.upscale(np.zeros((6, 5, 3), np.uint8)).shape
(24, 20, 3)

| for | there is |
| --- | --- |
| upscaling | `load`, `Upscaler` |
| networks | `RRDBNet`, `SRResNet`, `SRVGGNetCompact`, \
`VGGStyleDiscriminator`, `SRGANDiscriminator`, `UNetDiscriminatorSN`, \
`init`, `interpolate_params` |
| files | `write_weights`, `save_checkpoint`, `load_checkpoint`, \
`load_measure` |
| training | `steps`: states, optimizers, and a step for each phase |
| pixel losses | `l1_loss`, `charbonnier_loss`, `mse_loss` |
| features | `perceptual_loss`, `vgg19_features`, `init_vgg19`, \
`vgg19_from_keras`, `vgg19_from_torchvision` |
| GAN losses | `relativistic_generator_loss`, \
`relativistic_discriminator_loss`, `vanilla_generator_loss`, \
`vanilla_discriminator_loss`, `wasserstein_generator_loss`, \
`wasserstein_critic_loss`, `gradient_penalty`, \
`least_squares_generator_loss`, `least_squares_discriminator_loss`, \
`hinge_discriminator_loss` |
| measures | `psnr`, `ssim`, `ssim_map`, `lpips`, `dists`, `niqe` |
| images | `imresize`, `imresize_uint8`, `rgb_to_y`, `pixel_unshuffle` |
| compiling | `compiler_options`, `enable_compilation_cache` |

`help(esrgan_jax.psnr)` is about one of them, and so for each.
"""

from __future__ import annotations

import importlib
import typing
import warnings

if typing.TYPE_CHECKING:
  from esrgan_jax import steps
  from esrgan_jax.compilation import (
    compiler_options,
    enable_compilation_cache,
    init,
  )
  from esrgan_jax.interpolate import interpolate_params
  from esrgan_jax.losses import (
    charbonnier_loss,
    gradient_penalty,
    hinge_discriminator_loss,
    l1_loss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    mse_loss,
    perceptual_loss,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
    vanilla_discriminator_loss,
    vanilla_generator_loss,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
  )
  from esrgan_jax.metrics import psnr, rgb_to_y, ssim, ssim_map
  from esrgan_jax.models.compact import SRVGGNetCompact
  from esrgan_jax.models.discriminators import VGGStyleDiscriminator
  from esrgan_jax.models.rrdb import RRDBNet
  from esrgan_jax.models.srgan_discriminator import SRGANDiscriminator
  from esrgan_jax.models.srresnet import SRResNet
  from esrgan_jax.models.unet_discriminator import UNetDiscriminatorSN
  from esrgan_jax.models.vgg import (
    init_vgg19,
    vgg19_features,
    vgg19_from_keras,
    vgg19_from_torchvision,
  )
  from esrgan_jax.naturalness import niqe
  from esrgan_jax.ops.pixels import pixel_unshuffle
  from esrgan_jax.perceptual import dists, lpips
  from esrgan_jax.resize import imresize, imresize_uint8
  from esrgan_jax.upscaling.upscaler import Upscaler, load
  from esrgan_jax.weights.checkpoints import load_checkpoint, save_checkpoint
  from esrgan_jax.weights.files import write_weights
  from esrgan_jax.weights.perceptual import load_measure

__version__ = "0.2.0"

# Imported when first used: the command must be able to tell of an interrupt
# before what takes a second, and loading what touches the world needs a reason.
_LAZY = {
  "RRDBNet": "esrgan_jax.models.rrdb",
  "SRGANDiscriminator": "esrgan_jax.models.srgan_discriminator",
  "SRResNet": "esrgan_jax.models.srresnet",
  "SRVGGNetCompact": "esrgan_jax.models.compact",
  "UNetDiscriminatorSN": "esrgan_jax.models.unet_discriminator",
  "Upscaler": "esrgan_jax.upscaling.upscaler",
  "VGGStyleDiscriminator": "esrgan_jax.models.discriminators",
  "charbonnier_loss": "esrgan_jax.losses",
  "compiler_options": "esrgan_jax.compilation",
  "dists": "esrgan_jax.perceptual",
  "enable_compilation_cache": "esrgan_jax.compilation",
  "gradient_penalty": "esrgan_jax.losses",
  "hinge_discriminator_loss": "esrgan_jax.losses",
  "imresize": "esrgan_jax.resize",
  "imresize_uint8": "esrgan_jax.resize",
  "init": "esrgan_jax.compilation",
  "init_vgg19": "esrgan_jax.models.vgg",
  "interpolate_params": "esrgan_jax.interpolate",
  "l1_loss": "esrgan_jax.losses",
  "least_squares_discriminator_loss": "esrgan_jax.losses",
  "least_squares_generator_loss": "esrgan_jax.losses",
  "load": "esrgan_jax.upscaling.upscaler",
  "load_checkpoint": "esrgan_jax.weights.checkpoints",
  "load_measure": "esrgan_jax.weights.perceptual",
  "lpips": "esrgan_jax.perceptual",
  "mse_loss": "esrgan_jax.losses",
  "niqe": "esrgan_jax.naturalness",
  "perceptual_loss": "esrgan_jax.losses",
  "pixel_unshuffle": "esrgan_jax.ops.pixels",
  "psnr": "esrgan_jax.metrics",
  "relativistic_discriminator_loss": "esrgan_jax.losses",
  "relativistic_generator_loss": "esrgan_jax.losses",
  "rgb_to_y": "esrgan_jax.metrics",
  "save_checkpoint": "esrgan_jax.weights.checkpoints",
  "ssim": "esrgan_jax.metrics",
  "ssim_map": "esrgan_jax.metrics",
  "vanilla_discriminator_loss": "esrgan_jax.losses",
  "vanilla_generator_loss": "esrgan_jax.losses",
  "vgg19_features": "esrgan_jax.models.vgg",
  "vgg19_from_keras": "esrgan_jax.models.vgg",
  "vgg19_from_torchvision": "esrgan_jax.models.vgg",
  "wasserstein_critic_loss": "esrgan_jax.losses",
  "wasserstein_generator_loss": "esrgan_jax.losses",
  "write_weights": "esrgan_jax.weights.files",
}

# Modules of the core, for who says `import esrgan_jax` and then goes by dots.
_MODULES = {
  "augment",
  "degradation",
  "interpolate",
  "losses",
  "metrics",
  "models",
  "naturalness",
  "ops",
  "perceptual",
  "resize",
  "steps",
  "tiling",
}

# Names that are leaving, with the version that has them no more.
_DEPRECATED = {
  "RRDB": ("esrgan_jax.models.blocks", "0.3"),
  "ResidualDenseBlock": ("esrgan_jax.models.blocks", "0.3"),
}

__all__ = [
  "RRDBNet",
  "SRGANDiscriminator",
  "SRResNet",
  "SRVGGNetCompact",
  "UNetDiscriminatorSN",
  "Upscaler",
  "VGGStyleDiscriminator",
  "charbonnier_loss",
  "compiler_options",
  "dists",
  "enable_compilation_cache",
  "gradient_penalty",
  "hinge_discriminator_loss",
  "imresize",
  "imresize_uint8",
  "init",
  "init_vgg19",
  "interpolate_params",
  "l1_loss",
  "least_squares_discriminator_loss",
  "least_squares_generator_loss",
  "load",
  "load_checkpoint",
  "load_measure",
  "lpips",
  "mse_loss",
  "niqe",
  "perceptual_loss",
  "pixel_unshuffle",
  "psnr",
  "relativistic_discriminator_loss",
  "relativistic_generator_loss",
  "rgb_to_y",
  "save_checkpoint",
  "ssim",
  "ssim_map",
  "steps",
  "vanilla_discriminator_loss",
  "vanilla_generator_loss",
  "vgg19_features",
  "vgg19_from_keras",
  "vgg19_from_torchvision",
  "wasserstein_critic_loss",
  "wasserstein_generator_loss",
  "write_weights",
]


def __getattr__(name: str) -> object:
  if name in _MODULES:
    return importlib.import_module(f"esrgan_jax.{name}")
  if name in _LAZY:
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value  # The next time, it is there.
    return value
  if name in _DEPRECATED:
    module, version = _DEPRECATED[name]
    warnings.warn(
      f"esrgan_jax.{name} goes in version {version}: RRDBNet is not made of it;"
      " esrgan_jax.models.reference has the same as a function",
      DeprecationWarning,
      stacklevel=2,
    )
    return getattr(importlib.import_module(module), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__, *_MODULES})
