"""Real-ESRGAN's discriminator against PyTorch's, its state, and its files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrgan_jax import __main__, losses
from esrgan_jax.models.unet_discriminator import (
  UNetDiscriminatorSN,
  double,
  iterate,
  singular_value,
)
from esrgan_jax.weights import discriminators, find
from esrgan_jax.weights.dialects import unet_discriminator as dialect
from tests import golden, weight_builders


def _variables(num_feat=1):
  found = dialect.from_state_dict(golden.unet_state(num_feat))
  return {"params": found.params, **found.collections}


def _close(actual, expected, name=""):
  scale = max(np.abs(expected).max(), 1e-3)
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=1e-4 * scale, err_msg=name
  )


def _check_is_pytorchs(expected, num_feat, **fields):
  """Logits, gradients and vectors through steps of training."""
  _, num_steps, rate = golden.UNET
  net = UNetDiscriminatorSN(num_feat, **fields)
  real, fake = golden.unet_input()
  variables = _variables(num_feat)
  evaluate = jax.jit(functools.partial(net.apply, train=False))
  _close(evaluate(variables, real), expected["before"], "before")

  @jax.jit
  def step(variables):
    def loss(params, fake):
      stats, logits = variables["batch_stats"], []
      for image in (real, fake):
        found, updated = net.apply(
          {"params": params, "batch_stats": stats},
          image,
          train=True,
          mutable=["batch_stats"],
        )
        stats = updated["batch_stats"]
        logits.append(found)
      return losses.vanilla_discriminator_loss(*logits), (logits, stats)

    grads, (logits, stats) = jax.grad(loss, (0, 1), has_aux=True)(
      variables["params"], fake
    )
    params = jax.tree.map(
      lambda p, g: p - rate * g, variables["params"], grads[0]
    )
    return {"params": params, "batch_stats": stats}, logits, grads

  for n in range(num_steps):
    variables, logits, grads = step(variables)
    for name, found in zip(("real", "fake"), logits, strict=True):
      _close(found, expected[f"{name} {n}"], f"{name} {n}")
  _close(grads[1], expected["image"], "image")
  _close(evaluate(variables, real), expected["eval"], "eval")
  stats = {"batch_stats": variables["batch_stats"]}
  state = dialect.to_state_dict(variables["params"], stats)
  for name, found in state.items():
    _close(found, expected[name], name)
  for name, found in dialect.to_state_dict(grads[0], stats).items():
    if not name.endswith(("_u", "_v")):
      _close(found, expected[f"grad {name}"], name)


def test_is_pytorchs_through_steps_of_training():
  _check_is_pytorchs(golden.load("unet_discriminator")["unet"], golden.UNET[0])


@pytest.mark.torch
@pytest.mark.parametrize("skip_connection", [True, False])
def test_wider_ones_are_pytorchs(skip_connection):
  from tests.oracles import answers

  fields = {"skip_connection": skip_connection}
  expected = answers.unet_discriminator(4, **fields)["unet"]
  _check_is_pytorchs(expected, 4, **fields)


def test_iteration_finds_the_largest_singular_value():
  kernel = golden.draw("kernel", 4, 4, 3, 6)
  u = golden.draw("u", 6)
  for _ in range(60):
    u, v = iterate(kernel, u)
  values = np.linalg.svd(kernel.reshape(-1, 6), compute_uv=False)
  assert float(singular_value(kernel, u, v)) == pytest.approx(values[0])


def test_only_training_goes_on_and_only_where_it_may():
  net, variables = UNetDiscriminatorSN(1), _variables()
  image = golden.unet_input()[0][:1, :8, :8]

  @jax.jit
  def run(variables):
    apply = functools.partial(net.apply, variables, image)
    return (
      apply(train=False, mutable=["batch_stats"]),
      apply(train=True, mutable=["batch_stats"]),
      apply(train=True),
    )

  (evaluated, same), (trained, moved), unkept = run(variables)
  jax.tree.map(
    np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"]
  )
  assert float(abs(trained - evaluated).max()) > 1e-3
  for name, layer in jax.device_get(moved["batch_stats"]).items():
    before = variables["batch_stats"][name]
    assert abs(layer["v"] - before["v"]).max() > 1e-4, name
    for vector in layer.values():
      assert np.linalg.norm(vector) == pytest.approx(1)
  # The vectors of this call count, whether they are kept or not.
  np.testing.assert_allclose(unkept, trained, atol=1e-5)


def test_enlargement_keeps_what_is_linear():
  ramp = np.arange(6, dtype=np.float32)
  image = np.broadcast_to(ramp[:, None], (6, 4))[None, ..., None]
  large = np.asarray(jax.jit(double)(image))[0, :, :, 0]
  # Pixel i of the large one lies over (i + 1/2) / 2 - 1/2 of the small one.
  np.testing.assert_allclose(large[1:-1, 3], np.arange(1, 11) / 2 - 0.25)
  np.testing.assert_array_equal(large[0], large[0, 0])


@pytest.mark.slow
def test_devices_share_their_vectors():
  net = UNetDiscriminatorSN(1)
  image = np.concatenate([golden.unet_input()[0][:, :8, :8]] * 4)
  image *= np.linspace(0, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)
  run = jax.jit(
    functools.partial(net.apply, train=True, mutable=["batch_stats"])
  )
  mesh = Mesh(np.array(jax.devices()), ("data",))
  whole, split = (
    NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",))
  )
  one = run(_variables(), image)
  many = run(jax.device_put(_variables(), whole), jax.device_put(image, split))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5), many, one
  )


@pytest.mark.slow
def test_bfloat16_computes_in_it_and_iterates_in_float32():
  net, variables = UNetDiscriminatorSN(1, dtype=jnp.bfloat16), _variables()
  image = golden.unet_input()[0]
  run = functools.partial(net.apply, train=True, mutable=["batch_stats"])
  logits, updates = jax.jit(run)(variables, image)
  assert logits.dtype == jnp.float32
  exact, wanted = jax.jit(
    functools.partial(
      UNetDiscriminatorSN(1).apply, train=True, mutable=["batch_stats"]
    )
  )(variables, image)
  np.testing.assert_allclose(logits, exact, atol=0.05)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6), updates, wanted
  )


def test_what_it_cannot_be_called_with():
  net = UNetDiscriminatorSN(1)
  image = jnp.zeros((1, 8, 12, 3))
  with pytest.raises(ValueError, match=r"8x12; .* multiples of 8: crop it"):
    net.apply(_variables(), image, train=False)
  params = {"params": _variables()["params"]}
  with pytest.raises(ValueError, match="batch_stats, which is missing"):
    net.apply(params, image[:, :, :8], train=False)
  with pytest.raises(ValueError, match="num_feat"):
    UNetDiscriminatorSN(0)


# --- files ------------------------------------------------------------------


def _newer(state):
  """The names of torch.nn.utils.parametrizations.spectral_norm."""
  kinds = {"orig": "original", "u": "0._u", "v": "0._v"}
  renamed = {}
  for name, value in state.items():
    layer, _, kind = name.partition(".weight_")
    if kind:
      name = f"{layer}.parametrizations.weight.{kinds[kind]}"
    renamed[name] = value
  return renamed


@pytest.mark.parametrize(
  "wrap",
  [
    lambda state: {"params": state},  # As the public ones are.
    lambda state: {"net_d": {f"module.{k}": v for k, v in state.items()}},
    lambda state: _newer(state),
  ],
)
def test_files_of_others_are_read(tmp_path, wrap):
  state = golden.unet_state(2)
  path = tmp_path / "netD.pth"
  path.write_bytes(weight_builders.zip_pth(state, wrap))
  found = find.find_discriminator(path)
  assert found.config == {
    "architecture": "UNetDiscriminatorSN",
    "num_feat": 2,
    "skip_connection": True,
  }
  jax.tree.map(np.testing.assert_array_equal, found.variables, _variables(2))


def test_written_it_is_read_again(tmp_path):
  path = tmp_path / "netD.safetensors"
  config = {"architecture": "UNetDiscriminatorSN", "skip_connection": False}
  discriminators.write_discriminator(path, _variables(2), config)
  found = discriminators.read_discriminator(path)
  assert found.config == config | {"num_feat": 2}
  jax.tree.map(np.testing.assert_array_equal, found.variables, _variables(2))
  with pytest.raises(FileExistsError, match="overwrite"):
    discriminators.write_discriminator(path, _variables(2), config)
  with pytest.raises(ValueError, match=r"num_feat 4, .* have 2"):
    discriminators.write_discriminator(
      tmp_path / "d.safetensors", _variables(2), config | {"num_feat": 4}
    )
  assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.torch
def test_pytorch_takes_what_is_written(tmp_path):
  import torch

  from tests.oracles import torch_discriminator

  path = tmp_path / "netD.pth"
  config = {"architecture": "UNetDiscriminatorSN"}
  discriminators.write_discriminator(path, _variables(2), config)
  net = torch_discriminator.UNetDiscriminatorSN(2)
  state = torch.load(path)["params"]
  assert list(state) == list(golden.unet_state(2))
  net.load_state_dict(state, strict=True)
  image, _ = golden.unet_input()
  said = net.eval()(torch.tensor(image).permute(0, 3, 1, 2))[:, 0]
  ours = UNetDiscriminatorSN(2).apply(_variables(2), image, train=False)
  _close(ours, said.detach().numpy())
  # And those of today's parametrization, which PyTorch converts by itself.
  newer = torch_discriminator.UNetDiscriminatorSN(
    2, norm=torch.nn.utils.parametrizations.spectral_norm
  )
  assert set(newer.state_dict()) == set(_newer(golden.unet_state(2)))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s.pop("conv4.weight_u"), "1 missing (conv4.weight_u)"),
    (lambda s: s.update(extra=s["conv9.bias"]), "1 left over (extra)"),
    (
      lambda s: s.update({"conv2.weight_v": s["conv2.weight_v"][1:]}),
      "conv2.weight_v is (31,), not (32,)",
    ),
    (
      lambda s: s.update({"conv0.bias": s["conv0.bias"] * np.float32(np.nan)}),
      "NaN or infinite",
    ),
    (lambda s: s.pop("conv0.weight"), "no kernel conv0.weight"),
    (lambda s: s.update(_newer(s)), "both stand for conv1.weight_orig"),
  ],
)
def test_what_is_almost_one(tmp_path, change, message):
  state = golden.unet_state(1)
  change(state)
  path = tmp_path / "netD.pth"
  path.write_bytes(weight_builders.zip_pth(state))
  with pytest.raises(ValueError, match=r"netD\.pth: ") as caught:
    discriminators.read_discriminator(path)
  assert message in str(caught.value)


def test_a_generator_is_none_and_it_is_no_generator(tmp_path):
  path = tmp_path / "model.pth"
  path.write_bytes(weight_builders.zip_pth(weight_builders.random_state()))
  with pytest.raises(ValueError, match="supported is UNetDiscriminatorSN"):
    find.find_discriminator(path)
  path.write_bytes(weight_builders.zip_pth(golden.unet_state(1)))
  with pytest.raises(ValueError, match="a U-Net discriminator of Real-ESRGAN"):
    find.find_model(path)


def test_the_command_converts_one(tmp_path, capsys):
  source, target = tmp_path / "netD.pth", tmp_path / "d.safetensors"
  source.write_bytes(weight_builders.zip_pth(golden.unet_state(1)))
  command = ["convert", "--discriminator", str(source)]
  assert __main__.main([*command, str(target)]) == 0
  out = capsys.readouterr().out
  assert "UNetDiscriminatorSN num_feat=1 skip_connection=True" in out
  found = find.find_discriminator(target)
  jax.tree.map(np.testing.assert_array_equal, found.variables, _variables())
  for more, message, status in (
    ([str(target)], "exists", 1),
    ([str(tmp_path / "d.npz")], "the suffix must be", 2),
    ([str(source), "--overwrite"], "would replace an input", 1),
    ([str(tmp_path / "e.pth"), "--dtype", "float16"], "written in float32", 2),
  ):
    assert __main__.main([*command, *more]) == status
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
  named = [
    "convert",
    "--discriminator",
    "fast",
    str(tmp_path / "e.safetensors"),
  ]
  assert __main__.main(named) == 2
  assert "fast is a generator: " in capsys.readouterr().err
