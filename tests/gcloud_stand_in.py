"""A gcloud that records its calls and plays a small cloud in a folder.

The folder $FAKE_CLOUD holds `plan.json`, what is to happen; `calls.jsonl`, an
argv a line; `vm` and `request`, the states of the TPU VM and of the queued
resource; `bucket/`, the storage; and `worker0/` and `worker1/`, the homes of
the workers. A command sent by `ssh` is carried out there by a real bash.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ.get("FAKE_CLOUD", ""))
PLAN = CLOUD / "plan.json"
WORKERS = ("0", "1")


def take(name, default=None):
  """The next planned answer of that name, which is then used up."""
  plan = json.loads(PLAN.read_text())
  answers = plan.get(name, [])
  answer = answers.pop(0) if answers else default
  PLAN.write_text(json.dumps(plan))
  return answer


def state(kind, value=None):
  path = CLOUD / kind
  if value is not None:
    path.write_text(value)
  return path.read_text() if path.exists() else ""


def fail(message, status=1):
  sys.stderr.write(f"ERROR: (gcloud) {message}\n")
  sys.exit(status)


def boot():
  for worker in WORKERS:
    (CLOUD / f"worker{worker}").mkdir(exist_ok=True)
  state("vm", "READY")


def lose(new_state):
  """The VM and all that runs on it end."""
  for worker in WORKERS:
    home = CLOUD / f"worker{worker}"
    pid = home / "esrgan_jax/run.pid"
    if pid.exists():
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(home, ignore_errors=True)
  if new_state:
    state("vm", new_state)
  else:
    (CLOUD / "vm").unlink(missing_ok=True)


def ssh(worker, command):
  if state("vm") != "READY":
    fail(f"the TPU is in state {state('vm')!r}")
  if "tail -n" in command and (answer := take("logs")):
    if answer == "preempted":
      lose("PREEMPTED")
    sys.exit(255)
  if take("ssh") == "refused":
    fail("connection refused", 255)
  workers = WORKERS if worker == "all" else (worker,)
  environ = {k: v for k, v in os.environ.items() if k != "BASH_ENV"}
  for worker in workers:
    home = CLOUD / f"worker{worker}"
    status = subprocess.run(
      ["bash", "-c", command],
      cwd=home,
      env=environ | {"HOME": str(home), "WORKER": worker},
      check=False,
    ).returncode
    if status:
      sys.exit(status)


def local(url):
  if not url.startswith("gs://"):
    return pathlib.Path(url)
  return CLOUD / "bucket" / url.removeprefix("gs://")


def storage(words):
  match words:
    case ["buckets", "describe", url]:
      if not local(url).exists():
        fail("404", 1)
    case ["buckets", "create", url]:
      local(url).mkdir(parents=True)
    case ["ls", url]:
      if not local(url).exists():
        fail("One or more URLs matched no objects.")
    case ["rsync", source, target]:
      shutil.copytree(local(source), local(target), dirs_exist_ok=True)
    case ["cp", source, target]:
      shutil.copy(local(source), local(target))
    case _:
      fail(f"unknown: storage {words}", 2)


def main(arguments):
  with (CLOUD / "calls.jsonl").open("a") as file:
    file.write(json.dumps(arguments) + "\n")
  words = [a for a in arguments if not a.startswith("--")]
  flags = {}
  for flag in set(arguments) - set(words):
    name, _, value = flag.removeprefix("--").partition("=")
    flags[name] = value
  if words[0] == "storage":
    return storage(words[1:])
  kind = "vm" if words[2] == "tpu-vm" else "request"
  match words[3:]:
    case ["list"]:
      if take("list") == "denied":
        fail("PERMISSION_DENIED")
      if kind == "request" and (following := take("request")):
        state("request", following)
        if following == "ACTIVE":
          boot()
      print("esrgan-other\tREADY")
      if state(kind):
        print(f"{take('name', 'esrgan')}\t{state(kind)}")
    case ["create", _]:
      if take("create") == "refused":
        fail("There is no more capacity in the zone")
      if state(kind):
        fail("ALREADY_EXISTS")
      if kind == "vm":
        boot()
      else:
        state("request", "WAITING_FOR_RESOURCES")
    case ["delete", _]:
      if kind == "vm" and state("request"):
        fail("delete its queued resource")
      (CLOUD / kind).unlink()
      lose("")
    case ["ssh", _]:
      ssh(flags["worker"], flags["command"])
    case ["scp", source, _]:
      for worker in WORKERS:
        shutil.copy(source, CLOUD / f"worker{worker}")
    case _:
      fail(f"unknown: {words}", 2)


if __name__ == "__main__":
  main(sys.argv[1:])
