"""The subcommands of `python -m esrgan_jax`, one module each."""
