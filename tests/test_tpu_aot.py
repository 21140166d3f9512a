import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import tpu_aot
from esrgan_jax.data import pipeline
from esrgan_jax.models.discriminators import VGGStyleDiscriminator
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.steps import gan, psnr
from esrgan_jax.steps import state as state_lib
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import mesh as mesh_lib

SMALL = {
  "generator": {"num_feat": 8, "num_block": 2, "num_grow_ch": 4},
  "discriminator": {"num_feat": 4},
  "batch_size": 2,
  "patch_size": 32,
  "dtype": "float32",
  "perceptual": {"weights": "random", "layers": {"conv1_2": 1.0}},
  "data": {"sources": "sample_photos", "eval": ""},
}
SMALL_SETTINGS = [
  "generator.num_feat=8",
  "generator.num_grow_ch=4",
  "discriminator.num_feat=8",
  "patch_size=16",
  "perceptual.layers={'conv1_2': 1.0}",
]


def run_alone(**case):
  """A case as `main` runs it: libtpu stays out of this process."""
  defaults = {
    "chips": None,
    "form": "default",
    "num_block": None,
    "batch_per_chip": None,
    "settings": [],
    "hlo_file": "",
  }
  return tpu_aot._start(defaults | case, timeout=3600)


@pytest.mark.parametrize(
  ("chips", "expected"),
  [
    ("v5e:1", ("v5e:1x1", 1)),
    ("v6e:64", ("v6e:8x8", 64)),
    ("v5p:32", ("v5p:2x4x4", 32)),
    ("v4:1", ("v4:2x2x1", 1)),
  ],
)
def test_slices(chips, expected):
  assert tpu_aot.topology_name(chips) == expected


@pytest.mark.parametrize("chips", ["v5e:3", "v5e", "v5e:x", "v7:1"])
def test_a_slice_that_is_not_there(chips):
  with pytest.raises(ValueError, match=r"no (slice|TPU)"):
    tpu_aot.topology_name(chips)


def test_slices_have_the_chips_they_say():
  for shapes in (tpu_aot._SQUARES, tpu_aot._CUBES):
    for chips, shape in shapes.items():
      sides = [int(side) for side in shape.split("x")]
      assert np.prod(sides) == chips or chips == 1


def test_peaks_are_whole_numbers_of_matrix_units():
  units = {"v4": 8, "v5e": 4, "v5p": 8, "v6e": 4}
  for name, generation in tpu_aot.GENERATIONS.items():
    side = 256 if name == "v6e" else 128
    a_cycle = generation.tflops * 1e3 / generation.ghz
    assert a_cycle == pytest.approx(units[name] * 2 * side**2, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["net", "tile", "psnr_step"])
def test_the_textbooks_form_has_nothing_of_ours_in_the_generator(program):
  mesh = mesh_lib.make_mesh(1)
  settings = SMALL_SETTINGS if program == "psnr_step" else []
  counts = {}
  for name, form in tpu_aot.FORMS.items():
    made = tpu_aot.make_program(
      program, mesh, form=form, num_block=1, settings=settings
    )
    text = str(jax.make_jaxpr(made.function)(*made.arguments))
    counts[name] = [text.count(w) for w in ("custom_vjp", "platform_index")]
  # In a step, each parameter's gradient is laid out by platform.
  assert counts["textbook"][0] == 0 < counts["default"][0]
  assert counts["textbook"][1] < counts["default"][1]


@pytest.mark.parametrize(
  "phase", ["psnr", pytest.param("gan", marks=pytest.mark.slow)]
)
def test_the_step_is_that_of_training_on_what_the_pipeline_gives(phase):
  config = config_lib.complete(SMALL)
  run_step, state, arrays = tpu_aot.training_step(config, phase)
  adam = tpu_aot.optimizer_lib.make_optimizer(
    config.phases[phase].learning_rate,
    schedule=config.phases[phase].schedule.to_dict(),
  )
  networks = {
    "generator": RRDBNet(**SMALL["generator"]),
    "optimizer": adam,
  }
  expected_arrays = {}
  if phase == "gan":
    networks |= {
      "discriminator": VGGStyleDiscriminator(4, input_size=32),
      "d_optimizer": adam,
    }
    params = jax.eval_shape(tpu_aot.vgg.init_vgg19, jax.random.key(0))
    expected_arrays["perceptual"] = gan.vgg_perceptual(
      params, layer_weights={"conv1_2": 1.0}, dtype=jnp.float32
    )
  create = getattr(state_lib, f"create_{phase}_state")
  expected_state = jax.eval_shape(
    lambda key: create(key, **networks), jax.random.key(0)
  )
  assert state == expected_state
  assert jax.tree.leaves(arrays) == jax.tree.leaves(expected_arrays)

  step = {"psnr": psnr.psnr_step, "gan": gan.gan_step}[phase]
  seed = {"psnr": 0, "gan": 1}[phase]  # As `training.loop` has it.
  data = pipeline.open_data(config.data, scale=4, batch_size=2, patch_size=32)

  def expected(state, raw, **arrays):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    batch = data.preprocess(key, raw)
    return step(state, batch, **networks, **arrays)

  raw = data.abstract_batch
  assert traced(run_step, state, raw, arrays) == traced(
    expected, state, raw, expected_arrays
  )


def traced(function, state, raw, arrays):
  text = str(jax.make_jaxpr(function)(state, raw, **arrays))
  return re.sub(r"0x[0-9a-f]+", "", text)


@pytest.mark.slow
@pytest.mark.parametrize("program", tpu_aot.CONFIGS)
def test_every_step_can_be_made_of_its_config(program):
  settings = [*SMALL_SETTINGS, "patch_size=64"]  # Wide enough to sharpen.
  made = tpu_aot.make_program(
    program, mesh_lib.make_mesh(2), num_block=1, settings=settings
  )
  state, metrics = jax.eval_shape(made.function, *made.arguments)
  assert state.step.shape == ()
  assert metrics["g/pixel"].shape == ()


@pytest.mark.slow  # Where libtpu is.
def test_a_step_on_four_chips_of_a_tpu():
  pytest.importorskip("libtpu")
  row = run_alone(
    program="gan_step",
    topology="v5e:2x2",
    num_block=2,
    batch_per_chip=1,
    settings=SMALL_SETTINGS,
  )
  assert "error" not in row, row
  assert row["devices"] == 4
  # Gradients of both networks, at least, in 16 or 32 bits.
  count, size = row["collectives"]["all-reduce"]
  assert count >= 1
  parameters = 3 * 3 * 5 * 64 + 2 * 100  # Less than there are.
  assert size > 2 * parameters
  assert 0 < row["share_of_peak"] < 1
  assert 0 < row["arguments"] < row["peak"] < row["hbm"]
  assert row["flops"] > 0
  assert row["traffic"] > row["arguments"]


@pytest.mark.skipif(
  not os.environ.get("ESRGAN_JAX_TPU_AOT"),
  reason="takes minutes; set ESRGAN_JAX_TPU_AOT=1",
)
def test_the_gan_config_fits_a_v5e_chip():
  pytest.importorskip("libtpu")
  row = run_alone(program="gan_step", topology="v5e:1x1")
  assert "error" not in row, row
  assert row["note"].startswith("batch 16 ")
  assert row["peak"] <= 0.9 * row["hbm"] == 0.9 * 16 * 2**30


def test_a_case_that_fails_is_a_row(tmp_path, capsys):
  pytest.importorskip("libtpu")
  file = tmp_path / "rows.json"
  arguments = ["--topology", "v5e:77x77", "--programs", "net"]
  tpu_aot.main([*arguments, "--json", str(file)])
  assert "| v5e x 5929 | default | 23 | " in capsys.readouterr().out
  (row,) = json.loads(file.read_text())
  assert row["error"]
  assert row["topology"] == "v5e:77x77"


@pytest.mark.parametrize(
  ("arguments", "problem"),
  [
    (["--set", "batch_size=0"], "config.batch_size is 0"),
    (["--set", "batch_size"], "settings are KEY=VALUE"),
    (["--chips", "v5e:3"], "no slice 'v5e:3'"),
    (["--topology", "v9:1x1"], "no figures of 'v9:1x1'"),
  ],
)
def test_what_cannot_be_done_ends_it_at_once(arguments, problem, capsys):
  with pytest.raises(SystemExit):
    tpu_aot.main(["--programs", "psnr_step", *arguments])
  assert problem in capsys.readouterr().err
