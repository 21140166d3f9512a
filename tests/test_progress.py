"""What a training run tells: lines, or bars at a terminal."""

import io

import pytest

from esrgan_jax import console as console_lib
from esrgan_jax.training import progress


@pytest.mark.parametrize(
  ("terminal", "every_seconds", "lines"),
  [
    (False, 0.0, ["decoding: 1 of 2", "decoding: 2 of 2"]),
    (False, 3600.0, []),
    (True, 3600.0, None),
  ],
)
def test_counting(terminal, every_seconds, lines):
  out = console_lib.Console(file=io.StringIO(), force_terminal=terminal)
  with progress.counting("decoding", out, every_seconds=every_seconds) as show:
    show(1, 2)
    show(2, 2)
  shown = out.file.getvalue()
  if lines is None:
    assert "decoding" in shown
    assert "2/2" in shown
  else:
    assert shown.splitlines() == lines
