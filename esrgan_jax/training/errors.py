"""Errors that more than one part of the training program raises."""


class ConfigError(ValueError):
  """A config that cannot be used; the message names the key and the remedy."""
