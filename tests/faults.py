"""Faults of machines, disks and data, and what becomes of a training.

A fault of a number is a function of the seed. It strikes a real run of the
training program, from nothing or from a state under way; then the same command
is started again, without the fault. Allowed is either of two ends: the models
of a run that nothing disturbed, bit for bit, and its film, where it has only
been stopped; or a refusal, on a line that names what is wrong, which leaves
every file where it was.

  python -m tests.faults --count 100 --seed 1
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from tests.training_runs import ROOT, models, tiny_config, write_config

# Processes are forked from one that has imported all that takes seconds.
_PRELOAD = [
  "esrgan_jax.main",
  "esrgan_jax.training.loop",
  "orbax.checkpoint",
  "clu.parameter_overview",
]
_TIMEOUT = 600


@dataclasses.dataclass
class Ended:
  """How a run has ended: its exit status (negative: a signal) and output."""

  status: int
  output: str


class Place:
  """Folders and runs of a series of faults.

  Args:
    folder: Where all of it is; must exist.

  Attributes:
    undisturbed: The workdir of a run that nothing disturbed.
    photos: The folder of its images.
    logs: What the runs since the last clearing have printed.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    config = tiny_config(folder)
    config["phases"]["gan"]["perceptual_weight"] = 0.0
    config["data"]["eval"] = config["data"]["sources"]
    config["data"]["on_problem"] = "stop"
    config["eval"] = {"num_samples": 1, "sample_size": 32, "max_images": 1}
    config["interpolation_alphas"] = (0.0, 1.0)
    self.config = write_config(folder / "config.py", config)
    self.photos = pathlib.Path(config["data"]["sources"])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("ESRGAN_JAX_CACHE", str(folder / "cache"))
    self._context = multiprocessing.get_context("forkserver")
    self._context.set_forkserver_preload(_PRELOAD)
    self.logs: list[str] = []
    self.undisturbed = folder / "undisturbed"
    ended = self.run(self.undisturbed)
    if ended.status:
      raise RuntimeError(f"nothing disturbs, and it fails: {ended.output}")
    # As they are in the middle of either phase.
    self.beginnings = [None]
    for phase in ("psnr", "gan"):
      workdir = folder / f"beginning_{phase}"
      wanted = workdir / phase / "checkpoints" / "6"
      with self.started(workdir) as process:
        while process.is_alive() and not wanted.is_dir():
          time.sleep(0.002)
        process.kill()
      self.beginnings.append(workdir)

  @contextlib.contextmanager
  def started(
    self, workdir: pathlib.Path, *flags: str, file_size: int = 0
  ) -> Iterator[multiprocessing.Process]:
    """Starts a run; on exit, waits for its end.

    Args:
      workdir: Its workdir.
      *flags: Further arguments.
      file_size: Bytes at which its files end, as on a full disk; 0 for none.

    Yields:
      The process; what it prints is in `workdir` with the suffix `.log`.
    """
    log = workdir.with_suffix(".log")
    arguments = [f"--config={self.config}", f"--workdir={workdir}", *flags]
    process = self._context.Process(
      target=_train, args=(arguments, str(log), file_size)
    )
    process.start()
    try:
      yield process
    finally:
      process.join(_TIMEOUT)
      self.logs.append(log.read_text(errors="replace"))
      if process.is_alive():
        process.kill()
        raise Violation(f"{workdir} hangs: {self.logs[-1]}")

  @contextlib.contextmanager
  def started_twice(
    self, workdir: pathlib.Path
  ) -> Iterator[subprocess.Popen[str]]:
    """Starts a run in two processes, by the script; on exit, waits."""
    log = workdir.with_suffix(".log")
    command = ["bash", str(ROOT / "launch/local_processes.sh"), "2"]
    command += [f"--config={self.config}", f"--workdir={workdir}"]
    command += ["--config.mesh.num_devices=0"]
    with log.open("w") as file:
      process = subprocess.Popen(
        command,
        stdout=file,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
      )
      try:
        yield process
      finally:
        process.wait(_TIMEOUT)
        self.logs.append(log.read_text(errors="replace"))

  def run(
    self, workdir: pathlib.Path, *flags: str, file_size: int = 0
  ) -> Ended:
    """Runs to the end."""
    with self.started(workdir, *flags, file_size=file_size) as process:
      pass
    return Ended(process.exitcode, self.logs[-1])

  def begin(self, chance: random.Random, name: str) -> pathlib.Path:
    """Returns a new workdir: empty, or that of a run that was killed."""
    workdir = self.folder / name
    beginning = chance.choice(self.beginnings)
    if beginning:
      shutil.copytree(beginning, workdir)
    return workdir


def _train(arguments: list[str], log: str, file_size: int) -> None:
  """A run, in a process of its own."""
  descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(descriptor, 1)
  os.dup2(descriptor, 2)
  if file_size:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
  from esrgan_jax import main

  status = main.main(arguments)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


# A fault takes the place, a source of chance and a workdir. It does harm, and
# undoes what is not the workdir's own: the same command then goes on.
Fault = Callable[[Place, random.Random, pathlib.Path], None]


def _progress(workdir: pathlib.Path) -> int:
  """How far a run has come: grows with every line that it logs."""
  return sum(path.stat().st_size for path in workdir.glob("*/metrics.jsonl"))


def _strike(
  place: Place, chance: random.Random, workdir: pathlib.Path, number: int
) -> None:
  """Sends a signal at a moment between beginning and end."""
  whole = _progress(place.undisturbed)
  moment = chance.uniform(_progress(workdir), 1.05 * whole)
  with place.started(workdir) as process:
    while process.is_alive() and _progress(workdir) < moment:
      time.sleep(0.002)
    time.sleep(chance.random() * 0.3)
    if process.is_alive():
      os.kill(process.pid, number)


def kill(place: Place, chance: random.Random, workdir: pathlib.Path) -> None:
  """`kill -9`, one to three times."""
  for _ in range(chance.randint(1, 3)):
    _strike(place, chance, workdir, signal.SIGKILL)


def terminate(
  place: Place, chance: random.Random, workdir: pathlib.Path
) -> None:
  """SIGTERM or SIGINT: saved, and said."""
  number = chance.choice((signal.SIGTERM, signal.SIGINT))
  _strike(place, chance, workdir, number)


@contextlib.contextmanager
def _mounted(workdir: pathlib.Path) -> Iterator[Callable[[str], None] | None]:
  """Has a workdir be a disk of its own; yields what mounts it anew.

  None where this process may not: it takes root.
  """
  aside = workdir.with_suffix(".aside")
  if workdir.exists():
    workdir.rename(aside)
  workdir.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(workdir)]
  mounted = not subprocess.run(
    mount, capture_output=True, check=False
  ).returncode
  if aside.exists():
    shutil.copytree(aside, workdir, dirs_exist_ok=True)
    shutil.rmtree(aside)

  def remount(options: str) -> None:
    subprocess.run(
      ["mount", "-o", f"remount,{options}", str(workdir)], check=True
    )

  try:
    yield remount if mounted else None
  finally:
    if mounted:
      shutil.copytree(workdir, aside)
      subprocess.run(["umount", str(workdir)], check=True)
      workdir.rmdir()
      aside.rename(workdir)


def full_disk(
  place: Place, chance: random.Random, workdir: pathlib.Path
) -> None:
  """A disk that fills up: before, or in the middle of anything."""
  with _mounted(workdir) as remount:
    if remount is None:
      place.run(workdir, file_size=int(2 ** chance.uniform(8, 16)))
      return
    used = shutil.disk_usage(workdir).used // 1024
    remount(f"size={used + 4 + int(2 ** chance.uniform(0, 9))}k")
    place.run(workdir)
    remount("size=64m")


def read_only(
  place: Place, chance: random.Random, workdir: pathlib.Path
) -> None:
  """A disk that cannot be written, from the beginning or from some moment."""
  with _mounted(workdir) as remount:
    if remount is None:
      workdir.chmod(0o555)
      place.run(workdir)
      workdir.chmod(0o755)
      return
    moment = chance.choice((0, chance.uniform(0, _progress(place.undisturbed))))
    if not moment:
      remount("ro")
    with place.started(workdir) as process:
      while process.is_alive() and _progress(workdir) < moment:
        time.sleep(0.002)
      with contextlib.suppress(subprocess.CalledProcessError):
        remount("ro")  # Refused while a file is open for writing.
    remount("rw")


def _checkpoint_files(workdir: pathlib.Path) -> list[pathlib.Path]:
  found = workdir.glob("*/checkpoints/*/**/*")
  return sorted(path for path in found if path.is_file())


def _ensure_checkpoints(place, chance, workdir):
  if not _checkpoint_files(workdir):
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(chance.choice(place.beginnings[1:]), workdir)


def truncate(
  place: Place, chance: random.Random, workdir: pathlib.Path
) -> None:
  """A file of a checkpoint ends early."""
  _ensure_checkpoints(place, chance, workdir)
  path = chance.choice(_checkpoint_files(workdir))
  os.truncate(path, chance.randrange(path.stat().st_size + 1))


def flip(place: Place, chance: random.Random, workdir: pathlib.Path) -> None:
  """A bit of a checkpoint is another."""
  _ensure_checkpoints(place, chance, workdir)
  path = chance.choice(_checkpoint_files(workdir))
  content = bytearray(path.read_bytes())
  if content:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def remove(place: Place, chance: random.Random, workdir: pathlib.Path) -> None:
  """A file or folder of a checkpoint is gone."""
  _ensure_checkpoints(place, chance, workdir)
  parts = [
    part
    for part in sorted(workdir.glob("*/checkpoints/*/**/*"))
    if part.name != "checkpoints"
  ]
  part = chance.choice(parts)
  if part.is_dir():
    shutil.rmtree(part)
  else:
    part.unlink()


def lose_data(
  place: Place, chance: random.Random, workdir: pathlib.Path
) -> None:
  """A photo is damaged when a run starts; or all vanish in the middle of it."""
  if chance.random() < 0.5:
    photo = chance.choice(sorted(place.photos.glob("*.png")))
    content = photo.read_bytes()
    photo.write_bytes(content[: chance.randrange(1, len(content))])
    try:
      place.run(workdir)
    finally:
      photo.write_bytes(content)
    return
  moment = _progress(workdir) + 1
  aside = place.photos.with_suffix(".aside")
  with place.started(workdir) as process:
    while process.is_alive() and _progress(workdir) < moment:
      time.sleep(0.002)
    place.photos.rename(aside)
    try:
      process.join(_TIMEOUT)
    finally:
      aside.rename(place.photos)


def diverge(place: Place, chance: random.Random, workdir: pathlib.Path) -> None:
  """Updates that are not finite, or absurd, from some step on."""
  rate = 10 ** chance.uniform(6, 35)
  phase = chance.choice(("psnr", "gan"))
  place.run(
    workdir,
    "--config.allow_changes=true",
    f"--config.phases.{phase}.learning_rate={rate:g}",
    "--config.max_skipped_in_a_row=2",
  )


def one_of_two(
  place: Place, chance: random.Random, workdir: pathlib.Path
) -> None:
  """Two processes train, and one of them is killed."""
  with place.started_twice(workdir) as process:
    moment = chance.uniform(1, _progress(place.undisturbed))
    while process.poll() is None and _progress(workdir) < moment:
      time.sleep(0.002)
    found = subprocess.run(
      ["pgrep", "-f", f"esrgan_jax.main .*{workdir}"],
      capture_output=True,
      text=True,
      check=False,
    ).stdout.split()
    if found:
      with contextlib.suppress(ProcessLookupError):
        os.kill(int(chance.choice(found)), signal.SIGKILL)


FAULTS: tuple[Fault, ...] = (
  kill,
  terminate,
  full_disk,
  read_only,
  truncate,
  flip,
  remove,
  lose_data,
  diverge,
  one_of_two,
)


def _snapshot(folder: pathlib.Path) -> dict[str, str]:
  """Digests of a workdir's checkpoints and models."""
  found = [*folder.rglob("*checkpoints*/**/*"), *folder.glob("models/*")]
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(found)
    if path.is_file()
  }


class Violation(AssertionError):  # noqa: N818
  """A fault whose end is not allowed; the message tells it."""


def strike_and_resume(place: Place, seed: int, number: int) -> str:
  """Does one fault, starts the same command again, and judges the end.

  Args:
    place: Where.
    seed: Of the series.
    number: Of the fault: the kind goes in turns.

  Returns:
    How it ended: "exact" or "refused".

  Raises:
    Violation: If it ended otherwise.
  """
  chance = random.Random(f"{seed}/{number}")
  fault = FAULTS[number % len(FAULTS)]
  workdir = place.begin(chance, f"fault_{number}")
  place.logs.clear()
  fault(place, chance, workdir)
  flags = ["--config.allow_changes=true"] if fault is diverge else []
  before = _snapshot(workdir)
  ended = place.run(workdir, *flags)
  what = f"--seed {seed} --only {number} ({fault.__name__})"
  for log in place.logs:
    if "Traceback" in log:
      raise Violation(f"{what}: a traceback\n{log}")
  if ended.status == 0:
    # Sums over two devices round otherwise.
    tolerance = 1e-3 if fault is one_of_two else 0.0
    if not _same(place.undisturbed, workdir, tolerance):
      raise Violation(f"{what}: other models\n{ended.output}")
    stopped = fault in (kill, terminate)
    if stopped and _film(place.undisturbed) != _film(workdir):
      raise Violation(f"{what}: another film\n{ended.output}")
    result = "exact"
  else:
    lines = ended.output.splitlines()
    if ended.status != 1 or not any(x.startswith("error: ") for x in lines):
      raise Violation(f"{what}: status {ended.status}\n{ended.output}")
    if before != _snapshot(workdir):
      raise Violation(f"{what}: refused, and files moved\n{ended.output}")
    result = "refused"
  shutil.rmtree(workdir, ignore_errors=True)
  return result


def _same(a: pathlib.Path, b: pathlib.Path, tolerance: float) -> bool:
  """Whether two workdirs have the same models."""
  a, b = models(a), models(b)
  return a.keys() == b.keys() and all(
    np.allclose(array, b[key], rtol=0, atol=tolerance)
    for key, array in a.items()
  )


def _film(workdir: pathlib.Path) -> dict[str, bytes]:
  """The film, and its frames."""
  files = [workdir / "film.webp", *workdir.glob("film/*/[0-9]*.png")]
  return {
    path.relative_to(workdir).as_posix(): path.read_bytes() for path in files
  }


def main(argv: list[str] | None = None) -> int:
  """Runs a series of faults and prints the counts."""
  parser = argparse.ArgumentParser(
    prog="python -m tests.faults",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--count", type=int, default=len(FAULTS))
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", type=int, help="number of one fault")
  args = parser.parse_args(argv)
  numbers = range(args.count) if args.only is None else [args.only]
  counts, violations = collections.Counter(), 0
  with tempfile.TemporaryDirectory() as folder:
    place = Place(pathlib.Path(folder))
    for number in numbers:
      name = FAULTS[number % len(FAULTS)].__name__
      try:
        result = strike_and_resume(place, args.seed, number)
      except Violation as violation:
        violations, result = violations + 1, "violation"
        print(violation, flush=True)
      counts[name, result] += 1
      print(f"{number} {name}: {result}", flush=True)
  for (name, result), count in sorted(counts.items()):
    print(f"{name:12} {result:10} {count}")
  print(f"{sum(counts.values())} faults, {violations} violations")
  return 1 if violations else 0


if __name__ == "__main__":
  sys.exit(main())
