"""A local page on which pictures are upscaled: `python -m esrgan_jax demo`."""
