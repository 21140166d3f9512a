"""Errors that more than one part of the training program raises."""

from esrgan_jax.errors import UsageError


class ConfigError(UsageError):
  """A config that cannot be used; the message names the key and the remedy."""
