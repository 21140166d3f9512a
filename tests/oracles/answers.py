"""What PyTorch says of the networks, losses and steps of `tests.golden`.

Each function gives `{case: {name: array}}`, of names as PyTorch has them and of
our images' layout.
"""

import jax
import numpy as np
import torch
from skimage import data
from torch.nn import functional

from esrgan_jax.weights import files, zoo
from esrgan_jax.weights.dialects import rrdb as names
from tests import golden
from tests.oracles import torch_measures, torch_srgan, torch_steps
from tests.oracles.torch_compact import SRVGGNetCompact
from tests.oracles.torch_discriminator import (
  UNetDiscriminatorSN,
  VGGStyleDiscriminator,
)
from tests.oracles.torch_rrdb import RRDBNet
from tests.oracles.torch_steps import to_numpy, to_torch, with_state
from tests.oracles.torch_vgg import VGG19


def generator():
  """Every form's image; the gradients of one; the order of unshuffling."""
  cases = {}
  for scale, unshuffle in golden.FORMS:
    lr, net = _generator(scale, unshuffle)
    cases[f"x{scale} unshuffle {unshuffle}"] = {"sr": _image(net(lr))}
  lr, net = _generator(4, 1)
  lr.requires_grad_()
  sr = net(lr)
  cotangent = to_torch(golden.draw("cotangent", *_image(sr).shape))
  (sr * cotangent).sum().backward()
  grads = {name: p.grad for name, p in net.named_parameters()}
  cases["gradients"] = {"lr": _image(lr.grad), **to_numpy(grads)}
  image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
  order = functional.pixel_unshuffle(image, 2).permute(0, 2, 3, 1)
  cases["unshuffle"] = {"order": order.numpy().astype(np.int16)}
  return cases


def _generator(scale, unshuffle):
  config = golden.generator_config(scale, unshuffle)
  net = with_state(RRDBNet(**config), golden.generator_state(config))
  return to_torch(golden.lr_image(unshuffle)), net


def discriminator(networks=golden.DISCRIMINATORS):
  """Logits in both modes, running statistics, gradients."""
  cases = {}
  for num_feat, size in networks:
    net = with_state(
      VGGStyleDiscriminator(num_feat, size),
      golden.discriminator_state(num_feat, size),
    )
    image, cotangent = map(torch.tensor, golden.discriminator_input(size))
    image = image.permute(0, 3, 1, 2).double().requires_grad_()
    evaluated = net.eval()(image)[:, 0]
    logits = net.train()(image)[:, 0]
    (logits * cotangent).sum().backward()
    buffers = {n: b for n, b in net.named_buffers() if "running" in n}
    cases[str(size)] = {
      **to_numpy({"eval": evaluated, "train": logits}),
      "image": _image(image.grad),
      **to_numpy({f"grad {n}": p.grad for n, p in net.named_parameters()}),
      **to_numpy(buffers),
    }
  return cases


def unet_discriminator(num_feat=golden.UNET[0], **fields):
  """Logits of a few steps of descent in BasicSR's order, and what is left.

  Each step sees real images, then fake ones, both in training mode.
  """
  _, num_steps, rate = golden.UNET
  net = with_state(
    UNetDiscriminatorSN(num_feat, **fields), golden.unet_state(num_feat)
  )
  real, fake = map(to_torch, golden.unet_input())
  descent = torch.optim.SGD(net.parameters(), rate)
  case = {"before": net.eval()(real)[:, 0]}
  for step in range(num_steps):
    net.train()
    image = fake.clone().requires_grad_()
    logits = net(real)[:, 0], net(image)[:, 0]
    loss = torch_steps.bce(logits[0], True) + torch_steps.bce(logits[1], False)
    descent.zero_grad()
    loss.backward()
    descent.step()
    case |= {f"real {step}": logits[0], f"fake {step}": logits[1]}
  case |= {"eval": net.eval()(real)[:, 0], "image": image.grad}
  case["image"] = case["image"].permute(0, 2, 3, 1)
  grads = {f"grad {name}": p.grad for name, p in net.named_parameters()}
  return {"unet": to_numpy({**case, **grads, **net.state_dict()})}


def srgan():
  """Programs' generators, in both modes; their gradients and statistics."""
  return {
    f"{program} {scale}": srgan_generator(program, scale)
    for program, scale in golden.SRGAN_GENERATORS
  }


def srgan_generator(program, scale, **sizes):
  """One of them; the first images in evaluation, gradients in training."""
  net = torch_srgan.GENERATORS[program](scale=scale, **sizes)
  shapes, state = _drawn(net)
  net = with_state(net, state)
  lr = to_torch(golden.srgan_lr()).requires_grad_()
  case = {"sr": _image(net.eval()(lr[:1])), **shapes}
  if f"{program} {scale}" not in golden.SRGAN_TRAINED:
    return case
  sr = net.train()(lr)
  cotangent = to_torch(golden.draw("srgan cotangent", *_image(sr).shape))
  (sr * cotangent).sum().backward()
  buffers = {n: b for n, b in net.named_buffers() if "running" in n}
  return case | {
    "train": _image(sr[:1]),
    "lr": _image(lr.grad),
    **to_numpy({f"grad {n}": p.grad for n, p in net.named_parameters()}),
    **to_numpy(buffers),
  }


def srgan_discriminator():
  """Logits in both modes, running statistics, gradients."""
  cases = {}
  for num_feat, size, pool, norm_first in golden.SRGAN_DISCRIMINATORS:
    net = torch_srgan.Discriminator(num_feat, size, pool, norm_first=norm_first)
    shapes, state = _drawn(net)
    net = with_state(net, state)
    image, cotangent = map(torch.tensor, golden.discriminator_input(size))
    image = image.permute(0, 3, 1, 2).double().requires_grad_()
    evaluated = net.eval()(image)[:, 0]
    logits = net.train()(image)[:, 0]
    (logits * cotangent).sum().backward()
    buffers = {n: b for n, b in net.named_buffers() if "running" in n}
    cases[str(size)] = {
      **to_numpy({"eval": evaluated, "train": logits}),
      # All of the gradient is a picture: a part of it tells as much.
      "image": _image(image.grad)[:, :4],
      **to_numpy({f"grad {n}": p.grad for n, p in net.named_parameters()}),
      **to_numpy(buffers),
      **shapes,
    }
  return cases


def _drawn(net):
  """The shapes of a network's arrays, to be recorded, and what is in them."""
  shapes = {
    name: tuple(value.shape)
    for name, value in net.state_dict().items()
    if not name.endswith("num_batches_tracked")
  }
  recorded = {f"shape {n}": np.int32(shape) for n, shape in shapes.items()}
  return recorded, golden.srgan_state(shapes)


def compact():
  """Images at each scale, and all gradients."""
  return {
    name: compact_generator(golden.compact_config(name))
    for name in golden.COMPACT
  }


def compact_generator(config):
  """One of them."""
  net = SRVGGNetCompact(
    config["num_feat"],
    config["num_conv"],
    config["scale"],
    config["act_type"],
    config["shuffle"],
  )
  net = with_state(net, golden.compact_state(config))
  lr = to_torch(golden.compact_lr()).requires_grad_()
  sr = net(lr)
  cotangent = to_torch(golden.draw("compact cotangent", *_image(sr).shape))
  (sr * cotangent).sum().backward()
  grads = {f"grad {n}": p.grad for n, p in net.named_parameters()}
  return {"sr": _image(sr), "lr": _image(lr.grad), **to_numpy(grads)}


def losses():
  """Every loss and its gradients."""
  cases = {}

  def put(name, loss, **inputs):
    grads = torch.autograd.grad(loss, list(inputs.values()))
    grads = dict(zip(inputs, grads, strict=True))
    cases[name] = to_numpy({"value": loss, **grads})

  def tensor(array):
    return torch.tensor(array).double().requires_grad_()

  real, fake = map(tensor, golden.logits())
  for halve in (True, False):
    put(
      f"relativistic_generator halve={halve}",
      torch_steps.relativistic(fake, real, halve=halve),
      fake=fake,
    )
    for detach in (True, False):
      options = {"halve": halve, "detach_means": detach}
      put(
        f"relativistic_discriminator halve={halve} detach={detach}",
        torch_steps.relativistic(real, fake, **options),
        real=real,
        fake=fake,
      )
  vanilla = torch_steps.bce(real, True) + torch_steps.bce(fake, False)
  put("vanilla_discriminator", vanilla, real=real, fake=fake)
  put("vanilla_generator", torch_steps.bce(fake, True), fake=fake)
  sr, hr = map(tensor, golden.image_pair())
  for name in ("l1", "mse", "charbonnier"):
    loss = torch_steps.pixel_distance(name, sr, hr, golden.EPSILON)
    put(name, loss, sr=sr)
  real, fake, weight = golden.penalty_input()
  place = np.array(
    jax.random.uniform(golden.penalty_key(), (len(real), 1, 1, 1))
  )
  weight = tensor(weight)
  penalty = torch_steps.gradient_penalty(
    lambda x: torch.tanh(x.flatten(1) @ weight).sum(-1),
    *map(tensor, (real, fake, place)),
  )
  put("penalty", penalty, weight=weight)
  cases["penalty"]["place"] = place
  return cases


def steps(networks=golden.RECORDED):
  """Both phases' gradients, losses and running statistics."""
  cases = {}
  batch = networks.images()
  for pixel_loss in golden.PIXEL_LOSSES:
    net = _generator_of(networks)
    grads, loss = torch_steps.psnr_gradients(net, batch, pixel_loss)
    grads = to_numpy({f"g {key}": value for key, value in grads.items()})
    cases[f"psnr {pixel_loss}"] = {**grads, "g/loss": np.float32(loss)}
  place = np.array(
    jax.random.uniform(golden.penalty_key(), (networks.batch, 1, 1, 1))
  )
  for name in networks.steps:
    fields = networks.discriminator(name)
    grads, d_grads, stats, losses = torch_steps.gan_gradients(
      _generator_of(networks),
      with_state(
        VGGStyleDiscriminator(*fields), golden.discriminator_state(*fields)
      ),
      batch,
      vgg_state=golden.vgg_state(),
      layer_weights=golden.LAYER_WEIGHTS,
      place=to_torch(place),
      **golden.WEIGHTS,
      **golden.STEPS[name],
    )
    cases[name] = {
      **to_numpy({f"g {key}": value for key, value in grads.items()}),
      **to_numpy({f"d {key}": value for key, value in d_grads.items()}),
      **to_numpy(stats),
      **{key: np.float32(value) for key, value in losses.items()},
    }
  cases["penalty"] = {"place": place}
  return cases


def _generator_of(networks):
  fields = networks.generator
  net = RRDBNet(**fields) if fields else _Upscaler()
  return with_state(net, networks.generator_state())


class _Upscaler(torch.nn.Module):
  """The smallest generator of scale 4, as in `test_steps`."""

  def __init__(self):
    super().__init__()
    self.first = torch.nn.Conv2d(3, 4, 3, padding=1)
    self.last = torch.nn.Conv2d(4, 3, 3, padding=1)

  def forward(self, lr):
    x = torch.tanh(self.first(lr))
    return self.last(functional.interpolate(x, scale_factor=4.0))


def optimizer():
  """Adam with clipping and milestones: parameters and rates step by step."""
  cases = {}
  start, all_grads = golden.descent()
  for clip_norm in golden.CLIP_NORMS:
    params = {name: torch.tensor(value) for name, value in start.items()}
    params = {n: torch.nn.Parameter(p.double()) for n, p in params.items()}
    adam = torch.optim.Adam(params.values(), lr=1e-2, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.MultiStepLR(
      adam, golden.MILESTONES, gamma=0.1
    )
    case = cases[f"clip {clip_norm}"] = {}
    rates = []
    for step, grads in enumerate(all_grads):
      for name, value in grads.items():
        params[name].grad = torch.tensor(value).double()
      if clip_norm:
        torch.nn.utils.clip_grad_norm_(params.values(), clip_norm)
      rates.append(adam.param_groups[0]["lr"])
      adam.step()
      scheduler.step()
      case |= to_numpy({f"{step} {name}": p for name, p in params.items()})
    case["rates"] = np.float32(rates)
  return cases


def vgg_layers(width, image):
  """All features of a network of some width."""
  net = with_state(VGG19(width), golden.vgg_state(width))
  with torch.inference_mode():
    return {name: _image(x) for name, x in net(to_torch(image)).items()}


def vgg19():
  """Every layer of a narrow network, and perceptual distances."""
  state = golden.vgg_state()
  sr, hr = golden.vgg_images()
  cases = {"layers": {}, "distance": {}}
  for layer, value in vgg_layers(2, sr).items():
    if layer in golden.WHOLE_LAYERS:
      cases["layers"][layer] = value
    norm = np.linalg.norm(value.astype(np.float64))
    cases["layers"][f"norm {layer}"] = np.float32(norm)
  sr, hr = map(to_torch, (sr, hr))
  sr.requires_grad_()
  for criterion in ("l1", "l2"):
    value = torch_steps.perceptual_distance(
      state, sr, hr, golden.DISTANCE_LAYERS, criterion
    )
    cases["distance"][criterion] = np.float32(value.item())
  (gradient,) = torch.autograd.grad(value, sr)
  cases["distance"]["gradient"] = _image(gradient)
  return cases


def measures():
  """LPIPS and DISTS of pairs, and gradients of the networks that losses use."""
  cases = {}
  for name in golden.MEASURES:
    sr, hr = map(to_torch, golden.measure_images())
    sr.requires_grad_()
    run = torch_measures.dists if name == "dists" else torch_measures.lpips
    values = run(golden.measure_params(name), sr, hr)
    (gradient,) = torch.autograd.grad(values.sum(), sr)
    cases[name] = {
      **to_numpy({"values": values}),
      "gradient": _image(gradient)[:1],
    }
  return cases


def default_model():
  """A piece of a photo, by the weights that come with the package."""
  weights = files.read_weights(zoo.find(zoo.DEFAULT))
  config = dict(weights.config)
  assert config.pop("architecture") == "RRDBNet"
  net = with_state(RRDBNet(**config), names.to_state_dict(weights.params))
  lr = data.chelsea()[96:120, 128:152]  # An eye.
  with torch.inference_mode():
    sr = _image(net(to_torch(lr[None] / 255)))[0]
  sr = np.rint(np.clip(sr, 0, 1) * 255).astype(np.uint8)
  return {zoo.DEFAULT: {"lr": lr, "sr": sr}}


def _image(tensor):
  """PyTorch's images as ours."""
  return np.moveaxis(tensor.detach().numpy(), -3, -1).astype(np.float32)


def saved():
  """What `torch.save` writes: tensors of all kinds, and what is no tensor."""
  tree = {"other": [torch.Size([2, 3]), torch.float32, 1.5, None]}
  for dtype in golden.SAVED_DTYPES:
    values = torch.tensor(golden.saved(dtype)).to(getattr(torch, dtype))
    parameter = torch.nn.Parameter(values, requires_grad=False)
    tree[dtype] = {
      "plain": values,
      "turned": golden.turned(values),
      "scalar": values[0, 0, 1],
      "parameter": parameter,
    }
  return tree


def degradation():
  """Images of other sizes, as Real-ESRGAN makes them; one sharpened."""
  cases = {
    "usm": {"sharp": _image(_sharpened(to_torch(golden.hr_image(30, 34))))}
  }
  for old, new in golden.RESIZED:
    hr = to_torch(golden.hr_image(*old))[None]
    cases[f"{old} to {new}"] = {
      mode: _image(functional.interpolate(hr, new, mode=mode))
      for mode in ("area", "bilinear", "bicubic")
    }
  hr = to_torch(golden.hr_image(14, 17))[None]
  for factor in golden.RESIZE_FACTORS:
    cases[f"times {factor}"] = {
      mode: _image(functional.interpolate(hr, scale_factor=factor, mode=mode))
      for mode in ("area", "bilinear", "bicubic")
    }
  return cases


def _sharpened(hr, weight=0.5, threshold=10):
  """BasicSR's `USMSharp`, its kernel as OpenCV's `getGaussianKernel` has it."""
  side = golden.USM_RADIUS + 1
  sigma = 0.3 * ((side - 1) * 0.5 - 1) + 0.8
  steps = torch.arange(side).double() - side // 2
  taps = torch.exp(-(steps**2) / (2 * sigma**2))
  taps = taps / taps.sum()
  kernel = (taps[:, None] * taps)[None, None].repeat(3, 1, 1, 1)

  def blur(image):
    image = functional.pad(image, 4 * [side // 2], mode="reflect")
    return functional.conv2d(image, kernel, groups=3)

  hr = hr[None]
  residual = hr - blur(hr)
  share = blur((255 * residual.abs() > threshold).double())
  sharp = torch.clip(hr + weight * residual, 0, 1)
  return share * sharp + (1 - share) * hr


ANSWERS = {
  "generator": generator,
  "discriminator": discriminator,
  "compact": compact,
  "unet_discriminator": unet_discriminator,
  "srgan": srgan,
  "srgan_discriminator": srgan_discriminator,
  "losses": losses,
  "steps": steps,
  "optimizer": optimizer,
  "vgg19": vgg19,
  "measures": measures,
  "default_model": default_model,
  "degradation": degradation,
}
