"""What a benchmark says about where it ran."""

import importlib.metadata
import os
import pathlib
import platform


def describe() -> str:
  """Returns a line about this machine: processor, cores, Python."""
  python = platform.python_version()
  return f"{_processor()}, {num_cores()} cores, Python {python}"


def versions(*packages: str) -> str:
  """Returns a line of packages and their versions.

  >>> versions("no-such-package")
  'no-such-package absent'
  """
  found = []
  for package in packages:
    try:
      found.append(f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:
      found.append(f"{package} absent")
  return ", ".join(found)


def num_cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _processor():
  """The processor's name, or its architecture where it has none."""
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.machine()
