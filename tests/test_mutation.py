"""The harness of damaged files: what it must notice, it notices."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from tests import mutation

_SAMPLE = bytes(range(256)) * 4


def _target(read, **options):
  return mutation.Target("t", [_SAMPLE], read, **options)


def _run(read, **options):
  def judged(folder, data):
    if data != _SAMPLE:
      read(folder, data)

  options = {"seed": 1, "cases": range(2), **options}
  return mutation.run([_target(judged)], **options)


def test_damage_is_by_seed_and_case_and_never_the_same():
  targets = [_target(None), _target(None, edits=[lambda _, data: data[::-1]])]
  files = [mutation.make(targets, 5, case) for case in range(300)]
  assert files == [mutation.make(targets, 5, case) for case in range(300)]
  assert len(set(files)) > 200
  assert files[0] != mutation.make(targets, 6, 0)
  assert max(map(len, files)) < 2**18


def test_empty_files_can_be_damaged_as_well():
  targets = [mutation.Target("t", [b""], None)]
  assert all(mutation.make(targets, 1, case) is not None for case in range(300))


def _refuses(folder, data):
  raise ValueError(f"{folder}/a is damaged")


def test_reading_and_documented_refusals_are_fine():
  report = _run(lambda folder, data: (folder / "a").write_bytes(data))
  assert (report.outcomes("t"), report.violations) == ({"read": 2}, [])
  report = _run(_refuses)
  assert (report.outcomes("t"), report.violations) == ({"ValueError": 2}, [])


def test_samples_that_are_not_sound_are_no_samples():
  with pytest.raises(AssertionError, match="a sample of t: ValueError"):
    mutation.run([_target(_refuses)], seed=1, cases=[])


def _raises(error):
  def read(folder, data):
    raise error(folder) if callable(error) else error

  return read


def _spins(folder, data):
  while True:
    pass


@pytest.mark.parametrize(
  ("read", "message"),
  [
    (_raises(KeyError("x")), "raises KeyError"),
    (_raises(UnicodeDecodeError("ascii", b"", 0, 1, "x")), "not documented"),
    (_raises(lambda folder: ValueError(f"{folder}\n")), "no printable line"),
    (
      _raises(lambda folder: ValueError(f"{folder}\x1b[m")),
      "no printable line",
    ),
    (_raises(lambda folder: ValueError(f"{folder}" * 999)), "characters"),
    (_raises(ValueError("bad")), "does not name the file"),
    (_raises(AssertionError("NaN")), "raises AssertionError: 'NaN'"),
    (_raises(MemoryError()), "raises MemoryError"),
    (lambda folder, data: bytearray(2**30), "raises MemoryError"),
    (_spins, "over time"),
  ],
)
def test_everything_else_is_a_violation_with_its_case(read, message):
  report = _run(read, cases=[7], seconds=0.2)
  (violation,) = report.violations
  assert violation.startswith("--seed 1 --only 7: t: ")
  assert message in violation
  assert "1 files, 1 violations" in str(report)


@pytest.mark.release
def test_the_long_form_survives_what_kills_the_process(tmp_path):
  (tmp_path / "deadly.py").write_text(
    textwrap.dedent("""
      import os, signal, sys
      from tests import mutation

      def targets():
        def read(folder, data):
          if folder.name == "2":
            os.kill(os.getpid(), signal.SIGKILL)
          if folder.name == "4":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
            signal.pause()
        return [mutation.Target("t", [b"data"], read)]

      if __name__ == "__main__":
        sys.exit(mutation.main("deadly", targets))
    """)
  )
  root = pathlib.Path(__file__).parents[1]
  found = subprocess.run(
    [sys.executable, "-m", "deadly", "--count=7", "--seed=3", "--silence=15"],
    env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 1, found.stderr
  for case in (2, 4):
    line = f"--seed 3 --only {case}: the process ended with status -9"
    assert line in found.stdout
  assert "t: 5 (5 read)" in found.stdout
  assert "7 files, 2 violations" in found.stdout
