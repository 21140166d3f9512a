"""Networks as Orbax checkpoints: ours, and those of any other program."""

import io
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import rich.console
from flax.training import train_state
from orbax.checkpoint import v1

import esrgan_jax
from esrgan_jax import images, plugins
from esrgan_jax.__main__ import main
from esrgan_jax.models import registry
from esrgan_jax.steps.state import PsnrState
from esrgan_jax.training import checkpoint, start
from esrgan_jax.training import run as run_lib
from esrgan_jax.weights import files, find, trees
from esrgan_jax.weights.dialects import rrdb
from esrgan_jax.weights.dialects.protocol import UntoldScaleError
from esrgan_jax.weights.formats import safetensors_file
from esrgan_jax.weights.formats import stored_arrays as stored
from tests import training_runs
from tests.networks import random_params
from tests.training_runs import ROOT

NET = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
NOTE = trees._NOTE


def params_of(seed=0, **config):
  net = esrgan_jax.RRDBNet(**{**NET, **config})
  return random_params(net, np.zeros((1, 8, 8, 3), np.float32), seed=seed)


def standard(folder, tree):
  with ocp.StandardCheckpointer() as orbax:
    orbax.save(folder, tree)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module", name="params")
def _params():
  return params_of()


@pytest.fixture(scope="module", name="saved")
def _saved(params, tmp_path_factory):
  """A tree by plain Orbax; copied before it is changed."""
  folder = tmp_path_factory.mktemp("saved") / "tree"
  standard(folder, params)
  return folder


# --- what others write ------------------------------------------------------


def _manager(folder, tree):
  with ocp.CheckpointManager(folder) as manager:
    for step, each in (
      (3, jax.tree.map(np.zeros_like, tree)),
      (12, {"params": tree, "step": np.int32(12)}),
    ):
      manager.save(step, args=ocp.args.StandardSave(each))


def _named(folder, tree):
  options = ocp.CheckpointManagerOptions(
    step_prefix="ckpt", step_format_fixed_length=8
  )
  with ocp.CheckpointManager(folder, options=options) as manager:
    manager.save(9, args=ocp.args.StandardSave({"a": np.zeros(2)}))
    manager.save(12, args=ocp.args.StandardSave(tree))


def _zeros_before(folder, tree):
  options = ocp.CheckpointManagerOptions(step_format_fixed_length=3)
  with ocp.CheckpointManager(folder, options=options) as manager:
    manager.save(12, args=ocp.args.StandardSave(tree))


def _items(folder, tree):
  with ocp.CheckpointManager(folder) as manager:
    arguments = ocp.args.Composite(
      model=ocp.args.StandardSave(tree),
      config=ocp.args.JsonSave({"scale": 4, "num_feat": 4}),
    )
    manager.save(3, args=arguments)


def _pytree(folder, tree):
  handler = ocp.PyTreeCheckpointHandler(use_zarr3=True)
  ocp.Checkpointer(handler).save(folder, {"params": tree, "name": "a text"})


def _without_a_database(folder, tree):
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
  ocp.Checkpointer(handler).save(folder, tree)


@pytest.mark.parametrize(
  "save",
  [
    standard,
    _manager,
    _named,
    _zeros_before,
    _items,
    _pytree,
    _without_a_database,
    v1.save,
  ],
)
def test_whatever_orbax_saves_is_read(save, params, tmp_path):
  folder = tmp_path / "of another program"
  save(folder, params)
  found = esrgan_jax.load_checkpoint(folder)
  assert_equal(found.params, params)
  assert found.config.items() >= {"architecture": "RRDBNet", **NET}.items()
  assert found.notes == (NOTE,)
  number = re.compile(r"(?:ckpt_)?\d+").fullmatch
  steps = [path for path in folder.iterdir() if number(path.name)]
  if steps := sorted(steps, key=lambda p: int(p.name.rpartition("_")[2])):
    assert find.locate(folder).path == steps[-1]
    assert_equal(find.find_model(steps[-1]).weights.params, params)


def test_the_average_is_the_network_of_a_training_state(params, tmp_path):
  average, other = params_of(1), {"dense": {"bias": np.ones(3, np.float32)}}
  moments = optax.ScaleByAdamState(np.int32(3), params, params)
  state = PsnrState(
    step=np.int32(3),
    params=params,
    opt_state=(moments, optax.EmptyState()),
    ema_params=average,
    skipped=np.int32(0),
    skipped_in_a_row=np.int32(0),
  )
  standard(tmp_path / "psnr", {"state": state, "d_params": other})
  found = esrgan_jax.load_checkpoint(tmp_path / "psnr")
  assert_equal(found.params, average)
  assert found.notes == (
    "the file holds several networks: took state/ema_params (the moving"
    " average), left state/params",
    NOTE,
  )
  flax = train_state.TrainState(
    step=3, apply_fn=None, params=params, tx=None, opt_state=(moments,)
  )
  standard(tmp_path / "flax", flax)
  found = esrgan_jax.load_checkpoint(tmp_path / "flax")
  assert_equal(found.params, params)
  standard(tmp_path / "two", {"a": params, "b": params})
  with pytest.raises(ValueError, match=r"holds 2 networks.*: a, b\. Save"):
    esrgan_jax.load_checkpoint(tmp_path / "two")


def test_another_scale_is_told_with_its_own(saved, params, tmp_path):
  message = "scale 2 was given, but .* of a x4 network: give scale 4"
  with pytest.raises(ValueError, match=message):
    esrgan_jax.load_checkpoint(saved, config={"scale": 2})
  with pytest.raises(ValueError, match=message):
    files.write_weights(tmp_path / "a.safetensors", params, {"scale": 2})


def test_half_precision_is_exact_and_double_is_rounded(params, tmp_path):
  halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  standard(tmp_path / "half", halves)
  found = esrgan_jax.load_checkpoint(tmp_path / "half").params
  assert_equal(found, jax.tree.map(lambda x: np.float32(x), halves))
  doubles = jax.tree.map(lambda x: np.float64(x) + 1e-12, params)
  standard(tmp_path / "double", doubles)
  found = esrgan_jax.load_checkpoint(tmp_path / "double").params
  assert_equal(found, jax.tree.map(np.float32, doubles))


def test_scale_three_is_said(tmp_path):
  standard(tmp_path / "tree", params_of(scale=3))
  with pytest.raises(UntoldScaleError, match=f"^{tmp_path}/tree: .*scale=3"):
    find.find_model(tmp_path / "tree")
  for found in (
    find.find_model(tmp_path / "tree", scale=3).weights,
    esrgan_jax.load_checkpoint(tmp_path / "tree", config={"scale": 3}),
  ):
    assert found.config["scale"] == 3
  (tmp_path / "config.json").write_text('{"scale": 3}')
  found = esrgan_jax.load_checkpoint(tmp_path / "tree")
  assert found.config["scale"] == 3
  with pytest.raises(ValueError, match="scale 2 was asked for, but its config"):
    find.find_model(tmp_path / "tree", scale=2)
  # One that is cut off may have been this network's.
  (tmp_path / "config.json").write_text('{"scale":3')
  with pytest.raises(ValueError, match=r"/config.json is no config .*mend it"):
    esrgan_jax.load_checkpoint(tmp_path / "tree")
  given = esrgan_jax.load_checkpoint(tmp_path / "tree", config={"scale": 3})
  assert given.config["scale"] == 3
  for other in ("[3]", '{"lr": 0.1}'):
    (tmp_path / "config.json").write_text(other)
    note, last = find.find_model(tmp_path / "tree", scale=3).weights.notes
    assert note.startswith(f"{tmp_path}/config.json is no config of a network")
    assert note.endswith("it was left out")
    assert last == NOTE


def test_a_network_of_ones_own_needs_its_config(tmp_path, params):
  plugins.load([ROOT / "tests/own_network.py"])
  config = {"architecture": "Normalized", "scale": 2, "width": 3}
  net = registry.make_generator(**config)
  variables = jax.tree.map(
    lambda x: np.random.default_rng(0).random(x.shape, np.float32),
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))),
  )
  folder = tmp_path / "tree"
  standard(folder, {**variables, "opt_state": {"mu": variables["params"]}})
  with pytest.raises(
    ValueError,
    match=r"no network that its shapes tell \(.*: a file config.json",
  ):
    esrgan_jax.load_checkpoint(folder)
  for given in (config, None):
    if not given:  # As a workdir's.
      generator = {"architecture": "Normalized", "width": 3}
      whole = {"generator": generator, "scale": 2, "seed": 0}
      (tmp_path / "config.json").write_text(json.dumps(whole))
    found = esrgan_jax.load_checkpoint(folder, config=given)
    assert_equal(found.params, variables["params"])
    assert_equal(found.collections, {"batch_stats": variables["batch_stats"]})
    assert (found.config, found.notes) == (config, (NOTE,))
  with pytest.raises(ValueError, match=r"first/bias \(5\).* in the tree first"):
    esrgan_jax.load_checkpoint(folder, config={**config, "width": 5})
  (folder / "config.json").write_text("[3]")
  with pytest.raises(
    ValueError, match="is no config of a network: it is no obj"
  ):
    esrgan_jax.load_checkpoint(folder)
  # Ours, of the same.
  esrgan_jax.save_checkpoint(
    tmp_path / "ours",
    found.params,
    found.config,
    collections=found.collections,
    metadata={"alpha": 0.5},
  )
  again = esrgan_jax.load_checkpoint(tmp_path / "ours")
  assert (again.config, again.notes) == (config, ())
  assert again.metadata["alpha"] == "0.5"
  assert_equal(again.collections, found.collections)


# --- what cannot be ---------------------------------------------------------


def _described(change):
  def edit(folder):
    path = folder / "_METADATA"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))

  return edit


def _bigger(claim):
  """An array, and what it claims, in Zarr's own words."""

  def edit(folder):
    shutil.rmtree(folder)
    tree = {"params": {"conv": np.ones(3, np.float32)}}
    _without_a_database(folder, {**tree, "body": params_of()["body"]})
    path = folder / "body.rdb1.conv1.kernel" / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **claim}))

  return edit


def _tree(change):
  def edit(folder):
    shutil.rmtree(folder)
    standard(folder, change(params_of()))

  return edit


def _leaf(path, value):
  def edit(tree):
    *parents, last = path
    level = tree
    for parent in parents:
      level = level[parent]
    if value is None:
      del level[last]
    else:
      level[last] = value(level[last])
    return tree

  return _tree(edit)


def _cut(name):
  def edit(folder):
    paths = [p for p in folder.rglob(name) if p.is_file()]
    for path in paths:
      path.write_bytes(path.read_bytes()[:20])

  return edit


FIRST = ("conv_first", "kernel")
ODD = {
  "no description": (_cut("_METADATA"), "is damaged: "),
  "another description": (
    lambda f: (f / "_METADATA").write_text("[1]"),
    "no description of a tree",
  ),
  "deep": (
    lambda f: (f / "_METADATA").write_text("[" * 10**6),
    "is damaged: ",
  ),
  "a leaf without keys": (
    _described(lambda d: d["tree_metadata"].update(x={"key_metadata": 3})),
    "describes a leaf that none can be",
  ),
  "no arrays": (lambda f: shutil.rmtree(f / "d"), "is damaged: "),
  "no database": (lambda f: (f / "manifest.ocdbt").unlink(), "is damaged: "),
  "cut": (_cut("manifest.ocdbt"), "is damaged: "),
  "other folders": (
    _described(
      lambda d: d.update(
        use_ocdbt=False,
        tree_metadata={
          "x": {
            "key_metadata": [{"key": "../other", "key_type": 2}],
            "value_metadata": {"skip_deserialize": False},
          }
        },
      )
    ),
    "no folder can be called '../other'",
  ),
  "large": (
    _bigger({"shape": [2**16, 3, 3, 2**16, 2]}),
    "by what it says of itse",
  ),
  "large blocks": (_bigger({"chunks": [1, 3, 3, 4, 2**36]}), "files, of"),
  "long": (_bigger({"shape": [2**20, 3, 3, 4, 0]}), "limit is 65536"),
  "whole numbers": (_leaf(FIRST, np.int32), "conv_first/kernel is int32"),
  "not a number": (_leaf(FIRST, lambda x: x * np.nan), "NaN or infinite"),
  "missing": (_leaf(FIRST, None), "KeyError 'kernel'"),
  "one more": (_tree(lambda t: {**t, "tail": t["conv_hr"]}), "tail"),
  "wrong shape": (_leaf(FIRST, lambda x: x[..., :-1]), "wrong shape"),
  "flat": (_leaf(FIRST, lambda x: x[0]), "not HWIO"),
  "nothing": (_tree(lambda t: {"a": {"b": np.ones(2)}}), r"arrays: a/b \(2\)"),
  "moments": (
    _tree(lambda t: {"opt_state": {"mu": t, "nu": t}}),
    "holds 2 networks",
  ),
}


QUICK = ("cut", "other folders", "leaf without keys", "large", "whole numbers")


@pytest.mark.parametrize(
  "kind",
  [
    pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow])
    for kind in ODD
  ],
)
def test_what_is_odd_is_one_line(kind, saved, tmp_path, monkeypatch):
  monkeypatch.setattr(stored, "_PAUSES", ())
  folder = pathlib.Path(shutil.copytree(saved, tmp_path / "tree"))
  edit, message = ODD[kind]
  edit(folder)
  with pytest.raises(ValueError, match=message) as error:
    esrgan_jax.load_checkpoint(folder)
  assert "\n" not in str(error.value)
  assert str(folder) in str(error.value)
  assert len(str(error.value)) < 1100


@pytest.mark.slow
def test_any_cut_or_changed_byte_is_one_line_or_a_network(saved, tmp_path):
  random = np.random.default_rng(0)
  parts = [p.relative_to(saved) for p in saved.rglob("*") if p.is_file()]
  for name in parts:
    content = (saved / name).read_bytes()
    for _ in range(12):
      broken = bytearray(content)
      if random.random() < 0.3:
        del broken[random.integers(len(broken) + 1) :]
      elif broken:
        at = random.integers(len(broken))
        broken[at] ^= 1 << random.integers(8)
      folder = tmp_path / "tree"
      shutil.rmtree(folder, ignore_errors=True)
      shutil.copytree(saved, folder)
      (folder / name).write_bytes(bytes(broken))
      try:
        esrgan_jax.load_checkpoint(folder)
        message = ""
      except (ValueError, FileNotFoundError) as error:
        message = str(error)
      assert "\n" not in message, name
      assert len(message) < 1100, name


# --- ours -------------------------------------------------------------------


@pytest.fixture(scope="module", name="ours")
def _ours(params, tmp_path_factory):
  folder = tmp_path_factory.mktemp("ours") / "mine"
  config = {**NET, "unshuffle": None}
  esrgan_jax.save_checkpoint(folder, params, config)
  return folder


def test_a_checkpoint_of_ours_is_plain_orbaxs(ours, params, tmp_path):
  with ocp.StandardCheckpointer() as orbax:
    assert_equal(orbax.restore(ours / "ema"), params)
  assert_equal(v1.load(ours, checkpointable_name="ema"), params)
  shutil.copytree(ours, tmp_path / "7")
  with ocp.CheckpointManager(tmp_path) as manager:
    wanted = ocp.args.Composite(ema=ocp.args.StandardRestore())
    found = manager.restore(manager.latest_step(), args=wanted)
  assert_equal(found.ema, params)
  found = esrgan_jax.load_checkpoint(ours)
  assert_equal(found.params, params)
  assert found.notes == ()
  assert found.config.items() >= {"architecture": "RRDBNet", **NET}.items()
  digest = stored.digest(stored.flatten(params))
  assert found.metadata == {"generator_sha256": digest}
  with pytest.raises(ValueError, match=r"ema is a part of the checkpoint .*e:"):
    esrgan_jax.load_checkpoint(ours / "ema")


def test_no_digest_beside_info_is_damage(ours, tmp_path, monkeypatch):
  monkeypatch.setattr(stored, "_PAUSES", ())
  folder = pathlib.Path(shutil.copytree(ours, tmp_path / "mine"))
  (folder / "info/metadata").write_text("{}")
  with pytest.raises(stored.DamagedError, match="info has no digests"):
    esrgan_jax.load_checkpoint(folder)
  # Without info it is another program's.
  shutil.rmtree(folder / "info")
  assert esrgan_jax.load_checkpoint(folder).notes == (NOTE,)
  # A file is no info, and not none.
  (folder / "info").write_text("{}")
  with pytest.raises(stored.DamagedError, match="info"):
    esrgan_jax.load_checkpoint(folder)


@pytest.mark.parametrize("name", ["mine", "7"])
def test_an_item_that_is_missing_is_damage(ours, tmp_path, monkeypatch, name):
  monkeypatch.setattr(stored, "_PAUSES", ())
  folder = pathlib.Path(shutil.copytree(ours, tmp_path / name))
  shutil.rmtree(folder / "ema")
  for _ in range(2):
    with pytest.raises(stored.DamagedError, match=rf"{name} is damaged: "):
      esrgan_jax.load_checkpoint(folder)
    (folder / "_CHECKPOINT_METADATA").unlink(missing_ok=True)


def test_steps_of_two_models_are_not_taken_for_one(saved, tmp_path):
  for name in ("psnr_4", "gan_8"):
    shutil.copytree(saved, tmp_path / name)
  with pytest.raises(ValueError, match="is a folder: give a file in it"):
    esrgan_jax.load_checkpoint(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda info: {}, "info has no digests"),
    (lambda info: [info], "info has no digests"),
    (lambda info: info | {"sha256": {}}, "no digest of ema"),
    (lambda info: info | {"sha256": {"ema": 3}}, "that are no text"),
    (
      lambda info: info | {"sha256": info["sha256"] | {"info": "0"}},
      "info is not what was saved",
    ),
    (
      lambda info: info | {"sha256": {"ema": "0" * 64}},
      "'ema' is not what was saved",
    ),
    (lambda info: info | {"config": {}}, "info is not what was saved"),
    (
      lambda info: {
        "config": {},
        "sha256": {"ema": info["sha256"]["ema"]},
      },
      "a config without a network",
    ),
  ],
)
def test_info_without_its_digest_is_damage(
  ours, tmp_path, monkeypatch, change, message
):
  monkeypatch.setattr(stored, "_PAUSES", ())
  folder = pathlib.Path(shutil.copytree(ours, tmp_path / "mine"))
  path = folder / "info/metadata"
  path.write_text(json.dumps(change(json.loads(path.read_text()))))
  with pytest.raises(stored.DamagedError, match=message):
    esrgan_jax.load_checkpoint(folder)


def test_nothing_is_replaced_and_nothing_wrong_is_written(tmp_path, params):
  target = tmp_path / "deep" / "tree"
  for wrong, config, message in (
    (params, {"num_feat": 4}, "config has no scale"),
    (params, NET | {"scale": 2}, "of a x4 network: give scale 4"),
    (params, NET | {"num_feat": 8}, "config says num_feat 8"),
    (params, NET | {"depth": 8}, "RRDBNet has no field depth"),
    ({"a": np.ones(2)}, NET, "not the parameter tree of an RRDBNet"),
    (
      jax.tree.map(lambda x: np.full_like(x, np.inf), params),
      NET,
      r"bias in params has 2 values that are NaN or inf.*did the training",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      esrgan_jax.save_checkpoint(target, wrong, config)
  for given, message in (
    ((target, params, None), "scale': 4}, got None"),
    ((target, params, esrgan_jax.RRDBNet(**NET)), "4}, got a RRDBNet"),
    ((target, NET, params), "got body of a dict: params come before config"),
    ((params, target, NET), "path must be a path, got a dict"),
    ((target, None, NET), "params must be a tree of arrays, got None"),
  ):
    with pytest.raises(TypeError, match=message) as error:
      esrgan_jax.save_checkpoint(*given)
    assert len(str(error.value)) < 200
  assert not target.parent.exists()
  target.mkdir(parents=True)
  with pytest.raises(FileExistsError, match="takes a new folder"):
    esrgan_jax.save_checkpoint(target, params, NET)
  (tmp_path / "file").write_text("")
  with pytest.raises(
    OSError, match=r"file/tree cannot be written: File exists"
  ):
    esrgan_jax.save_checkpoint(tmp_path / "file" / "tree", params, NET)


# --- the commands -----------------------------------------------------------


@pytest.fixture(name="run")
def _run(tmp_path):
  """A workdir of two phases, a checkpoint each."""
  config = {"generator": {k: v for k, v in NET.items() if k != "scale"}}
  for seed, phase in enumerate(("psnr", "gan")):
    params = params_of(seed)
    state = PsnrState(
      *(np.int32(5), params, {}, params, np.int32(0), np.int32(0))
    )
    with checkpoint.Checkpoints(
      tmp_path / "runs/mine" / phase, config={**config, "scale": 4}
    ) as checkpoints:
      checkpoints.save(5, jax.device_put(state))
  return tmp_path / "runs/mine"


def test_the_recipe_of_the_documentation(run, tmp_path, monkeypatch, capsys):
  """Plain Orbax restores, mixes and saves; the commands read the folder."""
  monkeypatch.chdir(tmp_path)
  page = (ROOT / "docs/checkpoints.md").read_text()
  ours, plain = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  names = {}
  exec(ours, names)
  assert_equal(esrgan_jax.load_checkpoint("copy").params, params_of(1))
  assert sum(map(bool, plain.splitlines())) <= 10
  exec(plain, names)
  a, b = params_of(0), params_of(1)
  commands = re.findall(r"^python -m esrgan_jax (.*)$", page, re.MULTILINE)
  for command in commands:
    if command.startswith("convert"):
      assert main(command.split()) == 0, capsys.readouterr().err
  assert f"note: {NOTE}" in capsys.readouterr().out
  mixed = esrgan_jax.load("mixed.safetensors")
  for found in (
    mixed.params,
    esrgan_jax.load_checkpoint("runs/mine/mixed").params,
  ):
    jax.tree.map(
      lambda x, y, z: np.testing.assert_allclose(
        x, 0.2 * y + 0.8 * z, rtol=1e-5, atol=1e-7
      ),
      found,
      a,
      b,
    )
  # As a whole, the workdir is what it was.
  assert find.find_model(run).name == "mine/gan"


def test_interpolate_refuses_a_folder_that_exists(ours, tmp_path, capsys):
  start = ["interpolate", str(ours), str(ours)]
  (tmp_path / "mixed").mkdir()
  (tmp_path / "file").write_text("")
  before = sorted(ours.rglob("*"))
  for output, message, status in (
    (f"{ours}", "takes a new folder\n", 1),
    (f"{ours}/", f"would lie in the checkpoint {ours}: give", 2),
    (f"{ours}/ema/", f"would lie in the checkpoint {ours}/ema: give", 2),
    (f"{ours}/new", f"would lie in the checkpoint {ours}: give", 2),
  ):
    assert main([*start, "-o", output]) == status
    assert message in capsys.readouterr().err
  assert sorted(ours.rglob("*")) == before
  for output, more, message in (
    ("mixed", ["--overwrite"], f"new folder; for a file in it say {tmp_path}/"),
    ("file", ["--overwrite"], "exists already; a checkpoint takes a new"),
    ("new", ["--dtype", "float16"], "is a checkpoint, of float32"),
    ("new.h5", [], "a new folder for a checkpoint"),
  ):
    status = 2 if output == "new.h5" or "--dtype" in more else 1
    assert main([*start, "-o", f"{tmp_path}/{output}", *more]) == status
    assert message in capsys.readouterr().err
  assert {path.name for path in tmp_path.iterdir()} == {"mixed", "file"}


def test_a_config_is_given_to_a_command(tmp_path, capsys):
  standard(tmp_path / "tree", params_of(scale=3))
  (tmp_path / "three.json").write_text('{"scale": 3}')
  out = str(tmp_path / "three.safetensors")
  command = ["convert", str(tmp_path / "tree"), out, "--config"]
  assert main([*command, str(tmp_path / "none.json")]) == 1
  assert "none.json is no config of a network: No" in capsys.readouterr().err
  assert main([*command, str(tmp_path / "three.json")]) == 0
  assert files.read_weights(out).config["scale"] == 3


def test_a_config_must_agree_with_what_a_model_says(ours, tmp_path, capsys):
  file = tmp_path / "config.json"
  for config in ({"scale": 4}, {**NET, "unroll": 2}):
    file.write_text(json.dumps({**config}))
    for given in (config, file, str(file)):
      found = esrgan_jax.load_checkpoint(ours, config=given)
      assert found.config.items() >= NET.items()
  name = "realesrgan-x4plus-anime"
  for model in (name, ours):
    with pytest.raises(ValueError, match=r"scale 2, but .* has 4; leave the c"):
      find.find_model(model, config={"scale": 2})
  # The rare file that does not tell its scale is told by it.
  state = rrdb.to_state_dict(params_of(scale=3), {})
  (tmp_path / "x3.safetensors").write_bytes(
    safetensors_file.to_bytes(state, {})
  )
  for scale in (2, 3):
    found = find.find_model(
      tmp_path / "x3.safetensors", config={"scale": scale}
    )
    assert found.weights.config["scale"] == scale
  with pytest.raises(ValueError, match="given: RRDBNet has no field depth"):
    find.find_model(name, config={"depth": 2})
  with pytest.raises(TypeError, match="path of a JSON file with them, got 3"):
    esrgan_jax.load_checkpoint(ours, config=3)
  file.write_text('{"scale": 2}')
  command = ["convert", name, str(tmp_path / "a.safetensors"), "--config"]
  assert main([*command, str(file)]) == 1
  assert f"says scale 2, but {name} has 4" in capsys.readouterr().err


@pytest.mark.parametrize("own", [False, True])
def test_training_starts_from_another_programs_tree(own, tmp_path, params):
  generator = {k: v for k, v in NET.items() if k != "scale"}
  variables = {"params": params}
  if own:  # Of the config that the run has.
    plugins.load([ROOT / "tests/own_network.py"])
    generator = {"architecture": "Normalized", "width": 3}
    net = registry.make_generator(**generator, scale=4)
    variables = jax.tree.map(
      lambda x: np.ones(x.shape, np.float32),
      jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))),
    )
  standard(tmp_path / "tree", variables)
  config = training_runs.tiny_config(tmp_path, generator=generator)
  config |= {"init_from": str(tmp_path / "tree")}
  if own:
    del config["initialization"]
  out = io.StringIO()
  console = rich.console.Console(file=out, width=500)
  run = run_lib.make_run(config, tmp_path / "run", console=console)
  found = start.read(run)
  assert_equal(found.variables, variables)
  assert found.is_whole
  assert f"tree: {NOTE}" in out.getvalue()


@pytest.mark.slow
def test_a_workdir_mixed_by_plain_orbax(tmp_path, monkeypatch):
  """As training leaves it, at the end of both phases."""
  shutil.copytree(training_runs.trained()[0] / "run", tmp_path / "runs/mine")
  monkeypatch.chdir(tmp_path)
  page = (ROOT / "docs/checkpoints.md").read_text()
  _, plain = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  exec(plain, {})
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  images.write_image(tmp_path / "photo.png", images.Image(pixels))
  (command,) = re.findall(r"^python -m esrgan_jax (upscale.*)$", page, re.M)
  assert main(command.split()) == 0
  assert images.read_size(tmp_path / "large.png") == (32, 32)
  assert main(["interpolate", *(["runs/mine"] * 2), "-o", "mixed"]) == 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    esrgan_jax.load_checkpoint("runs/mine/mixed").params,
    esrgan_jax.load_checkpoint("mixed").params,
  )
  command = ["upscale", "photo.png", "--model", "mixed", "-o", "again.png"]
  assert main(command) == 0
  assert images.read_size(tmp_path / "again.png") == (32, 32)


@pytest.mark.slow
def test_interpolate_writes_checkpoints_and_files(run, tmp_path):
  start = ["interpolate", str(run), str(run)]
  names = f"{tmp_path}/mixed_{{alpha}}"
  assert main([*start, "--alpha", "0.25", "0.5", "-o", names]) == 0
  found = esrgan_jax.load_checkpoint(tmp_path / "mixed_0.25")
  assert (
    found.metadata.items()
    >= {
      "alpha": "0.25",
      "interpolated_a": "mine/psnr",
    }.items()
  )
  assert found.config["num_feat"] == 4
  (tmp_path / "files").mkdir()
  assert main([*start, "-o", f"{tmp_path}/files/"]) == 0
  assert (tmp_path / "files/interpolated_0.8.safetensors").is_file()


def test_damage_is_told_by_the_commands_in_one_line(saved, tmp_path, capsys):
  folder = pathlib.Path(shutil.copytree(saved, tmp_path / "tree"))
  _cut("manifest.ocdbt")(folder)
  assert main(["convert", str(folder), str(tmp_path / "a.safetensors")]) == 1
  assert re.fullmatch(
    r"error: .*tree is damaged: .*\n", capsys.readouterr().err
  )


def test_a_file_is_no_checkpoint(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("model.jax").write_bytes(b"program")
  with pytest.raises(ValueError, match=r"^model.jax is no checkpoint: esr"):
    esrgan_jax.load_checkpoint("model.jax")
  with pytest.raises(ValueError, match=r"is an exported program, .*jax.export"):
    esrgan_jax.load("model.jax")


def test_a_discriminator_is_read_from_ours_only(saved):
  with pytest.raises(ValueError, match="no checkpoint with a discriminator"):
    find.find_discriminator(saved)
