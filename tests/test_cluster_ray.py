"""`upscale --engine ray`, as users run it, on real clusters of this machine."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax.weights import files
from tests.test_upscaler import make_model
from tests.training_runs import ROOT

pytestmark = [
  pytest.mark.runtimes,
  # Ray's own, in the process that starts a cluster.
  pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
  ),
]

LIMIT = 240  # Seconds; a hang is a failure, not a slow test.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  model = make_model(num_feat=4, num_grow_ch=2)
  path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
  config = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
  files.write_weights(path, jax.device_get(model.params), config)
  return path


def environ(**more):
  kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
  kept |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
  return kept | more


def start(weights, *words, cwd, **more):
  words = ["upscale", *map(str, words), "--model", str(weights)]
  return subprocess.Popen(
    [sys.executable, "-m", "esrgan_jax", *words, "--engine", "ray"],
    env=environ(**more),
    cwd=cwd,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*words, **options):
  process = start(*words, **options)
  out, err = process.communicate(timeout=LIMIT)
  return process.returncode, out, err


def run_plain(weights, *words, cwd):
  command = [sys.executable, "-m", "esrgan_jax", "upscale", *map(str, words)]
  command += ["--model", str(weights), "--quiet"]
  subprocess.run(command, env=environ(), cwd=cwd, check=True)


@contextlib.contextmanager
def nodes(*environs):
  """A cluster: a head that has no CPU, and a node of one for each."""
  with (
    tempfile.TemporaryDirectory(
      dir="/tmp", ignore_cleanup_errors=True
    ) as folder,
    pytest.MonkeyPatch.context() as patch,
  ):
    for name, value in environ(RAY_TMPDIR=folder).items():
      patch.setenv(name, value)
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
      options = {"include_dashboard": False}
      cluster.add_node(num_cpus=0, **options)
      yield (
        cluster,
        [cluster.add_node(num_cpus=1, env_vars=each) for each in environs],
      )
    finally:
      cluster.shutdown()


def save_images(folder, count, *, size=(24, 20)):
  folder.mkdir()
  random = np.random.default_rng(0)
  for n in range(count):
    pixels = random.integers(0, 256, (*size, 3), np.uint8)
    PilImage.fromarray(pixels).save(folder / f"{n:02}.png")


def rows_of(file):
  import pyarrow.parquet as pq

  return {
    row["input"].rpartition("/")[2]: row
    for row in pq.read_table(file).to_pylist()
  }


def same_pixels(one, other):
  a, b = (np.asarray(PilImage.open(path), np.int16) for path in (one, other))
  return a.shape == b.shape and abs(a - b).max() <= 1


def read_until(process, pattern):
  """Reads what a process says until a line matches."""
  said = []
  for line in process.stdout:
    said.append(line)
    if re.search(pattern, line):
      return said
  raise AssertionError(f"{''.join(said)}\n{process.stderr.read()}")


def test_sixty_images_on_two_nodes_of_which_one_is_lost(weights, tmp_path):
  """All are done, but for one that is poison; the next run does nothing."""
  save_images(tmp_path / "in", 60)
  poison = tmp_path / "in/31.png"
  poison.write_bytes(poison.read_bytes()[:300])
  words = weights, "in", "-o", "out"
  with nodes({}, {}) as (cluster, (_, lost)):
    options = "--ray-address", cluster.address, "--ray-workers", "2:2"
    process = start(*words, *options, cwd=tmp_path)
    said = read_until(process, r"out/\d\d\.png  80 x 96")
    cluster.remove_node(lost, allow_graceful=False)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1, err
    said = "".join(said) + out
    assert err.count("\n") == 1
    assert err.startswith(f"error: {poison}: ")
    # Nothing of Ray's own between ours.
    assert all(
      re.match(r"note: |out/\d\d\.png  80 x 96, |59 images, ", line)
      for line in said.splitlines()
    ), said
    rows = rows_of(tmp_path / "out/manifest.parquet")
    assert len(rows) == 60
    assert [name for name, row in rows.items() if row["error"]] == ["31.png"]
    for name, row in rows.items():
      if name == "31.png":
        continue
      assert (row["result"], row["width"], row["height"]) == (name, 80, 96)
      assert row["bytes"] == (tmp_path / "out" / name).stat().st_size
      assert row["seconds"] >= 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
      "manifest.parquet",
      *(name for name in rows if name != "31.png"),
    }

    # Again: what is done stays; what is another, or gone, is done.
    (tmp_path / "out/00.png").unlink()
    (tmp_path / "out/01.png").write_bytes(b"cut sh")
    save = PilImage.new("RGB", (9, 7), "red").save
    save(tmp_path / "in/02.png")
    save(poison)
    before = (tmp_path / "out/03.png").stat()
    status, out, err = run(*words, *options[:2], cwd=tmp_path)
    assert (status, err) == (0, "")
    assert re.search(r"4 images, .*; 56 done before\n$", out), out
    assert (tmp_path / "out/03.png").stat() == before

  alone = tmp_path / "alone"
  run_plain(weights, "in", "-o", alone, cwd=tmp_path)
  for name in rows:
    assert same_pixels(tmp_path / "out" / name, alone / name), name


def test_the_kubernetes_manifest_keeps_its_schema():
  """kubectl refuses what the operator's schema does not know."""
  import jsonschema
  import yaml

  schema = json.loads((ROOT / "tests/goldens/rayjob_schema.json").read_text())
  (job,) = yaml.safe_load_all((ROOT / "launch/ray_job.yaml").read_text())
  validator = jsonschema.Draft202012Validator(schema)
  assert [error.message for error in validator.iter_errors(job)] == []
  cluster = job["spec"]["rayClusterSpec"]
  assert cluster["authOptions"]["mode"] == "token"
  (group,) = cluster["workerGroupSpecs"]
  assert f"--ray-workers 1:{group['maxReplicas']}" in job["spec"]["entrypoint"]
  for wrong in ({"replica": 1}, {"replicas": "one"}, {"groupName": None}):
    group |= wrong
    assert [*validator.iter_errors(job)]
    group |= {"groupName": "gpu", "replicas": 1}
    group.pop("replica", None)
