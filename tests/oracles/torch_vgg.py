"""VGG19's features in PyTorch, as torchvision builds them: an oracle."""

import torch
from torch import nn

# torchvision `models/vgg.py`, configuration "E"; its weights' `transforms()`.
_WIDTHS = (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M")
_WIDTHS += (*(512,) * 4, "M")
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class VGG19(nn.Module):
  """Maps `[N, 3, H, W]` in [0, 1] to features by layer, as BasicSR calls them.

  Args:
    width: Channels of the first stage: 64 in the published network.
  """

  def __init__(self, width):
    super().__init__()
    layers, channels, stage, index = {}, 3, 1, 1
    for out in _WIDTHS:
      if out == "M":
        layers[f"pool{stage}"] = nn.MaxPool2d(2, 2)
        stage, index = stage + 1, 1
        continue
      out = out * width // 64
      layers[f"conv{stage}_{index}"] = nn.Conv2d(channels, out, 3, padding=1)
      layers[f"relu{stage}_{index}"] = nn.ReLU()
      channels, index = out, index + 1
    self.names = tuple(layers)
    self.features = nn.Sequential(*layers.values())

  def forward(self, image, deepest="pool5"):
    mean, std = (
      torch.tensor(each, dtype=image.dtype).reshape(1, 3, 1, 1)
      for each in (_MEAN, _STD)
    )
    x, found = (image - mean) / std, {}
    for name, layer in zip(self.names, self.features, strict=True):
      found[name] = x = layer(x)
      if name == deepest:
        break
    return found
