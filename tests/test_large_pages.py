"""Large pages: counted by the system, in processes of their own."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

from esrgan_jax import large_pages, main


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


# In place of a site's own: tells how a process is started anew.
TOLD = """\
import os
def told(path, arguments, environment):
  print("anew", arguments[1:], environment["GLIBC_TUNABLES"], flush=True)
os.execve = told
"""
MAIN = pathlib.Path(main.__file__)
HOST = """\
import runpy, sys
print("host")
sys.argv = ["main", "--help"]
runpy.run_module("esrgan_jax.main", run_name="__main__")
"""


@needs_them
@pytest.mark.parametrize(
  ("platforms", "arguments", "text", "restarts"),
  [
    ("cpu", ["-m", "esrgan_jax.main", "--help"], None, True),
    ("cpu", ["-X", "utf8", str(MAIN), "--help"], None, True),
    ("cuda,cpu", ["-m", "esrgan_jax.main", "--help"], None, False),
    ("cpu", ["-", "--help"], MAIN.read_text(encoding="utf-8"), False),
    ("cpu", ["-c", HOST], None, False),
    ("cpu", ["-"], HOST, False),
    ("cpu", ["-c", "import esrgan_jax.main"], None, False),
  ],
  ids=["module", "file", "gpu", "stdin", "host", "host_stdin", "import"],
)
def test_the_training_program_has_them_on_cpus_alone(
  tmp_path, platforms, arguments, text, restarts
):
  """And only as a program: others may call it in their process."""
  (tmp_path / "sitecustomize.py").write_text(TOLD)
  paths = [str(tmp_path), str(MAIN.parent.parent)]
  done = subprocess.run(
    [sys.executable, *arguments],
    env=_without_choices()
    | {"JAX_PLATFORMS": platforms, "PYTHONPATH": os.pathsep.join(paths)},
    input=text,
    capture_output=True,
    text=True,
    check=True,
  )
  expected = f"anew {arguments} {ADDED['GLIBC_TUNABLES']}\n"
  assert done.stdout.startswith(expected) == restarts
  assert done.stdout.count("anew") == restarts
  assert ("usage:" in done.stdout) == (
    arguments[-1] != "import esrgan_jax.main"
  )


@needs_them
def test_it_starts_anew_once_with_the_same_arguments(tmp_path):
  program = tmp_path / "program.py"
  program.write_text("""\
import os, sys
from esrgan_jax import large_pages
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], flush=True)
large_pages.restart_with_large_pages(globals())
""")
  done = subprocess.run(
    [sys.executable, program, "a b", "--c=d"],
    env=_without_choices()
    | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(MAIN.parent.parent)},
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
