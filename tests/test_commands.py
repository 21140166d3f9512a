"""`python -m esrgan_jax`: how commands end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from esrgan_jax import __main__, storage
from esrgan_jax.commands import models


@pytest.mark.parametrize(
  ("error", "line"),
  [
    (ValueError("no\x1b[31m\r"), "error: no\\x1b[31m\\r"),
    (OSError(28, "No space left on device"), "error: No space left on device"),
    (
      NotImplementedError("zip version 9.9"),
      "NotImplementedError: zip version",
    ),
    (
      RecursionError("too\n deep"),
      "RecursionError: too deep (ESRGAN_JAX_TRACE",
    ),
    (OverflowError("inf"), "error: OverflowError: inf (ESRGAN_JAX_TRACEBACK=1"),
    (KeyError("x"), "error: KeyError: 'x' ("),
    (MemoryError(), "error: not enough memory"),
    (ValueError(), "error: ValueError"),
  ],
)
def test_an_error_is_a_line(monkeypatch, capsys, error, line):
  def run(_):
    raise error

  monkeypatch.setattr(models, "run", run)
  assert __main__.main(["models"]) == 1
  err = capsys.readouterr().err
  assert line in err
  assert err.count("\n") == 1
  monkeypatch.setenv("ESRGAN_JAX_TRACEBACK", "1")
  with pytest.raises(type(error)):
    __main__.main(["models"])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_no_debris(monkeypatch, tmp_path, name):
  number = getattr(signal, name)

  def run(_):
    with storage.written_aside(tmp_path / "a", overwrite=False) as file:
      file.write(b"half")
      signal.raise_signal(number)
    return 0

  monkeypatch.setattr(models, "run", run)
  ours = signal.getsignal(number)
  usual = signal.SIG_DFL
  if name == "SIGINT":
    usual = signal.default_int_handler
  signal.signal(number, usual)
  try:
    status = __main__.main(["models"])
  except SystemExit as end:
    status = end.code
  finally:
    left = signal.signal(number, ours)
  assert status == 128 + number
  assert os.listdir(tmp_path) == []
  assert left is usual


_BUSY = """
import hashlib, threading, sys
from esrgan_jax import __main__, storage
from esrgan_jax.commands import models

def write(path):
  with storage.written_aside(path, overwrite=False) as file:
    file.write(b"half")
    ready.wait()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # Compiled: an hour.

def run(_):
  path = sys.argv[1] + "/a"
  threading.Thread(target=write, args=(path,), daemon=True).start()
  threading.Timer(0.2, print, ["busy"], {"flush": True}).start()
  write(sys.argv[1] + "/b")

ready = threading.Barrier(2)
models.run = run
__main__._PATIENCE = 0.2
__main__.main(["models"])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_compiled_code_and_leaves_no_debris(tmp_path, name):
  with subprocess.Popen(
    [sys.executable, "-c", _BUSY, tmp_path], stdout=subprocess.PIPE
  ) as process:
    assert process.stdout.readline() == b"busy\n"
    assert len(os.listdir(tmp_path)) == 2
    process.send_signal(getattr(signal, name))
    status = process.wait(20)
  assert status == 128 + getattr(signal, name)
  assert os.listdir(tmp_path) == []


_WHILE_BUSY = """
import os, signal, sys
sys.argv = ["esrgan_jax", "models"]
from esrgan_jax import __main__, storage
from esrgan_jax.commands import models

class Thing:
  def __del__(self):  # Python prints what is raised here, and goes on.
    signal.raise_signal(int(number))

def run(_):
  with storage.written_aside(folder + "/a", overwrite=False) as file:
    Thing()
  return 0

_, number, folder = sys.orig_argv[-3:]
models.run = run
__main__.run_process()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_a_process_wherever_it_comes(tmp_path, name):
  number = getattr(signal, name)
  done = subprocess.run(
    [sys.executable, "-c", _WHILE_BUSY, "", str(int(number)), tmp_path],
    check=False,
    capture_output=True,
    timeout=60,
  )
  expected = b"\ninterrupted\n" if name == "SIGINT" else b""
  assert (done.returncode, done.stderr) == (128 + number, expected)
  assert os.listdir(tmp_path) == []


def test_nothing_heavy_is_imported_before_signals_are_taken():
  """What C++ imports would swallow an interrupt, or print it."""
  code = """
import sys
import time
from esrgan_jax import __main__
assert not {"jax", "numpy", "flax", "rich"} & {*sys.modules}
"""
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.25, 0.5, 1])
def test_an_interrupt_during_imports_is_one(seconds):
  command = [sys.executable, "-m", "esrgan_jax", "evaluate", "--hr", "none"]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  ) as process:
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
  if process.returncode != 1:  # A fast machine has told of the folder by now.
    assert (process.returncode, out) == (130, b"")
    assert err == b"\ninterrupted\n"


_FORK = """
import os, signal, time
from esrgan_jax import __main__
from esrgan_jax.commands import models

def run(_):
  if not (child := os.fork()):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    time.sleep(60)
  time.sleep(0.2)
  os.kill(child, signal.SIGTERM)
  os.waitpid(child, 0)
  time.sleep(0.5)
  return 7

models.run = run
__main__._PATIENCE = 0.1
raise SystemExit(__main__.main(["models"]))
"""


@pytest.mark.slow
def test_the_signal_of_a_fork_is_its_own():
  done = subprocess.run([sys.executable, "-c", _FORK], check=False, timeout=30)
  assert done.returncode == 7


def test_arguments_are_shown_as_text(capsys):
  with pytest.raises(SystemExit) as stop:
    __main__.main(["models", "--\x1b]0;title\x07"])
  assert stop.value.code == 2
  assert "--\\x1b]0;title\\x07" in capsys.readouterr().err
