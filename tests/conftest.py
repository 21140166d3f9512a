"""Test session set-up: a folder of its own, eight virtual devices, tiers."""

import atexit
import contextlib
import os
import pathlib
import resource
import shutil
import signal
import site
import tempfile

import pytest

_RUN = "ESRGAN_JAX_TEST_RUN"

_OTHER_TIERS = ("slow", "torch", "runtimes", "browser", "release")

# They import PyTorch, and are imported by tests that ask for it.
collect_ignore = ["oracles"]


def pytest_configure():
  """Gives the run a folder for all that it writes, then sets up JAX.

  Temporary files, caches and compiled programs are there, also those of the
  workers and of the processes that tests start: all share their programs. The
  first process of a run makes the folder, and removes it at its end.
  """
  if _RUN not in os.environ:
    folder = tempfile.mkdtemp(prefix="esrgan_jax_tests_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # As Ctrl-C, which ends a run in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ[_RUN] = folder
    os.environ["PYTHONUSERBASE"] = site.getuserbase()  # Not in this `HOME`.
    for variable, name in {
      "HOME": "home",
      "TMPDIR": "tmp",
      "XDG_CACHE_HOME": "cache",
      "ESRGAN_JAX_CACHE": "cache/esrgan_jax",
      "KERAS_HOME": "cache/keras",
      "TFDS_DATA_DIR": "cache/tfds",
      "TORCH_HOME": "cache/torch",
      "JAX_COMPILATION_CACHE_DIR": "programs",
    }.items():
      path = pathlib.Path(folder, name)
      path.mkdir(parents=True, exist_ok=True)
      os.environ[variable] = str(path)
    tempfile.tempdir = None  # Is found anew, by `TMPDIR`.
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Most of a run's time goes into compiling small programs.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
  import jax  # Reads these variables.

  jax.config.update("jax_num_cpu_devices", 8)
  jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_ignore_collect(collection_path):
  """Leaves helpers alone: some import what is not installed everywhere."""
  is_file = collection_path.suffix == ".py"
  return (is_file and not collection_path.name.startswith("test_")) or None


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
    other = any(
      map(
        item.get_closest_marker,
        ("slow", "torch", "runtimes", "browser", "release"),
      )
    )
    (others if other else quick).append(item)
  config.hook.pytest_deselected(items=others)
  items[:] = quick


@pytest.fixture(name="torchvision", scope="session")
def _torchvision():
  """torchvision, be it PyPI's beside PyTorch's CPU build.

  Its operators are built for CUDA and cannot be loaded there. Nothing here
  calls them, but the import of the package wants these two declared.
  """
  import torch

  if torch.version.cuda is None:
    for name in ("nms", "qnms"):
      torch.library.define(f"torchvision::{name}", "(Tensor boxes) -> Tensor")
  import torchvision

  return torchvision


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs():
  """A worker that keeps all of them grows to gigabytes."""
  import jax

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
