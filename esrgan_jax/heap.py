"""The C library's heap: what a step frees, the next one takes again.

glibc maps a large buffer for itself, and gives it back to the system when it is
freed. XLA's buffers on a CPU are such, at each call of a program: the system
finds their pages anew, one by one, and fills them with zeros first. That is a
tenth of a training step and more (docs/compiling.md).
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["give_back", "keep_freed_memory"]

# mallopt's, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_HUGE_PAGES = 14  # madvise's, in Linux's mman.h.
# By these a user has chosen: then nothing is changed.
_CHOICES = (
  "MALLOC_ARENA_MAX",
  "MALLOC_MMAP_MAX_",
  "MALLOC_MMAP_THRESHOLD_",
  "MALLOC_TRIM_THRESHOLD_",
)


def keep_freed_memory() -> bool:
  """Has the C library keep what is freed, for what is asked for next.

  For a program that computes the same over and over, on a CPU, such as a
  training: its memory stays at its most, and no step waits for the system.
  Call it first, before JAX has started its threads: those keep the heaps that
  they have. It is for the whole process, so nothing of this package does it but
  the training program, where no accelerator's plugin is installed.

  Returns:
    Whether it was done: not where the C library is another than glibc, nor
    where the process's variables (`MALLOC_TRIM_THRESHOLD_` and its like,
    `GLIBC_TUNABLES`) say how it is to be.

  Source: mallopt(3).

  >>> from unittest import mock
  >>> with mock.patch.dict(os.environ, MALLOC_ARENA_MAX="8"):
  ...   keep_freed_memory()
  False
  """
  chosen = any(name in os.environ for name in _CHOICES)
  if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
    return False
  if not sys.platform.startswith("linux"):
    return False
  library = ctypes.CDLL(None)
  try:
    library.gnu_get_libc_version  # noqa: B018
    mallopt = library.mallopt
  except AttributeError:
    return False
  # No buffer is mapped for itself; the end of the heap is never given back; and
  # there is one heap, whose size has no limit, for all threads.
  settings = (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)
  if not all(mallopt(*each) for each in settings):
    return False
  _ask_for_large_pages(library)
  _kept.append(library)
  return True


# The C library, once it keeps what is freed.
_kept: list[ctypes.CDLL] = []


def give_back() -> None:
  """Gives the system what is free now, where the heap is kept; else nothing.

  After what is done once: a compiler takes a gigabyte, in pieces that a step's
  buffers do not fit into. And after a program's first calls: until what is
  small has found its place, it lies where a large buffer was, which then goes
  to the heap's end, so that memory grows by one each call. What is given back
  is found anew when it is needed.

  Source: malloc_trim(3).

  >>> give_back()
  """
  for library in _kept:
    library.malloc_trim(0)


def _ask_for_large_pages(library):
  """Of what the heap will have: not a byte of it is taken by that."""
  library.malloc.restype = ctypes.c_void_p
  library.malloc.argtypes = [ctypes.c_size_t]
  library.free.argtypes = [ctypes.c_void_p]
  library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
  page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
  size = page * pages // 2
  # What was freed before is too small for it: it is the heap's new end.
  if start := library.malloc(size):
    whole = -start % page
    library.madvise(start + whole, size - page, _HUGE_PAGES)
    library.free(start)
