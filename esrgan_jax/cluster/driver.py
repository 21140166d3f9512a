"""Hands images to workers on a Ray cluster, and sees to it that each is done.

Actors rather than Ray Data: what is to become of an image depends on how it
failed. One that cannot be read is named and left; one that a machine had no
room for goes to another machine; those that a worker was at when it died go to
others, alone, so that an image that kills workers is found out.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import importlib
import itertools
import math
import os
import re
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from esrgan_jax import __version__, extras, storage
from esrgan_jax.cluster import manifest, places, worker
from esrgan_jax.text import explain, printable

__all__ = [
  "KINDS",
  "Workers",
  "connected",
  "find_kind",
  "find_ray",
  "upscale",
]

KINDS = ("CPU", "GPU", "TPU")
_HOLDS = {"GPU": {"num_gpus": 1}, "TPU": {"resources": {"TPU": 1}}}

# Bytes of a path that Ray has room for in the names of its sockets.
_LONGEST_FOLDER = 25

# Images of a turn: of many, so that they share programs and windows; of few
# bytes, so that turns take seconds to minutes.
_MOST_IMAGES = 32
_MOST_BYTES = 2**26
# Turns of a worker at a time: it reads one while it computes another.
_TURNS = 2
# Workers that an image may end before it is left.
_MOST_DEATHS = 3
# Images in a row that a machine may fail at, for reasons of its own.
_MOST_STRIKES = 3
# Workers in a row that do not come up before none is tried any more; on one
# machine, if it is known.
_MOST_FALSE_STARTS = 3
_SOON = 0.05  # Seconds.
# Seconds that processes have to end by themselves.
_TO_END = 2.0
# Seconds that an image waits for a worker that is coming up somewhere.
_PATIENCE = 120.0
_WAITING = 30.0


@dataclasses.dataclass(frozen=True)
class Workers:
  """How many workers there are, and what each of them holds.

  Attributes:
    kind: One of `KINDS`.
    least: How many are kept as long as there is work.
    most: How many there may be; None: as many as the cluster has room for.
  """

  kind: str = "CPU"
  least: int = 1
  most: int | None = None


@dataclasses.dataclass(eq=False)
class _Task:
  """An image that is not done.

  Attributes:
    image: The image.
    avoid: Machines that failed at it.
    deaths: Workers that ended while they were at it; one that is out of reach,
      with its machine or without, counts for half.
    error: What became of it last.
    tried: Whether a worker has had it.
  """

  image: worker.Image
  avoid: set[str] = dataclasses.field(default_factory=set)
  deaths: float = 0
  error: worker.Reply | None = None
  tried: bool = False

  @property
  def suspected(self) -> bool:
    """Whether it may be what ends workers: it is done alone."""
    return self.deaths >= 1


@dataclasses.dataclass(eq=False)
class _Turn:
  """Images that a worker is at."""

  replies: Any
  tasks: dict[int, _Task]


@dataclasses.dataclass(eq=False)
class _Worker:
  """An actor, and what it is at.

  Attributes:
    actor: Ray's handle.
    greeting: What its first answer will be; None once it is there.
    begun: When it was asked for, by the clock.
    node: Ray's name of its machine; empty as long as nobody knows.
    host: What people call it.
    full: Whether its machine has no room, or fails at everything: it gets no
      images, and holds its place, so that no other worker comes up there.
    broken: Whether it is so because it cannot load the model.
    strikes: At how many images in a row its machine failed.
    turns: In order.
  """

  actor: Any
  greeting: Any
  begun: float
  node: str = ""
  host: str = ""
  full: bool = False
  broken: bool = False
  strikes: int = 0
  turns: list[_Turn] = dataclasses.field(default_factory=list)

  @property
  def ready(self) -> bool:
    return self.greeting is None

  @property
  def alone(self) -> bool:
    """Whether it is at an image that is suspected."""
    tasks = (t for turn in self.turns for t in turn.tasks.values())
    return any(task.suspected for task in tasks)


def find_ray(address: str | None) -> str:
  """Imports Ray, set up for a cluster.

  Args:
    address: Of a cluster; None: that of `RAY_ADDRESS`, or one of its own.

  Returns:
    The address; "local" for one of its own.

  Raises:
    RuntimeError: If it is not installed; says how to.
    ValueError: If it is the address of Ray's client.
  """
  address = address or os.environ.get("RAY_ADDRESS") or "local"
  if address.startswith("ray://"):
    raise ValueError(
      f"{printable(address)}: Ray's client is not supported; run the command on"
      " a machine of the cluster, or send it there: ray job submit -- ..."
    )
  # Ray reads these when it is imported, and its processes take them over.
  settings = {**_SETTINGS}
  if address == "local":
    settings |= _OF_ITS_OWN | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
  for name, value in settings.items():
    os.environ.setdefault(name, value)
  try:
    for name in ("pyarrow", "ray"):
      importlib.import_module(name)
  except ImportError as error:
    raise RuntimeError(
      f"--engine ray takes {error.name}, which is not installed:"
      f" {extras.pip_install('ray')}"
    ) from error
  return address


# That ask a process to end.
_SIGNALS = [
  getattr(signal, name)
  for name in ("SIGINT", "SIGTERM", "SIGHUP")
  if hasattr(signal, name)
]
_SETTINGS = {
  "RAY_USAGE_STATS_ENABLED": "0",  # Nothing is told to anybody.
  "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Else a warning of what it is.
}
_OF_ITS_OWN = {
  # Others who are logged in here reach its ports, and would have code run.
  "RAY_AUTH_MODE": "token",
  # All of it listens on loopback; with this, on any system.
  "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
  """Connects to a cluster, or runs one on this machine alone.

  Args:
    address: As of `find_ray`. A cluster of its own listens on loopback, has no
      dashboard, and ends with this process, as do its files.

  Raises:
    OSError: If there is no such cluster.
  """
  import ray

  if ray.is_initialized():
    yield
    return
  options = {"logging_level": "ERROR", "log_to_driver": False}
  with contextlib.ExitStack() as stack:
    if address == "local":
      short = len(tempfile.gettempdir()) <= _LONGEST_FOLDER
      folder = storage.temporary_folder(None if short else "/tmp")
      options |= {
        "include_dashboard": False,
        "_temp_dir": str(stack.enter_context(folder)),
        # For models; results do not go through it.
        "object_store_memory": 2**29,
      }
    # In a thread, Ray takes no signal for itself; it lives as long as what it
    # has begun, which Linux ends with it.
    thread = stack.enter_context(
      concurrent.futures.ThreadPoolExecutor(1, "esrgan-ray")
    )
    put_back = stack.enter_context(_own_signals(is_own=address == "local"))
    beginning = thread.submit(ray.init, address, **options)
    while concurrent.futures.wait([beginning], timeout=_SOON).not_done:
      put_back()  # What is not Python in it takes them, too.
    try:
      beginning.result()
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
      reason = " ".join(str(error).split())[:300]
      raise OSError(
        f"no Ray cluster at {printable(address)}: {reason}"
      ) from error
    stack.callback(_shut_down if address == "local" else ray.shutdown)
    put_back()
    # Last lines of a raylet that died, on our stdout: there is no option.
    ray._private.worker._worker_logs_enabled = False
    yield


@contextlib.contextmanager
def _own_signals(*, is_own: bool) -> Iterator[Callable[[], None]]:
  """Keeps what signals do, and has a cluster of its own end before.

  Yields:
    A function that puts the handlers back where they were taken.
  """
  if threading.current_thread() is not threading.main_thread():
    yield lambda: None  # They are not ours to set.
    return
  before = {number: signal.getsignal(number) for number in _SIGNALS}
  handlers = {
    number: _ending_before(handler) if is_own else handler
    for number, handler in before.items()
    if callable(handler)
  }

  def put_back() -> None:
    for number, handler in handlers.items():
      signal.signal(number, handler)

  put_back()
  try:
    yield put_back
  finally:
    for number in handlers:
      signal.signal(number, before[number])


def _shut_down() -> None:
  """Ends a cluster of its own, and all processes of it.

  Ray ends those that it began, and leaves it to the others, workers and agents,
  to find that out: seconds, or a minute.
  """
  import psutil  # Ray brings it.
  import ray

  begun = psutil.Process().children(recursive=True)
  ray.shutdown()
  _end(begun)


def _end_now() -> None:
  """Ends what would outlive this process, which is about to end."""
  import psutil

  own = psutil.Process().children()
  begun = set(psutil.Process().children(recursive=True)) - {*own}
  for process in own:  # Else they begin others, or end this process.
    with contextlib.suppress(psutil.Error):
      process.suspend()
  _end(begun)
  for process in own:
    with contextlib.suppress(psutil.Error):
      process.kill()


def _end(processes: Iterable[Any]) -> None:
  """Ends processes, if need be without their doing, and what they leave."""
  import psutil

  begun = there = [*processes]
  for end in ("terminate", "kill"):
    for process in there:
      with contextlib.suppress(psutil.Error):
        getattr(process, end)()
    until = time.monotonic() + _TO_END
    while time.monotonic() < until:
      there = [process for process in there if not _has_ended(process)]
      if not there:
        break
      time.sleep(_SOON)
  storage.remove_scratch({p.pid for p in begun} - {p.pid for p in there})


def _has_ended(process: Any) -> bool:
  """Whether it has, and be it that nobody has asked for its status yet."""
  import psutil

  try:
    return process.status() == psutil.STATUS_ZOMBIE
  except psutil.Error:
    return True


def _ending_before(handler: Callable[[int, Any], Any]) -> Callable:
  """Returns a handler of a signal that ends a cluster of its own before."""

  def handle(number: int, frame: Any) -> Any:
    _end_now()
    return handler(number, frame)

  return handle


def find_kind(wanted: str | None) -> str:
  """Returns what workers hold one of, on the cluster that is connected.

  Args:
    wanted: One of `KINDS`; None: GPUs where the cluster has such, else TPUs,
      else CPUs.
  """
  import ray

  there = ray.cluster_resources()
  default = next((k for k in ("GPU", "TPU") if there.get(k)), "CPU")
  return wanted or default


def upscale(
  images: Sequence[worker.Image],
  job: worker.Job,
  model: bytes,
  workers: Workers,
  *,
  notify: Callable[[str], None],
) -> Iterator[worker.Reply]:
  """Has a cluster's workers upscale images; none stops the others.

  Args:
    images: The images.
    job: What is wanted of all of them.
    model: An `Upscaler`'s pickle.
    workers: How many of them, of which kind.
    notify: Called with a sentence when something happened to the cluster.

  Yields:
    What became of each, in the order in which they end; no state is "trouble".

  Raises:
    RuntimeError: If no worker comes up.
  """
  driver = _Driver(job, model, workers, notify)
  try:
    yield from driver.run(images)
  finally:
    driver.end()


class _Actor(worker.Worker):
  """A worker that knows which machine of the cluster it is on."""

  def hello(self):
    import ray

    return ray.get_runtime_context().get_node_id(), *super().hello()


class _Driver:
  """See `upscale`."""

  def __init__(self, job, model, limits, notify):
    import ray

    self._ray = ray
    self._notify = notify
    self._job, self._kind = job, limits.kind
    self._most = limits.most or max(_room(ray, limits.kind), limits.least, 1)
    self._least = min(limits.least, self._most)
    self._actor = ray.remote(_Actor)
    self._model = ray.put(model)
    self._workers: list[_Worker] = []
    # By Ray's names of machines: workers that could not load the model there.
    self._unable: collections.Counter[str] = collections.Counter()
    self._todo: collections.deque[_Task] = collections.deque()
    self._done: collections.deque[worker.Reply] = collections.deque()
    self._false_starts = 0
    self._reason = ""
    self._told = False

  def run(self, images):
    self._todo.extend(map(_Task, images))
    while self._todo or any(each.turns for each in self._workers):
      self._scale()
      for each in self._workers:
        self._hand_out(each)
      self._give_up()
      while self._done:
        yield self._done.popleft()
      self._listen()
      while self._done:
        yield self._done.popleft()

  def end(self):
    for each in self._workers:
      self._kill(each)
    self._workers.clear()

  def _scale(self):
    """Asks for workers, and lets go of those that are not needed."""
    useful = [each for each in self._workers if not each.full]
    if not useful and self._workers and self._todo:
      for each in self._workers:  # None has room: perhaps for this one.
        each.full = each.broken
      useful = [each for each in self._workers if not each.full]
    open_ = len(self._todo) + sum(
      len(turn.tasks) for each in useful for turn in each.turns
    )
    most = self._most - self._full
    if most < 1 and not self._is_broken_everywhere():
      most = 1  # Who holds a place keeps nobody from another machine.
    wanted = min(max(open_, self._least), most)
    if self._false_starts >= _MOST_FALSE_STARTS:
      wanted = min(wanted, len(useful))
    for _ in range(wanted - len(useful)):
      self._workers.append(self._start())
    if not self._todo:
      self._let_go(useful)
    young = [each for each in self._workers if not each.ready]
    if (
      len(young) == len(useful)
      and young
      and time.monotonic() - young[0].begun > _WAITING
      and not self._told
    ):
      self._told = True
      self._notify(
        f"waiting for a worker: the cluster has no free {self._kind}, or takes"
        " its time"
      )

  def _start(self):
    """Asks for a worker."""
    if self._kind == "CPU":
      taken = {each.node for each in self._workers}
      node, holds = _find_place(self._ray, taken)
    else:
      node, holds = "", _HOLDS[self._kind]
    actor = self._actor.options(
      max_concurrency=_TURNS, max_restarts=0, max_task_retries=0, **holds
    ).remote(self._job, self._model)
    return _Worker(actor, actor.hello.remote(), time.monotonic(), node)

  def _let_go(self, useful):
    """Ends idle workers; what fails on one machine may need another yet."""
    for each in [each for each in useful if not each.turns]:
      others = [other for other in useful if other is not each]
      machines = len({other.node for other in others})
      enough = min(2, len({other.node for other in useful}))
      if len(others) >= self._least and machines >= enough:
        self._kill(each)
        self._workers.remove(each)
        useful = others

  @property
  def _full(self):
    return sum(each.full for each in self._workers)

  def _is_broken_everywhere(self):
    """Whether no machine that is there can load the model."""
    broken = {each.node for each in self._workers if each.broken}
    return bool(broken) and (broken >= _machines(self._ray, self._kind).keys())

  def _hand_out(self, each):
    while each.ready and not each.full and len(each.turns) < _TURNS:
      tasks = [] if each.alone else self._take(each)
      if not tasks:
        return
      images = [
        dataclasses.replace(task.image, again=task.tried) for task in tasks
      ]
      run = each.actor.run.options(num_returns="streaming")
      replies = run.remote(images)
      for task in tasks:
        task.tried = True
      by_number = {task.image.number: task for task in tasks}
      each.turns.append(_Turn(replies, by_number))

  def _take(self, each):
    """Returns images for a worker: a share of those that are left."""
    share = len(self._todo) // (_TURNS * max(len(self._workers), 1))
    most = min(max(share, 1), _MOST_IMAGES)
    taken, left, size = [], [], 0
    while self._todo and len(taken) < most and size < _MOST_BYTES:
      task = self._todo.popleft()
      if each.node in task.avoid:
        left.append(task)
      elif task.suspected:
        if taken or each.turns:
          left.append(task)
          continue
        taken.append(task)
        break
      else:
        taken.append(task)
        size += task.image.size
    self._todo.extendleft(reversed(left))
    return taken

  def _give_up(self):
    """Ends images that no worker is left for."""
    now = time.monotonic()
    if not self._workers and self._false_starts >= _MOST_FALSE_STARTS:
      raise RuntimeError(f"no worker comes up: {self._reason}")
    nodes = {w.node for w in self._workers if w.ready and not w.full}
    if any(
      not each.ready and now - each.begun < _PATIENCE for each in self._workers
    ):
      return
    up = [each for each in self._workers if each.ready and not each.broken]
    if not up and self._is_broken_everywhere():
      raise RuntimeError(f"no worker comes up: {self._reason}")
    # Those that were tried before come first.
    tried = itertools.takewhile(lambda t: t.avoid or t.deaths, self._todo)
    for task in [task for task in tried if task.avoid and task.avoid >= nodes]:
      if nodes:
        self._todo.remove(task)
        self._done.append(dataclasses.replace(task.error, state="failed"))

  def _listen(self):
    """Waits for what comes next, from whichever worker."""
    waiting = {}
    for each in self._workers:
      if not each.ready:
        waiting[each.greeting] = each, None
      for turn in each.turns:
        waiting[turn.replies] = each, turn
    if not waiting:
      return
    ready, _ = self._ray.wait([*waiting], num_returns=1, timeout=1.0)
    for reference in ready:
      each, turn = waiting[reference]
      if each not in self._workers:
        continue  # It has died a moment ago.
      try:
        if turn is None:
          self._greet(each, self._ray.get(reference))
        else:
          self._receive(each, turn)
      except self._ray.exceptions.RayError as error:
        self._bury(each, error)

  def _greet(self, each, greeting):
    each.node, each.host, version, problem = greeting
    each.greeting = None
    if version != __version__:
      raise RuntimeError(
        f"{each.host} has esrgan_jax {version}, and this is {__version__};"
        " install the same on all machines"
      )
    if not problem:
      self._false_starts = 0
      return
    problem = printable(" ".join(problem.split()), limit=300)
    if problem != self._reason:
      self._reason = problem
      self._notify(f"a worker on {each.host} did not come up: {problem}")
    self._unable[each.node] += 1
    # It may have been memory that a worker before had not given back yet.
    each.full = each.broken = self._unable[each.node] >= _MOST_FALSE_STARTS
    if not each.broken:
      self._workers.remove(each)
      self._kill(each)

  def _receive(self, each, turn):
    try:
      reply = self._ray.get(next(turn.replies))
    except StopIteration:
      each.turns.remove(turn)
      return
    task = turn.tasks.pop(reply.number)
    shared = storage.is_remote(self._job.out)  # There is one bucket.
    if reply.state == "made" and not (shared or self._is_there(reply.row)):
      out = self._job.out
      row = dataclasses.replace(
        reply.row,
        result=None,
        error=f"its result is not in {out} as seen from here, but was written"
        f" on {each.host}: is {out} on a file system that all machines share?",
      )
      reply = dataclasses.replace(reply, row=row, state="trouble", full=True)
    if reply.state != "trouble":
      each.strikes = 0
      self._done.append(reply)
      return
    each.strikes += 1
    task.error = reply
    task.avoid.add(each.node)
    self._todo.appendleft(task)
    others = [w for w in self._workers if not w.full and w.node != each.node]
    bad = reply.full or each.strikes >= _MOST_STRIKES
    if bad and others and not each.full:
      self._notify(
        f"{each.host} gets no more images: {reply.row.error}; others do them"
      )
      for other in self._workers:
        other.full |= other.node == each.node

  def _is_there(self, row):
    """Whether this machine sees a row's result."""
    there = places.sizes_of(self._job.out, row.result)
    return manifest.Contents(there).has_result_of(row)

  def _bury(self, each, error):
    """Hands on what a worker was at when it died."""
    self._workers.remove(each)
    self._kill(each)
    if not each.ready:
      unschedulable = self._ray.exceptions.ActorUnschedulableError
      if isinstance(error, unschedulable) and not _is_alive(
        self._ray, each.node
      ):
        return  # The machine that it was to be on is gone: it is no start.
      self._false_starts += 1
      self._reason = _reason(error)
      if self._false_starts == 1:
        self._notify(f"a worker did not come up: {self._reason}")
      return
    alive = "its node " not in _reason(error) and _is_alive(
      self._ray, each.node
    )
    unreached = isinstance(error, self._ray.exceptions.ActorUnavailableError)
    tasks = [task for turn in each.turns for task in turn.tasks.values()]
    open_ = [task for task in tasks if not self._had_done(task)]
    for task in open_:
      if alive:
        task.deaths += 0.5 if unreached else 1
      if task.deaths >= _MOST_DEATHS:
        row = manifest.Row(
          input=task.image.address,
          node=each.host,
          error=f"{math.ceil(task.deaths)} workers ended while they were at it,"
          f" the last: {_reason(error)}",
        )
        self._done.append(worker.Reply(task.image.number, row, "failed"))
      else:
        self._todo.appendleft(task)
    what = f"a worker on {each.host} ended ({_reason(error)})"
    if unreached:
      what = f"a worker on {each.host} cannot be reached any more"
    if not alive:
      what = f"{each.host} is gone"
    count = len(open_)
    goes = "image goes" if count == 1 else "images go"
    self._notify(f"{what}; {count} {goes} to others")

  def _had_done(self, task):
    """Whether a worker that died had done an image, and not said so."""
    number = task.image.number
    file = manifest.row_file(self._job.out, self._job.run, number)
    try:
      row = manifest.from_json(places.read(file))
    except (OSError, ValueError):
      return False
    if not self._is_there(row) or manifest.is_aside(
      self._job.out, self._job.run, number, row.result
    ):
      return False  # What is there may be of before, and as large.
    self._done.append(worker.Reply(task.image.number, row, "made"))
    return True

  def _kill(self, each):
    with contextlib.suppress(Exception):
      self._ray.kill(each.actor)


def _room(ray, kind):
  """Returns how many workers have room."""
  machines = _machines(ray, kind)
  # One worker a machine: XLA uses all of its cores.
  return len(machines) if kind == "CPU" else sum(machines.values())


def _machines(ray, kind):
  """Returns how many of a kind each machine has, by Ray's names of them."""
  counts = {
    node["NodeID"]: int(node["Resources"].get(kind, 0))
    for node in ray.nodes()
    if node["Alive"]
  }
  return {node: count for node, count in counts.items() if count}


def _find_place(ray, taken):
  """Finds a machine for a worker that has all of its CPUs.

  Ray would put several on a machine that is larger than others, whatever it is
  asked for: where a worker is to be is said.

  Args:
    ray: The module.
    taken: Machines that have a worker, or are to get one.

  Returns:
    Ray's name of it, and the actor's options. Where all are taken the name is
    empty: it waits for a machine that may come.
  """
  from ray.util import scheduling_strategies as strategies

  machines = _machines(ray, "CPU")
  free = {node: n for node, n in machines.items() if node not in taken}
  if not free:
    holds = min(machines.values(), default=1)
    return "", {"num_cpus": holds, "scheduling_strategy": "SPREAD"}
  # Those first that nobody else has work on.
  with contextlib.suppress(Exception):
    there = ray._private.state.available_resources_per_node()
    idle = {
      node: n for node, n in free.items() if there[node].get("CPU", 0) >= n
    }
    free = idle or free
  node = max(free, key=free.get)
  strategy = strategies.NodeAffinitySchedulingStrategy(node, soft=False)
  return node, {"num_cpus": free[node], "scheduling_strategy": strategy}


def _is_alive(ray, node):
  return any(n["NodeID"] == node and n["Alive"] for n in ray.nodes())


def _reason(error):
  """Returns the gist of what Ray says, which takes many lines."""
  cause = getattr(error, "cause", None)
  if isinstance(cause, Exception):
    return explain(cause)
  said = " ".join(str(error).split())
  if gist := re.search(r"(?:is dead|died) because (.*?)(?:\. |\.?$)", said):
    said = gist[1]
  return printable(said, limit=300)
