"""One run a workdir, however the one before ended."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from esrgan_jax.training.lock import LockError, WorkdirLock
from tests.training_runs import ROOT


def _holder(folder, *lines):
  """A process that holds the lock until it is told to end."""
  script = [
    "import os, sys, time",
    "from esrgan_jax.training.lock import WorkdirLock",
    f"lock = WorkdirLock({str(folder)!r})",
    "lock.__enter__()",
    *lines,
    "print('held', flush=True)",
    "sys.stdin.read()",
  ]
  process = subprocess.Popen(
    [sys.executable, "-c", "\n".join(script)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    start_new_session=True,
  )
  assert process.stdout.readline() == "held\n"
  return process


def test_the_second_is_told_who_has_it(tmp_path):
  workdir = tmp_path / "new" / "run"
  with WorkdirLock(workdir) as lock:
    lock.check()
    with pytest.raises(LockError) as caught:
      WorkdirLock(workdir).__enter__()
  message = str(caught.value)
  host, now = os.uname().nodename, time.strftime("%Y-%m-%d %H:")
  assert message.startswith(
    f"{workdir} is in use: process {os.getpid()} on {host} has been training"
    f" there since {now}"
  )
  assert len(message.splitlines()) == 1
  for _ in range(2):  # Given back.
    with WorkdirLock(workdir):
      pass
  assert (workdir / ".lock").read_bytes() == b""


def test_it_ends_with_an_error_and_with_a_kill(tmp_path):
  with pytest.raises(ZeroDivisionError), WorkdirLock(tmp_path):
    _ = 1 / 0
  # A child made by a fork, which lives on, and a program started by it.
  with _holder(
    tmp_path,
    "ready, said = os.pipe()",
    "if not os.fork():",
    "  os.write(said, b'.'); os.close(0); os.close(1); time.sleep(60)",
    "  os._exit(0)",
    "os.read(ready, 1)",  # What a fork does at its beginning, it has done.
    "import subprocess",
    "subprocess.Popen(['sleep', '60'], stdin=-3, stdout=-3, close_fds=False)",
  ) as process:
    with pytest.raises(LockError, match=f"process {process.pid} on "):
      WorkdirLock(tmp_path).__enter__()
    process.kill()
    process.wait()
    with WorkdirLock(tmp_path):  # At once, though both are still there.
      os.killpg(process.pid, signal.SIGKILL)


def test_what_a_stranger_wrote_is_made_printable(tmp_path):
  with WorkdirLock(tmp_path):
    about = {"host": "a\x1b[31m\nb", "pid": [1], "since": "x" * 5000}
    (tmp_path / ".lock").write_text(json.dumps(about))
    with pytest.raises(LockError) as caught:
      WorkdirLock(tmp_path).__enter__()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    for content in ("", "{", "[]", "{}"):
      (tmp_path / ".lock").write_text(content)
      with pytest.raises(LockError, match="another process trains there"):
        WorkdirLock(tmp_path).__enter__()


def test_a_link_in_its_place_is_not_followed(tmp_path):
  (tmp_path / "mine").write_text("kept")
  (tmp_path / ".lock").symlink_to(tmp_path / "mine")
  with pytest.raises(OSError, match="cannot be written: "):
    WorkdirLock(tmp_path).__enter__()
  assert (tmp_path / "mine").read_text() == "kept"


_LEASE = """
import json, logging, threading, time
import pytest
from tests.bucket_stand_in import Bucket
from esrgan_jax.training.lock import LockError, WorkdirLock

name, workdir = "bucket/run/.lock", "gs://bucket/run"

def lock(**times):
  return WorkdirLock(workdir, **{"renew": 0.2, "expire": 0.8, **times})

def put(**about):
  me = {"host": "other", "pid": 7, "since": "noon", "token": "t"}
  Bucket.put(name, json.dumps(me | about).encode())

# Held, renewed, given back.
with lock() as held:
  first = Bucket.objects[name]
  assert json.loads(first)["renewed"] <= time.time()
  with pytest.raises(LockError, match="is in use: process .* since"):
    lock().__enter__()
  assert Bucket.objects[name] != first
  time.sleep(1)  # It does not expire while it is renewed.
  held.check()
assert name not in Bucket.objects

# Left behind by a kill, by clocks that are right, late or early.
for skew in 0, -5000, 5000:
  put(renewed=time.time() + skew)
  began = time.monotonic()
  with lock():
    assert 0.2 < time.monotonic() - began < 5
    assert json.loads(Bucket.objects[name])["host"] != "other"

# Two see an abandoned lease, one gets it.
put(renewed=0)
outcomes = []
def contend():
  try:
    with lock():
      outcomes.append("held")
      time.sleep(2)
  except LockError as error:
    outcomes.append(str(error))
threads = [threading.Thread(target=contend) for _ in range(4)]
[each.start() for each in threads]
[each.join() for each in threads]
assert outcomes.count("held") == 1, outcomes
assert sum("is in use" in each for each in outcomes) == 3, outcomes

# Taken by another: it stops, and leaves the other's alone.
with lock() as held:
  put(renewed=time.time())
  time.sleep(0.6)
  with pytest.raises(LockError, match="was taken by process 7 on other"):
    held.check()
assert json.loads(Bucket.objects[name])["host"] == "other"

# Removed from outside.
del Bucket.objects[name]
with lock() as held:
  del Bucket.objects[name]
  time.sleep(0.6)
  with pytest.raises(LockError, match="was taken from outside"):
    held.check()

# Not to be reached for a while, and for too long.
with lock() as held:
  with Bucket.lock:
    time.sleep(0.5)
  time.sleep(0.5)
  held.check()
print("done")
"""


@pytest.mark.slow
def test_a_lease_in_a_bucket(tmp_path):
  pytest.importorskip("fsspec")
  done = subprocess.run(
    [sys.executable, "-c", _LEASE],
    cwd=ROOT,
    env={**os.environ, "EPATH_USE_TF": "0", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "done\n"
  assert "to see whether it still runs" in done.stderr
