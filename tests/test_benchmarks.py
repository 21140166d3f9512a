"""The side-by-side measurements: they run, and count what they should."""

import csv
import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import esrgan_jax
from benchmarks import degradation_draws, folder, results, student, train
from esrgan_jax import images
from esrgan_jax.data.sources import SamplePhotos
from esrgan_jax.evaluation import evaluator
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.resize import imresize_uint8
from esrgan_jax.weights import files


def run(script, *arguments):
  # One thread: idle ones of OpenMP spin, and other tests want the cores.
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
  }
  done = subprocess.run(
    [sys.executable, "-m", f"benchmarks.{script}", *arguments],
    env=environment,
    cwd=train.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def rows(output):
  """Cells of tables' rows by their first ones."""
  lines = [re.split(r" *\| *", line)[1:-1] for line in output.splitlines()]
  return [cells for cells in lines if len(cells) > 1]


@pytest.mark.parametrize("script", ["train", "input", "saving"])
def test_help(script):
  assert "--tiny" in run(script, "--help")


@pytest.mark.release
def test_the_first_result_is_waited_for_and_explained():
  output = run("first_result", "--models", "fast", "--rounds", "1")
  table = rows(output)
  (times,) = [cells[1:] for cells in table if len(cells) == 5][2:]
  cold, cold_end, warm, warm_end = map(float, times)
  assert 0 < cold <= cold_end
  assert 0 < warm <= warm_end
  # Programs are told by name: the tiles' own among them.
  assert ["backend_compile_duration", "`jit(upscale_tiles)`"] in [
    cells[1:3] for cells in table if len(cells) == 4
  ]
  imports = dict(cells for cells in table if len(cells) == 2)
  assert float(imports["jax"]) > float(imports["Python alone"])


@pytest.mark.slow
def test_rounding_is_small_where_it_should_be():
  table = rows(run("rounding", "--num_block", "1", "--size", "8", "8"))
  exact, _, half = (list(map(float, cells[2:])) for cells in table[2:])
  assert max(exact) < 1e-4
  assert 1e-4 < half[0] < 0.05


@pytest.mark.slow
def test_saving_tells_how_long_the_loop_waits():
  output = run("saving", "--tiny", "--repeat", "1")
  for name in ("digest of all", "save returns after", "written after"):
    (seconds,) = re.findall(rf"^{name}: (\d+\.\d\d) s", output, re.MULTILINE)
    assert 0 <= float(seconds) < 60


@pytest.mark.torch
def test_train_compares_with_pytorch():
  output = run(
    "train",
    *("--device", "cpu", "--tiny", "--task", "tile", "--rounds", "2"),
    *("--peer", "eager"),
  )
  assert re.search(r"^jax \d\S+, jaxlib \d\S+, flax \d\S+, torch \d", output)
  assert "upscaling, 16 x 16 pixels to x4, float32" in output
  assert "failed" not in output
  figures = {cells[0]: cells[1:] for cells in rows(output)}
  for name in (train.OURS, train.FORMS["eager"]):
    seconds, _, ratio, first_call, memory = figures[name]
    assert min(map(float, (seconds, ratio, memory))) > 0
    assert float(first_call) >= 0
  assert float(figures[train.OURS][2]) == 1


@pytest.mark.parametrize(
  ("side", "task", "dtype"),
  [
    pytest.param(train.OURS, "psnr", "float32", marks=pytest.mark.slow),
    pytest.param(train.OURS, "gan", "float32", marks=pytest.mark.slow),
    (train.OURS, "tile", "bfloat16"),
    pytest.param("eager", "psnr", "bfloat16", marks=pytest.mark.torch),
    pytest.param("eager", "gan", "bfloat16", marks=pytest.mark.torch),
    pytest.param("eager", "tile", "bfloat16", marks=pytest.mark.torch),
  ],
)
def test_a_side_runs(side, task, dtype):
  prepare = train.prepare_jax
  if side != train.OURS:
    prepare = train.prepare_torch
  case = train.Case(side, task, 2, 16, "cpu", dtype, 1, tiny=True)
  step, peak = prepare(case)
  first, later = step(1), step(2)
  assert peak() > 0
  if task == "tile":
    assert first == later == 0
  else:
    assert first > 0
    assert later > 0
    assert first != later


def test_a_side_that_fails_is_a_row():
  # No GPU is visible: `run` hides any.
  output = run("train", "--device", "gpu", "--tiny", "--task", "psnr", "--peer")
  assert re.search(r"\| esrgan_jax \| failed: \w+", output)
  assert "median of" in output


def test_time_that_is_over_leaves_tasks_out():
  output = run("train", "--device", "cpu", "--tiny", "--limit", "1")
  assert output.count("left out") == 2


@pytest.mark.slow
def test_input_compares_caches():
  pytest.importorskip("grain")
  output = run("input", "--tiny", "--step_images_per_second", "100")
  assert re.search(r"^jax \d\S+, jaxlib \d\S+, numpy \d\S+, grain \d", output)
  assert "the step consumes 100 images a second" in output
  assert "failed" not in output
  found = rows(output)
  for name in ("ram", "memmap", "stream"):
    figures = [cells[1:] for cells in found if cells[0] == name]
    assert len(figures) == 2
    for crops, per_core, ratio, opened, cores in figures:
      assert min(map(float, (crops, per_core, ratio, cores))) > 0
      assert float(opened) >= 0
      assert float(cores) == pytest.approx(100 / float(per_core), rel=0.01)


@pytest.mark.release
def test_augmentation_is_timed_beside_a_step():
  output = run("augmentation", "--tiny", "--task", "psnr", "--rounds", "2")
  assert "augmentation: permute_channels, color_jitter, mixup," in output
  *seconds, ratio, alone, share = rows(output)[-1]
  without, _ = (float(each.removesuffix(" s")) for each in seconds)
  assert float(ratio) > 0
  share = float(share.removesuffix("%")) / 100
  alone = float(alone.removesuffix(" ms")) / 1000
  assert share == pytest.approx(alone / without, rel=0.1)


@pytest.mark.slow
def test_degradation_is_timed():
  flags = ("--no_host", "--sizes", "32", "--batch", "2", "--rounds", "1")
  (row,) = [r for r in rows(run("degradation", *flags)) if "32 x 32" in r[0]]
  assert float(row[1]) > 0


def test_the_hosts_figures_are_those_of_images():
  """A board of cells of 8 has blocks; noise has its own deviation."""
  random = np.random.default_rng(0)
  smooth = np.linspace(0, 200, 64)[None].repeat(64, axis=0)
  noisy = smooth + 5 * random.standard_normal(smooth.shape)
  board = smooth + 10 * (np.indices(smooth.shape) // 8 % 2).sum(axis=0)
  assert degradation_draws.noise_level(noisy) == pytest.approx(5, rel=0.1)
  assert degradation_draws.blockiness(board) > 3
  assert degradation_draws.blockiness(noisy) == pytest.approx(1, abs=0.1)
  assert degradation_draws.sharpness(noisy) > 10
  assert degradation_draws.distance(np.arange(4), np.arange(2, 6)) == 0.5


@pytest.mark.release
def test_losses_are_balanced_by_their_gradients():
  output = run(
    "balance",
    "configs/quickstart.py",
    *("--photos", "2", "--set", "patch_size=32", "perceptual.weights=random"),
    *("discriminator.num_feat=2", "phases.gan.pixel_weight=0.5"),
  )
  found = {cells[0]: cells[1:] for cells in rows(output)}
  *_, weight, norm, times = found["pixels, l1"]
  assert (float(weight), float(times)) == (0.5, 1)
  # Of a mean, each pixel's gradient is one by their number, but where equal.
  alone = (2 * 32 * 32 * 3) ** -0.5
  assert float(norm) == pytest.approx(0.5 * alone, rel=0.05)
  for name, (size, weight, norm, times) in list(found.items())[2:]:
    product = float(size) * float(weight)
    assert product == pytest.approx(float(norm), rel=0.02), name
    assert float(times) == pytest.approx(product / (0.5 * alone), rel=0.05)


@pytest.mark.release
def test_results_are_those_of_evaluate_and_shown(tmp_path, capsys):
  pytest.importorskip("skimage")
  fields = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
  lr = np.zeros((1, 8, 8, 3), np.float32)
  paths = []
  for seed, name in enumerate(("psnr", "gan")):
    params = jax.jit(RRDBNet(**fields).init)(jax.random.key(seed), lr)["params"]
    path = tmp_path / f"{name}.safetensors"
    paths.append(files.write_weights(path, params, fields))
  photos = tmp_path / "photos"
  photos.mkdir()
  hr = SamplePhotos("held_out", scale=4).crop(0, (0.4, 0.6), 40).hr
  images.write_image(photos / "cat.png", images.Image(hr))
  out = tmp_path / "out"
  results.main(
    [
      *("table", str(paths[0]), "--gan-model", str(paths[1])),
      *("--sets", str(photos), "--alphas", "0.5", "--crops", "photos/cat"),
      *("--out", str(out), "--measures", "psnr_y,ssim_y"),
    ]
  )
  said = capsys.readouterr().out
  shown = {cells[0]: cells[1:] for cells in rows(said)}
  assert list(shown)[2:] == ["bicubic", "phase one", "alpha 0.5", "phase two"]
  model = esrgan_jax.load(str(paths[1]))
  pair = evaluator.NamedPair("cat", imresize_uint8(hr, scale=1 / 4), hr)
  expected = evaluator.evaluate_pairs(model, [pair], scale=4).means
  assert float(shown["phase two"][0]) == round(expected["psnr_y"], 2)
  assert said.startswith((out / "table.md").read_text())
  picture = images.read_image(out / "pictures.png").pixels
  assert picture.shape[1] == 5 * (128 + 4) - 4
  assert str(tmp_path) not in (out / "table.md").read_text()


def tiny_card(folder):
  """A config file of two steps of phase one."""
  path = folder / "config.py"
  path.write_text(
    "def get_config():\n"
    "  return {\n"
    "    'generator': {'num_feat': 4, 'num_block': 1, 'num_grow_ch': 2},\n"
    "    'phase_order': ('psnr',),\n"
    "    'phases': {'psnr': {'num_train_steps': 2}},\n"
    "    'batch_size': 2, 'patch_size': 16, 'film': {'enabled': False},\n"
    "    'eval': {'max_images': 1, 'num_samples': 0},\n"
    "    'data': {'sources': 'sample_photos',\n"
    "             'eval': 'sample_photos:held_out'},\n"
    "  }\n"
  )
  return str(path)


@pytest.mark.release
def test_batches_see_as_many_images(tmp_path):
  out = tmp_path / "runs"
  flags = ("--config", tiny_card(tmp_path), "--out", str(out), "--epochs", "12")
  flags += ("--times", "2", "--rules", "the same", "root")
  output = run("large_batch", *flags)
  assert "of 48 images" in output
  table = {cells[0]: cells[1:] for cells in rows(output)}
  assert table["published"][:3] == ["2", "24", "0.0002"]
  assert table["x2, the same"][:3] == ["4", "12", "0.0002"]
  assert table["x2, root"][:3] == ["4", "12", "0.00028"]
  for cells in list(table.values())[2:]:
    assert all(0 < float(cell) < 60 for cell in cells[3:])
  assert images.read_image(out / "batch_2_times.png").pixels.size
  assert "trains" not in run("large_batch", *flags)


@pytest.mark.release
def test_precisions_are_compared_and_not_trained_again(tmp_path):
  flags = ("--config", tiny_card(tmp_path), "--seeds", "3")
  flags += ("--out", str(tmp_path / "runs"))
  first = run("half_precision_training", *flags)
  assert "psnr 2/2" in first
  again = run("half_precision_training", *flags)
  assert "psnr 2/2" not in again
  found = rows(again)
  assert [cells[0] for cells in found[-2:]] == ["float32", "bfloat16"]
  assert again.split("\n\n")[-1].startswith("bfloat16 less float32: ")
  models = (tmp_path / "runs").glob("*/models/psnr.safetensors")
  assert len({path.read_bytes() for path in models}) == 2
  configs = [
    json.loads(path.read_text())
    for path in sorted((tmp_path / "runs").glob("*/config.json"))
  ]
  assert [each["dtype"] for each in configs] == ["bfloat16", "float32"]
  assert {each["seed"] for each in configs} == {3}


def test_a_students_photos_have_names_and_licences_of_their_own():
  rows = list(csv.DictReader(student.LIST.read_text("utf-8").splitlines()))
  assert {row["split"] for row in rows} == {"train", "extra", "held_out"}
  assert all(all(row.values()) for row in rows)
  photos = [pathlib.Path(row["package"], "usr", row["file"]) for row in rows]
  names = [student.name_of(photo) for photo in photos]
  assert len(set(names)) == len(rows)
  assert {"Autumn", "sunset_by_Aitzol_Berasategi", "Daffodils"} <= {*names}


def test_more_crops_are_those_that_were_there_and_others():
  before = np.zeros(32)
  for crops in (5, 64, 70, 600, 1000):
    shares = np.array([student.share(crops, n, 32) for n in range(32)])
    assert shares.sum() == crops
    assert np.ptp(shares) <= 1
    assert (shares >= before).all()
    before = shares


def test_generator_macs_are_counted_right():
  # 17.9 M multiply-adds of the full network for an LR pixel.
  full = train.generator_macs(num_feat=64, num_block=23, num_grow_ch=32)
  assert full == pytest.approx(17.9e6, rel=0.005)


@pytest.mark.torch
def test_parameters_are_as_many_as_ours():
  import jax.numpy as jnp
  import torch

  from benchmarks import torch_networks
  from esrgan_jax.models.discriminators import VGGStyleDiscriminator

  def count(network, *arguments, **options):
    with torch.device("meta"):
      module = network(*arguments, **options)
    return sum(p.numel() for p in module.parameters())

  def count_ours(init, *arguments):
    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

  case = train.Case(train.OURS, "gan", 2, 128, "cpu", "float32", 1)
  tiny = dataclasses.replace(case, tiny=True, size=16)
  for chosen in (case, tiny):
    sizes = chosen.generator
    assert count(torch_networks.RRDBNet, **sizes) == count_ours(
      RRDBNet(**sizes).init, jnp.zeros((1, 8, 8, 3))
    )
    width, size = chosen.d_feat, chosen.size
    init = VGGStyleDiscriminator(width, input_size=size).init
    assert count(torch_networks.Discriminator, width, size) == count_ours(
      functools.partial(init, train=False), jnp.zeros((1, size, size, 3))
    )
    vgg = train.random_vgg(chosen.vgg_stages)
    del vgg["normalization"]
    assert count(torch_networks.VGG19, chosen.vgg_stages) == sum(
      leaf.size for leaf in jax.tree.leaves(vgg)
    )


def test_the_folder_is_the_same_for_a_seed(tmp_path):
  pytest.importorskip("skimage")
  sizes = []
  for name, seed in (("a", 0), ("b", 0), ("c", 1)):
    (tmp_path / name).mkdir()
    total = folder.make_photos(tmp_path / name, 3, 8, 40, seed)
    paths = sorted((tmp_path / name).iterdir())
    sizes.append([images.read_size(path) for path in paths])
    assert total == sum(width * height for width, height in sizes[-1])
  assert sizes[0] == sizes[1] != sizes[2]
  assert folder.difference(tmp_path / "a", tmp_path / "b") == 0


@pytest.mark.release
def test_gigapixel_kills_and_compares():
  output = run(
    "gigapixel",
    *("--side", "600", "--tile", "64", "--kills", "1", "--pyramid"),
  )
  assert "undisturbed: 2400 x 2400 pixels" in output
  assert "the same bytes: yes" in output
  assert "left behind: nothing" in output
