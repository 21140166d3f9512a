"""Many images through few programs: as if each had been alone."""

import itertools
import threading

import jax
import numpy as np
import pytest

from esrgan_jax import images
from esrgan_jax.tiling import Span
from esrgan_jax.upscaling import memory, photo, stream, tiles, upscaler, windows
from esrgan_jax.upscaling.upscaler import Upscaler
from tests.test_upscaler import _Masked, make_model
from tests.test_upscaler import photo as picture


def sizes_of(count, low, high, seed=0):
  """Sides log-uniform, as in `benchmarks/folder.py`."""
  sides = np.random.default_rng(seed).uniform(
    np.log(low), np.log(high), (count, 2)
  )
  return [(int(h), int(w)) for h, w in np.exp(sides)]


@pytest.fixture(scope="module")
def model():
  return make_model()


@pytest.mark.parametrize(
  ("fields", "devices", "most"),
  [
    ({}, 1, 16),
    pytest.param({}, 8, 60, marks=pytest.mark.release),
    pytest.param({}, 2, 60, marks=pytest.mark.slow),
    pytest.param({"scale": 2}, 2, 30, marks=pytest.mark.release),
    pytest.param({"scale": 3}, 1, 30, marks=pytest.mark.release),
  ],
)
def test_images_of_many_sizes_are_as_if_alone(fields, devices, most):
  many, one = make_model(devices=devices, **fields), make_model(**fields)
  channels = itertools.cycle([3, 3, 1])
  pictures = [
    picture(*size, next(channels), dtype=np.uint8, seed=i)
    for i, size in enumerate(sizes_of(20, 3, most))
  ]
  pictures.insert(5, picture(most, 11, 3, dtype=np.uint16))
  results = list(many.stream(iter(pictures)))
  # A program for 8 bits, another for 16.
  assert len(many._programs) == 2
  # Each alone has a program of its own, which takes a while to compile.
  step = 1 if most > 16 else 4
  for image, found in list(zip(pictures, results, strict=True))[1::step]:
    expected = one.upscale(image)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    # One rounding apart at most.
    unequal = np.abs(found.astype(int) - expected) > 0
    assert np.abs(found.astype(int) - expected).max() <= (
      1 if image.dtype == np.uint8 else 8
    )
    assert image.dtype != np.uint8 or unequal.mean() < 0.01


@pytest.mark.release
def test_as_if_alone_at_real_width():
  one, many = (
    upscaler.load("realesrgan-x4plus-anime", dtype="float32") for _ in range(2)
  )
  pictures = [
    picture(*size, 3, seed=i) for i, size in enumerate(sizes_of(6, 24, 90))
  ]
  for image, found in zip(pictures, many.stream(pictures), strict=True):
    np.testing.assert_allclose(found, one.upscale(image), atol=2e-5)
  assert len(many._programs) == 1


def test_large_and_small_images_in_one_stream(model):
  pictures = [picture(*size, 3) for size in [(9, 200), (131, 77), (8, 8)]]
  options = {"tile": 32, "exact": True}
  found = model.stream(pictures, **options)
  for image, result in zip(pictures, found, strict=True):
    expected = model.upscale(image, **options)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_network_whose_images_cannot_share_a_window(monkeypatch):
  monkeypatch.setattr(memory, "least_pixels", lambda platform: 2**10)
  net = _Masked()
  params = jax.tree.map(
    lambda leaf: np.full(leaf.shape, 0.01, np.float32),
    jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 8, 8, 3)))[
      "params"
    ],
  )
  model = Upscaler(net, params, devices=jax.devices()[:1])
  pictures = [
    picture(n, 20, 3, seed=i) for i, n in enumerate([9, 30, *[12] * 6])
  ]
  results = list(model.stream(pictures))
  shapes = {shape for shape, *_ in model._programs}
  assert all(shape.gap is None for shape in shapes)
  # Two at a time, where there is room.
  assert {shape.per_device for shape in shapes} == {1, 2}
  for image, found in zip(pictures, results, strict=True):
    np.testing.assert_allclose(found, model.upscale(image), atol=1e-5)


def test_it_is_lazy_and_reads_no_more_than_a_group_ahead(monkeypatch, model):
  monkeypatch.setattr(stream, "_GROUP_PIXELS", 1000)
  taken = []

  def source():
    for i in range(100):
      taken.append(i)
      yield np.full((20, 20, 3), i, np.uint8)

  results = model.stream(source())
  assert not taken
  for i in range(40):
    next(results)
    # Of three images each: two that are computed, and one that is read.
    assert len(taken) <= i + 9
  results.close()
  assert len(taken) < 50


def test_an_image_that_is_none_comes_after_those_before_it(model):
  pictures = [np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9, 7), np.uint8)]
  results = model.stream(pictures)
  assert next(results).shape == (32, 36, 3)
  with pytest.raises(ValueError, match=r"\(8, 9, 7\)"):
    next(results)

  def failing():
    yield pictures[0]
    raise OSError("the disk is gone")

  results = model.stream(failing())
  assert next(results).shape == (32, 36, 3)
  with pytest.raises(OSError, match="the disk is gone"):
    next(results)
  assert list(model.stream([])) == []
  assert next(model.stream([np.zeros((2, 3), np.uint8)])).shape == (8, 12)


def test_only_the_image_that_is_not_finite_fails(model):
  pictures = [picture(n, 16, 3) for n in (9, 12, 16, 11)]
  pictures[2][3, 4] = np.nan
  orders = [
    model.order(pixels, np.empty((len(pixels) * 4, 64, 3), np.float32))
    for pixels in pictures
  ]
  found = list(model.engine().run(iter(orders)))
  assert found == orders
  assert [order.error is None for order in found] == [True, True, False, True]
  assert isinstance(orders[2].error, FloatingPointError)
  for i in (0, 1, 3):
    expected = model.upscale(pictures[i])
    np.testing.assert_allclose(orders[i].out, expected, atol=1e-5)


def test_photos_in_a_stream_are_as_if_alone(model):
  alpha = picture(11, 14, dtype=np.uint8, seed=5)
  pixels = picture(11, 14, 3, dtype=np.uint8)
  deep = picture(20, 9, 1, dtype=np.uint16)
  photos = [
    images.Image(pixels, alpha=alpha),
    images.Image(deep),
    images.Image(pixels, extra=np.stack([alpha, pixels[..., 0]], axis=-1)),
  ]
  tasks = [photo.Task(photos[0], size=(20, 31)), *map(photo.Task, photos[1:])]
  tasks.insert(1, OSError("there is none"))
  ready = list(photo.upscale_photos(model, iter(tasks)))
  with pytest.raises(OSError, match="there is none"):
    ready.pop(1).result()
  for each, single, size in zip(
    ready, photos, [(20, 31), None, None], strict=True
  ):
    found = each.result()
    expected = photo.upscale_photo(model, single, size=size)
    for name in ("pixels", "alpha", "extra"):
      a, b = getattr(found, name), getattr(expected, name)
      assert (a is None) == (b is None)
      assert a is None or np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize("channels", [1, 4])
def test_photos_through_networks_of_other_channels(channels):
  model = make_model(num_in_ch=channels, num_out_ch=channels)
  alpha = picture(11, 14, dtype=np.uint8, seed=5)
  colour = picture(11, 14, 3, dtype=np.uint8)
  result = photo.upscale_photo(model, images.Image(colour, alpha=alpha))
  assert result.pixels.shape == (44, 56, 3)
  assert result.alpha.shape == (44, 56)
  grey = photo.upscale_photo(model, images.Image(colour[..., :1]))
  assert grey.pixels.shape == (44, 56, 1)
  if channels == 4:
    bled = images.bleed_colour(colour, alpha)
    both = np.concatenate([bled, alpha[..., None]], axis=-1)
    expected = model.upscale(both)
    np.testing.assert_array_equal(result.pixels, expected[..., :3])
    np.testing.assert_array_equal(result.alpha, expected[..., 3])
  else:
    expected = model.upscale(colour[..., :1])
    np.testing.assert_array_equal(grey.pixels, expected)
    # Grey that comes as colour stays what it is.
    pale = images.Image(np.repeat(colour[..., :1], 3, axis=2))
    found = photo.upscale_photo(model, pale).pixels
    np.testing.assert_allclose(found[..., 0], found[..., 2], atol=1)
    np.testing.assert_allclose(found[..., :1], expected, atol=1)
  with pytest.raises(ValueError, match="maps 3 to 1 channels"):
    photo.upscale_photo(make_model(num_out_ch=1), images.Image(colour))


@pytest.mark.release
def test_little_memory_makes_windows_smaller_in_a_stream(monkeypatch):
  model = make_model()
  pictures = [
    picture(*size, 3) for size in [(70, 90), (9, 9), (60, 80), (20, 8)]
  ]
  expected = [model.upscale(image) for image in pictures]
  needed = max(map(memory.needed_memory, model._programs.values()))
  model._programs.clear()
  monkeypatch.setattr(memory, "free_memory", lambda device: needed)
  found = list(model.stream(pictures, exact=True))
  assert max(shape.area for shape, *_ in model._programs) > 80 * 90
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
  with pytest.raises(upscaler.OutOfMemoryError, match="too little memory"):
    next(model.stream(pictures, exact=True))


class _Counted:
  """A program that tells how many of its calls were under way at a time."""

  def __init__(self, program, barrier=None):
    self.memory_analysis = program.memory_analysis
    self._program, self._barrier = program, barrier
    self._lock, self._now = threading.Lock(), 0
    self.calls = self.most = 0

  def __call__(self, *args):
    with self._lock:
      self.calls += 1
      self._now += 1
      self.most = max(self.most, self._now)
    if self._barrier:
      self._barrier.wait()
    results = jax.block_until_ready(self._program(*args))
    with self._lock:
      self._now -= 1
    return results


def _count_programs(monkeypatch, barrier=None):
  made = {}
  original = Upscaler._program

  def program(self, shape, dtype):
    if shape not in made:
      made[shape] = _Counted(original(self, shape, dtype), barrier)
    return made[shape]

  monkeypatch.setattr(Upscaler, "_program", program)
  return made


def test_a_cpu_computes_two_windows_side_by_side(monkeypatch):
  model = make_model()
  pictures = [picture(96, 96, 3, dtype=np.uint8, seed=i) for i in range(4)]
  expected = [model.upscale(each) for each in pictures]
  # One that came alone would wait here until the time is up, and fail.
  made = _count_programs(monkeypatch, threading.Barrier(2, timeout=100))
  found = list(model.stream(pictures))
  assert [(each.calls, each.most) for each in made.values()] == [(4, 2)]
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("why", ["alone", "little memory", "two devices"])
def test_a_window_is_computed_by_itself(monkeypatch, why):
  model = make_model(devices=2 if why == "two devices" else 1)
  side = 200 if why == "alone" else 96
  pictures = [picture(side, side, 3, dtype=np.uint8, seed=i) for i in range(4)]
  made = _count_programs(monkeypatch)
  if why == "little memory":  # Enough for one, and no quarter for two.
    needed = memory.needed_memory
    monkeypatch.setattr(
      memory, "free_memory", lambda _: 7 * max(map(needed, made.values()))
    )
    monkeypatch.setattr(memory, "fits", lambda *_: True)
  images_of_it = pictures[:1] if why == "alone" else pictures
  list(model.stream(images_of_it, tile=64 if why == "alone" else "auto"))
  assert all(each.most == 1 for each in made.values())
  assert sum(each.calls for each in made.values()) >= 2


def test_memory_that_runs_out_side_by_side_makes_tiles_smaller(monkeypatch):
  model = make_model()
  pictures = [picture(96, 96, 3, dtype=np.uint8, seed=i) for i in range(3)]
  expected = [model.upscale(each, tile=48) for each in pictures]
  original = Upscaler._program

  def program(self, shape, dtype):
    if max(shape.height, shape.width) < 96:
      return original(self, shape, dtype)

    def full(*_):
      raise MemoryError

    full.memory_analysis = original(self, shape, dtype).memory_analysis
    return full

  monkeypatch.setattr(Upscaler, "_program", program)
  said = []
  found = list(model.stream(pictures, notify=said.append))
  assert len(said) == 1
  assert "--tile" in said[0]
  for one, other in zip(found, expected, strict=True):
    assert np.abs(one.astype(int) - other).max() <= 1


def plan_of(height, width):
  pieces = (tiles.Piece(Span(0, height, 0, height), Span(0, width, 0, width)),)
  shape = tiles.Shape(height, width, height, width, 1)
  return tiles.Plan(shape, pieces)


def test_packed_pieces_lie_apart():
  random = np.random.default_rng(3)
  for gap in (1, 2, 4):
    shape = tiles.Shape(96, 64, 96, 64, 1, gap, masked=True, gap=gap)
    sizes = random.integers(1, (24, 16), (60, 2)) * gap
    items = [(i, plan_of(h, w).pieces[0]) for i, (h, w) in enumerate(sizes)]
    found = windows.pack(items, shape)
    assert sorted(h.image for held in found for h in held) == [*range(60)]
    for held in found:
      taken = np.zeros((96 + gap, 64 + gap), int)
      for each in held:
        (top, left), piece = each.at, each.piece
        bottom, right = top + piece.height, left + piece.width
        assert bottom <= 96
        assert right <= 64
        assert top % gap == left % gap == 0
        taken[top : bottom + gap, left : right + gap] += 1
      assert taken.max() == 1


def choose(groups, devices=1, compiling=30_000.0):
  def make_shared(size):
    return tiles.Shape(*size, *size, 1, masked=True, gap=1)

  return windows.choose(
    groups,
    make_shared,
    largest=672,
    devices=devices,
    least=2**12,
    computing=lambda shape: memory.computing_pixels("cpu", shape.area),
    compiling=lambda shape: compiling,
  )


def test_many_sizes_share_windows_that_are_full():
  plans = [plan_of(*size) for size in sizes_of(200, 24, 600)]
  choice = choose([plans])
  assert choice.shared
  assert len(choice.own) <= 3
  arranged = windows.arrange(
    ((i, plan, False) for i, plan in enumerate(plans)), choice
  )
  pixels = sum(plan.pieces[0].height * plan.pieces[0].width for plan in plans)
  assert pixels / sum(window.shape.area for window in arranged) > 0.88
  # As they are waited for.
  first = [min(held.image for held in window.held) for window in arranged]
  assert first == sorted(first)


def test_what_fits_goes_into_smaller_windows():
  plans = [plan_of(*size) for size in sizes_of(200, 24, 600)]
  choice = choose([plans])
  large, small = choice.shared
  pieces = {i: plan.pieces[0] for i, plan in enumerate(plans)}
  assert all(windows.fits(piece, large) for piece in pieces.values())
  arranged = windows.arrange(
    ((i, plan, False) for i, plan in enumerate(plans)), choice
  )
  held = [(h.image, w.shape) for w in arranged for h in w.held]
  assert sorted(i for i, _ in held) == [*pieces]
  for i, shape in held:
    assert windows.fits(pieces[i], shape)
  # Between the large ones, too.
  among = [i for i, s in held if s == large and windows.fits(pieces[i], small)]
  assert among
  one = choose([plans], compiling=200_000.0)
  assert len(one.shared) == 1
  assert computed(choice, [plans]) < 0.985 * computed(one, [plans])


def test_as_if_alone_in_windows_of_two_shapes(monkeypatch, model):
  def choose_two(groups, make_shared, **options):
    del groups, options
    shared = make_shared((16, 16)), make_shared((10, 12))
    return windows.Choice(shared, {})

  monkeypatch.setattr(windows, "choose", choose_two)
  pictures = [
    picture(*size, 3, dtype=np.uint8, seed=i)
    for i, size in enumerate(sizes_of(24, 3, 16))
  ]
  ran = []
  launch = stream.Engine._launch

  def note(engine, batch):
    ran.append(batch.shape)
    return launch(engine, batch)

  monkeypatch.setattr(stream.Engine, "_launch", note)
  found = list(model.stream(pictures))
  assert len(set(ran)) == 2
  for image, result in zip(pictures, found, strict=True):
    assert result.shape == (4 * image.shape[0], 4 * image.shape[1], 3)
  monkeypatch.undo()
  for expected, result in zip(model.stream(pictures), found, strict=True):
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_one_size_keeps_windows_of_its_own():
  choice = choose([[plan_of(600, 400)] * 30])
  assert not choice.shared
  (shape,) = choice.own
  assert (shape.height, shape.width) == (600, 400)
  # Unless compiling is what costs.
  two = choose([[plan_of(100, 90), plan_of(90, 100)]], compiling=1e9)
  assert not two.own


def test_every_device_has_work():
  plans = [plan_of(*size) for size in sizes_of(24, 24, 200)]
  choice = choose([plans], devices=8, compiling=0.0)
  arranged = windows.arrange(
    ((i, plan, False) for i, plan in enumerate(plans)), choice, devices=8
  )
  batches = windows.batches(arranged, 8)
  assert all(len(batch) == 8 for _, batch in batches)


def computed(choice, groups):
  """Pixels of the windows that groups take, one after another."""
  shared = [
    [plan.pieces[0] for plan in group if choice.takes(plan)] for group in groups
  ]
  counts = windows._count_windows(shared, choice.shared, 1)
  own = [p.shape.area for g in groups for p in g if not choice.takes(p)]
  return sum(own) + sum(
    count * memory.computing_pixels("cpu", shape.area)
    for count, shape in zip(counts, choice.shared, strict=True)
  )


def test_shapes_are_chosen_for_groups_as_they_come():
  found = []
  for seed in range(4):
    plans = [plan_of(*size) for size in sizes_of(120, 24, 600, seed)]
    groups = [plans[i : i + 40] for i in range(0, len(plans), 40)]
    found.append([computed(choose(each), groups) for each in (groups, [plans])])
  as_they_come, at_once = np.sum(found, axis=0)
  assert as_they_come < 0.98 * at_once


@pytest.mark.parametrize("devices", [1, 4])
def test_what_is_least_full_waits_once(devices):
  plans = [plan_of(*size) for size in sizes_of(300, 24, 300)]
  choice = choose([plans], devices=devices)
  images = [(i, plan, i % 5 == 0) for i, plan in enumerate(plans)]
  arranged = windows.arrange(images, choice, devices=devices)
  now, waiting = windows.hold_back(
    arranged, choice.shared, devices, waited=lambda image: False
  )
  assert {*map(id, now)} | {*map(id, waiting)} == {*map(id, arranged)}
  assert len(now) + len(waiting) == len(arranged)
  for shape, grey in itertools.product(choice.shared, (False, True)):
    of_now, of_waiting = (
      [w.fill for w in part if w.grey == grey and w.shape == shape]
      for part in (now, waiting)
    )
    assert len(of_waiting) <= len(of_now) / 2
    assert len(of_now) % devices == 0 or not of_waiting
    assert max(of_waiting, default=0) <= min(of_now)
  again, none = windows.hold_back(
    arranged, choice.shared, devices, waited=lambda image: True
  )
  assert again == arranged
  assert not none


def test_pieces_that_wait_come_in_order_and_once(monkeypatch, model):
  monkeypatch.setattr(stream, "_GROUP_PIXELS", 1500)
  pictures = [
    picture(*size, 3, dtype=np.uint8, seed=i)
    for i, size in enumerate(sizes_of(40, 4, 20, seed=2))
  ]
  orders = []
  real = stream.Order.begin

  def begin(order, plan):
    orders.append(order)
    real(order, plan)

  monkeypatch.setattr(stream.Order, "begin", begin)
  found = list(model.stream(pictures, tile=12, halo=4))
  assert len(orders) == len(pictures)
  assert any(order.waited for order in orders)
  assert not all(order.waited for order in orders)
  by_waiting = sorted(range(len(pictures)), key=lambda i: orders[i].waited)
  # Each alone has a program of its own, which takes a while to compile.
  for i in by_waiting[:1] + by_waiting[-2:]:
    expected = model.upscale(pictures[i], tile=12, halo=4)
    np.testing.assert_allclose(found[i].astype(int), expected, atol=1)
  for image, result in zip(pictures, found, strict=True):
    assert result.shape == (4 * image.shape[0], 4 * image.shape[1], 3)
