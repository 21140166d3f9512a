"""Samples of 10 or 12 bits, in 16; and back."""

from __future__ import annotations

import numpy as np

from esrgan_jax.images.pixels import bands


def widened(samples: np.ndarray, bits: int) -> np.ndarray:
  """Returns samples of so many bits as 8 or 16, white staying white.

  Args:
    samples: Integers of any kind, 0 to 2^bits - 1.
    bits: 1 to 16.

  Returns:
    uint8, or uint16 of more than 8 bits, rounded to the nearest.

  Raises:
    ValueError: If a sample is larger.

  >>> widened(np.array([[0, 512, 1023]], np.uint16), 10).tolist()
  [[0, 32800, 65535]]
  """
  kind = np.dtype(np.uint8 if bits <= 8 else np.uint16)
  top, full = 2**bits - 1, np.iinfo(kind).max
  if top == full and samples.dtype == kind:
    return samples
  out = np.empty(samples.shape, kind)
  for rows in bands(out):
    part = samples[rows]
    if int(part.max()) > top:
      raise ValueError(f"a sample of {part.max()}, above {top}")
    out[rows] = (part.astype(np.uint32) * full + top // 2) // top
  return out


def narrowed(samples: np.ndarray, bits: int) -> np.ndarray:
  """Undoes `widened`: returns integers of so many bits, rounded.

  >>> narrowed(np.array([[0, 32800, 65535]], np.uint16), 10).tolist()
  [[0, 512, 1023]]
  """
  full, top = np.iinfo(samples.dtype).max, 2**bits - 1
  if top == full:
    return samples
  kind = np.uint8 if bits <= 8 else np.uint16
  out = np.empty(samples.shape, kind)
  for rows in bands(out):
    part = samples[rows].astype(np.uint32)
    out[rows] = (part * np.uint32(top) + full // 2) // full
  return out
