"""Test session set-up: eight virtual CPU devices, strict rank promotion."""

import contextlib
import os
import pathlib
import resource
import shutil
import tempfile

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests compile the same small programs, in several workers.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"esrgan_jax_tests_{_RUN}"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Has one worker run all tests of a file, and make its fixtures once.

  In the files' order: xdist's own, by number of tests, would begin the few long
  ones last, when the other worker has nothing left to do.
  """
  from xdist.scheduler import LoadFileScheduling

  config.option.loadscopereorder = False
  return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config, items):
  """Leaves out what other tiers run, unless it is asked for.

  `-m slow` asks for it, as does the name of a test; a marker expression in
  `addopts` would leave out the latter too.
  """
  if config.option.markexpr or any("::" in arg for arg in config.args):
    return
  quick, others = [], []
  for item in items:
    slow = item.get_closest_marker("slow") or item.get_closest_marker("torch")
    (others if slow else quick).append(item)
  config.hook.pytest_deselected(items=others)
  items[:] = quick


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs():
  """A worker that keeps all of them grows to gigabytes."""
  yield
  jax.clear_caches()


@pytest.fixture
def full_disk():
  """A context in which files end at 10 kB, as on a disk that is full."""

  @contextlib.contextmanager
  def limited(size=10_000):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
      yield
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)

  return limited


def pytest_unconfigure(config):
  """Removes the compiled programs, once the last worker is done."""
  if hasattr(config, "workerinput"):
    return
  uid = getattr(config.pluginmanager.getplugin("dsession"), "nodemanager", None)
  uid = uid.testrunuid if uid else str(os.getpid())
  folder = pathlib.Path(tempfile.gettempdir()) / f"esrgan_jax_tests_{uid}"
  shutil.rmtree(folder, ignore_errors=True)
