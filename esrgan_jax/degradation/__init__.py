"""Second-order degradation of HR patches on the device, as Real-ESRGAN has it.

Images are float `[..., H, W, 3]`, RGB, in [0, 1]. What is drawn for an image is
a function of its key alone.
"""

from esrgan_jax.degradation.pipeline import degrade
from esrgan_jax.degradation.settings import KERNELS, Degradation
from esrgan_jax.degradation.sharpening import usm_sharpen

__all__ = ["KERNELS", "Degradation", "degrade", "usm_sharpen"]
