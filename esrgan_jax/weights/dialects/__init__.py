"""What names a network has in files, an architecture each.

An architecture without a line here, such as a user's own, is written by
`plain`, and read back by this package only.
"""

from __future__ import annotations

from esrgan_jax.weights.dialects import (
  centered,
  compact,
  rrdb,
  srresnet,
  unet_discriminator,
)
from esrgan_jax.weights.dialects.protocol import Dialect

# By the name that `models.registry` has. Where trees are alike, the first is
# meant.
DIALECTS: dict[str, Dialect] = {
  "RRDBNet": rrdb,
  "CenteredRRDBNet": centered,
  "SRResNet": srresnet,
  "SRVGGNetCompact": compact,
}

# Of discriminators: `weights.discriminators` asks here.
DISCRIMINATORS = {"UNetDiscriminatorSN": unet_discriminator}
