"""Images as strips of rows in the batch, against the images whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrgan_jax.models.compact import SRVGGNetCompact
from esrgan_jax.models.rrdb import RRDBNet
from esrgan_jax.ops import compact, convolution, rows
from esrgan_jax.ops.platforms import tracing_for
from esrgan_jax.training import mesh as mesh_lib


def draw(*shape, seed=1):
  random = np.random.default_rng(seed)
  return (random.random(shape) - 0.5).astype(np.float32)


@pytest.mark.parametrize(
  ("shape", "devices", "num"),
  [
    ((1, 32, 32, 64), 1, 8),
    ((3, 16, 20, 64), 1, 8),  # 24 are three registers' full.
    ((6, 32, 32, 64), 1, 4),
    ((7, 32, 32, 64), 1, 8),
    ((8, 32, 32, 64), 1, 1),  # As many as there are sublanes.
    ((12, 32, 32, 64), 1, 1),
    ((16, 32, 32, 64), 8, 4),  # Two a device.
    ((16, 32, 32, 64), 2, 1),
    ((1, 36, 36, 64), 1, 8),
    ((1, 15, 36, 64), 1, 1),  # Not two rows for each of eight.
    ((4, 15, 36, 64), 1, 2),
    ((1, 0, 8, 64), 1, 1),
    ((0, 8, 8, 64), 1, 1),
    ((9, 32, 32, 64), 8, 1),  # Not shared out equally.
  ],
)
def test_how_many_strips_fill_the_sublanes(shape, devices, num):
  mesh = mesh_lib.make_mesh(devices) if devices > 1 else None
  strips = rows.choose_strips(shape, mesh)
  assert strips.num == num
  assert strips == rows.WHOLE or strips.mesh == mesh


def test_sizes_that_are_not_known_yet():
  n, h = jax.export.symbolic_shape("n, h")
  assert rows.choose_strips((n, 32, 32, 64)) == rows.WHOLE
  assert rows.choose_strips((1, h, 32, 64)) == rows.WHOLE


@pytest.mark.parametrize(
  ("n", "num", "height"), [(1, 8, 8), (2, 4, 8), (3, 2, 7), (1, 4, 10)]
)
@pytest.mark.parametrize("devices", [1, 2])
def test_a_convolution_and_its_kernels_gradient(n, num, height, devices):
  n *= devices
  mesh = mesh_lib.make_mesh(devices) if devices > 1 else None
  strips = rows.Strips(num, mesh)
  x, dy = draw(n, height, 5, 3), draw(n, height, 5, 4, seed=2)
  kernel = draw(3, 3, 3, 4, seed=3)

  @jax.jit
  def cut(x, kernel, dy):
    x, dy = rows.split(x, strips), rows.split(dy, strips)
    return (
      rows.join(rows.convolve(x, kernel, strips), strips, height),
      rows.kernel_gradient(x, dy, strips),
    )

  out, d_kernel = cut(x, kernel, dy)
  np.testing.assert_allclose(out, convolution.convolve(x, kernel), atol=1e-5)
  expected = convolution.kernel_gradient_by_conv(x, dy)
  np.testing.assert_allclose(d_kernel, expected, atol=1e-5)


NETWORKS = {
  "rrdb": RRDBNet(num_feat=8, num_block=2, num_grow_ch=4),
  "compact": SRVGGNetCompact(num_feat=8, num_conv=2),
}


@functools.cache
def network(name):
  net = NETWORKS[name]
  params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  return net, jax.tree.map(lambda x: x * 3, params)  # Not next to nothing.


def differentiated(net, params, lr, valid):
  """The result, and the gradient of it in some direction."""

  def loss(params, lr):
    sr = net.apply(params, lr, valid)
    return jnp.mean(jnp.sin(9 * sr)), sr

  gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
  (d_params, d_lr), sr = gradient(params, lr)
  return sr, d_params, d_lr


@pytest.mark.parametrize(
  ("name", "n", "devices", "height", "masked"),
  [
    ("rrdb", 1, 1, 18, False),  # Six rows too few.
    ("rrdb", 3, 1, 16, True),
    ("rrdb", 8, 4, 17, True),
    ("rrdb", 8, 8, 16, False),
    ("compact", 1, 1, 18, False),
    ("compact", 3, 1, 17, True),
    ("compact", 8, 4, 16, False),
    ("compact in pairs", 1, 1, 18, True),
  ],
)
def test_a_network_for_tpus_is_the_network(
  name, n, devices, height, masked, monkeypatch
):
  if name.endswith("pairs"):
    monkeypatch.setattr(compact, "_MIN_PIXELS_IN_PAIRS", 1)
  net, params = network(name.partition(" ")[0])
  lr = np.abs(draw(n, height, 8, 3))
  valid = None
  if masked:
    valid = np.ones((n, height, 8, 1), np.float32)
    valid[:, 11:] = valid[0, :, 4:] = 0
  mesh = mesh_lib.make_mesh(devices)
  split, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)

  def lower(shardings, *arrays):
    # A function of its own: what was traced is remembered by function.
    run = jax.jit(
      functools.partial(differentiated, net), in_shardings=shardings
    )
    return run.lower(*arrays)

  arrays = params, lr, valid
  expected = lower((whole, split, split), *arrays).compile()(*arrays)
  with tracing_for("tpu", mesh):
    lowered = lower((whole, split, split), *arrays)
  num = 8 if n == devices else {3: 8, 8: 4}[n]  # Strips of an image.
  width, feat = (4, 16) if name.endswith("pairs") else (8, 8)
  strips = f"tensor<{n * num}x{-(-height // num)}x{width}x{feat}xf32>"
  assert strips in lowered.as_text()
  compiled = lowered.compile()
  for ours, wanted in zip(
    *map(jax.tree.leaves, (compiled(*arrays), expected)), strict=True
  ):
    scale = max(np.abs(wanted).max(), 1e-6)
    np.testing.assert_allclose(ours, wanted, atol=1e-4 * scale)
  if devices > 1:  # No rows travel.
    text = compiled.as_text()
    assert "all-reduce" in text
    for kind in ("all-gather", "all-to-all", "collective-permute"):
      assert kind not in text


@pytest.mark.slow
@pytest.mark.parametrize(
  ("net", "size", "strips"),
  [
    (RRDBNet(num_block=1), 32, "8x4x32x192"),
    (SRVGGNetCompact(num_conv=1), 128, "8x16x64x128"),  # In pairs, by its size.
  ],
)
def test_at_the_width_that_is_published(net, size, strips):
  lr = np.abs(draw(1, size, size, 3))
  params = jax.jit(net.init)(jax.random.key(0), lr)
  expected = jax.jit(net.apply)(params, lr)
  with tracing_for("tpu"):
    # Not the function of before, which is remembered as it was traced.
    lowered = jax.jit(functools.partial(net.apply)).lower(params, lr)
  assert f"tensor<{strips}xf32>" in lowered.as_text()
  found = lowered.compile()(params, lr)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, atol=1e-4 * scale)


def test_a_program_for_no_known_platform_keeps_images_whole():
  net, params = network("rrdb")
  lr = jnp.ones((2, 16, 9, 3))
  text = jax.jit(net.apply).lower(params, lr).as_text()
  assert "tensor<2x16x9x8xf32>" in text
  assert "tensor<8x4x9x8xf32>" not in text
