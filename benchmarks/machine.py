"""What a benchmark says about where it ran."""

import importlib.metadata
import os
import pathlib
import platform

_VECTORS = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "NEON"))
_BFLOAT16 = (
  ("avx512_bf16", "AVX512_BF16"),
  ("amx_bf16", "AMX"),
  ("bf16", "BF16"),
)


def describe() -> str:
  """Returns a line about this machine: processor, its kind, cores, Python."""
  python = platform.python_version()
  parts = [_processor(), instructions(), f"{num_cores()} cores"]
  return ", ".join([*filter(None, parts), f"Python {python}"])


def instructions() -> str:
  """Returns what speeds depend on: the widest vectors, units for bfloat16.

  Nothing where the system doesn't tell.
  """
  flags = set(_cpuinfo("flags").split()) | set(_cpuinfo("Features").split())
  widest = next((name for flag, name in _VECTORS if flag in flags), "")
  more = [name for flag, name in _BFLOAT16 if flag in flags]
  return " ".join([*filter(None, [widest]), *more])


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
  return _cpuinfo("model name") or platform.machine()


def _cpuinfo(name):
  """A line of what Linux tells of the first core."""
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      key, _, value = line.partition(":")
      if key.strip() == name:
        return value.strip()
  return ""
