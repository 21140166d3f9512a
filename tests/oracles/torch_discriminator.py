"""The discriminators in PyTorch, with BasicSR's names: oracles."""

from torch import nn
from torch.nn import functional


class VGGStyleDiscriminator(nn.Module):
  """Maps `[B, 3, S, S]` to `[B, 1]`; any number of stages."""

  def __init__(self, num_feat, input_size, norm="batch"):
    super().__init__()
    prefixes = {"batch": "bn", "layer": "ln", "instance": "in", "none": ""}
    self.prefix = prefixes[norm]
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
        if not first and norm == "instance":
          setattr(self, f"in{name}", nn.InstanceNorm2d(width, affine=True))
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


class UNetDiscriminatorSN(nn.Module):
  """Maps `[B, 3, H, W]` to `[B, 1, H, W]`; `spectral_norm` of either kind."""

  def __init__(self, num_feat, skip_connection=True, norm=None):
    super().__init__()
    norm = norm or nn.utils.spectral_norm
    self.skip_connection = skip_connection
    self.conv0 = nn.Conv2d(3, num_feat, 3, 1, 1)
    channels = num_feat
    for n, factor in enumerate((2, 4, 8, 4, 2, 1, 1, 1), 1):
      side, stride = (4, 2) if n <= 3 else (3, 1)
      conv = nn.Conv2d(channels, factor * num_feat, side, stride, 1, bias=False)
      setattr(self, f"conv{n}", norm(conv))
      channels = factor * num_feat
    self.conv9 = nn.Conv2d(num_feat, 1, 3, 1, 1)

  def forward(self, x):
    def layer(n, x):
      return functional.leaky_relu(getattr(self, f"conv{n}")(x), 0.2)

    down = [layer(0, x)]
    for n in (1, 2, 3):
      down.append(layer(n, down[-1]))
    x = down.pop()
    for n in (4, 5, 6):
      x = functional.interpolate(
        x, scale_factor=2, mode="bilinear", align_corners=False
      )
      x = layer(n, x)
      if self.skip_connection:
        x = x + down.pop()
    return self.conv9(layer(8, layer(7, x)))
