"""The log of metrics: exact curves whatever happened, and TensorBoard."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.report import samples
from esrgan_jax.report.metric_log import MetricLog, read_metrics


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


def _events(folder):
  """Scalars and pictures, by TensorBoard's reader that needs no TensorFlow."""
  from tensorboard.compat.proto import event_pb2
  from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow

  scalars, pictures = [], []
  for path in sorted(folder.glob("events.out.tfevents.*")):
    reader = pywrap_tensorflow.PyRecordReader_New(str(path), 0, b"")
    while True:
      try:
        reader.GetNext()
      except errors.OutOfRangeError:
        break
      event = event_pb2.Event.FromString(reader.record())
      for value in event.summary.value:
        if value.HasField("image"):
          pictures.append((event.step, value.tag, value.image.width))
        else:
          scalars.append((event.step, value.tag, value.simple_value))
  return scalars, pictures


_PNG = samples.png(np.zeros((2, 3, 3), np.uint8))


def test_tensorboard_reads_the_same_numbers_once(tmp_path):
  pytest.importorskip("tensorboard")
  with MetricLog(tmp_path) as log:
    log.write(1, {"g/loss": 0.5})
    log.write_picture(1, "samples", _PNG)
    log.write(2, {"g/loss": 0.25})
    log.write_picture(2, "samples", _PNG)
  (path,) = tmp_path.glob("events*")
  path.write_bytes(path.read_bytes()[:-3])  # What a crash leaves.
  with MetricLog(tmp_path, 1) as log:
    log.write(2, {"g/loss": 0.125})
  scalars, pictures = _events(tmp_path)
  assert scalars == [(1, "g/loss", 0.5), (2, "g/loss", 0.125)]
  assert pictures == [(1, "samples", 3)]
  assert steps(tmp_path) == [1, 2]


def test_a_log_without_events_gets_those_of_its_lines(tmp_path):
  pytest.importorskip("tensorboard")
  with MetricLog(tmp_path, tensorboard=False) as log:
    log.write(1, {"g/loss": 0.5, "eval/psnr_y": math.inf})
    log.write(1, {"eval/ssim_y": 0.75})
  # As of TensorFlow's writer, of the version before.
  (tmp_path / "events.out.tfevents.1.host.1.v2").write_bytes(b"tensors")
  MetricLog(tmp_path, 1).close()
  scalars, _ = _events(tmp_path)
  assert len(list(tmp_path.glob("events*"))) == 1
  assert [(step, tag) for step, tag, _ in scalars] == [
    (1, "g/loss"),
    (1, "eval/psnr_y"),
    (1, "eval/ssim_y"),
  ]


def test_what_is_evaluated_again_is_logged_once(tmp_path):
  with MetricLog(tmp_path) as log:
    log.write(2, {"eval/psnr_y": 20.0})
    log.write(4, {"g/loss": 0.5})
    log.write(4, {"eval/psnr_y": 21.0})
  with MetricLog(tmp_path, 4, measured=False) as log:
    log.write(4, {"eval/psnr_y": 22.0})
  assert read_metrics(tmp_path) == [
    {"step": 2, "eval/psnr_y": 20.0},
    {"step": 4, "g/loss": 0.5},
    {"step": 4, "eval/psnr_y": 22.0},
  ]
