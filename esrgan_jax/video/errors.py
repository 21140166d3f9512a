"""What is wrong with a clip."""

__all__ = ["VideoError"]


class VideoError(ValueError):
  """A clip that cannot be read or written; the message is one line."""
