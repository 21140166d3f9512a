"""LPIPS and DISTS in PyTorch, written from their papers: an oracle."""

import numpy as np
import torch
from torch.nn import functional

from esrgan_jax.perceptual import VGG16_LAYERS


def lpips(params, sr, hr):
  """Distances of pairs `[N, 3, H, W]`, by the network that `params` are of."""
  heads, total = params["heads"], 0
  run = _alexnet if "relu1" in heads else _vgg16
  features = zip(
    heads.items(), *(run(params["network"], x) for x in (sr, hr)), strict=True
  )
  for (_, head), a, b in features:
    a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
    head = torch.tensor(head).double().reshape(1, -1, 1, 1)
    total = total + (head * (a - b) ** 2).sum(1).mean((1, 2))
  return total


def dists(params, sr, hr):
  """Distances of pairs `[N, 3, H, W]`."""
  features = (_vgg16(params["network"], x, _l2_pool) for x in (sr, hr))
  sr, hr = ([x, *found] for x, found in zip((sr, hr), features, strict=True))
  alike = weight = 0
  for layer, a, b in zip(("image", *VGG16_LAYERS), sr, hr, strict=True):
    a, b = a.flatten(2), b.flatten(2)
    mean_a, mean_b = a.mean(2), b.mean(2)
    covariance = ((a - mean_a[..., None]) * (b - mean_b[..., None])).mean(2)
    variances = a.var(2, correction=0) + b.var(2, correction=0)
    texture = (2 * mean_a * mean_b + 1e-6) / (mean_a**2 + mean_b**2 + 1e-6)
    structure = (2 * covariance + 1e-6) / (variances + 1e-6)
    for name, value in (("alpha", texture), ("beta", structure)):
      weights = torch.tensor(params[name][layer]).double()
      alike = alike + (weights * value).sum(1)
      weight = weight + weights.sum()
  return 1 - alike / weight


def _normalized(network, image):
  mean, std = (
    torch.tensor(network["normalization"][name]).double().reshape(1, 3, 1, 1)
    for name in ("mean", "std")
  )
  return (image - mean) / std


def _conv(layer, x, **options):
  kernel = torch.tensor(np.transpose(layer["kernel"], (3, 2, 0, 1))).double()
  bias = torch.tensor(layer["bias"]).double()
  return functional.relu(functional.conv2d(x, kernel, bias, **options))


def _alexnet(network, image):
  x, found = _normalized(network, image), []
  for index in range(1, 6):
    if index in (2, 3):
      x = functional.max_pool2d(x, 3, 2)
    layer = network[f"conv{index}"]
    pad = {1: 2, 2: 2}.get(index, 1)
    x = _conv(layer, x, stride=4 if index == 1 else 1, padding=pad)
    found.append(x)
  return found


def _vgg16(network, image, pool=lambda x: functional.max_pool2d(x, 2)):
  x, found = _normalized(network, image), []
  for stage, count in enumerate((2, 2, 3, 3, 3), 1):
    x = pool(x) if stage > 1 else x
    for index in range(1, count + 1):
      x = _conv(network[f"conv{stage}_{index}"], x, padding=1)
    found.append(x)
  return found


def _l2_pool(x):
  window = torch.tensor(np.hanning(5)[1:-1])
  window = window[:, None] * window
  kernel = (window / window.sum()).expand(x.shape[1], 1, 3, 3)
  squares = functional.conv2d(
    x**2, kernel, stride=2, padding=1, groups=x.shape[1]
  )
  return (squares + 1e-12).sqrt()
