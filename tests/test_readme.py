"""What the README promises is what is run."""

import pathlib
import re

import jax
import numpy as np
import pytest

import esrgan_jax
from esrgan_jax import __main__, images
from esrgan_jax.weights import zoo

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
  return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_library_example_runs():
  code, _ = blocks("python")
  # The small model stands in for the large one: the code is the same.
  code = code.replace('"realesrgan-x4plus"', '"realesrgan-x4plus-anime"')
  code = code.replace("num_block=23", "num_block=6")
  names = {}
  exec(code, names)
  assert names["large"].shape == (192, 256, 3)
  assert names["large"].dtype == np.uint8
  expected = np.rint(np.clip(names["sr"], 0, 1) * 255)
  assert np.abs(names["large"] - expected).max() <= 1


@pytest.mark.slow
def test_the_training_example_runs():
  _, code = blocks("python")
  for text, smaller in {
    "RRDBNet()": "RRDBNet(num_feat=8, num_block=1, num_grow_ch=4)",
    "input_size=128": "num_feat=4, input_size=32",
    "(16, 128, 128, 3)": "(8, 32, 32, 3)",
    "1000": "2",
    "conv5_4": "conv1_2",
  }.items():
    assert text in code
    code = code.replace(text, smaller)
  names = {}
  exec(code, names)
  assert len(names["mesh"].devices) == 8
  assert int(names["state"].step) == 2
  assert float(names["metrics"]["skipped"]) == 0
  assert names["state"].params["conv_last"]["bias"].sharding.mesh.size == 8
  image = np.zeros((5, 6, 3), np.uint8)
  assert names["model"].upscale(image).shape == (20, 24, 3)


def test_the_generators_example_exports_it_for_every_size():
  page = (ROOT / "docs" / "generator.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  names = {}
  exec(code.replace("load()", 'load("realesrgan-x4plus-anime")'), names)
  lr = np.zeros((1, 5, 7, 3), np.float32)
  sr = names["exported"].call({"params": names["model"].params}, lr)
  assert sr.shape == (1, 20, 28, 3)


@pytest.mark.slow
def test_the_page_of_compiling_runs(tmp_path, monkeypatch):
  page = (ROOT / "docs" / "compiling.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  before = jax.config.jax_compilation_cache_dir
  names = {}
  try:
    exec(code, names)
    folder = jax.config.jax_compilation_cache_dir
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert folder == f"{tmp_path}/.cache/my_programs"
  lr = np.zeros((1, 8, 8, 3), np.float32)
  assert names["upscale"](names["variables"], lr).shape == (1, 32, 32, 3)


@pytest.mark.slow
def test_the_page_of_frames_runs(tmp_path, monkeypatch):
  page = (ROOT / "docs" / "frames.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  monkeypatch.chdir(tmp_path)
  frames = [images.Image(np.full((5, 6, 3), v, np.uint8)) for v in (9, 99)]
  images.write_frames("moving.gif", frames, durations=[40, 70], loop=2)
  exec(code.replace("load()", 'load("realesrgan-x4plus-anime")'), {})
  frames = images.read_frames("moving_x4.webp")
  assert frames.durations == (40, 70)
  assert frames.loop == 2
  assert [frame.pixels.shape for frame in frames] == [(20, 24, 3)] * 2


@pytest.mark.slow
def test_what_the_page_of_programs_exports(tmp_path, monkeypatch):
  page = (ROOT / "docs" / "export.md").read_text()
  *_, command = re.findall(r"python -m esrgan_jax (.*)", page)
  *_, run, make = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  monkeypatch.chdir(tmp_path)
  command = command.replace("x4plus", "x4plus-anime")
  assert __main__.main(command.split()) == 0
  names = {}
  exec(run, names)
  assert names["sr"].shape == (1, 192, 256, 3)
  exec(make, names)
  lr = np.random.default_rng(0).random((2, 19, 20, 3), np.float32)
  variables = {"params": names["model"].params}
  np.testing.assert_allclose(
    names["network"].call(variables, lr), names["program"].call(lr), atol=1e-5
  )
  assert names["smaller"].call(lr).shape == (2, 10, 10, 3)
  psnr = names["measure"].call(lr, lr * np.float32(0.5))
  np.testing.assert_allclose(psnr, names["luma"](lr, lr * 0.5), rtol=1e-5)


def test_commands_and_names_exist():
  for command in re.findall(r"python -m esrgan_jax (\w+)", README):
    assert command in __main__._COMMANDS
  for name in re.findall(r"`esrgan_jax\.(\w+)`", README):
    assert name in esrgan_jax.__all__
  table = README[README.index("## Models") :]
  for name in re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE):
    assert name in {row.model.name for row in zoo.models()}


def test_links_to_files_lead_somewhere():
  for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
      assert (page.parent / target).exists(), f"{page.name}: {target}"
