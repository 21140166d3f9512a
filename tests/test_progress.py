"""What a training run tells: lines, or bars at a terminal."""

import io
import re

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


@pytest.mark.parametrize("columns", [50, 80, 120, 200])
def test_the_line_of_a_phase_fits_with_its_steps_and_the_time_left(columns):
  out = console_lib.Console(
    file=io.StringIO(), force_terminal=True, width=columns, color_system=None
  )
  metrics = {key: 0.1 for key, _, _ in progress._SHOWN}
  with progress.Progress("gan", 400_000, 0, out) as phase:
    phase.advance(1000)
    phase.advance(2000)
    phase.show(2000, metrics)
    phase._bar.refresh()
    last = re.split(r"[\r\n]", out.file.getvalue())[-1]
  line = re.sub(r"\x1b\[[\d?]*[A-Za-z]", "", last)
  assert re.search(r"^gan ━* *2000/400000 .*left \d+:\d\d:\d\d *$", line)
  assert "…" not in line
  assert len(line) <= columns
  assert ("data wait 10%" in line) == (columns == 200)
  assert ("pixel 0.1000" in line) == (columns >= 80)
