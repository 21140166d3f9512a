"""The log of metrics: exact curves whatever happened, and TensorBoard."""

import json
import math

import jax.numpy as jnp
import pytest

from esrgan_jax.training.metric_log import MetricLog, read_metrics


def steps(folder):
  return [entry["step"] for entry in read_metrics(folder)]


def test_lines_are_there_at_once_and_plain(tmp_path):
  with MetricLog(tmp_path / "psnr", tensorboard=False) as log:
    log.write(3, {"g/loss": jnp.float32(0.5), "g/norm": math.nan})
    assert read_metrics(tmp_path / "psnr") == [
      {"step": 3, "g/loss": 0.5, "g/norm": None}
    ]
  line = (tmp_path / "psnr" / "metrics.jsonl").read_text()
  assert json.loads(line, parse_constant=pytest.fail)["g/norm"] is None


def test_resuming_drops_what_will_be_written_again(tmp_path):
  with MetricLog(tmp_path, tensorboard=False) as log:
    for step in (1, 2, 3, 4):
      log.write(step, {"a": step})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 5, "a"')  # What a crash leaves.
  assert steps(tmp_path) == [1, 2, 3, 4]
  with MetricLog(tmp_path, 2, tensorboard=False) as log:
    assert steps(tmp_path) == [1, 2]
    log.write(3, {"a": -3})
    log.write(4, {"a": -4})
    log.rewind(3)
    log.write(4, {"a": 44})
  assert [e["a"] for e in read_metrics(tmp_path)] == [1, 2, -3, 44]
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
  MetricLog(tmp_path, tensorboard=False).close()
  assert steps(tmp_path) == []


def test_text_that_is_no_number_is_an_error(tmp_path):
  with (
    MetricLog(tmp_path, tensorboard=False) as log,
    pytest.raises(ValueError, match="could not convert"),
  ):
    log.write(1, {"a": "high"})


@pytest.mark.filterwarnings("ignore")  # TensorFlow's own, on import.
def test_tensorboard_reads_the_same_numbers(tmp_path):
  for package in ("clu", "tensorflow", "tensorboard"):
    pytest.importorskip(package)
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  with MetricLog(tmp_path) as log:
    log.write(1, {"g/loss": 0.5})
    log.write(2, {"g/loss": 0.25})
  events = event_accumulator.EventAccumulator(str(tmp_path))
  events.Reload()
  found = [
    (e.step, float(tensor_util.make_ndarray(e.tensor_proto)))
    for e in events.Tensors("g/loss")
  ]
  assert found == [(1, 0.5), (2, 0.25)]
  assert steps(tmp_path) == [1, 2]
