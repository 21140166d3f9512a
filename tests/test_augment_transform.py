"""Mixes, colours and degradations of float pairs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.color
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from esrgan_jax import augment
from esrgan_jax.augment import mixes
from esrgan_jax.resize import imresize

# As much as they may be, where that shows more.
_STRONG = {
  "color_jitter": {
    "brightness": 0.6,
    "contrast": 0.6,
    "saturation": 0.6,
    "hue": 0.5,
  },
  "cutmix": {"sides": (0.3, 0.7)},
}


def _pairs(count=6, size=12, scale=4, seed=0):
  """Pairs whose LR is HR downscaled; no value leaves [0, 1]."""
  random = np.random.default_rng(seed)
  hr = random.uniform(0.15, 0.85, (count, size * scale, size * scale, 3))
  hr = jnp.asarray(hr, jnp.float32)
  return {"lr": imresize(hr, size=(size, size)), "hr": hr}


def _done(batch, operations, key=0, **options):
  """LR and HR of a batch after operations, of NumPy."""

  @jax.jit
  def run(key, batch):
    return augment.transform(key, batch, operations, **options)

  done = run(jax.random.key(key), batch)
  assert done["lr"].shape == batch["lr"].shape
  assert done["hr"].dtype == batch["hr"].dtype
  return tuple(np.asarray(done[name]) for name in ("lr", "hr"))


def _only(name, batch, key=0, probability=1.0, **strengths):
  """LR and HR of a batch after one operation."""
  return _done(batch, {name: {"probability": probability, **strengths}}, key)


def _changed(before, after):
  return np.abs(np.asarray(before) - after).max(axis=(1, 2, 3)) > 0


def test_nothing_is_computed_where_nothing_is_on():
  batch = _pairs(2, 4, 2)
  none = {name: {"probability": 0.0} for name in augment.OPERATIONS}
  traced = jax.make_jaxpr(lambda b: augment.transform(key, b, none))
  key = jax.random.key(0)
  assert traced(batch).eqns == []
  assert augment.transform(key, batch, {})["lr"] is batch["lr"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_and_dtypes_stay(dtype):
  every = {name: {"probability": 1.0} for name in augment.OPERATIONS}
  for scale in (1, 4):
    batch = {
      "lr": jax.ShapeDtypeStruct((2, 6, 5, 3), dtype),
      "hr": jax.ShapeDtypeStruct((2, 6 * scale, 5 * scale, 3), dtype),
    }
    got = jax.eval_shape(
      lambda key, b: augment.transform(key, b, every), jax.random.key(0), batch
    )
    for name, images in batch.items():
      assert (got[name].shape, got[name].dtype) == (images.shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_a_probability_is_how_many_of_the_pairs(name):
  batch = _pairs(64, 4, 2)
  rough = {**batch, "lr": batch["lr"] ** 2}  # CutBlur has something to do.
  lr, hr = _only(name, rough, probability=0.25)
  changed = _changed(rough["lr"], lr)
  assert 4 <= changed.sum() <= 28
  if name in ("blur", "noise", "cutblur"):
    assert not _changed(rough["hr"], hr).any()
  else:
    np.testing.assert_array_equal(_changed(rough["hr"], hr), changed)
  # Alike where it is always done: the same draws, but for who has them.
  every, _ = _only(name, rough, probability=1.0)
  np.testing.assert_allclose(every[changed], lr[changed], atol=1e-6)


@pytest.mark.slow
def test_draws_are_of_key_row_and_name_alone():
  batch = _pairs(8, 4, 2)
  alone, _ = _only("noise", batch, probability=0.5)
  noisy = _changed(batch["lr"], alone)
  # Not of the size of the batch, nor of what else there is.
  few = {name: images[:3] for name, images in batch.items()}
  np.testing.assert_allclose(
    _only("noise", few, probability=0.5)[0], alone[:3], atol=1e-6
  )
  both = {"noise": {"probability": 0.5}, "permute_channels": {"probability": 1}}
  together, _ = _done(batch, both)
  permuted, _ = _only("permute_channels", batch)
  np.testing.assert_array_equal(_changed(permuted, together), noisy)
  np.testing.assert_allclose(
    (together - permuted)[noisy],
    (alone - np.asarray(batch["lr"]))[noisy],
    atol=1e-6,
  )
  other, _ = _only("noise", batch, key=1, probability=0.5)
  assert (other != alone).any()


def test_mixup_is_a_mean_with_the_row_before():
  batch = _pairs(8)
  lr, hr = _only("mixup", batch, alpha=1.0)
  before, weights = np.asarray(batch["hr"]), []
  partners = np.roll(before, 1, axis=0)
  for row in range(8):
    span = before[row] - partners[row]
    share = (hr[row] - partners[row]) / span
    weight = np.median(share)
    weights.append(weight)
    for got, name in ((lr, "lr"), (hr, "hr")):
      a, b = batch[name][row], batch[name][row - 1]
      np.testing.assert_allclose(
        got[row], weight * a + (1 - weight) * b, atol=1e-5
      )
  assert np.ptp(weights) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.4, 1.2, 6.0])
def test_the_weight_is_scipys_beta(alpha):
  keys = jax.random.split(jax.random.key(3), 4000)
  drawn = jax.vmap(lambda key: mixes.symmetric_beta(key, alpha, jnp.float32))
  beta = scipy.stats.beta(alpha, alpha)
  assert scipy.stats.kstest(np.asarray(drawn(keys)), beta.cdf).pvalue > 0.01


def _box(inside):
  """Top, left, height and width of what is all of a box."""
  rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
  found = rows[0], columns[0], len(rows), len(columns)
  assert inside.sum() == found[2] * found[3]
  top, left, height, width = found
  assert inside[top : top + height, left : left + width].all()
  return found


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 4])
def test_cutmix_puts_a_box_of_the_row_before(scale):
  count, size = 32, 10
  rows = jnp.arange(count, dtype=jnp.float32)[:, None, None, None] / 100
  batch = {
    "lr": jnp.broadcast_to(rows, (count, size, size, 3)),
    "hr": jnp.broadcast_to(rows, (count, size * scale, size * scale, 3)),
  }
  lr, hr = _only("cutmix", batch, sides=(0.3, 0.7))
  np.testing.assert_array_equal(hr, lr.repeat(scale, 1).repeat(scale, 2))
  boxes = []
  for row in range(count):
    inside = lr[row, ..., 0] != batch["lr"][row, ..., 0]
    boxes.append(_box(inside))
    partner = batch["lr"][row - 1, 0, 0, 0]
    np.testing.assert_array_equal(lr[row][inside], partner)
  tops, lefts, heights, widths = np.transpose(boxes)
  assert {3, 7} <= {*heights, *widths} <= {3, 4, 5, 6, 7}
  assert 0 in tops
  assert size in lefts + widths


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 4])
def test_cutblur_makes_lr_clean_inside_or_outside(scale):
  batch = _pairs(32, 10, scale)
  dark = {**batch, "lr": 0.0 * batch["lr"]}
  lr, hr = _only("cutblur", dark, sides=(0.5, 0.5))
  np.testing.assert_array_equal(hr, batch["hr"])
  clean = np.asarray(batch["lr"])
  sizes = set()
  for row in range(32):
    pasted = (lr[row] != 0).all(axis=-1)
    np.testing.assert_allclose(lr[row][pasted], clean[row][pasted], atol=1e-6)
    inside = pasted if pasted.sum() == 25 else ~pasted
    assert _box(inside)[2:] == (5, 5)
    sizes.add(int(pasted.sum()))
  assert sizes == {25, 75}


@pytest.mark.slow
def test_channels_come_in_all_six_orders():
  batch = _pairs(64, 4, 2)
  lr, hr = _only("permute_channels", batch)
  seen = set()
  for row in range(64):
    for order in itertools.permutations((0, 1, 2)):
      if (np.asarray(batch["lr"])[row][..., order] == lr[row]).all():
        np.testing.assert_array_equal(batch["hr"][row][..., order], hr[row])
        seen.add(order)
  assert len(seen) == 6


_NO_JITTER = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}


def _jittered(**strengths):
  """HR before and after, in float64, of values that nothing clips."""
  batch = _pairs(16, 4, 2)
  batch = jax.tree.map(lambda x: 0.4 + 0.2 * x, batch)
  _, hr = _only("color_jitter", batch, **{**_NO_JITTER, **strengths})
  return np.asarray(batch["hr"], np.float64), hr.astype(np.float64)


@pytest.mark.slow
def test_brightness_is_a_factor():
  before, after = _jittered(brightness=0.3)
  factors = (after / before).reshape(16, -1)
  assert np.ptp(factors, axis=1).max() < 1e-5
  assert factors.min() < 0.85
  assert 1.15 < factors.max() <= 1.3001


@pytest.mark.slow
def test_contrast_is_about_the_mean_grey():
  before, after = _jittered(contrast=0.5)
  for a, b in zip(before, after, strict=True):
    mean = skimage.color.rgb2gray(a).mean()  # Of BT.709: about the same.
    (slope, base), *_ = np.polyfit(a.ravel(), b.ravel(), 1, full=True)
    np.testing.assert_allclose(b, slope * a + base, atol=1e-6)
    assert base == pytest.approx((1 - slope) * mean, abs=5e-3)
    assert 0.4999 <= slope <= 1.5001


@pytest.mark.slow
def test_saturation_and_hue_are_scikit_images_in_yiq():
  for strengths in ({"saturation": 0.8}, {"hue": 0.3}):
    before, after = map(skimage.color.rgb2yiq, _jittered(**strengths))
    np.testing.assert_allclose(after[..., 0], before[..., 0], atol=1e-3)
    a, b = (x[..., 1] + 1j * x[..., 2] for x in (before, after))
    far = np.abs(a) > 0.02
    for row in range(16):
      ratio = (b[row] / a[row])[far[row]]
      assert np.abs(ratio - ratio.mean()).max() < 0.05
      length, angle = np.abs(ratio.mean()), np.angle(ratio.mean())
      if "hue" in strengths:
        assert length == pytest.approx(1, abs=0.01)
        assert abs(angle) <= 0.3 * 2 * np.pi + 0.01
      else:
        assert angle == pytest.approx(0, abs=0.01)
        assert 0.19 <= length <= 1.81


def test_blur_is_scipys_gaussian():
  batch = _pairs(4, 32, 1)
  lr, hr = _only("blur", batch, sigmas=(1.5, 1.5))
  np.testing.assert_array_equal(hr, batch["hr"])
  for row in range(4):
    expected = scipy.ndimage.gaussian_filter(
      np.asarray(batch["lr"][row], np.float64), (1.5, 1.5, 0), truncate=8
    )
    inner = slice(12, -12)
    np.testing.assert_allclose(
      lr[row][inner, inner], expected[inner, inner], atol=1e-6
    )
  flat = jax.tree.map(lambda x: 0 * x + 0.7, batch)
  np.testing.assert_allclose(_only("blur", flat)[0], 0.7, atol=1e-6)
  np.testing.assert_array_equal(
    _only("blur", batch, sigmas=(0.0, 0.0))[0], batch["lr"]
  )


@pytest.mark.slow
def test_noise_has_the_deviation_and_stays_in_range():
  batch = jax.tree.map(lambda x: 0 * x + 0.5, _pairs(16, 32, 1))
  lr, _ = _only("noise", batch, levels=(2.0, 20.0))
  levels = (lr - 0.5).std(axis=(1, 2, 3)) * 255
  assert 1.9 < levels.min() < 6
  assert 14 < levels.max() < 21
  assert abs((lr - 0.5).mean()) < 1e-3
  # Channels have their own.
  across = np.corrcoef(lr[..., 0].ravel(), lr[..., 1].ravel())[0, 1]
  assert abs(across) < 0.05
  lr, _ = _only("noise", batch, levels=(255.0, 255.0))
  assert (lr.min(), lr.max()) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 3, 4])
def test_lr_stays_what_hr_is_downscaled(scale):
  size = 12
  batch = _pairs(6, size, scale, seed=scale)
  for name in ("permute_channels", "color_jitter", "mixup", "cutblur"):
    lr, hr = _only(name, batch, **_STRONG.get(name, {}))
    if name == "color_jitter":  # Clipped, and still a pair.
      assert ((hr == 0) | (hr == 1)).mean() > 0.01
    expected = jnp.clip(imresize(jnp.asarray(hr), size=(size, size)), 0, 1)
    np.testing.assert_allclose(lr, expected, atol=3e-6, err_msg=name)
  # A box has edges: there, two pixels of LR see both sides of HR.
  lr, hr = _only("cutmix", batch, **_STRONG["cutmix"])
  own, other = np.asarray(batch["lr"]), np.roll(batch["lr"], 1, axis=0)
  inside = (lr == other).all(axis=-1)
  near = np.stack(
    [
      scipy.ndimage.binary_dilation(i, np.ones((5, 5)))
      & ~scipy.ndimage.binary_erosion(i, np.ones((5, 5)), border_value=1)
      for i in inside
    ]
  )
  expected = np.asarray(imresize(jnp.asarray(hr), size=(size, size)))
  np.testing.assert_allclose(lr[~near], expected[~near], atol=3e-6)
  np.testing.assert_array_equal(lr[~inside], own[~inside])


@pytest.mark.slow
def test_one_of_does_at_most_one():
  batch = _pairs(64, 4, 2)
  dark = {**batch, "lr": 0.5 * batch["lr"]}
  shares = {"noise": 0.5, "cutblur": 0.25, "permute_channels": 0.25}
  options = {name: {"probability": share} for name, share in shares.items()}
  every = _done(dark, options, one_of=True)
  alone = {name: _only(name, dark) for name in shares}
  counts = dict.fromkeys(shares, 0)
  for row in range(64):
    same = [
      name
      for name, done in alone.items()
      if all(
        np.allclose(a[row], b[row], atol=1e-6)
        for a, b in zip(done, every, strict=True)
      )
    ]
    assert len(same) == 1
    counts[same[0]] += 1
  assert counts["noise"] > 20
  assert min(counts.values()) > 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_devices_change_nothing(kind):
  batch = _pairs(8, 6, 2)
  options = {
    name: {"probability": 0.5, **_STRONG.get(name, {})}
    for name in augment.OPERATIONS
  }
  key = jax.random.key(2)

  def run(batch):
    return augment.transform(key, batch, options)

  expected = jax.jit(run)(batch)
  mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(kind,))
  spread = jax.device_put(batch, NamedSharding(mesh, P("data")))
  got = jax.jit(run)(spread)
  for name in ("lr", "hr"):
    np.testing.assert_allclose(got[name], expected[name], atol=1e-6)
    assert got[name].sharding.spec[0] == "data"
    assert got[name].addressable_shards[0].data.shape[0] == 1
  assert _changed(batch["lr"], np.asarray(got["lr"])).any()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"cutblurr": {}}, "did you mean 'cutblur'?"),
    ({"noise": {"level": 3.0}}, "noise has no option 'level'; it has prob"),
    ({"noise": {"levels": 3.0}}, "the least and the most, such as (1.0, 10.0)"),
    ({"noise": {"levels": (3.0, 1.0)}}, "the least and the most"),
    ({"noise": {"levels": (3.0, 300.0)}}, "it must be from 0 to 255"),
    ({"noise": {"probability": 1.5}}, "probability is 1.5; it must be from 0"),
    ({"noise": {"probability": True}}, "it must be a number"),
    ({"blur": {"sigmas": (0.0, float("inf"))}}, "it must be 0 or more"),
    ({"blur": {"sigmas": (float("nan"), 1.0)}}, "least and the most"),
    ({"mixup": {"alpha": 0.0}}, "it must be more than 0"),
    ({"cutmix": {"sides": (0.5, 1.5)}}, "it must be from 0 to 1"),
    ({"color_jitter": {"hue": 0.7}}, "it must be from 0 to 0.5"),
    (
      {"noise": {"probability": 0.7}, "blur": {"probability": 0.7}},
      "the shares are 1.4 together (noise 0.7, blur 0.7)",
    ),
  ],
)
def test_wrong_options(options, message):
  with pytest.raises(ValueError, match=r"must|no o|shares") as caught:
    augment.transform(jax.random.key(0), _pairs(2, 4, 2), options, one_of=True)
  assert message in str(caught.value)


def test_wrong_batches():
  key, noise = jax.random.key(0), {"noise": {"probability": 1.0}}
  batch = _pairs(2, 4, 2)
  with pytest.raises(ValueError, match="batch_size is 1: take 2 or more"):
    augment.transform(
      key, jax.tree.map(lambda x: x[:1], batch), {"mixup": {"probability": 1.0}}
    )
  with pytest.raises(ValueError, match="larger by a whole factor"):
    augment.transform(key, {**batch, "hr": batch["hr"][:, :7]}, noise)
  with pytest.raises(TypeError, match="uint8"):
    augment.transform(key, jax.tree.map(jnp.uint8, batch), noise)
  with pytest.raises(TypeError, match="key must be a random key"):
    augment.transform(0, batch, noise)
