"""The VGG-style discriminator in PyTorch, with BasicSR's names: an oracle."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from esrgan_jax.models.discriminators import linear1_from_torch


class Twin(nn.Module):
  """Maps `[B, 3, S, S]` to `[B, 1]`; any number of stages."""

  def __init__(self, num_feat, input_size, norm="batch"):
    super().__init__()
    self.prefix = {"batch": "bn", "layer": "ln", "none": ""}[norm]
    size, stage, channels = input_size, 0, 3
    self.names = []
    while size > 4:
      width = num_feat * min(2**stage, 8)
      for step, (kernel, stride) in enumerate(((3, 1), (4, 2))):
        first = stage == step == 0
        name = f"{stage}_{step}"
        bias = first or norm == "none"
        conv = nn.Conv2d(channels, width, kernel, stride, 1, bias=bias)
        setattr(self, f"conv{name}", conv)
        if not first and norm == "batch":
          setattr(self, f"bn{name}", nn.BatchNorm2d(width))
        if not first and norm == "layer":
          setattr(self, f"ln{name}", nn.GroupNorm(1, width))
        self.names.append(name)
        channels = width
      size, stage = size // 2, stage + 1
    self.linear1 = nn.Linear(channels * size * size, 100)
    self.linear2 = nn.Linear(100, 1)

  def forward(self, x):
    act = functional.leaky_relu
    for name in self.names:
      x = getattr(self, f"conv{name}")(x)
      if name != "0_0" and self.prefix:
        x = getattr(self, f"{self.prefix}{name}")(x)
      x = act(x, 0.2)
    return self.linear2(act(self.linear1(x.flatten(1)), 0.2))


def build_twin(num_feat, input_size, norm="batch"):
  """A twin whose every parameter and statistic matters."""
  torch.manual_seed(0)
  twin = Twin(num_feat, input_size, norm)
  if norm == "none":
    return twin
  with torch.no_grad():
    for name in twin.names[1:]:
      layer = getattr(twin, f"{twin.prefix}{name}")
      layer.weight.uniform_(0.5, 1.5)
      layer.bias.uniform_(-0.3, 0.3)
      if norm == "batch":
        layer.running_mean.uniform_(-0.2, 0.2)
        layer.running_var.uniform_(0.5, 1.5)
  return twin


def from_twin(twin, tensors):
  """The twin's values or gradients as trees of params and batch_stats."""
  params, stats = {}, {}
  channels = getattr(twin, f"conv{twin.names[-1]}").out_channels
  for path, tensor in tensors.items():
    layer, part = path.split(".")
    value = tensor.detach().numpy()
    if layer.startswith("conv") and part == "weight":
      part, value = "kernel", value.transpose(2, 3, 1, 0)
    elif layer == "linear1" and part == "weight":
      part, value = "kernel", linear1_from_torch(value, channels=channels)
    elif layer == "linear2" and part == "weight":
      part, value = "kernel", value.T
    elif layer.startswith(("bn", "ln")):
      part = {"weight": "scale", "running_mean": "mean"}.get(part, part)
      part = {"running_var": "var"}.get(part, part)
    if part == "num_batches_tracked":
      continue
    tree = stats if part in ("mean", "var") else params
    # A copy: PyTorch updates its running statistics in place.
    tree.setdefault(layer, {})[part] = np.array(value)
  return params, stats
