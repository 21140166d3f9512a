"""The generator of giakou4/gans' ESRGAN in PyTorch, by its names: an oracle.

Written from the names and shapes of its state dict.
"""

import torch
from torch import nn
from torch.nn import functional


class _Named(nn.Module):
  """A convolution under a name, and a leaky one if it is to be."""

  def __init__(self, name, inputs, outputs, *, leaky=True):
    super().__init__()
    self.name, self.leaky = name, leaky
    self.add_module(name, nn.Conv2d(inputs, outputs, 3, padding=1))

  def forward(self, x):
    x = self.get_submodule(self.name)(x)
    return functional.leaky_relu(x, 0.2) if self.leaky else x


class _Dense(nn.Module):
  def __init__(self, feat, grow):
    super().__init__()
    for i in range(5):
      conv = _Named(
        "cnn", feat + i * grow, grow if i < 4 else feat, leaky=i < 4
      )
      self.add_module(f"conv{i + 1}", conv)

  def forward(self, x):
    parts = [x]
    for i in range(5):
      parts.append(self.get_submodule(f"conv{i + 1}")(torch.cat(parts, 1)))
    return x + 0.2 * parts[-1]


class _Block(nn.Module):
  def __init__(self, feat, grow):
    super().__init__()
    for i in (1, 2, 3):
      self.add_module(f"rdb{i}", _Dense(feat, grow))

  def forward(self, x):
    return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class Generator(nn.Module):
  """Maps `[N, C, H, W]` in [-1, 1] to four times as high and wide."""

  def __init__(self, channels=3, feat=4, blocks=2, grow=2):
    super().__init__()
    self.initial = nn.Conv2d(channels, feat, 3, padding=1)
    self.residuals = nn.Sequential(*(_Block(feat, grow) for _ in range(blocks)))
    self.conv = nn.Conv2d(feat, feat, 3, padding=1)
    self.upsamples = nn.Sequential(*(_Named("conv", feat, feat) for _ in "12"))
    self.final = nn.Sequential(
      nn.Conv2d(feat, feat, 3, padding=1),
      nn.LeakyReLU(0.2),
      nn.Conv2d(feat, channels, 3, padding=1),
    )

  def forward(self, x):
    x = self.initial(x)
    x = x + self.conv(self.residuals(x))
    for conv in self.upsamples:
      x = conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    return self.final(x)
