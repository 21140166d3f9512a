"""Joins the processes of one training run, where there is more than one.

`maybe_initialize()` is called once, before anything touches a device:

| started by                   | told by                                      |
| ---------------------------- | -------------------------------------------- |
| `launch/local_processes.sh`  | `JAX_COORDINATOR_ADDRESS` (host:port of      |
|   or by hand                 | process 0), `JAX_NUM_PROCESSES` and          |
|                              | `JAX_PROCESS_ID`, all three                  |
| SLURM's `srun`               | `SLURM_*`, more than one task in the step    |
| Open MPI's `mpirun`          | `OMPI_COMM_WORLD_SIZE` above one             |
| GKE with TPUs                | `TPU_WORKER_HOSTNAMES` with more than one    |
|                              | host, or several slices (`MEGASCALE_*`)      |
| Cloud TPU VM                 | Google's machine, with TPU chips in `/dev`   |

Anything else is one machine, and is left alone. `ESRGAN_JAX_DISTRIBUTED=off`
leaves any machine alone (to try something on one SLURM node, say); `on` asks
JAX to find the cluster in every way that it knows, such as Kubernetes.
"""

from __future__ import annotations

import itertools
import logging
import os
import pathlib
import sys
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = [
  "everywhere",
  "find_cluster",
  "gather",
  "maybe_initialize",
  "wait_for_all",
]

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)

_BARRIER_SECONDS = 3600
_barriers = itertools.count()


def find_cluster(
  environ: Mapping[str, str] | None = None, *, root: str | os.PathLike = "/"
) -> str:
  """Names what started this process as one of several, without a network.

  Args:
    environ: Environment variables; None for the process's own.
    root: Folder that holds `dev` and `sys`; another one only in tests.

  Returns:
    `"explicit"`, `"slurm"`, `"open-mpi"`, `"gke-tpu"`, `"cloud-tpu"`, `"asked"`
    (`ESRGAN_JAX_DISTRIBUTED=on`), or `""` for a process on its own.

  Raises:
    ValueError: If a variable has no meaning, or only some of the three
      explicit ones are set.

  Source: the environments that `jax.distributed.initialize` detects.

  >>> find_cluster({"SLURM_JOB_ID": "7"})
  ''
  >>> find_cluster({
  ...   "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
  ...   "JAX_NUM_PROCESSES": "2",
  ...   "JAX_PROCESS_ID": "0",
  ... })
  'explicit'
  """
  environ = os.environ if environ is None else environ
  wish = environ.get("ESRGAN_JAX_DISTRIBUTED", "auto")
  if wish not in ("auto", "on", "off"):
    raise ValueError(f"ESRGAN_JAX_DISTRIBUTED={wish!r} must be auto, on or off")
  if wish == "off":
    return ""
  if "JAX_NUM_PROCESSES" in environ or "JAX_PROCESS_ID" in environ:
    missing = [name for name in _EXPLICIT if not environ.get(name)]
    if missing:
      raise ValueError(
        f"{' and '.join(missing)} must be set where one of"
        f" {', '.join(_EXPLICIT)} is: set all three, or none for one machine"
      )
    return "explicit"
  if wish == "on":
    return "asked"

  if all(name in environ for name in _SLURM):
    # In salloc's shell, SLURM_NTASKS is the allocation's and the step has one
    # task: waiting for the others would be in vain.
    step = environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"])
    if _number("SLURM_NTASKS", environ) > 1 and step != "1":
      return "slurm"
  if _number("OMPI_COMM_WORLD_SIZE", environ) > 1:
    return "open-mpi"
  return _find_tpu(environ, pathlib.Path(root))


def maybe_initialize(*, heartbeat_seconds: int = 30) -> bool:
  """Joins this process to the others of its run, if it was started as one.

  Call it before anything touches a device. When a process dies, the others end
  with an error about `heartbeat_seconds` later, or at once if it was process 0.
  A process that ends by an exception ends at once, after its traceback: JAX
  would have it wait five minutes for the others, which wait for it.

  Args:
    heartbeat_seconds: Seconds of silence after which a process counts as dead,
      >= 1.

  Returns:
    Whether this process is one of a group: on one machine, False.

  Raises:
    ValueError: If environment variables are incomplete or no numbers, see
      `find_cluster`, or `heartbeat_seconds` is not positive.
    RuntimeError: If the others cannot be found or reached, or a device was
      touched before.

  >>> maybe_initialize()
  False
  """
  if heartbeat_seconds < 1:
    raise ValueError(f"heartbeat_seconds={heartbeat_seconds} must be >= 1")
  if jax.distributed.is_initialized():
    return True
  cluster = find_cluster()
  if not cluster:
    return False

  arguments = {}
  if cluster == "explicit":
    arguments = {
      "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
      "num_processes": _number("JAX_NUM_PROCESSES", os.environ),
      "process_id": _number("JAX_PROCESS_ID", os.environ),
      # Else a SLURM job around us would hand out devices by its own ids.
      "cluster_detection_method": "deactivate",
    }
  try:
    jax.distributed.initialize(
      **arguments, heartbeat_timeout_seconds=heartbeat_seconds
    )
  except ValueError as error:
    if cluster == "explicit":
      raise
    raise RuntimeError(
      f"this looks like one process of several ({cluster}), but JAX cannot"
      f" tell which ({error}). Set {', '.join(_EXPLICIT)}; or"
      " ESRGAN_JAX_DISTRIBUTED=off to run on this machine alone"
    ) from error
  _end_at_once_on_error()
  return True


def wait_for_all() -> None:
  """Waits until every process of the run has come here.

  Goes over JAX's coordination service. A collective would do for devices, but
  on CPUs, Gloo's give up after 30 seconds: too short where one process
  compiles, decodes or evaluates longer than another.

  >>> wait_for_all()
  """
  if jax.process_count() > 1:
    # JAX has this barrier, but does not offer it; Orbax does.
    from orbax.checkpoint import multihost

    barrier = multihost.get_barrier_sync_fn()
    key = f"esrgan_jax_{next(_barriers)}"
    barrier(key=key, timeout_ms=_BARRIER_SECONDS * 1000)


def everywhere(value: np.ndarray) -> np.ndarray:
  """Stacks a value of every process; all must call it.

  Args:
    value: Of one shape and type in all processes; 64 bits become 32.

  Returns:
    The values, in the processes' order.

  >>> everywhere(np.array(True)).tolist()
  [True]
  """
  if jax.process_count() == 1:
    return np.asarray(value)[None]
  wait_for_all()
  return np.asarray(multihost_utils.process_allgather(value))


def gather(text: str) -> list[str]:
  """Returns the texts of all processes, in their order; all must call it.

  >>> gather("one alone")
  ['one alone']
  """
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = everywhere(np.int32(data.size))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: data.size] = data
  rows = everywhere(padded)
  return [
    bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)
  ]


def _number(name: str, environ: Mapping[str, str]) -> int:
  text = environ.get(name, "0")
  try:
    return int(text)
  except ValueError:
    raise ValueError(f"{name}={text!r} must be an integer") from None


def _find_tpu(environ: Mapping[str, str], root: pathlib.Path) -> str:
  platforms = environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return ""
  # One host, as in a notebook, may be given by a name that does not resolve.
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if name in environ:
      hosts = len(environ[name].split(","))
      slices = _number("MEGASCALE_NUM_SLICES", environ)
      return "gke-tpu" if hosts > 1 or slices > 1 else ""
  if environ.get("TPU_PROCESS_ADDRESSES_PATH"):
    return "gke-tpu"

  # JAX sets this on import where it sees no chips; a user sets it to be alone.
  if "TPU_SKIP_MDS_QUERY" in environ:
    return ""
  product = root / "sys/class/dmi/id/product_name"
  try:
    google = product.read_text(errors="replace").startswith("Google")
  except OSError:
    google = False
  chips = [*root.glob("dev/accel[0-9]*"), *root.glob("dev/vfio/[0-9]*")]
  return "cloud-tpu" if google and chips else ""


def _end_at_once_on_error() -> None:
  """Has an uncaught exception skip JAX's wait for the other processes."""
  shown_by = sys.excepthook

  def hook(kind, error, traceback):
    shown_by(kind, error, traceback)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130 if issubclass(kind, KeyboardInterrupt) else 1)

  sys.excepthook = hook
