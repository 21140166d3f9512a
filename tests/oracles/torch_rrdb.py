"""RRDBNet in PyTorch, in the textbook (concatenating) form: an oracle.

Written from the architecture; its state dict has BasicSR's names.
"""

import torch
from torch import nn
from torch.nn import functional

_SLOPE = 0.2


class _DenseBlock(nn.Module):
  def __init__(self, num_feat, num_grow_ch):
    super().__init__()
    for i in range(5):
      out = num_grow_ch if i < 4 else num_feat
      conv = nn.Conv2d(num_feat + i * num_grow_ch, out, 3, padding=1)
      self.add_module(f"conv{i + 1}", conv)

  def forward(self, x):
    sources = [x]
    for i in range(1, 5):
      out = self.get_submodule(f"conv{i}")(torch.cat(sources, 1))
      sources.append(functional.leaky_relu(out, _SLOPE))
    return x + 0.2 * self.conv5(torch.cat(sources, 1))


class _RRDB(nn.Module):
  def __init__(self, num_feat, num_grow_ch):
    super().__init__()
    self.rdb1 = _DenseBlock(num_feat, num_grow_ch)
    self.rdb2 = _DenseBlock(num_feat, num_grow_ch)
    self.rdb3 = _DenseBlock(num_feat, num_grow_ch)

  def forward(self, x):
    return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
  """Maps `[N, C, H, W]` to `[N, C, scale * H, scale * W]`."""

  def __init__(
    self,
    *,
    num_in_ch=3,
    num_out_ch=3,
    num_feat=8,
    num_block=2,
    num_grow_ch=4,
    scale=4,
    unshuffle=None,
  ):
    super().__init__()
    if unshuffle is None:
      unshuffle = {1: 4, 2: 2}.get(scale, 1)
    self.unshuffle = unshuffle
    total = scale * unshuffle
    self.factors = [3] if total == 3 else [2] * (total.bit_length() - 1)
    self.conv_first = nn.Conv2d(
      num_in_ch * unshuffle**2, num_feat, 3, padding=1
    )
    blocks = [_RRDB(num_feat, num_grow_ch) for _ in range(num_block)]
    self.body = nn.Sequential(*blocks)
    self.conv_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
    for i in range(len(self.factors)):
      conv = nn.Conv2d(num_feat, num_feat, 3, padding=1)
      self.add_module(f"conv_up{i + 1}", conv)
    self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, padding=1)
    self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

  def forward(self, x):
    x = self.conv_first(functional.pixel_unshuffle(x, self.unshuffle))
    x = x + self.conv_body(self.body(x))
    for i, factor in enumerate(self.factors):
      x = functional.interpolate(x, scale_factor=factor, mode="nearest")
      conv = self.get_submodule(f"conv_up{i + 1}")
      x = functional.leaky_relu(conv(x), _SLOPE)
    return self.conv_last(functional.leaky_relu(self.conv_hr(x), _SLOPE))
