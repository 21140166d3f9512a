"""SRVGGNetCompact in PyTorch: an oracle.

Written from the architecture; its state dict has Real-ESRGAN's names.
"""

from torch import nn
from torch.nn import functional


def _activation(act_type, feat):
  if act_type == "prelu":
    return nn.PReLU(feat)
  return nn.ReLU() if act_type == "relu" else nn.LeakyReLU(0.1)


class SRVGGNetCompact(nn.Module):
  """The result may be resized, as in the files of animevideov3 for ncnn."""

  def __init__(self, feat, num_conv, scale, act_type, shuffle=None):
    super().__init__()
    self.scale, self.shuffle = scale, shuffle or scale
    layers = [nn.Conv2d(3, feat, 3, padding=1), _activation(act_type, feat)]
    for _ in range(num_conv):
      layers += [nn.Conv2d(feat, feat, 3, padding=1)]
      layers += [_activation(act_type, feat)]
    layers += [nn.Conv2d(feat, 3 * self.shuffle**2, 3, padding=1)]
    self.body = nn.Sequential(*layers)

  def forward(self, x):
    y = functional.pixel_shuffle(self.body(x), self.shuffle)
    y = y + functional.interpolate(x, scale_factor=self.shuffle, mode="nearest")
    if self.scale == self.shuffle:
      return y
    size = [self.scale * side for side in x.shape[2:]]
    return functional.interpolate(y, size, mode="bicubic", align_corners=False)
