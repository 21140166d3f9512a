"""The error of arguments, whose exit status is its own."""

__all__ = ["UsageError"]


class UsageError(ValueError):
  """What was asked for cannot be used: a name, a number, two that exclude."""
