"""`python -m esrgan_jax explore`, and `upscale --psnr-model`."""

import json
import shutil
import xml.etree.ElementTree

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.__main__ import main
from esrgan_jax.compilation import compiler_options
from esrgan_jax.evaluation import measures
from esrgan_jax.interpolate import interpolate_params
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.models.srresnet import SRResNet
from esrgan_jax.report import sweep as pictures
from esrgan_jax.upscaling.sweep import sweep
from esrgan_jax.upscaling.upscaler import Upscaler
from esrgan_jax.weights import files
from tests import image_builders
from tests.test_upscaler import make_model, photo

NET = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
  monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """A folder with models that fit, and such that do not."""
  folder = tmp_path_factory.mktemp("models")
  for seed, (name, fields) in enumerate(
    {"p": {}, "g": {}, "deep": {"num_block": 2}, "x2": {"scale": 2}}.items()
  ):
    params = make_model(seed, **NET | fields).params
    params["conv_last"]["bias"] += 0.5  # Neither black nor white.
    files.write_weights(f"{folder}/{name}.safetensors", params, NET | fields)
  return folder


@pytest.fixture
def here(models, tmp_path, monkeypatch):
  """Those models, an image, and its reference."""
  monkeypatch.chdir(tmp_path)
  shutil.copytree(models, tmp_path, dirs_exist_ok=True)
  hr = photo(83, 65, 3, dtype=np.uint8)
  PilImage.fromarray(hr).save("hr.png")
  PilImage.fromarray(hr[:80:4, :64:4]).save("lr.png")
  return tmp_path


def mixture(here, alpha):
  """The model in between, by the formula, in NumPy."""
  a, b = (
    files.read_weights(here / f"{name}.safetensors").params for name in "pg"
  )
  share = np.float32(alpha)
  mixed = jax.tree.map(lambda x, y: (1 - share) * x + share * y, a, b)
  return Upscaler(RRDBNet(**NET), mixed)


START = ["explore", "lr.png", "--psnr-model", "p.safetensors", "--gan-model"]
COMMAND = [*START, "g.safetensors"]


def test_upscale_mixes_on_the_fly_and_says_so(here, capsys):
  command = ["upscale", "lr.png", "--psnr-model", "p.safetensors"]
  command += ["-m", "g.safetensors", "--name", "{name}_{model}_{alpha}"]
  assert main([*command, "--alpha", "0.3"]) == 0
  found = images.read_image(here / "lr_g_0.3.png")
  lr = np.asarray(PilImage.open("lr.png"))
  expected = mixture(here, 0.3).upscale(lr).astype(int)
  assert np.abs(found.pixels - expected).max() <= 1
  with PilImage.open("lr_g_0.3.png") as picture:
    record = picture.info["Software"]
  assert "g.safetensors x4, psnr_model=p.safetensors, alpha=0.3" in record
  assert "psnr_model=p.safetensors, alpha=0.3 on" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("words", "message", "status"),
  [
    (["--alpha", "0.5"], "say with --psnr-model what it is mixed with", 2),
    (
      ["--psnr-model", "deep.safetensors"],
      "num_block is 2 in deep.safetensors",
      1,
    ),
    (["--psnr-model", "x2.safetensors"], "scale is 2 in x2.safetensors", 1),
    (["--psnr-model", "nowhere.safetensors"], "no file nowhere.safetensors", 1),
  ],
)
def test_networks_that_do_not_fit(here, capsys, words, message, status):
  assert main(["upscale", "lr.png", "-m", "g.safetensors", *words]) == status
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
  assert not (here / "lr_x4.png").exists()


def test_of_a_workdir_it_is_the_first_and_the_last_phase(here, capsys):
  for name, phase in zip("pg", ("psnr", "gan"), strict=True):
    folder = here / "run/models"
    folder.mkdir(parents=True, exist_ok=True)
    (here / f"{name}.safetensors").rename(folder / f"{phase}.safetensors")
  command = ["upscale", "lr.png", "--psnr-model", "run", "-m", "run", "-q"]
  assert main([*command, "--alpha", "0"]) == 0
  with PilImage.open("lr_x4.png") as picture:
    record = picture.info["Software"]
    found = np.asarray(picture)
  assert "run/gan x4, psnr_model=run/psnr, alpha=0" in record
  params = files.read_weights("run/models/psnr.safetensors").params
  lr = np.asarray(PilImage.open("lr.png"))
  expected = Upscaler(RRDBNet(**NET), params).upscale(lr).astype(int)
  assert np.abs(found - expected).max() <= 1


def counting_programs(run):
  """Returns what `run` does, and how many programs XLA compiled for it."""
  seen = []

  def listen(event, _, **__):
    seen.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    result = run()
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  return result, seen.count("/jax/core/compile/backend_compile_duration")


@pytest.mark.parametrize(
  "options",
  [
    {"together": 3},
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param({"tile": 8, "together": 5}, marks=pytest.mark.slow),
  ],
)
def test_a_sweep_is_each_model_alone_and_one_program(here, options):
  net = RRDBNet(**NET)
  first, last = (
    {"params": files.read_weights(here / f"{name}.safetensors").params}
    for name in "pg"
  )
  lr = photo(45, 30, 3, dtype=np.uint8)
  alphas = [0, 0.3, 1, -0.5, 0.7]
  compiler_options("cpu")  # Each is tried once, by a program of its own.
  found, programs = counting_programs(
    lambda: sweep(net, first, last, lr, alphas, **options)
  )
  assert programs == 1
  model = Upscaler(net, first["params"])
  for result, alpha in zip(found, alphas, strict=True):
    mixed = interpolate_params(first, last, alpha=alpha)
    expected = model.with_params(mixed["params"]).upscale(lr).astype(int)
    assert np.abs(result - expected).max() <= 1
  assert np.abs(found[0].astype(int) - found[2]).max() > 20


@pytest.mark.release
def test_a_sweep_of_a_network_that_unshuffles():
  net = RRDBNet(**NET | {"scale": 2})
  lr = photo(21, 15, 3, dtype=np.uint8)
  first, last = (
    net.init(jax.random.key(seed), np.zeros((1, 8, 8, 3), np.float32))
    for seed in (0, 1)
  )
  found = sweep(net, first, last, lr, [0, 1])
  for result, variables in zip(found, (first, last), strict=True):
    expected = Upscaler(net, variables["params"]).upscale(lr).astype(int)
    assert np.abs(result - expected).max() <= 1


@pytest.mark.slow
def test_weights_that_are_not_finite_between_two(here):
  net = RRDBNet(**NET)
  params = files.read_weights(here / "p.safetensors").params
  huge = jax.tree.map(lambda leaf: np.full_like(leaf, 1e38), params)
  lr = photo(8, 8, 3, dtype=np.uint8)
  with pytest.raises(FloatingPointError, match="at alpha 1 is not finite"):
    sweep(net, {"params": params}, {"params": huge}, lr, [0, 1])


def test_strip_animation_curve_and_numbers(here, capsys):
  command = [*COMMAND, "--alphas", "0:1:0.5", "--reference", "hr.png"]
  assert main(command) == 0
  text = capsys.readouterr().out
  assert "note: neither LPIPS's weights nor VGG19's are here" in text
  assert len(list((here / "lr_explored").iterdir())) == 5
  lr, hr = (np.asarray(PilImage.open(f"{n}.png")) for n in ("lr", "hr"))
  rows = json.loads((here / "lr_explored/numbers.json").read_text())["rows"]
  assert [row["alpha"] for row in rows] == [0, 0.5, 1]
  for row in rows:
    sr = mixture(here, row["alpha"]).upscale(lr)
    expected = measures.measure(sr, hr[:80, :64], crop_border=4)
    for name, value in expected.items():
      # One level of a pixel, here or there.
      assert row[name] == pytest.approx(value, abs=2e-3)
  with PilImage.open("lr_explored/strip.png") as strip:
    # An image, three models, the reference: squares of 16 pixels, enlarged.
    assert strip.size == (5 * 64 + 4 * 4, 18 + 64)
    assert "alpha=0 to 1" in strip.info["Software"]
    columns = np.asarray(strip)[18:].reshape(64, -1, 3)
  left, top, side = map(int, text.rpartition("--crop ")[2].split(","))
  square = hr[4 * top : 4 * (top + side), 4 * left : 4 * (left + side)]
  np.testing.assert_array_equal(columns[:, -64:], square)
  frames = images.read_frames(here / "lr_explored/sweep.webp")
  assert list(map(int, frames.durations)) == [900, 120, 900, 120]
  assert frames.loop == 0
  there = [frame.pixels[18:].astype(int) for frame in frames]
  assert np.abs(there[1] - there[3]).mean() < 2
  for frame, alpha in zip(there[:3], (0, 0.5, 1), strict=True):
    sr = mixture(here, alpha).upscale(lr)
    assert np.abs(frame - sr).mean() < 12  # WebP's loss, of noise.
  root = xml.etree.ElementTree.parse(here / "lr_explored/curve.svg").getroot()
  texts = ["".join(each.itertext()) for each in root.iter() if each.text]
  assert any("over PSNR, by alpha" in each for each in texts)
  assert {"0", "0.5", "1"} <= set(texts)
  with PilImage.open("lr_explored/curve.png") as picture:
    assert len(picture.getcolors(10000)) > 3  # Of paper, grid, line and text.


def test_what_is_not_taken_of_an_image_is_told(here, capsys):
  """Transparency and depth; its colours stay those of its profile."""
  rgba = photo(8, 8, 4, dtype=np.uint8)
  profile = image_builders.SRGB
  PilImage.fromarray(rgba).save("lr.png", icc_profile=profile)
  PilImage.fromarray(photo(32, 32, 1, dtype=np.uint16)[..., 0]).save("hr.png")
  command = [*COMMAND, "--alphas", "0,1", "--reference", "hr.png"]
  assert main([*command, "--measures", "psnr_y"]) == 0
  notes = capsys.readouterr().out
  assert "note: lr.png is taken without its transparency\n" in notes
  assert "note: hr.png is taken in 8 bits\n" in notes
  assert "lr.png is taken in 8" not in notes
  for name in ("strip.png", "sweep.webp"):
    with PilImage.open(here / "lr_explored" / name) as picture:
      assert picture.info["icc_profile"] == profile
  # Where nothing is transparent, nothing is lost.
  rgba[..., 3] = 255
  PilImage.fromarray(rgba).save("lr.png")
  assert main([*COMMAND, "--alphas", "0,1", "--overwrite"]) == 0
  assert "transparency" not in capsys.readouterr().out


@pytest.mark.release
def test_the_perceptual_distance_is_the_axis_where_it_can_be(here, capsys):
  command = [*COMMAND, "--alphas", "0,1", "--reference", "hr.png"]
  assert main([*command, "--vgg", "random"]) == 0
  assert "Perceptual distance" in capsys.readouterr().out
  curve = (here / "lr_explored/curve.svg").read_text()
  assert "Perceptual distance (less is better) over PSNR" in curve
  assert main([*command, "--vgg", "absent.pth", "--overwrite"]) == 1
  assert "absent.pth" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_reference_there_is_no_curve(here):
  command = [*COMMAND, "--alphas", "0,1", "-o", "new/out"]
  assert main([*command, "--crop", "2,3,5"]) == 0
  names = {path.name for path in (here / "new/out").iterdir()}
  assert names == {"strip.png", "sweep.webp"}
  with PilImage.open("new/out/strip.png") as strip:
    assert strip.size == (3 * 64 + 2 * 4, 18 + 20)
  # And nothing is replaced unasked.
  assert main(command) == 1


@pytest.mark.parametrize(
  ("words", "message", "status"),
  [
    (["--crop", "0,0,17"], "ends outside of the image, which is 16 x 20", 2),
    (["--measures", "psnr_y"], "--measures compares with the true image", 2),
    (["--vgg", "none.pth"], "--vgg is for measuring", 2),
    (
      ["--reference", "lr.png"],
      "lr.png: LR is 20x16 and HR 20x16, not 4 times",
      1,
    ),
    (["--reference", "none.png"], "none.png: no such file", 1),
    (["--reference", "hr.png", "--measures", "x"], "no measure 'x'", 2),
    (["--gan-model", "deep.safetensors"], "num_block is 1 in p.safetensors", 1),
  ],
)
def test_what_cannot_be(here, capsys, words, message, status):
  assert main([*COMMAND, *words]) == status
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
  assert not (here / "lr_explored").exists()


@pytest.mark.parametrize(
  ("alphas", "message"),
  [
    ("0:1", "neither FIRST:LAST:STEP"),
    ("0:1:0", "no steps of 0 lead"),
    ("1:0:0.1", "no steps of 0.1 lead"),
    ("0:1:1e-300", "these are more"),
    ("0.5", "these are one"),
    ("0,nan", "not finite"),
  ],
)
def test_alphas_that_are_none(here, capsys, alphas, message):
  with pytest.raises(SystemExit):
    main([*COMMAND, "--alphas", alphas])
  assert message in capsys.readouterr().err


def test_a_strip_of_many_has_lines():
  crop = np.zeros((70, 70, 3), np.uint8)
  strip = pictures.draw_strip([(str(n), crop) for n in range(20)])
  assert strip.shape == (2 * (18 + 70) + 4, 10 * 74 - 4, 3)


def write_srresnet(path, seed, **config):
  config = {"num_feat": 4, "num_block": 1, "scale": 2, **config}
  net = SRResNet(**config)
  shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 8, 8, 3)))
  random = np.random.default_rng(seed)
  # Of both signs, but variances are positive; neither black nor white.
  variables = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      random.normal(0, 0.1, x.shape) + (path[-1].key == "var")
    ).astype(np.float32),
    shapes,
  )
  variables["params"]["conv_last"]["bias"] += 0.5
  files.write_weights(
    path,
    variables.pop("params"),
    {"architecture": "SRResNet", **config},
    collections=variables,
  )


@pytest.mark.slow
def test_srresnets_mix_with_their_statistics(here, capsys):
  for seed, name in enumerate(("sp", "sg")):
    write_srresnet(here / f"{name}.safetensors", seed)
  command = ["interpolate", "sp.safetensors", "sg.safetensors"]
  assert main([*command, "--alpha", "0.3", "-o", "mix.safetensors"]) == 0
  a, b, mix = (
    files.read_weights(f"{name}.safetensors") for name in ("sp", "sg", "mix")
  )
  for kind in ("params", "collections"):
    jax.tree.map(
      lambda x, y, found: np.testing.assert_allclose(
        found, np.float32(0.7) * x + np.float32(0.3) * y, rtol=1e-6
      ),
      *(getattr(each, kind) for each in (a, b, mix)),
    )
  model = Upscaler(
    SRResNet(num_feat=4, num_block=1, scale=2), mix.params, mix.collections
  )
  expected = model.upscale(np.asarray(PilImage.open("lr.png"))).astype(int)
  pair = ["--psnr-model", "sp.safetensors"]
  command = ["upscale", "lr.png", *pair, "-m", "sg.safetensors"]
  assert main([*command, "--alpha", "0.3", "-q"]) == 0
  found = images.read_image(here / "lr_x2.png").pixels
  assert np.abs(found - expected).max() <= 1
  assert found.std() > 10
  command = ["explore", "lr.png", *pair, "--gan-model", "sg.safetensors"]
  assert main([*command, "--alphas", "0,0.3", "--crop", "0,0,16"]) == 0
  with PilImage.open("lr_explored/strip.png") as strip:
    last = np.asarray(strip)[18:, 2 * 68 : 2 * 68 + 32]
  assert np.abs(last - expected[:32, :32]).max() <= 1
  capsys.readouterr()
  assert main([*START, "sg.safetensors", "-o", "new"]) == 1
  error = capsys.readouterr().err
  assert "architecture is RRDBNet in p.safetensors and SRResNet in" in error
  assert error.count("\n") == 1
