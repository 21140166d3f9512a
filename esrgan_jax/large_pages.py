"""Large pages for large buffers, where a program computes on CPUs.

glibc maps a large buffer for itself, and gives it back to the system when it is
freed. XLA's buffers on a CPU are such, at each call of a program: the system
finds their pages anew, one by one, 4 kB each, and fills them with zeros first.
That is a tenth of a training step. Of pages of 2 MB there are 500 times fewer.
What else was tried, and what it costs, is in docs/compiling.md.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["large_pages", "restart_with_large_pages"]

_TUNABLES = "GLIBC_TUNABLES"
# Programs that ask for them get large pages, and no others: Debian's default,
# and Ubuntu's. Where all get them, or none does, there is nothing to ask.
_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def large_pages(environment: Mapping[str, str]) -> dict[str, str]:
  """Returns variables of a process, for large pages under large buffers.

  Args:
    environment: The variables that it has so far.

  Returns:
    Those to add: none where a user has chosen by others how memory is found
    (`GLIBC_TUNABLES`, `MALLOC_ARENA_MAX` and its like), where the C library is
    not glibc of 2.35 or newer, or where the system gives none that are asked
    for.

  Source: "Memory Allocation Tunables" in glibc's manual, `hugetlb`.

  >>> large_pages({"MALLOC_ARENA_MAX": "8"})
  {}
  """
  if any(n == _TUNABLES or n.startswith("MALLOC_") for n in environment):
    return {}
  library, version = platform.libc_ver()
  numbers = tuple(int(n) for n in version.split(".") if n.isdecimal())
  if library != "glibc" or numbers < (2, 35):
    return {}
  try:
    given = "[madvise]" in _MODE.read_text(encoding="utf-8")
  except OSError:
    given = False
  return {_TUNABLES: "glibc.malloc.hugetlb=1"} if given else {}


def restart_with_large_pages(program: Mapping[str, Any]) -> None:
  """Starts this process's command anew, within it, with `large_pages`.

  glibc reads its variables once, when a process starts. For programs that
  compute long, and before they have done anything: the training program does it
  first of all, where no accelerator's plugin is installed. It returns where
  there is nothing to add, so also the second time, or a debugger looks on.

  Args:
    program: The caller's `globals()`. Where they are not those of the file that
      the process was started with, another program is at work, which would lose
      what it has done; from standard input a program comes only once.
  """
  own = program is vars(sys.modules["__main__"])
  own = own and os.path.isfile(program.get("__file__", ""))
  added = large_pages(os.environ)
  if not (own and added and _has_cpus_alone()) or sys.gettrace() is not None:
    return
  arguments = [sys.executable, *sys.orig_argv[1:]]
  try:
    os.execve(sys.executable, arguments, os.environ | added)
  except OSError:
    return  # It can do without.


def _has_cpus_alone() -> bool:
  """Whether JAX will compute on CPUs, told without importing it."""
  if platforms := os.environ.get("JAX_PLATFORMS"):
    return platforms.lower() == "cpu"
  # Where JAX looks for others.
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  packages = map(importlib.util.find_spec, ("jax_plugins", "libtpu"))
  return not plugins and not any(packages)
