"""What is freed is kept: counted by the system, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

BUFFERS = """\
import resource
import numpy as np
from esrgan_jax import heap

kept = heap.keep_freed_memory()

def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
  a, b = (np.empty(2**24, np.uint8) for _ in range(2))
  a.fill(1), b.fill(1)

use()
before = faults()
for _ in range(20):
  use()
print(kept, faults() - before)
"""
GLIBC = platform.libc_ver()[0] == "glibc"


def _counted(**environment):
  done = subprocess.run(
    [sys.executable, "-c", BUFFERS],
    env=_without_choices() | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  kept, faults = done.stdout.split()
  return kept == "True", int(faults)


def _without_choices():
  return {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))
  }


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_what_is_freed_is_taken_again():
  kept, faults = _counted()
  assert kept
  # A buffer has 4096 pages, or 8 large ones.
  assert faults < 100


PIECES = """\
import os
import numpy as np
from esrgan_jax import heap

def resident():
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

heap.give_back()  # Nothing is kept yet.
heap.keep_freed_memory()
large = np.ones(2**28, np.uint8)
behind = np.ones(2**20, np.uint8)
before = resident()
del large
kept = resident()
heap.give_back()
print(before - kept, kept - resident(), behind.sum())
"""


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_what_is_free_in_the_middle_is_given_back():
  done = subprocess.run(
    [sys.executable, "-c", PIECES],
    env=_without_choices(),
    capture_output=True,
    text=True,
    check=True,
  )
  freed, given, left = map(int, done.stdout.split())
  assert freed < 2**24
  assert given > 2**28 - 2**24
  assert left == 2**20


@pytest.mark.skipif(not GLIBC, reason="another C library")
@pytest.mark.parametrize(
  ("platforms", "kept"), [("cpu", True), ("cuda,cpu", False)]
)
def test_the_training_program_does_it_on_cpus_alone(platforms, kept):
  """And only as a program: `main` may be called in anybody's process."""
  program = """\
import runpy, sys
from esrgan_jax import heap
keep = heap.keep_freed_memory
heap.keep_freed_memory = lambda: print("kept", keep())
sys.argv = ["main", "--help"]
runpy.run_module("esrgan_jax.main", run_name=NAME)
"""
  found = {}
  for name in ("__main__", "esrgan_jax.main"):
    done = subprocess.run(
      [sys.executable, "-c", program.replace("NAME", repr(name))],
      env=_without_choices() | {"JAX_PLATFORMS": platforms},
      capture_output=True,
      text=True,
      check=True,
    )
    found[name] = done.stdout.startswith("kept True")
  assert found == {"__main__": kept, "esrgan_jax.main": False}


@pytest.mark.parametrize(
  "choice",
  [
    {"MALLOC_TRIM_THRESHOLD_": "131072"},
    {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
  ],
  ids=lambda choice: next(iter(choice)),
)
def test_what_a_user_has_chosen_stays(choice):
  kept, _ = _counted(**choice)
  assert not kept
