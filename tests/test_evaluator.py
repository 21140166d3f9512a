"""Evaluation: the numbers, the protocol, and the work of several processes."""

import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax import metrics
from esrgan_jax.data import sources
from esrgan_jax.evaluation import compared, evaluator, measures
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.resize import imresize_uint8
from tests.networks import random_params


def image(height, width, seed=0):
  """A smooth image with some noise: neither flat nor without structure."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), np.uint8)
  large = imresize_uint8(small, size=(height, width)).astype(int)
  noise = rng.integers(-9, 10, large.shape)
  return np.clip(large + noise, 0, 255).astype(np.uint8)


class Arrays(sources.Source):
  """Pairs that live in memory."""

  def __init__(self, sizes, scale=4):
    self.scale = scale
    self._hr = [image(*size, seed=i) for i, size in enumerate(sizes)]
    self.names = [f"{i}.png" for i in range(len(sizes))]

  def __getitem__(self, index):
    hr = self._hr[index]
    return sources.Pair(imresize_uint8(hr, scale=1 / self.scale), hr)

  def fingerprint(self):
    return "arrays"


@pytest.fixture(scope="module")
def source():
  return Arrays([(40, 48), (64, 36), (48, 52)])


@pytest.fixture(scope="module")
def net():
  return RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)


@pytest.fixture(scope="module")
def params(net):
  params = random_params(net, np.zeros((1, 8, 8, 3), np.float32))
  params["conv_last"]["bias"] += 0.5  # Else all is black.
  return params


# One block, several, and edges that end within SSIM's reach of a block's.
@pytest.mark.parametrize(
  "size",
  [
    (19, 30),
    (40, 72),
    (100, 60),
    pytest.param((270, 40), marks=pytest.mark.slow),
    pytest.param((272, 275), marks=pytest.mark.slow),
    pytest.param((44, 520), marks=pytest.mark.slow),
  ],
)
def test_measure_equals_the_metrics_of_the_core(size):
  hr, sr = image(*size), image(*size, seed=1)
  sr = ((hr.astype(int) * 3 + sr) // 4).astype(np.uint8)
  found = measures.measure(sr, hr, crop_border=4)
  sr, hr = (x.astype(np.float32) / np.float32(255) for x in (sr, hr))

  @jax.jit
  def measure(sr, hr):
    return {
      f"{name}_{suffix}": getattr(metrics, name)(
        sr, hr, crop_border=4, y_channel=suffix == "y"
      )
      for name in ("psnr", "ssim")
      for suffix in ("y", "rgb")
    }

  for name, expected in measure(sr, hr).items():
    tolerance = 1e-3 if name.startswith("psnr") else 1e-5
    assert found[name] == pytest.approx(float(expected), abs=tolerance)


def test_measure_equals_scikit_image():
  skimage = pytest.importorskip("skimage.metrics")
  hr = image(60, 70)
  sr = np.clip(hr + np.random.default_rng(2).normal(0, 8, hr.shape), 0, 255)
  sr = sr.astype(np.uint8)
  found = measures.measure(sr, hr, crop_border=3)
  inner = slice(3, -3), slice(3, -3)
  psnr = skimage.peak_signal_noise_ratio(hr[inner], sr[inner], data_range=255)
  ssim, full = skimage.structural_similarity(
    hr[inner],
    sr[inner],
    data_range=255,
    channel_axis=-1,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
    full=True,
  )
  assert found["psnr_rgb"] == pytest.approx(psnr, abs=1e-4)
  assert found["ssim_rgb"] == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-5)
  assert found["ssim_rgb"] == pytest.approx(ssim, abs=1e-4)


def test_equal_images_are_perfect():
  hr = image(30, 30)
  found = measures.measure(hr, hr, crop_border=0)
  assert found["psnr_y"] == found["psnr_rgb"] == math.inf
  assert found["ssim_y"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
  ("sr", "crop_border", "message"),
  [
    (np.zeros((20, 20, 3), np.float32), 0, "sr must be uint8.*float32"),
    (np.zeros((20, 24, 3), np.uint8), 0, "result is 20x24.*truth 20x20"),
    (np.zeros((20, 20, 3), np.uint8), -1, "crop_border must be >= 0, got -1"),
    (np.zeros((20, 20, 3), np.uint8), 5, "leaves 10x10 of 20x20"),
  ],
)
def test_measure_says_what_does_not_fit(sr, crop_border, message):
  hr = np.zeros((20, 20, 3), np.uint8)
  with pytest.raises(ValueError, match=message):
    measures.measure(sr, hr, crop_border=crop_border)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"name": "psnr_y"}, "another measure has this name"),
    ({"name": "a b"}, "one of Python's"),
    ({"better": "most"}, "'higher' or 'lower'"),
    ({"on": "half"}, "'whole' or 'patch'"),
    ({"function": None}, "needs a function"),
  ],
)
def test_a_measure_that_cannot_be_is_refused(fields, message):
  fields = {"name": "a", "heading": "A", "function": abs} | fields
  with pytest.raises(ValueError, match=message):
    measures.register_measure(measures.Measure(**fields))
  assert "a" not in measures.MEASURES
  assert measures.find("psnr_y").heading == "PSNR Y"


def test_a_patch_is_the_middle_and_may_do_without_reference():
  hr, sr = image(300, 40), image(300, 40, seed=1)
  brightness = measures.Measure(
    "brightness",
    "Brightness",
    on="patch",
    needs_reference=False,
    function=lambda sr: sr.mean(),
  )
  take = measures.compile_measures([brightness])
  found = take(compared.Compared(sr, hr, crop_border=4))
  expected = sr[22:278].mean() / 255
  assert found == {"brightness": pytest.approx(expected, rel=1e-5)}


def test_few_programs_measure_all_sizes():
  compared._block_sums.clear_cache()
  for size in ((20, 30), (33, 21), (70, 90), (80, 71), (90, 85)):
    measures.measure(image(*size), image(*size, seed=1), crop_border=2)
  assert compared._block_sums._cache_size() == 2


def test_evaluate_pairs_gives_rows_and_means(source):
  seen = []
  l2 = measures.Measure(
    "l2",
    "L2",
    on="patch",
    function=lambda sr, hr: jnp.mean(jnp.square(sr - hr)),
  )
  found = evaluator.evaluate_pairs(
    lambda lr: evaluator.bicubic(lr, scale=4),
    evaluator.named_pairs(source),
    scale=4,
    model="bicubic",
    measures=[*measures.choose(measures.DEFAULT), l2],
    notify=seen.append,
  )
  assert found.crop_border == 4
  assert [score.name for score in found.scores] == source.names
  assert seen == list(found.scores)
  rows = [score.values["psnr_y"] for score in found.scores]
  assert found.means["psnr_y"] == pytest.approx(np.mean(rows))
  lr, hr = source[0]
  difference = (evaluator.bicubic(lr, scale=4) - hr.astype(float)) / 255
  l2 = found.scores[0].values["l2"]
  assert l2 == pytest.approx(np.mean(difference**2), rel=1e-4)


def test_errors_name_the_image(source):
  with pytest.raises(ValueError, match=r"0\.png: the result is 10x12"):
    evaluator.evaluate_pairs(
      lambda lr: lr, evaluator.named_pairs(source), scale=4
    )
  with pytest.raises(ValueError, match="no image"):
    evaluator.evaluate_pairs(lambda lr: lr, [], scale=4)


def test_evaluator_takes_new_parameters_without_compiling(net, params):
  source = Arrays([(40, 48), (40, 48)])
  devices = jax.devices()[:1]
  run = evaluator.Evaluator(net, source, devices=devices, tile=0)
  first = run(params, model="first")
  programs = dict(run._last._programs)
  apply = jax.jit(net.apply)
  # The network on whole images, rounded: no tiles, no upscaler.
  for score, (_, lr, hr) in zip(
    first.scores, evaluator.named_pairs(source), strict=True
  ):
    sr = apply({"params": params}, lr[None] / np.float32(255))[0]
    sr = np.round(np.clip(sr, 0, 1) * 255).astype(np.uint8)
    expected = measures.measure(sr, hr, crop_border=4)
    assert score.values["psnr_y"] == pytest.approx(expected["psnr_y"], abs=0.01)
  second = run(jax.tree.map(lambda x: 0.5 * x, params), model="second")
  assert second.means["psnr_y"] != first.means["psnr_y"]
  assert run._last._programs == programs
  assert run(params).scores == first.scores
  assert run.bicubic().means["ssim_y"] > first.means["ssim_y"]


class _Normed(nn.Module):
  """Has running statistics."""

  scale: int = 4

  @nn.compact
  def __call__(self, lr, train=False):
    x = nn.BatchNorm(use_running_average=not train)(lr)
    return x.repeat(self.scale, axis=-3).repeat(self.scale, axis=-2)


def test_statistics_are_measured_with_the_parameters(source):
  net = _Normed()
  variables = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  run = evaluator.Evaluator(net, source, devices=jax.devices()[:1])
  params, statistics = variables["params"], variables["batch_stats"]
  plain = run(params, {"batch_stats": statistics}).means["psnr_y"]
  darker = jax.tree.map(lambda x: x + 0.3, statistics)
  # As if 0.3 had been taken off and all divided by sqrt(1.3).
  changed = run(params, {"batch_stats": darker}, model="darker")
  assert changed.means["psnr_y"] < plain - 3

  def upscale(lr):
    x = np.clip((lr / 255 - 0.3) / np.sqrt(1.3), 0, 1)
    return np.rint(x * 255).astype(np.uint8).repeat(4, 0).repeat(4, 1)

  expected = run.measure(upscale, model="").means["psnr_y"]
  assert changed.means["psnr_y"] == pytest.approx(expected, abs=0.01)


def _fails(compared):
  del compared
  return 1 // 0


@pytest.mark.parametrize(
  ("function", "message"),
  [
    (_fails, "0.png: measure 'worst' fails: ZeroDivisionError: "),
    (lambda compared: None, "0.png: measure 'worst' returns None; it must be"),
    (lambda compared: "7", "0.png: measure 'worst' returns '7'; it must be"),
    (lambda compared: compared.sr.shape, "0.png: measure 'worst' returns (3"),
  ],
)
def test_a_measure_that_fails_is_named_and_can_be_done_without(
  net, source, function, message
):
  worst = measures.Measure("worst", "Worst", function=function)
  chosen = [*measures.choose(["psnr_y"]), worst]
  with pytest.raises(ValueError, match=re.escape(message)):
    evaluator.Evaluator(net, source, measures=chosen).bicubic()
  told = {}
  found = evaluator.Evaluator(
    net, source, measures=chosen, failed=told.setdefault
  ).bicubic()
  assert list(found.means) == ["psnr_y"]
  assert message.removeprefix("0.png: ") in str(told["worst"])


def test_a_measure_that_fails_on_one_image_has_no_value_on_any(net, source):
  calls = itertools.count()
  moody = measures.Measure(
    "moody", "Moody", function=lambda pair: 1 // next(calls)
  )
  chosen = [*measures.choose(["psnr_y"]), moody]
  found = evaluator.Evaluator(
    net, source, measures=chosen, failed=lambda name, error: None
  ).bicubic()
  assert [list(score.values) for score in found.scores] == [["psnr_y"]] * len(
    source
  )


def test_evaluator_refuses_another_scale(source):
  net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, scale=2)
  with pytest.raises(ValueError, match="network is x2, the images are x4"):
    evaluator.Evaluator(net, source)


class _Failing(Arrays):
  """Some of its images can be read no more."""

  gone = ()

  def __getitem__(self, index):
    if index in self.gone:
      raise sources.DataError(f"{self.names[index]}: no such file")
    return super().__getitem__(index)


def test_images_that_cannot_be_read_any_more_are_left_out(net):
  source = _Failing([(40, 48), (64, 36), (48, 52)])
  skipped = []
  run = evaluator.Evaluator(net, source, skip=skipped.append)
  whole = run.bicubic()
  source.gone = (1,)
  found = run.bicubic()
  assert found.scores == (whole.scores[0], whole.scores[2])
  assert [str(problem) for problem in skipped] == ["1.png: no such file"]
  source.gone = (0, 1, 2)
  with pytest.raises(sources.DataError, match="no image left"):
    run.bicubic()
  with pytest.raises(sources.DataError, match=r"0\.png: no such file"):
    evaluator.Evaluator(net, source).bicubic()


def test_evaluations_survive_their_file(tmp_path):
  scores = (evaluator.Score("a", {"psnr_y": math.inf, "ssim_y": 1.0}),)
  path = tmp_path / "evaluation.json"
  evaluator.write_evaluations(path, [evaluator.Evaluation("net", 4, 2, scores)])
  (found,) = evaluator.read_evaluations(path)
  assert found["means"] == {"psnr_y": None, "ssim_y": 1.0}
  assert found["images"] == [{"name": "a", "psnr_y": None, "ssim_y": 1.0}]
  assert "2 pixels cut off" in found["protocol"]
  assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]
  path.write_text(json.dumps([1]))
  with pytest.raises(ValueError, match=r"evaluation\.json holds no evaluat"):
    evaluator.read_evaluations(path)


@pytest.mark.slow
def test_two_processes_share_the_images_and_agree(tmp_path, source):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  code = f"""
    import sys, jax
    sys.path.insert(0, {os.path.dirname(__file__)!r})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(
      "127.0.0.1:{port}", num_processes=2, process_id=int(sys.argv[1])
    )
    from test_evaluator import Arrays
    from esrgan_jax.models.rrdb import RRDBNet
    from esrgan_jax.evaluation import evaluator
    source = Arrays([(40, 48), (64, 36), (48, 52)])
    net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2)
    found = evaluator.Evaluator(net, source).bicubic()
    evaluator.write_evaluations(sys.argv[2] + sys.argv[1], [found])
  """
  command = [sys.executable, "-c", textwrap.dedent(code)]
  root = os.path.dirname(os.path.dirname(evaluator.__file__))
  environment = dict(os.environ, PYTHONPATH=os.path.dirname(root))
  processes = [
    subprocess.Popen([*command, str(i), f"{tmp_path}/"], env=environment)
    for i in range(2)
  ]
  assert [process.wait(timeout=240) for process in processes] == [0, 0]
  alone = evaluator.evaluate_pairs(
    lambda lr: evaluator.bicubic(lr, scale=4),
    evaluator.named_pairs(source),
    scale=4,
    model="bicubic",
  )
  for i in range(2):
    (found,) = evaluator.read_evaluations(tmp_path / str(i))
    assert [row["name"] for row in found["images"]] == source.names
    for row, score in zip(found["images"], alone.scores, strict=True):
      assert row["psnr_y"] == pytest.approx(score.values["psnr_y"], rel=1e-5)
