"""ESRGAN's networks and training steps in PyTorch, for side-by-side timing.

Written from the architectures, as one writes PyTorch for speed: in-place
activations, batches that share nothing they need not, fused Adam. Steps keep
the authors' order (2019-06 code, `SRRaGAN_model.py`): G is updated first, and D
looks again at the images of the old G.
"""

import contextlib

import torch
from torch import nn
from torch.nn import functional


class DenseBlock(nn.Module):
  """Five convolutions, each of all before it, and a scaled skip."""

  def __init__(self, num_feat, num_grow_ch):
    super().__init__()
    self.convs = nn.ModuleList(
      nn.Conv2d(
        num_feat + i * num_grow_ch,
        num_grow_ch if i < 4 else num_feat,
        3,
        padding=1,
      )
      for i in range(5)
    )

  def forward(self, x):
    """Maps `[N, C, H, W]` to the same shape."""
    sources = [x]
    for conv in self.convs[:4]:
      out = functional.leaky_relu(conv(torch.cat(sources, 1)), 0.2, True)
      sources.append(out)
    return torch.add(x, self.convs[4](torch.cat(sources, 1)), alpha=0.2)


class RRDB(nn.Module):
  """Three dense blocks and a scaled skip."""

  def __init__(self, num_feat, num_grow_ch):
    super().__init__()
    blocks = [DenseBlock(num_feat, num_grow_ch) for _ in range(3)]
    self.blocks = nn.Sequential(*blocks)

  def forward(self, x):
    """Maps `[N, C, H, W]` to the same shape."""
    return torch.add(x, self.blocks(x), alpha=0.2)


class Tail(nn.Module):
  """Upsamples by 4 and ends in an image."""

  def __init__(self, num_feat):
    super().__init__()
    convs = [nn.Conv2d(num_feat, num_feat, 3, padding=1) for _ in range(3)]
    self.up1, self.up2, self.hr = convs
    self.last = nn.Conv2d(num_feat, 3, 3, padding=1)

  def forward(self, x):
    """Maps `[N, C, H, W]` to `[N, 3, 4 H, 4 W]`."""
    for conv in (self.up1, self.up2):
      x = functional.interpolate(x, scale_factor=2, mode="nearest")
      x = functional.leaky_relu(conv(x), 0.2, True)
    return self.last(functional.leaky_relu(self.hr(x), 0.2, True))


class RRDBNet(nn.Module):
  """The generator: `[N, 3, H, W]` to `[N, 3, 4 H, 4 W]`."""

  def __init__(self, num_feat=64, num_block=23, num_grow_ch=32):
    super().__init__()
    self.first = nn.Conv2d(3, num_feat, 3, padding=1)
    blocks = [RRDB(num_feat, num_grow_ch) for _ in range(num_block)]
    self.body = nn.Sequential(*blocks)
    self.after = nn.Conv2d(num_feat, num_feat, 3, padding=1)
    self.tail = Tail(num_feat)
    for module in self.modules():
      if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        module.weight.data *= 0.1
        nn.init.zeros_(module.bias)

  def forward(self, lr):
    """Super-resolves images."""
    x = self.first(lr)
    return self.tail(x + self.after(self.body(x)))


class Discriminator(nn.Module):
  """VGG-style, with BatchNorm: `[N, 3, S, S]` to `[N, 1]`."""

  def __init__(self, num_feat=64, input_size=128):
    super().__init__()
    layers, channels, size, stage = [], 3, input_size, 0
    while size > 4:
      width = num_feat * min(2**stage, 8)
      for kernel, stride in ((3, 1), (4, 2)):
        first = not layers
        layers.append(nn.Conv2d(channels, width, kernel, stride, 1, bias=first))
        if not first:
          layers.append(nn.BatchNorm2d(width))
        layers.append(nn.LeakyReLU(0.2, inplace=True))
        channels = width
      size, stage = size // 2, stage + 1
    self.features = nn.Sequential(*layers)
    self.classifier = nn.Sequential(
      nn.Linear(channels * size * size, 100),
      nn.LeakyReLU(0.2, inplace=True),
      nn.Linear(100, 1),
    )

  def forward(self, image):
    """Returns logits."""
    return self.classifier(self.features(image).flatten(1))


class VGG19(nn.Module):
  """Random, frozen features up to conv5_4, before its activation."""

  def __init__(self, stages):
    super().__init__()
    layers, channels = [], 3
    for count, width in stages:
      for _ in range(count):
        conv = nn.Conv2d(channels, width, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight)
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.ReLU(inplace=True)]
        channels = width
      layers.append(nn.MaxPool2d(2))
    self.features = nn.Sequential(*layers[:-2])
    self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
    self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]))
    self.requires_grad_(False)

  def forward(self, image):
    """Maps images in [0, 1] to features."""
    mean, std = (v.view(1, 3, 1, 1) for v in (self.mean, self.std))
    return self.features((image - mean) / std)


class Settings:
  """How both steps run: on which device, in what precision, how compiled.

  Args:
    device: "cpu" or "cuda".
    dtype: Compute dtype; other than float32 by autocast.
    form: "eager"; "blocks", where each repeated part is compiled, once;
      "whole", where each network is; "graph", which is "blocks" with the whole
      step captured as a CUDA graph.
    mode: `torch.compile`'s.
  """

  def __init__(self, device, dtype, form, mode):
    self.device, self.form, self.mode = torch.device(device), form, mode
    self.dtype = getattr(torch, dtype)

  def place(self, module):
    """Puts a network on the device, channels last, compiled if need be."""
    module = module.to(self.device, memory_format=torch.channels_last)
    options = {"mode": self.mode, "dynamic": False}
    if self.form == "whole":
      module.compile(**options)
    elif self.form in ("blocks", "graph"):
      parts = [module]
      if isinstance(module, RRDBNet):
        parts = [*module.body, module.tail]
      for part in parts:
        part.compile(**options)
    return module

  def image(self, array):
    """Makes a float tensor of a uint8 array `[N, H, W, 3]`."""
    image = torch.from_numpy(array).to(self.device).permute(0, 3, 1, 2)
    image = image.float() / 255
    return image.contiguous(memory_format=torch.channels_last)

  def autocast(self):
    """Computes in the compute dtype; parameters stay float32."""
    if self.dtype == torch.float32:
      return contextlib.nullcontext()
    return torch.autocast(self.device.type, self.dtype)

  def adam(self, module, learning_rate):
    """Returns fused Adam."""
    return torch.optim.Adam(
      module.parameters(),
      learning_rate,
      betas=(0.9, 0.999),
      fused=True,
      capturable=self.form == "graph",
    )

  def finish(self, step):
    """Captures a step as a CUDA graph where that is asked for."""
    if self.form != "graph":
      return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
      for _ in range(3):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
      result = step()

    def replay():
      graph.replay()
      return result

    return replay


def psnr_step(settings, generator, lr, hr):
  """Returns a function that does one step of phase one, and gives its loss."""
  generator = settings.place(generator)
  adam = settings.adam(generator, 2e-4)
  average = _Average(generator)
  lr, hr = settings.image(lr), settings.image(hr)

  def step():
    adam.zero_grad(set_to_none=True)
    with settings.autocast():
      sr = generator(lr)
    loss = functional.l1_loss(sr.float(), hr)
    loss.backward()
    adam.step()
    average.update()
    return loss.detach()

  return settings.finish(step)


def gan_step(settings, generator, discriminator, vgg, lr, hr):
  """Returns a function that does one step of phase two, and gives its loss."""
  generator, discriminator, vgg = map(
    settings.place, (generator, discriminator, vgg)
  )
  adam = settings.adam(generator, 1e-4)
  d_adam = settings.adam(discriminator, 1e-4)
  average = _Average(generator)
  lr, hr = settings.image(lr), settings.image(hr)

  def step():
    discriminator.requires_grad_(False)
    adam.zero_grad(set_to_none=True)
    with settings.autocast():
      sr = generator(lr)
      with torch.no_grad():
        target, real = vgg(hr), discriminator(hr)
      features, fake = vgg(sr), discriminator(sr)
    loss = (
      1e-2 * functional.l1_loss(sr.float(), hr)
      + functional.l1_loss(features.float(), target.float())
      + 5e-3 * _relativistic(fake.float(), real.float())
    )
    loss.backward()
    adam.step()
    average.update()

    discriminator.requires_grad_(True)
    d_adam.zero_grad(set_to_none=True)
    with settings.autocast():
      real, fake = discriminator(hr), discriminator(sr.detach())
    d_loss = _relativistic(real.float(), fake.float())
    d_loss.backward()
    d_adam.step()
    return (loss + d_loss).detach()

  return settings.finish(step)


def upscaling(settings, generator, tile):
  """Returns a function that upscales an 8-bit tile, on the device."""
  generator = generator.eval().requires_grad_(False).to(settings.dtype)
  generator = settings.place(generator)
  tile = torch.from_numpy(tile).to(settings.device)

  @torch.inference_mode()
  def run():
    lr = tile.permute(0, 3, 1, 2).to(settings.dtype) / 255
    sr = generator(lr.contiguous(memory_format=torch.channels_last))
    sr = (sr.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return sr.permute(0, 2, 3, 1)

  return settings.finish(run)


class _Average:
  """Exponential moving average of a network's parameters."""

  def __init__(self, module):
    self.params = [p.detach() for p in module.parameters()]
    self.averages = [p.clone() for p in self.params]

  def update(self):
    # What torch.optim.swa_utils does.
    torch._foreach_lerp_(self.averages, self.params, 1e-3)


def _relativistic(high, low):
  """RaGAN's loss where the first logits should be the higher ones, halved."""

  def bce(logits, target):
    target = torch.full_like(logits, target)
    return functional.binary_cross_entropy_with_logits(logits, target)

  return (bce(high - low.mean(), 1.0) + bce(low - high.mean(), 0.0)) / 2
