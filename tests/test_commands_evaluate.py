"""`python -m esrgan_jax evaluate`."""

import re
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from esrgan_jax.__main__ import main
from esrgan_jax.evaluation import evaluator, measures
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.report import page as report
from esrgan_jax.resize import imresize_uint8
from esrgan_jax.weights import files
from tests.hostile_names import NAMES, harmless
from tests.networks import random_params

NET = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  yield
  jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def folders(tmp_path):
  """HR that is no multiple of 4, and its LR in DIV2K's names."""
  rng = np.random.default_rng(0)
  for name in ("hr", "lr"):
    (tmp_path / name).mkdir()
  for i, size in enumerate([(42, 45), (60, 48)]):
    small = rng.integers(0, 256, (8, 9, 3), np.uint8)
    hr = imresize_uint8(small, size=size)
    lr = imresize_uint8(hr[: size[0] // 4 * 4, : size[1] // 4 * 4], scale=1 / 4)
    PIL.Image.fromarray(hr).save(tmp_path / "hr" / f"{i}.png")
    PIL.Image.fromarray(lr).save(tmp_path / "lr" / f"{i}x4.png")
  return tmp_path


def write_model(path):
  params = random_params(RRDBNet(**NET), np.zeros((1, 4, 4, 3), np.float32))
  path.parent.mkdir(parents=True, exist_ok=True)
  return str(files.write_weights(path, params, NET))


def test_bicubic_prints_protocol_images_and_means(folders, capsys):
  out = folders / "numbers.json"
  command = ["evaluate", "--model", "bicubic", "--hr", str(folders / "hr")]
  assert main([*command, "--json", str(out)]) == 0
  text = capsys.readouterr().out
  (found,) = evaluator.read_evaluations(out)
  assert found["protocol"] in text
  assert "made by bicubic imresize (mirror)" in text
  for name, values in (
    *((image["name"], image) for image in found["images"]),
    ("mean", found["means"]),
  ):
    (line,) = (x for x in text.splitlines() if x.startswith(name + " "))
    shown = [float(word) for word in line.split()[1:]]
    expected = [values[key] for key in measures.DEFAULT]
    np.testing.assert_allclose(shown, expected, atol=0.0051)
  # The LR files are those that are made without them.
  command += ["--lr", str(folders / "lr"), "--json", str(out)]
  assert main(command) == 1
  assert "exists already" in capsys.readouterr().err
  assert main([*command, "--overwrite"]) == 0
  (again,) = evaluator.read_evaluations(out)
  assert again == found


def test_consistent_results_are_nearer_to_the_truth(folders, capsys):
  out = folders / "numbers.json"
  command = ["evaluate", "--model", "bicubic", "--hr", str(folders / "hr")]
  command += ["--json", str(out), "--overwrite"]
  means = []
  for more in ([], ["--consistent"]):
    assert main([*command, *more]) == 0
    means.append(evaluator.read_evaluations(out)[0]["means"]["psnr_rgb"])
  assert means[1] > means[0] + 0.3
  text = capsys.readouterr().out
  (line,) = (x for x in text.splitlines() if x.startswith("downscaled,"))
  before, after = re.findall(r"up to (\d+\.\d)", line)
  assert 2 * float(after) < float(before)
  assert "bicubic, consistent on " in text


def test_measures_that_are_asked_for(folders, capsys, monkeypatch):
  monkeypatch.setattr(measures, "MEASURES", dict(measures.MEASURES))
  measures.register_measure(
    measures.Measure(
      "brightness",
      "Brightness off",
      digits=1,
      better="lower",
      function=lambda pair: abs(pair.sr.mean() - pair.hr.mean()),
    )
  )
  out = folders / "numbers.json"
  command = ["evaluate", "--model", "bicubic", "--hr", str(folders / "hr")]
  command += ["--measures", "brightness, ssim_y", "--json", str(out)]
  assert main(command) == 0
  (found,) = evaluator.read_evaluations(out)
  assert list(found["means"]) == ["brightness", "ssim_y"]
  lines = capsys.readouterr().out.splitlines()
  (heading,) = (x for x in lines if x.startswith(" "))
  assert heading.split() == ["Brightness", "off", "SSIM", "Y"]
  (mean,) = (x for x in lines if x.startswith("mean "))
  assert mean.split()[1] == f"{found['means']['brightness']:.1f}"
  assert len(mean) == len(heading)


@pytest.mark.parametrize("kind", ["file", "workdir", "phase"])
def test_models_of_every_kind(folders, capsys, kind):
  path = write_model(folders / "run" / "models" / "psnr.safetensors")
  (folders / "run" / "psnr" / "checkpoints").mkdir(parents=True)
  run = folders / "run"
  model = {"file": path, "workdir": run, "phase": run / "psnr"}[kind]
  hr = str(folders / "hr")
  assert main(["evaluate", "-m", str(model), "--hr", hr]) == 0
  text = capsys.readouterr().out
  name = "psnr.safetensors" if kind == "file" else "run/psnr"
  assert text.startswith(f"{name} on {hr}")
  assert "x2; results rounded" in text


@pytest.mark.parametrize(
  ("arguments", "message", "status"),
  [
    (["--model", "realesrgan-x4pluss"], "realesrgan-x4plus", 2),
    (["--model", "bicubic", "--measures", "ssim"], "did you mean ssim_y?", 2),
    (["--model", "bicubic", "--measures", ""], "no measure is named", 2),
    (["--model", "bicubic", "--measures", "ssim_y,ssim_y"], "named twice", 2),
    (["--model", ""], "the model's name is empty: give", 2),
    (["--model", "missing.pth"], "no file missing.pth", 1),
    (["--model", "bicubic", "--scale", "0"], "--scale is 0", 2),
    (["--model", "bicubic", "--crop-border", "-1"], "--crop-border is -1", 2),
    (["--model", "bicubic", "--lr", "nowhere"], "nowhere: no such folder", 1),
    (["--model", "bicubic", "--patch", "0"], "--patch is 0; it must be", 2),
    (
      ["--model", "bicubic", "--patch", "30"],
      "of the scale 4, and at least 16",
      2,
    ),
    (
      ["--model", "bicubic", "--patch", "16", "--crop-border", "4"],
      ": 20 is",
      2,
    ),
    (["--model", "bicubic", "--patch-step", "8"], "give --patch N as well", 2),
    (
      ["--model", "bicubic", "--patch", "64"],
      "at least 64x64 pixels to eval",
      1,
    ),
    (["--model", "bicubic", "--crop-border", "20"], "0.png: crop_border 20", 1),
  ],
)
def test_errors_are_one_line(folders, capsys, arguments, message, status):
  assert main(["evaluate", "--hr", str(folders / "hr"), *arguments]) == status
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert message in error
  assert error.count("\n") == 1


def test_a_pattern_that_the_shell_has_expanded(folders, capsys):
  names = [str(path) for path in sorted((folders / "hr").iterdir())]
  with pytest.raises(SystemExit) as caught:
    main(["evaluate", "--model", "bicubic", "--hr", *names])
  assert caught.value.code == 2
  line, hint = capsys.readouterr().err.splitlines()
  assert "--help` explains" in hint
  assert line.endswith(
    "1.png (a pattern that an option takes must be in quotes)"
  )


def test_another_scale_than_the_models_is_refused(folders, capsys):
  path = write_model(folders / "x2.safetensors")
  command = ["evaluate", "--hr", str(folders / "hr"), "--scale", "4"]
  assert main([*command, "--model", path]) == 1
  assert "those of a x2 network" in capsys.readouterr().err


def test_a_workdir_without_a_model_says_so(folders, capsys):
  (folders / "run" / "psnr" / "checkpoints").mkdir(parents=True)
  command = ["evaluate", "--hr", str(folders / "hr")]
  assert main([*command, "--model", str(folders / "run")]) == 1
  assert (
    "has no model of phase psnr, and no checkpoint" in capsys.readouterr().err
  )


@pytest.mark.parametrize("name", ["hr/0.png", "lr/1x4.png", "model", "hr", "."])
def test_numbers_replace_nothing_but_numbers(folders, capsys, name):
  model = write_model(folders / "model.safetensors")
  path = model if name == "model" else str(folders / name)
  before = {p: p.read_bytes() for p in folders.rglob("*") if p.is_file()}
  command = ["evaluate", "--hr", str(folders / "hr"), "-m", model]
  for more in [], ["--overwrite"]:
    assert main([*command, "--json", path, *more]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""  # Before the work.
  assert before == {p: p.read_bytes() for p in before}


def test_patches_are_those_of_the_older_system(folders, capsys):
  """Its loop: windows of LR, row by row, each an image; peak 255."""
  rng = np.random.default_rng(1)
  expected = {}
  for name, size in (("a", (33, 21)), ("b", (16, 16)), ("c", (15, 40))):
    lr = rng.integers(0, 256, (*size, 3), np.uint8)
    noise = rng.integers(-9, 9, (4 * size[0], 4 * size[1], 3))
    hr = np.clip(imresize_uint8(lr, scale=4) + noise, 0, 255).astype(np.uint8)
    for folder, image in (("pairs/{}_HR.png", hr), ("pairs/{}_LR.png", lr)):
      path = folders / folder.format(name)
      path.parent.mkdir(exist_ok=True)
      PIL.Image.fromarray(image).save(path)
    for y in range(0, size[0] - 16 + 1, 5):
      for x in range(0, size[1] - 16 + 1, 5):
        sr = imresize_uint8(lr[y : y + 16, x : x + 16], scale=4)
        truth = hr[4 * y : 4 * y + 64, 4 * x : 4 * x + 64]
        error = np.square(sr.astype(float) - truth).mean()
        place = f"{name}_HR.png {4 * y},{4 * x}"
        expected[place] = 10 * np.log10(255**2 / error)
  assert len(expected) == 4 * 2 + 1
  out = folders / "numbers.json"
  command = ["evaluate", "-m", "bicubic", "--json", str(out), "--overwrite"]
  command += ["--hr", str(folders / "pairs/*_HR.png")]
  command += ["--lr", str(folders / "pairs/*_LR.png")]
  assert main([*command, "--patch", "64", "--patch-step", "20"]) == 0
  (found,) = evaluator.read_evaluations(out)
  values = {each["name"]: each["psnr_rgb"] for each in found["images"]}
  assert list(values) == list(expected)
  for name, value in values.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-4)
  mean = np.mean(list(expected.values()))
  np.testing.assert_allclose(found["means"]["psnr_rgb"], mean, rtol=1e-4)
  assert found["patches"] == {"size": 64, "step": 20}
  text = capsys.readouterr().out
  assert "64x64 patches every 20 pixels, each upscaled alone; " in text
  assert "; 0 pixels cut off each side; " in text
  assert "note: c_HR.png is left out: HR is 60x160, smaller than a" in text
  assert "\n9 patches of 2 images in " in text
  # A patch of an image's size is the image.
  assert main([*command, "--patch", "64", "--crop-border", "4"]) == 0
  (cut,) = evaluator.read_evaluations(out)
  assert [each["name"] for each in cut["images"]] == [
    "a_HR.png 0,0",
    "a_HR.png 64,0",
    "b_HR.png 0,0",
  ]
  command[-3] = command[-3].replace("*", "b")
  command[-1] = command[-1].replace("*", "b")
  assert main(command) == 0
  (whole,) = evaluator.read_evaluations(out)
  assert whole["means"] == {
    key: cut["images"][2][key] for key in whole["means"]
  }


def test_a_damaged_image_is_named_and_the_others_measured(folders, capsys):
  (folders / "hr" / "00.png").write_bytes(b"no image")
  command = ["evaluate", "-m", "bicubic", "--hr", str(folders / "hr")]
  assert main(command) == 1
  out, err = capsys.readouterr()
  assert err.startswith("error: 00.png: not an image")
  assert "2 of 3 images" in out
  (folders / "hr" / "00.png").unlink()
  assert main(command) == 0
  alone = capsys.readouterr().out
  assert re.search("mean .*", alone)[0] == re.search("mean .*", out)[0]


def test_when_no_image_can_be_read_each_says_why(folders, capsys):
  command = ["evaluate", "-m", "bicubic", "--hr", str(folders / "hr")]
  assert main([*command, "--max-pixels", "1000"]) == 1
  err = capsys.readouterr().err.splitlines()
  assert [line.split()[1] for line in err] == ["0.png:", "1.png:", "there"]
  assert "raise max_pixels (--max" in err[0]


def test_names_are_text(folders, capsys, monkeypatch):
  """At a terminal; and they come back from the JSON file and the report."""
  monkeypatch.setenv("FORCE_COLOR", "1")
  monkeypatch.setenv("COLUMNS", "1000")
  run = folders / "run"
  for each in (run, folders / "names"):
    each.mkdir()
  for name in NAMES:
    shutil.copy(folders / "hr" / "0.png", folders / "names" / name)
  model = write_model(folders / "a[" / "b]\x1b.safetensors")
  out = run / "evaluation.json"
  command = ["evaluate", "--hr", str(folders / "names"), "--json", str(out)]
  assert main([*command, "-m", model]) == 0
  text = capsys.readouterr().out
  assert harmless(text)
  assert text.startswith("b]\\x1b.safetensors on ")
  (found,) = evaluator.read_evaluations(out)
  assert [image["name"] for image in found["images"]] == sorted(NAMES)
  page = report.write_report(run).read_text()
  assert "<img src=x" not in page
  assert "\x1b" not in page
  for name in (
    "caf\\xe9.png",
    "写真.png",
    "g&lt;img src=x onerror=alert(1)&gt;",
  ):
    assert name in page
