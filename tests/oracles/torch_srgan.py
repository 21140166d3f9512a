"""SRGAN's networks in PyTorch, as four programs name their layers: oracles.

Written from the architectures; each has the names of the program in its own.
"""

import functools

import torch
from torch import nn
from torch.nn import functional

_SLOPE = 0.1  # Of MSRResNet, outside of its blocks.


def _conv(in_ch, out_ch, side=3, stride=1, bias=True):
  return nn.Conv2d(in_ch, out_ch, side, stride, side // 2, bias=bias)


def _factors(scale):
  return [3] if scale == 3 else [2] * (scale.bit_length() - 1)


class _PlainBlock(nn.Module):
  def __init__(self, feat):
    super().__init__()
    self.conv1, self.conv2 = _conv(feat, feat), _conv(feat, feat)

  def forward(self, x):
    return x + self.conv2(functional.relu(self.conv1(x)))


class MSRResNet(nn.Module):
  """BasicSR's."""

  def __init__(self, feat=4, num_block=2, scale=4):
    super().__init__()
    self.scale = scale
    self.conv_first = _conv(3, feat)
    self.body = nn.Sequential(*(_PlainBlock(feat) for _ in range(num_block)))
    self.ups = _factors(scale)
    for i, factor in enumerate(self.ups, 1):
      self.add_module(f"upconv{i}", _conv(feat, feat * factor**2))
    self.conv_hr = _conv(feat, feat)
    self.conv_last = _conv(feat, 3)

  def forward(self, x):
    y = self.body(functional.leaky_relu(self.conv_first(x), _SLOPE))
    for i, factor in enumerate(self.ups, 1):
      y = functional.pixel_shuffle(self.get_submodule(f"upconv{i}")(y), factor)
      y = functional.leaky_relu(y, _SLOPE)
    y = self.conv_last(functional.leaky_relu(self.conv_hr(y), _SLOPE))
    return y + functional.interpolate(
      x, scale_factor=self.scale, mode="bilinear", align_corners=False
    )


class _Rcb(nn.Module):
  def __init__(self, feat):
    super().__init__()
    self.rcb = nn.Sequential(
      _conv(feat, feat, bias=False),
      nn.BatchNorm2d(feat),
      nn.PReLU(),
      _conv(feat, feat, bias=False),
      nn.BatchNorm2d(feat),
    )

  def forward(self, x):
    return x + self.rcb(x)


class _UpsampleBlock(nn.Module):
  def __init__(self, feat, factor):
    super().__init__()
    self.upsample_block = nn.Sequential(
      _conv(feat, feat * factor**2), nn.PixelShuffle(factor), nn.PReLU()
    )

  def forward(self, x):
    return self.upsample_block(x)


class Lornatang(nn.Module):
  """That of Lornatang's SRGAN-PyTorch, before it is clamped."""

  def __init__(self, feat=4, num_block=2, scale=4):
    super().__init__()
    self.conv1 = nn.Sequential(_conv(3, feat, 9), nn.PReLU())
    self.trunk = nn.Sequential(*(_Rcb(feat) for _ in range(num_block)))
    self.conv2 = nn.Sequential(
      _conv(feat, feat, bias=False), nn.BatchNorm2d(feat)
    )
    ups = (_UpsampleBlock(feat, factor) for factor in _factors(scale))
    self.upsampling = nn.Sequential(*ups)
    self.conv3 = _conv(feat, 3, 9)

  def forward(self, x):
    first = self.conv1(x)
    return self.conv3(self.upsampling(first + self.conv2(self.trunk(first))))


class _Residual(nn.Module):
  def __init__(self, feat):
    super().__init__()
    self.conv1, self.bn1 = _conv(feat, feat), nn.BatchNorm2d(feat)
    self.prelu = nn.PReLU()
    self.conv2, self.bn2 = _conv(feat, feat), nn.BatchNorm2d(feat)

  def forward(self, x):
    y = self.prelu(self.bn1(self.conv1(x)))
    return x + self.bn2(self.conv2(y))


class _Up(nn.Module):
  def __init__(self, feat, act, num_slopes):
    super().__init__()
    self.conv = _conv(feat, 4 * feat)
    self.add_module(act, nn.PReLU(num_slopes))
    self.name = act

  def forward(self, x):
    x = functional.pixel_shuffle(self.conv(x), 2)
    return self.get_submodule(self.name)(x)


class Leftthomas(nn.Module):
  """That of leftthomas's SRGAN, whose blocks are counted through."""

  def __init__(self, feat=4, num_block=2, scale=4):
    super().__init__()
    self.num_block = num_block
    self.block1 = nn.Sequential(_conv(3, feat, 9), nn.PReLU())
    for n in range(num_block):
      self.add_module(f"block{n + 2}", _Residual(feat))
    body = nn.Sequential(_conv(feat, feat), nn.BatchNorm2d(feat))
    self.add_module(f"block{num_block + 2}", body)
    ups = [_Up(feat, "prelu", 1) for _ in _factors(scale)]
    tail = nn.Sequential(*ups, _conv(feat, 3, 9))
    self.add_module(f"block{num_block + 3}", tail)

  def forward(self, x):
    first = x = self.block1(x)
    for n in range(self.num_block + 1):
      x = self.get_submodule(f"block{n + 2}")(x)
    tail = self.get_submodule(f"block{self.num_block + 3}")
    return (torch.tanh(tail(first + x)) + 1) / 2


class _Cnn(nn.Module):
  def __init__(self, in_ch, out_ch, side=3, *, norm=True, act=True):
    super().__init__()
    self.cnn = _conv(in_ch, out_ch, side, bias=not norm)
    self.bn = nn.BatchNorm2d(out_ch) if norm else nn.Identity()
    self.act = nn.PReLU(out_ch) if act else nn.Identity()

  def forward(self, x):
    return self.act(self.bn(self.cnn(x)))


class _Pair(nn.Module):
  def __init__(self, feat):
    super().__init__()
    self.block1, self.block2 = _Cnn(feat, feat), _Cnn(feat, feat, act=False)

  def forward(self, x):
    return x + self.block2(self.block1(x))


class Persson(nn.Module):
  """That of Persson's tutorial and of giakou4's, its tanh in [0, 1]."""

  def __init__(self, feat=4, num_block=2, scale=4):
    super().__init__()
    self.initial = _Cnn(3, feat, 9, norm=False)
    self.residuals = nn.Sequential(*(_Pair(feat) for _ in range(num_block)))
    self.convblock = _Cnn(feat, feat, act=False)
    ups = (_Up(feat, "act", feat) for _ in _factors(scale))
    self.upsamples = nn.Sequential(*ups)
    self.final = _conv(feat, 3, 9)

  def forward(self, x):
    first = self.initial(x)
    x = self.upsamples(first + self.convblock(self.residuals(first)))
    return (torch.tanh(self.final(x)) + 1) / 2


GENERATORS = {
  "basicsr": MSRResNet,
  "lornatang": Lornatang,
  "leftthomas": Leftthomas,
  "persson": Persson,
}


# Of the discriminator's layers, by our names.
_NORMS = {
  "bn": nn.BatchNorm2d,
  "ln": functools.partial(nn.GroupNorm, 1),
  "in": functools.partial(nn.InstanceNorm2d, affine=True),
}


class Discriminator(nn.Module):
  """Maps `[B, 3, S, S]` to `[B, 1]`; with `pool`, any S."""

  def __init__(self, num_feat, size, pool=0, *, norm_first=False, norm="bn"):
    super().__init__()
    channels = 3
    for n in range(8):
      width = num_feat * 2 ** (n // 2)
      normalised = norm in _NORMS and (n > 0 or norm_first)
      conv = _conv(channels, width, stride=1 + n % 2, bias=not normalised)
      self.add_module(f"conv{n}", conv)
      layer = _NORMS[norm](width) if normalised else nn.Identity()
      self.add_module(f"{norm}{n}", layer)
      channels, size = width, -(-size // (1 + n % 2))
    self.norm = norm
    self.pool = nn.AdaptiveAvgPool2d(pool) if pool else nn.Identity()
    inputs = channels * (pool or size) ** 2
    self.linear1 = nn.Linear(inputs, 16 * num_feat)
    self.linear2 = nn.Linear(16 * num_feat, 1)

  def forward(self, x):
    for n in range(8):
      x = self.get_submodule(f"conv{n}")(x)
      x = functional.leaky_relu(self.get_submodule(f"{self.norm}{n}")(x), 0.2)
    x = functional.leaky_relu(self.linear1(self.pool(x).flatten(1)), 0.2)
    return self.linear2(x)
