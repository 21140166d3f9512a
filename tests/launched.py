"""What `launch/local_processes.sh` runs in tests, instead of training.

Joins the others, sums over all devices of all processes, then does what its
flags say: `--fail=raise:1`, `--fail=kill:0`, `--wait`.
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from esrgan_jax import distributed


def all_sum():
  mesh = jax.make_mesh(
    (jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)
  )
  local = np.full(jax.local_device_count(), 1.0 + jax.process_index())
  x = jax.make_array_from_process_local_data(
    NamedSharding(mesh, P("data")), local.astype(np.float32)
  )
  return float(jax.jit(lambda x: x.sum())(x))


def main():
  out = pathlib.Path(os.environ["OUT"])
  joined = distributed.maybe_initialize(heartbeat_seconds=5)
  number = jax.process_index()
  report = {
    "argv": sys.argv[1:],
    "joined": joined,
    "again": distributed.maybe_initialize(),
    "processes": jax.process_count(),
    "devices": jax.device_count(),
    "sum": all_sum(),
    "pid": os.getpid(),
  }
  if "--wait" in sys.argv:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
  partial = out / f"{number}.partial"
  partial.write_text(json.dumps(report))
  partial.rename(out / f"{number}.json")
  print("ready", flush=True)
  fail = [a for a in sys.argv if a.startswith("--fail=")]
  for how, who in (a.removeprefix("--fail=").split(":") for a in fail):
    if int(who) == number:
      if how == "raise":
        raise ValueError("a mistake")
      os.kill(os.getpid(), signal.SIGKILL)
  while fail or "--wait" in sys.argv:
    # Who waits for a signal does so outside of a collective.
    if fail:
      all_sum()
    time.sleep(0.05)


if __name__ == "__main__":
  main()
