"""Oracles: real processes on loopback; gcloud's own list of its flags."""

import ast
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from esrgan_jax import distributed

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
TESTS = ROOT / "tests"
BASH = shutil.which("bash")
LIMIT = 150  # seconds; a hang is a failure, not a slow test

needs_bash = pytest.mark.skipif(BASH is None, reason="needs bash")
EXPLICIT = {
  "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
  "JAX_NUM_PROCESSES": "2",
  "JAX_PROCESS_ID": "0",
}
SLURM = {
  "SLURM_JOB_ID": "77",
  "SLURM_STEP_NODELIST": "node[001-002]",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "0",
  "SLURM_LOCALID": "0",
}


def clean_environ(**more):
  """This process's environment without what would make it a cluster's."""
  prefixes = ("JAX_", "SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "ESRGAN_", "XLA")
  kept = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
  kept |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
  return kept | {k: str(v) for k, v in more.items()}


# Which machine is one of several.


@pytest.mark.parametrize(
  ("environ", "expected"),
  [
    ({}, ""),
    (EXPLICIT, "explicit"),
    (EXPLICIT | {"ESRGAN_JAX_DISTRIBUTED": "off"}, ""),
    (EXPLICIT | SLURM, "explicit"),
    ({"ESRGAN_JAX_DISTRIBUTED": "on"}, "asked"),
    ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1"}, ""),
    (SLURM, "slurm"),
    (SLURM | {"SLURM_NTASKS": "1"}, ""),
    # The shell of salloc, and a batch script outside of srun.
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, ""),
    ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, ""),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "open-mpi"),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, ""),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "gke-tpu"),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, ""),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "tpu,cpu"}, "gke-tpu"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
    ({"TPU_PROCESS_ADDRESSES": "local"}, ""),
    (
      {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
      "gke-tpu",
    ),
    ({"TPU_PROCESS_ADDRESSES_PATH": "/etc/hosts"}, "gke-tpu"),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
  ],
)
def test_find_cluster(environ, expected, tmp_path):
  assert distributed.find_cluster(environ, root=tmp_path) == expected


@pytest.mark.parametrize("chip", ["dev/accel0", "dev/vfio/0"])
def test_cloud_tpu_is_googles_machine_with_chips(tmp_path, chip):
  def found(**environ):
    return distributed.find_cluster(environ, root=tmp_path)

  (tmp_path / chip).parent.mkdir(parents=True)
  (tmp_path / "dev/vfio").mkdir(exist_ok=True)
  (tmp_path / "dev/vfio/vfio").touch()
  (tmp_path / "dev/accel").mkdir()
  product = tmp_path / "sys/class/dmi/id/product_name"
  product.parent.mkdir(parents=True)
  product.write_text("Google Compute Engine\n")
  assert found() == ""
  (tmp_path / chip).touch()
  assert found() == "cloud-tpu"
  assert found(TPU_SKIP_MDS_QUERY="1") == ""
  assert found(JAX_PLATFORMS="cpu") == ""
  product.write_text("ThinkPad\n")
  assert found() == ""


@pytest.mark.parametrize(
  ("environ", "message"),
  [
    ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"),
    ({"ESRGAN_JAX_DISTRIBUTED": "yes"}, "'yes' must be auto, on or off"),
    (SLURM | {"SLURM_NTASKS": "2(x2)"}, r"SLURM_NTASKS='2\(x2\)'"),
  ],
)
def test_find_cluster_explains_what_is_wrong(environ, message):
  with pytest.raises(ValueError, match=message):
    distributed.find_cluster(environ)


def test_one_machine_is_left_alone():
  assert not distributed.maybe_initialize()
  with pytest.raises(ValueError, match="heartbeat_seconds=0 must be >= 1"):
    distributed.maybe_initialize(heartbeat_seconds=0)


def test_a_cluster_that_jax_cannot_make_out(monkeypatch):
  for name in (*EXPLICIT, *SLURM, "KUBERNETES_SERVICE_HOST"):
    monkeypatch.delenv(name, raising=False)
  environ = clean_environ(ESRGAN_JAX_DISTRIBUTED="on", JAX_PLATFORMS="cpu")
  environ.pop("KUBERNETES_SERVICE_HOST", None)
  code = "from esrgan_jax import distributed; distributed.maybe_initialize()"
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=environ,
    capture_output=True,
    text=True,
    timeout=LIMIT,
    check=False,
  )
  assert done.returncode == 1
  assert "ESRGAN_JAX_DISTRIBUTED=off to run on this machine" in done.stderr


# Real processes.


def launch(tmp_path, *arguments, **environ):
  told = {"OUT": tmp_path, "PYTHON": sys.executable, "MODULE": "launched"}
  environ = clean_environ(**told | environ)
  # A shell cannot hear SIGINT if it was told to ignore it, as jobs in the
  # background are, and these tests with them.
  hear = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    " os.execv(sys.argv[1], sys.argv[1:])"
  )
  script = LAUNCH / "local_processes.sh"
  return subprocess.Popen(
    [sys.executable, "-c", hear, BASH, script, *arguments],
    env=environ,
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  try:
    output, _ = process.communicate(timeout=LIMIT)
  except subprocess.TimeoutExpired:
    process.terminate()
    time.sleep(0.5)
    process.terminate()
    raise
  return process.returncode, output


def reports(tmp_path, number):
  return [
    json.loads((tmp_path / f"{i}.json").read_text()) for i in range(number)
  ]


def wait_until(condition):
  end = time.monotonic() + LIMIT
  while not condition():
    assert time.monotonic() < end, "waited in vain"
    time.sleep(0.05)


def is_alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # A zombie has ended; only nobody has asked.
  status = pathlib.Path(f"/proc/{pid}/stat")
  return not status.exists() or ") Z " not in status.read_text()


@needs_bash
def test_local_processes_join_and_keep_their_arguments(tmp_path):
  arguments = ["--a=x  y", "--b='$HOME'", "--c="]
  status, output = finish(
    launch(tmp_path, "2", *arguments, DEVICES_PER_PROCESS=2)
  )
  assert status == 0, output
  for report in reports(tmp_path, 2):
    assert report["argv"] == arguments
    assert report["joined"]
    assert report["again"]
    assert report["processes"] == 2
    assert report["devices"] == 4
    assert report["sum"] == 1 + 1 + 2 + 2
  assert {"[0] ready", "[1] ready"} <= set(output.splitlines())


@needs_bash
@pytest.mark.parametrize(
  ("fail", "expected"), [("raise:1", 1), ("kill:0", 128 + signal.SIGKILL)]
)
def test_one_failure_ends_all_local_processes(tmp_path, fail, expected):
  # Longer than the heartbeat: JAX ends the other, which survives SIGTERM.
  status, output = finish(
    launch(tmp_path, "2", f"--fail={fail}", GRACE_SECONDS=60)
  )
  culprit = fail[-1]
  # The other one may be told of first: by gloo's exception, or by SIGABRT.
  assert status in (expected, 1, 128 + signal.SIGABRT), output
  assert f"ended with status {status}" in output
  if fail.startswith("raise"):
    assert f"[{culprit}] ValueError: a mistake" in output
  assert not any(is_alive(report["pid"]) for report in reports(tmp_path, 2))


@needs_bash
def test_signals_reach_every_local_process(tmp_path):
  process = launch(tmp_path, "2", "--wait")
  wait_until(lambda: len(list(tmp_path.glob("*.json"))) == 2)
  process.send_signal(signal.SIGINT)
  status, output = finish(process)
  # Both end by sys.exit(0), and leave together.
  assert status == 0, output
  assert "got SIGINT" in output
  assert not any(is_alive(report["pid"]) for report in reports(tmp_path, 2))


@needs_bash
def test_no_end_is_missed(tmp_path):
  """Processes that end while others are still being started."""
  (tmp_path / "quick.py").write_text(
    "import os, sys\n"
    "print('one line', flush=True)\n"
    "sys.exit(3 if os.environ['JAX_PROCESS_ID'] in sys.argv else 0)\n"
  )
  for fail in (["2", "4"], [], ["0"], []):
    status, output = finish(launch(tmp_path, "6", *fail, MODULE="quick"))
    assert status == (3 if fail else 0), output
    # One that is stopped early may not come to print.
    lines = [line for line in output.splitlines() if "one line" in line]
    assert fail or sorted(lines) == [f"[{i}] one line" for i in range(6)]


@needs_bash
@pytest.mark.parametrize("by", ["grace", "second signal"])
def test_the_stubborn_are_killed(tmp_path, by):
  (tmp_path / "stubborn.py").write_text(
    "import os, pathlib, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "number = os.environ['JAX_PROCESS_ID']\n"
    "pathlib.Path(number + '.json').write_text(f'{{\"pid\": {os.getpid()}}}')\n"
    "while not all(map(os.path.exists, ('0.json', '1.json'))):\n"
    "  time.sleep(0.01)\n"
    "sys.exit(5) if number in sys.argv else time.sleep(600)\n"
  )
  fail = ["1"] if by == "grace" else []
  process = launch(tmp_path, "2", *fail, MODULE="stubborn", GRACE_SECONDS=1)
  if not fail:
    wait_until(lambda: len(list(tmp_path.glob("*.json"))) == 2)
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
  status, output = finish(process)
  assert status == (5 if fail else 128 + signal.SIGKILL), output
  pids = [report["pid"] for report in reports(tmp_path, 2)]
  wait_until(lambda: not any(map(is_alive, pids)))


@needs_bash
def test_local_processes_explains_itself():
  done = subprocess.run(
    [LAUNCH / "local_processes.sh", "--help"], capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert "launch/local_processes.sh N [flags" in done.stdout
  assert "GRACE_SECONDS" in done.stdout


@needs_bash
@pytest.mark.parametrize(
  ("arguments", "environ", "message"),
  [
    ([], {}, "N='' must be a positive integer"),
    (["two"], {}, "N='two' must be"),
    (["2"], {"DEVICES_PER_PROCESS": "0"}, "DEVICES_PER_PROCESS='0'"),
  ],
)
def test_local_processes_explains_mistakes(
  tmp_path, arguments, environ, message
):
  status, output = finish(launch(tmp_path, *arguments, **environ))
  assert status == 2
  assert message in output


@pytest.mark.parametrize("victim", [0, 1])
def test_survivor_ends_with_an_error_by_itself(tmp_path, victim):
  """By SLURM's variables, read by JAX itself; no script to stop anyone."""
  job = os.getpid() * 2 + victim  # JAX takes its port from the job's number
  processes = []
  for number in (0, 1):
    environ = clean_environ(
      **SLURM | {"SLURM_JOB_ID": job, "SLURM_PROCID": number},
      JAX_PLATFORMS="cpu",
      OUT=tmp_path,
    )
    environ["SLURM_STEP_NODELIST"] = "localhost"
    log = (tmp_path / f"{number}.log").open("w")
    with log:
      processes.append(
        subprocess.Popen(
          [sys.executable, "-m", "launched", f"--fail=kill:{victim}"],
          env=environ,
          stdout=log,
          stderr=subprocess.STDOUT,
        )
      )
  try:
    assert processes[victim].wait(LIMIT) == -signal.SIGKILL
    # Within a minute; in fact soon after the heartbeat's five seconds.
    status = processes[1 - victim].wait(60)
  finally:
    for process in processes:
      process.kill()
      process.wait()
  assert status != 0
  assert [report["sum"] for report in reports(tmp_path, 2)] == [3.0, 3.0]


# The TPU VM, by a stand-in for gcloud.


class Cloud:
  """A folder in which `gcloud_stand_in.py` plays Google's part."""

  def __init__(self, folder):
    self.folder = folder / "the cloud"
    (self.folder / "bin").mkdir(parents=True)
    for name, program in (("gcloud", "gcloud"), ("uv", "worker")):
      path = self.folder / "bin" / name
      path.write_text(
        f"#!{sys.executable} -S\n"
        + (TESTS / f"{program}_stand_in.py").read_text()
      )
      path.chmod(0o755)
    self.plan()
    self.environ = {
      "PROJECT": "my-project",
      "ZONE": "us-west4-a",
      "BUCKET": "gs://my-bucket/",
      "POLL_SECONDS": "0.01",
      "FAKE_CLOUD": str(self.folder),
      "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }

  def plan(self, **answers):
    (self.folder / "plan.json").write_text(json.dumps(answers))

  def start(self, *arguments, **environ):
    return subprocess.Popen(
      [BASH, LAUNCH / "tpu_vm.sh", *arguments],
      env=clean_environ(**self.environ | environ),
      cwd=self.folder,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def __call__(self, *arguments, expect=0, **environ):
    """Carries a step out; returns its output, and gcloud's calls."""
    seen = len(self.calls())
    status, output = finish(self.start(*arguments, **environ))
    assert status == expect, output
    return output, self.calls()[seen:]

  def calls(self):
    path = self.folder / "calls.jsonl"
    if not path.exists():
      return []
    return [json.loads(line) for line in path.read_text().splitlines()]

  def on_worker(self, worker):
    path = self.folder / f"worker{worker}/calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]

  def trainings(self, worker):
    return [c for c in self.on_worker(worker) if "esrgan_jax.main" in c]

  def hold(self):
    (self.folder / "hold").touch()

  def release(self):
    (self.folder / "hold").unlink(missing_ok=True)


@pytest.fixture
def cloud(tmp_path):
  if BASH is None:
    pytest.skip("needs bash")
  cloud = Cloud(tmp_path)
  yield cloud
  cloud.release()


def verbs(calls):
  return [
    " ".join(w for w in c[:5] if not w.startswith("-")).removeprefix(
      "compute tpus "
    )
    for c in calls
    if "list" not in c
  ]


WHERE = ["--project=my-project", "--zone=us-west4-a"]


@pytest.mark.parametrize(
  ("tpu", "accelerator", "version"),
  [
    ("v4-8", "v4-8", "tpu-ubuntu2204-base"),
    ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5litepod-8", "v5litepod-8", "v2-alpha-tpuv5-lite"),
    ("v5p-8", "v5p-8", "v2-alpha-tpuv5"),
    ("v6e-8", "v6e-8", "v2-alpha-tpuv6e"),
  ],
)
def test_create_every_generation(cloud, tpu, accelerator, version):
  _, calls = cloud("create", TPU=tpu, SPOT=0)
  assert [c for c in calls if "create" in c] == [
    [
      *["compute", "tpus", "tpu-vm", "create", "esrgan"],
      f"--accelerator-type={accelerator}",
      f"--version={version}",
      *WHERE,
    ]
  ]
  _, calls = cloud("create", TPU=tpu)
  assert verbs(calls) == []


def test_create_queued(cloud):
  cloud.plan(request=["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
  output, calls = cloud("create", TPU="v6e-8", QUEUED=1)
  assert [c for c in calls if "create" in c] == [
    [
      *["compute", "tpus", "queued-resources", "create", "esrgan"],
      *["--node-id=esrgan", "--accelerator-type=v6e-8"],
      *["--runtime-version=v2-alpha-tpuv6e", "--spot", *WHERE],
    ]
  ]
  assert "esrgan is WAITING_FOR_RESOURCES; waiting" in output
  assert verbs(cloud("create", QUEUED=1)[1]) == []
  # Preempted: the request is used up too.
  (cloud.folder / "vm").write_text("PREEMPTED")
  (cloud.folder / "request").write_text("SUSPENDED")
  cloud.plan(request=["SUSPENDED", "", "ACTIVE"])
  _, calls = cloud("create", QUEUED=1)
  assert verbs(calls) == [
    "queued-resources delete esrgan",
    "queued-resources create esrgan",
  ]
  assert "--force" in calls[2]


def test_create_that_fails_later(cloud):
  cloud.plan(request=["", "PROVISIONING", "FAILED"])
  output, _ = cloud("create", QUEUED=1, expect=2)
  assert "esrgan is FAILED instead of ACTIVE" in output


def test_create_refused(cloud):
  cloud.plan(create=["refused"] * 2)
  output, calls = cloud("create", TRIES=2, expect=2)
  assert verbs(calls) == ["tpu-vm create esrgan"] * 2
  assert "v5litepod-8 was refused in us-west4-a 2 times" in output
  cloud.plan(create=["refused"] * 2)
  _, calls = cloud("create", TRIES=3)
  assert verbs(calls) == ["tpu-vm create esrgan"] * 3


@pytest.mark.parametrize("step", ["create", "delete", "resume", "all"])
def test_a_refused_look_is_not_taken_for_absence(cloud, step):
  (cloud.folder / "vm").write_text("READY")
  cloud.plan(list=["denied"])
  _, calls = cloud(step, expect=1)
  assert verbs(calls) == []


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", "STOPPED"])
def test_create_after_preemption(cloud, state):
  (cloud.folder / "vm").write_text(state)
  _, calls = cloud("create")
  assert verbs(calls) == ["tpu-vm delete esrgan", "tpu-vm create esrgan"]


@pytest.mark.slow
def test_every_step_alone(cloud):
  name = {"NAME": "esrgan", "WORKDIR": "gs://my-bucket/runs/a b"}
  cloud("create", **name)
  cloud.plan(ssh=["refused"])  # as a new VM does
  cloud("install", **name)
  for worker in (0, 1):
    home = cloud.folder / f"worker{worker}/esrgan_jax"
    assert (home / "esrgan_jax/distributed.py").exists()
    assert not list(home.glob("esrgan_jax/**/__pycache__"))
    assert ["uv", "pip", "install"] in [c[:3] for c in cloud.on_worker(worker)]
    assert "jax[tpu]" in cloud.on_worker(worker)[-1]

  _, calls = cloud("prepare", **name)
  assert "storage buckets create gs://my-bucket" in verbs(calls)
  assert "--location=us-west4" in calls[1]
  output, calls = cloud("prepare", **name)
  assert "DIV2K is in the bucket" in output
  assert "storage buckets create gs://my-bucket" not in verbs(calls)
  prepared = [c for c in cloud.on_worker(0) if "esrgan_jax.data.prepare" in c]
  assert [c[1:5] for c in prepared] == [
    ["-m", "esrgan_jax.data.prepare", "--config", "bicubic_x4"]
  ]
  for worker in (0, 1):
    data = cloud.folder / f"worker{worker}/tensorflow_datasets/div2k/bicubic_x4"
    assert (data / "2.0.0/dataset_info.json").exists()

  output, _ = cloud("logs", expect=4, **name)
  assert "nothing was started here" in output
  cloud.hold()
  flags = ["--config.a=x  y", "--config.b='$HOME'", '--config.c="(1, 2)"']
  cloud("start", *flags, **name)
  output, _ = cloud("start", *flags, **name)
  assert output.count("already running") == 2
  output, _ = cloud("install", **name)
  assert output.count("a run is going on here") == 2
  logs = cloud.start("logs", **name)
  cloud.release()
  status, output = finish(logs)
  assert status == 0, output
  assert "training on worker 0" in output
  assert "the run has ended with status 0" in output
  for worker in (0, 1):
    wait_until(lambda worker=worker: cloud.trainings(worker))
    assert cloud.trainings(worker) == [
      [
        *["python", "-u", "-m", "esrgan_jax.main"],
        *["--config=configs/gan.py", "--workdir=gs://my-bucket/runs/a b"],
        *flags,
      ]
    ]

  cloud("resume", **name)
  wait_until(lambda: len(cloud.trainings(1)) == 2)
  output, _ = cloud("delete", **name)
  assert "the bucket gs://my-bucket stays" in output
  assert (cloud.folder / "bucket/my-bucket").exists()
  output, _ = cloud("delete", **name)
  assert "there is no esrgan in us-west4-a" in output


@pytest.mark.slow
def test_all_resumes_until_the_run_has_ended(cloud):
  cloud.plan(logs=["preempted", "cut off", "preempted"])
  output, calls = cloud("all", "--config.a=b c", DATASET="")
  assert verbs(calls).count("tpu-vm create esrgan") == 3
  assert verbs(calls).count("tpu-vm delete esrgan") == 2
  assert output.count("lost esrgan (PREEMPTED); resuming") == 2
  assert "lost the connection; following again" in output
  # On the third machine, with the same flags.
  assert [c[-2:] for c in cloud.trainings(0)] == [
    ["--workdir=gs://my-bucket/esrgan", "--config.a=b c"]
  ]


@pytest.mark.slow
def test_all_goes_on_when_a_new_machine_is_refused(cloud):
  cloud.plan(logs=["preempted"], create=["", "refused", "refused"])
  output, calls = cloud("all", DATASET="", TRIES=2)
  assert "resuming failed" in output
  assert "the run has ended with status 0" in output
  assert verbs(calls).count("tpu-vm create esrgan") == 4


@pytest.mark.slow
def test_all_stops(cloud):
  output, _ = cloud("all", DATASET="", RUN_STATUS=1, expect=3)
  assert "failed on a healthy VM" in output
  cloud.plan(logs=["preempted"] * 3)
  output, _ = cloud("all", DATASET="", MAX_RESUMES=1, expect=3)
  assert "stopped after 1 resumptions" in output
  cloud("delete")
  cloud.plan(create=["refused"])
  cloud("all", TRIES=1, expect=2)


def test_delete_of_a_queued_machine(cloud):
  cloud.plan(request=["", "ACTIVE"])
  cloud("create", QUEUED=1)
  _, calls = cloud("delete")
  assert verbs(calls) == ["queued-resources delete esrgan"]
  assert {"--force", "--quiet"} <= set(calls[1])


@pytest.mark.parametrize("queued", [0, 1])
def test_dry_run_does_nothing(cloud, queued):
  for step in ("all", "delete"):
    output, calls = cloud(step, DRY_RUN=1, NAME="my name", QUEUED=queued)
    assert calls == []
    assert "my\\ name" in output
  assert sorted(p.name for p in cloud.folder.iterdir()) == ["bin", "plan.json"]


@pytest.mark.parametrize(
  ("arguments", "environ", "message"),
  [
    ([], {}, "step '' must be one of create install"),
    (["crate"], {}, "step 'crate' must be one of"),
    (["create", "x"], {}, "create takes no arguments, but got: x"),
    (["create"], {"PROJECT": ""}, "PROJECT is not set"),
    (["create"], {"BUCKET": "b"}, "BUCKET='b' must begin with gs://"),
    (["create"], {"TPU": "tpu7x-8"}, "TPU='tpu7x-8' is none of"),
  ],
)
def test_tpu_vm_explains_mistakes(cloud, arguments, environ, message):
  output, calls = cloud(*arguments, expect=2, **environ)
  assert message in output
  assert verbs(calls) == []


def test_help(cloud):
  output, _ = cloud("--help")
  assert output.startswith("Trains on a Cloud TPU VM")
  assert output.rstrip().endswith("nothing is done.")


@pytest.mark.slow
def test_gcloud_knows_every_command_and_flag(cloud):
  """Oracle: the list of commands that the Google Cloud SDK ships."""
  gcloud = shutil.which("gcloud")
  sdk = pathlib.Path(gcloud or "/").resolve().parents[1:2]
  lists = [d / "data/cli/gcloud_completions.py" for d in sdk]
  if not lists or not lists[0].exists():
    pytest.skip("no Google Cloud SDK here")
  text = lists[0].read_text().partition("STATIC_COMPLETION_CLI_TREE = ")[2]
  tree = ast.literal_eval(text)

  cloud("all")
  cloud("delete")
  cloud.plan(request=["", "ACTIVE"])
  cloud("create", QUEUED=1)
  cloud("delete")
  checked = set()
  for call in cloud.calls():
    node = tree
    flags = set(tree["flags"])
    words = [w for w in call if not w.startswith("-")]
    while words and words[0] in node["commands"]:
      node = node["commands"][words.pop(0)]
      flags |= set(node["flags"])
    assert not node["commands"], f"{call} names no command"
    used = {w.partition("=")[0] for w in call if w.startswith("-")}
    assert used <= flags, f"{call}: {used - flags}"
    checked.add(call[3] if call[0] == "compute" else call[1])
  assert checked >= {"create", "delete", "list", "ssh", "scp", "rsync", "cp"}


# SLURM, GKE, and the shell's own judgement.


@needs_bash
def test_slurm_script_calls_srun(tmp_path):
  srun = tmp_path / "bin/srun"
  srun.parent.mkdir()
  srun.write_text(
    '#!/usr/bin/env bash\nprintf \'%s\\n\' "$@" "cpus $SRUN_CPUS_PER_TASK"\n'
  )
  srun.chmod(0o755)
  path = f"{srun.parent}{os.pathsep}{os.environ['PATH']}"
  output = subprocess.run(
    [BASH, LAUNCH / "slurm.sbatch", "--config.a=x y"],
    env=clean_environ(PATH=path, WORKDIR="/shared/a b", SLURM_CPUS_PER_TASK=8),
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  assert output[-6:] == [
    "-m",
    "esrgan_jax.main",
    "--config=configs/gan.py",
    "--workdir=/shared/a b",
    "--config.a=x y",
    "cpus 8",
  ]
  text = (LAUNCH / "slurm.sbatch").read_text()
  options = dict(
    line.split()[1].removeprefix("--").partition("=")[::2]
    for line in text.splitlines()
    if line.startswith("#SBATCH")
  )
  # JAX gives each task the GPU of its local number.
  assert options["gres"] == f"gpu:{options['ntasks-per-node']}"


def test_gke_pods_fill_the_slice():
  yaml = pytest.importorskip("yaml")
  (document,) = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
  assert document["kind"] == "JobSet"
  (job,) = document["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  chips = 1
  for side in topology.split("x"):
    chips *= int(side)
  resources = container["resources"]
  assert resources["requests"] == resources["limits"]
  assert spec["parallelism"] * resources["limits"]["google.com/tpu"] == chips
  assert spec["completions"] == spec["parallelism"]
  assert spec["completionMode"] == "Indexed"
  mounts = {mount["name"] for mount in container["volumeMounts"]}
  assert mounts == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(
  "name",
  [
    "local_processes.sh",
    "ray_slurm.sbatch",
    "slurm.sbatch",
    "tpu_smoke.sh",
    "tpu_vm.sh",
  ],
)
def test_shellcheck(name):
  shellcheck = shutil.which("shellcheck")
  if shellcheck is None:
    pytest.skip("no shellcheck here")
  done = subprocess.run(
    [shellcheck, "--shell=bash", LAUNCH / name],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout
  if name.endswith(".sh"):
    assert os.access(LAUNCH / name, os.X_OK)
