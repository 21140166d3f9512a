"""Large pages: counted by the system, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

from esrgan_jax import large_pages


def _without_choices():
  return {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))
  }


ADDED = large_pages.large_pages(_without_choices())
needs_them = pytest.mark.skipif(
  not ADDED, reason="another C library, or a system without"
)

BUFFERS = """\
import resource

def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

before = faults()
for _ in range(4):
  b"1" * 2**27
print(faults() - before)
"""


@needs_them
def test_a_large_buffer_has_few_pages():
  counted = []
  for added in ({}, ADDED):
    done = subprocess.run(
      [sys.executable, "-c", BUFFERS],
      env=_without_choices() | added,
      capture_output=True,
      text=True,
      check=True,
    )
    counted.append(int(done.stdout))
  small, large = counted
  assert small > 4 * 2**27 // 4096 * 0.9
  assert large < small / 20


@needs_them
@pytest.mark.parametrize(
  ("platforms", "restarts"), [("cpu", True), ("cuda,cpu", False)]
)
def test_the_training_program_has_them_on_cpus_alone(platforms, restarts):
  """And only as a program: `main` may be called in anybody's process."""
  program = """\
import os, runpy, sys
def told(path, arguments, environment):
  print("anew", arguments[1:], environment["GLIBC_TUNABLES"])
os.execve = told
sys.argv = ["main", "--help"]
runpy.run_module("esrgan_jax.main", run_name=NAME)
"""
  found = {}
  for name in ("__main__", "esrgan_jax.main"):
    code = program.replace("NAME", repr(name))
    done = subprocess.run(
      [sys.executable, "-c", code],
      env=_without_choices() | {"JAX_PLATFORMS": platforms},
      capture_output=True,
      text=True,
      check=True,
    )
    expected = f"anew {['-c', code]} {ADDED['GLIBC_TUNABLES']}"
    found[name] = done.stdout.startswith(expected)
  assert found == {"__main__": restarts, "esrgan_jax.main": False}


@needs_them
def test_it_starts_anew_once_with_the_same_arguments():
  program = """\
import os, sys
from esrgan_jax import large_pages
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], flush=True)
large_pages.restart_with_large_pages()
"""
  done = subprocess.run(
    [sys.executable, "-c", program, "a b", "--c=d"],
    env=_without_choices() | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=True,
  )
  first, second = done.stdout.splitlines()
  number, chosen, rest = first.split(maxsplit=2)
  assert chosen == "None"
  assert rest == "['a b', '--c=d']"
  assert second == f"{number} {ADDED['GLIBC_TUNABLES']} {rest}"


@pytest.mark.parametrize(
  "choice",
  [
    {"MALLOC_TRIM_THRESHOLD_": "131072"},
    {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
  ],
  ids=lambda choice: next(iter(choice)),
)
def test_what_a_user_has_chosen_stays(choice):
  assert large_pages.large_pages(_without_choices() | choice) == {}


@pytest.mark.parametrize(
  ("library", "mode"),
  [
    (("musl", "1.2.4"), "always [madvise] never"),
    (("glibc", "2.34"), "always [madvise] never"),
    (("glibc", "2.36"), "[always] madvise never"),
    (("glibc", "2.36"), "always madvise [never]"),
    (("glibc", "2.36"), None),
  ],
)
def test_where_there_is_nothing_to_gain(monkeypatch, tmp_path, library, mode):
  monkeypatch.setattr(platform, "libc_ver", lambda: library)
  monkeypatch.setattr(large_pages, "_MODE", tmp_path / "enabled")
  if mode is not None:
    (tmp_path / "enabled").write_text(f"{mode}\n")
  assert large_pages.large_pages({}) == {}
