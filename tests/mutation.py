"""Seeded damage to files, and what their reader may do with it: the harness.

A reader of files of strangers has two outcomes: it returns something sound, or
it raises an error that is documented, on one printable line that names the
file. Either comes in bounded time and memory. A `Target` says how to read one
kind of file; the harness damages samples of it and holds the reader to that.

Case `i` of a seed is the same everywhere: `--seed S --only i` repeats it. Tests
run some hundred cases in their own process (`run`). The long form (`main`) runs
them in a child process, so that a reader that hangs, or is killed, is reported
with its case, and the next ones follow.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import pathlib
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

from esrgan_jax.text import printable

Edit = Callable[[random.Random, bytes], bytes]

_MAX_GROWTH = 2**16  # Bytes that one edit may add.
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256)
_EDGES = tuple(2**n + d for n in (15, 16, 31, 32, 48, 63, 64) for d in (-1, 0))
_TEXTS = (
  *(b"0", b"-1", b"1", b"2", b"3.5", b"1e9", b"1e999", b"inf", b"nan", b"-0"),
  *(b"16384", b"30000000", b"2147483648", b"9223372036854775808", b"9" * 40),
  *(
    b"",
    b"null",
    b"[]",
    b"{}",
    b"\x1b[31m",
    b"\n",
    b"\0",
    b"\xff",
    b"\xc3\xa9",
  ),
)


@dataclasses.dataclass(frozen=True)
class Target:
  """One kind of file, and its reader.

  Attributes:
    name: For the report.
    samples: Sound files, some kilobytes each.
    read: Takes an empty folder and a file's bytes; writes the file there, under
      any name, and reads it. Raises `AssertionError` if what it read is not
      sound.
    edits: Damage that knows the format; half of all edits are of these.
    refusals: The errors that the reader documents, by their exact types.
  """

  name: str
  samples: Sequence[bytes]
  read: Callable[[pathlib.Path, bytes], object]
  edits: Sequence[Edit] = ()
  refusals: tuple[type[Exception], ...] = (ValueError,)


@dataclasses.dataclass
class Report:
  """Counts of outcomes, `{(target, outcome): n}`, and what went wrong."""

  counts: collections.Counter[tuple[str, str]]
  violations: list[str]

  def add(self, target: str, outcome: str, problem: str) -> None:
    """Counts one case; `problem` is empty if all is well."""
    self.counts[target, outcome] += 1
    self.violations += [problem] if problem else []

  def outcomes(self, target: str) -> dict[str, int]:
    """How often a target's reader ended how."""
    return {o: n for (t, o), n in self.counts.items() if t == target}

  def __str__(self) -> str:
    lines = []
    for target in sorted({t for t, _ in self.counts}):
      outcomes = self.outcomes(target)
      each = ", ".join(f"{n} {o}" for o, n in sorted(outcomes.items()))
      lines.append(f"{target}: {sum(outcomes.values())} ({each})")
    total = sum(self.counts.values())
    lines.append(f"{total} files, {len(self.violations)} violations")
    return "\n".join([*self.violations, *lines])


class _OverTimeError(BaseException):
  """The watchdog's; no reader catches it by mistake."""


def damage(rng: random.Random, data: bytes, target: Target) -> bytes:
  """Returns a damaged copy: one to four edits, the first most likely alone."""
  for _ in range(min(4, 1 + int(rng.expovariate(0.9)))):
    known = target.edits and rng.random() < 0.5
    edit = rng.choice(target.edits if known else _EDITS)
    if edit is _splice:
      data = _splice(rng, data, rng.choice(target.samples))
    else:
      data = edit(rng, data)
  return data


def damage_any(rng: random.Random, data: bytes) -> bytes:
  """Returns a copy with one edit that knows no format."""
  return rng.choice(_EDITS)(rng, data)


def run(
  targets: Sequence[Target],
  *,
  seed: int,
  cases: Iterable[int],
  seconds: float = 2.0,
  megabytes: int = 500,
) -> Report:
  """Reads damaged files, in this process.

  Args:
    targets: Case `i` is one of the `i % len(targets)`-th.
    seed: Of the damage.
    cases: Which ones.
    seconds: Of processor time that one file may take.
    megabytes: Of address space that one file may take.

  Returns:
    What happened.
  """
  report = Report(collections.Counter(), [])
  for outcome in _outcomes(targets, seed, cases, seconds, megabytes):
    report.add(*outcome)
  return report


def _outcomes(
  targets: Sequence[Target],
  seed: int,
  cases: Iterable[int],
  seconds: float,
  megabytes: int,
) -> Iterator[tuple[str, str, str]]:
  """Yields each case's target, how it ended, and what is wrong with that."""
  with tempfile.TemporaryDirectory() as root:

    def read(target: Target, name: str, data: bytes) -> tuple[str, str]:
      folder = pathlib.Path(root, name)
      folder.mkdir()
      try:
        return _judge(target, folder, data)
      finally:
        shutil.rmtree(folder)

    # Sound files are read; what is loaded for that is not counted later.
    for target in targets:
      for data in target.samples:
        outcome, problem = read(target, "sample", data)
        if outcome != "read":
          raise AssertionError(
            f"a sample of {target.name}: {outcome} {problem}"
          )
    for case in cases:
      target = targets[case % len(targets)]
      data = make(targets, seed, case)
      with bounded(seconds, megabytes):
        outcome, problem = read(target, str(case), data)
      if problem:
        problem = f"--seed {seed} --only {case}: {target.name}: {problem}"
      yield target.name, outcome, problem


def make(targets: Sequence[Target], seed: int, case: int) -> bytes:
  """Returns the damaged file of one case."""
  target = targets[case % len(targets)]
  rng = random.Random(f"{seed} {case}")
  return damage(rng, rng.choice(target.samples), target)


def _judge(
  target: Target, folder: pathlib.Path, data: bytes
) -> tuple[str, str]:
  """Reads one file; returns how it ended, and what is wrong with that."""
  try:
    target.read(folder, data)
  except target.refusals as error:
    kind, text = type(error).__name__, str(error)
    if type(error) not in target.refusals:
      return kind, f"raises {kind}, which is not documented: {text[:200]!a}"
    if text != printable(text, limit=len(text) + 1):
      return kind, f"a message that is no printable line: {text[:200]!a}"
    if not 0 < len(text) <= 2000:
      return kind, f"a message of {len(text)} characters"
    if str(folder) not in text:
      return kind, f"a message that does not name the file: {text[:200]!a}"
    return kind, ""
  except _OverTimeError:
    return "over time", "over time"
  except Exception as error:
    kind = type(error).__name__
    return kind, f"raises {kind}: {str(error)[:200]!a}"
  return "read", ""


@contextlib.contextmanager
def bounded(seconds: float, megabytes: int) -> Iterator[None]:
  """Ends what takes too long or too much, by an error, in this process."""
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  limit = soft
  if sys.platform == "linux":  # Elsewhere time alone is bounded.
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20

  def end(*_):
    raise _OverTimeError

  handler = signal.signal(signal.SIGPROF, end)
  resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
  signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.signal(signal.SIGPROF, handler)


def main(
  module: str,
  targets: Callable[[], Sequence[Target]],
  argv: Sequence[str] | None = None,
) -> int:
  """The long form, as a command; `python -m MODULE --help` says how.

  Args:
    module: Name of the module that calls this when it is run.
    targets: Makes them; called in the child.
    argv: Arguments, by default the process's.

  Returns:
    The exit status: 1 if there were violations.
  """
  parser = argparse.ArgumentParser(prog=f"python -m {module}")
  parser.add_argument("--count", type=int, default=1000, help="files to read")
  parser.add_argument("--seed", type=int, default=0, help="of the damage")
  parser.add_argument("--only", type=int, help="this case alone")
  parser.add_argument("--keep", help="writes that case's file here")
  parser.add_argument("--seconds", type=float, default=2.0, help="a file")
  parser.add_argument("--megabytes", type=int, default=500, help="a file")
  parser.add_argument(
    "--silence",
    type=float,
    default=100.0,
    help="seconds of the clock after which a child without a word is ended;"
    " far above --seconds, for the machine may be busy",
  )
  parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.keep and args.only is not None:
    data = make(targets(), args.seed, args.only)
    pathlib.Path(args.keep).write_bytes(data)
  cases = range(args.count) if args.only is None else [args.only]
  if args.child is not None:
    _child(targets(), args, cases[args.child :])
    return 0
  report = _parent(module, args, cases)
  print(report)
  return 1 if report.violations else 0


def _child(targets, args, cases):
  """Runs cases, and says how each of them ended."""
  for outcome in _outcomes(
    targets, args.seed, cases, args.seconds, args.megabytes
  ):
    print(json.dumps(outcome), flush=True)
  print("done", flush=True)


def _parent(module, args, cases):
  """Has children run the cases, a new one after each that dies."""
  report, begun = Report(collections.Counter(), []), 0
  while True:
    command = [sys.executable, "-m", module, f"--child={begun}"]
    command += [f"--{k}={getattr(args, k)}" for k in ("count", "seed")]
    command += [f"--seconds={args.seconds}", f"--megabytes={args.megabytes}"]
    command += [] if args.only is None else [f"--only={args.only}"]
    first = begun
    with subprocess.Popen(
      command, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
      for line in _lines(child, args.silence):
        if line == "done":
          return report
        report.add(*json.loads(line))
        begun += 1
      child.kill()
    how = f"the process ended with status {child.returncode}"
    if begun == first == 0:
      raise RuntimeError(f"{module}: {how} before any case")
    problem = f"--seed {args.seed} --only {cases[begun]}: {how}"
    report.add("killed", how, problem)
    begun += 1


def _lines(child: subprocess.Popen, seconds: float) -> Iterator[str]:
  """Yields what a process prints, until it ends or is silent for too long."""
  while select.select([child.stdout], [], [], seconds)[0]:
    if not (line := child.stdout.readline()):
      return
    yield line.strip()


# --- edits that know no format ----------------------------------------------


def _position(rng: random.Random, data: bytes) -> int:
  """A place in the file; more often near its ends, where headers are."""
  size = len(data)
  if size > 1024 and rng.random() < 0.5:
    near = rng.randrange(512)
    return near if rng.random() < 0.5 else size - 1 - near
  return rng.randrange(size) if size else 0


def _run(rng: random.Random, data: bytes) -> tuple[int, int]:
  """Start and end of a piece, mostly short."""
  start = _position(rng, data)
  length = 2 ** rng.randrange(17 if rng.random() < 0.1 else 8)
  return start, min(start + rng.randint(1, length), len(data))


def _flip(rng: random.Random, data: bytes) -> bytes:
  damaged = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 8)) if data else 0):
    damaged[_position(rng, data)] ^= 1 << rng.randrange(8)
  return bytes(damaged)


def _set_byte(rng: random.Random, data: bytes) -> bytes:
  damaged = bytearray(data)
  if data:
    value = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    damaged[_position(rng, data)] = value
  return bytes(damaged)


def _set_integer(rng: random.Random, data: bytes) -> bytes:
  width, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
  edges = (len(data), 2 * len(data), 2**32 - len(data))
  value = rng.choice(rng.choice((_NUMBERS, _EDGES, edges)))
  place = _position(rng, data)
  if rng.random() < 0.5:
    place -= place % width
  raw = (value % 256**width).to_bytes(width, order)
  return (data[:place] + raw + data[place + width :])[: max(len(data), width)]


def _insert(rng: random.Random, data: bytes) -> bytes:
  place, (start, end) = _position(rng, data), _run(rng, data)
  new = rng.choice((data[start:end], rng.randbytes(rng.randint(1, 16))))
  return data[:place] + new[:_MAX_GROWTH] + data[place:]


def _delete(rng: random.Random, data: bytes) -> bytes:
  start, end = _run(rng, data)
  return data[:start] + data[end:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
  start, end = _run(rng, data)
  times = rng.choice((1, 2, 16, 300))
  new = (data[start:end] * times)[:_MAX_GROWTH]
  return data[:end] + new + data[end:]


def _truncate(rng: random.Random, data: bytes) -> bytes:
  return data[: _position(rng, data)]


def _zero(rng: random.Random, data: bytes) -> bytes:
  start, end = _run(rng, data)
  return data[:start] + bytes(end - start) + data[end:]


def _swap(rng: random.Random, data: bytes) -> bytes:
  (a, b), (c, d) = sorted((_run(rng, data), _run(rng, data)))
  if b > c:
    return data
  return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _set_text(rng: random.Random, data: bytes) -> bytes:
  """Puts another number, or worse, where digits stand."""
  start = _position(rng, data)
  found = re.compile(rb"-?[0-9][0-9.e+-]*").search(data, start, start + 4096)
  if not found:
    return _set_byte(rng, data)
  return data[: found.start()] + rng.choice(_TEXTS) + data[found.end() :]


def _splice(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
  """The beginning of one file and the end of another."""
  place = _position(rng, data)
  if rng.random() < 0.5:
    return data[:place] + other[place:]
  return data[:place] + other[_position(rng, other) :]


_EDITS: tuple[Edit, ...] = (
  *(_flip, _set_byte, _set_integer, _set_text, _insert, _delete, _repeat),
  *(_truncate, _zero, _swap, _splice),
)
