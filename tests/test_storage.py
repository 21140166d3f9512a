"""Workdirs in a bucket: what is written there, and what is said of mistakes."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.training_runs import ROOT, environment, tiny_config, write_config


def _run(arguments, cache, timeout=240):
  """Runs Python; epath reaches buckets by fsspec, not by TensorFlow."""
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=environment(cache, EPATH_USE_TF="0"),
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


_PARTS = """
import io
import numpy as np
import rich.console
from etils import epath
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.training import (
  evaluator, finish, metric_log, report, run as run_lib, storage, workdir)
from tests.bucket_stand_in import Bucket

sizes = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2}
console = rich.console.Console(file=io.StringIO())
config = {"generator": sizes, "data": {"sources": "sample_photos", "eval": ""},
          "mesh": {"num_devices": 1}}
run = run_lib.make_run(config, "gs://bucket/a/run", console=console)
for _ in range(2):  # The second time, there is something.
  run_lib.claim_workdir(run)

# Metrics: nothing is lost that was flushed, resuming drops what comes after.
with metric_log.MetricLog(run.workdir / "psnr", tensorboard=False) as log:
  log.write(1, {"g/loss": 0.5})
  log.flush()
  assert len(metric_log.read_metrics("gs://bucket/a/run/psnr")) == 1
  log.write(2, {"g/loss": 0.25})
  log.write(3, {"g/loss": 0.125})
with metric_log.MetricLog(run.workdir / "psnr", 2, tensorboard=False) as log:
  log.write(3, {"g/loss": 0.1})
found = metric_log.read_metrics("gs://bucket/a/run/psnr")
assert [line["g/loss"] for line in found] == [0.5, 0.25, 0.1], found

# A model, found again as people ask for it.
import jax
params = jax.jit(run.generator.init)(jax.random.key(0), np.zeros((1, 8, 8, 3)))
finish.export(run, "psnr", params["params"], 0.0)
for name in ("gs://bucket/a/run", "gs://bucket/a/run/models/psnr.safetensors"):
  model = workdir.find_model(name)
  jax.tree.map(np.testing.assert_array_equal, model.weights.params,
               dict(params["params"]))
  assert str(model.path).startswith("gs://bucket/a/run/models/"), model.path
assert workdir.is_workdir("gs://bucket/a/run")
assert not workdir.is_workdir("gs://bucket/a")
try:
  workdir.find_model("gs://bucket/a/run/config.json")
except ValueError as error:
  assert str(error).startswith("gs://bucket/a/run/config.json"), error
else:
  raise AssertionError("a JSON file is no model")

# The results.
score = evaluator.Score("a.png", {"psnr_y": 30.0, "ssim_y": 0.9})
path = "gs://bucket/a/run/evaluation.json"
evaluator.write_evaluations(path, [evaluator.Evaluation("m", 4, 4, (score,))])
assert evaluator.read_evaluations(path)[0]["means"]["psnr_y"] == 30.0
page = report.write_report("gs://bucket/a/run").read_text()
assert "<h1>run</h1>" in page and "a.png" in page and "Generator loss" in page

# Moving what Orbax finds damaged.
old = run.workdir / "psnr/checkpoints/7"
(old / "ema").mkdir(parents=True)
(old / "ema/part").write_bytes(b"12")
(old / "mark").write_bytes(b"")
storage.move_folder(old, run.workdir / "psnr/damaged_checkpoints/7")
print("\\n".join(sorted(Bucket.objects)))
"""


def test_parts_of_a_workdir_in_a_bucket(tmp_path):
  pytest.importorskip("fsspec")
  done = _run(["-c", _PARTS], tmp_path)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == [
    f"bucket/a/run/{name}"
    for name in (
      "config.json",
      "evaluation.json",
      "models/psnr.safetensors",
      "psnr/damaged_checkpoints/7/ema/part",
      "psnr/damaged_checkpoints/7/mark",
      "psnr/metrics.jsonl",
      "report.html",
    )
  ]


_TRAINING = """
import sys
from tests.bucket_stand_in import Bucket
from esrgan_jax import main
from esrgan_jax.training import metric_log, workdir

# TensorFlow would write TensorBoard's files into the real cloud.
sys.modules["clu"] = None
flags = [sys.argv[1], "--workdir=gs://bucket/run",
         "--config.phases.gan.num_train_steps=0"]
assert main.main(flags) == 0
for step in 2, 4:
  mark = f"bucket/run/psnr/checkpoints/{step}/commit_success.txt"
  assert mark in Bucket.objects, sorted(Bucket.objects)

# The newest is damaged and an older one is not: it goes on from there.
for name in list(Bucket.objects):
  if "/4/ema/d/" in name or "/4/ema/ocdbt.process_0/d/" in name:
    content = bytearray(Bucket.objects[name])
    content[len(content) // 2] ^= 255
    Bucket.put(name, bytes(content))
flags += ["--config.phases.psnr.num_train_steps=6"]
assert main.main([*flags, "--config.allow_changes=true"]) == 0
lines = metric_log.read_metrics("gs://bucket/run/psnr")
assert [e["step"] for e in lines if "g/loss" in e] == [1, 2, 4, 6], lines
assert any("damaged_checkpoints/4/" in name for name in Bucket.objects)
found = workdir.find_model("gs://bucket/run/psnr/checkpoints")
assert found.weights.config["num_feat"] == 4
assert "bucket/run/report.html" in Bucket.objects
print("done")
"""


def test_training_in_a_bucket(tmp_path):
  pytest.importorskip("fsspec")
  config = tiny_config(tmp_path)
  config["phases"]["psnr"]["num_train_steps"] = 4
  config["checkpoint_every_steps"] = config["eval_every_steps"] = 2
  config = write_config(tmp_path / "config.py", config)
  done = _run(["-c", _TRAINING, f"--config={config}"], tmp_path / "cache")
  assert done.returncode == 0, done.stderr
  assert "psnr: going on from step 2 of 6" in done.stdout
  assert done.stdout.endswith("done\n")
  assert "checkpoint 4 of gs://bucket/run/psnr/checkpoints is damaged" in (
    done.stderr
  )


@pytest.mark.skipif(
  importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed"
)
def test_a_bucket_without_its_package(tmp_path):
  config = write_config(tmp_path / "config.py", tiny_config(tmp_path))
  arguments = [f"--config={config}", "--workdir=gs://bucket/run"]
  done = _run(["-m", "esrgan_jax.main", *arguments], tmp_path)
  assert done.returncode == 1, done.stderr
  assert done.stderr.startswith("error: gs://bucket/run needs a package: ")
  assert "pip install gcsfs" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert not os.path.exists(ROOT / "gs:")
