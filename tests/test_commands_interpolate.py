"""`python -m esrgan_jax interpolate`."""

import json

import jax
import numpy as np
import pytest

from esrgan_jax.__main__ import main
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.report import page
from esrgan_jax.weights import descent, files
from tests.networks import random_params

NET = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}


def write_model(path, seed, notes=None, **config):
  config = NET | config
  image = np.zeros((1, 4, 4, 3), np.float32)
  params = random_params(RRDBNet(**config), image, seed=seed)
  path.parent.mkdir(parents=True, exist_ok=True)
  metadata = {"licence": "MIT", "seed": seed, **(notes or {})}
  return files.write_weights(path, params, config, metadata=metadata)


@pytest.fixture
def run(tmp_path):
  """A workdir with both phases' models."""
  for seed, phase in enumerate(("psnr", "gan")):
    write_model(tmp_path / "run" / "models" / f"{phase}.safetensors", seed)
  return tmp_path / "run"


def mixed(a, b, alpha):
  """The formula, in NumPy."""
  a, b = (files.read_weights(path).params for path in (a, b))
  share = np.float32(alpha)
  return jax.tree.map(lambda x, y: (1 - share) * x + share * y, a, b)


def assert_equal(path, expected):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7),
    files.read_weights(path).params,
    expected,
  )


def test_a_workdir_gives_its_psnr_and_its_gan_model(run, tmp_path, capsys):
  out = tmp_path / "mixes"
  alphas = ["0.29", "0.2", "0", "1"]
  command = ["interpolate", str(run), str(run), "--alpha", *alphas]
  assert main([*command, "-o", f"{out}/"]) == 0
  text = capsys.readouterr().out
  assert "0.71 * run/psnr + 0.29 * run/gan" in text
  a, b = (run / "models" / f"{p}.safetensors" for p in ("psnr", "gan"))
  names = {f"interpolated_{v}.safetensors" for v in (0.29, 0.2, 0.0, 1.0)}
  assert {path.name for path in out.iterdir()} == names
  for alpha in (0.29, 0.2, 0.0, 1.0):
    path = out / f"interpolated_{alpha!r}.safetensors"
    assert_equal(path, mixed(a, b, alpha))
    metadata = files.read_weights(path).metadata
    assert metadata["alpha"] == repr(alpha)
    assert metadata["interpolated_b"] == "run/gan"
    assert metadata["licence"] == "MIT"
    assert "seed" not in metadata  # The inputs do not agree on it.


def test_another_descent_is_told(tmp_path, capsys):
  a, b = (tmp_path / f"{name}.safetensors" for name in "ab")
  write_model(a, 0, {"generator_sha256": "5a" * 32})
  for start, told in (("5a", False), ("7b", True)):
    b.unlink(missing_ok=True)
    write_model(b, 1, {"begun_from_sha256": start * 32})
    out = str(tmp_path / f"{start}.safetensors")
    assert main(["interpolate", str(a), str(b), "-o", out]) == 0
    text = capsys.readouterr().out.replace("\n", " ")
    assert ("note: b.safetensors was begun from another model" in text) == told


def test_a_chain_of_phases_is_one_descent(tmp_path, capsys):
  run = tmp_path / "run"
  digests = ["1a" * 32, "2b" * 32, "3c" * 32]
  names = ("warm", "soft", "sharp")

  def write(seed, start):
    notes = {"generator_sha256": digests[seed]}
    notes |= {"begun_from_sha256": start} if start else {}
    path = run / "models" / f"{names[seed]}.safetensors"
    path.unlink(missing_ok=True)
    return write_model(path, seed, notes)

  first = write(0, None)
  for seed in (1, 2):
    write(seed, digests[seed - 1])
  (run / "config.json").write_text(json.dumps({"phase_order": names}))
  last = run / "models" / "sharp.safetensors"
  for pair in ((run, run), (first, last), (last, last)):
    out = str(tmp_path / "out.safetensors")
    assert main(["interpolate", *map(str, pair), "-o", out, "--overwrite"]) == 0
    assert "note: " not in capsys.readouterr().out
  assert descent.relation_in(run) == ""
  assert "begun from" not in page.write_report(run).read_text()
  # The one in the middle is another by now.
  write(1, "7d" * 32)
  assert (
    main(["interpolate", str(run), str(run), "-o", f"{run}/o.safetensors"]) == 0
  )
  assert "run/sharp was begun from another" in capsys.readouterr().out
  assert (
    "The model of phase soft was begun" in page.write_report(run).read_text()
  )
  (run / "interpolation.json").write_text('{"rows": [{"alpha": 0.5}]}')
  text = page.write_report(run, titles={"sharp": "<Sharp>"}).read_text()
  assert "(1 - alpha) * WARM model + alpha * &lt;Sharp&gt; model." in text


def test_files_and_workdirs_mix_and_patterns_name(run, tmp_path):
  a = run / "models" / "psnr.safetensors"
  pattern = str(tmp_path / "mix-{alpha}.safetensors")
  command = ["interpolate", str(a), str(run), "--alpha", "0.25", "-0.5"]
  assert main([*command, "-o", pattern]) == 0
  b = run / "models" / "gan.safetensors"
  for alpha in (0.25, -0.5):
    path = tmp_path / f"mix-{alpha}.safetensors"
    assert_equal(path, mixed(a, b, alpha))


def test_nothing_is_overwritten_unasked(run, tmp_path, capsys):
  out = tmp_path / "out.safetensors"
  out.write_text("precious")
  command = ["interpolate", str(run), str(run), "-o", str(out)]
  assert main(command) == 1
  assert "give --overwrite" in capsys.readouterr().err
  assert out.read_text() == "precious"
  assert main([*command, "--overwrite"]) == 0
  assert files.read_weights(out).metadata["alpha"] == "0.8"
  model = run / "models" / "gan.safetensors"
  before = model.read_bytes()
  assert main([*command[:-1], str(model), "--overwrite"]) == 1
  assert "would replace an input" in capsys.readouterr().err
  assert model.read_bytes() == before


def test_other_structures_are_explained(run, tmp_path, capsys):
  b = write_model(tmp_path / "b.safetensors", 0, num_block=2, scale=2)
  out = tmp_path / "out.safetensors"
  assert main(["interpolate", str(run), str(b), "-o", str(out)]) == 1
  error = capsys.readouterr().err
  assert "num_block is 1 in run/psnr and 2 in b.safetensors" in error
  assert "scale is 4 in run/psnr and 2 in b.safetensors" in error
  assert not out.exists()


@pytest.mark.parametrize(
  ("output", "message"),
  [
    ("out.h5", "cannot write out.h5"),
    ("m{beta}_{alpha}.pth", "{alpha} is filled in, not {beta}"),
    ("out.safetensors", "2 models cannot go to one file"),
  ],
)
def test_outputs_that_cannot_be(run, capsys, output, message):
  command = ["interpolate", str(run), str(run), "--alpha", "0.1", "0.2"]
  assert main([*command, "-o", output]) == 2
  assert message in capsys.readouterr().err


def test_a_workdir_without_the_phase_is_an_error(run, tmp_path, capsys):
  (run / "models" / "gan.safetensors").unlink()
  out = str(tmp_path / "out.safetensors")
  assert main(["interpolate", str(run), str(run), "-o", out]) == 1
  assert "has no model of phase gan" in capsys.readouterr().err


def test_an_alpha_that_is_no_number(run, capsys):
  with pytest.raises(SystemExit):
    main(["interpolate", "a", "b", "--alpha", "nan", "-o", "c.pth"])
  assert "nan is not a finite number" in capsys.readouterr().err
